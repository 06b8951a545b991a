"""Passes over quantized models, whose integer values are written as QuantizeLinear and DequantizeLinear around float
operators.

``fuse_quantized`` makes qlinear_conv of DequantizeLinear -> Conv or Gemm (-> Relu) -> QuantizeLinear, of a Gemm as a convolution
of one pixel, where that is exactly what ONNX Runtime makes of it: zero points and scales constant, one for the whole input and
output, at most one for each output channel of the weights, and the bias in int32 with the scale of the products. The float path
rounds the sum of products once more, so that a result may differ by one unit from it.

DequantizeLinear -> Conv or Gemm without QuantizeLinear becomes conv_integer, whose sums DequantizeLinear makes floats of;
MatMul becomes QLinearMatMul, or MatMulInteger and DequantizeLinear.

``join_bytes`` makes a Concat of floats that are bytes before and behind it one of bytes: nothing changes.

``pass_bytes`` takes a max pool and what only moves values from between DequantizeLinear and QuantizeLinear of one scale to the
integers: nothing changes.

``tabulate`` makes one look-up in 256 entries of a chain of elementwise operators between DequantizeLinear and
QuantizeLinear, and in 65,536 of one that adds, subtracts or multiplies two. The entries are computed by the operators
themselves: nothing changes.

``join_round_trips`` makes one step of QuantizeLinear -> DequantizeLinear, which only rounds and bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import numpy as np
from onnx import helper

from quatrefoil.models import host
from quatrefoil.models.graph import MISFITS, Graph, Node, frozen_array
from quatrefoil.models.passes.matching import attributes_of, on_host, sole_reader
from quatrefoil.ops.conv import BIAS, Q_W, W, X
from quatrefoil.sequences import ByteScale, ByteTable, RoundTrip

TABLE: Final = "Table"
"""The kind of the nodes that ``tabulate`` makes; their attribute ``table`` holds what each byte becomes."""

ROUND_TRIP: Final = "RoundTrip"
"""The kind of the nodes that ``join_round_trips`` makes; attributes ``scale``, ``low`` and ``high``."""

BYTES: Final = (np.dtype(np.uint8), np.dtype(np.int8))

_ELEMENTWISE = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Elu", "Softplus", "Softsign", "Selu",
    "Gelu", "Exp", "Neg", "Abs", "Sqrt", "Celu", "ThresholdedRelu", "Swish", "Mish", "Identity",
)  # fmt: skip


_PAIRS = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Sum": "add"}

_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity")


@dataclass(frozen=True)
class TableOperator:
    """Runs a node of kind ``Table`` on the host: of the bytes of one or two arrays."""

    table: np.ndarray
    function: str = ""
    scales: tuple[ByteScale, ...] = ()
    name: str = "numpy"

    @property
    def form(self) -> ByteTable:
        """For a sequence."""
        return ByteTable(self.table, self.function, self.scales)

    def compute(self, inputs: Sequence[Any]) -> list[Any]:
        index = inputs[0].view(np.uint8)
        if len(inputs) == 2:
            index = np.left_shift(index, 8, dtype=np.uint16) | inputs[1].view(np.uint8)
        return [self.table.take(index)]


@dataclass(frozen=True)
class RoundTripOperator:
    """Runs a node of kind ``RoundTrip`` on the host: to whole multiples, from low to high, of the scale."""

    scale: np.float32
    low: np.float32
    high: np.float32
    name: str = "numpy"

    @property
    def form(self) -> RoundTrip:
        """For a sequence."""
        return RoundTrip(float(self.scale), float(self.low), float(self.high))

    def compute(self, inputs: Sequence[Any]) -> list[Any]:
        y = np.asarray(np.divide(inputs[0], self.scale))
        np.rint(y, out=y)
        np.maximum(y, self.low, out=y)
        np.minimum(y, self.high, out=y)
        y *= self.scale
        return [y]


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

    @property
    def bytes(self) -> ByteScale:
        """What bytes stand for, where there is one scale."""
        zero = self.zero_point.reshape(-1)[0]
        return ByteScale(float(self.scale.reshape(-1)[0]), int(zero), zero.dtype.name)

    def same(self, other: _Quantization) -> bool:
        """Whether both have one scale and zero point for everything, and these are equal."""
        if not self.per_tensor or not other.per_tensor or self.zero_point.dtype != other.zero_point.dtype:
            return False
        pairs = (self.scale, other.scale), (self.zero_point, other.zero_point)
        return all(a.reshape(-1)[0] == b.reshape(-1)[0] for a, b in pairs)


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


def pass_bytes(graph: Graph) -> Graph:
    """DequantizeLinear -> MaxPool -> QuantizeLinear of one scale and zero point becomes MaxPool; likewise for moves."""
    producers, reader = graph.producers(), sole_reader(graph)
    replaced: dict[str, Node] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        quantize = reader(node) if on_host(node, *_MOVES) or node.op == "max_pool" else None
        before = producers.get(node.inputs[0]) if quantize is not None else None
        if quantize is None or before is None or len(node.outputs) > 1:
            continue
        if not on_host(quantize, "QuantizeLinear") or not on_host(before, "DequantizeLinear"):
            continue
        x, y = _quantization(before, graph.constants), _quantization(quantize, graph.constants)
        if x is None or y is None or not x.same(y) or x.zero_point.dtype not in BYTES:
            continue
        replaced[node.name] = replace(node, inputs=(before.inputs[0], *node.inputs[1:]), outputs=quantize.outputs)
        gone.add(quantize.name)
    return graph.with_nodes(replaced.get(node.name, node) for node in graph.nodes if node.name not in gone)


def join_bytes(graph: Graph) -> Graph:
    """DequantizeLinear of several values -> Concat -> QuantizeLinear becomes Concat, and look-ups for those of another scale."""
    producers, reader = graph.producers(), sole_reader(graph)
    replaced: dict[str, tuple[Node, ...]] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        quantize = reader(node) if on_host(node, "Concat") else None
        if quantize is None or not on_host(quantize, "QuantizeLinear"):
            continue
        y = _quantization(quantize, graph.constants)
        if y is None or not y.per_tensor or y.zero_point.dtype not in BYTES:
            continue
        inputs, tables = [], []
        for place, name in enumerate(node.inputs):
            before = producers.get(name)
            x = (
                None
                if before is None or not on_host(before, "DequantizeLinear")
                else _quantization(before, graph.constants)
            )
            if before is None or x is None:
                break
            inputs.append(before.inputs[0])
            if x.same(y):
                continue
            made = _table([before], [quantize], graph.constants)
            if made is None:
                break
            rescaled = f"{node.name}:{place}.bytes"
            tables.append(
                Node(
                    f"{node.name}:{place}",
                    TABLE,
                    (inputs[-1],),
                    (rescaled,),
                    attributes={"table": made[1], "function": "rescale", "scales": made[2]},
                )
            )
            inputs[-1] = rescaled
        else:
            replaced[node.name] = (*tables, replace(node, inputs=tuple(inputs), outputs=quantize.outputs))
            gone.add(quantize.name)
    kept = (replaced.get(node.name, (node,)) for node in graph.nodes if node.name not in gone)
    return graph.with_nodes(chain.from_iterable(kept))


def fuse_quantized(graph: Graph) -> Graph:
    """DequantizeLinear -> Conv or Gemm -> QuantizeLinear becomes qlinear_conv, in integers."""
    producers, reader = graph.producers(), sole_reader(graph)
    constants = dict(graph.constants)
    replaced: dict[str, tuple[Node, ...]] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        if not on_host(node, "QuantizeLinear"):
            continue
        made = _quantized_conv(node, producers, reader, constants)
        if made is not None:
            members, fused = made
            replaced[node.name] = fused
            gone.update(member.name for member in members)
    for node in graph.nodes:
        if on_host(node, "MatMul") and (product := _integer_product(node, producers, reader, constants)) is not None:
            quantize, nodes = product
            replaced[(quantize or node).name] = nodes
            if quantize is not None:
                gone.add(node.name)
        elif node.name not in gone and (sums := _integer_conv(node, producers, constants)) is not None:
            replaced[node.name] = sums
    kept = (replaced.get(node.name, (node,)) for node in graph.nodes if node.name not in gone)
    return graph.with_nodes(chain.from_iterable(kept), constants)


@dataclass(frozen=True)
class _Operands:
    """Bytes by constant ones, which DequantizeLinear makes floats of for a product."""

    x_node: Node
    x: _Quantization
    w_node: Node
    w: _Quantization
    weight: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """x, its scale and zero point, and the same of the weights, as QLinearConv and QLinearMatMul take them."""
        x, w = self.x, self.w
        return (
            self.x_node.inputs[0],
            x.scale_name,
            x.zero_point_name,
            self.w_node.inputs[0],
            w.scale_name,
            w.zero_point_name,
        )

    @property
    def in_integers(self) -> tuple[str, ...]:
        """As ConvInteger and MatMulInteger take them."""
        return self.x_node.inputs[0], self.w_node.inputs[0], self.x.zero_point_name, self.w.zero_point_name

    @property
    def scale(self) -> np.ndarray:
        """Of the products."""
        return frozen_array(np.asarray(self.x.scale.reshape(-1)[0] * self.w.scale))

    @property
    def opsets(self) -> Mapping[str, int]:
        return self.w_node.opsets


def _operands(
    product: Node, producers: Mapping[str, Node], constants: Mapping[str, np.ndarray], channels: int
) -> _Operands | None:
    """What a Conv, Gemm or MatMul multiplies, if both are bytes with scales that sums in integers can have. channels: the axis
    of the weights' output channels."""
    x_node, w_node = producers.get(product.inputs[X]), producers.get(product.inputs[W])
    if x_node is None or w_node is None or not all(on_host(each, "DequantizeLinear") for each in (x_node, w_node)):
        return None
    x, w = _quantization(x_node, constants), _quantization(w_node, constants)
    weight = constants.get(w_node.inputs[0])
    if x is None or not x.per_tensor or x.zero_point.dtype not in BYTES or w is None or weight is None:
        return None
    if weight.dtype not in BYTES or not _by_output_channel(w_node, w, weight, channels):
        return None
    return _Operands(x_node, x, w_node, w, weight)


def _quantized_conv(
    quantize: Node,
    producers: Mapping[str, Node],
    reader: Callable[[Node], Node | None],
    constants: dict[str, np.ndarray],
) -> tuple[list[Node], tuple[Node, ...]] | None:
    """The float nodes between the input's DequantizeLinear and ``quantize``, and the nodes in their place."""
    y = _quantization(quantize, constants)
    source = producers.get(quantize.inputs[0])
    if y is None or not y.per_tensor or y.zero_point.dtype not in BYTES or source is None:
        return None
    members = [source]
    if on_host(source, "Relu", "Clip"):
        if not _saturates(source, y.bytes, constants) or reader(source) is not quantize:
            return None
        before = producers.get(source.inputs[0])
        if before is None or reader(before) is not source:
            return None
        members.append(before)
    elif reader(source) is not quantize:
        return None
    conv = members[-1]
    dense = on_host(conv, "Gemm")
    if len(conv.inputs) > BIAS + 1 or not (_plain_gemm(conv) if dense else _plain_conv(conv)):
        return None
    across = dense and not attributes_of(conv).get("transB", 0)  # (K, M), and the other way round in a convolution
    operands = _operands(conv, producers, constants, 1 if across else 0)
    if operands is None:
        return None
    inputs, weight = [*operands.names, y.scale_name, y.zero_point_name], operands.weight
    if len(conv.inputs) > BIAS and conv.inputs[BIAS]:
        bias_node = producers.get(conv.inputs[BIAS])
        if bias_node is None or not on_host(bias_node, "DequantizeLinear"):
            return None
        if not _sums_have_scale(bias_node, operands.x, operands.w, constants):
            return None
        inputs.append(bias_node.inputs[0])
    fused = Node(
        quantize.name,
        "QLinearConv",
        tuple(inputs),
        quantize.outputs,
        op="qlinear_conv",
        attributes={} if dense else conv.attributes,
        opsets=conv.opsets,
        fused=tuple(member.kind for member in members[:-1]),
    )
    return members, _one_pixel(fused, weight.T if across else weight, constants) if dense else (fused,)


def _integer_conv(
    conv: Node, producers: Mapping[str, Node], constants: dict[str, np.ndarray]
) -> tuple[Node, ...] | None:
    """What computes a convolution or dense layer of bytes whose results stay floats: its sums in integers, what they stand
    for, and the bias."""
    dense = on_host(conv, "Gemm")
    if len(conv.inputs) > BIAS + 1 or not (_plain_gemm(conv) if dense else _plain_conv(conv)):
        return None
    across = dense and not attributes_of(conv).get("transB", 0)
    operands = _operands(conv, producers, constants, 1 if across else 0)
    if operands is None or operands.names[0] in constants:
        return None
    name, opsets, weight = conv.name, operands.opsets, operands.weight
    biased = len(conv.inputs) > BIAS and conv.inputs[BIAS] != ""
    channels = weight.shape[1 if across else 0]
    bias = constants.get(conv.inputs[BIAS]) if biased else None
    if biased and bias is None:
        given = producers.get(conv.inputs[BIAS])
        made = _quantization(given, constants) if given is not None and on_host(given, "DequantizeLinear") else None
        if given is None or made is None or given.inputs[0] not in constants or made.zero_point.any():
            return None
        bias = constants[given.inputs[0]].astype(np.float32) * made.scale
    if bias is not None and bias.shape != (channels,):
        return None
    scale, sums, real = f"{name}:scale", f"{name}:sums", f"{name}:real"
    constants[scale] = operands.scale
    fused = Node(
        f"{name}:integers",
        "ConvInteger",
        operands.in_integers,
        (sums,),
        op="conv_integer",
        attributes={} if dense else conv.attributes,
        opsets=opsets,
    )
    nodes = _one_pixel(fused, weight.T if across else weight, constants, place=1) if dense else (fused,)
    if bias is None:
        return (*nodes, _host("DequantizeLinear", [sums, scale], conv.outputs[0], name, opsets, axis=1))
    offset = f"{name}:offset"
    constants[offset] = frozen_array(bias.reshape(-1, *(1,) * (0 if dense else weight.ndim - 2)))
    return (
        *nodes,
        _host("DequantizeLinear", [sums, scale], real, f"{name}:real", opsets, axis=1),
        _host("Add", [real, offset], conv.outputs[0], name, opsets),
    )


def _integer_product(
    product: Node,
    producers: Mapping[str, Node],
    reader: Callable[[Node], Node | None],
    constants: dict[str, np.ndarray],
) -> tuple[Node | None, tuple[Node, ...]] | None:
    """What computes a MatMul of bytes by constant ones in integers, and the QuantizeLinear that it stands for, too."""
    operands = _operands(product, producers, constants, 1)
    if operands is None or operands.weight.ndim != 2 or operands.names[0] in constants:
        return None
    quantize, opsets, name = reader(product), operands.opsets, product.name
    y = _quantization(quantize, constants) if quantize is not None and on_host(quantize, "QuantizeLinear") else None
    if quantize is not None and y is not None and y.per_tensor and y.zero_point.dtype in BYTES:
        inputs = (*operands.names, y.scale_name, y.zero_point_name)
        return quantize, (_host("QLinearMatMul", inputs, quantize.outputs[0], quantize.name, opsets),)
    scale, sums = f"{name}:scale", f"{name}:sums"
    constants[scale] = operands.scale
    return None, (
        _host("MatMulInteger", operands.in_integers, sums, f"{name}:integers", opsets),
        _host("DequantizeLinear", (sums, scale), product.outputs[0], name, opsets, axis=-1),
    )


def _saturates(node: Node, y: ByteScale, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether bytes cannot hold what a Relu or Clip takes off, so that saturation does what it does."""
    low, high = 0.0, np.inf
    if node.kind == "Clip":
        attributes = attributes_of(node)
        bounds = [attributes.get("min", -np.inf), attributes.get("max", np.inf)]
        for place, name in enumerate(node.inputs[1:]):
            if name and (name not in constants or constants[name].size != 1):
                return False
            if name:
                bounds[place] = float(constants[name].reshape(()))
        low, high = bounds
    limits = np.iinfo(y.dtype)
    with np.errstate(over="ignore"):
        ends = np.rint(np.array([low, high], np.float32) / np.float32(y.scale)) + np.float32(y.zero)
    return bool(low <= high and ends[0] <= limits.min and ends[1] >= limits.max)


def _plain_conv(node: Node) -> bool:
    return node.op == "conv" and "activation" not in node.attributes


def _plain_gemm(node: Node) -> bool:
    """Whether it is x W (+ bias)."""
    attributes = attributes_of(node)
    return (
        attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    )


def _host(
    kind: str, inputs: Sequence[str], output: str, name: str, opsets: Mapping[str, int], **attributes: Any
) -> Node:
    """A node that runs on the host."""
    proto = helper.make_node(kind, inputs, [output], name, **attributes)
    return Node(name, kind, tuple(inputs), (output,), proto=proto, opsets=opsets)


def _one_pixel(node: Node, weight: np.ndarray, constants: dict[str, np.ndarray], place: int = Q_W) -> tuple[Node, ...]:
    """A dense layer as a convolution of one pixel: its rows (N, K) as (N, K, 1), and back. weight: (M, K), the input at
    ``place``."""
    outputs, inputs = weight.shape
    name, opsets = node.name, node.opsets

    def reshape(of: str, part: str, to: str, shape: tuple[int, ...]) -> Node:
        kept = f"{name}:{part}_shape"
        constants[kept] = frozen_array(np.array(shape, np.int64))
        return _host("Reshape", [of, kept], to, f"{name}:{part}", opsets)

    x, w, y = f"{name}:pixels", f"{name}:weight", f"{name}:columns"
    constants[w] = frozen_array(np.ascontiguousarray(weight)[..., np.newaxis])
    given = list(node.inputs)
    given[0], source, given[place] = x, given[0], w
    return (
        reshape(source, "rows", x, (0, inputs, 1)),
        replace(node, inputs=tuple(given), outputs=(y,)),
        reshape(y, "columns", node.outputs[0], (0, outputs)),
    )


def _by_output_channel(node: Node, w: _Quantization, weight: np.ndarray, channels: int) -> bool:
    """Whether the weights have one scale, or one for each output channel, which lie along the axis ``channels``."""
    if w.zero_point.dtype != weight.dtype or w.zero_point.shape != w.scale.shape:
        return False
    if w.scale.size == 1:
        return w.scale.ndim <= 1
    axis = attributes_of(node).get("axis", 1)
    return bool(axis in (channels, channels - weight.ndim) and w.scale.shape == weight.shape[channels : channels + 1])


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
    """Elementwise operators between DequantizeLinear and QuantizeLinear become look-ups, and those one after another
    become one."""
    producers, reader = graph.producers(), sole_reader(graph)
    consumers, outputs = graph.consumers(), graph.output_names

    def read_once(quantized: str) -> bool:
        """Whether a quantized value goes through DequantizeLinear into one node alone."""
        dequantize = consumers.get(quantized, [])
        return len(dequantize) == 1 and quantized not in outputs and reader(dequantize[0]) is not None

    tables: dict[str, Node] = {}
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
        if before is None:
            continue
        sources: list[Node | None] = [before]
        if on_host(before, *_PAIRS) and _of_two(before) and reader(before) is chain[-1]:
            chain.append(before)
            sources = [producers.get(name) for name in before.inputs]
        made = _table(sources, chain[::-1], graph.constants)
        if made is not None:
            inputs, table, scales = made
            attributes: dict[str, Any] = {"table": table}
            if len(inputs) == 2:
                attributes |= {"function": _PAIRS[chain[-1].kind], "scales": scales}
            gone.update(member.name for member in chain[1:])
            fused = tuple(member.kind for member in chain[:0:-1])
            first = tables.get(inputs[0])
            if len(inputs) == 1 and first is not None and read_once(inputs[0]):
                # what the table before gives is all that this one sees
                inputs, fused = list(first.inputs), (*first.fused, *fused)
                attributes = {
                    **first.attributes,
                    "table": frozen_array(table.take(first.attributes["table"].view(np.uint8))),
                }
                gone.add(first.name)
            tables[node.outputs[0]] = Node(
                node.name, TABLE, tuple(inputs), node.outputs, attributes=attributes, fused=fused
            )
    made_by_name = {node.name: node for node in tables.values()}
    return graph.with_nodes(made_by_name.get(node.name, node) for node in graph.nodes if node.name not in gone)


def _of_two(node: Node) -> bool:
    """Whether one of _PAIRS takes two values and broadcasts them."""
    return len(node.inputs) == 2 and node.opsets[""] >= (8 if node.kind == "Sum" else 7)


def _table(
    sources: Sequence[Node | None], chain: Sequence[Node], constants: Mapping[str, np.ndarray]
) -> tuple[list[str], np.ndarray, tuple[ByteScale, ...]] | None:
    """The names of the one or two quantized values that the chain starts from, what all their bytes become, and the scales of
    these and of the result; None where it does not lead from bytes to bytes, each with one scale."""
    last = _quantization(chain[-1], constants)
    if last is None or not last.per_tensor or last.zero_point.dtype not in BYTES:
        return None
    names, values, scales = [], [], []
    for place, node in enumerate(sources):
        if node is None or not on_host(node, "DequantizeLinear") or node.inputs[0] in constants:
            return None
        first = _quantization(node, constants)
        if first is None or not first.per_tensor or first.zero_point.dtype not in BYTES:
            return None
        each = np.arange(256, dtype=np.uint8).view(first.zero_point.dtype)
        if len(sources) == 2:
            each = each.reshape((256, 1) if place == 0 else (1, 256))
        names.append(node.inputs[0])
        values.append(each)
        scales.append(first.bytes)
    try:
        values = [_applied(node, [each], constants) for node, each in zip(sources, values) if node is not None]
        for node in chain:
            values = [_applied(node, values, constants)]
    except MISFITS:
        return None  # it is met again, and said by name, when the model is loaded or run
    return names, frozen_array(values[0].reshape(-1)), (*scales, last.bytes)


def _applied(node: Node, values: Sequence[np.ndarray], constants: Mapping[str, np.ndarray]) -> np.ndarray:
    assert node.proto is not None
    operator = host.prepare(node.proto, dict(node.opsets), constants)
    fixed = [constants[name] if name else None for name in node.inputs[len(values) :]]
    [result] = operator.run([*values, *fixed])
    return result


def join_round_trips(graph: Graph) -> Graph:
    """QuantizeLinear that only a DequantizeLinear of the same scale and zero point reads becomes one step with it."""
    reader = sole_reader(graph)
    replaced: dict[str, Node] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        back = reader(node) if on_host(node, "QuantizeLinear") else None
        if back is None or not on_host(back, "DequantizeLinear") or back.inputs[0] != node.outputs[0]:
            continue
        there, again = _quantization(node, graph.constants), _quantization(back, graph.constants)
        if there is None or again is None or not there.same(again) or there.zero_point.dtype not in BYTES:
            continue
        zero, scale = there.zero_point.reshape(-1)[0], there.scale.reshape(-1)[0]
        limits = np.iinfo(zero.dtype)
        attributes = {
            "scale": scale,
            "low": np.float32(limits.min - int(zero)),
            "high": np.float32(limits.max - int(zero)),
        }
        replaced[back.name] = Node(
            back.name, ROUND_TRIP, node.inputs[:1], back.outputs, attributes=attributes, fused=(node.kind, back.kind)
        )
        gone.add(node.name)
    return graph.with_nodes(replaced.get(node.name, node) for node in graph.nodes if node.name not in gone)


def operator_of(node: Node) -> TableOperator | RoundTripOperator | None:
    """What runs a node that the passes of this module made; None for any other node."""
    if node.kind == TABLE and "table" in node.attributes:
        return TableOperator(**node.attributes)
    if node.kind == ROUND_TRIP and "scale" in node.attributes:
        return RoundTripOperator(**node.attributes)
    return None
