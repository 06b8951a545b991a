"""From which share of stored weights on sparse kernels are faster than dense ones: a table of shapes and shares.

    python -m quatrefoil.bench.sparse_crossover [--match REGEX] [--threads N] [--rounds N] [--peers NAMES] [--json FILE]

Every layer has the same made-up weights in both forms, the dense one with zeros in the place of what is not stored. All
contenders run in one process and in turn, round after round, so that a slow moment of the machine falls on all alike; a
round repeats a call until it lasts a millisecond. What counts is the median over the rounds of dense time / sparse time. The
crossover is where that is 1, drawn between the two shares around it on logarithmic scales.

Peers, where they are installed: ``scipy`` (scipy.sparse: the matrix times x, for layers of one tap that read every place),
``torch`` (torch.sparse, the same), and ``litert``, ``ort``, ``torch_dense`` with the dense weights and the same zeros; LiteRT's
XNNPACK multiplies dense weights on x86 processors with AVX, however a model's are stored. With one thread, times are the
thread's own processor time, which leaves out when others had the core.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from quatrefoil import dispatch, ops, settings
from quatrefoil.bench import machine, peers
from quatrefoil.bench.tasks import Task
from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops import compressed, conv
from quatrefoil.ops.sparse import Rows
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Reject

SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 0.01)

ROUND_SECONDS = 1e-3

LAYERS: Mapping[str, str] = {
    "ResNet-50 1x1 64 to 256, 56x56": "conv float32[1x64x56x56],float32[256x64x1x1],float32[256]",
    "ResNet-50 1x1 256 to 64, 56x56": "conv float32[1x256x56x56],float32[64x256x1x1],float32[64]",
    "ResNet-50 1x1 512 to 128, 28x28": "conv float32[1x512x28x28],float32[128x512x1x1],float32[128]",
    "ResNet-50 1x1 1024 to 256, 14x14": "conv float32[1x1024x14x14],float32[256x1024x1x1],float32[256]",
    "ResNet-50 1x1 512 to 2048, 7x7": "conv float32[1x512x7x7],float32[2048x512x1x1],float32[2048]",
    "MobileNetV2 1x1 96 to 24, 56x56": "conv float32[1x96x56x56],float32[24x96x1x1],float32[24]",
    "MobileNetV2 1x1 64 to 384, 14x14": "conv float32[1x64x14x14],float32[384x64x1x1],float32[384]",
    "MobileNetV2 1x1 960 to 160, 7x7": "conv float32[1x960x7x7],float32[160x960x1x1],float32[160]",
    "ResNet-50 3x3 64, 56x56": "conv float32[1x64x56x56],float32[64x64x3x3],float32[64] pads=1x1x1x1",
    "ResNet-50 3x3 128, 28x28": "conv float32[1x128x28x28],float32[128x128x3x3],float32[128] pads=1x1x1x1",
    "ResNet-50 3x3 256, 14x14": "conv float32[1x256x14x14],float32[256x256x3x3],float32[256] pads=1x1x1x1",
    "ResNet-50 3x3 512, 7x7": "conv float32[1x512x7x7],float32[512x512x3x3],float32[512] pads=1x1x1x1",
    "ResNet-50 3x3 128 stride 2, 56x56": (
        "conv float32[1x128x56x56],float32[128x128x3x3],float32[128] pads=1x1x1x1 strides=2x2"
    ),
    "dense layer 2048 to 1000, 1 row": "conv float32[1x2048x1],float32[1000x2048x1],float32[1000]",
    "dense layer 4096 to 4096, 1 row": "conv float32[1x4096x1],float32[4096x4096x1],float32[4096]",
    "dense layer 1024 to 1024, 16 rows": "conv float32[16x1024x1],float32[1024x1024x1],float32[1024]",
    "dense layer 1024 to 1024, 128 rows": "conv float32[128x1024x1],float32[1024x1024x1],float32[1024]",
}
"""Layers by name, as problems."""

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Point:
    """A layer with this share of stored weights. seconds: of a call, by contender, the median over rounds; gain: dense time /
    sparse time, the median of the rounds' own."""

    share: float
    gain: float
    seconds: Mapping[str, float]
    kernels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """A layer. crossover: the share at which both forms take as long; None where one is faster at every share."""

    name: str
    problem: str
    points: tuple[Point, ...]
    crossover: float | None


def measured(text: str, share: float, threads: int, rounds: int, wanted: Sequence[str], seed: int = 0) -> Point:
    """Raises QuatrefoilError where a peer is unknown or a contender's result is wrong."""
    settings.set_num_threads(threads)
    problem = ops.parse(text)
    runs, kernels = contenders(problem, share, threads, wanted, seed)
    clock = time.thread_time if threads == 1 else time.perf_counter
    calls = {}
    for name, run in runs.items():
        run()
        start = clock()
        run()
        calls[name] = max(1, round(ROUND_SECONDS / max(clock() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            run, count = runs[name], calls[name]
            start = clock()
            for _ in range(count):
                run()
            seconds[name].append((clock() - start) / count)
    gain = statistics.median(dense / sparse for dense, sparse in zip(seconds["dense"], seconds["sparse"]))
    return Point(share, gain, {name: statistics.median(each) for name, each in seconds.items()}, kernels)


def contenders(
    problem: Problem, share: float, threads: int, wanted: Sequence[str], seed: int
) -> tuple[dict[str, Run], dict[str, str]]:
    """Who runs, and what. The sparse kernel's result is held to the dense one's before anything is timed."""
    form = compressed.FORMS["sparse_conv"]
    rng = np.random.default_rng(seed)
    x, weight, bias = (rng.standard_normal(tensor.shape, np.float32) for tensor in problem.inputs if tensor is not None)
    flat = weight.reshape(-1)
    flat[rng.permutation(flat.size)[round(share * flat.size) :]] = 0
    weight *= np.float32((3 / max(share * flat.size / len(weight), 1)) ** 0.5)
    stored = compressed.rows_of(weight)
    types = [Tensor.of(array) for array in (x, *stored, bias)]
    attributes = {**dict(problem.attributes), "w_shape": weight.shape}
    sparse_problem = ops.canonical("sparse_conv", types, attributes)
    dense = dispatch.plan_problem(problem, {conv.W: weight, conv.BIAS: bias})
    sparse = dispatch.plan_problem(
        sparse_problem, dict(zip(form.places[conv.W], stored)) | {form.place(conv.BIAS): bias}
    )
    if ops.SPECS["conv"].tolerance(problem).violations(sparse.run([x])[0], dense.run([x])[0].astype(np.float64)):
        raise QuatrefoilError(f"the sparse kernel {sparse.kernel.id} differs from {dense.kernel.id} on {problem.text}")
    runs: dict[str, Run] = {"dense": lambda: dense.run([x]), "sparse": lambda: sparse.run([x])}
    kernels = {"dense": dense.kernel.id, "sparse": sparse.kernel.id}
    for name in wanted:
        run = (
            _product(name, problem, x, stored, bias)
            if name in PRODUCTS
            else _whole(name, problem, threads, (x, weight, bias))
        )
        if run is not None:
            runs[name] = run
    return runs, kernels


def _whole(name: str, problem: Problem, threads: int, arrays: Sequence[np.ndarray]) -> Run | None:
    """A peer that computes the convolution itself, with the dense weights."""
    peer = peers.get(name.removesuffix("_dense"))
    if not peer.probe().ready:
        return None
    task = Task(problem.text)
    task.__dict__["arrays"] = list(arrays)  # where cached_property keeps them
    prepared = peer.prepare(task, threads)
    return None if isinstance(prepared, Reject) else prepared.run


PRODUCTS = ("scipy", "torch")


def _product(name: str, problem: Problem, x: np.ndarray, stored: Rows, bias: np.ndarray) -> Run | None:
    """A library's product of a sparse matrix, where a layer is one: one tap that reads every place. One image's places are
    columns; a dense layer's rows are."""
    window = conv.geometry(problem).window
    if window.taps > 1 or max(window.strides) > 1 or any(window.pads):
        return None
    rows = len(stored.offsets) - 1
    columns = np.ascontiguousarray(x.reshape(len(x), -1).T if window.input_size == 1 else x.reshape(x.shape[1], -1))
    shift = bias[:, np.newaxis]
    parts = (stored.values, stored.columns, stored.offsets)
    try:
        if name == "scipy":
            from scipy import sparse

            matrix = sparse.csr_array(parts, shape=(rows, len(columns)))
            return lambda: matrix @ columns + shift
        import torch
    except ImportError:
        return None
    torch.set_num_threads(settings.num_threads())
    values, places, offsets = map(torch.from_numpy, parts)
    tensor = torch.sparse_csr_tensor(offsets, places, values, (rows, len(columns)))
    right, added = torch.from_numpy(columns), torch.from_numpy(shift)
    return lambda: tensor @ right + added


def crossover(points: Sequence[Point]) -> float | None:
    """The share at which the gain is 1: the highest one at which it passes that."""
    ordered = sorted(points, key=lambda point: -point.share)
    for above, below in pairwise(ordered):
        if above.gain < 1 <= below.gain:
            part = -math.log(above.gain) / (math.log(below.gain) - math.log(above.gain))
            return float(math.exp(math.log(above.share) + part * math.log(below.share / above.share)))
    return None


def table(rows: Sequence[Row]) -> str:
    """Gains by layer and share, in Markdown."""
    shares = [point.share for point in rows[0].points]
    lines = [
        f"| layer | dense kernel | crossover | {' | '.join(f'{share:.0%}' for share in shares)} |",
        "| --- " * (3 + len(shares)) + "|",
    ]
    for row in rows:
        at = (
            "every share"
            if min(p.gain for p in row.points) >= 1
            else "none"
            if row.crossover is None
            else f"{row.crossover:.0%}"
        )
        kernel = row.points[0].kernels["dense"].split("_")[1]
        lines.append(f"| {row.name} | {kernel} | {at} | {' | '.join(f'{p.gain:.2f}' for p in row.points)} |")
    return "\n".join(lines)


def against(rows: Sequence[Row]) -> str:
    """Peers' times / the sparse kernel's, in Markdown; empty without peers."""
    names = list(dict.fromkeys(name for row in rows for point in row.points for name in point.seconds))[2:]
    lines = []
    for name in names:
        lines.append(f"\n{name} / ours, sparse")
        for row in rows:
            found = [
                f"{p.share:.0%} {p.seconds[name] / p.seconds['sparse']:.2f}" for p in row.points if name in p.seconds
            ]
            if found:
                lines.append(f"  {row.name}: {', '.join(found)}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m quatrefoil.bench.sparse_crossover", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--match", default="", help="only layers whose name this regular expression finds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--peers", default="", help="scipy, torch, litert, ort, torch_dense; with commas between them")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    for name, text in LAYERS.items():
        if not re.search(given.match, name):
            continue
        wanted = [peer for peer in given.peers.split(",") if peer]
        points = tuple(
            measured(text, float(share), given.threads, given.rounds, wanted) for share in given.shares.split(",")
        )
        rows.append(Row(name, ops.parse(text).text, points, crossover(points)))
        print(f"{name}: {', '.join(f'{p.share:.0%} {p.gain:.2f}' for p in points)}", file=sys.stderr, flush=True)
    if not rows:
        raise QuatrefoilError(f"no layer's name is found by {given.match!r}; there are {', '.join(LAYERS)}")
    print(table(rows) + against(rows))
    if given.json is not None:
        data = {"machine": machine.describe(), "threads": given.threads, "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(data, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except QuatrefoilError as error:
        sys.exit(str(error))
