"""What a compressed model has to keep to, and the search for the smallest that does.

The search goes over a ladder of recipes, from as it is to the smallest. Files are measured without training, which their sizes
do not need; then recipes are trained in the order of a bisection over the sizes, as what a smaller one reaches a larger one does,
as a rule. Where only a size is asked for, the recipes that fit and do best untrained are trained, and the best is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.measuring import size_of
from quatrefoil.models.compression.network import Network
from quatrefoil.models.compression.pruning import GLOBAL
from quatrefoil.models.compression.recipe import Made, Recipe, carry_out
from quatrefoil.models.compression.task import ACCURACY, AGREEMENT, ERROR, Report, Task
from quatrefoil.models.compression.training import Pace

UNITS: Final = {"": 1, "B": 1, "KB": 1e3, "KIB": 1024, "MB": 1e6, "MIB": 1024**2}
SIZE, LOSS = "size", "loss"
_TEXT: Final = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([0-9.eE+-]+)\s*([A-Za-z]*)\s*")

LADDER: Final[tuple[dict[str, Any], ...]] = (
    {}, {"bits": 8}, {"prune": 0.5, "bits": 8}, {"share": 16}, {"prune": 0.7, "bits": 8}, {"prune": 0.7, "share": 16},
    {"prune": 0.8, "share": 16}, {"prune": 0.9, "share": 16}, {"prune_channels": 0.25, "prune": 0.8, "share": 16},
    {"prune_channels": 0.5, "bits": 8}, {"prune_channels": 0.5, "share": 16}, {"prune_channels": 0.5, "prune": 0.7, "share": 16},
    {"prune_channels": 0.5, "prune": 0.85, "share": 16}, {"prune_channels": 0.75, "prune": 0.7, "share": 16},
    {"prune": 0.95, "share": 16},
)  # fmt: skip
TRIED: Final = 3
"""Recipes that are trained where only a size is asked for."""


@dataclass(frozen=True, slots=True)
class Condition:
    what: str
    least: bool
    value: float

    def __str__(self) -> str:
        return f"{self.what}{'>=' if self.least else '<='}{self.value:g}"


@dataclass(frozen=True, slots=True)
class Budget:
    """Conditions on the validation figure, on what it lost beside the original's, and on the file's bytes."""

    conditions: tuple[Condition, ...]

    @staticmethod
    def parse(text: str, metric: str) -> Budget:
        """Read ``accuracy>=0.97``, ``loss<=0.01``, ``size<=100KB``, or several with commas between them."""
        found = []
        for part in text.split(","):
            match = _TEXT.fullmatch(part)
            if match is None or match[4].upper() not in UNITS or (match[4] and match[1] != SIZE):
                raise QuatrefoilError(
                    f"compress: the budget {part.strip()!r} is not understood; write {metric}>=0.97, loss<=0.01 or size<=100KB"
                )
            what, sign = match[1], match[2]
            try:
                value = float(match[3]) * UNITS[match[4].upper()]
            except ValueError:
                raise QuatrefoilError(
                    f"compress: the budget {part.strip()!r} has no number; write such as 0.97"
                ) from None
            if what not in (ACCURACY, AGREEMENT, ERROR, SIZE, LOSS):
                raise QuatrefoilError(f"compress: the budget is of {what!r}; it can be of {metric}, loss and size")
            if what in (ACCURACY, AGREEMENT, ERROR) and what != metric:
                raise QuatrefoilError(f"compress: the budget is of {what}, but these data are judged by {metric}")
            if (sign == ">=") != (what in (ACCURACY, AGREEMENT)):
                raise QuatrefoilError(
                    f"compress: the budget {part.strip()!r} is the wrong way round; turn {sign} round"
                )
            found.append(Condition(what, sign == ">=", value))
        return Budget(tuple(found))

    def missed(self, task: Task, original: float, figure: float, size: int) -> list[Condition]:
        """The conditions that a model does not meet."""
        lost = original - figure if task.rising else figure - original
        values = {SIZE: float(size), LOSS: lost, task.metric: figure}
        return [
            each for each in self.conditions
            if (values[each.what] < each.value if each.least else values[each.what] > each.value)
        ]  # fmt: skip

    @property
    def sizes(self) -> list[Condition]:
        return [each for each in self.conditions if each.what == SIZE]


class Tried(NamedTuple):
    """A recipe that was trained: what it reached on the validation rows, its file's bytes, and what it missed."""

    recipe: Recipe
    stages: list[Made]
    figure: float
    size: int
    missed: list[Condition]


def search(
    budget: Budget, held: Recipe, network: Network, task: Task, pace: Pace, report: Report | None = None
) -> tuple[Tried, list[Tried]]:
    """The smallest recipe that meets a budget, and all that were trained; where none does, the one that comes nearest.

    held: what every recipe does; the rest is searched.
    """
    say = report or (lambda line: None)
    original = task.evaluate(network.proto, task.validation)
    untrained = replace(pace, epochs=0)
    candidates = []
    for recipe in _recipes(held):
        quick = (
            recipe if recipe.scope is not None else replace(recipe, scope=GLOBAL)
        )  # nothing has to be measured for it
        stages = carry_out(quick, network, task, untrained)
        proto = stages[-1].proto if stages else network.proto
        candidates.append((size_of(proto), recipe, task.evaluate(proto, task.validation)))
    candidates.sort(key=lambda each: each[0])
    fitting = [each for each in candidates if all(each[0] <= limit.value for limit in budget.sizes)]
    say(
        f"{len(candidates)} recipes from {candidates[0][0]} to {candidates[-1][0]} bytes, {len(fitting)} of the size asked for"
    )
    tried: list[Tried] = []

    def train(recipe: Recipe) -> Tried:
        stages = carry_out(recipe, network, task, pace)
        proto = stages[-1].proto if stages else network.proto
        figure, size = task.evaluate(proto, task.validation), size_of(proto)
        tried.append(Tried(recipe, stages, figure, size, budget.missed(task, original, figure, size)))
        say(
            f"{recipe.title}: {task.metric} {figure:.4f}, {size} bytes"
            + ("" if tried[-1].missed else ", meets the budget")
        )
        return tried[-1]

    if not fitting:
        return train(candidates[0][1]), tried
    only_size = len(budget.sizes) == len(budget.conditions)
    if only_size:
        best = sorted(fitting, key=lambda each: -each[2] if task.rising else each[2])[:TRIED]
        for _, recipe, _ in best:
            train(recipe)
    else:
        low, high = 0, len(fitting) - 1
        while low <= high:
            middle = (low + high) // 2
            if train(fitting[middle][1]).missed:
                low = middle + 1
            else:
                high = middle - 1
    return _chosen(tried, task, only_size), tried


def _recipes(held: Recipe) -> list[Recipe]:
    """The ladder with what is held in place of its own, each once."""
    own = {name: value for name, value in vars(held).items() if value is not None and value is not False}
    if held.pattern is not None:
        own["prune"] = None
    found: list[Recipe] = []
    for step in LADDER:
        recipe = replace(held, **{**step, **own})
        if recipe not in found:
            found.append(recipe)
    return found


def _chosen(tried: Sequence[Tried], task: Task, by_figure: bool) -> Tried:
    """Of those that meet the budget the best, or the smallest; where none does, the best of those that miss the least."""
    sign = -1 if task.rising else 1
    met = [each for each in tried if not each.missed]
    if met and not by_figure:
        return min(met, key=lambda each: (each.size, sign * each.figure))
    return min(met or tried, key=lambda each: (len(each.missed), sign * each.figure, each.size))
