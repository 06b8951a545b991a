"""The oracle of operators with compressed weights: the base operator's, with the weights decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.ops import compressed as ops
from quatrefoil.problem import Problem
from quatrefoil.reference import conv, rnn


def evaluate(problem: Problem, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """All outputs of the base operator."""
    base = ops.base(problem)
    parameters = {place: array for place, array in enumerate(inputs) if array is not None}
    given = ops.base_inputs(problem, inputs)
    for position, array in ops.decoded(problem, parameters).items():
        given[position] = array
    return conv.evaluate(base, given) if base.op == "conv" else rnn.evaluate(base, given)
