"""A task as a list of layers, for peers that read no ONNX: normalisations folded into weights, activations fused.

These are the model passes that our own executor runs on, so that a peer built by hand starts from no worse a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quatrefoil.bench.tasks import Task
from quatrefoil.models import load
from quatrefoil.models.graph import Node
from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.problem import Problem
from quatrefoil.registry import Reject


@dataclass(frozen=True, slots=True)
class Layer:
    """One node: ``problem`` where it is an operator of the house, else what ``node`` says in ONNX's terms."""

    node: Node
    problem: Problem | None

    @property
    def activation(self) -> Activation:
        """What is fused behind it."""
        return Activation.parse(str(self.node.attributes.get("activation", IDENTITY.text)))


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers in the order of their run, and every constant by name."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    constants: Mapping[str, np.ndarray]

    def constant(self, node: Node, position: int) -> np.ndarray | None:
        """A constant input of a node; None where it is absent or not constant."""
        return self.constants.get(node.inputs[position]) if position < len(node.inputs) else None


def layers_of(task: Task) -> Layers | Reject:
    """The task's layers, or why it has no ONNX form to take them from."""
    if isinstance(task.model, Reject):
        return task.model
    model = load(task.model)
    placed = {placement.node.name: placement.problem for placement in model.explain(task.feeds)}
    graph = model.graph
    return Layers(
        tuple(value.name for value in model.inputs),
        tuple(value.name for value in graph.outputs),
        tuple(Layer(node, placed.get(node.name)) for node in graph.nodes),
        graph.constants,
    )


def in_line(layers: Layers) -> bool:
    """Whether each layer takes what the one before it gave, its parameters apart."""
    carried = layers.inputs[0]
    for layer in layers.layers:
        varying = [name for name in layer.node.inputs if name and name not in layers.constants]
        if varying[:1] != [carried] or len(varying) > 1:
            return False
        carried = layer.node.outputs[0]
    return carried == layers.outputs[0]


def symmetric(problem: Problem) -> bool:
    """Whether the padding is the same before and behind on every axis."""
    pads = problem.ints("pads")
    return pads[: len(pads) // 2] == pads[len(pads) // 2 :]
