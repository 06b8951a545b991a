"""What convolution and pooling share: a window that slides over 1 to 3 spatial axes.

Here ONNX's ``kernel_shape``, ``strides``, ``dilations``, ``pads`` and ``auto_pad`` are settled, once, for everyone.
Kernels see a ``Window``: always three spatial axes (depth, height, width), the missing ones of length 1, so that a
kernel written for three axes serves one and two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quatrefoil.errors import OperatorError
from quatrefoil.problem import Problem, Tensor

MAX_EXTENT = 2**31 - 1  # native kernels index an axis with 32 bits

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")

Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over three axes. A tap reads input index

        output index * stride + tap * dilation - pad

    and counts as padding where that lies outside the input. ``pad`` is the padding before the first element; what
    is needed behind the last one follows from ``output``.
    """

    input: Triple
    output: Triple
    kernel: Triple
    strides: Triple
    dilations: Triple
    pads: Triple

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.kernel[2]

    @property
    def input_size(self) -> int:
        return self.input[0] * self.input[1] * self.input[2]

    @property
    def output_size(self) -> int:
        return self.output[0] * self.output[1] * self.output[2]


def triple(values: Sequence[int], filler: int) -> Triple:
    """Spatial values with leading axes added up to three."""
    return (filler,) * (3 - len(values)) + tuple(values)  # type: ignore[return-value]


def window(problem: Problem, kernel: Sequence[int], input_shape: Sequence[int], output_shape: Sequence[int]) -> Window:
    """The Window of a canonical problem, given its kernel and its spatial input and output shapes."""
    rank = len(kernel)
    return Window(
        input=triple(input_shape, 1),
        output=triple(output_shape, 1),
        kernel=triple(kernel, 1),
        strides=triple(problem.ints("strides"), 1),
        dilations=triple(problem.ints("dilations"), 1),
        pads=triple(problem.ints("pads")[:rank], 0),
    )


def spatial_rank(op: str, x: Tensor, least: int = 1) -> int:
    """``least`` to 3, from an input of layout N, C, spatial axes."""
    if not 2 + least <= x.rank <= 5:
        none = "" if least else "(N, C), "
        raise OperatorError(
            op, "the rank of x", f"{x.rank} ({x})", f"give {none}(N, C, W), (N, C, H, W) or (N, C, D, H, W)"
        )
    if 0 in x.shape[2:]:
        raise OperatorError(op, "the shape of x", list(x.shape), "every spatial axis has to be at least 1 long")
    return x.rank - 2


def int_attribute(op: str, attributes: Mapping[str, Any], name: str, default: int) -> int:
    value = attributes.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return int(value)
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = None
    if number is None or number != value:
        raise OperatorError(op, name, repr(value), "give a whole number")
    return number


def flag_attribute(op: str, attributes: Mapping[str, Any], name: str) -> int:
    value = int_attribute(op, attributes, name, 0)
    if value not in (0, 1):
        raise OperatorError(op, name, value, "give 0 or 1")
    return value


def float_attribute(op: str, attributes: Mapping[str, Any], name: str, default: float) -> float:
    value = attributes.get(name)
    if value is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise OperatorError(op, name, repr(value), "give a number") from None


def int_list(
    op: str, attributes: Mapping[str, Any], name: str, length: int, default: int | None, least: int
) -> tuple[int, ...] | None:
    """A list of ``length`` whole numbers of at least ``least``; None when absent and there is no default."""
    values = attributes.get(name)
    if values is None or len(values) == 0:
        return None if default is None else (default,) * length
    try:
        numbers = tuple(int(value) for value in values)
        whole = all(number == value for number, value in zip(numbers, values))
    except (TypeError, ValueError):
        whole = False
        numbers = ()
    if not whole:
        raise OperatorError(op, name, repr(values), f"give {length} whole numbers")
    if len(numbers) != length:
        raise OperatorError(op, name, f"{numbers} ({len(numbers)} values)", f"give {length} for this input")
    if min(numbers) < least or max(numbers) > MAX_EXTENT:
        raise OperatorError(op, name, numbers, f"every value has to lie in {least} to {MAX_EXTENT}")
    return numbers


def auto_pad_of(op: str, attributes: Mapping[str, Any]) -> str:
    value = attributes.get("auto_pad") or "NOTSET"
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if value not in AUTO_PADS:
        raise OperatorError(op, "auto_pad", repr(value), f"known are {', '.join(AUTO_PADS)}")
    return value


def split_padding(total: int, upper: bool) -> tuple[int, int]:
    """``total`` padding before and behind; an odd one goes behind for SAME_UPPER."""
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def settle_forward(
    op: str,
    attributes: Mapping[str, Any],
    spatial: Sequence[int],
    kernel: Sequence[int],
    *,
    ceil_mode: bool = False,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, pads (all begins, then all ends), dilations and output extents of a window that reduces.

    Follows ONNX: ``auto_pad`` SAME gives ceil(input / stride); with ``ceil_mode`` a window that would start in the
    padding behind the input is left out.
    """
    rank = len(spatial)
    strides = int_list(op, attributes, "strides", rank, 1, 1)
    dilations = int_list(op, attributes, "dilations", rank, 1, 1)
    pads = int_list(op, attributes, "pads", 2 * rank, 0, 0)
    assert strides is not None and dilations is not None and pads is not None
    auto_pad = auto_pad_of(op, attributes)
    if auto_pad != "NOTSET" and any(pads):
        raise OperatorError(op, "pads", pads, f"leave them out, or set auto_pad to NOTSET (it is {auto_pad})")
    begins, ends, outputs = [], [], []
    for axis in range(rank):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        stride, length = strides[axis], spatial[axis]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            output = -(-length // stride)
            total = max((output - 1) * stride + extent - length, 0)
            begin, end = split_padding(total, auto_pad == "SAME_UPPER")
        else:
            begin, end = (pads[axis], pads[axis + rank]) if auto_pad == "NOTSET" else (0, 0)
            room = length + begin + end - extent
            if room < 0:
                raise OperatorError(
                    op,
                    f"the window on spatial axis {axis}",
                    f"{extent} long (kernel {kernel[axis]}, dilation {dilations[axis]})",
                    f"it has to fit into the input of {length} with padding {begin} and {end}",
                )
            output = (-(-room // stride) if ceil_mode else room // stride) + 1
            if ceil_mode and (output - 1) * stride >= length + begin:
                output -= 1
        begins.append(begin)
        ends.append(end)
        outputs.append(output)
    check_extents(op, outputs)
    return strides, tuple(begins + ends), dilations, tuple(outputs)


def check_extents(op: str, outputs: Sequence[int]) -> None:
    for axis, output in enumerate(outputs):
        if not 0 < output <= MAX_EXTENT:
            raise OperatorError(
                op, f"the output's spatial axis {axis}", f"{output} long", f"it has to lie in 1 to {MAX_EXTENT}"
            )
