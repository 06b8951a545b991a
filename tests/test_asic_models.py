"""Whole models on the simulator, and the energy and area of what it counts."""

from __future__ import annotations

import dataclasses
import random
from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil import asic_sim, ops
from quatrefoil.asic_sim import SimulationReport, elementwise, energy, formats, waves
from quatrefoil.asic_sim.keeping import Use, plan
from quatrefoil.asic_sim.simulation import COUNTERS, SUMMANDS
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import gallery
from quatrefoil.models.simulation import ModelReport
from quatrefoil.problem import Tensor

CONV = "conv_integer uint8[1x64x56x56],int8[64x64x3x3] pads=1x1x1x1"


def single_node(
    kind: str, inputs: list[tuple[str, list[int]]], output: list[int], opset: int = 20, **attributes: object
) -> bytes:
    node = helper.make_node(kind, [name for name, _ in inputs], ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs]
    graph = helper.make_graph([node], "one", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


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
    found = energy.energy(design, "int8", counters)
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


MATRIX = "conv float32[1x64x8x8],float32[48x64x1x1]"


def test_half_the_speed_and_twice_the_bytes() -> None:
    """An operand of 16 bits enters in two parts; weights stay bytes. Results are rounded to the activations' width."""
    design = dataclasses.replace(asic_sim.load("edge"), formats={"int8": 1, "int16xint8": 2, "int16": 4, "float32": 1})
    byte, mixed, wide, single = (qf.simulate(MATRIX, design, as_format=name) for name, _ in design.formats)
    assert byte.counters["busy"] * 2 == mixed.counters["busy"]
    assert byte.counters["busy"] * 4 == wide.counters["busy"]
    assert [each.counters["weight_bytes"] for each in (byte, mixed, wide)] == [48 * 64, 48 * 64, 2 * 48 * 64]
    assert mixed.counters["activation_bytes"] == wide.counters["activation_bytes"] == 2 * 64 * 64
    assert [each.counters["output_bytes"] for each in (byte, mixed, single)] == [64 * 48, 2 * 64 * 48, 4 * 64 * 48]
    assert byte.counters["lane_operations"] == 3 * single.counters["lane_operations"]
    assert byte.energy["array"].low < mixed.energy["array"].low < wide.energy["array"].low
    assert single == qf.simulate(MATRIX, design)
    assert (byte.formats, mixed.formats) == (("int8",), ("int16xint8",))


def test_a_format_that_the_design_lacks_is_refused_by_name() -> None:
    said = r"the array of tpu_like multiplies int8, int16xint8, int8xint16, int16, not float32 \(as_format='int8' times"
    with pytest.raises(QuatrefoilError, match=f"asic: conv: {said}"):
        qf.simulate(MATRIX, "tpu_like")
    model = single_node("MatMul", [("a", [32, 64]), ("b", [64, 48])], [32, 48])
    with pytest.raises(QuatrefoilError, match=rf"cannot time MatMul \({said}"):
        qf.simulate(model, "tpu_like")
    report = qf.simulate(model, "tpu_like", unsupported="host")
    assert isinstance(report, ModelReport)
    assert [layer.report for layer in report.layers] == [None]
    with pytest.raises(QuatrefoilError, match="the array of edge multiplies int8, float32, not int16"):
        qf.simulate(MATRIX, "edge", as_format="int16")
    with pytest.raises(QuatrefoilError, match="there is no number format 'int1'"):
        qf.simulate(MATRIX, "edge", as_format="int1")
    # bytes are bytes, whatever floats are taken for
    with pytest.raises(QuatrefoilError, match=r"conv_integer: the array of eyeriss_like multiplies int16, .* not int8"):
        qf.simulate(CONV, "eyeriss_like", as_format="int16")
    with pytest.raises(QuatrefoilError, match="as_format times a model; it does not compute it"):
        qf.simulate(model, "edge", {"a": np.zeros((32, 64)), "b": np.zeros((64, 48))}, as_format="int8")


@pytest.mark.parametrize("name", gallery.NAMES)
@pytest.mark.parametrize("as_format", ["int8", "int16", "bfloat16", "fixed<18,8>+<48,20>"])
def test_a_model_as_if_it_were_quantised(name: str, as_format: str) -> None:
    """Its bytes are those of the format, everything but the products' pace is the same."""
    design = dataclasses.replace(asic_sim.load("edge"), formats={as_format: 1, "float32": 1})
    cast, whole = (qf.simulate(gallery.path(name), design, as_format=each) for each in (as_format, None))
    assert cast.macs == whole.macs
    assert cast.formats == (as_format,)
    width = {"int8": 1, "int16": 2, "bfloat16": 2, "fixed<18,8>+<48,20>": 3}[as_format]
    for counter in ("weight_bytes", "activation_bytes"):
        assert cast.counters[counter] == pytest.approx(width / 4 * whole.counters[counter], rel=0.2)
    assert cast.energy["array"].middle < whole.energy["array"].middle


def test_energy_and_area_of_other_widths() -> None:
    """On the power law through 8 and 32 bits; where operands enter in two parts, half a multiplier."""
    assert energy.multiply_pj(formats.parse("int8"), 45) == pytest.approx(0.2)
    assert energy.multiply_pj(formats.parse("int32"), 45) == pytest.approx(3.1)
    assert energy.multiply_pj(formats.parse("int16"), 45) == pytest.approx((0.2 * 3.1) ** 0.5)
    assert energy.multiply_pj(formats.parse("int32xint8"), 45) == pytest.approx((0.2 * 3.1) ** 0.5)
    assert energy.add_pj(formats.parse("int16"), 45) == pytest.approx(0.1)
    assert energy.add_pj(formats.parse("fixed<8,3>"), 7) == pytest.approx(0.03)
    assert energy.element_um2(formats.parse("int16"), 2) == pytest.approx((282 * 3495) ** 0.5 / 2 + 137)
    design = dataclasses.replace(asic_sim.load("tpu_like"), technology_nm=45.0)
    both = energy.area_mm2(design, ("int8", "int16"))["array"].low
    assert both == pytest.approx(256 * 256 * max(282 + 137, (282 * 3495) ** 0.5 / 4 + 137) * 1e-6)


def chain(kinds: list[str], shape: list[int], residual: bool = False) -> bytes:
    """Unary operators in a row, and the first one's result added at the end."""
    nodes = [helper.make_node(kind, [f"v{place}"], [f"v{place + 1}"]) for place, kind in enumerate(kinds)]
    last = f"v{len(kinds)}"
    if residual:
        nodes.append(helper.make_node("Add", ["v1", last], ["sum"]))
        last = "sum"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("v0", last)]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


STAYS = dataclasses.replace(asic_sim.load("edge"), activation_sram_kib=64, activations_stay=True)
PARTED = ["Transpose", "Transpose", "Transpose"]  # no pass makes one step of them


def layers_traffic(model: bytes, design: asic_sim.Hardware) -> list[tuple[int, int, int, int]]:
    """Bytes from DRAM, to DRAM, read and written in the activation memory, by layer."""
    report = qf.simulate(model, design)
    assert isinstance(report, ModelReport)
    names = ("activation_bytes", "output_bytes", "activation_reads", "activation_writes")
    return [tuple(each.counters[name] for name in names) for each in report.reports]  # type: ignore[misc]


@pytest.mark.parametrize("dataflow", ["weight", "output", "input"])
def test_weights_are_fetched_ahead_where_a_design_does(dataflow: str) -> None:
    """Layer by layer the same work and traffic as alone, in cycles that add up; the trace says what came before a layer
    began, weights alone."""
    design = dataclasses.replace(asic_sim.load("edge"), dataflow=dataflow)
    model = gallery.path("digits_cnn")
    alone, ahead = (qf.simulate(model, dataclasses.replace(design, weights_ahead=way)) for way in (False, True))
    assert isinstance(alone, ModelReport)
    assert isinstance(ahead, ModelReport)
    assert ahead.cycles == sum(report.cycles for report in ahead.reports)
    # where activations rest, whole strips of weights come ahead, and keep the port from the activations
    assert ahead.cycles < alone.cycles or dataflow == "input"
    early = 0
    for report, cold in zip(ahead.reports, alone.reports, strict=True):
        counters = report.counters
        assert counters["cycles"] == sum(counters[name] for name in SUMMANDS)
        waits = ("cycles", *SUMMANDS, "row_hits", "row_misses", "row_waits", "refresh_waits")
        for name in COUNTERS:
            assert counters[name] == cold.counters[name] or (name in waits and name != "busy"), name
        events = report.events()
        assert sum(event.bytes for event in events) == report.dram_bytes
        assert max(event.end for event in events) <= report.cycles
        assert {event.part for event in events if event.begin < 0} <= {"dram_weights", "loading"}
        early += min(event.begin for event in events) < 0
    assert early > 1
    [first, *_] = ahead.reports
    assert min(event.begin for event in first.events()) >= 0


@pytest.mark.parametrize("divide", ["channels", "rows", "batch"])
@pytest.mark.parametrize("ahead", [False, True])
def test_cores_share_the_work_and_the_port(divide: str, ahead: bool) -> None:
    """Four cores do the products of one, each a part of them; cycles add up, times are those of the core that ends last."""
    one = dataclasses.replace(asic_sim.load("edge_quad"), cores=1, weights_ahead=ahead)
    four = dataclasses.replace(one, cores=4, divide=divide)
    model = gallery.path("digits_cnn")
    whole, shared = (qf.simulate(model, design) for design in (one, four))
    assert isinstance(whole, ModelReport)
    assert isinstance(shared, ModelReport)
    assert shared.cycles == sum(report.cycles for report in shared.reports)
    for report, alone in zip(shared.reports, whole.reports, strict=True):
        counters = report.counters
        assert counters["cycles"] == sum(counters[name] for name in SUMMANDS)
        for name in ("macs", "output_bytes", "lane_operations"):
            assert counters[name] == alone.counters[name] == sum(core[name] for core in report.cores), name
        assert counters["cycles"] == max(core["cycles"] for core in report.cores) or len(report.parts) > 1
        events = report.events()
        assert sum(event.bytes for event in events) == report.dram_bytes
        assert max(event.end for event in events) <= report.cycles
    conv = ops.parse("conv float32[4x32x16x16],float32[64x32x3x3] pads=1x1x1x1")
    alone, divided = (asic_sim.simulate(conv, design) for design in (one, four))
    assert divided.cycles < alone.cycles / 2
    assert divided.utilisation < 1
    assert divided.area_mm2 == pytest.approx(4 * alone.area_mm2)
    with pytest.raises(QuatrefoilError, match="waves are of one core; edge_quad has 4"):
        list(waves.states(divided))


def test_results_stay_on_the_chip_where_they_fit() -> None:
    """16 KiB each: the first input and the last result alone cross the port. Two of them take all of the half that they
    may take; 4 bytes more, and nothing stays."""
    size = 64 * 64 * 4
    assert layers_traffic(chain(PARTED, [64, 64]), STAYS) == [
        (size, 0, size, size), (0, 0, size, size), (0, size, size, 0)
    ]  # fmt: skip
    more = 4 * 4097
    assert layers_traffic(chain(PARTED, [1, 4097]), STAYS)[1] in ((more, 0, more, more), (0, more, more, 0))
    away = dataclasses.replace(STAYS, activations_stay=False)
    assert layers_traffic(chain(PARTED, [64, 64]), away) == [(size, size, size, 0)] * 3
    kept, fetched = (qf.simulate(chain(PARTED, [64, 64]), design) for design in (STAYS, away))
    assert kept.dram_bytes == 2 * size
    assert kept.cycles < fetched.cycles


def test_a_short_cut_stays_as_long_as_there_is_room() -> None:
    """v1 is read by the next operator and, at the end, by the sum. With room for three at once it stays up to there; with
    room for two it is written, and read by the sum from DRAM."""
    model, size = chain(PARTED, [32, 64], residual=True), 32 * 64 * 4
    roomy = dataclasses.replace(STAYS, activation_sram_kib=48)
    assert layers_traffic(model, roomy) == [
        (size, 0, size, size), (0, 0, size, size), (0, 0, size, size), (0, size, 2 * size, 0)
    ]  # fmt: skip
    narrow = dataclasses.replace(STAYS, activation_sram_kib=32)
    assert layers_traffic(model, narrow) == [
        (size, size, size, size), (0, 0, size, size), (0, 0, size, size), (size, size, 2 * size, 0)
    ]  # fmt: skip


def test_a_convolution_takes_what_stays_and_leaves_what_is_asked_for() -> None:
    """Two convolutions with a residual: only x, the weights, and the result cross the port."""
    w = np.zeros((8, 8, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 16, 16]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "two", values[:1], values[1:], [numpy_helper.from_array(w, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    report = qf.simulate(model, STAYS)
    assert isinstance(report, ModelReport)
    size = 8 * 16 * 16 * 4
    assert [layer.op for layer in report.layers] == ["Conv", "Conv+Add"]
    first, second = report.reports
    assert first.counters["activation_bytes"] >= size  # blocks overlap
    assert (first.counters["output_bytes"], first.counters["activation_writes"]) == (0, size)
    assert second.counters["activation_bytes"] == 0
    assert (second.counters["output_bytes"], second.counters["activation_writes"]) == (size, 0)
    assert report.counters["weight_bytes"] == 2 * w.nbytes
    as_bytes = qf.simulate(model, STAYS, as_format="int8")
    assert (as_bytes.counters["output_bytes"], as_bytes.counters["activation_writes"]) == (size / 4, size / 4)


def test_what_stays_is_planned_shortest_first_and_never_beyond_the_room() -> None:
    """Random graphs: what is there fits, is made before it is read, and what is never written is never missed."""
    rng = random.Random(11)
    stayed = 0
    for _ in range(300):
        count, room = rng.randint(2, 12), rng.randint(1, 40)
        uses = []
        for number in range(count):
            reads = [(f"v{rng.randrange(number)}", rng.random() < 0.8) for _ in range(rng.randint(0, 2)) if number]
            uses.append(Use(tuple(reads), ((f"v{number}", rng.randint(1, 20)),)))
        results = frozenset([f"v{count - 1}"])
        kept = plan(uses, results, room)
        alive = [0] * count
        for maker, (use, mine) in enumerate(zip(uses, kept)):
            [(name, size)] = use.makes
            readers = [n for n, each in enumerate(uses) if any(read == name for read, _ in each.reads)]
            takers = [n for n in readers if any(uses[n].reads[place][0] == name for place in kept[n].here)]
            stayed += bool(takers)
            assert bool(mine.stay) == bool(takers)
            if takers:
                for n in range(maker, max(takers) + 1):
                    alive[n] += size
            if mine.unwritten:
                assert takers == readers
                assert name not in results
                assert all(fits for n in readers for read, fits in uses[n].reads if read == name)
        assert [each.taken for each in kept] == alive
        assert max(alive) <= room
    assert stayed > 100


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
        port = ("dram_weights", "dram_activations", "dram_outputs")
        for parts, channel in ((("array",), 0), (("loading",), 0), (("vector",), 0), (port, 0), (port, 1)):
            spans = sorted((e.begin, e.end) for e in events if e.part in parts and e.channel == channel)
            assert all(before[1] <= after[0] for before, after in pairwise(spans)), parts
    with pytest.raises(QuatrefoilError, match="cannot be traced: more than 10 events happen"):
        report.events(10)


def operation(kind: str, shapes: list[list[int]], output: list[int], **attributes: object) -> SimulationReport:
    report = qf.simulate(single_node(kind, [(f"v{i}", s) for i, s in enumerate(shapes)], output, **attributes), "edge")
    assert isinstance(report, ModelReport)
    [cost] = report.reports
    return cost


@pytest.mark.parametrize(
    ("kind", "shapes", "output", "attributes", "each"),
    [
        ("LRN", [[1, 8, 10, 10]], [1, 8, 10, 10], {"size": 5}, 5 + 2 + 4),
        ("Gelu", [[40, 20]], [40, 20], {}, 4 + 3),
        ("Sin", [[40, 20]], [40, 20], {}, 4),
        ("Hardmax", [[40, 20]], [40, 20], {}, 2),
        ("ReduceLogSumExp", [[40, 20]], [1, 1], {}, 4 + 3),
        ("Upsample", [[1, 2, 5, 5]], [1, 2, 10, 20], {"mode": "linear", "scales": [1.0, 1.0, 2.0, 4.0]}, 4),
    ],
)
def test_lanes_of_operators_between_layers(
    kind: str, shapes: list[list[int]], output: list[int], attributes: dict[str, object], each: int
) -> None:
    """Cycles of a lane for an element, as the list has them: of those read by a reduction, else of those made."""
    opset = 7 if kind == "Upsample" else 20
    model = single_node(kind, [("a", shapes[0])], output, opset=opset, **attributes)
    cost = qf.simulate(model, "edge")
    assert cost.counters["lane_operations"] == each * max(np.prod(shapes[0]), np.prod(output))
    assert cost.counters["activation_bytes"] >= 4 * np.prod(shapes[0])
    assert cost.counters["output_bytes"] >= 4 * np.prod(output)


def test_a_group_that_does_not_fit_comes_twice() -> None:
    """16 rows of 4 KiB each fit into half of 128 KiB; a row of 128 KiB does not. A root for each row, 5 cycles for an
    element."""
    rows = operation("LayerNormalization", [[16, 1024], [1024], [1024]], [16, 1024])
    assert rows.counters["lane_operations"] == 5 * 16 * 1024 + 16 * 4
    assert 4 * 16 * 1024 < rows.counters["activation_bytes"] <= 5 * 16 * 1024
    long = operation("LayerNormalization", [[2, 32768], [32768], [32768]], [2, 32768])
    assert long.counters["lane_operations"] == 5 * 2 * 32768 + 2 * 4
    assert long.counters["activation_bytes"] > 2 * 4 * 2 * 32768
    planes = operation("InstanceNormalization", [[2, 3, 8, 8], [3], [3]], [2, 3, 8, 8])
    assert planes.counters["lane_operations"] == 5 * 2 * 3 * 64 + 6 * 4
    unit = operation("LpNormalization", [[4, 50]], [4, 50], axis=0)
    assert unit.counters["lane_operations"] == 2 * 200 + 50 * 4


@pytest.mark.parametrize(
    ("equation", "shapes", "output", "alike"),
    [
        ("ij,jk->ik", [[8, 16], [16, 24]], [8, 24], ([8, 16], [16, 24])),
        ("bhqd,bhkd->bhqk", [[2, 3, 8, 16], [2, 3, 24, 16]], [2, 3, 8, 24], ([6, 8, 16], [6, 16, 24])),
        ("nchw,cd->nhwd", [[2, 16, 4, 5], [16, 24]], [2, 4, 5, 24], ([40, 16], [16, 24])),
    ],
)
def test_an_einsum_is_the_product_that_it_means(
    equation: str, shapes: list[list[int]], output: list[int], alike: tuple[list[int], list[int]]
) -> None:
    product = [*alike[0][:-1], alike[1][-1]]
    wanted = operation("MatMul", list(alike), product)
    found = operation("Einsum", shapes, output, equation=equation)
    assert found.counters == wanted.counters


@pytest.mark.parametrize("equation", ["ij,kl->ik", "ii,ij->j", "ij->ji", "ij,jk", "...j,jk->...k"])
def test_an_einsum_that_is_no_product_is_named(equation: str) -> None:
    shapes = [[8, 8], [8, 8]][: equation.count(",") + 1]
    types = [Tensor("float32", (8, 8))] * len(shapes)
    assert not elementwise.known("Einsum", types, types[:1], {"equation": equation})
    assert elementwise.known("Einsum", types, types[:1], {"equation": "ij,jk->ik"}) == (len(types) == 2)
