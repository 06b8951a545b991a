"""Which constant weights a model runs by their stored values: a convolution's or a dense layer's that has enough zeros.

The choice is made for each shape, when a plan is made for it, and ``explain`` says it with the share of weights that are not
zero. Where both forms were tuned on this device, their measured times decide; else a table of shares, measured with
``python -m quatrefoil.bench.sparse_crossover`` on AVX2 (docs/compression.md). QUATREFOIL_SPARSE=never turns it off, always
takes the sparse form of every weight that has a zero. Backends but the CPU have no kernel that gains by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quatrefoil import dispatch, ops, settings
from quatrefoil.cpu.conv import winograd_gain
from quatrefoil.ops import compressed, conv
from quatrefoil.problem import Problem, Tensor

BACKENDS = ("cpu",)

FASTER_BELOW = 0.4
"""The share of weights other than zero up to which the sparse kernel is faster than those that multiply tap by tap, with
something in hand for changes of layout. Where minimal filters multiply less, it is so many times smaller."""

BY_TAPS = ("conv_gemm_nchw_f32_simd", "conv_blocked_nchwc_f32_simd", "conv_direct_nchw_f32_simd")
MINIMAL_FILTERS = "conv_winograd_nchwc_f32_simd"
"""Kernels that were measured so; beside others, such as depthwise ones, weights stay dense."""

FASTER_ROW_BELOW = 0.15
"""The same for dense layers on few rows, which read each weight once."""

WORTH_SAYING = 0.95
"""A share of weights other than zero below which ``explain`` also says why they stay dense."""


FEW_ROWS = 2
"""Rows of a dense layer that count as few."""

FORM = compressed.FORMS[compressed.OPS[compressed.SPARSE, "conv"]]


@dataclass(frozen=True)
class Stored:
    """A convolution by its stored values. problem: sparse_conv's; parameters: its constant inputs."""

    problem: Problem
    parameters: Mapping[int, np.ndarray]

    def inputs(self, x: Any, residual: Any = None) -> list[Any]:
        """By the positions of sparse_conv."""
        given = {FORM.place(conv.X): x, FORM.place(conv.RESIDUAL): residual}
        return [given.get(place) for place in range(len(self.problem.inputs))]


def stored_form(problem: Problem, parameters: Mapping[int, np.ndarray], backend: str) -> tuple[Stored | None, str]:
    """The sparse form of a conv problem with these constants on the host, if it is to run so, and what is to be said of it."""
    wish, weights = settings.sparse_weights(), parameters.get(conv.W)
    if wish == settings.NEVER or backend not in BACKENDS or problem.op != "conv" or problem.dtype != "float32":
        return None, ""
    if weights is None or (problem.has(conv.BIAS) and conv.BIAS not in parameters):
        return None, ""
    forced = settings.forced_kernel()
    if forced is not None and not forced.startswith(f"{FORM.op}_"):
        return None, ""
    share = np.count_nonzero(weights) / weights.size
    if share == 1.0:
        return None, ""
    dense = dispatch.select(problem, backend)
    most = _most(problem, dense)
    if wish == settings.AUTO and (most is None or share > 2 * most):
        return None, _staying(share, most)
    rows = compressed.rows_of(weights)
    given = {conv.X: (problem.input(conv.X),), conv.W: tuple(map(Tensor.of, rows))}
    tensors = [tensor for position, each in enumerate(problem.inputs) for tensor in given.get(position, (each,))]
    made = ops.canonical(FORM.op, tensors, {**dict(problem.attributes), "w_shape": weights.shape})
    stored = Stored(
        made,
        dict(zip(FORM.places[conv.W], rows))
        | ({FORM.place(conv.BIAS): parameters[conv.BIAS]} if problem.has(conv.BIAS) else {}),
    )
    if wish == settings.ALWAYS:
        return stored, f"{share:.1%} of its weights are not zero, and {settings.SPARSE_VARIABLE} is {wish}"
    timed = dense.candidates[0].seconds, dispatch.select(made, backend).candidates[0].seconds
    if timed[0] is not None and timed[1] is not None:
        said = (
            f"{share:.1%} of its weights are not zero: {timed[1] * 1e6:.1f} us measured, {timed[0] * 1e6:.1f} us dense"
        )
        return (stored if timed[1] < timed[0] else None), said
    if most is None or share > most:
        return None, _staying(share, most)
    return stored, f"{share:.1%} of its weights are not zero, and up to {most:.0%} it is faster so"


def _most(problem: Problem, dense: dispatch.Selection) -> float | None:
    """The share of weights up to which the sparse form is faster; None where it never is."""
    if not dense.runnable:
        return None
    geometry = conv.geometry(problem)
    if geometry.window.taps * geometry.window.input_size == 1 and geometry.batch <= FEW_ROWS:
        return FASTER_ROW_BELOW
    if dense.chosen.id == MINIMAL_FILTERS:
        return FASTER_BELOW / max(1.0, winograd_gain(geometry.window))
    return FASTER_BELOW if dense.chosen.id in BY_TAPS else None


def _staying(share: float, most: float | None) -> str:
    if share > WORTH_SAYING:
        return ""
    limit = "never faster by its stored values" if most is None else f"faster by its stored values up to {most:.0%}"
    return f"{share:.1%} of its weights are not zero, and it is {limit}"
