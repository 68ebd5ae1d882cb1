"""The recommender, and the choice of answers among candidates."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.encoder import Encoder
from lookalike.errors import QueryError, ShapeError
from lookalike.images import Picture, read_bytes, shown
from lookalike.index.base import Hit, Index, Item, Where, matches, parse_where
from lookalike.metrics import Values
from lookalike.recommend._items import Kind, Product, content, cosine, got, keys_of, kinds_of, vector_of
from lookalike.recommend.together import CoOccurrence, Evidence, Learned
from lookalike.search import DISLIKED_WEIGHT, ITSELF
from lookalike.vectors import Vectors, unit

# Answers are chosen among so many times k candidates, and at least so many.
POOL_TIMES, POOL_LEAST = 5, 100
# A picture without a category has that of most of so many nearest neighbours.
VOTERS = 10
# Cosines of float32 vectors are known to about this.
SLACK = 1e-6

__all__ = ["Recommender", "maximal_marginal_relevance"]


def maximal_marginal_relevance(
    relevance: Any,
    vectors: Any,
    k: int,
    diverse: float = 0.0,
    kinds: Sequence[Any] | None = None,
    shares: Mapping[Any, float] | None = None,
) -> list[int]:
    """Which of n candidates to show, best first: (1 - diverse) * relevance - diverse * the most alike chosen before.

    Carbonell and Goldstein 1998, whose lambda is 1 - diverse. The first choice is the most relevant; ties go to the
    first in order. With `kinds` and `shares`, each place first goes to the kind with the highest average
    share / (places + 1), so that kinds have places in proportion to their shares, as far as they have candidates.

    Args:
        relevance: (n,) higher is better.
        vectors: (n, dim) of the candidates; brought to unit length.
        k: how many to choose, at least 1; all where there are fewer.
        diverse: in [0, 1]; 0 is the order of relevance.
        kinds: (n,) the kind of each candidate.
        shares: kind → its share, at least 0; kinds without one come when the others are used up.

    Raises:
        ShapeError: the shapes do not fit. QueryError: ``k < 1``, or `diverse` out of range.
    """
    worth, rows = np.asarray(relevance, dtype=np.float64), unit(vectors)
    n = len(rows)
    if worth.shape != (n,) or (kinds is not None and len(kinds) != n):
        raise ShapeError(f"{n} vectors need as many numbers of relevance, and kinds, got {worth.shape}")
    _check(k, diverse)
    closest = np.full(n, -np.inf)
    free = np.ones(n, dtype=bool)
    places: Counter[Any] = Counter()
    chosen: list[int] = []
    while len(chosen) < min(k, n):
        value = (1 - diverse) * worth - diverse * closest if chosen else worth
        allowed = free
        if kinds is not None and shares is not None:
            left = {kinds[i] for i in range(n) if free[i]}
            averages = {kind: shares.get(kind, 0.0) / (places[kind] + 1) for kind in left}
            most = max(averages.values())
            allowed = free & np.array([averages.get(kind, -1.0) == most for kind in kinds])
        best = int(np.argmax(np.where(allowed, value, -np.inf)))
        chosen.append(best)
        free[best] = False
        closest = np.maximum(closest, rows @ rows[best])
        if kinds is not None:
            places[kinds[best]] += 1
    return chosen


def _check(k: int, diverse: float) -> None:
    if k < 1:
        raise QueryError(f"k must be at least 1, got {k}")
    if not 0 <= diverse <= 1:
        raise QueryError(f"diverse must lie in [0, 1], 0 for the nearest and 1 for the most different, got {diverse}")


_Gather = Callable[[int], tuple[list[Hit], bool]]
_Rate = Callable[[Sequence[Hit], Vectors], Values]


def _by_score(hits: Sequence[Hit], vectors: Vectors) -> Values:
    return np.array([hit.score for hit in hits], dtype=np.float64)


class _Own:
    """What the examples of a question are: never an answer."""

    def __init__(self, products: Sequence[Product], threshold: float, group: str | None) -> None:
        items = [item for product in products for item in product.items]
        digests = [product.content for product in products] + [content(item.payload) for item in items]
        rows = [vector_of(item) for item in items] + [product.vector for product in products if not product.items]
        self._keys = {item.key for item in items}
        self._contents = {digest for digest in digests if digest}
        self._groups = {value for item in items for value in kinds_of(item.payload, group)}
        self.rows = np.stack(rows)
        self._threshold, self._group = threshold, group

    def named(self, hit: Hit) -> bool:
        """By key, content or group."""
        return (
            hit.key in self._keys
            or content(hit.payload) in self._contents
            or not self._groups.isdisjoint(kinds_of(hit.payload, self._group))
        )

    def near(self, vectors: Vectors) -> npt.NDArray[np.bool_]:
        """By their looks: (n, dim) → (n,)."""
        found: npt.NDArray[np.bool_] = (vectors @ self.rows.T).max(axis=1, initial=-1.0) >= self._threshold - SLACK
        return found


class Recommender:
    """Products beside products, from an index of their pictures. Safe to use from several threads.

    Args:
        index: the catalogue, with its columns as payload.
        encoder: the one that filled it; needed for pictures that are not in the index.
        by: the column by which a product may be named, besides the key and the path of its picture. A product of
            several pictures is all of them.
        threshold: cosine from which on two pictures are the same product. Default: the duplicate threshold of the
            encoder's bundle, or 0.999 where there is none.
        together: what was clicked or bought together, to learn from. Memory: the vectors and payloads of its items.

    Raises:
        EncoderMismatch: the index was filled by another encoder. QueryError: `threshold` out of range.
    """

    def __init__(
        self,
        index: Index,
        encoder: Encoder | None = None,
        *,
        by: str = "id",
        threshold: float | None = None,
        together: CoOccurrence | None = None,
    ) -> None:
        if encoder is not None:
            encoder.check(index.meta, index.location)
        if threshold is None:
            calibrated = encoder.bundle.manifest.get("thresholds", {}) if encoder is not None else {}
            threshold = float(calibrated.get("duplicate", ITSELF))
        if not -1 < threshold <= 1:
            raise QueryError(f"threshold must be a cosine in (-1, 1], got {threshold}")
        self.index = index
        self.encoder = encoder
        self.by = by
        self.threshold = threshold
        self.together = together
        self._learned = None if together is None else Learned(index, together)

    def beside(
        self,
        keys: Sequence[Picture],
        unlike: Sequence[Picture] = (),
        k: int = 10,
        *,
        where: Where | None = None,
        diverse: float = 0.0,
        across: str | None = None,
        group: str | None = None,
    ) -> list[Hit]:
        """What to show beside one or several products, best first.

        Args:
            keys: at least one product: a key of the index, a path, a value of the column `by`, or any other picture
                (a path, the bytes of a file, an opened image), for which the encoder is needed.
            unlike: products to move away from, likewise.
            k: how many answers.
            where: only items that fit (the filter language of `lookalike.index.base`).
            diverse: in [0, 1]: 0 is the order of relevance, 1 shows what is most different, among the 5 k most relevant
                ones, at least 100.
            across: a column of categories: answers come from other ones than the products'. A picture from outside
                has the category of most of its 10 nearest neighbours.
            group: a column that variants of one product have in common: none of the products' own group is an answer,
                and one answer stands for its group.

        Returns:
            At most `k` hits; the score is the cosine with the question (the mean product, less half of the mean
            unlike one). `Hit.copies` are the keys of variants that an answer stands for: equal files, pictures as near
            as `threshold`, the same group; as far as they are among the 5 k most relevant, at least 100.

        Raises:
            QueryError: no product, an unknown one, products that cancel out, malformed `where`, ``k < 1``, `diverse`
                out of range, or a column that no item has. ImageError: a picture cannot be read.
        """
        _check(k, diverse)
        liked, disliked = self._products(keys), self._products(unlike)
        if not liked:
            raise QueryError("give at least one product: unlike ones alone point nowhere")
        query = np.mean([product.vector for product in liked], axis=0)
        if disliked:
            query = query - DISLIKED_WEIGHT * np.mean([product.vector for product in disliked], axis=0)
        if not np.linalg.norm(query) > 1e-6:
            raise QueryError("liked and unlike products cancel out: leave one of them out")
        question = unit(query, self.index.dim, "the question")
        own = _Own([*liked, *disliked], self.threshold, group)
        home = frozenset() if across is None else self._kinds_of(liked, across)

        def keep(hit: Hit) -> bool:
            theirs = kinds_of(hit.payload, across)
            return not own.named(hit) and (across is None or (bool(theirs) and home.isdisjoint(theirs)))

        rate: _Rate = _by_score
        gather: _Gather = partial(self._kept, question, where=where, keep=keep)
        shares = None
        if self._learned is not None:
            evidence = self._learned.evidence(liked, across, home)
            gather = partial(self._together, question, evidence, where=where, keep=keep, across=across)
            rate, shares = partial(evidence.relevance, question, across), evidence.shares
        hits, vectors, relevance = self._candidates(gather, rate, k, own, group)
        if not hits:
            return []
        named = [next(iter(kinds_of(hit.payload, across)), None) for hit in hits]
        chosen = maximal_marginal_relevance(relevance, vectors, k, diverse, named, shares)
        return [replace(hits[i], score=cosine(vectors[i], question)) for i in chosen]

    def variants(self, product: Picture, *, group: str | None = None) -> list[Hit]:
        """Other items that are the same product: equal files, pictures as near as `threshold`, the same `group`.

        They are never among the answers of `beside` to this product. Nearest first, with the cosine as the score.

        Raises:
            QueryError: an unknown product. ImageError: a picture cannot be read.
        """
        [example] = self._products([product])
        mine = {item.key for item in example.items}
        found: dict[str, Hit] = {}
        for row in _Own([example], self.threshold, group).rows:
            wanted, hits = 16, self.index.search(row, 16)[0]
            while len(hits) == wanted and hits[-1].score >= self.threshold - SLACK:
                wanted *= 4
                hits = self.index.search(row, wanted)[0]
            found |= {hit.key: hit for hit in hits if hit.score >= self.threshold - SLACK}
        groups = [value for item in example.items for value in kinds_of(item.payload, group)]
        if group is not None and groups:
            for item in self.index.scan({group: {"any_of": groups}}, vectors=True):
                found[item.key] = Hit(item.key, cosine(vector_of(item), example.vector), item.payload)
        kept = [hit for key, hit in found.items() if key not in mine]
        return sorted(kept, key=lambda hit: (-hit.score, hit.key))

    def items(self, product: Picture) -> list[Item]:
        """The items that a product is, in order of key; none for a picture that is not in the index.

        Raises:
            QueryError: an unknown product. ImageError: a picture cannot be read.
        """
        [example] = self._products([product])
        return list(example.items)

    def _products(self, names: Sequence[Picture]) -> list[Product]:
        if isinstance(names, str | bytes | os.PathLike) or hasattr(names, "tobytes"):
            raise QueryError(f"products come as a list, also a single one: [{str(names)[:60]!r}]")
        given: list[Picture] = [str(name) if isinstance(name, int) else name for name in names]
        texts = dict.fromkeys(str(name) for name in given if isinstance(name, str | os.PathLike))
        keys = keys_of(self.index, texts, self.by)
        return [self._product(name, keys) for name in given]

    def _product(self, name: Picture, keys: Mapping[str, list[str]]) -> Product:
        picture = name
        if isinstance(name, str | os.PathLike):
            items = tuple(item for item in got(self.index, keys.get(str(name), [])) if item is not None)
            if items:
                return Product(unit(np.mean([vector_of(item) for item in items], axis=0))[0], items)
            if not os.path.lexists(name):
                raise QueryError(
                    f"no product {shown(os.fspath(name))!r} in index {self.index.location}, and no such file: name it "
                    f"by its key, the path of its picture, or its value in the column {self.by!r}"
                )
            picture = read_bytes(name)
        if self.encoder is None:
            raise QueryError(
                f"{shown(str(name)) if picture is not name else 'the picture'} is not in index {self.index.location}: "
                "to recommend beside a new picture, give the encoder that filled the index"
            )
        digest = hashlib.sha256(picture).hexdigest() if isinstance(picture, bytes) else None
        return Product(self.encoder.images([picture], strict=True)[0], content=digest)

    def _kinds_of(self, products: Sequence[Product], column: str) -> frozenset[Kind]:
        """The categories of some products; of one without, that of most of its nearest neighbours."""
        found: set[Kind] = set()
        for product in products:
            own = {value for item in product.items for value in kinds_of(item.payload, column)}
            if not own:
                near = self.index.search(product.vector, VOTERS)[0]
                votes = Counter(value for hit in near for value in kinds_of(hit.payload, column))
                if not votes:
                    raise self._no_column(column, near)
                own = {votes.most_common(1)[0][0]}
            found |= own
        return frozenset(found)

    def _no_column(self, column: str, looked_at: Iterable[Hit]) -> QueryError:
        columns = sorted({name for hit in looked_at for name in hit.payload if name != "file"})
        return QueryError(
            f"no item has text, a whole number, yes or no in a column {column!r}: index {self.index.location} has "
            f"{', '.join(columns) or 'no columns'}"
        )

    def _kept(
        self, question: Vectors, wanted: int, *, where: Where | None, keep: Callable[[Hit], bool]
    ) -> tuple[list[Hit], bool]:
        """The `wanted` nearest that `keep` lets through, and whether there are no more."""
        asked = wanted + 16
        while True:
            found = self.index.search(question, asked, where)[0]
            kept = [hit for hit in found if keep(hit)]
            if len(kept) >= wanted or len(found) < asked:
                return kept[:wanted], len(kept) <= wanted and len(found) < asked
            asked *= 4

    def _together(
        self,
        question: Vectors,
        evidence: Evidence,
        wanted: int,
        *,
        where: Where | None,
        keep: Callable[[Hit], bool],
        across: str | None,
    ) -> tuple[list[Hit], bool]:
        """The partners, and what is like them in the likeliest categories; and the nearest, if that is not enough."""
        hits: list[Hit] = []
        exhausted = True
        conditions = parse_where(where)
        for kind, share in evidence.likeliest(wanted):
            if across is None or not matches({across: kind}, [one for one in conditions if one.field == across]):
                continue
            narrowed = {**(where or {}), across: kind}
            count = math.ceil(share * wanted) + POOL_TIMES
            more, all_of_it = self._kept(evidence.target(kind, question), count, where=narrowed, keep=keep)
            hits, exhausted = hits + more, exhausted and all_of_it
        if len(hits) < wanted:
            more, all_of_it = self._kept(question, wanted - len(hits), where=where, keep=keep)
            hits, exhausted = hits + more, exhausted and all_of_it
        for item in got(self.index, evidence.partners(wanted)):
            if item is not None and matches(item.payload, conditions):
                hit = Hit(item.key, cosine(vector_of(item), question), item.payload)
                hits += [hit] if keep(hit) else []
        return list({hit.key: hit for hit in hits}.values()), exhausted

    def _candidates(
        self, gather: _Gather, rate: _Rate, k: int, own: _Own, group: str | None
    ) -> tuple[list[Hit], Vectors, Values]:
        """At least `k` different products, the most relevant first, if there are so many; vectors and relevance."""
        wanted = max(POOL_LEAST, POOL_TIMES * k)
        while True:
            hits, exhausted = gather(wanted)
            if hits and group is not None and not any(group in hit.payload for hit in hits):
                raise self._no_column(group, hits)
            items = list(got(self.index, [hit.key for hit in hits]))
            there = [(hit, vector_of(item)) for hit, item in zip(hits, items, strict=True) if item is not None]
            vectors = np.array([vector for _, vector in there], np.float32).reshape(-1, self.index.dim)
            rows = np.flatnonzero(~own.near(vectors))
            hits, vectors = [there[row][0] for row in rows], vectors[rows]
            relevance = rate(hits, vectors)
            order = sorted(range(len(hits)), key=lambda i: (-relevance[i], hits[i].key))
            leaders = self._folded([hits[i] for i in order], vectors[order], group)
            if len(leaders) >= k or exhausted:
                places = [order[place] for place, _ in leaders]
                folded = [replace(hits[order[place]], copies=copies) for place, copies in leaders]
                return folded, vectors[places], relevance[places]
            wanted *= 4

    def _folded(self, hits: Sequence[Hit], vectors: Vectors, group: str | None) -> list[tuple[int, tuple[str, ...]]]:
        """Which hits stand for a product, and the keys of its variants behind them."""
        copies: dict[int, list[str]] = {}
        owner: dict[Any, int] = {}
        leading = np.empty_like(vectors)
        for place, hit in enumerate(hits):
            marks: list[Any] = [("group", value) for value in kinds_of(hit.payload, group)]
            marks += [digest] if (digest := content(hit.payload)) else []
            first = next((owner[mark] for mark in marks if mark in owner), None)
            if first is None:
                near = np.flatnonzero(leading[: len(copies)] @ vectors[place] >= self.threshold - SLACK)
                first = list(copies)[near[0]] if len(near) else None
            if first is None:
                leading[len(copies)] = vectors[place]
                copies[place] = []
            else:
                copies[first].append(hit.key)
            for mark in marks:
                owner.setdefault(mark, place if first is None else first)
        return [(place, tuple(keys)) for place, keys in copies.items()]
