"""What a model is for: rows of data and what is wanted of them, what training lowers and what is judged by.

Data are inputs with the batch first, and labels (whole numbers, for scores (rows, classes)) or targets (numbers of the output's
shape); without either the model's own outputs are wanted. They are divided once: training sees the first part, choices are made
on the validation part, figures are of the test part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from onnx import ModelProto

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.fixed.calibration import relative
from quatrefoil.models.graph import ModelError
from quatrefoil.models.model import Model, load
from quatrefoil.random import Generator

LABELS: Final = ("labels", "targets")
"""Names of what is wanted, in an .npz or a dict."""
SHARED: Final = 0.15
"""Of the data, for validation, and again for the test, where they are not given."""
ROWS: Final = 256
"""Rows that are run at a time where nothing is trained."""
ACCURACY, AGREEMENT, ERROR = "accuracy", "agreement", "error"

Rows = Mapping[str, np.ndarray]


class Part(NamedTuple):
    """Rows of all inputs by name, and what is wanted of each."""

    inputs: dict[str, np.ndarray]
    wanted: np.ndarray

    def __len__(self) -> int:
        return len(self.wanted)

    def rows(self, chosen: Any) -> Part:
        return Part({name: array[chosen] for name, array in self.inputs.items()}, self.wanted[chosen])


@dataclass(frozen=True)
class Task:
    """output: the name of what is judged. scores: of what is trained: where the output is a Softmax, what goes into it.
    metric: accuracy (a share of labels), agreement (of the original's greatest outputs) or error (root mean square, as a share
    of the targets')."""

    train: Part
    validation: Part
    test: Part
    output: str
    scores: str
    metric: str

    @property
    def rising(self) -> bool:
        """Whether more is better."""
        return self.metric != ERROR

    def figure(self, outputs: np.ndarray, wanted: np.ndarray) -> float:
        if not self.rising:
            return relative(outputs, wanted)
        return float((outputs.argmax(1) == wanted).mean())

    def better(self, one: float, other: float) -> bool:
        return one > other if self.rising else one < other

    def evaluate(self, proto: ModelProto, part: Part) -> float:
        """What a model reaches on a part."""
        return self.figure(outputs_of(load(proto), part.inputs, self.output), part.wanted)

    def loss(self, outputs: np.ndarray, wanted: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean loss and the gradient of the scores: cross entropy of labels, or half the mean square error."""
        if self.rising:
            return cross_entropy(outputs, wanted)
        difference = outputs - wanted
        return float(np.square(difference).mean() / 2), difference / outputs.dtype.type(difference.size)


def cross_entropy(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    logarithms = log_softmax(scores)
    rows = np.arange(len(labels))
    gradient = np.exp(logarithms)
    gradient[rows, labels] -= 1
    return float(-logarithms[rows, labels].mean()), gradient / scores.dtype.type(len(labels))


def distillation(scores: np.ndarray, teacher: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """Cross entropy with the teacher's distribution at a temperature, times its square (Hinton, Vinyals and Dean, Distilling
    the knowledge in a neural network, 2015)."""
    kind = scores.dtype.type
    logarithms = log_softmax(scores / kind(temperature))
    wanted = np.exp(log_softmax(teacher / kind(temperature)))
    loss = float(-(wanted * logarithms).sum(1).mean()) * temperature**2
    return loss, (np.exp(logarithms) - wanted) * kind(temperature / len(scores))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def outputs_of(model: Model, inputs: Rows, name: str) -> np.ndarray:
    count = len(next(iter(inputs.values())))
    parts = [
        model.run({key: array[first : first + ROWS] for key, array in inputs.items()}, backend="cpu")[name]
        for first in range(0, count, ROWS)
    ]
    return np.concatenate(parts)


Given = Mapping[str, Any] | tuple[Any, ...] | str | os.PathLike[str] | np.ndarray


def task_of(
    proto: ModelProto,
    data: Given,
    validation: Given | None = None,
    test: Given | None = None,
    output: str | None = None,
    seed: int = 0,
) -> Task:
    """The task of a model on data: a dict or an .npz of the inputs by name with ``labels`` or ``targets``, a pair of the only
    input and these, or inputs alone. What is not given as validation and test is split off.

    Raises QuatrefoilError for data that are empty, unequally long, not finite or not what the model takes, for labels that
    are no classes of its output, and for targets of another shape.
    """
    model = load(proto)
    names = [value.name for value in model.outputs]
    if output is None and len(names) > 1:
        raise QuatrefoilError(
            f"compress: the model has the outputs {', '.join(names)}; say which is judged with output="
        )
    name = names[0] if output is None else output
    if name not in names:
        raise QuatrefoilError(f"compress: the model has no output {name!r}; it has {', '.join(names)}")
    whole = _read(model, data, "data")
    parts = [whole, *(None if given is None else _read(model, given, what)
                      for given, what in ((validation, "validation"), (test, "test")))]  # fmt: skip
    kinds = {part[1] is not None for part in parts if part is not None}
    if len(kinds) > 1:
        raise QuatrefoilError(
            "compress: some of the data have labels or targets and some have none; give them all or none"
        )
    first = {key: array[:2] for key, array in whole[0].items()}
    shape = np.shape(model.run(first, backend="cpu")[name])
    if not shape or shape[0] != len(next(iter(first.values()))):
        raise QuatrefoilError(
            f"compress: for {len(next(iter(first.values())))} rows the output {name!r} has shape {list(shape)}; the batch has to "
            "come first, in inputs and outputs"
        )
    scored = len(shape) == 2 and shape[1] > 1
    finished: list[Part | None] = []
    metric = ERROR
    for part in parts:
        if part is None:
            finished.append(None)
            continue
        inputs, wanted = part
        if wanted is None:
            own = outputs_of(model, inputs, name)
            wanted, metric = (own.argmax(1), AGREEMENT) if scored else (own, ERROR)
        elif wanted.dtype.kind in "iu":
            wanted, metric = _labels(wanted, shape, name), ACCURACY
        else:
            wanted = _targets(wanted, shape, name)
        if not np.isfinite(wanted).all():
            raise QuatrefoilError(f"compress: what is wanted of {name!r} holds numbers that are not finite")
        finished.append(Part(inputs, wanted))
    train, judged, kept = _divided(finished, seed)
    return Task(train, judged, kept, name, _scores(proto, name), metric)


def _read(model: Model, given: Given, what: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    names = [value.name for value in model.inputs]
    if isinstance(given, (str, os.PathLike)):
        given = _file(Path(given))
    if isinstance(given, tuple):
        if len(given) != 2 or len(names) != 1:
            raise QuatrefoilError(
                f"compress: {what} is a tuple of {len(given)} for a model with {len(names)} inputs; give a pair of its only input "
                "and labels or targets, or a dict by name"
            )
        given = {names[0]: given[0], "labels": given[1]}
    if not isinstance(given, Mapping):
        if len(names) != 1:
            raise QuatrefoilError(
                f"compress: the model has the inputs {', '.join(names)}; give {what} as a dict by name"
            )
        given = {names[0]: given}
    arrays = {name: np.asarray(array) for name, array in given.items()}
    wanted = [arrays.pop(name) for name in LABELS if name in arrays and name not in names]
    if len(wanted) > 1:
        raise QuatrefoilError(f"compress: {what} has both labels and targets; give one")
    missing = [name for name in names if name not in arrays]
    unknown = [name for name in arrays if name not in names]
    if missing or unknown:
        known = f"it takes {', '.join(names)}, and labels or targets"
        which = f"no {missing[0]!r}" if missing else f"{unknown[0]!r}, which the model does not know"
        raise QuatrefoilError(f"compress: {what} has {which}; {known}")
    lengths = {name: len(array) if array.ndim else 0 for name, array in (*arrays.items(), *zip(LABELS, wanted))}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise QuatrefoilError(f"compress: {what} has unequal numbers of rows: {listed}")
    if not min(lengths.values()):
        raise QuatrefoilError(f"compress: {what} has no rows")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise QuatrefoilError(f"compress: the input {name!r} of {what} holds numbers that are not finite")
    return {name: np.ascontiguousarray(arrays[name]) for name in names}, wanted[0] if wanted else None


def _file(path: Path) -> Mapping[str, np.ndarray] | np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError) as error:
        raise QuatrefoilError(f"{path} cannot be read as .npy or .npz: {error}") from None


def _labels(labels: np.ndarray, shape: Sequence[int], name: str) -> np.ndarray:
    if len(shape) != 2 or shape[1] < 2:
        raise QuatrefoilError(
            f"compress: labels go with scores (rows, classes); {name!r} has shape {list(shape)}: give targets of floating point"
        )
    if labels.ndim != 1:
        raise QuatrefoilError(f"compress: labels have shape {list(labels.shape)}; give one whole number for each row")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= shape[1]:
        raise QuatrefoilError(
            f"compress: labels go from {low} to {high}; the model has {shape[1]} classes, 0 to {shape[1] - 1}"
        )
    return labels.astype(np.int64)


def _targets(targets: np.ndarray, shape: Sequence[int], name: str) -> np.ndarray:
    if targets.dtype.kind != "f":
        raise QuatrefoilError(f"compress: targets are {targets.dtype}; give floating point, or whole numbers as labels")
    if targets.shape[1:] != tuple(shape[1:]):
        raise QuatrefoilError(
            f"compress: targets of a row have shape {list(targets.shape[1:])}; {name!r} gives {list(shape[1:])}"
        )
    return targets


def _divided(parts: Sequence[Part | None], seed: int) -> tuple[Part, Part, Part]:
    """Training, validation and test; what is missing comes out of the first."""
    whole, judged, kept = parts
    assert whole is not None
    if judged is not None and kept is not None:
        return whole, judged, kept
    order = Generator(seed, 1).permutation(len(whole))
    share = SHARED if judged is None else 0.0, SHARED if kept is None else 0.0
    first = len(order) - sum(round(each * len(order)) for each in share)
    second = first + round(share[0] * len(order))
    pieces = order[:first], order[first:second], order[second:]
    if not len(pieces[0]) or (judged is None and not len(pieces[1])) or (kept is None and not len(pieces[2])):
        raise QuatrefoilError(f"compress: {len(order)} rows are too few to divide into training, validation and test")
    return whole.rows(pieces[0]), judged or whole.rows(pieces[1]), kept or whole.rows(pieces[2])


def _scores(proto: ModelProto, name: str) -> str:
    maker = next((node for node in proto.graph.node if name in node.output), None)
    return maker.input[0] if maker is not None and maker.op_type == "Softmax" else name


Report = Callable[[str], None]
"""Takes a line about how it goes."""

__all__ = ["ModelError", "Part", "Report", "Task", "distillation", "outputs_of", "task_of"]
