"""The public functions: torch.nn.functional's names and arguments over quatrefoil's operators.

Every function takes NumPy arrays, CuPy arrays, torch tensors or anything with DLPack, and gives back the same kind.
``backend`` is "cpu", "gpu", "fpga" or "asic"; left out, ``with qf.backend(...)`` or the array's home decides.
``tune=True`` measures the backend's kernels for the problem once and remembers the fastest.

Each function also has ``.call(...)``, which gives the operator call without running it; ``plan`` and ``explain``
build on that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any, TextIO

import numpy as np

from quatrefoil import dispatch
from quatrefoil.dispatch import Call, CallPlan, Selection
from quatrefoil.errors import OperatorError, QuatrefoilError
from quatrefoil.numerics import Fixed
from quatrefoil.ops import compressed
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.fixed import RECURRENT_FORMATS
from quatrefoil.problem import Tensor

Size = int | Sequence[int]


class OperatorFunction:
    """A public function. Calling it runs the operator; ``call`` only builds the operator call."""

    def __init__(self, build: Callable[..., Call]) -> None:
        self.call = build
        update_wrapper(self, build)

    def __call__(self, *args: Any, backend: str | None = None, tune: bool = False, **kwargs: Any) -> Any:
        return dispatch.call(self.call(*args, **kwargs), backend, tune)

    def __repr__(self) -> str:
        return f"<quatrefoil operator {self.__name__}>"  # type: ignore[attr-defined]


def plan(function: Any, *args: Any, backend: str | None = None, tune: bool = False, **kwargs: Any) -> CallPlan:
    """Choose the kernel for a call and pack its weights once.

        plan = qf.plan(qf.conv2d, x, w, bias, padding=1)
        y = plan(x)

    Arguments are the function's own; ``x`` may be a ``qf.Tensor`` that gives dtype and shape alone. Calling the plan
    takes the inputs that are not weights, of the planned dtypes and shapes.
    """
    return CallPlan(operator_of(function).call(*args, **kwargs), backend, tune)


def explain(
    function: Any, *args: Any, backend: str | None = None, file: TextIO | None = sys.stdout, **kwargs: Any
) -> Selection:
    """Which kernel a call would run, and why the others would not.

    Prints every kernel of the backend (chosen, runnable, or not and why in a sentence, measured time if tuned) to
    ``file`` (None: nowhere), and returns the Selection whose text it is. Nothing is computed.
    """
    request = operator_of(function).call(*args, **kwargs)
    first = next(array for array in request.inputs if array is not None)
    name, why = dispatch.chosen_backend(backend, first)
    selection = dispatch.select(request.problem(), name, why)
    if file is not None:
        print(selection, file=file)
    return selection


def operator_of(function: Any) -> OperatorFunction:
    """The function, if it is one of the house. Raises QuatrefoilError."""
    if not isinstance(function, OperatorFunction):
        raise QuatrefoilError(f"{function!r} is no quatrefoil operator; give one such as qf.conv2d")
    return function


def _spread(op: str, name: str, value: Size, rank: int) -> list[Any]:
    """A number for every axis, or one for each. Whether they are whole numbers is for the operator to say."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist()
    if not isinstance(value, (list, tuple)):
        return [value] * rank
    if len(value) not in (1, rank):
        raise OperatorError(op, name, value, f"give one number or {rank}")
    return list(value) * (rank if len(value) == 1 else 1)


def _expect_rank(op: str, x: Any, rank: int) -> tuple[int, ...]:
    shape = Tensor.of(x).shape
    if len(shape) != rank + 2:
        raise OperatorError(
            op, "the rank of x", f"{len(shape)} {list(shape)}", f"it has to be {rank + 2}: N, C and {rank} more"
        )
    return shape


def _padding(op: str, padding: Size | str, rank: int) -> dict[str, Any]:
    """torch's padding (a number, one for each axis, "same" or "valid"), or ONNX's 2 * rank begins and ends."""
    if isinstance(padding, str):
        names = {"same": "SAME_UPPER", "valid": "VALID"}
        if padding not in names:
            raise OperatorError(op, "padding", repr(padding), "give numbers, 'same' or 'valid'")
        return {"auto_pad": names[padding]}
    if isinstance(padding, (list, tuple)) and len(padding) == 2 * rank and rank > 1:
        return {"pads": list(padding)}
    return {"pads": _spread(op, "padding", padding, rank) * 2}


def _activation(name: str | Activation | None) -> dict[str, Any]:
    return {} if name is None else {"activation": name if isinstance(name, Activation) else Activation.parse(name)}


def _conv(rank: int) -> OperatorFunction:
    def conv(
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        activation: str | Activation | None = None,
        residual: Any = None,
    ) -> Call:
        op = f"conv{rank}d"
        _expect_rank(op, x, rank)
        attributes = {
            "strides": _spread(op, "stride", stride, rank),
            "dilations": _spread(op, "dilation", dilation, rank),
            "group": groups,
            **_padding(op, padding, rank),
            **_activation(activation),
        }
        if padding == "same" and any(s != 1 for s in attributes["strides"]):
            raise OperatorError(op, "padding", "'same' with a stride", "give numbers, as torch asks for too")
        return Call("conv", (x, weight, bias, residual), attributes)

    _document(
        conv,
        f"conv{rank}d",
        f"""Convolution over {rank} spatial ax{"is" if rank == 1 else "es"}: activation(conv(x, weight) + bias + residual).

    x (N, C, spatial), weight (M, C/groups, kernel), bias (M) or None, residual (the output's shape) or None; float32,
    float64 or float16, all the same. ``padding``: a number, one for each axis, begins and ends for each (2 * rank
    numbers), "same" or "valid". ``activation``: an ONNX name with parameters, such as "Relu" or "LeakyRelu(0.1)".
    Returns (N, M, spatial). Raises OperatorError for arguments that do not fit.""",
    )
    return OperatorFunction(conv)


def _conv_transpose(rank: int) -> OperatorFunction:
    def conv_transpose(
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
        *,
        activation: str | Activation | None = None,
        residual: Any = None,
    ) -> Call:
        op = f"conv_transpose{rank}d"
        _expect_rank(op, x, rank)
        attributes = {
            "strides": _spread(op, "stride", stride, rank),
            "dilations": _spread(op, "dilation", dilation, rank),
            "output_padding": _spread(op, "output_padding", output_padding, rank),
            "group": groups,
            **_padding(op, padding, rank),
            **_activation(activation),
        }
        return Call("conv_transpose", (x, weight, bias, residual), attributes)

    _document(
        conv_transpose,
        f"conv_transpose{rank}d",
        f"""Transposed convolution over {rank} spatial ax{"is" if rank == 1 else "es"}.

    x (N, C, spatial), weight (C, M/groups, kernel), bias (M) or None, residual (the output's shape) or None.
    Returns (N, M, spatial) with spatial (in - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.
    Raises OperatorError for arguments that do not fit.""",
    )
    return OperatorFunction(conv_transpose)


def _document(function: Callable, name: str, text: str) -> None:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text


conv1d, conv2d, conv3d = (_conv(rank) for rank in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (_conv_transpose(rank) for rank in (1, 2, 3))


@OperatorFunction
def conv_integer(
    x: Any,
    weight: Any,
    x_zero_point: Any = None,
    w_zero_point: Any = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    channels_last: bool = False,
) -> Call:
    """Integer convolution over 1 to 3 spatial axes, exact: sum of (x - x_zero_point) (weight - w_zero_point).

    x and weight uint8 or int8; zero points of their dtypes, scalars (w_zero_point also one for each output channel).
    Returns int32 (N, M, spatial), wrapping. channels_last: x and the result are (N, spatial, channels). Raises
    OperatorError for arguments that do not fit.
    """
    rank = len(Tensor.of(x).shape) - 2
    attributes = _window_attributes("conv_integer", rank, stride, padding, dilation, groups)
    attributes["channels_last"] = int(channels_last)
    return Call("conv_integer", (x, weight, x_zero_point, w_zero_point), attributes)


def _window_attributes(
    op: str, rank: int, stride: Size, padding: Size | str, dilation: Size, groups: int
) -> dict[str, Any]:
    return {
        "strides": _spread(op, "stride", stride, rank),
        "dilations": _spread(op, "dilation", dilation, rank),
        "group": groups,
        **_padding(op, padding, rank),
    }


@OperatorFunction
def qlinear_conv(
    x: Any,
    x_scale: Any,
    x_zero_point: Any,
    weight: Any,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    channels_last: bool = False,
) -> Call:
    """Quantised convolution over 1 to 3 spatial axes, equal to the last bit on every backend (see ops/conv.py).

    x and weight uint8 or int8 with float32 scales and zero points of their own dtypes (the weight's also one for
    each output channel), bias int32 (M) or None. Returns (N, M, spatial) of y_zero_point's dtype. channels_last: x and
    the result are (N, spatial, channels).
    """
    rank = len(Tensor.of(x).shape) - 2
    attributes = _window_attributes("qlinear_conv", rank, stride, padding, dilation, groups)
    attributes["channels_last"] = int(channels_last)
    inputs = (x, x_scale, x_zero_point, weight, w_scale, w_zero_point, y_scale, y_zero_point, bias)
    return Call("qlinear_conv", inputs, attributes)


def _pool_attributes(
    op: str, rank: int, kernel_size: Size, stride: Size | None, padding: Size, ceil_mode: bool
) -> dict[str, Any]:
    return {
        "kernel_shape": _spread(op, "kernel_size", kernel_size, rank),
        "strides": _spread(op, "stride", kernel_size if stride is None else stride, rank),
        "ceil_mode": int(ceil_mode),
        **_padding(op, padding, rank),
    }


def _plane_indices(shape: Sequence[int]) -> Callable[[tuple[Any, ...]], tuple[Any, Any]]:
    """ONNX's indices count in the whole of x, torch's in the plane: (N, C) offsets are taken off."""
    size = 1
    for extent in shape[2:]:
        size *= extent

    def finish(outputs: tuple[Any, ...]) -> tuple[Any, Any]:
        values, indices = outputs
        return values, indices % size

    return finish


def _max_pool(rank: int) -> OperatorFunction:
    def max_pool(
        x: Any,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Call:
        op = f"max_pool{rank}d"
        shape = _expect_rank(op, x, rank)
        attributes = {
            **_pool_attributes(op, rank, kernel_size, stride, padding, ceil_mode),
            "dilations": _spread(op, "dilation", dilation, rank),
        }
        if return_indices:
            return Call("max_pool", (x,), attributes, 2, _plane_indices(shape))
        return Call("max_pool", (x,), attributes)

    _document(
        max_pool,
        f"max_pool{rank}d",
        f"""Maxima over windows on {rank} spatial ax{"is" if rank == 1 else "es"}.

    x (N, C, spatial), float or uint8/int8. ``stride`` is ``kernel_size`` when left out. Padding never wins, NaN always.
    Returns the maxima, and with ``return_indices`` also int64 places in the plane (as torch counts them).""",
    )
    return OperatorFunction(max_pool)


def _avg_pool(rank: int) -> OperatorFunction:
    def avg_pool(
        x: Any,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Call:
        op = f"avg_pool{rank}d"
        _expect_rank(op, x, rank)
        attributes = _pool_attributes(op, rank, kernel_size, stride, padding, ceil_mode)
        return Call("average_pool", (x,), {**attributes, "count_include_pad": int(count_include_pad)})

    _document(
        avg_pool,
        f"avg_pool{rank}d",
        f"""Averages over windows on {rank} spatial ax{"is" if rank == 1 else "es"}.

    x (N, C, spatial), float. ``stride`` is ``kernel_size`` when left out. ``count_include_pad`` (torch's default, True)
    divides by the window's size with its padding, else by the elements of x inside.""",
    )
    return OperatorFunction(avg_pool)


def _lp_pool(rank: int) -> OperatorFunction:
    def lp_pool(x: Any, norm_type: int, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False) -> Call:
        op = f"lp_pool{rank}d"
        _expect_rank(op, x, rank)
        attributes = _pool_attributes(op, rank, kernel_size, stride, 0, ceil_mode)
        return Call("lp_pool", (x,), {**attributes, "p": norm_type})

    _document(
        lp_pool,
        f"lp_pool{rank}d",
        f"""p-norms over windows on {rank} spatial ax{"is" if rank == 1 else "es"}: (sum |x|^p)^(1/p), p = norm_type.

    x (N, C, spatial), float; p a whole number from 1. ``stride`` is ``kernel_size`` when left out.
    (torch sums x^p without the modulus; the two differ for odd p and negative x.)""",
    )
    return OperatorFunction(lp_pool)


def _max_unpool(rank: int) -> OperatorFunction:
    def max_unpool(
        x: Any,
        indices: Any,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        output_size: Sequence[int] | None = None,
    ) -> Call:
        op = f"max_unpool{rank}d"
        shape = _expect_rank(op, x, rank)
        kernel = _spread(op, "kernel_size", kernel_size, rank)
        strides = _spread(op, "stride", kernel_size if stride is None else stride, rank)
        pads = _spread(op, "padding", padding, rank)
        if output_size is not None:
            if len(output_size) not in (rank, rank + 2):
                raise OperatorError(op, "output_size", list(output_size), f"give {rank} numbers, or all {rank + 2}")
            # torch's indices count in the output that was asked for, so that one is made with a fitting kernel
            extents = list(output_size)[-rank:]
            kernel = [n - (length - 1) * s + 2 * p for n, length, s, p in zip(extents, shape[2:], strides, pads)]
        extents = [(n - 1) * s - 2 * p + k for n, s, p, k in zip(shape[2:], strides, pads, kernel)]
        if min(extents) < 1:
            raise OperatorError(op, "the output's spatial shape", extents, "every axis has to be at least 1 long")
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads * 2}
        return Call("max_unpool", (x, _whole_indices(op, indices, shape, extents)), attributes)

    _document(
        max_unpool,
        f"max_unpool{rank}d",
        f"""Puts each value at its index, zeros elsewhere; undoes max_pool{rank}d as far as can be.

    x (N, C, spatial), indices int64 of x's shape as max_pool{rank}d(..., return_indices=True) gives them (places in
    the output plane). Of several values with one index the last in memory stays. Indices outside raise OperatorError.""",
    )
    return OperatorFunction(max_unpool)


def _whole_indices(op: str, indices: Any, shape: Sequence[int], extents: Sequence[int]) -> Any:
    """torch's indices in the plane, turned into ONNX's in the whole output; checked, because adding offsets would
    hide an index outside of its plane."""
    given = Tensor.of(indices)
    if given.dtype != "int64" or given.shape != tuple(shape):
        raise OperatorError(op, "indices", given, f"it has to be int64 and of x's shape {list(shape)}")
    size = 1
    for extent in extents:
        size *= extent
    if not hasattr(indices, "min"):  # a Tensor: nothing to check yet
        return indices
    if given.size and (int(indices.min()) < 0 or int(indices.max()) >= size):
        raise OperatorError(
            op, "indices", f"{int(indices.min())} to {int(indices.max())}", f"they have to lie in 0 to {size - 1}"
        )
    planes = shape[0] * shape[1]
    offsets = (np.arange(planes) * size).reshape(shape[0], shape[1], *(1,) * (len(shape) - 2))
    if type(indices).__module__.startswith("torch"):
        offsets = sys.modules["torch"].as_tensor(offsets, device=indices.device)
    elif type(indices).__module__.startswith("cupy"):
        offsets = sys.modules["cupy"].asarray(offsets)
    return indices + offsets


max_pool1d, max_pool2d, max_pool3d = (_max_pool(rank) for rank in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (_avg_pool(rank) for rank in (1, 2, 3))
lp_pool1d, lp_pool2d, lp_pool3d = (_lp_pool(rank) for rank in (1, 2, 3))
max_unpool1d, max_unpool2d, max_unpool3d = (_max_unpool(rank) for rank in (1, 2, 3))


@OperatorFunction
def global_max_pool(x: Any) -> Call:
    """The maximum of each plane: (N, C, spatial) to (N, C, 1...)."""
    return Call("max_pool", (x,), {"kernel_shape": Tensor.of(x).shape[2:]})


@OperatorFunction
def global_avg_pool(x: Any) -> Call:
    """The average of each plane: (N, C, spatial) to (N, C, 1...)."""
    return Call("average_pool", (x,), {"kernel_shape": Tensor.of(x).shape[2:]})


@OperatorFunction
def global_lp_pool(x: Any, norm_type: int = 2) -> Call:
    """The p-norm of each plane: (N, C, spatial) to (N, C, 1...)."""
    return Call("lp_pool", (x,), {"kernel_shape": Tensor.of(x).shape[2:], "p": norm_type})


@OperatorFunction
def rnn(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    *,
    sequence_lens: Any = None,
    initial_h: Any = None,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    layout: int = 0,
) -> Call:
    """A recurrent layer, h' = f(W x + R h + b), with ONNX's inputs and attributes.

    x (T, N, I), w (D, H, I), r (D, H, H), b (D, 2H), sequence_lens (N) int32, initial_h (D, N, H); layout 1 puts N
    first. Returns y (T, D, N, H) and y_h (D, N, H). Semantics: ops/rnn.py.
    """
    attributes = _recurrent(direction, activations, activation_alpha, activation_beta, clip, layout)
    return Call("rnn", (x, w, r, b, sequence_lens, initial_h), attributes, 2, tuple)


@OperatorFunction
def sparse_rnn(
    x: Any,
    values: Any,
    columns: Any,
    offsets: Any,
    *,
    initial_h: Any = None,
    leak: float = 1.0,
    activation: str | Activation = "Tanh",
) -> Call:
    """A recurrent layer of leaky units with a sparse matrix R: h' = (1 - leak) h + leak f(x + R h).

    x (T, N, H) float32, already multiplied by input weights; R by compressed rows: values (Z) float32, columns (Z) int32,
    offsets (H + 1) int32; initial_h (N, H). leak in (0, 1], activation an ONNX name with parameters.
    Returns y (T, N, H). Raises OperatorError for arguments that do not fit, and for columns or offsets outside R.
    """
    return Call("sparse_rnn", (x, values, columns, offsets, initial_h), {"leak": leak, **_activation(activation)})


Stored = Sequence[Any]
"""A weight in parts: values, columns and offsets (``sparse_weight`` makes them), or codes and codebook."""


@OperatorFunction
def sparse_conv(
    x: Any,
    weight: Stored,
    weight_shape: Sequence[int],
    bias: Any = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | Activation | None = None,
    residual: Any = None,
) -> Call:
    """Convolution over 1 to 3 spatial axes with a sparse weight: activation(conv(x, weight) + bias + residual).

    x (N, C, spatial) float32; weight: values (Z) float32, columns (Z) int32 and offsets (M + 1) int32, the rows of
    (M, C/groups * kernel), as ``sparse_weight`` gives them; weight_shape (M, C/groups, kernel). The rest is as for
    ``conv2d``. Returns (N, M, spatial). A dense layer is a convolution of (N, K, 1) with weight_shape (M, K, 1).
    Raises OperatorError for arguments that do not fit, and for columns or offsets outside the weight.
    """
    attributes = {
        **_window_attributes("sparse_conv", len(Tensor.of(x).shape) - 2, stride, padding, dilation, groups),
        **_activation(activation),
        "w_shape": tuple(weight_shape),
    }
    return Call("sparse_conv", (x, *weight, bias, residual), attributes)


@OperatorFunction
def shared_conv(
    x: Any,
    codes: Any,
    codebook: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | Activation | None = None,
    residual: Any = None,
) -> Call:
    """Convolution over 1 to 3 spatial axes whose weight is codebook[codes].

    x (N, C, spatial) float32, codes (M, C/groups, kernel) uint8, codebook (1 to 256 entries) float32. The rest is as for
    ``conv2d``. Returns (N, M, spatial). Raises OperatorError for arguments that do not fit, and codes without an entry.
    """
    rank = len(Tensor.of(x).shape) - 2
    attributes = {
        **_window_attributes("shared_conv", rank, stride, padding, dilation, groups),
        **_activation(activation),
    }
    return Call("shared_conv", (x, codes, codebook, bias, residual), attributes)


def sparse_weight(weight: np.ndarray, row_axes: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight's values other than zero by compressed rows: values float32, columns int32, offsets int32.

    row_axes: how many of the weight's axes count rows: 1 for a convolution's (M, C/groups, kernel), 2 for a recurrent
    layer's (D, G H, I).
    """
    return compressed.rows_of(weight, row_axes)


def _compressed_recurrent(kind: str, base: OperatorFunction) -> OperatorFunction:
    """The function of a recurrent layer with compressed weights, from that of the layer."""
    dense: str = base.__name__  # type: ignore[attr-defined]
    name = compressed.OPS[kind, dense]
    parts = compressed.PARTS[kind]

    def layer(x: Any, w: Stored, r: Stored, b: Any = None, **options: Any) -> Call:
        for weight, given in (("w", w), ("r", r)):
            if not isinstance(given, (tuple, list)) or len(given) != len(parts):
                raise OperatorError(name, weight, type(given).__name__, f"give a tuple of {', '.join(parts)}")
        shapes = {}
        if kind == compressed.SPARSE:
            hidden, width = options.pop("hidden_size", None), Tensor.of(x).shape[-1]
            if hidden is None:
                raise OperatorError(name, "hidden_size", "missing", "give the number of hidden units")
            directions = 2 if options.get("direction") == "bidirectional" else 1
            rows = (Tensor.of(w[2]).size - 1) // directions
            shapes = {"w_shape": (directions, rows, width), "r_shape": (directions, rows, hidden)}
        call = base.call(x, None, None, b, **options)
        return Call(name, (x, *w, *r, *call.inputs[3:]), {**call.attributes, **shapes}, call.outputs, call.finish)

    stored = (
        "values, columns and offsets by compressed rows (``sparse_weight`` with row_axes=2), and hidden_size"
        if kind == compressed.SPARSE
        else "codes uint8 of the weight's shape and a codebook of 1 to 256 float32 entries"
    )
    _document(
        layer,
        name,
        f"""``{dense}`` with compressed weights: w and r are each a tuple of {stored}.

    float32; layout 0 alone. Everything else, and what it returns, is as for ``{dense}``.
    Raises OperatorError for arguments that do not fit, and for columns, offsets or codes outside the weights.""",
    )
    return OperatorFunction(layer)


@OperatorFunction
def lstm(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    *,
    sequence_lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    p: Any = None,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    input_forget: bool = False,
    layout: int = 0,
) -> Call:
    """Long short-term memory with ONNX's inputs, attributes and gate order i, o, f, c.

    x (T, N, I), w (D, 4H, I), r (D, 4H, H), b (D, 8H), sequence_lens (N) int32, initial_h and initial_c (D, N, H),
    peepholes p (D, 3H) in the order i, o, f; layout 1 puts N first. Returns y (T, D, N, H), y_h and y_c (D, N, H).
    """
    attributes = _recurrent(direction, activations, activation_alpha, activation_beta, clip, layout)
    inputs = (x, w, r, b, sequence_lens, initial_h, initial_c, p)
    return Call("lstm", inputs, {**attributes, "input_forget": int(input_forget)}, 3, tuple)


@OperatorFunction
def gru(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    *,
    sequence_lens: Any = None,
    initial_h: Any = None,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    linear_before_reset: bool = False,
    layout: int = 0,
) -> Call:
    """Gated recurrent unit with ONNX's inputs, attributes and gate order z, r, h.

    x (T, N, I), w (D, 3H, I), r (D, 3H, H), b (D, 6H), sequence_lens (N) int32, initial_h (D, N, H); layout 1 puts N
    first. torch's GRU is ``linear_before_reset=True`` with gates reordered (``gate_order``).
    Returns y (T, D, N, H) and y_h (D, N, H).
    """
    attributes = _recurrent(direction, activations, activation_alpha, activation_beta, clip, layout)
    inputs = (x, w, r, b, sequence_lens, initial_h)
    return Call("gru", inputs, {**attributes, "linear_before_reset": int(linear_before_reset)}, 2, tuple)


sparse_elman, sparse_lstm, sparse_gru = (_compressed_recurrent(compressed.SPARSE, base) for base in (rnn, lstm, gru))
shared_rnn, shared_lstm, shared_gru = (_compressed_recurrent(compressed.SHARED, base) for base in (rnn, lstm, gru))


def _formats(**formats: Any) -> dict[str, Any]:
    """Formats as the operators' attributes: text or quatrefoil.Fixed; one that is left out is theirs to miss."""
    return {name: str(form) for name, form in formats.items() if form is not None}


@OperatorFunction
def fixed_conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    x_format: str | Fixed,
    w_format: str | Fixed,
    bias_format: str | Fixed | None = None,
    accumulator: str | Fixed,
    y_format: str | Fixed,
    activation: str | None = None,
    reuse: int = 1,
) -> Call:
    """Fixed-point convolution over 0 to 3 spatial axes (0: a dense layer), equal to the last bit on every backend.

    x (N, C, spatial), weight (M, C / groups, kernel) and bias (M) or None hold integers of their formats, in the dtype
    that ``qf.Fixed.dtype`` says. Each product and each sum is cast to ``accumulator`` (see ops/fixed.py for their
    order, which ``reuse`` changes); y is the sum cast to ``y_format``, and with activation="Relu" at least 0.
    Returns (N, M, spatial) integers of y_format. Raises OperatorError for integers outside their format, formats whose
    product leaves 62 bits, and any other activation.
    """
    rank = max(len(Tensor.of(x).shape) - 2, 0)
    attributes = {
        **_window_attributes("fixed_conv", rank, stride, padding, dilation, groups),
        **_formats(
            x_format=x_format, w_format=w_format, bias_format=bias_format, accumulator=accumulator, y_format=y_format
        ),
        "reuse": reuse,
        "activation": activation,
    }
    return Call("fixed_conv", (x, weight) if bias is None else (x, weight, bias), attributes)


@OperatorFunction
def fixed_max_pool(
    x: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    *,
    x_format: str | Fixed,
    y_format: str | Fixed | None = None,
) -> Call:
    """Maxima of fixed-point numbers over windows on 1 to 3 spatial axes, cast to ``y_format`` (x's when left out).

    x (N, C, spatial), integers of x_format in the dtype that ``qf.Fixed.dtype`` says. ``stride`` is ``kernel_size``
    when left out; padding never wins. Returns (N, C, spatial) integers of y_format. Raises OperatorError for a window
    that is all padding, and integers outside x_format.
    """
    rank = max(len(Tensor.of(x).shape) - 2, 0)
    attributes = {
        **_pool_attributes("fixed_max_pool", rank, kernel_size, stride, padding, ceil_mode),
        "dilations": _spread("fixed_max_pool", "dilation", dilation, rank),
        **_formats(x_format=x_format, y_format=x_format if y_format is None else y_format),
    }
    return Call("fixed_max_pool", (x,), attributes)


@OperatorFunction
def fixed_average_pool(
    x: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    *,
    x_format: str | Fixed,
    accumulator: str | Fixed,
    y_format: str | Fixed | None = None,
) -> Call:
    """Means of fixed-point numbers over windows on 1 to 3 spatial axes, cast to ``y_format`` (x's when left out).

    x (N, C, spatial), integers of x_format in the dtype that ``qf.Fixed.dtype`` says. Sums are kept in
    ``accumulator``, which has all of x's fraction bits, and divided toward zero. ``stride`` is ``kernel_size`` when
    left out; padding counts with ``count_include_pad`` alone, as in hls4ml and unlike torch.
    Returns (N, C, spatial) integers of y_format. Raises OperatorError for a window that is all padding, an accumulator
    with too few fraction bits, and integers outside x_format.
    """
    rank = max(len(Tensor.of(x).shape) - 2, 0)
    attributes = {
        **_pool_attributes("fixed_average_pool", rank, kernel_size, stride, padding, ceil_mode),
        "count_include_pad": int(count_include_pad),
        **_formats(x_format=x_format, accumulator=accumulator, y_format=x_format if y_format is None else y_format),
    }
    return Call("fixed_average_pool", (x,), attributes)


def _recurrent_formats(op: str, given: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a fixed-point recurrent layer: formats, and what may be set about tables and order."""
    numbers = ("table_size", "reuse")
    for name in given:
        if name not in (*RECURRENT_FORMATS, *numbers):
            known = ", ".join((*RECURRENT_FORMATS, *numbers))
            raise OperatorError(op, "the keyword", name, f"it takes {known}")
    formats = {name: form for name, form in given.items() if name not in numbers}
    return {**_formats(**formats), **{name: given[name] for name in numbers if name in given}}


@OperatorFunction
def fixed_rnn(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    *,
    sequence_lens: Any = None,
    initial_h: Any = None,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    **formats: Any,
) -> Call:
    """Elman recurrent layer in fixed point, with ONNX's inputs and attributes; equal to the last bit on every backend.

    x (T, N, I), w (D, H, I), r (D, H, H), b (D, 2H), sequence_lens (N) int32, initial_h (D, N, H): integers of
    x_format, w_format, r_format, b_format (needed with b), and y_format for states, in the dtypes that
    ``qf.Fixed.dtype`` says. formats: these, ``accumulator``, ``table_format`` of the functions' tables, and, as
    whole numbers, ``table_size`` (1024) and ``reuse`` (1); ops/fixed.py says what is cast to which. activations:
    Sigmoid, Tanh or Relu.
    Returns y (T, D, N, H) and y_h (D, N, H), integers of y_format. Raises OperatorError for a format that is missing or too
    wide, and integers outside their format.
    """
    attributes = {"direction": direction, "activations": activations, **_recurrent_formats("fixed_rnn", formats)}
    return Call("fixed_rnn", (x, w, r, b, sequence_lens, initial_h), attributes, 2, tuple)


@OperatorFunction
def fixed_lstm(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    *,
    sequence_lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    **formats: Any,
) -> Call:
    """Long short-term memory in fixed point, with ONNX's gate order i, o, f, c; equal to the last bit on every backend.

    Inputs, formats and errors are those of ``fixed_rnn``, with w (D, 4H, I), r (D, 4H, H), b (D, 8H) and initial_c
    (D, N, H).
    Returns y (T, D, N, H), y_h and y_c (D, N, H), integers of y_format.
    """
    attributes = {"direction": direction, "activations": activations, **_recurrent_formats("fixed_lstm", formats)}
    return Call("fixed_lstm", (x, w, r, b, sequence_lens, initial_h, initial_c), attributes, 3, tuple)


@OperatorFunction
def fixed_gru(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    *,
    sequence_lens: Any = None,
    initial_h: Any = None,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    linear_before_reset: bool = False,
    **formats: Any,
) -> Call:
    """Gated recurrent unit in fixed point, with ONNX's gate order z, r, h; equal to the last bit on every backend.

    Inputs, formats and errors are those of ``fixed_rnn``, with w (D, 3H, I), r (D, 3H, H) and b (D, 6H).
    Returns y (T, D, N, H) and y_h (D, N, H), integers of y_format.
    """
    attributes = {
        "direction": direction,
        "activations": activations,
        "linear_before_reset": int(linear_before_reset),
        **_recurrent_formats("fixed_gru", formats),
    }
    return Call("fixed_gru", (x, w, r, b, sequence_lens, initial_h), attributes, 2, tuple)


def stacked(
    function: OperatorFunction,
    x: Any,
    layers: Sequence[Sequence[Any]],
    *,
    initial_h: Sequence[Any] | None = None,
    initial_c: Sequence[Any] | None = None,
    backend: str | None = None,
    **options: Any,
) -> tuple[Any, ...]:
    """Recurrent layers on top of each other: each reads the one below it, both directions side by side.

        y, y_h, y_c = qf.stacked(qf.lstm, x, [(w0, r0, b0), (w1, r1, b1)], direction="bidirectional")

    layers: (w, r) or (w, r, b) for each; the width of layer l + 1's input is D * H of layer l. initial_h, initial_c:
    a state for each layer. options: what ``function`` takes, the same for every layer.
    Returns y of the last layer, then the final states of every layer, as lists.
    """
    if not layers:
        raise OperatorError("stacked", "layers", "empty", "give (w, r, b) for at least one layer")
    batch_first = options.get("layout", 0) == 1
    states: list[tuple[Any, ...]] = []
    for depth, weights in enumerate(layers):
        given = {name: s[depth] for name, s in (("initial_h", initial_h), ("initial_c", initial_c)) if s is not None}
        y, *final = function(x, *weights, backend=backend, **given, **options)
        states.append(tuple(final))
        # y (T, D, N, H), or with layout 1 (N, T, D, H), becomes the next x with the directions side by side
        side_by_side = y if batch_first else y.swapaxes(1, 2)
        x = side_by_side.reshape(*side_by_side.shape[:2], -1)
    return (y, *([s[i] for s in states] for i in range(len(states[0]))))


def _recurrent(
    direction: str,
    activations: Sequence[str] | None,
    alpha: Sequence[float] | None,
    beta: Sequence[float] | None,
    clip: float | None,
    layout: int,
) -> dict[str, Any]:
    return {
        "direction": direction,
        "activations": activations,
        "activation_alpha": alpha,
        "activation_beta": beta,
        "clip": clip,
        "layout": layout,
    }
