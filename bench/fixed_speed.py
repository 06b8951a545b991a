"""Our fixed point against hls4ml's C simulation, on the gallery's digits CNN: time, and whether they are equal.

    python -m quatrefoil.bench.fixed_speed [--samples 200] [--rounds 5] [--precision "fixed<16,6>"]

The network is exported with hls4ml, whose simulation g++ compiles (-O3, as hls4ml's own script says) and runs in a
process of its own; then the same fixed-point network runs here on one thread, from floats to floats as the simulation
does: a sample at a time, and all samples at once. Each figure is the best round's, for a sample. Exits with 1 where a
score differs. It needs g++ and the `hls` extra.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import quatrefoil as qf
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import path

SIMULATION = """
import ctypes, sys, time
import numpy as np
library, function, given, taken, rounds = sys.argv[1:]
top = getattr(ctypes.CDLL(library), function)
top.restype = None
pointer = ctypes.POINTER(ctypes.c_float)
samples = np.load(given)
scores = np.zeros((len(samples), 10), np.float32)
calls = [[row.ctypes.data_as(pointer) for row in pair] for pair in zip(samples, scores)]
times = []
for _ in range(int(rounds)):
    started = time.perf_counter()
    for image, found in calls:
        top(image, found)
    times.append(time.perf_counter() - started)
np.save(taken, scores)
print(min(times) / len(samples))
"""


def simulated(network: qf.FixedNetwork, samples: np.ndarray, rounds: int) -> tuple[float, np.ndarray]:
    """Seconds for a sample in the C simulation, and the scores (count, 10) float32.

    samples: (count, 64) float32. Raises QuatrefoilError with the compiler's or the process's last line.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        report = qf.export_hls(network, folder)
        _run(["bash", "build_lib.sh"], folder)
        [library] = (folder / "firmware").glob("*.so")
        np.save(folder / "samples.npy", samples)
        files = [str(library), f"{report.project}_float", "samples.npy", "scores.npy", str(rounds)]
        seconds = float(_run([sys.executable, "-c", SIMULATION, *files], folder))
        return seconds, np.load(folder / "scores.npy")


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
        raise QuatrefoilError(f"{command[0]} ended with {done.returncode} in {folder}: {last}")
    return done.stdout


def best(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time a fixed-point network against hls4ml's C simulation.")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="fixed<16,6>", help="of weights and values")
    given = parser.parse_args()
    count = given.samples
    pixels = np.random.default_rng(0).integers(0, 17, (count, 64)).astype(np.float32) / 16  # as in the digits
    network = qf.fixed(path("digits_cnn"), given.precision)
    try:
        theirs, wanted = simulated(network, pixels, given.rounds)
    except QuatrefoilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    images = pixels.reshape(count, 1, 8, 8)
    qf.set_num_threads(1)
    rows = [{"image": images[i : i + 1]} for i in range(count)]
    scores = network.run(images)["scores"]
    lone = np.concatenate([network.run(row)["scores"] for row in rows])
    alone = best(lambda: [network.run(row) for row in rows], given.rounds) / count
    together = best(lambda: network.run({"image": images}), given.rounds) / count
    for name, seconds in (("C simulation", theirs), ("one at a time", alone), ("all at once", together)):
        print(f"{name:14} {seconds * 1e6:10.2f} us a sample  {theirs / seconds:10.1f}x")
    equal = np.array_equal(scores, wanted) and np.array_equal(lone, wanted)
    print("the scores are equal" if equal else "the scores differ")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
