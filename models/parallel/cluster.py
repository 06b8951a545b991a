"""What larger clusters would take, by simulation: nothing here was measured on a cluster.

Messages cost ``latency + bytes / bandwidth``. A ring all-reduce takes 2 (p - 1) rounds of n / p bytes (Patarasuk, Yuan 2009), a
binary tree 2 ceil(log2 p) rounds of n bytes. A synchronous step takes the slowest worker's computation and then the
all-reduce; a worker's computation is drawn from a lognormal distribution of the given mean and spread. A parameter server
receives and sends one message at a time over its own link; its workers do not wait for each other.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from quatrefoil.errors import QuatrefoilError


@dataclass(frozen=True, slots=True)
class Cluster:
    """compute_s: seconds of a worker's forward and backward pass, in the mean. spread: the standard deviation of its logarithm.
    gradient_bytes: what a worker sends a step. latency_s, bytes_per_s: of one link."""

    workers: int
    compute_s: float
    spread: float
    gradient_bytes: float
    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        for name in ("workers", "compute_s", "gradient_bytes", "bytes_per_s"):
            if not getattr(self, name) > 0:
                raise QuatrefoilError(f"{name} is {getattr(self, name)}; it has to be above 0")
        for name in ("spread", "latency_s"):
            if not getattr(self, name) >= 0:
                raise QuatrefoilError(f"{name} is {getattr(self, name)}; it has to be at least 0")

    def message(self, size: float) -> float:
        return self.latency_s + size / self.bytes_per_s

    def ring(self) -> float:
        """Seconds of a ring all-reduce."""
        return 2 * (self.workers - 1) * self.message(self.gradient_bytes / self.workers)

    def tree(self) -> float:
        """Seconds of an all-reduce up and down a binary tree."""
        return 2 * math.ceil(math.log2(self.workers)) * self.message(self.gradient_bytes)

    def computations(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """Seconds of ``count`` computations."""
        return self.compute_s * draw.lognormal(-(self.spread**2) / 2, self.spread, count)


@dataclass(frozen=True, slots=True)
class Simulated:
    """Steps a second of all workers together, that over one worker without communication, and a gradient's mean staleness."""

    steps_per_s: float
    speedup: float
    staleness: float


def synchronous(cluster: Cluster, reduce_s: float, steps: int = 1000, seed: int = 1) -> Simulated:
    """Every step waits for the slowest worker, then all-reduces in ``reduce_s``."""
    draw = np.random.default_rng(seed)
    times = cluster.computations(draw, steps * cluster.workers).reshape(steps, cluster.workers).max(1) + reduce_s
    rate = cluster.workers / float(times.mean())
    return Simulated(rate, rate * cluster.compute_s, 0.0)


def parameter_server(cluster: Cluster, updates: int = 5000, seed: int = 1) -> Simulated:
    """Workers send gradients when they have them; the server's link takes one message at a time, each way."""
    draw = np.random.default_rng(seed)
    times = iter(cluster.computations(draw, updates + cluster.workers))
    transfer = cluster.message(cluster.gradient_bytes)
    events = [(float(next(times)), worker) for worker in range(cluster.workers)]
    heapq.heapify(events)
    version, given = 0, [0] * cluster.workers
    incoming = outgoing = 0.0
    stale = 0
    while version < updates:
        ready, worker = heapq.heappop(events)
        incoming = max(ready, incoming) + transfer
        stale += version - given[worker]
        version += 1
        given[worker] = version
        outgoing = max(incoming, outgoing) + transfer
        heapq.heappush(events, (outgoing + float(next(times)), worker))
    rate = updates / incoming
    return Simulated(rate, rate * cluster.compute_s, stale / updates)
