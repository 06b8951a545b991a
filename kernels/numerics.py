"""Number formats: what a value means, and how one is rounded into another.

Affine integers (ONNX's linear quantisation): real = scale * (integer - zero_point). Requantisation is defined here
to the last bit; every backend's integer kernels end with exactly these steps.

Fixed point (``Fixed``): real = integer / 2^fraction, with stated rounding and overflow. ``function_table`` holds the
functions that fixed-point layers look up.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from quatrefoil.errors import OperatorError

FLOAT_DTYPES = ("float16", "float32", "float64")


def integer_range(dtype: str) -> tuple[int, int]:
    """The least and the greatest value of an integer dtype."""
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def requantize_multiplier(x_scale: np.ndarray, w_scale: np.ndarray, y_scale: np.ndarray) -> np.ndarray:
    """float32(float32(x_scale * w_scale) / y_scale), one value for each output channel or one for all."""
    x, w, y = (np.asarray(value, np.float32) for value in (x_scale, w_scale, y_scale))
    return np.atleast_1d(np.float32(np.float32(x * w) / y)).reshape(-1)


def requantize(accumulator: np.ndarray, multiplier: np.ndarray, zero_point: int, dtype: str) -> np.ndarray:
    """int32 sums to uint8 or int8: saturate(round_half_even(float32(float32(acc) * multiplier)) + zero_point).

    accumulator: (N, M, ...) int32; multiplier: float32, one value or one for each of the M channels.
    """
    shape = (1, -1) + (1,) * (accumulator.ndim - 2)
    scaled = np.rint(accumulator.astype(np.float32) * multiplier.reshape(shape))
    low, high = integer_range(dtype)
    return np.clip(scaled.astype(np.float64) + zero_point, low, high).astype(dtype)


ROUNDINGS = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF")
"""How bits that are dropped round: TRN down, TRN_ZERO toward zero; the others to nearest, and a tie up (RND), to even
(RND_CONV), toward zero, away from zero, down. Positions are the codes of include/quatrefoil/fixed.h."""

OVERFLOWS = ("WRAP", "SAT", "SAT_ZERO", "SAT_SYM")
"""What a value outside the range becomes: its low bits, the nearest end, 0; SAT_SYM is SAT with a signed range that is
as long below 0 as above. Positions are the codes of include/quatrefoil/fixed.h."""

WIDEST_VALUE = 32
WIDEST_SUM = 62
"""Bits: a product of two values and one more addition stay inside 64."""

_FIXED_TEXT = re.compile(
    r"(?:ap_)?(u?)fixed<\s*(\d+)\s*,\s*(-?\d+)\s*(?:,\s*(?:AP_)?(\w+)\s*)?(?:,\s*(?:AP_)?(\w+)\s*)?>"
)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A fixed-point format: real = integer / 2^fraction, the integer being ``width`` bits wide.

    width     bits in all, 1 to 62
    integer   of these, the bits left of the point, the sign's included; may be negative, or more than ``width``
    rounding  one of ROUNDINGS, overflow one of OVERFLOWS; signed: two's complement

    The meaning of a cast is that of the ap_fixed types of high-level synthesis (AMD UG1399): round, then overflow.
    Arrays hold the integers (``dtype`` says in which NumPy type).
    """

    width: int
    integer: int
    rounding: str = "TRN"
    overflow: str = "WRAP"
    signed: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "integer"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise OperatorError("fixed point", name, repr(value), "give a whole number")
        if not 1 <= self.width <= WIDEST_SUM:
            raise OperatorError("fixed point", "width", self.width, f"it has to lie in 1 to {WIDEST_SUM}")
        if abs(self.integer) > WIDEST_SUM:
            raise OperatorError(
                "fixed point", "integer", self.integer, f"it has to lie in -{WIDEST_SUM} to {WIDEST_SUM}"
            )
        for name, known in (("rounding", ROUNDINGS), ("overflow", OVERFLOWS)):
            if getattr(self, name) not in known:
                raise OperatorError("fixed point", name, repr(getattr(self, name)), f"known are {', '.join(known)}")

    @classmethod
    def parse(cls, text: str) -> Fixed:
        """Read ``fixed<16,6>``, ``ufixed<8,0,RND,SAT>`` or the same with ``ap_`` and ``AP_``. Raises OperatorError."""
        match = _FIXED_TEXT.fullmatch(str(text).strip())
        if match is None:
            raise OperatorError(
                "fixed point", "the format", repr(text), "write fixed<width,integer> or fixed<width,integer,RND,SAT>"
            )
        unsigned, width, integer, rounding, overflow = match.groups()
        return cls(int(width), int(integer), rounding or "TRN", overflow or "WRAP", not unsigned)

    @property
    def fraction(self) -> int:
        return self.width - self.integer

    @property
    def low(self) -> int:
        """The least integer."""
        if not self.signed:
            return 0
        return -self.high if self.overflow == "SAT_SYM" else -(1 << (self.width - 1))

    @property
    def high(self) -> int:
        """The greatest integer."""
        return (1 << (self.width - 1 if self.signed else self.width)) - 1

    @property
    def dtype(self) -> str:
        """int16 where it holds every integer of the format, else int32, else int64."""
        bits = self.width + (not self.signed)
        return "int16" if bits <= 16 else "int32" if bits <= 32 else "int64"

    @property
    def text(self) -> str:
        modes = "" if (self.rounding, self.overflow) == ("TRN", "WRAP") else f",{self.rounding},{self.overflow}"
        return f"{'' if self.signed else 'u'}fixed<{self.width},{self.integer}{modes}>"

    def __str__(self) -> str:
        return self.text

    @property
    def members(self) -> tuple[int, int, int, int, int, int]:
        """Those of include/quatrefoil/fixed.h's qf_format."""
        codes = ROUNDINGS.index(self.rounding), OVERFLOWS.index(self.overflow)
        return self.low, self.high, self.width, int(self.signed), *codes

    @property
    def initializer(self) -> str:
        """The members as C writes them."""
        return ",".join(map(str, self.members))

    def cast(self, values: np.ndarray, fraction: int) -> np.ndarray:
        """int64 integers with ``fraction`` fraction bits, at most 2^62 in size, as int64 integers of this format."""
        values = np.asarray(values, np.int64)
        drop = fraction - self.fraction
        if drop > 0:
            return self._fit(_rounded(values, drop, self.rounding), np.zeros((), bool))
        # what would leave 64 bits when it is shifted is known before
        above = values > (self.high >> min(-drop, 62))
        below = values < -(-self.low >> min(-drop, 62))
        if self.overflow == "WRAP":
            return self._fit(values << -drop if drop > -64 else np.zeros_like(values), np.zeros((), bool))
        inside = np.where(above | below, 0, values) << min(-drop, 63)
        return self._fit(np.where(above, self.high, np.where(below, self.low, inside)), above | below)

    def _fit(self, values: np.ndarray, outside: np.ndarray) -> np.ndarray:
        if self.overflow == "WRAP":
            spare = 64 - self.width
            if self.signed:
                return (values << spare) >> spare
            return values & self.high
        outside = outside | (values < self.low) | (values > self.high)
        if self.overflow == "SAT_ZERO":
            return np.where(outside, 0, values)
        return np.clip(values, self.low, self.high)

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Real numbers as integers of this format, in ``dtype``. Raises OperatorError for NaN and infinity."""
        real = np.asarray(values, np.float64)
        if not np.isfinite(real).all():
            raise OperatorError("fixed point", "a value", "NaN or infinite", f"{self} holds finite numbers")
        scaled = np.ldexp(real, self.fraction)
        whole = np.floor(scaled)
        rest = scaled - whole  # exact: a part of scaled's own bits
        up = _rounds_up(self.rounding, rest, 0.5, scaled < 0, np.fmod(whole, 2) != 0)
        rounded = whole + up
        if self.overflow == "WRAP":
            # what is left of 2^width is exact in floating point, and small enough for 64 bits
            rounded = np.fmod(rounded, 2.0**self.width)
            return self._fit(rounded.astype(np.int64), np.zeros((), bool)).astype(self.dtype)
        outside = (rounded < self.low) | (rounded > self.high)
        if self.overflow == "SAT_ZERO":
            return np.where(outside, 0.0, rounded).astype(np.int64).astype(self.dtype)
        inside = np.where(outside, 0.0, rounded).astype(np.int64)
        ends = np.where(rounded < self.low, self.low, self.high)
        return np.where(outside, ends, inside).astype(self.dtype)

    def dequantize(self, integers: np.ndarray) -> np.ndarray:
        """Integers of this format as float64, exact up to a width of 53 bits."""
        return np.ldexp(np.asarray(integers, np.float64), -self.fraction)


def _rounds_up(rounding: str, rest: np.ndarray, half: float | int, negative: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """Whether a value that was rounded down, leaving ``rest``, becomes one more."""
    if rounding == "TRN":
        return np.zeros(np.shape(rest), bool)
    if rounding == "TRN_ZERO":
        return negative & (rest > 0)
    tie = {
        "RND": True,
        "RND_MIN_INF": False,
        "RND_ZERO": negative,
        "RND_INF": ~negative,
        "RND_CONV": odd,
    }[rounding]
    return (rest > half) | ((rest == half) & tie)


def _rounded(values: np.ndarray, drop: int, rounding: str) -> np.ndarray:
    """values / 2^drop, rounded; drop from 1 on."""
    negative = values < 0
    if drop > 62:
        # values are at most half of the last place: no tie, but for 2^62 dropping 63 bits, which products do not reach
        return np.where(negative & (rounding == "TRN"), -1, 0)
    whole = values >> drop
    rest = values - (whole << drop)
    return whole + _rounds_up(rounding, rest, 1 << (drop - 1), negative, (whole & 1) == 1)


TABLE_REACH = {"Sigmoid": 8, "Tanh": 4, "Softplus": 8, "Softsign": 8}
"""Functions that fixed-point layers look up, and the real number up to which their table reaches, and down to its
negative; beyond, the table's ends stand."""

TABLE_SIZES = tuple(2**bits for bits in range(4, 17))


def table_bits(fraction: int, function: str, size: int) -> int:
    """How many places a value with ``fraction`` fraction bits is shifted down to count in entries of a function's table."""
    return (2 * TABLE_REACH[function]).bit_length() - 1 + fraction - (size.bit_length() - 1)


def table_index(values: np.ndarray, fraction: int, function: str, size: int) -> np.ndarray:
    """Places in a function's table: value * size / (2 reach), truncated toward zero, from the middle on, clipped.

    values: int64 integers with ``fraction`` fraction bits.
    """
    bits = table_bits(fraction, function, size)
    magnitude = np.abs(values)
    # past 2^20 every place is clipped, and a longer shift could leave 64 bits
    steps = magnitude >> min(bits, 63) if bits >= 0 else np.minimum(magnitude, 2**20) << min(-bits, 40)
    return np.clip(np.where(values < 0, -steps, steps) + size // 2, 0, size - 1)


@cache
def function_table(function: str, size: int, kept: Fixed) -> np.ndarray:
    """The table of a function as integers of the format ``kept`` (int64, read-only): entry i is the function at
    2 reach (i - size / 2) / size, a float32 by way of the C library's expf and tanhf, as in hls4ml's C++."""
    reach = TABLE_REACH[function]
    places = (2.0 * reach * (np.arange(size) - size / 2) / size).astype(np.float32)
    exact = np.array([_float32(function, float(place)) for place in places], np.float32)
    table = kept.quantize(exact).astype(np.int64)
    table.flags.writeable = False
    return table


def _float32(function: str, x: float) -> float:
    """The function of a float32, each operation in the precision that C++ gives it in hls4ml's tables."""
    if function == "Tanh":
        return _libm("tanhf", x)
    if function == "Sigmoid":
        return 1.0 / float(np.float32(1.0) + np.float32(exponential(-x)))
    if function == "Softplus":
        return math.log(exponential(x) + 1.0)
    return x / (abs(x) + 1.0)


def exponential(x: float) -> float:
    """The C library's expf, a float32 of a float32."""
    return _libm("expf", x)


def _libm(name: str, x: float) -> float:
    """A float32 function of the C library: NumPy's own differ from it in the last place."""
    function = getattr(_library(), name)
    function.restype, function.argtypes = ctypes.c_float, (ctypes.c_float,)
    return float(function(x))


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
