"""What a parallel run trains, and how it is divided."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from quatrefoil.errors import QuatrefoilError

STAGES = 4
"""The network's stages, of which a process takes one or more in a row."""

CHANNEL_DIVISORS = (1, 2, 4, 8, 16)
"""What divides the channels of every divided layer."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: every process reads the same.

    replicas, layers, channels  how many copies of the network, how many parts in a row, and over how many processes the
        channels of a layer are divided; their product is the number of processes
    asynchronous  in place of these: one process is the parameter server, ``replicas`` - 1 others train
    staleness  how many updates a worker may be ahead of the slowest one before the server lets it wait (asynchronous)
    batch  samples of a step, over all processes together
    microbatches  the pieces that a pipeline cuts a replica's samples into
    directory  where checkpoints and results go
    keep_every  steps between checkpoints; 0 writes none
    end_process  (rank, step): that process ends itself by SIGKILL there, once, to show what happens
    """

    directory: str
    replicas: int = 1
    layers: int = 1
    channels: int = 1
    asynchronous: bool = False
    staleness: int = 4
    steps: int = 200
    batch: int = 64
    microbatches: int = 4
    rate: float = 0.05
    momentum: float = 0.9
    seed: int = 1
    keep_every: int = 0
    end_process: tuple[int, int] | None = None

    @property
    def processes(self) -> int:
        return self.replicas * self.layers * self.channels

    @property
    def division(self) -> str:
        """In words, as checkpoints and tables name it."""
        if self.asynchronous:
            return f"parameter server, {self.replicas - 1} workers"
        named = {"replicas": self.replicas, "layers": self.layers, "channels": self.channels}
        return " x ".join(f"{count} {name}" for name, count in named.items() if count > 1) or "one process"

    def check(self, samples: int) -> None:
        """Raises QuatrefoilError for a division that cannot be, before any process starts."""
        for name in ("replicas", "layers", "channels", "steps", "batch", "microbatches"):
            if getattr(self, name) < 1:
                raise QuatrefoilError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        if self.batch > samples:
            raise QuatrefoilError(f"a step takes {self.batch} samples and there are {samples}; take a smaller batch")
        if self.replicas > self.batch:
            raise QuatrefoilError(
                f"{self.replicas} replicas share {self.batch} samples of a step; take a larger batch or fewer processes"
            )
        if self.asynchronous:
            if self.layers > 1 or self.channels > 1:
                raise QuatrefoilError(
                    "a parameter server has whole networks as workers; leave layers and channels at 1"
                )
            if self.replicas < 2:
                raise QuatrefoilError("a parameter server needs a worker: replicas has to be at least 2")
            if self.staleness < 0:
                raise QuatrefoilError(f"staleness is {self.staleness}; it has to be at least 0")
            if self.batch % (self.replicas - 1):
                raise QuatrefoilError(f"{self.batch} samples do not divide evenly among {self.replicas - 1} workers")
            return
        if self.batch % self.replicas:
            raise QuatrefoilError(f"{self.batch} samples do not divide evenly among {self.replicas} replicas")
        if self.layers > STAGES:
            raise QuatrefoilError(f"the network has {STAGES} stages, which {self.layers} processes cannot share")
        if STAGES % self.layers:
            raise QuatrefoilError(f"{STAGES} stages do not divide evenly among {self.layers} processes")
        if self.layers > 1 and self.batch // self.replicas % self.microbatches:
            raise QuatrefoilError(
                f"{self.batch // self.replicas} samples of a replica do not divide into {self.microbatches} microbatches"
            )
        if self.channels not in CHANNEL_DIVISORS:
            raise QuatrefoilError(
                f"channels divide among {', '.join(map(str, CHANNEL_DIVISORS))} processes, not {self.channels}"
            )

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        said = json.loads(path.read_text())
        ends = said.pop("end_process")
        return cls(**said, end_process=None if ends is None else (ends[0], ends[1]))
