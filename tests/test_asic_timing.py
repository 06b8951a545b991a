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
from quatrefoil.asic_sim import programs
from quatrefoil.asic_sim.hardware import CHOICES
from quatrefoil.asic_sim.programs import alone, product
from quatrefoil.asic_sim.simulation import SUMMANDS
from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops import rnn
from quatrefoil.problem import Problem, Tensor

RESIDENT, STREAMED = native.Mapping(True), native.Mapping(False)
FRESH_SEED = time.time_ns() % 2**31


def small_design(**changes: int):
    figures = {
        "array_rows": 2, "array_columns": 3, "accumulator_entries": 100, "weight_fifo_tiles": 2,
        "activation_sram_bytes": 10_000, "weight_sram_bytes": 0, "dram_bytes_per_cycle": 4, "dram_latency_cycles": 5,
        "vector_lanes": 3,
    }  # fmt: skip
    return native.Design(**{**figures, **changes})


@pytest.mark.parametrize("seed", [7, FRESH_SEED], ids=["fixed", "fresh"])
@pytest.mark.parametrize("dataflow", CHOICES["dataflow"])
@pytest.mark.parametrize("weight_load", CHOICES["weight_load"])
def test_fast_equals_reference(seed: int, dataflow: str, weight_load: str) -> None:
    """Every counter, and the numbers of plain products of integers and of fixed point."""
    print(f"seed {seed}")
    rng, values = random.Random(f"{seed} {dataflow} {weight_load}"), np.random.default_rng(seed)
    met = dict.fromkeys(SUMMANDS, 0)
    for number in range(60):
        make = programs.try_fixed_product if number % 4 == 0 else programs.try_product
        assert make(rng, values, dataflow, weight_load).agrees, f"seed {seed}, product {number}"
        trial = programs.try_program(rng, dataflow, weight_load)
        assert trial.agrees, f"seed {seed}, program {number}: {trial}"
        for name in met:
            met[name] += trial.fast[name] > 0
        if number % 4 == 0:
            assert programs.try_deep_product(rng, dataflow, weight_load).agrees, f"seed {seed}, deep product {number}"
            assert programs.try_chain(rng, dataflow, weight_load).agrees, f"seed {seed}, chain {number}"
        if number % 10 == 0:
            assert programs.try_deep_pairs(rng, dataflow, weight_load).agrees, f"seed {seed}, pairs {number}"
    if dataflow == "input":  # a step's activations rest in the array: they are what is waited for
        assert met.pop("stall_steps") == 0
    assert min(met.values()) > 0, f"the trials have to meet every kind of stall: {met}"


@pytest.mark.parametrize("seed", [1002018, 1002500])
def test_cores_whose_few_folds_come_in_a_late_part(seed: int) -> None:
    """Their weights are asked for, though there are fewer folds than parts before them."""
    rng = random.Random(seed)
    dataflow, weight_load = rng.choice(CHOICES["dataflow"]), rng.choice(CHOICES["weight_load"])
    assert programs.try_chain(rng, dataflow, weight_load).agrees


@pytest.mark.parametrize("seed", [13, FRESH_SEED], ids=["fixed", "fresh"])
def test_fast_equals_reference_on_the_vector_unit(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    for number in range(600):
        assert programs.try_vector(rng).agrees, f"seed {seed}, trial {number}"


@pytest.mark.parametrize("dataflow", CHOICES["dataflow"])
def test_iterations_that_are_alike_are_skipped_exactly(dataflow: str) -> None:
    """Long loops of blocks, strips, groups and repeats against the reference, which skips nothing; and a loop that is
    longer than could be walked in the time."""
    design = small_design(dataflow=native.Dataflow.__members__[dataflow], dram_bytes_per_cycle=3)
    stages = [product(300, 9, 12, groups=7), product(4, 6, 60, dependent=True, groups=5)]
    for mapping in (RESIDENT, STREAMED, native.Mapping(True, 5)):
        sections = native.Sections([stages], [20])
        assert native.time_program(design, sections, mapping) == native.step_program(design, sections, mapping)[0]
    long = alone(product(2, 4, 6, groups=2_000_000))
    began = time.perf_counter()
    cost = native.time_program(design, long, RESIDENT)
    assert cost["folds"] >= 8_000_000
    assert time.perf_counter() - began < 0.25


def test_one_fold_by_hand() -> None:
    """4 rows through a 2x3 array: 6 bytes of weights on the port from 0 to 2, there at 7, laid in at 9; 8 bytes of
    activations on the port from 2 to 4, there at 9; streaming until 13; out of the array 2 + 3 - 1 cycles later, at
    17; 12 elements on 3 lanes until 21; 48 bytes until 33, complete at 38."""
    cost = native.time_program(small_design(), alone(product(4, 2, 3)), RESIDENT)
    assert {name: cost[name] for name in SUMMANDS if cost[name]} == {"fill": 9, "busy": 4, "drain": 38 - 13}
    assert cost["cycles"] == 38
    assert (cost["weight_bytes"], cost["activation_bytes"], cost["output_bytes"]) == (6, 8, 48)
    assert (cost["folds"], cost["macs"], cost["vector_busy"]) == (1, 24, 4)


def spans_of(design) -> dict[str, list[tuple[int, int, int]]]:
    """When the port moves what in ``test_one_fold_by_hand``'s program: begin, end, bytes."""
    _, events = native.trace_program(design, alone(product(4, 2, 3)), RESIDENT, 100)
    found: dict[str, list[tuple[int, int, int]]] = {}
    for part, begin, end, size, _ in events:
        if part.name.startswith("dram"):
            found.setdefault(part.name, []).append((begin, end, size))
    return found


ROWS = {"burst_bytes": 16, "row_bytes": 32, "banks": 4, "row_miss_cycles": 6}


def test_weights_ahead_by_hand() -> None:
    """The same fold twice, a tile in the FIFO: the second one's weights are asked for when the first one's are laid in, at
    9, and are there at 16; the array takes them as soon as they are, 2 cycles. Part one is over at 38, as alone. Part two
    asks for its activations then; they are there 2 + 5 cycles later, and the rest follows as it did."""
    design = small_design(weight_fifo_tiles=1)
    row = native.Chain(design)
    for _ in range(2):
        row.add_program(design, alone(product(4, 2, 3)), RESIDENT)
    [[first, second]] = native.time_cores([row])
    assert first == native.time_program(design, alone(product(4, 2, 3)), RESIDENT)
    assert {name: second[name] for name in SUMMANDS if second[name]} == {"fill": 7, "busy": 4, "drain": 38 - 13}
    assert (second["cycles"], second["weight_bytes"], second["activation_bytes"]) == (36, 6, 8)
    events = [(part.name, begin, end) for part, begin, end, *_ in native.trace_cores([row], 1, 2, 100)]
    assert [event for event in events if event[1] < 0] == [
        ("dram_weights", 9 - 38, 11 - 38),
        ("loading", 16 - 38, 18 - 38),
    ]


def test_weights_of_a_part_come_while_the_vector_unit_works_alone() -> None:
    """A part of the vector unit between two products is as long as alone, and the second product finds its weights."""
    design, stage = small_design(), alone(product(4, 2, 3))
    pool = native.VectorStage(axes=[native.Axis(1, 1), *(native.Axis(9, 9) for _ in range(3))])
    row = native.Chain(design)
    row.add_program(design, stage, RESIDENT)
    row.add_vector(design, pool)
    row.add_program(design, stage, RESIDENT)
    [costs] = native.time_cores([row])
    assert [costs] == native.step_cores([row])
    assert costs[1] == native.time_vector(design, pool)
    assert costs[2]["fill"] == 2 + 5
    nothing = [native.Chain(design)]
    assert native.time_cores(nothing) == native.step_cores(nothing) == [[]]


def test_two_cores_by_hand() -> None:
    """As ``test_one_fold_by_hand``, on two cores at once. The port carries both cores' weights from 0 to 4, there at 7 and 9,
    their activations until 8, there at 11 and 13. Folds from 11 and 13 on, results from 23 and 25 on; the first core's keep
    the port until 35, the second one's until 47, and are there 5 cycles later."""
    design = small_design()
    rows = [native.Chain(design) for _ in range(2)]
    for row in rows:
        row.add_program(design, alone(product(4, 2, 3)), RESIDENT)
    costs = native.time_cores(rows)
    assert costs == native.step_cores(rows)
    assert [{name: core[name] for name in SUMMANDS if core[name]} for [core] in costs] == [
        {"fill": 11, "busy": 4, "drain": 25},
        {"fill": 13, "busy": 4, "drain": 35},
    ]
    first, second = costs
    assert (first[0]["cycles"], second[0]["cycles"]) == (40, 52)
    assert first[0]["output_bytes"] == second[0]["output_bytes"] == 48


@pytest.mark.parametrize("division", native.Division.__members__.values(), ids=str)
def test_shares_are_the_whole(division: object) -> None:
    """Products of all cores together are those of the whole, for plain stages, groups, windows and steps, however many cores
    there are; and no core has much more than another one."""
    rng = random.Random(3)
    for _ in range(200):
        design = small_design(accumulator_entries=rng.choice([4, 100]))
        stage = product(
            rng.randint(1, 9), rng.randint(1, 5), rng.randint(1, 9), groups=rng.choice([1, 1, 3, 8]),
        )  # fmt: skip
        window = native.Stage(
            channels=2, columns=5, axes=[programs.axis(rng, 3), *(programs.axis(rng, 7) for _ in range(3))]
        )
        batch, steps = rng.randint(1, 5), rng.randint(1, 4)
        recurrent = [[product(batch * steps, 3, 8)], [product(batch, 2, 8, dependent=True)]]
        for sections in (alone(stage), alone(window), native.Sections(recurrent, [1, steps])):
            cores = rng.randint(1, 6)
            macs = [
                native.time_program(design, native.share_of(design, sections, division, core, cores), RESIDENT)["macs"]
                for core in range(cores)
            ]
            assert sum(macs) == native.time_program(design, sections, RESIDENT)["macs"]
            assert macs == sorted(macs, reverse=True)


def test_rows_by_hand() -> None:
    """Bursts of 4 cycles, two in a row. Banks 0 and 1 open the rows of weights and activations from 0 to 6; those move
    until 10 and 14, and the fold's results leave the vector unit at 31. Their three bursts lie in banks 2 and 3, open at
    37."""
    design = small_design(dram=native.Dram(**ROWS))
    assert spans_of(design) == {
        "dram_weights": [(6, 10, 6)], "dram_activations": [(10, 14, 8)], "dram_outputs": [(37, 49, 48)],
    }  # fmt: skip
    cost = native.time_program(design, alone(product(4, 2, 3)), RESIDENT)
    assert cost["cycles"] == 49 + 5
    assert (cost["row_hits"], cost["row_misses"], cost["row_waits"], cost["refresh_waits"]) == (1, 4, 12, 0)
    one_bank = small_design(dram=native.Dram(**{**ROWS, "banks": 1}))
    # each transfer's row waits for the one before: 6 + 4, 6 + 4; and the results' second one for the first: 6 + 8 + 6 + 4
    assert spans_of(one_bank) == {
        "dram_weights": [(6, 10, 6)], "dram_activations": [(16, 20, 8)], "dram_outputs": [(43, 61, 48)],
    }  # fmt: skip


def test_a_refresh_by_hand() -> None:
    """As above, with refreshes from 16 to 20 and from 36 to 40: the row that begins to open at 31 is open at 41."""
    design = small_design(dram=native.Dram(**ROWS, refresh_interval_cycles=20, refresh_cycles=4))
    assert spans_of(design)["dram_outputs"] == [(41, 53, 48)]
    cost = native.time_program(design, alone(product(4, 2, 3)), RESIDENT)
    assert (cost["cycles"], cost["refresh_waits"], cost["row_waits"]) == (53 + 5, 4, 12)


def test_channels_by_hand() -> None:
    """Two channels of half the rate, 8 cycles a burst: two bursts of results go to one, one goes to the other."""
    design = small_design(dram=native.Dram(burst_bytes=16, row_bytes=16, channels=2))
    spans = spans_of(design)
    assert (spans["dram_weights"], spans["dram_activations"]) == ([(0, 8, 6)], [(8, 16, 8)])
    [(first, long, most), (second, short, least)] = spans["dram_outputs"]
    assert first == second
    assert (long - first, short - second, most, least) == (16, 8, 32, 16)


@pytest.mark.parametrize(
    ("operand", "figures", "later", "memory", "conflicts"),
    [
        ("activation", {"bytes_per_cycle": 0, "banks": 1}, 0, 0, 0),
        ("activation", {"bytes_per_cycle": 1}, 4, 4, 0),  # 8 bytes in 8 cycles, not 4
        ("activation", {"bytes_per_cycle": 1, "banks": 4}, 0, 0, 0),  # two banks hold the buffer
        ("activation", {"bytes_per_cycle": 1, "banks": 1, "ports": 2}, 4, 4, 0),
        ("activation", {"bytes_per_cycle": 1, "banks": 1}, 12, 12, 8),  # and 8 that DRAM writes
        ("weight", {"bytes_per_cycle": 1}, 4, 0, 0),  # 6 bytes are laid in in 6 cycles, not 2
        ("weight", {"bytes_per_cycle": 1, "banks": 1}, 10, 0, 6),
    ],
)  # fmt: skip
def test_a_memory_on_the_chip_by_hand(
    operand: str, figures: dict[str, int], later: int, memory: int, conflicts: int
) -> None:
    """``test_one_fold_by_hand`` with a memory that passes few bytes. Loading is part of ``fill`` here."""
    cost = native.time_program(
        small_design(**{f"{operand}_sram": native.Sram(**figures)}), alone(product(4, 2, 3)), RESIDENT
    )
    assert (cost["cycles"], cost["stall_memory"], cost["memory_conflicts"]) == (38 + later, memory, conflicts)
    assert cost["cycles"] == sum(cost[name] for name in SUMMANDS)


PIPE = {
    "dram_channels": 1, "dram_burst_bytes": 1, "dram_row_miss_cycles": 0, "dram_refresh_cycles": 0,
    "activation_sram_bytes_per_cycle": 0, "weight_sram_bytes_per_cycle": 0,
}  # fmt: skip
"""What makes the port a pipe and the memories on the chip no limit."""


@pytest.mark.parametrize("banks", [1, 8])
def test_what_is_off_takes_no_time(banks: int) -> None:
    """The cycles that ``edge`` took before it had channels, rows, refresh and banks."""
    design = dataclasses.replace(asic_sim.load("edge"), **PIPE, dram_banks=banks, activation_sram_banks=banks)
    problems = (
        canonical("conv", "float32[1x64x56x56]", "float32[64x64x3x3]", pads=[1, 1, 1, 1], activation="Relu"),
        canonical("conv", "float32[2x96x14x14]", "float32[96x1x3x3]", pads=[1, 1, 1, 1], group=96),
        canonical("gru", "float32[20x4x80]", "float32[2x384x80]", "float32[2x384x128]", direction="bidirectional"),
        canonical("max_pool", "float32[1x64x112x112]", kernel_shape=[3, 3], strides=[2, 2], outputs=2),
    )
    reports = [asic_sim.simulate(problem, design) for problem in problems]
    assert [report.cycles for report in reports] == [814071, 38424, 1092638, 684796]
    for name in ("row_hits", "row_misses", "row_waits", "refresh_waits", "stall_memory", "memory_conflicts"):
        assert [report.counters[name] for report in reports] == [0] * 4


def test_every_figure_of_the_memories_counts() -> None:
    problem = canonical("conv_integer", "uint8[1x256x14x14]", "int8[256x256x3x3]", pads=[1, 1, 1, 1])
    edge = asic_sim.load("edge")
    base = asic_sim.simulate(problem, edge)
    assert base.counters["row_misses"] > 0
    assert base.counters["refresh_waits"] > 0
    for changes in (
        {"dram_row_miss_cycles": 200}, {"dram_refresh_cycles": 700}, {"dram_refresh_interval_cycles": 200},
        {"dram_burst_bytes": 512}, {"dram_banks": 1, "dram_row_miss_cycles": 100},
        {"activation_sram_bytes_per_cycle": 8}, {"weight_sram_bytes_per_cycle": 8},
        {"activation_sram_bytes_per_cycle": 16, "activation_sram_banks": 1},
    ):  # fmt: skip
        assert asic_sim.simulate(problem, dataclasses.replace(edge, **changes)).cycles > base.cycles, changes
    # of one port, what DRAM brings and what the array reads go through one bank by turns
    narrow = {"activation_sram_bytes_per_cycle": 16, "activation_sram_banks": 1}
    both, one = (
        asic_sim.simulate(problem, dataclasses.replace(edge, **narrow, activation_sram_ports=ports)) for ports in (2, 1)
    )
    assert (both.counters["memory_conflicts"], one.counters["memory_conflicts"] > 0) == (0, True)
    assert one.cycles > both.cycles


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


def test_whole_tiles_take_their_whole_time() -> None:
    """2 x 2 of 2 x 3 weights are used in the last tile of each strip: 3 tiles of 6 bytes all the same."""
    stage = alone(product(4, 6, 2))
    used, whole = (native.time_program(small_design(whole_weight_tiles=w), stage, RESIDENT) for w in (False, True))
    assert (used["weight_bytes"], whole["weight_bytes"]) == (3 * 4, 3 * 6)


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


def versatile(name: str) -> asic_sim.Hardware:
    """A shipped design whose array multiplies int8 and float32, whatever it is made for."""
    return dataclasses.replace(asic_sim.load(name), formats=(("int8", 1), ("float32", 1)))


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
    design = versatile(name)
    report = asic_sim.simulate(problem, design)
    assert report.cycles == sum(report.counters[key] for key in SUMMANDS)
    assert report.cycles * design.elements >= report.macs
    assert report.cycles * design.dram_bytes_per_cycle >= report.dram_bytes
    assert report.cycles >= report.counters["vector_busy"]
    assert 0 <= report.utilisation <= 1
    if problem.op not in ops.FAMILIES["pool"]:
        assert report.macs == ops.SPECS[problem.op].work(problem).macs
    # everything that goes in comes from DRAM at least once; y goes there
    least = sum(tensor.nbytes for tensor in (*problem.inputs, problem.outputs[0]) if tensor is not None)
    assert report.dram_bytes >= least
    assert report.microseconds == report.cycles / design.clock_mhz


@pytest.mark.parametrize("name", [name for name in asic_sim.shipped() if asic_sim.load(name).cores == 1])
@pytest.mark.parametrize("problem", LAYERS, ids=str)
def test_more_memory_bandwidth_is_never_slower(problem: Problem, name: str) -> None:
    """Where the port is a pipe, and a core has it to itself. Else a mapping is chosen as if it were so, and rows, refreshes
    and the other cores are met as it comes."""
    design = dataclasses.replace(versatile(name), **PIPE)
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
        for case in spec.cases() if not spec.training else ():
            problem = ops.canonical(op, case.inputs, case.attributes, case.outputs)
            if problem.dtype in ("float64", "float16"):
                with pytest.raises(QuatrefoilError, match=f"asic: {op}: the array computes .*, not {problem.dtype}"):
                    asic_sim.simulate(problem)
                continue
            for name in asic_sim.shipped():
                report = asic_sim.simulate(problem, versatile(name))
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
        report = asic_sim.simulate(problem, versatile("tpu_like"))
    except QuatrefoilError as error:
        assert "too large" in str(error) or "stops at 2^50" in str(error)
    else:
        assert min(report.counters.values()) >= 0
        assert report.cycles == sum(report.counters[key] for key in SUMMANDS)
