"""Fixed-point networks: near the float model they are made from, the same integers on every backend, refusals in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil.models import ModelError
from quatrefoil.models.fixed.network import FixedNetwork, fixed
from quatrefoil.models.fixed.precision import LayerPrecision, Precision
from quatrefoil.models.gallery import path
from quatrefoil.numerics import Fixed

WIDE = Precision(
    value=Fixed(26, 8, "RND", "SAT"),
    weight=Fixed(20, 4, "RND", "SAT"),
    table=Fixed(24, 2, "RND", "SAT"),
    table_size=65536,
)
"""So fine that what is left is the tables' steps."""


class Net:
    """A network written down node by node, with random weights."""

    def __init__(self, *shape: int | str) -> None:
        self.rng = np.random.default_rng(3)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shape = ("batch", *shape)

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        fan = np.prod(shape[1:]) if len(shape) > 1 else 10
        return self.constant((self.rng.standard_normal(shape) * scale / np.sqrt(fan)).astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        name = f"{kind.lower()}{len(self.nodes)}"
        made = [name, *(f"{name}.{place}" for place in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, inputs, made, name, **attributes))
        return name if outputs == 1 else made

    def model(self, *outputs: str) -> qf.Model:
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], self.weights,
        )  # fmt: skip
        return qf.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def residual_cnn() -> qf.Model:
    net = Net(3, 8, 8)
    x = net.add("Conv", "x", net.weight(8, 3, 3, 3), net.weight(8), pads=[1, 1, 1, 1])
    x = net.add("Relu", x)
    y = net.add("Conv", x, net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    y = net.add("Add", y, x)
    y = net.add("Relu", y)
    y = net.add("GlobalAveragePool", y)
    y = net.add("Flatten", y)
    return net.model(net.add("Softmax", net.add("Gemm", y, net.weight(5, 8), net.weight(5), transB=1)))


def depthwise_cnn() -> qf.Model:
    net = Net(4, 9, 9)
    x = net.add("Conv", "x", net.weight(4, 1, 3, 3), group=4, strides=[2, 2])
    x = net.add("LeakyRelu", net.add("Conv", x, net.weight(6, 4, 1, 1), net.weight(6)), alpha=0.125)
    x = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Concat", x, net.add("Tanh", x), axis=1)
    x = net.add("Reshape", x, net.constant(np.array([0, -1], np.int64)))
    return net.model(net.add("Add", net.add("MatMul", x, net.weight(48, 3)), net.weight(3)))


def autoencoder() -> qf.Model:
    net = Net(1, 8, 8)
    x = net.add("Conv", "x", net.weight(4, 1, 3, 3), net.weight(4), pads=[1, 1, 1, 1])
    x = net.add("MaxPool", net.add("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("ConvTranspose", x, net.weight(4, 3, 3, 3), net.weight(3), strides=[2, 2], pads=[1, 1, 1, 1],
                output_padding=[1, 1])  # fmt: skip
    x = net.add("Elu", x)
    x = net.add("Resize", x, "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    return net.model(net.add("Sigmoid", net.add("Conv", x, net.weight(1, 3, 3, 3), pads=[0, 1, 1, 0])))


def recurrent(kind: str, **attributes: Any) -> Callable[[], qf.Model]:
    def build() -> qf.Model:
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        net, hidden = Net(7, 4), 6
        weights = [net.weight(directions, gates * hidden, width) for width in (4, hidden)]
        bias = net.weight(directions, 2 * gates * hidden)
        count = 3 if kind == "LSTM" else 2
        y, h, *_ = net.add(kind, net.add("Transpose", "x", perm=[1, 0, 2]), *weights, bias, outputs=count,
                           hidden_size=hidden, **attributes)  # fmt: skip
        last = net.add("Transpose", h, perm=[1, 0, 2])
        last = net.add("Reshape", last, net.constant(np.array([0, directions * hidden], np.int64)))
        return net.model(net.add("Gemm", last, net.weight(3, directions * hidden), transB=1), y)

    return build


def conv_lstm() -> qf.Model:
    net = Net(3, 16)
    x = net.add("Conv", "x", net.weight(5, 3, 3), net.weight(5), pads=[1, 1])
    x = net.add("Mul", x, net.add("Sigmoid", x))
    x = net.add("MaxPool", x, kernel_shape=[2], strides=[2])
    x = net.add("Transpose", x, perm=[2, 0, 1])
    y, h, _ = net.add("LSTM", x, net.weight(1, 16, 5), net.weight(1, 16, 4), outputs=3, hidden_size=4)
    y = net.add("Squeeze", y, net.constant(np.array([1], np.int64)))
    y = net.add("Transpose", y, perm=[1, 0, 2])
    steps = net.add("Add", net.add("MatMul", y, net.weight(4, 6)), net.weight(6))
    return net.model(steps, h)


NETS: dict[str, Callable[[], qf.Model]] = {
    "digits_cnn": lambda: qf.load(path("digits_cnn")),
    "digits_lstm": lambda: qf.load(path("digits_lstm")),
    "residual_cnn": residual_cnn,
    "depthwise_cnn": depthwise_cnn,
    "autoencoder": autoencoder,
    "lstm": recurrent("LSTM"),
    "lstm_bidirectional": recurrent("LSTM", direction="bidirectional"),
    "gru": recurrent("GRU"),
    "gru_linear_reverse": recurrent("GRU", linear_before_reset=1, direction="reverse"),
    "rnn": recurrent("RNN"),
    "conv_lstm": conv_lstm,
}


def samples(model: qf.Model, count: int) -> np.ndarray:
    [value] = model.inputs
    return np.random.default_rng(4).uniform(-1, 1, (count, *(value.shape or ())[1:])).astype(np.float32)


@pytest.mark.parametrize("name", NETS)
def test_wide_formats_come_near_the_float_model(name: str) -> None:
    model = NETS[name]()
    network, x = fixed(model, WIDE), samples(model, 5)
    got, want = network.run(x), model.run(x)
    for output, array in want.items():
        assert got[output].dtype == np.float32
        scale = np.abs(array).max()
        # 65536 entries over 16: steps of 2^-12 in what recurrent layers look up again and again
        assert np.abs(got[output] - array).max() < 4e-3 * scale, output


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("backend", ["fpga", "asic"])
def test_every_backend_has_the_same_integers(name: str, backend: str) -> None:
    model = NETS[name]()
    network = fixed(model, "fixed<12,5,RND,SAT>")
    x = samples(model, 2)
    want, got = network.integers(x, backend="cpu"), network.integers(x, backend=backend)
    assert want.keys() == got.keys() == network.formats.keys()
    for value, form in network.formats.items():
        assert want[value].dtype == form.dtype
        np.testing.assert_array_equal(got[value], want[value], err_msg=value)


def test_values_have_the_precision_that_was_asked_for() -> None:
    precision = Precision(
        inputs={"image": Fixed(8, 0, "RND", "SAT", signed=False)},
        layers={
            "conv1": LayerPrecision(weight=Fixed(8, 1, "RND", "SAT"), result=Fixed(10, 4, "RND", "SAT")),
            "dense2": LayerPrecision(accumulator=Fixed(20, 8), reuse=4),
        },
    )
    network = fixed(NETS["digits_cnn"](), precision)
    assert network.formats["image.fixed"].text == "ufixed<8,0,RND,SAT>"
    assert network.formats["relu1.out"].text == network.formats["pool1.out"].text == "fixed<10,4,RND,SAT>"
    conv = next(node for node in network.graph.nodes if node.name == "conv1")
    assert conv.attributes["w_format"] == "fixed<8,1,RND,SAT>"
    assert network.graph.constants["conv1.weight"].max() <= 127
    dense = next(node for node in network.graph.nodes if node.name == "dense2")
    assert (dense.attributes["accumulator"], dense.attributes["reuse"]) == ("fixed<20,8>", 4)


def test_exact_sums_do_not_overflow() -> None:
    """Of the greatest inputs with the weights' own signs, which reach the bound."""
    net = Net(50)
    model = net.model(net.add("Gemm", "x", net.weight(4, 50, scale=8.0), net.weight(4), transB=1))
    network = fixed(model, Precision(Fixed(8, 4, "RND", "SAT"), Fixed(8, 2, "RND", "SAT")))
    weight = network.graph.constants["gemm0.weight"]
    x = np.where(weight[:1] > 0, 7.9375, -8.0).astype(np.float32)
    [node] = [node for node in network.graph.nodes if node.op == "fixed_conv"]
    accumulator = Fixed.parse(node.attributes["accumulator"])
    raw = network.formats["x.fixed"].quantize(x).astype(np.int64)
    exact = int((raw * weight[0].astype(np.int64)).sum())
    assert abs(exact) > accumulator.high // 2, "one bit fewer would not do"
    assert accumulator.low <= exact <= accumulator.high


def test_precision_reads_back(tmp_path: Path) -> None:
    precision = Precision(
        bias=Fixed(12, 3), accumulator=Fixed(24, 10, "RND", "SAT"), table_size=4096, inputs={"x": Fixed(8, 1)},
        layers={"conv": LayerPrecision(result=Fixed(9, 2), accumulator="exact", reuse=3)},
    )  # fmt: skip
    precision.save(tmp_path / "precision.json")
    assert Precision.load(tmp_path / "precision.json") == precision


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "no JSON"),
        ("[]", "holds list"),
        ('{"values": "fixed<8,1>"}', "unknown key 'values'; known are value"),
        ('{"value": "float"}', "write fixed<width,integer>"),
        ('{"layers": {"a": {"table_size": 0}}}', "give a whole number"),
        ('{"layers": {"a": 1}}', "object of objects"),
    ],
)
def test_a_precision_that_cannot_be_read_is_refused(text: str, wanted: str) -> None:
    with pytest.raises(ModelError, match=wanted):
        Precision.parse(text, "file")


def refused(net: Net, output: str, wanted: str) -> None:
    with pytest.raises(ModelError, match=wanted):
        fixed(net.model(output))


def test_what_has_no_fixed_point_form_is_refused() -> None:
    net = Net(4)
    refused(net, net.add("Erf", "x"), r"'erf0' \(Erf\) has no fixed-point form; known are Conv")
    net = Net(2, 6, 6)
    refused(
        net,
        net.add("Resize", "x", "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear"),
        "nearest alone",
    )
    net = Net(5, 4)
    x = net.add("Transpose", "x", perm=[1, 0, 2])
    y, _ = net.add("RNN", x, net.weight(1, 3, 4), net.weight(1, 3, 3), outputs=2, hidden_size=3, clip=1.0)
    refused(net, y, "clip has no fixed-point form")
    net = Net(5, 4)
    x = net.add("Transpose", "x", perm=[1, 0, 2])
    y, _ = net.add("RNN", x, net.weight(1, 3, 4), net.weight(1, 3, 3), outputs=2, hidden_size=3, activations=["Elu"])
    refused(net, y, "Elu has no fixed-point form; take Sigmoid, Tanh, Relu")
    with pytest.raises(ModelError, match="names 'conv9'; the model's layers are 'conv1'"):
        fixed(NETS["digits_cnn"](), Precision(layers={"conv9": LayerPrecision()}))


def test_a_network_keeps_its_source() -> None:
    model = NETS["digits_cnn"]()
    network = fixed(model, "fixed<16,6>")
    assert isinstance(network, FixedNetwork)
    assert network.source is model
    reals = network.reals(samples(model, 2))
    np.testing.assert_allclose(reals["relu1.out"], np.round(reals["relu1.out"] * 1024) / 1024)
