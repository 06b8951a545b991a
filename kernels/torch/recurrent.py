"""torch's recurrent layers on our kernels, as layers.py says.

torch keeps the weights of each layer and direction by themselves, its gates in another order than ONNX: they are brought
together and into order at each call, and their gradients back (a copy each). Layers on top of each other, directions, dropout
between layers, batch_first, unbatched inputs and packed sequences are torch's; ``proj_size`` is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from quatrefoil.errors import OperatorError
from quatrefoil.ops.rnn import TRAINING
from quatrefoil.torch.operators import apply, text_of

# Where ONNX's gates stand among torch's, torch's lstm being i, f, g, o and its gru r, z, n; and the places at which each of
# ONNX's gates takes the next one's place to stand as torch's do.
GATES = {"rnn": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}
ROUND = {"rnn": (), "lstm": (1, 2, 3), "gru": (0, 1)}


def _joined(parts: Sequence[Any], op: str) -> Any:
    """Weights or biases, torch's or NumPy's, one behind the other, the gates of each along its first axis in ONNX's order."""
    order = GATES[op]
    if isinstance(parts[0], Tensor):
        gates = [part.chunk(len(order), 0)[gate] for part in parts for gate in order]
        return gates[0] if len(gates) == 1 else torch.cat(gates)
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole if len(order) == 1 else whole.reshape(len(parts), len(order), -1).take(order, 1)


def _parted(gradients: Any, count: int, op: str) -> list[Any]:
    """The other way: ``count`` gradients with torch's order of gates. Where they lie, as nobody else has them yet and copies
    would push more out of the cache."""
    gates = gradients.reshape(count, len(GATES[op]), -1)
    if ROUND[op]:
        first = gates[:, ROUND[op][0]]
        kept = first.clone() if isinstance(first, Tensor) else first.copy()
        for place, following in zip(ROUND[op], ROUND[op][1:]):
            gates[:, place] = gates[:, following]
        gates[:, ROUND[op][-1]] = kept
    return list(gradients.reshape(count, -1, *gradients.shape[2:]))


@dataclass(frozen=True, slots=True)
class _Weights:
    """One layer's w, r and b, gates in ONNX's order, from x, every direction's weight_ih, every direction's weight_hh, every
    direction's bias_ih and bias_hh, lengths and states."""

    op: str
    directions: int
    bias: bool

    @property
    def _groups(self) -> tuple[slice, slice, slice]:
        """Where w, r and b are among the tensors."""
        w = 1 + self.directions
        r = w + self.directions
        return slice(1, w), slice(w, r), slice(r, r + 2 * self.directions * self.bias)

    def joined(self, tensors: Sequence[Any]) -> list[Any]:
        w, r, b = ([*tensors[group]] for group in self._groups)
        directions = self.directions
        return [
            tensors[0],
            _joined(w, self.op).reshape(directions, -1, w[0].shape[1]),
            _joined(r, self.op).reshape(directions, -1, r[0].shape[1]),
            _joined(b, self.op).reshape(directions, -1) if b else None,
            *tensors[self._groups[2].stop :],
        ]

    def parted(self, gradients: Sequence[Any]) -> list[Any]:
        made = [gradients[0]]
        for joined, group in zip(gradients[1:4], self._groups):
            count = group.stop - group.start
            made += [None] * count if joined is None else _parted(joined, count, self.op)
        return [*made, *gradients[4:]]

    def places(self, count: int) -> list[int]:
        groups = [place for place, group in enumerate(self._groups, 1) for _ in range(group.start, group.stop)]
        return [0, *groups, *range(4, 3 + count - len(groups))]


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
        form = _Weights(self.op, directions, self.bias)
        finals: list[list[Tensor]] = []
        for depth in range(self.num_layers):
            own = slice(depth * directions, (depth + 1) * directions)
            states = initial if self.num_layers == 1 else [state[own] for state in initial]
            y, *final = apply([x, *self._weights(depth), lengths, *states], op, attributes, outputs, form)[:count]
            finals.append(final)
            # both directions side by side
            x = y.squeeze(1) if directions == 1 else y.transpose(1, 2).flatten(2)
            if self.dropout and self.training and depth + 1 < self.num_layers:
                x = functional.dropout(x, self.dropout, True)
        if self.num_layers == 1:
            stacked = tuple(finals[0])
        else:
            stacked = tuple(torch.cat(each) for each in zip(*finals))
        return x, stacked if self.op == "lstm" else stacked[0]

    def _weights(self, depth: int) -> list[Tensor]:
        """One layer's parameters, in the order that the operator's form asks for."""
        suffixes = [f"_l{depth}", f"_l{depth}_reverse"][: 2 if self.bidirectional else 1]
        names = [f"weight_{kind}{suffix}" for kind in ("ih", "hh") for suffix in suffixes]
        if self.bias:
            names += [f"bias_{kind}{suffix}" for suffix in suffixes for kind in ("ih", "hh")]
        return [getattr(self, name) for name in names]


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
