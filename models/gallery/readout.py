"""Linear readouts of features that were learned without labels: scikit-learn's logistic regression, and ridge regression.

A model without back-propagation through its layers is judged by what a linear model makes of its features, ours and
scikit-learn's alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery.data import REMEDY

ITERATIONS = 300


class Readout(NamedTuple):
    """scores = weight features + bias: weight float32 (classes, features), bias float32 (classes)."""

    weight: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """features (count, features) to (count, classes), in float64."""
        return features @ self.weight.T.astype(np.float64) + self.bias


@contextmanager
def one_thread() -> Iterator[None]:
    """The linear algebra of scikit-learn on one thread: at these sizes, threads that wait for each other take longest."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise QuatrefoilError(f"the readouts need scikit-learn; {REMEDY} adds it") from error
    with threadpool_limits(1):
        yield


def logistic(features: np.ndarray, labels: np.ndarray, strength: float = 1.0) -> Readout:
    """Multinomial logistic regression; ``strength`` is scikit-learn's C, the inverse of the penalty."""
    with one_thread(), warnings.catch_warnings():
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early on purpose, for both sides alike
        fitted = LogisticRegression(C=strength, max_iter=ITERATIONS).fit(features, labels)
    return Readout(fitted.coef_.astype(np.float32), fitted.intercept_.astype(np.float32))


def ridge(
    features: np.ndarray, targets: np.ndarray, penalty: float, sample_weights: np.ndarray | None = None
) -> Readout:
    """Least squares with a penalty on the weights but not on the bias, solved in float64.

    features (count, features), targets (count, outputs); sample_weights (count) sum to anything.
    """
    share = (
        np.full(len(features), 1 / len(features)) if sample_weights is None else sample_weights / sample_weights.sum()
    )
    x, y = features.astype(np.float64), targets.astype(np.float64)
    x_mean, y_mean = share @ x, share @ y
    x, y = x - x_mean, y - y_mean
    weighted = x * (share * len(features))[:, np.newaxis]
    solved = np.linalg.solve(weighted.T @ x + penalty * np.eye(x.shape[1]), weighted.T @ y)
    return Readout(solved.T.astype(np.float32), (y_mean - x_mean @ solved).astype(np.float32))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows whose largest score (count, classes) is the label's."""
    return float((scores.argmax(1) == labels).mean())
