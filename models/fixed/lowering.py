"""From a float graph to integers: each node becomes fixed-point operators, each value gets a format.

Weights are quantized here, biases too. A sum of products is exact and cannot overflow unless the precision says
otherwise: its width follows from the weights and from the range of what comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from onnx import helper

from quatrefoil import ops
from quatrefoil.models.fixed.elements import FUNCTIONS
from quatrefoil.models.fixed.precision import NOTHING, LayerPrecision, Precision
from quatrefoil.models.graph import Graph, ModelError, Node, frozen_array
from quatrefoil.models.passes.activations import activation_of
from quatrefoil.models.passes.matching import attributes_of, on_host, sole_reader
from quatrefoil.numerics import TABLE_REACH, WIDEST_SUM, WIDEST_VALUE, Fixed
from quatrefoil.ops import rnn
from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.ops.activations import activation as activation_named
from quatrefoil.ops.conv import BIAS, RESIDUAL
from quatrefoil.ops.fixed import FUNCTIONS as RECURRENT_FUNCTIONS
from quatrefoil.ops.fixed import WIDEST_ELEMENT, largest_sum
from quatrefoil.problem import Tensor

MOVES: Final = (
    "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Slice", "Gather", "Split",
    "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Resize", "Upsample", "Pad",
)  # fmt: skip
"""ONNX operators that only move values: they run on integers as they are. Of Resize and Upsample nearest neighbours,
of Pad zeros."""

PAIRS: Final = {"Add": "FixedAdd", "Sub": "FixedSub", "Mul": "FixedMul"}

OPSET: Final = {"": 18}


Shapes = Mapping[str, tuple[int, ...]]


def lower(graph: Graph, precision: Precision, shapes: Shapes) -> tuple[Graph, dict[str, Fixed]]:
    """The graph in integers, and the format of each integer value. Raises ModelError that names the node.

    shapes: of every float value, for a batch of one.
    """
    unknown = set(precision.layers) - {node.name for node in graph.nodes}
    unknown |= set(precision.inputs) - {value.name for value in graph.inputs}
    if unknown:
        names = ", ".join(repr(node.name) for node in graph.nodes)
        raise ModelError(f"the precision names {sorted(unknown)[0]!r}; the model's layers are {names}")
    return _Lowering(graph, precision, shapes).result()


@dataclass
class _Lowering:
    graph: Graph
    precision: Precision
    shapes: Shapes
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    formats: dict[str, Fixed] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """The integer value that stands for each float value."""
    of_constants: dict[str, Fixed] = field(default_factory=dict)
    """The format of constants that element-wise nodes take."""
    merged: set[str] = field(default_factory=set)
    """Nodes that have become part of the one before."""

    def __post_init__(self) -> None:
        self.reader = sole_reader(self.graph)

    def result(self) -> tuple[Graph, dict[str, Fixed]]:
        for value in self.graph.inputs:
            if value.kind != "tensor" or value.dtype != "float32":
                raise ModelError(f"the input {value}; a fixed-point network takes float32 arrays")
            form = self.precision.inputs.get(value.name, self.precision.value)
            name = f"{value.name}.fixed"
            self.element("FixedQuantize", f"{value.name}.quantize", (value.name,), name, y_format=form)
            self.names[value.name] = name
        for node in self.graph.nodes:
            if node.name not in self.merged:
                self.node(node)
        outputs = []
        for value in self.graph.outputs:
            if value.name not in self.names:
                raise ModelError(f"the output {value} is no result of a layer in fixed point")
            source = self.names[value.name]
            made = Node(
                f"{value.name}.real", "FixedDequantize", (source,), (value.name,),
                attributes={"x_format": self.formats[source].text},
            )  # fmt: skip
            self.nodes.append(made)
            outputs.append(replace(value, dtype="float32"))
        made_graph = Graph(self.graph.name, self.graph.inputs, tuple(outputs), tuple(self.nodes), self.constants)
        return made_graph, self.formats

    # what nodes are made of

    def element(self, kind: str, name: str, inputs: tuple[str, ...], output: str, **attributes: Any) -> str:
        """An element-wise node; formats among the attributes are kept as text."""
        kept = {key: value.text if isinstance(value, Fixed) else value for key, value in attributes.items()}
        self.nodes.append(Node(name, kind, inputs, (output,), attributes=kept))
        self.formats[output] = attributes["y_format"]
        return output

    def output(self, float_name: str) -> str:
        """The name of the integer value that stands for a node's output."""
        name = f"{float_name}.fixed" if float_name in self.graph.output_names else float_name
        self.names[float_name] = name
        return name

    def source(self, name: str, reader: Node) -> str:
        found = self.names.get(name)
        if found is None:
            what = "a constant" if name in self.graph.constants else "no fixed-point value"
            raise ModelError(f"{reader} takes {name!r}, {what}; in fixed point it takes what layers give")
        return found

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = frozen_array(array)
        return name

    def weights(self, node: Node, name: str) -> np.ndarray:
        if name not in self.graph.constants:
            raise ModelError(f"{node}: {name!r} is computed; in fixed point weights and biases are constants")
        return np.asarray(self.graph.constants[name], np.float64)

    def cast(self, value: str, form: Fixed, name: str) -> str:
        """The value in a format; itself where it has it."""
        if self.formats[value] == form:
            return value
        return self.element("FixedCast", name, (value,), name, x_format=self.formats[value], y_format=form)

    def node(self, node: Node) -> None:
        own = self.precision.layer(node.name)
        if node.op == "conv":
            self.convolution(node, own)
        elif node.op == "conv_transpose":
            self.transposed_convolution(node, own)
        elif node.op in ("max_pool", "average_pool"):
            self.pool(node, own)
        elif node.op in rnn.GATES:
            self.recurrent(node, own)
        elif on_host(node, "Gemm", "MatMul"):
            self.dense(node, own)
        elif on_host(node, *MOVES):
            self.move(node)
        elif on_host(node, "Concat"):
            self.concat(node, own)
        elif on_host(node, "Softmax"):
            self.softmax(node, own)
        elif on_host(node, "BatchNormalization"):
            self.normalization(node, own)
        elif on_host(node, *PAIRS):
            self.pair(node, own)
        else:
            function = activation_of(node, self.graph.constants)
            if function is None:
                raise ModelError(
                    f"{node} has no fixed-point form; known are Conv, ConvTranspose, Gemm, MatMul, MaxPool, AveragePool, "
                    f"LSTM, GRU, RNN, BatchNormalization, Softmax, Concat, {', '.join(PAIRS)}, activations "
                    f"({', '.join(FUNCTIONS)}, Swish, HardSwish), and {', '.join(MOVES)}"
                )
            self.activation(node, own, self.source(node.inputs[0], node), function, node.name, node.outputs[0])

    # sums of products

    def summed(
        self,
        node: Node,
        own: LayerPrecision,
        x: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        attributes: Mapping[str, Any],
        output: str,
        y: Fixed,
        name: str,
    ) -> str:
        """A fixed_conv node: weight (M, C / group, taps), bias (M)."""
        x_format, w_format = self.formats[x], own.weight or self.precision.weight
        w = w_format.quantize(weight)
        inputs = [x, self.constant(f"{name}.weight", w)]
        formats = {"x_format": x_format, "w_format": w_format}
        start, b_fraction = np.zeros(len(weight), np.int64), 0
        if bias is not None:
            b_format = own.bias or self.precision.bias or bias_format(bias, w_format)
            b = b_format.quantize(bias)
            inputs.append(self.constant(f"{name}.bias", b))
            formats["bias_format"] = b_format
            start, b_fraction = b.astype(np.int64), b_format.fraction
        wanted = own.accumulator or self.precision.accumulator
        accumulator = exact_sum(x_format, w_format, w, start, b_fraction) if isinstance(wanted, str) else wanted
        formats |= {"accumulator": accumulator, "y_format": y}
        texts = {key: form.text for key, form in formats.items()}
        reuse = own.reuse or self.precision.reuse
        self.nodes.append(
            Node(
                name, node.kind, tuple(inputs), (output,), op="fixed_conv",
                attributes={**attributes, **texts, "reuse": reuse}, fused=node.fused,
            )
        )  # fmt: skip
        self.formats[output] = y
        return output

    def convolution(self, node: Node, own: LayerPrecision) -> None:
        x = self.source(node.inputs[0], node)
        attributes = {key: value for key, value in node.attributes.items() if key != "activation"}
        self.convolved(node, own, x, self.weights(node, node.inputs[1]), attributes)

    def convolved(
        self, node: Node, own: LayerPrecision, x: str, weight: np.ndarray, attributes: Mapping[str, Any]
    ) -> None:
        given = [*node.inputs, "", "", ""]
        bias = self.weights(node, given[BIAS]) if given[BIAS] else None
        function = Activation.parse(str(node.attributes.get("activation", IDENTITY.text)))
        self.ended(node, own, x, weight, bias, attributes, function, given[RESIDUAL])

    def transposed_convolution(self, node: Node, own: LayerPrecision) -> None:
        """A convolution with flipped weights over x with strides - 1 zeros behind each value."""
        x = self.source(node.inputs[0], node)
        weight = self.weights(node, node.inputs[1])
        bare = {key: value for key, value in node.attributes.items() if key != "activation"}
        types = [Tensor("float32", self.shapes[node.inputs[0]]), Tensor("float32", weight.shape)]
        problem = ops.canonical("conv_transpose", types, bare)
        rank = weight.ndim - 2
        strides, dilations, pads = (problem.ints(name) for name in ("strides", "dilations", "pads"))
        reach = [(kernel - 1) * dilation for kernel, dilation in zip(weight.shape[2:], dilations)]
        wide = [(length - 1) * stride + 1 for length, stride in zip(types[0].shape[2:], strides)]
        begins = [most - pad for most, pad in zip(reach, pads)]
        ends = [
            output - length - begin + most
            for output, length, begin, most in zip(problem.outputs[0].shape[2:], wide, begins, reach)
        ]
        if min(*begins, *ends) < 0:
            raise ModelError(f"{node}: pads {pads} are more than its kernel reaches; fixed point has no such one")
        if max(strides) > 1:
            x = self.zeros_between(node, x, types[0].shape, strides)
        group = problem.integer("group")
        grouped = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
        flipped = grouped.reshape(-1, *grouped.shape[2:])[(slice(None), slice(None), *(slice(None, None, -1),) * rank)]
        attributes = {"pads": (*begins, *ends), "dilations": dilations, "group": group}
        self.convolved(node, own, x, flipped, attributes)

    def zeros_between(self, node: Node, x: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> str:
        """(N, C, spatial) with strides - 1 zeros between neighbours, made by moving values alone."""
        spatial, rank = shape[2:], len(strides)
        apart = [0, shape[1], *(length for extent in spatial for length in (extent, 1))]
        behind = [0, 0, *(count for stride in strides for count in (0, stride - 1))]
        joined = [0, shape[1], *(extent * stride for extent, stride in zip(spatial, strides))]
        kept = [(extent - 1) * stride + 1 for extent, stride in zip(spatial, strides)]
        axes = range(2, 2 + rank)
        for what, kind, values in (
            ("apart", "Reshape", [apart]),
            ("zeros", "Pad", [[0] * len(behind) + behind]),
            ("joined", "Reshape", [joined]),
            ("spread", "Slice", [[0] * rank, kept, list(axes)]),
        ):
            name = f"{node.name}.{what}"
            constants = [
                self.constant(f"{name}.{place}", np.array(array, np.int64)) for place, array in enumerate(values)
            ]
            x = self.moved(kind, x, constants, name)
        return x

    def ended(
        self,
        node: Node,
        own: LayerPrecision,
        x: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        attributes: Mapping[str, Any],
        function: Activation,
        residual: str,
    ) -> None:
        """A sum of products, then a residual, then an activation, as far as the layer has them."""
        y = own.result or self.precision.value
        before = own.sum or y
        steps = ["residual"] * bool(residual) + ["activation"] * (function != IDENTITY)
        if steps == ["activation"] and function.name == "Relu" and before == y:
            attributes, steps = {**attributes, "activation": "Relu"}, []
        names = [f"{node.name}.sum", f"{node.name}.added"][: len(steps)]
        value = names[0] if steps else self.output(node.outputs[0])
        value = self.summed(node, own, x, weight, bias, attributes, value, before if steps else y, node.name)
        for place, step in enumerate(steps):
            last = place == len(steps) - 1
            if step == "activation":
                self.activation(node, own, value, function, f"{node.name}.activation", node.outputs[0])
            else:
                other = self.source(residual, node)
                target = self.output(node.outputs[0]) if last else names[1]
                value = self.element(
                    "FixedAdd", f"{node.name}.residual", (value, other), target, a_format=self.formats[value],
                    b_format=self.formats[other], y_format=y if last else before,
                )  # fmt: skip

    def dense(self, node: Node, own: LayerPrecision) -> None:
        """Gemm, MatMul, with the constant that is added behind it and a Relu, where nothing else reads them."""
        x = self.source(node.inputs[0], node)
        attributes = attributes_of(node)
        weight = self.weights(node, node.inputs[1])
        if weight.ndim != 2 or attributes.get("transA"):
            raise ModelError(f"{node}: it multiplies by {weight.shape}, or a transposed batch; give a matrix (in, out)")
        weight = weight if attributes.get("transB") else weight.T
        weight = weight * attributes.get("alpha", 1.0)
        added = None
        if len(node.inputs) > 2 and node.inputs[2]:
            added = self.weights(node, node.inputs[2]) * attributes.get("beta", 1.0)
        last, function = node, IDENTITY
        following = self.reader(last)
        if added is None and following is not None and on_host(following, "Add"):
            found = [self.graph.constants[name] for name in following.inputs if name in self.graph.constants]
            if (
                len(found) == 1
                and found[0].size in (1, len(weight))
                and found[0].shape[-1:] in ((), (1,), (len(weight),))
            ):
                added, last = np.asarray(found[0], np.float64), following
                behind = self.precision.layer(last.name)
                own = replace(own, result=own.result or behind.result, bias=own.bias or behind.weight)
                following = self.reader(last)
        bias = None
        if added is not None:
            if added.size not in (1, len(weight)):
                raise ModelError(
                    f"{node}: it adds {added.shape}; a bias has a value for each of its {len(weight)} outputs"
                )
            bias = np.broadcast_to(added.reshape(-1), (len(weight),))
        if following is not None and on_host(following, "Relu") and self.precision.layer(following.name) == NOTHING:
            last, function = following, activation_named("Relu")
        self.merged |= {part.name for part in (self.reader(node), last) if part is not None and last is not node}
        ended = replace(node, outputs=last.outputs)
        rank = len(self.shapes[node.inputs[0]])
        if rank == 2:
            self.ended(ended, own, x, weight, bias, {}, function, "")
            return
        # a dense layer of every step: channels come second, as a convolution has them
        order = (0, rank - 1, *range(1, rank - 1))
        back = (0, *range(2, rank), 1)
        x = self.transposed(x, order, f"{node.name}.channels_second")
        target = self.output(last.outputs[0])
        inner = f"{node.name}.channels_last"
        kernel = weight.reshape(*weight.shape, *(1,) * (rank - 2))
        self.ended(replace(ended, outputs=(inner,)), own, x, kernel, bias, {}, function, "")
        self.transposed(inner, back, target)

    def normalization(self, node: Node, own: LayerPrecision) -> None:
        """A product and a sum for each channel: a depthwise convolution with kernel 1."""
        x = self.source(node.inputs[0], node)
        scale, shift, mean, variance = (self.weights(node, name) for name in node.inputs[1:5])
        factor = scale / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
        rank = len(self.shapes[node.inputs[0]]) - 2
        weight = factor.reshape(-1, *(1,) * (rank + 1))
        self.ended(node, own, x, weight, shift - mean * factor, {"group": len(scale)}, IDENTITY, "")

    # pools

    def pool(self, node: Node, own: LayerPrecision) -> None:
        if any(node.outputs[1:]):
            raise ModelError(f"{node}: indices of maxima have no fixed-point form; use the values alone")
        x = self.source(node.inputs[0], node)
        x_format = self.formats[x]
        formats = {"x_format": x_format, "y_format": own.result or x_format}
        if node.op == "average_pool":
            wanted = own.accumulator or self.precision.accumulator
            formats["accumulator"] = summing(x_format, node) if isinstance(wanted, str) else wanted
        output = self.output(node.outputs[0])
        texts = {key: form.text for key, form in formats.items()}
        self.nodes.append(
            Node(
                node.name, node.kind, (x,), (output,), op=f"fixed_{node.op}",
                attributes={**{k: v for k, v in node.attributes.items() if k != "storage_order"}, **texts},
                whole_plane=node.whole_plane,
            )
        )  # fmt: skip
        self.formats[output] = formats["y_format"]

    # recurrent layers

    def recurrent(self, node: Node, own: LayerPrecision) -> None:
        given = [*node.inputs, *[""] * (len(rnn.NAMES) - len(node.inputs))]
        attributes = dict(node.attributes)
        if given[rnn.P]:
            raise ModelError(f"{node}: peepholes have no fixed-point form")
        for name in ("clip", "input_forget"):
            if attributes.pop(name, 0):
                raise ModelError(f"{node}: {name} has no fixed-point form; leave it out")
        for name in ("activation_alpha", "activation_beta"):
            attributes.pop(name, None)
        for name in attributes.get("activations") or ():
            text = name.decode() if isinstance(name, bytes) else str(name)
            if activation_named(text).name not in RECURRENT_FUNCTIONS:
                raise ModelError(f"{node}: {text} has no fixed-point form; take {', '.join(RECURRENT_FUNCTIONS)}")
        if given[rnn.LENGTHS]:
            raise ModelError(f"{node}: sequence_lens has no fixed-point form; pad the sequences")
        batch_first = attributes.pop("layout", 0)
        x = self.source(given[rnn.X], node)
        if batch_first:
            x = self.transposed(x, (1, 0, 2), f"{node.name}.steps_first")
        w_format, y = own.weight or self.precision.weight, own.result or self.precision.value
        w, r = (w_format.quantize(self.weights(node, given[place])) for place in (rnn.W, rnn.R))
        inputs = [x, self.constant(f"{node.name}.w", w), self.constant(f"{node.name}.r", r), "", "", "", ""]
        formats = {"x_format": self.formats[x], "w_format": w_format, "r_format": w_format, "y_format": y}
        if given[rnn.B]:
            bias = self.weights(node, given[rnn.B])
            formats["b_format"] = own.bias or self.precision.bias or bias_format(bias, w_format)
            inputs[rnn.B] = self.constant(f"{node.name}.b", formats["b_format"].quantize(bias))
        for place in (rnn.INITIAL_H, rnn.INITIAL_C):
            if given[place]:
                inputs[place] = self.state(node, given[place], y, rnn.NAMES[place], bool(batch_first))
        wanted = own.accumulator or self.precision.accumulator
        formats["accumulator"] = (
            recurrent_sum(self.formats[x], w_format, y, w, r) if isinstance(wanted, str) else wanted
        )
        formats["table_format"] = own.table or self.precision.table
        while not inputs[-1]:
            inputs.pop()
        names = [name and self.output(name) for name in node.outputs]
        made = [f"{name}.steps_first" if name and batch_first else name for name in names]
        more = {"table_size": own.table_size or self.precision.table_size, "reuse": own.reuse or self.precision.reuse}
        attributes |= {key: form.text for key, form in formats.items()} | more
        self.nodes.append(
            Node(node.name, node.kind, tuple(inputs), tuple(made), op=f"fixed_{node.op}", attributes=attributes)
        )
        for place, (name, first) in enumerate(zip(names, made)):
            if name:
                self.formats[first] = y
                if batch_first:
                    self.transposed(first, (2, 0, 1, 3) if place == 0 else (1, 0, 2), name)

    def state(self, node: Node, name: str, form: Fixed, what: str, batch_first: bool) -> str:
        """An initial state: a constant, or a value cast to the layer's own format."""
        if name in self.graph.constants:
            array = form.quantize(self.weights(node, name))
            return self.constant(f"{node.name}.{what}", array.swapaxes(0, 1) if batch_first else array)
        value = self.source(name, node)
        if batch_first:
            value = self.transposed(value, (1, 0, 2), f"{node.name}.{what}.first")
        return self.cast(value, form, f"{node.name}.{what}")

    def transposed(self, value: str, order: tuple[int, ...], name: str) -> str:
        return self.moved("Transpose", value, [], name, perm=order)

    def moved(self, kind: str, value: str, constants: list[str], name: str, **attributes: Any) -> str:
        """A node of ONNX that moves values."""
        proto = helper.make_node(kind, [value, *constants], [name], name, **attributes)
        self.nodes.append(Node(name, kind, (value, *constants), (name,), proto=proto, opsets=OPSET))
        self.formats[name] = self.formats[value]
        return name

    # what is between

    def move(self, node: Node) -> None:
        attributes = attributes_of(node)
        if node.kind in ("Resize", "Upsample") and attributes.get("mode", "nearest") != "nearest":
            raise ModelError(f"{node}: mode {attributes['mode']!r} computes new values; fixed point has nearest alone")
        if node.kind == "Pad":
            value = self.graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
            filled = float(attributes.get("value", 0.0)) or (value is not None and float(value.reshape(-1)[0]))
            if filled or (len(node.inputs) > 2 and node.inputs[2] and value is None):
                raise ModelError(f"{node}: it pads with another number than 0, which fixed point does not do")
        x = self.source(node.inputs[0], node)
        inputs = [x]
        for place, name in enumerate(node.inputs[1:], 1):
            if name and name not in self.graph.constants:
                raise ModelError(f"{node}: {name!r} is computed; in fixed point shapes and places are constants")
            if name:
                self.constants[name] = self.graph.constants[name]
            inputs.append("" if node.kind == "Pad" and place == 2 else name)  # no value: 0 of the integers' own type
        if any(node.outputs[1:]) and node.kind != "Split":
            raise ModelError(f"{node}: its second output has no fixed-point form")
        outputs = [name and self.output(name) for name in node.outputs]
        self.nodes.append(renamed(node, inputs, outputs))
        self.formats |= {name: self.formats[x] for name in outputs if name}

    def concat(self, node: Node, own: LayerPrecision) -> None:
        sources = [self.source(name, node) for name in node.inputs]
        wide = own.result or covering([self.formats[name] for name in sources])
        inputs = [self.cast(name, wide, f"{node.name}.input{place}") for place, name in enumerate(sources)]
        output = self.output(node.outputs[0])
        self.nodes.append(renamed(node, inputs, [output]))
        self.formats[output] = wide

    def pair(self, node: Node, own: LayerPrecision) -> None:
        y = own.result or self.precision.value
        constant = [name for name in node.inputs if name in self.graph.constants]
        if constant:
            self.with_constant(node, own, constant[0])
            return
        first, second = (self.source(name, node) for name in node.inputs)
        self.element(
            PAIRS[node.kind], node.name, (first, second), self.output(node.outputs[0]), a_format=self.formats[first],
            b_format=self.formats[second], y_format=y,
        )  # fmt: skip

    def with_constant(self, node: Node, own: LayerPrecision, name: str) -> None:
        """A constant beside a value."""
        y = own.result or self.precision.value
        [other] = [given for given in node.inputs if given != name]
        value = self.source(other, node)
        form = own.weight or (self.precision.weight if node.kind == "Mul" else y)
        made = self.constant(f"{node.name}.constant", form.quantize(self.weights(node, name)))
        self.of_constants[made] = form
        inputs = [made if given == name else value for given in node.inputs]
        a, b = (self.of_constants.get(given) or self.formats[given] for given in inputs)
        self.element(
            PAIRS[node.kind], node.name, (inputs[0], inputs[1]), self.output(node.outputs[0]), a_format=a, b_format=b,
            y_format=y,
        )  # fmt: skip

    def activation(
        self, node: Node, own: LayerPrecision, value: str, function: Activation, name: str, output: str
    ) -> None:
        """The last step of a layer: an activation, of which Swish and HardSwish are two."""
        y = own.result or self.precision.value
        x = self.formats[value]
        if function.name in ("Swish", "HardSwish"):
            if function.name == "Swish" and function.alpha != 1.0:
                raise ModelError(f"{node}: {function.text} has no fixed-point form; take Swish with alpha 1")
            gate = Activation("Sigmoid") if function.name == "Swish" else Activation("HardSigmoid", 1 / 6, 0.5)
            unit = replace(self.precision.table, signed=True) if own.table is None else own.table
            gated = self.element("FixedActivation", f"{name}.gate", (value,), f"{name}.gated",
                                 **self.function(own, gate, x, unit))  # fmt: skip
            self.element("FixedMul", name, (value, gated), self.output(output), a_format=x, b_format=unit, y_format=y)
            return
        if function.name not in FUNCTIONS:
            raise ModelError(f"{node}: {function.text} has no fixed-point form; known are {', '.join(FUNCTIONS)}")
        self.element("FixedActivation", name, (value,), self.output(output), **self.function(own, function, x, y))

    def function(self, own: LayerPrecision, function: Activation, x: Fixed, y: Fixed) -> dict[str, Any]:
        attributes: dict[str, Any] = {"function": function.text, "x_format": x, "y_format": y}
        if function.name in TABLE_REACH or function.name == "Elu":
            attributes["table_format"] = own.table or self.precision.table
            attributes["table_size"] = own.table_size or self.precision.table_size
        if function.name in ("LeakyRelu", "HardSigmoid", "Elu"):
            attributes["constant_format"] = own.weight or self.precision.weight
        return attributes

    def softmax(self, node: Node, own: LayerPrecision) -> None:
        axis = attributes_of(node).get("axis", -1 if node.opsets[""] >= 13 else 1)
        shape = self.shapes[node.inputs[0]]
        if axis % len(shape) != len(shape) - 1:
            raise ModelError(f"{node}: of shape {shape} along axis {axis}; fixed point has Softmax over the last axis")
        classes = shape[-1]
        value = self.source(node.inputs[0], node)
        size = own.table_size or 4096
        bits, places = classes.bit_length(), size.bit_length() - 1
        self.element(
            "FixedSoftmax", node.name, (value,), self.output(node.outputs[0]),
            x_format=self.formats[value], y_format=own.result or self.precision.value, table_size=size,
            difference_format=Fixed(places, 4, "RND", "SAT", signed=False).text,  # exp(-16) is 0 in the table
            exponential_format=Fixed(18, 2, "RND", "SAT").text,
            accumulator=Fixed(18 + bits, 2 + bits, "RND", "SAT").text,
            sum_format=Fixed(max(18, places), bits, "RND", "SAT", signed=False).text,
            inverse_format=Fixed(18, 2, "RND", "SAT").text,
        )  # fmt: skip


def renamed(node: Node, inputs: list[str], outputs: list[str]) -> Node:
    """An ONNX node with other names for its values."""
    assert node.proto is not None
    proto = type(node.proto)()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    del proto.output[:]
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    return replace(node, inputs=tuple(inputs), outputs=tuple(outputs), proto=proto)


def bias_format(bias: np.ndarray, weight: Fixed) -> Fixed:
    """As the weights', with as many integer bits as the biases need, and no fewer fraction bits up to 32 in all."""
    greatest = float(np.abs(bias).max(initial=0.0))
    integer = max(weight.integer, int(np.floor(np.log2(greatest))) + 2 if greatest else weight.integer)
    width = min(weight.width + integer - weight.integer, WIDEST_VALUE)
    return Fixed(width, integer, "RND", "SAT")


def exact_sum(x: Fixed, w_format: Fixed, w: np.ndarray, bias: np.ndarray, bias_fraction: int) -> Fixed:
    """An accumulator with every bit of the products, and room for any sum of them that x allows.

    w: integers (M, …), bias: integers (M) with bias_fraction fraction bits.
    """
    fraction = x.fraction + w_format.fraction
    shift = fraction - bias_fraction
    start = [min(abs(int(b) << shift if shift >= 0 else int(b) >> -shift), 1 << WIDEST_SUM) for b in bias]
    most = largest_sum(x, w.reshape(len(w), -1), fraction, np.array(start, np.int64), Fixed(2, 2 - fraction))
    width = max(most.bit_length() + 1, 2)
    return Fixed(min(width, WIDEST_SUM), width - fraction)


def recurrent_sum(x: Fixed, w_format: Fixed, y: Fixed, w: np.ndarray, r: np.ndarray) -> Fixed:
    """An accumulator for any sum that x and y allow, with as many bits of the products as may be multiplied again."""
    totals = [np.abs(values.astype(np.int64)).sum(2).max(initial=0) for values in (w, r)]
    bounds = [int(totals[0]) * max(-x.low, x.high), int(totals[1]) * max(-y.low, y.high)]
    fractions = [x.fraction + w_format.fraction, y.fraction + w_format.fraction]
    real = sum(bound * 2.0**-fraction for bound, fraction in zip(bounds, fractions))
    integer = max(int(np.ceil(np.log2(max(real, 1.0)))) + 2, y.integer)
    room = WIDEST_ELEMENT - integer - max(integer, y.integer, 1)
    most = room // 2 if room >= 2 * y.fraction else room - y.fraction
    fraction = max(min(max(fractions), most), 0)
    return Fixed(integer + fraction, integer, "RND", "SAT")


def summing(x: Fixed, node: Node) -> Fixed:
    """An accumulator for the values of a window."""
    kernel = node.attributes.get("kernel_shape")
    taps = 2**16 if node.whole_plane or kernel is None else int(np.prod(kernel))
    integer = x.integer + (not x.signed) + taps.bit_length()
    return Fixed(min(integer + x.fraction, WIDEST_SUM), integer)


def covering(formats: list[Fixed]) -> Fixed:
    """A format that holds every value of each."""
    signed = any(form.signed for form in formats)
    integer = max(form.integer + (signed and not form.signed) for form in formats)
    fraction = max(form.fraction for form in formats)
    if integer + fraction > WIDEST_VALUE - (not signed):
        raise ModelError(f"no format of {WIDEST_VALUE} bits holds {', '.join(map(str, formats))}; give a result format")
    first = formats[0]
    if all(form == first for form in formats):
        return first
    return Fixed(integer + fraction, integer, "RND", "SAT", signed)
