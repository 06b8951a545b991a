"""The terminal tables of ``quatrefoil bench``: contenders side by side, records, goals, changes, and remarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quatrefoil.bench.against import Change
from quatrefoil.bench.records import Record, threads_said
from quatrefoil.cli.output import PlainTable, microseconds, stderr, table

if TYPE_CHECKING:
    from quatrefoil.bench.goals import Standing


def side_by_side(title: str, records: list[Record], last: int | None = None) -> PlainTable:
    """A row for each task (of the last few), a column for each contender: microseconds, with ~ where the result is not
    accurate."""
    names = list(dict.fromkeys(record.contender for record in records))
    rows = table(title, "task", *names, right=tuple(names))
    tasks: dict[str, dict[str, Record]] = {}
    for record in records:
        tasks.setdefault(record.name, {})[record.contender] = record
    for name, found in list(tasks.items())[-last if last else None :]:
        times = {
            record.contender: record.measured.median
            for record in found.values()
            if record.measured is not None and record.accurate is not False
        }
        least = min(times, key=times.__getitem__, default="")
        cells = []
        for contender in names:
            one = found.get(contender)
            timed = one.measured if one is not None else None
            rough = one is not None and one.accurate is False
            cells.append("" if timed is None else f"{'~' if rough else ''}{microseconds(timed.median)}")
        rows.row(name, *cells, marks={1 + names.index(least): "green"} if least else None)
    return rows


def titled_by_threads(title: str, records: list[Record]) -> list[tuple[str, list[Record]]]:
    """The records of each number of threads, with a title that says it where there are several."""
    counts = list(dict.fromkeys(record.threads for record in records))
    if len(counts) < 2:
        return [(title, records)]
    return [(f"{title}, {threads_said(n)}", [record for record in records if record.threads == n]) for n in counts]


def standings_tables(data: dict[str, Any]) -> list[PlainTable]:
    """The families against their goals, for each number of threads."""
    from quatrefoil.bench import goals

    reports = goals.by_threads(data)
    titles = [f"Goals, {goals.title(report)}" if len(reports) > 1 else "Goals" for report in reports]
    return [_standings(title, goals.standings(report)) for title, report in zip(titles, reports)]


def _standings(title: str, found: Sequence[Standing]) -> PlainTable:
    columns = ("tasks", "against the best", "goal", "against torch, ORT, OpenVINO", "its goal")
    rows = table(title, "family", *columns, "verdict", right=columns)
    for one in found:
        family = one.family
        limit = family.most_microseconds
        rows.row(
            family.name,
            str(one.tasks),
            ("" if one.best is None else f"{one.best:.2f}") if limit is None else f"{one.longest or 0:.2f} us",
            f"{family.goal or 0:g}" if limit is None else f"{limit:g} us",
            "" if one.major is None else f"{one.major:.2f}",
            f"{family.goal_major or 0:g}",
            one.verdict,
            marks={6: "yellow" if one.misses else "green"},
        )
    return rows


def records_table(title: str, records: list[Record]) -> PlainTable:
    """A row for each problem and contender; measured time and simulated cycles never share a column."""
    simulated = any(record.simulated for record in records)
    rated = any(record.gmacs for record in records)
    columns = ["problem", "on", "kernel", "measured us", "spread", *(["Gmac/s"] if rated else [])]
    columns += ["simulated cycles", "simulated us"] if simulated else []
    columns += ["error"]
    rows = table(title, *columns, right=tuple(columns[3:]))
    last = ""
    for record in records:
        cells = ["" if record.name == last else record.name, record.contender, record.kernel]
        if record.measured is None:
            cells += ["—" if record.simulated is None else "", ""]
        else:
            cells += [microseconds(record.measured.median), f"{record.measured.spread:.0%}"]
        if rated:
            cells.append("" if record.gmacs is None else f"{record.gmacs:.1f}")
        if simulated:
            cost = record.simulated
            cells += ["", ""] if cost is None else [f"{cost.cycles:,}", f"{cost.microseconds:,.1f}"]
        rough = "~" if record.accurate is False else ""
        cells.append("" if record.error is None else f"{rough}{record.error:.1e}")
        rows.row(*cells)
        last = record.name
    return rows


def changes_table(title: str, changes: list[Change]) -> PlainTable:
    """A row for each case; a verdict is coloured where it matters."""
    columns = ("before us", "now us", "now / before", "interval", "would see")
    rows = table(title, "task", "on", *columns, "verdict", right=columns)
    colours = {"faster": "green", "slower": "red"}
    for change in changes:
        cells = [""] * len(columns)
        if change.ratio is not None and change.interval is not None:
            cells = [
                microseconds(change.before or 0.0),
                microseconds(change.now or 0.0),
                f"{change.ratio:.3f}",
                f"{change.interval[0]:.3f} to {change.interval[1]:.3f}",
                f"{change.visible:.1%}",
            ]
        colour = colours.get(change.verdict)
        said = f"{change.verdict}: {change.why}" if change.why else change.verdict
        rows.row(change.name, change.contender, *cells, said, marks={7: colour} if colour else None)
    return rows


def say_remarks(records: list[Record]) -> None:
    """Refusals, notes and unquiet measurements, each said once."""
    console = stderr()
    said = set()
    for record in records:
        for remark in (record.refused, record.note):
            line = f"{record.contender}: {remark}"
            if remark and line not in said:
                said.add(line)
                console.print(line, markup=False, soft_wrap=True)
    noisy = [record for record in records if record.measured and record.measured.spread > 0.1]
    if noisy:
        console.print(f"the machine was not quiet: {len(noisy)} figures spread by more than 10 % over the rounds")
