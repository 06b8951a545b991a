"""Waves of the stepped simulator: they are the fast timing's events, and what the file says."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest

from quatrefoil import asic_sim, ops
from quatrefoil.asic_sim import waves
from quatrefoil.asic_sim.hardware import CHOICES
from quatrefoil.cli.app import run
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import gallery

CONV = "conv_integer uint8[1x8x9x9],int8[20x8x3x3] pads=1x1x1x1"
LSTM = "lstm float32[3x1x8],float32[2x48x8],float32[2x48x12] direction=bidirectional"
"""Of two parts, one after the other."""
POOL = "max_pool float32[1x8x12x12] kernel_shape=2x2 strides=2x2"


def joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that touch or overlap, as one; those of DRAM's channels do."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and found[-1][1] >= begin:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif end > begin:
            found.append((begin, end))
    return found


@pytest.mark.parametrize("dataflow", CHOICES["dataflow"])
@pytest.mark.parametrize("weight_load", CHOICES["weight_load"])
def test_the_stepped_parts_do_what_the_fast_timing_says(dataflow: str, weight_load: str) -> None:
    """Of every part, the same cycles; and as many folds as there are."""
    design = dataclasses.replace(asic_sim.load("edge"), dataflow=dataflow, weight_load=weight_load)
    ahead = dataclasses.replace(design, weights_ahead=True)
    for text, chip in ((CONV, design), (LSTM, design), (LSTM, ahead), (POOL, design)):
        report = asic_sim.simulate(ops.parse(text), chip)
        found = list(waves.states(report))
        assert found[-1] == waves.State(report.cycles, False, None, False)
        spans: dict[str, list[tuple[int, int]]] = {}
        for state, after in pairwise(found):
            parts = {
                "loading": state.loading,
                "array": state.fold is not None,
                "vector": state.vector,
                **{f"dram_{name}": name in state.port for name in waves.PORT},
            }
            for name, works in parts.items():
                if works:
                    spans.setdefault(name, []).append((state.cycle, after.cycle))
        wanted: dict[str, list[tuple[int, int]]] = {}
        for event in report.events():
            wanted.setdefault(event.part, []).append((event.begin, event.end))
        assert {name: joined(each) for name, each in spans.items()} == {
            name: joined(each) for name, each in wanted.items()
        }
        folds = list(dict.fromkeys(state.fold for state in found if state.fold is not None))
        assert folds == list(range(len(wanted.get("array", []))))


def test_the_file_says_the_same(tmp_path: Path) -> None:
    pytest.importorskip("vcd", reason="waves need pyvcd")
    from vcd.reader import TokenKind, tokenize

    problem, path = ops.parse(LSTM), tmp_path / "chip.vcd"
    asic_sim.vcd(problem, "edge", path)
    report = asic_sim.simulate(problem, "edge")
    names, now, busy, since = {}, 0, dict.fromkeys(waves.BITS, 0), dict.fromkeys(waves.BITS, 0)
    value: dict[str, object] = {}
    folds = []
    with path.open("rb") as file:
        for token in tokenize(file):
            if token.kind is TokenKind.VAR:
                names[token.var.id_code] = token.var.reference
            elif token.kind is TokenKind.CHANGE_TIME:
                now = token.time_change
            elif token.kind is TokenKind.CHANGE_SCALAR and names[token.scalar_change.id_code] in busy:
                name = names[token.scalar_change.id_code]
                if value.get(name) == "1":
                    busy[name] += now - since[name]
                value[name], since[name] = token.scalar_change.value, now
            elif token.kind is TokenKind.CHANGE_VECTOR and names[token.vector_change.id_code] == "fold":
                folds.append(token.vector_change.value)
    assert now == report.cycles
    assert busy["streaming"] == report.counters["busy"]
    assert busy["vector"] == report.counters["vector_busy"]
    assert set(value.values()) == {"0"}
    assert [fold for fold in folds if isinstance(fold, int)] == list(range(report.counters["folds"]))
    assert "SIMULATED" in path.read_text()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    pytest.importorskip("vcd", reason="waves need pyvcd")
    with pytest.raises(QuatrefoilError, match="cannot be written"):
        asic_sim.vcd(ops.parse(POOL), "edge", tmp_path)
    large = ops.parse("conv float32[1x64x224x224],float32[64x64x3x3] pads=1x1x1x1")
    with pytest.raises(QuatrefoilError, match="cycles; waves are for at most 2,000,000"):
        asic_sim.vcd(large, "edge", tmp_path / "chip.vcd")


def test_the_command_writes_waves_of_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vcd", reason="waves need pyvcd")
    path = tmp_path / "folder" / "chip.vcd"
    assert run(["simulate", POOL, "--vcd", str(path)]) == 0
    assert "$enddefinitions" in path.read_text()
    assert run(["simulate", str(gallery.path("digits_cnn")), "--vcd", str(path)]) == 2
    assert "--vcd is for a problem" in " ".join(capsys.readouterr().err.split())
