"""What a compressed model has to keep to, and the search for the smallest that does.

The search goes over a ladder of recipes, from as it is to the smallest. Files, times, cycles and energies are measured without
training, which they do not need; then recipes that keep to these are trained in the order of a bisection over the sizes, as what a
smaller one reaches a larger one does, as a rule. Where nothing is asked of the figure, the recipes that fit and do best untrained
are trained, and the best is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.measuring import Subject, simulated, size_of, timed
from quatrefoil.models.compression.network import Network
from quatrefoil.models.compression.pruning import GLOBAL
from quatrefoil.models.compression.recipe import Made, Recipe, carry_out
from quatrefoil.models.compression.task import ACCURACY, AGREEMENT, ERROR, Report, Task
from quatrefoil.models.compression.training import Pace
from quatrefoil.models.model import load

UNITS: Final = {"": 1, "B": 1, "KB": 1e3, "KIB": 1024, "MB": 1e6, "MIB": 1024**2}
SIZE, LOSS = "size", "loss"
TIME, CYCLES, ENERGY = "time_ms", "cycles", "energy_uj"
LIMITS: Final = {SIZE: "bytes", TIME: "ms", CYCLES: "cycles", ENERGY: "uJ"}
"""What a model itself costs, whatever it reaches, and what it is counted in."""

_TEXT: Final = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([0-9.eE+-]+)\s*([A-Za-z]*)\s*")

LADDER: Final[tuple[dict[str, Any], ...]] = (
    {}, {"bits": 8}, {"prune": 0.5, "bits": 8}, {"share": 16}, {"prune": 0.7, "bits": 8}, {"prune": 0.7, "share": 16},
    {"prune": 0.8, "share": 16}, {"prune": 0.9, "share": 16}, {"prune_channels": 0.25, "prune": 0.8, "share": 16},
    {"prune_channels": 0.5, "bits": 8}, {"prune_channels": 0.5, "share": 16}, {"prune_channels": 0.5, "prune": 0.7, "share": 16},
    {"prune_channels": 0.5, "prune": 0.85, "share": 16}, {"prune_channels": 0.75, "prune": 0.7, "share": 16},
    {"prune": 0.95, "share": 16},
)  # fmt: skip
TRIED: Final = 3
"""Recipes that are trained where nothing is asked of the figure."""


@dataclass(frozen=True, slots=True)
class Condition:
    what: str
    least: bool
    value: float

    def __str__(self) -> str:
        return f"{self.what}{'>=' if self.least else '<='}{self.value:.12g}"


@dataclass(frozen=True, slots=True)
class Budget:
    """Conditions on the validation figure, on what it lost beside the original's, on the file's bytes, on the time of a row on
    the CPU, and on cycles and energy of a row on the simulated design."""

    conditions: tuple[Condition, ...]

    @staticmethod
    def parse(text: str, metric: str) -> Budget:
        """Read ``accuracy>=0.97``, ``loss<=0.01``, ``size<=100KB``, ``time_ms<=0.5``, ``cycles<=20000``, ``energy_uj<=5``, or
        several with commas between them."""
        found = []
        for part in text.split(","):
            match = _TEXT.fullmatch(part)
            if match is None or match[4].upper() not in UNITS or (match[4] and match[1] != SIZE):
                raise QuatrefoilError(
                    f"compress: the budget {part.strip()!r} is not understood; write {metric}>=0.97, loss<=0.01, "
                    "size<=100KB, time_ms<=0.5, cycles<=20000 or energy_uj<=5"
                )
            what, sign = match[1], match[2]
            try:
                value = float(match[3]) * UNITS[match[4].upper()]
            except ValueError:
                raise QuatrefoilError(
                    f"compress: the budget {part.strip()!r} has no number; write such as 0.97"
                ) from None
            if what not in (ACCURACY, AGREEMENT, ERROR, LOSS, *LIMITS):
                raise QuatrefoilError(
                    f"compress: the budget is of {what!r}; it can be of {metric}, loss, {', '.join(LIMITS)}"
                )
            if what in (ACCURACY, AGREEMENT, ERROR) and what != metric:
                raise QuatrefoilError(f"compress: the budget is of {what}, but these data are judged by {metric}")
            if (sign == ">=") != (what in (ACCURACY, AGREEMENT)):
                raise QuatrefoilError(
                    f"compress: the budget {part.strip()!r} is the wrong way round; turn {sign} round"
                )
            if what in LIMITS and not value > 0:
                raise QuatrefoilError(f"compress: the budget {part.strip()!r} leaves nothing; give a number above 0")
            found.append(Condition(what, sign == ">=", value))
        return Budget(tuple(found))

    def missed(self, task: Task, original: float, figure: float, costs: Mapping[str, float]) -> list[Condition]:
        """The conditions that a model does not meet. costs: as ``costs_of``."""
        lost = original - figure if task.rising else figure - original
        values = {**costs, LOSS: lost, task.metric: figure}
        return [
            each for each in self.conditions
            if (values[each.what] < each.value if each.least else values[each.what] > each.value)
        ]  # fmt: skip

    @property
    def limits(self) -> list[Condition]:
        return [each for each in self.conditions if each.what in LIMITS]

    def fits(self, costs: Mapping[str, float]) -> bool:
        return all(costs[each.what] <= each.value for each in self.limits)

    def costs_of(self, subjects: Sequence[Subject], task: Task, design: str | None) -> list[dict[str, float]]:
        """The sizes of models, and what else the budget is of; infinite where the design cannot take a whole model. Raises
        QuatrefoilError where it can take none. design: None where the budget needs none."""
        asked = {each.what for each in self.limits}
        row = {name: np.ascontiguousarray(array[:1]) for name, array in task.validation.inputs.items()}
        found = [{SIZE: float(size_of(subject.proto))} for subject in subjects]
        if TIME in asked:
            seconds = timed([load(subject.proto) for subject in subjects], row)
            for costs, each in zip(found, np.median(seconds, 0)):
                costs[TIME] = float(each) * 1e3
        if design is not None and (on_chip := sorted(asked & {CYCLES, ENERGY})):
            chips = [simulated(subject, row, design) for subject in subjects]
            if all(chip.cannot for chip in chips):
                raise QuatrefoilError(
                    f"compress: the budget is of {on_chip[0]}, but {design} cannot take the model: {chips[0].cannot}"
                )
            for costs, chip in zip(found, chips):
                whole = not chip.cannot and chip.cycles is not None and chip.energy_pj is not None
                costs[CYCLES] = float(chip.cycles or 0) if whole else np.inf
                costs[ENERGY] = (chip.energy_pj or 0.0) / 1e6 if whole else np.inf
        return found


class Tried(NamedTuple):
    """A recipe that was trained: what it reached on the validation rows, its file's bytes and what else the budget is of, and
    what it missed."""

    recipe: Recipe
    stages: list[Made]
    figure: float
    costs: Mapping[str, float]
    missed: list[Condition]

    @property
    def size(self) -> int:
        return int(self.costs[SIZE])


def search(
    budget: Budget,
    held: Recipe,
    network: Network,
    task: Task,
    pace: Pace,
    report: Report | None = None,
    design: str | None = None,
) -> tuple[Tried, list[Tried]]:
    """The smallest recipe that meets a budget, and all that were trained; where none does, the one that comes nearest.

    held: what every recipe does; the rest is searched. design: of the simulated chip, for cycles and energy.
    """
    say = report or (lambda line: None)
    for limit in budget.limits:
        if limit.what in (CYCLES, ENERGY) and design is None:
            raise QuatrefoilError(f"compress: the budget is of {limit.what}, which a design takes; name a design")
    original = task.evaluate(network.proto, task.validation)
    untrained = replace(pace, epochs=0)
    recipes = _recipes(held)
    subjects = []
    for recipe in recipes:
        quick = (
            recipe if recipe.scope is not None else replace(recipe, scope=GLOBAL)
        )  # nothing has to be measured for it
        subjects.append(_subject(carry_out(quick, network, task, untrained), network))
    figures = [task.evaluate(subject.proto, task.validation) for subject in subjects]
    # the same size has the order of the ladder, as times would give it another one each time
    candidates = sorted(zip(budget.costs_of(subjects, task, design), recipes, figures), key=lambda each: each[0][SIZE])
    fitting = [each for each in candidates if budget.fits(each[0])]
    ranges = [
        f"{min(costs[name] for costs, *_ in candidates):.6g} to {max(costs[name] for costs, *_ in candidates):.6g} {unit}"
        for name, unit in LIMITS.items()
        if name in candidates[0][0]
    ]
    say(f"{len(candidates)} recipes, {', '.join(ranges)}: {len(fitting)} keep to the budget's limits")
    tried: list[Tried] = []

    def train(recipe: Recipe) -> Tried:
        stages = carry_out(recipe, network, task, pace)
        subject = _subject(stages, network)
        figure, (costs,) = task.evaluate(subject.proto, task.validation), budget.costs_of([subject], task, design)
        tried.append(Tried(recipe, stages, figure, costs, budget.missed(task, original, figure, costs)))
        told = ", ".join(f"{costs[name]:.6g} {unit}" for name, unit in LIMITS.items() if name in costs)
        say(f"{recipe.title}: {task.metric} {figure:.4f}, {told}" + ("" if tried[-1].missed else ", meets the budget"))
        return tried[-1]

    if not fitting:
        nearest = min(candidates, key=lambda each: max(each[0][limit.what] / limit.value for limit in budget.limits))
        return train(nearest[1]), tried
    only_limits = len(budget.limits) == len(budget.conditions)
    if only_limits:
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
    return _chosen(tried, task, only_limits), tried


def _subject(stages: Sequence[Made], network: Network) -> Subject:
    """What comes out of a recipe's stages."""
    return stages[-1].subject if stages else Subject(network.proto, network.proto)


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
