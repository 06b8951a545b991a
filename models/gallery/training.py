"""What the gallery's training scripts share: one optimiser run, the held-out accuracy, and writing the ONNX file.

Training needs torch (``pip install 'quatrefoil[gallery]'``); the ONNX file is written here node by node, so that its
names are plain and its size is the weights'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quatrefoil.models.gallery import SEED, digits_split

OPSET = 21
BATCH = 64


def train(build: Callable[[], Any], shape: tuple[int, ...], epochs: int) -> tuple[dict[str, np.ndarray], float]:
    """Train a torch module on the digits, its input reshaped to ``shape`` for each image.

    Adam with a one-cycle learning rate, each image shifted by up to one pixel each way. Returns the module's weights
    by name and the accuracy on the held-out digits, of the weights after the last epoch.
    """
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    data = digits_split()
    images, digits = torch.from_numpy(data.train_images), torch.from_numpy(data.train_digits)
    module = build()
    steps = -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, epochs=epochs, steps_per_epoch=steps)
    for _ in range(epochs):
        module.train()
        order = torch.randperm(len(images))
        for first in range(0, len(images), BATCH):
            chosen = order[first : first + BATCH]
            down, right = torch.randint(-1, 2, (2,)).tolist()
            shifted = torch.roll(torch.nn.functional.pad(images[chosen], (1, 1, 1, 1)), (down, right), (1, 2))
            scores = module(shifted[:, 1:-1, 1:-1].reshape(-1, *shape))
            loss = torch.nn.functional.cross_entropy(scores, digits[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    module.eval()
    with torch.no_grad():
        scores = module(torch.from_numpy(data.held_out_images).reshape(-1, *shape))
    accuracy = float((scores.argmax(1).numpy() == data.held_out_digits).mean())
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}, accuracy


def save(
    file: Path,
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    image_shape: tuple[int, ...],
    documentation: str,
) -> None:
    """Write and check a model from ``image`` (batch, *image_shape) to ``scores`` (batch, 10)."""
    graph = helper.make_graph(
        nodes,
        file.stem,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *image_shape])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()],
        doc_string=documentation,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="quatrefoil"
    )
    onnx.checker.check_model(model, full_check=True)
    file.write_bytes(model.SerializeToString(deterministic=True))
