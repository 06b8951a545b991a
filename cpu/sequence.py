"""Sequences on the CPU: where every value lies, and which native step computes it.

Values that share memory are one ``Storage``: views lie where their source lies; what a concatenation joins is written
where it will be joined, if its parts lie one after the other there; an element-wise step writes over an input that
nothing reads afterwards. Storages get places in one arena, the largest first, each at the tightest gap among those that
live at the same time (the greedy-by-size planning of Pisarchyk and Lee, "Efficient memory management for deep neural
net inference", 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quatrefoil.cpu import byte_steps, instruction_set
from quatrefoil.cpu.fusion import fused
from quatrefoil.cpu.layouts import BlockedOperation, Reorder, Walk, with_layouts
from quatrefoil.numerics import Fixed
from quatrefoil.ops import FAMILIES
from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Kernel, Run
from quatrefoil.sequences import (
    Affine,
    ByteForm,
    ByteTable,
    Concat,
    Elementwise,
    FixedElementwise,
    FixedSoftmax,
    Joined,
    LocalResponse,
    Operation,
    Plan,
    Rearrangement,
    RoundTrip,
    Softmax,
    Step,
    View,
)

ALIGNMENT = 64
"""Bytes: values in the arena begin at a cache line."""

AXES = 8
"""The most axes that a step walks: MOST_AXES of src/sequence.h."""

OPERANDS = 12
"""Inputs that a kernel's step may look at: STEP_INPUTS of src/native_step.h."""

NATIVE_OPS = (
    "conv",
    "conv_transpose",
    *FAMILIES["compressed"],
    "max_pool",
    "average_pool",
    "lp_pool",
    "rnn",
    "lstm",
    "gru",
)
"""Operators whose float32 kernels offer native steps; those of fixed point do, too."""

BYTES = ("uint8", "int8")
BYTE_OPS = ("qlinear_conv", "conv_integer", "max_pool")
"""Operators whose kernels on bytes do."""

WORDS = (1, 2, 4)
"""Bytes of the elements that steps move."""

REFUSAL = -1
"""In place of a value: where a step says that it met one which it does not take."""


@dataclass(eq=False)
class Storage:
    """Memory of one or several values. base: None in the arena, else the sequence's base where it lies."""

    size: int
    base: int | None = None
    offset: int = 0
    inside: Storage | None = None
    """The storage that this one became a part of, at ``offset``."""
    values: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Instruction:
    """A native step with the values that it reads and writes, each with an offset in bytes."""

    make: Any
    inputs: tuple[tuple[int | None, int], ...]
    outputs: tuple[tuple[int | None, int], ...]
    node: str


class CpuSequencer:
    name = "cpu sequence"

    def takes(self, step: Step, types: Mapping[int, Tensor]) -> bool:
        given = [types[value] for value in (*step.inputs, *step.outputs) if value is not None]
        match step.form:
            case Operation(problem=problem) if problem.op in FAMILIES["fixed"]:
                return True
            case Operation(kernel=kernel) if kernel.in_python:
                return False
            case Operation(problem=problem):
                indices = problem.op == "max_pool" and problem.integer("with_indices")
                turned = problem.op in FAMILIES["rnn"] and problem.integer("layout")
                known = NATIVE_OPS if problem.dtype == "float32" else BYTE_OPS if problem.dtype in BYTES else ()
                return problem.op in known and not indices and not turned
            case View() | Rearrangement() | Concat() | Elementwise("copy", Activation("Identity")):
                return all(t.numpy_dtype.itemsize in WORDS and t.rank <= AXES for t in given)
            case FixedElementwise() | FixedSoftmax():
                # wider integers are what no operator takes
                return all(t.dtype in ("int16", "int32", "float32") and t.rank <= AXES for t in given)
            case _ if isinstance(step.form, ByteForm):
                return all(t.rank <= AXES for t in given)
            case _:
                return all(t.dtype == "float32" and t.rank <= AXES for t in given)

    def joined(self, plan: Plan) -> dict[str, Joined]:
        """Operators of the house stay on their kernels; what is between them is the sequence's, however it is fused."""
        return {}

    def prepare(self, plan: Plan) -> PreparedPlan:
        return PreparedPlan(plan)


class PreparedPlan:
    """A plan with its kernels prepared and its memory planned."""

    def __init__(self, plan: Plan) -> None:
        from quatrefoil.cpu import _sequence

        plan = with_layouts(fused(plan), instruction_set.lanes())
        memory = _Memory(plan)
        instructions = [each for step in plan.steps for each in _instructions(step, plan.types, memory)]
        arena = memory.arrange(instructions)
        self._nodes = [instruction.node for instruction in instructions]
        steps = [
            (
                instruction.make(),
                [memory.operand(value, offset) for value, offset in instruction.inputs],
                [memory.operand(value, offset) for value, offset in instruction.outputs],
            )
            for instruction in instructions
        ]
        outputs = [(plan.types[value].shape, plan.types[value].numpy_dtype) for value in plan.outputs]
        self.run = _sequence.Sequence(steps, arena, len(plan.inputs), outputs, memory.constants)

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        return self.run(inputs)

    def timed(self, inputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray] | None, dict[str, float]]:
        results, nanoseconds = self.run.timed(inputs)
        seconds: dict[str, float] = {}
        for node, spent in zip(self._nodes, nanoseconds):
            seconds[node] = seconds.get(node, 0.0) + spent * 1e-9
        return results, seconds


def alone(problem: Problem, kernel: Kernel) -> Run:
    """A kernel for channels in blocks between plain arrays: the changes of layout and it."""
    types = {0: problem.input(0), 1: problem.outputs[0]}
    step = Step(Operation(problem, kernel, {}), (0,), (1,), kernel.id)
    prepared = PreparedPlan(Plan([step], types, {}, (0,), (1,)))
    return lambda inputs: tuple(prepared(inputs[:1]))  # type: ignore[arg-type]


class _Memory:
    """Where each value of a plan lies."""

    def __init__(self, plan: Plan) -> None:
        from quatrefoil.cpu import _sequence

        self.types = plan.types
        self.constants = {value: np.ascontiguousarray(array) for value, array in plan.constants.items()}
        self._storages: dict[int, Storage] = {}
        for base, value in enumerate(plan.inputs, _sequence.ARRAYS):
            self._enter(value, base)
        for base, value in enumerate(plan.outputs, _sequence.ARRAYS + len(plan.inputs)):
            self._enter(value, base)
        for value, array in self.constants.items():
            self._enter(value, _sequence.ABSOLUTE)
            self._storages[value].offset = _sequence.address_of(array)
        for step in plan.steps:
            for value in step.outputs:
                if value not in self._storages:
                    self._enter(value, None)
        self._arena, self._refused = _sequence.ARENA, _sequence.REFUSED
        self._last = {value: at for at, step in enumerate(plan.steps) for value in step.inputs if value is not None}
        for step in plan.steps:
            if isinstance(step.form, View):
                self._view(step.form, step.inputs[0], step.outputs[0])
        for step in plan.steps:
            if isinstance(step.form, Concat):
                self._join(step.form, step)
        for at, step in enumerate(plan.steps):
            if isinstance(step.form, (Elementwise, Affine, Walk, ByteTable, RoundTrip)):
                self._overwrite(at, step)

    def _enter(self, value: int, base: int | None) -> None:
        self._storages[value] = Storage(self.types[value].nbytes, base, values=[value])

    def place(self, value: int) -> tuple[Storage, int]:
        """The storage in which a value lies in the end, and where in it, in bytes."""
        storage, offset = self._storages[value], 0
        while storage.inside is not None:
            offset += storage.offset
            storage = storage.inside
        return storage, offset

    def _put_inside(self, part: Storage, whole: Storage, offset: int) -> None:
        part.inside, part.offset = whole, offset
        whole.values += part.values

    def _free(self, value: int) -> Storage | None:
        """The storage that holds nothing but this value (and views of all of it), if it may still lie anywhere."""
        storage, offset = self.place(value)
        alone = offset == 0 and storage.size == self.types[value].nbytes
        return storage if alone and storage.base is None else None

    def _view(self, form: View, source: int | None, view: int) -> None:
        assert source is not None
        whole, offset = self.place(source)
        part = self._free(view)
        if part is not None:
            self._put_inside(part, whole, offset + form.offset * self.types[view].numpy_dtype.itemsize)
        elif self.types[view].nbytes == self.types[source].nbytes and (origin := self._free(source)) is not None:
            # the view is an output: its source is computed there
            self._put_inside(origin, *self.place(view))

    def _join(self, form: Concat, step: Step) -> None:
        joined = self.types[step.outputs[0]]
        if math.prod(joined.shape[: form.axis]) != 1:
            return
        whole, start = self.place(step.outputs[0])
        for value in step.inputs:
            assert value is not None
            part = self._free(value)
            if part is not None and part is not whole and value not in self.constants:
                self._put_inside(part, whole, start)
            start += self.types[value].nbytes

    def _overwrite(self, at: int, step: Step) -> None:
        result = step.outputs[0]
        for value in step.inputs:
            if value is None or self.types[value].shape != self.types[result].shape:
                continue
            if self.types[value].nbytes != self.types[result].nbytes:
                continue
            source, target = self._free(value), self.place(result)
            if source is None or source is target[0] or any(self._last.get(each, at) > at for each in source.values):
                continue
            others = [each for each in step.inputs if each is not None and each != value]
            if any(self.place(each)[0] is source for each in others):
                continue  # it would be overwritten before it is read
            self._put_inside(source, *target)
            return

    def together(self, first: int, second: int, distance: int) -> bool:
        """Whether the second value lies ``distance`` bytes behind the first one's begin."""
        one, other = self.place(first), self.place(second)
        return one[0] is other[0] and one[1] + distance == other[1]

    def arrange(self, instructions: Sequence[Instruction]) -> int:
        """Gives every storage in the arena its offset; returns the arena's size in bytes."""
        lives: dict[int, tuple[Storage, int, int]] = {}
        for at, instruction in enumerate(instructions):
            for value, _ in (*instruction.inputs, *instruction.outputs):
                if value is None or value == REFUSAL:
                    continue
                storage, _ = self.place(value)
                if storage.base is None:
                    _, begin, _ = lives.get(id(storage), (storage, at, at))
                    lives[id(storage)] = storage, begin, at
        placed: list[tuple[int, int, int, int]] = []
        size = 0
        for storage, begin, end in sorted(lives.values(), key=lambda life: -life[0].size):
            length = -(-storage.size // ALIGNMENT) * ALIGNMENT
            best, gap, edge = None, math.inf, 0
            for start, stop, first, last in sorted(placed):
                if last < begin or end < first:
                    continue
                if length <= start - edge < gap:
                    best, gap = edge, start - edge
                edge = max(edge, stop)
            storage.offset = edge if best is None else best
            placed.append((storage.offset, storage.offset + length, begin, end))
            size = max(size, storage.offset + length)
        return size

    def operand(self, value: int | None, offset: int) -> tuple[int, int]:
        if value is None:
            return 0, 0
        if value == REFUSAL:
            return self._refused, 0
        storage, inner = self.place(value)
        base = self._arena if storage.base is None else storage.base
        return base, storage.offset + inner + offset


def _instructions(step: Step, types: Mapping[int, Tensor], memory: _Memory) -> list[Instruction]:
    """What runs a step; nothing where its result is empty or already lies where it belongs."""
    from quatrefoil.cpu import _sequence

    isa = instruction_set.index()
    [result, *_] = step.outputs
    y = types[result]
    word = y.numpy_dtype.itemsize
    if all(types[value].size == 0 for value in step.outputs):
        return []

    def whole(values: Sequence[int | None]) -> tuple[tuple[int | None, int], ...]:
        return tuple((value, 0) for value in values)

    def walk(
        function: str,
        activation: Activation,
        extents: Sequence[int],
        strides: Sequence[Sequence[int]],
        inputs: Sequence[tuple[int | None, int]],
        offset: int = 0,
        table: ByteTable | None = None,
    ) -> Instruction:
        lengths, merged = _merged(extents, strides)
        padded = (*inputs, *((None, 0),) * (3 - len(inputs)))
        if word == 1:
            assert function == "copy"
            return Instruction(
                lambda: (
                    _sequence.bytes_step(isa, "copy", lengths, merged)
                    if table is None
                    else byte_steps.step(table, [table.dtype], lengths, merged)
                ),
                padded,
                ((result, offset),),
                step.node,
            )
        if word != 4:
            assert function == "copy"
            return Instruction(
                lambda: _sequence.fixed_elements_step(
                    isa, "copy", lengths, merged, [2], 2, cast=NO_CAST, below=NO_CAST
                ),
                padded,
                ((result, offset * word),),
                step.node,
            )
        return Instruction(
            lambda: _sequence.elementwise_step(isa, function, activation, lengths, merged),
            padded,
            ((result, offset * word),),
            step.node,
        )

    def copied(
        source: int | None, extents: Sequence[int], x: Sequence[int], y: Sequence[int], at: int, to: int,
        table: ByteTable | None = None,
    ) -> Any:  # fmt: skip
        return walk("copy", IDENTITY, extents, (y, x), ((source, at * word),), to, table)

    [first, *_] = step.inputs
    form: object = step.form  # those of layouts.py, too
    match form:
        case Operation(problem=problem, kernel=kernel, parameters=parameters):
            varying = [None if place in parameters else value for place, value in enumerate(step.inputs)]
            varying += [None] * (OPERANDS - len(varying))
            return [
                Instruction(
                    lambda: _sequence.kernel_step(kernel.prepare(problem, parameters)),
                    whole(varying),
                    whole(step.outputs),
                    step.node,
                )
            ]
        case BlockedOperation(Operation(problem=problem, kernel=kernel, parameters=parameters), x_blocked, y_blocked):
            blocked = kernel.blocked
            assert blocked is not None
            varying = [None if place in parameters else value for place, value in enumerate(step.inputs)]
            varying += [None] * (OPERANDS - len(varying))
            return [
                Instruction(
                    lambda: _sequence.kernel_step(blocked(problem, parameters, x_blocked, y_blocked)),
                    whole(varying),
                    whole(step.outputs),
                    step.node,
                )
            ]
        case Reorder(shape=shape, into_blocks=into_blocks):
            plane = math.prod(shape[2:])
            return [
                Instruction(
                    lambda: _sequence.reorder_step(isa, shape[0], shape[1], plane, into_blocks, word == 1),
                    whole(step.inputs),
                    whole(step.outputs),
                    step.node,
                )
            ]
        case Walk():
            return [walk(form.function, form.activation, form.extents, form.strides, whole(step.inputs))]
        case View(offset=offset):
            assert first is not None
            if memory.together(first, result, offset * word):
                return []
            return [copied(first, [y.size], [1], [1], offset, 0)]
        case Elementwise(function=function, activation=activation):
            strides = [_strides(y.shape), *(_broadcast(types[v].shape, y.shape) for v in step.inputs if v is not None)]
            return [walk(function, activation, y.shape, strides, whole(step.inputs))]
        case Affine(activation=activation):
            channels = [1 if axis == 1 else 0 for axis in range(y.rank)]
            strides = [_strides(y.shape), _strides(y.shape), channels, channels]
            return [walk("affine", activation, y.shape, strides, whole(step.inputs))]
        case Concat(axis=axis, tables=tables):
            found, start = [], 0
            for value, table in zip(step.inputs, tables or [None] * len(step.inputs)):
                assert value is not None
                x = types[value]
                distance = start * math.prod(y.shape[axis + 1 :])
                start += x.shape[axis]
                if x.size and (table is not None or not memory.together(result, value, distance * word)):
                    found.append(copied(value, x.shape, _strides(x.shape), _strides(y.shape), 0, distance, table))
            return found
        case Rearrangement(pieces=pieces):
            found = [copied(filler, [y.size], [0], [1], 0, 0) for filler in step.inputs[1:]]
            for piece in pieces:
                if math.prod(piece.extents):
                    found.append(copied(first, piece.extents, piece.x_strides, piece.y_strides, piece.x, piece.y))
            return found
        case _ if isinstance(form, ByteForm):
            given = [types[value] for value in step.inputs if value is not None]
            lengths, merged = _merged(y.shape, [_strides(y.shape), *(_broadcast(x.shape, y.shape) for x in given)])
            dtypes = [x.dtype for x in given]
            operands = (*whole(step.inputs), *[(None, 0)] * (2 - len(given)))
            return [
                Instruction(
                    lambda: byte_steps.step(form, dtypes, lengths, merged), operands, whole(step.outputs), step.node
                )
            ]
        case FixedElementwise():
            return [_fixed_elements(form, step, types)]
        case FixedSoftmax():
            return [_fixed_softmax(form, step, types)]
        case Softmax(axis=axis, logarithm=logarithm):
            shape = math.prod(y.shape[:axis]), y.shape[axis], math.prod(y.shape[axis + 1 :])
            return [
                Instruction(
                    lambda: _sequence.softmax_step(isa, *shape, logarithm),
                    whole(step.inputs),
                    whole(step.outputs),
                    step.node,
                )
            ]
        case LocalResponse(size=size, alpha=alpha, beta=beta, bias=bias):
            shape = y.shape[0], y.shape[1], math.prod(y.shape[2:])
            window = (size - 1) // 2, size // 2
            return [
                Instruction(
                    lambda: _sequence.lrn_step(isa, *shape, *window, alpha / size, beta, bias),
                    whole(step.inputs),
                    whole(step.outputs),
                    step.node,
                )
            ]
    raise AssertionError(f"a step of a form that the sequencer does not take: {form}")


def _fixed_cast(fraction: int, y: Fixed) -> tuple[int, tuple[int, ...]]:
    """A cast of integers with so many fraction bits, as C has it."""
    return fraction - y.fraction, y.members


NO_CAST = _fixed_cast(0, Fixed(2, 2))
"""In place of a cast that a step does not do."""


def _fixed_elements(form: FixedElementwise, step: Step, types: Mapping[int, Tensor]) -> Instruction:
    from quatrefoil.cpu import _sequence

    y = types[step.outputs[0]]
    given = [types[value] for value in step.inputs if value is not None]
    lengths, merged = _merged(y.shape, [_strides(y.shape), *(_broadcast(x.shape, y.shape) for x in given)])
    cast = below = NO_CAST
    if form.y is not None:
        cast, below = _fixed_cast(form.fraction, form.y), _fixed_cast(form.fraction_below, form.y)
    quantizes = form.function == "quantize"
    scale = 2.0 ** (form.y.fraction if quantizes and form.y is not None else -form.fraction)
    refusal = ((REFUSAL, 0),) if form.function in ("quantize", "check") else ()
    return Instruction(
        lambda: _sequence.fixed_elements_step(
            instruction_set.index(), form.function, lengths, merged, [x.numpy_dtype.itemsize for x in given],
            y.numpy_dtype.itemsize, shifts=form.shifts, factor=form.factor, offset=form.offset, low=form.low,
            high=form.high, scale=scale, cast=cast, below=below, table=form.table, table_bits=form.table_bits,
        ),
        tuple((value, 0) for value in step.inputs),
        ((step.outputs[0], 0), *refusal),
        step.node,
    )  # fmt: skip


def _fixed_softmax(form: FixedSoftmax, step: Step, types: Mapping[int, Tensor]) -> Instruction:
    from quatrefoil.cpu import _sequence

    x, y = (types[value] for value in (*step.inputs, *step.outputs) if value is not None)
    casts = [_fixed_cast(*cast) for cast in (form.difference, form.accumulator, form.total, form.cast)]
    indexed = (form.difference[1], form.powers), (form.total[1], form.inverses)
    shifts = [index.width - (len(table).bit_length() - 1) for index, table in indexed]
    return Instruction(
        lambda: _sequence.fixed_softmax_step(
            instruction_set.index(), math.prod(y.shape[:-1]), y.shape[-1], x.numpy_dtype.itemsize,
            y.numpy_dtype.itemsize, casts, form.powers, form.inverses, shifts,
        ),
        ((step.inputs[0], 0),),
        ((step.outputs[0], 0),),
        step.node,
    )  # fmt: skip


def _strides(shape: Sequence[int]) -> list[int]:
    """Of a contiguous array, in elements."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _broadcast(shape: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The strides of an array that is broadcast to a shape."""
    added = len(wanted) - len(shape)
    return [0] * added + [0 if n == 1 else stride for n, stride in zip(shape, _strides(shape))]


def _merged(extents: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """As few axes as walk the same elements in the same order; the first operand's last stride becomes 1."""
    lengths: list[int] = []
    walks: list[list[int]] = [[] for _ in strides]
    for axis, extent in enumerate(extents):
        if extent == 1:
            continue
        if lengths and all(walk[-1] == each[axis] * extent for walk, each in zip(walks, strides)):
            lengths[-1] *= extent
            for walk, each in zip(walks, strides):
                walk[-1] = each[axis]
        else:
            lengths.append(extent)
            for walk, each in zip(walks, strides):
                walk.append(each[axis])
    if not lengths or walks[0][-1] != 1:
        lengths.append(1)
        for walk in walks:
            walk.append(1)
    return lengths, walks
