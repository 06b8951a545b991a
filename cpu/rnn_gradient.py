"""Gradients of the operators of rnn.py."""

from __future__ import annotations

from quatrefoil.registry import Kernel

KERNELS: tuple[Kernel, ...] = ()
