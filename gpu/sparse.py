"""Sparse recurrent layers in CUDA C++ (``src/sparse_recurrent.cu``), float32: a launch a step, a thread a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from quatrefoil.gpu.conv import optional
from quatrefoil.gpu.launch import MAX_GRID_YZ, Device, blocks
from quatrefoil.ops import sparse as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

BLOCK = 128


def kernels(device: Device) -> list[Kernel]:
    """The declarations, to be run on ``device``."""
    return [
        Kernel(
            "sparse_rnn_rows_tnc_f32_cuda", semantics.OP, _accepts, partial(_prepare, device),
            summary="a launch a step, a thread for each unit's compressed row",
        )
    ]  # fmt: skip


def _accepts(problem: Problem) -> Reject | None:
    batch = semantics.geometry(problem).batch
    if batch > MAX_GRID_YZ:
        return Reject(f"CUDA takes {MAX_GRID_YZ} blocks on a grid's second axis; {batch} sequences need more")
    return None


def _prepare(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g = semantics.geometry(problem)
    constants = {i: device.get(array) for i, array in parameters.items()}
    stored = [device.put(part) for part in semantics.rows(problem, constants)]
    launch = device.load("sparse_recurrent.cu", "sparse_step", {})
    function = (
        np.float32(g.leak),
        np.int32(g.function.code),
        np.float32(g.function.alpha),
        np.float32(g.function.beta),
    )
    grid = (blocks(g.hidden, BLOCK), g.batch)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        y = device.empty(problem.outputs[0])
        initial = optional(inputs, semantics.INITIAL_H)
        for step in range(g.steps if g.batch else 0):
            sizes = (np.int32(step), np.int32(g.batch), np.int32(g.hidden))
            launch(grid, (BLOCK,), inputs[semantics.X], *stored, initial, y, *sizes, *function)
        return (y,)

    return run
