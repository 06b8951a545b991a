"""The recurrent kernels of the CPU, in order of priority."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.ops import rnn as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run


def _only(*dtypes: str) -> Callable[[Problem], Reject | None]:
    def accepts(problem: Problem) -> Reject | None:
        if problem.dtype not in dtypes:
            return Reject(f"it computes {' and '.join(dtypes)}, not {problem.dtype}")
        return None

    return accepts


def _prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    """float32 by the packed kernel, float64 by the general one, float16 through float32."""
    from quatrefoil.cpu import _rnn

    half = problem.dtype == "float16"
    dtype = np.dtype(np.float32) if half else problem.outputs[0].numpy_dtype
    weights = [
        np.ascontiguousarray(parameters[position], dtype) if position in parameters else None
        for position in (semantics.W, semantics.R, semantics.B, semantics.P)
    ]
    run: Run = _rnn.Layer(instruction_set.index(), problem.op, semantics.geometry(problem), dtype, weights)
    return _through_float32(run) if half else run


def _through_float32(run: Run) -> Run:
    def converted(inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        wide = [
            array.astype(np.float32) if array is not None and array.dtype == np.float16 else array for array in inputs
        ]
        with np.errstate(over="ignore"):
            return tuple(output.astype(np.float16) for output in run(wide))

    return converted


KERNELS: list[Kernel] = [
    kernel
    for op in semantics.GATES
    for kernel in (
        Kernel(f"{op}_packed_tnc_f32_simd", op, _only("float32", "float16"), _prepare,
               summary="weights packed by blocks of units, input products of many steps at once"),
        Kernel(f"{op}_general_tnc_f64_simd", op, _only("float64"), _prepare, summary="the definition, in loops"),
    )
]  # fmt: skip
