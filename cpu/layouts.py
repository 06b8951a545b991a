"""Layouts of a sequence: which values hold their channels in blocks, and where a value changes from planes to blocks.

A value in blocks of LANES channels, (N, ceil(C / LANES), spatial, LANES) with zeros for the channels that the last block
lacks, is a value of its own, the twin of the plain one. Backwards over the steps: whose reader would like blocks?
Forwards: each step writes blocks where they are liked and it can, and reads what is there; ``Reorder`` makes the missing
twin where a step needs it (after Liu et al., "Optimizing CNN model inference on CPUs", 2019, which plans so over a graph).

Steps that work on every element alike keep blocks if they keep zero at zero, or if no channel is missing; joining and
taking channels keep them where blocks stay whole.

Of bytes all channels are one block, (N, 1, spatial, C): they lie last, and none is missing. Where there is one channel or
one place that is the plain order, and the twin a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quatrefoil.ops import conv
from quatrefoil.ops.activations import Activation
from quatrefoil.problem import Tensor
from quatrefoil.sequences import Affine, ByteTable, Concat, Elementwise, Operation, Plan, RoundTrip, Step, View

KEEPS_ZERO = ("Identity", "Relu", "LeakyRelu", "Tanh", "HardSwish", "Swish", "Elu", "Softsign")
"""Activations that are 0 at 0."""

POOLS = ("max_pool", "average_pool")

BYTES = ("uint8", "int8")


@dataclass(frozen=True, eq=False)
class BlockedOperation:
    """An operator of the house whose x, and whose y with the residual, may hold channels in blocks."""

    operation: Operation
    x_blocked: bool
    y_blocked: bool


@dataclass(frozen=True)
class Reorder:
    """Planes into blocks, or back; bytes into an order with their channels last, or back. shape: of the plain value."""

    shape: tuple[int, ...]
    into_blocks: bool


@dataclass(frozen=True)
class Walk:
    """An element-wise step over given extents; strides of y and of each operand, in elements."""

    function: str
    activation: Activation
    extents: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def in_blocks(tensor: Tensor, lanes: int) -> Tensor:
    batch, channels, *spatial = tensor.shape
    if tensor.dtype in BYTES:
        return Tensor(tensor.dtype, (batch, 1, *spatial, channels))
    return Tensor(tensor.dtype, (batch, -(-channels // lanes), *spatial, lanes))


def blocked_array(array: np.ndarray, lanes: int) -> np.ndarray:
    """A constant (N, C, spatial) in blocks."""
    if array.dtype.name in BYTES:
        return np.ascontiguousarray(np.moveaxis(array, 1, -1)[:, np.newaxis])
    padded = np.zeros((array.shape[0], -(-array.shape[1] // lanes) * lanes, *array.shape[2:]), array.dtype)
    padded[:, : array.shape[1]] = array
    return np.ascontiguousarray(np.moveaxis(padded.reshape(array.shape[0], -1, lanes, *array.shape[2:]), 2, -1))


def with_layouts(plan: Plan, lanes: int) -> Plan:
    """The plan over plain values and twins."""
    if not any(isinstance(step.form, Operation) and step.form.kernel.blocked for step in plan.steps):
        return plan
    return _Layouts(plan, lanes).planned()


class _Layouts:
    def __init__(self, plan: Plan, lanes: int) -> None:
        self._plan, self._lanes = plan, lanes
        self._types: dict[int, Tensor] = dict(plan.types)
        self._constants: dict[int, np.ndarray] = dict(plan.constants)
        self._twins: dict[int, int] = {}
        self._plain = {*plan.inputs, *plan.constants}
        self._steps: list[Step] = []
        self._liked: set[int] = set()
        for step in reversed(plan.steps):
            self._like(step)

    def planned(self) -> Plan:
        for step in self._plan.steps:
            self._take(step)
        for value in self._plan.outputs:
            self._planes(value, self._plan.steps[-1].node)
        return Plan(self._steps, self._types, self._constants, self._plan.inputs, self._plan.outputs)

    def _like(self, step: Step) -> None:
        """Finds which inputs the step would like in blocks."""
        result = step.outputs[0]
        match step.form:
            case Operation():
                x, y = self._sides(step)
                if x and step.inputs[0] is not None:
                    self._liked.add(step.inputs[0])
                if y and result in self._liked:
                    self._liked.update(value for value in step.inputs[1:] if value is not None)
            case _:
                if result in self._liked and self._keeps(step):
                    self._liked.update(value for value in step.inputs if value is not None and self._same(value, step))

    def _sides(self, step: Step) -> tuple[bool, bool]:
        """Whether an operator's x and y may be in blocks."""
        form = step.form
        assert isinstance(form, Operation)
        if form.kernel.blocked is None:
            return False, False
        if form.problem.op != "conv":
            return True, form.problem.outputs[0].dtype in ("float32", *BYTES)  # sums of products stay in planes
        geometry = conv.geometry(form.problem)
        if not np.isfinite(form.parameters[conv.W]).all():
            return False, False  # which another kernel computes, on planes
        depthwise = geometry.in_per_group == geometry.out_per_group == 1
        return tuple(  # type: ignore[return-value]
            depthwise or geometry.groups == 1 or channels % self._lanes == 0
            for channels in (geometry.in_per_group, geometry.out_per_group)
        )

    def _same(self, value: int, step: Step) -> bool:
        """Whether an input has the planes of the result."""
        x, y = self._plan.types[value], self._plan.types[step.outputs[0]]
        return x.rank == y.rank >= 3 and x.shape[0] == y.shape[0] and x.shape[2:] == y.shape[2:]

    def _keeps(self, step: Step) -> bool:
        """Whether a step could work on blocks."""
        y, lanes = self._plan.types[step.outputs[0]], self._lanes
        if y.rank < 3 or y.dtype not in ("float32", *BYTES) or y.size == 0:
            return False
        types = [self._plan.types[value] for value in step.inputs if value is not None]
        if y.dtype in BYTES:
            match step.form:
                case View():
                    return types[0].shape == y.shape
                case ByteTable():
                    return all(x.rank == y.rank or x.size == 1 for x in types) and all(
                        map(self._operand, types, [y] * 2)
                    )
            return isinstance(step.form, Concat) and step.form.axis == 1
        match step.form:
            case RoundTrip():
                return True
            case View(offset=offset):
                [x] = types
                if not self._same(step.inputs[0] or 0, step):
                    return False
                first, rest = divmod(offset, math.prod(x.shape[2:]))
                whole = first + y.shape[1] == x.shape[1] or y.shape[1] % lanes == 0
                return x.shape == y.shape or (x.shape[0] == 1 and rest == 0 and first % lanes == 0 and whole)
            case Concat(axis=1):
                return all(x.shape[1] % lanes == 0 for x in types[:-1])
            case Elementwise(function=function, activation=activation):
                clips = activation.name == "Clip" and activation.alpha <= 0 <= activation.beta
                zero = activation.name in KEEPS_ZERO or clips
                added = function in ("add", "subtract", "maximum", "minimum") and any(x.shape != y.shape for x in types)
                zero = zero and not added and function not in ("divide", "exponential")
                return (zero or y.shape[1] % lanes == 0) and all(self._operand(x, y) is not None for x in types)
            case Affine(activation=activation):
                return activation.name in KEEPS_ZERO or y.shape[1] % lanes == 0
            case _:
                return False

    def _operand(self, x: Tensor, y: Tensor) -> str | None:
        """How an operand stands to the result: ``same`` planes, one value a ``channel``, a ``scalar``."""
        if x.size == 1:
            return "scalar"
        if x.shape == y.shape:
            return "same"
        shape = (1,) * (y.rank - x.rank) + x.shape
        if shape[1] == y.shape[1] and set(shape[2:]) == {1} and shape[0] in (1, y.shape[0]):
            return "channel"
        return None

    def _take(self, step: Step) -> None:
        """Drafts the step on what there is, in the layout that is liked."""
        result = step.outputs[0]
        if isinstance(step.form, Operation):
            x_blocked, y_blocked = self._sides(step)
            x, *others = step.inputs
            assert x is not None
            if x_blocked and (step.form.problem.op in POOLS or self._plan.types[x].dtype in BYTES):
                # kernels on bytes bring planes into this order themselves, and no faster
                first = self._blocks(x, step.node)
            else:
                x_blocked = x_blocked and x in self._twins
                y_blocked = y_blocked and result in self._liked
                first = self._blocks(x, step.node) if x_blocked else self._planes(x, step.node)
            wanted = self._blocks if y_blocked else self._planes
            inputs = (first, *(None if value is None else wanted(value, step.node) for value in others))
            form = BlockedOperation(step.form, x_blocked, y_blocked) if x_blocked or y_blocked else step.form
            self._add(form, inputs, step, y_blocked)
            return
        given = [value for value in step.inputs if value is not None]
        main = [value for value in given if self._same(value, step)]
        there = any(value in self._twins for value in main)
        if there and self._keeps(step) and (result in self._liked or not self._plain.intersection(main)):
            self._on_blocks(step)
        elif self._flattens(step):
            # planes of one pixel: blocks of whole channels are planes already
            self._add(View(), [self._twins[given[0]]], step, False)
        else:
            self._add(step.form, [None if v is None else self._planes(v, step.node) for v in step.inputs], step, False)

    def _flattens(self, step: Step) -> bool:
        if not isinstance(step.form, View) or step.form.offset or step.inputs[0] in self._plain:
            return False
        assert step.inputs[0] is not None
        x, y = self._plan.types[step.inputs[0]], self._plan.types[step.outputs[0]]
        whole = x.shape[0] == 1 or x.shape[1] % self._lanes == 0 or x.dtype in BYTES
        return x.size == y.size and math.prod(x.shape[2:]) == 1 and whole

    def _on_blocks(self, step: Step) -> None:
        result = self._plan.types[step.outputs[0]]
        y = in_blocks(result, self._lanes)
        if isinstance(step.form, (View, Concat, RoundTrip)) or result.dtype in BYTES:
            form = step.form
            if isinstance(form, Concat) and result.dtype in BYTES:
                form = replace(form, axis=y.rank - 1)
            given = [value for value in step.inputs if value is not None]
            single = [value for value in given if self._plan.types[value].size == 1 and result.size > 1]
            inputs = [self._planes(value, step.node) if value in single else self._blocks(value, step.node)
                      for value in given]  # fmt: skip
            self._add(form, inputs, step, True)
            return
        batch, blocks, row = y.shape[0], y.shape[1], math.prod(y.shape[2:])
        strides = [(blocks * row, row, 1)]
        inputs = []
        for place, value in enumerate(step.inputs):
            assert value is not None
            x = self._plan.types[value]
            kind = "channel" if isinstance(step.form, Affine) and place else self._operand(x, result)
            if kind == "scalar":
                inputs.append(self._planes(value, step.node))
                strides.append((0, 0, 0))
            elif kind == "same":
                inputs.append(self._blocks(value, step.node))
                strides.append(strides[0])
            else:
                inputs.append(self._channels(value, result, step.node, affine=isinstance(step.form, Affine)))
                varies = x.rank == result.rank and x.shape[0] > 1
                strides.append((blocks * self._lanes if varies else 0, self._lanes, _periodic()))
        assert isinstance(step.form, (Elementwise, Affine))
        function = "affine" if isinstance(step.form, Affine) else step.form.function
        self._add(Walk(function, step.form.activation, (batch, blocks, row), tuple(strides)), inputs, step, True)

    def _channels(self, value: int, result: Tensor, node: str, affine: bool) -> int:
        """A value for each channel, in blocks."""
        if value in self._constants:
            array = self._constants[value]
            shape = (1, -1) if affine else ((1,) * (result.rank - array.ndim) + array.shape)[:2]
            return self._constant(blocked_array(array.reshape(shape), self._lanes))
        return self._blocks(value, node)

    def _constant(self, array: np.ndarray) -> int:
        number = self._new(Tensor.of(array))
        self._constants[number] = array
        return number

    def _new(self, tensor: Tensor) -> int:
        number = max(self._types) + 1
        self._types[number] = tensor
        return number

    def _twin(self, value: int) -> int:
        self._twins[value] = self._new(in_blocks(self._plan.types[value], self._lanes))
        return self._twins[value]

    def _add(self, form: object, inputs: Sequence[int | None], step: Step, blocked: bool) -> None:
        result = step.outputs[0]
        if not blocked:
            self._plain.update(step.outputs)
        outputs = (self._twin(result),) if blocked else step.outputs
        self._steps.append(Step(form, tuple(inputs), outputs, step.node))  # type: ignore[arg-type]

    def _reorder(self, value: int, into_blocks: bool) -> Reorder | View:
        x = self._plan.types[value]
        alike = x.dtype in BYTES and 1 in (x.shape[1], math.prod(x.shape[2:]))
        return View() if alike else Reorder(x.shape, into_blocks)

    def _blocks(self, value: int, node: str) -> int:
        if value not in self._twins:
            if value in self._constants:
                self._twins[value] = self._constant(blocked_array(self._constants[value], self._lanes))
            else:
                form = self._reorder(value, True)
                self._steps.append(Step(form, (value,), (self._twin(value),), node))  # type: ignore[arg-type]
        return self._twins[value]

    def _planes(self, value: int, node: str) -> int:
        if value not in self._plain:
            self._plain.add(value)
            form = self._reorder(value, False)
            self._steps.append(Step(form, (self._twins[value],), (value,), node))  # type: ignore[arg-type]
        return value


def _periodic() -> int:
    from quatrefoil.cpu import _sequence

    return _sequence.PERIODIC
