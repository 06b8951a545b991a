"""ONNX Runtime sessions that run quatrefoil's kernels give what plain ones give."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil.models import onnxruntime_session

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


def model_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, list], outputs: list[str], **weights: np.ndarray
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([4, *shape]).standard_normal(shape).astype(np.float32)


@pytest.fixture
def network() -> onnx.ModelProto:
    return model_of(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("MaxPool", ["r"], ["p", "i"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("MaxUnpool", ["p", "i"], ["u"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["u"], ["y"]),
        ],
        {"x": ["n", 3, 8, 10]},
        ["y", "p"],
        w=normal(4, 3, 3, 3),
        b=normal(4),
    )


def test_a_network_gives_the_same(network: onnx.ModelProto) -> None:
    plain = onnxruntime.InferenceSession(network.SerializeToString())
    ours = onnxruntime_session.session(network)
    for batch in (2, 3):
        for got, want in zip(
            ours.run(None, {"x": normal(batch, 3, 8, 10)}), plain.run(None, {"x": normal(batch, 3, 8, 10)})
        ):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert list(ours.models) == ["c", "p", "u", "y"]


def test_a_recurrent_layer_without_all_of_its_outputs() -> None:
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "", "", "h"], ["", "hn"], hidden_size=4)]
    model = model_of(nodes, {"x": [5, 2, 3], "h": [1, 2, 4]}, ["hn"], w=normal(1, 16, 3), r=normal(1, 16, 4))
    feeds = {"x": normal(5, 2, 3), "h": normal(1, 2, 4)}
    (got,) = onnxruntime_session.session(model.SerializeToString()).run(None, feeds)
    (want,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_another_backend_runs_it(network: onnx.ModelProto) -> None:
    x = normal(1, 3, 8, 10)
    expected = onnxruntime_session.session(network).run(["y"], {"x": x})[0]
    np.testing.assert_allclose(
        onnxruntime_session.session(network, "asic").run(["y"], {"x": x})[0], expected, atol=1e-5
    )


def test_what_went_wrong_is_said(network: onnx.ModelProto) -> None:
    with pytest.raises(Exception, match="there is no backend 'nowhere'"):
        onnxruntime_session.session(network, "nowhere").run(None, {"x": normal(1, 3, 8, 10)})
    network.graph.node.insert(0, helper.make_node("Mystery", ["x"], ["m"], domain="elsewhere"))
    network.graph.node[1].input[0] = "m"
    network.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(qf.QuatrefoilError, match="the type of m, which Conv takes, is not known"):
        onnxruntime_session.session(network)


def test_what_ran_goes_with_its_session(network: onnx.ModelProto) -> None:
    before = len(onnxruntime_session._running)
    session = onnxruntime_session.session(network)
    assert len(onnxruntime_session._running) == before + 4
    del session
    gc.collect()
    assert len(onnxruntime_session._running) == before
