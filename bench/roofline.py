"""What one core of this machine can do at most, measured, and what share of it a task reached (the roofline model).

A task takes no less time than its multiply-adds at the peak, and no less than its inputs, weights and outputs passing
once from the level of memory that holds them. Convolutions of bytes are held to the peak of byte products, all else to that
of float32. Recurrent weights pass once in each step. Algorithms that multiply less
than a direct evaluation (Winograd's) may pass 100 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil import ops
from quatrefoil.cpu import instruction_set
from quatrefoil.problem import Problem, Work

TRIES = 7
PEAK_TRIES, PEAK_ROUNDS = 60, 100_000
"""Of arithmetic: short ones, which another process on the core takes no part of, and so many that some are whole."""
READ_BYTES = 1 << 26
"""Read in one try from half of a cache; memory gets one pass over a block four times the last cache."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True, slots=True)
class Level:
    """A level of memory: how much one core finds there (None: all there is), and how fast it reads it."""

    name: str
    kib: float | None
    gbyte_s: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of one core, for an instruction set of ours: float32 operations, reading by level, the nearest first, and operations
    on bytes that are summed in int32 (None in reports from before they were measured)."""

    instruction_set: str
    gflop_s: float
    levels: tuple[Level, ...]
    int8_gop_s: float | None = None

    def seconds(self, problem: Problem | None, work: Work, threads: int) -> float:
        """The least time that this much work can take; ``problem`` is None for a chain or a network."""
        return self.limit(problem, work, threads)[0]

    def limit(self, problem: Problem | None, work: Work, threads: int) -> tuple[float, str]:
        """The same, and what bounds it: arithmetic, or the level of memory that holds the arrays."""
        moved = held = work.bytes
        if problem is None:
            moved = 0  # what layers hand on stays in the caches or not, as they are cut
        elif problem.op in ops.FAMILIES["rnn"]:
            held = problem.input(ops.rnn.R).nbytes
            moved += (ops.rnn.geometry(ops.rnn.without_layout(problem)).steps - 1) * held
        level = next(level for level in self.levels if level.kib is None or held <= level.kib * 1024)
        peak = self._peak(problem)
        arithmetic = 0.0 if peak is None else work.flops / (peak * 1e9)
        memory = moved / (level.gbyte_s * 1e9)
        return max(arithmetic, memory) / threads, "arithmetic" if arithmetic >= memory else level.name

    def _peak(self, problem: Problem | None) -> float | None:
        """What bounds a problem's operations, in 10^9 a second; None where it multiplies nothing, or nobody measured it."""
        if problem is None:
            return self.gflop_s
        if problem.op in ops.FAMILIES["pool"]:
            return None
        return self.int8_gop_s if problem.dtype in ("int8", "uint8") else self.gflop_s

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "levels": [asdict(level) for level in self.levels]}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Ceilings:
        """The inverse of ``as_dict``."""
        levels = tuple(Level(**level) for level in data["levels"])
        return cls(data["instruction_set"], data["gflop_s"], levels, data.get("int8_gop_s"))


def measure() -> Ceilings:
    """On the core that this process is on: the best of a few tries, a second or two in all."""
    from quatrefoil.cpu import _roofline

    isa = instruction_set.index()
    peak = max(_roofline.flops(isa, PEAK_ROUNDS) for _ in range(PEAK_TRIES))
    bytes_peak = max(_roofline.byte_operations(isa, PEAK_ROUNDS) for _ in range(PEAK_TRIES))
    found = []
    caches = _caches()
    largest = max((size for _, size in caches), default=1 << 26)
    for name, kib, used in [*((name, size / 1024, size // 2) for name, size in caches), ("memory", None, 4 * largest)]:
        block = np.ones(used // 4, np.float32)
        rate = max(_roofline.bytes_read(isa, block, max(1, READ_BYTES // used)) for _ in range(TRIES))
        found.append(Level(name, kib, rate / 1e9))
    return Ceilings(instruction_set.name(), peak / 1e9, tuple(found), bytes_peak / 1e9)


def _caches() -> list[tuple[str, int]]:
    """Name and bytes of the data caches, as Linux tells them; none elsewhere."""
    found = []
    for entry in sorted(CACHES.glob("index*")) if CACHES.exists() else []:
        if (entry / "type").read_text().strip() != "Instruction":
            level, size = (entry / "level").read_text().strip(), (entry / "size").read_text().strip()
            found.append((f"L{level}", int(size.removesuffix("K")) * 1024))
    return found
