"""The CPU's recurrent kernels: every instruction set, sizes around a vector, threads, states from call to call."""

from __future__ import annotations

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import ops, reference, settings
from quatrefoil.cpu import rnn
from quatrefoil.ops import rnn as semantics
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Run

KINDS = ("rnn", "lstm", "gru")


Arrays = list[np.ndarray | None]


def layer(
    op: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    *,
    seed: int = 0,
    state: bool = True,
    **attributes: object,
) -> tuple[Problem, Arrays]:
    rng = np.random.default_rng(seed)
    gates, directions = semantics.GATES[op], 2 if attributes.get("direction") == "bidirectional" else 1

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(hidden)).astype(np.float32)

    arrays: Arrays = [
        draw(steps, batch, inputs) * 3,
        draw(directions, gates * hidden, inputs),
        draw(directions, gates * hidden, hidden),
        draw(directions, 2 * gates * hidden),
    ]
    if state:
        arrays += [None, draw(directions, batch, hidden)]
    tensors = [None if array is None else Tensor.of(array) for array in arrays]
    return ops.canonical(op, tensors, {"hidden_size": hidden, **attributes}), arrays


def prepared(problem: Problem, arrays: Arrays) -> Run:
    kernel = next(k for k in rnn.KERNELS if k.op == problem.op and k.accepts(problem) is None)
    return kernel.prepare(problem, {i: array for i, array in enumerate(arrays) if i in (1, 2, 3) and array is not None})


def check(problem: Problem, arrays: Arrays) -> None:
    outputs = prepared(problem, arrays)(arrays)
    tolerance = ops.SPECS[problem.op].tolerance(problem)
    for output, want in zip(outputs, reference.evaluate(problem, arrays), strict=True):
        wrong = tolerance.violations(output, want)
        assert wrong == 0, (
            f"{wrong} of {want.size} values are wrong, error {tolerance.error(output, want):.2g}\n{problem}"
        )


@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize("hidden", [1, 4, 15, 16, 17, 48])
def test_hidden_sizes_around_a_vector(isa: str, op: str, hidden: int) -> None:
    check(*layer(op, 3, 2, 5, hidden))


@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize("batch", [2, 3, 5, 7, 8, 13, 70])
def test_every_group_of_rows(isa: str, op: str, batch: int) -> None:
    """Batches that leave each remainder of the register block, and one larger than a chunk of input products."""
    check(*layer(op, 2, batch, 6, 20))


@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_more_steps_than_a_chunk(isa: str, op: str, direction: str) -> None:
    """The input products of 145 steps come in three chunks, the last of them short."""
    check(*layer(op, 145, 1, 3, 5, direction=direction))
    check(*layer(op, 3, 32, 3, 5, direction=direction))  # two steps and a single one


@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("size", [63, 131, 300])
def test_streams_and_parts_of_a_panel(isa: str, op: str, batch: int, size: int) -> None:
    """Few rows read a panel as streams with a rest behind them, many rows in parts that the first cache holds."""
    check(*layer(op, 3, batch, size, size))
    if op == "gru":
        check(*layer(op, 3, batch, size, size, linear_before_reset=1))


@pytest.mark.parametrize("op", KINDS)
def test_threads_do_not_change_a_bit(isa: str, threads: None, op: str) -> None:
    """Blocks of units shared among threads, the directions shared between two, and both."""
    for hidden, direction, team in ((300, "forward", 2), (300, "bidirectional", 4), (200, "bidirectional", 2)):
        problem, arrays = layer(op, 60 if hidden == 200 else 6, 8, 10, hidden, direction=direction)
        run = prepared(problem, arrays)
        settings.set_num_threads(1)
        one = run(arrays)
        settings.set_num_threads(team)
        for several, single in zip(run(arrays), one, strict=True):
            np.testing.assert_array_equal(several, single)


@pytest.mark.parametrize("op", KINDS)
def test_a_layer_called_again_gives_the_same_numbers(isa: str, op: str) -> None:
    """The order of the blocks turns round from call to call; the numbers do not."""
    problem, arrays = layer(op, 3, 2, 5, 70)
    run = prepared(problem, arrays)
    first = run(arrays)
    for _ in range(3):
        for again, before in zip(run(arrays), first, strict=True):
            np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize("op", KINDS)
def test_no_initial_state_with_infinite_weights_is_still_nan(isa: str, op: str) -> None:
    """The products with a zero state are left out only where they are zero: infinity times zero is not."""
    problem, arrays = layer(op, 1, 1, 4, 5, state=False)
    recurrent = arrays[2]
    assert recurrent is not None
    recurrent[0, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        check(problem, arrays)


def test_nan_stays_in_its_sequence(isa: str) -> None:
    problem, arrays = layer("lstm", 4, 9, 5, 20)
    x = arrays[0]
    assert x is not None
    x[1, 4, 2] = np.nan
    y, y_h, _ = prepared(problem, arrays)(arrays)
    assert np.isnan(y[1:, :, 4]).all()
    assert np.isfinite(y[0]).all()
    assert np.isfinite(np.delete(y_h, 4, axis=1)).all()
    check(problem, arrays)


def test_gates_far_from_zero_saturate(isa: str) -> None:
    """Arguments of the exponential from minus to plus 300: no overflow, no NaN."""
    problem, arrays = layer("lstm", 3, 2, 4, 24)
    for position in (0, 1):
        array = arrays[position]
        assert array is not None
        array *= 12
    check(problem, arrays)


def test_weights_are_packed_once(isa: str) -> None:
    problem, arrays = layer("gru", 3, 2, 5, 20)
    run = prepared(problem, arrays)
    before = run(arrays)
    for position in (1, 2, 3):
        array = arrays[position]
        assert array is not None
        array[:] = 0
    for again, first in zip(run(arrays), before, strict=True):
        np.testing.assert_array_equal(again, first)


def test_directions_whose_weights_fill_a_cache_are_those_of_layers_of_one(threads: None) -> None:
    """Directions of 256 units take their steps one after the other, smaller ones by turns: both are the same layers."""
    settings.set_num_threads(1)
    rng = np.random.default_rng(0)
    for hidden in (16, 256):
        x = rng.standard_normal((3, 1, 8)).astype(np.float32)
        w = (rng.standard_normal((2, 4 * hidden, 8)) / 4).astype(np.float32)
        r = (rng.standard_normal((2, 4 * hidden, hidden)) / 16).astype(np.float32)
        y, y_h, y_c = qf.lstm(x, w, r, direction="bidirectional")
        for index, direction in enumerate(("forward", "reverse")):
            alone = qf.lstm(x, w[index : index + 1], r[index : index + 1], direction=direction)
            for both, one in zip(
                (y[:, index : index + 1], y_h[index : index + 1], y_c[index : index + 1]), alone, strict=True
            ):
                np.testing.assert_array_equal(both, one)
