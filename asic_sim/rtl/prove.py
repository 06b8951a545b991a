"""Holds the generated Verilog to the simulator: cycles, every counter that a bench can see, and numbers.

    python -m quatrefoil.asic_sim.rtl.prove --runs 500 --arrays 4x4 8x8 16x16 32x32
    python -m quatrefoil.asic_sim.rtl.prove --mutants

A run is, by chance, a plain product with its numbers, what its lanes do with sums and multipliers that are hard to
round, a program of convolutions (groups, windows, dependent repeats) for its timing, or a pooling with its numbers, on
random memories. Each array is built once for each dataflow and scheme; then come real layers, quantised, held to the
numbers of the kernel of qlinear_conv. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil import settings
from quatrefoil.asic_sim import conv, hardware
from quatrefoil.asic_sim.rtl.generator import generate
from quatrefoil.asic_sim.rtl.mutants import MUTANTS, Mutant
from quatrefoil.asic_sim.rtl.verilator import DATAFLOWS, LOADS, Ending, Memory, Model, Stage, VerilatorError, build
from quatrefoil.asic_sim.simulation import native, native_dram
from quatrefoil.numerics import requantize, requantize_multiplier
from quatrefoil.ops import conv as ops
from quatrefoil.problem import Tensor

KINDS = tuple((flow, load) for flow in DATAFLOWS for load in (LOADS if flow != "output" else LOADS[:1]))
"""Dataflows with the schemes that they can have; where sums rest nothing is laid in."""
Axis = tuple[int, int, int, int, int, int]
ALONE: Axis = (1, 1, 1, 1, 0, 1)


@dataclass(frozen=True)
class Layer:
    """A square convolution, padded so that stride 1 keeps its size."""

    channels: int
    outputs: int
    size: int
    taps: int
    stride: int = 1

    @property
    def pad(self) -> int:
        return self.taps // 2

    @property
    def axis(self) -> Axis:
        return (self.size, (self.size - 1) // self.stride + 1, self.taps, self.stride, -self.pad, 1)


LAYERS = {
    "7x7/2 3->64 at 224x224": Layer(3, 64, 224, 7, 2),
    "1x1 64->64 at 56x56": Layer(64, 64, 56, 1),
    "3x3 64->64 at 56x56": Layer(64, 64, 56, 3),
    "3x3/2 128->128 at 56x56": Layer(128, 128, 56, 3, 2),
    "3x3 512->512 at 7x7": Layer(512, 512, 7, 3),
}
"""Of ResNet-50."""


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


def finished(sums: np.ndarray, ending: Ending) -> np.ndarray:
    """What lanes have to make of sums (M, N) int32: int32, or integers of 8 bits as int32."""
    if ending.bias is not None:
        sums = sums + ending.bias
    if ending.clip is not None:
        sums = np.clip(sums, *ending.clip)
    if ending.multiplier is None:
        return sums
    low, high = ending.bounds
    dtype = "uint8" if high > 127 else "int8"
    with np.errstate(over="ignore"):
        y = requantize(sums, ending.multiplier, ending.zero_point, dtype)
    return np.clip(y.astype(np.int32), low, high)


def random_sums(values: np.random.Generator, count: int) -> np.ndarray:
    """int32 of every size; half of those beyond 24 bits lie where float32 has to round a tie."""
    bits = values.integers(0, 33, count)
    sums = values.integers(0, 1 << bits, dtype=np.int64)
    half = np.where(bits > 25, 1 << np.maximum(bits - 26, 0), 0)
    tie = (values.random(count) < 0.5) & (bits > 25)
    sums = np.where(tie, (sums & ~(2 * half - 1)) | half, sums)
    sums = np.where(values.random(count) < 0.5, sums, -sums)
    return np.where(values.random(count) < 0.02, -(2**31), np.clip(sums, -(2**31), 2**31 - 1)).astype(np.int32)


def hard_multipliers(values: np.random.Generator, sums: np.ndarray) -> np.ndarray:
    """Finite float32, one for each sum: most take it to within a few roundings of n or n + 1/2, some are anything."""
    wanted = values.integers(-300, 301, sums.shape) + values.choice([0.0, 0.5, 0.5], sums.shape)
    near = (wanted / np.where(sums == 0, 1, sums)).astype(np.float32)
    steps = np.abs(near).view(np.int32) + values.integers(-2, 3, sums.shape)
    near = np.copysign(np.maximum(steps, 0).astype(np.int32).view(np.float32), near)
    power = np.ldexp(np.float32(0.5), values.integers(-40, 4, sums.shape)).astype(np.float32)
    anything = values.integers(0, 0x7F800000, sums.shape, dtype=np.int64).astype(np.int32).view(np.float32)
    kind = values.integers(0, 10, sums.shape)
    return np.choose(np.minimum(np.maximum(kind - 7, 0), 2), [near, power, anything])


def random_ending(rng: random.Random, values: np.random.Generator, sums: np.ndarray) -> Ending:
    """For sums like these; their multipliers are hard to round for the first row."""
    columns = sums.shape[1]
    ending = Ending()
    if rng.random() < 0.7:
        ending = Ending(values.integers(-(2**17), 2**17, (columns,)).astype(np.int32))
    if rng.random() < 0.3:
        low = rng.choice([0, 0, -(2**31), -rng.randrange(2**20)])
        ending = dataclasses.replace(ending, clip=(low, rng.choice([2**31 - 1, rng.randrange(2**20)])))
    if rng.random() < 0.7:
        low, high = rng.choice([(0, 255), (-128, 127)])
        zero_point = rng.randint(low, high)
        multiplier = hard_multipliers(values, finished(sums, ending)[0])
        bounds = (zero_point if rng.random() < 0.2 else low, high)  # a Relu's
        ending = dataclasses.replace(ending, multiplier=multiplier, zero_point=zero_point, bounds=bounds)
    return ending


def compare_numbers(
    model: Model, memory: Memory, stage: Stage, a: np.ndarray, w: np.ndarray, ending: Ending, wanted: np.ndarray
) -> tuple[int, str]:
    """A stage with numbers: its cycles, and what differs ('' for nothing)."""
    counted, out = model.multiply(memory, stage, a, w, ending)
    wrong = int(np.count_nonzero(out != wanted))
    return counted["cycles"], _differences(counted, simulated(model.design, memory, [stage]), wrong)


def compare_product(model: Model, memory: Memory, rng: random.Random) -> tuple[int, str]:
    longest = 2 * max(model.design.array_rows, model.design.array_columns) + 8
    rows, depth, columns = (rng.randint(1, longest) for _ in range(3))
    values = np.random.default_rng(rng.randrange(2**31))
    a = values.integers(-255, 256, (rows, depth)).astype(np.int16)
    w = values.integers(-255, 256, (depth, columns)).astype(np.int16)
    sums = a.astype(np.int32) @ w.astype(np.int32)
    ending = random_ending(rng, values, sums)
    idle = rng.choice([0, 0, 1])
    stage = Stage.product(
        rows, depth, columns, lane_cycles=ending.lane_cycles + idle, weights_kept=rng.random() < 0.5
    )  # fmt: skip
    return compare_numbers(model, memory, stage, a, w, ending, finished(sums, ending))


def compare_rounding(model: Model, memory: Memory, rng: random.Random) -> tuple[int, str]:
    """Any 32-bit sums at the lanes: products of zeros, and biases."""
    values = np.random.default_rng(rng.randrange(2**31))
    columns = min(1 << model.formats.channels, 64 * model.design.array_columns)
    bias = random_sums(values, columns)
    low, high = rng.choice([(0, 255), (-128, 127)])
    ending = Ending(
        bias, multiplier=hard_multipliers(values, bias), zero_point=rng.randint(low, high), bounds=(low, high)
    )
    a, w = np.zeros((1, 1), np.int16), np.zeros((1, columns), np.int16)
    stage = Stage.product(1, 1, columns, lane_cycles=ending.lane_cycles)
    return compare_numbers(model, memory, stage, a, w, ending, finished(np.zeros((1, columns), np.int32), ending))


def compare_layer(model: Model, memory: Memory, layer: Layer, seed: int) -> tuple[int, str]:
    """A quantised layer, on random numbers of its size, against the kernel of qlinear_conv."""
    values = np.random.default_rng(seed)
    m, c, k = layer.outputs, layer.channels, layer.taps
    inputs: dict[int, Any] = {
        ops.Q_X: values.integers(0, 256, (1, c, layer.size, layer.size)).astype(np.uint8),
        ops.Q_X_SCALE: np.float32(0.0173),
        ops.Q_X_ZERO: np.uint8(values.integers(256)),
        ops.Q_W: values.integers(-128, 128, (m, c, k, k)).astype(np.int8),
        ops.Q_W_SCALE: values.uniform(0.001, 0.01, m).astype(np.float32),
        ops.Q_W_ZERO: np.zeros(m, np.int8),
        ops.Q_Y_SCALE: np.float32(0.8 * (c * k * k) ** 0.5 * 0.0055),
        ops.Q_Y_ZERO: np.uint8(values.integers(256)),
        ops.Q_BIAS: values.integers(-(2**15), 2**15, m).astype(np.int32),
    }
    arrays = [np.asarray(inputs[i]) for i in sorted(inputs)]
    attributes = {"strides": (layer.stride,) * 2, "pads": (layer.pad,) * 4}
    problem = ops.canonical_qlinear_conv([Tensor(x.dtype.name, x.shape) for x in arrays], attributes)
    kernel = next(kernel for kernel in conv.KERNELS if kernel.op == problem.op)
    wanted = kernel.prepare(problem, {i: x for i, x in enumerate(arrays) if i != ops.Q_X})(arrays)[0]

    around = ((0, 0), (0, 0), (layer.pad, layer.pad), (layer.pad, layer.pad))
    padded = np.pad(arrays[ops.Q_X].astype(np.int16) - np.int16(inputs[ops.Q_X_ZERO]), around)
    windows = np.lib.stride_tricks.sliding_window_view(padded[0], (k, k), (1, 2))[:, :: layer.stride, :: layer.stride]
    a = windows.transpose(1, 2, 3, 4, 0).reshape(-1, k * k * c)
    w = inputs[ops.Q_W].transpose(2, 3, 1, 0).reshape(k * k * c, m)
    scales = (inputs[i] for i in (ops.Q_X_SCALE, ops.Q_W_SCALE, ops.Q_Y_SCALE))
    ending = Ending(
        inputs[ops.Q_BIAS], multiplier=requantize_multiplier(*scales), zero_point=int(inputs[ops.Q_Y_ZERO]),
        bounds=(0, 255),
    )  # fmt: skip
    stage = Stage(
        [ALONE, ALONE, layer.axis, layer.axis], c, m, output_bytes=1, lane_cycles=ending.lane_cycles,
        weights_kept=w.size <= memory.weight_sram_bytes,
    )  # fmt: skip
    return compare_numbers(model, memory, stage, a, w, ending, wanted[0].reshape(m, -1).T.astype(np.int32))


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
    if kind < 0.5:
        return "product", *compare_product(model, memory, rng)
    if kind < 0.6:
        return "rounding", *compare_rounding(model, memory, rng)
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


def caught(mutant: Mutant, folder: Path, runs: int, seed: int) -> tuple[int, str]:
    """How many random runs it took to notice a mutant, and what then differed ('' where nothing did)."""
    design = chip(4, 5, 3, mutant.dataflow, mutant.weight_load)
    model = build(design, folder, texts=mutant.applied(generate(design)))
    for run in range(runs):
        try:
            what, _, text = random_run(model, seed + run)
        except VerilatorError as error:
            return run + 1, str(error)
        if text:
            return run + 1, f"{what}: {text}"
    return runs, ""


def prove_mutants(folder: Path, runs: int, seed: int) -> int:
    """Prints what each mutant differs in; gives how many go unnoticed."""
    unnoticed = 0
    for mutant in MUTANTS:
        took, text = caught(mutant, folder, runs, seed)
        unnoticed += not text
        where = f"{mutant.dataflow}/{mutant.weight_load}, {mutant.file}"
        print(
            f"{mutant.name} ({where}): {f'run {took}, {text}' if text else f'NOT NOTICED in {took} runs'}", flush=True
        )
    print(f"{len(MUTANTS) - unnoticed} of {len(MUTANTS)} mutants noticed")
    return unnoticed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="prove", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=500, help="random runs, shared out evenly (500)")
    parser.add_argument("--arrays", nargs="+", default=["4x4", "5x3", "8x8", "16x16", "32x32"], metavar="RxC")
    parser.add_argument("--kinds", nargs="+", default=["/".join(kind) for kind in KINDS], metavar="DATAFLOW/SCHEME")
    parser.add_argument(
        "--layers", default="16x16", metavar="RxC", help="the array that real layers run on, or none (16x16)"
    )
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="(a fresh one)")
    parser.add_argument("--mutants", action="store_true", help="instead: does it notice changes of the Verilog?")
    parser.add_argument(
        "--cache", type=Path, default=settings.cache_folder() / "rtl", metavar="DIR",
        help="where built models stay, to be used again (%(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.mutants:
        return prove_mutants(options.cache, options.runs, options.seed) > 0
    builds = [(array, kind) for array in options.arrays for kind in options.kinds]
    print(f"seed {options.seed}, {len(builds)} builds")
    done = differ = cycles = 0
    for number, (array, kind) in enumerate(builds):
        rows, columns = (int(text) for text in array.split("x"))
        design = chip(rows, columns, min(rows + columns - 1, 16), *kind.split("/"))
        began = time.perf_counter()
        model = build(design, options.cache)
        built = time.perf_counter() - began
        runs = (options.runs + number) // len(builds)
        results = [random_run(model, options.seed + done + i) for i in range(runs)]
        if array == options.layers:
            for name, layer in LAYERS.items():
                results.append((name, *compare_layer(model, layer_memory(design), layer, options.seed)))
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
