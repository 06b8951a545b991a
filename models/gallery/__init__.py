"""Small trained models that come with the house, and the real data that they were trained and are tested on.

    digits_cnn    a LeNet-style convolutional network over 8x8 handwritten digits
    digits_lstm   an LSTM that reads a digit as a sequence of 8 rows of 8 pixels

The data are scikit-learn's handwritten digits (UCI's Optical Recognition of Handwritten Digits test set): 1,797 images
of 8x8 pixels from 0 to 16. Each model's script trains it and writes its ONNX file.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from quatrefoil.errors import QuatrefoilError

NAMES = ("digits_cnn", "digits_lstm")
HELD_OUT = 360
SEED = 20


class Split(NamedTuple):
    """Images as float32 (count, 8, 8) from 0 to 1 and their digits; the held-out ones took no part in training."""

    train_images: np.ndarray
    train_digits: np.ndarray
    held_out_images: np.ndarray
    held_out_digits: np.ndarray


def path(name: str) -> Path:
    """Where a gallery model's ONNX file lies. Raises QuatrefoilError for a name that the gallery has not."""
    if name not in NAMES:
        raise QuatrefoilError(f"the gallery has no model {name!r}; it has {', '.join(NAMES)}")
    return Path(__file__).with_name(f"{name}.onnx")


def digits_split() -> Split:
    """The digits, always split alike. Needs scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise QuatrefoilError("the digits come with scikit-learn; install it: pip install scikit-learn") from error
    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    images = (data.images[order] / 16).astype(np.float32)
    digits = data.target[order].astype(np.int64)
    return Split(images[HELD_OUT:], digits[HELD_OUT:], images[:HELD_OUT], digits[:HELD_OUT])
