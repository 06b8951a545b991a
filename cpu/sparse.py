"""The CPU's kernel of sparse recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.ops import sparse as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Run, only_dtypes


def _prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _sparse

    matrix = semantics.Rows(*map(np.ascontiguousarray, semantics.rows(problem, parameters)))
    run: Run = _sparse.Layer(
        instruction_set.index(), semantics.geometry(problem), matrix, problem.outputs[0].numpy_dtype
    ).run
    return run


KERNELS = [
    Kernel("sparse_rnn_rows_tnc_f32_simd", semantics.OP, only_dtypes("float32"), _prepare,
           summary="compressed rows; many sequences a vector at a time"),
]  # fmt: skip
