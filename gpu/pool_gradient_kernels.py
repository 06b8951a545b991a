"""Gradients of pooling in Numba CUDA; imported by ``pool_gradient.py`` when one is prepared.

Arrays come as one axis, ``window`` is that of ``pool_kernels.py``. A thread walks the windows that may hold its place of dx,

    first window = ceil((place + pad - reach) / stride), last window = (place + pad) / stride, reach = (kernel - 1) * dilation

leaves out those whose taps pass over it because of a dilation, and adds what they give, in the same order every time.
"""

# numba.cuda gets most of its names when it is imported, where a type checker does not see them.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from typing import Any

from numba import cuda

Window = tuple[int, ...]


def choose(x: Any, winners: Any, window: Window) -> None:
    """Which place of x won each window, as max_pool's indices name it; -1 for a window of padding alone."""
    i = cuda.grid(1)
    if i >= winners.size:
        return
    n_d, n_h, n_w, o_d, o_h, o_w, k_d, k_h, k_w, s_d, s_h, s_w, l_d, l_h, l_w, p_d, p_h, p_w = window
    plane = i // (o_d * o_h * o_w)
    d = i // (o_h * o_w) % o_d * s_d - p_d
    h = i // o_w % o_h * s_h - p_h
    w = i % o_w * s_w - p_w
    at = -1
    for t_d in range(max(0, -(d // l_d)), min(k_d, -((d - n_d) // l_d))):
        for t_h in range(max(0, -(h // l_h)), min(k_h, -((h - n_h) // l_h))):
            row = ((plane * n_d + d + t_d * l_d) * n_h + h + t_h * l_h) * n_w + w
            for t_w in range(max(0, -(w // l_w)), min(k_w, -((w - n_w) // l_w))):
                value = x[row + t_w * l_w]
                if at < 0 or value > x[at] or (value != value and x[at] == x[at]):
                    at = row + t_w * l_w
    winners[i] = at


def gather_won(dy: Any, winners: Any, dx: Any, window: Window) -> None:
    """Each place takes the gradients of the windows that it won."""
    i = cuda.grid(1)
    if i >= dx.size:
        return
    n_d, n_h, n_w, o_d, o_h, o_w, k_d, k_h, k_w, s_d, s_h, s_w, l_d, l_h, l_w, p_d, p_h, p_w = window
    plane = i // (n_d * n_h * n_w)
    d = i // (n_h * n_w) % n_d + p_d
    h = i // n_w % n_h + p_h
    w = i % n_w + p_w
    total = dx.dtype.type(0)
    for a in range(max(0, -(((k_d - 1) * l_d - d) // s_d)), min(o_d, d // s_d + 1)):
        for b in range(max(0, -(((k_h - 1) * l_h - h) // s_h)), min(o_h, h // s_h + 1)):
            for c in range(max(0, -(((k_w - 1) * l_w - w) // s_w)), min(o_w, w // s_w + 1)):
                place = ((plane * o_d + a) * o_h + b) * o_w + c
                if winners[place] == i:
                    total += dy[place]
    dx[i] = total


def gather_average(dy: Any, dx: Any, pads_end: Window, include_pad: int, window: Window) -> None:
    """Each place takes a share of every window that holds it."""
    i = cuda.grid(1)
    if i >= dx.size:
        return
    n_d, n_h, n_w, o_d, o_h, o_w, k_d, k_h, k_w, s_d, s_h, s_w, l_d, l_h, l_w, p_d, p_h, p_w = window
    # a window's taps count from the first pad to the last, or inside x alone; no window begins before the pads
    b_d, b_h, b_w = (p_d, p_h, p_w) if include_pad else (0, 0, 0)
    e_d, e_h, e_w = pads_end if include_pad else (0, 0, 0)
    plane = i // (n_d * n_h * n_w)
    d = i // (n_h * n_w) % n_d + p_d
    h = i // n_w % n_h + p_h
    w = i % n_w + p_w
    total = dx.dtype.type(0)
    for a in range(max(0, -(((k_d - 1) * l_d - d) // s_d)), min(o_d, d // s_d + 1)):
        if (d - a * s_d) % l_d == 0:
            start = a * s_d - p_d
            depths = min(k_d, -((start - n_d - e_d) // l_d)) - max(0, -((start + b_d) // l_d))
            for b in range(max(0, -(((k_h - 1) * l_h - h) // s_h)), min(o_h, h // s_h + 1)):
                if (h - b * s_h) % l_h == 0:
                    start = b * s_h - p_h
                    rows = min(k_h, -((start - n_h - e_h) // l_h)) - max(0, -((start + b_h) // l_h))
                    for c in range(max(0, -(((k_w - 1) * l_w - w) // s_w)), min(o_w, w // s_w + 1)):
                        if (w - c * s_w) % l_w == 0:
                            start = c * s_w - p_w
                            columns = min(k_w, -((start - n_w - e_w) // l_w)) - max(0, -((start + b_w) // l_w))
                            share = dy[((plane * o_d + a) * o_h + b) * o_w + c]
                            total += share / dx.dtype.type(depths * rows * columns)
    dx[i] = total


def gather_lp(dy: Any, x: Any, y: Any, dx: Any, p: int, window: Window) -> None:
    """Each place takes dy sign(x) (|x| / y)^(p - 1) of every window that holds it; nothing where y is 0."""
    i = cuda.grid(1)
    if i >= dx.size:
        return
    n_d, n_h, n_w, o_d, o_h, o_w, k_d, k_h, k_w, s_d, s_h, s_w, l_d, l_h, l_w, p_d, p_h, p_w = window
    plane = i // (n_d * n_h * n_w)
    d = i // (n_h * n_w) % n_d + p_d
    h = i // n_w % n_h + p_h
    w = i % n_w + p_w
    total = dx.dtype.type(0)
    value = x[i]
    sign = dx.dtype.type(1) if value > 0 else dx.dtype.type(-1) if value < 0 else value
    for a in range(max(0, -(((k_d - 1) * l_d - d) // s_d)), min(o_d, d // s_d + 1)):
        if (d - a * s_d) % l_d == 0:
            for b in range(max(0, -(((k_h - 1) * l_h - h) // s_h)), min(o_h, h // s_h + 1)):
                if (h - b * s_h) % l_h == 0:
                    for c in range(max(0, -(((k_w - 1) * l_w - w) // s_w)), min(o_w, w // s_w + 1)):
                        if (w - c * s_w) % l_w == 0:
                            place = ((plane * o_d + a) * o_h + b) * o_w + c
                            if p == 1:
                                total += dy[place] * sign
                            elif y[place] != 0:
                                share = dy[place] * sign
                                ratio = abs(value) / y[place]
                                for _ in range(p - 1):
                                    share *= ratio
                                total += share
    dx[i] = total


def unpool_take(dy: Any, indices: Any, winners: Any, dx: Any, indexed: Window, output: Window) -> None:
    """Each element that won its place takes dy there; those that were overwritten take 0."""
    i = cuda.grid(1)
    if i >= dx.size:
        return
    index = indices[i]
    n_d, n_h, n_w = indexed
    o_d, o_h, o_w = output
    w = index % n_w
    h = index // n_w % n_h
    d = index // (n_w * n_h) % n_d
    plane = index // (n_w * n_h * n_d)
    place = ((plane * o_d + d) * o_h + h) * o_w + w
    dx[i] = dy[place] if winners[place] == i else 0
