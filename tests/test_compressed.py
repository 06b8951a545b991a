"""Operators with compressed weights beyond conformance: what is refused, and that functions and forms agree."""

from __future__ import annotations

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import ops
from quatrefoil.errors import OperatorError
from quatrefoil.ops import compressed

X = np.ones((1, 3, 5, 5), np.float32)
VALUES = np.array([1, 2, 3, 4], np.float32)
COLUMNS = np.array([0, 26, 1, 0], np.int32)
OFFSETS = np.array([0, 2, 4], np.int32)
SHAPE = (2, 3, 3, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({1: np.array([0, 27, 1, 0], np.int32)}, "w_columns.*0 to 26"),
        ({1: np.array([0, -1, 1, 0], np.int32)}, "w_columns.*0 to 26"),
        ({1: COLUMNS.astype(np.int64)}, "dtype of w_columns"),
        ({1: COLUMNS[:3]}, "shape of w_columns"),
        ({2: np.array([0, 5, 4], np.int32)}, "w_offsets.*without falling"),
        ({2: np.array([0, 2, 3], np.int32)}, "w_offsets.*rise from 0 to 4"),
        ({2: OFFSETS[:2]}, "shape of w_offsets"),
        ({0: VALUES.astype(np.float64)}, "dtype of w_values"),
        ({0: VALUES[:0].reshape(0, 1)}, "shape of w_values"),
        ({"x": X.astype(np.float64)}, "dtype of x"),
        ({"weight_shape": (2, 3, 3)}, "w_shape"),
        ({"weight_shape": (2, 2, 3, 3)}, "sparse_conv: w's second axis"),
        ({"bias": np.zeros(3, np.float32)}, "sparse_conv: the shape of bias"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict, says: str) -> None:
    parts = [change.get(i, part) for i, part in enumerate((VALUES, COLUMNS, OFFSETS))]
    given = {"x": X, "weight_shape": SHAPE} | {name: value for name, value in change.items() if isinstance(name, str)}
    for backend in ("cpu", "asic"):
        with pytest.raises(OperatorError, match=says):
            qf.sparse_conv(weight=tuple(parts), backend=backend, **given)
    with pytest.raises(OperatorError, match=says):
        qf.plan(qf.sparse_conv, weight=tuple(parts), **given)


@pytest.mark.parametrize(
    ("codes", "codebook", "says"),
    [
        (np.full(SHAPE, 4, np.uint8), np.zeros(4, np.float32), "w_codes is up to 4; the codebook has 4 entries"),
        (np.zeros(SHAPE, np.int8), np.zeros(4, np.float32), "dtype of w_codes"),
        (np.zeros(SHAPE, np.uint8), np.zeros(257, np.float32), "shape of w_codebook.*1 to 256"),
        (np.zeros(SHAPE, np.uint8), np.zeros(0, np.float32), "shape of w_codebook.*1 to 256"),
        (np.zeros(SHAPE, np.uint8), np.zeros(4), "dtype of w_codebook"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes: np.ndarray, codebook: np.ndarray, says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        qf.shared_conv(X, codes, codebook)


def test_a_sparse_weight_is_the_dense_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 9, 7), np.float32)
    w = rng.standard_normal((6, 4, 3, 3), np.float32) * (rng.random((6, 4, 3, 3)) < 0.2)
    given = {"stride": 2, "padding": 1, "groups": 2, "activation": "Relu"}
    y = qf.sparse_conv(x, qf.sparse_weight(w), w.shape, **given)
    np.testing.assert_allclose(y, qf.conv2d(x, w, **given), rtol=1e-5, atol=1e-5)
    # a dense layer over rows
    rows, matrix = x[:, :, 0, 0], w.reshape(27, 8)
    y = qf.sparse_conv(rows[..., None], qf.sparse_weight(matrix), (*matrix.shape, 1))[..., 0]
    np.testing.assert_allclose(y, rows @ matrix.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("base", "sparse", "shared"), [
    (qf.rnn, qf.sparse_elman, qf.shared_rnn), (qf.lstm, qf.sparse_lstm, qf.shared_lstm),
    (qf.gru, qf.sparse_gru, qf.shared_gru),
])  # fmt: skip
def test_compressed_recurrent_layers_are_the_dense_ones(base: object, sparse: object, shared: object) -> None:
    rng, gates = np.random.default_rng(1), {"rnn": 1, "lstm": 4, "gru": 3}[base.__name__]
    x = rng.standard_normal((5, 2, 7), np.float32)
    codes = [rng.integers(0, 4, (2, gates * 6, n)).astype(np.uint8) for n in (7, 6)]
    books = [np.array([0, -0.3, 0, 0.4], np.float32), np.array([0.2, 0, 0, -0.5], np.float32)]
    w, r = (book[code] for book, code in zip(books, codes))
    given = {"direction": "bidirectional", "initial_h": rng.standard_normal((2, 2, 6), np.float32)}
    lengths = {"sequence_lens": np.array([5, 3], np.int32)}
    wanted = base(x, w, r, **given, **lengths)
    rows = sparse(x, qf.sparse_weight(w, 2), qf.sparse_weight(r, 2), hidden_size=6, **given, **lengths)
    coded = shared(x, (codes[0], books[0]), (codes[1], books[1]), **given, **lengths)
    for want, *got in zip(wanted, rows, coded):
        for each in got:
            np.testing.assert_allclose(each, want, rtol=2e-5, atol=1e-5)
    with pytest.raises(OperatorError, match="sequence_lens is 3 to 6"):
        shared(x, (codes[0], books[0]), (codes[1], books[1]), sequence_lens=np.array([6, 3], np.int32), **given)
    with pytest.raises(OperatorError, match="layout"):
        shared(x, (codes[0], books[0]), (codes[1], books[1]), layout=1, **given)
    with pytest.raises(OperatorError, match="hidden_size is missing"):
        sparse(x, qf.sparse_weight(w, 2), qf.sparse_weight(r, 2), **given)


def test_work_counts_what_is_stored() -> None:
    case = next(case for case in ops.SPECS["sparse_conv"].cases() if case.name == "grouped")
    problem = ops.canonical(case.op, case.inputs, case.attributes)
    assert ops.SPECS["sparse_conv"].work(problem).macs == problem.input(1).size * 8 * 10
    assert compressed.base(problem) == ops.parse(compressed.base(problem).text)
