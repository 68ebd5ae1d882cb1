"""Several processes, one batch: embeddings gathered with their gradients, so that negatives come from all of them.

Started by ``torchrun --nproc-per-node N``; alone, everything here does nothing. Each process embeds its part of the
batch; every process then computes the loss over the whole batch. A gradient that comes back through `gather` has been
summed over the processes, each of which computed the same loss, so `average_gradients` yields just what one process
with the whole batch would have.

Embeddings, gradients and batch statistics go from GPU to GPU (nccl); objects and small values that lie in main memory
go through a second group (gloo), so that nothing that was decided on the host has to pass through a GPU. On CPUs one
group (gloo) does both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.errors import ConfigError, TrainingError

T = TypeVar("T")

# How long one process waits for another. The first one works alone while it decodes all pictures, lets the base and
# the trained network answer, and tries the retrieval stage: hours, with millions of pictures, where PyTorch's own
# limits (10 minutes of nccl, 30 of gloo) would end the run. It is no way to notice a process that died: torchrun
# then stops the others, at once.
PATIENCE = timedelta(days=2)

__all__ = ["PATIENCE", "Group", "SharedBatchNorm", "SharedBatchNormAct", "share_batch_norm"]


def _gpu_for(device: str, local: int, count: int) -> int:
    """The number of the GPU that a process takes.

    Args:
        device: of the run: "cuda", or with a number.
        local: which process of this machine it is.
        count: how many GPUs it sees.

    Raises:
        ConfigError: there is none for it, or all processes were given the same.
    """
    if local >= count:
        raise ConfigError(
            [f"process {local + 1} of this machine has no GPU of its own, {count} can be seen: "
             f"start torchrun with --nproc-per-node {count} at most"]
        )  # fmt: skip
    _, _, number = device.partition(":")
    if number and int(number) != local:
        raise ConfigError(
            [f"loop.device {device!r} would be that of several processes, and each needs its own: "
             'take "auto", or start without torchrun']
        )  # fmt: skip
    return local


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one's `rank`, and how many there are.

    Attributes:
        rank: 0 is the first.
        size: how many there are; alone, nothing is sent.
        host: the connection for what lies in main memory; None where the one for tensors does it (gloo).
    """

    rank: int = 0
    size: int = 1
    host: Any = None

    @classmethod
    def join(cls, device: str) -> Group:
        """Meet the others that torchrun started (gloo on CPUs, nccl and gloo on GPUs), or stay alone.

        Args:
            device: of this process, as `device_for` gives it. A GPU becomes the current one, since whatever names
                none (nccl's first message, "cuda") means that one, and without it would be the first in all processes.

        Raises:
            ConfigError: there is no GPU for this process, or several were given the same.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        on_gpus = device.startswith("cuda")
        if on_gpus:
            torch.cuda.set_device(_gpu_for(device, int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
        host = dist.new_group(backend="gloo", timeout=PATIENCE) if on_gpus else None
        return cls(dist.get_rank(), size, host)

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
        dist.broadcast_object_list(box, src=0, group=self.host)
        return box[0]

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives, in every process: the first one makes it, the others then find it made."""
        made = make() if self.first else None
        self.wait()
        return make() if made is None else made

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            dist.barrier(group=self.host)

    def leave(self) -> None:
        """End the connection."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation over the rows of all processes; PyTorch's own (SyncBatchNorm) needs GPUs.

    All processes have equally many rows, as `Group.part` makes them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, …) → the same shape."""
        if not self.training:
            return super().forward(x)
        others, shape = [axis for axis in range(x.ndim) if axis != 1], [1, -1, *[1] * (x.ndim - 2)]
        whole = x.to(torch.promote_types(x.dtype, torch.float32))
        # Each process's variance about its own mean, and how far these means are apart (Chan et al. 1983): the mean of
        # the squares less the square of the mean loses all digits where the mean is large beside the deviation.
        own = torch.var_mean(whole, others, correction=0)
        variances, means = torch.stack(all_gather(torch.stack(own))).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if self.track_running_stats:
            count = x.numel() // x.shape[1] * len(means)
            self._remember(mean.detach(), variance.detach() * count / max(count - 1, 1))
        normal = (whole - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions will do."""


class SharedBatchNormAct(SharedBatchNorm):
    """timm's BatchNormAct2d over the rows of all processes: its own drop and activation follow."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape."""
        return self.act(self.drop(super().forward(x)))


# By name, so that timm is not imported for networks that are not its own.
_SHARED = {
    "torch.nn.modules.batchnorm.BatchNorm1d": SharedBatchNorm,
    "torch.nn.modules.batchnorm.BatchNorm2d": SharedBatchNorm,
    "torch.nn.modules.batchnorm.BatchNorm3d": SharedBatchNorm,
    "torch.nn.modules.batchnorm.SyncBatchNorm": SharedBatchNorm,
    "timm.layers.norm_act.BatchNormAct2d": SharedBatchNormAct,
}


def share_batch_norm(network: nn.Module) -> None:
    """Make every batch normalisation of `network` one over all processes; parameters and statistics stay.

    Raises:
        TrainingError: it has some of a kind whose statistics would be each process's own: several processes would not
            learn what one learns. Nothing was changed.
    """
    found = {name: module for name, module in network.named_modules() if _has_batch_statistics(module)}
    alien = {name: _kind(module) for name, module in found.items() if _kind(module) not in _SHARED}
    if alien:
        place, kind = next((name, kind) for name, kind in alien.items())
        raise TrainingError(
            f"{len(alien)} of the {len(found)} batch norms of this network cannot be shared among processes "
            f"({place or 'the network'} is a {kind}): train it in one process, without torchrun, or take another "
            "network.name"
        )
    for module in found.values():
        module.__class__ = _SHARED[_kind(module)]


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _has_batch_statistics(module: nn.Module) -> bool:
    """Whether what it computes, training, depends on the other rows of the batch.

    Some keep statistics without being a batch norm by descent (timm's EvoNorm); where the weights are kept as the
    statistics are (FrozenBatchNorm2d), nothing is learnt from batches, either.
    """
    if isinstance(module, SharedBatchNorm):
        return False
    kept = dict(module.named_buffers(recurse=False))
    return isinstance(module, _BatchNorm) or ("running_var" in kept and "weight" not in kept)
