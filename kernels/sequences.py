"""What a straight sequence of operators is, as models hand it to a backend that can run one in a single call.

Values have numbers. A ``Step`` computes some from others in one ``Form``; the forms are few, and everything that
depends on ONNX's wording is settled before: which function, which strides, which constants. All types are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from quatrefoil.numerics import Fixed
from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel

ARITHMETIC = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "prelu")
"""Functions of two values. prelu: a where it is not below 0, else a * b."""

FUNCTIONS = ("square_root", "exponential", "magnitude")
"""Functions of one value that are no activations."""


@dataclass(frozen=True, eq=False)
class Operation:
    """An operator of the house, on the kernel that dispatch chose. parameters: constant inputs by position."""

    problem: Problem
    kernel: Kernel
    parameters: Mapping[int, Array]


@dataclass(frozen=True)
class View:
    """The elements from ``offset`` on, in the same order, under another shape: nothing has to be moved."""

    offset: int = 0


@dataclass(frozen=True)
class Elementwise:
    """activation(function(inputs)), broadcast as NumPy does. function: "copy", or of ARITHMETIC or FUNCTIONS."""

    function: str = "copy"
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Affine:
    """activation(x * scale + offset); scale and offset, the second and third inputs, have an element a channel."""

    activation: Activation = IDENTITY


@dataclass(frozen=True, eq=False)
class Concat:
    """The inputs one after the other along an axis. tables: empty, or for each input of bytes what each byte becomes on the
    way, None for itself."""

    axis: int
    tables: tuple[ByteTable | None, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A box of elements that is copied: where it begins in x and y, in elements, and how both are walked."""

    x: int
    y: int
    extents: tuple[int, ...]
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]


@dataclass(frozen=True)
class Rearrangement:
    """Copies pieces of the first input; what they leave open gets the value of the second (absent: nothing is open)."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Softmax:
    """e^x / sum along an axis, or the logarithm of it."""

    axis: int
    logarithm: bool = False


@dataclass(frozen=True)
class LocalResponse:
    """x / (bias + alpha / size * sum of squares over ``size`` channels) ^ beta, as ONNX's LRN."""

    size: int
    alpha: float
    beta: float
    bias: float


@dataclass(frozen=True, eq=False)
class FixedElementwise:
    """Fixed-point integers to others, broadcast as NumPy does: what the function gives is exact, and is cast once to y.

    function   "quantize": float32 to integers; a value that is not finite is refused
               "dequantize": integers with ``fraction`` fraction bits to float32
               "sum": a * 2^shifts[0] + factor * b * 2^shifts[1]; "product": a * b
               "affine": a * factor + offset, not below low nor above high
               "table": the table's entry (int32, of y) at numerics.table_index, of which ``table_bits`` is known
               "slope_below": a where it is above 0, else a * factor, which has ``fraction_below`` fraction bits
               "check": a as it is; one below low or above high is refused
               "table_below": a where it is above 0, else the table's entry
    fraction   of the exact result
    y          its format, None for float32
    """

    function: str
    fraction: int = 0
    y: Fixed | None = None
    shifts: tuple[int, int] = (0, 0)
    factor: int = 1
    offset: int = 0
    low: int = -(2**62)
    high: int = 2**62
    fraction_below: int = 0
    table: np.ndarray | None = None
    table_bits: int = 0

    @property
    def dtype(self) -> str:
        """Of the result."""
        return "float32" if self.y is None else self.y.dtype


@dataclass(frozen=True, eq=False)
class FixedSoftmax:
    """Softmax of integers along the last axis by two tables, as models/fixed/elements.py says.

    Each of difference, accumulator, total and y is cast from the fraction bits beside it. powers, inverses: int64.
    """

    difference: tuple[int, Fixed]
    accumulator: tuple[int, Fixed]
    total: tuple[int, Fixed]
    cast: tuple[int, Fixed]
    powers: np.ndarray
    inverses: np.ndarray

    @property
    def dtype(self) -> str:
        """Of the result."""
        return self.cast[1].dtype


FixedForm: TypeAlias = FixedElementwise | FixedSoftmax
"""Forms between fixed-point operators."""


@dataclass(frozen=True)
class ByteScale:
    """What bytes stand for: (byte - zero) * scale. dtype: uint8 or int8."""

    scale: float
    zero: int
    dtype: str


@dataclass(frozen=True)
class Quantize:
    """float32 to bytes, as ONNX's QuantizeLinear: the whole number nearest to x / scale, halves to the even one, plus zero, as
    near as the type has it; 0 for NaN."""

    to: ByteScale

    @property
    def dtype(self) -> str:
        """Of the result."""
        return self.to.dtype


@dataclass(frozen=True)
class Dequantize:
    """(x - zero) * scale of bytes, or of int32 without a zero point, in float32."""

    scale: float = 1.0
    zero: int = 0
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class ByteTable:
    """What the table holds for each byte of the input (256 entries), or for each two of both inputs, broadcast as NumPy does
    (65,536 entries, the first byte times 256). Bytes count as unsigned in it.

    function   "rescale" where bytes of y stand for what those of x do, as near as they can; of two inputs "add", "subtract" or
               "multiply", where the table is this of what they stand for, maybe with an activation. ``scales`` are then those
               of a, of b and of y
    """

    table: np.ndarray
    function: str = ""
    scales: tuple[ByteScale, ...] = ()

    @property
    def dtype(self) -> str:
        """Of the result."""
        return self.table.dtype.name


@dataclass(frozen=True)
class RoundTrip:
    """Quantize and back: the whole number nearest to x / scale, from low to high, times scale; float32."""

    scale: float
    low: float
    high: float
    dtype: str = "float32"


ByteForm: TypeAlias = Quantize | Dequantize | ByteTable | RoundTrip
"""Forms around operators on bytes, element by element."""

Form: TypeAlias = (
    Operation | View | Elementwise | Affine | Concat | Rearrangement | Softmax | LocalResponse | FixedForm | ByteForm
)


@dataclass(frozen=True)
class Step:
    """One computation. inputs: numbers of values, None for absent ones and an operation's parameters.

    node: what the step belongs to, for reports of time.
    """

    form: Form
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    node: str


@dataclass(frozen=True)
class Plan:
    """Steps in an order that can run. types: of every value by its number. constants: values that never change."""

    steps: Sequence[Step]
    types: Mapping[int, Tensor]
    constants: Mapping[int, np.ndarray]
    inputs: Sequence[int]
    outputs: Sequence[int]


@dataclass(frozen=True)
class Joined:
    """How a node runs where it is neither on the kernel that dispatch chose nor a step of the sequencer's own: as a part
    of what its neighbours became with it. backend: empty on the host. kernel: its id; why: in a sentence;
    layout: how its arrays lie."""

    backend: str
    kernel: str
    why: str
    layout: str = ""


class PreparedSequence(Protocol):
    """A plan made ready. May run in several threads at once; keeps nothing of the arrays it is given."""

    def __call__(self, inputs: Sequence[Array]) -> list[Array] | None:
        """The outputs, newly allocated, from contiguous inputs of the planned types; None where a step refuses a value,
        which the steps one by one say in a sentence."""

    def timed(self, inputs: Sequence[Array]) -> tuple[list[Array] | None, dict[str, float]]:
        """The same, and the seconds that the steps of each node took."""


class Sequencer(Protocol):
    """The part of a backend that runs sequences; a backend that has one offers it as its member ``sequencer``."""

    name: str
    """What runs the steps that are no operators of the house, for people."""

    def takes(self, step: Step, types: Mapping[int, Tensor]) -> bool:
        """Whether the step can stand in a sequence."""

    def joined(self, plan: Plan) -> Mapping[str, Joined]:
        """By their names, the nodes of a plan that run as a part of something larger. Prepares nothing."""

    def prepare(self, plan: Plan) -> PreparedSequence:
        """Plan memory, pack weights."""
