"""Sparse recurrent layers beyond conformance: what is refused, plans, and the work that they save."""

from __future__ import annotations

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import backends
from quatrefoil.asic_sim.backend import simulate
from quatrefoil.dispatch import Call
from quatrefoil.errors import OperatorError

X = np.zeros((2, 1, 3), np.float32)
VALUES = np.array([1, 2, 3, 4], np.float32)
COLUMNS = np.array([0, 2, 1, 0], np.int32)
OFFSETS = np.array([0, 2, 2, 4], np.int32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": np.array([0, 3, 1, 0], np.int32)}, "columns.*0 to 2"),
        ({"columns": np.array([0, -1, 1, 0], np.int32)}, "columns.*0 to 2"),
        ({"columns": COLUMNS.astype(np.int64)}, "dtype of columns"),
        ({"columns": COLUMNS[:3]}, "shape of columns"),
        ({"offsets": np.array([0, 3, 2, 4], np.int32)}, "offsets.*without falling"),
        ({"offsets": np.array([1, 2, 2, 4], np.int32)}, "offsets.*rise from 0 to 4"),
        ({"offsets": np.array([0, 2, 2, 5], np.int32)}, "offsets.*rise from 0 to 4"),
        ({"offsets": OFFSETS[:3]}, "shape of offsets"),
        ({"x": X.astype(np.float64)}, "dtype of x"),
        ({"x": X[0]}, "shape of x"),
        ({"leak": 0.0}, "leak"),
        ({"leak": float("nan")}, "leak"),
        ({"activation": "Wave"}, "activation"),
        ({"initial_h": np.zeros((2, 3), np.float32)}, "shape of initial_h"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "fpga", "asic"])
def test_what_does_not_fit_is_refused(backend: str, change: dict, says: str) -> None:
    if not backends.get(backend).probe().ready:
        pytest.skip(f"{backend} cannot run here: {backends.get(backend).probe().detail}")
    given = {"x": X, "values": VALUES, "columns": COLUMNS, "offsets": OFFSETS} | change
    arrays = [given.pop(name) for name in ("x", "values", "columns", "offsets")]
    with pytest.raises(OperatorError, match=says):
        qf.sparse_rnn(*arrays, backend=backend, **given)
    with pytest.raises(OperatorError, match=says):
        qf.plan(qf.sparse_rnn, *arrays, backend=backend, **given)


def test_a_plan_keeps_its_matrix() -> None:
    values = VALUES.copy()
    plan = qf.plan(qf.sparse_rnn, X + 1, values, COLUMNS, OFFSETS, leak=0.5)
    wanted = qf.sparse_rnn(X + 1, VALUES, COLUMNS, OFFSETS, leak=0.5)
    values[:] = 0
    np.testing.assert_array_equal(plan(X + 1), wanted)


def test_each_instruction_set_gives_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrefoil.cpu import instruction_set

    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 21, 50), np.float32)
    columns = rng.integers(0, 50, 300).astype(np.int32)
    offsets = np.sort(rng.integers(0, 301, 51)).astype(np.int32)
    offsets[[0, -1]] = 0, 300
    values = rng.uniform(-0.4, 0.4, 300).astype(np.float32)
    whole = qf.sparse_rnn(x, values, columns, offsets, leak=0.7)
    # a sequence alone takes the way of single sequences
    alone = [qf.sparse_rnn(x[:, n : n + 1], values, columns, offsets, leak=0.7) for n in range(21)]
    np.testing.assert_allclose(np.concatenate(alone, 1), whole, rtol=0, atol=1e-6)
    monkeypatch.setenv(instruction_set.VARIABLE, "portable")
    np.testing.assert_allclose(qf.sparse_rnn(x, values, columns, offsets, leak=0.7), whole, rtol=0, atol=1e-6)


def test_the_simulated_chip_does_less_for_fewer_values() -> None:
    def cycles(count: int) -> int:
        tensors = (qf.Tensor("float32", (5, 2, 100)), qf.Tensor("float32", (count,)), qf.Tensor("int32", (count,)),
                   qf.Tensor("int32", (101,)))  # fmt: skip
        return simulate(Call("sparse_rnn", tensors, {"leak": 0.5}).problem(), "edge").cycles

    assert cycles(500) < cycles(2000) < cycles(10000)
