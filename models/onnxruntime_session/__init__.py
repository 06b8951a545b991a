"""ONNX Runtime sessions that run quatrefoil's kernels (``pip install onnxruntime``).

    from quatrefoil.models import onnxruntime_session
    session = onnxruntime_session.session("model.onnx")
    session.run(None, {"x": x})

Every float operator of the house at the top of a model's graph (convolutions, pools, recurrent layers) becomes a custom operator,
whatever else stays ONNX Runtime's. A custom operator holds the node with its weights as a model of its own, which runs as
``qf.load`` would run it: weights are packed once, and ``session.models`` can explain which kernel each node runs.

``operators.cpp`` is compiled on first use and registered as ONNX Runtime's libraries of custom operators are. It hands on tensors
without a copy to Python, which chose and prepared the kernels; the kernels compute without the GIL, and outputs are copied into
ONNX Runtime's memory. An operator of integers, and nodes inside of If, Loop and Scan, stay with ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from quatrefoil import foreign
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.importing import OPERATORS
from quatrefoil.models.model import Model, load

DOMAIN = "quatrefoil"

SOURCE = Path(__file__).parent / "operators.cpp"

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)

MOST_ARRAYS = 16


class _Call(ctypes.Structure):
    """``Call`` of operators.cpp, as far as it is read here."""

    _fields_ = (("number", ctypes.c_int64), ("inputs", ctypes.c_int64), ("arrays", foreign.Array * MOST_ARRAYS))


_RUN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Call), ctypes.c_void_p, ctypes.c_uint64)


@dataclass(frozen=True, slots=True)
class _Node:
    """What a custom operator runs."""

    model: Model
    backend: str
    inputs: dict[str, np.dtype]


_numbers = count()
_running: dict[int, _Node] = {}
_one_at_a_time = threading.Lock()  # from the definition of a session's operators to their registration


def session(
    model: str | os.PathLike[str] | bytes | ModelProto, backend: str = "cpu", options: Any = None, **arguments: Any
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a model whose operators of the house run on a backend.

    options: ``SessionOptions`` to add the custom operators to. arguments: further ones of ``InferenceSession``.
    The session has ``models``: by the node's first output, the Model that runs it. Raises QuatrefoilError where a package is
    missing, or where the type of an operator's input is not known.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise QuatrefoilError("ONNX Runtime is not installed; pip install onnxruntime adds it") from error
    if isinstance(model, bytes):
        model = onnx.load_from_string(model)
    elif not isinstance(model, ModelProto):
        model = onnx.load(model)
    options = options or onnxruntime.SessionOptions()
    with _one_at_a_time:
        replaced, nodes = _replaced(model, backend)
        options.register_custom_ops_library(_library()[1])
    made = onnxruntime.InferenceSession(replaced.SerializeToString(), options, **arguments)
    made.models = {next(iter(node.model.outputs)).name: node.model for node in nodes.values()}
    for number, node in nodes.items():
        _running[number] = node
        weakref.finalize(made, _running.pop, number)
    return made


@cache
def _library() -> tuple[ctypes.CDLL, str, Any]:
    """The library, its path, and what has to outlive it."""
    path = str(foreign.library(SOURCE))
    library, run = ctypes.CDLL(path), _RUN(foreign.guarded(_run))
    library.output.restype = ctypes.c_void_p
    library.set_run(run)
    return library, path, run


def _run(pointer: Any) -> None:
    call, (library, _, _) = pointer.contents, _library()
    node = _running[call.number]
    feeds = {}
    for array, (name, dtype) in zip(call.arrays, node.inputs.items()):
        feeds[name] = array.view(dtype)
        feeds[name].flags.writeable = False
    for place, made in enumerate(node.model.run(feeds, backend=node.backend).values()):
        extents = (ctypes.c_int64 * made.ndim)(*made.shape)
        address = library.output(pointer, place, extents, made.ndim)
        if address is None:
            raise MemoryError(f"ONNX Runtime gives no memory for {made.dtype} {list(made.shape)}")
        foreign.array_at(address, made.shape, made.dtype)[...] = made


def _replaced(model: ModelProto, backend: str) -> tuple[ModelProto, dict[int, _Node]]:
    """A copy of the model with custom operators in it, which are defined, and what they run by number."""
    inferred = shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    weights = {weight.name: weight for weight in model.graph.initializer}
    types |= {name: weight.data_type for name, weight in weights.items()}
    overridable = {value.name for value in model.graph.input}
    weights = {name: weight for name, weight in weights.items() if name not in overridable}
    replaced = ModelProto()
    replaced.CopyFrom(model)
    del replaced.graph.node[:]
    nodes = {}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            replaced.graph.node.append(node)
            continue
        element = types.get(node.input[0], 0)
        if element == 0:
            raise QuatrefoilError(
                f"the type of {node.input[0]}, which {node.op_type} takes, is not known; name it among the graph's values"
            )
        if element not in FLOATS or node.op_type in ("ConvInteger", "QLinearConv"):
            replaced.graph.node.append(node)
            continue
        inner, given, outputs = _alone(node, model, types, weights)
        number = next(_numbers)
        dtypes = {name: helper.tensor_dtype_to_np_dtype(types[name]) for name in given}
        nodes[number] = _Node(load(inner), backend, dtypes)
        name, elements = f"{node.op_type}_{number}", [types[value] for value in (*given, *outputs)]
        _library()[0].define(
            ctypes.c_int64(number), name.encode(), len(given), len(outputs), (ctypes.c_int * len(elements))(*elements)
        )
        replaced.graph.node.append(helper.make_node(name, given, outputs, name=node.name, domain=DOMAIN))
    replaced.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return replaced, nodes


def _alone(
    node: NodeProto, model: ModelProto, types: Mapping[str, int], weights: Mapping[str, TensorProto]
) -> tuple[ModelProto, list[str], list[str]]:
    """A model of the node alone with its weights, its inputs and its outputs."""
    names = list(dict.fromkeys(name for name in node.input if name))
    given, outputs = [name for name in names if name not in weights], [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        node.name or outputs[0],
        [helper.make_tensor_value_info(name, types[name], None) for name in given],
        [helper.make_tensor_value_info(name, types[name], None) for name in outputs],
        [weights[name] for name in names if name in weights],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), given, outputs
