"""``quatrefoil doctor``: what this machine can run, what is missing, and the one command that adds it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass

from quatrefoil import backends, settings
from quatrefoil.bench.machine import describe, package_version
from quatrefoil.cli.arguments import AsJson
from quatrefoil.cli.output import say_json, stdout, table
from quatrefoil.fpga import opencl


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for."""

    name: str
    ready: bool
    detail: str
    remedy: str = ""
    kernels: int | None = None


# import name, distribution, what it is for, and the command that adds it
PACKAGES = (
    ("onnxruntime", "onnxruntime", "the peer `ort` of the benchmarks", "pip install 'quatrefoil[peers]'"),
    ("hls4ml", "hls4ml", "export to FPGA HLS", "pip install 'quatrefoil[hls]'"),
    ("sklearn", "scikit-learn", "the digits of the demo", "pip install 'quatrefoil[demo]'"),
)


def command(as_json: AsJson = False) -> None:
    """List every backend and tool: what is there, what is missing, and what adds it."""
    silicon = [_backend(name) for name in backends.names()]
    tools = [*(_package(*entry) for entry in PACKAGES), _compiler()]
    machine = {
        **describe(),
        "threads": str(settings.num_threads()),
        "cache": str(settings.cache_folder()),
        "OpenCL devices": opencl.devices(),
    }
    if as_json:
        say_json({"backends": [asdict(f) for f in silicon], "tools": [asdict(f) for f in tools], "machine": machine})
        return
    console = stdout()
    for title, findings in (("Backends", silicon), ("Tools", tools)):
        rows = table(title, "", "", "found", "to add it")
        for finding in findings:
            count = "" if finding.kernels is None else f" ({finding.kernels} kernels)"
            mark, colour = ("ready", "green") if finding.ready else ("missing", "yellow")
            rows.row(finding.name, mark, finding.detail + count, finding.remedy, marks={1: colour})
        console.print(rows, "")
    rows = table("Machine", "", "")
    for name, value in machine.items():
        rows.row(name, value)
    console.print(rows)


def _backend(name: str) -> Finding:
    house = backends.get(name)
    there = house.probe()
    return Finding(name, there.ready, there.detail, there.remedy, len(house.kernels()))


def _package(module: str, distribution: str, purpose: str, remedy: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(distribution, False, f"needed for {purpose}", remedy)
    return Finding(distribution, True, f"{package_version(distribution)}, for {purpose}")


def _compiler() -> Finding:
    """The C++ compiler that HLS export runs its C simulation with."""
    compiler = os.environ.get("CXX", "g++")
    path = shutil.which(compiler)
    if path is None:
        return Finding(compiler, False, "needed for the C simulation of HLS exports", "sudo apt install g++")
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20)
    return Finding(compiler, True, (told.stdout.splitlines() or [path])[0])
