"""The semantics of every operator: from a call's arguments to a canonical Problem, in one place for all backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrefoil.errors import OperatorError
from quatrefoil.ops import conv, fixed, pool, rnn
from quatrefoil.ops.spec import Case, Fill, OperatorSpec
from quatrefoil.ops.text import read_call
from quatrefoil.problem import Problem, Tensor

SPECS: dict[str, OperatorSpec] = {spec.op: spec for spec in (*conv.SPECS, *pool.SPECS, *rnn.SPECS, *fixed.SPECS)}
"""Every operator of the house by name."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "conv": tuple(spec.op for spec in conv.SPECS),
    "pool": tuple(spec.op for spec in pool.SPECS),
    "rnn": tuple(spec.op for spec in rnn.SPECS),
    "fixed": tuple(spec.op for spec in fixed.SPECS),
}


def canonical(op: str, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any], outputs: int = 1) -> Problem:
    """The canonical Problem of a call.

    op: a name in ``SPECS``. inputs: the types of the operator's inputs, None for absent ones. attributes: ONNX's
    names and values; absent ones take ONNX's defaults. outputs: how many outputs are wanted (max_pool's indices are
    its second). Raises OperatorError for a call that the operator forbids.
    """
    spec = SPECS.get(op)
    if spec is None:
        raise OperatorError("quatrefoil", "the operator", repr(op), f"known are {', '.join(SPECS)}")
    return spec.canonical(tuple(inputs), attributes, outputs)


def parse(text: str) -> Problem:
    """The Problem whose text form this is; attributes that are left out take ONNX's defaults."""
    call = read_call(text)
    return call.settled(canonical(call.op, call.inputs, call.attributes, call.outputs))


__all__ = ["FAMILIES", "SPECS", "Case", "Fill", "OperatorSpec", "canonical", "parse"]
