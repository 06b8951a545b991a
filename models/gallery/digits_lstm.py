"""Trains digits_lstm.onnx: an LSTM (Hochreiter and Schmidhuber 1997) that reads digits row by row, and writes it.

    python -m quatrefoil.models.gallery.digits_lstm

image (batch, 8, 8), pixels from 0 to 1
-> transpose to (8 steps, batch, 8) -> LSTM 64 -> last state -> dense 10 -> scores (batch, 10)

Held-out accuracy 0.983 (354 of 360 digits).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from quatrefoil.models.gallery import path
from quatrefoil.models.gallery.training import save, train

EPOCHS = 80
ROWS, PIXELS, HIDDEN = 8, 8, 64


def build() -> Any:
    """The network in torch."""
    import torch
    from torch import nn

    class RowReader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(PIXELS, HIDDEN, batch_first=True)
            self.dense = nn.Linear(HIDDEN, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            _, (state, _) = self.lstm(image)
            return self.dense(state[0])

    return RowReader()


def onnx_order(gates: np.ndarray) -> np.ndarray:
    """torch stacks the gates input, forget, cell, output; ONNX input, output, forget, cell."""
    i, f, c, o = np.split(gates, 4)
    return np.concatenate([i, o, f, c])


def export(weights: dict[str, np.ndarray]) -> None:
    """Write the network with weights named as in torch."""
    biases = [onnx_order(weights[f"lstm.bias_{part}_l0"]) for part in ("ih", "hh")]
    renamed = {
        "lstm.W": onnx_order(weights["lstm.weight_ih_l0"])[np.newaxis],
        "lstm.R": onnx_order(weights["lstm.weight_hh_l0"])[np.newaxis],
        "lstm.B": np.concatenate(biases)[np.newaxis],
        "dense.weight": weights["dense.weight"],
        "dense.bias": weights["dense.bias"],
        "direction_axis": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["rows"], "rows_first", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["rows", "lstm.W", "lstm.R", "lstm.B"], ["", "lstm.last"], "lstm", hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["lstm.last", "direction_axis"], ["state"], "drop_direction"),
        helper.make_node("Gemm", ["state", "dense.weight", "dense.bias"], ["scores"], "dense", transB=1),
    ]
    save(path("digits_lstm"), nodes, renamed, (ROWS, PIXELS), "Handwritten digits row by row, to ten scores")


def main() -> None:
    weights, accuracy = train(build, (ROWS, PIXELS), EPOCHS)
    export(weights)
    print(f"{path('digits_lstm')}: held-out accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
