"""A convolutional restricted Boltzmann machine with probabilistic max pooling.

Lee, Grosse, Ranganath and Ng, "Convolutional deep belief networks for scalable unsupervised learning of hierarchical
representations" (2009). Hidden units lie in planes, one for each filter, whose weights are shared over the image; of a block
of 2x2 hidden units at most one is on, and the pooling unit above it is on when one is:

    I = W * v + c;  p(h = 1 | v) = e^I / (1 + sum of e^I over the block);  p(pool = 0 | v) = 1 / (1 + the same sum)

Trained by CD-1 with a pull of the hidden units' mean toward a small target, without which they are on everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

import quatrefoil as qf
from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights, require_finite
from quatrefoil.models.gallery.rbm import flat, tiles
from quatrefoil.models.gallery.readout import accuracy, logistic
from quatrefoil.random import Generator

POOL = 2
SPARSITY = 0.02
"""The share of hidden units that are to be on."""
LARGEST = 30.0
"""Where inputs of hidden units are cut, so that e to their power stays finite in float32."""


@dataclass(frozen=True)
class Size:
    load: Callable[[], Split]
    filters: int
    extent: int
    epochs: int
    rate: float
    batch: int
    pull: float


FULL = Size(data.mnist, 24, 7, 12, 0.02, 50, 3.0)
SMALL = Size(data.digits, 16, 3, 4, 0.05, 50, 1.0)


@dataclass
class Machine:
    """w (K, 1, extent, extent), b (1) of the visible units, c (K) of the hidden; images (count, 1, height, width)."""

    w: np.ndarray
    b: np.ndarray
    c: np.ndarray

    def pooled(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p(h = 1 | v) (count, K, height, width), and p(pool = 1 | v), half as high and wide."""
        inputs = np.exp(np.minimum(qf.conv2d(v, self.w, self.c), LARGEST))
        total = 1 + POOL**2 * qf.avg_pool2d(inputs, POOL)
        hidden = inputs / np.repeat(np.repeat(total, POOL, 2), POOL, 3)
        return hidden, 1 - 1 / total

    def sample(self, hidden: np.ndarray, rng: Generator) -> np.ndarray:
        """Which unit of each block is on, if any: one uniform number a block, among its cumulative probabilities."""
        count, planes, height, width = hidden.shape
        blocks = hidden.reshape(count, planes, height // POOL, POOL, width // POOL, POOL).transpose(0, 1, 2, 4, 3, 5)
        ends = np.cumsum(blocks.reshape(*blocks.shape[:4], -1), -1)
        drawn = rng.uniform(ends.shape[:-1])[..., np.newaxis]
        on = (drawn < ends) & (drawn >= np.concatenate([np.zeros_like(ends[..., :1]), ends[..., :-1]], -1))
        back = on.reshape(blocks.shape).transpose(0, 1, 2, 4, 3, 5).reshape(hidden.shape)
        return np.ascontiguousarray(back, np.float32)

    def visible(self, h: np.ndarray) -> np.ndarray:
        return qf.conv_transpose2d(h, self.w, self.b, activation="Sigmoid")


def weight_products(v: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The sum over images and places of h times the window of v, (K, 1, extent, extent): a convolution whose channels are
    the images."""
    return qf.conv2d(v.swapaxes(0, 1), h.swapaxes(0, 1)).swapaxes(0, 1)


def fit(size: Size, machine: Machine, images: np.ndarray, rng: Generator, report: Report) -> list[float]:
    errors = []
    for epoch in range(1, size.epochs + 1):
        order, total = rng.permutation(len(images)), 0.0
        rate = np.float32(size.rate * (1 - 0.9 * (epoch - 1) / size.epochs))
        for first in range(0, len(images) - size.batch + 1, size.batch):
            v0 = np.ascontiguousarray(images[order[first : first + size.batch]])
            h0, _ = machine.pooled(v0)
            v1 = machine.visible(machine.sample(h0, rng))
            h1, _ = machine.pooled(v1)
            places = np.float32(size.batch * h0.shape[2] * h0.shape[3])
            machine.w += rate * (weight_products(v0, h0) - weight_products(v1, h1)) / places * 10
            machine.b += rate * (v0 - v1).mean()
            machine.c += rate * ((h0 - h1).mean((0, 2, 3)) + size.pull * (SPARSITY - h0.mean((0, 2, 3))))
            total += float(((v0 - v1) ** 2).mean())
        errors.append(require_finite("conv_rbm", total / (len(images) // size.batch), epoch))
        report(f"epoch {epoch} of {size.epochs}: reconstruction error {errors[-1]:.4f}")
    return errors


def features(machine: Machine, images: np.ndarray) -> np.ndarray:
    """p(pool = 1 | v) as rows."""
    return np.concatenate([flat(machine.pooled(images[i : i + 500])[1]) for i in range(0, len(images), 500)])


def _images(images: np.ndarray) -> np.ndarray:
    return images[:, np.newaxis]


def train(size: Size, report: Report) -> Trained:
    split = size.load()
    images, held_out = _images(split.train_images), _images(split.held_out_images)
    rng = Generator(SEED, 4)
    machine = Machine(0.1 * rng.normal((size.filters, 1, size.extent, size.extent)), np.zeros(1, np.float32),
                      np.full(size.filters, -2, np.float32))  # fmt: skip
    errors = fit(size, machine, images, rng, report)
    readout = logistic(features(machine, images), split.train_digits)
    right = accuracy(readout.scores(features(machine, held_out)), split.held_out_digits)
    pixels = logistic(flat(images), split.train_digits)
    hidden, _ = machine.pooled(held_out[:16])
    back = machine.visible(machine.sample(hidden, rng))
    shape = (images.shape[2], images.shape[3])
    return Trained(
        {"w": machine.w, "b": machine.b, "c": machine.c, "readout.weight": readout.weight, "readout.bias": readout.bias},
        {"held-out accuracy": right, "share of hidden units on": float(hidden.mean())},
        (Beside("logistic regression of the pixels", accuracy(pixels.scores(flat(held_out)), split.held_out_digits),
                "same split"),),
        {"reconstruction error": errors},
        {
            "filters": tiles(flat(machine.w), 8, (size.extent, size.extent)),
            "held-out images, and below them reconstructions from one sample of the hidden units":
                tiles(np.concatenate([flat(held_out[:16]), flat(back)]), 16, shape),
        },
    )  # fmt: skip


def export(weights: Weights) -> onnx.ModelProto:
    """image (batch, 1, height, width) to scores (batch, 10): pooling units' probabilities and the readout."""
    planes, _, extent, _ = weights["w"].shape
    side = int((weights["readout.weight"].shape[1] // planes) ** 0.5) * POOL + extent - 1
    graph = Graph("conv_rbm", "image", ["batch", 1, side, side], "Convolutional RBM, probabilistic max pooling")
    graph.add("Conv", "image", graph.weight("w", weights["w"]), graph.weight("c", weights["c"]), name="inputs")
    graph.add("Min", "inputs", graph.weight("largest", np.array(LARGEST, np.float32)), name="cut")
    graph.add("Exp", "cut", name="odds")
    graph.add("AveragePool", "odds", name="mean", kernel_shape=[POOL, POOL], strides=[POOL, POOL])
    graph.add("Mul", "mean", graph.weight("block", np.array(POOL**2, np.float32)), name="sum")
    one = graph.weight("one", np.array(1, np.float32))
    graph.add("Add", "sum", one, name="total")
    graph.add("Div", one, "total", name="off")
    graph.add("Sub", one, "off", name="pooled")
    graph.add("Flatten", "pooled", name="features")
    graph.add("Gemm", "features", graph.weight("readout.weight", weights["readout.weight"]),
              graph.weight("readout.bias", weights["readout.bias"]), name="scores", transB=1)  # fmt: skip
    return graph.model(scores=["batch", 10])


ENTRIES = (
    Entry(
        "conv_rbm", "convolutional RBM, probabilistic max pooling",
        "5,000 images of MNIST (small: scikit-learn's digits)", "Lee, Grosse, Ranganath and Ng 2009",
        lambda small, report: train(SMALL if small else FULL, report), export,
        lambda small: _images((SMALL if small else FULL).load().held_out_images[:4]),
    ),
)  # fmt: skip
