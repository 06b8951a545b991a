"""hls4ml's C simulation: the generated C++ compiled with g++ and called from a process of its own (library_call.py).

The same arithmetic (ap_fixed) that the synthesized design computes. Building and running are limited in time, and
what goes wrong in generated code stays outside this process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from quatrefoil.fpga.hls4ml_export.layers import ExportError

FLAGS: Final = ("-O1", "-w", "-fPIC", "-shared", "-std=c++11", "-fno-gnu-unique")
"""Of ``compile_library``: build_lib.sh's but for -O1, C++11 and the warnings."""

CALLER: Final = Path(__file__).with_name("library_call.py")


def compile_library(project: Path, name: str, library: Path, limit_s: float) -> None:
    """Compile the C simulation as the project's build_lib.sh does, in half the time: one unit, with FLAGS."""
    script = (project / "build_lib.sh").read_text(encoding="utf-8")
    include = [path for path in re.findall(r"-I([^\s\"]+)", script) if not path.startswith("$")]
    unit = project / "simulation.cpp"
    unit.write_text(f'#include "firmware/{name}.cpp"\n#include "{name}_bridge.cpp"\n', encoding="utf-8")
    weights = f'-DWEIGHTS_DIR="{project}/firmware/weights"'
    flags = [*FLAGS, "-I.", *(f"-I{path}" for path in include)]
    _run(["g++", *flags, weights, unit.name, "-o", str(library)], project, "compiling the C simulation", limit_s)


def run(
    library: Path,
    function: str,
    inputs: Sequence[np.ndarray],
    outputs: Mapping[str, int],
    traced: Mapping[str, int],
    limit_s: float,
) -> dict[str, np.ndarray]:
    """Call a compiled simulation's function on every row of the inputs, each (count, elements), all of one type.

    outputs: elements by name, in the top function's order. traced: layers whose values are wanted too. Gives
    (count, elements) by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, taken = Path(folder, "samples.npz"), Path(folder, "results.npz")
        np.savez(given, *inputs)
        wanted = json.dumps({"outputs": dict(outputs), "traced": dict(traced)})
        command = [sys.executable, str(CALLER), str(library), function, str(given), str(taken), wanted]
        _run(command, library.parent, "running the C simulation", limit_s)
        with np.load(taken) as results:
            return {name: results[name] for name in results.files}


def _run(command: Sequence[str], folder: Path, what: str, limit_s: float) -> None:
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
        output, _ = process.communicate(timeout=max(limit_s, 0.1))
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
