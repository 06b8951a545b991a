"""Gradients of recurrent layers on the CPU: every instruction set, sizes around a vector, threads; any options against central
differences; what stands behind sequence_lens; torch's autograd where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as examples
from hypothesis import strategies as st

import quatrefoil as qf
from quatrefoil import gradients, ops, reference, settings
from quatrefoil.cpu import rnn_gradient
from quatrefoil.errors import OperatorError
from quatrefoil.ops import rnn
from quatrefoil.ops import rnn_gradient as semantics
from quatrefoil.problem import Problem, Tensor

KINDS = ("rnn", "lstm", "gru")
Arrays = list[np.ndarray | None]


def made(op: str, steps: int, batch: int, inputs: int, hidden: int, **attributes: object) -> tuple[Problem, Arrays]:
    """A gradient's problem and inputs: made-up results of the forward pass do as well as true ones."""
    rng = np.random.default_rng(0)
    gates, directions = rnn.GATES[op], 2 if attributes.get("direction") == "bidirectional" else 1
    slots = gates + bool(attributes.get("linear_before_reset"))

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(hidden)).astype(np.float32)

    arrays: Arrays = [
        draw(steps, batch, inputs),
        draw(directions, gates * hidden, inputs),
        draw(directions, gates * hidden, hidden),
        draw(directions, 2 * gates * hidden),
        None,
        draw(directions, batch, hidden),
        *(None, None),
        draw(steps, directions, batch, hidden),
        3 * draw(steps, directions, batch, slots * hidden),
        draw(steps, directions, batch, hidden),
    ]
    tensors = [None if array is None else Tensor.of(array) for array in arrays]
    return ops.canonical(op + semantics.GRADIENT, tensors, {"hidden_size": hidden, **attributes}), arrays


def run(problem: Problem, arrays: Arrays) -> tuple[np.ndarray, ...]:
    kernel = next(k for k in rnn_gradient.KERNELS if k.op == problem.op and k.accepts(problem) is None)
    return kernel.prepare(problem, {})(arrays)


def check(problem: Problem, arrays: Arrays) -> None:
    tolerance = ops.SPECS[problem.op].tolerance(problem)
    for output, want in zip(run(problem, arrays), reference.evaluate(problem, arrays), strict=True):
        wrong = tolerance.violations(output, want)
        assert wrong == 0, f"{wrong} of {want.size} are wrong, error {tolerance.error(output, want):.2g}\n{problem}"


@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize(("inputs", "hidden"), [(1, 15), (17, 16), (31, 17), (70, 33), (16, 67)])
def test_sizes_around_a_vector_and_a_block(isa: str, op: str, inputs: int, hidden: int) -> None:
    check(*made(op, 3, 2, inputs, hidden))
    check(*made(op, 1, 1, inputs, hidden))  # a single step reads R as it lies


@pytest.mark.parametrize("op", KINDS)
def test_more_rows_than_a_part_of_the_depth(isa: str, op: str) -> None:
    """145 rows are more than are packed at a time, and leave rests in every block of rows."""
    check(*made(op, 29, 5, 6, 9, direction="bidirectional"))
    if op == "gru":
        check(*made(op, 29, 5, 6, 9, linear_before_reset=1))


@pytest.mark.parametrize("op", KINDS)
def test_threads_do_not_change_a_bit(threads: None, op: str) -> None:
    problem, arrays = made(op, 4, 8, 10, 200, direction="bidirectional")
    settings.set_num_threads(1)
    one = run(problem, arrays)
    settings.set_num_threads(3)
    for several, single in zip(run(problem, arrays), one, strict=True):
        np.testing.assert_array_equal(several, single)


@pytest.mark.parametrize("op", KINDS)
def test_what_lies_behind_the_lengths_is_never_read(op: str) -> None:
    problem, arrays = made(op, 4, 3, 5, 6, direction="bidirectional")
    lengths = np.array([4, 0, 2], np.int32)
    arrays[rnn.LENGTHS] = lengths
    tensors = [None if array is None else Tensor.of(array) for array in arrays]
    problem = ops.canonical(problem.op, tensors, {**rnn.onnx_attributes(problem), "wanted": None})
    clean = run(problem, arrays)
    for position, batch in ((rnn.X, 1), (semantics.Y, 2), (semantics.SUMS, 2), (semantics.DY, 2)):
        array = arrays[position]
        assert array is not None
        for n, length in enumerate(lengths):
            array[(slice(length, None), *(slice(None),) * (batch - 1), n)] = np.nan
    for spoilt, before in zip(run(problem, arrays), clean, strict=True):
        np.testing.assert_array_equal(spoilt, before)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, list[np.ndarray], dict[str, Any]]:
    """A function and arguments in float64; activations without kinks, so that differences are slopes."""
    op = draw(st.sampled_from(KINDS))
    steps, batch, width, hidden = (draw(st.integers(1, most)) for most in (5, 3, 4, 5))
    options: dict[str, Any] = {"direction": draw(st.sampled_from(rnn.DIRECTIONS)), "layout": draw(st.integers(0, 1))}
    directions, gates = 2 if options["direction"] == "bidirectional" else 1, rnn.GATES[op]
    count = directions * len(rnn.DEFAULT_ACTIVATIONS[op])
    smooth = ["Sigmoid", "Tanh", "Softplus", "Affine", "Softsign", "ScaledTanh"]
    options["activations"] = draw(st.lists(st.sampled_from(smooth), min_size=count, max_size=count))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    state = (batch, directions, hidden) if options["layout"] else (directions, batch, hidden)
    shapes = [
        (batch, steps, width) if options["layout"] else (steps, batch, width),
        (directions, gates * hidden, width),
        (directions, gates * hidden, hidden),
        (directions, 2 * gates * hidden),
    ]
    if draw(st.booleans()):
        options["sequence_lens"] = rng.integers(0, steps + 1, batch).astype(np.int32)
    if draw(st.booleans()):
        options["initial_h"] = rng.standard_normal(state)
    if op == "lstm":
        options["p"] = rng.standard_normal((directions, 3 * hidden))
        options["input_forget"] = draw(st.booleans())
    if op == "gru":
        options["linear_before_reset"] = draw(st.booleans())
    return getattr(qf, op), [0.4 * rng.standard_normal(shape) for shape in shapes], options


@seed(20)
@examples(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(layers())
def test_any_layer_meets_central_differences(layer: tuple[Any, list[np.ndarray], dict[str, Any]]) -> None:
    function, arrays, options = layer
    outputs, back = gradients.pullback(function, *arrays, **options)
    rng = np.random.default_rng(0)
    dys = [rng.standard_normal(y.shape) for y in outputs]
    for position, gradient in enumerate(back(*dys)[: len(arrays)]):
        direction = rng.standard_normal(arrays[position].shape)
        ends = []
        for sign in (1, -1):
            changed = list(arrays)
            changed[position] = arrays[position] + sign * 1e-6 * direction
            ends.append(sum(float((dy * y).sum()) for dy, y in zip(dys, function(*changed, **options))))
        scale = float(np.abs(gradient * direction).sum()) + 1
        assert abs((ends[0] - ends[1]) / 2e-6 - float((gradient * direction).sum())) <= 1e-6 * scale


def test_a_training_form_gives_the_layers_own_outputs_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    x, w, r = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3, 4), (1, 28, 4), (1, 28, 7)))
    plain = qf.lstm(x, w, r)
    kept, back = gradients.pullback(qf.lstm, x, w, r)
    assert len(kept) == 3
    for a, b in zip(kept, plain, strict=True):
        np.testing.assert_array_equal(a, b)
    problem = ops.canonical("lstm", [Tensor.of(a) for a in (x, w, r)], {})
    again = gradients.vjp(problem, (x, w, r), plain, (np.ones_like(plain[0]), None, None))  # without sums
    for a, b in zip(again, back(np.ones_like(plain[0]), None, None), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_differentiated_is_refused() -> None:
    problem, arrays = made("gru", 2, 1, 3, 4)
    tensors = [None if array is None else Tensor.of(array) for array in arrays]
    for change, message in (
        ({"wanted": (rnn.LENGTHS,)}, "wanted is 4; inputs with gradients here are 0"),
        ({"layout": 1}, "layout is 1; it takes layout 0"),
    ):
        with pytest.raises(OperatorError, match=message):
            ops.canonical("gru_gradient", tensors, {**rnn.onnx_attributes(problem), **change})
    for position, message in ((semantics.SUMS, "give what gru_training gave"), (semantics.DY, "give dy")):
        with pytest.raises(OperatorError, match=message):
            ops.canonical("gru_gradient", [None if i == position else t for i, t in enumerate(tensors)], {})


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gradients_meet_torch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](6, 9, bidirectional=True)
    x = torch.randn(5, 3, 6, requires_grad=True)
    order = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}[kind]

    def onnx_order(array: np.ndarray) -> np.ndarray:
        parts = np.split(array, len(order))
        return np.concatenate([parts[i] for i in order])

    def stacked(values: dict[str, np.ndarray]) -> list[np.ndarray]:
        def of(name: str) -> list[np.ndarray]:
            return [onnx_order(values[f"{name}_l0{end}"]) for end in ("", "_reverse")]

        biases = [np.concatenate(pair) for pair in zip(of("bias_ih"), of("bias_hh"))]
        return [np.stack(each) for each in (of("weight_ih"), of("weight_hh"), biases)]

    y = module(x)[0]
    dy = torch.randn(y.shape)
    names, parameters = zip(*module.named_parameters())
    dx, *expected = torch.autograd.grad(y, (x, *parameters), dy)
    given = stacked({name: value.detach().numpy() for name, value in zip(names, parameters)})
    options = {"linear_before_reset": True} if kind == "gru" else {}
    outputs, back = gradients.pullback(
        getattr(qf, kind), x.detach().numpy(), *given, direction="bidirectional", **options
    )
    ours = np.ascontiguousarray(dy.numpy().reshape(5, 3, 2, 9).transpose(0, 2, 1, 3))
    found = back(ours, *[None] * (len(outputs) - 1))
    want = [dx.numpy(), *stacked({name: value.numpy() for name, value in zip(names, expected)})]
    for got, right in zip(found, want):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=2e-6 * np.abs(right).max())
