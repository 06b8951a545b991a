"""What a model has between the operators of the house: dense layers on the array, element by element work and moves of
data on the vector unit. Their numbers come from the host; here they are timed, like everything else, from DRAM to DRAM.

Cycles of a lane for an element are listed below; a reduction takes them for each element that it reads. What is in no
list is not guessed: ``known`` says so. TopK, NonZero and NonMaxSuppression are in none, as their work depends on values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import (
    REQUANTISATION,
    ArrayPart,
    Setting,
    VectorPart,
    native,
    native_stored,
    product_stage,
)
from quatrefoil.problem import Tensor

FREE = (
    "Constant", "ConstantOfShape", "Dropout", "Flatten", "Identity", "Range", "Reshape", "Shape", "Size", "Squeeze",
    "Unsqueeze",
)  # fmt: skip
"""Other names for the same data, and what is known before the run."""

SAME = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Those of them whose result is their first input."""

SIMPLE = (
    "Abs", "Add", "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil",
    "Clip", "CumSum", "Equal", "Floor", "Greater", "GreaterOrEqual", "HardSigmoid", "IsInf", "IsNaN", "LeakyRelu",
    "Less", "LessOrEqual", "Max", "Min", "Mul", "Neg", "Not", "Or", "PRelu", "Relu", "Round", "Shrink", "Sign", "Sub",
    "Sum", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
"""One cycle: a comparison, an addition or a multiplication."""

TWICE = ("BatchNormalization", "DequantizeLinear", "HardSwish", "Hardmax", "Mean")
THRICE = ("QuantizeLinear",)
DYNAMIC = ("DynamicQuantizeLinear",)
"""Five: the least and the greatest are looked for first."""

FUNCTIONS = (
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Div", "Elu", "Erf", "Exp", "Log", "Mish",
    "Mod", "Pow", "Reciprocal", "Selu", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh",
)  # fmt: skip
"""The design's ``vector_function_cycles``."""

SWISH, GELU = ("Swish",), ("Gelu",)
"""A function and a product; a function, two products and an addition."""

NORMALISED = ("LogSoftmax", "Softmax")
"""The greatest is found and taken away, a function, the sum, a product: four cycles and a function."""

MOVES = (
    "ChannelShuffle", "Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "OneHot", "Pad",
    "ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose",
    "Trilu",
)  # fmt: skip
"""One cycle: an element passes a lane."""

REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
"""One cycle for each element that is read."""
EXPONENTS = ("ReduceLogSumExp",)
"""The greatest is found and taken away, a function, the sum."""

CYCLES: Mapping[str, Callable[[int], int]] = {
    kind: cycles
    for kinds, cycles in (
        ((*SIMPLE, *MOVES, *REDUCTIONS), lambda function: 1),
        (TWICE, lambda function: 2),
        (THRICE, lambda function: 3),
        (DYNAMIC, lambda function: 5),
        (FUNCTIONS, lambda function: function),
        (SWISH, lambda function: function + 1),
        ((*GELU, *EXPONENTS), lambda function: function + 3),
        (NORMALISED, lambda function: function + 4),
    )
    for kind in kinds
}
"""Of a lane for an element, by the cycles of a function."""

STATISTICS = {
    "GroupNormalization": 5,
    "InstanceNormalization": 5,
    "LayerNormalization": 5,
    "LpNormalization": 2,
    "MeanVarianceNormalization": 5,
    "RMSNormalization": 3,
}
"""Normalised by statistics of groups of elements: a cycle for the sum, two for the squares of what is left without the
mean, two for the scale and the shift (without a mean one for the squares, one or two for the scale); and for each group
a function, the root. A group that half of the activation memory does not hold comes from DRAM twice."""

RESIZED = ("Resize", "Upsample")
"""A cycle for each tap: one of the nearest, two along each axis that changes for linear, four for cubic."""
TAPS = {"nearest": 1, "linear": 2, "bilinear": 2, "cubic": 4}

LRN = "LRN"
"""A cycle for each channel of the window, one for the scale, a function, a product."""

DENSE = {"Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
"""Products on the array, and the position of their second matrix."""
EINSUM = "Einsum"
"""Of two operands, where it is such a product."""

Types = Sequence[Tensor | None]
Attributes = Mapping[str, Any]


def dense(kind: str) -> bool:
    """Whether an operator is a product on the array."""
    return kind in DENSE or kind == EINSUM


def known(kind: str, inputs: Types, outputs: Types, attributes: Attributes) -> bool:
    """Whether an ONNX operator is modelled. The types of all inputs and outputs, None for those that are absent."""
    if kind in FREE:
        return True
    if not any(tensor is not None for tensor in inputs) or not any(tensor is not None for tensor in outputs):
        return False
    if kind == EINSUM:
        return _contraction(inputs, attributes) is not None
    if kind in RESIZED:
        return attributes.get("mode", "nearest") in TAPS
    return kind in CYCLES or kind in STATISTICS or kind in DENSE or kind == LRN


def lower(
    kind: str, inputs: Types, outputs: Types, attributes: Attributes, design: Hardware, setting: Setting
) -> list[ArrayPart | VectorPart]:
    """The parts of an ONNX operator that is ``known`` on a design. Raises FormatError where the array does not multiply
    its operands."""
    given = [(place, tensor) for place, tensor in enumerate(inputs) if tensor is not None]
    made = [(place, tensor) for place, tensor in enumerate(outputs) if tensor is not None]
    if kind in FREE:
        return []
    if dense(kind):
        return _dense(kind, inputs, made[0][1], attributes, design, setting)
    function = design.vector_function_cycles
    elements = sum(tensor.size for _, tensor in made)
    x = given[0][1]
    if kind in REDUCTIONS or kind in EXPONENTS:
        return _stream(x.size, given, made, CYCLES[kind](function), setting)
    if kind in STATISTICS:
        return _normalise(kind, given, made, attributes, design, setting)
    if kind == LRN:
        return _stream(elements, given, made, int(attributes["size"]) + 2 + function, setting)
    if kind in RESIZED:
        changed = sum(before != after for before, after in zip(x.shape, made[0][1].shape))
        return _stream(elements, given, made, TAPS[attributes.get("mode", "nearest")] ** changed, setting)
    return _stream(elements, given, made, CYCLES[kind](function), setting)


Placed = Sequence[tuple[int, Tensor]]
"""Tensors with their positions."""


@dataclass(frozen=True, slots=True)
class _Product:
    """``batch`` products of rows x depth and depth x columns."""

    batch: int
    rows: int
    depth: int
    columns: int


def _contraction(inputs: Types, attributes: Attributes) -> _Product | None:
    """An einsum as such products; None where it is none: another number of operands, an index that one operand has twice
    or that is summed over in one operand alone, or an ellipsis."""
    operands, arrow, result = str(attributes.get("equation", "")).replace(" ", "").partition("->")
    names = operands.split(",")
    if not arrow or len(names) != 2 or "." in operands or len(inputs) != 2:
        return None
    sizes: dict[str, int] = {}
    for letters, tensor in zip(names, inputs):
        if tensor is None or len(set(letters)) != len(letters) or len(letters) != len(tensor.shape):
            return None
        sizes.update(zip(letters, tensor.shape))
    first, second = map(set, names)
    if (first ^ second) - set(result) or set(result) - (first | second):
        return None

    def size(letters: set[str]) -> int:
        return math.prod(sizes[letter] for letter in letters)

    shared = first & second
    return _Product(size(shared & set(result)), size(first - second), size(shared - set(result)), size(second - first))


def _matrices(w: Tensor | None, made: Tensor) -> _Product:
    """Of a MatMul or a Gemm."""
    assert w is not None
    columns = made.shape[-1] if made.shape else 1
    batch = math.prod(w.shape[:-2]) if len(w.shape) > 2 else 1
    return _Product(batch, made.size // max(batch * columns, 1), w.size // max(batch * columns, 1), columns)


def _dense(
    kind: str, inputs: Types, made: Tensor, attributes: Attributes, design: Hardware, setting: Setting
) -> list[ArrayPart | VectorPart]:
    """A product of matrices on the array, one after the other where there is a batch of them; a third input of Gemm is
    added by the vector unit on the way."""
    figures = setting.operand_figures(design)
    product = _contraction(inputs, attributes) if kind == EINSUM else _matrices(inputs[DENSE[kind]], made)
    assert product is not None
    place = DENSE.get(kind, 1)
    lying = setting.lying(
        design, place, (product.batch, product.depth, product.columns), lambda w: matrix_of(kind, w, attributes)
    )
    stage = product_stage(
        product.rows,
        product.depth,
        product.columns,
        groups=product.batch,
        output_bytes=setting.written(made, 0),
        lane_cycles=1 + (REQUANTISATION if kind == "QLinearMatMul" else setting.rounding_cycles()),
        weights_kept=lying.group_bytes <= design.weight_sram_kib * 1024,
        activations_here=0 in setting.kept.here,
        kept_bytes=setting.staying(made, 0),
        stored=native_stored(lying),
        **figures,
    )
    return [ArrayPart([([stage], 1)])]


def matrix_of(kind: str, w: np.ndarray, attributes: Attributes) -> np.ndarray:
    """The second operand of a MatMul or a Gemm as (batch, depth, columns)."""
    matrix = w.swapaxes(-1, -2) if kind == "Gemm" and attributes.get("transB") else w
    return matrix.reshape(-1, *matrix.shape[-2:])


def _normalise(
    kind: str, given: Placed, made: Placed, attributes: Attributes, design: Hardware, setting: Setting
) -> list[ArrayPart | VectorPart]:
    """Statistics of groups, then the elements."""
    x = given[0][1]
    if kind in ("LayerNormalization", "RMSNormalization"):
        axis = int(attributes.get("axis", -1)) % max(len(x.shape), 1)
        groups = math.prod(x.shape[:axis])
    elif kind == "LpNormalization":
        groups = x.size // max(x.shape[int(attributes.get("axis", -1))], 1)
    elif kind == "GroupNormalization":
        groups = x.shape[0] * int(attributes["num_groups"])
    else:
        groups = math.prod(x.shape[:2]) if kind == "InstanceNormalization" else x.shape[1]
    if not x.size:
        return []
    group_bytes = x.size // groups * setting.width(x)
    again = given[:1] if group_bytes > setting.activation_memory(design) // 2 else []
    elements = _stream(x.size, [*given, *again], made[:1], STATISTICS[kind], setting)
    return [*elements, *_stream(groups, [], [], design.vector_function_cycles, setting)]


def _stream(
    elements: int, given: Placed, made: Placed, lane_cycles: int, setting: Setting
) -> list[ArrayPart | VectorPart]:
    """Everything in, everything out, ``lane_cycles`` for each of the elements between; bytes are rounded up to whole
    ones for an element."""
    if not elements:
        return []
    axis = native().Axis
    stage = native().VectorStage(
        axes=[axis(elements, elements), axis(), axis(), axis()],
        lane_cycles=lane_cycles,
        **setting.traffic(given, made, elements),
    )
    return [VectorPart(stage)]
