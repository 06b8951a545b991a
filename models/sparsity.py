"""Which constant weights a model runs in another form: by their stored values where enough of them are zero, or by codes
into a codebook where few values are shared. Convolutions, dense layers and recurrent ones.

The choice is made for each shape, when a plan is made for it, and ``explain`` says it with the share of weights that are not
zero, or how many values they are. Where both forms were tuned on this device, their measured times decide; else the limits of
``cpu/compressed_limits.py`` for the instruction set in use. QUATREFOIL_SPARSE=never turns it off, always takes the
sparse form of every weight that has a zero, and codes for those without that share 256 values. Backends but the CPU have
no kernel that gains by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from quatrefoil import dispatch, ops, settings
from quatrefoil.cpu import compressed_limits
from quatrefoil.cpu.compressed_limits import FEW_ROWS, SHORT_BOOK, Limits
from quatrefoil.cpu.conv import winograd_gain
from quatrefoil.ops import compressed, conv
from quatrefoil.problem import Problem, Tensor

BACKENDS = ("cpu",)

BY_TAPS = (
    "conv_tiles_nchw_f32_amx",
    "conv_gemm_nchw_f32_simd",
    "conv_blocked_nchwc_f32_simd",
    "conv_direct_nchw_f32_simd",
)
MINIMAL_FILTERS = "conv_winograd_nchwc_f32_simd"
"""Kernels that were measured against sparse ones; beside others, such as depthwise ones, weights stay dense."""

WORTH_SAYING = 0.95
"""A share of weights other than zero below which ``explain`` also says why they stay dense."""

LOOKED_AT = 4096
"""Values that are looked at first, to see whether they are few; weights of no more are not."""


@dataclass(frozen=True)
class Stored:
    """An operator with compressed weights in the place of a base operator. parameters: its constant inputs."""

    problem: Problem
    parameters: Mapping[int, np.ndarray]

    def inputs(self, given: Sequence[Any]) -> list[Any]:
        """The base operator's inputs, by its own positions, by those of this one; constant ones are None."""
        form = compressed.FORMS[self.problem.op]
        found = [None] * len(self.problem.inputs)
        for position, each in enumerate(given):
            if position not in form.base.parameters and form.place(position) < len(found):
                found[form.place(position)] = each
        return found


def stored_form(problem: Problem, parameters: Mapping[int, np.ndarray], backend: str) -> tuple[Stored | None, str]:
    """The form in which a problem with these constants on the host is to run, None for its own, and what is to be said of
    the choice."""
    wish = settings.sparse_weights()
    if wish == settings.NEVER or backend not in BACKENDS or (compressed.SPARSE, problem.op) not in compressed.OPS:
        return None, ""
    sparse, shared = (
        compressed.FORMS[compressed.OPS[kind, problem.op]] for kind in (compressed.SPARSE, compressed.SHARED)
    )
    constant = all(position in parameters for position in sparse.base.parameters if problem.has(position))
    if not constant or problem.dtype != "float32" or ("layout", 1) in problem.attributes:
        return None, ""
    forced = settings.forced_kernel()
    may_be_sparse, may_be_shared = (forced is None or forced.startswith(f"{form.op}_") for form in (sparse, shared))
    if not may_be_sparse and not may_be_shared:
        return None, ""
    weights = [parameters[weight.position] for weight in sparse.weights]
    share = sum(np.count_nonzero(weight) for weight in weights) / sum(weight.size for weight in weights)
    dense = dispatch.select(problem, backend)
    if not dense.runnable:
        return None, ""
    most, known = _most(problem, dense), compressed_limits.limits()
    said = f"{share:.1%} of its weights are not zero"
    books = _books(weights, wish) if may_be_shared else []
    entries = max((book.codebook.size for book in books), default=0)
    faster, why = _coded_faster(problem, entries, known) if books else (False, "")
    by_codes = wish == settings.AUTO and faster and entries <= SHORT_BOOK and share > known.over_sparse
    if (
        may_be_sparse
        and not by_codes
        and share < 1.0
        and (wish == settings.ALWAYS or _may(share, most, problem, backend))
    ):
        parts = [tuple(compressed.rows_of(weight, each.row_axes)) for weight, each in zip(weights, sparse.weights)]
        shapes = {f"{each.name}_shape": weight.shape for weight, each in zip(weights, sparse.weights)}
        stored = _made(problem, parameters, sparse, parts, shapes)
        if wish == settings.ALWAYS:
            return stored, f"{said}, and {settings.SPARSE_VARIABLE} is {wish}"
        timed = dense.candidates[0].seconds, dispatch.select(stored.problem, backend).candidates[0].seconds
        if timed[0] is not None and timed[1] is not None:
            both = f"{said}: {timed[1] * 1e6:.1f} us measured by its stored values, {timed[0] * 1e6:.1f} us dense"
            return (stored if timed[1] < timed[0] else None), both
        if most is not None and share <= most:
            return stored, f"{said}, and up to {most:.0%} it is faster so"
    if books and (wish == settings.ALWAYS or faster):
        stored = _made(problem, parameters, shared, [tuple(book) for book in books], {})
        return stored, why if faster else f"its weights are {entries} values, and {settings.SPARSE_VARIABLE} is {wish}"
    if share > WORTH_SAYING:
        return None, why
    limit = "never faster by its stored values" if most is None else f"faster by its stored values up to {most:.0%}"
    return None, f"{said}, and it is {limit}"


def _made(
    problem: Problem,
    parameters: Mapping[int, np.ndarray],
    form: compressed.Form,
    parts: Sequence[tuple[np.ndarray, ...]],
    shapes: Mapping[str, tuple[int, ...]],
) -> Stored:
    """The problem with these parts in the place of its weights."""
    constants = {
        form.place(position): parameters[position] for position in form.base.parameters if position in parameters
    }
    for weight, arrays in zip(form.weights, parts):
        constants |= dict(zip(form.places[weight.position], arrays))
    types: list[Tensor | None] = []
    for position, tensor in enumerate(problem.inputs):
        for place in form.places[position]:
            types.append(Tensor.of(constants[place]) if place in constants else tensor)
    own = ops.rnn.onnx_attributes(problem) if problem.op in ops.FAMILIES["rnn"] else dict(problem.attributes)
    made = ops.canonical(form.op, types, {**own, **shapes}, len(problem.outputs))
    return Stored(made, {place: array for place, array in constants.items() if place < len(made.inputs)})


def _books(weights: Sequence[np.ndarray], wish: str) -> list[compressed.Shared]:
    """The weights by their codebooks; none where the values of one are too many, or, unless they are wished for, so few that
    it is no wonder."""
    if wish != settings.ALWAYS and min(weight.size for weight in weights) <= LOOKED_AT:
        return []
    found: list[compressed.Shared] = []
    for weight in weights:
        book = _coded(weight)
        if book is None:
            return []
        found.append(book)
    return found


def _coded(weight: np.ndarray) -> compressed.Shared | None:
    """A weight by its codebook, where its values are few enough."""
    flat = weight.reshape(-1)
    for some in (flat[:LOOKED_AT], flat[:: max(1, flat.size // LOOKED_AT // 16)]):
        values = np.unique(some)
        if values.size > compressed.MOST_ENTRIES:
            return None
    codes = np.minimum(np.searchsorted(values, flat), values.size - 1)
    if not np.array_equal(values[codes], flat):  # some value is not among those
        values, codes = np.unique(flat, return_inverse=True)
        if values.size > compressed.MOST_ENTRIES:
            return None
    return compressed.Shared(codes.astype(np.uint8).reshape(weight.shape), values)


def _coded_faster(problem: Problem, entries: int, known: Limits) -> tuple[bool, str]:
    """Whether codes into so many entries are faster than dense weights, and what is to be said of it."""
    said = f"its weights are {entries} values"
    if problem.op == "conv":
        geometry = conv.geometry(problem)
        if geometry.window.taps * geometry.window.input_size > 1 or geometry.groups > 1:
            return False, f"{said}, whose codes are only smaller: the places of a plane share what is read of them"
        rows, most, begin = geometry.batch, known.coded_rows, compressed_limits.coded_from(entries, known.coded_row)
        weights, unit = 4 * prod(problem.input(conv.W).shape), "rows"
    else:
        rows, most = problem.input(ops.rnn.X).shape[1], known.coded_sequences
        begin = compressed_limits.coded_from(entries, known.coded_steps)
        weights, unit = 4 * prod(problem.input(ops.rnn.R).shape), "sequences"
    if begin is None:
        return False, f"{said}, and so many are looked up slower than dense weights are read"
    faster = rows <= most and weights >= begin
    where = f"from {begin >> 20} MiB of dense weights on, for up to {most} {unit}"
    return faster, f"{said}, and codes are {'' if faster else 'only '}read faster {where}"


def _may(share: float, most: float | None, problem: Problem, backend: str) -> bool:
    """Whether the sparse form is worth making: by the table, or because the dense one was tuned and this may have been."""
    tuned = dispatch.select(problem, backend).candidates[0].seconds is not None
    return tuned or (most is not None and share <= most)


def _most(problem: Problem, dense: dispatch.Selection) -> float | None:
    """The share of weights up to which the sparse form is faster; None where it never is."""
    known = compressed_limits.limits()
    if problem.op != "conv":
        recurrent = 4 * prod(problem.input(ops.rnn.R).shape)
        return compressed_limits.most_stored(problem.input(ops.rnn.X).shape[1], recurrent)
    geometry = conv.geometry(problem)
    if geometry.window.taps * geometry.window.input_size == 1 and geometry.batch <= FEW_ROWS:
        return known.row.cached if 4 * prod(problem.input(conv.W).shape) < known.cached else known.row.far
    if dense.chosen.id == MINIMAL_FILTERS:
        return known.minimal_filters / max(1.0, winograd_gain(geometry.window))
    if dense.chosen.id not in BY_TAPS:
        return None
    return known.one_tap if geometry.window.taps == 1 else known.taps
