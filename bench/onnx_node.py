"""A canonical problem as an ONNX model of one node (and the nodes of what is fused into it), for other runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quatrefoil import ops
from quatrefoil.ops import compressed, conv
from quatrefoil.ops.activations import FUNCTIONS, Activation
from quatrefoil.problem import Problem
from quatrefoil.registry import Reject

OPSET = 21
IR_VERSION = 10

OPERATORS = {
    "conv": "Conv",
    "conv_transpose": "ConvTranspose",
    "conv_integer": "ConvInteger",
    "qlinear_conv": "QLinearConv",
    "max_pool": "MaxPool",
    "average_pool": "AveragePool",
    "lp_pool": "LpPool",
    "max_unpool": "MaxUnpool",
    "rnn": "RNN",
    "lstm": "LSTM",
    "gru": "GRU",
}
RUNTIMES_OWN = "com.microsoft"
"""The domain of ONNX Runtime's own operators, whose QLinearConv may have its channels last; ONNX's have them first."""
WITHOUT_A_NODE = ("Affine", "ScaledTanh", "Swish")


class _Graph:
    """Nodes and initializers as they come together."""

    def __init__(self, problem: Problem, constants: Mapping[int, np.ndarray], names: Sequence[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers = [numpy_helper.from_array(array, names[position]) for position, array in constants.items()]
        self.inputs = ["" if tensor is None else name for tensor, name in zip(problem.inputs, names)]
        self.outputs = [f"o{number}" for number in range(len(problem.outputs))]

    def constant(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, kind: str, inputs: list[str], outputs: list[str], attributes: Mapping[str, Any], domain: str = ""
    ) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain))
        for name, value in attributes.items():
            if value != [] and value != ():  # an empty list has no type that ONNX could write down
                self.nodes[-1].attribute.append(helper.make_attribute(name, value))


def model_of(problem: Problem, constants: Mapping[int, np.ndarray]) -> onnx.ModelProto | Reject:
    """The model; inputs are named i0, i1, … by position and outputs o0, o1, …; ``constants`` become initializers.

    Compressed weights stand in it decoded: ONNX's operators take dense ones.
    """
    if problem.op in compressed.FORMS:
        form = compressed.FORMS[problem.op]
        names = [f"i{form.place(position)}" for position in range(len(form.places))]
        return _model_of(compressed.base(problem), compressed.decoded(problem, constants), names)
    return _model_of(problem, constants, [f"i{position}" for position in range(len(problem.inputs))])


def _model_of(problem: Problem, constants: Mapping[int, np.ndarray], names: Sequence[str]) -> onnx.ModelProto | Reject:
    graph = _Graph(problem, constants, names)
    refused = None
    if problem.op in ("conv", "conv_transpose"):
        refused = _convolution(graph, problem)
    elif conv.channels_last(problem):
        if problem.op != "qlinear_conv":
            return Reject("ONNX's ConvInteger has its channels first, and there is no other")
        graph.node(OPERATORS[problem.op], graph.inputs, graph.outputs, dict(problem.attributes), RUNTIMES_OWN)
    elif problem.op == "max_unpool":
        refused = _unpool(graph, problem)
    elif problem.op in ops.FAMILIES["rnn"]:
        _recurrent(graph, problem)
    else:
        attributes = {name: value for name, value in problem.attributes if name != "with_indices"}
        graph.node(OPERATORS[problem.op], graph.inputs, graph.outputs, attributes)
    if refused is not None:
        return refused
    model = helper.make_graph(
        graph.nodes,
        "problem",
        [
            _value(names[i], t.dtype, t.shape)
            for i, t in enumerate(problem.inputs)
            if t is not None and i not in constants
        ],
        [_value(name, t.dtype, t.shape) for name, t in zip(graph.outputs, problem.outputs)],
        graph.initializers,
    )
    sets = [helper.make_opsetid("", OPSET)]
    if conv.channels_last(problem):
        sets.append(helper.make_opsetid(RUNTIMES_OWN, 1))
    return helper.make_model(model, opset_imports=sets, ir_version=IR_VERSION)


def _value(name: str, dtype: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _convolution(graph: _Graph, problem: Problem) -> Reject | None:
    """The convolution, then the addition of the residual, then the activation, each a node where there is one."""
    settled = ("activation", "output_shape")
    attributes: dict[str, Any] = {name: value for name, value in problem.attributes if name not in settled}
    if problem.op == "conv_transpose":
        attributes["output_padding"] = _output_padding(problem)
        if min(attributes["output_padding"]) < 0:
            return Reject("ONNX's pads and output_padding cannot say this output shape")
    function = conv.fused_activation(problem)
    if function.name in WITHOUT_A_NODE:
        return Reject(f"ONNX's operator set {OPSET} has no node for the fused {function}")
    residual = graph.inputs[conv.RESIDUAL] if problem.has(conv.RESIDUAL) else ""
    stages: list[tuple[str, list[str], dict[str, Any]]] = [
        (OPERATORS[problem.op], graph.inputs[: conv.RESIDUAL], attributes)
    ]
    if residual:
        stages.append(("Add", [residual], {}))
    if function.name == "Clip":
        bounds = [
            graph.constant(name, np.array(value, problem.dtype))
            for name, value in (("low", function.alpha), ("high", function.beta))
        ]
        stages.append(("Clip", bounds, {}))
    elif function.name != "Identity":
        names = ("alpha", "beta")[: len(FUNCTIONS[function.name].defaults)]
        stages.append((function.name, [], dict(zip(names, (function.alpha, function.beta)))))
    carried: list[str] = []
    for number, (kind, more, values) in enumerate(stages):
        target = "o0" if number == len(stages) - 1 else f"stage{number}"
        graph.node(kind, carried + more, [target], values)
        carried = [target]
    return None


def _output_padding(problem: Problem) -> list[int]:
    """What ONNX has to add behind, so that its formula gives the canonical output shape."""
    window = conv.geometry(problem).window
    rank = problem.input(0).rank - 2
    pads = problem.ints("pads")
    extra = []
    for axis in range(rank):
        at = 3 - rank + axis  # the window has three axes, the missing ones in front
        full = (window.output[at] - 1) * window.strides[at] + (window.kernel[at] - 1) * window.dilations[at] + 1
        extra.append(window.input[at] + pads[axis] + pads[axis + rank] - full)
    return extra


def _recurrent(graph: _Graph, problem: Problem) -> None:
    attributes: dict[str, Any] = dict(problem.attributes)
    functions = [Activation.parse(text) for text in attributes["activations"]]
    counts = [len(FUNCTIONS[function.name].defaults) for function in functions]
    attributes["activations"] = [function.name for function in functions]
    attributes["activation_alpha"] = [f.alpha for f, count in zip(functions, counts) if count > 0]
    attributes["activation_beta"] = [f.beta for f, count in zip(functions, counts) if count > 1]
    if attributes["clip"] == 0.0:
        del attributes["clip"]
    graph.node(OPERATORS[problem.op], graph.inputs, graph.outputs, attributes)


def _unpool(graph: _Graph, problem: Problem) -> Reject | None:
    x, indexed, wanted = problem.input(0), problem.ints("indexed_shape"), problem.ints("output_shape")
    kernel = [want - (have - 1) for want, have in zip(indexed[2:], x.shape[2:])]
    if min(kernel) < 1:
        return Reject("no kernel shape of stride 1 gives this indexed shape")
    shape = [graph.constant("shape", np.array(wanted, np.int64))] if wanted != indexed else []
    graph.node("MaxUnpool", graph.inputs + shape, graph.outputs, {"kernel_shape": kernel})
    return None
