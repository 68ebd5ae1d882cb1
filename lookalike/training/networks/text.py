"""Text towers, and two towers side by side: words and pictures as unit vectors of one space.

After Huang et al. 2013, "Learning deep structured semantic models for web search using clickthrough data": hashed
letter trigrams, a bag of their embeddings, and a small perceptron; or the vectors of a sentence model, and the same
perceptron. The picture tower is whatever made the pictures' vectors, and a projection of them into the common space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lookalike.text import PADDING
from lookalike.training.networks.base import seeded
from lookalike.training.networks.embedding import unit_rows

__all__ = ["Projection", "SentenceTower", "TextTower", "Towers"]


class TextTower(nn.Module):
    """Ids of texts to vectors: the mean of their embeddings, then a perceptron.

    Args:
        size: how many ids there are; id 0 fills up and counts for nothing.
        dim: length of the vectors.
        width: length of an embedding.
        hidden: widths of the hidden layers.
        dropout: share of the pooled embedding and of each hidden layer that is left out while learning.
    """

    def __init__(
        self, size: int, dim: int, *, width: int = 256, hidden: Sequence[int] = (512,), dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(size, width, padding_idx=PADDING)
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PADDING] = 0
        self.layers = _perceptron(width, hidden, dim, dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, m) int64, each row with at least one id that is not 0 → (n, dim) unit rows."""
        weight = self.embedding.weight
        return self.project(functional.embedding_bag(ids, weight, mode="mean", padding_idx=PADDING))

    def served(self, ids: Tensor) -> Tensor:
        """As `forward`, in operations that ONNX has."""
        count = (ids != PADDING).sum(dim=1, keepdim=True).float()
        return self.project(self.embedding(ids).sum(dim=1) / count)

    def project(self, pooled: Tensor) -> Tensor:
        """(n, width) mean embeddings → (n, dim) unit rows."""
        return unit_rows(self.layers(pooled))


class SentenceTower(nn.Module):
    """Vectors of a sentence model, which rests, to vectors of the common space: a perceptron.

    Args:
        width: length of the model's vectors.
        dim: length of those it gives.
        hidden: widths of the hidden layers.
        dropout: share of the vectors' numbers and of each hidden layer that is left out while learning.
    """

    def __init__(self, width: int, dim: int, *, hidden: Sequence[int] = (), dropout: float = 0.2) -> None:
        super().__init__()
        self.dim = dim
        self.layers = _perceptron(width, hidden, dim, dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, width) → (n, dim) unit rows."""
        return unit_rows(self.layers(vectors))


class Projection(nn.Module):
    """Vectors of an encoder to vectors of the common space.

    Args:
        width: length of the encoder's vectors.
        dim: length of those it gives.
        hidden: width of a hidden layer; 0 is one linear map, which keeps most of what pictures are alike by.
        dropout: share of the vectors' numbers that is left out while learning.
    """

    def __init__(self, width: int, dim: int, *, hidden: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            *([nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)] if hidden else []),
            nn.Linear(hidden or width, dim),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, width) unit rows → (n, dim) unit rows. Their numbers are first brought to a variance of about 1."""
        return unit_rows(self.layers(vectors * vectors.shape[1] ** 0.5))


class Towers(nn.Module):
    """Both towers.

    Attributes:
        text: ids, or the vectors of a sentence model → unit rows.
        projection: vectors of the picture encoder → unit rows.
    """

    def __init__(self, text: TextTower | SentenceTower, projection: Projection) -> None:
        super().__init__()
        self.text, self.projection = text, projection

    @classmethod
    def build(
        cls,
        size: int,
        picture: int,
        *,
        dim: int,
        width: int,
        hidden: Sequence[int],
        picture_hidden: int,
        dropout: float,
        seed: int,
        sentences: bool = False,
    ) -> Towers:
        """Towers with random weights that depend on the seed alone.

        Args:
            size: how many ids there are; with `sentences`, the length of the sentence model's vectors.
            picture: length of the picture encoder's vectors.
            dim: length of what both give.
            width: of the ids' embeddings.
            hidden: of the text tower.
            picture_hidden: of the projection.
            dropout: of both.
            seed: of the weights.
            sentences: whether texts come as the vectors of a sentence model.
        """
        with seeded(seed):
            text = (
                SentenceTower(size, dim, hidden=hidden, dropout=dropout)
                if sentences
                else TextTower(size, dim, width=width, hidden=hidden, dropout=dropout)
            )
            return cls(text, Projection(picture, dim, hidden=picture_hidden, dropout=dropout))


def _perceptron(width: int, hidden: Sequence[int], dim: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LayerNorm(width), nn.Dropout(dropout)]
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.GELU(), nn.Dropout(dropout)]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, dim))
