"""What a rule of differentiation is, and what it is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quatrefoil.dispatch import Call
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array

Arrays = Sequence[Array | None]


@dataclass(frozen=True)
class Backward:
    """One call to differentiate. Arrays are in the backend's home and C-contiguous; while the gradients are only explained,
    a ``Tensor`` stands in for each.

    problem    of the forward call
    inputs     its inputs, None for absent ones
    outputs    those of its outputs that the rule reads, None for the others
    gradients  of its outputs, None for one that nothing depends on; at least one is there
    wanted     positions of the inputs whose gradients the rule has to give
    compute    runs a canonical problem on the call's backend, through dispatch
    """

    problem: Problem
    inputs: Arrays
    outputs: Arrays
    gradients: Arrays
    wanted: tuple[int, ...]
    compute: Callable[[Problem, Arrays], tuple[Array, ...]]
    explaining: bool = False

    def run(
        self, op: str, inputs: Sequence[Array | None], attributes: Mapping[str, Any], outputs: int = 1
    ) -> tuple[Array, ...]:
        """Run an operator of the house, named by ONNX's attributes, on arrays (or types)."""
        call = Call(op, tuple(inputs), attributes, outputs)
        problem = call.problem()
        return self.compute(problem, call.inputs[: len(problem.inputs)])

    def elementwise(self, compute: Callable[..., Array], *arrays: Array) -> Array:
        """``compute(*arrays)``, made of NumPy's functions, which work on arrays of any home; of the first one's type.
        float16 is computed in float32."""
        if self.explaining:
            return Tensor.of(arrays[0])
        wide = [array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays]
        return compute(*wide).astype(arrays[0].dtype, copy=False)

    def arranged(self, compute: Callable[[Array], Array], array: Array, shape: tuple[int, ...]) -> Array:
        """``compute(array)``, which moves or leaves out elements and gives ``shape``, C-contiguous."""
        if self.explaining:
            return Tensor(Tensor.of(array).dtype, shape)
        made = compute(array)
        return made if made.flags.c_contiguous else made.copy(order="C")


@dataclass(frozen=True, slots=True)
class Rule:
    """How one operator is differentiated.

    backward  gives the gradient of every input in ``Backward.wanted``, by position
    inputs    positions of the inputs that have gradients
    reads     positions of the outputs that ``backward`` reads
    training  the form of a problem to run where its gradients will be asked for: an operator with a rule of its own that gives
              the same outputs, and behind them what makes its gradients cheaper; None where there is none
    """

    backward: Callable[[Backward], Mapping[int, Array]]
    inputs: tuple[int, ...]
    reads: tuple[int, ...] = ()
    training: Callable[[Problem], Problem] | None = None
