"""OpenVINO's CPU plug-in held to float32, on the task's ONNX model; inputs and outputs are shared, not copied.

A quantised convolution is given in the form that its int8 kernels are found by: DequantizeLinear, Conv, QuantizeLinear.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from quatrefoil.bench.peers import Package, Prepared, contiguous, first_line, into, on_planes
from quatrefoil.bench.tasks import Task
from quatrefoil.registry import Availability, Reject


def unquantised(model: ModelProto) -> ModelProto:
    """The model of one QLinearConv as a convolution between DequantizeLinear and QuantizeLinear; any other as it is."""
    [*nodes] = model.graph.node
    if [node.op_type for node in nodes] != ["QLinearConv"]:
        return model
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = nodes[0].input
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    del graph.node[:]
    inputs = ["x", "w"]
    if bias:
        scale = values[x_scale] * values[w_scale]
        graph.initializer.append(numpy_helper.from_array((values[bias[0]] * scale).astype(np.float32), "b"))
        inputs.append("b")
    graph.node.extend(
        [
            helper.make_node("DequantizeLinear", [x, x_scale, x_zero], ["x"]),
            helper.make_node("DequantizeLinear", [w, w_scale, w_zero], ["w"], axis=0),
            helper.make_node("Conv", inputs, ["y"]),
            helper.make_node("QuantizeLinear", ["y", y_scale, y_zero], [nodes[0].output[0]]),
        ]
    )
    graph.node[2].attribute.extend(nodes[0].attribute)
    return made


class OpenVino:
    """One stream, so many threads, float32 inside."""

    name = "openvino"
    title = "OpenVINO CPU plug-in, float32, NCHW, shared inputs and outputs"
    timed = "the inference alone, on arrays that it shares with us"
    _package = Package("openvino")

    def probe(self) -> Availability:
        return self._package.probe()

    @on_planes
    def prepare(self, task: Task, threads: int) -> Prepared | Reject:
        import openvino

        if isinstance(task.model, Reject):
            return task.model
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            model = core.read_model(model=unquantised(task.model).SerializeToString(), weights=b"")
            compiled = core.compile_model(model, "CPU", options)
            request = compiled.create_infer_request()
            arrays = {name: contiguous(array) for name, array in task.feeds.items()}
            tensors = {name: openvino.Tensor(array, shared_memory=True) for name, array in arrays.items()}
            for name, tensor in tensors.items():
                request.set_tensor(name, tensor)
            request.infer(share_outputs=True)
        except RuntimeError as error:
            return Reject(f"openvino refuses it: {first_line(error)}")

        def outputs(_: object, kept: object = tensors) -> list[np.ndarray | None]:
            return [np.array(request.get_output_tensor(number).data) for number in range(len(compiled.outputs))]

        return Prepared(
            self._package.probe().detail,
            lambda: request.infer(share_outputs=True),
            outputs,
            refill=into(arrays.values()),
        )


PEERS = (OpenVino(),)
