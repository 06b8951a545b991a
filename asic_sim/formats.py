"""Number formats of the array's operands and sums, by the names that a design's ``formats`` and ``as_format`` use.

    int8, int16          activations and weights of that width (2 to 32 bits), 32-bit sums
    int16xint8           activations of 16 bits, weights of 8
    fixed<16,6>          fixed point: 16 bits, 6 of them before the point; sums of twice as many, at least 32 bits
    fixed<16,6>+<40,16>  the same with sums of 40 bits, 16 of them before the point
    fixed16x8+40         what a problem in fixed point brings: activations of 16 bits, weights of 8, sums of 40, wherever
                         their points are
    float32, float16, bfloat16    sums in float32

An element of a width that is no whole number of bytes takes the next whole number of them in every memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops.fixed import format_of
from quatrefoil.problem import Problem

INTEGER, FIXED, FLOAT = "integer", "fixed", "float"
_BROUGHT = re.compile(r"fixed(\d+)x(\d+)\+(\d+)")
FLOATS = {"float32": 32, "float16": 16, "bfloat16": 16}
LEAST_BITS, MOST_BITS, MOST_SUM_BITS = 2, 32, 64

KNOWN = "int8, int16, int16xint8, fixed<16,6>, fixed<16,6>+<40,16>, float32, float16, bfloat16"


@dataclass(frozen=True, slots=True)
class Format:
    """What the array multiplies and adds up; widths in bits. ``kind``: integer, fixed or float."""

    name: str
    kind: str
    activation_bits: int
    weight_bits: int
    sum_bits: int

    @property
    def activation_bytes(self) -> int:
        return -(-self.activation_bits // 8)

    @property
    def weight_bytes(self) -> int:
        return -(-self.weight_bits // 8)

    @property
    def sum_bytes(self) -> int:
        return -(-self.sum_bits // 8)

    @property
    def rounded(self) -> bool:
        """Sums are rounded and saturated to become activations again."""
        return self.kind != FLOAT


@cache
def parse(name: str) -> Format:
    """The format of a name. Raises QuatrefoilError where there is none."""
    if name in FLOATS:
        return Format(name, FLOAT, FLOATS[name], FLOATS[name], 32)
    if found := re.fullmatch(r"int(\d+)(?:xint(\d+))?", name):
        activation, weight = int(found[1]), int(found[2] or found[1])
        if found[2] != found[1] and all(LEAST_BITS <= bits <= MOST_BITS for bits in (activation, weight)):
            return Format(name, INTEGER, activation, weight, 32)
    if found := re.fullmatch(r"fixed<(\d+),(\d+)>(?:\+<(\d+),(\d+)>)?", name):
        bits, whole = int(found[1]), int(found[2])
        sums, sums_whole = (int(found[3]), int(found[4])) if found[3] else (max(32, 2 * bits), 2 * whole)
        fits = LEAST_BITS <= bits <= MOST_BITS and whole <= bits and bits <= sums <= MOST_SUM_BITS
        if fits and whole <= sums_whole <= sums:
            return Format(name, FIXED, bits, bits, sums)
    if found := _BROUGHT.fullmatch(name):
        activation, weight, sums = map(int, found.groups())
        if min(activation, weight) >= 1 and max(activation, weight) <= MOST_BITS and 1 <= sums <= MOST_SUM_BITS:
            return Format(name, FIXED, activation, weight, sums)
    raise QuatrefoilError(
        f"there is no number format {name!r}; such are {KNOWN}, with operands of {LEAST_BITS} to {MOST_BITS} bits and "
        f"sums of at most {MOST_SUM_BITS}"
    )


def is_brought(name: str) -> bool:
    """Whether it is of the kind that problems in fixed point bring."""
    return _BROUGHT.fullmatch(name) is not None


def of_fixed(problem: Problem) -> str:
    """The name of what a problem in fixed point multiplies and adds up. A window has no weights, and that of a maximum no
    sums: they count as its activations do."""
    given = dict(problem.attributes)
    x = format_of(problem, "x_format").width
    weight, sums = (format_of(problem, name).width if name in given else x for name in ("w_format", "accumulator"))
    return f"fixed{x}x{weight}+{sums}"
