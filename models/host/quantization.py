"""Affine quantisation: 8- and 16-bit integers with a scale and a zero point, per tensor or along one axis.

    q = saturate(round_half_even(x / scale) + zero_point)        x = (q - zero_point) * scale

Blocked quantisation, 4-bit integers and float8 are left to onnx's reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from quatrefoil.models.host.shapes import tensor_dtype
from quatrefoil.models.host.table import Array, Node, Run, axis_of, given, operator


def along(values: Array, rank: int, axis: int, op: str) -> Array:
    """A vector of scales or zero points that runs along an axis; a single value stays one."""
    if values.size == 1:
        return values.reshape(())
    axis = axis_of(axis, rank, op)
    return values.reshape([-1 if position == axis else 1 for position in range(rank)])


def saturated(values: Array, dtype: np.dtype) -> Array:
    """Float values, already rounded, as integers of the type. ``values`` is overwritten."""
    low, high = limits(dtype, values.dtype)
    return values.clip(low, high, out=values).astype(dtype)


@lru_cache
def limits(dtype: np.dtype, kind: np.dtype) -> tuple[Any, Any]:
    """The least and the largest integer of a type, as numbers of a float type."""
    found = np.iinfo(dtype)
    return kind.type(found.min), kind.type(found.max)


def _per_tensor(node: Node) -> tuple[Any, Array | None] | None:
    """The one float32 scale and the one zero point of a node whose parameters never change; None for any other."""
    scale, zero = node.constant(1), node.constant(2)
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or (zero is None and node.has(2)):
        return None
    if zero is None:
        return scale.reshape(())[()], None
    small = zero.dtype.kind in "iu" and zero.dtype.isbuiltin == 1 and zero.dtype.itemsize <= 2
    return (scale.reshape(())[()], zero.reshape(())) if small and zero.size == 1 else None


def _quantize_per_tensor(scale: Any, zero: Array | None, wanted: np.dtype) -> Run:
    dtype = wanted if zero is None else zero.dtype
    shift = np.float32(0) if zero is None else np.float32(zero)
    low, high = limits(dtype, np.dtype(np.float32))

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        y = np.asarray(np.divide(x if x.dtype == np.float32 else x.astype(np.float32), scale))
        np.rint(y, out=y)
        if shift:
            y += shift
        return [y.clip(low, high, out=y).astype(dtype)]

    return run


def _dequantize_per_tensor(scale: Any, zero: Array | None) -> Run:
    shift = np.float32(0) if zero is None else np.float32(zero)

    def run(inputs: Sequence[Any]) -> list[Any]:
        y = inputs[0].astype(np.float32)
        if shift:
            y -= shift
        y *= scale
        return [y]

    return run


@operator("QuantizeLinear")
def build_quantize(node: Node) -> Run | None:
    if node.get("block_size", 0) or node.get("precision", 0):
        return None
    code, axis = node.get("output_dtype", 0), node.get("axis", 1)
    wanted = tensor_dtype(code) if code else np.dtype(np.uint8)
    if wanted.kind not in "iu" or wanted.isbuiltin != 1:
        return None
    settled = _per_tensor(node)
    if settled is not None:
        return _quantize_per_tensor(*settled, wanted)

    def run(inputs: Sequence[Any]) -> list[Any]:
        x, scale, zero = inputs[0], inputs[1], given(inputs, 2)
        if scale.dtype == np.float16:
            # so that saturation cannot meet float16's largest number
            scale, x = scale.astype(np.float32), x.astype(np.float32)
        wide = x if x.dtype.kind == "f" else x.astype(scale.dtype)
        y = np.asarray(np.divide(wide, along(scale, x.ndim, axis, node.op)))
        np.rint(y, out=y)
        if zero is None:
            return [saturated(y, wanted)]
        y += along(zero, x.ndim, axis, node.op).astype(y.dtype)
        return [saturated(y, zero.dtype)]

    return run


@operator("DequantizeLinear")
def build_dequantize(node: Node) -> Run | None:
    if node.get("block_size", 0):
        return None
    code, axis = node.get("output_dtype", 0), node.get("axis", 1)
    wanted = tensor_dtype(code) if code else None
    if wanted is not None and wanted.isbuiltin != 1:
        return None
    settled = _per_tensor(node)
    if settled is not None and wanted in (None, np.dtype(np.float32)):
        return _dequantize_per_tensor(*settled)

    def run(inputs: Sequence[Any]) -> list[Any]:
        q, scale, zero = inputs[0], inputs[1], given(inputs, 2)
        kind = scale.dtype if scale.dtype != np.float16 else np.dtype(np.float32)
        if zero is not None and q.dtype.itemsize > 2:
            y = np.subtract(q.astype(np.int64), along(zero, q.ndim, axis, node.op)).astype(kind)
        else:
            y = q.astype(kind)
            if zero is not None:
                y -= along(zero, q.ndim, axis, node.op).astype(kind)
        y = np.asarray(np.multiply(y, along(scale, q.ndim, axis, node.op)))
        return [y.astype(wanted or scale.dtype, copy=False)]

    return run


@operator("DynamicQuantizeLinear")
def build_dynamic_quantize(node: Node) -> Run | None:
    """To uint8, over the range of x widened to hold 0."""

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        low = np.minimum(np.min(x, initial=0), 0).astype(np.float32)
        high = np.maximum(np.max(x, initial=0), 0).astype(np.float32)
        scale = np.asarray((high - low) / np.float32(255))
        if scale == 0:
            return [np.zeros(x.shape, np.uint8), np.asarray(scale), np.zeros((), np.uint8)]
        zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
        y = np.rint(np.asarray(x / scale))
        y = np.asarray(y + zero.astype(np.float32))
        return [saturated(y, np.dtype(np.uint8)), scale, np.asarray(zero)]

    return run
