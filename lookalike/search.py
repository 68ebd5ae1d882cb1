"""Ask an index: by picture, words, vector, key, liked and disliked examples; and its near-duplicates."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lookalike.catalogue import key_of
from lookalike.encoder import Encoder
from lookalike.errors import QueryError
from lookalike.images import Picture, read_bytes
from lookalike.index.base import Hit, Index, Item, Where
from lookalike.rerank import Reranking, expanded, k_reciprocal
from lookalike.text import normalised
from lookalike.vectors import Vectors, top_k, unit

__all__ = ["Searcher", "best_texts", "near_duplicates"]

# Rocchio's weights: liked examples pull with 1, disliked ones push with a half, so that they refine and do not rule.
DISLIKED_WEIGHT = 0.5
# So many of the nearest are re-ranked among themselves by the neighbours they share.
RERANKED = 100
# From this cosine on an item is the query itself, encoded once more: re-ranking does not put it behind others.
ITSELF = 0.999


class Searcher:
    """Nearest items for pictures, vectors, keys and examples.

    All questions take the same options:

    * ``k``: how many answers, best first.
    * ``where``: only items whose payload fits (the filter language of `lookalike.index.base`).
    * ``min_score``: only answers at least this close, a cosine in [-1, 1].
    * ``distinct``: files with identical content are folded into the one with the smallest key; the others are named
      in `Hit.copies`. On by default.

    Where the bundle asks for re-ranking, questions by picture, vector and key answer in its order: the query is moved
    towards its nearest neighbours and asked again, or the 100 nearest are ordered by the neighbours they share.
    Neighbours are those that `where`, `distinct` and the question allow. A score is the cosine with the query as it
    was asked all the same, so scores need not fall from one answer to the next; an indexed picture still comes first,
    with score 1. Examples and words are answered by cosine alone: they have no neighbours of their own kind here.

    Args:
        encoder: the encoder that filled the index.
        index: where to look.
        reranking: instead of what the bundle says; `Reranking()` is off.

    Raises:
        EncoderMismatch: the index was filled by another encoder.
    """

    def __init__(self, encoder: Encoder, index: Index, *, reranking: Reranking | None = None) -> None:
        encoder.check(index.meta, index.location)
        self.encoder = encoder
        self.index = index
        self.reranking = encoder.bundle.reranking if reranking is None else reranking

    def by_picture(self, picture: Picture, k: int = 10, **options: Any) -> list[Hit]:
        """Items that look like a picture: a path, the bytes of a file, or a `PIL` image. An indexed one comes first.

        Raises:
            ImageError: the picture cannot be read. QueryError: malformed `where`, ``k < 1``.
        """
        [vector] = self.encoder.images([picture], strict=True)
        return self.by_vector(vector, k, **options)

    def by_text(
        self,
        text: str,
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = None,
        distinct: bool = True,
        picture: Picture | None = None,
        weight: float = 0.5,
    ) -> list[Hit]:
        """Items that fit words, in any language the bundle was taught; with `picture`, words and a picture together.

        Cosines between words and pictures are much smaller than those between two pictures that are alike: a
        `min_score` for one is none for the other.

        Args:
            text: what to look for.
            k: how many answers.
            where: only items that fit.
            min_score: only answers at least this close.
            distinct: fold identical files.
            picture: as for `by_picture`. The query is then weight · words + (1 - weight) · picture, both of unit
                length.
            weight: of the words, from 0, the picture alone, to 1, the words alone.

        Raises:
            QueryError: the bundle knows no words, `text` has none, or `weight` is out of range.
            ImageError: the picture cannot be read.
        """
        if not 0 <= weight <= 1:
            raise QueryError(f"weight must be from 0 (the picture alone) to 1 (the words alone), got {weight}")
        if not normalised(text):
            raise QueryError(f"there is no word in {text[:40]!r}: say what to look for")
        [query] = self.encoder.texts([text])
        if picture is not None:
            [seen] = self.encoder.images([picture], strict=True)
            query = weight * query + (1 - weight) * seen
        if not np.linalg.norm(query) > 1e-6:
            raise QueryError("words and picture cancel out: give them another weight")
        return self._nearest(query, k, where, min_score, distinct, hidden=frozenset(), reranking=Reranking())

    def by_vector(
        self,
        vector: Vectors,
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = None,
        distinct: bool = True,
    ) -> list[Hit]:
        """Items nearest to a vector of shape (dim,); it is brought to unit length. Raises ShapeError, QueryError."""
        return self._nearest(vector, k, where, min_score, distinct, hidden=frozenset())

    def by_key(
        self,
        key: str,
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = None,
        distinct: bool = True,
    ) -> list[Hit]:
        """Other items like an indexed one. Raises QueryError if the key is unknown."""
        item = self._item(key)
        return self._nearest(_vector(item), k, where, min_score, distinct, hidden=_marks([item]))

    def by_examples(
        self,
        liked: Sequence[Picture],
        disliked: Sequence[Picture] = (),
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = None,
        distinct: bool = True,
    ) -> list[Hit]:
        """Items like all of `liked` and unlike `disliked`; the examples themselves are left out of the answer.

        The query is the mean liked vector minus half the mean disliked one (Rocchio 1971, relevance feedback).

        Args:
            liked: at least one example: a key of the index, or a picture as for `by_picture`.
            disliked: examples to move away from.
            k: how many answers.
            where: only items that fit.
            min_score: only answers at least this close to the combined query.
            distinct: fold identical files.

        Raises:
            QueryError: no liked example, or liked and disliked cancel out. ImageError: an example cannot be read.
        """
        if not liked:
            raise QueryError("give at least one liked example: disliked ones alone point nowhere")
        pull, liked_marks = self._examples(liked)
        query, marks = pull.mean(axis=0), liked_marks
        if disliked:
            push, disliked_marks = self._examples(disliked)
            query, marks = query - DISLIKED_WEIGHT * push.mean(axis=0), marks | disliked_marks
        if not np.linalg.norm(query) > 1e-6:
            raise QueryError("liked and disliked examples cancel out: leave one of them out")
        return self._nearest(query, k, where, min_score, distinct, hidden=marks, reranking=Reranking())

    def _examples(self, examples: Sequence[Picture]) -> tuple[Vectors, frozenset[str]]:
        """Vectors (n, dim) of examples, and the marks (keys, content hashes) by which to leave them out."""
        vectors: list[Vectors] = []
        marks: set[str] = set()
        for given in examples:
            example, key = given, given if isinstance(given, str) else None
            if isinstance(example, str | os.PathLike):
                [item] = self.index.get([key or key_of(example)])
                if item is None and key is not None:
                    [item] = self.index.get([key_of(example)])
                if item is not None:
                    vectors.append(_vector(item))
                    marks |= _marks([item])
                    continue
                example = read_bytes(example)
            if isinstance(example, bytes):
                marks.add(hashlib.sha256(example).hexdigest())
            vectors.append(self.encoder.images([example], strict=True)[0])
        return np.stack(vectors), frozenset(marks)

    def _item(self, key: str) -> Item:
        [item] = self.index.get([key])
        if item is None:
            raise QueryError(f"no item {key!r} in index {self.index.location}: keys are absolute paths of pictures")
        return item

    def _nearest(
        self,
        vector: Vectors,
        k: int,
        where: Where | None,
        min_score: float | None,
        distinct: bool,
        hidden: frozenset[str],
        reranking: Reranking | None = None,
    ) -> list[Hit]:
        """The answers to one question, re-ranked as `reranking` or else the searcher says."""
        query = unit(vector, self.index.dim, "the query")
        if k < 1:
            raise QueryError(f"k must be at least 1, got {k}")
        closest = partial(self._closest, where=where, distinct=distinct, hidden=hidden)
        chosen = self.reranking if reranking is None else reranking
        if not chosen:
            return closest(query, k, min_score=min_score)
        return self._reranked(query, k, -1.0 if min_score is None else min_score, closest, chosen)

    def _reranked(
        self, query: Vectors, k: int, least: float, closest: Callable[[Vectors, int], list[Hit]], chosen: Reranking
    ) -> list[Hit]:
        """Order what is `closest` anew; the first `k` whose cosine with `query` (1, dim) is at least `least`."""
        asked = query
        first: list[Hit] = []
        if chosen.expansion:
            first, vectors = self._scored(query, closest(query, chosen.expansion))
            scores = [[hit.score for hit in first]]
            asked = expanded(query, vectors[None], scores, count=chosen.expansion, alpha=chosen.alpha)
        # An angle is no longer than the way round: behind this cosine with what is asked, nothing reaches `least`.
        # (Small angles are known to half a thousandth only: float32 rounds cosines near 1.)
        turned = math.acos(_cosine(asked[0], query[0])) + math.acos(min(max(least, -1.0), 1.0))
        floor = math.cos(min(turned, math.pi)) - 1e-3
        wanted = max(k, RERANKED) if chosen.k1 else k
        while True:
            found = closest(asked, wanted)
            hits, vectors = self._scored(query, found)
            if sum(hit.score >= least for hit in hits) >= k or len(found) < wanted or found[-1].score < floor:
                break
            wanted *= 2
        if chosen.k1 and hits:
            [alike] = k_reciprocal(asked, vectors[:RERANKED], k1=chosen.k1, k2=chosen.k2, weight=chosen.weight)
            hits[:RERANKED] = [hits[place] for place in np.argsort(-alike, kind="stable")]
        # Moved away from the query, the search may even have lost the query's own picture.
        there = {key for hit in hits for key in (hit.key, *hit.copies)}
        hits += [hit for hit in first if hit.key not in there and hit.score >= ITSELF]
        hits.sort(key=lambda hit: (-hit.score, hit.key) if hit.score >= ITSELF else (0.0, ""))
        return [hit for hit in hits if hit.score >= least][:k]

    def _scored(self, query: Vectors, hits: Sequence[Hit]) -> tuple[list[Hit], Vectors]:
        """Hits with their cosine to `query` (1, dim) as the score, and their vectors (n, dim)."""
        items = self.index.get([hit.key for hit in hits]) if hits else []
        there = [(hit, _vector(item)) for hit, item in zip(hits, items, strict=True) if item is not None]
        scored = [replace(hit, score=_cosine(vector, query[0])) for hit, vector in there]
        return scored, np.array([vector for _, vector in there], np.float32).reshape(-1, self.index.dim)

    def _closest(
        self,
        query: Vectors,
        k: int,
        where: Where | None,
        distinct: bool,
        hidden: frozenset[str],
        min_score: float | None = None,
    ) -> list[Hit]:
        """Ask for more and more until `k` hits are left after hiding and folding, or the index has no more."""
        wanted = k + 1 + len(hidden)
        while True:
            found = self.index.search(query, wanted, where)[0]
            close = [hit for hit in found if min_score is None or hit.score >= min_score]
            kept = [hit for hit in close if hit.key not in hidden and _content(hit.payload) not in hidden]
            kept = list(_folded(kept)) if distinct else kept
            # A copy of the k-th hit may lie just behind it, so one more than k is looked at.
            if len(kept) > k or len(found) < wanted or len(close) < len(found):
                return kept[:k]
            wanted *= 2


def _cosine(left: Vectors, right: Vectors) -> float:
    """Of two unit vectors (dim,), summed in float64 as the exact index does."""
    return float(np.clip((left.astype(np.float64) * right).sum(), -1.0, 1.0))


def _vector(item: Item) -> Vectors:
    assert item.vector is not None, "Index.get gives vectors"
    return item.vector


def _content(payload: dict[str, Any]) -> str | None:
    """The SHA-256 of the item's file, where it has one."""
    file = payload.get("file")
    return file.get("sha256") if isinstance(file, dict) else None


def _marks(items: Iterable[Item]) -> frozenset[str]:
    return frozenset(mark for item in items for mark in (item.key, _content(item.payload)) if mark)


def _folded(hits: Iterable[Hit]) -> Iterator[Hit]:
    """Hits with identical content as one, keeping order; the first (smallest key among equal scores) stands."""
    groups: dict[str, list[Hit]] = {}
    for hit in hits:
        groups.setdefault(_content(hit.payload) or "key:" + hit.key, []).append(hit)
    for first, *others in groups.values():
        yield replace(first, copies=tuple(other.key for other in others)) if others else first


def best_texts(
    encoder: Encoder, pictures: Sequence[Picture], texts: Sequence[str], k: int = 5
) -> list[list[tuple[str, float]]]:
    """The texts of a list that fit each picture best: tags, or captions.

    Args:
        encoder: with a text tower.
        pictures: as for `Encoder.images`.
        texts: to choose from, at least one.
        k: how many for each picture.

    Returns:
        For each picture at most `k` texts with their cosine, best first, ties in the order given.

    Raises:
        QueryError: the bundle knows no words, no text is given, or ``k < 1``. ImageError: a picture cannot be read.
    """
    if k < 1 or not texts:
        raise QueryError(f"k must be at least 1 and one text given, got k = {k} and {len(texts)} texts")
    named = encoder.texts(texts)
    scores = np.clip(encoder.images(pictures, strict=True) @ named.T, -1.0, 1.0)
    best = top_k(scores, k)
    return [[(texts[i], float(line[i])) for i in chosen] for line, chosen in zip(scores, best, strict=True)]


def near_duplicates(index: Index, threshold: float, where: Where | None = None) -> list[list[Hit]]:
    """Groups of at least two items that are all but the same picture.

    A pair belongs together if its cosine is at least `threshold`; groups are the connected components, so that a
    series of slowly changing pictures is one group. Each group is led by its largest picture (in pixels, then by
    key), the one to keep; the others carry their score against it. Memory grows with the number of near-duplicates,
    not with the square of the number of items.

    Args:
        index: where to look.
        threshold: cosine in (-1, 1].
        where: only among items that fit.

    Returns:
        Groups, the largest first.

    Raises:
        QueryError: `threshold` out of range or a malformed `where`.
    """
    if not -1 < threshold <= 1:
        raise QueryError(f"threshold must be a cosine in (-1, 1], got {threshold}")
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for block in _blocks(index.scan(where, vectors=True), 256):
        queries = np.stack([_vector(item) for item in block])
        for item, hits in zip(block, _all_above(index, queries, threshold, where), strict=True):
            for hit in hits:
                if hit.key != item.key:
                    first, second = sorted((find(item.key), find(hit.key)))
                    leader[second] = first
    groups: dict[str, list[str]] = {}
    for key in list(leader):
        groups.setdefault(find(key), []).append(key)
    return sorted((_group(index, keys) for keys in groups.values()), key=lambda group: (-len(group), group[0].key))


def _all_above(index: Index, queries: Vectors, threshold: float, where: Where | None) -> Iterator[list[Hit]]:
    """For each query the items at or above the threshold.

    At most 2048 per query: an item with more near-duplicates than that meets the rest through them, and thousands of
    copies of one picture do not take quadratic memory.
    """
    slack = 1e-6  # two float32 cosines of the same pair may differ in the last digit
    for query, nearest in zip(queries, index.search(queries, 8, where), strict=True):
        hits, wanted = nearest, 8
        while len(hits) == wanted < 2048 and hits[-1].score >= threshold - slack:
            wanted *= 4
            hits = index.search(query[None], wanted, where)[0]
        yield [hit for hit in hits if hit.score >= threshold - slack]


def _group(index: Index, keys: list[str]) -> list[Hit]:
    items = [item for item in index.get(sorted(keys)) if item is not None]

    def pixels(item: Item) -> int:
        file = item.payload.get("file", {})
        return int(file.get("width", 0)) * int(file.get("height", 0)) if isinstance(file, dict) else 0

    first = max(items, key=pixels)  # the first of equals: items are in order of key
    scores = np.clip(np.stack([_vector(item) for item in items]) @ _vector(first), -1, 1)
    others = sorted(
        (Hit(i.key, float(score), i.payload) for i, score in zip(items, scores, strict=True) if i is not first),
        key=lambda hit: (-hit.score, hit.key),
    )
    return [Hit(first.key, 1.0, first.payload), *others]


def _blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    block: list[Item] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
