"""A recurrent layer of leaky units whose recurrent matrix is sparse: the reservoir of an echo state network.

Inputs (T steps, N sequences, H units, Z values)
  x (T, N, H), what reaches the units from outside at every step, already multiplied by input weights; float32
  values (Z) float32, columns (Z) int32, offsets (H + 1) int32: the recurrent matrix R by compressed rows; row i holds
  values[k] at columns[k] for k from offsets[i] to offsets[i + 1] - 1. A column that stands twice in a row counts twice.
  initial_h (N, H)?
Output
  y (T, N, H): h(t) = (1 - leak) h(t - 1) + leak f(x(t) + R h(t - 1)), h before the first step initial_h or 0;
  with leak 1 the first term is absent, so that a NaN or an infinity there has no part in it

Attributes: leak in (0, 1] (1: an ordinary recurrent layer), activation (f, Tanh). Jaeger, Lukosevicius, Popovici and Siewert,
"Optimization and applications of echo state networks with leaky-integrator neurons" (2007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from quatrefoil.errors import OperatorError
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.spec import Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.ops.windows import float_attribute
from quatrefoil.problem import Problem, Tensor, Tolerance, Work

OP = "sparse_rnn"
X, VALUES, COLUMNS, OFFSETS, INITIAL_H = range(5)
NAMES = ("x", "values", "columns", "offsets", "initial_h")
MOST = 2**31 - 1
"""Values and units that 32-bit places count."""


class Geometry(NamedTuple):
    steps: int
    batch: int
    hidden: int
    nonzeros: int
    leak: float
    function: Activation


def geometry(problem: Problem) -> Geometry:
    function = Activation.parse(problem.string("activation"))
    steps, batch, hidden = problem.input(X).shape
    return Geometry(steps, batch, hidden, problem.input(VALUES).size, problem.number("leak"), function)


def canonical(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    given = [*inputs, *[None] * (len(NAMES) - len(inputs))]
    if len(given) > len(NAMES):
        raise OperatorError(OP, "the number of inputs", len(inputs), f"it takes {', '.join(NAMES)}")
    for position in (X, VALUES, COLUMNS, OFFSETS):
        if given[position] is None:
            raise OperatorError(OP, NAMES[position], "missing", "give an array")
    x, values = given[X], given[VALUES]
    assert x is not None and values is not None
    if x.rank != 3 or x.shape[2] < 1:
        raise OperatorError(OP, "the shape of x", list(x.shape), "it has to be T, N, H with H at least 1")
    if values.rank != 1 or max(values.size, x.shape[2]) >= MOST:
        raise OperatorError(OP, "the shape of values", list(values.shape), "it has to be one axis shorter than 2^31")
    steps, batch, hidden = x.shape
    shapes = {VALUES: values.shape, COLUMNS: values.shape, OFFSETS: (hidden + 1,), INITIAL_H: (batch, hidden)}
    for position, shape in {X: x.shape, **shapes}.items():
        tensor = given[position]
        if tensor is None:
            continue
        dtype = "int32" if position in (COLUMNS, OFFSETS) else "float32"
        if tensor.dtype != dtype:
            raise OperatorError(OP, f"the dtype of {NAMES[position]}", tensor.dtype, f"it has to be {dtype}")
        if tensor.shape != shape:
            raise OperatorError(
                OP, f"the shape of {NAMES[position]}", list(tensor.shape), f"it has to be {list(shape)}"
            )
    leak = float_attribute(OP, attributes, "leak", 1.0)
    if not 0 < leak <= 1:
        raise OperatorError(OP, "leak", leak, "it has to lie above 0 and be at most 1")
    function = attributes.get("activation", "Tanh")
    text = (function if isinstance(function, Activation) else Activation.parse(str(function))).text
    while given[-1] is None:
        given.pop()
    return Problem(
        OP, tuple(given), (Tensor("float32", (steps, batch, hidden)),), (("leak", leak), ("activation", text))
    )


class Rows(NamedTuple):
    """A matrix by compressed rows: values (Z), columns (Z), offsets (rows + 1)."""

    values: np.ndarray
    columns: np.ndarray
    offsets: np.ndarray


def rows(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Rows:
    """The matrix of a problem's constant inputs. Raises OperatorError for columns outside it and offsets that are none:
    kernels read memory at what they hold, so that each asks here when it is prepared."""
    parts = Rows(*(np.asarray(parameters[i]) for i in (VALUES, COLUMNS, OFFSETS)))
    return checked_rows(OP, NAMES[COLUMNS:INITIAL_H], parts, geometry(problem).hidden)


def checked_rows(op: str, names: Sequence[str], matrix: Rows, width: int) -> Rows:
    """A matrix of ``width`` columns by compressed rows, if it is one. names: what its columns and offsets are called."""
    values, columns, offsets = matrix
    if int(offsets[0]) != 0 or int(offsets[-1]) != values.size or bool((np.diff(offsets) < 0).any()):
        found = f"{int(offsets.min())} to {int(offsets.max())}"
        raise OperatorError(op, names[1], found, f"they have to rise from 0 to {values.size} without falling")
    if values.size and (int(columns.min()) < 0 or int(columns.max()) >= width):
        found = f"{int(columns.min())} to {int(columns.max())}"
        raise OperatorError(op, names[0], found, f"they have to lie in 0 to {width - 1}")
    return matrix


def work(problem: Problem) -> Work:
    """A multiply-accumulate for each stored value, step and sequence."""
    g = geometry(problem)
    return Work(g.steps * g.batch * g.nonzeros, tensor_bytes(problem))


def tolerance(problem: Problem) -> Tolerance:
    """As for recurrent layers: errors of sums and of exponentials enter each step and mostly fade."""
    return Tolerance(relative=2e-5, scaled=1e-5)


def _case(
    name: str, sizes: tuple[int, int, int, int], initial: bool = False, x: Fill | None = None, **attributes: Any
) -> Case:
    steps, batch, hidden, nonzeros = sizes
    tensors = [Tensor("float32", (steps, batch, hidden)), Tensor("float32", (nonzeros,)), Tensor("int32", (nonzeros,)),
               Tensor("int32", (hidden + 1,)), *[Tensor("float32", (batch, hidden))] * initial]  # fmt: skip
    bound = (hidden / max(nonzeros, 1)) ** 0.5
    fills = {
        X: x or Fill(), VALUES: Fill("uniform", -bound, bound), COLUMNS: Fill("integers", 0, hidden - 1),
        OFFSETS: Fill("offsets", 0, nonzeros),
    }  # fmt: skip
    return Case(OP, name, tuple(tensors), attributes, fills)


def cases() -> list[Case]:
    return [
        _case("one_sequence", (9, 1, 33, 120)),
        _case("leaky", (7, 3, 20, 61), leak=0.3),
        _case("initial_state", (5, 2, 17, 40), initial=True, leak=0.7),
        _case("batch_16", (4, 16, 24, 96), leak=0.5),
        _case("batch_19", (4, 19, 13, 50), initial=True),
        _case("dense", (3, 2, 6, 36)),
        _case("no_values", (3, 5, 4, 0), leak=0.5),
        _case("one_unit", (6, 1, 1, 1), leak=0.25),
        _case("one_step", (1, 4, 40, 90)),
        _case("no_steps", (0, 2, 5, 8), initial=True),
        _case("empty_batch", (3, 0, 5, 8)),
        _case("relu", (5, 3, 9, 18), activation="Relu", leak=0.5),
        _case("scaled_tanh", (5, 9, 9, 18), activation="ScaledTanh(1.5,0.5)"),
        _case("nan", (3, 3, 8, 16), x=Fill("special")),
        _case("nan_batch", (3, 18, 8, 16), x=Fill("special"), leak=0.5),
        _case("non_contiguous", (3, 2, 8, 16), x=Fill(contiguous=False)),
        _case("hidden_300", (12, 1, 300, 3000), leak=0.6),
    ]


SPECS = (
    OperatorSpec(
        OP, NAMES, canonical, work, tolerance, cases, parameters=(VALUES, COLUMNS, OFFSETS),
        unrestricted=lambda problem: True,
    ),
)  # fmt: skip
