"""``simulate``: a problem or a whole model on a design of the ASIC simulator, layer by layer.

Cycles, traffic and energy follow from types alone, so a model is timed without being computed; given inputs, it is
also run, and its outputs are the simulator's own numbers. A ``Workload`` is what a model asks of any design: its
operations with their types, and which of them reads what another one makes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dictionary
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from quatrefoil import asic_sim, ops
from quatrefoil.asic_sim import elementwise, energy
from quatrefoil.asic_sim.backend import simulate_as
from quatrefoil.asic_sim.compressed import numbers_of
from quatrefoil.asic_sim.compression import UNKNOWN, Numbers, known
from quatrefoil.asic_sim.keeping import ALONE, Kept, Use, plan
from quatrefoil.asic_sim.mapping import ANY, Mapping, MappingError, Mappings, mappings
from quatrefoil.asic_sim.simulation import (
    COUNTERS,
    FLOATS,
    Counted,
    FormatError,
    Setting,
    SimulationReport,
    in_a_row,
    reported,
)
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.graph import Node
from quatrefoil.models.model import Model, load
from quatrefoil.models.scheduling import Placement
from quatrefoil.problem import Problem, Tensor

ERROR, HOST = "error", "host"
NOTHING_MOVES = "nothing moves"
ON_HOST = "host's numbers, the vector unit's or the array's time"

Types = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Operation:
    """One node of a model, as far as its cost on any design depends on it.

    kernel           what computes it: a kernel of the simulator, or the host, whose work is timed as the vector unit's or,
                     for dense layers, the array's
    problem          of an operator of the house; else ``kind`` is ONNX's name of it
    inputs, outputs  types, None for what is absent
    reads, makes     the values' names, in the order of the types; "" for what is absent
    attributes       numbers and texts among ONNX's
    why              the reason where no design can time it
    numbers          what is known of its weights
    """

    name: str
    op: str
    kernel: str
    kind: str
    problem: Problem | None
    inputs: Types
    outputs: Types
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    attributes: Dictionary[str, Any] = field(default_factory=dict)
    why: str = ""
    numbers: Numbers = UNKNOWN

    @property
    def text(self) -> str:
        """What is timed."""
        if self.problem is not None:
            return self.problem.text
        return f"{self.kind} {','.join(str(tensor) for tensor in self.inputs if tensor is not None)}"

    def setting(self, as_format: str | None, kept: Kept = ALONE, mapping: Mapping = ANY) -> Setting:
        """On what terms it is timed."""
        if self.problem is not None:
            return replace(Setting.of_problem(self.problem, as_format, kept, mapping), numbers=self.numbers)
        types = [tensor.dtype for tensor in (*self.inputs, *self.outputs) if tensor is not None]
        floats = [dtype for dtype in types if dtype in FLOATS] if as_format else []
        setting = Setting.of((floats or types or ["float32"])[0], as_format, kept, mapping)
        return replace(setting, numbers=self.numbers)

    @property
    def moves(self) -> bool:
        """Whether it takes any time."""
        return not self.why and (self.problem is not None or self.kind not in elementwise.FREE)

    def from_memory(self, position: int) -> bool:
        """Whether this input can come from the activation memory. What rests in the array, or streams in as its
        weights do, comes from DRAM."""
        if position == 0:
            return True
        if self.problem is None:
            return not elementwise.dense(self.kind)
        residual = self.problem.op in ("conv", "conv_transpose") and position == ops.conv.RESIDUAL
        return residual or self.problem.op in ops.FAMILIES["pool"]


@dataclass(frozen=True)
class Workload:
    """What is asked of a design: operations in the order of a run.

    results   names of the values that somebody asks for at the end: they go to DRAM
    nested    some operations run inside others (If, Loop, Scan): then nothing stays on the chip, as a name may stand for
              several values, and no weights are fetched ahead, as nobody knows what comes next
    """

    operations: tuple[Operation, ...]
    results: frozenset[str] = frozenset()
    nested: bool = False

    @property
    def unknown(self) -> tuple[Operation, ...]:
        """Those that no design can time."""
        return tuple(operation for operation in self.operations if operation.why)

    @property
    def lines(self) -> list[str]:
        """What distinguishes it from others, in plain text: a line an operation."""
        return [
            f"{','.join(each.makes)} = {each.text} of {','.join(each.reads)}, {dict(sorted(each.attributes.items()))}"
            for each in self.operations
        ]


def workload(
    target: Problem | Model, inputs: Dictionary[str, Any] | Any | None = None, weights: bool = False
) -> Workload:
    """inputs: of a model, as for ``Model.explain``. weights: look at its constant weights, whose numbers matter on designs that
    compress them."""
    if isinstance(target, Problem):
        return Workload((Operation("", target.op, "", target.op, target, target.inputs, target.outputs),))
    placements = list(target.explain(inputs, backend="asic"))
    given = inputs if isinstance(inputs, Dictionary) else {}  # in place of constants, some of them
    constants = {name: array for name, array in target.graph.constants.items() if name not in given}
    return Workload(
        tuple(
            _weighted(_operation(placement), constants, placement.node) if weights else _operation(placement)
            for placement in placements
        ),
        frozenset(value.name for value in target.outputs),
        any(placement.node.bodies for placement in placements),
    )


def _operation(placement: Placement) -> Operation:
    node, selection = placement.node, placement.selection
    if selection is not None:
        problem = selection.problem
        kernel, why = (selection.chosen.id, "") if selection.runnable else ("", placement.why)
        return Operation(
            node.name, node.title, kernel, node.kind, problem, problem.inputs, problem.outputs, node.inputs, node.outputs,
            why=why,
        )  # fmt: skip
    attributes = _attributes(node)
    timed = elementwise.known(node.kind, placement.inputs, placement.outputs, attributes)
    kernel = "host" if not timed else NOTHING_MOVES if node.kind in elementwise.FREE else ON_HOST
    why = "" if timed else "no cost is known for it"
    return Operation(
        node.name, node.title, kernel, node.kind, None, placement.inputs, placement.outputs, node.inputs, node.outputs,
        attributes, why,
    )  # fmt: skip


def _weighted(operation: Operation, constants: Dictionary[str, np.ndarray], node: Node) -> Operation:
    """With what a model's constants say of its weights."""
    mine = {place: constants[name] for place, name in enumerate(node.inputs) if name in constants}
    if operation.problem is not None:
        return replace(operation, numbers=numbers_of(operation.problem, mine))
    if operation.kind in ("Gemm", "MatMul") and 1 in mine and mine[1].ndim >= 2:
        return replace(operation, numbers=known({1: mine[1]}))
    return operation


def _attributes(node: Node) -> dict[str, Any]:
    if node.proto is None:
        return {}
    from onnx.helper import get_attribute_value

    values = {each.name: get_attribute_value(each) for each in node.proto.attribute}
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if isinstance(value, (int, float, str))}


@dataclass(frozen=True)
class Layer:
    """One node of a model.

    kernel    what computes it, as in ``Operation``
    report    its cost; None where nothing moves (a reshape), or where it is left to the host, and then ``why`` says so
    """

    name: str
    op: str
    kernel: str
    report: SimulationReport | None
    why: str = ""


@dataclass(frozen=True)
class ModelReport(Counted):
    """What a model costs on a design: the sums over its layers, which run one after the other. Where the design fetches
    weights ahead, a layer's cycles are those from the end of the layer before it to its own; what came for it earlier is in
    its bytes, not in its cycles.

    as_format  what floats were taken for, as if they had been quantised; None: they are what they are
    outputs    by name, as the simulator computed them; None without inputs
    """

    design: asic_sim.Hardware
    layers: tuple[Layer, ...]
    counters: Dictionary[str, int]
    as_format: str | None = None
    outputs: Dictionary[str, np.ndarray] | None = field(default=None, compare=False)

    @property
    def reports(self) -> list[SimulationReport]:
        """Of the layers that have a cost."""
        return [layer.report for layer in self.layers if layer.report is not None]

    @property
    def formats(self) -> tuple[str, ...]:
        """Those that the array multiplies; where it has nothing to do, those of the vector unit's work."""
        multiplied = dict.fromkeys(name for report in self.reports if report.macs for name in report.formats)
        anything = dict.fromkeys(name for report in self.reports for name in report.formats)
        return tuple(multiplied or anything or ("int8",))

    @cached_property
    def energy(self) -> Dictionary[str, energy.Band]:
        totals: dict[str, energy.Band] = {}
        for report in self.reports:
            for name, band in report.energy.items():
                totals[name] = totals.get(name, energy.NOTHING) + band
        return totals


def simulate(
    target: Problem | str | os.PathLike[str] | bytes | Model | Any,
    design: str | os.PathLike[str] | asic_sim.Hardware | None = None,
    inputs: Dictionary[str, Any] | Any | None = None,
    unsupported: str = ERROR,
    as_format: str | None = None,
    mapping: Mappings | Mapping | Dictionary[str, Mapping] | str | os.PathLike[str] | None = None,
) -> SimulationReport | ModelReport:
    """What a problem or a model costs on a design of the ASIC simulator.

    target: a ``Problem`` or its text form; or a model: a ``Model``, or what ``load`` takes. design: a name, a path or a
    ``Hardware``; by default the one in use. inputs: of a model, as for ``Model.run``: then it is run on the simulator
    and ``outputs`` holds its numbers; left out, it is timed for zeros of its declared shapes. unsupported: what to do
    with operators that the simulator does not know, or whose operands the design does not multiply: "error", or "host" to
    list them without a cost. as_format: time floats as if they had been quantised to this format of the design ("int8");
    their numbers are not computed. mapping: how layers are cut for the array: a ``Mapping`` for all, several by the layers'
    names, or a TOML file; what is left open is searched.

    Raises QuatrefoilError, naming the operators, for what cannot be simulated.
    """
    if unsupported not in (ERROR, HOST):
        raise QuatrefoilError(f"simulate: unsupported is {unsupported!r}; write {ERROR!r} or {HOST!r}")
    with asic_sim.use_design(design) if design is not None else asic_sim.use_design(asic_sim.current()) as chip:
        if isinstance(target, str) and " " in target.strip():
            target = ops.parse(target)
        if isinstance(target, Problem):
            if inputs is not None:
                raise QuatrefoilError("simulate: inputs go with a model; a problem is timed by its types alone")
            if mappings(mapping).layers:
                raise MappingError("mapping: a problem has no layers by name; say the mapping outright")
            return asic_sim.simulate(target, chip, as_format, mappings(mapping).everywhere)
        if as_format is not None and inputs is not None:
            raise QuatrefoilError("simulate: as_format times a model; it does not compute it: leave inputs out")
        model = target if isinstance(target, Model) else load(target)
        report = cost(workload(model, inputs, chip.compresses), chip, unsupported, as_format, mappings(mapping))
        return report if inputs is None else replace(report, outputs=model.run(inputs, backend="asic"))


def cost(
    asked: Workload,
    chip: asic_sim.Hardware,
    unsupported: str = ERROR,
    as_format: str | None = None,
    said: Mappings | None = None,
) -> ModelReport:
    """What a workload costs on a design; the arguments as of ``simulate``."""
    said = said or Mappings()
    known = [operation.name for operation in asked.operations]
    missing = next((name for name in said.layers if name not in known), None)
    if missing is not None:
        raise MappingError(f"mapping: there is no layer {missing!r}; there are {', '.join(known)}")
    layers = []
    for operation, kept in zip(asked.operations, _kept(asked, chip, as_format), strict=True):
        try:
            layers.append(_layer(operation, chip, operation.setting(as_format, kept, said.of(operation.name))))
        except MappingError as error:
            raise MappingError(f"mapping of {operation.name} ({operation.op}): {error}") from None
        report = layers[-1].report
        if operation.name in said.layers and not (report is not None and report.cuts):
            raise MappingError(
                f"mapping: {operation.name} ({operation.op}) has nothing to do on the array; leave it out"
            )
    unknown = [layer for layer in layers if layer.why]
    if unknown and unsupported == ERROR:
        names = ", ".join(dict.fromkeys(f"{layer.op} ({layer.why})" for layer in unknown))
        raise QuatrefoilError(
            f"asic: the simulator cannot time {names}; with unsupported={HOST!r} they are listed without a cost"
        )
    if chip.weights_ahead and not asked.nested:
        layers = _in_a_row(layers)
    reports = [layer.report for layer in layers if layer.report is not None]
    counters = {name: sum(report.counters[name] for report in reports) for name in COUNTERS}
    return ModelReport(chip, tuple(layers), counters, as_format)


def _in_a_row(layers: Sequence[Layer]) -> list[Layer]:
    """With the cycles that they take one after the other, weights being fetched ahead."""
    alone = [layer.report for layer in layers if layer.report is not None]
    reports = iter(in_a_row(alone) if alone else [])
    return [layer if layer.report is None else replace(layer, report=next(reports)) for layer in layers]


def _layer(operation: Operation, chip: asic_sim.Hardware, setting: Setting) -> Layer:
    if not operation.moves:
        return Layer(operation.name, operation.op, operation.kernel, None, operation.why)
    try:
        report = _report(operation, chip, setting)
    except FormatError as error:
        return Layer(operation.name, operation.op, "host", None, str(error))
    return Layer(operation.name, operation.op, operation.kernel, report)


def _report(operation: Operation, chip: asic_sim.Hardware, setting: Setting) -> SimulationReport:
    if operation.problem is not None:
        return simulate_as(operation.problem, chip, setting)
    parts = elementwise.lower(operation.kind, operation.inputs, operation.outputs, operation.attributes, chip, setting)
    return reported(operation.text, parts, chip, setting)


def _kept(asked: Workload, chip: asic_sim.Hardware, as_format: str | None) -> Sequence[Kept]:
    """What stays on the chip before and after each operation."""
    if not chip.activations_stay or asked.nested:
        return [ALONE] * len(asked.operations)
    return plan(
        [_use(operation, as_format) for operation in asked.operations], asked.results, chip.room_for_activations
    )


def _use(operation: Operation, as_format: str | None) -> Use:
    if not operation.why and operation.kind in elementwise.SAME:
        return Use(same=(operation.reads[0], operation.makes[0]))
    if not operation.moves:
        return Use(reads=tuple((name, False) for name in operation.reads))
    setting = operation.setting(as_format)
    made: Iterable[tuple[str, Tensor | None]] = zip(operation.makes, operation.outputs)
    return Use(
        reads=tuple((name, operation.from_memory(place)) for place, name in enumerate(operation.reads)),
        makes=tuple((name, setting.size(tensor) if tensor is not None else 0) for name, tensor in made),
    )
