"""If, Loop, Scan and SequenceMap: operators whose bodies are graphs, run by the model's own executor.

``prepare`` settles a node's attributes and gives a function of (run_body, inputs): ``run_body(name, values)`` runs a
body by attribute name on its inputs. The node's inputs are ONNX's, then the values that the bodies take from outside,
which every body gets after its own. Semantics: ONNX operator sets 9 to the newest (Scan of operator set 8, with its
batch axis, is refused).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from quatrefoil.models.graph import Graph, ModelError, Node, Value

RunBody = Callable[[str, Sequence[Any]], list[Any]]
Execute = Callable[[RunBody, list[Any]], list[Any]]


def prepare(node: Node) -> Execute:
    """The function that runs the node. Raises ModelError for a node that cannot run."""
    return {"If": _if, "Loop": _loop, "Scan": _scan, "SequenceMap": _sequence_map}[node.kind](node)


def truth(value: Any) -> bool:
    """A condition: a bool array of one element, on whatever device."""
    if value.size != 1:
        raise ModelError(f"a condition has shape {list(value.shape)}; it has to be one truth value")
    return bool(value.reshape(-1)[0])


def _body(node: Node, name: str) -> Graph:
    if name not in node.bodies:
        raise ModelError(f"{node} lacks its body {name!r}")
    return node.bodies[name]


def _if(node: Node) -> Execute:
    for name in ("then_branch", "else_branch"):
        found = len(_body(node, name).outputs)
        if found != len(node.outputs):
            raise ModelError(f"{node}: its {name} gives {found} outputs; it has to give {len(node.outputs)}")

    def execute(run_body: RunBody, inputs: list[Any]) -> list[Any]:
        return run_body("then_branch" if truth(inputs[0]) else "else_branch", inputs[1:])

    return execute


def _loop(node: Node) -> Execute:
    assert node.proto is not None
    body, own = _body(node, "body"), len(node.proto.input)
    carried = own - 2
    scanned = len(body.outputs) - 1 - carried
    if own < 2 or scanned < 0 or len(body.inputs) - (len(node.inputs) - own) != 2 + carried:
        raise ModelError(
            f"{node}: its body has to take the iteration, the condition and {max(carried, 0)} carried values"
        )
    going = body.constants.get(body.outputs[0].name)
    if not node.inputs[0] and going is not None and going.size == 1 and going.all():
        raise ModelError(f"{node} never ends: it has no trip count and its body's condition is always true")

    def execute(run_body: RunBody, inputs: list[Any]) -> list[Any]:
        trips = None if inputs[0] is None else int(inputs[0].reshape(-1)[0])
        condition = inputs[1]
        state, captured = list(inputs[2:own]), inputs[own:]
        rows: list[list[Any]] = [[] for _ in range(scanned)]
        iteration = 0
        while (trips is None or iteration < trips) and (condition is None or truth(condition)):
            given = np.asarray(True) if condition is None else condition
            results = run_body("body", [np.asarray(iteration, np.int64), given, *state, *captured])
            condition = results[0]
            state = results[1 : 1 + carried]
            for row, value in zip(rows, results[1 + carried :]):
                row.append(value)
            iteration += 1
        return state + [_stacked(row, value) for row, value in zip(rows, body.outputs[1 + carried :])]

    return execute


def _stacked(rows: list[Any], declared: Value, axis: int = 0) -> Any:
    """Scan outputs on a new axis; without any row, an empty array of what the body declares."""
    if rows:
        return np.stack(rows, axis)
    shape = [length if isinstance(length, int) else 0 for length in declared.shape or ()]
    shape.insert(axis % (len(shape) + 1), 0)
    return np.zeros(shape, declared.dtype if declared.dtype not in (None, "string") else object)


def _scan(node: Node) -> Execute:
    assert node.proto is not None
    if node.opsets.get("", 9) < 9:
        raise ModelError(f"{node} is of operator set 8, with a batch axis; operator sets from 9 on are taken")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute if a.name != "body"}
    body, own = _body(node, "body"), len(node.proto.input)
    count = int(attributes.get("num_scan_inputs", 0))
    states = own - count
    scanned = len(body.outputs) - states
    if count < 1 or states < 0 or scanned < 0 or len(body.inputs) - (len(node.inputs) - own) != own:
        raise ModelError(
            f"{node}: its body has to take its {own} inputs and to give {max(states, 0)} states and the outputs"
        )

    def listed(name: str, length: int) -> list[int]:
        values = [int(v) for v in attributes.get(name) or [0] * length]
        if len(values) != length:
            raise ModelError(f"{node}: {name} has {len(values)} values; it takes {length}")
        return values

    in_axes, in_reversed = listed("scan_input_axes", count), listed("scan_input_directions", count)
    out_axes, out_reversed = listed("scan_output_axes", scanned), listed("scan_output_directions", scanned)

    def execute(run_body: RunBody, inputs: list[Any]) -> list[Any]:
        state, captured = list(inputs[:states]), inputs[own:]
        sequences = [np.moveaxis(array, axis, 0) for array, axis in zip(inputs[states:own], in_axes)]
        lengths = {len(sequence) for sequence in sequences}
        if len(lengths) != 1:
            raise ModelError(f"{node}: its scan inputs are {sorted(lengths)} long; they have to be equally long")
        [length] = lengths
        rows: list[list[Any]] = [[] for _ in range(scanned)]
        for step in range(length):
            elements = [s[length - 1 - step if back else step] for s, back in zip(sequences, in_reversed)]
            results = run_body("body", [*state, *(np.asarray(e) if np.isscalar(e) else e for e in elements), *captured])
            state = results[:states]
            for row, value in zip(rows, results[states:]):
                row.append(value)
        for row, back in zip(rows, out_reversed):
            if back:
                row.reverse()
        return state + [_stacked(row, value, axis) for row, value, axis in zip(rows, body.outputs[states:], out_axes)]

    return execute


def _sequence_map(node: Node) -> Execute:
    assert node.proto is not None
    own = len(node.proto.input)
    _body(node, "body")

    def execute(run_body: RunBody, inputs: list[Any]) -> list[Any]:
        results = [
            run_body("body", [v[i] if isinstance(v, list) else v for v in inputs[:own]] + inputs[own:])
            for i in range(len(inputs[0]))
        ]
        return [list(column) for column in zip(*results)] if results else [[] for _ in node.outputs]

    return execute
