"""The asynchronous parameter server, with bounded staleness.

Rank 0 holds the parameters; every other rank computes gradients of its share of a step's samples. A worker asks for the
parameters, computes, and sends its gradient, which the server applies as it comes (Dean et al. 2012). A gradient's staleness is
the number of updates between the parameters that it was computed from and its own. The server lets a worker wait that is more
than ``staleness`` updates of its own ahead of the slowest (stale synchronous parallel, Ho et al. 2013), so that with w workers no
gradient is staler than 2 (w - 1) (bound + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quatrefoil.models.parallel.job import Job
from quatrefoil.models.parallel.network import Samples, stages
from quatrefoil.models.parallel.traffic import Traffic

READY, GRADIENT = 0.0, 1.0


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def unflattened(values: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    parts, begin = [], 0
    for tensor in like:
        parts.append(values[begin : begin + tensor.numel()].view_as(tensor))
        begin += tensor.numel()
    return parts


class Server:
    """Rank 0. A message is a flat tensor: its kind, the worker's loss, and a gradient (zeros with READY)."""

    def __init__(self, job: Job) -> None:
        self.job, self.traffic = job, Traffic()
        self.network = nn.Sequential(*stages(job.seed))
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, lr=job.rate, momentum=job.momentum)
        self.size = sum(parameter.numel() for parameter in self.parameters)

    def serve(self, begin: int, updates: int, after: Callable[[int, float], None]) -> list[int]:
        """Applies ``updates`` gradients; calls ``after(update, loss)`` for each; gives the staleness of each."""
        workers = range(1, dist.get_world_size())
        version = begin
        done, given = dict.fromkeys(workers, 0), dict.fromkeys(workers, begin)
        waiting: list[int] = []
        staleness: list[int] = []
        message = torch.empty(2 + self.size)
        dismissed = 0
        while dismissed < len(workers):
            worker = dist.recv(message)
            if message[0] == GRADIENT and version < begin + updates:
                staleness.append(version - given[worker])
                for parameter, gradient in zip(self.parameters, unflattened(message[2:], self.parameters)):
                    parameter.grad = gradient.clone()
                self.optimizer.step()
                version += 1
                done[worker] += 1
                after(version, float(message[1]))
            waiting.append(worker)
            finished = version >= begin + updates
            slowest = min(done.values())
            for worker in [w for w in waiting if finished or done[w] - slowest <= self.job.staleness]:
                waiting.remove(worker)
                given[worker] = version
                reply = torch.cat([torch.tensor([float(finished), float(version)]), flat(self.parameters)])
                self.traffic.send(reply)
                dist.send(reply, worker)
                dismissed += finished
        return staleness


def work(job: Job, samples: Samples, before: Callable[[int], None]) -> Traffic:
    """A worker: asks, computes, sends, until it is told that all is done. ``before(update)`` is called for each."""
    traffic, network = Traffic(), nn.Sequential(*stages(job.seed))
    parameters = list(network.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    message, reply = torch.zeros(2 + size), torch.empty(2 + size)
    workers, turn = dist.get_world_size() - 1, -1
    while True:
        traffic.send(message)
        dist.send(message, 0)
        dist.recv(reply, 0)
        if reply[0]:
            return traffic
        before(int(reply[1]))
        turn = int(reply[1]) // workers if turn < 0 else turn + 1  # a run that goes on does not begin with old samples
        with torch.no_grad():
            for parameter, value in zip(parameters, unflattened(reply[2:], parameters)):
                parameter.copy_(value)
        images, digits = samples.of(turn, dist.get_rank() - 1, workers)
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(images), digits)
        loss.backward()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        message = torch.cat([torch.tensor([GRADIENT, float(loss.detach())]), flat(gradients)])
