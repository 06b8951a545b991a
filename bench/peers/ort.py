"""ONNX Runtime's CPU execution provider on the task's ONNX model, inputs and outputs bound ahead.

A quantised convolution with channels last is ONNX Runtime's own operator of the name, which takes them so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quatrefoil.bench.peers import Package, Prepared, contiguous, first_line, into
from quatrefoil.bench.tasks import Task
from quatrefoil.registry import Availability, Reject


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a model or inputs that it does not take."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    names = ("Fail", "NotImplemented", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "RuntimeException")
    return (RuntimeError, *(getattr(errors, name) for name in names))


class OnnxRuntime:
    """Sequential execution on so many threads, all graph optimisations."""

    name = "ort"
    title = "ONNX Runtime, NCHW, bound inputs and outputs"
    timed = "the run alone, on arrays that are bound ahead"
    _package = Package("onnxruntime")

    def probe(self) -> Availability:
        return self._package.probe()

    def prepare(self, task: Task, threads: int) -> Prepared | Reject:
        import onnxruntime

        model, feeds = task.model, task.feeds
        if isinstance(model, Reject):
            return model
        if any(array.size == 0 for array in feeds.values()):
            return Reject("onnxruntime aborts the process on some empty inputs, so it is not asked")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is reported by us, in a sentence
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            binding = session.io_binding()
            kept = {name: contiguous(array) for name, array in feeds.items()}  # the binding keeps no reference
            for name, array in kept.items():
                binding.bind_cpu_input(name, array)
            buffers: list[Any] = []
            for name, array in zip(names, session.run(names, kept)):
                buffers.append(onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array)))
                binding.bind_ortvalue_output(name, buffers[-1])
        except failures() as error:
            return Reject(f"onnxruntime refuses it: {first_line(error)}")

        def outputs(_: object, kept: object = kept) -> list[np.ndarray | None]:
            return [np.array(buffer.numpy()) for buffer in buffers]

        return Prepared(
            f"onnxruntime {onnxruntime.__version__}",
            lambda: session.run_with_iobinding(binding),
            outputs,
            refill=into(kept.values()),
        )


PEERS = (OnnxRuntime(),)
