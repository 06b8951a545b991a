"""Which constant weights a model runs in another form: by their stored values where enough of them are zero, or by codes
into a codebook where few values are shared. Convolutions, dense layers and recurrent ones.

The choice is made for each shape, when a plan is made for it, and ``explain`` says it with the share of weights that are not
zero. Where both forms were tuned on this device, their measured times decide; else the shares below, measured on AVX2 with
``python -m quatrefoil.bench.sparse_crossover`` (docs/compression.md). QUATREFOIL_SPARSE=never turns it off, always takes the
sparse form of every weight that has a zero, and codes for those without that share 256 values. Backends but the CPU have
no kernel that gains by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

FEW_ROWS, FASTER_ROW_BELOW = 2, 0.15
"""The same for dense layers on few rows, which read each weight once."""

FEW_SEQUENCES, FASTER_STEP_BELOW, FASTER_STEPS_BELOW = 7, 0.1, 0.3
"""The same for recurrent layers on few sequences, and on more."""

SHORT_BOOK, FAR_BYTES = 16, 4 << 20
"""Codes of half a byte are faster than weights of so many bytes, which come from far, for few sequences; others are only
smaller."""

WORTH_SAYING = 0.95
"""A share of weights other than zero below which ``explain`` also says why they stay dense."""

LOOKED_AT = 4096
"""Values that are looked at first, to see whether they are few."""


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
    if forced is not None and not forced.startswith((f"{sparse.op}_", f"{shared.op}_")):
        return None, ""
    weights = [parameters[weight.position] for weight in sparse.weights]
    share = sum(np.count_nonzero(weight) for weight in weights) / sum(weight.size for weight in weights)
    dense = dispatch.select(problem, backend)
    if not dense.runnable:
        return None, ""
    most = _most(problem, dense)
    said = f"{share:.1%} of its weights are not zero"
    if share < 1.0 and (wish == settings.ALWAYS or _may(share, most, problem, backend)):
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
    far = problem.op != "conv" and _few(problem) and max(weight.nbytes for weight in weights) >= FAR_BYTES
    if wish == settings.ALWAYS or far:
        books = [_coded(weight) for weight in weights]
        found = [book for book in books if book is not None]
        entries = max((book.codebook.size for book in found), default=0)
        if len(found) == len(books) and (wish == settings.ALWAYS or entries <= SHORT_BOOK):
            why = f"{settings.SPARSE_VARIABLE} is {wish}" if wish == settings.ALWAYS else "codes are read faster"
            stored = _made(problem, parameters, shared, [tuple(book) for book in found], {})
            return stored, f"its weights are {entries} values, and {why}"
    if share > WORTH_SAYING:
        return None, ""
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


def _coded(weight: np.ndarray) -> compressed.Shared | None:
    """A weight by its codebook, where its values are few enough."""
    if np.unique(weight.reshape(-1)[:LOOKED_AT]).size > compressed.MOST_ENTRIES:
        return None
    values, codes = np.unique(weight, return_inverse=True)
    if values.size > compressed.MOST_ENTRIES:
        return None
    return compressed.Shared(codes.astype(np.uint8).reshape(weight.shape), values)


def _few(problem: Problem) -> bool:
    """Whether a recurrent layer has few sequences."""
    return problem.input(ops.rnn.X).shape[1] <= FEW_SEQUENCES


def _may(share: float, most: float | None, problem: Problem, backend: str) -> bool:
    """Whether the sparse form is worth making: by the table, or because the dense one was tuned and this may have been."""
    tuned = dispatch.select(problem, backend).candidates[0].seconds is not None
    return tuned or (most is not None and share <= most)


def _most(problem: Problem, dense: dispatch.Selection) -> float | None:
    """The share of weights up to which the sparse form is faster; None where it never is."""
    if problem.op != "conv":
        return FASTER_STEP_BELOW if _few(problem) else FASTER_STEPS_BELOW
    geometry = conv.geometry(problem)
    if geometry.window.taps * geometry.window.input_size == 1 and geometry.batch <= FEW_ROWS:
        return FASTER_ROW_BELOW
    if dense.chosen.id == MINIMAL_FILTERS:
        return FASTER_BELOW / max(1.0, winograd_gain(geometry.window))
    return FASTER_BELOW if dense.chosen.id in BY_TAPS else None
