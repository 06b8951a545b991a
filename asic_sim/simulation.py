"""From a problem to cycles: what every lowering shares.

A lowering turns a problem into parts for a design: ``ArrayPart`` (folds of the systolic array) or ``VectorPart``
(blocks of the vector unit alone). Parts run one after the other; the native timing counts the cycles of each. The
cost depends on the problem and the design, never on values, so it is computed once for each pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from quatrefoil import ops
from quatrefoil.asic_sim import compression, energy, formats
from quatrefoil.asic_sim.compression import UNKNOWN, Lying, Numbers
from quatrefoil.asic_sim.energy import Band
from quatrefoil.asic_sim.formats import Format
from quatrefoil.asic_sim.hardware import Hardware, current
from quatrefoil.asic_sim.keeping import ALONE, Kept
from quatrefoil.asic_sim.mapping import ANY, BLOCKS, RESIDENT, STREAMED, STRIPS, Cut, MappingError
from quatrefoil.asic_sim.mapping import Mapping as Wanted
from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem, Tensor
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


FLOATS = ("float16", "float32", "float64")
BYTES = ("int8", "uint8")


@dataclass(frozen=True, slots=True)
class Setting:
    """On what terms an operator is timed.

    format      of the array's operands, by name
    cast        floats are timed as if they had been quantised to it
    kept        what is in the activation memory from operation to operation
    mapping     what is said of the array's cuts
    numbers     what is known of the weights, for a design on which they matter
    """

    format: str
    cast: bool = False
    kept: Kept = ALONE
    mapping: Wanted = ANY
    numbers: Numbers = UNKNOWN

    @classmethod
    def of(cls, dtype: str, as_format: str | None = None, kept: Kept = ALONE, mapping: Wanted = ANY) -> Setting:
        """For operands of this type. as_format: what floats are taken for. Raises QuatrefoilError where there is no such
        format."""
        if as_format is not None and dtype in FLOATS and dtype != as_format:
            return cls(formats.parse(as_format).name, True, kept, mapping)
        return cls("int8" if dtype in BYTES else dtype, False, kept, mapping)

    @classmethod
    def of_problem(
        cls, problem: Problem, as_format: str | None = None, kept: Kept = ALONE, mapping: Wanted = ANY
    ) -> Setting:
        """For a problem, which in fixed point brings its own formats."""
        if problem.op in ops.FAMILIES["fixed"]:
            return cls(formats.of_fixed(problem), False, kept, mapping)
        return cls.of(problem.dtype, as_format, kept, mapping)

    @property
    def operands(self) -> Format:
        return formats.parse(self.format)

    @property
    def brought(self) -> bool:
        """The array is taken to be built for the format, which the problem brings."""
        return not self.cast and formats.is_brought(self.format)

    def width(self, tensor: Tensor) -> int:
        """Bytes of an element in memory."""
        if self.cast and tensor.dtype in FLOATS:
            return self.operands.activation_bytes
        return tensor.numpy_dtype.itemsize

    def size(self, tensor: Tensor) -> int:
        return tensor.size * self.width(tensor)

    def fetched(self, tensor: Tensor, position: int) -> int:
        """Bytes of an element of an input that come from DRAM."""
        return 0 if position in self.kept.here else self.width(tensor)

    def written(self, tensor: Tensor, position: int) -> int:
        """Bytes of an element of an output that go to DRAM."""
        return self.kept.written(self.width(tensor), position)

    def staying(self, tensor: Tensor, position: int) -> int:
        """Bytes of an element of an output that stay in the activation memory."""
        return self.kept.staying(self.width(tensor), position)

    def traffic(
        self,
        inputs: Iterable[tuple[int, Tensor | None]],
        outputs: Iterable[tuple[int, Tensor | None]],
        elements: int = 0,
    ) -> dict[str, int]:
        """What tensors at their positions make of a native VectorStage: bytes of a position that has an element of each;
        or, with ``elements``, of one of so many positions that the tensors are spread over, rounded up."""
        given = [(place, tensor) for place, tensor in inputs if tensor is not None]
        made = [(place, tensor) for place, tensor in outputs if tensor is not None]

        def each(width: Callable[[Tensor, int], int], tensors: Sequence[tuple[int, Tensor]]) -> int:
            if not elements:
                return sum(width(tensor, place) for place, tensor in tensors)
            return -(-sum(tensor.size * width(tensor, place) for place, tensor in tensors) // elements)

        return {
            "input_bytes": each(self.fetched, given),
            "kept_input_bytes": each(lambda tensor, place: self.width(tensor) - self.fetched(tensor, place), given),
            "output_bytes": each(self.written, made),
            "kept_output_bytes": each(self.staying, made),
        }

    def activation_memory(self, design: Hardware) -> int:
        """Bytes that are left of it."""
        return design.activation_sram_kib * 1024 - self.kept.taken

    def rounding_cycles(self) -> int:
        """Cycles of a lane in which a sum becomes an activation again, where floats are cast."""
        return REQUANTISATION if self.cast and self.operands.rounded else 0

    def operand_cycles(self, design: Hardware) -> int:
        """Cycles that an operand takes to enter the array. Raises QuatrefoilError where it does not multiply such."""
        cycles = design.operand_cycles(self.format)
        if cycles is None and self.brought:
            return 1
        if cycles is None:
            names = [name for name, _ in design.formats]
            hint = "" if self.cast or self.format not in FLOATS else f" (as_format={names[0]!r} times floats as such)"
            raise FormatError(f"the array of {design.name} multiplies {', '.join(names)}, not {self.format}{hint}")
        return cycles

    def operand_figures(self, design: Hardware) -> dict[str, int]:
        """What the format makes of a native stage."""
        return {
            "activation_bytes": self.operands.activation_bytes,
            "weight_bytes": self.operands.weight_bytes,
            "operand_cycles": self.operand_cycles(design),
        }

    def lying(
        self,
        design: Hardware,
        position: int,
        shape: tuple[int, int, int],
        arrange: Callable[[np.ndarray], np.ndarray],
        width: int | None = None,
    ) -> Lying:
        """How the weight at a position lies in memory, as a stage takes it; the arguments as of ``compression.lying``."""
        width = self.operands.weight_bytes if width is None else width
        return compression.lying(self.numbers.get(position), arrange, shape, design, width)


def native_stored(lying: Lying) -> Any:
    """For a native stage."""
    return None if lying.stored is None else native().Stored(**lying.stored)


REQUANTISATION = 2
"""Cycles of a lane: multiply and round; add the zero point and saturate."""


class FormatError(QuatrefoilError):
    """A design whose array does not multiply such operands; the message names those that it does."""


Lowering = Callable[[Problem, Hardware, Setting], Sequence[ArrayPart | VectorPart]]

Compute = Callable[[Hardware, Sequence[np.ndarray | None]], tuple[np.ndarray, ...]]
"""The numbers of a run on a design."""


class Counted(ABC):
    """What follows from the counters of a problem or a model on a design. ``formats``: of its operands, by name."""

    design: Hardware
    counters: Mapping[str, int]

    @property
    @abstractmethod
    def formats(self) -> tuple[str, ...]: ...

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
        peak = self.cycles * self.design.elements
        return self.macs / peak if peak else 0.0

    @property
    @abstractmethod
    def energy(self) -> Mapping[str, Band]:
        """Picojoules by component, each from low to high."""

    @property
    def energy_pj(self) -> float:
        """The middle of the band of all components together."""
        return energy.total(self.energy).middle

    @property
    def area(self) -> dict[str, Band]:
        """Square millimetres by component, of an array for such operands."""
        return energy.area_mm2(self.design, self.formats)

    @property
    def area_mm2(self) -> float:
        """The middle of the band of all components together."""
        return energy.total(self.area).middle


@dataclass(frozen=True)
class SimulationReport(Counted):
    """What a problem costs on a design. ``counters`` sum up:

    cycles = fill + busy + stall_weights + stall_activations + stall_outputs + stall_steps + stall_memory + drain

    problem    the operator call in its text form, or what else was timed
    setting    the format of its operands, and on what terms else it was timed
    parts      its folds and its work of the vector unit, of which ``events`` tells the course
    cuts       how those for the array were cut, in their order; of several cores the first one's share
    cores      of several cores, the counters of each; ``counters`` then has in ``TIMES`` those of the core that ends last, part
               by part, and else the sums
    row        where it follows others on a chip that fetches weights ahead: all of them, and its place
    """

    problem: str
    design: Hardware
    setting: Setting
    counters: Mapping[str, int]
    parts: Sequence[ArrayPart | VectorPart] = field(default=(), repr=False, compare=False)
    cuts: tuple[Cut, ...] = field(default=(), repr=False)
    cores: tuple[Mapping[str, int], ...] = field(default=(), repr=False)
    row: tuple[Sequence[SimulationReport], int] | None = field(default=None, repr=False, compare=False)

    def alternatives(self) -> list[list[tuple[Wanted, int]]]:
        """For each part on the array, the mappings that the search compares and the cycles that the part alone takes
        with them, the fastest first; of several cores, a core's share with its share of the port."""
        chip = _searched(self.design, self.setting)
        found = []
        for part in self.parts:
            mine = _share(part, chip, self.design, 0)
            if isinstance(mine, ArrayPart):
                costs = native().time_mappings(chip, native_sections(mine))
                found.append(sorted(((_said(mapping), cycles) for mapping, cycles in costs), key=lambda each: each[1]))
        return found

    @property
    def formats(self) -> tuple[str, ...]:
        setting = self.setting
        # types that only the vector unit works on count as float32
        known = setting.cast or setting.brought or self.design.operand_cycles(setting.format)
        return (setting.format if known else "float32",)

    @property
    def assumed(self) -> str:
        """What was taken for granted of weights whose numbers are not known, on a design on which they matter."""
        return self.setting.numbers.assumed if self.macs and self.design.compresses else ""

    @cached_property
    def energy(self) -> Mapping[str, Band]:
        return energy.energy(self.design, self.formats[0], self.counters)

    def events(self, most: int = 1_000_000) -> list[Event]:
        """What each part of the chip does when, unsorted. Raises QuatrefoilError where there are more than ``most``."""
        return events(self, most)


def native() -> ModuleType:
    """The compiled simulator. Raises ImportError where it has not been built."""
    return import_module("quatrefoil.asic_sim._native")


@lru_cache(maxsize=64)
def native_design(design: Hardware, taken: int = 0) -> Any:
    """taken: bytes of the activation memory that something else takes."""
    return native().Design(
        array_rows=design.array_rows,
        array_columns=design.array_columns,
        accumulator_entries=design.accumulator_entries,
        weight_fifo_tiles=design.weight_fifo_tiles,
        activation_sram_bytes=design.activation_sram_kib * 1024 - taken,
        weight_sram_bytes=design.weight_sram_kib * 1024,
        dram_bytes_per_cycle=design.dram_bytes_per_cycle,
        dram_latency_cycles=design.dram_latency_cycles,
        vector_lanes=design.vector_lanes,
        dataflow=native().Dataflow.__members__[design.dataflow],
        whole_weight_tiles=design.whole_weight_tiles,
        weight_load=native().WeightLoad.__members__[design.weight_load],
        weight_sram=native().Sram(
            banks=design.weight_sram_banks,
            ports=design.weight_sram_ports,
            bytes_per_cycle=design.weight_sram_bytes_per_cycle,
        ),
        activation_sram=native().Sram(
            banks=design.activation_sram_banks,
            ports=design.activation_sram_ports,
            bytes_per_cycle=design.activation_sram_bytes_per_cycle,
        ),
        dram=native_dram(design),
    )


def native_dram(design: Any) -> Any:
    """Of a ``Hardware``, or of what gives the figures of DRAM by the same names."""
    return native().Dram(
        channels=design.dram_channels,
        banks=design.dram_banks,
        burst_bytes=design.dram_burst_bytes,
        row_bytes=design.dram_row_bytes,
        row_miss_cycles=design.dram_row_miss_cycles,
        refresh_interval_cycles=design.dram_refresh_interval_cycles,
        refresh_cycles=design.dram_refresh_cycles,
    )


@lru_cache(maxsize=4096)
def timed(lowering: Lowering, problem: Problem, design: Hardware, setting: Setting) -> SimulationReport:
    """The cost of a problem. Raises QuatrefoilError where it is beyond what can be simulated, or where the array does not
    multiply its format."""
    too_large = reject_size(problem)
    if too_large is not None:
        raise QuatrefoilError(f"asic: {too_large} ({problem})")
    return reported(problem.text, lowering(problem, design, setting), design, setting)


def reported(
    what: str, parts: Sequence[ArrayPart | VectorPart], design: Hardware, setting: Setting
) -> SimulationReport:
    """The report of parts that run one after the other, what comes before them being over and unknown. Raises
    QuatrefoilError, naming ``what``, where they are beyond what can be simulated, and MappingError where they cannot be cut
    as asked for."""
    chip, searched = native_design(design, setting.kept.taken), _searched(design, setting)
    costs: list[Mapping[str, int]] = []
    cuts: list[Cut] = []
    try:
        for part in parts:
            mine = _share(part, chip, design, 0)
            if isinstance(mine, ArrayPart):
                if setting.mapping != ANY:
                    reject_mapping(mine, chip, design, setting.mapping)
                wish = setting.mapping.wish(native())
                cost, mapping = native().time_fastest(searched, native_sections(mine), wish)
                cuts.append(_cut(mine, chip, mapping))
            else:
                cost = native().time_vector(searched, mine.stage)
            costs.append(cost)
        report = SimulationReport(what, design, setting, _sum(costs), parts, tuple(cuts))
        if design.cores > 1 or (design.weights_ahead and len(parts) > 1):
            return replace(in_a_row([report])[0], row=None)
    except ValueError as error:
        if isinstance(error, MappingError):
            raise
        raise QuatrefoilError(f"asic: {what} is too large for {design}: {error}") from None
    return report


def _sum(costs: Iterable[Mapping[str, int]]) -> dict[str, int]:
    counters = dict.fromkeys(COUNTERS, 0)
    for cost in costs:
        for name in COUNTERS:
            counters[name] += cost[name]
    return counters


def _searched(design: Hardware, setting: Setting) -> Any:
    """The native design on which mappings are compared: a core, with its share of the port."""
    whole = design.dram_bytes_per_cycle
    alone = replace(design, dram_bytes_per_cycle=max(1, whole // design.cores)) if design.cores > 1 else design
    return native_design(alone, setting.kept.taken)


def _share(part: ArrayPart | VectorPart, chip: Any, design: Hardware, core: int) -> ArrayPart | VectorPart:
    """What a core does of it."""
    if design.cores == 1:
        return part
    division = native().Division.__members__[design.divide]
    if isinstance(part, VectorPart):
        return VectorPart(native().vector_share_of(part.stage, division, core, design.cores))
    shared = native().share_of(chip, native_sections(part), division, core, design.cores)
    return ArrayPart(list(zip(shared.stages, shared.repeats)))


def in_a_row(reports: Sequence[SimulationReport]) -> list[SimulationReport]:
    """The same operators where they follow each other, cut as they are. Where weights are fetched ahead, an operator's cycles
    are those from the end of the one before it to its own; all of its traffic counts to it, whenever it takes place."""
    parts = iter([cores for run in _runs(reports) for cores in zip(*native().time_cores(_chains(run)))])
    found = []
    for place, report in enumerate(reports):
        mine = [next(parts) for _ in report.parts]
        counters = _sum(_together(cores) for cores in mine)
        cores = tuple(_sum(each) for each in zip(*mine)) if report.design.cores > 1 else ()
        found.append(replace(report, counters=counters, cores=cores, row=(reports, place)))
    return found


def _together(cores: Sequence[Mapping[str, int]]) -> Mapping[str, int]:
    """A part's counters on several cores as one: times are those of the core that ends last."""
    last = max(cores, key=lambda each: each["cycles"])
    return {name: last[name] if name in TIMES else sum(each[name] for each in cores) for name in COUNTERS}


_Placed = tuple[SimulationReport, ArrayPart | VectorPart, Any]
"""A part with its report and, where it is for the array, its mapping."""


def _runs(reports: Sequence[SimulationReport]) -> list[list[_Placed]]:
    """The parts that run in one go, weights being fetched ahead, or each alone."""
    placed: list[_Placed] = []
    for report in reports:
        cuts = iter(report.cuts)
        for part in report.parts:
            placed.append((report, part, native_mapping(next(cuts).mapping) if isinstance(part, ArrayPart) else None))
    return [placed] if placed and placed[0][0].design.weights_ahead else [[each] for each in placed]


def _chains(run: Sequence[_Placed]) -> list[Any]:
    """What each core does of such parts."""
    chains = []
    for core in range(run[0][0].design.cores):
        chain = None
        for report, part, mapping in run:
            chip = native_design(report.design, report.setting.kept.taken)
            chain = chain or native().Chain(chip)
            mine = _share(part, chip, report.design, core)
            if isinstance(mine, ArrayPart):
                chain.add_program(chip, native_sections(mine), mapping)
            else:
                chain.add_vector(chip, mine.stage)
        chains.append(chain)
    return chains


def watched(report: SimulationReport) -> Iterator[Sequence[tuple[int, bool, int, bool, int]]]:
    """What the stepped reference of a single core does, run after run of its parts, all of them in one where weights are
    fetched ahead: states as the native module gives them."""
    for run in _runs([report]):
        [chain] = _chains(run)
        yield native().watch_chain(chain)


def _said(mapping: Any) -> Wanted:
    return Wanted(
        RESIDENT if mapping.resident else STREAMED, mapping.most_places, STRIPS if mapping.strips_first else BLOCKS
    )


def native_mapping(said: Wanted) -> Any:
    """Of a mapping in which nothing is left open."""
    return native().Mapping(said.activations == RESIDENT, said.places, said.outer == STRIPS)


def _cut(part: ArrayPart, chip: Any, mapping: Any) -> Cut:
    stages = []
    for _, _, block, blocks, strips, slices in _tilings(part, chip, mapping):
        stages.append((tuple(block), tuple(blocks), strips, slices))
    return Cut(_said(mapping), tuple(stages))


def _tilings(part: ArrayPart, chip: Any, mapping: Any) -> list[Any]:
    return [native().tile_stage(chip, stage, mapping) for stages, _ in part.sections for stage in stages]


def reject_mapping(part: ArrayPart, chip: Any, design: Hardware, asked: Wanted) -> None:
    """Raises MappingError where the part cannot be cut so."""
    if asked.outer == BLOCKS and design.dataflow == "input":
        raise MappingError(f"outer is {BLOCKS}; where activations rest in the array, {STRIPS} are the outer loop")
    boxes = all(resident for resident, *_ in _tilings(part, chip, native().Mapping(True)))
    if asked.activations == RESIDENT and not boxes:
        raise MappingError(
            f"activations are {RESIDENT}; what a single output place touches does not fit into half of the activation "
            f"memory that is left; write {STREAMED}"
        )
    stages = [stage for stages, _ in part.sections for stage in stages]
    most = {
        kind: min(
            (
                max(prod(block), 1)
                for (_, _, block, *_), stage in zip(_tilings(part, chip, native().Mapping(kind == RESIDENT)), stages)
                if prod(block) < stage.places
            ),
            default=None,
        )
        for kind in (RESIDENT, STREAMED)
        if kind == STREAMED or boxes
    }
    allowed = [most[kind] for kind in most if asked.activations in (None, kind)]
    if asked.places is not None and all(limit is not None and asked.places > limit for limit in allowed):
        said = " and ".join(f"{'any' if limit is None else limit} where {kind}" for kind, limit in most.items())
        raise MappingError(f"places is {asked.places}; a block has at most {said}")


@dataclass(frozen=True, slots=True)
class Event:
    """A part of the chip at work: ``array``, ``loading`` (of a resting tile), ``vector``, or the port to DRAM
    (``dram_weights``, ``dram_activations``, ``dram_outputs``, with its bytes and the channel of DRAM that they move
    over), from one cycle to another."""

    part: str
    begin: int
    end: int
    bytes: int
    channel: int = 0
    core: int = 0


def events(report: SimulationReport, most: int) -> list[Event]:
    """The events of parts that run one after the other, counted from the first one's start; what was fetched ahead of it
    comes before 0."""
    reports, place = report.row if report.row and report.design.weights_ahead else ([report], 0)
    skipped, start = sum(len(each.parts) for each in reports[:place]), 0
    found: list[Event] = []
    try:
        for run in _runs(reports):
            chains, last = _chains(run), min(len(run), skipped + len(report.parts))
            for kind, begin, end, *rest in native().trace_cores(chains, skipped, last, most - len(found)):
                found.append(Event(kind.name, start + begin, start + end, *rest))
            if len(run) == 1:
                start += max(cost["cycles"] for [cost] in native().time_cores(chains))
    except ValueError as error:
        raise QuatrefoilError(f"asic: {report.problem} cannot be traced: {error}") from None
    return found


def native_sections(part: ArrayPart) -> Any:
    stages = [list(stages) for stages, _ in part.sections]
    return native().Sections(stages, [repeats for _, repeats in part.sections])


COUNTERS = (
    "cycles", "fill", "busy", "stall_weights", "stall_activations", "stall_outputs", "stall_steps", "stall_memory",
    "drain", "vector_busy", "weight_bytes", "activation_bytes", "output_bytes", "folds", "macs", "weight_reads",
    "activation_reads", "accumulator_accesses", "lane_operations", "activation_writes", "memory_conflicts", "row_hits",
    "row_misses", "row_waits", "refresh_waits", "lookups", "gated_macs",
)  # fmt: skip
"""The counters of a report, in order; asic_sim/src/timing.h says what each counts."""

SUMMANDS = COUNTERS[1:9]
"""Those that cycles are the sum of, in the order of a run."""

TIMES = ("cycles", *SUMMANDS, "vector_busy", "memory_conflicts")
"""Those that several cores do not add up."""


def reject_size(problem: Problem) -> Reject | None:
    work = ops.SPECS[problem.op].work(problem)
    if max(work.macs, work.bytes) > MOST_WORK:
        return Reject(f"it takes {work.macs} multiply-accumulates and {work.bytes} bytes; the simulator stops at 2^50")
    return None


def reject_dtype(problem: Problem, *dtypes: str) -> Reject | None:
    if problem.dtype not in dtypes:
        return Reject(f"the array computes {' and '.join(dtypes)}, not {problem.dtype}")
    return None


def run_simulated(
    kernel: str,
    problem: Problem,
    lowering: Lowering,
    compute: Compute,
    weights: Mapping[int, np.ndarray] | None = None,
) -> Run:
    """A run on the design in use: its numbers by ``compute``, its cost by ``lowering``, reported once. weights: those that the
    cost depends on, on some designs, less their zero points."""
    numbers: list[Numbers] = []

    def setting_on(design: Hardware) -> Setting:
        setting = Setting.of_problem(problem)
        if not design.compresses or weights is None:
            return setting
        if not numbers:
            numbers.append(compression.known(weights))
        return replace(setting, numbers=numbers[0])

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        design = current()
        try:
            report = timed(lowering, problem, design, setting_on(design))
        except FormatError as error:
            raise FormatError(f"asic: {problem.op}: {error}") from None
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
