"""How good recommendations are: a recommender's real answers, against categories or against what was clicked together.

==================  ==================================================================================================
hit rate@k          share of questions with at least one relevant answer among k
precision@k         share of relevant answers among k; *capped*: among min(k, number of relevant items); *deep*: over
                    questions with at least k relevant items alone
recall@k            share of the relevant items that are answers, or stand behind one as a variant
agreement           share of the answers that agree with the question in another column
coverage            share of the catalogue that is an answer to anything asked; items are resampled for its interval
diversity           1 - mean cosine between the answers to one question
novelty             mean self-information of the answers, in bits, where it is known what was clicked
chance              precision@k of answers drawn at random
==================  ==================================================================================================

The product itself, equal files and its group are neither relevant nor missed. What is relevant does not depend on the
encoder, so that two of them can be compared question by question. A missing answer is a miss. Coinciding vectors do not
profit from the order of ties: what is as near as the threshold is taken for the same product, and is no answer.
Intervals are 95 % percentile bootstraps over questions.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lookalike.errors import QueryError
from lookalike.index.base import Hit, Index, Item, Where
from lookalike.metrics import (
    Interval,
    Values,
    catalogue_coverage,
    hit_rate,
    intra_list_diversity,
    list_precision,
    list_recall,
    mean_interval,
    novelty,
)
from lookalike.recommend._items import Kind, content, got, kinds_of, vector_of
from lookalike.recommend.beside import Recommender
from lookalike.recommend.together import CoOccurrence

__all__ = ["Judgement", "judge"]


@dataclass(frozen=True)
class Judgement:
    """What recommendations came to.

    Attributes:
        settings: what was asked, and how.
        encoder: name and fingerprint of the encoder that filled the index, where it remembers one.
        measures: name → mean and 95 % interval.
        values: name → one number per question, in order of key (of coverage: per item); NaN where it does not count.
        items: how many there are to recommend.
        questions: how many were asked.
        fingerprint: SHA-256 over what the index holds (content or key, and what was judged): equal for equal data.
        seconds: it took.
        notes: sentences about what was left out.
    """

    settings: Mapping[str, Any]
    encoder: Mapping[str, str]
    measures: Mapping[str, Interval]
    values: Mapping[str, Values]
    items: int
    questions: int
    fingerprint: str
    seconds: float
    notes: Sequence[str] = field(default=())

    def document(self) -> dict[str, Any]:
        """As JSON, without the values."""
        return {
            "kind": "recommendation",
            "title": f"Recommendations: {self.settings['relevant']}",
            "settings": dict(self.settings),
            "encoder": dict(self.encoder),
            "items": self.items,
            "questions": self.questions,
            "measures": {name: asdict(interval) for name, interval in self.measures.items()},
            "notes": list(self.notes),
            "fingerprint": self.fingerprint,
            "minutes": round(self.seconds / 60, 3),
        }

    def __str__(self) -> str:
        """A table for people: a line per measure with its interval and the number of questions."""
        width = max(map(len, self.measures))
        lines = [
            f"{name:<{width}}  {found.mean:8.4f}  [{found.low:.4f}, {found.high:.4f}]  {found.count:,}"
            for name, found in self.measures.items()
        ]
        name = self.encoder.get("name", "recommendations")
        head = f"{name}: {self.questions:,} questions, {self.items:,} items, relevant: {self.settings['relevant']}"
        return "\n".join([head, "", f"{'':<{width}}  {'mean':>8}  95 % interval     counted", *lines])


def judge(
    recommender: Recommender,
    relevant: str | CoOccurrence,
    *,
    k: int = 10,
    also: Sequence[str] = (),
    questions: Where | None = None,
    most: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Judgement:
    """Ask for recommendations beside many products, and see how many are relevant.

    Args:
        recommender: asked exactly as it is used.
        relevant: a column, whose equal values are relevant to one another; or what was clicked or bought together and
            kept from the recommender, whose partners are.
        k: answers per question.
        also: columns of which the agreement is told.
        questions: which items ask (as `where`); by default all. Those to which nothing is relevant do not count.
        most: ask at most so many of them, drawn at random.
        seed: of the draw.
        progress: called with the number of questions answered, and of all.
        options: `where` (which items can be recommended, and so be relevant), `diverse`, `across`, `group`, as for
            `Recommender.beside`.

    Raises:
        QueryError: no item asks, nothing is relevant to any, `across` is the column of what is relevant, or an option
            that `beside` refuses.
    """
    began = time.monotonic()
    if isinstance(relevant, str) and options.get("across") == relevant:
        raise QueryError(f"answers across {relevant!r} are never of the same {relevant!r}: judge by another column")
    catalogue = _Catalogue(recommender, relevant, also, options.get("where"), options.get("group"))
    asking = _asking(recommender.index, questions, most, seed)
    answers: list[list[Hit]] = []
    for item in asking:
        answers.append(recommender.beside([item.key], k=k, **options))
        if progress is not None:
            progress(len(answers), len(asking))
    own = [catalogue.same(item) for item in asking]
    wanted = [catalogue.relevant(item) - same for item, same in zip(asking, own, strict=True)]
    keys = [[hit.key for hit in hits] for hits in answers]
    values = _relevance(answers, wanted, k)
    values |= {f"agreement: {column}": _agreement(asking, answers, column) for column in also}
    values["coverage"] = catalogue_coverage(keys, sorted(catalogue.keys))
    values["diversity"] = intra_list_diversity([_vectors(recommender.index, some) for some in keys])
    values["chance"] = _chance(own, wanted, catalogue)
    known = recommender.together or (relevant if isinstance(relevant, CoOccurrence) else None)
    if known is not None:
        values["novelty, bits"] = novelty(keys, known.popularity, catalogue.size)
    measures = {name: mean_interval(value) for name, value in values.items() if not np.isnan(value).all()}
    if f"hit rate@{k}" not in measures:
        raise QueryError(f"nothing is relevant to any of {len(asking):,} questions: {catalogue.what} says nothing")
    settings = {"relevant": catalogue.what, "k": k, "questions": dict(questions or {}), "most": most, "seed": seed}
    settings |= {"threshold": recommender.threshold, "learned from pairs": recommender.together is not None}
    encoder = recommender.index.meta.get("encoder", {})
    return Judgement(
        settings=settings | {name: value for name, value in options.items() if value},
        encoder={key: str(value) for key, value in encoder.items() if key != "bundle"},
        measures=measures,
        values=values,
        items=catalogue.size,
        questions=len(asking),
        fingerprint=catalogue.fingerprint,
        seconds=time.monotonic() - began,
        notes=_notes(answers, wanted, k),
    )


def _asking(index: Index, questions: Where | None, most: int | None, seed: int) -> list[Item]:
    """The items that ask, in order of key."""
    keys = sorted(item.key for item in index.scan(questions))
    if most is not None and most < len(keys):
        keys = sorted(np.random.default_rng(seed).choice(np.array(keys, dtype=object), most, replace=False))
    if not keys:
        raise QueryError(f"no item of index {index.location} asks: questions {questions} fit none")
    return [item for item in got(index, keys) if item is not None]


def _vectors(index: Index, keys: Sequence[str]) -> Values:
    return np.array([vector_of(item) for item in got(index, keys) if item is not None])


class _Catalogue:
    """What can be recommended, and what of it is relevant to what."""

    def __init__(
        self,
        recommender: Recommender,
        relevant: str | CoOccurrence,
        also: Sequence[str],
        where: Where | None,
        group: str | None,
    ) -> None:
        self._relevant, self._group = relevant, group
        self._by_kind: dict[Kind, set[str]] = defaultdict(set)
        self._same: dict[Any, set[str]] = defaultdict(set)
        keys: list[str] = []
        lines: list[str] = []
        columns: set[str] = set()
        column = relevant if isinstance(relevant, str) else None
        for item in recommender.index.scan(where):
            keys.append(item.key)
            columns |= item.payload.keys()
            told = [kinds_of(item.payload, name) for name in (column, *also)]
            for kind in told[0]:
                self._by_kind[kind].add(item.key)
            for mark in self._marks(item):
                self._same[mark].add(item.key)
            lines.append(f"{content(item.payload) or item.key} {told}")
        self.keys = frozenset(keys)
        self.size = len(keys)
        self.what = f"the same {relevant}" if isinstance(relevant, str) else "clicked or bought together"
        self.fingerprint = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
        missing = [name for name in (*([column] if column else []), *also) if keys and name not in columns]
        if missing:
            have = ", ".join(sorted(columns - {"file"})) or "none"
            raise QueryError(f"no item has a column {missing[0]!r}: index {recommender.index.location} has {have}")

    def _marks(self, item: Item) -> list[Any]:
        digest = content(item.payload)
        marks: list[Any] = [("group", value) for value in kinds_of(item.payload, self._group)]
        return [*marks, ("content", digest)] if digest else marks

    def same(self, item: Item) -> frozenset[str]:
        """The keys of what is known to be the same product, whatever an encoder says: not relevant, and not missed."""
        return frozenset({item.key}).union(*(self._same.get(mark, ()) for mark in self._marks(item)))

    def relevant(self, item: Item) -> frozenset[str]:
        """The keys of what is relevant to an item."""
        if isinstance(self._relevant, CoOccurrence):
            return self.keys & self._relevant.counts.get(item.key, {}).keys()
        own = kinds_of(item.payload, self._relevant)
        return frozenset().union(*(self._by_kind[kind] for kind in own if kind in self._by_kind))


def _relevance(answers: Sequence[Sequence[Hit]], wanted: Sequence[frozenset[str]], k: int) -> dict[str, Values]:
    """How much of what was answered is relevant, and of what is relevant was answered."""
    keys = [[hit.key for hit in hits] for hits in answers]
    behind = [[key for hit in hits for key in (hit.key, *hit.copies)] for hits in answers]
    precision = list_precision(keys, wanted, k)
    return {
        f"hit rate@{k}": hit_rate(keys, wanted, k),
        f"precision@{k}": precision,
        f"precision@{k}, capped": list_precision(keys, wanted, k, capped=True),
        f"precision@{k}, deep": np.where([len(goal) >= k for goal in wanted], precision, np.nan),
        f"recall@{k}": list_recall(behind, wanted, max(1, *map(len, behind))),
    }


def _agreement(asking: Sequence[Item], answers: Sequence[Sequence[Hit]], column: str) -> Values:
    """Share of answers that have a value of `column` in common with the question; NaN where there is none."""
    shares = np.full(len(asking), np.nan)
    for number, (item, hits) in enumerate(zip(asking, answers, strict=True)):
        own = set(kinds_of(item.payload, column))
        if own and hits:
            shares[number] = np.mean([not own.isdisjoint(kinds_of(hit.payload, column)) for hit in hits])
    return shares


def _chance(own: Sequence[frozenset[str]], wanted: Sequence[frozenset[str]], catalogue: _Catalogue) -> Values:
    """The precision of answers drawn at random; NaN where nothing is relevant."""
    others = [max(1, catalogue.size - len(same & catalogue.keys)) for same in own]
    return np.array([len(goal) / count if goal else np.nan for goal, count in zip(wanted, others, strict=True)])


def _notes(answers: Sequence[Sequence[Hit]], wanted: Sequence[frozenset[str]], k: int) -> list[str]:
    lonely = sum(not goal for goal in wanted)
    short = sum(len(hits) < k for hits in answers)
    notes = [f"{lonely:,} questions do not count: nothing is relevant to them"] if lonely else []
    return notes + ([f"{short:,} questions have fewer than {k} answers: what is missing is a miss"] if short else [])
