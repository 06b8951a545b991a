"""The memory that a model takes: loading, and running, in ours and in ONNX Runtime.

    python -m quatrefoil.bench.model_memory [--network NAME ...] [--rounds N] [--calls N]

Each model is loaded from an ONNX file and run on one image by one thread, in a fresh process for each runtime. What is counted is
the process's memory as Linux counts it (VmRSS, and VmHWM for peaks; the mark is put back by /proc/self/clear_refs), less what
Python with NumPy and the input had before:

    loading    the peak while the runtime is imported, and the model is read, prepared and run for the first time
    running    the peak of the calls after that
    weights    bytes of the float32 constants in the file, for scale

ours is the model as `quatrefoil.load` gives it; ONNX Runtime has the defaults of its CPU provider (all graph optimisations, its
arena), and once more without the arena. Of several rounds the medians are printed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from quatrefoil.bench import networks
from quatrefoil.errors import QuatrefoilError

MEBIBYTE = 1 << 20

COUNTED = """
import sys
import numpy as np
def memory(key):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(key))
def forget_peak():
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")
path, calls = sys.argv[1], int(sys.argv[2])
shape = tuple(int(extent) for extent in sys.argv[3].split("x"))
x = np.random.default_rng(0).standard_normal(shape, np.float32)
forget_peak()
before = memory("VmRSS")
{load}
run()
loading = memory("VmHWM") - before
forget_peak()
for _ in range(calls):
    run()
running = memory("VmHWM") - before
print(loading, running)
"""

OURS = COUNTED.format(
    load="""
import quatrefoil as qf
qf.set_num_threads(1)
model = qf.load(path)
run = lambda: model.run(x)
"""
)


def _onnxruntime(arena: bool) -> str:
    return COUNTED.format(
        load=f"""
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.enable_cpu_mem_arena = {arena}
session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
name = session.get_inputs()[0].name
run = lambda: session.run(None, {{name: x}})
""",
    )


RUNTIMES = {"ours": OURS, "onnxruntime": _onnxruntime(True), "without arena": _onnxruntime(False)}


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes above what the process had before it loaded the model."""

    loading: int
    running: int


def taken(program: str, path: Path, calls: int, shape: tuple[int, ...]) -> Taken:
    """Raises QuatrefoilError where the process fails, with what it said last."""
    command = [sys.executable, "-c", program, str(path), str(calls), "x".join(map(str, shape))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise QuatrefoilError((done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1])
    loading, running = map(int, done.stdout.split()[-2:])
    return Taken(loading, running)


def main() -> int:
    parser = argparse.ArgumentParser(description="The memory that models take, in ours and in ONNX Runtime.")
    parser.add_argument("--network", nargs="+", default=list(networks.NETWORKS), help=", ".join(networks.NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=10, help="after the first one")
    given = parser.parse_args()
    titles = [f"{what}: {name}" for what in ("loading", "running") for name in RUNTIMES]
    print(f"{'MiB':16}{'weights':>10}{''.join(f'{title:>24}' for title in titles)}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in given.network:
                _print(name, Path(folder) / f"{name}.onnx", given.rounds, given.calls)
    except QuatrefoilError as error:
        print(f"model_memory: {error}", file=sys.stderr)
        return 1
    return 0


def _print(name: str, path: Path, rounds: int, calls: int) -> None:
    model = networks.network(name)
    onnx.save(model, path)
    shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    weights = sum(4 * math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == 1)
    found: dict[str, list[Taken]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(rounds):
        for runtime, program in RUNTIMES.items():
            found[runtime].append(taken(program, path, calls, shape))
    loading = [statistics.median(each.loading for each in all_) for all_ in found.values()]
    running = [statistics.median(each.running for each in all_) for all_ in found.values()]
    print(f"{name:16}{weights / MEBIBYTE:10.1f}{''.join(f'{each / MEBIBYTE:24.1f}' for each in (*loading, *running))}")


if __name__ == "__main__":
    sys.exit(main())
