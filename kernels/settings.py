"""Settings of the process that kernels read: the number of threads, the cache folder, a forced kernel."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from quatrefoil.errors import QuatrefoilError

FORCE_KERNEL_VARIABLE = "QUATREFOIL_KERNEL"
THREADS_VARIABLE = "QUATREFOIL_NUM_THREADS"
CACHE_VARIABLE = "QUATREFOIL_CACHE"

SPARSE_VARIABLE = "QUATREFOIL_SPARSE"

AUTO, NEVER, ALWAYS = "auto", "never", "always"
"""When models run constant weights by their stored values: where that is faster, nowhere, wherever there is a zero."""

_threads: int | None = None


def num_threads() -> int:
    """How many threads a CPU kernel may use: the last ``set_num_threads``, else QUATREFOIL_NUM_THREADS, else the
    processors this process may run on."""
    global _threads
    if _threads is None:
        text = os.environ.get(THREADS_VARIABLE)
        if text is None:
            _threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        else:
            if not text.isdigit() or int(text) < 1:
                raise QuatrefoilError(f"{THREADS_VARIABLE}={text!r}; write a whole number from 1")
            _threads = int(text)
    return _threads


def set_num_threads(count: int) -> None:
    """Set how many threads a CPU kernel may use, from 1."""
    global _threads
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise QuatrefoilError(f"the number of threads is {count!r}; give a whole number from 1")
    _threads = count


def forced_kernel() -> str | None:
    """The kernel id in QUATREFOIL_KERNEL, for debugging: dispatch then takes this kernel or fails."""
    return os.environ.get(FORCE_KERNEL_VARIABLE) or None


def sparse_weights() -> str:
    """AUTO, NEVER or ALWAYS, from QUATREFOIL_SPARSE; AUTO where that is not set."""
    text = os.environ.get(SPARSE_VARIABLE, AUTO)
    if text not in (AUTO, NEVER, ALWAYS):
        raise QuatrefoilError(f"{SPARSE_VARIABLE}={text!r}; write {AUTO}, {NEVER} or {ALWAYS}")
    return text


def cache_folder() -> Path:
    """Where tuned choices and compiled device code are kept: QUATREFOIL_CACHE, else the user's cache folder."""
    return _folder(os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


@lru_cache(maxsize=16)
def _folder(given: str | None, caches: str | None, home: str | None) -> Path:
    """Every call asks for the folder, and putting paths together takes longer than the rest of dispatch. ``home`` is what
    Path.home() depends on."""
    if given:
        return Path(given)
    return (Path(caches) if caches else Path.home() / ".cache") / "quatrefoil"
