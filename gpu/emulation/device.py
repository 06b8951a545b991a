"""EmulatedDevice and the Backend around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.gpu import compiler, declared
from quatrefoil.gpu.emulation import host
from quatrefoil.gpu.launch import Extents, KernelFault, Launch
from quatrefoil.problem import Tensor
from quatrefoil.registry import Array, Availability, Kernel

_one_simulation_at_a_time = threading.Lock()  # Numba's simulator keeps the running kernel in a global


@cache
def _loaded(
    source: Path, name: str, constants: tuple[tuple[str, int | str], ...], sanitize: bool
) -> host.EmulatedKernel:
    return host.EmulatedKernel(source, name, dict(constants), sanitize)


class EmulatedDevice:
    """NumPy arrays as device memory.

    seed draws the order of a block's threads (0: in order); sanitize builds kernels under AddressSanitizer and UBSan,
    which only a process that preloads libasan can load; sources is the folder of the .cu files.
    """

    def __init__(self, seed: int = 0, sanitize: bool = False, sources: Path = compiler.SOURCES) -> None:
        self._seed = seed
        self._sanitize = sanitize
        self._sources = sources

    def load(self, source: str, name: str, constants: Mapping[str, int | str]) -> Launch:
        kernel = _loaded(self._sources / source, name, tuple(sorted(constants.items())), self._sanitize)

        def launch(grid: Extents, block: Extents, *arguments: Any) -> None:
            kernel(grid, block, arguments, self._seed)

        return launch

    def jit(self, function: Callable[..., None]) -> Launch:
        # The class behind cuda.jit when NUMBA_ENABLE_CUDASIM is set; taken directly, it works in any process.
        from numba.cuda.simulator.args import In
        from numba.cuda.simulator.kernel import FakeCUDAKernel

        kernel = FakeCUDAKernel(function, device=False)

        def launch(grid: Extents, block: Extents, *arguments: Any) -> None:
            # the simulator copies every array back unless it is marked as an input
            given = [In(a) if isinstance(a, np.ndarray) and not a.flags.writeable else a for a in arguments]
            with _one_simulation_at_a_time:
                kernel[grid, block](*given)

        return launch

    def empty(self, tensor: Tensor) -> Array:
        # filled, so that a value that no thread writes shows
        return np.full(tensor.shape, 0xA5, np.uint8) if tensor.dtype == "uint8" else _poisoned(tensor)

    def put(self, array: np.ndarray) -> Array:
        if array.dtype.kind not in "biufc":
            raise KernelFault(f"an array of {array.dtype} is put on the device; CuPy holds numbers alone")
        return np.array(array, order="C")

    def get(self, array: Array) -> np.ndarray:
        return np.asarray(array)


def _poisoned(tensor: Tensor) -> np.ndarray:
    array = np.empty(tensor.shape, tensor.numpy_dtype)
    array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array


class EmulatedBackend:
    """A Backend whose name is "gpu"; see registry.Backend."""

    name = "gpu"
    simulated = False
    timing_note = "CUDA kernels emulated on the processor: the time says nothing about a GPU"

    def __init__(self, device: EmulatedDevice) -> None:
        self._device = device
        self._kernels = declared.kernels(device)

    def probe(self) -> Availability:
        if host.gxx() is None:
            return Availability(False, "emulating CUDA needs g++", "apt install g++")
        return Availability(True, "CUDA kernels emulated on the processor")

    def kernels(self) -> Sequence[Kernel]:
        return self._kernels

    def device(self) -> str:
        return "emulated CUDA device"

    def owns(self, array: object) -> bool:
        return isinstance(array, np.ndarray)

    def put(self, array: np.ndarray) -> Array:
        return self._device.put(array)

    def get(self, array: Array) -> np.ndarray:
        return self._device.get(array)
