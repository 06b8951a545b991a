"""The CPU's fast gradients of pooling against the definition, on windows of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import ops
from quatrefoil.cpu import BACKEND
from quatrefoil.problem import Problem


def some_pool(rng: np.random.Generator, op: str) -> tuple[Problem, list[np.ndarray]] | None:
    """A gradient and its inputs, or None where the window that was drawn does not fit."""
    rank = int(rng.integers(1, 4))
    extents = [int(rng.integers(1, (70, 70, 23, 9)[rank])) for _ in range(rank)]
    attributes: dict[str, Any] = {
        "kernel_shape": rng.integers(1, 6, rank).tolist(),
        "strides": rng.integers(1, 6, rank).tolist(),
        "dilations": rng.integers(1, 4, rank).tolist(),
        "pads": rng.integers(0, 4, 2 * rank).tolist(),
        "ceil_mode": int(rng.integers(2)),
    }
    x = rng.standard_normal((1, int(rng.integers(1, 4)), *extents)).astype(np.float32)
    if rng.integers(2):
        x = np.round(x)
    if op == "average_pool":
        attributes["count_include_pad"] = int(rng.integers(2))
    elif op == "lp_pool":
        attributes["p"] = int(rng.integers(1, 3))
    try:
        pool = ops.canonical(op, [qf.Tensor.of(x)], attributes)
    except qf.OperatorError:
        return None
    dy = rng.standard_normal(pool.outputs[0].shape).astype(np.float32)
    y = np.abs(rng.standard_normal(dy.shape)).astype(np.float32)
    arrays = {"max_pool": [dy, x], "average_pool": [dy], "lp_pool": [dy, x, y]}[op]
    if op == "average_pool":
        attributes["input_shape"] = x.shape
    return ops.canonical(f"{op}_gradient", [qf.Tensor.of(array) for array in arrays], attributes), arrays


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("op", ops.pool.WINDOW_OPS)
def test_fast_kernels_meet_the_definition(op: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quatrefoil.settings._threads", threads)
    rng = np.random.default_rng([threads, len(op)])
    compared = 0
    for _ in range(400):
        made = some_pool(rng, op)
        if made is None:
            continue
        problem, arrays = made
        *fast, definition = (k for k in BACKEND.kernels() if k.op == problem.op and k.accepts(problem) is None)
        (expected,) = definition.prepare(problem, {})(arrays)
        for kernel in fast:
            (dx,) = kernel.prepare(problem, {})(arrays)
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(
                dx, expected, rtol=1e-5, atol=1e-6 * scale, err_msg=f"{kernel.id} on {problem.text}"
            )
            compared += 1
    assert compared > 150


def test_a_nan_wins_and_stays_alone() -> None:
    x = np.zeros((2, 1, 6, 6), np.float32)
    x[0, 0, 2, 3] = np.nan
    y, back = qf.gradients.pullback(qf.max_pool2d, x, 3, stride=3)
    assert np.isnan(y[0, 0, 0, 1])
    (dx,) = back(np.arange(1, 9, dtype=np.float32).reshape(y.shape))
    assert dx[0, 0, 2, 3] == 2.0 and dx[0, 0, 0, 3] == 0.0
    assert dx[1, 0, 0, 0] == 5.0 and dx.sum() == 36.0


def test_what_unpooling_overwrote_has_no_gradient() -> None:
    x = np.ones((1, 1, 2, 2), np.float32)
    indices = np.array([[[[5, 3], [5, 0]]]])
    dy = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    y, back = qf.gradients.pullback(qf.max_unpool2d, x, indices, 2)
    assert y.shape == dy.shape
    np.testing.assert_array_equal(back(dy)[0], [[[[0.0, 3.0], [5.0, 0.0]]]])


def test_indices_that_lie_outside_are_refused() -> None:
    problem = ops.canonical("max_unpool", [qf.Tensor("float32", (1, 1, 1, 1)), qf.Tensor("int64", (1, 1, 1, 1))],
                            {"kernel_shape": [2, 2], "strides": [2, 2]})  # fmt: skip
    x, dy = np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 2, 2), np.float32)
    with pytest.raises(qf.OperatorError, match="they have to lie in 0 to 3"):
        qf.gradients.vjp(problem, [x, np.full((1, 1, 1, 1), 4)], [], [dy])


@pytest.mark.parametrize(
    ("op", "types", "attributes", "says"),
    [
        ("max_pool_gradient", ("float32[1x1x2x2]", "float32[1x1x4x4]"), {"kernel_shape": [3, 3]}, None),
        ("max_pool_gradient", ("float32[1x1x3x2]", "float32[1x1x4x4]"), {"kernel_shape": [3, 3]}, "it has to be"),
        ("max_pool_gradient", ("float64[1x1x2x2]", "float32[1x1x4x4]"), {"kernel_shape": [3, 3]}, "it has to be"),
        ("max_pool_gradient", ("int8[1x1x2x2]", "int8[1x1x4x4]"), {"kernel_shape": [3, 3]}, "the dtype of dy"),
        ("max_pool_gradient", ("float32[1x1x2x2]",), {"kernel_shape": [3, 3]}, "x is missing"),
        ("average_pool_gradient", ("float32[1x1x2x2]",), {"kernel_shape": [3, 3]}, "input_shape"),
        ("lp_pool_gradient", ("float32[1x1x2]", "float32[1x1x4]", "float32[1x1x3]"), {"kernel_shape": [3]}, "y is"),
        ("max_unpool_gradient", ("float32[1x1x4]", "int32[1x1x2]"), {}, "int64"),
        ("max_unpool_gradient", ("float32[1x1x4]", "int64[1x2x2]"), {}, "begin as dy's"),
        ("max_unpool_gradient", ("float32[1x1x4]", "int64[1x1x2]"), {"indexed_shape": [1, 1, 5]}, "lie in dy's"),
    ],
)
def test_what_does_not_fit_is_refused(
    op: str, types: tuple[str, ...], attributes: dict[str, Any], says: str | None
) -> None:
    tensors = [qf.Tensor.parse(text) for text in types]
    if says is None:
        assert ops.canonical(op, tensors, attributes).outputs[0] == tensors[1]
        return
    with pytest.raises(qf.OperatorError, match=says):
        ops.canonical(op, tensors, attributes)
