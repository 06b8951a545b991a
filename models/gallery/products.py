"""The products that the gallery's training loops are made of, each a call of our operators on any backend.

Vectors lie (units, count): a batch is the spatial axis of one image, so that a dense layer is a 1x1 convolution over it.
"""

from __future__ import annotations

import numpy as np

import quatrefoil as qf


def dense(
    weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None = None, activation: str | None = None
) -> np.ndarray:
    """activation(weight x + bias): weight (M, C), x (C, count), bias (M) to (M, count)."""
    return qf.conv1d(x[np.newaxis], weight[:, :, np.newaxis], bias, activation=activation)[0]


def dense_back(
    weight: np.ndarray, y: np.ndarray, bias: np.ndarray | None = None, activation: str | None = None
) -> np.ndarray:
    """activation(transposed weight y + bias): weight (M, C), y (M, count), bias (C) to (C, count)."""
    return qf.conv_transpose1d(y[np.newaxis], weight[:, :, np.newaxis], bias, activation=activation)[0]


def correlation(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """y times transposed x, the sum over the batch: y (M, count), x (C, count) to (M, C)."""
    return qf.conv1d(np.ascontiguousarray(x.T)[np.newaxis], y[:, :, np.newaxis])[0]
