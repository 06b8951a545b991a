"""Compression that pays: smaller models, trained again, and what each stage costs and keeps.

    made = qf.compress("model.onnx", "data.npz", prune=0.8, share=16, bits=8)
    print(made)
    made.save("small.onnx")

Recipes: pruning of weights, channels and N:M patterns, shared weights, low rank, distillation, 8-bit integers. All of it is in
NumPy and the operators of the house; what comes out is standard ONNX.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.budget import Budget, Condition, search
from quatrefoil.models.compression.measuring import Cost, measure
from quatrefoil.models.compression.network import Network
from quatrefoil.models.compression.recipe import Made, Recipe, Source, carry_out
from quatrefoil.models.compression.task import Given, Report, Task, task_of
from quatrefoil.models.compression.training import ADAM, Pace, one_thread
from quatrefoil.models.model import Model, load

DESIGN = "edge"
FLOAT = "float"


@dataclass(frozen=True)
class Stage:
    """A model on the way. figure: on the test rows; validation: on those that choices were made on. said: what happened to each
    layer or weight; curve: the mean loss of each epoch of its training."""

    name: str
    proto: ModelProto
    figure: float
    validation: float
    cost: Cost
    said: Mapping[str, str]
    curve: tuple[float, ...]


@dataclass(frozen=True)
class Compression:
    """What was made of a model, stage by stage, the original first.

    metric  of the stages' figures: accuracy, agreement or error
    design  of the simulated chip; None where nothing was simulated
    recipe  what was done; missed: conditions of the budget that were not met (on the validation rows)
    """

    stages: tuple[Stage, ...]
    metric: str
    design: str | None
    recipe: Recipe
    missed: tuple[Condition, ...] = ()

    @property
    def proto(self) -> ModelProto:
        return self.stages[-1].proto

    @cached_property
    def model(self) -> Model:
        return load(self.proto)

    def save(self, path: str | os.PathLike[str]) -> None:
        onnx.save(self.proto, os.fspath(path))

    @property
    def summary(self) -> str:
        """In a sentence or two."""
        first, last = self.stages[0], self.stages[-1]
        text = (
            f"{self.recipe.title}: {self.metric} {first.figure:.4f} -> {last.figure:.4f} on the test rows, "
            f"{first.cost.size} -> {last.cost.size} bytes ({first.cost.size / last.cost.size:.1f} times smaller)"
        )
        if self.missed:
            text += f"; the budget is not met: {', '.join(map(str, self.missed))}"
        return text

    def __str__(self) -> str:
        lines = [
            f"{stage.name}: {self.metric} {stage.figure:.4f}, {stage.cost.size} bytes, {stage.cost.nonzeros:.0%} of the weights "
            f"not zero, {stage.cost.time_ratio:.2f} of the time, {stage.cost.cycles} cycles"
            for stage in self.stages
        ]
        return "\n".join([*lines, self.summary])


def compress(
    model: Source,
    data: Given,
    *,
    prune: float | None = None,
    prune_channels: float | None = None,
    pattern: str | None = None,
    rank: float | None = None,
    share: int | None = None,
    bits: int | None = None,
    distill: bool = False,
    student: Source | None = None,
    scope: str | None = None,
    budget: str | None = None,
    epochs: int = 5,
    batch: int = 50,
    rate: float = 1e-3,
    optimizer: str = ADAM,
    seed: int = 0,
    validation: Given | None = None,
    test: Given | None = None,
    output: str | None = None,
    design: str | None = DESIGN,
    report: Report | None = None,
) -> Compression:
    """Make an ONNX model smaller, training it again after each stage, and measure what each stage costs and keeps.

    model: a path, bytes or a ModelProto, in floating point, its batch first (one of 1 becomes free). data: a dict or an .npz
    of inputs by name with ``labels`` (whole numbers) or ``targets``, a pair of the only input and these, or inputs alone, whose
    outputs are then to stay as they are. validation, test: likewise; left out, 15 % of the data each. Choices, of the best epoch
    and of a budget's recipe, are made on the validation rows, figures are of the test rows.

    prune: the share of weights that become zero. prune_channels: of channels and hidden units that go, shapes and all. pattern:
    "2:4", two of four weights in a row of what is summed are not zero. rank: factored layers, by a share of the squared singular
    values or a number. share: entries of a codebook for each weight, 2 to 256. bits: 8. distill: the original's outputs teach.
    student: a smaller model, which learns from the original. scope: how a share is divided: "sensitivity", "uniform", "global".
    budget: "accuracy>=0.97", "loss<=0.01" (what the figure loses), "error<=0.05", "size<=100KB", "time_ms<=0.5" (a row
    on the CPU, one thread), "cycles<=20000" and "energy_uj<=5" (a row on the design), or several with commas; what of the above is
    left out is searched for the smallest file that meets it.
    epochs, batch, rate, optimizer ("adam" or "sgd"), seed: of each training; with 0 epochs nothing is trained. output: what is
    judged where the model has several outputs. design: of the ASIC simulator, None for none. report: gets lines on the way.

    Raises QuatrefoilError, in a sentence, for data and shares that cannot be, a model without weights or quantized already, an
    operator without gradients, and a loss that is not finite.
    """
    recipe = Recipe(student, prune_channels, rank, prune, pattern, share, bits, distill, scope)
    if not recipe.given and budget is None:
        raise QuatrefoilError(
            "compress: nothing is to be done; give prune, prune_channels, pattern, rank, share, bits, distill, student or a budget"
        )
    pace = Pace(epochs, batch, rate, optimizer, seed=seed)
    network = Network(model)
    with one_thread():
        task = task_of(network.proto, data, validation, test, output, seed)
        missed: list[Condition] = []
        if budget is None:
            made = carry_out(recipe, network, task, pace, report)
        else:
            asked = Budget.parse(budget, task.metric)
            best, _ = search(asked, recipe, network, task, pace, report, design)
            recipe, made, missed = best.recipe, best.stages, best.missed
        stages = [Made(FLOAT, network, network.proto), *made]
        return Compression(tuple(judged(stages, task, design)), task.metric, design, recipe, tuple(missed))


def judged(stages: list[Made], task: Task, design: str | None) -> list[Stage]:
    """What stages reach and cost, measured side by side, on one thread where the caller has set that."""
    row = {name: np.ascontiguousarray(array[:1]) for name, array in task.test.inputs.items()}
    costs = measure([stage.subject for stage in stages], row, design)
    return [
        Stage(
            stage.name, stage.proto, task.evaluate(stage.proto, task.test), task.evaluate(stage.proto, task.validation), cost,
            stage.said, stage.curve,
        )
        for stage, cost in zip(stages, costs)
    ]  # fmt: skip


def as_dict(found: Compression) -> dict[str, Any]:
    """Everything but the models, plain."""
    return {
        "metric": found.metric,
        "design": found.design,
        "recipe": {name: value for name, value in found.recipe.given.items() if name != "student"},
        "missed": [str(each) for each in found.missed],
        "stages": [
            {
                "name": stage.name, found.metric: stage.figure, "validation": stage.validation, "size": stage.cost.size,
                "weight_bits": stage.cost.weight_bits, "nonzeros": stage.cost.nonzeros, "time_ratio": stage.cost.time_ratio,
                "microseconds": stage.cost.microseconds, "cycles": stage.cost.cycles, "energy_pj": stage.cost.energy_pj,
                "not_simulated": stage.cost.cannot, "kernels": dict(stage.cost.kernels), "said": dict(stage.said),
                "losses": list(stage.curve),
            }
            for stage in found.stages
        ],
    }  # fmt: skip


__all__ = ["Compression", "Recipe", "Stage", "compress"]
