"""Compression: each recipe does what it says and no more, what comes out is standard ONNX, bad input is refused in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil import backends
from quatrefoil.cli.app import run
from quatrefoil.models.compression import budget
from quatrefoil.models.compression.awareness import in_bytes
from quatrefoil.models.compression.budget import Budget, search
from quatrefoil.models.compression.channels import _cut, groups_of
from quatrefoil.models.compression.factoring import factor
from quatrefoil.models.compression.measuring import Subject
from quatrefoil.models.compression.network import BOOK, CODES, Network, weights_of
from quatrefoil.models.compression.pruning import Magnitude, Pattern, divide, sensitivities, together
from quatrefoil.models.compression.recipe import Recipe
from quatrefoil.models.compression.sharing import k_means, share
from quatrefoil.models.compression.task import Task, cross_entropy, distillation, task_of
from quatrefoil.models.compression.training import Pace, Pinned, one_thread, retrain
from quatrefoil.models.compression.writing import BITS, written
from quatrefoil.models.differentiation import Differentiable
from quatrefoil.models.int8 import FACTOR, quantize_int8, rounded
from quatrefoil.models.int8 import trained as trained_scales

RNG = np.random.default_rng(7)


def seeded() -> None:
    """What is drawn from here on does not depend on which tests ran before."""
    RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state


def drawn(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.normal(size=shape) * scale).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int | str], classes: int = 10
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(array.copy(), name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    names = [["" if name == "-" else name for name in text.split()] for text in (inputs, output)]
    return helper.make_node(kind, *names, name=names[1][0] or names[1][1], **attributes)


def small() -> onnx.ModelProto:
    """Convolution, normalisation, pool, two dense layers."""
    nodes = [
        node("Conv", "x w1 b1", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c s o m v", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", "p shape", "f"),
        node("Gemm", "f w2 b2", "h", transB=1),
        node("Relu", "h", "hr"),
        node("MatMul", "hr w3", "z"),
        node("Add", "z b3", "y"),
    ]
    constants = {
        "w1": drawn(8, 1, 3, 3, scale=0.3), "b1": drawn(8, scale=0.1), "s": np.abs(drawn(8)) + 0.5, "o": drawn(8, scale=0.1),
        "m": drawn(8, scale=0.1), "v": np.abs(drawn(8)) + 0.5, "shape": np.array([-1, 128]), "w2": drawn(24, 128, scale=0.1),
        "b2": drawn(24, scale=0.1), "w3": drawn(24, 10, scale=0.2), "b3": np.zeros(10, np.float32),
    }  # fmt: skip
    return model(nodes, constants, ["n", 1, 8, 8])


@pytest.fixture(scope="module", autouse=True)
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def numbers_of_its_own() -> None:
    seeded()


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    datasets = pytest.importorskip("sklearn.datasets", reason="digits come with scikit-learn")
    found = datasets.load_digits()
    return (found.images[:600, np.newaxis] / 16).astype(np.float32), found.target[:600].astype(np.int64)


@pytest.fixture(scope="module")
def trained(digits: tuple[np.ndarray, np.ndarray]) -> tuple[Network, Task]:
    seeded()
    network = Network(small())
    task = task_of(network.proto, digits)
    retrain(network, task, Pace(12, batch=20, rate=5e-3))
    assert task.evaluate(network.proto, task.test) > 0.85
    return network, task


def same_in_onnxruntime(proto: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    """Our outputs, which ONNX Runtime's are close to; the checker takes the model, shapes and all."""
    onnx.checker.check_model(proto, full_check=True)
    [ours] = qf.load(proto).run(inputs).values()
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), plain, providers=["CPUExecutionProvider"])
    [theirs] = session.run(None, {session.get_inputs()[0].name: inputs})
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
    return ours


# What is trained and how


def test_losses_have_the_gradients_of_central_differences() -> None:
    scores, teacher, labels = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 5)), np.array([0, 4, 2, 2])
    along = RNG.normal(size=scores.shape)
    for loss in (lambda s: cross_entropy(s, labels), lambda s: distillation(s, teacher, 3.0)):
        ends = [loss(scores + sign * 1e-6 * along)[0] for sign in (1, -1)]
        assert (loss(scores)[1] * along).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_lowers_the_loss_and_keeps_the_best_state(digits: Any, optimizer: str) -> None:
    network = Network(small())
    task = task_of(network.proto, digits)
    pace = Pace(4, batch=20, rate=5e-3 if optimizer == "adam" else 0.05, optimizer=optimizer)
    curve = retrain(network, task, pace)
    assert curve[-1] < 0.7 * curve[0]
    reached = task.evaluate(network.proto, task.validation)
    # a rate that spoils everything leaves the state before it
    retrain(network, task, Pace(1, rate=3.0))
    assert task.evaluate(network.proto, task.validation) >= reached


def test_a_loss_that_is_not_finite_ends_training(digits: Any) -> None:
    network = Network(small())
    network.put({"w3": np.full((24, 10), 1e38, np.float32)})
    before = network.constants["w1"].copy()
    with pytest.raises(qf.QuatrefoilError, match=r"the loss is (nan|inf) in epoch 1.*smaller rate"):
        retrain(network, task_of(network.proto, (digits[0], np.zeros((600, 10), np.float32))), Pace(1))
    np.testing.assert_array_equal(network.constants["w1"], before)


# Pruning


def test_magnitude_prunes_the_smallest_and_they_stay_zero(trained: tuple[Network, Task]) -> None:
    network, task = trained[0].copy(), trained[1]
    weights = {name: network.constants[name] for name in ("w1", "w2", "w3")}
    gone = Magnitude({"w2": 0.75}).used(weights, 1.0)
    assert np.count_nonzero(gone["w2"] == 0) == 2304
    assert np.abs(weights["w2"][gone["w2"] == 0]).max() <= np.abs(gone["w2"][gone["w2"] != 0]).min()
    assert gone["w1"] is weights["w1"]
    growing = Magnitude({"w2": 0.75})
    zeros = [np.mean(growing.used(weights, progress)["w2"] == 0) for progress in (0, 0.2, 0.4, 0.6, 1)]
    assert zeros == sorted(zeros) and zeros[0] == 0 and zeros[1] > 0.75 / 3 and zeros[3:] == [0.75, 0.75]
    retrain(network, task, Pace(2), Magnitude({"w2": 0.75}))
    assert np.mean(network.constants["w2"] == 0) == 0.75
    network.pinned["w2"] = network.constants["w2"] == 0
    changed = network.constants["w2"].copy()
    network.put({"w3": np.zeros((24, 10), np.float32)})  # of which training makes something better for certain
    retrain(network, task, Pace(1, batch=20, rate=5e-3))
    assert not network.constants["w2"][network.pinned["w2"]].any()
    assert (network.constants["w2"] != changed).any()


def test_a_share_is_divided_by_what_it_costs(trained: tuple[Network, Task]) -> None:
    losses = {"robust": {0.5: 0.0, 0.9: 0.01}, "touchy": {0.5: 5.0, 0.9: 50.0}}
    sizes = {"robust": 1000, "touchy": 1000}
    for share_of_all in (0.2, 0.45, 0.6, 0.97):
        shares = divide(losses, sizes, share_of_all)
        assert sum(shares[name] * sizes[name] for name in sizes) == pytest.approx(2000 * share_of_all)
    assert divide(losses, sizes, 0.45)["touchy"] == 0
    network, task = trained
    measured = sensitivities(network, task, ["w1", "w2", "w3"])
    assert measured["w2"][0.3] < measured["w2"][0.98]
    global_shares = together({"large": drawn(100, scale=100), "tiny": drawn(300, scale=0.01)}, 0.5)
    assert global_shares == {"large": 0.0, "tiny": pytest.approx(2 / 3)}


def test_patterns_hold_in_every_row_of_what_is_summed(trained: tuple[Network, Task]) -> None:
    network, task = trained[0].copy(), trained[1]
    weights = network.weights()
    pattern = Pattern.parse("2:4", weights)
    retrain(network, task, Pace(1), pattern)
    for weight in weights:
        rows = weight.rows(network.constants[weight.name]) != 0
        for first in range(0, rows.shape[1], 4):
            assert (rows[:, first : first + 4].sum(1) <= 2).all(), weight.name
        assert rows.mean() >= 0.5
    values = {"w2": network.constants["w2"] + np.float32(0.01)}
    found = pattern.corrected(values, {"w2": np.zeros_like(values["w2"])}, 0.5)["w2"]
    left_out = pattern.mask(weights[1], values["w2"])
    assert (found[~left_out] == 0).all() and np.allclose(found[left_out], 2e-4 * values["w2"][left_out])


def grown() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """All that channels go through: residual, depthwise, transposed, pools, an LSTM over columns, flattened in two ways."""
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c1 s o m v", "n1"),
        node("Relu", "n1", "r1"),
        node("Conv", "r1 w2", "c2", pads=[1, 1, 1, 1]),
        node("Mul", "c2 k", "k2"),
        node("Add", "k2 r1", "a"),
        node("Conv", "a w3 b3", "d", group=6, pads=[1, 1, 1, 1]),
        node("ConvTranspose", "d w4 b4", "t", strides=[1, 1]),
        node("AveragePool", "t", "q", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "q", "f"),
        node("Gemm", "f w5 b5", "g5", transB=1),
        node("Tanh", "g5", "g"),
        node("ReduceMean", "t", "mean", axes=[2], keepdims=0),
        node("Transpose", "mean", "columns", perm=[2, 0, 1]),
        node("LSTM", "columns W R B", "- last", hidden_size=4, direction="bidirectional"),
        node("Transpose", "last", "ways", perm=[1, 0, 2]),
        node("Reshape", "ways shape", "state"),
        node("MatMul", "state w6", "s6"),
        node("Gemm", "g w7", "s7"),
        node("Add", "s6 s7", "y"),
    ]
    constants = {
        "w1": drawn(6, 1, 3, 3), "b1": drawn(6), "s": drawn(6), "o": drawn(6), "m": drawn(6), "v": np.abs(drawn(6)) + 1,
        "w2": drawn(6, 6, 3, 3), "k": drawn(6, 1, 1), "w3": drawn(6, 1, 3, 3), "b3": drawn(6), "w4": drawn(6, 5, 1, 1),
        "b4": drawn(5), "w5": drawn(7, 5 * 16), "b5": drawn(7), "W": drawn(2, 16, 5), "R": drawn(2, 16, 4), "B": drawn(2, 32),
        "shape": np.array([-1, 8]), "w6": drawn(8, 10), "w7": drawn(7, 10),
    }  # fmt: skip
    return model(nodes, constants, ["n", 1, 8, 8]), constants


def test_channels_that_do_nothing_go_without_a_trace(digits: Any) -> None:
    """Everything of some channels set to zero, of each group in turn: without these channels the outputs are the same."""
    proto, _ = grown()
    network = Network(proto)
    task = task_of(proto, digits)
    groups = {group.title: group for group in groups_of(network, task)}
    assert {title: group.count for title, group in groups.items() if not group.stuck} == {
        "c2 + c1": 6, "t": 5, "g5": 7, "last": 4,
    }  # fmt: skip
    assert groups["s6 + s7"].stuck[0] == "'y' is an output of the model"
    for title in ("c2 + c1", "t", "g5", "last"):
        group, dead = groups[title], np.array([1, 3])
        changed = network.copy()
        for name, place in group.slices:
            if name not in ("m", "v"):
                array = changed.constants[name].copy()
                np.moveaxis(array, place.axis, 0)[place.taken(dead)] = 0
                changed.put({name: array})
        wanted = qf.load(changed.proto).run(digits[0][:5])["y"]
        assert np.abs(wanted - qf.load(proto).run(digits[0][:5])["y"]).max() > 1e-2
        _cut(changed, group, np.setdiff1d(np.arange(group.count), dead))
        np.testing.assert_allclose(same_in_onnxruntime(changed.proto, digits[0][:5]), wanted, rtol=1e-4, atol=1e-4)
        assert changed.proto.ByteSize() < network.proto.ByteSize()


def test_shapes_that_are_computed_and_a_batch_of_one_are_no_obstacle(digits: Any) -> None:
    """As exporters write x.view(x.size(0), -1)."""
    nodes = [
        node("Conv", "x w1", "c"),
        node("Shape", "c", "shape"),
        node("Gather", "shape zero", "size"),
        node("Unsqueeze", "size axis", "rows"),
        node("Concat", "rows minus", "target", axis=0),
        node("Reshape", "c target", "f"),
        node("Gemm", "f w2", "y"),
    ]
    constants = {"w1": drawn(6, 1, 5, 5), "zero": np.array(0), "axis": np.array([0]), "minus": np.array([-1]),
                 "w2": drawn(96, 10)}  # fmt: skip
    made = model(nodes, constants, [1, 1, 8, 8])
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    found = qf.compress(made, digits, prune_channels=0.5, epochs=1, design=None)
    assert found.stages[1].said["c"] == "3 of 6"
    same_in_onnxruntime(found.proto, digits[0][:3])


def test_channels_that_cannot_go_say_why(digits: Any) -> None:
    nodes = [
        node("Conv", "x w1", "c1"),
        node("Conv", "x w2", "c2"),
        node("Concat", "c1 c2", "both", axis=1),
        node("Conv", "both w3", "c3", group=2),
        node("Softmax", "c3", "p", axis=1),
        node("Flatten", "p", "f"),
        node("Gemm", "f w4", "y"),
    ]
    constants = {"w1": drawn(4, 1, 3, 3), "w2": drawn(4, 1, 3, 3), "w3": drawn(2, 4, 6, 6), "w4": drawn(2, 10)}
    made = model(nodes, constants, ["n", 1, 8, 8])
    groups = groups_of(Network(made), task_of(made, digits))
    assert {group.title: group.stuck for group in groups} == {
        "c1": ["both (Concat) puts different channels side by side"],
        "c2": ["both (Concat) puts different channels side by side"],
        "y": ["'y' is an output of the model"],
    }
    with pytest.raises(qf.QuatrefoilError, match=r"no channels can be removed .*c1: both .Concat"):
        qf.compress(made, digits, prune_channels=0.5, epochs=0, design=None)


# Sharing, low rank


def test_k_means_is_the_best_there_is() -> None:
    for count in (1, 2, 3, 4):
        values = np.sort(RNG.normal(size=9))
        best = min(
            sum(np.square(part - part.mean()).sum() for part in np.split(values, cuts))
            for cuts in itertools.combinations(range(1, 9), count - 1)
        )
        centres = k_means(values[RNG.permutation(9)], count)
        assert np.square(values - centres[np.abs(values[:, np.newaxis] - centres).argmin(1)]).sum() == pytest.approx(
            best
        )
    np.testing.assert_array_equal(k_means(np.array([3.0, 1, 3, 1]), 16), [1, 3])
    many = RNG.normal(size=5000)
    centres = k_means(many, 16)
    wide = np.linspace(many.min(), many.max(), 16)
    errors = [np.abs(many[:, np.newaxis] - each).min(1).std() for each in (centres, wide)]
    assert len(centres) == 16 and errors[0] < errors[1]


@pytest.mark.parametrize("entries", [16, 256])
def test_shared_weights_are_standard_onnx_and_train_together(trained: tuple[Network, Task], entries: int) -> None:
    network, task = trained[0].copy(), trained[1]
    network.put({"w2": np.where(np.abs(network.constants["w2"]) < 0.1, 0, network.constants["w2"]).astype(np.float32)})
    network.pinned["w2"] = network.constants["w2"] == 0
    before = network.constants["w2"]
    said = share(network, entries)
    assert said["w1"].startswith("left") == (entries == 256)
    assert said["w2"] == f"{entries} entries, codes of {4 if entries == 16 else 8} bits"
    codes, book = network.constants["w2" + CODES], network.constants["w2" + BOOK]
    assert codes.dtype == np.uint8 and len(book) == entries and book[0] == 0
    np.testing.assert_array_equal(codes == 0, before == 0)
    np.testing.assert_array_equal(weights_of(network.proto)["w2"], book[codes])
    assert np.square(book[codes] - before).mean() < np.square(before).mean() * (2e-2 if entries == 16 else 2e-4)
    same_in_onnxruntime(network.proto, task.test.inputs["x"])
    network.put({"b3": drawn(10)})
    retrain(network, task, Pace(1, rate=1e-3))
    now = network.constants["w2" + BOOK]
    assert now[0] == 0 and (now != book).any()
    np.testing.assert_array_equal(weights_of(network.proto)["w2"], now[codes])


def test_factors_of_the_full_product_give_the_same_numbers(digits: Any) -> None:
    """Weights that are of a low rank already: nothing is lost, strides, pads and dilations included."""
    column, row = drawn(2, 4, 3), drawn(8, 2, 3)
    nodes = [
        node("Conv", "x w0", "c0"),
        node("Conv", "c0 w1 b1", "c1", strides=[1, 2], pads=[1, 0, 0, 1], dilations=[2, 1]),
        node("Conv", "c0 w2", "c2", strides=[2, 1], pads=[0, 1, 2, 0]),
        node("Conv", "c1 w3 b3", "c3"),
        node("Flatten", "c3", "f"),
        node("Flatten", "c2", "g"),
        node("Gemm", "f w4 b4", "a", transB=1, alpha=0.5),
        node("MatMul", "g w5", "b"),
        node("Add", "a b", "y"),
    ]
    w1 = np.einsum("or,rshw,si->oihw", drawn(8, 2), drawn(2, 2, 3, 3), drawn(2, 4))
    constants = {
        "w0": drawn(4, 1, 1, 1), "w1": w1, "b1": drawn(8), "w2": np.einsum("rih,orw->oihw", column, row),
        "w3": (drawn(6, 2) @ drawn(2, 8)).reshape(6, 8, 1, 1), "b3": drawn(6), "w4": drawn(10, 2) @ drawn(2, 6 * 5 * 4),
        "b4": drawn(10), "w5": drawn(8 * 4 * 7, 2) @ drawn(2, 10),
    }  # fmt: skip
    network = Network(model(nodes, constants, ["n", 1, 8, 8]))
    wanted = qf.load(network.proto).run(digits[0][:3])["y"]
    said = factor(network, 1 - 1e-9)
    assert said["c0"].startswith("left") and said["c1"].startswith("Tucker, 2x4x1x1, 2x2x3x3, 8x2x1x1")
    assert said["c2"].startswith("column and row, 2x4x3x1, 8x2x1x3")
    assert said["c3"].startswith("Tucker, 2x8x1x1, 6x2x1x1") and said["a"].startswith("rank 2 of 10: 260")
    assert said["b"].startswith("rank 2 of 10")
    np.testing.assert_allclose(same_in_onnxruntime(network.proto, digits[0][:3]), wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_inputs_of_recurrent_layers_are_factored_and_their_states_are_not(
    digits: Any, kind: str, direction: str
) -> None:
    """Input weights of a low rank over all gates and directions: nothing is lost. Two layers read the same weights."""
    gates, ways = {"RNN": 1, "LSTM": 4, "GRU": 3}[kind], 1 + (direction == "bidirectional")
    settings = {"hidden_size": 4, "direction": direction}
    nodes = [
        node("Squeeze", "x one", "rows"),
        node("Transpose", "rows", "steps", perm=[1, 0, 2]),
        node("Neg", "steps", "turned"),
        node(kind, "steps W R B", "- first", **settings),
        node(kind, "turned W R B - first", "- last", **settings),
        node("Transpose", "last", "states", perm=[1, 0, 2]),
        node("Reshape", "states shape", "state"),
        node("Gemm", "state w", "y"),
    ]
    constants = {
        "one": np.array([1]), "W": (drawn(ways * gates * 4, 2) @ drawn(2, 8)).reshape(ways, gates * 4, 8),
        "R": drawn(ways, gates * 4, 4, scale=0.5), "B": drawn(ways, 2 * gates * 4), "shape": np.array([-1, ways * 4]),
        "w": drawn(ways * 4, 10),
    }  # fmt: skip
    network = Network(model(nodes, constants, ["n", 1, 8, 8]))
    wanted = qf.load(network.proto).run(digits[0][:3])["y"]
    full, little = 8 * ways * gates * 4, 2 * (8 + ways * gates * 4)
    said = factor(network, 1 - 1e-9)
    for name in ("first", "last"):
        assert said[name].startswith(
            f"rank 2 of {min(8, ways * gates * 4)}: {little} weights in place of {full} of the inputs"
        )
        assert "recurrent weights are whole" in said[name]
    assert network.constants["W.second"].shape == (ways, gates * 4, 2) and "W" not in network.constants
    np.testing.assert_array_equal(network.constants["R"], constants["R"])
    np.testing.assert_allclose(same_in_onnxruntime(network.proto, digits[0][:3]), wanted, rtol=1e-4, atol=1e-4)
    derivative = Differentiable(network.graph(), ["W.first"])
    step = derivative.run({"x": digits[0][:3]})
    gradient = step.gradients({"y": np.ones_like(wanted)})["W.first"]
    first, along = network.constants["W.first"], np.sign(gradient) * np.float32(1e-3)
    ends = [
        derivative.run({"x": digits[0][:3]}, {"W.first": first + sign * along}).outputs["y"].sum() for sign in (1, -1)
    ]
    assert ends[0] - ends[1] == pytest.approx(2 * (gradient * along).sum(), rel=0.02)
    assert factor(Network(model(nodes, constants, ["n", 1, 8, 8])), 8)["last"].startswith("left: rank")


# 8 bits, files


def test_rounding_for_training_is_what_8_bits_will_be(trained: tuple[Network, Task]) -> None:
    network, task = trained
    samples = task.train.inputs
    training, scales = rounded(network.proto, samples)
    grew = trained_scales(scales, {"x.scale" + FACTOR: np.float32([2]), "c.weight.scale" + FACTOR: np.float32([3] * 8)})
    assert grew.values["x"].scale == 2 * scales.values["x"].scale and grew.values["r"] == scales.values["r"]
    np.testing.assert_array_equal(grew.weights["c"], 3 * scales.weights["c"])
    fresh, wanted = (
        qf.load(proto).run(task.test.inputs)["y"]
        for proto in (training, quantize_int8(network.proto, samples, scales=scales).proto)
    )
    assert np.abs(fresh - wanted).max() < 0.01 * np.abs(wanted).max()
    names = [name for name in network.with_proto(training).constants if name.endswith(FACTOR)]
    assert len(names) == len(scales.values) + len(scales.weights)
    proto, said, curve = in_bytes(network.copy(), task, Pace(2), None, None)
    assert said["c"] == "int8, 8 channels" and len(curve) == 2
    same_in_onnxruntime(proto, task.test.inputs["x"])
    assert (
        task.evaluate(proto, task.validation)
        >= task.evaluate(quantize_int8(network.proto, samples).proto, task.validation) - 0.02
    )


@pytest.fixture(scope="module")
def trained_in_bytes(trained: tuple[Network, Task]) -> tuple[onnx.ModelProto, Network]:
    """In 8 bits, a part of the convolution's weights pinned to zero before; the network that was trained for it."""
    network, task = trained[0].copy(), trained[1]
    first = network.constants["w1"]
    network.put({"w1": np.where(np.abs(first) < np.median(np.abs(first)), np.float32(0), first)})
    network.pinned["w1"] = network.constants["w1"] == 0
    proto, said, curve = in_bytes(network, task, Pace(2), None, None)
    assert said["c"] == "int8, 8 channels" and len(curve) == 2
    return proto, network


def test_normalisations_are_in_the_weights_that_are_trained_for_8_bits(
    trained: tuple[Network, Task], trained_in_bytes: tuple[onnx.ModelProto, Network]
) -> None:
    (before, task), (proto, network) = trained, trained_in_bytes
    for each in (proto, network.proto):
        assert "BatchNormalization" not in [item.op_type for item in each.graph.node]
    [weight] = [item.input[1] for item in network.nodes if item.op_type == "Conv"]
    factor_of = before.constants["s"] / np.sqrt(before.constants["v"] + np.float32(1e-5))
    folded = before.constants["w1"] * factor_of[:, np.newaxis, np.newaxis, np.newaxis]
    now = network.constants[weight]
    kept = ~network.pinned[weight]
    assert kept.mean() == 0.5 and not now[~kept].any()
    assert 0 < np.abs(now - folded)[kept].max() < 0.1 * np.abs(folded).max()
    [bias] = [item.input[2] for item in network.nodes if item.op_type == "Conv"]
    assert bias in network.trainable()
    assert task.evaluate(proto, task.test) > task.evaluate(before.proto, task.test) - 0.05


@pytest.mark.parametrize("backend", ["gpu", "fpga", "asic"])
def test_what_was_trained_for_8_bits_is_the_same_integers_on_every_backend(
    trained: tuple[Network, Task], trained_in_bytes: tuple[onnx.ModelProto, Network], backend: str
) -> None:
    """The normalisation being in the weights, nothing but the ends of the network is computed in floating point."""
    available = backends.get(backend).probe()
    if not available.ready:
        pytest.skip(f"{backend} cannot run here: {available.detail}")
    x, loaded = trained[1].test.inputs["x"], qf.load(trained_in_bytes[0])
    assert sum(item.node.kind.startswith("QLinear") for item in loaded.explain(x)) == 3
    np.testing.assert_array_equal(loaded.run(x, backend=backend)["y"], loaded.run(x, backend="cpu")["y"])
    same_in_onnxruntime(trained_in_bytes[0], x)


def test_zeros_and_codebooks_stay_in_8_bits_and_files_hold_bits(trained: tuple[Network, Task]) -> None:
    network, task = trained[0].copy(), trained[1]
    x = task.test.inputs["x"]
    retrain(network, task, Pace(2), Magnitude({"w2": 0.9}))
    network.pinned["w2"] = zeros = network.constants["w2"] == 0
    proto, forms = written(network)
    assert forms == {"w2": BITS} and proto.ByteSize() < 0.5 * network.proto.ByteSize()
    np.testing.assert_array_equal(weights_of(proto)["w2"], network.constants["w2"])
    np.testing.assert_allclose(same_in_onnxruntime(proto, x), qf.load(network.proto).run(x)["y"], rtol=1e-5, atol=1e-5)
    plain, _, _ = in_bytes(network.copy(), task, Pace(1), None, None)
    as_bits, forms = written(network.with_proto(plain))
    assert list(forms.values()) == [BITS] and as_bits.ByteSize() < plain.ByteSize()
    np.testing.assert_array_equal(same_in_onnxruntime(as_bits, x), qf.load(plain).run(x)["y"])
    share(network, 16)
    in_codes, forms = written(network)
    assert list(forms) == ["w2" + CODES] and in_codes.ByteSize() < as_bits.ByteSize()
    same_in_onnxruntime(in_codes, x)
    proto, _, _ = in_bytes(network, task, Pace(1), None, None)
    found = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    assert found["h.weight.book.integers"].dtype == np.int8 and found["h.weight.book.integers"][0] == 0
    np.testing.assert_array_equal(weights_of(written(network.with_proto(proto))[0])["h.weight.dequantized"] == 0, zeros)
    same_in_onnxruntime(proto, x)


def test_recurrent_weights_become_bytes(digits: Any) -> None:
    nodes = [
        node("Squeeze", "x one", "rows"),
        node("Transpose", "rows", "steps", perm=[1, 0, 2]),
        node("LSTM", "steps W R B", "- last", hidden_size=6),
        node("Squeeze", "last zero", "state"),
        node("Gemm", "state w", "y"),
    ]
    constants = {"one": np.array([1]), "zero": np.array([0]), "W": drawn(1, 24, 8), "R": drawn(1, 24, 6), "B": drawn(1, 48),
                 "w": drawn(6, 10)}  # fmt: skip
    network = Network(model(nodes, constants, ["n", 1, 8, 8]))
    task = task_of(network.proto, digits)
    proto, said, _ = in_bytes(network.copy(), task, Pace(1), None, None)
    assert said["last"] == "weights in bytes, computed in floating point"
    bytes_of = {item.name: item.data_type for item in proto.graph.initializer}
    assert bytes_of["R.bytes"] == TensorProto.INT8
    same_in_onnxruntime(proto, task.test.inputs["x"])


# The whole


def test_compress_goes_stage_by_stage(trained: tuple[Network, Task], digits: Any, tmp_path: Path) -> None:
    made = qf.compress(
        trained[0].proto, digits, prune_channels=0.25, prune=0.6, share=16, bits=8, distill=True, epochs=3, rate=3e-3
    )
    assert [stage.name for stage in made.stages] == ["float", "channels 0.25", "prune 0.6", "share 16", "int8"]
    sizes = [stage.cost.size for stage in made.stages]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    first, last = made.stages[0], made.stages[-1]
    assert made.metric == "accuracy" and last.figure > first.figure - 0.1
    assert [round(stage.cost.nonzeros, 1) for stage in made.stages[:4]] == [1.0, 1.0, 0.4, 0.4]
    assert made.stages[1].said["c"] == "6 of 8"
    cycles = [stage.cost.cycles or 0 for stage in made.stages]
    energies = [stage.cost.energy_pj or 0 for stage in made.stages]
    assert cycles[0] > cycles[1] > cycles[4] > 0 and energies[0] > energies[1] > energies[4] > 0
    assert dict(first.cost.kernels)["c"].startswith("conv_") and first.cost.time_ratio == 1.0
    made.save(tmp_path / "small.onnx")
    same_in_onnxruntime(onnx.load(tmp_path / "small.onnx"), digits[0][:5])
    assert "times smaller" in str(made)


@pytest.fixture
def short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LADDER", tuple(budget.LADDER[place] for place in (0, 3, 6, 11)))


@pytest.mark.usefixtures("short_ladder")
def test_a_budget_finds_the_smallest_that_meets_it(trained: tuple[Network, Task]) -> None:
    network, task = trained
    loose, tried = search(Budget.parse("accuracy>=0.3", "accuracy"), Recipe(), network, task, Pace(1))
    tight, _ = search(Budget.parse("loss<=0.02, size<=12KB", "accuracy"), Recipe(), network, task, Pace(1, rate=3e-3))
    never, _ = search(Budget.parse("size<=10B", "accuracy"), Recipe(bits=8), network, task, Pace(0))
    assert not loose.missed and not tight.missed
    assert loose.size < tight.size <= 12000
    assert loose.size == min(each.size for each in tried)
    assert tight.figure >= task.evaluate(network.proto, task.validation) - 0.02
    assert [str(each) for each in never.missed] == ["size<=10"] and never.recipe.bits == 8


@pytest.mark.parametrize("what", ["cycles", "energy_uj", "time_ms"])
def test_a_budget_is_of_what_a_row_takes_on_a_design_or_the_cpu(
    trained: tuple[Network, Task], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "LADDER", ({}, {"share": 16}, {"prune_channels": 0.5}))
    network, task = trained
    loose = Budget.parse(f"{what}<=1e9", task.metric)
    (costs,) = loose.costs_of([Subject(network.proto, network.proto)], task, "edge")
    assert costs[what] > 0
    said: list[str] = []
    found, tried = search(loose, Recipe(), network, task, Pace(0), said.append, "edge")
    assert not found.missed and len(tried) == budget.TRIED and "3 keep to" in said[0]
    never, (only,) = search(Budget.parse(f"{what}<=1e-9", task.metric), Recipe(), network, task, Pace(0), None, "edge")
    assert [each.what for each in never.missed] == [what] and never is only
    if what != "time_ms":  # what the same model takes is another time each time
        half = Budget.parse(f"{what}<={0.7 * costs[what]}, accuracy>=0.01", task.metric)
        found, _ = search(half, Recipe(), network, task, Pace(0), None, "edge")
        assert not found.missed and found.costs[what] <= 0.7 * costs[what] and found.recipe.given
        with pytest.raises(qf.QuatrefoilError, match=f"the budget is of {what}, which a design takes"):
            search(half, Recipe(), network, task, Pace(0))


def test_weights_that_exporters_transpose_are_weights(digits: Any) -> None:
    nodes = [
        node("Constant", "", "shape", value_ints=[-1, 64]),
        node("Reshape", "x shape", "f"),
        node("Transpose", "w", "turned", perm=[1, 0]),
        node("MatMul", "f turned", "y"),
    ]
    network = Network(model(nodes, {"w": drawn(10, 64)}, ["n", 1, 8, 8]))
    assert [weight.name for weight in network.weights()] == ["turned"]
    assert sorted(network.constants) == ["shape", "turned"] and len(network.nodes) == 2
    again = qf.compress(
        qf.compress(network.proto, digits, share=16, epochs=1, design=None).proto, digits, prune=0.5, epochs=1
    )
    assert again.stages[1].cost.nonzeros == 0.5


def test_targets_and_no_targets_are_tasks_too(digits: Any) -> None:
    targets = drawn(600, 10)
    made = qf.compress(small(), (digits[0], targets), share=16, epochs=1, design=None)
    assert made.metric == "error" and made.stages[0].cost.cycles is None
    made = qf.compress(small(), digits[0], share=256, epochs=0, design=None)
    assert made.metric == "agreement" and made.stages[0].figure == 1.0 and made.stages[1].figure > 0.9
    smaller = Network(small())
    _cut(smaller, groups_of(smaller, task_of(smaller.proto, digits))[1], np.arange(4))
    made = qf.compress(small(), {"x": digits[0]}, student=smaller.proto, epochs=1, design=None)
    assert [stage.name for stage in made.stages] == ["float", "student"] and made.stages[1].curve


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "nothing is to be done"),
        ({"prune": 1.0}, "prune is 1.0; a share lies between 0 and 1"),
        ({"prune_channels": -0.1}, "prune_channels is -0.1"),
        ({"prune": 0.5, "pattern": "2:4"}, "give one"),
        ({"pattern": "4:4"}, "at least 1 is kept, not all"),
        ({"pattern": "two"}, "write kept:of"),
        ({"share": 1}, "2 to 256 entries"),
        ({"bits": 4}, "8 is what there is"),
        ({"rank": 0}, "rank is 0"),
        ({"share": 16, "scope": "some"}, "scope is 'some'"),
        ({"share": 16, "optimizer": "best"}, "write adam or sgd"),
        ({"share": 16, "rate": 0.0}, "the rate is 0.0"),
        ({"share": 16, "epochs": -1}, "-1 epochs"),
        ({"budget": "accuracy>0.9"}, "not understood"),
        ({"budget": "error<=0.1"}, "judged by accuracy"),
        ({"budget": "accuracy<=0.9"}, "wrong way round"),
        ({"budget": "beauty>=1"}, "it can be of accuracy, loss, size, time_ms, cycles, energy_uj"),
        ({"budget": "cycles=100"}, "write accuracy>=0.97, .* cycles<=20000"),
        ({"budget": "energy_uj>=1"}, "wrong way round"),
        ({"budget": "time_ms<=0"}, "leaves nothing; give a number above 0"),
        ({"budget": "cycles<=100", "epochs": 0}, "name a design"),
        ({"share": 16, "output": "z"}, "no output 'z'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_asked_is_refused(digits: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(qf.QuatrefoilError, match=says):
        qf.compress(small(), digits, **given, design=None)


def test_data_that_do_not_fit_are_refused(digits: Any, tmp_path: Path) -> None:
    x, labels = digits
    wrong = [
        ((x, labels + 1), "labels go from 1 to 10; the model has 10 classes"),
        ((x, labels[:50]), "unequal numbers of rows: x 600, labels 50"),
        ((x[:0], labels[:0]), "data has no rows"),
        ((x[:2], labels[:2]), "2 rows are too few"),
        ((np.full_like(x, np.nan), labels), "not finite"),
        ((x, labels[:, np.newaxis]), "one whole number for each row"),
        ((x, drawn(600, 3)), r"targets of a row have shape \[3\]"),
        ({"x": x, "labels": labels, "targets": drawn(600, 10)}, "both labels and targets"),
        ({"z": x}, "has no 'x'"),
        ({"x": x, "z": x}, "'z', which the model does not know"),
        ((x, labels, labels), "a tuple of 3"),
        ((x[:, 0], labels), "has shape"),
        (tmp_path / "none.npz", "cannot be read"),
    ]
    for given, says in wrong:
        with pytest.raises(qf.QuatrefoilError, match=says):
            qf.compress(small(), given, share=16, design=None)


def test_models_that_cannot_be_compressed_are_refused(digits: Any) -> None:
    bare = model([node("Flatten", "x", "f"), node("Relu", "f", "y")], {}, ["n", 1, 8, 8], 64)
    with pytest.raises(qf.QuatrefoilError, match="has no weights to compress"):
        qf.compress(bare, digits[0], prune=0.5)
    with pytest.raises(qf.QuatrefoilError, match="quantized already"):
        qf.compress(quantize_int8(small(), digits[0][:20]).proto, digits, prune=0.5)
    strange = model([node("Flatten", "x", "f"), node("MatMul", "f w", "z"), node("Cos", "z", "y")], {"w": drawn(64, 10)},
                    ["n", 1, 8, 8])  # fmt: skip
    with pytest.raises(qf.QuatrefoilError, match=r"'y' \(Cos\) has no rule"):
        qf.compress(strange, digits, share=16, design=None)
    turned = model([node("Flatten", "x", "f"), node("Transpose", "f", "t"), node("MatMul", "w t", "y")], {"w": drawn(10, 64)},
                   ["n", 1, 8, 8])  # fmt: skip
    with pytest.raises(qf.QuatrefoilError, match="the batch has to come first"):
        qf.compress(turned, digits, share=16, design=None)


@pytest.mark.usefixtures("short_ladder")
def test_the_command_writes_a_model_and_a_table(
    trained: tuple[Network, Task], digits: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(trained[0].proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=digits[0], labels=digits[1])
    asked = ["compress", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--share", "16", "--epochs", "0"]
    assert run([*asked, "-o", str(tmp_path / "small.onnx"), "--layers"]) == 0
    told = capsys.readouterr().out
    assert "codes of 4 bits" in told and "times smaller" in told and "energy" in told
    assert qf.load(tmp_path / "small.onnx").run(digits[0][:2])["y"].shape == (2, 10)
    assert run([*asked, "--json"]) == 0
    assert '"time_ratio"' in capsys.readouterr().out
    assert run([*asked[:4], "--budget", "size<=10B", "--epochs", "0", "--design", "none"]) == 1
    assert "the budget is not met" in capsys.readouterr().out
    assert run([*asked[:2], "--share", "16"]) == 2
    assert run([*asked, "-o", "small.npz"]) == 2
    assert "give rows to train" in capsys.readouterr().err


def test_masks_of_constants_are_all_that_is_pinned() -> None:
    values = {"a": drawn(3), "b": drawn(2)}
    pinned = Pinned({"a": np.array([True, False, False])})
    used = pinned.used(values, 0.0)
    assert used["a"][0] == 0 and (used["a"][1:] == values["a"][1:]).all() and used["b"] is values["b"]
