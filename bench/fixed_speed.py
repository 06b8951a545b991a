"""Our fixed-point operators against hls4ml's C simulation, on the gallery's digits CNN: time, and whether they are equal.

    python -m quatrefoil.bench.fixed_speed [--samples 200] [--rounds 5] [--precision "fixed<16,6>"]

The network is exported with hls4ml, whose simulation g++ compiles (-O3, as hls4ml's own script says) and runs in a
process of its own; then the same layers run here as prepared operators on one thread: a sample at a time, as the
simulation takes them, and all samples at once. Each figure is the best round's, for a sample. Exits with 1 where a
score differs by a bit. It needs g++ and the `hls` extra.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import quatrefoil as qf
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import load
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

Network = Callable[[np.ndarray], np.ndarray]


def simulated(samples: np.ndarray, precision: str, rounds: int) -> tuple[float, np.ndarray, dict[str, str]]:
    """Seconds for a sample, the scores (count, 10) float32, and the C++ types of the project by name.

    samples: (count, 64) float32. Raises QuatrefoilError with the compiler's or the process's last line.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        report = qf.export_hls(path("digits_cnn"), folder, precision=precision)
        _run(["bash", "build_lib.sh"], folder)
        [library] = (folder / "firmware").glob("*.so")
        np.save(folder / "samples.npy", samples)
        files = [str(library), f"{report.name}_float", "samples.npy", "scores.npy", str(rounds)]
        seconds = float(_run([sys.executable, "-c", SIMULATION, *files], folder))
        defines = (folder / "firmware" / "defines.h").read_text(encoding="utf-8")
        types = re.findall(r"typedef (ap_u?fixed<\d+,-?\d+)(,\w+,\w+)?(?:,0)?> (\w+);", defines)
        return seconds, np.load(folder / "scores.npy"), {name: f"{form}{modes}>" for form, modes, name in types}


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
        raise QuatrefoilError(f"{command[0]} ended with {done.returncode} in {folder}: {last}")
    return done.stdout


def network(types: dict[str, str], count: int) -> Network:
    """The digits CNN as prepared fixed-point operators of the project's types: (count, 1, 8, 8) integers to scores."""
    model = load(path("digits_cnn"))
    found = {name: np.asarray(array) for name, array in model.graph.constants.items()}
    result = types["input_t"]

    def products(name: str, x: qf.Tensor, y_type: str, **options: object) -> qf.functional.CallPlan:
        forms = {"w_format": types[f"{name}_weight_t"], "bias_format": types[f"{name}_bias_t"]}
        weight, bias = (
            qf.Fixed.parse(form).quantize(found[f"{name}.{kind}"])
            for kind, form in zip(("weight", "bias"), forms.values(), strict=True)
        )
        return qf.plan(
            qf.fixed_conv, x, weight, bias, x_format=result, accumulator=types[f"{name}_accum_t"], y_format=y_type,
            backend="cpu", **forms, **options,
        )  # fmt: skip

    def halved(*shape: int) -> qf.functional.CallPlan:
        return qf.plan(qf.fixed_max_pool, qf.Tensor("int16", shape), 2, x_format=result, backend="cpu")

    relu = {"activation": "Relu"}
    conv1 = products("conv1", qf.Tensor("int16", (count, 1, 8, 8)), types["layer3_t"], padding=1, **relu)
    pool1 = halved(count, 16, 8, 8)
    conv2 = products("conv2", qf.Tensor("int16", (count, 16, 4, 4)), types["layer6_t"], padding=1, **relu)
    pool2 = halved(count, 32, 4, 4)
    dense1 = products("dense1", qf.Tensor("int16", (count, 128)), types["layer10_t"], **relu)
    dense2 = products("dense2", qf.Tensor("int16", (count, 64)), types["result_t"])

    def run(images: np.ndarray) -> np.ndarray:
        features = pool2(conv2(pool1(conv1(images))))
        scores: np.ndarray = dense2(dense1(features.reshape(count, 128)))
        return scores

    return run


def best(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time fixed-point operators against hls4ml's C simulation.")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="fixed<16,6>", help="of weights and values: int16 at most")
    given = parser.parse_args()
    form, count = qf.Fixed.parse(given.precision), given.samples
    pixels = np.random.default_rng(0).integers(0, 17, (count, 64)).astype(np.float32) / 16  # as in the digits
    try:
        theirs, wanted, types = simulated(pixels, given.precision, given.rounds)
    except QuatrefoilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    images = form.quantize(pixels).reshape(count, 1, 8, 8)
    qf.set_num_threads(1)
    lone, whole = network(types, 1), network(types, count)
    rows = [images[i : i + 1] for i in range(count)]
    alone = best(lambda: [lone(row) for row in rows], given.rounds) / count
    together = best(lambda: whole(images), given.rounds) / count
    for name, seconds in (("C simulation", theirs), ("one at a time", alone), ("all at once", together)):
        print(f"{name:14} {seconds * 1e6:10.2f} us a sample  {theirs / seconds:10.1f}x")
    scores = qf.Fixed.parse(types["result_t"]).quantize(wanted)
    equal = bool((whole(images) == scores).all() and all((lone(row) == scores[i]).all() for i, row in enumerate(rows)))
    print("the scores are equal" if equal else "the scores differ")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
