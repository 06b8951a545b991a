"""Two networks that tell a winter's day from a summer's by the power that Italy took in each of its 24 hours.

A fully convolutional net: three convolutions over the hours and their mean (Wang, Yan and Oates 2017, without batch
normalisation), and a GRU that reads the day in both directions. The archive's split leaves 67 days to train with, so that
settings are judged by the mean over five validation splits, each of another fifth of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.chains import Step, build
from quatrefoil.models.gallery.data import VALIDATION_PARTS
from quatrefoil.models.gallery.descent import PACES, Pace, classify, export, learn, require_torch, say_nothing
from quatrefoil.models.gallery.entry import Beside, Entry, Report, Trained, Weights
from quatrefoil.models.gallery.tuning import Range, Seen, Settings, Tuning, as_weights, of_weights
from quatrefoil.random import Generator

HOURS, SEASONS = 24, 2
PUBLISHED = "Fawaz et al. 2019, mean of ten runs, same split"
Steps = tuple[Step, ...]


def convolutional(maps: int) -> Steps:
    return (
        Step("Conv", "conv1", (1, maps), 7, pad=3, axes=1), Step("Relu", "relu1"),
        Step("Conv", "conv2", (maps, 2 * maps), 5, pad=2, axes=1), Step("Relu", "relu2"),
        Step("Conv", "conv3", (2 * maps, maps), 3, pad=1, axes=1), Step("Relu", "relu3"),
        Step("GlobalAveragePool", "mean"), Step("Gemm", "scores", (maps, SEASONS)),
    )  # fmt: skip


def both_ways(hidden: int) -> Steps:
    return Step("GRU", "hours", (1, hidden), both_ways=True), Step("Gemm", "scores", (2 * hidden, SEASONS))


class Kind(NamedTuple):
    """width names the setting that ``steps`` takes."""

    steps: Callable[[int], Steps]
    width: str
    widths: Range
    chosen: Mapping[str, float]
    shape: tuple[int, int]
    epochs: int
    small_epochs: int

    def pace(self, settings: Settings, small: bool) -> Pace:
        return Pace(self.small_epochs if small else self.epochs).at(settings)

    def chain(self, settings: Settings) -> Steps:
        return self.steps(int(settings[self.width]))


def nearest(split: Split, warped: bool) -> float:
    """The accuracy of the nearest neighbour, by Euclid's distance or by dynamic time warping (Sakoe and Chiba 1978)."""
    one, other = split.held_out_images.astype(np.float64), split.train_images.astype(np.float64)
    if warped:
        above = np.full((len(one), len(other), HOURS + 1), np.inf)  # the least cost so far, hour by hour of the other
        above[:, :, 0] = 0
        for i in range(HOURS):
            costs = (one[:, np.newaxis, i, np.newaxis] - other) ** 2
            row = np.full_like(above, np.inf)
            for j in range(HOURS):
                before = np.minimum(above[:, :, j], np.minimum(above[:, :, j + 1], row[:, :, j]))
                row[:, :, j + 1] = costs[:, :, j] + before
            above = row
        distances = above[:, :, -1]
    else:
        distances = ((one[:, np.newaxis] - other) ** 2).sum(2)
    return float((split.train_digits[distances.argmin(1)] == split.held_out_digits).mean())


def train(name: str, kind: Kind, settings: Settings, small: bool, report: Report) -> Trained:
    split = data.power()
    trained = classify(name, kind.chain(settings), split, kind.shape, kind.pace(settings, small), report)
    trained.weights.update(as_weights(settings))
    beside = (
        *trained.beside,
        Beside("nearest neighbour", nearest(split, False), "computed here, same split"),
        Beside("nearest neighbour, dynamic time warping", nearest(split, True), "computed here, same split"),
        Beside("fully convolutional net", 0.961, PUBLISHED),
        Beside("residual net", 0.963, PUBLISHED),
    )
    return Trained(trained.weights, trained.figures, beside, trained.curves)


def judge(name: str, kind: Kind, settings: Settings, small: bool, seen: Seen) -> float:
    """The mean accuracy over the validation splits, of which ``seen`` is told after each of them."""
    require_torch()
    split, found = data.power(), []
    fifth = len(split.train_digits) // VALIDATION_PARTS
    for number in range(VALIDATION_PARTS):
        days, seasons = (np.roll(part, number * fifth, 0) for part in (split.train_images, split.train_digits))
        cut = data.held_out(split._replace(train_images=days, train_digits=seasons))
        module = build(kind.chain(settings), Generator(SEED, 30))
        found.append(learn(name, module, cut, kind.shape, kind.pace(settings, small), say_nothing)[1])
        seen(number + 1, float(np.mean(found)))
    return float(np.mean(found))


def entry(name: str, what: str, source: str, kind: Kind) -> Entry:
    def written(weights: Weights) -> onnx.ModelProto:
        return export(name, kind.chain(of_weights(weights)), weights, kind.shape, what, (SEASONS,))

    return Entry(
        name, what, "aeon's ItalyPowerDemand", source,
        lambda small, report: train(name, kind, kind.chosen, small, report),
        written,
        lambda small: data.power().held_out_images[:8].reshape(-1, *kind.shape),
        Tuning(
            PACES | {kind.width: kind.widths}, lambda small: kind.chosen, "validation accuracy, mean of five splits", True,
            lambda settings, small, seen: judge(name, kind, settings, small, seen),
            lambda settings, small, report: train(name, kind, settings, small, report),
        ),
    )  # fmt: skip


ENTRIES = (
    entry(
        "power_conv", "fully convolutional net, a day's power demand to its season", "Wang, Yan and Oates 2017",
        Kind(convolutional, "maps", Range(8, 64, log=True), {"rate": 2e-3, "batch": 16, "maps": 24}, (1, HOURS), 100, 30),
    ),
    entry(
        "power_gru", "bidirectional GRU, a day's power demand to its season", "Cho et al. 2014, Schuster and Paliwal 1997",
        Kind(both_ways, "hidden", Range(8, 48, log=True), {"rate": 5e-3, "batch": 16, "hidden": 16}, (HOURS, 1), 60, 15),
    ),
)  # fmt: skip
