"""Made-up inputs for a problem, reproducible from a seed, with values that the operator has a use for.

Recurrent weights are scaled so that states neither vanish nor grow, lengths lie inside the sequence, indices for
unpooling are distinct, quantisation scales are positive, and fixed-point integers lie in their formats.
"""

from __future__ import annotations

import math

import numpy as np

from quatrefoil import ops
from quatrefoil.ops import compressed, conv, fixed, pool, rnn, sparse
from quatrefoil.ops.spec import Case, Fill
from quatrefoil.problem import Problem


def arrays(problem: Problem, seed: int = 0) -> list[np.ndarray | None]:
    """One array for each input of the problem, None for the absent ones."""
    return Case(problem.op, problem.text, problem.inputs, {}, _fills(problem)).arrays(seed)


def parameters(problem: Problem, inputs: list[np.ndarray | None]) -> dict[int, np.ndarray]:
    """Those of the inputs that a model would keep constant, by position: weights, biases, scales."""
    given = {i: inputs[i] for i in ops.SPECS[problem.op].parameters if problem.has(i)}
    return {i: array for i, array in given.items() if array is not None}


def _fills(problem: Problem) -> dict[int, Fill]:
    if problem.op in (*ops.FAMILIES["rnn"], *ops.FAMILIES["rnn_gradient"]):
        bound = 1.0 / problem.integer("hidden_size") ** 0.5
        steps = problem.input(rnn.X).shape[problem.integer("layout")]
        weights = Fill("uniform", -bound, bound)
        return {rnn.W: weights, rnn.R: weights, rnn.B: weights, rnn.LENGTHS: Fill("lengths", min(1, steps), steps)}
    if problem.op == "qlinear_conv":
        # symmetric weights and activations behind a ReLU, as networks are quantised; half of the outputs saturate at 0
        # and few at 255: a sum of products has the deviation sqrt(taps) * 147 * 73
        w = problem.input(conv.Q_W)
        spread = (w.size / max(w.shape[0], 1)) ** 0.5 * 147 * 73
        zeros = dict.fromkeys((conv.Q_X_ZERO, conv.Q_W_ZERO, conv.Q_Y_ZERO), Fill("value", 0.0))
        return zeros | {
            conv.Q_X_SCALE: Fill("value", 0.02),
            conv.Q_W_SCALE: Fill("uniform", 0.004, 0.008),
            conv.Q_Y_SCALE: Fill("value", spread * 0.02 * 0.006 / 80),
            conv.Q_BIAS: Fill("integers", -2000, 2000),
        }
    if problem.op in ops.FAMILIES["fixed"]:
        return _fixed_fills(problem)
    if problem.op == sparse.OP:
        g = sparse.geometry(problem)
        bound = (3 * g.hidden / max(g.nonzeros, 1)) ** 0.5  # a row's sum keeps the size of its terms
        return {
            sparse.VALUES: Fill("uniform", -bound, bound),
            sparse.COLUMNS: Fill("integers", 0, g.hidden - 1),
            sparse.OFFSETS: Fill("offsets", 0, g.nonzeros),
        }
    if problem.op == "max_unpool_gradient":
        return {1: Fill("indices", 0, problem.input(0).size)}
    if problem.op == "max_unpool":
        geometry = pool.unpool_geometry(problem)
        size = geometry.planes * int(np.prod(geometry.indexed))
        return {1: Fill("indices", 0, size)}
    if problem.op in compressed.FORMS:
        return _compressed_fills(problem)
    if problem.op in ("conv", "conv_transpose"):
        # the sum over the window keeps the size of its terms
        w = problem.input(conv.W)
        taps = max(w.size // max(w.shape[0], 1), 1)
        return {conv.W: Fill("uniform", -((3 / taps) ** 0.5), (3 / taps) ** 0.5)}
    return {}


def _compressed_fills(problem: Problem) -> dict[int, Fill]:
    """The base's values in rows of distinct places, or in a codebook."""
    form = compressed.FORMS[problem.op]
    own = _fills(compressed.base(problem))
    fills = {form.place(position): fill for position, fill in own.items()}
    for weight in form.weights:
        first, second = form.places[weight.position][:2]
        if form.kind == compressed.SPARSE:
            fills |= compressed.sparse_fills(problem, weight)
        else:
            fills |= {first: Fill("integers", 0, problem.input(second).size - 1), second: own[weight.position]}
    return fills


def _fixed_fills(problem: Problem) -> dict[int, Fill]:
    """Integers of their formats, weights and biases as small as those of a network that was trained."""
    fills, recurrent = {}, problem.op.removeprefix("fixed_") in ops.FAMILIES["rnn"]
    for position, attribute in enumerate(fixed.INPUT_FORMATS[problem.op][: len(problem.inputs)]):
        if not attribute or not problem.has(position):
            continue
        form = fixed.format_of(problem, attribute)
        low, high = form.low, form.high
        if position in ops.SPECS[problem.op].parameters:
            shape = problem.input(position).shape
            # a sum over a row of weights keeps the size of its terms; recurrent ones are in the last axis
            count = shape[-1] if recurrent else math.prod(shape[1:])
            bound = int((3 / max(count, 1)) ** 0.5 * 2.0**form.fraction)
            low, high = max(low, -bound), min(high, bound)
        fills[position] = Fill("integers", low, high)
    if recurrent:
        steps = problem.input(rnn.X).shape[0]
        fills[rnn.LENGTHS] = Fill("lengths", min(1, steps), steps)
    return fills
