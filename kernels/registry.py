"""What a kernel and a backend declare about themselves. Declaring loads nothing compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from quatrefoil.problem import Problem

Array = Any
"""An array in the backend's own home: numpy.ndarray for cpu, fpga and asic, cupy.ndarray for gpu."""

Run = Callable[[Sequence[Array | None]], tuple[Array, ...]]
"""Takes the problem's inputs in order (``None`` for absent ones), returns all its outputs, which nobody else holds.

Inputs arrive with the problem's dtypes and shapes, C-contiguous, possibly read-only; a run never writes to them.
Inputs that were given to ``prepare`` as parameters may be passed again and are then ignored.
A run may be called from several threads at once.
"""


@dataclass(frozen=True, slots=True)
class Reject:
    """Why a kernel does not take a problem, in a sentence."""

    why: str

    def __str__(self) -> str:
        return self.why


def only_dtypes(*dtypes: str) -> Callable[[Problem], Reject | None]:
    """An ``accepts`` that looks at the first input's dtype alone."""

    def accepts(problem: Problem) -> Reject | None:
        if problem.dtype not in dtypes:
            return Reject(f"it computes {' and '.join(dtypes)}, not {problem.dtype}")
        return None

    return accepts


PrepareBlocked = Callable[[Problem, Mapping[int, Array], bool, bool], Run]
"""As ``Kernel.prepare``, and whether x, and whether y (with the residual), hold channels in blocks. Quantised convolutions
have one block, channels last: (N, spatial, C)."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to compute one operator on one backend.

    id        ``<op>_<algorithm>_<layout>_<dtype>_<target>``, unique in the house
    op        the operator, as in ``Problem.op``
    accepts   ``None``, or the ``Reject`` that says why not; looks at the problem alone, loads nothing
    prepare   ``prepare(problem, parameters)`` packs what can be packed once and returns the ``Run``; ``parameters``
              maps input positions to arrays that stay the same for the life of the run. It always holds the inputs
              that the operator's spec names as ``parameters`` and that are present.
    version   raised when the numbers or the speed change, so that tuned choices are measured again
    summary   the algorithm in a few words, for people
    blocked   prepares a run that can read and write channels in blocks, so that neighbours in a sequence need no change
              of layout; None where it cannot
    beyond    why it may take less time than the operator's multiplications at the float32 peak; empty where it may not
    on_planes  for which problems it is so much faster than those on blocks that it comes before them although neighbours keep
               blocks; None for none
    in_python  its run is Python around another kernel's, so that it can stand in no native sequence
    """

    id: str
    op: str
    accepts: Callable[[Problem], Reject | None]
    prepare: Callable[[Problem, Mapping[int, Array]], Run]
    version: int = 1
    summary: str = ""
    blocked: PrepareBlocked | None = None
    beyond: str = ""
    on_planes: Callable[[Problem], bool] | None = None
    in_python: bool = False

    @property
    def layout(self) -> str:
        """How its arrays lie, as its id says it: nchw, nchwc, nhwc, tnc or any; empty where the id is of another form."""
        parts = self.id.rsplit("_", 3)
        return parts[1] if len(parts) == 4 else ""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend can run here: ``detail`` says what was found or what is missing, ``remedy`` is the one
    command that would add it (empty when ready, or when no command could)."""

    ready: bool
    detail: str
    remedy: str = ""


class Backend(Protocol):
    """A kind of silicon.

    ``simulated`` backends report cycles through ``report_cost`` and their wall time is not a result.
    ``timing_note`` says what a time measured on this backend means (empty when it is simply the device's time).
    """

    name: str
    simulated: bool
    timing_note: str

    def __hash__(self) -> int: ...

    def probe(self) -> Availability:
        """Look for the hardware and the software. Cheap after the first call; never raises."""

    def kernels(self) -> Sequence[Kernel]:
        """Every kernel, in order of priority, whether or not this machine can run it."""

    def device(self) -> str:
        """What would run, in words, for reports and tuning keys: processor and instruction set, card, platform."""

    def owns(self, array: object) -> bool:
        """Whether the array already lives where this backend's kernels want it."""

    def put(self, array: np.ndarray) -> Array:
        """A host array, brought to the device."""

    def get(self, array: Array) -> np.ndarray:
        """A device array, brought to the host. Waits until it is complete."""


DirectRun = Callable[[tuple[object, ...]], tuple[Array, ...] | None]
"""Takes the inputs of a plan's call; gives all outputs, or None where a run cannot take the inputs as they are."""


@runtime_checkable
class RunsDirectly(Protocol):
    """A backend that recognises, faster than dispatch does, inputs that need nothing done to them or to the outputs."""

    def direct(self, run: Run, problem: Problem, positions: Sequence[int]) -> DirectRun:
        """For calls that give the inputs at these positions of the problem, in this order."""


@runtime_checkable
class TimesDevice(Protocol):
    """A backend whose device has a clock. Where there is none, as on the CPU, a call's time is the device's."""

    def device_seconds(self, work: Callable[[], object]) -> float:
        """Calls ``work``, and gives the seconds by the device's clock from where its queue stood before to where what ``work``
        put there is done, idle time between two kernels included. Waits for it."""


@dataclass(frozen=True, slots=True)
class SimulatedCost:
    """What a simulated run took: cycles of the design's clock, and the counters behind them."""

    kernel: str
    design: str
    cycles: int
    clock_mhz: float
    macs: int = 0
    dram_bytes: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)

    @property
    def microseconds(self) -> float:
        return self.cycles / self.clock_mhz


_costs: ContextVar[list[SimulatedCost] | None] = ContextVar("quatrefoil_costs", default=None)


def report_cost(cost: SimulatedCost) -> None:
    """Called by a simulated kernel once for each run; kept if somebody listens with ``collect_costs``."""
    collected = _costs.get()
    if collected is not None:
        collected.append(cost)


@contextmanager
def collect_costs() -> Iterator[list[SimulatedCost]]:
    """Collects the costs that simulated kernels report inside the block."""
    collected: list[SimulatedCost] = []
    token = _costs.set(collected)
    try:
        yield collected
    finally:
        _costs.reset(token)
