"""Streams of the FPGA backend: operators in a row as one launch give what they give one by one, in either form of the
program, and explain says where that happens."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil import fpga, ops, settings
from quatrefoil.fpga import limits, opencl, streams
from quatrefoil.fpga.sequence import STAGES
from quatrefoil.models.gallery.small import NETS, samples
from quatrefoil.problem import Tensor

device = pytest.mark.skipif(not fpga.BACKEND.probe().ready, reason=f"no OpenCL device: {fpga.BACKEND.probe().detail}")

FORMATS = {"x_format": "fixed<12,5>", "y_format": "fixed<12,5>", "accumulator": "fixed<18,9,RND,SAT>"}
QUANTIZED = {"scale": np.array(0.05, np.float32), "zero": np.array(3, np.uint8)}


class Chain:
    """A straight ONNX model in the making."""

    def __init__(self, *shape: int, dtype: int = TensorProto.FLOAT) -> None:
        self.rng = np.random.default_rng(1)
        self.shape, self.dtype, self.last = shape, dtype, "x"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def weights(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *inputs], [name], name, **attributes))
        self.last = name
        return name

    def quantized(self, weights: np.ndarray, **attributes: Any) -> None:
        scale, zero = (self.constant(QUANTIZED[name]) for name in ("scale", "zero"))
        of_weights = self.constant(np.array(0.02, np.float32)), self.constant(np.array(0, np.int8))
        self.add("QLinearConv", scale, zero, self.constant(weights), *of_weights, scale, zero, **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "chain", [helper.make_tensor_value_info("x", self.dtype, self.shape)],
            [helper.make_tensor_value_info(name, 0, None) for name in (*outputs, self.last)], self.constants,
        )  # fmt: skip
        for value in graph.output:
            value.type.tensor_type.elem_type = self.dtype
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def dense_chain() -> Chain:
    """Rows and columns that no window reaches, padding at one end alone, and a batch."""
    net = Chain(2, 3, 12, 13)
    net.add("Conv", net.weights(10, 3, 3, 3), net.weights(10), pads=[1, 1, 0, 2], strides=[1, 2])
    net.add("Relu")
    net.add("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1])
    return net


def depthwise_chain() -> Chain:
    net = Chain(3, 5, 9, 11)
    net.add("Conv", net.weights(5, 1, 3, 3), group=5, pads=[1] * 4)
    net.add("HardSwish")
    net.add("Conv", net.weights(12, 5, 1, 1), net.weights(12), strides=[2, 1])
    net.add("Sigmoid")
    net.add("AveragePool", kernel_shape=[2, 3], pads=[0, 1, 0, 1], count_include_pad=1)
    return net


def one_axis() -> Chain:
    net = Chain(2, 4, 31)
    net.add("Conv", net.weights(6, 2, 5), group=2, dilations=[2], pads=[3, 1])
    net.add("Elu", alpha=0.5)
    net.add("LpPool", kernel_shape=[3], strides=[2])
    return net


def integers() -> Chain:
    net = Chain(2, 4, 10, 9, dtype=TensorProto.UINT8)
    net.quantized(net.rng.integers(-127, 127, (4, 1, 3, 3), np.int8), group=4, pads=[1] * 4)
    net.quantized(net.rng.integers(-127, 127, (9, 4, 2, 2), np.int8))
    net.add("MaxPool", kernel_shape=[2, 2], strides=[3, 2])
    return net


def joined(model: qf.Model, x: np.ndarray) -> list[str]:
    return [p.kernel if p.joined is not None else "" for p in model.explain(x, backend="fpga")]


@device
@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("build", [dense_chain, depthwise_chain, one_axis, integers])
def test_a_stream_gives_what_its_operators_give_one_by_one(build: Any, optimized: bool) -> None:
    net = build()
    x = net.rng.integers(0, 255, net.shape).astype(np.uint8)
    if net.dtype == TensorProto.FLOAT:
        x = net.rng.standard_normal(net.shape).astype(np.float32)
    model = qf.load(net.model(), optimized=optimized)
    kernels = joined(model, x)
    assert all("_stream_nhwc_" in kernel for kernel in kernels) and len(set(kernels)) == 1
    # every value is an output, so that nothing joins
    apart = qf.load(net.model(*(node.output[0] for node in net.nodes[:-1])), optimized=False)
    assert not any("_stream_" in kernel for kernel in joined(apart, x))
    got, want = model.run(x, backend="fpga")[net.last], apart.run(x, backend="fpga")[net.last]
    if x.dtype == np.uint8:
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got, model.run(x, backend="cpu")[net.last])
    else:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got, model.run(x, backend="cpu")[net.last], rtol=1e-5, atol=1e-5)


@device
@pytest.mark.parametrize(
    ("name", "precision"), [("autoencoder", "fixed<16,6>"), ("depthwise_cnn", "fixed<8,4,RND,SAT>")]
)
def test_streams_in_fixed_point_are_equal_to_the_last_bit(name: str, precision: str) -> None:
    model = NETS[name]()
    x, network = samples(model, 4), qf.fixed(model, precision)
    assert any("fixed_conv+" in kernel for kernel in joined(network.model, x))
    got, want = network.run(x, backend="fpga"), network.run(x, backend="cpu")
    for output in want:
        np.testing.assert_array_equal(got[output], want[output])


@device
@pytest.mark.parametrize("function", ["Sigmoid", "Elu", "LeakyRelu"])
def test_functions_of_fixed_point_are_stages(function: str) -> None:
    net = Chain(1, 3, 8, 7)
    net.add("Conv", net.weights(5, 3, 3, 3), net.weights(5))
    net.add(function)
    net.add("MaxPool", kernel_shape=[2, 2])
    model = qf.load(net.model())
    network, x = qf.fixed(model, "fixed<10,4,RND,SAT>"), samples(model, 1)
    kernels = [kernel for kernel in joined(network.model, x) if "_stream_" in kernel]
    assert kernels == ["fixed_conv+fixed_function+fixed_max_pool_stream_nhwc_fixed_opencl"] * 3
    got, want = (network.run(x, backend=backend)[net.last] for backend in ("fpga", "cpu"))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        network.integers(x, "fpga")[net.last + ".fixed"], network.integers(x)[net.last + ".fixed"]
    )


@device
def test_explain_and_profile_name_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dense_chain()
    model, x = qf.load(net.model(), optimized=False), np.zeros(net.shape, np.float32)
    lines = str(model.explain(backend="fpga")).splitlines()
    assert len(lines) == 3
    assert all(
        "fpga, conv+max_pool_stream_nhwc_f32_opencl, one launch for conv0, relu1, maxpool2" in line for line in lines
    )
    records = model.profile(x, backend="fpga")
    assert {record.kernel for record in records} == {"conv+max_pool_stream_nhwc_f32_opencl"}
    assert records[0].seconds and not records[1].seconds and records[0].layout == "nhwc"
    monkeypatch.setenv(settings.FORCE_KERNEL_VARIABLE, "conv_ndrange_nchw_f32_opencl")
    forced = qf.load(net.model()).explain(backend="fpga")
    assert forced[0].kernel == "conv_ndrange_nchw_f32_opencl", "a stream is of kernels that dispatch chose"
    assert forced[1].kernel == "max_pool_line_buffer_nchwc_any_opencl"


@device
def test_what_cannot_join_stays_alone() -> None:
    net = Chain(1, 16, 12, 12)
    net.add("Conv", net.weights(64, 16, 3, 3))
    net.add("Conv", net.weights(48, 64, 3, 3))  # alone it fits on the chip, with the one before it not
    assert 48 * 64 * 9 < limits.WEIGHT_WORDS < (48 * 64 + 64 * 16) * 9
    net.add("MaxPool", kernel_shape=[2, 2])
    net.add("Tanh")
    kernels = [p.kernel for p in qf.load(net.model()).explain(backend="fpga")]
    assert kernels == ["conv_line_buffer_nhwc_f32_opencl", *["conv+max_pool_stream_nhwc_f32_opencl"] * 2, "numpy"]
    residual = Chain(1, 4, 6, 6)
    first = residual.add("Conv", residual.weights(4, 4, 3, 3), pads=[1] * 4)
    residual.add("Conv", residual.weights(4, 4, 3, 3), pads=[1] * 4)
    residual.add("Add", first)
    residual.add("MaxPool", kernel_shape=[2, 2])
    model, x = qf.load(residual.model()), residual.rng.standard_normal(residual.shape).astype(np.float32)
    assert [name.split("_")[0] for name in joined(model, x)] == ["", "conv+max", "conv+max"], "it is read twice"
    got, want = (model.run(x, backend=backend)[residual.last] for backend in ("fpga", "cpu"))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_stages_are_of_kernels_that_are_declared() -> None:
    assert set(STAGES) <= {kernel.id for kernel in fpga.BACKEND.kernels()}


@device
def test_dense_layers_run_on_the_device_as_convolutions_of_one_pixel() -> None:
    net = Chain(3, 2, 4, 4)
    net.add("Flatten")
    net.add("Gemm", net.weights(7, 32), net.weights(7), transB=1)
    net.add("Tanh")
    net.add("MatMul", net.weights(7, 5))
    model, x = qf.load(net.model()), net.rng.standard_normal(net.shape).astype(np.float32)
    placements = model.explain(x, backend="fpga")
    assert [p.backend for p in placements] == ["host", "fpga", "host", "fpga"]
    assert placements[1].kernel == "conv_line_buffer_nhwc_f32_opencl"
    assert placements[1].why == "as a convolution of one pixel"
    assert [r.kernel for r in model.profile(x, backend="fpga")] == [p.kernel for p in placements]
    got, want = (model.run(x, backend=backend)[net.last] for backend in ("fpga", "cpu"))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@device
def test_an_empty_batch_reaches_no_device() -> None:
    net = dense_chain()
    net.shape = (0, *net.shape[1:])
    y = qf.load(net.model()).run(np.zeros(net.shape, np.float32), backend="fpga")[net.last]
    assert y.shape[0] == 0


AS_C = (Path(__file__).parent / "data" / "opencl_as_c.h").read_text()


def _stages(kind: str) -> tuple[list[streams.Stage], np.ndarray, list[Any]]:
    """The stages of a chain, an input in pixels, and the types of the output."""
    rng = np.random.default_rng(2)
    float32 = kind == "float32"
    dtype = "float32" if float32 else "int16"
    conv, attributes = ("conv", {}) if float32 else ("fixed_conv", {**FORMATS, "w_format": "fixed<10,2>"})
    pooling, of_pool = ("max_pool", {}) if float32 else ("fixed_average_pool", FORMATS)
    given, problems, weights = Tensor(dtype, (2, 3, 9, 10)), [], []
    for op, extra in ((conv, {"pads": [1, 1, 0, 0], "strides": [1, 2]}), (conv, {"group": 11})):
        count, per_group = 11, 3 if op == conv and not weights else 1
        weight = rng.integers(-90, 90, (count, per_group, 3, 2)).astype(dtype)
        problem = ops.canonical(op, (given, Tensor.of(weight)), {**attributes, **extra})
        problems.append(problem)
        weights.append({1: weight})
        given = problem.outputs[0]
    problems.append(ops.canonical(pooling, (given,), {**of_pool, "kernel_shape": [2, 2], "strides": [2, 2]}))
    weights.append({})
    kernels = [
        next(k.id for k in fpga.BACKEND.kernels() if k.op == problem.op and k.id in STAGES) for problem in problems
    ]
    made = [STAGES[kernel](problem, packed) for kernel, problem, packed in zip(kernels, problems, weights)]
    x = rng.integers(-60, 60, (2, 9, 10, 3)).astype(dtype)
    return made, x, [streams.pixels_type(problems[-1].outputs[0])]


@device
@pytest.mark.parametrize("form", ["QF_CHANNELS", "QF_PIPES"])
@pytest.mark.parametrize("kind", ["float32", "fixed"])
def test_kernels_with_channels_or_pipes_give_the_same(kind: str, form: str, tmp_path: Path) -> None:
    """What a vendor's compiler is given, compiled as C; every kernel takes exactly what the one before it gives."""
    compiler = os.environ.get("CC") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to compile the kernels with")
    made, x, types = _stages(kind)
    (want,) = streams.Stream(made)(x, [None] * 3, types)
    source, library = tmp_path / "stream.c", tmp_path / "stream.so"
    source.write_text(AS_C + opencl.source("stream.h") + streams.text(made, "stream"))
    command = [compiler, f"-D{form}", "-std=gnu11", "-O1", "-w", "-shared", "-fPIC", source, "-o", library, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = ctypes.CDLL(str(library))
    y = np.zeros_like(want)
    for number, stage in enumerate(made):
        arguments: list[Any] = [*([_c(x)] if number == 0 else []), ctypes.c_int(2), *map(_c, stage.arguments)]
        getattr(kernels, f"stream_{number}")(*arguments, *([_c(y)] if number == 2 else []))
    np.testing.assert_array_equal(y, want) if kind == "fixed" else np.testing.assert_allclose(y, want, rtol=1e-5)
    assert np.count_nonzero(y)
    assert kernels.left() == 0


def _c(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, np.floating):
        return ctypes.c_float(float(value))
    return ctypes.c_void_p(None) if value is None else ctypes.c_int(int(value))
