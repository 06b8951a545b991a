"""The CPU backend: SIMD kernels in C++, built once per instruction set, called through thin Cython.

Arrays are NumPy's. Importing this package loads nothing compiled.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.cpu.sequence import CpuSequencer
from quatrefoil.decoding import decoding
from quatrefoil.errors import BackendUnavailable
from quatrefoil.problem import Problem
from quatrefoil.registry import Availability, DirectRun, Kernel, Run
from quatrefoil.widening import with_float16

NATIVE_MODULES = ("_arrays", "_instruction_set", "_conv", "_pool", "_rnn", "_fixed", "_sequence", "_shared", "_sparse")


class CpuBackend:
    """NumPy arrays on this processor."""

    name = "cpu"
    simulated = False
    timing_note = ""
    sequencer = CpuSequencer()

    def probe(self) -> Availability:
        missing = _unbuilt()
        if missing:
            return Availability(
                False,
                f"the native modules {', '.join(missing)} are not built",
                "pip install . (needs g++), or in a checkout: python setup.py build_ext --inplace --only cpu",
            )
        try:
            return Availability(True, self.device())
        except BackendUnavailable as error:
            return Availability(False, str(error), f"unset {instruction_set.VARIABLE}")

    def kernels(self) -> Sequence[Kernel]:
        return _kernels()

    def device(self) -> str:
        return f"{instruction_set.processor_name()}, instruction set {instruction_set.description()}"

    def owns(self, array: object) -> bool:
        return isinstance(array, np.ndarray)

    def put(self, array: np.ndarray) -> np.ndarray:
        return array

    def get(self, array: np.ndarray) -> np.ndarray:
        return array

    def direct(self, run: Run, problem: Problem, positions: Sequence[int]) -> DirectRun:
        from quatrefoil.cpu._arrays import PlannedRun

        planned = [(i, problem.input(i).numpy_dtype, problem.input(i).shape) for i in positions]
        direct: DirectRun = PlannedRun(run, len(problem.inputs), planned).call
        return direct


@cache
def _kernels() -> tuple[Kernel, ...]:
    from quatrefoil.cpu import (
        compressed_rnn,
        conv,
        conv_gradient,
        fixed,
        pool,
        pool_gradient,
        rnn,
        rnn_gradient,
        shared_conv,
        sparse,
        sparse_conv,
    )

    training = (*conv_gradient.KERNELS, *pool_gradient.KERNELS, *rnn_gradient.KERNELS)
    floats = (*conv.KERNELS, *pool.KERNELS, *rnn.KERNELS, *training)
    stored = (*sparse.KERNELS, *sparse_conv.KERNELS, *shared_conv.KERNELS, *compressed_rnn.KERNELS)
    return (*with_float16(floats, "simd"), *fixed.KERNELS, *stored, *decoding(floats, "simd"))


@cache
def _unbuilt() -> list[str]:
    """Looked up once: modules do not appear while a process runs."""
    return [name for name in NATIVE_MODULES if importlib.util.find_spec(f"{__name__}.{name}") is None]


BACKEND = CpuBackend()
