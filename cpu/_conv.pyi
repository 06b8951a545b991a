from collections.abc import Sequence

import numpy as np

from quatrefoil.ops.activations import Activation
from quatrefoil.ops.conv import ConvGeometry

class Run:
    def __init__(
        self,
        algorithm: str,
        isa: int,
        geometry: ConvGeometry,
        activation: Activation,
        y_shape: tuple[int, ...],
        dtype: np.dtype,
        weights: np.ndarray,
        bias: np.ndarray | None,
        x_blocked: bool = False,
        y_blocked: bool = False,
    ) -> None: ...
    def native_step(self) -> object: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...

class IntegerRun:
    def __init__(
        self,
        algorithm: str,
        isa: int,
        geometry: ConvGeometry,
        y_shape: tuple[int, ...],
        dtype: np.dtype,
        weights: np.ndarray,
        bias: np.ndarray | None,
        x_signed: bool,
        x_zero: int,
        multipliers: np.ndarray | None,
        y_zero: int,
        x_last: bool = False,
        y_last: bool = False,
    ) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...
    def native_step(self) -> object: ...

def flipped(weights: np.ndarray, groups: int) -> np.ndarray: ...

class GradientRun:
    def __init__(
        self, algorithm: str, isa: int, geometry: ConvGeometry, shape: tuple[int, ...], dtype: np.dtype
    ) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...
