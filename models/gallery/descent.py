"""Training by gradients, for all models of the gallery that are chains of steps: Adam (Kingma and Ba 2015) over shuffled
batches, and the same training again in torch's own layers, to compare with.

The twin in torch starts from the same weights and sees the same batches, so that only the kernels differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import onnx

import quatrefoil as qf
from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.chains import INPUT, Step, build, weights_of, write
from quatrefoil.models.gallery.entry import Beside, Graph, Report, Trained, Weights, require_finite
from quatrefoil.models.gallery.readout import accuracy
from quatrefoil.models.gallery.tuning import Range, Seen, Settings
from quatrefoil.random import Generator

CLASSES = 10


FEW = 700
DATA = f"5,000 images of MNIST (small: {FEW} of scikit-learn's digits)"


def load(small: bool) -> Split:
    """MNIST, or where ``small`` digits, the first FEW of them to train with."""
    if not small:
        return data.mnist()
    split = data.digits()
    return split._replace(train_images=split.train_images[:FEW], train_digits=split.train_digits[:FEW])


class Pace(NamedTuple):
    epochs: int
    batch: int = 50
    rate: float = 2e-3

    def at(self, settings: Settings) -> Pace:
        """With a rate and a batch from settings."""
        return self._replace(rate=float(settings["rate"]), batch=int(settings["batch"]))


PACES = {"rate": Range(3e-4, 3e-2, log=True), "batch": Range(10, 100, log=True)}
"""The settings that every training by gradients has."""


def say_nothing(line: str) -> None:
    """Reports of a twin, or of a trial."""


def require_torch() -> None:
    """Raises BackendUnavailable where torch is missing, before anything else asks for it."""
    import quatrefoil.torch  # noqa: F401


@contextmanager
def one_thread() -> Iterator[None]:
    """Ours and torch's layers on one thread: at these sizes, threads that wait for each other take longest."""
    import torch

    ours, theirs = qf.num_threads(), torch.get_num_threads()
    qf.set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        qf.set_num_threads(ours)
        torch.set_num_threads(theirs)


def descend(
    name: str,
    module: Any,
    count: int,
    loss: Callable[[np.ndarray], Any],
    pace: Pace,
    report: Report,
    after: Callable[[int], None] | None = None,
) -> list[float]:
    """Lower ``loss(chosen)``, the mean over the rows chosen of ``count``. Gives each epoch's mean loss; ``after`` is told
    each epoch's number at its end.

    Raises QuatrefoilError for a loss that is not finite.
    """
    import torch

    rng = Generator(SEED, 31)
    optimizer = torch.optim.Adam(module.parameters(), pace.rate)
    curve = []
    with one_thread():
        for epoch in range(1, pace.epochs + 1):
            order, total = rng.permutation(count), 0.0
            for first in range(0, count, pace.batch):
                chosen = order[first : first + pace.batch]
                value = loss(chosen)
                total += require_finite(name, value.item(), epoch) * len(chosen)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            curve.append(total / count)
            report(f"epoch {epoch} of {pace.epochs}: loss {curve[-1]:.4f}")
            if after is not None:
                after(epoch)
    return curve


def twin(module: Any) -> Any:
    """The same module with the same weights in torch's own layers."""
    import quatrefoil.torch as qft

    other = copy.deepcopy(module)
    qft.swap(other, back=True)
    return other


def outputs(module: Any, inputs: np.ndarray, output: str) -> np.ndarray:
    """A chain's value of this name for inputs (count, ...)."""
    import torch

    with torch.no_grad():
        return np.ascontiguousarray(module(torch.from_numpy(inputs))[output].numpy())


def learn(
    name: str,
    chain: Any,
    split: Split,
    shape: tuple[int, ...],
    pace: Pace,
    report: Report,
    seen: Seen | None = None,
) -> tuple[list[float], float]:
    """Train a chain that ends in ``scores`` on images reshaped to ``shape``: the curve of its loss, and its held-out
    accuracy, which ``seen`` is told after each epoch too.

    Raises QuatrefoilError for labels outside 0 to the number of scores - 1.
    """
    import torch

    classes = chain.layers["scores"].out_channels
    wanted = torch.from_numpy(data.checked_labels(split.train_digits, classes).T.copy())
    images = torch.from_numpy(np.ascontiguousarray(split.train_images)).reshape(-1, *shape)
    held_out = np.ascontiguousarray(split.held_out_images).reshape(-1, *shape)

    def loss(chosen: np.ndarray) -> Any:
        at = torch.from_numpy(chosen)
        return torch.nn.functional.cross_entropy(chain(images[at])["scores"], wanted[at])

    def right() -> float:
        return accuracy(outputs(chain, held_out, "scores"), split.held_out_digits)

    after = None if seen is None else lambda epoch: seen(epoch, right())
    return descend(name, chain, len(images), loss, pace, report, after), right()


def classify(
    name: str, steps: tuple[Step, ...], split: Split, shape: tuple[int, ...], pace: Pace, report: Report
) -> Trained:
    """Train a chain that ends in ``scores`` on images reshaped to ``shape``, beside its twin in torch."""
    require_torch()
    module = build(steps, Generator(SEED, 30))
    other = twin(module)
    curve, reached = learn(name, module, split, shape, pace, report)
    _, theirs = learn(name, other, split, shape, pace, say_nothing)
    return Trained(
        weights_of(module),
        {"held-out accuracy": reached},
        (Beside("torch's own layers", theirs, "same start, batches and split"),),
        {"cross-entropy": curve},
    )


def export(
    name: str, steps: tuple[Step, ...], weights: Weights, shape: tuple[int, ...], about: str, result: tuple[int, ...]
) -> onnx.ModelProto:
    """A chain as ONNX, from INPUT (batch, *shape) to its last value (batch, *result)."""
    graph = Graph(name, INPUT, ["batch", *shape], about)
    outcome: dict[str, tuple[int | str, ...]] = {write(graph, steps, weights): ("batch", *result)}
    return graph.model(**outcome)
