"""The network that parallel runs train, in stages, and the samples of each step.

A convolutional network over scikit-learn's 8x8 digits, its layers on the kernels of ``quatrefoil.torch``. Which samples a
step takes follows from the seed and the step's number alone (Philox with both as key), so that every process, and every run
that goes on from a checkpoint, meets the same ones.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import digits_split
from quatrefoil.torch import swap

DIGITS = 10


def stages(seed: int) -> list[nn.Sequential]:
    """The network in four stages, to be run one after the other: (N, 1, 8, 8) to ten scores."""
    torch.manual_seed(seed)
    named: list[OrderedDict[str, nn.Module]] = [
        OrderedDict(conv1=nn.Conv2d(1, 16, 3, padding=1), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2)),
        OrderedDict(conv2=nn.Conv2d(16, 32, 3, padding=1), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2)),
        OrderedDict(flat=nn.Flatten(), dense1=nn.Linear(128, 128), relu3=nn.ReLU()),
        OrderedDict(dense2=nn.Linear(128, DIGITS)),
    ]
    built = [nn.Sequential(layers) for layers in named]
    for stage in built:
        swap(stage)
    return built


class Samples:
    """The digits as tensors, and the samples of each step."""

    def __init__(self, seed: int, batch: int) -> None:
        split = digits_split()
        self.seed, self.batch = seed, batch
        self.images = torch.from_numpy(split.train_images[:, None])
        self.digits = torch.from_numpy(split.train_digits)
        self.held_out = torch.from_numpy(split.held_out_images[:, None])
        self.held_out_digits = split.held_out_digits
        checked_labels(split.train_digits)

    def of(self, step: int, share: int, shares: int) -> tuple[Tensor, Tensor]:
        """A share's images and digits of a step."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        picked = draw.choice(len(self.digits), self.batch, replace=False)
        size = self.batch // shares
        mine = torch.from_numpy(picked[share * size : (share + 1) * size])
        return self.images[mine], self.digits[mine]


def checked_labels(labels: np.ndarray) -> None:
    """Raises QuatrefoilError where a label is no class of the network."""
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < DIGITS:
        raise QuatrefoilError(
            f"labels run from {labels.min()} to {labels.max()}; the network has classes 0 to {DIGITS - 1}"
        )


def accuracy(network: nn.Module, samples: Samples) -> float:
    """The share of held-out digits that the network names."""
    network.eval()
    with torch.no_grad():
        named = network(samples.held_out).argmax(1).numpy()
    network.train()
    return float((named == samples.held_out_digits).mean())
