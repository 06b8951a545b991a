"""Weights as products of smaller ones: dense layers and convolutions in two or three steps, recurrent layers behind a product.

Dense layers and 1x1 convolutions by their singular values; other convolutions as Tucker's decomposition over input and output
channels (Kim et al., Compression of deep convolutional neural networks, 2016), which is a 1x1 convolution, the window over fewer
channels, and a 1x1 convolution, or, in the plane, as a column of the window and then a row (Jaderberg, Vedaldi and Zisserman,
Speeding up convolutional neural networks with low rank expansions, 2014): whichever takes fewer weights. Of recurrent layers the
input weights, all gates and directions as one matrix: a product makes fewer inputs of all steps at once. Their recurrent weights
stay whole: two factors of them are a layer that feeds back a projection of its state (Sak, Senior and Beaufays, Long short-term
memory based recurrent neural network architectures for large vocabulary speech recognition, 2014), which ONNX has not. Ranks keep a
share of the squared singular values, or are given; a layer that would not get smaller stays.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import NodeProto, helper

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.network import RECURRENT, Network, attributes

SWEEPS: Final = 5
"""Of higher-order orthogonal iteration (De Lathauwer, De Moor and Vandewalle 2000)."""

Parts = tuple[int, list[np.ndarray], list[dict[str, Any]]]
"""How many weights they are, the weights of the steps, and their attributes."""


def checked_rank(rank: float) -> float:
    if not (0 < rank < 1 or (rank >= 1 and float(rank).is_integer())):
        raise QuatrefoilError(
            f"compress: rank is {rank}; give a share of the squared singular values, such as 0.9, or a whole number"
        )
    return rank


def kept(values: np.ndarray, rank: float) -> int:
    """How many of the singular values, from the greatest on."""
    if rank >= 1:
        return min(int(rank), len(values))
    energy = np.cumsum(np.square(values.astype(np.float64)))
    return int(np.searchsorted(energy, rank * energy[-1]) + 1) if energy[-1] else 1


def factor(network: Network, rank: float) -> dict[str, str]:
    """Factor the layers of a network that become smaller. Gives what happened to each, by the layer's name."""
    said: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in network.nodes:
        name = node.input[1] if len(node.input) > 1 else ""
        array = network.constants.get(name)
        made = None
        if array is not None and array.dtype in (np.float32, np.float64):
            if (node.op_type == "Gemm" and not attributes(node).get("transA")) or (
                node.op_type == "MatMul" and array.ndim == 2
            ):
                made = _dense(network, node, array, rank)
            elif node.op_type == "Conv" and array.ndim >= 3:
                made = _convolution(network, node, array, rank)
            elif node.op_type in RECURRENT:
                made = _recurrent(network, node, array, rank)
        if made is None:
            nodes.append(node)
            continue
        steps, text = made
        said[node.name] = text
        nodes += steps
    if len(nodes) > len(network.nodes):
        network.set_nodes(nodes)
    return said


def _halves(matrix: np.ndarray, rank: float) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """A matrix (inputs, outputs) as the product of two, None where they are no smaller; and that in words."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    count = kept(values, rank)
    weights = count * sum(matrix.shape)
    if weights >= matrix.size:
        return None, f"left: rank {count} takes {weights} weights in place of {matrix.size}"
    roots = np.sqrt(values[:count])
    first, second = left[:, :count] * roots, roots[:, np.newaxis] * right[:count]
    text = f"rank {count} of {len(values)}: {weights} weights in place of {matrix.size}"
    return (first.astype(matrix.dtype), second.astype(matrix.dtype)), text


def _behind(network: Network, node: NodeProto, first: np.ndarray, second: np.ndarray) -> list[NodeProto]:
    """The node with another weight, behind a product of what it read."""
    inner, names = f"{node.name}.inner", [f"{node.input[1]}.first", f"{node.input[1]}.second"]
    network.put({names[0]: first, names[1]: second})
    last = NodeProto()
    last.CopyFrom(node)
    last.input[0], last.input[1] = inner, names[1]
    return [helper.make_node("MatMul", [node.input[0], names[0]], [inner], f"{node.name}.first"), last]


def _dense(network: Network, node: NodeProto, array: np.ndarray, rank: float) -> tuple[list[NodeProto], str]:
    halves, text = _halves(array.T if attributes(node).get("transB") else array, rank)
    if halves is None:
        return [node], text
    steps = _behind(network, node, *halves)
    for item in [item for item in steps[1].attribute if item.name == "transB"]:
        steps[1].attribute.remove(item)
    return steps, text


def _recurrent(network: Network, node: NodeProto, array: np.ndarray, rank: float) -> tuple[list[NodeProto], str]:
    halves, text = _halves(array.reshape(-1, array.shape[2]).T, rank)
    if halves is None:
        return [node], f"{text} of the inputs; ONNX has no factored recurrent weights"
    first, second = halves
    steps = _behind(network, node, first, second.T.reshape(*array.shape[:2], -1))
    return steps, f"{text} of the inputs; recurrent weights are whole, as ONNX has no factored ones"


def _convolution(
    network: Network, node: NodeProto, array: np.ndarray, rank: float
) -> tuple[list[NodeProto], str] | None:
    settings = attributes(node)
    if settings.get("group", 1) != 1 or settings.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    spatial = array.ndim - 2
    window = {
        "strides": list(settings.get("strides") or [1] * spatial), "pads": list(settings.get("pads") or [0] * 2 * spatial),
        "dilations": list(settings.get("dilations") or [1] * spatial),
    }  # fmt: skip
    wide = array.astype(np.float64)
    ways = {"Tucker": _tucker(wide, rank, window)}
    if spatial == 2 and min(array.shape[2:]) > 1:
        ways["column and row"] = _separated(wide, rank, window)
    name, (count, parts, given) = min(ways.items(), key=lambda way: way[1][0])
    if count >= array.size:
        return [node], f"left: {name} takes {count} weights in place of {array.size}"
    steps, value = [], node.input[0]
    for number, (part, own) in enumerate(zip(parts, given), 1):
        weight = f"{node.input[1]}.{number}"
        network.put({weight: part.astype(array.dtype)})
        last = number == len(parts)
        bias = [node.input[2]] if last and len(node.input) > 2 and node.input[2] else []
        result = node.output[0] if last else f"{node.name}.inner{number}"
        title = node.name if last else f"{node.name}.{number}"
        steps.append(
            helper.make_node("Conv", [value, weight, *bias], [result], title, kernel_shape=part.shape[2:], **own)
        )
        value = result
    shapes = ", ".join("x".join(map(str, part.shape)) for part in parts)
    return steps, f"{name}, {shapes}: {count} weights in place of {array.size}"


def _tucker(array: np.ndarray, rank: float, window: dict[str, Any]) -> Parts:
    """A 1x1 convolution from the inputs, the window, a 1x1 convolution to the outputs; in one of them alone for a 1x1 weight."""
    outputs, inputs, *kernel = array.shape
    ones = [1] * len(kernel)
    if all(extent == 1 for extent in kernel):
        left, values, right = np.linalg.svd(array.reshape(outputs, inputs), full_matrices=False)
        count = kept(values, rank)
        parts = [
            right[:count].reshape(count, inputs, *ones),
            (left[:, :count] * values[:count]).reshape(outputs, count, *ones),
        ]
        return sum(part.size for part in parts), parts, [window, {}]

    def basis(given: np.ndarray, axis: int, count: int | None = None) -> np.ndarray:
        left, values, _ = np.linalg.svd(np.moveaxis(given, axis, 0).reshape(given.shape[axis], -1), full_matrices=False)
        return left[:, : kept(values, rank) if count is None else count]

    out, into = basis(array, 0), basis(array, 1)
    for _ in range(SWEEPS):
        out = basis(np.einsum("oi...,ir->or...", array, into), 0, out.shape[1])
        into = basis(np.einsum("oi...,or->ri...", array, out), 1, into.shape[1])
    core = np.einsum("oi...,or,is->rs...", array, out, into)
    parts = [into.T.reshape(-1, inputs, *ones), core, out.reshape(outputs, -1, *ones)]
    return sum(part.size for part in parts), parts, [{}, window, {}]


def _separated(array: np.ndarray, rank: float, window: dict[str, Any]) -> Parts:
    outputs, inputs, high, wide = array.shape
    matrix = array.transpose(1, 2, 0, 3).reshape(inputs * high, outputs * wide)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    count = kept(values, rank)
    roots = np.sqrt(values[:count])
    column = (left[:, :count] * roots).reshape(inputs, high, count).transpose(2, 0, 1)[..., np.newaxis]
    row = (roots[:, np.newaxis] * right[:count]).reshape(count, outputs, wide).transpose(1, 0, 2)[:, :, np.newaxis]
    pads, strides, dilations = window["pads"], window["strides"], window["dilations"]
    given = [
        {"pads": [pads[0], 0, pads[2], 0], "strides": [strides[0], 1], "dilations": [dilations[0], 1]},
        {"pads": [0, pads[1], 0, pads[3]], "strides": [1, strides[1]], "dilations": [1, dilations[1]]},
    ]
    return column.size + row.size, [column, row], given
