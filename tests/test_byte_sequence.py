"""Models in bytes as native sequences on the CPU: to the last bit what they give step by step, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil import cpu
from quatrefoil.cpu import _sequence, byte_steps, instruction_set
from quatrefoil.models.scheduling import SequenceOperation
from quatrefoil.sequences import ByteScale, ByteTable


class Bytes:
    """A model in QDQ form in the making. Values are the names of bytes; each has a scale and a zero point of its own."""

    def __init__(self, kind: Any, *shape: int, seed: int = 0) -> None:
        self.rng, self.kind = np.random.default_rng(seed), kind
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shape = shape
        self.scales: dict[str, list[str]] = {}
        self.first = self.quantized("x", 0.03)

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"v{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def quantized(self, x: str, scale: float, zero: int | None = None, like: str = "") -> str:
        limits = np.iinfo(self.kind)
        value = int(self.rng.integers(limits.min + 60, limits.max - 60)) if zero is None else zero
        given = self.scales.get(like) or [self.constant(np.float32(scale)), self.constant(np.array(value, self.kind))]
        made = self.add("QuantizeLinear", [x, *given])
        self.scales[made] = given
        return made

    def real(self, q: str) -> str:
        return self.add("DequantizeLinear", [q, *self.scales[q]])

    def weights(self, *shape: int) -> str:
        scale = self.rng.uniform(0.002, 0.01, shape[0]).astype(np.float32)
        integers = self.rng.integers(-128, 128, shape).astype(np.int8)
        given = [self.constant(each) for each in (integers, scale, np.zeros(shape[0], np.int8))]
        return self.add("DequantizeLinear", given, axis=0)

    def conv(self, q: str, inputs: int, outputs: int, kernel: int = 1, group: int = 1, **attributes: Any) -> str:
        w = self.weights(outputs, inputs // group, *[kernel] * (len(self.shape) - 2))
        pads = [kernel // 2] * 2 * (len(self.shape) - 2)
        return self.quantized(self.add("Conv", [self.real(q), w], pads=pads, group=group, **attributes), 0.05)

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "bytes", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], self.constants,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def input(self) -> np.ndarray:
        x = self.rng.normal(0, 3, self.shape).astype(np.float32)
        x.reshape(-1)[:4] = np.inf, -np.inf, 1e30, 0.015  # beyond the bytes, and a half of a step
        return x


def step_by_step(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu.CpuBackend, "sequencer", None)
        return qf.load(model).run(x, backend="cpu")


def check(model: onnx.ModelProto, x: np.ndarray, whole: bool = True) -> None:
    """The same bits as step by step, in one sequence."""
    loaded = qf.load(model)
    for _ in range(2):
        got = loaded.run(x, backend="cpu")
        for name, array in step_by_step(model, x).items():
            np.testing.assert_array_equal(got[name], array)
    [program] = loaded._programs.values()
    [schedule] = program._schedules.values()
    assert not whole or [type(step.operation) for step in schedule.steps] == [SequenceOperation]


KINDS = [np.uint8, np.int8]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [3, 16, 37])
def test_a_network_of_every_kind_of_step(isa: str, kind: Any, channels: int) -> None:
    net = Bytes(kind, 2, 3, 9, 7, seed=channels)
    first = net.conv(net.first, 3, channels, 3)
    depthwise = net.conv(first, channels, channels, 3, group=channels)
    joined = net.quantized(net.add("Add", [net.real(first), net.real(depthwise)]), 0.07)
    pooled = net.quantized(
        net.add("MaxPool", [net.real(joined)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 0, like=joined
    )
    gated = net.quantized(net.add("Mul", [net.real(pooled), net.real(net.conv(pooled, channels, channels))]), 0.2)
    left, right = net.conv(gated, channels, 24), net.conv(gated, channels, 5, 3)
    both = net.quantized(net.add("Concat", [net.real(left), net.real(right)], axis=1), 0.06)
    bent = net.quantized(net.add("HardSwish", [net.real(both)]), 0.04)
    mean = net.quantized(net.add("GlobalAveragePool", [net.real(bent)]), 0.02)
    last = net.real(net.conv(mean, 29, 10))
    check(net.model(net.add("Flatten", [last]), net.real(bent)), net.input())


@pytest.mark.parametrize("kind", KINDS)
def test_moves_and_axes_of_any_stride(isa: str, kind: Any) -> None:
    net = Bytes(kind, 1, 6, 70, 3)
    turned = net.add("Transpose", [net.first], perm=[0, 3, 2, 1])
    net.scales[turned] = net.scales[net.first]
    sliced = net.add("Slice", [turned, *(net.constant(np.array([n])) for n in (1, 65, 2, 2))])
    net.scales[sliced] = net.scales[net.first]
    padded = net.add("Pad", [sliced, net.constant(np.array([0, 0, 1, 2, 0, 0, 3, 0])), net.constant(np.array(7, kind))])
    net.scales[padded] = net.scales[net.first]
    other = net.quantized(net.constant(net.rng.normal(size=(3, 1, 8)).astype(np.float32)), 0.02)
    product = net.quantized(net.add("Sub", [net.real(padded), net.real(other)]), 0.05)
    sines = net.quantized(net.add("Relu", [net.add("Sin", [net.real(product)])]), 0.01)
    check(net.model(net.real(sines), net.real(padded)), net.input(), whole=False)


def test_scales_of_an_axis() -> None:
    net = Bytes(np.uint8, 2, 5, 40)
    scale, zero = net.constant(np.float32([0.1, 0.02, 3, 0.5, 1])), net.constant(np.full(5, 100, np.uint8))
    q = net.add("QuantizeLinear", ["x", scale, zero], axis=1)
    sums = net.add("DequantizeLinear", [net.add("Cast", [q], to=TensorProto.INT8), scale], axis=-2)
    check(net.model(net.add("Cast", [q], to=TensorProto.FLOAT), net.add("Neg", [sums])), net.input(), whole=False)


@pytest.mark.parametrize("function", ["add", "subtract", "multiply"])
@pytest.mark.parametrize("dtypes", [("uint8", "uint8"), ("int8", "uint8")])
def test_tables_of_two_bytes_are_computed(isa: str, function: str, dtypes: tuple[str, str]) -> None:
    """Not looked up, and compared with every entry when they are prepared. A table that is nothing of the kind is looked up."""
    a, b = ByteScale(0.02, 3, dtypes[0]), ByteScale(0.05, 90, dtypes[1])
    y = ByteScale(0.06 if function != "multiply" else 0.1, 20, dtypes[0])
    real = [
        ((np.arange(256, dtype=np.uint8).view(each.dtype).astype(np.float32)) - np.float32(each.zero))
        * np.float32(each.scale)
        for each in (a, b)
    ]
    exact = getattr(np, function)(real[0][:, None], real[1][None, :])
    limits = np.iinfo(y.dtype)
    table = np.clip(np.rint(np.maximum(exact, 0) / np.float32(y.scale)) + y.zero, limits.min, limits.max).astype(
        y.dtype
    )
    assert byte_steps.call(ByteTable(table.reshape(-1), function, (a, b, y)), dtypes)[0] in (function, "combine")
    other = ByteTable(np.roll(table.reshape(-1), 1), function, (a, b, y))
    assert byte_steps.call(other, dtypes)[0] == "pair_table"


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_rows(isa: str, kind: Any) -> None:
    """MatMul of any number of rows, quantized again or left in floats, and a dense layer that stays in floats."""
    net = Bytes(kind, 2, 17, 24)
    scale, w = (
        net.rng.uniform(0.002, 0.01, 40).astype(np.float32),
        net.rng.integers(-128, 128, (24, 40)).astype(np.int8),
    )
    columns = net.add("DequantizeLinear", [net.constant(each) for each in (w, scale, np.zeros(40, np.int8))], axis=1)
    hidden = net.quantized(net.add("MatMul", [net.real(net.first), columns]), 0.05)
    w = net.rng.integers(0, 255, (40, 3)).astype(np.uint8)
    one = net.add("DequantizeLinear", [net.constant(each) for each in (w, np.float32(0.01), np.uint8(120))])
    rows = net.add("MatMul", [net.real(hidden), one])
    flat = net.quantized(net.add("Reshape", [net.real(hidden), net.constant(np.array([34, 40]))]), 0, like=hidden)
    bias = net.constant(net.rng.normal(size=5).astype(np.float32))
    dense = net.add("Gemm", [net.real(flat), net.weights(5, 40), bias], transB=1)
    model, x = net.model(rows, dense), net.input()
    kinds = [node.kind for node in qf.load(model).graph.nodes]
    assert "QLinearMatMul" in kinds and "MatMulInteger" in kinds and "ConvInteger" in kinds
    assert not {"MatMul", "Gemm"} & set(kinds)
    check(model, x)
    # sums of integers are exact, and every float of the unfused model has been rounded
    wanted = qf.load(model, optimized=False).run(x)
    for name, array in qf.load(model).run(x).items():
        assert np.abs(array - wanted[name]).max() < 0.02 * np.abs(wanted[name]).max()


@pytest.mark.parametrize(
    ("bound", "kinds"), [(6.0, ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]), (2.0, None)]
)
def test_saturation_does_what_a_clip_does(bound: float, kinds: list[str] | None) -> None:
    """Where bytes cannot hold more than its bounds; else the Clip stays."""
    net = Bytes(np.uint8, 1, 3, 6, 6)
    clip = net.add("Clip", [net.add("Conv", [net.real(net.first), net.weights(4, 3, 1, 1)]),
                            net.constant(np.float32(0)), net.constant(np.float32(bound))])  # fmt: skip
    model, x = net.model(net.real(net.quantized(clip, 0.02, 0))), net.input()
    found = [node.kind for node in qf.load(model).graph.nodes]
    assert found == kinds if kinds else "QLinearConv" not in found
    [(name, y)] = qf.load(model).run(x).items()
    assert np.abs(y - qf.load(model, optimized=False).run(x)[name]).max() < 0.0201


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16, 33])
@pytest.mark.parametrize("places", [1, 15, 16, 50])
def test_channels_are_brought_last_and_back(isa: str, channels: int, places: int) -> None:
    x = np.random.default_rng(channels).integers(0, 256, (2, channels, places)).astype(np.uint8)
    for into_blocks in (True, False):
        step = _sequence.reorder_step(instruction_set.index(), 2, channels, places, into_blocks, True)
        wanted = np.ascontiguousarray(x.transpose(0, 2, 1)) if into_blocks else x
        given = x if into_blocks else np.ascontiguousarray(x.transpose(0, 2, 1))
        base = _sequence.ARRAYS
        run = _sequence.Sequence([(step, [(base, 0)], [(base + 1, 0)])], 0, 1, [(wanted.shape, wanted.dtype)], None)
        np.testing.assert_array_equal(run([given])[0], wanted)


@pytest.mark.parametrize("dtypes", [("uint8", "int8"), ("int8", "uint8")])
def test_bytes_of_another_scale_are_computed(isa: str, dtypes: tuple[str, str]) -> None:
    """Where they are not looked up in registers; what is not quite that is looked up."""
    x, y = ByteScale(0.0137, 3, dtypes[0]), ByteScale(0.0603, 20, dtypes[1])
    real = (np.arange(256, dtype=np.uint8).view(x.dtype).astype(np.float32) - np.float32(x.zero)) * np.float32(x.scale)
    limits = np.iinfo(y.dtype)
    table = np.clip(np.rint(real / np.float32(y.scale)) + y.zero, limits.min, limits.max).astype(y.dtype)
    found = byte_steps.call(ByteTable(table, "rescale", (x, y)), dtypes[:1])[0]
    assert found == ("table" if isa == byte_steps.IN_REGISTERS else "rescale")
    assert byte_steps.call(ByteTable(np.roll(table, 1), "rescale", (x, y)), dtypes[:1])[0] == "table"
