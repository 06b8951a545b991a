"""``quatrefoil bench``: a problem, a suite or a model on backends and peers, verified and then timed side by side."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from quatrefoil.bench.against import SLOWER, UNKNOWN, Change, Thresholds
from quatrefoil.bench.nodes import LimitedNode
from quatrefoil.bench.records import Record, threads_said
from quatrefoil.bench.suites import Suite
from quatrefoil.cli.arguments import Seed, backend_names, listed
from quatrefoil.cli.bench_tables import (
    changes_table,
    records_table,
    say_remarks,
    side_by_side,
    standings_tables,
    titled_by_threads,
)
from quatrefoil.cli.explain import is_model
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout
from quatrefoil.cli.progress import steps
from quatrefoil.cli.run import Trace, check_trace_name, profile_table, write_trace
from quatrefoil.errors import QuatrefoilError

ALL = "all"
STDOUT = Path("-")

Target = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM|SUITE|OPERATOR|MODEL",
        help="A problem's text form in quotes; a suite (audio, conv, int8, mobilenetv2, peers, pool, quick, recurrent, "
        "resnet50, tiny, vgg16, volumes, or a TOML file), an operator such as lstm, several with commas between them, or "
        "all, which is every suite without goals; or an ONNX file.",
    ),
]
Backends = Annotated[
    str, typer.Option("--backends", "-b", help="Backends with commas between them, or all that run here.")
]
Peers = Annotated[
    str | None,
    typer.Option(
        "--peers", "-p", help="Peers with commas between them, or all that are installed (a suite with goals has all)."
    ),
]
Threads = Annotated[
    str,
    typer.Option(
        "--threads", "-t", help="Threads for our kernels and for peers; several numbers with commas between them."
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="Only tasks of these number formats, with commas between them; a problem is measured in each."
    ),
]
Rounds = Annotated[int | None, typer.Option("--rounds", min=3, help="Interleaved rounds: 9, for goals 5.")]
Match = Annotated[str, typer.Option("--match", help="Only tasks of the suite whose name has this regular expression.")]
Quick = Annotated[bool, typer.Option("--quick", help="Only the few tasks that stand for their suite or family.")]
Tune = Annotated[bool, typer.Option("--tune", help="Measure every kernel first and take the fastest.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Leave the comparison with the oracle out (and say so).")]
Inputs = Annotated[list[str] | None, typer.Option("--input", "-i", help="A model's inputs, as for run.")]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", help="Spread tasks over the workers of this Dask scheduler (tcp://…), or local ones."),
]
Keep = Annotated[
    Path | None,
    typer.Option("--keep", help="--scheduler: keep what is done in this file, and go on from it; else in a new one."),
]
Cache = Annotated[str, typer.Option("--cache", help="hot, or cold: caches are flushed before each call.")]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against",
        help="An earlier report (.json), or another checkout with its compiled parts: tells for each task whether it is "
        "faster or slower now, and exits with 1 where something is slower.",
    ),
]
Relative = Annotated[float, typer.Option("--relative", min=0, help="--against: the least share that matters.")]
Absolute = Annotated[float, typer.Option("--absolute", min=0, help="--against: the least microseconds that matter.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", help="Also write everything to this file as data; - is standard output, without the tables."
    ),
]
Html = Annotated[
    Path | None, typer.Option("--html", help="Also write a report to this file, a page that loads nothing.")
]
Markdown = Annotated[
    Path | None, typer.Option("--markdown", help="Also write a suite with goals to this file, as Markdown tables.")
]


def thread_counts(text: str) -> list[int]:
    """``1,2`` as numbers, without repetitions. Raises QuatrefoilError for anything else."""
    words = listed(text)
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise QuatrefoilError(f"--threads is {text!r}; write whole numbers from 1, with commas between several")
    return list(dict.fromkeys(map(int, words)))


@dataclass(frozen=True)
class Files:
    """Where a run's results go besides the terminal's tables."""

    json: Path | None
    html: Path | None
    markdown: Path | None

    @property
    def printed(self) -> bool:
        """Whether standard output is to hold the JSON document and nothing else."""
        return self.json == STDOUT

    def named(self, worker: str) -> Files:
        """The same for one of several machines, whose label each name ends in."""
        json, html, markdown = (
            path if path is None or path == STDOUT else path.with_stem(f"{path.stem}-{worker}")
            for path in (self.json, self.html, self.markdown)
        )
        return Files(json, html, markdown)

    def write(self, title: str, records: list[Record], data: dict[str, Any]) -> None:
        """Writes the files that are wanted, and says so. Raises QuatrefoilError where one cannot be written."""
        from quatrefoil.bench import goals
        from quatrefoil.bench.page import write_text
        from quatrefoil.bench.records import write_json
        from quatrefoil.bench.report import write_html

        written = []
        if self.json is not None and not self.printed:
            write_json(self.json, data)
            written.append(self.json)
        if self.html is not None:
            write_html(self.html, title, records, data)
            written.append(self.html)
        if self.markdown is not None:
            write_text(self.markdown, goals.markdown([data]) + "\n")
            written.append(self.markdown)
        for path in written:
            stderr().print(f"report written to {path}")


@dataclass(frozen=True)
class Measured:
    """What a run found out.

    conditions  what a report says beside its records
    changes     against an earlier report or another checkout, where one was given
    profiles    of a model: what its nodes took, by the backend that they ran on
    """

    title: str
    records: list[Record]
    conditions: dict[str, Any]
    changes: list[Change] | None = None
    profiles: dict[str, list[LimitedNode]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """All of it as plain data."""
        from quatrefoil.bench.machine import describe
        from quatrefoil.bench.records import document

        data = document(self.records, describe(), self.conditions)
        if self.changes is not None:
            data["against"] = [change.as_dict() for change in self.changes]
        if self.profiles:
            data["nodes"] = {name: [asdict(node) for node in nodes] for name, nodes in self.profiles.items()}
        return data


def command(
    target: Target,
    backends: Backends = "cpu",
    peers: Peers = None,
    threads: Threads = "1",
    dtype: Dtype = "",
    rounds: Rounds = None,
    match: Match = "",
    quick: Quick = False,
    tune: Tune = False,
    no_verify: NoVerify = False,
    seed: Seed = 0,
    input: Inputs = None,
    cache: Cache = "hot",
    against: Against = None,
    relative: Relative = 0.03,
    absolute: Absolute = 0.2,
    scheduler: Scheduler = None,
    keep: Keep = None,
    json: Json = None,
    html: Html = None,
    markdown: Markdown = None,
    trace: Trace = None,
) -> None:
    """Benchmark, one thread by default. Exits with 1 when a result of ours is wrong, or with --against slower."""
    if cache not in ("hot", "cold"):
        raise QuatrefoilError(f"--cache is {cache!r}; write hot or cold")
    files, counts, on = Files(json, html, markdown), thread_counts(threads), backend_names(backends)
    if len(counts) > 1:
        _refuse({"--against": against, "--scheduler": scheduler, "--trace": trace}, "goes with one number of threads")
    if is_model(target):
        only_tasks = {"--against": against, "--markdown": markdown, "--scheduler": scheduler, "--dtype": dtype or None}
        _refuse(only_tasks, "is for suites and problems, not for a model's file")
        if trace is not None:
            check_trace_name(trace)
        found = _measure_model(target, on, _peers(peers, False), counts, rounds, seed, input or [])
        if trace is not None:
            write_trace(trace, found.profiles, target)
    else:
        _refuse({"--input": input}, "is for models; a problem's inputs are made up from --seed")
        _refuse({"--trace": trace}, "is for models: it shows a run node by node")
        suite = _suite(target, match, quick, listed(dtype))
        if not suite.families:
            _refuse({"--markdown": markdown}, "is for suites with goals, such as peers; --html is for all")
        if against is not None or scheduler is not None:
            _refuse({"--markdown": markdown}, "goes without --against and --scheduler")
        others = _peers(peers, bool(suite.families) and against is None)
        if scheduler is not None:
            if against is not None or tune or no_verify or cache == "cold":
                raise QuatrefoilError("--scheduler goes without --against, --tune, --no-verify and --cache cold")
            _spread(suite, on, others, scheduler, keep, counts[0], rounds, seed, files)
            return

        options: dict[str, Any] = {"cold": cache == "cold", "tune": tune, "verify": not no_verify, "seed": seed}
        contenders = [*on, *others]
        if against is None:
            found = _measure(suite, target, contenders, counts, rounds, not files.printed, **options)
        else:
            thresholds = Thresholds(relative, absolute * 1e-6)
            found = _compared(suite, target, contenders, counts, rounds, against, thresholds, files.printed, **options)
    _tell(found, files)
    changes = found.changes or []
    if changes and all(change.verdict == UNKNOWN for change in changes):
        raise QuatrefoilError(f"--against {against}: nothing could be compared ({changes[0].why})")
    slower = any(change.verdict == SLOWER for change in changes)
    if slower or any(record.ours and record.wrong for record in found.records):
        raise typer.Exit(FAILED)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raises QuatrefoilError where one of the options was given."""
    for name, value in options.items():
        if value is not None:
            raise QuatrefoilError(f"{name} {why}")


def _tell(found: Measured, files: Files) -> None:
    """Into files, and to the terminal."""
    data = found.document()
    files.write(found.title, found.records, data)
    if files.printed:
        say_json(data)
        return
    if found.changes is not None:
        stdout().print(changes_table(found.title, found.changes))
    elif "suite" in data:
        for table in standings_tables(data):
            stdout().print(table)
        return
    else:
        for title, records in titled_by_threads(found.title, found.records):
            stdout().print(records_table(title, records))
        for name, nodes in found.profiles.items():
            stdout().print(profile_table(f"{found.title} on {name}, node by node", nodes))
    say_remarks(found.records)


def _compared(
    suite: Suite,
    source: str,
    names: list[str],
    counts: list[int],
    rounds: int | None,
    against: Path,
    thresholds: Thresholds,
    quiet: bool,
    **options: Any,
) -> Measured:
    """As ``_measure``, against an earlier report or beside another checkout."""
    from quatrefoil.bench import against as comparison

    if not against.is_file():
        with comparison.checkout(against) as folder:
            return _paired(suite, names, counts, rounds, folder, thresholds, **options)
    earlier = comparison.read(against)
    found = _measure(suite, source, names, counts, rounds or comparison.ROUNDS, not quiet, **options)
    changes = comparison.with_report(found.records, found.conditions["ceilings"], earlier, thresholds)
    return replace(found, changes=changes)


def _paired(
    suite: Suite,
    names: list[str],
    counts: list[int],
    rounds: int | None,
    checkout: str,
    thresholds: Thresholds,
    *,
    cold: bool,
    verify: bool,
    **options: Any,
) -> Measured:
    """Beside another checkout, with each number of threads. ``options`` are ``Pairs.run``'s."""
    from quatrefoil.bench import against, goals, roofline
    from quatrefoil.bench.runner import Effort, method

    effort = Effort(rounds or against.PAIRED_ROUNDS, against.PAIRED_SECONDS, seconds_each=0.5)
    records: list[Record] = []
    changes: list[Change] = []
    conditions: list[dict[str, Any]] = []
    ceilings = None
    for threads in counts:
        with against.Pairs(names, threads, checkout, cold=cold) as pairs:
            ceilings = pairs.first.ceilings = ceilings or roofline.measure()
            with steps("bench", len(suite.entries)) as begin:
                measured, changed = pairs.run(suite.entries, effort, thresholds, verify=verify, begin=begin, **options)
            records += measured
            changes += changed
            said = [*method(pairs.first, effort), pairs.method()]
            conditions.append(goals.conditions(None, pairs.first) | {"method": said})
    return Measured(suite.title, records, goals.together(conditions) | suite.sections(), changes)


def _spread(
    suite: Suite,
    on: list[str],
    peers: list[str],
    scheduler: str,
    keep: Path | None,
    threads: int,
    rounds: int | None,
    seed: int,
    files: Files,
) -> None:
    """Measures on the workers of a cluster, and shows each machine's figures in a table of its own."""
    from quatrefoil.bench import spread
    from quatrefoil.bench.records import document
    from quatrefoil.bench.runner import Effort

    if keep is None:
        keep = Path("reports", f"bench-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl")
    try:
        with steps("bench", len(suite.entries)) as advance:
            done = spread.measure(
                suite.entries, on, peers, scheduler=scheduler, keep=keep, threads=threads, effort=Effort(rounds or 9),
                seed=seed, begin=advance,
            )  # fmt: skip
    except KeyboardInterrupt:
        kept = len(spread.read(keep)) if keep.exists() else 0
        stderr().print(f"{kept} tasks are kept in {keep}; to go on, give the same command with --keep {keep}")
        raise
    machines: dict[str, list[spread.Done]] = {}
    for one in done:
        machines.setdefault(one.worker, []).append(one)
    shown = []
    for worker, theirs in machines.items():
        records = [record for one in theirs for record in one.records]
        ceilings = next((one.ceilings for one in theirs if one.ceilings is not None), None)
        conditions = {"ceilings": ceilings, **suite.sections()}
        data = document(records, {**theirs[0].machine, "worker": worker}, conditions)
        shown.append(data)
        title = suite.title if len(machines) == 1 else f"{suite.title}, on worker {worker}"
        (files if len(machines) == 1 else files.named(worker)).write(title, records, data)
        if not files.printed:
            stdout().print(records_table(title, records))
            say_remarks(records)
    if files.printed:
        say_json(shown)
    if any(record.ours and record.wrong for one in done for record in one.records):
        raise typer.Exit(FAILED)


def _peers(text: str | None, goals: bool) -> list[str]:
    """The peers to take: those named, or all that are installed; unless told, all for goals and none for the rest."""
    from quatrefoil.bench import peers

    if text == ALL or (text is None and goals):
        return [name for name in peers.names() if peers.get(name).probe().ready]
    chosen = listed(text or "")
    for name in chosen:
        peers.get(name)
    return chosen


def _measure_model(
    target: str, on: list[str], peers: list[str], counts: list[int], rounds: int | None, seed: int, given: list[str]
) -> Measured:
    """The whole model's records, and node by node what each backend of ours took that ran it."""
    from quatrefoil.bench import goals, nodes, roofline, whole_model
    from quatrefoil.bench.runner import Effort, Field, threads_set
    from quatrefoil.cli.inputs import gather
    from quatrefoil.models import load

    model = load(target)
    feeds, effort = gather(model.inputs, given, seed), Effort(rounds or 9)
    records: list[Record] = []
    conditions: list[dict[str, Any]] = []
    profiles: dict[str, list[LimitedNode]] = {}
    ceilings = None
    with steps("bench", 2 * len(counts)) as advance:
        for threads in counts:
            said = f", {threads_said(threads)}" if len(counts) > 1 else ""
            advance(f"{Path(target).name}{said}")
            with Field([*peers, *on], threads) as field:
                ceilings = field.ceilings = ceilings or roofline.measure()
                theirs = whole_model.compare(field, target, feeds, effort)
                conditions.append(goals.conditions(None, field) | {"method": whole_model.method(field, effort)})
            records += theirs
            advance(f"node by node{said}")
            with threads_set(threads):
                for name in [record.contender for record in theirs if record.ours and not record.refused]:
                    profiles[f"{name}{said}"] = nodes.profile(model, feeds, name, threads, ceilings)
    return Measured(Path(target).name, records, goals.together(conditions), profiles=profiles)


def _suite(target: str, match: str, quick: bool, dtypes: list[str]) -> Suite:
    """What a problem's text, an operator's or suites' names ask for. Raises QuatrefoilError where nothing of it is left."""
    from quatrefoil.bench import suites, tasks

    if " " in target.strip():
        text = tasks.read(target).text
        own = suites.dtypes(text)
        texts = [text if dtype in own else suites.retyped(text, dtype) for dtype in dtypes] or [text]
        return suites.Suite("bench", tuple(suites.Entry(each, each) for each in texts))
    suite = suites.find(target)
    try:
        expression = re.compile(match)
    except re.error as error:
        raise QuatrefoilError(f"--match {match!r} is no regular expression: {error}") from None
    left = [entry for entry in suite.entries if expression.search(entry.name) and (entry.quick or not quick)]
    kept = [entry for entry in left if not dtypes or suites.dtypes(entry.text) & set(dtypes)]
    if not kept:
        there = sorted({dtype for entry in left for dtype in suites.dtypes(entry.text)})
        formats = f"; without --dtype there are some of {', '.join(there)}" if left else ""
        raise QuatrefoilError(f"no task of the suite is left by --match, --quick and --dtype{formats}")
    return suite.only(kept)


def _measure(
    suite: Suite,
    source: str,
    names: list[str],
    counts: list[int],
    rounds: int | None,
    show: bool,
    *,
    cold: bool,
    verify: bool,
    **options: Any,
) -> Measured:
    """A suite with each number of threads, one after the other. ``options`` are ``Field.run``'s."""
    from quatrefoil.bench import goals, roofline
    from quatrefoil.bench.runner import Effort, Field, method
    from quatrefoil.bench.verify import judge_of

    aims = bool(suite.families)
    effort = Effort(rounds or 5, seconds_each=0.5) if aims else Effort(rounds or 9)
    judging = judge_of if verify else None
    records: list[Record] = []
    conditions: list[dict[str, Any]] = []
    ceilings = None
    for threads in counts:
        title = suite.title if len(counts) == 1 else f"{suite.title}, {threads_said(threads)}"
        with Field(names, threads, cold=cold) as field:
            ceilings = field.ceilings = ceilings or roofline.measure()
            with _watched(title, len(suite.entries), aims and show) as (begin, tell):
                records += field.run(suite.entries, effort, judging=judging, begin=begin, progress=tell, **options)
            conditions.append(goals.conditions(source if aims else None, field) | {"method": method(field, effort)})
    return Measured(suite.title, records, goals.together(conditions) | suite.sections())


@contextmanager
def _watched(title: str, count: int, wanted: bool) -> Iterator[tuple[Callable[[str], None], Callable[[Record], None]]]:
    """Gives what to call as each task begins and with each record. ``wanted``: all contenders side by side are printed
    at the end, and on a terminal grow before."""
    records: list[Record] = []
    if not wanted or not sys.stdout.isatty():
        with steps("bench", count) as advance:
            yield advance, records.append
    else:
        from rich.live import Live

        begun: list[str] = []
        with Live(console=stdout(), refresh_per_second=4, transient=True) as live:

            def draw() -> None:
                said = f"{title}, {len(begun)} of {count}: {begun[-1]}"
                live.update(side_by_side(said, records, max(live.console.height - 6, 1)))

            def begin(name: str) -> None:
                begun.append(name)
                draw()

            def show(record: Record) -> None:
                records.append(record)
                draw()

            yield begin, show
    if wanted:
        stdout().print(side_by_side(title, records))
