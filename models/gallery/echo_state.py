"""An echo state network: a sparse random reservoir that is never trained, and a ridge regression that reads it.

Jaeger, "The 'echo state' approach to analysing and training recurrent neural networks" (2001); leaky units as in Jaeger,
Lukosevicius, Popovici and Siewert (2007). It predicts next year's sunspot number:

    h(t) = (1 - leak) h(t - 1) + leak tanh(W x(t) + R h(t - 1));  x(t + 1) = readout [x(t), h(t)]

R has a few values in each row and is scaled to a spectral radius; its product is the kernel of ``qf.sparse_rnn``, which reads
the stored values alone. ONNX has no such operator, but a leaky unit is a gated recurrent unit whose update gate is held at
1 - leak and whose reset gate is held at 1 by their biases: the network leaves as an ONNX GRU. Radius, leak and penalty are
chosen on the last 40 years of training; no year after 1920 takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx

import quatrefoil as qf
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import SEED, data
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights
from quatrefoil.models.gallery.products import dense
from quatrefoil.models.gallery.readout import ridge
from quatrefoil.random import Generator

SCALE = 100.0
WASHED_OUT = 20
"""First years, whose states still remember that they began at 0."""
TRAINED_TO, VALIDATED_FROM = 1920, 1881
PERIODS = ((1921, 1955), (1956, 1979))
"""The two test periods that are customary for this series."""
SHUT = 40.0
"""A bias that holds a gate at 1: sigmoid(40) is 1 in float32."""


@dataclass(frozen=True)
class Reservoir:
    """columns and values (units, degree) of the sparse recurrent matrix, w (units) of the input; float32."""

    columns: np.ndarray
    values: np.ndarray
    w: np.ndarray
    leak: float

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """R as qf.sparse_rnn takes it: values, columns and offsets."""
        units, degree = self.columns.shape
        offsets = np.arange(0, units * degree + 1, degree, dtype=np.int32)
        return self.values.reshape(-1), self.columns.astype(np.int32).reshape(-1), offsets

    def matrix(self) -> np.ndarray:
        """R in full, (units, units)."""
        full = np.zeros((len(self.columns),) * 2, np.float32)
        np.add.at(full, (np.arange(len(self.columns))[:, np.newaxis], self.columns), self.values)
        return full


def reservoir(units: int, degree: int, radius: float, leak: float, rng: Generator) -> Reservoir:
    """A random reservoir whose matrix has this spectral radius. Raises QuatrefoilError for a leak outside (0, 1]."""
    if not 0 < leak <= 1 or not 0 < degree <= units or radius <= 0:
        raise QuatrefoilError(
            f"echo_state: leak {leak}, degree {degree} of {units} units, radius {radius}; leak has to lie in (0, 1], "
            "degree in 1 to the units, radius above 0"
        )
    columns = rng.integers(0, units, (units, degree))
    made = Reservoir(columns, 2 * rng.uniform((units, degree)) - 1, rng.uniform(units) - np.float32(0.5), leak)
    largest = float(np.abs(np.linalg.eigvals(made.matrix().astype(np.float64))).max())
    return Reservoir(columns, made.values * np.float32(radius / largest), made.w, leak)


def as_gru(r: Reservoir) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ONNX's W (1, 3 units, 1), R (1, 3 units, units) and B (1, 6 units) with gates z, r, h: z and r by bias alone."""
    units = len(r.w)
    w, matrix, b = (np.zeros((1, *shape), np.float32) for shape in ((3 * units, 1), (3 * units, units), (6 * units,)))
    w[0, 2 * units :, 0], matrix[0, 2 * units :] = r.w, r.matrix()
    b[0, :units] = np.log((1 - r.leak) / r.leak) if r.leak < 1 else -SHUT
    b[0, units : 2 * units] = SHUT
    return w, matrix, b


def states(r: Reservoir, series: np.ndarray) -> np.ndarray:
    """The reservoir's states over a series (years), float32 (years, units)."""
    arriving = dense(r.w[:, np.newaxis], series.astype(np.float32)[np.newaxis]).T
    return qf.sparse_rnn(np.ascontiguousarray(arriving)[:, np.newaxis], *r.rows(), leak=r.leak)[:, 0]


def inputs_and_states(series: np.ndarray, h: np.ndarray) -> np.ndarray:
    return np.concatenate([series[:, np.newaxis].astype(np.float32), h], 1)


def relative_variance(predicted: np.ndarray, wanted: np.ndarray, variance: float) -> float:
    """The mean squared error over the variance of the whole series (the measure that papers on this series give)."""
    return float(((predicted - wanted) ** 2).mean() / variance)


def autoregression(series: np.ndarray, years: np.ndarray, lags: int) -> np.ndarray:
    """Next year's number by least squares of the last ``lags``, trained to TRAINED_TO; predictions for years[lags:]."""
    rows = np.stack([series[lag : len(series) - lags + lag] for lag in range(lags)], 1)
    wanted = series[lags:]
    known = years[lags:] <= TRAINED_TO
    fitted = ridge(rows[known], wanted[known, np.newaxis], 1e-8)
    return fitted.scores(rows)[:, 0]


def train(units: int, degree: int, grid: tuple[tuple[float, ...], ...], report: Report) -> Trained:
    years, numbers = data.sunspots()
    series = numbers / SCALE
    # the state of year t predicts year t + 1
    target_years, wanted = years[1:], series[1:]
    learn = (target_years >= years[0] + WASHED_OUT) & (target_years < VALIDATED_FROM)
    judge = (target_years >= VALIDATED_FROM) & (target_years <= TRAINED_TO)
    best: tuple[float, float, float, float] | None = None
    curve = []
    for radius, leak in product(*grid[:2]):
        rows = inputs_and_states(series, states(reservoir(units, degree, radius, leak, Generator(SEED, 5)), series))[
            :-1
        ]
        for penalty in grid[2]:
            fitted = ridge(rows[learn], wanted[learn, np.newaxis], penalty)
            error = float(((fitted.scores(rows[judge])[:, 0] - wanted[judge]) ** 2).mean())
            curve.append(error * SCALE**2)
            if best is None or error < best[0]:
                best = error, radius, leak, penalty
    if best is None:
        raise QuatrefoilError("echo_state: the grid of radius, leak and penalty is empty; give at least one of each")
    _, radius, leak, penalty = best
    report(f"chosen on {VALIDATED_FROM} to {TRAINED_TO}: radius {radius:g}, leak {leak:g}, penalty {penalty:g}")
    chosen = reservoir(units, degree, radius, leak, Generator(SEED, 5))
    rows = inputs_and_states(series, states(chosen, series))[:-1]
    known = (target_years >= years[0] + WASHED_OUT) & (target_years <= TRAINED_TO)
    final = ridge(rows[known], wanted[known, np.newaxis], penalty)
    predicted = final.scores(rows)[:, 0]
    variance = float(series[years <= PERIODS[-1][1]].var())
    lags = 9
    baseline = autoregression(series, years, lags)
    figures, beside = {}, []
    for begin, end in PERIODS:
        inside = (target_years >= begin) & (target_years <= end)
        figures[f"relative variance {begin}-{end}"] = relative_variance(predicted[inside], wanted[inside], variance)
        there = (years[lags:] >= begin) & (years[lags:] <= end)
        beside.append(
            Beside(f"autoregression of {lags} years, {begin}-{end}",
                   relative_variance(baseline[there], series[lags:][there], variance), "least squares, same split")
        )  # fmt: skip
    tested = target_years > TRAINED_TO
    return Trained(
        {"columns": chosen.columns, "values": chosen.values, "w": chosen.w, "leak": np.array(leak),
         "readout.weight": final.weight, "readout.bias": final.bias},
        figures,
        tuple(beside),
        {"sunspot number, 1921 to 2008": list(wanted[tested] * SCALE),
         "predicted a year ahead": list(predicted[tested] * SCALE),
         "squared error on 1881 to 1920, by grid point": curve},
    )  # fmt: skip


def export(weights: Weights) -> onnx.ModelProto:
    """sunspots (years, 1, 1), in hundreds, to next_year (years, 1), in hundreds."""
    r = Reservoir(weights["columns"], weights["values"], weights["w"], float(weights["leak"]))
    units = len(r.w)
    graph = Graph("echo_state", "sunspots", ["years", 1, 1], "Echo state network: sunspot numbers, a year ahead")
    parameters = [graph.weight(name, array) for name, array in zip("WRB", as_gru(r))]
    graph.add("GRU", "sunspots", *parameters, name="reservoir", outputs=["h"], hidden_size=units)
    graph.add("Reshape", "h", graph.weight("flat_h", np.array([-1, units], np.int64)), name="rows")
    graph.add("Reshape", "sunspots", graph.weight("flat_x", np.array([-1, 1], np.int64)), name="now")
    graph.add("Concat", "now", "rows", name="features", axis=1)
    graph.add("Gemm", "features", graph.weight("readout.weight", weights["readout.weight"]),
              graph.weight("readout.bias", weights["readout.bias"]), name="next_year", transB=1)  # fmt: skip
    return graph.model(next_year=["years", 1])


def series(small: bool) -> np.ndarray:
    _, numbers = data.sunspots()
    return (numbers[: 40 if small else None] / SCALE).astype(np.float32)[:, np.newaxis, np.newaxis]


FULL_GRID = ((0.3, 0.6, 0.9, 1.1), (0.3, 0.6, 1.0), (1e-4, 1e-3, 1e-2, 1e-1, 1.0))
SMALL_GRID = ((0.6, 0.9), (0.6, 1.0), (1e-2, 1e-1))

ENTRIES = (
    Entry(
        "echo_state", "echo state network, sparse leaky reservoir, ridge readout", "statsmodels' yearly sunspot numbers",
        "Jaeger 2001",
        lambda small, report: train(60, 6, SMALL_GRID, report) if small else train(400, 10, FULL_GRID, report),
        export,
        series,
    ),
)  # fmt: skip
