"""The folder map (kernels/ is the package ``quatrefoil``, cpu/ is ``quatrefoil.cpu``, …) and the compiled parts.

``quatrefoil.cpu._conv``, ``_pool`` and ``_rnn`` are thin Cython modules over C++ sources, each compiled once per
instruction set.
``quatrefoil.asic_sim._native`` is C++ through pybind11.

    python setup.py build_ext --inplace [--only cpu|cpu._conv|asic_sim]
"""

from __future__ import annotations

import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
ROOMS = {"quatrefoil": "kernels"} | {
    f"quatrefoil.{name}": name for name in ("cpu", "gpu", "fpga", "asic_sim", "models", "bench", "cli")
}

# Each instruction set with the flags that select it. QF_ISA names it inside the sources.
INSTRUCTION_SETS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {f"v{level}": [f"-march=x86-64-v{level}"] for level in (2, 3, 4)}
    INSTRUCTION_SETS["v4"].append("-mprefer-vector-width=512")
# QUATREFOIL_EMULATE_V4=1 makes v4's vectors (and tiles) out of AVX2's instructions, so that they can be tested on a processor
# without AVX-512 (see the Makefile). -O1 because at -O3 such vectors take minutes a source to compile.
EMULATE_V4 = os.environ.get("QUATREFOIL_EMULATE_V4") == "1" and "v4" in INSTRUCTION_SETS
if EMULATE_V4:
    INSTRUCTION_SETS["v4"] = [*INSTRUCTION_SETS["v3"], "-O1", "-Wno-psabi"]

# Sets beyond v4, for which few sources are compiled: the others serve them with what they have for v4.
FURTHER_SETS = {}
if "v4" in INSTRUCTION_SETS:
    FURTHER_SETS = {
        "v4_vnni": [*INSTRUCTION_SETS["v4"], *([] if EMULATE_V4 else ["-mavx512vnni"])],
        "v4_amx": [
            *INSTRUCTION_SETS["v4"],
            *([] if EMULATE_V4 else [f"-m{feature}" for feature in (
                "avx512vnni", "avx512bf16", "avx512vbmi", "avx512vbmi2", "amx-tile", "amx-int8", "amx-bf16",
            )]),
        ],
    }  # fmt: skip

# -g0: the debug information that Python asks of every compilation takes a quarter of its time
CPP_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]
CPU_FLAGS = [*CPP_FLAGS, "-fopenmp", "-ffp-contract=fast", "-fno-trapping-math"]
# QUATREFOIL_SANITIZE=address,undefined builds the native code under these sanitizers (see the Makefile).
SANITIZERS = os.environ.get("QUATREFOIL_SANITIZE", "")
# -O1 because checks take several times as long to compile at -O3 and find the same.
SANITIZE_FLAGS = [f"-fsanitize={SANITIZERS}", "-fno-omit-frame-pointer", "-g1", "-O1"] if SANITIZERS else []


def sets_of(source: str) -> dict[str, list[str]]:
    """The instruction sets that a source is compiled for, each with its flags."""
    name = Path(source).stem
    if name.endswith("_tiles"):  # on the tile registers of AMX, which no other set has
        return {isa: flags for isa, flags in FURTHER_SETS.items() if isa == "v4_amx"}
    if name in ("shared_conv", "rnn_shared", "sequence_bytes"):  # permutations of bytes, which v4_amx's processors have
        return INSTRUCTION_SETS | {isa: flags for isa, flags in FURTHER_SETS.items() if isa == "v4_amx"}
    if name in (
        "conv_integer_gemm", "conv_integer_depthwise", "conv_integer_channels", "fixed_products", "roofline_integer",
    ):  # fmt: skip
        return INSTRUCTION_SETS | {isa: flags for isa, flags in FURTHER_SETS.items() if isa == "v4_vnni"}
    return INSTRUCTION_SETS


def packages() -> dict[str, str]:
    """Every importable package and its folder."""
    found = {}
    for package, room in ROOMS.items():
        for init in sorted((ROOT / room).rglob("__init__.py")):
            inner = init.parent.relative_to(ROOT / room).parts
            found[".".join((package, *inner))] = str(init.parent.relative_to(ROOT))
    return found


def sources_of(path: str, folders: list[str]) -> set[str]:
    """A source and our headers that it includes, and that they include, so that a change compiles what it concerns."""
    found, pending = set(), [path]
    while pending:
        path = pending.pop()
        found.add(path)
        for name in re.findall(r'^#include "([^"]+)"', Path(path).read_text(), re.MULTILINE):
            places = [os.path.join(folder, name) for folder in folders]
            pending += [place for place in places if os.path.exists(place) and place not in found]
    return found


class BuildNative(build_ext):
    """build_ext that compiles an extension's ``per_isa`` sources once per instruction set."""

    user_options: ClassVar = [
        *build_ext.user_options,
        ("only=", None, "build these extensions alone (cpu, cpu._conv, asic_sim)"),
    ]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.only = None

    def build_extensions(self) -> None:
        if self.only:
            self.extensions = [e for e in self.extensions if f"{e.name}.".startswith(f"quatrefoil.{self.only}.")]
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        common, self.build_temp = self.build_temp, os.path.join(self.build_temp, ext.name)
        try:
            objects = self.compile_per_isa(ext)
            ext.extra_objects = [*ext.extra_objects, *objects]
            ext.depends = [*ext.depends, *objects]  # a newer object is a reason to link again
            super().build_extension(ext)
        finally:
            self.build_temp = common

    def compile_per_isa(self, ext: Extension) -> list[str]:
        jobs, targets = [], []
        for source in getattr(ext, "per_isa", []):
            for isa, flags in sets_of(source).items():
                target = Path(self.build_temp, isa, Path(source).with_suffix(".o").name)
                targets.append(str(target))
                newest = max(os.path.getmtime(path) for path in [__file__, *sources_of(source, ext.include_dirs)])
                if self.force or not target.exists() or target.stat().st_mtime < newest:
                    jobs.append((source, isa, flags))

        def compile_one(job: tuple[str, str, list[str]]) -> None:
            source, isa, flags = job
            output = Path(self.build_temp, isa)
            built = self.compiler.compile(
                [source],
                output_dir=str(output),
                macros=[("QF_ISA", isa), *((f"QF_ISA_{name.upper()}", "1") for name in {isa, isa.split("_")[0]})],
                include_dirs=ext.include_dirs,
                extra_postargs=[*ext.extra_compile_args, *flags],
            )
            os.replace(built[0], output / Path(source).with_suffix(".o").name)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, jobs))
        return targets


def extensions() -> list[Extension]:
    import numpy
    from Cython.Build import cythonize
    from pybind11 import get_include

    headers = [str(path) for path in (ROOT / "kernels" / "include").rglob("*.h")]
    built = []
    cpu_headers = [str(path.relative_to(ROOT)) for path in (ROOT / "cpu" / "src").glob("*.h")]
    for module in sorted((ROOT / "cpu").glob("_*.pyx")):
        # _conv.pyx is the thin door to cpu/src/conv*.cpp
        cpu = Extension(
            f"quatrefoil.cpu.{module.stem}",
            [f"cpu/{module.name}"],
            language="c++",
            include_dirs=["kernels/include", "cpu/src", numpy.get_include()],
            define_macros=[(f"QF_HAS_{isa.upper()}", "1") for isa in INSTRUCTION_SETS]
            + [("QF_EMULATED_V4", "1")] * EMULATE_V4,
            extra_compile_args=[*CPU_FLAGS, *SANITIZE_FLAGS],
            extra_link_args=["-fopenmp", *SANITIZE_FLAGS],
            depends=[*headers, *cpu_headers],
        )
        [cpu] = cythonize([cpu], build_dir="build", language_level=3)
        cpu.per_isa = sorted(f"cpu/src/{path.name}" for path in (ROOT / "cpu" / "src").glob(f"{module.stem[1:]}*.cpp"))
        built.append(cpu)
    asic_sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "asic_sim" / "src").glob("*.cpp"))
    if asic_sources:
        built.append(
            Extension(
                "quatrefoil.asic_sim._native",
                asic_sources,
                language="c++",
                include_dirs=[get_include(), "kernels/include", "asic_sim/src"],
                # every product and every sum is rounded once, as in the array: no fused multiply-add
                extra_compile_args=[*CPP_FLAGS, "-ffp-contract=off", *SANITIZE_FLAGS],
                extra_link_args=SANITIZE_FLAGS,
                depends=[*headers, *(str(path.relative_to(ROOT)) for path in (ROOT / "asic_sim" / "src").glob("*.h"))],
            )
        )
    return built


FOLDERS = packages()

setup(
    packages=list(FOLDERS),
    package_dir=FOLDERS,
    package_data={
        "quatrefoil": ["include/quatrefoil/*.h", "py.typed"],
        "quatrefoil.jax": ["*.cpp"],
        "quatrefoil.gpu": ["src/*"],
        "quatrefoil.gpu.emulation": ["*.h"],
        "quatrefoil.fpga": ["src/*"],
        "quatrefoil.fpga.hls4ml_export": ["*.h"],
        "quatrefoil.asic_sim": ["designs/*.toml"],
        "quatrefoil.asic_sim.rtl": ["*.cpp", "verilog/*.v"],
        "quatrefoil.models.onnxruntime_session": ["*.cpp"],
        "quatrefoil.models": ["gallery/*.onnx"],
        "quatrefoil.bench": ["*.toml", "suites/*.toml"],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildNative},
)
