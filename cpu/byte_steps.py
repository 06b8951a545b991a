"""Forms around operators on bytes as native steps: which function of src/sequence_bytes.cpp runs each.

A table of two bytes that is a sum or a product of what they stand for is computed rather than looked up where that is the
same: each way of computing it, the cheapest first, is run on all 65,536 pairs and compared with the table.
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
        case ByteTable(table=table, function=function) if table.size > 256:
            return (_of_two(form, instruction_set.index()) if function else None) or ("pair_table", {"table": table})
        case ByteTable(table=table):
            return "table", {"table": table}
    raise AssertionError(f"no form around bytes: {form}")


def _members(scale: ByteScale) -> tuple[float, int, bool]:
    return scale.scale, scale.zero, scale.dtype == "int8"


@lru_cache(maxsize=256)
def _of_two(form: ByteTable, isa: int) -> Call | None:
    """How a table of two bytes is computed on an instruction set; None where nothing gives exactly what it holds."""
    from quatrefoil.cpu import _sequence

    first, second = (np.ascontiguousarray(each.reshape(-1)) for each in np.indices((256, 256), np.uint8))
    wanted = form.table.view(np.uint8)
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
    """The ways to compute a table of two bytes, the cheapest first."""
    a, b, y = form.scales
    flip = 128 if y.dtype == "int8" else 0
    bytes_of_y = form.table.astype(np.int16) + flip
    limits = {"least": int(bytes_of_y.min()), "most": int(bytes_of_y.max())}
    if form.function != "multiply":
        factors = a.scale / y.scale, b.scale / y.scale * (1 if form.function == "add" else -1)
        zeros = (each.zero + (128 if each.dtype == "int8" else 0) for each in (a, b))
        offset = -sum(factor * zero for factor, zero in zip(factors, zeros))
        members = [(factor, 0, each.dtype == "int8") for factor, each in zip(factors, (a, b))]
        for nudge in NUDGES:
            yield "combine", {"scales": (*members, _members(y)), "offset": offset + nudge * 2.0**-18, **limits}
    yield form.function, {"scales": tuple(map(_members, (a, b, y))), **limits}
