"""Gradients of whole graphs: held to central differences in float64, and refused by name where there is no rule."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from quatrefoil.models import ModelError
from quatrefoil.models.differentiation import RULES, Differentiable
from quatrefoil.models.importing import load_graph

RNG = np.random.default_rng(4)


def model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int | str], opset: int = 21
) -> onnx.ModelProto:
    """From x to y; x of the constants' float type."""
    kind = next((array.dtype for array in constants.values() if array.dtype.kind == "f"), np.dtype(np.float32))
    element = helper.np_dtype_to_tensor_dtype(kind)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    """``inputs``: names with blanks between them, - for an absent one."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, ["" if name == "-" else name for name in output.split()], **attributes)


def drawn(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def cnn() -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """Strides, batch normalisation, two pools, a depthwise convolution, dense layers of both kinds, a softmax."""
    nodes = [
        node("Conv", "x w1 b1", "c1", strides=[2, 1], pads=[1, 1, 0, 1]),
        node("BatchNormalization", "c1 s o m v", "n1"),
        node("LeakyRelu", "n1", "a1", alpha=0.2),
        node("MaxPool", "a1", "p1", kernel_shape=[2, 2], strides=[1, 2]),
        node("Conv", "p1 w2", "c2", group=3, pads=[1, 1, 1, 1]),
        node("HardSwish", "c2", "a2"),
        node("AveragePool", "a2", "p2", kernel_shape=[2, 2]),
        node("Flatten", "p2", "f"),
        node("Gemm", "f w3 b3", "g", transB=1, alpha=0.5, beta=2.0),
        node("Tanh", "g", "t"),
        node("MatMul", "t w4", "z"),
        node("LogSoftmax", "z", "y"),
    ]
    constants = {
        "w1": drawn(3, 2, 3, 3), "b1": drawn(3), "s": drawn(3), "o": drawn(3), "m": drawn(3), "v": np.abs(drawn(3)) + 0.5,
        "w2": drawn(3, 1, 3, 3), "w3": drawn(5, 9), "b3": drawn(5), "w4": drawn(5, 4),
    }  # fmt: skip
    return model(nodes, constants, ["n", 2, 7, 8]), (2, 2, 7, 8)


def residual() -> tuple[onnx.ModelProto, tuple[int, ...]]:
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r"),
        node("Conv", "r w2", "c2", pads=[1, 1, 1, 1]),
        node("Sigmoid", "c2", "gate"),
        node("Mul", "r gate", "mixed"),
        node("Add", "mixed r", "sum"),
        node("Div", "sum k", "scaled"),
        node("Concat", "scaled c1", "both", axis=1),
        node("GlobalAveragePool", "both", "mean"),
        node("Squeeze", "mean axes", "flat"),
        node("Slice", "flat from to last", "part"),
        node("Gather", "book codes", "w3"),
        node("MatMul", "part w3", "h"),
        node("ReduceMean", "h axis", "y", keepdims=0),
    ]
    constants = {
        "w1": drawn(3, 2, 3, 3), "b1": drawn(3), "w2": drawn(3, 3, 3, 3), "k": np.abs(drawn(1, 3, 1, 1)) + 1,
        "axes": np.array([2, 3]), "from": np.array([1]), "to": np.array([6]), "last": np.array([1]), "book": drawn(4),
        "codes": RNG.integers(0, 4, (5, 6)), "axis": np.array([1]),
    }  # fmt: skip
    return model(nodes, constants, ["n", 2, 4, 5]), (3, 2, 4, 5)


def chosen() -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """What picks, and shapes that are computed."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Shape", "h", "shape"),
        node("Gather", "shape first", "rows"),
        node("Concat", "rows minus", "target", axis=0),
        node("Max", "h n", "most"),
        node("Min", "most k h", "least"),
        node("Greater", "h k", "above"),
        node("Where", "above least h", "either"),
        node("Reshape", "either target", "flat"),
        node("Pad", "flat pads", "padded", mode="reflect"),
        node("Clip", "padded low", "clipped"),
        node("Softmax", "clipped", "s"),
        node("PRelu", "padded slope", "p"),
        node("Mul", "s p", "y"),
    ]
    constants = {
        "w": drawn(4, 6), "first": np.array([0]), "minus": np.array([-1]), "n": drawn(1, 6), "k": np.array(0.3),
        "pads": np.array([0, 2, 0, 1]), "low": np.array(-0.5), "slope": drawn(9),
    }  # fmt: skip
    return model(nodes, constants, ["n", 4]), (3, 4)


def recurrent() -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """An LSTM in both directions, whose last states are classified, and the mean of all its states besides."""
    nodes = [
        node("Transpose", "x", "rows", perm=[1, 0, 2]),
        node("LSTM", "rows W R B", "all last -", hidden_size=3, direction="bidirectional"),
        node("Transpose", "last", "ways", perm=[1, 0, 2]),
        node("Reshape", "ways shape", "state"),
        node("Gemm", "state w b", "z"),
        node("ReduceMean", "all axes", "mean", keepdims=0),
        node("GRU", "all2 W2 R2", "- last2", hidden_size=2, linear_before_reset=1),
        node("Squeeze", "last2 zero", "z2"),
        node("Transpose", "all", "all3", perm=[0, 2, 1, 3]),
        node("Reshape", "all3 shape3", "all2"),
        node("Concat", "z z2 mean", "c", axis=1),
        node("LayerNormalization", "c ln lb", "n"),
        node("Softmax", "n", "p"),
        node("Pow", "p three", "y"),
    ]
    constants = {
        "W": drawn(2, 12, 4), "R": drawn(2, 12, 3), "B": drawn(2, 24), "shape": np.array([-1, 6]), "w": drawn(6, 5),
        "b": drawn(5), "axes": np.array([0, 1]), "zero": np.array([0]), "W2": drawn(1, 6, 6), "R2": drawn(1, 6, 2),
        "shape3": np.array([0, 0, 6]), "ln": drawn(10), "lb": drawn(10), "three": np.array(3.0),
    }  # fmt: skip
    # in an order that can run
    order = [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11, 12, 13]
    return model([nodes[place] for place in order], constants, ["n", 5, 4]), (3, 5, 4)


UNTRAINED = ("m", "v", "low")
"""Running means and variances, and a bound."""


@pytest.mark.parametrize("made", [cnn, residual, chosen, recurrent], ids=lambda made: made.__name__)
def test_gradients_are_those_of_central_differences(made: object) -> None:
    """Along a random direction for each constant, so that a wrong element shows."""
    proto, shape = made()  # type: ignore[operator]
    graph = load_graph(proto)
    names = [name for name, array in graph.constants.items() if array.dtype.kind == "f" and name not in UNTRAINED]
    derivative = Differentiable(graph, names)
    x = drawn(*shape)
    run = derivative.run({"x": x})
    dy = drawn(*run.outputs["y"].shape)
    found = run.gradients({"y": dy})
    assert set(found) == set(names)
    step = 1e-6
    for name in names:
        weight = graph.constants[name]
        assert found[name].shape == weight.shape
        along = drawn(*weight.shape)
        ends = [
            (derivative.run({"x": x}, {name: weight + sign * step * along}).outputs["y"] * dy).sum() for sign in (1, -1)
        ]
        wanted = (ends[0] - ends[1]) / (2 * step)
        assert (found[name] * along).sum() == pytest.approx(wanted, rel=2e-5, abs=1e-6), name


def test_rounding_is_taken_back_as_if_it_were_none_within_the_range() -> None:
    nodes = [
        node("QuantizeLinear", "w s z", "q", axis=1),
        node("DequantizeLinear", "q s z", "d", axis=1),
        node("MatMul", "x d", "y"),
    ]
    w = np.float32([[0.3, 40.0], [-0.12, -1.0]])
    constants = {"w": w, "s": np.float32([0.1, 0.25]), "z": np.zeros(2, np.int8)}
    derivative = Differentiable(load_graph(model(nodes, constants, ["n", 2])), ["w", "s"])
    x, dy = np.float32([[1, 2]]), np.float32([[1, 1]])
    found = derivative.run({"x": x}).gradients({"y": dy})
    np.testing.assert_allclose(found["w"], [[1, 0], [2, 2]], rtol=1e-6)  # 40 / 0.25 lies beyond 127
    # rounded minus exact multiples of the scale, and where the range ends, the end
    np.testing.assert_allclose(found["s"], [1 * (3 - 3.0) + 2 * (-1 + 1.2), 127 + 2 * (-4 + 4)], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_differentiated_is_said_by_name() -> None:
    graph = load_graph(
        model([helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("TopK", ["h", "k"], ["y", "places"], "best")],
              {"w": drawn(3, 4), "k": np.array([2])}, ["n", 3])
    )  # fmt: skip
    with pytest.raises(ModelError, match="'best' \\(TopK\\) has no rule"):
        Differentiable(graph, ["w"])
    with pytest.raises(ModelError, match="'nothing' is no constant"):
        Differentiable(graph, ["nothing"])
    with pytest.raises(ModelError, match="'k' is of type int64"):
        Differentiable(graph, ["k"])
    plain = Differentiable(load_graph(model([node("MatMul", "x w", "y")], {"w": drawn(3, 4)}, ["n", 3])), ["w"])
    with pytest.raises(ModelError, match="MatMul"):
        plain.run({"x": drawn(2, 5)})
    with pytest.raises(ModelError, match="'z' is no value"):
        plain.run({"x": drawn(2, 3)}).gradients({"z": drawn(2, 4)})
    with pytest.raises(ModelError, match=r"of shape \[2, 4\]"):
        plain.run({"x": drawn(2, 3)}).gradients({"y": drawn(2, 3)})
    assert "TopK" not in RULES


def test_a_node_that_no_weight_reaches_needs_no_rule() -> None:
    nodes = [node("Mod", "x two", "m", fmod=1), node("MatMul", "m w", "y")]
    w = drawn(3, 4)
    derivative = Differentiable(load_graph(model(nodes, {"w": w, "two": np.array(2.0)}, ["n", 3])), ["w"])
    x, dy = drawn(2, 3), drawn(2, 4)
    np.testing.assert_allclose(derivative.run({"x": x}).gradients({"y": dy})["w"], np.fmod(x, 2).T @ dy)
