"""Models that say their precisions themselves: QuantizeLinear and DequantizeLinear pairs (QDQ), and QONNX's Quant nodes as
Brevitas and QKeras export them, become a fixed-point network with just these formats.

Fixed point scales by powers of two and has no zero point: other scales and zero points are refused. Weights may have a
scale for each channel; their format then holds every channel's values. The graph is kept as the file has it, nothing
is fused, so that every value is rounded where the file says so and nowhere else: what it leaves in floating point gets
``UNSAID``.

Source of the Quant node's meaning: the QONNX operator definitions (Pappalardo et al., QONNX: representing
arbitrary-precision quantized neural networks, 2022).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from quatrefoil.models.fixed.lowering import MOVES, covering
from quatrefoil.models.fixed.network import FixedNetwork, fixed
from quatrefoil.models.fixed.precision import LayerPrecision, Precision
from quatrefoil.models.graph import Graph, ModelError, Node
from quatrefoil.models.importing import load_graph, read_model
from quatrefoil.models.model import Model
from quatrefoil.models.passes import fold_constants, remove_dead_nodes, remove_identities
from quatrefoil.models.passes.matching import on_host
from quatrefoil.numerics import Fixed

UNSAID: Final = Fixed(30, 14, "RND_CONV", "SAT")
"""Of values that the file leaves in floating point."""

QONNX: Final = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")

ROUNDINGS: Final = {
    "ROUND": "RND_CONV",
    "HALF_EVEN": "RND_CONV",
    "FLOOR": "TRN",
    "ROUND_TO_ZERO": "TRN_ZERO",
    "DOWN": "TRN_ZERO",
    "HALF_UP": "RND_INF",
    "HALF_DOWN": "RND_ZERO",
}
"""QONNX's rounding modes; CEIL and UP have no counterpart."""

PASSING: Final = (*MOVES, "MaxPool", "GlobalMaxPool", "Relu")
"""What a value goes through without being computed anew, so that a format behind it holds before it too."""


def load_quantized(source: str | os.PathLike[str] | bytes | ModelProto) -> FixedNetwork:
    """A QDQ or QONNX model as a fixed-point network with the file's own formats.

    Raises ModelError, in a sentence that names the value, for a model that has no such nodes, for scales that are no powers
    of two and for zero points.
    """
    found = _Reading(read_model(source))
    graph = load_graph(found.proto)
    for step in (remove_identities, fold_constants, remove_dead_nodes):
        graph = step(graph)
    return fixed(Model(graph, optimized=False), found.precision(graph))


@dataclass
class _Reading:
    """A model with its quantizing nodes taken out, and what they said."""

    source: ModelProto
    values: dict[str, Fixed] = field(default_factory=dict)
    """Formats of computed values."""
    weights: dict[str, Fixed] = field(default_factory=dict)
    """Formats of constants."""

    def __post_init__(self) -> None:
        self.proto = ModelProto()
        self.proto.CopyFrom(self.source)
        graph = self.proto.graph
        self.constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.constants |= {
            node.output[0]: numpy_helper.to_array(attribute.t)
            for node in graph.node if node.op_type == "Constant"
            for attribute in node.attribute if attribute.name == "value"
        }  # fmt: skip
        self.makers = {name: node for node in graph.node for name in node.output}
        renamed: dict[str, str] = {}
        kept = []
        for node in graph.node:
            if node.op_type == "Quant" and node.domain in QONNX:
                self.take(node, node.input[0], self.quant(node), renamed)
            elif node.op_type == "DequantizeLinear" and node.domain in ("", "ai.onnx"):
                self.dequantize(node, renamed)
            elif node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx"):
                continue
            elif node.domain in QONNX:
                raise ModelError(
                    f"{_title(node)} of {node.domain} has no fixed-point form; export with Quant nodes alone"
                )
            else:
                kept.append(node)
        if not self.values and not self.weights:
            raise ModelError(
                "the model has no QuantizeLinear, DequantizeLinear or Quant nodes; calibrate() chooses formats for a float model"
            )
        outputs = {value.name for value in graph.output}
        for node in kept:
            for place, name in enumerate(node.input):
                node.input[place] = _followed(name, renamed)
        del graph.node[:]
        graph.node.extend(kept)
        for name in outputs & renamed.keys():
            # the output keeps its name
            graph.node.append(onnx.helper.make_node("Identity", [_followed(name, renamed)], [name], f"{name}.out"))
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in self.constants.items() if name not in self.makers
            or self.makers[name].op_type != "Constant"
        )  # fmt: skip
        del graph.value_info[:]

    def take(self, node: NodeProto, source: str, form: Fixed, renamed: dict[str, str]) -> None:
        """A node that only gives its input a format: weights are rounded here, values by what makes them."""
        if source in self.constants:
            self.constants[node.output[0]] = form.dequantize(form.quantize(self.constants[source])).astype(np.float32)
            self.weights[node.output[0]] = form
            return
        source = _followed(source, renamed)
        known = self.values.setdefault(source, form)
        if known != form:
            raise ModelError(f"{_title(node)}: {source!r} is read as {known} and as {form}; give a value one format")
        renamed[node.output[0]] = source

    def dequantize(self, node: NodeProto, renamed: dict[str, str]) -> None:
        form = self.affine(node)
        if node.input[0] in self.constants:
            scale = self.constants[node.input[1]].astype(np.float64)
            integers = self.constants[node.input[0]].astype(np.float64)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            if scale.size > 1:
                scale = scale.reshape([-1 if place == axis % integers.ndim else 1 for place in range(integers.ndim)])
            self.constants[node.output[0]] = (integers * scale).astype(np.float32)
            self.weights[node.output[0]] = form
            return
        maker = self.makers.get(node.input[0])
        if maker is None or maker.op_type != "QuantizeLinear":
            raise ModelError(
                f"{_title(node)}: {node.input[0]!r} comes in integers from elsewhere; fixed point reads pairs of QuantizeLinear "
                "and DequantizeLinear"
            )
        if self.affine(maker) != form:
            raise ModelError(f"{_title(node)}: its scale is another than {_title(maker)}'s; give a pair the same")
        self.take(node, maker.input[0], form, renamed)

    def affine(self, node: NodeProto) -> Fixed:
        """The format of a QuantizeLinear or DequantizeLinear node."""
        scale = self.known(node, 1).astype(np.float64).reshape(-1)
        zero = self.known(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.uint8)
        if zero.any():
            raise ModelError(
                f"{_title(node)}: its zero point is {zero.reshape(-1)[0]}; fixed point has 0 alone (symmetric)"
            )
        integers = self.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        dtype = (
            zero.dtype if len(node.input) > 2 and node.input[2] else zero.dtype if integers is None else integers.dtype
        )
        return covering([_format(node, dtype.itemsize * 8, one, dtype.kind == "i", "RND_CONV", "SAT") for one in scale])

    def quant(self, node: NodeProto) -> Fixed:
        """The format of a QONNX Quant node."""
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        scale = self.known(node, 1).astype(np.float64).reshape(-1)
        if self.known(node, 2).any():
            raise ModelError(f"{_title(node)}: its zero point is not 0; fixed point has 0 alone (symmetric)")
        bits = float(self.known(node, 3).reshape(-1)[0])
        mode = attributes.get("rounding_mode", b"ROUND").decode().upper()
        if mode not in ROUNDINGS or bits != int(bits):
            raise ModelError(
                f"{_title(node)}: {bits:g} bits, rounding {mode}; fixed point has whole bits and {', '.join(ROUNDINGS)}"
            )
        signed, narrow = bool(attributes.get("signed", 1)), bool(attributes.get("narrow", 0))
        if narrow and not signed:
            raise ModelError(
                f"{_title(node)}: narrow without a sign leaves the greatest integer out; fixed point has no such one"
            )
        overflow = "SAT_SYM" if narrow else "SAT"
        return covering([_format(node, int(bits), one, signed, ROUNDINGS[mode], overflow) for one in scale])

    def known(self, node: NodeProto, place: int) -> np.ndarray:
        array = self.constants.get(node.input[place])
        if array is None:
            raise ModelError(
                f"{_title(node)}: {node.input[place]!r} is computed; scales and widths have to be constants"
            )
        return array

    def precision(self, graph: Graph) -> Precision:
        """The formats by layer, for the graph without its quantizing nodes."""
        consumers = graph.consumers()

        def behind(name: str) -> Fixed | None:
            """The format of a value, or of what it becomes without being computed anew."""
            form = self.values.get(name)
            readers = consumers.get(name, [])
            if form is not None or len(readers) != 1 or name in graph.output_names:
                return form
            [reader] = readers
            passes = on_host(reader, *PASSING) or reader.op == "max_pool"
            return behind(reader.outputs[0]) if passes else None

        layers = {node.name: self.layer(node, behind(_result(node))) for node in graph.nodes}
        inputs = {value.name: form for value in graph.inputs if (form := behind(value.name)) is not None}
        return Precision(UNSAID, UNSAID, inputs=inputs, layers=layers)

    def layer(self, node: Node, result: Fixed | None) -> LayerPrecision:
        names = [name for name in node.inputs[1:] if name in self.weights]
        weight = self.weights.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.op in ("lstm", "gru", "rnn"):
            found = [self.weights[name] for name in node.inputs[1:3] if name in self.weights]
            weight = covering(found) if found else None
            names = [name for name in node.inputs[3:4] if name in self.weights]
            return LayerPrecision(weight=weight, bias=self.weights[names[0]] if names else None, result=result)
        bias = self.weights.get(node.inputs[2]) if len(node.inputs) > 2 else None
        return LayerPrecision(weight=weight, bias=bias, result=result)


def _result(node: Node) -> str:
    return next((name for name in node.outputs if name), "")


def _format(node: NodeProto, bits: int, scale: float, signed: bool, rounding: str, overflow: str) -> Fixed:
    """Integers of ``bits`` bits times a scale that has to be a power of two."""
    mantissa, exponent = np.frexp(scale)
    if mantissa != 0.5:
        raise ModelError(
            f"{_title(node)}: its scale {scale:g} is no power of two, which fixed point cannot have; quantize with such "
            "scales, or calibrate() the float model"
        )
    fraction = 1 - int(exponent)
    return Fixed(bits, bits - fraction, rounding, overflow, signed)


def _followed(name: str, renamed: Mapping[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def _title(node: NodeProto) -> str:
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def has_quantizers(model: Any) -> bool:
    """Whether a ModelProto says precisions itself."""
    return any(
        (node.op_type == "Quant" and node.domain in QONNX) or node.op_type == "DequantizeLinear"
        for node in model.graph.node
    )


__all__ = ["has_quantizers", "load_quantized"]
