"""The FPGA backend's kernel of sparse recurrent layers: states on the chip, the matrix streamed once a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quatrefoil.fpga import opencl
from quatrefoil.fpga.limits import HIDDEN_LIMIT, unsuited
from quatrefoil.fpga.rnn import capacity
from quatrefoil.ops import sparse as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run


def accepts(problem: Problem) -> Reject | None:
    rejected = unsuited(problem)
    if rejected is not None:
        return rejected
    hidden = semantics.geometry(problem).hidden
    if hidden > HIDDEN_LIMIT:
        return Reject(f"the layer has {hidden} units; the states of up to {HIDDEN_LIMIT} stay on the chip")
    return None


def prepare(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g, matrix = semantics.geometry(problem), semantics.rows(problem, parameters)
    if problem.outputs[0].size == 0:  # nothing reaches the device
        return lambda inputs: (np.empty(problem.outputs[0].shape, np.float32),)
    runtime = opencl.runtime()
    program = runtime.program("sparse_recurrent", {"CAPACITY": capacity(g.hidden)})
    # a device has no empty buffers; a matrix without values is never read
    stored = [runtime.upload(part if part.size else np.zeros(1, part.dtype)) for part in matrix]
    function = (np.int32(g.function.code), np.float32(g.function.alpha), np.float32(g.function.beta))
    sizes = (np.int32(g.steps), np.int32(g.batch), np.int32(g.hidden), np.float32(g.leak))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        initial = inputs[semantics.INITIAL_H] if problem.has(semantics.INITIAL_H) else None
        return program((inputs[semantics.X], *stored, initial, *sizes, *function), problem.outputs)

    return run


KERNELS = (
    Kernel("sparse_rnn_rows_tnc_f32_opencl", semantics.OP, accepts, prepare,
           summary="states on the chip, compressed rows streamed once a step"),
)  # fmt: skip
