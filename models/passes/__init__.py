"""Passes over a model's graph, each a function Graph -> Graph that leaves the numbers alone.

``optimize`` applies them in order. Values that are outputs of the graph are never renamed or fused away, and a value
that two nodes read is never fused into one of them. Bodies of If, Loop and Scan are optimized likewise.

Folding into weights changes roundings only: new weights are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from quatrefoil.models.graph import Graph
from quatrefoil.models.passes.activations import fuse_activations, fuse_residuals, name_activations
from quatrefoil.models.passes.cleaning import (
    constants_into_bodies,
    fold_constants,
    remove_dead_nodes,
    remove_identities,
)
from quatrefoil.models.passes.convolutions import fold_affine, fold_pads, fold_scale
from quatrefoil.models.passes.quantized import fuse_quantized, join_bytes, join_round_trips, pass_bytes, tabulate


def optimize(graph: Graph) -> Graph:
    """All passes, bodies included."""
    for step in (
        constants_into_bodies,
        remove_identities,
        partial(fold_constants, leave=("DequantizeLinear",)),
        pass_bytes,
        join_bytes,
        fuse_quantized,
        tabulate,
        fold_constants,
        remove_dead_nodes,
        join_round_trips,
        remove_dead_nodes,
        name_activations,
        fold_pads,
        fold_affine,
        fuse_activations,
        fold_scale,
        fuse_residuals,
        fuse_activations,
        remove_dead_nodes,
    ):
        graph = step(graph)
    return graph.with_nodes(
        replace(node, bodies={name: optimize(body) for name, body in node.bodies.items()}) if node.bodies else node
        for node in graph.nodes
    )


__all__ = [
    "constants_into_bodies",
    "fold_affine",
    "fold_constants",
    "fold_pads",
    "fold_scale",
    "fuse_activations",
    "fuse_quantized",
    "fuse_residuals",
    "join_bytes",
    "join_round_trips",
    "name_activations",
    "optimize",
    "pass_bytes",
    "remove_dead_nodes",
    "remove_identities",
    "tabulate",
]
