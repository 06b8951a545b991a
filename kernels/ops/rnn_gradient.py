"""Gradients of recurrent layers through time: rnn_gradient, lstm_gradient and gru_gradient.

Inputs (sizes as in rnn.py, layout 0; S sums a unit)
  0 to 7   x, w, r, b?, sequence_lens?, initial_h?, initial_c?, p? of the layer
  8, 9     y (T, D, N, H) and sums (T, D, N, S H), as the layer's training form gave them
  10 to 12 dy (T, D, N, H)?, dy_h (D, N, H)?, lstm's dy_c (D, N, H)?: gradients of the layer's outputs; absent is zero
Outputs
  the gradient of each input in ``wanted``, in order, each of the input's type

With dh and dc the gradients of the states behind a step (dy_h, dy_c behind the last valid one), dy's step added to dh,
and d(gate) that of a gate's sum (its function's slope taken; 0 where ``clip`` cut the sum off, or it lies on the bound):

  rnn    d(f) = dh f'
  lstm   d(o) = dh h(c') f', dc += dh o h'(c') + Po d(o); d(i) = dc c~ f', d(f) = dc c f', d(c) = dc i g',
         or with input_forget d(i) = dc (c~ - c) f' and d(f) = 0; then dc = f dc + Pi d(i) + Pf d(f)
  gru    d(z) = dh (h - h~) f', d(h) = dh (1 - z) g'; with linear_before_reset d(r) = d(h) (Rh h + brh) f', and r d(h) goes
         through Rh; without it e = Rh^T d(h), d(r) = e h f', and r e goes to h
  then   dh = R^T d(gates) (for gru + z dh, + r e), dx = W^T d(gates)
  sums over all steps: dw = d(gates) x^T, dr = d(gates) h^T (gru's Rh: r d(h) h^T, or d(h) (r h)^T), db, dp

The states h are read from y, the cells c are made from the sums again. Steps from sequence_lens on give nothing, whatever
stands there. Functions' slopes at a kink are those of ops/activations.py.

Canonical attributes: those of the layer but layout, and ``wanted``, positions of inputs from 0 to 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from quatrefoil.errors import OperatorError
from quatrefoil.ops import rnn
from quatrefoil.ops.rnn import INITIAL_C, INITIAL_H, B, P, R, RecurrentGeometry, W, X
from quatrefoil.ops.spec import Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.problem import Problem, Tensor, Tolerance, Work

GRADIENT = "_gradient"
Y, SUMS, DY, DY_H, DY_C = range(8, 13)
NAMES = (*rnn.NAMES, "y", "sums", "dy", "dy_h", "dy_c")
OUTPUT_GRADIENTS = (DY, DY_H, DY_C)
DIFFERENTIABLE = (X, W, R, B, INITIAL_H, INITIAL_C, P)
"""Positions of the layer's inputs that have gradients."""

LSTM_ALONE = (INITIAL_C, P, DY_C)


def layer(problem: Problem) -> Problem:
    """The training form of the layer that is differentiated."""
    attributes = [(name, value) for name, value in problem.attributes if name != "wanted"]
    op = problem.op.removesuffix(GRADIENT)
    return rnn.training(Problem(op, problem.inputs[: _count(op)], (), tuple(attributes)))


def _count(op: str) -> int:
    """Inputs of a layer."""
    return len(rnn.NAMES) if op == "lstm" else INITIAL_C


@lru_cache(maxsize=1024)
def geometry(problem: Problem) -> RecurrentGeometry:
    """The geometry of the layer."""
    return rnn.geometry(layer(problem))


def wanted(problem: Problem) -> tuple[int, ...]:
    """Positions of the inputs whose gradients are the outputs, in order."""
    return problem.ints("wanted")


def canonical(op: str, inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    """``op``: rnn, lstm or gru."""
    name = op + GRADIENT
    if len(inputs) > len(NAMES):
        raise OperatorError(name, "the number of inputs", len(inputs), f"it takes {', '.join(NAMES)}")
    given = [*inputs, *[None] * (len(NAMES) - len(inputs))]
    if op != "lstm":
        for position in LSTM_ALONE:
            if given[position] is not None:
                raise OperatorError(name, NAMES[position], given[position], "only lstm has it; leave it out")
    own = {key: value for key, value in attributes.items() if key != "wanted"}
    if own.get("layout"):
        raise OperatorError(name, "layout", own["layout"], "it takes layout 0; swap the first two axes")
    forward = rnn.training(_canonical_layer(op, given[: _count(op)], own))
    y, *states, sums = forward.outputs
    types = {Y: y, SUMS: sums, DY: y, DY_H: states[0], DY_C: states[-1]}
    for position, tensor in types.items():
        if position in (Y, SUMS) and given[position] is None:
            raise OperatorError(name, NAMES[position], "missing", f"give what {op}_training gave, {tensor}")
        if given[position] is not None and given[position] != tensor:
            raise OperatorError(name, NAMES[position], given[position], f"it has to be {tensor}")
    if all(given[position] is None for position in OUTPUT_GRADIENTS):
        raise OperatorError(name, "every output gradient", "missing", "give dy, dy_h or dy_c")
    positions = _wanted(name, given, attributes.get("wanted"))
    while given[-1] is None:
        given.pop()
    settled = (*forward.attributes, ("wanted", positions))
    return Problem(name, tuple(given), tuple(_present(given, position) for position in positions), settled)


@lru_cache(maxsize=1024)
def gradient(problem: Problem, given: tuple[bool, ...], asked: tuple[int, ...]) -> Problem:
    """The problem of the gradients of a layer's problem of layout 0.

    given: which of dy, dy_h and dy_c there are. asked: positions of inputs, as ``wanted``.
    """
    form = rnn.training(problem)
    y, *states, sums = form.outputs
    dys = [tensor if there else None for tensor, there in zip((y, *states), given)]
    inputs = [*form.inputs, *[None] * (Y - len(form.inputs)), y, sums, *dys]
    return canonical(rnn.layer(problem.op), inputs, {**rnn.onnx_attributes(problem), "wanted": asked})


def _canonical_layer(op: str, inputs: Sequence[Tensor | None], attributes: Attributes) -> Problem:
    make = {"rnn": rnn.canonical_rnn, "lstm": rnn.canonical_lstm, "gru": rnn.canonical_gru}[op]
    return make(inputs, attributes)


def _present(given: Sequence[Tensor | None], position: int) -> Tensor:
    tensor = given[position]
    assert tensor is not None
    return tensor


def _wanted(name: str, given: Sequence[Tensor | None], asked: Any) -> tuple[int, ...]:
    possible = tuple(position for position in DIFFERENTIABLE if given[position] is not None)
    if asked is None:
        return possible
    for position in asked:
        if position not in possible:
            known = ", ".join(f"{place} ({NAMES[place]})" for place in possible)
            raise OperatorError(name, "wanted", position, f"inputs with gradients here are {known}")
    if not asked:
        raise OperatorError(name, "wanted", "empty", "ask for at least one gradient")
    return tuple(sorted(set(map(int, asked))))


def validate(problem: Problem, inputs: Sequence[Any]) -> None:
    """sequence_lens have to lie in 0 to T."""
    rnn.validate_lengths(problem, inputs, problem.input(X).shape[0])


def work(problem: Problem) -> Work:
    """The matrix products; all T steps counted for every sequence."""
    g, asked = geometry(problem), wanted(problem)
    depth = g.hidden * (1 + (R in asked)) + g.inputs * ((X in asked) + (W in asked))
    return Work(g.steps * g.batch * g.directions * g.gates * g.hidden * depth, tensor_bytes(problem))


def tolerance(problem: Problem) -> Tolerance:
    """As the layer's: errors of fast exponentials fade on the way back as they do on the way there."""
    return rnn.tolerance(problem)


def _cases(op: str) -> list[Case]:
    """The layer's cases, each with made-up results and gradients of results: the operator's definition takes any."""
    found = [_case(op, case) for case in rnn.cases(op) if not case.attributes.get("layout")]
    plain = next(case for case in found if case.name == "initial_state")
    lengths = next(case for case in found if case.name == "lengths_bidirectional")
    few: list[tuple[str, Case, tuple[int, ...], tuple[int, ...]]] = [
        ("weights_wanted", plain, (W, R), ()),
        ("inputs_wanted", plain, (X,), ()),
        ("states_wanted", lengths, (INITIAL_H,), ()),
        ("dy_alone", plain, (), (DY_H, DY_C)),
        ("dy_h_alone", lengths, (), (DY, DY_C)),
    ]
    if op == "lstm":
        few.append(("dy_c_alone", lengths, (), (DY, DY_H)))
    for name, case, asked, absent in few:
        inputs = [None if position in absent else tensor for position, tensor in enumerate(case.inputs)]
        attributes = {**case.attributes, **({"wanted": asked} if asked else {})}
        while inputs[-1] is None:
            inputs.pop()
        found.append(replace(case, name=name, inputs=tuple(inputs), attributes=attributes))
    return found


def _case(op: str, case: Case) -> Case:
    forward = rnn.training(_canonical_layer(op, case.inputs, case.attributes))
    y, *states, sums = forward.outputs
    inputs = [*case.inputs, *[None] * (Y - len(case.inputs)), y, sums, y, *states]
    fills = {**case.fills, Y: Fill("uniform", -1.0, 1.0), SUMS: Fill("normal")}
    return Case(op + GRADIENT, case.name, tuple(inputs), case.attributes, fills)


def _spec(op: str) -> OperatorSpec:
    make: Callable[..., Problem] = partial(canonical, op)
    return OperatorSpec(
        op + GRADIENT, NAMES, make, work, tolerance, partial(_cases, op), validate=validate, training=True
    )


SPECS = tuple(_spec(op) for op in rnn.GATES)
