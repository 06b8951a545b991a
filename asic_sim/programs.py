"""Random designs and programs for the simulator, to hold its fast timing to the reference that steps every cycle.

    python -m quatrefoil.asic_sim.programs --runs 50000 [--seed N]

prints how many were tried of each dataflow and how many differed; it exits with 1 where any did. The tests draw from the
same source.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from quatrefoil.asic_sim.compression import kept_rows, strips_of
from quatrefoil.asic_sim.fixed import of_format
from quatrefoil.asic_sim.hardware import CHOICES
from quatrefoil.asic_sim.simulation import SUMMANDS, native
from quatrefoil.numerics import OVERFLOWS, ROUNDINGS, Fixed


@dataclass(frozen=True, slots=True)
class Trial:
    """What was tried, how it ended both ways, and the numbers of the stepped array beside the right ones, if any."""

    dataflow: str
    weight_load: str
    fast: dict[str, int]
    stepped: dict[str, int]
    sums: np.ndarray | None = None
    wanted: np.ndarray | None = None

    @property
    def cycles(self) -> int:
        return self.stepped["cycles"]

    @property
    def agrees(self) -> bool:
        if self.fast != self.stepped or self.fast["cycles"] != sum(self.fast[name] for name in SUMMANDS):
            return False
        return self.sums is None or self.wanted is None or np.array_equal(self.sums, self.wanted)


@dataclass(frozen=True, slots=True)
class ChainTrial:
    """Cores beside each other, and on each parts that followed each other while weights were fetched ahead: of each core,
    of each part, its counters both ways."""

    dataflow: str
    weight_load: str
    fast: list[list[dict[str, int]]]
    stepped: list[list[dict[str, int]]]

    @property
    def cycles(self) -> int:
        return sum(max(part["cycles"] for part in parts) for parts in zip(*self.stepped))

    @property
    def agrees(self) -> bool:
        parts = [part for core in self.fast for part in core]
        return self.fast == self.stepped and all(
            part["cycles"] == sum(part[name] for name in SUMMANDS) for part in parts
        )


def product(rows: int, depth: int, columns: int, **changes: object) -> Any:
    """A plain int8 matrix product as a native stage."""
    axis = native().Axis
    figures = {"activation_bytes": 1, "weight_bytes": 1, "output_bytes": 4, "lane_cycles": 1}
    axes = [axis(rows, rows), axis(), axis(), axis()]
    return native().Stage(channels=depth, columns=columns, axes=axes, **{**figures, **changes})


def alone(stage: Any) -> Any:
    return native().Sections([[stage]], [1])


def _sram(rng: random.Random) -> Any:
    """A memory on the chip, in every second design without a limit."""
    return native().Sram(
        banks=rng.choice([1, 1, 2, 4, 7]), ports=rng.randint(1, 2), bytes_per_cycle=rng.choice([0, 0, 1, 2, 5, 9, 24])
    )


def _dram(rng: random.Random) -> Any:
    """What is behind the port, in some designs nothing but a pipe."""
    burst, interval = rng.choice([1, 1, 4, 16, 32]), rng.choice([7, 40, 150, 1000])
    return native().Dram(
        channels=rng.choice([1, 1, 2, 3, 4]),
        banks=rng.choice([1, 2, 4, 8]),
        burst_bytes=burst,
        row_bytes=max(24, burst * rng.choice([1, 2, 5, 32]) + rng.randrange(burst)),
        row_miss_cycles=rng.choice([0, 0, 1, 3, 20]),
        refresh_interval_cycles=interval,
        refresh_cycles=rng.choice([0, 0, rng.randrange(1 + interval // 2), interval // 10]),
    )


def _design(rng: random.Random, dataflow: str, weight_load: str, **changes: object) -> Any:
    figures = {
        "array_rows": rng.randint(1, 9),
        "array_columns": rng.randint(1, 9),
        "accumulator_entries": rng.choice([2, 4, 8, 16, 40, 100]),
        "weight_fifo_tiles": rng.randint(1, 4),
        "activation_sram_bytes": rng.choice([200, 400, 800, 2000, 8000]),
        "weight_sram_bytes": rng.choice([0, 100, 1000, 10_000]),
        "dram_bytes_per_cycle": rng.randint(1, 40),
        "dram_latency_cycles": rng.randint(0, 50),
        "vector_lanes": rng.choice([1, 2, 4, 8, 16]),
        "dataflow": native().Dataflow.__members__[dataflow],
        "whole_weight_tiles": rng.random() < 0.2,
        "weight_load": native().WeightLoad.__members__[weight_load],
        "weight_sram": _sram(rng),
        "activation_sram": _sram(rng),
        "dram": _dram(rng),
    }
    return native().Design(**{**figures, **changes})


def _mapping(rng: random.Random) -> Any:
    return native().Mapping(rng.random() < 0.5, rng.choice([1, 3, 10, 2**30]), rng.random() < 0.4)


def axis(rng: random.Random, longest: int) -> Any:
    """An axis of a window with strides, dilation and padding."""
    size, taps, dilation, pad, stride = (rng.randint(a, b) for a, b in ((1, longest), (1, 3), (1, 2), (0, 2), (1, 3)))
    room = size + 2 * pad - ((taps - 1) * dilation + 1)
    if room < 0:
        return native().Axis(size, size)
    return native().Axis(size, room // stride + 1, taps, stride, -pad, dilation)


def _stage(rng: random.Random, dependent: bool) -> Any:
    batch = rng.randint(1, 3)
    return native().Stage(
        groups=rng.choice([1, 1, 1, 2, 3, 9]),
        channels=rng.randint(1, 12),
        columns=rng.randint(1, 24),
        axes=[native().Axis(batch, batch), native().Axis(), axis(rng, 4), axis(rng, 12)],
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
        operand_cycles=rng.choice([1, 1, 2, 3, 4]),
        activations_here=rng.random() < 0.25,
        kept_bytes=rng.choice([0, 0, 1, 4]),
        closing_kept_bytes=rng.choice([0, 7]),
    )


def try_product(rng: random.Random, values: np.random.Generator, dataflow: str, weight_load: str) -> Trial:
    """A plain product, its numbers included."""
    rows, depth, columns = rng.randint(1, 60), rng.randint(1, 40), rng.randint(1, 40)
    stage = product(
        rows, depth, columns, lane_cycles=rng.randint(1, 4), weights_kept=rng.random() < 0.5,
        operand_cycles=rng.choice([1, 1, 2, 3, 4, 16]), activations_here=rng.random() < 0.25,
    )  # fmt: skip
    design, mapping = _design(rng, dataflow, weight_load), _mapping(rng)
    a = values.integers(-255, 256, (rows, depth)).astype(np.int16)
    w = values.integers(-255, 256, (depth, columns)).astype(np.int16)
    stepped, sums = native().step_program(design, alone(stage), mapping, a, w)
    fast = native().time_program(design, alone(stage), mapping)
    return Trial(dataflow, weight_load, fast, stepped, sums, a.astype(np.int32) @ w.astype(np.int32))


def try_fixed_product(rng: random.Random, values: np.random.Generator, dataflow: str, weight_load: str) -> Trial:
    """A plain product in fixed point: from a bias on, each product and each sum cast to an accumulator that is often too
    narrow, in the operator's order."""
    rows, depth, columns = rng.randint(1, 40), rng.randint(1, 30), rng.randint(1, 30)
    stage = product(rows, depth, columns, lane_cycles=rng.randint(1, 4), weights_kept=rng.random() < 0.5)
    design, mapping = _design(rng, dataflow, weight_load), _mapping(rng)
    bits, fraction = [rng.randint(2, 20) for _ in range(2)], rng.randint(0, 30)
    width = rng.randint(2, sum(bits) + 8)
    integer = width - fraction + rng.randint(-4, 10)
    accumulator = Fixed(width, integer, rng.choice(ROUNDINGS), rng.choice(OVERFLOWS), rng.random() < 0.8)
    a, w, bias = (
        values.integers(-(2 ** (width - 1)), 2 ** (width - 1), shape)
        for width, shape in zip((*bits, 20), ((rows, depth), (depth, columns), (columns,)))
    )
    start = accumulator.cast(bias, accumulator.fraction)
    numbers = native().FixedSums(of_format(accumulator), fraction)
    stepped, sums = native().step_program(
        design, alone(stage), mapping, a.astype(np.int32), w.astype(np.int32), numbers, start
    )
    wanted = np.broadcast_to(start, (rows, columns))
    for k in range(depth):
        products = accumulator.cast(a[:, k, None] * w[k], fraction)
        wanted = accumulator.cast(wanted + products, accumulator.fraction)
    fast = native().time_program(design, alone(stage), mapping)
    return Trial(dataflow, weight_load, fast, stepped, sums, wanted)


def stored_weights(
    rng: random.Random, places: np.ndarray, array_columns: int, dataflow: str, block_rows: int
) -> dict[str, Any]:
    """A way for weights to lie, as the arguments of a native Stored. places: (groups, depth, columns), where they are not
    zero; with an index but where weights stream."""
    figures: dict[str, Any] = {
        "bits": rng.choice([4, 6, 8, 12, 16, 36]),
        "table_bytes": rng.choice([0, 16, 256]),
        "decoded": rng.choice([0, 1, 2, 5, 16]),
        "multiplied": rng.choice([-1, int(places.sum())]),
    }
    if dataflow == "input":
        return figures
    strips = strips_of(places, array_columns, block_rows, rng.choice([1, 2, 4, 8]))
    return figures | {name: getattr(strips, name).tolist() for name in ("first", "before", "taken")}


def _places(rng: random.Random, values: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Where weights are not zero: anywhere, or in some rows."""
    return (values.random(shape) < rng.choice([0, 0.05, 0.3, 0.6, 1])) & (
        values.random(shape[:2])[..., None] < rng.choice([0.1, 0.5, 1])
    )


def try_compressed_product(rng: random.Random, values: np.random.Generator, dataflow: str, weight_load: str) -> Trial:
    """A plain product whose weights are compressed, its numbers included where rows without weights are skipped."""
    rows, depth, columns = rng.randint(1, 40), rng.randint(1, 60), rng.randint(1, 30)
    array_columns, block_rows = rng.randint(1, 9), rng.choice([0, 1, 1, 2, 4])
    w = values.integers(-255, 256, (depth, columns)).astype(np.int32) * _places(rng, values, (1, depth, columns))[0]
    figures = stored_weights(rng, (w != 0)[None], array_columns, dataflow, block_rows)
    stage = product(
        rows, depth, columns, weights_kept=rng.random() < 0.5, stored=native().Stored(**figures),
        activations_here=rng.random() < 0.25,
    )  # fmt: skip
    design, mapping = _design(rng, dataflow, weight_load, array_columns=array_columns), _mapping(rng)
    fast = native().time_program(design, alone(stage), mapping)
    if block_rows > 1 and dataflow != "input":
        return Trial(dataflow, weight_load, fast, native().step_program(design, alone(stage), mapping)[0])
    a = values.integers(-255, 256, (rows, depth)).astype(np.int32)
    kept = kept_rows(w, array_columns) if block_rows and dataflow != "input" else None
    if kept is None and dataflow != "input":
        kept = np.tile(np.arange(depth), -(-columns // array_columns))
    stepped, sums = native().step_program(design, alone(stage), mapping, a, w, kept=kept)
    return Trial(dataflow, weight_load, fast, stepped, sums, a @ w)


def try_compressed_program(rng: random.Random, dataflow: str, weight_load: str) -> Trial:
    """The timing of groups and of steps whose weights are compressed, some of them."""
    array_columns = rng.randint(1, 9)
    sections = _compressed_sections(rng, array_columns, dataflow)
    design, mapping = _design(rng, dataflow, weight_load, array_columns=array_columns), _mapping(rng)
    fast = native().time_program(design, sections, mapping)
    return Trial(dataflow, weight_load, fast, native().step_program(design, sections, mapping)[0])


def _compressed_sections(rng: random.Random, array_columns: int, dataflow: str) -> Any:
    values = np.random.default_rng(rng.randrange(2**32))

    def stage(dependent: bool) -> Any:
        groups, depth, columns = rng.choice([1, 1, 2, 5]), rng.randint(1, 40), rng.randint(1, 24)
        places = _places(rng, values, (groups, depth, columns))
        figures = stored_weights(rng, places, array_columns, dataflow, rng.choice([0, 1, 2, 4]))
        return product(
            rng.randint(1, 30), depth, columns, groups=groups, weights_kept=rng.random() < 0.4, dependent=dependent,
            stored=native().Stored(**figures) if rng.random() < 0.8 else None, weight_bytes=rng.choice([1, 4]),
            closing_elements=rng.choice([0, 5]), closing_lane_cycles=2, output_bytes=rng.choice([0, 1, 4]),
        )  # fmt: skip

    return native().Sections([[stage(False)], [stage(True)]], [1, rng.choice([0, 1, 3, 9])])


def draw_program(rng: random.Random, dataflow: str, weight_load: str) -> tuple[Any, Any]:
    """A design and sections: groups, windows, kept weights, dependent steps, results that stay on the chip."""
    design = _design(rng, dataflow, weight_load)
    steps = [_stage(rng, True) for _ in range(rng.randint(1, 2))]
    return design, native().Sections([[_stage(rng, False)], steps], [1, rng.choice([0, 1, 2, 3, 8])])


def try_program(rng: random.Random, dataflow: str, weight_load: str) -> Trial:
    """Of such a program the timing alone."""
    mapping = _mapping(rng)
    design, sections = draw_program(rng, dataflow, weight_load)
    fast = native().time_program(design, sections, mapping)
    return Trial(dataflow, weight_load, fast, native().step_program(design, sections, mapping)[0])


def try_deep_product(rng: random.Random, dataflow: str, weight_load: str) -> Trial:
    """The timing of a product of many slices, whose weights, if they are not on the chip, keep a slow port busy."""
    design = _design(
        rng, dataflow, weight_load, activation_sram_bytes=8000, dram_bytes_per_cycle=rng.randint(1, 6),
        dram_latency_cycles=rng.randint(0, 12), weight_sram_bytes=rng.choice([0, 0, 0, 10_000]),
    )  # fmt: skip
    stage = product(
        rng.randint(1, 12), rng.randint(50, 400), rng.randint(1, 20), weight_bytes=rng.choice([1, 4]),
        activations_here=rng.random() < 0.3,
    )  # fmt: skip
    mapping = native().Mapping(rng.random() < 0.8, rng.choice([1, 3, 2**30]), rng.random() < 0.4)
    fast = native().time_program(design, alone(stage), mapping)
    return Trial(dataflow, weight_load, fast, native().step_program(design, alone(stage), mapping)[0])


def try_deep_pairs(rng: random.Random, dataflow: str, weight_load: str) -> Trial:
    """The timing of a deep product that asks for weights and activations in turn, the weights' tiles often of as many rows
    as there are banks."""
    banks, bursts, burst = rng.choice([1, 2, 4]), rng.choice([2, 4, 8]), rng.choice([4, 16])
    columns, interval = rng.choice([4, 8]), rng.choice([150, 400, 3000])
    rows, slice_depth = rng.randint(1, 2), rng.choice([1, 1, 2, 3]) * banks * bursts * burst // columns
    design = _design(
        rng, dataflow, weight_load, array_rows=rows, array_columns=columns, activation_sram_bytes=8000,
        dram_bytes_per_cycle=rng.choice([1, 2, 4, 8]), dram_latency_cycles=rng.randint(0, 12), weight_sram_bytes=0,
        weight_fifo_tiles=max(2, 2 * slice_depth // rows),
        dram=native().Dram(
            channels=rng.choice([1, 1, 1, 2]), banks=banks, burst_bytes=burst, row_bytes=burst * bursts,
            row_miss_cycles=rng.choice([0, 1, 3, 9, 20]), refresh_interval_cycles=interval,
            refresh_cycles=rng.choice([0, interval // 10]),
        ),
    )  # fmt: skip
    stage = product(
        rng.randint(1, 3), slice_depth * rng.randint(8, 40) + rng.randint(0, 3), columns * rng.randint(1, 2),
        activation_bytes=rng.choice([1, 1, 4]),
    )  # fmt: skip
    mapping = native().Mapping(False, rng.choice([1, 2**30]))
    fast = native().time_program(design, alone(stage), mapping)
    return Trial(dataflow, weight_load, fast, native().step_program(design, alone(stage), mapping)[0])


def try_chain(rng: random.Random, dataflow: str, weight_load: str) -> ChainTrial:
    """The timing of several parts, folds and the vector unit's own, whose weights are fetched ahead; in every other trial on
    several cores, which do the same, share the work, or do something of their own."""
    array_columns, cores, parts = rng.randint(1, 9), rng.choice([1, 1, 2, 3, 4]), rng.randint(1, 4)
    design = _design(rng, dataflow, weight_load, array_columns=array_columns)
    chains = [native().Chain(design) for _ in range(cores)]
    for _ in range(parts):
        division = rng.choice(list(native().Division.__members__.values()))
        alike, shared, alone_on = rng.random() < 0.3, rng.random() < 0.5, rng.random() < 0.25
        mapping, vector, sections = _mapping(rng), _vector_stage(rng), _sections(rng)
        for core, chain in enumerate(chains):
            if not alike and not shared:
                mapping, vector, sections = _mapping(rng), _vector_stage(rng), _sections(rng)
                if rng.random() < 0.3:
                    sections = _compressed_sections(rng, array_columns, dataflow)
            if alone_on:
                chain.add_vector(design, native().vector_share_of(vector, division, core, cores) if shared else vector)
            else:
                own = native().share_of(design, sections, division, core, cores) if shared else sections
                chain.add_program(design, own, mapping)
    return ChainTrial(dataflow, weight_load, native().time_cores(chains), native().step_cores(chains))


def _sections(rng: random.Random) -> Any:
    steps = [_stage(rng, True) for _ in range(rng.randint(0, 1))]
    return native().Sections([[_stage(rng, False)], steps], [1, rng.choice([0, 1, 4])])


def try_vector(rng: random.Random) -> Trial:
    """The vector unit alone."""
    stage, design = _vector_stage(rng), _design(rng, "weight", "double_buffered")
    return Trial("none", "none", native().time_vector(design, stage), native().step_vector(design, stage))


def _vector_stage(rng: random.Random) -> Any:
    planes = rng.randint(1, 3)
    return native().VectorStage(
        axes=[native().Axis(planes, planes), axis(rng, 4), axis(rng, 9), axis(rng, 9)],
        input_bytes=rng.choice([0, 1, 4]),
        output_bytes=rng.choice([0, 1, 4, 12]),
        lane_cycles=rng.randint(1, 9),
        kept_input_bytes=rng.choice([0, 0, 1, 4]),
        kept_output_bytes=rng.choice([0, 0, 1, 4]),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hold the fast timing to the reference on random programs.")
    parser.add_argument("--runs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31)
    given = parser.parse_args(arguments)
    rng, values = random.Random(given.seed), np.random.default_rng(given.seed)
    tried: Counter[tuple[str, str]] = Counter()
    differed: Counter[tuple[str, str]] = Counter()
    cycles = 0
    for _ in range(given.runs):
        kind = rng.random()
        flow, load = rng.choice(CHOICES["dataflow"]), rng.choice(CHOICES["weight_load"])
        trial: Trial | ChainTrial
        if kind < 0.2:
            trial = try_product(rng, values, flow, load)
        elif kind < 0.3:
            trial = try_fixed_product(rng, values, flow, load)
        elif kind < 0.4:
            trial = (
                try_compressed_product(rng, values, flow, load)
                if rng.random() < 0.5
                else try_compressed_program(rng, flow, load)
            )
        elif kind < 0.6:
            trial = try_program(rng, flow, load)
        elif kind < 0.8:
            trial = try_chain(rng, flow, load)
        elif kind < 0.87:
            trial = try_deep_product(rng, flow, load)
        elif kind < 0.9:
            trial = try_deep_pairs(rng, flow, load)
        else:
            trial = try_vector(rng)
        key = (trial.dataflow, trial.weight_load)
        tried[key] += 1
        differed[key] += not trial.agrees
        cycles += trial.cycles
    print(f"seed {given.seed}: {given.runs} random runs, {cycles:,} cycles stepped one by one")
    for key in sorted(tried):
        print(f"  {key[0]:8} {key[1]:16} {tried[key]:6} runs, {differed[key]} differ")
    print(f"{sum(differed.values())} differences")
    return 1 if sum(differed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
