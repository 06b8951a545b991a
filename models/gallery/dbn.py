"""A deep belief network: restricted Boltzmann machines on top of each other, trained one after another.

Hinton, Osindero and Teh, "A fast learning algorithm for deep belief nets" (2006). The top machine sees the features below
and ten units for the label, of which one is 1: it classifies by the free energy of each label, and it generates, with the
label held, by Gibbs steps at the top and one pass down. Every layer stays as greedy stacking left it; dbn_tuned.py tunes them.

    pixels -> p(h1 | pixels) -> p(h2 | h1) -> [h2, label] <-> top units
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.entry import Entry, Graph, Report, Trained, Weights
from quatrefoil.models.gallery.products import dense
from quatrefoil.models.gallery.rbm import Machine, Recipe, Training, beside, features, fit, flat, tiles
from quatrefoil.models.gallery.readout import accuracy, logistic
from quatrefoil.random import Generator

CLASSES = 10
GENERATION_STEPS = 200


@dataclass(frozen=True)
class Size:
    load: Callable[[], Split]
    hidden: tuple[int, ...]
    top: int
    how: Training
    top_how: Training
    samples: int


FULL = Size(data.mnist, (256, 256), 512, Training(15, 0.1), Training(30, 0.1), 12)
SMALL = Size(data.digits, (64,), 96, Training(5, 0.1, batch=25), Training(6, 0.1, batch=25), 4)


def scores(top: Machine, below: np.ndarray) -> np.ndarray:
    """Minus the free energy of each label beside features (count, units), less what all labels share: (count, CLASSES)."""
    units = below.shape[1]
    shared = dense(np.ascontiguousarray(top.weight[:, :units]), np.ascontiguousarray(below.T), top.hidden_bias)
    # softplus of W v + U label + c, summed over the hidden units
    each = [
        top.visible_bias[units + k] + np.logaddexp(0, shared + top.weight[:, units + k, np.newaxis]).sum(0)
        for k in range(CLASSES)
    ]
    return np.stack(each, 1)


def generated(stack: list[Machine], top: Machine, size: Size, rng: Generator) -> np.ndarray:
    """Pictures of each digit: the top machine's Gibbs steps with the label held, then the mean of each layer below."""
    labels = np.repeat(np.eye(CLASSES, dtype=np.float32), size.samples, axis=1)
    units = top.weight.shape[1] - CLASSES
    below = rng.bernoulli(np.full((units, labels.shape[1]), 0.5, np.float32))
    for _ in range(GENERATION_STEPS):
        h = rng.bernoulli(top.hidden(np.concatenate([below, labels])))
        mean = top.visible(h)[:units]
        below = rng.bernoulli(mean)
    for machine in reversed(stack):
        mean = machine.visible(mean)
    return mean.T


def stacked(
    name: str, rows: np.ndarray, size: Size, rng: Generator, report: Report
) -> tuple[list[Machine], dict[str, list[float]]]:
    """Machines on top of each other, each trained on the features of the one below; and each one's errors."""
    stack, curves = [], {}
    for depth, hidden in enumerate(size.hidden, 1):
        report(f"layer {depth}: {rows.shape[1]} to {hidden} units")
        machine = Machine.new(rows.shape[1], hidden, rng)
        curves[f"reconstruction error, layer {depth}"] = fit(name, machine, rows, size.how, rng, report)
        stack.append(machine)
        rows = features(machine, rows)
    return stack, curves


def through(stack: list[Machine], rows: np.ndarray) -> np.ndarray:
    """The features of the last machine."""
    for machine in stack:
        rows = features(machine, rows)
    return rows


def train(size: Size, report: Report) -> Trained:
    split = size.load()
    rows = flat(split.train_images)
    rng = Generator(SEED, 2)
    stack, curves = stacked("dbn", rows, size, rng, report)
    below, below_held_out = through(stack, rows), through(stack, flat(split.held_out_images))
    labels = data.checked_labels(split.train_digits, CLASSES).T
    joint = np.concatenate([below, labels], 1)
    report(f"top: {joint.shape[1]} to {size.top} units")
    top = Machine.new(joint.shape[1], size.top, rng)
    curves["reconstruction error, top"] = fit("dbn", top, joint, size.top_how, rng, report)
    readout = logistic(below, split.train_digits)
    side = rows.shape[1:] and split.train_images.shape[1:]
    weights = {"top.W": top.weight, "top.b": top.visible_bias, "top.c": top.hidden_bias}
    for depth, machine in enumerate(stack, 1):
        weights |= {f"{depth}.W": machine.weight, f"{depth}.b": machine.visible_bias, f"{depth}.c": machine.hidden_bias}
    same = Recipe("dbn", size.load, size.hidden[0], size.how)
    return Trained(
        weights,
        {
            "held-out accuracy by free energy": accuracy(scores(top, below_held_out), split.held_out_digits),
            "held-out accuracy, logistic regression of the last features":
                accuracy(readout.scores(below_held_out), split.held_out_digits),
        },
        beside(same, split),
        curves,
        {f"generated with the label held, a row for each digit ({GENERATION_STEPS} Gibbs steps from noise)":
            tiles(generated(stack, top, size, rng), size.samples, side)},
    )  # fmt: skip


def export(weights: Weights) -> onnx.ModelProto:
    """pixels (batch, visible) to scores (batch, 10): minus each label's free energy, less what all labels share."""
    visible = weights["1.W"].shape[1]
    graph = Graph("dbn", "pixels", ["batch", visible], "Deep belief network: scores by the free energy of each label")
    value = "pixels"
    for depth in range(1, sum(name.endswith(".W") for name in weights)):
        parameters = [graph.weight(f"{depth}.{part}", weights[f"{depth}.{part}"]) for part in "Wc"]
        value = graph.add("Gemm", value, *parameters, name=f"to_{depth}", transB=1)
        value = graph.add("Sigmoid", value, name=f"h{depth}")
    top, units = weights["top.W"], weights["top.W"].shape[1] - CLASSES
    shared = graph.add("Gemm", value, graph.weight("top.W", top[:, :units]), graph.weight("top.c", weights["top.c"]),
                       name="shared", transB=1)  # fmt: skip
    # every label's column of the weights is added to the same product: (batch, 1, top) + (10, top)
    axis = graph.weight("axis", np.array([1], np.int64))
    alone = graph.add("Unsqueeze", shared, axis, name="alone")
    sums = graph.add("Add", alone, graph.weight("top.U", np.ascontiguousarray(top[:, units:].T)), name="with_labels")
    soft = graph.add("Softplus", sums, name="soft")
    last = graph.weight("last", np.array([2], np.int64))
    energy = graph.add("ReduceSum", soft, last, name="energy", keepdims=0)
    graph.add("Add", energy, graph.weight("top.d", weights["top.b"][units:]), name="scores")
    return graph.model(scores=["batch", CLASSES])


ENTRIES = (
    Entry(
        "dbn", "deep belief network, greedy stacking, generates digits",
        "5,000 images of MNIST (small: scikit-learn's digits)", "Hinton, Osindero and Teh 2006",
        lambda small, report: train(SMALL if small else FULL, report), export,
        lambda small: flat((SMALL if small else FULL).load().held_out_images[:8]),
    ),
)  # fmt: skip
