"""What a fixed-point network takes of an FPGA, before synthesis: each layer described to ``fpga.estimate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quatrefoil.fpga import estimate
from quatrefoil.models.fixed.network import FixedNetwork, value_shapes
from quatrefoil.models.graph import Node
from quatrefoil.numerics import TABLE_REACH, Fixed
from quatrefoil.ops import canonical, rnn
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.fixed import parse_format
from quatrefoil.ops.pool import global_attributes
from quatrefoil.problem import Tensor


def describe(network: FixedNetwork, strategy: str, reuse_factor: int) -> list[estimate.Layer]:
    """The layers of a network that take logic, in order; what only moves values in parallel takes none and is left out."""
    shapes = value_shapes(network.model)
    found = [_layer(network, node, shapes, strategy, reuse_factor) for node in network.graph.nodes]
    return [layer for layer in found if layer is not None]


def _layer(
    network: FixedNetwork, node: Node, shapes: Mapping[str, tuple[int, ...]], strategy: str, reuse_factor: int
) -> estimate.Layer | None:
    if node.op is not None:
        return _operator(network, node, shapes, strategy, reuse_factor)
    if node.kind in ("FixedQuantize", "FixedDequantize") or node.proto is not None:
        return None
    shape = shapes[node.outputs[0]]
    elements, positions = shape[1] if len(shape) > 1 else 1, int(np.prod(shape[2:], dtype=np.int64))
    width = network.formats[node.outputs[0]].width
    if node.kind == "FixedSoftmax":
        inverse = _format(node, "inverse_format").width
        return estimate.softmax(node.name, shape[-1], width, int(node.attributes["table_size"]), inverse)
    if node.kind == "FixedActivation" and _is_looked_up(node):
        size, kept = int(node.attributes["table_size"]), _format(node, "table_format").width
        return estimate.table(node.name, elements, width, size, kept, positions)
    if node.kind in ("FixedAdd", "FixedSub", "FixedMul"):
        return estimate.add(node.name, elements, width, positions)
    return estimate.relu(node.name, elements, width, positions)


def _format(node: Node, attribute: str) -> Fixed:
    return parse_format(str(node.attributes[attribute]))


def _is_looked_up(node: Node) -> bool:
    return Activation.parse(str(node.attributes["function"])).name in (*TABLE_REACH, "Elu")


def _operator(
    network: FixedNetwork, node: Node, shapes: Mapping[str, tuple[int, ...]], strategy: str, reuse_factor: int
) -> estimate.Layer:
    constants = network.graph.constants
    tensors: list[Tensor | None] = []
    for name in node.inputs:
        if name in constants:
            tensors.append(Tensor.of(constants[name]))
        else:
            tensors.append(Tensor(network.formats[name].dtype, shapes[name]) if name else None)
    attributes: Mapping[str, Any] = node.attributes
    if node.whole_plane:
        assert tensors[0] is not None
        attributes = global_attributes(tensors[0], attributes)
    assert node.op is not None
    problem = canonical(node.op, tensors, attributes)
    places = {"w": rnn.W, "r": rnn.R} if node.op in ("fixed_rnn", "fixed_lstm", "fixed_gru") else {"w": 1}
    given = {
        key: constants[node.inputs[place]]
        for key, place in places.items() if place < len(node.inputs) and node.inputs[place] in constants
    }  # fmt: skip
    return estimate.describe(problem, given, name=node.name, strategy=strategy, reuse=reuse_factor)
