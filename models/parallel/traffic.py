"""The bytes that a process sends, counted where it hands tensors to torch.distributed.

A collective's bytes are those of the algorithm that moves least, a ring: an all-reduce of n bytes among p processes
sends 2 n (p - 1) / p from each, an all-gather n (p - 1) / p of the whole n.
"""

# no postponed annotations here: DDP looks at those of its hooks
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel


class Traffic:
    """Counts what one process sends."""

    def __init__(self) -> None:
        self.sent = 0.0

    def send(self, tensor: Tensor) -> None:
        self.sent += tensor.nbytes

    def all_reduce(self, tensor: Tensor, processes: int) -> None:
        self.sent += 2 * tensor.nbytes * (processes - 1) / processes

    def all_gather(self, whole_bytes: int, processes: int) -> None:
        self.sent += whole_bytes * (processes - 1) / processes

    def watch_replicas(self, module: DistributedDataParallel, group: dist.ProcessGroup) -> None:
        """Counts the gradients that DDP reduces, and reduces them as it would without."""

        def hook(state: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            self.all_reduce(bucket.buffer(), state.size())
            return default_hooks.allreduce_hook(state, bucket)

        module.register_comm_hook(group, hook)

    def watch_stage(self, stage: nn.Module, first: bool, last: bool) -> None:
        """Counts what a pipeline's stage hands to its neighbours: activations forward, their gradients backward."""

        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not last and output.requires_grad:
                self.send(output)

        def backward(module: nn.Module, to_inputs: tuple[Tensor | None, ...], from_outputs: object) -> None:
            if not first and to_inputs[0] is not None:
                self.send(to_inputs[0])

        added: Callable[..., Any] = stage.register_forward_hook
        added(forward)
        stage.register_full_backward_hook(backward)
