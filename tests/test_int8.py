"""Models in 8-bit integers whose scales choose themselves: right on digits, on integer kernels, refusals in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil.models import ModelError
from quatrefoil.models.gallery import digits_split, path
from quatrefoil.models.int8 import normalized, quantize_int8
from quatrefoil.models.passes import pass_bytes

pytest.importorskip("sklearn.datasets", reason="digits come with scikit-learn")


def images(part: np.ndarray) -> np.ndarray:
    return part.reshape(-1, 1, 8, 8)


def test_digits_in_bytes_are_as_right_as_in_floats(tmp_path: Path) -> None:
    digits = digits_split()
    chosen_on, held_out = images(digits.train_images)[:200], images(digits.held_out_images)
    made = quantize_int8(path("digits_cnn"), chosen_on)
    made.save(tmp_path / "int8.onnx")
    onnx.checker.check_model(made.proto, full_check=True)
    loaded = qf.load(tmp_path / "int8.onnx")
    scores = [model.run(held_out)["scores"] for model in (qf.load(path("digits_cnn")), loaded)]
    right = [float((each.argmax(1) == digits.held_out_digits).mean()) for each in scores]
    assert right[1] >= right[0] - 0.005, right
    assert made.error < 0.02
    assert made.first_diverging is None
    explained = {str(placement).split(" ")[0]: str(placement) for placement in loaded.explain(held_out[:1])}
    for name, kernel in (
        ("relu1.out.quantize", "qlinear_conv"),
        ("pool1", "max_pool"),
        ("relu2.out.quantize", "qlinear_conv"),
    ):
        assert f": cpu, {kernel}" in explained[name]
    assert "pool1.out.bytes" in explained["pool1"]
    whole = quantize_int8(path("digits_cnn"), chosen_on, per_channel=False)
    for own, common in zip(made.layers, whole.layers):
        assert own.channels > 1
        assert own.scales[0] < own.scales[1]
        assert common.scales[0] == common.scales[1]
        assert own.weight_error < common.weight_error
    assert made.error < whole.error


def small(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int | str], opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def dense(opset: int = 17, **attributes: float) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "first", **attributes),
        helper.make_node("LeakyRelu", ["h"], ["a"], "leaky"),
        helper.make_node("MatMul", ["a", "v"], ["y"], "second"),
    ]
    w = weights(6, 5) * np.float32([1, 0.01, 100, 0, 1])
    return small(nodes, {"w": w, "b": np.float32([0, 1e6, 3, -2, 0]), "v": weights(5, 3)}, ["n", 6], opset)


def test_channels_of_any_size_keep_their_bias() -> None:
    """One of weights of 0, and one whose bias would leave 32 bits in units of its own products."""
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    made = quantize_int8(dense(), x)
    assert [layer.name for layer in made.layers] == ["first", "second"]
    assert made.error < 0.02
    assert made.layers[0].low is not None
    assert made.layers[1].low is None
    np.testing.assert_allclose(made.model.run(x)["y"], qf.load(dense()).run(x)["y"], rtol=0.05, atol=2e4)


def test_earlier_operator_sets_are_converted() -> None:
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    made = quantize_int8(dense(opset=11), x)
    assert made.proto.opset_import[0].version >= 13
    assert made.error < 0.02


def test_what_stays_in_floating_point_is_said() -> None:
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    made = quantize_int8(dense(alpha=0.5), x)
    assert made.left == {"first": "it multiplies by alpha or beta, or transposes its input"}
    assert "first stays in floating point: it multiplies" in made.summary


def test_what_cannot_be_quantized_is_refused() -> None:
    x = np.ones((4, 6), np.float32)
    with pytest.raises(ModelError, match="has no Conv, Gemm or MatMul"):
        quantize_int8(small([helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 6]), x)
    with pytest.raises(ModelError, match="quantized already"):
        quantize_int8(quantize_int8(dense(), x).proto, x)
    with pytest.raises(ModelError, match="no finite numbers for 'y'"):
        quantize_int8(dense(), np.full((4, 6), np.nan, np.float32))


def test_batch_normalisations_go_into_the_weights() -> None:
    rng = np.random.default_rng(0)
    statistics = {name: rng.uniform(0.5, 2, 8).astype(np.float32) for name in ("scale", "shift", "mean", "variance")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", *statistics], ["n"], epsilon=1e-3),
        helper.make_node("Clip", ["n", "low", "high"], ["y"]),
    ]
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    proto = small(
        nodes, {"w": weights(8, 3, 1, 1), **statistics, **{k: np.array(v) for k, v in bounds.items()}}, [1, 3, 9, 9]
    )
    x = rng.normal(size=(1, 3, 9, 9)).astype(np.float32)
    wanted = qf.load(proto).run(x)["y"]
    np.testing.assert_allclose(qf.load(normalized(proto)).run(x)["y"], wanted, atol=1e-5)
    made = quantize_int8(proto, x)
    assert [node.op_type for node in made.proto.graph.node].count("BatchNormalization") == 0
    assert np.abs(made.model.run(x)["y"] - wanted).max() < 0.1


@pytest.mark.parametrize(("zero", "passes"), [(3, True), (4, False)])
def test_a_pool_takes_bytes_between_equal_scales(zero: int, passes: bool) -> None:
    constants = {"s": np.float32(0.1), "z": np.uint8(3), "other": np.uint8(zero)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("QuantizeLinear", ["c", "s", "other"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "s", "other"], ["y"]),
    ]
    model = small(nodes, {k: np.array(v) for k, v in constants.items()}, [1, 2, 6, 6])
    plain = qf.load(model, optimized=False)
    made = pass_bytes(plain.graph)
    assert [node.kind for node in made.nodes].count("QuantizeLinear") == (1 if passes else 2)
    x = np.random.default_rng(0).normal(size=(1, 2, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(qf.load(model).run(x)["y"], plain.run(x)["y"])
