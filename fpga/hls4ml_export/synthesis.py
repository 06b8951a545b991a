"""Runs the vendor's tool on an exported project, and reads its report back.

Vitis HLS (vitis-run, or vitis_hls before 2024.2) and Vivado HLS run the project's build_prj.tcl for C synthesis alone; their
``*_csynth.xml`` is read by ``fpga.vendor_reports``. Intel's i++ runs the project's Makefile, Catapult its build_prj.tcl;
where their reports lie is told, but they are not read. What the tool prints goes to synthesis.log.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quatrefoil.fpga.estimate import Estimate
from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.fpga.vendor_reports import read_report

LOG: Final = "synthesis.log"

STEPS: Final = {"reset": 1, "csim": 0, "synth": 1, "cosim": 0, "validation": 0, "export": 0, "vsynth": 0, "fifo_opt": 0}
"""Of build_prj.tcl."""

OPTIONS: Final = " ".join(f"{step}={on}" for step, on in STEPS.items())

TOOLS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "Vitis": {
        "vitis-run": ("--mode", "hls", "--tcl", "build_prj.tcl"),
        "vitis_hls": ("-f", "build_prj.tcl"),
    },
    "Vivado": {"vivado_hls": ("-f", "build_prj.tcl", OPTIONS)},
    "Quartus": {"i++": ()},
    "Catapult": {
        "catapult": ("-product", "ultra", "-shell", "-f", "build_prj.tcl", "-eval", f"set ::argv {{{OPTIONS}}}")
    },
}
"""By backend, programs in the order in which they are looked for, and their arguments."""

CSYNTH: Final = "{name}_prj/solution1/syn/report/{name}_csynth.xml"
REPORTS: Final = {"Quartus": "{name}-fpga.prj/reports", "Catapult": "{name}_prj"}
"""Where reports lie that are not read."""


@dataclass(frozen=True, slots=True)
class Synthesis:
    """tool: the program that ran. reported: of the top function; None where the report is not read. reports: the file or
    folder of them. log: what the tool printed."""

    tool: str
    seconds: float
    log: Path
    reports: Path
    reported: Estimate | None


def find_tool(backend: str) -> str:
    """The program for a backend. Raises ExportError that names what was looked for."""
    programs = TOOLS.get(backend)
    if programs is None:
        raise ExportError(f"synthesis with {backend} is not run from here; known are {', '.join(TOOLS)}")
    found = next((program for program in programs if shutil.which(program)), None)
    if found is None:
        raise ExportError(
            f"synthesis for {backend} takes {' or '.join(programs)} on the PATH, and none is there; the project's scripts run "
            "wherever it is installed"
        )
    return found


def check_part(backend: str, tool: str, part: str) -> None:
    """Raises ExportError for a part that the tool would not know, though the estimate does."""
    if backend in ("Vitis", "Vivado") and not (part.startswith("xc") and "-" in part):
        raise ExportError(
            f"the part is {part!r}; {tool} takes an order number with package and speed, as xc7z020clg400-1 is"
        )


def synthesize(
    folder: Path, name: str, backend: str, tool: str, limit_s: float, show: Callable[[str], None] | None = None
) -> Synthesis:
    """Run C synthesis in an exported project's folder. limit_s: seconds that it may take. show: gets each line printed.

    Raises ExportError, in a sentence, when the tool fails, takes too long, or leaves no report that can be read.
    """
    command = [tool, *TOOLS[backend][tool]]
    if backend == "Vitis":
        lines = "".join(f"    {step} {on}\n" for step, on in STEPS.items())
        (folder / "build_opt.tcl").write_text(f"array set opt {{\n{lines}}}\n", encoding="utf-8")
    elif backend == "Quartus":
        command = ["make", f"{name}-fpga"]
    reports = folder / REPORTS.get(backend, CSYNTH).format(name=name)
    if reports.is_file():
        reports.unlink()  # of an earlier run
    start = time.perf_counter()
    _run(command, folder, limit_s, show or _nothing)
    seconds = time.perf_counter() - start
    if not reports.exists():
        raise ExportError(
            f"{tool} ended without an error, but left no report at {reports}; {folder / LOG} has what it said"
        )
    reported = None if backend in REPORTS else read_report(reports)
    return Synthesis(tool, seconds, folder / LOG, reports, reported)


def _nothing(line: str) -> None:
    return None


def _run(command: list[str], folder: Path, limit_s: float, show: Callable[[str], None]) -> None:
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,  # so that the tool's own children end with it
    )  # fmt: skip
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit_s, stop)
    timer.start()
    said: list[str] = []
    try:
        assert process.stdout is not None
        with open(folder / LOG, "w", encoding="utf-8") as log, process.stdout:
            for line in process.stdout:
                log.write(line)
                said.append(line.rstrip())
                show(said[-1])
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if late.is_set():
        raise ExportError(
            f"{command[0]} took longer than the limit of {limit_s:g} s; {folder / LOG} has what it said so far"
        )
    if status:
        telling = [line for line in said if "error" in line.lower()] or said
        raise ExportError("\n".join([f"{command[0]} failed in {folder} (exit status {status}):", *telling[-12:]]))
