"""A synchronous step divided over processes: replicas x layers x channels.

Replicas are torch's DistributedDataParallel: each takes its share of a step's samples, and gradients are averaged. Layers are
stages of torch.distributed.pipelining under its 1F1B schedule (Narayanan et al. 2019). Channels are divided as in Megatron-LM
(Shoeybi et al. 2019): each process computes its share of a layer's output channels from the whole input; the shares are
gathered, and backwards the gradients of the input are summed. All three compose, and a step gives the numbers of one process
up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.parallel import DistributedDataParallel

from quatrefoil.models.parallel.job import STAGES, Job
from quatrefoil.models.parallel.network import DIGITS, Samples, stages
from quatrefoil.models.parallel.traffic import Traffic


class Place:
    """Where a rank stands: rank = (replica * layers + stage) * channels + share, and the groups that it belongs to."""

    def __init__(self, job: Job, rank: int) -> None:
        self.replica, rest = divmod(rank, job.layers * job.channels)
        self.layer, self.channel = divmod(rest, job.channels)
        self.first, self.last = self.layer == 0, self.layer == job.layers - 1

        def rank_of(replica: int, layer: int, channel: int) -> int:
            return (replica * job.layers + layer) * job.channels + channel

        # every process makes every group, in the same order, as torch.distributed wants it
        replicas, layers, channels = range(job.replicas), range(job.layers), range(job.channels)
        self.replicas = _mine(rank, [[rank_of(r, k, c) for r in replicas] for k in layers for c in channels])
        self.layers = _mine(rank, [[rank_of(r, k, c) for k in layers] for r in replicas for c in channels])
        self.channels = _mine(rank, [[rank_of(r, k, c) for c in channels] for r in replicas for k in layers])

    @property
    def part(self) -> str:
        """The name of what this process holds of the network; replicas hold the same."""
        return f"layer{self.layer}-channel{self.channel}"


def _mine(rank: int, groups: list[list[int]]) -> dist.ProcessGroup:
    made = [(members, dist.new_group(members)) for members in groups]
    return next(group for members, group in made if rank in members)


class _Shared(torch.autograd.Function):
    """The same input in every process of a group; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: dist.ProcessGroup, traffic: Traffic) -> Tensor:
        context.group, context.traffic = group, traffic
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        context.traffic.all_reduce(total, context.group.size())
        dist.all_reduce(total, group=context.group)
        return total, None, None


class _Gathered(torch.autograd.Function):
    """The channels of all processes of a group, one after the other; a process's gradient is its own slice."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: dist.ProcessGroup, traffic: Traffic) -> Tensor:
        context.rank, context.width = group.rank(), x.shape[1]
        parts = [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group=group)
        whole = torch.cat(parts, 1)
        traffic.all_gather(whole.nbytes, group.size())
        return whole

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        begin = context.rank * context.width
        return gradients[0][:, begin : begin + context.width].contiguous(), None, None


class DividedChannels(nn.Module):
    """A convolution or dense layer that keeps this process's share of its output channels."""

    def __init__(self, layer: nn.Module, group: dist.ProcessGroup, traffic: Traffic) -> None:
        super().__init__()
        self.group, self.traffic, self.layer = group, traffic, layer
        for name in ("weight", "bias"):
            whole = getattr(layer, name)
            setattr(layer, name, nn.Parameter(whole.detach().chunk(group.size())[group.rank()].clone()))
        # the layers' own bookkeeping, so that printing and checks tell the share's size
        for name in ("out_channels", "out_features"):
            if hasattr(layer, name):
                setattr(layer, name, getattr(layer, name) // group.size())

    def forward(self, x: Tensor) -> Tensor:
        share = self.layer(_Shared.apply(x, self.group, self.traffic))
        gathered: Tensor = _Gathered.apply(share, self.group, self.traffic)
        return gathered


def divided(layer: nn.Module, processes: int) -> bool:
    """Whether a layer's output channels are divided among so many processes: those of the last layer, ten, stay whole."""
    weight = getattr(layer, "weight", None)
    return processes > 1 and weight is not None and weight.shape[0] % processes == 0 and weight.shape[0] > DIGITS


class Trainer:
    """One process of a synchronous run: its part of the network, and how it takes a step."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.traffic, self.place = job, Traffic(), Place(job, rank)
        width = STAGES // job.layers
        mine = stages(job.seed)[self.place.layer * width : (self.place.layer + 1) * width]
        for stage in mine:
            for name, layer in list(stage.named_children()):
                if divided(layer, job.channels):
                    setattr(stage, name, DividedChannels(layer, self.place.channels, self.traffic))
        self.network: nn.Sequential = nn.Sequential(*mine)
        self.runs: nn.Module = self.network
        if job.replicas > 1:
            replica = DistributedDataParallel(self.network, process_group=self.place.replicas)
            self.traffic.watch_replicas(replica, self.place.replicas)
            self.runs = replica
        if job.layers > 1:
            self.traffic.watch_stage(self.network, self.place.first, self.place.last)
            stage_of = PipelineStage(
                self.runs, self.place.layer, job.layers, torch.device("cpu"), group=self.place.layers
            )
            self.schedule = Schedule1F1B(stage_of, job.microbatches, loss_fn=nn.functional.cross_entropy)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=job.rate, momentum=job.momentum)

    def step(self, samples: Samples, number: int) -> float:
        """Takes a step; gives the loss of this process's samples (NaN in stages that do not see it)."""
        images, digits = samples.of(number, self.place.replica, self.job.replicas)
        self.optimizer.zero_grad()
        if self.job.layers == 1:
            loss = nn.functional.cross_entropy(self.runs(images), digits)
            loss.backward()
            losses = [loss]
        else:
            losses = []
            self.schedule.step(
                *([images] if self.place.first else []), target=digits if self.place.last else None, losses=losses
            )
        self.optimizer.step()
        return float(torch.stack(losses).mean().detach()) if self.place.last else float("nan")

    def whole(self) -> nn.Sequential | None:
        """The whole network put together from its parts, in rank 0; None elsewhere. Every process has to call it."""
        parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        here = (self.place.replica, self.place.layer, self.place.channel, self.network.state_dict())
        dist.gather_object(here, parts)
        if parts is None:
            return None
        built = stages(self.job.seed)
        width = STAGES // self.job.layers
        for layer in range(self.job.layers):
            shares = [p[3] for p in sorted((p for p in parts if p[:2] == (0, layer)), key=lambda p: int(p[2]))]
            network = nn.Sequential(*built[layer * width : (layer + 1) * width])
            state = {}
            for name in shares[0]:
                values = [share[name] for share in shares]
                divided_here = ".layer." in name
                state[name.replace(".layer.", ".")] = torch.cat(values) if divided_here else values[0]
            network.load_state_dict(state)
        return nn.Sequential(*built)
