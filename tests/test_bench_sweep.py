"""A sweep over designs: every design once, whatever happens to workers or to the run, and the right ones at the front."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import quatrefoil as qf
from quatrefoil import asic_sim, ops
from quatrefoil.bench import sweep
from quatrefoil.bench.sweep import Axis, Outcome, Sweep
from quatrefoil.cli.app import run
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import load
from quatrefoil.models.gallery import path
from quatrefoil.models.simulation import Workload

EDGE = asic_sim.load("edge")
CONV = "conv float32[1x8x20x20],float32[16x8x3x3] pads=1x1x1x1 strides=1x1 dilations=1x1 group=1"
POOL = "average_pool float32[1x16x20x20] kernel_shape=2x2 strides=2x2"
TEXTS = (CONV, CONV, POOL)
NETWORK = Workload(tuple(operation for text in TEXTS for operation in sweep.network_of(ops.parse(text)).operations))
SQUARE = Axis(("array_rows", "array_columns"), (4, 8, 16))
BANDWIDTH = Axis(("dram_bytes_per_cycle",), (1, 2, 4, 8))
ASKED = Sweep(NETWORK, EDGE, (SQUARE, BANDWIDTH, Axis(("activation_sram_kib",), (0, 16, 64))))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("array_rows=8,16, 32,8", (8, 16, 32)),
        ("dram_bytes_per_cycle=4:64:*2", (4, 8, 16, 32, 64)),
        ("dram_bytes_per_cycle=3:20:*2,50", (3, 6, 12, 50)),
        ("array_rows=4:12:4", (4, 8, 12)),
        ("array_rows=4:6", (4, 5, 6)),
        ("dram_latency_cycles=0:100:50", (0, 50, 100)),
        ("clock_mhz=100:200:50", (100.0, 150.0, 200.0)),
    ],
)
def test_values_of_an_axis(text: str, values: tuple[float, ...]) -> None:
    read = sweep.axis(text, EDGE)
    assert read.values == values
    assert {type(value) for value in read.values} == {type(values[0])}
    assert sweep.axis("array_rows+array_columns=8", EDGE).fields == ("array_rows", "array_columns")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows=8", "has no field 'rows'; it has clock_mhz, dataflow"),
        ("array_rows", "has no values"),
        ("array_rows=", "has no values"),
        ("array_rows=8,x", "'x' is no whole number"),
        ("array_rows=8.5", "'8.5' is no whole number"),
        ("clock_mhz=fast", "'fast' is no number"),
        ("array_rows=8:4", "8:4 is no range"),
        ("array_rows=0:8:*2", "0:8:[*]2 is no range"),
        ("array_rows=1:8:*1", "1:8:[*]1 is no range"),
        ("array_rows=1:8:0", "1:8:0 is no range"),
        ("array_rows+clock_mhz=8", "of different types"),
    ],
)
def test_axes_that_are_none(text: str, said: str) -> None:
    with pytest.raises(QuatrefoilError, match=said):
        sweep.axis(text, EDGE)


def test_sweeps_that_are_none() -> None:
    for options, said in (
        ({"axes": ()}, "nothing is varied"),
        ({"axes": (SQUARE, SQUARE)}, "array_rows is varied twice"),
        ({"objectives": ("cycles", "beauty")}, "no objective 'beauty'; there are cycles"),
        ({"objectives": ()}, "no objective 'nothing'"),
        ({"method": sweep.RANDOM}, "a random sweep of 0 designs"),
        ({"axes": (Axis(("array_rows",), tuple(range(2_000_000))),)}, "2,000,000 designs; give fewer"),
    ):
        with pytest.raises(QuatrefoilError, match=said):
            replace(ASKED, **options)  # type: ignore[arg-type]


def test_every_design_of_the_grid_once_with_the_simulators_figures() -> None:
    found = sweep.run(ASKED)
    assert [outcome.values["dram_bytes_per_cycle"] for outcome in found[:4]] == [1, 1, 1, 2]
    assert len({outcome.key for outcome in found}) == ASKED.count == 36
    for outcome in found:
        if outcome.values["activation_sram_kib"] == 0:
            assert outcome.figures is None
            assert "activation_sram_kib is 0; it has to lie in 1 to" in outcome.refused
            continue
        assert outcome.figures is not None
        design = replace(EDGE, **outcome.values)  # type: ignore[arg-type]
        reports = [asic_sim.simulate(ops.parse(text), design) for text in TEXTS]
        assert outcome.figures["cycles"] == sum(report.cycles for report in reports)
        assert outcome.figures["dram_bytes"] == sum(report.dram_bytes for report in reports)
        assert outcome.figures["elements"] == design.array_rows * design.array_columns


def test_a_random_part_of_the_grid_is_repeatable_and_has_no_design_twice() -> None:
    asked = replace(ASKED, method=sweep.RANDOM, number=20, seed=3)
    found = [outcome.key for outcome in sweep.run(asked)]
    assert len(set(found)) == 20
    assert found == [outcome.key for outcome in sweep.run(asked)]
    assert found != [outcome.key for outcome in sweep.run(replace(asked, seed=4))]
    assert len(sweep.run(replace(asked, number=1000))) == 36


def test_the_front_is_what_no_other_design_beats() -> None:
    rng = random.Random(1)
    for size in (1, 2, 3):
        names = ("cycles", "dram_bytes", "elements")[:size]
        found = [
            Outcome({"array_rows": place}, {name: float(rng.randint(0, 6)) for name in names}) for place in range(60)
        ]
        found.append(Outcome({"array_rows": 99}, None, "refused"))
        points = {tuple(outcome.figures[name] for name in names) for outcome in found if outcome.figures is not None}
        unbeaten = [
            point for point in points if not any(other != point and all(map(float.__le__, other, point)) for other in points)
        ]  # fmt: skip
        best = sweep.front(found, names)
        assert [tuple(outcome.figures[name] for name in names) for outcome in best if outcome.figures] == sorted(
            unbeaten
        )
    assert sweep.front(found[-1:], names) == []


def test_a_sweep_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = tmp_path / "designs.jsonl"

    def end(count: int) -> None:
        if count >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(ASKED, keep=keep, done=end)
    kept = len(keep.read_text().splitlines()) - 1
    assert 10 <= kept < 36
    with keep.open("a") as file:
        file.write('{"values": {"array_r')  # what a process leaves that is ended while it writes
    original, evaluated = sweep.outcomes, []

    def watched(network: Any, base: Any, designs: Any, as_format: Any) -> Any:
        evaluated.extend(designs)
        return original(network, base, designs, as_format)

    monkeypatch.setattr(sweep, "outcomes", watched)
    found = sweep.run(ASKED, keep=keep)
    assert len(evaluated) == 36 - kept
    assert len({outcome.key for outcome in found}) == 36
    assert len(keep.read_text().splitlines()) == 37
    assert sweep.run(ASKED, keep=keep) == found
    assert len(evaluated) == 36 - kept
    text = keep.read_text()
    for other, said in (
        (replace(ASKED, base=asic_sim.load("tpu_like")), "differs in design"),
        (replace(ASKED, axes=(SQUARE,)), "differs in axes"),
        (replace(ASKED, method=sweep.RANDOM, number=3), "differs in method, number, seed"),
    ):
        with pytest.raises(QuatrefoilError, match=said):
            sweep.run(other, keep=keep)
    (tmp_path / "other.jsonl").write_text('{"name": "a bench"}\n')
    with pytest.raises(QuatrefoilError, match="holds no sweep"):
        sweep.run(ASKED, keep=tmp_path / "other.jsonl")
    assert keep.read_text() == text


def test_killing_a_worker_in_mid_sweep_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="spreading needs distributed")
    clusters: list[Any] = []

    class Cluster(distributed.LocalCluster):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "n_workers": 2})
            clusters.append(self)

    monkeypatch.setattr(distributed, "LocalCluster", Cluster)
    killed = threading.Event()

    def kill_one(count: int) -> None:
        if not killed.is_set():
            killed.set()
            os.kill(next(iter(clusters[0].workers.values())).pid, signal.SIGKILL)

    keep = tmp_path / "designs.jsonl"
    asked = replace(ASKED, axes=(SQUARE, BANDWIDTH, Axis(("vector_lanes",), tuple(range(1, 21)))))
    found = sweep.run(asked, scheduler="local", keep=keep, done=kill_one)
    assert killed.is_set()
    assert len(found) == asked.count == 240
    kept = Counter(json.dumps(json.loads(line)["values"]) for line in keep.read_text().splitlines()[1:])
    assert len(kept) == 240
    assert set(kept.values()) == {1}, "each design is kept exactly once"
    assert sorted(found, key=lambda outcome: outcome.key) == sorted(sweep.run(asked), key=lambda outcome: outcome.key)


def test_optunas_search_finds_the_front_of_a_small_grid_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the search needs optuna")
    keep = tmp_path / "designs.jsonl"
    asked = replace(ASKED, method=sweep.OPTUNA, number=30, seed=1)

    def end(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(asked, keep=keep, done=end)
    begun = len(keep.read_text().splitlines()) - 1
    assert 0 < begun < 30
    found = sweep.run(asked, keep=keep)
    assert len({outcome.key for outcome in found}) == len(found) == 30
    assert any(outcome.figures is None for outcome in found), "refused designs do not end a search"
    whole = {outcome.key: outcome for outcome in sweep.run(ASKED)}
    assert all(whole[outcome.key] == outcome for outcome in found)
    single = sweep.run(replace(asked, objectives=("cycles",), number=12))
    assert len(single) == 12


def test_optuna_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep.util, "find_spec", lambda name: None)
    with pytest.raises(QuatrefoilError, match=r"needs Optuna; to add it: pip install 'quatrefoil\[sweep\]'"):
        sweep.run(replace(ASKED, method=sweep.OPTUNA, number=3))


def test_a_models_network_is_what_the_simulator_runs_of_it() -> None:
    """The whole model, as ``simulate`` counts it."""
    network = sweep.network_of(load(path("digits_cnn")))
    assert {"Conv+Relu", "MaxPool", "Gemm"} <= {each.op for each in network.operations}
    whole = qf.simulate(path("digits_cnn"), EDGE)
    assert sweep.evaluate(network, EDGE) == {name: each.of(whole) for name, each in sweep.OBJECTIVES.items()}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep, page = tmp_path / "designs.jsonl", tmp_path / "designs.html"
    over = ["--over", "array_rows=4,8", "--over", "dram_bytes_per_cycle=2:8:*2", "--scheduler", "none"]
    arguments = ["sweep", str(path("digits_cnn")), *over, "--keep", str(keep)]
    assert run([*arguments, "--html", str(page), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["designs"] == 6
    assert data["kept"] == str(keep)
    best = [(one["cycles"], one["dram_bytes"], one["elements"]) for one in data["front"]]
    assert all(not all(map(int.__le__, a, b)) for a, b in itertools.permutations([tuple(map(int, p)) for p in best], 2))
    text = page.read_text()
    assert "beaten by none" in text
    assert "dram_bytes_per_cycle" in text
    assert run([*arguments, "--objectives", "cycles"]) == 0
    assert "1 of 6 designs" in capsys.readouterr().out
    for more, code, said in (
        (["--objectives", "beauty"], 2, "no objective 'beauty'"),
        (["--random", "3", "--optuna", "3"], 2, "give --random or --optuna, not both"),
        (["--over", "array_rows=2"], 2, "array_rows is varied twice"),
        (["--over", "beauty=2"], 2, "has no field 'beauty'"),
        (["--random", "3"], 2, "holds another sweep"),
    ):
        assert run([*arguments, *more]) == code
        assert said in " ".join(capsys.readouterr().err.split())
    none = [
        "sweep",
        CONV,
        "--over",
        "activation_sram_kib=0",
        "--scheduler",
        "none",
        "--keep",
        str(tmp_path / "n.jsonl"),
    ]
    assert run(none) == 1
    assert "1 refused: design edge: activation_sram_kib is 0" in capsys.readouterr().err
