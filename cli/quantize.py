"""``quatrefoil quantize``: fixed-point formats for a model, chosen on samples or read from the model, into a file; or the
model in 8-bit integers as ONNX."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quatrefoil.cli.arguments import AsJson
from quatrefoil.cli.inputs import gather
from quatrefoil.cli.output import say_json, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.cli.run import ModelFile
from quatrefoil.errors import QuatrefoilError

if TYPE_CHECKING:
    from quatrefoil.models.fixed.calibration import Calibration

Samples = Annotated[
    list[str] | None,
    typer.Option("--samples", "-i", help="Inputs to choose on, batch first: .npy or .npz; some hundred do."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Write the precision to this .json file, with --int8 the model to this .onnx file."
    ),
]
Bits = Annotated[int | None, typer.Option("--bits", help="Width of every weight and value; 8 when nothing is said.")]
Error = Annotated[
    float | None,
    typer.Option("--error", help="Fewest bits that keep the outputs' error (a share, root mean square) below this."),
]
Budget = Annotated[float | None, typer.Option("--budget", help="Mean width, each layer with what it needs most.")]
Curves = Annotated[
    bool, typer.Option("--curves", help="Show the outputs' error against the width of each layer, the others wide.")
]
Int8 = Annotated[
    bool,
    typer.Option("--int8", help="In place of fixed point: int8 weights and uint8 values, as QuantizeLinear nodes."),
]
PerTensor = Annotated[
    bool, typer.Option("--per-tensor", help="With --int8: one scale for all of a layer's weights, not one a channel.")
]
Signed = Annotated[bool, typer.Option("--signed", help="Give values that are never negative a sign bit too.")]


def command(
    model: ModelFile,
    samples: Samples = None,
    output: Output = None,
    bits: Bits = None,
    error: Error = None,
    budget: Budget = None,
    signed: Signed = False,
    curves: Curves = False,
    int8: Int8 = False,
    per_tensor: PerTensor = False,
    as_json: AsJson = False,
) -> None:
    """Choose a model's fixed-point formats, or its scales in 8-bit integers, and say what they cost, layer by layer."""
    from quatrefoil.models import load
    from quatrefoil.models.fixed.calibration import calibrate
    from quatrefoil.models.fixed.quantized import has_quantizers, load_quantized
    from quatrefoil.models.importing import read_model

    if int8:
        if bits is not None or error is not None or budget is not None or signed or curves:
            raise QuatrefoilError("--int8 has 8 bits for everything; leave --bits, --error, --budget and the like out")
        in_bytes(model, samples, output, not per_tensor, as_json)
        return
    if per_tensor:
        raise QuatrefoilError(
            "--per-tensor is said of --int8; a fixed-point layer has one format for its weights anyway"
        )
    if output is not None and output.suffix != ".json":
        raise QuatrefoilError(f"--output is {str(output)!r}; give a name that ends in .json")
    if has_quantizers(read_model(model)):
        if samples or bits or error or budget:
            raise QuatrefoilError(
                f"{model} says its precisions itself (QuantizeLinear or Quant nodes); leave the rest out"
            )
        network = load_quantized(model)
        if output is not None:
            network.precision.save(output)
        formats = {name: form.text for name, form in network.formats.items()}
        if as_json:
            say_json({"model": model, "precision": str(output) if output else None, "formats": formats})
        else:
            for name, text in formats.items():
                stdout().print(f"{name}: {text}", markup=False)
        return
    if not samples:
        raise QuatrefoilError(
            f"{model} is a float model; give samples to choose its formats on with --samples file.npz"
        )
    with steps("quantize", 2) as advance:
        advance(f"loading {model}")
        loaded = load(model)
        given = gather(loaded.inputs, samples, 0)
        advance("trying formats on the samples")
        found = calibrate(loaded, given, bits=bits, error=error, budget=budget, unsigned=not signed, curves=curves)
    if output is not None:
        found.precision.save(output)
    if as_json:
        layers = [
            {**asdict(layer), **{name: str(getattr(layer, name)) for name in ("weight", "result", "accumulator")}}
            for layer in found.layers
        ]
        first = found.first_diverging
        say_json(
            {
                "model": model, "precision": output, "error": found.error, "agreement": found.agreement,
                "bits": found.bits, "layers": layers, "first_diverging": None if first is None else first.name,
                "trials": [asdict(trial) for trial in found.trials],
                "curves": {name: [asdict(trial) for trial in curve] for name, curve in found.curves.items()},
            }
        )  # fmt: skip
        return
    _show(model, found)
    if found.curves:
        _show_curves(found)
    if output is not None:
        stdout().print(f"precision written to {output}")


def _show(model: str, found: Calibration) -> None:
    rows = table(
        f"{model} in fixed point", "layer", "weights", "results", "sums", "least", "greatest", "cut off", "error",
        right=("least", "greatest", "cut off", "error"),
    )  # fmt: skip
    for layer in found.layers:
        rows.row(
            f"{layer.name} ({layer.operator})", str(layer.weight or ""), str(layer.result), str(layer.accumulator or ""),
            f"{layer.low:.3g}", f"{layer.high:.3g}", f"{layer.saturated / max(layer.values, 1):.2%}", f"{layer.error:.2%}",
        )  # fmt: skip
    console = stdout()
    console.print(rows)
    console.print(found.summary, markup=False)


def _show_curves(found: Calibration) -> None:
    widths = [f"{trial.bits:g} bits" for trial in next(iter(found.curves.values()))]
    rows = table("the outputs' error against a layer's width", "layer", *widths, right=tuple(widths))
    for name, curve in found.curves.items():
        rows.row(name, *(f"{trial.error:.2%}" for trial in curve))
    stdout().print(rows)


def in_bytes(model: str, samples: list[str] | None, output: Path | None, per_channel: bool, as_json: bool) -> None:
    """``--int8``."""
    from quatrefoil.models import load
    from quatrefoil.models.int8 import quantize_int8

    if output is not None and output.suffix != ".onnx":
        raise QuatrefoilError(f"--output is {str(output)!r}; with --int8 give a name that ends in .onnx")
    if not samples:
        raise QuatrefoilError(f"{model}: give samples to choose its scales on with --samples file.npz")
    with steps("quantize", 2) as advance:
        advance(f"loading {model}")
        given = gather(load(model).inputs, samples, 0)
        advance("choosing scales on the samples")
        found = quantize_int8(model, given, per_channel=per_channel)
    if output is not None:
        found.save(output)
    if as_json:
        first = found.first_diverging
        say_json(
            {
                "model": model, "output": output, "error": found.error, "agreement": found.agreement,
                "layers": [asdict(layer) for layer in found.layers], "left": dict(found.left),
                "first_diverging": None if first is None else first.name,
            }
        )  # fmt: skip
        return
    rows = table(
        f"{model} in 8-bit integers", "layer", "channels", "least scale", "greatest scale", "least", "greatest",
        "cut off", "weights' error", "error",
        right=("channels", "least scale", "greatest scale", "least", "greatest", "cut off", "weights' error", "error"),
    )  # fmt: skip
    for layer in found.layers:
        low, high = ("" if end is None else f"{end:.3g}" for end in (layer.low, layer.high))
        rows.row(
            f"{layer.name} ({layer.operator})", str(layer.channels), *(f"{scale:.3g}" for scale in layer.scales), low, high,
            f"{layer.cut_off / max(layer.values, 1):.2%}", f"{layer.weight_error:.2%}", f"{layer.error:.2%}",
        )  # fmt: skip
    console = stdout()
    console.print(rows)
    console.print(found.summary, markup=False)
    if output is not None:
        console.print(f"model written to {output}")
