"""Embeddings of past batches as further positives and negatives: Wang et al., "Cross-Batch Memory" (CVPR 2020).

An embedding moves slowly once it has settled, so what the network said of earlier pictures is still nearly right, and
far more negatives fit into a memory than into a batch. Use it after the first part of a run, not from its start.
"""

from __future__ import annotations

import torch
from torch import nn

from lookalike.errors import ShapeError

__all__ = ["CrossBatchMemory"]


class CrossBatchMemory(nn.Module):
    """A ring of the last `size` embeddings and their labels, without gradients.

    Everything it knows is in its buffers, so `state_dict` and `load_state_dict` resume exactly, and `to` moves it.

    Args:
        size: how many embeddings, at least 1.
        dim: of the embeddings.
    """

    vectors: torch.Tensor
    labels: torch.Tensor
    pushed: torch.Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"size and dim must be at least 1, got {size} and {dim}")
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """How many embeddings it holds."""
        return min(int(self.pushed), len(self.vectors))

    def references(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Vectors (m, dim) float32 and labels (m,) int64, in no order that means anything; None while it is empty.

        They are what the memory holds, not copies: the next `push` changes them.
        """
        count = len(self)
        return (self.vectors[:count], self.labels[:count]) if count else None

    @torch.no_grad()
    def push(self, embeddings: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch in place of the oldest; of a batch larger than the memory, its last rows.

        Args:
            embeddings: (B, dim) floats.
            labels: (B,) integers.

        Raises:
            ShapeError: shapes do not fit.
        """
        size, dim = self.vectors.shape
        if embeddings.ndim != 2 or embeddings.shape[1] != dim or labels.shape != embeddings.shape[:1]:
            wanted = f"embeddings must be (B, {dim}) with labels (B,)"
            raise ShapeError(f"{wanted}, got {tuple(embeddings.shape)} and {tuple(labels.shape)}")
        total = int(self.pushed) + len(embeddings)
        last = min(size, len(embeddings))  # no place twice in one assignment: which row would stay is not defined
        places = torch.arange(total - last, total, device=self.vectors.device) % size
        self.vectors[places] = embeddings[len(embeddings) - last :].to(self.vectors)
        self.labels[places] = labels[len(labels) - last :].to(self.labels)
        self.pushed.fill_(total)
