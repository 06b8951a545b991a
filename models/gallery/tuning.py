"""What of a model can be chosen by trials: its settings, their ranges, and how a choice is judged.

A choice is judged on a validation split that is cut from the training data; what the model's figures are given for takes no
part. ``quatrefoil.bench.tuning`` makes the trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from quatrefoil.errors import QuatrefoilError

Settings = Mapping[str, float]
"""A model's settings by name; a whole number where its range is of whole numbers."""
Seen = Callable[[int, float], None]
"""Told the figure after each epoch (from 1); what it raises ends the trial."""
PREFIX = "settings."


class Range(NamedTuple):
    """Values of a setting from ``low`` to ``high``, both of them too; whole numbers where these are; ``log``: by factors."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', by factors' if self.log else ''}"


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned.

    ranges    each setting's, by name
    chosen    the settings that the model trains with, of either size
    figure    what ``judge`` gives, in words
    larger    whether more of it is better
    judge     ``judge(settings, small, seen)``: trains on a part of the training data and gives the figure on the rest
    train     ``train(settings, small, report)``: the model's whole training with these settings; gives a ``Trained``
    """

    ranges: Mapping[str, Range]
    chosen: Callable[[bool], Settings]
    figure: str
    larger: bool
    judge: Callable[[Settings, bool, Seen], float]
    train: Callable[[Settings, bool, Callable[[str], None]], Any]

    def settings(self, name: str, given: Mapping[str, Any], small: bool) -> Settings:
        """The chosen settings with those given in their place. Raises QuatrefoilError for one that the model ``name`` has
        not, or that lies outside its range."""
        for key, value in given.items():
            if key not in self.ranges:
                raise QuatrefoilError(f"{name} has no setting {key!r}; it has {', '.join(self.ranges)}")
            allowed = self.ranges[key]
            number = isinstance(value, int if allowed.whole else (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not allowed.low <= value <= allowed.high:
                kind = "a whole number" if allowed.whole else "a number"
                raise QuatrefoilError(f"{name}: {key} is {value!r}; it has to be {kind} from {allowed}")
        return {**self.chosen(small), **given}


def as_weights(settings: Settings) -> dict[str, np.ndarray]:
    """Settings as a checkpoint keeps them among the weights."""
    return {PREFIX + name: np.array(value) for name, value in settings.items()}


def of_weights(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of ``as_weights``."""
    return {name.removeprefix(PREFIX): array.item() for name, array in weights.items() if name.startswith(PREFIX)}
