"""The convolution kernels of the CPU, in order of priority."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.numerics import requantize_multiplier
from quatrefoil.ops import conv as semantics
from quatrefoil.ops.activations import IDENTITY
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Kernel, Reject, Run, only_dtypes

Prepare = Callable[[Problem, Mapping[int, np.ndarray]], Run]


class PrepareLayouts(Protocol):
    """A prepare that also takes the layouts of x, and of y with the residual: whether channels are in blocks, which for 8-bit
    integers is one block, channels last."""

    def __call__(
        self, problem: Problem, parameters: Mapping[int, np.ndarray], x_blocked: bool = False, y_blocked: bool = False
    ) -> Run: ...


def _accepts_depthwise(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    geometry = semantics.geometry(problem)
    if geometry.in_per_group > 1:
        return Reject(f"it takes one input channel a group, not {geometry.in_per_group}")
    if geometry.out_per_group > 1:
        return Reject(f"it takes one output channel a group, and {geometry.out_per_group} are faster together")
    return None


def _without_tiles() -> Reject | None:
    if instruction_set.name() == "v4_amx":
        return None
    return Reject(
        f"it works on tile registers (AMX), which are not in the instruction set in use, {instruction_set.name()}"
    )


LEAST_WEIGHT = 2.0**-40  # of src/conv_tiles.cpp: parts of smaller ones would be denormal


def _accepts_bytes(problem: Problem) -> Reject | None:
    if instruction_set.name() in ("v4_vnni", "v4_amx"):
        return None
    return Reject(
        f"it needs products of bytes (VNNI), which are not in the instruction set in use, {instruction_set.name()}"
    )


EXACT_BELOW = {2: 1 << 29, 4: 1 << 25}
"""By the places of a tile along an axis, what src/conv_integer_winograd.cpp can get back exactly of a sum."""
FEWEST_TILES = 12  # that cost as much as fewer: reading the weights does (measured)
FEW_FOR_MINIMAL = 8  # channels below which the transforms cost as much as they save
WORTH_MINIMAL = 1.2  # the least gain that pays for the transforms


def _minimal_costs(window: Window, batch: int) -> dict[int, int]:
    """What products of 3x3 cost by the places of a tile along an axis; 0 is the plain product."""

    def places(tile: int) -> int:
        return batch * window.output[0] * -(-window.output[1] // tile) * -(-window.output[2] // tile)

    minimal = {tile: (tile + 2) ** 2 * max(places(tile), FEWEST_TILES) for tile in EXACT_BELOW}
    return {0: window.taps * max(places(1), FEWEST_TILES)} | minimal


def _accepts_vectors() -> Reject | None:
    """Of kernels that were timed on shorter vectors than AVX-512's alone."""
    if instruction_set.lanes() < 16:
        return None
    return Reject(f"it was not measured with the vectors of 16 of the instruction set in use, {instruction_set.name()}")


def _accepts_winograd_integer(problem: Problem) -> Reject | None:
    if (reject := _accepts_vectors()) is not None:
        return reject
    geometry = semantics.geometry(problem)
    window = geometry.window
    if window.kernel != (1, 3, 3) or window.strides[1:] != (1, 1) or window.dilations[1:] != (1, 1):
        return Reject("it takes kernels of 3x3 without stride and dilation alone")
    channels = min(geometry.in_per_group, geometry.out_per_group)
    if channels < FEW_FOR_MINIMAL:
        return Reject(f"vectors of channels stay empty with {channels} channels a group")
    costs = _minimal_costs(window, geometry.batch)
    gain = costs[0] / min(costs.values())
    if gain < WORTH_MINIMAL:
        return Reject(f"reading more weights for few places would cost what is saved: {gain:.1f} times less")
    return None


def _minimal(problem: Problem, geometry: semantics.ConvGeometry, weights: np.ndarray, x_zero: int) -> str:
    """The algorithm for 3x3: the tiles that cost least among those that can hold every sum of these centred weights."""
    limits = np.iinfo(problem.dtype)
    low, high = limits.min - x_zero, limits.max - x_zero  # of centred x
    rows = weights.reshape(len(weights), -1)
    positive, negative = (part.sum(axis=1, dtype=np.int64) for part in (np.maximum(rows, 0), np.minimum(rows, 0)))
    largest = max((positive * high + negative * low).max(), -(positive * low + negative * high).min(), 0)
    costs = _minimal_costs(geometry.window, geometry.batch)
    tile = min((tile for tile in costs if largest < EXACT_BELOW.get(tile, math.inf)), key=lambda tile: costs[tile])
    return f"conv_winograd{tile}_integer" if tile else "conv_gemm_integer"


FEW_FOR_BYTES = 16  # products of an output, of a group's channels where there are several: what lacks to 64 is zeros


def _accepts_integer_tiles(problem: Problem) -> Reject | None:
    if (lack := _without_tiles()) is not None:
        return lack
    geometry = semantics.geometry(problem)
    depth = geometry.in_per_group * (geometry.window.taps if geometry.groups == 1 else 1)
    if depth < FEW_FOR_BYTES:
        said = "products of an output" if geometry.groups == 1 else "channels a group"
        return Reject(f"steps of 64 bytes stay empty with {depth} {said}")
    return None


MOST_KERNEL_ROWS = 64  # of src/conv_depthwise_blocked.cpp


def _accepts_depthwise_blocked(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    geometry = semantics.geometry(problem)
    if geometry.in_per_group > 1 or geometry.out_per_group > 1:
        return Reject(
            f"it takes one input and one output channel a group, not {geometry.in_per_group} and {geometry.out_per_group}"
        )
    rows = geometry.window.kernel[0] * geometry.window.kernel[1]
    if rows > MOST_KERNEL_ROWS:
        return Reject(f"it keeps {MOST_KERNEL_ROWS} rows of a kernel at hand, and there are {rows}")
    return None


# Floats of the fewest rows of x that make a row of y; with more, a matrix product is the faster way (measured).
SHALLOW_FLOATS = 8192
SHALLOW_CHANNELS = 24
SHALLOW_COLUMNS = 32  # taps of a row; a longer row is read so often that a matrix product is faster


def _accepts_padded(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    geometry = semantics.geometry(problem)
    window = geometry.window
    if window.taps == 1:
        return Reject("a kernel of one tap reads no value twice, and it would copy them all")
    if geometry.in_per_group > SHALLOW_CHANNELS:
        return Reject(f"it takes up to {SHALLOW_CHANNELS} input channels a group, not {geometry.in_per_group}")
    if window.kernel[2] > SHALLOW_COLUMNS:
        return Reject(f"it takes kernels of up to {SHALLOW_COLUMNS} columns, not {window.kernel[2]}")
    lines = window.kernel[0] * ((window.kernel[1] - 1) * window.dilations[1] + 1)
    floats = geometry.in_per_group * lines * (window.input[2] + (window.kernel[2] - 1) * window.dilations[2])
    if floats > SHALLOW_FLOATS:
        return Reject(f"the rows of x that make a row of y have {floats} values, more than {SHALLOW_FLOATS}")
    return None


MOST_STREAMED = 8  # input channels of a group that src/conv_pointwise.cpp has instances for


def _accepts_pointwise(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    geometry = semantics.geometry(problem)
    window = geometry.window
    if window.taps > 1 or max(window.strides) > 1 or any(window.pads) or window.output != window.input:
        return Reject("it takes kernels of one tap that read x place by place")
    if not 1 <= geometry.in_per_group <= MOST_STREAMED:
        return Reject(f"it takes up to {MOST_STREAMED} input channels a group, not {geometry.in_per_group}")
    return _accepts_vectors()


def _accepts_blocked(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    geometry = semantics.geometry(problem)
    inputs, outputs, lanes = geometry.in_per_group, geometry.out_per_group, instruction_set.lanes()
    if min(inputs, outputs) < 8:
        return Reject(f"vectors of channels stay empty with {min(inputs, outputs)} channels a group")
    if geometry.groups > 1 and (inputs % lanes or outputs % lanes):
        return Reject(f"groups of {inputs} and {outputs} channels do not fill vectors of {lanes}")
    return None


# Where vectors of places on plain planes are faster than turning them into blocks of channels (measured on AVX2): a 1x1
# convolution with so many places, or with few weights; otherwise so few channels, or rows so long.
MANY_PLACES = 128
FEW_WEIGHTS = 4096
FEW_CHANNELS = 16
LONG_ROW = 512


def _accepts_gemm(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    if _accepts_blocked(problem) is not None:
        return None
    geometry = semantics.geometry(problem)
    window = geometry.window
    inputs, outputs = geometry.in_per_group, geometry.out_per_group
    if window.taps == 1:
        if window.output_size >= MANY_PLACES or (inputs * outputs <= FEW_WEIGHTS and geometry.batch == 1):
            return None
    elif (inputs <= FEW_CHANNELS and window.output_size >= MANY_PLACES) or window.output[2] >= LONG_ROW:
        return None
    return Reject("planes are so small that a product over blocks of channels is faster")


WINOGRAD_POINTS = 6  # along each axis of a tile
NEAR_BYTES = 1 << 20  # weights beyond these are not in the second-level cache
CACHED_BYTES = 16 << 20  # weights beyond these are not in a cache when a network comes to them again
# Operations that hide the way of one byte of weights from memory: a quarter of what a core does meanwhile.
OPERATIONS_PER_BYTE = 17


def _filters(kernel: int, stride: int, dilation: int, outputs: int, transposed: bool = False) -> tuple[int, int, int]:
    """How src/conv_winograd.cpp covers one axis: points of a tile, sets of taps, and tiles."""
    taps = -(-kernel // stride)
    size = 1 if taps == 1 else 2 if taps in (2, 4) else 5 if taps == 5 else 3
    points = 1 if size == 1 else WINOGRAD_POINTS
    phases = stride if transposed else 1 if kernel == 1 else dilation
    each = -(-outputs // phases)
    return (
        points,
        (1 if transposed else min(stride, kernel)) * -(-taps // size),
        phases * -(-each // (points - size + 1)),
    )


def _saves(
    problem: Problem, points: int, sources: int, tiles: int, weight_sets: int, multiplications: int
) -> Reject | None:
    """Whether minimal filters are faster than taps. multiplications: of an evaluation by taps, for each pair of channels;
    weight_sets: of transformed weights."""
    geometry = semantics.geometry(problem)
    inputs, outputs = geometry.in_per_group, geometry.out_per_group
    gain = multiplications / max(1, points * sources * tiles)
    if gain < 1 + 40 / (inputs + outputs):
        return Reject(
            f"it saves {gain:.1f} times the multiplications, which {inputs} and {outputs} channels do not make up for "
            "the transforms"
        )
    pairs = geometry.groups * inputs * outputs
    weights = 4 * points * sources * weight_sets * pairs
    if weights > CACHED_BYTES and weights * OPERATIONS_PER_BYTE > 2 * geometry.batch * pairs * multiplications:
        return Reject(f"{weights >> 20} MiB of transformed weights would come from memory for few outputs")
    return None


ENOUGH_TILES = 12  # fewer wait for weights
WORTH_WIDE = 1.5  # on vectors of 16, whose direct products are nearer to the peak


def _winograd_cover(window: Window) -> tuple[int, int, int]:
    """How src/conv_winograd.cpp covers a window: points of a tile, sets of taps, and tiles."""
    (points_high, sources_high, high), (points_wide, sources_wide, wide) = (
        _filters(*axis) for axis in list(zip(window.kernel, window.strides, window.dilations, window.output))[1:]
    )
    return points_high * points_wide, sources_high * sources_wide * window.kernel[0], window.output[0] * high * wide


def _winograd_whole(window: Window) -> bool:
    """Whether a plane's taps are one set of filters and not a sum of several."""
    return _winograd_cover(window)[1] == window.kernel[0]


def winograd_gain(window: Window) -> float:
    """How many times fewer multiplications minimal filters need than taps."""
    points, sources, tiles = _winograd_cover(window)
    return window.taps * window.output_size / max(1, points * sources * tiles)


def accepts_winograd(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    geometry = semantics.geometry(problem)
    window = geometry.window
    axes = list(zip(window.kernel, window.strides, window.dilations, window.output))
    if window.dilations[0] > 1 or any(stride > 1 and dilation > 1 for _, stride, dilation, _ in axes):
        return Reject("it takes dilation along rows and columns alone, and either stride or dilation")
    channels = (geometry.in_per_group, geometry.out_per_group)
    if min(channels) < 8:
        return Reject(f"vectors of channels stay empty with {min(channels)} channels a group")
    points, sources, tiles = _winograd_cover(window)
    if geometry.groups > 1 and (sources > 1 or max(window.dilations) > 1) and any(size % 16 for size in channels):
        return Reject("groups of channels that are not whole vectors cannot be brought into blocks")
    if instruction_set.lanes() == 16:
        gain = winograd_gain(window)
        if gain * min(1.0, geometry.batch * tiles / ENOUGH_TILES) < WORTH_WIDE:
            return Reject(
                f"{gain:.1f} times fewer multiplications, or few tiles, do not pay on vectors of 16 (measured)"
            )
    return _saves(problem, points, sources, tiles, 1, window.taps * window.output_size)


TILE = 16  # channels, and places, of a tile of src/conv_tiles.cpp; the depth of a step is twice that
FULL_TILES, WORTH_PLANES = 0.7, 0.85  # emptier ones are no faster than vectors; in a network (measured)
FEW_FOR_TILES = {False: 64, True: 32}  # channels below which moving x and y takes as long; with several taps
FEW_PRODUCTS = 8192  # for each place, likewise


def _full_tiles(problem: Problem) -> float:
    """Which share of what tiles multiply is not padding."""
    geometry = semantics.geometry(problem)
    window = geometry.window
    planes, places = geometry.batch * window.output[0], window.output[1] * window.output[2]
    if window.taps == 1:
        laid = -(-planes * places // TILE) * TILE
    else:  # rows follow one another with their padding
        gap = -(-(window.kernel[2] - 1) * window.dilations[2] // window.strides[2])
        laid = planes * -(-(window.output[1] * (window.output[2] + gap) - gap) // TILE) * TILE
    full = planes * places / max(1, laid)
    for channels, unit in ((geometry.in_per_group, 2 * TILE), (geometry.out_per_group, TILE)):
        full *= channels / max(unit, -(-channels // unit) * unit)
    return full


def _accepts_tiles(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    if (lack := _without_tiles()) is not None:
        return lack
    geometry = semantics.geometry(problem)
    inputs, outputs, taps = geometry.in_per_group, geometry.out_per_group, geometry.window.taps
    if min(inputs, outputs) < FEW_FOR_TILES[taps > 1] or inputs * outputs * taps < FEW_PRODUCTS:
        return Reject(f"{inputs} and {outputs} channels are so few that moving x and y takes as long as the products")
    if (full := _full_tiles(problem)) < FULL_TILES:
        return Reject(f"{full:.0%} of tiles would be filled, so that vectors are as fast")
    if taps > 1 and accepts_winograd(problem) is None and _winograd_whole(geometry.window):
        return Reject("minimal filters, which multiply less, are faster on vectors")
    return None


def _tiles_are_worth_planes(problem: Problem) -> bool:
    """Whether tiles make up for planes between neighbours that keep blocks (measured on whole networks)."""
    return semantics.geometry(problem).window.taps == 1 and _full_tiles(problem) >= WORTH_PLANES


def _accepts_transpose_winograd(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    geometry = semantics.geometry(problem)
    window = geometry.window  # which slides over y
    if window.kernel[0] > 1 or window.input[0] > 1 or max(window.dilations) > 1:
        return Reject("it takes planes without dilation")
    channels = (geometry.in_per_group, geometry.out_per_group)
    if min(channels) < 8 or (geometry.groups > 1 and any(size % 16 for size in channels)):
        return Reject(f"vectors of channels stay empty with {min(channels)} channels a group")
    (points_high, sources_high, high), (points_wide, sources_wide, wide) = (
        _filters(*axis, transposed=True)
        for axis in zip(window.kernel[1:], window.strides[1:], window.dilations[1:], window.input[1:])
    )
    # Images are taken one by one, and each reads all weights for its tiles. Beside that stand a convolution that takes images
    # together, or a product.
    sets = math.prod(window.strides)
    each = high * wide // sets
    weights = 4 * points_high * points_wide * sources_high * sources_wide * sets * math.prod(channels) * geometry.groups
    if each < ENOUGH_TILES and weights > NEAR_BYTES and (sets == 1 or instruction_set.lanes() == 16):
        return Reject(f"{each} tiles of an image wait for {weights >> 20} MiB of transformed weights (measured)")
    return _saves(
        problem,
        points_high * points_wide,
        sources_high * sources_wide,
        high * wide,
        math.prod(window.strides),
        window.taps * window.output_size,
    )


def _finite(weights: np.ndarray) -> bool:
    return bool(np.isfinite(weights).all())


def _splits(weights: np.ndarray) -> bool:
    """Whether weights are what src/conv_tiles.cpp takes."""
    most = max(weights.max(initial=0.0), -weights.min(initial=0.0))  # training asks in each step: without a copy
    return bool(np.isfinite(most) and (most == 0.0 or most >= LEAST_WEIGHT))


def _float(
    algorithm: str,
    general: str | None = None,
    suits: Callable[[np.ndarray], bool] = _finite,
    along_rows: bool = False,
) -> PrepareLayouts:
    """The prepare of a float32 kernel that runs ``algorithm`` of src/conv_kernels.h.

    Algorithms that read padding as zeros would make NaN of zero times an infinite weight; for such weights, and others
    that do not suit it, the ``general`` algorithm, which leaves padding out, runs instead.
    along_rows: its vectors are places of a row of y, so that short rows suit short vectors.
    """

    def prepare(
        problem: Problem, parameters: Mapping[int, np.ndarray], x_blocked: bool = False, y_blocked: bool = False
    ) -> Run:
        from quatrefoil.cpu import _conv

        y, weights, geometry = problem.outputs[0], parameters[semantics.W], semantics.geometry(problem)
        chosen = algorithm if general is None or suits(weights) else general
        return _conv.Run(
            chosen,
            instruction_set.index_for_rows(geometry.window.output[2]) if along_rows else instruction_set.index(),
            geometry,
            semantics.fused_activation(problem),
            y.shape,
            y.numpy_dtype,
            np.ascontiguousarray(weights),
            np.ascontiguousarray(parameters[semantics.BIAS]) if semantics.BIAS in parameters else None,
            x_blocked,
            y_blocked,
        )

    return prepare


def _double(algorithm: str) -> Prepare:
    """Sums in double natively; the activation in NumPy, since activation.h is single precision."""

    def prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
        from quatrefoil.cpu import _conv

        y, activation = problem.outputs[0], semantics.fused_activation(problem)
        sums: Run = _conv.Run(
            algorithm,
            instruction_set.index(),
            semantics.geometry(problem),
            IDENTITY,
            y.shape,
            y.numpy_dtype,
            np.ascontiguousarray(parameters[semantics.W]),
            np.ascontiguousarray(parameters[semantics.BIAS]) if semantics.BIAS in parameters else None,
        )
        if activation == IDENTITY:
            return sums
        return lambda inputs: (activation(sums(inputs)[0]),)

    return prepare


@lru_cache(maxsize=1024)
def _as_conv(problem: Problem) -> Problem | Reject:
    """The convolution of flipped weights that does what a conv_transpose of stride 1 does."""
    window = semantics.geometry(problem).window  # which slides over y
    rank = problem.input(semantics.X).rank - 2
    if max(window.strides) > 1:
        return Reject("a convolution does the same only where no stride spreads x")
    reach = [(taps - 1) * dilation for taps, dilation in zip(window.kernel, window.dilations)]
    before = [far - pad for far, pad in zip(reach, window.pads)]
    behind = [out - have - pad + far for out, have, pad, far in zip(window.input, window.output, before, reach)]
    if min(*before, *behind) < 0:
        return Reject(f"a convolution would need negative padding, {before[-rank:]} and {behind[-rank:]}")
    x, w, *more = problem.inputs
    assert x is not None and w is not None
    group = problem.integer("group")
    flipped = Tensor(w.dtype, (w.shape[1] * group, w.shape[0] // group, *w.shape[2:]))
    attributes = {name: problem[name] for name, _ in problem.attributes if name in ("dilations", "group", "activation")}
    return semantics.canonical_conv((x, flipped, *more), {**attributes, "pads": (*before[-rank:], *behind[-rank:])})


def _flipped_kernel(problem: Problem) -> Kernel | Reject:
    """The kernel of conv that runs in conv_transpose's place."""
    return _flipped_kernel_of(problem, instruction_set.name())


@lru_cache(maxsize=1024)
def _flipped_kernel_of(problem: Problem, instructions: str) -> Kernel | Reject:
    """``instructions`` is what the kernels' acceptance depends on beside the problem."""
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    as_conv = _as_conv(problem)
    if isinstance(as_conv, Reject):
        return as_conv
    for kernel in KERNELS:
        if kernel.op == "conv" and not kernel.id.startswith("conv_direct") and kernel.accepts(as_conv) is None:
            return kernel
    return Reject("only direct convolution takes it, which is slower than products of phases")


def _accepts_flipped(problem: Problem) -> Reject | None:
    kernel = _flipped_kernel(problem)
    return kernel if isinstance(kernel, Reject) else None


def _prepare_flipped(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _conv

    kernel, as_conv = _flipped_kernel(problem), _as_conv(problem)
    assert isinstance(kernel, Kernel) and isinstance(as_conv, Problem)
    weights = _conv.flipped(np.ascontiguousarray(parameters[semantics.W]), problem.integer("group"))
    return kernel.prepare(as_conv, {**parameters, semantics.W: weights})


MOST_PHASES = 8  # of src/conv_transpose_depthwise.cpp


def depthwise_plane(problem: Problem, geometry: semantics.ConvGeometry) -> Reject | None:
    """What kernels take that go over one plane with one filter; the window's own limits come on top."""
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    if geometry.in_per_group > 1 or geometry.out_per_group > 1:
        return Reject(
            f"it takes one input and one output channel a group, not {geometry.in_per_group} and {geometry.out_per_group}"
        )
    window = geometry.window
    if window.kernel[0] > 1 or window.input[0] > 1 or window.output[0] > 1:
        return Reject("it takes planes and rows, not volumes")
    return None


def _accepts_transpose_depthwise(problem: Problem) -> Reject | None:
    geometry = semantics.geometry(problem)
    reject, window = depthwise_plane(problem, geometry), geometry.window
    if reject is not None:
        return reject
    if max(window.strides) > MOST_PHASES:
        return Reject(f"it takes strides of up to {MOST_PHASES}, not {max(window.strides)}")
    return None


def _zero_point(parameters: Mapping[int, np.ndarray], position: int) -> np.ndarray:
    """A zero point as int16 values, one or one for each output channel; 0 where absent."""
    return parameters[position].astype(np.int16).reshape(-1) if position in parameters else np.zeros(1, np.int16)


def _centred_weights(weights: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """int16 weights with their zero points taken off: they lie in -255 to 255."""
    return np.ascontiguousarray(weights.astype(np.int16) - zero_point.reshape(-1, *(1,) * (weights.ndim - 1)))


def _depthwise_integer(problem: Problem) -> Reject | None:
    geometry = semantics.geometry(problem)
    if geometry.in_per_group > 1:
        return Reject(f"it takes one input channel a group, not {geometry.in_per_group}")
    if geometry.out_per_group > 4:
        return Reject(
            f"one input channel makes {geometry.out_per_group} output channels, which a matrix product does faster"
        )
    return None


ON_BYTES = {
    "conv_tiles_integer": "conv_gemm_integer",
    "conv_planes_tiles_integer": "conv_gemm_integer",
    "conv_bytes_integer": "conv_gemm_integer",
    "conv_channels_bytes_integer": "conv_channels_integer",
}
"""Algorithms that multiply bytes, and what computes with weights that are none."""
BYTES = (-128, 127)


def _on_channels(algorithm: str, geometry: semantics.ConvGeometry) -> str:
    """The algorithm in place of one that reads and writes planes alone."""
    bytes_multiply = instruction_set.name() in ("v4_vnni", "v4_amx")
    if algorithm != "conv_depthwise_integer":
        return algorithm
    if geometry.out_per_group > 1:
        return "conv_bytes_integer" if bytes_multiply else "conv_gemm_integer"
    return "conv_channels_bytes_integer" if bytes_multiply else "conv_channels_integer"


def _on_planes(algorithm: str, geometry: semantics.ConvGeometry) -> str:
    """The algorithm from planes to planes: one tap is read only once, which does not pay for a transposition."""
    single = geometry.window.taps == 1 and geometry.in_per_group >= FEW_FOR_BYTES
    return "conv_planes_tiles_integer" if algorithm == "conv_tiles_integer" and single else algorithm


def _for_bytes(
    algorithm: str, problem: Problem, weights: np.ndarray, bias: np.ndarray | None, x_zero: int
) -> tuple[str, np.ndarray | None]:
    """The algorithm and the bias for these centred weights: algorithms on bytes take weights that are bytes, and x with its
    zero point, whose part of the sums is taken off with the bias."""
    if algorithm not in ON_BYTES:
        return algorithm, bias
    if weights.size and (weights.min() < BYTES[0] or weights.max() > BYTES[1]):
        return ON_BYTES[algorithm], bias
    # vectors multiply unsigned bytes of x, to which signed ones are brought
    zero = x_zero + (128 if problem.dtype == "int8" and algorithm != "conv_tiles_integer" else 0)
    sums = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.int64)
    total = (0 if bias is None else bias.astype(np.int64)) - zero * sums
    return algorithm, total.astype(np.int32)  # wraps, as sums do


def _integers(algorithm: str) -> PrepareLayouts:
    """The prepare of conv_integer, whose y are int32 sums, and of qlinear_conv, whose sums are requantised by one multiplier
    for each output channel."""

    def prepare(
        problem: Problem, parameters: Mapping[int, np.ndarray], x_blocked: bool = False, y_blocked: bool = False
    ) -> Run:
        from quatrefoil.cpu import _conv

        y, geometry, quantized = problem.outputs[0], semantics.geometry(problem), problem.op == "qlinear_conv"
        multipliers, bias, y_zero = None, None, 0
        if quantized:
            scales = (parameters[at] for at in (semantics.Q_X_SCALE, semantics.Q_W_SCALE, semantics.Q_Y_SCALE))
            multipliers = np.broadcast_to(requantize_multiplier(*scales), (geometry.out_channels,))
            bias, y_zero = parameters.get(semantics.Q_BIAS), int(_zero_point(parameters, semantics.Q_Y_ZERO)[0])
        w, w_zero, x_zero_at = (
            (semantics.Q_W, semantics.Q_W_ZERO, semantics.Q_X_ZERO)
            if quantized
            else (semantics.W, semantics.W_ZERO_POINT, semantics.X_ZERO_POINT)
        )
        weights = _centred_weights(parameters[w], _zero_point(parameters, w_zero))
        x_zero = int(_zero_point(parameters, x_zero_at)[0])
        if algorithm == "conv_winograd_integer":
            suitable = _minimal(problem, geometry, weights, x_zero) if weights.size else "conv_gemm_integer"
        else:
            suitable = _on_channels(algorithm, geometry) if x_blocked or y_blocked else _on_planes(algorithm, geometry)
        chosen, bias = _for_bytes(suitable, problem, weights, bias, x_zero)
        return _conv.IntegerRun(
            chosen,
            instruction_set.index(),
            geometry,
            y.shape,
            y.numpy_dtype,
            weights,
            None if bias is None else np.ascontiguousarray(bias),
            problem.dtype == "int8",
            x_zero,
            None if multipliers is None else np.ascontiguousarray(multipliers),
            y_zero,
            x_blocked,
            y_blocked,
        )

    return prepare


_DEPTHWISE = _float("conv_depthwise_blocked_f32")
_WINOGRAD = _float("conv_winograd_f32")
_BLOCKED = _float("conv_blocked_f32")
_DEPTHWISE_INTEGER = _integers("conv_depthwise_integer")
_TILES_INTEGER = _integers("conv_tiles_integer")
_BYTES_INTEGER = _integers("conv_bytes_integer")
_WINOGRAD_INTEGER = _integers("conv_winograd_integer")
_GEMM_INTEGER = _integers("conv_gemm_integer")
_DIRECT_INTEGER = _integers("conv_direct_integer")

KERNELS: list[Kernel] = [
    Kernel(
        "conv_depthwise_nchw_f32_simd",
        "conv",
        _accepts_depthwise,
        _float("conv_depthwise_f32", "conv_direct_f32", along_rows=True),
        version=6,
        summary="3x3 down the columns or along the rows of x itself, others in tiles of padded rows, short rows in short "
        "vectors; direct taps for infinite weights",
    ),
    Kernel(
        "conv_depthwise_nchwc_f32_simd",
        "conv",
        _accepts_depthwise_blocked,
        _DEPTHWISE,
        version=2,
        summary="a vector of channels for each pixel, a multiply-add for each tap",
        blocked=_DEPTHWISE,
    ),
    Kernel(
        "conv_tiles_nchw_f32_amx",
        "conv",
        _accepts_tiles,
        _float("conv_tiles_f32", "conv_direct_f32", _splits),
        version=2,
        summary="products of bfloat16 parts on tile registers, six for one of float32; direct taps for infinite or tiny "
        "weights and outputs that are not finite",
        on_planes=_tiles_are_worth_planes,
        beyond="tile registers multiply bfloat16 values sixteen times as fast",
    ),
    Kernel(
        "conv_winograd_nchwc_f32_simd",
        "conv",
        accepts_winograd,
        _WINOGRAD,
        version=3,
        summary="minimal filtering on six points along rows and columns, longer, strided and dilated kernels as sums of "
        "it; direct taps for outputs that are not finite",
        blocked=_WINOGRAD,
        beyond="minimal filters multiply less",
    ),
    Kernel(
        "conv_pointwise_nchw_f32_simd",
        "conv",
        _accepts_pointwise,
        _float("conv_pointwise_f32"),
        summary="1x1 of few input channels: weights in registers, streams of x into streams of y",
    ),
    Kernel(
        "conv_padded_nchw_f32_simd",
        "conv",
        _accepts_padded,
        _float("conv_padded_f32", "conv_direct_f32"),
        summary="few input channels: rows padded in the cache, taps by a table; direct taps for infinite weights",
    ),
    Kernel(
        "conv_gemm_nchw_f32_simd",
        "conv",
        _accepts_gemm,
        _float("conv_gemm_f32", "conv_direct_f32"),
        version=2,
        summary="implicit matrix product on plain planes, panels packed in the cache; direct taps for infinite weights",
    ),
    Kernel(
        "conv_blocked_nchwc_f32_simd",
        "conv",
        _accepts_blocked,
        _BLOCKED,
        summary="implicit matrix product over blocks of channels; direct taps for infinite weights",
        blocked=_BLOCKED,
    ),
    Kernel(
        "conv_direct_nchw_f32_simd",
        "conv",
        only_dtypes("float32"),
        _float("conv_direct_f32"),
        summary="the definition, row by row",
    ),
    Kernel(
        "conv_direct_nchw_f64_simd",
        "conv",
        only_dtypes("float64"),
        _double("conv_direct_f64"),
        summary="the definition, row by row",
    ),
    Kernel(
        "conv_transpose_winograd_nchw_f32_simd",
        "conv_transpose",
        _accepts_transpose_winograd,
        _float("conv_transpose_winograd_f32"),
        summary="minimal filtering of each phase of the stride; direct taps for outputs that are not finite",
        beyond="minimal filters multiply less",
    ),
    Kernel(
        "conv_transpose_flipped_any_f32_simd",
        "conv_transpose",
        _accepts_flipped,
        _prepare_flipped,
        summary="stride 1: the convolution of flipped weights, by the first of its kernels that takes it",
    ),
    Kernel(
        "conv_transpose_depthwise_nchw_f32_simd",
        "conv_transpose",
        _accepts_transpose_depthwise,
        _float("conv_transpose_depthwise_f32", "conv_transpose_direct_f32"),
        summary="the taps of each phase of the stride along a row, interleaved; direct taps for infinite weights",
    ),
    Kernel(
        "conv_transpose_gemm_nchw_f32_simd",
        "conv_transpose",
        only_dtypes("float32"),
        _float("conv_transpose_gemm_f32", "conv_transpose_direct_f32"),
        version=3,
        summary="a matrix product for each phase of the stride, interleaved; direct taps for infinite weights",
    ),
    Kernel(
        "conv_transpose_direct_nchw_f32_simd",
        "conv_transpose",
        only_dtypes("float32"),
        _float("conv_transpose_direct_f32"),
        summary="the definition, row by row",
    ),
    Kernel(
        "conv_transpose_direct_nchw_f64_simd",
        "conv_transpose",
        only_dtypes("float64"),
        _double("conv_transpose_direct_f64"),
        summary="the definition, row by row",
    ),
    Kernel(
        "conv_integer_depthwise_nchw_i8_simd",
        "conv_integer",
        _depthwise_integer,
        _DEPTHWISE_INTEGER,
        version=5,
        summary="planes: rows laid out as int16 with their padding, products of pairs of neighbours; channels last: vectors of "
        "channels, two or four taps a product; exact",
        blocked=_DEPTHWISE_INTEGER,
    ),
    Kernel(
        "conv_integer_tiles_nchw_i8_amx",
        "conv_integer",
        _accepts_integer_tiles,
        _TILES_INTEGER,
        version=2,
        summary="products of bytes on tile registers, x with its channels last, as it lies or laid out so, exact; int16 pairs for "
        "weights that are no bytes without their zero point",
        blocked=_TILES_INTEGER,
    ),
    Kernel(
        "conv_integer_gemm_nchw_i8_vnni",
        "conv_integer",
        _accepts_bytes,
        _BYTES_INTEGER,
        version=2,
        summary="matrix product of four bytes at a time that reads x laid out with its channels last, exact; int16 pairs "
        "for weights that are no bytes without their zero point",
        blocked=_BYTES_INTEGER,
    ),
    Kernel(
        "conv_integer_winograd_nchw_i8_simd",
        "conv_integer",
        _accepts_winograd_integer,
        _WINOGRAD_INTEGER,
        summary="minimal filtering on four or six points an axis in whole numbers, products of int16 pairs, exact; the plain "
        "product for sums too large to get back",
        blocked=_WINOGRAD_INTEGER,
        beyond="minimal filters multiply less",
    ),
    Kernel(
        "conv_integer_gemm_nchw_i8_simd",
        "conv_integer",
        only_dtypes("uint8", "int8"),
        _GEMM_INTEGER,
        version=4,
        summary="matrix product of int16 pairs that reads x laid out with its channels last, exact",
        blocked=_GEMM_INTEGER,
    ),
    Kernel(
        "conv_integer_direct_nchw_i8_simd",
        "conv_integer",
        only_dtypes("uint8", "int8"),
        _DIRECT_INTEGER,
        summary="the definition, row by row, exact",
    ),
    Kernel(
        "qlinear_conv_depthwise_nchw_i8_simd",
        "qlinear_conv",
        _depthwise_integer,
        _DEPTHWISE_INTEGER,
        version=5,
        summary="planes: rows laid out as int16 with their padding, products of pairs of neighbours; channels last: vectors of "
        "channels, two or four taps a product; exact",
        blocked=_DEPTHWISE_INTEGER,
    ),
    Kernel(
        "qlinear_conv_tiles_nchw_i8_amx",
        "qlinear_conv",
        _accepts_integer_tiles,
        _TILES_INTEGER,
        version=2,
        summary="products of bytes on tile registers, x with its channels last, as it lies or laid out so, exact; int16 pairs for "
        "weights that are no bytes without their zero point",
        blocked=_TILES_INTEGER,
    ),
    Kernel(
        "qlinear_conv_gemm_nchw_i8_vnni",
        "qlinear_conv",
        _accepts_bytes,
        _BYTES_INTEGER,
        version=2,
        summary="matrix product of four bytes at a time that reads x laid out with its channels last, exact, requantised at "
        "once; int16 pairs for weights that are no bytes without their zero point",
        blocked=_BYTES_INTEGER,
    ),
    Kernel(
        "qlinear_conv_winograd_nchw_i8_simd",
        "qlinear_conv",
        _accepts_winograd_integer,
        _WINOGRAD_INTEGER,
        summary="minimal filtering on four or six points an axis in whole numbers, products of int16 pairs, exact, requantised "
        "after the transform back; the plain product for sums too large to get back",
        blocked=_WINOGRAD_INTEGER,
        beyond="minimal filters multiply less",
    ),
    Kernel(
        "qlinear_conv_gemm_nchw_i8_simd",
        "qlinear_conv",
        only_dtypes("uint8", "int8"),
        _GEMM_INTEGER,
        version=4,
        summary="matrix product of int16 pairs that reads x laid out with its channels last, exact, requantised at once",
        blocked=_GEMM_INTEGER,
    ),
    Kernel(
        "qlinear_conv_direct_nchw_i8_simd",
        "qlinear_conv",
        only_dtypes("uint8", "int8"),
        _DIRECT_INTEGER,
        summary="the definition, row by row, exact, requantised row by row",
    ),
]
