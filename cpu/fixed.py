"""The fixed-point kernels of the CPU, in order of priority.

What networks use becomes products of int16 pairs, or one product at a time in 32 bits; the rest runs one product at a
time in 64. Which of them may be used without losing a bit is settled here, from the formats and the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.numerics import TABLE_REACH, Fixed
from quatrefoil.ops import conv, pool, rnn
from quatrefoil.ops import fixed as semantics
from quatrefoil.ops.windows import Triple, Window
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run

Prepare = Callable[[Problem, Mapping[int, np.ndarray]], Run]

Format = tuple[int, int, int, int, int, int]
"""The members of a format, as C has them."""

Cast = tuple[int, Format]
"""Fraction bits to drop, and the format."""

CACHED_BYTES = 1 << 19
"""Images are laid out together up to this size: half of a usual second cache."""

SLACK = 64
"""Bytes behind what is laid out, which a pair at its end may read."""


def _cast(fraction: int, form: Fixed) -> Cast:
    return fraction - form.fraction, form.members


def _wraps(form: Fixed, bits: int) -> bool:
    """Whether the format is what is left in signed integers of so many bits, whatever was lost above them."""
    return form.overflow == "WRAP" and form.width <= bits - (not form.signed)


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """Sums of products, packed for src/fixed_products.h; the fields are those of FixedProducts."""

    kind: str
    lanewise: bool
    exact: bool
    wide_finish: bool
    groups: int
    rows: int
    channels: int
    offsets: np.ndarray
    weights: np.ndarray
    start: np.ndarray
    late: np.ndarray
    up: int
    product: Cast
    sum: Cast
    y: Cast
    relu: bool
    y_bytes: int


@dataclass(frozen=True, slots=True)
class Formats:
    """The formats of sums of products."""

    x: Fixed
    w: Fixed
    accumulator: Fixed
    y: Fixed

    @property
    def drop(self) -> int:
        """Fraction bits that a product has and the accumulator lacks."""
        return self.x.fraction + self.w.fraction - self.accumulator.fraction

    @property
    def short(self) -> bool:
        """Whether values and weights are int16."""
        return self.x.dtype == self.w.dtype == "int16"


def _kind(formats: Formats, w: np.ndarray, bias: np.ndarray, in_pairs: bool) -> tuple[str, bool, bool]:
    """How products are computed, whether they are exact, and whether the finish is wide: see Products.

    w: (rows, steps); bias: (rows) integers of the accumulator, both int64.
    """
    accumulator, up, fraction = formats.accumulator, max(-formats.drop, 0), formats.x.fraction + formats.w.fraction
    products = semantics.largest_sum(formats.x, w, accumulator.fraction, 0, accumulator)
    most = semantics.largest_sum(formats.x, w, fraction, bias, accumulator)
    inside = most <= min(accumulator.high, -accumulator.low)
    exact = formats.drop <= 0 and (accumulator.overflow == "WRAP" or inside)
    wraps = _wraps(accumulator, 32) and up < 32
    if not exact:
        narrow = wraps or (accumulator.overflow != "WRAP" and accumulator.width <= 31 - (not accumulator.signed))
        return ("short" if formats.short and narrow else "wide"), False, False
    if not formats.short or not (wraps or products < 2**31):
        return "wide", True, False
    kind = "pairs" if in_pairs else "short"
    return kind, True, not (wraps or (most < 2**31 and accumulator.signed))


def _products(
    formats: Formats, w: np.ndarray, bias: np.ndarray, offsets: np.ndarray, reuse: int, *,
    in_pairs: bool = True, lanewise: bool = False, relu: bool = False, kind: str | None = None, y_bytes: int,
) -> Products:  # fmt: skip
    """Packs w (groups, rows, products) and bias (groups, rows), integers of the accumulator, both int64.

    offsets: where the x of each product lies, without ``lanewise`` in steps of 1 where channels are neighbours.
    lanewise: the groups are single rows, of which as many as a vector has lanes become one. kind: one that is wanted.
    """
    groups, rows, count = w.shape
    channels = groups * rows
    order = semantics.products_order(count, reuse)
    w, offsets = w[:, :, order], offsets[order]
    found, exact, wide_finish = _kind(formats, w.reshape(channels, count), bias.reshape(-1), in_pairs and not lanewise)
    if kind == "wide":
        found, wide_finish = "wide", False
    lanes = instruction_set.lanes() // (2 if found == "wide" else 1)
    element = np.int64 if found == "wide" else np.int32
    if found == "pairs":
        w, offsets = _paired(w, offsets)
    elif found == "short":
        w = w & 0xFFFF
    if lanewise:
        w, bias, rows = w.reshape(1, channels, count), bias.reshape(1, channels), lanes
    bias = _blocked(bias[..., None], lanes, np.dtype(np.int64))
    nothing = np.zeros_like(bias)
    start, late = (nothing, bias) if exact else (bias, nothing)
    return Products(
        found, lanewise, exact, wide_finish, groups, rows, channels, np.ascontiguousarray(offsets, np.int64),
        _blocked(w, lanes, np.dtype(element)), start.astype(element),
        late.astype(np.int64 if wide_finish else element), min(max(-formats.drop, 0), 62) if exact else 0,
        _cast(formats.x.fraction + formats.w.fraction, formats.accumulator),
        _cast(formats.accumulator.fraction, formats.accumulator), _cast(formats.accumulator.fraction, formats.y),
        relu, y_bytes,
    )  # fmt: skip


def _paired(w: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights as pairs of int16 in an int32 for each two values of x that lie side by side, and where these begin.

    x lies in runs of one length; one that is odd ends with a pair whose second weight is 0.
    """
    breaks = np.flatnonzero(np.diff(offsets) != 1)
    run = int(breaks[0]) + 1 if breaks.size else len(offsets)
    split = w.reshape(*w.shape[:2], -1, run).astype(np.int16)
    split = np.ascontiguousarray(np.pad(split, ((0, 0), (0, 0), (0, 0), (0, run % 2))))
    return split.view(np.int32).reshape(*w.shape[:2], -1), offsets.reshape(-1, run)[:, ::2].reshape(-1)


def _blocked(values: np.ndarray, lanes: int, dtype: np.dtype) -> np.ndarray:
    """(groups, rows, steps) as (groups, blocks of rows, steps, lanes), rows filled up with 0."""
    groups, rows, steps = values.shape
    blocks = -(-rows // lanes)
    filled = np.zeros((groups, blocks * lanes, steps), dtype)
    filled[:, :rows] = values
    return np.ascontiguousarray(filled.reshape(groups, blocks, lanes, steps).swapaxes(2, 3))


def _formats(problem: Problem) -> Formats:
    names = ("x_format", "w_format", "accumulator", "y_format")
    return Formats(*(semantics.format_of(problem, name) for name in names))


def _bias(problem: Problem, parameters: Mapping[int, np.ndarray], count: int) -> np.ndarray:
    """fixed_conv's bias as integers of the accumulator, 0 where it has none."""
    if conv.BIAS not in parameters:
        return np.zeros(count, np.int64)
    fraction = semantics.format_of(problem, "bias_format").fraction
    return semantics.format_of(problem, "accumulator").cast(parameters[conv.BIAS], fraction)


def _convolution(depthwise: bool = False, kind: str | None = None) -> Prepare:
    """The prepare of fixed_conv. depthwise: lanes are channels that each have an x of their own."""

    def prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
        from quatrefoil.cpu import _fixed

        geometry, formats, y = conv.geometry(problem), _formats(problem), problem.outputs[0]
        window, count = geometry.window, geometry.in_per_group
        weights = parameters[conv.W].astype(np.int64).reshape(geometry.groups, geometry.out_per_group, count, -1)
        bias = _bias(problem, parameters, geometry.out_channels).reshape(geometry.groups, -1)
        reach = _reach(window)
        taps = np.zeros(1, np.int64)  # places between a window's first tap and each of them
        for axis in range(3):
            taps = (taps[:, None] * reach[axis] + np.arange(window.kernel[axis]) * window.dilations[axis]).reshape(-1)
        if depthwise:
            # which lanes there are depends on the kind, which does not depend on where x lies
            rows = weights.reshape(-1, 1, window.taps)
            products = _products(
                formats, rows, bias.reshape(-1, 1), taps, problem.integer("reuse"), lanewise=True,
                relu=_rectifies(problem), y_bytes=y.numpy_dtype.itemsize,
            )  # fmt: skip
            depth = products.rows
            products.offsets[:] *= depth
            groups = -(-products.channels // depth)
        else:
            depth, groups = count, geometry.groups
            offsets = (taps[:, None] * depth + np.arange(depth)).reshape(-1)
            products = _products(
                formats, weights.swapaxes(2, 3).reshape(*weights.shape[:2], -1), bias, offsets,
                problem.integer("reuse"), relu=_rectifies(problem), kind=kind, y_bytes=y.numpy_dtype.itemsize,
            )  # fmt: skip
        image_bytes = groups * reach[0] * reach[1] * reach[2] * depth * (2 if products.kind == "pairs" else 4)
        chunk = max(1, min(geometry.batch, CACHED_BYTES // max(image_bytes, 1)))
        run: Run = _fixed.Conv(
            instruction_set.index(), products, geometry.batch, geometry.groups * count, window, depth,
            geometry.out_per_group, reach, chunk, chunk * image_bytes + SLACK, problem.input(conv.X).numpy_dtype,
            y.shape, y.numpy_dtype,
        )  # fmt: skip
        return run

    return prepare


def _reach(window: Window) -> Triple:
    """What all places of a window cover of each axis of x, its padding among it."""
    deep, high, wide = (
        (window.output[axis] - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis] + 1
        for axis in range(3)
    )
    return deep, high, wide


def _rectifies(problem: Problem) -> bool:
    return any(name == "activation" for name, _ in problem.attributes)


FEW_EACH = 4
"""Output channels that an input channel may make for vectors across channels to be faster than a matrix product."""


def _accepts_depthwise(problem: Problem) -> Reject | None:
    geometry = conv.geometry(problem)
    if geometry.in_per_group > 1:
        return Reject(f"it takes one input channel a group, not {geometry.in_per_group}")
    if geometry.groups == 1 or geometry.out_per_group > FEW_EACH:
        return Reject(
            f"{geometry.groups} groups of {geometry.out_per_group} output channels are faster with one x for all lanes"
        )
    return None


def _accepts_pairs(problem: Problem) -> Reject | None:
    formats = _formats(problem)
    if not formats.short:
        return Reject(f"it multiplies int16, not {formats.x.dtype} by {formats.w.dtype}")
    if formats.drop > 0:
        return Reject(f"each product loses {formats.drop} bits before it is added")
    return None


def _accepts_short(problem: Problem) -> Reject | None:
    formats = _formats(problem)
    if not formats.short:
        return Reject(f"it multiplies int16, not {formats.x.dtype} by {formats.w.dtype}")
    if formats.accumulator.width > 32:
        return Reject(f"it adds in 32 bits, not in the {formats.accumulator.width} of {formats.accumulator}")
    return None


def _pool(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _fixed

    geometry, y = pool.geometry(problem), problem.outputs[0]
    x_format, y_format = (semantics.format_of(problem, name) for name in ("x_format", "y_format"))
    divisors, narrow, exact, total = None, True, True, x_format
    if problem.op == "fixed_average_pool":
        total = semantics.format_of(problem, "accumulator")
        divisors = np.ascontiguousarray(semantics.divisors(problem), np.int32)
        most = geometry.window.taps * max(x_format.high, -x_format.low) << (total.fraction - x_format.fraction)
        inside = most <= min(total.high, -total.low)
        exact = total.overflow == "WRAP" or inside
        narrow = _wraps(total, 32) or (most < 2**31 and total.signed)
    casts = (_cast(x_format.fraction, total), _cast(total.fraction, total), _cast(total.fraction, y_format))
    run: Run = _fixed.Pool(
        instruction_set.index(), geometry.planes, geometry.window, divisors, narrow, exact, casts,
        problem.input(0).numpy_dtype, y.shape, y.numpy_dtype,
    )  # fmt: skip
    return run


def _recurrent(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _fixed

    g = semantics.recurrent_geometry(problem)
    names = ("x_format", "w_format", "r_format", "accumulator", "y_format")
    x, w, r, accumulator, y = (semantics.format_of(problem, name) for name in names)
    reuse, kind = problem.integer("reuse"), problem.op.removeprefix("fixed_")
    rows = g.gates * g.hidden
    bias = np.zeros((g.directions, 2 * rows), np.int64)
    if rnn.B in parameters:
        bias = accumulator.cast(parameters[rnn.B], semantics.format_of(problem, "b_format").fraction)

    def sums(values: Fixed, form: Fixed, weights: np.ndarray, added: np.ndarray) -> Products:
        return _products(
            Formats(values, form, accumulator, accumulator), weights.astype(np.int64)[None], added[None],
            np.arange(weights.shape[1]), reuse, y_bytes=8,
        )  # fmt: skip

    split = kind == "gru" and not g.linear_before_reset
    apart = 2 * g.hidden if split else rows  # of R: the rows that take h itself
    weights_w, weights_r = parameters[rnn.W], parameters[rnn.R]
    directions = range(g.directions)
    tables = {
        name: np.ascontiguousarray(
            accumulator.cast(table, semantics.format_of(problem, "table_format").fraction), np.int32
        )
        for name, table in semantics.tables(problem).items()
    }
    size_bits = problem.integer("table_size").bit_length() - 1
    functions = [
        [
            (tables[name], (2 * TABLE_REACH[name]).bit_length() - 1, size_bits) if name in tables else (None, 0, 0)
            for name in names
        ]
        for names in g.activations
    ]
    run: Run = _fixed.Recurrent(
        instruction_set.index(),
        "gru_linear" if g.linear_before_reset else kind,
        g,
        [sums(x, w, weights_w[d], bias[d, :rows]) for d in directions],
        [sums(y, r, weights_r[d, :apart], bias[d, rows : rows + apart]) for d in directions],
        [sums(y, r, weights_r[d, apart:], bias[d, rows + apart :]) for d in directions] if split else [],
        functions, accumulator.fraction, accumulator.members, y.fraction, y.members,
        problem.input(rnn.X).numpy_dtype, problem.outputs[0].numpy_dtype,
    )  # fmt: skip
    return run


def _any(problem: Problem) -> Reject | None:
    return None


KERNELS: list[Kernel] = [
    Kernel(
        "fixed_conv_depthwise_nchw_any_simd", "fixed_conv", _accepts_depthwise, _convolution(depthwise=True),
        summary="vectors of channels that each have an x of their own",
    ),
    Kernel(
        "fixed_conv_pairs_nchw_i16_simd", "fixed_conv", _accepts_pairs, _convolution(),
        summary="exact products of int16 pairs, x laid out with its channels last; one product at a time where weights "
        "could leave the accumulator or 32 bits",
    ),
    Kernel(
        "fixed_conv_products_nchw_i16_simd", "fixed_conv", _accepts_short, _convolution(),
        summary="int16 products one at a time, each cast, in 32 bits; x laid out with its channels last",
    ),
    Kernel(
        "fixed_conv_general_nchw_any_simd", "fixed_conv", _any, _convolution(kind="wide"),
        summary="products one at a time, each cast, in 64 bits; x laid out with its channels last",
    ),
    *(
        Kernel(f"{op}_rows_nchw_any_simd", op, _any, _pool, summary="taps along the rows of y")
        for op in ("fixed_max_pool", "fixed_average_pool")
    ),
    *(
        Kernel(
            f"{op}_gates_tnc_any_simd", op, _any, _recurrent,
            summary="vectors of gates, the input's products for several steps at once, functions by table",
        )
        for op in ("fixed_rnn", "fixed_lstm", "fixed_gru")
    ),
]  # fmt: skip
