"""Gradients of a whole graph with respect to its constants: reverse accumulation (Linnainmaa 1970), node by node.

    derivative = Differentiable(load_graph("model.onnx"), ["conv1.weight", "conv1.bias"])
    run = derivative.run({"image": x}, values)              # values: other arrays for some of the constants
    gradients = run.gradients({"scores": dscores})          # an array for each constant asked for

Operators of the house are computed by dispatch and taken back by ``quatrefoil.gradients``; what runs on the host has a rule
here, in NumPy. Nodes that none of the constants reaches are computed once, where nothing else moves them either, and need no
rule; any other node without one is refused by name. Quantisation is taken back as if it did not round (Bengio, Léonard and
Courville 2013) within its range, and its scale has a gradient too (Esser et al., Learned step size quantization, 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from quatrefoil import dispatch, gradients, ops
from quatrefoil.models import host
from quatrefoil.models.graph import MISFITS, Graph, ModelError, Node
from quatrefoil.models.host.normalization import per_channel
from quatrefoil.models.host.quantization import along
from quatrefoil.models.host.table import Node as Described
from quatrefoil.models.passes.activations import PARAMETERS
from quatrefoil.models.scheduling import named
from quatrefoil.ops import pool
from quatrefoil.ops.activations import activation
from quatrefoil.problem import Problem, Tensor

Arrays = Sequence[Any]
Rule = Callable[[Described, Arrays, Arrays, Arrays, Collection[int]], Mapping[int, np.ndarray]]
"""Takes the node, its inputs, its outputs, the outputs' gradients (None for those that nothing depends on) and the positions
of the inputs that are wanted; gives these inputs' gradients, by position."""

FLAT: Final = (
    "Shape",
    "Size",
    "ArgMax",
    "ArgMin",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "IsNaN",
)
"""Operators whose outputs stay the same when their inputs move a little."""

REMEDY: Final = "let the model compute it with operators that have a rule, or leave the weights before it as they are"


class Differentiable:
    """A graph whose gradients are asked for. ``wanted``: names of float constants of the graph.

    Raises ModelError for a name that is no float constant, and for a node between one and the outputs that has no rule.
    """

    def __init__(self, graph: Graph, wanted: Collection[str], backend: str = "cpu") -> None:
        for name in wanted:
            array = graph.constants.get(name)
            if array is None or array.dtype.kind != "f":
                given = "no constant of the graph" if array is None else f"of type {array.dtype}"
                raise ModelError(f"gradients: {name!r} is {given}; name a weight of floating point")
        self.graph, self.backend = graph, backend
        self.wanted = tuple(wanted)
        moving = {*wanted}
        varying = {value.name for value in graph.inputs if value.name not in graph.defaults} | moving
        self._moving: dict[str, frozenset[int]] = {}
        """The positions of each node's inputs that a gradient has to reach."""
        settled: list[Node] = []
        self._nodes: list[Node] = []
        for node in graph.nodes:
            places = frozenset(place for place, name in enumerate(node.inputs) if name in moving)
            if node.op is None and node.kind in FLAT:
                places = frozenset()
            if places:
                _refuse(node, places)
                moving.update(name for name in node.outputs if name)
            self._moving[node.name] = places
            fixed = not any(name in varying for name in node.inputs) and not node.bodies
            (settled if fixed else self._nodes).append(node)
            if not fixed:
                varying.update(name for name in node.outputs if name)
        self._constants: dict[str, Any] = dict(graph.constants)
        self._operators: dict[str, host.HostOperator] = {}
        for node in graph.nodes:
            if node.op is None:
                self._operators[node.name] = self._prepared(node, moving)
        with np.errstate(all="ignore"):
            for node in settled:
                outputs = self._forward(node, [self._constants.get(name) for name in node.inputs], None)
                self._constants.update(zip(node.outputs, outputs))

    def _prepared(self, node: Node, moving: Collection[str]) -> host.HostOperator:
        if node.bodies or node.proto is None:
            raise ModelError(f"gradients: {node} has bodies, which are not differentiated; {REMEDY}")
        constants = {name: array for name, array in self.graph.constants.items() if name not in moving}
        try:
            made = host.prepare(node.proto, dict(node.opsets), constants)
        except MISFITS as error:
            raise named(node, error) from error
        if self._moving[node.name] and made.described is None:
            raise ModelError(f"gradients: {node} runs by {made.name} alone, without a rule; {REMEDY}")
        return made

    def run(self, inputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray] | None = None) -> Run:
        """Compute the graph. inputs: all of them by name; values: in place of the graph's, for constants that were asked
        for. Raises ModelError that names a node whose inputs do not fit it."""
        found: dict[str, Any] = {**self._constants, **inputs, **(values or {})}
        calls = []
        with np.errstate(all="ignore"):
            for node in self._nodes:
                given = [found[name] if name else None for name in node.inputs]
                try:
                    problem = self._problem(node, given)
                    outputs = self._forward(node, given, problem)
                except MISFITS as error:
                    raise named(node, error) from error
                found.update((name, value) for name, value in zip(node.outputs, outputs) if name)
                if self._moving[node.name]:
                    calls.append(_Call(node, problem, given, outputs))
        return Run(self, found, calls)

    def _problem(self, node: Node, given: Arrays) -> Problem | None:
        """The canonical problem of an operator of the house, in its training form where a gradient goes through it."""
        if node.op is None:
            return None
        attributes = node.attributes
        if node.whole_plane:
            attributes = pool.global_attributes(Tensor.of(given[0]), attributes)
        types = [None if array is None else Tensor.of(array) for array in given]
        wanted = 2 if node.op == "max_pool" and any(node.outputs[1:]) else 1
        problem = ops.canonical(node.op, types, attributes, wanted)
        return gradients.training(problem) if self._moving[node.name] else problem

    def _forward(self, node: Node, given: Arrays, problem: Problem | None) -> Arrays:
        if problem is None and node.op is not None:
            problem = self._problem(node, given)
        if problem is None:
            return self._operators[node.name].compute(given)
        arrays = [None if array is None else np.ascontiguousarray(array) for array in given[: len(problem.inputs)]]
        arrays += [None] * (len(problem.inputs) - len(arrays))
        return dispatch.run_problem(problem, arrays, self.backend)


@dataclass(frozen=True, slots=True)
class _Call:
    node: Node
    problem: Problem | None
    inputs: Arrays
    outputs: Arrays


class Run:
    """One computation of a graph: its values by name, and the way back."""

    def __init__(self, derivative: Differentiable, values: Mapping[str, Any], calls: Sequence[_Call]) -> None:
        self._derivative, self._calls = derivative, calls
        self.values = values

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        return {value.name: self.values[value.name] for value in self._derivative.graph.outputs}

    def gradients(self, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The gradients of the constants that were asked for. of: gradients of values by name, of the values' shapes; zeros
        where nothing leads from a constant to any of them."""
        sums: dict[str, np.ndarray] = {}
        for name, gradient in of.items():
            value = self.values.get(name)
            if value is None or np.shape(gradient) != value.shape:
                shape = "no value of the graph" if value is None else f"of shape {list(value.shape)}"
                raise ModelError(
                    f"gradients: {name!r} is {shape}; a gradient of shape {list(np.shape(gradient))} was given"
                )
            sums[name] = np.asarray(gradient, value.dtype)
        with np.errstate(all="ignore"):
            for call in reversed(self._calls):
                dy = [sums.get(name) if name else None for name in call.node.outputs]
                if any(each is not None for each in dy):
                    for place, gradient in self._back(call, dy).items():
                        name = call.node.inputs[place]
                        sums[name] = sums[name] + gradient if name in sums else gradient
        constants = self._derivative.wanted
        return {name: sums[name] if name in sums else np.zeros_like(self.values[name]) for name in constants}

    def _back(self, call: _Call, dy: Arrays) -> Mapping[int, np.ndarray]:
        node, problem = call.node, call.problem
        wanted = self._derivative._moving[node.name]
        if problem is None:
            described = self._derivative._operators[node.name].described
            assert described is not None
            return RULES[node.kind](described, call.inputs, call.outputs, dy, wanted)
        given = [None if array is None else np.ascontiguousarray(array) for array in call.inputs]
        given = given[: len(problem.inputs)] + [None] * (len(problem.inputs) - len(given))
        dense = [None if each is None else np.ascontiguousarray(each) for each in dy]
        dense += [None] * (len(problem.outputs) - len(dense))
        found = gradients.vjp(problem, given, call.outputs, dense, sorted(wanted), self._derivative.backend)
        return {place: found[place] for place in wanted}


def _refuse(node: Node, places: Collection[int]) -> None:
    """Raises ModelError for a node that gradients cannot go through."""
    if node.op is not None:
        rule = gradients.RULES.get(node.op)
        if rule is None:
            raise ModelError(f"gradients: {node} has no rule; {REMEDY}")
        stuck = [place for place in places if place not in rule.inputs]
        if stuck:
            raise ModelError(f"gradients: input {stuck[0]} of {node} has no gradient; {REMEDY}")
    elif node.kind not in RULES or (node.proto is not None and node.proto.domain):
        raise ModelError(f"gradients: {node} has no rule; rules are there for {', '.join(sorted(RULES))}: {REMEDY}")


RULES: dict[str, Rule] = {}
"""How each operator of the host is taken back, by ONNX's name."""


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return enter


def reduced(gradient: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The gradient of what was broadcast: summed over the axes that it was repeated on."""
    if gradient.shape == like.shape:
        return gradient.astype(like.dtype, copy=False)
    more = gradient.ndim - like.ndim
    repeated = [axis + more for axis, length in enumerate(like.shape) if length == 1]
    return gradient.sum((*range(more), *repeated)).reshape(like.shape).astype(like.dtype, copy=False)


@rule(*PARAMETERS)
def _activation(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    parameters = (float(node.get(name, default)) for name, default in PARAMETERS[node.op])
    return {0: dy[0] * activation(node.op, *parameters).slope(x[0])}


@rule("Clip")
def _clip(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    if set(wanted) != {0}:
        raise node.error("gradients", "of its bounds", "only what is clipped has gradients")
    return {0: dy[0] * (x[0] == y[0])}


@rule("Exp", "Sqrt", "Log", "Neg", "Abs", "Reciprocal", "Erf")
def _unary(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    slopes: dict[str, Callable[[Any, Any], Any]] = {
        "Exp": lambda x, y: y,
        "Sqrt": lambda x, y: 0.5 / y,
        "Log": lambda x, y: 1 / x,
        "Neg": lambda x, y: -1,
        "Abs": lambda x, y: np.sign(x),
        "Reciprocal": lambda x, y: -y * y,
        "Erf": lambda x, y: x.dtype.type(2 / np.sqrt(np.pi)) * np.exp(-x * x),
    }
    return {0: dy[0] * slopes[node.op](x[0], y[0])}


@rule("PRelu")
def _prelu(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    below = x[0] < 0
    found = {0: np.where(below, dy[0] * x[1], dy[0]), 1: np.where(below, dy[0] * x[0], 0)}
    return {place: reduced(found[place], x[place]) for place in wanted}


@rule("Add", "Sub", "Mul", "Div", "Pow")
def _binary(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    a, b = x
    g = dy[0]
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "Add": (lambda: g, lambda: g),
        "Sub": (lambda: g, lambda: -g),
        "Mul": (lambda: g * b, lambda: g * a),
        "Div": (lambda: g / b, lambda: -g * y[0] / b),
        "Pow": (lambda: g * b.astype(a.dtype) * a ** (b - 1).astype(a.dtype), lambda: g * y[0] * np.log(a)),
    }
    return {place: reduced(ways[node.op][place](), x[place]) for place in wanted}


@rule("Max", "Min")
def _extreme(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    """The first of equal ones takes it."""
    left, found = np.ones(y[0].shape, bool), {}
    for place, array in enumerate(x):
        taken = left & (array == y[0])
        left = left & ~taken
        if place in wanted:
            found[place] = reduced(np.where(taken, dy[0], 0), array)
    return found


@rule("Where")
def _where(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    parts = {1: np.where(x[0], dy[0], 0), 2: np.where(x[0], 0, dy[0])}
    return {place: reduced(parts[place], x[place]) for place in wanted}


@rule("Sum")
def _sum(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    return {place: reduced(dy[0], x[place]) for place in wanted}


@rule("Gemm")
def _gemm(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    a, b, g = x[0], x[1], dy[0] * dy[0].dtype.type(node.get("alpha", 1.0))
    ta, tb = node.get("transA", 0), node.get("transB", 0)
    found = {}
    if 0 in wanted:
        right = b if tb else b.T
        found[0] = right.T @ g.T if ta else g @ right
    if 1 in wanted:
        left = a if ta else a.T
        found[1] = g.T @ left.T if tb else left @ g
    if 2 in wanted:
        found[2] = reduced(dy[0] * dy[0].dtype.type(node.get("beta", 1.0)), x[2])
    return found


@rule("MatMul")
def _matmul(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    """A vector counts as a matrix of one row or column, whose axis the result lacks."""
    a, b, g = x[0], x[1], dy[0]
    if b.ndim == 1:
        b, g = b[:, np.newaxis], g[..., np.newaxis]
    if a.ndim == 1:
        a, g = a[np.newaxis], g[..., np.newaxis, :]
    found = {}
    if 0 in wanted:
        found[0] = reduced(g @ np.swapaxes(b, -1, -2), a).reshape(x[0].shape)
    if 1 in wanted:
        if b.ndim == 2 and a.ndim > 2:
            found[1] = (a.reshape(-1, a.shape[-1]).T @ g.reshape(-1, g.shape[-1])).reshape(x[1].shape)
        else:
            found[1] = reduced(np.swapaxes(a, -1, -2) @ g, b).reshape(x[1].shape)
    return found


@rule("BatchNormalization")
def _batch_norm(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    """With the mean and the variance that the model holds, which stay as they are."""
    data, scale, _, mean, variance = x[:5]
    if {3, 4} & set(wanted) or node.get("training_mode", 0):
        raise node.error(
            "gradients", "of its mean and variance", "those of the running model only are kept, not trained"
        )
    inverse = 1 / np.sqrt(variance + variance.dtype.type(node.get("epsilon", 1e-5)))
    others = tuple(axis for axis in range(data.ndim) if axis != 1)
    found = {}
    if 0 in wanted:
        found[0] = dy[0] * per_channel(scale * inverse, data.ndim)
    if 1 in wanted:
        found[1] = (dy[0] * (data - per_channel(mean, data.ndim))).sum(others) * inverse
    if 2 in wanted:
        found[2] = dy[0].sum(others)
    return found


@rule("LayerNormalization")
def _layer_norm(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    data, scale = x[0], x[1]
    axes = tuple(range(node.get("axis", -1) % data.ndim, data.ndim))
    centred = data - data.mean(axes, keepdims=True)
    inverse = 1 / np.sqrt(np.square(centred).mean(axes, keepdims=True) + data.dtype.type(node.get("epsilon", 1e-5)))
    normal, g = centred * inverse, dy[0] * scale
    found = {
        0: inverse * (g - g.mean(axes, keepdims=True) - normal * (g * normal).mean(axes, keepdims=True)),
        1: reduced(dy[0] * normal, scale),
    }
    if 2 in wanted:
        found[2] = reduced(dy[0], x[2])
    return {place: found[place] for place in wanted}


@rule("Softmax", "LogSoftmax")
def _softmax(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    """Before operator set 13, over all axes from ``axis`` on."""
    shape, axis = y[0].shape, node.get("axis", -1 if node.version >= 13 else 1)
    p, g = y[0], dy[0]
    if node.version < 13:
        first = axis % p.ndim
        p, g, axis = p.reshape(prod(shape[:first]), -1), g.reshape(prod(shape[:first]), -1), 1
    if node.op == "Softmax":
        dx = p * (g - (p * g).sum(axis, keepdims=True))
    else:
        dx = g - np.exp(p) * g.sum(axis, keepdims=True)
    return {0: dx.reshape(shape)}


@rule("Identity", "Dropout", "Cast")
def _same(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    if node.op == "Dropout" and node.has(2) and bool(x[2]):
        raise node.error("training_mode", "true", "its gradients are taken for inference only")
    return {0: dy[0].astype(x[0].dtype, copy=False)} if y[0].dtype.kind == "f" else {0: np.zeros_like(x[0])}


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshaped(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    return {0: dy[0].reshape(x[0].shape)}


@rule("Transpose")
def _transpose(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    order = node.get("perm", list(range(x[0].ndim))[::-1])
    return {0: dy[0].transpose(np.argsort(order))}


@rule("Concat")
def _concat(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    axis = node.get("axis")
    ends = np.cumsum([array.shape[axis] for array in x])[:-1]
    parts = np.split(dy[0], ends, axis)
    return {place: parts[place] for place in wanted}


@rule("Gather", "Slice", "Expand", "Tile", "Pad", "Split", "DepthToSpace", "SpaceToDepth")
def _picked(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    """What only picks elements is asked where it took each one from: it moves their numbers, from 1, and 0 is a pad."""
    if set(wanted) != {0}:
        raise node.error("gradients", "of what says where", "only its data have gradients")
    numbers = np.arange(1, x[0].size + 1, dtype=np.int64).reshape(x[0].shape)
    others = list(x[1:])
    if node.op == "Pad" and len(others) > 1:
        others[1] = None if others[1] is None else np.zeros(others[1].shape, np.int64)
    run = host.table.BUILDERS[node.op](node)
    assert run is not None
    total = np.zeros(x[0].size + 1)
    for sources, gradient in zip(run([numbers, *others]), dy):
        if gradient is not None:
            total += np.bincount(sources.reshape(-1), gradient.reshape(-1), x[0].size + 1)
    return {0: total[1:].reshape(x[0].shape).astype(x[0].dtype)}


@rule("ReduceMean", "ReduceSum")
def _reduce(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    given = x[1] if len(x) > 1 and x[1] is not None else node.get("axes")
    nothing = given is None or len(given) == 0
    if nothing and node.get("noop_with_empty_axes", 0):
        return {0: dy[0]}
    axes = range(x[0].ndim) if nothing else [int(axis) % x[0].ndim for axis in given]
    kept = [1 if axis in axes else length for axis, length in enumerate(x[0].shape)]
    gradient = np.broadcast_to(dy[0].reshape(kept), x[0].shape)
    count = prod(x[0].shape[axis] for axis in axes) if node.op == "ReduceMean" else 1
    return {0: gradient / x[0].dtype.type(count)}


@rule("QuantizeLinear")
def _quantize(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    """Inside the range as if x / scale were not rounded, outside nothing."""
    axis = node.get("axis", 1)
    scale = along(x[1], x[0].ndim, axis, node.op)
    zero = 0 if len(x) < 3 or x[2] is None else along(x[2].astype(np.float32), x[0].ndim, axis, node.op)
    limits, ratio = np.iinfo(y[0].dtype), x[0] / scale
    inside = (np.rint(ratio) + zero >= limits.min) & (np.rint(ratio) + zero <= limits.max)
    g = np.where(inside, dy[0], 0)
    found = {}
    if 0 in wanted:
        found[0] = g / scale
    if 1 in wanted:
        found[1] = _as_scale(-g * ratio / scale, x[1], axis)
    return found


@rule("DequantizeLinear")
def _dequantize(node: Described, x: Arrays, y: Arrays, dy: Arrays, wanted: Collection[int]) -> Mapping[int, np.ndarray]:
    axis = node.get("axis", 1)
    scale = along(x[1], x[0].ndim, axis, node.op)
    found = {}
    if 0 in wanted:
        found[0] = dy[0] * scale
    if 1 in wanted:
        found[1] = _as_scale(dy[0] * (y[0] / scale), x[1], axis)
    return found


def _as_scale(gradient: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    if scale.size == 1:
        return gradient.sum().reshape(scale.shape).astype(scale.dtype)
    others = tuple(place for place in range(gradient.ndim) if place != axis % gradient.ndim)
    return gradient.sum(others).reshape(scale.shape).astype(scale.dtype)


__all__ = ["RULES", "Differentiable", "Run"]
