"""Recurrent layers on the systolic array: rnn, lstm and gru.

For each direction one matrix product computes W x for all steps; then every step is a product with R, which cannot
begin before the vector unit has left the step before it, followed by the gates on the vector unit. A gru that is not
linear_before_reset has two dependent products a step. All T steps run whatever sequence_lens says: a sequence that is
over keeps its state (the vector unit masks it). The directions run one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from quatrefoil.asic_sim.compression import Lying
from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import (
    ArrayPart,
    Compute,
    Setting,
    activation_cycles,
    native,
    native_stored,
    product_stage,
    reject_dtype,
    reject_size,
    run_simulated,
)
from quatrefoil.ops import fixed as fixed_ops
from quatrefoil.ops import rnn as ops
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

Inputs = Sequence[np.ndarray | None]

WEIGHTS = frozenset((ops.W, ops.R))


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes of an element: of x, W, R, the sums and the states."""

    x: int
    w: int
    r: int
    sums: int
    state: int


def layer(
    problem: Problem,
    g: ops.RecurrentGeometry | fixed_ops.RecurrentGeometry,
    design: Hardware,
    setting: Setting,
    widths: Widths,
    products: Sequence[Sequence[tuple[int, int]]],
) -> list[ArrayPart]:
    """Each direction of a layer. products: those with R in a step of it, as their columns and the cycles of a lane for a
    hidden unit behind them."""
    operand_cycles = setting.operand_cycles(design)
    width = g.gates * g.hidden
    weight_memory = design.weight_sram_kib * 1024
    states = sum(problem.input(i).size for i in (ops.INITIAL_H, ops.INITIAL_C) if problem.has(i)) // g.directions
    # W x of all steps waits on the chip where half of the activation memory holds it, else in DRAM
    stays = widths.sums * g.steps * g.batch * width <= setting.activation_memory(design) // 2

    def lying(position: int, direction: int, depth: int, columns: slice, weight_bytes: int) -> Lying:
        shape = (1, depth, columns.stop - columns.start)
        return setting.lying(design, position, shape, lambda array: array[direction, columns].T, weight_bytes)

    def whole(direction: int) -> Any:
        weights = lying(ops.W, direction, g.inputs, slice(0, width), widths.w)
        return product_stage(
            g.steps * g.batch,
            g.inputs,
            width,
            activation_bytes=widths.x,
            weight_bytes=widths.w,
            operand_cycles=operand_cycles,
            output_bytes=0 if stays else widths.sums,
            opening_bytes=states * widths.state,
            weights_kept=weights.group_bytes <= weight_memory,
            activations_here=ops.X in setting.kept.here,
            stored=native_stored(weights),
        )

    def step(columns: int, lane_cycles: int, weights: Lying, *, kept: bool, last: bool) -> Any:
        return product_stage(
            g.batch,
            g.hidden,
            columns,
            activation_bytes=widths.state,
            activations_here=True,  # the hidden state is on the chip
            weight_bytes=widths.r,
            operand_cycles=operand_cycles,
            output_bytes=0,
            dependent=True,
            weights_kept=kept,
            stored=native_stored(weights),
            opening_bytes=0 if stays else widths.sums * g.batch * columns,
            closing_elements=g.batch * g.hidden,
            closing_lane_cycles=lane_cycles,
            closing_bytes=setting.kept.written(widths.state) * g.batch * g.hidden if last else 0,
            closing_kept_bytes=setting.kept.staying(widths.state) * g.batch * g.hidden if last else 0,
        )

    parts = []
    for direction, steps in enumerate(products):
        ends = list(accumulate(columns for columns, _ in steps))
        weights = [
            lying(ops.R, direction, g.hidden, slice(end - columns, end), widths.r)
            for end, (columns, _) in zip(ends, steps)
        ]
        kept = sum(each.group_bytes for each in weights) <= weight_memory
        stages = [
            step(*each, own, kept=kept, last=number == len(steps))
            for number, (each, own) in enumerate(zip(steps, weights), 1)
        ]
        parts.append(ArrayPart([([whole(direction)], 1), (stages, g.steps)]))
    return parts


def lower(problem: Problem, design: Hardware, setting: Setting) -> list[ArrayPart]:
    g = ops.geometry(problem)
    width = g.gates * g.hidden
    operands, rounds = setting.operands, setting.rounding_cycles()
    widths = Widths(
        x=operands.activation_bytes, w=operands.weight_bytes, r=operands.weight_bytes, sums=operands.sum_bytes,
        state=setting.width(problem.outputs[0]),
    )  # fmt: skip
    products = []
    for functions in g.activations:
        f, *others = (activation_cycles(function, design) for function in functions)
        clip = 1 if g.clip < float("inf") else 0
        if problem.op == "rnn":
            products.append([(width, clip + f + rounds)])
        elif problem.op == "lstm":
            through_f = 2 if g.input_forget else 3
            peepholes = through_f if problem.has(ops.P) else 0
            forget = 1 if g.input_forget else 0  # 1 - i
            # and three: two for c' = f c + i c~, one for o h(c')
            products.append([(width, through_f * (clip + f) + clip + sum(others) + peepholes + forget + 3 + rounds)])
        else:
            # z, r, and r times h (or R h); then the candidate, and (1 - z) h~ + z h in three
            gates, candidate = 2 * (clip + f) + 1, clip + sum(others) + 3 + rounds
            if g.linear_before_reset:
                products.append([(width, gates + candidate)])
            else:
                products.append([(2 * g.hidden, gates + rounds), (g.hidden, candidate)])
    return layer(problem, g, design, setting, widths, products)


def prepare(kernel: str, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    weights = {position: parameters[position] for position in WEIGHTS}
    return run_simulated(kernel, problem, lower, computing(problem, parameters), weights)


def computing(problem: Problem, parameters: Mapping[int, Array]) -> Compute:
    g = ops.geometry(problem)
    # (D, G H, K) becomes (D, K, G H), the layout that the array is loaded from
    w, r = (np.ascontiguousarray(parameters[i].transpose(0, 2, 1)) for i in (ops.W, ops.R))
    bias, peepholes = parameters.get(ops.B), parameters.get(ops.P)
    none = native().Function(0, 0.0, 0.0)
    functions = [
        [*(native().Function(f.code, f.alpha, f.beta) for f in each), *[none] * (3 - len(each))]
        for each in g.activations
    ]
    layer = native().Recurrent(
        cell=problem.op, steps=g.steps, batch=g.batch, inputs=g.inputs, hidden=g.hidden,
        linear_before_reset=g.linear_before_reset, input_forget=g.input_forget, clip=g.clip,
        reverse=g.reverse, functions=functions,
    )  # fmt: skip

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        def state(position: int) -> np.ndarray:
            if problem.has(position):
                return np.array(inputs[position], np.float32, order="C")
            return np.zeros((g.directions, g.batch, g.hidden), np.float32)

        y = np.zeros(problem.outputs[0].shape, np.float32)
        h = state(ops.INITIAL_H)
        c = state(ops.INITIAL_C) if problem.op == "lstm" else None
        lengths = inputs[ops.LENGTHS] if problem.has(ops.LENGTHS) else None
        native().recurrent(layer, design.rows_summed, inputs[ops.X], w, r, bias, lengths, peepholes, h, c, y)
        return (y, h) if c is None else (y, h, c)

    return compute


def accepts(problem: Problem) -> Reject | None:
    if problem.integer("layout") != 0:
        return Reject("layout 1 reaches no kernel: dispatch turns it into layout 0")
    return reject_dtype(problem, "float32") or reject_size(problem)


def _kernel(op: str) -> Kernel:
    name = f"{op}_systolic_tnc_f32_asic"
    return Kernel(
        id=name,
        op=op,
        accepts=accepts,
        prepare=lambda problem, parameters: prepare(name, problem, parameters),
        summary="one product for the inputs of all steps, one product and the gates for each step",
    )


KERNELS = [_kernel(op) for op in ops.GATES]

LOWERINGS = dict.fromkeys(ops.GATES, lower)
