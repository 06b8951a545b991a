"""How long it takes to time a whole network on each shipped design, and how much memory.

    python -m quatrefoil.bench.simulator_speed [--network resnet50] [--runs N] [DESIGN ...]

Timing follows from types, so a fresh process is handed the network's operations with their types, searches the mappings
and sums up the layers, once: reports of layers are kept within a process, and a second time would measure that. The time is
of that alone, without the start of Python, its imports and the reading of the network. Of several runs the fastest time
and the greatest peak memory are printed; the latter is that of the whole process, imports included, as Linux counts it.
A design that multiplies no float32 is given the network in the first of its formats, as if quantised.
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
from dataclasses import dataclass

from quatrefoil import asic_sim
from quatrefoil.bench import networks
from quatrefoil.bench.scalesim_speed import PEAK_MEMORY
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import load
from quatrefoil.models.simulation import Workload, workload

TIMED = (
    """
import pickle, sys, time
from quatrefoil import asic_sim
from quatrefoil.models.simulation import cost
design, as_format = asic_sim.load(sys.argv[1]), sys.argv[2] or None
asked = pickle.load(sys.stdin.buffer)
started = time.perf_counter()
report = cost(asked, design, as_format=as_format)
seconds = time.perf_counter() - started
"""
    + PEAK_MEMORY
    + """
print(seconds, report.cycles, memory)
"""
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds, simulated cycles, and the process's peak memory in bytes."""

    seconds: float
    cycles: int
    memory: int


def measured(asked: Workload, design: asic_sim.Hardware, source: str, as_format: str | None) -> Speed:
    """Times it in a process of its own. Raises QuatrefoilError where that fails, with what it said last."""
    command = [sys.executable, "-c", TIMED, source, as_format or ""]
    done = subprocess.run(command, input=pickle.dumps(asked), capture_output=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.decode().strip() or "nothing was said").splitlines()[-1]
        raise QuatrefoilError(f"timing on {design.name} ended with {done.returncode}: {last}")
    seconds, cycles, kibibytes = done.stdout.split()
    return Speed(float(seconds), int(cycles), int(kibibytes) * 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the timing of a network on designs of the simulated chip.")
    parser.add_argument("designs", nargs="*", help="names or TOML files; by default all that come with the package")
    parser.add_argument("--network", default="resnet50", help=", ".join(networks.NETWORKS))
    parser.add_argument("--runs", type=int, default=5, help="fresh processes for each design")
    given = parser.parse_args()
    try:
        if given.runs < 1:
            raise QuatrefoilError(f"--runs is {given.runs}; it takes at least one")
        asked = workload(load(networks.network(given.network)))
        print(f"{'design':18}{'as':>12}{'cycles':>16}{'ms':>10}{'cycles/s':>12}{'peak, MB':>10}")
        for source in given.designs or asic_sim.shipped():
            design = asic_sim.load(source)
            formats = [name for name, _ in design.formats]
            as_format = None if "float32" in formats else formats[0]
            speeds = [measured(asked, design, source, as_format) for _ in range(given.runs)]
            seconds, memory = min(each.seconds for each in speeds), max(each.memory for each in speeds)
            cycles = speeds[0].cycles
            print(
                f"{design.name:18}{as_format or 'float32':>12}{cycles:16,}{seconds * 1e3:10.1f}{cycles / seconds:12.2g}"
                f"{memory / 1e6:10.1f}"
            )
    except QuatrefoilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
