from collections.abc import Sequence

import numpy as np

from quatrefoil.ops.pool import PoolGeometry, UnpoolGeometry

class Pool:
    def __init__(
        self,
        algorithm: str,
        isa: int,
        geometry: PoolGeometry,
        kind: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        *,
        with_indices: bool = ...,
        storage_order: int = ...,
        count_include_pad: int = ...,
        p: int = ...,
        row_weights: np.ndarray,
        column_weights: np.ndarray,
        first_columns: np.ndarray,
        workspace: tuple[int, int, int],
        channels: int = ...,
    ) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...

class Unpool:
    def __init__(self, isa: int, geometry: UnpoolGeometry, shape: tuple[int, ...], dtype: np.dtype) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...

class PoolGradient:
    def __init__(
        self,
        algorithm: str,
        isa: int,
        geometry: PoolGeometry,
        kind: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        *,
        count_include_pad: int = ...,
        p: int = ...,
        row_weights: np.ndarray,
        column_weights: np.ndarray,
        holders: Sequence[np.ndarray],
        workspace: tuple[int, int, int, int, int],
    ) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...

class UnpoolGradient:
    def __init__(
        self, isa: int, geometry: UnpoolGeometry, places: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> None: ...
    def __call__(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...
