"""torch's recurrent layers on our kernels, as layers.py says.

torch keeps the weights of each layer and direction by themselves, its gates in another order than ONNX: they are brought
together and into order at each call (differentiably, a copy of the weights). Layers on top of each other, directions, dropout
between layers, batch_first, unbatched inputs and packed sequences are torch's; ``proj_size`` is not there.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from quatrefoil.errors import OperatorError
from quatrefoil.ops.rnn import TRAINING
from quatrefoil.torch.operators import apply, text_of

# Where ONNX's gates stand among torch's: torch's lstm is i, f, g, o and its gru r, z, n.
GATES = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def _ordered(weights: Tensor, op: str) -> Tensor:
    """A weight or bias with its gates along the first axis in ONNX's order."""
    gates = GATES[op]
    if len(gates) == 1:
        return weights
    parts = weights.chunk(len(gates), 0)
    return torch.cat([parts[gate] for gate in gates], 0)


class _Recurrent(nn.RNNBase):
    """Not a subclass of torch's own RNN, LSTM or GRU, because torch.compile takes none of these into a graph."""

    op: str

    def forward(self, input: Any, hx: Any = None) -> Any:
        if self.proj_size:
            raise OperatorError(self.op, "proj_size", self.proj_size, "leave it out: a state is as wide as the layer")
        if isinstance(input, PackedSequence):
            x, lengths = pad_packed_sequence(input, batch_first=False)
            y, states = self._layers(x, hx, lengths.to(torch.int32).to(x.device))
            return pack_padded_sequence(y, lengths, enforce_sorted=input.sorted_indices is None), states
        if input.dim() not in (2, 3):
            raise OperatorError(self.op, "the rank of the input", input.dim(), "give (T, I), or (T, N, I) in a batch")
        alone = input.dim() == 2
        x = input.unsqueeze(1) if alone else input.transpose(0, 1) if self.batch_first else input
        if alone and hx is not None:
            hx = tuple(state.unsqueeze(1) for state in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)
        y, states = self._layers(x, hx, None)
        if alone:
            squeezed = tuple(state.squeeze(1) for state in states) if isinstance(states, tuple) else states.squeeze(1)
            return y.squeeze(1), squeezed
        return (y.transpose(0, 1) if self.batch_first else y), states

    def _attributes(self) -> dict[str, Any]:
        return {}

    def _layers(self, x: Tensor, hx: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
        """x (T, N, I) through every layer; y (T, N, D * H) and the final states (layers * D, N, H)."""
        directions = 2 if self.bidirectional else 1
        initial = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        wanted = (self.num_layers * directions, x.shape[1], self.hidden_size)
        for state in initial:
            if tuple(state.shape) != wanted:
                raise OperatorError(self.op, "the shape of a state", list(state.shape), f"it has to be {list(wanted)}")
        attributes = text_of(
            {
                "direction": "bidirectional" if self.bidirectional else "forward",
                "hidden_size": self.hidden_size,
                "layout": 0,
                **self._attributes(),
            }
        )
        count = 3 if self.op == "lstm" else 2
        # where gradients may be asked for, the layer also gives what they need of it
        op, outputs = (self.op + TRAINING, count + 1) if torch.is_grad_enabled() else (self.op, count)
        finals: list[list[Tensor]] = []
        for depth in range(self.num_layers):
            own = slice(depth * directions, (depth + 1) * directions)
            states = [state[own] for state in initial]
            inputs = [x, *self._weights(depth), lengths, *states]
            y, *final = apply(inputs, op, attributes, outputs)[:count]
            finals.append(final)
            x = y.transpose(1, 2).flatten(2)  # both directions side by side
            if self.dropout and self.training and depth + 1 < self.num_layers:
                x = functional.dropout(x, self.dropout, True)
        stacked = tuple(torch.cat([final[i] for final in finals]) for i in range(len(finals[0])))
        return x, stacked if self.op == "lstm" else stacked[0]

    def _weights(self, depth: int) -> list[Tensor | None]:
        """w (D, gates * H, I), r (D, gates * H, H) and b (D, 2 * gates * H) of one layer."""
        suffixes = [f"_l{depth}", f"_l{depth}_reverse"][: 2 if self.bidirectional else 1]

        def stacked(kind: str) -> Tensor:
            return torch.stack([_ordered(getattr(self, kind + suffix), self.op) for suffix in suffixes])

        bias = torch.cat([stacked("bias_ih"), stacked("bias_hh")], 1) if self.bias else None
        return [stacked("weight_ih"), stacked("weight_hh"), bias]


class RNN(_Recurrent):
    __doc__ = nn.RNN.__doc__
    op = "rnn"
    MODES: ClassVar = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if nonlinearity not in self.MODES:
            raise OperatorError("rnn", "nonlinearity", repr(nonlinearity), f"known are {', '.join(self.MODES)}")
        super().__init__(self.MODES[nonlinearity], input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity

    def _attributes(self) -> dict[str, Any]:
        name = {"tanh": "Tanh", "relu": "Relu"}[self.nonlinearity]
        return {"activations": ",".join([name] * (2 if self.bidirectional else 1))}


class LSTM(_Recurrent):
    __doc__ = nn.LSTM.__doc__
    op = "lstm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)


class GRU(_Recurrent):
    __doc__ = nn.GRU.__doc__
    op = "gru"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("GRU", *args, **kwargs)

    def _attributes(self) -> dict[str, Any]:
        return {"linear_before_reset": 1}
