"""The targets of XLA's foreign function interface that run quatrefoil's operators and their gradients.

``handler.cpp``, in C++, is what XLA calls. It is compiled once, into ``settings.cache_folder()/jax``, against the headers of the
installed jaxlib, since XLA promises an interface for a year and not for longer. It hands XLA's memory to the functions here,
in the same thread and without a copy of the inputs: Python chooses and prepares a kernel, since weights that are trained are packed
anew in every step, the kernel computes without the GIL, and its outputs are copied into XLA's memory. A call costs about a tenth
of a millisecond more than quatrefoil's own.

Under ``vmap`` all arrays come with leading axes, of length 1 where an array is not batched. A batch of images alone joins the batch
that the operator has; otherwise one is computed after the other.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from quatrefoil import dispatch, gradients, ops, settings
from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Problem, Tensor

FORWARD, BACKWARD = "quatrefoil_forward", "quatrefoil_backward"

SOURCE = Path(__file__).parent / "handler.cpp"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")

MOST_ARRAYS = 64
MOST_TEXTS = 8


class _Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("rank", ctypes.c_int64), ("shape", ctypes.POINTER(ctypes.c_int64)))


class _Text(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_uint64))


class _Call(ctypes.Structure):
    """``Call`` of handler.cpp."""

    _fields_ = (
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("texts", ctypes.c_int64),
        ("arrays", _Array * MOST_ARRAYS),
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
    runs = _RUN(_guarded(_forward)), _RUN(_guarded(_backward))
    library.set_runs(*runs)
    for name, function in ((FORWARD, library.forward), (BACKWARD, library.backward)):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
    return library, runs


def build() -> Path:
    """The compiled handler. Raises QuatrefoilError where there is no compiler, or with its words where it refuses."""
    headers = Path(jax.ffi.include_dir())
    contents = (SOURCE, headers / "xla" / "ffi" / "api" / "c_api.h")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in contents) + repr(FLAGS).encode()).hexdigest()[:16]
    path = settings.cache_folder() / "jax" / f"handler-{digest}.so"
    if path.exists():
        return path
    named = os.environ.get("CXX")
    compiler = next((found for name in (named, *COMPILERS) if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise QuatrefoilError(
            "quatrefoil.jax compiles its C++ handler once, and finds no compiler; apt install g++ adds one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        library = Path(folder, path.name)
        command = [compiler, *FLAGS, f"-I{headers}", str(SOURCE), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise QuatrefoilError(f"{compiler} does not compile {SOURCE.name} with jaxlib's headers:\n{done.stderr}")
        os.replace(library, path)  # whole or not at all, for processes that start together
    return path


def _guarded(run: Callable[[_Call], None]) -> Callable[[Any, int, int], int]:
    """A function for C++: what ``run`` raises becomes the message of XLA's error."""

    def guarded(call: Any, message: int, size: int) -> int:
        try:
            run(call.contents)
        except Exception as error:  # nothing may be raised through C++; every error reaches the caller as JAX's
            said = str(error) if isinstance(error, QuatrefoilError) else f"{type(error).__name__}: {error}"
            ctypes.memmove(message, said.encode()[: size - 1] + b"\0", min(len(said.encode()), size - 1) + 1)
            return 1
        return 0

    return guarded


def _texts(call: _Call) -> dict[str, str]:
    def read(text: _Text) -> str:
        return ctypes.string_at(text.data, text.size).decode() if text.size else ""

    return {read(call.names[i]): read(call.values[i]) for i in range(call.texts)}


def _arrays(call: _Call, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The inputs and outputs as arrays over XLA's memory."""
    made = []
    for array, tensor in zip(call.arrays, tensors):
        shape = tuple(array.shape[axis] for axis in range(array.rank))
        assert shape[len(shape) - tensor.rank :] == tensor.shape
        nbytes = math.prod(shape) * tensor.numpy_dtype.itemsize
        memory = (ctypes.c_char * nbytes).from_address(array.data) if nbytes else b""
        made.append(np.ndarray(shape, tensor.numpy_dtype, memory))
    assert len(made) == call.inputs + call.outputs == len(tensors)
    for array in made[: call.inputs]:
        array.flags.writeable = False
    return made


_parsed = lru_cache(maxsize=4096)(ops.parse)

BATCH_FIRST = ("conv", "conv_transpose", "max_pool", "average_pool", "lp_pool")
"""Operators that treat a batch's images alike, and have it as the first axis of x and of every output."""


def _forward(call: _Call) -> None:
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


def _backward(call: _Call) -> None:
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
