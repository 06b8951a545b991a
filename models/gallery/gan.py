"""A convolutional generative adversarial network that draws digits (Goodfellow et al. 2014; Radford, Metz and Chintala 2016).

The generator turns noise into an image by transposed convolutions; the discriminator tells images from drawings by strided
convolutions. Each learns against the other: the generator by the non-saturating loss, the discriminator with real images
labelled REAL instead of 1 (Salimans et al. 2016), both by Adam with a first moment of 0.5. What draws is a running mean of the
generator's weights (Yazici et al. 2019).

Drawings are judged as is usual, but with a LeNet of ours, trained on the training images, in the place of Inception: the
Frechet distance of its features between drawings and held-out images (Heusel et al. 2017), and the inception score
(Salimans et al. 2016), from 1 to 10: how sure it is of each drawing, and how evenly the digits are drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.chains import Step, build, weights_of
from quatrefoil.models.gallery.classifiers import lenet
from quatrefoil.models.gallery.descent import (
    DATA,
    PACES,
    Pace,
    export,
    learn,
    load,
    one_thread,
    require_torch,
    say_nothing,
    twin,
)
from quatrefoil.models.gallery.entry import Beside, Entry, Report, Trained, Weights, require_finite
from quatrefoil.models.gallery.tuning import Range, Seen, Settings, Tuning
from quatrefoil.random import Generator

NAME, NOISE = "gan", 32
REAL = 0.9
MOMENTS = 0.5, 0.999
KEPT = 0.995
"""How much of the running mean of the weights stays at each step."""
FEATURES = "tanh3"
"""The value of LeNet that drawings are compared by."""
PICTURES = (5, 12)
Steps = tuple[Step, ...]


class Plan(NamedTuple):
    width: int
    pace: Pace
    faster: float
    """The discriminator's rate is so many times the generator's."""

    def at(self, settings: Settings) -> Plan:
        return Plan(self.width, self.pace.at(settings), float(settings["faster"]))


def generator(side: int, width: int) -> Steps:
    start = side // 4
    return (
        Step("Gemm", "spread", (NOISE, 2 * width * start**2)), Step("Reshape", "planes", (2 * width, start, start)),
        Step("BatchNormalization", "normal1", (2 * width,)), Step("Relu", "relu1"),
        Step("ConvTranspose", "up1", (2 * width, width), 4, 2, 1),
        Step("BatchNormalization", "normal2", (width,)), Step("Relu", "relu2"),
        Step("ConvTranspose", "up2", (width, 1), 4, 2, 1), Step("Sigmoid", "image"),
    )  # fmt: skip


def discriminator(side: int, width: int) -> Steps:
    flat = 2 * width * (side // 4) ** 2
    return (
        Step("Conv", "down1", (1, width), 4, 2, 1), Step("LeakyRelu", "leaky1"),
        Step("Conv", "down2", (width, 2 * width), 4, 2, 1), Step("LeakyRelu", "leaky2"),
        Step("Reshape", "flat", (flat,)), Step("Gemm", "score", (flat, 1)),
    )  # fmt: skip


def contest(
    draws: Any,
    tells: Any,
    images: np.ndarray,
    plan: Plan,
    report: Report,
    after: Callable[[int, Any], None] | None = None,
) -> tuple[Any, dict[str, list[float]]]:
    """Train both by turns, one step each; gives the generator of mean weights, which ``after`` is given after each epoch too, and
    each epoch's mean losses.

    Raises QuatrefoilError where a loss is not finite.
    """
    import torch

    rng, pace = Generator(SEED, 61), plan.pace
    softplus = torch.nn.functional.softplus
    ours = torch.optim.Adam(draws.parameters(), pace.rate, MOMENTS)
    theirs = torch.optim.Adam(tells.parameters(), pace.rate * plan.faster, MOMENTS)
    mean = copy.deepcopy(draws).eval()
    curves: dict[str, list[float]] = {"generator's loss": [], "discriminator's loss": []}
    steps = 0
    with one_thread():
        for epoch in range(1, pace.epochs + 1):
            order, totals = rng.permutation(len(images)), np.zeros(2)
            for first in range(0, len(images), pace.batch):
                real = torch.from_numpy(images[order[first : first + pace.batch]])
                drawn = draws(torch.from_numpy(rng.normal((len(real), NOISE))))["image"]
                score = tells(real)["score"]
                told = (REAL * softplus(-score) + (1 - REAL) * softplus(score)).mean()
                told = told + softplus(tells(drawn.detach())["score"]).mean()
                theirs.zero_grad()
                told.backward()
                theirs.step()
                fooled = softplus(-tells(drawn)["score"]).mean()
                ours.zero_grad()
                fooled.backward()
                ours.step()
                steps += 1
                average(mean, draws, min(KEPT, (1 + steps) / (10 + steps)))
                for place, value in enumerate((fooled, told)):
                    totals[place] += require_finite(NAME, value.item(), epoch) * len(real)
            for curve, total in zip(curves.values(), totals):
                curve.append(float(total) / len(images))
            losses = ", ".join(f"{name} {curve[-1]:.3f}" for name, curve in curves.items())
            report(f"epoch {epoch} of {pace.epochs}: {losses}")
            if after is not None:
                after(epoch, mean)
    return mean, curves


def average(mean: Any, module: Any, kept: float) -> None:
    """Move the weights and statistics of ``mean`` to those of ``module``, by 1 - kept of the way."""
    import torch

    with torch.no_grad():
        for held, new in zip(mean.state_dict().values(), module.state_dict().values()):
            held.copy_(kept * held + (1 - kept) * new if held.is_floating_point() else new)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The squared Frechet distance of the normal distributions fitted to rows a and b (count, features), in float64."""
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # the trace of (ca cb)^(1/2): the eigenvalues of ca cb are real and not below 0
    crossed = np.sqrt(np.maximum(np.linalg.eigvals(ca @ cb).real, 0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * crossed)


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean Kullback-Leibler divergence of rows (count, classes) from their mean."""
    p = np.maximum(probabilities.astype(np.float64), 1e-12)
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))


class Judge:
    """A LeNet that knows real digits; judges images (count, 1, side, side)."""

    def __init__(self, split: Split, pace: Pace) -> None:
        side = split.train_images.shape[1]
        self.chain = build(lenet(side), Generator(SEED, 65))
        learn(NAME, self.chain, split, (1, side, side), pace, say_nothing)
        self.goal = self.seen(planes(split.held_out_images))[0]

    def seen(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and probabilities of the classes."""
        import torch

        with torch.no_grad():
            values = self.chain(torch.from_numpy(images))
            return values[FEATURES].numpy(), torch.softmax(values["scores"], 1).numpy()

    def distance(self, images: np.ndarray) -> float:
        """The Frechet distance to the held-out images."""
        return frechet(self.seen(images)[0], self.goal)

    def score(self, images: np.ndarray) -> float:
        return inception_score(self.seen(images)[1])


def planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images)[:, np.newaxis]


def drawings(draws: Any, count: int, stream: int = 63) -> np.ndarray:
    """Images (count, 1, side, side) that a generator draws from noise, by the statistics that it has kept."""
    import torch

    draws.eval()
    with torch.no_grad():
        return np.ascontiguousarray(
            draws(torch.from_numpy(Generator(SEED, stream).normal((count, NOISE))))["image"].numpy()
        )


def players(side: int, width: int) -> tuple[Any, Any]:
    return build(generator(side, width), Generator(SEED, 60)), build(discriminator(side, width), Generator(SEED, 62))


def nearest(images: np.ndarray, known: np.ndarray) -> float:
    """The mean distance of images to the nearest of those known, over pixels."""
    a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (images, known))
    squared = (a**2).sum(1)[:, np.newaxis] - 2 * a @ b.T + (b**2).sum(1)
    return float(np.sqrt(np.maximum(squared.min(1), 0)).mean())


def train(settings: Settings, small: bool, report: Report) -> Trained:
    require_torch()
    split, how = load(small), plan(small).at(settings)
    side, images = split.train_images.shape[1], planes(split.train_images)
    held_out = planes(split.held_out_images)
    draws, tells = players(side, how.width)
    others = twin(draws), twin(tells)
    begin = drawings(copy.deepcopy(draws), len(held_out))
    mean, curves = contest(draws, tells, images, how, report)
    report("the same in torch's own layers")
    their_mean, _ = contest(*others, images, how, say_nothing)
    judge = Judge(split, JUDGING[small])
    drawn, theirs = drawings(mean, len(held_out)), drawings(their_mean, len(held_out))
    real = images[: len(held_out)]
    return Trained(
        {**weights_of(mean), "side": np.array(side), "width": np.array(how.width)},
        {
            "Frechet distance to held-out images": judge.distance(drawn),
            "inception score": judge.score(drawn),
            "mean distance to the nearest training image": nearest(drawn, images),
        },
        (
            Beside("torch's own layers: distance", judge.distance(theirs), "same start, batches and noise"),
            Beside("before training: distance", judge.distance(begin), "ours"),
            Beside("training images: distance", judge.distance(real), "what is left to chance"),
            Beside("torch's own layers: inception score", judge.score(theirs), "same start, batches and noise"),
            Beside("held-out images: inception score", judge.score(held_out), "the real ones"),
            Beside("held-out images: to the nearest training image", nearest(held_out, images), "copies would have 0"),
        ),
        curves,
        {"drawn from noise": drawn[: PICTURES[0] * PICTURES[1], 0].reshape(*PICTURES, side, side)},
    )  # fmt: skip


JUDGING = Pace(10, rate=1e-3), Pace(5)
FULL, SMALL = Plan(16, Pace(50, rate=1e-3), 2.0), Plan(8, Pace(8, 25, 3e-3), 2.0)


def plan(small: bool) -> Plan:
    return SMALL if small else FULL


def chosen(small: bool) -> Settings:
    own = plan(small)
    return {"rate": own.pace.rate, "batch": own.pace.batch, "faster": own.faster}


def judge(settings: Settings, small: bool, seen: Seen) -> float:
    """The Frechet distance to the validation split's images."""
    require_torch()
    split, how = data.held_out(load(small)), plan(small).at(settings)
    knows = Judge(split, JUDGING[small])
    both = players(split.train_images.shape[1], how.width)

    def distance(mean: Any) -> float:
        return knows.distance(drawings(mean, len(split.held_out_images)))

    def after(epoch: int, mean: Any) -> None:
        seen(epoch, distance(mean))

    return distance(contest(*both, planes(split.train_images), how, say_nothing, after)[0])


def written(weights: Weights) -> onnx.ModelProto:
    side, width = int(weights["side"]), int(weights["width"])
    return export(
        NAME, generator(side, width), weights, (NOISE,), "Generator of digits, from normal noise", (1, side, side)
    )


ENTRIES = (
    Entry(
        NAME, "generative adversarial network, convolutional, draws digits", DATA,
        "Goodfellow et al. 2014; Radford, Metz and Chintala 2016",
        lambda small, report: train(chosen(small), small, report), written,
        lambda small: Generator(SEED, 64).normal((8, NOISE)),
        Tuning(
            PACES | {"faster": Range(0.25, 4.0, log=True)}, chosen, "Frechet distance to validation images", False, judge, train,
        ),
    ),
)  # fmt: skip
