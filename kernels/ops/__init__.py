"""The semantics of every operator: from a call's arguments to a canonical Problem, in one place for all backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrefoil.errors import OperatorError
from quatrefoil.ops import compressed, conv, conv_gradient, fixed, pool, pool_gradient, rnn, rnn_gradient, sparse
from quatrefoil.ops.spec import Case, Fill, OperatorSpec
from quatrefoil.ops.text import read_call
from quatrefoil.problem import Problem, Tensor

FAMILY_SPECS: dict[str, tuple[OperatorSpec, ...]] = {
    "conv": conv.SPECS,
    "pool": pool.SPECS,
    "rnn": rnn.SPECS,
    "fixed": fixed.SPECS,
    "sparse": sparse.SPECS,
    "compressed": compressed.SPECS,
    "conv_gradient": conv_gradient.SPECS,
    "pool_gradient": pool_gradient.SPECS,
    "rnn_gradient": rnn_gradient.SPECS,
}

SPECS: dict[str, OperatorSpec] = {spec.op: spec for specs in FAMILY_SPECS.values() for spec in specs}
"""Every operator of the house by name."""

FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(spec.op for spec in specs) for family, specs in FAMILY_SPECS.items()
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
