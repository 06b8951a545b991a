"""The backend ``asic``: its kernels, and timing without arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from quatrefoil.asic_sim import compressed, conv, fixed, hardware, pool, rnn, sparse
from quatrefoil.asic_sim.compression import UNKNOWN, stated
from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.asic_sim.mapping import ANY, Mapping
from quatrefoil.asic_sim.simulation import (
    FormatError,
    Lowering,
    Setting,
    SimulationReport,
    native,
    timed,
)
from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops import layouts
from quatrefoil.problem import Problem
from quatrefoil.registry import Array, Availability, Kernel
from quatrefoil.widening import with_float16

FLOATS = (*conv.KERNELS, *pool.KERNELS, *rnn.KERNELS)
KERNELS = (*with_float16(FLOATS, "asic"), *fixed.KERNELS, *sparse.KERNELS, *compressed.KERNELS)

LOWERINGS: dict[str, Lowering] = {
    **conv.LOWERINGS,
    **pool.LOWERINGS,
    **rnn.LOWERINGS,
    **fixed.LOWERINGS,
    **sparse.LOWERINGS,
    **compressed.LOWERINGS,
}
BUILD = "pip install -e . (or python setup.py build_ext --inplace --only asic_sim)"


class AsicBackend:
    """A simulated chip: numbers as its array computes them, cycles as its timing counts them."""

    name = "asic"
    simulated = True

    @property
    def timing_note(self) -> str:
        design = hardware.current()
        return f"simulated: cycles of {design.name} at {design.clock_mhz:g} MHz"

    def probe(self) -> Availability:
        try:
            native()
            design = hardware.current()
        except ImportError as error:
            return Availability(False, f"the simulator is not built ({error})", BUILD)
        except hardware.DesignError as error:
            return Availability(False, str(error), f"export {hardware.DESIGN_VARIABLE}={hardware.DEFAULT_DESIGN}")
        return Availability(True, f"simulated {design}")

    def kernels(self) -> Sequence[Kernel]:
        return KERNELS

    def device(self) -> str:
        return f"simulated systolic array {hardware.current()}"

    def owns(self, array: object) -> bool:
        return isinstance(array, np.ndarray)

    def put(self, array: np.ndarray) -> Array:
        return array

    def get(self, array: Array) -> np.ndarray:
        return np.asarray(array)


def simulate(
    problem: Problem,
    design: str | os.PathLike[str] | Hardware | None = None,
    as_format: str | None = None,
    mapping: Mapping = ANY,
) -> SimulationReport:
    """The cycles of a problem on a design (a name, a path or a ``Hardware``; by default the one in use), without arrays.

    as_format: the format for which floats are taken, as if they had been quantised. mapping: how its work is cut for the
    array; what is left open is searched. Raises QuatrefoilError for what the array does not compute, MappingError for what
    cannot be cut so, and DesignError for a design that is none.
    """
    if design is None:
        chip = hardware.current()
    else:
        chip = design if isinstance(design, Hardware) else hardware.load(design)
    try:
        return simulate_as(problem, chip, Setting.of_problem(problem, as_format, mapping=mapping))
    except FormatError as error:
        raise FormatError(f"asic: {problem.op}: {error}") from None


def simulate_as(problem: Problem, chip: Hardware, setting: Setting) -> SimulationReport:
    """The same, on the terms of a setting. Raises FormatError alone where the array does not multiply its format."""
    settled = layouts.plain(problem)
    for kernel in AsicBackend().kernels():
        if kernel.op == settled.op:
            reject = kernel.accepts(settled)
            if reject is not None:
                raise QuatrefoilError(f"asic: {problem.op}: {reject}")
            if settled.op in compressed.LOWERINGS and chip.compresses and setting.numbers == UNKNOWN:
                setting = replace(setting, numbers=stated(settled))
            return timed(LOWERINGS[settled.op], settled, chip, setting)
    raise QuatrefoilError(f"asic: there is no kernel for {problem.op}; known are {', '.join(LOWERINGS)}")
