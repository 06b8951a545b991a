"""A training step of ours against torch's, layer by layer: forward, and backward to the input and the parameters.

    python -m quatrefoil.bench.training_speed [--suite resnet50,vgg16,mobilenetv2,recurrent] [--batch 8] [--rounds 5]

Each layer of the suites is made once with torch's layers and once, with the same parameters, with quatrefoil.torch's; what
torch does around a layer (autograd, allocation) is in both. The gradients are compared first. Then rounds of both take
turns, on one thread, and each figure is the best round's processor time, which other processes do not lengthen as they do
the time on the clock. Fused activations are left out; the input of a layer of three channels, an image, needs no gradient.
Exits with 1 where a gradient differs. It needs the `torch` extra.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import quatrefoil as qf
from quatrefoil import ops
from quatrefoil.bench import suites
from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Problem

SUITES = "resnet50,vgg16,mobilenetv2,recurrent"
AGREE = 1e-4  # of the largest value: both round as float32 does
LEAST_SECONDS = 0.02  # of a round: short steps are repeated


def layer_of(problem: Problem) -> Any | None:
    """torch's layer for a problem; None where it has none."""
    from torch import nn

    x = problem.input(0)
    rank = len(x.shape) - 2
    if problem.op in ("rnn", "lstm", "gru"):
        plain = problem.integer("layout") == 0 and not problem.has(4)
        if not plain or problem.string("direction") == "reverse":
            return None
        kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[problem.op]
        both = problem.string("direction") == "bidirectional"
        return kind(x.shape[2], problem.integer("hidden_size"), bidirectional=both, bias=problem.has(3))
    if problem.op not in ("conv", "max_pool", "average_pool"):
        return None
    pads = problem.ints("pads")
    if pads[:rank] != pads[rank:]:
        return None
    if problem.op == "conv":
        w = problem.input(1)
        return getattr(nn, f"Conv{rank}d")(
            x.shape[1], w.shape[0], w.shape[2:], problem.ints("strides"), pads[:rank], problem.ints("dilations"),
            problem.integer("group"), problem.has(2),
        )  # fmt: skip
    name, window = {"max_pool": "MaxPool", "average_pool": "AvgPool"}[problem.op], problem.ints("kernel_shape")
    return getattr(nn, f"{name}{rank}d")(window, problem.ints("strides"), pads[:rank])


def step_of(layer: Any, x: Any, dy: Any) -> Callable[[], list[Any]]:
    """Forward and backward; gives the gradients."""
    import torch

    wanted = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]

    def step() -> list[Any]:
        y = layer(x)
        return list(torch.autograd.grad(y[0] if isinstance(y, tuple) else y, wanted, dy))

    return step


def best(steps: list[Callable[[], object]], rounds: int) -> list[float]:
    """The best processor seconds of each, their rounds taking turns."""
    least = [float("inf")] * len(steps)
    counts = []
    for step in steps:
        started = time.thread_time()
        step()
        counts.append(max(1, int(LEAST_SECONDS / max(time.thread_time() - started, 1e-6))))
    for _ in range(rounds):
        for place, step in enumerate(steps):
            started = time.thread_time()
            for _ in range(counts[place]):
                step()
            least[place] = min(least[place], (time.thread_time() - started) / counts[place])
    return least


def differs(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference of two lists of gradients, as a share of each one's largest value."""
    return max((float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(ours, theirs)), default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m quatrefoil.bench.training_speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--suite", default=SUITES, help="suites, with commas between them")
    parser.add_argument(
        "--batch", type=int, default=0, help="images or sequences in a batch; left out: the suites' own"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    try:
        import quatrefoil.torch as qft

        chosen = [suites.find(name) for name in options.suite.split(",")]
    except QuatrefoilError as error:
        print(error, file=sys.stderr)
        return 2
    import copy

    import torch

    torch.set_num_threads(1)
    qf.set_num_threads(1)
    wrong = 0
    for suite in chosen:
        print(f"\n{suite.title}\n")
        print("| layer | torch, ms | ours, ms | torch / ours |\n| --- | ---: | ---: | ---: |")
        ratios = []
        for entry in suite.entries:
            problem = ops.parse(entry.text)
            theirs = layer_of(problem)
            if theirs is None or problem.dtype != "float32":
                continue
            torch.manual_seed(0)
            shape = list(problem.input(0).shape)
            if options.batch:
                shape[1 if problem.op in ("rnn", "lstm", "gru") else 0] = options.batch
            x = torch.randn(shape).requires_grad_(shape[1] != 3 or len(shape) != 4)
            if not x.requires_grad and not list(theirs.parameters()):
                continue
            holder = torch.nn.Sequential(copy.deepcopy(theirs))
            qft.swap(holder)
            y = theirs(x)
            dy = torch.randn((y[0] if isinstance(y, tuple) else y).shape)
            steps = [step_of(theirs, x, dy), step_of(holder[0], x, dy)]
            difference = differs(steps[1](), steps[0]())
            seconds = best(list(steps), options.rounds)
            ratios.append(seconds[0] / seconds[1])
            note = "" if difference <= AGREE else f" differs by {difference:.1e}"
            wrong += difference > AGREE
            print(
                f"| {entry.name} | {seconds[0] * 1e3:.2f} | {seconds[1] * 1e3:.2f} | {ratios[-1]:.2f}{note} |",
                flush=True,
            )
        if ratios:
            mean = float(np.exp(np.mean(np.log(ratios))))
            print(f"\n{len(ratios)} layers, geometric mean {mean:.2f}, least {min(ratios):.2f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
