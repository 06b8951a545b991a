"""Measured choices: which kernel of a backend was fastest for a problem on this device, kept on disk.

One JSON file in the cache folder, keyed by backend, device, thread count and problem text; a kernel's time counts
only for the kernel version it was measured with. A damaged file is set aside with a warning, never trusted.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from quatrefoil import settings
from quatrefoil.problem import Problem
from quatrefoil.registry import Backend, Kernel

FILE = "tuned.json"
ROUNDS = 7
ROUND_SECONDS = 0.01

_lock = Lock()
_loaded: dict[Path, dict[str, dict[str, float]]] = {}


_revision = 0


def revision() -> int:
    """Grows whenever a choice is remembered: what was selected before may be outdated then."""
    return _revision


def key(backend: Backend, problem: Problem) -> str:
    return f"{backend.name} | {backend.device()} | {settings.num_threads()} threads | {problem.text}"


def kernel_key(kernel: Kernel) -> str:
    return f"{kernel.id}@{kernel.version}"


def remembered(backend: Backend, problem: Problem) -> Mapping[str, float]:
    """Seconds by ``id@version`` for a problem; empty when it was never measured here."""
    return _stored(settings.cache_folder() / FILE).get(key(backend, problem), {})


def measure(
    backend: Backend,
    problem: Problem,
    runs: Sequence[tuple[Kernel, Callable[[Sequence[Any]], Any]]],
    inputs: Sequence[Any],
) -> Mapping[str, float]:
    """Time prepared runs on the same inputs in interleaved rounds, and remember the medians."""
    seconds: dict[str, list[float]] = {kernel_key(kernel): [] for kernel, _ in runs}
    repeats = {}
    for kernel, run in runs:
        backend.get(run(inputs)[0])
        once = _timed(backend, run, inputs, 1)
        repeats[kernel.id] = max(1, min(1000, int(ROUND_SECONDS / max(once, 1e-7))))
    for _ in range(ROUNDS):
        for kernel, run in runs:
            seconds[kernel_key(kernel)].append(_timed(backend, run, inputs, repeats[kernel.id]))
    medians = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    _remember(settings.cache_folder() / FILE, key(backend, problem), medians)
    return medians


def _timed(backend: Backend, run: Callable[[Sequence[Any]], Any], inputs: Sequence[Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        outputs = run(inputs)
    backend.get(outputs[0])  # waits for a device that runs behind
    return (time.perf_counter() - start) / repeats


def _stored(path: Path) -> dict[str, dict[str, float]]:
    with _lock:
        if path not in _loaded:
            _loaded[path] = _read(path)
        return _loaded[path]


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        table = json.loads(path.read_text())
        return {str(k): {str(n): float(t) for n, t in v.items()} for k, v in table.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        warnings.warn(f"the tuned choices in {path} cannot be read ({error}); they are measured anew", stacklevel=2)
        return {}


def _remember(path: Path, name: str, medians: dict[str, float]) -> None:
    global _revision
    with _lock:
        _revision += 1
        table = {**_read(path), name: medians}  # what another process wrote meanwhile stays
        _loaded[path] = table
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(table, indent=1))
        os.replace(temporary, path)
