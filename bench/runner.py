"""Benchmarks: tasks on backends and peers, verified first, then timed side by side, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from quatrefoil import backends, dispatch, settings
from quatrefoil.bench import contenders as known
from quatrefoil.bench.records import Record
from quatrefoil.bench.suites import Entry
from quatrefoil.bench.tasks import Task, read
from quatrefoil.bench.timing import CoreProbe, interleaved
from quatrefoil.bench.verify import Judge, judge_of
from quatrefoil.bench.worker import Ready, Worker, ready
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

Progress = Callable[[Record], None]


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
    begin: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Benchmark problems (their text forms, or entries of suites) on backends (``on``) and peers.

    Each contender's result is compared with the oracle. One of ours that fails is recorded and not timed; a peer's is
    timed and marked as not accurate. ``verify=False`` leaves the oracle out, and the records say so. Simulated
    backends run once and give cycles. ``begin`` is called with each entry's name before it, ``progress`` with each
    record when it is complete.
    """
    with Field([*on, *peers], threads) as field:
        return field.run(problems, effort, tune=tune, verify=verify, seed=seed, begin=begin, progress=progress)


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

    def __init__(self, names: Sequence[str], threads: int) -> None:
        self.threads = threads
        self.names = list(dict.fromkeys(names))
        self._contenders = {name: known.get(name) for name in self.names}
        self._before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self.cores = sorted(self._before)[-threads:]
        """The last cores: the first ones serve more interrupts."""
        self._workers = {name: Worker(name, threads, self.cores) for name in self._contenders}
        self.probe: CoreProbe | None = None

    def __enter__(self) -> Field:
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        self.probe = CoreProbe()
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.close()
        if self.cores:
            os.sched_setaffinity(0, self._before)

    def run(
        self,
        problems: Iterable[Problem | Entry | str],
        effort: Effort,
        *,
        tune: bool = False,
        verify: bool = True,
        seed: int = 0,
        begin: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> list[Record]:
        """As the function ``run``."""
        say, tell = begin or (lambda name: None), progress or (lambda record: None)
        records = []
        for problem in problems:
            entry = _entry(problem)
            say(entry.name)
            task = replace(read(entry.text), seed=seed)
            if tune:
                _tune(task, [name for name in self._workers if name in backends.names()])
            for record in self.compare(entry.name, task, judge_of(task) if verify else None, effort):
                records.append(record)
                tell(record)
        return records

    def compare(self, name: str, task: Task, judge: Judge | None, effort: Effort) -> list[Record]:
        """A record for each contender: verified first, then all that may be timed, in turn."""
        records, works = [], {}
        for contender, worker in self._workers.items():
            record, answer = self._prepared(name, task, contender, worker)
            if isinstance(answer, Ready):
                record = judged(record, answer.outputs, judge)
                if answer.simulated is None and not record.refused:
                    works[contender] = worker.time
            records.append(record)
        timings = interleaved(
            works,
            rounds=effort.rounds,
            round_seconds=effort.round_seconds,
            seconds_each=effort.seconds_each,
            exclusive=frozenset(name for name in works if self.threads == 1 and name not in ELSEWHERE),
            probe=self.probe,
            rest=REST_SECONDS if self.threads > 1 else 0.0,
        )
        lost = {contender: self._workers[contender].lost for contender in works if contender not in timings}
        for contender in timings:
            self._workers[contender].drop()
        return [
            replace(
                record,
                measured=timings.get(record.contender),
                refused=str(lost[record.contender]) if record.contender in lost else record.refused,
            )
            for record in records
        ]

    def _prepared(self, name: str, task: Task, contender: str, worker: Worker) -> tuple[Record, Ready | Reject | None]:
        ours = contender in backends.names()
        record = Record(
            name, task.text, task.op, contender, ours, threads=self.threads,
            macs=task.work.macs, bytes=task.work.bytes, note=backends.get(contender).timing_note if ours else "",
        )  # fmt: skip
        there = self._contenders[contender].probe()
        if not there.ready:
            return replace(record, refused=f"{there.detail}; to add it: {there.remedy}"), None
        if ours and backends.get(contender).simulated:
            # here, where a design may have been chosen; nothing of it is timed
            with threads_set(self.threads):
                prepared = self._contenders[contender].prepare(task, self.threads)
                answer = prepared if isinstance(prepared, Reject) else ready(prepared)
        else:
            answer = worker.prepare(task)
        if isinstance(answer, Reject):
            return replace(record, refused=str(answer)), None
        return replace(record, kernel=answer.description, device=answer.device, simulated=answer.simulated), answer


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
