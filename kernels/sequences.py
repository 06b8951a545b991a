"""What a straight sequence of operators is, as models hand it to a backend that can run one in a single call.

Values have numbers. A ``Step`` computes some from others in one ``Form``; the forms are few, and everything that
depends on ONNX's wording is settled before: which function, which strides, which constants. All types are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

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


@dataclass(frozen=True)
class Concat:
    """The inputs one after the other along an axis."""

    axis: int


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


Form: TypeAlias = Operation | View | Elementwise | Affine | Concat | Rearrangement | Softmax | LocalResponse


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

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs, newly allocated, from contiguous inputs of the planned types."""

    def timed(self, inputs: Sequence[Array]) -> tuple[list[Array], dict[str, float]]:
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
