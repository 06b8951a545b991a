"""Reads what a vendor's tool reported of a design, and sets it beside the estimate.

``read_report`` takes an hls4ml project that was built (hls4ml's own reader, needs the extra ``hls``), or one report of C synthesis:
``<name>_csynth.xml`` or ``<name>_csynth.rpt`` of Vivado HLS or Vitis HLS (AMD UG902, UG1399).
"""

from __future__ import annotations

import contextlib
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quatrefoil.errors import OperatorError
from quatrefoil.fpga.estimate import Band, Estimate, EstimateReport, aligned

COLUMNS = ("BRAM_18K", "DSP", "FF", "LUT")
"""What the tools call ``Estimate``'s bram, dsp, ff and lut; older ones write DSP48E."""


def read_report(path: str | Path) -> Estimate:
    """The reported figures of the design's top function. Latency spans best to worst case; multipliers are those in DSP
    blocks. Raises OperatorError for what is no such report."""
    path = Path(path)
    if path.is_dir():
        return _of_project(path)
    if not path.is_file():
        raise OperatorError(
            "read_report", "the path", str(path), "give a project's folder or a file *_csynth.xml or .rpt"
        )
    return _of_xml(path) if path.suffix == ".xml" else _of_text(path)


def _estimate(name: str, latency: tuple[int, int], interval: int, used: Mapping[str, int]) -> Estimate:
    bram, dsp, ff, lut = (Band.exact(used[column]) for column in COLUMNS)
    return Estimate(name, dsp.value, dsp, lut, ff, bram, Band(latency[0], latency[1], latency[1]), interval)


def _of_project(folder: Path) -> Estimate:
    try:
        from hls4ml.report import parse_vivado_report
    except ImportError as missing:
        message = "reading a project takes hls4ml: pip install 'quatrefoil[hls]', or give its *_csynth.xml"
        raise OperatorError("read_report", "hls4ml", "not installed", message) from missing
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it does not find
        found = parse_vivado_report(str(folder))
    if not found or "CSynthesisReport" not in found:
        reason = " ".join(said.getvalue().split()) or "no report of C synthesis"
        raise OperatorError("read_report", "the project", str(folder), f"hls4ml's reader says: {reason}")
    report = found["CSynthesisReport"]
    used = {column: int(report[column]) for column in COLUMNS}
    return _estimate(
        folder.name, (int(report["BestLatency"]), int(report["WorstLatency"])), int(report["IntervalMin"]), used
    )


def _of_xml(path: Path) -> Estimate:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as broken:
        raise OperatorError("read_report", "the file", str(path), f"it is no XML ({broken})") from broken

    def text(where: str) -> str:
        found = root.findtext(where)
        if found is None:
            raise OperatorError("read_report", "the file", str(path), f"it has no {where}; give a *_csynth.xml")
        return found.strip()

    def cycles(where: str) -> int:
        found = text(where)
        if not found.isdigit():
            raise OperatorError(
                "read_report",
                where.rsplit("/", 1)[1],
                found,
                "a design whose loops have no fixed bounds has no latency",
            )
        return int(found)

    performance = "PerformanceEstimates/SummaryOfOverallLatency"
    resources = root.find("AreaEstimates/Resources")
    counted = {} if resources is None else {child.tag: child.text for child in resources}
    counted["DSP"] = counted.get("DSP", counted.get("DSP48E"))
    missing = [column for column in COLUMNS if counted.get(column) is None]
    if missing:
        raise OperatorError("read_report", "the file", str(path), f"AreaEstimates/Resources lacks {', '.join(missing)}")
    name = root.findtext("UserAssignments/TopModelName") or path.stem.removesuffix("_csynth")
    return _estimate(
        name,
        (cycles(f"{performance}/Best-caseLatency"), cycles(f"{performance}/Worst-caseLatency")),
        cycles(f"{performance}/Interval-min"),
        {column: int(str(counted[column])) for column in COLUMNS},
    )


def _of_text(path: Path) -> Estimate:
    """The tables "Latency: Summary" and "Utilization Estimates: Summary"."""
    text = path.read_text(errors="replace")
    name = re.search(r"HLS Report for '(\w+)'", text)
    # latency min, max in cycles, twice in time, interval min, max
    timing = re.search(r"Latency \(cycles\).*?\n\s*\|\s*(\d+)\|\s*(\d+)\|[^|\n]*\|[^|\n]*\|\s*(\d+)\|", text, re.S)
    header = re.search(r"^\|\s*Name\s*\|(.*)\|\s*$", text, re.M)
    total = re.search(r"^\|Total\s*\|(.*)\|\s*$", text, re.M)
    if not (name and timing and header and total):
        raise OperatorError("read_report", "the file", str(path), "it is no *_csynth.rpt of Vivado HLS or Vitis HLS")
    columns = [cell.strip().replace("DSP48E", "DSP") for cell in header.group(1).split("|")]
    used = dict(zip(columns, (cell.strip() for cell in total.group(1).split("|"))))
    missing = [column for column in COLUMNS if not used.get(column, "").isdigit()]
    if missing:
        raise OperatorError("read_report", "the file", str(path), f"its total lacks {', '.join(missing)}")
    best, worst, interval = (int(figure) for figure in timing.groups())
    return _estimate(name.group(1), (best, worst), interval, {column: int(used[column]) for column in COLUMNS})


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a design: the estimate, what the tool reported, their ratio (None beside a reported 0), and whether the
    report lies in the estimate's range."""

    name: str
    estimate: Band
    reported: int
    ratio: float | None
    expected: bool


def compared(report: EstimateReport, reported: Estimate) -> list[Figure]:
    """The estimate of a whole design beside a tool's report, figure by figure."""
    total = report.total
    figures = []
    for name, ours, theirs in (
        ("DSP", total.dsp, reported.dsp.value), ("LUT", total.lut, reported.lut.value), ("FF", total.ff, reported.ff.value),
        ("BRAM", total.bram, reported.bram.value), ("latency, cycles", total.latency, reported.latency.value),
        ("interval, cycles", Band.exact(total.interval), reported.interval),
    ):  # fmt: skip
        ratio = ours.value / theirs if theirs else None if ours.value else 1.0
        figures.append(Figure(name, ours, theirs, ratio, theirs in ours))
    return figures


def beside(report: EstimateReport, reported: Estimate) -> str:
    """A table: estimate, its range, what the tool reported, and whether that lies in the range."""
    rows = [("figure", "estimate", "reported", "ratio", "")]
    for figure in compared(report, reported):
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
        told = "" if figure.expected else "outside the range"
        rows.append((figure.name, str(figure.estimate), f"{figure.reported:,}", ratio, told))
    return "\n".join([f"{reported.name}: estimate and report", *aligned(rows)])
