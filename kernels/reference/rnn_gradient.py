"""The oracle of rnn_gradient, lstm_gradient and gru_gradient: one sequence at a time, one step at a time, backwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quatrefoil.ops import rnn
from quatrefoil.ops import rnn_gradient as ops
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.rnn import RecurrentGeometry
from quatrefoil.problem import Problem


@dataclass
class Sums:
    """What is added up over all steps of one direction: gradients of w, r, both biases and the peepholes."""

    w: np.ndarray
    r: np.ndarray
    wb: np.ndarray
    rb: np.ndarray
    p: np.ndarray


def evaluate(problem: Problem, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """The wanted gradients, in the order of their positions."""
    g, kind = ops.geometry(problem), problem.op.removesuffix(ops.GRADIENT)
    given: list[np.ndarray | None] = [
        None if array is None else np.asarray(array, np.int64 if i == rnn.LENGTHS else np.float64)
        for i, array in enumerate(inputs)
    ]
    given += [None] * (len(ops.NAMES) - len(given))
    x, w, r, y, sums = (given[i] for i in (rnn.X, rnn.W, rnn.R, ops.Y, ops.SUMS))
    assert x is not None and w is not None and r is not None and y is not None and sums is not None
    states = (g.directions, g.batch, g.hidden)
    initial_h, initial_c, dy_h, dy_c = (
        np.zeros(states) if given[i] is None else given[i] for i in (rnn.INITIAL_H, rnn.INITIAL_C, ops.DY_H, ops.DY_C)
    )
    dy = np.zeros_like(y) if given[ops.DY] is None else given[ops.DY]
    p = np.zeros((g.directions, 3 * g.hidden)) if given[rnn.P] is None else given[rnn.P]
    lengths = np.full(g.batch, g.steps) if given[rnn.LENGTHS] is None else given[rnn.LENGTHS]
    assert initial_h is not None and initial_c is not None and dy_h is not None and dy_c is not None
    assert dy is not None and p is not None and lengths is not None
    dx, dinitial_h, dinitial_c = np.zeros_like(x), np.zeros(states), np.zeros(states)
    rows = g.gates * g.hidden
    total = [
        Sums(np.zeros_like(m), np.zeros_like(n), np.zeros(rows), np.zeros(rows), np.zeros(3 * g.hidden))
        for m, n in zip(w, r)
    ]
    step = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}[kind]
    with np.errstate(invalid="ignore", over="ignore"):
        for d, backwards in enumerate(g.reverse):
            for n in range(g.batch):
                order = list(range(int(lengths[n])))[:: -1 if backwards else 1]
                before = [initial_h[d, n], *(y[t, d, n] for t in order[:-1])]
                cells = [initial_c[d, n]]
                for t in order:
                    cells.append(_cell(g, d, sums[t, d, n], cells[-1], p[d]) if kind == "lstm" else cells[0])
                dh, dc = dy_h[d, n], dy_c[d, n]
                for place in range(len(order))[::-1]:
                    t = order[place]
                    dh, dc, direct = step(
                        g,
                        d,
                        x[t, n],
                        before[place],
                        sums[t, d, n],
                        cells[place],
                        p[d],
                        r[d],
                        dh + dy[t, d, n],
                        dc,
                        total[d],
                    )
                    dx[t, n] += w[d].T @ direct
                dinitial_h[d, n], dinitial_c[d, n] = dh, dc
    gradients = {
        rnn.X: dx,
        rnn.W: np.stack([part.w for part in total]),
        rnn.R: np.stack([part.r for part in total]),
        rnn.B: np.stack([np.concatenate([part.wb, part.rb]) for part in total]),
        rnn.INITIAL_H: dinitial_h,
        rnn.INITIAL_C: dinitial_c,
        rnn.P: np.stack([part.p for part in total]),
    }
    return tuple(gradients[position] for position in ops.wanted(problem))


def _clipped(g: RecurrentGeometry, v: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(v, -g.clip), g.clip)


def _slope(g: RecurrentGeometry, function: Activation, v: np.ndarray) -> np.ndarray:
    """Of a gate with its clip."""
    slope = function.slope(v)
    return slope if np.isinf(g.clip) else np.where(np.abs(v) >= g.clip, 0.0, slope)


Step = tuple[np.ndarray, np.ndarray, np.ndarray]
"""dh and dc before a step, and the gradient of the sums that W x goes into."""


def _rnn(g: RecurrentGeometry, d: int, x: np.ndarray, h: np.ndarray, sums: np.ndarray, c: np.ndarray, p: np.ndarray,
         r: np.ndarray, dh: np.ndarray, dc: np.ndarray, total: Sums) -> Step:  # fmt: skip
    (f,) = g.activations[d]
    gate = dh * _slope(g, f, sums)
    _add(total, gate, gate, x, np.outer(gate, h))
    return r.T @ gate, dc, gate


def _add(total: Sums, direct: np.ndarray, recurrent: np.ndarray, x: np.ndarray, r: np.ndarray) -> None:
    total.w += np.outer(direct, x)
    total.r += r
    total.wb += direct
    total.rb += recurrent


def _lstm_gates(g: RecurrentGeometry, d: int, sums: np.ndarray, c: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, ...]:
    """The sums of i, o without its peephole, f and c~, and the values of i, f and c~."""
    f_function, g_function, _ = g.activations[d]
    i, o, f, z = np.split(sums, 4)
    p_i, _, p_f = np.split(p, 3)
    i, f = i + p_i * c, f + p_f * c
    input_gate = f_function(_clipped(g, i))
    forget = 1 - input_gate if g.input_forget else f_function(_clipped(g, f))
    return i, o, f, z, input_gate, forget, g_function(_clipped(g, z))


def _cell(g: RecurrentGeometry, d: int, sums: np.ndarray, c: np.ndarray, p: np.ndarray) -> np.ndarray:
    *_, input_gate, forget, candidate = _lstm_gates(g, d, sums, c, p)
    return forget * c + input_gate * candidate


def _lstm(g: RecurrentGeometry, d: int, x: np.ndarray, h: np.ndarray, sums: np.ndarray, c: np.ndarray, p: np.ndarray,
          r: np.ndarray, dh: np.ndarray, dc: np.ndarray, total: Sums) -> Step:  # fmt: skip
    f_function, g_function, h_function = g.activations[d]
    i, o, f, z, input_gate, forget, candidate = _lstm_gates(g, d, sums, c, p)
    p_i, p_o, p_f = np.split(p, 3)
    after = forget * c + input_gate * candidate
    o = o + p_o * after
    d_o = dh * h_function(after) * _slope(g, f_function, o)
    dc = dc + dh * f_function(_clipped(g, o)) * h_function.slope(after) + p_o * d_o
    d_z = dc * input_gate * _slope(g, g_function, z)
    if g.input_forget:
        d_i, d_f = dc * (candidate - c) * _slope(g, f_function, i), np.zeros_like(dc)
    else:
        d_i, d_f = dc * candidate * _slope(g, f_function, i), dc * c * _slope(g, f_function, f)
    gates = np.concatenate([d_i, d_o, d_f, d_z])
    _add(total, gates, gates, x, np.outer(gates, h))
    total.p += np.concatenate([d_i * c, d_o * after, d_f * c])
    return r.T @ gates, dc * forget + p_i * d_i + p_f * d_f, gates


def _gru(g: RecurrentGeometry, d: int, x: np.ndarray, h: np.ndarray, sums: np.ndarray, c: np.ndarray, p: np.ndarray,
         r: np.ndarray, dh: np.ndarray, dc: np.ndarray, total: Sums) -> Step:  # fmt: skip
    f, g_function = g.activations[d]
    z_sum, r_sum, candidate_sum, *recurrent = np.split(sums, g.slots)
    r_z, r_r, r_h = np.split(r, 3)
    z, reset = f(_clipped(g, z_sum)), f(_clipped(g, r_sum))
    if recurrent:
        candidate_sum = candidate_sum + reset * recurrent[0]
    candidate = g_function(_clipped(g, candidate_sum))
    d_z = dh * (h - candidate) * _slope(g, f, z_sum)
    d_h = dh * (1 - z) * _slope(g, g_function, candidate_sum)
    if recurrent:
        d_r = d_h * recurrent[0] * _slope(g, f, r_sum)
        through, through_h = d_h * reset, h
        before = dh * z + r_h.T @ through
    else:
        reset_h = r_h.T @ d_h
        d_r = reset_h * h * _slope(g, f, r_sum)
        through, through_h = d_h, reset * h
        before = dh * z + reset * reset_h
    direct, behind = np.concatenate([d_z, d_r, d_h]), np.concatenate([d_z, d_r, through])
    _add(total, direct, behind, x, np.concatenate([np.outer(d_z, h), np.outer(d_r, h), np.outer(through, through_h)]))
    return before + r_z.T @ d_z + r_r.T @ d_r, dc, direct
