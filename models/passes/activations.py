"""Passes that find activations, and that end a convolution with what follows it: an activation, a residual addition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from onnx import helper

from quatrefoil.models.graph import Graph, Node
from quatrefoil.models.passes.matching import attributes_of, on_host, scalar, sole_reader
from quatrefoil.ops.activations import Activation, activation
from quatrefoil.ops.conv import RESIDUAL

FUSING = ("conv", "conv_transpose")

HARD_SWISH_OPSET: Final = 14


def name_activations(graph: Graph) -> Graph:
    """HardSigmoid and HardSwish that are spelt out, clip(x + 3, 0, 6) / 6 and x times that, become one node.

    Exporters write them so for operator sets that lack HardSwish; the division may stand before the product with x,
    after it, or be a multiplication with 1/6.
    """
    reader, producers = sole_reader(graph), graph.producers()
    replaced: dict[str, Node] = {}
    gone: set[str] = set()
    for clip in graph.nodes:
        if not on_host(clip, "Clip") or _bounds(clip, graph.constants) != (0.0, 6.0):
            continue
        add = producers.get(clip.inputs[0])
        if add is None or not on_host(add, "Add") or add.opsets[""] < 7 or reader(add) is not clip:
            continue
        sources = [name for name in add.inputs if scalar(name, graph.constants) != 3.0]
        if len(sources) != 1 or len(add.inputs) != 2:
            continue
        [source] = sources
        members, kind = _gate(clip, source, reader, graph.constants)
        if kind:
            last = members[-1]
            replaced[last.name] = _activation_node(last, kind, source)
            gone.update(node.name for node in (add, clip, *members[:-1]))
    return graph.with_nodes(replaced.get(node.name, node) for node in graph.nodes if node.name not in gone)


def _gate(
    clip: Node, source: str, reader: Callable[[Node], Node | None], constants: Mapping[str, np.ndarray]
) -> tuple[list[Node], str]:
    """The nodes that follow clip(x + 3, 0, 6) and what they make of it; an empty name for neither activation."""
    members: list[Node] = []
    divided = multiplied = False
    value = clip
    while not (divided and multiplied):
        following = reader(value)
        if following is None:
            break
        if not divided and _is_sixth(following, value.outputs[0], constants):
            divided = True
        elif not multiplied and on_host(following, "Mul") and set(following.inputs) == {source, value.outputs[0]}:
            multiplied = True
        else:
            break
        members.append(following)
        value = following
    if not divided:
        return [], ""
    return members, "HardSwish" if multiplied else "HardSigmoid"


def _is_sixth(node: Node, source: str, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether the node computes source / 6."""
    if len(node.inputs) != 2 or node.inputs.count(source) != 1:
        return False
    place = node.inputs.index(source)
    other = scalar(node.inputs[1 - place], constants)
    if on_host(node, "Div"):
        return place == 0 and other == 6.0
    return on_host(node, "Mul") and other is not None and abs(other - 1 / 6) < 1e-7


def _activation_node(last: Node, kind: str, source: str) -> Node:
    proto = helper.make_node(kind, [source], [last.outputs[0]], name=last.name)
    if kind == "HardSigmoid":
        proto.attribute.extend([helper.make_attribute("alpha", 1 / 6), helper.make_attribute("beta", 0.5)])
    opsets = {**last.opsets, "": max(last.opsets[""], HARD_SWISH_OPSET)}
    return Node(last.name, kind, (source,), last.outputs[:1], proto=proto, opsets=opsets)


def fuse_activations(graph: Graph) -> Graph:
    """An activation that alone reads a convolution becomes part of it; x * Sigmoid(x) and x * HardSigmoid(x), too."""
    consumers, outputs = graph.consumers(), graph.output_names
    replaced: dict[str, Node] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        if node.op not in FUSING or "activation" in node.attributes or node.outputs[0] in outputs:
            continue
        readers = consumers.get(node.outputs[0], [])
        found = _activation(readers, node.outputs[0], graph.constants)
        if found is None and len({reader.name for reader in readers}) == 2:
            found = _self_gated(readers, node.outputs[0], consumers, outputs)
        if found is None:
            continue
        text, members = found
        replaced[node.name] = replace(
            node,
            outputs=members[-1].outputs[:1],
            attributes={**node.attributes, "activation": text},
            fused=(*node.fused, *(member.kind for member in members)),
        )
        gone.update(member.name for member in members)
    return graph.with_nodes(replaced.get(node.name, node) for node in graph.nodes if node.name not in gone)


PARAMETERS: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "HardSwish": (),
    "LeakyRelu": (("alpha", 0.01),),
    "Elu": (("alpha", 1.0),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "ThresholdedRelu": (("alpha", 1.0),),
    "Swish": (("alpha", 1.0),),
}
"""ONNX's activations that a convolution can end with, and their attributes; Clip's bounds are inputs."""


def _activation(
    readers: list[Node], source: str, constants: Mapping[str, np.ndarray]
) -> tuple[str, tuple[Node, ...]] | None:
    """The text of the activation that is the only reader, and its node."""
    if len(readers) != 1 or readers[0].inputs[0] != source:
        return None
    found = activation_of(readers[0], constants)
    return None if found is None else (found.text, (readers[0],))


def activation_of(node: Node, constants: Mapping[str, np.ndarray]) -> Activation | None:
    """The activation that a host node is, of its first input; None for any other node, and for bounds that are not
    constant."""
    if on_host(node, *PARAMETERS):
        attributes = attributes_of(node)
        return activation(node.kind, *(float(attributes.get(name, default)) for name, default in PARAMETERS[node.kind]))
    bounds = _bounds(node, constants) if on_host(node, "Clip") else None
    return None if bounds is None else activation(node.kind, *bounds)


def _bounds(clip: Node, constants: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """Clip's constant bounds; None where they are not constant or cross."""
    limits = [-math.inf, math.inf]
    if clip.opsets[""] < 11:
        attributes = attributes_of(clip)
        limits = [float(attributes.get("min", -math.inf)), float(attributes.get("max", math.inf))]
    else:
        for place, name in enumerate(clip.inputs[1:3]):
            if name:
                bound = constants.get(name)
                if bound is None or bound.size != 1:
                    return None
                limits[place] = float(bound.reshape(-1)[0])
    return (limits[0], limits[1]) if limits[0] <= limits[1] else None


def _self_gated(
    readers: list[Node], source: str, consumers: Mapping[str, list[Node]], outputs: frozenset[str]
) -> tuple[str, tuple[Node, ...]] | None:
    """x * gate(x), where gate is Sigmoid (Swish) or HardSigmoid with 1/6 and 1/2 (HardSwish)."""
    gates = [node for node in readers if on_host(node, "Sigmoid", "HardSigmoid")]
    products = [node for node in readers if on_host(node, "Mul")]
    if len(readers) != 2 or len(gates) != 1 or len(products) != 1:
        return None
    [gate], [product] = gates, products
    gated = gate.outputs[0]
    if set(product.inputs) != {source, gated} or gated in outputs or len(consumers.get(gated, [])) != 1:
        return None
    if gate.kind == "Sigmoid":
        return "Swish", (gate, product)
    attributes = attributes_of(gate)
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-7 or beta != 0.5:
        return None
    return "HardSwish", (gate, product)


def fuse_residuals(graph: Graph) -> Graph:
    """Add (or Sum of two) that alone reads a convolution becomes the convolution's residual input.

    The convolution is computed where the Add stood, so that the other value is there. Where the other value turns
    out, at run time, to have another shape than the convolution's result, the executor adds it with broadcasting.
    """
    reader = sole_reader(graph)
    producers = graph.producers()
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    moved: set[str] = set()
    fused: dict[str, Node] = {}
    for node in graph.nodes:
        if not on_host(node, "Add", "Sum") or len(node.inputs) != 2 or node.opsets[""] < 7:
            continue
        if len(set(node.inputs)) == 1:
            continue
        # of two convolutions the later one takes the other as its residual
        makers = [(place, producers.get(name)) for place, name in enumerate(node.inputs)]
        candidates = [(place, maker) for place, maker in makers if maker is not None and _takes_residual(maker, reader)]
        candidates = [(place, maker) for place, maker in candidates if maker.name not in moved]
        if not candidates:
            continue
        place, conv = max(candidates, key=lambda item: order[item[1].name])
        other = node.inputs[1 - place]
        inputs = (*conv.inputs, *("",) * (RESIDUAL - len(conv.inputs)), other)
        fused[node.name] = replace(conv, inputs=inputs, outputs=node.outputs, fused=(*conv.fused, node.kind))
        moved.add(conv.name)
    return graph.with_nodes(fused.get(node.name, node) for node in graph.nodes if node.name not in moved)


def _takes_residual(conv: Node, reader: Callable[[Node], Node | None]) -> bool:
    return (
        conv.op in FUSING
        and len(conv.inputs) <= RESIDUAL
        and "activation" not in conv.attributes
        and reader(conv) is not None
    )
