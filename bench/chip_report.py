"""The HTML report of a simulated chip: what a model or a problem costs on a design, what it waits for, and every figure.

Nothing in it is measured, and it says so wherever it gives a figure. It is one file that loads nothing; charts are
plotly's (pip install 'quatrefoil[report]'), and without it the tables say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from quatrefoil.asic_sim import Hardware, SimulationReport, energy
from quatrefoil.asic_sim.hardware import Formats
from quatrefoil.asic_sim.simulation import SUMMANDS
from quatrefoil.bench import charts
from quatrefoil.bench.charts import Rate
from quatrefoil.bench.page import Cell, Page, figure
from quatrefoil.bench.report import INSTALL, MOST_NODES
from quatrefoil.models.simulation import Layer, ModelReport

WAITS = (
    "the first operands", "", "weights", "activations", "results to leave", "the step before",
    "a memory on the chip to keep up", "the last results",
)  # fmt: skip
BREAKDOWN = dict(zip(SUMMANDS, WAITS, strict=True))
"""The counters that sum up to the cycles, in the order of a run, and what each waits for."""

METHOD = (
    "Cycles are counted from the design's figures and the shapes alone, one event for each transaction of a tile. The "
    "project's tests hold every counter, to the last cycle, to a second simulator that steps each element of the array "
    "in every cycle. That shows that the two describe the same machine, not that a chip would keep this time.",
    "A gap is put down to what ended last. Layers run one after the other: the next one does not begin while the one "
    "before drains. Activations go through DRAM between them, unless the design lets them stay.",
    "Not modelled: more of DRAM than its channels, banks, rows and refresh, conflicts of addresses within a memory on the "
    "chip, the width of the links, instruction fetch and control, a host.",
    "Energy is a count times a published figure, scaled to the design's process, from low to high. Leakage, clock, wires, "
    "control and pads are in neither energy nor area: real chips take more.",
    "docs/asic.md has the recurrences, the sources of the figures, and comparisons with chips that were measured.",
)


def waits_for(counters: Mapping[str, int]) -> str:
    """What most of the cycles without operands are spent on; empty where there are none."""
    name = max((name for name, what in BREAKDOWN.items() if what), key=counters.__getitem__)
    return BREAKDOWN[name] if counters[name] else ""


def as_quantised(report: SimulationReport | ModelReport) -> str:
    """What to say where floats were not taken for what they are; empty where they were."""
    cast = [cost.setting.format for cost in _costs(report) if cost.setting.cast]
    if not cast:
        return ""
    return (
        f"Floats are timed as if they had been quantised to {cast[0]}: its bytes, its pace, and rounding behind the array. "
        "Their numbers are not computed."
    )


def assumptions(report: SimulationReport | ModelReport) -> list[str]:
    """What was taken for granted of weights whose numbers are not known, where it matters."""
    said = dict.fromkeys(cost.assumed for cost in _costs(report) if cost.assumed)
    return [f"{each[0].upper()}{each[1:]}." for each in said]


def _costs(report: SimulationReport | ModelReport) -> Sequence[SimulationReport]:
    return report.reports if isinstance(report, ModelReport) else [report]


def write_html(path: Path, title: str, report: SimulationReport | ModelReport) -> None:
    """title: what was simulated. Raises QuatrefoilError where the file cannot be written."""
    chip = report.design
    if isinstance(report, ModelReport):
        layers = report.layers
    else:
        layers = (Layer("", report.problem.split()[0], "", report),)
    page = Page(f"SIMULATED: {title}", f"on {chip}, a chip that does not exist; nothing on this page was measured")
    page.answer(_answer(report, layers))
    if said := as_quantised(report):
        page.paragraph(said)
    for said in assumptions(report):
        page.paragraph(said)
    timed = [(_label(place, layer), layer, layer.report) for place, layer in enumerate(layers, 1) if layer.report]
    timed = [(label, layer, cost) for label, layer, cost in timed if cost.cycles]
    script = charts.library() if charts.available() else ""
    if not script:
        page.paragraph(INSTALL, quiet=True)
    _cycles(page, report, timed, script)
    _memories(page, report, timed)
    _roofline(page, report, timed, script)
    _energy(page, report, script)
    _layers(page, report, layers)
    page.heading("The design")
    page.table(("figure", "value"), _design(chip), numbers=("value",))
    page.heading("How it was counted")
    for sentence in METHOD:
        page.paragraph(sentence)
    page.write(path)


Timed = Sequence[tuple[str, Layer, SimulationReport]]
"""Layers that take cycles, each with a label of its own and its cost."""


def _label(place: int, layer: Layer) -> str:
    return f"{place} {layer.name} ({layer.op})" if layer.name else f"{place} {layer.op}"


def _answer(report: SimulationReport | ModelReport, layers: Sequence[Layer]) -> list[tuple[str, str]]:
    chip, cycles = report.design, report.cycles
    time = f"SIMULATED, which take {figure(report.microseconds)} us at {chip.clock_mhz:g} MHz on {chip.name}"
    said = [(f"{cycles:,} cycles", time)]
    if cycles:
        idle = 1 - report.counters["busy"] / cycles
        waits = f"in {idle:.1%} of the cycles no operands enter"
        if waits_for(report.counters):
            waits += f", above all for want of {waits_for(report.counters)}"
        if report.macs:
            said.append((f"{report.utilisation:.1%}", f"of the array's multiply-accumulates are put to use; {waits}"))
        else:
            said.append(("No products", f"run on the array; {waits}"))
        total = energy.total(report.energy)
        name, most = max(report.energy.items(), key=lambda item: item[1].middle)
        share = f"{most.middle / total.middle:.0%} of it for {_articled(name)}"
        said.append((f"{_uj(total)} uJ", f"by published figures at {chip.technology_nm:g} nm, {share}"))
    area = f"of array, vector unit and memories at {chip.technology_nm:g} nm, without wires, control and pads"
    said.append((f"{_range(energy.total(report.area))} mm2", area))
    host = [layer for layer in layers if layer.why]
    if host:
        names = ", ".join(dict.fromkeys(layer.op for layer in host))
        said.append((f"{len(host)} of {len(layers)} layers", f"are left to the host and cost nothing here: {names}"))
    return said


def _articled(component: str) -> str:
    return component if component == "DRAM" else f"the {component}"


def _range(band: energy.Band) -> str:
    low, high = figure(band.low), figure(band.high)
    return low if low == high else f"{low} to {high}"


def _uj(picojoules: energy.Band) -> str:
    return _range(picojoules * 1e-6)


def _cycles(page: Page, report: SimulationReport | ModelReport, timed: Timed, script: str) -> None:
    page.heading("Where the cycles go")
    rows: list[Sequence[Cell]] = [
        (
            name,
            f"waits for {what}" if what else "operands enter",
            report.counters[name],
            _share(report.counters[name], report.cycles),
        )
        for name, what in BREAKDOWN.items()
    ]
    rows.append(("cycles", "their sum", report.cycles, _share(report.cycles, report.cycles)))
    numbers = ("cycles", "of all")
    page.table(("SIMULATED", "what happens", *numbers), rows, numbers=numbers, simulated=numbers)
    if script and timed:
        drawn = sorted(timed, key=lambda each: each[2].cycles, reverse=True)[:MOST_NODES]
        kept = [each for each in timed if each in drawn]
        which = "Layers" if len(kept) == len(timed) else f"The {len(kept)} of {len(timed)} layers that take longest"
        parts = {name: [cost.counters[name] for _, _, cost in kept] for name in BREAKDOWN}
        chart = charts.breakdown([label for label, _, _ in kept], parts, "SIMULATED cycles")
        page.chart(f"{which}, in their order; the parts of a bar sum up to its cycles exactly", chart, script)
    if len(timed) > 1:
        page.table(
            ("layer", *BREAKDOWN, "cycles"),
            [(label, *(cost.counters[name] for name in BREAKDOWN), cost.cycles) for label, _, cost in timed],
            caption="SIMULATED cycles",
            numbers=(*BREAKDOWN, "cycles"),
            simulated=(*BREAKDOWN, "cycles"),
            sortable="breakdown",
        )


MEMORIES = {
    "row_hits": "bursts that found their row open",
    "row_misses": "rows that were opened",
    "row_waits": "cycles of a channel that waited for a row",
    "refresh_waits": "cycles of a channel that waited for a refresh",
    "memory_conflicts": "cycles that a memory on the chip lost to what DRAM wrote into it",
}
"""Counters of the memories, and what each counts."""


def _memories(page: Page, report: SimulationReport | ModelReport, timed: Timed) -> None:
    page.heading("What the memories do")
    rows = [(name, what, report.counters[name]) for name, what in MEMORIES.items()]
    page.table(("SIMULATED", "of all channels together", "count"), rows, numbers=("count",), simulated=("count",))
    if len(timed) > 1:
        page.table(
            ("layer", *MEMORIES),
            [(label, *(cost.counters[name] for name in MEMORIES)) for label, _, cost in timed],
            caption="SIMULATED",
            numbers=tuple(MEMORIES),
            simulated=tuple(MEMORIES),
            sortable="memories",
        )


def _roofline(page: Page, report: SimulationReport | ModelReport, timed: Timed, script: str) -> None:
    """Of layers with products, two operations each."""
    rates = [
        Rate(label, layer.op, 2 * cost.macs / cost.dram_bytes, 2 * cost.macs / cost.cycles,
             cost.cycles / report.cycles)
        for label, layer, cost in timed
        if cost.macs and cost.dram_bytes
    ]  # fmt: skip
    if not script or not rates:
        return
    chip = report.design
    page.heading("Under the roofline")
    caption = "SIMULATED layers with products, of two operations each, under what the array and the port to DRAM allow"
    sizes = "; larger symbols take more of all cycles" if len(rates) > 1 else ""
    peak = 2.0 * chip.elements
    page.chart(caption + sizes, charts.chip_roofline(rates, peak, chip.dram_bytes_per_cycle), script)


def _energy(page: Page, report: SimulationReport | ModelReport, script: str) -> None:
    page.heading("Energy and area")
    total, area = energy.total(report.energy), energy.total(report.area)
    if script and total.middle:
        values = {name: (band.low * 1e-6, band.high * 1e-6) for name, band in report.energy.items()}
        caption = "Energy by component: the middle of its band, and its ends"
        page.chart(caption, charts.bands(values, "SIMULATED uJ"), script)
    rows: list[Sequence[Cell]] = []
    for name, band in (*report.energy.items(), ("all", total)):
        size = area if name == "all" else report.area.get(name)
        share = _share(band.middle, total.middle)
        rows.append(
            (name, band.low * 1e-6, band.high * 1e-6, share, *((size.low, size.high) if size else (None, None)))
        )
    numbers = ("uJ from", "uJ to", "of all energy", "mm2 from", "mm2 to")
    page.table(("SIMULATED", *numbers), rows, numbers=numbers, simulated=numbers)


def _layers(page: Page, report: SimulationReport | ModelReport, layers: Sequence[Layer]) -> None:
    page.heading("Every layer")
    time = ("cycles", "of all", "us", "array in use", "waits")
    rest = (
        "DRAM KiB", "bytes a cycle", "uJ from", "uJ to", "weight reads", "activation reads", "accumulator accesses",
    )  # fmt: skip
    numbers = (*time, *rest)
    rows: list[Sequence[Cell]] = []
    for place, layer in enumerate(layers, 1):
        cost = layer.report
        figures = _figures(cost, report.cycles) if cost else [None] * len(numbers)
        waits = layer.why or (waits_for(cost.counters) if cost else "")
        here = (*figures[: len(time)], waits, *figures[len(time) :])
        rows.append((place, layer.name, layer.op, *here, layer.kernel, cost.problem if cost else ""))
    page.table(
        ("no.", "layer", "operator", *time, "mostly waits for", *rest, "kernel", "problem"),
        rows,
        caption="SIMULATED. Reads are bytes from the memories on the chip; accesses are of 32-bit sums",
        numbers=("no.", *numbers),
        simulated=numbers,
        sortable="layers",
    )


def _figures(cost: SimulationReport, cycles: int) -> list[Cell]:
    counters, total = cost.counters, energy.total(cost.energy)
    return [
        cost.cycles,
        _share(cost.cycles, cycles),
        cost.microseconds,
        _share(cost.utilisation, 1) if cost.macs else "",
        _share(cost.cycles - counters["busy"], cost.cycles),
        cost.dram_bytes / 1024,
        cost.dram_bytes / cost.cycles if cost.cycles else None,
        total.low * 1e-6,
        total.high * 1e-6,
        counters["weight_reads"],
        counters["activation_reads"],
        counters["accumulator_accesses"],
    ]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _design(chip: Hardware) -> list[Sequence[Cell]]:
    """What its file says, and what follows."""

    def said(value: str | float | Formats) -> Cell:
        if isinstance(value, tuple):
            return ", ".join(f"{name} in {cycles} {'cycle' if cycles == 1 else 'cycles'}" for name, cycles in value)
        if isinstance(value, bool):
            return str(value).lower()
        return f"{value:g}" if isinstance(value, float) else value

    peak = 2 * chip.elements
    return [
        *((key, said(value)) for key, value in asdict(chip).items()),
        ("digest", chip.digest),
        ("operations a cycle at most", peak),
        ("Gop/s at most", peak * chip.clock_mhz * 1e-3),
        ("DRAM GB/s at most", chip.dram_bytes_per_cycle * chip.clock_mhz * 1e-3),
    ]
