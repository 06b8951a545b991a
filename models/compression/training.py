"""Training a network's constants again, so that it makes good what a recipe took away.

Adam (Kingma and Ba 2015) or gradient descent with momentum over shuffled batches, the rate falling to zero with the cosine
(Loshchilov and Hutter 2017). What a recipe demands of the weights is a ``Constraint``; the best state on the validation rows is
what stays. With a teacher, the loss is that of distillation.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from quatrefoil import settings
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.network import Network
from quatrefoil.models.compression.task import ROWS, Part, Report, Task, distillation
from quatrefoil.models.differentiation import Differentiable
from quatrefoil.random import Generator

ADAM, SGD = "adam", "sgd"
DECAYS: Final = (0.9, 0.999)
TINY: Final = 1e-8

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Pace:
    """How to train. optimizer: adam or sgd, whose rate wants to be some ten times larger."""

    epochs: int = 5
    batch: int = 50
    rate: float = 1e-3
    optimizer: str = ADAM
    momentum: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in (ADAM, SGD):
            raise QuatrefoilError(f"compress: the optimizer is {self.optimizer!r}; write {ADAM} or {SGD}")
        if self.epochs < 0 or self.batch < 1:
            raise QuatrefoilError(f"compress: {self.epochs} epochs of batches of {self.batch}; give at least 0 and 1")
        if not (0 < self.rate < math.inf and 0 <= self.momentum < 1):
            raise QuatrefoilError(
                f"compress: the rate is {self.rate} and the momentum {self.momentum}; a rate lies above 0, a momentum in 0 to 1"
            )


@dataclass(frozen=True, slots=True)
class Teacher:
    """The scores that a student is to give on the training rows. share: of the teacher's loss, labels have the rest."""

    scores: np.ndarray
    temperature: float = 4.0
    share: float = 0.9

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 <= self.share <= 1):
            raise QuatrefoilError(
                f"compress: temperature {self.temperature} and teacher's share {self.share}; they lie above 0, and in 0 to 1"
            )


class Constraint(Protocol):
    """What a recipe demands. ``progress`` goes from 0 to 1; from ``settled`` on it is met."""

    @property
    def settled(self) -> float: ...

    def used(self, values: Values, progress: float) -> Values:
        """What is computed with, from the values that are kept."""
        ...

    def corrected(self, values: Values, gradients: Values, progress: float) -> Values:
        """The gradients of the values that are kept, from those of what was computed with."""
        ...


@dataclass(frozen=True, slots=True)
class Pinned:
    """Some elements stay zero. masks: True where they do, for constants by name."""

    masks: Mapping[str, np.ndarray]
    settled: float = 0.0

    def used(self, values: Values, progress: float) -> Values:
        return {name: _cleared(array, self.masks.get(name)) for name, array in values.items()}

    def corrected(self, values: Values, gradients: Values, progress: float) -> Values:
        return self.used(gradients, progress)


def _cleared(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return array if mask is None else np.where(mask, array.dtype.type(0), array)


@np.errstate(over="ignore", invalid="ignore")
def retrain(
    network: Network,
    task: Task,
    pace: Pace,
    constraint: Constraint | None = None,
    teacher: Teacher | None = None,
    names: Collection[str] | None = None,
    report: Report | None = None,
) -> list[float]:
    """Train a network in place; it ends in the best state that meets the constraint. Gives each epoch's mean loss.

    names: the constants to train, by default all that ``trainable`` finds. Raises ModelError for a model that cannot be
    differentiated, QuatrefoilError for a loss that is not finite: the network then is as it was.
    """
    constraint = Pinned(network.pinned) if constraint is None else constraint
    trained = network.trainable() if names is None else list(names)
    values: dict[str, np.ndarray] = {name: network.constants[name] for name in trained}
    if not pace.epochs or not trained:
        network.put(constraint.used(values, 1.0))
        return []
    derivative = Differentiable(network.graph(), trained)
    step = _optimizer(pace)
    rng = Generator(pace.seed, 2)
    count = len(task.train)
    total = pace.epochs * -(-count // pace.batch)
    best = constraint.used(values, 1.0)
    reached = judge(derivative, task, task.validation, best)
    curve, done = [], 0
    for epoch in range(1, pace.epochs + 1):
        order, lost = rng.permutation(count), 0.0
        for first in range(0, count, pace.batch):
            chosen = np.sort(order[first : first + pace.batch])
            progress = done / total
            run = derivative.run(task.train.rows(chosen).inputs, constraint.used(values, progress))
            loss, gradient = _loss(task, teacher, run.values[task.scores], chosen)
            if not math.isfinite(loss):
                raise QuatrefoilError(
                    f"compress: the loss is {loss} in epoch {epoch}; training stops and the model stays as it was before. "
                    "A smaller rate, or a smaller share at a time, would do"
                )
            lost += loss * len(chosen)
            found = constraint.corrected(values, run.gradients({task.scores: gradient}), progress)
            rate = pace.rate * (1 + math.cos(math.pi * progress)) / 2
            values = step(values, found, rate)
            done += 1
        curve.append(lost / count)
        if done / total >= constraint.settled:
            now = constraint.used(values, 1.0)
            judged = judge(derivative, task, task.validation, now)
            if _above(task, judged, reached):
                best, reached = now, judged
        if report is not None:
            report(f"epoch {epoch} of {pace.epochs}: loss {curve[-1]:.4f}, {task.metric} {reached[0]:.4f}")
    network.put(best)
    return curve


def judge(derivative: Differentiable, task: Task, part: Part, values: Values) -> tuple[float, float]:
    """The figure and the loss of a part."""
    scores, outputs = [], []
    for first in range(0, len(part), ROWS):
        run = derivative.run(part.rows(slice(first, first + ROWS)).inputs, values)
        scores.append(run.values[task.scores])
        outputs.append(run.values[task.output])
    return task.figure(np.concatenate(outputs), part.wanted), task.loss(np.concatenate(scores), part.wanted)[0]


def _above(task: Task, one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a state is better: by the figure, between equals by the loss."""
    return task.better(one[0], other[0]) or (one[0] == other[0] and one[1] < other[1])


def _loss(task: Task, teacher: Teacher | None, scores: np.ndarray, chosen: np.ndarray) -> tuple[float, np.ndarray]:
    loss, gradient = task.loss(scores, task.train.wanted[chosen])
    if teacher is None:
        return loss, gradient
    if task.rising:
        softer, pull = distillation(scores, teacher.scores[chosen], teacher.temperature)
    else:
        softer, pull = task.loss(scores, teacher.scores[chosen])
    share = scores.dtype.type(teacher.share)
    return teacher.share * softer + (1 - teacher.share) * loss, share * pull + (1 - share) * gradient


def _optimizer(pace: Pace) -> Callable[[Values, Values, float], dict[str, np.ndarray]]:
    first: dict[str, np.ndarray] = {}
    second: dict[str, np.ndarray] = {}
    steps = 0

    def adam(values: Values, gradients: Values, rate: float) -> dict[str, np.ndarray]:
        nonlocal steps
        steps += 1
        size = rate * math.sqrt(1 - DECAYS[1] ** steps) / (1 - DECAYS[0] ** steps)
        made = {}
        for name, value in values.items():
            kind, gradient = value.dtype.type, gradients[name]
            mean = first.setdefault(name, np.zeros_like(value))
            square = second.setdefault(name, np.zeros_like(value))
            mean += kind(1 - DECAYS[0]) * (gradient - mean)
            square += kind(1 - DECAYS[1]) * (np.square(gradient) - square)
            made[name] = value - kind(size) * mean / (np.sqrt(square) + kind(TINY))
        return made

    def descend(values: Values, gradients: Values, rate: float) -> dict[str, np.ndarray]:
        made = {}
        for name, value in values.items():
            speed = first.setdefault(name, np.zeros_like(value))
            speed *= value.dtype.type(pace.momentum)
            speed += gradients[name]
            made[name] = value - value.dtype.type(rate) * speed
        return made

    return adam if pace.optimizer == ADAM else descend


@contextmanager
def one_thread() -> Iterator[None]:
    """Kernels on one thread, and NumPy's products where threadpoolctl is installed: at the sizes of a batch, threads that wait for
    each other take longest."""
    threads = settings.num_threads()
    settings.set_num_threads(1)
    try:
        if importlib.util.find_spec("threadpoolctl") is None:
            yield
        else:
            from threadpoolctl import threadpool_limits

            with threadpool_limits(1):
                yield
    finally:
        settings.set_num_threads(threads)
