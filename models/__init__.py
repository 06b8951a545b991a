"""ONNX models: the graph, import, passes, the executor, and what runs on the host."""

from __future__ import annotations

from quatrefoil.models.graph import ModelError
from quatrefoil.models.model import Explanation, Model, NodeProfile, load

__all__ = ["Explanation", "Model", "ModelError", "NodeProfile", "load"]
