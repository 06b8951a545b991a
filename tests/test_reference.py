"""The oracle against the expectations that ONNX stores with its node tests, through ops.canonical."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from quatrefoil import ops, reference
from quatrefoil.ops import pool
from quatrefoil.problem import Tensor

OPERATORS = {
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "ConvInteger": "conv_integer",
    "QLinearConv": "qlinear_conv",
    "MaxPool": "max_pool",
    "GlobalMaxPool": "max_pool",
    "AveragePool": "average_pool",
    "GlobalAveragePool": "average_pool",
    "LpPool": "lp_pool",
    "MaxUnpool": "max_unpool",
    "RNN": "rnn",
    "LSTM": "lstm",
    "GRU": "gru",
}

# Expectations that ONNX wrote down with few digits, and the relative error that this leaves.
STORED_DIGITS = {"test_averagepool_2d_ceil_last_window_starts_on_pad": 1e-3}


def stored_cases() -> list:
    found = []
    for case in load_model_tests(kind="node"):
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in OPERATORS and nodes[0].domain == "":
            found.append(pytest.param(case, id=case.name))
    return found


@pytest.mark.parametrize("case", stored_cases())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_oracle_meets_onnx_expectations(case) -> None:
    graph = case.model.graph
    node = graph.node[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for given, expected in case.data_sets:
        by_name = dict(zip((value.name for value in graph.input), map(np.asarray, given)))
        inputs = [by_name[name] if name else None for name in node.input]
        if node.op_type.startswith("Global"):
            attributes = pool.global_attributes(Tensor.of(inputs[0]), attributes)
        if node.op_type == "MaxUnpool" and len(inputs) == 3:
            attributes["output_shape"] = inputs.pop().tolist()
        wanted = len(node.output)
        tensors = [None if array is None else Tensor.of(array) for array in inputs]
        problem = ops.canonical(OPERATORS[node.op_type], tensors, attributes, wanted)
        results = reference.evaluate(problem, inputs[: len(problem.inputs)])
        present = [result for result, name in zip(results, node.output) if name]
        assert len(present) == len(expected)
        for result, want, tensor in zip(present, expected, problem.outputs):
            assert result.shape == want.shape
            if tensor.numpy_dtype.kind in "iu":
                np.testing.assert_array_equal(result, want)
            else:
                np.testing.assert_allclose(result, want, rtol=STORED_DIGITS.get(case.name, 1e-4), atol=1e-6)


def test_every_operator_is_checked() -> None:
    """ONNX has no fixed point: its oracle is held to float networks (test_fixed) and to hls4ml's C++ (test_fpga_bits); and no
    sparse layers, whose oracle is held to the dense layer's (test_sparse), nor compressed weights, whose oracle is the dense
    operators' own."""
    names = {OPERATORS[param.values[0].model.graph.node[0].op_type] for param in stored_cases()}
    assert names == {op for op, spec in ops.SPECS.items() if not spec.training} - {
        *ops.FAMILIES["fixed"],
        *ops.FAMILIES["sparse"],
        *ops.FAMILIES["compressed"],
    }
