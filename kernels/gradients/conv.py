"""Rules of conv and conv_transpose.

With z = conv(x, w) + bias + residual and y = activation(z), and dz the gradient of z:

  x         conv_transpose(dz, w), which scatters through the same window; of conv_transpose it is conv(dz, w)
  w         conv_weight_gradient(x, dz); of conv_transpose, whose window lies on y, conv_weight_gradient(dz, x)
  bias      conv_bias_gradient(dz)
  residual  dz

dz is dy where nothing was fused. Otherwise z is computed again, since not every activation can be inverted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quatrefoil.dispatch import Call
from quatrefoil.functional import OperatorFunction
from quatrefoil.gradients.rule import Backward, Rule
from quatrefoil.ops.activations import IDENTITY
from quatrefoil.ops.conv import BIAS, RESIDUAL, W, X, fused_activation
from quatrefoil.problem import Problem, Tensor


@OperatorFunction
def conv_weight_gradient(
    x: Any, dy: Any, kernel_size: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Call:
    """The gradient of a convolution's weight, of x (N, C, spatial) and the gradient dy (N, M, spatial) of what it gave.

    kernel_size: of the weight, one number for each spatial axis. The others are those of the convolution, of 1 to 3 axes. float32,
    float64 or float16. Returns (M, C / groups, kernel). Raises OperatorError for arguments that do not fit.
    """
    rank = len(Tensor.of(x).shape) - 2

    def spread(value: Any) -> list[Any]:
        return list(value) if isinstance(value, (list, tuple)) else [value] * rank

    pads = spread(padding)
    attributes = {
        "kernel_shape": list(kernel_size),
        "strides": spread(stride),
        "pads": pads if len(pads) == 2 * rank and rank > 1 else pads * 2,
        "dilations": spread(dilation),
        "group": groups,
    }
    return Call("conv_weight_gradient", (x, dy), attributes)


@OperatorFunction
def conv_bias_gradient(dy: Any) -> Call:
    """The gradient of a convolution's bias: the sum of dy (N, M, spatial) over all but its channels. Returns (M)."""
    return Call("conv_bias_gradient", (dy,), {})


def _through_activation(back: Backward) -> Tensor:
    """dz from dy."""
    problem, dy = back.problem, back.gradients[0]
    assert dy is not None, "the one output's gradient is given"
    activation = fused_activation(problem)
    if activation == IDENTITY:
        return dy
    attributes = tuple((name, value) for name, value in problem.attributes if name != "activation")
    (z,) = back.compute(replace(problem, attributes=attributes), back.inputs)
    return back.elementwise(lambda dy, z: dy * activation.slope(z), dy, z)


def _window(problem: Problem, pads: Sequence[int]) -> dict[str, Any]:
    return {**{name: problem[name] for name in ("strides", "dilations", "group")}, "pads": pads}


def _reach(problem: Problem, places: Sequence[int]) -> list[int]:
    """Where, on each axis, a window of so many places ends in the array that it slides on, its pads before taken off."""
    kernel = problem.input(W).shape[2:]
    strides, dilations, pads = problem.ints("strides"), problem.ints("dilations"), problem.ints("pads")
    return [
        (count - 1) * stride + (taps - 1) * dilation + 1 - pad
        for count, stride, taps, dilation, pad in zip(places, strides, kernel, dilations, pads)
    ]


def _of_operands(back: Backward, dz: Tensor) -> dict[int, Tensor]:
    """The wanted ones of the gradients that both operators have in common."""
    found = {}
    if BIAS in back.wanted:
        (found[BIAS],) = back.run("conv_bias_gradient", (dz,), {})
    if RESIDUAL in back.wanted:
        found[RESIDUAL] = dz
    return found


def conv(back: Backward) -> dict[int, Tensor]:
    problem, dz = back.problem, _through_activation(back)
    found, x, w = _of_operands(back, dz), back.input(X), back.input(W)
    pads = problem.ints("pads")
    window = _window(problem, pads)
    if X in back.wanted:
        places, extents = problem.outputs[0].shape[2:], problem.input(X).shape[2:]
        # what strides left over behind the last place of the window
        rest = [
            extent + end - reach for extent, end, reach in zip(extents, pads[len(extents) :], _reach(problem, places))
        ]
        (found[X],) = back.run("conv_transpose", (dz, w), {**window, "output_padding": rest})
    if W in back.wanted:
        attributes = {**window, "kernel_shape": problem.input(W).shape[2:]}
        (found[W],) = back.run("conv_weight_gradient", (x, dz), attributes)
    return found


def conv_transpose(back: Backward) -> dict[int, Tensor]:
    problem, dz = back.problem, _through_activation(back)
    found, x, w = _of_operands(back, dz), back.input(X), back.input(W)
    y, rank = problem.outputs[0].shape, len(problem.outputs[0].shape) - 2
    reach = _reach(problem, problem.input(X).shape[2:])
    asked = [position for position in (X, W) if position in back.wanted]
    if min(reach) < 1:  # nothing of x lands in y
        given = {X: x, W: w}
        return found | {position: back.elementwise(np.zeros_like, given[position]) for position in asked}
    # output padding that no tap reaches is cut off, so that the window over dz has as many places as x
    kept = tuple(min(extent, end) for extent, end in zip(y[2:], reach))
    if asked and kept != y[2:]:
        dz = back.arranged(lambda array: array[(..., *map(slice, kept))], dz, (*y[:2], *kept))
    behind = tuple(end - extent for end, extent in zip(reach, kept))
    window = _window(problem, (*problem.ints("pads")[:rank], *behind))
    if X in back.wanted:
        (found[X],) = back.run("conv", (dz, w), window)
    if W in back.wanted:
        attributes = {**window, "kernel_shape": problem.input(W).shape[2:]}
        (found[W],) = back.run("conv_weight_gradient", (dz, x), attributes)
    return found


RULES = {
    "conv": Rule(conv, (X, W, BIAS, RESIDUAL)),
    "conv_transpose": Rule(conv_transpose, (X, W, BIAS, RESIDUAL)),
}
