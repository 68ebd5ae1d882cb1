"""Losses that hold a vector for each class and compare embeddings with those: softmax, hinge, ArcFace, proxies."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from lookalike.training._distances import References
from lookalike.training._loss import Loss, at_least


class ClassLoss(Loss):
    """A loss with a vector for each class.

    Args:
        dim: of the embedding.
        classes: how many, at least two; labels are 0 … classes - 1.
        biased: add a bias to each class.
        generator: draws the first vectors; None draws the same ones each time.
    """

    needs_classes: ClassVar[bool] = True
    takes_references: ClassVar[bool] = False

    def __init__(self, dim: int, classes: int, biased: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        self.classes = int(at_least("classes", classes, 2))
        dice = generator if generator is not None else torch.Generator().manual_seed(0)
        first = torch.randn(classes, int(at_least("dim", dim, 1)), generator=dice, device=dice.device)
        self.weight = nn.Parameter(first.cpu() / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(classes)) if biased else None

    def _of_batch(self, rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> torch.Tensor:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise ValueError(f"labels must lie in 0 … {self.classes - 1}, got {low if low < 0 else high}")
        return self._of_classes(rows, labels.long())

    def _of_classes(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _linear(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores (B, classes) of a linear classifier."""
        bias = None if self.bias is None else self.bias.to(rows.dtype)
        return functional.linear(rows, self.weight.to(rows.dtype), bias)

    def _cosines(self, rows: torch.Tensor) -> torch.Tensor:
        """Cosines (B, classes) of rows and class vectors."""
        return functional.normalize(rows) @ functional.normalize(self.weight.to(rows.dtype)).T


class CrossEntropy(ClassLoss):
    """Softmax cross-entropy over the classes, with label smoothing.

    With a temperature, cosines divided by it take the place of the linear classifier's scores: the normalised softmax
    of Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning" (BMVC 2019), who take 0.05.

    Args:
        dim: of the embedding.
        classes: how many; labels are 0 … classes - 1.
        smoothing: share of each target spread over all classes (Szegedy et al. 2016), in [0, 1).
        temperature: of the cosines, above 0; None for a linear classifier with a bias on the embedding as it is.
        generator: draws the first class vectors.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        smoothing: float = 0.1,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim, classes, temperature is None, generator)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
        self.smoothing = smoothing
        self.temperature = None if temperature is None else at_least("temperature", temperature, 0, above=True)

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Scores (B, classes) before the softmax."""
        if self.temperature is None:
            return self._linear(embeddings)
        return self._cosines(embeddings) / self.temperature

    def _of_classes(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.scores(rows), labels, label_smoothing=self.smoothing)


class MultiHinge(ClassLoss):
    """The multiclass hinge of Crammer and Singer (JMLR 2001): a linear support vector machine on the embedding.

    mean of max(0, margin + the best score of a wrong class - the score of the right one). (Its weight penalty is the
    optimiser's weight decay.)

    Args:
        dim: of the embedding.
        classes: how many; labels are 0 … classes - 1.
        margin: at least 0.
        generator: draws the first class vectors.
    """

    def __init__(self, dim: int, classes: int, margin: float = 1.0, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, classes, True, generator)
        self.margin = at_least("margin", margin, 0)

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Scores (B, classes) of the linear classifier."""
        return self._linear(embeddings)

    def _of_classes(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores, right = self.scores(rows), labels[:, None]
        wrong = scores.scatter(1, right, -torch.inf).amax(1, keepdim=True)
        return (self.margin + wrong - scores.gather(1, right)).clamp(min=0).mean()


class ArcFace(ClassLoss):
    """Softmax over cosines, the angle to the right class widened by a margin (Deng et al., CVPR 2019).

    Where the widened angle would pass 180°, the score goes on falling in a straight line (cos θ - m sin m), as in the
    authors' code.

    Args:
        dim: of the embedding.
        classes: how many; labels are 0 … classes - 1.
        margin: in degrees, 0 to below 180; 28.6 is the paper's half a radian.
        scale: of the cosines before the softmax, above 0.
        generator: draws the first class vectors.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        margin: float = 28.6,
        scale: float = 64.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim, classes, False, generator)
        if not 0 <= margin < 180:
            raise ValueError(f"margin must lie in 0 … 180 degrees, got {margin}")
        self.margin = margin
        self.scale = at_least("scale", scale, 0, above=True)

    def _of_classes(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosines, right = self._cosines(rows), labels[:, None]
        widened = self._widened(cosines.gather(1, right))
        return functional.cross_entropy(self.scale * cosines.scatter(1, right, widened), labels)

    def _widened(self, cosine: torch.Tensor) -> torch.Tensor:
        """The cosine of the angle plus the margin, without the angle: arccos has an infinite slope at its ends."""
        margin = math.radians(self.margin)
        sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).eps ** 2).sqrt()
        further = cosine * math.cos(margin) - sine * math.sin(margin)
        # The angle is at most 180° - margin where its cosine is at least -cos(margin).
        return torch.where(cosine >= -math.cos(margin), further, cosine - margin * math.sin(margin))


class ProxyAnchor(ClassLoss):
    """Class vectors are anchors that pull their class and push the others, hard ones more (Kim et al., CVPR 2020).

    Args:
        dim: of the embedding.
        classes: how many; labels are 0 … classes - 1.
        margin: of the cosine.
        alpha: sharpness, above 0.
        generator: draws the first class vectors. (The paper lets them learn 100 times as fast as the network.)
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim, classes, False, generator)
        self.margin = at_least("margin", margin, 0)
        self.alpha = at_least("alpha", alpha, 0, above=True)

    def _of_classes(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosines = self._cosines(rows)
        right = torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, labels[:, None], True)
        pull = torch.where(right, self.alpha * (self.margin - cosines), -torch.inf)
        push = torch.where(right, -torch.inf, self.alpha * (self.margin + cosines))
        met = right.any(0)
        pulled = _log_one_plus_sum(pull)[met].mean()
        # Where all rows are of one class, nothing pushes that class: log(1 + 0) = 0.
        return pulled + _log_one_plus_sum(push).sum() / self.classes


def _log_one_plus_sum(exponents: torch.Tensor) -> torch.Tensor:
    """log(1 + Σ exp) down the columns."""
    return torch.cat([exponents, exponents.new_zeros(1, exponents.shape[1])]).logsumexp(0)
