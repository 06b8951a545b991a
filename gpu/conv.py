"""Convolution kernels in CUDA C++ (``src/conv_*.cu``), float32 and 8-bit integers, NCHW.

In order of priority: depthwise; an implicit matrix product in three tile sizes; a direct kernel for whatever is left.
Rank 1 to 3 run as three axes. Weights are packed once in ``prepare``, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from quatrefoil import numerics
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
C_TYPES = {"uint8": "unsigned char", "int8": "signed char"}


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
        Kernel(
            "conv_integer_direct_nchw_i8_cuda", "conv_integer", _accepts_grid, partial(_prepare_integer, device),
            summary="one thread an output value, 64-bit indices",
        ),
        Kernel(
            "qlinear_conv_direct_nchw_i8_cuda", "qlinear_conv", _accepts_grid, partial(_prepare_qlinear, device),
            summary="one thread an output value, requantised in the same pass",
        ),
    ]  # fmt: skip


def _accepts_grid(problem: Problem) -> Reject | None:
    if blocks(problem.outputs[0].size, THREADS) > MAX_BLOCKS:
        return Reject(f"the output {problem.outputs[0]} needs more than {MAX_BLOCKS} blocks; split the batch")
    return None


def _accepts_general(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes in float32 and x is {problem.dtype}; convert x, or use backend='cpu'")
    return _accepts_grid(problem)


def _fits_32_bits(problem: Problem, g: ConvGeometry) -> Reject | None:
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
    return _fits_32_bits(problem, g)


def _accepts_gemm(problem: Problem) -> Reject | None:
    if reject := _accepts_general(problem):
        return reject
    g = semantics.geometry(problem)
    if g.groups > MAX_GRID_YZ:
        return Reject(f"CUDA takes {MAX_GRID_YZ} blocks on a grid's third axis and there are {g.groups} groups")
    return _fits_32_bits(problem, g)


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


def _struct(g: ConvGeometry) -> np.ndarray:
    w = g.window
    values = (g.batch, g.groups, g.in_per_group, g.out_per_group)
    return np.array((*values, w.input, w.output, w.kernel, w.strides, w.dilations, w.pads), GEOMETRY)


def _activation(problem: Problem) -> tuple[np.int32, np.float32, np.float32]:
    function = semantics.fused_activation(problem)
    return np.int32(function.code), np.float32(function.alpha), np.float32(function.beta)


def _optional(inputs: Sequence[Array | None], position: int) -> Array | None:
    return inputs[position] if position < len(inputs) else None


Launcher = Callable[[Array, Array, "Array | None"], None]
"""Computes into y from x and the residual, if there is one."""


def _run(device: Device, problem: Problem, launch: Launcher) -> Run:
    """A run that allocates y and launches, unless there is nothing to compute."""
    y_type = problem.outputs[0]

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            launch(inputs[semantics.X], y, _optional(inputs, semantics.RESIDUAL))
        return (y,)

    return run


def _prepare_direct(device: Device, name: str, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    kernel = device.load(f"{name}.cu", name, {})
    w, bias = parameters[semantics.W], parameters.get(semantics.BIAS)
    geometry, activation = _struct(semantics.geometry(problem)), _activation(problem)
    grid = (blocks(problem.outputs[0].size, THREADS),)

    def launch(x: Array, y: Array, residual: Array | None) -> None:
        kernel(grid, (THREADS,), x, w, y, geometry, bias, residual, *activation)

    return _run(device, problem, launch)


def _prepare_depthwise(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    kernel = device.load("conv_depthwise.cu", "conv_depthwise", {"TAPS_LIMIT": DEPTHWISE_TAPS})
    w, bias = parameters[semantics.W], parameters.get(semantics.BIAS)
    g = semantics.geometry(problem)
    geometry, activation = _struct(g), _activation(problem)
    blocks_per_plane = blocks(g.window.output_size, DEPTHWISE_THREADS)
    grid = (g.batch * g.out_channels * blocks_per_plane,)

    def launch(x: Array, y: Array, residual: Array | None) -> None:
        kernel(
            grid, (DEPTHWISE_THREADS,), x, w, y, geometry, np.int32(blocks_per_plane), bias, residual, *activation
        )  # fmt: skip

    return _run(device, problem, launch)


def packed_weights(w: np.ndarray, groups: int, tile: Tile) -> np.ndarray:
    """w (M, C / groups, k) as (groups, K, M / groups) with both inner axes rounded up to the tile by zeros."""
    per_group = w.shape[0] // groups
    rows = w.reshape(groups, per_group, -1).transpose(0, 2, 1)
    depth = rows.shape[1]
    packed = np.zeros((groups, blocks(depth, tile.k) * tile.k, blocks(per_group, tile.m) * tile.m), w.dtype)
    packed[:, :depth, :per_group] = rows
    return packed


def patch_rows(g: ConvGeometry, padded_k: int) -> np.ndarray:
    """struct PatchRow of src/conv_gemm.cu for each row of the patches; rounding rows lie outside every image."""
    w = g.window
    c, depth, height, width = np.indices((g.in_per_group, *w.kernel)).reshape(4, -1)
    depth, height, width = depth * w.dilations[0], height * w.dilations[1], width * w.dilations[2]
    rows = np.zeros(padded_k, PATCH_ROW)
    rows["depth"] = POSITION_LIMIT
    known = rows[: c.size]
    known["offset"] = ((c * w.input[0] + depth) * w.input[1] + height) * w.input[2] + width
    known["depth"], known["height"], known["width"] = depth, height, width
    return rows


def _prepare_gemm(device: Device, tile: Tile, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    kernel = device.load("conv_gemm.cu", "conv_gemm", tile.constants)
    g = semantics.geometry(problem)
    packed = packed_weights(device.get(parameters[semantics.W]), g.groups, tile)
    _, padded_k, padded_m = packed.shape
    weights, rows = device.put(packed), device.put(patch_rows(g, padded_k))
    bias = parameters.get(semantics.BIAS)
    geometry, activation = _struct(g), _activation(problem)
    grid = (blocks(g.batch * g.window.output_size, tile.n), padded_m // tile.m, g.groups)
    sizes = np.int32(padded_k), np.int32(padded_m)

    def launch(x: Array, y: Array, residual: Array | None) -> None:
        kernel(grid, (tile.threads,), x, weights, rows, y, geometry, *sizes, bias, residual, *activation)

    return _run(device, problem, launch)


def _zero_points(device: Device, array: Array | None, channels: int) -> np.ndarray:
    """One int32 zero point for each channel, 0 where there is none."""
    values = np.zeros(1, np.int32) if array is None else device.get(array).astype(np.int32).reshape(-1)
    return np.ascontiguousarray(np.broadcast_to(values, channels))


def _prepare_integer(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g = semantics.geometry(problem)
    types = {"X_TYPE": C_TYPES[problem.dtype], "W_TYPE": C_TYPES[problem.input(semantics.W).dtype]}
    kernel = device.load("conv_integer.cu", "conv_integer", types)
    w = parameters[semantics.W]
    x_zero_point = _zero_points(device, parameters.get(semantics.X_ZERO_POINT), 1)[0]
    w_zero_points = device.put(_zero_points(device, parameters.get(semantics.W_ZERO_POINT), g.out_channels))
    geometry = _struct(g)
    grid = (blocks(problem.outputs[0].size, THREADS),)

    def launch(x: Array, y: Array, residual: Array | None) -> None:
        kernel(grid, (THREADS,), x, w, y, geometry, x_zero_point, w_zero_points)

    return _run(device, problem, launch)


def _prepare_qlinear(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g = semantics.geometry(problem)
    low, high = numerics.integer_range(problem.outputs[0].dtype)
    types: dict[str, int | str] = {
        "X_TYPE": C_TYPES[problem.dtype],
        "W_TYPE": C_TYPES[problem.input(semantics.Q_W).dtype],
        "Y_TYPE": C_TYPES[problem.outputs[0].dtype],
        "Y_LOW": low,
        "Y_HIGH": high,
    }
    kernel = device.load("conv_integer.cu", "qlinear_conv", types)
    w, bias = parameters[semantics.Q_W], parameters.get(semantics.Q_BIAS)
    x_zero_point = _zero_points(device, parameters[semantics.Q_X_ZERO], 1)[0]
    y_zero_point = _zero_points(device, parameters[semantics.Q_Y_ZERO], 1)[0]
    w_zero_points = device.put(_zero_points(device, parameters[semantics.Q_W_ZERO], g.out_channels))
    scales = [device.get(parameters[i]) for i in (semantics.Q_X_SCALE, semantics.Q_W_SCALE, semantics.Q_Y_SCALE)]
    multipliers = np.broadcast_to(numerics.requantize_multiplier(*scales), g.out_channels)
    multipliers_there = device.put(np.ascontiguousarray(multipliers))
    geometry = _struct(g)
    grid = (blocks(problem.outputs[0].size, THREADS),)

    def launch(x: Array, y: Array, residual: Array | None) -> None:
        kernel(
            grid, (THREADS,), x, w, y, geometry, x_zero_point, w_zero_points, bias, multipliers_there, y_zero_point
        )  # fmt: skip

    return _run(device, problem, launch)
