"""The GPU backend without a GPU: the same kernels, run on the processor with NumPy arrays.

CUDA C++ kernels are compiled by g++ under ``cuda_emulator.h`` (``host.py``); Numba kernels run in Numba's CUDA
simulator. For tests: times mean nothing here.
"""

from __future__ import annotations

from quatrefoil.gpu.emulation.device import EmulatedBackend, EmulatedDevice


def emulated_backend(seed: int = 0) -> EmulatedBackend:
    """A Backend named "gpu" whose kernels run under emulation. ``seed`` draws the order in which the threads of a
    block run; 0 keeps them in order."""
    return EmulatedBackend(EmulatedDevice(seed=seed))


__all__ = ["EmulatedBackend", "EmulatedDevice", "emulated_backend"]
