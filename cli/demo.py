"""``quatrefoil demo``: real trained models on real digits, on every backend that this machine can run.

``bench.digits`` does the work; here are the options, the tables on the terminal and the report's name.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from quatrefoil import backends
from quatrefoil.bench.digits import HLS_DIGITS, MODELS, Findings, agreement, export_hls, notes, on_backend
from quatrefoil.bench.digits_report import write_report
from quatrefoil.bench.machine import describe
from quatrefoil.bench.runner import threads_set
from quatrefoil.cli.arguments import AsJson
from quatrefoil.cli.output import FAILED, microseconds, say_json, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.models import load
from quatrefoil.models.gallery import digits_split, path

SHOWN = 12
"""Digits in the report's pictures."""

HLS_WEIGHT = 10.0
"""How long the export takes beside one model on one backend, most of it g++ on the generated C++."""

HlsFolder = Annotated[Path, typer.Option("--hls", help="Where the HLS project goes.")]
ReportFile = Annotated[Path, typer.Option("--report", help="Where the report goes.")]
NoHls = Annotated[bool, typer.Option("--no-hls", help="Leave the HLS export out.")]


def command(
    report: ReportFile = Path("reports/demo.html"),
    hls: HlsFolder = Path("reports/hls"),
    no_hls: NoHls = False,
    as_json: AsJson = False,
) -> None:
    """Run the gallery's models on every backend of this machine, export one to HLS, and write a report."""
    began = time.monotonic()
    findings = Findings(describe(), {name: backends.get(name).probe() for name in backends.names()})
    ready = [name for name, there in findings.available.items() if there.ready]
    data = digits_split()
    weights = [1.0] * len(MODELS) * len(ready) + [HLS_WEIGHT] * (not no_hls)
    with threads_set(1), steps("demo", weights) as advance:
        for name, (title, shape) in MODELS.items():
            model = load(path(name))
            images = data.held_out_images.reshape(-1, *shape)
            findings.runs[name] = []
            for backend in ready:
                advance(f"{title} on {backend}")
                findings.runs[name].append(on_backend(model, images, data.held_out_digits, backend))
        if no_hls:
            findings.without_hls = "left out with --no-hls"
        else:
            advance("HLS export of the CNN and its C simulation, the longest step")
            export_hls(findings, hls, data.held_out_images[:HLS_DIGITS])
    write_report(report, findings, data.held_out_images[:SHOWN])
    if as_json:
        say_json({**asdict(findings), "report": report, "failed": findings.failed})
    else:
        _show(findings)
        stdout().print(f"\n{time.monotonic() - began:.0f} s. The report is in [bold]{report}[/]")
    if findings.failed:
        raise typer.Exit(FAILED)


def _show(findings: Findings) -> None:
    console = stdout()
    console.print(f"[bold]{findings.machine['processor']}[/], {findings.machine['cores']} cores", highlight=False)
    for name, there in findings.available.items():
        remedy = f"; to add it: {there.remedy}" if there.remedy and not there.ready else ""
        mark = "[green]runs[/]  " if there.ready else "[yellow]absent[/]"
        console.print(f"  {name:<5} {mark} ", end="")
        console.print(there.detail + remedy, markup=False, soft_wrap=True)
    for name, runs in findings.runs.items():
        title, _ = MODELS[name]
        rows = table(
            f"\n{title} ({name}.onnx), one image, layer by layer",
            "layer", "on", "kernel", "measured us", "simulated cycles", "simulated us", "from float64",
            right=("measured us", "simulated cycles", "simulated us", "from float64"),
        )  # fmt: skip
        for number, layer in enumerate(runs[0].layers):
            for run in runs:
                one = run.layers[number]
                if layer.backend == "host" and run is not runs[0]:
                    continue
                rows.row(
                    f"{one.name} ({one.op})" if run is runs[0] else "",
                    one.backend,
                    one.kernel,
                    microseconds(one.seconds),
                    "" if one.cycles is None else f"{one.cycles:,}",
                    "" if one.microseconds is None else f"{one.microseconds:,.1f}",
                    agreement(one),
                )
        for run in runs:
            simulated = [layer for layer in run.layers if layer.cycles is not None]
            rows.row(
                "all layers" if run is runs[0] else "",
                run.backend,
                "without the host's" if run.simulated else "",
                "" if run.simulated else microseconds(sum(layer.seconds or 0.0 for layer in run.layers)),
                f"{sum(layer.cycles or 0 for layer in simulated):,}" if run.simulated else "",
                f"{sum(layer.microseconds or 0.0 for layer in simulated):,.1f}" if run.simulated else "",
                "",
                style="bold",
            )
        console.print(rows)
        rows = table("\nOn digits that took no part in training", "on", "right", "of", "accuracy", "device",
                     right=("right", "of", "accuracy"))  # fmt: skip
        for run in runs:
            rows.row(run.backend, str(run.correct), str(run.digits), f"{run.correct / run.digits:.1%}", run.device)
        console.print(rows)
    for note in notes(findings):
        console.print(note, markup=False, style="dim", soft_wrap=True)
    console.print("\nFPGA HLS export of the CNN", style="italic")
    console.print(str(findings.hls or f"none: {findings.without_hls}"), markup=False, soft_wrap=True)
