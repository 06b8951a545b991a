"""The model that recipes change: an ONNX model of one's own, its constants as arrays, and which of them are weights.

Weights are the constant operands of Conv, ConvTranspose, Gemm, MatMul, RNN, LSTM and GRU (biases aside). What is trained besides
them are biases, the factors and offsets of normalisations, constants that are added, and codebooks (``sharing``).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quatrefoil.models.graph import Graph, ModelError
from quatrefoil.models.importing import array_of, load_graph, read_model
from quatrefoil.models.int8 import normalized, recent
from quatrefoil.models.passes import fold_constants

BOOK: Final = ".codebook"
"""The ending of a codebook's name; that of its codes is the weight's name and CODES."""
CODES: Final = ".codes"

WEIGHTS: Final = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1), "RNN": (1, 2), "LSTM": (1, 2), "GRU": (1, 2),
}  # fmt: skip
"""Positions of each operator's weights."""

TRAINED: Final = {
    **{kind: (*places, *range(2, 3)) for kind, places in WEIGHTS.items() if kind not in ("MatMul", "RNN", "LSTM", "GRU")},
    **dict.fromkeys(("RNN", "GRU"), (1, 2, 3)),
    "LSTM": (1, 2, 3, 7), "MatMul": (0, 1), "BatchNormalization": (1, 2), "LayerNormalization": (1, 2), "PRelu": (1,),
    "Add": (0, 1), "Gather": (0,),
}  # fmt: skip
QUANTIZED: Final = ("DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "Quant")
RECURRENT: Final = ("RNN", "LSTM", "GRU")


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant that a layer multiplies by. ``axis``: of its outputs; what is left over is summed, in the order of memory."""

    name: str
    node: str
    kind: str
    axis: int

    def rows(self, array: np.ndarray) -> np.ndarray:
        """The weights (outputs, summed); of a recurrent layer's directions one after the other."""
        if self.kind in RECURRENT:
            return array.reshape(-1, array.shape[2])
        return np.moveaxis(array, self.axis, 0).reshape(array.shape[self.axis], -1)

    def from_rows(self, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if self.kind in RECURRENT:
            return rows.reshape(shape)
        moved = (shape[self.axis], *shape[: self.axis], *shape[self.axis + 1 :])
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, self.axis))


class Network:
    """A model to change. ``pinned``: for constants by name, the elements that stay zero.

    Raises ModelError for what ``load`` cannot load, for a model without weights, and for one that is quantized already.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes | ModelProto) -> None:
        given = read_model(source)
        load_graph(given)  # which says what is wrong with it
        if given.functions:
            raise ModelError("compress: the model has functions of its own; inline them first (onnx.inliner)")
        if any(node.op_type in QUANTIZED for node in given.graph.node):
            raise ModelError("compress: the model is quantized already; give its float version")
        proto = ModelProto()
        proto.CopyFrom(recent(given))
        self.proto = proto
        self.pinned: dict[str, np.ndarray] = {}
        graph = proto.graph
        names = {value.name for value in graph.input}
        for number, node in enumerate(graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        # what follows from constants alone is one: exporters transpose weights, and give shapes as nodes
        folded = fold_constants(load_graph(proto)).constants
        self.nodes = [node for node in graph.node if not all(name in folded for name in node.output if name)]
        read = {name for node in self.nodes for name in reads(node)} | {value.name for value in graph.output}
        self.constants = {name: array for name, array in folded.items() if name in read}
        inputs = [value for value in graph.input if value.name not in folded]
        if not inputs:
            raise ModelError(
                f"compress: the model has no input that is no weight ({', '.join(sorted(names)) or 'none'})"
            )
        self._rewrite(inputs)
        for value in (*proto.graph.input, *proto.graph.output):  # a batch of one becomes one of any length
            dims = value.type.tensor_type.shape.dim
            if len(dims) > 0 and dims[0].dim_value == 1:
                dims[0].dim_param = "batch"
        if not self.weights():
            kinds = ", ".join(WEIGHTS)
            raise ModelError(f"compress: the model has no weights to compress, which are float constants of {kinds}")

    def _rewrite(self, inputs: Iterable[Any]) -> None:
        graph, nodes, given = self.proto.graph, _copies(self.nodes), list(inputs)
        del graph.input[:], graph.node[:], graph.value_info[:], graph.sparse_initializer[:], graph.initializer[:]
        graph.input.extend(given)
        graph.node.extend(nodes)
        self.nodes = list(graph.node)
        for name, array in self.constants.items():
            graph.initializer.append(numpy_helper.from_array(np.array(array), name))

    def copy(self) -> Network:
        made = Network.__new__(Network)
        made.proto = ModelProto()
        made.proto.CopyFrom(self.proto)
        made.nodes = list(made.proto.graph.node)
        made.constants, made.pinned = dict(self.constants), dict(self.pinned)
        return made

    def with_proto(self, proto: ModelProto) -> Network:
        """Another model with constants of the same names, of any operators."""
        made = self.copy()
        made.proto = proto
        made.nodes = list(proto.graph.node)
        made.constants = {
            item.name: array_of(item, item.name).astype(np.uint8)
            if item.data_type == TensorProto.UINT4
            else array_of(item, item.name)
            for item in proto.graph.initializer
        }
        return made

    def put(self, values: Mapping[str, np.ndarray]) -> None:
        """Give constants other values, of any shape; new names are new constants."""
        places = {item.name: item for item in self.proto.graph.initializer}
        for name, array in values.items():
            self.constants[name] = np.ascontiguousarray(array) if array.ndim else array
            made = numpy_helper.from_array(self.constants[name], name)
            if name in places:
                places[name].CopyFrom(made)
            else:
                self.proto.graph.initializer.append(made)

    def set_nodes(self, nodes: Iterable[NodeProto]) -> None:
        """Put other nodes in place, in an order that can run; constants that nobody reads any more go."""
        made = _copies(nodes)
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(made)
        self.nodes = list(self.proto.graph.node)
        read = {name for node in made for name in reads(node)} | {value.name for value in self.proto.graph.output}
        self.constants = {name: array for name, array in self.constants.items() if name in read}
        self.drop({item.name for item in self.proto.graph.initializer} - read)
        self.pinned = {name: mask for name, mask in self.pinned.items() if name in read}

    def fold_normalizations(self) -> None:
        """Put each BatchNormalization that alone reads a convolution into the convolution's weights, whose zeros stay pinned."""
        made = self.with_proto(normalized(self.proto))
        for node in made.nodes:
            for now, was in zip(node.input, self.node(node.name).input):
                if now != was and was in self.pinned:
                    made.pinned[now] = self.pinned[was]
        self.proto, self.constants, self.pinned = made.proto, made.constants, made.pinned
        self.set_nodes(made.nodes)

    def drop(self, names: Collection[str]) -> None:
        """Take constants out, which nodes are about to make, or nobody reads."""
        kept = [item for item in self.proto.graph.initializer if item.name not in names]
        copies = [TensorProto() for _ in kept]
        for copy, item in zip(copies, kept):
            copy.CopyFrom(item)
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(copies)
        self.constants = {name: array for name, array in self.constants.items() if name not in names}

    def reach(self, opset: int) -> bool:
        """Bring the model to this operator set at least; False where onnx cannot."""
        try:
            proto = recent(self.proto, opset)
        except ModelError:
            return False
        if proto is not self.proto:
            self.proto = proto
            self.proto.ir_version = max(self.proto.ir_version, 10 if opset >= 21 else 7)
            self.nodes = list(self.proto.graph.node)
        return True

    def graph(self) -> Graph:
        return load_graph(self.proto)

    def node(self, name: str) -> NodeProto:
        return next(node for node in self.nodes if node.name == name)

    def weights(self) -> list[Weight]:
        """The layers' weights that are constants of their own, each once."""
        found: dict[str, Weight] = {}
        for node in self.nodes:
            for place in WEIGHTS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
                name = node.input[place] if place < len(node.input) else ""
                array = self.constants.get(name)
                if array is not None and array.dtype.kind == "f" and array.ndim >= 2 and name not in found:
                    if node.op_type == "MatMul" and array.ndim != 2:
                        continue
                    found[name] = Weight(name, node.name, node.op_type, _axis(node, place))
        return list(found.values())

    def trainable(self) -> list[str]:
        """Constants that training changes."""
        found: dict[str, None] = {}
        for node in self.nodes:
            for place in TRAINED.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
                name = node.input[place] if place < len(node.input) else ""
                array = self.constants.get(name)
                shared = node.op_type != "Gather" or name.endswith(BOOK)
                if array is not None and array.dtype in (np.float32, np.float64) and array.ndim and shared:
                    found[name] = None
        return list(found)


def weights_of(proto: ModelProto) -> dict[str, np.ndarray]:
    """What a model multiplies by, however it is written: arrays by the names of the layers' inputs."""
    graph = fold_constants(load_graph(proto))
    found = {}
    for node in graph.nodes:
        for place in WEIGHTS.get(node.kind, ()):
            array = graph.constants.get(node.inputs[place]) if place < len(node.inputs) else None
            if array is not None and array.ndim >= 2:
                found[node.inputs[place]] = array
    return found


def attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def reads(node: NodeProto) -> Iterable[str]:
    """What a node reads, its bodies included."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from reads(inner)


def _axis(node: NodeProto, place: int) -> int:
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB") else 1
    if node.op_type == "MatMul":
        return 0 if place == 0 else 1
    return 0 if node.op_type == "Conv" else 1


def _copies(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Of their own, which stay when what held them is emptied."""
    given = list(nodes)
    made = [NodeProto() for _ in given]
    for copy, node in zip(made, given):
        copy.CopyFrom(node)
    return made
