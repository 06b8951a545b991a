"""The oracle of the gradients of pooling: a loop over output places and taps, each giving its share to dx."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.ops import pool_gradient as ops
from quatrefoil.ops.pool import PoolGeometry
from quatrefoil.problem import Problem
from quatrefoil.reference.conv import steps
from quatrefoil.reference.pool import tap_counts

Arrays = Sequence[np.ndarray | None]


def evaluate(problem: Problem, inputs: Arrays) -> tuple[np.ndarray, ...]:
    dy, *more = (np.asarray(array) for array in inputs)
    dy = dy.astype(np.float64)
    shape = problem.outputs[0].shape
    if problem.op == "max_unpool_gradient":
        return (_gathered(problem, dy, more[0]),)
    g = ops.geometry(problem)
    dy = dy.reshape(g.planes, *g.window.output)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if problem.op == "average_pool_gradient":
            dx = _spread(g, dy / tap_counts(g, problem.integer("count_include_pad")))
        elif problem.op == "max_pool_gradient":
            dx = _given_to_winners(g, dy, more[0].reshape(g.planes, *g.window.input))
        else:
            x, y = more[0].reshape(g.planes, *g.window.input), more[1].reshape(dy.shape)
            dx = _through_norms(g, dy, x.astype(np.float64), y.astype(np.float64), problem.integer("p"))
    return (dx.reshape(shape),)


def _given_to_winners(g: PoolGeometry, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    best = np.full(dy.shape, -np.inf, x.dtype)
    winners = np.full(dy.shape, -1, np.int64)
    _, height, width = g.window.input
    for place, _, (d, h, w) in steps(g.window):
        tap, so_far, at = x[:, d, h, w], best[:, *place], winners[:, *place]
        wins = (at < 0) | (tap > so_far) | (np.isnan(tap) & ~np.isnan(so_far))
        so_far[wins] = tap[wins]
        at[wins] = (d * height + h) * width + w
    dx = np.zeros((g.planes, g.window.input_size))
    for plane in range(g.planes):
        for winner, gradient in zip(winners[plane].reshape(-1), dy[plane].reshape(-1)):
            if winner >= 0:
                dx[plane, winner] += gradient
    return dx


def _spread(g: PoolGeometry, shares: np.ndarray) -> np.ndarray:
    dx = np.zeros((g.planes, *g.window.input))
    for place, _, source in steps(g.window):
        dx[:, *source] += shares[:, *place]
    return dx


def _through_norms(g: PoolGeometry, dy: np.ndarray, x: np.ndarray, y: np.ndarray, p: int) -> np.ndarray:
    dx = np.zeros(x.shape)
    for place, _, source in steps(g.window):
        tap, norm = x[:, *source], y[:, *place]
        share = dy[:, *place] * np.sign(tap) * (np.abs(tap) / norm) ** (p - 1)
        dx[:, *source] += np.where((norm == 0) & (p > 1), 0.0, share)
    return dx


def _gathered(problem: Problem, dy: np.ndarray, indices: np.ndarray) -> np.ndarray:
    g = ops.unpool_geometry(problem)
    plane, *at = np.unravel_index(indices.reshape(-1), (g.planes, *g.indexed))
    values = dy.reshape(g.planes, *g.output)[plane, *at]
    last = {int(index): position for position, index in enumerate(indices.reshape(-1))}
    for position, index in enumerate(indices.reshape(-1)):
        if last[int(index)] != position:
            values[position] = 0.0
    return values.reshape(indices.shape)
