"""Code of ours that other runtimes call (XLA, ONNX Runtime): a source in C++ that is compiled on first use, into the cache folder,
and Python functions that it calls in turn with addresses, through ctypes. They take the GIL; kernels give it away again.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil import settings
from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Tensor

FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wall")
COMPILERS = ("c++", "g++", "clang++")


class Array(ctypes.Structure):
    """``struct Array { void* data; int64_t rank; const int64_t* shape; }``."""

    _fields_ = (("data", ctypes.c_void_p), ("rank", ctypes.c_int64), ("shape", ctypes.POINTER(ctypes.c_int64)))

    def view(self, dtype: np.dtype) -> np.ndarray:
        """The array, over the same memory, which its owner has to keep."""
        shape = tuple(self.shape[axis] for axis in range(self.rank))
        return array_at(self.data, shape, dtype)


def array_at(address: int | None, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array over memory that somebody else owns."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory: Any = (ctypes.c_char * nbytes).from_address(address or 0) if nbytes else b""
    return np.ndarray(tuple(shape), dtype, memory)


def library(source: Path, includes: Sequence[Path] = (), depends: Sequence[Path] = ()) -> Path:
    """The compiled source. depends: further files on whose contents it depends.

    Raises QuatrefoilError where there is no compiler, or with its words where it refuses.
    """
    contents = b"".join(path.read_bytes() for path in (source, *depends))
    digest = hashlib.sha256(contents + repr(FLAGS).encode()).hexdigest()[:16]
    path = settings.cache_folder() / "foreign" / f"{source.parent.name}-{source.stem}-{digest}.so"
    if path.exists():
        return path
    named = os.environ.get("CXX")
    compiler = next((found for name in (named, *COMPILERS) if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise QuatrefoilError(
            f"{source.name} is compiled on first use, and there is no compiler; apt install g++ adds one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        command = [compiler, *FLAGS, *(f"-I{include}" for include in includes), str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise QuatrefoilError(f"{compiler} does not compile {source.name}:\n{done.stderr}")
        os.replace(made, path)  # whole or not at all, for processes that start together
    return path


def guarded(run: Callable[..., None]) -> Callable[..., int]:
    """A function for C++ whose last two arguments are room for a message and its size: gives 0, or 1 and what ``run`` raised."""

    def called(*arguments: Any) -> int:
        *given, message, size = arguments
        try:
            run(*given)
        except Exception as error:  # nothing may be raised through C++; the runtime raises it again in its own way
            said = (str(error) if isinstance(error, QuatrefoilError) else f"{type(error).__name__}: {error}").encode()
            said = said[: size - 1] + b"\0"
            ctypes.memmove(message, said, len(said))
            return 1
        return 0

    return called


def views(arrays: Sequence[Array], tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Arrays of known types, which may have further axes in front."""
    made = [array.view(tensor.numpy_dtype) for array, tensor in zip(arrays, tensors)]
    assert all(array.shape[array.ndim - tensor.rank :] == tensor.shape for array, tensor in zip(made, tensors))
    return made
