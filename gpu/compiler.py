"""CUDA C++ to machine code by NVRTC, which needs no GPU and no driver, with a cache on disk.

The cache lives in ``settings.cache_folder()/cubin``; a file's name is a digest of everything that decides its
contents: the source and the headers, the macros, the options, the architecture and NVRTC's version.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from quatrefoil import settings
from quatrefoil.errors import QuatrefoilError

SOURCES = Path(__file__).parent / "src"
HEADERS = Path(settings.__file__).parent / "include"

# No fast math: division, square roots and denormals are IEEE's. Contraction into FMA stays on; where a product has to
# be rounded by itself (requantisation), the source says __fmul_rn.
OPTIONS = ("--std=c++17", "--ptxas-options=-v")


class CompileError(QuatrefoilError, RuntimeError):
    """NVRTC refused a source; the message holds its log."""


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code for one architecture, and what ptxas reported about it."""

    code: bytes
    log: str

    @property
    def registers(self) -> int:
        """Registers a thread, the largest of the kernels in it."""
        return max(map(int, re.findall(r"Used (\d+) registers", self.log)))

    @property
    def local_bytes(self) -> int:
        """Bytes of stack and of spilled registers that a thread keeps in slow local memory."""
        return sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", self.log)))


def source_digest(source: str | Path, *more: object) -> str:
    """A digest of a source with every header it may include, and of whatever else is given."""
    digest = hashlib.sha256()
    main = SOURCES / source
    for path in (main, *sorted(main.parent.glob("*.cuh")), *sorted(HEADERS.rglob("*.h"))):
        digest.update(path.read_bytes())
    digest.update(repr(more).encode())
    return digest.hexdigest()[:32]


def write_whole(path: Path, contents: bytes) -> None:
    """Write a cache file so that no other process ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(contents)
    os.replace(temporary, path)


@cache
def nvrtc_version() -> tuple[int, int]:
    """The version of the NVRTC library that compiles. Raises CompileError when it is not installed."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise CompileError(f"NVRTC is missing ({error}); pip install 'quatrefoil[cuda13]' adds it") from None
    if int(status) != 0:
        raise CompileError(f"NVRTC does not tell its version ({status})")
    return major, minor


def compile_cubin(source: str, constants: Mapping[str, int | str], architecture: str) -> Cubin:
    """``src/<source>`` with the constants as macros, for an architecture such as sm_90."""
    macros = sorted((name, str(value)) for name, value in constants.items())
    digest = source_digest(source, macros, OPTIONS, architecture, nvrtc_version())
    path = settings.cache_folder() / "cubin" / f"{Path(source).stem}-{architecture}-{digest}.cubin"
    log_path = path.with_suffix(".log")
    if path.exists() and log_path.exists():
        return Cubin(path.read_bytes(), log_path.read_text())
    cubin = _compile(source, macros, architecture)
    write_whole(log_path, cubin.log.encode())
    write_whole(path, cubin.code)
    return cubin


def _compile(source: str, macros: list[tuple[str, str]], architecture: str) -> Cubin:
    from cuda.bindings import nvrtc

    def checked(result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise CompileError(f"NVRTC fails on {source} for {architecture} with {status.name}")
        return values[0] if values else None

    options = [
        f"--gpu-architecture={architecture}",
        *OPTIONS,
        *(f"--include-path={folder}" for folder in (SOURCES, HEADERS)),
        *(f"--define-macro={name}={value}" for name, value in macros),
    ]
    text = (SOURCES / source).read_bytes()
    program = checked(nvrtc.nvrtcCreateProgram(text, source.encode(), 0, [], []))
    try:
        [status] = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = bytes(checked(nvrtc.nvrtcGetProgramLogSize(program)))
        checked(nvrtc.nvrtcGetProgramLog(program, log))
        report = log.rstrip(b"\0").decode(errors="replace")
        if int(status) != 0:
            raise CompileError(f"NVRTC does not compile {source} for {architecture} ({status.name}):\n{report}")
        code = bytes(checked(nvrtc.nvrtcGetCUBINSize(program)))
        checked(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Cubin(code, report)
