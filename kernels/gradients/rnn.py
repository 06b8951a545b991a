"""Rules of rnn, lstm and gru, and of their training forms.

One call of ``<layer>_gradient`` (ops/rnn_gradient.py), which reads the states and the sums that the training form gave. Where
only the layer itself was run, its training form is run first: the sums are not kept, and one forward pass is paid again.
"""

from __future__ import annotations

from quatrefoil.errors import OperatorError
from quatrefoil.gradients.rule import Backward, Rule
from quatrefoil.ops import rnn as ops
from quatrefoil.ops import rnn_gradient as semantics
from quatrefoil.problem import Tensor


def backward(back: Backward) -> dict[int, Tensor]:
    problem = back.problem
    form = ops.training(problem)
    gradients = list(back.gradients)
    if problem.op == form.op:
        if gradients.pop() is not None:
            raise OperatorError(problem.op, "the gradient of sums", "given", "only y and the final states have one")
        y, sums = back.outputs[0], back.outputs[-1]
    else:
        y, *_, sums = back.compute(form, back.inputs)
    batch_first = problem.integer("layout") == 1
    layer = [*back.inputs, *[None] * (semantics.Y - len(back.inputs))]
    dy, *dstates = gradients
    arrays = [*layer, y, sums, dy, *dstates]
    if batch_first:
        arrays = [
            array
            if array is None or (place < semantics.Y and place not in ops.BATCH_FIRST_INPUTS)
            else _moved(back, array)
            for place, array in enumerate(arrays)
        ]
    given = tuple(gradient is not None for gradient in gradients)
    asked = semantics.gradient(ops.without_layout(problem), given, back.wanted)
    found = back.compute(asked, arrays[: len(asked.inputs)])
    by_position = dict(zip(back.wanted, found))
    if batch_first:
        for position in ops.BATCH_FIRST_INPUTS:
            if position in by_position:
                by_position[position] = _moved(back, by_position[position])
    return by_position


def _moved(back: Backward, array: Tensor) -> Tensor:
    """An array of layout 1 in layout 0; of x and the states also the other way round."""
    axes = (1, 2, 0, 3) if array.rank == 4 else (1, 0, 2)
    return back.arranged(lambda moved: moved.transpose(axes), array, tuple(array.shape[axis] for axis in axes))


def _rules(op: str) -> dict[str, Rule]:
    inputs = tuple(position for position in semantics.DIFFERENTIABLE if op == "lstm" or position <= ops.INITIAL_H)
    sums = 3 if op == "lstm" else 2
    return {
        op: Rule(backward, inputs, training=ops.training),
        op + ops.TRAINING: Rule(backward, inputs, (0, sums)),
    }


RULES: dict[str, Rule] = {**_rules("rnn"), **_rules("lstm"), **_rules("gru")}
