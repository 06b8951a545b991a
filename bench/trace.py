"""A model's run as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing show: one bar for each node.

The format is the Trace Event Format's JSON object: ``traceEvents`` with complete events (``ph`` is X, ``ts`` and ``dur``
in microseconds) and metadata (``ph`` is M) that name processes and threads. Measured nodes stand where they ran in the
quickest of the profile's runs; nodes of one native sequence stand one after the other. Simulated nodes have a process of
their own, whose name says that its microseconds are those of the design's clock: one time axis never holds both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrefoil import backends
from quatrefoil.asic_sim import SimulationReport
from quatrefoil.bench.nodes import LimitedNode
from quatrefoil.bench.page import write_text
from quatrefoil.models import NodeProfile

Event = dict[str, Any]


def document(profiles: Mapping[str, Sequence[NodeProfile]], model: str = "model") -> dict[str, Any]:
    """The trace of one model's runs, each backend's profile under its name, as plain data."""
    events: list[Event] = []
    names: list[Event] = []
    process = 0
    for backend, nodes in profiles.items():
        measured = [node for node in nodes if node.span is not None]
        simulated = [node for node in nodes if node.microseconds is not None]
        if measured:
            process += 1
            rest = ", the operators that are not simulated" if simulated else ""
            note = "" if simulated else backends.get(backend).timing_note
            names += _named(process, f"{model} on {backend}{rest}: measured", _threads(measured), note)
            events += _measured(process, measured)
        if simulated:
            process += 1
            design = simulated[0].device
            title = f"{model} on {backend}: SIMULATED, in microseconds of the design's clock ({design})"
            names += _named(
                process, title, {1: "simulated, one node after the other"}, backends.get(backend).timing_note
            )
            events += _simulated(process, simulated)
    events.sort(key=lambda event: event["ts"])
    return {"traceEvents": names + events, "displayTimeUnit": "ns", "otherData": {"model": model, "by": "quatrefoil"}}


PARTS = {
    "dram_weights": "DRAM: weights in",
    "dram_activations": "DRAM: activations in",
    "dram_outputs": "DRAM: results out",
    "loading": "a resting tile is laid in",
    "array": "the array",
    "vector": "the vector unit",
}


def chip_document(layers: Sequence[tuple[str, SimulationReport]], most: int = 1_000_000) -> dict[str, Any]:
    """What each part of a simulated chip does, layer by layer, in microseconds of the design's clock. Raises
    QuatrefoilError where it is more than ``most`` events."""
    design = layers[0][1].design
    tracks: dict[tuple[str, int, int], str] = {}
    for core in range(design.cores):
        whose = f", core {core + 1}" if design.cores > 1 else ""
        tracks |= {(name, 0, core): title + whose for name, title in PARTS.items()}
        for channel in range(1, design.dram_channels):
            tracks |= {
                (name, channel, core): f"{title}, channel {channel + 1}{whose}"
                for name, title in PARTS.items()
                if name.startswith("dram_")
            }
    rows = {track: number for number, track in enumerate(tracks, 2)}
    threads = {1: "layers", **{number: tracks[track] for track, number in rows.items()}}
    said = f"SIMULATED, in microseconds of the design's clock ({design})"
    names, start = list(_named(1, said, threads, "")), 0
    events: list[Event] = []
    for name, report in layers:
        found = report.events(most - len(events))
        about = {"problem": report.problem, "cycles, simulated": report.cycles}
        events.append(_span(1, name, start, start + report.cycles, design.clock_mhz, about))
        for event in found:
            about = {"cycles, simulated": event.end - event.begin}
            if event.bytes:
                about["bytes"] = event.bytes
            span = start + event.begin, start + event.end
            row = rows[event.part, event.channel, event.core]
            events.append(_span(row, PARTS[event.part], *span, design.clock_mhz, about))
        start += report.cycles
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    return {"traceEvents": names + events, "displayTimeUnit": "ns", "otherData": {"by": "quatrefoil"}}


def _span(thread: int, name: str, begin: int, end: int, clock_mhz: float, about: Mapping[str, Any]) -> Event:
    first = begin / clock_mhz
    return {
        "ph": "X", "name": name, "cat": "simulated", "pid": 1, "tid": thread, "ts": first,
        "dur": end / clock_mhz - first, "args": dict(about),
    }  # fmt: skip


def write(path: Path, profiles: Mapping[str, Sequence[NodeProfile]], model: str = "model") -> None:
    """The trace as a file. Raises QuatrefoilError where it cannot be written."""
    write_text(path, json.dumps(document(profiles, model), allow_nan=False) + "\n")


def _threads(nodes: Sequence[NodeProfile]) -> dict[int, str]:
    """The rows of a process: a backend's kernels, and what the host does between them."""
    return dict(enumerate(dict.fromkeys(node.backend for node in nodes), 1))


def _named(process: int, title: str, threads: Mapping[int, str], labels: str) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": title}}
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
    if labels:
        yield {"ph": "M", "name": "process_labels", "pid": process, "tid": 0, "args": {"labels": labels}}
    for number, name in threads.items():
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": number, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": process, "tid": number, "args": {"sort_index": number}}


def _measured(process: int, nodes: Sequence[NodeProfile]) -> Iterator[Event]:
    rows = {name: number for number, name in _threads(nodes).items()}
    for node in nodes:
        assert node.span is not None
        yield _event(process, rows[node.backend], node, *node.span)


def _simulated(process: int, nodes: Sequence[NodeProfile]) -> Iterator[Event]:
    begin = 0.0
    for node in nodes:
        assert node.microseconds is not None
        end = begin + node.microseconds * 1e-6
        yield _event(process, 1, node, begin, end)
        begin = end


def _event(process: int, thread: int, node: NodeProfile, begin: float, end: float) -> Event:
    """A complete event; both ends are rounded to nanoseconds, so that neighbours never overlap."""
    first, last = round(begin * 1e9), round(end * 1e9)
    about = {
        "kernel": node.kernel,
        "backend": node.backend,
        "layout": node.layout,
        "why": node.why,
        "device": node.device,
        "problem": node.problem,
        "share of the run": f"{node.share:.1%}" if node.share else None,
        "cycles, simulated": node.cycles,
        "least measured us": None if node.seconds is None else round(node.seconds * 1e6, 3),
        "limit us": None if (limit := _limit(node)) is None else round(limit * 1e6, 3),
    }
    return {
        "ph": "X",
        "name": f"{node.name} ({node.op})",
        "cat": f"{node.backend},{'simulated' if node.cycles is not None else 'measured'}",
        "pid": process,
        "tid": thread,
        "ts": first / 1000,
        "dur": (last - first) / 1000,
        "args": {key: value for key, value in about.items() if value not in (None, "")},
    }


def _limit(node: NodeProfile) -> float | None:
    return node.limit_seconds if isinstance(node, LimitedNode) else None
