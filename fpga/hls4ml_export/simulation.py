"""hls4ml's C simulation: the generated C++ compiled with g++ and called from a process of its own.

The same arithmetic (ap_fixed) that the synthesized design computes. Building and running are limited in time, and
what goes wrong in generated code stays outside this process.

    python -m quatrefoil.fpga.hls4ml_export.simulation LIBRARY FUNCTION SAMPLES.npy RESULTS.npy SIZE ...
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quatrefoil.fpga.hls4ml_export.layers import ExportError


def simulate(
    project: Path, name: str, library: str, samples: np.ndarray, outputs: Mapping[str, int], limit_s: float
) -> dict[str, np.ndarray]:
    """Build the project's library and run it on every row of ``samples``.

    samples: (count, inputs) float32 in the design's order. outputs: elements by name, in the top function's order.
    Gives (count, elements) float32 by name. Raises ExportError with the tool's errors when it fails, or
    when building and running together take longer than ``limit_s`` seconds.
    """
    deadline = time.monotonic() + limit_s
    _run(["bash", "build_lib.sh"], project, "compiling the C simulation", deadline, limit_s)
    with tempfile.TemporaryDirectory() as folder:
        given, taken = Path(folder, "samples.npy"), Path(folder, "results.npy")
        np.save(given, samples)
        files = [str(project / library), f"{name}_float", str(given), str(taken)]
        command = [sys.executable, "-m", __name__, *files, *map(str, outputs.values())]
        _run(command, project, "running the C simulation", deadline, limit_s)
        results = np.load(taken)
    ends = np.cumsum(list(outputs.values()))
    return dict(zip(outputs, np.split(results, ends[:-1], axis=1)))


def _run(command: Sequence[str], folder: Path, what: str, deadline: float, limit_s: float) -> None:
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that a compiler's own children end with it
    )
    try:
        output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise ExportError(
            f"{what} took longer than the limit of {limit_s:g} s; raise limit_s or take fewer samples"
        ) from None
    if process.returncode:
        lines = output.strip().splitlines()
        telling = [line for line in lines if "error" in line.lower() or "Assertion" in line] or lines
        shown = "\n".join(telling[-12:])
        raise ExportError(f"{what} failed in {folder} (exit status {process.returncode}):\n{shown}")


def main(arguments: Sequence[str]) -> None:
    library, function, given, taken, *sizes = arguments
    top = getattr(ctypes.CDLL(library), function)
    top.restype = None
    samples = np.ascontiguousarray(np.load(given), np.float32)
    results = [np.zeros((len(samples), int(size)), np.float32) for size in sizes]
    pointer = ctypes.POINTER(ctypes.c_float)
    for index, sample in enumerate(samples):
        top(*(row.ctypes.data_as(pointer) for row in (sample, *(result[index] for result in results))))
    np.save(taken, np.hstack(results))


if __name__ == "__main__":
    main(sys.argv[1:])
