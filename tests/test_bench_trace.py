"""Traces of a model's run: the Trace Event Format, nothing overlaps, simulated microseconds have a process of their own."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil.bench import nodes, trace
from quatrefoil.bench.roofline import Ceilings, Level
from quatrefoil.cli.app import run
from quatrefoil.models.gallery import path

CNN = path("digits_cnn")
IMAGE = {"image": np.ones((1, 1, 8, 8), np.float32)}
CEILINGS = Ceilings("v3", 100.0, (Level("L1", 48.0, 100.0), Level("memory", None, 10.0)))

# Of the Trace Event Format: what an event of each phase must have, with its type.
KEYS = {
    "X": {"name": str, "cat": str, "ph": str, "ts": (int, float), "dur": (int, float), "pid": int, "tid": int},
    "M": {"name": str, "ph": str, "pid": int, "args": dict},
}
METADATA = ("process_name", "process_labels", "process_sort_index", "thread_name", "thread_sort_index")


def checked(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The complete events by the name of their process, after everything that the format asks for holds."""
    assert document["displayTimeUnit"] in ("ms", "ns")
    titles: dict[int, str] = {}
    rows: set[tuple[int, int]] = set()
    lanes: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in document["traceEvents"]:
        for key, kind in KEYS[event["ph"]].items():
            assert isinstance(event[key], kind), f"{key} of {event}"
        if event["ph"] == "M":
            assert event["name"] in METADATA
            assert len(event["args"]) == 1
            if event["name"] == "process_name":
                titles[event["pid"]] = event["args"]["name"]
            if event["name"] == "thread_name":
                rows.add((event["pid"], event["tid"]))
        else:
            assert event["dur"] >= 0 and event["ts"] >= 0
            lanes[event["pid"], event["tid"]].append(event)
    complete = [event["ts"] for event in document["traceEvents"] if event["ph"] == "X"]
    assert complete == sorted(complete)
    assert rows == set(lanes), "every row of bars is named"
    for lane in lanes.values():
        for before, after in itertools.pairwise(lane):
            assert round((before["ts"] + before["dur"]) * 1000) <= round(after["ts"] * 1000), (
                f"{before} overlaps {after}"
            )
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (process, _), lane in lanes.items():
        found[titles[process]] += lane
    return found


def test_a_measured_run() -> None:
    model = qf.load(CNN)
    profile = nodes.limited(model.profile(IMAGE, backend="cpu"), 1, CEILINGS)
    [(title, events)] = checked(trace.document({"cpu": profile}, "digits")).items()
    assert title == "digits on cpu: measured"
    told = {event["name"].split()[0]: event for event in events}
    assert set(told) == {node.name for node in profile if node.span is not None}
    conv = told["conv1"]["args"]
    assert conv["kernel"] == profile[0].kernel and conv["layout"] in conv["kernel"] and conv["backend"] == "cpu"
    assert conv["why"] == profile[0].why and conv["problem"].startswith("conv float32[1x1x8x8]")
    assert conv["limit us"] == pytest.approx((profile[0].limit_seconds or 0) * 1e6, abs=1e-3)
    assert told["conv1"]["dur"] >= conv["least measured us"] - 1e-3
    assert all(event["cat"].endswith("measured") for event in events)


def test_simulated_nodes_have_a_process_that_says_so() -> None:
    profile = qf.load(CNN).profile(IMAGE, backend="asic")
    found = checked(trace.document({"asic": profile}))
    [simulated] = [title for title in found if "SIMULATED" in title]
    [measured] = [title for title in found if "SIMULATED" not in title]
    assert "edge (16x16 weight stationary at 400 MHz" in simulated
    assert [event["args"]["kernel"] for event in found[simulated]] == [
        n.kernel for n in profile if n.cycles is not None
    ]
    assert sum(event["dur"] for event in found[simulated]) == pytest.approx(
        sum(node.microseconds or 0.0 for node in profile), abs=0.01
    )
    assert {event["args"]["backend"] for event in found[measured]} == {"host"}


def test_the_checks_of_this_file_see_an_overlap() -> None:
    profile = qf.load(CNN).profile(IMAGE, backend="cpu")
    first, second, *_rest = [node for node in profile if node.span is not None]
    assert first.span is not None
    wrong = [replace(first, backend="cpu", span=(0.0, 1e-3)), replace(second, backend="cpu", span=(5e-4, 2e-3))]
    with pytest.raises(AssertionError, match="overlaps"):
        checked(trace.document({"cpu": wrong}))


def test_limits_are_the_rooflines() -> None:
    [conv, *_] = nodes.limited(qf.load(CNN).profile(IMAGE, backend="cpu"), 1, CEILINGS)
    assert conv.limit_seconds == pytest.approx(max(2 * 64 * 16 * 9 / 100e9, 4 * (64 + 16 * 9 + 16 + 16 * 64) / 100e9))
    assert conv.share_of_limit == pytest.approx(conv.limit_seconds / (conv.seconds or 1))
    host = nodes.limited(qf.load(CNN).profile(IMAGE, backend="asic"), 1, CEILINGS)
    assert {node.limit_seconds for node in host} == {None}


def test_the_commands_write_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "run.json", tmp_path / "bench.json"
    assert run(["run", str(CNN), "--trace", str(first)]) == 0
    assert list(checked(json.loads(first.read_text()))) == ["digits_cnn.onnx on cpu: measured"]
    capsys.readouterr()
    assert run(["bench", str(CNN), "-b", "cpu,asic", "--rounds", "3", "--trace", str(second), "--json", "-"]) == 0
    told = capsys.readouterr()
    assert len(checked(json.loads(second.read_text()))) == 3
    assert "ui.perfetto.dev" in told.err
    data = json.loads(told.out)["nodes"]
    assert list(data) == ["cpu", "asic"]
    assert data["cpu"][0]["limit_seconds"] > 0 and data["cpu"][0]["share"] > 0
    assert run(["run", str(CNN), "--trace", "x.txt"]) == 2
    assert run(["bench", "quick", "--trace", "x.json"]) == 2
    assert "--trace is for models" in capsys.readouterr().err
