"""EfficientNet-Lite0 (Tan and Le 2019, and the Lite variants of 2020) from its published torch weights to ONNX.

The weights come as a checkpoint in torch's first file format: pickles followed by raw storages. It is read here without
torch, and by an unpickler that knows the four names such a file needs and refuses every other.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quatrefoil.errors import QuatrefoilError

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES: dict[str, np.dtype] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
IMAGE = 224
OPSET = 17
EPSILON = 1e-3

STAGES = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class CheckpointReader(pickle.Unpickler):
    """Reads the pickle of a state dictionary: tensors come as (storage, offset, shape, strides in elements)."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if module == "torch" and name in STORAGES:
            return name
        raise QuatrefoilError(f"the checkpoint asks for {module}.{name}; a state dictionary needs no such thing")

    def persistent_load(self, pid: Any) -> str:
        _, storage, key, *_ = pid
        self.dtypes[key] = STORAGES[storage]
        return str(key)


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a torch state dictionary by name."""
    with path.open("rb") as file:
        if CheckpointReader(file).load() != MAGIC:
            raise QuatrefoilError(f"{path} is no torch checkpoint of the first file format")
        for _ in ("protocol version", "system"):
            CheckpointReader(file).load()
        reader = CheckpointReader(file)
        tensors = reader.load()
        storages = {}
        for key in CheckpointReader(file).load():
            count = int.from_bytes(file.read(8), "little")
            dtype = reader.dtypes[key]
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {name: _strided(storages[key], *place) for name, (key, *place) in tensors.items()}


def _strided(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides))
    if last >= storage.size:
        raise QuatrefoilError(f"a tensor of shape {shape} reaches past its storage of {storage.size} elements")
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * storage.itemsize for stride in strides], writeable=False
    ).copy()


def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every weight that ``build`` reads, by name."""
    found: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, normalization: str, *shape: int) -> None:
        found[f"{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{normalization}.{part}"] = shape[:1]

    convolution("_conv_stem", "_bn0", 32, 3, 3, 3)
    channels, block = 32, 0
    for repeats, kernel, _, expansion, out in STAGES:
        for _ in range(repeats):
            prefix, wide = f"_blocks.{block}", channels * expansion
            if expansion != 1:
                convolution(f"{prefix}._expand_conv", f"{prefix}._bn0", wide, channels, 1, 1)
            convolution(f"{prefix}._depthwise_conv", f"{prefix}._bn1", wide, 1, kernel, kernel)
            convolution(f"{prefix}._project_conv", f"{prefix}._bn2", out, wide, 1, 1)
            channels, block = out, block + 1
    convolution("_conv_head", "_bn1", 1280, channels, 1, 1)
    return {**found, "_fc.weight": (1000, 1280), "_fc.bias": (1000,)}


def build(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The network from image (batch, 3, 224, 224) to scores (batch, 1000), batch normalisations as nodes of their own.

    Windows are padded as TensorFlow's SAME does, which is how the weights were trained.
    """
    nodes: list[onnx.NodeProto] = []
    kept: dict[str, np.ndarray] = {}

    def keep(name: str) -> str:
        kept[name] = weights[name]
        return name

    def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def convolve(value: str, name: str, normalization: str, stride: int = 1, group: int = 1, clip: bool = True) -> str:
        kernel = list(weights[f"{name}.weight"].shape[2:])
        value = add("Conv", [value, keep(f"{name}.weight")], name, kernel_shape=kernel, strides=[stride, stride],
                    group=group, auto_pad="SAME_UPPER")  # fmt: skip
        statistics = [keep(f"{normalization}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        value = add("BatchNormalization", [value, *statistics], normalization, epsilon=EPSILON)
        return add("Clip", [value, "zero", "six"], f"{normalization}.relu6") if clip else value

    kept["zero"], kept["six"] = np.array(0, np.float32), np.array(6, np.float32)
    value, channels, block = convolve("image", "_conv_stem", "_bn0", stride=2), 32, 0
    for repeats, _, stride, expansion, out in STAGES:
        for repeat in range(repeats):
            prefix, step, entry = f"_blocks.{block}", stride if repeat == 0 else 1, value
            if expansion != 1:
                value = convolve(value, f"{prefix}._expand_conv", f"{prefix}._bn0")
            value = convolve(value, f"{prefix}._depthwise_conv", f"{prefix}._bn1", step, group=channels * expansion)
            value = convolve(value, f"{prefix}._project_conv", f"{prefix}._bn2", clip=False)
            if step == 1 and channels == out:
                value = add("Add", [value, entry], f"{prefix}.add")
            channels, block = out, block + 1
    value = convolve(value, "_conv_head", "_bn1")
    value = add("GlobalAveragePool", [value], "pool")
    value = add("Flatten", [value], "flatten")
    nodes.append(helper.make_node("Gemm", [value, keep("_fc.weight"), keep("_fc.bias")], ["scores"], "_fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, IMAGE, IMAGE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1000])],
        [numpy_helper.from_array(array, name) for name, array in kept.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def convert(checkpoint: Path, target: Path) -> None:
    """Write the ONNX file of a checkpoint, the same bytes every time."""
    target.write_bytes(build(read_checkpoint(checkpoint)).SerializeToString(deterministic=True))
