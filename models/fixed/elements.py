"""What a fixed-point graph has between its convolutions, pools and recurrent layers, in integers, on the host.

A node's kind names it and its attributes hold the formats, by their text. As in ops/fixed.py the meaning is that of the
C++ which hls4ml generates for Vitis HLS (nnet_activation.h, nnet_merge.h): exact, then cast once to ``y_format``.

  FixedQuantize    real numbers to integers of y_format
  FixedDequantize  integers of x_format to float32
  FixedCast        x_format to y_format
  FixedActivation  function: Relu, Clip(low,high), LeakyRelu(alpha), HardSigmoid(alpha,beta), Elu(alpha), or one that is
                   looked up (numerics.TABLE_REACH); constants are integers of constant_format, tables have table_size
                   entries of table_format
  FixedAdd, FixedSub, FixedMul   of a_format and b_format
  FixedSoftmax     over the last axis: d = max - x, cast to difference_format, indexes a table of exp(-d) by its leading
                   bits; the sum of the entries, cast to sum_format, indexes a table of inverses by its leading bits; y is
                   the product of the two entries
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from quatrefoil.models.graph import ModelError, Node
from quatrefoil.numerics import TABLE_REACH, Fixed, exponential, function_table, table_bits, table_index
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.fixed import parse_format
from quatrefoil.sequences import FixedElementwise, FixedForm, FixedSoftmax

PLAIN: Final = ("Relu", "Clip", "LeakyRelu", "HardSigmoid", "Elu")
"""Functions with constants in place of a table; Elu has both."""

FUNCTIONS: Final = (*PLAIN, *TABLE_REACH)

ELU_REACH: Final = 8
"""The negative number down to which Elu's table reaches."""

Compute = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class ElementOperator:
    """Runs a node of a fixed-point graph on the host. form: what it is in a sequence, None where it has none."""

    function: Compute
    form: FixedForm | None
    name: str = "numpy"

    def compute(self, inputs: Sequence[Any]) -> list[Any]:
        return [self.function(inputs)]


def operator_of(node: Node) -> ElementOperator | None:
    """What runs a node of one of the kinds above; None for any other node."""
    build = BUILDERS.get(node.kind) if node.op is None and node.proto is None else None
    return None if build is None else ElementOperator(build(node.attributes), form_of(node.kind, node.attributes))


def format_of(attributes: Mapping[str, Any], name: str) -> Fixed:
    return parse_format(str(attributes[name]))


def _cast(values: np.ndarray, fraction: int, y: Fixed) -> np.ndarray:
    return y.cast(values, fraction).astype(y.dtype)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64)


def _quantize(attributes: Mapping[str, Any]) -> Compute:
    y = format_of(attributes, "y_format")
    return lambda inputs: y.quantize(inputs[0])


def _dequantize(attributes: Mapping[str, Any]) -> Compute:
    x = format_of(attributes, "x_format")
    return lambda inputs: x.dequantize(inputs[0]).astype(np.float32)


def _recast(attributes: Mapping[str, Any]) -> Compute:
    x, y = format_of(attributes, "x_format"), format_of(attributes, "y_format")
    return lambda inputs: _cast(inputs[0], x.fraction, y)


def _sum(sign: int) -> Callable[[Mapping[str, Any]], Compute]:
    def build(attributes: Mapping[str, Any]) -> Compute:
        a, b, y = (format_of(attributes, name) for name in ("a_format", "b_format", "y_format"))
        fraction = max(a.fraction, b.fraction)
        _check_width(max(a.integer, b.integer) + fraction + 1, a, b)

        def run(inputs: Sequence[np.ndarray]) -> np.ndarray:
            first, second = _wide(inputs[0]) << (fraction - a.fraction), _wide(inputs[1]) << (fraction - b.fraction)
            return _cast(first + sign * second, fraction, y)

        return run

    return build


def _product(attributes: Mapping[str, Any]) -> Compute:
    a, b, y = (format_of(attributes, name) for name in ("a_format", "b_format", "y_format"))
    _check_width(a.width + b.width, a, b)
    return lambda inputs: _cast(_wide(inputs[0]) * _wide(inputs[1]), a.fraction + b.fraction, y)


def _check_width(width: int, a: Fixed, b: Fixed) -> None:
    if width > 62:
        raise ModelError(f"{a} and {b} together take {width} bits; 62 can be computed exactly")


def constants(attributes: Mapping[str, Any]) -> tuple[Activation, list[int]]:
    """The function of a FixedActivation, and its constants as integers of constant_format (of x_format for Clip)."""
    function = Activation.parse(str(attributes["function"]))
    kept = format_of(attributes, "x_format" if function.name == "Clip" else "constant_format")
    numbers = np.array([function.alpha, function.beta])
    if function.name == "Clip":
        numbers = np.clip(numbers, *kept.dequantize(np.array([kept.low, kept.high])))
    return function, [int(value) for value in kept.quantize(numbers)]


def _activation(attributes: Mapping[str, Any]) -> Compute:
    function = Activation.parse(str(attributes["function"]))
    if function.name not in FUNCTIONS:
        raise ModelError(f"fixed point has no activation {function.text}; known are {', '.join(FUNCTIONS)}")
    x, y = format_of(attributes, "x_format"), format_of(attributes, "y_format")
    if function.name == "Relu":
        return lambda inputs: _cast(np.maximum(inputs[0], 0), x.fraction, y)
    if function.name in TABLE_REACH:
        size, kept = int(attributes["table_size"]), format_of(attributes, "table_format")
        table = function_table(function.name, size, kept)
        name = function.name
        return lambda inputs: _cast(table[table_index(_wide(inputs[0]), x.fraction, name, size)], kept.fraction, y)
    _, (alpha, beta) = constants(attributes)
    if function.name == "Clip":
        return lambda inputs: _cast(np.clip(inputs[0], alpha, beta), x.fraction, y)
    if function.name == "Elu":
        return _elu(attributes, alpha)
    scale = format_of(attributes, "constant_format")
    _check_width(x.width + scale.width, x, scale)
    if function.name == "LeakyRelu":

        def leaky(inputs: Sequence[np.ndarray]) -> np.ndarray:
            v = _wide(inputs[0])
            return np.where(v > 0, _cast(v, x.fraction, y), _cast(alpha * v, x.fraction + scale.fraction, y))

        return leaky
    fraction = max(x.fraction, 0) + scale.fraction  # where both the product and the shift are whole
    one = 1 << fraction

    def hard(inputs: Sequence[np.ndarray]) -> np.ndarray:
        v = _wide(inputs[0]) << (max(x.fraction, 0) - x.fraction)
        return _cast(np.clip(alpha * v + (beta << max(x.fraction, 0)), 0, one), fraction, y)

    return hard


def elu_table(size: int, kept: Fixed) -> np.ndarray:
    """exp(x) - 1 at x = -8 i / size, as integers of ``kept`` (int64)."""
    places = (-float(ELU_REACH) * np.arange(size) / size).astype(np.float32)
    exact = np.array([exponential(float(place)) - 1.0 for place in places], np.float32)
    return kept.quantize(exact).astype(np.int64)


def _elu(attributes: Mapping[str, Any], alpha: int) -> Compute:
    x, y = format_of(attributes, "x_format"), format_of(attributes, "y_format")
    scale, kept = format_of(attributes, "constant_format"), format_of(attributes, "table_format")
    size = int(attributes["table_size"])
    table = elu_table(size, kept)

    def run(inputs: Sequence[np.ndarray]) -> np.ndarray:
        v = _wide(inputs[0])
        numerator, drop = -np.minimum(v, 0) * (size // ELU_REACH), max(x.fraction, 0)
        index = np.minimum((numerator << (drop - x.fraction)) >> drop, size - 1)
        below = _cast(alpha * table[index], scale.fraction + kept.fraction, y)
        return np.where(v >= 0, _cast(v, x.fraction, y), below)

    return run


@cache
def exponential_table(size: int, index: Fixed, kept: Fixed) -> np.ndarray:
    """exp(-d), where the leading bits of d in the format ``index`` say the place, as integers of ``kept`` (int64)."""
    step = index.dequantize(np.array(1 << (index.width - (size.bit_length() - 1))))
    exact = np.array([exponential(-float(np.float32(i * step))) for i in range(size)], np.float32)
    return kept.quantize(exact).astype(np.int64)


@cache
def inverse_table(size: int, index: Fixed, kept: Fixed) -> np.ndarray:
    """1 / s likewise; the place of s = 0 is never looked up, for exp(0) is part of every sum, and holds 0."""
    step = index.dequantize(np.array(1 << (index.width - (size.bit_length() - 1))))
    places = (np.arange(size) * step).astype(np.float32)
    exact = np.float32(1) / np.where(places == 0, np.inf, places).astype(np.float32)
    return kept.quantize(exact).astype(np.int64)


SOFTMAX_FORMATS: Final = ("difference_format", "exponential_format", "accumulator", "sum_format", "inverse_format")


def _softmax(attributes: Mapping[str, Any]) -> Compute:
    x, y = format_of(attributes, "x_format"), format_of(attributes, "y_format")
    difference, power, accumulator, total, inverse = (format_of(attributes, name) for name in SOFTMAX_FORMATS)
    size = int(attributes["table_size"])
    bits = size.bit_length() - 1
    powers = accumulator.cast(exponential_table(size, difference, power), power.fraction)
    inverses = inverse_table(size, total, inverse)

    def run(inputs: Sequence[np.ndarray]) -> np.ndarray:
        v = _wide(inputs[0])
        distance = difference.cast(v.max(-1, keepdims=True) - v, x.fraction)
        entries = powers[distance >> (difference.width - bits)]
        summed = total.cast(
            accumulator.cast(entries.sum(-1, keepdims=True), accumulator.fraction), accumulator.fraction
        )
        return _cast(entries * inverses[summed >> (total.width - bits)], accumulator.fraction + inverse.fraction, y)

    return run


BUILDERS: Final[dict[str, Callable[[Mapping[str, Any]], Compute]]] = {
    "FixedQuantize": _quantize,
    "FixedDequantize": _dequantize,
    "FixedCast": _recast,
    "FixedActivation": _activation,
    "FixedAdd": _sum(1),
    "FixedSub": _sum(-1),
    "FixedMul": _product,
    "FixedSoftmax": _softmax,
}


def form_of(kind: str, attributes: Mapping[str, Any]) -> FixedForm | None:
    """A node's form in a sequence, which computes the same integers as its builder above."""
    if kind == "FixedSoftmax":
        return _softmax_form(attributes)
    if kind == "FixedDequantize":
        return FixedElementwise("dequantize", format_of(attributes, "x_format").fraction)
    y = format_of(attributes, "y_format")
    if kind == "FixedQuantize":
        return FixedElementwise("quantize", y=y)
    if kind == "FixedCast":
        return FixedElementwise("affine", format_of(attributes, "x_format").fraction, y)
    if kind == "FixedActivation":
        return _activation_form(attributes, format_of(attributes, "x_format"), y)
    a, b = (format_of(attributes, name).fraction for name in ("a_format", "b_format"))
    if kind == "FixedMul":
        return FixedElementwise("product", a + b, y)
    most = max(a, b)
    return FixedElementwise("sum", most, y, shifts=(most - a, most - b), factor=1 if kind == "FixedAdd" else -1)


def _activation_form(attributes: Mapping[str, Any], x: Fixed, y: Fixed) -> FixedForm | None:
    function = Activation.parse(str(attributes["function"]))
    name = function.name
    if name == "Relu":
        return FixedElementwise("affine", x.fraction, y, low=0)
    if name in TABLE_REACH:
        size, kept = int(attributes["table_size"]), format_of(attributes, "table_format")
        entries = _cast(function_table(name, size, kept), kept.fraction, y).astype(np.int32)
        return FixedElementwise("table", y=y, table=entries, table_bits=table_bits(x.fraction, name, size))
    _, (alpha, beta) = constants(attributes)
    if name == "Clip":
        return FixedElementwise("affine", x.fraction, y, low=alpha, high=beta)
    scale = format_of(attributes, "constant_format")
    if name == "LeakyRelu":
        return FixedElementwise("slope_below", x.fraction, y, factor=alpha, fraction_below=x.fraction + scale.fraction)
    if name == "HardSigmoid":
        places = max(x.fraction, 0)
        fraction, factor = places + scale.fraction, alpha << (places - x.fraction)
        offset = beta << places
        return FixedElementwise("affine", fraction, y, factor=factor, offset=offset, low=0, high=1 << fraction)
    size, kept = int(attributes["table_size"]), format_of(attributes, "table_format")
    if size < ELU_REACH or size & (size - 1):
        return None
    # the table in the order in which numerics.table_index counts, of one that reaches as far above 0
    entries = _cast(alpha * elu_table(size, kept), scale.fraction + kept.fraction, y).astype(np.int32)
    below = np.minimum(size - np.arange(2 * size), size - 1)
    both = np.where(below > 0, entries[np.maximum(below, 0)], 0).astype(np.int32)
    bits = (2 * ELU_REACH).bit_length() - 1 + x.fraction - (2 * size).bit_length() + 1
    return FixedElementwise("table_below", x.fraction, y, table=both, table_bits=bits)


def _softmax_form(attributes: Mapping[str, Any]) -> FixedSoftmax:
    x, y = format_of(attributes, "x_format"), format_of(attributes, "y_format")
    difference, power, accumulator, total, inverse = (format_of(attributes, name) for name in SOFTMAX_FORMATS)
    size = int(attributes["table_size"])
    fraction = accumulator.fraction
    return FixedSoftmax(
        (x.fraction, difference), (fraction, accumulator), (fraction, total), (fraction + inverse.fraction, y),
        accumulator.cast(exponential_table(size, difference, power), power.fraction),
        inverse_table(size, total, inverse),
    )  # fmt: skip
