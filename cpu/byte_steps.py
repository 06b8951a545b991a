"""Forms around operators on bytes as native steps: which function of src/sequence_bytes.cpp runs each.

A table that brings bytes to another scale, or of two bytes that is a sum or a product of what they stand for, is computed rather
than looked up where that is the same: each way of computing it, the cheapest first, is run on every byte, or on all 65,536 pairs,
and compared with the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.sequences import ByteForm, ByteScale, ByteTable, Dequantize, Quantize, RoundTrip

Call: TypeAlias = tuple[str, Mapping[str, Any]]
"""A function of ``_sequence.bytes_step`` and its arguments."""

IN_REGISTERS = "v4_amx"
"""The instruction set whose look-ups of one byte stay in registers."""

NUDGES = (0, 1, -1, 2, -2, 3, -3, 4, -4)
"""Multiples of 2^-18 that are tried beside an offset, since a sum that is rounded once is at times on the wrong side."""


def step(form: ByteForm, dtypes: Sequence[str], extents: Sequence[int], strides: Sequence[Sequence[int]]) -> Any:
    """The native step of a form over a walk. dtypes: of the inputs. strides: of y and of each input, in elements."""
    from quatrefoil.cpu import _sequence

    function, arguments = call(form, dtypes)
    return _sequence.bytes_step(instruction_set.index(), function, extents, strides, **arguments)


def call(form: ByteForm, dtypes: Sequence[str]) -> Call:
    """What runs a form."""
    match form:
        case Quantize(to=to):
            return "quantize", {"scales": (None, None, _members(to))}
        case RoundTrip(scale=scale, low=low, high=high):
            return "round_trip", {"scales": (None, None, (scale, 0, False)), "low": low, "high": high}
        case Dequantize(scale=scale, zero=zero):
            function = "sums" if dtypes[0] == "int32" else "dequantize"
            return function, {"scales": ((scale, zero, dtypes[0] == "int8"),)}
        case ByteTable(table=table, function=function):
            # in registers a look-up is the faster way
            looks_up = not function or (table.size == 256 and instruction_set.name() == IN_REGISTERS)
            computed = None if looks_up else _computed(form, instruction_set.index())
            return computed or ("table" if table.size == 256 else "pair_table", {"table": table})
    raise AssertionError(f"no form around bytes: {form}")


def _members(scale: ByteScale) -> tuple[float, int, bool]:
    return scale.scale, scale.zero, scale.dtype == "int8"


@lru_cache(maxsize=256)
def _computed(form: ByteTable, isa: int) -> Call | None:
    """How a table is computed on an instruction set; None where nothing gives exactly what it holds."""
    from quatrefoil.cpu import _sequence

    wanted = form.table.view(np.uint8)
    indices = np.indices((wanted.size // 256, 256), np.uint8).reshape(2, -1)
    first, second = (np.ascontiguousarray(each) for each in (indices[-1:] if wanted.size == 256 else indices)[[0, -1]])
    for function, arguments in _ways(form):
        native = _sequence.bytes_step(isa, function, (wanted.size,), ((1,), (1,), (1,)), **arguments)
        operands = [(_sequence.ABSOLUTE, _sequence.address_of(each)) for each in (first, second)]
        run = _sequence.Sequence(
            [(native, operands, [(_sequence.ARRAYS, 0)])], 0, 0, [(wanted.shape, wanted.dtype)], (first, second)
        )
        results = run([])
        if results is not None and np.array_equal(results[0], wanted):
            return function, arguments
    return None


def _ways(form: ByteTable) -> Iterator[Call]:
    """The ways to compute a table, the cheapest first."""
    a, *others, y = form.scales
    flip = 128 if y.dtype == "int8" else 0
    bytes_of_y = form.table.astype(np.int16) + flip
    limits = {"least": int(bytes_of_y.min()), "most": int(bytes_of_y.max())}
    if form.function != "multiply":
        given = (a, *others)
        factors = [each.scale / y.scale for each in given]
        if form.function == "subtract":
            factors[1] *= -1
        zeros = (each.zero + (128 if each.dtype == "int8" else 0) for each in given)
        offset = -sum(factor * zero for factor, zero in zip(factors, zeros))
        members: list[tuple[float, int, bool] | None] = [
            (factor, 0, each.dtype == "int8") for factor, each in zip(factors, given)
        ]
        function = "combine" if others else "rescale"
        members += [None] * (2 - len(members))
        for nudge in NUDGES:
            yield function, {"scales": (*members, _members(y)), "offset": offset + nudge * 2.0**-18, **limits}
    if others:
        yield form.function, {"scales": tuple(map(_members, form.scales)), **limits}
