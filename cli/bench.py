"""``quatrefoil bench``: a problem, a suite or a model on backends and peers, verified and then timed side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quatrefoil.bench.records import Record
from quatrefoil.cli.arguments import AsJson, Seed, Threads, backend_names, listed
from quatrefoil.cli.explain import is_model
from quatrefoil.cli.output import FAILED, PlainTable, microseconds, say_json, stderr, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.errors import QuatrefoilError

Target = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM|SUITE|MODEL",
        help="A problem's text form in quotes, a suite (conv, pool, recurrent, quick, or a TOML file) or an ONNX file.",
    ),
]
Backends = Annotated[
    str, typer.Option("--backends", "-b", help="Backends with commas between them, or all that run here.")
]
Peers = Annotated[str, typer.Option("--peers", "-p", help="Peers with commas between them: ort.")]
Rounds = Annotated[int, typer.Option("--rounds", min=3, help="Interleaved rounds.")]
Tune = Annotated[bool, typer.Option("--tune", help="Measure every kernel first and take the fastest.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Leave the comparison with the oracle out (and say so).")]
Inputs = Annotated[list[str] | None, typer.Option("--input", "-i", help="A model's inputs, as for run.")]
Report = Annotated[Path | None, typer.Option("--report", help="Also write a report to this .html or .json file.")]


def command(
    target: Target,
    backends: Backends = "cpu",
    peers: Peers = "",
    threads: Threads = 1,
    rounds: Rounds = 9,
    tune: Tune = False,
    no_verify: NoVerify = False,
    seed: Seed = 0,
    input: Inputs = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Benchmark, one thread by default. Exits with 1 when a result of ours is wrong."""
    from quatrefoil.bench import peers as known_peers
    from quatrefoil.bench.machine import describe
    from quatrefoil.bench.records import document, write_json
    from quatrefoil.bench.report import write_html

    on = backend_names(backends)
    against = listed(peers)
    for name in against:
        known_peers.get(name)
    title, records = _measure(target, on, against, threads, rounds, tune, not no_verify, seed, input or [])
    if report is not None:
        if report.suffix == ".json":
            write_json(report, records, describe())
        else:
            write_html(report, title, records, describe())
        stderr().print(f"report written to {report}")
    if as_json:
        say_json(document(records, describe()))
    else:
        stdout().print(records_table(title, records))
        _remarks(records)
    if any(record.ours and record.wrong for record in records):
        raise typer.Exit(FAILED)


def _measure(
    target: str,
    on: list[str],
    peers: list[str],
    threads: int,
    rounds: int,
    tune: bool,
    verify: bool,
    seed: int,
    given: list[str],
) -> tuple[str, list[Record]]:
    if is_model(target):
        from quatrefoil.bench.whole_model import run_model
        from quatrefoil.cli.inputs import gather
        from quatrefoil.models import load

        feeds = gather(load(target).inputs, given, seed)
        with steps("bench", len(on) + len(peers) + 1) as advance:
            return target, run_model(target, feeds, on, peers, threads=threads, rounds=rounds, begin=advance)
    if given:
        raise QuatrefoilError("--input is for models; a problem's inputs are made up from --seed")
    from quatrefoil import ops
    from quatrefoil.bench import run, suites

    if " " in target.strip():
        problem = ops.parse(target)
        suite = suites.Suite("bench", (suites.Entry(problem.text, problem),))
    else:
        suite = suites.load(target)
    records: list[Record] = []
    with steps("bench", len(suite.entries)) as advance:
        for entry in suite.entries:
            advance(entry.name)
            records += run([entry], on, peers, threads=threads, rounds=rounds, tune=tune, verify=verify, seed=seed)
    return suite.title, records


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
        cells.append("" if record.error is None else f"{record.error:.1e}")
        rows.row(*cells)
        last = record.name
    return rows


def _remarks(records: list[Record]) -> None:
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
