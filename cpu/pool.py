"""The pooling kernels of the CPU, in order of priority."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.ops import pool as semantics
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run

SLIDING_WINDOWS = ("2x2/2x2", "3x3/2x2", "2x2/1x1", "3x3/1x1", "5x5/1x1",
                   "1x2/1x2", "1x3/1x2", "1x4/1x4", "1x2/1x1", "1x3/1x1", "1x5/1x1")  # fmt: skip
"""The windows (height x width / strides) that src/pool_sliding.cpp has instances for."""

VECTOR = 16
"""Floats in the widest vector: what row buffers are rounded up to."""


def _only_float32(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    if problem.op == "max_pool" and problem.integer("with_indices"):
        return Reject("it gives no indices")
    if problem.op == "lp_pool" and problem.integer("p") > 2:
        return Reject(f"it computes p = 1 and 2, not {problem.integer('p')}")
    return None


def _accepts_sliding(problem: Problem) -> Reject | None:
    reject = _only_float32(problem)
    if reject:
        return reject
    w = semantics.geometry(problem).window
    if w.input[0] > 1 or w.output[0] > 1 or w.kernel[0] > 1 or w.pads[0]:
        return Reject("it slides over one or two axes, not three")
    if w.dilations != (1, 1, 1) and w.taps > 1:
        return Reject("its windows have no dilation")
    text = f"{w.kernel[1]}x{w.kernel[2]}/{w.strides[1]}x{w.strides[2]}"
    if text not in SLIDING_WINDOWS:
        return Reject(f"it has no instance for the window {text} (height x width / strides)")
    return None


def _accepts_global(problem: Problem) -> Reject | None:
    reject = _only_float32(problem)
    if reject:
        return reject
    w = semantics.geometry(problem).window
    if w.output_size > 1 or w.kernel != w.input or w.dilations != (1, 1, 1) or any(w.pads):
        return Reject("its window is the whole plane, without padding or dilation")
    return None


def _accepts_indices(problem: Problem) -> Reject | None:
    if not problem.integer("with_indices"):
        return Reject("it is for the values and their indices, and the values alone are wanted")
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    if semantics.geometry(problem).window.input_size >= 2**31:
        return Reject("it counts places in a plane with 32 bits")
    return None


def _accepts_any(problem: Problem) -> Reject | None:
    return None


def _rounded(count: int) -> int:
    return -(-count // VECTOR) * VECTOR


def _row_floats(w: Window) -> int:
    """Floats of one padded row buffer, split into phases or not."""
    taps = (w.kernel[2] - 1) * w.dilations[2] + 1
    phase = _rounded(_rounded(w.output[2]) + taps // w.strides[2] + 2 * VECTOR)
    row = max(w.pads[2] + _rounded(w.input[2]) + VECTOR, w.output[2] + 2 * taps + 3 * VECTOR)
    return max(phase, _rounded(-(-row // w.strides[2]))) * w.strides[2]


def separable_workspace(w: Window) -> int:
    """Two row buffers."""
    return 2 * _row_floats(w)


def indices_workspace(w: Window) -> int:
    """The places of an output row, a row buffer, and a ring of one for each input row that a window spans."""
    rows = w.kernel[0] * ((w.kernel[1] - 1) * w.dilations[1] + 1)
    return _rounded(w.output[2]) + (1 + rows) * _row_floats(w)


def _column_taps(w: Window, include: bool, end: int) -> np.ndarray:
    """For each output column, which taps count: inside the row, or inside the row and its pads."""
    starts = np.arange(w.output[2])[:, None] * w.strides[2] - w.pads[2]
    columns = starts + np.arange(w.kernel[2])[None] * w.dilations[2]
    low, high = (-w.pads[2], w.input[2] + end) if include else (0, w.input[2])
    return (columns >= low) & (columns < high)


def _padded(values: np.ndarray) -> np.ndarray:
    """Rounded up to whole vectors, so that the kernels can load the last one."""
    return np.concatenate([values, np.zeros(_rounded(values.size) - values.size, values.dtype)])


def _prepare(
    algorithm: str, workspace: Callable[[Window], int] | None = None
) -> Callable[[Problem, Mapping[int, np.ndarray]], Run]:
    """The prepare of a kernel that runs ``algorithm`` of src/pool.h."""

    def prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
        from quatrefoil.cpu import _pool

        g = semantics.geometry(problem)
        y = problem.outputs[0]
        half = problem.dtype == "float16"
        include = problem.op == "average_pool" and problem.integer("count_include_pad") == 1
        with_indices = problem.op == "max_pool" and problem.integer("with_indices") == 1
        taps = _column_taps(g.window, include, g.pads_end[2])
        with np.errstate(divide="ignore"):
            weights = (1.0 / taps.sum(axis=1)).astype(np.float32)
        starts = np.arange(g.window.output[2]) * g.window.strides[2] - g.window.pads[2]
        first = np.where(taps.any(axis=1), starts + taps.argmax(axis=1) * g.window.dilations[2], -1)
        run: Run = _pool.Pool(
            algorithm,
            instruction_set.index(),
            g,
            problem.op,
            y.shape,
            np.dtype(np.float32) if half else y.numpy_dtype,
            with_indices=with_indices,
            storage_order=problem.integer("storage_order") if problem.op == "max_pool" else 0,
            count_include_pad=int(include),
            p=problem.integer("p") if problem.op == "lp_pool" else 1,
            column_weights=_padded(weights),
            first_columns=_padded(first.astype(np.int32)),
            workspace=workspace(g.window) if workspace else 0,
        )
        return _through_float32(run) if half else run

    return prepare


def _through_float32(run: Run) -> Run:
    """float16 values are float32 values, so that a maximum stays exact and a sum is rounded once."""

    def converted(inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x = inputs[0]
        assert x is not None
        y, *indices = run([x.astype(np.float32)])
        with np.errstate(over="ignore"):
            return (y.astype(np.float16), *indices)

    return converted


def _prepare_unpool(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _pool

    y = problem.outputs[0]
    return _pool.Unpool(instruction_set.index(), semantics.unpool_geometry(problem), y.shape, y.numpy_dtype)  # type: ignore[no-any-return]


KERNELS: list[Kernel] = [
    *(
        Kernel(f"{op}_sliding_nchw_f32_simd", op, _accepts_sliding, _prepare("sliding"),
               summary="register sliding window, rows kept in registers")
        for op in ("max_pool", "average_pool")
    ),
    *(
        kernel
        for op in semantics.WINDOW_OPS
        for kernel in (
            Kernel(f"{op}_global_nchw_f32_simd", op, _accepts_global, _prepare("global"),
                   summary="one pass over each plane"),
            Kernel(f"{op}_separable_nchw_f32_simd", op, _only_float32, _prepare("separable", separable_workspace),
                   summary="down the window's rows, then along the width"),
        )
    ),
    Kernel("max_pool_indices_nchw_f32_simd", "max_pool", _accepts_indices, _prepare("indices", indices_workspace),
           summary="taps in order, the place beside the best"),
    *(
        Kernel(f"{op}_general_nchw_any_simd", op, _accepts_any, _prepare("general"), summary="the definition, in loops")
        for op in semantics.WINDOW_OPS
    ),
    Kernel("max_unpool_scatter_nchw_any_simd", "max_unpool", _accepts_any, _prepare_unpool, summary="a scatter"),
]  # fmt: skip
