"""What the host's operators share: the node as an implementation sees it, and the table of implementations.

An implementation is a builder: it looks at a node once, settles everything that its attributes, its operator set and
its constant inputs say, and returns the function that runs it, or None where onnx's own reference should run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import onnx

from quatrefoil.errors import OperatorError

Array: TypeAlias = np.ndarray
Run: TypeAlias = Callable[[Sequence[Any]], list[Any]]
"""Takes the node's inputs in order (None for absent ones), returns its outputs. Outputs may be views of inputs."""


class Node:
    """A node with its attributes read, its constant inputs at hand and the version of its operator settled.

    version is the operator set in which the operator took the form that the model means (ONNX's since_version).
    """

    def __init__(self, proto: onnx.NodeProto, version: int, constants: Mapping[str, Array]) -> None:
        self.op = proto.op_type
        self.version = version
        self.inputs = tuple(proto.input)
        self.outputs = tuple(proto.output)
        self.attributes = {item.name: onnx.helper.get_attribute_value(item) for item in proto.attribute}
        self._constants = constants

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value; text comes as str."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, position: int) -> bool:
        """Whether the optional input is given."""
        return position < len(self.inputs) and self.inputs[position] != ""

    def wants(self, position: int) -> bool:
        """Whether the optional output is asked for."""
        return position < len(self.outputs) and self.outputs[position] != ""

    def constant(self, position: int) -> Array | None:
        """The value of an input that never changes; None for any other."""
        return self._constants.get(self.inputs[position]) if self.has(position) else None

    def error(self, argument: str, given: object, wanted: str) -> OperatorError:
        return OperatorError(self.op, argument, given, wanted)


Builder: TypeAlias = Callable[[Node], Run | None]

BUILDERS: dict[str, Builder] = {}
"""Every operator of ONNX's default domain that has a fast path here."""


def operator(*names: str) -> Callable[[Builder], Builder]:
    """Enters a builder into the table under the operators' names."""

    def enter(builder: Builder) -> Builder:
        for name in names:
            BUILDERS[name] = builder
        return builder

    return enter


def given(inputs: Sequence[Any], position: int) -> Any:
    """An optional input, None when it is absent."""
    return inputs[position] if position < len(inputs) else None


def axis_of(axis: int, rank: int, op: str) -> int:
    """A possibly negative axis, checked."""
    if not -rank <= axis < max(rank, 1):
        raise OperatorError(op, "axis", axis, f"it has to lie in {-rank} to {rank - 1}")
    return axis + rank if axis < 0 else axis


@lru_cache(4096)
def axes_of(axes: tuple[int, ...], rank: int, op: str) -> tuple[int, ...]:
    """Possibly negative axes, checked, without repetitions."""
    settled = tuple(axis_of(int(axis), rank, op) for axis in axes)
    if len(set(settled)) != len(settled):
        raise OperatorError(op, "axes", list(axes), "every axis may be named once")
    return settled


def ints(value: Array | Sequence[int]) -> tuple[int, ...]:
    """The numbers of a small integer array."""
    return tuple(int(number) for number in np.asarray(value).ravel())
