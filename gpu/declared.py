"""Every kernel of the GPU backend, for whichever device runs it."""

from __future__ import annotations

from quatrefoil.decoding import decoding
from quatrefoil.gpu import conv, conv_gradient, conv_integer, fixed, pool, pool_gradient, rnn, rnn_gradient, sparse
from quatrefoil.gpu.launch import Device
from quatrefoil.registry import Kernel
from quatrefoil.widening import with_float16


def kernels(device: Device) -> tuple[Kernel, ...]:
    """In order of priority within each operator."""
    families = (conv, conv_integer, pool, rnn, conv_gradient, pool_gradient, rnn_gradient)
    own = [kernel for family in families for kernel in family.kernels(device)]
    compressed = decoding(own, "cuda", device.get, device.put)
    return (*with_float16(own, "cuda"), *fixed.kernels(device), *sparse.kernels(device), *compressed)
