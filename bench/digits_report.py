"""The demo's findings as an HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from quatrefoil.bench.digits import HLS_MODEL, MODELS, BackendRun, Findings, agreement, notes
from quatrefoil.bench.layers import Layer
from quatrefoil.bench.page import Page


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
        f"{HLS_MODEL}.onnx as a {hls.backend} project for {hls.part}: {hls.precision}, {hls.io}, "
        f"in {hls.directory}. Its C simulation gives the fixed-point network's {hls.integers:,} integers "
        f"inside {len(hls.checked)} layers on {hls.samples} digits to the last bit."
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
    if hls.estimate is None:
        return
    part = hls.estimate.target.part
    page.table(
        ("layer", "DSP", part.family.logic, "FF", "BRAM", "latency", "interval"),
        [
            (one.name, *map(str, (one.dsp, one.lut, one.ff, one.bram, one.latency, one.interval)))
            for one in (*hls.estimate.layers, hls.estimate.total)
        ],
        caption=f"Estimated before synthesis for {part.name}, in cycles of {hls.estimate.target.clock_ns:g} ns, with the range "
        "to expect",
        numbers=("DSP", part.family.logic, "FF", "BRAM", "latency", "interval"),
    )
