"""The GPU as a Backend: what is there, what is missing, and arrays to and fro."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from quatrefoil.gpu import declared
from quatrefoil.gpu.launch import CupyDevice
from quatrefoil.registry import Array, Availability, Kernel

CUDA_13_DRIVER = 13000
"""The driver API's version from which CUDA 13 libraries run."""


class GpuBackend:
    """See registry.Backend. Loads CuPy when it is first asked whether it can run."""

    name = "gpu"
    simulated = False
    timing_note = ""

    def __init__(self) -> None:
        self._device = CupyDevice()
        self._kernels = declared.kernels(self._device)

    @cached_property
    def _availability(self) -> Availability:
        try:
            import cupy
        except ImportError as error:
            return Availability(False, f"CuPy cannot be imported ({error})", f"pip install 'quatrefoil[{_extra()}]'")
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            return Availability(False, f"CuPy {cupy.__version__} finds no NVIDIA GPU ({error})")
        if count == 0:
            return Availability(False, f"CuPy {cupy.__version__} finds no NVIDIA GPU")
        try:
            from cuda.bindings import nvrtc  # noqa: F401
            from numba import cuda  # noqa: F401
        except ImportError as error:
            remedy = f"pip install 'quatrefoil[{_extra()}]'"
            return Availability(False, f"{self.device()} is there, but a package is missing ({error})", remedy)
        return Availability(True, self.device())

    def probe(self) -> Availability:
        return self._availability

    def kernels(self) -> Sequence[Kernel]:
        return self._kernels

    def device(self) -> str:
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        return f"{properties['name'].decode()} (sm_{properties['major']}{properties['minor']})"

    def owns(self, array: object) -> bool:
        # An array of CuPy's exists only where CuPy is loaded.
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(array, cupy.ndarray)

    def device_seconds(self, work: Callable[[], object]) -> float:
        import cupy

        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()  # on the current stream, as kernels are
        work()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(begin, end)) * 1e-3

    def put(self, array: np.ndarray) -> Array:
        return self._device.put(array)

    def get(self, array: Array) -> np.ndarray:
        return self._device.get(array)


def _extra() -> str:
    """cuda13, or cuda12 where the driver's own library says that it is older."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "cuda13"
    version = ctypes.c_int()
    known = driver.cuDriverGetVersion(ctypes.byref(version)) == 0
    return "cuda12" if known and version.value < CUDA_13_DRIVER else "cuda13"
