"""Operators with compressed weights where no kernel reads these: decoded once, for the kernels of the base operator.

A backend adds these kernels behind its own; their ids say what they do. They save memory in files, not in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quatrefoil.ops import compressed
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

Move = Callable[[Array], Array]


def decoding(
    kernels: Sequence[Kernel], target: str, get: Move = np.asarray, put: Move = np.ascontiguousarray
) -> tuple[Kernel, ...]:
    """For each operator with compressed weights a kernel that decodes them for the first of ``kernels`` that takes the
    base operator.

    target: the last part of the new kernels' ids, ``<op>_decoded_any_f32_<target>``. get, put: bring an array from the
    backend's home to the host, and back.
    """
    return tuple(
        _decoding(form, [kernel for kernel in kernels if kernel.op == form.base.op], target, get, put)
        for form in compressed.FORMS.values()
    )


def _decoding(form: compressed.Form, kernels: Sequence[Kernel], target: str, get: Move, put: Move) -> Kernel:
    def accepts(problem: Problem) -> Reject | None:
        base = compressed.base(problem)
        rejects = [kernel.accepts(base) for kernel in kernels]
        if any(reject is None for reject in rejects):
            return None
        return Reject(f"no kernel takes it with dense weights either: {'; '.join(map(str, rejects))}")

    def prepare(problem: Problem, parameters: Mapping[int, Array]) -> Run:
        base = compressed.base(problem)
        kernel = next(kernel for kernel in kernels if kernel.accepts(base) is None)
        stored = {place: get(array) for place, array in parameters.items()}
        dense = {position: put(array) for position, array in compressed.decoded(problem, stored).items()}
        inner = kernel.prepare(base, dense)
        return lambda inputs: inner(compressed.base_inputs(problem, inputs))

    return Kernel(
        f"{form.op}_decoded_any_f32_{target}", form.op, accepts, prepare,
        summary=f"weights decoded once, for the first kernel of {form.base.op} that takes them dense",
        in_python=True,
        beyond=next((kernel.beyond for kernel in kernels if kernel.beyond), ""),
    )  # fmt: skip
