"""Holds the generated Verilog to the simulator: cycles, every counter that a bench can see, and numbers.

    python -m quatrefoil.asic_sim.rtl.prove --runs 500 --arrays 4x4 8x8 16x16 32x32

A run is, by chance, a plain product with its numbers, a program of convolutions (groups, windows, dependent repeats)
for its timing, or a pooling with its numbers, on random memories. Each array is built once for each dataflow and
scheme; then come real layers. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.asic_sim import hardware
from quatrefoil.asic_sim.rtl.verilator import DATAFLOWS, LOADS, Memory, Model, Stage, build
from quatrefoil.asic_sim.simulation import native, native_dram

KINDS = tuple((flow, load) for flow in DATAFLOWS for load in (LOADS if flow != "output" else LOADS[:1]))
"""Dataflows with the schemes that they can have; where sums rest nothing is laid in."""
LAYERS = {
    "ResNet-50 1x1 64->64 at 56x56": (56 * 56, 64, 64),
    "ResNet-50 3x3 512->512 at 7x7, gathered": (7 * 7, 9 * 512, 512),
}
"""(rows, depth, columns) of real layers as products."""
Axis = tuple[int, int, int, int, int, int]


def chip(rows: int, columns: int, lanes: int, dataflow: str, weight_load: str) -> hardware.Hardware:
    """The design ``edge`` with another array, and memories on the chip that are never a limit."""
    return dataclasses.replace(
        hardware.load("edge"), name=f"{dataflow}_{weight_load}_{rows}x{columns}", array_rows=rows,
        array_columns=columns, vector_lanes=lanes, dataflow=dataflow, weight_load=weight_load,
        activation_sram_bytes_per_cycle=0, weight_sram_bytes_per_cycle=0,
    )  # fmt: skip


def random_memory(rng: random.Random, design: hardware.Hardware) -> Memory:
    return Memory(
        accumulator_entries=min(design.accumulator_entries, rng.choice([2, 4, 8, 16, 40, 100])),
        weight_fifo_tiles=rng.randint(1, 4),
        activation_sram_bytes=rng.choice([400, 800, 2000, 8000]) * max(1, design.array_rows // 8),
        weight_sram_bytes=rng.choice([0, 0, 500, 5000]),
        dram_bytes_per_cycle=rng.randint(1, 40) * max(1, design.array_rows // 8),
        dram_latency_cycles=rng.randint(0, 50),
        dram_channels=rng.choice([1, 1, 2, 3]),
        dram_banks=rng.choice([1, 2, 8]),
        dram_burst_bytes=rng.choice([1, 1, 4, 16]),
        dram_row_bytes=rng.choice([32, 256, 1024]),
        dram_row_miss_cycles=rng.choice([0, 3, 20]),
        dram_refresh_interval_cycles=rng.choice([40, 1000]),
        dram_refresh_cycles=rng.choice([0, 0, 4, 13]),
        resident=rng.random() < 0.5,
        most_places=rng.choice([1, 3, 10, 2**30]),
    )


def random_axis(rng: random.Random, longest: int) -> Axis:
    size, taps, step, pad, stride = (rng.randint(a, b) for a, b in ((1, longest), (1, 3), (1, 2), (0, 2), (1, 3)))
    room = size + 2 * pad - ((taps - 1) * step + 1)
    return (size, size, 1, 1, 0, 1) if room < 0 else (size, room // stride + 1, taps, stride, -pad, step)


def random_stage(rng: random.Random, dependent: bool) -> Stage:
    batch = rng.randint(1, 3)
    return Stage(
        axes=[(batch, batch, 1, 1, 0, 1), (1, 1, 1, 1, 0, 1), random_axis(rng, 5), random_axis(rng, 7)],
        channels=rng.randint(1, 12),
        columns=rng.randint(1, 20),
        groups=rng.choice([1, 1, 2]),
        activation_bytes=rng.choice([0, 1] if dependent else [1, 4]),
        weight_bytes=rng.choice([1, 4]),
        output_bytes=rng.choice([0, 1, 4, 8]),
        lane_cycles=rng.randint(1, 5),
        weights_kept=rng.random() < 0.4,
        dependent=dependent,
        opening_bytes=rng.choice([0, 0, 30]),
        repeats=rng.randint(1, 3) if dependent else 1,
    )


def native_design(design: hardware.Hardware, memory: Memory) -> Any:
    module = native()
    return module.Design(
        array_rows=design.array_rows, array_columns=design.array_columns, vector_lanes=design.vector_lanes,
        accumulator_entries=memory.accumulator_entries, weight_fifo_tiles=memory.weight_fifo_tiles,
        activation_sram_bytes=memory.activation_sram_bytes, weight_sram_bytes=memory.weight_sram_bytes,
        dram_bytes_per_cycle=memory.dram_bytes_per_cycle, dram_latency_cycles=memory.dram_latency_cycles,
        dataflow=getattr(module.Dataflow, design.dataflow), weight_load=getattr(module.WeightLoad, design.weight_load),
        whole_weight_tiles=design.whole_weight_tiles, dram=native_dram(memory),
    )  # fmt: skip


def simulated(design: hardware.Hardware, memory: Memory, stages: Sequence[Stage]) -> dict[str, int]:
    """What the simulator's fast mode says of the same program."""
    module = native()
    sections = module.Sections(
        [[module.Stage(
            groups=s.groups, channels=s.channels, columns=s.columns, axes=[module.Axis(*axis) for axis in s.axes],
            activation_bytes=s.activation_bytes, weight_bytes=s.weight_bytes, output_bytes=s.output_bytes,
            lane_cycles=s.lane_cycles, weights_kept=s.weights_kept, dependent=s.dependent,
            opening_bytes=s.opening_bytes,
        )] for s in stages],
        [s.repeats for s in stages],
    )  # fmt: skip
    mapping = module.Mapping(memory.resident, memory.most_places)
    return dict(module.time_program(native_design(design, memory), sections, mapping))


def compare_product(model: Model, memory: Memory, stage: Stage, seed: int) -> tuple[int, str]:
    """A product with numbers: its cycles, and what differs ('' for nothing)."""
    values = np.random.default_rng(seed)
    rows, depth, columns = stage.axes[0][0], stage.channels, stage.columns
    a = values.integers(-255, 256, (rows, depth)).astype(np.int16)
    w = values.integers(-255, 256, (depth, columns)).astype(np.int16)
    counted, sums = model.multiply(memory, stage, a, w)
    wrong = int(np.count_nonzero(sums != a.astype(np.int32) @ w.astype(np.int32)))
    return counted["cycles"], _differences(counted, simulated(model.design, memory, [stage]), wrong)


def compare_program(model: Model, memory: Memory, stages: Sequence[Stage]) -> tuple[int, str]:
    counted = model.run(memory, stages)
    return counted["cycles"], _differences(counted, simulated(model.design, memory, stages), 0)


def compare_pooling(model: Model, memory: Memory, rng: random.Random) -> tuple[int, str]:
    module = native()
    planes = rng.randint(1, 3)
    axes = [(planes, planes, 1, 1, 0, 1), random_axis(rng, 4), random_axis(rng, 7), random_axis(rng, 7)]
    outputs, taps = (int(np.prod([axis[i] for axis in axes])) for i in (1, 2))
    average, input_bytes, output_bytes = rng.random() < 0.5, rng.choice([0, 1, 4]), rng.choice([0, 1, 4])
    values = np.random.default_rng(rng.randrange(2**31))
    window = values.integers(-255, 256, (outputs, taps)).astype(np.int16)
    inside = values.random((outputs, taps)) < 0.8
    counted, out = model.pool(memory, axes, average, window, inside, input_bytes, output_bytes)
    lowest = -(1 << (model.formats.value - 1))
    wanted = np.where(inside, window, 0).sum(1) if average else np.where(inside, window, lowest).max(1)
    stage = module.VectorStage(
        axes=[module.Axis(*axis) for axis in axes], input_bytes=input_bytes, output_bytes=output_bytes,
        lane_cycles=taps + average,
    )  # fmt: skip
    # what a block waits for is not on the Verilog's ports
    told = ("cycles", "busy", "vector_busy", "activation_bytes", "output_bytes", "row_hits", "row_misses", "row_waits",
            "refresh_waits")  # fmt: skip
    timed = module.time_vector(native_design(model.design, memory), stage)
    return counted["cycles"], _differences(
        {name: counted[name] for name in told}, timed, int(np.count_nonzero(out != wanted))
    )  # fmt: skip


def _differences(counted: dict[str, int], timed: dict[str, int], wrong: int) -> str:
    texts = [f"{k}: Verilog {v}, simulator {timed[k]}" for k, v in counted.items() if v != timed[k]]
    if wrong:
        texts.append(f"{wrong} numbers")
    return "; ".join(texts)


def random_run(model: Model, seed: int) -> tuple[str, int, str]:
    """One run of a seed: its kind, its cycles, and what differs ('' for nothing)."""
    rng = random.Random(seed)
    memory, kind = random_memory(rng, model.design), rng.random()
    if kind < 0.6:
        longest = 2 * max(model.design.array_rows, model.design.array_columns) + 8
        rows, depth, columns = (rng.randint(1, longest) for _ in range(3))
        figures = {"lane_cycles": rng.randint(1, 4), "weights_kept": rng.random() < 0.5}
        return "product", *compare_product(model, memory, Stage.product(rows, depth, columns, **figures), seed)
    if kind < 0.85:
        stages = [random_stage(rng, False), random_stage(rng, True)]
        return "program", *compare_program(model, memory, stages)
    return "pooling", *compare_pooling(model, memory, rng)


def layer_memory(design: hardware.Hardware) -> Memory:
    """The design's own memories."""
    return Memory(
        design.accumulator_entries, design.weight_fifo_tiles, design.activation_sram_kib * 1024,
        design.weight_sram_kib * 1024, design.dram_bytes_per_cycle, design.dram_latency_cycles, design.dram_channels,
        design.dram_banks, design.dram_burst_bytes, design.dram_row_bytes, design.dram_row_miss_cycles,
        design.dram_refresh_interval_cycles, design.dram_refresh_cycles,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="prove", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=500, help="random runs, shared out evenly (500)")
    parser.add_argument("--arrays", nargs="+", default=["4x4", "5x3", "8x8", "16x16", "32x32"], metavar="RxC")
    parser.add_argument("--kinds", nargs="+", default=["/".join(kind) for kind in KINDS], metavar="DATAFLOW/SCHEME")
    parser.add_argument("--layers", default="16x16", metavar="RxC", help="the array that real layers run on (16x16)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="(a fresh one)")
    options = parser.parse_args(arguments)
    builds = [(array, kind) for array in options.arrays for kind in options.kinds]
    print(f"seed {options.seed}, {len(builds)} builds")
    done = differ = cycles = 0
    for number, (array, kind) in enumerate(builds):
        rows, columns = (int(text) for text in array.split("x"))
        design = chip(rows, columns, min(rows + columns - 1, 16), *kind.split("/"))
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            model = build(design, Path(folder))
            built = time.perf_counter() - began
            runs = (options.runs + number) // len(builds)
            results = [random_run(model, options.seed + done + i) for i in range(runs)]
            if array == options.layers:
                for name, shape in LAYERS.items():
                    results.append((name, *compare_product(model, layer_memory(design), Stage.product(*shape), 1)))
        took = time.perf_counter() - began - built
        wrong = [(i, result) for i, result in enumerate(results) if result[2]]
        total = sum(result[1] for result in results)
        print(f"{array:>6} {kind:<22} built in {built:5.1f} s  {len(results):4} runs  {total:9,} cycles in {took:5.1f} s  "
              f"{len(wrong)} differ", flush=True)  # fmt: skip
        for i, (what, _, text) in wrong[:3]:
            print(f"       seed {options.seed + done + i}, {what}: {text}")
        for name, count, text in results[runs:]:
            print(f"       {name}: {count:,} cycles{', ' + text if text else ', no difference'}")
        done, differ, cycles = done + len(results), differ + len(wrong), cycles + total
    print(f"{done} runs on {len(options.arrays)} arrays, {len(options.kinds)} dataflows and schemes, "
          f"{cycles:,} cycles: {differ} differ")  # fmt: skip
    return differ > 0


if __name__ == "__main__":
    sys.exit(main())
