"""From a Problem to a kernel that runs: select, plan, call, explain.

``select`` is the only place that chooses. A call, a plan, a model and an explanation all ask it, so what is
explained is what happens. Nothing falls back: where the chosen backend has no kernel, the error lists every reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np

from quatrefoil import arrays, autotune, backends, ops, settings
from quatrefoil.errors import BackendUnavailable, NoKernelError, OperatorError, QuatrefoilError
from quatrefoil.ops import conv, layouts, rnn
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array, Availability, Backend, DirectRun, Kernel, Reject, Run, RunsDirectly

_default_backend: ContextVar[str | None] = ContextVar("quatrefoil_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Calls inside the block that name no backend run on this one."""
    backends.get(name)
    token = _default_backend.set(name)
    try:
        yield
    finally:
        _default_backend.reset(token)


def chosen_backend(explicit: str | None, array: object) -> tuple[str, str]:
    """The backend of a call and why: asked for, set by ``with qf.backend(...)``, or the array's home."""
    if explicit is not None:
        backends.get(explicit)
        return explicit, "asked for"
    ambient = _default_backend.get()
    if ambient is not None:
        return ambient, f"set by backend({ambient!r})"
    return arrays.home(array), f"where the {arrays.library(array)} array lives"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kernel's place in a selection: its rank among those that accept, or why it does not."""

    kernel: Kernel
    reject: Reject | None
    seconds: float | None = None
    """Measured time, when the problem was tuned on this device."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Every kernel that a backend has for a problem's operator, best first, and which one is chosen and why."""

    problem: Problem
    backend: str
    availability: Availability
    candidates: tuple[Candidate, ...]
    reason: str
    why_backend: str = "asked for"

    @property
    def chosen(self) -> Kernel:
        """The kernel that runs. Raises BackendUnavailable or NoKernelError, with every reason, when none can."""
        if not self.availability.ready:
            remedy = f"; to add it: {self.availability.remedy}" if self.availability.remedy else ""
            raise BackendUnavailable(f"backend {self.backend!r} cannot run here: {self.availability.detail}{remedy}")
        if not self.candidates:
            raise NoKernelError(f"backend {self.backend!r} has no kernel for {self.problem.op}")
        best = self.candidates[0]
        if best.reject is not None:
            lines = "".join(f"\n  {c.kernel.id}: {c.reject}" for c in self.candidates)
            raise NoKernelError(f"no {self.backend} kernel takes {self.problem.text}:{lines}")
        return best.kernel

    @property
    def runnable(self) -> bool:
        return self.availability.ready and bool(self.candidates) and self.candidates[0].reject is None

    def __str__(self) -> str:
        lines = [self.problem.text]
        state = self.availability.detail
        if not self.availability.ready and self.availability.remedy:
            state += f"; to add it: {self.availability.remedy}"
        ready = "" if self.availability.ready else "NOT AVAILABLE, "
        lines.append(f"backend {self.backend} ({self.why_backend}): {ready}{state}")
        width = max((len(c.kernel.id) for c in self.candidates), default=0)
        for rank, candidate in enumerate(self.candidates):
            if candidate.reject is not None:
                verdict = f"no        {candidate.reject}"
            elif rank == 0 and self.availability.ready:
                verdict = f"chosen    {self.reason}"
            else:
                verdict = (
                    f"runnable  {candidate.kernel.summary}"
                    if self.availability.ready
                    else "accepts   backend is not available"
                )
            timed = "" if candidate.seconds is None else f"  [{candidate.seconds * 1e6:.1f} us measured]"
            lines.append(f"  {candidate.kernel.id:<{width}}  {verdict}{timed}")
        if not self.candidates:
            lines.append(f"  no kernel for {self.problem.op}")
        return "\n".join(lines)

    __repr__ = __str__


def select(problem: Problem, backend: str, why_backend: str = "asked for", *, blocked: bool = False) -> Selection:
    """Rank a backend's kernels for a problem: those that accept first, tuned ones by time, the others by priority.

    blocked: what stands beside it keeps channels in blocks, so that kernels that can do so come first, unless the first
    one is worth planes.
    """
    house = backends.get(backend)
    tuning = (settings.num_threads(), settings.cache_folder(), autotune.revision())
    return _select(house, problem, why_backend, house.probe(), settings.forced_kernel(), tuning, blocked)


@lru_cache(maxsize=4096)
def _select(
    house: Backend,
    problem: Problem,
    why_backend: str,
    availability: Availability,
    forced: str | None,
    tuning: tuple[object, ...],
    blocked: bool,
) -> Selection:
    """What ``select`` gives, kept for as long as nothing that it depends on changes (``tuning`` is only a key)."""
    judged = layouts.plain(problem)
    timed = autotune.remembered(house, _measured(problem)) if availability.ready else {}
    candidates = [
        Candidate(kernel, kernel.accepts(judged), timed.get(autotune.kernel_key(kernel)))
        for kernel in house.kernels()
        if kernel.op == problem.op
    ]
    accepting = [c for c in candidates if c.reject is None]
    rejecting = [c for c in candidates if c.reject is not None]
    reason = "first in priority that accepts"
    if sum(c.seconds is not None for c in accepting) > 1:
        accepting.sort(key=lambda c: float("inf") if c.seconds is None else c.seconds)
        reason = "fastest when measured"
    worth_planes = accepting[0].kernel.on_planes if accepting else None
    if blocked and any(c.kernel.blocked for c in accepting) and not (worth_planes and worth_planes(problem)):
        if accepting[0].kernel.blocked is None:
            reason = "keeps channels in blocks from layer to layer"
        accepting.sort(key=lambda c: c.kernel.blocked is None)
    if conv.channels_last(problem) and any(c.kernel.blocked for c in accepting):
        accepting.sort(key=lambda c: c.kernel.blocked is None)
        reason += ", on channels last as they lie"
    if forced is not None:
        accepting, rejecting, reason = _force(forced, accepting, rejecting)
    return Selection(problem, house.name, availability, (*accepting, *rejecting), reason, why_backend)


def _measured(problem: Problem) -> Problem:
    """The problem whose measured times count for this one: channels last have times of their own."""
    return problem if conv.channels_last(problem) else layouts.plain(problem)


def _force(
    forced: str, accepting: list[Candidate], rejecting: list[Candidate]
) -> tuple[list[Candidate], list[Candidate], str]:
    """Keep the forced kernel alone where it belongs to this backend and operator; an unknown id is an error."""
    here = [c for c in (*accepting, *rejecting) if c.kernel.id == forced]
    reason = f"forced by {settings.FORCE_KERNEL_VARIABLE}"
    if here:
        others = [Candidate(c.kernel, Reject(f"{reason}={forced}")) for c in (*accepting, *rejecting) if c not in here]
        return ([c for c in here if c.reject is None], [c for c in here if c.reject is not None] + others, reason)
    if not any(kernel.id == forced for name in backends.NAMES for kernel in backends.get(name).kernels()):
        raise QuatrefoilError(f"{settings.FORCE_KERNEL_VARIABLE}={forced!r} names no kernel")
    return accepting, rejecting, "first in priority that accepts (the forced kernel is another operator's)"


class Plan:
    """A problem bound to the kernel that runs it, with its constant inputs packed once.

    Made by ``plan_problem`` (positional inputs in the backend's own home) or ``quatrefoil.plan`` (a public function).
    """

    __slots__ = ("backend", "kernel", "problem", "run", "selection")

    def __init__(self, selection: Selection, kernel: Kernel, run: Run) -> None:
        self.selection = selection
        self.problem = selection.problem
        self.backend = selection.backend
        self.kernel = kernel
        self.run = run
        """Positional inputs of the problem in the backend's home, C-contiguous; gives all outputs.

        What ``prepare`` got as a parameter is ignored here and may be None.
        """

    def __repr__(self) -> str:
        return f"Plan({self.problem.text!r}, kernel={self.kernel.id!r})"


def _prepared(kernel: Kernel, problem: Problem, parameters: Mapping[int, Array]) -> Run:
    """A kernel prepared for a problem in any layout: on its own one, or between views."""
    if not layouts.turned(problem):
        return kernel.prepare(problem, parameters)
    plain = layouts.plain(problem)
    if conv.channels_last(problem) and kernel.blocked is not None:
        return kernel.blocked(plain, parameters, True, True)
    given = _views(problem, [parameters.get(i) for i in range(len(problem.inputs))])
    run = kernel.prepare(plain, {i: array for i, array in enumerate(given) if array is not None})
    return lambda inputs: layouts.results(problem, run(_views(problem, inputs)))


def _views(problem: Problem, inputs: Sequence[Any]) -> list[Any]:
    return [None if array is None else _contiguous(array) for array in layouts.views(problem, inputs)]


def _contiguous(array: Any) -> Any:
    return array if array.flags.c_contiguous else array.copy(order="C")


def plan_problem(
    problem: Problem,
    parameters: Mapping[int, Array],
    backend: str = "cpu",
    *,
    tune: bool = False,
    samples: Sequence[Array | None] | None = None,
    why_backend: str = "asked for",
) -> Plan:
    """Select a kernel and prepare it.

    parameters: arrays in the backend's home, by input position, that stay the same for the plan's life; every
    present input that the operator's spec names as a parameter has to be among them.
    tune: measure all kernels that accept and remember the result; uses ``samples`` as inputs, or made-up ones.
    """
    selection = select(problem, backend, why_backend)
    kernel = selection.chosen
    house = backends.get(backend)
    constants = {i: _contiguous(array) for i, array in parameters.items()}
    if tune:
        accepting = [c.kernel for c in selection.candidates if c.reject is None]
        if len(accepting) > 1 and any(c.seconds is None for c in selection.candidates if c.reject is None):
            inputs = list(samples) if samples is not None else _made_up(house, problem, parameters)
            runs = [(each, _prepared(each, problem, constants)) for each in accepting]
            autotune.measure(house, _measured(problem), runs, inputs)
            selection = select(problem, backend, why_backend)
            kernel = selection.chosen
    return Plan(selection, kernel, _prepared(kernel, problem, constants))


def _made_up(house: Backend, problem: Problem, parameters: Mapping[int, Array]) -> list[Array | None]:
    """Inputs for tuning when there are none: small normal numbers, full lengths."""
    rng = np.random.default_rng(0)
    inputs: list[Array | None] = []
    for position, tensor in enumerate(problem.inputs):
        if tensor is None or position in parameters:
            inputs.append(parameters.get(position))
        elif ops.SPECS[problem.op].input_names[position] == rnn.NAMES[rnn.LENGTHS]:
            batch_first = (
                "layout",
                1,
            ) in problem.attributes  # fixed-point layers have steps first, and no such attribute
            steps = problem.input(rnn.X).shape[1 if batch_first else 0]
            inputs.append(house.put(np.full(tensor.shape, steps, np.int32)))
        elif tensor.numpy_dtype.kind in "iu":
            inputs.append(house.put(np.zeros(tensor.shape, tensor.numpy_dtype)))
        else:
            inputs.append(house.put(rng.standard_normal(tensor.shape).astype(tensor.numpy_dtype)))
    return inputs


FIRST = itemgetter(0)


@dataclass(frozen=True)
class Call:
    """An operator call before dispatch: what the public functions turn their arguments into.

    inputs: arrays of the caller (or Tensor where only the type is known), None for absent optional ones.
    finish: turns the kernel's outputs into what the function returns.
    """

    op: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]
    outputs: int = 1
    finish: Callable[[tuple[Any, ...]], Any] = field(default=FIRST)

    def problem(self) -> Problem:
        tensors = tuple(None if array is None else Tensor.of(array) for array in self.inputs)
        frozen = _frozen(self.attributes)
        try:
            return _canonical(self.op, tensors, frozen, self.outputs)
        except TypeError:  # a value that cannot be a key, such as a dict: the operator says what it wants instead
            return ops.canonical(self.op, tensors, dict(frozen), self.outputs)


def _frozen(attributes: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (name, tuple(value) if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim) else value)
        for name, value in attributes.items()
        if value is not None
    )


@lru_cache(maxsize=4096)
def _canonical(op: str, tensors: tuple[Tensor | None, ...], attributes: tuple, outputs: int) -> Problem:
    return ops.canonical(op, tensors, dict(attributes), outputs)


class CallPlan:
    """``plan = quatrefoil.plan(quatrefoil.conv2d, x, w, bias, stride=2)``; then ``plan(x)`` runs with the weights
    packed once.

    A call passes the inputs that are not parameters (weights and biases), in order: ``plan(x)`` for a convolution
    or a pool, ``plan(x, h0, c0)`` for an lstm that was planned with states. Arrays have to have the planned dtypes
    and shapes.
    """

    def __init__(self, call: Call, backend: str | None, tune: bool) -> None:
        problem = call.problem()
        spec = ops.SPECS[call.op]
        first = next(array for array in call.inputs if array is not None)
        name, why = chosen_backend(backend, first)
        self._house = backends.get(name)
        constants = {}
        for position in spec.parameters:
            if position < len(call.inputs) and call.inputs[position] is not None:
                if isinstance(call.inputs[position], Tensor):
                    raise QuatrefoilError(
                        f"{call.op}: {spec.input_names[position]} is only a type; a plan packs its weights, so give the array"
                    )
                # a copy, so that changing the array later never changes what the plan computes
                constants[position] = bring(self._house, call.inputs[position]).copy()
        known = all(array is None or not isinstance(array, Tensor) for array in call.inputs)
        samples = [None if a is None else bring(self._house, a) for a in call.inputs] if known and tune else None
        self._plan = plan_problem(problem, constants, name, tune=tune, samples=samples, why_backend=why)
        self._varying = [
            position
            for position, tensor in enumerate(problem.inputs)
            if tensor is not None and position not in spec.parameters
        ]
        self._count = len(problem.inputs)
        self._finish = call.finish
        whole = any(problem.input(position).numpy_dtype.kind in "iu" for position in self._varying)
        # it checks lengths, indices and ranges
        self._validate = spec.validate if whole and not spec.unrestricted(problem) else None
        self._direct: DirectRun | None = None
        if isinstance(self._house, RunsDirectly) and self._validate is None:
            self._direct = self._house.direct(self._plan.run, problem, self._varying)
        self.problem = problem

    @property
    def kernel(self) -> Kernel:
        return self._plan.kernel

    @property
    def backend(self) -> str:
        return self._plan.backend

    @property
    def selection(self) -> Selection:
        return self._plan.selection

    def __call__(self, *inputs: Any) -> Any:
        """Run on new inputs. Raises OperatorError for arrays of another dtype or shape than planned."""
        direct, finish = self._direct, self._finish  # as locals: to call an attribute looks for a method first
        if direct is not None:
            outputs = direct(inputs)
            if outputs is not None:
                # what most do, without a call
                return outputs[0] if finish is FIRST else outputs if finish is tuple else finish(outputs)
        return self._checked(inputs)

    def _checked(self, inputs: tuple[Any, ...]) -> Any:
        """The call in full: what is wrong with the inputs, or the inputs brought to the backend and back."""
        if len(inputs) != len(self._varying):
            names = [ops.SPECS[self.problem.op].input_names[i] for i in self._varying]
            raise OperatorError(
                self.problem.op, "the number of inputs", len(inputs), f"this plan takes {', '.join(names)}"
            )
        positional: list[Any] = [None] * self._count
        for position, array in zip(self._varying, inputs):
            tensor = self.problem.input(position)
            if Tensor.of(array) != tensor:
                name = ops.SPECS[self.problem.op].input_names[position]
                raise OperatorError(
                    self.problem.op, name, Tensor.of(array), f"this plan was made for {tensor}; make another plan"
                )
            positional[position] = bring(self._house, array)
        if self._validate is not None:
            self._validate(self.problem, positional)
        return returned(self._house, self._plan.run(positional), inputs[0], self._finish)

    def __repr__(self) -> str:
        return f"plan({self.problem.text!r}, kernel={self.kernel.id!r})"


def call(request: Call, backend: str | None = None, tune: bool = False) -> Any:
    """Run a call once."""
    return run(request.problem(), request.inputs, request.finish, backend, tune)


def run(
    problem: Problem,
    given: Sequence[Any],
    finish: Callable[[tuple[Any, ...]], Any] = tuple,
    backend: str | None = None,
    tune: bool = False,
) -> Any:
    """Run a problem once on arrays of any library and home; gives what ``finish`` makes of all its outputs."""
    first = next(array for array in given if array is not None)
    if isinstance(first, Tensor):
        raise QuatrefoilError(f"{problem.op}: a type alone cannot be computed with; give an array")
    name, why = chosen_backend(backend, first)
    house = backends.get(name)
    if not house.probe().ready:
        return select(problem, name, why).chosen  # raises, with what would add the backend
    given = given[: len(problem.inputs)]
    if is_home(house, given):
        return finish(run_problem(problem, given, name, tune=tune, why_backend=why))
    inputs = [None if array is None else bring(house, array) for array in given]
    return returned(house, run_problem(problem, inputs, name, tune=tune, why_backend=why), first, finish)


def run_problem(
    problem: Problem,
    inputs: Sequence[Array | None],
    backend: str,
    *,
    tune: bool = False,
    why_backend: str = "asked for",
) -> tuple[Array, ...]:
    """Run a problem once on inputs in the backend's home, C-contiguous; gives all outputs, there too."""
    house = backends.get(backend)
    if not tune and _runs_directly(house):
        settled = (house.device(), settings.num_threads(), settings.cache_folder(), autotune.revision())
        return _bound(problem, backend, why_backend, settings.forced_kernel(), settled)(inputs)
    spec = ops.SPECS[problem.op]
    if spec.validate is not None:
        spec.validate(problem, inputs)
    constants = _constants(problem, inputs)
    return plan_problem(problem, constants, backend, tune=tune, samples=inputs, why_backend=why_backend).run(inputs)


def _constants(problem: Problem, inputs: Sequence[Array | None]) -> dict[int, Array]:
    """Those of a problem's inputs that a kernel is prepared with."""
    places = ops.SPECS[problem.op].parameters
    return {i: inputs[i] for i in places if i < len(inputs) and inputs[i] is not None}


@lru_cache(maxsize=64)
def _runs_directly(house: Backend) -> bool:
    """Kept, because to hold an object to a protocol takes as long as a small kernel."""
    return isinstance(house, RunsDirectly)


@lru_cache(maxsize=4096)
def _bound(
    problem: Problem, backend: str, why_backend: str, forced: str | None, settled: tuple[object, ...]
) -> Callable[[Sequence[Array | None]], tuple[Array, ...]]:
    """What runs a problem once, for as long as nothing that it depends on changes: where calls are short, to find the kernel
    takes longer than running it. Without parameters the plan is kept, too. (``forced`` and ``settled`` are only keys.)"""
    validate = ops.SPECS[problem.op].validate
    if not any(problem.has(position) for position in ops.SPECS[problem.op].parameters):
        plain = plan_problem(problem, {}, backend, why_backend=why_backend).run
    elif layouts.turned(problem):

        def plain(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
            return plan_problem(problem, _constants(problem, inputs), backend, why_backend=why_backend).run(inputs)

    else:
        prepare = select(problem, backend, why_backend).chosen.prepare

        def plain(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
            return prepare(problem, _constants(problem, inputs))(inputs)

    if validate is None:
        return plain

    def checked(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        validate(problem, inputs)
        return plain(inputs)

    return checked


def is_home(house: Backend, given: Sequence[Any]) -> bool:
    """Whether arrays can be used as they are, and results given back so: all are NumPy's, in order and on a backend of NumPy's
    arrays. To bring each of them takes as long as a small kernel."""
    return _of_numpy(house) and all(
        array is None or (type(array) is np.ndarray and array.flags.c_contiguous and array.dtype.isnative)
        for array in given
    )


@lru_cache(maxsize=64)
def _of_numpy(house: Backend) -> bool:
    return house.owns(np.empty(0))


def bring(house: Backend, array: Any) -> Array:
    """An array in the backend's home, C-contiguous. Copies between devices only because a backend was asked for."""
    if house.owns(array):
        native = arrays.to_host(array) if isinstance(array, np.ndarray) else array
    elif arrays.home(array) == "cpu":
        native = house.put(np.ascontiguousarray(arrays.to_host(array)).reshape(array.shape))
    else:
        native = house.put(backends.get("gpu").get(array))
    return _contiguous(native)


def returned(house: Backend, outputs: tuple[Array, ...], like: Any, finish: Callable[[tuple[Any, ...]], Any]) -> Any:
    """Outputs in the caller's library and home."""
    if arrays.is_numpy(like) or (arrays.home(like) == "cpu" and not house.owns(like)):
        outputs = tuple(house.get(array) for array in outputs)
    restore = arrays.restorer(like)
    return finish(tuple(restore(array) for array in outputs))
