"""Nothing is timed that has not been compared with the oracle on the same inputs.

The oracle is slow on purpose. A large convolution is therefore compared on whole rows of its first spatial axis: the
first, the middle and the last, where the padding is, each of which is a small convolution of its own on the same
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quatrefoil import ops, reference
from quatrefoil.ops import conv
from quatrefoil.problem import Problem, Tensor, Tolerance

MAX_STEPS = 40_000
"""Places times taps that the oracle goes through in about a second; above this it gets rows."""

FORWARD = ("conv", "conv_integer", "qlinear_conv")

Arrays = Sequence[np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether outputs meet the oracle: the largest error as a share of the largest value, and elements that fail."""

    compared_with: str
    error: float
    failures: int

    @property
    def passed(self) -> bool:
        return self.failures == 0


class Oracle:
    """What the right outputs of a problem on these inputs are: all of them, or rows of a large convolution."""

    def __init__(self, problem: Problem, inputs: Arrays) -> None:
        self.problem = problem
        self.tolerance = ops.SPECS[problem.op].tolerance(problem)
        self._rows = _rows(problem)
        if self._rows is None:
            self.name = "oracle"
            self._wanted = list(reference.evaluate(problem, inputs))
        else:
            self.name = f"oracle, {len(self._rows)} rows"
            self._wanted = [reference.evaluate(*_part(problem, inputs, row))[0] for row in self._rows]

    def check(self, outputs: Arrays, slack: int = 0) -> Verdict:
        """Holds outputs (None where there is none to compare) to the oracle. ``slack`` lets integers differ by that
        much, for peers that round otherwise."""
        failures, error = 0, 0.0
        for got, wanted in self._pairs(outputs):
            tolerance = self.tolerance if wanted.dtype.kind == "f" else Tolerance()
            if slack and wanted.dtype.kind in "iu" and got.shape == wanted.shape:
                apart = np.abs(got.astype(np.int64) - wanted.astype(np.int64)) > slack
                failures += int(np.count_nonzero(apart))
            else:
                failures += tolerance.violations(got, wanted)
            if got.shape == wanted.shape:
                error = max(error, tolerance.error(got, wanted))
            else:
                error = float("inf")
        return Verdict(self.name, error, failures)

    def _pairs(self, outputs: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
        if self._rows is None:
            return [(got, wanted) for got, wanted in zip(outputs, self._wanted) if got is not None]
        y = outputs[0]
        assert y is not None
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
