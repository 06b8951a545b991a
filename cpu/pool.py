"""The pooling kernels of the CPU, in order of priority."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.ops import pool as semantics
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run

VECTOR = 16
"""Floats in the widest vector: what row buffers are rounded up to."""

BATCH_FLOATS = 4096
"""Floats of the row buffers that go through the passes together: 16 KiB, a third of the smallest first cache."""

MAX_WORKSPACE_FLOATS = 2**26
"""Row buffers beyond 256 MiB for each thread are left to the general kernel, which needs none."""


def _only_float32(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    if problem.op == "max_pool" and problem.integer("with_indices"):
        return Reject("it gives no indices")
    if problem.op == "lp_pool" and problem.integer("p") > 2:
        return Reject(f"it computes p = 1 and 2, not {problem.integer('p')}")
    return None


def _accepts_separable(problem: Problem) -> Reject | None:
    reject = _only_float32(problem)
    if reject:
        return reject
    floats = separable_workspace(semantics.geometry(problem).window).floats
    if floats > MAX_WORKSPACE_FLOATS:
        return Reject(f"its window would take {floats} floats of row buffers, more than {MAX_WORKSPACE_FLOATS}")
    return None


def is_global(w: Window) -> bool:
    return w.output_size == 1 and w.kernel == w.input and w.dilations == (1, 1, 1) and not any(w.pads)


def _accepts_global(problem: Problem) -> Reject | None:
    reject = _only_float32(problem)
    if reject:
        return reject
    if not is_global(semantics.geometry(problem).window):
        return Reject("its window is the whole plane, without padding or dilation")
    return None


def _accepts_indices(problem: Problem) -> Reject | None:
    if not problem.integer("with_indices"):
        return Reject("it is for the values and their indices, and the values alone are wanted")
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    if semantics.geometry(problem).window.input_size >= 2**31:
        return Reject("it counts places in a plane with 32 bits")
    floats = indices_workspace(semantics.geometry(problem).window).floats
    if floats > MAX_WORKSPACE_FLOATS:
        return Reject(f"its window would take {floats} floats of row buffers, more than {MAX_WORKSPACE_FLOATS}")
    return None


def _accepts_blocked(problem: Problem) -> Reject | None:
    reject = _only_float32(problem)
    if reject:
        return reject
    geometry = semantics.geometry(problem)
    w = geometry.window
    for axis in range(3):
        low, high = (
            (0, w.input[axis]) if problem.op == "max_pool" else (-w.pads[axis], w.input[axis] + geometry.pads_end[axis])
        )
        if (_taps_between(w, axis, low, high)[1] == 0).any():
            return Reject("one of its windows holds nothing, which would not leave missing channels zero")
    return None


BYTES = ("uint8", "int8")


def _accepts_bytes(problem: Problem) -> Reject | None:
    if problem.dtype not in BYTES:
        return Reject(f"it compares bytes, not {problem.dtype}")
    if problem.integer("with_indices"):
        return Reject("it gives no indices")
    return None


def _accepts_any(problem: Problem) -> Reject | None:
    """Any shape and option; half precision is widened (``quatrefoil.widening``)."""
    return Reject("it computes float32, float64 and bytes, not float16") if problem.dtype == "float16" else None


def rounded(count: int) -> int:
    return -(-count // VECTOR) * VECTOR


def row_floats(w: Window) -> int:
    """Floats of one padded row buffer: whole vectors in each phase of the stride, room for the taps of the last
    vector of outputs and for the input's last vector."""
    reach = (rounded(w.output[2]) - 1) * w.strides[2] + (w.kernel[2] - 1) * w.dilations[2] + 1
    step = VECTOR * w.strides[2]
    return -(-max(reach, w.pads[2] + rounded(w.input[2])) // step) * step


@dataclass(frozen=True, slots=True)
class Workspace:
    """Floats for each thread, those of one row buffer, and how many rows a batch has."""

    floats: int = 0
    row_floats: int = 0
    batch_rows: int = 0


def no_workspace(w: Window) -> Workspace:
    return Workspace()


def separable_workspace(w: Window) -> Workspace:
    """Two batches of lines that fit into the first cache, and behind each the room that a pass along the rows reads
    beyond the last one. A phase of a line has whole vectors in front for the padding, and one to spare."""
    stride = w.strides[2]
    lead = -(-w.pads[2] // (VECTOR * stride)) * VECTOR
    read = lead + (w.kernel[2] - 1) * w.dilations[2] // stride + 1 + rounded(w.output[2])
    row = stride * rounded(max(read, lead + -(-w.input[2] // stride) + VECTOR))
    rows = max(1, min(BATCH_FLOATS // row, w.output[0] * w.output[1]))
    behind = rounded(2 * w.kernel[2] * w.dilations[2]) + 2 * VECTOR
    return Workspace(2 * (rows * row + behind), row, rows)


def indices_workspace(w: Window) -> Workspace:
    """The places of an output row, a row buffer, and a ring of one for each input row that a window spans."""
    if is_global(w):
        return Workspace()
    row = row_floats(w)
    rows = w.kernel[0] * ((w.kernel[1] - 1) * w.dilations[1] + 1)
    return Workspace(rounded(w.output[2]) + (1 + rows) * row, row, rows)


def _taps_between(w: Window, axis: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """For each output place along an axis: the place of the first tap in low to high, and how many taps are in it."""
    starts = np.arange(w.output[axis], dtype=np.int64) * w.strides[axis] - w.pads[axis]
    dilation = w.dilations[axis]
    begins = np.maximum(-((starts - low) // dilation), 0)
    ends = np.minimum(-((starts - high) // dilation), w.kernel[axis])
    return starts + begins * dilation, np.maximum(ends - begins, 0)


def padded(values: np.ndarray) -> np.ndarray:
    """Rounded up to whole vectors, so that the kernels can load the last one."""
    return np.concatenate([values, np.zeros(rounded(values.size) - values.size, values.dtype)])


def average_weights(g: semantics.PoolGeometry, include_pad: bool) -> tuple[np.ndarray, np.ndarray]:
    """What an average multiplies by: 1 / (taps that count), over depth and height for each output row, and along the width for
    each output column. Infinite where none counts. float32."""
    w = g.window
    margins = [(w.pads[axis], g.pads_end[axis]) if include_pad else (0, 0) for axis in range(3)]
    counts = [_taps_between(w, axis, -margins[axis][0], w.input[axis] + margins[axis][1])[1] for axis in range(3)]
    with np.errstate(divide="ignore"):
        return (1.0 / np.outer(counts[0], counts[1])).astype(np.float32), (1.0 / counts[2]).astype(np.float32)


def _prepare(algorithm: str, workspace: Callable[[Window], Workspace] = no_workspace) -> Callable[..., Run]:
    """The prepare of a kernel that runs ``algorithm`` of src/pool.h."""

    def prepare(
        problem: Problem, parameters: Mapping[int, np.ndarray], planes: int | None = None, channels: int = 1
    ) -> Run:
        from quatrefoil.cpu import _pool

        g = semantics.geometry(problem)
        if planes is not None:
            g = replace(g, planes=planes)
        w = g.window
        y = problem.outputs[0]
        include = problem.op == "average_pool" and problem.integer("count_include_pad") == 1
        first, inside = _taps_between(w, 2, 0, w.input[2])
        row_weights, column_weights = average_weights(g, include)
        room = workspace(w)
        run: Run = _pool.Pool(
            algorithm,
            instruction_set.index(),
            g,
            problem.op,
            y.shape,
            y.numpy_dtype,
            with_indices=problem.op == "max_pool" and problem.integer("with_indices") == 1,
            storage_order=problem.integer("storage_order") if problem.op == "max_pool" else 0,
            count_include_pad=int(include),
            p=problem.integer("p") if problem.op == "lp_pool" else 1,
            row_weights=row_weights,
            column_weights=padded(column_weights),
            first_columns=padded(np.where(inside > 0, first, -1).astype(np.int32)),
            workspace=(room.floats, room.row_floats, room.batch_rows),
            channels=channels,
        )
        return run

    return prepare


def _prepare_blocked(
    problem: Problem, parameters: Mapping[int, np.ndarray], x_blocked: bool = False, y_blocked: bool = False
) -> Run:
    """The kernel itself where both sides are in blocks; between plain arrays a sequence of it and the changes of layout."""
    from quatrefoil.cpu import sequence

    of_bytes = problem.dtype in BYTES
    if not x_blocked or not y_blocked:
        return sequence.alone(problem, MAX_OF_BYTES if of_bytes else _BLOCKED[problem.op])
    lanes = instruction_set.lanes()
    batch, channels = problem.input(0).shape[:2]
    if of_bytes:
        return _prepare("bytes")(problem, parameters, batch, channels)
    return _prepare("blocked")(problem, parameters, batch * -(-channels // lanes))


def _prepare_unpool(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _pool

    y = problem.outputs[0]
    return _pool.Unpool(instruction_set.index(), semantics.unpool_geometry(problem), y.shape, y.numpy_dtype)


_BLOCKED = {
    op: Kernel(f"{op}_blocked_nchwc_f32_simd", op, _accepts_blocked, _prepare_blocked,
               summary="vectors of channels, tap by tap", blocked=_prepare_blocked)
    for op in ("max_pool", "average_pool")
}  # fmt: skip

MAX_OF_BYTES = Kernel(
    "max_pool_bytes_nhwc_i8_simd", "max_pool", _accepts_bytes, _prepare_blocked,
    summary="bytes with their channels last: vectors of channels, tap by tap", blocked=_prepare_blocked,
)  # fmt: skip

KERNELS: list[Kernel] = [
    *(
        kernel
        for op in semantics.WINDOW_OPS
        for kernel in (
            Kernel(f"{op}_global_nchw_f32_simd", op, _accepts_global, _prepare("global"), 3,
                   summary="one pass over each plane"),
            Kernel(f"{op}_separable_nchw_f32_simd", op, _accepts_separable, _prepare("separable", separable_workspace), 3,
                   summary="along the window's rows and columns in turn"),
        )
    ),
    *_BLOCKED.values(),
    MAX_OF_BYTES,
    Kernel("max_pool_indices_nchw_f32_simd", "max_pool", _accepts_indices, _prepare("indices", indices_workspace),
           summary="taps in order, the place beside the best"),
    *(
        Kernel(f"{op}_general_nchw_any_simd", op, _accepts_any, _prepare("general"), summary="the definition, in loops")
        for op in semantics.WINDOW_OPS
    ),
    Kernel("max_unpool_scatter_nchw_any_simd", "max_unpool", _accepts_any, _prepare_unpool, summary="a scatter"),
]  # fmt: skip
