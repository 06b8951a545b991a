"""A gated recurrent network that reads some years of sunspot numbers and names the next (Cho et al. 2014).

The split and the measure are those of echo_state.py: trained to 1920, judged by the mean squared error over the variance of
the whole series.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, data
from quatrefoil.models.gallery.chains import Step, build, weights_of
from quatrefoil.models.gallery.descent import PACES, Pace, descend, export, outputs, require_torch, say_nothing, twin
from quatrefoil.models.gallery.echo_state import (
    PERIODS,
    SCALE,
    TRAINED_TO,
    VALIDATED_FROM,
    autoregression,
    relative_variance,
)
from quatrefoil.models.gallery.entry import Beside, Entry, Report, Trained, Weights
from quatrefoil.models.gallery.tuning import Range, Seen, Settings, Tuning
from quatrefoil.random import Generator

NAME = "sunspots_gru"
WINDOW = 12
FULL, SMALL = Pace(150, 20, 7e-4), Pace(25, 25, 1e-2)
HIDDEN = {FULL: 16, SMALL: 24}


def steps(hidden: int) -> tuple[Step, ...]:
    return Step("GRU", "years", (1, hidden)), Step("Gemm", "next_year", (hidden, 1))


def pace(small: bool) -> Pace:
    return SMALL if small else FULL


def chosen(small: bool) -> Settings:
    return {"rate": pace(small).rate, "batch": pace(small).batch, "hidden": HIDDEN[pace(small)]}


def windows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Years told of, (count); the WINDOW years before each, float32 (count, WINDOW, 1); and their numbers, in hundreds."""
    years, numbers = data.sunspots()
    series = (numbers / SCALE).astype(np.float32)
    before = np.lib.stride_tricks.sliding_window_view(series, WINDOW)[:-1]
    return years[WINDOW:], np.ascontiguousarray(before)[:, :, np.newaxis], series[WINDOW:]


def learn(
    module: Any, before: np.ndarray, wanted: np.ndarray, how: Pace, report: Report, after: Callable[[int], None] | None
) -> list[float]:
    """The curve of the squared error."""
    import torch

    x, y = torch.from_numpy(before), torch.from_numpy(wanted)

    def loss(chosen: np.ndarray) -> Any:
        at = torch.from_numpy(chosen)
        return ((module(x[at])["next_year"][:, 0] - y[at]) ** 2).mean()

    return descend(NAME, module, len(x), loss, how, report, after)


def judge(settings: Settings, small: bool, seen: Seen) -> float:
    """The relative variance of the last 40 years of training, after a training on those before them."""
    require_torch()
    years, before, wanted = windows()
    earlier = years < VALIDATED_FROM
    later = (years >= VALIDATED_FROM) & (years <= TRAINED_TO)
    module = build(steps(int(settings["hidden"])), Generator(SEED, 50))
    variance = float(wanted[years <= TRAINED_TO].var())

    def figure() -> float:
        return relative_variance(outputs(module, before[later], "next_year")[:, 0], wanted[later], variance)

    how = pace(small).at(settings)
    learn(module, before[earlier], wanted[earlier], how, say_nothing, lambda epoch: seen(epoch, figure()))
    return figure()


def train(settings: Settings, small: bool, report: Report) -> Trained:
    require_torch()
    years, before, wanted = windows()
    known = years <= TRAINED_TO
    chain = build(steps(int(settings["hidden"])), Generator(SEED, 50))
    other = twin(chain)
    how = pace(small).at(settings)
    curve = learn(chain, before[known], wanted[known], how, report, None)
    learn(other, before[known], wanted[known], how, say_nothing, None)
    predicted, theirs = (outputs(module, before, "next_year")[:, 0] for module in (chain, other))
    all_years, numbers = data.sunspots()
    series = numbers / SCALE
    variance = float(series[all_years <= PERIODS[-1][1]].var())
    lagged = autoregression(series, all_years, WINDOW)
    figures, beside = {}, []
    for begin, end in PERIODS:
        inside = (years >= begin) & (years <= end)
        figures[f"relative variance {begin}-{end}"] = relative_variance(predicted[inside], wanted[inside], variance)
        for whose, values, source in (
            ("torch's own layers", theirs, "same start, batches and split"),
            (f"autoregression of {WINDOW} years", lagged, "least squares, same split"),
        ):
            found = relative_variance(values[inside], wanted[inside], variance)
            beside.append(Beside(f"{whose}, {begin}-{end}", found, source))
    tested = years > TRAINED_TO
    return Trained(
        weights_of(chain),
        figures,
        tuple(beside),
        {
            "squared error": curve,
            "sunspot number, 1921 to 2008": [float(v) for v in wanted[tested] * SCALE],
            "predicted a year ahead": [float(v) for v in predicted[tested] * SCALE],
        },
    )


def written(weights: Weights) -> onnx.ModelProto:
    about = "GRU: sunspot numbers of twelve years, in hundreds, to the next"
    hidden = weights["years.weight_hh_l0"].shape[1]
    return export(NAME, steps(hidden), weights, (WINDOW, 1), about, (1,))


ENTRIES = (
    Entry(
        NAME, "GRU, the next year of a series", "statsmodels' yearly sunspot numbers", "Cho et al. 2014",
        lambda small, report: train(chosen(small), small, report), written,
        lambda small: windows()[1][-8:],
        Tuning(
            PACES | {"hidden": Range(8, 48, log=True)}, chosen,
            f"relative variance {VALIDATED_FROM}-{TRAINED_TO}", False, judge, train,
        ),
    ),
)  # fmt: skip
