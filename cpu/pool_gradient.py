"""The kernels of pooling's gradients on the CPU, in order of priority."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

import numpy as np

from quatrefoil.cpu import instruction_set
from quatrefoil.cpu.pool import (
    MAX_WORKSPACE_FLOATS,
    VECTOR,
    average_weights,
    is_global,
    padded,
    rounded,
    row_floats,
)
from quatrefoil.ops import pool_gradient as semantics
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem
from quatrefoil.registry import Kernel, Reject, Run

LINES_FLOATS = 8192
"""Floats of the lines that go through the passes together: 32 KiB, the smallest first cache."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Floats for each thread, those of a staged line, how many lines are open at once, the floats of a line of gradients, and
    those in front of it."""

    floats: int = 0
    row_floats: int = 0
    slots: int = 0
    line_floats: int = 0
    lead: int = 0


def no_workspace(w: Window) -> Workspace:
    return Workspace()


def _line(w: Window) -> tuple[int, int]:
    """Floats in front of a line of gradients that a place gathers from, and of the whole line: as far as the first and the last
    place may look for their taps, in whole vectors."""
    stride = w.strides[2]
    lead = rounded((w.kernel[2] - 1) * w.dilations[2] // stride + 1)
    behind = rounded(-(-w.input[2] // stride)) + (w.pads[2] + stride - 1) // stride
    return lead, lead + rounded(max(w.output[2], behind)) + VECTOR


def _phases(w: Window) -> int:
    """Floats of the taps of each phase of the stride (four numbers of 64 bits), and of a vector for each."""
    return w.strides[2] * (8 + VECTOR)


def max_workspace(w: Window) -> Workspace:
    """The lines that are open at once, a line that is staged, and the addresses of a window's lines."""
    lead, line = _line(w)
    row = row_floats(w)
    slot = row + rounded(w.output[2]) + 2 * line
    if w.kernel[0] > 1:
        slots = ((w.kernel[0] - 1) * w.dilations[0] + 1) * w.input[1]
    else:
        slots = max((w.kernel[1] - 1) * w.dilations[1] + 1, min(w.input[1], LINES_FLOATS // slot))
    addresses = rounded(2 * w.kernel[0] * w.kernel[1])
    return Workspace(slots * slot + row + _phases(w) + addresses, row, slots, line, lead)


def sum_workspace(w: Window) -> Workspace:
    """A line for each output row, and for each line of dx that is summed with others, with its address."""
    lead, line = _line(w)
    slots = max(1, min(LINES_FLOATS // line, w.input[0] * w.input[1]))
    rows = w.output[0] * w.output[1] + slots
    return Workspace(rows * line + _phases(w) + rounded(2 * slots), 0, slots, line, lead)


def _forward(problem: Problem) -> str:
    """The pool whose gradient this is."""
    return problem.op.removesuffix("_gradient")


def _only_float32(problem: Problem) -> Reject | None:
    if problem.dtype != "float32":
        return Reject(f"it computes float32, not {problem.dtype}")
    if problem.op == "lp_pool_gradient" and problem.integer("p") > 2:
        return Reject(f"it computes p = 1 and 2, not {problem.integer('p')}")
    return None


def _accepts_global(problem: Problem) -> Reject | None:
    reject = _only_float32(problem)
    if reject is None and not is_global(semantics.geometry(problem).window):
        return Reject("its window is the whole plane, without padding or dilation")
    return reject


def _accepts(workspace: Callable[[Window], Workspace]) -> Callable[[Problem], Reject | None]:
    def accepts(problem: Problem) -> Reject | None:
        reject = _only_float32(problem)
        floats = workspace(semantics.geometry(problem).window).floats
        if reject is None and floats > MAX_WORKSPACE_FLOATS:
            return Reject(f"its window would take {floats} floats of lines, more than {MAX_WORKSPACE_FLOATS}")
        return reject

    return accepts


def _accepts_any(problem: Problem) -> Reject | None:
    """Any shape and option; half precision is widened (``quatrefoil.widening``)."""
    return Reject("it computes float32 and float64, not float16") if problem.dtype == "float16" else None


def _holders(w: Window, axis: int) -> np.ndarray:
    """For each place of x where the list of the output places whose windows hold it begins, and where the last list ends; then
    the lists."""
    places = np.arange(w.input[axis])[:, None]
    taps = np.arange(w.kernel[axis])
    reached = places + w.pads[axis] - taps * w.dilations[axis]
    output, rest = np.divmod(reached, w.strides[axis])
    holds = (reached >= 0) & (rest == 0) & (output < w.output[axis])
    begins = np.concatenate([[0], np.cumsum(holds.sum(1))]) + w.input[axis] + 1
    return np.concatenate([begins, output[holds]]).astype(np.int32)


def _prepare(algorithm: str, workspace: Callable[[Window], Workspace] = no_workspace) -> Callable[..., Run]:
    """The prepare of a kernel that runs ``algorithm`` of src/pool_gradient.h."""

    def prepare(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
        from quatrefoil.cpu import _pool

        g = semantics.geometry(problem)
        dx = problem.outputs[0]
        include = problem.op == "average_pool_gradient" and problem.integer("count_include_pad") == 1
        row_weights, column_weights = average_weights(g, include)
        summing = algorithm == "sum"
        run: Run = _pool.PoolGradient(
            algorithm,
            instruction_set.index(),
            g,
            _forward(problem),
            dx.shape,
            dx.numpy_dtype,
            count_include_pad=int(include),
            p=problem.integer("p") if problem.op == "lp_pool_gradient" else 1,
            row_weights=row_weights,
            column_weights=padded(column_weights),
            holders=[_holders(g.window, axis) if summing else np.empty(0, np.int32) for axis in range(2)],
            workspace=astuple(workspace(g.window)),
        )
        return run

    return prepare


def _prepare_unpool(problem: Problem, parameters: Mapping[int, np.ndarray]) -> Run:
    from quatrefoil.cpu import _pool

    dy, dx = problem.input(semantics.DY), problem.outputs[0]
    geometry = semantics.unpool_geometry(problem)
    return _pool.UnpoolGradient(instruction_set.index(), geometry, dy.size, dx.shape, dx.numpy_dtype)


KERNELS: tuple[Kernel, ...] = (
    *(
        Kernel(f"{op}_global_nchw_f32_simd", op, _accepts_global, _prepare("global"), summary="one number a plane")
        for op in semantics.WINDOW_OPS
    ),
    Kernel("max_pool_gradient_separable_nchw_f32_simd", "max_pool_gradient", _accepts(max_workspace),
           _prepare("max", max_workspace), summary="the first greatest of a line, then of the lines"),
    *(
        Kernel(f"{op}_separable_nchw_f32_simd", op, _accepts(sum_workspace), _prepare("sum", sum_workspace),
               summary="sums along the window's rows and columns in turn")
        for op in ("average_pool_gradient", "lp_pool_gradient")
    ),
    *(
        Kernel(f"{op}_general_nchw_any_simd", op, _accepts_any, _prepare("general"), summary="the definition, in loops")
        for op in semantics.WINDOW_OPS
    ),
    Kernel("max_unpool_gradient_gather_nchw_any_simd", "max_unpool_gradient", _accepts_any, _prepare_unpool,
           summary="a gather, from the last element on"),
)  # fmt: skip
