"""Held-out pictures ask the embedding: the same questions before step 0, during the run and at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lookalike.metrics import (
    Interval,
    Values,
    average_precision_at_r,
    mean_interval,
    one_shot,
    paired_interval,
    recall_at_k,
    triplet_accuracy,
)
from lookalike.rerank import Reranking, expanded, k_reciprocal
from lookalike.search import RERANKED
from lookalike.training.datasets import Joined, PixelCache
from lookalike.vectors import Vectors, top_k, unit

Rows = npt.NDArray[np.int64]

TITLES = {
    "map_at_r": "MAP@R",
    "r_at_1": "R@1",
    "triplet_accuracy": "triplet accuracy",
    "one_shot": "one-shot accuracy",
    **{f"text_r_at_{k}": f"R@{k} of pictures by words" for k in (1, 5, 10)},
    **{f"picture_r_at_{k}": f"R@{k} of words by pictures" for k in (1, 5, 10)},
}

__all__ = ["TITLES", "Judge", "Verdict", "embed", "means"]


def embed(
    network: Callable[[Any], Any],
    cache: PixelCache | Joined,
    rows: Rows,
    mean: Any,
    std: Any,
    device: str,
    batch: int = 128,
) -> Vectors:
    """Vectors of some pictures, in float32 and without augmentation: (n, dim) float32.

    Args:
        network: normalised pictures (n, c, h, w) → (n, dim).
        cache: the pictures.
        rows: (n,) which of them.
        mean: per channel, of values in [0, 1], as tensors of shape (c, 1, 1) on `device`.
        std: as `mean`.
        device: where the network lives.
        batch: pictures at a time.
    """
    found = []
    with torch.inference_mode():
        for first in range(0, len(rows), batch):
            pictures = cache.batch(rows[first : first + batch]).to(device).float() / 255
            pictures = ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)
            found.append(network(pictures).float().cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class Judge:
    """The questions of one part of the data.

    Attributes:
        rows: (n,) of the pixel cache.
        labels: (n,) class of each.
        categories: (n,) super-class of each, or None: one-shot episodes then draw from all classes.
        makers: (n,) who made each, or None.
        way: classes of an episode.
        episodes: how many; 0 is without.
        originals: (m,) or None. With it, the last m rows are altered copies of others, which are numbered here: the
            copies alone ask, and find only what is no copy. What the copies of one picture find is averaged, since
            they are no independent questions. Without, every picture asks all the others.
    """

    rows: Rows
    labels: npt.NDArray[Any]
    categories: npt.NDArray[Any] | None = None
    makers: npt.NDArray[Any] | None = None
    way: int = 20
    episodes: int = 0
    originals: Rows | None = None

    @property
    def first(self) -> int:
        """The first row that asks."""
        return 0 if self.originals is None else len(self.rows) - len(self.originals)

    def ask(self, vectors: Vectors, reranking: Reranking | None = None) -> dict[str, Values]:
        """Per-query arrays by the name of the measure; "one_shot" has one number per episode.

        Args:
            vectors: (n, dim) of `rows`.
            reranking: of the neighbours, as a search will do it; episodes know no neighbours, and do without.
        """
        groups = None if self.originals is None else np.arange(len(vectors)) >= self.first
        scores = self._reranked(vectors, reranking) if reranking else None
        answers = {
            "map_at_r": average_precision_at_r(vectors, self.labels, groups, scores),
            "r_at_1": recall_at_k(vectors, self.labels, groups=groups, scores=scores),
            "triplet_accuracy": triplet_accuracy(vectors, self.labels, groups, scores),
        }
        if self.originals is not None:
            _, whose, count = np.unique(self.originals, return_inverse=True, return_counts=True)
            answers = {
                name: np.bincount(whose, weights=values[self.first :]) / count for name, values in answers.items()
            }
        if self.episodes:
            answers["one_shot"] = one_shot(
                vectors,
                self.labels,
                categories=self.categories,
                makers=self.makers,
                way=self.way,
                episodes=self.episodes,
            )
        return answers

    def _reranked(self, vectors: Vectors, chosen: Reranking) -> Vectors:
        """(n, n): how alike those that ask find each picture, as `Searcher` orders them."""
        rows = unit(vectors)
        scores: Vectors = rows @ rows.T
        for query in range(self.first, len(rows)):
            allowed = np.arange(len(rows)) < self.first if self.first else np.arange(len(rows)) != query
            count = int(allowed.sum())
            asked = rows[query : query + 1]
            if chosen.expansion:
                near = top_k(np.where(allowed, scores[query], -2)[None], min(chosen.expansion, count))[0]
                cosines = scores[query, near][None]
                asked = expanded(asked, rows[near][None], cosines, count=chosen.expansion, alpha=chosen.alpha)
                scores[query] = (asked @ rows.T)[0]
            if chosen.k1:
                near = top_k(np.where(allowed, scores[query], -2)[None], min(RERANKED, count))[0]
                [alike] = k_reciprocal(asked, rows[near], k1=chosen.k1, k2=chosen.k2, weight=chosen.weight)
                scores[query, near] = 2 + alike  # before everything else, in their new order
        return scores


def means(answers: Mapping[str, Values]) -> dict[str, float]:
    """The mean of each measure over the queries that count."""
    return {name: float(np.nanmean(values)) for name, values in answers.items()}


@dataclass(frozen=True)
class Verdict:
    """Whether training helped: the trained network against the base, query by query, on one part of the data.

    Attributes:
        base: what it is compared with.
        part: "test", or "validation", which has also chosen the checkpoint.
        measure: the one that decides.
        ours: measure → mean and interval of the trained network.
        theirs: the same of the base.
        differences: measure → paired 95 % interval; above zero, training helped.
    """

    base: str
    part: str
    measure: str
    ours: Mapping[str, Interval]
    theirs: Mapping[str, Interval]
    differences: Mapping[str, Interval]

    @classmethod
    def of(
        cls, base: str, part: str, measure: str, ours: Mapping[str, Values], theirs: Mapping[str, Values]
    ) -> Verdict:
        """From the answers of both to the same questions."""
        return cls(
            base,
            part,
            measure,
            {name: mean_interval(values) for name, values in ours.items()},
            {name: mean_interval(values) for name, values in theirs.items()},
            {name: paired_interval(ours[name], theirs[name]) for name in ours},
        )

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Verdict:
        """Back from `document`."""
        tables = {k: {n: Interval(**v) for n, v in document[k].items()} for k in ("ours", "theirs", "differences")}
        return cls(document["base"], document["part"], document["measure"], **tables)

    @property
    def better(self) -> bool:
        """Whether the whole interval of the deciding measure lies above zero."""
        return self.differences[self.measure].low > 0

    def __str__(self) -> str:
        """One line: "better than the base (…) by 0.12 [0.10, 0.14] MAP@R …", or "no better than the base …"."""
        gap, title = self.differences[self.measure], TITLES[self.measure]
        size = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] {title}"
        both = f"{self.ours[self.measure].mean:.4f} against {self.theirs[self.measure].mean:.4f}"
        where = f"on {gap.count:,} {'episodes' if self.measure == 'one_shot' else 'queries'} of the {self.part} part"
        verb = f"better than the base ({self.base}) by" if self.better else f"no better than the base ({self.base}):"
        return f"{verb} {size}, {both}, {where}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        tables = {
            name: {k: asdict(v) for k, v in getattr(self, name).items()} for name in ("ours", "theirs", "differences")
        }
        facts = {"base": self.base, "part": self.part, "measure": self.measure, "better": self.better}
        return {**facts, "text": str(self), **tables}
