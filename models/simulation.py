"""``simulate``: a problem or a whole model on a design of the ASIC simulator, layer by layer.

Cycles, traffic and energy follow from types alone, so a model is timed without being computed; given inputs, it is
also run, and its outputs are the simulator's own numbers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from quatrefoil import asic_sim, ops
from quatrefoil.asic_sim import elementwise, energy
from quatrefoil.asic_sim.simulation import COUNTERS, Counted, SimulationReport, count
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.model import Model, load
from quatrefoil.models.scheduling import Placement
from quatrefoil.problem import Problem

ERROR, HOST = "error", "host"


@dataclass(frozen=True)
class Layer:
    """One node of a model.

    kernel    what computes it: a kernel of the simulator, or the host, whose work is timed as the vector unit's or, for
              dense layers, the array's
    report    its cost; None where nothing moves (a reshape), or where it is left to the host, and then ``why`` says so
    """

    name: str
    op: str
    kernel: str
    report: SimulationReport | None
    why: str = ""


@dataclass(frozen=True)
class ModelReport(Counted):
    """What a model costs on a design: the sums over its layers, which run one after the other.

    outputs    by name, as the simulator computed them; None without inputs
    """

    design: asic_sim.Hardware
    layers: tuple[Layer, ...]
    integers: bool
    counters: Mapping[str, int]
    outputs: Mapping[str, np.ndarray] | None = field(default=None, compare=False)

    @cached_property
    def energy(self) -> dict[str, energy.Band]:
        """Picojoules by component, each from low to high."""
        totals: dict[str, energy.Band] = {}
        for layer in self.layers:
            for name, band in (layer.report.energy if layer.report is not None else {}).items():
                totals[name] = totals.get(name, energy.NOTHING) + band
        return totals


def simulate(
    target: Problem | str | os.PathLike[str] | bytes | Model | Any,
    design: str | os.PathLike[str] | asic_sim.Hardware | None = None,
    inputs: Mapping[str, Any] | Any | None = None,
    unsupported: str = ERROR,
) -> SimulationReport | ModelReport:
    """What a problem or a model costs on a design of the ASIC simulator.

    target: a ``Problem`` or its text form; or a model: a ``Model``, or what ``load`` takes. design: a name, a path or a
    ``Hardware``; by default the one in use. inputs: of a model, as for ``Model.run``: then it is run on the simulator
    and ``outputs`` holds its numbers; left out, it is timed for zeros of its declared shapes. unsupported: what to do
    with operators that the simulator does not know: "error", or "host" to list them without a cost.

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
            return asic_sim.simulate(target, chip)
        model = target if isinstance(target, Model) else load(target)
        layers = tuple(_layer(placement, chip) for placement in model.explain(inputs, backend="asic"))
        unknown = [layer for layer in layers if layer.why]
        if unknown and unsupported == ERROR:
            names = ", ".join(dict.fromkeys(f"{layer.op} ({layer.why})" for layer in unknown))
            raise QuatrefoilError(
                f"asic: the simulator cannot time {names}; with unsupported={HOST!r} they are listed without a cost"
            )
        outputs = None if inputs is None else model.run(inputs, backend="asic")
        reports = [layer.report for layer in layers if layer.report is not None]
        counters = {name: sum(report.counters[name] for report in reports) for name in COUNTERS}
        integers = all(report.integers for report in reports)
        return ModelReport(chip, layers, integers, counters, outputs)


def _layer(placement: Placement, chip: asic_sim.Hardware) -> Layer:
    node = placement.node
    if placement.selection is not None:
        if not placement.selection.runnable:
            return Layer(node.name, node.title, "", None, placement.why)
        report = asic_sim.simulate(placement.selection.problem, chip)
        return Layer(node.name, node.title, placement.selection.chosen.id, report)
    known = [tensor for tensor in (*placement.inputs, *placement.outputs) if tensor is not None]
    parts = elementwise.lower(node.kind, placement.inputs, placement.outputs, chip)
    if parts is None:
        return Layer(node.name, node.title, "host", None, "no cost is known for it")
    if not parts:
        return Layer(node.name, node.title, "nothing moves", None)
    text = f"{node.kind} {','.join(str(tensor) for tensor in placement.inputs if tensor is not None)}"
    integers = known[0].dtype in ("int8", "uint8")
    report = SimulationReport(text, chip, integers, count(parts, chip, text), parts)
    return Layer(node.name, node.title, "host's numbers, the vector unit's or the array's time", report)
