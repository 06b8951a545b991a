"""The HTML report of a benchmark: who is faster and by how much, how near to the machine's limits, and every figure.

It is one file that loads nothing. Charts are plotly's (pip install 'quatrefoil[report]'); without it bars take their place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrefoil.bench import charts
from quatrefoil.bench.charts import Bar, Mean
from quatrefoil.bench.nodes import LimitedNode
from quatrefoil.bench.page import Cell, Page
from quatrefoil.bench.records import Record, threads_said
from quatrefoil.bench.roofline import Ceilings
from quatrefoil.bench.suites import load
from quatrefoil.bench.timing import half_width

METHOD = (
    "Every result was compared before it was timed. Contenders ran in turn, in interleaved rounds, on the same arrays; "
    "a time is the median over the rounds, its spread the distance of the quartiles."
)
MOST_BARS = 24
"""Tasks up to which each has bars; more are in the map and in the table."""
MOST_NODES = 60
"""Nodes of a model that are drawn; of more, those that take longest."""
CONFIDENCE = 0.95
EVERY = "all tasks"
TIED = "\N{NO-BREAK SPACE}"
INSTALL = "Charts need plotly: pip install 'quatrefoil[report]'."

Groups = Mapping[str, Sequence[str]]
"""Names of tasks by their suite, family or operator; a task may be in several suites."""


def write_html(path: Path, title: str, records: Sequence[Record], data: Mapping[str, Any]) -> None:
    """data: what ``records.document`` made, or just the machine's description. Measured times and simulated cycles
    stand in tables and charts of their own."""
    machine = data.get("machine", data)
    page = Page(title, ", ".join(f"{name} {value}" for name, value in machine.items()))
    measured = [record for record in records if record.measured is not None]
    counts = list(dict.fromkeys(record.threads for record in measured))
    for threads in counts:
        if len(counts) > 1:
            page.heading(threads_said(threads).capitalize())
        page.answer(answer([record for record in measured if record.threads == threads]))
    if not measured:
        page.answer(answer(()))
    if len(counts) > 1:
        page.heading("Method")
    for sentence in data.get("method") or (METHOD,):
        page.paragraph(sentence, quiet=True)
    if data.get("against"):
        _against(page, data["against"])
    if measured:
        _measured(page, measured, _groups(records, data), data)
    for name, rows in data.get("nodes", {}).items():
        _nodes(page, name, [LimitedNode(**row) for row in rows])
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
    """Who is faster and by how much, in sentences that begin with the figure; accurate results of one number of threads
    alone."""
    counted = [record for record in measured if record.accurate is not False]
    ours = _ours(counted)
    said = []
    contenders = list(dict.fromkeys(record.contender for record in counted if not record.ours))
    best: dict[str, float] = {}
    for record in counted:
        if not record.ours:
            best[record.name] = min(best.get(record.name, math.inf), _seconds(record))
    compared = [name for name in best if name in ours]
    if len(compared) == 1 and len(contenders) > 1:
        [name] = compared
        ratio = best[name] / _seconds(ours[name])
        said.append((f"{ratio:.2f} times", f"as fast as the best peer is {ours[name].contender} of ours"))
    elif len(compared) > 1:
        wins = sum(_seconds(ours[name]) < best[name] for name in compared)
        mean, interval = geometric([best[name] / _seconds(ours[name]) for name in compared])
        whose = ours[compared[0]].contender
        said.append(
            (f"{wins} of {len(compared)}", f"tasks are fastest on {whose} of ours; against the best peer of each task it is "
             f"{mean:.2f} times as fast (geometric mean{_from_to(interval)})")
        )  # fmt: skip
    for contender in contenders:
        ratios = [
            _seconds(record) / _seconds(ours[record.name])
            for record in counted
            if record.contender == contender and record.name in ours
        ]
        if ratios:
            slower = sum(ratio < 1 for ratio in ratios)
            mean, interval = geometric(ratios)
            over = f" (geometric mean of {len(ratios)} tasks{_from_to(interval)}; it is faster on {slower})"
            said.append((f"{mean:.2f} times", f"as long as ours takes {contender}{over if len(ratios) > 1 else ''}"))
    if not said:
        names = ", ".join(dict.fromkeys(record.contender for record in measured))
        said.append(
            (f"{len(measured)} figures", f"were measured on {names or 'nothing'}; there is no peer to compare with")
        )
    return said


def geometric(ratios: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Their geometric mean, and Student's 95 % interval of the mean logarithm: how far it would move with other tasks of
    the kind. None for fewer than three."""
    logarithms = [math.log(ratio) for ratio in ratios]
    mean, half = sum(logarithms) / len(logarithms), half_width(logarithms, CONFIDENCE)
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half)) if math.isfinite(half) else None


def _from_to(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f", {interval[0]:.2f} to {interval[1]:.2f}"


def _ours(measured: Sequence[Record]) -> dict[str, Record]:
    """The accurate record of ours by task that others are compared with: the CPU's, or without any another's."""
    counted = [record for record in measured if record.ours and record.accurate is not False]
    on_cpu = {record.name: record for record in counted if record.contender == "cpu"}
    return on_cpu or {record.name: record for record in counted}


def _groups(records: Sequence[Record], data: Mapping[str, Any]) -> Groups:
    """The suites that the report joins; else the families of its suite, where that has any; else the operators."""
    if data.get("suites"):
        suites: Groups = data["suites"]
        return suites
    families = {entry.name: entry.family for entry in load(data["suite"]).entries} if data.get("suite") else {}
    groups: dict[str, list[str]] = {}
    for name, op in dict.fromkeys((record.name, record.op) for record in records):
        groups.setdefault(families.get(name) or op, []).append(name)
    return groups


def _measured(page: Page, measured: Sequence[Record], groups: Groups, data: Mapping[str, Any]) -> None:
    counts = list(dict.fromkeys(record.threads for record in measured))
    for threads in counts:
        said = f", {threads_said(threads)}" if len(counts) > 1 else ""
        _charts(page, [record for record in measured if record.threads == threads], said, groups, data)
    if len(counts) > 1:
        _scaling(page, measured, counts)
    page.heading("Measured")
    numbers = ("us", "from", "to", "spread", "least us", "Gmac/s", "of limit", "error")
    several = len(counts) > 1
    page.table(
        ("problem", "on", *(["threads"] if several else []), "kernel", *numbers,
         "compared with", "limit by", "why this kernel", "layout", "cache"),
        [_measured_row(record, several) for record in measured],
        numbers=("threads", *numbers),
        sortable="measured",
    )  # fmt: skip
    if not charts.available():
        page.paragraph(INSTALL, quiet=True)
        for name in dict.fromkeys(record.name for record in measured):
            here = [record for record in measured if record.name == name]
            if len(here) > 1:
                bars = [
                    (f"{r.contender}, {r.threads}" if several else r.contender, _seconds(r) * 1e6, r.ours) for r in here
                ]
                page.bars(name, bars, "us, measured")


def _charts(page: Page, measured: Sequence[Record], said: str, groups: Groups, data: Mapping[str, Any]) -> None:
    """What is drawn of one number of threads, which is said in the headings where there are several."""
    means = _means(measured, groups)
    if any(mean.tasks > 1 for mean in means):
        page.heading(f"Families{said}")
        if charts.available():
            page.chart(
                "Geometric means of accurate results, with their 95 % intervals",
                charts.families(means),
                charts.library(),
            )
        _families_table(page, means, {record.name for record in _ours(measured).values()}, groups)
    if not charts.available():
        return
    script = charts.library()
    names = list(dict.fromkeys(record.name for record in measured))
    ceilings = data.get("ceilings")
    roof = charts.roofline(measured, Ceilings.of(ceilings), measured[0].threads) if ceilings else ""
    if roof:
        page.heading(f"Under the roofline{said}")
        caption = "Direct evaluation in float32 under this machine's ceilings; minimal filters and bytes may pass them"
        page.chart(caption, roof, script)
    if len(names) <= MOST_BARS:
        page.heading(f"Task by task{said}")
        page.chart("Medians with their intervals; further left is better", charts.times(measured), script)
    if len({record.contender for record in measured}) > 1:
        page.heading(f"Every task by every contender{said}")
        caption = "Time over the best accurate one's; ~ is not accurate"
        for suite, members in data.get("suites", {"": names}).items():
            here = [record for record in measured if record.name in set(members)]
            if here:
                page.chart(f"{suite}: {caption}" if suite else caption, charts.ratio_map(here), script)
        if len(names) > 1:
            page.heading(f"Error against time{said}")
            page.chart("Lower left is better; exact results stand at 1e-9", charts.error_and_time(measured), script)


def _means(measured: Sequence[Record], groups: Groups) -> list[Mean]:
    """Each group's, and where there are several, that of all tasks."""
    ours = _ours(measured)
    theirs: dict[str, dict[str, float]] = {}
    for record in measured:
        if not record.ours and record.accurate is not False and record.name in ours:
            ratio = _seconds(record) / _seconds(ours[record.name])
            theirs.setdefault(record.contender, {})[record.name] = ratio
    every = {EVERY: list(ours)} if len(groups) > 1 else {}
    found = []
    for family, names in {**groups, **every}.items():
        for contender, ratios in theirs.items():
            here = [ratios[name] for name in names if name in ratios]
            if here:
                found.append(Mean(family, contender, len(here), *geometric(here)))
    return found


def _families_table(page: Page, means: Sequence[Mean], ours: Collection[str], groups: Groups) -> None:
    """A row for each family, a column for each peer: the mean, its interval, and of how many tasks where not of all."""
    peers = tuple(dict.fromkeys(mean.contender for mean in means))
    by = {(mean.family, mean.contender): mean for mean in means}
    rows: list[tuple[Cell, ...]] = []
    for family in dict.fromkeys(mean.family for mean in means):
        tasks = len(ours) if family == EVERY else sum(name in ours for name in groups[family])
        cells = []
        for peer in peers:
            mean = by.get((family, peer))
            span = f" [{mean.interval[0]:.2f},{TIED}{mean.interval[1]:.2f}]" if mean and mean.interval else ""
            part = f" of{TIED}{mean.tasks}" if mean and mean.tasks < tasks else ""
            cells.append(f"{mean.ratio:.2f}{span}{part}" if mean else "")
        rows.append((family, tasks, *cells))
    page.table(("family", "tasks", *peers), rows, numbers=("tasks", *peers), caption="Time over ours, and its interval")


def _scaling(page: Page, measured: Sequence[Record], counts: Sequence[int]) -> None:
    """What more threads bring: each contender's times, and how many times as fast it is as with the fewest."""
    page.heading("More threads")
    fewest, more = min(counts), sorted(counts)[1:]
    times: dict[tuple[str, str], dict[int, float]] = {}
    for record in measured:
        times.setdefault((record.name, record.contender), {})[record.threads] = _seconds(record)
    rows: list[tuple[Cell, ...]] = []
    for (name, contender), found in times.items():
        here = [found[count] * 1e6 if count in found else None for count in (fewest, *more)]
        gains = [found[fewest] / found[n] if fewest in found and n in found else None for n in more]
        rows.append((name, contender, *here, *gains))
    numbers = (
        *(f"us, {threads_said(count)}" for count in (fewest, *more)),
        *(f"{threads_said(count)}: times as fast" for count in more),
    )
    page.table(("problem", "on", *numbers), rows, numbers=numbers, sortable="threads")


def _nodes(page: Page, name: str, nodes: Sequence[LimitedNode]) -> None:
    """A model's run node by node; measured and simulated time stand in charts and columns of their own."""
    page.heading(f"Node by node on {name}")
    labels = [f"{place} {node.name} ({node.op})" for place, node in enumerate(nodes, 1)]
    measured = [
        Bar(label, node.seconds * 1e6, None if node.limit_seconds is None else node.limit_seconds * 1e6, node.kernel)
        for label, node in zip(labels, nodes)
        if node.seconds is not None
    ]
    simulated = [
        Bar(label, node.microseconds, None, node.kernel)
        for label, node in zip(labels, nodes)
        if node.microseconds is not None
    ]
    for bars, is_simulated in ((measured, False), (simulated, True)):
        drawn = _longest(bars)
        which = "Simulated nodes" if is_simulated else "Measured nodes"
        caption = which if len(drawn) == len(bars) else f"{which}: the {len(drawn)} of {len(bars)} that take longest"
        if bars and charts.available():
            page.chart(caption, charts.nodes(drawn, is_simulated), charts.library())
        else:
            unit = "us, simulated" if is_simulated else "us, measured"
            page.bars(caption, [(bar.label, bar.microseconds, True) for bar in drawn], unit)
    clocked = ("simulated cycles", "simulated us") if simulated else ()
    numbers = ("us", *clocked, "share", "limit us", "of limit")
    rows = []
    for place, node in enumerate(nodes, 1):
        limit, reached = node.limit_seconds, node.share_of_limit
        rows.append(
            (
                str(place),
                node.name,
                node.op,
                f"{node.backend}: {node.kernel}",
                None if node.seconds is None else node.seconds * 1e6,
                *((node.cycles, node.microseconds) if simulated else ()),
                f"{node.share:.1%}",
                None if limit is None else limit * 1e6,
                "" if reached is None else f"{reached:.0%}",
                node.layout,
                node.why,
            )
        )
    page.table(
        ("no.", "node", "operator", "kernel", *numbers, "layout", "why this kernel"),
        rows,
        numbers=("no.", *numbers),
        simulated=clocked,
        sortable=f"nodes-{name}".replace(" ", "-"),
    )


def _longest(bars: Sequence[Bar]) -> list[Bar]:
    """The longest of many, in their order."""
    kept = sorted(bars, key=lambda bar: bar.microseconds, reverse=True)[:MOST_NODES]
    return [bar for bar in bars if bar in kept]


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


def _measured_row(record: Record, threads: bool) -> tuple[Cell, ...]:
    timing = record.measured
    assert timing is not None
    low, high = timing.confidence or (None, None)
    return (
        record.name,
        record.contender,
        *((record.threads,) if threads else ()),
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
