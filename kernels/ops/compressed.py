"""Operators whose weights are compressed: conv, rnn, lstm and gru, float32, with their weights in another form.

sparse_conv, sparse_elman (the plain recurrent layer, ONNX's RNN), sparse_lstm, sparse_gru: each weight by compressed rows
  values (Z) float32, columns (Z) int32, offsets (rows + 1) int32: the weight is seen as a matrix, an output channel or the
  row of a gate a row, everything else flattened; row i holds values[k] at columns[k] for k from offsets[i] to
  offsets[i + 1] - 1. A column that stands twice in a row counts twice. The weight's shape is an attribute.
shared_conv, shared_rnn, shared_lstm, shared_gru: each weight by a codebook (weight sharing)
  codes uint8 of the weight's shape, codebook (1 to 256 entries) float32: the weight is codebook[codes].
  Han, Mao and Dally, "Deep compression" (2016).

Inputs: the base operator's, w and r replaced by their parts (w_values, w_columns, w_offsets or w_codes, w_codebook, …).
Canonical attributes: the base's, and for the sparse form w_shape (and r_shape): conv (M, C / group, kernel), recurrent layers
(D, G H, I) and (D, G H, H). Recurrent layers have steps first (layout 0).

What an operator computes is what the base computes with the decoded weights, to the base's tolerance. A weight that is not
stored is a zero that multiplies, as in the dense weight: with a NaN or an infinity in x it gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from quatrefoil.errors import OperatorError
from quatrefoil.ops import conv, rnn
from quatrefoil.ops.sparse import MOST, Rows, checked_rows
from quatrefoil.ops.spec import Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.ops.windows import int_list
from quatrefoil.problem import Problem, Tensor, Tolerance, Work

SPARSE, SHARED = "sparse", "shared"
PARTS = {SPARSE: ("values", "columns", "offsets"), SHARED: ("codes", "codebook")}
"""What stands in the place of a weight."""

MOST_ENTRIES = 256
"""Of a codebook: what a byte tells apart."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of a base operator: its position and name there, and how many of its axes count the matrix's rows."""

    position: int
    name: str
    row_axes: int

    def matrix(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns."""
        return prod(shape[: self.row_axes]), prod(shape[self.row_axes :])


_RECURRENT = (Weight(rnn.W, "w", 2), Weight(rnn.R, "r", 2))


@dataclass(frozen=True)
class Form:
    """One of the operators: the base operator, and how its weights are stored (SPARSE or SHARED).

    places: for each position of the base, the positions here (several where a weight is in parts)
    names: of the inputs
    """

    op: str
    kind: str
    base: OperatorSpec
    weights: tuple[Weight, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for names in self._names() for name in names)

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        found, start = [], 0
        for names in self._names():
            found.append(tuple(range(start, start + len(names))))
            start += len(names)
        return tuple(found)

    @property
    def parameters(self) -> tuple[int, ...]:
        return tuple(place for position in self.base.parameters for place in self.places[position])

    def place(self, position: int) -> int:
        """Where the base's input at this position is; where its first part is, if it is a weight."""
        return self.places[position][0]

    def _names(self) -> Iterator[tuple[str, ...]]:
        parts = {weight.position: weight for weight in self.weights}
        for position, name in enumerate(self.base.input_names):
            weight = parts.get(position)
            yield (name,) if weight is None else tuple(f"{weight.name}_{part}" for part in PARTS[self.kind])


def _forms() -> Iterator[Form]:
    bases = {spec.op: spec for spec in (*conv.SPECS, *rnn.SPECS)}
    for kind in (SPARSE, SHARED):
        for op in ("conv", "rnn", "lstm", "gru"):
            # sparse_rnn is the reservoir of ops/sparse.py
            name = "sparse_elman" if (kind, op) == (SPARSE, "rnn") else f"{kind}_{op}"
            yield Form(name, kind, bases[op], (Weight(conv.W, "w", 1),) if op == "conv" else _RECURRENT)


FORMS: dict[str, Form] = {form.op: form for form in _forms()}
"""Every operator with compressed weights, by name."""

OPS: dict[tuple[str, str], str] = {(form.kind, form.base.op): form.op for form in FORMS.values()}
"""The operator of a form (SPARSE or SHARED) and a base operator."""


@lru_cache(maxsize=4096)
def base(problem: Problem) -> Problem:
    """The problem of the base operator whose weights these are, dense."""
    form = FORMS[problem.op]
    inputs = [problem.inputs[places[0]] if problem.has(places[0]) else None for places in form.places]
    for weight in form.weights:
        inputs[weight.position] = Tensor("float32", weight_shape(problem, weight))
    while inputs[-1] is None:
        inputs.pop()
    shapes = [f"{weight.name}_shape" for weight in form.weights]
    attributes = tuple((name, value) for name, value in problem.attributes if name not in shapes)
    return Problem(form.base.op, tuple(inputs), problem.outputs, attributes)


def weight_shape(problem: Problem, weight: Weight) -> tuple[int, ...]:
    """The shape of a weight once it is decoded."""
    form = FORMS[problem.op]
    if form.kind == SPARSE:
        return problem.ints(f"{weight.name}_shape")
    return problem.input(form.place(weight.position)).shape


def _canonical(op: str, inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    form = FORMS[op]
    if len(inputs) > len(form.names):
        raise OperatorError(op, "the number of inputs", len(inputs), f"it takes {', '.join(form.names)}")
    given = [*inputs, *[None] * (len(form.names) - len(inputs))]
    x = conv.required(op, form.names, given, 0)
    conv.check_dtype(op, "x", x, ("float32",))
    dense: list[Tensor | None] = [given[places[0]] for places in form.places]
    shapes = {}
    for weight in form.weights:
        places = form.places[weight.position]
        for place in places:
            conv.required(op, form.names, given, place)
        parts = [tensor for place in places if (tensor := given[place]) is not None]
        names = [form.names[place] for place in places]
        if form.kind == SPARSE:
            name = f"{weight.name}_shape"
            rank = x.rank if op == "sparse_conv" else 3
            shape = int_list(op, attributes, name, rank, None, 1)
            if shape is None:
                raise OperatorError(op, name, "missing", "give the shape of the weight that the rows stand for")
            shapes[name] = shape
            _check_rows(op, names, parts, weight.matrix(shape))
        else:
            shape = parts[0].shape
            _check_codes(op, names, parts)
        dense[weight.position] = Tensor("float32", shape)
    if attributes.get("layout"):
        raise OperatorError(op, "layout", attributes["layout"], "give steps first (layout 0); kernels take no other")
    own = {name: value for name, value in attributes.items() if name not in shapes}
    try:
        problem = form.base.canonical(dense, own, outputs)
    except OperatorError as error:
        raise OperatorError(op, error.argument, error.given, error.wanted) from None
    kept: list[Tensor | None] = []
    weights = {weight.position for weight in form.weights}
    for position, tensor in enumerate(problem.inputs):
        kept += [given[place] for place in form.places[position]] if position in weights else [tensor]
    return Problem(op, tuple(kept), problem.outputs, (*problem.attributes, *shapes.items()))


def _check_rows(op: str, names: Sequence[str], parts: Sequence[Tensor], matrix: tuple[int, int]) -> None:
    values, columns, offsets = parts
    if values.rank != 1 or max(values.size, *matrix) >= MOST:
        raise OperatorError(op, f"the shape of {names[0]}", list(values.shape), "it has to be one axis below 2^31 - 1")
    for name, tensor, dtype, shape in (
        (names[0], values, "float32", values.shape),
        (names[1], columns, "int32", values.shape),
        (names[2], offsets, "int32", (matrix[0] + 1,)),
    ):
        conv.check_dtype(op, name, tensor, (dtype,))
        if tensor.shape != shape:
            raise OperatorError(op, f"the shape of {name}", list(tensor.shape), f"it has to be {list(shape)}")


def _check_codes(op: str, names: Sequence[str], parts: Sequence[Tensor]) -> None:
    codes, codebook = parts
    conv.check_dtype(op, names[0], codes, ("uint8",))
    conv.check_dtype(op, names[1], codebook, ("float32",))
    if codebook.rank != 1 or not 1 <= codebook.size <= MOST_ENTRIES:
        raise OperatorError(
            op,
            f"the shape of {names[1]}",
            list(codebook.shape),
            f"it has to be one axis of 1 to {MOST_ENTRIES} entries",
        )


def rows(problem: Problem, weight: Weight, parameters: Mapping[int, np.ndarray]) -> Rows:
    """A weight by compressed rows, checked: raises OperatorError for columns outside it and offsets that are none."""
    form = FORMS[problem.op]
    places = form.places[weight.position]
    parts = Rows(*(np.asarray(parameters[place]) for place in places))
    names = [form.names[place] for place in places]
    return checked_rows(problem.op, names[1:], parts, weight.matrix(weight_shape(problem, weight))[1])


class Shared(NamedTuple):
    """A weight by a codebook: codes (uint8, the weight's shape) and codebook (float32)."""

    codes: np.ndarray
    codebook: np.ndarray


def shared(problem: Problem, weight: Weight, parameters: Mapping[int, np.ndarray]) -> Shared:
    """A weight by its codebook, checked: raises OperatorError for codes without an entry."""
    form = FORMS[problem.op]
    places = form.places[weight.position]
    codes, codebook = (np.asarray(parameters[place]) for place in places)
    largest = int(codes.max(initial=0))
    if largest >= codebook.size:
        name = form.names[places[0]]
        raise OperatorError(problem.op, name, f"up to {largest}", f"the codebook has {codebook.size} entries")
    return Shared(codes, codebook)


def decoded(problem: Problem, parameters: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The base operator's parameters by its own positions: the weights dense, the others as they are.

    Raises OperatorError for columns, offsets and codes that do not fit.
    """
    form = FORMS[problem.op]
    dense = {
        position: np.asarray(parameters[form.place(position)])
        for position in form.base.parameters
        if form.place(position) in parameters
    }
    for weight in form.weights:
        if form.kind == SPARSE:
            dense[weight.position] = dense_of(rows(problem, weight, parameters), weight_shape(problem, weight), weight)
        else:
            codes, codebook = shared(problem, weight, parameters)
            dense[weight.position] = codebook[codes]
    return dense


def dense_of(stored: Rows, shape: Sequence[int], weight: Weight) -> np.ndarray:
    """The weight that compressed rows stand for."""
    dense = np.zeros(weight.matrix(shape), np.float32)
    np.add.at(dense, (np.repeat(np.arange(len(dense)), np.diff(stored.offsets)), stored.columns), stored.values)
    return dense.reshape(shape)


def rows_of(dense: np.ndarray, row_axes: int = 1) -> Rows:
    """A weight's values other than zero by compressed rows.

    dense: float32. row_axes: how many of its axes count rows: 1 for a convolution's weight (M, C / groups, kernel), 2 for
    a recurrent layer's (D, G H, I).
    """
    matrix = np.ascontiguousarray(dense, np.float32).reshape(prod(dense.shape[:row_axes]), -1)
    places = matrix != 0  # NaN is not 0
    columns = np.nonzero(places)[1].astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(places.sum(axis=1))]).astype(np.int32)
    return Rows(matrix[places], columns, offsets)


def base_inputs(problem: Problem, inputs: Sequence[Any]) -> list[Any]:
    """The base's inputs but its weights, which are None, by its own positions."""
    form = FORMS[problem.op]
    weights = {weight.position for weight in form.weights}
    count = len(base(problem).inputs)
    return [
        inputs[places[0]] if position not in weights and places[0] < len(inputs) else None
        for position, places in enumerate(form.places[:count])
    ]


def _validate(problem: Problem, inputs: Sequence[Any]) -> None:
    validate = FORMS[problem.op].base.validate
    if validate is not None:
        validate(base(problem), base_inputs(problem, inputs))


def work(problem: Problem) -> Work:
    """The base's multiply-accumulates; with compressed rows, those of the values that are stored."""
    form, dense = FORMS[problem.op], base(problem)
    macs = form.base.work(dense).macs
    if form.kind == SPARSE:
        whole = sum(prod(weight_shape(problem, weight)) for weight in form.weights)
        macs = macs // whole * sum(problem.input(form.place(weight.position)).size for weight in form.weights)
    return Work(macs, tensor_bytes(problem))


def tolerance(problem: Problem) -> Tolerance:
    """The base's."""
    return FORMS[problem.op].base.tolerance(base(problem))


def sparse_fills(problem: Problem, weight: Weight) -> dict[int, Fill]:
    """Fills of columns and offsets that belong together: distinct places, rising in each row."""
    form = FORMS[problem.op]
    values, columns, offsets = form.places[weight.position]
    matrix = weight.matrix(weight_shape(problem, weight))
    return {
        columns: Fill("row_columns", *matrix),
        offsets: Fill("row_offsets", problem.input(values).size, matrix[1]),
    }


CONV_CASES = {
    "3x3_ragged": 0.3, "3x3_wide": 0.1, "3x3_stride2": 0.3, "3x3_dilated": 0.5, "pads_beyond_kernel": 0.6,
    "same_upper": 0.0, "3x3_valid": 1.0, "1x1": 0.2, "1x1_large": 0.1, "1x1_stride2": 0.3, "1x1_padded": 0.5,
    "7x7_stride2": 0.2, "depthwise": 0.6, "grouped": 0.3, "grouped_large": 0.2, "one_pixel": 0.4, "batch_8": 0.25,
    "empty_batch": 0.5, "1d": 0.5, "1d_dilated": 0.02, "3d_stride_dilation": 0.3, "bias_residual_relu": 0.2,
    "activation_swish": 0.4,
    "special_values": 0.3, "non_contiguous": 0.5,
}  # fmt: skip
RECURRENT_CASES = {
    "forward": 0.5, "no_bias": 1.0, "hidden_33": 0.1, "batch_9": 0.2, "bidirectional": 0.3, "initial_state": 0.4,
    "lengths_zero_reverse": 0.5, "clip": 0.0, "empty_batch": 0.5, "no_steps": 0.5, "nan": 0.3, "activation_relu": 0.5,
    "linear_before_reset_bidirectional": 0.2, "peepholes_bidirectional": 0.2,
}  # fmt: skip
"""Of the base operators' cases those that are tried here, with the density of sparse weights."""

BOOKS = (16, 256, 5, 1)
"""Entries of the codebooks, case after case."""


def _cases(form: Form) -> list[Case]:
    chosen = CONV_CASES if form.base.op == "conv" else RECURRENT_CASES
    bases = {case.name: case for case in form.base.cases()}
    if form.base.op == "conv":
        for name, x, w, density in (
            ("one_output", "1x24x9x11", "1x24x3x3", 0.2),
            ("one_row", "1x70x1", "45x70x1", 0.1),
            ("many_rows", "37x70x1", "45x70x1", 0.1),
        ):
            tensors = tuple(Tensor.parse(f"float32[{shape}]") for shape in (x, w, w.split("x")[0]))
            bases[name] = Case("conv", name, tensors)
            chosen = {**chosen, name: density}
    cases: list[Case] = []
    for name, density in chosen.items():
        if name in bases:
            cases.append(_compressed(form, bases[name], density, BOOKS[len(cases) % len(BOOKS)]))
    if form.kind == SPARSE:
        # any columns in any order, some of them twice
        unordered = cases[0]
        fills = {place: Fill("integers", 0, fill.high - 1) if fill.kind == "row_columns" else fill
                 for place, fill in unordered.fills.items()}  # fmt: skip
        cases.append(replace(unordered, name="columns_in_any_order", fills=fills))
    return cases


def _compressed(form: Form, case: Case, density: float, entries: int) -> Case:
    tensors: list[Tensor | None] = []
    fills: dict[int, Fill] = {}
    shapes = {}
    parts = {weight.position: weight for weight in form.weights}
    for position, tensor in enumerate(case.inputs):
        places, fill = form.places[position], case.fills.get(position)
        weight = parts.get(position)
        if weight is None or tensor is None:
            tensors.append(tensor)
            fills |= {} if fill is None else {places[0]: fill}
        elif form.kind == SPARSE:
            matrix = weight.matrix(tensor.shape)
            count = round(density * prod(matrix))
            tensors += [Tensor("float32", (count,)), Tensor("int32", (count,)), Tensor("int32", (matrix[0] + 1,))]
            fills[places[0]] = fill or Fill()
            fills[places[1]] = Fill("row_columns", *matrix)
            fills[places[2]] = Fill("row_offsets", count, matrix[1])
            shapes[f"{weight.name}_shape"] = tensor.shape
        else:
            tensors += [Tensor("uint8", tensor.shape), Tensor("float32", (entries,))]
            fills[places[0]] = Fill("integers", 0, entries - 1)
            fills[places[1]] = replace(fill, contiguous=True) if fill is not None else Fill()
    return Case(form.op, case.name, tuple(tensors), {**case.attributes, **shapes}, fills, case.outputs)


def _spec(form: Form) -> OperatorSpec:
    canonical: Callable[[Sequence[Tensor | None], Attributes, int], Problem] = partial(_canonical, form.op)
    return OperatorSpec(
        form.op, form.names, canonical, work, tolerance, partial(_cases, form), parameters=form.parameters,
        validate=None if form.base.validate is None else _validate,
    )  # fmt: skip


SPECS = tuple(_spec(form) for form in FORMS.values())
