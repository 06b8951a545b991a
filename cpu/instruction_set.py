"""Which build of the native kernels runs: the best instruction set of this processor, or the one that is forced.

Every source in cpu/src is compiled once per instruction set; native calls take the set as a number.
QUATREFOIL_CPU_ISA=portable|v2|v3|v4 (the x86-64 levels), v4_vnni (products of bytes) or v4_amx (tile registers) forces one,
for tests and comparisons.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from platform import machine, processor

from quatrefoil.errors import BackendUnavailable

VARIABLE = "QUATREFOIL_CPU_ISA"
LANES = {"v3": 8, "v4": 16, "v4_vnni": 16, "v4_amx": 16}  # 4 elsewhere


@cache
def supported() -> tuple[str, ...]:
    """The instruction sets that were built and that this processor has, the best one last."""
    from quatrefoil.cpu import _instruction_set

    return tuple(name for number, name in enumerate(_instruction_set.names()) if _instruction_set.supported(number))


def choose(forced: str | None) -> int:
    """The number of the instruction set called ``forced``, or of the best one for None."""
    known = supported()
    if forced is None:
        return len(known) - 1
    if forced not in known:
        raise BackendUnavailable(
            f"{VARIABLE} is {forced!r}; this processor and this build can run {', '.join(known)}: "
            f"set one of these, or unset {VARIABLE} for {known[-1]}"
        )
    return known.index(forced)


@cache
def index() -> int:
    """The number that native calls take; settled at the first call. Raises BackendUnavailable for a forced
    instruction set that is misspelt, empty or not supported here."""
    return choose(os.environ.get(VARIABLE))


def name() -> str:
    """The instruction set in use: portable, v2, v3, v4, v4_vnni or v4_amx."""
    return supported()[index()]


def index_for_rows(width: int) -> int:
    """As ``index``, but v3 in place of a set with vectors of 16 where rows are half of that at most: what a kernel that
    works along rows takes, whose lanes would stay empty."""
    return supported().index("v3") if lanes() == 16 and width <= LANES["v3"] else index()


def lanes() -> int:
    """Floats of a vector of the instruction set in use, which are channels of a block: LANES of src/simd.h."""
    return LANES.get(name(), 4)


def description() -> str:
    """The instruction set in use, and whether it is emulated: then its speed says nothing."""
    return _described(index())


@cache
def _described(number: int) -> str:
    from quatrefoil.cpu import _instruction_set

    return f"{supported()[number]}{', emulated' if _instruction_set.emulated(number) else ''}"


@cache
def processor_name() -> str:
    """The processor as its maker calls it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return processor() or machine()
