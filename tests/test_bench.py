"""The bench: made-up inputs, fair timing, verification that catches wrong results, peers, suites, records, reports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from quatrefoil import bench, ops, reference, settings
from quatrefoil.bench import Effort, inputs, peers, records, report, suites, tasks, verify
from quatrefoil.bench.nodes import LimitedNode
from quatrefoil.bench.onnx_node import model_of
from quatrefoil.bench.page import PRINTED_WIDTH
from quatrefoil.bench.timing import Stretch, Timing, clocked, interleaved
from quatrefoil.errors import OperatorError, QuatrefoilError
from quatrefoil.registry import Reject

SMALL_CONV = "conv float32[1x4x8x8],float32[6x4x3x3],float32[6] pads=1x1x1x1 activation=Relu"
LARGE_CONV = "conv float32[1x2x90x80],float32[3x2x5x5],float32[3],float32[1x3x46x39] strides=2x2 pads=3x1x2x0 group=1"
QUICK = Effort(3, 0.002, 0.1)


@pytest.mark.parametrize("name", suites.names())
def test_suites_are_readable(name: str) -> None:
    suite = suites.load(name)
    assert len({entry.name for entry in suite.entries}) == len(suite.entries)
    assert {entry.family for entry in suite.entries} == ({family.name for family in suite.families} or {""})
    for entry in suite.entries:
        assert tasks.read(entry.text).text == entry.text


def test_a_faulty_suite_names_its_problem(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[[problem]]\ntext = "max_pool float32[1x1x4x4] kernel_shape=2x2"\n[[problem]]\ntext = "max_pool x"\n'
    )
    with pytest.raises(QuatrefoilError, match=r"problem 2 .*mine.toml"):
        suites.load(file)
    file.write_text("title = ")
    with pytest.raises(QuatrefoilError, match="no TOML"):
        suites.load(file)
    with pytest.raises(QuatrefoilError, match="known are audio, "):
        suites.load("convolutions")


def test_inputs_are_the_same_for_the_same_seed() -> None:
    problem = ops.parse(SMALL_CONV)
    first, again, other = (inputs.arrays(problem, seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)  # type: ignore[arg-type]
    assert not np.array_equal(first, other)  # type: ignore[arg-type]


def test_timing_tells_slow_from_fast_and_keeps_rounds_interleaved() -> None:
    order = []

    def sleeper(name: str, seconds: float):
        def work(calls: int) -> None:
            order.append(name)
            for _ in range(calls):
                time.sleep(seconds)

        return clocked(work)

    timings = interleaved(
        {"slow": sleeper("slow", 0.004), "fast": sleeper("fast", 0.001)}, rounds=4, round_seconds=0.004
    )
    assert timings["slow"].median > 2 * timings["fast"].median
    assert timings["fast"].least <= timings["fast"].lower_quartile <= timings["fast"].median
    assert order[-8:] in (["slow", "fast", "fast", "slow"] * 2, ["fast", "slow", "slow", "fast"] * 2)


def test_a_round_on_a_shared_core_is_measured_again() -> None:
    stretches = iter([*(Stretch(0.03, 0.03),), *(Stretch(1.0, 0.1),) * 2, *(Stretch(0.03, 0.03),) * 3])
    timings = interleaved({"one": lambda calls: next(stretches)}, rounds=3, exclusive=frozenset({"one"}))
    assert (timings["one"].rounds, timings["one"].median) == (3, pytest.approx(0.03))


class Script:
    """A probe that says what it is told to."""

    def __init__(self, before: str, after: str) -> None:
        self._before, self._after = iter(before), iter(after)

    def wait(self) -> bool:
        return next(self._before) == "+"

    def quick(self) -> bool:
        return next(self._after) == "+"


@pytest.mark.parametrize(
    ("before", "after", "kept", "repeated", "disturbed"),
    [
        ("+++", "+++", [1, 2, 3], 0, 0),
        ("-+++", "++++", [2, 3, 4], 1, 0),
        ("++++", "+-++", [1, 3, 4], 1, 0),
        ("++++++", "------", [4, 5, 6], 3, 3),
        ("------", "++++++", [4, 5, 6], 3, 3),
    ],
    ids=["quiet", "slow before", "slow after", "slowed in each", "slow from the beginning"],
)
def test_a_round_on_a_slowed_core_is_measured_again(
    before: str, after: str, kept: list[int], repeated: int, disturbed: int
) -> None:
    stretches = iter([Stretch(0.03, 0.03), *(Stretch(float(number), float(number)) for number in range(1, 9))])
    probe = Script(before, after)
    timings = interleaved({"one": lambda calls: next(stretches)}, rounds=3, exclusive=frozenset({"one"}), probe=probe)
    timing = timings["one"]
    assert list(timing.samples) == kept
    assert (timing.repeated, timing.disturbed) == (repeated, disturbed)


def test_what_spins_after_a_round_of_several_threads_is_not_its_fault() -> None:
    stretches = iter([Stretch(0.03, 0.03)] * 4)
    timings = interleaved({"one": lambda calls: next(stretches)}, rounds=3, probe=Script("+++", ""))
    assert (timings["one"].rounds, timings["one"].repeated) == (3, 0)


def test_a_contender_that_cannot_go_on_is_left_out() -> None:
    stretches = iter([Stretch(0.03, 0.03), Stretch(0.03, 0.03), None])
    steady = clocked(lambda calls: time.sleep(0.002 * calls))
    timings = interleaved({"lost": lambda calls: next(stretches), "steady": steady}, rounds=3, round_seconds=0.002)
    assert list(timings) == ["steady"]


def test_slow_contenders_get_fewer_rounds() -> None:
    timings = interleaved(
        {"slow": clocked(lambda calls: time.sleep(0.02 * calls))}, rounds=50, round_seconds=0.01, seconds_each=0.1
    )
    assert 3 <= timings["slow"].rounds <= 6


def test_a_large_convolution_is_compared_on_rows() -> None:
    problem = ops.parse(LARGE_CONV)
    arrays = inputs.arrays(problem)
    right = reference.evaluate(problem, arrays)[0]
    whole = verify.Oracle(problem, arrays)
    assert whole.name == "oracle, 3 rows"
    assert whole.check([right]).passed
    for row in (0, 23, 45):
        wrong = right.copy()
        wrong[0, 1, row, 5] += 0.1
        assert whole.check([wrong]).failures == 1
    assert not whole.check([right[:, :, :-1]]).passed


def test_a_wrong_result_is_recorded_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = reference.evaluate
    monkeypatch.setattr(verify.reference, "evaluate", lambda p, a: tuple(y + 1 for y in original(p, a)))
    [record] = bench.run([SMALL_CONV], on=("cpu",), effort=QUICK)
    assert record.wrong
    assert record.measured is None
    assert "wrong in" in record.refused


def test_run_measures_backends_and_peers_side_by_side() -> None:
    pytest.importorskip("onnxruntime", reason="the peer onnxruntime is not installed")
    threads = settings.num_threads()
    ours, theirs = bench.run([SMALL_CONV], on=("cpu",), peers=("ort",), effort=QUICK)
    assert settings.num_threads() == threads
    assert (ours.contender, ours.ours, theirs.contender, theirs.ours) == ("cpu", True, "ort", False)
    assert ours.measured
    assert theirs.measured
    assert ours.checked == theirs.checked == "oracle"
    assert ours.macs == 8 * 8 * 6 * 4 * 9
    assert ours.kernel.startswith("conv_")


def test_run_without_verification_says_so() -> None:
    [record] = bench.run([SMALL_CONV], on=("cpu",), effort=QUICK, verify=False)
    assert record.checked == ""
    assert "not compared" in record.note


def test_simulated_backends_give_cycles_and_no_time() -> None:
    [record] = bench.run([SMALL_CONV], on=("asic",))
    assert record.measured is None
    assert record.simulated
    assert record.simulated.cycles > 0
    assert record.simulated.microseconds == record.simulated.cycles / record.simulated.clock_mhz


def test_a_backend_that_is_absent_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrefoil import backends
    from quatrefoil.registry import Availability

    house = backends.get("fpga")
    monkeypatch.setattr(type(house), "probe", lambda self: Availability(False, "no board", "buy one"))
    [record] = bench.run([SMALL_CONV], on=("fpga",))
    assert "no board" in record.refused
    assert record.measured is None
    assert not record.wrong


def test_peers_refuse_in_words() -> None:
    problem = ops.parse("conv float32[1x3x6x6],float32[4x3x1x1] activation=Swish(1.0)")
    refused = model_of(problem, {})
    assert isinstance(refused, Reject)
    assert "Swish" in str(refused)
    with pytest.raises(QuatrefoilError, match="known are ort"):
        peers.get("tvm")


def test_records_survive_json_and_reports_keep_simulated_apart(tmp_path: Path) -> None:
    timing = Timing(2e-6, 1e-6, 1.5e-6, 2.5e-6, 9, 1000)
    cost = bench.Simulated("edge", 1234, 800.0, 99)
    base = bench.Record(
        "small <conv>", SMALL_CONV, "conv", "cpu", True, "k", "d", macs=4000, measured=timing, error=1e-7
    )
    found = [
        base,
        replace(base, contender="ort", ours=False, error=float("inf")),
        replace(base, contender="asic", measured=None, simulated=cost),
        replace(base, contender="gpu", measured=None, refused="no card"),
    ]
    assert base.gmacs == pytest.approx(2.0)
    records.write_json(tmp_path / "r.json", records.document(found, {"processor": "p"}))
    read = json.loads((tmp_path / "r.json").read_text())
    assert [r["contender"] for r in read["records"]] == ["cpu", "ort", "asic", "gpu"]
    assert read["records"][1]["error"] == "infinite"
    assert read["records"][2]["simulated"]["microseconds"] == pytest.approx(1234 / 800)
    report.write_html(tmp_path / "r.html", "Title", found, {"processor": "p"})
    page = (tmp_path / "r.html").read_text()
    assert "small &lt;conv&gt;" in page
    measured, simulated = page.index("<h2>Measured"), page.index("<h2>Simulated")
    assert "1,234" not in page[measured:simulated]
    assert 'class="number simulated">1,234' in page[simulated:]
    assert "no card" in page
    assert "://" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL).replace("http://www.w3.org", "")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)


def test_flags_tell_settings_and_no_machine_s_paths() -> None:
    told = records.flags_of(
        {
            "PATH": "/bin",
            "QUATREFOIL_CPU_ISA": "v3",
            "QUATREFOIL_CACHE": "cache",
            "QUATREFOIL_ASIC_DESIGN": "/home/someone/mine.toml",
            "QUATREFOIL_OPENCL": r"C:\\someone",
        }
    )
    assert told == {
        "QUATREFOIL_CPU_ISA": "v3",
        "QUATREFOIL_CACHE": "a path",
        "QUATREFOIL_ASIC_DESIGN": "a path",
        "QUATREFOIL_OPENCL": "a path",
    }


def test_problem_text_errors_reach_the_caller() -> None:
    with pytest.raises(OperatorError, match="known are conv"):
        bench.run(["nothing float32[1]"])


def _sample(folder: Path) -> Path:
    """A report of measured, rough, simulated and refused records with names that HTML would trip over."""
    base = bench.Record(
        "</script><b>first", SMALL_CONV, "conv", "cpu", True, "k_nchw", "d", macs=4000, bytes=9000, error=1e-7, accurate=True,
        measured=Timing.of([2e-6, 2.1e-6, 2.2e-6], 10), limit_seconds=1e-6, limit_by="arithmetic",
    )  # fmt: skip
    found = []
    for number in range(30):
        name = base.name if number == 0 else f"task {number:02d}"
        found += [
            replace(
                base,
                name=name,
                measured=Timing.of([seconds * 1e-6 for seconds in (number + 1, number + 2, number + 3)], 10),
            ),
            replace(base, name=name, contender="ort", ours=False, accurate=number % 3 > 0, error=number * 1e-5),
        ]
    found.append(replace(base, contender="asic", measured=None, simulated=bench.Simulated("edge", 1234, 800.0, 99)))
    ceilings = {
        "instruction_set": "v3",
        "gflop_s": 100.0,
        "levels": [{"name": "L1", "kib": 32.0, "gbyte_s": 100.0}, {"name": "memory", "kib": None, "gbyte_s": 10.0}],
    }
    changes = [
        {
            "name": "task 01",
            "contender": "cpu",
            "verdict": "slower",
            "before": 1e-6,
            "now": 2e-6,
            "ratio": 2.0,
            "interval": (1.9, 2.1),
            "visible": 0.08,
            "why": "",
        }
    ]
    path = folder / "sample.html"
    report.write_html(path, "Sample", found, {"machine": {"processor": "p"}, "ceilings": ceilings, "against": changes})
    return path


def test_the_report_opens_with_the_answer_and_keeps_simulated_time_apart(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="charts need plotly")
    page = _sample(tmp_path).read_text()
    body = page[page.index("<body>") :]
    assert body.index("tasks are fastest on cpu of ours") < body.index("<h2>")
    assert "1 slower, 0 faster" in body
    for heading in (
        "Families",
        "Under the roofline",
        "Every task by every contender",
        "Error against time",
        "Simulated",
    ):
        assert f"<h2>{heading}" in body
    assert "</script><b>first" not in body
    assert body.index("simulated us, of the design") > body.index("<h2>Simulated")
    assert len(page) < 8_000_000


def test_means_have_intervals_and_few_tasks_have_none() -> None:
    mean, interval = report.geometric([2.0, 4.0, 8.0])
    assert mean == pytest.approx(4.0)
    # Student's t for two degrees of freedom is 4.303, and the logarithms deviate by log 2
    half = 4.303 * np.log(2) / np.sqrt(3)
    assert interval
    assert np.log(interval[1] / 4) == pytest.approx(half, rel=0.05)
    assert np.log(interval[0] / 4) == pytest.approx(-half, rel=0.05)
    assert report.geometric([2.0, 8.0]) == (pytest.approx(4.0), None)


def test_numbers_of_threads_and_suites_stand_apart(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="charts need plotly")
    base = bench.Record("a", SMALL_CONV, "conv", "cpu", True, "k", "d", macs=4000, bytes=9000, accurate=True)
    found = [
        replace(base, name=name, contender=who, ours=who == "cpu", threads=threads, measured=Timing.of([time * 1e-6] * 3, 9))
        for threads, scale in ((1, 1.0), (2, 0.5))
        for name in "abcd"
        for who, time in (("cpu", 4 * scale), ("ort", 6 if threads == 1 else 9))
    ]  # fmt: skip
    path = tmp_path / "r.html"
    report.write_html(path, "T", found, {"machine": {}, "suites": {"left": ["a", "b", "c"], "right": ["c", "d"]}})
    page = path.read_text()
    body = page[page.index("<body>") :]
    one, two = body.index("<h2>One thread"), body.index("<h2>2 threads")
    assert "1.50 times</b> as long as ours takes ort" in body[one:two]
    assert "4.50 times</b> as long as ours takes ort" in body[two : body.index("<h2>Method")]
    for heading in ("Families, one thread", "Families, 2 threads", "More threads"):
        assert f"<h2>{heading}</h2>" in body
    scaling = body[body.index("<h2>More threads") : body.index("<h2>Measured")]
    assert re.search(r"a</td>.*cpu</td>.*4\.00</td>.*2\.00</td>.*2\.00</td>", scaling)
    assert body.count("left: Time over the best") == body.count("right: Time over the best") == 2
    families = body[body.index("<h2>Families, 2 threads") : body.index("<h2>Task by task, 2 threads")]
    rows = re.findall(r">(left|right|all tasks)</td><td[^>]*>(\d)</td><td[^>]*>([^<]*)</td>", families)
    assert rows == [
        ("left", "3", "4.50 [4.50,\N{NO-BREAK SPACE}4.50]"),
        ("right", "2", "4.50"),
        ("all tasks", "4", "4.50 [4.50,\N{NO-BREAK SPACE}4.50]"),
    ]


def test_every_contender_has_a_mark_of_its_own() -> None:
    marks = [report.charts._marker(place) for place in range(20)]
    assert len({(mark["color"], mark["symbol"]) for mark in marks}) == 20


@pytest.mark.parametrize("drawn", [True, False], ids=["plotly", "without"])
def test_a_model_s_nodes_are_shown_and_simulated_ones_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    if drawn:
        pytest.importorskip("plotly", reason="charts need plotly")
    monkeypatch.setattr(report.charts, "available", lambda: drawn)
    measured = LimitedNode("first <node>", "Conv", "cpu", "conv_k", "first", 4e-6, share=0.8, limit_seconds=1e-6)
    other = replace(measured, name="last", op="Relu", seconds=1e-6, share=0.2, limit_seconds=None)
    chip = LimitedNode("first", "Conv", "asic", "conv_a", "first", None, 1234, 3.085, 1.0)
    data = {"machine": {}, "nodes": {"cpu": [asdict(measured), asdict(other)], "asic": [asdict(chip)]}}
    path = tmp_path / "r.html"
    report.write_html(path, "M", [], data)
    page = path.read_text()
    body = page[page.index("<body>") :]
    cpu, asic = body.index("<h2>Node by node on cpu"), body.index("<h2>Node by node on asic")
    assert "first &lt;node&gt;</td>" in body[cpu:asic]
    assert "80.0%</td>" in body[cpu:asic]
    assert "25%</td>" in body[cpu:asic]
    assert "imulated" not in body[cpu:asic]
    assert 'class="number simulated">1,234' in body[asic:]
    assert ("simulated us, of the design" if drawn else "us, simulated") in body[asic:]
    assert "Measured nodes" not in body[asic:]


def test_of_many_nodes_the_longest_are_drawn() -> None:
    bars = [report.Bar(str(number), float(number % 100), None, "") for number in range(200)]
    drawn = report._longest(bars)
    assert len(drawn) == report.MOST_NODES
    assert min(bar.microseconds for bar in drawn) == 70
    assert [int(bar.label) for bar in drawn] == sorted(int(bar.label) for bar in drawn)


def test_a_browser_draws_the_report_and_sorts_its_table(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    pytest.importorskip("plotly", reason="charts need plotly")
    path = _sample(tmp_path)
    script = """
    <script>
    addEventListener("error", event => document.body.dataset.errors = event.message);
    addEventListener("load", () => {
      const table = document.getElementById("measured"), heads = table.tHead.rows[0].cells;
      const filter = document.querySelector("input[data-table=measured]");
      heads[3].firstElementChild.click(); heads[3].firstElementChild.click();
      filter.value = "cpu k_nchw"; filter.dispatchEvent(new Event("input"));
      const seen = [...table.tBodies[0].rows].filter(row => !row.hidden);
      document.body.dataset.seen = seen.length;
      document.body.dataset.largest = seen[0].cells[0].textContent;
      const errors = [...heads].findIndex(head => head.textContent === "error");
      filter.value = ""; filter.dispatchEvent(new Event("input"));
      heads[errors].firstElementChild.click();
      const order = [...table.tBodies[0].rows].map(row => parseFloat(row.cells[errors].textContent.replace("~", "")));
      document.body.dataset.sorted = order.every((error, i) => i === 0 || order[i - 1] <= error);
      document.body.dataset.charts = document.querySelectorAll(".chart .main-svg").length;
      dispatchEvent(new Event("beforeprint"));
      const widths = [...document.querySelectorAll(".chart .main-svg")].map(svg => svg.getAttribute("width"));
      document.body.dataset.printed = [...new Set(widths)].join();
    });
    </script>"""
    path.write_text(path.read_text().replace("</head>", script + "</head>", 1))
    run = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        "--dump-dom",
        path.as_uri(),
    ]
    shown = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout
    told = dict(re.findall(r'data-(errors|seen|largest|sorted|charts|printed)="([^"]*)"', shown))
    assert "errors" not in told, told
    assert told["seen"] == "30"
    assert told["largest"] == "task 29"
    assert told["sorted"] == "true", "errors that are marked ~ stand among the others"
    assert int(told["charts"]) >= 4
    assert told["printed"] == str(PRINTED_WIDTH)
