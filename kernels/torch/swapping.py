"""Making torch's layers in a model ours, and back."""

from __future__ import annotations

from torch import nn

from quatrefoil.errors import OperatorError
from quatrefoil.torch import layers, recurrent

LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, layer.__name__): layer
    for layer in (
        layers.Conv1d, layers.Conv2d, layers.Conv3d,
        layers.ConvTranspose1d, layers.ConvTranspose2d, layers.ConvTranspose3d,
        layers.MaxPool1d, layers.MaxPool2d, layers.MaxPool3d,
        layers.AvgPool1d, layers.AvgPool2d, layers.AvgPool3d,
        layers.LPPool1d, layers.LPPool2d, layers.LPPool3d,
        layers.MaxUnpool1d, layers.MaxUnpool2d, layers.MaxUnpool3d,
        recurrent.RNN, recurrent.LSTM, recurrent.GRU,
    )
}  # fmt: skip
"""torch's layers, and ours."""


def swap(model: nn.Module, *, back: bool = False) -> list[str]:
    """Make torch's layers in a model ours, or with ``back`` ours torch's. In place: parameters, buffers, hooks, names and
    an optimiser's hold on them stay as they are. Gives the names of the layers that changed.

    A subclass of a layer may compute something else, so only torch's own classes change. Raises OperatorError for what is no
    module.
    """
    if not isinstance(model, nn.Module):
        raise OperatorError("swap", "the model", type(model).__qualname__, "give a torch.nn.Module")
    exchange = {ours: theirs for theirs, ours in LAYERS.items()} if back else LAYERS
    changed = []
    for name, module in model.named_modules():
        other = exchange.get(type(module))
        if other is not None:
            module.__class__ = other
            changed.append(name)
    return changed
