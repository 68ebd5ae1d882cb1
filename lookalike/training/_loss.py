"""What every loss over labelled batches starts from: a checked batch, in full precision."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from lookalike.training._distances import References, Triplets, check_batch, full_precision, precise

Reduction = Literal["nonzero", "all"]


class Loss(nn.Module):
    """A loss over a labelled batch.

    Attributes:
        needs_triplets: a miner must choose triplets.
        needs_classes: the constructor takes `dim` and `classes`; labels are then numbers below `classes`.
        takes_references: a cross-batch memory can be used.
    """

    needs_triplets: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    takes_references: ClassVar[bool] = True

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        triplets: Triplets | None = None,
        references: References | None = None,
    ) -> torch.Tensor:
        """The loss of a batch.

        Args:
            embeddings: (B, d) floats; computed with as float32 (float64 stays so), without autocast.
            labels: (B,) integers.
            triplets: anchors, positives and negatives, (T,) int64 each, where `needs_triplets`.
            references: vectors (M, d) and labels (M,) of earlier batches, where `takes_references`: further positives
                and negatives, without a gradient of their own.

        Returns:
            A scalar with a gradient, also where it is zero because the batch has nothing to learn from. Not a number
            if an embedding is not finite.

        Raises:
            ShapeError: shapes or types do not fit.
            ValueError: triplets or references are missing or of no use, or a label is out of range.
        """
        check_batch(embeddings, labels, references)
        name = type(self).__name__
        if (triplets is not None) != self.needs_triplets:
            raise ValueError(f"{name} {'needs triplets of a miner' if self.needs_triplets else 'takes no triplets'}")
        if references is not None and not self.takes_references:
            raise ValueError(f"{name} compares with vectors of its own: references are of no use to it")
        with full_precision(embeddings):
            rows = precise(embeddings)
            if not len(rows):
                return nothing(rows)
            if triplets is not None:
                return self._of_triplets(rows, labels, triplets, references)
            return self._of_batch(rows, labels, references)

    def _of_batch(self, rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> torch.Tensor:
        raise NotImplementedError

    def _of_triplets(
        self, rows: torch.Tensor, labels: torch.Tensor, triplets: Triplets, references: References | None
    ) -> torch.Tensor:
        raise NotImplementedError


def nothing(rows: torch.Tensor) -> torch.Tensor:
    """Zero, with a graph; not a number where a row is not finite, so that a broken network is not taken for a good one.

    The gradient is zero.
    """
    return (rows * 0).sum()


def mean(values: torch.Tensor, counted: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """Mean of the values that count and, with "nonzero", are positive; zero if there are none.

    Args:
        values: of any shape, at least zero.
        counted: bool, of that shape.
        reduction: "nonzero" or "all".
    """
    values = torch.where(counted, values, 0)
    number = (values > 0).sum() if reduction == "nonzero" else counted.sum()
    return values.sum() / number.clamp(min=1)


def check_reduction(reduction: str) -> None:
    """Raise ValueError for an unknown reduction."""
    if reduction not in ("nonzero", "all"):
        raise ValueError(f"reduction must be nonzero or all, got {reduction!r}")


def at_least(name: str, value: float, least: float, above: bool = False) -> float:
    """The value, or ValueError if it lies below `least` (or, with `above`, not above it)."""
    if not (value > least if above else value >= least):
        raise ValueError(f"{name} must be {'above' if above else 'at least'} {least}, got {value}")
    return value
