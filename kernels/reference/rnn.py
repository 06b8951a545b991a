"""The oracle of rnn, lstm and gru: one sequence at a time, one step at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.ops import rnn as ops
from quatrefoil.problem import Problem

Arrays = Sequence[np.ndarray | None]


def evaluate(problem: Problem, inputs: Arrays) -> tuple[np.ndarray, ...]:
    """Outputs y, y_h (y_c for lstm, and the sums of a training form) of a problem of layout 0."""
    g = ops.geometry(problem)
    given: list[np.ndarray | None] = [
        None if array is None else np.asarray(array, np.int64 if i == ops.LENGTHS else np.float64)
        for i, array in enumerate(inputs)
    ]
    given += [None] * (len(ops.NAMES) - len(given))
    x, w, r = given[ops.X], given[ops.W], given[ops.R]
    assert x is not None and w is not None and r is not None
    b, initial_h, initial_c, peepholes = (given[i] for i in (ops.B, ops.INITIAL_H, ops.INITIAL_C, ops.P))
    lengths = given[ops.LENGTHS]
    y = np.zeros((g.steps, g.directions, g.batch, g.hidden))
    y_h = np.zeros((g.directions, g.batch, g.hidden))
    y_c = np.zeros_like(y_h)
    sums = np.zeros((g.steps, g.directions, g.batch, g.slots * g.hidden))
    zeros = np.zeros(g.hidden)
    kind = ops.layer(problem.op)
    with np.errstate(invalid="ignore", over="ignore"):
        for direction, backwards in enumerate(g.reverse):
            bias = np.zeros(2 * g.gates * g.hidden) if b is None else b[direction]
            weights = (w[direction], r[direction], *np.split(bias, 2))
            peephole = np.zeros(3 * g.hidden) if peepholes is None else peepholes[direction]
            for n in range(g.batch):
                h = zeros if initial_h is None else initial_h[direction, n]
                c = zeros if initial_c is None else initial_c[direction, n]
                length = g.steps if lengths is None else int(lengths[n])
                for t in range(length)[:: -1 if backwards else 1]:
                    if kind == "lstm":
                        h, c, sums[t, direction, n] = _lstm(g, direction, x[t, n], h, c, weights, peephole)
                    else:
                        step = _gru if kind == "gru" else _rnn
                        h, sums[t, direction, n] = step(g, direction, x[t, n], h, weights)
                    y[t, direction, n] = h
                y_h[direction, n], y_c[direction, n] = h, c
    outputs = (y, y_h, y_c) if kind == "lstm" else (y, y_h)
    return outputs if kind == problem.op else (*outputs, sums)


Weights = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""W (G H, I), R (G H, H), Wb (G H), Rb (G H)."""

Pair = tuple[np.ndarray, np.ndarray]
"""The new state, and the sums of a step."""


def _clipped(g: ops.RecurrentGeometry, v: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(v, -g.clip), g.clip)


def _rnn(g: ops.RecurrentGeometry, direction: int, x: np.ndarray, h: np.ndarray, weights: Weights) -> Pair:
    w, r, wb, rb = weights
    (f,) = g.activations[direction]
    sums = w @ x + r @ h + wb + rb
    return f(_clipped(g, sums)), sums


def _lstm(
    g: ops.RecurrentGeometry,
    direction: int,
    x: np.ndarray,
    h: np.ndarray,
    c: np.ndarray,
    weights: Weights,
    peephole: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    w, r, wb, rb = weights
    f_function, g_function, h_function = g.activations[direction]
    sums = w @ x + r @ h + wb + rb
    i, o, f, z = np.split(sums, 4)
    p_i, p_o, p_f = np.split(peephole, 3)
    i = f_function(_clipped(g, i + p_i * c))
    f = 1 - i if g.input_forget else f_function(_clipped(g, f + p_f * c))
    c = f * c + i * g_function(_clipped(g, z))
    o = f_function(_clipped(g, o + p_o * c))
    return o * h_function(c), c, sums


def _gru(g: ops.RecurrentGeometry, direction: int, x: np.ndarray, h: np.ndarray, weights: Weights) -> Pair:
    w, r, wb, rb = weights
    f, g_function = g.activations[direction]
    w_z, w_r, w_h = np.split(w @ x + wb, 3)
    matrices = np.split(r, 3)
    b_z, b_r, b_h = np.split(rb, 3)
    z_sum, r_sum = w_z + matrices[0] @ h + b_z, w_r + matrices[1] @ h + b_r
    z, reset = f(_clipped(g, z_sum)), f(_clipped(g, r_sum))
    if g.linear_before_reset:
        recurrent = matrices[2] @ h + b_h
        candidate = w_h + reset * recurrent
        sums = np.concatenate([z_sum, r_sum, w_h, recurrent])
    else:
        candidate = w_h + matrices[2] @ (reset * h) + b_h
        sums = np.concatenate([z_sum, r_sum, candidate])
    return (1 - z) * g_function(_clipped(g, candidate)) + z * h, sums
