"""One process of a parallel run; torchrun starts it as ``-m quatrefoil.models.parallel.worker JOB.json``."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.parallel.checkpoint import Checkpoint
from quatrefoil.models.parallel.division import Trainer
from quatrefoil.models.parallel.job import Job
from quatrefoil.models.parallel.launch import RESULT, Result, sentence_file
from quatrefoil.models.parallel.network import Samples, accuracy
from quatrefoil.models.parallel.server import Server, work

PATIENCE = timedelta(seconds=60)
"""How long a process waits for another before it gives up: a lost one is noticed at once where its connection closes."""

WARM = 5
"""Steps that are taken before the clock starts: first calls prepare kernels and buffers."""


class Clock:
    """Times steps, without the first ones and without checkpoints."""

    def __init__(self, steps: int) -> None:
        self.warm = min(WARM, steps - 1)
        self.seconds, self.steps, self.seen = 0.0, 0, 0
        self.since = time.perf_counter()

    def step(self) -> None:
        now = time.perf_counter()
        self.seen += 1
        if self.seen > self.warm:
            self.seconds += now - self.since
            self.steps += 1
        self.since = now

    def skip(self) -> None:
        self.since = time.perf_counter()


def main(path: Path) -> None:
    job = Job.read(path)
    torch.set_num_threads(1)
    rank, attempt = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    # torchrun keeps the store of the addresses for the processes that replace lost ones: each life has keys of its own
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE)
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=PATIENCE,
    )
    try:
        if dist.get_world_size() != job.processes:
            raise QuatrefoilError(
                f"the run is divided as {job.division}, {job.processes} processes, and {dist.get_world_size()} were started"
            )
        samples = Samples(job.seed, job.batch)
        job.check(len(samples.digits))
        (_asynchronous if job.asynchronous else _synchronous)(job, samples)
    except QuatrefoilError as error:
        sentence_file(job, rank).write_text(str(error))
        raise SystemExit(1) from error
    dist.barrier()
    dist.destroy_process_group()


def _synchronous(job: Job, samples: Samples) -> None:
    rank = dist.get_rank()
    trainer = Trainer(job, rank)
    place = trainer.place
    kept = _checkpoint(job, place.part, trainer.network)
    begin = _newest_common(kept)
    if begin:
        _restore(kept, begin, trainer.network, trainer.optimizer)
    clock = Clock(job.steps - begin)
    losses = []
    for number in range(begin, job.steps):
        _end_if_told(job, rank, number)
        loss = trainer.step(samples, number)
        if place.last and not math.isfinite(loss):
            raise QuatrefoilError(f"the loss is {loss} at step {number}; take a smaller rate than {job.rate}")
        losses.append(loss)
        clock.step()
        if job.keep_every and (number + 1) % job.keep_every == 0:
            if place.replica == 0:
                kept.save(number + 1, _state(trainer.network, trainer.optimizer))
            clock.skip()
    network = trainer.whole()
    told = [_told(job, clock, losses, trainer.traffic.sent, begin)] if place.last else [None]
    _report(job, told[0], network, samples, trainer.traffic.sent / max(len(losses), 1), ())


def _asynchronous(job: Job, samples: Samples) -> None:
    rank = dist.get_rank()
    if rank > 0:
        traffic = work(job, samples, lambda update: _end_if_told(job, rank, update // (job.replicas - 1)))
        _report(job, None, None, samples, traffic.sent / job.steps, ())
        return
    workers = job.replicas - 1
    server = Server(job)
    kept = _checkpoint(job, "server", server.network)
    begin = max(kept.steps(), default=0)
    if begin:
        _restore(kept, begin, server.network, server.optimizer)
    clock = Clock((job.steps - begin) * workers)
    losses: list[float] = []

    def after(update: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise QuatrefoilError(f"the loss is {loss} at update {update}; take a smaller rate than {job.rate}")
        losses.append(loss)
        clock.step()
        step, rest = divmod(update, workers)
        if job.keep_every and rest == 0 and step % job.keep_every == 0:
            kept.save(step, _state(server.network, server.optimizer))
            clock.skip()

    staleness = server.serve(begin * workers, (job.steps - begin) * workers, after)
    told = _told(job, clock, losses, server.traffic.sent, begin)
    told.seconds_per_step *= workers  # an update has the samples of one worker
    _report(job, told, server.network, samples, server.traffic.sent / (job.steps - begin), staleness)


def _checkpoint(job: Job, part: str, network: torch.nn.Module) -> Checkpoint:
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return Checkpoint(Path(job.directory), part, job.division, shapes)


def _newest_common(kept: Checkpoint) -> int:
    """The newest step that every part has a checkpoint of; 0 where there is none."""
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, kept.steps())
    common = set(everywhere[0]).intersection(*everywhere)
    if not common and any(everywhere):
        raise QuatrefoilError(
            f"the checkpoints in {kept.directory} have no step in common, or are of another division; remove them to start anew"
        )
    return max(common, default=0)


def _restore(kept: Checkpoint, step: int, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = kept.load(step)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])


def _state(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict()}


def _end_if_told(job: Job, rank: int, step: int) -> None:
    first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if job.end_process == (rank, step) and first_life:
        os.kill(os.getpid(), signal.SIGKILL)


def _told(job: Job, clock: Clock, losses: list[float], sent: float, begin: int) -> Result:
    return Result(
        division=job.division,
        processes=job.processes,
        seconds_per_step=clock.seconds / max(clock.steps, 1),
        bytes_per_step=0.0,
        accuracy=0.0,
        last_loss=losses[-1] if losses else float("nan"),
        began_at=begin,
        restarts=int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
        staleness_mean=0.0,
        staleness_most=0,
    )


def _report(
    job: Job,
    told: Result | None,
    network: torch.nn.Module | None,
    samples: Samples,
    sent: float,
    staleness: list[int] | tuple[()],
) -> None:
    """Rank 0 writes the result: the slowest process's time, the bytes of all, the accuracy of the whole network."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (told, sent))
    if network is None:
        return
    results = [result for result, _ in everyone if result is not None]
    slowest = max(results, key=lambda result: result.seconds_per_step)
    slowest.bytes_per_step = sum(each for _, each in everyone)
    slowest.accuracy = accuracy(network, samples)
    if staleness:
        slowest.staleness_mean, slowest.staleness_most = sum(staleness) / len(staleness), max(staleness)
    torch.save(network.state_dict(), Path(job.directory) / "network.pt")
    slowest.write(Path(job.directory) / RESULT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
