"""A deep Boltzmann machine of two hidden layers: mean field for the data, persistent chains for the model.

Salakhutdinov and Hinton, "Deep Boltzmann machines" (2009). Each layer is first trained as a restricted Boltzmann machine
with the inputs that it will have from both sides: the lower one with its input to the hidden units doubled, the upper one
with its input to the visible units doubled. Then both learn together: expectations under the data by mean field, under the
model by Gibbs chains that persist.

    p(h1 = 1 | v, h2) = sigmoid(W1 v + W2' h2 + c1),  p(h2 = 1 | h1) = sigmoid(W2 h1 + c2),  p(v = 1 | h1) = sigmoid(W1' h1 + b)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.entry import Entry, Graph, Report, Trained, Weights, require_finite
from quatrefoil.models.gallery.products import correlation, dense, dense_back
from quatrefoil.models.gallery.rbm import Machine, Recipe, Training, beside, features, fit, flat, tiles
from quatrefoil.models.gallery.readout import accuracy, logistic
from quatrefoil.random import Generator

MEAN_FIELD_STEPS = 10


@dataclass(frozen=True)
class Size:
    load: Callable[[], Split]
    hidden: tuple[int, int]
    alone: Training
    epochs: int
    rate: float
    batch: int
    chains: int = 100
    chain_steps: int = 5


FULL = Size(data.mnist, (256, 256), Training(15, 0.05), 20, 0.01, 100)
SMALL = Size(data.digits, (64, 48), Training(5, 0.1, batch=25), 2, 0.01, 50, 40, 2)


@dataclass
class DeepMachine:
    """w1 (h1, v), w2 (h2, h1), b (v), c1 (h1), c2 (h2), float32; vectors lie (units, count)."""

    w1: np.ndarray
    w2: np.ndarray
    b: np.ndarray
    c1: np.ndarray
    c2: np.ndarray

    def first(self, from_below: np.ndarray, h2: np.ndarray) -> np.ndarray:
        """p(h1 | v, h2), where from_below is W1 v + c1."""
        return _sigmoid(from_below + dense_back(self.w2, h2))

    def mean_field(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The means of h1 and h2 given v, from a pass upwards that doubles what comes from below."""
        from_below = dense(self.w1, v, self.c1)
        m1 = _sigmoid(from_below + dense(self.w1, v))
        m2 = dense(self.w2, m1, self.c2, "Sigmoid")
        for _ in range(MEAN_FIELD_STEPS):
            m1 = self.first(from_below, m2)
            m2 = dense(self.w2, m1, self.c2, "Sigmoid")
        return m1, m2

    def visible(self, h1: np.ndarray) -> np.ndarray:
        return dense_back(self.w1, h1, self.b, "Sigmoid")

    def gibbs(self, v: np.ndarray, h2: np.ndarray, steps: int, rng: Generator) -> tuple[np.ndarray, ...]:
        """Steps of a chain: h1 from both of its neighbours, then both from h1. Gives v, h1, h2."""
        for _ in range(steps):
            h1 = rng.bernoulli(self.first(dense(self.w1, v, self.c1), h2))
            v = rng.bernoulli(self.visible(h1))
            h2 = rng.bernoulli(dense(self.w2, h1, self.c2, "Sigmoid"))
        return v, h1, h2


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-x))).astype(np.float32)


def stacked(size: Size, rows: np.ndarray, rng: Generator, report: Report) -> DeepMachine:
    """Both layers trained alone. To double one direction of a machine, the other is halved afterwards: a machine whose
    visible input is doubled is one that reads each pixel twice."""
    report("the lower layer alone")
    lower = Machine.new(2 * rows.shape[1], size.hidden[0], rng)
    # both halves begin alike and get the same updates but for sampling; their mean is the tied weight
    fit("dbm", lower, np.concatenate([rows, rows], 1), size.alone, rng, report)
    w1 = (lower.weight[:, : rows.shape[1]] + lower.weight[:, rows.shape[1] :]) / 2
    b = (lower.visible_bias[: rows.shape[1]] + lower.visible_bias[rows.shape[1] :]) / 2
    report("the upper layer alone")
    below = features(lower, np.concatenate([rows, rows], 1))
    upper = Machine.new(size.hidden[0], 2 * size.hidden[1], rng)
    fit("dbm", upper, below, size.alone, rng, report)
    w2 = (upper.weight[: size.hidden[1]] + upper.weight[size.hidden[1] :]) / 2
    c2 = (upper.hidden_bias[: size.hidden[1]] + upper.hidden_bias[size.hidden[1] :]) / 2
    return DeepMachine(w1, w2, b, (lower.hidden_bias + upper.visible_bias) / 2, c2)


def together(size: Size, machine: DeepMachine, rows: np.ndarray, rng: Generator, report: Report) -> list[float]:
    """Train both layers together, in place; gives each epoch's reconstruction error."""
    v = np.ascontiguousarray(rows[: size.chains].T)
    _, h2 = machine.mean_field(v)
    v, h2 = rng.bernoulli(v), rng.bernoulli(h2)
    errors = []
    for epoch in range(1, size.epochs + 1):
        rate = np.float32(size.rate * (1 - 0.9 * (epoch - 1) / size.epochs))
        order, total = rng.permutation(len(rows)), 0.0
        for first in range(0, len(rows) - size.batch + 1, size.batch):
            data_v = np.ascontiguousarray(rows[order[first : first + size.batch]].T)
            m1, m2 = machine.mean_field(data_v)
            v, h1, h2 = machine.gibbs(v, h2, size.chain_steps, rng)
            machine.w1 += rate * (correlation(m1, data_v) / size.batch - correlation(h1, v) / size.chains)
            machine.w2 += rate * (correlation(m2, m1) / size.batch - correlation(h2, h1) / size.chains)
            machine.b += rate * (data_v.mean(1) - v.mean(1))
            machine.c1 += rate * (m1.mean(1) - h1.mean(1))
            machine.c2 += rate * (m2.mean(1) - h2.mean(1))
            total += float(((machine.visible(m1) - data_v) ** 2).mean())
        errors.append(require_finite("dbm", total / (len(rows) // size.batch), epoch))
        report(f"together, epoch {epoch} of {size.epochs}: reconstruction error {errors[-1]:.4f}")
    return errors


def means(machine: DeepMachine, rows: np.ndarray) -> np.ndarray:
    """The mean field of both layers side by side, for rows (count, visible): (count, h1 + h2)."""
    return np.concatenate(machine.mean_field(np.ascontiguousarray(rows.T))).T


def train(size: Size, report: Report) -> Trained:
    split = size.load()
    rows, held_out = flat(split.train_images), flat(split.held_out_images)
    rng = Generator(SEED, 3)
    machine = stacked(size, rows, rng, report)
    errors = together(size, machine, rows, rng, report)
    readout = logistic(means(machine, rows), split.train_digits)
    v = rng.bernoulli(np.ascontiguousarray(rows[:32].T))
    _, h2 = machine.mean_field(v)
    _, h1, _ = machine.gibbs(v, rng.bernoulli(h2), 500, rng)
    shape = (split.train_images.shape[1], split.train_images.shape[2])
    m1, _ = machine.mean_field(np.ascontiguousarray(held_out[:16].T))
    return Trained(
        {"W1": machine.w1, "W2": machine.w2, "b": machine.b, "c1": machine.c1, "c2": machine.c2,
         "readout.weight": readout.weight, "readout.bias": readout.bias},
        {"held-out accuracy": accuracy(readout.scores(means(machine, held_out)), split.held_out_digits)},
        beside(Recipe("dbm", size.load, size.hidden[0], size.alone), split),
        {"reconstruction error, both layers together": errors},
        {
            "held-out images, and below them their reconstructions by mean field":
                tiles(np.concatenate([held_out[:16], machine.visible(m1).T]), 16, shape),
            "samples: 32 chains, 500 Gibbs steps from images": tiles(machine.visible(h1).T, 16, shape),
        },
    )  # fmt: skip


def export(weights: Weights) -> onnx.ModelProto:
    """pixels (batch, visible) to scores (batch, 10): the steps of mean field, unrolled, and the readout."""
    visible = weights["W1"].shape[1]
    graph = Graph(
        "dbm", "pixels", ["batch", visible], f"Deep Boltzmann machine: {MEAN_FIELD_STEPS} steps of mean field"
    )
    for name in ("W1", "W2", "c1", "c2", "readout.weight", "readout.bias"):
        graph.weight(name, weights[name])
    graph.add("Gemm", "pixels", "W1", "c1", name="from_below", transB=1)
    graph.add("Gemm", "pixels", "W1", name="again", transB=1)
    doubled = graph.add("Add", "from_below", "again", name="doubled")
    m1 = graph.add("Sigmoid", doubled, name="m1_0")
    for step in range(MEAN_FIELD_STEPS + 1):
        upwards = graph.add("Gemm", m1, "W2", "c2", name=f"up_{step}", transB=1)
        m2 = graph.add("Sigmoid", upwards, name=f"m2_{step}")
        if step < MEAN_FIELD_STEPS:
            downwards = graph.add("Gemm", m2, "W2", name=f"down_{step}")
            both = graph.add("Add", "from_below", downwards, name=f"both_{step}")
            m1 = graph.add("Sigmoid", both, name=f"m1_{step + 1}")
    graph.add("Concat", m1, m2, name="means", axis=1)
    graph.add("Gemm", "means", "readout.weight", "readout.bias", name="scores", transB=1)
    return graph.model(scores=["batch", 10])


ENTRIES = (
    Entry(
        "dbm", "deep Boltzmann machine, mean field and persistent chains",
        "5,000 images of MNIST (small: scikit-learn's digits)", "Salakhutdinov and Hinton 2009",
        lambda small, report: train(SMALL if small else FULL, report), export,
        lambda small: flat((SMALL if small else FULL).load().held_out_images[:8]),
    ),
)  # fmt: skip
