"""The CPU's kernels of convolutions with a sparse weight, in order of priority, and how they lay out what they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.cpu.compressed_limits import FEW_ROWS
from quatrefoil.ops import compressed
from quatrefoil.ops import conv as semantics
from quatrefoil.ops.conv import ConvGeometry
from quatrefoil.ops.sparse import Rows
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run
from quatrefoil.settings import num_threads

VECTORS = 8
"""The most vectors of a tile: SPARSE_VECTORS of src/sparse.h."""

FEW_PLACES = 128
"""Images of fewer places follow each other in the vectors."""

MOST_IMAGES = 256
"""Images that are laid out at once."""

FIRST_LEVEL = 40 << 10
"""Bytes that a block's part of a tile takes: a little more than a first-level cache, as no row reads all of it (measured)."""

ENTRIES_OF_A_BLOCK = 8
"""Stored values of a row in a block, on average, that make up for loading and storing the sums in between."""

MOST_WIDENED = 1.2
"""Rows become this many times as long at most, so that they are whole vectors."""

MOST_PLACES = 2**31 - 1
"""Floats of the laid-out x: places are 32 bits wide."""

MOST_COLUMNS = 1 << 16

WORTH_A_THREAD = 1 << 17
"""Multiply-accumulates from which on another thread is worth waking."""

ENTRY = np.dtype([("value", np.float32), ("place", np.int32)])
SEGMENT = np.dtype([("image", np.int32), ("at", np.int32), ("length", np.int32), ("unused", np.int32), ("y", np.int64)])
TILE = np.dtype(
    [("first", np.int64), ("vectors", np.int32), ("whole", np.int32), ("begin", np.int64), ("end", np.int64)]
)


@dataclass(frozen=True)
class Layout:
    """How x is laid out: the members of src/sparse.h's SparseConv of these names. taps: of each tap the distance, from an
    output's place, of what it reads; places: that an image's outputs spread over."""

    lengths: tuple[int, int, int]
    phases: np.ndarray
    channel_pitch: int
    phase_pitch: int
    image_pitch: int
    images: int
    direct: bool
    taps: np.ndarray
    places: int


@dataclass(frozen=True)
class Laid:
    """A layout with the stored values and the tiles of places, as src/sparse.h's SparseConv has them."""

    lengths: tuple[int, int, int]
    phases: np.ndarray
    channel_pitch: int
    phase_pitch: int
    image_pitch: int
    images: int
    panel_channels: int
    direct: bool
    turned: bool
    finite: bool
    narrow: np.ndarray
    entries: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    blocks: int
    unmet: np.ndarray
    tiles: np.ndarray
    segments: np.ndarray
    row_chunks: int


def _flat(geometry: ConvGeometry) -> ConvGeometry:
    """A convolution of one tap that reads every place as one along a single row."""
    window = geometry.window
    if window.taps > 1 or max(window.strides) > 1 or window.output != window.input or any(window.pads):
        return geometry
    row = (1, 1, window.output_size)
    return replace(geometry, window=replace(window, input=row, output=row))


def layout(geometry: ConvGeometry, lanes: int) -> Layout:
    """Where each tap of each output lies."""
    window = geometry.window
    reach = [[k * dilation for k in range(kernel)] for kernel, dilation in zip(window.kernel, window.dilations)]
    plane = window.output_size
    if geometry.batch == 1 or plane >= FEW_PLACES:
        images = 1
    else:
        images = min(geometry.batch, MOST_IMAGES)
    direct = (
        window.taps == 1 and max(window.strides) == 1 and not any(window.pads) and window.output == window.input
        and images == 1 and geometry.groups == 1
    )  # fmt: skip
    used = [sorted({at % stride for at in along}) for along, stride in zip(reach[:2], window.strides)]
    used.append(reach[2])  # along rows a plane for each column of the window, so that vectors are aligned
    shifts = [[at // stride for at in along] for along, stride in zip(reach[:2], window.strides)]
    lengths = [extent + max(shift) for extent, shift in zip(window.output, shifts)]
    whole = -(-window.output[2] // lanes) * lanes
    lengths.append(whole if not direct and whole <= MOST_WIDENED * window.output[2] else window.output[2])
    phases = list(product(*used))
    image_pitch = prod(lengths)
    phase_pitch = images * image_pitch
    channel_pitch = -(-len(phases) * phase_pitch // lanes) * lanes
    if channel_pitch % 256 == 0 and not direct:
        channel_pitch += 16  # the same tile of all channels would meet in the same sets of the cache
    taps = []
    for d, h, w in product(*(range(kernel) for kernel in window.kernel)):
        plane_of = *(reach[axis][k] % window.strides[axis] for axis, k in ((0, d), (1, h))), reach[2][w]
        phase = phases.index(plane_of)
        place = (shifts[0][d] * lengths[1] + shifts[1][h]) * lengths[2]
        taps.append(phase * phase_pitch + place)
    places = ((window.output[0] - 1) * lengths[1] + window.output[1] - 1) * lengths[2] + window.output[2]
    return Layout(
        (lengths[0], lengths[1], lengths[2]), np.array(phases, np.int64), plane if direct else channel_pitch, phase_pitch,
        image_pitch, images, direct, np.array(taps, np.int64), places,
    )  # fmt: skip


def _tiles(geometry: ConvGeometry, plan: Layout, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of places, as equal as they come, and the segments of outputs that each writes."""
    window = geometry.window
    rows = [
        (image, image * plan.image_pitch + (d * plan.lengths[1] + h) * plan.lengths[2],
         image * geometry.out_channels * window.output_size + (d * window.output[1] + h) * window.output[2],
         window.output[2])
        for image in range(plan.images) for d in range(window.output[0]) for h in range(window.output[1])
    ]  # fmt: skip
    merged: list[tuple[int, int, int, int]] = []
    for image, place, y, length in rows:
        if merged and merged[-1][0] == image and merged[-1][1] + merged[-1][3] == place:
            merged[-1] = (*merged[-1][:3], merged[-1][3] + length)
        else:
            merged.append((image, place, y, length))
    vectors = -(-((plan.images - 1) * plan.image_pitch + plan.places) // lanes)
    count = -(-vectors // VECTORS)
    tiles: list[tuple[int, ...]] = []
    segments: list[tuple[int, ...]] = []
    at = 0
    for tile in range(count):
        first, last = tile * vectors // count * lanes, (tile + 1) * vectors // count * lanes
        begin = len(segments)
        while at < len(merged) and merged[at][1] < last:
            image, place, y, length = merged[at]
            start, stop = max(place, first), min(place + length, last)
            segments.append((image, start - first, stop - start, 0, y + start - place))
            if place + length > last:
                break
            at += 1
        whole = len(segments) == begin + 1 and segments[begin][2] == last - first
        tiles.append((first, (last - first) // lanes, whole, begin, len(segments)))
    return np.array(tiles, TILE), np.array(segments, SEGMENT)


def laid(geometry: ConvGeometry, matrix: Rows, plan: Layout, lanes: int, threads: int) -> Laid:
    """The stored values in the order in which vectors of places read them."""
    channels, taps, outputs = geometry.in_per_group, geometry.window.taps, geometry.out_channels
    tiles, segments = _tiles(geometry, plan, lanes)
    row = np.repeat(np.arange(outputs), np.diff(matrix.offsets))
    local, tap = np.divmod(matrix.columns.astype(np.int64), taps)
    channel = row // geometry.out_per_group * channels + local
    # what of a channel a tile reads: rows of taps, or all there is
    widest = int(tiles["vectors"].max()) * lanes
    lines = prod(geometry.window.kernel[:2]) * len(plan.phases)
    per_channel = 4 * (VECTORS * lanes if taps == 1 else min(plan.channel_pitch, lines * (widest + 2 * lanes)))
    values_per_channel = len(row) / max(outputs * channels, 1)
    cached = max(FIRST_LEVEL // per_channel, int(ENTRIES_OF_A_BLOCK / max(values_per_channel, 1e-9)), 1)
    blocks = -(-channels // min(cached, channels))
    size = -(-channels // blocks)
    block = local // size
    counts = np.bincount(block * outputs + row, minlength=blocks * outputs).reshape(blocks, outputs)
    chunks = min(outputs, 4 * threads if threads > 1 and len(tiles) < 4 * threads else 1)
    packed = taps == 1 and geometry.groups == 1 and (plan.direct or len(tiles) > 1)
    chunk = np.broadcast_to(np.arange(outputs) // -(-outputs // chunks), counts.shape)
    # the rows of each block, chunk by chunk, the longest first
    order = np.lexsort((-counts, chunk))
    turn = np.empty_like(order)
    np.put_along_axis(turn, order, np.broadcast_to(np.arange(outputs), order.shape), axis=1)
    place = local % size * VECTORS * lanes if packed else channel * plan.channel_pitch + plan.taps[tap]
    sequence = np.lexsort((place, block * outputs + turn[block, row]))
    entries = np.empty(len(row), ENTRY)
    entries["value"], entries["place"] = matrix.values[sequence], place[sequence]
    lengths = np.take_along_axis(counts, order, axis=1).reshape(-1)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    window = geometry.window
    turned = plan.images > 1 and window.input_size == window.output_size == taps == 1 and not any(window.pads)
    return Laid(
        plan.lengths, plan.phases, plan.channel_pitch, plan.phase_pitch, plan.image_pitch, plan.images,
        size if packed else 0, plan.direct, turned, bool(np.isfinite(matrix.values).all()), np.zeros(1, np.uint16), entries,
        starts, order.astype(np.int32), blocks, _unmet(geometry, channel, tap), tiles, segments, chunks,
    )  # fmt: skip


def in_rows(geometry: ConvGeometry, matrix: Rows, lanes: int) -> Laid:
    """A dense layer's stored values as they came, with narrow columns."""
    narrow = np.pad(matrix.columns, (0, lanes)).astype(np.uint16)
    none = np.zeros(1, np.int32)
    return Laid(
        (1, 1, 1), np.zeros((1, 3), np.int64), 1, 1, 1, 1, 0, True, False, bool(np.isfinite(matrix.values).all()), narrow,
        np.zeros(1, ENTRY), none, none, 1, _unmet(geometry, matrix.columns, 0), np.zeros(1, TILE), np.zeros(1, SEGMENT), 1,
    )  # fmt: skip


def _unmet(geometry: ConvGeometry, channels: np.ndarray, taps: np.ndarray | int) -> np.ndarray:
    """Channels with a tap that no stored value meets."""
    met = np.zeros((geometry.in_channels, geometry.window.taps), bool)
    met[channels, taps] = True
    return np.array(~met.all(axis=1), np.uint8)


def _threads(problem: Problem) -> int:
    return int(min(max(compressed.work(problem).macs / WORTH_A_THREAD, 1), 1024))


def _accepts_places(problem: Problem) -> Reject | None:
    geometry = _flat(semantics.geometry(compressed.base(problem)))
    if 0 in problem.outputs[0].shape:
        return None
    plan = layout(geometry, instruction_set.lanes())
    if plan.channel_pitch * geometry.in_channels > MOST_PLACES:
        return Reject(f"x laid out with its padding has more than {MOST_PLACES} values")
    return None


def _accepts_row(problem: Problem) -> Reject | None:
    geometry = semantics.geometry(compressed.base(problem))
    if geometry.window.taps > 1 or geometry.window.input_size > 1 or geometry.groups > 1 or any(geometry.window.pads):
        return Reject("it takes dense layers: one place, one tap and one group")
    if geometry.in_channels > MOST_COLUMNS:
        return Reject(f"columns are 16 bits wide, and there are {geometry.in_channels}")
    if geometry.batch > FEW_ROWS:
        return Reject(f"vectors of rows are faster from {FEW_ROWS + 1} rows on, and there are {geometry.batch}")
    return None


def _prepare(one_place: bool, problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _sparse

    form, dense = compressed.FORMS[problem.op], compressed.base(problem)
    geometry, lanes = _flat(semantics.geometry(dense)), instruction_set.lanes()
    y = problem.outputs[0]
    if y.size == 0:
        return lambda inputs: (np.empty(y.shape, y.numpy_dtype),)
    stored = compressed.rows(problem, form.weights[0], parameters)
    matrix = Rows(*map(np.ascontiguousarray, stored))
    bias = parameters.get(form.place(semantics.BIAS))
    threads, plan = min(_threads(problem), num_threads()), layout(geometry, lanes)
    run: Run = _sparse.Convolution(
        instruction_set.index(),
        geometry,
        semantics.fused_activation(dense),
        matrix,
        None if bias is None else np.ascontiguousarray(bias),
        in_rows(geometry, matrix, lanes) if one_place else laid(geometry, matrix, plan, lanes, threads),
        one_place,
        _threads(problem),
        y.shape,
        y.numpy_dtype,
    ).run
    return run


KERNELS = [
    Kernel("sparse_conv_row_nchw_f32_simd", "sparse_conv", _accepts_row, partial(_prepare, True),
           summary="dense layers on few rows: sums over each output's stored values"),
    Kernel("sparse_conv_places_nchw_f32_simd", "sparse_conv", _accepts_places, partial(_prepare, False),
           summary="vectors of places stay in registers over an output channel's stored values; padding laid out once"),
]  # fmt: skip
