"""The one small door between kernel declarations and whatever runs CUDA kernels.

A ``Device`` loads CUDA C++ kernels from ``src/`` and Numba kernels written in Python, and holds arrays. ``CupyDevice``
is a real GPU: sources are compiled by NVRTC (``compiler.py``) and launched through CuPy on the caller's current
stream, never waiting. ``emulation.EmulatedDevice`` runs the same sources on the processor with NumPy arrays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.gpu import compiler
from quatrefoil.problem import Tensor
from quatrefoil.registry import Array

Extents = tuple[int, ...]
Launch = Callable[..., None]
"""``launch(grid, block, *arguments)``: one to three extents each, no shared memory beyond what the kernel declares.

An argument is a device array, None (a null pointer; CUDA C++ alone), a NumPy scalar of exactly the parameter's type,
a zero-dimensional structured NumPy array (a struct by value), or for a Numba kernel a tuple of ints.
"""

MAX_GRID_YZ = 65535
"""CUDA's limit on a grid's second and third extent; the first may be 2^31 - 1."""


class Device(Protocol):
    def load(self, source: str, name: str, constants: Mapping[str, int | str]) -> Launch:
        """The CUDA C++ kernel ``name`` of ``src/<source>``, compiled with the constants as macros."""

    def jit(self, function: Callable[..., None]) -> Launch:
        """A kernel written in Python for numba.cuda."""

    def empty(self, tensor: Tensor) -> Array:
        """A new array with undefined contents."""

    def put(self, array: np.ndarray) -> Array:
        """A host array, copied to the device."""

    def get(self, array: Array) -> np.ndarray:
        """A device array, copied to the host once it is complete."""


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` cover ``count``."""
    return -(-count // size)


class CupyDevice:
    """The GPU that is current in CuPy when a method is called. Making one loads nothing."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    def load(self, source: str, name: str, constants: Mapping[str, int | str]) -> Launch:
        import cupy

        device = cupy.cuda.Device()
        key = (device.id, source, name, *sorted(constants.items()))
        with self._lock:
            function = self._functions.get(key)
            if function is None:
                cubin = compiler.compile_cubin(source, constants, f"sm_{device.compute_capability}").code
                module = cupy.cuda.function.Module()
                module.load(cubin)
                function = self._functions[key] = module.get_function(name)

        def launch(grid: Extents, block: Extents, *arguments: Any) -> None:
            function(grid, block, arguments)

        return launch

    def jit(self, function: Callable[..., None]) -> Launch:
        import cupy
        from numba import cuda

        with self._lock:
            kernel = self._functions.get((function,))
            if kernel is None:
                kernel = self._functions[(function,)] = cuda.jit(function)

        def launch(grid: Extents, block: Extents, *arguments: Any) -> None:
            stream = cuda.external_stream(cupy.cuda.get_current_stream().ptr)
            # sync=False: the kernel runs on the arrays' own stream, so that there is nothing to wait for
            native = [cuda.as_cuda_array(a, sync=False) if isinstance(a, cupy.ndarray) else a for a in arguments]
            kernel[grid, block, stream](*native)

        return launch

    def empty(self, tensor: Tensor) -> Array:
        import cupy

        return cupy.empty(tensor.shape, tensor.numpy_dtype)

    def put(self, array: np.ndarray) -> Array:
        import cupy

        return cupy.asarray(array)

    def get(self, array: Array) -> np.ndarray:
        import cupy

        return cupy.asnumpy(array)


class KernelFault(QuatrefoilError, RuntimeError):
    """A kernel broke a rule of CUDA; the message says which and where."""
