"""Passes leave the numbers alone and the graph smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

import quatrefoil as qf
from quatrefoil.models import passes
from quatrefoil.models.graph import Graph
from quatrefoil.models.importing import load_graph

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 4, 7, 6)).astype(np.float32)


def model(body: str, opset: int = 17, outputs: str = "float[a, b, c, d] y", **weights: Any) -> onnx.ModelProto:
    """A model with the input x of X's shape and the named weights (float32 unless they are arrays of another dtype)."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[2, 4, 7, 6] x) => ({outputs}) {{ {body} }}'
    proto = parser.parse_model(text)
    for name, value in weights.items():
        array = np.asarray(value) if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 2, shape).astype(np.float32)


def kinds(graph: Graph) -> list[str]:
    return [node.title for node in graph.nodes]


def same_numbers(proto: onnx.ModelProto, x: np.ndarray = X) -> Graph:
    """Runs the model as it is written and after all passes; gives the optimized graph."""
    plain, optimized = qf.load(proto, optimized=False), qf.load(proto)
    want, got = plain.run({"x": x}, backend="cpu"), optimized.run({"x": x}, backend="cpu")
    assert want.keys() == got.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=2e-5)
    return optimized.graph


W3, W1, B = normal(5, 4, 3, 3), normal(5, 4, 1, 1), normal(5)
BN = {"s": positive(5), "o": normal(5), "m": normal(5), "v": positive(5)}


# Identities, constants, dead nodes


def test_identities_go() -> None:
    graph = same_numbers(model("a = Identity(x) b, mask = Dropout(a) c = Identity(b) d = Neg(c) y = Identity(d)"))
    assert kinds(graph) == ["Neg", "Identity"], "the last one makes an output and stays"
    assert graph.nodes[0].inputs == ("x",)


def test_dropout_that_trains_or_gives_its_mask_stays() -> None:
    training = model("d = Dropout(x, r, t) y = Neg(d)", r=0.0, t=np.array(True))
    assert kinds(qf.load(training).graph) == ["Dropout", "Neg"]
    resting = model("d = Dropout(x, r, t) y = Neg(d)", r=0.5, t=np.array(False))
    assert kinds(same_numbers(resting)) == ["Neg"]
    masked = model("d, k = Dropout(x) y = Neg(d)", outputs="float[a, b, c, d] y, bool[a, b, c, d] k")
    assert kinds(same_numbers(masked)) == ["Dropout", "Neg"]


def test_constants_are_folded() -> None:
    graph = same_numbers(model(
        "two = Constant<value_float = 2.0>() four = Mul(two, two) shape = Constant<value_ints = [1, 4, 1, 1]>()"
        "r = Reshape(k, shape) s = Mul(r, four) y = Add(x, s)",
        k=normal(4),
    ))  # fmt: skip
    assert kinds(graph) == ["Add"]
    assert graph.constants.keys() == {"s"}


def test_large_constants_are_not_folded() -> None:
    body = "c = ConstantOfShape(n) z = ReduceSum<keepdims = 0>(c) y = Add(x, z)"
    assert kinds(qf.load(model(body, n=np.int64([2**20]))).graph) == ["Add"]
    assert kinds(qf.load(model(body, n=np.int64([2**24 + 1]))).graph) == ["ConstantOfShape", "ReduceSum", "Add"]


def test_random_constants_are_not_folded() -> None:
    body = "r = RandomNormal<shape = [1]>() z = Mul(r, zero) y = Add(x, z)"
    assert kinds(qf.load(model(body, zero=0.0)).graph) == ["RandomNormal", "Mul", "Add"]


def test_folding_leaves_failures_to_the_run() -> None:
    loaded = qf.load(model("c = Add(p, q) y = Mul(x, c)", p=[1, 2], q=[1, 2, 3]))
    with pytest.raises(qf.QuatrefoilError, match="node 'Add_1'"):
        loaded.run(X)


def test_dead_nodes_go() -> None:
    graph = passes.remove_dead_nodes(load_graph(model("a = Neg(x) b = Abs(a) y = Sqrt(x) c = Mul(b, k)", k=2.0)))
    assert kinds(graph) == ["Sqrt"]
    assert not graph.constants


# Pads


@pytest.mark.parametrize(("pads", "opset", "folded"), [
    ([0, 0, 1, 2, 0, 0, 3, 0], 17, True),
    ([0, 0, 1, 2, 0, 0, 3, 0], 10, True),
    ([0, 1, 1, 2, 0, 0, 3, 0], 17, False),
    ([0, 0, -1, 0, 0, 0, 0, 0], 17, False),
])  # fmt: skip
def test_pads(pads: list[int], opset: int, folded: bool) -> None:
    w = normal(5, 4 + pads[1], 3, 3)
    given: dict[str, Any] = {"w": w}
    if opset < 11:
        body = f"p = Pad<pads = {pads}>(x) y = Conv<pads = [1, 0, 0, 1]>(p, w)"
    else:
        body = "p = Pad(x, n) y = Conv<pads = [1, 0, 0, 1]>(p, w)"
        given["n"] = np.int64(pads)
    graph = same_numbers(model(body, opset, **given))
    assert kinds(graph) == (["Conv+Pad"] if folded else ["Pad", "Conv"])


@pytest.mark.parametrize(("body", "given"), [
    ("p = Pad<mode = \"reflect\">(x, n) y = Conv(p, w)", {}),
    ("p = Pad(x, n, c) y = Conv(p, w)", {"c": 1.0}),
    ("p = Pad(x, n) y = Conv<auto_pad = \"SAME_UPPER\">(p, w)", {}),
    ("p = Pad(x, n) c = Conv(p, w) q = ReduceSum<keepdims = 0>(p) y = Add(c, q)", {}),
])  # fmt: skip
def test_pads_that_stay(body: str, given: dict[str, Any]) -> None:
    graph = same_numbers(model(body, w=W3, n=np.int64([0, 0, 1, 2, 0, 0, 3, 0]), **given))
    assert "Pad" in kinds(graph)


# Batch normalisation and other affine steps


@pytest.mark.parametrize("bias", ["", ", b"])
def test_batch_normalization_into_conv(bias: str) -> None:
    given = {"b": B} if bias else {}
    graph = same_numbers(
        model(f"c = Conv(x, w{bias}) y = BatchNormalization<epsilon = 0.1>(c, s, o, m, v)", w=W3, **given, **BN)
    )
    assert kinds(graph) == ["Conv+BatchNormalization"]
    assert len(graph.constants) == 2


@pytest.mark.parametrize("group", [1, 2])
def test_batch_normalization_into_conv_transpose(group: int) -> None:
    channels = {name: np.tile(value, 2)[: 6 // group * group] for name, value in BN.items()}
    graph = same_numbers(model(
        f"c = ConvTranspose<group = {group}, strides = [2, 2]>(x, w) y = BatchNormalization(c, s, o, m, v)",
        w=normal(4, 6 // group, 3, 3), **channels,
    ))  # fmt: skip
    assert kinds(graph) == ["ConvTranspose+BatchNormalization"]


@pytest.mark.parametrize("step", ["Mul(c, k)", "Mul(k, c)", "Div(c, k)", "Add(c, k)", "Sub(c, k)", "Sub(k, c)"])
@pytest.mark.parametrize("shape", [(), (1,), (5, 1, 1), (1, 5, 1, 1)])
def test_affine_steps(step: str, shape: tuple[int, ...]) -> None:
    graph = same_numbers(model(f"c = Conv(x, w, b) y = {step}", w=W3, b=B, k=positive(*shape)))
    assert kinds(graph) == [f"Conv+{step[:3]}"]


@pytest.mark.parametrize(("step", "given"), [
    ("Div(k, c)", positive(5, 1, 1)),
    ("Mul(c, k)", positive(1, 4)),
    ("Mul(c, k)", positive(3, 5, 1, 1)[:2]),
    ("Mul(c, k)", positive(1, 1, 5, 1, 1)),
    ("Mul(c, c)", positive(1)),
])  # fmt: skip
def test_affine_steps_that_stay(step: str, given: np.ndarray) -> None:
    outputs = "float y" if given.ndim == 5 else "float[a, b, c, d] y"
    proto = model(
        f"c = Conv(x, w, b) y = {step}", w=W3, b=B, k=given, outputs=outputs.replace("float y", "float[a,b,c,d,e] y")
    )
    assert kinds(same_numbers(proto)) == ["Conv", step[:3]]


def test_a_chain_of_affine_steps() -> None:
    proto = model(
        "c = Conv(x, w) n = BatchNormalization(c, s, o, m, v) t = Mul(n, k) a = Add(t, k) y = Relu(a)",
        w=W3, k=positive(1, 5, 1, 1), **BN,
    )  # fmt: skip
    assert kinds(same_numbers(proto)) == ["Conv+BatchNormalization+Mul+Add+Relu"]
    # the weights in between would take as much memory again for each step
    given = load_graph(proto)
    assert passes.fold_affine(given).constants.keys() - given.constants.keys() == {"a:weight", "a:bias"}


def test_batch_normalization_that_stays() -> None:
    shared = model("c = Conv(x, w) n = BatchNormalization(c, s, o, m, v) y = Add(c, n)", w=W3, **BN)
    assert "BatchNormalization" in "".join(kinds(same_numbers(shared))[1:])
    seen = model("c = Conv(x, w) y = BatchNormalization(c, s, o, m, v)", w=W3, **BN,
                 outputs="float[a,b,c,d] y, float[a,b,c,d] c")  # fmt: skip
    assert kinds(same_numbers(seen)) == ["Conv", "BatchNormalization"]
    training = model("c = Conv(x, w) y, p, q = BatchNormalization<training_mode = 1>(c, s, o, m, v)", w=W3, **BN)
    assert kinds(same_numbers(training)) == ["Conv", "BatchNormalization"]


def test_weights_that_would_overflow_stay() -> None:
    half = {"w": W3.astype(np.float16), "k": np.float16([60000.0]), "p": np.float16([1e-7]), "q": np.float16([60.0])}
    for body in (
        "h = Cast<to = 10>(x) c = Conv(h, w) y = Mul(c, k)",
        "h = Cast<to = 10>(x) c = Mul(h, k) y = Conv(c, w)",
        "h = Cast<to = 10>(x) m = Mul(h, p) c = Add(m, q) y = Conv<pads = [1, 1, 1, 1]>(c, w)",
    ):
        proto = model(body, outputs="float16[a, b, c, d] y", **half)
        assert qf.load(proto).graph.nodes[-1].title in ("Mul", "Conv")


# Activations


@pytest.mark.parametrize(("step", "text"), [
    ("Relu(c)", "Relu"),
    ("Sigmoid(c)", "Sigmoid"),
    ("Tanh(c)", "Tanh"),
    ("Softplus(c)", "Softplus"),
    ("Softsign(c)", "Softsign"),
    ("HardSwish(c)", "HardSwish"),
    ("LeakyRelu<alpha = 0.25>(c)", "LeakyRelu(0.25)"),
    ("LeakyRelu(c)", "LeakyRelu(0.01)"),
    ("Elu<alpha = 0.5>(c)", "Elu(0.5)"),
    ("HardSigmoid<alpha = 0.25, beta = 0.5>(c)", "HardSigmoid(0.25,0.5)"),
    ("ThresholdedRelu<alpha = 0.5>(c)", "ThresholdedRelu(0.5)"),
    ("Clip(c, low, high)", "Clip(-0.5,0.75)"),
    ("Clip(c, , high)", "Clip(-inf,0.75)"),
    ("Clip(c, low)", "Clip(-0.5,inf)"),
])  # fmt: skip
@pytest.mark.parametrize("conv", ["Conv(x, w, b)", "ConvTranspose(x, t, b)"])
def test_activations(step: str, text: str, conv: str) -> None:
    proto = model(f"c = {conv} y = {step}", w=W3, t=normal(4, 5, 2, 2), b=B, low=-0.5, high=0.75)
    graph = same_numbers(proto)
    assert len(graph.nodes) == 1
    assert graph.nodes[0].attributes["activation"] == text


def test_clip_of_old_operator_sets() -> None:
    graph = same_numbers(model("c = Conv(x, w, b) y = Clip<min = 0.0, max = 0.5>(c)", 6, w=W3, b=B))
    assert graph.nodes[0].attributes["activation"] == "Clip(0.0,0.5)"


def test_swish_of_operator_set_24() -> None:
    graph = same_numbers(model("c = Conv(x, w, b) y = Swish<alpha = 0.5>(c)", 24, w=W3, b=B))
    assert graph.nodes[0].attributes["activation"] == "Swish(0.5)"


@pytest.mark.parametrize("gate", ["g = Sigmoid(c) y = Mul(c, g)", "g = Sigmoid(c) y = Mul(g, c)",
                                  "g = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c) y = Mul(c, g)"])  # fmt: skip
def test_self_gated_activations(gate: str) -> None:
    graph = same_numbers(model(f"c = Conv(x, w, b) {gate}", w=W3, b=B))
    assert kinds(graph) == ["Conv+Sigmoid+Mul" if "g = Sig" in gate else "Conv+HardSigmoid+Mul"]
    assert graph.nodes[0].attributes["activation"].startswith("Swish" if "g = Sig" in gate else "HardSwish")


@pytest.mark.parametrize(("body", "outputs"), [
    ("c = Conv(x, w, b) y = Relu(c)", "float[a,b,c,d] y, float[a,b,c,d] c"),
    ("c = Conv(x, w, b) r = Relu(c) y = Sub(r, c)", "float[a,b,c,d] y"),
    ("c = Conv(x, w, b) g = Sigmoid(c) y = Mul(c, g)", "float[a,b,c,d] y, float[a,b,c,d] g"),
    ("c = Conv(x, w, b) g = HardSigmoid(c) y = Mul(c, g)", "float[a,b,c,d] y"),
    ("c = Conv(x, w, b) m = ReduceMax<keepdims = 0>(x) y = Clip(c, , m)", "float[a,b,c,d] y"),
    ("c = Conv(x, w, b) y = PRelu(c, k)", "float[a,b,c,d] y"),
    ("c = Conv(x, w, b) m = ReduceMax<keepdims = 0>(c) y = Clip(x, , m)", "float[a,b,c,d] y"),
])  # fmt: skip
def test_activations_that_stay(body: str, outputs: str) -> None:
    graph = same_numbers(model(body, outputs=outputs, w=W3, b=B, k=positive(5, 1, 1)))
    assert kinds(graph)[0] in ("Conv", "ReduceMax")
    assert all("activation" not in node.attributes for node in graph.nodes if node.op)


@pytest.mark.parametrize(("body", "kind"), [
    ("t = Add(c, three) k = Clip(t, zero, six) m = Mul(c, k) y = Div(m, six)", "HardSwish"),
    ("t = Add(three, c) k = Clip(t, zero, six) m = Mul(k, c) y = Mul(m, sixth)", "HardSwish"),
    ("t = Add(c, three) k = Clip(t, zero, six) d = Div(k, six) y = Mul(c, d)", "HardSwish"),
    ("t = Add(c, three) k = Clip(t, zero, six) y = Mul(sixth, k)", "HardSigmoid"),
    ("t = Add(c, three) k = Clip(t, zero, six) d = Div(k, six) y = Mul(d, x)", "HardSigmoid"),
])  # fmt: skip
@pytest.mark.parametrize("before", ["Conv(x, u, b)", "Neg(x)"])
def test_activations_that_are_spelt_out(body: str, kind: str, before: str) -> None:
    numbers = {"zero": 0.0, "three": 3.0, "six": 6.0, "sixth": 1 / 6}
    graph = same_numbers(model(f"c = {before} {body}", 13, u=normal(4, 4, 1, 1), b=normal(4), **numbers), X * 3)
    if before == "Neg(x)":
        assert kinds(graph)[:2] == ["Neg", kind]
    else:
        assert kinds(graph)[0] == f"Conv+{kind}"


@pytest.mark.parametrize("body", [
    "t = Add(c, six) k = Clip(t, zero, six) m = Mul(c, k) y = Div(m, six)",
    "t = Add(c, three) k = Clip(t, zero, three) m = Mul(c, k) y = Div(m, six)",
    "t = Add(c, three) k = Clip(t, zero, six) m = Mul(c, k) y = Div(m, three)",
    "t = Add(c, three) k = Clip(t, zero, six) m = Mul(x, k) y = Div(m, six)",
    "t = Add(c, three) k = Clip(t, zero, six) m = Mul(c, k) d = Div(m, six) y = Add(d, k)",
    "t = Add(c, three) k = Clip(t, zero, six) m = Mul(c, k) d = Div(m, six) y = Add(d, t)",
])  # fmt: skip
def test_what_only_resembles_a_spelt_out_activation(body: str) -> None:
    numbers = {"zero": 0.0, "three": 3.0, "six": 6.0}
    graph = same_numbers(model(f"c = Neg(x) {body}", 13, **numbers), X * 3)
    assert not {"HardSwish", "HardSigmoid"} & set(kinds(graph))


# Numbers before a convolution


@pytest.mark.parametrize(("body", "titles"), [
    ("a = Mul(x, p) y = Conv(a, w)", ["Conv+Mul"]),
    ("a = Mul(p, x) y = Conv<pads = [1, 1, 1, 1]>(a, w, b)", ["Conv+Mul"]),
    ("a = Add(x, p) y = Conv(a, w)", ["Conv+Add"]),
    ("a = Sub(p, x) y = Conv(a, w, b)", ["Conv+Sub"]),
    ("a = Sub(x, p) c = Div(a, q) y = Conv(c, w, b)", ["Conv+Sub+Div"]),
    ("a = Mul(x, p) c = Add(a, q) y = Conv<pads = [0, 1, 0, 0]>(c, w, b)", ["Add", "Conv+Mul+Add"]),
    ("a = Mul(x, p) c = Add(a, q) y = Conv<auto_pad = \"SAME_UPPER\">(c, w, b)", ["Add", "Conv+Mul+Add"]),
    ("a = Add(x, p) y = Conv<pads = [0, 1, 0, 0]>(a, w, b)", ["Add", "Conv"]),
    ("a = Div(p, x) y = Conv(a, w, b)", ["Div", "Conv"]),
    ("a = Mul(x, p) c = Conv(a, w, b) d = Conv(a, w) y = Sub(c, d)", ["Mul", "Conv", "Conv", "Sub"]),
    ("a = Mul(x, p) y = ConvTranspose(a, t)", ["Mul", "ConvTranspose"]),
    ("r = Neg(x) a = Mul(r, p) c = Conv<pads = [1, 1, 1, 1]>(a, k) s = Add(c, x) y = Relu(s)", ["Neg", "Conv+Mul+Add+Relu"]),
])  # fmt: skip
@pytest.mark.parametrize("p", [0.5, [-2.0]])
def test_numbers_before_a_convolution(body: str, titles: list[str], p: Any) -> None:
    graph = same_numbers(
        model(body, w=W3, b=B, t=normal(4, 5, 2, 2), k=normal(4, 4, 3, 3), p=p, q=0.75), np.abs(X) + 0.1
    )
    assert kinds(graph) == titles


# Residuals


SAME = {"w": normal(4, 4, 3, 3), "u": normal(4, 4, 1, 1), "b": normal(4)}
PADDED = "Conv<pads = [1, 1, 1, 1]>"


@pytest.mark.parametrize("add", ["Add(c, x)", "Add(x, c)", "Sum(c, x)"])
def test_residuals(add: str) -> None:
    graph = same_numbers(model(f"c = {PADDED}(x, w) s = {add} y = Relu(s)", **SAME))
    assert kinds(graph) == [f"Conv+{add[:3]}+Relu"]
    assert graph.nodes[0].inputs[2:] == ("", "x")


def test_a_residual_of_two_convolutions() -> None:
    graph = same_numbers(model(f"c = {PADDED}(x, w, b) d = Conv(x, u, b) s = Add(c, d) y = Relu(s)", **SAME))
    assert kinds(graph) == ["Conv", "Conv+Add+Relu"]


def test_a_residual_that_is_made_after_the_convolution() -> None:
    graph = same_numbers(model(f"c = {PADDED}(x, w) a = Neg(x) n = Exp(a) y = Add(c, n)", **SAME))
    assert kinds(graph) == ["Neg", "Exp", "Conv+Add"]


def test_chains_of_residual_blocks() -> None:
    graph = same_numbers(model(
        f"c = {PADDED}(x, w) s = Add(c, x) r = Relu(s) d = Conv(r, u) t = Add(d, r) q = Relu(t) y = Add(q, r)", **SAME
    ))  # fmt: skip
    assert kinds(graph) == ["Conv+Add+Relu", "Conv+Add+Relu", "Add"]


@pytest.mark.parametrize("other", ["GlobalAveragePool(x)", "ReduceMean<axes = [0], keepdims = 1>(x)",
                                   "ReduceMean<axes = [0], keepdims = 0>(x)", "Unsqueeze(x, z)"])  # fmt: skip
def test_a_residual_that_has_to_be_broadcast(other: str) -> None:
    outputs = "float[a,b,c,d,e] y" if "Unsqueeze" in other else "float[a,b,c,d] y"
    proto = model(
        f"r = {other} c = {PADDED}(x, w) s = Add(c, r) y = LeakyRelu(s)", **SAME, z=np.int64([0]), outputs=outputs
    )
    assert kinds(same_numbers(proto))[-1] == "Conv+Add+LeakyRelu"
    assert qf.load(proto).explain({"x": X}).placements[-1].selection is not None


def test_residuals_that_stay() -> None:
    activated = model(f"c = {PADDED}(x, w) r = Relu(c) y = Add(r, x)", **SAME)
    assert kinds(same_numbers(activated)) == ["Conv+Relu", "Add"]
    twice = model(f"c = {PADDED}(x, w) y = Add(c, c)", **SAME)
    assert kinds(same_numbers(twice)) == ["Conv", "Add"]
    seen = model(f"c = {PADDED}(x, w) y = Add(c, x)", **SAME, outputs="float[a,b,c,d] y, float[a,b,c,d] c")
    assert kinds(same_numbers(seen)) == ["Conv", "Add"]


# Bodies


def test_bodies_are_optimized() -> None:
    graph = same_numbers(model(
        "m = ReduceMax<keepdims = 0>(x) c = Greater(m, zero) y = If(c) <"
        "then_branch = t () => (float[a,b,c,d] p) { i = Identity(x) q = Conv(i, w) n = Mul(q, two) p = Relu(n) },"
        "else_branch = e () => (float[a,b,c,d] r) { r = Neg(x) }>",
        w=W3, zero=0.0, two=2.0,
    ))  # fmt: skip
    [branch] = [node for node in graph.nodes if node.bodies]
    assert kinds(branch.bodies["then_branch"]) == ["Conv+Mul+Relu"]
    assert branch.inputs[1:] == ("x",)


# All together


STEPS = (
    "{y} = Conv<pads = [1, 1, 1, 1]>({x}, w)",
    "{y} = Conv({x}, u, b)",
    "{y} = ConvTranspose<pads = [1, 1, 1, 1]>({x}, w)",
    "{y} = Conv<pads = [1, 1, 1, 1], group = 4>({x}, g)",
    "{y} = BatchNormalization({x}, s, b, o, v)",
    "{y} = Relu({x})",
    "{y} = Sigmoid({x})",
    "{y} = Mul({x}, {z})",
    "{y} = Add({x}, {z})",
    "{y} = Add({z}, {x})",
    "{y} = Add({x}, k)",
    "{y} = Mul({x}, two)",
    "{y} = Identity({x})",
    "{y} = Dropout({x})",
    "{y} = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({x})",
)
WEIGHTS: dict[str, Any] = {
    "w": normal(4, 4, 3, 3) / 6, "u": normal(4, 4, 1, 1) / 2, "g": normal(4, 1, 3, 3) / 3, "b": normal(4), "s": positive(4),
    "o": normal(4), "v": positive(4), "k": normal(1, 4, 1, 1), "two": 2.0,
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_graph_keeps_its_numbers(data: st.DataObject) -> None:
    """Random graphs of steps that keep the shape, some values of which are outputs."""
    names, lines = ["x"], []
    for index in range(data.draw(st.integers(1, 9))):
        step = data.draw(st.sampled_from(STEPS))
        recent = st.sampled_from(names[-3:])
        lines.append(step.format(x=data.draw(recent), z=data.draw(recent), y=f"v{index}"))
        names.append(f"v{index}")
    also = data.draw(st.sets(st.sampled_from(names[1:]), max_size=1)) - {names[-1]}
    outputs = ", ".join(f"float[a, b, c, d] {name}" for name in (names[-1], *also))
    proto = model(" ".join(lines), outputs=outputs, **WEIGHTS)
    x = X / 4
    want, got = qf.load(proto, optimized=False).run(x), qf.load(proto).run(x)
    for name in want:
        np.testing.assert_allclose(
            got[name], want[name], rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(want[name]).max()))
        )


# Quantized models


def byte(value: int, kind: Any) -> np.ndarray:
    return np.array(value, kind)


def quantized_conv(
    x_kind: Any = np.uint8, w_kind: Any = np.int8, y_kind: Any = np.uint8, zeros: tuple[int, int, int] = (120, 0, 100),
    per_channel: bool = True, bias: bool = True, relu: bool = False, bias_scale: float = 1.0,
) -> onnx.ModelProto:  # fmt: skip
    """Quantize, convolve in quantized form, dequantize."""
    channels = 5 if per_channel else 1
    w_scale = RNG.uniform(0.005, 0.02, channels).astype(np.float32)
    if not per_channel:
        w_scale = w_scale.reshape(())
    w_zero = np.full(w_scale.shape, zeros[1], w_kind)
    limits = np.iinfo(w_kind)
    weight = RNG.integers(limits.min, limits.max + 1, (5, 4, 3, 3)).astype(w_kind)
    given: dict[str, Any] = {
        "xs": 0.03, "xz": byte(zeros[0], x_kind), "ws": w_scale, "wz": w_zero, "w": weight,
        "ys": 0.11, "yz": byte(zeros[2], y_kind),
    }  # fmt: skip
    lines = "xq = QuantizeLinear(x, xs, xz) xd = DequantizeLinear(xq, xs, xz)"
    lines += " wd = DequantizeLinear<axis = 0>(w, ws, wz)"
    if bias:
        given |= {"b": RNG.integers(-3000, 3000, 5).astype(np.int32), "bs": np.float32(0.03 * bias_scale) * w_scale}
        given["bz"] = np.zeros(given["bs"].shape, np.int32)
        lines += " bd = DequantizeLinear<axis = 0>(b, bs, bz)"
    lines += f" c = Conv<pads = [1, 1, 0, 1], strides = [2, 1]>(xd, wd{', bd' if bias else ''})"
    lines += " r = Relu(c)" if relu else ""
    lines += f" yq = QuantizeLinear({'r' if relu else 'c'}, ys, yz) y = DequantizeLinear(yq, ys, yz)"
    return model(lines, **given)


def onnxruntime_result(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = onnxruntime.SessionOptions()
    # without VNNI its fast sums of 8-bit products saturate; this asks for the exact ones
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    [result] = session.run(None, {"x": x})
    return result


@pytest.mark.parametrize("options", [
    {},
    {"per_channel": False},
    {"bias": False},
    {"x_kind": np.int8, "y_kind": np.int8, "zeros": (-3, 0, 7)},
    {"w_kind": np.uint8, "per_channel": False, "zeros": (120, 131, 100)},
    {"relu": True, "zeros": (120, 0, 0)},
    {"relu": True, "x_kind": np.int8, "y_kind": np.int8, "zeros": (-128, 0, -128)},
])  # fmt: skip
def test_quantized_convolutions(options: dict[str, Any]) -> None:
    proto = quantized_conv(**options)
    loaded = qf.load(proto)
    assert kinds(loaded.graph)[1] == ("QLinearConv+Relu" if options.get("relu") else "QLinearConv")
    y = loaded.run(X)["y"]
    # the float path rounds once more; one unit is 0.11
    np.testing.assert_allclose(y, qf.load(proto, optimized=False).run(X)["y"], atol=0.111)
    np.testing.assert_array_equal(y, onnxruntime_result(proto, X))


def test_quantized_convolutions_that_stay() -> None:
    for options, why in (
        ({"relu": True, "zeros": (120, 0, 100)}, "the output can be below zero"),
        ({"bias_scale": 2.0}, "the bias is not in units of the products"),
    ):
        graph = qf.load(quantized_conv(**options)).graph
        assert not any(node.op == "qlinear_conv" for node in graph.nodes), why
    seen = quantized_conv()
    seen.graph.output.append(onnx.ValueInfoProto(name="c"))
    assert not any(node.op == "qlinear_conv" for node in qf.load(seen).graph.nodes)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_quantized_dense_layers_are_convolutions_of_one_pixel(transposed: int, per_channel: bool, relu: bool) -> None:
    scale = RNG.uniform(0.005, 0.02, 5 if per_channel else ()).astype(np.float32)
    weight = RNG.integers(-128, 128, (5, 168) if transposed else (168, 5)).astype(np.int8)
    bias_scale = np.asarray(np.float32(0.03) * scale)
    axis = 0 if transposed else 1
    proto = model(
        "f = Flatten(x) q = QuantizeLinear(f, s, z) d = DequantizeLinear(q, s, z) "
        f"wd = DequantizeLinear<axis = {axis}>(w, ws, wz) bd = DequantizeLinear<axis = 0>(b, bs, bz) "
        f"g = Gemm<transB = {transposed}>(d, wd, bd) r = {'Relu' if relu else 'Identity'}(g) "
        "yq = QuantizeLinear(r, ys, yz) y = DequantizeLinear(yq, ys, yz)",
        outputs="float[a, b] y", s=0.03, z=byte(120, np.uint8), w=weight, ws=scale, wz=np.zeros(scale.shape, np.int8),
        b=RNG.integers(-3000, 3000, 5).astype(np.int32), bs=bias_scale, bz=np.zeros(bias_scale.shape, np.int32),
        ys=0.11, yz=byte(0 if relu else 100, np.uint8),
    )  # fmt: skip
    loaded = qf.load(proto)
    assert kinds(loaded.graph)[2:5] == ["Reshape", "QLinearConv+Relu" if relu else "QLinearConv", "Reshape"]
    y = loaded.run(X)["y"]
    np.testing.assert_allclose(y, qf.load(proto, optimized=False).run(X)["y"], atol=0.111)  # one unit is 0.11
    np.testing.assert_array_equal(y, onnxruntime_result(proto, X))


def test_quantized_dense_layers_that_stay() -> None:
    given = {
        "s": 0.03, "z": byte(120, np.uint8), "w": np.ones((5, 168), np.int8), "ws": 0.01, "wz": byte(0, np.int8),
        "ys": 0.11, "yz": byte(100, np.uint8),
    }  # fmt: skip
    for attributes in ("transB = 1, alpha = 0.5", "transB = 1, beta = 2.0"):
        proto = model(
            "f = Flatten(x) q = QuantizeLinear(f, s, z) d = DequantizeLinear(q, s, z) wd = DequantizeLinear(w, ws, wz) "
            f"g = Gemm<{attributes}>(d, wd) yq = QuantizeLinear(g, ys, yz) y = DequantizeLinear(yq, ys, yz)",
            outputs="float[a, b] y",
            **given,
        )
        assert not any(node.op == "qlinear_conv" for node in qf.load(proto).graph.nodes), attributes


QUANTIZED = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"


def exactly_the_same(body: str, **given: Any) -> list[str]:
    proto = model(
        body, s=0.04, z=byte(120, np.uint8), t=0.03, i=byte(-100, np.int8), v=0.02, u=byte(9, np.uint8), **given
    )
    loaded = qf.load(proto)
    np.testing.assert_array_equal(loaded.run(X)["y"], qf.load(proto, optimized=False).run(X)["y"])
    return kinds(loaded.graph)


@pytest.mark.parametrize(("body", "titles"), [
    ("r = Relu(d) p = QuantizeLinear(r, t, i) y = DequantizeLinear(p, t, i)", ["Table+Relu", "DequantizeLinear"]),
    ("p = QuantizeLinear(d, t, i) y = DequantizeLinear(p, t, i)", ["Table", "DequantizeLinear"]),
    ("r = Tanh(d) k = Clip(r, l) p = QuantizeLinear(k, t, i) y = DequantizeLinear(p, t, i)",
     ["Table+Tanh+Clip", "DequantizeLinear"]),
    ("e = Neg(x) f = QuantizeLinear(e, v, u) g = DequantizeLinear(f, v, u) a = Sub(d, g) p = QuantizeLinear(a, t, i)"
     "y = DequantizeLinear(p, t, i)", ["Neg", "QuantizeLinear", "Table+Sub", "DequantizeLinear"]),
    ("a = Mul(d, d) p = QuantizeLinear(a, t, i) y = DequantizeLinear(p, t, i)",
     ["Table+Mul", "DequantizeLinear"]),
    ("r = Relu(d) p = QuantizeLinear(r, t, i) e = DequantizeLinear(p, t, i) f = Sigmoid(e) g = QuantizeLinear(f, v, u)"
     "y = DequantizeLinear(g, v, u)", ["Table+Relu+Sigmoid", "DequantizeLinear"]),
    ("r = Relu(d) p = QuantizeLinear(r, t, i) e = DequantizeLinear(p, t, i) f = Sigmoid(e) g = QuantizeLinear(f, v, u)"
     "h = DequantizeLinear(g, v, u) y = Add(h, e)",
     ["Table+Relu", "DequantizeLinear", "Table+Sigmoid", "DequantizeLinear", "Add"]),
])  # fmt: skip
def test_tables(body: str, titles: list[str]) -> None:
    assert exactly_the_same(f"{QUANTIZED} {body}", l=-0.25) == ["QuantizeLinear", *titles]


def test_round_trips() -> None:
    assert exactly_the_same(f"{QUANTIZED} y = Neg(d)") == ["RoundTrip+QuantizeLinear+DequantizeLinear", "Neg"]
    assert exactly_the_same("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)") == [
        "QuantizeLinear",
        "DequantizeLinear",
    ]
    both = exactly_the_same(f"{QUANTIZED} c = Cast<to = 1>(q) y = Add(c, d)")
    assert both == ["QuantizeLinear", "DequantizeLinear", "Cast", "Add"]
