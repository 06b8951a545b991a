"""Ensembles whose members run as one batched call: bagging and boosting of small networks.

Breiman, "Bagging predictors" (1996); Freund and Schapire (1997) for boosting, with the weights of Zhu, Zou, Rosset and
Hastie's SAMME (2009) for several classes. A member is a network of random hidden units and a ridge readout (Schmidt,
Kraaijveld and Duin, 1992; "extreme learning machine"), so nothing is trained by gradients.

    one member    hidden = relu(W x + b), scores = V hidden + d
    all members   the W of all on top of each other: one 1x1 convolution; their V: one grouped 1x1 convolution
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx

import quatrefoil as qf
from quatrefoil.models.gallery import SEED, Split, data
from quatrefoil.models.gallery.entry import Beside, Entry, Graph, Report, Trained, Weights
from quatrefoil.models.gallery.rbm import flat
from quatrefoil.models.gallery.readout import accuracy, one_thread, ridge
from quatrefoil.models.gallery.tuning import Range, Settings, Tuning
from quatrefoil.random import Generator

CLASSES = 10
RANGES = {"hidden": Range(20, 800, log=True), "penalty": Range(0.01, 100.0, log=True)}


@dataclass(frozen=True)
class Size:
    load: Callable[[], Split]
    members: int
    hidden: int
    penalty: float


@dataclass(frozen=True)
class Ensemble:
    """w (members, hidden, inputs), b (members, hidden), v (members, CLASSES, hidden), d (members, CLASSES), float32."""

    w: np.ndarray
    b: np.ndarray
    v: np.ndarray
    d: np.ndarray

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Every member's scores in one call a layer: rows (count, inputs) to (members, CLASSES, count)."""
        members, hidden, inputs = self.w.shape
        x = np.ascontiguousarray(rows.T)[np.newaxis]
        h = qf.conv1d(x, self.w.reshape(-1, inputs, 1), self.b.reshape(-1), activation="Relu")
        v = self.v.reshape(-1, hidden, 1)
        return qf.conv1d(h, v, self.d.reshape(-1), groups=members).reshape(members, CLASSES, -1)

    def member(self, number: int) -> Ensemble:
        """One of them alone, whose call is the separate one."""
        one = slice(number, number + 1)
        return Ensemble(self.w[one], self.b[one], self.v[one], self.d[one])


def hidden_of(w: np.ndarray, b: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """relu(w rows + b) as rows (count, hidden)."""
    return qf.conv1d(np.ascontiguousarray(rows.T)[np.newaxis], w[:, :, np.newaxis], b, activation="Relu")[0].T


def drawn(size: Size, inputs: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    w = rng.normal((size.hidden, inputs)) / np.float32(np.sqrt(inputs))
    return w, rng.normal(size.hidden) * np.float32(0.1)


def bagged(
    size: Size, rows: np.ndarray, labels: np.ndarray, rng: Generator, report: Report
) -> tuple[Ensemble, np.ndarray]:
    """Each member of its own random units and its own bootstrap sample; all vote with the same weight."""
    hot = data.checked_labels(labels, CLASSES).T
    made = []
    for number in range(size.members):
        w, b = drawn(size, rows.shape[1], rng)
        chosen = rng.integers(0, len(rows), len(rows))
        fitted = ridge(hidden_of(w, b, rows[chosen]), hot[chosen], size.penalty)
        made.append((w, b, fitted.weight, fitted.bias))
        report(f"member {number + 1} of {size.members}")
    return Ensemble(*(np.stack(part) for part in zip(*made))), np.full(size.members, 1 / size.members)


def boosted(
    size: Size, rows: np.ndarray, labels: np.ndarray, rng: Generator, report: Report
) -> tuple[Ensemble, np.ndarray]:
    """Each member is fitted to images weighted by how often those before it were wrong; better members' votes weigh more."""
    hot = data.checked_labels(labels, CLASSES).T
    share = np.full(len(rows), 1 / len(rows))
    made, votes = [], []
    for number in range(size.members):
        w, b = drawn(size, rows.shape[1], rng)
        h = hidden_of(w, b, rows)
        fitted = ridge(h, hot, size.penalty, share)
        wrong = fitted.scores(h).argmax(1) != labels
        error = float(np.clip(share[wrong].sum(), 1e-6, 1 - 1e-6))
        vote = max(np.log((1 - error) / error) + np.log(CLASSES - 1), 0.0)  # no better than chance: no vote
        share *= np.exp(vote * wrong)
        share /= share.sum()
        made.append((w, b, fitted.weight, fitted.bias))
        votes.append(vote)
        report(f"member {number + 1} of {size.members}: weighted error {error:.4f}")
    return Ensemble(*(np.stack(part) for part in zip(*made))), np.array(votes) / np.sum(votes)


def chosen(scores: np.ndarray, votes: np.ndarray, hard: bool) -> np.ndarray:
    """(count, CLASSES): the members' mean scores, or the votes of their first choices."""
    given = (np.arange(CLASSES)[:, np.newaxis] == scores.argmax(1)[:, np.newaxis]) if hard else scores
    return np.einsum("m,mck->kc", votes, given)


def judge(size: Size, hard: bool) -> float:
    """The accuracy on the validation split."""
    split = data.held_out(size.load())
    fit = boosted if hard else bagged
    made, votes = fit(size, flat(split.train_images), split.train_digits, Generator(SEED, 6 + hard), lambda line: None)
    return accuracy(chosen(made.scores(flat(split.held_out_images)), votes, hard), split.held_out_digits)


def train(size: Size, hard: bool, report: Report) -> Trained:
    split = size.load()
    rows, held_out = flat(split.train_images), flat(split.held_out_images)
    rng = Generator(SEED, 6 + hard)
    ensemble, votes = (boosted if hard else bagged)(size, rows, split.train_digits, rng, report)
    batched = ensemble.scores(held_out)
    separate = np.concatenate([ensemble.member(number).scores(held_out) for number in range(size.members)])
    alone = [accuracy(each.T, split.held_out_digits) for each in batched]
    curve = [
        accuracy(chosen(batched[: n + 1], votes[: n + 1], hard), split.held_out_digits) for n in range(size.members)
    ]
    return Trained(
        {"w": ensemble.w, "b": ensemble.b, "v": ensemble.v, "d": ensemble.d, "votes": votes.astype(np.float32),
         "hard": np.array(hard)},
        {
            "held-out accuracy": curve[-1],
            "mean accuracy of a member alone": float(np.mean(alone)),
            "largest difference of the batched call from separate calls": float(np.abs(batched - separate).max()),
        },
        beside(size, hard, rows, held_out, split),
        {"held-out accuracy by number of members": curve},
    )  # fmt: skip


def beside(size: Size, hard: bool, rows: np.ndarray, held_out: np.ndarray, split: Split) -> tuple[Beside, ...]:
    """scikit-learn's ensemble of as many trees."""
    with one_thread():
        from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier
        from sklearn.tree import DecisionTreeClassifier

        tree = DecisionTreeClassifier(max_depth=8 if hard else None, random_state=SEED)
        kind = AdaBoostClassifier if hard else BaggingClassifier
        fitted = kind(tree, n_estimators=size.members, random_state=SEED).fit(rows, split.train_digits)
        right = float(fitted.score(held_out, split.held_out_digits))
    depth = "of depth 8" if hard else "in full"
    return (Beside(f"scikit-learn's {kind.__name__}", right, f"as many decision trees {depth}, same split"),)


def export(weights: Weights) -> onnx.ModelProto:
    """pixels (batch, inputs) to each member's scores (batch, members, 10) and those of all (batch, 10)."""
    members, hidden, inputs = weights["w"].shape
    graph = Graph("ensemble", "pixels", ["batch", inputs], f"{members} networks in one batched call")
    graph.add("Unsqueeze", "pixels", graph.weight("last", np.array([2], np.int64)), name="x")
    graph.add("Conv", "x", graph.weight("w", weights["w"].reshape(-1, inputs, 1)), graph.weight("b", weights["b"].reshape(-1)),
              name="hidden_inputs")  # fmt: skip
    graph.add("Relu", "hidden_inputs", name="hidden")
    graph.add("Conv", "hidden", graph.weight("v", weights["v"].reshape(-1, hidden, 1)),
              graph.weight("d", weights["d"].reshape(-1)), name="flat_members", group=members)  # fmt: skip
    graph.add(
        "Reshape", "flat_members", graph.weight("shape", np.array([0, members, CLASSES], np.int64)), name="members"
    )
    given = "members"
    if bool(weights["hard"]):
        axis = graph.weight("classes", np.array(CLASSES, np.int64))
        graph.add("ArgMax", "members", name="first", axis=2, keepdims=0)
        given = graph.add("OneHot", "first", axis, graph.weight("off_on", np.array([0, 1], np.float32)), name="choices")
    graph.add("Mul", given, graph.weight("votes", weights["votes"].reshape(1, members, 1)), name="weighted")
    graph.add("ReduceSum", "weighted", graph.weight("axis", np.array([1], np.int64)), name="scores", keepdims=0)
    return graph.model(members=["batch", members, CLASSES], scores=["batch", CLASSES])


def _entry(name: str, what: str, source: str, hard: bool, full: Size, small: Size) -> Entry:
    def size(is_small: bool) -> Size:
        return small if is_small else full

    def sized(settings: Settings, is_small: bool) -> Size:
        return replace(size(is_small), hidden=int(settings["hidden"]), penalty=float(settings["penalty"]))

    return Entry(
        name, what, "5,000 images of MNIST (small: scikit-learn's digits)", source,
        lambda is_small, report: train(size(is_small), hard, report),
        export,
        lambda is_small: flat(size(is_small).load().held_out_images[:8]),
        Tuning(
            RANGES, lambda is_small: {"hidden": size(is_small).hidden, "penalty": size(is_small).penalty},
            "validation accuracy", True,
            lambda settings, is_small, seen: judge(sized(settings, is_small), hard),
            lambda settings, is_small, report: train(sized(settings, is_small), hard, report),
        ),
    )  # fmt: skip


ENTRIES = (
    _entry("bagging", "bagging, all members in one grouped call", "Breiman 1996", False,
           Size(data.mnist, 24, 400, 10.0), Size(data.digits, 8, 60, 1.0)),
    _entry("boosting", "boosting (SAMME), all members in one grouped call", "Zhu, Zou, Rosset and Hastie 2009", True,
           Size(data.mnist, 24, 200, 10.0), Size(data.digits, 8, 40, 1.0)),
)  # fmt: skip
