"""The oracle: every operator in float64 and exact integers, in loops that can be read beside the definition.

Slow on purpose. Nothing in the house computes with it; tests and the bench hold kernels to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.ops import FAMILIES
from quatrefoil.ops import rnn as rnn_ops
from quatrefoil.problem import Problem
from quatrefoil.reference import conv as _conv
from quatrefoil.reference import fixed as _fixed
from quatrefoil.reference import pool as _pool
from quatrefoil.reference import rnn as _rnn

Arrays = Sequence[np.ndarray | None]


def evaluate(problem: Problem, inputs: Arrays) -> tuple[np.ndarray, ...]:
    """All outputs of a canonical problem: float64 for floating-point outputs, the exact dtype for integers."""
    if problem.op in FAMILIES["conv"]:
        return _conv.evaluate(problem, inputs)
    if problem.op in FAMILIES["pool"]:
        return _pool.evaluate(problem, inputs)
    if problem.op in FAMILIES["fixed"]:
        return _fixed.evaluate(problem, inputs)
    if problem.integer("layout"):
        return rnn_ops.batch_first(_rnn.evaluate(rnn_ops.without_layout(problem), rnn_ops.batch_second(inputs)))
    return _rnn.evaluate(problem, inputs)


__all__ = ["evaluate"]
