"""What the stepped simulator's parts do from cycle to cycle, as a value change dump (IEEE 1364) for a waveform viewer.

The changes are the reference's, which polls everything in every cycle, and not the fast timing's: it takes its time, so
this is for small problems. pyvcd writes them (pip install 'quatrefoil[wave]').
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from quatrefoil.asic_sim.backend import simulate
from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import SimulationReport, watched
from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Problem

MOST_CYCLES = 2_000_000
"""Cycles beyond which a problem is refused."""
PORT = ("weights", "activations", "outputs")
BITS = ("loading", "streaming", "vector", *(f"port_{name}" for name in PORT))
"""Signals of the file besides ``fold``: what a state says of each part, 1 where it works."""


@dataclass(frozen=True, slots=True)
class State:
    """What the parts of the chip do from ``cycle`` on, until the next state's.

    loading   a resting tile is laid in
    fold      the one whose operands enter the array, counted from 0 over the whole problem; None between folds
    vector    the vector unit works
    port      what moves to or from DRAM, of ``PORT``; several where there are channels
    """

    cycle: int
    loading: bool
    fold: int | None
    vector: bool
    port: frozenset[str] = frozenset()


def states(report: SimulationReport) -> Iterator[State]:
    """Those of a problem, whose parts run one after the other; in the last one, at its end, every unit rests. Raises
    QuatrefoilError where it takes more than ``MOST_CYCLES``."""
    if report.cycles > MOST_CYCLES:
        raise QuatrefoilError(
            f"asic: {report.problem} takes {report.cycles:,} cycles; waves are for at most {MOST_CYCLES:,}, as each is "
            "stepped"
        )
    if report.design.cores > 1:
        raise QuatrefoilError(f"asic: waves are of one core; {report.design.name} has {report.design.cores}")
    start = folds = 0
    for told in watched(report):
        for cycle, loading, fold, vector, port in told[:-1]:
            moving = frozenset(name for place, name in enumerate(PORT) if port >> place & 1)
            yield State(start + cycle, loading, None if fold < 0 else folds + fold, vector, moving)
        start += told[-1][0]
        folds += 1 + max(fold for _, _, fold, _, _ in told)
    yield State(start, False, None, False)


def vcd(problem: Problem, design: str | os.PathLike[str] | Hardware | None, path: str | os.PathLike[str]) -> None:
    """Writes the waves of a problem on a design (a name, a path or a ``Hardware``; None: the one in use). A nanosecond
    of the file is a cycle.

    Raises QuatrefoilError for what the simulator refuses or cannot step in time, where pyvcd is missing, and where the
    file cannot be written.
    """
    write(simulate(problem, design), path)


def write(report: SimulationReport, path: str | os.PathLike[str]) -> None:
    """The same of a report."""
    if util.find_spec("vcd") is None:
        raise QuatrefoilError("waves need pyvcd: pip install 'quatrefoil[wave]'")
    from vcd import VCDWriter

    found = list(states(report))
    numbers = max(1, max((state.fold or 0 for state in found), default=0).bit_length())
    comment = f"SIMULATED by quatrefoil: {report.problem} on {report.design}. A nanosecond is a cycle. fold is x between folds."
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with (
            open(path, "w", encoding="utf-8") as file,
            VCDWriter(file, timescale="1 ns", date="", comment=comment) as writer,
        ):
            bits = {name: writer.register_var("chip", name, "wire", size=1, init=0) for name in BITS}
            fold = writer.register_var("chip", "fold", "wire", size=numbers)
            for state in found:
                moving = (name in state.port for name in PORT)
                values = (state.loading, state.fold is not None, state.vector, *moving)
                for bit, value in zip(bits.values(), values, strict=True):
                    writer.change(bit, state.cycle, int(value))
                writer.change(fold, state.cycle, "x" if state.fold is None else state.fold)
            writer.close(report.cycles)
    except OSError as error:
        raise QuatrefoilError(f"{path} cannot be written: {error}") from None
