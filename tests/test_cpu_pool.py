"""The CPU's pooling kernels: every instruction set, threads, NaN among neighbours, windows beyond the house's cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from quatrefoil import ops, reference, settings
from quatrefoil.cpu import pool
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Kernel


@pytest.fixture
def threads() -> Iterator[None]:
    before = settings.num_threads()
    settings.set_num_threads(3)
    yield
    settings.set_num_threads(before)


def problem_of(op: str, x: np.ndarray, outputs: int = 1, **attributes: object) -> Problem:
    return ops.canonical(op, [Tensor.of(x)], attributes, outputs)


def takers(problem: Problem) -> list[Kernel]:
    return [k for k in pool.KERNELS if k.op == problem.op and k.accepts(problem) is None]


def by_views(problem: Problem, x: np.ndarray) -> np.ndarray:
    """The values of a pool from views of the padded input: far quicker than the oracle's loops."""
    rank = x.ndim - 2
    axes = tuple(range(2, x.ndim))
    kernel, strides, dilations = (problem.ints(name) for name in ("kernel_shape", "strides", "dilations"))
    pads = problem.ints("pads")
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations))

    def windows(array: np.ndarray, filler: float) -> np.ndarray:
        margins = [(0, 0), (0, 0), *((pads[i], pads[rank + i] + strides[i]) for i in range(rank))]
        padded = np.pad(array, margins, constant_values=filler)
        views = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
        places = tuple(slice(0, n * s, s) for n, s in zip(problem.outputs[0].shape[2:], strides))
        return views[(slice(None), slice(None), *places, *(slice(None, None, d) for d in dilations))]

    taps = tuple(range(-rank, 0))
    wide = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        if problem.op == "max_pool":
            return windows(wide, -np.inf).max(axis=taps)
        if problem.op == "lp_pool":
            p = problem.integer("p")
            return (windows(np.abs(wide) ** p, 0.0).sum(axis=taps)) ** (1 / p)
        return windows(wide, 0.0).sum(axis=taps) / windows(np.ones_like(wide), 0.0).sum(axis=taps)


def check(problem: Problem, x: np.ndarray, kernels: list[Kernel] | None = None) -> None:
    expected = (by_views(problem, x),) if len(problem.outputs) == 1 else reference.evaluate(problem, [x])
    for kernel in kernels or takers(problem):
        outputs = kernel.prepare(problem, {})([x])
        for output, want in zip(outputs, expected, strict=True):
            wrong = ops.SPECS[problem.op].tolerance(problem).violations(output, want)
            assert wrong == 0, f"{kernel.id}: {wrong} of {want.size} values are wrong\n{problem}"


def kernel_ids(problem: Problem) -> list[str]:
    return [kernel.id.split("_")[2] for kernel in takers(problem)]


SMALL = ("2x2/2x2", "3x3/2x2", "3x3/3x3", "2x2/1x1", "3x3/1x1", "5x5/1x1",
         "1x2/1x2", "1x3/1x2", "1x4/1x4", "1x8/1x8", "2x16/2x16", "1x2/1x1", "1x3/1x1", "1x5/1x1")  # fmt: skip


@pytest.mark.parametrize("window", SMALL)
@pytest.mark.parametrize("op", ["max_pool", "average_pool"])
def test_small_windows_over_every_width(isa: str, op: str, window: str) -> None:
    """Widths around every multiple of a vector, so that each kind of tail is met; pads in front and behind."""
    kh, kw, sh, sw = map(int, window.replace("/", "x").split("x"))
    rng = np.random.default_rng(7)
    for width in (5, 15, 16, 17, 31, 33, 47, 70, 131):
        x = rng.standard_normal((1, 2, 6, max(width, kw))).astype(np.float32)
        for pads in ([0, 0, 0, 0], [kh // 2, kw // 2, kh // 2, (kw - 1) // 2]):
            problem = problem_of(op, x, kernel_shape=[kh, kw], strides=[sh, sw], pads=pads)
            assert kernel_ids(problem)[0] == "separable"
            check(problem, x, takers(problem)[:1])


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("op", ["max_pool", "average_pool"])
def test_small_windows_take_three_axes(isa: str, op: str, kernel: int) -> None:
    x = np.random.default_rng(3).standard_normal((1, 2, 5, 9, 35)).astype(np.float32)
    problem = problem_of(op, x, kernel_shape=[kernel] * 3, strides=[2, 2, 2], pads=[1] * 6)
    assert kernel_ids(problem)[0] == "separable"
    check(problem, x)


@pytest.mark.parametrize("op", ["max_pool", "average_pool", "lp_pool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [1, 29], "pads": [0, 14, 0, 14]},
        {"kernel_shape": [9, 8], "pads": [4, 3, 4, 4]},
        {"kernel_shape": [2, 3], "strides": [1, 5]},
        {"kernel_shape": [2, 11], "strides": [1, 3], "pads": [0, 5, 1, 5]},
        {"kernel_shape": [3, 4], "strides": [2, 2], "dilations": [2, 3], "pads": [2, 4, 2, 4]},
        {"kernel_shape": [3, 7], "strides": [1, 4], "dilations": [1, 3], "pads": [1, 9, 1, 9]},
    ],
    ids=lambda attributes: "-".join("x".join(map(str, value)) for value in attributes.values()),
)
def test_separable_windows(isa: str, op: str, attributes: dict[str, Any]) -> None:
    """Doubling, taps one by one, split phases, with and without dilation; more rows than a batch holds."""
    x = np.random.default_rng(5).standard_normal((2, 1, 150, 61)).astype(np.float32)
    problem = problem_of(op, x, **attributes)
    check(problem, x, [k for k in takers(problem) if "separable" in k.id])


@pytest.mark.parametrize("outputs", [1, 2])
def test_nan_reaches_exactly_the_windows_that_hold_it(isa: str, outputs: int) -> None:
    """One NaN at each place of a row in turn: no kernel may drop it, or spread it."""
    rng = np.random.default_rng(2)
    for kernel, stride, dilation in ((3, 2, 1), (3, 1, 1), (5, 1, 1), (7, 1, 1), (2, 2, 1), (2, 3, 2))[::outputs]:
        for place in (0, 15, 16, 34)[::outputs]:
            x = rng.standard_normal((1, 2, 9, 35)).astype(np.float32)
            x[0, 1, 4, place] = np.nan
            x[0, 0, 2, place] = np.inf
            pads = [kernel // 2] * 4
            check(
                problem_of("max_pool", x, outputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads,
                           dilations=[dilation] * 2), x,
            )  # fmt: skip


@pytest.mark.parametrize("op", ["average_pool", "lp_pool"])
def test_sums_keep_nan_and_infinity_to_their_windows(isa: str, op: str) -> None:
    x = np.random.default_rng(4).standard_normal((1, 1, 12, 40)).astype(np.float32)
    x[0, 0, 3, 5], x[0, 0, 7, 20], x[0, 0, 7, 30] = np.nan, np.inf, -np.inf
    for kernel in (3, 9):
        check(problem_of(op, x, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4), x)


def test_threads_do_not_change_a_bit(isa: str, threads: None) -> None:
    """Many planes, and fewer planes than threads, where each takes a band of rows."""
    rng = np.random.default_rng(1)
    for shape, attributes in (
        ((1, 16, 60, 61), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
        ((1, 1, 200, 203), {"kernel_shape": [5, 5], "pads": [2] * 4}),
        ((1, 1, 150, 150), {"kernel_shape": [11, 11], "pads": [5] * 4}),
        ((1, 2, 20, 70, 70), {"kernel_shape": [2, 2, 2]}),
    ):
        x = rng.standard_normal(shape).astype(np.float32)
        for op, outputs in (("max_pool", 1), ("max_pool", 2), ("average_pool", 1)):
            problem = problem_of(op, x, outputs, **attributes)
            for kernel in takers(problem):
                several = kernel.prepare(problem, {})([x])
                settings.set_num_threads(1)
                one = kernel.prepare(problem, {})([x])
                settings.set_num_threads(3)
                for a, b in zip(several, one, strict=True):
                    np.testing.assert_array_equal(a, b, err_msg=kernel.id)


def test_global_indices_take_the_first_of_equal_values(isa: str) -> None:
    x = np.zeros((1, 3, 6, 7), np.float32)
    x[0, 1, 2, 3] = x[0, 1, 5, 5] = 4
    x[0, 2] = -np.inf
    problem = problem_of("max_pool", x, 2, kernel_shape=[6, 7])
    assert kernel_ids(problem)[0] == "indices"
    values, indices = takers(problem)[0].prepare(problem, {})([x])
    assert values.ravel().tolist() == [0, 4, -np.inf]
    assert indices.ravel().tolist() == [0, 42 + 2 * 7 + 3, 84]


def test_what_lies_behind_an_input_does_not_matter(isa: str) -> None:
    """The values of a batch's last plane are the same whether NaN or anything else follows them in memory."""
    room = np.full(3 * 5 * 13 + 32, np.nan, np.float32)
    array = room[16:-16].reshape(1, 3, 5, 13)
    array[:] = np.arange(array.size, dtype=np.float32).reshape(array.shape)
    for op in ("max_pool", "average_pool", "lp_pool"):
        for kernel, stride in ((2, 2), (3, 1), (5, 1), (4, 3)):
            check(problem_of(op, array, kernel_shape=[kernel] * 2, strides=[stride] * 2), array)


@pytest.mark.parametrize("side", [3, 4, 7, 8, 13])
def test_global_pools_do_not_depend_on_where_planes_begin(isa: str, side: int) -> None:
    """Planes are read by cache lines, and each number is the same to the last bit wherever in a line the input begins."""
    x = np.random.default_rng(0).standard_normal((1, 21, side, side)).astype(np.float32)
    for op in ("max_pool", "average_pool", "lp_pool"):
        problem = problem_of(op, x, kernel_shape=[side] * 2)
        [run] = [kernel.prepare(problem, {}) for kernel in takers(problem) if "global" in kernel.id]
        results = []
        for offset in range(16):
            room = np.full(x.size + 64, np.nan, np.float32)
            begin = -(room.ctypes.data // 4) % 16 + offset
            placed = room[begin : begin + x.size].reshape(x.shape)
            placed[...] = x
            results.append(run([placed])[0])
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])
        np.testing.assert_allclose(results[0].ravel(), by_views(problem, x).ravel(), rtol=1e-5, atol=1e-6)
