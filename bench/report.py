"""The HTML report of a benchmark: who is faster and by how much, how near to the machine's limits, and every figure.

It is one file that loads nothing. Charts are plotly's (pip install 'quatrefoil[report]'); without it bars take their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrefoil.bench import charts
from quatrefoil.bench.page import Cell, Page
from quatrefoil.bench.records import Record
from quatrefoil.bench.roofline import Ceilings
from quatrefoil.bench.suites import load

METHOD = (
    "Every result was compared before it was timed. Contenders ran in turn, in interleaved rounds, on the same arrays; "
    "a time is the median over the rounds, its spread the distance of the quartiles."
)
MOST_BARS = 24
"""Tasks up to which each has bars; more are in the map and in the table."""


def write_html(path: Path, title: str, records: Sequence[Record], data: Mapping[str, Any]) -> None:
    """data: what ``records.document`` made, or just the machine's description. Measured times and simulated cycles
    stand in tables and charts of their own."""
    machine = data.get("machine", data)
    page = Page(title, ", ".join(f"{name} {value}" for name, value in machine.items()))
    measured = [record for record in records if record.measured is not None]
    groups = _groups(records, data)
    page.answer(answer(measured))
    for sentence in data.get("method") or (METHOD,):
        page.paragraph(sentence, quiet=True)
    if data.get("against"):
        _against(page, data["against"])
    if measured:
        _measured(page, measured, groups, data)
    simulated = [record for record in records if record.simulated is not None]
    if simulated:
        page.heading("Simulated")
        page.paragraph("Cycles of a chip that does not exist, counted by the simulator; no clock measured them.")
        if charts.available():
            page.chart("Simulated time alone", charts.times(simulated, simulated=True), charts.library())
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
    _conditions(page, records, data)
    page.heading("Problems")
    problems = dict.fromkeys((record.name, record.problem) for record in records)
    page.table(("name", "problem"), list(problems))
    page.write(path)


def answer(measured: Sequence[Record]) -> list[tuple[str, str]]:
    """Who is faster and by how much, in sentences that begin with the figure; accurate results alone."""
    counted = [record for record in measured if record.accurate is not False]
    ours = {record.name: record for record in counted if record.ours and record.contender == "cpu"}
    ours = ours or {record.name: record for record in counted if record.ours}
    said = []
    contenders = list(dict.fromkeys(record.contender for record in counted if not record.ours))
    best: dict[str, float] = {}
    for record in counted:
        if not record.ours and record.measured:
            best[record.name] = min(best.get(record.name, math.inf), record.measured.median)
    compared = [name for name in best if name in ours]
    if compared:
        wins = sum(_seconds(ours[name]) < best[name] for name in compared)
        mean = _mean([best[name] / _seconds(ours[name]) for name in compared])
        whose = ours[compared[0]].contender
        said.append(
            (f"{wins} of {len(compared)}", f"tasks are fastest on {whose} of ours; against the best peer of each task it is "
             f"{mean:.2f} times as fast (geometric mean)")
        )  # fmt: skip
    for contender in contenders:
        ratios = [
            _seconds(record) / _seconds(ours[record.name])
            for record in counted
            if record.contender == contender and record.name in ours
        ]
        if ratios:
            slower = sum(ratio < 1 for ratio in ratios)
            said.append(
                (f"{_mean(ratios):.2f} times", f"as long as ours takes {contender} (geometric mean of {len(ratios)} tasks; "
                 f"it is faster on {slower})")
            )  # fmt: skip
    if not said:
        names = ", ".join(dict.fromkeys(record.contender for record in measured))
        said.append(
            (f"{len(measured)} figures", f"were measured on {names or 'nothing'}; there is no peer to compare with")
        )
    return said


def _groups(records: Sequence[Record], data: Mapping[str, Any]) -> dict[str, str]:
    """Each task's family: its suite's, where that has any, else its operator."""
    families = {entry.name: entry.family for entry in load(data["suite"]).entries} if data.get("suite") else {}
    return {record.name: families.get(record.name) or record.op for record in records}


def _measured(page: Page, measured: Sequence[Record], groups: Mapping[str, str], data: Mapping[str, Any]) -> None:
    names = list(dict.fromkeys(record.name for record in measured))
    several = len({record.contender for record in measured}) > 1
    if charts.available():
        script = charts.library()
        means = _means(measured, groups)
        if means:
            page.heading("Families")
            page.chart("Geometric means of accurate results", charts.families(means), script)
        ceilings = data.get("ceilings")
        roof = charts.roofline(measured, Ceilings.of(ceilings), measured[0].threads) if ceilings else ""
        if roof:
            page.heading("Under the roofline")
            caption = (
                "Direct evaluation in float32 under this machine's ceilings; minimal filters and bytes may pass them"
            )
            page.chart(caption, roof, script)
        if len(names) <= MOST_BARS:
            page.heading("Task by task")
            page.chart("Medians with their intervals; further left is better", charts.times(measured), script)
        if several:
            page.heading("Every task by every contender")
            page.chart("Time over the best accurate one's; ~ is not accurate", charts.ratio_map(measured), script)
            page.heading("Error against time")
            page.chart("Lower left is better; exact results stand at 1e-9", charts.error_and_time(measured), script)
    page.heading("Measured")
    numbers = ("us", "from", "to", "spread", "least us", "Gmac/s", "of limit", "error")
    page.table(
        ("problem", "on", "kernel", *numbers, "compared with", "limit by", "why this kernel", "layout", "cache"),
        [_measured_row(record) for record in measured],
        numbers=numbers,
        sortable="measured",
    )
    if not charts.available():
        page.paragraph("Charts need plotly: pip install 'quatrefoil[report]'.", quiet=True)
        for name in names:
            here = [record for record in measured if record.name == name]
            if len(here) > 1:
                page.bars(name, [(r.contender, _seconds(r) * 1e6, r.ours) for r in here], "us, measured")


def _means(measured: Sequence[Record], groups: Mapping[str, str]) -> list[tuple[str, dict[str, float]]]:
    """For each family, each contender's geometric mean of its time over ours."""
    ours = {record.name: _seconds(record) for record in measured if record.ours and record.accurate is not False}
    ratios: dict[str, dict[str, list[float]]] = {}
    for record in measured:
        if not record.ours and record.accurate is not False and record.name in ours:
            family = ratios.setdefault(groups[record.name], {})
            family.setdefault(record.contender, []).append(_seconds(record) / ours[record.name])
    return [(family, {name: _mean(values) for name, values in found.items()}) for family, found in ratios.items()]


def _against(page: Page, changes: Sequence[Mapping[str, Any]]) -> None:
    page.heading("Against before")
    counts = {verdict: sum(change["verdict"] == verdict for change in changes) for verdict in ("slower", "faster")}
    page.answer([(f"{counts['slower']} slower, {counts['faster']} faster", f"of {len(changes)} tasks")])
    numbers = ("before us", "now us", "now / before", "from", "to", "would see")
    rows: list[tuple[Cell, ...]] = []
    for change in changes:
        low, high = change["interval"] or (None, None)
        rows.append(
            (
                change["name"],
                change["verdict"],
                None if change["before"] is None else change["before"] * 1e6,
                None if change["now"] is None else change["now"] * 1e6,
                *("" if value is None else f"{value:.3f}" for value in (change["ratio"], low, high)),
                "" if change["visible"] is None else f"{change['visible']:.1%}",
                change["why"],
            )
        )
    page.table(("task", "verdict", *numbers, "why not"), rows, numbers=numbers, sortable="against")


def _conditions(page: Page, records: Sequence[Record], data: Mapping[str, Any]) -> None:
    """What it was measured on and with."""
    page.heading("Conditions")
    rows = [(name, str(value)) for name, value in data.get("machine", data).items()]
    rows += [(peer["name"], f"{peer['title']} ({peer['version']})") for peer in data.get("peers", ())]
    ceilings = data.get("ceilings")
    if ceilings:
        found = Ceilings.of(ceilings)
        reading = ", ".join(f"{level.name} {level.gbyte_s:.0f} GB/s" for level in found.levels)
        rows.append(
            ("one core", f"{found.gflop_s:.0f} Gflop/s in float32 ({found.instruction_set}); reading {reading}")
        )
    probe = data.get("probe")
    if probe:
        rows.append(("rounds on a slow core", f"{probe['slow']} of {probe['asked']}"))
    chosen = {record.contender: record.chosen for record in records if record.chosen is not None}
    for contender, kernel in chosen.items():
        flags = ", ".join(f"{name}={value}" for name, value in kernel.flags.items())
        rows.append((contender, f"{kernel.instruction_set}{f'; {flags}' if flags else ''}"))
    page.table(("what", "which"), rows)


def _measured_row(record: Record) -> tuple[Cell, ...]:
    timing = record.measured
    assert timing is not None
    low, high = timing.confidence or (None, None)
    return (
        record.name,
        record.contender,
        record.kernel,
        timing.median * 1e6,
        None if low is None else low * 1e6,
        None if high is None else high * 1e6,
        f"{timing.spread:.1%}",
        timing.least * 1e6,
        record.gmacs,
        "" if record.share is None else f"{record.share:.0%}",
        "" if record.error is None else f"{'~' if record.accurate is False else ''}{record.error:.1e}",
        record.checked or "not compared",
        record.limit_by,
        record.chosen.why if record.chosen is not None else "",
        record.chosen.layout if record.chosen is not None else "",
        record.cache,
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
        "not compared" if record.error is None else f"{record.error:.1e} ({record.checked})",
    )


def _seconds(record: Record) -> float:
    assert record.measured is not None
    return record.measured.median


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
