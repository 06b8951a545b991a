"""Resize and Upsample: nearest and linear interpolation, one axis after another.

Where an output element reads from is ONNX's coordinate_transformation_mode; indices and weights are computed in
float64 once for each shape. Cubic interpolation, antialiasing, cropping and kept aspect ratios are left to onnx's
reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quatrefoil.models.host.table import Array, Node, Run, axes_of, given, ints, operator

Coordinates = Callable[[Array, float, int], Array]
"""(output positions, scale, input extent) -> places in the input."""


def _half_pixel_symmetric(place: Array, scale: float, extent: int) -> Array:
    adjustment = len(place) / (scale * extent)
    return extent / 2 * (1 - adjustment) + (place + 0.5) / scale - 0.5


def _pytorch_half_pixel(place: Array, scale: float, extent: int) -> Array:
    return (place + 0.5) / scale - 0.5 if scale * extent > 1 else np.full_like(place, -0.5)


def _align_corners(place: Array, scale: float, extent: int) -> Array:
    # the exact, not the truncated output extent, as ONNX defines it
    return place * ((extent - 1) / (scale * extent - 1)) if scale * extent != 1 else np.zeros_like(place)


COORDINATES: dict[str, Coordinates] = {
    "half_pixel": lambda place, scale, extent: (place + 0.5) / scale - 0.5,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": lambda place, scale, extent: place / scale,
}

NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda place: np.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: np.floor(place + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def nearest(x: Array, axis: int, place: Array, rounding: Callable[[Array], Array]) -> Array:
    index = np.clip(rounding(place), 0, x.shape[axis] - 1).astype(np.int64)
    factor, rest = divmod(len(index), x.shape[axis])
    if rest == 0 and np.array_equal(index, np.arange(len(index)) // factor):
        return repeated(x, axis, factor)
    return np.take(x, index, axis)


def repeated(x: Array, axis: int, factor: int) -> Array:
    """Every element ``factor`` times in a row: one strided copy for each repetition, which np.repeat does not do."""
    y = np.empty((*x.shape[: axis + 1], factor, *x.shape[axis + 1 :]), x.dtype)
    repetitions = np.moveaxis(y, axis + 1, 0)
    for place in range(factor):
        repetitions[place] = x
    return y.reshape(*x.shape[:axis], x.shape[axis] * factor, *x.shape[axis + 1 :])


def linear(x: Array, axis: int, place: Array) -> Array:
    place = np.clip(place, 0, x.shape[axis] - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [-1 if position == axis else 1 for position in range(x.ndim)]
    kind = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
    weight = (place - low).astype(kind).reshape(shape)
    y = np.take(x, high, axis).astype(kind, copy=False)
    below = np.take(x, low, axis)
    y -= below
    y *= weight
    y += below
    return y


@operator("Resize", "Upsample")
def build_resize(node: Node) -> Run | None:
    mode = node.get("mode", "nearest")
    simple = node.op == "Upsample" or node.version < 11
    coordinates = "asymmetric" if simple else node.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.get("nearest_mode", "round_prefer_floor")
    special = node.get("antialias", 0) or node.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    if special or mode not in ("nearest", "linear") or coordinates not in COORDINATES or rounding not in NEAREST:
        return None
    transform, named = COORDINATES[coordinates], node.get("axes")

    def scales_and_sizes(inputs: Sequence[Any], rank: int) -> tuple[Sequence[float] | None, Sequence[int] | None]:
        if node.op == "Upsample":
            return [float(value) for value in (node.get("scales") if node.version < 9 else inputs[1])], None
        scales = inputs[1] if simple else given(inputs, 2)
        sizes = None if simple else given(inputs, 3)
        if sizes is not None and sizes.size:
            return None, ints(sizes)
        if scales is None or not scales.size:
            raise node.error("scales and sizes", "both missing", "give one of them")
        return [float(value) for value in scales], None

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = y = inputs[0]
        axes = tuple(range(x.ndim)) if named is None else axes_of(tuple(named), x.ndim, node.op)
        scales, sizes = scales_and_sizes(inputs, x.ndim)
        if len(sizes if sizes is not None else scales or ()) != len(axes):
            raise node.error("scales or sizes", scales if sizes is None else sizes, f"give {len(axes)}, one an axis")
        # the last axis first, while the array is small: its copies are the ones with strides
        for position, axis in sorted(enumerate(axes), key=lambda pair: -pair[1]):
            extent = x.shape[axis]
            scale = sizes[position] / extent if sizes is not None else scales[position] if scales is not None else 1.0
            output = sizes[position] if sizes is not None else math.floor(extent * scale)
            if scale <= 0:
                raise node.error("a scale", scale, "it has to be above 0")
            if scale == 1 and output == extent:
                continue
            place = transform(np.arange(output, dtype=np.float64), scale, extent)
            if mode == "linear":
                y = linear(y, axis, place)
            else:
                # before operator set 11 ONNX left the rounding open; this is onnxruntime's
                chosen = rounding if not simple else "floor" if scale >= 1 else "ceil"
                y = nearest(y, axis, place, NEAREST[chosen])
        return [y.astype(x.dtype, copy=False)]

    return run
