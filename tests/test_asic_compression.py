"""Compressed weights on the simulated chip: the two clocks, folds by hand, and what follows from a weight's numbers."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil import asic_sim, ops
from quatrefoil.asic_sim import _native as native
from quatrefoil.asic_sim import compression, programs
from quatrefoil.asic_sim.compression import strips_of
from quatrefoil.asic_sim.hardware import CHOICES
from quatrefoil.asic_sim.programs import alone, product
from quatrefoil.asic_sim.simulation import Setting, timed
from quatrefoil.ops import compressed, conv
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import collect_costs

SPARSE = asic_sim.load("edge_sparse")
PLAIN = replace(SPARSE, codebook_entries=0, index_bits=0, zero_gating=False, skip_block_rows=0)
FRESH_SEED = time.time_ns() % 2**31


@pytest.mark.parametrize("seed", [7, FRESH_SEED], ids=["fixed", "fresh"])
@pytest.mark.parametrize("dataflow", CHOICES["dataflow"])
@pytest.mark.parametrize("weight_load", CHOICES["weight_load"])
def test_fast_equals_reference(seed: int, dataflow: str, weight_load: str) -> None:
    print(f"seed {seed}")
    rng, values = random.Random(f"{seed} {dataflow} {weight_load}"), np.random.default_rng(seed)
    for number in range(16):
        trial = programs.try_compressed_product(rng, values, dataflow, weight_load)
        assert trial.agrees, f"seed {seed}, product {number}: {trial}"
        trial = programs.try_compressed_program(rng, dataflow, weight_load)
        assert trial.agrees, f"seed {seed}, program {number}: {trial}"


def small(**changes: object):
    figures = {
        "array_rows": 2, "array_columns": 3, "accumulator_entries": 100, "weight_fifo_tiles": 2,
        "activation_sram_bytes": 10_000, "weight_sram_bytes": 0, "dram_bytes_per_cycle": 4, "dram_latency_cycles": 5,
        "vector_lanes": 3,
    }  # fmt: skip
    return native.Design(**{**figures, **changes})


def test_a_skipped_row_by_hand() -> None:
    """8 rows of 6 columns for strips of 3: the first strip has weights in rows 1, 3 and 4, so two folds, the second in none, so
    one fold. 12 bits each: 2 weights in the first fold are 3 bytes, 1 in the second is 2. 6 products for each of 5 places are
    made with them and 3 for the second strip, at 3 columns; 3 of those for a place are with a weight."""
    w = np.zeros((1, 8, 6), bool)
    w[0, 1, 0] = w[0, 3, 2] = w[0, 4, 1] = True
    strips = strips_of(w, 3, 1, 8)
    assert (strips.first.tolist(), strips.before.tolist()) == ([0, 4, 6], [0, 1, 2, 3, 0, 0])
    assert strips.taken.tolist() == [3, 1]
    stored = native.Stored(
        bits=12, table_bytes=7, decoded=1, multiplied=3, first=strips.first, before=strips.before, taken=strips.taken
    )
    cost = native.time_program(small(), alone(product(5, 8, 6, stored=stored)), native.Mapping(True))
    assert cost == native.step_program(small(), alone(product(5, 8, 6, stored=stored)), native.Mapping(True))[0]
    assert (cost["folds"], cost["busy"], cost["weight_bytes"], cost["weight_reads"]) == (3, 15, 3 + 2 + 0 + 7, 5)
    assert (cost["macs"], cost["gated_macs"], cost["lookups"]) == (5 * 3 * (3 + 1), 5 * (12 - 3), 3)
    assert cost["activation_reads"] == 5 * (2 + 1 + 1)
    assert cost["activation_bytes"] == 5 * 8  # the box has them all


@pytest.mark.parametrize("block_rows", [0, 1, 2, 4])
def test_strips_follow_the_rule(block_rows: int) -> None:
    """Rows, stored weights and activations of each strip, weight by weight, in the words of docs/asic.md."""
    rng, index_bits, array_columns = np.random.default_rng(block_rows), 2, 3
    high = max(block_rows, 1)
    for depth, columns, density in ((1, 1, 0.5), (10, 7, 0.3), (9, 5, 0.05), (13, 3, 1.0), (40, 2, 0.02)):
        matrix = rng.random((2, depth, columns)) < density
        strips, number = strips_of(matrix, array_columns, block_rows, index_bits), 0
        for group in matrix:
            for start in range(0, columns, array_columns):
                strip = group[:, start : start + array_columns]
                rows, stored, taken, place, last = [], [], 0, 0, -1
                for top in range(0, depth, high):
                    block, count = strip[top : top + high], 0
                    for column in block.T:
                        for at in np.flatnonzero(column):
                            count += 1 + (place + at - last - 1) // 2**index_bits
                            last = place + at
                        place += high
                    rows.append(int(block.sum(0).max()) if block_rows else 1)
                    stored.append(count)
                if not any(rows):
                    rows[0] = 1
                before = [0]
                for top, (height, count) in enumerate(zip(rows, stored)):
                    so_far = before[-1]
                    before += [so_far + count * (row + 1) // height for row in range(height)]
                    taken += len(strip[top * high : (top + 1) * high]) if height else 0
                assert strips.before[strips.first[number] : strips.first[number + 1]].tolist() == before
                assert strips.taken[number] == taken
                number += 1
        assert len(strips.first) == number + 1


@pytest.mark.parametrize("dataflow", ["weight", "output", "input"])
def test_a_slow_decoder_is_waited_for(dataflow: str) -> None:
    design = small(dataflow=native.Dataflow.__members__[dataflow], dram_bytes_per_cycle=1000, dram_latency_cycles=0)
    costs = [
        native.time_program(
            design, alone(product(4, 40, 3, stored=native.Stored(bits=8, decoded=rate))), native.Mapping(True)
        )
        for rate in (0, 3, 1)
    ]
    assert costs[0]["cycles"] <= costs[1]["cycles"] < costs[2]["cycles"]
    assert costs[2]["cycles"] >= 40 * 3
    assert costs[2]["stall_weights" if dataflow == "weight" else "stall_memory"] > 0
    assert costs[0]["weight_bytes"] == costs[2]["weight_bytes"]


def test_lists_that_do_not_fit_are_refused() -> None:
    stored = native.Stored(bits=8, first=[0, 3], before=[0, 1, 2], taken=[2])
    for stage in (product(2, 2, 4, stored=stored), product(2, 1, 3, stored=stored)):
        with pytest.raises(ValueError, match="do not belong to the stage"):
            native.time_program(small(), alone(stage), native.Mapping())
    streams = small(dataflow=native.Dataflow.input)
    with pytest.raises(ValueError, match="do not stream"):
        native.time_program(streams, alone(product(2, 2, 3, stored=stored)), native.Mapping())


def cost_of(w: np.ndarray, design: asic_sim.Hardware = SPARSE, as_format: str = "int8", places: int = 14):
    x = Tensor("float32", (1, w.shape[1], places, places))
    problem = ops.canonical("conv", [x, Tensor.of(w)], {"pads": (w.shape[-1] // 2,) * 4})
    numbers = compression.known({conv.W: w}) if design.compresses else compression.UNKNOWN
    setting = replace(Setting.of_problem(problem, as_format), numbers=numbers)
    return timed(conv_lower(), problem, design, setting)


def conv_lower():
    from quatrefoil.asic_sim.backend import LOWERINGS

    return LOWERINGS["conv"]


def pruned(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * (rng.random(shape) < density)


def test_what_is_dense_costs_what_it_did() -> None:
    w = np.random.default_rng(0).standard_normal((64, 32, 3, 3), np.float32)
    there, here = cost_of(w), cost_of(w, PLAIN)
    assert there.counters == here.counters
    assert there.energy_pj == here.energy_pj


def test_two_of_four_takes_half_of_the_array() -> None:
    """2 of 4 weights along the depth, which runs over channels innermost: half of the products, at 12 bits in place of 8 for
    half of the weights."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((64, 32, 3, 3), np.float32)
    order = np.argsort(rng.random((64, 8, 4, 3, 3)), axis=2)
    w *= (order < 2).reshape(w.shape)
    there, dense = cost_of(w), cost_of(w, PLAIN)
    assert there.macs * 2 == dense.macs and there.counters["gated_macs"] == 0
    assert there.counters["busy"] * 2 == dense.counters["busy"]
    assert 0.75 <= there.counters["weight_bytes"] / dense.counters["weight_bytes"] < 0.76
    assert there.cycles < 0.65 * dense.cycles
    no_choice = cost_of(w, replace(SPARSE, skip_block_rows=1))
    assert no_choice.macs == dense.macs
    assert no_choice.counters["gated_macs"] * 2 == dense.macs
    assert no_choice.energy["array"].low * 2 == pytest.approx(dense.energy["array"].low)
    assert no_choice.counters["busy"] == dense.counters["busy"]


def test_empty_rows_and_columns() -> None:
    """Channels of x that nobody reads are not streamed; a column of tiles without any weight keeps one row."""
    rng = np.random.default_rng(2)
    w = rng.standard_normal((32, 32, 1, 1), np.float32)
    w[:, 8:] = 0
    w[16:] = 0
    there, dense = cost_of(w, replace(SPARSE, skip_block_rows=1)), cost_of(w, PLAIN)
    assert dense.macs == 32 * 32 * 196
    assert there.macs == (8 + 1) * 16 * 196 and there.counters["gated_macs"] == 16 * 196
    assert there.cycles < dense.cycles


@pytest.mark.parametrize("values", [16, 256])
def test_codes_are_looked_up(values: int) -> None:
    """float32 by codes of 4 or 8 bits: of weights that a layer on one place waits for."""
    w = np.random.default_rng(3).integers(1, values + 1, (256, 256, 1, 1)).astype(np.float32)
    there, dense = cost_of(w, as_format="float32", places=1), cost_of(w, PLAIN, "float32", 1)
    bits = 4 if values == 16 else 8
    assert there.counters["weight_bytes"] == 256 * 256 * bits // 8 + 4 * values
    assert dense.counters["weight_bytes"] == 256 * 256 * 4
    assert there.counters["lookups"] == 256 * 256 and there.energy["decoder"].low > 0
    assert there.cycles < dense.cycles / 2
    slow = cost_of(w, replace(SPARSE, decoded_weights_per_cycle=1), "float32", 1)
    assert slow.cycles >= 256 * 256
    assert slow.counters["weight_bytes"] == there.counters["weight_bytes"]


def test_numbers_count_and_not_the_operator() -> None:
    """A dense, a sparse and a shared convolution of the same weights, run with their arrays, cost the same; from types alone
    something is assumed, and said."""
    rng = np.random.default_rng(4)
    w = rng.choice(np.array([0, 0, 0, 0, 1, -2], np.float32), (24, 12, 3, 3))
    w[:, 5] = 0
    x = rng.standard_normal((1, 12, 9, 9), np.float32)
    book, codes = np.unique(w, return_inverse=True)
    costs, results = [], []
    with asic_sim.use_design(SPARSE):
        for call in (
            lambda: qf.conv2d(x, w, padding=1, backend="asic"),
            lambda: qf.sparse_conv(x, qf.sparse_weight(w), w.shape, padding=1, backend="asic"),
            lambda: qf.shared_conv(x, codes.reshape(w.shape).astype(np.uint8), book, padding=1, backend="asic"),
        ):
            with collect_costs() as told:
                results.append(call())
            costs.append(told[-1].counters)
    assert costs[0] == costs[1] == costs[2]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    problem = sparse_problem(x, w)
    report = asic_sim.simulate(problem, SPARSE)
    assert "lie evenly" in report.assumed
    assert report.counters["weight_bytes"] < asic_sim.simulate(problem, PLAIN).counters["weight_bytes"]
    assert report.counters["gated_macs"] + np.count_nonzero(w) * 81 == report.macs
    assert asic_sim.simulate(problem, PLAIN).assumed == ""


def sparse_problem(x: np.ndarray, w: np.ndarray) -> Problem:
    rows = compressed.rows_of(w)
    return ops.canonical(
        "sparse_conv", [Tensor.of(x), *map(Tensor.of, rows)], {"w_shape": w.shape, "pads": (1, 1, 1, 1)}
    )


def test_a_model_brings_its_weights() -> None:
    """Gemm and Conv whose weights are pruned by hand; what is no constant is assumed to be dense, and said."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 64])
    rng = np.random.default_rng(5)
    kernel, matrix = pruned(rng, (16, 32, 3, 3), 1.0), pruned(rng, (64, 16 * 36), 1.0)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "m"], ["y"], transB=1),
    ]  # fmt: skip

    def report(scale: float, constant: bool = True):
        kept = [kernel * (rng.random((1, 32, 1, 1)) < scale), matrix * (rng.random((1, 576)) < scale)]
        weights = [numpy_helper.from_array(w, name) for w, name in zip(kept, "km")]
        given = [x] if constant else [x, *(helper.make_tensor_value_info(w.name, 1, w.dims) for w in weights)]
        graph = helper.make_graph(nodes, "g", given, [y], weights if constant else [])
        return qf.simulate(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), SPARSE)

    whole, half, unknown = report(1.0), report(0.4), report(0.4, constant=False)
    assert [each.assumed for each in whole.reports] == ["", ""]
    assert all(each.assumed.startswith("no weight is taken to be zero") for each in unknown.reports)
    assert whole.counters == unknown.counters
    for dense, sparse in zip(whole.reports, half.reports, strict=True):
        assert sparse.macs < 0.6 * dense.macs
        assert sparse.counters["gated_macs"] == 0
        assert sparse.counters["weight_bytes"] < 0.7 * dense.counters["weight_bytes"]


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_recurrent_layers(op: str) -> None:
    """Units of a layer whose columns of R are zero are not streamed in its steps."""
    rng, gates = np.random.default_rng(6), {"lstm": 4, "gru": 3}[op]
    x, w = rng.standard_normal((6, 1, 24), np.float32), rng.standard_normal((2, gates * 32, 24), np.float32)
    dense = rng.standard_normal((2, gates * 32, 32), np.float32)
    kept = dense * (np.arange(32) % 4 == 0)
    call, costs = getattr(qf, op), []
    with asic_sim.use_design(SPARSE):
        for r in (dense, kept):
            with collect_costs() as told:
                call(x, w, r, direction="bidirectional", backend="asic")
            costs.append(told[-1])
    product_with_w = 2 * 6 * gates * 32 * 24
    assert costs[0].macs == product_with_w + 2 * 6 * gates * 32 * 32
    assert costs[1].macs == product_with_w + 2 * 6 * gates * 32 * 8
    assert costs[1].cycles < costs[0].cycles


def test_several_cores() -> None:
    """Each core reads the rows of weights that its places need; columns of a strip cannot be divided."""
    w = pruned(np.random.default_rng(7), (32, 32, 3, 3), 0.1)
    one, two = cost_of(w), cost_of(w, replace(SPARSE, cores=2, divide="rows"))
    for name in ("macs", "gated_macs"):
        assert two.counters[name] == one.counters[name] > 0
    assert two.cycles < one.cycles
    with pytest.raises(asic_sim.DesignError, match=r"divide is channels; .* write rows or batch"):
        replace(SPARSE, cores=2)
    w = np.random.default_rng(8).integers(1, 17, (256, 256, 1, 1)).astype(np.float32)
    coded = replace(PLAIN, codebook_entries=16, cores=2)
    told = cost_of(w, coded, "float32", 1).counters
    assert told["weight_bytes"] == 256 * 256 // 2 + 2 * 16 * 4 and told["lookups"] == 256 * 256
