"""Which results stay in the activation memory until they are read, so that they cross the port to DRAM less often or not
at all.

A result stays up to one of its readers if the memory has room for it at every operation from the one that makes it to
that reader, beside everything else that stays then. Those that stay for the fewest operations come first: a result whose
reader is next, then the short-cut of a residual block. One that stays up to its last reader, and that nobody else asks
for, is not written to DRAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Use:
    """One operation: the values that it reads, by name, and whether it can take each from the activation memory; those
    that it makes, with their bytes. same: it does nothing but give the first of two values the second name."""

    reads: tuple[tuple[str, bool], ...] = ()
    makes: tuple[tuple[str, int], ...] = ()
    same: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """For one operation: positions of inputs that are in the activation memory, of outputs that stay there, of those of
    them that DRAM never sees; and the bytes that everything takes that is there meanwhile."""

    here: frozenset[int] = frozenset()
    stay: frozenset[int] = frozenset()
    unwritten: frozenset[int] = frozenset()
    taken: int = 0

    def written(self, width: int, position: int = 0) -> int:
        """Bytes of an element of an output that go to DRAM, where it is so wide."""
        return 0 if position in self.unwritten else width

    def staying(self, width: int, position: int = 0) -> int:
        """Bytes of an element of an output that stay in the activation memory."""
        return width if position in self.stay else 0


ALONE = Kept()
"""Everything comes from DRAM and goes there."""


@dataclass(slots=True)
class _Value:
    maker: int
    position: int
    size: int
    readers: list[int] = field(default_factory=list)  # in order
    elsewhere: bool = False  # read from DRAM, or asked for at the end
    until: int = -1  # the reader up to which it stays

    def up_to(self, place: int) -> int:
        """Operations from its maker to the reader at this place."""
        return self.readers[place] - self.maker


def plan(uses: Sequence[Use], results: frozenset[str], room: int) -> list[Kept]:
    """For each operation. results: names of the values that go to DRAM in any case; room: bytes of the activation memory
    for what stays."""
    values: dict[str, _Value] = {}
    for number, use in enumerate(uses):
        if use.same is not None:
            if use.same[0] in values:
                values[use.same[1]] = values[use.same[0]]
            continue
        for name, from_memory in use.reads:
            if name in values:
                value = values[name]
                if not from_memory:
                    value.elsewhere = True
                elif number not in value.readers:
                    value.readers.append(number)
        values.update(
            (name, _Value(number, place, size)) for place, (name, size) in enumerate(use.makes) if name and size
        )
    for name in results & values.keys():
        values[name].elsewhere = True

    made = list({id(value): value for value in values.values()}.values())
    claims = [(value.up_to(place), value.maker, place, value) for value in made for place in range(len(value.readers))]
    taken = [0] * len(uses)
    for _, _, place, value in sorted(claims, key=lambda claim: claim[:3]):
        begin = value.maker if place == 0 else value.readers[place - 1] + 1
        if place and value.until != value.readers[place - 1]:
            continue  # it is gone by then
        span = range(begin, value.readers[place] + 1)
        if all(taken[number] + value.size <= room for number in span):
            for number in span:
                taken[number] += value.size
            value.until = value.readers[place]

    def name_of(number: int, name: str) -> bool:
        return name in values and number in values[name].readers and number <= values[name].until

    kept = []
    for number, use in enumerate(uses):
        here = frozenset(place for place, (name, fits) in enumerate(use.reads) if fits and name_of(number, name))
        mine = [value for value in made if value.maker == number and value.until >= 0]
        unwritten = [value.position for value in mine if not value.elsewhere and value.until == value.readers[-1]]
        kept.append(Kept(here, frozenset(value.position for value in mine), frozenset(unwritten), taken[number]))
    return kept
