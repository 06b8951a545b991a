"""What the bench does not fall for: contenders that are wrong, that skip work or that remember results; and what it says
of a change: nothing where there is none, and 5 % where there are 5 %."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quatrefoil import backends, ops, reference
from quatrefoil.bench import Effort, Record, Timing, against, flat, runner
from quatrefoil.bench.peers import Prepared, into
from quatrefoil.bench.roofline import Ceilings, Level
from quatrefoil.bench.runner import Field
from quatrefoil.bench.suites import Entry
from quatrefoil.bench.tasks import Task, read
from quatrefoil.bench.timing import Stretch, interleaved, median_interval
from quatrefoil.bench.verify import judge_of
from quatrefoil.bench.worker import Course, Ready, ready
from quatrefoil.errors import QuatrefoilError
from quatrefoil.gpu import GpuBackend
from quatrefoil.registry import Availability, TimesDevice

CONV = "conv float32[1x4x8x8],float32[6x4x3x3],float32[6] pads=1x1x1x1"
QUICK = Effort(4, 0.002, 0.1)

Run = Callable[[np.ndarray, Callable[[], np.ndarray]], np.ndarray]
"""Gives y for x; the second argument computes it."""


class Inside:
    """A worker in this process, whose contender runs as told."""

    lost = None

    def __init__(self, run: Run, cold: bool = False) -> None:
        self._run, self._cold = run, cold

    def prepare(self, task: Task) -> Ready:
        arrays = [None if array is None else np.array(array) for array in task.arrays]
        x, problem = arrays[0], task.problem
        assert x is not None
        assert problem is not None
        prepared = Prepared(
            "fake",
            lambda: self._run(x, lambda: reference.evaluate(problem, arrays)[0]),
            lambda y: [np.array(y)],
            refill=into([x]),
        )
        self._course = Course(task, prepared, self._cold)
        return ready(prepared)

    def time(self, calls: int) -> Stretch:
        return self._course.time(calls)

    def refill(self, number: int) -> None:
        self._course.refill(number)

    def outputs(self) -> list[np.ndarray | None]:
        return self._course.outputs(None)

    def drop(self) -> None:
        pass

    close = drop


def measured(run: Run, effort: Effort = QUICK, **options: object) -> Record:
    with Field(["cpu"], 1, **options) as field:  # type: ignore[arg-type]
        field._workers["cpu"] = Inside(run)  # type: ignore[assignment]
        [record] = field.compare("fake", read(CONV), judge_of, effort)
    return record


@pytest.mark.parametrize("cold", [False, True])
def test_a_device_with_a_clock_is_timed_by_it_too(cold: bool) -> None:
    queued: list[int] = []

    def device_seconds(work: Callable[[], object]) -> float:
        queued.clear()
        work()
        return 0.25 * len(queued)

    def call() -> list[np.ndarray]:
        queued.append(1)
        return [np.zeros(1)]

    prepared = Prepared("fake", call, lambda y: list(y), device_seconds=device_seconds)  # type: ignore[call-overload]
    course = Course(read(CONV), prepared, cold)
    assert course.time(3).device == 0.75
    stretch = course.time(2)
    assert 0 < stretch.seconds < 0.5
    timing = interleaved({"gpu": course.time}, rounds=3, round_seconds=1e-5, most_calls=4)["gpu"]
    assert timing.device_seconds == 0.25
    assert timing.median != 0.25
    assert Course(read(CONV), replace(prepared, device_seconds=None), cold).time(1).device is None
    assert isinstance(GpuBackend(), TimesDevice)
    assert not isinstance(backends.get("cpu"), TimesDevice), "a call's time is the CPU's"


class SomebodyElse:
    """A peer that is there."""

    title = timed = "as told"

    def probe(self) -> Availability:
        return Availability(True, "1.0")


def measured_as_peer(monkeypatch: pytest.MonkeyPatch, run: Run) -> Record:
    monkeypatch.setattr(runner.known, "get", lambda name: SomebodyElse())
    with Field(["peer"], 1) as field:
        field._workers["peer"] = Inside(run)  # type: ignore[assignment]
        [record] = field.compare("fake", read(CONV), judge_of, QUICK)
    assert not record.ours
    return record


def test_a_peer_that_remembers_its_result_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[np.ndarray] = []

    def run(x: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
        first.append(compute())
        return first[0]

    record = measured_as_peer(monkeypatch, run)
    assert (record.measured, record.wrong) == (None, True)
    assert "on fresh inputs it gives other than the right outputs" in record.refused


def test_a_peers_remembered_result_is_known_where_inputs_matter_little(monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[np.ndarray] = []

    def run(x: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
        first.append(compute())
        return first[0]

    monkeypatch.setattr(runner, "ANOTHER", 100.0)
    record = measured_as_peer(monkeypatch, run)
    assert (record.measured, record.wrong) == (None, True)
    assert "those of others" in record.refused


def test_a_peer_that_rounds_on_other_inputs_is_timed_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    x_first: list[bytes] = []

    def run(x: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
        x_first.append(x.tobytes())
        return compute() * (1 if x.tobytes() == x_first[0] else np.float32(1.01))

    record = measured_as_peer(monkeypatch, run)
    assert record.measured is not None
    assert record.fresh
    assert (record.wrong, record.accurate) == (True, False)
    assert record.error == pytest.approx(0.01, rel=0.2)


def test_an_honest_contender_is_measured() -> None:
    record = measured(lambda x, compute: compute())
    assert record.measured is not None
    assert record.fresh
    assert not record.refused
    low, high = record.measured.confidence or (math.nan, math.nan)
    assert low <= record.measured.median <= high
    assert len(record.measured.samples) == record.measured.rounds


def test_wrong_values_are_not_timed() -> None:
    record = measured(lambda x, compute: compute() + 1)
    assert (record.measured, record.wrong) == (None, True)
    assert "wrong in" in record.refused


def test_a_result_remembered_by_where_its_input_lies_is_caught() -> None:
    remembered: dict[int, np.ndarray] = {}

    def run(x: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
        return remembered.setdefault(x.ctypes.data, compute())

    record = measured(run)
    assert (record.measured, record.wrong) == (None, True)
    assert "fresh inputs" in record.refused


def test_work_that_only_the_first_calls_do_is_caught() -> None:
    done: list[np.ndarray] = []

    def run(x: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if len(done) < 3:
            done.append(compute())
        return done[-1]

    record = measured(run)
    assert (record.measured, record.wrong) == (None, True)


@pytest.mark.parametrize("all_of_them", [False, True], ids=["the last result", "every result"])
def test_results_remembered_by_what_their_inputs_are_are_caught(all_of_them: bool) -> None:
    seen: dict[bytes, np.ndarray] = {}

    def run(x: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
        key = x.tobytes()
        if key not in seen:
            if not all_of_them:
                seen.clear()
            time.sleep(0.0005)
            seen[key] = compute()
        return seen[key]

    record = measured(run, Effort(4, 0.01, 1.0))
    assert (record.measured, record.wrong) == (None, True)
    assert "does not do the work each time" in record.refused


def test_what_is_faster_than_the_machine_is_flagged() -> None:
    slow_machine = Ceilings("v3", 1e-6, (Level("memory", None, 1e-6),))
    record = measured(lambda x, compute: compute(), ceilings=slow_machine)
    assert record.beats_limit
    assert "not to be believed" in record.note
    fast_machine = Ceilings("v3", 1e6, (Level("memory", None, 1e6),))
    record = measured(lambda x, compute: compute(), ceilings=fast_machine)
    assert not record.beats_limit
    assert record.share is not None
    assert 0 < record.share < 1


def test_rounds_that_stayed_disturbed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Field(["cpu"], 1) as field:
        monkeypatch.setattr(field.probe, "quick", lambda: False)
        field._workers["cpu"] = Inside(lambda x, compute: compute())  # type: ignore[assignment]
        [record] = field.compare("fake", read(CONV), judge_of, QUICK)
    timing = record.measured
    assert timing is not None
    assert timing.repeated == timing.disturbed == timing.rounds
    assert runner.DISTURBED in record.note


def test_cold_calls_are_timed_one_by_one() -> None:
    with Field(["cpu"], 1, cold=True) as field:
        field._workers["cpu"] = Inside(lambda x, compute: compute(), cold=True)  # type: ignore[assignment]
        [record] = field.compare("fake", read(CONV), judge_of, QUICK)
    assert record.cache == "cold"
    assert record.measured is not None
    assert record.measured.calls == 1


def test_fresh_inputs_keep_the_constants() -> None:
    task = read(CONV)
    other = task.fresh()
    assert not np.array_equal(task.varying[0], other.varying[0])
    for position, constant in task.constants.items():
        np.testing.assert_array_equal(constant, other.constants[position])
    chained = read("2 * (conv float32[1x4x8x8],float32[4x4x3x3] pads=1x1x1x1)")
    assert chained.fresh().model is chained.model
    assert not np.array_equal(chained.varying[0], chained.fresh().varying[0])


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for n in (7, 9, 21, 50):
        drawn = rng.exponential(size=(4000, n))
        intervals = np.array([median_interval(list(values)) for values in drawn])
        inside = ((intervals[:, 0] <= math.log(2)) & (math.log(2) <= intervals[:, 1])).mean()
        assert 0.94 < inside <= 1.0, n
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval(list(range(21)))[0] > 0


def _timing(seconds: list[float]) -> Timing:
    return Timing.of(seconds, 10)


def _record(name: str, contender: str, seconds: list[float]) -> Record:
    return Record(name, CONV, "conv", contender, True, measured=_timing(seconds))


def _laps(rng: np.random.Generator, factor: float) -> against.Lap:
    """Pairs of processes of which each has 1 % of luck; one lap in ten is badly disturbed, one way or the other."""

    def lap(number: int) -> tuple[float, float]:
        times = 1e-4 * (1 + 0.01 * rng.standard_normal(2))
        if rng.random() < 0.1:
            times[number % 2] *= 1.2
        before, now = times
        return before, now * factor

    return lap


def test_five_per_cent_are_seen_and_nothing_else_is() -> None:
    """Suites of 40 cases each: every interval of a suite holds with 95 %."""
    rng = np.random.default_rng(1)
    seen = {1.0: 0, 1.05: 0, 1 / 1.05: 0}
    each, thresholds = 400, against.Thresholds()
    for factor in seen:
        for _ in range(each):
            change = against.settled("one", "cpu", _laps(rng, factor), 40, thresholds)
            assert change.verdict in (against.SAME, against.SLOWER if factor > 1 else against.FASTER), factor
            seen[factor] += change.verdict != against.SAME
    assert seen[1.0] == 0
    assert seen[1.05] > 0.93 * each, seen
    assert seen[1 / 1.05] > 0.93 * each, seen


def test_false_positives_are_bounded_over_all_looks() -> None:
    """With a threshold that no luck is within, all looks are taken, and no more suites than 5 % see a change."""
    rng = np.random.default_rng(2)
    thresholds = against.Thresholds(relative=0.0, absolute=0.0)
    wrong = sum(
        against.settled("one", "cpu", _laps(rng, 1.0), 1, thresholds).verdict != against.SAME for _ in range(400)
    )
    assert 0 < wrong < 0.07 * 400, "with one case and no threshold the level is used up, and not passed"


def test_laps_end_when_they_tell() -> None:
    def laps_taken(*, noise: float, factor: float = 1.0, relative: float = 0.03) -> int:
        rng = np.random.default_rng(3)
        taken = 0

        def lap(number: int) -> tuple[float, float]:
            nonlocal taken
            taken += 1
            return 1e-4, 1e-4 * factor * (1 + noise * rng.standard_normal())

        against.settled("one", "cpu", lap, 40, against.Thresholds(relative))
        return taken

    first = against.looks(40)[0][0]
    assert laps_taken(noise=0.002) == first
    assert laps_taken(noise=0.002, factor=1.1) == first
    assert first < laps_taken(noise=0.02) < against.MOST_LAPS
    assert laps_taken(noise=0.2) == against.MOST_LAPS


def test_a_small_difference_does_not_matter() -> None:
    def verdict(thresholds: against.Thresholds) -> str:
        return against.settled("tiny", "cpu", lambda number: (1e-6, 1.1e-6), 1, thresholds).verdict

    assert verdict(against.Thresholds()) == against.SAME
    assert verdict(against.Thresholds(absolute=5e-8)) == against.SLOWER


def test_what_some_processes_alone_show_is_no_difference() -> None:
    change = against.settled(
        "one", "cpu", lambda number: (1e-4, (1.07 if number % 2 else 0.97) * 1e-4), 1, against.Thresholds()
    )
    assert change.verdict == against.SAME
    change = against.settled("one", "cpu", lambda number: "it died", 1, against.Thresholds())
    assert (change.verdict, change.why) == (against.UNKNOWN, "it died")


def test_the_interval_of_signed_ranks_is_wilcoxons() -> None:
    # the tabulated critical values for two-sided tests (Hollander and Wolfe, table A.4)
    assert [against._signed_rank_cut(n, 0.95) for n in (5, 6, 7, 8, 10, 20)] == [0, 1, 3, 4, 9, 53]
    assert against._signed_rank_cut(20, 0.99) == 38
    assert against.signed_rank_interval([1.0, 2.0], 0.95) == (1.5, -math.inf, math.inf)
    middle, low, high = against.signed_rank_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0], 0.95)
    assert (middle, low, high) == (3.5, 1.0, 6.0)


def test_an_earlier_report_is_brought_to_todays_clock() -> None:
    rng = np.random.default_rng(2)
    old = {
        "ceilings": {"gflop_s": 50.0},
        "records": [_record("one", "cpu", list(2e-4 * (1 + 0.005 * rng.standard_normal(15)))).as_dict()],
    }
    now = [
        _record("one", "cpu", list(1e-4 * (1 + 0.005 * rng.standard_normal(15)))),
        _record("new", "cpu", [1e-4] * 15),
    ]
    same, unknown = against.with_report(now, {"gflop_s": 100.0}, old, against.Thresholds())
    assert same.verdict == against.SAME
    assert (unknown.verdict, unknown.why) == (against.UNKNOWN, "the earlier report does not have it")
    [faster, _] = against.with_report(now, {"gflop_s": 50.0}, old, against.Thresholds())
    assert faster.verdict == against.FASTER
    few = [_record("one", "cpu", [5e-5, 5.1e-5, 5.2e-5])]
    [change] = against.with_report(few, {"gflop_s": 50.0}, old, against.Thresholds())
    assert (change.verdict, "takes 6 rounds" in change.why) == (against.UNKNOWN, True)


def test_real_work_that_takes_longer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contenders that count, in the same rounds; the one as far, then a quarter further. Processor time is what is
    compared, which other processes on the core take no part of."""

    class OnProcessor(Inside):
        def time(self, calls: int) -> Stretch:
            stretch = super().time(calls)
            return Stretch(stretch.processor, stretch.processor)

    def counting(times: int) -> Run:
        def run(x: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
            for _ in range(times):
                pass
            return y

        return run

    task = read(CONV)
    problem = ops.parse(task.text)
    y = reference.evaluate(problem, task.arrays)[0]
    monkeypatch.setattr(against, "POOL", 2)
    for times, verdict in ((20_000, against.SAME), (25_000, against.SLOWER)):
        with against.Pairs([], 1, "nowhere") as pairs:
            for field in (pairs.first, *pairs._more):
                field._workers = {  # type: ignore[assignment]
                    "cpu": OnProcessor(counting(times)), against.BEFORE: OnProcessor(counting(20_000)),
                }  # fmt: skip
            entry = Entry("count", task.text)
            effort = Effort(3, 0.002, 2.0)
            records, [change] = pairs.run([entry], effort, against.Thresholds(relative=0.1), verify=False)
        assert [record.contender for record in records] == ["cpu", against.BEFORE]
        assert change.verdict == verdict, change


def test_what_is_no_report_and_no_checkout_is_said(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    file.write_text("[]")
    with pytest.raises(QuatrefoilError, match="no report of quatrefoil bench"):
        against.read(file)
    with pytest.raises(QuatrefoilError, match="neither a report in JSON nor a checkout"), against.checkout(tmp_path):
        pass


def test_flat_rows_hold_plain_columns_alone() -> None:
    [row] = flat([_record("one", "cpu", [1e-4] * 7)])
    assert row["measured_median"] == 1e-4
    assert all(not isinstance(value, (dict, list, tuple)) for value in row.values())
