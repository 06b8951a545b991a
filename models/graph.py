"""The graph that a model is, between ONNX and the executor: values by name, nodes in an order that can run.

A node either is an operator of the house (``op`` names an entry of ``quatrefoil.ops.SPECS``), or runs on the host
as ONNX wrote it (``proto``), or holds bodies that are graphs themselves (If, Loop, Scan). Graphs and nodes are
frozen: a pass makes new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from typing import Any, Final

import numpy as np
from onnx import NodeProto

from quatrefoil.errors import QuatrefoilError

Dimension = int | str | None
"""The length of an axis: a number, a name (equal names are equal lengths), or unknown."""


class ModelError(QuatrefoilError, ValueError):
    """A model that cannot be loaded or run, or inputs that do not fit it; the message names what is wrong."""


MISFITS: Final = (QuatrefoilError, ValueError, TypeError, LookupError, AssertionError, OSError, MemoryError)
"""What operators, NumPy and onnx.reference raise for values and attributes that do not fit. A person gets it with the
node's name."""


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output as the model declares it.

    dtype   NumPy's name (``string`` for text), or None where the model does not say
    shape   None where the model does not say
    kind    ``tensor``, or ``sequence``, ``optional``, ``map``, ``sparse_tensor``
    """

    name: str
    dtype: str | None
    shape: tuple[Dimension, ...] | None
    kind: str = "tensor"

    def __str__(self) -> str:
        if self.kind != "tensor":
            return f"{self.name}: {self.kind}"
        dims = "..." if self.shape is None else "x".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype or '?'}[{dims}]"


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a graph.

    kind         the ONNX operator, for people
    inputs       value names, "" for an absent optional input; outputs likewise
    op           the operator of the house, or None
    attributes   of the house operator, by ONNX's names, and ``activation`` when one is fused
    whole_plane  a global pool: the window is the input's plane, known when it runs
    proto        the ONNX node of a host operator or of one with bodies
    opsets       versions by domain, which give ``proto`` its meaning
    bodies       If, Loop and Scan: their graphs by attribute name; the values they take from outside are appended to
                 ``inputs`` from position ``len(proto.input)`` on, and to each body's inputs, in the same order
    fused        kinds of the nodes that passes merged into this one, in order
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    op: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    whole_plane: bool = False
    proto: NodeProto | None = None
    opsets: Mapping[str, int] = field(default_factory=dict)
    bodies: Mapping[str, Graph] = field(default_factory=dict)
    fused: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The operator with what was fused into it: ``Conv+Relu``."""
        return "+".join((self.kind, *self.fused))

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.title})"


@dataclass(frozen=True, slots=True)
class Graph:
    """A model's nodes in an order that can run, its constants, and what goes in and comes out.

    ``defaults`` names the inputs that have a value in ``constants`` and may still be given.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    defaults: frozenset[str] = frozenset()

    @property
    def output_names(self) -> frozenset[str]:
        return frozenset(value.name for value in self.outputs)

    def producers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def uses(self) -> Counter[str]:
        """How often each value is read; being an output of the graph counts as one."""
        counts = Counter(name for node in self.nodes for name in node.inputs if name)
        counts.update(value.name for value in self.outputs)
        return counts

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, once for each time they read it."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def with_nodes(self, nodes: Iterable[Node], constants: Mapping[str, np.ndarray] | None = None) -> Graph:
        return replace(self, nodes=tuple(nodes), constants=self.constants if constants is None else constants)

    def host_operators(self) -> Counter[str]:
        """The operators that are not of the house, bodies included, and how many nodes have each."""
        counts: Counter[str] = Counter()
        for node in self.nodes:
            if node.op is None:
                counts[node.kind] += 1
            for body in node.bodies.values():
                counts.update(body.host_operators())
        return counts


def frozen_array(array: np.ndarray) -> np.ndarray:
    """The array, contiguous and read-only, as graphs keep their constants."""
    contiguous = np.ascontiguousarray(array) if array.ndim else array
    if contiguous.flags.writeable:
        contiguous = contiguous.view()
        contiguous.flags.writeable = False
    return contiguous


def in_order(nodes: Iterable[Node], available: Collection[str]) -> tuple[Node, ...]:
    """The nodes in an order in which every input is there when it is needed, otherwise as given.

    available: the names of inputs and constants. Raises ModelError for an input that nothing makes and for a cycle.
    """
    pending = list(nodes)
    makers = {name: index for index, node in enumerate(pending) for name in node.outputs if name}
    waiting: list[int] = []
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(pending):
        sources = set()
        for name in node.inputs:
            if not name or name in available:
                continue
            if name not in makers:
                raise ModelError(f"{node} reads {name!r}, which is no input, no weight and no node's output")
            sources.add(makers[name])
        waiting.append(len(sources))
        for source in sources:
            readers.setdefault(source, []).append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    heapify(ready)
    ordered = []
    while ready:
        index = heappop(ready)
        ordered.append(pending[index])
        for reader in readers.get(index, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heappush(ready, reader)
    if len(ordered) < len(pending):
        stuck = [str(node) for index, node in enumerate(pending) if waiting[index] > 0]
        raise ModelError(f"the graph has a cycle through {', '.join(stuck[:3])}; each node has to wait for itself")
    return tuple(ordered)
