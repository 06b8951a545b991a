"""The gradients of recurrent layers on the CPU, in order of priority."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.ops import rnn
from quatrefoil.ops import rnn_gradient as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Run, only_dtypes


def _prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    """Nothing is packed ahead: weights change from one call to the next."""
    from quatrefoil.cpu import _rnn

    wanted = zip(semantics.wanted(problem), (tensor.shape for tensor in problem.outputs))
    run: Run = _rnn.Gradient(
        instruction_set.index(),
        problem.op.removesuffix(semantics.GRADIENT),
        semantics.geometry(problem),
        problem.outputs[0].numpy_dtype,
        list(wanted),
        problem.has(rnn.LENGTHS),
    ).run
    return run


KERNELS: tuple[Kernel, ...] = tuple(
    kernel
    for layer in rnn.GATES
    for kernel in (
        Kernel(f"{layer}_gradient_packed_tnc_f32_simd", layer + semantics.GRADIENT, only_dtypes("float32"), _prepare,
               summary="steps backwards with packed weights, then one large product for each gradient"),
        Kernel(f"{layer}_gradient_general_tnc_f64_simd", layer + semantics.GRADIENT, only_dtypes("float64"), _prepare,
               summary="the definition, in loops"),
    )
)  # fmt: skip
