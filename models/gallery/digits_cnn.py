"""Trains digits_cnn.onnx: a LeNet-style network (LeCun 1998) over 8x8 digits, and writes it.

    python -m quatrefoil.models.gallery.digits_cnn

image (batch, 1, 8, 8), pixels from 0 to 1
-> conv 3x3, 16 -> relu -> max pool 2x2 -> conv 3x3, 32 -> relu -> max pool 2x2
-> dense 64 -> relu -> dense 10 -> scores (batch, 10)

Held-out accuracy 0.986 (355 of 360 digits).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from quatrefoil.models.gallery import path
from quatrefoil.models.gallery.training import save, train

EPOCHS = 60
IMAGE_SHAPE = (1, 8, 8)


def build() -> Any:
    """The network in torch."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def export(weights: dict[str, np.ndarray]) -> None:
    """Write the network with weights named as in torch."""
    names = {"0": "conv1", "3": "conv2", "7": "dense1", "9": "dense2"}
    renamed = {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in weights.items()}
    window: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    halve: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("Conv", "conv1", window),
        ("Relu", "relu1", {}),
        ("MaxPool", "pool1", halve),
        ("Conv", "conv2", window),
        ("Relu", "relu2", {}),
        ("MaxPool", "pool2", halve),
        ("Flatten", "flatten", {}),
        ("Gemm", "dense1", {"transB": 1}),
        ("Relu", "relu3", {}),
        ("Gemm", "dense2", {"transB": 1}),
    ]
    nodes, value = [], "image"
    for op, name, attributes in steps:
        inputs = [value, *(key for key in (f"{name}.weight", f"{name}.bias") if key in renamed)]
        value = "scores" if name == "dense2" else f"{name}.out"
        nodes.append(helper.make_node(op, inputs, [value], name, **attributes))
    save(path("digits_cnn"), nodes, renamed, IMAGE_SHAPE, "Handwritten digits 8x8, pixels from 0 to 1, to ten scores")


def main() -> None:
    weights, accuracy = train(build, IMAGE_SHAPE, EPOCHS)
    export(weights)
    print(f"{path('digits_cnn')}: held-out accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
