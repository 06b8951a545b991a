"""Autoencoders: networks that give back what they were given through a code, each with its own reason for a good code.

plain           a small code (Hinton and Salakhutdinov 2006)
sparse          a wide code whose units are active SPARSE of the time: a Kullback-Leibler penalty (Ng 2011)
denoising       gives back the clean image of one whose pixels were partly set to 0 (Vincent et al. 2008)
contractive     a code that moves little where the image does: the squared Jacobian is a penalty (Rifai et al. 2011)
convolutional   max pools keep the places of what they took, and unpools put it back there (Zeiler et al. 2011); the
                places go past the code, so that PCA with as many numbers is given less

All but the last have one sigmoid layer each way. Errors are mean squared differences of pixels from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED
from quatrefoil.models.gallery.chains import INPUT, Step, build, weights_of, write
from quatrefoil.models.gallery.descent import DATA, Pace, descend, load, outputs, require_torch, twin
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights
from quatrefoil.models.gallery.readout import one_thread
from quatrefoil.random import Generator

Steps = tuple[Step, ...]
SPARSE, SPARSE_PENALTY = 0.05, 2.0
LOST = 0.3
CONTRACTION = 1e-3
CHANNELS = 8
PICTURES = 12


def dense(side: int, code: int) -> Steps:
    return (
        Step("Gemm", "encode", (side * side, code)), Step("Sigmoid", "code"),
        Step("Gemm", "decode", (code, side * side)), Step("Sigmoid", "reconstruction"),
    )  # fmt: skip


def convolutional(side: int, code: int) -> Steps:
    return (
        Step("Conv", "encode1", (1, CHANNELS), 3, pad=1), Step("Relu", "relu1"), Step("MaxPool", "pool1", kernel=2),
        Step("Conv", "encode2", (CHANNELS, code), 3, pad=1), Step("Relu", "relu2"), Step("MaxPool", "code", kernel=2),
        Step("MaxUnpool", "unpool2", kernel=2, also="code"),
        Step("ConvTranspose", "decode2", (code, CHANNELS), 3, pad=1), Step("Relu", "relu3"),
        Step("MaxUnpool", "unpool1", kernel=2, also="pool1"),
        Step("ConvTranspose", "decode1", (CHANNELS, 1), 3, pad=1), Step("Sigmoid", "reconstruction"),
    )  # fmt: skip


def reconstruct(chain: Any, clean: Any, given: Any) -> tuple[Any, dict[str, Any]]:
    """The mean squared error, summed over an image's pixels as penalties are over a code's units; and all values."""
    values = chain(given)
    return ((values["reconstruction"] - clean) ** 2).flatten(1).sum(1).mean(), values


def plain(chain: Any, clean: Any, given: Any) -> Any:
    return reconstruct(chain, clean, given)[0]


def sparse(chain: Any, clean: Any, given: Any) -> Any:
    """With KL(SPARSE || mean activity) of each unit."""
    error, values = reconstruct(chain, clean, given)
    active = values["code"].mean(0).clamp(1e-6, 1 - 1e-6)
    kl = SPARSE * (SPARSE / active).log() + (1 - SPARSE) * ((1 - SPARSE) / (1 - active)).log()
    return error + SPARSE_PENALTY * kl.sum()


def jacobian(code: Any, weight: Any) -> Any:
    """The squared Frobenius norm of the Jacobian of sigmoid(weight x + b), for each row of its values (count, units)."""
    return (((code * (1 - code)) ** 2) * (weight**2).sum(1)).sum(1)


def contractive(chain: Any, clean: Any, given: Any) -> Any:
    error, values = reconstruct(chain, clean, given)
    return (
        error + CONTRACTION * clean[0].numel() * jacobian(values["code"], chain.layers["encode"].weight[:, :, 0]).mean()
    )


class Kind(NamedTuple):
    steps: Callable[[int, int], Steps]
    loss: Callable[[Any, Any, Any], Any]
    codes: tuple[int, int]
    """Units of the code (channels, where it is convolutional), at full and at small size."""
    lost: float = 0.0
    """The share of pixels that are set to 0 in what is given."""


PACES = Pace(30, rate=1e-2), Pace(8, 25, 2e-2)


def shaped(kind: Kind, images: np.ndarray) -> np.ndarray:
    images = np.ascontiguousarray(images)
    return images[:, np.newaxis] if kind.steps is convolutional else images.reshape(len(images), -1)


def damaged(kind: Kind, images: np.ndarray, stream: int) -> np.ndarray:
    if not kind.lost:
        return images
    return images * Generator(SEED, stream).bernoulli(np.full(images.shape, 1 - kind.lost, np.float32))


def beside_pca(code: int, clean: np.ndarray, wanted: np.ndarray, given: np.ndarray) -> Beside:
    """The best linear autoencoder: scikit-learn's PCA with as many numbers in its code."""
    from sklearn.decomposition import PCA

    with one_thread():
        fitted = PCA(code, random_state=SEED).fit(clean)
        found = fitted.inverse_transform(fitted.transform(given))
    return Beside(f"scikit-learn's PCA, {code} components: error", float(((found - wanted) ** 2).mean()), "same split")


def train(name: str, kind: Kind, small: bool, report: Report) -> Trained:
    require_torch()
    import torch

    split, pace, code = load(small), PACES[small], kind.codes[small]
    side = split.train_images.shape[1]
    clean, held_out = shaped(kind, split.train_images), shaped(kind, split.held_out_images)
    wanted, given = torch.from_numpy(clean), torch.from_numpy(damaged(kind, clean, 41))
    tested = damaged(kind, held_out, 42)
    chain = build(kind.steps(side, code), Generator(SEED, 40))

    def trained(module: Any, say: Report) -> list[float]:
        def loss(chosen: np.ndarray) -> Any:
            at = torch.from_numpy(chosen)
            return kind.loss(module, wanted[at], given[at])

        return descend(name, module, len(clean), loss, pace, say)

    def error(module: Any) -> float:
        return float(((outputs(module, tested, "reconstruction") - held_out) ** 2).mean())

    other = twin(chain)
    curve = trained(chain, report)
    trained(other, lambda line: None)
    figures = {"held-out reconstruction error": error(chain)}
    beside = [Beside("torch's own layers: error", error(other), "same start, batches and split")]
    codes = outputs(chain, tested, "code")
    if kind.loss is sparse:
        figures["mean activity of the code"] = float(codes.mean())
        beside.append(Beside("activity asked for", SPARSE, "the penalty's target"))
    if kind.loss is contractive:
        weight = chain.layers["encode"].weight.detach()[:, :, 0]
        figures["squared norm of the Jacobian"] = float(jacobian(torch.from_numpy(codes), weight).mean())
        free = build(kind.steps(side, code), Generator(SEED, 40))
        descend(name, free, len(clean),
                lambda chosen: plain(free, wanted[torch.from_numpy(chosen)], given[torch.from_numpy(chosen)]),
                pace, lambda line: None)  # fmt: skip
        loose = jacobian(
            torch.from_numpy(outputs(free, tested, "code")), free.layers["encode"].weight.detach()[:, :, 0]
        )
        beside.append(Beside("squared norm of the Jacobian, no penalty", float(loose.mean()), "ours, same start"))
    flat = [array.reshape(len(array), -1) for array in (clean, held_out, tested)]
    numbers = int(np.prod(codes.shape[1:]))
    if numbers < min(flat[0].shape):
        beside.append(beside_pca(numbers, *flat))
    rows = [held_out, tested, outputs(chain, tested, "reconstruction")]
    shown = [array[:PICTURES].reshape(PICTURES, side, side) for array in (rows if kind.lost else rows[1:])]
    return Trained(
        {**weights_of(chain), "side": np.array(side), "units": np.array(code)},
        figures,
        tuple(beside),
        {"loss": curve},
        {"held-out images, what was given where it was damaged, what came back": np.stack(shown)},
    )


def entry(name: str, what: str, source: str, kind: Kind) -> Entry:
    def written(weights: Weights) -> onnx.ModelProto:
        side, code = int(weights["side"]), int(weights["units"])
        shape = (1, side, side) if kind.steps is convolutional else (side * side,)
        graph = Graph(name, INPUT, ["batch", *shape], what)
        write(graph, kind.steps(side, code), weights)
        code_shape = (code, side // 4, side // 4) if kind.steps is convolutional else (code,)
        return graph.model(code=["batch", *code_shape], reconstruction=["batch", *shape])

    return Entry(
        name, what, DATA, source,
        lambda small, report: train(name, kind, small, report), written,
        lambda small: damaged(kind, shaped(kind, load(small).held_out_images[:8]), 43),
    )  # fmt: skip


ENTRIES = (
    entry("autoencoder", "autoencoder, a small code", "Hinton and Salakhutdinov 2006", Kind(dense, plain, (32, 16))),
    entry("autoencoder_sparse", "sparse autoencoder, Kullback-Leibler penalty", "Ng 2011", Kind(dense, sparse, (128, 48))),
    entry("autoencoder_denoising", "denoising autoencoder", "Vincent et al. 2008", Kind(dense, plain, (128, 48), LOST)),
    entry("autoencoder_contractive", "contractive autoencoder", "Rifai et al. 2011", Kind(dense, contractive, (64, 32))),
    entry("autoencoder_conv", "convolutional autoencoder, pooling and unpooling", "Zeiler, Taylor and Fergus 2011",
          Kind(convolutional, plain, (4, 4))),
)  # fmt: skip
