"""How far ahead of the peers: each family's geometric means against its goals, and every task with every contender.

    python -m quatrefoil.bench.goals one.json two.json > table.md

The files are reports of ``quatrefoil bench peers``; those of the same number of threads are joined. A ratio is the best
peer's time over ours, so above 1 we are ahead. Only accurate results count: a float32 error below 2e-5 of the largest
value, a quantised result within one step. A task on which nobody is accurate is left out of the mean.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quatrefoil.bench import peers
from quatrefoil.bench.page import figure
from quatrefoil.bench.records import threads_said
from quatrefoil.bench.roofline import Ceilings
from quatrefoil.bench.runner import Field
from quatrefoil.bench.suites import Family, load
from quatrefoil.bench.tasks import Task
from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Work

MAJOR = ("torch", "torch_cl", "torch_pre", "ort", "openvino")
"""The peers that most people use: PyTorch in every form, ONNX Runtime, OpenVINO."""
LEAST = 0.9
"""No single task may fall below this ratio."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """One task: our record, the accurate peers' seconds by name, and every record."""

    name: str
    ours: Row
    peers: Mapping[str, float]
    rows: Sequence[Row]

    def ratio(self, names: Iterable[str] | None = None) -> tuple[float, str] | None:
        """The best peer's time over ours, and who it is; of ``names`` alone where they are given. None where there is
        no accurate one or we have no time."""
        among = {name: seconds for name, seconds in self.peers.items() if names is None or name in names}
        mine = seconds_of(self.ours)
        if not among or mine is None:
            return None
        best = min(among, key=among.__getitem__)
        return among[best] / mine, best


@dataclass(frozen=True, slots=True)
class Standing:
    """A family's result: geometric means, the worst task by each, and whether the goals are met."""

    family: Family
    tasks: int
    best: float | None
    major: float | None
    worst: tuple[float, str, str] | None
    """Ratio, task, peer."""
    longest: float | None
    """Our longest call in microseconds, where the family bounds it."""
    missing: tuple[str, ...]
    """Tasks without a figure of ours, with the reason."""

    @property
    def misses(self) -> tuple[str, ...]:
        """What was not met, in words; empty where all was."""
        said = [
            f"{value:.2f} of {goal:g} against {whom}"
            for value, goal, whom in self._means
            if value is not None and value < goal
        ]
        limit = self.family.most_microseconds
        if limit is not None and self.longest is not None and self.longest > limit:
            said.append(f"{self.longest:.2f} us of {limit:g} us")
        if self.worst is not None and self.worst[0] < LEAST:
            said.append(f"{self.worst[1]} at {self.worst[0]:.2f}, below {LEAST:g}")
        return (*said, *self.missing)

    @property
    def verdict(self) -> str:
        """Missed, with what; or met, or not compared, with whom there was nothing accurate to compare with."""
        if self.misses:
            return f"missed: {'; '.join(self.misses)}"
        nobody = [f"no accurate result of {whom}" for value, _, whom in self._means if value is None]
        met = "met" if len(nobody) < len(self._means) or self.longest is not None else "not compared"
        return "; ".join((met, *nobody))

    @property
    def _means(self) -> list[tuple[float | None, float, str]]:
        """Each mean that the family has a goal for, with the goal and whom it is against."""
        family = self.family
        means = [] if family.goal is None else [(self.best, family.goal, "the best peer")]
        if family.goal_major is not None:
            means.append((self.major, family.goal_major, "torch, ONNX Runtime and OpenVINO"))
        return means


def seconds_of(row: Row) -> float | None:
    """A record's median time; None where it has none."""
    return row["measured"]["median"] if row.get("measured") else None


def compared(rows: Sequence[Row]) -> list[Compared]:
    """A report's records, task by task; tasks that we did not take part in are left out."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row["name"], []).append(row)
    found = []
    for name, together in tasks.items():
        ours = next((row for row in together if row["ours"]), None)
        peers = {
            row["contender"]: seconds
            for row in together
            if not row["ours"] and row["accurate"] and (seconds := seconds_of(row)) is not None
        }
        if ours is not None:
            found.append(Compared(name, ours, peers, together))
    return found


def geometric_mean(values: Sequence[float]) -> float | None:
    """None of no values."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def standing(family: Family, tasks: Sequence[Compared]) -> Standing:
    """The family's result over those of its tasks that were measured."""
    best = [(*ratio, task.name) for task in tasks if (ratio := task.ratio()) is not None]
    major = [ratio[0] for task in tasks if (ratio := task.ratio(MAJOR)) is not None]
    worst = min(best, default=None)
    mine = [seconds * 1e6 for task in tasks if (seconds := seconds_of(task.ours)) is not None]
    return Standing(
        family,
        len(tasks),
        geometric_mean([ratio for ratio, *_ in best]),
        geometric_mean(major),
        None if worst is None else (worst[0], worst[2], worst[1]),
        max(mine, default=None) if family.most_microseconds is not None else None,
        tuple(f"{task.name}: {task.ours['refused']}" for task in tasks if seconds_of(task.ours) is None),
    )


def standings(report: Row) -> list[Standing]:
    """Every family of the report's suite of which a task was measured."""
    suite = load(report["suite"])
    families = {entry.name: entry.family for entry in suite.entries}
    tasks = compared(report["records"])
    found = []
    for family in suite.families:
        members = [task for task in tasks if families.get(task.name) == family.name]
        if members:
            found.append(standing(family, members))
    return found


def by_threads(report: Row) -> list[Row]:
    """A report for each number of threads that this one has."""
    counts = dict.fromkeys(row["threads"] for row in report["records"])
    return [{**report, "records": [row for row in report["records"] if row["threads"] == count]} for count in counts]


def _by_threads(reports: Iterable[Row]) -> list[Row]:
    return [each for report in reports for each in by_threads(report)]


def markdown(reports: Sequence[Row]) -> str:
    """Families first, for every report and number of threads; then every task."""
    lines = []
    reports = _by_threads(reports)
    for report in reports:
        lines += [f"## {title(report)}", "", *_conditions(report), "", *_families(standings(report)), ""]
    for report in reports:
        lines += [f"## Every task, {title(report)}", "", *_legend(report), "", *_tasks(report), ""]
    return "\n".join(lines)


def title(report: Row) -> str:
    """The number of threads of a report that has one."""
    return threads_said(report["records"][0]["threads"])


def _conditions(report: Row) -> Iterator[str]:
    machine, probe = report["machine"], report["probe"]
    yield f"{machine['processor']}, {report['made'][:10]}. " + "; ".join(
        f"{peer['name']}: {peer['title']} ({peer['version']})" for peer in report["peers"]
    )
    ceilings = Ceilings.of(report["ceilings"])
    levels = ", ".join(f"{level.name} {level.gbyte_s:.0f} GB/s" for level in ceilings.levels)
    yield ""
    yield (
        f"One core, measured in the same run: {ceilings.gflop_s:.0f} GFLOP/s in float32 ({ceilings.instruction_set}); "
        f"reading {levels}. {probe['slow']} of {probe['asked']} rounds began on a core below its speed."
    )


def _families(found: Sequence[Standing]) -> Iterator[str]:
    yield "| family | tasks | against the best | goal | against torch, ORT, OpenVINO | goal | worst task | verdict |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"
    for one in found:
        family, worst = one.family, one.worst
        goal = "" if family.goal is None else f"{family.goal:g}"
        best = _ratio(one.best)
        if family.most_microseconds is not None:
            goal, best = f"{family.most_microseconds:g} us", "—" if one.longest is None else f"{one.longest:.2f} us"
        yield (
            "| "
            + " | ".join(
                (
                    family.name,
                    str(one.tasks),
                    best,
                    goal,
                    _ratio(one.major),
                    "" if family.goal_major is None else f"{family.goal_major:g}",
                    "" if worst is None else f"{worst[1]}: {worst[0]:.2f} ({worst[2]})",
                    one.verdict.replace("missed", "**missed**", 1),
                )
            )
            + " |"
        )


def _legend(report: Row) -> Iterator[str]:
    yield (
        "Median microseconds of a call; `~` marks a result that is not accurate and counts in no mean. Share: our least "
        "possible time by the roofline of a direct evaluation, of float32 by vectors, of int8 by what multiplies bytes the "
        "fastest, over our time; Winograd's algorithms and float32 on tile registers may pass 100 %. "
        "Error: ours, as a share of the largest value."
    )


def _tasks(report: Row) -> Iterator[str]:
    ceilings = Ceilings.of(report["ceilings"])
    names = list(dict.fromkeys(row["contender"] for row in report["records"] if not row["ours"]))
    yield f"| task | kernel | ours us | {' | '.join(names)} | best / ours | share | error |"
    yield f"| --- | --- | ---: |{' ---: |' * (len(names) + 3)}"
    for task in compared(report["records"]):
        cells = {row["contender"]: row for row in task.rows}
        mine, ratio = seconds_of(task.ours), task.ratio()
        work, problem = Work(task.ours["macs"], task.ours["bytes"]), Task(task.ours["problem"]).problem
        share = None if mine is None else ceilings.seconds(problem, work, task.ours["threads"]) / mine
        error = task.ours["error"]
        yield (
            "| "
            + " | ".join(
                (
                    task.name,
                    f"`{task.ours['kernel']}`",
                    _microseconds(task.ours),
                    *(_microseconds(cells[name]) if name in cells else "" for name in names),
                    _ratio(None if ratio is None else ratio[0]),
                    "" if share is None else f"{share:.0%}",
                    "" if error is None else "0" if error == 0 else f"{float(error):.0e}",
                )
            )
            + " |"
        )


def _microseconds(row: Row) -> str:
    seconds = seconds_of(row)
    if seconds is None:
        return ""
    return ("" if row["ours"] or row["accurate"] else "~") + figure(seconds * 1e6)


def _ratio(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def conditions(source: str | None, field: Field) -> dict[str, Any]:
    """What a report says beside its records, for ``document``; ``source`` is a suite with goals."""
    return {
        **({} if source is None else {"suite": source}),
        "ceilings": None if field.ceilings is None else field.ceilings.as_dict(),
        "probe": {"asked": field.probe.asked, "slow": field.probe.slow} if field.probe is not None else {},
        "peers": [
            {"name": name, "title": peers.get(name).title, "version": peers.get(name).probe().detail}
            for name in field.names
            if name in peers.names()
        ],
    }


def together(conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The conditions of runs that differ in their number of threads alone, as those of one report."""
    method = list(dict.fromkeys(sentence for each in conditions for sentence in each["method"]))
    if len(conditions) > 1:
        method.append("Each number of threads was measured on its own, one after the other.")
    return {**conditions[0], "probe": _probes(conditions), "method": method}


def _probes(conditions: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {key: sum(each["probe"].get(key, 0) for each in conditions) for key in ("asked", "slow")}


def joined(reports: Sequence[Row]) -> list[Row]:
    """Reports of the same number of threads as one; of a task that several have, the last counts."""
    groups: dict[int, list[Row]] = {}
    for report in _by_threads(reports):
        groups.setdefault(report["records"][0]["threads"], []).append(report)
    found: list[Row] = []
    for group in groups.values():
        records = {(row["name"], row["contender"]): row for report in group for row in report["records"]}
        found.append({**group[0], "probe": _probes(group), "records": list(records.values())})
    return found


def read(path: str | Path) -> Row:
    """A report in JSON. Raises QuatrefoilError where it is none of a suite with families."""
    try:
        report: Row = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuatrefoilError(f"the report {path} cannot be read: {error}") from None
    if not isinstance(report, dict) or not {"suite", "ceilings", "probe"} <= report.keys() or not report["records"]:
        raise QuatrefoilError(f"{path} is no report of a suite with goals; make one: quatrefoil bench peers --json …")
    return report


def main(paths: Sequence[str]) -> int:
    if not paths:
        print("usage: python -m quatrefoil.bench.goals report.json …", file=sys.stderr)
        return 2
    try:
        print(markdown(joined([read(path) for path in paths])))
    except QuatrefoilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
