"""Convolution kernels of the FPGA backend: line buffers first, then the direct kernel for every shape, then the one of
many work-items.

They serve conv, conv_integer, qlinear_conv and, declared in fixed.py, fixed_conv; conv_transpose has the direct one.
Host arrays of the line-buffer kernel travel with channels innermost, since the stream delivers a pixel of all channels
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from quatrefoil.fpga import opencl
from quatrefoil.fpga.limits import LANES, OPENCL_TYPES, WEIGHT_WORDS, out_of_reach, unstreamable, unsuited
from quatrefoil.fpga.streams import Stage, Stream, in_pixels, in_planes, pixel_counts, pixels_type, window_defines
from quatrefoil.numerics import integer_range, requantize_multiplier
from quatrefoil.ops import conv as semantics
from quatrefoil.ops.conv import ConvGeometry
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

OUTPUT_KINDS = {
    "conv": "OUTPUT_FLOAT",
    "conv_transpose": "OUTPUT_FLOAT",
    "conv_integer": "OUTPUT_INTEGER",
    "qlinear_conv": "OUTPUT_QUANTIZED",
}


@dataclass(frozen=True)
class Constants:
    """What a run of any of the operators needs beside x and the residual.

    weight: float32, int16 with the zero points taken off, or fixed_conv's integers. defines: types, formats and how a sum
    becomes an output value (conv_output.h). scalars: x_zero, y_zero, activation code, alpha, beta.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    multiplier: np.ndarray | None
    defines: Mapping[str, opencl.Define]
    scalars: tuple[np.generic, ...] = (np.int32(0), np.int32(0), np.int32(0), np.float32(0), np.float32(0))


def _constants(problem: Problem, parameters: Mapping[int, Array]) -> Constants:
    bias: np.ndarray | None
    if problem.op == "conv_integer":
        weight, bias, multiplier = parameters[semantics.W], None, None
        x_zero, y_zero = parameters.get(semantics.X_ZERO_POINT, 0), 0
        w_zero = parameters.get(semantics.W_ZERO_POINT, 0)
    elif problem.op == "qlinear_conv":
        weight, bias = parameters[semantics.Q_W], parameters.get(semantics.Q_BIAS)
        x_zero, y_zero = parameters[semantics.Q_X_ZERO], parameters[semantics.Q_Y_ZERO]
        w_zero = parameters[semantics.Q_W_ZERO]
        scales = (parameters[i] for i in (semantics.Q_X_SCALE, semantics.Q_W_SCALE, semantics.Q_Y_SCALE))
        multiplier = np.array(np.broadcast_to(requantize_multiplier(*scales), problem.outputs[0].shape[1:2]))
    else:
        weight, bias, multiplier = parameters[semantics.W], parameters.get(semantics.BIAS), None
        x_zero, y_zero, w_zero = 0, 0, None
    if w_zero is not None:
        per_channel = np.asarray(w_zero, np.int16).reshape(-1, *(1,) * (weight.ndim - 1))
        weight = weight.astype(np.int16) - per_channel
    activation = semantics.fused_activation(problem)
    integers = (np.asarray(value).item() for value in (x_zero, y_zero, activation.code))
    scalars = (*map(np.int32, integers), np.float32(activation.alpha), np.float32(activation.beta))
    return Constants(weight, bias, multiplier, _types(problem), scalars)


def _types(problem: Problem) -> dict[str, opencl.Define]:
    y = problem.outputs[0].dtype
    defines: dict[str, opencl.Define] = {
        OUTPUT_KINDS[problem.op]: 1,
        "X_T": OPENCL_TYPES[problem.dtype],
        "W_T": "float" if y == "float32" else "short",
        "Y_T": OPENCL_TYPES[y],
    }
    if problem.op == "qlinear_conv":
        defines["Y_LOW"], defines["Y_HIGH"] = integer_range(y)
    return defines


def _residual(problem: Problem, inputs: Sequence[Array | None]) -> np.ndarray | None:
    fused = problem.op in ("conv", "conv_transpose") and problem.has(semantics.RESIDUAL)
    return inputs[semantics.RESIDUAL] if fused else None


def empty(problem: Problem) -> Run:
    """A batch of nothing reaches no device."""
    return lambda inputs: (np.empty(problem.outputs[0].shape, problem.outputs[0].numpy_dtype),)


def _is_depthwise(g: ConvGeometry) -> bool:
    return g.groups > 1 and g.in_per_group == 1 and g.out_per_group == 1


def accepts_line_buffer(problem: Problem) -> Reject | None:
    g = semantics.geometry(problem)
    rejected = unsuited(problem) or out_of_reach(g.window) or unstreamable(g.window, g.in_channels)
    if rejected is not None:
        return rejected
    weights = g.out_channels * g.in_per_group * g.window.taps
    if weights > WEIGHT_WORDS:
        return Reject(f"there are {weights} weights; the kernel keeps {WEIGHT_WORDS} on the chip")
    return None


def pack_blocks(weight: np.ndarray, groups: int, depthwise: bool, lanes: int) -> np.ndarray:
    """(M, C / groups, taps...) to (blocks, taps..., C / groups, lanes), a group's last block filled up with zeros.

    Depthwise weights (C, 1, taps...) are packed as one group of C outputs.
    """
    groups = 1 if depthwise else groups
    outputs = weight.shape[0] // groups
    blocks = -(-outputs // lanes)
    grouped = weight.reshape(groups, outputs, *weight.shape[1:])
    padded = np.pad(grouped, ((0, 0), (0, blocks * lanes - outputs), *((0, 0),) * (weight.ndim - 1)))
    split = padded.reshape(groups * blocks, lanes, *weight.shape[1:])
    return np.ascontiguousarray(np.moveaxis(split, (1, 2), (-1, -2)))


def prepare_line_buffer(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    return stream(problem, _constants(problem, parameters))


def stream(problem: Problem, constants: Constants) -> Run:
    """The line-buffer kernel of any of the operators: a stream of one stage."""
    if problem.outputs[0].size == 0:
        return empty(problem)
    alone = Stream([stage(problem, constants)])
    outputs = [pixels_type(problem.outputs[0])]

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        x, residual = inputs[0], _residual(problem, inputs)
        assert x is not None
        (result,) = alone(in_pixels(x), [None if residual is None else in_pixels(residual)], outputs)
        return (in_planes(result),)

    return run


def streamed(problem: Problem, parameters: Mapping[int, Array]) -> Stage:
    """The stage of conv, conv_integer or qlinear_conv."""
    return stage(problem, _constants(problem, parameters))


def stage(problem: Problem, constants: Constants) -> Stage:
    """Any of the operators as a stage of a stream."""
    defines, packed = stage_defines(problem, constants)
    kinds = {name: str(defines[name]) for name in ("X_T", "W_T", "Y_T")}
    bias_type = {"OUTPUT_FLOAT": "float", "OUTPUT_FIXED": "long"}.get(_output_kind(defines), "int")
    return Stage(
        opencl.source("conv_line_buffer.h"),
        defines,
        kinds["X_T"],
        int(defines["CHANNELS"]),
        kinds["Y_T"],
        int(defines["OUT_CHANNELS"]),
        *pixel_counts(semantics.geometry(problem).window),
        f"__local {kinds['W_T']} weights_#[{packed.size}];\n"
        f"  for (int i = 0; i < {packed.size}; i++) weights_#[i] = w_#[i];\n"
        "  begin_#(&stage_#, weights_#, bias_#, multiplier_#, residual_#, x_zero_#, y_zero_#, code_#, alpha_#, beta_#);",
        (
            f"__global const {kinds['W_T']}* restrict w_#",
            f"__global const {bias_type}* restrict bias_#",
            "__global const float* restrict multiplier_#",
            f"__global const {kinds['Y_T']}* restrict residual_#",
            *(f"int {name}_#" for name in ("x_zero", "y_zero", "code")),
            *(f"float {name}_#" for name in ("alpha", "beta")),
        ),
        (packed, constants.bias, constants.multiplier, None, *constants.scalars),
        residual=3,
    )


def _output_kind(defines: Mapping[str, opencl.Define]) -> str:
    return next(name for name in defines if name.startswith("OUTPUT_"))


def stage_defines(problem: Problem, constants: Constants) -> tuple[dict[str, opencl.Define], np.ndarray]:
    """What conv_line_buffer.h wants to be defined, and the weights as it wants them packed."""
    g = semantics.geometry(problem)
    depthwise = _is_depthwise(g)
    group_out = g.out_channels if depthwise else g.out_per_group
    lanes = min(LANES, group_out)
    blocks_per_group = -(-group_out // lanes)
    defines = {
        **constants.defines,
        "WEIGHT_SPACE": "__local",
        "BIAS_SPACE": "__global",
        "CHANNELS": g.in_channels,
        "OUT_CHANNELS": g.out_channels,
        "GROUP_IN": g.in_per_group,
        "GROUP_OUT": group_out,
        "GROUP_BLOCKS": blocks_per_group,
        "BLOCKS": blocks_per_group * (1 if depthwise else g.groups),
        "LANES": lanes,
        **window_defines(g.window),
    }
    if depthwise:
        defines["DEPTHWISE"] = 1
    taps = constants.weight.reshape(*constants.weight.shape[:2], *g.window.kernel[1:])
    return defines, pack_blocks(taps, g.groups, depthwise, lanes)


def accepts_direct(problem: Problem) -> Reject | None:
    return unsuited(problem) or out_of_reach(semantics.geometry(problem).window)


def direct_sizes(problem: Problem, g: ConvGeometry) -> np.ndarray:
    """The sizes in the order of conv_direct.cl; for conv_transpose the window slides over y."""
    w = g.window
    transposed = problem.op == "conv_transpose"
    x_extent, y_extent = (w.output, w.input) if transposed else (w.input, w.output)
    sizes = (g.batch, g.groups, g.in_channels, g.out_channels, *x_extent, *y_extent, *w.kernel)
    if w.taps == 1 and x_extent == y_extent and set(w.strides) == {1} and not any(w.pads):
        # a pointwise convolution takes the whole plane as one row
        plane = (1, 1, w.input_size)
        sizes = (*sizes[:4], *plane, *plane, 1, 1, 1)
    return np.array((*sizes, *w.strides, *w.dilations, *w.pads), np.int32)


def prepare_direct(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    return direct(problem, _constants(problem, parameters))


def direct(problem: Problem, constants: Constants) -> Run:
    """The kernel for every shape of any of the operators."""
    g = semantics.geometry(problem)
    if g.batch == 0:
        return empty(problem)
    transposed: dict[str, opencl.Define] = {"TRANSPOSED": 1} if problem.op == "conv_transpose" else {}
    runtime = opencl.runtime()
    program = runtime.program("conv_direct", {**constants.defines, **transposed})
    weight, bias, multiplier = _uploaded(constants, constants.weight)
    sizes = runtime.upload(direct_sizes(problem, g))

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        arguments = (inputs[0], weight, bias, multiplier, _residual(problem, inputs), sizes, *constants.scalars)
        return program(arguments, problem.outputs)

    return run


def prepare_ndrange(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    return ndrange(problem, _constants(problem, parameters))


def ndrange(problem: Problem, constants: Constants) -> Run:
    """The kernel of many work-items of any of the operators but conv_transpose."""
    g = semantics.geometry(problem)
    if g.batch == 0:
        return empty(problem)
    runtime = opencl.runtime()
    lanes, packed = place_weights(constants.weight, g)
    program = runtime.program("conv_ndrange", {**constants.defines, "LANES": lanes})
    weight, bias, multiplier = _uploaded(constants, packed)
    sizes = runtime.upload(direct_sizes(problem, g))
    extents = (g.window.output_size, packed.shape[0], g.batch)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        arguments = (inputs[0], weight, bias, multiplier, _residual(problem, inputs), sizes, *constants.scalars)
        return program(arguments, problem.outputs, extents)

    return run


def place_weights(weight: np.ndarray, g: ConvGeometry) -> tuple[int, np.ndarray]:
    """LANES of conv_place.h, and the weights as it wants them packed."""
    lanes = min(LANES, 1 << (g.out_per_group - 1).bit_length())  # a power of two, so that few programs serve all
    return lanes, pack_blocks(weight.reshape(*weight.shape[:2], *g.window.kernel), g.groups, False, lanes)


def _uploaded(constants: Constants, weight: np.ndarray) -> tuple[Any, Any, Any]:
    """The packed weights, the bias and the multiplier on the device."""
    upload = opencl.runtime().upload
    bias, multiplier = (None if array is None else upload(array) for array in (constants.bias, constants.multiplier))
    return upload(weight), bias, multiplier


def _kernel(
    op: str,
    algorithm: str,
    layout: str,
    accepts: Callable[[Problem], Reject | None],
    prepare: Callable[[Problem, Mapping[int, Any]], Run],
    summary: str,
) -> Kernel:
    dtype = "f32" if OUTPUT_KINDS[op] == "OUTPUT_FLOAT" else "i8"
    return Kernel(f"{op}_{algorithm}_{layout}_{dtype}_opencl", op, accepts, prepare, summary=summary)


_line_buffer = partial(
    _kernel,
    algorithm="line_buffer",
    layout="nhwc",
    accepts=accepts_line_buffer,
    prepare=prepare_line_buffer,
    summary="pixels stream through a shift register; weights on the chip",
)
_direct = partial(
    _kernel,
    algorithm="direct",
    layout="nchw",
    accepts=accepts_direct,
    prepare=prepare_direct,
    summary="a tile of one output row on the chip, weights and inputs streamed; any shape",
)
_ndrange = partial(
    _kernel,
    algorithm="ndrange",
    layout="nchw",
    accepts=accepts_direct,
    prepare=prepare_ndrange,
    summary="a work-item for each place and few output channels, for processors and GPUs; any shape",
)

KERNELS = (
    *(_line_buffer(op) for op in ("conv", "conv_integer", "qlinear_conv")),
    *(_direct(op) for op in ("conv", "conv_integer", "qlinear_conv", "conv_transpose")),
    *(_ndrange(op) for op in ("conv", "conv_integer", "qlinear_conv")),
)
