"""What the passes ask of nodes and graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from quatrefoil.models.graph import Graph, Node

FLOATS = (np.float32, np.float64, np.float16)


def attributes_of(node: Node) -> dict[str, Any]:
    """The attributes of a node of the host; text as str."""
    assert node.proto is not None
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def on_host(node: Node, *kinds: str) -> bool:
    """Whether it is a host operator of ONNX's own domain and one of these kinds."""
    return node.op is None and node.proto is not None and node.proto.domain == "" and node.kind in kinds


def sole_reader(graph: Graph) -> Callable[[Node], Node | None]:
    """For a node: the node that alone reads its first output, where nobody sees that output or reads the others."""
    consumers, outputs = graph.consumers(), graph.output_names

    def reader(node: Node) -> Node | None:
        readers = consumers.get(node.outputs[0], [])
        if len(readers) != 1 or node.outputs[0] in outputs:
            return None
        return readers[0]

    return reader


def scalar(name: str, constants: Mapping[str, np.ndarray]) -> float | None:
    """The value of a constant of one element that broadcasts to anything without giving it more axes."""
    array = constants.get(name)
    if array is None or array.size != 1 or array.ndim > 1 or array.dtype not in FLOATS:
        return None
    return float(array.reshape(-1)[0])
