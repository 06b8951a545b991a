"""What a rule of differentiation is, what it is given to work with, and the steps that are kept of it.

A rule sees types alone. What it asks for is noted once for a problem, and the steps then run for any arrays of these types
(``Steps.run``), so that a training step pays for its kernels and not for the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quatrefoil.dispatch import Call
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array

Types = tuple[Tensor | None, ...]
Compute = Callable[[Problem, Sequence[Array | None]], tuple[Array, ...]]
"""Runs a canonical problem."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of an operator (``what`` is its problem) or of a function of arrays that gives one array.

    reads: places of what it takes, None for an absent input; what it gives goes behind all that is there.
    """

    what: Problem | Callable[..., Array]
    reads: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """A rule, noted for one problem: which places hold the gradients in the end, by the input's position."""

    steps: tuple[Step, ...]
    gives: Mapping[int, int]

    def run(self, given: Sequence[Array | None], compute: Compute) -> dict[int, Array]:
        """The gradients by position. given: inputs, outputs and output gradients of the call, one behind the other; those
        that no step reads may be None."""
        places: list[Any] = list(given)
        for step in self.steps:
            taken = [None if place is None else places[place] for place in step.reads]
            if isinstance(step.what, Problem):
                places.extend(compute(step.what, taken))
            else:
                places.append(step.what(*taken))
        return {position: places[place] for position, place in self.gives.items()}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The operators that it calls, in order."""
        return tuple(step.what for step in self.steps if isinstance(step.what, Problem))


@dataclass
class Backward:
    """One call to differentiate, by types. A rule's arrays, C-contiguous ones in the backend's home, are known to it as the
    ``Tensor`` objects that stand here and that the methods give.

    problem    of the forward call
    inputs     its inputs, None for absent ones
    outputs    its outputs; those that the rule does not read may have no array
    gradients  of its outputs, None for one that nothing depends on; at least one is there
    wanted     positions of the inputs whose gradients the rule has to give
    """

    problem: Problem
    inputs: Types
    outputs: Types
    gradients: Types
    wanted: tuple[int, ...]
    steps: list[Step] = field(default_factory=list)
    known: list[Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        # equal types are told apart by being objects of their own
        self.inputs, self.outputs, self.gradients = (
            tuple(None if tensor is None else replace(tensor) for tensor in types)
            for types in (self.inputs, self.outputs, self.gradients)
        )
        self.known += (*self.inputs, *self.outputs, *self.gradients)

    def compute(self, problem: Problem, arrays: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The outputs of a canonical problem."""
        return self._noted(problem, arrays, problem.outputs)

    def run(
        self, op: str, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any], outputs: int = 1
    ) -> tuple[Tensor, ...]:
        """The outputs of an operator of the house, named by ONNX's attributes."""
        problem = Call(op, tuple(inputs), attributes, outputs).problem()
        return self.compute(problem, inputs[: len(problem.inputs)])

    def input(self, position: int) -> Tensor:
        """An input that is there."""
        tensor = self.inputs[position]
        assert tensor is not None, f"input {position} of {self.problem.text} is absent"
        return tensor

    def elementwise(self, compute: Callable[..., Array], *arrays: Tensor) -> Tensor:
        """``compute(*arrays)``, made of NumPy's functions, which work on arrays of any home; of the first one's type.
        float16 is computed in float32."""

        def step(*given: Array) -> Array:
            wide = [array.astype(np.float32) if array.dtype == np.float16 else array for array in given]
            return compute(*wide).astype(given[0].dtype, copy=False)

        (made,) = self._noted(step, arrays, arrays[:1])
        return made

    def arranged(self, compute: Callable[[Array], Array], array: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``compute(array)``, which moves or leaves out elements and gives ``shape``, C-contiguous."""

        def step(given: Array) -> Array:
            made = compute(given)
            return made if made.flags.c_contiguous else made.copy(order="C")

        (made,) = self._noted(step, (array,), (Tensor(array.dtype, shape),))
        return made

    def place(self, array: Tensor | None) -> int | None:
        return None if array is None else next(i for i, known in enumerate(self.known) if known is array)

    def _noted(
        self, what: Problem | Callable[..., Array], arrays: Sequence[Tensor | None], outputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        self.steps.append(Step(what, tuple(map(self.place, arrays))))
        made = tuple(map(replace, outputs))
        self.known += made
        return made


@dataclass(frozen=True, slots=True)
class Rule:
    """How one operator is differentiated.

    backward  gives the gradient of every input in ``Backward.wanted``, by position
    inputs    positions of the inputs that have gradients
    reads     positions of the outputs that ``backward`` reads
    training  the form of a problem to run where its gradients will be asked for: an operator with a rule of its own that gives
              the same outputs, and behind them what makes its gradients cheaper; None where there is none
    """

    backward: Callable[[Backward], Mapping[int, Tensor]]
    inputs: tuple[int, ...]
    reads: tuple[int, ...] = ()
    training: Callable[[Problem], Problem] | None = None

    def steps(self, problem: Problem, gradients: Types, wanted: tuple[int, ...]) -> Steps:
        """The steps that give the wanted gradients of a problem's inputs. gradients: types of those of its outputs, None for
        one that nothing depends on."""
        back = Backward(problem, problem.inputs, problem.outputs, gradients, wanted)
        found = self.backward(back)
        places = {position: back.place(found[position]) for position in wanted}
        return Steps(tuple(back.steps), {i: place for i, place in places.items() if place is not None})
