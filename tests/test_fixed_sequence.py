"""Fixed-point networks as native sequences: every step between operators equal to the last bit, refusals in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil.cpu import instruction_set
from quatrefoil.cpu.sequence import CpuSequencer
from quatrefoil.models import Model, ModelError
from quatrefoil.models.fixed.elements import operator_of
from quatrefoil.models.fixed.network import fixed
from quatrefoil.models.gallery.small import NETS, Net, samples
from quatrefoil.models.graph import Node
from quatrefoil.numerics import OVERFLOWS, ROUNDINGS, Fixed
from quatrefoil.problem import Tensor
from quatrefoil.sequences import FixedElementwise, Plan, Step
from quatrefoil.settings import num_threads

MODES = [(rounding, overflow) for rounding in ROUNDINGS for overflow in OVERFLOWS]

FUNCTIONS = (
    "Relu", "Clip(-0.7,1.1)", "LeakyRelu(0.3)", "LeakyRelu(-1.5)", "HardSigmoid(0.2,0.5)", "Elu(0.8)", "Elu(-1.2)",
    "Sigmoid", "Tanh", "Softplus", "Softsign",
)  # fmt: skip

REALS = (
    0.0,
    -0.0,
    0.5,
    -0.5,
    0.25,
    -0.75,
    1e-40,
    -1e-40,
    3.4e38,
    -3.4e38,
    2.0**31,
    -(2.0**31),
    2.0**70,
    1.3e5,
    7.9999995,
)

SOFTMAX = {
    "difference_format": "ufixed<9,4,RND,SAT>", "exponential_format": "fixed<18,2,RND,SAT>",
    "accumulator": "fixed<21,5,RND,SAT>", "sum_format": "ufixed<18,3,RND,SAT>",
    "inverse_format": "fixed<18,2,RND,SAT>", "table_size": 512,
}  # fmt: skip


def natively(node: Node, given: list[np.ndarray], wanted: np.ndarray) -> list[np.ndarray] | None:
    operator = operator_of(node)
    assert operator is not None and operator.form is not None
    types = {at: Tensor.of(array) for at, array in enumerate([*given, wanted])}
    step = Step(operator.form, tuple(range(len(given))), (len(given),), node.name)
    sequencer = CpuSequencer()
    assert sequencer.takes(step, types)
    return sequencer.prepare(Plan([step], types, {}, range(len(given)), (len(given),)))(given)


def equal(kind: str, given: list[np.ndarray], **attributes: Any) -> None:
    texts = {key: value.text if isinstance(value, Fixed) else value for key, value in attributes.items()}
    node = Node("step", kind, tuple("ab"[: len(given)]), ("y",), attributes=texts)
    operator = operator_of(node)
    assert operator is not None
    [wanted] = operator.compute(given)
    made = natively(node, given, wanted)
    assert made is not None
    assert made[0].dtype == wanted.dtype
    np.testing.assert_array_equal(made[0], wanted, err_msg=f"{kind} {texts}")


def integers(form: Fixed, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(form.width)
    found = rng.integers(form.low, form.high, shape, np.int64, endpoint=True)
    ends = (form.low, form.high, 0, 1)[: found.size]
    found.reshape(-1)[: len(ends)] = ends
    return found.astype(form.dtype)


@pytest.mark.parametrize(("rounding", "overflow"), MODES)
def test_every_mode_of_a_cast(rounding: str, overflow: str) -> None:
    rng = np.random.default_rng(0)
    reals = np.concatenate([REALS, rng.normal(0, 9, 300), np.arange(-40, 40) / 8]).astype(np.float32)
    for y in (
        Fixed(9, 4, rounding, overflow),
        Fixed(31, 10, rounding, overflow, False),
        Fixed(32, 34, rounding, overflow),
    ):
        equal("FixedQuantize", [reals], y_format=y)
        for x in (Fixed(16, 6), Fixed(11, 3, signed=False), Fixed(32, 14), Fixed(12, 14)):
            equal("FixedCast", [integers(x, 3, 90)], x_format=x, y_format=y)
            equal("FixedDequantize", [integers(x, 3, 90)], x_format=x)


@pytest.mark.parametrize("isa", range(6), ids=["portable", "v2", "v3", "v4", "v4_vnni", "v4_amx"])
def test_every_function_on_every_instruction_set(isa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa >= len(instruction_set.supported()):
        pytest.skip(f"this processor and build have {', '.join(instruction_set.supported())} alone")
    monkeypatch.setattr(instruction_set, "index", lambda: isa)
    for x in (Fixed(16, 6), Fixed(10, 2, signed=False), Fixed(24, 9), Fixed(10, 12)):
        for y in (Fixed(12, 5, "RND", "SAT"), Fixed(30, 12)):
            for function in FUNCTIONS:
                equal(
                    "FixedActivation", [integers(x, 2, 3, 50)], function=function, x_format=x, y_format=y,
                    constant_format=Fixed(12, 2, "RND", "SAT"), table_format=Fixed(18, 2, "RND", "SAT"), table_size=256,
                )  # fmt: skip
            for kind in ("FixedAdd", "FixedSub", "FixedMul"):
                for shape in ((2, 3, 50), (3, 1), (1,), (50,)):
                    b = Fixed(14, 3)
                    equal(kind, [integers(x, 2, 3, 50), integers(b, *shape)], a_format=x, b_format=b, y_format=y)
            for length in (10, 300):
                equal("FixedSoftmax", [integers(x, 7, length)], x_format=x, y_format=y, **SOFTMAX)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_lstm", "residual_cnn", "depthwise_cnn", "gru"])
def test_a_network_is_one_sequence(name: str) -> None:
    network = fixed(NETS[name](), "fixed<12,5,RND,SAT>")
    x = samples(network.source, 3)
    want = network.run(x, backend="asic")
    for _ in range(2):
        for output, array in network.run(x, backend="cpu").items():
            np.testing.assert_array_equal(array, want[output])
    named = {network.graph.inputs[0].name: x}
    assert [each.whole() is not None for each in programs(network.model)] == [True]
    profile = network.model.profile(named)
    assert [record.name for record in profile] == [node.name for node in network.graph.nodes]
    assert all(record.seconds is not None for record in profile)
    assert "numpy" not in str(network.model.explain(named))


def programs(model: Model) -> list[Any]:
    return [schedule for program in model._programs.values() for schedule in program._schedules.values()]


def test_a_value_that_no_format_has_is_refused_by_the_node() -> None:
    network = fixed(NETS["digits_cnn"](), "fixed<16,6>")
    x = samples(network.source, 1)
    network.run(x)
    for bad in (np.nan, np.inf):
        with pytest.raises(ModelError, match=r"'image.quantize'.* NaN or infinite"):
            network.run(np.where(x == x.max(), np.float32(bad), x))
    network.run(x)


def test_integers_outside_a_format_are_refused_by_the_operator() -> None:
    """Of a graph whose values come from elsewhere than what gives them the format."""
    net = Net(5)
    network = fixed(net.model(net.add("Gemm", "x", net.weight(4, 5), transB=1)), "fixed<12,4>")
    quantize, *others = network.graph.nodes
    wider = replace(quantize, attributes={"y_format": "fixed<16,8>"})
    model = Model(replace(network.graph, nodes=(wider, *others)), optimized=False)
    x = np.full((1, 5), 2.0, np.float32)
    assert np.isfinite(model.run(x)["y"] if "y" in {v.name for v in model.outputs} else x).all()
    with pytest.raises(ModelError, match="integers of fixed<12,4> lie in -2048 to 2047"):
        model.run(np.full((1, 5), 100.0, np.float32))


def test_a_check_gives_what_it_was_given() -> None:
    form = Fixed(12, 4)
    step = Step(FixedElementwise("check", form.fraction, form, low=form.low, high=form.high), (0,), (1,), "check")
    for values, fits in (([-2048, 2047, 3], True), ([0, 2048, 0], False), ([0, 0, -2049], False)):
        x = np.array(values, np.int16)
        plan = Plan([step], {0: Tensor.of(x), 1: Tensor.of(x)}, {}, (0,), (1,))
        made = CpuSequencer().prepare(plan)([x])
        assert (made is not None) == fits
        if made is not None:
            np.testing.assert_array_equal(made[0], x)


def test_threads_share_a_large_step() -> None:
    x = np.random.default_rng(1).normal(0, 3, (5, 70_000)).astype(np.float32)
    before = num_threads()
    try:
        for threads in (1, 3):
            qf.set_num_threads(threads)
            equal("FixedQuantize", [x], y_format=Fixed(12, 4, "RND", "SAT"))
    finally:
        qf.set_num_threads(before)
