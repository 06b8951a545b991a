"""Models with QuantizeLinear, DequantizeLinear or QONNX's Quant keep their precisions as fixed-point networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil.models import ModelError
from quatrefoil.models.fixed.quantized import load_quantized
from quatrefoil.numerics import Fixed


class Quantized:
    """A small network: conv, relu, pool, dense, each value and weight quantized."""

    def __init__(self, qonnx: bool = False) -> None:
        self.rng = np.random.default_rng(2)
        self.qonnx = qonnx
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, array: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def quantized(self, name: str, scale: float, dtype: str = "int8", zero: int = 0, **attributes: Any) -> str:
        end = f"{name}.q{len(self.nodes)}"
        if self.qonnx:
            inputs = [name, *(self.constant(np.float32(v)) for v in (scale, zero, np.iinfo(dtype).bits))]
            attributes = {"signed": int(dtype[0] == "i"), "narrow": 0, "rounding_mode": "ROUND", **attributes}
            self.nodes.append(
                helper.make_node("Quant", inputs, [end], end, domain="qonnx.custom_op.general", **attributes)
            )
            return end
        parameters = [self.constant(np.float32(scale)), self.constant(np.array(zero, dtype))]
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *parameters], [f"{end}.i"], f"{end}.quantize"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{end}.i", *parameters], [end], f"{end}.dequantize"))
        return end

    def weight(self, shape: tuple[int, ...], scale: float) -> str:
        if self.qonnx:
            return self.quantized(self.constant((self.rng.standard_normal(shape) * 0.3).astype(np.float32)), scale)
        name = f"w{len(self.nodes)}"
        integers = self.constant(self.rng.integers(-128, 128, shape).astype(np.int8))
        parameters = [self.constant(np.float32(scale)), self.constant(np.int8(0))]
        self.nodes.append(helper.make_node("DequantizeLinear", [integers, *parameters], [name], name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def proto(self, output: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["y"], "last"))
        graph = helper.make_graph(
            self.nodes, "q", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 2, 6, 6))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], self.weights,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("qonnx.custom_op.general", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def network(self, scale: float = 2.0**-6, zero: int = 0) -> onnx.ModelProto:
        x = self.quantized("x", scale, zero=zero)
        x = self.add("Conv", x, self.weight((4, 2, 3, 3), 2.0**-9), self.weight((4,), 2.0**-7))
        x = self.quantized(self.add("Relu", x), 2.0**-5, "uint8")
        x = self.add("Flatten", self.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
        x = self.add("MatMul", x, self.weight((16, 3), 2.0**-8))
        return self.proto(self.quantized(x, 2.0**-3))


def test_qdq_keeps_its_formats_and_numbers() -> None:
    proto = Quantized().network()
    network = load_quantized(proto)
    x = np.random.default_rng(1).uniform(-2.5, 2.5, (20, 2, 6, 6)).astype(np.float32)
    want = qf.load(proto, optimized=False).run(x)["y"]
    np.testing.assert_array_equal(network.run(x)["y"], want)
    assert len(np.unique(want)) > 10
    assert network.formats["x.fixed"] == Fixed(8, 2, "RND_CONV", "SAT")
    conv = next(node for node in network.graph.nodes if node.kind == "Conv")
    assert conv.attributes["w_format"] == "fixed<8,-1,RND_CONV,SAT>"
    assert conv.attributes["bias_format"] == "fixed<8,1,RND_CONV,SAT>"
    assert conv.attributes["y_format"] == "ufixed<8,3,RND_CONV,SAT>", "what the Relu behind it has"


def test_quant_nodes_keep_their_formats() -> None:
    network = load_quantized(Quantized(qonnx=True).network())
    assert network.formats["x.fixed"] == Fixed(8, 2, "RND_CONV", "SAT")
    conv = next(node for node in network.graph.nodes if node.kind == "Conv")
    assert conv.attributes["w_format"] == "fixed<8,-1,RND_CONV,SAT>"
    x = np.random.default_rng(1).uniform(-2.5, 2.5, (20, 2, 6, 6)).astype(np.float32)
    steps = network.run(x)["y"] * 8
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert len(np.unique(steps)) > 5


def test_quant_options() -> None:
    made = Quantized(qonnx=True)
    y = made.quantized("x", 0.25, "int8", narrow=1, rounding_mode="FLOOR")
    network = load_quantized(made.proto(made.quantized(made.add("Relu", y), 0.25, "uint8", rounding_mode="HALF_UP")))
    assert network.formats["x.fixed"] == Fixed(8, 6, "TRN", "SAT_SYM")
    assert network.formats[f"{made.nodes[1].name}"] == Fixed(8, 6, "RND_INF", "SAT", signed=False)


@pytest.mark.parametrize(
    ("scale", "zero", "wanted"),
    [(0.01, 0, r"scale 0\.01 is no power of two"), (2.0**-6, 3, "zero point")],
)
@pytest.mark.parametrize("qonnx", [False, True])
def test_what_fixed_point_cannot_have_is_refused(scale: float, zero: int, wanted: str, qonnx: bool) -> None:
    with pytest.raises(ModelError, match=wanted):
        load_quantized(Quantized(qonnx).network(scale, zero))


def test_a_float_model_is_refused() -> None:
    made = Quantized()
    with pytest.raises(ModelError, match=r"no QuantizeLinear.*calibrate"):
        load_quantized(made.proto(made.add("Relu", "x")))
