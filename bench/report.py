"""The HTML report of a benchmark: what was measured, what was simulated, what was refused and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quatrefoil.bench.page import Cell, Page
from quatrefoil.bench.records import Record

METHOD = (
    "Every result was compared before it was timed. Contenders ran in turn, in interleaved rounds, on the same arrays; "
    "a time is the median over the rounds, its spread the distance of the quartiles."
)


def write_html(path: Path, title: str, records: Sequence[Record], machine: Mapping[str, str]) -> None:
    """Measured times and simulated cycles stand in tables of their own."""
    page = Page(title, ", ".join(f"{name} {value}" for name, value in machine.items()))
    page.paragraph(METHOD, quiet=True)
    problems = list(dict.fromkeys((record.name, record.problem) for record in records))
    measured = [record for record in records if record.measured is not None]
    if measured:
        page.heading("Measured")
        numbers = ("us", "spread", "least us", "Gmac/s", "error")
        page.table(
            ("problem", "on", "kernel", *numbers),
            [_measured_row(record) for record in measured],
            numbers=numbers,
        )
        for name, problem in problems:
            here = [record for record in measured if record.problem == problem]
            if len(here) > 1:
                bars = [(r.contender, r.measured.median * 1e6, r.ours) for r in here if r.measured is not None]
                page.bars(name, bars, "us, measured")
    simulated = [record for record in records if record.simulated is not None]
    if simulated:
        page.heading("Simulated")
        page.paragraph("Cycles of a chip that does not exist, counted by the simulator; no clock measured them.")
        numbers = ("cycles", "us at its clock", "MHz", "DRAM bytes", "error")
        page.table(
            ("problem", "on", "kernel", "design", *numbers),
            [_simulated_row(record) for record in simulated],
            numbers=numbers,
            simulated=("cycles", "us at its clock"),
        )
    refused = [record for record in records if record.refused]
    if refused:
        page.heading("Refused")
        page.table(("problem", "on", "why"), [(r.name, r.contender, r.refused) for r in refused])
    notes = dict.fromkeys((record.contender, record.note) for record in records if record.note)
    if notes:
        page.heading("Notes")
        page.table(("on", "what its figures mean"), list(notes))
    page.heading("Problems")
    page.table(("name", "problem"), problems)
    page.write(path)


def _measured_row(record: Record) -> tuple[Cell, ...]:
    timing = record.measured
    assert timing is not None
    return (
        record.name,
        record.contender,
        record.kernel,
        timing.median * 1e6,
        f"{timing.spread:.1%}",
        timing.least * 1e6,
        record.gmacs,
        _error(record),
    )


def _simulated_row(record: Record) -> tuple[Cell, ...]:
    cost = record.simulated
    assert cost is not None
    return (
        record.name,
        record.contender,
        record.kernel,
        cost.design,
        cost.cycles,
        cost.microseconds,
        cost.clock_mhz,
        cost.dram_bytes,
        _error(record),
    )


def _error(record: Record) -> str:
    return "not compared" if record.error is None else f"{record.error:.1e} ({record.checked})"
