"""float16 on silicon that computes in float32: converted on the way in, rounded once on the way out.

Every float16 value is a float32 value, so maxima stay exact, and sums are rounded once at the end instead of at every
step. A backend adds these kernels behind its own; their ids say what they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run


def with_float16(kernels: Sequence[Kernel], target: str) -> tuple[Kernel, ...]:
    """The kernels, and for each operator that has float32 kernels one that widens float16 to them.

    target: the last part of the new kernels' ids, ``<op>_widened_any_f16_<target>``.
    """
    ops = dict.fromkeys(kernel.op for kernel in kernels)
    widened = (_widened(op, [kernel for kernel in kernels if kernel.op == op], target) for op in ops)
    return (*kernels, *(kernel for kernel in widened if kernel is not None))


INTEGER_OPS = ("conv_integer", "qlinear_conv")


def _widened(op: str, kernels: Sequence[Kernel], target: str) -> Kernel | None:
    if op in INTEGER_OPS:
        return None

    def accepts(problem: Problem) -> Reject | None:
        if problem.dtype != "float16":
            return Reject(f"it widens float16, and this is {problem.dtype}")
        single = _single(problem)
        rejects = [kernel.accepts(single) for kernel in kernels]
        if any(reject is None for reject in rejects):
            return None
        return Reject(f"no kernel takes it in float32 either: {'; '.join(map(str, rejects))}")

    def prepare(problem: Problem, parameters: Mapping[int, Array]) -> Run:
        single = _single(problem)
        kernel = next(kernel for kernel in kernels if kernel.accepts(single) is None)
        inner = kernel.prepare(single, {position: _to(array, "float32") for position, array in parameters.items()})

        def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
            given = [
                None if array is None or position in parameters else _to(array, "float32")
                for position, array in enumerate(inputs)
            ]
            with np.errstate(over="ignore"):  # beyond float16's range is infinity
                return tuple(_to(array, "float16") for array in inner(given))

        return run

    summary = "converted to float32 for the first kernel that takes it, and rounded back"
    return Kernel(f"{op}_widened_any_f16_{target}", op, accepts, prepare, summary=summary)


def _single(problem: Problem) -> Problem:
    """The same problem in float32."""
    inputs = tuple(None if tensor is None else _in_float32(tensor) for tensor in problem.inputs)
    return replace(problem, inputs=inputs, outputs=tuple(map(_in_float32, problem.outputs)))


def _in_float32(tensor: Tensor) -> Tensor:
    return replace(tensor, dtype="float32") if tensor.dtype == "float16" else tensor


def _to(array: Array, dtype: str) -> Array:
    """A floating-point array in another precision; integers (lengths, indices) as they are."""
    return array.astype(dtype) if array.dtype.kind == "f" else array
