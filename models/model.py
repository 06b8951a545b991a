"""``load`` an ONNX model; ``run``, ``profile`` and ``explain`` it on any backend.

Loading imports and checks the file (``importing``), applies the passes (``passes``) and prepares what runs on the
host. A program for a backend (``execution``) is made when the backend is first asked for, and kept.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import is_
from typing import Any

import numpy as np
from onnx import ModelProto

from quatrefoil import arrays, backends, dispatch
from quatrefoil.models import host
from quatrefoil.models.execution import PLANS_KEPT, HostOperator, HostOperators, Program, types_of
from quatrefoil.models.fixed import elements
from quatrefoil.models.graph import MISFITS, Graph, ModelError, Value
from quatrefoil.models.importing import load_graph
from quatrefoil.models.passes import optimize
from quatrefoil.models.passes.quantized import operator_of
from quatrefoil.models.scheduling import KNOWN, Operation, Placement, Placements, SequenceOperation
from quatrefoil.registry import SimulatedCost, collect_costs

_NONE_GIVEN: frozenset[str] = frozenset()
"""No weight that the caller gives another value for."""


@dataclass(frozen=True)
class NodeProfile:
    """What one node took.

    seconds     measured: the least of the repeats. On simulated backends it is None for operators of the house
    cycles      simulated: cycles of the design's clock, and ``microseconds`` of it; None where nothing was simulated
    share       of the total: of simulated time on simulated backends, of measured time elsewhere
    layout      of the kernel's values, as its id says it; empty for what is no kernel of the house
    problem     the operator call in its text form; empty for what is no operator of the house
    device      what it ran on; for a simulated node its design
    span        begin and end in the quickest of the repeats, in seconds since that run began; None where ``seconds`` is,
                and for what no run computes
    """

    name: str
    op: str
    backend: str
    kernel: str
    why: str
    seconds: float | None
    cycles: int | None = None
    microseconds: float | None = None
    share: float = 0.0
    layout: str = ""
    problem: str = ""
    device: str = ""
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Explanation(Sequence[Placement]):
    """Where every node runs and why, in order; as text one line a node."""

    placements: tuple[Placement, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.placements[index]

    def __len__(self) -> int:
        return len(self.placements)

    def __str__(self) -> str:
        return "\n".join(map(str, self.placements))

    __repr__ = __str__


def load(source: str | os.PathLike[str] | bytes | ModelProto, strict: bool = False, optimized: bool = True) -> Model:
    """Load an ONNX model from a path, its bytes, or a ModelProto.

    strict: refuse models with operators that would run on the host instead of a backend.
    optimized: apply the passes; without them every node runs as the file says.
    Raises ModelError, in a sentence, for a model that cannot be loaded.
    """
    return Model(load_graph(source), strict=strict, optimized=optimized)


class Model:
    """A loaded model. ``inputs`` and ``outputs`` say their names, dtypes and shapes; ``graph`` is what runs."""

    def __init__(self, graph: Graph, strict: bool = False, optimized: bool = True) -> None:
        self._source = graph
        self._optimized = optimized
        self._variants: dict[frozenset[str], tuple[Graph, HostOperators]] = {}
        self._programs: dict[tuple[str, frozenset[str]], Program] = {}
        self._lock = threading.Lock()
        self.inputs = tuple(value for value in graph.inputs if value.name not in graph.defaults)
        self.all_inputs = graph.inputs
        """Those that have a weight as their value and may still be given included."""
        self._known = frozenset(value.name for value in graph.inputs)
        self.outputs = graph.outputs
        self._input_names = [value.name for value in self.inputs]
        self._output_names = [value.name for value in self.outputs]
        self.graph, operators = self._variant(_NONE_GIVEN)
        if not graph.defaults:
            # no other variant will be made: weights that passes have folded into others may go
            self._source = replace(graph, nodes=(), constants={})
        if strict and operators:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(self.graph.host_operators().items()))
            raise ModelError(
                f"strict: the model has operators that no backend has and that would run on the host: {kinds}; "
                "load it with strict=False to allow that"
            )

    def run(self, inputs: Mapping[str, Any] | Any, backend: str | None = None) -> dict[str, Any]:
        """Compute all outputs by name.

        inputs: arrays by input name, or the array alone where the model has one input. NumPy arrays and scalars,
        CuPy arrays, torch tensors and anything with DLPack; the outputs are of the first one's library.
        backend: "cpu", "gpu", "fpga" or "asic"; left out, ``with qf.backend(...)`` or the first array's home decides.
        Raises ModelError for inputs that are missing, unknown or of a wrong type.
        """
        outputs = self._at_once(inputs, backend)
        if outputs is not None:
            return outputs
        named = self._named(inputs)
        first = next((value for value in named.values() if hasattr(value, "dtype")), np.zeros(0))
        chosen, _ = dispatch.chosen_backend(backend, first)
        program, feeds = self._program(chosen, named)
        return self._returned(program, program.run(feeds), feeds, first)

    def _at_once(self, inputs: Any, backend: str | None) -> dict[str, Any] | None:
        """The outputs where nothing has to be checked or converted any more: NumPy arrays under the inputs' names, of
        types that one native sequence was made for."""
        if type(inputs) is not dict or len(inputs) != len(self._input_names):
            return None
        feeds = [inputs.get(name) for name in self._input_names]
        if not feeds or type(feeds[0]) is not np.ndarray:
            return None
        program = self._programs.get((dispatch.chosen_backend(backend, feeds[0])[0], _NONE_GIVEN))
        outputs = None if program is None else program.at_once(feeds)
        return None if outputs is None else dict(zip(self._output_names, outputs))

    def profile(
        self, inputs: Mapping[str, Any] | Any, backend: str | None = None, repeats: int = 3
    ) -> list[NodeProfile]:
        """What each node took on these inputs, in order: measured seconds, or simulated cycles.

        Runs once to plan and pack, then ``repeats`` times; the least time of each node counts.
        """
        if repeats < 1:
            raise ModelError(f"profile: repeats is {repeats}; give at least 1")
        named = self._named(inputs)
        first = next((value for value in named.values() if hasattr(value, "dtype")), np.zeros(0))
        chosen, _ = dispatch.chosen_backend(backend, first)
        program, feeds = self._program(chosen, named)
        placements: Placements = {}
        program.trace(feeds, placements)
        house = backends.get(chosen)
        runs: list[dict[str, tuple[float, float]]] = []
        costs: dict[str, list[SimulatedCost]] = {}

        def measure(operation: Operation, inputs: list[Any]) -> Sequence[Any]:
            name = operation.node.name
            start = time.perf_counter()
            with collect_costs() as collected:
                if isinstance(operation, SequenceOperation):
                    results, took = operation.timed(inputs)
                else:
                    results = operation.run(inputs)
                    program.wait(results)
                    took = {name: time.perf_counter() - start}
            start -= began
            for node, elapsed in took.items():
                runs[-1][node] = start, start + elapsed
                start += elapsed
            costs[name] = collected
            return results

        program.run(feeds)
        for _ in range(1 if house.simulated else repeats):
            runs.append({})
            began = time.perf_counter()
            program.run(feeds, measure)
        return _profiles(placements, runs, costs, chosen)

    def explain(self, inputs: Mapping[str, Any] | Any | None = None, backend: str = "cpu") -> Explanation:
        """Where each node would run: backend, kernel, reason. Operators of the house are chosen, not computed.

        inputs: as for ``run``; left out, zeros of the declared shapes, with a free first axis taken as 1.
        """
        backends.get(backend)
        named = self._named({v.name: declared_zeros(v) for v in self.inputs} if inputs is None else inputs)
        program, feeds = self._program(backend, named)
        placements: Placements = {}
        program.trace(feeds, placements)
        return Explanation(tuple(placements.values()))

    def _named(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        """Inputs by name, none missing and none unknown."""
        if not isinstance(inputs, Mapping):
            if len(self.inputs) != 1:
                names = ", ".join(value.name for value in self.inputs) or "none"
                raise ModelError(f"the model has {len(self.inputs)} inputs ({names}); give them by name, in a dict")
            inputs = {self.inputs[0].name: inputs}
        unknown = [str(name) for name in inputs if name not in self._known]
        if unknown:
            raise ModelError(f"the model has no input {unknown[0]!r}; it has {_listed(self.inputs)}")
        missing = [v.name for v in self.inputs if v.name not in inputs and v.kind != "optional"]
        if missing:
            raise ModelError(f"the input {missing[0]!r} is missing; the model takes {_listed(self.inputs)}")
        return dict(inputs)

    def _program(self, backend: str, named: Mapping[str, Any]) -> tuple[Program, list[Any]]:
        """The program for a backend and the values for its inputs."""
        given = frozenset(self._source.defaults & named.keys())
        key = backend, given
        program = self._programs.get(key)
        if program is None:
            with self._lock:
                if key not in self._programs:
                    self._programs[key] = Program(self._variant(given)[0], backend, self._variant(given)[1])
                program = self._programs[key]
        given_arrays = [named.get(value.name) for value in program.graph.inputs]
        if (types := types_of(given_arrays)) is not None and types in program.fitting:
            return program, given_arrays
        feeds = [_fitting(value, array, program.remote) for value, array in zip(program.graph.inputs, given_arrays)]
        if types is not None and len(program.fitting) < PLANS_KEPT and all(map(is_, feeds, given_arrays)):
            program.fitting.add(types)
        return program, feeds

    def _variant(self, given: frozenset[str]) -> tuple[Graph, HostOperators]:
        """The graph and its host operators where the caller gives values for these weights."""
        if given not in self._variants:
            source = self._source
            graph = replace(
                source,
                inputs=tuple(v for v in source.inputs if v.name not in source.defaults or v.name in given),
                constants={name: array for name, array in source.constants.items() if name not in given},
                defaults=frozenset(),
            )
            if self._optimized:
                graph = optimize(graph)
            self._variants[given] = graph, _host_operators(graph)
        return self._variants[given]

    def _returned(self, program: Program, outputs: list[Any], feeds: list[Any], like: Any) -> dict[str, Any]:
        """Outputs by name in the caller's library, never sharing memory with inputs or weights."""
        keep_on_device = program.remote is not None and program.remote.owns(like)
        restore = arrays.restorer(like)
        results = {}
        for value, output in zip(self.outputs, outputs):
            found = output if keep_on_device else program.to_host(output)
            if isinstance(found, np.ndarray):
                # an array that owns its memory shares it with nothing but itself
                near = any(found is feed for feed in feeds) if found.base is None else _near(found, feeds)
                if near or not found.flags.writeable:
                    found = found.copy()
                if found.dtype.kind in "biuf":
                    found = restore(found)
            results[value.name] = found
        return results

    def __repr__(self) -> str:
        return f"Model({self.graph.name!r}, inputs: {_listed(self.inputs)}, outputs: {_listed(self.outputs)})"


def _near(array: np.ndarray, others: Iterable[Any]) -> bool:
    return any(isinstance(other, np.ndarray) and np.may_share_memory(array, other) for other in others)


def _listed(values: Iterable[Value]) -> str:
    return ", ".join(map(str, values)) or "none"


def _host_operators(graph: Graph) -> dict[str, HostOperator]:
    """Everything that runs on the host, made ready. Raises ModelError that names each operator that cannot run."""
    found: dict[str, HostOperator] = {}
    refused: dict[str, str] = {}

    def visit(part: Graph) -> None:
        for node in part.nodes:
            for body in node.bodies.values():
                visit(body)
            made = operator_of(node) or elements.operator_of(node)
            if made is not None:
                found[node.name] = made
            elif node.op is None and not node.bodies:
                assert node.proto is not None
                try:
                    found[node.name] = host.prepare(node.proto, dict(node.opsets), part.constants)
                except host.UnsupportedOperator as error:
                    refused.setdefault(node.kind, str(error))
                except MISFITS as error:
                    refused.setdefault(node.kind, f"{node} has attributes that do not fit: {error}")

    visit(graph)
    if refused:
        raise ModelError("the model has operators that nothing here runs: " + "; ".join(refused.values()))
    return found


def _fitting(value: Value, given: Any, remote: Any) -> Any:
    """An input checked against what the model declares. Raises ModelError where it does not fit."""
    if given is None and value.kind == "optional":
        return None
    if value.kind != "tensor":
        if value.kind == "sequence" and not isinstance(given, (list, tuple)):
            raise ModelError(f"the input {value.name!r} is {type(given).__name__}; give a list of arrays")
        return list(given) if isinstance(given, tuple) else given
    array = _as_array(value, given, remote)
    dtype = _dtype_name(array.dtype)
    if value.dtype is not None and dtype != value.dtype:
        raise ModelError(f"the input {value.name!r} has dtype {dtype}; the model takes {value}")
    if value.shape is not None:
        fits = len(array.shape) == len(value.shape) and all(
            not isinstance(declared, int) or declared == length for declared, length in zip(value.shape, array.shape)
        )
        if not fits:
            raise ModelError(f"the input {value.name!r} has shape {list(array.shape)}; the model takes {value}")
    return array


@cache
def _dtype_name(dtype: np.dtype) -> str:
    """NumPy's name of a dtype, which NumPy takes 10 us to make up; text is ``string``."""
    return "string" if dtype.kind in "OUST" else str(dtype)


def _as_array(value: Value, given: Any, remote: Any) -> Any:
    """An array on the host, or where it is if that is the program's own device."""
    if isinstance(given, (bool, int, float, list, tuple)):
        # plain numbers have no dtype of their own: they take the declared one if it can hold them
        array = np.asarray(given)
        if value.dtype not in (None, "string"):
            declared = np.zeros(0, value.dtype).dtype if value.dtype in np.sctypeDict else None
            if declared is not None and np.can_cast(array.dtype, declared, "same_kind"):
                return array.astype(declared)
        return array
    if not hasattr(given, "dtype") or not hasattr(given, "shape"):
        raise ModelError(f"the input {value.name!r} is {type(given).__name__}; give an array ({value})")
    if remote is not None and remote.owns(given):
        return given
    if arrays.home(given) != "cpu":
        raise ModelError(
            f"the input {value.name!r} is on the gpu; bring it to the host first, or run with backend='gpu'"
        )
    return arrays.to_host(given)


def declared_zeros(value: Value) -> Any:
    """An input of zeros of its declared shape, a free first axis taken as 1. Raises ModelError where others are free."""
    if value.kind != "tensor":
        return [] if value.kind == "sequence" else None
    shape = []
    for axis, length in enumerate(value.shape or ()):
        if not isinstance(length, int) and axis > 0:
            raise ModelError(f"the input {value} has free axes; give example inputs to explain the model with")
        shape.append(length if isinstance(length, int) else 1)
    if value.shape is None or value.dtype is None:
        raise ModelError(f"the input {value} has no declared type; give example inputs to explain the model with")
    if value.dtype == "string":
        return np.full(shape, "", object)
    return np.zeros(shape, value.dtype)


def _profiles(
    placements: Placements,
    runs: Sequence[Mapping[str, tuple[float, float]]],
    costs: Mapping[str, list[SimulatedCost]],
    backend: str,
) -> list[NodeProfile]:
    """``runs``: begin and end of each node that ran, run by run."""
    house = backends.get(backend)
    device = house.device()
    quickest = min(runs, key=lambda run: sum(end - begin for begin, end in run.values()))
    least = {name: min(end - begin for begin, end in (run[name] for run in runs if name in run)) for name in quickest}
    records = []
    for name, placement in placements.items():
        if name not in quickest and placement.where != KNOWN:
            continue  # inside a body: its node is counted as a whole
        reported = costs.get(name, [])
        selection = placement.selection
        records.append(
            NodeProfile(
                name=name,
                op=placement.node.title,
                backend=placement.backend,
                kernel=placement.kernel,
                why=placement.why,
                seconds=None if reported else least.get(name, 0.0),
                cycles=sum(cost.cycles for cost in reported) if reported else None,
                microseconds=sum(cost.microseconds for cost in reported) if reported else None,
                layout=placement.layout,
                problem="" if selection is None else selection.problem.text,
                device=reported[0].design if reported else "" if selection is None else device,
                span=None if reported else quickest.get(name),
            )
        )

    def weight(record: NodeProfile) -> float:
        if house.simulated:
            return record.microseconds or 0.0
        return record.seconds or 0.0

    total = sum(map(weight, records)) or 1.0
    return [replace(record, share=weight(record) / total) for record in records]
