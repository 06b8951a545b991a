"""From a problem to cycles: what every lowering shares.

A lowering turns a problem into parts for a design: ``ArrayPart`` (folds of the systolic array) or ``VectorPart``
(blocks of the vector unit alone). Parts run one after the other; the native timing counts the cycles of each. The
cost depends on the problem and the design, never on values, so it is computed once for each pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from quatrefoil import ops
from quatrefoil.asic_sim import energy
from quatrefoil.asic_sim.energy import Band
from quatrefoil.asic_sim.hardware import Hardware, current
from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Reject, Run, SimulatedCost, report_cost

MOST_WORK = 2**50
"""Multiply-accumulates and bytes beyond which a problem is refused; keeps every count inside 64 bits."""


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """Sections of native stages with their repeats, run on the array."""

    sections: Sequence[tuple[Sequence[Any], int]]


@dataclass(frozen=True, slots=True)
class VectorPart:
    """A native VectorStage, run on the vector unit alone."""

    stage: Any


Lowering = Callable[[Problem, Hardware], Sequence[ArrayPart | VectorPart]]

Compute = Callable[[Hardware, Sequence[np.ndarray | None]], tuple[np.ndarray, ...]]
"""The numbers of a run on a design."""


class Counted:
    """What follows from the counters of a problem or a model on a design. ``integers``: of nothing but 8-bit operands with
    32-bit sums, else of float32 too."""

    design: Hardware
    integers: bool
    counters: Mapping[str, int]

    @property
    def cycles(self) -> int:
        return self.counters["cycles"]

    @property
    def macs(self) -> int:
        return self.counters["macs"]

    @property
    def dram_bytes(self) -> int:
        return sum(self.counters[name] for name in ("weight_bytes", "activation_bytes", "output_bytes"))

    @property
    def microseconds(self) -> float:
        return self.cycles / self.design.clock_mhz

    @property
    def utilisation(self) -> float:
        """The share of the array's multiply-accumulates, over all cycles, that were needed."""
        peak = self.cycles * self.design.array_rows * self.design.array_columns
        return self.macs / peak if peak else 0.0

    @cached_property
    def energy(self) -> dict[str, Band]:
        """Picojoules by component, each from low to high."""
        return energy.energy(self.design, self.integers, self.counters)

    @property
    def energy_pj(self) -> float:
        """The middle of the band of all components together."""
        return energy.total(self.energy).middle

    @property
    def area(self) -> dict[str, Band]:
        """Square millimetres by component, of an array for such operands."""
        return energy.area_mm2(self.design, self.integers)

    @property
    def area_mm2(self) -> float:
        """The middle of the band of all components together."""
        return energy.total(self.area).middle


@dataclass(frozen=True)
class SimulationReport(Counted):
    """What a problem costs on a design. ``counters`` sum up:

    cycles = fill + busy + stall_weights + stall_activations + stall_outputs + stall_steps + drain

    problem    the operator call in its text form, or what else was timed
    parts      its folds and its work of the vector unit, of which ``events`` tells the course
    """

    problem: str
    design: Hardware
    integers: bool
    counters: Mapping[str, int]
    parts: Sequence[ArrayPart | VectorPart] = field(default=(), repr=False, compare=False)

    def events(self, most: int = 1_000_000) -> list[Event]:
        """What each part of the chip does when, unsorted. Raises QuatrefoilError where there are more than ``most``."""
        return events(self.parts, self.design, self.problem, most)


def native() -> ModuleType:
    """The compiled simulator. Raises ImportError where it has not been built."""
    return import_module("quatrefoil.asic_sim._native")


@lru_cache(maxsize=64)
def native_design(design: Hardware) -> Any:
    return native().Design(
        array_rows=design.array_rows,
        array_columns=design.array_columns,
        accumulator_entries=design.accumulator_entries,
        weight_fifo_tiles=design.weight_fifo_tiles,
        activation_sram_bytes=design.activation_sram_kib * 1024,
        weight_sram_bytes=design.weight_sram_kib * 1024,
        dram_bytes_per_cycle=design.dram_bytes_per_cycle,
        dram_latency_cycles=design.dram_latency_cycles,
        vector_lanes=design.vector_lanes,
        dataflow=native().Dataflow.__members__[design.dataflow],
        whole_weight_tiles=design.whole_weight_tiles,
        weight_load=native().WeightLoad.__members__[design.weight_load],
    )


@lru_cache(maxsize=4096)
def timed(lowering: Lowering, problem: Problem, design: Hardware) -> SimulationReport:
    """The cost of a problem. Raises QuatrefoilError where it is beyond what can be simulated."""
    too_large = reject_size(problem)
    if too_large is not None:
        raise QuatrefoilError(f"asic: {too_large} ({problem})")
    parts = lowering(problem, design)
    counters = count(parts, design, str(problem))
    first = problem.input(0).dtype
    return SimulationReport(problem.text, design, first in ("int8", "uint8"), counters, parts)


@dataclass(frozen=True, slots=True)
class Event:
    """A part of the chip at work: ``array``, ``loading`` (of a resting tile), ``vector``, or the port to DRAM
    (``dram_weights``, ``dram_activations``, ``dram_outputs``, with its bytes), from one cycle to another."""

    part: str
    begin: int
    end: int
    bytes: int


def events(parts: Sequence[ArrayPart | VectorPart], design: Hardware, what: str, most: int) -> list[Event]:
    """The events of parts that run one after the other, counted from the first one's start."""
    chip, start = native_design(design), 0
    found: list[Event] = []
    try:
        for part in parts:
            left = most - len(found)
            if isinstance(part, ArrayPart):
                sections = native_sections(part)
                _, mapping = native().time_fastest(chip, sections)
                cost, told = native().trace_program(chip, sections, mapping, left)
            else:
                cost, told = native().trace_vector(chip, part.stage, left)
            found += [Event(kind.name, start + begin, start + end, size) for kind, begin, end, size in told]
            start += cost["cycles"]
    except ValueError as error:
        raise QuatrefoilError(f"asic: {what} cannot be traced: {error}") from None
    return found


def native_sections(part: ArrayPart) -> Any:
    stages = [list(stages) for stages, _ in part.sections]
    return native().Sections(stages, [repeats for _, repeats in part.sections])


def count(parts: Sequence[ArrayPart | VectorPart], design: Hardware, what: str) -> dict[str, int]:
    """The counters of parts that run one after the other. Raises QuatrefoilError, naming ``what``, where they are
    beyond what can be simulated."""
    chip, counters = native_design(design), dict.fromkeys(COUNTERS, 0)
    try:
        for part in parts:
            if isinstance(part, ArrayPart):
                cost, _ = native().time_fastest(chip, native_sections(part))
            else:
                cost = native().time_vector(chip, part.stage)
            for name in COUNTERS:
                counters[name] += cost[name]
    except ValueError as error:
        raise QuatrefoilError(f"asic: {what} is too large for {design}: {error}") from None
    return counters


COUNTERS = (
    "cycles", "fill", "busy", "stall_weights", "stall_activations", "stall_outputs", "stall_steps", "drain",
    "vector_busy", "weight_bytes", "activation_bytes", "output_bytes", "folds", "macs", "weight_reads",
    "activation_reads", "accumulator_accesses", "lane_operations",
)  # fmt: skip
"""The counters of a report, in order; asic_sim/src/timing.h says what each counts."""

SUMMANDS = COUNTERS[1:8]
"""Those that cycles are the sum of, in the order of a run."""


def reject_size(problem: Problem) -> Reject | None:
    work = ops.SPECS[problem.op].work(problem)
    if max(work.macs, work.bytes) > MOST_WORK:
        return Reject(f"it takes {work.macs} multiply-accumulates and {work.bytes} bytes; the simulator stops at 2^50")
    return None


def reject_dtype(problem: Problem, *dtypes: str) -> Reject | None:
    if problem.dtype not in dtypes:
        return Reject(f"the array computes {' and '.join(dtypes)}, not {problem.dtype}")
    return None


def run_simulated(kernel: str, problem: Problem, lowering: Lowering, compute: Compute) -> Run:
    """A run on the design in use: its numbers by ``compute``, its cost by ``lowering``, reported once."""

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        design = current()
        report = timed(lowering, problem, design)
        outputs = compute(design, inputs)
        cost = SimulatedCost(
            kernel=kernel,
            design=str(design),
            cycles=report.cycles,
            clock_mhz=design.clock_mhz,
            macs=report.macs,
            dram_bytes=report.dram_bytes,
            counters=dict(report.counters),
        )
        report_cost(cost)
        return outputs

    return run


def product_stage(rows: int, depth: int, columns: int, **more: Any) -> Any:
    """A native stage that is a plain matrix product."""
    axis = native().Axis
    return native().Stage(channels=depth, columns=columns, axes=[axis(rows, rows), axis(), axis(), axis()], **more)


def window_axes(window: Window) -> list[Any]:
    """The three native axes of a window that slides over its input."""
    return [
        native().Axis(n, o, k, s, -p, d)
        for n, o, k, s, p, d in zip(
            window.input, window.output, window.kernel, window.strides, window.pads, window.dilations
        )
    ]


SIMPLE = ("Relu", "LeakyRelu", "Clip", "HardSigmoid", "Affine", "ThresholdedRelu")


def activation_cycles(activation: Activation, design: Hardware) -> int:
    """Cycles of a lane for an activation: none for Identity, 1 for a compare or a multiply-add, 2 for HardSwish, else
    the design's vector_function_cycles, and 1 more where a product follows (Swish)."""
    if activation.name == "Identity":
        return 0
    if activation.name in SIMPLE:
        return 1
    if activation.name == "HardSwish":
        return 2
    return design.vector_function_cycles + (activation.name == "Swish")
