"""Gradients of convolution: conv_weight_gradient and conv_bias_gradient.

The gradient of a convolution's input needs no operator of its own: it is conv_transpose, and that of conv_transpose's is
conv (gradients/conv.py has the geometry).

conv_weight_gradient   x (N, C, spatial), dy (N, M, spatial of y)  ->  dw (M, C / group, kernel)

    dw[m, c, k] = sum over n, o of dy[n, m, o] * x[n, c, o * stride + k * dilation - pad]

where places of x that are padding contribute nothing, even to infinite dy. Canonical attributes: those of conv, and
kernel_shape. conv_transpose's weight gradient is the same with the gradient of y as x, and x as dy, since its window lies
on y.

conv_bias_gradient     dy (N, M, spatial)  ->  db (M), the sum over N and spatial
"""

from __future__ import annotations

from collections.abc import Sequence

from quatrefoil.errors import OperatorError
from quatrefoil.ops.conv import FLOATS, ConvGeometry, check_dtype, check_size, required, tolerance
from quatrefoil.ops.spec import Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.ops.windows import int_attribute, int_list, settle_forward, spatial_rank, window
from quatrefoil.problem import Problem, Tensor, Work

X, DY = 0, 1
NAMES = ("x", "dy")


def geometry(problem: Problem) -> ConvGeometry:
    """The geometry of the convolution whose weight's gradient is asked for: ``window`` slides over x."""
    x, dy, dw = problem.input(X), problem.input(DY), problem.outputs[0]
    return ConvGeometry(
        batch=x.shape[0],
        groups=problem.integer("group"),
        in_channels=x.shape[1],
        out_channels=dy.shape[1],
        window=window(problem, dw.shape[2:], x.shape[2:], dy.shape[2:]),
    )


def canonical_weight(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "conv_weight_gradient"
    if len(inputs) > len(NAMES):
        raise OperatorError(op, "the number of inputs", len(inputs), f"it takes {', '.join(NAMES)}")
    x, dy = (required(op, NAMES, inputs, position) for position in (X, DY))
    check_dtype(op, "x", x, FLOATS)
    check_dtype(op, "dy", dy, (x.dtype,))
    rank = spatial_rank(op, x)
    kernel = int_list(op, attributes, "kernel_shape", rank, None, 1)
    if kernel is None:
        raise OperatorError(op, "kernel_shape", "missing", f"give {rank} whole numbers")
    group = int_attribute(op, attributes, "group", 1)
    strides, pads, dilations, places = settle_forward(op, attributes, x.shape[2:], kernel)
    if dy.rank != x.rank or dy.shape[0] != x.shape[0] or dy.shape[2:] != places:
        wanted = (
            f"a convolution of x ({x}) with these attributes gives [{x.shape[0]}, M, {', '.join(map(str, places))}]"
        )
        raise OperatorError(op, "the shape of dy", list(dy.shape), wanted)
    for name, tensor in (("x", x), ("dy", dy)):
        if group < 1 or tensor.shape[1] % group or not tensor.shape[1]:
            raise OperatorError(op, "group", group, f"it has to divide {name}'s {tensor.shape[1]} channels")
    dw = Tensor(x.dtype, (dy.shape[1], x.shape[1] // group, *kernel))
    check_size(op, dw)
    settled = (
        ("kernel_shape", kernel),
        ("strides", strides),
        ("pads", pads),
        ("dilations", dilations),
        ("group", group),
    )
    return Problem(op, (x, dy), (dw,), settled)


def canonical_bias(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "conv_bias_gradient"
    if len(inputs) > 1:
        raise OperatorError(op, "the number of inputs", len(inputs), "it takes dy")
    dy = required(op, ("dy",), inputs, 0)
    check_dtype(op, "dy", dy, FLOATS)
    spatial_rank(op, dy)
    return Problem(op, (dy,), (Tensor(dy.dtype, (dy.shape[1],)),))


def weight_work(problem: Problem) -> Work:
    """Taps of a direct evaluation, those that fall on padding included."""
    g = geometry(problem)
    return Work(g.batch * g.in_channels * g.out_per_group * g.window.output_size * g.window.taps, tensor_bytes(problem))


def bias_work(problem: Problem) -> Work:
    return Work(0, tensor_bytes(problem))


def cases_weight() -> list[Case]:
    op = "conv_weight_gradient"

    def case(name: str, x: str, dy: str, kernel: Sequence[int], fill: Fill | None = None, dtype: str = "float32",
             **attributes: object) -> Case:  # fmt: skip
        fills = {X: fill, DY: fill} if fill is not None else {}
        tensors = (Tensor.parse(f"{dtype}[{x}]"), Tensor.parse(f"{dtype}[{dy}]"))
        return Case(op, name, tensors, {"kernel_shape": list(kernel), **attributes}, fills)

    return [
        case("3x3", "2x16x12x14", "2x16x12x14", (3, 3), pads=[1, 1, 1, 1]),
        case("3x3_valid", "2x3x9x11", "2x5x7x9", (3, 3)),
        case("3x3_ragged", "1x5x7x9", "1x7x7x9", (3, 3), pads=[1, 1, 1, 1]),
        case("3x3_wide", "1x19x8x70", "1x35x8x70", (3, 3), pads=[1, 1, 1, 1]),
        case("3x3_deep", "2x70x6x6", "2x66x6x6", (3, 3), pads=[1, 1, 1, 1]),
        case("3x3_stride2", "2x24x15x17", "2x18x8x9", (3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
        case("3x3_stride2_remainder", "1x8x16x18", "1x9x8x9", (3, 3), strides=[2, 2], pads=[1, 1, 0, 0]),
        case("3x3_stride3x1", "1x4x13x10", "1x6x5x9", (3, 3), strides=[3, 1], pads=[0, 1, 2, 0]),
        case("3x3_dilated", "1x26x13x12", "1x22x13x12", (3, 3), dilations=[2, 3], pads=[2, 3, 2, 3]),
        case("4x4", "1x20x12x13", "1x24x12x13", (4, 4), pads=[1, 1, 2, 2]),
        case("pads_beyond_kernel", "1x2x4x5", "1x3x8x13", (2, 2), pads=[3, 4, 2, 5]),
        case("same_upper", "1x3x11x10", "1x4x6x4", (4, 4), auto_pad="SAME_UPPER", strides=[2, 3]),
        case("1x1", "2x33x7x9", "2x37x7x9", (1, 1)),
        case("1x1_many", "3x64x14x14", "3x72x14x14", (1, 1)),
        case("1x1_stride2", "2x24x9x11", "2x20x5x6", (1, 1), strides=[2, 2]),
        case("1x1_stride2x3_padded", "2x19x9x12", "2x21x5x5", (1, 1), strides=[2, 3], pads=[1, 0, 0, 1]),
        case("1x1_to_many", "2x40x7x7", "2x1030x7x7", (1, 1)),
        case("3x1_stride2", "2x17x9x11", "2x12x5x6", (3, 1), strides=[2, 2], pads=[1, 0, 1, 0]),
        case("1x3_stride2", "2x17x9x11", "2x12x5x6", (1, 3), strides=[2, 2], pads=[0, 1, 0, 1]),
        case("1x1_padded", "1x3x4x4", "1x2x6x6", (1, 1), pads=[1, 1, 1, 1]),
        case("7x7_stride2", "1x3x23x25", "1x16x12x13", (7, 7), strides=[2, 2], pads=[3, 3, 3, 3]),
        case("11x1", "1x2x16x8", "1x3x16x8", (11, 1), pads=[5, 0, 5, 0]),
        case("kernel_covers_input", "3x6x5x4", "3x8x1x1", (5, 4)),
        case("depthwise", "2x21x11x13", "2x21x11x13", (3, 3), group=21, pads=[1, 1, 1, 1]),
        case("depthwise_long_rows", "1x5x6x75", "1x5x6x75", (3, 3), group=5, pads=[1, 1, 1, 1]),
        case("depthwise_stride2", "2x18x12x35", "2x18x6x18", (3, 3), group=18, strides=[2, 2], pads=[1, 1, 1, 1]),
        case("depthwise_5x5", "1x9x17x18", "1x9x17x18", (5, 5), group=9, pads=[2, 2, 2, 2]),
        case("depthwise_dilated", "1x5x14x15", "1x5x14x15", (3, 3), group=5, dilations=[2, 2], pads=[2, 2, 2, 2]),
        case("depthwise_multiplier", "1x4x9x9", "1x12x9x9", (3, 3), group=4, pads=[1, 1, 1, 1]),
        case("grouped", "1x12x8x10", "1x18x8x10", (3, 3), group=3, pads=[1, 1, 1, 1]),
        case("grouped_large", "2x64x7x7", "2x64x7x7", (3, 3), group=2, pads=[1, 1, 1, 1]),
        case("one_pixel", "4x7x1x1", "4x5x1x1", (1, 1)),
        case("pixel_3x3", "2x7x1x1", "2x5x1x1", (3, 3), pads=[1, 1, 1, 1]),
        case("batch_8", "8x4x6x6", "8x4x6x6", (3, 3), pads=[1, 1, 1, 1]),
        case("empty_batch", "0x3x8x8", "0x4x6x6", (3, 3)),
        case("1d", "2x5x29", "2x6x29", (5,), pads=[2, 2]),
        case("1d_deep", "2x33x41", "2x34x41", (5,), pads=[2, 2]),
        case("1d_strided_dilated", "1x8x60", "1x9x30", (3,), strides=[2], dilations=[4], pads=[8, 0]),
        case("1d_depthwise", "1x17x45", "1x17x45", (7,), group=17, pads=[3, 3]),
        case("3d", "1x3x6x7x8", "1x4x6x7x8", (3, 3, 3), pads=[1, 1, 1, 1, 1, 1]),
        case("3d_stride_dilation", "2x4x9x8x7", "2x6x5x5x4", (2, 3, 3), group=2, strides=[2, 1, 2],
             dilations=[1, 2, 1], pads=[1, 0, 2, 0, 1, 1]),
        case("special_values", "1x4x9x9", "1x5x9x9", (3, 3), Fill("special"), pads=[1, 1, 1, 1]),
        case("special_values_depthwise", "1x4x9x9", "1x4x9x9", (3, 3), Fill("special"), group=4, pads=[1, 1, 1, 1]),
        case("special_values_many", "1x24x9x9", "1x20x5x5", (3, 3), Fill("special"), strides=[2, 2], pads=[1, 1, 1, 1]),
        case("non_contiguous", "1x4x9x9", "1x5x7x7", (3, 3), Fill(contiguous=False)),
        case("float64", "2x4x7x8", "2x6x7x8", (3, 3), dtype="float64", pads=[1, 1, 1, 1]),
        case("float64_1d_grouped", "2x4x17", "2x6x8", (3,), dtype="float64", group=2, strides=[2]),
        case("float16", "1x4x7x8", "1x6x7x8", (3, 3), dtype="float16", pads=[1, 1, 1, 1]),
    ]  # fmt: skip


def cases_bias() -> list[Case]:
    def case(name: str, dy: str, fill: Fill | None = None) -> Case:
        return Case("conv_bias_gradient", name, (Tensor.parse(dy),), {}, {} if fill is None else {0: fill})

    return [
        case("planes", "float32[2x5x7x9]"),
        case("large_planes", "float32[3x4x40x50]"),
        case("rows", "float32[4x17x33]"),
        case("volumes", "float32[1x3x2x5x7]"),
        case("one_pixel", "float32[9x21x1x1]"),
        case("empty_batch", "float32[0x4x3x3]"),
        case("special_values", "float32[2x8x5x5]", Fill("special")),
        case("non_contiguous", "float32[2x3x4x6]", Fill(contiguous=False)),
        case("float64", "float64[2x5x4x4]"),
        case("float16", "float16[2x5x4x4]"),
    ]


SPECS = (
    OperatorSpec("conv_weight_gradient", NAMES, canonical_weight, weight_work, tolerance, cases_weight, training=True),
    OperatorSpec("conv_bias_gradient", ("dy",), canonical_bias, bias_work, tolerance, cases_bias, training=True),
)
