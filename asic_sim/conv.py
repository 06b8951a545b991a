"""Convolution on the systolic array: conv, conv_transpose, conv_integer and qlinear_conv.

A convolution is a matrix product: its rows are output places, its depth runs over taps and, innermost, the channels
of a group, its columns are the output channels of a group (implicit im2col: the array is fed straight from the
activation memory). A transposed convolution is one ordinary convolution for each phase, the output places that are
equal modulo the strides; a phase has only the taps that reach it, so that no inserted zero is multiplied (Shi et al.,
"Is the deconvolution layer the same as a convolutional layer?", 2016). Groups go through the array one by one; a
depthwise convolution therefore uses one of its columns. The vector unit adds bias and residual, evaluates the
activation or requantises as tiles leave the accumulators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import (
    REQUANTISATION,
    ArrayPart,
    Compute,
    Setting,
    VectorPart,
    activation_cycles,
    native,
    native_stored,
    reject_dtype,
    reject_size,
    run_simulated,
    window_axes,
)
from quatrefoil.numerics import requantize_multiplier
from quatrefoil.ops import conv as ops
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

Inputs = Sequence[np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Phase:
    """One convolution of the array: its three native axes, and for each the taps of w that it uses."""

    axes: tuple[Any, Any, Any]
    taps: tuple[range, range, range]
    outputs: int


def phases(problem: Problem) -> list[Phase]:
    """The convolutions that compute a problem, each output place by at most one of them."""
    window = ops.geometry(problem).window
    if problem.op != "conv_transpose":
        axes = window_axes(window)
        whole = [range(taps) for taps in window.kernel]
        return [Phase((axes[0], axes[1], axes[2]), (whole[0], whole[1], whole[2]), window.output_size)]
    found: list[list[tuple[Any, range, int]]] = []
    for axis in range(3):
        # y[i * stride + k * dilation - pad] += x[i] w[k]: taps k, k + step, … reach the same places of y
        stride, dilation, pad = window.strides[axis], window.dilations[axis], window.pads[axis]
        step = stride // gcd(stride, dilation)
        found.append([])
        for first in range(min(step, window.kernel[axis])):
            start = (first * dilation - pad) % stride
            if start < window.input[axis]:
                taps = range(first, window.kernel[axis], step)
                outputs = (window.input[axis] - 1 - start) // stride + 1
                offset = (start + pad - first * dilation) // stride
                size = window.output[axis]
                native_axis = native().Axis(
                    size, outputs, len(taps), 1, offset, -(dilation * step // stride), start, stride
                )
                found[-1].append((native_axis, taps, outputs))
    return [
        Phase((a[0], b[0], c[0]), (a[1], b[1], c[1]), a[2] * b[2] * c[2]) for a, b, c in product(*found)
    ]  # fmt: skip


WEIGHTS = {"conv": ops.W, "conv_transpose": ops.W, "conv_integer": ops.W, "qlinear_conv": ops.Q_W}
ZERO_POINTS = {"conv_integer": ops.W_ZERO_POINT, "qlinear_conv": ops.Q_W_ZERO}
"""Where an operator has them, and what they are zero at."""


def lower(problem: Problem, design: Hardware, setting: Setting) -> list[ArrayPart | VectorPart]:
    g = ops.geometry(problem)
    axis = native().Axis
    figures = setting.operand_figures(design)
    lane_cycles = 1 + setting.rounding_cycles()  # out of the accumulator, the bias added on the way
    output_bytes = written = setting.written(problem.outputs[0], 0)
    if problem.op == "qlinear_conv":
        lane_cycles += REQUANTISATION
    if problem.dtype not in ops.INTEGERS:
        lane_cycles += activation_cycles(ops.fused_activation(problem), design)
        if problem.has(ops.RESIDUAL):
            lane_cycles += 1
            # read by the transfer that writes
            output_bytes += setting.fetched(problem.input(ops.RESIDUAL), ops.RESIDUAL)
    kept = setting.staying(problem.outputs[0], 0)
    stages = []
    covered = 0
    for phase in phases(problem):
        covered += phase.outputs
        depth = g.in_per_group * len(phase.taps[0]) * len(phase.taps[1]) * len(phase.taps[2])
        lying = setting.lying(
            design, WEIGHTS[problem.op], (g.groups, depth, g.out_per_group), partial(pack, problem, phase=phase)
        )
        stage = native().Stage(
            groups=g.groups,
            channels=g.in_per_group,
            columns=g.out_per_group,
            axes=[axis(g.batch, g.batch), *phase.axes],
            output_bytes=output_bytes,
            lane_cycles=lane_cycles,
            weights_kept=lying.group_bytes <= design.weight_sram_kib * 1024,
            activations_here=ops.X in setting.kept.here,
            kept_bytes=kept,
            stored=native_stored(lying),
            **figures,
        )
        stages.append(stage)
    parts: list[ArrayPart | VectorPart] = [ArrayPart([(stages, 1)])]
    missed = problem.outputs[0].size - covered * g.batch * g.out_channels
    if missed:
        # places of a transposed convolution that no tap reaches: bias, residual and activation alone
        stage = native().VectorStage(
            axes=[axis(missed, missed), axis(), axis(), axis()],
            input_bytes=output_bytes - written,
            output_bytes=written,
            lane_cycles=lane_cycles,
            kept_output_bytes=kept,
        )
        parts.append(VectorPart(stage))
    return parts


def pack(problem: Problem, w: np.ndarray, phase: Phase) -> np.ndarray:
    """The taps of a phase as the array takes them: (groups, taps and channels, columns)."""
    g = ops.geometry(problem)
    kernel = g.window.kernel
    if problem.op == "conv_transpose":
        grouped = w.reshape(g.groups, g.in_per_group, g.out_per_group, *kernel).transpose(0, 3, 4, 5, 1, 2)
    else:
        grouped = w.reshape(g.groups, g.out_per_group, g.in_per_group, *kernel).transpose(0, 3, 4, 5, 2, 1)
    d, h, v = (slice(taps.start, taps.stop, taps.step) for taps in phase.taps)
    return np.ascontiguousarray(grouped[:, d, h, v])


def packed_phases(problem: Problem, w: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    """Each phase as the native convolution and its packed weights."""
    g = ops.geometry(problem)
    plane = g.window.input if problem.op == "conv_transpose" else g.window.output
    return [
        (
            native().Convolution(
                batch=g.batch, groups=g.groups, channels=g.in_per_group, columns=g.out_per_group,
                axes=phase.axes, plane=plane,
            ),
            pack(problem, w, phase),
        )
        for phase in phases(problem)
    ]  # fmt: skip


def prepare_float(kernel: str, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    weights = {ops.W: parameters[ops.W]}
    return run_simulated(kernel, problem, lower, computing_float(problem, parameters), weights)


def computing_float(problem: Problem, parameters: Mapping[int, Array]) -> Compute:
    convolutions = packed_phases(problem, parameters[ops.W])
    bias = parameters.get(ops.BIAS)
    activation = ops.fused_activation(problem)
    function = native().Function(activation.code, activation.alpha, activation.beta)
    reached = sum(phase.outputs for phase in phases(problem))
    g = ops.geometry(problem)
    whole = reached * g.batch * g.out_channels == problem.outputs[0].size

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        residual = inputs[ops.RESIDUAL] if problem.has(ops.RESIDUAL) else None
        y = np.zeros(problem.outputs[0].shape, np.float32)
        if not whole:
            if bias is not None:
                y += bias.reshape(1, -1, *(1,) * (y.ndim - 2))
            if residual is not None:
                y += residual
            with np.errstate(invalid="ignore", over="ignore"):
                y = np.ascontiguousarray(activation(y), np.float32)
        for convolution, weights in convolutions:
            native().convolve_float(
                convolution, design.rows_summed, inputs[ops.X], weights, bias, residual, function, y
            )
        return (y,)

    return compute


def centred(values: Array, zero_point: Array | None, along_first: bool = False) -> np.ndarray:
    """8-bit values less their zero point, which nine bits hold; a zero point for each channel goes along the first
    axis."""
    centred = values.astype(np.int16)
    if zero_point is not None:
        zero = zero_point.astype(np.int16).reshape(-1)
        centred -= zero.reshape(-1, *(1,) * (centred.ndim - 1)) if along_first else zero[0]
    return centred


def prepare_integer(kernel: str, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    w = centred(parameters[ops.W], parameters.get(ops.W_ZERO_POINT), along_first=True)
    ((convolution, weights),) = packed_phases(problem, w)
    zero_point = parameters.get(ops.X_ZERO_POINT)

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        y = np.zeros(problem.outputs[0].shape, np.int32)
        native().convolve_integer(convolution, design.rows_summed, centred(inputs[ops.X], zero_point), weights, y)
        return (y,)

    return run_simulated(kernel, problem, lower, compute, {ops.W: w})


def prepare_quantized(kernel: str, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    w = centred(parameters[ops.Q_W], parameters[ops.Q_W_ZERO], along_first=True)
    ((convolution, weights),) = packed_phases(problem, w)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        multiplier = requantize_multiplier(*(parameters[i] for i in (ops.Q_X_SCALE, ops.Q_W_SCALE, ops.Q_Y_SCALE)))
    multiplier = np.ascontiguousarray(np.broadcast_to(multiplier, (problem.outputs[0].shape[1],)))
    zero_point = int(parameters[ops.Q_Y_ZERO].reshape(-1)[0])
    x_zero_point, bias = parameters[ops.Q_X_ZERO], parameters.get(ops.Q_BIAS)

    def compute(design: Hardware, inputs: Inputs) -> tuple[np.ndarray, ...]:
        y = np.zeros(problem.outputs[0].shape, problem.outputs[0].numpy_dtype)
        native().convolve_requantized(
            convolution, design.rows_summed, centred(inputs[ops.Q_X], x_zero_point), weights, bias, multiplier,
            zero_point, y,
        )  # fmt: skip
        return (y,)

    return run_simulated(kernel, problem, lower, compute, {ops.Q_W: w})


def accepts_float(problem: Problem) -> Reject | None:
    return reject_dtype(problem, "float32") or reject_size(problem)


def accepts_integer(problem: Problem) -> Reject | None:
    return reject_dtype(problem, *ops.INTEGERS) or reject_size(problem)


def _kernel(op: str, dtype: str, integer: bool, prepare: Any, summary: str) -> Kernel:
    name = f"{op}_systolic_nchw_{dtype}_asic"
    return Kernel(
        id=name,
        op=op,
        accepts=accepts_integer if integer else accepts_float,
        prepare=lambda problem, parameters: prepare(name, problem, parameters),
        summary=summary,
    )


KERNELS = [
    _kernel("conv", "f32", False, prepare_float, "matrix product on the array, activations gathered on the way in"),
    _kernel("conv_transpose", "f32", False, prepare_float, "one convolution on the array for each phase of the output"),
    _kernel("conv_integer", "i8", True, prepare_integer, "matrix product on the array with 32-bit sums"),
    _kernel("qlinear_conv", "i8", True, prepare_quantized, "the same, requantised by the vector unit"),
]

LOWERINGS = {kernel.op: lower for kernel in KERNELS}
