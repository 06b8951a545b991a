"""The public functions: torch's names and arguments, the caller's kind of array in and out, errors for people."""

from __future__ import annotations

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import ops, reference
from quatrefoil.errors import OperatorError, QuatrefoilError
from quatrefoil.problem import Tensor

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def oracle(op: str, arrays: list, attributes: dict, outputs: int = 1) -> tuple[np.ndarray, ...]:
    problem = ops.canonical(op, [None if a is None else Tensor.of(a) for a in arrays], attributes, outputs)
    return reference.evaluate(problem, arrays)


def test_conv2d_arguments() -> None:
    x, w, b = normal(2, 4, 9, 10), normal(6, 2, 3, 3), normal(6)
    z = normal(2, 6, 4, 10)
    y = qf.conv2d(x, w, b, stride=(2, 1), padding=(0, 1), groups=2, activation="LeakyRelu(0.2)", residual=z)
    attributes = {"strides": [2, 1], "pads": [0, 1, 0, 1], "group": 2, "activation": "LeakyRelu(0.2)"}
    np.testing.assert_allclose(y, oracle("conv", [x, w, b, z], attributes)[0], rtol=1e-4, atol=1e-5)


def test_padding_forms() -> None:
    x, w = normal(1, 3, 9, 9), normal(2, 3, 4, 4)
    assert qf.conv2d(x, w, padding="same").shape == (1, 2, 9, 9)
    assert qf.conv2d(x, w, padding="valid").shape == (1, 2, 6, 6)
    assert qf.conv2d(x, w, padding=(1, 2, 0, 3)).shape == (1, 2, 7, 11)
    with pytest.raises(OperatorError, match="'same' with a stride"):
        qf.conv2d(x, w, stride=2, padding="same")


def test_max_pool_indices_are_torchs() -> None:
    x = normal(2, 3, 8, 6)
    values, indices = qf.max_pool2d(x, 2, return_indices=True)
    flat = x.reshape(2, 3, -1)
    np.testing.assert_array_equal(np.take_along_axis(flat, indices.reshape(2, 3, -1), 2), values.reshape(2, 3, -1))
    restored = qf.max_unpool2d(values, indices, 2)
    assert restored.shape == x.shape
    np.testing.assert_array_equal(restored[restored != 0], x[restored != 0])


def test_max_unpool_output_size() -> None:
    x = normal(1, 2, 7, 9)
    values, indices = qf.max_pool2d(x, 2, return_indices=True)
    assert qf.max_unpool2d(values, indices, 2, output_size=(7, 9)).shape == x.shape
    with pytest.raises(OperatorError, match="indices is"):
        qf.max_unpool2d(values, indices + 1000, 2, output_size=(7, 9))


def test_average_pool_defaults_are_torchs() -> None:
    x = normal(1, 2, 5, 5)
    with_pad = qf.avg_pool2d(x, 3, 2, 1)
    np.testing.assert_allclose(with_pad[0, 0, 0, 0], x[0, 0, :2, :2].sum() / 9, rtol=1e-5)
    without = qf.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    np.testing.assert_allclose(without[0, 0, 0, 0], x[0, 0, :2, :2].mean(), rtol=1e-5)


def test_global_pools() -> None:
    x = normal(2, 3, 4, 5)
    np.testing.assert_array_equal(qf.global_max_pool(x)[:, :, 0, 0], x.max((2, 3)))
    np.testing.assert_allclose(qf.global_avg_pool(x)[:, :, 0, 0], x.mean((2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(qf.global_lp_pool(x)[:, :, 0, 0], np.sqrt((x**2).sum((2, 3))), rtol=1e-5)


def test_stacked_lstm() -> None:
    x = normal(5, 2, 3)
    layers = [(normal(2, 16, 3) / 2, normal(2, 16, 4) / 2, normal(2, 32)), (normal(2, 16, 8) / 2, normal(2, 16, 4) / 2)]
    y, y_h, y_c = qf.stacked(qf.lstm, x, layers, direction="bidirectional")
    attributes = {"direction": "bidirectional"}
    first = oracle("lstm", [x, *layers[0]], attributes, 3)
    second_x = first[0].swapaxes(1, 2).reshape(5, 2, 8).astype(np.float32)
    second = oracle("lstm", [second_x, *layers[1]], attributes, 3)
    np.testing.assert_allclose(y, second[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y_h[0], first[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y_c[1], second[2], rtol=1e-4, atol=1e-5)


def test_plan_of_a_batch_first_lstm_with_states() -> None:
    x, w, r = normal(2, 5, 3), normal(1, 16, 3) / 2, normal(1, 16, 4) / 2
    h, c = normal(2, 1, 4), normal(2, 1, 4)
    plan = qf.plan(qf.lstm, x, w, r, initial_h=h, initial_c=c, layout=1)
    for got, want in zip(plan(x, h, c), oracle("lstm", [x, w, r, None, None, h, c], {"layout": 1}, 3)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


SIXTEEN, SUMS, OUT = "fixed<16,6>", "fixed<24,10>", qf.Fixed(12, 5, "RND", "SAT")
FORMATS = {"x_format": SIXTEEN, "w_format": "fixed<8,1>", "accumulator": SUMS, "y_format": OUT}


def whole(form: str | qf.Fixed, *shape: int) -> np.ndarray:
    """Every integer of a format."""
    found = form if isinstance(form, qf.Fixed) else qf.Fixed.parse(form)
    return RNG.integers(found.low, found.high + 1, shape).astype(found.dtype)


def test_fixed_conv_arguments() -> None:
    x, w, b = whole(SIXTEEN, 2, 4, 9, 10), whole("fixed<8,1>", 6, 2, 3, 3), whole("fixed<9,2>", 6)
    y = qf.fixed_conv(
        x, w, b, stride=(2, 1), padding=(0, 1), groups=2, bias_format="fixed<9,2>", activation="Relu", **FORMATS
    )
    attributes = {"strides": [2, 1], "pads": [0, 1, 0, 1], "group": 2, "bias_format": "fixed<9,2>", **FORMATS}
    np.testing.assert_array_equal(y, oracle("fixed_conv", [x, w, b], {**attributes, "activation": "Relu"})[0])
    x, w = whole(SIXTEEN, 3, 7), whole("fixed<8,1>", 5, 7)
    np.testing.assert_array_equal(qf.fixed_conv(x, w, **FORMATS), oracle("fixed_conv", [x, w], FORMATS)[0])


def test_fixed_pools() -> None:
    x = whole(SIXTEEN, 2, 3, 7, 8)
    kept = {"x_format": SIXTEEN, "y_format": SIXTEEN}
    window = {"kernel_shape": [3, 2], "strides": [3, 2], "pads": [1, 0, 1, 0]}
    y = qf.fixed_max_pool(x, (3, 2), padding=(1, 0), x_format=SIXTEEN)
    np.testing.assert_array_equal(y, oracle("fixed_max_pool", [x], {**window, **kept})[0])
    y = qf.fixed_average_pool(x, (3, 2), padding=(1, 0), count_include_pad=True, x_format=SIXTEEN, accumulator=SUMS)
    attributes = {**window, **kept, "accumulator": SUMS, "count_include_pad": 1}
    np.testing.assert_array_equal(y, oracle("fixed_average_pool", [x], attributes)[0])


@pytest.mark.parametrize(("op", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_fixed_recurrent_layers(op: str, gates: int) -> None:
    formats = {
        "x_format": SIXTEEN, "w_format": "fixed<8,1>", "r_format": "fixed<8,1>", "b_format": "fixed<9,2>",
        "accumulator": "fixed<20,8>", "y_format": SIXTEEN, "table_format": "fixed<18,8>", "table_size": 256,
    }  # fmt: skip
    x, w, r = whole(SIXTEEN, 4, 2, 3), whole("fixed<8,1>", 1, gates * 5, 3), whole("fixed<8,1>", 1, gates * 5, 5)
    b, h = whole("fixed<9,2>", 1, 2 * gates * 5), whole(SIXTEEN, 1, 2, 5)
    function = getattr(qf, f"fixed_{op}")
    outputs = function(x, w, r, b, initial_h=h, direction="reverse", **formats)
    wanted = oracle(f"fixed_{op}", [x, w, r, b, None, h], {"direction": "reverse", **formats}, len(outputs))
    for got, want in zip(outputs, wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(OperatorError, match="the keyword is z_format; it takes x_format"):
        function(x, w, r, b, z_format=SIXTEEN, **formats)


def test_torch_goes_in_and_comes_out() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its tensors cannot be tried")
    x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = qf.conv2d(x, w, padding=1)
    assert isinstance(y, torch.Tensor)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1).detach(), rtol=1e-4, atol=1e-5)
    values, indices = qf.max_pool2d(x, 2, return_indices=True)
    expected, places = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(values, expected)
    assert torch.equal(indices, places)
    assert torch.equal(qf.max_unpool2d(values, indices, 2), torch.nn.functional.max_unpool2d(expected, places, 2))


def test_odd_arrays_are_right_or_refused() -> None:
    x, w = normal(1, 3, 8, 8), normal(4, 3, 3, 3)
    want = qf.conv2d(x, w)
    np.testing.assert_array_equal(qf.conv2d(np.asfortranarray(x), w), want)
    np.testing.assert_array_equal(qf.conv2d(x[:, :, ::-1][:, :, ::-1], w), want)
    np.testing.assert_array_equal(qf.conv2d(x.astype(">f4"), w.astype(">f4")), want)
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(qf.conv2d(frozen, w), want)
    with pytest.raises(QuatrefoilError, match="is no array"):
        qf.conv2d([[1.0]], w)
    with pytest.raises(QuatrefoilError, match="fill it first"):
        qf.conv2d(np.ma.masked_array(x), w)


BAD_CALLS = [
    (lambda: qf.conv2d(normal(3, 8, 8), normal(4, 3, 3, 3)), "rank"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 2, 3, 3)), "3 channels"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3).astype(np.float64)), "dtype of w"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8).astype(complex), normal(4, 3, 3, 3)), "dtype of x"),
    (lambda: qf.conv2d(normal(1, 3, 2, 2), normal(4, 3, 3, 3)), "has to fit"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), stride=0), "strides"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), stride=2**40), "strides"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), padding=-1), "pads"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), groups=2), "group"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), normal(5)), "shape of bias"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), activation="Relux"), "known are"),
    (lambda: qf.conv2d(normal(1, 0, 8, 8), normal(4, 0, 3, 3)), "every axis"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), stride=(1, 2, 3)), "stride"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), stride=1.5), "whole number"),
    (lambda: qf.conv2d(normal(1, 3, 8, 8), normal(4, 3, 3, 3), stride={1: 2}), "whole numbers"),
    (lambda: qf.conv_transpose2d(normal(1, 3, 0, 4), normal(3, 2, 3, 3)), "every spatial axis"),
    (lambda: qf.max_pool2d(normal(1, 3, 8, 8), 2, padding=2**30), "hold at most"),
    (lambda: qf.lstm(normal(3, 2, 0), normal(1, 16, 0), normal(1, 16, 4)), "at least 1 value"),
    (lambda: qf.max_pool2d(normal(1, 3, 8, 8), 0), "kernel_shape"),
    (lambda: qf.max_pool2d(normal(1, 3, 8), 2), "rank"),
    (lambda: qf.lp_pool2d(normal(1, 3, 8, 8), 0, 2), "p is 0"),
    (lambda: qf.lstm(normal(3, 2, 4), normal(1, 20, 4), normal(1, 20, 4)), "shape of w"),
    (lambda: qf.lstm(normal(3, 2, 4), normal(1, 16, 4), normal(1, 16, 4), direction="sideways"), "direction"),
    (lambda: qf.gru(normal(3, 2, 4), normal(1, 12, 4), normal(1, 12, 4), clip=-1.0), "clip"),
    (
        lambda: qf.gru(normal(3, 2, 4), normal(1, 12, 4), normal(1, 12, 4), sequence_lens=np.array([1, 9], np.int32)),
        "sequence_lens",
    ),
    (
        lambda: qf.gru(normal(3, 2, 4), normal(1, 12, 4), normal(1, 12, 4), activations=["Relu"]),
        "activations",
    ),
    (lambda: qf.rnn(normal(3, 2, 4), normal(1, 5, 4), normal(1, 5, 5), activation_alpha=[1.0]), "activation_alpha"),
    (lambda: qf.conv_transpose2d(normal(1, 3, 4, 4), normal(3, 2, 3, 3), output_padding=1), "output_padding"),
    (lambda: qf.conv_integer(normal(1, 3, 8, 8), normal(4, 3, 3, 3)), "dtype of x"),
]


@pytest.mark.parametrize(("bad", "says"), BAD_CALLS)
def test_bad_calls_are_refused_in_a_sentence(bad, says: str) -> None:
    with pytest.raises(OperatorError) as error:
        bad()
    message = str(error.value)
    assert says in message
    assert "; " in message, f"{message!r} does not say what would do"
