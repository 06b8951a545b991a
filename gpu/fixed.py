"""Fixed-point kernels in CUDA C++ (``src/fixed_*.cu``), exact, NCHW.

Convolution: an implicit matrix product where sums of 32 bits are enough, which adds four products an instruction where
values and weights fit a byte, and a direct kernel for whatever is left. Pooling: a thread an output value. Recurrent
layers: a block a sequence, all steps in one launch. Weights are packed and biases cast once in ``prepare``, on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from quatrefoil.gpu.conv import (
    GEOMETRY,
    SMALL_TILE,
    THREADS,
    fits_32_bits,
    geometry_struct,
    optional,
    packed_weights,
    patch_rows,
)
from quatrefoil.gpu.conv_integer import BYTES, INTEGER_TILE
from quatrefoil.gpu.launch import MAX_GRID_YZ, Device, blocks
from quatrefoil.numerics import OVERFLOWS, ROUNDINGS, TABLE_REACH, Fixed, table_bits
from quatrefoil.ops import conv as conv_semantics
from quatrefoil.ops import fixed as semantics
from quatrefoil.ops import pool as pool_semantics
from quatrefoil.ops import rnn as rnn_semantics
from quatrefoil.ops.conv import ConvGeometry
from quatrefoil.ops.fixed import format_of
from quatrefoil.ops.pool import PoolGeometry
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run

# qf_format of quatrefoil/fixed.h, and the structs Formats, Pool and Recurrence of src/fixed_*
FORMAT = np.dtype(
    [("low", "i8"), ("high", "i8"), ("width", "i4"), ("signed", "i4"), ("rounding", "i4"), ("overflow", "i4")]
)
FORMATS = np.dtype(
    [("accumulator", FORMAT), ("y", FORMAT), ("y_drop", "i4"), ("rectified", "i4"), ("reuse", "i4"), ("unused", "i4")]
)
POOL = np.dtype([("window", GEOMETRY), ("pad_end", "i4", 3), ("count_pads", "i4")])
RECURRENCE = np.dtype(
    [(name, "i4") for name in ("steps", "batch", "inputs", "hidden")]
    + [("reverse", "i4", 2), ("linear_before_reset", "i4")]
    + [(name, "i4") for name in ("drop_x", "drop_h", "fraction", "state_fraction", "table_size")]
    + [("bits", "i4", 2)]
)

C_TYPES = {"int16": "short", "int32": "int"}
NARROW = 2**31
"""Sizes below this are kept in 32 bits."""

BYTE = 2**7


def kernels(device: Device) -> list[Kernel]:
    """The declarations, to be run on ``device``."""
    return [
        Kernel(
            "fixed_conv_dp4a_nchw_fixed_cuda", "fixed_conv", _accepts_dp4a, partial(_prepare_gemm, device, True),
            summary="implicit matrix product, four products an instruction",
        ),
        Kernel(
            "fixed_conv_gemm_nchw_fixed_cuda", "fixed_conv", _accepts_gemm, partial(_prepare_gemm, device, False),
            summary="implicit matrix product, sums of 32 bits",
        ),
        Kernel(
            "fixed_conv_direct_nchw_fixed_cuda", "fixed_conv", _accepts_direct, partial(_prepare_direct, device),
            summary="one thread an output value",
        ),
        *(
            Kernel(
                f"{op}_direct_nchw_fixed_cuda", op, _accepts_pool, partial(_prepare_pool, device),
                summary="one thread an output value",
            )
            for op in ("fixed_max_pool", "fixed_average_pool")
        ),
        *(
            Kernel(
                f"{op}_sequence_tnc_fixed_cuda", op, _accepts_recurrent, partial(_prepare_recurrent, device),
                summary="a block a sequence, all steps in one launch",
            )
            for op in ("fixed_rnn", "fixed_lstm", "fixed_gru")
        ),
    ]  # fmt: skip


def _largest(form: Fixed) -> int:
    return max(form.high, -form.low)


def _sum_kind(largest: float, largest_products: float, drop: int, accumulator: Fixed) -> str:
    """The macro SUM of src/fixed_sum.cuh.

    largest: what ``largest_sum`` says in the accumulator's places; largest_products: in the products' own, without the
    first value. drop: how many more fraction bits a product has than the accumulator.
    """
    wraps = accumulator.overflow == "WRAP"
    if not wraps and largest > min(accumulator.high, -accumulator.low):
        return "SUM_CAST"
    if drop > 0:
        return "SUM_ROUNDED"
    # what wraps needs no more than the bits that are left after it is shifted up
    narrow = largest_products < NARROW or (wraps and accumulator.width <= 32 - drop)
    return "SUM_NARROW" if narrow else "SUM_WIDE"


def _formats(accumulator: Fixed, y: Fixed, rectified: bool = False, reuse: int = 1) -> np.ndarray:
    """struct Formats of src/fixed_sum.cuh."""
    rows = [
        (f.low, f.high, f.width, f.signed, ROUNDINGS.index(f.rounding), OVERFLOWS.index(f.overflow))
        for f in (accumulator, y)
    ]
    return np.array((*rows, accumulator.fraction - y.fraction, rectified, reuse, 0), FORMATS)


def _types(problem: Problem) -> dict[str, int | str]:
    return {"X_TYPE": C_TYPES[problem.dtype], "Y_TYPE": C_TYPES[problem.outputs[0].dtype]}


def _conv_formats(problem: Problem) -> tuple[Fixed, Fixed, Fixed, int]:
    """The formats of x, w and the accumulator, and how many more fraction bits a product has than the accumulator."""
    x, w, accumulator = (format_of(problem, name) for name in ("x_format", "w_format", "accumulator"))
    return x, w, accumulator, x.fraction + w.fraction - accumulator.fraction


def _accepts_direct(problem: Problem) -> Reject | None:
    return fits_32_bits(problem, conv_semantics.geometry(problem))


def _accepts_gemm(problem: Problem) -> Reject | None:
    g = conv_semantics.geometry(problem)
    x, w, accumulator, drop = _conv_formats(problem)
    depth = g.in_per_group * g.window.taps
    start: np.ndarray | int = 0
    if problem.has(conv_semantics.BIAS):
        bias = format_of(problem, "bias_format")
        start = accumulator.cast(np.array([bias.low, bias.high]), bias.fraction)
    # the weights are not known yet: as if each were the largest that its format has
    weights = np.array([[depth * _largest(w)]])
    largest = semantics.largest_sum(x, weights, x.fraction + w.fraction, start, accumulator)
    if _sum_kind(largest, float(weights[0, 0]) * _largest(x), drop, accumulator) != "SUM_NARROW":
        return Reject(f"its sums are exact and have 32 bits, which is not enough for {depth} products in {accumulator}")
    if g.groups > MAX_GRID_YZ:
        return Reject(f"CUDA takes {MAX_GRID_YZ} blocks on a grid's third axis and there are {g.groups} groups")
    return _accepts_direct(problem)


def _accepts_dp4a(problem: Problem) -> Reject | None:
    x, w, _, _ = _conv_formats(problem)
    for form in (x, w):
        if form.low < -BYTE or form.high >= BYTE:
            return Reject(f"it multiplies signed bytes, and {form} holds {form.low} to {form.high}")
    return _accepts_gemm(problem)


def _starts(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> tuple[Array | None, np.ndarray]:
    """What the sums begin with, on the device (None for zeros) and on the host."""
    accumulator = format_of(problem, "accumulator")
    if conv_semantics.BIAS not in parameters:
        return None, np.zeros(1, np.int64)
    bias = device.get(parameters[conv_semantics.BIAS])
    cast = accumulator.cast(bias, format_of(problem, "bias_format").fraction)
    return device.put(cast), cast


def _conv_arguments(problem: Problem, g: ConvGeometry, *more: Array | np.int32 | None) -> tuple[Array, ...]:
    """The last arguments of both convolution kernels, from the geometry on."""
    accumulator = format_of(problem, "accumulator")
    rectified = any(name == "activation" for name, _ in problem.attributes)
    formats = _formats(accumulator, format_of(problem, "y_format"), rectified, problem.integer("reuse"))
    drop = np.int32(_conv_formats(problem)[-1])
    return (geometry_struct(g), *more, drop, formats)


def _prepare_direct(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g, (x, w, accumulator, drop) = conv_semantics.geometry(problem), _conv_formats(problem)
    weight = device.get(parameters[conv_semantics.W])
    starts, host_starts = _starts(device, problem, parameters)
    rows = weight.reshape(g.out_channels, -1)
    kind = _sum_kind(
        semantics.largest_sum(x, rows, x.fraction + w.fraction, host_starts, accumulator),
        semantics.largest_sum(x, rows, accumulator.fraction, 0, accumulator),
        drop,
        accumulator,
    )
    kernel = device.load("fixed_conv.cu", "fixed_conv", {**_types(problem), "SUM": kind})
    by_taps = weight.reshape(g.out_channels, g.in_per_group, g.window.taps).swapaxes(1, 2)
    packed = device.put(np.ascontiguousarray(by_taps, np.int32))
    arguments = _conv_arguments(problem, g, starts)
    y_type = problem.outputs[0]
    grid = (blocks(y_type.size, THREADS),)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            kernel(grid, (THREADS,), inputs[conv_semantics.X], packed, y, *arguments)
        return (y,)

    return run


def _prepare_gemm(device: Device, in_bytes: bool, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g, tile, together = conv_semantics.geometry(problem), SMALL_TILE, 1
    weight = device.get(parameters[conv_semantics.W])
    constants = {**_types(problem), "SUM": "SUM_NARROW"}
    if in_bytes:
        tile, together, constants["BYTES"] = INTEGER_TILE, BYTES, 1
    packed = packed_weights(weight.astype(np.int8 if in_bytes else np.int32), g.groups, tile, together)
    kernel = device.load("fixed_gemm.cu", "fixed_gemm", {**tile.constants, **constants})
    weights, rows = device.put(packed), device.put(patch_rows(g, packed.shape[1] * together))
    starts, _ = _starts(device, problem, parameters)
    arguments = _conv_arguments(problem, g, *map(np.int32, packed.shape[1:]), starts)
    y_type = problem.outputs[0]
    grid = (blocks(g.batch * g.window.output_size, tile.n), packed.shape[2] // tile.m, g.groups)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            kernel(grid, (tile.threads,), inputs[conv_semantics.X], weights, rows, y, *arguments)
        return (y,)

    return run


def _accepts_pool(problem: Problem) -> Reject | None:
    g = pool_semantics.geometry(problem)
    return fits_32_bits(problem, _as_convolution(g))


def _as_convolution(g: PoolGeometry) -> ConvGeometry:
    """The window of a pool, as if of one channel for each plane."""
    return ConvGeometry(g.planes, 1, 1, 1, g.window)


def _prepare_pool(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g = pool_semantics.geometry(problem)
    x, y = format_of(problem, "x_format"), format_of(problem, "y_format")
    constants, accumulator, drop, count_pads = {**_types(problem), "SUM": "SUM_WIDE"}, x, 0, 0
    if problem.op == "fixed_average_pool":
        accumulator, count_pads = format_of(problem, "accumulator"), problem.integer("count_include_pad")
        drop, taps = x.fraction - accumulator.fraction, np.array([[g.window.taps]])
        largest = semantics.largest_sum(x, taps, x.fraction, 0, accumulator)
        constants |= {"AVERAGE": 1, "SUM": _sum_kind(largest, float(taps[0, 0]) * _largest(x), drop, accumulator)}
    kernel = device.load("fixed_pool.cu", problem.op, constants)
    window = geometry_struct(_as_convolution(g))
    pads_end = tuple(min(pad, NARROW // 2) for pad in g.pads_end)
    struct = np.array((window, pads_end, count_pads), POOL)
    y_type = problem.outputs[0]
    grid = (blocks(y_type.size, THREADS),)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        result = device.empty(y_type)
        if y_type.size:
            kernel(grid, (THREADS,), inputs[0], result, struct, np.int32(drop), _formats(accumulator, y))
        return (result,)

    return run


def _accepts_recurrent(problem: Problem) -> Reject | None:
    for tensor in problem.inputs:
        if tensor is not None and tensor.size >= NARROW:
            return Reject(f"its rows and columns have 32 bits, and {tensor} has {tensor.size} values")
    return None


def _prepare_recurrent(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g = semantics.recurrent_geometry(problem)
    names = ("x_format", "w_format", "r_format", "accumulator", "y_format")
    x, w, r, accumulator, y = (format_of(problem, name) for name in names)
    given = {
        i: device.get(parameters[i]) for i in (rnn_semantics.W, rnn_semantics.R, rnn_semantics.B) if i in parameters
    }
    starts = np.zeros((g.directions, 2, g.gates * g.hidden), np.int64)
    if rnn_semantics.B in given:
        bias = accumulator.cast(given[rnn_semantics.B], format_of(problem, "b_format").fraction)
        starts = np.ascontiguousarray(bias.reshape(starts.shape))
    products = ((x, w, given[rnn_semantics.W], 0), (y, r, given[rnn_semantics.R], 1))
    largest = max(
        semantics.largest_sum(values, matrix, values.fraction + weight.fraction, starts[:, part], accumulator)
        for values, weight, matrix, part in products
    )
    drops = [values.fraction + weight.fraction - accumulator.fraction for values, weight, _, _ in products]
    kind = _sum_kind(largest, np.inf, max(drops), accumulator)
    if kind == "SUM_ROUNDED" and min(drops) < 0:
        kind = "SUM_CAST"  # one of the two is shifted up, which rounding does not do
    if kind == "SUM_NARROW":
        kind = "SUM_WIDE"
    looked_up = [name for name in semantics.FUNCTIONS if name in TABLE_REACH]
    size, found, kept = problem.integer("table_size"), semantics.tables(problem), format_of(problem, "table_format")
    tables = np.zeros((len(looked_up), size), np.int64)
    for entries, name in zip(tables, looked_up):
        if name in found:
            entries[:] = accumulator.cast(found[name], kept.fraction)
    codes = np.zeros((g.directions, 3), np.int32)
    for row, functions in zip(codes, g.activations):
        row[: len(functions)] = [semantics.FUNCTIONS.index(name) for name in functions]
    bits = tuple(table_bits(accumulator.fraction, name, size) for name in looked_up)
    kernel = device.load("fixed_recurrent.cu", "fixed_recurrent", {**_types(problem), "GATES": g.gates, "SUM": kind})
    reverse = (*g.reverse, False)[:2]
    struct = np.array(
        (
            *(g.steps, g.batch, g.inputs, g.hidden, reverse, g.linear_before_reset),
            *(*drops, accumulator.fraction, y.fraction, size, bits),
        ),
        RECURRENCE,
    )
    matrices = [
        device.put(np.ascontiguousarray(given[i].swapaxes(1, 2), np.int32)) for i in (rnn_semantics.W, rnn_semantics.R)
    ]
    constants = [device.put(array) for array in (tables, codes)]
    on_device, formats = device.put(starts), _formats(accumulator, y, reuse=problem.integer("reuse"))
    scratch_type = Tensor("int64", (g.directions, g.batch, 4 + 2 * g.gates, g.hidden))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        results = [device.empty(tensor) for tensor in problem.outputs]
        if g.batch:
            varying = [
                optional(inputs, i) for i in (rnn_semantics.LENGTHS, rnn_semantics.INITIAL_H, rnn_semantics.INITIAL_C)
            ]
            y_c = results[2] if len(results) == 3 else None
            kernel(
                (g.batch, g.directions), (THREADS,), inputs[rnn_semantics.X], *matrices, on_device, *varying, *constants,
                device.empty(scratch_type), *results[:2], y_c, struct, formats,
            )  # fmt: skip
        return tuple(results)

    return run
