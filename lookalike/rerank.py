"""What can still be done with a ranking once vectors are compared: ask the neighbours as well.

`expanded` moves a query towards its nearest neighbours and asks again; `k_reciprocal` orders answers by how many
neighbours they share with the query. Both are pure functions of vectors, in NumPy. `Reranking` says which of them a
bundle wants; it is plain data that lives in the manifest.

Sources: alpha query expansion is that of Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human
Annotation" (TPAMI 2018), which with alpha 0 is the average query expansion of Chum et al. (ICCV 2007); k-reciprocal
encoding that of Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import ShapeError
from lookalike.vectors import Vectors, top_k, unit

Whole = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

# Numbers held at once, per block of rows: 32 MiB of float32.
BLOCK_CELLS = 1 << 23
# More neighbours than this help nobody, and a bundle must not make a search fetch a whole index.
MOST = 1000
# Squared distances of float32 unit vectors carry errors of about this size: a row that knows no larger one sees copies
# of itself alone.
_NOISE = 1e-6

__all__ = ["Reranking", "expanded", "k_reciprocal"]


@dataclass(frozen=True, slots=True)
class Reranking:
    """How a search goes on after its first ranking. Pure data; by default nothing happens. True if anything does.

    Attributes:
        expansion: how many nearest neighbours the query is moved towards before it is asked again, at most 1000;
            0 is off.
        alpha: neighbours are weighted by their score to this power, in [0, 100]; 0 weights them equally.
        k1: how many neighbours k-reciprocal encoding looks at, at most 1000; 0 is off.
        k2: how many of them a vector is averaged over, itself included, from 1 to 1000.
        weight: share of the original distance beside the Jaccard distance, in [0, 1].
    """

    expansion: int = 0
    alpha: float = 3.0
    k1: int = 0
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        for name, least in (("expansion", 0), ("k1", 0), ("k2", 1)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= MOST:
                raise ValueError(f"{name} must be a whole number from {least} to {MOST}, got {count!r}")
        if not _is_number(self.alpha) or not 0 <= self.alpha <= 100:
            raise ValueError(f"alpha must be a number in [0, 100], got {self.alpha!r}")
        if not _is_number(self.weight) or not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be a number in [0, 1], got {self.weight!r}")

    def __bool__(self) -> bool:
        return self.expansion > 0 or self.k1 > 0

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Reranking:
        """From its JSON form; what is missing has its default. Raises ValueError on unknown or impossible values."""
        if not isinstance(document, Mapping):
            raise ValueError(f"re-ranking must be an object of names and numbers, got {document!r}")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(map(str, set(document) - set(known))):
            raise ValueError(f"re-ranking knows {', '.join(known)}; got {', '.join(unknown)}")
        return cls(**document)

    def to_document(self) -> dict[str, Any]:
        """Its JSON form."""
        return asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def expanded(queries: Any, neighbours: Any, scores: Any, *, count: int = 5, alpha: float = 3.0) -> Vectors:
    """Queries moved towards their nearest neighbours: the query plus the sum of neighbours times score ** alpha.

    Radenović et al. 2018; the defaults are those of FastReID. What points away (a score of 0 or less) does not pull,
    whatever alpha is.

    Args:
        queries: (n, dim); rows are brought to unit length.
        neighbours: (n, m, dim) vectors of the gallery, in any order; brought to unit length, too.
        scores: (n, m) cosines of the neighbours with their query.
        count: how many of the m count, those with the best scores; all where m is smaller.
        alpha: how much more the nearest ones count, at least 0.

    Returns:
        (n, dim) float32, rows of unit length; the queries themselves where m is 0.

    Raises:
        ShapeError: the shapes do not fit, or something is not finite or has no direction. ValueError: ``count < 0``
            or ``alpha < 0``.
    """
    if count < 0 or not alpha >= 0:
        raise ValueError(f"count and alpha must be at least 0, got {count} and {alpha}")
    rows = unit(queries, None, "queries")
    near, cosines = np.asarray(neighbours, dtype=np.float32), np.asarray(scores, dtype=np.float32)
    n, dim = rows.shape
    if near.ndim != 3 or near.shape[::2] != (n, dim) or cosines.shape != near.shape[:2]:
        raise ShapeError(
            f"{n} queries of {dim} numbers need neighbours of shape ({n}, m, {dim}) and scores of shape ({n}, m), "
            f"got {near.shape} and {cosines.shape}"
        )
    if not np.isfinite(cosines).all():
        raise ShapeError("scores must be finite")
    best = top_k(cosines, count)
    near = unit(np.take_along_axis(near, best[:, :, None], axis=1).reshape(-1, dim), dim, "neighbours")
    cosines = np.take_along_axis(cosines, best, axis=1)
    weights = np.where(cosines > 0, np.maximum(cosines, 0) ** np.float32(alpha), 0)  # 0 ** 0 is 1
    return unit(rows + np.einsum("nk,nkd->nd", weights, near.reshape(n, -1, dim)), dim, "expanded queries")


def k_reciprocal(queries: Any, gallery: Any, *, k1: int = 20, k2: int = 6, weight: float = 0.3) -> Vectors:
    """How alike queries and gallery are by the neighbours they share: 1 - (1 - weight) * jaccard - weight * original.

    The algorithm is that of Zhong et al. 2017, with the defaults of its authors' code: each picture becomes a sparse
    vector over its k1-reciprocal neighbours, extended by the (k1 / 2)-reciprocal neighbours of those that share more
    than two thirds of them with it, weighted by exp(-distance), averaged over its k2 nearest; sparse vectors are
    compared by their Jaccard distance. Distances are squared Euclidean ones over the largest in their row. (The paper
    says "at least two thirds", its code "more than"; the published numbers are the code's, and so is this.)

    Queries are one another's neighbours, too, as they were published: ask one at a time to have answers that do not
    depend on the company. A picture is always its own nearest neighbour, also among copies.

    Memory is that of the result and of (n + m) * max(k1, k2) neighbours; no (n + m)² matrix is held.

    Args:
        queries: (n, dim); rows are brought to unit length.
        gallery: (m, dim), likewise.
        k1: neighbours looked at, at least 1.
        k2: neighbours averaged over, itself included; 1 does not average.
        weight: share of the original distance, in [0, 1]; with 1 the order is that of the cosine.

    Returns:
        (n, m) float32 in [0, 1], higher is closer.

    Raises:
        ShapeError: not (n, dim) and (m, dim), not finite, or a row of zeros. ValueError: impossible options.
    """
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        raise ValueError(f"k1 and k2 must be at least 1 and weight in [0, 1], got {k1}, {k2} and {weight}")
    asked = unit(queries, None, "queries")
    known = unit(gallery, asked.shape[1] or None, "gallery")
    n, m = len(asked), len(known)
    if not n or not m:
        return np.zeros((n, m), np.float32)
    rows = np.concatenate([asked, known])
    rank, largest = _neighbours(rows, max(k1 + 1, k2))
    codes = _encoded(rows, rank, largest, k1)
    if k2 > 1:
        codes = _averaged(codes, rank[:, :k2])
    by_column = codes.transposed(first=n)
    result: Vectors = asked @ known.T
    for i in range(n):
        _, columns, ours = codes.taken(np.array([i]))
        which, pictures, theirs = by_column.taken(columns)
        shared = np.bincount(pictures, weights=np.minimum(ours[which], theirs), minlength=m)
        distance = _squared(result[i]) / largest[i]
        # Codes sum to 1, so their union is 2 less what they share.
        result[i] = (1 - weight) * shared / (2 - shared) + weight * (1 - distance)
    return np.clip(result, 0, 1, out=result)


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A square matrix by its non-zero entries, row after row: row i is `starts[i]` to `starts[i + 1]`."""

    starts: Whole
    columns: Whole
    values: Values

    @classmethod
    def of(cls, size: int, rows: Whole, columns: Whole, values: Values | None = None) -> _Sparse:
        """From entries in order of their rows; ones where no values are given."""
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
        return cls(starts, columns, np.ones(len(columns)) if values is None else values)

    def taken(self, rows: Whole) -> tuple[Whole, Whole, Values]:
        """The entries of some rows, one after the other: (e,) places in `rows`, (e,) columns, (e,) values."""
        begin, lengths = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        which = np.repeat(np.arange(len(rows)), lengths)
        entries = np.arange(len(which)) + np.repeat(begin - np.cumsum(lengths) + lengths, lengths)
        return which, self.columns[entries], self.values[entries]

    def transposed(self, first: int) -> _Sparse:
        """Columns as rows, of the rows from `first` on, which are counted from there."""
        size, kept = len(self.starts) - 1, slice(self.starts[first], None)
        rows = np.repeat(np.arange(size - first), np.diff(self.starts[first:]))
        order = np.argsort(self.columns[kept], kind="stable")
        return self.of(size, self.columns[kept][order], rows[order], self.values[kept][order])


def _squared(cosines: Any) -> Any:
    """Squared Euclidean distances of unit vectors; rounding makes none of them negative."""
    return np.maximum(2 - 2 * cosines, 0)


def _neighbours(rows: Vectors, k: int) -> tuple[Whole, Values]:
    """The `k` nearest of each row (n, min(k, n)), itself first, and the largest squared distance in each row (n,)."""
    n = len(rows)
    rank, largest = np.empty((n, min(k, n)), np.int64), np.empty(n)
    step = max(1, BLOCK_CELLS // n)
    for start in range(0, n, step):
        scores = rows[start : start + step] @ rows.T
        places = np.arange(len(scores))
        largest[start + places] = _squared(scores.min(axis=1))
        scores[places, start + places] = np.inf
        rank[start + places] = top_k(scores, k)
    return rank, np.where(largest > _NOISE, largest, 1)


def _reciprocal(lists: Whole) -> _Sparse:
    """Which entries of neighbour lists (n, k) are mutual: j where j is in the list of i and i in that of j."""
    n = len(lists)
    rows = np.arange(n)[:, None]
    mutual = np.isin(lists * n + rows, rows * n + lists)
    return _Sparse.of(n, np.nonzero(mutual)[0], lists[mutual])


def _encoded(rows: Vectors, rank: Whole, largest: Values, k1: int) -> _Sparse:
    """The k-reciprocal code of each row: weights that sum to 1 over its extended reciprocal neighbours."""
    n, dim = rows.shape
    whole = _reciprocal(rank[:, : k1 + 1])
    half = _reciprocal(rank[:, : round(k1 / 2) + 1])
    found: list[Whole] = []
    weights: list[Values] = []
    step = max(1, BLOCK_CELLS // ((k1 + 1) * (k1 // 2 + 2) * dim))
    for start in range(0, n, step):
        block = np.arange(start, min(start + step, n))
        which, candidates, _ = whole.taken(block)
        pairs = block[which] * n + candidates  # one number for a row and a neighbour of it
        candidate, members, _ = half.taken(candidates)
        triples = block[which[candidate]] * n + members
        shared = np.bincount(candidate, weights=np.isin(triples, pairs), minlength=len(pairs))
        sizes = np.bincount(candidate, minlength=len(pairs))
        found.append(np.unique(np.concatenate([pairs, triples[(3 * shared > 2 * sizes)[candidate]]])))
        left, right = np.divmod(found[-1], n)
        distances = _squared(np.einsum("ij,ij->i", rows[left], rows[right])) / largest[left]
        weight = np.exp(-distances)
        weights.append(weight / np.bincount(left, weights=weight)[left])
    left, right = np.divmod(np.concatenate(found), n)
    return _Sparse.of(n, left, right, np.concatenate(weights))


def _averaged(codes: _Sparse, nearest: Whole) -> _Sparse:
    """The mean of the codes of the nearest rows (n, k), itself among them: the paper's local query expansion."""
    n, k = nearest.shape
    found: list[Whole] = []
    values: list[Values] = []
    step = max(1, BLOCK_CELLS // (k * int(np.diff(codes.starts).max())))
    for start in range(0, n, step):
        which, columns, parts = codes.taken(nearest[start : start + step].ravel())
        entries, places = np.unique((start + which // k) * n + columns, return_inverse=True)
        found.append(entries)
        values.append(np.bincount(places, weights=parts) / k)
    left, right = np.divmod(np.concatenate(found), n)
    return _Sparse.of(n, left, right, np.concatenate(values))
