"""Element-wise operators: arithmetic, comparisons, logic, casts, and the activation functions.

float32 stays float32; float16's functions are computed in float32 and rounded once.
Arrays are broadcast as NumPy does, and before operator set 7 by ``broadcast`` and ``axis``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import onnx

from quatrefoil.models.host.table import BUILDERS, Array, Builder, Node, Run, given, operator

Binary = Callable[[Array, Array], Array]
Unary = Callable[[Array], Array]


def divide(a: Array, b: Array) -> Array:
    """Integers are divided with truncation toward zero."""
    if a.dtype.kind == "f":
        return np.divide(a, b)
    quotient = np.floor_divide(a, b)
    if a.dtype.kind == "i":
        inexact = np.multiply(quotient, b) != a
        quotient = quotient + (inexact & ((a < 0) != (b < 0)))
    return quotient.astype(a.dtype, copy=False)


BINARY: dict[str, Binary] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": divide,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}


def aligned(a: Array, b: Array, axis: int | None) -> Array:
    """b as it broadcasts to a before operator set 7: its axes are a's from ``axis`` on, the last ones by default."""
    first = a.ndim - b.ndim if axis is None else axis if axis >= 0 else axis + a.ndim
    return b.reshape(b.shape + (1,) * (a.ndim - first - b.ndim))


def _binary(function: Binary) -> Builder:
    def build(node: Node) -> Run | None:
        if node.version < 7 and node.get("broadcast", 0):
            axis = node.get("axis")
            return lambda inputs: [function(inputs[0], aligned(inputs[0], inputs[1], axis))]
        return lambda inputs: [function(inputs[0], inputs[1])]

    return build


BUILDERS.update({name: _binary(function) for name, function in BINARY.items()})


@operator("Mod")
def build_mod(node: Node) -> Run | None:
    function = np.fmod if node.get("fmod", 0) else np.mod
    return lambda inputs: [function(inputs[0], inputs[1])]


def _square_root(x: Array) -> Array:
    return np.sqrt(x)


def _cube(x: Array) -> Array:
    y = np.square(x)
    return np.multiply(y, x, out=y) if isinstance(y, np.ndarray) else y * x


POWERS: dict[float, Unary] = {1.0: np.positive, 2.0: np.square, 3.0: _cube, 0.5: _square_root, -1.0: np.reciprocal}


@operator("Pow")
def build_pow(node: Node) -> Run | None:
    """The result has the base's type."""
    exponent = node.constant(1)
    if exponent is not None and exponent.size == 1 and float(exponent.flat[0]) in POWERS:
        function, rank = POWERS[float(exponent.flat[0])], exponent.ndim

        def run_fixed(inputs: Sequence[Any]) -> list[Any]:
            x = inputs[0]
            if x.dtype.kind != "f" or x.ndim < rank:
                return [np.power(x, inputs[1]).astype(x.dtype, copy=False)]
            return [function(x)]

        return run_fixed
    if node.version < 7 and node.get("broadcast", 0):
        axis = node.get("axis")
        return lambda inputs: [np.power(inputs[0], aligned(inputs[0], inputs[1], axis))]
    return lambda inputs: [np.power(inputs[0], inputs[1]).astype(inputs[0].dtype, copy=False)]


BLOCK = 1 << 16
"""Elements that an expression of several steps is computed over at a time, so that its temporaries stay in cache."""


def blocked(function: Callable[[Array], Array], x: Array) -> Array:
    """``function``, which makes several passes and keeps type and shape, over cache-sized blocks of a large array."""
    if x.size <= 2 * BLOCK or not x.flags.c_contiguous:
        return np.asarray(function(x))
    y = np.empty_like(x)
    source, target = x.reshape(-1), y.reshape(-1)
    for first in range(0, x.size, BLOCK):
        target[first : first + BLOCK] = function(source[first : first + BLOCK])
    return y


def add_all(arrays: Sequence[Array]) -> Array:
    return reduce(np.add, arrays)


@operator("Max", "Min", "Sum", "Mean")
def build_variadic(node: Node) -> Run | None:
    if node.op == "Mean":
        return lambda inputs: [np.divide(add_all(inputs), inputs[0].dtype.type(len(inputs)))]
    function = {"Max": np.maximum, "Min": np.minimum, "Sum": np.add}[node.op]
    return lambda inputs: [reduce(function, inputs)]


@operator("Where")
def build_where(node: Node) -> Run | None:
    return lambda inputs: [np.where(inputs[0], inputs[1], inputs[2])]


@operator("Clip")
def build_clip(node: Node) -> Run | None:
    """Limits are attributes before operator set 11, inputs from then on."""
    if node.version < 11:
        low, high = node.get("min"), node.get("max")

        def run_attributes(inputs: Sequence[Any]) -> list[Any]:
            kind = inputs[0].dtype.type
            return [clip(inputs[0], None if low is None else kind(low), None if high is None else kind(high))]

        return run_attributes
    return lambda inputs: [clip(inputs[0], given(inputs, 1), given(inputs, 2))]


def clip(x: Array, low: Any, high: Any) -> Array:
    """min(max(x, low), high), either limit optional; NaN stays NaN."""
    if low is None and high is None:
        return x
    if low is None:
        return np.minimum(x, high)
    return np.maximum(x, low) if high is None else x.clip(low, high)


def _cast_target(code: int) -> np.dtype | None:
    """The NumPy dtype of an ONNX element type; None for types that NumPy does not know itself."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    return dtype if dtype.kind in "fiub" and dtype.isbuiltin == 1 else None


@operator("Cast")
def build_cast(node: Node) -> Run | None:
    code = node.get("to")
    target = _cast_target(code) if isinstance(code, int) else None
    if target is None:
        return None
    return lambda inputs: [inputs[0].astype(target, copy=False)]


@operator("CastLike")
def build_cast_like(node: Node) -> Run | None:
    return lambda inputs: [inputs[0].astype(inputs[1].dtype, copy=False)]


@operator("Not")
def build_not(node: Node) -> Run | None:
    return lambda inputs: [np.logical_not(inputs[0])]


@operator("IsInf")
def build_is_inf(node: Node) -> Run | None:
    negative, positive = bool(node.get("detect_negative", 1)), bool(node.get("detect_positive", 1))
    if negative and positive:
        return lambda inputs: [np.isinf(inputs[0])]
    limit = -math.inf if negative else math.inf
    if not negative and not positive:
        return lambda inputs: [np.zeros(inputs[0].shape, bool)]
    return lambda inputs: [inputs[0] == limit]


# Erf in float32: x P(x^2) / Q(x^2) on [-4, 4], the rational minimax approximation of Eigen's and XLA's erf
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip
_exact_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """The error function, to a few units in the last place in float32 and exactly rounded in float64."""
    if x.dtype != np.float32:
        return np.asarray(_exact_erf(x)).astype(x.dtype)
    y = np.minimum(np.maximum(x, np.float32(-4)), np.float32(4))
    square = np.square(y)
    y = np.multiply(y, _polynomial(square, _ERF_P))
    return np.divide(y, _polynomial(square, _ERF_Q))


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    kind = x.dtype.type
    y = np.multiply(x, kind(coefficients[0]))
    for coefficient in coefficients[1:-1]:
        y += kind(coefficient)
        y *= x
    y += kind(coefficients[-1])
    return y


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); exp may overflow to infinity, whose reciprocal is the right 0."""
    y = np.asarray(np.negative(x))
    np.exp(y, out=y)
    y += y.dtype.type(1)
    return np.reciprocal(y, out=y)


def softplus(x: Array) -> Array:
    return np.logaddexp(x, x.dtype.type(0))


def mish(x: Array) -> Array:
    return x * np.tanh(softplus(x))


def softsign(x: Array) -> Array:
    y = np.asarray(np.abs(x))
    y += y.dtype.type(1)
    return np.divide(x, y, out=y)


def hard_swish(x: Array) -> Array:
    return np.multiply(x, hard_sigmoid(x, 1 / 6, 0.5))


def hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    kind = x.dtype.type
    y = np.asarray(np.multiply(x, kind(alpha)))
    y += kind(beta)
    np.maximum(y, kind(0), out=y)
    return np.minimum(y, kind(1), out=y)


def leaky_relu(x: Array, alpha: float) -> Array:
    scaled = np.asarray(np.multiply(x, x.dtype.type(alpha)))
    return np.maximum(x, scaled, out=scaled) if 0 < alpha <= 1 else np.where(x < 0, scaled, x)


def elu(x: Array, alpha: float) -> Array:
    kind = x.dtype.type
    return np.where(x < 0, kind(alpha) * np.expm1(np.minimum(x, kind(0))), x)


def selu(x: Array, alpha: float, gamma: float) -> Array:
    return np.multiply(elu(x, alpha), x.dtype.type(gamma))


def celu(x: Array, alpha: float) -> Array:
    kind = x.dtype.type
    return np.maximum(x, kind(0)) + np.minimum(kind(alpha) * np.expm1(x / kind(alpha)), kind(0))


def thresholded_relu(x: Array, alpha: float) -> Array:
    return np.where(x > x.dtype.type(alpha), x, x.dtype.type(0))


def gelu(x: Array) -> Array:
    kind = x.dtype.type
    return kind(0.5) * x * (kind(1) + erf(x * kind(math.sqrt(0.5))))


def gelu_tanh(x: Array) -> Array:
    kind = x.dtype.type
    inner = kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x * x * x)
    return kind(0.5) * x * (kind(1) + np.tanh(inner))


def swish(x: Array, alpha: float) -> Array:
    return np.multiply(x, sigmoid(x * x.dtype.type(alpha)))


def _in_float32(function: Unary, x: Array) -> Array:
    """float16 by way of float32: one rounding, no overflow on the way."""
    if x.dtype == np.float16:
        return np.asarray(function(x.astype(np.float32))).astype(np.float16)
    return blocked(function, x)


PLAIN: dict[str, Unary] = {
    "Abs": np.abs,
    "Neg": np.negative,
    "Ceil": np.ceil,
    "Floor": np.floor,
    "Round": np.rint,
    "Sign": np.sign,
    "Relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "Reciprocal": np.reciprocal,
    "IsNaN": np.isnan,
    "BitwiseNot": np.invert,
}
"""Functions that are as good in float16 as in any type."""

FUNCTIONS: dict[str, tuple[Callable[..., Array], tuple[tuple[str, float], ...]]] = {
    "Sqrt": (np.sqrt, ()),
    "Exp": (np.exp, ()),
    "Log": (np.log, ()),
    "Sin": (np.sin, ()),
    "Cos": (np.cos, ()),
    "Tan": (np.tan, ()),
    "Asin": (np.arcsin, ()),
    "Acos": (np.arccos, ()),
    "Atan": (np.arctan, ()),
    "Sinh": (np.sinh, ()),
    "Cosh": (np.cosh, ()),
    "Tanh": (np.tanh, ()),
    "Asinh": (np.arcsinh, ()),
    "Acosh": (np.arccosh, ()),
    "Atanh": (np.arctanh, ()),
    "Erf": (erf, ()),
    "Sigmoid": (sigmoid, ()),
    "Softplus": (softplus, ()),
    "Softsign": (softsign, ()),
    "Mish": (mish, ()),
    "HardSwish": (hard_swish, ()),
    "HardSigmoid": (hard_sigmoid, (("alpha", 0.2), ("beta", 0.5))),
    "LeakyRelu": (leaky_relu, (("alpha", 0.01),)),
    "Elu": (elu, (("alpha", 1.0),)),
    "Selu": (selu, (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))),
    "Celu": (celu, (("alpha", 1.0),)),
    "ThresholdedRelu": (thresholded_relu, (("alpha", 1.0),)),
    "Swish": (swish, (("alpha", 1.0),)),
}
"""Functions with the attributes they take and their defaults."""


@operator(*PLAIN)
def build_plain(node: Node) -> Run | None:
    function = PLAIN[node.op]
    return lambda inputs: [function(inputs[0])]


@operator(*FUNCTIONS)
def build_function(node: Node) -> Run | None:
    function, attributes = FUNCTIONS[node.op]
    parameters = {name: float(node.get(name, default)) for name, default in attributes}
    settled = partial(function, **parameters) if parameters else function
    return lambda inputs: [_in_float32(settled, inputs[0])]


@operator("Gelu")
def build_gelu(node: Node) -> Run | None:
    function = gelu_tanh if node.get("approximate", "none") == "tanh" else gelu
    return lambda inputs: [_in_float32(function, inputs[0])]


def prelu(x: Array, slope: Array, out: Array) -> None:
    """min(x, 0) * slope + max(x, 0)"""
    zero = x.dtype.type(0)
    negative = np.minimum(x, zero)
    np.maximum(x, zero, out=out)
    out += negative * slope


def prelu_gentle(x: Array, slope: Array, out: Array) -> None:
    """max(x, x * slope), which is the same for slopes up to 1, and for infinity too where no slope is 0."""
    np.multiply(x, slope, out=out)
    np.maximum(x, out, out=out)


@operator("PRelu")
def build_prelu(node: Node) -> Run | None:
    """Block by block along the first axis where the array is large and the slope does not vary along it."""
    slopes = node.constant(1)
    gentle = slopes is not None and bool(np.all((slopes <= 1) & (slopes != 0)))
    function = prelu_gentle if gentle else prelu

    def run(inputs: Sequence[Any]) -> list[Any]:
        x, slope = inputs
        if node.version < 7 and slope.ndim == 1 and slope.size > 1:
            slope = aligned(x, slope, 1)
        if np.broadcast_shapes(x.shape, slope.shape) != x.shape:
            raise node.error("the slope's shape", list(slope.shape), f"it has to broadcast to x's {list(x.shape)}")
        y = np.empty_like(x)
        if x.size <= 2 * BLOCK or (slope.ndim == x.ndim and slope.shape[0] > 1):
            function(x, slope, y)
        else:
            step = max(1, BLOCK * len(x) // x.size)
            for first in range(0, len(x), step):
                function(x[first : first + step], slope, y[first : first + step])
        return [y]

    return run
