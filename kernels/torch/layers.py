"""torch's layers on our kernels: the same names, arguments, parameters and state_dict; only what runs is ours.

Each class is torch's own with its computation replaced, so that ``isinstance`` and everything that looks into a layer goes on
working. Differences: dtypes are float32, float64 and float16, gradients of gradients are not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from quatrefoil.errors import OperatorError
from quatrefoil.torch.operators import apply, text_of


def _spread(value: int | Sequence[int], rank: int) -> list[int]:
    return [value] * rank if isinstance(value, int) else list(value)


def _batched(x: Tensor, rank: int) -> tuple[Tensor, bool]:
    """x with a batch axis, which torch lets one leave out; and whether it was."""
    return (x.unsqueeze(0), True) if x.dim() == rank + 1 else (x, False)


def _run(op: str, inputs: Sequence[Tensor | None], rank: int, attributes: dict[str, Any]) -> Tensor:
    x, alone = _batched(cast(Tensor, inputs[0]), rank)
    (y,) = apply([x, *inputs[1:]], op, text_of(attributes), 1)
    return y.squeeze(0) if alone else y


class _Conv(nn.modules.conv._ConvNd):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rank = len(self.kernel_size)
        if self.padding_mode != "zeros":
            input = functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            pads = [0] * (2 * rank)
        elif self.padding == "same":
            # for each axis, the last one first, how much goes before and behind
            pairs = self._reversed_padding_repeated_twice
            pads = [pairs[2 * (rank - 1 - axis) + side] for side in (0, 1) for axis in range(rank)]
        else:
            pads = [0] * (2 * rank) if self.padding == "valid" else [*self.padding, *self.padding]
        attributes = {"strides": self.stride, "pads": pads, "dilations": self.dilation, "group": self.groups}
        return _run("conv", (input, weight, bias), rank, attributes)


class _ConvTranspose(nn.modules.conv._ConvTransposeNd):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        rank = len(self.kernel_size)
        extra = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, rank, self.dilation
        )
        attributes = {
            "strides": self.stride,
            "pads": [*self.padding, *self.padding],
            "dilations": self.dilation,
            "group": self.groups,
            "output_padding": list(extra),
        }
        return _run("conv_transpose", (input, self.weight, self.bias), rank, attributes)


class Conv1d(_Conv, nn.Conv1d):
    __doc__ = nn.Conv1d.__doc__


class Conv2d(_Conv, nn.Conv2d):
    __doc__ = nn.Conv2d.__doc__


class Conv3d(_Conv, nn.Conv3d):
    __doc__ = nn.Conv3d.__doc__


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    __doc__ = nn.ConvTranspose1d.__doc__


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    __doc__ = nn.ConvTranspose2d.__doc__


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    __doc__ = nn.ConvTranspose3d.__doc__


def _window(layer: Any, rank: int) -> dict[str, Any]:
    """What all pools have in common."""
    kernel = _spread(layer.kernel_size, rank)
    pads = _spread(getattr(layer, "padding", 0), rank)
    return {
        "kernel_shape": kernel,
        "strides": kernel if layer.stride is None else _spread(layer.stride, rank),
        "pads": [*pads, *pads],
    }


class _MaxPool(nn.modules.pooling._MaxPoolNd):
    rank: int

    def forward(self, input: Tensor) -> Any:
        attributes = {
            **_window(self, self.rank),
            "dilations": _spread(self.dilation, self.rank),
            "ceil_mode": int(self.ceil_mode),
        }
        if not self.return_indices:
            return _run("max_pool", (input,), self.rank, attributes)
        x, alone = _batched(input, self.rank)
        y, places = apply([x], "max_pool", text_of(attributes), 2)
        places = places % x.shape[2:].numel()  # ours count in all of x, torch's in a plane
        return (y.squeeze(0), places.squeeze(0)) if alone else (y, places)


class _AvgPool(nn.modules.pooling._AvgPoolNd):
    rank: int

    def forward(self, input: Tensor) -> Tensor:
        if getattr(self, "divisor_override", None) is not None:
            raise OperatorError("avg_pool", "divisor_override", self.divisor_override, "leave it out")
        attributes = {
            **_window(self, self.rank),
            "ceil_mode": int(self.ceil_mode),
            "count_include_pad": int(self.count_include_pad),
        }
        return _run("average_pool", (input,), self.rank, attributes)


class _LPPool(nn.modules.pooling._LPPoolNd):
    rank: int

    def forward(self, input: Tensor) -> Tensor:
        if self.norm_type != int(self.norm_type) or self.norm_type < 1:
            raise OperatorError("lp_pool", "norm_type", self.norm_type, "give a whole number from 1")
        attributes = {**_window(self, self.rank), "ceil_mode": int(self.ceil_mode), "p": int(self.norm_type)}
        return _run("lp_pool", (input,), self.rank, attributes)


class _MaxUnpool(nn.modules.pooling._MaxUnpoolNd):
    rank: int

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        x, alone = _batched(input, self.rank)
        places, _ = _batched(indices, self.rank)
        window = _window(self, self.rank)
        strides, pads = window["strides"], window["pads"]
        size = functional._unpool_output_size(x, window["kernel_shape"], strides, pads[: self.rank], output_size)
        extents = list(size)[-self.rank :]
        # a kernel with which the output is just what was asked for, so that indices count in it
        window["kernel_shape"] = [
            extent - (count - 1) * stride + 2 * pad
            for extent, count, stride, pad in zip(extents, x.shape[2:], strides, pads)
        ]
        plane = math.prod(extents)
        offsets = torch.arange(x.shape[0] * x.shape[1], device=x.device) * plane
        # an index outside of its plane would fall into another one's: beyond them all it is refused
        inside = (places >= 0) & (places < plane)
        whole = places + offsets.reshape(*x.shape[:2], *(1,) * self.rank)
        whole = torch.where(inside, whole, torch.full_like(whole, -1))
        (y,) = apply([x, whole], "max_unpool", text_of(window), 1)
        return y.squeeze(0) if alone else y


class MaxPool1d(_MaxPool, nn.MaxPool1d):
    __doc__ = nn.MaxPool1d.__doc__
    rank = 1


class MaxPool2d(_MaxPool, nn.MaxPool2d):
    __doc__ = nn.MaxPool2d.__doc__
    rank = 2


class MaxPool3d(_MaxPool, nn.MaxPool3d):
    __doc__ = nn.MaxPool3d.__doc__
    rank = 3


class AvgPool1d(_AvgPool, nn.AvgPool1d):
    __doc__ = nn.AvgPool1d.__doc__
    rank = 1


class AvgPool2d(_AvgPool, nn.AvgPool2d):
    __doc__ = nn.AvgPool2d.__doc__
    rank = 2


class AvgPool3d(_AvgPool, nn.AvgPool3d):
    __doc__ = nn.AvgPool3d.__doc__
    rank = 3


class LPPool1d(_LPPool, nn.LPPool1d):
    __doc__ = nn.LPPool1d.__doc__
    rank = 1


class LPPool2d(_LPPool, nn.LPPool2d):
    __doc__ = nn.LPPool2d.__doc__
    rank = 2


class LPPool3d(_LPPool, nn.LPPool3d):
    __doc__ = nn.LPPool3d.__doc__
    rank = 3


class MaxUnpool1d(_MaxUnpool, nn.MaxUnpool1d):
    __doc__ = nn.MaxUnpool1d.__doc__
    rank = 1


class MaxUnpool2d(_MaxUnpool, nn.MaxUnpool2d):
    __doc__ = nn.MaxUnpool2d.__doc__
    rank = 2


class MaxUnpool3d(_MaxUnpool, nn.MaxUnpool3d):
    __doc__ = nn.MaxUnpool3d.__doc__
    rank = 3
