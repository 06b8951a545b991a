"""What a fixed-point network takes of an FPGA, before synthesis: each layer described to ``fpga.estimate`` as it is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quatrefoil.fpga import estimate
from quatrefoil.fpga.hls4ml_export.fixed_layers import Target, dense_groups, dilated
from quatrefoil.fpga.hls4ml_export.layers import behind
from quatrefoil.fpga.hls4ml_export.sharing import Sharing
from quatrefoil.models.fixed.network import FixedNetwork, value_shapes
from quatrefoil.models.graph import Node
from quatrefoil.numerics import TABLE_REACH, Fixed
from quatrefoil.ops import canonical, conv, rnn
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.fixed import parse_format
from quatrefoil.ops.pool import global_attributes
from quatrefoil.problem import Problem, Tensor


def describe(network: FixedNetwork, sharing: Sharing, target: Target) -> list[estimate.Layer]:
    """The layers of a network that take logic, in order; what only moves values in parallel takes none and is left out."""
    shapes = value_shapes(network.model)
    found = [_layer(network, node, shapes, sharing.target(node.name, target)) for node in network.graph.nodes]
    return [layer for layer in found if layer is not None]


def _layer(
    network: FixedNetwork, node: Node, shapes: Mapping[str, tuple[int, ...]], target: Target
) -> estimate.Layer | None:
    if node.op is not None:
        return _operator(network, node, shapes, target)
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
    network: FixedNetwork, node: Node, shapes: Mapping[str, tuple[int, ...]], target: Target
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
    strategy, reuse, depthwise = target.strategy, target.reuse_factor, False
    if node.op == "fixed_conv" and "w" in given:
        g = conv.geometry(problem)
        depthwise = g.groups > 1 and g.groups == g.in_channels == g.out_channels
        if depthwise:
            strategy, reuse = "latency", 1
        elif g.groups > 1 or max(g.window.dilations) > 1:
            problem, given = _with_zeros(problem, given["w"])
    layer = estimate.describe(problem, given, name=node.name, strategy=strategy, reuse=reuse)
    return replace(layer, sharing=not depthwise)


def _with_zeros(problem: Problem, w: np.ndarray) -> tuple[Problem, dict[str, np.ndarray]]:
    """A convolution without groups and dilations, with zeros in their place."""
    g = conv.geometry(problem)
    dense, window = dilated(dense_groups(w.astype(np.float64), g.groups), g.window)
    full = dense.astype(w.dtype)
    rank = full.ndim - 2
    ends = [behind(window, axis) for axis in range(3 - rank, 3)]
    attributes = dict(problem.attributes) | {"group": 1, "dilations": [1] * rank, "kernel_shape": list(full.shape[2:])}
    attributes["pads"] = [*window.pads[3 - rank :], *ends] if rank else []
    tensors = [problem.inputs[0], Tensor.of(full), *problem.inputs[2:]]
    return canonical("fixed_conv", tensors, attributes), {"w": full}
