"""``quatrefoil demo``: real trained models on real digits, on every backend that this machine can run.

For each layer and backend: the kernel that ran, its measured time or its simulated cycles, and how near the result
is to the float64 oracle. Then the accuracy on digits that took no part in training, and the convolutional network as
an FPGA project in HLS C++, its C simulation compared with our result. All of it ends up in an HTML report.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from quatrefoil import backends, settings
from quatrefoil.bench.layers import Layer, layers
from quatrefoil.bench.machine import describe
from quatrefoil.bench.page import Page
from quatrefoil.cli.arguments import AsJson
from quatrefoil.cli.output import FAILED, microseconds, say_json, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.models import Model, load
from quatrefoil.models.gallery import digits_split, path
from quatrefoil.registry import Availability

if TYPE_CHECKING:
    from quatrefoil.fpga.hls4ml_export import ExportReport

MODELS = {
    "digits_cnn": ("LeNet-style CNN", (1, 8, 8)),
    "digits_lstm": ("LSTM over the rows", (8, 8)),
}
"""Gallery models with what they are and the shape of one input."""

SHOWN = 12
"""Digits in the report's pictures."""

HLS_MODEL = "digits_cnn"
HLS_DIGITS = 64
"""Digits for the C simulation of the exported project."""

HLS_WEIGHT = 10.0
"""How long the export takes beside one model on one backend, most of it g++ on the generated C++."""

HLS_AGREEMENT = 0.98
"""The share of them on which the project, in 16-bit fixed point, has to see the same digit as the float model."""

HlsFolder = Annotated[Path, typer.Option("--hls", help="Where the HLS project goes.")]
ReportFile = Annotated[Path, typer.Option("--report", help="Where the report goes.")]
NoHls = Annotated[bool, typer.Option("--no-hls", help="Leave the HLS export out.")]


@dataclass(frozen=True, slots=True)
class BackendRun:
    """One model on one backend."""

    backend: str
    device: str
    simulated: bool
    note: str
    layers: list[Layer]
    digits: int
    correct: int
    seen: list[int]
    """What it took each digit for."""
    seconds: float
    """Wall time of running all the digits as one batch; of no meaning for a simulated backend."""

    @property
    def wrong(self) -> int:
        return sum(layer.out_of_place > 0 for layer in self.layers)


@dataclass(slots=True)
class Findings:
    """Everything that the demo found out."""

    machine: dict[str, str]
    available: dict[str, Availability]
    runs: dict[str, list[BackendRun]] = field(default_factory=dict)
    hls: ExportReport | None = None
    without_hls: str = ""
    """Why there is no HLS export; empty when there is one."""

    @property
    def hls_agrees(self) -> bool:
        return self.hls is None or all((check.agreement or 0.0) >= HLS_AGREEMENT for check in self.hls.outputs)

    @property
    def failed(self) -> bool:
        return any(run.wrong for runs in self.runs.values() for run in runs) or not self.hls_agrees


def command(
    report: ReportFile = Path("reports/demo.html"),
    hls: HlsFolder = Path("reports/hls"),
    no_hls: NoHls = False,
    as_json: AsJson = False,
) -> None:
    """Run the gallery's models on every backend of this machine, export one to HLS, and write a report."""
    began = time.monotonic()
    settings.set_num_threads(1)
    findings = Findings(describe(), {name: backends.get(name).probe() for name in backends.names()})
    ready = [name for name, there in findings.available.items() if there.ready]
    data = digits_split()
    weights = [1.0] * len(MODELS) * len(ready) + [HLS_WEIGHT] * (not no_hls)
    with steps("demo", weights) as advance:
        for name, (title, shape) in MODELS.items():
            model = load(path(name))
            images = data.held_out_images.reshape(-1, *shape)
            findings.runs[name] = []
            for backend in ready:
                advance(f"{title} on {backend}")
                findings.runs[name].append(_on_backend(model, images, data.held_out_digits, backend))
        if no_hls:
            findings.without_hls = "left out with --no-hls"
        else:
            advance("HLS export of the CNN and its C simulation, the longest step")
            _export(findings, hls, data.held_out_images[:HLS_DIGITS])
    write_report(report, findings, data.held_out_images[:SHOWN])
    if as_json:
        say_json({**asdict(findings), "report": report, "failed": findings.failed})
    else:
        _show(findings)
        stdout().print(f"\n{time.monotonic() - began:.0f} s. The report is in [bold]{report}[/]")
    if findings.failed:
        raise typer.Exit(FAILED)


def _on_backend(model: Model, images: np.ndarray, digits: np.ndarray, backend: str) -> BackendRun:
    house = backends.get(backend)
    feed = model.inputs[0].name
    found = layers(model, {feed: images[:1]}, backend)
    start = time.perf_counter()
    [scores] = model.run({feed: images}, backend=backend).values()
    seconds = time.perf_counter() - start
    seen = np.asarray(scores).argmax(1)
    return BackendRun(
        backend,
        house.device(),
        house.simulated,
        house.timing_note,
        found,
        len(digits),
        int((seen == digits).sum()),
        seen.tolist(),
        seconds,
    )


def _export(findings: Findings, folder: Path, images: np.ndarray) -> None:
    """The convolutional network as an HLS project; without hls4ml or a compiler the findings say what is missing."""
    if importlib.util.find_spec("hls4ml") is None:
        findings.without_hls = "hls4ml is not installed; to add it: pip install 'quatrefoil[hls]'"
        return
    from quatrefoil.fpga.hls4ml_export import export

    samples = images.reshape(-1, *MODELS[HLS_MODEL][1])
    findings.hls = export(path(HLS_MODEL), folder, check=samples)


def agreement(layer: Layer) -> str:
    """How near a layer is to the oracle, in words."""
    if layer.error is None:
        return "on the host"
    if layer.out_of_place:
        return f"WRONG in {layer.out_of_place} places"
    return f"{layer.error:.1e}" if layer.error else "equal"


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


def notes(findings: Findings) -> list[str]:
    """What the figures mean, each said once."""
    said = [f"{run.backend}: {run.note}" for runs in findings.runs.values() for run in runs if run.note]
    return list(dict.fromkeys(said))


def write_report(target: Path, findings: Findings, images: np.ndarray) -> None:
    """The findings as an HTML page; ``images`` are the first of the held-out digits."""
    page = Page("quatrefoil demo", ", ".join(f"{name} {value}" for name, value in findings.machine.items()))
    page.paragraph(
        "Two small networks, trained on real handwritten digits, run on every backend of this machine. Each layer is "
        "compared with the float64 oracle on the inputs that it got: the error is the largest difference as a share "
        "of the largest value."
    )
    page.heading("Backends")
    page.table(
        ("backend", "", "found", "to add it"),
        [
            (name, "runs" if there.ready else "absent", there.detail, "" if there.ready else there.remedy)
            for name, there in findings.available.items()
        ],
    )
    for name, runs in findings.runs.items():
        _model_section(page, name, runs, images)
    _hls_section(page, findings)
    page.heading("What the figures mean")
    for note in notes(findings):
        page.paragraph(note)
    page.paragraph(
        "Measured times are wall time of one layer on one image on one thread, the least of a few runs. Simulated "
        "cycles are counted by the simulator; their microseconds follow from the design's clock, and no clock measured "
        "them."
    )
    page.write(target)


def _model_section(page: Page, name: str, runs: list[BackendRun], images: np.ndarray) -> None:
    page.heading(f"{MODELS[name][0]} ({name}.onnx)")
    alike = all(run.seen == runs[0].seen for run in runs)
    who = "every backend" if alike else runs[0].backend
    page.pictures(
        f"The first of the digits that took no part in training, and what {who} saw",
        list(images),
        [str(digit) for digit in runs[0].seen[: len(images)]],
    )
    page.table(
        ("on", "right", "of", "accuracy", "device"),
        [(r.backend, r.correct, r.digits, f"{r.correct / r.digits:.1%}", r.device) for r in runs],
        caption="Held-out digits",
        numbers=("right", "of", "accuracy"),
    )
    measured = [run for run in runs if not run.simulated]
    simulated = [run for run in runs if run.simulated]
    if measured:
        page.table(
            ("layer", "on", "kernel", "us", "from float64"),
            [
                (f"{one.name} ({one.op})" if number == 0 else "", one.backend, one.kernel,
                 None if one.seconds is None else one.seconds * 1e6, agreement(one))
                for layer in range(len(runs[0].layers))
                for number, one in enumerate(_once(run.layers[layer] for run in measured))
            ],
            caption=". ".join(("Measured, one image", *(f"{run.backend}: {run.note}" for run in measured if run.note))),
            numbers=("us", "from float64"),
        )  # fmt: skip
    for run in simulated:
        page.table(
            ("layer", "kernel", "cycles", "us at its clock", "from float64"),
            [
                (f"{one.name} ({one.op})", one.kernel, one.cycles, one.microseconds, agreement(one))
                for one in run.layers
            ],
            caption=f"Simulated, one image: {run.device}",
            numbers=("cycles", "us at its clock", "from float64"),
            simulated=("cycles", "us at its clock"),
        )


def _once(found: Iterable[Layer]) -> list[Layer]:
    """The same layer on several backends; one that runs on the host anyway is told once."""
    kept: list[Layer] = []
    for layer in found:
        if not (layer.backend == "host" and any(one.backend == "host" for one in kept)):
            kept.append(layer)
    return kept


def _hls_section(page: Page, findings: Findings) -> None:
    page.heading("FPGA HLS export")
    hls = findings.hls
    if hls is None:
        page.paragraph(f"There is none: {findings.without_hls}.")
        return
    page.paragraph(
        f"{HLS_MODEL}.onnx as a {hls.backend} project for {hls.part}: {hls.precision}, {hls.io}, reuse factor "
        f"{hls.reuse_factor}, in {hls.directory}. Its C simulation computes in the fixed point of the design."
    )
    page.table(
        ("output", "digits", "same digit seen", "largest difference", "largest value"),
        [
            (check.name, check.samples, f"{check.agreement or 0:.1%}", f"{check.max_error:.3g}", f"{check.scale:.3g}")
            for check in hls.outputs
        ],
        caption="The C simulation against the float model",
        numbers=("digits", "same digit seen", "largest difference", "largest value"),
    )
    page.table(
        ("layer", "node of the model", "C++ function"),
        [(layer.name, layer.node, layer.function) for layer in hls.layers],
        caption="Layers of the design",
    )
