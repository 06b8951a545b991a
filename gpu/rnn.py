"""Recurrent layers in CUDA C++ (``src/input_product.cu``, ``rnn.cu``, ``lstm.cu``, ``gru.cu``), float32.

First the inputs' part of all steps and directions as one matrix product, then one launch a step for both directions
(two for gru without linear_before_reset). The previous state goes in one array and the new one out into another, so
that no block waits for the others. Weights are packed once, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from quatrefoil.gpu.conv import INT32_LIMIT, SMALL_TILE, optional
from quatrefoil.gpu.launch import MAX_GRID_YZ, Device, Launch, blocks
from quatrefoil.ops import rnn as semantics
from quatrefoil.ops.rnn import RecurrentGeometry
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run

LANES = 32  # of a block: the gates of its hidden units; as in src/recurrent.cuh
BLOCK = 256

# struct Recurrence and struct Function of src/recurrent.cuh
RECURRENCE = np.dtype(
    [
        *((name, "i4") for name in ("steps", "batch", "hidden", "padded_hidden", "row")),
        ("reverse", "i4", 2),
        ("input_forget", "i4"),
        ("clip", "f4"),
    ]
)
FUNCTION = np.dtype([("code", "i4"), ("alpha", "f4"), ("beta", "f4")])


def kernels(device: Device) -> list[Kernel]:
    """The declarations, to be run on ``device``."""
    summary = "all inputs in one product, then a launch a step"
    return [
        Kernel(f"{op}_steps_tnc_f32_cuda", op, _accepts, partial(_prepare, device), summary=summary)
        for layer in ("rnn", "lstm", "gru")
        for op in (layer, layer + semantics.TRAINING)
    ]


def _accepts(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes in float32 and x is {problem.dtype}; convert x, or use backend='cpu'")
    g = semantics.geometry(problem)
    columns = g.directions * blocks(g.hidden, 1) * 4 + 8 * LANES  # no fewer than the packed columns
    if max(columns * max(g.hidden, g.inputs), g.steps * g.batch) >= INT32_LIMIT:
        return Reject(f"its rows and columns have 32 bits and {problem.input(semantics.W)} or x have more")
    if g.batch > MAX_GRID_YZ or columns > MAX_GRID_YZ * SMALL_TILE.n:
        return Reject(f"CUDA takes {MAX_GRID_YZ} blocks on a grid's second axis; {g.batch} sequences need more")
    return None


def batch_tile(batch: int) -> int:
    """How many sequences share one reading of the recurrent weights."""
    return 1 if batch == 1 else 4 if batch <= 8 else 16


def packed_columns(gates: np.ndarray) -> np.ndarray:
    """(G, H, K) as (K, columns) in the blocks of 32 columns that src/recurrent.cuh describes."""
    count, hidden, depth = gates.shape
    units = LANES // count
    packed = np.zeros((depth, blocks(hidden, units), LANES), np.float32)
    rounded = np.zeros((count, packed.shape[1] * units, depth), np.float32)
    rounded[:, :hidden] = gates
    by_block = rounded.reshape(count, packed.shape[1], units, depth).transpose(3, 1, 2, 0)
    packed[:, :, : units * count] = by_block.reshape(depth, packed.shape[1], units * count)
    return packed.reshape(depth, -1)


@dataclass(frozen=True, slots=True)
class Matrices:
    """The packed weights of a layer.

    inputs: (I rounded up, columns of all directions); bias: (columns). For each group of gates that one launch
    computes, in the columns' order within a direction: recurrent (directions, H rounded up to 4, columns of the group).
    """

    inputs: np.ndarray
    bias: np.ndarray
    recurrent: tuple[np.ndarray, ...]
    candidate_bias: np.ndarray

    @property
    def direction_columns(self) -> int:
        return sum(matrix.shape[2] for matrix in self.recurrent)


def pack(g: RecurrentGeometry, w: np.ndarray, r: np.ndarray, b: np.ndarray | None) -> Matrices:
    """Weights and biases as the kernels want them. gru's candidate with linear_before_reset keeps its recurrent bias."""
    two_launches = g.gates == 3 and not g.linear_before_reset
    groups = (slice(0, 2), slice(2, 3)) if two_launches else (slice(0, g.gates),)
    bias = np.zeros((g.directions, 2 * g.gates * g.hidden), np.float32) if b is None else b
    input_bias, recurrent_bias = bias.reshape(g.directions, 2, g.gates, g.hidden).transpose(1, 0, 2, 3)
    candidate_bias = recurrent_bias[:, -1].copy()
    added = input_bias + recurrent_bias
    if g.linear_before_reset:
        added[:, -1] = input_bias[:, -1]
    by_gate = w.reshape(g.directions, g.gates, g.hidden, g.inputs)
    augmented = np.concatenate([by_gate, added[..., None]], axis=3)  # packed together: the last row is the bias
    columns = np.concatenate(
        [packed_columns(augmented[d, part]) for d in range(g.directions) for part in groups], axis=1
    )
    depth = blocks(max(g.inputs, 1), SMALL_TILE.k) * SMALL_TILE.k
    width = blocks(columns.shape[1], SMALL_TILE.n) * SMALL_TILE.n
    inputs, total = np.zeros((depth, width), np.float32), np.zeros(width, np.float32)
    inputs[: g.inputs, : columns.shape[1]], total[: columns.shape[1]] = columns[:-1], columns[-1]
    rows = np.zeros((g.directions, g.gates, g.hidden, blocks(g.hidden, 4) * 4), np.float32)
    rows[..., : g.hidden] = r.reshape(g.directions, g.gates, g.hidden, g.hidden)
    recurrent = tuple(np.stack([packed_columns(rows[d, part]) for d in range(g.directions)]) for part in groups)
    return Matrices(inputs, total, recurrent, candidate_bias)


def recurrence(g: RecurrentGeometry, row: int) -> np.ndarray:
    """struct Recurrence. row: columns of the input product of all directions."""
    reverse = (*(int(backwards) for backwards in g.reverse), 0)[:2]
    padded = blocks(g.hidden, 4) * 4
    return np.array((g.steps, g.batch, g.hidden, padded, row, reverse, int(g.input_forget), g.clip), RECURRENCE)


@dataclass(frozen=True, slots=True)
class Buffers:
    """What the steps of one run read and write beside the states."""

    sums: Array  # the input product
    lengths: Array | None
    cells: Array | None
    y: Array
    kept: Array | None
    """The sums, of a training form."""


Step = Callable[[np.int32, Buffers, Array, Array], None]
"""``step(index, buffers, h, new_h)`` launches one step of all directions."""


def _step(device: Device, problem: Problem, g: RecurrentGeometry, matrices: Matrices, peepholes: Array | None) -> Step:
    constants = {"BATCH_TILE": batch_tile(g.batch)}
    struct, weights = recurrence(g, matrices.inputs.shape[1]), [device.put(matrix) for matrix in matrices.recurrent]
    functions = device.put(
        np.array([[(f.code, f.alpha, f.beta) for f in row] for row in g.activations], FUNCTION).view(np.int32)
    )
    strides = [np.int32(matrix.shape[2]) for matrix in matrices.recurrent]

    layer = semantics.layer(problem.op)

    def load(name: str, stride: np.int32) -> Launch:
        grid = (int(stride) // LANES, blocks(g.batch, constants["BATCH_TILE"]), g.directions)
        return partial(device.load(f"{layer}.cu", name, constants), grid, (BLOCK,), struct)

    if len(weights) == 2:
        gates, candidate = load("gru_gates", strides[0]), load("gru_candidate", strides[1])
        columns = np.int32(matrices.direction_columns)

        def step_twice(index: np.int32, to: Buffers, h: Array, new_h: Array) -> None:
            updates, reset_h = device.empty(problem.outputs[1]), device.empty(problem.outputs[1])
            gates(index, strides[0], columns, to.sums, weights[0], functions, to.lengths, h, updates, reset_h, to.kept)
            recurrent = (updates, reset_h, h, new_h, to.y, to.kept)
            candidate(index, strides[1], columns, to.sums, weights[1], functions, to.lengths, *recurrent)

        return step_twice

    kernel, [stride], [matrix] = load(f"{layer}_step", strides[0]), strides, weights
    candidate_bias = device.put(matrices.candidate_bias)

    def step_once(index: np.int32, to: Buffers, h: Array, new_h: Array) -> None:
        extra = {"rnn": (), "lstm": (peepholes, to.cells), "gru": (candidate_bias,)}[layer]
        kernel(index, stride, to.sums, matrix, functions, to.lengths, *extra, h, new_h, to.y, to.kept)

    return step_once


def _prepare(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g, layer = semantics.geometry(problem), semantics.layer(problem.op)
    given = {i: device.get(parameters[i]) for i in (semantics.W, semantics.R, semantics.B) if i in parameters}
    matrices = pack(g, given[semantics.W], given[semantics.R], given.get(semantics.B))
    step = _step(device, problem, g, matrices, parameters.get(semantics.P))
    product = device.load("input_product.cu", "input_product", SMALL_TILE.constants)
    weights, bias = device.put(matrices.inputs), device.put(matrices.bias)
    (depth, width), rows = matrices.inputs.shape, g.steps * g.batch
    product_grid = (blocks(rows, SMALL_TILE.m), width // SMALL_TILE.n)
    sizes = [np.int32(n) for n in (rows, g.inputs, depth, width)]
    zero_state = device.put(np.zeros(problem.outputs[1].shape, np.float32))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        initial_h, initial_c = optional(inputs, semantics.INITIAL_H), optional(inputs, semantics.INITIAL_C)
        h = (zero_state if initial_h is None else initial_h).copy()
        cells = (zero_state if initial_c is None else initial_c).copy() if layer == "lstm" else None
        y = device.empty(problem.outputs[0])
        kept = None if layer == problem.op else device.empty(problem.outputs[-1])
        if rows:
            sums, new_h = device.empty(Tensor("float32", (rows, width))), device.empty(problem.outputs[1])
            product(product_grid, (SMALL_TILE.threads,), inputs[semantics.X], weights, bias, sums, *sizes)
            buffers = Buffers(sums, optional(inputs, semantics.LENGTHS), cells, y, kept)
            for index in range(g.steps):
                step(np.int32(index), buffers, h, new_h)
                h, new_h = new_h, h
        outputs = (y, h) if cells is None else (y, h, cells)
        return outputs if kept is None else (*outputs, kept)

    return run
