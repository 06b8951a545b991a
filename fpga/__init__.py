"""The FPGA backend: OpenCL C kernels in the style that FPGA compilers want, run on PoCL unless another device is named.

Kernels are a single work-item whose loops are the hardware's pipelines; convolution and pooling stream pixels through
line buffers built as shift registers wherever a window's rows fit on the chip, and in a model from operator to
operator without memory in between (sequence.py). Behind these stand kernels of many
work-items for devices that want them, which tuning takes where they are faster. Arrays live on the host
(NumPy); what ``prepare`` packs stays on the device. pyopencl is loaded by the first probe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.decoding import decoding
from quatrefoil.fpga import conv, fixed, opencl, pool, rnn, sparse
from quatrefoil.fpga.sequence import FpgaSequencer
from quatrefoil.registry import Availability, Kernel
from quatrefoil.widening import with_float16

FLOATS = (*conv.KERNELS, *pool.KERNELS, *rnn.KERNELS)
KERNELS = (*with_float16(FLOATS, "opencl"), *fixed.KERNELS, *sparse.KERNELS, *decoding(FLOATS, "opencl"))


class FpgaBackend:
    """``registry.Backend`` over one OpenCL device."""

    name = "fpga"
    simulated = False
    sequencer = FpgaSequencer()

    @property
    def timing_note(self) -> str:
        found = opencl.availability()
        if found.ready and opencl.runtime().is_fpga:
            return ""
        return f"OpenCL on {found.detail}: proves function; not an FPGA's time" if found.ready else ""

    def probe(self) -> Availability:
        return opencl.availability()

    def kernels(self) -> Sequence[Kernel]:
        return KERNELS

    def device(self) -> str:
        return opencl.runtime().name

    def owns(self, array: object) -> bool:
        return isinstance(array, np.ndarray)

    def put(self, array: np.ndarray) -> np.ndarray:
        return array

    def get(self, array: np.ndarray) -> np.ndarray:
        return array


BACKEND = FpgaBackend()
