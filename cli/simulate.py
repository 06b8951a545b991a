"""``quatrefoil simulate``: a problem or a model on the ASIC simulator, on a design of your own or a shipped one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from quatrefoil import ops
from quatrefoil.bench.records import Simulated
from quatrefoil.cli.arguments import AsJson, Seed
from quatrefoil.cli.explain import Target, is_model
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.problem import Problem

Design = Annotated[str, typer.Option("--design", "-d", help="A shipped design's name, or a TOML file.")]


def command(target: Target, design: Design = "", seed: Seed = 0, as_json: AsJson = False) -> None:
    """Count the cycles of a simulated chip. The numbers that it computes are real and are checked."""
    from quatrefoil.asic_sim import hardware

    with hardware.use_design(design) if design else hardware.use_design(hardware.current()) as chip:
        rows = _model(target, seed) if is_model(target) else _problem(target, seed)
    peak = chip.array_rows * chip.array_columns
    total = sum(row["cycles"] or 0 for row in rows)
    if as_json:
        say_json({"design": str(chip), "hardware": asdict(chip), "layers": rows, "cycles": total})
    else:
        console = stdout()
        console.print(f"design {chip}")
        shown = table(
            "", "layer", "kernel", "simulated cycles", "simulated us", "array in use", "error",
            right=("simulated cycles", "simulated us", "array in use", "error"),
        )  # fmt: skip
        for row in rows:
            cycles, macs = row["cycles"], row["macs"]
            shown.row(
                row["name"],
                row["kernel"],
                "" if cycles is None else f"{cycles:,}",
                "" if cycles is None else f"{cycles / chip.clock_mhz:,.1f}",
                "" if not cycles or not macs else f"{macs / (cycles * peak):.0%}",
                "" if row["error"] is None else f"{row['error']:.1e}",
            )
        shown.row("all", "", f"{total:,}", f"{total / chip.clock_mhz:,.1f}", "", "", style="bold")
        console.print(shown)
    if any(row["wrong"] for row in rows):
        stderr().print("a result is wrong: it lies outside the operator's tolerance")
        raise typer.Exit(FAILED)


def _problem(text: str, seed: int) -> list[dict[str, Any]]:
    from quatrefoil.bench import run

    with steps("simulate", 1) as advance:
        advance(text)
        [record] = run([text], on=("asic",), seed=seed)
    cost: Simulated | None = record.simulated
    return [
        {
            "name": record.problem,
            "kernel": record.kernel,
            "cycles": None if cost is None else cost.cycles,
            "macs": _array_macs(ops.parse(record.problem)),
            "dram_bytes": None if cost is None else cost.dram_bytes,
            "counters": {} if cost is None else dict(cost.counters),
            "error": record.error,
            "wrong": record.wrong,
            "refused": record.refused,
        }
    ]


def _model(path: str, seed: int) -> list[dict[str, Any]]:
    from quatrefoil.bench.layers import layers
    from quatrefoil.cli.inputs import gather
    from quatrefoil.models import load

    with steps("simulate", 2) as advance:
        advance(f"loading {path}")
        model = load(path)
        advance(f"simulating {len(model.graph.nodes)} nodes")
        found = layers(model, gather(model.inputs, [], seed), "asic")
    rows: list[dict[str, Any]] = []
    for layer in found:
        problem = ops.parse(layer.problem) if layer.problem else None
        rows.append(
            {
                "name": f"{layer.name} ({layer.op})",
                "kernel": f"{layer.backend}: {layer.kernel}",
                "cycles": layer.cycles,
                "macs": _array_macs(problem) if problem is not None else 0,
                "error": layer.error,
                "wrong": layer.out_of_place > 0,
            }
        )
    return rows


def _array_macs(problem: Problem) -> int:
    """Multiply-accumulates for the systolic array; pooling is the vector unit's."""
    return 0 if problem.op in ops.FAMILIES["pool"] else ops.SPECS[problem.op].work(problem).macs
