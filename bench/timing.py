"""Fair timing of several ways to do one thing: warmed up, in interleaved rounds, the median with its spread.

Contenders run in turn (A B C, B C A, …), so that a slow moment of the machine falls on all alike. A round repeats a
call until it lasts ``round_seconds``, so that the clock's own cost vanishes. The median over rounds is the result;
the first and third quartiles are its spread, and the least is kept as what the machine can do undisturbed.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_CALLS = 10_000


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

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a share of the median: above a few per cent the machine was not quiet."""
        return (self.upper_quartile - self.lower_quartile) / self.median if self.median else 0.0

    @classmethod
    def of(cls, seconds: list[float], calls: int) -> Timing:
        low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        return cls(middle, min(seconds), low, high, len(seconds), calls)


def interleaved(
    contenders: Mapping[str, Callable[[int], None]],
    *,
    rounds: int = 9,
    round_seconds: float = 0.02,
    least_rounds: int = 3,
    seconds_each: float = 2.0,
) -> dict[str, Timing]:
    """Time every contender; each is a function that does its work a given number of times and then waits for it.

    ``rounds`` shrinks to ``least_rounds`` for a contender so slow that its rounds would exceed ``seconds_each``.
    """
    calls: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for name, work in contenders.items():
        work(1)  # caches, page faults, lazy initialisation
        once = min(_timed(work, 1), _timed(work, 1))
        calls[name] = max(1, min(MAX_CALLS, round(round_seconds / max(once, 1e-9))))
        _timed(work, calls[name])
        wanted[name] = max(least_rounds, min(rounds, int(seconds_each / max(once * calls[name], 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            shift = number % len(order) if order else 0
            for name in order[shift:] + order[:shift]:
                if len(seconds[name]) < wanted[name]:
                    seconds[name].append(_timed(contenders[name], calls[name]) / calls[name])
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(times, calls[name]) for name, times in seconds.items()}


def _timed(work: Callable[[int], None], calls: int) -> float:
    start = time.perf_counter()
    work(calls)
    return time.perf_counter() - start
