"""torch on our kernels: ``quatrefoil.torch``, for training and for inference (extra ``torch``).

    import quatrefoil.torch as qft
    model = nn.Sequential(qft.Conv2d(3, 16, 3), nn.ReLU())     # torch's arguments, torch's state_dict
    qft.swap(model)                                            # torch's layers become ours; swap(model, back=True) undoes it

Operators, layers and what they lack: docs/training.md.
"""

from __future__ import annotations

from importlib.util import find_spec

from quatrefoil.errors import BackendUnavailable

if find_spec("torch") is None:
    raise BackendUnavailable("quatrefoil.torch needs torch, which is not installed: pip install 'quatrefoil[torch]'")

from quatrefoil.torch.layers import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
)
from quatrefoil.torch.operators import apply
from quatrefoil.torch.recurrent import GRU, LSTM, RNN
from quatrefoil.torch.swapping import swap

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "apply",
    "swap",
]
