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
