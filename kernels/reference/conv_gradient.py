"""The oracle of conv_weight_gradient and conv_bias_gradient: the convolution's own loop over places and taps.

Taps that fall on padding are left out, so that they contribute nothing even to infinite gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.ops import conv_gradient as ops
from quatrefoil.problem import Problem
from quatrefoil.reference.conv import steps


def evaluate(problem: Problem, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    with np.errstate(invalid="ignore", over="ignore"):
        if problem.op == "conv_bias_gradient":
            dy = np.asarray(inputs[0], np.float64)
            return (dy.sum(axis=(0, *range(2, dy.ndim))),)
        return (_weight(problem, inputs),)


def _weight(problem: Problem, inputs: Sequence[np.ndarray | None]) -> np.ndarray:
    """dw[group, m, c, tap] += dy[n, group, m, place] x[n, group, c, source]"""
    g = ops.geometry(problem)
    x, dy = (np.asarray(inputs[i], np.float64) for i in (ops.X, ops.DY))
    x = x.reshape(g.batch, g.groups, g.in_per_group, *g.window.input)
    dy = dy.reshape(g.batch, g.groups, g.out_per_group, *g.window.output)
    dw = np.zeros((g.groups, g.out_per_group, g.in_per_group, *g.window.kernel))
    for place, tap, source in steps(g.window):
        dw[:, :, :, *tap] += np.einsum("ngm,ngc->gmc", dy[:, :, :, *place], x[:, :, :, *source])
    return dw.reshape(problem.outputs[0].shape)
