"""Passes over a model's graph, each a function Graph -> Graph that leaves the numbers alone.

``optimize`` applies them in order. Values that are outputs of the graph are never renamed or fused away, and a value
that two nodes read is never fused into one of them. Bodies of If, Loop and Scan are optimized likewise.

Folding batch normalisation changes roundings only: new weights are computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import host
from quatrefoil.models.graph import Graph, Node, frozen_array
from quatrefoil.ops.activations import activation
from quatrefoil.ops.conv import BIAS, RESIDUAL, W, X

FOLDED_ELEMENTS: Final = 2**24
"""Constants that folding would make and that may be larger than this are computed at run time instead."""

FLOATS = (np.float32, np.float64, np.float16)
FUSING = ("conv", "conv_transpose")

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
           "Dropout"}  # fmt: skip
# Operators whose outputs can be far larger than their inputs are broadcast to, so that they are left for run time.
_GROWING = {"Tile", "Resize", "Upsample", "Pad", "EyeLike", "OneHot", "CenterCropPad", "HannWindow", "HammingWindow",
            "BlackmanWindow", "MelWeightMatrix", "Col2Im", "MatMul", "Gemm", "Einsum", "AffineGrid"}  # fmt: skip


def optimize(graph: Graph) -> Graph:
    """All passes, bodies included."""
    for step in (
        constants_into_bodies,
        remove_identities,
        fold_constants,
        remove_dead_nodes,
        fold_pads,
        fold_affine,
        fuse_activations,
        fuse_residuals,
        fuse_activations,
        remove_dead_nodes,
    ):
        graph = step(graph)
    return graph.with_nodes(
        replace(node, bodies={name: optimize(body) for name, body in node.bodies.items()}) if node.bodies else node
        for node in graph.nodes
    )


def attributes_of(node: Node) -> dict[str, Any]:
    """The attributes of a node of the host; text as str."""
    assert node.proto is not None
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def _on_host(node: Node, *kinds: str) -> bool:
    """Whether it is a host operator of ONNX's own domain and one of these kinds."""
    return node.op is None and node.proto is not None and node.proto.domain == "" and node.kind in kinds


def _renamed(nodes: Iterable[Node], names: Mapping[str, str]) -> list[Node]:
    """The nodes reading other names."""

    def last(name: str) -> str:
        while name in names:
            name = names[name]
        return name

    return [
        replace(node, inputs=tuple(map(last, node.inputs))) if any(name in names for name in node.inputs) else node
        for node in nodes
    ]


def constants_into_bodies(graph: Graph) -> Graph:
    """Values that bodies take from outside and that are constant become constants of the body."""
    nodes = []
    for node in graph.nodes:
        own = len(node.proto.input) if node.proto is not None else 0
        taken = node.inputs[own:] if node.bodies else ()
        fixed = {name for name in taken if name in graph.constants}
        if not fixed:
            nodes.append(node)
            continue
        bodies = {}
        for key, body in node.bodies.items():
            formal = len(body.inputs) - len(taken)
            kept = tuple(value for value in body.inputs[formal:] if value.name not in fixed)
            constants = {**{name: graph.constants[name] for name in fixed}, **body.constants}
            bodies[key] = constants_into_bodies(
                replace(body, inputs=(*body.inputs[:formal], *kept), constants=constants)
            )
        inputs = (*node.inputs[:own], *(name for name in taken if name not in fixed))
        nodes.append(replace(node, inputs=inputs, bodies=bodies))
    return graph.with_nodes(nodes)


def remove_identities(graph: Graph) -> Graph:
    """Identity and, as inference is what is run, Dropout without training_mode are taken out."""
    outputs = graph.output_names
    uses = graph.uses()
    names: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        gone = _on_host(node, "Identity") or (_on_host(node, "Dropout") and _only_passes(node, graph, uses))
        if gone and node.outputs[0] not in outputs:
            names[node.outputs[0]] = node.inputs[0]
        else:
            nodes.append(node)
    return graph.with_nodes(_renamed(nodes, names))


def _only_passes(dropout: Node, graph: Graph, uses: Mapping[str, int]) -> bool:
    if any(uses.get(name, 0) for name in dropout.outputs[1:] if name):
        return False
    if dropout.opsets[""] < 12 or len(dropout.inputs) < 3 or not dropout.inputs[2]:
        return True
    training = graph.constants.get(dropout.inputs[2])
    return training is not None and not training.any()


def fold_constants(graph: Graph) -> Graph:
    """Nodes of the host whose inputs are all constant are computed now, up to FOLDED_ELEMENTS an output."""
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        results = _folded(node, constants)
        if results is None:
            nodes.append(node)
        else:
            constants.update(results)
    return graph.with_nodes(nodes, constants)


def _folded(node: Node, constants: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The node's outputs, or None where it is to be run."""
    if node.op is not None or node.bodies or node.proto is None or node.kind in _RANDOM:
        return None
    given = [constants.get(name) for name in node.inputs]
    if not all(array is not None for array, name in zip(given, node.inputs) if name):
        return None
    if _largest_output(node.kind, [array for array in given if array is not None]) > FOLDED_ELEMENTS:
        return None
    try:
        outputs = host.prepare(node.proto, dict(node.opsets), constants).run(given)
    except QuatrefoilError:
        return None  # it is met again, and said by name, when the model is loaded or run
    if not all(isinstance(array, np.ndarray) for array in outputs):
        return None
    return {name: frozen_array(array) for name, array in zip(node.outputs, outputs) if name}


def _largest_output(kind: str, given: list[np.ndarray]) -> float:
    """An upper bound of the number of elements that come out; infinite where it is not simple to tell."""
    if kind in _GROWING:
        return math.inf
    if kind == "ConstantOfShape":
        return float(np.prod(given[0], dtype=float))
    if kind == "Expand":
        return float(np.prod(given[1], dtype=float)) * given[0].size
    if kind == "Range":
        start, limit, delta = (float(array.reshape(-1)[0]) for array in given)
        return abs((limit - start) / delta) if delta else math.inf
    if kind.startswith("Gather"):
        return float(given[0].size) * given[1].size
    together = float(sum(array.size for array in given))
    try:
        return max(together, math.prod(np.broadcast_shapes(*(array.shape for array in given))))
    except ValueError:
        return together


def remove_dead_nodes(graph: Graph) -> Graph:
    """Nodes whose outputs nobody reads are taken out, and constants that nobody reads with them."""
    needed = set(graph.output_names)
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    constants = {name: array for name, array in graph.constants.items() if name in needed}
    return graph.with_nodes(reversed(kept), constants)


def _sole_reader(graph: Graph) -> Callable[[Node], Node | None]:
    """For a node: the node that alone reads its first output, where nobody sees that output or reads the others."""
    consumers, outputs = graph.consumers(), graph.output_names

    def reader(node: Node) -> Node | None:
        readers = consumers.get(node.outputs[0], [])
        if len(readers) != 1 or node.outputs[0] in outputs:
            return None
        return readers[0]

    return reader


def _plain_conv(node: Node, graph: Graph) -> bool:
    """A convolution with nothing fused into it but affine steps, whose weights are constants."""
    return (
        node.op in FUSING
        and "activation" not in node.attributes
        and len(node.inputs) <= RESIDUAL
        and all(not name or name in graph.constants for name in node.inputs[W:])
        and graph.constants[node.inputs[W]].dtype in FLOATS
    )


def fold_pads(graph: Graph) -> Graph:
    """Pad with constant zeros on the spatial axes becomes padding of the convolution that alone reads it."""
    reader = _sole_reader(graph)
    pads: dict[str, Node] = {}
    for node in graph.nodes:
        if _on_host(node, "Pad"):
            conv = reader(node)
            if conv is not None and conv.op == "conv" and conv.inputs[X] == node.outputs[0]:
                pads[node.outputs[0]] = node
    nodes = []
    gone = set()
    for node in graph.nodes:
        pad = pads.get(node.inputs[X]) if node.op == "conv" else None
        merged = _padded(node, pad, graph) if pad is not None else None
        if pad is not None and merged is not None:
            gone.add(pad.name)
            node = merged
        nodes.append(node)
    return graph.with_nodes(node for node in nodes if node.name not in gone)


def _padded(conv: Node, pad: Node, graph: Graph) -> Node | None:
    attributes = attributes_of(pad)
    if attributes.get("mode", "constant") != "constant" or conv.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    if pad.opsets[""] < 11:
        amounts, value = attributes.get("pads", attributes.get("paddings")), attributes.get("value", 0.0)
    else:
        if any(name and name not in graph.constants for name in pad.inputs[1:]) or len(pad.inputs) > 3:
            return None
        amounts = graph.constants[pad.inputs[1]].tolist()
        filler = graph.constants[pad.inputs[2]] if len(pad.inputs) > 2 and pad.inputs[2] else np.zeros(1)
        value = filler.reshape(-1)[0] if filler.size else 0.0
    weight = graph.constants.get(conv.inputs[W])
    if amounts is None or weight is None or len(amounts) != 2 * weight.ndim or value != 0.0 or min(amounts) < 0:
        return None
    rank = weight.ndim - 2
    begins, ends = amounts[: rank + 2], amounts[rank + 2 :]
    if any((*begins[:2], *ends[:2])):
        return None
    own = conv.attributes.get("pads") or (0,) * (2 * rank)
    if len(own) != 2 * rank:
        return None
    settled = tuple(int(a + b) for a, b in zip(own, (*begins[2:], *ends[2:])))
    return replace(
        conv, inputs=(pad.inputs[0], *conv.inputs[1:]), attributes={**conv.attributes, "pads": settled},
        fused=("Pad", *conv.fused),
    )  # fmt: skip


def fold_affine(graph: Graph) -> Graph:
    """BatchNormalization (inference), Mul, Div, Add and Sub with one constant for each channel, into the weights and
    the bias of the convolution before them."""
    reader = _sole_reader(graph)
    merged: dict[str, Node] = {}
    constants = dict(graph.constants)
    nodes: list[Node] = []
    for given in graph.nodes:
        node = given
        if node.name in merged:
            continue
        while _plain_conv(node, replace(graph, constants=constants)):
            following = reader(node)
            if following is None:
                break
            weight = constants[node.inputs[W]]
            channels = _output_channels(node, weight)
            affine = _affine(following, node.outputs[0], channels, weight.ndim, constants)
            if affine is None:
                break
            node = _scaled(node, following, *affine, constants)
            merged[following.name] = following
        nodes.append(node)
    # a fused node stands where the convolution stood: all that the nodes merged into it read are constants
    return graph.with_nodes(nodes, constants)


def _output_channels(conv: Node, weight: np.ndarray) -> int:
    if conv.op == "conv":
        return int(weight.shape[0])
    return int(weight.shape[1] * conv.attributes.get("group", 1))


def _affine(
    node: Node, source: str, channels: int, rank: int, constants: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, shift) of float64, one for each channel, where the node computes scale * source + shift."""
    if _on_host(node, "BatchNormalization"):
        return _batch_normalization(node, source, channels, constants)
    if not _on_host(node, "Mul", "Div", "Add", "Sub") or node.opsets[""] < 7 or node.inputs.count(source) != 1:
        return None
    place = node.inputs.index(source)
    other = constants.get(node.inputs[1 - place])
    if other is None or other.dtype not in FLOATS or other.ndim > rank:
        return None
    shape = (1,) * (rank - other.ndim) + other.shape
    if shape[1] not in (1, channels) or any(length != 1 for axis, length in enumerate(shape) if axis != 1):
        return None
    values = np.broadcast_to(other.astype(np.float64).reshape(-1), channels)
    zeros, ones = np.zeros(channels), np.ones(channels)
    if node.kind == "Mul":
        return values, zeros
    if node.kind == "Add":
        return ones, values
    if node.kind == "Sub":
        return (ones, -values) if place == 0 else (-ones, values)
    return (1.0 / values, zeros) if place == 0 and values.all() else None


def _batch_normalization(
    node: Node, source: str, channels: int, constants: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    attributes = attributes_of(node)
    if node.inputs[0] != source or any(node.outputs[1:]) or len(node.inputs) != 5:
        return None
    if attributes.get("training_mode", 0) or attributes.get("spatial", 1) != 1:
        return None
    statistics = [constants.get(name) for name in node.inputs[1:]]
    if any(array is None or array.shape != (channels,) for array in statistics):
        return None
    scale, bias, mean, variance = (array.astype(np.float64) for array in statistics if array is not None)
    factor = scale / np.sqrt(variance + float(attributes.get("epsilon", 1e-5)))
    return (factor, bias - mean * factor) if np.isfinite(factor).all() else None


def _scaled(
    conv: Node, following: Node, scale: np.ndarray, shift: np.ndarray, constants: dict[str, np.ndarray]
) -> Node:
    """The convolution with ``scale * (conv) + shift`` in its weights, which are entered into ``constants``."""
    weight = constants[conv.inputs[W]]
    has_bias = len(conv.inputs) > BIAS and conv.inputs[BIAS] != ""
    bias = constants[conv.inputs[BIAS]].astype(np.float64) if has_bias else np.zeros(len(scale))
    if conv.op == "conv":
        factors = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    else:
        # w is (C, M / group, ...): its rows are the input channels, a group after the other
        group = int(conv.attributes.get("group", 1))
        rows = np.repeat(scale.reshape(group, -1), weight.shape[0] // group, axis=0)
        factors = rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2))
    names = f"{following.outputs[0]}:weight", f"{following.outputs[0]}:bias"
    constants[names[0]] = frozen_array((weight.astype(np.float64) * factors).astype(weight.dtype))
    constants[names[1]] = frozen_array((bias * scale + shift).astype(weight.dtype))
    return replace(
        conv,
        inputs=(conv.inputs[X], *names),
        outputs=following.outputs[:1],
        fused=(*conv.fused, following.kind),
    )


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


_PARAMETERS: Final[dict[str, tuple[tuple[str, float], ...]]] = {
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
"""Activations that a convolution can end with, and their ONNX attributes."""


def _activation(
    readers: list[Node], source: str, constants: Mapping[str, np.ndarray]
) -> tuple[str, tuple[Node, ...]] | None:
    """The text of the activation that is the only reader, and its node."""
    if len(readers) != 1:
        return None
    [node] = readers
    if _on_host(node, *_PARAMETERS):
        attributes = attributes_of(node)
        values = [float(attributes.get(name, default)) for name, default in _PARAMETERS[node.kind]]
    elif _on_host(node, "Clip") and node.inputs[0] == source:
        bounds = _bounds(node, constants)
        if bounds is None:
            return None
        values = list(bounds)
    else:
        return None
    return activation(node.kind, *values).text, (node,)


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
    gates = [node for node in readers if _on_host(node, "Sigmoid", "HardSigmoid")]
    products = [node for node in readers if _on_host(node, "Mul")]
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
    reader = _sole_reader(graph)
    producers = graph.producers()
    moved: set[str] = set()
    fused: dict[str, Node] = {}
    for node in graph.nodes:
        if not _on_host(node, "Add", "Sum") or len(node.inputs) != 2 or node.opsets[""] < 7:
            continue
        if len(set(node.inputs)) == 1:
            continue
        # of two convolutions the later one takes the other as its residual
        makers = [(place, producers.get(name)) for place, name in enumerate(node.inputs)]
        candidates = [(place, maker) for place, maker in makers if maker is not None and _takes_residual(maker, reader)]
        candidates = [(place, maker) for place, maker in candidates if maker.name not in moved]
        if not candidates:
            continue
        order = {each.name: index for index, each in enumerate(graph.nodes)}
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
