"""Layers whose weights are stored small, against the same layers dense: look-up kernels and compressed rows on the CPU.

    python -m quatrefoil.bench.compressed_speed [--match REGEX] [--threads N] [--rounds N] [--json FILE]

Each layer has made-up weights dense, shared with codebooks of 256 and 16 entries, and sparse with shares of values stored.
The kernels that read what is stored run wherever they can, also where dispatch would leave the layer to others, which is
marked by a star. All contenders run in one process and in turn, round after round, so that a slow moment of the machine falls
on all alike; what counts is the best of each, with one thread in the thread's own processor time. In the table: the time of
the dense layer, then dense time / theirs. The outputs are compared with those of decoded weights first; exits with 1 where
they differ.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil import backends, ops, settings
from quatrefoil.ops import compressed, rnn
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Kernel, Run

LAYERS = {
    "dense 1024 to 1024": "conv float32[1x1024x1],float32[1024x1024x1]",
    "dense 4096 to 4096": "conv float32[1x4096x1],float32[4096x4096x1]",
    "dense 4096 to 4096, batch 8": "conv float32[8x4096x1],float32[4096x4096x1]",
    "1x1 2048 to 512, 7x7": "conv float32[1x2048x7x7],float32[512x2048x1x1]",
    "3x3 512, 7x7": "conv float32[1x512x7x7],float32[512x512x3x3] pads=1x1x1x1",
    "1x1 1024 to 256, 14x14": "conv float32[1x1024x14x14],float32[256x1024x1x1]",
    "LSTM 512, 50 steps": "lstm float32[50x1x512],float32[1x2048x512],float32[1x2048x512] hidden_size=512",
    "LSTM 1024, 50 steps": "lstm float32[50x1x1024],float32[1x4096x1024],float32[1x4096x1024] hidden_size=1024",
    "LSTM 1024, 1 step": "lstm float32[1x1x1024],float32[1x4096x1024],float32[1x4096x1024] hidden_size=1024",
    "LSTM 2048, 20 steps": "lstm float32[20x1x2048],float32[1x8192x2048],float32[1x8192x2048] hidden_size=2048",
    "LSTM 512, 50 steps, batch 8": "lstm float32[50x8x512],float32[1x2048x512],float32[1x2048x512] hidden_size=512",
    "GRU 1024, 50 steps": "gru float32[50x1x1024],float32[1x3072x1024],float32[1x3072x1024] hidden_size=1024",
}
ENTRIES = (256, 16)
SHARES = (0.3, 0.1, 0.05)
LEAST_SECONDS = 0.005  # of a round: short calls are repeated
AGREE = 1e-4  # of the largest value


def _kernel(problem: Problem) -> tuple[Kernel, bool]:
    """The first kernel that reads what is stored, and whether dispatch would take it."""
    kernels = [kernel for kernel in backends.get("cpu").kernels() if kernel.op == problem.op and not kernel.in_python]
    taken = next((kernel for kernel in kernels if kernel.accepts(problem) is None), None)
    return taken or kernels[-1], taken is not None


def _stored(
    base: Problem, kind: str, made: Callable[[tuple[int, ...], int], list[np.ndarray]]
) -> tuple[Problem, list[np.ndarray]]:
    """The problem with its weights in parts, and these."""
    form = compressed.FORMS[compressed.OPS[kind, base.op]]
    attributes: dict[str, Any] = dict(base.attributes)
    tensors: list[Tensor | None] = [base.inputs[0]]
    parts: list[np.ndarray] = []
    for weight in form.weights:
        shape = base.input(weight.position).shape
        given = made(shape, weight.row_axes)
        parts += given
        tensors += [Tensor.of(part) for part in given]
        if kind == compressed.SPARSE:
            attributes[f"{weight.name}_shape"] = shape
    return ops.canonical(form.op, tensors, attributes, len(base.outputs)), parts


def contenders(base: Problem, rng: np.random.Generator) -> tuple[list[tuple[str, Run, Run | None]], np.ndarray]:
    """Name, run, and a run with the weights decoded where they are not dense."""
    x = rng.standard_normal(base.input(0).shape, dtype=np.float32)

    def weights(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(
            np.sqrt(np.prod(shape[1:]) if base.op == "conv" else shape[-1])
        )

    dense, _ = _kernel(base)
    found: list[tuple[str, Run, Run | None]] = [
        ("dense", dense.prepare(base, {i: weights(base.input(i).shape) for i in range(1, len(base.inputs))}), None)
    ]

    def add(name: str, problem: Problem, parts: list[np.ndarray]) -> None:
        kernel, taken = _kernel(problem)
        parameters = dict(enumerate(parts, 1))
        decoded = dense.prepare(base, compressed.decoded(problem, parameters))
        found.append((f"{name}{'' if taken else ' *'}", kernel.prepare(problem, parameters), decoded))

    for entries in ENTRIES:

        def codes(shape: tuple[int, ...], _: int, entries: int = entries) -> list[np.ndarray]:
            return [
                rng.integers(0, entries, shape).astype(np.uint8),
                np.sort(weights((entries, *shape[1:])).reshape(-1)[:entries]),
            ]

        add(f"shared {entries}", *_stored(base, compressed.SHARED, codes))
    for share in SHARES:

        def rows(shape: tuple[int, ...], row_axes: int, share: float = share) -> list[np.ndarray]:
            return list(compressed.rows_of(np.where(rng.random(shape) < share, weights(shape), 0), row_axes))

        add(f"sparse {share:g}", *_stored(base, compressed.SPARSE, rows))
    return found, x


def measure(calls: list[Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """The best seconds of each, their rounds taking turns."""
    counts = []
    for call in calls:
        call()
        started = clock()
        call()
        counts.append(max(1, int(LEAST_SECONDS / max(clock() - started, 1e-7))))
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for place, call in enumerate(calls):
            started = clock()
            for _ in range(counts[place]):
                call()
            best[place] = min(best[place], (clock() - started) / counts[place])
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m quatrefoil.bench.compressed_speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--match", default="", help="layers whose names match this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    names = [f"shared {entries}" for entries in ENTRIES] + [f"sparse {share:g}" for share in SHARES]
    print(f"| layer | dense, ms | {' | '.join(names)} |\n| --- | ---: |{' ---: |' * len(names)}")
    wrong, table = 0, {}
    for title, text in LAYERS.items():
        if not re.search(options.match, title):
            continue
        base = ops.parse(text)
        if base.op in rnn.GATES:
            base = ops.canonical(base.op, base.inputs, dict(base.attributes), 1)
        found, x = contenders(base, np.random.default_rng(0))
        for name, run, decoded in found:
            if decoded is not None:
                ours, theirs = run([x])[0], decoded([x])[0]
                difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
                if not difference <= AGREE:
                    wrong += 1
                    print(f"{title}, {name}: differs by {difference:.1e}", file=sys.stderr)
        seconds = measure([lambda run=run, x=x: run([x]) for _, run, _ in found], options.rounds, clock)  # type: ignore[misc]
        cells = [
            f"{seconds[0] / spent:.2f}{' *' * name.endswith('*')}"
            for (name, _, _), spent in zip(found[1:], seconds[1:])
        ]
        table[title] = {name: spent for (name, _, _), spent in zip(found, seconds)}
        print(f"| {title} | {seconds[0] * 1e3:.2f} | {' | '.join(cells)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
