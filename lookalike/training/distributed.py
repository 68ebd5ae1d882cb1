"""Several processes, one batch: embeddings gathered with their gradients, so that negatives come from all of them.

Started by ``torchrun --nproc-per-node N``; alone, everything here does nothing. Each process embeds its part of the
batch; every process then computes the loss over the whole batch. A gradient that comes back through `gather` has been
summed over the processes, each of which computed the same loss, so `average_gradients` yields just what one process
with the whole batch would have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather, all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.errors import TrainingError

T = TypeVar("T")

__all__ = ["Group", "SharedBatchNorm", "share_batch_norm"]


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one's `rank`, and how many there are."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> Group:
        """Meet the others that torchrun started (gloo on CPUs, nccl on GPUs), or stay alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(dist.get_rank(), size)

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's part of `count` rows; `gather` puts the parts together in order.

        Raises:
            TrainingError: the rows cannot be shared out evenly.
        """
        if count % self.size:
            raise TrainingError(
                f"a batch of {count} pictures cannot be shared out evenly among {self.size} processes: "
                "change sampler.classes, sampler.pictures or sampler.pairs"
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, rows: Tensor) -> Tensor:
        """(n, dim) of this process → (n · size, dim) of all, with gradients."""
        return rows if self.size == 1 else torch.cat(all_gather(rows.contiguous()))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes, in one message."""
        if self.size == 1:
            return
        held = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in held:  # a parameter unused by one process is unused by all, but must be in the message
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in held])
        dist.all_reduce(flat)
        flat /= self.size
        for parameter, part in zip(held, flat.split([p.numel() for p in held]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    def same(self, value: Any) -> Any:
        """The first process's `value`, in every process: what depends on a clock must be decided once."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives, in every process: the first one makes it, the others then find it made."""
        made = make() if self.first else None
        self.wait()
        return make() if made is None else made

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the connection."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation over the rows of all processes; PyTorch's own (SyncBatchNorm) needs GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, …) → the same shape."""
        if not self.training:
            return super().forward(x)
        others = [axis for axis in range(x.ndim) if axis != 1]
        whole, shape = x.float(), [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        sums = all_reduce(torch.stack([whole.sum(others), whole.square().sum(others)]))
        mean = sums[0] / count
        variance = sums[1] / count - mean.square()
        self._remember(mean.detach(), variance.detach() * count / max(count - 1, 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (whole * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions will do."""


def share_batch_norm(network: nn.Module) -> None:
    """Make every batch normalisation of `network` one over all processes; parameters and statistics stay."""
    for module in network.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            module.__class__ = SharedBatchNorm
