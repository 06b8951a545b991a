"""A program specialised to the types of its inputs: as much as can be in native sequences, the rest step by step.

Where a backend runs sequences, the first run with inputs of new types also makes a ``Schedule`` for them. It walks the
steps once: what has a form (``lowering``) is drafted; a step that has none, and that needs a drafted value, first has the
draft made into a sequence and run. What follows from the types alone is computed once and then known: shapes, what is
made of shapes, and which branch an If takes, whose steps then stand in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np

from quatrefoil.dispatch import Selection
from quatrefoil.errors import NoKernelError, OperatorError, QuatrefoilError
from quatrefoil.models.graph import MISFITS, ModelError, Node
from quatrefoil.models.lowering import Draft, NotInSequence
from quatrefoil.problem import Problem, Tensor
from quatrefoil.sequences import Joined, Plan, PreparedSequence, Sequencer, View

KNOWN: Final = "known from the inputs' types"
"""What ``explain`` says of nodes that no run computes any more."""

RANDOM: Final = ("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
                 "RandomUniformLike")  # fmt: skip
"""Host operators whose results may not follow from their inputs."""

ABSENT: Final = 0
UNWANTED: Final = 1
"""The slots of the absent input, always None, and of outputs that nobody asked for."""


@dataclass(frozen=True)
class Placement:
    """Where a node runs. selection: dispatch's choice, for an operator of the house. where: what runs any other, with
    the types of its inputs and outputs (None for what is absent or no array). joined: what it runs in with its
    neighbours, in place of both. note: what else there is to say of the choice. written: the operator as the graph has it,
    where another form of it runs (``sparsity``)."""

    node: Node
    selection: Selection | None = None
    where: str = ""
    inputs: tuple[Tensor | None, ...] = ()
    outputs: tuple[Tensor | None, ...] = ()
    joined: Joined | None = None
    note: str = ""
    written: Problem | None = None

    @property
    def problem(self) -> Problem | None:
        """The operator of the house that the node is; None for any other."""
        if self.written is not None:
            return self.written
        return None if self.selection is None else self.selection.problem

    def __str__(self) -> str:
        outputs = ", ".join(name for name in self.node.outputs if name)
        line = f"{self.node.name} ({self.node.title}) -> {outputs}: "
        if self.joined is None and self.selection is None:
            return f"{line}host, {self.why}"
        runs = self.joined is not None or self.selection is None or self.selection.runnable
        return f"{line}{self.backend}, {self.kernel if runs else 'no kernel runs'}, {self.why}"

    @property
    def backend(self) -> str:
        """What runs it: a backend's name, or host."""
        if self.joined is not None:
            return self.joined.backend or "host"
        return "host" if self.selection is None else self.selection.backend

    @property
    def kernel(self) -> str:
        """The id of the kernel that runs it; of what is no kernel's, what runs it."""
        if self.joined is not None:
            return self.joined.kernel
        return self.where if self.selection is None else self.selection.chosen.id

    @property
    def layout(self) -> str:
        """How the kernel's arrays lie; empty for what is no kernel of the house."""
        if self.joined is not None:
            return self.joined.layout
        return "" if self.selection is None else self.selection.chosen.layout

    @property
    def why(self) -> str:
        """The reason for the kernel, or for there being none."""
        if self.joined is not None:
            return self.joined.why
        noted = f"; {self.note}" if self.note else ""
        if self.selection is None:
            return self.where + noted
        if not self.selection.availability.ready:
            return self.selection.availability.detail
        if not self.selection.runnable:
            return "; ".join(f"{c.kernel.id}: {c.reject}" for c in self.selection.candidates) or "none is declared"
        return self.selection.reason + noted


Placements = dict[str, Placement]
"""What ``trace`` found, by node name, in the order of the run."""


class Operation(Protocol):
    """How a step runs."""

    node: Node

    def run(self, inputs: list[Any]) -> Sequence[Any]: ...


class NodeOperation(Operation, Protocol):
    """How a step runs its node.

    trace    finds the types of the outputs without computing more than it has to
    lower    drafts the step for a sequence and gives its placement; raises NotInSequence where it has no form
    settle   the outputs, where they follow from known inputs and types (positions in ``types`` alone), else None
    branch   the schedule that stands for the step where its first input is known, with the positions of the inputs that
             it takes; None where there is none
    lasting  whether the types of the outputs follow from the types of the inputs
    """

    lasting: bool

    def trace(self, inputs: list[Any], placements: Placements) -> Sequence[Any]: ...

    def lower(self, draft: Draft, inputs: Sequence[int | None], outputs: Sequence[int]) -> Placement: ...

    def settle(self, known: Sequence[Any], types: Sequence[Tensor | None]) -> Sequence[Any] | None: ...

    def branch(self, condition: np.ndarray) -> Schedule[NodeOperation] | None: ...


Runs = TypeVar("Runs", bound=Operation, covariant=True)


@dataclass(frozen=True, slots=True)
class Step(Generic[Runs]):
    """An operation with the slots that it reads, writes and leaves empty."""

    operation: Runs
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...] = ()


class Schedule(Generic[Runs]):
    """Steps over numbered slots. initial: the slots' values before a run. inputs, outputs: of the program, in order."""

    def __init__(self, initial: list[Any], steps: list[Step[Runs]], inputs: list[int], outputs: list[int]) -> None:
        self.initial, self.steps, self.inputs, self.outputs = initial, steps, inputs, outputs
        self.work = [(step.operation.run, step.inputs, step.outputs, step.dead) for step in steps]

    def whole(self) -> SequenceOperation | None:
        """The sequence that does everything, if there is one."""
        if len(self.steps) != 1:
            return None
        [step] = self.steps
        operation: Operation = step.operation
        everything = list(step.inputs) == self.inputs and list(step.outputs) == self.outputs
        return operation if everything and isinstance(operation, SequenceOperation) else None


class SequenceOperation:
    """Several steps as one native sequence, for inputs of certain types. Others are computed step by step."""

    def __init__(
        self,
        members: Sequence[Step[Operation]],
        plan: Plan,
        prepared: PreparedSequence,
        known: Mapping[int, np.ndarray],
    ) -> None:
        self.node = members[0].operation.node
        self._members = members
        self._prepared = prepared
        self._inputs, self._outputs = plan.inputs, plan.outputs
        self._known = {slot: known[slot] for step in members for slot in step.inputs if slot in known}
        self._types = [(plan.types[value].shape, plan.types[value].numpy_dtype) for value in plan.inputs]

    def run(self, inputs: list[Any]) -> Sequence[Any]:
        results = self._prepared(inputs) if self._takes(inputs) else None
        return self._one_by_one(inputs) if results is None else results

    def timed(self, inputs: list[Any]) -> tuple[Sequence[Any], Mapping[str, float]]:
        """The outputs, and the seconds of each node; no seconds where the inputs are of other types."""
        if not self._takes(inputs):
            return self._one_by_one(inputs), {}
        results, seconds = self._prepared.timed(inputs)
        if results is None:
            return self._one_by_one(inputs), {}
        return results, {step.operation.node.name: seconds.get(step.operation.node.name, 0.0) for step in self._members}

    def _takes(self, inputs: list[Any]) -> bool:
        """Whether the sequence takes the inputs; those that are not contiguous become so."""
        for position, (shape, dtype) in enumerate(self._types):
            array = inputs[position]
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return False
            if not array.flags.c_contiguous:
                inputs[position] = np.ascontiguousarray(array)
        return True

    def _one_by_one(self, inputs: list[Any]) -> Sequence[Any]:
        values = {**self._known, **dict(zip(self._inputs, inputs))}
        for step in self._members:
            results = computed(step.operation, [values.get(slot) for slot in step.inputs])
            values.update(zip(step.outputs, results))
        return [values[slot] for slot in self._outputs]


def computed(operation: Operation, inputs: list[Any]) -> Sequence[Any]:
    """The operation's results; what it raises bears the node's name."""
    try:
        return operation.run(inputs)
    except MISFITS as error:
        raise named(operation.node, error) from error


def named(node: Node, error: Exception) -> Exception:
    """The error again, with the node's name; what does not fit an operator becomes a ModelError."""
    if isinstance(error, NoKernelError):
        return NoKernelError(f"{node}: {error}")
    if isinstance(error, OperatorError):
        return ModelError(f"{node}: {error}")
    if isinstance(error, QuatrefoilError) or node.op is not None:
        return error  # said already, or nothing of the model's: a kernel that failed
    return ModelError(f"{node} cannot take its inputs: {type(error).__name__}: {error}")


class Scheduler:
    """Makes a schedule in the course of a run, or of a trace, which computes nothing that it can avoid.

    sequencer: None where the backend runs no sequences; then the steps stay as they are. placements: filled in where
    the run is a trace.
    """

    def __init__(self, backend: str, sequencer: Sequencer | None, placements: Placements | None = None) -> None:
        self._sequencer = sequencer
        self._draft = Draft(backend, sequencer, UNWANTED + 1)
        self._placements = placements
        self._values: dict[int, Any] = {ABSENT: None}
        self._reads: Counter[int] = Counter()
        self._lasting: set[int] = {ABSENT}
        """Slots whose types follow from the types of the program's inputs."""
        self._members: list[Step[NodeOperation]] = []
        """The steps that are drafted."""
        self._drafted: set[int] = set()
        """What they make."""
        self._waiting: set[int] = set()
        """What they read."""
        self._steps: list[Step[Operation]] = []

    def run(self, program: Schedule[NodeOperation], inputs: Sequence[Any]) -> tuple[Schedule[Operation], list[Any]]:
        """The schedule for inputs of these types, and the outputs for these inputs."""
        given = [self._draft.value() for _ in inputs]
        for slot, value in zip(given, inputs):
            self._set(slot, value)
        self._lasting.update(given)
        outputs = self._walk(program, given)
        self._flush()
        return self._schedule(given, outputs), [self._value(slot) for slot in outputs]

    def _walk(self, part: Schedule[NodeOperation], given: Sequence[int]) -> list[int]:
        """Takes the steps of a program or a branch; gives the slots of its outputs."""
        slots = {ABSENT: ABSENT, UNWANTED: UNWANTED, **dict(zip(part.inputs, given))}
        for slot, value in enumerate(part.initial):
            if slot not in slots:
                slots[slot] = self._draft.value()
                if value is not None:
                    self._know(slots[slot], value)
        self._reads.update(slots[slot] for step in part.steps for slot in step.inputs)
        self._reads.update(slots[slot] for slot in part.outputs)
        for step in part.steps:
            inputs = tuple(slots[slot] for slot in step.inputs)
            branch = self._branch(step.operation, inputs)
            if branch is not None:
                found = self._walk(branch, inputs[1:])
                self._reads.subtract(inputs)
                for slot, result in zip(step.outputs, found):
                    self._reads[result] -= 1
                    if slot != UNWANTED:
                        self._reads[result] += self._reads[slots[slot]]
                        slots[slot] = result
                continue
            outputs = tuple(slots[slot] for slot in step.outputs)
            try:
                self._take(Step(step.operation, inputs, outputs))
            except MISFITS as error:
                raise named(step.operation.node, error) from error
        return [slots[slot] for slot in part.outputs]

    def _branch(self, operation: NodeOperation, inputs: Sequence[int]) -> Schedule[NodeOperation] | None:
        if self._sequencer is None or not inputs or inputs[0] not in self._draft.known:
            return None
        branch = operation.branch(self._draft.known[inputs[0]])
        if branch is not None and self._placements is not None:
            operation.trace([], self._placements)
        return branch

    def _take(self, step: Step[NodeOperation]) -> None:
        if self._sequencer is None or not (self._settled(step) or self._lowered(step)):
            if self._drafted.intersection(step.inputs):
                self._flush()
            self._compute(step)
            if step.operation.lasting and self._lasting.issuperset(step.inputs):
                self._lasting.update(step.outputs)

    def _settled(self, step: Step[NodeOperation]) -> bool:
        """Whether the outputs are known now."""
        types = [self._draft.types.get(slot) if slot in self._lasting else None for slot in step.inputs]
        results = step.operation.settle([self._draft.known.get(slot) for slot in step.inputs], types)
        if results is None or not all(type(result) is np.ndarray for result in results):
            return False
        for slot, result in zip(step.outputs, results):
            self._know(slot, result)
        self._reads.subtract(step.inputs)
        if self._placements is not None:
            self._placements[step.operation.node.name] = Placement(step.operation.node, where=KNOWN)
        return True

    def _lowered(self, step: Step[NodeOperation]) -> bool:
        """Whether the step is drafted now."""
        draft = self._draft
        mark = len(draft.steps)
        draft.node, draft.kernels, draft.notes = step.operation.node.name, [], []
        try:
            placement = step.operation.lower(draft, [slot or None for slot in step.inputs], step.outputs)
        except (NotInSequence, *MISFITS):
            del draft.steps[mark:]  # the step itself says what does not fit
            return False
        self._members.append(step)
        self._drafted.update(step.outputs)
        self._waiting.update(step.inputs)
        self._reads.subtract(step.inputs)
        if self._lasting.issuperset(step.inputs):
            self._lasting.update(step.outputs)
        if self._placements is not None:
            self._placements[step.operation.node.name] = placement
        return True

    def _flush(self) -> None:
        """Make a sequence of the draft and run it."""
        draft, members = self._draft, self._members
        steps, draft.steps, self._members, self._drafted, self._waiting = draft.steps, [], [], set(), set()
        if all(isinstance(step.form, View) for step in steps):
            # NumPy's views cost less
            for member in members:
                self._reads.update(member.inputs)
            for member in members:
                self._compute(member)
            return
        made = {slot for step in steps for slot in step.outputs}
        read = dict.fromkeys(slot for step in steps for slot in step.inputs if slot is not None and slot not in made)
        inputs = tuple(slot for slot in read if slot not in draft.known)
        outputs = tuple(
            dict.fromkeys(
                slot for member in members for slot in member.outputs if self._reads[slot] > 0 and slot != UNWANTED
            )
        )
        constants = {slot: draft.known[slot] for slot in read if slot in draft.known}
        types = {slot: draft.types[slot] for slot in (*read, *made)}
        assert self._sequencer is not None
        plan = Plan(steps, types, constants, inputs, outputs)
        if self._placements is not None:
            for name, joined in self._sequencer.joined(plan).items():
                self._placements[name] = replace(self._placements[name], joined=joined)
            for slot in outputs:
                self._set(slot, np.zeros(types[slot].shape, types[slot].numpy_dtype))
            return
        operation = SequenceOperation(members, plan, self._sequencer.prepare(plan), draft.known)
        for slot, value in zip(outputs, operation.run([self._value(slot) for slot in inputs])):
            self._set(slot, value)
        self._steps.append(Step(operation, inputs, outputs))
        self._release(inputs)

    def _compute(self, step: Step[NodeOperation]) -> None:
        """Run, or trace, a step as it is."""
        given = [self._value(slot) for slot in step.inputs]
        if self._placements is None:
            results = step.operation.run(given)
        else:
            results = step.operation.trace(given, self._placements)
        for slot, value in zip(step.outputs, results):
            if slot != UNWANTED:
                self._set(slot, value)
        self._steps.append(step)
        self._reads.subtract(step.inputs)
        self._release(step.inputs)

    def _set(self, slot: int, value: Any) -> None:
        self._values[slot] = value
        if isinstance(value, np.ndarray):
            self._draft.types[slot] = Tensor.of(value)
        else:
            self._draft.types.pop(slot, None)

    def _know(self, slot: int, value: Any) -> None:
        self._set(slot, value)
        self._lasting.add(slot)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
            self._draft.known[slot] = value

    def _value(self, slot: int) -> Any:
        return self._values.get(slot)

    def _release(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if (
                self._reads[slot] <= 0
                and slot not in self._waiting
                and slot not in self._draft.known
                and slot != ABSENT
            ):
                self._values.pop(slot, None)

    def _schedule(self, inputs: Sequence[int], outputs: Sequence[int]) -> Schedule[Operation]:
        """The steps that were taken, over as few slots as they need."""
        numbers = {ABSENT: ABSENT, UNWANTED: UNWANTED}
        initial: list[Any] = [None, None]

        def number(slot: int) -> int:
            if slot not in numbers:
                numbers[slot] = len(initial)
                initial.append(self._draft.known.get(slot))
            return numbers[slot]

        last = {slot: at for at, step in enumerate(self._steps) for slot in (*step.outputs, *step.inputs)}
        kept = {ABSENT, UNWANTED, *outputs, *self._draft.known}
        given = [number(slot) for slot in inputs]
        steps = [
            Step(
                step.operation,
                tuple(map(number, step.inputs)),
                tuple(map(number, step.outputs)),
                tuple(number(s) for s in {*step.inputs, *step.outputs} if last[s] == at and s not in kept),
            )
            for at, step in enumerate(self._steps)
        ]
        return Schedule(initial, steps, given, [number(slot) for slot in outputs])
