"""Rules of differentiation: held to central differences of the forward oracle, to kernels, and to torch where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import gradients, ops, reference
from quatrefoil.gradients import Backward
from quatrefoil.ops.spec import Case

STEP = 1e-6
MOST_VALUES = 4000  # of a forward call, so that oracles in plain loops take little time


def differentiable(case: Case) -> bool:
    problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
    values = sum(tensor.size for tensor in (*problem.inputs, *problem.outputs) if tensor is not None)
    small = problem.outputs[0].size > 0 and values <= MOST_VALUES
    return (
        small and gradients.is_float(problem.input(0)) and all(fill.kind != "special" for fill in case.fills.values())
    )


CASES = [case for op in gradients.RULES for case in ops.SPECS[op].cases() if differentiable(case)]


def double(case: Case) -> list[np.ndarray | None]:
    """A case's inputs in float64; integers stay."""
    return [
        None if array is None else array.astype(np.float64) if array.dtype.kind == "f" else array
        for array in case.arrays()
    ]


def by_oracle(
    problem: qf.Problem, arrays: list[np.ndarray | None], dys: list[np.ndarray | None]
) -> dict[int, np.ndarray]:
    """The gradients of all inputs by the operator's rule, every operator in it computed by its oracle."""
    rule = gradients.RULES[problem.op]
    wanted = tuple(i for i in rule.inputs if problem.has(i) and gradients.is_float(problem.input(i)))
    ys = reference.evaluate(problem, arrays)
    return dict(rule.backward(Backward(problem, arrays, ys, dys, wanted, reference.evaluate)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rules_meet_central_differences(case: Case) -> None:
    """Along a random direction in each input: (f(x + h v) - f(x - h v)) / 2h is v times the gradient."""
    problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
    arrays = double(case)[: len(problem.inputs)]
    rng = np.random.default_rng([1, *case.name.encode()])
    dys = [rng.standard_normal(y.shape) if gradients.is_float(y) else None for y in problem.outputs]

    def weighted(changed: list[np.ndarray | None]) -> float:
        ys = reference.evaluate(problem, changed)
        return sum(float((dy * y).sum()) for dy, y in zip(dys, ys) if dy is not None)

    for position, gradient in by_oracle(problem, arrays, dys).items():
        array = arrays[position]
        assert gradient.shape == array.shape
        direction = rng.standard_normal(array.shape)
        ends = []
        for sign in (1, -1):
            changed = list(arrays)
            changed[position] = array + sign * STEP * direction
            ends.append(weighted(changed))
        slope = (ends[0] - ends[1]) / (2 * STEP)
        scale = float(np.abs(gradient * direction).sum())
        assert abs(slope - float((gradient * direction).sum())) <= 1e-7 * scale + 1e-7, (
            f"input {position} of {problem.text}"
        )


def test_every_operator_that_trains_is_reached() -> None:
    """An operator of training that no rule calls is of no use; one that a rule calls has to be marked as such."""
    called = set()
    for case in CASES:
        problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
        rule = gradients.RULES[case.op]
        wanted = tuple(i for i in rule.inputs if problem.has(i) and gradients.is_float(problem.input(i)))
        types = tuple(y if gradients.is_float(y) else None for y in problem.outputs)

        def note(asked: qf.Problem, arrays: object) -> tuple[qf.Tensor, ...]:
            called.add(asked.op)
            return asked.outputs

        rule.backward(Backward(problem, problem.inputs, problem.outputs, types, wanted, note, explaining=True))
    assert {op for op, spec in ops.SPECS.items() if spec.training} <= called
