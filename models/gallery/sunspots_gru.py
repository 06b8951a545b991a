"""A gated recurrent network that reads some years of sunspot numbers and names the next (Cho et al. 2014).

The split and the measure are those of echo_state.py: trained to 1920, judged by the mean squared error over the variance of
the whole series.
"""

from __future__ import annotations

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, data
from quatrefoil.models.gallery.chains import Step, build, weights_of
from quatrefoil.models.gallery.descent import Pace, descend, export, outputs, require_torch, twin
from quatrefoil.models.gallery.echo_state import PERIODS, SCALE, TRAINED_TO, autoregression, relative_variance
from quatrefoil.models.gallery.entry import Beside, Entry, Report, Trained, Weights
from quatrefoil.random import Generator

NAME = "sunspots_gru"
WINDOW, HIDDEN = 12, 24
STEPS = (Step("GRU", "years", (1, HIDDEN)), Step("Gemm", "next_year", (HIDDEN, 1)))
FULL, SMALL = Pace(150, 25, 3e-3), Pace(25, 25, 1e-2)


def windows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Years told of, (count); the WINDOW years before each, float32 (count, WINDOW, 1); and their numbers, in hundreds."""
    years, numbers = data.sunspots()
    series = (numbers / SCALE).astype(np.float32)
    before = np.lib.stride_tricks.sliding_window_view(series, WINDOW)[:-1]
    return years[WINDOW:], np.ascontiguousarray(before)[:, :, np.newaxis], series[WINDOW:]


def train(pace: Pace, report: Report) -> Trained:
    require_torch()
    import torch

    years, before, wanted = windows()
    known = years <= TRAINED_TO
    x, y = torch.from_numpy(before[known]), torch.from_numpy(wanted[known])
    chain = build(STEPS, Generator(SEED, 50))
    other = twin(chain)

    def trained(module: torch.nn.Module, say: Report) -> list[float]:
        def loss(chosen: np.ndarray) -> torch.Tensor:
            at = torch.from_numpy(chosen)
            return ((module(x[at])["next_year"][:, 0] - y[at]) ** 2).mean()

        return descend(NAME, module, len(x), loss, pace, say)

    curve = trained(chain, report)
    trained(other, lambda line: None)
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
    return export(
        NAME, STEPS, weights, (WINDOW, 1), "GRU: sunspot numbers of twelve years, in hundreds, to the next", (1,)
    )


ENTRIES = (
    Entry(
        NAME, "GRU, the next year of a series", "statsmodels' yearly sunspot numbers", "Cho et al. 2014",
        lambda small, report: train(SMALL if small else FULL, report), written, lambda small: windows()[1][-8:],
    ),
)  # fmt: skip
