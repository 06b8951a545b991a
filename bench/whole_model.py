"""A whole model on backends and on onnxruntime: the same inputs, the results compared, then timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quatrefoil import backends
from quatrefoil.bench.machine import package_version
from quatrefoil.bench.peers import failures, get, session_options
from quatrefoil.bench.records import Record
from quatrefoil.bench.runner import Work, cost_of, threads_set
from quatrefoil.bench.timing import interleaved
from quatrefoil.errors import BackendUnavailable, NoKernelError
from quatrefoil.models import Model, load
from quatrefoil.registry import collect_costs

TOLERANCE = 1e-3
"""Largest difference of an output from the one compared with, as a share of its largest value."""

Outputs = Mapping[str, np.ndarray]


def run_model(
    path: str | Path,
    feeds: Mapping[str, np.ndarray],
    on: Sequence[str] = ("cpu",),
    peers: Sequence[str] = (),
    *,
    threads: int = 1,
    rounds: int = 9,
    begin: Callable[[str], None] | None = None,
) -> list[Record]:
    """A record for each contender. Results are compared with onnxruntime's where it is among the peers, else with
    the first backend's; one that differs by more than 1e-3 of the largest value is refused and not timed. ``begin`` is
    called with what happens next: each contender's first run, then the timing of all."""
    say = begin or (lambda step: None)
    model = load(path)
    found: list[tuple[Record, Outputs | None, Work | None]] = []
    with threads_set(threads):
        if "ort" in peers:
            say("ort")
            found.append(_onnxruntime(path, feeds, threads))
        for name in on:
            say(name)
            found.append(_backend(model, path, feeds, name, threads))
        first = next(((record, outputs) for record, outputs, _ in found if outputs is not None), None)
        judged = []
        contenders: dict[str, Work] = {}
        for record, outputs, work in found:
            if first is not None and outputs is not None and record is not first[0]:
                record = _compared(record, outputs, first[0].contender, first[1])
            if work is not None and not record.refused:
                contenders[record.contender] = work
            judged.append(record)
        say("timing in turn")
        timings = interleaved(contenders, rounds=rounds)
    return [replace(record, measured=timings.get(record.contender)) for record in judged]


def _compared(record: Record, outputs: Outputs, with_whom: str, wanted: Outputs) -> Record:
    error = 0.0
    for name, reference in wanted.items():
        if outputs[name].shape != reference.shape:
            return replace(
                record, checked=with_whom, wrong=True, refused=f"its output {name} has another shape than {with_whom}'s"
            )
        if reference.size:
            scale = float(np.abs(reference.astype(np.float64)).max()) or 1.0
            apart = np.abs(outputs[name].astype(np.float64) - reference.astype(np.float64))
            error = max(error, float(apart.max()) / scale)
    refused = "" if error <= TOLERANCE else f"its outputs differ from {with_whom}'s by {error:.2g} of the largest value"
    return replace(record, checked=with_whom, error=error, wrong=bool(refused), refused=refused)


def _record(path: str | Path, contender: str, ours: bool, threads: int) -> Record:
    return Record(Path(path).name, f"model {Path(path).name}", "model", contender, ours, threads=threads)


def _backend(
    model: Model, path: str | Path, feeds: Mapping[str, np.ndarray], name: str, threads: int
) -> tuple[Record, Outputs | None, Work | None]:
    house = backends.get(name)
    record = replace(_record(path, name, True, threads), note=house.timing_note)
    there = house.probe()
    if not there.ready:
        return replace(record, refused=f"{there.detail}; to add it: {there.remedy}"), None, None
    try:
        with collect_costs() as costs:
            outputs = {key: np.asarray(value) for key, value in model.run(feeds, backend=name).items()}
    except (BackendUnavailable, NoKernelError) as error:
        return replace(record, refused=str(error)), None, None
    count = len(model.graph.nodes)
    record = replace(record, kernel=f"{count} nodes", device=house.device(), simulated=cost_of(costs))

    def work(calls: int) -> None:
        for _ in range(calls):
            model.run(feeds, backend=name)

    return record, outputs, None if house.simulated else work


def _onnxruntime(
    path: str | Path, feeds: Mapping[str, np.ndarray], threads: int
) -> tuple[Record, Outputs | None, Work | None]:
    record = _record(path, "ort", False, threads)
    there = get("ort").probe()
    if not there.ready:
        return replace(record, refused=f"{there.detail}; to add it: {there.remedy}"), None, None
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), session_options(threads), ["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, (np.asarray(array) for array in session.run(names, dict(feeds)))))
    except failures() as error:
        return replace(record, refused=f"onnxruntime refuses it: {str(error).splitlines()[0]}"), None, None
    record = replace(record, kernel=f"onnxruntime {package_version('onnxruntime')}")

    def work(calls: int) -> None:
        for _ in range(calls):
            session.run(names, dict(feeds))

    return record, outputs, work
