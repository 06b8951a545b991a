"""What the OpenCL kernels take: element types, sizes, and how much of a design may stay on the chip.

The budgets are those of a mid-size FPGA (a few megabytes of block RAM, shared by everything that a design holds)
and keep a line buffer's shifts cheap on a processor.
"""

from __future__ import annotations

from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem
from quatrefoil.registry import Reject

LINE_BUFFER_WORDS = 8192
"""Elements that a shift register may hold."""

WEIGHT_WORDS = 32768
"""Weights that a line-buffer kernel keeps on the chip."""

HIDDEN_LIMIT = 4096
"""The largest hidden size: gates and states of one step stay on the chip."""

LANES = 8
"""Output channels (convolution) or planes (pooling) that work in parallel."""

OPENCL_TYPES = {
    "float32": "float", "int64": "long", "int32": "int", "int16": "short", "uint8": "uchar", "int8": "char"
}  # fmt: skip


def unsuited(problem: Problem) -> Reject | None:
    """Element types and sizes that no OpenCL kernel takes."""
    optional = {"float16": "half", "float64": "double"}.get(problem.dtype)
    if optional is not None:
        return Reject(
            f"the kernels compute in float32 and integers ({optional} is optional in OpenCL); cast to float32"
        )
    return too_large(problem)


def too_large(problem: Problem) -> Reject | None:
    for tensor in (*problem.inputs, *problem.outputs):
        if tensor is not None and tensor.size >= 2**31:
            return Reject(f"{tensor} has more elements than the kernels' 32-bit addresses reach; split the batch")
    return None


FAR = 2**30
"""Beyond this, coordinates and their sums might not fit 32 bits."""


def out_of_reach(window: Window) -> Reject | None:
    """Coordinates are computed in 32 bits, padding included."""
    for axis in range(3):
        span = (window.output[axis] - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis]
        reach = max(span, window.input[axis], window.strides[axis], window.dilations[axis]) + window.pads[axis]
        if reach >= FAR:
            return Reject(
                f"the window reaches over {reach} places of an axis, more than 32-bit coordinates hold safely"
            )
    return None


def line_buffer_words(window: Window, lanes: int) -> int:
    """Values that a line buffer of pixels of ``lanes`` values holds."""
    extent_h, extent_w = ((window.kernel[axis] - 1) * window.dilations[axis] + 1 for axis in (1, 2))
    columns = (window.output[2] - 1) * window.strides[2] + extent_w
    return ((extent_h - 1) * columns + extent_w) * lanes


def unstreamable(window: Window, lanes: int) -> Reject | None:
    """Why a line buffer of pixels of ``lanes`` values cannot stream the plane."""
    if (window.input[0], window.output[0], window.kernel[0], window.pads[0]) != (1, 1, 1, 0):
        return Reject("the line buffer streams one or two spatial axes, not three")
    extent_h, extent_w = ((window.kernel[axis] - 1) * window.dilations[axis] + 1 for axis in (1, 2))
    rows, columns = (
        (window.output[axis] - 1) * window.strides[axis] + extent for axis, extent in ((1, extent_h), (2, extent_w))
    )
    words = line_buffer_words(window, lanes)
    if words > LINE_BUFFER_WORDS:
        return Reject(
            f"the window's rows of {lanes} channels are {words} values; the line buffer holds {LINE_BUFFER_WORDS}"
        )
    if rows * columns > 4 * window.input_size + 2**16:
        return Reject(
            f"the stream would be {rows * columns} pixels for {window.input_size} of the input, mostly padding"
        )
    return None
