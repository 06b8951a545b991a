"""Our SCALE-Sim figures against SCALE-Sim itself, on the same files: wall time, peak memory, and whether they are equal.

    python -m quatrefoil.bench.scalesim_speed --peer VENV/bin/python --config scale.cfg --topology net.csv

``--peer`` is a Python that has scalesim 3.0.0 (with NumPy 2.3; it does not run with 2.4). Each side runs in a process of
its own. Times are from reading the files to having written the reports, without the start of Python and its imports;
peak memory is that of the whole process, as Linux counts it. Exits with 1 where the reports differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from quatrefoil.asic_sim import scalesim
from quatrefoil.errors import QuatrefoilError

OURS = """
import sys, time
from pathlib import Path
from quatrefoil.asic_sim import scalesim
config, topology, _, out, _ = sys.argv[1:]
started = time.perf_counter()
read = scalesim.read_config(Path(config))
results = [scalesim.simulate(layer, read) for layer in scalesim.read_topology(Path(topology))]
scalesim.write_reports(results, Path(out) / read.run_name)
"""

THEIRS = """
import sys, time
from scalesim.scale_sim import scalesim
config, topology, layout, out, kind = sys.argv[1:]
started = time.perf_counter()
run = scalesim(save_disk_space=True, verbose=False, config=config, topology=topology, layout=layout,
               input_type_gemm=kind == "gemm")
run.run_scale(top_path=out)
"""

PEAK_MEMORY = """
with open("/proc/self/status") as status:
    memory = next(line.split()[1] for line in status if line.startswith("VmHWM"))
"""
"""Of this process up to now, in KiB, for a program that is run as text."""

TOOK = f"""
seconds = time.perf_counter() - started
{PEAK_MEMORY}
print(f"took {{seconds}} {{memory}}")
"""


@dataclass(frozen=True, slots=True)
class Side:
    """A run: its wall time in seconds, its peak memory in bytes, and its reports by file name."""

    seconds: float
    memory: int
    reports: dict[str, str]


def measured(python: str, code: str, config: Path, topology: Path) -> Side:
    """Runs one side in a process. Raises QuatrefoilError where it fails, with what it said last."""
    products = scalesim.has_products(topology)
    with tempfile.TemporaryDirectory() as folder:
        layout = Path(folder) / "layout.csv"
        layout.write_text("Layer name\n", encoding="utf-8")
        arguments = [str(config), str(topology), str(layout), str(Path(folder) / "out"), "gemm" if products else "conv"]
        done = subprocess.run([python, "-c", code + TOOK, *arguments], capture_output=True, text=True, check=False)
        took = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("took ")]
        if done.returncode != 0 or not took:
            last = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
            raise QuatrefoilError(f"{python} ended with {done.returncode}: {last}")
        out = Path(folder) / "out" / scalesim.read_config(config).run_name
        reports = {path.name: path.read_text(encoding="utf-8") for path in sorted(out.glob("*.csv"))}
    [[seconds, kibibytes]] = took
    return Side(float(seconds), int(kibibytes) * 1024, reports)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time our SCALE-Sim figures against SCALE-Sim's own.")
    parser.add_argument("--peer", required=True, help="a Python that has scalesim 3.0.0")
    parser.add_argument("--config", required=True, type=Path, help="SCALE-Sim's .cfg, InterfaceBandwidth: CALC")
    parser.add_argument("--topology", required=True, type=Path, help="SCALE-Sim's topology CSV")
    given = parser.parse_args()
    try:
        ours = measured(sys.executable, OURS, given.config, given.topology)
        theirs = measured(given.peer, THEIRS, given.config, given.topology)
    except QuatrefoilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, side in (("quatrefoil", ours), ("SCALE-Sim", theirs)):
        print(f"{name:10}  {side.seconds:12.4f} s  {side.memory / 2**20:10.1f} MiB")
    print(f"{'ratio':10}  {theirs.seconds / ours.seconds:12,.0f}    {theirs.memory / ours.memory:10.1f}")
    equal = ours.reports == theirs.reports
    print("the reports are equal" if equal else "the reports differ")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
