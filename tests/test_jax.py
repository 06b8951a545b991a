"""Operators in JAX: the same numbers as quatrefoil's own, under jit, grad and vmap; errors in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import gradients

jax = pytest.importorskip("jax", reason="JAX is not installed; pip install 'quatrefoil[jax]' adds it")

import jax.numpy as jnp  # noqa: E402

import quatrefoil.jax as qj  # noqa: E402
from quatrefoil.jax import target  # noqa: E402


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([9, *shape]).standard_normal(shape).astype(np.float32)


LENGTHS = np.array([5, 3], np.int32)

# A name, the arrays that it takes, and what else.
CALLS: list[tuple[str, tuple[np.ndarray, ...], tuple[Any, ...], dict[str, Any]]] = [
    ("conv1d", (normal(2, 3, 9), normal(4, 3, 3), normal(4)), (), {"padding": 1}),
    ("conv2d", (normal(2, 4, 9, 8), normal(6, 2, 3, 3), normal(6)), (2, 1, 1, 2), {"activation": "Relu"}),
    ("conv3d", (normal(1, 2, 4, 5, 6), normal(3, 2, 2, 2, 2)), (), {}),
    ("conv_transpose2d", (normal(2, 4, 5, 4), normal(4, 3, 3, 3), normal(3)), (2, 1, 1), {}),
    ("max_pool1d", (normal(2, 3, 17),), (3, 2, 1), {}),
    ("max_pool2d", (normal(2, 3, 9, 8),), (3, 2, 1), {}),
    ("max_pool3d", (normal(1, 2, 6, 5, 4),), (2,), {"ceil_mode": True}),
    ("avg_pool2d", (normal(2, 3, 9, 8),), (3, 2, 1), {"count_include_pad": False}),
    ("lp_pool2d", (normal(2, 3, 9, 8),), (3, 2), {}),
    ("global_max_pool", (normal(2, 3, 5, 4),), (), {}),
    ("global_avg_pool", (normal(2, 3, 5, 4),), (), {}),
    ("global_lp_pool", (normal(2, 3, 5, 4),), (), {}),
    ("max_unpool2d", (normal(1, 2, 2, 2), np.array([[0, 3], [8, 15]] * 2).reshape(1, 2, 2, 2)), (2,), {}),
    ("rnn", (normal(5, 2, 3), normal(2, 4, 3), normal(2, 4, 4)), (), {"direction": "bidirectional"}),
    ("lstm", (normal(5, 2, 3), normal(1, 16, 3), normal(1, 16, 4), normal(1, 32)), (), {"sequence_lens": LENGTHS}),
    ("gru", (normal(2, 5, 3), normal(1, 12, 3), normal(1, 12, 4)), (), {"layout": 1, "linear_before_reset": True}),
]  # fmt: skip
CASES = pytest.mark.parametrize(("name", "arrays", "args", "kwargs"), CALLS, ids=[call[0] for call in CALLS])


def tupled(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@CASES
def test_it_gives_what_quatrefoil_gives(name: str, arrays: tuple, args: tuple, kwargs: dict[str, Any]) -> None:
    expected = tupled(getattr(qf, name)(*arrays, *args, **kwargs))
    function = getattr(qj, name)
    for run in (function, jax.jit(lambda *arrays: function(*arrays, *args, **kwargs))):
        got = tupled(run(*arrays, *args, **kwargs) if run is function else run(*arrays))
        assert len(got) == len(expected)
        for output, want in zip(got, expected):
            assert isinstance(output, jax.Array) and output.dtype == want.dtype
            np.testing.assert_array_equal(output, want)


@CASES
def test_gradients_are_those_of_the_rules(name: str, arrays: tuple, args: tuple, kwargs: dict[str, Any]) -> None:
    floats = tuple(place for place, array in enumerate(arrays) if array.dtype.kind == "f")

    def loss(*arrays: Any) -> Any:
        return sum((output * output).sum() for output in tupled(getattr(qj, name)(*arrays, *args, **kwargs)))

    derive = jax.jit(jax.grad(loss, floats))
    outputs, back = gradients.pullback(getattr(qf, name), *arrays, *args, **kwargs)
    expected = back(*(2 * output for output in tupled(outputs)))
    for place, got in zip(floats, derive(*arrays)):
        np.testing.assert_array_equal(got, expected[place])
    alone = jax.grad(loss, 0)(*arrays)  # nobody asks for the others
    np.testing.assert_array_equal(alone, expected[0])


@CASES
def test_vmap_is_one_after_the_other(name: str, arrays: tuple, args: tuple, kwargs: dict[str, Any]) -> None:
    function = getattr(qj, name)
    x, *others = arrays
    several = jnp.stack([jnp.asarray(x), jnp.asarray(x)[::-1] * 2, -jnp.asarray(x)])

    def run(x: Any) -> Any:
        return function(x, *others, *args, **kwargs)

    got = tupled(jax.jit(jax.vmap(run))(several))
    twice = tupled(jax.vmap(jax.vmap(run))(several[None]))
    for place, each in enumerate(several):
        for output, nested, want in zip(got, twice, tupled(run(each))):
            np.testing.assert_allclose(output[place], want, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(nested[0, place], want, rtol=1e-5, atol=1e-6)


def test_vmap_over_weights_and_their_gradients() -> None:
    x, weights = normal(2, 3, 9), np.stack([normal(3, 1, 3), normal(3, 1, 3) + 1])

    def loss(x: Any, w: Any) -> Any:
        return (qj.avg_pool1d(x * w[:, 0, 1][:, None], 2) ** 2).sum()

    got = jax.vmap(jax.grad(loss, 1), (None, 0))(x, weights)
    for each, w in zip(got, weights):
        np.testing.assert_allclose(each, jax.grad(loss, 1)(x, w), rtol=1e-5)


def test_pools_meet_those_of_jax() -> None:
    x = jnp.asarray(normal(2, 3, 9, 8))
    windows = {
        "window_dimensions": (1, 1, 3, 3),
        "window_strides": (1, 1, 2, 2),
        "padding": ((0, 0), (0, 0), (1, 1), (1, 1)),
    }

    def theirs(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, **windows)

    def ours(x: Any) -> Any:
        return qj.max_pool2d(x, 3, 2, 1)

    np.testing.assert_array_equal(ours(x), theirs(x))
    weight = normal(2, 3, 5, 4)
    slopes = [jax.grad(lambda x, f=f: (f(x) * weight).sum())(x) for f in (ours, theirs)]
    np.testing.assert_allclose(*slopes, rtol=1e-6, atol=1e-6)


def test_an_empty_batch() -> None:
    assert qj.max_pool2d(jnp.zeros((0, 3, 4, 4), jnp.float32), 2).shape == (0, 3, 2, 2)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: qj.max_pool2d(normal(1, 1, 4, 4), 7), "it has to fit into the input of 4"),
    (lambda: qj.conv2d(normal(1, 2, 4, 4), normal(1, 3, 3, 3)), "weight|w"),
    (lambda: qj.avg_pool2d(jnp.zeros((1, 1, 4, 4), jnp.int32), 2), "the dtype of x is int32"),
    (lambda: qj.max_pool2d(normal(1, 4, 4), 2), "the rank of x"),
]


@pytest.mark.parametrize(("run", "says"), REFUSED)
def test_what_does_not_fit_is_refused_while_tracing(run: Callable[[], Any], says: str) -> None:
    with pytest.raises(qf.OperatorError, match=says):
        jax.jit(run)()


def test_values_that_do_not_fit_are_refused_with_the_same_sentence() -> None:
    indices = np.full((1, 1, 2, 2), 16)
    with pytest.raises(Exception, match="max_unpool: indices is -1 to -1; they have to lie in 0 to 15"):
        jax.block_until_ready(qj.max_unpool2d(normal(1, 1, 2, 2), indices, 2))


def test_there_is_no_second_derivative() -> None:
    def slope(x: Any) -> Any:
        return jax.grad(lambda x: (qj.lp_pool2d(x, 2, 2) ** 2).sum())(x).sum()

    with pytest.raises(qf.OperatorError, match="second derivative"):
        jax.grad(slope)(normal(1, 1, 4, 4))


def test_64_bits_have_to_be_switched_on() -> None:
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(qf.OperatorError, match="jax_enable_x64"):
        qj.max_pool2d(normal(1, 1, 4, 4), 2, return_indices=True)


def test_indices_are_those_of_torch() -> None:
    x = normal(2, 3, 4, 4)
    for got, want in zip(qj.max_pool2d(x, 2, return_indices=True), qf.max_pool2d(x, 2, return_indices=True)):
        np.testing.assert_array_equal(got, want)


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUATREFOIL_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(qf.QuatrefoilError, match="there is no compiler; apt install"):
        target.build()
