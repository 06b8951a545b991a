"""A self-attention encoder over the rows of an image (Vaswani et al. 2017), one block.

A row is a token: embedded, with a learned position; attention of several heads and a layer of two products, each followed by
the sum with what it was given and layer normalisation; the mean over the rows is classified.

Values lie (batch, width, rows), so that a dense layer over tokens is a 1x1 convolution. The products of queries with keys and
of attention with values are of numbers that are both made from the image: they are one grouped convolution, a group for each
head of each image, whose weights are the queries or the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, data
from quatrefoil.models.gallery.chains import INPUT, weights_of
from quatrefoil.models.gallery.descent import (
    CLASSES,
    DATA,
    PACES,
    Pace,
    learn,
    load,
    outputs,
    require_torch,
    say_nothing,
    twin,
)
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights
from quatrefoil.models.gallery.rbm import flat
from quatrefoil.models.gallery.readout import accuracy, logistic
from quatrefoil.models.gallery.tuning import Range, Seen, Settings, Tuning, as_weights, of_weights
from quatrefoil.random import Generator

NAME = "attention"
HEADS = 4
FULL, SMALL = Pace(15, 50, 2e-3), Pace(10, 50, 4e-3)
WIDTHS = {"head": 8, "inner": 64}
SMALLEST = 1e-5
"""What layer normalisation adds to a variance."""


def grouped(weights: Any, x: Any) -> Any:
    """weights (groups, M, C) times x (groups, C, P), each group by itself, as one convolution: (groups, M, P)."""
    from quatrefoil.torch.operators import apply, text_of

    groups, rows, inputs = weights.shape
    attributes = {"strides": [1], "pads": [0, 0], "dilations": [1], "group": groups}
    given = [x.reshape(1, groups * inputs, -1), weights.reshape(groups * rows, inputs, 1), None]
    [y] = apply(given, "conv", text_of(attributes), 1)
    return y.reshape(groups, rows, -1)


def network(side: int, settings: Settings, rng: Generator) -> Any:
    """A torch module from images (batch, side, side) to "scores" (batch, CLASSES) and "attention" (batch, HEADS, side, side),
    the weight of each row (the last axis) for each row."""
    import torch

    import quatrefoil.torch as qft

    head, inner = int(settings["head"]), int(settings["inner"])
    width = HEADS * head
    sizes = {
        "embed": (side, width), "query": (width, width), "key": (width, width), "value": (width, width),
        "out": (width, width), "up": (width, inner), "down": (inner, width), "scores": (width, CLASSES),
    }  # fmt: skip

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product = grouped
            made = {name: qft.Conv1d(*size, 1) for name, size in sizes.items()}
            norms = {name: torch.nn.LayerNorm(width, SMALLEST) for name in ("norm1", "norm2")}
            self.layers = torch.nn.ModuleDict(made | norms)
            self.position = torch.nn.Parameter(torch.zeros(width, side))

        def heads(self, name: str, x: Any) -> Any:
            """(batch * HEADS, head, rows)."""
            return self.layers[name](x).reshape(-1, head, side)

        def norm(self, name: str, x: Any) -> Any:
            return self.layers[name](x.transpose(1, 2)).transpose(1, 2).contiguous()

        def forward(self, x: Any) -> Any:
            x = self.layers["embed"](x.transpose(1, 2).contiguous()) + self.position
            queries, keys, values = (self.heads(name, x) for name in ("query", "key", "value"))
            together = self.product(queries.transpose(1, 2).contiguous(), keys) / np.sqrt(head)
            share = torch.softmax(together, 2)
            found = self.product(values, share.transpose(1, 2).contiguous())
            x = self.norm("norm1", x + self.layers["out"](found.reshape(-1, width, side)))
            x = self.norm("norm2", x + self.layers["down"](torch.relu(self.layers["up"](x))))
            scores = self.layers["scores"](x.mean(2).T.contiguous()[None])[0].T
            return {"scores": scores, "attention": share.reshape(-1, HEADS, side, side)}

    made = Encoder()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or "bias" in name:
                continue
            drawn = (2 * rng.uniform(tuple(parameter.shape)) - 1) * np.sqrt(3 / max(1, np.prod(parameter.shape[1:])))
            parameter.copy_(torch.from_numpy(drawn.astype(np.float32)))
        for name in sizes:
            made.layers[name].bias.zero_()
    return made


def pace(small: bool) -> Pace:
    return SMALL if small else FULL


def chosen(small: bool) -> Settings:
    return {"rate": pace(small).rate, "batch": pace(small).batch, **WIDTHS}


def judge(settings: Settings, small: bool, seen: Seen) -> float:
    """The accuracy on the validation split."""
    require_torch()
    split = data.held_out(load(small))
    side = split.train_images.shape[1]
    module = network(side, settings, Generator(SEED, 80))
    return learn(NAME, module, split, (side, side), pace(small).at(settings), say_nothing, seen)[1]


def train(settings: Settings, small: bool, report: Report) -> Trained:
    require_torch()
    import torch

    split, how = load(small), pace(small).at(settings)
    side = split.train_images.shape[1]
    module = network(side, settings, Generator(SEED, 80))
    other = twin(module)
    other.product = torch.bmm
    curve, reached = learn(NAME, module, split, (side, side), how, report)
    _, theirs = learn(NAME, other, split, (side, side), how, say_nothing)
    pixels = logistic(flat(split.train_images), split.train_digits).scores(flat(split.held_out_images))
    shown = np.ascontiguousarray(split.held_out_images[:8])
    maps = outputs(module, shown, "attention").transpose(1, 0, 2, 3)
    maps /= maps.max((2, 3), keepdims=True)
    return Trained(
        weights_of(module) | as_weights(settings),
        {"held-out accuracy": reached},
        (
            Beside("torch's own layers", theirs, "same start, batches and split"),
            Beside("logistic regression of the pixels", accuracy(pixels, split.held_out_digits), "same split"),
        ),
        {"cross-entropy": curve},
        {
            f"eight images, and below each what its rows look at in {HEADS} heads":
                np.concatenate([shown[np.newaxis], maps])
        },
    )  # fmt: skip


def written(weights: Weights) -> onnx.ModelProto:
    """pixels (batch, side, side) to scores (batch, CLASSES), with MatMul, Softmax and LayerNormalization."""
    settings = of_weights(weights)
    width, side = weights["position"].shape
    head = int(settings["head"])
    graph = Graph(NAME, INPUT, ["batch", side, side], "Self-attention over the rows of a digit, to ten scores")

    def over_rows(name: str, x: str) -> str:
        graph.add(
            "MatMul", x, graph.weight(f"{name}.weight", weights[f"{name}.weight"][:, :, 0].T), name=f"{name}.sums"
        )
        return graph.add("Add", f"{name}.sums", graph.weight(f"{name}.bias", weights[f"{name}.bias"]), name=name)

    def heads(name: str, x: str, order: list[int]) -> str:
        parts = graph.weight("parts", np.array([0, side, HEADS, head]))
        graph.add("Reshape", over_rows(name, x), parts, name=f"{name}.parts")
        return graph.add("Transpose", f"{name}.parts", name=f"{name}.heads", perm=order)

    def normed(name: str, x: str, y: str) -> str:
        graph.add("Add", x, y, name=f"{name}.sum")
        scale, bias = (graph.weight(f"{name}.{key}", weights[f"{name}.{key}"]) for key in ("weight", "bias"))
        return graph.add("LayerNormalization", f"{name}.sum", scale, bias, name=name, axis=-1, epsilon=SMALLEST)

    position = graph.weight("position", weights["position"].T)
    tokens = graph.add("Add", over_rows("embed", INPUT), position, name="tokens")
    graph.add("MatMul", heads("query", tokens, [0, 2, 1, 3]), heads("key", tokens, [0, 2, 3, 1]), name="together")
    graph.add("Div", "together", graph.weight("root", np.array(np.sqrt(head), np.float32)), name="scaled")
    graph.add("Softmax", "scaled", name="attention", axis=-1)
    graph.add("MatMul", "attention", heads("value", tokens, [0, 2, 1, 3]), name="found")
    graph.add("Transpose", "found", name="rows_first", perm=[0, 2, 1, 3])
    graph.add("Reshape", "rows_first", graph.weight("whole", np.array([0, side, width])), name="side_by_side")
    x = normed("norm1", tokens, over_rows("out", "side_by_side"))
    graph.add("Relu", over_rows("up", x), name="inner")
    x = normed("norm2", x, over_rows("down", "inner"))
    graph.add("ReduceMean", x, graph.weight("rows", np.array([1])), name="mean", keepdims=0)
    parameters = (
        graph.weight("last.weight", weights["scores.weight"][:, :, 0]),
        graph.weight("last.bias", weights["scores.bias"]),
    )
    graph.add("Gemm", "mean", *parameters, name="scores", transB=1)
    return graph.model(scores=["batch", CLASSES])


ENTRIES = (
    Entry(
        NAME, "self-attention encoder over the rows of an image", DATA, "Vaswani et al. 2017",
        lambda small, report: train(chosen(small), small, report),
        written,
        lambda small: load(small).held_out_images[:8],
        Tuning(
            PACES | {"head": Range(4, 16), "inner": Range(16, 128, log=True)}, chosen, "validation accuracy", True, judge, train,
        ),
    ),
)  # fmt: skip
