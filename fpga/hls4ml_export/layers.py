"""hls4ml's layers as plain dictionaries, the form that ``ModelGraph.from_layer_list`` takes; number formats that a
layer needs of its own are under ``formats``.

hls4ml keeps channels last: feature maps are (H, W, C), weights (H, W, in, out). What its C++ templates assert on
(nnet_conv*.h, nnet_pooling*.h, nnet_sepconv*.h of hls4ml 1.3) is refused here, in words, before anything is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.conv import ConvGeometry
from quatrefoil.ops.windows import Window

Layer = dict[str, Any]


class ExportError(QuatrefoilError, ValueError):
    """A model that cannot be exported as it is, or a project that does not hold what it should."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a design is to be made, in the words of ``export``."""

    backend: str
    io: str
    part: str | None
    reuse_factor: int
    precision: str
    strategy: str


PLAIN_ACTIVATIONS: Final = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softsign": "softsign",
    "Softplus": "softplus",
}
SLOPED_ACTIVATIONS: Final = {"LeakyRelu": ("LeakyReLU", "LeakyReLU"), "Elu": ("ELU", "ELU")}
"""ONNX name to hls4ml's class and function, for activations with one parameter."""


SOFTMAX_TABLE: Final = 4096


@dataclass(frozen=True, slots=True)
class Format:
    """A fixed-point format that rounds and saturates: total and integer bits."""

    width: int
    integer: int
    signed: bool = True


def _axes(rank: int) -> tuple[tuple[int, str, str, str], ...]:
    """Index into a Window, and hls4ml's words for the axis and its two sides."""
    height, width = (1, "height", "top", "bottom"), (2, "width", "left", "right")
    return (width,) if rank == 1 else (height, width)


def behind(window: Window, axis: int) -> int:
    """The padding behind the input's last element that the outputs reach into."""
    extent = (window.kernel[axis] - 1) * window.dilations[axis] + 1
    reached = (window.output[axis] - 1) * window.strides[axis] + extent
    return max(reached - window.pads[axis] - window.input[axis], 0)


def input_layer(name: str, shape: tuple[int, ...]) -> Layer:
    return {"class_name": "InputLayer", "name": name, "input_shape": list(shape)}


def reshape(name: str, source: str, shape: tuple[int, ...]) -> Layer:
    return {"class_name": "Reshape", "name": name, "inputs": [source], "target_shape": list(shape)}


def convolution(
    name: str,
    source: str,
    geometry: ConvGeometry,
    rank: int,
    weight: np.ndarray,
    bias: np.ndarray | None,
    options: Options,
) -> Layer:
    """weight: (M, C / groups, spatial). Full and depthwise convolution over one or two axes."""
    window = geometry.window
    depthwise = geometry.groups > 1
    if depthwise and not geometry.groups == geometry.in_channels == geometry.out_channels:
        raise ExportError(
            f"{name}: group {geometry.groups} of {geometry.in_channels} to {geometry.out_channels} channels; "
            "hls4ml has group 1, and depthwise convolution with one filter a channel"
        )
    if depthwise and options.strategy == "resource":
        raise ExportError(f"{name}: hls4ml has depthwise convolution with strategy='latency' alone")
    if max(window.dilations) > 1:
        raise ExportError(f"{name}: dilations {window.dilations[-rank:]}; hls4ml's generated convolutions have 1")
    if options.io == "stream" and rank == 2 and window.kernel[1] != window.kernel[2]:
        raise ExportError(
            f"{name}: the kernel is {window.kernel[1:]}; io='stream' takes square kernels, io='parallel' any"
        )
    channels_last = np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2)))
    layer: Layer = {
        "class_name": f"{'Depthwise' if depthwise else ''}Conv{rank}D",
        "name": name,
        "inputs": [source],
        "data_format": "channels_last",
        "n_chan": geometry.in_channels,
        "n_filt": geometry.out_channels,
        "bias_data": np.zeros(geometry.out_channels, np.float32) if bias is None else bias,
    }
    if depthwise:
        layer["depth_multiplier"] = 1
        layer["depthwise_data"] = np.ascontiguousarray(np.swapaxes(channels_last, -1, -2))
    else:
        layer["weight_data"] = channels_last
    for axis, word, before, after in _axes(rank):
        layer[f"in_{word}"] = window.input[axis]
        layer[f"out_{word}"] = window.output[axis]
        layer[f"filt_{word}"] = window.kernel[axis]
        layer[f"stride_{word}"] = window.strides[axis]
        layer[f"dilation_{word}"] = 1
        layer[f"pad_{before}"] = window.pads[axis]
        layer[f"pad_{after}"] = behind(window, axis)
    return layer


def pooling(name: str, source: str, kind: str, window: Window, rank: int, channels: int) -> Layer:
    """kind: ``Max`` or ``Average``. The whole plane, or windows that touch without overlapping."""
    layer: Layer = {"name": name, "inputs": [source], "data_format": "channels_last", "n_filt": channels}
    if window.output_size == 1 and window.kernel == window.input:
        layer["class_name"] = f"Global{kind}Pooling{rank}D"
        layer |= {"in_height": window.input[1], "in_width": window.input[2]} if rank == 2 else {"n_in": window.input[2]}
        return layer
    if max(window.dilations) > 1:
        raise ExportError(f"{name}: dilations {window.dilations[-rank:]}; hls4ml pools with 1")
    if any(window.pads) or any(behind(window, axis) for axis in range(3)):
        raise ExportError(f"{name}: it pools over padding; hls4ml's pooling has no padding (use pads 0 and floor mode)")
    if window.kernel != window.strides:
        raise ExportError(
            f"{name}: kernel {window.kernel[-rank:]} with strides {window.strides[-rank:]}; hls4ml pools with strides "
            "equal to the kernel"
        )
    layer["class_name"] = f"{kind}Pooling{rank}D"
    for axis, word, before, after in _axes(rank):
        layer[f"pool_{word}"] = window.kernel[axis]
        layer[f"stride_{word}"] = window.strides[axis]
        layer[f"pad_{before}"] = layer[f"pad_{after}"] = 0
        if rank == 2:
            layer[f"in_{word}"], layer[f"out_{word}"] = window.input[axis], window.output[axis]
        else:
            layer["n_in"], layer["n_out"] = window.input[axis], window.output[axis]
    return layer


def dense(name: str, source: str, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
    """weight: (in, out)."""
    return {
        "class_name": "Dense",
        "name": name,
        "inputs": [source],
        "n_in": weight.shape[0],
        "n_out": weight.shape[1],
        "weight_data": np.ascontiguousarray(weight, np.float32),
        "bias_data": np.zeros(weight.shape[1], np.float32) if bias is None else np.ascontiguousarray(bias, np.float32),
    }


def activation(name: str, source: str, function: Activation, options: Options) -> Layer:
    layer: Layer = {"class_name": "Activation", "name": name, "inputs": [source]}
    if function.name in PLAIN_ACTIVATIONS:
        layer["activation"] = PLAIN_ACTIVATIONS[function.name]
    elif function.name in SLOPED_ACTIVATIONS:
        layer["class_name"], layer["activation"] = SLOPED_ACTIVATIONS[function.name]
        layer["activ_param"] = function.alpha
    elif function.name == "Clip" and function.alpha == 0.0 and function.beta == 6.0:
        if options.io == "stream":
            raise ExportError(f"{name}: hls4ml has Clip(0,6) for io='parallel' alone; take that, or Relu")
        layer["activation"] = "relu6"
    elif function.name == "Clip" and function.alpha == 0.0 and math.isinf(function.beta):
        layer["activation"] = "relu"
    else:
        known = ", ".join((*PLAIN_ACTIVATIONS, *SLOPED_ACTIVATIONS, "Clip(0,6)", "Softmax"))
        raise ExportError(f"{name}: hls4ml has no activation {function.text}; known are {known}")
    return layer


def softmax(name: str, source: str, classes: int) -> Layer:
    """hls4ml looks exp(x - max) and 1 / sum up by the leading bits of their arguments. Left to itself it gives these
    the range of x; here the formats have the ranges that can occur, so that all bits of an index tell."""
    bits = classes.bit_length()
    return {
        "class_name": "Softmax",
        "name": name,
        "inputs": [source],
        "activation": "softmax",
        "axis": -1,
        "table_size": SOFTMAX_TABLE,
        "formats": {
            "inp_norm_t": Format(SOFTMAX_TABLE.bit_length() - 1, 4, signed=False),  # exp(-16) is 0 in the table
            "exp_table_t": Format(18, 2),
            "accum_t": Format(18 + bits, 2 + bits),
            "inv_inp_t": Format(18, bits, signed=False),
            "inv_table_t": Format(18, 2),
        },
    }


def addition(name: str, first: str, second: str) -> Layer:
    return {"class_name": "Merge", "name": name, "inputs": [first, second], "op": "add"}
