"""A contender in a process of its own, pinned to its cores: prepares a task, runs it so often, and says how long it took.

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
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np

from quatrefoil.bench import contenders
from quatrefoil.bench.peers import SILENCED, Prepared
from quatrefoil.bench.records import Simulated
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


def ready(prepared: Prepared) -> Ready:
    """Runs once, for the outputs."""
    return Ready(prepared.description, prepared.device, prepared.simulated, prepared.outputs(prepared.run()))


class Worker:
    """The parent's end."""

    def __init__(self, contender: str, threads: int, cores: Collection[int]) -> None:
        self.contender = contender
        self.threads = threads
        self.cores = cores
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
            return answer
        self.lost = answer
        return None

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
        call = f"main({theirs.fileno()}, {self.contender!r}, {self.threads}, {list(self.cores)})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from quatrefoil.bench.worker import main; {call}"],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )  # fmt: skip
        theirs.close()


def main(descriptor: int, name: str, threads: int, cores: Collection[int]) -> None:
    """The child's end: answers until the pipe closes."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    for module in SILENCED:
        sys.modules[module] = None  # type: ignore[assignment]  # an import of it fails
    contender = contenders.get(name)
    prepared: Prepared | None = None
    timed: Callable[[int], Stretch] | None = None
    gc.disable()
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError):
        while True:
            what, of = pipe.recv()
            if what == "prepare":
                prepared = timed = None
                gc.collect()
                answer = contender.prepare(of, threads)
                if isinstance(answer, Reject):
                    pipe.send(answer)
                    continue
                prepared = answer
                timed = _repeated(prepared)
                pipe.send(ready(prepared))
            elif what == "time":
                assert timed is not None
                pipe.send(timed(of))
            else:
                prepared = timed = None
                pipe.send(None)


def _repeated(prepared: Prepared) -> Callable[[int], Stretch]:
    """So many calls, timed together with the wait for a device that runs behind."""
    run, wait = prepared.run, prepared.wait

    def work(calls: int) -> None:
        for _ in range(calls):
            last = run()
        if wait is not None:
            wait(last)

    return clocked(work)
