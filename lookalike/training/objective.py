"""What one step minimises: a loss with its miner and its memory, or a loss over pairs, behind one call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.training.memory import CrossBatchMemory
from lookalike.training.miners import triplet_share
from lookalike.training.teacher import Distillation

__all__ = ["Batch", "Objective"]


@dataclass(frozen=True)
class Batch:
    """The pictures of a step, and what is known of them.

    Attributes:
        rows: (n,) int64, rows of the pixel cache. Of pairs: first all left ones, then all right ones.
        labels: (n,) int64, the class of each.
        same: (n / 2,) bool, of pairs only: whether left and right are alike.
        triplets: anchor, positive and negative as positions in the batch, where they are given and not mined.
        targets: (n, dim) what a teacher makes of the pictures, unit length, where there is one.
    """

    rows: npt.NDArray[Any]
    labels: Tensor
    same: Tensor | None = None
    triplets: tuple[Tensor, Tensor, Tensor] | None = None
    targets: Tensor | None = None

    def to(self, device: str) -> Batch:
        """The same with its tensors on `device`."""
        triplets = None if self.triplets is None else tuple(index.to(device) for index in self.triplets)
        same = None if self.same is None else self.same.to(device)
        targets = None if self.targets is None else self.targets.to(device)
        return Batch(self.rows, self.labels.to(device), same, triplets, targets)


class Objective(nn.Module):
    """Embeddings of a batch → the number to minimise.

    Args:
        loss: of `losses.LOSSES`, or of `losses.PAIR_LOSSES` for batches of pairs.
        miner: of `miners.MINERS`, or a `Schedule` of them; None where the loss mines nothing.
        memory: of past batches, or None.
        memory_start: share of the run after which the memory is used.
        distillation: from the targets of a batch, or None.
        weight: of that, against the loss.
    """

    def __init__(
        self,
        loss: nn.Module,
        miner: Any = None,
        memory: CrossBatchMemory | None = None,
        memory_start: float = 0.0,
        distillation: Distillation | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.memory = memory
        self.memory_start = memory_start
        self.distillation = distillation
        self.weight = weight

    @property
    def margin(self) -> float | None:
        """Of a loss over triplets; None for other losses."""
        return float(self.loss.margin) if hasattr(self.loss, "distance") else None

    @property
    def level(self) -> float | None:
        """Where a loss over triplets sits when all distances are equal; None for other losses."""
        margin = self.margin
        if margin is None:
            return None
        return math.log1p(math.exp(margin)) if getattr(self.loss, "soft", False) else margin

    def forward(self, embeddings: Tensor, batch: Batch, generator: torch.Generator, progress: float) -> Tensor:
        """The loss of (n, dim) embeddings."""
        if batch.same is not None:
            left, right = embeddings.chunk(2)
            return self.loss(left, right, batch.same)
        references = self._references(progress)
        triplets = self._triplets(embeddings, batch, references, generator, progress)
        value = self.loss(embeddings, batch.labels, triplets, references)
        if self.memory is not None and progress >= self.memory_start:
            self.memory.push(embeddings.detach(), batch.labels)
        if self.distillation is not None and batch.targets is not None:
            value = value + self.weight * self.distillation(embeddings, batch.targets)
        return value

    def active(self, embeddings: Tensor, batch: Batch, generator: torch.Generator, progress: float) -> float | None:
        """Share of the batch's triplets that still teach, 0 where there is no triplet; None for other losses."""
        if self.margin is None:
            return None
        triplets = self._triplets(embeddings, batch, None, generator, progress)
        share = triplet_share(embeddings, batch.labels, triplets, self.margin, self.loss.distance)
        return 0.0 if math.isnan(share) else share

    def _references(self, progress: float) -> Any:
        return self.memory.references() if self.memory is not None and progress >= self.memory_start else None

    def _triplets(
        self, embeddings: Tensor, batch: Batch, references: Any, generator: torch.Generator, progress: float
    ) -> Any:
        if self.miner is None or batch.triplets is not None:
            return batch.triplets
        return self.miner.at(progress)(embeddings.detach(), batch.labels, references, generator)
