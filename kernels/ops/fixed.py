"""Fixed point: fixed_conv, fixed_max_pool, fixed_average_pool, fixed_rnn, fixed_lstm and fixed_gru.

Arrays hold integers; the formats (``numerics.Fixed``, by their text) are attributes, so that a problem says exactly
what is computed. The meaning is that of the C++ which hls4ml (Fahim et al., 2021) generates for Vitis HLS, so that an
exported design computes the same bits. A cast rounds first and then overflows, by the modes of the format cast to.

fixed_conv           x (N, C, spatial), w (M, C / group, spatial), bias (M)?. No spatial axes: a dense layer.
                     Each product is cast to ``accumulator``; the sum begins with the bias cast to it, and is cast to it
                     after each addition; y is the sum cast to ``y_format``, and max(y, 0) with activation=Relu.
                     Products are added by taps, the last axis fastest, channels of a tap innermost: i = 0, 1, …; with
                     ``reuse`` r, i = 0, r, 2r, …, then 1, r + 1, …. The order matters, and is kept, only where the
                     accumulator does not wrap.
fixed_max_pool       y is the greatest tap inside x, cast to ``y_format``.
fixed_average_pool   The taps inside x, cast to ``accumulator``, which has all of x's fraction bits, are added in order,
                     each sum cast to it; the sum is divided by the number of taps (as average_pool counts them), toward
                     zero, and cast to ``y_format``.
fixed_rnn, _lstm, _gru   ONNX's layouts, gate order and equations (ops/rnn.py), without peepholes, clip and batch-first
                     layout. a and s are W x + bw and R h + br, summed in ``accumulator`` as in fixed_conv; gates, what
                     functions give, and products of the two are cast to it; h and c to ``y_format``:

                       rnn    h' = f(a + s)
                       lstm   c' = g(a_c + s_c) i + c f,  h' = o h(c')       with i, o, f = f(a + s)
                       gru    h' = g(a_h + t) (1 - z) + h z                  with z, r = f(a + s), and
                              t = r s_h with linear_before_reset, else R_h times r h (cast to y_format), plus br_h

                     Sums of two products are exact before the cast. Sigmoid and Tanh are looked up
                     (``numerics.function_table`` of ``table_size`` entries of ``table_format``); Relu is max(x, 0).

Canonical attributes: those of conv, max_pool, average_pool, rnn that apply, the formats, reuse (1 where it does not
matter), and activation (fixed_conv, Relu alone).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from quatrefoil.errors import OperatorError
from quatrefoil.numerics import TABLE_REACH, TABLE_SIZES, WIDEST_SUM, WIDEST_VALUE, Fixed, function_table
from quatrefoil.ops import conv, pool, rnn
from quatrefoil.ops.spec import MAX_ELEMENTS, Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.ops.windows import flag_attribute, int_attribute, spatial_rank
from quatrefoil.problem import AttributeValue, Problem, Tensor, Tolerance, Work

CONV_NAMES = ("x", "w", "bias")
RECURRENT_NAMES = rnn.NAMES[:7]
FUNCTIONS = ("Sigmoid", "Tanh", "Relu")
"""What gates of recurrent layers take; positions are the codes that kernels use."""

WIDEST_ELEMENT = 60
"""Bits that a sum of two products of a recurrent layer may take before it is cast."""

parse_format = lru_cache(maxsize=4096)(Fixed.parse)


def format_of(problem: Problem, name: str) -> Fixed:
    """The format that an attribute names."""
    return parse_format(problem.string(name))


@dataclass(frozen=True, slots=True)
class RecurrentGeometry(rnn.RecurrentSizes):
    """The sizes of a recurrent problem, and its settled options."""

    activations: tuple[tuple[str, ...], ...]
    """For each direction its functions f, g, h: names in FUNCTIONS."""


def recurrent_geometry(problem: Problem) -> RecurrentGeometry:
    functions, kind = problem["activations"], _plain(problem.op)
    assert isinstance(functions, tuple)
    return RecurrentGeometry(*rnn.sizes(problem, kind), activations=rnn.by_direction(tuple(map(str, functions)), kind))


def tables(problem: Problem) -> dict[str, np.ndarray]:
    """The tables of the functions that a recurrent problem looks up, by name (int64)."""
    size, kept = problem.integer("table_size"), format_of(problem, "table_format")
    names = {name for names in recurrent_geometry(problem).activations for name in names if name in TABLE_REACH}
    return {name: function_table(name, size, kept) for name in sorted(names)}


def products_order(count: int, reuse: int) -> np.ndarray:
    """The order in which ``count`` products are added."""
    return np.concatenate([np.arange(first, count, reuse) for first in range(min(reuse, count))])


def largest_sum(values: Fixed, weights: np.ndarray, fraction: int, start: np.ndarray | int, accumulator: Fixed) -> int:
    """How large a sum of products may get on its way, in places of the accumulator: a bound.

    values: the format of one factor. weights: integers (sums, products), the other factor. fraction: of a product.
    start: integers that the sums begin with. Where the accumulator holds this, no cast to it overflows, and the order
    makes no difference.
    """
    largest, up = max(values.high, -values.low), accumulator.fraction - fraction
    rounded_up = 0 if up >= 0 else weights.shape[-1] + 1
    totals = np.abs(np.asarray(weights, np.int64)).sum(axis=-1)
    reached = np.broadcast_arrays(totals, np.abs(np.asarray(start, np.int64)))
    return max(
        # in Python's integers, which nothing overflows
        (
            (total * largest << up if up >= 0 else total * largest >> -up) + rounded_up + first
            for total, first in zip(*(array.reshape(-1).tolist() for array in reached))
        ),
        default=0,
    )


def divisors(problem: Problem) -> np.ndarray:
    """fixed_average_pool: what each output place's sum is divided by, (D, H, W) int64."""
    g = pool.geometry(problem)
    include, counts = problem.integer("count_include_pad"), []
    for axis in range(3):
        w = g.window
        first = np.arange(w.output[axis])[:, None] * w.strides[axis] - w.pads[axis]
        taps = first + np.arange(w.kernel[axis]) * w.dilations[axis]
        low, high = (-w.pads[axis], w.input[axis] + g.pads_end[axis]) if include else (0, w.input[axis])
        counts.append(((taps >= low) & (taps < high)).sum(1))
    return counts[0][:, None, None] * counts[1][:, None] * counts[2]


def _plain(op: str) -> str:
    return op.removeprefix("fixed_")


def _format(op: str, attributes: Attributes, name: str, widest: int = WIDEST_VALUE) -> Fixed:
    given = attributes.get(name)
    if given is None:
        raise OperatorError(op, name, "missing", "give a format, for example fixed<16,6>")
    found = given if isinstance(given, Fixed) else parse_format(str(given))
    most = widest - (not found.signed and widest == WIDEST_VALUE)
    if found.width > most:
        raise OperatorError(op, name, found, f"its width may be {most} at most")
    return found


def _check(op: str, name: str, tensor: Tensor | None, form: Fixed) -> None:
    if tensor is not None and tensor.dtype != form.dtype:
        raise OperatorError(op, f"the dtype of {name}", tensor.dtype, f"integers of {form} are kept in {form.dtype}")


def _check_products(op: str, first: str, a: Fixed, second: str, b: Fixed) -> None:
    if a.width + b.width > WIDEST_SUM:
        raise OperatorError(
            op, f"{first} and {second}", f"{a} and {b}", f"a product may be {WIDEST_SUM} bits wide at most"
        )


def _required(op: str, inputs: Sequence[Tensor | None], names: Sequence[str], needed: int) -> list[Tensor | None]:
    if len(inputs) > len(names):
        raise OperatorError(op, "the number of inputs", len(inputs), f"it takes {', '.join(names)}")
    given = list(inputs) + [None] * (len(names) - len(inputs))
    for position in range(needed):
        if given[position] is None:
            raise OperatorError(op, names[position], "missing", "give an array")
    return given


def _reuse(op: str, attributes: Attributes, accumulator: Fixed, *counts: int) -> int:
    """1 where the order of additions makes no difference."""
    reuse = int_attribute(op, attributes, "reuse", 1)
    if reuse < 1:
        raise OperatorError(op, "reuse", reuse, "it has to be at least 1")
    matters = accumulator.overflow != "WRAP" and any(1 < reuse < count for count in counts)
    return reuse if matters else 1


def canonical_conv(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "fixed_conv"
    x, w, bias = _required(op, inputs, CONV_NAMES, 2)
    assert x is not None and w is not None
    x_format, w_format, y_format = (_format(op, attributes, name) for name in ("x_format", "w_format", "y_format"))
    accumulator = _format(op, attributes, "accumulator", WIDEST_SUM)
    _check(op, "x", x, x_format)
    _check(op, "w", w, w_format)
    _check_products(op, "x_format", x_format, "w_format", w_format)
    settled, shape = conv.conv_attributes(op, x, w, attributes, least_rank=0)
    formats: dict[str, Fixed] = {"x_format": x_format, "w_format": w_format}
    if bias is not None:
        formats["bias_format"] = _format(op, attributes, "bias_format")
        _check(op, "bias", bias, formats["bias_format"])
        if bias.shape != (shape[1],):
            raise OperatorError(op, "the shape of bias", list(bias.shape), f"it has to be {[shape[1]]}")
    formats |= {"accumulator": accumulator, "y_format": y_format}
    _check_size(op, shape)
    activation = attributes.get("activation")
    if activation not in (None, "Relu"):
        raise OperatorError(op, "activation", repr(activation), "fixed_conv has Relu alone")
    reuse = _reuse(op, attributes, accumulator, math.prod(w.shape[1:]))
    more: pool.Settled = (*((name, form.text) for name, form in formats.items()), ("reuse", reuse))
    if activation is not None:
        more += (("activation", "Relu"),)
    given = (x, w) if bias is None else (x, w, bias)
    return Problem(op, given, (Tensor(y_format.dtype, shape),), settled + more)


def _check_size(op: str, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_ELEMENTS:
        raise OperatorError(op, "the output's shape", list(shape), f"it has to hold at most {MAX_ELEMENTS} values")


def _pooled(op: str, inputs: Sequence[Tensor | None], attributes: Attributes) -> tuple[Tensor, Fixed, Problem]:
    [x] = _required(op, inputs, ("x",), 1)
    assert x is not None
    x_format = _format(op, attributes, "x_format")
    _check(op, "x", x, x_format)
    spatial_rank(op, x)
    settled, shape = pool.window_attributes(op, x, attributes)
    window = pool.geometry(Problem(op, (x,), (Tensor(x.dtype, shape),), settled)).window
    for axis in range(3):
        taps = range(0, window.kernel[axis] * window.dilations[axis], window.dilations[axis])
        for place in range(window.output[axis]):
            first = place * window.strides[axis] - window.pads[axis]
            if not any(0 <= first + tap < window.input[axis] for tap in taps):
                raise OperatorError(op, "pads", attributes.get("pads"), "every window has to reach a value of x")
    return x, x_format, Problem(op, (x,), (Tensor(x.dtype, shape),), settled)


def canonical_max_pool(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "fixed_max_pool"
    x, x_format, plain = _pooled(op, inputs, attributes)
    y_format = _format(op, attributes, "y_format")
    more: pool.Settled = (("x_format", x_format.text), ("y_format", y_format.text))
    y = Tensor(y_format.dtype, plain.outputs[0].shape)
    return Problem(op, (x,), (y,), plain.attributes + more)


def canonical_average_pool(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "fixed_average_pool"
    x, x_format, plain = _pooled(op, inputs, attributes)
    accumulator = _format(op, attributes, "accumulator", WIDEST_SUM)
    y_format = _format(op, attributes, "y_format")
    if accumulator.fraction < x_format.fraction:
        raise OperatorError(
            op, "accumulator", accumulator, f"it has to have at least x's {x_format.fraction} fraction bits"
        )
    if x_format.width + accumulator.fraction - x_format.fraction > WIDEST_SUM:
        raise OperatorError(
            op, "accumulator", accumulator, f"with its fraction bits x is wider than {WIDEST_SUM} bits; give it fewer"
        )
    more: pool.Settled = (
        ("x_format", x_format.text), ("accumulator", accumulator.text), ("y_format", y_format.text),
        ("count_include_pad", flag_attribute(op, attributes, "count_include_pad")),
    )  # fmt: skip
    y = Tensor(y_format.dtype, plain.outputs[0].shape)
    return Problem(op, (x,), (y,), plain.attributes + more)


RECURRENT_FORMATS = ("x_format", "w_format", "r_format", "b_format", "accumulator", "y_format", "table_format")


def _canonical_recurrent(op: str, inputs: Sequence[Tensor | None], attributes: Attributes) -> Problem:
    plain = _plain(op)
    names = RECURRENT_NAMES if plain == "lstm" else RECURRENT_NAMES[:6]
    given = _required(op, inputs, names, 3)
    x, w, r = given[: rnn.B]
    assert x is not None and w is not None and r is not None
    for name, needed in zip(names, (x, w, r)):
        if needed.rank != 3:
            raise OperatorError(op, f"the rank of {name}", f"{needed.rank} ({needed})", "it has to be 3")
    direction, directions = rnn.direction_of(op, attributes)
    hidden = int_attribute(op, attributes, "hidden_size", r.shape[2])
    if hidden != r.shape[2] or hidden < 1:
        raise OperatorError(op, "hidden_size", hidden, f"r's last axis is {r.shape[2]}, at least 1")
    steps, batch, width = x.shape
    if width < 1:
        raise OperatorError(op, "x's last axis", width, "a step has to hold at least 1 value")
    wanted = [name for name in RECURRENT_FORMATS if name != "b_format" or given[rnn.B] is not None]
    formats = {
        name: _format(op, attributes, name, WIDEST_SUM if name == "accumulator" else WIDEST_VALUE) for name in wanted
    }
    y_format, accumulator = formats["y_format"], formats["accumulator"]
    _check_products(op, "x_format", formats["x_format"], "w_format", formats["w_format"])
    _check_products(op, "y_format", y_format, "r_format", formats["r_format"])
    _check_elements(op, accumulator, y_format)
    state = (directions, batch, hidden)
    kept = {rnn.X: "x_format", rnn.W: "w_format", rnn.R: "r_format", rnn.B: "b_format"}
    shapes = rnn.input_shapes(rnn.GATES[plain], directions, batch, width, hidden, state)
    for position, tensor in enumerate(given):
        if tensor is None:
            continue
        if position != rnn.X and tensor.shape != shapes[position]:
            raise OperatorError(
                op, f"the shape of {names[position]}", list(tensor.shape), f"it has to be {list(shapes[position])}"
            )
        if position == rnn.LENGTHS:
            if tensor.dtype != "int32":
                raise OperatorError(op, "the dtype of sequence_lens", tensor.dtype, "it has to be int32")
        else:
            _check(op, names[position], tensor, formats[kept.get(position, "y_format")])
    size = int_attribute(op, attributes, "table_size", 1024)
    if size not in TABLE_SIZES:
        raise OperatorError(
            op, "table_size", size, f"it has to be a power of two from {TABLE_SIZES[0]} to {TABLE_SIZES[-1]}"
        )
    settled: list[tuple[str, AttributeValue]] = [
        ("direction", direction),
        ("hidden_size", hidden),
        ("activations", _functions(op, attributes, directions)),
        *((name, form.text) for name, form in formats.items()),
        ("table_size", size),
        ("reuse", _reuse(op, attributes, accumulator, width, hidden)),
    ]
    if plain == "gru":
        settled.append(("linear_before_reset", flag_attribute(op, attributes, "linear_before_reset")))
    while given[-1] is None:
        given.pop()
    outputs = (
        Tensor(y_format.dtype, (steps, directions, batch, hidden)),
        *(Tensor(y_format.dtype, state),) * (2 if plain == "lstm" else 1),
    )
    return Problem(op, tuple(given), outputs, tuple(settled))


def _check_elements(op: str, accumulator: Fixed, y_format: Fixed) -> None:
    """Whether products of gates and states, and their sums, fit."""
    if not 0 <= accumulator.fraction <= WIDEST_ELEMENT:
        raise OperatorError(op, "accumulator", accumulator, f"its fraction bits have to lie in 0 to {WIDEST_ELEMENT}")
    whole = max(accumulator.integer, 1) + max(accumulator.integer, y_format.integer, 1)
    fraction = accumulator.fraction + max(accumulator.fraction, y_format.fraction)
    if whole + fraction > WIDEST_ELEMENT:
        raise OperatorError(
            op,
            "accumulator and y_format",
            f"{accumulator} and {y_format}",
            f"a product of gates and states would take {whole + fraction} bits, more than {WIDEST_ELEMENT}",
        )


def _functions(op: str, attributes: Attributes, directions: int) -> tuple[str, ...]:
    defaults = rnn.DEFAULT_ACTIVATIONS[_plain(op)] * directions
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in attributes.get("activations") or defaults)
    if len(names) != len(defaults):
        raise OperatorError(op, "activations", names, f"give {len(defaults)} for {directions} direction(s)")
    for name in names:
        if name not in FUNCTIONS:
            raise OperatorError(op, "activations", repr(name), f"fixed-point layers take {', '.join(FUNCTIONS)}")
    return names


def canonical_rnn(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical_recurrent("fixed_rnn", inputs, attributes)


def canonical_lstm(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical_recurrent("fixed_lstm", inputs, attributes)


def canonical_gru(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical_recurrent("fixed_gru", inputs, attributes)


INPUT_FORMATS = {
    "fixed_conv": ("x_format", "w_format", "bias_format"),
    "fixed_max_pool": ("x_format",),
    "fixed_average_pool": ("x_format",),
    **dict.fromkeys(
        ("fixed_rnn", "fixed_lstm", "fixed_gru"),
        ("x_format", "w_format", "r_format", "b_format", "", "y_format", "y_format"),
    ),
}
"""The attribute that holds the format of each input; none for sequence_lens."""


@lru_cache(maxsize=4096)
def _fills_its_dtype(form: Fixed) -> bool:
    """Whether every integer that an array of the format can hold is one of the format's."""
    held = np.iinfo(form.dtype)
    return form.low == held.min and form.high == held.max


def unrestricted(problem: Problem) -> bool:
    """Whether no array of the problem's dtypes can hold what ``validate`` refuses."""
    attributes = [attribute for position, attribute in enumerate(INPUT_FORMATS[problem.op]) if problem.has(position)]
    return all(attribute and _fills_its_dtype(format_of(problem, attribute)) for attribute in attributes)


def input_format(problem: Problem, position: int) -> Fixed | None:
    """The format that an input's integers have to lie in, where its dtype holds others, too."""
    attribute = INPUT_FORMATS[problem.op][position]
    form = format_of(problem, attribute) if attribute and problem.inputs[position] is not None else None
    return None if form is None or _fills_its_dtype(form) else form


def validate(problem: Problem, inputs: Sequence[Any]) -> None:
    """Integers have to lie in the range of their format."""
    names = CONV_NAMES if problem.op == "fixed_conv" else RECURRENT_NAMES
    for position, array in enumerate(inputs):
        form = None if array is None else input_format(problem, position)
        if form is None or problem.input(position).size == 0:
            continue
        low, high = int(array.min()), int(array.max())
        if low < form.low or high > form.high:
            raise OperatorError(
                problem.op, names[position], f"{low} to {high}", f"integers of {form} lie in {form.low} to {form.high}"
            )
    if problem.op in ("fixed_rnn", "fixed_lstm", "fixed_gru"):
        rnn.validate_lengths(problem, inputs, problem.input(rnn.X).shape[0])


def work(problem: Problem) -> Work:
    """As of the same operator in floating point."""
    if problem.op == "fixed_conv":
        return conv.work(problem)
    if problem.op in ("fixed_max_pool", "fixed_average_pool"):
        g = pool.geometry(problem)
        return Work(g.planes * g.window.output_size * g.window.taps, tensor_bytes(problem))
    r = recurrent_geometry(problem)
    return Work(r.steps * r.batch * r.directions * r.gates * r.hidden * (r.inputs + r.hidden), tensor_bytes(problem))


def tolerance(problem: Problem) -> Tolerance:
    return Tolerance()


def _filled(form: str) -> Fill:
    """Every integer of a format."""
    parsed = parse_format(form)
    return Fill("integers", parsed.low, parsed.high)


def _case(op: str, name: str, shapes: Sequence[str | None], **attributes: Any) -> Case:
    tensors: list[Tensor | None] = []
    fills: dict[int, Fill] = {}
    for position, shape in enumerate(shapes):
        attribute = INPUT_FORMATS[op][position]
        if shape is None:
            tensors.append(None)
        elif not attribute:
            tensors.append(Tensor.parse(f"int32[{shape}]"))
        else:
            tensors.append(Tensor.parse(f"{parse_format(attributes[attribute]).dtype}[{shape}]"))
            fills[position] = _filled(attributes[attribute])
    return Case(op, name, tuple(tensors), attributes, fills)


def cases_conv() -> list[Case]:
    plain = {
        "x_format": "fixed<16,6>", "w_format": "fixed<16,2>", "bias_format": "fixed<16,4>",
        "accumulator": "fixed<40,14>", "y_format": "fixed<16,8,RND,SAT>",
    }  # fmt: skip
    narrow = plain | {"accumulator": "fixed<18,7>", "y_format": "fixed<12,5>"}
    bytes_ = plain | {"x_format": "fixed<8,3>", "w_format": "fixed<8,1>", "accumulator": "fixed<24,9>"}

    def make(name: str, x: str, w: str, bias: str | None = None, base: dict[str, str] = plain, **more: Any) -> Case:
        return _case("fixed_conv", name, (x, w) if bias is None else (x, w, bias), **{**base, **more})

    pads = [1, 1, 1, 1]
    roundings = ("TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF")
    strided = make("non_contiguous", "1x4x9x9", "5x4x3x3", "5")
    strided = replace(strided, fills={i: replace(fill, contiguous=False) for i, fill in strided.fills.items()})
    return [
        make("3x3", "1x5x7x9", "7x5x3x3", "7", pads=pads),
        make("dense", "3x37", "19x37", "19"),
        make("dense_relu", "2x70", "33x70", "33", activation="Relu"),
        make("dense_wide_values", "2x9", "5x9", "5", x_format="fixed<30,10>", w_format="fixed<30,4>",
             accumulator="fixed<62,20>", y_format="fixed<32,16,RND_CONV,SAT>"),
        make("wide_by_narrow", "1x4x5x6", "3x4x2x2", "3", x_format="fixed<24,8>", w_format="fixed<10,1,RND,SAT>"),
        make("narrow_by_wide", "1x4x5x6", "3x4x2x2", x_format="fixed<9,3>", w_format="fixed<20,2>"),
        make("unsigned", "1x3x6x6", "4x3x3x3", "4", x_format="ufixed<8,0>", y_format="ufixed<10,4,RND,SAT>"),
        make("unsigned_wide", "1x3x6x6", "4x3x3x3", x_format="ufixed<16,2>", w_format="ufixed<7,1>"),
        make("unsigned_accumulator", "1x3x4x4", "2x3x2x2", x_format="ufixed<8,2>", w_format="ufixed<8,1>",
             accumulator="ufixed<14,6,RND,SAT>", y_format="ufixed<14,6>"),
        make("8_bits", "2x16x9x9", "16x16x3x3", "16", bytes_, pads=pads, activation="Relu"),
        make("8_bits_1x1", "1x33x6x7", "35x33x1x1", "35", bytes_),
        make("8_bits_deep", "1x70x5x5", "18x70x3x3", "18", bytes_, pads=pads),
        make("wraps", "1x8x6x7", "9x8x3x3", "9", narrow, pads=pads),
        make("saturates", "1x8x6x7", "9x8x3x3", "9", narrow, pads=pads, accumulator="fixed<18,7,TRN,SAT>"),
        make("saturates_exact_products", "1x8x6x7", "9x8x3x3", "9", pads=pads, accumulator="fixed<32,8,TRN,SAT>"),
        make("never_saturates", "1x8x6x7", "9x8x3x3", "9", pads=pads, accumulator="fixed<40,14,TRN,SAT>"),
        make("saturates_in_order", "1x8x6x7", "9x8x3x3", "9", narrow, pads=pads,
             accumulator="fixed<18,7,RND,SAT>", reuse=6),
        make("saturates_dense_in_order", "3x24", "9x24", "9", narrow, accumulator="fixed<16,6,TRN,SAT_SYM>", reuse=5),
        make("saturates_to_zero", "1x8x5x5", "5x8x3x3", "5", narrow, accumulator="fixed<19,7,TRN,SAT_ZERO>"),
        make("depthwise_saturates", "1x5x8x9", "5x1x3x3", "5", narrow, group=5, accumulator="fixed<17,6,TRN,SAT>"),
        make("product_finer_than_sum", "1x6x6x6", "4x6x3x3", "4", accumulator="fixed<16,10>"),
        make("sum_finer_than_product", "1x6x6x6", "4x6x3x3", "4", bytes_, accumulator="fixed<40,6>"),
        make("y_finer_than_sum", "1x3x5x5", "4x3x3x3", "4", bytes_, y_format="fixed<24,4,TRN,SAT>"),
        make("no_integer_bits", "1x3x5x5", "4x3x3x3", x_format="fixed<10,-2>", w_format="fixed<8,-1>"),
        make("no_fraction_bits", "1x3x5x5", "4x3x3x3", x_format="fixed<10,14>", w_format="fixed<8,8>",
             accumulator="fixed<34,30>", y_format="fixed<16,20,RND,SAT>"),
        *(make(f"rounding_{mode.lower()}", "1x5x6x6", "4x5x3x3", "4", accumulator=f"fixed<22,12,{mode},WRAP>",
               y_format=f"fixed<12,10,{mode},SAT_SYM>") for mode in roundings),
        make("stride2", "1x8x15x17", "9x8x3x3", "9", strides=[2, 2], pads=pads),
        make("dilated", "1x6x13x12", "4x6x3x3", "4", dilations=[2, 3], pads=[2, 3, 2, 3]),
        make("asymmetric_pads", "1x4x8x9", "5x4x4x3", "5", pads=[0, 2, 3, 1]),
        make("pads_beyond_kernel", "1x2x4x5", "3x2x2x2", pads=[3, 4, 2, 5]),
        make("grouped", "1x12x8x10", "18x4x3x3", "18", group=3, pads=pads),
        make("depthwise", "1x21x11x13", "21x1x3x3", "21", group=21, pads=pads, activation="Relu"),
        make("1d", "2x5x29", "6x5x5", "6", pads=[2, 2]),
        make("3d", "1x3x5x6x7", "4x3x2x3x2", "4", pads=[1, 0, 1, 0, 1, 0]),
        make("batch_8", "8x4x6x6", "4x4x3x3", "4", pads=pads),
        make("one_pixel", "2x7x1x1", "5x7x1x1", "5"),
        make("empty_batch", "0x3x8x8", "4x3x3x3", "4"),
        strided,
    ]  # fmt: skip


def _window_cases(op: str, **always: Any) -> list[Case]:
    def make(name: str, x: str, **attributes: Any) -> Case:
        return _case(op, name, (x,), **{"x_format": "fixed<16,6>", "y_format": "fixed<16,6>", **always, **attributes})

    return [
        make("2x2", "2x3x8x10", kernel_shape=[2, 2], strides=[2, 2]),
        make("3x3_stride2_padded", "1x5x13x15", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("3x3_stride1", "1x4x9x70", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("asymmetric_pads", "1x2x7x8", kernel_shape=[3, 4], strides=[2, 3], pads=[0, 2, 2, 1]),
        make("ceil_mode", "1x2x8x9", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        make("dilated", "1x3x11x12", kernel_shape=[3, 3], dilations=[2, 3], strides=[2, 1]),
        make("global", "2x7x7x7", kernel_shape=[7, 7]),
        make("1d", "2x3x31", kernel_shape=[3], strides=[2], pads=[1, 1]),
        make("3d", "1x2x6x7x8", kernel_shape=[2, 3, 2], strides=[2, 2, 2], pads=[0, 1, 1, 1, 1, 0]),
        make("empty_batch", "0x3x8x8", kernel_shape=[2, 2]),
        make("8_bits", "1x3x9x40", kernel_shape=[3, 3], x_format="fixed<8,3>", y_format="fixed<6,2,RND,SAT>"),
        make("unsigned", "1x3x9x9", kernel_shape=[2, 2], strides=[2, 2], x_format="ufixed<16,4>",
             y_format="ufixed<18,4>"),
        make("wide", "1x2x6x7", kernel_shape=[2, 3], x_format="fixed<28,9>", y_format="fixed<20,6,RND_CONV,WRAP>"),
    ]  # fmt: skip


def cases_max_pool() -> list[Case]:
    return _window_cases("fixed_max_pool")


def cases_average_pool() -> list[Case]:
    op, sixteen = "fixed_average_pool", {"x_format": "fixed<16,6>", "y_format": "fixed<16,6>"}

    def make(name: str, x: str, **attributes: Any) -> Case:
        return _case(op, name, (x,), **{"accumulator": "fixed<24,14>", **sixteen, **attributes})

    return [
        *_window_cases(op, accumulator="fixed<40,16>"),
        make("wraps", "1x3x8x8", kernel_shape=[3, 3], accumulator="fixed<16,6>"),
        make("saturates", "1x3x8x8", kernel_shape=[3, 3], accumulator="fixed<17,7,TRN,SAT>"),
        make("saturates_symmetrically", "1x3x8x8", kernel_shape=[3, 3], accumulator="fixed<17,7,TRN,SAT_SYM>"),
        make("include_pad", "1x2x7x9", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], count_include_pad=1),
        make("include_pad_ceil", "1x2x6x7", kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 1, 1], ceil_mode=1,
             count_include_pad=1),
    ]  # fmt: skip


def _recurrent_cases(op: str) -> list[Case]:
    plain = _plain(op)
    cell = "c" if plain == "lstm" else ""
    base = {
        "x_format": "fixed<16,6>", "w_format": "fixed<16,2>", "r_format": "fixed<16,2>", "b_format": "fixed<16,4>",
        "accumulator": "fixed<20,8>", "y_format": "fixed<16,6>", "table_format": "fixed<18,8>",
    }  # fmt: skip

    def make(name: str, sizes: tuple[int, int, int, int], options: str = "b", **more: Any) -> Case:
        steps, batch, width, hidden = sizes
        attributes: dict[str, Any] = {"hidden_size": hidden, **base, **more}
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        gates = rnn.GATES[plain]
        state = f"{directions}x{batch}x{hidden}"
        shapes: list[str | None] = [
            f"{steps}x{batch}x{width}", f"{directions}x{gates * hidden}x{width}",
            f"{directions}x{gates * hidden}x{hidden}",
            f"{directions}x{2 * gates * hidden}" if "b" in options else None,
            f"{batch}" if "l" in options else None,
            state if "h" in options else None,
            state if "c" in options else None,
        ]  # fmt: skip
        while shapes[-1] is None:
            shapes.pop()
        made = _case(op, name, shapes, **attributes)
        fills = {**made.fills, rnn.LENGTHS: Fill("lengths", 0 if "zero" in name else 1, steps)}
        for position, bound in ((rnn.X, 2500), (rnn.W, 6000), (rnn.R, 6000)):
            # sums that seldom leave the functions' slopes
            high = min(bound, int(fills[position].high))
            fills[position] = Fill("integers", -high, high)
        return Case(op, name, made.inputs, attributes, fills)

    saturating = {"accumulator": "fixed<16,6,RND,SAT>", "y_format": "fixed<16,6,RND,SAT>"}
    cases = [
        make("forward", (5, 3, 4, 6)),
        make("no_bias", (4, 2, 3, 5), ""),
        make("one_step", (1, 1, 16, 16)),
        make("hidden_33", (3, 2, 17, 33)),
        make("hidden_1", (3, 2, 2, 1)),
        make("reverse", (5, 3, 4, 6), direction="reverse"),
        make("bidirectional", (5, 3, 4, 6), direction="bidirectional"),
        make("initial_state", (4, 3, 4, 7), "bh" + cell),
        make("lengths_zero_reverse", (6, 5, 4, 7), "blh" + cell, direction="reverse"),
        make("lengths_bidirectional", (6, 5, 4, 7), "blh" + cell, direction="bidirectional"),
        make("empty_batch", (3, 0, 4, 5)),
        make("no_steps", (0, 2, 4, 5), "bh" + cell),
        make("saturates", (5, 3, 8, 12), **saturating),
        make("saturates_in_order", (4, 2, 12, 8), "bh", **saturating, reuse=4),
        make("wraps", (4, 2, 8, 12), accumulator="fixed<14,4>", y_format="fixed<14,4>"),
        make("8_bits", (5, 3, 6, 10), x_format="fixed<8,3>", w_format="fixed<13,2>", r_format="fixed<13,2>",
             b_format="fixed<8,2>", accumulator="fixed<16,6>", y_format="fixed<8,2>", table_format="fixed<8,1>"),
        make("large_table", (5, 3, 4, 6), table_size=4096, table_format="fixed<18,2,RND,SAT>"),
        make("small_table", (5, 3, 4, 6), table_size=64),
        make("wide", (3, 2, 5, 7), accumulator="fixed<26,8>", y_format="fixed<20,6,RND_CONV,SAT>"),
        make("relu", (3, 2, 3, 4), activations=["Relu"] * len(rnn.DEFAULT_ACTIVATIONS[plain])),
        make("functions_bidirectional", (3, 2, 3, 4), direction="bidirectional", activations=(
             ("Tanh", "Sigmoid", "Relu")[:len(rnn.DEFAULT_ACTIVATIONS[plain])]
             + ("Sigmoid", "Relu", "Tanh")[:len(rnn.DEFAULT_ACTIVATIONS[plain])])),
    ]  # fmt: skip
    if plain == "gru":
        cases += [
            make("linear_before_reset", (5, 3, 4, 6), linear_before_reset=1),
            make("linear_before_reset_saturates", (5, 3, 4, 6), "bh", **saturating, linear_before_reset=1),
        ]
    return cases


SPECS = (
    OperatorSpec("fixed_conv", CONV_NAMES, canonical_conv, work, tolerance, cases_conv, (1, 2), validate, unrestricted),
    OperatorSpec("fixed_max_pool", ("x",), canonical_max_pool, work, tolerance, cases_max_pool, (), validate, unrestricted),
    OperatorSpec(
        "fixed_average_pool", ("x",), canonical_average_pool, work, tolerance, cases_average_pool, (), validate, unrestricted
    ),
    *(
        OperatorSpec(
            op, RECURRENT_NAMES[:count], canonical, work, tolerance, cases, (rnn.W, rnn.R, rnn.B), validate, unrestricted
        )
        for op, count, canonical, cases in (
            ("fixed_rnn", 6, canonical_rnn, lambda: _recurrent_cases("fixed_rnn")),
            ("fixed_lstm", 7, canonical_lstm, lambda: _recurrent_cases("fixed_lstm")),
            ("fixed_gru", 6, canonical_gru, lambda: _recurrent_cases("fixed_gru")),
        )
    ),
)  # fmt: skip
