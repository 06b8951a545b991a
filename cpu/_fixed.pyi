from collections.abc import Sequence

import numpy as np

from quatrefoil.cpu.fixed import Cast, Format, Products
from quatrefoil.ops.fixed import RecurrentGeometry
from quatrefoil.ops.windows import Triple, Window

class Conv:
    def __init__(
        self,
        isa: int,
        products: Products,
        batch: int,
        in_channels: int,
        window: Window,
        depth: int,
        each: int,
        reach: Triple,
        chunk: int,
        workspace: int,
        x_dtype: np.dtype,
        y_shape: tuple[int, ...],
        y_dtype: np.dtype,
    ) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...

class Pool:
    def __init__(
        self,
        isa: int,
        planes: int,
        window: Window,
        divisors: np.ndarray | None,
        narrow: bool,
        exact: bool,
        casts: tuple[Cast, Cast, Cast],
        x_dtype: np.dtype,
        y_shape: tuple[int, ...],
        y_dtype: np.dtype,
    ) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...

class Recurrent:
    def __init__(
        self,
        isa: int,
        cell: str,
        geometry: RecurrentGeometry,
        from_x: Sequence[Products],
        from_h: Sequence[Products],
        from_kept: Sequence[Products],
        functions: Sequence[Sequence[tuple[np.ndarray | None, int, int]]],
        fraction: int,
        accumulator: Format,
        state_fraction: int,
        state: Format,
        x_dtype: np.dtype,
        y_dtype: np.dtype,
    ) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...
