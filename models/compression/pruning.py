"""Weights that become zero: the smallest by magnitude, a share of each layer or of all, and N of every M in a row.

A share grows while the network trains, as in Zhu and Gupta, To prune, or not to prune (2017). How much of each layer goes is
measured: what the loss on validation rows becomes with one layer pruned, for several shares. N:M patterns are chosen anew in every
step among weights that all go on learning: Zhou et al., Learning N:M fine-grained structured sparse neural networks from scratch
(2021), which is what their decay is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.network import Network, Weight
from quatrefoil.models.compression.task import Task
from quatrefoil.models.compression.training import Values, judge
from quatrefoil.models.differentiation import Differentiable

LEVELS: Final = (0.3, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
"""Shares of a layer that are tried."""
JUDGED: Final = 400
"""Validation rows that a layer's sensitivity is measured on."""
GROWN: Final = 0.6
"""Of the training, when a share has reached its end."""
STAGES: Final = 40
"""How often masks are chosen until then."""
DECAY: Final = 2e-4
"""Of weights outside the pattern, in each step (Zhou et al. 2021)."""

SENSITIVITY, UNIFORM, GLOBAL = "sensitivity", "uniform", "global"
SCOPES: Final = (SENSITIVITY, UNIFORM, GLOBAL)


def checked_share(name: str, share: float) -> float:
    if not 0 < share < 1:
        raise QuatrefoilError(f"compress: {name} is {share}; a share lies between 0 and 1, such as 0.8")
    return float(share)


def smallest(array: np.ndarray, share: float) -> np.ndarray:
    """True at the share of elements of the least magnitude; the count is rounded down."""
    count = int(share * array.size + 1e-9)
    mask = np.zeros(array.size, bool)
    mask[np.argsort(np.abs(array.reshape(-1)), kind="stable")[:count]] = True
    return mask.reshape(array.shape)


def together(arrays: Mapping[str, np.ndarray], share: float) -> dict[str, float]:
    """The share of each array when the smallest elements of all together go."""
    sizes = np.concatenate([np.abs(array).reshape(-1) for array in arrays.values()])
    gone = smallest(sizes, share)
    ends = np.cumsum([array.size for array in arrays.values()])[:-1]
    return {name: float(part.mean()) for name, part in zip(arrays, np.split(gone, ends))}


@dataclass
class Magnitude:
    """The smallest elements of each weight are zero. shares: by name; what is zero learns nothing."""

    shares: Mapping[str, float]
    settled: float = GROWN
    _masks: dict[str, np.ndarray] = field(default_factory=dict)
    _stage: int = -1

    def used(self, values: Values, progress: float) -> Values:
        """The cubic schedule; the masks stand once it has ended."""
        stage = STAGES if progress >= GROWN else int(progress / GROWN * STAGES)
        if stage > self._stage:
            grown = 1 - (1 - stage / STAGES) ** 3
            self._masks = self.masks(values, grown)
            self._stage = stage if progress < 1 else self._stage
        masks = self._masks
        return {name: np.where(masks[name], 0, a).astype(a.dtype) if name in masks else a for name, a in values.items()}

    def masks(self, values: Values, grown: float = 1.0) -> dict[str, np.ndarray]:
        return {name: smallest(values[name], share * grown) for name, share in self.shares.items()}

    def corrected(self, values: Values, gradients: Values, progress: float) -> Values:
        masks = self._masks
        return {
            name: np.where(masks[name], 0, a).astype(a.dtype) if name in masks else a for name, a in gradients.items()
        }


@dataclass(frozen=True)
class Pattern:
    """Of every ``of`` weights in a row of what a layer sums, ``kept`` are not zero. The last group of a row may be shorter."""

    kept: int
    of: int
    weights: Sequence[Weight]
    settled: float = 0.0
    _latest: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, compare=False)
    """The mask of each weight as it was last seen."""

    @staticmethod
    def parse(text: str, weights: Sequence[Weight]) -> Pattern:
        """Read ``2:4``. Raises QuatrefoilError for anything that is no such pattern."""
        parts = text.split(":")
        if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
            raise QuatrefoilError(f"compress: the pattern is {text!r}; write kept:of, such as 2:4")
        kept, of = map(int, parts)
        if not 0 < kept < of:
            raise QuatrefoilError(
                f"compress: the pattern is {text!r}; of every {of} weights at least 1 is kept, not all"
            )
        return Pattern(kept, of, tuple(weights))

    def mask(self, weight: Weight, array: np.ndarray) -> np.ndarray:
        """True where an element is zero."""
        known = self._latest.get(weight.name)
        if known is not None and known[0] is array:
            return known[1]
        rows = np.abs(weight.rows(array))
        short = -rows.shape[1] % self.of
        groups = np.pad(rows, ((0, 0), (0, short)), constant_values=-1).reshape(-1, self.of)
        least = np.partition(groups, self.of - self.kept, 1)[:, self.of - self.kept]
        gone = groups < least[:, np.newaxis]
        for place in np.flatnonzero((~gone).sum(1) > self.kept):  # equal ones: the first stay
            order = np.argsort(-groups[place], kind="stable")
            gone[place, order[self.kept :]] = True
        mask = weight.from_rows(gone.reshape(len(rows), -1)[:, : rows.shape[1]], array.shape)
        self._latest[weight.name] = array, mask
        return mask

    def used(self, values: Values, progress: float) -> Values:
        found = dict(values)
        for weight in self.weights:
            if weight.name in found:
                array = found[weight.name]
                found[weight.name] = np.where(self.mask(weight, array), 0, array).astype(array.dtype)
        return found

    def corrected(self, values: Values, gradients: Values, progress: float) -> Values:
        """All weights get the gradient of what was computed with; those that were left out also decay."""
        found = dict(gradients)
        for weight in self.weights:
            if weight.name in found:
                array = values[weight.name]
                found[weight.name] = gradients[weight.name] + array.dtype.type(DECAY) * np.where(
                    self.mask(weight, array), array, 0
                ).astype(array.dtype)
        return found


def sensitivities(network: Network, task: Task, names: Sequence[str]) -> dict[str, dict[float, float]]:
    """For each weight alone and each of LEVELS: the loss on validation rows, above that of the whole network."""
    derivative = Differentiable(network.graph(), names)
    part = task.validation.rows(slice(0, JUDGED))
    base = judge(derivative, task, part, {})[1]
    found: dict[str, dict[float, float]] = {}
    for name in names:
        array = network.constants[name]
        found[name] = {}
        for level in LEVELS:
            pruned = np.where(smallest(array, level), 0, array).astype(array.dtype)
            loss = judge(derivative, task, part, {name: pruned})[1]
            found[name][level] = max(loss - base, 0.0) if np.isfinite(loss) else np.inf
    return found


def divide(losses: Mapping[str, Mapping[float, float]], sizes: Mapping[str, int], share: float) -> dict[str, float]:
    """Shares of the weights, by name, that together are the share of all.

    Always the weight goes on whose next step, along the convex hull of its losses, costs the least for each element; the last step
    is taken in part. Beyond the last level weights go on alike.
    """
    total, gone = share * sum(sizes.values()), 0.0
    shares = dict.fromkeys(sizes, 0.0)
    while gone < total - 1e-9:
        steps = [
            ((loss - losses[name].get(shares[name], 0.0)) / ((level - shares[name]) * sizes[name]), name, level)
            for name in sizes for level, loss in losses[name].items() if level > shares[name]
        ]  # fmt: skip
        if not steps:
            kept = sum(sizes[name] * (1 - shares[name]) for name in sizes)
            left = (sum(sizes.values()) - total) / kept
            return {name: 1 - (1 - taken) * left for name, taken in shares.items()}
        _, name, level = min(steps)
        step = min((level - shares[name]) * sizes[name], total - gone)
        shares[name] += step / sizes[name] if step < (level - shares[name]) * sizes[name] else level - shares[name]
        gone += step
    return shares
