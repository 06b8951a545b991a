"""Networks that name a digit: a multilayer perceptron, three convolutional networks, and four recurrent ones.

The perceptron is of two hidden layers (Rumelhart, Hinton and Williams 1986); LeNet has two convolutions, each with a pool
(LeCun et al. 1998); the residual net adds what a block was given to what it made (He et al. 2016); the depthwise one takes
apart channels and places (Howard et al. 2017, MobileNet). Recurrent networks read an image row by row, and their last state
is classified: Elman's RNN (1990), LSTM (Hochreiter and Schmidhuber 1997), GRU (Cho et al. 2014), and an RNN in both
directions (Schuster and Paliwal 1997).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, Split
from quatrefoil.models.gallery.chains import Step, build
from quatrefoil.models.gallery.data import held_out
from quatrefoil.models.gallery.descent import (
    CLASSES,
    DATA,
    PACES,
    Pace,
    classify,
    export,
    learn,
    load,
    require_torch,
    say_nothing,
)
from quatrefoil.models.gallery.entry import Beside, Entry, Report, Trained, Weights
from quatrefoil.models.gallery.readout import accuracy, one_thread
from quatrefoil.models.gallery.tuning import Range, Seen, Settings, Tuning, as_weights, of_weights
from quatrefoil.random import Generator

Steps = tuple[Step, ...]


def perceptron(side: int, hidden1: int = 128, hidden2: int = 64) -> Steps:
    return (
        Step("Gemm", "hidden1", (side * side, hidden1)), Step("Relu", "relu1"),
        Step("Gemm", "hidden2", (hidden1, hidden2)), Step("Relu", "relu2"),
        Step("Gemm", "scores", (hidden2, CLASSES)),
    )  # fmt: skip


def lenet(side: int, maps1: int = 6, maps2: int = 16, dense: int = 84) -> Steps:
    flat = maps2 * (side // 4) ** 2
    return (
        Step("Conv", "conv1", (1, maps1), 5, pad=2), Step("Tanh", "tanh1"), Step("MaxPool", "pool1", kernel=2),
        Step("Conv", "conv2", (maps1, maps2), 5, pad=2), Step("Tanh", "tanh2"), Step("MaxPool", "pool2", kernel=2),
        Step("Reshape", "flat", (flat,)), Step("Gemm", "dense1", (flat, dense)), Step("Tanh", "tanh3"),
        Step("Gemm", "scores", (dense, CLASSES)),
    )  # fmt: skip


def residual(side: int) -> Steps:
    steps: Steps = (Step("Conv", "stem", (1, 16), 3, 2 if side > 8 else 1, 1), Step("Relu", "block0"))
    for n in (1, 2):
        steps += (
            Step("Conv", f"conv{n}a", (16, 16), 3, pad=1), Step("Relu", f"relu{n}a"),
            Step("Conv", f"conv{n}b", (16, 16), 3, pad=1), Step("Add", f"add{n}", also=f"block{n - 1}"),
            Step("Relu", f"block{n}"),
        )  # fmt: skip
    flat = 16 * ((side // 2 if side > 8 else side) // 2) ** 2
    return (
        *steps,
        Step("MaxPool", "pool", kernel=2),
        Step("Reshape", "flat", (flat,)),
        Step("Gemm", "scores", (flat, CLASSES)),
    )


def depthwise(side: int) -> Steps:
    steps: Steps = (Step("Conv", "stem", (1, 16), 3, 2 if side > 8 else 1, 1), Step("Relu", "relu0"))
    for n, (inputs, outputs, stride) in enumerate(((16, 32, 2), (32, 64, 1)), 1):
        steps += (
            Step("Conv", f"depth{n}", (inputs, inputs), 3, stride, 1, inputs), Step("Relu", f"relu{n}a"),
            Step("Conv", f"point{n}", (inputs, outputs)), Step("Relu", f"relu{n}b"),
        )  # fmt: skip
    return (*steps, Step("GlobalAveragePool", "mean"), Step("Gemm", "scores", (64, CLASSES)))


def recurrent(kind: str, both_ways: bool = False) -> Callable[..., Steps]:
    return lambda side, hidden=64: (
        Step(kind, "rows", (side, hidden), both_ways=both_ways),
        Step("Gemm", "scores", (hidden * (1 + both_ways), CLASSES)),
    )


class Kind(NamedTuple):
    """How images are given, and how long to train at full and small size.

    steps     the chain for images of this side, and for widths by name
    ranges    the widths that can be tuned
    widths    those that the full size trains with, where they are not the chain's own
    """

    steps: Callable[..., Steps]
    shape: Callable[[int], tuple[int, ...]]
    full: Pace
    small: Pace
    ranges: Mapping[str, Range] = MappingProxyType({})
    widths: Mapping[str, int] = MappingProxyType({})

    def pace(self, small: bool) -> Pace:
        return self.small if small else self.full

    def chosen(self, small: bool) -> Settings:
        """What ``tuning.Tuning`` takes."""
        pace = self.pace(small)
        own = inspect.signature(self.steps).parameters
        widths = {name: own[name].default for name in self.ranges} | ({} if small else dict(self.widths))
        return {"rate": pace.rate, "batch": pace.batch, **widths}

    def chain(self, side: int, settings: Settings) -> Steps:
        """Of the chain's own widths where there are no settings, as in checkpoints of before there were any."""
        return self.steps(side, **{name: int(settings[name]) for name in self.ranges if name in settings})


def rows(side: int) -> tuple[int, ...]:
    return side, side


def plane(side: int) -> tuple[int, ...]:
    return 1, side, side


def vector(side: int) -> tuple[int, ...]:
    return (side * side,)


def beside_perceptron(split: Split, pace: Pace, hidden: tuple[int, int]) -> Beside:
    """scikit-learn's MLPClassifier with the same layers, rate, batches and epochs."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as many epochs as ours on purpose
        best = MLPClassifier(hidden, batch_size=pace.batch, learning_rate_init=pace.rate, max_iter=pace.epochs,
                             random_state=SEED)  # fmt: skip
        best.fit(split.train_images.reshape(len(split.train_images), -1), split.train_digits)
        found = best.predict_proba(split.held_out_images.reshape(len(split.held_out_images), -1))
    return Beside(
        "scikit-learn's MLPClassifier", accuracy(found, split.held_out_digits), "same layers, rate and epochs"
    )


def train(name: str, kind: Kind, settings: Settings, small: bool, report: Report) -> Trained:
    split = load(small)
    side, pace = split.train_images.shape[1], kind.pace(small).at(settings)
    trained = classify(name, kind.chain(side, settings), split, kind.shape(side), pace, report)
    trained.weights.update({"side": np.array(side)} | as_weights(settings))
    if kind.steps is perceptron:
        hidden = int(settings["hidden1"]), int(settings["hidden2"])
        trained = replace(trained, beside=(*trained.beside, beside_perceptron(split, pace, hidden)))
    return trained


def judge(name: str, kind: Kind, settings: Settings, small: bool, seen: Seen) -> float:
    """The accuracy on the validation split."""
    require_torch()
    split = held_out(load(small))
    side = split.train_images.shape[1]
    module = build(kind.chain(side, settings), Generator(SEED, 30))
    pace = kind.pace(small).at(settings)
    return learn(name, module, split, kind.shape(side), pace, say_nothing, seen)[1]


def entry(name: str, what: str, source: str, kind: Kind) -> Entry:
    def inputs(small: bool) -> np.ndarray:
        images = load(small).held_out_images[:8]
        return images.reshape(-1, *kind.shape(images.shape[1]))

    def written(weights: Weights) -> onnx.ModelProto:
        side = int(weights["side"])
        return export(name, kind.chain(side, of_weights(weights)), weights, kind.shape(side), what, (CLASSES,))

    return Entry(
        name, what, DATA, source, lambda small, report: train(name, kind, kind.chosen(small), small, report), written,
        inputs,
        Tuning(
            PACES | dict(kind.ranges), kind.chosen, "validation accuracy", True,
            lambda settings, small, seen: judge(name, kind, settings, small, seen),
            lambda settings, small, report: train(name, kind, settings, small, report),
        ),
    )  # fmt: skip


PERCEPTRON = {"hidden1": Range(32, 256, log=True), "hidden2": Range(16, 128, log=True)}
LENET = {"maps1": Range(4, 12), "maps2": Range(8, 32), "dense": Range(32, 128, log=True)}
RECURRENT = {"hidden": Range(16, 128, log=True)}

ENTRIES = (
    entry("perceptron", "multilayer perceptron, two hidden layers", "Rumelhart, Hinton and Williams 1986",
          Kind(perceptron, vector, Pace(10, 16, 2.7e-3), Pace(10), PERCEPTRON,
               {"hidden1": 108, "hidden2": 61})),
    entry("lenet", "LeNet, two convolutions and max pools", "LeCun et al. 1998",
          Kind(lenet, plane, Pace(10, 25, 2.6e-3), Pace(5), LENET, {"maps1": 6, "maps2": 23, "dense": 50})),
    entry("residual", "residual network, two blocks", "He et al. 2016",
          Kind(residual, plane, Pace(10, rate=1e-3), Pace(3, rate=4e-3))),
    entry("depthwise", "depthwise separable convolutional network", "Howard et al. 2017",
          Kind(depthwise, plane, Pace(15, rate=3e-3), Pace(6, rate=8e-3))),
    entry("rnn", "recurrent network, rows of an image", "Elman 1990",
          Kind(recurrent("RNN"), rows, Pace(15), Pace(6, rate=6e-3), RECURRENT)),
    entry("lstm", "LSTM, rows of an image", "Hochreiter and Schmidhuber 1997",
          Kind(recurrent("LSTM"), rows, Pace(15), Pace(6, rate=1e-2), RECURRENT)),
    entry("gru", "GRU, rows of an image", "Cho et al. 2014",
          Kind(recurrent("GRU"), rows, Pace(15), Pace(6, rate=1e-2), RECURRENT)),
    entry("rnn_both_ways", "bidirectional recurrent network, rows of an image", "Schuster and Paliwal 1997",
          Kind(recurrent("RNN", True), rows, Pace(15), Pace(6, rate=6e-3), RECURRENT)),
)  # fmt: skip
