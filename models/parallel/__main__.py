"""The tables of docs/parallel.md: measured runs on this machine, a lost process, and simulated clusters.

python -m quatrefoil.models.parallel [--steps N]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from typing import Any

from quatrefoil.cpu.instruction_set import processor_name
from quatrefoil.models.parallel.cluster import Cluster, parameter_server, synchronous
from quatrefoil.models.parallel.job import Job
from quatrefoil.models.parallel.launch import Result, train

RUNS: tuple[dict[str, Any], ...] = (
    {},
    {"replicas": 2},
    {"layers": 2},
    {"channels": 2},
    {"asynchronous": True, "replicas": 2},
    {"replicas": 4},
    {"layers": 4},
    {"channels": 4},
    {"layers": 2, "channels": 2},
    {"replicas": 2, "channels": 2},
    {"replicas": 2, "layers": 2},
    {"asynchronous": True, "replicas": 4},
)


def measured(steps: int) -> list[str]:
    lines = [
        "| divided | processes | ms a step | kB sent a step | held-out accuracy | staleness (mean, most) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            job = Job(directory=folder, steps=steps, **run)
            if job.asynchronous:
                # every step becomes several updates, and what is stale counts for less
                workers = job.replicas - 1
                job = replace(job, batch=job.batch // workers * workers, momentum=0.0, rate=0.1)
            lines.append(row(train(job)))
    return lines


def row(result: Result) -> str:
    stale = f"{result.staleness_mean:.1f}, {result.staleness_most}" if result.staleness_most else ""
    return (
        f"| {result.division} | {result.processes} | {result.seconds_per_step * 1e3:.1f} "
        f"| {result.bytes_per_step / 1e3:,.0f} | {result.accuracy:.1%} | {stale} |"
    )


def lost() -> list[str]:
    lines = ["| lost | restarts allowed | what was printed |", "| --- | ---: | --- |"]
    lives: tuple[tuple[dict[str, Any], int], ...] = (
        ({"replicas": 2}, 1),
        ({"layers": 2}, 0),
        ({"asynchronous": True, "replicas": 3}, 2),
    )
    for run, rank in lives:
        with tempfile.TemporaryDirectory() as folder:
            job = Job(directory=folder, steps=40, keep_every=1, end_process=(rank, 20), **run)
            result = train(job, restarts=1)
            lines.append(
                f"| process {rank} at step 20 of {result.division} | 1 | restarted {result.restarts} time, "
                f"went on at step {result.began_at}, accuracy {result.accuracy:.1%} |"
            )
    return lines


def simulated() -> list[str]:
    lines = [
        "| workers | ring | tree | ring, spread 0.2 | parameter server, spread 0.2 | its staleness |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for workers in (2, 8, 32, 128, 512):
        even = Cluster(workers, 0.1, 0.0, 100e6, 20e-6, 12.5e9)
        uneven = replace(even, spread=0.2)
        served = parameter_server(uneven)
        cells = [
            synchronous(even, even.ring()).speedup,
            synchronous(even, even.tree()).speedup,
            synchronous(uneven, uneven.ring()).speedup,
            served.speedup,
            served.staleness,
        ]
        lines.append(f"| {workers} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quatrefoil.models.parallel")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    print(f"Measured on {processor_name()}, one thread a process, batch 64, {arguments.steps} steps:\n")
    print("\n".join(measured(arguments.steps)), end="\n\n")
    print("\n".join(lost()), end="\n\n")
    print("Simulated: speed over one worker; 0.1 s a step, 100 MB of gradients, links of 12.5 GB/s and 20 us:\n")
    print("\n".join(simulated()))


if __name__ == "__main__":
    main()
