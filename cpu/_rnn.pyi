from collections.abc import Sequence

import numpy as np

from quatrefoil.ops.rnn import RecurrentGeometry

class Layer:
    def __init__(
        self,
        isa: int,
        kind: str,
        geometry: RecurrentGeometry,
        dtype: np.dtype,
        parameters: Sequence[np.ndarray | None],
        training: bool,
        form: str = "dense",
        weights: Sequence[object] | None = None,
        finite: bool = False,
        lengths: int = 4,
    ) -> None: ...
    def run(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...

class Gradient:
    def __init__(
        self,
        isa: int,
        kind: str,
        geometry: RecurrentGeometry,
        dtype: np.dtype,
        wanted: Sequence[tuple[int, tuple[int, ...]]],
        lengths: bool,
    ) -> None: ...
    def run(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...
