"""Passes over quantized models, whose integer values are written as QuantizeLinear and DequantizeLinear around float
operators.

``fuse_quantized`` makes qlinear_conv of DequantizeLinear -> Conv (-> Relu) -> QuantizeLinear where that is exactly what
ONNX Runtime makes of it: zero points and scales constant, one for the whole input and output, at most one for each output
channel of the weights, and the bias in int32 with the scale of the products. The float path rounds the sum of products
once more, so that a result may differ by one unit from it.

``tabulate`` makes one look-up in 256 entries of a chain of elementwise operators between DequantizeLinear and
QuantizeLinear. The entries are computed by the operators themselves: nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from quatrefoil.models import host
from quatrefoil.models.graph import Graph, Node, frozen_array
from quatrefoil.models.passes.matching import attributes_of, on_host, sole_reader
from quatrefoil.ops.conv import BIAS, W, X

TABLE: Final = "Table"
"""The kind of the nodes that ``tabulate`` makes; their attribute ``table`` holds what each byte becomes."""

BYTES: Final = (np.dtype(np.uint8), np.dtype(np.int8))

_ELEMENTWISE = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Elu", "Softplus", "Softsign", "Selu",
    "Gelu", "Exp", "Neg", "Abs", "Sqrt", "Celu", "ThresholdedRelu", "Swish", "Mish", "Identity",
)  # fmt: skip


@dataclass(frozen=True)
class TableOperator:
    """Runs a node of kind ``Table`` on the host."""

    table: np.ndarray
    name: str = "numpy"

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        [array] = inputs
        return [self.table.take(array.view(np.uint8))]


@dataclass(frozen=True)
class _Quantization:
    """Constant scale and zero point, and the names under which the graph has them."""

    scale: np.ndarray
    zero_point: np.ndarray
    scale_name: str
    zero_point_name: str

    @property
    def per_tensor(self) -> bool:
        return self.scale.size == 1 and self.scale.ndim <= 1 and self.zero_point.size == 1


def _quantization(node: Node, constants: Mapping[str, np.ndarray]) -> _Quantization | None:
    """What a QuantizeLinear or DequantizeLinear node does, where it is float32 to bytes and back by constants."""
    if len(node.inputs) != 3 or not all(name in constants for name in node.inputs[1:]):
        return None
    attributes = attributes_of(node)
    if attributes.get("block_size") or attributes.get("output_dtype") or attributes.get("precision"):
        return None
    scale, zero_point = (constants[name] for name in node.inputs[1:])
    if scale.dtype != np.float32 or not (np.isfinite(scale).all() and (scale > 0).all()):
        return None
    return _Quantization(scale, zero_point, node.inputs[1], node.inputs[2])


def fuse_quantized(graph: Graph) -> Graph:
    """DequantizeLinear -> Conv -> QuantizeLinear becomes qlinear_conv, in integers."""
    producers, reader = graph.producers(), sole_reader(graph)
    constants = dict(graph.constants)
    replaced: dict[str, Node] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        if not on_host(node, "QuantizeLinear"):
            continue
        made = _quantized_conv(node, producers, reader, constants)
        if made is not None:
            members, fused = made
            replaced[node.name] = fused
            gone.update(member.name for member in members)
    nodes = (replaced.get(node.name, node) for node in graph.nodes if node.name not in gone)
    return graph.with_nodes(nodes, constants)


def _quantized_conv(
    quantize: Node,
    producers: Mapping[str, Node],
    reader: Callable[[Node], Node | None],
    constants: dict[str, np.ndarray],
) -> tuple[list[Node], Node] | None:
    """The float nodes between the input's DequantizeLinear and ``quantize``, and the node in their place."""
    y = _quantization(quantize, constants)
    source = producers.get(quantize.inputs[0])
    if y is None or not y.per_tensor or y.zero_point.dtype not in BYTES or source is None:
        return None
    members = [source]
    if on_host(source, "Relu"):
        # zero is the lowest value that the output can hold, so that saturation does what Relu does
        if int(y.zero_point.reshape(-1)[0]) != np.iinfo(y.zero_point.dtype).min or reader(source) is not quantize:
            return None
        before = producers.get(source.inputs[0])
        if before is None or reader(before) is not source:
            return None
        members.append(before)
    elif reader(source) is not quantize:
        return None
    conv = members[-1]
    if conv.op != "conv" or len(conv.inputs) > BIAS + 1 or "activation" in conv.attributes:
        return None
    dequantize = [producers.get(name) for name in conv.inputs if name]
    if any(node is None or not on_host(node, "DequantizeLinear") for node in dequantize):
        return None
    parts = [(node, _quantization(node, constants)) for node in dequantize if node is not None]
    (x_node, x), (w_node, w) = parts[X], parts[W]
    weight = constants.get(w_node.inputs[0])
    if x is None or not x.per_tensor or x.zero_point.dtype not in BYTES or w is None or weight is None:
        return None
    if weight.dtype not in BYTES or not _by_output_channel(w_node, w, weight):
        return None
    inputs = [x_node.inputs[0], x.scale_name, x.zero_point_name, w_node.inputs[0], w.scale_name, w.zero_point_name,
              y.scale_name, y.zero_point_name]  # fmt: skip
    if len(parts) > BIAS:
        bias_node = parts[BIAS][0]
        if not _sums_have_scale(bias_node, x, w, constants):
            return None
        inputs.append(bias_node.inputs[0])
    fused = replace(
        conv,
        name=quantize.name,
        kind="QLinearConv",
        op="qlinear_conv",
        inputs=tuple(inputs),
        outputs=quantize.outputs,
        fused=tuple(member.kind for member in members[:-1]),
    )
    return members, fused


def _by_output_channel(node: Node, w: _Quantization, weight: np.ndarray) -> bool:
    """Whether the weights have one scale, or one for each output channel."""
    if w.zero_point.dtype != weight.dtype or w.zero_point.shape != w.scale.shape:
        return False
    if w.scale.size == 1:
        return w.scale.ndim <= 1
    axis = attributes_of(node).get("axis", 1)
    return bool(axis in (0, -weight.ndim) and w.scale.shape == weight.shape[:1])


def _sums_have_scale(node: Node, x: _Quantization, w: _Quantization, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether a bias is in units of the products: int32, scale x_scale * w_scale, zero point 0."""
    values, scale = constants.get(node.inputs[0]), constants.get(node.inputs[1])
    if values is None or scale is None or values.dtype != np.int32 or values.ndim != 1:
        return False
    if len(node.inputs) > 2 and node.inputs[2]:
        zero_point = constants.get(node.inputs[2])
        if zero_point is None or zero_point.any():
            return False
    products = np.float64(x.scale.reshape(-1)[0]) * w.scale.astype(np.float64)
    return bool(np.allclose(scale.astype(np.float64), products, rtol=1e-5, atol=0.0))


def tabulate(graph: Graph) -> Graph:
    """Chains of elementwise operators between DequantizeLinear and QuantizeLinear become look-ups."""
    producers, reader = graph.producers(), sole_reader(graph)
    replaced: dict[str, Node] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        if not on_host(node, "QuantizeLinear"):
            continue
        chain = [node]
        while (before := producers.get(chain[-1].inputs[0])) is not None and on_host(before, *_ELEMENTWISE):
            if reader(before) is not chain[-1] or any(
                name not in graph.constants for name in before.inputs[1:] if name
            ):
                break
            chain.append(before)
        if before is None or not on_host(before, "DequantizeLinear"):
            continue
        table = _table([before, *reversed(chain)], graph.constants)
        if table is not None:
            kinds = tuple(member.kind for member in reversed(chain[1:]))
            replaced[node.name] = Node(
                node.name, TABLE, before.inputs[:1], node.outputs, attributes={"table": table}, fused=kinds
            )
            gone.update(member.name for member in chain[1:])
    return graph.with_nodes(replaced.get(node.name, node) for node in graph.nodes if node.name not in gone)


def _table(chain: Sequence[Node], constants: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What every byte becomes, by its bits; None where the chain is not by one scale from bytes to bytes."""
    first, last = _quantization(chain[0], constants), _quantization(chain[-1], constants)
    if first is None or last is None or not first.per_tensor or not last.per_tensor:
        return None
    if first.zero_point.dtype not in BYTES or last.zero_point.dtype not in BYTES:
        return None
    values = np.arange(256, dtype=np.uint8).view(first.zero_point.dtype)
    for node in chain:
        assert node.proto is not None
        operator = host.prepare(node.proto, dict(node.opsets), constants)
        [values] = operator.run([values, *(constants[name] if name else None for name in node.inputs[1:])])
    return frozen_array(values)
