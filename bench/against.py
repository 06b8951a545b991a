"""Whether this is faster or slower than before: records against an earlier report, or against another checkout.

Another checkout's cpu backend is a contender in the same interleaved rounds, so that slow moments fall on both alike; the
ratio of the two medians is what a lap gives. Two processes of one and the same program differ by some per cent, by where
their code and memory happen to lie (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!", 2009):
so each lap has a pair of processes of its own, as different layouts as can be had (Curtsinger and Berger, "Stabilizer", 2013),
and many short laps say more than few long ones.

Laps are added until they tell: at each of LOOKS looks a case is settled whose interval lies wholly beyond the threshold, or
wholly within it. The interval is Wilcoxon's, of signed ranks, for the middle of the ratios' logarithms (Hollander and Wolfe,
"Nonparametric statistical methods", 3.1 to 3.3). It supposes that they are symmetric, as they are where both programs have
the same luck, and a lap that was badly disturbed does not widen it as it widens Student's.

An earlier report was measured at another time: the interval is then that of the one median over the other, at their far
ends, after the earlier times are brought to today's clock by the arithmetic ceilings of both runs.

A case is slower or faster where the whole interval is beyond the relative threshold and the medians differ by more than
the absolute one. Of many cases some would seem so by chance, and of many looks one: each interval has the confidence
1 - 0.05 / cases / looks, so that all of them hold together with 95 % (Bonferroni; Dunn, "Multiple comparisons among means",
1961).
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from quatrefoil.bench.records import Record
from quatrefoil.bench.runner import Effort, Field
from quatrefoil.bench.suites import Entry
from quatrefoil.bench.timing import median_interval
from quatrefoil.bench.verify import judge_of
from quatrefoil.errors import QuatrefoilError

CPU = "cpu"
BEFORE = "before"
"""The contender that is another checkout's cpu backend."""
ALPHA = 0.05
LOOKS, MOST_LAPS = 5, 48
"""How often it is asked whether the laps of a case tell, the last time after so many."""
POOL = 16
"""Pairs of processes that are kept from one case to the next, of 0.1 GB each. A lap beyond them has a new pair."""
PAIRED_ROUNDS, PAIRED_SECONDS = 5, 0.01
ROUNDS = 15
"""Rounds of a run against an earlier report, where none are given: an interval of the wanted confidence needs more than a
mere median."""

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


Lap = Callable[[int], tuple[float, float] | str]
"""The medians of the lap of this number, before and now, in seconds; or why there are none."""


def looks(cases: int) -> tuple[list[int], float]:
    """After how many laps is asked whether they tell, and the confidence of each of these intervals."""
    confidence = 1 - ALPHA / max(1, cases) / LOOKS
    first = min(fewest_laps(confidence), MOST_LAPS)
    return [round(first * (MOST_LAPS / first) ** (look / (LOOKS - 1))) for look in range(LOOKS)], confidence


def settled(name: str, contender: str, lap: Lap, cases: int, thresholds: Thresholds) -> Change:
    """One of so many cases, by as many laps as it takes."""
    times: list[tuple[float, float]] = []
    after, confidence = looks(cases)
    for count in after:
        while len(times) < count:
            given = lap(len(times))
            if isinstance(given, str):
                return Change(name, contender, UNKNOWN, why=given)
            times.append(given)
        logarithms = [math.log(now / before) for before, now in times]
        ratio, *ends = (math.exp(value) for value in signed_rank_interval(logarithms, confidence))
        before, now = (statistics.median(column) for column in zip(*times, strict=True))
        low, high = ends
        change = judged(name, contender, before, now, ratio, (low, high), thresholds)
        least, most = 1 / (1 + thresholds.relative), 1 + thresholds.relative
        nothing = max(high - 1, 1 - low) * before < thresholds.absolute
        if change.verdict != SAME or (least < low and high < most) or nothing:
            break
    return change


def fewest_laps(confidence: float) -> int:
    """For which there is an interval of this confidence: all of one sign has the probability 2^(1 - n)."""
    return math.ceil(1 - math.log2(1 - confidence))


def signed_rank_interval(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Hodges and Lehmann's estimate of the middle of a symmetric distribution, and the ends of the interval that belongs to
    Wilcoxon's test of signed ranks: of the means of two values, or of one with itself, those so far from either end.
    Infinite ones for too few values."""
    means = sorted((value + other) / 2 for i, value in enumerate(values) for other in values[i:])
    cut = _signed_rank_cut(len(values), confidence)
    ends = (means[cut - 1], means[-cut]) if cut else (-math.inf, math.inf)
    return statistics.median(means), *ends


@cache
def _signed_rank_cut(n: int, confidence: float) -> int:
    """The largest sum of the ranks of n values such that a smaller one, or as extreme a one at the other end, has no more
    than the probability that the confidence leaves."""
    ways = [1]  # in which some of the ranks so far add up to each sum
    for rank in range(1, n + 1):
        taken = [0] * rank + ways
        ways = [without + having for without, having in zip(ways + [0] * rank, taken, strict=True)]
    cut, below = 0, 0
    while 2 * (below + ways[cut]) <= (1 - confidence) * 2**n:
        below += ways[cut]
        cut += 1
    return cut


class Pairs:
    """Our cpu backend and that of another checkout, in POOL pairs of processes; further contenders run beside the first."""

    def __init__(self, names: Sequence[str], threads: int, checkout: str, *, cold: bool = False) -> None:
        """checkout: where the other quatrefoil is imported from."""
        self.first = Field(dict.fromkeys([CPU, *names]), threads, cold=cold, checkouts={BEFORE: checkout})
        self._more = [Field([CPU], threads, cold=cold, checkouts={BEFORE: checkout}) for _ in range(POOL - 1)]
        self._open = ExitStack()

    def __enter__(self) -> Pairs:
        self._open.enter_context(self.first)
        for field in self._more:
            field.probe = self.first.probe  # and its patience
            self._open.enter_context(field)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def run(
        self,
        entries: Sequence[Entry],
        effort: Effort,
        thresholds: Thresholds,
        *,
        tune: bool = False,
        verify: bool = True,
        seed: int = 0,
        begin: Callable[[str], None] | None = None,
        progress: Callable[[Record], None] | None = None,
    ) -> tuple[list[Record], list[Change]]:
        """The records of each entry's first lap, as ``Field.run`` gives them, and what became of each entry."""
        records: list[Record] = []
        changes = []
        judging = cache(judge_of) if verify else None  # the oracle is slow, and its answer the same in each lap
        for entry in entries:

            def lap(number: int, entry: Entry = entry) -> tuple[float, float] | str:
                field = [self.first, *self._more][number % POOL]
                if number >= POOL:
                    field.renew()
                found = field.run(
                    [entry], effort, tune=tune and number == 0, judging=judging, seed=seed,
                    begin=begin if number == 0 else None, progress=progress if number == 0 else None,
                )  # fmt: skip
                if number == 0:
                    records.extend(found)
                timings = {record.contender: record for record in found}
                before, now = timings[BEFORE], timings[CPU]
                if before.measured is None or now.measured is None:
                    return before.refused or now.refused
                return before.measured.median, now.measured.median

            changes.append(settled(entry.name, CPU, lap, len(entries), thresholds))
            if judging is not None:
                judging.cache_clear()
        return records, changes

    def method(self) -> str:
        """How laps are made into verdicts, in a sentence."""
        return (
            f"Each task is measured by pairs of processes, now and before side by side, until the interval of the middle ratio "
            f"by signed ranks lies beyond or within the threshold, at {LOOKS} looks and after {MOST_LAPS} pairs at most; all "
            "intervals of a suite hold together with 95 %."
        )


def with_report(
    records: Sequence[Record], ceilings: Mapping[str, Any] | None, old: Mapping[str, Any], thresholds: Thresholds
) -> list[Change]:
    """Each of our records against the one of the same name, contender, threads and caches in an earlier report."""
    rows = {_key(row): row for row in old["records"] if row["ours"]}
    ours = [record for record in records if record.ours]
    confidence = 1 - ALPHA / max(1, len(ours))
    fewest = fewest_laps(confidence)  # whose least and largest hold the median so surely, too
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
