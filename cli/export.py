"""``quatrefoil export``: a feed-forward CNN as an FPGA project in HLS C++, with its C simulation held to our result."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from quatrefoil.cli.arguments import AsJson, Seed
from quatrefoil.cli.inputs import gather
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout
from quatrefoil.cli.progress import steps
from quatrefoil.cli.run import ModelFile

Directory = Annotated[Path, typer.Option("--output", "-o", help="The folder for the project: new, or an earlier one.")]
Target = Annotated[str, typer.Option("--to", help="Vitis or Vivado.")]
Io = Annotated[str, typer.Option("--io", help="parallel (values in registers) or stream (pixels through FIFOs).")]
Precision = Annotated[str, typer.Option("--precision", help="fixed<total bits,integer bits>.")]
Reuse = Annotated[int, typer.Option("--reuse-factor", min=1, help="Multiplications that share one multiplier.")]
Strategy = Annotated[str, typer.Option("--strategy", help="latency (unrolled) or resource (weights in block RAM).")]
Part = Annotated[str | None, typer.Option("--part", help="The FPGA; hls4ml's default when left out.")]
Samples = Annotated[str | None, typer.Option("--samples", "-i", help="Inputs for the C simulation: .npy or .npz.")]
Count = Annotated[int, typer.Option("--check", min=0, help="Made-up samples when there are no others; 0: no check.")]
Tolerance = Annotated[
    float,
    typer.Option("--tolerance", min=0.0, help="Largest error of the simulation, as a share of the largest value."),
]
Limit = Annotated[float, typer.Option("--limit", min=1.0, help="Seconds that the C simulation may take.")]


def command(
    model: ModelFile,
    output: Directory,
    to: Target = "Vitis",
    io: Io = "parallel",
    precision: Precision = "fixed<16,6>",
    reuse_factor: Reuse = 1,
    strategy: Strategy = "latency",
    part: Part = None,
    samples: Samples = None,
    check: Count = 8,
    tolerance: Tolerance = 0.05,
    limit: Limit = 600.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write an HLS project and hold its C simulation to the float model. Exits with 1 when they are too far apart."""
    from quatrefoil.fpga.hls4ml_export import export
    from quatrefoil.models import load

    with steps("export", 2) as advance:
        advance(f"loading {model}")
        loaded = load(model)
        batch: dict[str, np.ndarray] | None = None
        if samples is not None or check:
            made = [
                gather(loaded.inputs, [samples] if samples else [], seed + n) for n in range(1 if samples else check)
            ]
            batch = {name: np.concatenate([feeds[name] for feeds in made]) for name in made[0]}
        advance("writing the project" + (" and running its C simulation" if batch is not None else ""))
        report = export(
            loaded, output, backend=to, io=io, part=part, reuse_factor=reuse_factor, precision=precision,
            strategy=strategy, check=batch, limit_s=limit,
        )  # fmt: skip
    far = [checked for checked in report.outputs if checked.max_error > tolerance * checked.scale]
    if as_json:
        say_json({**asdict(report), "top_function": report.top_function, "agrees": None if batch is None else not far})
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
