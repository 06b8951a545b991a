"""Convolution kernels in CUDA C++ for uint8 and int8 (``src/conv_dp4a.cu``, ``src/conv_integer.cu``), NCHW, exact.

An implicit matrix product that adds four products an instruction, and a direct kernel for whatever is left. Both serve
conv_integer and qlinear_conv. Weights are packed and zero points taken out once in ``prepare``, on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from quatrefoil import numerics
from quatrefoil.gpu.conv import (
    THREADS,
    Tile,
    accepts_grid,
    fits_32_bits,
    geometry_struct,
    packed_weights,
    patch_rows,
)
from quatrefoil.gpu.launch import MAX_GRID_YZ, Device, blocks
from quatrefoil.ops import conv as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

C_TYPES = {"uint8": "unsigned char", "int8": "signed char"}
SIGN_BIT = {"uint8": 0x80, "int8": 0}

# k counts ints of four values.
INTEGER_TILE = Tile(64, 64, 8, 4, 4)
BYTES = 4


def kernels(device: Device) -> list[Kernel]:
    """The declarations, to be run on ``device``."""
    dp4a, direct = "implicit matrix product, four products an instruction", "one thread an output value, 64-bit indices"
    return [
        kernel
        for op in ("conv_integer", "qlinear_conv")
        for kernel in (
            Kernel(f"{op}_dp4a_nchw_i8_cuda", op, _accepts_dp4a, partial(_prepare_dp4a, device), summary=dp4a),
            Kernel(f"{op}_direct_nchw_i8_cuda", op, accepts_grid, partial(_prepare_direct, device), summary=direct),
        )
    ]


def _accepts_dp4a(problem: Problem) -> Reject | None:
    g = semantics.geometry(problem)
    if g.out_per_group == 1:
        return Reject(f"a group has one output channel and {INTEGER_TILE.m - 1} rows of its tile would stand idle")
    if g.groups > MAX_GRID_YZ:
        return Reject(f"CUDA takes {MAX_GRID_YZ} blocks on a grid's third axis and there are {g.groups} groups")
    return fits_32_bits(problem, g)


@dataclass(frozen=True, slots=True)
class Quantities:
    """The parameters of either operator on the host. The last three are None for conv_integer, whose y is the sum."""

    w: np.ndarray
    x_zero_point: int
    w_zero_points: np.ndarray  # int32, one a channel
    bias: np.ndarray | None = None
    multipliers: np.ndarray | None = None
    y_zero_point: int | None = None

    @classmethod
    def of(cls, device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Quantities:
        channels = problem.outputs[0].shape[1]
        host = {position: device.get(array) for position, array in parameters.items()}

        def zero_points(position: int, count: int) -> np.ndarray:
            values = host.get(position, np.zeros(1, np.int32)).astype(np.int32).reshape(-1)
            return np.ascontiguousarray(np.broadcast_to(values, count))

        if problem.op == "conv_integer":
            x_zero, w_zeros = zero_points(semantics.X_ZERO_POINT, 1), zero_points(semantics.W_ZERO_POINT, channels)
            return cls(host[semantics.W], int(x_zero[0]), w_zeros)
        scales = [host[position] for position in (semantics.Q_X_SCALE, semantics.Q_W_SCALE, semantics.Q_Y_SCALE)]
        multipliers = np.broadcast_to(numerics.requantize_multiplier(*scales), channels)
        return cls(
            host[semantics.Q_W],
            int(zero_points(semantics.Q_X_ZERO, 1)[0]),
            zero_points(semantics.Q_W_ZERO, channels),
            host.get(semantics.Q_BIAS),
            np.ascontiguousarray(multipliers),
            int(zero_points(semantics.Q_Y_ZERO, 1)[0]),
        )

    def requantization(self, device: Device) -> tuple[Array | np.int32, ...]:
        """The last arguments of a kernel that requantises."""
        if self.multipliers is None or self.y_zero_point is None:
            return ()
        return device.put(self.multipliers), np.int32(self.y_zero_point)


def _output_constants(problem: Problem) -> dict[str, int | str]:
    """The macros that make a kernel requantise."""
    if problem.op == "conv_integer":
        return {}
    dtype = problem.outputs[0].dtype
    low, high = numerics.integer_range(dtype)
    return {"Y_TYPE": C_TYPES[dtype], "Y_LOW": low, "Y_HIGH": high}


def _prepare_direct(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    q = Quantities.of(device, problem, parameters)
    types = {"X_TYPE": C_TYPES[problem.dtype], "W_TYPE": C_TYPES[q.w.dtype.name]}
    kernel = device.load("conv_integer.cu", problem.op, {**types, **_output_constants(problem)})
    geometry, y_type = geometry_struct(semantics.geometry(problem)), problem.outputs[0]
    w, w_zero_points = device.put(q.w), device.put(q.w_zero_points)
    bias = () if problem.op == "conv_integer" else (None if q.bias is None else device.put(q.bias),)
    arguments = (geometry, np.int32(q.x_zero_point), w_zero_points, *bias, *q.requantization(device))
    grid = (blocks(y_type.size, THREADS),)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            kernel(grid, (THREADS,), inputs[semantics.X], w, y, *arguments)
        return (y,)

    return run


def _prepare_dp4a(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    q, g = Quantities.of(device, problem, parameters), semantics.geometry(problem)
    x_flip, w_flip = SIGN_BIT[problem.dtype], SIGN_BIT[q.w.dtype.name]
    constants = {**INTEGER_TILE.constants, "X_FLIP": x_flip, **_output_constants(problem)}
    kernel = device.load("conv_dp4a.cu", f"{problem.op}_dp4a", constants)

    signed = (q.w.view(np.uint8) ^ np.uint8(w_flip)).view(np.int8)
    x_zero, w_zeros = q.x_zero_point - x_flip, q.w_zero_points.astype(np.int64) - w_flip
    packed = packed_weights(signed, g.groups, INTEGER_TILE, BYTES)
    depth = packed.shape[1] * BYTES
    sums = signed.reshape(g.out_channels, -1).sum(axis=1, dtype=np.int64)
    corrections = depth * x_zero * w_zeros - x_zero * sums + (0 if q.bias is None else q.bias)
    weights, rows = device.put(packed), device.put(patch_rows(g, depth))
    arguments = (
        geometry_struct(g),
        *(np.int32(n) for n in (packed.shape[1], packed.shape[2], x_zero)),
        device.put(w_zeros.astype(np.int32)),
        device.put((corrections & 0xFFFFFFFF).astype(np.uint32).view(np.int32)),  # wraps as the sums do
        *q.requantization(device),
    )
    y_type = problem.outputs[0]
    grid = (blocks(g.batch * g.window.output_size, INTEGER_TILE.n), packed.shape[2] // INTEGER_TILE.m, g.groups)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            kernel(grid, (INTEGER_TILE.threads,), inputs[semantics.X], weights, rows, y, *arguments)
        return (y,)

    return run
