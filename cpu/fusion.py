"""Element-wise steps of a sequence that become one, so that a value is read and written once instead of twice.

Scales and offsets of channels in a row become one scale and one offset, computed in double and rounded once; an
activation is done by the step that makes its input, if nobody else reads that. A concatenation of bytes looks up on the way
what else would be looked up before it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.problem import Tensor
from quatrefoil.sequences import Affine, ByteTable, Concat, Elementwise, Plan, Step


def fused(plan: Plan) -> Plan:
    """The plan with fewer steps."""
    types, constants = dict(plan.types), dict(plan.constants)
    reads = Counter(value for step in plan.steps for value in step.inputs)
    reads.update(plan.outputs)
    steps: list[Step] = []
    makers: dict[int, int] = {}

    def constant(array: np.ndarray) -> int:
        number = max(types) + 1
        types[number], constants[number] = Tensor.of(array), array
        return number

    def affine(step: Step) -> tuple[int, np.ndarray, np.ndarray, Activation] | None:
        """A step as x, scale, offset, both of them for each channel in double, and the activation."""
        y = types[step.outputs[0]]
        form, [x, *others] = step.form, step.inputs
        if y.rank < 2 or not isinstance(form, (Affine, Elementwise)) or not others or y.dtype != "float32":
            return None
        if isinstance(form, Elementwise) and x in constants and form.function in ("add", "multiply"):
            x, others = others[0], [x]
        if x is None or types[x] != y or any(value not in constants for value in others):
            return None
        vectors = []
        for value in others:
            assert value is not None
            array = constants[value].astype(np.float64)
            if array.size > 1 and isinstance(form, Elementwise):
                shape = (1,) * (y.rank - array.ndim) + array.shape
                if shape != (1, y.shape[1], *(1,) * (y.rank - 2)):
                    return None
            vectors.append(np.broadcast_to(array.reshape(-1), (y.shape[1],)))
        if isinstance(form, Affine):
            return x, vectors[0], vectors[1], form.activation
        one, zero = np.ones(y.shape[1]), np.zeros(y.shape[1])
        match form.function:
            case "multiply":
                return x, vectors[0], zero, form.activation
            case "add":
                return x, one, vectors[0], form.activation
            case "subtract":
                return x, one, -vectors[0], form.activation
        return None

    joined = {
        value for step in plan.steps if isinstance(step.form, Concat) for value in step.inputs if reads[value] == 1
    }
    lookups = {
        step.outputs[0]: (step.inputs[0], step.form)
        for step in plan.steps
        if isinstance(step.form, ByteTable) and len(step.inputs) == 1 and step.outputs[0] in joined
    }
    for step in plan.steps:
        if step.outputs[0] in lookups:
            continue
        if isinstance(step.form, Concat) and lookups.keys() & set(step.inputs):
            sources = [lookups.get(value or 0, (value, None)) for value in step.inputs]
            form = replace(step.form, tables=tuple(table for _, table in sources))
            step = replace(step, form=form, inputs=tuple(value for value, _ in sources))
        x = step.inputs[0]
        found = affine(step)
        before = found[0] if found else x
        at = makers.get(before) if before is not None and reads[before] == 1 else None
        maker = None if at is None else steps[at]
        taken: Step | None = None
        if maker is not None and isinstance(maker.form, (Affine, Elementwise)) and maker.form.activation == IDENTITY:
            earlier = affine(maker)
            if isinstance(step.form, Elementwise) and step.form.function == "copy" and len(step.inputs) == 1:
                taken = replace(maker, form=replace(maker.form, activation=step.form.activation), outputs=step.outputs)
            elif found and earlier:
                source, scale, offset, _ = earlier
                _, further, shift, function = found
                vectors = (scale * further).astype(np.float32), (offset * further + shift).astype(np.float32)
                inputs = (source, *map(constant, vectors))
                taken = Step(Affine(function), inputs, step.outputs, maker.node)
        if taken is None or at is None:
            makers[step.outputs[0]] = len(steps)
            steps.append(step)
        else:
            makers[step.outputs[0]] = at
            steps[at] = taken
    return Plan(steps, types, constants, plan.inputs, plan.outputs)
