"""MNN on the model that its own converter makes from ONNX, in its "high" precision; copies to and from NCHW count.

The converter is called as a function: the command of the same name reports its use and installs packages.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.bench.peers import Package, Prepared, contiguous, on_planes
from quatrefoil.bench.tasks import Task
from quatrefoil.problem import Problem
from quatrefoil.registry import Availability, Reject


class Mnn:
    """A session on the CPU with so many threads."""

    name = "mnn"
    title = "MNN, precision high, copies from and to NCHW counted"
    timed = "copies of the inputs into its layout, the session, and copies of the outputs back"
    _package = Package("MNN", ("MNN", "_tools"))

    def probe(self) -> Availability:
        return self._package.probe()

    @on_planes
    def prepare(self, task: Task, threads: int) -> Prepared | Reject:
        import _tools
        import MNN

        if isinstance(task.model, Reject):
            return task.model
        refused = _refused(task.problem)
        if refused is not None:
            return refused
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "model.onnx"), Path(folder, "model.mnn")
            source.write_bytes(task.model.SerializeToString())
            _tools.mnnconvert(
                [
                    "mnnconvert",
                    "-f",
                    "ONNX",
                    "--modelFile",
                    str(source),
                    "--MNNModel",
                    str(target),
                    "--bizCode",
                    "bench",
                ]
            )
            if not target.exists():
                return Reject("MNN's converter made no model of it")
            interpreter = MNN.Interpreter(str(target))
        session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": threads})
        taken = []
        for name, array in task.feeds.items():
            tensor = interpreter.getSessionInput(session, name)
            if tuple(tensor.getShape()) != array.shape:
                interpreter.resizeTensor(tensor, array.shape)
                interpreter.resizeSession(session)
            taken.append(tensor)
        given = _host_tensors(task.feeds.values())
        if interpreter.runSession(session) != 0:
            return Reject("MNN turns it into a loop, which a session does not run")
        names = [output.name for output in task.model.graph.output]
        tensors = [interpreter.getSessionOutput(session, name) for name in names]
        if not all(math.prod(tensor.getShape()) for tensor in tensors):
            return Reject("MNN makes an empty result of it")
        results = list(zip(tensors, _host_tensors(np.zeros(tensor.getShape(), np.float32) for tensor in tensors)))
        shapes = [tuple(d.dim_value for d in y.type.tensor_type.shape.dim) for y in task.model.graph.output]

        def run() -> None:
            for tensor, host in zip(taken, given):
                tensor.copyFrom(host)
            interpreter.runSession(session)
            for tensor, host in results:
                tensor.copyToHostTensor(host)

        def outputs(_: object) -> list[np.ndarray | None]:
            found = [np.array(host.getNumpyData(), np.float32) for _, host in results]
            # a 1-d result has one axis too many
            return [y.reshape(shape) if y.size == math.prod(shape) else y for y, shape in zip(found, shapes)]

        def refill(inputs: Sequence[np.ndarray]) -> None:
            given[:] = _host_tensors(inputs)

        return Prepared(self._package.probe().detail, run, outputs, refill=refill)


def _refused(problem: Problem | None) -> Reject | None:
    """What the converter or a session is known to get wrong."""
    if problem is None:
        return None
    if problem.op in ("conv_integer", "qlinear_conv"):
        return Reject("MNN quantises models by itself and takes no quantised ONNX operator")
    if problem.op == "lstm":
        return Reject("MNN's converter crashes on LSTM")
    if problem.op == "max_unpool" or (len(problem.outputs) > 1 and problem.op == "max_pool"):
        return Reject("MNN's pools know no indices")
    if problem.op == "rnn" and "Tanh" not in problem.text:
        return Reject("MNN's recurrent layers have tanh alone")
    return None


def _host_tensors(arrays: Iterable[np.ndarray]) -> list[Any]:
    """Tensors of MNN's in NCHW with these values."""
    import MNN

    kind, order = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe
    return [MNN.Tensor(array.shape, kind, contiguous(array), order) for array in arrays]


PEERS = (Mnn(),)
