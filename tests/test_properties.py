"""Any shapes and attributes: each call gives the oracle's numbers or is refused in a sentence, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quatrefoil import backends, dispatch, ops, reference
from quatrefoil.errors import OperatorError
from quatrefoil.numerics import OVERFLOWS, ROUNDINGS, Fixed
from quatrefoil.ops import rnn
from quatrefoil.problem import Tensor

EXAMPLES = {"cpu": 150, "fpga": 25, "asic": 60}
FIXED_POINT = ("cpu",)  # backends with kernels of fixed-point operators
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def sizes(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most)


@st.composite
def windows(draw: st.DrawFn, rank: int) -> dict:
    """Attributes that are mostly sensible, and sometimes are not."""
    attributes = {
        "strides": draw(st.lists(sizes(1, 3), min_size=rank, max_size=rank)),
        "dilations": draw(st.lists(sizes(1, 3), min_size=rank, max_size=rank)),
    }
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode == "NOTSET":
        attributes["pads"] = draw(st.lists(sizes(0, 3), min_size=2 * rank, max_size=2 * rank))
    else:
        attributes["auto_pad"] = mode
    return attributes


@st.composite
def convolutions(draw: st.DrawFn) -> tuple:
    op = draw(st.sampled_from(["conv", "conv", "conv_transpose", "conv_integer"]))
    rank = draw(sizes(1, 3))
    most = {1: 40, 2: 14, 3: 6}[rank]
    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    per_group_in, per_group_out = draw(sizes(1, 20 if rank < 3 else 4)), draw(sizes(1, 20 if rank < 3 else 4))
    if draw(st.booleans()) and group > 1:
        per_group_in = per_group_out = 1
    x = (draw(sizes(0, 2)), per_group_in * group, *draw(st.lists(sizes(1, most), min_size=rank, max_size=rank)))
    kernel = draw(st.lists(sizes(1, 4), min_size=rank, max_size=rank))
    w = (x[1], per_group_out, *kernel) if op == "conv_transpose" else (per_group_out * group, per_group_in, *kernel)
    attributes = {**draw(windows(rank)), "group": group}
    if op == "conv_integer":
        dtypes = draw(st.sampled_from([("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")]))
        if draw(st.booleans()):
            x, attributes["channels_last"] = (x[0], *x[2:], x[1]), 1
        tensors = [Tensor(dtypes[0], x), Tensor(dtypes[1], w), Tensor(dtypes[0], ()), Tensor(dtypes[1], ())]
        return op, tensors, attributes, 1
    tensors = [Tensor("float32", x), Tensor("float32", w)]
    if draw(st.booleans()):
        tensors.append(Tensor("float32", (per_group_out * group,)))
    attributes["activation"] = draw(st.sampled_from([None, "Relu", "Clip(-1.0,1.0)", "HardSwish"]))
    return op, tensors, attributes, 1


@st.composite
def pools(draw: st.DrawFn) -> tuple:
    op = draw(st.sampled_from(["max_pool", "average_pool", "lp_pool"]))
    rank = draw(sizes(1, 3))
    most = {1: 70, 2: 20, 3: 7}[rank]
    x = (draw(sizes(0, 2)), draw(sizes(1, 4)), *draw(st.lists(sizes(1, most), min_size=rank, max_size=rank)))
    attributes = {**draw(windows(rank)), "kernel_shape": draw(st.lists(sizes(1, 6), min_size=rank, max_size=rank))}
    attributes["ceil_mode"] = draw(sizes(0, 1))
    if op == "average_pool":
        attributes["count_include_pad"] = draw(sizes(0, 1))
    outputs = draw(sizes(1, 2)) if op == "max_pool" else 1
    if op == "max_pool":
        attributes["storage_order"] = draw(sizes(0, 1))
    return op, [Tensor("float32", x)], attributes, outputs


@st.composite
def recurrences(draw: st.DrawFn) -> tuple:
    op = draw(st.sampled_from(["rnn", "lstm", "gru"]))
    steps, batch, width, hidden = draw(sizes(0, 5)), draw(sizes(0, 4)), draw(sizes(1, 20)), draw(sizes(1, 40))
    direction = draw(st.sampled_from(rnn.DIRECTIONS))
    directions, gates = (2 if direction == "bidirectional" else 1), rnn.GATES[op]
    shapes = [(steps, batch, width), (directions, gates * hidden, width), (directions, gates * hidden, hidden)]
    tensors: list = [Tensor("float32", shape) for shape in shapes]
    state = Tensor("float32", (directions, batch, hidden))
    optional = [Tensor("float32", (directions, 2 * gates * hidden)), Tensor("int32", (batch,)), state]
    if op == "lstm":
        optional += [state, Tensor("float32", (directions, 3 * hidden))]
    tensors += [tensor if draw(st.booleans()) else None for tensor in optional]
    attributes = {"direction": direction, "clip": draw(st.sampled_from([None, 0.5]))}
    if op == "gru":
        attributes["linear_before_reset"] = draw(sizes(0, 1))
    if op == "lstm":
        attributes["input_forget"] = draw(sizes(0, 1))
    return op, tensors, attributes, 3 if op == "lstm" else 2


@st.composite
def formats(draw: st.DrawFn, widest: int, least: int = 1) -> Fixed:
    """Any format; most have the modes and the sizes that networks use."""
    width = draw(st.one_of(st.just(min(16, widest)), sizes(least, widest)))
    return Fixed(
        width,
        draw(st.one_of(sizes(0, width), sizes(-4, width + 4))),
        draw(st.sampled_from(["TRN", "TRN", "RND", *ROUNDINGS])),
        draw(st.sampled_from(["WRAP", "WRAP", "SAT", *OVERFLOWS])),
        draw(st.sampled_from([True, True, True, False])),
    )


@st.composite
def fixed_points(draw: st.DrawFn) -> tuple:
    """Fixed-point operators: the shapes and attributes of their floating-point namesakes, with formats."""
    op, tensors, attributes, outputs = draw(st.one_of(convolutions(), pools(), recurrences()))
    op = {"conv_transpose": "conv", "conv_integer": "conv", "lp_pool": "max_pool"}.get(op, op)
    attributes = {
        name: value for name, value in attributes.items() if name not in ("activation", "clip", "input_forget")
    }
    if op == "conv":
        channels, group = tensors[0].shape[1], attributes["group"]
        w = (group * draw(sizes(1, 20)), channels // group, *tensors[1].shape[2:])
        tensors = [tensors[0], Tensor("float32", w), Tensor("float32", w[:1])][: draw(sizes(2, 3))]
        attributes["activation"] = draw(st.sampled_from([None, "Relu"]))
    attributes.pop("storage_order", None)
    op, outputs = f"fixed_{op}", outputs if op in ops.FAMILIES["rnn"] else 1
    recurrent = op.removeprefix("fixed_") in ops.FAMILIES["rnn"]
    attributes |= {
        name: draw(formats(24 if recurrent else 32)) for name in ops.fixed.INPUT_FORMATS[op] if name
    } | {
        "accumulator": draw(formats(28 if recurrent else 62)),
        "y_format": draw(formats(24 if recurrent else 32)),
        "table_format": draw(formats(20)),
        "table_size": draw(st.sampled_from([16, 1024])),
        "reuse": draw(sizes(1, 6)),
    }  # fmt: skip
    kept = ops.fixed.INPUT_FORMATS[op]
    tensors = tensors[: len(kept)]
    typed = [
        tensor and Tensor(attributes[kept[at]].dtype if kept[at] else tensor.dtype, tensor.shape)
        for at, tensor in enumerate(tensors)
    ]
    return op, typed, attributes, outputs


def check(backend: str, request: tuple, seed: int) -> None:
    op, tensors, attributes, outputs = request
    rng = np.random.default_rng(seed)
    arrays: list = []
    for position, tensor in enumerate(tensors):
        if tensor is None:
            arrays.append(None)
        elif tensor.dtype == "float32":
            scale = 1 / np.sqrt(max(tensor.shape[-1], 1)) if op in ops.FAMILIES["rnn"] and position else 1.0
            arrays.append((rng.standard_normal(tensor.shape) * scale).astype(np.float32))
        elif op in ops.FAMILIES["fixed"] and (name := ops.fixed.INPUT_FORMATS[op][position]):
            form = attributes[name]
            arrays.append(rng.integers(form.low, form.high + 1, tensor.shape).astype(tensor.dtype))
        elif tensor.dtype == "int32":
            arrays.append(rng.integers(0, tensors[0].shape[0] + 1, tensor.shape).astype(np.int32))
        else:
            info = np.iinfo(tensor.dtype)
            arrays.append(rng.integers(info.min, info.max + 1, tensor.shape).astype(tensor.dtype))
    try:
        problem = ops.canonical(op, tensors, attributes, outputs)
    except OperatorError as error:
        assert "; " in str(error)
        return
    results = dispatch.call(
        dispatch.Call(op, tuple(arrays), attributes, outputs, finish=lambda values: values), backend=backend
    )
    tolerance = ops.SPECS[op].tolerance(problem)
    for result, want in zip(results, reference.evaluate(problem, arrays[: len(problem.inputs)])):
        wrong = tolerance.violations(result, want)
        assert wrong == 0, f"{wrong} wrong, error {tolerance.error(result, want):.3g}: {problem.text}"


def require(name: str) -> None:
    state = backends.get(name).probe()
    if not state.ready:
        pytest.skip(f"{name}: {state.detail} ({state.remedy})")


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(name, strategy, id=f"{strategy.__name__}-{name}")
        for name in EXAMPLES
        for strategy in (convolutions, pools, recurrences, fixed_points)
        if strategy is not fixed_points or name in FIXED_POINT
    ],
)
def test_right_or_refused(name: str, strategy) -> None:
    require(name)

    @settings(max_examples=EXAMPLES[name], **QUICK)
    @given(strategy(), st.integers(0, 2**32 - 1))
    def run(request: tuple, seed: int) -> None:
        check(name, request, seed)

    run()
