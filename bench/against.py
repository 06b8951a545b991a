"""Whether this is faster or slower than before: records against an earlier report, or against another checkout.

Another checkout's cpu backend is a contender in the same interleaved rounds, so that slow moments fall on both alike; the
ratio of the two medians is what a lap gives. Two processes of one and the same program differ by some per cent, by where
their memory happens to lie (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!", 2009): so
there are LAPS laps with processes of their own, and Student's interval of the mean of their logarithms decides.

An earlier report was measured at another time: the interval is then that of the one median over the other, at their far
ends, after the earlier times are brought to today's clock by the arithmetic ceilings of both runs.

A case is slower or faster where the whole interval is beyond the relative threshold and the medians differ by more than
the absolute one. Of many cases some would seem so by chance: each interval has the confidence 1 - 0.05 / cases, so that
all of them hold together with 95 % (Bonferroni; Dunn, "Multiple comparisons among means", 1961).
"""

from __future__ import annotations

import json
import math
import statistics
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
LAPS = 7
PAIRED_ROUNDS, ROUNDS = 7, 15
"""Rounds of a lap, and of a run against an earlier report, where none are given: an interval of the wanted confidence needs
more than a mere median."""

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
    visible = max(high / ratio, ratio / low) * (1 + thresholds.relative) - 1 if low else math.inf
    return Change(name, contender, verdict, before, now, ratio, interval, visible)


def paired(laps: Sequence[Sequence[Record]], thresholds: Thresholds) -> list[Change]:
    """Each case of runs in which another checkout was the contender ``before``, our cpu backend against it."""
    cases: dict[str, list[dict[str, Record]]] = {}
    for records in laps:
        lap: dict[str, dict[str, Record]] = {}
        for record in records:
            lap.setdefault(record.name, {})[record.contender] = record
        for name, case in lap.items():
            cases.setdefault(name, []).append(case)
    confidence = 1 - ALPHA / max(1, len(cases))
    found = []
    for name, pairs in cases.items():
        refused = next((r.refused for pair in pairs for r in pair.values() if r.measured is None), None)
        if refused is not None:
            found.append(Change(name, "cpu", UNKNOWN, why=refused))
            continue
        logarithms: list[float] = []
        times: dict[str, list[float]] = {BEFORE: [], "cpu": []}
        for pair in pairs:
            old, new = pair[BEFORE].measured, pair["cpu"].measured
            assert old is not None
            assert new is not None
            logarithms.append(math.log(new.median / old.median))
            times[BEFORE].append(old.median)
            times["cpu"].append(new.median)
        mean, half = statistics.mean(logarithms), half_width(logarithms, confidence)
        before, now = (statistics.median(times[who]) for who in (BEFORE, "cpu"))
        interval = (math.exp(mean - half), math.exp(mean + half))
        found.append(judged(name, "cpu", before, now, math.exp(mean), interval, thresholds))
    return found


def half_width(values: Sequence[float], confidence: float) -> float:
    """Half of Student's interval of a mean; infinite for fewer than three values. The quantile is Cornish and Fisher's
    expansion (Abramowitz and Stegun, 26.7.5), within 2 % from four degrees of freedom on."""
    free = len(values) - 1
    if free < 2:
        return math.inf
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    quantile = (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def with_report(
    records: Sequence[Record], ceilings: Mapping[str, Any] | None, old: Mapping[str, Any], thresholds: Thresholds
) -> list[Change]:
    """Each of our records against the one of the same name, contender, threads and caches in an earlier report."""
    rows = {_key(row): row for row in old["records"] if row["ours"]}
    ours = [record for record in records if record.ours]
    confidence = 1 - ALPHA / max(1, len(ours))
    fewest = math.ceil(1 - math.log2(1 - confidence))  # whose least and largest hold the median so surely
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
        if min(len(samples), record.measured.rounds) < fewest:
            counts = f"{len(samples)} and {record.measured.rounds}"
            why = f"an interval that is sure enough takes {fewest} rounds, and there were {counts}"
            found.append(Change(record.name, record.contender, UNKNOWN, why=why))
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
        raise QuatrefoilError(f"--against {path} is no report of quatrefoil bench; make one with --json before.json")
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
