"""Many designs of the simulated chip for one network: which cycles, traffic and size each has, and which are the best.

A network is what a problem or a whole model asks of a design (``Workload``); a design is a base design with other
values for some of its fields. Designs come from the whole grid of values, from a random part of it, or from Optuna's
search. They are evaluated in this process or by the workers of a Dask cluster (``spread``), some at a time; a lost
worker's go to another one. Each is kept in a file as it comes, a line of JSON after a first line that says what the sweep
is, from which a later run goes on. A design that cannot be built, or that cannot run the network, is kept with its reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.asic_sim import Hardware, hardware
from quatrefoil.bench import spread
from quatrefoil.bench.machine import package_version
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import Model
from quatrefoil.models.simulation import HOST, ModelReport, Workload, cost, workload
from quatrefoil.problem import Problem

Value = int | float | str | bool

GRID, RANDOM, OPTUNA = "grid", "random", "optuna"
INSTALL = "pip install 'quatrefoil[sweep]'"
MOST_DESIGNS = 1_000_000
AT_ONCE = 16
"""Designs in a task of a worker, at most."""
BATCH = 32
"""Designs that Optuna suggests before it is told what came of them."""
FRUITLESS = 20
"""Batches without a new design after which Optuna's search ends."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A figure of a design, the less the better: what it is, with its unit, and how it follows from the network's report."""

    label: str
    of: Callable[[ModelReport], float]


OBJECTIVES: Mapping[str, Objective] = {
    "cycles": Objective("cycles", lambda report: report.cycles),
    "microseconds": Objective("us at the design's clock", lambda report: report.microseconds),
    "dram_bytes": Objective("bytes from and to DRAM", lambda report: report.dram_bytes),
    "energy_pj": Objective("pJ, the middle of the band", lambda report: report.energy_pj),
    "area_mm2": Objective("mm2, the middle of the band", lambda report: report.area_mm2),
    "elements": Objective("elements of the arrays", lambda report: report.design.elements),
    "sram_kib": Objective("KiB of memory on the chip", lambda report: _sram_kib(report.design)),
}
"""All are recorded for every design; a sweep names those by which designs are compared."""


def _sram_kib(design: Hardware) -> float:
    accumulators = design.accumulator_entries * design.array_columns * 4 / 1024
    return design.cores * (design.activation_sram_kib + design.weight_sram_kib + accumulators)


@dataclass(frozen=True, slots=True)
class Axis:
    """Values for one field of a design, or for several that take the same value."""

    fields: tuple[str, ...]
    values: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{'+'.join(self.fields)}={','.join(map(str, self.values))}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A design by its fields' values, and its figures by objective; or None, and why there are none."""

    values: Mapping[str, Value]
    figures: Mapping[str, float] | None
    refused: str = ""

    @property
    def key(self) -> tuple[tuple[str, Value], ...]:
        return tuple(sorted(self.values.items()))

    def as_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values), "figures": self.figures, "refused": self.refused}


# What is swept ------------------------------------------------------------------------------------------------------


def axis(text: str, base: Hardware) -> Axis:
    """Reads ``array_rows=8,16,32``, ``dram_bytes_per_cycle=4:64:*2`` (both ends, doubled each time), ``=4:64:4`` or ``=4:8``
    (steps of 1); ``array_rows+array_columns=8,16`` gives both fields the same value. Raises QuatrefoilError."""
    names, equals, said = text.partition("=")
    known = _fields(base)
    chosen = tuple(name.strip() for name in names.split("+"))
    if not equals or not said.strip():
        raise QuatrefoilError(f"--over {text!r} has no values; write field=8,16,32 or field=4:64:*2")
    for name in chosen:
        if name not in known:
            raise QuatrefoilError(f"--over {text!r}: a design has no field {name!r}; it has {', '.join(known)}")
    kinds = {type(known[name]) for name in chosen}
    if len(kinds) > 1:
        raise QuatrefoilError(f"--over {text!r}: the fields are of different types")
    kind = kinds.pop()
    values = [value for part in said.split(",") for value in _values(part.strip(), kind, text)]
    return Axis(chosen, tuple(dict.fromkeys(values)))


def _fields(base: Hardware) -> dict[str, Value]:
    return {field.name: getattr(base, field.name) for field in fields(base) if field.name not in ("name", "formats")}


def _values(part: str, kind: type, text: str) -> list[Value]:
    if ":" not in part or kind in (str, bool):
        return [_value(part, kind, text)]
    first, last, *step = part.split(":")
    low, high = _number(first, kind, text), _number(last, kind, text)
    said = step[0].strip() if step else "1"
    product = said.startswith("*")
    by = _number(said[1:] if product else said, float if product else kind, text)
    if len(step) > 1 or (by <= 1 if product else by <= 0) or (product and low <= 0) or high < low:
        raise QuatrefoilError(f"--over {text!r}: {part} is no range; write 4:64:*2 or 4:64:4, upwards")
    if product:
        count = math.floor(math.log(high / low) / math.log(by) + 1e-9) + 1
        found = [low * by**place for place in range(count)]
    else:
        found = [low + by * place for place in range(math.floor((high - low) / by + 1e-9) + 1)]
    return [round(value) if kind is int else value for value in found]


def _number(text: str, kind: type, whole: str) -> float:
    value = _value(text.strip(), kind, whole)
    assert isinstance(value, (int, float))
    return value


def _value(text: str, kind: type, whole: str) -> Value:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise QuatrefoilError(f"--over {whole!r}: {text!r} is neither true nor false")
        return text.lower() == "true"
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        wanted = "whole number" if kind is int else "number"
        raise QuatrefoilError(f"--over {whole!r}: {text!r} is no {wanted}") from None


def weighs(base: Hardware, axes: Sequence[Axis]) -> bool:
    """Whether weights' numbers matter on some of the designs."""
    return base.compresses or any(name in hardware.COMPRESSION_KEYS for one in axes for name in one.fields)


def network_of(target: Problem | Model, feeds: Mapping[str, Any] | None = None, weights: bool = False) -> Workload:
    """What a problem or a whole model asks of a design, and what no design can time, by the operators' names. ``feeds`` as for
    ``Model.explain``: nothing of the house is computed. weights: look at a model's weights, too. Raises QuatrefoilError
    where nothing takes time."""
    asked = workload(target, feeds, weights)
    if not any(operation.moves for operation in asked.operations):
        raise QuatrefoilError("the model has no operator that the simulator computes")
    return asked


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is asked.

    method      ``grid``: all; ``random``: ``number`` different designs; ``optuna``: as many, by its search
    objectives  by which designs are compared; names of OBJECTIVES
    as_format   what floats are taken for, as for ``simulate``
    """

    network: Workload
    base: Hardware
    axes: tuple[Axis, ...]
    method: str = GRID
    number: int = 0
    seed: int = 0
    objectives: tuple[str, ...] = ("cycles", "energy_pj", "area_mm2")
    as_format: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or not self.objectives:
            given = unknown[0] if unknown else "nothing"
            raise QuatrefoilError(f"there is no objective {given!r}; there are {', '.join(OBJECTIVES)}")
        named = [name for one in self.axes for name in one.fields]
        again = next((name for name, count in Counter(named).items() if count > 1), None)
        if not named or again is not None:
            said = "nothing is varied" if again is None else f"{again} is varied twice"
            raise QuatrefoilError(f"{said}; give --over field=values once for each field")
        if self.method != GRID and self.number < 1:
            raise QuatrefoilError(f"a {self.method} sweep of {self.number} designs; give 1 or more")
        if self.count > MOST_DESIGNS:
            raise QuatrefoilError(f"these are {self.count:,} designs; give fewer values, or take some with --random")

    @property
    def size(self) -> int:
        """Designs in the whole grid."""
        return math.prod(len(one.values) for one in self.axes)

    @property
    def count(self) -> int:
        """Designs that are asked for."""
        return self.size if self.method == GRID else min(self.number, self.size)

    def values(self, number: int) -> dict[str, Value]:
        """The design of this number in the grid, the last axis varying fastest."""
        places = []
        for one in reversed(self.axes):
            number, place = divmod(number, len(one.values))
            places.append(place)
        return self.at(places[::-1])

    def at(self, places: Sequence[int]) -> dict[str, Value]:
        """The design with these places in the axes' values."""
        return {name: one.values[place] for one, place in zip(self.axes, places) for name in one.fields}

    def as_dict(self) -> dict[str, Any]:
        """What makes two sweeps the same, in plain data. Objectives matter only where they lead the search."""
        return {
            "network": self.network.lines,
            "as_format": self.as_format,
            "design": {**asdict(self.base), "formats": dict(self.base.formats)},
            "axes": [[list(one.fields), list(one.values)] for one in self.axes],
            "method": self.method,
            "number": None if self.method == GRID else self.number,
            "seed": None if self.method == GRID else self.seed,
            "objectives": list(self.objectives) if self.method == OPTUNA else None,
            "figures": list(OBJECTIVES),
            "quatrefoil": package_version("quatrefoil"),
        }

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:12]


# Evaluation ---------------------------------------------------------------------------------------------------------


def evaluate(network: Workload, design: Hardware, as_format: str | None = None) -> dict[str, float]:
    """Every objective of a design; what no design can time takes nothing. Raises QuatrefoilError where it cannot run the
    network."""
    report = cost(network, design, HOST, as_format)
    refused = [layer for layer, each in zip(report.layers, network.operations) if layer.why and not each.why]
    if refused:
        raise QuatrefoilError(f"asic: {refused[0].op}: {refused[0].why}")
    return {name: objective.of(report) for name, objective in OBJECTIVES.items()}


def outcomes(
    network: Workload, base: Hardware, designs: Sequence[Mapping[str, Value]], as_format: str | None
) -> list[Outcome]:
    """A task of a worker."""
    found = []
    for values in designs:
        try:
            found.append(Outcome(values, evaluate(network, replace(base, **values), as_format)))  # type: ignore[arg-type]
        except QuatrefoilError as error:
            found.append(Outcome(values, None, str(error)))
    return found


def run(
    asked: Sweep,
    *,
    scheduler: str | None = None,
    keep: Path | None = None,
    done: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Every design once; those that are kept already come first.

    scheduler   None: in this process; "local", or a Dask scheduler's address
    keep        the file for what is done, whose designs are not evaluated again
    done        called with the number of designs that are done, as they come

    Raises QuatrefoilError where the file is of another sweep, Dask or Optuna is not installed, nobody answers, or tasks
    failed; what is done is kept.
    """
    if asked.method == OPTUNA and util.find_spec("optuna") is None:
        raise QuatrefoilError(f"this search needs Optuna; to add it: {INSTALL}")
    found = {outcome.key: outcome for outcome in (_kept(keep, asked) if keep is not None else [])}
    failed: list[str] = []

    def take(designs: Sequence[Mapping[str, Value]], client: Any) -> list[Outcome]:
        """Evaluates those that are not known."""
        new = {tuple(sorted(values.items())): values for values in designs}
        left = [values for key, values in new.items() if key not in found]
        taken = []
        for chunk in _evaluated(asked, left, client):
            if isinstance(chunk, BaseException):
                failed.append(str(chunk))
                continue
            taken += chunk
            found.update((outcome.key, outcome) for outcome in chunk)
            if keep is not None:
                spread.append(keep, [outcome.as_dict() for outcome in chunk])
            if done is not None:
                done(len(found))
        return taken

    if keep is not None and not found:
        _begin(keep, asked)
    if len(found) < asked.count:
        with ExitStack() as stack:
            client = None if scheduler is None else stack.enter_context(spread.cluster_client(scheduler, True))
            if asked.method == OPTUNA:
                _search(asked, found, lambda designs: take(designs, client))
            else:
                numbers: Sequence[int] = range(asked.size)
                if asked.method == RANDOM:
                    numbers = random.Random(asked.seed).sample(numbers, asked.count)
                take([asked.values(number) for number in numbers], client)
    if failed:
        kept = "not kept: give a file to keep them in" if keep is None else f"kept in {keep}"
        raise QuatrefoilError(f"{len(failed)} tasks failed ({'; '.join(dict.fromkeys(failed))}); the others are {kept}")
    return list(found.values())


def _evaluated(
    asked: Sweep, designs: Sequence[Mapping[str, Value]], client: Any
) -> Iterator[list[Outcome] | BaseException]:
    workers = os.cpu_count() or 1
    size = max(1, min(AT_ONCE, len(designs) // (4 * workers)))
    calls = [
        (asked.network, asked.base, designs[begin : begin + size], asked.as_format)
        for begin in range(0, len(designs), size)
    ]
    if client is None:
        yield from (outcomes(*call) for call in calls)
    else:
        yield from (result for _, result in spread.as_they_come(client, outcomes, calls))


def _kept(path: Path, asked: Sweep) -> list[Outcome]:
    """What a file holds of this sweep. Raises QuatrefoilError where it is of another one."""
    if not path.exists():
        return []
    rows: list[Mapping[str, Any]] = spread.lines(path, dict, "result of a sweep")
    if not rows:
        return []
    head, rest = rows[0], rows[1:]
    if "sweep" not in head:
        raise QuatrefoilError(f"{path} holds no sweep; give another file")
    if head["sweep"] != asked.digest:
        mine = json.loads(json.dumps(asked.as_dict()))
        apart = ", ".join(name for name, value in mine.items() if head.get(name) != value)
        raise QuatrefoilError(f"{path} holds another sweep (it differs in {apart}); give another file")
    return [Outcome(row["values"], row["figures"], row["refused"]) for row in rest]


def _begin(path: Path, asked: Sweep) -> None:
    if not path.exists() or not spread.lines(path, dict, "result of a sweep"):
        spread.append(path, [{"sweep": asked.digest, **asked.as_dict()}])


def _search(
    asked: Sweep,
    found: Mapping[tuple[tuple[str, Value], ...], Outcome],
    take: Callable[[Sequence[Mapping[str, Value]]], list[Outcome]],
) -> None:
    """Optuna's search over the places in the axes: NSGA-II for several objectives, TPE for one."""
    optuna: Any = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = asked.seed + len(found)  # one that goes on must not suggest the same again
    several = len(asked.objectives) > 1
    sampler = optuna.samplers.NSGAIISampler(seed=seed) if several else optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(directions=["minimize"] * len(asked.objectives), sampler=sampler)
    spaces = {str(one): optuna.distributions.IntDistribution(0, len(one.values) - 1) for one in asked.axes}
    complete, fail = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
    for outcome in found.values():
        places = {str(one): one.values.index(outcome.values[one.fields[0]]) for one in asked.axes}
        numbers, state = (None, fail) if outcome.figures is None else (_compared(outcome, asked.objectives), complete)
        study.add_trial(
            optuna.trial.create_trial(state=state, params=places, distributions=spaces, values=numbers),
        )
    fruitless = 0
    while len(found) < asked.count and fruitless < FRUITLESS:
        trials = [study.ask(spaces) for _ in range(min(BATCH, asked.count - len(found)))]
        designs = [asked.at([trial.params[name] for name in spaces]) for trial in trials]
        fruitless = 0 if take(designs) else fruitless + 1
        for trial, values in zip(trials, designs):
            known = found.get(tuple(sorted(values.items())))
            if known is None or known.figures is None:
                study.tell(trial, state=fail)
            else:
                study.tell(trial, _compared(known, asked.objectives))


def _compared(outcome: Outcome, objectives: Sequence[str]) -> list[float]:
    assert outcome.figures is not None
    return [float(outcome.figures[name]) for name in objectives]


def front(found: Sequence[Outcome], objectives: Sequence[str]) -> list[Outcome]:
    """The designs that no other one beats: none is as good in every objective and better in one. In the order of the
    first objective; of designs with equal figures one stays, that with the least values."""
    first: dict[tuple[float, ...], Outcome] = {}
    for outcome in sorted(found, key=lambda outcome: outcome.key):
        if outcome.figures is not None:
            first.setdefault(tuple(_compared(outcome, objectives)), outcome)
    if not first:
        return []
    left = np.array(sorted(first))
    best = []
    while len(left):  # the least in order is beaten by none of those after it
        head = left[0]
        best.append(first[tuple(head.tolist())])
        left = left[(left < head).any(axis=1)]
    return best


# The page -----------------------------------------------------------------------------------------------------------


def write_html(path: Path, title: str, asked: Sweep, found: Sequence[Outcome]) -> None:
    """One file that loads nothing; the chart needs plotly (pip install 'quatrefoil[report]'), the tables do not."""
    from quatrefoil.bench import charts
    from quatrefoil.bench.page import Page

    best = front(found, asked.objectives)
    valid = [outcome for outcome in found if outcome.figures is not None]
    page = Page(title, f"{asked.base}; {asked.method} over {'; '.join(map(str, asked.axes))}")
    said = f"designs are beaten by no other one in {', '.join(asked.objectives)}."
    page.answer([(f"{len(best)} of {len(valid)}", said)])
    page.paragraph("Figures of a chip that does not exist, counted by the simulator.", quiet=True)
    if charts.available() and len(asked.objectives) > 1 and valid:
        drawn = ", drawn by the first two objectives" if len(asked.objectives) > 2 else ""
        page.chart(
            f"Every design, and those that no other one beats{drawn}", _chart(asked, valid, best), charts.library()
        )
    names = [name for one in asked.axes for name in one.fields]
    page.table(
        (*names, *OBJECTIVES),
        [[*(outcome.values[name] for name in names), *(outcome.figures or {}).values()] for outcome in best],
        numbers=(*names, *OBJECTIVES),
        simulated=OBJECTIVES,
        sortable="front",
    )
    refused = Counter(outcome.refused for outcome in found if outcome.figures is None)
    if refused:
        page.heading("Refused")
        page.table(("designs", "why"), [(count, why) for why, count in refused.most_common()], numbers=("designs",))
    page.write(path)


def _chart(asked: Sweep, valid: Sequence[Outcome], best: Sequence[Outcome]) -> str:
    from quatrefoil.bench import charts

    across, up = asked.objectives[:2]

    def points(some: Sequence[Outcome]) -> list[tuple[float, float, str]]:
        return [
            (*_compared(outcome, (across, up)), ", ".join(f"{k} {v}" for k, v in outcome.values.items()))  # type: ignore[misc]
            for outcome in some
        ]

    kept = {outcome.key for outcome in best}
    beaten = [outcome for outcome in valid if outcome.key not in kept]
    return charts.scatter(
        OBJECTIVES[across].label,
        OBJECTIVES[up].label,
        {"beaten by none": points(best), "beaten": points(beaten)},
    )
