"""Passes that put what stands around a convolution into its weights, bias and pads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import helper

from quatrefoil.models.graph import Graph, Node, frozen_array
from quatrefoil.models.passes.matching import FLOATS, attributes_of, on_host, scalar, sole_reader
from quatrefoil.ops.conv import BIAS, RESIDUAL, W, X

FUSING = ("conv", "conv_transpose")


def _plain_conv(node: Node, constants: Mapping[str, np.ndarray]) -> bool:
    """A convolution with nothing fused into it but affine steps, whose weights are constants."""
    return (
        node.op in FUSING
        and "activation" not in node.attributes
        and len(node.inputs) <= RESIDUAL
        and all(not name or name in constants for name in node.inputs[W:])
        and constants[node.inputs[W]].dtype in FLOATS
    )


def fold_pads(graph: Graph) -> Graph:
    """Pad with constant zeros on the spatial axes becomes padding of the convolution that alone reads it."""
    reader = sole_reader(graph)
    pads: dict[str, Node] = {}
    for node in graph.nodes:
        if on_host(node, "Pad"):
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
    reader = sole_reader(graph)
    merged: dict[str, Node] = {}
    constants = dict(graph.constants)
    nodes: list[Node] = []
    for given in graph.nodes:
        node = given
        if node.name in merged:
            continue
        while _plain_conv(node, constants):
            following = reader(node)
            if following is None:
                break
            weight = constants[node.inputs[W]]
            channels = _output_channels(node, weight)
            affine = _affine(following, node.outputs[0], channels, weight.ndim, constants)
            if affine is None:
                break
            scaled = _scaled(node, following, *affine, constants, graph.constants)
            if scaled is None:
                break
            node = scaled
            merged[following.name] = following
        nodes.append(node)
    # a fused node stands where the convolution stood: all that the nodes merged into it read are constants
    return graph.with_nodes(nodes, constants)


def fold_scale(graph: Graph) -> Graph:
    """Mul, Div, Add and Sub with one constant number, before the convolution that alone reads them, into its weights.

    conv(a x + b) = conv'(x) + bias'. Where the convolution pads, with zeros of the scaled values, the shift has to
    stay before it: a x + b = a (x + b / a).
    """
    reader, producers = sole_reader(graph), graph.producers()
    constants = dict(graph.constants)
    replaced: dict[str, Node] = {}
    gone: set[str] = set()
    for conv in graph.nodes:
        if conv.op != "conv" or conv.inputs[W] not in constants or not _constant_bias(conv, constants):
            continue
        scale, shift, source = 1.0, 0.0, conv.inputs[X]
        chain: list[Node] = []
        while (node := producers.get(source)) is not None and node.name not in gone:
            step = _number(node, constants)
            if step is None or reader(node) is not (chain[-1] if chain else conv):
                break
            factor, offset, source = step
            scale, shift = scale * factor, scale * offset + shift
            chain.append(node)
        if not chain or not np.isfinite([scale, shift]).all():
            continue
        settled = _scaled_before(conv, chain, scale, shift, source, constants)
        if settled is None:
            continue
        for node in settled:
            replaced[node.name] = node
        gone.update(node.name for node in chain if node.name not in replaced)
    nodes = (replaced.get(node.name, node) for node in graph.nodes if node.name not in gone)
    return graph.with_nodes(nodes, constants)


def _scaled_before(
    conv: Node, chain: list[Node], scale: float, shift: float, source: str, constants: dict[str, np.ndarray]
) -> list[Node] | None:
    """The convolution of ``source`` that computes what it does of ``scale * source + shift``, preceded by an Add where
    the shift has to stay; None where nothing would be gained or the numbers do not fit the dtype."""
    dtype = constants[conv.inputs[W]].dtype
    weight = constants[conv.inputs[W]].astype(np.float64)
    bias = constants[conv.inputs[BIAS]] if len(conv.inputs) > BIAS and conv.inputs[BIAS] else 0.0
    auto_pad = conv.attributes.get("auto_pad", "NOTSET")
    padded = any(conv.attributes.get("pads") or ()) or auto_pad not in ("NOTSET", "VALID")
    stays = bool(shift) and padded
    if stays and (len(chain) == 1 or scale == 0.0):
        return None
    with np.errstate(over="ignore"):
        new_weight = (weight * scale).astype(dtype)
        new_bias = (bias + weight.sum(axis=tuple(range(1, weight.ndim))) * shift).astype(dtype)
        offset = np.asarray(shift / scale if stays else 0.0, dtype)
    if not all(np.isfinite(array).all() for array in (new_weight, new_bias, offset)):
        return None
    inputs = [source, f"{conv.outputs[0]}:weight", *conv.inputs[BIAS:]]
    constants[inputs[W]] = frozen_array(new_weight)
    made = []
    if stays:
        last = chain[0]
        name = f"{last.outputs[0]}:shift"
        constants[name] = frozen_array(offset)
        proto = helper.make_node("Add", [source, name], [last.outputs[0]], name=last.name)
        made.append(Node(last.name, "Add", (source, name), last.outputs, proto=proto, opsets=last.opsets))
        inputs[X] = last.outputs[0]
    elif shift:
        name = f"{conv.outputs[0]}:bias"
        constants[name] = frozen_array(new_bias)
        inputs[BIAS:] = [name, *conv.inputs[RESIDUAL:]]
    fused = (*(node.kind for node in reversed(chain)), *conv.fused)
    return [*made, replace(conv, inputs=tuple(inputs), fused=fused)]


def _constant_bias(conv: Node, constants: Mapping[str, np.ndarray]) -> bool:
    return constants[conv.inputs[W]].dtype in FLOATS and (
        len(conv.inputs) <= BIAS or not conv.inputs[BIAS] or conv.inputs[BIAS] in constants
    )


def _number(node: Node, constants: Mapping[str, np.ndarray]) -> tuple[float, float, str] | None:
    """(scale, shift, source) where the node computes scale * source + shift with numbers."""
    if not on_host(node, "Mul", "Div", "Add", "Sub") or node.opsets[""] < 7:
        return None
    values = [scalar(name, constants) for name in node.inputs]
    if len(values) != 2 or (values[0] is None) == (values[1] is None):
        return None
    place = 0 if values[0] is None else 1
    number = values[1 - place]
    assert number is not None
    source = node.inputs[place]
    if node.kind == "Mul":
        return number, 0.0, source
    if node.kind == "Add":
        return 1.0, number, source
    if node.kind == "Sub":
        return (1.0, -number, source) if place == 0 else (-1.0, number, source)
    return (1.0 / number, 0.0, source) if place == 0 and number else None


def _output_channels(conv: Node, weight: np.ndarray) -> int:
    if conv.op == "conv":
        return int(weight.shape[0])
    return int(weight.shape[1] * conv.attributes.get("group", 1))


def _affine(
    node: Node, source: str, channels: int, rank: int, constants: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, shift) of float64, one for each channel, where the node computes scale * source + shift."""
    if on_host(node, "BatchNormalization"):
        return _batch_normalization(node, source, channels, constants)
    if not on_host(node, "Mul", "Div", "Add", "Sub") or node.opsets[""] < 7 or node.inputs.count(source) != 1:
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
    conv: Node,
    following: Node,
    scale: np.ndarray,
    shift: np.ndarray,
    constants: dict[str, np.ndarray],
    given: Mapping[str, np.ndarray],
) -> Node | None:
    """The convolution with ``scale * (conv) + shift`` in its weights, which are entered into ``constants`` in place of
    what is not among the ``given`` ones; None where the new weights do not fit the dtype."""
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
    with np.errstate(over="ignore"):
        new_weight = (weight.astype(np.float64) * factors).astype(weight.dtype)
        new_bias = (bias * scale + shift).astype(weight.dtype)
    if not np.isfinite(new_weight).all() or not np.isfinite(new_bias).all():
        return None
    names = f"{following.outputs[0]}:weight", f"{following.outputs[0]}:bias"
    for name in filter(None, conv.inputs[W:]):
        if name not in given:
            del constants[name]  # made here for this convolution alone
    constants[names[0]], constants[names[1]] = frozen_array(new_weight), frozen_array(new_bias)
    return replace(
        conv,
        inputs=(conv.inputs[X], *names),
        outputs=following.outputs[:1],
        fused=(*conv.fused, following.kind),
    )
