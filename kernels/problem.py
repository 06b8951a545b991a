"""One operator call, made canonical: frozen, hashable, with a one-line text form.

The text form of a ``Problem`` serves as test id, line of a bench suite, tuning key and bug report:

    conv float32[1x64x56x56],float32[64x64x3x3] strides=1x1 pads=1x1x1x1 dilations=1x1 group=1
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TypeAlias, Union

import numpy as np
from numpy.typing import DTypeLike

from quatrefoil.errors import QuatrefoilError

AttributeValue: TypeAlias = Union[int, float, str, tuple[int, ...], tuple[float, ...], tuple[str, ...]]

_TENSOR_TEXT = re.compile(r"([a-z]+[0-9]*)\[([0-9x]*)\]")


@dataclass(frozen=True, slots=True)
class Tensor:
    """The type of an array: dtype name (NumPy's) and shape. Stands in for an array where values are not needed."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: object) -> Tensor:
        """The type of anything that has ``dtype`` and ``shape``. Raises QuatrefoilError for what is no array."""
        if isinstance(array, Tensor):
            return array
        dtype, shape = getattr(array, "dtype", None), getattr(array, "shape", None)
        if dtype is None or shape is None:
            raise QuatrefoilError(
                f"{type(array).__module__}.{type(array).__qualname__} is no array; give NumPy, CuPy, torch or DLPack"
            )
        return cls(dtype_name(dtype), tuple(map(int, shape)))

    @classmethod
    def parse(cls, text: str) -> Tensor:
        """Read ``float32[1x64x56x56]``. Raises ValueError for anything else."""
        match = _TENSOR_TEXT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no tensor type; write dtype[AxBxC], for example float32[1x3x8x8]")
        dims = match[2]
        return cls(match[1], tuple(int(n) for n in dims.split("x")) if dims else ())

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def numpy_dtype(self) -> np.dtype:
        return numpy_dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        return self.size * self.numpy_dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{'x'.join(map(str, self.shape))}]"


@cache
def dtype_name(dtype: Hashable) -> str:
    """NumPy's name of a dtype of any array library, without the byte order: ``float32`` for torch.float32 too."""
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def numpy_dtype(name: DTypeLike | str) -> np.dtype:
    """The NumPy dtype of a name; ``bfloat16`` comes from ml_dtypes, loaded only when it is asked for."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a floating-point result may lie from the float64 oracle, element by element:

        |result - oracle| <= relative * |oracle| + scaled * max |oracle|

    Both zero means equal to the last bit, which is what integer and fixed-point results are held to.
    """

    relative: float = 0.0
    scaled: float = 0.0

    @property
    def exact(self) -> bool:
        return self.relative == 0.0 and self.scaled == 0.0

    def violations(self, result: np.ndarray, oracle: np.ndarray) -> int:
        """The number of elements of ``result`` that are out of tolerance.

        NaN must meet NaN and infinity the same infinity. A differing shape counts every element.
        """
        if result.shape != oracle.shape:
            return max(result.size, oracle.size, 1)
        if self.exact:
            same = result == oracle
            if oracle.dtype.kind == "f":
                same |= np.isnan(result) & np.isnan(oracle)
            return int(oracle.size - np.count_nonzero(same))
        got, want = result.astype(np.float64), oracle.astype(np.float64)
        finite = np.isfinite(want)
        scale = float(np.abs(want[finite]).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            near = np.abs(got - want) <= self.relative * np.abs(want) + self.scaled * scale
        near = np.where(finite, near, (got == want) | (np.isnan(got) & np.isnan(want)))
        return int(near.size - np.count_nonzero(near))

    def error(self, result: np.ndarray, oracle: np.ndarray) -> float:
        """The largest |result - oracle| as a share of max |oracle| (0 where the oracle is all zero and met)."""
        if oracle.size == 0:
            return 0.0
        got, want = result.astype(np.float64), oracle.astype(np.float64)
        finite = np.isfinite(want)
        if not np.array_equal(finite, np.isfinite(got)):
            return math.inf
        difference = float(np.abs(got[finite] - want[finite]).max(initial=0.0))
        scale = float(np.abs(want[finite]).max(initial=0.0))
        return difference / scale if scale else difference


@dataclass(frozen=True, slots=True)
class Work:
    """What a direct evaluation costs: multiply-accumulates, and bytes read and written once."""

    macs: int
    bytes: int

    @property
    def flops(self) -> int:
        return 2 * self.macs


@dataclass(frozen=True)
class Problem:
    """One operator call in canonical form.

    ``inputs`` holds a ``Tensor`` for each positional input of the operator, ``None`` for an absent optional one.
    ``attributes`` holds every attribute the operator has, defaults and ``auto_pad`` settled, in a fixed order.
    Problems are made by ``quatrefoil.ops.canonical``, never by hand: kernels rely on what it guarantees.
    """

    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[tuple[str, AttributeValue], ...] = ()
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.op, self.inputs, self.attributes)))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _attribute_map(self) -> Mapping[str, AttributeValue]:
        return dict(self.attributes)

    def __getitem__(self, name: str) -> AttributeValue:
        return self._attribute_map[name]

    def ints(self, name: str) -> tuple[int, ...]:
        """An attribute that is a tuple of ints."""
        value = self._attribute_map[name]
        assert isinstance(value, tuple)
        return value  # type: ignore[return-value]

    def integer(self, name: str) -> int:
        value = self._attribute_map[name]
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        value = self._attribute_map[name]
        assert isinstance(value, (int, float))
        return float(value)

    def string(self, name: str) -> str:
        value = self._attribute_map[name]
        assert isinstance(value, str)
        return value

    def input(self, index: int) -> Tensor:
        """The type of an input that must be there."""
        tensor = self.inputs[index]
        assert tensor is not None
        return tensor

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    @property
    def dtype(self) -> str:
        """The dtype of the first input."""
        return self.input(0).dtype

    @cached_property
    def text(self) -> str:
        inputs = ",".join("-" if tensor is None else str(tensor) for tensor in self.inputs)
        attributes = " ".join(f"{name}={attribute_text(value)}" for name, value in self.attributes)
        return f"{self.op} {inputs} {attributes}".rstrip()

    def __str__(self) -> str:
        return self.text


def attribute_text(value: AttributeValue) -> str:
    """Tuples of ints as 1x1, of anything else with commas; floats so that they read back exactly."""
    if isinstance(value, tuple):
        if value and all(isinstance(item, int) for item in value):
            return "x".join(map(str, value))
        return ",".join(item if isinstance(item, str) else repr(item) for item in value)
    return value if isinstance(value, str) else repr(value)
