"""Operators that move, select or make values without computing: reshaping, slicing, gathering, padding, constants.

Most results are views of the input where NumPy can give one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from quatrefoil.models.host.table import Array, Node, Run, axes_of, axis_of, given, ints, operator


@operator("Identity")
def build_identity(node: Node) -> Run | None:
    return lambda inputs: [inputs[0]]


@operator("Dropout")
def build_dropout(node: Node) -> Run | None:
    """In inference everything passes. The mask, where it is wanted, is all true."""
    if node.version >= 12 and node.has(2):
        training = node.constant(2)
        if training is None or training.any():
            return None
    mask_type = bool if node.version >= 10 else None

    def run(inputs: Sequence[Any]) -> list[Any]:
        if not node.wants(1):
            return [inputs[0]]
        return [inputs[0], np.ones(inputs[0].shape, mask_type or inputs[0].dtype)]

    return run


@operator("Constant")
def build_constant(node: Node) -> Run | None:
    value = constant_value(node)
    return None if value is None else lambda inputs: [value]


def constant_value(node: Node) -> Array | None:
    """The array of a Constant node; None for forms that NumPy has no array for."""
    if "value" in node.attributes:
        return numpy_helper.to_array(node.attributes["value"])
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                        ("value_ints", np.int64)):  # fmt: skip
        if name in node.attributes:
            return np.array(node.attributes[name], dtype)
    return None


@operator("ConstantOfShape")
def build_constant_of_shape(node: Node) -> Run | None:
    value = node.get("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    if fill.size != 1:
        raise node.error("value", f"{fill.size} values", "give one")
    return lambda inputs: [np.full(ints(inputs[0]), fill.flat[0], fill.dtype)]


@operator("Range")
def build_range(node: Node) -> Run | None:
    def run(inputs: Sequence[Any]) -> list[Any]:
        start, limit, delta = (item.reshape(()) for item in inputs)
        if delta == 0:
            raise node.error("delta", 0, "give a step that is not 0")
        count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
        return [(start + np.arange(count).astype(start.dtype) * delta).astype(start.dtype, copy=False)]

    return run


@operator("Shape")
def build_shape(node: Node) -> Run | None:
    start, end = node.get("start", 0), node.get("end")
    return lambda inputs: [np.array(inputs[0].shape[start:end], np.int64)]


@operator("Size")
def build_size(node: Node) -> Run | None:
    return lambda inputs: [np.array(inputs[0].size, np.int64)]


@operator("Reshape")
def build_reshape(node: Node) -> Run | None:
    """0 copies the input's extent unless allowzero says that it means 0."""
    attribute, keep_zero = node.get("shape"), bool(node.get("allowzero", 0))

    def target(x: Array, shape: Array | Sequence[int]) -> tuple[int, ...]:
        wanted = ints(shape)
        if keep_zero or 0 not in wanted:
            return wanted
        if any(extent == 0 and position >= x.ndim for position, extent in enumerate(wanted)):
            raise node.error("shape", list(wanted), f"a 0 copies an axis that x, of shape {list(x.shape)}, has not")
        return tuple(x.shape[position] if extent == 0 else extent for position, extent in enumerate(wanted))

    if attribute is not None:
        return lambda inputs: [inputs[0].reshape(target(inputs[0], attribute))]
    fixed = node.constant(1)
    if fixed is not None and (keep_zero or 0 not in fixed):
        shape = ints(fixed)
        return lambda inputs: [inputs[0].reshape(shape)]
    return lambda inputs: [inputs[0].reshape(target(inputs[0], inputs[1]))]


@operator("Flatten")
def build_flatten(node: Node) -> Run | None:
    axis = node.get("axis", 1)

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        if not -x.ndim <= axis <= x.ndim:
            raise node.error("axis", axis, f"it has to lie in {-x.ndim} to {x.ndim}")
        first = axis + x.ndim if axis < 0 else axis
        return [x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))]

    return run


def settled_axes(node: Node, position: int) -> Callable[[Sequence[Any]], tuple[int, ...] | None]:
    """How a node's axes are found at run time: the attribute, the constant input, or the input."""
    attribute = node.get("axes")
    constant = node.constant(position)
    fixed = attribute if attribute is not None else constant
    if fixed is not None:
        axes = ints(fixed)
        return lambda inputs: axes
    if not node.has(position):
        return lambda inputs: None
    return lambda inputs: None if inputs[position] is None else ints(inputs[position])


@operator("Squeeze")
def build_squeeze(node: Node) -> Run | None:
    find = settled_axes(node, 1)

    def run(inputs: Sequence[Any]) -> list[Any]:
        axes = find(inputs)
        x = inputs[0]
        return [np.squeeze(x) if axes is None else np.squeeze(x, axes_of(axes, x.ndim, node.op))]

    return run


@operator("Unsqueeze")
def build_unsqueeze(node: Node) -> Run | None:
    find = settled_axes(node, 1)

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        return [x.reshape(_unsqueezed(x.shape, find(inputs) or (), node.op))]

    return run


@lru_cache(4096)
def _unsqueezed(shape: tuple[int, ...], axes: tuple[int, ...], op: str) -> tuple[int, ...]:
    longer = list(shape)
    for axis in sorted(axes_of(axes, len(shape) + len(axes), op)):
        longer.insert(axis, 1)
    return tuple(longer)


@operator("Transpose")
def build_transpose(node: Node) -> Run | None:
    perm = node.get("perm")
    return lambda inputs: [np.transpose(inputs[0], perm)]


@operator("Concat")
def build_concat(node: Node) -> Run | None:
    axis = node.get("axis", 1)
    return lambda inputs: [np.concatenate(inputs, axis_of(axis, inputs[0].ndim, node.op))]


@operator("Split")
def build_split(node: Node) -> Run | None:
    """Into the sizes that are given (attribute before operator set 13), else into equal parts, the last smaller."""
    axis, attribute, parts = node.get("axis", 0), node.get("split"), node.get("num_outputs", len(node.outputs))

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        along = axis_of(axis, x.ndim, node.op)
        sizes = attribute if attribute is not None else given(inputs, 1)
        if sizes is None:
            part = -(-x.shape[along] // parts)
            bounds = [min(part * count, x.shape[along]) for count in range(1, parts)]
        else:
            if int(np.sum(sizes)) != x.shape[along]:
                raise node.error("split", ints(sizes), f"it has to add up to the {x.shape[along]} of axis {along}")
            bounds = np.cumsum(sizes)[:-1].tolist()
        return list(np.split(x, bounds, along))

    return run


@operator("Slice")
def build_slice(node: Node) -> Run | None:
    if node.version < 10:
        starts, ends = ints(node.get("starts")), ints(node.get("ends"))
        axes = node.get("axes")
        return lambda inputs: [sliced(node, inputs[0], starts, ends, axes, None)]
    fixed = [node.constant(position) for position in (1, 2, 3, 4)]
    if all(value is not None or not node.has(position) for position, value in enumerate(fixed, 1)):
        begin, finish, along, step = (None if value is None else ints(value) for value in fixed)
        if begin is None or finish is None:
            raise node.error("starts and ends", "missing", "give both")
        return lambda inputs: [sliced(node, inputs[0], begin, finish, along, step)]

    def run(inputs: Sequence[Any]) -> list[Any]:
        axes, steps = given(inputs, 3), given(inputs, 4)
        return [sliced(node, inputs[0], ints(inputs[1]), ints(inputs[2]), None if axes is None else ints(axes),
                       None if steps is None else ints(steps))]  # fmt: skip

    return run


def sliced(
    node: Node, x: Array, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Array:  # fmt: skip
    """ONNX clamps like Python's slices, except that an end far below 0 means "through the first" when going down."""
    along = axes_of(tuple(range(len(starts)) if axes is None else axes), x.ndim, node.op)
    places: list[slice] = [slice(None)] * x.ndim
    for position, axis in enumerate(along):
        step = 1 if steps is None else steps[position]
        if step == 0:
            raise node.error("steps", list(steps or ()), "a step of 0 goes nowhere")
        end: int | None = ends[position]
        if step < 0 and ends[position] < -x.shape[axis]:
            end = None
        places[axis] = slice(starts[position], end, step)
    return x[tuple(places)]


@operator("Pad")
def build_pad(node: Node) -> Run | None:
    """Negative pads cut. Pads and value are attributes before operator set 11."""
    mode = node.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        return None
    fixed = node.get("pads") if node.version < 11 else node.constant(1)
    known = None if fixed is None else ints(fixed)

    def run(inputs: Sequence[Any]) -> list[Any]:
        value = node.get("value", 0.0) if node.version < 11 else given(inputs, 2)
        pads = ints(inputs[1]) if known is None else known
        return [padded(node, inputs[0], pads, mode, 0 if value is None else np.asarray(value).item(), given(inputs, 3))]

    return run


def padded(node: Node, x: Array, pads: Sequence[int], mode: str, value: Any, axes: Array | None) -> Array:
    along = tuple(range(x.ndim)) if axes is None else axes_of(ints(axes), x.ndim, node.op)
    if len(pads) != 2 * len(along):
        raise node.error("pads", list(pads), f"give {2 * len(along)} values, all beginnings and then all ends")
    if min(pads, default=0) < 0:
        cut: list[slice] = [slice(None)] * x.ndim
        for position, axis in enumerate(along):
            begin, end = pads[position], pads[position + len(along)]
            cut[axis] = slice(max(-begin, 0), x.shape[axis] - max(-end, 0))
        x = x[tuple(cut)]
    widths = [(0, 0)] * x.ndim
    for position, axis in enumerate(along):
        widths[axis] = (max(pads[position], 0), max(pads[position + len(along)], 0))
    if mode == "constant":
        y = np.full([before + n + behind for n, (before, behind) in zip(x.shape, widths)], value, x.dtype)
        y[tuple([slice(before, before + n) for n, (before, _) in zip(x.shape, widths)])] = x
        return y
    for axis, (before, behind) in enumerate(widths):
        if before or behind:
            if x.shape[axis] == 0:
                raise node.error("x", list(x.shape), f"an empty axis has nothing to fill its padding with ({mode})")
            x = x.take(border(x.shape[axis], before, behind, mode), axis)
    return x


@lru_cache(1024)
def border(length: int, before: int, behind: int, mode: str) -> Array:
    """For each place of a padded axis, the place of x that it repeats."""
    places = np.arange(-before, length + behind)
    if mode == "edge":
        return np.clip(places, 0, length - 1)
    if mode == "wrap" or length == 1:
        return places % length
    turned = places % (2 * (length - 1))  # there and back
    return np.minimum(turned, 2 * (length - 1) - turned)


@operator("Gather")
def build_gather(node: Node) -> Run | None:
    axis = node.get("axis", 0)
    return lambda inputs: [inputs[0].take(inputs[1], axis_of(axis, inputs[0].ndim, node.op))]


@operator("GatherElements")
def build_gather_elements(node: Node) -> Run | None:
    axis = node.get("axis", 0)

    def run(inputs: Sequence[Any]) -> list[Any]:
        x, indices = inputs
        along = axis_of(axis, x.ndim, node.op)
        inner = tuple(slice(n) if position != along else slice(None) for position, n in enumerate(indices.shape))
        return [np.take_along_axis(x[inner], np.where(indices < 0, indices + x.shape[along], indices), along)]

    return run


@operator("GatherND")
def build_gather_nd(node: Node) -> Run | None:
    if node.get("batch_dims", 0):
        return None
    return lambda inputs: [inputs[0][tuple(np.moveaxis(inputs[1], -1, 0))]]


@operator("Scatter", "ScatterElements")
def build_scatter_elements(node: Node) -> Run | None:
    if node.get("reduction", "none") != "none":
        return None
    axis = node.get("axis", 0)

    def run(inputs: Sequence[Any]) -> list[Any]:
        y, indices, updates = inputs[0].copy(), inputs[1], inputs[2]
        along = axis_of(axis, y.ndim, node.op)
        inner = y[tuple(slice(n) if place != along else slice(None) for place, n in enumerate(indices.shape))]
        np.put_along_axis(inner, np.where(indices < 0, indices + y.shape[along], indices), updates, along)
        return [y]

    return run


@operator("ScatterND")
def build_scatter_nd(node: Node) -> Run | None:
    if node.get("reduction", "none") != "none":
        return None

    def run(inputs: Sequence[Any]) -> list[Any]:
        y = inputs[0].copy()
        y[tuple(np.moveaxis(inputs[1], -1, 0))] = inputs[2]
        return [y]

    return run


@operator("Expand")
def build_expand(node: Node) -> Run | None:
    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        shape = np.broadcast_shapes(x.shape, ints(inputs[1]))
        return [x if shape == x.shape else np.ascontiguousarray(np.broadcast_to(x, shape))]

    return run


@operator("Tile")
def build_tile(node: Node) -> Run | None:
    def run(inputs: Sequence[Any]) -> list[Any]:
        x, repeats = inputs[0], ints(inputs[1])
        if len(repeats) != x.ndim or min(repeats, default=0) < 0:
            raise node.error("repeats", list(repeats), f"give {x.ndim} counts from 0, one for each axis of x")
        return [np.tile(x, repeats)]

    return run


@operator("NonZero")
def build_non_zero(node: Node) -> Run | None:
    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        return [np.array(np.nonzero(x.reshape(-1) if x.ndim == 0 else x), np.int64)[: x.ndim]]

    return run


@operator("OneHot")
def build_one_hot(node: Node) -> Run | None:
    axis = node.get("axis", -1)

    def run(inputs: Sequence[Any]) -> list[Any]:
        indices, depth, values = inputs[0], int(inputs[1].reshape(-1)[0]), inputs[2]
        along = axis_of(axis, indices.ndim + 1, node.op)
        hot = np.expand_dims(np.where(indices < 0, indices + depth, indices), along)
        places = np.arange(depth).reshape([depth if place == along else 1 for place in range(indices.ndim + 1)])
        return [np.where(hot == places, values[1], values[0])]

    return run


@operator("DepthToSpace", "SpaceToDepth")
def build_depth_and_space(node: Node) -> Run | None:
    size, column_first = node.get("blocksize"), node.get("mode", "DCR") == "CRD"

    def to_space(inputs: Sequence[Any]) -> list[Any]:
        n, c, h, w = inputs[0].shape
        split = (n, c // size**2, size, size, h, w) if column_first else (n, size, size, c // size**2, h, w)
        order = (0, 1, 4, 2, 5, 3) if column_first else (0, 3, 4, 1, 5, 2)
        return [inputs[0].reshape(split).transpose(order).reshape(n, c // size**2, h * size, w * size)]

    def to_depth(inputs: Sequence[Any]) -> list[Any]:
        n, c, h, w = inputs[0].shape
        parts = inputs[0].reshape(n, c, h // size, size, w // size, size)
        order = (0, 1, 3, 5, 2, 4) if column_first else (0, 3, 5, 1, 2, 4)
        return [parts.transpose(order).reshape(n, c * size**2, h // size, w // size)]

    return to_space if node.op == "DepthToSpace" else to_depth


def tensor_dtype(code: int) -> np.dtype:
    """The NumPy dtype of an ONNX element type."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
