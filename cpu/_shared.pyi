from collections.abc import Sequence

import numpy as np

from quatrefoil.ops.activations import Activation
from quatrefoil.ops.conv import ConvGeometry

class Convolution:
    def __init__(
        self,
        isa: int,
        geometry: ConvGeometry,
        activation: Activation,
        codes: np.ndarray,
        book: np.ndarray,
        finite: bool,
        bias: np.ndarray | None,
        threads: int,
        y_shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None: ...
    @property
    def packed_bytes(self) -> int: ...
    def run(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...
