"""The oracle: every operator in float64 and exact integers, in loops that can be read beside the definition.

Slow on purpose. Nothing in the house computes with it; tests and the bench hold kernels to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quatrefoil.ops import FAMILIES, layouts
from quatrefoil.problem import Problem
from quatrefoil.reference import compressed as _compressed
from quatrefoil.reference import conv as _conv
from quatrefoil.reference import conv_gradient as _conv_gradient
from quatrefoil.reference import fixed as _fixed
from quatrefoil.reference import pool as _pool
from quatrefoil.reference import pool_gradient as _pool_gradient
from quatrefoil.reference import rnn as _rnn
from quatrefoil.reference import rnn_gradient as _rnn_gradient
from quatrefoil.reference import sparse as _sparse

Arrays = Sequence[np.ndarray | None]

_EVALUATE: dict[str, Callable[[Problem, Arrays], tuple[np.ndarray, ...]]] = {
    "conv": _conv.evaluate,
    "pool": _pool.evaluate,
    "rnn": _rnn.evaluate,
    "fixed": _fixed.evaluate,
    "sparse": _sparse.evaluate,
    "compressed": _compressed.evaluate,
    "conv_gradient": _conv_gradient.evaluate,
    "pool_gradient": _pool_gradient.evaluate,
    "rnn_gradient": _rnn_gradient.evaluate,
}


def evaluate(problem: Problem, inputs: Arrays) -> tuple[np.ndarray, ...]:
    """All outputs of a canonical problem: float64 for floating-point outputs, the exact dtype for integers."""
    family = next(family for family, operators in FAMILIES.items() if problem.op in operators)
    if layouts.turned(problem):
        return layouts.results(problem, _EVALUATE[family](layouts.plain(problem), layouts.views(problem, inputs)))
    return _EVALUATE[family](problem, inputs)


__all__ = ["evaluate"]
