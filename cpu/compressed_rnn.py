"""The CPU's kernels of recurrent layers with compressed weights, in order of priority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from quatrefoil.cpu import compressed_limits, instruction_set
from quatrefoil.cpu.compressed_limits import SHORT_BOOK
from quatrefoil.cpu.shared_conv import padded_book
from quatrefoil.ops import compressed
from quatrefoil.ops import rnn as semantics
from quatrefoil.ops.sparse import Rows
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run

MANY_SEQUENCES = 64
"""From which on a table of more than SHORT_BOOK entries costs a few per cent."""

BLOCK_VECTORS = 4  # of units in a block of a layer of one gate: src/rnn_layer.h


class Slices(NamedTuple):
    """Compressed rows in slices of a vector's lanes: RnnSlices of src/rnn.h."""

    starts: np.ndarray
    values: np.ndarray
    columns: np.ndarray
    gaps: np.ndarray


def slices_of(rows: Rows, shape: Sequence[int], gates: int, lanes: int) -> Slices:
    """The slices of a weight (directions, gates * hidden, depth). Rows are ordered by direction, vector of units and gate."""
    directions, all_rows, depth = shape
    hidden = all_rows // gates
    vectors = -(-hidden // lanes)
    if gates == 1:  # whole blocks of several vectors
        blocks = -(-vectors // BLOCK_VECTORS)
        vectors = blocks * -(-vectors // blocks)
    # the row in each place of (direction, vector, gate, lane); rows beyond the last unit are empty ones
    unit = np.arange(vectors)[:, None, None] * lanes + np.arange(lanes)
    row = np.arange(directions)[:, None, None, None] * all_rows + np.arange(gates)[:, None] * hidden + unit
    there = np.broadcast_to(unit < hidden, row.shape).reshape(-1, lanes)
    row = np.where(there, row.reshape(-1, lanes), 0)
    lengths = np.where(there, np.diff(rows.offsets)[row], 0).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths.max(axis=1))]).astype(np.int64)
    values = np.zeros((starts[-1], lanes), np.float32)
    columns = np.zeros((starts[-1], lanes), np.uint16 if depth <= 1 << 16 else np.int32)
    # from each stored value's place among the rows to its place among the slices
    counts = lengths.reshape(-1)
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    source = np.repeat(rows.offsets[row].reshape(-1), counts) + inside
    place = np.repeat(np.repeat(starts[:-1], lanes), counts) + inside
    lane = np.repeat(np.tile(np.arange(lanes), len(lengths)), counts)
    values[place, lane] = rows.values[source]
    columns[place, lane] = rows.columns[source]
    complete = _distinct(rows, depth)[row] == depth
    return Slices(starts, values, columns, np.where(there & ~complete, -1, 0).astype(np.int32))


def _distinct(rows: Rows, depth: int) -> np.ndarray:
    """How many columns each row stores."""
    counts = np.diff(rows.offsets)
    if counts.max(initial=0) < depth:
        return counts  # none has them all, whatever stands twice
    places = np.repeat(np.arange(len(counts), dtype=np.int64), counts) * depth + rows.columns
    return np.bincount(np.unique(places) // depth, minlength=len(counts))


def _run(
    problem: Problem,
    parameters: Mapping[int, np.ndarray],
    form: str,
    weights: Sequence[object],
    codes: Sequence[np.ndarray | None],
    finite: bool,
) -> Run:
    from quatrefoil.cpu import _rnn

    described, base = compressed.FORMS[problem.op], compressed.base(problem)
    vectors: list[np.ndarray | None] = [None, None]
    for at, position in enumerate((semantics.B, semantics.P)):
        if position < len(described.places) and described.place(position) in parameters:  # p is lstm's alone
            vectors[at] = np.ascontiguousarray(parameters[described.place(position)])
    run: Run = _rnn.Layer(
        instruction_set.index(), base.op, semantics.geometry(base), base.outputs[0].numpy_dtype, (*codes, *vectors), False,
        form, weights, finite, described.place(semantics.LENGTHS),
    ).run  # fmt: skip
    return run


def _prepare_shared(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    stored = [compressed.shared(problem, weight, parameters) for weight in compressed.FORMS[problem.op].weights]
    bits = 4 if max(each.codebook.size for each in stored) <= SHORT_BOOK else 8
    books = [padded_book(each.codebook, bits) for each in stored]
    codes = [np.ascontiguousarray(each.codes) for each in stored]
    return _run(problem, parameters, f"codes{bits}", books, codes, bool(np.isfinite(books[1]).all()))


def _prepare_sparse(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    form = compressed.FORMS[problem.op]
    gates, lanes = semantics.GATES[form.base.op], instruction_set.lanes()
    slices = [
        slices_of(
            compressed.rows(problem, weight, parameters), problem.ints(f"{weight.name}_shape"), gates, lanes
        )
        for weight in form.weights
    ]  # fmt: skip
    return _run(problem, parameters, "rows", slices, (None, None), bool(np.isfinite(slices[1].values).all()))


def _stored_share(problem: Problem) -> float:
    form = compressed.FORMS[problem.op]
    whole = sum(prod(compressed.weight_shape(problem, weight)) for weight in form.weights)
    return sum(problem.input(form.place(weight.position)).size for weight in form.weights) / whole


def _recurrent_bytes(problem: Problem) -> int:
    """Of the decoded recurrent weights, which every step reads."""
    return 4 * prod(compressed.weight_shape(problem, compressed.FORMS[problem.op].weights[1]))


def _accepts_shared(problem: Problem) -> Reject | None:
    form = compressed.FORMS[problem.op]
    batch, far = problem.input(semantics.X).shape[1], compressed_limits.limits().coded_steps.long
    entries = max(problem.input(form.place(weight.position) + 1).size for weight in form.weights)
    dense = _recurrent_bytes(problem)
    if entries > SHORT_BOOK and batch < MANY_SEQUENCES and (far is None or dense < far):
        return Reject(
            f"{entries} entries take longer to decode than {dense >> 10} KiB of dense weights to read for {batch} sequences"
        )
    return None


def _accepts_sparse(problem: Problem) -> Reject | None:
    share = _stored_share(problem)
    most = compressed_limits.most_stored(problem.input(semantics.X).shape[1], _recurrent_bytes(problem))
    if share > most:
        return Reject(f"{share:.0%} of the weights are stored, and from {most:.0%} on dense products are faster")
    return None


KERNELS: list[Kernel] = [
    kernel
    for layer in semantics.GATES
    for kernel in (
        Kernel(f"{compressed.OPS[compressed.SHARED, layer]}_lookup_tnc_f32_simd", compressed.OPS[compressed.SHARED, layer],
               _accepts_shared, _prepare_shared, summary="weights stay codes in memory, decoded on their way into the products"),
        Kernel(f"{compressed.OPS[compressed.SPARSE, layer]}_rows_tnc_f32_simd", compressed.OPS[compressed.SPARSE, layer],
               _accepts_sparse, _prepare_sparse,
               summary="compressed rows, a lane each; inputs of many steps at once, transposed", beyond="zeros are left out"),
    )
]  # fmt: skip
