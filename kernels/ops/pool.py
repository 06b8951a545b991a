"""Pooling: max_pool, average_pool, lp_pool and max_unpool, as ONNX's newest operator set defines them.

Global pooling is pooling with the whole plane as window, and is made canonical as such (``global_attributes``).

Canonical attributes
  max_pool       kernel_shape, strides, pads (begins then ends), dilations, ceil_mode, storage_order, and
                 with_indices 0 or 1
  average_pool   kernel_shape, strides, pads, dilations, ceil_mode, count_include_pad
  lp_pool        kernel_shape, strides, pads, dilations, ceil_mode, p
  max_unpool     indexed_shape (the shape that the indices count in) and output_shape, both with N and C

Settled here: auto_pad, and ceil_mode, which is kept as 1 only where it changes the output's extent; kernels have no
need to look at it.

max_pool: padding never wins. NaN wins over everything, the first one counts. Of equal values the first tap wins.
Indices count in the whole of x, (((n C + c) D + d) H + h) W + w, or with storage_order 1 with the spatial axes
reversed: ((n C + c) D H W) + (w H + h) D + d. A window on padding alone gives the lowest value and index -1.

average_pool: the divisor is the number of taps inside x; with count_include_pad the number of taps inside x and its
pads (what ceil_mode adds behind the pads never counts). A window with no tap that counts gives NaN (0/0).

lp_pool: (sum |x|^p)^(1/p) over the taps inside x.

max_unpool: zeros, then y[index] = x for each element in order; ``indexed_shape`` differs from y's shape only when
``output_shape`` was given, and then y's leading corner is what the indices count in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quatrefoil.errors import OperatorError
from quatrefoil.ops.spec import MAX_ELEMENTS, Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.ops.windows import (
    Triple,
    Window,
    flag_attribute,
    int_attribute,
    int_list,
    settle_forward,
    spatial_rank,
    triple,
    window,
)
from quatrefoil.problem import AttributeValue, Problem, Tensor, Tolerance, Work

FLOATS = ("float32", "float64", "float16")
MAX_DTYPES = (*FLOATS, "uint8", "int8")

Settled = tuple[tuple[str, AttributeValue], ...]

WINDOW_OPS = ("max_pool", "average_pool", "lp_pool")

SUM_TOLERANCES = {
    "float16": Tolerance(relative=2e-3, scaled=1e-3),
    "float32": Tolerance(relative=5e-6, scaled=1e-6),
    "float64": Tolerance(relative=1e-12, scaled=1e-14),
}


@dataclass(frozen=True, slots=True)
class PoolGeometry:
    """A pool with three spatial axes over ``planes`` = N * C planes."""

    planes: int
    window: Window
    pads_end: Triple
    """The padding behind the last element, which count_include_pad needs."""


def geometry(problem: Problem) -> PoolGeometry:
    """The geometry of max_pool, average_pool and lp_pool."""
    x, y = problem.input(0), problem.outputs[0]
    kernel = problem.ints("kernel_shape")
    return PoolGeometry(
        planes=x.shape[0] * x.shape[1],
        window=window(problem, kernel, x.shape[2:], y.shape[2:]),
        pads_end=triple(problem.ints("pads")[len(kernel) :], 0),
    )


@dataclass(frozen=True, slots=True)
class UnpoolGeometry:
    """max_unpool with three spatial axes: an index counts in (planes, *indexed), the value lands at the same
    coordinates in (planes, *output), output being at least as large on every axis."""

    planes: int
    input_size: int
    indexed: Triple
    output: Triple


def unpool_geometry(problem: Problem) -> UnpoolGeometry:
    x = problem.input(0)
    size = 1
    for extent in x.shape[2:]:
        size *= extent
    return UnpoolGeometry(
        planes=x.shape[0] * x.shape[1],
        input_size=size,
        indexed=triple(problem.ints("indexed_shape")[2:], 1),
        output=triple(problem.ints("output_shape")[2:], 1),
    )


def _x(op: str, inputs: Sequence[Tensor | None], count: int, dtypes: Sequence[str]) -> Tensor:
    if len(inputs) > count:
        raise OperatorError(op, "the number of inputs", len(inputs), f"it takes {count}")
    x = inputs[0] if inputs else None
    if x is None:
        raise OperatorError(op, "x", "missing", "give an array")
    spatial_rank(op, x)
    if x.dtype not in dtypes:
        raise OperatorError(op, "the dtype of x", x.dtype, f"it has to be {' or '.join(dtypes)}")
    return x


def window_attributes(op: str, x: Tensor, attributes: Attributes) -> tuple[Settled, tuple[int, ...]]:
    """The settled attributes of a window that pools x, and the shape of y."""
    rank = x.rank - 2
    kernel = int_list(op, attributes, "kernel_shape", rank, None, 1)
    if kernel is None:
        raise OperatorError(op, "kernel_shape", "missing", f"give {rank} whole numbers")
    ceil_mode = bool(flag_attribute(op, attributes, "ceil_mode"))
    strides, pads, dilations, extents = settle_forward(op, attributes, x.shape[2:], kernel, ceil_mode=ceil_mode)
    settled: Settled = (
        ("kernel_shape", kernel),
        ("strides", strides),
        ("pads", pads),
        ("dilations", dilations),
    )
    # Left out of the text form, ceil_mode would give two problems with different outputs the same text.
    _, _, _, floored = settle_forward(op, dict(settled), x.shape[2:], kernel)
    settled += (("ceil_mode", int(floored != extents)),)
    shape = (*x.shape[:2], *extents)
    if math.prod(shape) > MAX_ELEMENTS:
        raise OperatorError(op, "the output's shape", list(shape), f"it has to hold at most {MAX_ELEMENTS} values")
    return settled, shape


def _pooled(op: str, x: Tensor, attributes: Attributes, more: Settled, outputs: tuple[str, ...]) -> Problem:
    settled, shape = window_attributes(op, x, attributes)
    return Problem(op, (x,), tuple(Tensor(dtype, shape) for dtype in outputs), settled + more)


def canonical_max_pool(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "max_pool"
    x = _x(op, inputs, 1, MAX_DTYPES)
    if outputs not in (1, 2):
        raise OperatorError(op, "the number of outputs", outputs, "ask for 1 (values) or 2 (values and indices)")
    more = (("storage_order", flag_attribute(op, attributes, "storage_order")), ("with_indices", outputs - 1))
    return _pooled(op, x, attributes, more, (x.dtype, "int64")[:outputs])


def canonical_average_pool(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "average_pool"
    x = _x(op, inputs, 1, FLOATS)
    more = (("count_include_pad", flag_attribute(op, attributes, "count_include_pad")),)
    return _pooled(op, x, attributes, more, (x.dtype,))


def canonical_lp_pool(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "lp_pool"
    x = _x(op, inputs, 1, FLOATS)
    p = int_attribute(op, attributes, "p", 2)
    if p < 1:
        raise OperatorError(op, "p", p, "it has to be at least 1")
    return _pooled(op, x, attributes, (("p", p),), (x.dtype,))


def global_attributes(x: Tensor, attributes: Attributes) -> dict[str, Any]:
    """The attributes that make a pool global: its window is the whole plane."""
    if any(extent < 1 for extent in x.shape[2:]):
        raise OperatorError(
            "global pooling", "the shape of x", list(x.shape), "every spatial axis has to be at least 1"
        )
    return {**attributes, "kernel_shape": x.shape[2:]}


def canonical_max_unpool(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    """``attributes["output_shape"]`` holds the values of ONNX's optional third input, N and C included."""
    op = "max_unpool"
    x = _x(op, inputs, 2, MAX_DTYPES)
    indices = inputs[1] if len(inputs) > 1 else None
    if indices is None:
        raise OperatorError(op, "indices", "missing", "give the second output of max_pool")
    if indices.dtype != "int64" or indices.shape != x.shape:
        raise OperatorError(op, "indices", indices, f"it has to be int64 and of x's shape {list(x.shape)}")
    rank = x.rank - 2
    kernel = int_list(op, attributes, "kernel_shape", rank, None, 1)
    if kernel is None:
        raise OperatorError(op, "kernel_shape", "missing", f"give {rank} whole numbers")
    strides = int_list(op, attributes, "strides", rank, 1, 1)
    pads = int_list(op, attributes, "pads", 2 * rank, 0, 0)
    assert strides is not None and pads is not None
    extents = tuple(
        (x.shape[2 + axis] - 1) * strides[axis] - pads[axis] - pads[axis + rank] + kernel[axis] for axis in range(rank)
    )
    if any(extent < 1 for extent in extents):
        raise OperatorError(op, "the output's spatial shape", list(extents), "every axis has to be at least 1 long")
    indexed = (*x.shape[:2], *extents)
    wanted = int_list(op, attributes, "output_shape", x.rank, None, 0) or indexed
    if wanted[:2] != indexed[:2] or any(w < i for w, i in zip(wanted[2:], indexed[2:])):
        raise OperatorError(op, "output_shape", list(wanted), f"it has to hold {list(indexed)}")
    y = Tensor(x.dtype, wanted)
    if y.size > MAX_ELEMENTS:
        raise OperatorError(op, "output_shape", list(wanted), f"it has to hold at most {MAX_ELEMENTS} values")
    return Problem(op, (x, indices), (y,), (("indexed_shape", indexed), ("output_shape", wanted)))


def check_indices(problem: Problem, indices: Any) -> None:
    """Indices have to lie inside the shape that they count in."""
    size = math.prod(problem.ints("indexed_shape"))
    if math.prod(indices.shape) and (int(indices.min()) < 0 or int(indices.max()) >= size):
        raise OperatorError(
            problem.op,
            "indices",
            f"{int(indices.min())} to {int(indices.max())}",
            f"they have to lie in 0 to {size - 1}",
        )


def validate_max_unpool(problem: Problem, inputs: Sequence[Any]) -> None:
    check_indices(problem, inputs[1])


def work(problem: Problem) -> Work:
    """One operation a tap (counted as a multiply-accumulate), those on padding included."""
    if problem.op == "max_unpool":
        return Work(problem.input(0).size, tensor_bytes(problem))
    g = geometry(problem)
    return Work(g.planes * g.window.output_size * g.window.taps, tensor_bytes(problem))


def tolerance(problem: Problem) -> Tolerance:
    """Maxima are exact. Sums are short or blocked; powers and roots add a few units in the last place."""
    if problem.op in ("max_pool", "max_unpool"):
        return Tolerance()
    return SUM_TOLERANCES[problem.outputs[0].dtype]


def _window_cases(op: str, **always: object) -> list[Case]:
    def make(name: str, x: str, dtype: str = "float32", fill: Fill | None = None, **attributes: object) -> Case:
        fills = {} if fill is None else {0: fill}
        return Case(op, name, (Tensor.parse(f"{dtype}[{x}]"),), {**always, **attributes}, fills)

    return [
        make("2x2", "1x3x8x10", kernel_shape=[2, 2], strides=[2, 2]),
        make("2x2_wide", "1x2x6x150", kernel_shape=[2, 2], strides=[2, 2]),
        make("3x3_stride2_padded", "2x5x13x15", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("3x3_stride1", "1x4x9x70", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("5x5_stride1", "1x2x12x37", kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
        make("9x7_stride3", "1x2x21x23", kernel_shape=[9, 7], strides=[3, 3], pads=[4, 3, 4, 3]),
        make("13x13", "1x2x13x17", kernel_shape=[13, 13], pads=[6, 6, 6, 6]),
        make("asymmetric_pads", "1x2x7x8", kernel_shape=[3, 4], strides=[2, 3], pads=[0, 2, 2, 1]),
        make("ceil_mode", "1x2x8x9", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        make("ceil_mode_padded", "1x2x6x7", kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 1, 1], ceil_mode=1),
        make("ceil_window_in_padding", "1x1x2x2", kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1),
        make("dilated", "1x3x11x12", kernel_shape=[3, 3], dilations=[2, 3], strides=[2, 1]),
        make("dilated_padded", "1x2x9x9", kernel_shape=[2, 2], dilations=[3, 3], pads=[2, 2, 2, 2], ceil_mode=1),
        make("same_upper", "1x3x9x10", kernel_shape=[4, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        make("same_lower", "1x3x9x10", kernel_shape=[4, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
        make("global", "2x7x7x7", kernel_shape=[7, 7]),
        make("global_odd", "1x3x9x11", kernel_shape=[9, 11]),
        make("one_pixel", "1x5x1x1", kernel_shape=[1, 1]),
        make("1x1_stride2", "1x2x5x6", kernel_shape=[1, 1], strides=[2, 2]),
        make("1d", "2x3x31", kernel_shape=[3], strides=[2], pads=[1, 1]),
        make("1d_long", "1x2x300", kernel_shape=[7], pads=[3, 3]),
        make("3d", "1x2x6x7x8", kernel_shape=[2, 3, 2], strides=[2, 2, 2], pads=[0, 1, 1, 1, 1, 0]),
        make(
            "3d_dilated_ceil", "1x2x8x7x9", kernel_shape=[2, 2, 3], dilations=[2, 1, 2], strides=[3, 2, 2], ceil_mode=1
        ),
        make("3d_flat_padded_depth", "1x2x1x6x7", kernel_shape=[2, 2, 2], strides=[1, 2, 2], pads=[1, 0, 1, 1, 1, 0]),
        make("empty_batch", "0x3x8x8", kernel_shape=[2, 2]),
        make(
            "special_values", "1x3x9x40", fill=Fill("special"), kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 1]
        ),
        make("non_contiguous", "1x3x8x8", fill=Fill(contiguous=False), kernel_shape=[3, 3]),
        make("float64", "1x2x7x9", "float64", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("float16", "1x2x7x9", "float16", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]


def cases_max_pool() -> list[Case]:
    plain = _window_cases("max_pool")
    ties = Fill("integers", -2, 2)

    def make(name: str, x: str, fill: Fill | None = None, **attributes: object) -> Case:
        return Case("max_pool", name, (Tensor.parse(x),), attributes, {} if fill is None else {0: fill}, outputs=2)

    return [
        *plain,
        Case("max_pool", "uint8", (Tensor.parse("uint8[1x3x9x40]"),), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        Case("max_pool", "int8", (Tensor.parse("int8[1x3x9x9]"),), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        Case("max_pool", "negative_infinity", (Tensor.parse("float32[1x2x8x20]"),),
             {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {0: Fill("value", float("-inf"))}),
        make("indices", "float32[2x3x8x10]", kernel_shape=[2, 2], strides=[2, 2]),
        make("indices_ties", "float32[2x2x9x9]", ties, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("indices_special", "float32[1x2x9x9]", Fill("special"), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("indices_column_major", "float32[2x2x7x9]", kernel_shape=[3, 2], strides=[2, 2], storage_order=1),
        make("indices_3d_column_major", "float32[2x2x4x5x6]", ties, kernel_shape=[2, 2, 2], storage_order=1),
        make("indices_1d", "float32[2x3x17]", ties, kernel_shape=[4], strides=[3], pads=[1, 2]),
        make("indices_dilated_ceil", "float32[1x2x9x10]", ties, kernel_shape=[2, 3], dilations=[2, 2], strides=[2, 3],
             ceil_mode=1),
        make("indices_padding_alone", "float32[1x1x2x2]", kernel_shape=[2, 2], dilations=[4, 4], pads=[3, 3, 3, 3]),
        make("indices_uint8", "uint8[1x2x6x7]", kernel_shape=[2, 3], pads=[1, 1, 0, 1]),
        make("indices_float64", "float64[1x2x6x7]", kernel_shape=[2, 3]),
        make("indices_float16", "float16[1x2x6x7]", kernel_shape=[2, 3]),
        make("indices_minus_infinity", "float32[1x1x4x4]", Fill("value", float("-inf")), kernel_shape=[2, 2],
             pads=[1, 1, 0, 0]),
    ]  # fmt: skip


def cases_average_pool() -> list[Case]:
    include = [
        Case(case.op, f"{case.name}_include_pad", case.inputs, {**case.attributes, "count_include_pad": 1}, case.fills)
        for case in _window_cases("average_pool")
        if "pad" in case.name or "ceil" in case.name or "same" in case.name
    ]
    return [*_window_cases("average_pool"), *include]


def cases_lp_pool() -> list[Case]:
    others = [
        Case("lp_pool", f"p{p}", (Tensor.parse("float32[1x3x9x10]"),),
             {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "p": p})
        for p in (1, 3, 4)
    ]  # fmt: skip
    return [*_window_cases("lp_pool"), *others]


def cases_max_unpool() -> list[Case]:
    def make(name: str, x: str, indexed: int, **attributes: object) -> Case:
        shape = x.split("[")[1]
        return Case("max_unpool", name, (Tensor.parse(x), Tensor.parse(f"int64[{shape}")), attributes,
                    {1: Fill("indices", 0, indexed)})  # fmt: skip

    return [
        make("2x2", "float32[2x3x4x5]", 2 * 3 * 8 * 10, kernel_shape=[2, 2], strides=[2, 2]),
        make("padded", "float32[1x2x4x4]", 1 * 2 * 7 * 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("output_shape", "float32[1x1x2x2]", 16, kernel_shape=[2, 2], strides=[2, 2], output_shape=[1, 1, 5, 5]),
        make("1d", "float32[2x2x5]", 2 * 2 * 10, kernel_shape=[2], strides=[2]),
        make("3d", "float32[1x2x2x3x2]", 1 * 2 * 4 * 6 * 4, kernel_shape=[2, 2, 2], strides=[2, 2, 2]),
        make("float64", "float64[1x2x3x3]", 1 * 2 * 6 * 6, kernel_shape=[2, 2], strides=[2, 2]),
        make("float16", "float16[1x2x3x3]", 1 * 2 * 6 * 6, kernel_shape=[2, 2], strides=[2, 2]),
        make("uint8", "uint8[1x2x3x3]", 1 * 2 * 6 * 6, kernel_shape=[2, 2], strides=[2, 2]),
        make("empty_batch", "float32[0x2x3x3]", 0, kernel_shape=[2, 2], strides=[2, 2]),
    ]


SPECS = (
    OperatorSpec("max_pool", ("x",), canonical_max_pool, work, tolerance, cases_max_pool),
    OperatorSpec("average_pool", ("x",), canonical_average_pool, work, tolerance, cases_average_pool),
    OperatorSpec("lp_pool", ("x",), canonical_lp_pool, work, tolerance, cases_lp_pool),
    OperatorSpec(
        "max_unpool", ("x", "indices"), canonical_max_unpool, work, tolerance, cases_max_unpool,
        validate=validate_max_unpool,
    ),
)  # fmt: skip
