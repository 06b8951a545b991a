"""The recurrent kernel of the FPGA backend: rnn, lstm and gru with every option, states and gates on the chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quatrefoil.fpga import opencl
from quatrefoil.fpga.limits import HIDDEN_LIMIT, unsuited
from quatrefoil.ops import rnn as semantics
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

SMALLEST_CAPACITY = 64
FUNCTIONS = 3


def accepts(problem: Problem) -> Reject | None:
    rejected = unsuited(problem)
    if rejected is not None:
        return rejected
    hidden = problem.integer("hidden_size")
    if hidden > HIDDEN_LIMIT:
        return Reject(f"hidden_size is {hidden}; the gates of up to {HIDDEN_LIMIT} stay on the chip")
    return None


def capacity(hidden: int) -> int:
    """The next power of two, so that few programs serve all hidden sizes."""
    return max(SMALLEST_CAPACITY, 1 << (hidden - 1).bit_length())


def empty(problem: Problem) -> Run:
    """No sequences: nothing reaches the device."""
    return lambda inputs: tuple(np.zeros(tensor.shape, tensor.numpy_dtype) for tensor in problem.outputs)


def no_steps(problem: Problem) -> Run:
    """No steps: the final states are the initial ones."""

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        given = [*inputs, *[None] * (8 - len(inputs))]
        states = (given[semantics.INITIAL_H], given[semantics.INITIAL_C])
        y, *finals = problem.outputs
        return (
            np.zeros(y.shape, y.numpy_dtype),
            *(
                np.zeros(final.shape, final.numpy_dtype) if state is None else np.array(state)
                for final, state in zip(finals, states)
            ),
        )

    return run


def prepare(problem: Problem, parameters: Mapping[int, Array]) -> Run:
    g = semantics.geometry(problem)
    if g.batch == 0:
        return empty(problem)
    if g.steps == 0:
        return no_steps(problem)
    runtime = opencl.runtime()
    program = runtime.program("recurrent", {"GATES": g.gates, "CAPACITY": capacity(g.hidden)})
    b, p = parameters.get(semantics.B), parameters.get(semantics.P)
    codes = np.zeros((g.directions, FUNCTIONS), np.int32)
    slopes = np.zeros((g.directions, FUNCTIONS, 2), np.float32)
    for direction, functions in enumerate(g.activations):
        for position, function in enumerate(functions):
            codes[direction, position] = function.code
            slopes[direction, position] = function.alpha, function.beta
    reverse = (*g.reverse, False)[:2]
    sizes = (g.steps, g.batch, g.inputs, g.hidden, g.directions, *reverse, g.linear_before_reset, g.input_forget)
    weights, recurrent_weights = (
        runtime.upload(parameters[position].swapaxes(1, 2)) for position in (semantics.W, semantics.R)
    )
    bias = runtime.upload(np.zeros((g.directions, 2 * g.gates * g.hidden), np.float32) if b is None else b)
    peepholes = None if p is None else runtime.upload(p)
    given_sizes, given_codes, parameters_of_codes = (
        runtime.upload(table) for table in (np.array(sizes, np.int32), codes, slopes)
    )

    def run(inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        given = [*inputs, *[None] * (8 - len(inputs))]
        varying = [given[i] for i in (semantics.LENGTHS, semantics.INITIAL_H, semantics.INITIAL_C)]
        return program(
            (
                given[semantics.X],
                weights,
                recurrent_weights,
                bias,
                *varying,
                given_sizes,
                given_codes,
                peepholes,
                parameters_of_codes,
                np.float32(g.clip),
            ),
            problem.outputs,
        )

    return run


KERNELS = tuple(
    Kernel(
        f"{op}_step_tnc_f32_opencl", op, accepts, prepare,
        summary="gates and states on the chip, transposed weights streamed once a step",
    )
    for op in semantics.GATES
)  # fmt: skip
