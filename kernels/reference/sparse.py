"""The oracle of the sparse recurrent layer: one sequence at a time, one unit at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.ops import sparse as ops
from quatrefoil.problem import Problem


def evaluate(problem: Problem, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray]:
    """Output y."""
    g = ops.geometry(problem)
    arrays = [None if array is None else np.asarray(array) for array in inputs]
    x, values, columns, offsets, initial_h, *_ = [*arrays, None]
    assert x is not None and values is not None and columns is not None and offsets is not None
    y = np.zeros((g.steps, g.batch, g.hidden))
    with np.errstate(invalid="ignore", over="ignore"):
        for n in range(g.batch):
            h = np.zeros(g.hidden) if initial_h is None else initial_h[n].astype(np.float64)
            for t in range(g.steps):
                sums = x[t, n].astype(np.float64)
                for unit in range(g.hidden):
                    for place in range(offsets[unit], offsets[unit + 1]):
                        sums[unit] += float(values[place]) * h[columns[place]]
                made = g.function(sums)
                # without a leak the old state has no part, not even where it is infinite or NaN
                h = made if g.leak == 1 else (1 - g.leak) * h + g.leak * made
                y[t, n] = h
    return (y,)
