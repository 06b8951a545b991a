"""Fixed-point kernels of the FPGA backend: convolution and pooling by the algorithms of conv.py and pool.py, dense layers,
and recurrent layers with states, gates and tables on the chip.

Formats are compile-time constants (fixed_sum.h). ``prepare`` looks at the weights: where no sum can leave the
accumulator, or the accumulator wraps, only the whole sum is fitted to it, and sums are 32 bits wide where that is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from quatrefoil.fpga import conv, opencl, pool, rnn
from quatrefoil.fpga.limits import HIDDEN_LIMIT, OPENCL_TYPES, too_large
from quatrefoil.fpga.streams import Stage
from quatrefoil.numerics import TABLE_REACH, Fixed, table_bits
from quatrefoil.ops import conv as conv_semantics
from quatrefoil.ops import fixed as semantics
from quatrefoil.ops import pool as pool_semantics
from quatrefoil.ops import rnn as rnn_semantics
from quatrefoil.ops.fixed import format_of
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run
from quatrefoil.sequences import FixedElementwise

NARROW = 2**31
"""Sizes below this are kept in 32 bits."""


def _sum_defines(largest: float, largest_product: int, accumulator: Fixed, y: Fixed) -> dict[str, opencl.Define]:
    """The constants of fixed_sum.h. largest: what ``largest_sum`` says of every sum."""
    wraps = accumulator.overflow == "WRAP"
    exact = wraps or largest <= min(accumulator.high, -accumulator.low)
    # modulo 2^32 is enough for an accumulator that wraps at fewer bits
    bits = 32 if exact and (largest < NARROW or (wraps and accumulator.width <= 32)) else 64
    product_bits = 32 if largest_product < NARROW else 64
    integers = {32: "int", 64: "long"}
    return {
        "ACCUMULATOR": accumulator.initializer,
        "Y_FORMAT": y.initializer,
        "SUM_T": f"u{integers[bits]}",
        "SIGNED_SUM_T": integers[bits],
        "SUM_BITS": bits,
        "PRODUCT_T": integers[product_bits],
        "PRODUCT_BITS": product_bits,
        **({"EXACT": 1} if exact else {}),
    }


def _largest_product(a: Fixed, b: Fixed) -> int:
    return max(a.high, -a.low) * max(b.high, -b.low)


def constants_of(problem: Problem, parameters: Mapping[int, Array]) -> conv.Constants:
    """What the kernels of conv.py want; the bias is one of the accumulator, int64."""
    x, w, accumulator, y = (format_of(problem, name) for name in ("x_format", "w_format", "accumulator", "y_format"))
    weight, bias = parameters[conv_semantics.W], parameters.get(conv_semantics.BIAS)
    start = None if bias is None else accumulator.cast(bias, format_of(problem, "bias_format").fraction)
    fraction = x.fraction + w.fraction
    largest = semantics.largest_sum(
        x, weight.reshape(len(weight), -1), fraction, 0 if start is None else start, accumulator
    )
    defines = _sum_defines(largest, _largest_product(x, w), accumulator, y) | {
        "OUTPUT_FIXED": 1,
        "X_T": OPENCL_TYPES[problem.dtype],
        "W_T": OPENCL_TYPES[w.dtype],
        "Y_T": OPENCL_TYPES[y.dtype],
        "DROP": fraction - accumulator.fraction,
        "Y_DROP": accumulator.fraction - y.fraction,
        "REUSE": problem.integer("reuse"),
    }
    if any(name == "activation" for name, _ in problem.attributes):
        defines["RECTIFIED"] = 1
    return conv.Constants(weight, start, None, defines)


def _conv(prepare: Callable[[Problem, conv.Constants], Run], problem: Problem, parameters: Mapping[int, Array]) -> Run:
    return prepare(problem, constants_of(problem, parameters))


def streamed_conv(problem: Problem, parameters: Mapping[int, Array]) -> Stage:
    """The stage of fixed_conv."""
    return conv.stage(problem, constants_of(problem, parameters))


def streamed_pool(problem: Problem, parameters: Mapping[int, Array]) -> Stage:
    """The stage of fixed_max_pool or fixed_average_pool, on pixels of all channels."""
    return pool.stage(problem, pool_defines(problem), problem.input(0).shape[1])


FUNCTIONS = {"affine": "AFFINE", "table": "TABLE", "slope_below": "SLOPE_BELOW", "table_below": "TABLE_BELOW"}
"""Functions of one value that can be a stage, by their names in fixed_function.h."""


def streamed_function(form: FixedElementwise, x: Tensor, y: Tensor) -> Stage:
    """The stage of a function of values of type x."""
    assert form.y is not None
    table = form.table
    channels, places = x.shape[1], math.prod(x.shape[2:])
    kinds = OPENCL_TYPES[x.dtype], OPENCL_TYPES[y.dtype]
    defines: dict[str, opencl.Define] = {
        "FUNCTION": FUNCTIONS[form.function],
        "X_T": kinds[0],
        "Y_T": kinds[1],
        "CHANNELS": channels,
        "Y_FORMAT": form.y.initializer,
        "DROP": form.fraction - form.y.fraction,
        "DROP_BELOW": form.fraction_below - form.y.fraction,
        "TABLE_SIZE": 0 if table is None else table.size,
        "TABLE_BITS": form.table_bits,
        **{name.upper(): f"{getattr(form, name)}L" for name in ("factor", "offset", "low", "high")},
    }
    given = None if table is None else table.astype(np.int32)
    return Stage(
        opencl.source("fixed_function.h"), defines, kinds[0], channels, kinds[1], channels, places, places,
        "begin_#(&stage_#, table_#);", ("__global const int* restrict table_#",), (given,),
    )  # fmt: skip


def accepts_dense(problem: Problem) -> Reject | None:
    g = conv_semantics.geometry(problem)
    if g.window.output_size != 1 or g.window.input != g.window.kernel or g.groups != 1:
        return Reject("it is for dense layers, and for one window that is the whole input, in one group")
    return too_large(problem)


def dense(problem: Problem, constants: conv.Constants) -> Run:
    g = conv_semantics.geometry(problem)
    if g.batch == 0:
        return conv.empty(problem)
    taps, depth = g.window.taps, g.in_per_group * g.window.taps
    # the place in x of each product, in the order in which they are added
    products = semantics.products_order(depth, problem.integer("reuse"))
    order = products % g.in_per_group * taps + products // g.in_per_group
    runtime = opencl.runtime()
    program = runtime.program("fixed_dense", constants.defines)
    rows = constants.weight.reshape(g.out_channels, depth).T[order]
    bias = None if constants.bias is None else runtime.upload(constants.bias)
    arguments = (
        runtime.upload(rows), bias, runtime.upload(order.astype(np.int32)), *map(np.int32, (g.batch, depth, g.out_channels))
    )  # fmt: skip
    return lambda inputs: program((inputs[0], *arguments), problem.outputs)


def pool_defines(problem: Problem) -> dict[str, opencl.Define]:
    """The constants of pool_window.h. A maximum's accumulator is the format of x."""
    x, y = format_of(problem, "x_format"), format_of(problem, "y_format")
    average = problem.op == "fixed_average_pool"
    accumulator = format_of(problem, "accumulator") if average else x
    taps = pool_semantics.geometry(problem).window.taps
    largest = semantics.largest_sum(x, np.full((1, 1), taps if average else 1), x.fraction, 0, accumulator)
    return _sum_defines(largest, _largest_product(x, Fixed(2, 2)) // 2, accumulator, y) | {
        "FIXED": 1,
        "INTEGERS": 1,
        "MODE": "MODE_AVERAGE" if average else "MODE_MAX",
        "LOWEST": 0,
        "X_T": OPENCL_TYPES[problem.dtype],
        "Y_T": OPENCL_TYPES[y.dtype],
        "DROP": x.fraction - accumulator.fraction,
        "Y_DROP": accumulator.fraction - y.fraction,
    }


def _pool(
    prepare: Callable[[Problem, Mapping[str, opencl.Define]], Run], problem: Problem, parameters: Mapping[int, Array]
) -> Run:
    return prepare(problem, pool_defines(problem))


def accepts_recurrent(problem: Problem) -> Reject | None:
    hidden = problem.integer("hidden_size")
    if hidden > HIDDEN_LIMIT:
        return Reject(f"hidden_size is {hidden}; the gates of up to {HIDDEN_LIMIT} stay on the chip")
    return too_large(problem)


def prepare_recurrent(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g = semantics.recurrent_geometry(problem)
    if g.batch == 0:
        return rnn.empty(problem)
    if g.steps == 0:
        return rnn.no_steps(problem)
    names = ("x_format", "w_format", "r_format", "accumulator", "y_format")
    x, w, r, accumulator, y = (format_of(problem, name) for name in names)
    weights, recurrent_weights = parameters[rnn_semantics.W], parameters[rnn_semantics.R]
    bias = np.zeros((g.directions, 2, g.gates * g.hidden), np.int64)
    if rnn_semantics.B in parameters:
        given = accumulator.cast(parameters[rnn_semantics.B], format_of(problem, "b_format").fraction)
        bias = given.reshape(bias.shape)
    products = ((x, w, weights, bias[:, 0]), (y, r, recurrent_weights, bias[:, 1]))
    largest = max(
        semantics.largest_sum(values, matrix, values.fraction + weight.fraction, start, accumulator)
        for values, weight, matrix, start in products
    )
    largest_product = max(_largest_product(values, weight) for values, weight, _, _ in products)
    size, found = problem.integer("table_size"), semantics.tables(problem)
    kept = format_of(problem, "table_format")
    looked_up = [name for name in semantics.FUNCTIONS if name in TABLE_REACH]
    tables = np.zeros((len(looked_up), size), accumulator.dtype)
    for row, name in zip(tables, looked_up):
        if name in found:
            row[:] = accumulator.cast(found[name], kept.fraction)
    codes = np.zeros((g.directions, 3), np.int32)
    for row, functions in zip(codes, g.activations):
        row[: len(functions)] = [semantics.FUNCTIONS.index(name) for name in functions]
    index_bits = {f"{name.upper()}_BITS": table_bits(accumulator.fraction, name, size) for name in looked_up}
    runtime = opencl.runtime()
    program = runtime.program(
        "recurrent",
        _sum_defines(largest, largest_product, accumulator, y) | index_bits | {
            "FIXED": 1,
            "GATES": g.gates,
            "CAPACITY": rnn.capacity(g.hidden),
            "X_T": OPENCL_TYPES[x.dtype],
            "W_T": OPENCL_TYPES[w.dtype],
            "R_T": OPENCL_TYPES[r.dtype],
            "Y_T": OPENCL_TYPES[y.dtype],
            "TABLE_T": OPENCL_TYPES[accumulator.dtype],
            "TABLE_SIZE": size,
            "DROP_X": x.fraction + w.fraction - accumulator.fraction,
            "DROP_H": y.fraction + r.fraction - accumulator.fraction,
            "FRACTION": accumulator.fraction,
            "STATE_FRACTION": y.fraction,
            "REUSE": problem.integer("reuse"),
        },
    )  # fmt: skip
    reverse = (*g.reverse, False)[:2]
    sizes = (g.steps, g.batch, g.inputs, g.hidden, g.directions, *reverse, g.linear_before_reset, False)
    matrices = [runtime.upload(matrix.swapaxes(1, 2)) for matrix in (weights, recurrent_weights)]
    constants = [runtime.upload(array) for array in (np.array(sizes, np.int32), codes, tables)]
    starts = runtime.upload(bias)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        given = [*inputs, *[None] * (len(semantics.RECURRENT_NAMES) - len(inputs))]
        varying = [given[i] for i in (rnn_semantics.LENGTHS, rnn_semantics.INITIAL_H, rnn_semantics.INITIAL_C)]
        return program((given[rnn_semantics.X], *matrices, starts, *varying, *constants), problem.outputs)

    return run


KERNELS = (
    Kernel(
        "fixed_conv_line_buffer_nhwc_fixed_opencl", "fixed_conv", conv.accepts_line_buffer, partial(_conv, conv.stream),
        summary="pixels stream through a shift register; weights on the chip",
    ),
    Kernel(
        "fixed_conv_dense_nc_fixed_opencl", "fixed_conv", accepts_dense, partial(_conv, dense),
        summary="a tile of the outputs on the chip, rows of weights streamed",
    ),
    Kernel(
        "fixed_conv_direct_nchw_fixed_opencl", "fixed_conv", conv.accepts_direct, partial(_conv, conv.direct),
        summary="a tile of one output row on the chip, weights and inputs streamed; any shape",
    ),
    Kernel(
        "fixed_conv_ndrange_nchw_fixed_opencl", "fixed_conv", conv.accepts_direct, partial(_conv, conv.ndrange),
        summary="a work-item for each place and few output channels, for processors and GPUs; any shape",
    ),
    *(
        Kernel(f"{op}_{algorithm}_{layout}_fixed_opencl", op, accepts, partial(_pool, prepare), summary=summary)
        for op in ("fixed_max_pool", "fixed_average_pool")
        for algorithm, layout, accepts, prepare, summary in (
            ("line_buffer", "nchwc", pool.accepts_line_buffer, pool.stream, "pixels stream through a shift register"),
            ("direct", "nchw", pool.accepts_direct, pool.direct, "one window after the other; any shape"),
            ("ndrange", "nchw", pool.accepts_direct, pool.ndrange,
             "a work-item for each window, for processors and GPUs; any shape"),
        )
    ),
    *(
        Kernel(
            f"{op}_step_tnc_fixed_opencl", op, accepts_recurrent, prepare_recurrent,
            summary="gates, states and tables on the chip, transposed weights streamed once a step",
        )
        for op in ("fixed_rnn", "fixed_lstm", "fixed_gru")
    ),
)  # fmt: skip
