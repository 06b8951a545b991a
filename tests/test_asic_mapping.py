"""How layers are cut for the array: the search finds the fastest of what it tries, and does as it is told."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest

import quatrefoil as qf
from quatrefoil import asic_sim, ops
from quatrefoil.asic_sim import _native as native
from quatrefoil.asic_sim import programs
from quatrefoil.asic_sim.hardware import CHOICES
from quatrefoil.asic_sim.mapping import BLOCKS, RESIDENT, STREAMED, STRIPS, Mapping, MappingError, Mappings
from quatrefoil.cli.app import run
from quatrefoil.models import gallery
from quatrefoil.models.simulation import ModelReport

EDGE = asic_sim.load("edge")
CONV = "conv float32[1x64x56x56],float32[64x64x3x3] pads=1x1x1x1"


@pytest.mark.parametrize("dataflow", CHOICES["dataflow"])
def test_the_search_finds_the_fastest_of_what_it_tries(dataflow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves out what cannot be faster: nothing that it leaves out is. The reference takes as long as it says. Rows and
    refreshes of DRAM, without which it searches, are left out."""
    monkeypatch.setattr(programs, "_dram", lambda rng: native.Dram())
    rng = random.Random(f"search {dataflow}")
    differ = 0
    for _ in range(25):
        design, sections = programs.draw_program(rng, dataflow, rng.choice(CHOICES["weight_load"]))
        counters, mapping = native.time_fastest(design, sections)
        tried = native.time_mappings(design, sections)
        assert counters["cycles"] == min(cycles for _, cycles in tried)
        assert native.step_program(design, sections, mapping)[0]["cycles"] == counters["cycles"]
        differ += len({cycles for _, cycles in tried}) > 1
    assert differ > 10


def test_strips_outside_bring_weights_once() -> None:
    """3 blocks of 4 rows, 2 strips of 3 columns, 2 slices of 2: strips outside, 24 weights come once and 48 activations
    for each strip; blocks outside it is the other way round."""
    design = native.Design(
        array_rows=2, array_columns=3, accumulator_entries=8, weight_fifo_tiles=2, activation_sram_bytes=10_000,
        weight_sram_bytes=12, dram_bytes_per_cycle=4, dram_latency_cycles=5, vector_lanes=3,
    )  # fmt: skip
    stage = programs.alone(programs.product(12, 4, 6))
    for strips, weights, activations in ((False, 3 * 24, 48), (True, 24, 2 * 48)):
        cost = native.time_program(design, stage, native.Mapping(True, 100, strips))
        assert (cost["weight_bytes"], cost["activation_bytes"]) == (weights, activations)
        assert cost == native.step_program(design, stage, native.Mapping(True, 100, strips))[0]


@pytest.mark.parametrize("asked", [
    Mapping(RESIDENT, 56, BLOCKS), Mapping(STREAMED, 100, STRIPS), Mapping(places=32), Mapping(outer=STRIPS), Mapping(STREAMED)
], ids=str)  # fmt: skip
def test_what_is_said_is_done_and_the_rest_is_searched(asked: Mapping) -> None:
    report = qf.simulate(CONV, EDGE, mapping=asked)
    [cut] = report.cuts
    for key, value in dataclasses.asdict(asked).items():
        assert value is None or getattr(cut.mapping, key) == value
    [(block, blocks, strips, slices)] = cut.stages
    assert asked.places is None or block[2] * block[3] <= asked.places
    assert (strips, slices) == (4, 36)
    assert all(a * b >= n for a, b, n in zip(block, blocks, (1, 1, 56, 56)))
    # and it is as fast as the fastest of those that the search compares and that are so
    [others] = report.alternatives()
    alike = [
        cycles for said, cycles in others
        if asked.places is None and all(getattr(said, key) == getattr(asked, key) for key in ("activations", "outer")
                                        if getattr(asked, key) is not None)
    ]  # fmt: skip
    assert asked.places is not None or report.cycles == min(alike)
    assert report.cycles >= qf.simulate(CONV, EDGE).cycles == others[0][1]
    assert sum(event.bytes for event in report.events()) == report.dram_bytes


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    for asked, design, said in (
        (Mapping(places=600), EDGE, "places is 600; a block has at most 112 where resident and 504 where streamed"),
        (
            Mapping(RESIDENT),
            dataclasses.replace(EDGE, activation_sram_kib=4),
            "does not fit into half .* write streamed",
        ),
        (Mapping(outer=BLOCKS), dataclasses.replace(EDGE, dataflow="input"), "strips are the outer loop"),
    ):
        with pytest.raises(MappingError, match=said):
            qf.simulate(CONV, design, mapping=asked)
    for bad, said in (
        ({"activations": "kept"}, "activations is 'kept'; write resident or streamed"),
        ({"outer": "slices"}, "outer is 'slices'; write blocks or strips"),
        ({"places": 0}, "places is 0; give a whole number"),
        ({"places": True}, "places is True; give a whole number"),
    ):
        with pytest.raises(MappingError, match=said):
            Mapping(**bad)  # type: ignore[arg-type]


def names(report: ModelReport) -> list[str]:
    return [layer.name for layer in report.layers if layer.report is not None and layer.report.cuts]


def test_layers_of_a_model_by_name() -> None:
    path = gallery.path("digits_cnn")
    free = qf.simulate(path, EDGE)
    assert isinstance(free, ModelReport)
    first, *others = names(free)
    told = qf.simulate(path, EDGE, mapping={first: Mapping(places=3)})
    assert isinstance(told, ModelReport)
    for layer, before in zip(told.layers, free.layers):
        assert (layer.report == before.report) == (layer.name != first)
    everywhere = qf.simulate(path, EDGE, mapping=Mappings(Mapping(places=3), {first: Mapping()}))
    assert isinstance(everywhere, ModelReport)
    changed = [
        layer.name for layer, before in zip(everywhere.layers, free.layers)
        if layer.report is not None and before.report is not None and layer.report.counters != before.report.counters
    ]  # fmt: skip
    assert set(changed) <= set(others)
    assert changed
    pooling = next(layer.name for layer in free.layers if layer.op == "MaxPool")
    for asked, said in (
        ({"conv99": Mapping(places=3)}, f"there is no layer 'conv99'; there are {first}"),
        ({pooling: Mapping(places=3)}, rf"{pooling} \(MaxPool\) has nothing to do on the array"),
        ({first: Mapping(places=10_000)}, rf"mapping of {first} \(Conv.*\): places is 10000; a block has at most"),
    ):
        with pytest.raises(MappingError, match=said):
            qf.simulate(path, dataclasses.replace(EDGE, accumulator_entries=32), mapping=asked)
    with pytest.raises(MappingError, match="a problem has no layers by name"):
        qf.simulate(CONV, EDGE, mapping={first: Mapping()})


def test_the_file_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gallery.path("digits_cnn")
    free = qf.simulate(path, EDGE)
    assert isinstance(free, ModelReport)
    file = tmp_path / "mapping.toml"
    file.write_text(f'activations = "streamed"\n[layers."{names(free)[0]}"]\nplaces = 3\nouter = "strips"\n')
    arguments = ["simulate", str(path), "--mapping", str(file), "--alternatives"]
    assert run([*arguments, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    [first] = rows[names(free)[0]]["mappings"]
    assert (first["places"], first["outer"]) == (3, "strips")
    [second] = rows[names(free)[1]]["mappings"]
    assert second["activations"] == "streamed"
    for row in rows.values():
        for others in row.get("alternatives", []):
            assert min(each["cycles"] for each in others) == others[0]["cycles"] <= row["cycles"]
    assert run(arguments) == 0
    assert "strips outside, blocks of at most" in " ".join(capsys.readouterr().out.split())
    for text, said in (
        ("rows = 3", "unknown key 'rows'; known are activations, places, outer, and [layers.NAME]"),
        ("places =", "is no TOML file"),
        ("layers = 3", "layers holds no tables"),
        ('outer = "x"', "outer is 'x'; write blocks or strips"),
    ):
        file.write_text(text)
        assert run(arguments) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert run(["simulate", str(path), "--mapping", str(tmp_path / "none.toml")]) == 2
    assert "cannot be read" in " ".join(capsys.readouterr().err.split())


def test_waves_and_traces_are_of_the_cut_that_was_taken() -> None:
    report = asic_sim.simulate(ops.parse(CONV), EDGE, mapping=Mapping(STREAMED, 56, BLOCKS))
    assert report.cycles > asic_sim.simulate(ops.parse(CONV), EDGE).cycles
    assert max(event.end for event in report.events()) <= report.cycles
    assert sum(event.end - event.begin for event in report.events() if event.part == "array") == report.counters["busy"]
