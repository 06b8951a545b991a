"""From an ONNX model (a path, bytes or a ModelProto) to a ``Graph``; whatever is wrong with it is a ModelError.

Operator sets 6 to the newest that the installed onnx knows. Operators of the house become nodes with ``op``; what old
versions of them say differently is settled here. Model-local functions are inlined. If, Loop, Scan and SequenceMap
get their bodies as graphs, with what they take from outside as inputs. Everything else stays an ONNX node for the host.

A file is never trusted: sizes, names, order, types and references are checked before anything is computed, functions
that call themselves or that would grow beyond ``MAX_NODES`` are refused, and weights kept outside the file are read by
onnx's own loader, which keeps them inside the model's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from quatrefoil.models.graph import Dimension, Graph, ModelError, Node, Value, frozen_array, in_order

OLDEST_OPSET: Final = 6
MAX_NODES: Final = 1_000_000

OPERATORS: Final = {
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "ConvInteger": "conv_integer",
    "QLinearConv": "qlinear_conv",
    "MaxPool": "max_pool",
    "AveragePool": "average_pool",
    "LpPool": "lp_pool",
    "GlobalMaxPool": "max_pool",
    "GlobalAveragePool": "average_pool",
    "GlobalLpPool": "lp_pool",
    "MaxUnpool": "max_unpool",
    "RNN": "rnn",
    "LSTM": "lstm",
    "GRU": "gru",
}
"""ONNX operators (default domain) that are the house's, and their names here."""

BODIED: Final = ("If", "Loop", "Scan", "SequenceMap")
"""Operators whose attributes hold graphs."""

# Attributes of operator set 1 that say nothing: RNN, LSTM and GRU give the outputs that are named.
_EMPTY_ATTRIBUTES = {"output_sequence"}


def load_graph(source: str | os.PathLike[str] | bytes | ModelProto) -> Graph:
    """Read, check and import a model. Raises ModelError, in a sentence, for one that cannot be understood."""
    model = read_model(source)
    opsets = _opsets(model)
    if model.functions:
        model = _inlined(model)
        opsets = _opsets(model)
    if not model.HasField("graph"):
        raise ModelError("the model holds no graph; is it an ONNX file?")
    scope = _Scope(opsets, model.ir_version)
    return scope.graph(model.graph)


def read_model(source: str | os.PathLike[str] | bytes | ModelProto) -> ModelProto:
    """The model as its file says it, with weights that are kept in other files. Raises ModelError."""
    folder = None
    if isinstance(source, ModelProto):
        model = source
    else:
        if isinstance(source, bytes):
            data, title = source, f"{len(source)} bytes"
        elif isinstance(source, (str, os.PathLike)):
            path = Path(source)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise ModelError(f"cannot read the model {str(path)!r}: {error.strerror}") from error
            folder, title = path.parent, repr(str(path))
        else:
            raise ModelError(f"cannot load {type(source).__name__}; give a path, bytes or an onnx.ModelProto")
        model = ModelProto()
        try:
            model.ParseFromString(data)
        except DecodeError as error:
            raise ModelError(f"{title} is no ONNX model, or is truncated or damaged: {error}") from error
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"the model has IR version {model.ir_version}; the installed onnx {onnx.__version__} reads up to "
            f"{onnx.IR_VERSION}: update onnx, or export the model for an older one"
        )
    if model.ir_version < 1:
        raise ModelError("the model has no IR version; is it an ONNX file?")
    if folder is not None:
        try:
            load_external_data_for_model(model, str(folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(f"weights that the model keeps in other files cannot be read: {error}") from error
    return model


def _opsets(model: ModelProto) -> dict[str, int]:
    """The operator sets by domain, checked; the default domain is ""."""
    opsets: dict[str, int] = {}
    _refuse_bytes((entry.domain for entry in model.opset_import), "an operator set")
    for entry in model.opset_import:
        domain = _domain(entry.domain)
        if opsets.get(domain, entry.version) != entry.version:
            raise ModelError(
                f"the model imports domain {domain or 'ai.onnx'!r} in versions {opsets[domain]} and {entry.version}"
            )
        opsets[domain] = entry.version
    if not opsets:
        raise ModelError(f"the model names no operator set; give opset_import, {OLDEST_OPSET} to {_newest()}")
    version = opsets.get("")
    if version is not None and not OLDEST_OPSET <= version <= _newest():
        raise ModelError(
            f"the model needs operator set {version}; known are {OLDEST_OPSET} to {_newest()} "
            f"(onnx.version_converter brings a model to another one)"
        )
    return opsets


def _refuse_bytes(names: Iterable[str | bytes], where: str) -> None:
    """Names that are no UTF-8, which protobuf hands out as bytes."""
    for name in names:
        if isinstance(name, bytes):
            raise ModelError(f"{where} has the name {name!r}, which is no UTF-8 text; the model is damaged")


def _newest() -> int:
    return onnx.defs.onnx_opset_version()


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _inlined(model: ModelProto) -> ModelProto:
    """Calls of model-local functions replaced by the functions' nodes."""
    functions = {(_domain(f.domain), f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size_of(nodes: Iterable[NodeProto], path: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (_domain(node.domain), node.op_type)
            total += function_size(key, functions[key], path) if key in functions else 1
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    total += size_of(body.node, path)
        return total

    def function_size(key: tuple[str, str], function: FunctionProto, path: tuple[tuple[str, str], ...]) -> int:
        if key in path:
            raise ModelError(f"the function {function.name!r} calls itself; ONNX functions cannot")
        if key not in sizes:
            sizes[key] = size_of(function.node, (*path, key))
        return sizes[key]

    for key, function in functions.items():
        function_size(key, function, ())
    total = size_of(model.graph.node, ())
    if total > MAX_NODES:
        raise ModelError(f"the model's functions unfold to {total} nodes; at most {MAX_NODES} are taken")
    try:
        return onnx.inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model's functions cannot be inlined: {error}") from error


def array_of(tensor: TensorProto | SparseTensorProto, name: str) -> np.ndarray:
    """A weight as an array, checked against its own description."""
    if isinstance(tensor, SparseTensorProto):
        return _dense(tensor, name)
    if uses_external_data(tensor) and tensor.data_location == TensorProto.EXTERNAL and not tensor.HasField("raw_data"):
        raise ModelError(f"the weight {name!r} is kept in another file; load the model from its path")
    if any(length < 0 for length in tensor.dims):
        raise ModelError(f"the weight {name!r} has shape {list(tensor.dims)}; no axis can be negative")
    try:
        return frozen_array(np.asarray(onnx.numpy_helper.to_array(tensor)))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"the weight {name!r} is damaged: {error}") from error


def _dense(sparse: SparseTensorProto, name: str) -> np.ndarray:
    values, indices = array_of(sparse.values, name), array_of(sparse.indices, name)
    shape = tuple(sparse.dims)
    if any(length < 0 for length in shape) or np.prod(shape, dtype=float) > 2**31:
        raise ModelError(f"the sparse weight {name!r} has shape {list(shape)}, which cannot be made dense")
    dense = np.zeros(shape, values.dtype)
    try:
        if indices.ndim == 2:
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"the sparse weight {name!r} is damaged: {error}") from error
    return frozen_array(dense)


_KINDS = {
    "tensor_type": "tensor",
    "sequence_type": "sequence",
    "optional_type": "optional",
    "map_type": "map",
    "sparse_tensor_type": "sparse_tensor",
}


def value_of(info: ValueInfoProto) -> Value:
    """A declared input or output."""
    _refuse_bytes((info.name, *(d.dim_param for d in info.type.tensor_type.shape.dim)), "an input or output")
    kind = _KINDS.get(info.type.WhichOneof("value") or "tensor_type")
    if kind is None:
        raise ModelError(f"{info.name!r} has a type that ONNX does not define here: {info.type.WhichOneof('value')}")
    if kind != "tensor":
        return Value(info.name, None, None, kind)
    tensor = info.type.tensor_type
    shape: tuple[Dimension, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            (int(d.dim_value) if d.dim_value >= 0 else None) if d.HasField("dim_value") else d.dim_param or None
            for d in tensor.shape.dim
        )
    return Value(info.name, _dtype_name(tensor.elem_type, info.name), shape)


def _dtype_name(element: int, name: str) -> str | None:
    if element == TensorProto.UNDEFINED:
        return None
    if element == TensorProto.STRING:
        return "string"
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(element).name)
    except (KeyError, ValueError) as error:
        raise ModelError(f"{name!r} has element type {element}, which the installed onnx does not know") from error


class _Scope:
    """What the nodes of a model share while it is imported."""

    def __init__(self, opsets: Mapping[str, int], ir_version: int) -> None:
        self.opsets = dict(opsets)
        self.ir_version = ir_version
        self.count = 0
        self.names: set[str] = set()
        self.checker = onnx.checker.C.CheckerContext()
        self.checker.ir_version = ir_version
        self.checker.opset_imports = self.opsets

    def graph(self, proto: GraphProto, outer: Mapping[str, np.ndarray] | None = None) -> Graph:
        """Import a graph; ``outer`` is None for the model's own, for a body the constants that surround it."""
        _refuse_bytes((proto.name, *(node.op_type for node in proto.node)), "the graph or an operator")
        _refuse_bytes((text for node in proto.node for text in (node.name, node.domain)), "a node or its domain")
        _refuse_bytes((name for node in proto.node for name in (*node.input, *node.output)), "a value")
        inputs = tuple(value_of(info) for info in proto.input)
        input_names = [value.name for value in inputs]
        constants, made = self._constants(proto, input_names)
        defaults = frozenset(name for name in input_names if name in constants)
        if outer is not None:  # a body's inputs are always given
            for name in defaults:
                del constants[name]
        local = {*input_names, *constants, *made}
        visible = {name: array for name, array in (outer or {}).items() if name not in local} | constants
        nodes = [self._node(node, visible) for node in proto.node if not _is_constant(node)]
        outputs = tuple(value_of(info) for info in proto.output)
        if outer is not None:
            read = [name for node in nodes for name in node.inputs if name] + [value.name for value in outputs]
            foreign = [name for name in dict.fromkeys(read) if name not in local]
            constants |= {name: outer[name] for name in foreign if name in outer}
            inputs += tuple(Value(name, None, None) for name in foreign if name not in outer)
        available = {value.name for value in inputs} | constants.keys()
        for value in outputs:
            if value.name not in available and value.name not in made:
                raise ModelError(
                    f"the output {value.name!r} is made by no node; the graph {proto.name!r} is incomplete"
                )
        ordered = in_order(nodes, available)
        return Graph(proto.name, inputs, outputs, ordered, constants, defaults if outer is None else frozenset())

    def _constants(self, proto: GraphProto, input_names: list[str]) -> tuple[dict[str, np.ndarray], set[str]]:
        """Weights and Constant nodes by name, and the names that other nodes make; every name is made once."""
        constants: dict[str, np.ndarray] = {}
        for tensor in (*proto.initializer, *proto.sparse_initializer):
            name = tensor.values.name if isinstance(tensor, SparseTensorProto) else tensor.name
            _refuse_bytes((name,), "a weight")
            if name in constants:
                raise ModelError(f"the weight {name!r} is there twice")
            constants[name] = array_of(tensor, name)
        if len(set(input_names)) < len(input_names):
            twice = next(name for name in input_names if input_names.count(name) > 1)
            raise ModelError(f"the input {twice!r} is there twice")
        taken = {*input_names, *constants}
        made: set[str] = set()
        for node in proto.node:
            for name in node.output:
                if name and name in taken:
                    raise ModelError(f"{name!r} is made twice, the second time by node {node.name!r} ({node.op_type})")
                taken.add(name)
            if _is_constant(node):
                self._check(node)
                constants[node.output[0]] = _constant_value(node)
            else:
                made.update(name for name in node.output if name)
        return constants, made

    def _node(self, proto: NodeProto, visible: Mapping[str, np.ndarray]) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise ModelError(f"the model has more than {MAX_NODES} nodes")
        domain = _domain(proto.domain)
        self._check(proto)
        name = self._unique(proto.name or f"{proto.op_type}_{self.count}")
        inputs, outputs = tuple(proto.input), tuple(proto.output)
        if domain == "" and proto.op_type in OPERATORS:
            return Node(
                name,
                proto.op_type,
                inputs,
                outputs,
                op=OPERATORS[proto.op_type],
                attributes={a.name: _plain(a) for a in proto.attribute if a.name not in _EMPTY_ATTRIBUTES},
                whole_plane=proto.op_type.startswith("Global"),
            )
        bodies: dict[str, Graph] = {}
        if domain == "" and proto.op_type in BODIED:
            bodies = {a.name: self.graph(a.g, visible) for a in proto.attribute if a.type == AttributeProto.GRAPH}
            bodies, taken = _share_captures(proto, bodies)
            inputs += taken
        # a part of a message keeps the whole one, with all its weights, in memory: a copy does not
        own = NodeProto()
        own.CopyFrom(proto)
        own.domain = domain
        if bodies:
            del own.attribute[:]
            own.attribute.extend(a for a in proto.attribute if a.type != AttributeProto.GRAPH)
        return Node(name, own.op_type, inputs, outputs, proto=own, opsets=self.opsets, bodies=bodies)

    def _check(self, proto: NodeProto) -> None:
        """Whether the operator exists in the model's operator set and the node has its attributes and inputs."""
        domain, where = _domain(proto.domain), f"node {proto.name!r} ({proto.op_type})"
        if domain not in self.opsets:
            raise ModelError(f"{where} is of domain {domain or 'ai.onnx'!r}, which the model does not import")
        version = self.opsets[domain]
        if domain not in _KNOWN_DOMAINS:
            return
        try:
            schema = onnx.defs.get_schema(proto.op_type, max_inclusive_version=version, domain=domain)
        except onnx.defs.SchemaError as error:
            raise ModelError(
                f"{where}: there is no operator {proto.op_type!r} in operator set {version} of {domain or 'ai.onnx'!r}"
            ) from error
        for attribute in proto.attribute:
            try:
                b"".join((attribute.s, *attribute.strings)).decode()
            except UnicodeDecodeError as error:
                raise ModelError(f"{where}: its attribute {attribute.name!r} is no UTF-8 text") from error
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in proto.attribute):
            for attribute in proto.attribute:
                known = schema.attributes.get(attribute.name)
                if known is None or str(known.type) != f"AttrType.{AttributeProto.AttributeType.Name(attribute.type)}":
                    raise ModelError(f"{where}: its attribute {attribute.name!r} is unknown or of a wrong type")
            return  # its bodies' nodes are checked one by one, where the names around them are known
        try:
            onnx.checker.check_node(proto, self.checker)
        except onnx.checker.ValidationError as error:
            raise ModelError(f"{where}: {str(error).strip().splitlines()[0]}") from error
        except UnicodeDecodeError as error:  # the checker's own message could not be told
            raise ModelError(f"{where} has attributes with names that are no text; the model is damaged") from error

    def _unique(self, name: str) -> str:
        while name in self.names:
            name = f"{name}_{self.count}"
        self.names.add(name)
        return name


_KNOWN_DOMAINS = frozenset(schema.domain for schema in onnx.defs.get_all_schemas())


def _is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and _domain(node.domain) == "" and len(node.output) == 1


def _plain(attribute: AttributeProto) -> Any:
    """An attribute as Python has it; text as str."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)) or type(value).__name__.startswith("Repeated"):
        return tuple(item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in value)
    return value


def _constant_value(node: NodeProto) -> np.ndarray:
    name = node.output[0]
    if len(node.attribute) != 1:
        raise ModelError(f"the Constant {name!r} has {len(node.attribute)} values; it takes one")
    [attribute] = node.attribute
    if attribute.name == "value":
        return array_of(attribute.t, name)
    if attribute.name == "sparse_value":
        return array_of(attribute.sparse_tensor, name)
    dtypes: dict[str, Any] = {"value_float": np.float32, "value_int": np.int64, "value_string": object}
    return frozen_array(np.array(_plain(attribute), dtypes[attribute.name.removesuffix("s")]))


def _share_captures(proto: NodeProto, bodies: Mapping[str, Graph]) -> tuple[dict[str, Graph], tuple[str, ...]]:
    """All bodies of a node given the same captured values, in one order."""
    own = {a.name: len(a.g.input) for a in proto.attribute if a.type == AttributeProto.GRAPH}
    captured = {value.name: value for name, body in bodies.items() for value in body.inputs[own[name] :]}
    for name, body in bodies.items():
        hidden = captured.keys() & {value.name for value in body.inputs[: own[name]]}
        if hidden:
            raise ModelError(
                f"the body {name!r} of node {proto.name!r} hides {min(hidden)!r}, which is made outside it"
            )
    shared = {
        name: Graph(
            body.name, (*body.inputs[: own[name]], *captured.values()), body.outputs, body.nodes, body.constants
        )
        for name, body in bodies.items()
    }
    return shared, tuple(captured)
