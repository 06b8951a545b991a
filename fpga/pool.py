"""Pooling kernels of the FPGA backend: line buffers for max, average and lp pooling over two axes, the direct kernel
for every shape, the one of many work-items, and max unpooling. fixed.py declares the first three for fixed point.

The line-buffer kernel takes planes (channels of any sample) in groups of LANES, the plane innermost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quatrefoil.fpga import opencl
from quatrefoil.fpga.limits import FAR, LANES, OPENCL_TYPES, out_of_reach, too_large, unstreamable, unsuited
from quatrefoil.fpga.streams import Stage, Stream, pixel_counts, window_defines
from quatrefoil.ops import pool as semantics
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Kernel, Reject, Run

MODES = {"max_pool": "MODE_MAX", "average_pool": "MODE_AVERAGE", "lp_pool": "MODE_LP"}
LOWEST = {"float32": "-INFINITY", "int8": "CHAR_MIN", "uint8": "0"}


def _with_indices(problem: Problem) -> bool:
    return len(problem.outputs) == 2


def _defines(problem: Problem) -> dict[str, opencl.Define]:
    defines: dict[str, opencl.Define] = {
        "MODE": MODES[problem.op],
        "X_T": OPENCL_TYPES[problem.dtype],
        "Y_T": OPENCL_TYPES[problem.dtype],
        "LOWEST": LOWEST[problem.dtype],
    }
    if problem.dtype != "float32":
        defines["INTEGERS"] = 1
    if _with_indices(problem):
        defines["WITH_INDICES"] = 1
    return defines


def scalars(problem: Problem) -> tuple[np.int32, ...]:
    """The arguments p, count_pads, column_major, whichever of them the operator has."""
    attributes = dict(problem.attributes)
    names = ("p", "count_include_pad", "storage_order")
    return tuple(np.int32(int(attributes.get(name, 0))) for name in names)  # type: ignore[arg-type]


def empty(problem: Problem) -> Run:
    """A batch of nothing reaches no device."""
    return lambda inputs: tuple(np.empty(tensor.shape, tensor.numpy_dtype) for tensor in problem.outputs)


def _lanes(planes: int) -> int:
    return max(min(LANES, planes), 1)


def accepts_line_buffer(problem: Problem) -> Reject | None:
    g = semantics.geometry(problem)
    if g.window.output_size == 1:
        return Reject("the output is one pixel a plane; there is nothing to slide")
    return unsuited(problem) or out_of_reach(g.window) or unstreamable(g.window, _lanes(g.planes))


def interleave(planes: np.ndarray, lanes: int) -> np.ndarray:
    """(P, H, W) to (ceil(P / lanes), H, W, lanes), filled up with zeros."""
    count, *extents = planes.shape
    padded = np.pad(planes, ((0, -count % lanes), (0, 0), (0, 0)))
    return np.ascontiguousarray(np.moveaxis(padded.reshape(-1, lanes, *extents), 1, -1))


def separate(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of ``interleave``, with the planes' own shape (N, C, ...)."""
    planes = np.moveaxis(blocks, -1, 1).reshape(-1, *blocks.shape[1:-1])
    return np.ascontiguousarray(planes[: shape[0] * shape[1]].reshape(shape))


def prepare_line_buffer(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    return stream(problem, _defines(problem))


def stream(problem: Problem, defines: Mapping[str, opencl.Define]) -> Run:
    """The line-buffer kernel of any pool, a stream of one stage; defines: what pool_window.h wants."""
    g = semantics.geometry(problem)
    if problem.outputs[0].size == 0:
        return empty(problem)
    window, lanes = g.window, _lanes(g.planes)
    alone = Stream([stage(problem, defines, lanes)])
    blocks = -(-g.planes // lanes)
    outputs = tuple(Tensor(y.dtype, (blocks, *window.output[1:], lanes)) for y in problem.outputs)

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        x = inputs[0]
        assert x is not None
        results = alone(interleave(x.reshape(g.planes, *window.input[1:]), lanes), [None], outputs)
        return tuple(separate(result, y.shape) for result, y in zip(results, problem.outputs))

    return run


def streamed(problem: Problem, parameters: Mapping[int, Array]) -> Stage:
    """The stage of max_pool, average_pool or lp_pool, on pixels of all channels."""
    return stage(problem, _defines(problem), problem.input(0).shape[1])


def stage(problem: Problem, defines: Mapping[str, opencl.Define], channels: int) -> Stage:
    """Any pool as a stage of a stream of pixels of this many channels; defines: what pool_window.h wants."""
    g = semantics.geometry(problem)
    pads_end = {f"PAD_END_{letter}": min(g.pads_end[axis], FAR) for axis, letter in ((1, "H"), (2, "W"))}
    defines = {**defines, "CHANNELS": channels, **window_defines(g.window), **pads_end}
    names = ("p", "count_pads", "column_major")
    return Stage(
        opencl.source("pool_line_buffer.h"),
        defines,
        str(defines["X_T"]),
        channels,
        str(defines["Y_T"]),
        channels,
        *pixel_counts(g.window),
        f"begin_#(&stage_#, {', '.join(f'{name}_#' for name in names)});",
        tuple(f"int {name}_#" for name in names),
        scalars(problem),
        indices="WITH_INDICES" in defines,
    )


def accepts_direct(problem: Problem) -> Reject | None:
    return unsuited(problem) or out_of_reach(semantics.geometry(problem).window)


def prepare_direct(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    return direct(problem, _defines(problem))


def prepare_ndrange(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    return ndrange(problem, _defines(problem))


def direct(problem: Problem, defines: Mapping[str, opencl.Define]) -> Run:
    """The kernel for every shape of any pool; defines: what pool_window.h wants."""
    return _any_shape(problem, "pool_direct", defines, None)


def ndrange(problem: Problem, defines: Mapping[str, opencl.Define]) -> Run:
    """The kernel of many work-items of any pool; defines: what pool_window.h wants."""
    g = semantics.geometry(problem)
    return _any_shape(problem, "pool_ndrange", defines, (g.window.output_size, g.planes))


def _any_shape(
    problem: Problem, name: str, defines: Mapping[str, opencl.Define], extents: tuple[int, ...] | None
) -> Run:
    if semantics.geometry(problem).planes == 0:
        return empty(problem)
    runtime = opencl.runtime()
    program = runtime.program(name, defines)
    uploaded = runtime.upload(place_sizes(problem))
    passed = scalars(problem)
    return lambda inputs: program((inputs[0], uploaded, *passed), problem.outputs, extents)


def place_sizes(problem: Problem) -> np.ndarray:
    """The sizes in the order of pool_place.h."""
    g = semantics.geometry(problem)
    w = g.window
    ends = (min(pad, FAR) for pad in g.pads_end)
    sizes = (g.planes, *w.input, *w.output, *w.kernel, *w.strides, *w.dilations, *w.pads, *ends)
    return np.array(sizes, np.int32)


WORDS = {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}


def prepare_unpool(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g = semantics.unpool_geometry(problem)
    x, y = problem.input(0), problem.outputs[0]
    if x.size == 0 or y.size == 0:
        return lambda inputs: (np.zeros(y.shape, y.numpy_dtype),)
    runtime = opencl.runtime()
    program = runtime.program("max_unpool", {"WORD_T": WORDS[x.numpy_dtype.itemsize]})
    sizes = runtime.upload(np.array((x.size, y.size, *g.indexed, *g.output), np.int32))
    return lambda inputs: program((inputs[0], inputs[1], sizes), problem.outputs)


KERNELS = (
    *(
        Kernel(
            f"{op}_line_buffer_nchwc_any_opencl", op, accepts_line_buffer, prepare_line_buffer,
            summary="pixels stream through a shift register",
        )
        for op in MODES
    ),
    *(
        Kernel(
            f"{op}_direct_nchw_any_opencl", op, accepts_direct, prepare_direct,
            summary="one window after the other; any shape",
        )
        for op in MODES
    ),
    *(
        Kernel(
            f"{op}_ndrange_nchw_any_opencl", op, accepts_direct, prepare_ndrange,
            summary="a work-item for each window, for processors and GPUs; any shape",
        )
        for op in MODES
    ),
    Kernel(
        "max_unpool_direct_nchw_any_opencl", "max_unpool", too_large, prepare_unpool,
        summary="zeros, then every value to its index",
    ),
)  # fmt: skip
