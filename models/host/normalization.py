"""Normalisations in inference: batch, instance and layer normalisation, local response normalisation.

float16 is computed in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from quatrefoil.models.host.table import Array, Node, Run, axis_of, given, operator


def per_channel(values: Array, rank: int) -> Array:
    """A vector that runs along axis 1 of an array of the rank."""
    return values.reshape((1, -1) + (1,) * (rank - 2)) if rank > 1 else values


def folded(statistics: Sequence[Array], epsilon: float) -> tuple[Array, Array]:
    """Batch normalisation by scale, offset, mean and variance as a factor and an offset for each channel."""
    scale, offset, mean, variance = statistics
    wide = np.result_type(scale, np.float32)
    factor = scale.astype(wide) / np.sqrt(variance.astype(wide) + wide.type(epsilon))
    return factor, offset.astype(wide) - mean.astype(wide) * factor


@operator("BatchNormalization")
def build_batch_normalization(node: Node) -> Run | None:
    """x * factor + offset for each channel, both computed once where the statistics are constants."""
    # before operator set 14 training shows in its further outputs alone
    training = node.get("training_mode", 0) or any(node.wants(position) for position in range(1, 5))
    if training or not node.get("spatial", 1):
        return None
    epsilon = float(node.get("epsilon", 1e-5))

    constants = [node.constant(position) for position in range(1, 5)]
    fixed = folded(constants, epsilon) if all(value is not None for value in constants) else None  # type: ignore[arg-type]

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        factor, offset = fixed if fixed is not None else folded(inputs[1:5], epsilon)
        y = np.asarray(np.multiply(x, per_channel(factor, x.ndim)))
        y += per_channel(offset, x.ndim)
        return [y.astype(x.dtype, copy=False)]

    return run


def standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(variance + epsilon), the mean, and 1 / sqrt(variance + epsilon)."""
    mean = np.mean(x, axes, keepdims=True)
    y = np.asarray(np.subtract(x, mean))
    variance = np.mean(np.square(y), axes, keepdims=True)
    inverse = np.reciprocal(np.sqrt(variance + x.dtype.type(epsilon)))
    y *= inverse
    return y, mean, inverse


@operator("InstanceNormalization")
def build_instance_normalization(node: Node) -> Run | None:
    epsilon = float(node.get("epsilon", 1e-5))

    def run(inputs: Sequence[Any]) -> list[Any]:
        x, scale, offset = inputs
        wide = x.astype(np.float32) if x.dtype == np.float16 else x
        y, _, _ = standardized(wide, tuple(range(2, x.ndim)), epsilon)
        y *= per_channel(scale, x.ndim)
        y += per_channel(offset, x.ndim)
        return [y.astype(x.dtype, copy=False)]

    return run


@operator("LayerNormalization")
def build_layer_normalization(node: Node) -> Run | None:
    axis, epsilon = node.get("axis", -1), float(node.get("epsilon", 1e-5))
    if node.get("stash_type", 1) != 1:
        return None

    def run(inputs: Sequence[Any]) -> list[Any]:
        x, scale, offset = inputs[0], inputs[1], given(inputs, 2)
        first = axis_of(axis, x.ndim, node.op)
        wide = x.astype(np.float32) if x.dtype == np.float16 else x
        y, mean, inverse = standardized(wide, tuple(range(first, x.ndim)), epsilon)
        y = y * scale
        if offset is not None:
            y += offset
        stash = np.float32
        return [y.astype(x.dtype, copy=False), mean.astype(stash), inverse.astype(stash)][: len(node.outputs)]

    return run


@operator("LRN")
def build_lrn(node: Node) -> Run | None:
    """x / (bias + alpha / size * sum of squares over ``size`` neighbouring channels) ^ beta (Krizhevsky 2012)."""
    size = int(node.get("size"))
    alpha, beta, bias = (float(node.get(name, value)) for name, value in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1)))
    before, behind = (size - 1) // 2, math.ceil((size - 1) / 2)

    def run(inputs: Sequence[Any]) -> list[Any]:
        x = inputs[0]
        square, channels = np.square(x), x.shape[1]
        total = np.zeros_like(square)
        for shift in range(-before, behind + 1):
            low, high = max(0, -shift), min(channels, channels - shift)
            if low < high:
                total[:, low:high] += square[:, low + shift : high + shift]
        kind = x.dtype.type
        total *= kind(alpha / size)
        total += kind(bias)
        np.power(total, kind(-beta), out=total)
        return [np.multiply(x, total, out=total)]

    return run
