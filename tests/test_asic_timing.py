"""The simulator's timing: against a reference that steps every cycle and every processing element, against sums done
by hand, and against what no machine can beat."""

from __future__ import annotations

import dataclasses
import random
import time

import numpy as np
import pytest

from quatrefoil import asic_sim, ops
from quatrefoil.asic_sim import _native as native
from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops import rnn
from quatrefoil.problem import Problem, Tensor

RESIDENT, STREAMED = native.Mapping(True), native.Mapping(False)
SUMMANDS = ("fill", "busy", "stall_weights", "stall_activations", "stall_outputs", "stall_steps", "drain")
DATAFLOWS = list(native.Dataflow.__members__.values())
LOADS = list(native.WeightLoad.__members__.values())
FRESH_SEED = time.time_ns() % 2**31


def small_design(**changes: int):
    figures = {
        "array_rows": 2, "array_columns": 3, "accumulator_entries": 100, "weight_fifo_tiles": 2,
        "activation_sram_bytes": 10_000, "weight_sram_bytes": 0, "dram_bytes_per_cycle": 4, "dram_latency_cycles": 5,
        "vector_lanes": 3,
    }  # fmt: skip
    return native.Design(**{**figures, **changes})


def product(rows: int, depth: int, columns: int, **changes: object):
    """A plain int8 matrix product."""
    axes = [native.Axis(rows, rows), native.Axis(), native.Axis(), native.Axis()]
    figures = {"activation_bytes": 1, "weight_bytes": 1, "output_bytes": 4, "lane_cycles": 1}
    return native.Stage(channels=depth, columns=columns, axes=axes, **{**figures, **changes})


def alone(stage: object):
    return native.Sections([[stage]], [1])


def random_design(rng: random.Random):
    return native.Design(
        array_rows=rng.randint(1, 9),
        array_columns=rng.randint(1, 9),
        accumulator_entries=rng.choice([2, 4, 8, 16, 40, 100]),
        weight_fifo_tiles=rng.randint(1, 4),
        activation_sram_bytes=rng.choice([200, 400, 800, 2000, 8000]),
        weight_sram_bytes=rng.choice([0, 100, 1000, 10_000]),
        dram_bytes_per_cycle=rng.randint(1, 40),
        dram_latency_cycles=rng.randint(0, 50),
        vector_lanes=rng.choice([1, 2, 4, 8, 16]),
        dataflow=rng.choice(DATAFLOWS),
        weight_load=rng.choice(LOADS),
    )


def random_mapping(rng: random.Random):
    return native.Mapping(rng.random() < 0.5, rng.choice([1, 3, 10, 2**30]))


def random_axis(rng: random.Random, longest: int):
    size, taps, dilation, pad, stride = (rng.randint(a, b) for a, b in ((1, longest), (1, 3), (1, 2), (0, 2), (1, 3)))
    room = size + 2 * pad - ((taps - 1) * dilation + 1)
    return native.Axis(size, size) if room < 0 else native.Axis(size, room // stride + 1, taps, stride, -pad, dilation)


def random_stage(rng: random.Random, dependent: bool):
    batch = rng.randint(1, 3)
    return native.Stage(
        groups=rng.choice([1, 1, 1, 2, 3]),
        channels=rng.randint(1, 12),
        columns=rng.randint(1, 20),
        axes=[native.Axis(batch, batch), native.Axis(), random_axis(rng, 6), random_axis(rng, 9)],
        activation_bytes=rng.choice([0, 1, 4] if dependent else [1, 4]),
        weight_bytes=rng.choice([1, 4]),
        output_bytes=rng.choice([0, 1, 4, 8]),
        lane_cycles=rng.randint(1, 5),
        weights_kept=rng.random() < 0.4,
        dependent=dependent,
        closing_elements=rng.choice([0, 5]),
        closing_lane_cycles=rng.randint(0, 3),
        closing_bytes=rng.choice([0, 20]),
        opening_bytes=rng.choice([0, 0, 30]),
    )


@pytest.mark.parametrize("seed", [7, FRESH_SEED], ids=["fixed", "fresh"])
def test_fast_equals_reference_numbers_included(seed: int) -> None:
    print(f"seed {seed}")
    rng, values = random.Random(seed), np.random.default_rng(seed)
    for trial in range(400):
        rows, depth, columns = rng.randint(1, 40), rng.randint(1, 30), rng.randint(1, 30)
        stage = product(rows, depth, columns, lane_cycles=rng.randint(1, 4), weights_kept=rng.random() < 0.5)
        design, mapping = random_design(rng), random_mapping(rng)
        a = values.integers(-255, 256, (rows, depth)).astype(np.int16)
        w = values.integers(-255, 256, (depth, columns)).astype(np.int16)
        stepped, sums = native.step_program(design, alone(stage), mapping, a, w)
        np.testing.assert_array_equal(
            sums, a.astype(np.int32) @ w.astype(np.int32), err_msg=f"seed {seed}, trial {trial}"
        )
        fast = native.time_program(design, alone(stage), mapping)
        assert fast == stepped, f"seed {seed}, trial {trial}"


@pytest.mark.parametrize("seed", [11, FRESH_SEED], ids=["fixed", "fresh"])
def test_fast_equals_reference_on_programs(seed: int) -> None:
    """Groups, windows, kept weights, dependent steps, results that stay on the chip."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    met = dict.fromkeys(SUMMANDS, 0)
    for trial in range(600):
        design, mapping = random_design(rng), random_mapping(rng)
        steps = [random_stage(rng, True) for _ in range(rng.randint(1, 2))]
        sections = native.Sections([[random_stage(rng, False)], steps], [1, rng.randint(0, 3)])
        fast = native.time_program(design, sections, mapping)
        assert fast == native.step_program(design, sections, mapping)[0], f"seed {seed}, trial {trial}"
        assert fast["cycles"] == sum(fast[name] for name in SUMMANDS), f"seed {seed}, trial {trial}"
        for name in SUMMANDS:
            met[name] += fast[name] > 0
    assert min(met.values()) > 20, f"the trials have to meet every kind of stall: {met}"


@pytest.mark.parametrize("seed", [13, FRESH_SEED], ids=["fixed", "fresh"])
def test_fast_equals_reference_on_the_vector_unit(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    for trial in range(600):
        planes = rng.randint(1, 3)
        stage = native.VectorStage(
            axes=[native.Axis(planes, planes), random_axis(rng, 4), random_axis(rng, 9), random_axis(rng, 9)],
            input_bytes=rng.choice([0, 1, 4]),
            output_bytes=rng.choice([0, 1, 4, 12]),
            lane_cycles=rng.randint(1, 9),
        )
        design = random_design(rng)
        fast = native.time_vector(design, stage)
        assert fast == native.step_vector(design, stage), f"seed {seed}, trial {trial}"
        assert fast["cycles"] == sum(fast[name] for name in SUMMANDS), f"seed {seed}, trial {trial}"


def test_one_fold_by_hand() -> None:
    """4 rows through a 2x3 array: 6 bytes of weights on the port from 0 to 2, there at 7, laid in at 9; 8 bytes of
    activations on the port from 2 to 4, there at 9; streaming until 13; out of the array 2 + 3 - 1 cycles later, at
    17; 12 elements on 3 lanes until 21; 48 bytes until 33, complete at 38."""
    cost = native.time_program(small_design(), alone(product(4, 2, 3)), RESIDENT)
    assert {name: cost[name] for name in SUMMANDS if cost[name]} == {"fill": 9, "busy": 4, "drain": 38 - 13}
    assert cost["cycles"] == 38
    assert (cost["weight_bytes"], cost["activation_bytes"], cost["output_bytes"]) == (6, 8, 48)
    assert (cost["folds"], cost["macs"], cost["vector_busy"]) == (1, 24, 4)


FAST_MEMORY = {"dram_bytes_per_cycle": 10**6, "dram_latency_cycles": 0, "vector_lanes": 10**6}


@pytest.mark.parametrize(("rows", "spacing"), [(1, 6), (5, 6), (6, 6), (7, 7), (40, 40)])
def test_folds_follow_each_other(rows: int, spacing: int) -> None:
    """With memory out of the way a fold starts max(rows, R + C - 1 + R) after the one before: the next tile shifts
    in behind the switch. Here R = 2, C = 3."""
    ten, eleven = (
        native.time_program(small_design(**FAST_MEMORY), alone(product(rows, 2 * slices, 3)), RESIDENT)
        for slices in (10, 11)
    )
    assert eleven["cycles"] - ten["cycles"] == spacing
    assert ten["stall_weights"] == 9 * (spacing - rows)


def test_weights_from_dram_set_the_pace() -> None:
    """One tile of 6 bytes at 1 byte a cycle: a fold each 6 cycles is the array's own pace, at 2 tiles' bytes (int16)
    it is 12."""
    design = small_design(dram_bytes_per_cycle=1, dram_latency_cycles=0, activation_sram_bytes=10**6)
    cycles = [
        native.time_program(design, alone(product(1, 2 * slices, 3, weight_bytes=2)), RESIDENT)["cycles"]
        for slices in (50, 60, 70)
    ]
    # and 2 bytes of activations for each slice, which come first here
    assert cycles[2] - cycles[1] == cycles[1] - cycles[0] == 10 * (12 + 2)


def test_kept_weights_are_fetched_once() -> None:
    design = small_design(accumulator_entries=8)  # blocks of 4 rows
    fetched = native.time_program(design, alone(product(40, 10, 7)), RESIDENT)
    kept = native.time_program(design, alone(product(40, 10, 7, weights_kept=True)), RESIDENT)
    assert fetched["weight_bytes"] == 10 * kept["weight_bytes"] == 10 * 70
    assert kept["cycles"] < fetched["cycles"]


def test_a_tile_in_the_array_is_not_loaded_again() -> None:
    cost = native.time_program(small_design(accumulator_entries=8), alone(product(40, 2, 3)), RESIDENT)
    assert (cost["folds"], cost["weight_bytes"], cost["stall_weights"]) == (10, 6, 0)


def test_resident_activations_are_the_box_of_the_windows() -> None:
    """A 3-tap window over 10 positions, padded by 1, in blocks of 4 outputs: 5 + 6 + 3 positions of 2 channels."""
    stage = native.Stage(
        channels=2, columns=1, activation_bytes=1,
        axes=[native.Axis(), native.Axis(), native.Axis(), native.Axis(10, 10, 3, 1, -1, 1)],
    )  # fmt: skip
    design = small_design(accumulator_entries=8)
    assert native.time_program(design, alone(stage), RESIDENT)["activation_bytes"] == (5 + 6 + 3) * 2
    assert native.time_program(design, alone(stage), STREAMED)["activation_bytes"] == 10 * 6


def test_dependent_steps_wait_for_the_vector_unit() -> None:
    """A step's chain: R + C - 1 behind its last row, the vector unit, then the next step's rows."""
    design = small_design(**FAST_MEMORY)
    step = product(1, 2, 3, activation_bytes=0, output_bytes=0, dependent=True)
    costs = [native.time_program(design, native.Sections([[step]], [count]), RESIDENT) for count in (10, 11)]
    assert costs[1]["cycles"] - costs[0]["cycles"] == 1 + (2 + 3 - 1) + 1
    assert costs[0]["stall_steps"] == 9 * 5


def canonical(op: str, *tensors: str, outputs: int = 1, **attributes: object) -> Problem:
    return ops.canonical(op, [Tensor.parse(text) for text in tensors], attributes, outputs)


LAYERS = [
    canonical("conv", "float32[1x1x28x28]", "float32[6x1x5x5]", pads=[2, 2, 2, 2]),
    canonical("conv", "float32[1x64x56x56]", "float32[64x64x3x3]", pads=[1, 1, 1, 1], activation="Relu"),
    canonical("conv", "float32[2x96x14x14]", "float32[96x1x3x3]", pads=[1, 1, 1, 1], group=96),
    canonical("conv", "float32[1x512x1x1]", "float32[1000x512x1x1]", activation="Sigmoid"),
    canonical("conv_transpose", "float32[1x64x8x8]", "float32[64x32x4x4]", strides=[2, 2], pads=[1, 1, 1, 1]),
    canonical("conv_integer", "uint8[1x256x14x14]", "int8[256x256x3x3]", pads=[1, 1, 1, 1]),
    canonical("lstm", "float32[20x1x64]", "float32[1x512x64]", "float32[1x512x128]"),
    canonical("gru", "float32[20x4x80]", "float32[2x384x80]", "float32[2x384x128]", direction="bidirectional"),
    canonical("max_pool", "float32[1x64x112x112]", kernel_shape=[3, 3], strides=[2, 2], outputs=2),
    canonical("average_pool", "float32[1x512x7x7]", kernel_shape=[7, 7]),
    canonical("max_unpool", "float32[1x8x14x14]", "int64[1x8x14x14]", kernel_shape=[2, 2], strides=[2, 2]),
]


@pytest.mark.parametrize("name", asic_sim.shipped())
@pytest.mark.parametrize("problem", LAYERS, ids=str)
def test_no_layer_beats_the_machine(problem: Problem, name: str) -> None:
    design = asic_sim.load(name)
    report = asic_sim.simulate(problem, design)
    assert report.cycles == sum(report.counters[key] for key in SUMMANDS)
    assert report.cycles * design.array_rows * design.array_columns >= report.macs
    assert report.cycles * design.dram_bytes_per_cycle >= report.dram_bytes
    assert report.cycles >= report.counters["vector_busy"]
    assert 0 <= report.utilisation <= 1
    if problem.op not in ops.FAMILIES["pool"]:
        assert report.macs == ops.SPECS[problem.op].work(problem).macs
    # everything that goes in comes from DRAM at least once; y goes there
    least = sum(tensor.nbytes for tensor in (*problem.inputs, problem.outputs[0]) if tensor is not None)
    assert report.dram_bytes >= least
    assert report.microseconds == report.cycles / design.clock_mhz


@pytest.mark.parametrize("name", asic_sim.shipped())
@pytest.mark.parametrize("problem", LAYERS, ids=str)
def test_more_memory_bandwidth_is_never_slower(problem: Problem, name: str) -> None:
    design = asic_sim.load(name)
    for key, values in (
        ("dram_bytes_per_cycle", (1, 2, 4, 8, 16, 32, 64, 128, 1024)),
        ("dram_latency_cycles", (1000, 200, 100, 50, 10, 0)),
        ("vector_function_cycles", (50, 20, 8, 4, 1)),
    ):
        cycles = [asic_sim.simulate(problem, dataclasses.replace(design, **{key: value})).cycles for value in values]
        assert cycles == sorted(cycles, reverse=True), key


def test_utilisation_of_a_depthwise_layer_is_honest() -> None:
    """A group has one column and nine rows: at most 9 of 256 processing elements work."""
    depthwise = canonical("conv", "float32[1x64x56x56]", "float32[64x1x3x3]", pads=[1, 1, 1, 1], group=64)
    assert asic_sim.simulate(depthwise, "edge").utilisation <= 9 / 256
    dense = canonical("conv_integer", "uint8[1x64x56x56]", "int8[64x64x3x3]", pads=[1, 1, 1, 1])
    assert asic_sim.simulate(dense, "edge").utilisation > 0.9


def test_a_transposed_convolution_multiplies_no_inserted_zeros() -> None:
    """Stride 2 with a 2x2 window: every output place has one tap, so 4 times fewer products than zeros inserted."""
    problem = canonical("conv_transpose", "float32[1x16x7x7]", "float32[16x12x2x2]", strides=[2, 2])
    assert asic_sim.simulate(problem).macs == 14 * 14 * 16 * 12


def test_every_case_can_be_timed_on_every_design() -> None:
    for op, spec in ops.SPECS.items():
        for case in spec.cases():
            problem = ops.canonical(op, case.inputs, case.attributes, case.outputs)
            if problem.dtype in ("float64", "float16"):
                with pytest.raises(QuatrefoilError, match=f"asic: {op}: the array computes .*, not {problem.dtype}"):
                    asic_sim.simulate(problem)
                continue
            for name in asic_sim.shipped():
                report = asic_sim.simulate(problem, name)
                assert report.cycles == sum(report.counters[key] for key in SUMMANDS), case
                has_work = all(tensor.size for tensor in problem.outputs)
                assert (report.cycles > 0) == has_work, case
            if op in ops.FAMILIES["rnn"]:
                assert asic_sim.simulate(problem).cycles == asic_sim.simulate(rnn.without_layout(problem)).cycles


def test_a_layer_that_only_slices_can_bring_is_streamed() -> None:
    """4096 channels leave room for boxes of four places: 2,500 blocks of 65,536 folds are beyond the limit, while
    20 blocks of 512 places, brought slice by slice, are not."""
    problem = canonical("conv", "float32[1x4096x10000]", "float32[4096x4096x1]")
    assert asic_sim.simulate(problem, "edge").counters["folds"] == 20 * 256 * 256


FAR = 2**31 - 1
HOSTILE = [
    canonical("conv", "float32[1x1x1x2147483647]", "float32[1x1x1x1]"),
    canonical("conv", "float32[1x1x2147483647x100]", "float32[1x1x1x1]"),
    canonical("conv", "float32[1x1x2147483647]", "float32[1x1x2]", dilations=[FAR - 1]),
    canonical("conv", "float32[1x2147483647x1]", "float32[1000x2147483647x1]"),
    canonical("conv", "float32[1x2147483647x1]", "float32[2147483647x2147483647x1]"),
    canonical("conv", "float32[1x30000000x1]", "float32[30000000x1x1]", group=30000000),
    canonical("conv", "float32[1x1x30000x30000]", "float32[1x1x30000x30000]"),
    canonical("conv_transpose", "float32[1x1x1]", "float32[1x1x1]", strides=[FAR], output_padding=[FAR - 1]),
    canonical("max_pool", "float32[1x1x1]", kernel_shape=[FAR], pads=[FAR - 1, 0]),
    canonical("average_pool", "float32[1x1x1]", kernel_shape=[FAR], pads=[FAR - 1] * 2, count_include_pad=1),
    canonical("max_unpool", "float32[1x1x1]", "int64[1x1x1]", kernel_shape=[FAR]),
    canonical("lstm", "float32[2147483647x1x1]", "float32[1x4x1]", "float32[1x4x1]"),
    canonical("gru", "float32[2147483647x0x3]", "float32[1x3x3]", "float32[1x3x1]"),
]


@pytest.mark.parametrize("problem", HOSTILE, ids=str)
def test_hostile_sizes_are_timed_or_refused(problem: Problem) -> None:
    try:
        report = asic_sim.simulate(problem, "tpu_like")
    except QuatrefoilError as error:
        assert "too large" in str(error) or "stops at 2^50" in str(error)
    else:
        assert min(report.counters.values()) >= 0
        assert report.cycles == sum(report.counters[key] for key in SUMMANDS)
