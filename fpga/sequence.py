"""Sequences on the FPGA: operators in a row whose line buffers pass pixels on become one launch (streams.py).

A stream takes an operator in where dispatch chose its line-buffer kernel, nothing else reads what is between, and line
buffers and weights of all stages fit on the chip together. An activation behind a float convolution becomes its own; a
function of fixed-point values is a stage. What joins no neighbour runs on the kernel that dispatch chose, a float
activation on the host. Dense layers, which models hand over as convolutions of one pixel between two views, run on the
device so.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from quatrefoil import ops
from quatrefoil.fpga import conv, fixed, pool
from quatrefoil.fpga.limits import LINE_BUFFER_WORDS, WEIGHT_WORDS, line_buffer_words
from quatrefoil.fpga.streams import Stage, Stream, in_pixels, in_planes, pixels_type
from quatrefoil.ops import conv as conv_semantics
from quatrefoil.ops import pool as pool_semantics
from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Array
from quatrefoil.sequences import Elementwise, FixedElementwise, Joined, Operation, Plan, Step, View

STAGES: Mapping[str, Callable[[Problem, Mapping[int, Array]], Stage]] = {
    **{
        f"{op}_line_buffer_nhwc_{dtype}_opencl": conv.streamed
        for op, dtype in (("conv", "f32"), ("qlinear_conv", "i8"))
    },
    **{f"{op}_line_buffer_nchwc_any_opencl": pool.streamed for op in pool_semantics.WINDOW_OPS},
    "fixed_conv_line_buffer_nhwc_fixed_opencl": fixed.streamed_conv,
    "fixed_max_pool_line_buffer_nchwc_fixed_opencl": fixed.streamed_pool,
    "fixed_average_pool_line_buffer_nchwc_fixed_opencl": fixed.streamed_pool,
}
"""What makes a stage of an operator, by the id of the line-buffer kernel that dispatch has to have chosen."""

CONVOLUTIONS = ("conv", "qlinear_conv", "fixed_conv")


@dataclass(frozen=True)
class _Member:
    """An operator of a stream: its problem with the activations behind it, and the steps that it stands for."""

    problem: Problem
    operation: Operation
    steps: tuple[Step, ...]

    @property
    def residual(self) -> int | None:
        """The number of the value that is added."""
        inputs = self.steps[0].inputs
        added = self.problem.op == "conv" and self.problem.has(conv_semantics.RESIDUAL)
        return inputs[conv_semantics.RESIDUAL] if added else None

    @property
    def words(self) -> int:
        """Values in its line buffer, which holds pixels of all channels."""
        if self.problem.op in CONVOLUTIONS:
            g = conv_semantics.geometry(self.problem)
            return line_buffer_words(g.window, g.in_channels)
        return line_buffer_words(pool_semantics.geometry(self.problem).window, self.problem.input(0).shape[1])

    @property
    def weights(self) -> int:
        return self.problem.input(conv_semantics.W).size if self.problem.op in CONVOLUTIONS else 0

    @property
    def label(self) -> str:
        return self.problem.op

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self.problem.outputs

    def stage(self) -> Stage:
        return STAGES[self.operation.kernel.id](self.problem, self.operation.parameters)


@dataclass(frozen=True)
class _Function:
    """A function of fixed-point values in a stream."""

    form: FixedElementwise
    x: Tensor
    y: Tensor
    steps: tuple[Step, ...]
    residual: None = None
    words: int = 0
    label: str = "fixed_function"

    @property
    def weights(self) -> int:
        """Entries of its table."""
        return 0 if self.form.table is None else self.form.table.size

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return (self.y,)

    def stage(self) -> Stage:
        return fixed.streamed_function(self.form, self.x, self.y)


Stages: TypeAlias = list[_Member | _Function]
Group: TypeAlias = Stages | Step


def _groups(plan: Plan) -> list[Group]:
    """The plan's steps in an order that can run: streams of operators, and views and activations that joined none."""
    reads = Counter(value for step in plan.steps for value in step.inputs if value is not None)
    reads.update(plan.outputs)
    groups: list[Group] = []
    ends: dict[int, Stages] = {}
    """The streams that may go on, by their last values."""
    for step in plan.steps:
        x = step.inputs[0]
        before = ends.get(x) if x is not None and reads[x] == 1 else None
        alone = _member(step, plan.types)
        grown = None if before is None else _joined(before, step, alone)
        if grown is not None and before is not None:
            before.clear()  # it stands where its last step stands, and everything that it reads is there
        elif alone is not None:
            grown = [alone]
        else:
            groups.append(step)
            continue
        groups.append(grown)
        if len(grown[-1].outputs) == 1:
            ends[step.outputs[0]] = grown
    return [group for group in groups if group]


def _member(step: Step, types: Mapping[int, Tensor]) -> _Member | _Function | None:
    """What a step is in a stream; None where it is no stage of its own."""
    x = step.inputs[0]
    match step.form:
        case Operation(problem=problem):
            return _Member(problem, step.form, (step,))
        case FixedElementwise(function=function) if function in fixed.FUNCTIONS:
            assert x is not None
            return _Function(step.form, types[x], types[step.outputs[0]], (step,))
        case _:
            return None


def _joined(stream: Stages, step: Step, alone: _Member | _Function | None) -> Stages | None:
    """The stream with a step at its end, whose stage is ``alone``; None where it cannot take it in."""
    if alone is not None:
        grown: Stages = [*stream, alone]
        words, weights = (sum(map(count, grown)) for count in (lambda m: m.words, lambda m: m.weights))
        return grown if words <= LINE_BUFFER_WORDS and weights <= WEIGHT_WORDS else None
    *others, last = stream
    if not isinstance(last, _Member):
        return None
    problem = last.problem
    if (
        not isinstance(step.form, Elementwise)
        or problem.op != "conv"
        or conv_semantics.fused_activation(problem) != IDENTITY
    ):
        return None
    attributes = {**dict(problem.attributes), "activation": step.form.activation.text}
    active = ops.canonical(problem.op, problem.inputs, attributes)
    return [*others, _Member(active, last.operation, (*last.steps, step))]


def _dense(problem: Problem) -> bool:
    """Whether it is a convolution of single pixels."""
    return problem.op == "conv" and conv_semantics.geometry(problem).window.input_size == 1


def _alone(group: Group) -> bool:
    return isinstance(group, Step) or sum(len(member.steps) for member in group) == 1


def _stream_id(stream: Stages) -> str:
    first = stream[0]
    dtype = first.operation.kernel.id.rsplit("_", 2)[1] if isinstance(first, _Member) else "fixed"
    return f"{'+'.join(member.label for member in stream)}_stream_nhwc_{dtype}_opencl"


class FpgaSequencer:
    name = "fpga sequence"

    def takes(self, step: Step, types: Mapping[int, Tensor]) -> bool:
        match step.form:
            case Operation(problem=problem, kernel=kernel):
                return kernel.id in STAGES or _dense(problem)
            case View() | FixedElementwise(function="check"):
                return True
            case FixedElementwise(function=function):
                given = [types[value] for value in (*step.inputs, *step.outputs) if value is not None]
                integers = all(t.dtype in ("int16", "int32") for t in given)
                return function in fixed.FUNCTIONS and given[0].rank > 2 and integers
            case Elementwise("copy", activation):
                x = types[step.outputs[0]]
                return activation != IDENTITY and x.dtype == "float32" and x.rank > 2
            case _:
                return False

    def prepare(self, plan: Plan) -> PreparedStreams:
        return PreparedStreams(plan)

    def joined(self, plan: Plan) -> dict[str, Joined]:
        found: dict[str, Joined] = {}
        viewed = {step.node for step in plan.steps if isinstance(step.form, View)}
        for group in _groups(plan):
            if isinstance(group, Step):
                view = isinstance(group.form, View)
                why = "a view: nothing is moved" if view else "no float convolution before it takes it in"
                if not isinstance(group.form, FixedElementwise):
                    found.setdefault(group.node, Joined("", "numpy", why))
            elif _alone(group) and isinstance(group[0], _Function):
                found[group[0].steps[0].node] = Joined("fpga", _stream_id(group), "a stream of its own", "nhwc")
            elif _alone(group) and isinstance(group[0], _Member):
                kernel, node = group[0].operation.kernel, group[0].steps[0].node
                if node in viewed:
                    found[node] = Joined("fpga", kernel.id, "as a convolution of one pixel", kernel.layout)
            else:
                nodes = dict.fromkeys(step.node for member in group for step in member.steps)
                why = f"one launch for {', '.join(nodes)}: each chose its line buffer, and nothing else reads between them"
                found |= dict.fromkeys(nodes, Joined("fpga", _stream_id(group), why, "nhwc"))
        return found


Values = dict[int, Any]


class PreparedStreams:
    """A plan with its streams built and its kernels prepared."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._work = [(_prepared(group, plan.types), _node(group)) for group in _groups(plan)]

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        return self._run(inputs, {})

    def timed(self, inputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray] | None, dict[str, float]]:
        """A stream's time is its first node's."""
        seconds: dict[str, float] = {}
        return self._run(inputs, seconds), seconds

    def _run(self, inputs: Sequence[np.ndarray], seconds: dict[str, float]) -> list[np.ndarray] | None:
        values: Values = {**self._plan.constants, **dict(zip(self._plan.inputs, inputs))}
        for run, node in self._work:
            start = time.perf_counter()
            if run(values) is False:
                return None
            seconds[node] = seconds.get(node, 0.0) + time.perf_counter() - start
        # new arrays, though a view of an input may be an output
        return [
            values[number] if values[number].base is None else values[number].copy() for number in self._plan.outputs
        ]


def _node(group: Group) -> str:
    return group.node if isinstance(group, Step) else group[0].steps[0].node


def _prepared(group: Group, types: Mapping[int, Tensor]) -> Callable[[Values], bool | None]:
    """What computes a group's last values from those that it reads; False where it refuses one."""
    if isinstance(group, Step):
        return _on_host(group, types)
    step = group[-1].steps[-1]
    if _alone(group) and isinstance(member := group[0], _Member):
        kernel_run = member.operation.kernel.prepare(member.problem, member.operation.parameters)

        def run(values: Values) -> None:
            given = [None if number is None else values[number] for number in step.inputs]
            values.update(zip(step.outputs, kernel_run(given)))

        return run
    outputs = group[-1].outputs
    if outputs[0].size == 0:
        return lambda values: values.update(
            (number, np.empty(y.shape, y.numpy_dtype)) for number, y in zip(step.outputs, outputs)
        )
    stream = Stream([member.stage() for member in group])
    source, residuals = group[0].steps[0].inputs[0], [member.residual for member in group]
    given_types = [pixels_type(y) for y in outputs]
    assert source is not None

    def run_stream(values: Values) -> None:
        added = [None if number is None else in_pixels(values[number]) for number in residuals]
        results = stream(in_pixels(values[source]), added, given_types)
        values.update((number, in_planes(result)) for number, result in zip(step.outputs, results))

    return run_stream


def _on_host(step: Step, types: Mapping[int, Tensor]) -> Callable[[Values], bool | None]:
    """What runs a view, an activation or a check."""
    form, [x, *_], [y] = step.form, step.inputs, step.outputs
    assert x is not None
    if isinstance(form, Elementwise):
        function: Activation = form.activation

        def activate(values: Values) -> None:
            values[y] = function(values[x])

        return activate
    if isinstance(form, FixedElementwise):
        low, high = form.low, form.high

        def check(values: Values) -> bool:
            values[y] = given = values[x]
            return given.size == 0 or bool(given.min() >= low and given.max() <= high)

        return check
    assert isinstance(form, View)
    begin, shape, size = form.offset, types[y].shape, types[y].size

    def view(values: Values) -> None:
        values[y] = values[x].reshape(-1)[begin : begin + size].reshape(shape)

    return view
