"""From a model's graph to hls4ml's list of layers; whatever hls4ml could not express is refused by name here.

Feature maps turn from (C, H, W) to hls4ml's (H, W, C). Where a map is flattened, the elements' order differs from
ONNX's; the next dense layer's weight rows are permuted to match, so that no transposition is left in hardware.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from quatrefoil.fpga.hls4ml_export import layers
from quatrefoil.fpga.hls4ml_export.layers import ExportError, Layer, Options
from quatrefoil.models.graph import Graph, Node, Value
from quatrefoil.ops import SPECS, canonical, conv, pool
from quatrefoil.ops.activations import FUNCTIONS, IDENTITY, Activation
from quatrefoil.ops.activations import activation as activation_of
from quatrefoil.problem import Problem, Tensor

OPERATORS = ("conv", "max_pool", "average_pool")
"""Operators of the house that have a counterpart in hls4ml."""

HOST_KINDS = ("Gemm", "MatMul", "Flatten", "Reshape", "Add", "Softmax", *FUNCTIONS)
"""ONNX operators that run on the host in ``run`` and have a counterpart in hls4ml."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A value inside the exported design.

    layer    the hls4ml layer that makes it
    shape    ONNX's shape without the batch: (C, spatial) or (features,)
    source   what a flattened map was before, (C, spatial); the design's order is then that of (spatial, C)
    pooled   a map of one pixel that hls4ml keeps as a vector
    """

    layer: str
    shape: tuple[int, ...]
    source: tuple[int, ...] | None = None
    pooled: bool = False

    def in_design_order(self, array: np.ndarray) -> np.ndarray:
        """A batch as the model has it, as rows in the order in which the design streams its elements."""
        mapped = array.reshape(array.shape[0], *(self.source or self.shape))
        return np.ascontiguousarray(np.moveaxis(mapped, 1, -1).reshape(array.shape[0], -1))


@dataclass(frozen=True)
class Lowered:
    """The design: hls4ml's layers in order, and where the model's input and outputs are in it."""

    layers: list[Layer]
    input: Feature
    outputs: dict[str, Feature]
    titles: dict[str, str]
    """The model's node behind each layer, for people."""

    @property
    def computing(self) -> list[str]:
        """The layers that have to appear as calls in the generated top function."""
        return [layer["name"] for layer in self.layers if layer["class_name"] not in ("InputLayer", "Reshape")]


def lower(graph: Graph, options: Options) -> Lowered:
    """Raises ExportError that names what is not supported and says what would work."""
    strangers = {
        f"{node.kind} ({node.name})"
        for node in graph.nodes
        if node.op not in OPERATORS and (node.op is not None or node.bodies or node.kind not in HOST_KINDS)
    }
    if strangers:
        known = "Conv, MaxPool, AveragePool, GlobalMaxPool, GlobalAveragePool, " + ", ".join(HOST_KINDS[:6])
        raise ExportError(f"hls4ml export has no {', '.join(sorted(strangers))}; it takes {known} and activations")
    if len(graph.inputs) != 1:
        names = ", ".join(value.name for value in graph.inputs)
        raise ExportError(f"the model has {len(graph.inputs)} inputs ({names}); export takes models with one")
    return _Lowering(graph, options).result()


class _Lowering:
    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph = graph
        self.options = options
        self.features: dict[str, Feature] = {}
        self.layers: list[Layer] = []
        self.titles: dict[str, str] = {}
        self.names: set[str] = set()
        self.uses = graph.uses()

    def result(self) -> Lowered:
        [value] = self.graph.inputs
        shape = _fixed_shape(value)
        start = Feature(self._name(value.name), shape)
        self.layers.append(layers.input_layer(start.layer, (*shape[1:], shape[0])))
        self.features[value.name] = start
        for node in self.graph.nodes:
            self._node(node)
        outputs = {value.name: self._feature(value.name, "the model's output") for value in self.graph.outputs}
        same = {feature.layer for feature in outputs.values()}
        if start.layer in same or len(same) < len(outputs):
            raise ExportError("the model's outputs are its input or each other; give each a layer of its own")
        return Lowered(self.layers, start, outputs, self.titles)

    def _name(self, text: str) -> str:
        """A C identifier that no other layer has."""
        base = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
        base = base if base[:1].isalpha() else f"n{base}"
        name, count = base, 1
        while name in self.names:
            count += 1
            name = f"{base}_{count}"
        self.names.add(name)
        return name

    def _feature(self, name: str, reader: str) -> Feature:
        if name not in self.features:
            raise ExportError(
                f"{reader} takes {name!r}, a constant; export takes constants as weights and biases alone"
            )
        return self.features[name]

    def _add(self, layer: Layer, node: Node) -> str:
        self.layers.append(layer)
        self.titles[layer["name"]] = f"{node.name} ({node.title})"
        return str(layer["name"])

    def _node(self, node: Node) -> None:
        if node.op == "conv":
            feature = self._conv(node)
        elif node.op in ("max_pool", "average_pool"):
            feature = self._pool(node)
        elif node.kind in ("Gemm", "MatMul"):
            feature = self._dense(node)
        elif node.kind in ("Flatten", "Reshape"):
            feature = self._flatten(node)
        elif node.kind == "Add":
            feature = self._sum(node)
        elif node.kind == "Softmax":
            feature = self._softmax(node)
        else:
            feature = self._activated(self._feature(node.inputs[0], str(node)), self._function(node), node)
        self.features[node.outputs[0]] = feature

    def _map(self, node: Node) -> tuple[Feature, int]:
        """The node's input as a map with one or two spatial axes, and how many."""
        feature = self._feature(node.inputs[0], str(node))
        rank = len(feature.shape) - 1
        if rank not in (1, 2):
            raise ExportError(f"{node}: its input has shape {feature.shape}; hls4ml has one or two spatial axes")
        if feature.pooled:
            shape = (*feature.shape[1:], feature.shape[0])
            layer = layers.reshape(self._name(f"{node.name}_map"), feature.layer, shape)
            feature = Feature(self._add(layer, node), feature.shape)
        return feature, rank

    def _problem(self, node: Node, x: Feature) -> Problem:
        assert node.op is not None
        tensors: list[Tensor | None] = [Tensor("float32", (1, *x.shape))]
        for name in node.inputs[1:]:
            array = self.graph.constants.get(name)
            tensors.append(None if array is None else Tensor.of(array))
        attributes: Mapping[str, Any] = node.attributes
        if node.whole_plane:
            first = tensors[0]
            assert first is not None
            attributes = pool.global_attributes(first, attributes)
        count = 1 + (node.op == "max_pool" and any(node.outputs[1:]))
        return canonical(node.op, tensors[: len(SPECS[node.op].input_names)], attributes, count)

    def _conv(self, node: Node) -> Feature:
        x, rank = self._map(node)
        weight = self._constant(node, node.inputs[1])
        bias = self._constant(node, node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        problem = self._problem(node, x)
        g = conv.geometry(problem)
        name = self._name(node.name)
        layer = layers.convolution(name, x.layer, g, rank, weight, bias, self.options)
        feature = Feature(self._add(layer, node), problem.outputs[0].shape[1:])
        if len(node.inputs) > conv.RESIDUAL and node.inputs[conv.RESIDUAL]:
            added = self._feature(node.inputs[conv.RESIDUAL], str(node))
            feature = self._added(feature, added, node)
        return self._activated(feature, conv.fused_activation(problem), node)

    def _pool(self, node: Node) -> Feature:
        x, rank = self._map(node)
        problem = self._problem(node, x)
        if len(problem.outputs) > 1:
            raise ExportError(f"{node}: hls4ml's pooling gives no indices; use the values alone")
        kind = "Max" if node.op == "max_pool" else "Average"
        window = pool.geometry(problem).window
        layer = layers.pooling(self._name(node.name), x.layer, kind, window, rank, x.shape[0])
        shape = problem.outputs[0].shape[1:]
        return Feature(self._add(layer, node), shape, pooled=layer["class_name"].startswith("Global"))

    def _constant(self, node: Node, name: str) -> np.ndarray:
        if name not in self.graph.constants:
            raise ExportError(f"{node}: {name!r} is computed; weights and biases have to be constants of the model")
        return np.asarray(self.graph.constants[name])

    def _attributes(self, node: Node) -> dict[str, Any]:
        assert node.proto is not None
        return {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute}

    def _dense(self, node: Node) -> Feature:
        x = self._feature(node.inputs[0], str(node))
        weight = self._constant(node, node.inputs[1])
        attributes = self._attributes(node)
        if len(x.shape) != 1 or weight.ndim != 2:
            raise ExportError(
                f"{node}: it multiplies {x.shape} by {weight.shape}; export takes vectors and matrices (flatten first)"
            )
        if attributes.get("transA"):
            raise ExportError(f"{node}: transA is 1; a batch of vectors is never transposed")
        weight = (weight.T if attributes.get("transB") else weight) * np.float32(attributes.get("alpha", 1.0))
        bias = None
        if len(node.inputs) > 2 and node.inputs[2]:
            constant = self._constant(node, node.inputs[2])
            bias = np.broadcast_to(constant.reshape(-1), weight.shape[1:]) * np.float32(attributes.get("beta", 1.0))
        if x.source is not None:
            channels, *spatial = x.source
            rows = weight.reshape(channels, *spatial, weight.shape[1])
            weight = np.moveaxis(rows, 0, -2).reshape(weight.shape)
        name = self._add(layers.dense(self._name(node.name), x.layer, weight, bias), node)
        return Feature(name, (weight.shape[1],))

    def _flatten(self, node: Node) -> Feature:
        x = self._feature(node.inputs[0], str(node))
        size = int(np.prod(x.shape))
        if node.kind == "Flatten":
            flat = self._attributes(node).get("axis", 1) in (1, -len(x.shape))
        else:
            target = [int(n) for n in self._constant(node, node.inputs[1])]
            # the first entry stands for the batch, whatever its length is
            flat = len(target) == 2 and target[1] in (-1, size) and target[0] in (0, 1, -1) and target != [-1, -1]
        if not flat:
            raise ExportError(f"{node}: of shape {x.shape} only the whole can be flattened, to (batch, {size})")
        if len(x.shape) == 1 or x.pooled:
            return replace(x, shape=(size,), pooled=False)
        layer = layers.reshape(self._name(node.name), x.layer, (size,))
        one_order = x.shape[0] == 1 or size == x.shape[0]
        return Feature(self._add(layer, node), (size,), None if one_order else x.shape)

    def _added(self, first: Feature, second: Feature, node: Node) -> Feature:
        if (first.shape, first.source, first.pooled) != (second.shape, second.source, second.pooled):
            raise ExportError(f"{node}: it adds {first.shape} and {second.shape}; hls4ml adds features of one shape")
        name = self._name(f"{node.name}_sum" if node.op is not None else node.name)
        return replace(first, layer=self._add(layers.addition(name, first.layer, second.layer), node))

    def _sum(self, node: Node) -> Feature:
        given = [name for name in node.inputs if name in self.features]
        if len(given) == 2:
            return self._added(self.features[given[0]], self.features[given[1]], node)
        [x] = given
        [other] = [name for name in node.inputs if name != x]
        feature, constant = self.features[x], self._constant(node, other)
        layer = next(layer for layer in self.layers if layer["name"] == feature.layer)
        if layer["class_name"] != "Dense" or self.uses[x] != 1 or constant.size not in (1, feature.shape[0]):
            raise ExportError(f"{node}: a constant can be added to a dense layer's result alone, as its bias")
        layer["bias_data"] = (layer["bias_data"] + constant.reshape(-1)).astype(np.float32)
        return feature

    def _softmax(self, node: Node) -> Feature:
        x = self._feature(node.inputs[0], str(node))
        if len(x.shape) != 1 or self._attributes(node).get("axis", -1 if node.opsets[""] >= 13 else 1) not in (1, -1):
            raise ExportError(
                f"{node}: of shape {x.shape}; export takes Softmax over the last axis of (batch, classes)"
            )
        layer = layers.softmax(self._name(node.name), x.layer, x.shape[0])
        return replace(x, layer=self._add(layer, node))

    def _function(self, node: Node) -> Activation:
        attributes = self._attributes(node)
        names = ("min", "max") if node.kind == "Clip" else ("alpha", "beta")
        parameters = list(FUNCTIONS[node.kind].defaults)
        for index, name in enumerate(names[: len(parameters)]):
            if name in attributes:
                parameters[index] = float(attributes[name])
            elif node.kind == "Clip" and len(node.inputs) > 1 + index and node.inputs[1 + index]:
                parameters[index] = float(self._constant(node, node.inputs[1 + index]))
        return activation_of(node.kind, *parameters)

    def _activated(self, x: Feature, function: Activation, node: Node) -> Feature:
        if function == IDENTITY:
            return x
        name = self._name(f"{node.name}_{function.name.lower()}" if node.op is not None else node.name)
        return replace(x, layer=self._add(layers.activation(name, x.layer, function, self.options), node))


def _fixed_shape(value: Value) -> tuple[int, ...]:
    shape: Sequence[Any] = value.shape or ()
    if value.dtype != "float32" or not 2 <= len(shape) <= 4 or not all(isinstance(n, int) for n in shape[1:]):
        raise ExportError(
            f"the input {value}; export takes float32 of (batch, features), (batch, C, W) or (batch, C, H, W)"
        )
    return tuple(int(n) for n in shape[1:])
