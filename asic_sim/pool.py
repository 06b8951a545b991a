"""Pooling on the vector unit: max_pool, average_pool, lp_pool and max_unpool.

The array rests. Blocks of outputs whose window's box fits into half of the activation memory come from DRAM, each
lane works through the taps of its output, one tap a cycle, and the results leave; blocks overlap by double buffering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import (
    Compute,
    Lowering,
    Setting,
    VectorPart,
    native,
    reject_dtype,
    reject_size,
    run_simulated,
    window_axes,
)
from quatrefoil.ops import pool as ops
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

Inputs = Sequence[np.ndarray | None]


def lower_window(problem: Problem, design: Hardware, setting: Setting) -> list[VectorPart]:
    g = ops.geometry(problem)
    lane_cycles = g.window.taps
    if problem.op == "average_pool":
        lane_cycles += 1  # times the reciprocal of the count
    if problem.op == "lp_pool":
        p = problem.integer("p")
        if p > 2:
            lane_cycles *= design.vector_function_cycles  # a power for each tap
        if p > 1:
            lane_cycles += design.vector_function_cycles  # the root
    stage = native().VectorStage(
        axes=[native().Axis(g.planes, g.planes), *window_axes(g.window)],
        lane_cycles=lane_cycles,
        **setting.traffic([(0, problem.input(0))], enumerate(problem.outputs)),
    )
    return [VectorPart(stage)]


def lower_unpool(problem: Problem, design: Hardware, setting: Setting) -> list[VectorPart]:
    """Zeros stream out first; then values and indices come in and each value goes to its place."""
    axis = native().Axis
    x, y = problem.input(0), problem.outputs[0]
    zeros = [axis(0, y.size), axis(), axis(), axis()]
    values = [axis(x.size, x.size), axis(), axis(), axis()]
    return [
        VectorPart(native().VectorStage(axes=zeros, lane_cycles=1, **setting.traffic([], [(0, y)]))),
        VectorPart(
            native().VectorStage(axes=values, lane_cycles=1, **setting.traffic(enumerate(problem.inputs[:2]), [(0, y)]))
        ),
    ]


def _pool(problem: Problem) -> Any:
    g = ops.geometry(problem)
    return native().Pool(g.planes, window_axes(g.window))


def compute_max(problem: Problem) -> Compute:
    pool = _pool(problem)
    column_major = problem.integer("storage_order") == 1

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        outputs = tuple(np.empty(tensor.shape, tensor.numpy_dtype) for tensor in problem.outputs)
        native().max_pool(pool, column_major, inputs[0], outputs[0], outputs[1] if len(outputs) == 2 else None)
        return outputs

    return compute


def compute_average(problem: Problem) -> Compute:
    g = ops.geometry(problem)
    pool = divisor = _pool(problem)
    if problem.integer("count_include_pad"):
        # the same windows over an input that holds the padding
        w = g.window
        extents = [pad + n + end for pad, n, end in zip(w.pads, w.input, g.pads_end)]
        axes = [
            native().Axis(n, o, k, s, 0, d)
            for n, o, k, s, d in zip(extents, w.output, w.kernel, w.strides, w.dilations)
        ]
        divisor = native().Pool(g.planes, axes)

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        y = np.empty(problem.outputs[0].shape, np.float32)
        native().average_pool(pool, divisor, inputs[0], y)
        return (y,)

    return compute


def compute_lp(problem: Problem) -> Compute:
    pool, p = _pool(problem), problem.integer("p")

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        y = np.empty(problem.outputs[0].shape, np.float32)
        native().lp_pool(pool, p, inputs[0], y)
        return (y,)

    return compute


def compute_unpool(problem: Problem) -> Compute:
    g = ops.unpool_geometry(problem)

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        y = np.zeros(problem.outputs[0].shape, problem.outputs[0].numpy_dtype)
        native().max_unpool(g.planes, g.indexed, g.output, inputs[0], inputs[1], y)
        return (y,)

    return compute


def _kernel(
    op: str, dtype: str, dtypes: tuple[str, ...], lower: Lowering, computing: Callable[[Problem], Compute], summary: str
) -> Kernel:
    name = f"{op}_vector_nchw_{dtype}_asic"

    def accepts(problem: Problem) -> Reject | None:
        return reject_dtype(problem, *dtypes) or reject_size(problem)

    def prepare(problem: Problem, parameters: Mapping[int, Array]) -> Run:
        return run_simulated(name, problem, lower, computing(problem))

    return Kernel(name, op, accepts, prepare, summary=summary)


F32 = ("float32",)
ANY = ("float32", "uint8", "int8")

KERNELS = [
    _kernel("max_pool", "any", ANY, lower_window, compute_max, "one output a lane, one tap a cycle"),
    _kernel("average_pool", "f32", F32, lower_window, compute_average, "one output a lane, one tap a cycle"),
    _kernel("lp_pool", "f32", F32, lower_window, compute_lp, "one output a lane, one tap a cycle, then the root"),
    _kernel("max_unpool", "any", ANY, lower_unpool, compute_unpool, "zeros first, then each value to its place"),
]

LOWERINGS = {kernel.op: lower_unpool if kernel.op == "max_unpool" else lower_window for kernel in KERNELS}
