"""The kernels of the CPU for the gradients of a convolution's weight and bias, in order of priority. That of its input is
conv_transpose's (conv.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.cpu.conv import depthwise_plane
from quatrefoil.ops import conv_gradient as semantics
from quatrefoil.ops.conv import ConvGeometry
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run, only_dtypes

MOST_COLUMNS = 7  # MOST_WIDE of src/conv_gradient_depthwise.cpp
LEAST_FILLED = 4
"""Channels in a vector, and scalars that meet it: with fewer, a product is no faster than the definition."""


def _accepts_depthwise(problem: Problem) -> Reject | None:
    geometry = semantics.geometry(problem)
    reject, window = depthwise_plane(problem, geometry), geometry.window
    if reject is not None:
        return reject
    if window.kernel[2] > MOST_COLUMNS:
        return Reject(f"it takes kernels of up to {MOST_COLUMNS} columns, not {window.kernel[2]}")
    return None


def _accepts_product(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    geometry = semantics.geometry(problem)
    inputs, outputs, taps = geometry.in_per_group, geometry.out_per_group, geometry.window.taps
    if max(min(inputs, LEAST_FILLED) * outputs, min(outputs, LEAST_FILLED) * inputs * taps) < LEAST_FILLED**2:
        return Reject(f"vectors of channels stay empty with {inputs} and {outputs} channels a group")
    return None


def _weight(algorithm: str) -> Callable[[Problem, Mapping[int, np.ndarray]], Run]:
    def prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
        from quatrefoil.cpu import _conv

        dw = problem.outputs[0]
        return _conv.GradientRun(
            algorithm, instruction_set.index(), semantics.geometry(problem), dw.shape, dw.numpy_dtype
        )

    return prepare


def _bias(algorithm: str) -> Callable[[Problem, Mapping[int, np.ndarray]], Run]:
    def prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
        from quatrefoil.cpu import _conv

        dy, db = problem.input(0), problem.outputs[0]
        places = (1, 1, int(np.prod(dy.shape[2:])))
        window = Window(places, places, (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0))
        geometry = ConvGeometry(dy.shape[0], 1, 1, dy.shape[1], window)
        return _conv.GradientRun(algorithm, instruction_set.index(), geometry, db.shape, db.numpy_dtype)

    return prepare


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "conv_weight_gradient_depthwise_nchw_f32_simd",
        "conv_weight_gradient",
        _accepts_depthwise,
        _weight("conv_gradient_depthwise_f32"),
        summary="vectors along rows, all taps of some rows of the kernel in registers; the definition for values that are not "
        "finite",
    ),
    Kernel(
        "conv_weight_gradient_product_nchw_f32_simd",
        "conv_weight_gradient",
        _accepts_product,
        _weight("conv_gradient_product_f32"),
        summary="a product over places, x in channel blocks whose taps are offsets, dy as it is; the definition for values that "
        "are not finite",
    ),
    Kernel(
        "conv_weight_gradient_direct_nchw_f32_simd",
        "conv_weight_gradient",
        only_dtypes("float32"),
        _weight("conv_gradient_direct_f32"),
        summary="the definition, row by row",
    ),
    Kernel(
        "conv_weight_gradient_direct_nchw_f64_simd",
        "conv_weight_gradient",
        only_dtypes("float64"),
        _weight("conv_gradient_direct_f64"),
        summary="the definition, row by row",
    ),
    Kernel(
        "conv_bias_gradient_rows_nchw_f32_simd",
        "conv_bias_gradient",
        only_dtypes("float32"),
        _bias("conv_gradient_bias_f32"),
        summary="sums of stretches in vectors, added in double",
    ),
    Kernel(
        "conv_bias_gradient_rows_nchw_f64_simd",
        "conv_bias_gradient",
        only_dtypes("float64"),
        _bias("conv_gradient_bias_f64"),
        summary="a sum, value by value",
    ),
)
