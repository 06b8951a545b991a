"""Other people's runtimes as contenders: the same task, the same arrays, the same number of threads.

A peer gets its weights as constants, so that it packs them once as our plans do, and its inputs and outputs bound
ahead where it can, which is its fastest way of being called; our plans allocate their outputs in each call.

Another package adds a peer by an entry point in the group ``quatrefoil.peers`` that names an object satisfying
``Peer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from importlib import import_module, metadata, util
from typing import Any, Protocol

import numpy as np

from quatrefoil.bench.records import Chosen, Simulated
from quatrefoil.bench.tasks import Task
from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops import conv
from quatrefoil.registry import Availability, Reject

INSTALL = "pip install 'quatrefoil[peers]'"

SILENCED = ("openvino_telemetry", "aliyun", "aliyun.log", "MNN.tools.utils.log")
"""Modules by which peers report their use to their makers; MNN's installs packages by itself too. They are kept from
being imported in a contender's process."""


Refill = Callable[[Sequence[np.ndarray]], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A contender ready for one task.

    description  the kernel's id, or what the peer runs
    run          does the work once; what it returns is for ``outputs``
    outputs      the model's outputs in order, as plain arrays, from what the last ``run`` returned; None where the
                 peer does not give one
    device       what it runs on, where that is not plain
    wait         waits for a device that runs behind, given what ``run`` returned
    simulated    what one run takes on a simulated chip; such a contender is not timed
    refill       takes other arrays of the same types in the task's order (``Task.varying``) and brings them to where the
                 next run reads its inputs; never timed. None where the contender can take no other inputs
    device_seconds  calls what it is given and says how long the device was at it, by its own clock; None where a call's time
                 is that
    chosen       of ours: which kernel, why it, its version, and the instruction set or device code that it runs as
    """

    description: str
    run: Callable[[], object]
    outputs: Callable[[object], list[np.ndarray | None]]
    device: str = ""
    wait: Callable[[object], object] | None = None
    simulated: Simulated | None = None
    refill: Refill | None = None
    device_seconds: Callable[[Callable[[], object]], float] | None = None
    chosen: Chosen | None = None


Prepare = Callable[[Any, Task, int], Prepared | Reject]


def on_planes(prepare: Prepare) -> Prepare:
    """The ``prepare`` of a peer that is given a convolution with channels last as one on planes, and brings arrays to where it
    likes them. They are turned outside of what is timed."""

    @wraps(prepare)
    def prepared(peer: Any, task: Task, threads: int) -> Prepared | Reject:
        made = prepare(peer, task.on_planes, threads)
        if task.on_planes is task or isinstance(made, Reject):
            return made
        outputs, refill = made.outputs, made.refill

        def turned(results: object) -> list[np.ndarray | None]:
            return [None if y is None else contiguous(conv.pixels_of(y)) for y in outputs(results)]

        def refilled(inputs: Sequence[np.ndarray]) -> None:
            assert refill is not None
            refill([conv.planes_of(x) for x in inputs])

        return replace(made, outputs=turned, refill=None if refill is None else refilled)

    return prepared


class Peer(Protocol):
    """Somebody else's runtime.

    ``name`` is what people call it by; ``title`` says in a few words what it is and how it is called; ``timed`` says, as the
    rest of a sentence, what of moving inputs and outputs is inside the timed region.
    """

    name: str
    title: str
    timed: str

    def probe(self) -> Availability:
        """Whether it is installed. Imports nothing."""

    def prepare(self, task: Task, threads: int) -> Prepared | Reject:
        """The task made ready, or why the peer does not take it."""


MODULES: Mapping[str, str] = {
    "ort": "ort",
    "torch": "pytorch",
    "torch_cl": "pytorch",
    "torch_pre": "pytorch",
    "openvino": "openvino",
    "mnn": "mnn",
    "ncnn": "ncnn",
    "litert": "litert",
}
"""The module of each peer that comes with quatrefoil."""

ENTRY_POINTS = "quatrefoil.peers"


@cache
def get(name: str) -> Peer:
    """The peer of that name. Raises QuatrefoilError, with the known names, when there is none."""
    if name in MODULES:
        module = import_module(f"quatrefoil.bench.peers.{MODULES[name]}")
        found: Mapping[str, Peer] = {peer.name: peer for peer in module.PEERS}
        return found[name]
    added = _entry_points()
    if name in added:
        loaded: Peer = added[name].load()
        return loaded
    raise QuatrefoilError(f"there is no peer {name!r}; known are {', '.join(names())}")


def names() -> tuple[str, ...]:
    """The peers that come with quatrefoil, then those that other packages add."""
    return (*MODULES, *(name for name in _entry_points() if name not in MODULES))


@cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}


@dataclass(frozen=True, slots=True)
class Package:
    """The distribution that a peer needs: the modules to look for, and its name where versions are asked."""

    distribution: str
    modules: tuple[str, ...] = field(default=())

    def probe(self) -> Availability:
        for module in self.modules or (self.distribution,):
            if util.find_spec(module) is None:
                return Availability(False, f"{module} is not installed", INSTALL)
        return Availability(True, f"{self.distribution} {metadata.version(self.distribution)}")


CACHE_LINE = 64


def contiguous(array: np.ndarray) -> np.ndarray:
    """A copy of the array, C-contiguous and writeable, a scalar staying one: some runtimes refuse views and read-only memory.

    It begins with a cache line, as the tensors do that runtimes allocate themselves, so that no contender's inputs lie better
    than another's.
    """
    room = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    begin = -room.ctypes.data % CACHE_LINE
    placed = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed


def into(arrays: Iterable[np.ndarray]) -> Refill:
    """For a contender that reads its inputs from these arrays in every run."""
    places = tuple(arrays)

    def refill(inputs: Sequence[np.ndarray]) -> None:
        for place, values in zip(places, inputs, strict=True):
            np.copyto(place, values)

    return refill


def first_line(error: BaseException) -> str:
    """The first line that an error says, past those that only say where it was; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.endswith(":")), type(error).__name__)[:200]
