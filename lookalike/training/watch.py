"""The collapse watch: says in plain words when a run has stopped learning, with the figures and what to do.

The most reported failure of metric learning is silent: the loss sits at the margin because all pictures have moved to
one point (or one line), where every distance is zero and every gradient, too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CollapseWatch", "Health", "effective_rank", "health", "mean_similarity"]


@dataclass(frozen=True)
class Health:
    """What the embedding of some pictures looks like.

    Attributes:
        similarity: mean cosine between two different pictures; near 1, all look alike.
        rank: effective rank, from 1 to dim: how many directions are really used.
        active: share of triplets that still teach, or None where the loss has none.
    """

    similarity: float
    rank: float
    active: float | None = None


def mean_similarity(embeddings: Tensor) -> float:
    """Mean cosine over all pairs of different rows of (n, dim), in O(n · dim). NaN for fewer than two rows."""
    rows = functional.normalize(embeddings.detach().double(), dim=1)
    n = len(rows)
    if n < 2:
        return float("nan")
    return float((rows.sum(0).square().sum() - rows.square().sum()) / (n * (n - 1)))


def effective_rank(embeddings: Tensor) -> float:
    """Exp of the entropy of the normalised singular values of the rows (Roy and Vetterli, EUSIPCO 2007)."""
    rows = functional.normalize(embeddings.detach().double(), dim=1)
    values = torch.linalg.svdvals(rows)
    share = values / values.sum().clamp_min(1e-12)
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))


def health(embeddings: Tensor, active: float | None = None) -> Health:
    """Figures of one batch or of the validation pictures: (n, dim)."""
    return Health(mean_similarity(embeddings), effective_rank(embeddings), active)


class CollapseWatch:
    """Looks at each report of a run; gives a message at the first sign of each kind of trouble.

    Args:
        level: where the loss sits when all distances are equal (its margin), or None where that says nothing: a loss
            that stays there teaches nothing.
        patience: reports in a row before it speaks.
    """

    def __init__(self, level: float | None = None, patience: int = 3) -> None:
        self.level = level
        self.patience = patience
        self._losses: deque[float] = deque(maxlen=patience)
        self._healths: deque[Health] = deque(maxlen=patience)
        self._said: set[str] = set()

    def look(self, loss: float, found: Health) -> list[str]:
        """Messages that are new at this report, one line each."""
        self._losses.append(loss)
        self._healths.append(found)
        if len(self._losses) < self.patience:
            return []
        figures = f"mean similarity {found.similarity:.3f}, effective rank {found.rank:.1f}, loss {loss:.4f}"
        messages = []
        for sign, seen, advice in self._signs(found):
            if seen and advice not in self._said:  # the sign may hold a figure that changes
                self._said.add(advice)
                messages.append(f"{sign} ({figures}): {advice}")
        return messages

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        healths = [(found.similarity, found.rank, found.active) for found in self._healths]
        return {"losses": list(self._losses), "healths": healths, "said": sorted(self._said)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on watching where `state_dict` was taken."""
        self._losses.extend(state["losses"])
        self._healths.extend(Health(*figures) for figures in state["healths"])
        self._said = set(state["said"])

    def _signs(self, found: Health) -> list[tuple[str, bool, str]]:
        collapsed = all(h.similarity > 0.95 for h in self._healths)
        flat = not collapsed and all(h.rank < 2.5 for h in self._healths)
        stuck = self.level is not None and all(abs(x - self.level) < 0.02 * self.level for x in self._losses)
        idle = all(h.active is not None and h.active < 0.01 for h in self._healths)
        return [
            (
                "the embedding has collapsed: all pictures look alike to it",
                collapsed,
                'lower optimizer.rate, begin with miner "random" or "semi_hard" (hard negatives come later, by '
                'miner.schedule), or take loss "supervised_contrastive"',
            ),
            (
                "the embedding uses hardly more than one direction",
                flat,
                "lower optimizer.rate, or take more classes per batch (sampler.classes)",
            ),
            (
                f"the loss is stuck at the margin ({self.level or 0:.3g})",
                stuck and not collapsed,
                'positives and negatives are equally far: lower optimizer.rate or take miner "semi_hard"',
            ),
            (
                f"only {100 * (found.active or 0):.1f} % of the triplets still teach",
                idle,
                'take harder ones: miner "semi_hard" or "hard", sampler.kind "category", or a larger margin',
            ),
        ]
