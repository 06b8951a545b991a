"""Problems, tensors and tolerances."""

from __future__ import annotations

import numpy as np
import pytest

from quatrefoil import numerics, ops
from quatrefoil.errors import OperatorError
from quatrefoil.ops import conv, pool, rnn
from quatrefoil.problem import Tensor, Tolerance


def test_text_form() -> None:
    tensors = (Tensor("float32", (1, 64, 56, 56)), Tensor("float32", (64, 64, 3, 3)))
    problem = ops.canonical("conv", tensors, {"auto_pad": "SAME_UPPER"})
    assert problem.text == (
        "conv float32[1x64x56x56],float32[64x64x3x3] strides=1x1 pads=1x1x1x1 dilations=1x1 group=1"
    )
    assert problem.outputs == (Tensor("float32", (1, 64, 56, 56)),)


def test_calls_that_mean_the_same_are_the_same_problem() -> None:
    tensors = (Tensor("float32", (1, 4, 9, 9)), Tensor("float32", (4, 4, 3, 3)))
    same = ops.canonical("conv", tensors, {"auto_pad": "SAME_LOWER"})
    explicit = ops.canonical("conv", tensors, {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3], "activation": "Identity"})
    assert same == explicit
    assert hash(same) == hash(explicit)


def test_tensor_text_reads_back() -> None:
    for text in ("float32[1x3x8x8]", "uint8[]", "int64[0x2]"):
        assert str(Tensor.parse(text)) == text
    for text in ("float32", "float32[1,2]", "[2]", "float32[-1]"):
        with pytest.raises(ValueError, match="no tensor type"):
            Tensor.parse(text)


@pytest.mark.parametrize("op", ops.SPECS)
def test_canonical_is_idempotent(op: str) -> None:
    """A canonical problem's own inputs and attributes give the problem again."""
    for case in ops.SPECS[op].cases():
        problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
        attributes = dict(problem.attributes)
        recurrent = {*ops.FAMILIES["rnn"], *ops.FAMILIES["rnn_gradient"]}
        base = ops.compressed.FORMS[op].base.op if op in ops.compressed.FORMS else op
        if op == "max_unpool" or base in recurrent:
            continue  # max_unpool settles its kernel into shapes; recurrent texts carry their parameters
        if op in pool.WINDOW_OPS:
            geometry = pool.geometry(problem)
            assert geometry.window.output_size >= 1
            if case.attributes.get("ceil_mode"):
                continue  # settled into the output's extent, which the attributes alone do not repeat
        if op == "conv_transpose":
            assert conv.geometry(problem).window.input[-1] == problem.outputs[0].shape[-1]
            continue  # output_shape settles the pads anew
        assert ops.canonical(op, problem.inputs, attributes, case.outputs) == problem


def test_ceil_mode_leaves_out_windows_that_start_in_the_padding() -> None:
    x = Tensor("float32", (1, 1, 2, 2))
    problem = ops.canonical("max_pool", [x], {"kernel_shape": [1, 1], "strides": [2, 2], "ceil_mode": 1})
    assert problem.outputs[0].shape == (1, 1, 1, 1)


def test_layout_is_taken_off_with_its_activation_parameters() -> None:
    case = next(c for c in ops.SPECS["lstm"].cases() if c.name == "layout_1")
    attributes = {**case.attributes, "activations": ["LeakyRelu", "HardSigmoid", "ScaledTanh"],
                  "activation_alpha": [0.1, 0.3, 1.2], "activation_beta": [0.4, 0.7]}  # fmt: skip
    problem = ops.canonical("lstm", case.inputs, attributes, 3)
    plain = rnn.without_layout(problem)
    assert plain["activations"] == problem["activations"]
    assert plain.outputs[0].shape == (4, 1, 3, 6)
    assert problem.outputs[0].shape == (3, 4, 1, 6)


def test_work_counts_taps() -> None:
    tensors = (Tensor("float32", (2, 8, 10, 10)), Tensor("float32", (16, 4, 3, 3)))
    problem = ops.canonical("conv", tensors, {"group": 2, "pads": [1, 1, 1, 1]})
    work = ops.SPECS["conv"].work(problem)
    assert work.macs == 2 * 16 * 4 * 9 * 100
    assert work.bytes == 4 * (2 * 8 * 100 + 16 * 4 * 9 + 2 * 16 * 100)


def test_huge_outputs_are_refused_before_anything_is_allocated() -> None:
    tensors = (Tensor("float32", (2**20, 1, 2**10, 2**10)), Tensor("float32", (2**20, 1, 1, 1)))
    with pytest.raises(OperatorError, match="at most"):
        ops.canonical("conv", tensors, {})


def test_tolerance_is_strict_where_it_says_exact() -> None:
    exact = Tolerance()
    assert exact.violations(np.array([1, 2]), np.array([1, 3])) == 1
    assert exact.violations(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])) == 0
    loose = Tolerance(relative=1e-5, scaled=1e-5)
    want = np.array([1.0, np.nan, np.inf, -np.inf, 0.0])
    assert loose.violations(want.copy(), want) == 0
    for place, value in enumerate((1.1, 0.0, -np.inf, np.nan, 0.1)):
        wrong = want.copy()
        wrong[place] = value
        assert loose.violations(wrong, want) == 1, place
    assert loose.violations(np.zeros(3), np.zeros(4)) > 0


def test_requantize_rounds_half_to_even_and_saturates() -> None:
    accumulator = np.array([[[1], [3], [5], [-1], [1000], [-1000]]], np.int32).reshape(1, 6, 1)
    out = numerics.requantize(accumulator, np.array([0.5], np.float32), 10, "uint8")
    assert out.reshape(-1).tolist() == [10, 12, 12, 10, 255, 0]
    signed = numerics.requantize(accumulator, np.array([0.5], np.float32), 0, "int8")
    assert signed.reshape(-1).tolist() == [0, 2, 2, 0, 127, -128]
