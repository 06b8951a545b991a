"""A graph made ready to run on one backend: a flat list of steps over numbered slots.

Each step takes arrays from slots, runs, puts its results into slots and empties those that nobody reads again.
Operators of the house ask dispatch for a plan the first time they meet inputs of new dtypes and shapes and keep it,
weights packed, so that shapes may depend on data. Host operators run on NumPy arrays. Where the backend has a memory
of its own (gpu), arrays stay there between operators of the house and are brought to the host for host operators.

A program may run in several threads at once: a run has slots of its own, and plans are made under a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from quatrefoil import backends, dispatch, ops
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import control_flow, sparsity
from quatrefoil.models.graph import MISFITS, Graph, Node
from quatrefoil.models.lowering import LOWERINGS, STRIDED, Draft, NotInSequence, Place, strided
from quatrefoil.models.scheduling import (
    ABSENT,
    RANDOM,
    UNWANTED,
    NodeOperation,
    Operation,
    Placement,
    Placements,
    Schedule,
    Scheduler,
    SequenceOperation,
    Step,
    named,
)
from quatrefoil.ops import pool, rnn
from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.ops.conv import RESIDUAL
from quatrefoil.ops.fixed import input_format
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Backend
from quatrefoil.sequences import Elementwise, Sequencer

PLANS_KEPT: Final = 16
"""Plans that one node keeps for different shapes; the oldest goes first."""


class HostOperator(Protocol):
    """What runs a node on the host, NumPy's floating-point warnings being off already; ``name`` says how."""

    @property
    def name(self) -> str: ...

    def compute(self, inputs: Sequence[Any]) -> list[Any]: ...


HostOperators = Mapping[str, HostOperator]
"""By node name, bodies included."""

Bound = Callable[[list[Any]], tuple[Array, ...]]

Varying = tuple[tuple[int, type, tuple[int, ...], np.dtype], ...]
"""Position, array type, shape and dtype of each input that is not packed."""


class HouseOperation:
    """A node that is an operator of the house, on one backend."""

    def __init__(self, node: Node, constants: Mapping[str, np.ndarray], backend: str) -> None:
        assert node.op is not None
        self.node = node
        self.op = node.op
        self.lasting = node.op != "max_unpool"  # which takes its output's shape as a value
        self.spec = ops.SPECS[node.op]
        self.backend = backend
        self.house: Backend = backends.get(backend)
        self.outputs = 2 if node.op == "max_pool" and any(node.outputs[1:]) else 1
        self.parameters = {
            position: constants[name]
            for position, name in enumerate(node.inputs)
            if name in constants and position in self.spec.parameters
        }
        """Host arrays of the inputs that never change and that kernels pack."""
        self.repacks = any(
            name and position in self.spec.parameters and position not in self.parameters
            for position, name in enumerate(node.inputs)
        )
        self._packed = frozenset() if self.repacks else frozenset(self.parameters)
        self._bound: dict[Any, Bound] = {}
        self._latest: tuple[Varying, Bound] | None = None
        self._lock = threading.Lock()

    def run(self, inputs: list[Any]) -> Sequence[Any]:
        latest = self._latest
        if latest is not None:
            # the common case, in which nothing has changed since the last run
            for position, kind, shape, dtype in latest[0]:
                array = inputs[position]
                if (
                    array.shape != shape
                    or array.dtype != dtype
                    or not array.flags.c_contiguous
                    or type(array) is not kind
                ):
                    break
            else:
                return latest[1](inputs)
        return self._run_anew(inputs)

    def _run_anew(self, inputs: list[Any]) -> Sequence[Any]:
        """Run with inputs whose types may be new, or that have to be brought to the backend first."""
        arrays = [
            None if array is None or position in self._packed else _native(self.house, array)
            for position, array in enumerate(inputs)
        ]
        varying = tuple((i, type(a), a.shape, a.dtype) for i, a in enumerate(arrays) if a is not None)
        by_value = self.op == "max_unpool" and len(inputs) > 2
        key: Any = (varying, self._attributes(inputs)["output_shape"]) if by_value else varying
        bound = self._bound.get(key)
        if bound is None:
            with self._lock:
                bound = self._bound.get(key) or self._bind(inputs)
                while len(self._bound) >= PLANS_KEPT:
                    del self._bound[next(iter(self._bound))]
                self._bound[key] = bound
        names = self.node.inputs
        complete = all(a is not None or i in self._packed or not names[i] for i, a in enumerate(arrays))
        self._latest = (varying, bound) if complete and not by_value else None
        return bound(arrays)

    def trace(self, inputs: list[Any], placements: Placements) -> Sequence[Any]:
        problem, shape = self._problem(inputs)
        stored, note = self._stored(problem)
        run = problem if stored is None else stored.problem
        selection = dispatch.select(run, self.backend)
        placements[self.node.name] = Placement(self.node, selection, note=note, written=problem)
        outputs = [np.zeros(tensor.shape, tensor.numpy_dtype) for tensor in problem.outputs]
        return outputs if shape is None else [np.zeros(shape, outputs[0].dtype)]

    def settle(self, known: Sequence[Any], types: Sequence[Tensor | None]) -> None:
        return None

    def branch(self, condition: np.ndarray) -> None:
        return None

    def lower(self, draft: Draft, inputs: Sequence[int | None], outputs: Sequence[int]) -> Placement:
        """A residual of another shape is added afterwards. Values that have to be checked are not looked at here, but for
        integers of fixed point (``Draft.held``)."""
        recurrent = self.op.removeprefix("fixed_") in ops.FAMILIES["rnn"]
        fixed = self.op in ops.FAMILIES["fixed"]
        checked = self.spec.validate is not None and not recurrent and not fixed
        if self.repacks or checked or (recurrent and len(inputs) > rnn.LENGTHS and inputs[rnn.LENGTHS] is not None):
            raise NotInSequence
        given = [None if value is None else draft.types[value] for value in inputs]
        problem, broadcast = self._problem(given)
        parameters = {place: array for place, array in self.parameters.items() if place < len(problem.inputs)}
        varying = [None if place in parameters else value for place, value in enumerate(inputs[: len(problem.inputs)])]
        if fixed and self.spec.validate is not None:
            self.spec.validate(problem, [parameters.get(place) for place in range(len(problem.inputs))])
            varying = [
                draft.held(value, form) if (form := input_format(problem, place)) is not None else value
                for place, value in enumerate(varying)
            ]
        stored, note = self._stored(written := problem)
        if stored is not None:
            varying = stored.inputs(varying)
            problem, parameters = stored.problem, dict(stored.parameters)
        if broadcast is None:
            results = [draft.value() if output == UNWANTED else output for output in outputs]
            _, selection = draft.operation(problem, parameters, varying, results)
        else:
            alone, selection = draft.operation(problem, parameters, varying)
            function = Activation.parse(str(self.node.attributes.get("activation", IDENTITY.text)))
            draft.add(Elementwise("add", function), (alone, inputs[RESIDUAL]), broadcast, outputs[0])
        return Placement(self.node, selection, note=note, written=written)

    def _stored(self, problem: Problem) -> tuple[sparsity.Stored | None, str]:
        """How the node runs where its constant weights are sparse enough."""
        return (None, "") if self.repacks else sparsity.stored_form(problem, self.parameters, self.backend)

    def _attributes(self, inputs: Sequence[Any]) -> Mapping[str, Any]:
        """The node's attributes, with those that only its inputs tell."""
        attributes = self.node.attributes
        if self.node.whole_plane:
            return pool.global_attributes(Tensor.of(inputs[0]), attributes)
        if self.op == "max_unpool" and len(inputs) > 2 and inputs[2] is not None:
            wanted = _on_host(self.house, inputs[2]).reshape(-1)
            return {**attributes, "output_shape": tuple(int(length) for length in wanted)}
        return attributes

    def _problem(self, inputs: Sequence[Any]) -> tuple[Problem, tuple[int, ...] | None]:
        """The canonical problem; where a fused residual has to be broadcast, the problem without it and the shape
        that the addition gives."""
        attributes = self._attributes(inputs)
        given = inputs[:2] if self.op == "max_unpool" else inputs
        types = [None if array is None else Tensor.of(array) for array in given]
        if self.op.startswith("conv") and len(types) > RESIDUAL and self.op != "conv_integer":
            residual = types[RESIDUAL]
            bare = {name: value for name, value in attributes.items() if name != "activation"}
            alone = ops.canonical(self.op, types[:RESIDUAL], bare)
            if residual is not None and residual.shape != alone.outputs[0].shape:
                return alone, np.broadcast_shapes(residual.shape, alone.outputs[0].shape)
        return ops.canonical(self.op, types, attributes, self.outputs), None

    def _bind(self, inputs: list[Any]) -> Bound:
        """The plan for inputs of these types, as a function of the node's inputs."""
        problem, broadcast = self._problem(inputs)
        count, validate = len(problem.inputs), self.spec.validate
        wanted = self.spec.parameters
        if self.repacks:
            # weights that another node makes: packed again in each run
            def run(arrays: list[Any]) -> tuple[Array, ...]:
                given = arrays[:count]
                if validate is not None:
                    validate(problem, given)
                packed = {i: given[i] for i in wanted if i < count and given[i] is not None}
                return dispatch.plan_problem(problem, packed, self.backend).run(given)
        else:
            parameters = {
                position: _native(self.house, array) for position, array in self.parameters.items() if position < count
            }
            stored, _ = self._stored(problem)
            if stored is not None:
                sparse = dispatch.plan_problem(stored.problem, stored.parameters, self.backend)

                def run_stored(arrays: list[Any]) -> tuple[Array, ...]:
                    given = arrays[:count]
                    if validate is not None:
                        validate(problem, given)
                    return sparse.run(stored.inputs(given))

                return run_stored if broadcast is None else self._added(run_stored)
            plan = dispatch.plan_problem(problem, parameters, self.backend)
            if validate is None and broadcast is None and count == len(self.node.inputs):
                return plan.run

            def run(arrays: list[Any]) -> tuple[Array, ...]:
                given = arrays[:count]
                if validate is not None:
                    validate(problem, given)
                return plan.run(given)

        return run if broadcast is None else self._added(run)

    def _added(self, run: Bound) -> Bound:
        """A convolution's run, then the residual and the activation."""
        function = Activation.parse(str(self.node.attributes.get("activation", IDENTITY.text)))

        def run_and_add(arrays: list[Any]) -> tuple[Array, ...]:
            return (function(run(arrays)[0] + arrays[RESIDUAL]),)

        return run_and_add


class HostOperation:
    """A node that runs on the host, whatever the backend."""

    lasting = False

    def __init__(self, node: Node, operator: HostOperator, house: Backend | None) -> None:
        self.node = node
        self.operator = operator
        self.house = house
        """The backend whose arrays have to be brought to the host; None where they are there."""
        self.run: Callable[[list[Any]], Sequence[Any]] = operator.compute if house is None else self._bring_and_run

    def _bring_and_run(self, inputs: list[Any]) -> Sequence[Any]:
        assert self.house is not None
        return self.operator.compute([_on_host(self.house, value) for value in inputs])

    def trace(self, inputs: list[Any], placements: Placements) -> Sequence[Any]:
        copied = "" if self.house is None else ", its inputs copied to the host"
        with np.errstate(all="ignore"):
            outputs = self.run(inputs)
        placements[self.node.name] = Placement(
            self.node, None, self.operator.name + copied, tuple(map(_type, inputs)), tuple(map(_type, outputs))
        )
        return outputs

    def settle(self, known: Sequence[Any], types: Sequence[Tensor | None]) -> Sequence[Any] | None:
        if self.node.kind in ("Shape", "Size") and types[0] is not None:
            return self.operator.compute([np.empty(types[0].shape, types[0].numpy_dtype)])
        if self.node.kind in RANDOM or any(
            name and known[place] is None for place, name in enumerate(self.node.inputs)
        ):
            return None
        return self.operator.compute(known)

    def branch(self, condition: np.ndarray) -> None:
        return None

    def lower(self, draft: Draft, inputs: Sequence[int | None], outputs: Sequence[int]) -> Placement:
        form = getattr(self.operator, "form", None)
        if form is not None:
            shape = np.broadcast_shapes(*(draft.types[value].shape for value in inputs if value is not None))
            draft.add(form, inputs, shape, outputs[0])
            return Placement(self.node, where=draft.sequencer.name if draft.sequencer is not None else "")
        described = getattr(self.operator, "described", None)
        if described is None or draft.sequencer is None:
            raise NotInSequence
        place = Place(described, draft, inputs, outputs)
        if described.op in STRIDED:
            strided(place, self.operator.compute)
        elif described.op in LOWERINGS:
            LOWERINGS[described.op](place)
        else:
            raise NotInSequence
        where = ", ".join((draft.sequencer.name, *draft.kernels))
        return Placement(self.node, where=where, note="; ".join(draft.notes))


class BodiesOperation:
    """If, Loop, Scan or SequenceMap: its bodies are programs on the same backend."""

    lasting = False

    def __init__(self, node: Node, backend: str, operators: HostOperators) -> None:
        self.node = node
        self.bodies = {name: Program(body, backend, operators) for name, body in node.bodies.items()}
        self.execute = control_flow.prepare(node)

    def run(self, inputs: list[Any]) -> Sequence[Any]:
        return self.execute(lambda name, values: self.bodies[name].compute(values), inputs)

    def trace(self, inputs: list[Any], placements: Placements) -> Sequence[Any]:
        placements[self.node.name] = Placement(self.node, where="runs its bodies")
        return self.execute(lambda name, values: self.bodies[name].trace(values, placements), inputs)

    def settle(self, known: Sequence[Any], types: Sequence[Tensor | None]) -> None:
        return None

    def branch(self, condition: np.ndarray) -> Schedule[NodeOperation] | None:
        if self.node.kind != "If":
            return None
        return self.bodies["then_branch" if control_flow.truth(condition) else "else_branch"].steps

    def lower(self, draft: Draft, inputs: Sequence[int | None], outputs: Sequence[int]) -> Placement:
        raise NotInSequence


Around = Callable[[Operation, list[Any]], Sequence[Any]]
"""Runs a step's operation for an observer, who may measure it."""


class Program:
    """A graph on a backend."""

    def __init__(self, graph: Graph, backend: str, operators: HostOperators) -> None:
        self.graph = graph
        self.backend = backend
        house = backends.get(backend)
        # a probe of the backend's home: where NumPy arrays are at home, nothing ever has to be copied
        remote = None if house.owns(np.zeros(1, np.float32)) else house
        self.remote = remote
        """The backend, where its arrays are not the host's."""
        self._sequencer: Sequencer | None = getattr(house, "sequencer", None)
        slots: dict[str, int] = {"": ABSENT}
        initial: list[Any] = [None, None]

        def slot(name: str, value: Any = None) -> int:
            if name not in slots:
                slots[name] = len(initial)
                initial.append(value)
            return slots[name]

        # a constant is an input only where the caller wants to give another value for it
        inputs = [slot(value.name) for value in graph.inputs]
        for name, array in graph.constants.items():
            if name not in slots:
                slot(name, array)
        constant_slots = {index for index, value in enumerate(initial) if value is not None}
        last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
        kept = graph.output_names
        steps: list[Step[NodeOperation]] = []
        for index, node in enumerate(graph.nodes):
            for name in node.outputs:
                slot(name)
            finished = {n for n in (*node.inputs, *node.outputs) if n and last.get(n, index) == index and n not in kept}
            steps.append(
                Step(
                    self._operation(node, operators, remote),
                    tuple(slots[name] for name in node.inputs),
                    tuple(slots[name] if name else UNWANTED for name in node.outputs),
                    tuple(slots[name] for name in finished if slots[name] not in constant_slots),
                )
            )
        self.steps = Schedule(initial, steps, inputs, [slots[value.name] for value in graph.outputs])
        """Every node, as it is."""
        self._schedules: dict[Any, Schedule[Operation]] = {}
        self.fitting: set[Any] = set()
        """Types of inputs that were found to fit the graph and to need no conversion."""
        self._whole: dict[Any, SequenceOperation] = {}
        """The sequence that is all of a schedule."""
        self._lock = threading.Lock()

    def _operation(self, node: Node, operators: HostOperators, remote: Backend | None) -> NodeOperation:
        if node.op is not None:
            return HouseOperation(node, self.graph.constants, self.backend)
        if node.bodies:
            return BodiesOperation(node, self.backend, operators)
        return HostOperation(node, operators[node.name], remote)

    def run(self, inputs: Sequence[Any], around: Around | None = None) -> list[Any]:
        """Run on inputs in the graph's order; gives the outputs in the graph's order, wherever they are.

        Raises ModelError that names the node whose inputs do not fit it, NoKernelError where no kernel takes it.
        """
        with np.errstate(all="ignore"):
            return self.compute(inputs, around)

    def compute(self, inputs: Sequence[Any], around: Around | None = None) -> list[Any]:
        """``run`` inside another program's run, which has turned NumPy's floating-point warnings off."""
        schedule: Schedule[Any] = self.steps
        if self._sequencer is not None:
            found = self._schedules.get(key := types_of(inputs))
            if found is None and key is not None:
                with self._lock:
                    found = self._schedules.get(key)
                    if found is None and len(self._schedules) < PLANS_KEPT:
                        found, outputs = Scheduler(self.backend, self._sequencer).run(schedule, inputs)
                        self._schedules[key] = found
                        if (sequence := found.whole()) is not None:
                            self._whole[key] = sequence
                        if around is None:
                            return outputs
            schedule = found or schedule
        values = schedule.initial.copy()
        for slot, value in zip(schedule.inputs, inputs):
            values[slot] = value
        index = 0
        try:
            for index, (run, sources, targets, dead) in enumerate(schedule.work):
                # one input is the common case, and a comprehension costs as much as a small node
                given = [values[sources[0]]] if len(sources) == 1 else [values[slot] for slot in sources]
                results = run(given) if around is None else around(schedule.steps[index].operation, given)
                if len(targets) == 1:
                    values[targets[0]] = results[0]
                else:
                    for slot, value in zip(targets, results):
                        values[slot] = value
                for slot in dead:
                    values[slot] = None
        except MISFITS as error:
            raise named(schedule.steps[index].operation.node, error) from error
        return [values[slot] for slot in schedule.outputs]

    def at_once(self, inputs: list[Any]) -> Sequence[Any] | None:
        """The outputs, new arrays on the host, where one sequence is the whole program for inputs of types that it was
        run with before; else None."""
        sequence = self._whole.get(types_of(inputs)) if self._whole else None
        return None if sequence is None else sequence.run(inputs)

    def trace(self, inputs: Sequence[Any], placements: Placements) -> list[Any]:
        """Fills in where every node would run for inputs of these types. Operators of the house are not computed;
        their outputs count as zeros for what depends on values."""
        return Scheduler(self.backend, self._sequencer, placements).run(self.steps, inputs)[1]

    def to_host(self, value: Any) -> Any:
        """An output as a NumPy array (or a list of them)."""
        return value if self.remote is None else _on_host(self.remote, value)

    def wait(self, results: Sequence[Any]) -> None:
        """Return when results are complete; device work goes on after a call has returned."""
        if self.remote is not None:
            for value in results:
                if not isinstance(value, (np.ndarray, list)) and value is not None and value.size:
                    self.remote.get(value.reshape(-1)[:1])


def types_of(inputs: Sequence[Any]) -> Any:
    """The types of arrays, as a key; None where one is no array."""
    key = []
    for value in inputs:
        if type(value) is not np.ndarray:
            return None
        key.append((value.shape, value.dtype))
    return tuple(key)


def _type(value: Any) -> Tensor | None:
    """None for what is no array of a kind that problems have."""
    try:
        return Tensor.of(value)
    except QuatrefoilError:
        return None


def _native(house: Backend, array: Any) -> Array:
    """An array in the backend's home, contiguous."""
    if not house.owns(array):
        array = house.put(np.ascontiguousarray(array).reshape(array.shape))
    if not array.flags.c_contiguous:
        return array.copy(order="C")
    return array


def _on_host(house: Backend, value: Any) -> Any:
    if isinstance(value, list):
        return [_on_host(house, item) for item in value]
    if value is None or isinstance(value, (np.ndarray, dict)):
        return value
    return house.get(value)
