"""Other people's runtimes as contenders: the same problem, the same arrays, the same number of threads.

A peer gets its weights as constants, so that it packs them once as our plans do, and its inputs and outputs bound
ahead, which is its fastest way of being called; our plans allocate their outputs in each call.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from quatrefoil.bench import inputs as made_up
from quatrefoil.bench.machine import package_version
from quatrefoil.bench.onnx_node import model_of
from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Problem
from quatrefoil.registry import Availability, Reject

Arrays = Sequence[np.ndarray | None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A peer ready to run one problem: what it is, how to run it once, and how to get what the last run gave."""

    description: str
    run: Callable[[], None]
    outputs: Callable[[], list[np.ndarray]]


class Peer(Protocol):
    """Somebody else's runtime."""

    name: str

    def probe(self) -> Availability:
        """Whether it is installed."""

    def prepare(self, problem: Problem, arrays: Arrays, threads: int) -> Prepared | Reject:
        """The problem made ready on these arrays, or why the peer does not take it."""


def session_options(threads: int) -> Any:
    """ONNX Runtime on so many threads, and silent: what fails is reported by us, in a sentence."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a model or inputs that it does not take."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    names = ("Fail", "NotImplemented", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "RuntimeException")
    return (RuntimeError, *(getattr(errors, name) for name in names))


class OnnxRuntime:
    """ONNX Runtime's CPU execution provider, on a model of the one operator."""

    name = "ort"

    def probe(self) -> Availability:
        if importlib.util.find_spec("onnxruntime") is None:
            return Availability(False, "onnxruntime is not installed", "pip install 'quatrefoil[peers]'")
        return Availability(True, f"onnxruntime {package_version('onnxruntime')}")

    def prepare(self, problem: Problem, arrays: Arrays, threads: int) -> Prepared | Reject:
        import onnxruntime

        if any(array is not None and array.size == 0 for array in arrays):
            return Reject("onnxruntime aborts the process on some empty inputs, so it is not asked")
        constants = made_up.parameters(problem, list(arrays))
        model = model_of(problem, constants)
        if isinstance(model, Reject):
            return model
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), session_options(threads), ["CPUExecutionProvider"]
            )
            binding = session.io_binding()
            for position, array in enumerate(arrays):
                if array is not None and position not in constants:
                    binding.bind_cpu_input(f"i{position}", np.ascontiguousarray(array).reshape(array.shape))
            buffers: list[Any] = []
            for number, tensor in enumerate(problem.outputs):
                buffers.append(onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(tensor.shape, tensor.numpy_dtype)))
                binding.bind_ortvalue_output(f"o{number}", buffers[-1])
            session.run_with_iobinding(binding)
        except failures() as error:
            return Reject(f"onnxruntime refuses it: {str(error).splitlines()[0]}")

        def run() -> None:
            session.run_with_iobinding(binding)

        return Prepared(
            f"onnxruntime {onnxruntime.__version__}", run, lambda: [np.array(buffer.numpy()) for buffer in buffers]
        )


PEERS: dict[str, Peer] = {peer.name: peer for peer in (OnnxRuntime(),)}


def get(name: str) -> Peer:
    """The peer of that name. Raises QuatrefoilError, with the known names, when there is none."""
    if name not in PEERS:
        raise QuatrefoilError(f"there is no peer {name!r}; known are {', '.join(PEERS)}")
    return PEERS[name]
