"""NVIDIA GPUs: CUDA C++ compiled by NVRTC and launched through CuPy, and Numba kernels for pooling.

Arrays are CuPy's; kernels run on CuPy's current stream and nothing waits. Importing this package loads no CUDA.
"""

from __future__ import annotations

from quatrefoil.gpu.backend import GpuBackend

BACKEND = GpuBackend()

__all__ = ["BACKEND", "GpuBackend"]
