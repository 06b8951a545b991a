from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from quatrefoil.ops.activations import Activation

ABSOLUTE: int
ARENA: int
ARRAYS: int
REFUSED: int
AXES: int
PERIODIC: int
FUNCTIONS: dict[str, int]

class Step: ...

def address_of(array: np.ndarray) -> int: ...
def kernel_step(run: Any) -> Step: ...
def elementwise_step(
    isa: int, function: str, activation: Activation, extents: Many[int], strides: Many[Many[int]]
) -> Step: ...
def softmax_step(isa: int, outer: int, length: int, inner: int, logarithm: bool) -> Step: ...
def lrn_step(
    isa: int, batch: int, channels: int, plane: int, before: int, behind: int, scale: float, beta: float, bias: float
) -> Step: ...
def fixed_elements_step(
    isa: int,
    function: str,
    extents: Many[int],
    strides: Many[Many[int]],
    x_bytes: Many[int],
    y_bytes: int,
    *,
    shifts: tuple[int, int] = ...,
    factor: int = ...,
    offset: int = ...,
    low: int = ...,
    high: int = ...,
    scale: float = ...,
    cast: tuple[int, tuple[int, ...]],
    below: tuple[int, tuple[int, ...]],
    table: np.ndarray | None = ...,
    table_bits: int = ...,
) -> Step: ...
def fixed_softmax_step(
    isa: int,
    rows: int,
    length: int,
    x_bytes: int,
    y_bytes: int,
    casts: Many[tuple[int, tuple[int, ...]]],
    powers: np.ndarray,
    inverses: np.ndarray,
    shifts: Many[int],
) -> Step: ...
def reorder_step(
    isa: int, batch: int, channels: int, plane: int, into_blocks: bool, of_bytes: bool = False
) -> Step: ...
def bytes_step(
    isa: int,
    function: str,
    extents: Many[int],
    strides: Many[Many[int]],
    *,
    scales: Many[tuple[float, int, bool] | None] = (),
    offset: float = 0,
    low: float = 0,
    high: float = 0,
    least: int = 0,
    most: int = 255,
    table: np.ndarray | None = None,
) -> Step: ...

class Sequence:
    arena_bytes: int
    def __init__(
        self,
        steps: Many[tuple[Step, Many[tuple[int, int]], Many[tuple[int, int]]]],
        arena: int,
        inputs: int,
        outputs: Many[tuple[tuple[int, ...], np.dtype]],
        keep: Any,
    ) -> None: ...
    def __call__(self, inputs: Many[np.ndarray]) -> list[np.ndarray] | None: ...
    def timed(self, inputs: Many[np.ndarray]) -> tuple[list[np.ndarray] | None, list[int]]: ...
