"""Small networks of every kind with random weights, for proofs that need many kinds and little time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quatrefoil.models.gallery import path
from quatrefoil.models.model import Model, load


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

    def model(self, *outputs: str) -> Model:
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], self.weights,
        )  # fmt: skip
        return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def residual_cnn() -> Model:
    net = Net(3, 8, 8)
    x = net.add("Conv", "x", net.weight(8, 3, 3, 3), net.weight(8), pads=[1, 1, 1, 1])
    x = net.add("Relu", x)
    y = net.add("Conv", x, net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    y = net.add("Add", y, x)
    y = net.add("Relu", y)
    y = net.add("GlobalAveragePool", y)
    y = net.add("Flatten", y)
    return net.model(net.add("Softmax", net.add("Gemm", y, net.weight(5, 8), net.weight(5), transB=1)))


def depthwise_cnn() -> Model:
    net = Net(4, 9, 9)
    x = net.add("Conv", "x", net.weight(4, 1, 3, 3), group=4, strides=[2, 2])
    x = net.add("LeakyRelu", net.add("Conv", x, net.weight(6, 4, 1, 1), net.weight(6)), alpha=0.125)
    x = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Concat", x, net.add("Tanh", x), axis=1)
    x = net.add("Reshape", x, net.constant(np.array([0, -1], np.int64)))
    return net.model(net.add("Add", net.add("MatMul", x, net.weight(48, 3)), net.weight(3)))


def autoencoder() -> Model:
    net = Net(1, 8, 8)
    x = net.add("Conv", "x", net.weight(4, 1, 3, 3), net.weight(4), pads=[1, 1, 1, 1])
    x = net.add("MaxPool", net.add("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("ConvTranspose", x, net.weight(4, 3, 3, 3), net.weight(3), strides=[2, 2], pads=[1, 1, 1, 1],
                output_padding=[1, 1])  # fmt: skip
    x = net.add("Elu", x)
    x = net.add("Resize", x, "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    return net.model(net.add("Sigmoid", net.add("Conv", x, net.weight(1, 3, 3, 3), pads=[0, 1, 1, 0])))


def recurrent(kind: str, **attributes: Any) -> Callable[[], Model]:
    def build() -> Model:
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


def conv_lstm() -> Model:
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


NETS: dict[str, Callable[[], Model]] = {
    "digits_cnn": lambda: load(path("digits_cnn")),
    "digits_lstm": lambda: load(path("digits_lstm")),
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


def samples(model: Model, count: int) -> np.ndarray:
    """Inputs for a network of one input, uniform from -1 to 1."""
    [value] = model.inputs
    shape = [length for length in (value.shape or ())[1:] if isinstance(length, int)]
    return np.random.default_rng(4).uniform(-1, 1, (count, *shape)).astype(np.float32)


ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Softplus", "Softsign", "HardSwish")


def random_network(seed: int) -> Model:
    """A network of a few random layers, now and then with an option or an operator that fixed point does not have."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["plane", "line", "sequence", "vector"], p=[0.4, 0.2, 0.25, 0.15])
    net = _Random(rng, kind)
    for _ in range(int(rng.integers(1, 4))):
        net.layer()
    return net.ended()


class _Random:
    """A network that grows by random layers; ``shape`` is that of ``x`` without the batch."""

    def __init__(self, rng: np.random.Generator, kind: str) -> None:
        self.rng = rng
        channels = int(rng.integers(1, 5))
        lengths = {"plane": 2, "line": 1, "sequence": 1, "vector": 0}[kind]
        self.steps = kind == "sequence"
        self.shape = (channels, *(int(n) for n in rng.integers(5, 10, lengths)))
        if self.steps:
            self.shape = (int(rng.integers(2, 7)), channels)
        self.net = Net(*self.shape)
        self.net.rng = rng
        self.x = "x"

    def layer(self) -> None:
        if self.steps:
            self.recurrent()
        elif len(self.shape) == 1:
            self.dense()
        else:
            choice = self.rng.choice(["conv", "pool", "normal", "residual", "concat"], p=[0.5, 0.2, 0.1, 0.1, 0.1])
            getattr(self, choice)()
        if self.rng.random() < 0.6:
            self.x = self.net.add(str(self.rng.choice(ACTIVATIONS)), self.x)
        if self.rng.random() < 0.03:
            self.x = self.net.add("Erf", self.x)

    def small(self, most: int) -> int:
        return int(self.rng.integers(1, most + 1))

    def conv(self) -> None:
        rank, channels = len(self.shape) - 1, self.shape[0]
        kernel = [self.small(min(3, length)) for length in self.shape[1:]]
        group = channels if self.rng.random() < 0.25 else 1
        outputs = group * self.small(2) if group > 1 else self.small(6)
        strides = [self.small(2) for _ in range(rank)]
        dilations = [2 if self.rng.random() < 0.1 and length > 2 * extent else 1
                     for extent, length in zip(kernel, self.shape[1:])]  # fmt: skip
        pads = [int(self.rng.integers(0, extent)) for extent in kernel] * 2
        weights = [self.net.weight(outputs, channels // group, *kernel)]
        if self.rng.random() < 0.7:
            weights.append(self.net.weight(outputs))
        self.x = self.net.add("Conv", self.x, *weights, strides=strides, pads=pads, dilations=dilations, group=group)
        self.shape = (
            outputs,
            *(
                (length + 2 * pad - (extent - 1) * dilation - 1) // stride + 1
                for length, pad, extent, dilation, stride in zip(self.shape[1:], pads, kernel, dilations, strides)
            ),
        )

    def pool(self) -> None:
        kernel = [self.small(min(3, length)) for length in self.shape[1:]]
        strides = kernel if self.rng.random() < 0.7 else [self.small(2) for _ in kernel]
        kind = str(self.rng.choice(["MaxPool", "AveragePool"]))
        self.x = self.net.add(kind, self.x, kernel_shape=kernel, strides=strides)
        self.shape = (
            self.shape[0],
            *((length - extent) // stride + 1 for length, extent, stride in zip(self.shape[1:], kernel, strides)),
        )

    def normal(self) -> None:
        channels = self.shape[0]
        positive = self.net.constant(self.rng.uniform(0.5, 2, channels).astype(np.float32))
        weights = [self.net.weight(channels) for _ in range(3)]
        self.x = self.net.add("BatchNormalization", self.x, *weights, positive)

    def residual(self) -> None:
        channels, rank = self.shape[0], len(self.shape) - 1
        kernel = (channels, channels, *(3,) * rank)
        inner = self.net.add("Conv", self.x, self.net.weight(*kernel), pads=[1] * (2 * rank))
        self.x = self.net.add("Add", inner, self.x)

    def concat(self) -> None:
        self.x = self.net.add("Concat", self.x, self.net.add("Tanh", self.x), axis=1)
        self.shape = (2 * self.shape[0], *self.shape[1:])

    def dense(self) -> None:
        outputs = self.small(8)
        weights = [self.net.weight(outputs, self.shape[0])]
        if self.rng.random() < 0.7:
            weights.append(self.net.weight(outputs))
        self.x = self.net.add("Gemm", self.x, *weights, transB=1)
        self.shape = (outputs,)

    def recurrent(self) -> None:
        kind = str(self.rng.choice(["LSTM", "GRU", "RNN"]))
        direction = str(self.rng.choice(["forward", "reverse", "bidirectional"], p=[0.5, 0.2, 0.3]))
        directions, gates = 1 + (direction == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
        hidden, (steps, width) = self.small(5), self.shape
        inputs = [self.net.weight(directions, gates * hidden, size) for size in (width, hidden)]
        inputs.append(self.net.weight(directions, 2 * gates * hidden) if self.rng.random() < 0.8 else "")
        attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
        if kind == "GRU":
            attributes["linear_before_reset"] = int(self.rng.integers(0, 2))
        if self.rng.random() < 0.05:
            attributes["clip"] = 1.0
        turned = self.net.add("Transpose", self.x, perm=[1, 0, 2])
        y, *_ = self.net.add(kind, turned, *inputs, outputs=3 if kind == "LSTM" else 2, **attributes)
        y = self.net.add("Transpose", y, perm=[2, 0, 1, 3])
        self.shape = (steps, directions * hidden)
        self.x = self.net.add("Reshape", y, self.net.constant(np.array([0, *self.shape], np.int64)))

    def ended(self) -> Model:
        if len(self.shape) > 1 and self.rng.random() < 0.7:
            size = int(np.prod(self.shape))
            self.x = self.net.add("Flatten", self.x)
            self.shape = (size,)
            self.dense()
            if self.rng.random() < 0.4:
                self.x = self.net.add("Softmax", self.x)
        return self.net.model(self.x)
