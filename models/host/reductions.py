"""Reductions over axes, running sums, the largest elements, and the softmax family.

Sums are NumPy's pairwise sums in the input's own type; float16 sums in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quatrefoil.models.host.shapes import settled_axes
from quatrefoil.models.host.table import Array, Node, Run, axes_of, axis_of, operator

Reduction = Callable[[Array, tuple[int, ...], bool], Array]

# np.add.reduce takes a bool for keepdims; its stubs know only literals
add_over: Callable[..., Array] = np.add.reduce


def _sum(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return add_over(x, axes, x.dtype, keepdims=keep)


def _mean(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    if x.dtype.kind == "f":
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        return add_over(x, axes, keepdims=keep) / x.dtype.type(count)
    return np.mean(x, axes, keepdims=keep).astype(x.dtype)


def _extreme(function: np.ufunc, floor: float) -> Reduction:
    def reduce(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
        if x.size:
            return function.reduce(x, axes, keepdims=keep)
        limits = None if x.dtype.kind in "fb" else np.iinfo(x.dtype)
        start = floor if limits is None else (limits.min if floor < 0 else limits.max)
        return function.reduce(
            x, axes, keepdims=keep, initial=x.dtype.type(start if x.dtype.kind != "b" else floor > 0)
        )

    return reduce


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    top = np.max(x, axes, keepdims=True, initial=-math.inf).astype(x.dtype)
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    total = np.log(_sum(np.exp(x - top), axes, True)) + top
    return total if keep else np.squeeze(total, axes)


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _extreme(np.maximum, -math.inf),
    "ReduceMin": _extreme(np.minimum, math.inf),
    "ReduceProd": lambda x, axes, keep: np.prod(x, axes, dtype=x.dtype, keepdims=keep),
    "ReduceL1": lambda x, axes, keep: _sum(np.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: np.sqrt(_sum(np.square(x), axes, keep)).astype(x.dtype, copy=False),
    "ReduceSumSquare": lambda x, axes, keep: _sum(np.square(x), axes, keep),
    "ReduceLogSum": lambda x, axes, keep: np.log(_sum(x, axes, keep)).astype(x.dtype, copy=False),
    "ReduceLogSumExp": _log_sum_exp,
}


@operator(*REDUCTIONS)
def build_reduction(node: Node) -> Run | None:
    function, keep = REDUCTIONS[node.op], bool(node.get("keepdims", 1))
    find, pass_through = settled_axes(node, 1), bool(node.get("noop_with_empty_axes", 0))

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        axes = find(inputs)
        if not axes:
            if pass_through:
                # reducing over no axes still applies the function: |x| for L1, x^2 for SumSquare
                return [function(x, (), True)]
            axes = tuple(range(x.ndim))
        axes = axes_of(axes, x.ndim, node.op)
        if x.dtype == np.float16:
            return [np.asarray(function(x.astype(np.float32), axes, keep)).astype(np.float16)]
        return [function(x, axes, keep)]

    return run


@operator("ArgMax", "ArgMin")
def build_arg(node: Node) -> Run | None:
    function = np.argmax if node.op == "ArgMax" else np.argmin
    axis, keep, last = node.get("axis", 0), bool(node.get("keepdims", 1)), bool(node.get("select_last_index", 0))

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        along = axis_of(axis, x.ndim, node.op)
        if last:
            place = x.shape[along] - 1 - function(np.flip(x, along), axis=along, keepdims=keep)
        else:
            place = function(x, axis=along, keepdims=keep)
        return [np.asarray(place, np.int64)]

    return run


@operator("TopK")
def build_top_k(node: Node) -> Run | None:
    """Equal elements come in the order of their indices."""
    axis, largest = node.get("axis", -1), bool(node.get("largest", 1))

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        count = node.get("k") if node.version < 10 else int(np.asarray(inputs[1]).reshape(-1)[0])
        along = axis_of(axis, x.ndim, node.op)
        if not 0 <= count <= x.shape[along]:
            raise node.error("k", count, f"axis {along} of x has {x.shape[along]} elements")
        if largest:
            # a stable ascending sort of the reversed axis, reversed again, keeps the lower index first
            order = x.shape[along] - 1 - np.flip(np.argsort(np.flip(x, along), along, kind="stable"), along)
        else:
            order = np.argsort(x, along, kind="stable")
        places = np.take(order, np.arange(count), along)
        return [np.take_along_axis(x, places, along), places.astype(np.int64, copy=False)]

    return run


@operator("CumSum")
def build_cumulative_sum(node: Node) -> Run | None:
    exclusive, reverse = bool(node.get("exclusive", 0)), bool(node.get("reverse", 0))

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        axis = axis_of(int(np.asarray(inputs[1]).reshape(-1)[0]), x.ndim, node.op)
        source = np.flip(x, axis) if reverse else x
        y = np.cumsum(source, axis, dtype=x.dtype)
        if exclusive:
            y = np.roll(y, 1, axis)
            y[tuple(slice(0, 1) if place == axis else slice(None) for place in range(x.ndim))] = 0
        return [np.flip(y, axis) if reverse else y]

    return run


def softmax(x: Array, axis: int) -> Array:
    """exp(x - max) / sum"""
    y = np.asarray(np.subtract(x, np.max(x, axis, keepdims=True, initial=-math.inf).astype(x.dtype, copy=False)))
    np.exp(y, out=y)
    return np.divide(y, np.sum(y, axis, keepdims=True), out=y)


def log_softmax(x: Array, axis: int) -> Array:
    y = np.asarray(np.subtract(x, np.max(x, axis, keepdims=True, initial=-math.inf).astype(x.dtype, copy=False)))
    return np.subtract(y, np.log(np.sum(np.exp(y), axis, keepdims=True)), out=y)


def hardmax(x: Array, axis: int) -> Array:
    """1 at the first of the largest elements, 0 elsewhere."""
    y = np.zeros_like(x)
    np.put_along_axis(y, np.expand_dims(np.argmax(x, axis), axis), x.dtype.type(1), axis)
    return y


SHORT = 32
"""NumPy reduces a short axis many times faster when it is the first one."""

SOFTMAX = {"Softmax": softmax, "LogSoftmax": log_softmax, "Hardmax": hardmax}


@operator(*SOFTMAX)
def build_softmax(node: Node) -> Run | None:
    """Along one axis from operator set 13; before, over everything from the axis on."""
    function, axis = SOFTMAX[node.op], node.get("axis", -1 if node.version >= 13 else 1)

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        if node.version >= 13:
            along = axis_of(axis, x.ndim, node.op)
            shaped = x
        else:
            first = axis + x.ndim if axis < 0 else axis
            if not 0 <= first <= x.ndim:
                raise node.error("axis", axis, f"it has to lie in {-x.ndim} to {x.ndim}")
            shaped, along = x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:])), 1
        if x.dtype == np.float16:
            return [function(shaped.astype(np.float32), along).astype(np.float16).reshape(x.shape)]
        if shaped.size and shaped.shape[along] <= SHORT and shaped.size > 16 * SHORT:
            first = np.ascontiguousarray(np.moveaxis(shaped, along, 0))
            return [np.ascontiguousarray(np.moveaxis(function(first, 0), 0, along)).reshape(x.shape)]
        return [function(shaped, along).reshape(x.shape)]

    return run


@operator("LpNormalization")
def build_lp_normalization(node: Node) -> Run | None:
    """x / ||x|| along an axis; where the norm is 0 the result is 0."""
    axis, power = node.get("axis", -1), node.get("p", 2)

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        axes = (axis_of(axis, x.ndim, node.op),)
        norm = REDUCTIONS["ReduceL1" if power == 1 else "ReduceL2"](x, axes, True)
        return [np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)]

    return run
