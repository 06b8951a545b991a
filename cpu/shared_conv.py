"""The CPU's kernel of convolutions whose weight is shared: codes in memory, decoded on their way into the products."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quatrefoil.cpu import compressed_limits, conv, instruction_set
from quatrefoil.cpu.compressed_limits import SHORT_BOOK
from quatrefoil.ops import compressed
from quatrefoil.ops import conv as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run

WORTH_A_THREAD = 1 << 18
"""Multiply-accumulates from which on another thread is worth waking."""

CODEBOOK = 2
"""Its position among the inputs."""

FEW_CHANNELS = 8

MANY_PLACES = 256
"""Of all images, for which bringing rows together takes longer than it saves where weights are that few."""


def padded_book(codebook: np.ndarray, bits: int) -> np.ndarray:
    """A codebook with as many entries as codes of so many bits tell apart."""
    book = np.zeros(1 << bits, np.float32)
    book[: codebook.size] = codebook
    return book


def _accepts(problem: Problem) -> Reject | None:
    base, known = compressed.base(problem), compressed_limits.limits()
    geometry = semantics.geometry(base)
    channels, entries = min(geometry.in_per_group, geometry.out_per_group), problem.input(CODEBOOK).size
    if channels < FEW_CHANNELS:
        return Reject(f"vectors of channels stay empty with {channels} channels a group")
    rows = geometry.batch * geometry.window.output_size
    weights = 4 * geometry.groups * geometry.in_per_group * geometry.out_per_group * geometry.window.taps
    if weights < known.cached and rows >= MANY_PLACES:
        return Reject(
            f"decoded weights of {weights >> 10} KiB stay in a cache, and for {rows} places plain products are faster"
        )
    if conv.accepts_winograd(base) is None:
        return Reject("minimal filters multiply less, with decoded weights")
    if entries > SHORT_BOOK:
        if geometry.window.output_size > 1:
            if rows < known.coded_planes:
                return Reject(f"{entries} entries take longer to decode than {rows} places to multiply")
        elif rows == 1 and (known.coded_row.long is None or weights < known.coded_row.long):
            return Reject(f"{entries} entries take longer to decode than {weights >> 10} KiB of dense weights to read")
    return None


def _prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _shared

    form, base = compressed.FORMS[problem.op], compressed.base(problem)
    stored = compressed.shared(problem, form.weights[0], parameters)
    y, place = problem.outputs[0], form.place(semantics.BIAS)
    if y.size == 0:
        return lambda inputs: (np.empty(y.shape, y.numpy_dtype),)
    book = padded_book(stored.codebook, 4 if stored.codebook.size <= SHORT_BOOK else 8)
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
