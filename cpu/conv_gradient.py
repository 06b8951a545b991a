"""Gradients of the operators of conv.py."""

from __future__ import annotations

from quatrefoil.registry import Kernel

KERNELS: tuple[Kernel, ...] = ()
