"""Operators that no backend has run on the host: exactly, and fast where they are common.

    operator = host.prepare(node, opsets, constants)
    outputs = operator.run(inputs)

NumPy implementations (``elementwise``, ``shapes``, ``matrices``, ``reductions``, ``normalization``, ``quantization``,
``resizing``) cover what models are made of, in every form it has had since operator set 6. Everything else, and
every type that NumPy does not know itself (bfloat16, float8, 4-bit integers, text, sequences), runs by onnx's own
reference implementations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from quatrefoil.errors import OperatorError, QuatrefoilError
from quatrefoil.models.host import elementwise, matrices, normalization, quantization, reductions, resizing, shapes
from quatrefoil.models.host.reference import ReferenceRun
from quatrefoil.models.host.table import BUILDERS, Node, Run

NATIVE = frozenset(map(np.dtype, ["?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d"]))
"""Booleans, integers of 8 to 64 bits, and floats of 16 to 64."""

BAD_INPUT = (
    ValueError,
    IndexError,
    TypeError,
    KeyError,
    AttributeError,
    ZeroDivisionError,
    OverflowError,
    RuntimeError,
)
"""What NumPy and onnx's reference raise for inputs that an operator cannot take."""


IMPLEMENTATIONS = (elementwise, matrices, normalization, quantization, reductions, resizing, shapes)
"""The modules whose loading fills the table."""


class UnsupportedOperator(QuatrefoilError, NotImplementedError):
    """Neither a backend nor the host can run the operator; the message names it and says what would do."""


def _native(value: Any) -> bool:
    return value is None or (type(value) is np.ndarray and value.dtype in NATIVE)


class HostOperator:
    """One node, ready to run on the host.

    name is "numpy" or "onnx.reference": what runs it. Values of types that are not NumPy's own are handed from the
    first to the second.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        opsets: dict[str, int],
        fast: Run | None = None,
        reference: ReferenceRun | None = None,
        described: Node | None = None,
    ) -> None:
        self.name = "numpy" if fast is not None else "onnx.reference"
        self.node = node
        self._opsets = opsets
        self._fast, self._reference = fast, reference
        self.described = described
        """The node as NumPy's implementations see it; None where onnx.reference runs it."""

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The node's outputs for its inputs in order (None for absent ones), NumPy's floating-point warnings off.

        Outputs may be views of inputs and are not to be written to. Raises OperatorError for inputs that the operator
        cannot take.
        """
        with np.errstate(all="ignore"):
            return self.compute(inputs)

    def compute(self, inputs: Sequence[Any]) -> list[Any]:
        """``run`` for a caller that has turned the warnings off for many nodes at once."""
        fast = self._fast
        try:
            if fast is None:
                return self._compute_other(inputs)
            for value in inputs:
                if value is not None and (type(value) is not np.ndarray or value.dtype not in NATIVE):
                    return self._compute_other(inputs)
            return _as_arrays(fast(inputs))
        except OperatorError:
            raise
        except BAD_INPUT as error:
            given = ", ".join(_described(value) for value in inputs)
            raise OperatorError(self.node.op_type, "what it was given", given or "nothing", str(error)) from error

    def _compute_other(self, inputs: Sequence[Any]) -> list[Any]:
        """NumPy scalars become arrays; anything stranger is onnx's."""
        values = [np.asarray(value) if isinstance(value, (np.generic, np.ndarray)) else value for value in inputs]
        if self._fast is not None and all(map(_native, values)):
            return _as_arrays(self._fast(values))
        if self._reference is None:
            self._reference = ReferenceRun(self.node, self._opsets)
        return [_as_array(value) for value in self._reference(values)]


def _as_arrays(outputs: list[Any]) -> list[Any]:
    """NumPy gives scalars where a result has rank 0."""
    for place, value in enumerate(outputs):
        if type(value) is not np.ndarray:
            outputs[place] = np.asarray(value)
    return outputs


def _as_array(value: Any) -> Any:
    """Scalars as arrays of rank 0, text as arrays of objects, which is how ONNX's arrays come; others as they are."""
    array = np.asarray(value) if isinstance(value, (np.generic, float, int, str)) else value
    return array.astype(object) if isinstance(array, np.ndarray) and array.dtype.kind in "US" else array


def _described(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def prepare(
    node: onnx.NodeProto,
    opsets: Mapping[str, int],
    constants: Mapping[str, np.ndarray],
) -> HostOperator:
    """What runs a node on the host.

    opsets: the version of each domain that the model imports. constants: values, by name, of inputs that stay the
    same. Raises UnsupportedOperator where nothing runs it.
    """
    versions = {("" if domain == "ai.onnx" else domain): version for domain, version in opsets.items()}
    if node.domain == "ai.onnx":
        node = _without_domain(node)
    version = _version_of(node, versions)
    if node.domain == "" and node.op_type in BUILDERS:
        try:
            described = Node(node, version, constants)
            run = BUILDERS[node.op_type](described)
        except OperatorError:
            raise
        except BAD_INPUT as error:
            named = ", ".join(item.name for item in node.attribute) or "none"
            raise OperatorError(node.op_type, "what its attributes say", f"({named})", str(error)) from error
        if run is not None:
            return HostOperator(node, versions, fast=run, described=described)
    try:
        reference = ReferenceRun(node, versions)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedOperator(
            f"{_titled(node, versions)} has no implementation on the host ({error}); rewrite the model with operators "
            "that onnx.reference runs"
        ) from error
    return HostOperator(node, versions, reference=reference)


def _without_domain(node: onnx.NodeProto) -> onnx.NodeProto:
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    return plain


def _titled(node: onnx.NodeProto, opsets: Mapping[str, int]) -> str:
    name = f" (node {node.name!r})" if node.name else ""
    domain = f"domain {node.domain!r}" if node.domain else "ONNX's domain"
    return f"operator {node.op_type} of {domain}, operator set {opsets.get(node.domain, 'not imported')}{name}"


def _version_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> int:
    """The operator set in which the operator took the form that the model means."""
    if node.domain not in opsets:
        raise UnsupportedOperator(f"{_titled(node, opsets)}: import its domain in the model's opset_import")
    if not onnx.defs.has(node.op_type, node.domain):
        raise UnsupportedOperator(
            f"{_titled(node, opsets)} is unknown to ONNX {onnx.__version__}; use ONNX's own operators, or a "
            "model-local function that is made of them"
        )
    newest = onnx.defs.onnx_opset_version()
    if node.domain == "" and opsets[""] > newest:
        raise UnsupportedOperator(
            f"{_titled(node, opsets)}: ONNX {onnx.__version__} knows operator sets up to {newest}"
        )
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except onnx.defs.SchemaError as error:
        raise UnsupportedOperator(
            f"{_titled(node, opsets)} does not exist in that operator set; import the one that the model was made for"
        ) from error
    if schema.deprecated:
        raise UnsupportedOperator(
            f"{_titled(node, opsets)} was removed in operator set {schema.since_version}; import an older one"
        )
    return schema.since_version


__all__ = ["HostOperator", "UnsupportedOperator", "prepare"]
