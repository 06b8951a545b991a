"""Convolution: conv, conv_transpose, conv_integer and qlinear_conv, as ONNX's newest operator set defines them.

Canonical attributes
  conv, conv_integer, qlinear_conv   strides, pads (begins then ends), dilations, group
  conv_transpose                     the same, and output_shape (spatial): output_padding and auto_pad are settled
                                     into pads and output_shape
  conv, conv_transpose also          activation, when one is fused
  conv_integer, qlinear_conv also    channels_last, 1 where x and y are (N, spatial, C) instead of (N, C, spatial); w is
                                     (M, C / group, kernel) either way

Inputs
  conv, conv_transpose   x (N, C, spatial), w, bias (M)?, residual (shape of y)?:  y = activation(conv + bias + residual)
  conv_integer           x, w, x_zero_point?, w_zero_point?: y int32, wrapping
  qlinear_conv           x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias (int32)?

qlinear_conv is exact: acc = sum (x - x_zero_point)(w - w_zero_point) + bias in int32, then per output channel

    multiplier = float32(float32(x_scale * w_scale) / y_scale)
    y = saturate(round_half_even(float32(float32(acc) * multiplier)) + y_zero_point)

every step rounded to float32 once, so that all silicon agrees to the last bit (``numerics.requantize``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from quatrefoil.errors import OperatorError
from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.ops.spec import MAX_ELEMENTS, Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.ops.windows import (
    Window,
    auto_pad_of,
    check_extents,
    int_attribute,
    int_list,
    settle_forward,
    spatial_rank,
    split_padding,
    window,
)
from quatrefoil.problem import AttributeValue, Problem, Tensor, Tolerance, Work

FLOATS = ("float32", "float64", "float16")
INTEGERS = ("uint8", "int8")

X, W, BIAS, RESIDUAL = 0, 1, 2, 3
X_ZERO_POINT, W_ZERO_POINT = 2, 3
Q_X, Q_X_SCALE, Q_X_ZERO, Q_W, Q_W_SCALE, Q_W_ZERO, Q_Y_SCALE, Q_Y_ZERO, Q_BIAS = range(9)


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """A convolution with three spatial axes.

    For conv, conv_integer and qlinear_conv ``window`` slides over x:
        y[n, m, o] = sum over c, k of x[n, c, o * stride + k * dilation - pad] * w[m, c, k]
    For conv_transpose ``window`` slides over y (``window.input`` is y's extent, ``window.output`` x's):
        y[n, m, i * stride + k * dilation - pad] += x[n, c, i] * w[c, m, k]
    """

    batch: int
    groups: int
    in_channels: int
    out_channels: int
    window: Window

    @property
    def in_per_group(self) -> int:
        return self.in_channels // self.groups

    @property
    def out_per_group(self) -> int:
        return self.out_channels // self.groups


def channels_last(problem: Problem) -> bool:
    """Whether x and y of a quantised convolution are (N, spatial, C)."""
    return ("channels_last", 1) in problem.attributes


def planes_of(array: Any) -> Any:
    """(N, spatial, C) as a view (N, C, spatial)."""
    return array.transpose(0, array.ndim - 1, *range(1, array.ndim - 1))


def pixels_of(array: Any) -> Any:
    """(N, C, spatial) as a view (N, spatial, C)."""
    return array.transpose(0, *range(2, array.ndim), 1)


def channels_first(problem: Problem) -> Problem:
    """The same problem on planes."""
    if not channels_last(problem):
        return problem
    x, *others = problem.inputs
    assert x is not None
    attributes = tuple(item for item in problem.attributes if item[0] != "channels_last")
    [y] = problem.outputs
    return Problem(problem.op, (_as_planes(x), *others), (_as_planes(y),), attributes)


def _as_planes(tensor: Tensor) -> Tensor:
    batch, *spatial, channels = tensor.shape
    return Tensor(tensor.dtype, (batch, channels, *spatial))


@lru_cache(maxsize=4096)
def geometry(problem: Problem) -> ConvGeometry:
    """The geometry of any of the four operators' canonical problems. Kept, because training asks for it in each step."""
    problem = channels_first(problem)
    x = problem.input(X)
    w = problem.input(Q_W if problem.op == "qlinear_conv" else W)
    y = problem.outputs[0]
    small, large = (x, y) if problem.op == "conv_transpose" else (y, x)
    return ConvGeometry(
        batch=x.shape[0],
        groups=problem.integer("group"),
        in_channels=x.shape[1],
        out_channels=y.shape[1],
        window=window(problem, w.shape[2:], large.shape[2:], small.shape[2:]),
    )


def fused_activation(problem: Problem) -> Activation:
    """The activation that conv or conv_transpose ends with; Identity when none is fused."""
    for name, value in problem.attributes:
        if name == "activation":
            return Activation.parse(str(value))
    return IDENTITY


def required(op: str, names: Sequence[str], inputs: Sequence[Tensor | None], position: int) -> Tensor:
    tensor = inputs[position] if position < len(inputs) else None
    if tensor is None:
        raise OperatorError(op, names[position], "missing", "give an array")
    return tensor


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[str]) -> None:
    if tensor.dtype not in allowed:
        raise OperatorError(op, f"the dtype of {name}", tensor.dtype, f"it has to be {' or '.join(allowed)}")


def _check_count(op: str, names: Sequence[str], inputs: Sequence[Tensor | None]) -> None:
    if len(inputs) > len(names):
        raise OperatorError(op, "the number of inputs", len(inputs), f"it takes {', '.join(names)}")


def _check_shape(op: str, name: str, tensor: Tensor, *shapes: tuple[int, ...]) -> None:
    if tensor.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise OperatorError(op, f"the shape of {name}", list(tensor.shape), f"it has to be {wanted}")


def _weight(
    op: str, x: Tensor, w: Tensor, attributes: Attributes, transposed: bool, least_rank: int = 1
) -> tuple[int, int]:
    """Checks the weight against x; gives the number of output channels and of groups."""
    rank = spatial_rank(op, x, least_rank)
    if w.rank != rank + 2:
        raise OperatorError(op, "the rank of w", f"{w.rank} ({w})", f"it has to be {rank + 2} like x's ({x})")
    if 0 in w.shape:
        raise OperatorError(op, "the shape of w", list(w.shape), "every axis has to be at least 1 long")
    group = int_attribute(op, attributes, "group", 1)
    if group < 1:
        raise OperatorError(op, "group", group, "it has to be at least 1")
    kernel = int_list(op, attributes, "kernel_shape", rank, None, 1)
    if kernel is not None and kernel != w.shape[2:]:
        raise OperatorError(op, "kernel_shape", list(kernel), f"w's spatial shape is {list(w.shape[2:])}")
    channels = x.shape[1]
    if transposed:
        if w.shape[0] != channels:
            raise OperatorError(op, "w's first axis", w.shape[0], f"it has to equal x's {channels} channels")
        if channels % group:
            raise OperatorError(op, "group", group, f"it has to divide x's {channels} channels")
        return w.shape[1] * group, group
    if w.shape[1] * group != channels:
        raise OperatorError(
            op,
            "w's second axis",
            f"{w.shape[1]} with group {group}",
            f"times group it has to equal x's {channels} channels",
        )
    if w.shape[0] % group:
        raise OperatorError(op, "group", group, f"it has to divide w's {w.shape[0]} output channels")
    return w.shape[0], group


def check_size(op: str, tensor: Tensor) -> None:
    if tensor.size > MAX_ELEMENTS:
        raise OperatorError(
            op, "the output's shape", list(tensor.shape), f"it has to hold at most {MAX_ELEMENTS} values"
        )


def _epilogue(
    op: str, names: Sequence[str], inputs: Sequence[Tensor | None], attributes: Attributes, y: Tensor
) -> tuple[tuple[Tensor | None, ...], tuple[tuple[str, AttributeValue], ...]]:
    """Bias and residual checked, trailing absent inputs dropped, and the fused activation as an attribute."""
    given = list(inputs) + [None] * (4 - len(inputs))
    for position, shape in ((BIAS, (y.shape[1],)), (RESIDUAL, y.shape)):
        tensor = given[position]
        if tensor is not None:
            check_dtype(op, names[position], tensor, (y.dtype,))
            _check_shape(op, names[position], tensor, shape)
    while given and given[-1] is None:
        given.pop()
    fused = attributes.get("activation")
    if fused is None:
        return tuple(given), ()
    function = fused if isinstance(fused, Activation) else Activation.parse(str(fused))
    return tuple(given), () if function == IDENTITY else (("activation", function.text),)


FLOAT_NAMES = ("x", "w", "bias", "residual")
INTEGER_NAMES = ("x", "w", "x_zero_point", "w_zero_point")
QLINEAR_NAMES = (
    "x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias",
)  # fmt: skip


def conv_attributes(
    op: str, x: Tensor, w: Tensor, attributes: Attributes, least_rank: int = 1
) -> tuple[tuple[tuple[str, AttributeValue], ...], tuple[int, ...]]:
    """The settled attributes of a convolution that is not transposed, and the shape of y."""
    channels, group = _weight(op, x, w, attributes, False, least_rank)
    strides, pads, dilations, outputs = settle_forward(op, attributes, x.shape[2:], w.shape[2:])
    settled = (("strides", strides), ("pads", pads), ("dilations", dilations), ("group", group))
    return settled, (x.shape[0], channels, *outputs)


def canonical_conv(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "conv"
    _check_count(op, FLOAT_NAMES, inputs)
    x, w = required(op, FLOAT_NAMES, inputs, X), required(op, FLOAT_NAMES, inputs, W)
    check_dtype(op, "x", x, FLOATS)
    check_dtype(op, "w", w, (x.dtype,))
    settled, shape = conv_attributes(op, x, w, attributes)
    y = Tensor(x.dtype, shape)
    check_size(op, y)
    given, fused = _epilogue(op, FLOAT_NAMES, inputs, attributes, y)
    return Problem(op, given, (y,), settled + fused)


def canonical_conv_transpose(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "conv_transpose"
    _check_count(op, FLOAT_NAMES, inputs)
    x, w = required(op, FLOAT_NAMES, inputs, X), required(op, FLOAT_NAMES, inputs, W)
    check_dtype(op, "x", x, FLOATS)
    check_dtype(op, "w", w, (x.dtype,))
    channels, group = _weight(op, x, w, attributes, transposed=True)
    rank = x.rank - 2
    strides = int_list(op, attributes, "strides", rank, 1, 1)
    dilations = int_list(op, attributes, "dilations", rank, 1, 1)
    pads = int_list(op, attributes, "pads", 2 * rank, 0, 0)
    extra = int_list(op, attributes, "output_padding", rank, 0, 0)
    wanted = int_list(op, attributes, "output_shape", rank, None, 1)
    assert strides is not None and dilations is not None and pads is not None and extra is not None
    auto_pad = auto_pad_of(op, attributes)
    begins, ends, extents = [], [], []
    for axis in range(rank):
        if extra[axis] >= max(strides[axis], dilations[axis]):
            raise OperatorError(
                op, "output_padding", list(extra), f"on each axis it has to be smaller than the stride {strides[axis]} "
                f"or the dilation {dilations[axis]}"
            )  # fmt: skip
        full = (x.shape[2 + axis] - 1) * strides[axis] + (w.shape[2 + axis] - 1) * dilations[axis] + 1 + extra[axis]
        if wanted is not None:
            # An output larger than the full one gets zeros behind it, and no negative padding.
            begin, end = split_padding(max(full - wanted[axis], 0), auto_pad == "SAME_UPPER")
            extent = wanted[axis]
        elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            extent = x.shape[2 + axis] * strides[axis]
            begin, end = split_padding(max(full - extent, 0), auto_pad == "SAME_UPPER")
        else:
            begin, end = (0, 0) if auto_pad == "VALID" else (pads[axis], pads[axis + rank])
            extent = full - begin - end
        begins.append(begin)
        ends.append(end)
        extents.append(extent)
    check_extents(op, extents)
    y = Tensor(x.dtype, (x.shape[0], channels, *extents))
    check_size(op, y)
    given, fused = _epilogue(op, FLOAT_NAMES, inputs, attributes, y)
    settled = (
        ("strides", strides),
        ("pads", tuple(begins + ends)),
        ("dilations", dilations),
        ("group", group),
        ("output_shape", tuple(extents)),
    )
    return Problem(op, given, (y,), settled + fused)


def _check_zero_point(op: str, name: str, tensor: Tensor | None, dtype: str, channels: int) -> None:
    if tensor is None:
        return
    check_dtype(op, name, tensor, (dtype,))
    shapes: tuple[tuple[int, ...], ...] = ((), (1,), (channels,)) if channels else ((), (1,))
    _check_shape(op, name, tensor, *shapes)


def _canonical_on_planes(
    op: str,
    canonical: Callable[[Sequence[Tensor | None], Attributes], Problem],
    inputs: Sequence[Tensor | None],
    attributes: Attributes,
) -> Problem:
    """The problem of a call that may have its channels last."""
    own = dict(attributes)
    last = int_attribute(op, own, "channels_last", 0)
    own.pop("channels_last", None)
    if last not in (0, 1):
        raise OperatorError(op, "channels_last", last, "it has to be 0, for (N, C, spatial), or 1, for (N, spatial, C)")
    if not last or not inputs or inputs[X] is None:
        return canonical(inputs, own)
    x = inputs[X]
    assert x is not None
    if not 3 <= x.rank <= 5:
        wanted = "with channels_last give (N, W, C), (N, H, W, C) or (N, D, H, W, C)"
        raise OperatorError(op, "the rank of x", f"{x.rank} ({x})", wanted)
    planes = canonical((_as_planes(x), *inputs[1:]), own)
    batch, channels, *spatial = planes.outputs[0].shape
    y = Tensor(planes.outputs[0].dtype, (batch, *spatial, channels))
    return Problem(op, (x, *planes.inputs[1:]), (y,), (*planes.attributes, ("channels_last", 1)))


def canonical_conv_integer(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical_on_planes("conv_integer", _canonical_conv_integer, inputs, attributes)


def canonical_qlinear_conv(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical_on_planes("qlinear_conv", _canonical_qlinear_conv, inputs, attributes)


def _canonical_conv_integer(inputs: Sequence[Tensor | None], attributes: Attributes) -> Problem:
    op = "conv_integer"
    _check_count(op, INTEGER_NAMES, inputs)
    x, w = required(op, INTEGER_NAMES, inputs, X), required(op, INTEGER_NAMES, inputs, W)
    check_dtype(op, "x", x, INTEGERS)
    check_dtype(op, "w", w, INTEGERS)
    settled, shape = conv_attributes(op, x, w, attributes)
    given = list(inputs) + [None] * (4 - len(inputs))
    _check_zero_point(op, "x_zero_point", given[X_ZERO_POINT], x.dtype, 0)
    _check_zero_point(op, "w_zero_point", given[W_ZERO_POINT], w.dtype, shape[1])
    while given[-1] is None:
        given.pop()
    y = Tensor("int32", shape)
    check_size(op, y)
    return Problem(op, tuple(given), (y,), settled)


def _canonical_qlinear_conv(inputs: Sequence[Tensor | None], attributes: Attributes) -> Problem:
    op = "qlinear_conv"
    _check_count(op, QLINEAR_NAMES, inputs)
    needed = [required(op, QLINEAR_NAMES, inputs, position) for position in range(Q_BIAS)]
    x, w = needed[Q_X], needed[Q_W]
    check_dtype(op, "x", x, INTEGERS)
    check_dtype(op, "w", w, INTEGERS)
    settled, shape = conv_attributes(op, x, w, attributes)
    channels = shape[1]
    y_zero = needed[Q_Y_ZERO]
    check_dtype(op, "y_zero_point", y_zero, INTEGERS)
    _check_shape(op, "y_zero_point", y_zero, (), (1,))
    _check_zero_point(op, "x_zero_point", needed[Q_X_ZERO], x.dtype, 0)
    _check_zero_point(op, "w_zero_point", needed[Q_W_ZERO], w.dtype, channels)
    for position, per_channel in ((Q_X_SCALE, False), (Q_W_SCALE, True), (Q_Y_SCALE, False)):
        name, tensor = QLINEAR_NAMES[position], needed[position]
        check_dtype(op, name, tensor, ("float32",))
        _check_shape(op, name, tensor, (), (1,), *(((channels,),) if per_channel else ()))
    bias = inputs[Q_BIAS] if len(inputs) > Q_BIAS else None
    if bias is not None:
        check_dtype(op, "bias", bias, ("int32",))
        _check_shape(op, "bias", bias, (channels,))
    y = Tensor(y_zero.dtype, shape)
    check_size(op, y)
    return Problem(op, (*needed, bias) if bias is not None else tuple(needed), (y,), settled)


def work(problem: Problem) -> Work:
    """Taps of a direct evaluation, those that fall on padding included."""
    g = geometry(problem)
    macs = g.batch * g.in_channels * g.out_per_group * g.window.output_size * g.window.taps
    return Work(macs, tensor_bytes(problem))


def tolerance(problem: Problem) -> Tolerance:
    """Rounding of a sum grows with its length at worst; these bounds hold for every size in use, blocked sums and
    Winograd transforms included, and are what the documentation states."""
    return {
        "float16": Tolerance(relative=2e-3, scaled=2e-3),
        "float32": Tolerance(relative=1e-5, scaled=1e-5),
        "float64": Tolerance(relative=1e-13, scaled=1e-13),
    }.get(problem.outputs[0].dtype, Tolerance())


def _case(
    op: str, name: str, x: str, w: str, *more: str | None, fills: dict[int, Fill] | None = None, **attributes: object
) -> Case:
    tensors = tuple(None if text is None else Tensor.parse(text) for text in (x, w, *more))
    return Case(op, name, tensors, attributes, fills or {})


def cases_conv() -> list[Case]:
    def f32(name: str, x: str, w: str, bias: str | None = None, residual: str | None = None, **kw: object) -> Case:
        more = [None if t is None else f"float32[{t}]" for t in (bias, residual)]
        return _case("conv", name, f"float32[{x}]", f"float32[{w}]", *more, **kw)  # type: ignore[arg-type]

    special = {0: Fill("special")}
    strided = {0: Fill(contiguous=False), 1: Fill(contiguous=False)}
    return [
        f32("3x3", "1x16x12x14", "16x16x3x3", "16", pads=[1, 1, 1, 1]),
        f32("3x3_valid", "2x3x9x11", "5x3x3x3"),
        f32("3x3_ragged", "1x5x7x9", "7x5x3x3", "7", pads=[1, 1, 1, 1]),
        f32("3x3_wide", "1x19x8x70", "35x19x3x3", "35", pads=[1, 1, 1, 1]),
        f32("3x3_deep", "1x70x6x6", "66x70x3x3", "66", pads=[1, 1, 1, 1]),
        f32("3x3_stride2", "1x8x15x17", "9x8x3x3", "9", strides=[2, 2], pads=[1, 1, 1, 1]),
        f32("3x3_stride3x1", "1x4x13x10", "6x4x3x3", strides=[3, 1], pads=[0, 1, 2, 0]),
        f32("3x3_dilated", "1x6x13x12", "4x6x3x3", "4", dilations=[2, 3], pads=[2, 3, 2, 3]),
        f32("3x3_dilated_deep", "1x26x13x12", "22x26x3x3", "22", dilations=[2, 3], pads=[2, 3, 2, 3]),
        f32("4x4_deep", "1x20x12x13", "24x20x4x4", "24", pads=[1, 1, 2, 2], activation="Relu"),
        f32("asymmetric_pads", "1x4x8x9", "5x4x4x3", "5", pads=[0, 2, 3, 1]),
        f32("pads_beyond_kernel", "1x2x4x5", "3x2x2x2", pads=[3, 4, 2, 5]),
        f32("same_upper", "1x3x11x10", "4x3x4x4", auto_pad="SAME_UPPER", strides=[2, 3]),
        f32("same_lower", "1x3x11x10", "4x3x4x4", auto_pad="SAME_LOWER", strides=[2, 3]),
        f32("valid", "1x3x8x8", "2x3x3x3", auto_pad="VALID"),
        f32("1x1", "2x33x7x9", "37x33x1x1", "37"),
        f32("1x1_large", "1x128x14x14", "96x128x1x1", "96", activation="Relu"),
        f32("1x1_stride2", "1x8x9x11", "12x8x1x1", strides=[2, 2]),
        f32("1x1_few", "2x3x31x37", "15x3x1x1", "15", activation="Relu"),
        f32("1x1_few_grouped", "1x14x5x6", "10x7x1x1", "10", "1x10x5x6", group=2, activation="HardSwish"),
        f32("1x1_padded", "1x3x4x4", "2x3x1x1", "2", pads=[1, 1, 1, 1]),
        f32("5x5", "1x8x12x13", "10x8x5x5", "10", pads=[2, 2, 2, 2]),
        f32("7x7_stride2", "1x3x23x25", "16x3x7x7", "16", strides=[2, 2], pads=[3, 3, 3, 3], activation="Relu"),
        f32("11x1", "1x2x16x8", "3x2x11x1", pads=[5, 0, 5, 0]),
        f32("kernel_covers_input", "2x6x5x4", "8x6x5x4", "8"),
        f32("depthwise", "1x21x11x13", "21x1x3x3", "21", group=21, pads=[1, 1, 1, 1], activation="Clip(0.0,6.0)"),
        f32("depthwise_stride2", "2x18x12x35", "18x1x3x3", "18", group=18, strides=[2, 2], pads=[1, 1, 1, 1]),
        f32("depthwise_wide", "2x3x9x83", "3x1x3x3", "3", group=3, pads=[1, 1, 1, 1], activation="Relu"),
        f32("depthwise_stride2_wide", "1x5x10x57", "5x1x3x3", "5", "1x5x5x30", group=5, strides=[2, 2], pads=[0, 2, 1, 3]),
        f32("depthwise_5x5_stride2", "1x9x17x18", "9x1x5x5", group=9, strides=[2, 2], pads=[1, 1, 2, 2]),
        f32("depthwise_dilated", "1x5x14x15", "5x1x3x3", group=5, dilations=[2, 2], pads=[2, 2, 2, 2]),
        f32("depthwise_multiplier", "1x4x9x9", "12x1x3x3", "12", group=4, pads=[1, 1, 1, 1]),
        f32("grouped", "1x12x8x10", "18x4x3x3", "18", group=3, pads=[1, 1, 1, 1]),
        f32("grouped_large", "1x64x7x7", "64x32x1x1", "64", group=2),
        f32("one_channel", "3x1x10x12", "6x1x3x3", "6", pads=[1, 1, 1, 1]),
        f32("one_pixel", "2x7x1x1", "5x7x1x1", "5"),
        f32("pixel_3x3", "1x7x1x1", "5x7x3x3", "5", pads=[1, 1, 1, 1]),
        f32("batch_8", "8x4x6x6", "4x4x3x3", "4", pads=[1, 1, 1, 1]),
        f32("empty_batch", "0x3x8x8", "4x3x3x3", "4"),
        f32("empty_batch_of_many_channels", "0x16x8x8", "16x16x3x3", "16"),
        f32("1d", "2x5x29", "6x5x5", "6", pads=[2, 2]),
        f32("1d_deep", "2x33x41", "34x33x5", "34", pads=[2, 2]),
        f32("1d_dilated", "1x8x60", "9x8x3", strides=[2], dilations=[4], pads=[8, 0]),
        f32("1d_depthwise", "1x17x45", "17x1x7", "17", group=17, pads=[3, 3]),
        f32("3d", "1x3x6x7x8", "4x3x3x3x3", "4", pads=[1, 1, 1, 1, 1, 1]),
        f32("3d_stride_dilation", "2x4x9x8x7", "6x2x2x3x3", "6", group=2, strides=[2, 1, 2], dilations=[1, 2, 1],
            pads=[1, 0, 2, 0, 1, 1]),
        f32("3d_flat_padded_depth", "1x2x1x6x6", "3x2x1x2x3", pads=[1, 0, 1, 1, 1, 1], strides=[2, 1, 1]),
        f32("bias_residual_relu", "1x9x8x9", "11x9x3x3", "11", "1x11x8x9", pads=[1, 1, 1, 1], activation="Relu"),
        f32("residual_alone", "1x4x5x5", "4x4x1x1", None, "1x4x5x5"),
        f32("depthwise_residual", "1x6x5x7", "6x1x3x3", "6", "1x6x5x7", group=6, pads=[1, 1, 1, 1],
            activation="HardSwish"),
        *(
            f32(f"activation_{text.split('(')[0].lower()}", "1x3x6x7", "5x3x3x3", "5", activation=text)
            for text in ("LeakyRelu(0.1)", "Sigmoid", "Tanh", "HardSigmoid(0.2,0.5)", "HardSwish", "Elu(0.7)",
                         "Softsign", "Softplus", "Swish", "Clip(-0.5,1.5)", "ScaledTanh(1.5,0.5)",
                         "ThresholdedRelu(0.3)", "Affine(2.0,-1.0)")
        ),
        f32("special_values", "1x4x9x9", "5x4x3x3", "5", pads=[1, 1, 1, 1], fills=special),
        f32("special_values_depthwise", "1x4x9x9", "4x1x3x3", group=4, fills=special, activation="Relu"),
        f32("non_contiguous", "1x4x9x9", "5x4x3x3", "5", fills=strided),
        _case("conv", "float64", "float64[1x4x7x8]", "float64[6x4x3x3]", "float64[6]", pads=[1, 1, 1, 1]),
        _case("conv", "float64_1d_grouped", "float64[2x4x17]", "float64[6x2x3]", group=2, activation="Tanh"),
        _case("conv", "float16", "float16[1x4x7x8]", "float16[6x4x3x3]", "float16[6]", pads=[1, 1, 1, 1]),
        _case("conv", "float16_3d", "float16[1x2x4x5x6]", "float16[3x2x2x2x2]", activation="Relu"),
    ]  # fmt: skip


def cases_conv_transpose() -> list[Case]:
    def f32(name: str, x: str, w: str, bias: str | None = None, residual: str | None = None, **kw: object) -> Case:
        more = [None if t is None else f"float32[{t}]" for t in (bias, residual)]
        return _case("conv_transpose", name, f"float32[{x}]", f"float32[{w}]", *more, **kw)  # type: ignore[arg-type]

    return [
        f32("3x3", "1x5x6x7", "5x4x3x3", "4"),
        f32("stride2", "1x8x5x6", "8x6x3x3", "6", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        f32("2x2_stride2", "1x16x7x7", "16x12x2x2", "12", strides=[2, 2]),
        f32("4x4_stride2_deep", "1x24x9x10", "24x20x4x4", "20", strides=[2, 2], pads=[1, 1, 1, 1]),
        f32("stride_beyond_kernel", "1x3x4x5", "3x2x2x2", "2", strides=[3, 4]),
        f32("asymmetric_pads", "2x3x6x5", "3x4x4x3", "4", strides=[2, 1], pads=[0, 1, 2, 1]),
        f32("dilated", "1x3x5x6", "3x2x3x3", dilations=[2, 3], pads=[1, 2, 1, 2]),
        f32("grouped", "1x6x5x5", "6x3x3x3", "6", group=2, strides=[2, 2]),
        f32("depthwise", "1x7x6x9", "7x1x4x4", "7", group=7, strides=[2, 2], pads=[1, 1, 1, 1]),
        f32("depthwise_stride1", "2x9x6x17", "9x1x3x3", "9", group=9, pads=[1, 1, 1, 1], activation="Relu"),
        f32("depthwise_stride3x2_dilated", "2x5x4x21", "5x1x3x3", "5", "2x5x11x43", group=5, strides=[3, 2],
            dilations=[1, 3], pads=[1, 2, 0, 2], activation="Tanh"),
        f32("depthwise_1d", "1x6x70", "6x1x5", group=6, strides=[2], pads=[2, 2], output_padding=[1]),
        f32("3x3_stride1_few", "1x12x5x6", "12x7x3x3", "7", pads=[0, 1, 1, 2]),
        f32("1x1_many", "2x40x5x7", "40x36x1x1", "36", activation="Relu"),
        f32("output_shape", "1x1x3x3", "1x2x3x3", strides=[3, 2], output_shape=[10, 8]),
        f32("output_shape_crops", "1x2x4x4", "2x2x3x3", strides=[2, 2], output_shape=[7, 8], auto_pad="SAME_UPPER"),
        f32("same_upper", "1x2x5x4", "2x3x4x4", strides=[2, 3], auto_pad="SAME_UPPER"),
        f32("same_lower", "1x2x5x4", "2x3x4x4", strides=[2, 3], auto_pad="SAME_LOWER"),
        f32("1d", "2x4x11", "4x3x5", "3", strides=[3], pads=[1, 1], output_padding=[2]),
        f32("3d", "1x3x3x4x5", "3x2x3x3x3", "2", strides=[2, 1, 2], pads=[1, 1, 1, 1, 1, 1]),
        f32("fused", "1x4x4x4", "4x3x2x2", "3", "1x3x8x8", strides=[2, 2], activation="LeakyRelu(0.1)"),
        f32("empty_batch", "0x2x4x4", "2x2x3x3"),
        f32("one_pixel", "1x9x1x1", "9x5x4x4", "5"),
        f32("special_values", "1x2x5x5", "2x3x2x2", strides=[2, 2], fills={0: Fill("special")}),
        f32("non_contiguous", "1x2x5x5", "2x3x3x3", fills={0: Fill(contiguous=False), 1: Fill(contiguous=False)}),
        _case("conv_transpose", "float64", "float64[1x3x4x5]", "float64[3x2x3x3]", "float64[2]", strides=[2, 2]),
        _case("conv_transpose", "float16", "float16[1x3x4x5]", "float16[3x2x3x3]", "float16[2]", strides=[2, 2]),
    ]  # fmt: skip


def cases_conv_integer() -> list[Case]:
    op = "conv_integer"
    return [
        _case(op, "u8u8", "uint8[1x5x7x8]", "uint8[6x5x3x3]", "uint8[]", "uint8[]", pads=[1, 1, 1, 1]),
        _case(op, "u8s8", "uint8[2x16x9x9]", "int8[16x16x3x3]", "uint8[]", "int8[]", pads=[1, 1, 1, 1]),
        _case(op, "s8s8_per_channel", "int8[1x3x6x7]", "int8[5x3x3x3]", "int8[]", "int8[5]", strides=[2, 2]),
        _case(op, "s8u8", "int8[1x3x6x7]", "uint8[5x3x2x2]", None, "uint8[5]", pads=[0, 1, 1, 0]),
        _case(op, "no_zero_points", "uint8[1x3x5x5]", "uint8[2x3x3x3]"),
        _case(op, "channels_last", "uint8[2x7x8x20]", "int8[18x20x3x3]", "uint8[]", pads=[1, 1, 1, 1], channels_last=1),
        _case(
            op, "channels_last_grouped_1d", "int8[2x15x6]", "int8[4x3x4]", "int8[]", "int8[4]", group=2, channels_last=1
        ),
        _case(op, "1x1", "uint8[1x33x7x5]", "int8[35x33x1x1]", "uint8[]"),
        _case(op, "depthwise", "uint8[1x19x8x9]", "int8[19x1x3x3]", "uint8[]", group=19, pads=[1, 1, 1, 1]),
        _case(
            op,
            "depthwise_stride3_dilated",
            "int8[2x6x11x23]",
            "int8[12x1x3x4]",
            "int8[]",
            "int8[12]",
            group=6,
            strides=[2, 3],
            dilations=[2, 2],
            pads=[2, 3, 1, 4],
        ),
        _case(op, "depthwise_1d", "uint8[1x5x90]", "uint8[5x1x11]", "uint8[]", "uint8[]", group=5, pads=[5, 5]),
        _case(op, "depthwise_3d", "uint8[1x3x4x5x6]", "int8[3x1x2x3x2]", "uint8[]", group=3, pads=[1, 1, 0, 0, 1, 1]),
        _case(op, "grouped", "uint8[1x6x5x5]", "int8[4x3x3x3]", "uint8[1]", "int8[1]", group=2, dilations=[2, 2]),
        _case(op, "1d", "int8[2x4x15]", "int8[3x4x4]", "int8[]", pads=[2, 1]),
        _case(op, "3d", "uint8[1x2x4x5x6]", "int8[3x2x2x2x2]", "uint8[]", pads=[1, 0, 0, 0, 1, 1]),
        _case(op, "3d_depth_padded", "uint8[1x2x2x9x6]", "int8[3x2x1x3x1]", "uint8[]", pads=[1, 0, 0, 2, 1, 0]),
        _case(
            op, "extremes", "uint8[1x64x6x6]", "int8[8x64x3x3]", fills={0: Fill("value", 255), 1: Fill("value", -128)}
        ),
        _case(op, "empty_batch", "uint8[0x3x5x5]", "uint8[2x3x3x3]"),
        _case(op, "non_contiguous", "uint8[1x3x5x5]", "int8[2x3x3x3]", fills={0: Fill("integers", 0, 255, False)}),
    ]


def cases_qlinear_conv() -> list[Case]:
    def quantized(
        name: str,
        x: str,
        w: str,
        y: str,
        per_channel: bool,
        bias: bool,
        x_shape: str,
        w_shape: str,
        **attributes: object,
    ) -> Case:
        channels = w_shape.split("x")[0] if per_channel else ""
        return _case(
            "qlinear_conv", name, f"{x}[{x_shape}]", "float32[]", f"{x}[]", f"{w}[{w_shape}]", f"float32[{channels}]",
            f"{w}[{channels}]", "float32[]", f"{y}[]", f"int32[{w_shape.split('x')[0]}]" if bias else None,
            fills={
                Q_X_SCALE: Fill("uniform", 0.01, 0.05),
                Q_W_SCALE: Fill("uniform", 0.001, 0.01),
                Q_Y_SCALE: Fill("uniform", 0.05, 0.2),
                Q_BIAS: Fill("integers", -20000, 20000),
                Q_W_ZERO: Fill("integers", 0, 5) if w == "uint8" else Fill("integers", -3, 3),
            },
            **attributes,
        )  # fmt: skip

    return [
        quantized("u8u8u8", "uint8", "uint8", "uint8", False, False, "1x3x7x8", "4x3x3x3", pads=[1, 1, 1, 1]),
        quantized(
            "u8s8u8_per_channel", "uint8", "int8", "uint8", True, True, "2x16x9x7", "18x16x3x3", pads=[1, 1, 1, 1]
        ),
        quantized(
            "s8s8s8", "int8", "int8", "int8", True, True, "1x5x8x8", "6x5x3x3", strides=[2, 2], pads=[1, 0, 0, 1]
        ),
        quantized("s8s8u8_1x1", "int8", "int8", "uint8", True, True, "1x32x5x7", "33x32x1x1"),
        quantized(
            "depthwise", "uint8", "int8", "uint8", True, True, "1x20x9x9", "20x1x3x3", group=20, pads=[1, 1, 1, 1]
        ),
        quantized(
            "depthwise_stride2", "int8", "int8", "int8", True, True, "2x7x9x37", "7x1x3x3", group=7, strides=[2, 2]
        ),
        quantized("grouped", "int8", "int8", "int8", False, True, "1x8x6x6", "6x4x3x3", group=2),
        quantized("1d", "uint8", "int8", "uint8", False, True, "2x6x21", "5x6x5", pads=[2, 2], strides=[2]),
        quantized("3d", "int8", "int8", "int8", False, False, "1x2x4x4x5", "3x2x2x2x2"),
        quantized(
            "channels_last", "uint8", "int8", "uint8", True, True, "1x9x7x24", "40x24x3x3", strides=[2, 1], pads=[1, 0, 1, 1],
            channels_last=1,
        ),
        quantized("channels_last_1x1", "int8", "int8", "int8", True, True, "2x3x5x64", "20x64x1x1", channels_last=1),
        quantized(
            "channels_last_depthwise", "uint8", "int8", "uint8", True, True, "1x9x9x20", "20x1x3x3", group=20,
            pads=[1, 1, 1, 1], channels_last=1,
        ),
        quantized("empty_batch", "uint8", "uint8", "uint8", False, True, "0x3x5x5", "4x3x3x3"),
    ]  # fmt: skip


SPECS = (
    OperatorSpec("conv", FLOAT_NAMES, canonical_conv, work, tolerance, cases_conv, parameters=(W, BIAS)),
    OperatorSpec(
        "conv_transpose", FLOAT_NAMES, canonical_conv_transpose, work, tolerance, cases_conv_transpose,
        parameters=(W, BIAS),
    ),
    OperatorSpec(
        "conv_integer", INTEGER_NAMES, canonical_conv_integer, work, tolerance, cases_conv_integer,
        parameters=(W, X_ZERO_POINT, W_ZERO_POINT),
    ),
    OperatorSpec(
        "qlinear_conv", QLINEAR_NAMES, canonical_qlinear_conv, work, tolerance, cases_qlinear_conv,
        parameters=tuple(range(1, 9)),
    ),
)  # fmt: skip
