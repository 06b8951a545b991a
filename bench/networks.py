"""Whole networks and chains of layers as ONNX models with made-up weights, and the same model in float64 to judge by.

The onnx package carries well-known networks whose weights are left as constants to be filled; they get random ones of
the true shapes here. A closing Softmax is left out: on random scores it saturates, and would hide every difference. Some of
them are here in 8-bit integers, too, as ``models.int8`` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, compose, numpy_helper, shape_inference

from quatrefoil.bench import efficientnet_lite
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.int8 import quantize_int8


def light(name: str) -> ModelProto:
    """One of the onnx package's networks with random weights: He's scale for products, near 1 for variances."""
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    if not path.exists():
        raise QuatrefoilError(f"the onnx package that is installed has no {path.name}")
    model = onnx.load(path)
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {name: (node.op_type, place) for node in graph.node for place, name in enumerate(node.input)}
    rng = np.random.default_rng(1)
    nodes, weights, filled = [], [], set()
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            nodes.append(node)
            continue
        shape = tuple(int(extent) for extent in shapes[node.input[0]])
        filled.add(node.input[0])
        weights.append(numpy_helper.from_array(_random(rng, shape, *readers[node.output[0]]), node.output[0]))
    kept = [tensor for tensor in graph.initializer if tensor.name not in filled] + weights
    known = {tensor.name for tensor in kept} | filled
    inputs = [value for value in graph.input if value.name not in known]
    for field, items in ((graph.node, nodes), (graph.initializer, kept), (graph.input, inputs)):
        del field[:]
        field.extend(items)
    model.ir_version = max(model.ir_version, 4)  # from 4 on, initializers need not be inputs
    return shape_inference.infer_shapes(without_softmax(model))


def _random(rng: np.random.Generator, shape: tuple[int, ...], reader: str, place: int) -> np.ndarray:
    if len(shape) >= 2:
        terms = math.prod(shape[1:]) if reader == "Conv" else shape[1]
        return rng.standard_normal(shape, np.float32) * np.float32((2 / terms) ** 0.5)
    if reader == "BatchNormalization" and place in (1, 4):  # scale and variance
        return 0.9 + 0.2 * rng.random(shape, np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(0.05)


def without_softmax(model: ModelProto) -> ModelProto:
    """The model that gives what its closing Softmax would take, where it has one."""
    graph = model.graph
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    if last.op_type == "Softmax":
        graph.output[0].name = last.input[0]
        graph.output[0].type.tensor_type.ClearField("shape")  # a Softmax of old keeps the shape; inference finds it
        graph.node.remove(last)
    return model


def efficientnet_lite0() -> ModelProto:
    """EfficientNet-Lite0 on one image, with random weights."""
    rng = np.random.default_rng(1)
    weights = {}
    for name, shape in efficientnet_lite.shapes().items():
        reader, place = ("BatchNormalization", 4) if name.endswith("running_var") else ("Conv", 1)
        if name.endswith(".weight") and len(shape) == 1:
            place, reader = 1, "BatchNormalization"
        weights[name] = _random(rng, shape, reader, place)
    model = efficientnet_lite.build(weights)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return shape_inference.infer_shapes(model)


def in_bytes(make: Callable[[], ModelProto]) -> ModelProto:
    """A network in 8-bit integers (QDQ), its scales chosen on one made-up image."""
    model = make()
    shape = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    return quantize_int8(model, np.random.default_rng(2).standard_normal(shape, np.float32)).proto


FLOAT32: dict[str, Callable[[], ModelProto]] = {
    **{
        name: lambda name=name: light(name)  # type: ignore[misc]
        for name in ("resnet50", "squeezenet", "shufflenet", "densenet121", "inception_v1", "inception_v2")
    },
    "efficientnet_lite0": efficientnet_lite0,
}

INT8 = "_int8"
NETWORKS: dict[str, Callable[[], ModelProto]] = FLOAT32 | {
    name + INT8: lambda name=name: in_bytes(FLOAT32[name]) for name in ("resnet50", "squeezenet", "efficientnet_lite0")
}


def network(name: str) -> ModelProto:
    """The network of that name. Raises QuatrefoilError, with the known names, when there is none."""
    if name not in NETWORKS:
        raise QuatrefoilError(f"there is no network {name!r}; known are {', '.join(NETWORKS)}")
    return NETWORKS[name]()


def chained(models: Sequence[ModelProto]) -> ModelProto:
    """Models of one input and one output, one after the other."""

    def follow(chain: ModelProto, numbered: tuple[int, ModelProto]) -> ModelProto:
        number, model = numbered
        model = compose.add_prefix(model, f"layer{number}.")
        return compose.merge_models(chain, model, [(chain.graph.output[0].name, model.graph.input[0].name)])

    return reduce(follow, enumerate(models[1:], 1), models[0])


def in_float64(model: ModelProto) -> ModelProto:
    """The same model on float64, its weights widened."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return wide
