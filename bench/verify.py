"""Nothing is timed that has not been compared with the oracle on the same inputs.

The oracle is slow on purpose. A large convolution is therefore compared on whole rows of its first spatial axis: the
first, the middle and the last, where the padding is, each of which is a small convolution of its own on the same
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from onnx import ModelProto

from quatrefoil import ops, reference
from quatrefoil.bench.networks import in_float64
from quatrefoil.bench.tasks import Feeds, Task
from quatrefoil.models import load
from quatrefoil.ops import conv, layouts
from quatrefoil.problem import Problem, Tensor, Tolerance
from quatrefoil.registry import Reject

MAX_STEPS = 40_000
"""Places times taps that the oracle goes through in about a second; above this it gets rows."""

ACCURATE = 2e-5
"""The largest error of a float32 result that counts as accurate; quantised results have to be within one step."""

UNITS = 0.1
"""The largest error of a network in 8-bit integers, as a share of its largest score."""

FORWARD = ("conv", "conv_integer", "qlinear_conv")

Arrays = Sequence[np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether outputs meet what they are compared with.

    error     the largest difference as a share of the largest value; None for what there was nothing to compare with
    failures  elements out of the operator's tolerance
    accurate  an error below 2e-5, for integers no difference above one step
    """

    compared_with: str
    error: float | None
    failures: int
    accurate: bool | None

    @property
    def passed(self) -> bool:
        return self.failures == 0


class Judge(Protocol):
    """Knows the right outputs of a task."""

    def check(self, outputs: Arrays, slack: int = 0, whose: str = "") -> Verdict:
        """Holds outputs (None where there is none to compare) to the right ones. ``slack`` lets integers differ by
        that much, for peers that round otherwise; ``whose`` they are."""


def judge_of(task: Task) -> Judge | None:
    """The oracle of a problem, or the float64 form of a chain or a network; None where a task has no ONNX form."""
    if task.problem is not None:
        return Oracle(task.problem, task.arrays)
    return None if isinstance(task.model, Reject) else WideModel(task.model, task.feeds)


class Oracle:
    """What the right outputs of a problem on these inputs are: all of them, or rows of a large convolution."""

    def __init__(self, problem: Problem, inputs: Arrays) -> None:
        self._last = conv.channels_last(problem)
        if self._last:
            problem, inputs = conv.channels_first(problem), layouts.views(problem, inputs)
        self.problem = problem
        self.tolerance = ops.SPECS[problem.op].tolerance(problem)
        self._rows = _rows(problem)
        if self._rows is None:
            self.name = "oracle"
            self._wanted = list(reference.evaluate(problem, inputs))
        else:
            self.name = f"oracle, {len(self._rows)} rows"
            self._wanted = [reference.evaluate(*_part(problem, inputs, row))[0] for row in self._rows]

    def check(self, outputs: Arrays, slack: int = 0, whose: str = "") -> Verdict:
        failures, error, accurate = 0, 0.0, True
        for got, wanted in self._pairs(outputs):
            if got.shape != wanted.shape:
                return Verdict(self.name, float("inf"), max(got.size, wanted.size, 1), False)
            tolerance = self.tolerance if wanted.dtype.kind == "f" else Tolerance()
            error = max(error, tolerance.error(got, wanted))
            if wanted.dtype.kind in "iu":
                apart = np.abs(got.astype(np.int64) - wanted.astype(np.int64))
                failures += int(np.count_nonzero(apart > slack))
                accurate &= not (apart > 1).any()
            else:
                failures += tolerance.violations(got, wanted)
        return Verdict(self.name, error, failures, accurate and (error < ACCURATE or wanted.dtype.kind in "iu"))

    def _pairs(self, outputs: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
        if self._last:
            outputs = [None if y is None else conv.planes_of(y) for y in outputs]
        if self._rows is None:
            return [(got, wanted) for got, wanted in zip(outputs, self._wanted) if got is not None]
        y = outputs[0]
        if y is None or y.shape != self.problem.outputs[0].shape:
            return [(np.zeros(0), self._wanted[0])]
        return [(y[:, :, row : row + 1], wanted) for row, wanted in zip(self._rows, self._wanted)]


def _rows(problem: Problem) -> list[int] | None:
    """The rows to compare, or None where the oracle takes the whole problem."""
    if problem.op not in FORWARD:
        return None
    window = conv.geometry(problem).window
    if window.output_size * window.taps <= MAX_STEPS:
        return None
    count = problem.outputs[0].shape[2]
    return sorted({0, count // 2, count - 1})


def _part(problem: Problem, inputs: Arrays, row: int) -> tuple[Problem, list[np.ndarray | None]]:
    """The problem that computes one row of the output, and its inputs."""
    position = conv.Q_W if problem.op == "qlinear_conv" else conv.W
    rank = problem.input(0).rank - 2
    kernel, stride = problem.input(position).shape[2], problem.ints("strides")[0]
    dilation, pads = problem.ints("dilations")[0], list(problem.ints("pads"))
    length = problem.input(0).shape[2]
    begin = row * stride - pads[0]
    end = begin + (kernel - 1) * dilation + 1
    pads[0], pads[rank] = max(-begin, 0), max(end - length, 0)
    part = list(inputs)
    x = inputs[0]
    assert x is not None
    part[0] = x[:, :, max(begin, 0) : max(min(end, length), 0)]
    if problem.op == "conv" and problem.has(conv.RESIDUAL):
        residual = inputs[conv.RESIDUAL]
        assert residual is not None
        part[conv.RESIDUAL] = residual[:, :, row : row + 1]
    y = problem.outputs[0]
    attributes = tuple((name, tuple(pads) if name == "pads" else value) for name, value in problem.attributes)
    row_problem = replace(
        problem,
        inputs=tuple(None if array is None else Tensor.of(array) for array in part[: len(problem.inputs)]),
        outputs=(Tensor(y.dtype, (*y.shape[:2], 1, *y.shape[3:])),),
        attributes=attributes,
    )
    return row_problem, part


class WideModel:
    """A chain or a network in float64, each node as the file says, on our float64 kernels, which conformance holds to
    the oracle. A float32 result fails beyond 1e-3 of the largest value. Of a model in bytes, in which a value that is rounded
    otherwise goes through all that follows, one fails beyond UNITS of it, and is accurate below."""

    name = "float64"

    def __init__(self, model: ModelProto, feeds: Feeds) -> None:
        in_bytes = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        self._allowed, self._accurate = (UNITS, UNITS) if in_bytes else (1e-3, ACCURATE)
        wide = load(in_float64(model), optimized=False)
        widened = {name: array.astype(np.float64) for name, array in feeds.items()}
        self._wanted = list(wide.run(widened, backend="cpu").values())

    def check(self, outputs: Arrays, slack: int = 0, whose: str = "") -> Verdict:
        return _near(self.name, outputs, self._wanted, self._allowed, self._accurate)


class FirstSeen:
    """What the first contender gave, for models that no oracle knows: the others may differ from it by ``tolerance``
    of each output's largest value."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._name = ""
        self._wanted: Arrays = []

    def check(self, outputs: Arrays, slack: int = 0, whose: str = "") -> Verdict:
        if not self._name:
            self._name, self._wanted = whose, outputs
            return Verdict("", None, 0, None)
        return _near(self._name, outputs, self._wanted, self._tolerance)


def _near(name: str, outputs: Arrays, wanted: Arrays, allowed: float, accurate: float = ACCURATE) -> Verdict:
    """Within a share of the largest value, output by output."""
    error, failures, tolerance = 0.0, 0, Tolerance(scaled=allowed)
    for got, want in zip(outputs, wanted):
        if got is not None and want is not None:
            error = max(error, tolerance.error(got, want) if got.shape == want.shape else float("inf"))
            failures += tolerance.violations(got, want)
    return Verdict(name, error, failures, error < accurate)
