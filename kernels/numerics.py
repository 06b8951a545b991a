"""Number formats: what a value means, and how one is rounded into another.

Affine integers (ONNX's linear quantisation): real = scale * (integer - zero_point). Requantisation is defined here
to the last bit; every backend's integer kernels end with exactly these steps.
"""

from __future__ import annotations

import numpy as np

FLOAT_DTYPES = ("float16", "float32", "float64")


def integer_range(dtype: str) -> tuple[int, int]:
    """The least and the greatest value of an integer dtype."""
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def requantize_multiplier(x_scale: np.ndarray, w_scale: np.ndarray, y_scale: np.ndarray) -> np.ndarray:
    """float32(float32(x_scale * w_scale) / y_scale), one value for each output channel or one for all."""
    x, w, y = (np.asarray(value, np.float32) for value in (x_scale, w_scale, y_scale))
    return np.atleast_1d(np.float32(np.float32(x * w) / y)).reshape(-1)


def requantize(accumulator: np.ndarray, multiplier: np.ndarray, zero_point: int, dtype: str) -> np.ndarray:
    """int32 sums to uint8 or int8: saturate(round_half_even(float32(float32(acc) * multiplier)) + zero_point).

    accumulator: (N, M, ...) int32; multiplier: float32, one value or one for each of the M channels.
    """
    shape = (1, -1) + (1,) * (accumulator.ndim - 2)
    scaled = np.rint(accumulator.astype(np.float32) * multiplier.reshape(shape))
    low, high = integer_range(dtype)
    return np.clip(scaled.astype(np.float64) + zero_point, low, high).astype(dtype)
