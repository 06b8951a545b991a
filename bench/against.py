"""Whether this is faster or slower than before: records against an earlier report, or against another checkout.

Another checkout's cpu backend is a contender in the same rounds. The ratio of the two times of a round is free of what
was slow in that round; its median over the rounds, with an interval that supposes nothing of how times are distributed,
decides. An earlier report was measured at another time: the interval is then that of the one median over the other, at
their far ends, after the earlier times are brought to today's clock by the arithmetic ceilings of both runs.

A case is slower or faster where the whole interval is beyond the relative threshold and the medians differ by more than
the absolute one. Of many cases some would seem so by chance: each interval has the confidence 1 - 0.05 / cases, so that
all of them hold together with 95 % (Bonferroni; Dunn, "Multiple comparisons among means", 1961).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quatrefoil.bench.records import Record
from quatrefoil.bench.timing import median_interval
from quatrefoil.errors import QuatrefoilError

BEFORE = "before"
"""The contender that is another checkout's cpu backend."""
ALPHA = 0.05
ROUNDS = 21
"""Rounds of a comparison that has none given: an interval of the wanted confidence needs more than a mere median."""

FASTER, SLOWER, SAME, UNKNOWN = "faster", "slower", "no difference", "not compared"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What matters: a share of the time, and seconds."""

    relative: float = 0.03
    absolute: float = 2e-7


@dataclass(frozen=True, slots=True)
class Change:
    """One case: the ratio of the times, now over before, with its interval, and what it comes to.

    visible: the smallest change that the interval would have shown, as a share.
    """

    name: str
    contender: str
    verdict: str
    before: float | None = None
    now: float | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    visible: float | None = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judged(
    name: str,
    contender: str,
    before: float,
    now: float,
    ratio: float,
    interval: tuple[float, float],
    thresholds: Thresholds,
) -> Change:
    """The verdict on one case; ``before`` and ``now`` are medians in seconds."""
    low, high = interval
    matters = abs(now - before) > thresholds.absolute
    verdict = SAME
    if matters and low > 1 + thresholds.relative:
        verdict = SLOWER
    elif matters and high < 1 / (1 + thresholds.relative):
        verdict = FASTER
    visible = max(high / ratio, ratio / low) * (1 + thresholds.relative) - 1
    return Change(name, contender, verdict, before, now, ratio, interval, visible)


def paired(records: Sequence[Record], thresholds: Thresholds) -> list[Change]:
    """Each case of a run in which another checkout was the contender ``before``, our cpu backend against it."""
    cases: dict[str, dict[str, Record]] = {}
    for record in records:
        cases.setdefault(record.name, {})[record.contender] = record
    confidence = 1 - ALPHA / max(1, len(cases))
    found = []
    for name, case in cases.items():
        old, new = case[BEFORE], case["cpu"]
        if old.measured is None or new.measured is None:
            found.append(Change(name, "cpu", UNKNOWN, why=old.refused or new.refused))
            continue
        ratios = sorted(b / a for a, b in zip(old.measured.samples, new.measured.samples))
        ratio = (
            ratios[len(ratios) // 2] if len(ratios) % 2 else math.sqrt(math.prod(ratios[len(ratios) // 2 - 1 :][:2]))
        )
        interval = median_interval(ratios, confidence)
        found.append(judged(name, "cpu", old.measured.median, new.measured.median, ratio, interval, thresholds))
    return found


def with_report(
    records: Sequence[Record], ceilings: Mapping[str, Any] | None, old: Mapping[str, Any], thresholds: Thresholds
) -> list[Change]:
    """Each of our records against the one of the same name, contender, threads and caches in an earlier report."""
    rows = {_key(row): row for row in old["records"] if row["ours"]}
    ours = [record for record in records if record.ours]
    confidence = 1 - ALPHA / max(1, len(ours))
    drift = 1.0
    if ceilings is not None and old.get("ceilings"):
        drift = old["ceilings"]["gflop_s"] / ceilings["gflop_s"]
    found = []
    for record in ours:
        row = rows.get(_key(record.as_dict()))
        if record.measured is None or row is None or not row.get("measured"):
            why = record.refused or ("the earlier report does not have it" if row is None else row.get("refused", ""))
            found.append(Change(record.name, record.contender, UNKNOWN, why=why))
            continue
        samples = row["measured"].get("samples") or []
        if len(samples) < 3:
            found.append(
                Change(record.name, record.contender, UNKNOWN, why="the earlier report has no rounds to compare")
            )
            continue
        before = row["measured"]["median"] * drift
        old_low, old_high = (value * drift for value in median_interval(samples, confidence))
        low, high = median_interval(record.measured.samples, confidence)
        now = record.measured.median
        interval = (low / old_high, high / old_low)
        found.append(judged(record.name, record.contender, before, now, now / before, interval, thresholds))
    return found


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["name"], row["contender"], row["threads"], row.get("cache", "hot")


def read(path: Path) -> dict[str, Any]:
    """An earlier report. Raises QuatrefoilError where it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuatrefoilError(f"--against {path} cannot be read: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("records"), list):
        raise QuatrefoilError(f"--against {path} is no report of quatrefoil bench; make one with --json")
    return document


@contextmanager
def checkout(folder: Path) -> Iterator[str]:
    """Where the quatrefoil of a checkout, with its compiled parts, is imported from inside the block.

    Raises QuatrefoilError where the folder is no checkout.
    """
    script = folder / ".ci" / "typeroot.py"
    if not script.exists():
        raise QuatrefoilError(f"--against {folder} is neither a report in JSON nor a checkout of quatrefoil")
    with tempfile.TemporaryDirectory() as root:
        made = subprocess.run(
            [sys.executable, str(script), str(folder), root], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise QuatrefoilError(f"{script} failed: {made.stderr.strip().splitlines()[-1:]}")
        yield root
