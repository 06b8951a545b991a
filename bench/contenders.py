"""Who can be measured: a backend of ours, or a peer. Both make a task ready and run it in a process of their own.

Ours is called as a user calls it: a single problem through the plan of its public function, a chain or a network
through a loaded model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from quatrefoil import backends, dispatch, settings
from quatrefoil.bench import peers
from quatrefoil.bench.peers import Peer, Prepared, contiguous, into
from quatrefoil.bench.records import Chosen, Simulated, flags_of
from quatrefoil.bench.tasks import Task
from quatrefoil.errors import BackendUnavailable, NoKernelError
from quatrefoil.models import load
from quatrefoil.ops.text import read_call
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Availability, Reject, SimulatedCost, TimesDevice, collect_costs


@dataclass(frozen=True, slots=True)
class Ours:
    """A backend of ours, as a contender."""

    name: str

    @property
    def title(self) -> str:
        return f"quatrefoil, {self.name}"

    @property
    def timed(self) -> str:
        waited = "" if self.name == "cpu" else ", and the last result brought to the host"
        return f"the call from Python{waited}; outputs made in each call"

    def probe(self) -> Availability:
        return backends.get(self.name).probe()

    def prepare(self, task: Task, threads: int) -> Prepared | Reject:
        settings.set_num_threads(threads)
        try:
            return self._network(task) if task.problem is None else self._problem(task, task.problem)
        except (BackendUnavailable, NoKernelError) as error:
            return Reject(str(error))

    def _problem(self, task: Task, problem: Problem) -> Prepared | Reject:
        house = backends.get(self.name)
        selection = dispatch.select(problem, self.name)
        selection.chosen  # noqa: B018 - raises before anything is brought to a missing device
        native = [None if array is None else house.put(contiguous(array)) for array in task.arrays]
        plan = dispatch.CallPlan(call_of(problem, native), self.name, tune=False)
        varying = [
            array for position, array in enumerate(native) if array is not None and position not in task.constants
        ]

        def refill(inputs: Sequence[np.ndarray]) -> None:
            for array, values in zip(varying, inputs, strict=True):
                array[...] = house.put(values)

        with collect_costs() as costs:
            plan(*varying)
        return Prepared(
            plan.kernel.id,
            partial(plan, *varying),
            lambda results: [house.get(array) for array in _all(results)],
            house.device(),
            lambda results: house.get(_all(results)[0]),
            cost_of(costs) if house.simulated else None,
            refill,
            house.device_seconds if isinstance(house, TimesDevice) else None,
            chosen_of(selection, house.device()),
        )

    def _network(self, task: Task) -> Prepared | Reject:
        if isinstance(task.model, Reject):
            return task.model
        house = backends.get(self.name)
        there = house.probe()
        if not there.ready:
            raise BackendUnavailable(there.detail)
        model, feeds = load(task.model), {name: contiguous(array) for name, array in task.feeds.items()}
        with collect_costs() as costs:
            model.run(feeds, backend=self.name)
        names = [value.name for value in model.outputs]
        return Prepared(
            f"{len(model.graph.nodes)} nodes",
            lambda: model.run(feeds, backend=self.name),
            lambda results: [np.asarray(results[name]) for name in names],  # type: ignore[index]
            house.device(),
            None,
            cost_of(costs) if house.simulated else None,
            into(feeds.values()),
            house.device_seconds if isinstance(house, TimesDevice) else None,
        )


def chosen_of(selection: dispatch.Selection, device: str) -> Chosen:
    """What a record says of the kernel that a selection chose."""
    kernel = selection.chosen
    said = flags_of(os.environ)
    return Chosen(kernel.id, kernel.version, selection.reason, kernel.layout, device, kernel.beyond, said)


def call_of(problem: Problem, inputs: Sequence[Array | None]) -> dispatch.Call:
    """The call whose problem this is; it gives all outputs."""
    text = read_call(problem.text)
    return dispatch.Call(problem.op, tuple(inputs), text.attributes, text.outputs, _all)


def _all(outputs: Any) -> tuple[Any, ...]:
    return tuple(outputs)


def cost_of(costs: Sequence[SimulatedCost]) -> Simulated | None:
    """What one run reported, summed over its parts; None when it reported nothing."""
    if not costs:
        return None
    counters: dict[str, int] = {}
    for cost in costs:
        for name, value in cost.counters.items():
            counters[name] = counters.get(name, 0) + value
    return Simulated(
        design=costs[0].design,
        cycles=sum(cost.cycles for cost in costs),
        clock_mhz=costs[0].clock_mhz,
        dram_bytes=sum(cost.dram_bytes for cost in costs),
        counters=counters,
    )


def get(name: str) -> Ours | Peer:
    """The contender of that name. Raises QuatrefoilError, with the known names, when there is none."""
    return Ours(name) if name in backends.names() else peers.get(name)
