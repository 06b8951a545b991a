"""The pass that keeps simulated quantisation in floats: QuantizeLinear, then DequantizeLinear of the same parameters.

    Q then DQ:        y = (saturate(round(x / scale) + zero) - zero) * scale
    in one step:      y = clamp(round(x / scale), least - zero, most - zero) * scale

The two agree to the last bit: what is clamped is a whole number in either. A Relu that only the pair reads raises the
lower limit to 0 and is gone. The step is a host operator of the house's own domain (``host.HOUSE_DOMAIN``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import helper

from quatrefoil.models import host
from quatrefoil.models.graph import Graph, Node

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def fuse_quantize_dequantize(graph: Graph) -> Graph:
    """Every such pair, with the Relu before it, as one node."""
    readers, outputs = graph.consumers(), graph.output_names
    makers = graph.producers()

    def alone(node: Node | None, reader: Node) -> bool:
        """Whether nobody but ``reader`` sees the node's result."""
        return node is not None and node.outputs[0] not in outputs and readers[node.outputs[0]] == [reader]

    gone: set[str] = set()
    merged: dict[str, Node] = {}
    for back in graph.nodes:
        there = makers.get(back.inputs[0]) if _is(back, DEQUANTIZE) else None
        if there is None or not _is(there, QUANTIZE) or not alone(there, back):
            continue
        if not _same_parameters(there, back, graph.constants):
            continue
        before = makers.get(there.inputs[0])
        relu = before is not None and _is(before, "Relu") and alone(before, there)
        gone.add(there.name)
        source = there.inputs[0]
        if before is not None and relu:
            gone.add(before.name)
            source = before.inputs[0]
        merged[back.name] = _fused(source, there, back, relu)
    return graph.with_nodes(merged.get(node.name, node) for node in graph.nodes if node.name not in gone)


def _is(node: Node, kind: str) -> bool:
    return node.op is None and node.proto is not None and node.proto.domain == "" and node.kind == kind


def _same_parameters(there: Node, back: Node, constants: Mapping[str, np.ndarray]) -> bool:
    """One float32 scale and one zero point of at most 16 bits, constant and the same both ways, and nothing rarer."""
    for node in (there, back):
        assert node.proto is not None
        if any(item.name in ("block_size", "output_dtype", "precision") for item in node.proto.attribute):
            return False
        if len(node.inputs) != 3 or any(name not in constants for name in node.inputs[1:]):
            return False
    scale, zero = (constants[name] for name in there.inputs[1:])
    if scale.size != 1 or zero.size != 1 or scale.dtype != np.float32 or zero.dtype not in host.SMALL_INTEGERS:
        return False
    others = [constants[name] for name in back.inputs[1:]]
    return all(a.dtype == b.dtype and a.size == 1 and a.flat[0] == b.flat[0] for a, b in zip((scale, zero), others))


def _fused(source: str, there: Node, back: Node, relu: bool) -> Node:
    inputs = (source, *there.inputs[1:])
    proto = helper.make_node(
        host.QUANTIZE_DEQUANTIZE, inputs, back.outputs, back.name, domain=host.HOUSE_DOMAIN, relu=int(relu)
    )
    return Node(
        back.name,
        "Relu" if relu else QUANTIZE,
        inputs,
        back.outputs,
        proto=proto,
        opsets={**back.opsets, host.HOUSE_DOMAIN: 1},
        fused=(QUANTIZE, DEQUANTIZE) if relu else (DEQUANTIZE,),
    )
