"""Every kernel of the GPU backend, for whichever device runs it."""

from __future__ import annotations

from quatrefoil.gpu import conv, conv_integer, pool, rnn
from quatrefoil.gpu.launch import Device
from quatrefoil.registry import Kernel


def kernels(device: Device) -> list[Kernel]:
    """In order of priority within each operator."""
    return [kernel for family in (conv, conv_integer, pool, rnn) for kernel in family.kernels(device)]
