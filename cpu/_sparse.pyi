from collections.abc import Sequence

import numpy as np

from quatrefoil.ops.sparse import Geometry, Rows

class Layer:
    def __init__(self, isa: int, geometry: Geometry, matrix: Rows, dtype: np.dtype) -> None: ...
    def run(self, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]: ...
