"""Matrix products. float32 and float64 go to NumPy's BLAS; integers go there too, in a float type that holds every
partial sum exactly. BLAS keeps its own number of threads (``OPENBLAS_NUM_THREADS``), which
``quatrefoil.set_num_threads`` does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quatrefoil.models.host.table import Array, Node, Run, given, operator


@operator("MatMul")
def build_matmul(node: Node) -> Run | None:
    return lambda inputs: [product(inputs[0], inputs[1])]


def product(a: Array, b: Array) -> Array:
    """a @ b; float16 sums in float32."""
    if a.dtype == np.float16:
        return np.asarray(np.matmul(a.astype(np.float32), b.astype(np.float32))).astype(np.float16)
    return np.matmul(a, b)


@operator("Gemm")
def build_gemm(node: Node) -> Run | None:
    """alpha A' B' + beta C"""
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    transpose_a, transpose_b = bool(node.get("transA", 0)), bool(node.get("transB", 0))

    def run(inputs: Sequence[Any]) -> list[Any]:
        a = inputs[0].T if transpose_a else inputs[0]
        b = inputs[1].T if transpose_b else inputs[1]
        if a.ndim != 2 or b.ndim != 2:
            raise node.error("the ranks of A and B", f"{a.ndim} and {b.ndim}", "both have to be matrices")
        y = product(a, b)
        kind = y.dtype.type
        if alpha != 1:
            y *= kind(alpha)
        c = given(inputs, 2)
        if c is not None:
            y += c if beta == 1 else kind(beta) * c
        return [y]

    return run


def integer_product(a: Array, b: Array, a_zero: Any, b_zero: Any) -> Array:
    """(a - a_zero) @ (b - b_zero) of 8-bit integers as int32, wrapping. A product of two shifted 8-bit numbers is
    below 2^16, so 2^8 of them sum exactly in float32 and 2^37 in float64."""
    kind = np.float32 if a.shape[-1] <= 256 else np.float64
    left, right = a.astype(kind), b.astype(kind)
    if a_zero is not None:
        left = left - _rows(a_zero, kind)
    if b_zero is not None:
        right = right - np.asarray(b_zero).astype(kind)
    return np.asarray(np.matmul(left, right)).astype(np.int64).astype(np.int32)


def _rows(zero_point: Array, kind: Any) -> Array:
    """A zero point for each row of A comes as a vector."""
    zero = np.asarray(zero_point).astype(kind)
    return zero[:, np.newaxis] if zero.ndim == 1 and zero.size > 1 else zero


@operator("MatMulInteger")
def build_matmul_integer(node: Node) -> Run | None:
    return lambda inputs: [integer_product(inputs[0], inputs[1], given(inputs, 2), given(inputs, 3))]


@operator("QLinearMatMul")
def build_qlinear_matmul(node: Node) -> Run | None:
    def run(inputs: Sequence[Any]) -> list[Any]:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
        if max(a_scale.ndim, y_scale.ndim, a_zero.ndim, y_zero.ndim) > 1:
            raise node.error("the rank of a scale", a_scale.ndim, "give a scalar or a vector")
        rows = _rows(a_scale, a_scale.dtype)
        scale = rows * b_scale / _rows(y_scale, y_scale.dtype)
        y = integer_product(a, b, a_zero, b_zero).astype(np.float32) * scale.astype(np.float32)
        limits = np.iinfo(y_zero.dtype)
        y = np.rint(y) + _rows(y_zero, np.float32)
        return [np.clip(y, limits.min, limits.max).astype(y_zero.dtype)]

    return run
