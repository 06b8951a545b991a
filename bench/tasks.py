"""What contenders are asked to do: a problem, a chain of problems or a network, on inputs made up from a seed.

A task has a text form, from which every process makes it alike:

    conv float32[1x64x56x56],float32[64x64x3x3],float32[64] pads=1x1x1x1
    8 * (conv float32[1x64x56x56],float32[64x64x3x3],float32[64] pads=1x1x1x1 activation=Relu -> conv …)
    network resnet50
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import onnx
from onnx import ModelProto

from quatrefoil import ops
from quatrefoil.bench import inputs as made_up
from quatrefoil.bench import networks
from quatrefoil.bench.onnx_node import model_of
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import load
from quatrefoil.ops import conv, layouts
from quatrefoil.problem import Problem, Work, numpy_dtype
from quatrefoil.registry import Reject

CHAIN = re.compile(r"(?:(\d+) \* )?\((.+)\)")
NETWORK = "network "
FRESH = 7919
"""From the seed of a task to that of its fresh inputs; further than from one layer of a chain to the next."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """text: its text form; seed: of the made-up inputs."""

    text: str
    seed: int = 0

    @cached_property
    def problem(self) -> Problem | None:
        """The single problem that this is; None for a chain or a network."""
        return None if self.text.startswith((NETWORK, "(")) or CHAIN.fullmatch(self.text) else ops.parse(self.text)

    @cached_property
    def on_planes(self) -> Task:
        """The same task on the same numbers with its channels first."""
        if self.problem is None or not conv.channels_last(self.problem):
            return self
        other = Task(conv.channels_first(self.problem).text, self.seed)
        other.__dict__["arrays"] = [
            None if array is None else np.ascontiguousarray(array).reshape(array.shape)
            for array in layouts.views(self.problem, self.arrays)
        ]
        return other

    @property
    def op(self) -> str:
        """The operator, or ``model``."""
        return "model" if self.problem is None else self.problem.op

    @cached_property
    def arrays(self) -> list[np.ndarray | None]:
        """A single problem's inputs, by position."""
        assert self.problem is not None
        return made_up.arrays(self.problem, self.seed)

    @cached_property
    def constants(self) -> dict[int, np.ndarray]:
        """Those of a single problem's inputs that a model would keep constant."""
        assert self.problem is not None
        return made_up.parameters(self.problem, self.arrays)

    def fresh(self, number: int = 1) -> Task:
        """The same task with the same constants on other inputs, others for each number; 0 gives the task itself."""
        if number == 0:
            return self
        other = replace(self, seed=self.seed + number * FRESH)
        if self.problem is not None:
            arrays = [self.arrays[i] if i in self.constants else array for i, array in enumerate(other.arrays)]
            other.__dict__["arrays"] = arrays  # where cached_property keeps it
        else:
            other.__dict__["model"] = self.model
        return other

    @cached_property
    def varying(self) -> list[np.ndarray]:
        """The inputs that are not constant, in order."""
        if self.problem is None:
            return list(self.feeds.values())
        return [array for i, array in enumerate(self.arrays) if array is not None and i not in self.constants]

    @cached_property
    def model(self) -> ModelProto | Reject:
        """The task as an ONNX model whose weights are constants."""
        if self.problem is not None:
            return model_of(self.problem, self.constants)
        if self.text.startswith(NETWORK):
            return networks.network(self.text.removeprefix(NETWORK))
        models = []
        for number, problem in enumerate(chain(self.text)):
            weights = made_up.parameters(problem, made_up.arrays(problem, self.seed + number))
            layer = model_of(problem, weights)
            if isinstance(layer, Reject):
                return layer
            models.append(layer)
        return networks.chained(models)

    @cached_property
    def feeds(self) -> Feeds:
        """The inputs that are not constant, by their names in the model."""
        if self.problem is not None:
            named = {f"i{i}": array for i, array in enumerate(self.arrays) if i not in self.constants}
            return {name: array for name, array in named.items() if array is not None}
        assert not isinstance(self.model, Reject)
        rng = np.random.default_rng(self.seed)
        return {
            value.name: rng.standard_normal([int(extent or 1) for extent in value.shape or ()]).astype(
                numpy_dtype(value.dtype or "float32")
            )
            for value in load(self.model, optimized=False).inputs
        }

    @cached_property
    def work(self) -> Work:
        """Of a direct evaluation; the bytes of a chain or a network are those of each layer alone."""
        parts = [self.problem] if self.problem is not None else self._layers()
        costs = [ops.SPECS[part.op].work(part) for part in parts]
        return Work(sum(cost.macs for cost in costs), sum(cost.bytes for cost in costs))

    def _layers(self) -> Sequence[Problem]:
        assert not isinstance(self.model, Reject)
        placements = load(self.model).explain(self.feeds)
        return [placement.problem for placement in placements if placement.problem is not None]


@dataclass(frozen=True)
class ModelTask(Task):
    """A model in a file, on given inputs; its work is not counted."""

    path: str = ""
    given: Feeds = field(default_factory=dict)

    problem = None
    work = Work(0, 0)

    @cached_property
    def model(self) -> ModelProto:
        return onnx.load(self.path)

    @property
    def feeds(self) -> Feeds:
        return self.given

    def fresh(self, number: int = 1) -> ModelTask:
        """The inputs rolled along their first axis that is longer than one: what a file's model takes is not known well
        enough to be made up."""
        return replace(self, given={name: _rolled(array, number) for name, array in self.given.items()})


def _rolled(array: np.ndarray, places: int) -> np.ndarray:
    axis = next((axis for axis, extent in enumerate(array.shape) if extent > 1), None)
    return array if axis is None else np.ascontiguousarray(np.roll(array, places, axis))


def chain(text: str) -> list[Problem]:
    """The problems of a chain's text, in order. Raises QuatrefoilError where one does not take the last one's result."""
    match = CHAIN.fullmatch(text)
    if match is None:
        raise QuatrefoilError(f"{text!r} is no chain; write 3 * (problem -> problem)")
    problems = [ops.parse(part) for part in match[2].split(" -> ")] * int(match[1] or 1)
    for before, after in pairwise(problems):
        if before.outputs[0] != after.input(0):
            raise QuatrefoilError(f"a chain's {after.op} takes {after.input(0)}, but gets {before.outputs[0]}")
    return problems


def read(text: str) -> Task:
    """The task of a text form, in canonical form. Raises QuatrefoilError for text that is none."""
    if text.startswith(NETWORK):
        name = text.removeprefix(NETWORK)
        if name not in networks.NETWORKS:
            raise QuatrefoilError(f"there is no network {name!r}; known are {', '.join(networks.NETWORKS)}")
    elif CHAIN.fullmatch(text):
        chain(text)
    else:
        text = ops.parse(text).text
    return Task(text)
