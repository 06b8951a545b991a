"""The CPU's kernel of convolutions whose weight is shared: codes in memory, decoded on their way into the products."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quatrefoil.cpu import conv, instruction_set
from quatrefoil.ops import compressed
from quatrefoil.ops import conv as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run

NIBBLES = 16
"""Entries of a codebook up to which two codes share a byte."""

WORTH_A_THREAD = 1 << 18
"""Multiply-accumulates from which on another thread is worth waking."""

CODEBOOK = 2
"""Its position among the inputs."""

FEW_CHANNELS = 8

CACHED = 1 << 20
"""Bytes of decoded weights that stay in a second-level cache."""

MANY_PLACES = 256
"""Of all images, for which bringing rows together takes longer than it saves where weights are that few."""

SEVERAL_ROWS = 2
"""Images of a dense layer for which dense kernels read the weights again and again."""


def padded_book(codebook: np.ndarray, bits: int) -> np.ndarray:
    """A codebook with as many entries as codes of so many bits tell apart."""
    book = np.zeros(1 << bits, np.float32)
    book[: codebook.size] = codebook
    return book


MANY_ROWS = 48
"""Places of all images from which on a table of more entries costs a few per cent; looking up value by value, it takes longer
than dense weights from memory for few of them (measured on AVX2)."""


def _accepts(problem: Problem) -> Reject | None:
    base = compressed.base(problem)
    geometry = semantics.geometry(base)
    channels, entries = min(geometry.in_per_group, geometry.out_per_group), problem.input(CODEBOOK).size
    if channels < FEW_CHANNELS:
        return Reject(f"vectors of channels stay empty with {channels} channels a group")
    rows = geometry.batch * geometry.window.output_size
    weights = 4 * geometry.groups * geometry.in_per_group * geometry.out_per_group * geometry.window.taps
    if weights < CACHED and rows >= MANY_PLACES:
        return Reject(
            f"decoded weights of {weights >> 10} KiB stay in a cache, and for {rows} places plain products are faster"
        )
    if conv.accepts_winograd(base) is None:
        return Reject("minimal filters multiply less, with decoded weights")
    if entries > NIBBLES and rows < (MANY_ROWS if geometry.window.output_size > 1 else SEVERAL_ROWS):
        return Reject(
            f"{entries} entries are looked up one by one, which takes longer than reading dense weights for {rows} places"
        )
    return None


def _prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _shared

    form, base = compressed.FORMS[problem.op], compressed.base(problem)
    stored = compressed.shared(problem, form.weights[0], parameters)
    y, place = problem.outputs[0], form.place(semantics.BIAS)
    if y.size == 0:
        return lambda inputs: (np.empty(y.shape, y.numpy_dtype),)
    book = padded_book(stored.codebook, 4 if stored.codebook.size <= NIBBLES else 8)
    run: Run = _shared.Convolution(
        instruction_set.index(),
        semantics.geometry(base),
        semantics.fused_activation(base),
        np.ascontiguousarray(stored.codes),
        book,
        bool(np.isfinite(book).all()),
        np.ascontiguousarray(parameters[place]) if place in parameters else None,
        int(min(max(form.base.work(base).macs / WORTH_A_THREAD, 1), 1024)),
        y.shape,
        y.numpy_dtype,
    ).run
    return run


KERNELS = [
    Kernel("shared_conv_lookup_nchw_f32_simd", "shared_conv", _accepts, _prepare,
           summary="weights stay codes in memory, decoded on their way into the products"),
]  # fmt: skip
