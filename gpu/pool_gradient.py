"""Gradients of pooling in Numba CUDA (``pool_gradient_kernels.py``): their declarations.

A thread gathers what one place of dx gets, so that nothing is added by atomics and a second run gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from quatrefoil.gpu.launch import Device
from quatrefoil.gpu.pool import THREADS, accepts_floats, grid, window_tuple
from quatrefoil.ops import pool_gradient as semantics
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run

MOST = np.iinfo(np.int32).max


def kernels(device: Device) -> tuple[Kernel, ...]:
    """The declarations, to be run on ``device``."""
    summary = "one thread a place of dx"
    return (
        Kernel("max_pool_gradient_winners_nchw_any_numba", "max_pool_gradient", _accepts, partial(_prepare_max, device),
               summary="which tap won each window, then one thread a place of dx"),
        Kernel("average_pool_gradient_gather_nchw_any_numba", "average_pool_gradient", _accepts,
               partial(_prepare_average, device), summary=summary),
        Kernel("lp_pool_gradient_gather_nchw_any_numba", "lp_pool_gradient", _accepts, partial(_prepare_lp, device),
               summary=summary),
        Kernel("max_unpool_gradient_claim_nchw_any_numba", "max_unpool_gradient", _accepts,
               partial(_prepare_unpool, device), summary="the last element that claims a place takes its gradient"),
    )  # fmt: skip


def _accepts(problem: Problem) -> Reject | None:
    largest = max(problem.outputs[0].size, problem.input(semantics.DY).size)
    if largest > MOST:
        return Reject(f"it numbers places with 32 bits and there are {largest}; split the batch")
    return accepts_floats(problem)


def _prepare_max(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_gradient_kernels

    choose, gather = device.jit(pool_gradient_kernels.choose), device.jit(pool_gradient_kernels.gather_won)
    dx_type, dy_type = problem.outputs[0], problem.input(semantics.DY)
    window = window_tuple(semantics.geometry(problem))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        dx = device.empty(dx_type)
        if dx_type.size:
            dy, x = (array.reshape(-1) for array in inputs)  # type: ignore[union-attr]
            winners = device.empty(Tensor("int32", (dy_type.size,)))
            choose(grid(dy_type.size), (THREADS,), x, winners, window)
            gather(grid(dx_type.size), (THREADS,), dy, winners, dx.reshape(-1), window)
        return (dx,)

    return run


def _prepare_average(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_gradient_kernels

    gather = device.jit(pool_gradient_kernels.gather_average)
    g, dx_type = semantics.geometry(problem), problem.outputs[0]
    window, include_pad = window_tuple(g), problem.integer("count_include_pad")

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        dx = device.empty(dx_type)
        if dx_type.size:
            dy = inputs[0].reshape(-1)  # type: ignore[union-attr]
            gather(grid(dx_type.size), (THREADS,), dy, dx.reshape(-1), g.pads_end, include_pad, window)
        return (dx,)

    return run


def _prepare_lp(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_gradient_kernels

    gather = device.jit(pool_gradient_kernels.gather_lp)
    dx_type, p, window = problem.outputs[0], problem.integer("p"), window_tuple(semantics.geometry(problem))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        dx = device.empty(dx_type)
        if dx_type.size:
            dy, x, y = (array.reshape(-1) for array in inputs)  # type: ignore[union-attr]
            gather(grid(dx_type.size), (THREADS,), dy, x, y, dx.reshape(-1), p, window)
        return (dx,)

    return run


def _prepare_unpool(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    from quatrefoil.gpu import pool_gradient_kernels, pool_kernels

    clear, claim = device.jit(pool_kernels.unpool_clear), device.jit(pool_kernels.unpool_claim)
    take = device.jit(pool_gradient_kernels.unpool_take)
    g, dx_type, places = semantics.unpool_geometry(problem), problem.outputs[0], problem.input(semantics.DY).size

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        dx = device.empty(dx_type)
        if dx_type.size:
            dy, indices = (array.reshape(-1) for array in inputs)  # type: ignore[union-attr]
            winners = device.empty(Tensor("int32", (places,)))
            clear(grid(places), (THREADS,), winners)
            claim(grid(dx_type.size), (THREADS,), indices, winners, g.indexed, g.output)
            take(grid(dx_type.size), (THREADS,), dy, indices, winners, dx.reshape(-1), g.indexed, g.output)
        return (dx,)

    return run
