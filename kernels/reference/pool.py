"""The oracle of max_pool, average_pool, lp_pool and max_unpool: a loop over output places and taps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from quatrefoil.ops import pool as ops
from quatrefoil.problem import Problem
from quatrefoil.reference.conv import steps

Arrays = Sequence[np.ndarray | None]


def evaluate(problem: Problem, inputs: Arrays) -> tuple[np.ndarray, ...]:
    x = inputs[0]
    assert x is not None
    if problem.op == "max_unpool":
        assert inputs[1] is not None
        return (_unpooled(problem, x, inputs[1]),)
    g = ops.geometry(problem)
    planes = x.reshape(g.planes, *g.window.input)
    shape = problem.outputs[0].shape
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if problem.op == "max_pool":
            values, indices = _maxima(problem, g, planes)
            return (values.reshape(shape), indices.reshape(shape))[: len(problem.outputs)]
        if problem.op == "average_pool":
            sums = _sums(g, planes.astype(np.float64))
            return ((sums / tap_counts(g, problem.integer("count_include_pad"))).reshape(shape),)
        p = problem.integer("p")
        powers = _sums(g, np.abs(planes.astype(np.float64)) ** p)
        return ((powers ** (1.0 / p)).reshape(shape),)


def _maxima(problem: Problem, g: ops.PoolGeometry, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    values = np.full((g.planes, *g.window.output), lowest, x.dtype)
    indices = np.full(values.shape, -1, np.int64)
    depth, height, width = g.window.input
    for place, _, (d, h, w) in steps(g.window):
        tap, best, at = x[:, d, h, w], values[:, *place], indices[:, *place]
        wins = (at < 0) | (tap > best) | (np.isnan(tap) & ~np.isnan(best))
        flat = (w * height + h) * depth + d if problem.integer("storage_order") else (d * height + h) * width + w
        best[wins] = tap[wins]
        at[wins] = (np.arange(g.planes) * g.window.input_size + flat)[wins]
    return (values if x.dtype.kind != "f" else values.astype(np.float64)), indices


def _sums(g: ops.PoolGeometry, x: np.ndarray) -> np.ndarray:
    y = np.zeros((g.planes, *g.window.output))
    for place, _, source in steps(g.window):
        y[:, *place] += x[:, *source]
    return y


def tap_counts(g: ops.PoolGeometry, include: int) -> np.ndarray:
    """What average_pool divides by at each output place. include: its count_include_pad."""
    counts = np.zeros(g.window.output)
    window = g.window
    for place in product(*map(range, window.output)):
        for tap in product(*map(range, window.kernel)):
            counts[place] += all(
                (-p if include else 0) <= o * s + k * d - p < n + (end if include else 0)
                for o, s, k, d, p, n, end in zip(
                    place, window.strides, tap, window.dilations, window.pads, window.input, g.pads_end
                )
            )
    return counts


def _unpooled(problem: Problem, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    g = ops.unpool_geometry(problem)
    y = np.zeros((g.planes, *g.output), x.dtype)
    for value, index in zip(x.reshape(-1), indices.reshape(-1)):
        rest, w = divmod(int(index), g.indexed[2])
        rest, h = divmod(rest, g.indexed[1])
        plane, d = divmod(rest, g.indexed[0])
        y[plane, d, h, w] = value
    return (y if x.dtype.kind != "f" else y.astype(np.float64)).reshape(problem.outputs[0].shape)
