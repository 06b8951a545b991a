"""The page of a simulated chip: its figures are the report's, and its bars sum up to the cycles."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

import quatrefoil as qf
from quatrefoil import asic_sim
from quatrefoil.asic_sim import SimulationReport, energy
from quatrefoil.bench import charts, chip_report
from quatrefoil.bench.page import figure
from quatrefoil.cli.app import run
from quatrefoil.models import gallery
from quatrefoil.models.simulation import ModelReport

CONV = "conv_integer uint8[1x64x28x28],int8[64x64x3x3] pads=1x1x1x1"


def written(path: Path, report: Any) -> str:
    chip_report.write_html(path, "a title", report)
    return path.read_text("utf-8")


def traces(page: str) -> list[list[dict[str, Any]]]:
    """The traces of every chart, in order."""
    starts = [match.end() for match in re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', page)]
    return [json.JSONDecoder().raw_decode(page, start)[0] for start in starts]


def tables(page: str) -> dict[str, list[list[str]]]:
    """Rows of every table by its heads' first."""
    found = {}
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
        cells = [[unescape(re.sub("<[^>]+>", "", cell)) for cell in row] for row in rows]
        found[" ".join(cells[0][:2])] = cells
    return found


def model_report(name: str = "digits_cnn") -> ModelReport:
    report = qf.simulate(gallery.path(name), "edge")
    assert isinstance(report, ModelReport)
    return report


def test_bars_sum_up_to_the_cycles_and_stay_under_the_roofs(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="charts need plotly")
    report = model_report()
    breakdown, roofline, bands = traces(written(tmp_path / "chip.html", report))
    costs = [layer.report for layer in report.layers if layer.report is not None and layer.report.cycles]
    assert [part["name"] for part in breakdown] == list(chip_report.BREAKDOWN)
    assert [sum(values) for values in zip(*(part["x"] for part in breakdown))] == [cost.cycles for cost in costs]
    chip = report.design
    points = [point for group in roofline[1:] for point in zip(group["x"], group["y"])]
    assert len(points) == sum(cost.macs > 0 for cost in costs) > 2
    for intensity, rate in points:
        peak = 2 * chip.array_rows * chip.array_columns
        assert 0 < rate <= min(peak, intensity * chip.dram_bytes_per_cycle)
    assert max(roofline[0]["y"]) == 2 * chip.array_rows * chip.array_columns
    [bars] = bands
    assert sum(bars["x"]) == pytest.approx(report.energy_pj * 1e-6)
    ends = zip(bars["x"], bars["error_x"]["array"], bars["error_x"]["arrayminus"])
    assert [(x - down, x + up) for x, up, down in ends] == [
        pytest.approx((band.low * 1e-6, band.high * 1e-6)) for band in report.energy.values()
    ]


def cells_of(cost: SimulationReport) -> dict[str, str]:
    """Of the table of layers, as they have to be."""
    counters, total = cost.counters, energy.total(cost.energy)
    return {
        "cycles": f"{cost.cycles:,}",
        "us": figure(cost.cycles / cost.design.clock_mhz),
        "array in use": f"{cost.utilisation:.1%}" if cost.macs else "",
        "waits": f"{1 - counters['busy'] / cost.cycles:.1%}",
        "mostly waits for": chip_report.waits_for(counters),
        "DRAM KiB": figure(cost.dram_bytes / 1024),
        "bytes a cycle": figure(cost.dram_bytes / cost.cycles),
        "uJ from": figure(total.low * 1e-6),
        "uJ to": figure(total.high * 1e-6),
        "weight reads": f"{counters['weight_reads']:,}",
        "activation reads": f"{counters['activation_reads']:,}",
        "accumulator accesses": f"{counters['accumulator_accesses']:,}",
        "problem": cost.problem,
    }


def test_a_problem_has_a_row(tmp_path: Path) -> None:
    report = qf.simulate(CONV, "edge")
    assert isinstance(report, SimulationReport)
    assert report.counters["weight_reads"] != report.counters["weight_bytes"]  # else the test could not tell them apart
    [heads, row] = tables(written(tmp_path / "chip.html", report))["no. layer"]
    cells = dict(zip(heads, row, strict=True))
    assert cells_of(report).items() <= cells.items()
    assert (cells["operator"], cells["of all"]) == ("conv_integer", "100.0%")


@pytest.mark.parametrize("drawn", [True, False], ids=["plotly", "without"])
def test_every_figure_is_in_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: bool) -> None:
    if drawn:
        pytest.importorskip("plotly", reason="charts need plotly")
    monkeypatch.setattr(charts, "available", lambda: drawn)
    report = model_report()
    page = written(tmp_path / "chip.html", report)
    assert ("pip install" in page) is not drawn
    found = tables(page)
    counted = {row[0]: row[2] for row in found["SIMULATED what happens"][1:]}
    assert counted == {name: f"{report.counters[name]:,}" for name in (*chip_report.BREAKDOWN, "cycles")}
    heads, *rows = found["no. layer"]
    assert [row[1] for row in rows] == [layer.name for layer in report.layers]
    for row, layer in zip(rows, report.layers, strict=True):
        cells = dict(zip(heads, row, strict=True))
        if layer.report is None:
            assert (cells["cycles"], cells["kernel"]) == ("", "nothing moves")
        else:
            assert cells_of(layer.report).items() <= cells.items()
    assert any(layer.report is None for layer in report.layers)
    assert ["digest", asic_sim.load("edge").digest] in found["figure value"]
    area = energy.total(report.area)
    assert found["SIMULATED uJ from"][-1][-2:] == [f"{area.low:.2f}", f"{area.high:.2f}"]


def test_the_answer_comes_first(tmp_path: Path) -> None:
    report = qf.simulate(CONV, "edge")
    page = written(tmp_path / "chip.html", report)
    assert "<h1>SIMULATED: a title</h1>" in page
    first, used, uj, area = re.findall(r'<p class="answer"><b>(.*?)</b> (.*?)</p>', page)
    assert first == (
        f"{report.cycles:,} cycles",
        f"SIMULATED, which take {report.microseconds:.0f} us at 400 MHz on edge",
    )
    assert used[0] == f"{report.utilisation:.1%}"
    assert f"for want of {chip_report.waits_for(report.counters)}" in used[1]
    total = energy.total(report.energy)
    low, high = (float(word) for word in re.findall(r"[\d.]+", uj[0]))
    assert (low, high) == pytest.approx((total.low * 1e-6, total.high * 1e-6), rel=0.02)
    assert "of it for DRAM" in uj[1]
    assert area[0].endswith("mm2")


def test_what_is_left_to_the_host_is_said_and_costs_nothing(tmp_path: Path) -> None:
    node = helper.make_node("Det", ["a"], ["y"])
    values = [helper.make_tensor_value_info("a", TensorProto.FLOAT, [4, 5, 5])]
    graph = helper.make_graph([node], "one", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    page = written(tmp_path / "chip.html", qf.simulate(model, "edge", unsupported="host"))
    assert "<b>0 cycles</b>" in page
    assert "<b>1 of 1 layers</b> are left to the host and cost nothing here: Det" in page


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "chip.html"
    assert run(["simulate", CONV, "--html", str(path)]) == 0
    assert "report written to" in capsys.readouterr().err
    assert f"SIMULATED: {CONV}" in path.read_text("utf-8")


def test_floats_that_are_timed_as_if_quantised_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "chip.html"
    arguments = ["simulate", str(gallery.path("digits_cnn")), "--design", "tpu_like", "--format", "int8"]
    assert run([*arguments, "--html", str(page)]) == 0
    said = "Floats are timed as if they had been quantised to int8"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in page.read_text("utf-8")
    assert "int16xint8 in 2 cycles" in page.read_text("utf-8")
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["as_format"], document["formats"]) == ("int8", ["int8"])
    assert document["hardware"]["formats"]["int16"] == 4
    assert run([*arguments, "--check"]) == 2
    assert "it does not compute it: leave --check out" in " ".join(capsys.readouterr().err.split())
