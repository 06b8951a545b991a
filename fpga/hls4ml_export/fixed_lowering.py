"""From a fixed-point network's graph to a design: hls4ml's layers with the network's own formats.

ONNX keeps channels first and the design last, and ONNX moves values by Reshape, Transpose, Slice, ... Here a value is
a ``Source`` (what a layer of the design gives) and the place in it of each of its elements, so that moves cost nothing
until a layer needs its elements in an order that the design has not; then one layer moves them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from quatrefoil.fpga.hls4ml_export import fixed_layers as layers
from quatrefoil.fpga.hls4ml_export.fixed_layers import FixedLayer, Target
from quatrefoil.fpga.hls4ml_export.fixed_project import Design
from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.fpga.hls4ml_export.sharing import Sharing
from quatrefoil.models.fixed.c_export.moves import NOWHERE, sources
from quatrefoil.models.fixed.elements import SOFTMAX_FORMATS, constants
from quatrefoil.models.fixed.network import FixedNetwork, value_shapes
from quatrefoil.models.graph import Node
from quatrefoil.numerics import TABLE_REACH, Fixed
from quatrefoil.ops import canonical, conv, rnn
from quatrefoil.ops import fixed as ops
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.pool import global_attributes
from quatrefoil.problem import Problem, Tensor

RECURRENT: Final = ("fixed_rnn", "fixed_lstm", "fixed_gru")


@dataclass(eq=False)
class Source:
    """What a layer gives. shape: in the design. order: for each element in the design's order, its place in the
    value's ONNX order (without the batch); None for an input that no layer has read yet."""

    layer: str
    form: Fixed
    shape: tuple[int, ...]
    order: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Feature:
    """A value: its ONNX shape for a batch of one, and for each element its place in the source's ONNX order."""

    source: Source
    shape: tuple[int, ...]
    places: np.ndarray


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the design: the network's float name, and the layer. places: of an input, the ONNX place of
    each element in the design's order; of an output, the design's place of each element in ONNX's order."""

    name: str
    layer: str
    places: np.ndarray


@dataclass(frozen=True)
class FixedDesign:
    """traced: for each layer that gives a value of the network, its name and the ONNX place of each element in the
    design's order. titles: the model's node behind each layer."""

    design: Design
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    traced: Mapping[str, tuple[str, np.ndarray]]
    titles: Mapping[str, str]


def lower(network: FixedNetwork, target: Target, sharing: Sharing | None = None) -> FixedDesign:
    """sharing: strategies and reuse factors by layer, in place of the target's.

    Raises ExportError that names the node and says what would work.
    """
    return _Walk(network, target, sharing).result()


@dataclass
class _Walk:
    network: FixedNetwork
    target: Target
    sharing: Sharing | None = None
    layers: list[FixedLayer] = field(default_factory=list)
    features: dict[str, Feature] = field(default_factory=dict)
    traced: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    inputs: list[tuple[str, Source]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph = self.network.graph
        self.shapes = value_shapes(self.network.model)

    def result(self) -> FixedDesign:
        outputs: list[tuple[str, Feature]] = []
        for node in self.graph.nodes:
            if node.kind == "FixedQuantize" and node.op is None:
                self.input(node)
            elif node.kind == "FixedDequantize" and node.op is None:
                outputs.append((node.outputs[0], self.feature(node.inputs[0], node)))
            else:
                self.node(node)
        starts = []
        for real, source in self.inputs:
            if source.order is None:
                raise ExportError(f"no layer reads the input {real!r}; a design computes something of its inputs")
            starts.append(layers.input_layer(source.layer, source.shape, source.form))
        ports = [self.port(name, feature) for name, feature in outputs]
        design = Design((*starts, *self.layers), tuple(dict.fromkeys(port.layer for port in ports)))
        inputs = tuple(Port(real, source.layer, np.asarray(source.order)) for real, source in self.inputs)
        return FixedDesign(design, inputs, tuple(ports), self.traced, self.titles)

    def port(self, name: str, feature: Feature) -> Port:
        source = feature.source
        if source.order is None or any(source is start for _, start in self.inputs):
            raise ExportError(f"the output {name!r} is an input of the model; a design computes its outputs")
        if (feature.places == NOWHERE).any():
            raise ExportError(f"the output {name!r} is padded with zeros; pad it outside of the design")
        return Port(name, source.layer, _inverse(source.order)[feature.places])

    # values

    def name(self, text: str) -> str:
        """A C identifier that no other layer has."""
        base = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
        base = base if base[:1].isalpha() else f"n{base}"
        name, count = base, 1
        while name.lower() in self.names or name == "input":
            count += 1
            name = f"{base}_{count}"
        self.names.add(name.lower())
        return name

    def add(self, layer: FixedLayer, node: Node) -> str:
        self.layers.append(layer)
        self.titles[layer.name] = f"{node.name} ({node.title})"
        return layer.name

    def feature(self, name: str, reader: Node) -> Feature:
        if name not in self.features:
            raise ExportError(f"{reader}: it takes the constant {name!r}; export takes what layers give")
        return self.features[name]

    def form(self, name: str) -> Fixed:
        return self.network.formats[name]

    def input(self, node: Node) -> None:
        name, shape = node.outputs[0], self.shapes[node.outputs[0]]
        source = Source(self.name(node.inputs[0]), self.form(name), (), None)
        self.inputs.append((node.inputs[0], source))
        self.features[name] = Feature(source, shape, np.arange(_size(shape)))

    def given(self, value: str, layer: str, shape: Sequence[int], order: np.ndarray) -> None:
        """A value of the network that a layer gives. shape: in the design; order: as in ``Source``."""
        source = Source(layer, self.form(value), tuple(shape), np.asarray(order))
        self.features[value] = Feature(source, self.shapes[value], np.arange(_size(self.shapes[value])))
        self.traced[layer] = (value, source.order if source.order is not None else np.arange(0))

    def ordered(self, feature: Feature, shape: Sequence[int], order: np.ndarray, node: Node) -> str:
        """The layer that gives a value's elements in an order (of its ONNX places), in a shape of the design."""
        source, shape = feature.source, tuple(int(n) for n in shape)
        wanted = feature.places[order]
        if source.order is None:
            if np.array_equal(np.sort(wanted), np.arange(_size(self.shape_of(source)))):
                source.shape, source.order = shape, wanted
                return source.layer
            self.settle(source)
        assert source.order is not None
        index = np.where(wanted == NOWHERE, NOWHERE, _inverse(source.order)[wanted])
        if np.array_equal(index, np.arange(len(source.order))):
            if shape == source.shape:
                return source.layer
            return self.reshaped(source.layer, shape, source.form, node)
        name = self.name(f"{node.name}_move")
        return self.add(layers.move(name, source.layer, index, shape, source.form, self.target), node)

    def shape_of(self, source: Source) -> tuple[int, ...]:
        """The ONNX shape of an input."""
        [shape] = [self.shapes[f"{real}.fixed"] for real, start in self.inputs if start is source]
        return shape

    def settle(self, source: Source) -> None:
        """The order of an input whose first reader takes it in no order of its own: channels last."""
        shape = self.shape_of(source)
        source.shape, source.order = _last(shape), _channels_last(shape)

    def natural(self, feature: Feature, node: Node) -> tuple[str, tuple[int, ...], np.ndarray]:
        """The layer that gives all elements of a value in the order in which they are; that shape and order."""
        source = feature.source
        if source.order is None:
            self.settle(source)
        assert source.order is not None
        if np.array_equal(np.sort(feature.places), np.arange(len(source.order))):
            return source.layer, source.shape, _inverse(feature.places)[source.order]
        order = _channels_last(feature.shape)
        return self.ordered(feature, _last(feature.shape), order, node), _last(feature.shape), order

    def flat(self, feature: Feature, node: Node) -> tuple[str, np.ndarray]:
        """As ``natural``, as a vector."""
        source, shape, order = self.natural(feature, node)
        return (source if len(shape) == 1 else self.reshaped(source, (len(order),), feature.source.form, node)), order

    def reshaped(self, source: str, shape: tuple[int, ...], form: Fixed, node: Node) -> str:
        name = self.name(f"{node.name}_shape")
        self.layers.append(layers.reshape(name, source, shape, form))
        return name

    # nodes

    def shared(self, node: Node) -> Target:
        """The target with a node's own strategy and reuse factor."""
        return self.target if self.sharing is None else self.sharing.target(node.name, self.target)

    def node(self, node: Node) -> None:
        if node.op == "fixed_conv":
            self.convolution(node)
        elif node.op in ("fixed_max_pool", "fixed_average_pool"):
            self.pool(node)
        elif node.op in RECURRENT:
            self.recurrent(node)
        elif node.kind in ("FixedCast", "FixedActivation"):
            x = self.feature(node.inputs[0], node)
            source, shape, order = self.natural(x, node)
            layer = element(node, self.name(node.name), source, self.target)
            self.given(node.outputs[0], self.add(layer, node), shape, order)
        elif node.kind in layers.MERGES:
            self.merge(node)
        elif node.kind == "FixedSoftmax":
            self.softmax(node)
        elif node.kind == "Concat":
            self.concat(node)
        elif node.proto is not None:
            self.move(node)
        else:
            raise ExportError(f"{node} has no form in hls4ml")

    def move(self, node: Node) -> None:
        x = self.feature(node.inputs[0], node)
        if node.kind in ("Resize", "Upsample") and self.upsample(node, x):
            return
        for output, found in zip(node.outputs, sources(node, x.shape, self.graph.constants)):
            if output:
                flat = found.reshape(-1)
                places = np.where(flat == NOWHERE, NOWHERE, x.places[flat])
                self.features[output] = Feature(x.source, self.shapes[output], places)

    def upsample(self, node: Node, x: Feature) -> bool:
        """Nearest neighbours over two axes by whole factors, as a layer; False for others, which are moves."""
        before, after = x.shape, self.shapes[node.outputs[0]]
        if len(before) != 4 or any(b % a for a, b in zip(before, after)) or before[:2] != after[:2]:
            return False
        scales = after[2] // before[2], after[3] // before[3]
        plain = np.arange(_size(before)).reshape(before).repeat(scales[0], axis=2).repeat(scales[1], axis=3)
        if not np.array_equal(sources(node, before, self.graph.constants)[0], plain):
            return False
        source = self.ordered(x, _last(before), _channels_last(before), node)
        height, width, channels = _last(before)
        name = self.name(node.name)
        layer = layers.upsampling(name, source, (height, width, channels), scales, x.source.form, self.target)
        self.given(node.outputs[0], self.add(layer, node), _last(after), _channels_last(after))
        return True

    def problem(self, node: Node) -> Problem:
        assert node.op is not None
        tensors: list[Tensor | None] = []
        for name in node.inputs:
            if not name:
                tensors.append(None)
            elif name in self.graph.constants:
                tensors.append(Tensor.of(self.graph.constants[name]))
            else:
                tensors.append(Tensor(self.form(name).dtype, self.shapes[name]))
        attributes: Mapping[str, Any] = node.attributes
        if node.whole_plane:
            assert tensors[0] is not None
            attributes = global_attributes(tensors[0], attributes)
        return canonical(node.op, tensors, attributes, len(node.outputs))

    def constant(self, node: Node, place: int) -> np.ndarray | None:
        if place >= len(node.inputs) or not node.inputs[place]:
            return None
        if node.inputs[place] not in self.graph.constants:
            raise ExportError(f"{node}: {node.inputs[place]!r} is computed; export takes it as a constant of the model")
        return np.asarray(self.graph.constants[node.inputs[place]])

    def convolution(self, node: Node) -> None:
        problem, x = self.problem(node), self.feature(node.inputs[0], node)
        w, bias = self.constant(node, 1), self.constant(node, conv.BIAS)
        assert w is not None
        output, rows = node.outputs[0], None
        if len(x.shape) == 2:
            if ops.format_of(problem, "accumulator").overflow == "WRAP":
                # a vector in the order in which it is: the weights follow it
                source, rows = self.flat(x, node)
            else:
                rows = np.arange(len(x.places))
                source = self.ordered(x, (len(rows),), rows, node)
        else:
            source = self.ordered(x, _last(x.shape), _channels_last(x.shape), node)
        rectified = any(name == "activation" for name, _ in problem.attributes)
        name = self.name(f"{node.name}_sum" if rectified else node.name)
        target = self.shared(node)
        layer = layers.convolution(name, source, problem, w, bias, target, rows=rows)
        if self.sharing is not None and self.sharing.names(node.name) and layer.reuse_factor != target.reuse_factor:
            raise ExportError(
                f"{node}: reuse {target.reuse_factor}; hls4ml's depthwise convolution has a multiplier for each product, leave "
                "it out of reuse"
            )
        made = self.add(layer, node)
        if rectified:
            y = ops.format_of(problem, "y_format")
            made = self.add(layers.relu(self.name(node.name), made, y, self.target), node)
        shape = self.shapes[output]
        self.given(output, made, _last(shape), _channels_last(shape))

    def pool(self, node: Node) -> None:
        problem, x = self.problem(node), self.feature(node.inputs[0], node)
        source = self.ordered(x, _last(x.shape), _channels_last(x.shape), node)
        layer = layers.pooling(self.name(node.name), source, problem, self.target)
        shape = self.shapes[node.outputs[0]]
        whole = str(layer.description["class_name"]).startswith("Global")
        self.given(
            node.outputs[0], self.add(layer, node), (shape[1],) if whole else _last(shape), _channels_last(shape)
        )

    def merge(self, node: Node) -> None:
        constant = [place for place, name in enumerate(node.inputs) if name in self.graph.constants]
        if constant:
            self.with_constant(node, constant[0])
            return
        full = self.shapes[node.outputs[0]]
        first, second = (self.broadcast(self.feature(name, node), full) for name in node.inputs)
        if first.source is second.source and np.array_equal(first.places, second.places):
            raise ExportError(f"{node}: it takes {node.inputs[0]!r} twice; hls4ml merges two values")
        source, shape, order = self.natural(first, node)
        other = self.ordered(second, shape, order, node)
        y = self.form(node.outputs[0])
        layer = layers.merge(self.name(node.name), source, other, layers.MERGES[node.kind], y, self.target)
        self.given(node.outputs[0], self.add(layer, node), shape, order)

    def broadcast(self, feature: Feature, shape: tuple[int, ...]) -> Feature:
        """A value repeated to a shape, as NumPy does."""
        if feature.shape == shape:
            return feature
        places = np.broadcast_to(feature.places.reshape(feature.shape), shape).reshape(-1)
        return Feature(feature.source, shape, places)

    def with_constant(self, node: Node, place: int) -> None:
        """A sum, difference or product with a constant."""
        x, shape = self.feature(node.inputs[1 - place], node), self.shapes[node.outputs[0]]
        form = ops.parse_format(str(node.attributes[("a_format", "b_format")[place]]))
        source, here, order = self.natural(self.broadcast(x, shape), node)
        constant = np.broadcast_to(np.asarray(self.graph.constants[node.inputs[place]]), shape).reshape(-1)[order]
        layer = layers.scaling(
            self.name(node.name), source, layers.MERGES[node.kind], constant.astype(np.int64), form,
            self.form(node.outputs[0]), here[-1], self.target, constant_first=place == 0,
        )  # fmt: skip
        self.given(node.outputs[0], self.add(layer, node), here, order)

    def softmax(self, node: Node) -> None:
        x = self.feature(node.inputs[0], node)
        if _size(x.shape) != x.shape[-1]:
            raise ExportError(f"{node}: of shape {x.shape}; export takes Softmax over (batch, classes)")
        order = np.arange(x.shape[-1])
        source = self.ordered(x, (len(order),), order, node)
        layer = element(node, self.name(node.name), source, self.target)
        self.given(node.outputs[0], self.add(layer, node), (len(order),), order)

    def concat(self, node: Node) -> None:
        """Along channels where all keep them last, else of flat vectors, whose order the next reader settles."""
        assert node.proto is not None
        output = node.outputs[0]
        shape, y = self.shapes[output], self.form(output)
        axis = next(item.i for item in node.proto.attribute if item.name == "axis") % len(shape)
        parts = [self.feature(name, node) for name in node.inputs]
        if len(parts) == 1:
            self.features[output] = Feature(parts[0].source, shape, parts[0].places)
            return
        everything = np.arange(_size(shape)).reshape(shape)
        ends = np.cumsum([part.shape[axis] for part in parts])[:-1]
        own = [piece.reshape(-1) for piece in np.split(everything, ends, axis=axis)]
        channels = axis == 1
        self.target.require(str(node), "concat" if channels else "concat_elsewhere")
        made, order = "", np.arange(0)
        for place, (part, places) in enumerate(zip(parts, own)):
            if channels:
                source = self.ordered(part, _last(part.shape), _channels_last(part.shape), node)
                here = _last(part.shape)
            else:
                source, natural = self.flat(part, node)
                places, here = places[natural], (len(natural),)
            if place == 0:
                made, order, so_far = source, places, here
                continue
            so_far = (*so_far[:-1], so_far[-1] + here[-1])
            order = np.concatenate([order, places])
            rank = len(so_far)
            name = self.name(node.name if place == len(parts) - 1 else f"{node.name}_{place}")
            made = self.add(layers.concatenation(name, made, source, rank - 1, rank, y, self.target), node)
        self.given(output, made, so_far, _channels_last(shape) if channels else order)

    def recurrent(self, node: Node) -> None:
        problem, x = self.problem(node), self.feature(node.inputs[0], node)
        g = ops.recurrent_geometry(problem)
        if x.shape[1] != 1:
            raise ExportError(f"{node}: a batch of {x.shape[1]} inside the model; a design computes one sample")
        inputs: list[np.ndarray | None] = [None, *(self.constant(node, place) for place in range(1, len(node.inputs)))]
        for place in (rnn.INITIAL_H, rnn.INITIAL_C):
            state = inputs[place] if place < len(inputs) else None
            if state is not None and state.shape[1] != 1:
                raise ExportError(f"{node}: {rnn.NAMES[place]} is of a batch of {state.shape[1]}; give one of 1")
        names = [*node.outputs, "", ""][:3]
        read = {name for other in self.graph.nodes for name in other.inputs}
        wanted = [name if name in read else "" for name in names]
        if wanted[2] and (wanted[0] or wanted[1]):
            raise ExportError(f"{node}: its cell state {names[2]!r} is read beside h; export gives one of the two")
        kind = "sequence" if wanted[0] else "h" if wanted[1] else "c"
        source = self.ordered(x, (g.steps, g.inputs), np.arange(g.steps * g.inputs), node)
        made = []
        for direction in range(g.directions):
            name = self.name(node.name if g.directions == 1 else f"{node.name}_{('forward', 'backward')[direction]}")
            found = layers.recurrent_constants(problem, inputs, direction)
            layer = layers.recurrent(name, source, problem, found, self.shared(node), direction=direction, output=kind)
            made.append(self.add(layer, node))
        here: tuple[int, ...] = (g.steps, g.hidden) if kind == "sequence" else (g.hidden,)
        last = made[0]
        if g.directions == 2:
            y = ops.format_of(problem, "y_format")
            layer = layers.concatenation(
                self.name(node.name), made[0], made[1], len(here) - 1, len(here), y, self.target
            )
            last, here = self.add(layer, node), (*here[:-1], 2 * g.hidden)
        output = wanted[0] or wanted[1] or wanted[2]
        self.given(output, last, here, np.arange(_size(self.shapes[output])))
        if wanted[0] and wanted[1]:
            # the last h is a part of the sequence: of its last step, backward of its first
            sequence = self.features[output]
            places = np.arange(_size(sequence.shape)).reshape(sequence.shape)
            ends = [places[0 if backward else -1, d] for d, backward in enumerate(g.reverse)]
            self.features[wanted[1]] = Feature(
                sequence.source, self.shapes[wanted[1]], np.concatenate(ends).reshape(-1)
            )


def element(node: Node, name: str, source: str, target: Target) -> FixedLayer:
    """The layer of a node of models/fixed/elements.py that has one input."""
    form = {
        key: ops.parse_format(str(value))
        for key, value in node.attributes.items()
        if key.endswith("_format") or key == "accumulator"
    }
    x, y, size = form["x_format"], form["y_format"], int(node.attributes.get("table_size", 1024))
    if node.kind == "FixedCast":
        return layers.cast(name, source, y, target)
    if node.kind == "FixedSoftmax":
        return layers.softmax(name, source, {key: form[key] for key in SOFTMAX_FORMATS}, size, y, target)
    function = Activation.parse(str(node.attributes["function"]))
    if function.name == "Relu":
        return layers.relu(name, source, y, target)
    if function.name in TABLE_REACH:
        return layers.table_activation(name, source, function.name, x, form["table_format"], size, y, target)
    _, integers = constants(node.attributes)
    if function.name == "Clip":
        if integers[0] == 0 and integers[1] == x.high:
            return layers.relu(name, source, y, target)
        if (function.alpha, function.beta) == (0.0, 6.0):
            return layers.relu6(name, source, y, target)
        raise ExportError(f"{node}: {function.text}; hls4ml has Clip(0,6) and Relu")
    constant = form["constant_format"]
    alpha, beta = (float(constant.dequantize(np.array(value))) for value in integers)
    if function.name == "HardSigmoid":
        return layers.hard_sigmoid(name, source, alpha, beta, constant, y, target)
    table = form.get("table_format") if function.name == "Elu" else None
    return layers.sloped_activation(name, source, function.name, alpha, constant, y, target, table, size)


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    """(1, C, spatial) in the design: (spatial, C)."""
    return (*shape[2:], *shape[1:2])


def _channels_last(shape: Sequence[int]) -> np.ndarray:
    """The ONNX places of (1, C, spatial) in the order of (spatial, C)."""
    places = np.arange(_size(shape)).reshape(shape[1:] if len(shape) > 1 else shape)
    return np.moveaxis(places, 0, -1).reshape(-1) if places.ndim > 1 else places


def _inverse(order: np.ndarray) -> np.ndarray:
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    return inverse
