"""A contender in a process of its own, pinned to its cores: prepares a task, runs it so often on the inputs that it is told
to, and says how long it took and what came of the last call.

A process of its own keeps the libraries' threads, allocators and crashes apart. The parent talks to it over a pipe;
when it dies, that is a sentence, and the next task starts another.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np

from quatrefoil.bench import contenders
from quatrefoil.bench.peers import SILENCED, Prepared
from quatrefoil.bench.records import Chosen, Simulated
from quatrefoil.bench.tasks import Task
from quatrefoil.bench.timing import Stretch, clocked
from quatrefoil.registry import Reject

PATIENCE = 300.0
"""Seconds after which a contender that does not answer is ended."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Ready:
    """What a contender said of a task that it took, and what it gave."""

    description: str
    device: str
    simulated: Simulated | None
    outputs: list[np.ndarray | None]
    refills: bool
    """Whether it can be given fresh inputs."""
    chosen: Chosen | None


def ready(prepared: Prepared) -> Ready:
    """Runs once, for the outputs."""
    outputs = prepared.outputs(prepared.run())
    refills = prepared.refill is not None
    return Ready(prepared.description, prepared.device, prepared.simulated, outputs, refills, prepared.chosen)


class Worker:
    """The parent's end."""

    def __init__(
        self, contender: str, threads: int, cores: Collection[int], cold: bool = False, path: str | None = None
    ) -> None:
        """cold: caches are flushed before each timed call. path: where another quatrefoil is imported from."""
        self.contender = contender
        self.threads = threads
        self.cores = cores
        self.cold = cold
        self.path = path
        self.lost: Reject | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._errors: IO[bytes] | None = None

    def prepare(self, task: Task) -> Ready | Reject:
        """The task made ready and run once."""
        answer = self._ask("prepare", replace(task))  # without what it has made up so far
        assert isinstance(answer, Ready | Reject)
        return answer

    def time(self, calls: int) -> Stretch | None:
        """So many calls in a row; None, with the reason in ``lost``, when the process died over them."""
        answer = self._ask("time", calls)
        if isinstance(answer, Stretch):
            # an earlier checkout's has no device
            return answer if hasattr(answer, "device") else Stretch(answer.seconds, answer.processor)
        self.lost = answer
        return None

    def refill(self, number: int) -> None:
        """Brings the task's own inputs (0), or fresh ones, to where each run reads them."""
        self._ask("refill", number)

    def outputs(self) -> list[np.ndarray | None] | None:
        """What came of the last call; None, with the reason in ``lost``, when the process died."""
        answer = self._ask("outputs", None)
        if isinstance(answer, Reject):
            self.lost = answer
            return None
        outputs: list[np.ndarray | None] = answer
        return outputs

    def drop(self) -> None:
        """Forget the task, with its memory."""
        self._ask("drop", None)

    def close(self) -> None:
        """Ends the process."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.wait()
        if self._errors is not None:
            self._errors.close()
        self._process = self._pipe = self._errors = None

    def _ask(self, what: str, of: object) -> Any:
        if self._process is None:
            self._start()
        assert self._pipe is not None and self._process is not None
        try:
            self._pipe.send((what, of))
            if not self._pipe.poll(PATIENCE):
                self._process.kill()
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.wait()
            code = self._process.returncode
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            assert self._errors is not None
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            self.close()
            return Reject(f"its process died ({how}){f': {said[-1][:200]}' if said else ''}")

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(self.threads))}
        if self.path is not None:
            environment["PYTHONPATH"] = os.pathsep.join([self.path, *filter(None, [environment.get("PYTHONPATH")])])
        call = f"main({theirs.fileno()}, {self.contender!r}, {self.threads}, {list(self.cores)}, {self.cold})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from quatrefoil.bench.worker import main; {call}"],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )  # fmt: skip
        theirs.close()


def main(descriptor: int, name: str, threads: int, cores: Collection[int], cold: bool = False) -> None:
    """The child's end: answers until the pipe closes."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    for module in SILENCED:
        sys.modules[module] = None  # type: ignore[assignment]  # an import of it fails
    contender = contenders.get(name)
    course: Course | None = None
    gc.disable()
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError):
        while True:
            what, of = pipe.recv()
            if what == "prepare":
                course = None
                gc.collect()
                prepared = contender.prepare(of, threads)
                if isinstance(prepared, Reject):
                    pipe.send(prepared)
                    continue
                course = Course(of, prepared, cold)
                pipe.send(ready(prepared))
            elif what == "drop":
                course = None
                pipe.send(None)
            else:
                assert course is not None
                pipe.send(getattr(course, what)(of))


TURNS = (0, 1)
"""Inputs that rounds have by turns; those of other numbers are made up when they are asked for, and not kept."""

FLUSH_BYTES = 64 << 20
"""Written before each call on cold caches: beyond the second-level cache of any processor, not beyond the last-level one
of every server."""


class Course:
    """A prepared task, its inputs by turns, and the last result."""

    def __init__(self, task: Task, prepared: Prepared, cold: bool) -> None:
        self._task, self._prepared = task, prepared
        self._inputs: dict[int, list[np.ndarray]] = {}
        self._last: object = None
        self._device: float | None = None
        self._flush = np.zeros(FLUSH_BYTES // 8) if cold else None

    def time(self, calls: int) -> Stretch:
        """So many calls, timed together with the wait for a device that runs behind."""
        if self._flush is None:
            return self._timed(calls)
        seconds = processor = 0.0
        device: float | None = None
        for _ in range(calls):
            self._flush += 1.0
            stretch = self._timed(1)
            seconds, processor = seconds + stretch.seconds, processor + stretch.processor
            device = None if stretch.device is None else (device or 0.0) + stretch.device
        return Stretch(seconds, processor, device)

    def _timed(self, calls: int) -> Stretch:
        self._device = None
        return replace(clocked(self._work)(calls), device=self._device)

    def _work(self, calls: int) -> None:
        run, wait, by_device = self._prepared.run, self._prepared.wait, self._prepared.device_seconds

        def runs() -> None:
            for _ in range(calls):
                self._last = None  # the next call may take its memory, as bound outputs are written over
                self._last = run()

        if by_device is None:
            runs()
        else:
            self._device = by_device(runs)
        if wait is not None:
            wait(self._last)

    def refill(self, number: int) -> None:
        inputs = self._inputs.get(number)
        if inputs is None:
            inputs = self._task.fresh(number).varying
            if number in TURNS:
                self._inputs[number] = inputs
        assert self._prepared.refill is not None
        self._prepared.refill(inputs)

    def outputs(self, _: None) -> list[np.ndarray | None]:
        return self._prepared.outputs(self._last)
