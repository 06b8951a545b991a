"""Sparse recurrent layers on the vector unit: the array rests, since compressed rows fill none of its tiles.

A lane makes one unit of one sequence: a cycle for each stored value of its row (rows of the mean length, rounded up), then
the function and the leak. The matrix and x come from DRAM in every step, the states go there; a step begins when the one
before it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import (
    Setting,
    VectorPart,
    activation_cycles,
    native,
    reject_dtype,
    reject_size,
    run_simulated,
)
from quatrefoil.ops import sparse as ops
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run

NAME = "sparse_rnn_rows_tnc_f32_asic"


def lower(problem: Problem, design: Hardware, setting: Setting) -> list[VectorPart]:
    g = ops.geometry(problem)
    units = g.batch * g.hidden
    axis = native().Axis
    step = Tensor("float32", (g.batch, g.hidden))
    arriving = [(ops.X, step), *((i, problem.input(i)) for i in (ops.VALUES, ops.COLUMNS, ops.OFFSETS))]
    stage = native().VectorStage(
        axes=[axis(units, units), axis(), axis(), axis()],
        lane_cycles=-(-g.nonzeros // g.hidden) + activation_cycles(g.function, design) + (2 if g.leak < 1 else 0),
        **setting.traffic(arriving, [(0, step)], max(units, 1)),
    )
    return [VectorPart(stage)] * (g.steps if units else 0)


def prepare(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g, matrix = ops.geometry(problem), ops.rows(problem, parameters)
    unit_of = np.repeat(np.arange(g.hidden), np.diff(matrix.offsets))
    leak, kept = np.float32(g.leak), np.float32(1) - np.float32(g.leak)

    def compute(design: Hardware, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = inputs[ops.X]
        assert x is not None
        y = np.empty(problem.outputs[0].shape, np.float32)
        initial = inputs[ops.INITIAL_H] if problem.has(ops.INITIAL_H) else None
        h = np.zeros((g.batch, g.hidden), np.float32) if initial is None else initial
        with np.errstate(invalid="ignore", over="ignore"):
            for t in range(g.steps):
                # a lane's sum, value by value in the row's order
                sums = np.array(x[t].T, order="C")
                np.add.at(sums, unit_of, (h[:, matrix.columns] * matrix.values).T)
                made = g.function(sums.T).astype(np.float32)
                h = made if g.leak == 1 else kept * h + leak * made
                y[t] = h
        return (y,)

    return run_simulated(NAME, problem, lower, compute)


def accepts(problem: Problem) -> Reject | None:
    return reject_dtype(problem, "float32") or reject_size(problem)


KERNELS = (
    Kernel(
        NAME, ops.OP, accepts, prepare, summary="compressed rows on the vector unit, a stored value a cycle and lane"
    ),
)

LOWERINGS = {ops.OP: lower}
