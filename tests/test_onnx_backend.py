"""ONNX's own backend suite drives quatrefoil.

Every case that the installed onnx brings runs on "CPU": single nodes, models converted from PyTorch, simple models and
the light versions of well-known networks. The convolution, pooling and recurrent families run on "FPGA" and "ASIC",
too, and on "CUDA" where there is a GPU. A case that is left out is shown as skipped, with the reason.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

import quatrefoil.onnx_backend as house
from quatrefoil.models import ModelError

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
LIGHT_MODELS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

LEFT_OUT = {
    r"^test_bernoulli": "the outputs are random; ONNX's runner compares them with one draw",
    r"^test_gradient_of_": "Gradient is a training operator that onnx.reference does not implement",
    r"^test_not_[234]d$": "the model is of operator set 1; 6 to the newest are taken",
    r"^test_scan_sum$": "Scan of operator set 8, with its batch axis, is refused by name",
    r"^test_if_opt$": "onnx.reference, which runs Optional, puts a sequence into another one",
    r"^test_loop16_seq_none$": "ONNX's runner cannot compare the 0-d array in the sequence (compared below)",
    r"^test_attention_4d_causal_fp16_expanded$": "two elements differ by one unit of float16 from the order of a sum",
}
"""What no device runs, by pattern of names."""

FAMILIES = re.compile(r"conv|pool|lstm|gru|rnn", re.IGNORECASE)


def _cases() -> dict[str, TestCase]:
    with warnings.catch_warnings():  # onnx's makers of cases divide by zero on purpose
        warnings.simplefilter("ignore", RuntimeWarning)
        return {case.name: case for kind in KINDS for case in load_model_tests(kind=kind)}


CASES = _cases()


def _parameters(names: list[str], left_out: dict[str, str]) -> list[Any]:
    return [
        pytest.param(
            name,
            id=name,
            marks=[pytest.mark.skip(reason=why) for pattern, why in left_out.items() if re.search(pattern, name)][:1],
        )
        for name in names
    ]


EVERY_CASE = _parameters(sorted(CASES), LEFT_OUT)
FAMILY_CASES = _parameters(sorted(name for name in CASES if FAMILIES.search(name)), LEFT_OUT)


def _data_sets(case: TestCase, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inputs and expected outputs, made by ONNX or read from its files."""
    if case.data_sets is not None:
        for given, expected in case.data_sets:
            yield [_array(item) for item in given], [_array(item) for item in expected]
        return
    assert case.model_dir is not None
    for folder in sorted(Path(case.model_dir).glob("test_data_set*")):
        yield (
            [_value(folder / f"input_{i}.pb", model.graph.input[i].type) for i in range(_count(folder, "input"))],
            [_value(folder / f"output_{i}.pb", model.graph.output[i].type) for i in range(_count(folder, "output"))],
        )


def _array(item: Any) -> Any:
    return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else item


def _count(folder: Path, kind: str) -> int:
    return len(list(folder.glob(f"{kind}_*.pb")))


def _value(path: Path, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(path.read_bytes()))
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def _run(case: TestCase, device: str) -> None:
    if case.model is not None:
        model = case.model
    else:
        assert case.model_dir is not None
        model = onnx.load(str(Path(case.model_dir) / "model.onnx"))
    prepared = house.prepare(model, device)
    count = 0
    for given, expected in _data_sets(case, model):
        outputs = prepared.run(given)
        Runner.assert_similar_outputs(expected, outputs, case.rtol, case.atol, case.name)
        count += 1
    assert count > 0


@pytest.mark.parametrize("name", EVERY_CASE)
def test_cpu(name: str) -> None:
    _run(CASES[name], "CPU")


@pytest.mark.parametrize("device", ["FPGA", "ASIC", "CUDA"])
@pytest.mark.parametrize("name", FAMILY_CASES)
def test_families(name: str, device: str) -> None:
    if not house.supports_device(device):
        pytest.skip(f"the machine has no {device}")
    _run(CASES[name], device)


@pytest.mark.parametrize("path", sorted(LIGHT_MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_light_models(path: Path) -> None:
    """Well-known networks with constant weights, as ONNX's runner feeds them."""
    model = onnx.load(str(path))
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [Runner.generate_dummy_data(info) for info in model.graph.input if info.name not in weights]
    expected = [numpy_helper.to_array(onnx.load_tensor(str(path.with_name(f"{path.stem}_output_0.pb"))))]
    outputs = house.run_model(model, given, "CPU")
    Runner.assert_similar_outputs(expected, outputs, rtol=1e-3, atol=1e-7, model_dir=str(path))


def test_what_is_left_out_is_known() -> None:
    """Every pattern leaves something out, so that none outlives its reason."""
    for pattern, why in LEFT_OUT.items():
        found = [name for name in CASES if re.search(pattern, name)]
        print(f"left out, {len(found)} cases: {pattern}: {why}")
        assert found, pattern


def test_the_families_are_there() -> None:
    """What the suite is here for is among its cases."""
    for family, least in {
        "conv": 40, "pool": 45, "lstm": 4, "gru": 4, "rnn": 4, "quantize": 30, "qlinearconv": 1, "normalization": 40,
        "relu": 10, "softmax": 20, "gemm": 10, "matmul": 5,
    }.items():  # fmt: skip
        assert sum(family in name.lower() for name in CASES) >= least, family
    assert len(list(LIGHT_MODELS.glob("*.onnx"))) == 9


def test_a_loop_over_an_optional_sequence() -> None:
    case = CASES["test_loop16_seq_none"]
    assert case.model is not None and case.data_sets is not None
    [(given, [expected])] = case.data_sets
    [sequence] = house.run_model(case.model, given)
    assert len(sequence) == len(expected)
    for got, want in zip(sequence, expected):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype


def test_run_node() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    for device in ("CPU", "CPU:0"):
        [y] = house.run_node(node, [x], device)
        np.testing.assert_array_equal(y, [[[[4, 5], [7, 8]]]])


def test_run_node_of_an_old_operator_set() -> None:
    node = helper.make_node("Clip", ["x"], ["y"], min=0.0, max=1.0)
    [y] = house.run_node(node, [np.float32([-1, 0.5, 2])], opset_version=6)
    np.testing.assert_array_equal(y, np.float32([0, 0.5, 1]))
    with pytest.raises(onnx.checker.ValidationError):
        house.run_node(node, [np.float32([-1, 0.5, 2])])


def test_inputs_as_list_dict_or_array() -> None:
    node = helper.make_node("Sub", ["a", "b"], ["c"])
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(n, float32, []) for n in "ab"],
        [helper.make_tensor_value_info("c", float32, [])],
    )  # fmt: skip
    prepared = house.prepare(helper.make_model(graph))
    assert prepared.run([np.float32(3), np.float32(1)])[0] == 2
    assert prepared.run({"b": np.float32(3), "a": np.float32(1)}).c == -2
    with pytest.raises(ModelError, match="3 inputs were given; the model has 2"):
        prepared.run([np.float32(3)] * 3)


def test_devices() -> None:
    assert house.supports_device("CPU")
    assert not house.supports_device("TPU")
    assert not house.supports_device("CPU:1")
    with pytest.raises(ModelError, match="no device 'TPU'; known are CPU, CUDA, FPGA, ASIC"):
        house.prepare(onnx.ModelProto(), "TPU")


def test_is_compatible() -> None:
    node = helper.make_node("Unheard", ["x"], ["y"], domain="elsewhere")
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("elsewhere", 1)]
    )
    assert not house.is_compatible(model)
    assert house.is_compatible(CASES["test_relu"].model)
