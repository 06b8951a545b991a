"""What a compressed model costs: bytes, weights that are not zero, time on the CPU, cycles and energy on a simulated chip.

Times are of the models side by side in one process: rounds in which each is run once, in turn, on the same row and one thread; a
model's ratio is the median over the rounds of its time over the first model's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from onnx import ModelProto

from quatrefoil import asic_sim
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.network import WEIGHTS, weights_of
from quatrefoil.models.compression.task import Rows
from quatrefoil.models.model import Model, load
from quatrefoil.models.simulation import cost, workload

ROUNDS: Final = 60
WARM: Final = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """size: of the file in bytes; weight_bits: of its constants. nonzeros: a share of the weights that are multiplied by.
    time_ratio: beside the first model's; microseconds: of a run. cycles, energy_pj: on the design, ``cannot`` where it cannot be
    simulated, and why. kernels: by node, in the order of a run."""

    size: int
    weight_bits: int
    nonzeros: float
    time_ratio: float
    microseconds: float
    cycles: int | None
    energy_pj: float | None
    kernels: tuple[tuple[str, str], ...]
    cannot: str = ""


def size_of(proto: ModelProto) -> int:
    return proto.ByteSize()


class Subject(NamedTuple):
    """A model; simulated: in place of it on the chip, as if its floats were of this format."""

    proto: ModelProto
    simulated: ModelProto
    as_format: str | None = None


class OnChip(NamedTuple):
    """What a design takes for a model; None, and in ``cannot`` why, where it cannot be simulated. cannot: also layers left out."""

    cycles: int | None = None
    energy_pj: float | None = None
    cannot: str = ""


def timed(models: Sequence[Model], row: Rows) -> np.ndarray:
    """Seconds (round, model) of runs on one row, the models in turn."""
    seconds = np.empty((ROUNDS, len(models)))
    for turn in range(-WARM, ROUNDS):
        for place, model in enumerate(models):
            start = time.perf_counter()
            model.run(row, backend="cpu")
            if turn >= 0:
                seconds[turn, place] = time.perf_counter() - start
    return seconds


def simulated(subject: Subject, row: Rows, design: str) -> OnChip:
    """What a model costs on a design."""
    try:
        with asic_sim.use_design(design) as chip:
            asked = workload(load(subject.simulated), row, chip.compresses)
            report = cost(asked, chip, "host", subject.as_format)
    except QuatrefoilError as error:
        return OnChip(cannot=str(error))
    left_out = "; ".join(f"{layer.name}: {layer.why}" for layer in report.layers if layer.why)
    return OnChip(report.cycles, report.energy_pj, left_out)


def measure(subjects: Sequence[Subject], row: Rows, design: str | None) -> list[Cost]:
    """The costs of models, beside the first of them. row: inputs of one row. design: None for no simulation."""
    models = [load(subject.proto) for subject in subjects]
    inputs = {name: np.ascontiguousarray(array) for name, array in row.items()}
    seconds = timed(models, inputs)
    ratios = np.median(seconds / seconds[:, :1], 0)
    found = []
    for place, (subject, model) in enumerate(zip(subjects, models)):
        proto = subject.proto
        chip = OnChip() if design is None else simulated(subject, inputs, design)
        weights = weights_of(proto)
        count = sum(array.size for array in weights.values())
        kernels = tuple(
            (item.node.name, item.kernel)
            for item in model.explain(inputs)
            if item.selection is not None or item.node.kind in WEIGHTS
        )
        found.append(
            Cost(
                size_of(proto), _bits(proto), sum(int(np.count_nonzero(array)) for array in weights.values()) / max(count, 1),
                float(ratios[place]), float(np.median(seconds[:, place]) * 1e6), chip.cycles, chip.energy_pj, kernels, chip.cannot,
            )
        )  # fmt: skip
    return found


def _bits(proto: ModelProto) -> int:
    """Of all constants."""
    return 8 * sum(len(item.raw_data) or item.ByteSize() for item in proto.graph.initializer)


__all__ = ["Cost", "OnChip", "Subject", "measure", "simulated", "size_of", "timed"]
