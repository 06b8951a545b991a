"""Pooling kernels in Numba CUDA (``pool_kernels.py``): their declarations.

Numba compiles each kernel when it is first launched, once for each dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np

from quatrefoil.gpu.launch import Device, blocks
from quatrefoil.ops import pool as semantics
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run

THREADS = 128
MAX_BLOCKS = 2**31 - 1
MAX_DTYPES = ("float32", "float64", "uint8", "int8")
PLANE_TAPS = 32  # a warp has something to do from here on


def kernels(device: Device) -> list[Kernel]:
    """The declarations, to be run on ``device``."""
    return [
        Kernel(
            "max_pool_direct_nchw_any_numba", "max_pool", _accepts_max, partial(_prepare_max, device),
            summary="one thread an output value",
        ),
        Kernel(
            "average_pool_plane_nchw_f32_numba", "average_pool", _accepts_plane, partial(_prepare_plane, device),
            summary="one block a plane, for global pooling",
        ),
        Kernel(
            "average_pool_direct_nchw_f32_numba", "average_pool", _accepts_float32, partial(_prepare_average, device),
            summary="one thread an output value",
        ),
        Kernel(
            "lp_pool_direct_nchw_f32_numba", "lp_pool", _accepts_float32, partial(_prepare_lp, device),
            summary="one thread an output value",
        ),
        Kernel(
            "max_unpool_claim_nchw_any_numba", "max_unpool", _accepts_unpool, partial(_prepare_unpool, device),
            summary="each output place gathers the last value that claims it",
        ),
    ]  # fmt: skip


def _accepts(problem: Problem, dtypes: Sequence[str]) -> Reject | None:
    if problem.dtype not in dtypes:
        return Reject(f"it computes in {', '.join(dtypes)} and x is {problem.dtype}; convert x, or use backend='cpu'")
    if blocks(problem.outputs[0].size, THREADS) > MAX_BLOCKS:
        return Reject(f"the output {problem.outputs[0]} needs more than {MAX_BLOCKS} blocks; split the batch")
    return None


def _accepts_max(problem: Problem) -> Reject | None:
    return _accepts(problem, MAX_DTYPES)


def _accepts_float32(problem: Problem) -> Reject | None:
    return _accepts(problem, ("float32",))


def _accepts_plane(problem: Problem) -> Reject | None:
    if reject := _accepts_float32(problem):
        return reject
    g = semantics.geometry(problem)
    if g.window.kernel != g.window.input or any(g.window.pads) or any(g.pads_end) or set(g.window.dilations) != {1}:
        return Reject("it is for global pooling: a window that is the whole plane, without pads and dilation")
    if g.window.taps < PLANE_TAPS:
        return Reject(f"it is for planes of {PLANE_TAPS} values or more and these have {g.window.taps}")
    return None


def accepts_floats(problem: Problem) -> Reject | None:
    """float32 and float64; half precision is widened (``quatrefoil.widening``)."""
    return _accepts(problem, ("float32", "float64"))


def _accepts_unpool(problem: Problem) -> Reject | None:
    if problem.input(0).size > np.iinfo(np.int32).max:
        return Reject(f"it numbers values with 32 bits and x has {problem.input(0).size}; split the batch")
    return _accepts(problem, MAX_DTYPES)


def window_tuple(g: semantics.PoolGeometry) -> tuple[int, ...]:
    w = g.window
    return tuple(chain(w.input, w.output, w.kernel, w.strides, w.dilations, w.pads))


def grid(count: int) -> tuple[int]:
    return (blocks(count, THREADS),)


def _prepare_max(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_kernels

    kernel = device.jit(pool_kernels.max_pool)
    y_type, window = problem.outputs[0], window_tuple(semantics.geometry(problem))
    dtype = y_type.numpy_dtype
    lowest = dtype.type(-np.inf) if dtype.kind == "f" else np.iinfo(dtype).min
    with_indices = len(problem.outputs) > 1
    column_major = problem.integer("storage_order")
    no_indices = device.empty(Tensor("int64", (1,)))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        outputs = tuple(device.empty(tensor) for tensor in problem.outputs)
        if y_type.size:
            x, y, *more = (array.reshape(-1) for array in (inputs[0], *outputs))
            indices = more[0] if with_indices else no_indices
            kernel(grid(y_type.size), (THREADS,), x, y, indices, lowest, int(with_indices), column_major, window)
        return outputs

    return run


def _prepare_average(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_kernels

    kernel = device.jit(pool_kernels.average_pool)
    g = semantics.geometry(problem)
    y_type, window, include_pad = problem.outputs[0], window_tuple(g), problem.integer("count_include_pad")

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            x = inputs[0].reshape(-1)  # type: ignore[union-attr]
            kernel(grid(y_type.size), (THREADS,), x, y.reshape(-1), g.pads_end, include_pad, window)
        return (y,)

    return run


def _prepare_plane(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_kernels

    kernel = device.jit(pool_kernels.average_pool_plane)
    y_type, size = problem.outputs[0], semantics.geometry(problem).window.taps

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            x = inputs[0].reshape(-1)  # type: ignore[union-attr]
            kernel((y_type.size,), (pool_kernels.PLANE_THREADS,), x, y.reshape(-1), size)
        return (y,)

    return run


def _prepare_lp(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_kernels

    kernel = device.jit(pool_kernels.lp_pool)
    y_type, window, p = problem.outputs[0], window_tuple(semantics.geometry(problem)), problem.integer("p")

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            kernel(grid(y_type.size), (THREADS,), inputs[0].reshape(-1), y.reshape(-1), p, window)  # type: ignore[union-attr]
        return (y,)

    return run


def _prepare_unpool(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_kernels

    clear = device.jit(pool_kernels.unpool_clear)
    claim = device.jit(pool_kernels.unpool_claim)
    gather = device.jit(pool_kernels.unpool_gather)
    g = semantics.unpool_geometry(problem)
    x_size, y_type = problem.input(0).size, problem.outputs[0]

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(y_type)
        if y_type.size:
            x, indices = (array.reshape(-1) for array in inputs)  # type: ignore[union-attr]
            winners = device.empty(Tensor("int32", (y_type.size,)))
            clear(grid(y_type.size), (THREADS,), winners)
            if x_size:
                claim(grid(x_size), (THREADS,), indices, winners, g.indexed, g.output)
            gather(grid(y_type.size), (THREADS,), x, winners, y.reshape(-1))
        return (y,)

    return run
