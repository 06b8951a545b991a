"""A network of leaky integrate-and-fire units, trained by surrogate gradients (Neftci, Mostafa and Zenke 2019).

    v(t) = LEAK v(t - 1) [v(t - 1) < 1] + W x(t) + b,  a unit spikes where v(t) >= 1 and starts anew from 0 then

An image is a constant current for TIMES steps; two layers of spiking units, whose second one's spikes are counted and read by
a dense layer. Going back, a spike is taken for a function of slope 1 / (1 + slope |v - 1|)^2 (Zenke and Ganguli 2018).

ONNX has no such unit, but a GRU whose update gate is shut is one: its reset gate, a step as HardSigmoid, keeps or drops the
state, and its candidate is linear. So the units run as ``qf.gru`` on every backend. Pixels are rounded to sixteenths and
weights to 1 / 256, and LEAK is 1 / 2: every sum is exact in float32 while |v| is below 32, in whatever order it is taken, so
that all backends spike alike and give the same scores to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

import quatrefoil as qf
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import SEED, data
from quatrefoil.models.gallery.classifiers import beside_perceptron
from quatrefoil.models.gallery.descent import (
    CLASSES,
    DATA,
    PACES,
    Pace,
    learn,
    load,
    require_torch,
    say_nothing,
    twin,
)
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights
from quatrefoil.models.gallery.products import dense
from quatrefoil.models.gallery.readout import accuracy
from quatrefoil.models.gallery.tuning import Range, Seen, Settings, Tuning
from quatrefoil.random import Generator

NAME = "spiking"
TIMES, LEAK = 8, 0.5
PIXEL, WEIGHT = 16, 256
"""Steps of a pixel and of a weight, to 1."""
LARGEST = 32.0
THRESHOLD = 1 - 2.0**-21
"""Just below 1, so that no sum lies on it."""
SHARP = 2.0**22
"""HardSigmoid's slope: 0 or 1 at every sum."""
FULL, SMALL = Pace(12, 50, 2e-3), Pace(8, 50, 5e-3)
WIDTHS = {"hidden1": 128, "hidden2": 64, "slope": 5.0}


def network(pixels: int, settings: Settings, rng: Generator) -> Any:
    """A torch module from rows of pixels (batch, ...) to "scores" and to the "spikes" of both layers (TIMES, batch, units)."""
    import torch

    import quatrefoil.torch as qft

    slope = float(settings["slope"])
    first, second = int(settings["hidden1"]), int(settings["hidden2"])

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, v: Any) -> Any:
            ctx.save_for_backward(v)
            return (v >= THRESHOLD).to(v.dtype)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            (v,) = ctx.saved_tensors
            return gradient / (1 + slope * (v - 1).abs()) ** 2

    def fired(currents: Any) -> Any:
        """currents (TIMES, batch, units), or without the first axis where they stay the same."""
        v = spikes = torch.zeros_like(currents[0] if currents.ndim == 3 else currents)
        found = []
        for time in range(TIMES):
            v = LEAK * v * (1 - spikes.detach()) + (currents[time] if currents.ndim == 3 else currents)
            spikes = Spike.apply(v)
            found.append(spikes)
        return torch.stack(found)

    class Spiking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"lif1": (pixels, first), "lif2": (first, second), "scores": (second, CLASSES)}
            self.layers = torch.nn.ModuleDict({name: qft.Conv1d(*size, 1) for name, size in sizes.items()})

        def dense(self, name: str, rows: Any) -> Any:
            return self.layers[name](rows.T.contiguous()[None])[0].T

        def forward(self, x: Any) -> Any:
            one = fired(self.dense("lif1", torch.round(x.reshape(len(x), -1) * PIXEL) / PIXEL))
            two = fired(self.dense("lif2", one.flatten(0, 1)).reshape(TIMES, len(x), -1))
            return {"scores": self.dense("scores", two.sum(0)), "spikes": (one, two)}

    made = Spiking()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            drawn = (2 * rng.uniform(tuple(parameter.shape)) - 1) * np.sqrt(3 / np.prod(parameter.shape[1:]))
            values = 2 * drawn if "lif" in name else drawn / TIMES  # so that units spike, and counts stay small
            parameter.copy_(torch.from_numpy(values.astype(np.float32)) if "weight" in name else 0 * parameter)
    return made


def rounded(module: Any) -> Weights:
    """A module's weights, (units, inputs) and (units), in steps of 1 / WEIGHT."""
    found = {}
    for name, value in module.state_dict().items():
        array = np.round(value.numpy() * WEIGHT) / WEIGHT
        found[name.removeprefix("layers.")] = array.reshape(array.shape[: 2 if "weight" in name else 1])
    return found


def as_gru(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ONNX's W (1, 3 units, inputs), R (1, 3 units, units) and B (1, 6 units) of a layer of spiking units."""
    units, inputs = weight.shape
    w, r, b = (np.zeros((1, *shape), np.float32) for shape in ((3 * units, inputs), (3 * units, units), (6 * units,)))
    z, reset, candidate = (slice(gate * units, (gate + 1) * units) for gate in range(3))
    w[0, candidate], b[0, candidate] = weight, bias
    b[0, z] = -1.0
    r[0, reset], b[0, reset] = -np.eye(units), THRESHOLD
    r[0, candidate] = LEAK * np.eye(units)
    return w, r, b


ACTIVATIONS: dict[str, Any] = {
    "activations": ["HardSigmoid", "Affine"],
    "activation_alpha": [SHARP, 1.0],
    "activation_beta": [0.5, 0.0],
}


def spikes(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """A layer's spikes, float32 (TIMES, batch, units), for inputs (TIMES, batch, inputs), on our kernels.

    Raises QuatrefoilError where a sum may have been rounded.
    """
    v, _ = qf.gru(x, *as_gru(weights[f"{name}.weight"], weights[f"{name}.bias"]), **ACTIVATIONS)
    if not np.abs(v).max() < LARGEST:
        raise QuatrefoilError(f"{NAME}: a unit of {name} reaches {np.abs(v).max():g}; sums are exact below {LARGEST:g}")
    return (v[:, 0] >= THRESHOLD).astype(np.float32)


def run(weights: Weights, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Scores (batch, CLASSES), and the spikes of both layers."""
    rows = (np.round(images.reshape(len(images), -1) * PIXEL) / PIXEL).astype(np.float32)
    one = spikes(weights, "lif1", np.broadcast_to(rows, (TIMES, *rows.shape)).copy())
    two = spikes(weights, "lif2", one)
    counts = np.ascontiguousarray(two.sum(0).T)
    return dense(weights["scores.weight"], counts, weights["scores.bias"]).T, [one, two]


def pace(small: bool) -> Pace:
    return SMALL if small else FULL


def chosen(small: bool) -> Settings:
    return {"rate": pace(small).rate, "batch": pace(small).batch, **WIDTHS}


def judge(settings: Settings, small: bool, seen: Seen) -> float:
    """The accuracy on the validation split, before weights are rounded."""
    require_torch()
    split = data.held_out(load(small))
    shape = (split.train_images[0].size,)
    module = network(*shape, settings, Generator(SEED, 70))
    return learn(NAME, module, split, shape, pace(small).at(settings), say_nothing, seen)[1]


def train(settings: Settings, small: bool, report: Report) -> Trained:
    require_torch()
    split, how = load(small), pace(small).at(settings)
    shape = (split.train_images[0].size,)
    module = network(*shape, settings, Generator(SEED, 70))
    other = twin(module)
    curve, before = learn(NAME, module, split, shape, how, report)
    _, theirs = learn(NAME, other, split, shape, how, say_nothing)
    weights = rounded(module)
    scores, fired = run(weights, split.held_out_images)
    raster = np.concatenate([each[:, :8].transpose(1, 2, 0)[:, :48] for each in fired], 1)
    hidden = int(settings["hidden1"]), int(settings["hidden2"])
    return Trained(
        weights,
        {
            "held-out accuracy": accuracy(scores, split.held_out_digits),
            "held-out accuracy before weights are rounded": before,
            "spikes of a unit for an image": float(np.mean(np.concatenate([each.sum(0) for each in fired], 1))),
        },
        (
            Beside("torch's own layers", theirs, "same start, batches and split, weights not rounded"),
            beside_perceptron(split, how, hidden),
        ),
        {"cross-entropy": curve},
        {f"spikes of 96 units over {TIMES} steps, for eight images": raster[np.newaxis]},
    )


def written(weights: Weights) -> onnx.ModelProto:
    """pixels (batch, inputs) to scores (batch, CLASSES)."""
    inputs = weights["lif1.weight"].shape[1]
    graph = Graph(NAME, "pixels", ["batch", inputs], "Leaky integrate-and-fire units: pixels to ten scores")
    graph.add("Mul", "pixels", graph.weight("steps", np.array(PIXEL, np.float32)), name="in_steps")
    graph.add("Round", "in_steps", name="whole_steps")
    graph.add("Div", "whole_steps", "steps", name="current")
    graph.add("Expand", "current", graph.weight("times", np.array([TIMES, 1, 1])), name="spikes0")
    for number in (1, 2):
        name = f"lif{number}"
        w, r, b = as_gru(weights[f"{name}.weight"], weights[f"{name}.bias"])
        parameters = [graph.weight(f"{name}.{key}", array) for key, array in (("W", w), ("R", r), ("B", b))]
        graph.add("GRU", f"spikes{number - 1}", *parameters, name=name, outputs=[f"{name}.v"],
                  hidden_size=r.shape[2], **ACTIVATIONS)  # fmt: skip
        graph.add("Squeeze", f"{name}.v", graph.weight("direction", np.array([1])), name=f"v{number}")
        threshold = graph.weight("threshold", np.array(THRESHOLD, np.float32))
        graph.add("GreaterOrEqual", f"v{number}", threshold, name=f"above{number}")
        graph.add("Cast", f"above{number}", name=f"spikes{number}", to=TensorProto.FLOAT)
    graph.add("ReduceSum", "spikes2", graph.weight("time", np.array([0])), name="counts", keepdims=0)
    parameters = [graph.weight(f"scores.{key}", weights[f"scores.{key}"]) for key in ("weight", "bias")]
    graph.add("Gemm", "counts", *parameters, name="scores", transB=1)
    return graph.model(scores=["batch", CLASSES])


ENTRIES = (
    Entry(
        NAME, "spiking network, two layers of leaky integrate-and-fire units, surrogate gradients", DATA,
        "Neftci, Mostafa and Zenke 2019",
        lambda small, report: train(chosen(small), small, report),
        written,
        lambda small: load(small).held_out_images[:8].reshape(8, -1),
        Tuning(
            PACES | {"hidden1": Range(32, 256, log=True), "hidden2": Range(16, 128, log=True), "slope": Range(1.0, 50.0, log=True)},
            chosen, "validation accuracy", True, judge, train,
        ),
    ),
)  # fmt: skip
