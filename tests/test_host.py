"""Operators on the host: NumPy's fast path against onnxruntime, in the forms that operators had over the years."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from quatrefoil.errors import OperatorError
from quatrefoil.models import host

RNG = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def longs(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = floats(2, 3, 4, 5)
LARGE = floats(70, 3, 29, 31)  # more elements than are computed at a time, and no whole number of blocks
FLAT = floats(3, 4)
WHOLE = RNG.integers(-20, 20, (3, 4)).astype(np.int32)
DIVISOR = np.array([[3, -3, 7, -7]] * 3, np.int32)
BYTES = RNG.integers(0, 256, (2, 3, 4)).astype(np.uint8)
SIGNED = RNG.integers(-128, 128, (2, 3, 4)).astype(np.int8)
STATISTICS = [floats(3), floats(3), floats(3), np.abs(floats(3)) + 0.1]


class Example(NamedTuple):
    """One node with its inputs. constants: positions that are known when the node is prepared."""

    op: str
    opset: int
    inputs: Sequence[np.ndarray | None]
    attributes: dict[str, Any] = {}  # noqa: RUF012
    outputs: int = 1
    tolerance: float = 2e-6

    def __str__(self) -> str:
        settings = " ".join(f"{name}={value}" for name, value in self.attributes.items())
        return (
            f"{self.op}-{self.opset} {settings} {' '.join(str(x.shape) if x is not None else '-' for x in self.inputs)}"
        )


ACTIVATIONS = [
    Example(op, opset, [X * 3])
    for op, opset in (
        ("Relu", 6), ("Relu", 14), ("LeakyRelu", 6), ("Sigmoid", 6), ("Tanh", 6), ("HardSigmoid", 6), ("Elu", 6),
        ("Selu", 6), ("Softplus", 1), ("Softsign", 1), ("HardSwish", 14), ("Celu", 12), ("Mish", 18), ("Erf", 9),
        ("Exp", 6), ("Floor", 6), ("Ceil", 6), ("Round", 11), ("Sign", 9), ("Neg", 6), ("Abs", 6), ("Sin", 7),
        ("Cos", 7), ("Atan", 7), ("Sinh", 9), ("Gelu", 20), ("Reciprocal", 6), ("IsNaN", 9), ("IsInf", 10),
        ("ThresholdedRelu", 10),
    )
]  # fmt: skip

EXAMPLES = [
    *ACTIVATIONS,
    Example("LeakyRelu", 16, [X], {"alpha": 0.3}),
    Example("LeakyRelu", 16, [X], {"alpha": -0.5}),
    Example("LeakyRelu", 16, [X], {"alpha": 1.5}),
    Example("HardSigmoid", 6, [X], {"alpha": 0.5, "beta": 0.6}),
    Example("Elu", 6, [X], {"alpha": 0.4}),
    Example("Gelu", 20, [X], {"approximate": "tanh"}),
    Example("IsInf", 10, [np.array([1, np.inf, -np.inf], np.float32)], {"detect_negative": 0}),
    Example("PRelu", 7, [X, floats(3, 1, 1)]),
    Example("PRelu", 16, [X, floats(5)]),
    Example("PRelu", 16, [LARGE, floats(3, 1, 1)]),
    Example("PRelu", 16, [LARGE, np.array([0.5, -0.5, 1], np.float32).reshape(3, 1, 1)]),
    Example("PRelu", 16, [LARGE, np.array([0.5, -0.5, 2], np.float32).reshape(3, 1, 1)]),
    Example("PRelu", 16, [LARGE, floats(70, 1, 1, 1)]),
    *(Example(op, 6, [LARGE]) for op in ("Sigmoid", "LeakyRelu", "HardSigmoid")),
    Example("Sigmoid", 6, [LARGE.transpose(0, 2, 3, 1)]),
    Example("Clip", 6, [X], {"min": -0.5, "max": 0.5}),
    Example("Clip", 6, [X], {"max": 0.5}),
    Example("Clip", 11, [X, np.float32(-0.5)[...], np.float32(0.5)[...]]),
    Example("Clip", 13, [X, None, np.array(0.25, np.float32)]),
    Example("Clip", 13, [WHOLE, np.array(-3, np.int32)]),
    Example("Add", 7, [X, floats(4, 1)]),
    Example("Sub", 14, [X, floats(1)]),
    Example("Div", 14, [WHOLE, DIVISOR]),
    Example("Div", 7, [X, floats(5)]),
    Example("Mod", 13, [WHOLE, DIVISOR]),
    Example("Mod", 13, [X, floats(5)], {"fmod": 1}),
    Example("Pow", 7, [np.abs(X), floats(5)]),
    *(Example("Pow", 15, [np.abs(X), np.array(p, np.float32)]) for p in (2, 0.5, 3, -1, 1, 1.7)),
    Example("Pow", 13, [WHOLE, np.array(2, np.int32)]),
    Example("Sqrt", 6, [np.abs(X)]),
    Example("Log", 6, [np.abs(X)]),
    Example("Max", 8, [X, floats(5), floats(4, 1)]),
    Example("Min", 13, [X, floats(5)]),
    Example("Sum", 8, [X, floats(5), floats(4, 1)]),
    Example("Mean", 8, [X, floats(5), floats(4, 1)]),
    Example("Where", 9, [X > 0, X, floats(5)]),
    Example("Equal", 11, [WHOLE, DIVISOR]),
    Example("GreaterOrEqual", 12, [X, floats(5)]),
    Example("And", 7, [X > 0, X > 1]),
    Example("Not", 1, [X > 0]),
    Example("Cast", 6, [X * 50], {"to": TensorProto.INT32}),
    Example("Cast", 13, [X], {"to": TensorProto.BOOL}),
    Example("Cast", 13, [X], {"to": TensorProto.FLOAT16}),
    Example("CastLike", 15, [X, WHOLE]),
    # shapes
    Example("Reshape", 5, [X, longs(0, -1, 5)]),
    Example("Reshape", 14, [X, longs(6, -1)]),
    Example("Flatten", 9, [X], {"axis": 2}),
    Example("Flatten", 13, [X], {"axis": -1}),
    Example("Squeeze", 1, [floats(1, 3, 1, 2)], {"axes": [0, 2]}),
    Example("Squeeze", 11, [floats(1, 3, 1, 2)], {"axes": [-2]}),
    Example("Squeeze", 13, [floats(1, 3, 1, 2), longs(-2)]),
    Example("Squeeze", 13, [floats(1, 3, 1, 2)]),
    Example("Unsqueeze", 1, [FLAT], {"axes": [0, 3]}),
    Example("Unsqueeze", 13, [FLAT, longs(-1, 0)]),
    Example("Transpose", 1, [X], {"perm": [0, 2, 3, 1]}),
    Example("Transpose", 13, [X]),
    Example("Concat", 4, [X, X], {"axis": 1}),
    Example("Concat", 13, [X, X], {"axis": -1}),
    Example("Split", 2, [X], {"axis": 3, "split": [2, 3]}, 2),
    Example("Split", 11, [X], {"axis": -2}, 2),
    Example("Split", 13, [X, longs(1, 4)], {"axis": 3}, 2),
    Example("Split", 18, [X], {"axis": 3, "num_outputs": 2}, 2),
    Example("Slice", 1, [X], {"axes": [1, 3], "starts": [1, -2], "ends": [1000, 5]}),
    Example("Slice", 1, [X], {"starts": [0, 1], "ends": [-1, 3]}),
    Example("Slice", 10, [X, longs(4, 0), longs(-(2**62), 3), longs(3, 2), longs(-2, 1)]),
    Example("Slice", 13, [X, longs(-1), longs(0), longs(2), longs(-1)]),
    Example("Slice", 13, [X, longs(3), longs(1)]),
    Example("Pad", 2, [X], {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 1.5}),
    Example("Pad", 2, [X], {"pads": [0, 0, 1, 2, 0, 0, 3, 1], "mode": "reflect"}),
    Example("Pad", 11, [X, longs(0, 0, 1, -2, 0, 0, 3, 1), np.array(2.5, np.float32)]),
    Example("Pad", 13, [X, longs(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "edge"}),
    Example("Pad", 18, [X, longs(1, 2, 0, 1), None, longs(3, -2)], {"mode": "reflect"}),
    Example("Pad", 19, [X, longs(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "wrap"}),
    Example("Pad", 19, [X, longs(0, 0, 5, 2, 0, 0, 3, 7)], {"mode": "edge"}),
    Example("Pad", 13, [X, longs(0, 0, 3, 4, 0, 0, 2, 1)],
            {"mode": "reflect"}),
    Example("Gather", 1, [X, longs(0, 2, -1)], {"axis": 2}),
    Example("Gather", 13, [X, np.array([[0, 1], [2, 2]])], {"axis": -1}),
    Example("GatherElements", 13, [FLAT, np.array([[0, -1, 2], [1, 1, 0]])], {"axis": 1}),
    Example("GatherND", 12, [X, np.array([[0, 1], [1, -1]])]),
    Example("ScatterElements", 13, [FLAT, np.array([[0, -1], [1, 2]]), floats(2, 2)], {"axis": 1}),
    Example("Scatter", 9, [FLAT, np.array([[0, 1], [1, 2]]), floats(2, 2)], {"axis": 0}),
    Example("ScatterND", 13, [FLAT, np.array([[0], [2]]), floats(2, 4)]),
    Example("Shape", 1, [X]),
    Example("Shape", 15, [X], {"start": 1, "end": -1}),
    Example("Size", 13, [X]),
    Example("Expand", 8, [floats(3, 1), longs(2, 1, 4)]),
    Example("Tile", 6, [FLAT, longs(2, 3)]),
    Example("NonZero", 9, [WHOLE]),
    Example("OneHot", 11, [longs(1, -1, 7), longs(4), np.array([-1, 2], np.float32)], {"axis": 0}),
    Example("ConstantOfShape", 9, [longs(2, 0, 3)]),
    Example("Range", 11, [np.array(3, np.int64), np.array(-8, np.int64), np.array(-3, np.int64)]),
    Example("Range", 11, [np.array(0.5, np.float32), np.array(3, np.float32), np.array(0.7, np.float32)]),
    Example("DepthToSpace", 1, [floats(1, 8, 2, 3)], {"blocksize": 2}),
    Example("DepthToSpace", 11, [floats(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    Example("SpaceToDepth", 13, [floats(1, 2, 4, 6)], {"blocksize": 2}),
    Example("Dropout", 7, [X], {"ratio": 0.3}, 1),
    Example("Identity", 14, [X]),
    # matrices
    Example("MatMul", 9, [floats(2, 3, 4), floats(4, 5)]),
    Example("MatMul", 13, [floats(4), floats(4, 5)]),
    Example("Gemm", 7, [FLAT, floats(2, 4), floats(3, 1)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Example("Gemm", 13, [FLAT.T.copy(), floats(4, 2)], {"transA": 1}),
    Example("MatMulInteger", 10, [BYTES, SIGNED[0].T.copy(), np.uint8(120)[...], np.int8(3)[...]]),
    Example("QLinearMatMul", 10, [BYTES, np.float32(0.02)[...], np.uint8(120)[...], BYTES[0].T.copy(),
                                  np.float32(0.03)[...], np.uint8(99)[...], np.float32(0.9)[...], np.uint8(110)[...]]),
    # reductions
    *(Example(f"Reduce{name}", 11, [np.abs(X)], {"axes": [1, -1], "keepdims": keep}) for keep in (0, 1)
      for name in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")),
    Example("ReduceSum", 13, [X, longs(-1, 0)]),
    Example("ReduceSum", 13, [X], {"noop_with_empty_axes": 1}),
    Example("ReduceMean", 18, [X, longs(2, 3)], {"keepdims": 0}),
    Example("ReduceMax", 18, [X]),
    Example("ArgMax", 1, [X], {"axis": 2}),
    Example("ArgMin", 13, [WHOLE % 3], {"axis": -1, "keepdims": 0}),
    Example("ArgMax", 13, [WHOLE % 3], {"axis": 1, "select_last_index": 1}),
    Example("TopK", 1, [X], {"axis": 3, "k": 2}, 2),
    Example("TopK", 11, [X, longs(3)], {"largest": 0, "axis": 1}, 2),
    Example("TopK", 11, [WHOLE % 3, longs(3)], {}, 2),
    Example("CumSum", 14, [X, np.array(-2, np.int64)], {"exclusive": 1, "reverse": 1}),
    *(Example(op, opset, [X], {"axis": axis}) for op in ("Softmax", "LogSoftmax", "Hardmax") for opset, axis in
      ((1, 1), (1, 2), (11, -1), (13, -1), (13, 1))),
    Example("Softmax", 11, [X]),
    *(Example(op, 13, [floats(60, 8, 3)], {"axis": axis}) for op in ("Softmax", "LogSoftmax") for axis in (-1, 1)),
    Example("Softmax", 13, [X]),
    Example("LpNormalization", 1, [X], {"axis": 1, "p": 1}),
    # normalisation
    Example("BatchNormalization", 7, [X, *STATISTICS], {"epsilon": 0.01}),
    Example("BatchNormalization", 15, [X, *STATISTICS]),
    Example("InstanceNormalization", 6, [X, floats(3), floats(3)]),
    Example("LayerNormalization", 17, [X, floats(4, 5), floats(4, 5)], {"axis": 2}),
    Example("LRN", 1, [floats(1, 7, 3, 3)], {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0}),
    Example("LRN", 13, [floats(1, 7, 3, 3)], {"size": 5}),
    # quantisation
    Example("QuantizeLinear", 10, [X * 40, np.float32(0.7)[...], np.uint8(128)[...]]),
    Example("QuantizeLinear", 13, [X * 40, np.array([0.5, 1, 2], np.float32), np.array([0, 3, -5], np.int8)]),
    Example("QuantizeLinear", 10, [np.arange(-4, 5).astype(np.float32) / 2, np.float32(1)[...]]),
    Example("DequantizeLinear", 10, [BYTES, np.float32(0.7)[...], np.uint8(128)[...]]),
    Example("DequantizeLinear", 13, [SIGNED, np.array([0.5, 1, 2], np.float32), np.array([0, 3, -5], np.int8)]),
    Example("DequantizeLinear", 13, [WHOLE * 2**24, np.float32(0.5)[...]], {"axis": 0}),
    Example("DynamicQuantizeLinear", 11, [X], {}, 3),
    # resizing
    Example("Upsample", 7, [X], {"scales": [1.0, 1.0, 2.0, 3.0]}),
    Example("Upsample", 9, [X, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    Example("Resize", 10, [X, np.array([1, 1, 0.6, 2.5], np.float32)]),
    Example("Resize", 10, [X, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    *(Example("Resize", opset, [X, np.zeros(0, np.float32) if opset == 11 else None, np.array(scales, np.float32)],
              {"mode": mode, "coordinate_transformation_mode": coordinates})
      for opset in (11, 18) for mode in ("nearest", "linear") for scales in ([1, 1, 2, 2], [1, 1, 0.6, 1.6])
      for coordinates in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
      # onnxruntime rounds the output's length before it aligns corners; ONNX's stored expectations do not
      if coordinates != "align_corners" or scales == [1, 1, 2, 2]),
    *(Example("Resize", 13, [X, None, None, longs(2, 3, 7, 3)], {"nearest_mode": rounding})
      for rounding in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")),
]  # fmt: skip


def node_of(example: Example) -> onnx.NodeProto:
    inputs = ["" if value is None else f"i{position}" for position, value in enumerate(example.inputs)]
    outputs = [f"o{position}" for position in range(example.outputs)]
    return helper.make_node(example.op, inputs, outputs, **example.attributes)


def by_onnxruntime(example: Example) -> list[np.ndarray]:
    node = node_of(example)
    given = {f"i{position}": value for position, value in enumerate(example.inputs) if value is not None}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", example.opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)


@pytest.mark.parametrize("known", [False, True], ids=["inputs", "constants"])
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_equals_onnxruntime(example: Example, known: bool) -> None:
    node = node_of(example)
    constants = {f"i{i}": value for i, value in enumerate(example.inputs) if i and value is not None} if known else {}
    operator = host.prepare(node, {"": example.opset}, constants)
    assert operator.name == "numpy"
    before = [None if value is None else value.copy() for value in example.inputs]
    results = operator.run(list(example.inputs))
    wanted = by_onnxruntime(example)
    assert len(results) == len(wanted)
    for result, want in zip(results, wanted):
        assert type(result) is np.ndarray
        assert (result.dtype, result.shape) == (want.dtype, want.shape)
        if want.dtype.kind == "f":
            scale = np.abs(want[np.isfinite(want)]).max(initial=0)
            np.testing.assert_allclose(result, want, rtol=example.tolerance, atol=example.tolerance * scale)
        else:
            np.testing.assert_array_equal(result, want)
    for value, kept in zip(example.inputs, before):
        if value is not None:
            np.testing.assert_array_equal(value, kept, err_msg="an input was written to")


SLOPE, PLANE, CHANNEL = floats(3), floats(3, 4), floats(2)
OLD_AND_NEW = [
    (Example("PRelu", 6, [X, SLOPE]), Example("PRelu", 7, [X, SLOPE.reshape(3, 1, 1)])),
    (Example("Add", 6, [X, X]), Example("Add", 7, [X, X])),
    (Example("Add", 6, [X, PLANE], {"broadcast": 1, "axis": 1}), Example("Add", 7, [X, PLANE.reshape(3, 4, 1)])),
    (Example("Mul", 6, [X, X[0, 0]], {"broadcast": 1}), Example("Mul", 7, [X, X[0, 0]])),
    (Example("Pow", 1, [X**2, PLANE], {"broadcast": 1, "axis": 1}), Example("Pow", 7, [X**2, PLANE.reshape(3, 4, 1)])),
    (Example("Gemm", 6, [FLAT, FLAT[:2], CHANNEL], {"broadcast": 1, "transB": 1}),
     Example("Gemm", 7, [FLAT, FLAT[:2], CHANNEL], {"transB": 1})),
    (Example("BatchNormalization", 6, [X, *STATISTICS], {"is_test": 1}),
     Example("BatchNormalization", 7, [X, *STATISTICS])),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW, ids=str)
def test_forms_before_operator_set_7(old: Example, new: Example) -> None:
    """onnxruntime knows no operator set before 7: the old form has to mean what the new one does."""
    operator = host.prepare(node_of(old), {"": old.opset}, {})
    assert operator.name == "numpy"
    [result] = operator.run(list(old.inputs))
    [wanted] = by_onnxruntime(new)
    np.testing.assert_allclose(result, wanted, rtol=2e-6, atol=2e-6)


def test_resize_aligns_corners_by_the_exact_length() -> None:
    """ONNX's stored expectation of resize_downsample_scales_linear_align_corners."""
    node = helper.make_node(
        "Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners"
    )
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 2, 4)
    [y] = host.prepare(node, {"": 19}, {}).run([x, None, np.array([1, 1, 0.6, 0.6], np.float32)])
    np.testing.assert_allclose(y, np.array([[[[1, 3.142857]]]], np.float32), rtol=1e-6)


def test_scalars_and_ranks_of_zero() -> None:
    node = helper.make_node("Sigmoid", ["x"], ["y"])
    [y] = host.prepare(node, {"": 13}, {}).run([np.float32(0)])
    assert type(y) is np.ndarray
    assert (y.dtype, y.shape, float(y)) == (np.float32, (), 0.5)


def test_nan_and_infinity_pass() -> None:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    for op, wanted in (
        ("Relu", [np.nan, np.inf, 0]),
        ("Sigmoid", [np.nan, 1, 0]),
        ("LeakyRelu", [np.nan, np.inf, -np.inf]),
    ):
        [y] = host.prepare(helper.make_node(op, ["x"], ["y"]), {"": 14}, {}).run([x])
        np.testing.assert_array_equal(y, np.array(wanted, np.float32))


@pytest.mark.parametrize("slope", [0.25, -0.25, 0, 1, 3])
def test_prelu_of_infinity_and_nan(slope: float) -> None:
    x, s = np.array([np.nan, np.inf, -np.inf, 2, -2], np.float32), np.array([slope], np.float32)
    [y] = host.prepare(helper.make_node("PRelu", ["x", "s"], ["y"]), {"": 16}, {"s": s}).run([x, s])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(y, np.where(x < 0, x * s, x))


def test_other_types_go_to_the_reference() -> None:
    from ml_dtypes import bfloat16

    node = helper.make_node("Add", ["a", "b"], ["c"])
    [c] = host.prepare(node, {"": 14}, {}).run([np.ones(3, bfloat16), np.ones(3, bfloat16)])
    assert c.dtype == bfloat16
    assert c.tolist() == [2, 2, 2]


def test_rare_operators_run_by_the_reference() -> None:
    operator = host.prepare(helper.make_node("Det", ["x"], ["y"]), {"": 22}, {})
    assert operator.name == "onnx.reference"
    [y] = operator.run([np.diag(np.array([2, 3], np.float32))])
    assert float(y) == 6


@pytest.mark.parametrize(
    ("node", "opsets", "wanted"),
    [
        (helper.make_node("Frobnicate", ["x"], ["y"]), {"": 20}, "Frobnicate.*unknown to ONNX"),
        (helper.make_node("Foo", ["x"], ["y"], domain="com.example"), {"": 20, "com.example": 1}, "'com.example'"),
        (helper.make_node("Foo", ["x"], ["y"], domain="com.example"), {"": 20}, "import its domain"),
        (helper.make_node("Relu", ["x"], ["y"]), {"": 4000}, "operator sets up to"),
        (helper.make_node("HardSwish", ["x"], ["y"]), {"": 8}, "does not exist in that operator set"),
        (helper.make_node("Upsample", ["x", "s"], ["y"]), {"": 13}, "removed in operator set 10"),
    ],
)
def test_what_nothing_runs_is_refused_by_name(node: onnx.NodeProto, opsets: dict[str, int], wanted: str) -> None:
    with pytest.raises(host.UnsupportedOperator, match=wanted):
        host.prepare(node, opsets, {})


def test_attributes_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(OperatorError, match="Slice: what its attributes say is"):
        host.prepare(helper.make_node("Slice", ["x"], ["y"], axes=[0]), {"": 9}, {})


@pytest.mark.parametrize(
    ("node", "inputs", "wanted"),
    [
        (helper.make_node("Add", ["a", "b"], ["c"]), [floats(2, 3), floats(4)], "float32"),
        (helper.make_node("Concat", ["a", "b"], ["c"], axis=3), [FLAT, FLAT], "axis is 3; it has to lie in -2 to 1"),
        (helper.make_node("Gemm", ["a", "b"], ["c"]), [floats(2, 3, 4), FLAT], "both have to be matrices"),
        (helper.make_node("Reshape", ["a", "b"], ["c"]), [FLAT, longs(5, 5)], "Reshape"),
        (helper.make_node("Gather", ["a", "b"], ["c"]), [FLAT, longs(9)], "Gather"),
        (helper.make_node("Slice", list("asext"), ["c"]), [FLAT, longs(0), longs(2), longs(0), longs(0)], "step of 0"),
        (helper.make_node("TopK", ["a", "k"], ["v", "i"]), [FLAT, longs(9)], "k is 9"),
        (helper.make_node("Split", ["a", "s"], ["c", "d"]), [FLAT, longs(1, 1)], "add up to the 3"),
        (helper.make_node("Pad", ["x", "p"], ["y"], mode="edge"), [floats(2, 0), longs(0, 1, 0, 1)], "Pad"),
        (helper.make_node("Pad", ["x", "p"], ["y"]), [FLAT, longs(1, 1)], "all beginnings and then all ends"),
        (helper.make_node("Det", ["x"], ["y"]), [floats(2, 3)], "Det"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused_by_name(node: onnx.NodeProto, inputs: list[Any], wanted: str) -> None:
    operator = host.prepare(node, {"": 17}, {})
    with pytest.raises(OperatorError, match=wanted):
        operator.run(inputs)
