"""``quatrefoil.onnx_backend``: the ONNX backend interface, which lives with the models and is loaded when used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(import_module("quatrefoil.models.onnx_backend"), name)
