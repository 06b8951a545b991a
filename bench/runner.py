"""Benchmarks: problems on backends and peers, verified first, then timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quatrefoil import backends, dispatch, ops, settings
from quatrefoil.bench import inputs as made_up
from quatrefoil.bench import peers as others
from quatrefoil.bench.records import Record, Simulated
from quatrefoil.bench.suites import Entry
from quatrefoil.bench.timing import interleaved
from quatrefoil.bench.verify import Oracle, Verdict
from quatrefoil.errors import BackendUnavailable, NoKernelError
from quatrefoil.problem import Problem
from quatrefoil.registry import Reject, SimulatedCost, collect_costs

QUANTISED_SLACK = 1
"""A peer may round a requantised value the other way; ours may not."""

Work = Callable[[int], None]
Progress = Callable[[Record], None]


def run(
    problems: Iterable[Problem | Entry | str],
    on: Sequence[str] = ("cpu",),
    peers: Sequence[str] = (),
    *,
    threads: int = 1,
    rounds: int = 9,
    tune: bool = False,
    verify: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Record]:
    """Benchmark problems (their text forms, or entries of suites) on backends (``on``) and peers.

    Each contender's result is compared with the oracle; one that fails is recorded and not timed. ``verify=False``
    leaves the oracle out, and the records say so. ``progress`` is called with each record when it is complete.
    Simulated backends run once and give cycles.
    """
    records = []
    with threads_set(threads):
        for problem in problems:
            entry = _entry(problem)
            arrays = made_up.arrays(entry.problem, seed)
            oracle = Oracle(entry.problem, arrays) if verify else None
            job = _Job(entry.name, entry.problem, arrays, oracle, threads, tune)
            for record in _compare(job, on, peers, rounds):
                records.append(record)
                if progress is not None:
                    progress(record)
    return records


def _entry(problem: Problem | Entry | str) -> Entry:
    if isinstance(problem, Entry):
        return problem
    parsed = ops.parse(problem) if isinstance(problem, str) else problem
    return Entry(parsed.text, parsed)


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """Kernels use this many threads inside the block."""
    before = settings.num_threads()
    settings.set_num_threads(count)
    try:
        yield
    finally:
        settings.set_num_threads(before)


def cost_of(costs: Sequence[SimulatedCost]) -> Simulated | None:
    """What one run reported, summed over its parts; None when it reported nothing."""
    if not costs:
        return None
    counters: dict[str, int] = {}
    for cost in costs:
        for name, value in cost.counters.items():
            counters[name] = counters.get(name, 0) + value
    return Simulated(
        design=costs[0].design,
        cycles=sum(cost.cycles for cost in costs),
        clock_mhz=costs[0].clock_mhz,
        dram_bytes=sum(cost.dram_bytes for cost in costs),
        counters=counters,
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One problem with its inputs and what its results are compared with."""

    name: str
    problem: Problem
    arrays: Sequence[np.ndarray | None]
    oracle: Oracle | None
    threads: int
    tune: bool

    def record(self, contender: str, **more: Any) -> Record:
        work = ops.SPECS[self.problem.op].work(self.problem)
        return Record(
            name=self.name,
            problem=self.problem.text,
            op=self.problem.op,
            contender=contender,
            threads=self.threads,
            macs=work.macs,
            bytes=work.bytes,
            **more,
        )

    def judged(self, record: Record, outputs: Sequence[np.ndarray | None], slack: int = 0) -> Record:
        """The record with the comparison in it, refused where the result is wrong."""
        if self.oracle is None:
            return replace(record, note=f"not compared with the oracle; {record.note}".rstrip("; "))
        verdict: Verdict = self.oracle.check(outputs, slack)
        wrong = (
            "" if verdict.passed else f"its result is wrong in {verdict.failures} places (error {verdict.error:.2g})"
        )
        return replace(
            record, checked=verdict.compared_with, error=verdict.error, wrong=not verdict.passed, refused=wrong
        )


def _compare(job: _Job, names: Sequence[str], peers: Sequence[str], rounds: int) -> Iterator[Record]:
    """Every contender verified first, then all that may be timed, in turn."""
    found: list[Record] = []
    contenders: dict[str, Work] = {}
    for contender, make in [*((name, _ours) for name in names), *((name, _theirs) for name in peers)]:
        record, work = make(job, contender)
        found.append(record)
        if work is not None and not record.refused:
            contenders[contender] = work
    timings = interleaved(contenders, rounds=rounds)
    for record in found:
        yield replace(record, measured=timings.get(record.contender))


def _ours(job: _Job, name: str) -> tuple[Record, Work | None]:
    house = backends.get(name)
    record = job.record(name, ours=True, note=house.timing_note)
    try:
        dispatch.select(job.problem, name).chosen  # noqa: B018 - raises before anything is brought to a missing device
        constants = {i: house.put(array) for i, array in made_up.parameters(job.problem, list(job.arrays)).items()}
        plan = dispatch.plan_problem(job.problem, constants, name, tune=job.tune)
    except (BackendUnavailable, NoKernelError) as error:
        return replace(record, refused=str(error)), None
    native = [
        constants[i] if i in constants else None if array is None else house.put(array)
        for i, array in enumerate(job.arrays)
    ]
    with collect_costs() as costs:
        outputs = [house.get(array) for array in plan.run(native)]
    record = replace(record, kernel=plan.kernel.id, device=house.device(), simulated=cost_of(costs))
    record = job.judged(record, outputs)

    def work(calls: int) -> None:
        for _ in range(calls):
            last = plan.run(native)
        house.get(last[0])  # waits for a device that runs behind

    return record, None if house.simulated else work


def _theirs(job: _Job, name: str) -> tuple[Record, Work | None]:
    peer = others.get(name)
    record = job.record(name, ours=False)
    there = peer.probe()
    if not there.ready:
        return replace(record, refused=f"{there.detail}; to add it: {there.remedy}"), None
    prepared = peer.prepare(job.problem, job.arrays, job.threads)
    if isinstance(prepared, Reject):
        return replace(record, refused=str(prepared)), None
    record = job.judged(replace(record, kernel=prepared.description), prepared.outputs(), QUANTISED_SLACK)

    def work(calls: int) -> None:
        for _ in range(calls):
            prepared.run()

    return record, work
