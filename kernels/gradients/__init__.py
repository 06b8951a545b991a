"""Gradients of the operators, by operators: ``qf.gradients``.

    y, back = qf.gradients.pullback(qf.conv2d, x, w, bias, padding=1)
    dx, dw, dbias = back(dy)                                             # NumPy alone is enough
    qf.gradients.explain(qf.conv2d, x, w, bias, padding=1)               # which kernels the gradients would run

``vjp`` is the same for a canonical Problem, for those who keep inputs and outputs themselves. What a gradient is made
of is a rule (``rule.py``), a few calls of operators of the house: each goes through dispatch on the same backend, so
that it is chosen, refused and explained like any other call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TextIO

from quatrefoil import backends, dispatch
from quatrefoil.dispatch import Selection
from quatrefoil.errors import OperatorError
from quatrefoil.functional import OperatorFunction, operator_of
from quatrefoil.gradients import conv, pool, rnn
from quatrefoil.gradients.conv import conv_bias_gradient, conv_weight_gradient
from quatrefoil.gradients.rule import Backward, Rule, Steps
from quatrefoil.ops import SPECS
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array

RULES: dict[str, Rule] = {**conv.RULES, **pool.RULES, **rnn.RULES}
"""How each operator is differentiated, by its name."""


def vjp(
    problem: Problem,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    output_gradients: Sequence[Any],
    wanted: Sequence[int] | None = None,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """The gradients of a forward call's inputs, from those of its outputs (a vector-Jacobian product).

    problem: of the forward call. inputs: its inputs, None for absent ones. outputs: its outputs; those that the
    operator's rule does not read (``RULES[op].reads``) may be None, or the sequence may be empty.
    output_gradients: of each output's dtype and shape, None for one that nothing depends on.
    wanted: positions of the inputs whose gradients are asked for; None: all that there are.
    backend: as for any call; left out, ``with qf.backend(...)`` or the home of the gradients decides.

    Returns a gradient of each input's dtype and shape, None for the others. Raises OperatorError for an operator without
    gradients, arrays that are not the problem's, and an input that has no gradient (lengths, indices).
    """
    rule = rule_of(problem.op)
    positions = _positions(problem, rule, wanted)
    given = _checked(problem, "input", inputs, problem.inputs)
    results = _outputs(problem, rule, outputs)
    gradients = _checked(problem, "output gradient", output_gradients, problem.outputs, optional=True)
    return differentiate(problem, (*given, *results, *gradients), positions, backend)


def differentiate(
    problem: Problem, arrays: Sequence[Any], wanted: tuple[int, ...], backend: str | None = None
) -> tuple[Any, ...]:
    """``vjp`` for callers whose arrays are the problem's already. arrays: its inputs, its outputs and their gradients, None for
    what is absent or not read. wanted: positions in rising order."""
    gradients = arrays[len(problem.inputs) + len(problem.outputs) :]
    present = tuple(gradient is not None for gradient in gradients)
    first = next((gradient for gradient in gradients if gradient is not None), None)
    if first is None:
        raise OperatorError(problem.op, "every output gradient", None, "give at least one")
    name, why = dispatch.chosen_backend(backend, first)
    house = backends.get(name)
    if not house.probe().ready:
        dispatch.select(problem, name, why).chosen  # noqa: B018, raises with what would add the backend

    def run(asked: Problem, taken: Sequence[Array | None]) -> tuple[Array, ...]:
        return dispatch.run_problem(asked, taken, name, why_backend=why)

    if dispatch.is_home(house, arrays):
        by_position = steps(problem, present, wanted).run(arrays, run)
    else:
        native = [None if array is None else dispatch.bring(house, array) for array in arrays]
        found = steps(problem, present, wanted).run(native, run)
        made = dispatch.returned(house, tuple(found[position] for position in wanted), first, tuple)
        by_position = dict(zip(wanted, made))
    return tuple(by_position.get(position) for position in range(len(problem.inputs)))


@lru_cache(maxsize=4096)
def steps(problem: Problem, present: tuple[bool, ...], wanted: tuple[int, ...]) -> Steps:
    """What the rule of a problem's operator does. present: for each output, whether its gradient is given."""
    types = tuple(tensor if there else None for tensor, there in zip(problem.outputs, present))
    return rule_of(problem.op).steps(problem, types, wanted)


def pullback(
    function: OperatorFunction, *args: Any, backend: str | None = None, **kwargs: Any
) -> tuple[Any, Callable[..., tuple[Any, ...]]]:
    """What a function returns, and the function that takes the gradients of its outputs back to its inputs.

        y, back = qf.gradients.pullback(qf.max_pool2d, x, 2)
        (dx,) = back(dy)

    ``back`` takes a gradient for each floating-point output in order (None where nothing depends on it), and gives one for each
    array that the function was given, in the operator's order (ops/), None for those that have none.
    """
    call = operator_of(function).call(*args, **kwargs)
    own = call.problem()
    problem = training(own)
    kept: list[tuple[Any, ...]] = []
    finish = call.finish

    def keep(outputs: tuple[Any, ...]) -> Any:
        kept.append(outputs)
        return finish(outputs[: len(own.outputs)])

    result = dispatch.call(dispatch.Call(problem.op, call.inputs, call.attributes, call.outputs, keep), backend)
    inputs = call.inputs[: len(problem.inputs)]

    def back(*gradients: Any) -> tuple[Any, ...]:
        floats = [place for place, tensor in enumerate(own.outputs) if is_float(tensor)]
        if len(gradients) != len(floats):
            raise OperatorError(problem.op, "the number of output gradients", len(gradients), f"give {len(floats)}")
        by_place = dict(zip(floats, gradients))
        return vjp(
            problem,
            inputs,
            kept[0],
            [by_place.get(place) for place in range(len(problem.outputs))],
            None,
            backend,
        )

    return result, back


def explain(
    function: OperatorFunction,
    *args: Any,
    wanted: Sequence[int] | None = None,
    backend: str | None = None,
    file: TextIO | None = sys.stdout,
    **kwargs: Any,
) -> tuple[Selection, ...]:
    """Which kernels the gradients of a call would run, in order, and why the others would not.

    Arguments are the function's own (``qf.Tensor`` where only the type is known), ``wanted`` as in ``vjp``. Prints and returns
    the Selection of each operator that the rule calls. Nothing is computed.
    """
    call = operator_of(function).call(*args, **kwargs)
    problem = training(call.problem())
    rule = rule_of(problem.op)
    first = next(array for array in call.inputs if array is not None)
    name, why = dispatch.chosen_backend(backend, first)
    present = tuple(is_float(tensor) for tensor in problem.outputs)
    noted = steps(problem, present, _positions(problem, rule, wanted))
    selections = [dispatch.select(asked, name, why) for asked in noted.problems]
    if file is not None:
        print("\n".join(map(str, selections)), file=file)
    return tuple(selections)


def training(problem: Problem) -> Problem:
    """The problem to run where gradients will be asked for, with ``vjp`` of it instead: the same outputs, and behind them what
    makes its gradients cheaper. It is the problem itself for most operators. Raises OperatorError without a rule."""
    rule = rule_of(problem.op)
    return problem if rule.training is None else rule.training(problem)


def is_float(tensor: Tensor) -> bool:
    """Whether values of this type have gradients."""
    return tensor.numpy_dtype.kind == "f"


def rule_of(op: str) -> Rule:
    """The rule of an operator. Raises OperatorError where there is none."""
    rule = RULES.get(op)
    if rule is None:
        raise OperatorError(op, "its gradient", "asked for", f"operators with gradients are {', '.join(RULES)}")
    return rule


def _positions(problem: Problem, rule: Rule, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The wanted inputs, in order; every one has to be there and to have a gradient."""
    possible = tuple(
        position for position in rule.inputs if problem.has(position) and is_float(problem.input(position))
    )
    if wanted is None:
        return possible
    for position in wanted:
        if position not in possible:
            names = SPECS[problem.op].input_names
            known = ", ".join(f"{place} ({names[place]})" for place in possible)
            raise OperatorError(problem.op, "a wanted input", position, f"inputs with gradients here are {known}")
    return tuple(sorted(set(wanted)))


def _checked(
    problem: Problem, what: str, arrays: Sequence[Any], types: Sequence[Tensor | None], optional: bool = False
) -> list[Any]:
    """Arrays of just these types, filled up with None. optional: an array may be left out."""
    if any(array is not None for array in arrays[len(types) :]):
        raise OperatorError(problem.op, f"the number of {what}s", len(arrays), f"give at most {len(types)}")
    filled = [*arrays[: len(types)], *[None] * (len(types) - len(arrays))]
    for place, (array, tensor) in enumerate(zip(filled, types)):
        if array is None and (optional or tensor is None):
            continue
        if array is None or tensor is None or Tensor.of(array) != tensor:
            given = "missing" if array is None else Tensor.of(array)
            raise OperatorError(problem.op, f"{what} {place}", given, f"it has to be {tensor or 'left out'}")
        if isinstance(array, Tensor):
            raise OperatorError(problem.op, f"{what} {place}", "a type alone", "give an array")
    return filled


def _outputs(problem: Problem, rule: Rule, outputs: Sequence[Any]) -> list[Any]:
    """The outputs that the rule reads, and None for the others."""
    results = _checked(problem, "output", outputs, problem.outputs, optional=True)
    for place in rule.reads:
        if place < len(problem.outputs) and results[place] is None:
            raise OperatorError(
                problem.op, f"output {place}", "missing", "its gradient is computed from it, so give it"
            )
    return [array if place in rule.reads else None for place, array in enumerate(results)]


__all__ = [
    "RULES",
    "Backward",
    "Rule",
    "conv_bias_gradient",
    "conv_weight_gradient",
    "explain",
    "pullback",
    "training",
    "vjp",
]
