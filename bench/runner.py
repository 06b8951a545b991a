"""Benchmarks: tasks on backends and peers, verified first, then timed side by side, each in a process of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from quatrefoil import backends, dispatch, settings
from quatrefoil.bench import contenders as known
from quatrefoil.bench.records import Record
from quatrefoil.bench.roofline import Ceilings
from quatrefoil.bench.suites import Entry
from quatrefoil.bench.tasks import Task, read
from quatrefoil.bench.timing import MAX_CALLS, CoreProbe, interleaved
from quatrefoil.bench.verify import Judge, judge_of
from quatrefoil.bench.worker import TURNS, Ready, Worker, ready
from quatrefoil.errors import NoKernelError
from quatrefoil.problem import Problem
from quatrefoil.registry import Reject

QUANTISED_SLACK = 1
"""A peer may round a requantised value the other way; ours may not."""

ELSEWHERE = frozenset(backends.NAMES) - {"cpu"}
"""Contenders that wait for something other than the calling core, and so need not have it for themselves."""

REST_SECONDS = 0.1
"""How long contenders of several threads are given to stop spinning; ONNX Runtime's pool takes 0.06."""

ANOTHER = 0.5
"""A peer whose error is beyond this computes something else, and its time means nothing."""

UNSEEN = 2
"""From this number on, fresh inputs were in no round."""
SUSPICIOUS, WORTH_SUSPICION = 4.0, 1e-4
"""A call on fresh inputs that takes so many times as long as one of several in a row, and so many seconds at least for each
thread, shows that they are not all done: what caches and threads that were asleep cost is less."""

BEYOND = 0.95
"""Times below this share of the limit are not explained by how exactly the ceilings are known."""

DISTURBED = "some of its rounds were on a slowed or shared core although as many were measured again"

Progress = Callable[[Record], None]
Judging = Callable[[Task], Judge | None]
"""Makes what knows the right outputs of a task."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is measured: rounds of so many seconds, fewer for a contender that would take longer than
    ``seconds_each`` in all."""

    rounds: int = 9
    round_seconds: float = 0.02
    seconds_each: float = 2.0


def run(
    problems: Iterable[Problem | Entry | str],
    on: Sequence[str] = ("cpu",),
    peers: Sequence[str] = (),
    *,
    threads: int = 1,
    effort: Effort = Effort(),
    tune: bool = False,
    verify: bool = True,
    seed: int = 0,
    cold: bool = False,
    ceilings: Ceilings | None = None,
    begin: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Benchmark problems (their text forms, or entries of suites) on backends (``on``) and peers.

    Each contender's result is compared with the oracle, before it is timed and afterwards, then on inputs that were not
    there before. One of ours that fails is recorded and not timed; a peer's is timed and marked as not accurate.
    ``verify=False`` leaves the oracle out, and the records say so. Simulated backends run once and give cycles.
    ``cold`` flushes the caches before each call. With the machine's ``ceilings`` (``roofline.measure()``) records tell
    their limit. ``begin`` is called with each entry's name before it, ``progress`` with each record when it is complete.
    """
    with Field([*on, *peers], threads, cold=cold, ceilings=ceilings) as field:
        return field.run(
            problems, effort, tune=tune, judging=judge_of if verify else None, seed=seed, begin=begin, progress=progress
        )


def _entry(problem: Problem | Entry | str) -> Entry:
    if isinstance(problem, Entry):
        return problem
    text = read(problem).text if isinstance(problem, str) else problem.text
    return Entry(text, text)


def _tune(task: Task, on: Sequence[str]) -> None:
    """Measures our kernels for the task; processes that begin later find the choice on disk."""
    if task.problem is None:
        return
    for name in on:
        house = backends.get(name)
        if house.probe().ready:
            constants = {i: house.put(array) for i, array in task.constants.items()}
            try:
                dispatch.plan_problem(task.problem, constants, name, tune=True)
            except NoKernelError:
                continue  # the record will say why


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """Kernels use this many threads inside the block."""
    before = settings.num_threads()
    settings.set_num_threads(count)
    try:
        yield
    finally:
        settings.set_num_threads(before)


class Field:
    """Contenders, each with its process, on the same cores; inside ``with`` this process is on them too."""

    def __init__(
        self,
        names: Iterable[str],
        threads: int,
        *,
        cold: bool = False,
        ceilings: Ceilings | None = None,
        checkouts: Mapping[str, str] | None = None,
    ) -> None:
        """checkouts: further contenders, the cpu backend of another quatrefoil each, and where that is imported from."""
        self.threads = threads
        self.cold = cold
        self.ceilings = ceilings
        self.checkouts = checkouts or {}
        self.names = list(dict.fromkeys([*names, *self.checkouts]))
        self._contenders = {name: known.get("cpu" if name in self.checkouts else name) for name in self.names}
        self._before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self.cores = sorted(self._before)[-threads:]
        """The last cores: the first ones serve more interrupts."""
        self._workers = {
            name: Worker("cpu", threads, self.cores, cold, self.checkouts[name])
            if name in self.checkouts
            else Worker(name, threads, self.cores, cold)
            for name in self._contenders
        }
        self.probe: CoreProbe | None = None

    def __enter__(self) -> Field:
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        self.probe = self.probe or CoreProbe()
        return self

    def __exit__(self, *error: object) -> None:
        self.renew()
        if self.cores:
            os.sched_setaffinity(0, self._before)

    def renew(self) -> None:
        """Ends the processes; the next task finds new ones, in other places of memory."""
        for worker in self._workers.values():
            worker.close()

    def run(
        self,
        problems: Iterable[Problem | Entry | str],
        effort: Effort,
        *,
        tune: bool = False,
        judging: Judging | None = judge_of,
        seed: int = 0,
        begin: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> list[Record]:
        """As the function ``run``; ``judging`` None leaves the oracle out."""
        say, tell = begin or (lambda name: None), progress or (lambda record: None)
        records = []
        for problem in problems:
            entry = _entry(problem)
            say(entry.name)
            task = replace(read(entry.text), seed=seed)
            if tune:
                _tune(task, [name for name in self._workers if name in backends.names()])
            for record in self.compare(entry.name, task, judging, effort):
                records.append(record)
                tell(record)
        return records

    def compare(self, name: str, task: Task, judging: Judging | None, effort: Effort) -> list[Record]:
        """A record for each contender: verified first, then all that may be timed, in turn; then verified again, on the
        inputs of the last round and on others."""
        own = judging(task) if judging is not None else None
        records, works, refills = {}, {}, set()
        for contender, worker in self._workers.items():
            records[contender], answer = self._prepared(name, task, contender, worker)
            if isinstance(answer, Ready):
                records[contender] = judged(records[contender], answer.outputs, own)
                if answer.simulated is None and not records[contender].refused:
                    works[contender] = worker.time
                    if answer.refills:
                        refills.add(contender)

        def before(contender: str, number: int) -> None:
            if contender in refills:
                self._workers[contender].refill(TURNS[number % len(TURNS)])

        timings = interleaved(
            works,
            rounds=effort.rounds,
            round_seconds=effort.round_seconds,
            seconds_each=effort.seconds_each,
            exclusive=frozenset(name for name in works if self.threads == 1 and name not in ELSEWHERE),
            probe=self.probe,
            rest=REST_SECONDS if self.threads > 1 else 0.0,
            most_calls=1 if self.cold else MAX_CALLS,
            before=before,
        )
        other = judging(task.fresh(UNSEEN)) if judging is not None and refills else None
        for contender in works:
            records[contender] = self._settled(
                replace(records[contender], measured=timings.get(contender), cache="cold" if self.cold else "hot"),
                self._workers[contender],
                contender in refills and contender in timings,
                own,
                other,
            )
        return [self._limited(record, task) for record in records.values()]

    def _settled(self, record: Record, worker: Worker, refills: bool, own: Judge | None, other: Judge | None) -> Record:
        """The record of a timed contender, without its figure where what it gave during or after the rounds is wrong or
        was not computed anew."""
        timing = record.measured
        if timing is None:
            return replace(record, refused=str(worker.lost))
        if timing.disturbed:
            record = replace(record, note=f"{record.note}; {DISTURBED}".lstrip("; "))
        if refills:
            # Whoever remembers a result by where its inputs lie gives the wrong one, and whoever does so by what they are takes
            # longer for inputs that it has not seen.
            anew = 0.0
            for number, judge in ((0, own), (UNSEEN, other)):
                worker.refill(number)
                stretch = worker.time(1)
                outputs = worker.outputs() if stretch is not None else None
                if stretch is None or outputs is None:
                    return replace(record, measured=None, refused=str(worker.lost))
                anew = stretch.seconds
                if judge is None:
                    continue
                again = judged(record, outputs, judge)
                if again.refused or (number == UNSEEN and own is not None and _nearer(outputs, own, judge)):
                    said = again.refused or "those of others"
                    refused = f"on fresh inputs it gives other than the right outputs ({said})"
                    return replace(again, measured=None, wrong=True, refused=refused)
                if (again.error or 0.0) > (record.error or 0.0):  # the worst of what was compared
                    record = replace(record, error=again.error)
                record = replace(record, accurate=record.accurate and again.accurate, wrong=record.wrong or again.wrong)
            repeated = timing.least
            least_suspicious = max(SUSPICIOUS * repeated, WORTH_SUSPICION * record.threads)
            if timing.calls > 1 and anew > least_suspicious:
                anew = min(anew, self._alone(worker))
                if anew > least_suspicious:
                    refused = (
                        f"calls in a row take {repeated * 1e6:.1f} us each, one on fresh inputs {anew * 1e6:.1f} us: it does "
                        "not do the work each time"
                    )
                    return replace(record, measured=None, wrong=True, refused=refused)
        worker.drop()
        return replace(record, fresh=refills)

    @staticmethod
    def _alone(worker: Worker) -> float:
        """The least time of a call on inputs that were not there before."""
        least = math.inf
        for number in range(UNSEEN + 1, UNSEEN + 8):
            worker.refill(number)
            stretch = worker.time(1)
            least = min(least, math.inf if stretch is None else stretch.seconds)
        return least

    def _limited(self, record: Record, task: Task) -> Record:
        """The record with its limit, where ceilings of what it ran on were measured: a CPU's are no card's."""
        elsewhere = record.contender in ELSEWHERE
        if self.ceilings is None or record.measured is None or not task.work.bytes or elsewhere:
            return record
        least, by = self.ceilings.limit(task.problem, task.work, self.threads)
        beyond = task.problem is None or (record.chosen is not None and record.chosen.beyond)
        on_cpu = record.contender == "cpu" or record.contender in self.checkouts  # whose ceilings they are
        beats = on_cpu and not beyond and by == "arithmetic" and record.measured.median < BEYOND * least
        note = (
            f"{record.note}; faster than the machine's limit: not to be believed".lstrip("; ") if beats else record.note
        )
        return replace(record, limit_seconds=least, limit_by=by, beats_limit=beats, note=note)

    def _prepared(self, name: str, task: Task, contender: str, worker: Worker) -> tuple[Record, Ready | Reject | None]:
        ours = contender in backends.names() or contender in self.checkouts
        note = backends.get(contender).timing_note if contender in backends.names() else ""
        record = Record(
            name, task.text, task.op, contender, ours, threads=self.threads,
            macs=task.work.macs, bytes=task.work.bytes, note=note,
        )  # fmt: skip
        there = self._contenders[contender].probe()
        if not there.ready:
            return replace(record, refused=f"{there.detail}; to add it: {there.remedy}"), None
        if contender in backends.names() and backends.get(contender).simulated:
            # here, where a design may have been chosen; nothing of it is timed
            with threads_set(self.threads):
                prepared = self._contenders[contender].prepare(task, self.threads)
                answer = prepared if isinstance(prepared, Reject) else ready(prepared)
        else:
            answer = worker.prepare(task)
        if isinstance(answer, Reject):
            return replace(record, refused=str(answer)), None
        return (
            replace(
                record,
                kernel=answer.description,
                device=answer.device,
                simulated=answer.simulated,
                chosen=answer.chosen,
            ),
            answer,
        )


def method(field: Field, effort: Effort) -> list[str]:
    """How a field measures, in sentences with this run's parameters, for reports."""
    threads = "one thread" if field.threads == 1 else f"{field.threads} threads"
    return [
        "Every contender runs in a process of its own on the same core or cores and is compared with the oracle before it is "
        "timed, and again afterwards on inputs that it was not given before.",
        "Bringing fresh inputs to a contender, before each round, is never timed. Timed are: "
        + "; ".join(f"of {name}, {known.get(name).timed}" for name in field.names if name not in field.checkouts)
        + ".",
        f"Up to {effort.rounds} interleaved rounds of {effort.round_seconds * 1e3:g} ms, {threads}; a figure is the median over "
        "the rounds, its interval the 95 % one of order statistics.",
        "Contenders are called until two stretches in a row take as long within 5 %. A round is measured again that "
        "began or ended on a core below its usual speed, by a fixed loop, or of which another process took a part; of each "
        "contender as many as it has rounds, and a record says how many were (repeated) and how many then stayed (disturbed).",
        "Caches are flushed before each call, by writing 64 MiB: a larger last-level cache keeps something."
        if field.cold
        else "Calls follow each other on warm caches.",
        "Limits are those of a direct evaluation by ceilings measured in the same run.",
    ]


def _nearer(outputs: Sequence[np.ndarray | None], one: Judge, another: Judge) -> bool:
    """Whether outputs are nearer to what one judge wants than to what another does."""
    errors = [judge.check(outputs, QUANTISED_SLACK).error for judge in (one, another)]
    return (errors[0] or 0.0) < (errors[1] or 0.0)


def judged(record: Record, outputs: Sequence[np.ndarray | None], judge: Judge | None) -> Record:
    """The record with the comparison in it, refused where a result of ours is wrong."""
    if judge is None:
        return replace(record, note=f"not compared with the oracle; {record.note}".rstrip("; "))
    verdict = judge.check(outputs, 0 if record.ours else QUANTISED_SLACK, record.contender)
    error = verdict.error or 0.0
    refused = ""
    if record.ours and not verdict.passed:
        refused = f"its result is wrong in {verdict.failures} places (error {error:.2g})"
    elif error > ANOTHER:
        refused = f"it computes something else (error {error:.2g})"
    return replace(
        record,
        checked=verdict.compared_with,
        error=verdict.error,
        accurate=verdict.accurate,
        wrong=not verdict.passed,
        refused=refused,
    )
