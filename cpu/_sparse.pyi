from collections.abc import Sequence

import numpy as np

from quatrefoil.cpu.sparse_conv import Laid
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.conv import ConvGeometry
from quatrefoil.ops.sparse import Geometry, Rows

class Layer:
    def __init__(self, isa: int, geometry: Geometry, matrix: Rows, dtype: np.dtype) -> None: ...
    def run(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...

class Convolution:
    def __init__(
        self,
        isa: int,
        geometry: ConvGeometry,
        activation: Activation,
        matrix: Rows,
        bias: np.ndarray | None,
        laid: Laid,
        one_place: bool,
        threads: int,
        y_shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None: ...
    def run(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...
    def native_step(self) -> object: ...
