"""Pooling kernels in Numba CUDA; imported by ``pool.py`` when one is prepared.

One thread computes one output value (``average_pool_plane``: one block). Arrays come as one axis. ``window`` is
``ops.windows.Window`` as a tuple: input, output, kernel, strides, dilations and pads, each depth, height, width. A
thread turns its window into the range of taps that lie inside x on each axis and walks those alone:

    first tap = ceil(-start / dilation), last tap = ceil((extent - start) / dilation), start = place * stride - pad

Only what Numba's CUDA simulator also knows is used: no warp operations, no grid-wide barriers.
"""

# numba.cuda gets most of its names when it is imported, where a type checker does not see them.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32

PLANE_THREADS = 32

Window = tuple[int, ...]


def max_pool(x: Any, y: Any, indices: Any, lowest: Any, with_indices: int, column_major: int, window: Window) -> None:
    """The first greatest value of each window, NaN above all; ``lowest`` and -1 for a window of padding alone."""
    i = cuda.grid(1)
    if i >= y.size:
        return
    n_d, n_h, n_w, o_d, o_h, o_w, k_d, k_h, k_w, s_d, s_h, s_w, l_d, l_h, l_w, p_d, p_h, p_w = window
    plane = i // (o_d * o_h * o_w)
    d = i // (o_h * o_w) % o_d * s_d - p_d
    h = i // o_w % o_h * s_h - p_h
    w = i % o_w * s_w - p_w
    best = lowest
    at = -1
    for t_d in range(max(0, -(d // l_d)), min(k_d, -((d - n_d) // l_d))):
        for t_h in range(max(0, -(h // l_h)), min(k_h, -((h - n_h) // l_h))):
            row = ((plane * n_d + d + t_d * l_d) * n_h + h + t_h * l_h) * n_w + w
            for t_w in range(max(0, -(w // l_w)), min(k_w, -((w - n_w) // l_w))):
                value = x[row + t_w * l_w]
                # a comparison with NaN is false, and a value that differs from itself is NaN
                if at < 0 or value > best or (value != value and best == best):
                    best = value
                    at = row + t_w * l_w
    y[i] = best
    if with_indices:
        if column_major and at >= 0:
            inside = at % (n_d * n_h * n_w)
            column = inside % n_w * n_h + inside // n_w % n_h
            at = plane * (n_d * n_h * n_w) + column * n_d + inside // (n_w * n_h)
        indices[i] = at


def average_pool(x: Any, y: Any, pads_end: Window, include_pad: int, window: Window) -> None:
    """The mean of each window's taps inside x, or inside x and its pads. Rows are summed by themselves first, which
    keeps the error of large windows small."""
    i = cuda.grid(1)
    if i >= y.size:
        return
    n_d, n_h, n_w, o_d, o_h, o_w, k_d, k_h, k_w, s_d, s_h, s_w, l_d, l_h, l_w, p_d, p_h, p_w = window
    e_d, e_h, e_w = pads_end
    plane = i // (o_d * o_h * o_w)
    d = i // (o_h * o_w) % o_d * s_d - p_d
    h = i // o_w % o_h * s_h - p_h
    w = i % o_w * s_w - p_w
    first_d, last_d = max(0, -(d // l_d)), min(k_d, -((d - n_d) // l_d))
    first_h, last_h = max(0, -(h // l_h)), min(k_h, -((h - n_h) // l_h))
    first_w, last_w = max(0, -(w // l_w)), min(k_w, -((w - n_w) // l_w))
    total = float32(0)
    for t_d in range(first_d, last_d):
        for t_h in range(first_h, last_h):
            row = ((plane * n_d + d + t_d * l_d) * n_h + h + t_h * l_h) * n_w + w
            row_total = float32(0)
            for t_w in range(first_w, last_w):
                row_total += x[row + t_w * l_w]
            total += row_total
    if include_pad:
        # every tap from the first pad to the last counts; no window begins before the pads
        first_d, last_d = 0, min(k_d, -((d - n_d - e_d) // l_d))
        first_h, last_h = 0, min(k_h, -((h - n_h - e_h) // l_h))
        first_w, last_w = 0, min(k_w, -((w - n_w - e_w) // l_w))
    count = max(0, last_d - first_d) * max(0, last_h - first_h) * max(0, last_w - first_w)
    y[i] = total / float32(count) if count > 0 else float32(np.nan)


def average_pool_plane(x: Any, y: Any, size: int) -> None:
    """The mean of a whole plane of ``size`` values: one block a plane, its threads' sums added up in shared memory."""
    sums = cuda.shared.array(PLANE_THREADS, float32)
    thread = cuda.threadIdx.x
    start = cuda.blockIdx.x * size
    total = float32(0)
    for i in range(thread, size, PLANE_THREADS):
        total += x[start + i]
    sums[thread] = total
    cuda.syncthreads()
    half = PLANE_THREADS // 2
    while half > 0:
        if thread < half:
            sums[thread] += sums[thread + half]
        cuda.syncthreads()
        half //= 2
    if thread == 0:
        y[cuda.blockIdx.x] = sums[0] / float32(size)


def lp_pool(x: Any, y: Any, p: int, window: Window) -> None:
    """(sum |x|^p)^(1/p) over each window's taps inside x."""
    i = cuda.grid(1)
    if i >= y.size:
        return
    n_d, n_h, n_w, o_d, o_h, o_w, k_d, k_h, k_w, s_d, s_h, s_w, l_d, l_h, l_w, p_d, p_h, p_w = window
    plane = i // (o_d * o_h * o_w)
    d = i // (o_h * o_w) % o_d * s_d - p_d
    h = i // o_w % o_h * s_h - p_h
    w = i % o_w * s_w - p_w
    total = float32(0)
    for t_d in range(max(0, -(d // l_d)), min(k_d, -((d - n_d) // l_d))):
        for t_h in range(max(0, -(h // l_h)), min(k_h, -((h - n_h) // l_h))):
            row = ((plane * n_d + d + t_d * l_d) * n_h + h + t_h * l_h) * n_w + w
            row_total = float32(0)
            for t_w in range(max(0, -(w // l_w)), min(k_w, -((w - n_w) // l_w))):
                value = abs(x[row + t_w * l_w])
                if p == 1:
                    row_total += value
                elif p == 2:
                    row_total += value * value
                else:
                    row_total += float32(math.pow(value, float32(p)))
            total += row_total
    if p == 1:
        y[i] = total
    elif p == 2:
        y[i] = math.sqrt(total)
    else:
        y[i] = math.pow(total, float32(1) / float32(p))


def unpool_clear(winners: Any) -> None:
    """Nobody claims any place of the output yet."""
    i = cuda.grid(1)
    if i < winners.size:
        winners[i] = -1


def unpool_claim(indices: Any, winners: Any, indexed: Window, output: Window) -> None:
    """Each value claims its place in the output; the last value in memory order wins, whatever order threads run in."""
    i = cuda.grid(1)
    if i >= indices.size:
        return
    index = indices[i]
    n_d, n_h, n_w = indexed
    o_d, o_h, o_w = output
    w = index % n_w
    h = index // n_w % n_h
    d = index // (n_w * n_h) % n_d
    plane = index // (n_w * n_h * n_d)
    cuda.atomic.max(winners, ((plane * o_d + d) * o_h + h) * o_w + w, i)


def unpool_gather(x: Any, winners: Any, y: Any) -> None:
    """Each place of the output takes the value that won it, or 0."""
    i = cuda.grid(1)
    if i >= y.size:
        return
    winner = winners[i]
    y[i] = x[winner] if winner >= 0 else 0
