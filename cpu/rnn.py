"""The recurrent kernels of the CPU, in order of priority."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.ops import rnn as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Run, only_dtypes


def _prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    """float32 by the packed kernel, float64 by the general one."""
    from quatrefoil.cpu import _rnn

    dtype = problem.outputs[0].numpy_dtype
    weights = [
        np.ascontiguousarray(parameters[position], dtype) if position in parameters else None
        for position in (semantics.W, semantics.R, semantics.B, semantics.P)
    ]
    kind = semantics.layer(problem.op)
    geometry = semantics.geometry(problem)
    run: Run = _rnn.Layer(instruction_set.index(), kind, geometry, dtype, weights, problem.op != kind).run
    return run


KERNELS: list[Kernel] = [
    kernel
    for layer in semantics.GATES
    for op in (layer, layer + semantics.TRAINING)
    for kernel in (
        Kernel(f"{op}_packed_tnc_f32_simd", op, only_dtypes("float32"), _prepare, 3,
               summary="weights packed by blocks of units, input products of many steps at once"),
        Kernel(f"{op}_general_tnc_f64_simd", op, only_dtypes("float64"), _prepare, summary="the definition, in loops"),
    )
]  # fmt: skip
