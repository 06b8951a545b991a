"""Whole channels and hidden units that go, and with them what made and what read them: the graph's shapes shrink.

What has to go together is a group: an output channel of a convolution, its bias and normalisation, the same channel of every
depthwise convolution behind it and of whatever it is added to, and the weights of all layers that read it, through pools,
activations, transposes and reshapes (Fang et al., DepGraph: towards any structural pruning, 2023). Units of a recurrent layer are a
group, too. A group that meets something whose shape cannot shrink stays whole, and says why.

A channel's importance is what the loss would change without it, by its first derivative (Molchanov et al., Importance estimation
for neural network pruning, 2019): the sum of weight times gradient, squared, over batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np
from onnx import NodeProto, helper

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.network import RECURRENT, Network, attributes, reads
from quatrefoil.models.compression.pruning import JUDGED, LEVELS, SENSITIVITY, divide
from quatrefoil.models.compression.task import Task
from quatrefoil.models.compression.training import judge
from quatrefoil.models.differentiation import Differentiable
from quatrefoil.models.passes.activations import PARAMETERS

ROWS: Final = 3
"""Of the data, to see shapes with."""
BATCHES, BATCH = 8, 50
"""Of the training rows, to measure importance on."""
GATES: Final = {"RNN": 1, "GRU": 3, "LSTM": 4}
SAME: Final = (
    *PARAMETERS, "Clip", "Abs", "Exp", "Neg", "Sqrt", "Erf", "Identity", "Dropout", "Cast", "MaxPool", "AveragePool", "LpPool",
    "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool",
)  # fmt: skip
"""Operators that leave channels as they are."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group's channels lie in an array: element c of the group at (part * count + c) * block + any of block."""

    group: Group
    axis: int
    parts: int = 1
    block: int = 1

    def taken(self, chosen: np.ndarray) -> np.ndarray:
        """The positions of channels."""
        inside = np.arange(self.block)
        parts = np.arange(self.parts)[:, np.newaxis, np.newaxis] * self.group.count
        return ((parts + chosen[:, np.newaxis]) * self.block + inside).reshape(-1)

    def by_channel(self, array: np.ndarray) -> np.ndarray:
        """An array's sum over everything but the channels."""
        others = tuple(axis for axis in range(array.ndim) if axis != self.axis)
        return array.sum(others).reshape(self.parts, self.group.count, self.block).sum((0, 2))


@dataclass(eq=False)
class Group:
    """Channels that go together. slices: constants and where the channels lie in them; numbers: places in constants that hold
    lengths, and what a channel adds there; units: recurrent layers; stuck: why it stays whole."""

    count: int
    makers: list[str]
    slices: list[tuple[str, Place]] = field(default_factory=list)
    numbers: list[tuple[str, int, int]] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    into: Group | None = None

    @property
    def root(self) -> Group:
        return self if self.into is None else self.into.root

    @property
    def title(self) -> str:
        return " + ".join(self.makers)

    def join(self, other: Group) -> None:
        """Become one with another group of as many channels."""
        one, two = self.root, other.root
        if one is two:
            return
        two.into = one
        for name in ("makers", "slices", "numbers", "units", "stuck"):
            getattr(one, name).extend(getattr(two, name))


class _Finder:
    """Walks a network once, value by value."""

    def __init__(self, network: Network, task: Task) -> None:
        self.network = network
        derivative = Differentiable(network.graph(), [])
        values = derivative.run(task.train.rows(slice(0, ROWS)).inputs).values
        self.shapes = {name: value.shape for name, value in values.items() if isinstance(value, np.ndarray)}
        self.places: dict[str, Place] = {}
        self.groups: list[Group] = []
        self.readers: dict[str, int] = {}
        for node in network.nodes:
            for name in reads(node):
                self.readers[name] = self.readers.get(name, 0) + 1
        for node in network.nodes:
            self.visit(node)
        for output in network.proto.graph.output:
            if output.name in self.places:
                self.places[output.name].group.root.stuck.append(f"{output.name!r} is an output of the model")

    def found(self) -> list[Group]:
        return [group for group in self.groups if group.into is None]

    def new(self, count: int, maker: str) -> Group:
        self.groups.append(Group(count, [maker]))
        return self.groups[-1]

    def slice(self, group: Group, name: str, place: Place) -> None:
        """The group's channels lie so in a constant; if it is no constant, or one that others read too, the group is stuck."""
        if name not in self.network.constants:
            group.root.stuck.append(f"{name!r} is computed")
        elif self.readers[name] > 1:
            group.root.stuck.append(f"{name!r} is read more than once")
        else:
            group.root.slices.append((name, place))

    def stop(self, node: NodeProto, why: str = "reads them") -> None:
        for name in node.input:
            if name in self.places:
                self.places[name].group.root.stuck.append(f"{node.name} ({node.op_type}) {why}")

    def visit(self, node: NodeProto) -> None:
        if node.domain not in ("", "ai.onnx"):
            return self.stop(node)
        kind, rule = node.op_type, self.RULES.get(node.op_type)
        if kind in SAME:
            if node.input[0] in self.places:
                self.places[node.output[0]] = self.places[node.input[0]]
            return None
        if kind in ("Shape", "Size"):
            return None  # which follow
        if rule is None:
            return self.stop(node)
        return rule(self, node)

    def conv(self, node: NodeProto) -> None:
        x, w = node.input[0], node.input[1]
        shape, groups = self.shapes[w], attributes(node).get("group", 1)
        place = self.places.get(x)
        bias = node.input[2] if len(node.input) > 2 else ""
        deconv = node.op_type == "ConvTranspose"
        channels = self.shapes[x][1]
        if groups == channels == shape[0] and not deconv and groups > 1:  # depthwise, a filter for each channel
            if place is not None:
                if place.parts * place.block > 1:
                    self.stop(node, "sees them in several pieces")
                    return
                self.slice(place.group, w, Place(place.group, 0, place.parts, place.block))
                if bias:
                    self.slice(place.group, bias, Place(place.group, 0, place.parts, place.block))
                place.group.root.units.append(node.name)
                self.places[node.output[0]] = place
            return
        if groups > 1:
            self.stop(node, "convolves them in groups")
            return
        if place is not None:
            self.slice(place.group, w, Place(place.group, 0 if deconv else 1, place.parts, place.block))
        made = self.new(shape[1 if deconv else 0], node.name)
        self.slice(made, w, Place(made, 1 if deconv else 0))
        if bias:
            self.slice(made, bias, Place(made, 0))
        self.places[node.output[0]] = Place(made, 1)

    def dense(self, node: NodeProto) -> None:
        x, w = node.input[0], node.input[1]
        settings, place = attributes(node), self.places.get(x)
        if w not in self.network.constants or len(self.shapes[w]) != 2 or settings.get("transA"):
            return self.stop(node)
        into = 1 if settings.get("transB") else 0
        if place is not None:
            if place.axis != len(self.shapes[x]) - 1:
                return self.stop(node, "does not sum over them")
            self.slice(place.group, w, Place(place.group, into, place.parts, place.block))
        made = self.new(self.shapes[w][1 - into], node.name)
        self.slice(made, w, Place(made, 1 - into))
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias:
            if self.shapes[bias] == (made.count,):
                self.slice(made, bias, Place(made, 0))
            else:
                made.stuck.append(f"the bias of {node.name} has shape {list(self.shapes[bias])}")
        rank = len(self.shapes[node.output[0]])
        self.places[node.output[0]] = Place(made, rank - 1)
        return None

    def normalisation(self, node: NodeProto) -> None:
        place = self.places.get(node.input[0])
        if place is not None:
            for name in node.input[1:]:
                if name:
                    self.slice(place.group, name, Place(place.group, 0, place.parts, place.block))
            self.places[node.output[0]] = place

    def elementwise(self, node: NodeProto) -> None:
        """Operands with channels in the same places go together; a constant is cut where it has them."""
        rank = len(self.shapes[node.output[0]])
        tracked = {name: self.places[name] for name in node.input if name in self.places}
        if not tracked:
            return None
        first = next(iter(tracked.values()))
        name, behind = next(iter(tracked)), 0
        behind = len(self.shapes[name]) - first.axis  # counted from the end, as broadcasting does
        for name in node.input:
            shape, place = self.shapes[name], self.places.get(name)
            length = shape[len(shape) - behind] if len(shape) >= behind else 1
            if place is not None:
                same = (len(shape) - place.axis, place.parts, place.block, place.group.count)
                if same != (behind, first.parts, first.block, first.group.count):
                    return self.stop(node, "puts different channels together")
                first.group.join(place.group)
            elif length != 1:
                if name not in self.network.constants:
                    return self.stop(node, f"adds or multiplies {name!r}, whose channels are fixed")
                self.slice(first.group, name, Place(first.group, len(shape) - behind, first.parts, first.block))
        self.places[node.output[0]] = Place(first.group, rank - behind, first.parts, first.block)
        return None

    def concat(self, node: NodeProto) -> None:
        places = [self.places.get(name) for name in node.input]
        first = next((place for place in places if place is not None), None)
        if first is None:
            return None
        axis = attributes(node)["axis"] % len(self.shapes[node.output[0]])
        if axis == first.axis or any(
            place is None or (place.axis, place.parts, place.block, place.group.count)
            != (first.axis, first.parts, first.block, first.group.count) for place in places
        ):  # fmt: skip
            return self.stop(node, "puts different channels side by side")
        for place in places:
            assert place is not None
            first.group.join(place.group)
        self.places[node.output[0]] = first
        return None

    def moved(self, node: NodeProto) -> None:
        """Reshape, Flatten, Transpose, Squeeze, Unsqueeze and the means over axes."""
        x, y = node.input[0], node.output[0]
        place = self.places.get(x)
        if place is None:
            return None
        given, made, settings = self.shapes[x], self.shapes[y], attributes(node)
        if node.op_type == "Transpose":
            axis = list(settings.get("perm", range(len(given))[::-1])).index(place.axis)
            self.places[y] = Place(place.group, axis, place.parts, place.block)
            return None
        if node.op_type.startswith("Reduce"):
            axes = self.axes(node, settings, len(given))
            if axes is None or place.axis in axes:
                return self.stop(node, "reduces over them")
            axis = place.axis if settings.get("keepdims", 1) else place.axis - sum(a < place.axis for a in axes)
            self.places[y] = Place(place.group, axis, place.parts, place.block)
            return None
        after = _regrouped(given, made, place.axis)
        if after is None:
            return self.stop(node, "divides them")
        axis, parts, block = after
        now = Place(place.group, axis, parts * place.parts, block * place.block)
        if node.op_type == "Reshape":
            target = self.network.constants.get(node.input[1])
            if target is None:
                if self.length(node.input[1], axis) != -1:
                    return self.stop(node, "computes its shape")
            elif target[axis] > 0:
                if self.readers[node.input[1]] > 1:
                    return self.stop(node, "has a shape that others read")
                place.group.root.numbers.append((node.input[1], axis, now.parts * now.block))
        self.places[y] = now
        return None

    def length(self, name: str, axis: int) -> int | None:
        """An element of a shape that is put together (Concat), where it is constant."""
        maker = next((node for node in self.network.nodes if name in node.output), None)
        if maker is None or maker.op_type != "Concat":
            return None
        for part in maker.input:
            (count,) = self.shapes[part]
            if axis < count:
                constant = self.network.constants.get(part)
                return None if constant is None else int(constant[axis])
            axis -= count
        return None

    def axes(self, node: NodeProto, settings: Mapping[str, Any], rank: int) -> list[int] | None:
        given = settings.get("axes")
        if given is None and len(node.input) > 1 and node.input[1]:
            constant = self.network.constants.get(node.input[1])
            given = None if constant is None else constant.tolist()
        return None if given is None else [int(axis) % rank for axis in given]

    def recurrent(self, node: NodeProto) -> None:
        given = [*node.input, *[""] * (8 - len(node.input))]
        x, w, r, b, _, h, c, p = given
        place, gates = self.places.get(x), GATES[node.op_type]
        if w not in self.network.constants or r not in self.network.constants or attributes(node).get("layout"):
            return self.stop(node)
        if place is not None:
            if place.axis != 2:
                return self.stop(node, "does not sum over them")
            self.slice(place.group, w, Place(place.group, 2, place.parts, place.block))
        made = self.new(self.shapes[r][2], node.name)
        made.units.append(node.name)
        self.slice(made, w, Place(made, 1, gates))
        self.slice(made, r, Place(made, 1, gates))
        made.slices.append((r, Place(made, 2)))
        if b:
            self.slice(made, b, Place(made, 1, 2 * gates))
        if p:
            self.slice(made, p, Place(made, 1, 3))
        if h or c:
            made.stuck.append(f"{node.name} is given its first state")
        for output, axis in zip(node.output, (3, 2, 2)):
            if output:
                self.places[output] = Place(made, axis)
        return None

    RULES: Final[dict[str, Callable[[Any, NodeProto], None]]] = {
        **dict.fromkeys(("Conv", "ConvTranspose"), conv),
        **dict.fromkeys(("Gemm", "MatMul"), dense),
        **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), normalisation),
        **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum", "PRelu"), elementwise),
        **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "ReduceMean", "ReduceSum"), moved),
        **dict.fromkeys(RECURRENT, recurrent),
        "Concat": concat,
    }


def _regrouped(given: Sequence[int], made: Sequence[int], axis: int) -> tuple[int, int, int] | None:
    """Where an axis is after a reshape: the new axis, how many went before it in there, how many behind; None where it is cut."""
    for new, length in enumerate(made):
        for first in range(axis + 1):
            if prod(given[:first]) != prod(made[:new]):
                continue
            for last in range(axis + 1, len(given) + 1):
                if prod(given[first:last]) == length:
                    return new, prod(given[first:axis]), prod(given[axis + 1 : last])
    return None


def groups_of(network: Network, task: Task) -> list[Group]:
    """The groups of channels of a network; those that are ``stuck`` cannot shrink."""
    return _Finder(network, task).found()


def importances(network: Network, task: Task, groups: Sequence[Group]) -> list[np.ndarray]:
    """Of each group's channels."""
    trained = set(network.trainable())
    names = sorted({name for group in groups for name, _ in group.slices if name in trained})
    derivative = Differentiable(network.graph(), names)
    found = [np.zeros(group.count) for group in groups]
    for first in range(0, min(len(task.train), BATCHES * BATCH), BATCH):
        part = task.train.rows(slice(first, first + BATCH))
        run = derivative.run(part.inputs)
        _, gradient = task.loss(run.values[task.scores], part.wanted)
        gradients = run.gradients({task.scores: gradient})
        for group, importance in zip(groups, found):
            change = np.zeros(group.count)
            for name, place in group.slices:
                if name in gradients:
                    change += place.by_channel((network.constants[name] * gradients[name]).astype(np.float64))
            importance += change**2
    return found


def remove(network: Network, task: Task, share: float, scope: str) -> dict[str, str]:
    """Remove the share of channels that matters least: of each group, or, where ``scope`` is sensitivity, more of those whose loss
    takes it best. Gives what happened to each group, by its layers. Raises QuatrefoilError where no group can shrink."""
    everything = groups_of(network, task)
    said = {group.title: f"left: {group.stuck[0]}" for group in everything if group.stuck}
    groups = [group for group in everything if not group.stuck and group.count > 1]
    if not groups:
        reasons = "; ".join(f"{title}: {why.removeprefix('left: ')}" for title, why in said.items())
        raise QuatrefoilError(f"compress: no channels can be removed ({reasons}); prune single weights instead")
    order = [np.argsort(-importance, kind="stable") for importance in importances(network, task, groups)]
    shares = dict.fromkeys((group.title for group in groups), share)
    if scope == SENSITIVITY:
        losses = _sensitivities(network, task, groups, order)
        shares = divide(losses, {group.title: group.count for group in groups}, share)
    for group, ranked in zip(groups, order):
        count = max(group.count - round(shares[group.title] * group.count), 1)
        _cut(network, group, np.sort(ranked[:count]))
        said[group.title] = f"{count} of {group.count}"
    del network.proto.graph.value_info[:]
    return said


def _sensitivities(
    network: Network, task: Task, groups: Sequence[Group], order: Sequence[np.ndarray]
) -> dict[str, dict[float, float]]:
    trained = set(network.trainable())
    names = sorted({name for group in groups for name, _ in group.slices if name in trained})
    derivative = Differentiable(network.graph(), names)
    part = task.validation.rows(slice(0, JUDGED))
    base = judge(derivative, task, part, {})[1]
    found: dict[str, dict[float, float]] = {}
    for group, ranked in zip(groups, order):
        found[group.title] = {}
        for level in LEVELS:
            gone = ranked[max(group.count - round(level * group.count), 1) :]
            values: dict[str, np.ndarray] = {}
            for name, place in group.slices:
                if name in trained:
                    array = values.get(name, network.constants[name]).copy()
                    np.moveaxis(array, place.axis, 0)[place.taken(gone)] = 0
                    values[name] = array
            found[group.title][level] = max(judge(derivative, task, part, values)[1] - base, 0.0)
    return found


def _cut(network: Network, group: Group, chosen: np.ndarray) -> None:
    """Leave only these channels."""
    made: dict[str, np.ndarray] = {}
    for name, place in group.slices:
        array = made.get(name, network.constants[name])
        made[name] = np.ascontiguousarray(
            array.take(Place(group, place.axis, place.parts, place.block).taken(chosen), place.axis)
        )
    for name, position, each in group.numbers:
        target = made.get(name, network.constants[name]).copy()
        target[position] = len(chosen) * each
        made[name] = target
    network.put(made)
    for name in group.units:
        node = network.node(name)
        attribute = "group" if node.op_type == "Conv" else "hidden_size"
        for item in [item for item in node.attribute if item.name == attribute]:
            node.attribute.remove(item)
        node.attribute.append(helper.make_attribute(attribute, len(chosen)))
