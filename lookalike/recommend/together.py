"""What was clicked or bought together, and what is learned from it."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.catalogue import listed_path, read_table
from lookalike.errors import CatalogueError, QueryError
from lookalike.images import shown
from lookalike.index.base import Hit, Index
from lookalike.metrics import Values
from lookalike.recommend._items import Kind, Product, cosine, got, keys_of, kinds_of, vector_of
from lookalike.vectors import Vectors, top_k, unit

Whole = npt.NDArray[np.int64]

# A product borrows from so many that look like it, each weighing e times less per `KERNEL` of cosine that it is
# further away than the nearest.
NEIGHBOURS, KERNEL = 50, 0.05
# Pairs that the prior is worth: of a product with so many pairs, half of what is said is its own.
PRIOR = 10.0
# Against a division by nothing.
TINY = 1e-12

__all__ = ["CoOccurrence", "Evidence", "Learned"]


@dataclass(frozen=True)
class CoOccurrence:
    """How often two items were clicked or bought together.

    Attributes:
        counts: key → partner → how often, both ways round.
        unknown: names in the list that no item has; their pairs are left out.
    """

    counts: Mapping[str, Mapping[str, float]]
    unknown: tuple[str, ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str, float]]) -> CoOccurrence:
        """From (key, key, count). Equal pairs add up, whichever way round; an item with itself says nothing.

        Raises:
            QueryError: a count that is negative or not finite.
        """
        counts: dict[str, dict[str, float]] = defaultdict(dict)
        for left, right, count in pairs:
            if not 0 <= count < math.inf:
                raise QueryError(f"pair {left!r}, {right!r}: a count must be finite and at least 0, got {count}")
            if left != right and count:
                for one, other in ((left, right), (right, left)):
                    counts[one][other] = counts[one].get(other, 0.0) + count
        return cls(dict(counts))

    @classmethod
    def read(cls, path: str | os.PathLike[str], index: Index, by: str = "id") -> CoOccurrence:
        """From a CSV file with columns ``left,right`` and, if there is one, ``count`` (else each row counts 1).

        Args:
            path: the file. Items are named by key, by path (relative to the file), or by the value of `by`.
            index: where they are.
            by: a column of the payload.

        Raises:
            CatalogueError: the file is malformed, a count is not a number of at least 0, or no pair is known.
        """
        table = read_table(path)
        left, right, count = table.column("left"), table.column("right"), table.find("count")
        named = {cells[place] for _, cells in table.body for place in (left, right)}
        keys = keys_of(index, named, by, partial(listed_path, path))
        known: list[tuple[str, str, float]] = []
        for number, cells in table.body:
            times = 1.0 if count is None else _count(path, number, cells[count])
            ends = [keys.get(cells[place]) for place in (left, right)]
            if ends[0] and ends[1]:
                known.append((ends[0][0], ends[1][0], times))
        found = cls.of(known)
        unknown = tuple(sorted(named - set(keys)))
        if not found.counts:
            example = f", e.g. {unknown[0]!r}" if unknown else ""
            raise CatalogueError(
                f"{shown(os.fspath(path))} holds no pair of two items of index {index.location}: {len(unknown):,} of "
                f"{len(named):,} names are unknown{example}; name items by key, path or {by}"
            )
        return replace(found, unknown=unknown)

    @property
    def popularity(self) -> dict[str, float]:
        """Key → the sum of its counts."""
        return {key: sum(partners.values()) for key, partners in self.counts.items()}


def _count(path: str | os.PathLike[str], number: int, cell: str) -> float:
    try:
        count = float(cell)
    except ValueError:
        count = math.nan
    if not 0 <= count < math.inf:
        raise CatalogueError(
            f"{shown(os.fspath(path))}, row {number}: count must be a number of at least 0, got {cell}"
        )
    return count


class Learned:
    """The items with partners as arrays: vectors (p, dim), and the counts as rows of a sparse matrix."""

    def __init__(self, index: Index, together: CoOccurrence) -> None:
        items = [item for item in got(index, sorted(together.counts)) if item is not None]
        self.keys = [item.key for item in items]
        self.row = {key: row for row, key in enumerate(self.keys)}
        self.vectors = np.array([vector_of(item) for item in items], np.float32).reshape(-1, index.dim)
        self._payloads = [item.payload for item in items]
        self._coded: dict[str, tuple[list[Kind], Whole]] = {}
        cells = [
            (row, self.row[partner], count)
            for row, key in enumerate(self.keys)
            for partner, count in together.counts[key].items()
            if partner in self.row
        ]
        rows, columns, counts = (np.array(part) for part in zip(*cells, strict=True)) if cells else (np.zeros(0),) * 3
        self._rows, self._columns, self._counts = rows.astype(np.int64), columns.astype(np.int64), counts.astype(float)
        self._totals = np.bincount(self._rows, self._counts, minlength=len(items)).astype(np.float64)
        self._similar = self._counts / np.sqrt(self._totals[self._rows] * self._totals[self._columns])
        self._starts = np.searchsorted(self._rows, np.arange(len(items) + 1))

    def evidence(self, liked: Sequence[Product], across: str | None, kinds: Collection[Kind]) -> Evidence:
        """What is known of products in the categories `kinds`, and what is known of those that look like them."""
        size = len(self.keys)
        own, lent, similar, amount = np.zeros(size), np.zeros(size), np.zeros(size), 0.0
        names, codes = self._coded_by(across)
        theirs = np.isin(codes, [code for code, name in enumerate(names) if name in kinds])
        for product in liked:
            mine = np.array([self.row[item.key] for item in product.items if item.key in self.row], dtype=np.int64)
            near, weights = self._neighbours(product.vector, mine, theirs if names else None)
            borrowed = self._summed(near, weights, self._counts)
            known, given = float(self._totals[mine].sum()), float(borrowed.sum())
            own += self._summed(mine, np.ones(len(mine)), self._counts)
            lent += borrowed
            # Means over items, so that what is known and what is borrowed compare.
            for rows, says, worth in ((mine, np.ones(len(mine)), known), (near, weights, PRIOR)):
                if len(rows):
                    similar += worth / (known + PRIOR) * self._summed(rows, says / says.sum(), self._similar)
            amount += (known + PRIOR * given / (given + PRIOR)) / len(liked)
        shares = None
        if names:
            of_kind = self._summed(np.flatnonzero(theirs), np.ones(int(theirs.sum())), self._counts)
            share = _by_kind(self._totals, codes, len(names)) / max(float(self._totals.sum()), TINY)
            for counts in (of_kind, lent, own):
                share = (_by_kind(counts, codes, len(names)) + PRIOR * share) / (float(counts.sum()) + PRIOR)
            shares = {name: float(share[code]) for code, name in enumerate(names) if name not in kinds}
        weights = own + PRIOR * lent / max(float(lent.sum()), TINY)
        return Evidence(self, weights, similar, amount / (amount + PRIOR), names, codes, shares)

    def _coded_by(self, column: str | None) -> tuple[list[Kind], Whole]:
        """The categories there are, and which one each item has, -1 for none; the first one of several."""
        if column is None:
            return [], np.full(len(self.keys), -1)
        if column not in self._coded:
            firsts = [next(iter(kinds_of(payload, column)), None) for payload in self._payloads]
            place = {name: code for code, name in enumerate(dict.fromkeys(one for one in firsts if one is not None))}
            codes = np.array([-1 if one is None else place[one] for one in firsts], dtype=np.int64)
            self._coded[column] = list(place), codes
        return self._coded[column]

    def _neighbours(self, vector: Vectors, mine: Whole, allowed: Any) -> tuple[Whole, Values]:
        """Items with partners that look like a product, itself left out, and how much each says."""
        cosines = self.vectors @ vector
        cosines[mine] = -np.inf
        if allowed is not None:
            cosines[~allowed] = -np.inf
        near = top_k(cosines[None], NEIGHBOURS)[0].astype(np.int64)
        near = near[np.isfinite(cosines[near])]
        return near, np.exp((cosines[near].astype(np.float64) - cosines[near].max(initial=-1.0)) / KERNEL)

    def _summed(self, rows: Whole, weights: Values, values: Values) -> Values:
        """The weighted sum of some rows of the sparse matrix with these `values`: (p,)."""
        lengths = self._starts[rows + 1] - self._starts[rows]
        which = np.repeat(np.arange(len(rows)), lengths)
        cells = np.arange(len(which)) + np.repeat(self._starts[rows] - np.cumsum(lengths) + lengths, lengths)
        found = weights[which] * values[cells]
        return np.bincount(self._columns[cells], found, minlength=len(self.keys)).astype(np.float64)


def _by_kind(values: Values, codes: Whole, kinds: int) -> Values:
    there = codes >= 0
    return np.bincount(codes[there], values[there], minlength=kinds).astype(np.float64)


@dataclass(frozen=True)
class Evidence:
    """What goes with one question. Arrays (p,) are over the items that have partners.

    Attributes:
        learned: these items.
        weights: how often each is a partner, borrowed counts included.
        similar: item-to-item similarity.
        trust: how much that weighs beside looks, in [0, 1).
        names: the categories.
        codes: which of them each item has.
        shares: category → its share among the partners, without the question's own; None where none are asked for.
    """

    learned: Learned
    weights: Values
    similar: Values
    trust: float
    names: Sequence[Kind]
    codes: Whole
    shares: Mapping[Kind, float] | None

    def likeliest(self, places: int) -> list[tuple[Kind, float]]:
        """The categories that would have one of so many places, the likeliest first, with their shares."""
        shares = self.shares or {}
        total = max(sum(shares.values()), TINY)
        ranked = sorted(shares.items(), key=lambda pair: (-pair[1], str(pair[0])))
        return [(kind, share / total) for kind, share in ranked if share / total * places >= 1]

    def target(self, kind: Kind, question: Vectors) -> Vectors:
        """Where the partners in a category lie, (1, dim); the question itself where there are none."""
        code = self.names.index(kind) if kind in self.names else len(self.names)
        rows = np.flatnonzero((self.codes == code) & (self.weights > 0))
        mean = self.weights[rows] @ self.learned.vectors[rows]
        return unit(mean) if np.linalg.norm(mean) > 1e-6 else question

    def partners(self, count: int) -> list[str]:
        """The keys of the `count` items most clicked or bought together with the question."""
        best = top_k(self.similar[None].astype(np.float32), count)[0]
        return [self.learned.keys[row] for row in best if self.similar[row] > 0]

    def relevance(self, question: Vectors, across: str | None, hits: Sequence[Hit], vectors: Vectors) -> Values:
        """How well candidates (n,) go with the question: by what was together, of the most, and by looks."""
        if not hits:
            return np.zeros(0)
        rows = [self.learned.row.get(hit.key, -1) for hit in hits]
        similar = np.array([self.similar[row] if row >= 0 else 0.0 for row in rows])
        kinds = [next(iter(kinds_of(hit.payload, across)), None) for hit in hits]
        aims = {kind: question[0] if kind is None else self.target(kind, question)[0] for kind in set(kinds)}
        looks = np.array([cosine(vector, aims[kind]) for vector, kind in zip(vectors, kinds, strict=True)])
        return self.trust * similar / max(float(similar.max()), TINY) + (1 - self.trust) * looks
