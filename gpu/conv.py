"""Convolution kernels in CUDA C++ (``src/conv_*.cu``), float32, NCHW; ``conv_integer.py`` declares those for integers.

In order of priority: depthwise; an implicit matrix product in three tile sizes; a direct kernel for whatever is left.
Rank 1 to 3 run as three axes. Weights are packed once in ``prepare``, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from quatrefoil.gpu.launch import MAX_GRID_YZ, Device, blocks
from quatrefoil.ops import conv as semantics
from quatrefoil.ops.conv import ConvGeometry
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

# struct ConvGeometry of src/common.cuh
GEOMETRY = np.dtype(
    [("batch", "i4"), ("groups", "i4"), ("in_per_group", "i4"), ("out_per_group", "i4")]
    + [(name, "i4", 3) for name in ("input", "output", "kernel", "stride", "dilation", "pad")]
)
PATCH_ROW = np.dtype([(name, "i4") for name in ("offset", "depth", "height", "width")])

THREADS = 256
DEPTHWISE_THREADS = 128
DEPTHWISE_TAPS = 1024
MAX_BLOCKS = 2**31 - 1
INT32_LIMIT = 2**31 - 2**16  # a tile that begins inside may end a little outside
POSITION_LIMIT = 2**30


@dataclass(frozen=True, slots=True)
class Tile:
    """How a block of the implicit matrix product divides its work: channels x pixels x depth, and each thread's part."""

    m: int
    n: int
    k: int
    thread_m: int
    thread_n: int

    @property
    def threads(self) -> int:
        return (self.m // self.thread_m) * (self.n // self.thread_n)

    @property
    def constants(self) -> dict[str, int | str]:
        return {
            "TILE_M": self.m,
            "TILE_N": self.n,
            "TILE_K": self.k,
            "THREAD_M": self.thread_m,
            "THREAD_N": self.thread_n,
        }


# 256 threads each. The few-channel tile is wide, so that its threads still have 16 sums each; the large tile does 64
# multiply-adds for 16 values read from shared memory, as registers allow.
FEW_CHANNELS = Tile(16, 256, 8, 4, 4)
SMALL_TILE = Tile(64, 64, 16, 4, 4)
LARGE_TILE = Tile(128, 128, 8, 8, 8)
# Two blocks on each of the 132 multiprocessors of an H100: from here on large tiles keep the whole GPU busy.
LARGE_TILES_WORTH = 264


def kernels(device: Device) -> list[Kernel]:
    """The declarations, to be run on ``device``."""
    return [
        Kernel(
            "conv_depthwise_nchw_f32_cuda", "conv", _accepts_depthwise, partial(_prepare_depthwise, device),
            summary="one block a plane, its weights in shared memory",
        ),
        *(
            Kernel(
                f"conv_gemm{tile.m}_nchw_f32_cuda", "conv", accepts, partial(_prepare_gemm, device, tile),
                summary=f"implicit matrix product, tiles of {tile.m} channels x {tile.n} pixels",
            )
            for tile, accepts in (
                (FEW_CHANNELS, _accepts_few_channels), (SMALL_TILE, _accepts_small_tile), (LARGE_TILE, _accepts_gemm)
            )
        ),
        Kernel(
            "conv_direct_nchw_f32_cuda", "conv", _accepts_general, partial(_prepare_direct, device, "conv_direct"),
            summary="one thread an output value, 64-bit indices",
        ),
        Kernel(
            "conv_transpose_gather_nchw_f32_cuda", "conv_transpose", _accepts_general,
            partial(_prepare_direct, device, "conv_transpose"),
            summary="one thread an output value, which collects the taps that land on it",
        ),
    ]  # fmt: skip


def accepts_grid(problem: Problem) -> Reject | None:
    """For kernels that give each output value a thread."""
    if blocks(problem.outputs[0].size, THREADS) > MAX_BLOCKS:
        return Reject(f"the output {problem.outputs[0]} needs more than {MAX_BLOCKS} blocks; split the batch")
    return None


def _accepts_general(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes in float32 and x is {problem.dtype}; convert x, or use backend='cpu'")
    return accepts_grid(problem)


def fits_32_bits(problem: Problem, g: ConvGeometry) -> Reject | None:
    """For kernels that count in 32 bits."""
    for tensor in (*problem.inputs, *problem.outputs):
        if tensor is not None and tensor.size >= INT32_LIMIT:
            return Reject(f"its offsets have 32 bits and {tensor} has {tensor.size} values")
    w = g.window
    for axis in range(3):
        reach = max(w.output[axis], 1) * w.strides[axis] + w.kernel[axis] * w.dilations[axis] + w.pads[axis]
        if reach >= POSITION_LIMIT:
            return Reject(f"its positions have 32 bits and the window reaches {reach} places on one axis")
    return None


def _accepts_depthwise(problem: Problem) -> Reject | None:
    if reject := _accepts_general(problem):
        return reject
    g = semantics.geometry(problem)
    if g.in_per_group != 1:
        return Reject(f"it is for depthwise convolution and a group has {g.in_per_group} input channels")
    if g.groups == 1:
        return Reject("it is for depthwise convolution and there is one group")
    if g.window.taps > DEPTHWISE_TAPS:
        return Reject(f"its shared memory holds {DEPTHWISE_TAPS} weights of a channel and there are {g.window.taps}")
    return fits_32_bits(problem, g)


def _accepts_gemm(problem: Problem) -> Reject | None:
    if reject := _accepts_general(problem):
        return reject
    g = semantics.geometry(problem)
    if g.groups > MAX_GRID_YZ:
        return Reject(f"CUDA takes {MAX_GRID_YZ} blocks on a grid's third axis and there are {g.groups} groups")
    return fits_32_bits(problem, g)


def _accepts_few_channels(problem: Problem) -> Reject | None:
    if reject := _accepts_gemm(problem):
        return reject
    channels = semantics.geometry(problem).out_per_group
    if channels > FEW_CHANNELS.m:
        return Reject(f"it is for {FEW_CHANNELS.m} output channels a group or fewer and there are {channels}")
    return None


def _accepts_small_tile(problem: Problem) -> Reject | None:
    if reject := _accepts_gemm(problem):
        return reject
    g = semantics.geometry(problem)
    pixels = g.batch * g.window.output_size
    tiles = g.groups * blocks(g.out_per_group, LARGE_TILE.m) * blocks(pixels, LARGE_TILE.n)
    if g.out_per_group > SMALL_TILE.m and tiles >= LARGE_TILES_WORTH:
        return Reject(f"the problem has {tiles} tiles of {LARGE_TILE.m} x {LARGE_TILE.n}, enough for the larger tile")
    return None


def geometry_struct(g: ConvGeometry) -> np.ndarray:
    """struct ConvGeometry of src/common.cuh."""
    w = g.window
    values = (g.batch, g.groups, g.in_per_group, g.out_per_group)
    return np.array((*values, w.input, w.output, w.kernel, w.strides, w.dilations, w.pads), GEOMETRY)


def _activation(problem: Problem) -> tuple[np.int32, np.float32, np.float32]:
    function = semantics.fused_activation(problem)
    return np.int32(function.code), np.float32(function.alpha), np.float32(function.beta)


def optional(inputs: Sequence[Array | None], position: int) -> Array | None:
    """An input that may be None, or left out behind the last one that is given."""
    return inputs[position] if position < len(inputs) else None


Launcher = Callable[[Array, Array, "Array | None"], None]
"""Computes into y from x and the residual, if there is one."""


def _run(device: Device, problem: Problem, launch: Launcher) -> Run:
    """A run that allocates y and launches, unless there is nothing to compute."""
    y_type = problem.outputs[0]

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            launch(inputs[semantics.X], y, optional(inputs, semantics.RESIDUAL))
        return (y,)

    return run


def _prepare_direct(device: Device, name: str, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    kernel = device.load(f"{name}.cu", name, {})
    w, bias = parameters[semantics.W], parameters.get(semantics.BIAS)
    geometry, activation = geometry_struct(semantics.geometry(problem)), _activation(problem)
    grid = (blocks(problem.outputs[0].size, THREADS),)

    def launch(x: Array, y: Array, residual: Array | None) -> None:
        kernel(grid, (THREADS,), x, w, y, geometry, bias, residual, *activation)

    return _run(device, problem, launch)


def _prepare_depthwise(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    kernel = device.load("conv_depthwise.cu", "conv_depthwise", {"TAPS_LIMIT": DEPTHWISE_TAPS})
    w, bias = parameters[semantics.W], parameters.get(semantics.BIAS)
    g = semantics.geometry(problem)
    geometry, activation = geometry_struct(g), _activation(problem)
    blocks_per_plane = blocks(g.window.output_size, DEPTHWISE_THREADS)
    grid = (g.batch * g.out_channels * blocks_per_plane,)

    def launch(x: Array, y: Array, residual: Array | None) -> None:
        kernel(
            grid, (DEPTHWISE_THREADS,), x, w, y, geometry, np.int32(blocks_per_plane), bias, residual, *activation
        )  # fmt: skip

    return _run(device, problem, launch)


def packed_weights(w: np.ndarray, groups: int, tile: Tile, together: int = 1) -> np.ndarray:
    """w (M, C / groups, k) as (groups, K, M / groups) with both inner axes rounded up to the tile by zeros.

    ``together`` rows of bytes become one row of ints, for kernels that multiply four bytes at a time.
    """
    per_group = w.shape[0] // groups
    rows = w.reshape(groups, per_group, -1).transpose(0, 2, 1)
    depth = rows.shape[1]
    padded_k, padded_m = blocks(depth, tile.k * together) * tile.k * together, blocks(per_group, tile.m) * tile.m
    packed = np.zeros((groups, padded_k, padded_m), w.dtype)
    packed[:, :depth, :per_group] = rows
    if together == 1:
        return packed
    side_by_side = packed.reshape(groups, padded_k // together, together, padded_m).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(side_by_side).view(np.int32)[..., 0]


def patch_rows(g: ConvGeometry, padded_k: int) -> np.ndarray:
    """struct PatchRow of src/implicit_gemm.cuh for each row of the patches, as (padded_k, 4) int32, because CuPy holds no
    structs. The rows of the rounding lie outside every image."""
    w = g.window
    c, depth, height, width = np.indices((g.in_per_group, *w.kernel)).reshape(4, -1)
    depth, height, width = depth * w.dilations[0], height * w.dilations[1], width * w.dilations[2]
    rows = np.zeros(padded_k, PATCH_ROW)
    rows["depth"] = POSITION_LIMIT
    known = rows[: c.size]
    known["offset"] = ((c * w.input[0] + depth) * w.input[1] + height) * w.input[2] + width
    known["depth"], known["height"], known["width"] = depth, height, width
    return rows.view(np.int32).reshape(padded_k, 4)


def _prepare_gemm(device: Device, tile: Tile, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    kernel = device.load("conv_gemm.cu", "conv_gemm", tile.constants)
    g = semantics.geometry(problem)
    packed = packed_weights(device.get(parameters[semantics.W]), g.groups, tile)
    _, padded_k, padded_m = packed.shape
    weights, rows = device.put(packed), device.put(patch_rows(g, padded_k))
    bias = parameters.get(semantics.BIAS)
    geometry, activation = geometry_struct(g), _activation(problem)
    grid = (blocks(g.batch * g.window.output_size, tile.n), padded_m // tile.m, g.groups)
    sizes = np.int32(padded_k), np.int32(padded_m)

    def launch(x: Array, y: Array, residual: Array | None) -> None:
        kernel(grid, (tile.threads,), x, weights, rows, y, geometry, *sizes, bias, residual, *activation)

    return _run(device, problem, launch)
