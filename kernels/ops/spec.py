"""What ``ops/`` says about one operator, and one case of its conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quatrefoil.problem import Problem, Tensor, Tolerance, Work

Attributes = Mapping[str, Any]

MAX_ELEMENTS = 2**48  # far beyond any memory; keeps sizes and byte counts inside 64 bits


@dataclass(frozen=True, slots=True)
class Fill:
    """How a case's input is filled: a kind, and the interval it draws from where that means something.

    kinds: ``normal`` (mean 0, deviation 1), ``uniform``, ``integers`` (both ends included), ``special`` (normal with
    NaN and both infinities sprinkled in), ``value`` (the constant ``low``), ``lengths`` (integers, both ends met),
    ``indices`` (distinct places, for unpooling), ``offsets`` (rising from the first to the last of the interval),
    ``row_columns`` and ``row_offsets`` (compressed rows of distinct places; ``low`` and ``high`` are the matrix's rows and
    columns, and the number of places and the matrix's columns).
    """

    kind: str = "normal"
    low: float = 0.0
    high: float = 1.0
    contiguous: bool = True


@dataclass(frozen=True)
class Case:
    """One conformance case: the call as a user would make it."""

    op: str
    name: str
    inputs: tuple[Tensor | None, ...]
    attributes: Attributes = field(default_factory=dict)
    fills: Mapping[int, Fill] = field(default_factory=dict)
    outputs: int = 1

    def arrays(self, seed: int = 0) -> list[np.ndarray | None]:
        """Inputs with reproducible contents."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        return [
            None if tensor is None else _filled(rng, tensor, self.fills.get(position, _default_fill(tensor)))
            for position, tensor in enumerate(self.inputs)
        ]

    def __str__(self) -> str:
        return f"{self.op}/{self.name}"


@dataclass(frozen=True, slots=True)
class OperatorSpec:
    """The semantics of one operator.

    canonical   ``canonical(inputs, attributes, outputs)``: checks a call and gives the Problem; raises OperatorError
    work        multiply-accumulates and bytes of a direct evaluation
    tolerance   what a kernel's result is held to
    cases       the conformance cases
    parameters  input positions that a model keeps constant (weights, biases, scales), packed once by ``prepare``
    validate    checks what only values can tell (index ranges, lengths); raises OperatorError
    unrestricted  whether arrays of a problem's dtypes can hold nothing that ``validate`` refuses
    training      it belongs to training, which needs no kernels of backends that only infer
    """

    op: str
    input_names: tuple[str, ...]
    canonical: Callable[[Sequence[Tensor | None], Attributes, int], Problem]
    work: Callable[[Problem], Work]
    tolerance: Callable[[Problem], Tolerance]
    cases: Callable[[], list[Case]]
    parameters: tuple[int, ...] = ()
    validate: Callable[[Problem, Sequence[Any]], None] | None = None
    unrestricted: Callable[[Problem], bool] = lambda problem: False
    training: bool = False


def _default_fill(tensor: Tensor) -> Fill:
    kind = tensor.numpy_dtype.kind
    if kind not in "iu":
        return Fill("normal")
    info = np.iinfo(tensor.numpy_dtype)
    return Fill("integers", float(max(info.min, -(2**20))), float(min(info.max, 2**20)))


def _filled(rng: np.random.Generator, tensor: Tensor, fill: Fill) -> np.ndarray:
    shape, dtype = tensor.shape, tensor.numpy_dtype
    if fill.kind == "value":
        array = np.full(shape, fill.low)
    elif fill.kind == "uniform":
        array = rng.uniform(fill.low, fill.high, shape)
    elif fill.kind == "integers":
        array = rng.integers(int(fill.low), int(fill.high) + 1, shape)
    elif fill.kind == "lengths":
        array = rng.integers(int(fill.low), int(fill.high) + 1, shape)
        if array.size:
            array.flat[0] = fill.high
            array.flat[-1] = fill.low
    elif fill.kind == "indices":
        array = np.sort(rng.permutation(int(fill.high))[: tensor.size]).reshape(shape)
    elif fill.kind == "offsets":
        array = np.sort(rng.integers(int(fill.low), int(fill.high) + 1, shape))
        array[0], array[-1] = fill.low, fill.high
    elif fill.kind == "row_columns":
        array = _places(int(fill.low), int(fill.high), tensor.size) % int(fill.high)
    elif fill.kind == "row_offsets":
        rows, columns = tensor.size - 1, int(fill.high)
        array = np.searchsorted(_places(rows, columns, int(fill.low)), np.arange(rows + 1) * columns)
    else:
        array = rng.standard_normal(shape)
        if fill.kind == "special" and array.size:
            places = rng.permutation(array.size)
            count = max(1, array.size // 40)
            for place, value in enumerate((np.nan, np.inf, -np.inf)):
                array.flat[places[place * count : (place + 1) * count]] = value
        elif fill.kind != "normal" and fill.kind != "special":
            raise ValueError(f"unknown fill {fill.kind!r}")
    array = array.astype(dtype)
    if not fill.contiguous and array.ndim:
        # every second element of a larger array: strides that no fast path expects
        wide = np.zeros((*shape[:-1], shape[-1] * 2), dtype)
        wide[..., ::2] = array
        array = wide[..., ::2]
    return array


def _places(rows: int, columns: int, count: int) -> np.ndarray:
    """So many places of a matrix, rising; the same ones for columns and offsets."""
    rng = np.random.default_rng([rows, columns, count])
    return np.sort(rng.choice(rows * columns, count, replace=False))


def tensor_bytes(problem: Problem) -> int:
    """Every input read once and every output written once."""
    return sum(tensor.nbytes for tensor in (*problem.inputs, *problem.outputs) if tensor is not None)
