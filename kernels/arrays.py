"""Where an array lives, and how it travels between the caller's library and a backend's home.

NumPy arrays and scalars, CuPy arrays, torch tensors and anything else with DLPack are understood. torch and CuPy
are never imported here on their own account: an array of theirs proves that they are loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Tensor

DLPACK_CPU, DLPACK_CUDA, DLPACK_CUDA_HOST, DLPACK_CUDA_MANAGED = 1, 2, 3, 13
HOST_DEVICES = (DLPACK_CPU, DLPACK_CUDA_HOST)


def is_numpy(array: object) -> bool:
    return isinstance(array, np.ndarray)


def library(array: object) -> str:
    """``numpy``, ``cupy``, ``torch``, or the top-level module of another library's array."""
    return type(array).__module__.partition(".")[0]


def home(array: object) -> str:
    """The backend that an array's home chooses: ``cpu`` for host memory, ``gpu`` for CUDA memory."""
    if isinstance(array, (np.ndarray, np.generic, Tensor)):
        return "cpu"
    device = getattr(array, "__dlpack_device__", None)
    if device is None:
        raise QuatrefoilError(
            f"{type(array).__module__}.{type(array).__qualname__} is no array; give NumPy, CuPy, torch or DLPack"
        )
    kind = int(device()[0])
    if kind in HOST_DEVICES:
        return "cpu"
    if kind in (DLPACK_CUDA, DLPACK_CUDA_MANAGED):
        return "gpu"
    raise QuatrefoilError(f"an array on DLPack device {kind} has no backend; move it to the host or to a CUDA device")


def to_host(array: Any) -> np.ndarray:
    """A host array as NumPy without a copy; a NumPy array as it is. Other byte orders are brought to the native one."""
    if isinstance(array, np.ma.MaskedArray):
        raise QuatrefoilError("a masked array has no value where it is masked; fill it first: array.filled(value)")
    if isinstance(array, (np.ndarray, np.generic)):
        converted = np.asarray(array)
        if not converted.dtype.isnative:
            converted = converted.astype(converted.dtype.newbyteorder("="))
        return converted
    if getattr(array, "requires_grad", False):
        array = array.detach()
    return np.from_dlpack(array)


def restorer(like: Any) -> Callable[[Any], Any]:
    """How a result is given back to the library that the caller's array came from."""
    name = library(like)
    if isinstance(like, (np.ndarray, np.generic, Tensor)) or name == "cupy":
        return _as_is
    if name == "torch":
        return sys.modules["torch"].from_dlpack
    module = sys.modules.get(name)
    convert = getattr(module, "from_dlpack", None)
    if convert is None:
        raise QuatrefoilError(f"arrays of {name} cannot be given back: the module has no from_dlpack")
    return convert


def _as_is(array: Any) -> Any:
    return array
