"""``quatrefoil simulate``: a problem or a model on the ASIC simulator, on a design of your own or a shipped one; or
SCALE-Sim's files, with its reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from quatrefoil.asic_sim.scalesim import Result
from quatrefoil.cli.arguments import AsJson, Seed
from quatrefoil.cli.explain import is_model
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.errors import QuatrefoilError

Target = Annotated[
    str,
    typer.Argument(
        metavar="[PROBLEM|MODEL]", help="A problem's text form in quotes, or an ONNX file.", show_default=False
    ),
]
Design = Annotated[str, typer.Option("--design", "-d", help="A shipped design's name, or a TOML file.")]
Check = Annotated[
    bool, typer.Option("--check", help="Also compute the numbers on the simulator, and hold them to the oracle.")
]
Unsupported = Annotated[
    str,
    typer.Option("--unsupported", help="Operators that the simulator does not know: error, or host to list them."),
]
Format = Annotated[
    str,
    typer.Option("--format", metavar="NAME", help="Time floats as if quantised to this format of the design: int8, …"),
]
MappingFile = Annotated[
    Path | None,
    typer.Option("--mapping", metavar="TOML", help="How layers are cut for the array, where it is not to be searched."),
]
Alternatives = Annotated[
    bool, typer.Option("--alternatives", help="Also say how each layer was cut, and what other cuts would have cost.")
]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="JSON", help="Write what each part of the chip does when, for ui.perfetto.dev."),
]
ScaleSim = Annotated[
    Path | None,
    typer.Option("--scalesim", metavar="CFG", help="SCALE-Sim's configuration: its figures for --topology instead."),
]
Topology = Annotated[
    Path | None,
    typer.Option("--topology", metavar="CSV", help="--scalesim: the layers, convolutions or products (M, N, K)."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="--scalesim: its three reports go into DIR/<run_name>."),
]

Html = Annotated[
    Path | None, typer.Option("--html", help="Also write a report to this file, a page that loads nothing.")
]
Waves = Annotated[
    Path | None,
    typer.Option("--vcd", metavar="VCD", help="Of a small problem: write what each part does, for a waveform viewer."),
]


def command(
    target: Target = "",
    design: Design = "",
    check: Check = False,
    unsupported: Unsupported = "error",
    as_format: Format = "",
    mapping: MappingFile = None,
    alternatives: Alternatives = False,
    seed: Seed = 0,
    trace: Trace = None,
    html: Html = None,
    vcd: Waves = None,
    scalesim: ScaleSim = None,
    topology: Topology = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Count cycles, traffic and energy on a simulated chip, layer by layer. Nothing here is measured.

    With --scalesim and --topology, SCALE-Sim's files are read, and its figures are given and written.
    """
    if scalesim is not None or topology is not None or output is not None:
        if scalesim is None or topology is None:
            raise QuatrefoilError("--scalesim, --topology and --output belong together; give the first two at least")
        if target or design or as_format or any(file is not None for file in (trace, html, vcd)):
            raise QuatrefoilError(
                "--scalesim has its own layers, its own array and its own reports: leave the problem, --design, --format, "
                "--trace, --html and --vcd out"
            )
        _scalesim(scalesim, topology, output, as_json)
        return
    if check and as_format:
        raise QuatrefoilError("--format times a model, it does not compute it: leave --check out")
    if not target:
        raise QuatrefoilError("nothing to simulate; give a problem's text form or an ONNX file")
    from quatrefoil import asic_sim
    from quatrefoil.asic_sim import waves
    from quatrefoil.bench.chip_report import as_quantised, assumptions, waits_for, write_html
    from quatrefoil.bench.page import write_text
    from quatrefoil.bench.trace import chip_document
    from quatrefoil.models.simulation import Layer, ModelReport, simulate

    with asic_sim.use_design(design) if design else asic_sim.use_design(asic_sim.current()) as chip:
        report = simulate(target, unsupported=unsupported, as_format=as_format or None, mapping=mapping)
        layers: tuple[Layer, ...]
        if isinstance(report, ModelReport):
            if vcd is not None:
                raise QuatrefoilError("--vcd is for a problem, whose every cycle is stepped; --trace is for models too")
            layers = report.layers
        else:
            layers = (Layer(report.problem, "", "", report),)
            if vcd is not None:
                waves.write(report, vcd)
                stderr().print(f"waves written to {vcd}")
        errors = _errors(target, seed) if check else {}
    if trace is not None:
        timed = [(layer.name, layer.report) for layer in layers if layer.report is not None]
        write_text(trace, json.dumps(chip_document(timed), allow_nan=False) + "\n")
        stderr().print(f"trace written to {trace}")
    if html is not None:
        write_html(html, Path(target).name if is_model(target) else target, report)
        stderr().print(f"report written to {html}")
    wrong = [name for name, (_, places) in errors.items() if places]
    if as_json:
        say_json(_document(chip, report, layers, errors, as_format or None, alternatives))
    else:
        console = stdout()
        console.print(f"design {chip}, simulated")
        for said in (as_quantised(report), *assumptions(report)):
            if said:
                console.print(said, markup=False)
        columns = ("cycles", "us", "array in use", "waits", "DRAM KiB", "energy uJ", *(["error"] if check else []))
        shown = table("", "layer", *columns, "mostly waits for", right=columns)
        for layer in layers:
            name = f"{layer.name} ({layer.op})" if layer.op else layer.name
            error = errors.get(layer.name, (None, 0))[0]
            cells = _cells(layer.report) if layer.report is not None else [""] * 6
            said = layer.why or (waits_for(layer.report.counters) if layer.report is not None else layer.kernel)
            shown.row(name, *cells, *(["" if error is None else f"{error:.1e}"] if check else []), said)
        if len(layers) > 1:
            shown.row("all", *_cells(report), *([""] if check else []), waits_for(report.counters), style="bold")
        console.print(shown)
        if alternatives:
            _show_cuts(layers)
        energy = ", ".join(f"{name} {_uj(band.low)} to {_uj(band.high)}" for name, band in report.energy.items())
        console.print(f"energy in uJ, by published figures at {chip.technology_nm:g} nm: {energy}")
        console.print(f"area of a chip for this: about {report.area_mm2:,.3g} mm2 (docs/asic.md says of what)")
    if wrong:
        stderr().print(f"a result is wrong, it lies outside the operator's tolerance: {', '.join(wrong)}")
        raise typer.Exit(FAILED)


def _cells(report: Any) -> list[str]:
    waits = 1 - report.counters["busy"] / report.cycles if report.cycles else 0.0
    return [
        f"{report.cycles:,}",
        f"{report.microseconds:,.1f}",
        f"{report.utilisation:.0%}" if report.macs else "",
        f"{waits:.0%}",
        f"{report.dram_bytes / 1024:,.0f}",
        _uj(report.energy_pj),
    ]


def _uj(picojoules: float) -> str:
    from quatrefoil.bench.page import figure

    return figure(picojoules * 1e-6)


def _document(
    chip: Any,
    report: Any,
    layers: Any,
    errors: Mapping[str, tuple[float | None, int]],
    as_format: str | None,
    alternatives: bool,
) -> dict[str, Any]:
    def described(one: Any) -> dict[str, Any]:
        return {
            "cycles": one.cycles,
            "microseconds": one.microseconds,
            "macs": one.macs,
            "utilisation": one.utilisation,
            "dram_bytes": one.dram_bytes,
            "formats": list(one.formats),
            "energy_pj": {name: [band.low, band.high] for name, band in one.energy.items()},
            "counters": dict(one.counters),
        }

    rows = []
    for layer in layers:
        error, places = errors.get(layer.name, (None, 0))
        row = {"name": layer.name, "op": layer.op, "kernel": layer.kernel, "why": layer.why, "error": error}
        cost: dict[str, Any] = {"cycles": None}
        if layer.report is not None:
            kept = layer.report.setting.kept
            cost = {
                "problem": layer.report.problem,
                **described(layer.report),
                "assumed": layer.report.assumed,
                "mappings": [_cut(cut) for cut in layer.report.cuts],
                "cores": [dict(counters) for counters in layer.report.cores],
                "stays": {
                    "inputs": sorted(kept.here),
                    "outputs": sorted(kept.stay),
                    "unwritten": sorted(kept.unwritten),
                },
            }
            if alternatives:
                cost["alternatives"] = [
                    [{**asdict(said), "cycles": cycles} for said, cycles in part]
                    for part in layer.report.alternatives()
                ]
        rows.append({**row, "wrong": places > 0, **cost})
    return {
        "design": str(chip),
        "simulated": True,
        "hardware": {**asdict(chip), "formats": dict(chip.formats)},
        "as_format": as_format,
        "layers": rows,
        "area_mm2": report.area_mm2,
        **described(report),
    }


def _cut(cut: Any) -> dict[str, Any]:
    keys = ("block", "blocks", "strips", "slices")
    return {**asdict(cut.mapping), "stages": [dict(zip(keys, stage, strict=True)) for stage in cut.stages]}


def _show_cuts(layers: Any) -> None:
    """How each layer was cut, and what the search would have found instead."""
    shown = table("", "layer", "cut", "cycles", right=("cycles",))
    for layer in layers:
        if layer.report is None:
            continue
        for cut, others in zip(layer.report.cuts, layer.report.alternatives(), strict=True):
            shown.row(layer.name, cut.text, f"{layer.report.cycles:,}", style="bold")
            for said, cycles in others:
                places = f"{said.activations}, {said.outer} outside, blocks of at most {said.places} places"
                shown.row("", places, f"{cycles:,}")
    stdout().print(shown)


def _errors(target: str, seed: int) -> dict[str, tuple[float | None, int]]:
    """By layer: how far the simulator's numbers are from the oracle's, and in how many places too far."""
    if not is_model(target):
        from quatrefoil.bench import run

        with steps("simulate", 1) as advance:
            advance(target)
            [record] = run([target], on=("asic",), seed=seed)
        return {record.problem: (record.error, int(record.wrong))}
    from quatrefoil.bench.layers import layers
    from quatrefoil.cli.inputs import gather
    from quatrefoil.models import load

    with steps("simulate", 2) as advance:
        advance(f"loading {target}")
        model = load(target)
        advance(f"computing {len(model.graph.nodes)} nodes")
        found = layers(model, gather(model.inputs, [], seed), "asic")
    return {layer.name: (layer.error, layer.out_of_place) for layer in found}


def _scalesim(config_path: Path, topology: Path, output: Path | None, as_json: bool) -> None:
    from quatrefoil.asic_sim import scalesim

    config = scalesim.read_config(config_path)
    results = [scalesim.simulate(layer, config) for layer in scalesim.read_topology(topology)]
    written = [] if output is None else scalesim.write_reports(results, output / config.run_name)
    total = sum(result.compute_cycles for result in results)
    if as_json:
        say_json(
            {
                "config": asdict(config),
                "layers": [asdict(result.layer) | _scalesim_row(result) for result in results],
                "compute_cycles": total,
                "reports": [str(path) for path in written],
            }
        )
        return
    console = stdout()
    console.print(f"{config.run_name}: {config.rows}x{config.columns}, {config.dataflow}")
    columns = ("compute cycles", "stall cycles", "mapping %", "compute %", "SRAM accesses", "DRAM words")
    shown = table("", "layer", "M x K x N", *columns, right=columns)
    for result in results:
        layer, row = result.layer, _scalesim_row(result)
        shown.row(
            layer.name,
            f"{layer.m} x {layer.k} x {layer.n}",
            f"{result.compute_cycles:,}",
            "" if result.stall_cycles is None else f"{result.stall_cycles:,}",
            f"{result.mapping_efficiency:.1f}",
            f"{result.compute_utilisation:.1f}",
            f"{row['sram_accesses']:,}",
            "" if row["dram_accesses"] is None else f"{row['dram_accesses']:,}",
        )
    shown.row("all", "", f"{total:,}", "", "", "", "", "", style="bold")
    console.print(shown)
    for path in written:
        console.print(str(path), soft_wrap=True)
    if not config.calculated:
        stderr().print(
            "InterfaceBandwidth is USER: stalls, the figures of DRAM and what follows from them are not modelled, and "
            "their cells are empty"
        )


def _scalesim_row(result: Result) -> dict[str, Any]:
    memories = (result.ifmap, result.filter, result.ofmap)
    dram = [memory.dram_accesses for memory in memories if memory.dram_accesses is not None]
    return {
        "compute_cycles": result.compute_cycles,
        "stall_cycles": result.stall_cycles,
        "mapping_efficiency": result.mapping_efficiency,
        "compute_utilisation": result.compute_utilisation,
        "sram_accesses": sum(memory.accesses for memory in memories),
        "dram_accesses": sum(dram) if dram else None,
        "ifmap": asdict(result.ifmap),
        "filter": asdict(result.filter),
        "ofmap": asdict(result.ofmap),
    }
