"""A network that says in words which digits a page shows: "three seven one" (Vinyals et al. 2015, "Show and Tell").

Convolutions turn the page into a code; an LSTM reads the code and the word before, gives the scores of the word that
follows, and ends with "end". It learns from the true words before (teacher forcing); what leaves as ONNX reads its own,
step by step, each the likeliest (greedy decoding). Pages are composed of digits side by side with random gaps: for training
anew for every batch from the training digits, for the test once from the held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx

from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.chains import INPUT, Step, build, draw, recurrent_weights, weights_of, write
from quatrefoil.models.gallery.descent import DATA, PACES, Pace, descend, load, require_torch, say_nothing, twin
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights
from quatrefoil.models.gallery.tuning import Range, Seen, Settings, Tuning
from quatrefoil.models.model import load as load_model
from quatrefoil.random import Generator

NAME = "captions"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
END, WORDS = len(DIGITS), len(DIGITS) + 1
SHOWN = 4
SIZES = "side, most, code, hidden"


class Pages(NamedTuple):
    """images float32 (count, 1, side, most * side) from 0 to 1, with 1 to ``most`` digits; words int64 (count, most + 1), from
    the first "end" on all "end"."""

    images: np.ndarray
    words: np.ndarray


class Plan(NamedTuple):
    """most: how many digits a page has at most; code, hidden: units of the encoder's code and of the LSTM."""

    pace: Pace
    most: int
    code: int
    hidden: int

    def at(self, settings: Settings) -> Plan:
        return Plan(self.pace.at(settings), self.most, int(settings["code"]), int(settings["hidden"]))


def composed(images: np.ndarray, digits: np.ndarray, most: int, count: int, rng: Generator) -> Pages:
    """Pages of 1 to ``most`` digits, drawn with equal chances, from images (n, side, side) and their digits (n)."""
    side = images.shape[1]
    lengths = rng.integers(1, most + 1, count)
    chosen = rng.integers(0, len(images), (count, most))
    gaps = np.sort(rng.uniform((count, most)), axis=1)
    pages = np.zeros((count, 1, side, most * side), np.float32)
    for page, length, which, gap in zip(pages, lengths, chosen, gaps):
        free = (most - length) * side
        for place in range(length):
            left = place * side + int(gap[place] * (free + 1))
            page[0, :, left : left + side] = images[which[place]]
    words = np.where(np.arange(most + 1) < lengths[:, np.newaxis], np.pad(digits[chosen], ((0, 0), (0, 1))), END)
    return Pages(pages, words)


def encoder(side: int, most: int, code: int) -> tuple[Step, ...]:
    """A page to its code. Places stay apart, so that the decoder can tell which digit is the next."""
    stride = 2 if side > 8 else 1
    high, wide = (side // (4 * stride)) or 1, most * side // (4 * stride)
    return (
        Step("Conv", "conv1", (1, 8), 5, stride, 2), Step("Relu", "relu1"), Step("MaxPool", "pool1", kernel=2),
        Step("Conv", "conv2", (8, 24), 5, 1, 2), Step("Relu", "relu2"), Step("MaxPool", "pool2", kernel=2),
        Step("Reshape", "flat", (24 * high * wide,)), Step("Gemm", "dense", (24 * high * wide, code)), Step("Relu", "code"),
    )  # fmt: skip


def decoder(code: int, hidden: int) -> tuple[Step, Step]:
    return Step("LSTM", "state", (code + WORDS, hidden)), Step("Gemm", "next_word", (hidden, WORDS))


def describer(side: int, plan: Plan) -> Any:
    """The network as a torch module of our layers: pages and the true words to scores (count, words, WORDS)."""
    import torch

    import quatrefoil.torch as qft

    class Describer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rng = Generator(SEED, 70)
            self.encoder = build(encoder(side, plan.most, plan.code), rng)
            state, next_word = decoder(plan.code, plan.hidden)
            self.decoder = torch.nn.ModuleDict(
                {"state": qft.LSTM(*state.sizes), "next_word": qft.Conv1d(*next_word.sizes, 1)}
            )
            for step in (state, next_word):
                draw(step, self.decoder[step.name], rng)

        def forward(self, pages: Any, words: Any) -> Any:
            code = self.encoder(pages)["code"]
            # the word before the first is "end"
            before = torch.nn.functional.pad(words[:, :-1], (1, 0), value=END)
            told = torch.nn.functional.one_hot(before.T, WORDS).float()
            states, _ = self.decoder["state"](torch.cat([code.expand(len(told), *code.shape), told], 2))
            return self.decoder["next_word"](states.permute(1, 2, 0).contiguous()).transpose(1, 2)

    return Describer()


def learn(
    module: Any, split: Split, plan: Plan, report: Report, after: Callable[[int], None] | None = None
) -> list[float]:
    """As many pages an epoch as there are digits. Gives each epoch's mean cross-entropy."""
    import torch

    rng = Generator(SEED, 71)

    def loss(chosen: np.ndarray) -> Any:
        pages = composed(split.train_images, split.train_digits, plan.most, len(chosen), rng)
        words = torch.from_numpy(pages.words)
        scores = module(torch.from_numpy(pages.images), words)
        return torch.nn.functional.cross_entropy(scores.reshape(-1, WORDS), words.reshape(-1))

    return descend(NAME, module, len(split.train_images), loss, plan.pace, report, after)


def held(module: Any, side: int, plan: Plan) -> Weights:
    sizes = np.array([side, plan.most, plan.code, plan.hidden])
    return {**weights_of(module.encoder), **weights_of(module.decoder), SIZES: sizes}


def read(weights: Weights, pages: np.ndarray) -> np.ndarray:
    """The words that the exported network reads, (count, most + 1), from the first "end" on all "end"."""
    words = load_model(written(weights)).run({INPUT: pages}, backend="cpu")["scores"].argmax(2)
    return np.where(np.maximum.accumulate(words == END, axis=1), END, words)


def tested(split: Split, most: int, count: int) -> Pages:
    """Pages of held-out digits."""
    return composed(split.held_out_images, split.held_out_digits, most, count, Generator(SEED, 72))


def shares(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Of all digits' words the share that is right at its place, and of all sentences the share that is right from end to end."""
    spoken = wanted != END
    return float((found == wanted)[spoken].mean()), float((found == wanted).all(1).mean())


def sentence(words: np.ndarray) -> str:
    return " ".join(DIGITS[word] for word in words if word != END)


def train(settings: Settings, small: bool, report: Report) -> Trained:
    require_torch()
    split, how = load(small), plan(small).at(settings)
    side = split.train_images.shape[1]
    data.checked_labels(split.train_digits, len(DIGITS))
    test = tested(split, how.most, len(split.held_out_images))
    module = describer(side, how)
    other = twin(module)
    curve = learn(module, split, how, report)
    learn(other, split, how, say_nothing)
    weights = held(module, side, how)
    found = read(weights, test.images)
    words, sentences = shares(found, test.words)
    their_words, their_sentences = shares(read(held(other, side, how), test.images), test.words)
    said = "; ".join(sentence(each) for each in found[:SHOWN])
    return Trained(
        weights,
        {"held-out words read right": words, "held-out sentences read right": sentences},
        (
            Beside("torch's own layers: words", their_words, "same start, batches and split"),
            Beside("torch's own layers: sentences", their_sentences, "same start, batches and split"),
        ),
        {"cross-entropy": curve},
        {f"held-out pages, read as: {said}": test.images[:SHOWN].reshape(SHOWN, 1, side, how.most * side)},
    )


def written(weights: Weights) -> onnx.ModelProto:
    """pixels (batch, 1, side, most * side) to scores (batch, most + 1, WORDS), greedily decoded: each step reads the word
    that the one before found likeliest."""
    side, most, code, hidden = (int(size) for size in weights[SIZES])
    graph = Graph(NAME, INPUT, ["batch", 1, side, most * side], "A page of digits to the words that say them")
    coded = write(graph, encoder(side, most, code), weights)
    state, _ = decoder(code, hidden)
    parameters = recurrent_weights(graph, state, weights)
    classify = [
        graph.weight("next_word.weight", weights["next_word.weight"][:, :, 0]),
        graph.weight("next_word.bias", weights["next_word.bias"]),
    ]
    first, last = graph.weight("first_axis", np.array([0])), graph.weight("last_axis", np.array([1]))
    depth = graph.weight("words", np.array(WORDS))
    off_on = graph.weight("off_on", np.array([0, 1], np.float32))
    # the code beside the word before, which for the first is "end"
    room = graph.weight("room", np.array([0, 0, 0, WORDS]))
    start = graph.weight("start", (np.arange(code + WORDS) == code + END).astype(np.float32))
    row = graph.add("Add", graph.add("Pad", coded, room, name="with_room"), start, name="row0")
    kept: list[str] = []
    scores = []
    for n in range(most + 1):
        steps = graph.add("Unsqueeze", row, first, name=f"step{n}")
        h, c = f"h{n}", f"c{n}"
        graph.add("LSTM", steps, *parameters, *kept, name=f"state{n}", outputs=["", h, c], hidden_size=hidden)
        kept = ["", h, c]
        found = graph.add("Gemm", graph.add("Squeeze", h, first, name=f"told{n}"), *classify, name=f"next{n}", transB=1)
        scores.append(graph.add("Unsqueeze", found, last, name=f"scores{n}"))
        if n < most:
            word = graph.add("ArgMax", found, name=f"word{n}", axis=1, keepdims=0)
            graph.add("OneHot", word, depth, off_on, name=f"before{n + 1}")
            row = graph.add("Concat", coded, f"before{n + 1}", name=f"row{n + 1}", axis=1)
    graph.add("Concat", *scores, name="scores", axis=1)
    return graph.model(scores=["batch", most + 1, WORDS])


FULL, SMALL = Plan(Pace(25, 50, 4e-3), 4, 128, 96), Plan(Pace(15, 25, 8e-3), 2, 48, 48)


def plan(small: bool) -> Plan:
    return SMALL if small else FULL


def chosen(small: bool) -> Settings:
    own = plan(small)
    return {"rate": own.pace.rate, "batch": own.pace.batch, "code": own.code, "hidden": own.hidden}


def judge(settings: Settings, small: bool, seen: Seen) -> float:
    """The share of sentences that are right, of pages of the validation split's digits."""
    require_torch()
    split, how = data.held_out(load(small)), plan(small).at(settings)
    side = split.train_images.shape[1]
    test, module = tested(split, how.most, len(split.held_out_images)), describer(side, how)

    def right() -> float:
        return shares(read(held(module, side, how), test.images), test.words)[1]

    learn(module, split, how, say_nothing, lambda epoch: seen(epoch, right()))
    return right()


def pages(small: bool) -> np.ndarray:
    split = load(small)
    return tested(split, plan(small).most, 8).images


ENTRIES = (
    Entry(
        NAME, "CNN and LSTM that say in words which digits a page shows", DATA, "Vinyals et al. 2015",
        lambda small, report: train(chosen(small), small, report), written, pages,
        Tuning(
            PACES | {"code": Range(32, 256, log=True), "hidden": Range(32, 256, log=True)}, chosen,
            "validation sentences read right", True, judge, train,
        ),
    ),
)  # fmt: skip
