"""A model on one backend, layer by layer: which kernel ran, how long it took, how near it is to the float64 oracle.

Each layer is held to the oracle on the inputs that the layer itself got, so that no layer answers for another's
rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from quatrefoil.bench.verify import Oracle
from quatrefoil.models import Model
from quatrefoil.models.graph import Value
from quatrefoil.models.scheduling import Placement


@dataclass(frozen=True, slots=True)
class Layer:
    """One node of the model.

    backend       where it ran; "host" for operators that no backend has
    seconds       measured; None where it was simulated
    cycles        simulated, with microseconds at the design's clock; None where it was measured
    error         the largest difference from the oracle as a share of the largest value; None when not compared
    out_of_place  elements out of the operator's tolerance
    """

    name: str
    op: str
    backend: str
    kernel: str
    seconds: float | None
    cycles: int | None
    microseconds: float | None
    error: float | None
    out_of_place: int = 0
    problem: str = ""


def layers(model: Model, feeds: Mapping[str, np.ndarray], backend: str) -> list[Layer]:
    """Runs the model on the backend a few times; every operator of the house is compared with the oracle."""
    watched = watching(model)
    values: dict[str, np.ndarray] = {**model.graph.constants, **feeds}
    values.update((name, np.asarray(array)) for name, array in watched.run(feeds, backend=backend).items())
    placements = {placement.node.name: placement for placement in watched.explain(feeds, backend=backend)}
    found = []
    for node in model.profile(feeds, backend=backend):
        layer = Layer(
            node.name, node.op, node.backend, node.kernel, node.seconds, node.cycles, node.microseconds, error=None
        )
        placement = placements.get(node.name)
        found.append(layer if placement is None else compared(layer, placement, values))
    return found


def watching(model: Model) -> Model:
    """The same model with every value that a node makes among its outputs."""
    graph = model.graph
    made = [name for node in graph.nodes for name in node.outputs if name and name not in graph.output_names]
    outputs = (*graph.outputs, *(Value(name, None, None) for name in made))
    return Model(replace(graph, outputs=outputs), optimized=False)


def compared(layer: Layer, placement: Placement, values: Mapping[str, np.ndarray]) -> Layer:
    """The layer with its distance from the oracle, where an operator of the house made it."""
    problem, node = placement.problem, placement.node
    if problem is None:
        return layer
    if sum(map(bool, node.inputs)) != sum(tensor is not None for tensor in problem.inputs):
        return layer  # an addition after the operator is part of the node and not of the problem
    arrays = [values[name] if name else None for name in node.inputs]
    outputs = [values[name] if name else None for name in node.outputs]
    verdict = Oracle(problem, arrays).check(outputs)
    return replace(layer, error=verdict.error, out_of_place=verdict.failures, problem=problem.text)
