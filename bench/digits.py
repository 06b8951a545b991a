"""The demo's work: the gallery's models on real digits, on every backend, and one of them as an HLS project.

For each layer and backend: the kernel that ran, its measured time or its simulated cycles, and how near the result is
to the float64 oracle. Then the accuracy on digits that took no part in training. The exported project's C simulation is
held to the network in fixed point, to the last bit, and compared with the float model.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quatrefoil import backends
from quatrefoil.bench.layers import Layer, layers
from quatrefoil.models import Model
from quatrefoil.models.gallery import path
from quatrefoil.registry import Availability

if TYPE_CHECKING:
    from quatrefoil.fpga.hls4ml_export import ExportReport

MODELS = {
    "digits_cnn": ("LeNet-style CNN", (1, 8, 8)),
    "digits_lstm": ("LSTM over the rows", (8, 8)),
}
"""Gallery models with what they are and the shape of one input."""

HLS_MODEL = "digits_cnn"
HLS_DIGITS = 64
"""Digits for the C simulation of the exported project."""

HLS_AGREEMENT = 0.98
"""The share of them on which the project, in 16-bit fixed point, has to see the same digit as the float model."""


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


def on_backend(model: Model, images: np.ndarray, digits: np.ndarray, backend: str) -> BackendRun:
    """Layer by layer on the first image, then all images as one batch."""
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


def export_hls(findings: Findings, folder: Path, images: np.ndarray) -> None:
    """The convolutional network as an HLS project; without hls4ml or a compiler the findings say what is missing."""
    if importlib.util.find_spec("hls4ml") is None:
        findings.without_hls = "hls4ml is not installed; to add it: pip install 'quatrefoil[hls]'"
        return
    from quatrefoil.fpga.hls4ml_export import export

    samples = images.reshape(-1, *MODELS[HLS_MODEL][1])
    findings.hls = export(path(HLS_MODEL), folder, check=samples, estimate=True)


def agreement(layer: Layer) -> str:
    """How near a layer is to the oracle, in words."""
    if layer.error is None:
        return "on the host"
    if layer.out_of_place:
        return f"WRONG in {layer.out_of_place} places"
    return f"{layer.error:.1e}" if layer.error else "equal"


def notes(findings: Findings) -> list[str]:
    """What the figures mean, each said once."""
    said = [f"{run.backend}: {run.note}" for runs in findings.runs.values() for run in runs if run.note]
    return list(dict.fromkeys(said))
