"""Gradients of recurrent layers in CUDA C++ (``src/recurrent_gradient.cu``), float32.

Two launches a step, backwards, for both directions (four for gru without linear_before_reset), then one product over all steps
for each gradient of a parameter and direction. Right first: the products are plain tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from quatrefoil.gpu.conv import INT32_LIMIT, optional
from quatrefoil.gpu.launch import MAX_GRID_YZ, Device, Launch, blocks
from quatrefoil.gpu.rnn import BLOCK, FUNCTION, recurrence
from quatrefoil.ops import rnn
from quatrefoil.ops import rnn_gradient as semantics
from quatrefoil.ops.rnn import RecurrentGeometry
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run

SIDE = 16  # of a product's tile; as in src/recurrent_gradient.cu


def kernels(device: Device) -> tuple[Kernel, ...]:
    """The declarations, to be run on ``device``."""
    summary = "two launches a step backwards, then a product for each gradient"
    return tuple(
        Kernel(
            f"{op}_gradient_steps_tnc_f32_cuda",
            op + semantics.GRADIENT,
            _accepts,
            partial(_prepare, device),
            summary=summary,
        )
        for op in rnn.GATES
    )


def _accepts(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes in float32 and x is {problem.dtype}; convert x, or use backend='cpu'")
    g = semantics.geometry(problem)
    rows = g.steps * g.batch
    if max(rows, g.slots * g.hidden, g.inputs, g.batch * g.hidden) >= INT32_LIMIT:
        return Reject(f"its rows and columns have 32 bits and {problem.input(rnn.X)} or the layer have more")
    if max(rows, g.gates * g.hidden) > MAX_GRID_YZ * SIDE:
        return Reject(f"CUDA takes {MAX_GRID_YZ} blocks on a grid's second axis; {rows} steps of sequences need more")
    return None


def _segments(op: str, g: RecurrentGeometry) -> tuple[tuple[int, int, int], ...]:
    """Columns of the gates' gradients that go through rows of R: first column, first row, how many."""
    if op != "gru":
        return ((0, 0, g.gates * g.hidden),)
    return ((0, 0, 2 * g.hidden), ((3 if g.linear_before_reset else 2) * g.hidden, 2 * g.hidden, g.hidden))


def _prepare(device: Device, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    op, g, wanted = problem.op.removesuffix(semantics.GRADIENT), semantics.geometry(problem), semantics.wanted(problem)
    struct = recurrence(g, 0)
    functions = device.put(
        np.array([[(f.code, f.alpha, f.beta) for f in row] for row in g.activations], FUNCTION).view(np.int32)
    )
    unit_grid = (blocks(g.batch * g.hidden, BLOCK), g.directions)
    width, height, rows = g.slots * g.hidden, g.gates * g.hidden, g.steps * g.batch
    twice = op == "gru" and not g.linear_before_reset
    segments = _segments(op, g)

    def load(name: str) -> Launch:
        return device.load("recurrent_gradient.cu", name, {"BATCH_TILE": 1})

    def by_unit(name: str) -> Launch:
        return partial(load(name), unit_grid, (BLOCK,), struct)

    states_before, gates_of, through = (
        by_unit("gradient_states"),
        by_unit(f"{op}_gradient_gates"),
        by_unit("gradient_through"),
    )
    make_cells = by_unit("gradient_cells") if op == "lstm" else None
    reset_of = by_unit("gru_gradient_reset") if twice else None
    multiply, bias_of, peepholes_of = load("gradient_product"), load("gradient_bias"), load("gradient_peepholes")
    zeros = np.zeros((g.directions, g.batch, g.hidden), np.float32)

    def product(a: Array, b: Array, out: Array, lengths: Array | None, *, by_row: bool, add: bool = False,
                first: int = 0, count: int = height) -> None:  # fmt: skip
        """out = columns ``first`` to first + count of the gates' gradients a (rows, width) times b, or by columns: the same
        turned round, times b."""
        tall, deep = (rows, count) if by_row else (count, rows)
        strides = (width, 1) if by_row else (1, width)
        sizes = [np.int32(n) for n in (tall, b.shape[-1], deep)]
        grid = (blocks(b.shape[-1], SIDE), blocks(tall, SIDE))
        flags = (np.int32(max(g.batch, 1)), np.int32(by_row), np.int32(add))
        multiply(grid, (BLOCK,), *sizes, *map(np.int64, strides), *flags, lengths, a[first:], b, out)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        made = {position: device.empty(tensor) for position, tensor in zip(wanted, problem.outputs)}
        if not rows:
            _without_rows(made, inputs)
            return tuple(made.values())
        lengths, y, sums = optional(inputs, rnn.LENGTHS), inputs[semantics.Y], inputs[semantics.SUMS]
        dy, p = optional(inputs, semantics.DY), optional(inputs, rnn.P)
        dh, dc = (_copied(device, optional(inputs, place), zeros) for place in (semantics.DY_H, semantics.DY_C))

        def scratch(columns: int) -> Array:
            return device.empty(Tensor("float32", (g.directions, rows, columns)))

        gates, before = scratch(width), scratch(g.hidden)
        states_before(lengths, y, optional(inputs, rnn.INITIAL_H), before)
        resets = scratch(g.hidden) if twice else None
        cells = None
        if make_cells is not None:
            cells = scratch(g.hidden), scratch(g.hidden)
            make_cells(functions, lengths, sums, p, optional(inputs, rnn.INITIAL_C), *cells)
        for s in map(np.int32, range(g.steps)):
            if cells is not None:
                gates_of(s, functions, lengths, sums, p, *cells, dy, dh, dc, gates)
            elif op == "gru":
                gates_of(s, np.int32(g.slots), functions, lengths, sums, before, dy, dh, gates, resets, dc)
            else:
                gates_of(s, functions, lengths, sums, dy, dh, gates)
            for first, row, count in segments[::-1]:
                sizes = [np.int32(n) for n in (width, first, count, height, row)]
                to = dc if reset_of is not None and row else dh  # gru has no cells: dc takes the gradient of r h
                through(s, *sizes, lengths, gates, inputs[rnn.R], to)
                if reset_of is not None and row:
                    reset_of(s, functions, lengths, sums, before, dc, dh, gates)
        for d in range(g.directions):
            flat = gates[d].reshape(-1)
            if rnn.X in made:
                product(flat, inputs[rnn.W][d], made[rnn.X], lengths, by_row=True, add=d > 0)  # type: ignore[index]
            if rnn.W in made:
                x = inputs[rnn.X].reshape(rows, g.inputs)  # type: ignore[union-attr]
                product(flat, x, made[rnn.W][d], lengths, by_row=False)
            if rnn.B in made:
                for first, count, to in (
                    (0, height, 0),
                    *((first, count, height + row) for first, row, count in segments),
                ):
                    sizes = [np.int32(n) for n in (rows, width, first, count, to)]
                    bias_of((blocks(count, BLOCK),), (BLOCK,), *sizes, flat, made[rnn.B][d])
            if rnn.R in made:
                for first, row, count in segments:
                    states = resets if resets is not None and row else before
                    product(flat, states[d], made[rnn.R][d, row:], lengths, by_row=False, first=first, count=count)
            if rnn.P in made and cells is not None:
                sizes = [np.int32(n) for n in (rows, g.hidden)]
                peepholes_of(
                    (blocks(g.hidden, BLOCK),), (BLOCK,), *sizes, flat, cells[0][d], cells[1][d], made[rnn.P][d]
                )
        made.update({place: state for place, state in ((rnn.INITIAL_H, dh), (rnn.INITIAL_C, dc)) if place in made})
        return tuple(made.values())

    return run


def _copied(device: Device, state: Array | None, zeros: np.ndarray) -> Array:
    return device.put(zeros) if state is None else state.copy()


def _without_rows(made: dict[int, Array], inputs: Sequence[Array | None]) -> None:
    """Without a step of a sequence, gradients of states pass, and all others are zero."""
    for position, array in made.items():
        source = {rnn.INITIAL_H: semantics.DY_H, rnn.INITIAL_C: semantics.DY_C}.get(position)
        given = None if source is None else optional(inputs, source)
        array[...] = 0.0 if given is None else given
