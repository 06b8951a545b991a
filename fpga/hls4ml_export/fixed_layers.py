"""hls4ml's layers for fixed-point problems (ops/fixed.py): every format is given, none is left to hls4ml.

Each function takes the name of the layer, the name of the layer that feeds it, a canonical ``Problem`` and the
integers of its constants, and gives a ``FixedLayer``; what hls4ml's C++ (1.3, templates/*/nnet_utils) would compute
otherwise than ops/fixed.py is refused with the reason. Feature maps are (H, W, C) in the design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from quatrefoil.fpga.hls4ml_export.layers import ExportError, Layer, behind
from quatrefoil.fpga.hls4ml_export.support import require
from quatrefoil.numerics import TABLE_REACH, Fixed
from quatrefoil.ops import conv, pool, rnn
from quatrefoil.ops import fixed as ops
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem


@dataclass(frozen=True, slots=True)
class Target:
    """What is exported to, and how: hls4ml's words. strategy: "latency" or "resource"."""

    backend: str
    io: str
    strategy: str = "latency"
    reuse_factor: int = 1

    def require(self, name: str, *rows: str) -> None:
        """Raises ExportError for a layer of rows of the support table of which one is not there."""
        for row in rows:
            require(name, row, self.backend, self.io)


@dataclass(frozen=True, slots=True)
class FixedLayer:
    """A layer of hls4ml's list, and the settings that go with its name.

    formats      by hls4ml's names: result, weight, bias, accum, ...
    own_formats  types that hls4ml reads from the layer itself: table_t, ...
    """

    description: Layer
    formats: dict[str, Fixed]
    own_formats: dict[str, Fixed] = field(default_factory=dict)
    strategy: str = "latency"
    reuse_factor: int = 1

    @property
    def multiplies(self) -> bool:
        """Whether it multiplies by weights, so that strategy and reuse factor say something."""
        return "weight" in self.formats

    @property
    def name(self) -> str:
        return str(self.description["name"])


def input_layer(name: str, shape: Sequence[int], form: Fixed) -> FixedLayer:
    return FixedLayer({"class_name": "InputLayer", "name": name, "input_shape": list(shape)}, {"result": form})


# -- sums of products ------------------------------------------------------------------------------------------------


def convolution(
    name: str,
    source: str,
    problem: Problem,
    w: np.ndarray,
    bias: np.ndarray | None,
    target: Target,
    *,
    rows: np.ndarray | None = None,
) -> FixedLayer:
    """fixed_conv with none, one or two spatial axes, without its activation (``relu`` follows).

    rows: for a dense layer behind a flattened map, the place in ONNX's order of each element in the design's.
    """
    g = conv.geometry(problem)
    rank = len(problem.input(0).shape) - 2
    if rank > 2:
        raise ExportError(f"{name}: {rank} spatial axes; hls4ml has convolution over one or two")
    form = {key: ops.format_of(problem, key) for key in ("x_format", "w_format", "accumulator", "y_format")}
    bias_format = ops.format_of(problem, "bias_format") if bias is not None else form["w_format"]
    formats = {"result": form["y_format"], "weight": form["w_format"], "bias": bias_format}
    formats["accum"] = form["accumulator"]
    _check_products(name, formats, form["x_format"])
    constant = np.zeros(g.out_channels) if bias is None else bias_format.dequantize(bias)
    weight = form["w_format"].dequantize(w)
    ordered = _saturates(form["x_format"], form["w_format"], w, constant, form["accumulator"])
    if rank == 0:
        return _dense(name, source, problem, weight, constant, formats, target, rows, ordered)
    depthwise = g.groups > 1 and g.groups == g.in_channels == g.out_channels
    if not depthwise:
        weight = dense_groups(weight, g.groups)
    weight, window = dilated(weight, g.window)
    if depthwise:
        strategy, reuse = "latency", 1
        _check_order(name, problem, "latency", 1, g.window.taps, g.out_channels, ordered)
    else:
        strategy, reuse = target.strategy, target.reuse_factor
        taps = math.prod(weight.shape[1:])
        _check_order(name, problem, strategy, reuse, taps, g.out_channels, ordered)
        zeros = g.groups > 1 or max(g.window.dilations) > 1
        if zeros and ordered and strategy == "resource" and reuse > 1:
            raise ExportError(
                f"{name}: groups and dilations are exported as zero weights, which reuse {reuse} counts; with a "
                "saturating accumulator take reuse 1, or an accumulator that wraps"
            )
    target.require(name, *_convolution_rows(g.window, rank, g.groups, depthwise))
    last = np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2)))
    layer: Layer = {
        "class_name": f"{'Depthwise' if depthwise else ''}Conv{rank}D",
        "name": name,
        "inputs": [source],
        "data_format": "channels_last",
        "n_chan": g.in_channels,
        "n_filt": g.out_channels,
        "bias_data": constant,
    }
    if depthwise:
        layer |= {"depth_multiplier": 1, "depthwise_data": np.ascontiguousarray(np.swapaxes(last, -1, -2))}
        formats["depthwise"] = formats["weight"]
    else:
        layer["weight_data"] = last
    for axis, word, before, after in _axes(rank):
        layer[f"in_{word}"] = window.input[axis]
        layer[f"out_{word}"] = window.output[axis]
        layer[f"filt_{word}"] = window.kernel[axis]
        layer[f"stride_{word}"] = window.strides[axis]
        layer[f"dilation_{word}"] = 1
        layer[f"pad_{before}"] = window.pads[axis]
        layer[f"pad_{after}"] = behind(window, axis)
    return FixedLayer(layer, formats, strategy=strategy, reuse_factor=reuse)


def _convolution_rows(window: Window, rank: int, groups: int, depthwise: bool) -> list[str]:
    rows = [f"conv{rank}d"]
    if depthwise:
        rows = [f"conv{rank}d_depthwise"]
    elif groups > 1:
        rows.append("conv_grouped")
    if window.taps == 1 and not depthwise:
        rows = ["conv_1x1"]
    if any(n > k for n, k in zip(window.strides, window.kernel)):
        rows.append("conv_strided_beyond")
    if max(window.dilations) > 1:
        rows.append("conv_dilated")
    return rows


def _axes(rank: int) -> tuple[tuple[int, str, str, str], ...]:
    width = (2, "width", "left", "right")
    return (width,) if rank == 1 else ((1, "height", "top", "bottom"), width)


def _dense(
    name: str,
    source: str,
    problem: Problem,
    weight: np.ndarray,
    bias: np.ndarray,
    formats: dict[str, Fixed],
    target: Target,
    rows: np.ndarray | None,
    ordered: bool,
) -> FixedLayer:
    target.require(name, "dense")
    if conv.geometry(problem).groups > 1:
        weight = dense_groups(weight, conv.geometry(problem).groups)
    taps = weight.shape[1]
    if rows is not None:
        if ordered and not np.array_equal(rows, np.arange(taps)):
            raise ExportError(
                f"{name}: it sums a flattened map whose elements the design keeps in another order, and its accumulator "
                f"{formats['accum']} does not wrap; give one that does"
            )
        weight = weight[:, rows]
    _check_order(name, problem, target.strategy, target.reuse_factor, taps, len(weight), ordered)
    layer: Layer = {
        "class_name": "Dense",
        "name": name,
        "inputs": [source],
        "n_in": taps,
        "n_out": len(weight),
        "weight_data": np.ascontiguousarray(weight.T),
        "bias_data": bias,
    }
    return FixedLayer(layer, formats, strategy=target.strategy, reuse_factor=target.reuse_factor)


def dense_groups(weight: np.ndarray, groups: int) -> np.ndarray:
    """(M, C / groups, ...) to (M, C, ...), zero between groups: zeros change no sum, and cost no multiplier."""
    if groups == 1:
        return weight
    out, inner = weight.shape[0] // groups, weight.shape[1]
    full = np.zeros((weight.shape[0], inner * groups, *weight.shape[2:]))
    for group in range(groups):
        rows = slice(group * out, (group + 1) * out)
        full[rows, group * inner : (group + 1) * inner] = weight[rows]
    return full


def dilated(weight: np.ndarray, window: Window) -> tuple[np.ndarray, Window]:
    """hls4ml's convolutions have no dilation: zeros between the taps."""
    if max(window.dilations) == 1:
        return weight, window
    depth, height, width = ((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations))
    kernel = (depth, height, width)
    steps = tuple(slice(None, None, d) for d in window.dilations[3 - (weight.ndim - 2) :])
    full = np.zeros((*weight.shape[:2], *kernel[3 - (weight.ndim - 2) :]))
    full[(slice(None), slice(None), *steps)] = weight
    return full, replace(window, kernel=kernel, dilations=(1, 1, 1))


def _check_products(name: str, formats: dict[str, Fixed], x: Fixed) -> None:
    for role, form in (("x", x), ("weights", formats["weight"])):
        if form.width == 1:
            raise ExportError(f"{name}: {role} of {form}; hls4ml takes one bit as -1 and 1: give two bits")


def valid_reuse(taps: int, outputs: int, reuse: int) -> bool:
    """Whether hls4ml takes the factor as it is (FPGABackend._validate_reuse_factor)."""
    limit = -(-taps * outputs // min(taps, reuse))
    return (
        (limit % outputs == 0 or reuse >= taps) and (reuse % taps == 0 or reuse < taps) and taps * outputs % reuse == 0
    )


def _saturates(x: Fixed, w_format: Fixed, w: np.ndarray, bias: np.ndarray, accumulator: Fixed) -> bool:
    """Whether sums may leave an accumulator that does not wrap, so that the order of additions shows. bias: real numbers."""
    if accumulator.overflow == "WRAP":
        return False
    start = np.ldexp(np.abs(bias), accumulator.fraction) + 1
    rows = np.asarray(w).reshape(len(w), -1)
    return ops.largest_sum(x, rows, x.fraction + w_format.fraction, start, accumulator) > accumulator.high


def _check_order(
    name: str, problem: Problem, strategy: str, reuse: int, taps: int, outputs: int, ordered: bool
) -> None:
    """Whether hls4ml takes the reuse factor as it is and, where the order shows, adds in the one that the problem says."""
    if strategy == "resource" and not valid_reuse(taps, outputs, reuse):
        fitting = [r for r in range(1, taps * outputs + 1) if valid_reuse(taps, outputs, r)]
        near = sorted(fitting, key=lambda r: (abs(r - reuse), r))[:4]
        raise ExportError(
            f"{name}: reuse {reuse} does not divide {taps} x {outputs} multiplications as hls4ml's resource strategy "
            f"needs, and it would silently take another; give {', '.join(map(str, sorted(near)))}"
        )
    if not ordered:
        return
    made = reuse if strategy == "resource" and 1 < reuse < taps else 1
    wanted = problem.integer("reuse")
    wanted = wanted if wanted < taps else 1
    if made != wanted:
        raise ExportError(
            f"{name}: its accumulator may saturate, and its products are added with reuse {wanted}; strategy "
            f"{strategy!r} with reuse {reuse} adds them with reuse {made}: give the layer reuse={made} in the network's "
            "precision, or a wider accumulator"
        )


# -- pooling ---------------------------------------------------------------------------------------------------------


def pooling(name: str, source: str, problem: Problem, target: Target) -> FixedLayer:
    """fixed_max_pool and fixed_average_pool over one or two axes."""
    g = pool.geometry(problem)
    window, rank = g.window, len(problem.input(0).shape) - 2
    kind = "Max" if problem.op == "fixed_max_pool" else "Average"
    x, y = (ops.format_of(problem, key) for key in ("x_format", "y_format"))
    channels = problem.input(0).shape[1]
    if rank not in (1, 2):
        raise ExportError(f"{name}: {rank} spatial axes; hls4ml pools over one or two")
    if max(window.dilations) > 1:
        raise ExportError(f"{name}: dilations {window.dilations[-rank:]}; hls4ml pools with 1")
    formats = {"result": y, "accum": x}
    whole = window.output_size == 1 and window.kernel == window.input
    ends = {axis: behind(window, axis) for axis in range(3)}
    padded = any(window.pads) or any(ends.values())
    row = f"{kind.lower()}_pool"
    if padded:
        target.require(name, f"{row}_padded")
    elif whole:
        target.require(name, f"{row}_global")
    else:
        target.require(name, row if window.kernel == window.strides else f"{row}{rank}d_strided")
    if kind == "Max" and padded and not x.signed:
        raise ExportError(f"{name}: it pools over padding, and hls4ml pads unsigned numbers ({x}) with 2^(width - 1)")
    divisors = None
    if kind == "Average":
        formats["accum"] = _average_accumulator(name, problem, target, x)
        divisors = ops.divisors(problem)
    if whole and not padded:
        layer: Layer = {"class_name": f"Global{kind}Pooling{rank}D", "name": name, "inputs": [source]}
        layer |= {"data_format": "channels_last", "n_filt": channels}
        layer |= {"in_height": window.input[1], "in_width": window.input[2]} if rank == 2 else {"n_in": window.input[2]}
        return FixedLayer(layer, formats)
    layer = {"class_name": f"{kind}Pooling{rank}D", "name": name, "inputs": [source]}
    layer |= {"data_format": "channels_last", "n_filt": channels, "count_pad": False}
    if divisors is not None and padded and problem.integer("count_include_pad"):
        if not (divisors == window.taps).all():
            raise ExportError(
                f"{name}: windows that reach beyond the padding (ceil_mode); hls4ml counts those taps too"
            )
        layer["count_pad"] = True
    for axis, word, before, after in _axes(rank):
        layer[f"pool_{word}"] = window.kernel[axis]
        layer[f"stride_{word}"] = window.strides[axis]
        layer[f"pad_{before}"], layer[f"pad_{after}"] = window.pads[axis], ends[axis]
        if rank == 2:
            layer[f"in_{word}"], layer[f"out_{word}"] = window.input[axis], window.output[axis]
        else:
            layer["n_in"], layer["n_out"] = window.input[axis], window.output[axis]
    return FixedLayer(layer, formats)


def _holds(form: Fixed, other: Fixed) -> bool:
    """Whether every number of ``other`` is one of ``form``."""
    shift = form.fraction - other.fraction
    return shift >= 0 and form.low <= other.low << shift and other.high << shift <= form.high


def _average_accumulator(name: str, problem: Problem, target: Target, x: Fixed) -> Fixed:
    accumulator = ops.format_of(problem, "accumulator")
    if accumulator.overflow == "WRAP":
        return accumulator
    taps = pool.geometry(problem).window.taps
    carry = (taps - 1).bit_length()
    if target.io == "stream" and not _holds(accumulator, replace(x, width=x.width + carry, integer=x.integer + carry)):
        raise ExportError(
            f"{name}: with io='stream' hls4ml adds {taps} taps as a tree, and {accumulator} may saturate; give it "
            f"{carry} integer bits more than {x}, or WRAP"
        )
    if not _holds(accumulator, x):
        raise ExportError(
            f"{name}: hls4ml does not cast {x} to {accumulator} before it adds; give WRAP, or a wider one"
        )
    return accumulator


# -- element by element ----------------------------------------------------------------------------------------------


def relu(name: str, source: str, y: Fixed, target: Target) -> FixedLayer:
    """max(x, 0) cast to y."""
    target.require(name, "relu")
    return FixedLayer(
        {"class_name": "Activation", "name": name, "inputs": [source], "activation": "relu"}, {"result": y}
    )


def cast(name: str, source: str, y: Fixed, target: Target) -> FixedLayer:
    target.require(name, "cast")
    layer: Layer = {"class_name": "Activation", "name": name, "inputs": [source], "activation": "linear"}
    return FixedLayer(layer, {"result": y})


TABLE_FUNCTIONS: Final = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus", "Softsign": "softsign"}


def table_activation(
    name: str, source: str, function: str, x: Fixed, table: Fixed, table_size: int, y: Fixed, target: Target
) -> FixedLayer:
    """A function by its table (numerics.function_table), cast to y."""
    target.require(name, TABLE_FUNCTIONS[function])
    _check_table(name, function, x, table_size)
    layer: Layer = {
        "class_name": "Activation",
        "name": name,
        "inputs": [source],
        "activation": TABLE_FUNCTIONS[function],
        "table_size": table_size,
    }
    return FixedLayer(layer, {"result": y}, {"table_t": table})


def _check_table(name: str, function: str, x: Fixed, size: int) -> None:
    """hls4ml computes the place in the table as a C++ int."""
    reach = 2 * TABLE_REACH[function]
    largest = max(abs(x.low), x.high) * size / reach / 2.0**x.fraction
    if largest >= 2**31 - size:
        raise ExportError(f"{name}: {x} reaches beyond what hls4ml's table index, 32 bits wide, holds")


SLOPED_FUNCTIONS: Final = {"LeakyRelu": ("LeakyReLU", "LeakyReLU", "leaky_relu"), "Elu": ("ELU", "ELU", "elu")}


def sloped_activation(
    name: str,
    source: str,
    function: str,
    alpha: float,
    constant: Fixed,
    y: Fixed,
    target: Target,
    table: Fixed | None = None,
    table_size: int = 1024,
) -> FixedLayer:
    """LeakyRelu and Elu; alpha is a number of the format ``constant``."""
    kind, word, row = SLOPED_FUNCTIONS[function]
    target.require(name, row)
    layer: Layer = {"class_name": kind, "name": name, "inputs": [source], "activation": word, "activ_param": alpha}
    own = {} if table is None else {"table_t": table}
    return FixedLayer(layer | {"table_size": table_size}, {"result": y, "param": constant}, own)


def hard_sigmoid(
    name: str, source: str, slope: float, shift: float, constant: Fixed, y: Fixed, target: Target
) -> FixedLayer:
    """slope x + shift between 0 and 1; both are numbers of the format ``constant``."""
    target.require(name, "hard_sigmoid")
    layer: Layer = {"class_name": "HardActivation", "name": name, "inputs": [source], "activation": "hard_sigmoid"}
    layer |= {"slope": slope, "shift": shift}
    return FixedLayer(layer, {"result": y}, {"slope_prec": constant, "shift_prec": constant})


def relu6(name: str, source: str, y: Fixed, target: Target) -> FixedLayer:
    """x between 0 and 6, cast to y."""
    target.require(name, "relu6")
    return FixedLayer(
        {"class_name": "Activation", "name": name, "inputs": [source], "activation": "relu6"}, {"result": y}
    )


def softmax(name: str, source: str, formats: dict[str, Fixed], table_size: int, y: Fixed, target: Target) -> FixedLayer:
    """Over a vector. formats: difference_format, exponential_format, accumulator, sum_format, inverse_format."""
    target.require(name, "softmax")
    layer: Layer = {"class_name": "Softmax", "name": name, "inputs": [source], "activation": "softmax", "axis": -1}
    # without sizes of their own hls4ml makes the tables smaller where x is narrow
    layer |= {"table_size": table_size, "exp_table_size": table_size, "inv_table_size": table_size}
    layer["implementation"] = "stable"
    own = {
        "inp_norm_t": formats["difference_format"],
        "exp_table_t": formats["exponential_format"],
        "accum_t": formats["accumulator"],
        "inv_inp_t": formats["sum_format"],
        "inv_table_t": formats["inverse_format"],
    }
    return FixedLayer(layer, {"result": y}, own)


MERGES: Final = {"FixedAdd": "add", "FixedSub": "subtract", "FixedMul": "multiply"}


def merge(name: str, first: str, second: str, operation: str, y: Fixed, target: Target) -> FixedLayer:
    """The exact sum, difference or product (``MERGES``), cast to y."""
    target.require(name, operation)
    layer: Layer = {"class_name": "Merge", "name": name, "inputs": [first, second], "op": operation}
    return FixedLayer(layer, {"result": y})


def scaling(
    name: str,
    source: str,
    operation: str,
    constant: np.ndarray,
    form: Fixed,
    y: Fixed,
    channels: int,
    target: Target,
    *,
    constant_first: bool = False,
) -> FixedLayer:
    """``MERGES`` with a constant: scale x + bias, exact, cast to y. constant: integers of ``form``, one for each element in the
    design's order; kept once for each channel where that is enough."""
    target.require(name, "constant")
    if form.width == 1:
        raise ExportError(f"{name}: a constant of {form}; hls4ml takes one bit as -1 and 1: give two bits")
    if len(constant) % channels == 0 and np.array_equal(constant, np.resize(constant[:channels], len(constant))):
        constant, filters = constant[:channels], channels
    else:
        filters = -1
    real, one = form.dequantize(constant), np.ones(len(constant))
    unit, negated = Fixed(4, 4), Fixed(form.width + 1, form.integer + 1)
    scale, bias, scale_format, bias_format = one, real, unit, form
    if operation == "multiply":
        scale, bias, scale_format, bias_format = real, np.zeros(len(constant)), form, unit
    elif operation == "subtract" and constant_first:
        scale = -one
    elif operation == "subtract":
        bias, bias_format = -real, negated
    layer: Layer = {"class_name": "ApplyAlpha", "name": name, "inputs": [source], "n_filt": filters}
    layer |= {"scale_data": scale, "bias_data": bias}
    return FixedLayer(layer, {"result": y, "scale": scale_format, "bias": bias_format})


def move(name: str, source: str, places: np.ndarray, shape: Sequence[int], form: Fixed, target: Target) -> FixedLayer:
    """A layer of our own: element i is the source's places[i], 0 where that is negative; of the given shape."""
    target.require(name, "move")
    layer: Layer = {"class_name": "QuatrefoilMove", "name": name, "inputs": [source]}
    return FixedLayer(layer | {"places": [int(n) for n in places], "target_shape": list(shape)}, {"result": form})


def concatenation(name: str, first: str, second: str, axis: int, rank: int, y: Fixed, target: Target) -> FixedLayer:
    """axis: from 0, of a value of ``rank`` axes in the design's order, without the batch."""
    target.require(name, "concat" if axis == rank - 1 else "concat_elsewhere")
    if rank == 1 and target.backend == "Catapult" and target.io == "stream":
        raise ExportError(
            f"{name}: Catapult's concatenation of two streams of vectors gives each as if it were the whole; take "
            "io='parallel', or Vitis, Vivado or Quartus"
        )
    layer: Layer = {"class_name": "Concatenate", "name": name, "inputs": [first, second], "op": f"concatenate{rank}d"}
    return FixedLayer(layer | {"axis": axis + 1}, {"result": y})


def reshape(name: str, source: str, shape: Sequence[int], form: Fixed) -> FixedLayer:
    layer: Layer = {"class_name": "Reshape", "name": name, "inputs": [source], "target_shape": list(shape)}
    return FixedLayer(layer, {"result": form})


def upsampling(
    name: str, source: str, shape: tuple[int, int, int], scales: tuple[int, int], form: Fixed, target: Target
) -> FixedLayer:
    """Each pixel ``scales`` times; shape: (H, W, C) before."""
    target.require(name, "upsample")
    layer: Layer = {
        "class_name": "Resize",
        "name": name,
        "inputs": [source],
        "algorithm": "nearest",
        "align_corners": False,
        "data_format": "channels_last",
        "in_height": shape[0],
        "in_width": shape[1],
        "out_height": shape[0] * scales[0],
        "out_width": shape[1] * scales[1],
        "n_chan": shape[2],
    }
    return FixedLayer(layer, {"result": form})


# -- recurrent layers ------------------------------------------------------------------------------------------------

KERAS_GATES: Final = {"fixed_lstm": (0, 2, 3, 1), "fixed_gru": (0, 1, 2)}
"""Where Keras's gates (LSTM: i, f, c, o; GRU: z, r, h) are in ONNX's order."""


@dataclass(frozen=True, slots=True)
class RecurrentConstants:
    """One direction's integers: W (gates * hidden, inputs), R (gates * hidden, hidden), both biases (gates * hidden),
    the initial states (hidden) if given."""

    w: np.ndarray
    r: np.ndarray
    wb: np.ndarray
    rb: np.ndarray
    h: np.ndarray | None = None
    c: np.ndarray | None = None


def recurrent_constants(problem: Problem, inputs: Sequence[np.ndarray | None], direction: int) -> RecurrentConstants:
    """Of a problem's inputs; those that are not constants None. A batch's states have to be the same."""
    given = [*inputs, *[None] * (len(ops.RECURRENT_NAMES) - len(inputs))]
    w, r, b = (given[i] for i in (rnn.W, rnn.R, rnn.B))
    assert w is not None and r is not None
    states = []
    for position in (rnn.INITIAL_H, rnn.INITIAL_C):
        state = given[position]
        states.append(None if state is None else np.asarray(state)[direction, 0])
    biases = np.zeros(2 * w.shape[1], np.int64) if b is None else np.asarray(b)[direction]
    wb, rb = np.split(biases, 2)
    return RecurrentConstants(np.asarray(w)[direction], np.asarray(r)[direction], wb, rb, *states)


def recurrent(
    name: str,
    source: str,
    problem: Problem,
    constants: RecurrentConstants,
    target: Target,
    *,
    direction: int = 0,
    output: str = "sequence",
) -> FixedLayer:
    """One direction of fixed_rnn, fixed_lstm, fixed_gru.

    output: "sequence" gives h of every step, (steps, hidden); "h" and "c" give the last state, (hidden).
    hls4ml's own layer where it computes this, else ours (``extension``).
    """
    g = ops.recurrent_geometry(problem)
    form = {key: ops.format_of(problem, key) for key in ops.RECURRENT_FORMATS if key != "b_format"}
    b_format = ops.format_of(problem, "b_format") if len(problem.inputs) > rnn.B and problem.has(rnn.B) else None
    b_format = b_format or form["w_format"]
    functions, backward = g.activations[direction], g.reverse[direction]
    size = problem.integer("table_size")
    for function in functions:
        if function in TABLE_REACH:
            _check_table(name, function, form["accumulator"], size)
    if len(functions) > 2 and functions[2] in TABLE_REACH:
        _check_table(name, functions[2], form["y_format"], size)
    sums = ((g.inputs, "x", "w", constants.w, constants.wb), (g.hidden, "y", "r", constants.r, constants.rb))
    for count, x, w, weights, bias in sums:
        ordered = _saturates(
            form[f"{x}_format"], form[f"{w}_format"], weights, b_format.dequantize(bias), form["accumulator"]
        )
        _check_order(name, problem, target.strategy, target.reuse_factor, count, g.gates * g.hidden, ordered)
    formats = {
        "result": form["y_format"], "accum": form["accumulator"],
        "weight": form["w_format"], "bias": b_format,
        "recurrent_weight": form["r_format"], "recurrent_bias": b_format,
    }  # fmt: skip
    plain = (
        problem.op in KERAS_GATES
        and not backward
        and constants.h is None
        and constants.c is None
        and output in ("sequence", "h")
        and (problem.op == "fixed_lstm" or g.linear_before_reset)
        and (problem.op == "fixed_gru" or functions[1] == functions[2])
        # hls4ml's lstm passes arrays of these as one another
        and (problem.op == "fixed_gru" or form["x_format"] == form["accumulator"] == form["y_format"])
    )
    reals = {
        "weight": form["w_format"].dequantize(constants.w),
        "recurrent_weight": form["r_format"].dequantize(constants.r),
        "bias": b_format.dequantize(constants.wb),
        "recurrent_bias": b_format.dequantize(constants.rb),
    }
    own = {"table_t": form["table_format"]}
    target.require(name, _recurrent_row(problem, constants, backward, output, plain))
    if plain:
        gates = KERAS_GATES[problem.op]
        order = np.concatenate([np.arange(gate * g.hidden, (gate + 1) * g.hidden) for gate in gates])
        layer: Layer = {
            "class_name": "LSTM" if problem.op == "fixed_lstm" else "GRU",
            "name": name,
            "inputs": [source],
            "n_timesteps": g.steps,
            "n_in": g.inputs,
            "n_out": g.hidden,
            "activation": functions[1].lower(),
            "recurrent_activation": functions[0].lower(),
            "return_sequences": output == "sequence",
            "return_state": False,
            "direction": "forward",
            "time_major": False,
            "static": True,
            "table_size": size,
        }
        layer |= {f"{key}_data": np.ascontiguousarray(array[order].T) for key, array in reals.items()}
        if problem.op == "fixed_gru":
            layer["apply_reset_gate"] = "after"
        else:
            layer["pytorch"] = True  # the only way to a bias of the recurrent sum
        return FixedLayer(layer, formats, own, target.strategy, target.reuse_factor)
    if target.strategy == "latency" and target.reuse_factor > 1:
        raise ExportError(
            f"{name}: reuse {target.reuse_factor} with strategy 'latency'; this recurrent layer is one of our own, and shares "
            "multipliers with strategy 'resource' alone"
        )
    zero = np.zeros(g.hidden)
    layer = {
        "class_name": "QuatrefoilRecurrent",
        "name": name,
        "inputs": [source],
        "cell": "gru_after" if g.linear_before_reset else problem.op.removeprefix("fixed_"),
        "n_timesteps": g.steps,
        "n_in": g.inputs,
        "n_out": g.hidden,
        "functions": [function.lower() for function in functions],
        "backward": backward,
        "output": output,
        "table_size": size,
        "initial_h_data": zero if constants.h is None else form["y_format"].dequantize(constants.h),
        "initial_c_data": zero if constants.c is None else form["y_format"].dequantize(constants.c),
    }
    layer |= {f"{key}_data": np.ascontiguousarray(array.T) for key, array in reals.items()}
    formats |= {"initial_h": form["y_format"], "initial_c": form["y_format"]}
    return FixedLayer(layer, formats, own, target.strategy, target.reuse_factor)


def _recurrent_row(problem: Problem, constants: RecurrentConstants, backward: bool, output: str, plain: bool) -> str:
    kind = problem.op.removeprefix("fixed_")
    if kind == "rnn":
        return "rnn" if constants.h is None and not backward else "rnn_bidirectional_initial_state"
    if kind == "gru" and not ops.recurrent_geometry(problem).linear_before_reset:
        return "gru_reset_before_bidirectional" if backward else "gru_reset_before"
    if plain:
        return "gru" if kind == "gru" else "lstm_one_format"
    if constants.h is not None or constants.c is not None:
        return f"{kind}_initial_state"
    if output == "c":
        return "lstm_cell_state"
    return f"{kind}_reverse" if backward else kind
