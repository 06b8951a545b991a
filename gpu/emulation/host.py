"""Compiles a CUDA C++ kernel with g++ under ``cuda_emulator.h`` and calls it through ctypes.

Shared libraries are kept in ``settings.cache_folder()/emulated`` under a digest of their contents.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil import settings
from quatrefoil.gpu import compiler
from quatrefoil.gpu.launch import KernelFault

EMULATOR = Path(__file__).parent / "cuda_emulator.h"
# No contraction: the emulated sums are those of the source, and __fmul_rn is a plain product.
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas")
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")

_one_at_a_time = threading.Lock()  # a library holds the state of the one launch that it is running


def gxx() -> str | None:
    """The path of g++, or None."""
    return shutil.which("g++")


def build(source: Path, name: str, constants: Mapping[str, int | str], sanitize: bool) -> Path:
    """The shared library of one kernel. Raises KernelFault with g++'s words when it does not compile."""
    flags = (*FLAGS, *(SANITIZERS if sanitize else ()))
    unit = "".join(
        [f'#include "{EMULATOR}"\n']
        + [f"#define {key} {value}\n" for key, value in sorted(constants.items())]
        + [f'#include "{source}"\nEMULATED_KERNEL({name})\n']
    )
    digest = compiler.source_digest(source, EMULATOR.read_bytes(), unit, flags)
    path = settings.cache_folder() / "emulated" / f"{name}-{digest}.so"
    if path.exists():
        return path
    program = gxx()
    if program is None:
        raise KernelFault("emulating CUDA needs g++, which is not installed; apt install g++ adds it")
    with tempfile.TemporaryDirectory() as folder:
        unit_path, library = Path(folder, f"{name}.cpp"), Path(folder, f"{name}.so")
        unit_path.write_text(unit)
        includes = [f"-I{folder}" for folder in (compiler.SOURCES, compiler.HEADERS)]
        result = subprocess.run(
            [program, *flags, *includes, str(unit_path), "-o", str(library)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise KernelFault(f"g++ does not compile {source.name}:\n{result.stderr}")
        compiler.write_whole(path, library.read_bytes())
    return path


class EmulatedKernel:
    """One kernel, loaded; launched as on a GPU but complete when the call returns."""

    def __init__(self, source: Path, name: str, constants: Mapping[str, int | str], sanitize: bool = False) -> None:
        self.name = name
        self._launch = ctypes.CDLL(str(build(source, name, constants, sanitize))).emulated_launch
        self._launch.restype = ctypes.c_char_p

    def __call__(self, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], seed: int) -> None:
        """Raises KernelFault when the launch or a thread breaks a rule of CUDA."""
        values = [_value(argument) for argument in arguments]
        extents = [(*triple, 1, 1)[:3] for triple in (grid, block)]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = (ctypes.c_size_t * len(values))(*(value.nbytes for value in values))
        with _one_at_a_time:
            fault = self._launch(
                (ctypes.c_uint * 6)(*extents[0], *extents[1]), ctypes.c_uint64(seed), pointers, sizes,
                ctypes.c_size_t(len(values)),
            )  # fmt: skip
        if fault is not None:
            raise KernelFault(f"{self.name}: {fault.decode()}")


def _value(argument: Any) -> np.ndarray:
    """The bytes of an argument as CUDA passes it: a pointer for an array, else the value itself."""
    if argument is None:
        return np.zeros((), np.uintp)
    is_struct = isinstance(argument, np.ndarray) and argument.dtype.names is not None and argument.ndim == 0
    if is_struct or isinstance(argument, np.generic):
        return np.array(argument)
    if not isinstance(argument, np.ndarray) or not argument.flags.c_contiguous:
        raise KernelFault(f"an argument is {type(argument).__name__}; give a contiguous array, a NumPy scalar or None")
    return np.array(argument.ctypes.data, np.uintp)
