"""The oracle of rnn, lstm and gru: one sequence at a time, one step at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.ops import rnn as ops
from quatrefoil.problem import Problem

Arrays = Sequence[np.ndarray | None]


def evaluate(problem: Problem, inputs: Arrays) -> tuple[np.ndarray, ...]:
    """Outputs y, y_h (and y_c for lstm) of a problem of layout 0."""
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
    zeros = np.zeros(g.hidden)
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
                    if problem.op == "lstm":
                        h, c = _lstm(g, direction, x[t, n], h, c, weights, peephole)
                    else:
                        h = (_gru if problem.op == "gru" else _rnn)(g, direction, x[t, n], h, weights)
                    y[t, direction, n] = h
                y_h[direction, n], y_c[direction, n] = h, c
    return (y, y_h, y_c) if problem.op == "lstm" else (y, y_h)


Weights = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""W (G H, I), R (G H, H), Wb (G H), Rb (G H)."""


def _clipped(g: ops.RecurrentGeometry, v: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(v, -g.clip), g.clip)


def _rnn(g: ops.RecurrentGeometry, direction: int, x: np.ndarray, h: np.ndarray, weights: Weights) -> np.ndarray:
    w, r, wb, rb = weights
    (f,) = g.activations[direction]
    return f(_clipped(g, w @ x + r @ h + wb + rb))


def _lstm(
    g: ops.RecurrentGeometry,
    direction: int,
    x: np.ndarray,
    h: np.ndarray,
    c: np.ndarray,
    weights: Weights,
    peephole: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    w, r, wb, rb = weights
    f_function, g_function, h_function = g.activations[direction]
    i, o, f, z = np.split(w @ x + r @ h + wb + rb, 4)
    p_i, p_o, p_f = np.split(peephole, 3)
    i = f_function(_clipped(g, i + p_i * c))
    f = 1 - i if g.input_forget else f_function(_clipped(g, f + p_f * c))
    c = f * c + i * g_function(_clipped(g, z))
    o = f_function(_clipped(g, o + p_o * c))
    return o * h_function(c), c


def _gru(g: ops.RecurrentGeometry, direction: int, x: np.ndarray, h: np.ndarray, weights: Weights) -> np.ndarray:
    w, r, wb, rb = weights
    f, g_function = g.activations[direction]
    w_z, w_r, w_h = np.split(w @ x + wb, 3)
    matrices = np.split(r, 3)
    b_z, b_r, b_h = np.split(rb, 3)
    z = f(_clipped(g, w_z + matrices[0] @ h + b_z))
    reset = f(_clipped(g, w_r + matrices[1] @ h + b_r))
    if g.linear_before_reset:
        candidate = w_h + reset * (matrices[2] @ h + b_h)
    else:
        candidate = w_h + matrices[2] @ (reset * h) + b_h
    return (1 - z) * g_function(_clipped(g, candidate)) + z * h
