"""A deep belief network's layers, fine-tuned with labels by back-propagation (Hinton, Osindero and Teh 2006; Hinton and
Salakhutdinov 2006).

Machines are stacked without labels as in dbn.py, and their recognition weights become the layers of a sigmoid network with a
layer of scores on top, which is then trained by gradients. Beside it, the same network without the stacking, from random
weights, says what the stacking was worth.

    pixels -> sigmoid(W1 pixels + c1) -> sigmoid(W2 h1 + c2) -> scores
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import onnx

from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.chains import Step, build, weights_of
from quatrefoil.models.gallery.dbn import FULL as STACKED
from quatrefoil.models.gallery.dbn import SMALL as STACKED_SMALL
from quatrefoil.models.gallery.dbn import Size, stacked, through
from quatrefoil.models.gallery.descent import CLASSES, PACES, Pace, export, learn, require_torch, say_nothing, twin
from quatrefoil.models.gallery.entry import Beside, Entry, Report, Trained, Weights
from quatrefoil.models.gallery.rbm import Machine, flat
from quatrefoil.models.gallery.readout import accuracy, logistic, one_thread
from quatrefoil.models.gallery.tuning import Seen, Settings, Tuning
from quatrefoil.random import Generator

NAME = "dbn_tuned"


class Plan(NamedTuple):
    """How the layers are stacked and tuned, and how the network without stacking is trained."""

    size: Size
    tuned: Pace
    random: Pace


FULL = Plan(STACKED, Pace(10, rate=3e-3), Pace(20, rate=3e-3))
SMALL = Plan(STACKED_SMALL, Pace(10, 25, 4e-3), Pace(10, 25, 1e-2))


def steps(sizes: tuple[int, ...]) -> tuple[Step, ...]:
    layers: tuple[Step, ...] = ()
    for depth, (inputs, units) in enumerate(pairwise(sizes), 1):
        layers += (Step("Gemm", f"to_{depth}", (inputs, units)), Step("Sigmoid", f"h{depth}"))
    return (*layers, Step("Gemm", "scores", (sizes[-1], CLASSES)))


def network(visible: int, size: Size, stack: Sequence[Machine] = ()) -> Any:
    """As a torch module, drawn at random, the layers below the scores then taken from a stack."""
    import torch

    chain = build(steps((visible, *size.hidden)), Generator(SEED, 80))
    with torch.no_grad():
        for depth, machine in enumerate(stack, 1):
            layer = chain.layers[f"to_{depth}"]
            layer.weight.copy_(torch.from_numpy(machine.weight)[:, :, None])
            layer.bias.copy_(torch.from_numpy(machine.hidden_bias))
    return chain


def train(settings: Settings, small: bool, report: Report) -> Trained:
    require_torch()
    how = plan(small)
    split, size, pace = how.size.load(), how.size, how.tuned.at(settings)
    rows, held_out = flat(split.train_images), flat(split.held_out_images)
    shape, digits = rows.shape[1:], split.held_out_digits
    stack, errors = stacked(NAME, rows, size, Generator(SEED, 2), report)
    before = logistic(through(stack, rows), split.train_digits).scores(through(stack, held_out))
    chain = network(rows.shape[1], size, stack)
    other, alone = twin(chain), network(rows.shape[1], size)
    curve, after = learn(NAME, chain, split, shape, pace, report)
    _, theirs = learn(NAME, other, split, shape, pace, say_nothing)
    report("the same network from random weights")
    _, unstacked = learn(NAME, alone, split, shape, how.random, say_nothing)
    pixels = logistic(rows, split.train_digits).scores(held_out)
    return Trained(
        weights_of(chain),
        {
            "held-out accuracy": after,
            "held-out accuracy before tuning, logistic regression of the last features": accuracy(before, digits),
        },
        (
            Beside("torch's own layers", theirs, "same stack, batches and split"),
            Beside("from random weights, no stacking", unstacked, f"ours, {how.random.epochs} epochs at its best rate"),
            beside_perceptron(how, split),
            Beside("logistic regression of the pixels", accuracy(pixels, digits), "same split"),
        ),
        {**errors, "cross-entropy of tuning": curve},
    )  # fmt: skip


def beside_perceptron(plan: Plan, split: Split) -> Beside:
    """scikit-learn's MLPClassifier of the same layers, trained as the network without stacking is."""
    pace = plan.random
    with one_thread(), warnings.catch_warnings():
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        warnings.simplefilter("ignore", ConvergenceWarning)  # as many epochs as ours on purpose
        best = MLPClassifier(plan.size.hidden, activation="logistic", batch_size=pace.batch, max_iter=pace.epochs,
                             learning_rate_init=pace.rate, random_state=SEED)  # fmt: skip
        found = best.fit(flat(split.train_images), split.train_digits).predict_proba(flat(split.held_out_images))
    return Beside("scikit-learn's MLPClassifier, logistic units", accuracy(found, split.held_out_digits),
                  "same layers, rate and epochs as from random weights")  # fmt: skip


def plan(small: bool) -> Plan:
    return SMALL if small else FULL


def chosen(small: bool) -> Settings:
    return {"rate": plan(small).tuned.rate, "batch": plan(small).tuned.batch}


def judge(settings: Settings, small: bool, seen: Seen) -> float:
    """The accuracy on the validation split."""
    require_torch()
    own = plan(small)
    split = data.held_out(own.size.load())
    rows = flat(split.train_images)
    stack, _ = stacked(NAME, rows, own.size, Generator(SEED, 2), say_nothing)
    chain = network(rows.shape[1], own.size, stack)
    return learn(NAME, chain, split, rows.shape[1:], own.tuned.at(settings), say_nothing, seen)[1]


def written(weights: Weights) -> onnx.ModelProto:
    layers = [weights[f"to_{depth}.weight"] for depth in range(1, sum(name.endswith(".weight") for name in weights))]
    sizes = (layers[0].shape[1], *(len(layer) for layer in layers))
    return export(NAME, steps(sizes), weights, sizes[:1], "Deep belief network's layers, tuned with labels", (CLASSES,))


ENTRIES = (
    Entry(
        NAME, "deep belief network, fine-tuned by back-propagation",
        "5,000 images of MNIST (small: scikit-learn's digits)", "Hinton and Salakhutdinov 2006",
        lambda small, report: train(chosen(small), small, report), written,
        lambda small: flat(plan(small).size.load().held_out_images[:8]),
        Tuning(PACES, chosen, "validation accuracy", True, judge, train),
    ),
)  # fmt: skip
