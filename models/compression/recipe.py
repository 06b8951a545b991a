"""What is to be done to a model, and doing it: stage by stage, each trained again before the next begins.

The order is that of Han, Mao and Dally, Deep compression (2016), with what changes shapes before it: a student, channels, low rank,
single weights, shared values, 8-bit integers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from onnx import ModelProto

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression import awareness, channels, factoring, pruning, sharing
from quatrefoil.models.compression.measuring import Subject
from quatrefoil.models.compression.network import RECURRENT, Network
from quatrefoil.models.compression.pruning import GLOBAL, SCOPES, SENSITIVITY, UNIFORM, Magnitude, Pattern
from quatrefoil.models.compression.task import Report, Task, outputs_of
from quatrefoil.models.compression.training import Pace, Teacher, retrain
from quatrefoil.models.compression.writing import written
from quatrefoil.models.model import load

Source = str | os.PathLike[str] | bytes | ModelProto


@dataclass(frozen=True)
class Recipe:
    """Each is left out where it is None. Raises QuatrefoilError for what cannot be.

    student         a smaller model of the same inputs and outputs, to be trained in the place of the model
    prune_channels  the share of channels and hidden units that go
    rank            of factored layers: a share of the squared singular values, or a number
    prune           the share of weights that are zero; or pattern: how many of how many are not, "2:4"
    share           entries of a codebook for each weight
    bits            8
    distill         the original's outputs teach
    scope           how shares are divided: "sensitivity" (measured), "uniform" or, of single weights, "global"; None:
                    sensitivity for single weights, uniform for channels
    """

    student: Source | None = None
    prune_channels: float | None = None
    rank: float | None = None
    prune: float | None = None
    pattern: str | None = None
    share: int | None = None
    bits: int | None = None
    distill: bool = False
    scope: str | None = None

    def __post_init__(self) -> None:
        for name in ("prune", "prune_channels"):
            if getattr(self, name) is not None:
                pruning.checked_share(name, getattr(self, name))
        if self.prune is not None and self.pattern is not None:
            raise QuatrefoilError("compress: prune and pattern both say which weights are zero; give one")
        if self.pattern is not None:
            Pattern.parse(self.pattern, ())
        if self.share is not None:
            sharing.checked_entries(self.share)
        if self.rank is not None:
            factoring.checked_rank(self.rank)
        if self.bits not in (None, 8):
            raise QuatrefoilError(
                f"compress: bits is {self.bits}; 8 is what there is (share=16 stores 4 for each weight)"
            )
        if self.scope is not None and self.scope not in SCOPES:
            raise QuatrefoilError(f"compress: scope is {self.scope!r}; write {', '.join(SCOPES)}")

    @property
    def given(self) -> dict[str, Any]:
        """What it does, in the order in which it is done."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "scope"}
        return {name: value for name, value in found.items() if value is not None and value is not False}

    @property
    def title(self) -> str:
        return ", ".join(map(_title, self.given.items())) or "as it is"


def _title(item: tuple[str, Any]) -> str:
    name, value = item
    titles = {"prune_channels": f"channels {value}", "bits": "int8", "distill": "distilled", "student": "student"}
    return titles.get(name, f"{name} {value}")


@dataclass(frozen=True)
class Made:
    """A stage's model: ``proto`` to keep, ``network`` to go on with. said: of each layer, what happened; curve: its losses."""

    name: str
    network: Network
    proto: ModelProto
    said: Mapping[str, str] = field(default_factory=dict)
    curve: tuple[float, ...] = ()
    in_bytes: bool = False

    @property
    def subject(self) -> Subject:
        """On the chip an int8 model is timed as its float form with operands of int8, as all its products then are; with
        recurrent layers, which compute in floating point, as it is."""
        whole = self.in_bytes and not any(node.op_type in RECURRENT for node in self.network.nodes)
        return Subject(self.proto, self.network.proto, "int8") if whole else Subject(self.proto, self.proto)


def carry_out(recipe: Recipe, network: Network, task: Task, pace: Pace, report: Report | None = None) -> list[Made]:
    """The stages of a recipe on a network, which stays as it is."""
    teacher = None
    if recipe.distill or recipe.student is not None:
        taught = outputs_of(load(_with_output(network.proto, task.scores)), task.train.inputs, task.scores)
        teacher = Teacher(taught)
    stages: list[Made] = []
    now = network.copy()
    for name, value in recipe.given.items():
        said: Mapping[str, str] = {}
        if name == "distill":
            if len(recipe.given) > 1:
                continue  # it teaches the other stages
            curve = retrain(now, task, pace, None, teacher, report=report)
        elif name == "student":
            now = _student(value, network, task)
            curve = retrain(now, task, pace, None, teacher, report=report)
        elif name == "prune_channels":
            said = channels.remove(now, task, value, recipe.scope or UNIFORM)
            curve = retrain(now, task, pace, None, teacher, report=report)
        elif name == "rank":
            said = factoring.factor(now, value)
            curve = retrain(now, task, pace, None, teacher, report=report)
        elif name in ("prune", "pattern"):
            said, curve = _prune(now, task, pace, recipe, teacher, report)
        elif name == "share":
            said = sharing.share(now, value)
            curve = retrain(now, task, pace, None, teacher, report=report)
        else:
            proto, said, curve = awareness.in_bytes(now, task, pace, teacher, report)
            whole, _ = written(now.with_proto(proto))
            stages.append(Made(_title((name, value)), now.copy(), whole, said, tuple(curve), True))
            continue
        whole, forms = written(now)
        said = {**said, **{name: f"{said.get(name, '')} ({form})".strip() for name, form in forms.items()}}
        stages.append(Made(_title((name, value)), now.copy(), whole, said, tuple(curve)))
    return stages


def _prune(
    network: Network, task: Task, pace: Pace, recipe: Recipe, teacher: Teacher | None, report: Report | None
) -> tuple[dict[str, str], list[float]]:
    weights = network.weights()
    names = [weight.name for weight in weights]
    if recipe.pattern is not None:
        pattern = Pattern.parse(recipe.pattern, weights)
        curve = retrain(network, task, pace, pattern, teacher, report=report)
    else:
        assert recipe.prune is not None
        arrays = {name: network.constants[name] for name in names}
        scope = recipe.scope or SENSITIVITY
        shares = dict.fromkeys(names, recipe.prune)
        if scope == GLOBAL:
            shares = pruning.together(arrays, recipe.prune)
        elif scope == SENSITIVITY:
            losses = pruning.sensitivities(network, task, names)
            shares = pruning.divide(losses, {name: array.size for name, array in arrays.items()}, recipe.prune)
        curve = retrain(network, task, pace, Magnitude(shares), teacher, report=report)
    for name in names:
        network.pinned[name] = network.constants[name] == 0
    return {name: f"{float(np.mean(network.pinned[name])):.1%} zero" for name in names}, curve


def _student(source: Source, network: Network, task: Task) -> Network:
    student = Network(source)

    def shapes(proto: ModelProto) -> list[tuple[str, ...]]:
        return [tuple(value.name for value in each) for each in (proto.graph.input, proto.graph.output)]

    if shapes(student.proto) != shapes(network.proto):
        raise QuatrefoilError(
            "compress: the student has other inputs or outputs than the model; give them the same names"
        )
    first = task.train.rows(slice(0, 2)).inputs
    one, two = (load(each.proto).run(dict(first), backend="cpu")[task.output].shape for each in (student, network))
    if one != two:
        raise QuatrefoilError(f"compress: the student gives {list(one)} for two rows where the model gives {list(two)}")
    return student


def _with_output(proto: ModelProto, name: str) -> ModelProto:
    """The model with a value among its outputs."""
    if any(value.name == name for value in proto.graph.output):
        return proto
    made = ModelProto()
    made.CopyFrom(proto)
    made.graph.output.add().name = name
    return made
