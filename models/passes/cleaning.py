"""Passes that take out what need not be computed: identities, constant parts, dead nodes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from quatrefoil.models import host
from quatrefoil.models.graph import MISFITS, Graph, Node, frozen_array
from quatrefoil.models.passes.matching import on_host

FOLDED_ELEMENTS: Final = 2**24
"""Constants that folding would make and that may be larger than this are computed at run time instead."""

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
           "Dropout"}  # fmt: skip
# Operators whose outputs can be far larger than their inputs are broadcast to, so that they are left for run time.
_GROWING = {"Tile", "Resize", "Upsample", "Pad", "EyeLike", "OneHot", "CenterCropPad", "HannWindow", "HammingWindow",
            "BlackmanWindow", "MelWeightMatrix", "Col2Im", "MatMul", "Gemm", "Einsum", "AffineGrid"}  # fmt: skip


def _renamed(nodes: Iterable[Node], names: Mapping[str, str]) -> list[Node]:
    """The nodes reading other names."""

    def last(name: str) -> str:
        while name in names:
            name = names[name]
        return name

    return [
        replace(node, inputs=tuple(map(last, node.inputs))) if any(name in names for name in node.inputs) else node
        for node in nodes
    ]


def constants_into_bodies(graph: Graph) -> Graph:
    """Values that bodies take from outside and that are constant become constants of the body."""
    nodes = []
    for node in graph.nodes:
        own = len(node.proto.input) if node.proto is not None else 0
        taken = node.inputs[own:] if node.bodies else ()
        fixed = {name for name in taken if name in graph.constants}
        if not fixed:
            nodes.append(node)
            continue
        bodies = {}
        for key, body in node.bodies.items():
            formal = len(body.inputs) - len(taken)
            kept = tuple(value for value in body.inputs[formal:] if value.name not in fixed)
            constants = {**{name: graph.constants[name] for name in fixed}, **body.constants}
            bodies[key] = constants_into_bodies(
                replace(body, inputs=(*body.inputs[:formal], *kept), constants=constants)
            )
        inputs = (*node.inputs[:own], *(name for name in taken if name not in fixed))
        nodes.append(replace(node, inputs=inputs, bodies=bodies))
    return graph.with_nodes(nodes)


def remove_identities(graph: Graph) -> Graph:
    """Identity and, as inference is what is run, Dropout without training_mode are taken out."""
    outputs = graph.output_names
    uses = graph.uses()
    names: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        gone = on_host(node, "Identity") or (on_host(node, "Dropout") and _only_passes(node, graph, uses))
        if gone and node.outputs[0] not in outputs:
            names[node.outputs[0]] = node.inputs[0]
        else:
            nodes.append(node)
    return graph.with_nodes(_renamed(nodes, names))


def _only_passes(dropout: Node, graph: Graph, uses: Mapping[str, int]) -> bool:
    if any(uses.get(name, 0) for name in dropout.outputs[1:] if name):
        return False
    if dropout.opsets[""] < 12 or len(dropout.inputs) < 3 or not dropout.inputs[2]:
        return True
    training = graph.constants.get(dropout.inputs[2])
    return training is not None and not training.any()


def fold_constants(graph: Graph, leave: Collection[str] = ()) -> Graph:
    """Nodes of the host whose inputs are all constant are computed now, up to FOLDED_ELEMENTS an output.

    leave: kinds of nodes that a later pass wants to see.
    """
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        results = None if node.kind in leave else _folded(node, constants)
        if results is None:
            nodes.append(node)
        else:
            constants.update(results)
    return graph.with_nodes(nodes, constants)


def _folded(node: Node, constants: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The node's outputs, or None where it is to be run."""
    if node.op is not None or node.bodies or node.proto is None or node.kind in _RANDOM:
        return None
    given = [constants.get(name) for name in node.inputs]
    if not all(array is not None for array, name in zip(given, node.inputs) if name):
        return None
    if _largest_output(node.kind, [array for array in given if array is not None]) > FOLDED_ELEMENTS:
        return None
    try:
        outputs = host.prepare(node.proto, dict(node.opsets), constants).run(given)
    except MISFITS:
        return None  # it is met again, and said by name, when the model is loaded or run
    if not all(isinstance(array, np.ndarray) for array in outputs):
        return None
    return {name: frozen_array(array) for name, array in zip(node.outputs, outputs) if name}


def _largest_output(kind: str, given: list[np.ndarray]) -> float:
    """An upper bound of the number of elements that come out; infinite where it is not simple to tell."""
    if kind in _GROWING:
        return math.inf
    if kind == "ConstantOfShape":
        return float(np.prod(given[0], dtype=float))
    if kind == "Expand":
        return float(np.prod(given[1], dtype=float)) * given[0].size
    if kind == "Range":
        start, limit, delta = (float(array.reshape(-1)[0]) for array in given)
        return abs((limit - start) / delta) if delta else math.inf
    if kind == "Gather":  # one axis of the data becomes all of the indices
        return float(given[0].size) / max(min(given[0].shape, default=1), 1) * given[1].size
    if kind.startswith("Gather"):
        return float(given[0].size) * given[1].size
    together = float(sum(array.size for array in given))
    try:
        return max(together, math.prod(np.broadcast_shapes(*(array.shape for array in given))))
    except ValueError:
        return together


def remove_dead_nodes(graph: Graph) -> Graph:
    """Nodes whose outputs nobody reads are taken out, and constants that nobody reads with them."""
    needed = set(graph.output_names)
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    constants = {name: array for name, array in graph.constants.items() if name in needed}
    return graph.with_nodes(reversed(kept), constants)
