"""Fair timing of several ways to do one thing: warmed up until steady, in interleaved rounds, the median with its interval.

Contenders run in turn (A B C, B C A, …), so that a slow moment of the machine falls on all alike. A round repeats a
call until it lasts ``round_seconds``, so that the clock's own cost vanishes. The median over rounds is the result, with
a 95 % confidence interval that supposes nothing of how times are distributed; the quartiles are its spread, and the
least is kept as what the machine can do undisturbed.

A round is measured again that began or ended on a core below its usual speed, which a fixed loop tells before and after it,
or of which another process took a part. When a contender has had as many of these as it has rounds, what is left of them
is measured as it is, and counted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_CALLS = 10_000
SHARED = 0.9
"""A round whose processor time is below this share of its wall time did not have its core for itself."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some calls in a row: the wall time and the processor time that they took together, and the time by the device's own
    clock where it has one, in seconds."""

    seconds: float
    processor: float
    device: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one call, over rounds."""

    median: float
    least: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    calls: int
    """Calls in each round."""
    samples: tuple[float, ...] = ()
    """Of each round, in their order."""
    confidence: tuple[float, float] | None = None
    """95 % interval of the median; with fewer than six rounds the least and the largest, which is less sure."""
    repeated: int = 0
    """Rounds that were thrown away and measured again, since the core was slowed or shared."""
    disturbed: int = 0
    """Of ``rounds``, those on a slowed or shared core that are kept, since enough were measured again."""
    device_seconds: float | None = None
    """The median by the device's own clock, idle time between kernels included; None where the call's time is the device's."""

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a share of the median: above a few per cent the machine was not quiet."""
        return (self.upper_quartile - self.lower_quartile) / self.median if self.median else 0.0

    @classmethod
    def of(
        cls, seconds: list[float], calls: int, repeated: int = 0, disturbed: int = 0, device: Sequence[float] = ()
    ) -> Timing:
        low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        interval = median_interval(seconds)
        by_device = statistics.median(device) if device else None
        return cls(
            middle,
            min(seconds),
            low,
            high,
            len(seconds),
            calls,
            tuple(seconds),
            interval,
            repeated,
            disturbed,
            by_device,
        )


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The narrowest pair of order statistics, as far from the one end as from the other, between which the median of
    what the values are drawn from lies with this probability; the least and the largest where there are too few.

    The median lies below the k-th of n values with the probability of fewer than k heads in n throws of a coin.
    """
    ordered, n = sorted(values), len(values)
    cut, outside = 0, 2 * 0.5**n
    while outside + 2 * math.comb(n, cut + 1) * 0.5**n <= 1 - confidence:
        cut += 1
        outside += 2 * math.comb(n, cut) * 0.5**n
    return ordered[cut], ordered[n - 1 - cut]


class Probe(Protocol):
    """Tells whether the core is as fast as it can be."""

    def wait(self) -> bool:
        """Waits for that, for a bounded time; whether it is so now."""

    def quick(self) -> bool:
        """Whether it is so now, without waiting."""


class CoreProbe:
    """Tells by a fixed loop whether this core runs at its usual speed. A busy sibling on the host shows nowhere else.

    ``asked`` rounds were begun, and ``slow`` of them on a core that did not come back to its speed within the wait.
    """

    TOLERATED = 1.12
    WAIT_SECONDS = 0.02
    WAITS = 25
    GLANCES = 8
    """Loops, of 0.2 ms each, in which a core has to show its speed: clocks rise again so soon after wide vectors."""

    def __init__(self, patience: float = 120.0) -> None:
        """``patience``: seconds that are waited in all; a machine that never comes to rest is measured as it is."""
        self._left = round(patience / self.WAIT_SECONDS)
        self._best = min(self._loop() for _ in range(200))
        self.asked = self.slow = 0

    def wait(self) -> bool:
        """Returns at once on a core at its usual speed, else after up to half a second."""
        self.asked += 1
        for _ in range(self.WAITS):
            if self._usual(2):
                return True
            if self._left == 0:
                break
            self._left -= 1
            time.sleep(self.WAIT_SECONDS)
        self.slow += 1
        return False

    def quick(self) -> bool:
        return self._usual(self.GLANCES)

    def _usual(self, loops: int) -> bool:
        """Whether one of so many loops takes no longer than usual."""
        for _ in range(loops):
            taken = self._loop()
            self._best = min(self._best, taken)
            if taken < self.TOLERATED * self._best:
                return True
        return False

    @staticmethod
    def _loop() -> float:
        start, count = time.perf_counter(), 0
        while count < 8000:
            count += 1
        return time.perf_counter() - start


Work = Callable[[int], Stretch | None]
"""Does the work so many times, waits for it and says what it took; None when it cannot go on."""


def clocked(work: Callable[[int], object]) -> Callable[[int], Stretch]:
    """Times a function of this process that does its work so many times and waits for it."""

    def timed(calls: int) -> Stretch:
        processor, start = time.process_time(), time.perf_counter()
        work(calls)
        return Stretch(time.perf_counter() - start, time.process_time() - processor)

    return timed


def interleaved(
    contenders: Mapping[str, Work],
    *,
    rounds: int = 9,
    round_seconds: float = 0.02,
    least_rounds: int = 3,
    seconds_each: float = 2.0,
    exclusive: frozenset[str] = frozenset(),
    probe: Probe | None = None,
    rest: float = 0.0,
    most_calls: int = MAX_CALLS,
    before: Callable[[str, int], object] | None = None,
) -> dict[str, Timing]:
    """Time every contender; one that cannot go on is left out.

    rounds: shrinks to ``least_rounds`` for a contender so slow that its rounds would exceed ``seconds_each``.
    exclusive: contenders that work on the calling core alone: they have to have 0.9 of it in each round, and it has to be
    at its usual speed afterwards.
    probe: waits before each round until the core is quick, and says whether it is. A round on a core that was slow or
    shared is measured again, of each contender as many as it has rounds.
    rest: seconds to sleep before each round, so that the threads of others, which go on spinning after their work, have
    come to rest.
    most_calls: of a round.
    before: called with a contender's name and the round's number before each of its rounds, which it is no part of.
    """
    calls: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for name, work in contenders.items():
        once = _once(work, round_seconds, most_calls)
        if once is not None:
            calls[name] = max(1, min(most_calls, round(round_seconds / max(once, 1e-9))))
            wanted[name] = max(least_rounds, min(rounds, int(seconds_each / max(once * calls[name], 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    device: dict[str, list[float]] = {name: [] for name in calls}
    repeated, disturbed = dict.fromkeys(calls, 0), dict.fromkeys(calls, 0)
    number = 0
    while order := [name for name in seconds if len(seconds[name]) < wanted[name]]:
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            if before is not None:
                before(name, number)
            if rest:
                time.sleep(rest)
            quick = probe is None or probe.wait()
            stretch = contenders[name](calls[name])
            if stretch is None:
                del seconds[name]
                continue
            if name in exclusive:  # others' threads may go on spinning, and what runs elsewhere needs no core
                quick &= stretch.processor >= SHARED * stretch.seconds and (probe is None or probe.quick())
            if not quick and repeated[name] < wanted[name]:
                repeated[name] += 1
                continue
            disturbed[name] += not quick
            seconds[name].append(stretch.seconds / calls[name])
            if stretch.device is not None:
                device[name].append(stretch.device / calls[name])
        number += 1
    return {
        name: Timing.of(times, calls[name], repeated[name], disturbed[name], device[name])
        for name, times in seconds.items()
    }


STEADY = 0.05
"""Warmed up is what repeats within this share of itself."""
MOST_WARMING = 10
"""Stretches after which a contender that does not become steady is measured as it is."""


def _once(work: Work, round_seconds: float, most_calls: int) -> float | None:
    """Seconds for one call when it has become steady, with caches, page faults, lazy initialisation and clocks that
    rise behind it; None when it cannot go on."""
    first = work(1)
    if first is None or first.seconds > round_seconds:
        return None if first is None else first.seconds
    calls = max(1, min(most_calls, int(round_seconds / 4 / max(first.seconds, 1e-9))))
    least = before = math.inf
    for _ in range(MOST_WARMING):
        stretch = work(calls)
        if stretch is None:
            return None
        taken = stretch.seconds / calls
        least = min(least, taken)
        if abs(taken - before) <= STEADY * before:
            break
        before = taken
    return least


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
