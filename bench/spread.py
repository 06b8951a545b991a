"""A bench's tasks spread over the workers of a Dask cluster, on this machine or on others.

Each task is measured by one worker, all its contenders side by side, as ``run`` does it; each worker measures its own
ceilings once and says what machine it is. Workers hold one task at a time: they offer the resource MEASURE, of which a task
takes one. Workers of one machine take turns: a lock on a file, which the system opens again when its holder dies. A task
whose worker is lost goes to another one. Results are kept in a file as they come, a line of JSON for each task, from which
a later run goes on.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module, util
from pathlib import Path
from typing import IO, Any, TypeVar

from quatrefoil import backends
from quatrefoil.bench import roofline
from quatrefoil.bench.machine import describe
from quatrefoil.bench.records import Record, restored
from quatrefoil.bench.roofline import Ceilings
from quatrefoil.bench.runner import Effort, run
from quatrefoil.bench.suites import Entry
from quatrefoil.errors import QuatrefoilError

LOCAL = "local"
RESOURCE = "MEASURE"
LOCK = "quatrefoil-measuring"
"""In the folder for temporary files: who holds it measures."""
BLOCK = 1 << 16
"""Bytes in which a file is read backwards."""
INSTALL = "pip install 'quatrefoil[spread]'"

T = TypeVar("T")
Call = TypeVar("Call", bound="tuple[Any, ...]")


@dataclass(frozen=True, slots=True)
class Done:
    """A task's records, and who measured them.

    worker    the machine's number among those of the run, from 1 in the order of their first results, which is not its name
    machine   as ``machine.describe`` says
    ceilings  of that machine, or None where all was simulated
    asked     what was measured and how, in plain data: the problem, contenders, threads, effort, seed
    """

    name: str
    records: tuple[Record, ...]
    worker: str
    machine: Mapping[str, str]
    ceilings: Mapping[str, Any] | None
    asked: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """The entry that this is of: its name and its text."""
        return self.name, self.asked["problem"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "worker": self.worker,
            "machine": dict(self.machine),
            "ceilings": self.ceilings,
            "asked": dict(self.asked),
            "records": [record.as_dict() for record in self.records],
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Done:
        """The inverse of ``as_dict``."""
        records = tuple(restored(row) for row in data["records"])
        return cls(data["name"], records, data["worker"], data["machine"], data["ceilings"], data["asked"])


def measure(
    entries: Sequence[Entry],
    on: Sequence[str] = ("cpu",),
    peers: Sequence[str] = (),
    *,
    scheduler: str = LOCAL,
    keep: Path | None = None,
    threads: int = 1,
    effort: Effort = Effort(),  # noqa: B008 - frozen
    seed: int = 0,
    begin: Callable[[str], None] | None = None,
) -> list[Done]:
    """Every entry once, in their order. ``scheduler``: "local", or a Dask scheduler's address. ``keep``: the file for what is
    done, whose tasks are not measured again; they have to be of the same contenders, threads, effort and seed. ``begin`` is
    called with the name of each task that is done.

    Raises QuatrefoilError where Dask is not installed, nobody answers, tasks failed, or the file is of another run; what is
    done is kept.
    """
    asked = {_key(entry): _asked(entry, on, peers, threads, effort, seed) for entry in entries}
    done = {one.key: one for one in (read(keep) if keep is not None and keep.exists() else [])}
    for key in asked.keys() & done.keys():
        apart = [name for name, value in asked[key].items() if done[key].asked.get(name) != value]
        if apart:
            said = ", ".join(f"{name} {done[key].asked.get(name)} and not {asked[key][name]}" for name in apart)
            raise QuatrefoilError(f"{keep} holds {key[0]!r} of another run ({said}); give another file")
    left = [entry for entry in entries if _key(entry) not in done]
    failed: dict[str, str] = {}
    machines: dict[str, int] = {}
    known = 1 + max((int(one.worker) for one in done.values() if one.worker.isdigit()), default=0)
    if left:
        simulated = all(backends.get(name).simulated for name in on) and not peers
        with cluster_client(scheduler, simulated) as client:
            for entry, outcome in _outcomes(client, left, tuple(on), tuple(peers), threads, effort, seed):
                if isinstance(outcome, tuple):
                    name, result = outcome
                    number = machines.setdefault(name, len(machines) + known)
                    result = done[result.key] = replace(result, worker=str(number))
                    if keep is not None:
                        append(keep, [result.as_dict()])
                else:
                    failed[entry.name] = str(outcome)
                if begin is not None:
                    begin(entry.name)
    if failed:
        said = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise QuatrefoilError(f"{len(failed)} of {len(entries)} tasks failed ({said}); the others are {_kept(keep)}")
    return [done[_key(entry)] for entry in entries]


def _key(entry: Entry) -> tuple[str, str]:
    return entry.name, entry.text


def _asked(
    entry: Entry, on: Sequence[str], peers: Sequence[str], threads: int, effort: Effort, seed: int
) -> dict[str, Any]:
    return {
        "problem": entry.text,
        "on": list(on),
        "peers": list(peers),
        "threads": threads,
        "effort": asdict(effort),
        "seed": seed,
    }


def read(path: Path) -> list[Done]:
    """What a file of results holds; a last line that was cut off is left out. Raises QuatrefoilError for other files."""
    return lines(path, Done.of, "result of a spread bench")


def lines(path: Path, restore: Callable[[Any], T], what: str) -> list[T]:
    """A file's lines of JSON, each restored; a last line that was cut off is left out. Raises QuatrefoilError, with the
    number of a line that is no ``what``."""
    found = []
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QuatrefoilError(f"the results {path} cannot be read: {error}") from None
    for number, line in enumerate(texts, 1):
        if not line.strip():
            continue
        try:
            found.append(restore(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts):
                continue  # written while the process was ended
            raise QuatrefoilError(f"line {number} of {path} is no {what}: {error}") from None
    return found


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Lines of JSON at the end of a file that ``lines`` reads, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        _cut(file)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def mend(path: Path) -> None:
    """Takes away a last line that was cut off, from a file that others go on writing."""
    if path.exists():
        with path.open("r+b") as file:
            _cut(file)


def _cut(file: IO[bytes]) -> None:
    """Ends a file where its last whole line ends."""
    file.seek(_end_of_lines(file))
    file.truncate()


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line of a file ends, looked for from its end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - BLOCK)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def _kept(keep: Path | None) -> str:
    return (
        "not kept: give a file to keep them in"
        if keep is None
        else f"kept in {keep}, from which the same command goes on"
    )


@contextmanager
def cluster_client(scheduler: str, simulated: bool) -> Iterator[Any]:
    """A client of the cluster; a local one has one worker, since two would disturb each other's timing, unless all is
    simulated. Raises QuatrefoilError where Dask is not installed, or nobody answers."""
    if util.find_spec("distributed") is None:
        raise QuatrefoilError(f"spreading over processes needs Dask's distributed; to add it: {INSTALL}")
    distributed: Any = import_module("distributed")  # which has no types
    if scheduler == LOCAL:
        workers = (os.cpu_count() or 1) if simulated else 1
        with _deaf_to_interrupts():
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                resources={RESOURCE: 1},
                scheduler_kwargs={"dashboard": False},
                dashboard_address="127.0.0.1:0",  # Dask always has a server there, else where everybody reaches it
                silence_logs=logging.CRITICAL,  # what goes wrong is said in our own words
            )
        with cluster, distributed.Client(cluster) as client:
            yield client
        return
    try:
        client = distributed.Client(scheduler, timeout=5)
    except (OSError, ValueError) as error:
        raise QuatrefoilError(f"no Dask scheduler answers at {scheduler!r}: {error}") from None
    with client:
        offered = [info["resources"] for info in client.scheduler_info(n_workers=-1)["workers"].values()]
        if not any(RESOURCE in resources for resources in offered):
            raise QuatrefoilError(
                f"none of the {len(offered)} workers of {scheduler} offers {RESOURCE}; start them so: "
                f"dask worker {scheduler} --nthreads 1 --resources {RESOURCE}=1"
            )
        yield client


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that begin inside ignore Ctrl-C, which a terminal sends to them too: this one ends them itself."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set this
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _outcomes(
    client: Any,
    entries: Sequence[Entry],
    on: tuple[str, ...],
    peers: tuple[str, ...],
    threads: int,
    effort: Effort,
    seed: int,
) -> Iterator[tuple[Entry, tuple[str, Done] | BaseException]]:
    """Each task with what came of it, as they come."""
    calls = [(entry, on, peers, threads, effort, seed) for entry in entries]
    for (entry, *_), outcome in as_they_come(client, task, calls):
        yield entry, outcome


def as_they_come(
    client: Any, function: Callable[..., T], calls: Iterable[Call]
) -> Iterator[tuple[Call, T | BaseException]]:
    """The calls of a function, by the workers, each with its result or its error; a call whose worker is lost goes to
    another one."""
    distributed: Any = import_module("distributed")
    futures = {client.submit(function, *call, pure=False, retries=0, resources={RESOURCE: 1}): call for call in calls}
    for future in distributed.as_completed(futures):
        yield futures[future], future.exception() or future.result()
        future.release()


def task(
    entry: Entry, on: Sequence[str], peers: Sequence[str], threads: int, effort: Effort, seed: int
) -> tuple[str, Done]:
    """One task, in a worker: the machine's name, by which the client tells machines apart, and what was found."""
    measured = any(not backends.get(name).simulated for name in on) or bool(peers)
    with alone() if measured else nullcontext():
        ceilings = _ceilings() if measured else None
        records = run([entry], on, peers, threads=threads, effort=effort, seed=seed, ceilings=ceilings)
    return platform.node(), Done(
        entry.name,
        tuple(records),
        "",
        describe(),
        None if ceilings is None else ceilings.as_dict(),
        _asked(entry, on, peers, threads, effort, seed),
    )


@contextmanager
def alone() -> Iterator[None]:
    """Waits until no other worker on this machine is inside; on systems without ``flock`` for nothing."""
    if util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

    with Path(tempfile.gettempdir(), LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _ceilings() -> Ceilings:
    return roofline.measure()
