"""8-bit integers: scales chosen on samples (``int8``), and then trained together with the weights, every product being computed
with rounded numbers whose rounding is taken back as if it were none (Jacob et al. 2018; the scales as in Esser et al. 2020). Batch
normalisation, whose mean and variance are those of the model, goes into the weights before (Krishnamoorthi 2018), so that what is
trained is what will be computed: weights that are rounded with their factors, and sums that become bytes behind the activation.

Convolutions, Gemm and MatMul become integer products. A recurrent layer, which has no integer kernel in ONNX, keeps its weights as
bytes and computes in floating point.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from quatrefoil.models.compression.network import RECURRENT, WEIGHTS, Network
from quatrefoil.models.compression.task import Report, Task
from quatrefoil.models.compression.training import Pace, Pinned, Teacher, retrain
from quatrefoil.models.int8 import FACTOR, quantize_int8, rounded, trained

SAMPLES: Final = 500
"""Training rows that scales are chosen on."""
GENTLE: Final = 0.3
"""Of the rate: what is trained is near its end already."""


def in_bytes(
    network: Network, task: Task, pace: Pace, teacher: Teacher | None, report: Report | None
) -> tuple[ModelProto, dict[str, str], list[float]]:
    """A network in 8-bit integers, what happened to each layer, and the losses; without epochs, as it is. The network itself
    changes: its normalisations are in the weights, and these are trained."""
    samples = task.train.rows(slice(0, SAMPLES)).inputs
    curve: list[float] = []
    said: dict[str, str] = {}
    network.fold_normalizations()
    proto = network.proto
    products = [node for node in network.nodes if node.op_type in WEIGHTS and node.op_type not in RECURRENT]
    if products:
        scales = None
        if pace.epochs:
            training, first = rounded(network.proto, samples)
            rounding = network.with_proto(training)
            factors = [name for name in rounding.constants if name.endswith(FACTOR)]
            names = [name for name in network.trainable() if name in rounding.constants]
            slower = Pace(pace.epochs, pace.batch, pace.rate * GENTLE, pace.optimizer, pace.momentum, pace.seed)
            curve = retrain(rounding, task, slower, Pinned(network.pinned), teacher, [*names, *factors], report)
            network.put({name: rounding.constants[name] for name in names})
            scales = trained(first, {name: rounding.constants[name] for name in factors})
        made = quantize_int8(network.proto, samples, scales=scales)
        proto = made.proto
        said = {layer.name: f"int8, {layer.channels} channels" for layer in made.layers}
        said |= {name: f"left: {why}" for name, why in made.left.items()}
    weights, recurrent = _recurrent_weights(proto, network)
    return weights, said | recurrent, curve


def _recurrent_weights(proto: ModelProto, network: Network) -> tuple[ModelProto, dict[str, str]]:
    """The weights of recurrent layers as bytes, with a scale for each row of a gate (for both directions: one for all)."""
    made = ModelProto()
    made.CopyFrom(proto)
    graph, said, nodes = made.graph, {}, []
    constants = {item.name: item for item in graph.initializer}
    for node in graph.node:
        for place in WEIGHTS[node.op_type] if node.op_type in RECURRENT else ():
            item = constants.get(node.input[place])
            if item is None:
                said[node.name] = "left: a codebook of floating point"
                continue
            array = numpy_helper.to_array(item)
            rows = array.shape[0] == 1
            most = np.abs(array).max(2)[0] if rows else np.abs(array).max()
            scale = np.maximum(most / 127, np.finfo(np.float32).tiny).astype(array.dtype)
            integers = np.clip(np.rint(array / (scale[:, np.newaxis] if rows else scale)), -127, 127).astype(np.int8)
            name = f"{item.name}.bytes"
            if name not in constants:
                graph.initializer.extend(
                    [numpy_helper.from_array(integers, name), numpy_helper.from_array(np.array(scale), f"{name}.scale")]
                )
                constants[name] = item
                back = helper.make_node(
                    "DequantizeLinear", [name, f"{name}.scale"], [f"{name}.back"], f"{name}.dequantize"
                )
                if rows:
                    back.attribute.append(helper.make_attribute("axis", 1))
                nodes.append(back)
            node.input[place] = f"{name}.back"
            said[node.name] = "weights in bytes, computed in floating point"
    if not nodes:
        return proto, said
    network_like = network.with_proto(made)
    network_like.set_nodes([*nodes, *network_like.nodes])
    return network_like.proto, said
