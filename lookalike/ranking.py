"""The measures of `lookalike.metrics` where there are very many pictures: all of them from one pass over the scores.

What is asked of a ranking are the ranks of the relevant pictures. The rank of the i-th of them is i, plus how many
irrelevant ones score at least as much (less `TIE`); those are counted among the few best irrelevant ones, which a
partition finds without sorting the rest. Ties go against the query, as there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lookalike.errors import ShapeError
from lookalike.metrics import TIE, Numbers, Values
from lookalike.vectors import Vectors, unit

# Scores held at once by each thread: 128 MiB of float32. The matrix product repacks the gallery for every block, and
# wants large ones.
BLOCK_CELLS = 1 << 25

__all__ = ["first_ranks", "retrieval"]


def retrieval(
    vectors: Any,
    labels: Any,
    groups: Any = None,
    *,
    gallery: Any = None,
    gallery_labels: Any = None,
    gallery_groups: Any = None,
    ks: Sequence[int] = (1, 5, 10),
    full: bool = False,
) -> dict[str, Values]:
    """The measures of `lookalike.metrics` for all queries from one pass over the scores, in blocks, with all cores.

    Args:
        vectors: (n, dim) the queries, unit length or not.
        labels: (n,) of any one type that can be compared; equal means relevant.
        groups: (n,) or None; pictures of the query's group are left out of its gallery.
        gallery: (m, dim) what is searched, or None: each query searches all the others.
        gallery_labels: (m,) needed with a gallery.
        gallery_groups: (m,) needed with a gallery and groups.
        ks: how many neighbours to look at, each at least 1.
        full: measure as well what depends on the whole ranking, for which every line of scores must be sorted.

    Returns:
        (n,) float64 arrays, NaN for a query without any relevant picture, under the names "r_at_K" (`recall_at_k`),
        "p_at_K" (`precision_at_k`) and "ndcg_at_K" for each K of `ks`, and "map_at_r" (`average_precision_at_r`);
        with `full` also "map" (`average_precision`), "mrr" (`reciprocal_rank`) and "triplet_accuracy".

    Raises:
        ShapeError: the lengths differ, a row of vectors has no direction, or something of the gallery is missing.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must hold numbers of at least 1, got {tuple(ks)}")
    shelf = _Shelf.of(vectors, labels, groups, gallery, gallery_labels, gallery_groups)
    names = [f"{kind}_at_{k}" for k in ks for kind in ("r", "p", "ndcg")]
    names += ["map_at_r", *(("map", "mrr", "triplet_accuracy") if full else ())]
    values = {name: np.full(len(shelf.queries), np.nan) for name in names}
    # Besides the scores, a block holds some arrays as wide as the largest class.
    width = len(shelf.gallery) + 8 * int((shelf.ends - shelf.begins).max(initial=0))
    step = max(1, BLOCK_CELLS // max(1, width))

    def measure(start: int) -> None:
        part = slice(start, start + step)
        for name, found in _measures(shelf, part, ks, full).items():
            values[name][shelf.order[part]] = found

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, 4)) as pool:
        list(pool.map(measure, range(0, len(shelf.queries), step)))
    return values


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Queries and gallery, both in the order of their labels, so that what is relevant lies side by side.

    Attributes:
        queries: (n, dim).
        gallery: (m, dim).
        begins: (n,) the first relevant column of each query.
        ends: (n,) and the one after the last.
        order: (n,) which of the caller's queries each is.
        groups: of the queries (n,) and of the gallery (m,), or None.
        alone: whether queries and gallery are the same pictures: the query itself is no answer.
    """

    queries: Vectors
    gallery: Vectors
    begins: Numbers
    ends: Numbers
    order: Numbers
    groups: tuple[Numbers, Numbers] | None
    alone: bool

    @classmethod
    def of(cls, vectors: Any, labels: Any, groups: Any, gallery: Any, their_labels: Any, their_groups: Any) -> _Shelf:
        queries = unit(vectors)
        alone = gallery is None
        if alone and (their_labels is not None or their_groups is not None):
            raise ShapeError("gallery_labels and gallery_groups need a gallery")
        if not alone and (groups is None) != (their_groups is None):
            raise ShapeError("groups and gallery_groups go together: give both or neither")
        shelf = queries if alone else unit(gallery, queries.shape[1], "gallery")
        label, theirs = _shared(labels, their_labels, len(queries), 0 if alone else len(shelf), "labels")
        order, places = np.argsort(label, kind="stable"), np.argsort(theirs, kind="stable")
        found = None
        if groups is not None:
            ours, others = _shared(groups, their_groups, len(queries), 0 if alone else len(shelf), "groups")
            found = (ours[order], others[places])
        label, theirs = label[order], theirs[places]
        begins, ends = np.searchsorted(theirs, label, "left"), np.searchsorted(theirs, label, "right")
        return cls(queries[order], shelf[places], begins, ends, order, found, alone)

    def scores(self, part: slice) -> Vectors:
        """(b, m) cosines of some queries; minus infinity where a picture is left out of the query's gallery."""
        scores: Vectors = self.queries[part] @ self.gallery.T
        if self.groups is not None:
            scores[self.groups[0][part, None] == self.groups[1]] = -np.inf
        elif self.alone:
            scores[np.arange(len(scores)), part.start + np.arange(len(scores))] = -np.inf
        return scores


def _measures(shelf: _Shelf, part: slice, ks: Sequence[int], full: bool) -> dict[str, Values]:
    """The measures of a block of queries, from the ranks of what is relevant to them."""
    scores = shelf.scores(part)
    begins, ends = shelf.begins[part], shelf.ends[part]
    wide = int((ends - begins).max())
    if not wide:
        return {}
    near = np.full((len(scores), wide), -np.inf, dtype=np.float32)
    edges = [0, *(1 + np.flatnonzero(np.diff(begins) | np.diff(ends))), len(scores)]
    for first, last in pairwise(edges):  # a class at a time
        columns = slice(begins[first], ends[first])
        near[first:last, : ends[first] - begins[first]] = scores[first:last, columns]
        scores[first:last, columns] = -np.inf  # what stays are the irrelevant ones
    near.sort(axis=1)
    total = np.isfinite(near).sum(1)
    deep = scores.shape[1] if full else min(scores.shape[1], max(*ks, wide))
    if deep < scores.shape[1]:
        scores.partition(scores.shape[1] - deep, axis=1)
    best = scores[:, scores.shape[1] - deep :]
    best.sort(axis=1)
    # The least float32 that is no less than the score less TIE: compared with it, float32 tells what float64 would.
    exact = near.astype(np.float64) - TIE
    least = exact.astype(np.float32)
    least = np.where(least < exact, np.nextafter(least, np.float32(np.inf)), least)
    ahead = np.empty(near.shape, dtype=np.int64)
    for query, line in enumerate(best):
        ahead[query] = deep - np.searchsorted(line, least[query])
    ahead = ahead[:, ::-1]  # the nearest first; where all of `best` is ahead, the rank is beyond whatever is asked
    place = np.arange(1, wide + 1)
    counts = place <= total[:, None]
    rank = np.where(counts, place + ahead, np.iinfo(np.int64).max // 2)
    found: dict[str, Values] = {}
    with np.errstate(divide="ignore", invalid="ignore"):  # queries with nothing relevant become NaN
        for k in ks:
            inside = rank <= k
            gains = np.where(inside, 1 / np.log2(1.0 + rank), 0).sum(1)
            ideal = np.cumsum(1 / np.log2(np.arange(2.0, k + 2)))[np.minimum(np.maximum(total, 1), k) - 1]
            found[f"r_at_{k}"] = np.asarray(inside.any(1), dtype=np.float64)
            found[f"p_at_{k}"] = inside.sum(1) / k
            found[f"ndcg_at_{k}"] = gains / ideal
        precision = np.where(counts, place / rank, 0)
        found["map_at_r"] = np.where(rank <= total[:, None], precision, 0).sum(1) / total
        if full:
            others = np.isfinite(best).sum(1)
            found["map"] = precision.sum(1) / total
            found["mrr"] = 1.0 / rank[:, 0]
            found["triplet_accuracy"] = 1 - np.where(counts, ahead, 0).sum(1) / (total * others)
    for measured in found.values():
        measured[total == 0] = np.nan
    return found


def _shared(ours: Any, theirs: Any, count: int, other: int, what: str) -> tuple[Numbers, Numbers]:
    """Labels or groups as integers, the same ones for queries and gallery; alone, the queries are the gallery."""
    left, right = np.asarray(ours), np.asarray(() if theirs is None else theirs)
    if left.shape != (count,) or right.shape != (other,):
        raise ShapeError(
            f"{what} must have shape ({count},), one for each vector, and those of a gallery ({other},): "
            f"got {left.shape} and {right.shape}"
        )
    both = np.unique(np.concatenate([left, right]) if other else left, return_inverse=True)[1].astype(np.int64)
    return both[:count], both[count:] if other else both


def first_ranks(queries: Any, gallery: Any, pairs: Any) -> Values:
    """Rank, from 1, of the first relevant item for each query: words that look for pictures, or the other way round.

    Recall at k is the share of ranks up to k, and the median rank their median, as the literature on captions counts
    (Hodosh, Young and Hockenmaier 2013, "Framing image description as a ranking task"). Ties go against the query.

    Args:
        queries: (n, dim) rows, unit length or not.
        gallery: (m, dim) rows.
        pairs: (p, 2) integers, a query and an item that is relevant to it.

    Returns:
        (n,) float64; NaN for a query without anything relevant.

    Raises:
        ShapeError: the widths differ, a row has no direction, or a pair names what is not there.
    """
    asking = unit(queries, what="queries")
    searched = unit(gallery, asking.shape[1], "the gallery")
    fits = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if len(fits) and (fits.min() < 0 or (fits.max(0) >= (len(asking), len(searched))).any()):
        raise ShapeError(f"pairs must name one of {len(asking)} queries and one of {len(searched)} items each")
    ranks = np.full(len(asking), np.nan)
    relevant = np.zeros(len(searched), dtype=bool)
    order = fits[np.argsort(fits[:, 0], kind="stable")]
    bounds = np.searchsorted(order[:, 0], np.arange(len(asking) + 1))
    step = max(1, BLOCK_CELLS // max(1, len(searched)))
    for start in range(0, len(asking), step):
        for query, line in enumerate(asking[start : start + step] @ searched.T, start):
            own = order[bounds[query] : bounds[query + 1], 1]
            if len(own):
                relevant[own] = True
                ranks[query] = 1 + int((line[~relevant] >= line[own].max() - TIE).sum())
                relevant[own] = False
    return ranks
