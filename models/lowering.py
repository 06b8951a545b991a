"""Host operators as forms of a sequence (``quatrefoil.sequences``): what a backend can run without Python in between.

Each function of the table looks at a node whose inputs' types are known, and maybe some of their values, and drafts the
steps that compute it; it gives False where it has no form, and the node runs as it did before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from quatrefoil import dispatch, ops
from quatrefoil.models.host.normalization import folded
from quatrefoil.models.host.shapes import border, tensor_dtype
from quatrefoil.models.host.table import Array, Node, axes_of, axis_of, ints
from quatrefoil.models.passes.activations import PARAMETERS
from quatrefoil.models.sparsity import stored_form
from quatrefoil.numerics import Fixed
from quatrefoil.ops import conv
from quatrefoil.ops.activations import activation
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array as BackendArray
from quatrefoil.sequences import (
    Affine,
    ByteForm,
    ByteScale,
    ByteTable,
    Concat,
    Dequantize,
    Elementwise,
    FixedElementwise,
    FixedForm,
    FixedSoftmax,
    Form,
    LocalResponse,
    Operation,
    Piece,
    Quantize,
    Rearrangement,
    RoundTrip,
    Sequencer,
    Softmax,
    Step,
    View,
)


class Draft:
    """A sequence in the making: values by number, their types, those that are known, and the steps so far."""

    def __init__(self, backend: str, sequencer: Sequencer | None, first: int) -> None:
        """first: the first number to give."""
        self.backend = backend
        self.sequencer = sequencer
        self.types: dict[int, Tensor] = {}
        self.known: dict[int, np.ndarray] = {}
        self.steps: list[Step] = []
        self.count = first
        self.node = ""
        """The node that is drafted."""
        self.blocks: set[int] = set()
        """Values that may keep their channels in blocks: what kernels for blocks made, and what was made of that."""
        self.kernels: list[str] = []
        """The kernels of its operations."""
        self.notes: list[str] = []
        """What there is to say of how its operations were chosen."""
        self.formats: dict[int, str] = {}
        """Fixed-point formats of values that cannot but lie in them, by their text."""

    def value(self, tensor: Tensor | None = None) -> int:
        """A new value's number."""
        self.count += 1
        if tensor is not None:
            self.types[self.count - 1] = tensor
        return self.count - 1

    def constant(self, array: np.ndarray) -> int:
        number = self.value(Tensor.of(array))
        self.known[number] = array
        return number

    def add(self, form: Form, inputs: Sequence[int | None], shape: Sequence[int], output: int | None = None) -> int:
        """Drafts a step that gives ``output``, or a new value, of the first input's dtype or the form's own.

        Raises NotInSequence.
        """
        [first, *_] = inputs
        assert first is not None
        dtype = form.dtype if isinstance(form, FixedForm | ByteForm) else self.types[first].dtype
        tensor = Tensor(dtype, tuple(map(int, shape)))
        result = self.value() if output is None else output
        self.types[result] = tensor
        self._keep_format(form, inputs, result)
        self._append(Step(form, tuple(inputs), (result,), self.node))
        if isinstance(form, (Elementwise, Affine, Concat, ByteTable, RoundTrip)) and self.blocks.intersection(inputs):
            self.blocks.add(result)
        return result

    def operation(
        self,
        problem: Problem,
        parameters: Mapping[int, BackendArray],
        inputs: Sequence[int | None],
        outputs: Sequence[int] = (),
    ) -> tuple[int, dispatch.Selection]:
        """Drafts an operator of the house on the kernel that dispatch chooses; gives its first output, too."""
        # A depthwise convolution gains nothing by blocks that only it would need; of bytes all like their channels last.
        dense = problem.op == "conv" and conv.geometry(problem).in_per_group > 1
        dense = dense or problem.op in ("conv_integer", "qlinear_conv")
        selection = dispatch.select(problem, self.backend, blocked=dense or inputs[0] in self.blocks)
        if not selection.runnable:
            raise NotInSequence
        self.kernels.append(selection.chosen.id)
        results = (*outputs, *(self.value() for _ in problem.outputs[len(outputs) :]))
        self.types.update(zip(results, problem.outputs))
        self._append(Step(Operation(problem, selection.chosen, parameters), tuple(inputs), results, self.node))
        if selection.chosen.blocked is not None:
            self.blocks.add(results[0])
        if problem.op in ops.FAMILIES["fixed"]:
            self.formats.update(dict.fromkeys(results, problem.string("y_format")))
        return results[0], selection

    def _keep_format(self, form: Form, inputs: Sequence[int | None], result: int) -> None:
        if isinstance(form, FixedElementwise | FixedSoftmax):
            made = form.y if isinstance(form, FixedElementwise) else form.cast[1]
            if made is not None:
                self.formats[result] = made.text
        elif isinstance(form, View | Concat | Rearrangement):
            # what fills the gaps of a rearrangement is 0, which every format has
            moved = inputs[:1] if isinstance(form, Rearrangement) else inputs
            found = {self.formats.get(value) for value in moved if value is not None}
            if len(found) == 1 and (text := found.pop()) is not None:
                self.formats[result] = text

    def held(self, value: int | None, form: Fixed) -> int | None:
        """The value, or one that is checked to hold integers of the format when it runs, where nothing else says so and
        the sequencer has such a step; one that has none relies on what makes values in a graph to cast them."""
        if value is None or self.formats.get(value) == form.text:
            return value
        check = FixedElementwise("check", form.fraction, form, low=form.low, high=form.high)
        try:
            return self.add(check, (value,), self.types[value].shape)
        except NotInSequence:
            return value

    def _append(self, step: Step) -> None:
        if self.sequencer is None or not self.sequencer.takes(step, self.types):
            raise NotInSequence
        self.steps.append(step)


class NotInSequence(Exception):
    """A node, or inputs of these types, that a sequence has no form for."""


class Place:
    """A node as lowering sees it: ``node`` with its attributes, the numbers of its values."""

    def __init__(self, node: Node, draft: Draft, inputs: Sequence[int | None], outputs: Sequence[int]) -> None:
        self.node, self.draft, self.inputs, self.outputs = node, draft, inputs, outputs

    def type(self, position: int) -> Tensor:
        value = self.inputs[position]
        assert value is not None
        return self.draft.types[value]

    def known(self, position: int) -> np.ndarray:
        """The value of an input that has to be known. Raises NotInSequence where it is not."""
        value = self.inputs[position]
        if value is None or value not in self.draft.known:
            raise NotInSequence
        return self.draft.known[value]

    def has(self, position: int) -> bool:
        return position < len(self.inputs) and self.inputs[position] is not None

    def finish(self, form: Form, shape: Sequence[int], inputs: Sequence[int | None] | None = None) -> None:
        """The step that gives the node's first output."""
        self.draft.add(form, self.inputs if inputs is None else inputs, shape, self.outputs[0])


Lowering = Callable[[Place], None]

LOWERINGS: dict[str, Lowering] = {}


def _lowers(*kinds: str) -> Callable[[Lowering], Lowering]:
    def enter(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(kinds, function))
        return function

    return enter


ARITHMETIC = {
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Max": "maximum", "Min": "minimum",
    "Sum": "add", "PRelu": "prelu",
}  # fmt: skip


@_lowers(*ARITHMETIC)
def _arithmetic(place: Place) -> None:
    node, draft = place.node, place.draft
    if node.version < 7 and (node.get("broadcast", 0) or node.op == "PRelu"):
        raise NotInSequence
    result, *others = place.inputs
    assert result is not None
    if not others:
        place.finish(View(), place.type(0).shape)
    for position, other in enumerate(others, 1):
        assert other is not None
        shape = np.broadcast_shapes(draft.types[result].shape, draft.types[other].shape)
        output = place.outputs[0] if position == len(others) else None
        result = draft.add(Elementwise(ARITHMETIC[node.op]), (result, other), shape, output)


@_lowers("Sqrt", "Exp", "Abs")
def _function(place: Place) -> None:
    names = {"Sqrt": "square_root", "Exp": "exponential", "Abs": "magnitude"}
    place.finish(Elementwise(names[place.node.op]), place.type(0).shape)


@_lowers("Neg", "Reciprocal")
def _of_a_constant(place: Place) -> None:
    x = place.inputs[0]
    if place.node.op == "Neg":
        place.finish(Elementwise("multiply"), place.type(0).shape, (x, place.draft.constant(np.array(-1, np.float32))))
    else:
        place.finish(Elementwise("divide"), place.type(0).shape, (place.draft.constant(np.array(1, np.float32)), x))


@_lowers("Pow")
def _power(place: Place) -> None:
    exponent, x, shape = place.known(1), place.inputs[0], place.type(0).shape
    if exponent.size != 1 or exponent.ndim > len(shape):
        raise NotInSequence
    match float(exponent.reshape(-1)[0]):
        case 1.0:
            place.finish(View(), shape, (x,))
        case 2.0:
            place.finish(Elementwise("multiply"), shape, (x, x))
        case 0.5:
            place.finish(Elementwise("square_root"), shape, (x,))
        case _:
            raise NotInSequence


@_lowers(*PARAMETERS)
def _activation(place: Place) -> None:
    values = [float(place.node.get(name, default)) for name, default in PARAMETERS[place.node.op]]
    place.finish(Elementwise("copy", activation(place.node.op, *values)), place.type(0).shape)


@_lowers("Clip")
def _clip(place: Place) -> None:
    limits = [-math.inf, math.inf]
    if place.node.version < 11:
        limits = [float(place.node.get("min", -math.inf)), float(place.node.get("max", math.inf))]
    else:
        for position in (1, 2):
            if place.has(position):
                limits[position - 1] = float(place.known(position).reshape(()))
    if not limits[0] <= limits[1]:
        raise NotInSequence
    place.finish(Elementwise("copy", activation("Clip", *limits)), place.type(0).shape, place.inputs[:1])


@_lowers("BatchNormalization")
def _batch_normalization(place: Place) -> None:
    node, draft = place.node, place.draft
    training = node.get("training_mode", 0) or any(node.wants(position) for position in range(1, 5))
    if training or not node.get("spatial", 1) or place.type(0).rank < 2:
        raise NotInSequence
    factor, offset = folded([place.known(position) for position in range(1, 5)], float(node.get("epsilon", 1e-5)))
    if factor.dtype != np.float32:
        raise NotInSequence
    place.finish(Affine(), place.type(0).shape, (place.inputs[0], draft.constant(factor), draft.constant(offset)))


@_lowers("Concat")
def _concat(place: Place) -> None:
    shapes = [place.type(position).shape for position in range(len(place.inputs))]
    axis = axis_of(place.node.get("axis", 1), len(shapes[0]), place.node.op)
    if len({(len(s), s[:axis], s[axis + 1 :]) for s in shapes}) != 1:
        raise NotInSequence
    place.finish(Concat(axis), (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :]))


def strided(place: Place, compute: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
    """Any operator whose results NumPy gives as views of its first input: the views' strides say what to copy."""
    x = place.type(0)
    probe = np.empty(x.shape, x.numpy_dtype)
    values = [probe, *(place.known(at) if place.has(at) else None for at in range(1, len(place.inputs)))]
    for output, view in zip(place.outputs, compute(values)):
        _view(place, probe, view, output)


def _view(place: Place, probe: Array, view: Any, output: int) -> None:
    """Drafts what stands to the first input as a NumPy view stands to the probe."""
    draft = place.draft
    if not isinstance(view, np.ndarray) or view.dtype != probe.dtype:
        raise NotInSequence
    if view.size and not np.may_share_memory(view, probe):
        raise NotInSequence
    first = (view.ctypes.data - probe.ctypes.data) // probe.itemsize if view.size else 0
    if view.flags.c_contiguous:
        draft.add(View(first), place.inputs[:1], view.shape, output)
    else:
        strides = tuple(stride // probe.itemsize for stride in view.strides)
        piece = Piece(first, 0, view.shape, strides, _strides(view.shape))
        draft.add(Rearrangement((piece,)), place.inputs[:1], view.shape, output)


@_lowers("Gather")
def _gather(place: Place) -> None:
    """One index, which picks a view."""
    index, x = place.known(1), place.type(0)
    axis = axis_of(place.node.get("axis", 0), x.rank, place.node.op)
    if index.size != 1 or index.ndim > 1 or not -x.shape[axis] <= int(index.reshape(-1)[0]) < x.shape[axis]:
        raise NotInSequence
    at = int(index.reshape(-1)[0]) % x.shape[axis]
    probe = np.empty(x.shape, x.numpy_dtype)
    picked: Any = at if index.ndim == 0 else slice(at, at + 1)
    _view(place, probe, probe[(slice(None),) * axis + (picked, ...)], place.outputs[0])


STRIDED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose", "Slice", "Split")
"""The operators that ``strided`` takes."""


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@_lowers("Cast")
def _cast(place: Place) -> None:
    """To the type that it has already, or from integers to float32."""
    wanted, x = tensor_dtype(int(place.node.get("to"))), place.type(0)
    if wanted == np.float32 and x.dtype in ("uint8", "int8", "int32"):
        place.finish(Dequantize(), x.shape)
    elif wanted == x.numpy_dtype:
        place.finish(View(), x.shape)
    else:
        raise NotInSequence


def _scale_and_zero(place: Place, x: str, q: str | None) -> tuple[np.ndarray, int, str]:
    """The float32 scale of QuantizeLinear or DequantizeLinear, of one element or in the shape in which it broadcasts along the
    axis, its one zero point, and the type of the integers. x: the type of the real numbers; q: of the integers, if known."""
    node, scale = place.node, place.known(1)
    zero = place.known(2) if place.has(2) else np.zeros((), q or _made_dtype(place))
    if any(node.get(name, 0) for name in ("block_size", "precision")) or x != "float32" or scale.dtype != np.float32:
        raise NotInSequence
    if zero.size == 0 or (zero != zero.reshape(-1)[0]).any() or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise NotInSequence
    if scale.size > 1:
        rank = place.type(0).rank
        axis = axis_of(node.get("axis", 1), rank, node.op)
        if scale.ndim != 1 or scale.size != place.type(0).shape[axis]:
            raise NotInSequence
        scale = scale.reshape(-1, *(1,) * (rank - 1 - axis))
    return scale, int(zero.reshape(-1)[0]), zero.dtype.name


def _made_dtype(place: Place) -> np.dtype:
    """What QuantizeLinear makes without a zero point."""
    code = place.node.get("output_dtype", 0)
    return tensor_dtype(code) if code else np.dtype(np.uint8)


@_lowers("QuantizeLinear")
def _quantize(place: Place) -> None:
    """By one scale; x is divided by those of an axis beforehand, which is the same."""
    x, shape = place.inputs[0], place.type(0).shape
    scale, zero, dtype = _scale_and_zero(place, place.type(0).dtype, None)
    if dtype not in ("uint8", "int8"):
        raise NotInSequence
    if scale.size > 1:
        x = place.draft.add(Elementwise("divide"), (x, place.draft.constant(scale)), shape)
        scale = np.ones((), np.float32)
    place.finish(Quantize(ByteScale(float(scale.reshape(())), zero, dtype)), shape, (x,))


@_lowers("DequantizeLinear")
def _dequantize(place: Place) -> None:
    """By one scale, or multiplied by those of an axis afterwards, which is the same where there is no zero point."""
    code, x, shape = place.node.get("output_dtype", 0), place.type(0), place.type(0).shape
    scale, zero, _ = _scale_and_zero(place, tensor_dtype(code).name if code else "float32", x.dtype)
    if x.dtype not in ("uint8", "int8", "int32") or (zero and (x.dtype == "int32" or scale.size > 1)):
        raise NotInSequence
    if scale.size == 1:
        place.finish(Dequantize(float(scale.reshape(())), zero), shape, place.inputs[:1])
    else:
        real = place.draft.add(Dequantize(), place.inputs[:1], shape)
        place.finish(Elementwise("multiply"), shape, (real, place.draft.constant(scale)))


@_lowers("Pad")
def _pad(place: Place) -> None:
    """Each axis falls into runs of places that walk through x with one step; their products are the pieces."""
    node, x, mode = place.node, place.type(0), place.node.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise NotInSequence
    pads = ints(node.get("pads") if node.version < 11 else place.known(1))
    along = axes_of(ints(place.known(3)), x.rank, node.op) if place.has(3) else tuple(range(x.rank))
    if len(pads) != 2 * len(along) or min(pads, default=0) < 0 or 0 in x.shape:
        raise NotInSequence
    before, shape = [0] * x.rank, list(x.shape)
    for position, axis in enumerate(along):
        before[axis] = pads[position]
        shape[axis] += pads[position] + pads[position + len(along)]
    runs = []
    for axis, length in enumerate(x.shape):
        behind = shape[axis] - length - before[axis]
        if mode == "constant":
            runs.append([(before[axis], 0, length, 1)])
        else:
            runs.append(_runs(border(length, before[axis], behind, mode)))
    if math.prod(map(len, runs)) > 81:
        raise NotInSequence
    x_strides, y_strides = _strides(x.shape), _strides(shape)
    pieces = tuple(
        Piece(
            sum(run[1] * stride for run, stride in zip(box, x_strides)),
            sum(run[0] * stride for run, stride in zip(box, y_strides)),
            tuple(run[2] for run in box),
            tuple(run[3] * stride for run, stride in zip(box, x_strides)),
            y_strides,
        )
        for box in product(*runs)
    )
    inputs = [place.inputs[0]]
    if mode == "constant" and shape != list(x.shape):
        value = node.get("value", 0.0) if node.version < 11 else place.known(2) if place.has(2) else 0.0
        inputs.append(place.draft.constant(np.asarray(value, x.numpy_dtype).reshape(())))
    place.finish(Rearrangement(pieces), shape, inputs)


def _runs(places: Array) -> list[tuple[int, int, int, int]]:
    """Places of an axis as runs of one step: where each begins in y and in x, its length and its step."""
    found, start = [], 0
    while start < len(places):
        step = int(places[start + 1] - places[start]) if start + 1 < len(places) else 1
        end = start + 1
        while end < len(places) and places[end] - places[end - 1] == step:
            end += 1
        found.append((start, int(places[start]), end - start, step))
        start = end
    return found


@_lowers("Softmax", "LogSoftmax")
def _softmax(place: Place) -> None:
    node, x = place.node, place.type(0)
    axis, logarithm = node.get("axis", -1 if node.version >= 13 else 1), node.op == "LogSoftmax"
    if node.version >= 13:
        return place.finish(Softmax(axis_of(axis, x.rank, node.op), logarithm), x.shape)
    first = axis + x.rank if axis < 0 else axis
    if not 0 <= first <= x.rank:
        raise NotInSequence
    matrix = math.prod(x.shape[:first]), math.prod(x.shape[first:])
    flat = place.draft.add(View(), place.inputs, matrix)
    return place.finish(View(), x.shape, (place.draft.add(Softmax(1, logarithm), (flat,), matrix),))


@_lowers("LRN")
def _local_response(place: Place) -> None:
    node = place.node
    alpha, beta, bias = (float(node.get(name, value)) for name, value in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1)))
    if place.type(0).rank < 2:
        raise NotInSequence
    place.finish(LocalResponse(int(node.get("size")), alpha, beta, bias), place.type(0).shape)


def _linear(place: Place, weights: Array, bias: Array | None, shape: Sequence[int], output: int | None) -> int:
    """x @ weights.T + bias: a convolution of 1x1 whose images are the rows."""
    draft, inner = place.draft, weights.shape[1]
    rows = math.prod(shape[:-1])
    if place.type(0).size != rows * inner or place.type(0).dtype != "float32" or weights.dtype != np.float32:
        raise NotInSequence
    parameters = {1: np.ascontiguousarray(weights).reshape(*weights.shape, 1, 1)}
    if bias is not None:
        parameters[2] = np.ascontiguousarray(bias)
    image = draft.add(View(), place.inputs[:1], (rows, inner, 1, 1))
    types = [draft.types[image], *map(Tensor.of, parameters.values())]
    problem = ops.canonical("conv", types, {})
    stored, note = stored_form(problem, parameters, draft.backend)
    if note:
        draft.notes.append(note)
    if stored is None:
        result, _ = draft.operation(problem, parameters, (image, *(None for _ in parameters)))
    else:
        result, _ = draft.operation(stored.problem, stored.parameters, stored.inputs((image,)))
    return draft.add(View(), (result,), shape, output)


@_lowers("MatMul")
def _matmul(place: Place) -> None:
    x, weights = place.type(0), place.known(1)
    if x.rank < 2 or weights.ndim != 2 or x.shape[-1] != weights.shape[0]:
        raise NotInSequence
    _linear(place, weights.T, None, (*x.shape[:-1], weights.shape[1]), place.outputs[0])


def _of_rows(place: Place, op: str, weights: np.ndarray, parameters: Mapping[int, np.ndarray], at: int) -> None:
    """A product with constant weights (K, M) in integers: a convolution of one pixel whose images are the rows."""
    draft, x = place.draft, place.type(0)
    if x.rank < 2 or weights.ndim != 2 or x.shape[-1] != weights.shape[0] or 0 in weights.shape:
        raise NotInSequence
    given = {n: array.reshape(()) if array.size == 1 else array for n, array in parameters.items()}
    given[at] = np.ascontiguousarray(weights.T)[..., np.newaxis]
    image = draft.add(View(), place.inputs[:1], (math.prod(x.shape[:-1]), x.shape[-1], 1))
    types = [draft.types[image], *(Tensor.of(given[n]) for n in range(1, len(given) + 1))]
    result, _ = draft.operation(ops.canonical(op, types, {}), given, (image, *(None for _ in given)))
    draft.add(View(), (result,), (*x.shape[:-1], weights.shape[1]), place.outputs[0])


@_lowers("MatMulInteger")
def _matmul_integer(place: Place) -> None:
    weights = place.known(1)
    x_zero = place.known(2) if place.has(2) else np.zeros((), place.type(0).numpy_dtype)
    w_zero = place.known(3) if place.has(3) else np.zeros((), weights.dtype)
    if x_zero.size != 1:
        raise NotInSequence
    _of_rows(place, "conv_integer", weights, {conv.X_ZERO_POINT: x_zero, conv.W_ZERO_POINT: w_zero}, conv.W)


@_lowers("QLinearMatMul")
def _qlinear_matmul(place: Place) -> None:
    parameters = {position: place.known(position) for position in range(1, 8)}
    weights = parameters.pop(conv.Q_W)
    if any(
        parameters[position].size != 1 for position in (conv.Q_X_SCALE, conv.Q_X_ZERO, conv.Q_Y_SCALE, conv.Q_Y_ZERO)
    ):
        raise NotInSequence
    _of_rows(place, "qlinear_conv", weights, parameters, conv.Q_W)


@_lowers("Gemm")
def _gemm(place: Place) -> None:
    node, draft, x, weights = place.node, place.draft, place.type(0), place.known(1)
    alpha, beta = np.float32(node.get("alpha", 1.0)), np.float32(node.get("beta", 1.0))
    weights = weights if node.get("transB", 0) else weights.T
    if node.get("transA", 0) or x.rank != 2 or weights.ndim != 2 or x.shape[1] != weights.shape[1]:
        raise NotInSequence
    if alpha != 1:
        weights = weights * alpha
    shape = x.shape[0], weights.shape[0]
    if not place.has(2):
        _linear(place, weights, None, shape, place.outputs[0])
        return
    summand = place.known(2)
    if summand.dtype != np.float32 or summand.ndim > 2:
        raise NotInSequence
    if beta != 1:
        summand = summand * beta
    if summand.size == shape[1] and (summand.ndim < 2 or summand.shape[0] == 1):
        _linear(place, weights, summand.reshape(-1), shape, place.outputs[0])
    else:
        product = _linear(place, weights, None, shape, None)
        place.finish(Elementwise("add"), np.broadcast_shapes(shape, summand.shape), (product, draft.constant(summand)))


@_lowers("ReduceMean")
def _mean(place: Place) -> None:
    """Over the last axes, or over all: an average pool whose window is everything behind the other axes."""
    node, draft, x = place.node, place.draft, place.type(0)
    given = node.get("axes") if node.get("axes") is not None else place.known(1) if place.has(1) else ()
    axes = sorted(axes_of(ints(given), x.rank, node.op)) or list(range(x.rank))
    if axes != list(range(x.rank - len(axes), x.rank)) or node.get("noop_with_empty_axes", 0) or not x.size or not axes:
        raise NotInSequence
    kept = x.shape[: axes[0]]
    inner = math.prod(x.shape[axes[0] :])
    flat = draft.add(View(), place.inputs[:1], (1, math.prod(kept), inner))
    problem = ops.canonical("average_pool", [draft.types[flat]], {"kernel_shape": (inner,)})
    mean, _ = draft.operation(problem, {}, (flat,))
    place.finish(View(), (*kept, *(1 for _ in axes)) if node.get("keepdims", 1) else kept, (mean,))
