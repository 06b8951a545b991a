"""What the OpenCL kernels take: element types, sizes, and how much of a design may stay on the chip.

The budgets are those of a mid-size FPGA (a few megabytes of block RAM, shared by everything that a design holds)
and keep a line buffer's shifts cheap on a processor.
"""

from __future__ import annotations

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

OPENCL_TYPES = {"float32": "float", "int32": "int", "uint8": "uchar", "int8": "char"}


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
