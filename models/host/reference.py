"""Any operator of ONNX by onnx's own reference implementation: right, and as slow as plain Python.

A model of one node is handed to ``onnx.reference``, which is loaded when the first one comes: its 200 modules take 20 MB and
30 ms, and few models need them. Nodes with subgraphs (If, Loop, Scan, SequenceMap) do not come here: the executor runs
their bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, helper

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

NEWEST_IR = 10


def node_model(node: onnx.NodeProto, opsets: dict[str, int], values: Sequence[Any] | None = None) -> onnx.ModelProto:
    """A model of one node. ``values`` give the inputs' types, which some operators need; others run without."""
    names = list(dict.fromkeys(name for name in node.input if name))
    types = dict(zip(node.input, values or ()))
    graph = helper.make_graph(
        [node],
        node.op_type,
        [_value_info(name, types.get(name)) for name in names],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=NEWEST_IR)


def _value_info(name: str, value: Any) -> onnx.ValueInfoProto:
    if isinstance(value, (np.ndarray, np.generic)):
        code = TensorProto.STRING if value.dtype.kind in "OUS" else helper.np_dtype_to_tensor_dtype(value.dtype)
        return helper.make_tensor_value_info(name, code, value.shape)
    return onnx.ValueInfoProto(name=name, type=TypeProto())


def _depends_on_types(node: onnx.NodeProto, opsets: dict[str, int]) -> bool:
    """Whether onnx runs the operator as a function whose body depends on its inputs' types, known when it runs."""
    from onnx.reference.op_run import RuntimeContextError
    from onnx.reference.ops import load_op

    schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    if not schema.has_context_dependent_function or node.domain:  # type: ignore[attr-defined]
        return False
    try:
        load_op(node.domain, node.op_type, opsets[node.domain])
    except RuntimeContextError:
        return True
    return False


class ReferenceRun:
    """Runs one node. Raises NotImplementedError or RuntimeError on construction where onnx has no implementation."""

    def __init__(self, node: onnx.NodeProto, opsets: dict[str, int]) -> None:
        from onnx.reference import ReferenceEvaluator

        self._node, self._opsets = node, opsets
        self._typed: dict[tuple[str, ...], ReferenceEvaluator] = {}
        self._untyped: ReferenceEvaluator | None = None
        if not _depends_on_types(node, opsets):
            self._untyped = ReferenceEvaluator(node_model(node, opsets))

    def _evaluator(self, inputs: Sequence[Any]) -> ReferenceEvaluator:
        if self._untyped is not None:
            return self._untyped
        key = tuple(f"{value.dtype}{value.ndim}" if isinstance(value, np.ndarray) else "" for value in inputs)
        if key not in self._typed:
            from onnx.reference import ReferenceEvaluator

            self._typed[key] = ReferenceEvaluator(node_model(self._node, self._opsets, inputs))
        return self._typed[key]

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        feeds = {name: value for name, value in zip(self._node.input, inputs) if name}
        wanted = [name for name in self._node.output if name]
        found = dict(zip(wanted, self._evaluator(inputs).run(wanted, feeds)))
        return [found.get(name) for name in self._node.output]
