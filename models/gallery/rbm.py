"""Restricted Boltzmann machines: Bernoulli or Gaussian visible units, contrastive divergence or persistent chains.

Smolensky (1986); Hinton, "Training products of experts by minimizing contrastive divergence" (2002): CD-k; Tieleman,
"Training restricted Boltzmann machines using approximations to the likelihood gradient" (2008): persistent chains;
Gaussian visible units of deviation 1 (Hinton and Salakhutdinov, 2006), for inputs brought to mean 0 and deviation 1.

    p(h = 1 | v) = sigmoid(W v + c),  p(v = 1 | h) = sigmoid(W' h + b), or v = W' h + b + noise for Gaussian units

Every product is an operator call; every sample comes from quatrefoil.random. Judged by a logistic regression of p(h | v),
beside the same of scikit-learn's BernoulliRBM, and of the pixels themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights, require_finite
from quatrefoil.models.gallery.products import correlation, dense, dense_back
from quatrefoil.models.gallery.readout import accuracy, logistic, one_thread
from quatrefoil.random import Generator


@dataclass
class Machine:
    """weight (hidden, visible), visible_bias (visible), hidden_bias (hidden), float32; vectors lie (units, count)."""

    weight: np.ndarray
    visible_bias: np.ndarray
    hidden_bias: np.ndarray
    gaussian: bool = False

    @classmethod
    def new(cls, visible: int, hidden: int, rng: Generator, gaussian: bool = False) -> Machine:
        weight = 0.01 * rng.normal((hidden, visible))
        return cls(weight, np.zeros(visible, np.float32), np.zeros(hidden, np.float32), gaussian)

    def hidden(self, v: np.ndarray) -> np.ndarray:
        """p(h = 1 | v)."""
        return dense(self.weight, v, self.hidden_bias, "Sigmoid")

    def visible(self, h: np.ndarray) -> np.ndarray:
        """p(v = 1 | h), or the mean of Gaussian units."""
        return dense_back(self.weight, h, self.visible_bias, None if self.gaussian else "Sigmoid")

    def sample_visible(self, h: np.ndarray, rng: Generator) -> np.ndarray:
        mean = self.visible(h)
        return mean + rng.normal(mean.shape) if self.gaussian else rng.bernoulli(mean)

    def gibbs(self, h: np.ndarray, steps: int, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps from sampled hidden units on; gives v, p(h | v) and a sample of h."""
        for _ in range(steps):
            v = self.sample_visible(h, rng)
            probability = self.hidden(v)
            h = rng.bernoulli(probability)
        return v, probability, h


@dataclass(frozen=True)
class Training:
    """How a machine is trained: k Gibbs steps an update, from the data or from chains that persist."""

    epochs: int
    rate: float
    steps: int = 1
    persistent: bool = False
    batch: int = 100
    momentum: float = 0.5
    decay: float = 1e-4


def fit(name: str, machine: Machine, data: np.ndarray, how: Training, rng: Generator, report: Report) -> list[float]:
    """Train on data (count, visible) in place; gives each epoch's mean squared error of a reconstruction.

    The rate falls linearly to a tenth. Raises QuatrefoilError for data outside what the visible units can be, and when the
    error is not finite.
    """
    if not np.isfinite(data).all() or (not machine.gaussian and (data.min() < 0 or data.max() > 1)):
        units = "Gaussian units take finite numbers" if machine.gaussian else "Bernoulli units take numbers from 0 to 1"
        raise QuatrefoilError(f"{name}: the data are from {data.min()} to {data.max()}; {units}")
    parameters = (machine.weight, machine.visible_bias, machine.hidden_bias)
    velocity = [np.zeros_like(p) for p in parameters]
    chains: np.ndarray | None = None
    errors = []
    for epoch in range(1, how.epochs + 1):
        rate = np.float32(how.rate * (1 - 0.9 * (epoch - 1) / how.epochs))
        order, total = rng.permutation(len(data)), 0.0
        for first in range(0, len(data) - how.batch + 1, how.batch):
            v0 = np.ascontiguousarray(data[order[first : first + how.batch]].T)
            h0 = machine.hidden(v0)
            start = chains if how.persistent and chains is not None else rng.bernoulli(h0)
            v, h, chains = machine.gibbs(start, how.steps, rng)
            gradients = (correlation(h0, v0) - correlation(h, v), (v0 - v).sum(1), (h0 - h).sum(1))
            for parameter, speed, gradient in zip(parameters, velocity, gradients):
                decay = how.decay * parameter if parameter is machine.weight else 0
                speed *= how.momentum
                speed += rate * (gradient / how.batch - decay)
                parameter += speed
            total += float(((machine.visible(h0) - v0) ** 2).mean())
        errors.append(require_finite(name, total / (len(data) // how.batch), epoch))
        report(f"epoch {epoch} of {how.epochs}: reconstruction error {errors[-1]:.4f}")
    return errors


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def features(machine: Machine, rows: np.ndarray) -> np.ndarray:
    """p(h | v) of rows (count, visible), as rows."""
    return np.ascontiguousarray(machine.hidden(np.ascontiguousarray(rows.T)).T)


def tiles(rows: np.ndarray, columns: int, shape: tuple[int, int]) -> np.ndarray:
    """Rows of pixels as pictures (rows, columns, height, width), each stretched to 0 to 1."""
    rows = rows[: len(rows) // columns * columns]
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    return ((rows - low) / np.maximum(high - low, 1e-12)).reshape(-1, columns, *shape)


@dataclass(frozen=True)
class Recipe:
    """Which machine on which data."""

    name: str
    load: Callable[[], Split]
    hidden: int
    how: Training
    gaussian: bool = False


def scaled(recipe: Recipe, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and held-out rows as the visible units take them, and the mean and deviation taken off."""
    train, held_out = flat(split.train_images), flat(split.held_out_images)
    if not recipe.gaussian:
        zero = np.zeros(train.shape[1], np.float32)
        return train, held_out, zero, zero + 1
    mean, deviation = train.mean(0), np.maximum(train.std(0), 0.1).astype(np.float32)
    return (train - mean) / deviation, (held_out - mean) / deviation, mean, deviation


def train(recipe: Recipe, report: Report) -> Trained:
    """Train a machine and both readouts, and scikit-learn's machine beside it."""
    split = recipe.load()
    rows, held_out, mean, deviation = scaled(recipe, split)
    rng = Generator(SEED, 1)
    machine = Machine.new(rows.shape[1], recipe.hidden, rng, recipe.gaussian)
    errors = fit(recipe.name, machine, rows, recipe.how, rng, report)
    readout = logistic(features(machine, rows), split.train_digits)
    right = accuracy(readout.scores(features(machine, held_out)), split.held_out_digits)
    report(f"held-out accuracy {right:.4f}; now scikit-learn's")
    reconstructed = machine.visible(machine.hidden(np.ascontiguousarray(held_out.T))).T
    shape = (split.train_images.shape[1], split.train_images.shape[2])
    chains = rng.bernoulli(machine.hidden(np.ascontiguousarray(rows[:32].T)))
    _, _, chains = machine.gibbs(chains, 500, rng)
    pairs = np.concatenate([held_out[:16] * deviation + mean, reconstructed[:16] * deviation + mean])
    return Trained(
        {"W": machine.weight, "b": machine.visible_bias, "c": machine.hidden_bias, "mean": mean, "deviation": deviation,
         "readout.weight": readout.weight, "readout.bias": readout.bias},
        {"held-out accuracy": right, "held-out reconstruction error": float(((reconstructed - held_out) ** 2).mean())},
        beside(recipe, split),
        {"reconstruction error": errors},
        {
            "filters: the weights of 32 hidden units": tiles(machine.weight[:32], 16, shape),
            "held-out images, and below them their reconstructions": tiles(pairs, 16, shape),
            "samples: 32 chains, 500 Gibbs steps from images":
                tiles(machine.visible(chains).T * deviation + mean, 16, shape),
        },
    )  # fmt: skip


def beside(recipe: Recipe, split: Split) -> tuple[Beside, ...]:
    """scikit-learn's BernoulliRBM (persistent chains) of as many units, epochs and the same readout; and the pixels'."""
    rows, held_out = flat(split.train_images), flat(split.held_out_images)
    with one_thread():
        from sklearn.neural_network import BernoulliRBM

        rate = 0.1 if recipe.gaussian else recipe.how.rate  # it has no Gaussian units, and Bernoulli ones learn faster
        best = BernoulliRBM(recipe.hidden, learning_rate=rate, batch_size=recipe.how.batch,
                            n_iter=recipe.how.epochs, random_state=SEED)  # fmt: skip
        found = best.fit_transform(rows)
    theirs = accuracy(logistic(found, split.train_digits).scores(best.transform(held_out)), split.held_out_digits)
    pixels = accuracy(logistic(rows, split.train_digits).scores(held_out), split.held_out_digits)
    return (
        Beside(
            "scikit-learn's BernoulliRBM + logistic regression", theirs, f"same units, epochs and split, rate {rate}"
        ),
        Beside("logistic regression of the pixels", pixels, "same split"),
    )


def export(weights: Weights) -> onnx.ModelProto:
    """pixels (batch, visible) to scores (batch, 10) and the mean of the visible units given the hidden ones' means."""
    gaussian = bool((weights["deviation"] != 1).any())
    visible = weights["W"].shape[1]
    graph = Graph(
        "rbm", "pixels", ["batch", visible], "Restricted Boltzmann machine: features, scores and a reconstruction"
    )
    graph.add("Sub", "pixels", graph.weight("mean", weights["mean"]), name="centred")
    graph.add("Div", "centred", graph.weight("deviation", weights["deviation"]), name="v")
    graph.add("Gemm", "v", graph.weight("W", weights["W"]), graph.weight("c", weights["c"]), name="to_hidden", transB=1)
    graph.add("Sigmoid", "to_hidden", name="h")
    graph.add("Gemm", "h", graph.weight("readout.weight", weights["readout.weight"]),
              graph.weight("readout.bias", weights["readout.bias"]), name="scores", transB=1)  # fmt: skip
    last = graph.add("Gemm", "h", "W", graph.weight("b", weights["b"]), name="to_visible")
    if not gaussian:
        last = graph.add("Sigmoid", last, name="probabilities")
    graph.add("Mul", last, "deviation", name="stretched")
    graph.add("Add", "stretched", "mean", name="reconstruction")
    return graph.model(scores=["batch", 10], reconstruction=["batch", visible])


def _entry(name: str, what: str, source: str, full: Recipe, small: Recipe) -> Entry:
    return Entry(
        name, what, "5,000 images of MNIST (small: scikit-learn's digits)", source,
        lambda is_small, report: train(small if is_small else full, report),
        export,
        lambda is_small: flat((small if is_small else full).load().held_out_images[:8]),
    )  # fmt: skip


ENTRIES = (
    _entry(
        "rbm", "restricted Boltzmann machine, CD-1", "Hinton 2002",
        Recipe("rbm", data.mnist, 256, Training(20, 0.1)),
        Recipe("rbm", data.digits, 64, Training(8, 0.1, batch=25)),
    ),
    _entry(
        "rbm_persistent", "restricted Boltzmann machine, persistent chains", "Tieleman 2008",
        Recipe("rbm_persistent", data.mnist, 256, Training(20, 0.05, persistent=True)),
        Recipe("rbm_persistent", data.digits, 64, Training(8, 0.05, persistent=True, batch=25)),
    ),
    _entry(
        "rbm_gaussian", "restricted Boltzmann machine, Gaussian visible units, CD-3", "Hinton and Salakhutdinov 2006",
        Recipe("rbm_gaussian", data.mnist, 256, Training(20, 0.005, steps=3, momentum=0.9), gaussian=True),
        Recipe("rbm_gaussian", data.digits, 64, Training(3, 0.002, steps=3, batch=25, momentum=0.9), gaussian=True),
    ),
)  # fmt: skip
