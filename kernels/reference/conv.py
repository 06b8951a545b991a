"""The oracle of conv, conv_transpose, conv_integer and qlinear_conv: a loop over output places and taps.

Taps that fall on padding are left out, so that they contribute nothing even to infinite weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from quatrefoil.numerics import requantize, requantize_multiplier
from quatrefoil.ops import conv as ops
from quatrefoil.ops.windows import Triple, Window
from quatrefoil.problem import Problem

Arrays = Sequence[np.ndarray | None]


def evaluate(problem: Problem, inputs: Arrays) -> tuple[np.ndarray, ...]:
    if problem.op == "conv_integer":
        return (_integer(problem, inputs),)
    if problem.op == "qlinear_conv":
        return (_quantized(problem, inputs),)
    x, w = (np.asarray(inputs[i], np.float64) for i in (ops.X, ops.W))
    with np.errstate(invalid="ignore", over="ignore"):
        y = (transposed if problem.op == "conv_transpose" else forward)(ops.geometry(problem), x, w)
        y = y.reshape(problem.outputs[0].shape)
        if problem.has(ops.BIAS):
            y += np.asarray(inputs[ops.BIAS], np.float64).reshape(1, -1, *(1,) * (y.ndim - 2))
        if problem.has(ops.RESIDUAL):
            y += np.asarray(inputs[ops.RESIDUAL], np.float64)
        return (ops.fused_activation(problem)(y),)


def steps(window: Window) -> Iterator[tuple[Triple, Triple, Triple]]:
    """Every (place in ``window.output``, tap, place in ``window.input``) that does not fall on padding."""
    for place in product(*map(range, window.output)):
        for tap in product(*map(range, window.kernel)):
            source = tuple(
                o * s + k * d - p for o, s, k, d, p in zip(place, window.strides, tap, window.dilations, window.pads)
            )
            if all(0 <= i < n for i, n in zip(source, window.input)):
                yield place, tap, source  # type: ignore[misc]


def forward(g: ops.ConvGeometry, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """y[n, group, m, place] = sum of w[group, m, c, tap] x[n, group, c, source], in the arithmetic of x and w."""
    x = x.reshape(g.batch, g.groups, g.in_per_group, *g.window.input)
    w = w.reshape(g.groups, g.out_per_group, g.in_per_group, *g.window.kernel)
    y = np.zeros((g.batch, g.groups, g.out_per_group, *g.window.output), x.dtype)
    for place, tap, source in steps(g.window):
        y[:, :, :, *place] += np.einsum("ngc,gmc->ngm", x[:, :, :, *source], w[:, :, :, *tap])
    return y


def transposed(g: ops.ConvGeometry, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Scatters: y[n, group, m, source] += w[group, c, m, tap] x[n, group, c, place]."""
    x = x.reshape(g.batch, g.groups, g.in_per_group, *g.window.output)
    w = w.reshape(g.groups, g.in_per_group, g.out_per_group, *g.window.kernel)
    y = np.zeros((g.batch, g.groups, g.out_per_group, *g.window.input), x.dtype)
    for place, tap, source in steps(g.window):
        y[:, :, :, *source] += np.einsum("ngc,gcm->ngm", x[:, :, :, *place], w[:, :, :, *tap])
    return y


def _centred(values: np.ndarray | None, zero_point: np.ndarray | None, axis_first: bool) -> np.ndarray:
    """values - zero_point in int64; a zero point for each output channel goes along w's first axis."""
    assert values is not None
    centred = values.astype(np.int64)
    if zero_point is None:
        return centred
    zero = zero_point.astype(np.int64).reshape(-1)
    return centred - (zero.reshape(-1, *(1,) * (centred.ndim - 1)) if axis_first else zero[0])


def _integer(problem: Problem, inputs: Arrays) -> np.ndarray:
    zero_points = [inputs[i] if problem.has(i) else None for i in (ops.X_ZERO_POINT, ops.W_ZERO_POINT)]
    x = _centred(inputs[ops.X], zero_points[0], False)
    w = _centred(inputs[ops.W], zero_points[1], True)
    return forward(ops.geometry(problem), x, w).reshape(problem.outputs[0].shape).astype(np.int32)


def _quantized(problem: Problem, inputs: Arrays) -> np.ndarray:
    x = _centred(inputs[ops.Q_X], inputs[ops.Q_X_ZERO], False)
    w = _centred(inputs[ops.Q_W], inputs[ops.Q_W_ZERO], True)
    y = problem.outputs[0]
    accumulator = forward(ops.geometry(problem), x, w).reshape(y.shape)
    if problem.has(ops.Q_BIAS):
        bias = inputs[ops.Q_BIAS]
        assert bias is not None
        accumulator += bias.astype(np.int64).reshape(1, -1, *(1,) * (accumulator.ndim - 2))
    x_scale, w_scale, y_scale, y_zero = (inputs[i] for i in (ops.Q_X_SCALE, ops.Q_W_SCALE, ops.Q_Y_SCALE, ops.Q_Y_ZERO))
    assert x_scale is not None and w_scale is not None and y_scale is not None and y_zero is not None
    multiplier = requantize_multiplier(x_scale, w_scale, y_scale)
    return requantize(accumulator.astype(np.int32), multiplier, int(y_zero.reshape(-1)[0]), y.dtype)
