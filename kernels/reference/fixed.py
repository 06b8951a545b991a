"""The oracle of the fixed-point operators: integers, one addition and one cast at a time, as ops/fixed.py says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.numerics import TABLE_REACH, Fixed, table_index
from quatrefoil.ops import conv, pool, rnn
from quatrefoil.ops import fixed as ops
from quatrefoil.ops.windows import Triple, Window
from quatrefoil.problem import Problem
from quatrefoil.reference.conv import steps

Arrays = Sequence[np.ndarray | None]


def evaluate(problem: Problem, inputs: Arrays) -> tuple[np.ndarray, ...]:
    given = [None if array is None else np.asarray(array, np.int64) for array in inputs]
    compute = {
        "fixed_conv": _convolved,
        "fixed_max_pool": _maxima,
        "fixed_average_pool": _averages,
    }.get(problem.op, _recurrent)
    return tuple(
        array.reshape(tensor.shape).astype(tensor.dtype)
        for array, tensor in zip(compute(problem, given), problem.outputs)
    )


def _sum(products: np.ndarray, fraction: int, start: np.ndarray, accumulator: Fixed, reuse: int) -> np.ndarray:
    """start + the products along the last axis, each cast to the accumulator, and so is every sum."""
    total = start
    for i in ops.products_order(products.shape[-1], reuse):
        total = accumulator.cast(total + accumulator.cast(products[..., i], fraction), accumulator.fraction)
    return total


def _patches(x: np.ndarray, window: Window) -> np.ndarray:
    """x (..., D, H, W) to (..., output places, taps), zero where a tap falls on padding."""
    found = np.zeros((*x.shape[:-3], *window.output, *window.kernel), np.int64)
    for place, tap, source in steps(window):
        found[..., *place, *tap] = x[..., *source]
    return found.reshape(*x.shape[:-3], window.output_size, window.taps)


def _convolved(problem: Problem, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    g = conv.geometry(problem)
    x, w = inputs[0], inputs[1]
    assert x is not None and w is not None
    formats = {name: ops.format_of(problem, name) for name in ("x_format", "w_format", "accumulator", "y_format")}
    accumulator = formats["accumulator"]
    patches = _patches(x.reshape(g.batch, g.groups, g.in_per_group, *g.window.input), g.window)
    # (N, group, 1, place, tap and channel) times (1, group, m, 1, tap and channel)
    count = g.window.taps * g.in_per_group
    x_rows = patches.transpose(0, 1, 3, 4, 2).reshape(g.batch, g.groups, 1, g.window.output_size, count)
    w_rows = w.reshape(g.groups, g.out_per_group, 1, g.in_per_group, g.window.taps).swapaxes(-1, -2)
    products = x_rows * w_rows.reshape(g.groups, g.out_per_group, 1, count)
    start = np.zeros((g.groups, g.out_per_group, 1), np.int64)
    if problem.has(conv.BIAS):
        bias = inputs[conv.BIAS]
        assert bias is not None
        start = accumulator.cast(bias, ops.format_of(problem, "bias_format").fraction).reshape(start.shape)
    fraction = formats["x_format"].fraction + formats["w_format"].fraction
    total = _sum(products, fraction, start, accumulator, problem.integer("reuse"))
    y = formats["y_format"].cast(total, accumulator.fraction)
    rectified = any(name == "activation" for name, _ in problem.attributes)
    return [np.maximum(y, 0) if rectified else y]


def _maxima(problem: Problem, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    g = pool.geometry(problem)
    x = inputs[0]
    assert x is not None
    greatest = np.full((g.planes, *g.window.output), np.iinfo(np.int64).min)
    for place, _, source in steps(g.window):
        greatest[:, *place] = np.maximum(greatest[:, *place], x.reshape(g.planes, *g.window.input)[:, *source])
    return [ops.format_of(problem, "y_format").cast(greatest, ops.format_of(problem, "x_format").fraction)]


def _averages(problem: Problem, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    g = pool.geometry(problem)
    x = inputs[0]
    assert x is not None
    accumulator, y_format = ops.format_of(problem, "accumulator"), ops.format_of(problem, "y_format")
    taps = accumulator.cast(x, ops.format_of(problem, "x_format").fraction).reshape(g.planes, *g.window.input)
    total = np.zeros((g.planes, *g.window.output), np.int64)
    place: Triple
    for place, _, source in steps(g.window):
        total[:, *place] = accumulator.cast(total[:, *place] + taps[:, *source], accumulator.fraction)
    quotient = np.sign(total) * (np.abs(total) // ops.divisors(problem))
    return [y_format.cast(quotient, accumulator.fraction)]


def _recurrent(problem: Problem, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    g = ops.recurrent_geometry(problem)
    given = [*inputs, *[None] * (len(ops.RECURRENT_NAMES) - len(inputs))]
    x, lengths, initial_h, initial_c = (given[i] for i in (rnn.X, rnn.LENGTHS, rnn.INITIAL_H, rnn.INITIAL_C))
    assert x is not None
    y = np.zeros((g.steps, g.directions, g.batch, g.hidden), np.int64)
    y_h = np.zeros((g.directions, g.batch, g.hidden), np.int64)
    y_c = np.zeros_like(y_h)
    for direction, backwards in enumerate(g.reverse):
        cell = _Cell(problem, given, direction)
        for n in range(g.batch):
            h = np.zeros(g.hidden, np.int64) if initial_h is None else initial_h[direction, n]
            c = np.zeros(g.hidden, np.int64) if initial_c is None else initial_c[direction, n]
            length = g.steps if lengths is None else int(lengths[n])
            for t in range(length)[:: -1 if backwards else 1]:
                h, c = cell.step(x[t, n], h, c)
                y[t, direction, n] = h
            y_h[direction, n], y_c[direction, n] = h, c
    return [y, y_h, y_c][: len(problem.outputs)]


class _Cell:
    """One direction of a recurrent layer: its weights and formats, and one step."""

    def __init__(self, problem: Problem, inputs: Sequence[np.ndarray | None], direction: int) -> None:
        self.problem, self.geometry = problem, ops.recurrent_geometry(problem)
        names = ("x_format", "w_format", "r_format", "accumulator", "y_format", "table_format")
        self.formats = {name: ops.format_of(problem, name) for name in names}
        self.accumulator, self.y = self.formats["accumulator"], self.formats["y_format"]
        w, r, b = (inputs[i] for i in (rnn.W, rnn.R, rnn.B))
        assert w is not None and r is not None
        self.w, self.r = w[direction], r[direction]
        bias = np.zeros(2 * len(self.w), np.int64)
        if b is not None:
            bias = self.accumulator.cast(b[direction], ops.format_of(problem, "b_format").fraction)
        self.wb, self.rb = np.split(bias, 2)
        self.functions = self.geometry.activations[direction]
        self.tables = ops.tables(problem)

    def dense(self, values: np.ndarray, of: str, weight: np.ndarray, kind: str, bias: np.ndarray) -> np.ndarray:
        fraction = self.formats[of].fraction + self.formats[kind].fraction
        return _sum(weight * values, fraction, bias, self.accumulator, self.problem.integer("reuse"))

    def gate(self, values: np.ndarray) -> np.ndarray:
        """A sum or a product of the accumulator's fraction, in its range."""
        return self.accumulator.cast(values, self.accumulator.fraction)

    def function(self, name: str, values: np.ndarray, fraction: int) -> np.ndarray:
        """What a function gives, in the accumulator's format."""
        if name not in TABLE_REACH:
            return self.accumulator.cast(np.maximum(values, 0), fraction)
        table = self.tables[name]
        found = table[table_index(values, fraction, name, len(table))]
        return self.accumulator.cast(found, self.formats["table_format"].fraction)

    def blend(self, a: np.ndarray, b: np.ndarray, state: np.ndarray, gate: np.ndarray) -> np.ndarray:
        """a b + state gate, exact, as a new state; a, b and gate are the accumulator's, state is y's."""
        of_sum, of_state = self.accumulator.fraction, self.y.fraction
        wide = max(of_sum, of_state)
        total = (a * b << (wide - of_sum)) + (state * gate << (wide - of_state))
        return self.y.cast(total, wide + of_sum)

    def step(self, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fraction, kind = self.accumulator.fraction, self.problem.op
        a = self.dense(x, "x_format", self.w, "w_format", self.wb)
        if kind == "fixed_rnn":
            total = self.gate(a + self.dense(h, "y_format", self.r, "r_format", self.rb))
            return self.y.cast(self.function(self.functions[0], total, fraction), fraction), c
        if kind == "fixed_lstm":
            total = self.gate(a + self.dense(h, "y_format", self.r, "r_format", self.rb))
            i, o, f, z = np.split(total, 4)
            i, o, f = (self.function(self.functions[0], gate, fraction) for gate in (i, o, f))
            c = self.blend(self.function(self.functions[1], z, fraction), i, c, f)
            return self.y.cast(o * self.function(self.functions[2], c, self.y.fraction), 2 * fraction), c
        a_h, r_h, b_h = (np.split(array, 3)[2] for array in (a, self.r, self.rb))
        gates = slice(0, 2 * self.geometry.hidden)
        s = self.dense(h, "y_format", self.r[gates], "r_format", self.rb[gates])
        z, reset = np.split(self.function(self.functions[0], self.gate(a[gates] + s), fraction), 2)
        if self.geometry.linear_before_reset:
            t = self.accumulator.cast(reset * self.dense(h, "y_format", r_h, "r_format", b_h), 2 * fraction)
        else:
            kept = self.y.cast(reset * h, fraction + self.y.fraction)
            t = self.dense(kept, "y_format", r_h, "r_format", b_h)
        candidate = self.function(self.functions[1], self.gate(a_h + t), fraction)
        return self.blend(candidate, (1 << fraction) - z, h, z), c
