"""Operators with compressed weights (kernels/ops/compressed.py) on the array: the base operator's product with the decoded
weights.

How the weights lie in the chip's memories, and what is skipped, follows from their numbers (compression.py) and not from the
operator: dense weights with the same numbers cost the same. Without numbers the types say how many are stored, or how long
the codebook is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quatrefoil.asic_sim import conv, rnn
from quatrefoil.asic_sim.compression import UNKNOWN, Numbers, known
from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.simulation import ArrayPart, Compute, Setting, VectorPart, run_simulated
from quatrefoil.ops import compressed
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Kernel, Reject, Run

BASES = {kernel.op: kernel for kernel in (*conv.KERNELS, *rnn.KERNELS)}
COMPUTING = {"conv": conv.computing_float, **dict.fromkeys(rnn.LOWERINGS, rnn.computing)}
LAYOUTS = {"conv": "nchw", **dict.fromkeys(rnn.LOWERINGS, "tnc")}


def lower(problem: Problem, design: Hardware, setting: Setting) -> Sequence[ArrayPart | VectorPart]:
    base = compressed.base(problem)
    lowering = conv.lower if base.op == "conv" else rnn.lower
    return lowering(base, design, setting)


def _kernel(form: compressed.Form) -> Kernel:
    base = BASES[form.base.op]
    name = f"{form.op}_systolic_{LAYOUTS[base.op]}_f32_asic"

    def accepts(problem: Problem) -> Reject | None:
        return base.accepts(compressed.base(problem))

    def prepare(problem: Problem, parameters: Mapping[int, Array]) -> Run:
        dense = compressed.decoded(problem, parameters)
        compute: Compute = COMPUTING[base.op](compressed.base(problem), dense)

        def numbers(design: Hardware, inputs: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
            return compute(design, compressed.base_inputs(problem, inputs))

        weights = {weight.position: dense[weight.position] for weight in form.weights}
        return run_simulated(name, problem, lower, numbers, weights)

    return Kernel(name, form.op, accepts, prepare, summary=f"{base.summary}; weights decoded at the array's edge")


def numbers_of(problem: Problem, constants: Mapping[int, np.ndarray]) -> Numbers:
    """What a design may have to know of the weights of any operator on the array. constants: its inputs that never change."""
    if problem.op in compressed.FORMS:
        form = compressed.FORMS[problem.op]
        if all(place in constants for weight in form.weights for place in form.places[weight.position]):
            dense = compressed.decoded(problem, constants)
            return known({weight.position: dense[weight.position] for weight in form.weights})
    elif problem.op in conv.WEIGHTS:
        position, zero_point = conv.WEIGHTS[problem.op], conv.ZERO_POINTS.get(problem.op)
        fixed = zero_point is None or not problem.has(zero_point) or zero_point in constants
        if position in constants and fixed:
            w = constants[position]
            return known({position: w if zero_point is None else conv.centred(w, constants.get(zero_point), True)})
    elif problem.op in rnn.LOWERINGS and constants.keys() >= rnn.WEIGHTS:
        return known({position: constants[position] for position in rnn.WEIGHTS})
    return UNKNOWN


KERNELS = tuple(_kernel(form) for form in compressed.FORMS.values())

LOWERINGS = dict.fromkeys(compressed.FORMS, lower)
