"""The targets of XLA's foreign function interface that run quatrefoil's operators and their gradients.

``handler.cpp``, in C++, is what XLA calls. It is compiled on first use (``foreign.py``) against the headers of the
installed jaxlib, since XLA promises an interface for a year and not for longer. It hands XLA's memory to the functions here,
in the same thread and without a copy of the inputs: Python chooses and prepares a kernel, since weights that are trained are packed
anew in every step, the kernel computes without the GIL, and its outputs are copied into XLA's memory. A call costs about a tenth
of a millisecond more than quatrefoil's own.

Under ``vmap`` all arrays come with leading axes, of length 1 where an array is not batched. A batch of images alone joins the batch
that the operator has; otherwise one is computed after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from quatrefoil import dispatch, foreign, gradients, ops
from quatrefoil.problem import Problem, Tensor

FORWARD, BACKWARD = "quatrefoil_forward", "quatrefoil_backward"

SOURCE = Path(__file__).parent / "handler.cpp"

MOST_ARRAYS = 64
MOST_TEXTS = 8


class _Text(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_uint64))


class _Call(ctypes.Structure):
    """``Call`` of handler.cpp."""

    _fields_ = (
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("texts", ctypes.c_int64),
        ("arrays", foreign.Array * MOST_ARRAYS),
        ("names", _Text * MOST_TEXTS),
        ("values", _Text * MOST_TEXTS),
    )


_RUN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Call), ctypes.c_void_p, ctypes.c_uint64)


def forward() -> str:
    """The name of the target that runs a problem."""
    _registered()
    return FORWARD


def backward() -> str:
    """The name of the target that runs the gradients of a problem."""
    _registered()
    return BACKWARD


@cache
def _registered() -> tuple[Any, ...]:
    """Builds the library and registers the targets, once in a process; what it returns has to outlive them."""
    library = ctypes.CDLL(str(build()))
    runs = _RUN(foreign.guarded(_run_forward)), _RUN(foreign.guarded(_run_backward))
    library.set_runs(*runs)
    for name, function in ((FORWARD, library.forward), (BACKWARD, library.backward)):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
    return library, runs


def build() -> Path:
    """The compiled handler. Raises QuatrefoilError where it cannot be compiled."""
    headers = Path(jax.ffi.include_dir())
    return foreign.library(SOURCE, [headers], [headers / "xla" / "ffi" / "api" / "c_api.h"])


def _texts(call: _Call) -> dict[str, str]:
    def read(text: _Text) -> str:
        return ctypes.string_at(text.data, text.size).decode() if text.size else ""

    return {read(call.names[i]): read(call.values[i]) for i in range(call.texts)}


def _arrays(call: _Call, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The inputs and outputs as arrays over XLA's memory."""
    assert len(tensors) == call.inputs + call.outputs
    made = foreign.views(call.arrays[: len(tensors)], tensors)
    for array in made[: call.inputs]:
        array.flags.writeable = False
    return made


_parsed = lru_cache(maxsize=4096)(ops.parse)

BATCH_FIRST = ("conv", "conv_transpose", "max_pool", "average_pool", "lp_pool")
"""Operators that treat a batch's images alike, and have it as the first axis of x and of every output."""


def _run_forward(pointer: Any) -> None:
    call = pointer.contents
    problem = _parsed(_texts(call)["problem"])
    places = [place for place, tensor in enumerate(problem.inputs) if tensor is not None]
    tensors = [problem.input(place) for place in places]
    arrays = _arrays(call, [*tensors, *problem.outputs])
    given, results = arrays[: len(places)], arrays[len(places) :]

    def run(asked: Problem, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        by_place = dict(zip(places, inputs))
        found = dispatch.run_problem(asked, [by_place.get(place) for place in range(len(asked.inputs))], "cpu")
        for output, made in zip(outputs, found):
            output[...] = made

    batched = [array.size != tensor.size for array, tensor in zip(given, tensors)]
    if any(batched) and not any(batched[1:]) and len(problem.outputs) == 1 and problem.op in BATCH_FIRST:
        times = given[0].size // tensors[0].size

        def wider(tensor: Tensor) -> Tensor:
            return replace(tensor, shape=(times * tensor.shape[0], *tensor.shape[1:]))

        whole = replace(problem, inputs=(wider(tensors[0]), *problem.inputs[1:]), outputs=(wider(problem.outputs[0]),))
        x, *others = [array.reshape(tensor.shape) for array, tensor in zip(given, (whole.input(0), *tensors[1:]))]
        run(whole, [x, *others], [results[0].reshape(whole.outputs[0].shape)])
        return
    for inputs, outputs in _each(given, tensors, results, problem.outputs):
        run(problem, inputs, outputs)


def _run_backward(pointer: Any) -> None:
    call = pointer.contents
    texts = _texts(call)
    problem = _parsed(texts["problem"])
    wanted = [int(place) for place in texts["wanted"].split()]
    reads = gradients.rule_of(problem.op).reads
    groups: list[list[Tensor | None]] = [
        list(problem.inputs),
        [tensor if place in reads else None for place, tensor in enumerate(problem.outputs)],
        [tensor if there == "+" else None for there, tensor in zip(texts["gradients"], problem.outputs)],
    ]
    tensors = [tensor for group in groups for tensor in group if tensor is not None]
    types = [problem.input(place) for place in wanted]
    arrays = _arrays(call, [*tensors, *types])
    for inputs, outputs in _each(arrays[: len(tensors)], tensors, arrays[len(tensors) :], types):
        left = iter(inputs)
        primals, results, slopes = ([None if tensor is None else next(left) for tensor in group] for group in groups)
        found = gradients.vjp(problem, primals, results, slopes, wanted, "cpu")
        for place, output in zip(wanted, outputs):
            output[...] = found[place]


def _each(
    given: Sequence[np.ndarray], inputs: Sequence[Tensor], results: Sequence[np.ndarray], outputs: Sequence[Tensor]
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Inputs and outputs of the problem's own shapes, one for each place of the leading axes."""
    lead = results[0].shape[: results[0].ndim - outputs[0].rank]
    wide = [
        np.broadcast_to(array, lead + tensor.shape) if array.ndim > tensor.rank else array
        for array, tensor in zip(given, inputs)
    ]
    for place in np.ndindex(*lead):
        yield (
            [array[place] if array.ndim > tensor.rank else array for array, tensor in zip(wide, inputs)],
            [array[place] for array in results],
        )
