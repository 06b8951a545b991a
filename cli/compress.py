"""``quatrefoil compress``: a smaller model, stage by stage, with what each stage keeps and costs in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quatrefoil.cli.arguments import AsJson, Seed
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout, table
from quatrefoil.cli.run import ModelFile
from quatrefoil.errors import QuatrefoilError

if TYPE_CHECKING:
    from quatrefoil.models.compression import Compression

Data = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="An .npz of the model's inputs by name, batch first, with labels or targets."),
]
Validation = Annotated[Path | None, typer.Option("--validation", help="Rows to choose on; left out, 15 % of the data.")]
Test = Annotated[Path | None, typer.Option("--test", help="Rows that the figures are of; left out, 15 % of the data.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the model to this .onnx file.")]
Prune = Annotated[float | None, typer.Option("--prune", help="The share of weights that become zero.")]
Channels = Annotated[
    float | None,
    typer.Option("--prune-channels", help="The share of channels and hidden units that go, shapes and all."),
]
PatternText = Annotated[
    str | None, typer.Option("--prune-pattern", help="2:4: two of every four weights in a row are not zero.")
]
Share = Annotated[int | None, typer.Option("--share", help="Entries of a codebook for each weight: 16, 256.")]
Bits = Annotated[int | None, typer.Option("--bits", help="8: QuantizeLinear and DequantizeLinear, scales trained.")]
Rank = Annotated[
    float | None,
    typer.Option("--rank", help="Factor layers: a share of the squared singular values (0.9), or a rank (16)."),
]
Distill = Annotated[bool, typer.Option("--distill", help="The original's outputs teach.")]
Student = Annotated[
    Path | None, typer.Option("--student", help="A smaller .onnx model, which learns from the original.")
]
Scope = Annotated[
    str | None, typer.Option("--scope", help="How a share is divided: sensitivity (measured), uniform, global.")
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="accuracy>=0.97, loss<=0.01, size<=100KB, time_ms<=0.5, cycles<=20000, energy_uj<=5, or several with commas: "
        "the rest is searched.",
    ),
]
Epochs = Annotated[int, typer.Option("--epochs", min=0, help="Of the training after each stage; 0 trains nothing.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Rows of a training step.")]
Rate = Annotated[float, typer.Option("--rate", help="The learning rate that each training begins with.")]
Optimizer = Annotated[str, typer.Option("--optimizer", help="adam or sgd.")]
Judged = Annotated[str | None, typer.Option("--judge", help="The output that is judged, where there are several.")]
Design = Annotated[str, typer.Option("--design", help="Of the simulated chip: a name or a TOML file; none for none.")]
Layers = Annotated[bool, typer.Option("--layers", help="Also show what happened to each layer, and its kernel.")]


def command(
    model: ModelFile,
    data: Data = None,
    validation: Validation = None,
    test: Test = None,
    output: Output = None,
    prune: Prune = None,
    prune_channels: Channels = None,
    prune_pattern: PatternText = None,
    rank: Rank = None,
    share: Share = None,
    bits: Bits = None,
    distill: Distill = False,
    student: Student = None,
    scope: Scope = None,
    budget: BudgetText = None,
    epochs: Epochs = 5,
    batch: Batch = 50,
    rate: Rate = 1e-3,
    optimizer: Optimizer = "adam",
    judge: Judged = None,
    design: Design = "edge",
    layers: Layers = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make a model smaller: prune, share, factor, distil, quantize, train it again, and say what each stage costs and keeps."""
    from quatrefoil.models.compression import as_dict, compress

    if output is not None and output.suffix != ".onnx":
        raise QuatrefoilError(f"--output is {str(output)!r}; give a name that ends in .onnx")
    if data is None:
        raise QuatrefoilError(f"{model}: give rows to train and to judge with --data file.npz")
    console = stderr()
    found = compress(
        model, data, prune=prune, prune_channels=prune_channels, pattern=prune_pattern, rank=rank, share=share, bits=bits,
        distill=distill, student=student, scope=scope, budget=budget, epochs=epochs, batch=batch, rate=rate,
        optimizer=optimizer, seed=seed, validation=validation, test=test, output=judge,
        design=None if design == "none" else design, report=lambda line: console.print(line, markup=False),
    )  # fmt: skip
    if output is not None:
        found.save(output)
    if as_json:
        say_json({"model": model, "output": output, **as_dict(found)})
    else:
        _show(model, found)
        if layers:
            _show_layers(found)
        stdout().print(found.summary, markup=False)
        if output is not None:
            stdout().print(f"model written to {output}", markup=False)
    if found.missed:
        raise typer.Exit(FAILED)


def _show(model: str, found: Compression) -> None:
    figures = (found.metric, "size", "weight bits", "not zero", "time ratio", "us", "cycles", "energy uJ")
    rows = table(f"{model}, {found.metric} on the test rows", "stage", *figures, right=figures)
    for stage in found.stages:
        cost = stage.cost
        rows.row(
            stage.name, f"{stage.figure:.4f}", f"{cost.size:,}", f"{cost.weight_bits:,}", f"{cost.nonzeros:.1%}",
            f"{cost.time_ratio:.2f}", f"{cost.microseconds:.1f}", "" if cost.cycles is None else f"{cost.cycles:,}",
            "" if cost.energy_pj is None else f"{cost.energy_pj / 1e6:.2f}",
        )  # fmt: skip
    stdout().print(rows)
    for stage in found.stages:
        if stage.cost.cannot:
            stdout().print(f"{stage.name}, not simulated: {stage.cost.cannot}", markup=False)


def _show_layers(found: Compression) -> None:
    for stage in found.stages:
        rows = table(stage.name, "layer", "what happened", "kernel")
        kernels = dict(stage.cost.kernels)
        for name in dict.fromkeys((*stage.said, *kernels)):
            rows.row(name, stage.said.get(name, ""), kernels.get(name, ""))
        stdout().print(rows)
