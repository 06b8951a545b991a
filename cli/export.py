"""``quatrefoil export``: a model as an FPGA project in HLS C++, OpenCL kernels or C99 for small devices, held to our own result."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from quatrefoil.cli.arguments import AsJson, Seed
from quatrefoil.cli.inputs import gather
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout
from quatrefoil.cli.progress import steps
from quatrefoil.cli.run import ModelFile
from quatrefoil.errors import QuatrefoilError

if TYPE_CHECKING:
    from quatrefoil.models import Model
    from quatrefoil.models.fixed.network import FixedNetwork

AUTO, KEEP = "auto", "keep"
TARGETS = ("hls4ml", "c", "opencl")

Directory = Annotated[Path, typer.Option("--output", "-o", help="The folder for the project: new, or an earlier one.")]
Target = Annotated[
    str, typer.Option("--to", help="hls4ml (an HLS project), c (C99 alone) or opencl (kernels and a host).")
]
Backend = Annotated[
    str, typer.Option("--backend", help="Of hls4ml: Vitis, Vivado, Quartus, Catapult, oneAPI or Libero.")
]
Estimated = Annotated[bool, typer.Option("--estimate", help="Also say what the design takes of the part.")]
Clock = Annotated[float, typer.Option("--clock", help="Nanoseconds of a clock cycle.")]
Synthesize = Annotated[
    bool, typer.Option("--synthesize", help="Run the vendor's tool, and set its report beside the estimate.")
]
SynthesisLimit = Annotated[
    float, typer.Option("--synthesis-limit", min=1.0, help="Seconds that --synthesize may take.")
]
Io = Annotated[str, typer.Option("--io", help="parallel (values in registers) or stream (pixels through FIFOs).")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fixed<total bits,integer bits>, auto (chosen on --samples), keep (the model's own), or a .json file of "
        "`quantize`.",
    ),
]
Bits = Annotated[int, typer.Option("--bits", help="Width for --precision auto.")]
Name = Annotated[
    str | None,
    typer.Option("--name", help="Of C and OpenCL: the name of files and functions; the model's when left out."),
]
Form = Annotated[
    str,
    typer.Option(
        "--form",
        help="Of OpenCL: stream (line buffers, for FPGAs), ndrange (many work-items, for processors and GPUs), or measured "
        "(the faster one here).",
    ),
]
Reuse = Annotated[
    str,
    typer.Option(
        "--reuse",
        help="Multiplications that share one multiplier: a number, conv1=4,dense*=128 by the names of nodes, a .toml or "
        ".json file, or auto (what fits the part).",
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        help="latency (unrolled; the default) or resource (weights in block RAM), or conv1=latency,*=resource.",
    ),
]
Part = Annotated[str | None, typer.Option("--part", help="The FPGA; hls4ml's default when left out.")]
Samples = Annotated[str | None, typer.Option("--samples", "-i", help="Inputs to check with: .npy or .npz.")]
Count = Annotated[int, typer.Option("--check", min=0, help="Made-up samples when there are no others; 0: no check.")]
Tolerance = Annotated[
    float,
    typer.Option("--tolerance", min=0.0, help="Largest error of the simulation, as a share of the largest value."),
]
Limit = Annotated[float, typer.Option("--limit", min=1.0, help="Seconds that the C simulation may take.")]


def command(
    model: ModelFile,
    output: Directory,
    to: Target = "hls4ml",
    backend: Backend = "Vitis",
    io: Io = "parallel",
    precision: Precision = "fixed<16,6>",
    bits: Bits = 8,
    estimate: Estimated = False,
    synthesize: Synthesize = False,
    synthesis_limit: SynthesisLimit = 14400.0,
    clock: Clock = 5.0,
    name: Name = None,
    form: Form = "stream",
    reuse: Reuse = "1",
    strategy: Strategy = None,
    part: Part = None,
    samples: Samples = None,
    check: Count = 8,
    tolerance: Tolerance = 0.05,
    limit: Limit = 600.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write a model for an FPGA or a small device, and check what was written.

    An HLS project's C simulation, C code and OpenCL kernels are held to the model in fixed point, to the last bit; of an
    HLS project the distance to the float model is shown too, and exits with 1 when it is too large.
    """
    from quatrefoil.fpga.hls4ml_export import export
    from quatrefoil.fpga.hls4ml_export.sharing import strategies

    if to not in TARGETS:
        raise QuatrefoilError(f"--to is {to!r}; known are {', '.join(TARGETS)} (Vitis and Vivado are now --backend)")
    with steps("export", 2) as advance:
        advance(f"loading {model}")
        network = _network(model, precision, samples, bits)
        batch = _batch(network.source, samples, check, seed)
        advance(f"writing {to}" + (" and checking it" if batch is not None else ""))
        if to != "hls4ml":
            _to_c(to, network, output, name, form, batch, as_json)
            return
        report = export(
            network, output, backend=backend, io=io, part=part, reuse=reuse,
            strategy=strategies(strategy), check=batch, estimate=estimate, synthesize=synthesize,
            clock_ns=clock, limit_s=limit, synthesis_limit_s=synthesis_limit, show=_show,
        )  # fmt: skip
    far = [checked for checked in report.outputs if checked.max_error > tolerance * checked.scale]
    if as_json:
        say_json({**report.plain(), "agrees": None if batch is None else not far})
    else:
        stdout().print(str(report), markup=False, soft_wrap=True)
    for checked in far:
        stderr().print(
            f"{checked.name}: the C simulation is {checked.max_error:.3g} from the float model, more than {tolerance:g} "
            f"of {checked.scale:.3g}; give more bits with --precision, or allow more with --tolerance",
            markup=False,
            soft_wrap=True,
        )
    if far:
        raise typer.Exit(FAILED)


def _show(line: str) -> None:
    stderr().print(line, markup=False, highlight=False, soft_wrap=True)


def _batch(loaded: Model, samples: str | None, check: int, seed: int) -> dict[str, np.ndarray] | None:
    """The samples to check with: from a file, or made up one by one; None where there shall be none."""
    if samples is None and not check:
        return None
    made = [gather(loaded.inputs, [samples] if samples else [], seed + n) for n in range(1 if samples else check)]
    return {name: np.concatenate([feeds[name] for feeds in made]) for name in made[0]}


def _network(model: str, precision: str, samples: str | None, bits: int) -> FixedNetwork:
    """The model in the fixed-point formats that --precision says."""
    from quatrefoil.models import load
    from quatrefoil.models.fixed.calibration import calibrate
    from quatrefoil.models.fixed.network import fixed
    from quatrefoil.models.fixed.precision import Precision as Formats
    from quatrefoil.models.fixed.quantized import load_quantized

    if precision == KEEP:
        return load_quantized(model)
    loaded = load(model)
    if precision == AUTO:
        if samples is None:
            raise QuatrefoilError("--precision auto chooses formats on samples; give some with --samples file.npz")
        return fixed(loaded, calibrate(loaded, gather(loaded.inputs, [samples], 0), bits=bits).precision)
    return fixed(loaded, Formats.load(precision) if precision.endswith(".json") else Formats.of(precision))


def _to_c(
    to: str, network: FixedNetwork, output: Path, name: str | None, form: str, batch: dict[str, np.ndarray] | None,
    as_json: bool,
) -> None:  # fmt: skip
    from quatrefoil.models.fixed.c_export import export_c
    from quatrefoil.models.fixed.c_export.opencl import export_opencl

    made = (
        export_c(network, output, name=name, check=batch) if to == "c" else
        export_opencl(network, output, name=name, check=batch, form=form)
    )  # fmt: skip
    if as_json:
        say_json(asdict(made))
    else:
        stdout().print(str(made), markup=False, soft_wrap=True)
