"""What a model has between the operators of the house: dense layers on the array, element by element work and moves of
data on the vector unit. Their numbers come from the host; here they are timed, like everything else, from DRAM to DRAM.

Cycles of a lane for an element are listed below; a reduction takes one for each element that it reads. What is in no
list is not guessed: ``lower`` gives None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import ArrayPart, Setting, VectorPart, native, product_stage
from quatrefoil.problem import Tensor

FREE = (
    "Constant", "ConstantOfShape", "Dropout", "Flatten", "Identity", "Range", "Reshape", "Shape", "Size", "Squeeze",
    "Unsqueeze",
)  # fmt: skip
"""Other names for the same data, and what is known before the run."""

SAME = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Those of them whose result is their first input."""

SIMPLE = (
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Equal", "Floor", "Greater", "GreaterOrEqual", "HardSigmoid",
    "LeakyRelu", "Less", "LessOrEqual", "Max", "Min", "Mul", "Neg", "Not", "Or", "PRelu", "Relu", "Round", "Sign",
    "Sub", "Sum", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
"""One cycle: a comparison, an addition or a multiplication."""

TWICE = ("BatchNormalization", "DequantizeLinear", "HardSwish")
THRICE = ("QuantizeLinear",)

FUNCTIONS = (
    "Div", "Elu", "Erf", "Exp", "Log", "Mish", "Pow", "Reciprocal", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt",
    "Tanh",
)  # fmt: skip
"""The design's ``vector_function_cycles``."""

NORMALISED = ("LogSoftmax", "Softmax")
"""The greatest is found and taken away, a function, the sum, a product: four cycles and a function."""

MOVES = (
    "ChannelShuffle", "Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Slice", "SpaceToDepth", "Split", "Tile",
    "Transpose",
)  # fmt: skip
"""One cycle: an element passes a lane."""

REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare",
)  # fmt: skip

DENSE = ("Gemm", "MatMul")

MODELLED = frozenset((*SIMPLE, *TWICE, *THRICE, *FUNCTIONS, *NORMALISED, *MOVES, *REDUCTIONS, *DENSE))
"""All that take time."""

Types = Sequence[Tensor | None]


def known(kind: str, inputs: Types, outputs: Types) -> bool:
    """Whether an ONNX operator is modelled. The types of all inputs and outputs, None for those that are absent."""
    complete = any(tensor is not None for tensor in inputs) and any(tensor is not None for tensor in outputs)
    return kind in FREE or (kind in MODELLED and complete)


def lower(kind: str, inputs: Types, outputs: Types, design: Hardware, setting: Setting) -> list[ArrayPart | VectorPart]:
    """The parts of an ONNX operator that is ``known`` on a design. Raises FormatError where the array does not multiply
    its operands."""
    given = [(place, tensor) for place, tensor in enumerate(inputs) if tensor is not None]
    made = [(place, tensor) for place, tensor in enumerate(outputs) if tensor is not None]
    if kind in FREE:
        return []
    if kind in DENSE:
        return _dense(given, made[0][1], design, setting)
    function = design.vector_function_cycles
    if kind in REDUCTIONS:
        return _stream(given[0][1].size, given, made, 1, setting)
    elements = sum(tensor.size for _, tensor in made)
    cycles = next(cycles for kinds, cycles in (
        (SIMPLE, 1), (MOVES, 1), (TWICE, 2), (THRICE, 3), (FUNCTIONS, function), (NORMALISED, 4 + function)
    ) if kind in kinds)  # fmt: skip
    return _stream(elements, given, made, cycles, setting)


Placed = Sequence[tuple[int, Tensor]]
"""Tensors with their positions."""


def _dense(given: Placed, made: Tensor, design: Hardware, setting: Setting) -> list[ArrayPart | VectorPart]:
    """A product of matrices on the array, one after the other where there is a batch of them; a third input of Gemm is
    added by the vector unit on the way."""
    w = given[1][1]
    figures = setting.operand_figures(design)
    columns = made.shape[-1] if made.shape else 1
    batch = math.prod(w.shape[:-2]) if len(w.shape) > 2 else 1
    rows = made.size // max(batch * columns, 1)
    depth = w.size // max(batch * columns, 1)
    stage = product_stage(
        rows,
        depth,
        columns,
        groups=batch,
        output_bytes=setting.written(made, 0),
        lane_cycles=1 + setting.rounding_cycles(),
        weights_kept=depth * columns * figures["weight_bytes"] <= design.weight_sram_kib * 1024,
        activations_here=given[0][0] in setting.kept.here,
        kept_bytes=setting.staying(made, 0),
        **figures,
    )
    return [ArrayPart([([stage], 1)])]


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
