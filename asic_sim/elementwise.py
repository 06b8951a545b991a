"""What a model has between the operators of the house: dense layers on the array, element by element work and moves of
data on the vector unit. Their numbers come from the host; here they are timed, like everything else, from DRAM to DRAM.

Cycles of a lane for an element are listed below; a reduction takes one for each element that it reads. What is in no
list is not guessed: ``lower`` gives None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import ArrayPart, VectorPart, native, product_stage
from quatrefoil.problem import Tensor

FREE = (
    "Constant", "ConstantOfShape", "Dropout", "Flatten", "Identity", "Range", "Reshape", "Shape", "Size", "Squeeze",
    "Unsqueeze",
)  # fmt: skip
"""Other names for the same data, and what is known before the run."""

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

Types = Sequence[Tensor | None]


def lower(kind: str, inputs: Types, outputs: Types, design: Hardware) -> list[ArrayPart | VectorPart] | None:
    """The parts of an ONNX operator on a design; None where it is not modelled. The types of all inputs and outputs,
    None for those that are absent."""
    given = [tensor for tensor in inputs if tensor is not None]
    made = [tensor for tensor in outputs if tensor is not None]
    if kind in FREE:
        return []
    if not given or not made:
        return None
    if kind in DENSE:
        return _dense(given, made[0], design)
    function = design.vector_function_cycles
    if kind in REDUCTIONS:
        return _stream(given[0].size, given, made, 1)
    elements = sum(tensor.size for tensor in made)
    for kinds, cycles in ((SIMPLE, 1), (MOVES, 1), (TWICE, 2), (THRICE, 3), (FUNCTIONS, function)):
        if kind in kinds:
            return _stream(elements, given, made, cycles)
    return _stream(elements, given, made, 4 + function) if kind in NORMALISED else None


def _dense(given: Sequence[Tensor], made: Tensor, design: Hardware) -> list[ArrayPart | VectorPart]:
    """A product of matrices on the array, one after the other where there is a batch of them; a third input of Gemm is
    added by the vector unit on the way."""
    x, w = given[0], given[1]
    columns = made.shape[-1] if made.shape else 1
    batch = math.prod(w.shape[:-2]) if len(w.shape) > 2 else 1
    rows = made.size // max(batch * columns, 1)
    depth = w.size // max(batch * columns, 1)
    stage = product_stage(
        rows,
        depth,
        columns,
        groups=batch,
        activation_bytes=x.numpy_dtype.itemsize,
        weight_bytes=w.numpy_dtype.itemsize,
        output_bytes=made.numpy_dtype.itemsize,
        weights_kept=depth * columns * w.numpy_dtype.itemsize <= design.weight_sram_kib * 1024,
    )
    return [ArrayPart([([stage], 1)])]


def _stream(
    elements: int, given: Sequence[Tensor], made: Sequence[Tensor], lane_cycles: int
) -> list[ArrayPart | VectorPart]:
    """Everything in, everything out, ``lane_cycles`` for each of the elements between; bytes are rounded up to whole
    ones for an element."""
    if not elements:
        return []
    axis = native().Axis

    def bytes_each(tensors: Sequence[Tensor]) -> int:
        return math.ceil(sum(tensor.nbytes for tensor in tensors) / elements)

    stage = native().VectorStage(
        axes=[axis(elements, elements), axis(), axis(), axis()],
        input_bytes=bytes_each(given),
        output_bytes=bytes_each(made),
        lane_cycles=lane_cycles,
    )
    return [VectorPart(stage)]
