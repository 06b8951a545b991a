"""Gradients of the operators of pool.py."""

from __future__ import annotations

from quatrefoil.gpu.launch import Device
from quatrefoil.registry import Kernel


def kernels(device: Device) -> tuple[Kernel, ...]:
    return ()
