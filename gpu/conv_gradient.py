"""Gradients of a convolution's weight and bias in CUDA C++ (``src/conv_weight_gradient.cu``, ``src/conv_bias_gradient.cu``),
float32, NCHW. That of its input is conv_transpose's (``conv.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from quatrefoil.gpu.conv import MAX_BLOCKS, SMALL_TILE, THREADS, fits_32_bits, geometry_struct, patch_rows
from quatrefoil.gpu.launch import MAX_GRID_YZ, Device, blocks
from quatrefoil.ops import conv_gradient as semantics
from quatrefoil.ops.conv import ConvGeometry
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run

TILE = SMALL_TILE
ENOUGH_BLOCKS = 264  # two on each of the 132 multiprocessors of an H100
MOST_PIXELS, LEAST_PIXELS = (
    4096,
    256,
)  # of a split: a longer sum loses accuracy, a shorter one does not pay for being added


def kernels(device: Device) -> tuple[Kernel, ...]:
    """The declarations, to be run on ``device``."""
    return (
        Kernel(
            "conv_weight_gradient_product_nchw_f32_cuda", "conv_weight_gradient", _accepts_product,
            partial(_prepare_product, device),
            summary=f"implicit matrix product over splits of the pixels, tiles of {TILE.m} channels x {TILE.n} taps",
        ),
        Kernel(
            "conv_weight_gradient_direct_nchw_f32_cuda", "conv_weight_gradient", _accepts_direct,
            partial(_prepare_direct, device),
            summary="one thread a weight, 64-bit indices",
        ),
        Kernel(
            "conv_bias_gradient_rows_nchw_f32_cuda", "conv_bias_gradient", _accepts_direct,
            partial(_prepare_bias, device),
            summary="one block a channel",
        ),
    )  # fmt: skip


def _accepts_direct(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes in float32 and x is {problem.dtype}; convert x, or use backend='cpu'")
    if blocks(problem.outputs[0].size, THREADS) > MAX_BLOCKS:
        return Reject(f"the weight {problem.outputs[0]} needs more than {MAX_BLOCKS} blocks")
    return None


def _accepts_product(problem: Problem) -> Reject | None:
    if reject := _accepts_direct(problem):
        return reject
    g = semantics.geometry(problem)
    if g.groups * _splits(g) > MAX_GRID_YZ:
        return Reject(
            f"CUDA takes {MAX_GRID_YZ} blocks on a grid's third axis and there are {g.groups} groups of {_splits(g)} splits"
        )
    if min(g.out_per_group, g.in_per_group * g.window.taps) < TILE.thread_m:
        return Reject(f"tiles stay empty with {g.out_per_group} output channels a group")
    return fits_32_bits(problem, g)


def _splits(g: ConvGeometry) -> int:
    """Into how many parts the pixels are cut."""
    pixels = max(g.batch * g.window.output_size, 1)
    tiles = g.groups * blocks(g.out_per_group, TILE.m) * blocks(g.in_per_group * g.window.taps, TILE.n)
    busy = min(blocks(ENOUGH_BLOCKS, tiles), blocks(pixels, LEAST_PIXELS))
    return max(busy, blocks(pixels, MOST_PIXELS))


def _prepare_product(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g, dw_type = semantics.geometry(problem), problem.outputs[0]
    product = device.load("conv_weight_gradient.cu", "conv_weight_gradient_product", TILE.constants)
    finish = device.load("conv_weight_gradient.cu", "conv_weight_gradient_finish", {})
    row_count, splits = g.in_per_group * g.window.taps, _splits(g)
    pixels_each = blocks(blocks(max(g.batch * g.window.output_size, 1), splits), TILE.k) * TILE.k
    rows, geometry = device.put(patch_rows(g, row_count)), geometry_struct(g)
    grid = (blocks(row_count, TILE.n), blocks(g.out_per_group, TILE.m), g.groups * splits)
    partial_sums = Tensor("float32", (splits, *dw_type.shape))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        x, dy = inputs
        dw, sums = device.empty(dw_type), device.empty(partial_sums)
        sizes = np.int32(row_count), np.int32(splits), np.int32(pixels_each)
        product(grid, (TILE.threads,), x, dy, rows, sums, geometry, *sizes)
        count = np.int64(dw_type.size)
        finish((blocks(dw_type.size, THREADS),), (THREADS,), sums, x, dy, dw, geometry, count, np.int32(splits))
        return (dw,)

    return run


def _prepare_direct(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    dw_type = problem.outputs[0]
    kernel = device.load("conv_weight_gradient.cu", "conv_weight_gradient_finish", {})
    geometry = geometry_struct(semantics.geometry(problem))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        x, dy = inputs
        dw = device.empty(dw_type)
        grid = (blocks(dw_type.size, THREADS),)
        kernel(grid, (THREADS,), None, x, dy, dw, geometry, np.int64(dw_type.size), np.int32(0))
        return (dw,)

    return run


def _prepare_bias(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    kernel = device.load("conv_bias_gradient.cu", "conv_bias_gradient", {})
    batch, channels, *extents = problem.input(0).shape
    sizes = np.int32(batch), np.int32(channels), np.int64(np.prod(extents))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        db = device.empty(problem.outputs[0])
        if channels:
            kernel((channels,), (THREADS,), inputs[0], db, *sizes)
        return (db,)

    return run
