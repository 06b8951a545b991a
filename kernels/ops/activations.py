"""The activation functions that convolutions fuse and recurrent layers use: ONNX's names, parameters and defaults.

An activation travels inside a Problem as text, ``LeakyRelu(0.01)``, and reaches native code as a code and two
floats. ``include/quatrefoil/activation.h`` evaluates the same codes on every kind of silicon.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from quatrefoil.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Function:
    """One entry of the table: the code that native kernels switch on, and the defaults of the parameters it has."""

    code: int
    defaults: tuple[float, ...]
    evaluate: Callable[[np.ndarray, float, float], np.ndarray]
    recurrent: bool


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # exp of a non-positive number on both sides, so that nothing overflows
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


FUNCTIONS: dict[str, Function] = {
    "Identity": Function(0, (), lambda x, a, b: x, False),
    "Relu": Function(1, (), lambda x, a, b: np.maximum(x, 0), True),
    "LeakyRelu": Function(2, (0.01,), lambda x, a, b: np.where(x >= 0, x, a * x), True),
    "Clip": Function(3, (-math.inf, math.inf), lambda x, a, b: np.minimum(np.maximum(x, a), b), False),
    "Sigmoid": Function(4, (), lambda x, a, b: _sigmoid(x), True),
    "Tanh": Function(5, (), lambda x, a, b: np.tanh(x), True),
    "HardSigmoid": Function(6, (0.2, 0.5), lambda x, a, b: np.minimum(np.maximum(a * x + b, 0), 1), True),
    "HardSwish": Function(7, (), lambda x, a, b: x * np.minimum(np.maximum(x / 6 + 0.5, 0), 1), False),
    "Elu": Function(8, (1.0,), lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))), True),
    "Softsign": Function(9, (), lambda x, a, b: x / (1 + np.abs(x)), True),
    "Softplus": Function(10, (), lambda x, a, b: np.logaddexp(x, 0), True),
    "Affine": Function(11, (1.0, 0.0), lambda x, a, b: a * x + b, True),
    "ThresholdedRelu": Function(12, (1.0,), lambda x, a, b: np.where(x > a, x, np.where(np.isnan(x), x, 0)), True),
    "ScaledTanh": Function(13, (1.0, 1.0), lambda x, a, b: a * np.tanh(b * x), True),
    "Swish": Function(14, (1.0,), lambda x, a, b: x * _sigmoid(a * x), False),
}
"""By ONNX name. ``HardSwish`` has ONNX's fixed 1/6 and 1/2; ``Clip``'s parameters are its minimum and maximum."""


def _between(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """1 strictly inside the interval and 0 elsewhere, in the precision of x."""
    return ((x > low) & (x < high)).astype(x.dtype)


def _hard_swish_slope(x: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(x / 6 + 0.5, 0), 1) + x / 6 * _between(x, -3, 3)


def _swish_slope(x: np.ndarray, a: float) -> np.ndarray:
    sigmoid = _sigmoid(a * x)
    return sigmoid + a * x * sigmoid * (1 - sigmoid)


SLOPES: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "Identity": lambda x, a, b: np.ones_like(x),
    "Relu": lambda x, a, b: (x > 0).astype(x.dtype),
    "LeakyRelu": lambda x, a, b: np.where(x > 0, x.dtype.type(1), x.dtype.type(a)),
    "Clip": lambda x, a, b: _between(x, a, b),
    "Sigmoid": lambda x, a, b: _sigmoid(x) * (1 - _sigmoid(x)),
    "Tanh": lambda x, a, b: 1 - np.tanh(x) ** 2,
    "HardSigmoid": lambda x, a, b: x.dtype.type(a) * _between(a * x + b, 0, 1),
    "HardSwish": lambda x, a, b: _hard_swish_slope(x),
    "Elu": lambda x, a, b: np.where(x > 0, x.dtype.type(1), a * np.exp(np.minimum(x, 0))),
    "Softsign": lambda x, a, b: 1 / (1 + np.abs(x)) ** 2,
    "Softplus": lambda x, a, b: _sigmoid(x),
    "Affine": lambda x, a, b: np.full_like(x, a),
    "ThresholdedRelu": lambda x, a, b: (x > a).astype(x.dtype),
    "ScaledTanh": lambda x, a, b: a * b * (1 - np.tanh(b * x) ** 2),
    "Swish": lambda x, a, b: _swish_slope(x, a),
}
"""The derivative of each function. At a kink it is that of the flat or shallow side, as torch has it."""

_CANONICAL = {name.lower(): name for name in FUNCTIONS}
_TEXT = re.compile(r"(\w+)(?:\(([^)]*)\))?")


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation with its parameters settled; a parameter that the function lacks is 0."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    @property
    def code(self) -> int:
        return FUNCTIONS[self.name].code

    @property
    def text(self) -> str:
        values = (self.alpha, self.beta)[: len(FUNCTIONS[self.name].defaults)]
        return f"{self.name}({','.join(map(repr, values))})" if values else self.name

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Evaluate in the precision of ``x``."""
        return FUNCTIONS[self.name].evaluate(x, self.alpha, self.beta)

    def slope(self, x: np.ndarray) -> np.ndarray:
        """The derivative at x, in the precision of ``x``."""
        return SLOPES[self.name](x, self.alpha, self.beta)

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Activation:
        """Read ``Relu`` or ``LeakyRelu(0.1)``; case does not matter, missing parameters take ONNX's defaults."""
        match = _TEXT.fullmatch(text.strip())
        parameters = match[2].split(",") if match and match[2] else []
        try:
            return activation(match[1] if match else text, *map(float, parameters))
        except ValueError as error:
            if isinstance(error, OperatorError):
                raise
            raise OperatorError("activation", "text", repr(text), "write Name or Name(alpha,beta)") from None

    def __str__(self) -> str:
        return self.text


IDENTITY = Activation("Identity")


def activation(name: str, *parameters: float, op: str = "activation") -> Activation:
    """An activation by ONNX name (any case) with its first parameters given and ONNX's defaults for the others."""
    canonical = _CANONICAL.get(name.lower())
    if canonical is None:
        raise OperatorError(op, "activation", repr(name), f"known are {', '.join(FUNCTIONS)}")
    defaults = FUNCTIONS[canonical].defaults
    if len(parameters) > len(defaults):
        raise OperatorError(op, f"{canonical}'s parameters", parameters, f"it takes {len(defaults)}")
    values = tuple(map(float, parameters)) + defaults[len(parameters) :]
    if any(math.isnan(value) for value in values):
        raise OperatorError(op, f"{canonical}'s parameters", parameters, "give numbers, not NaN")
    return Activation(canonical, *values)
