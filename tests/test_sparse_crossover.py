"""The table of where sparse kernels are faster: the crossover, and one layer measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quatrefoil import settings
from quatrefoil.bench import sparse_crossover
from quatrefoil.bench.sparse_crossover import Point, crossover
from quatrefoil.errors import QuatrefoilError


def points(**gains: float) -> list[Point]:
    return [Point(float(name[1:]) / 100, gain, {}, {}) for name, gain in gains.items()]


def test_the_crossover_lies_where_the_gain_is_1() -> None:
    assert crossover(points(p100=0.5, p50=0.5, p25=2.0, p10=4.0)) == pytest.approx(0.5 * 0.5**0.5)
    assert crossover(points(p10=4.0, p100=0.5, p25=1.0)) == pytest.approx(0.25)
    assert crossover(points(p100=0.5, p10=0.9)) is None
    assert crossover(points(p100=1.5, p10=3.0)) is None


def test_a_layer_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {"small 1x1": "conv float32[1x16x8x8],float32[8x16x1x1],float32[8]"}
    monkeypatch.setattr(sparse_crossover, "LAYERS", layers)
    monkeypatch.setattr(settings, "_threads", settings.num_threads())
    file = tmp_path / "table.json"
    assert sparse_crossover.main(["--shares", "0.5,0.1", "--rounds", "2", "--json", str(file)]) == 0
    assert "| small 1x1 | gemm |" in capsys.readouterr().out
    [row] = json.loads(file.read_text())["rows"]
    assert [point["share"] for point in row["points"]] == [0.5, 0.1]
    assert row["points"][0]["kernels"]["sparse"] == "sparse_conv_places_nchw_f32_simd"
    assert min(row["points"][0]["seconds"].values()) > 0
    with pytest.raises(QuatrefoilError, match="no layer's name is found by 'large'"):
        sparse_crossover.main(["--match", "large"])
