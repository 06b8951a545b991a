"""Whole models on the simulator, and the energy and area of what it counts."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper

import quatrefoil as qf
from quatrefoil import asic_sim, ops
from quatrefoil.asic_sim import energy
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import gallery
from quatrefoil.models.simulation import ModelReport

CONV = "conv_integer uint8[1x64x56x56],int8[64x64x3x3] pads=1x1x1x1"


def single_node(kind: str, inputs: list[tuple[str, list[int]]], output: list[int], **attributes: object) -> bytes:
    node = helper.make_node(kind, [name for name, _ in inputs], ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs]
    graph = helper.make_graph([node], "one", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("name", gallery.NAMES)
@pytest.mark.parametrize("dataflow", ["weight", "output", "input"])
def test_a_model_is_timed_and_computed(name: str, dataflow: str) -> None:
    """The sums are its layers', and the numbers are the CPU's within float32's accuracy."""
    design = dataclasses.replace(asic_sim.load("edge"), dataflow=dataflow)
    model = qf.load(gallery.path(name))
    feeds = {value.name: np.random.default_rng(5).random((1, *value.shape[1:]), np.float32) for value in model.inputs}
    report = qf.simulate(model, design, feeds)
    assert isinstance(report, ModelReport)
    reports = [layer.report for layer in report.layers if layer.report is not None]
    assert report.cycles == sum(each.cycles for each in reports) > 0
    assert report.energy_pj == pytest.approx(sum(each.energy_pj for each in reports))
    assert report.outputs is not None
    for output, right in model.run(feeds, backend="cpu").items():
        np.testing.assert_allclose(report.outputs[output], right, rtol=1e-4, atol=1e-5)
    again = qf.simulate(gallery.path(name), design)
    assert isinstance(again, ModelReport)
    assert (again.cycles, again.outputs) == (report.cycles, None)


def test_a_problem_by_its_text() -> None:
    report = qf.simulate(CONV, "edge")
    assert report.cycles == asic_sim.simulate(ops.parse(CONV), "edge").cycles
    with pytest.raises(QuatrefoilError, match="a problem is timed by its types alone"):
        qf.simulate(CONV, "edge", np.zeros(1))


def test_elementwise_work_and_dense_layers_are_timed() -> None:
    """10,000 additions on 16 lanes, 4 + 4 bytes in and 4 out at 8 bytes a cycle."""
    report = qf.simulate(single_node("Add", [("a", [100, 100]), ("b", [100, 100])], [100, 100]), "edge")
    assert report.counters["vector_busy"] >= 10_000 // 16
    assert report.dram_bytes == 3 * 40_000
    assert report.cycles >= 3 * 40_000 / 8
    dense = qf.simulate(single_node("MatMul", [("a", [32, 64]), ("b", [64, 48])], [32, 48]), "edge")
    assert dense.macs == 32 * 64 * 48
    batched = qf.simulate(single_node("MatMul", [("a", [5, 32, 64]), ("b", [5, 64, 48])], [5, 32, 48]), "edge")
    assert batched.macs == 5 * dense.macs
    moved = qf.simulate(single_node("Flatten", [("a", [4, 5, 6])], [4, 30]), "edge")
    assert moved.cycles == 0


def test_what_is_not_modelled_is_named() -> None:
    model = single_node("Det", [("a", [4, 5, 5])], [4])
    with pytest.raises(QuatrefoilError, match=r"cannot time Det \(no cost is known for it\).*unsupported='host'"):
        qf.simulate(model, "edge")
    report = qf.simulate(model, "edge", unsupported="host")
    assert isinstance(report, ModelReport)
    assert [(layer.op, layer.report) for layer in report.layers] == [("Det", None)]
    with pytest.raises(QuatrefoilError, match="unsupported is 'skip'; write 'error' or 'host'"):
        qf.simulate(model, "edge", unsupported="skip")


def test_energies_are_the_tables() -> None:
    for name, (old, new) in energy.OPERATIONS.items():
        assert energy.operation_pj(name, 45) == pytest.approx(old)
        assert energy.operation_pj(name, 7) == pytest.approx(new)
    for kib, (old, new) in energy.MEMORIES.items():
        assert energy.memory_pj_per_byte(kib, 45) * 8 == pytest.approx(old)
        assert energy.memory_pj_per_byte(kib, 7) * 8 == pytest.approx(new)
    # between two points the figure lies between theirs, and a larger memory never costs less
    assert 20 < energy.memory_pj_per_byte(100, 45) * 8 < 100
    sizes = [energy.memory_pj_per_byte(kib, 22) for kib in (1, 8, 9, 32, 64, 1024, 4096, 24576)]
    assert sizes == sorted(sizes)


def test_energy_by_hand() -> None:
    """At 45 nm: an int8 multiplication and a 32-bit addition 0.3 pJ, twice that with a register each; 64 bits of DDR
    1300 to 2600 pJ."""
    design = dataclasses.replace(asic_sim.load("edge"), technology_nm=45.0, activation_sram_kib=32, weight_sram_kib=8)
    counters = dict.fromkeys(qf.simulate(CONV, design).counters, 0)
    counters |= {"macs": 1000, "weight_bytes": 80, "weight_reads": 160, "activation_reads": 16, "output_bytes": 8}
    found = energy.energy(design, True, counters)
    assert (found["array"].low, found["array"].high) == pytest.approx((300, 600))
    assert found["weight memory"].low == pytest.approx(240 * 10 / 8)
    assert found["activation memory"].low == pytest.approx(16 * 20 / 8)
    assert (found["DRAM"].low, found["DRAM"].high) == pytest.approx((11 * 1300, 11 * 2600))
    assert energy.total(found).low == pytest.approx(sum(band.low for band in found.values()))


def test_area_by_hand() -> None:
    """An int8 multiplier and a 32-bit adder of 419 square micrometres at 45 nm; a quarter of it at half the size."""
    design = dataclasses.replace(asic_sim.load("edge"), technology_nm=45.0)
    area = energy.area_mm2(design)
    assert area["array"].low == pytest.approx(256 * 419e-6)
    assert area["activation memory"].high == pytest.approx(128 * 1024 * 8 * 0.346e-6 / 0.4)
    half = energy.area_mm2(dataclasses.replace(design, technology_nm=22.5))
    assert half["array"].low == pytest.approx(area["array"].low / 4)


def test_outputs_that_rest_read_each_operand_once_a_pass() -> None:
    """Reads on the chip are what the dataflows differ in: weights that rest are read once a pass of their tile."""
    counters = {
        flow: qf.simulate(CONV, dataclasses.replace(asic_sim.load("edge"), dataflow=flow)).counters
        for flow in ("weight", "output", "input")
    }
    assert {each["macs"] for each in counters.values()} == {56 * 56 * 64 * 64 * 9}
    assert counters["weight"]["weight_reads"] < counters["output"]["weight_reads"] / 5
    assert counters["input"]["activation_reads"] < counters["output"]["activation_reads"] / 3
    assert counters["output"]["accumulator_accesses"] == 2 * 56 * 56 * 64
    assert counters["weight"]["accumulator_accesses"] > 30 * counters["output"]["accumulator_accesses"]


def test_lstm_on_hardware_neurons() -> None:
    """64 neurons stand for four gates of 128 units; a neuron takes a weight in every busy cycle."""
    report = qf.simulate("lstm float32[10x1x32],float32[1x512x32],float32[1x512x128]", "hardware_neurons")
    assert report.utilisation <= 1
    assert report.counters["busy"] >= report.macs / 64
    assert report.counters["stall_steps"] > 0


@pytest.mark.parametrize("dataflow", ["weight", "output", "input"])
def test_the_trace_is_what_the_counters_count(dataflow: str) -> None:
    """Busy cycles and bytes of the trace are the counters', no part does two things at once, nothing ends too late."""
    design = dataclasses.replace(asic_sim.load("edge"), dataflow=dataflow)
    for text in (CONV, "lstm float32[10x1x32],float32[1x512x32],float32[1x512x128]"):
        report = asic_sim.simulate(ops.parse(text), design)
        events = report.events()
        busy = sum(event.end - event.begin for event in events if event.part == "array")
        assert busy == report.counters["busy"]
        assert sum(event.bytes for event in events) == report.dram_bytes
        vector = sum(event.end - event.begin for event in events if event.part == "vector")
        assert vector == report.counters["vector_busy"]
        assert max(event.end for event in events) <= report.cycles
        for parts in (("array",), ("loading",), ("vector",), ("dram_weights", "dram_activations", "dram_outputs")):
            spans = sorted((event.begin, event.end) for event in events if event.part in parts)
            assert all(before[1] <= after[0] for before, after in pairwise(spans)), parts
    with pytest.raises(QuatrefoilError, match="cannot be traced: more than 10 events happen"):
        report.events(10)
