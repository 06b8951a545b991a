"""conv_weight_gradient"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.problem import Problem


def evaluate(problem: Problem, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    raise NotImplementedError
