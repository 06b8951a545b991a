"""Simulated quantisation kept in floats: the pass leaves the numbers alone, to the last bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quatrefoil.models import host
from quatrefoil.models.graph import Graph
from quatrefoil.models.importing import load_graph
from quatrefoil.models.quantization import fuse_quantize_dequantize

X = np.concatenate(
    [np.random.default_rng(3).standard_normal(500) * 9, np.arange(-40, 40) * 0.05, [1e30, -1e30, np.inf, -np.inf, -0.0]]
).astype(np.float32)


def chain(
    *nodes: tuple[str, str, str], zero: np.generic, back: float = 0.1, outputs: tuple[str, ...] = ("y",)
) -> Graph:
    """A graph over x of nodes (operator, input, output); quantisation with scale 0.1, back with ``back``."""
    parameters = {"QuantizeLinear": ["scale", "zero"], "DequantizeLinear": ["back", "zero"]}
    protos = [helper.make_node(op, [a, *parameters.get(op, [])], [b], f"{op}_{b}") for op, a, b in nodes]
    weights = {"scale": np.float32(0.1), "back": np.float32(back), "zero": zero}
    graph = helper.make_graph(
        protos,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    for value in graph.output:
        made = next(node for node in protos if node.output[0] == value.name)
        kind = helper.np_dtype_to_tensor_dtype(zero.dtype) if made.op_type == "QuantizeLinear" else TensorProto.FLOAT
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, ["n"]))
    return load_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def run(graph: Graph) -> list[np.ndarray]:
    values = {"x": X, **graph.constants}
    for node in graph.nodes:
        assert node.proto is not None
        operator = host.prepare(node.proto, dict(node.opsets), graph.constants)
        values.update(zip(node.outputs, operator.run([values[name] for name in node.inputs])))
    return [values[output.name] for output in graph.outputs]


PAIR = (("QuantizeLinear", "x", "q"), ("DequantizeLinear", "q", "y"))
RELU = (("Relu", "x", "r"), ("QuantizeLinear", "r", "q"), ("DequantizeLinear", "q", "y"))
ZEROS = [np.int8(0), np.int8(-128), np.int8(5), np.uint8(0), np.uint8(128), np.int16(300)]


@pytest.mark.parametrize("zero", ZEROS, ids=repr)
@pytest.mark.parametrize("nodes", [PAIR, RELU], ids=["pair", "relu"])
def test_the_pair_becomes_one_step_with_the_same_numbers(nodes: tuple, zero: np.generic) -> None:
    graph = chain(*nodes, zero=zero)
    fused = fuse_quantize_dequantize(graph)
    assert len(fused.nodes) == 1
    assert fused.nodes[0].title == "+".join(node[0] for node in nodes)
    [before], [after] = run(graph), run(fused)
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("nodes", "back", "outputs"),
    [
        (PAIR, 0.2, ("y",)),
        (PAIR, 0.1, ("y", "q")),
        ((*PAIR, ("DequantizeLinear", "q", "z")), 0.1, ("y", "z")),
    ],
    ids=["scales differ", "quantised value is an output", "two read the quantised value"],
)
def test_pairs_that_others_see_stay(nodes: tuple, back: float, outputs: tuple[str, ...]) -> None:
    graph = chain(*nodes, zero=np.int8(0), back=back, outputs=outputs)
    assert fuse_quantize_dequantize(graph).nodes == graph.nodes


def test_a_relu_that_another_reads_stays() -> None:
    graph = chain(*RELU, zero=np.int8(0), outputs=("y", "r"))
    fused = fuse_quantize_dequantize(graph)
    assert [node.title for node in fused.nodes] == ["Relu", "QuantizeLinear+DequantizeLinear"]
    for before, after in zip(run(graph), run(fused)):
        np.testing.assert_array_equal(after, before)
