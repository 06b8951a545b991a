"""Places in one block of memory for values that are not needed at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A value of ``bytes``, made by step ``first`` and last read by step ``last``."""

    bytes: int
    first: int
    last: int


def places(lifetimes: Mapping[str, Lifetime]) -> tuple[dict[str, int], int]:
    """The offset of each value in bytes, and the size of the block; the largest value is placed first, each at the lowest
    offset that is free while it lives (Pisarchyk and Lee, Efficient memory management for deep neural net inference,
    2020: greedy by size)."""
    offsets: dict[str, int] = {}
    for name in sorted(lifetimes, key=lambda key: (-lifetimes[key].bytes, lifetimes[key].first, key)):
        life = lifetimes[name]
        beside = sorted(
            (offsets[other], offsets[other] + lifetimes[other].bytes)
            for other in offsets
            if lifetimes[other].first <= life.last and life.first <= lifetimes[other].last
        )
        offset = 0
        for begin, end in beside:
            if offset + life.bytes <= begin:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[name] = offset
    size = max((offsets[name] + life.bytes for name, life in lifetimes.items()), default=0)
    return offsets, size
