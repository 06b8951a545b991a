"""Reading a problem's text form, the inverse of ``Problem.text``.

    conv float32[1x64x56x56],float32[64x64x3x3] strides=1x1 pads=1x1x1x1 dilations=1x1 group=1

A line written by a person may leave attributes out (they take ONNX's defaults) and may use ONNX's unsettled ones:
``auto_pad=SAME_UPPER``, ``ceil_mode=1``, ``output_padding=1x1``. An absent input is ``-``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quatrefoil.errors import OperatorError
from quatrefoil.ops.activations import FUNCTIONS, Activation
from quatrefoil.problem import Problem, Tensor


def _integer(text: str) -> int:
    return int(text)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x")) if text else ()  # a dense layer has no spatial axes


def _number(text: str) -> float:
    return float(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _activations(text: str) -> tuple[str, ...]:
    """Splits ``Sigmoid,Affine(0.3,0.6)`` at the commas that stand outside parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of attribute is read, and how a person would write one."""

    read: Callable[[str], Any]
    wanted: str


INTEGER = Kind(_integer, "write a whole number")
INTEGERS = Kind(_integers, "write whole numbers with x between them, for example 1x1")
NUMBER = Kind(_number, "write a number")
NUMBERS = Kind(_numbers, "write numbers with commas between them")
WORD = Kind(str, "write a word")
ACTIVATIONS = Kind(_activations, "write activations with commas between them")
FORMAT = Kind(str, "write fixed<width,integer>")

_WINDOW = {"strides": INTEGERS, "pads": INTEGERS, "dilations": INTEGERS, "kernel_shape": INTEGERS, "auto_pad": WORD}
_CONV = {**_WINDOW, "group": INTEGER}
_POOL = {**_WINDOW, "ceil_mode": INTEGER}
_RECURRENT = {
    "direction": WORD,
    "hidden_size": INTEGER,
    "activations": ACTIVATIONS,
    "activation_alpha": NUMBERS,
    "activation_beta": NUMBERS,
    "clip": NUMBER,
    "layout": INTEGER,
}
_FORMS: dict[str, dict[str, Kind]] = {"": {}, "_training": {}, "_gradient": {"wanted": INTEGERS}}

_SUMMED = {"x_format": FORMAT, "accumulator": FORMAT, "y_format": FORMAT}
_FIXED_RECURRENT = {
    "direction": WORD,
    "hidden_size": INTEGER,
    "activations": ACTIVATIONS,
    **_SUMMED,
    "w_format": FORMAT,
    "r_format": FORMAT,
    "b_format": FORMAT,
    "table_format": FORMAT,
    "table_size": INTEGER,
    "reuse": INTEGER,
}

ATTRIBUTES: dict[str, dict[str, Kind]] = {
    "conv": {**_CONV, "activation": WORD},
    "conv_transpose": {**_CONV, "output_padding": INTEGERS, "output_shape": INTEGERS, "activation": WORD},
    "conv_integer": {**_CONV, "channels_last": INTEGER},
    "conv_weight_gradient": _CONV,
    "conv_bias_gradient": {},
    "qlinear_conv": {**_CONV, "channels_last": INTEGER},
    "max_pool": {**_POOL, "storage_order": INTEGER, "with_indices": INTEGER},
    "average_pool": {**_POOL, "count_include_pad": INTEGER},
    "lp_pool": {**_POOL, "p": INTEGER},
    "max_unpool": {
        "kernel_shape": INTEGERS,
        "strides": INTEGERS,
        "pads": INTEGERS,
        "indexed_shape": INTEGERS,
        "output_shape": INTEGERS,
    },
    "max_pool_gradient": _POOL,
    "average_pool_gradient": {**_POOL, "count_include_pad": INTEGER, "input_shape": INTEGERS},
    "lp_pool_gradient": {**_POOL, "p": INTEGER},
    "max_unpool_gradient": {"indexed_shape": INTEGERS},
    **{f"rnn{form}": {**_RECURRENT, **more} for form, more in _FORMS.items()},
    **{f"lstm{form}": {**_RECURRENT, "input_forget": INTEGER, **more} for form, more in _FORMS.items()},
    **{f"gru{form}": {**_RECURRENT, "linear_before_reset": INTEGER, **more} for form, more in _FORMS.items()},
    "fixed_conv": {**_CONV, **_SUMMED, "w_format": FORMAT, "bias_format": FORMAT, "activation": WORD, "reuse": INTEGER},
    "fixed_max_pool": {**_POOL, "x_format": FORMAT, "y_format": FORMAT},
    "fixed_average_pool": {**_POOL, **_SUMMED, "count_include_pad": INTEGER},
    "fixed_rnn": _FIXED_RECURRENT,
    "fixed_lstm": _FIXED_RECURRENT,
    "fixed_gru": {**_FIXED_RECURRENT, "linear_before_reset": INTEGER},
    "sparse_rnn": {"leak": NUMBER, "activation": WORD},
}
_SHAPES = {"w_shape": INTEGERS, "r_shape": INTEGERS}
ATTRIBUTES |= {
    "sparse_conv": {**ATTRIBUTES["conv"], "w_shape": INTEGERS},
    "sparse_elman": {**ATTRIBUTES["rnn"], **_SHAPES},
    "sparse_lstm": {**ATTRIBUTES["lstm"], **_SHAPES},
    "sparse_gru": {**ATTRIBUTES["gru"], **_SHAPES},
    **{f"shared_{op}": ATTRIBUTES[op] for op in ("conv", "rnn", "lstm", "gru")},
}
"""The attributes that each operator's text may carry."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as its text says it, ready for ``ops.canonical``."""

    op: str
    inputs: tuple[Tensor | None, ...]
    attributes: Mapping[str, Any]
    outputs: int
    pads: tuple[int, ...] | None = None
    """conv_transpose alone: how the text splits the padding, which its ``output_shape`` leaves open."""

    def settled(self, problem: Problem) -> Problem:
        """The canonical problem of this call, with the padding split as the text has it."""
        if self.pads is None:
            return problem
        attributes = tuple((name, self.pads if name == "pads" else value) for name, value in problem.attributes)
        return replace(problem, attributes=attributes)


def read_call(text: str) -> Call:
    """Read a problem's text form. Raises OperatorError for text that is none, naming what is wrong with it."""
    words = text.split()
    if len(words) < 2:
        raise OperatorError("problem text", "the line", repr(text), "write: operator inputs name=value …")
    op, tensors, pairs = words[0], words[1], words[2:]
    known = ATTRIBUTES.get(op)
    if known is None:
        raise OperatorError("problem text", "the operator", repr(op), f"known are {', '.join(ATTRIBUTES)}")
    attributes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        kind = known.get(name)
        if not equals or kind is None:
            raise OperatorError(op, "an attribute", repr(pair), f"write name=value with one of {', '.join(known)}")
        if name in attributes:
            raise OperatorError(op, name, "there twice", "write it once")
        try:
            attributes[name] = kind.read(value)
        except ValueError:
            raise OperatorError(op, name, repr(value), kind.wanted) from None
    return _onnx_call(op, tuple(_tensor(op, part) for part in tensors.split(",")), attributes)


def _tensor(op: str, text: str) -> Tensor | None:
    if text == "-":
        return None
    try:
        return Tensor.parse(text)
    except ValueError as error:
        raise OperatorError(op, "an input", repr(text), str(error)) from None


def _onnx_call(op: str, inputs: tuple[Tensor | None, ...], attributes: dict[str, Any]) -> Call:
    """Canonical attributes turned back into ONNX's, where the two differ."""
    outputs = 1
    pads = None
    if op == "max_pool":
        with_indices = attributes.pop("with_indices", 0)
        if with_indices not in (0, 1):
            raise OperatorError(op, "with_indices", with_indices, "give 0 or 1")
        outputs = 1 + with_indices
    elif op == "conv_transpose" and {"pads", "output_shape"} <= attributes.keys():
        pads = attributes.pop("pads")
        attributes["output_padding"] = _output_padding(op, inputs, attributes, pads)
    elif op == "max_unpool" and "indexed_shape" in attributes:
        attributes.update(_unpool_window(op, inputs, attributes.pop("indexed_shape")))
    elif "activation_alpha" in ATTRIBUTES[op] and "activations" in attributes:
        functions = [Activation.parse(part) for part in attributes["activations"]]
        if not {"activation_alpha", "activation_beta"} & attributes.keys():
            counts = [len(FUNCTIONS[function.name].defaults) for function in functions]
            attributes["activation_alpha"] = [f.alpha for f, count in zip(functions, counts) if count > 0]
            attributes["activation_beta"] = [f.beta for f, count in zip(functions, counts) if count > 1]
        attributes["activations"] = [function.name for function in functions]
    return Call(op, inputs, attributes, outputs, pads)


def _output_padding(
    op: str, inputs: tuple[Tensor | None, ...], attributes: Mapping[str, Any], pads: tuple[int, ...]
) -> tuple[int, ...]:
    """The output padding with which ``output_shape`` needs just the text's total padding on each axis."""
    x, w = inputs[0], inputs[1] if len(inputs) > 1 else None
    wanted = attributes["output_shape"]
    if x is None or w is None:
        raise OperatorError(op, "x or w", "missing", "give both")
    rank = x.rank - 2
    strides, dilations = attributes.get("strides", (1,) * rank), attributes.get("dilations", (1,) * rank)
    lengths = {
        "w's rank less 2": w.rank - 2,
        "output_shape's length": len(wanted),
        "pads' length halved": len(pads) / 2,
        "strides' length": len(strides),
        "dilations' length": len(dilations),
    }
    for name, length in lengths.items():
        if length != rank:
            raise OperatorError(op, name, length, f"x ({x}) has {rank} spatial axes")
    extra = []
    for axis in range(rank):
        full = (x.shape[2 + axis] - 1) * strides[axis] + (w.shape[2 + axis] - 1) * dilations[axis] + 1
        total = pads[axis] + pads[axis + rank]
        # without padding the output may be larger than what the window reaches, and needs no output padding for it
        extra.append(total + wanted[axis] - full if total else 0)
        if extra[-1] < 0 or (total == 0 and wanted[axis] < full):
            raise OperatorError(
                op,
                f"pads on spatial axis {axis}",
                f"{total} in all",
                f"output_shape {wanted[axis]} of {full} needs more",
            )
    return tuple(extra)


def _unpool_window(op: str, inputs: tuple[Tensor | None, ...], indexed: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """A window of stride 1 whose unpooling gives the indexed shape."""
    x = inputs[0]
    if x is None or len(indexed) != x.rank or indexed[:2] != x.shape[:2]:
        raise OperatorError(op, "indexed_shape", indexed, f"it has to begin with N and C of x ({x}) and have its rank")
    growth = [want - (have - 1) for want, have in zip(indexed[2:], x.shape[2:])]
    return {
        "kernel_shape": tuple(max(extent, 1) for extent in growth),
        "pads": (*(max(1 - extent, 0) for extent in growth), *(0 for _ in growth)),
    }
