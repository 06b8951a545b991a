"""Fixed point: fixed_conv, fixed_max_pool, fixed_average_pool, fixed_rnn, fixed_lstm and fixed_gru.

The stages are those of conv, pool and rnn, with elements of as many whole bytes as their formats need, in an array whose
operands and sums are of the problem's formats. An element casts its product to the accumulator's, and a sum that rests
enters its column on top, so that products are added in the operator's order on every design (src/fixed.h). The vector
unit casts, and looks functions up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from quatrefoil.asic_sim import conv, rnn
from quatrefoil.asic_sim.conv import Inputs
from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import (
    ArrayPart,
    Compute,
    Lowering,
    Setting,
    VectorPart,
    native,
    reject_size,
    run_simulated,
    window_axes,
)
from quatrefoil.numerics import OVERFLOWS, ROUNDINGS, TABLE_REACH, Fixed
from quatrefoil.ops import conv as conv_ops
from quatrefoil.ops import fixed as ops
from quatrefoil.ops import pool as pool_ops
from quatrefoil.ops.fixed import format_of
from quatrefoil.ops.rnn import INITIAL_C, INITIAL_H, LENGTHS, B, R, W, X
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Run

Computing = Callable[[Problem, Mapping[int, Array]], Compute]


def element_bytes(form: Fixed) -> int:
    """Bytes of an element in every memory."""
    return -(-form.width // 8)


def cast_cycles(to: Fixed, of: Fixed) -> int:
    """Cycles of a lane for a cast: none to the same width and point, 1 to shift, 1 more to round or to saturate."""
    if (to.width, to.integer, to.signed) == (of.width, of.integer, of.signed):
        return 0
    return _shift_cycles(to)


def _shift_cycles(to: Fixed) -> int:
    return 1 + (to.rounding != "TRN" or to.overflow != "WRAP")


LOOK_UP_CYCLES = 1
"""Of a lane for a function: its table is beside it."""


def lower_conv(problem: Problem, design: Hardware, setting: Setting) -> list[ArrayPart]:
    g = conv_ops.geometry(problem)
    y_format, weight_bytes = format_of(problem, "y_format"), element_bytes(format_of(problem, "w_format"))
    rectified = any(name == "activation" for name, _ in problem.attributes)
    stage = native().Stage(
        groups=g.groups,
        channels=g.in_per_group,
        columns=g.out_per_group,
        axes=[native().Axis(g.batch, g.batch), *window_axes(g.window)],
        activation_bytes=element_bytes(format_of(problem, "x_format")),
        weight_bytes=weight_bytes,
        operand_cycles=setting.operand_cycles(design),
        activations_here=conv_ops.X in setting.kept.here,
        output_bytes=setting.kept.written(element_bytes(y_format)),
        kept_bytes=setting.kept.staying(element_bytes(y_format)),
        # out of the accumulator, which has begun with the bias; cast; max(y, 0)
        lane_cycles=1 + cast_cycles(y_format, format_of(problem, "accumulator")) + rectified,
        weights_kept=g.in_per_group * g.window.taps * g.out_per_group * weight_bytes <= design.weight_sram_kib * 1024,
    )
    return [ArrayPart([([stage], 1)])]


def lower_pool(problem: Problem, design: Hardware, setting: Setting) -> list[VectorPart]:
    g = pool_ops.geometry(problem)
    x_format, y_format = format_of(problem, "x_format"), format_of(problem, "y_format")
    lane_cycles = g.window.taps
    if problem.op == "fixed_average_pool":
        lane_cycles += 1 + cast_cycles(y_format, format_of(problem, "accumulator"))  # divided, then cast
    else:
        lane_cycles += cast_cycles(y_format, x_format)
    here = 0 in setting.kept.here
    stage = native().VectorStage(
        axes=[native().Axis(g.planes, g.planes), *window_axes(g.window)],
        lane_cycles=lane_cycles,
        input_bytes=0 if here else element_bytes(x_format),
        kept_input_bytes=element_bytes(x_format) if here else 0,
        output_bytes=setting.kept.written(element_bytes(y_format)),
        kept_output_bytes=setting.kept.staying(element_bytes(y_format)),
    )
    return [VectorPart(stage)]


def lower_recurrent(problem: Problem, design: Hardware, setting: Setting) -> list[ArrayPart]:
    g = ops.recurrent_geometry(problem)
    y_format, accumulator = format_of(problem, "y_format"), format_of(problem, "accumulator")
    names = ("x_format", "w_format", "r_format", "accumulator", "y_format")
    widths = rnn.Widths(*(element_bytes(format_of(problem, name)) for name in names))
    width, rounds, f = g.gates * g.hidden, cast_cycles(y_format, accumulator), LOOK_UP_CYCLES
    if problem.op == "fixed_rnn":
        products = [(width, f + rounds)]
    elif problem.op == "fixed_lstm":
        # two cycles for f c + i c~, one for o h(c'); c' and h' are cast
        products = [(width, 5 * f + 3 + 2 * rounds)]
    else:
        # as for floats; and casts of h', and of r h or of r times R h
        gates, candidate = 2 * f + 1, f + 3 + rounds
        if g.linear_before_reset:
            products = [(width, gates + _shift_cycles(accumulator) + candidate)]
        else:
            products = [(2 * g.hidden, gates + rounds), (g.hidden, candidate)]
    return rnn.layer(problem, g, design, setting, widths, [products] * g.directions)


def of_format(form: Fixed) -> Any:
    """A format as the native code takes it."""
    return native().Fixed(
        width=form.width, fraction=form.fraction, is_signed=form.signed, low=form.low, high=form.high,
        rounding=ROUNDINGS.index(form.rounding), overflow=OVERFLOWS.index(form.overflow),
    )  # fmt: skip


def _sums(problem: Problem, first: str, second: str) -> Any:
    """How products of two formats are added."""
    fraction = format_of(problem, first).fraction + format_of(problem, second).fraction
    return native().FixedSums(of_format(format_of(problem, "accumulator")), fraction, problem.integer("reuse"))


def _bias(problem: Problem, bias: Array | None, name: str) -> np.ndarray | None:
    """In the accumulator's format."""
    if bias is None:
        return None
    return np.ascontiguousarray(format_of(problem, "accumulator").cast(bias, format_of(problem, name).fraction))


def _integers(array: Array) -> np.ndarray:
    return np.ascontiguousarray(array, np.int32)


def _result(problem: Problem, y: np.ndarray) -> np.ndarray:
    return y.astype(problem.outputs[0].numpy_dtype, copy=False)


def compute_conv(problem: Problem, parameters: Mapping[int, Array]) -> Compute:
    ((convolution, weights),) = conv.packed_phases(problem, _integers(parameters[conv_ops.W]))
    sums, y_format = _sums(problem, "x_format", "w_format"), of_format(format_of(problem, "y_format"))
    bias = _bias(problem, parameters.get(conv_ops.BIAS), "bias_format")
    rectified = any(name == "activation" for name, _ in problem.attributes)

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        y = np.zeros(problem.outputs[0].shape, np.int32)
        x = _integers(inputs[conv_ops.X])
        native().convolve_fixed(convolution, sums, y_format, rectified, x, weights, bias, y)
        return (_result(problem, y),)

    return compute


def compute_pool(problem: Problem, parameters: Mapping[int, Array]) -> Compute:
    g = pool_ops.geometry(problem)
    pool = native().Pool(g.planes, window_axes(g.window))
    y_format, fraction = of_format(format_of(problem, "y_format")), format_of(problem, "x_format").fraction
    average = problem.op == "fixed_average_pool"
    accumulator = of_format(format_of(problem, "accumulator")) if average else None
    divisors = np.ascontiguousarray(ops.divisors(problem)) if average else None

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        x, y = _integers(inputs[0]), np.empty(problem.outputs[0].shape, np.int32)
        if average:
            native().fixed_average_pool(pool, accumulator, y_format, fraction, divisors, x, y)
        else:
            native().fixed_max_pool(pool, y_format, fraction, x, y)
        return (_result(problem, y),)

    return compute


def compute_recurrent(problem: Problem, parameters: Mapping[int, Array]) -> Compute:
    g = ops.recurrent_geometry(problem)
    # (D, G H, K) becomes (D, K, G H), the layout that the array is loaded from
    w, r = (_integers(parameters[i].transpose(0, 2, 1)) for i in (W, R))
    bias = _bias(problem, parameters.get(B), "b_format")
    accumulator, kept = format_of(problem, "accumulator"), format_of(problem, "table_format")
    functions = {"Relu": native().FixedFunction()}
    for name, table in ops.tables(problem).items():
        bits = (2 * TABLE_REACH[name]).bit_length() - len(table).bit_length()
        functions[name] = native().FixedFunction(accumulator.cast(table, kept.fraction), bits)
    layer = native().FixedRecurrent(
        cell=problem.op.removeprefix("fixed_"), steps=g.steps, batch=g.batch, inputs=g.inputs, hidden=g.hidden,
        linear_before_reset=g.linear_before_reset, reverse=g.reverse, input_sums=_sums(problem, "x_format", "w_format"),
        state_sums=_sums(problem, "y_format", "r_format"), state=of_format(format_of(problem, "y_format")),
        functions=[[*map(functions.get, names), *[functions["Relu"]] * (3 - len(names))] for names in g.activations],
    )  # fmt: skip

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        def state(position: int) -> np.ndarray:
            if problem.has(position):
                return np.array(inputs[position], np.int32, order="C")
            return np.zeros((g.directions, g.batch, g.hidden), np.int32)

        y = np.zeros(problem.outputs[0].shape, np.int32)
        h = state(INITIAL_H)
        c = state(INITIAL_C) if problem.op == "fixed_lstm" else None
        lengths = inputs[LENGTHS] if problem.has(LENGTHS) else None
        native().fixed_recurrent(layer, _integers(inputs[X]), w, r, bias, lengths, h, c, y)
        return tuple(_result(problem, array) for array in (y, h, c) if array is not None)

    return compute


def _kernel(op: str, algorithm: str, lower: Lowering, computing: Computing, summary: str) -> Kernel:
    name = f"{op}_{algorithm}_fixed_asic"

    def prepare(problem: Problem, parameters: Mapping[int, Array]) -> Run:
        return run_simulated(name, problem, lower, computing(problem, parameters))

    return Kernel(name, op, reject_size, prepare, summary=summary)


CONV_SUMMARY = "matrix product on the array, every product and sum cast to the accumulator"
POOL_SUMMARY = "one output a lane, one tap a cycle, then the cast"
RECURRENT_SUMMARY = "one product for the inputs of all steps, one and the gates for each step, functions looked up"

_recurrent = partial(
    _kernel, algorithm="systolic_tnc", lower=lower_recurrent, computing=compute_recurrent, summary=RECURRENT_SUMMARY
)

KERNELS = [
    _kernel("fixed_conv", "systolic_nchw", lower_conv, compute_conv, CONV_SUMMARY),
    _kernel("fixed_max_pool", "vector_nchw", lower_pool, compute_pool, POOL_SUMMARY),
    _kernel("fixed_average_pool", "vector_nchw", lower_pool, compute_pool, POOL_SUMMARY),
    *(_recurrent(op) for op in ("fixed_rnn", "fixed_lstm", "fixed_gru")),
]

LOWERINGS: dict[str, Lowering] = {
    "fixed_conv": lower_conv,
    "fixed_max_pool": lower_pool,
    "fixed_average_pool": lower_pool,
    **dict.fromkeys(("fixed_rnn", "fixed_lstm", "fixed_gru"), lower_recurrent),
}
