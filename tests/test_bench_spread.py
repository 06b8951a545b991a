"""A bench spread over workers: nothing is lost when a worker is, or when the run is ended in its middle."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quatrefoil.bench import Effort, records, spread
from quatrefoil.bench.suites import Entry
from quatrefoil.errors import QuatrefoilError

pytest.importorskip("distributed", reason="spreading needs distributed")

ENTRIES = [
    Entry(f"case {n}", f"conv float32[1x{n}x20x20],float32[8x{n}x3x3] pads=1x1x1x1 strides=1x1 dilations=1x1 group=1")
    for n in range(1, 13)
]
QUICK = Effort(3, 0.002, 0.1)


def test_killing_a_worker_in_mid_sweep_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    clusters: list[Any] = []

    class Cluster(distributed.LocalCluster):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "n_workers": 2})
            clusters.append(self)

    monkeypatch.setattr(distributed, "LocalCluster", Cluster)
    killed = threading.Event()

    def kill_one(name: str) -> None:
        if not killed.is_set():
            killed.set()
            os.kill(next(iter(clusters[0].workers.values())).pid, signal.SIGKILL)

    keep = tmp_path / "results.jsonl"
    done = spread.measure(ENTRIES, ("asic",), keep=keep, effort=QUICK, begin=kill_one)
    assert killed.is_set()
    assert [one.name for one in done] == [entry.name for entry in ENTRIES]
    assert all(one.records[0].simulated and not one.records[0].refused for one in done)
    kept = Counter(json.loads(line)["name"] for line in keep.read_text().splitlines())
    assert kept == Counter(entry.name for entry in ENTRIES), "each task is kept exactly once"


def test_a_run_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = tmp_path / "results.jsonl"

    def end(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread.measure(ENTRIES[:3], ("asic",), keep=keep, effort=QUICK, begin=end)
    [first] = spread.read(keep)
    with keep.open("a") as file:
        file.write('{"name": "case 9", "wor')  # what a process leaves that is ended while it writes
    asked: list[str] = []
    original = spread._outcomes

    def watched(client: object, entries: list[Entry], *rest: Any) -> Any:
        asked.extend(entry.name for entry in entries)
        return original(client, entries, *rest)

    monkeypatch.setattr(spread, "_outcomes", watched)
    done = spread.measure(ENTRIES[:3], ("asic",), keep=keep, effort=QUICK)
    assert sorted(asked) == sorted({entry.name for entry in ENTRIES[:3]} - {first.name})
    assert [one.name for one in done] == [entry.name for entry in ENTRIES[:3]]
    assert len(spread.read(keep)) == 3


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_lines_are_appended_over_one_that_was_cut_off(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "BLOCK", block)
    file = tmp_path / "lines.jsonl"
    for begun in ("", '{"a', '{"a": 1}\n', '{"a": 1}\n{"b": "ü'):
        file.write_text(begun, encoding="utf-8")
        spread.append(file, [{"c": 2}, {"d": 3}])
        whole = [{"a": 1}] if "\n" in begun else []
        assert spread.lines(file, dict, "line") == [*whole, {"c": 2}, {"d": 3}]


def test_results_of_another_run_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    keep = tmp_path / "results.jsonl"
    [one] = spread.measure(ENTRIES[:1], ("asic",), keep=keep, effort=QUICK)
    for options, said in (
        ({"on": ("cpu",)}, r"on \['asic'\] and not \['cpu'\]"),
        ({"on": ("asic",), "threads": 2}, "threads 1 and not 2"),
        ({"on": ("asic",), "seed": 5}, "seed 0 and not 5"),
    ):
        with pytest.raises(QuatrefoilError, match=said):
            spread.measure(ENTRIES[:1], keep=keep, **{"effort": QUICK, **options})  # type: ignore[arg-type]
    assert spread.read(keep) == [one]
    renamed = Entry(ENTRIES[0].name, ENTRIES[1].text)
    [other] = spread.measure([renamed], ("asic",), keep=keep, effort=QUICK)
    assert "1x2x20x20" in other.records[0].problem, "a name alone does not say what was measured"


def test_an_interrupted_command_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    suite = tmp_path / "many.toml"
    suite.write_text("".join(f'[[problem]]\nname = "{n}"\ntext = "{ENTRIES[n % 12].text}"\n' for n in range(200)))
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from quatrefoil.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "bench", str(suite), "--scheduler", "local"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    try:
        assert "bench 1/200" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, told = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in told, told
    [file] = (tmp_path / "reports").glob("bench-*.jsonl")
    done = spread.read(file)
    assert 1 <= len(done) < 200
    assert f"{len(done)} tasks are kept in reports/{file.name}; to go on" in " ".join(told.split())


def test_each_worker_says_who_it_is_and_what_it_can() -> None:
    [done] = spread.measure(ENTRIES[:1], ("cpu",), effort=QUICK)
    assert done.worker == "1"
    assert platform.node() not in json.dumps(done.as_dict()), "a machine's name stays there"
    assert done.ceilings is not None
    assert done.ceilings["gflop_s"] > 0
    assert done.machine["cores"]
    [record] = done.records
    assert record.measured is not None
    assert record.limit_seconds
    assert spread.Done.of(json.loads(json.dumps(done.as_dict()))) == done
    assert records.restored(json.loads(json.dumps(record.as_dict()))) == record


def test_machines_are_numbered_on_from_those_of_a_kept_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = spread.task(ENTRIES[0], ("asic",), (), 1, QUICK, 0)

    def outcomes(client: object, entries: list[Entry], *rest: Any) -> Any:
        for name, entry in zip("bab", entries):
            yield entry, (name, replace(found, name=entry.name, asked={**found.asked, "problem": entry.text}))

    monkeypatch.setattr(spread, "_outcomes", outcomes)
    monkeypatch.setattr(spread, "cluster_client", lambda *where: nullcontext())
    keep = tmp_path / "results.jsonl"
    done = spread.measure(ENTRIES[:2], ("asic",), keep=keep, effort=QUICK)
    assert [one.worker for one in done] == ["1", "2"]
    done = spread.measure(ENTRIES[:3], ("asic",), keep=keep, effort=QUICK)
    assert [one.worker for one in done] == ["1", "2", "3"], "nobody can tell whether this is one of the first two"


def test_workers_of_one_machine_measure_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    monkeypatch.setattr(spread.tempfile, "gettempdir", lambda: str(tmp_path))
    code = (
        "import sys; from quatrefoil.bench import spread; spread.tempfile.tempdir = sys.argv[1]\n"
        "with spread.alone(): print('in', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    entered = threading.Event()

    def enter() -> None:
        with spread.alone():
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.3)
    holder.kill()
    holder.communicate()
    waiting.join(timeout=10)
    assert entered.is_set(), "a dead worker holds nobody up"


def test_a_local_cluster_is_open_to_this_machine_alone() -> None:
    psutil = pytest.importorskip("psutil")
    with spread.cluster_client(spread.LOCAL, simulated=False):
        mine = psutil.Process()
        processes = [mine, *mine.children(recursive=True)]
        addresses = {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"}
    assert addresses == {"127.0.0.1"}


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(QuatrefoilError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"):
        spread.measure(ENTRIES[:1], scheduler="tcp://127.0.0.1:9")
    assert time.monotonic() - started < 30
    file = tmp_path / "other.txt"
    file.write_text("hello\nworld\n")
    with pytest.raises(QuatrefoilError, match="line 1 of"):
        spread.read(file)
