"""``quatrefoil info``: the support matrix in the columns of surveys: hardware, languages, parallelism, operators.

Everything but the two sentences of a target comes from the kernels' declarations: which targets a backend has, how many
kernels an operator has there, and which number formats they cover (``bench/support_table.py``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from quatrefoil import backends, ops
from quatrefoil.bench.support_table import cell, support
from quatrefoil.cli.arguments import AsJson
from quatrefoil.cli.output import say_json, stdout, table


@dataclass(frozen=True, slots=True)
class Target:
    """What the last part of a kernel's id stands for."""

    language: str
    parallel: str


TARGETS = {
    "simd": Target("C++ and Cython", "SIMD lanes and OpenMP threads"),
    "vnni": Target("C++ and Cython", "byte products of SIMD lanes, OpenMP threads"),
    "amx": Target("C++ and Cython", "tile registers, OpenMP threads"),
    "cuda": Target("CUDA C++", "thread blocks and tensor cores"),
    "numba": Target("Numba CUDA (Python)", "thread blocks"),
    "opencl": Target("OpenCL C", "pipelined single work-items, or work-groups"),
    "asic": Target("C++ (its Verilog is generated)", "a simulated array and vector unit"),
}


@dataclass(frozen=True, slots=True)
class Silicon:
    """One backend: where it runs, in which languages its kernels are written, and what works side by side."""

    backend: str
    ready: bool
    hardware: str
    simulated: bool
    kernels: int
    languages: tuple[str, ...]
    parallel: tuple[str, ...]


def silicon(name: str) -> Silicon:
    house = backends.get(name)
    there, kernels = house.probe(), house.kernels()
    targets = [TARGETS[target] for target in sorted({target_of(kernel.id) for kernel in kernels}) if target in TARGETS]
    return Silicon(
        name, there.ready, there.detail, house.simulated, len(kernels),
        tuple(dict.fromkeys(target.language for target in targets)),
        tuple(dict.fromkeys(target.parallel for target in targets)),
    )  # fmt: skip


def target_of(kernel_id: str) -> str:
    return kernel_id.rsplit("_", 1)[1]


def operators() -> dict[str, dict[str, str]]:
    """By operator and backend, the number formats that its kernels cover."""
    return {op: {name: cell(support(op, name)) for name in backends.names()} for op in ops.SPECS}


def command(as_json: AsJson = False) -> None:
    """What quatrefoil runs on, is written in, does side by side, and computes: read from its kernels."""
    rows = [silicon(name) for name in backends.names()]
    computed = operators()
    if as_json:
        say_json({"backends": [asdict(row) for row in rows], "operators": computed})
        return
    console = stdout()
    hardware = table("Hardware", "backend", "kernels", "here", "languages", "side by side", right=("kernels",))
    for row in rows:
        hardware.row(row.backend, str(row.kernels), row.hardware, "\n".join(row.languages), "\n".join(row.parallel))
    console.print(hardware, "")
    formats = table("Operators", "operator", *(row.backend for row in rows))
    for op, cells in computed.items():
        formats.row(op, *cells.values())
    console.print(formats)
