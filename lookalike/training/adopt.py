"""From what people did with the answers of an index to a better encoder, adopted only if it is better.

recorded searches → vectors and impressions → a matrix, judged → a bundle → the index, made anew and swapped
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.bundle import Bundle
from lookalike.catalogue import path_of
from lookalike.encoder import Encoder
from lookalike.errors import ImageError, TrainingError
from lookalike.feedback import Feedback, Query, Recorded, feedback_path
from lookalike.index import Index, open_index
from lookalike.indexing import Summary, rebuild_index
from lookalike.search import DISLIKED_WEIGHT
from lookalike.thresholds import threshold_of
from lookalike.training.clicks import Impression, Learned, bend, learn
from lookalike.vectors import Vectors, unit

# Pictures among which the threshold of duplicates is carried over.
SAMPLE = 4000

__all__ = ["Adopted", "adopt", "gathered"]


@dataclass(frozen=True)
class Adopted:
    """What came of the feedback on an index.

    Attributes:
        learned: the verdict.
        bundle: the new bundle, written whether it is better or not.
        rebuilt: what was done to the index, or None where it stays as it was.
        before: where the index from before is now.
        notes: sentences about what was left out.
    """

    learned: Learned
    bundle: Bundle
    rebuilt: Summary | None = None
    before: Path | None = None
    notes: tuple[str, ...] = ()


def adopt(
    location: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[Summary, int], None] | None = None,
) -> Adopted:
    """Learn from the searches recorded beside an index; if it helps, rebuild the index with the new encoder.

    Args:
        location: the folder of the index.
        to: the folder of the new bundle.
        store: the recorded searches; by default those beside the index.
        seed: of the folds.
        progress: of the rebuilding, as for `lookalike.indexing.update_index`.

    Raises:
        FeedbackError: nothing is recorded there.
        TrainingError: too little to learn from.
        IndexUnavailable: the index cannot be opened, or not be rebuilt.
    """
    with closing(open_index(os.fspath(location), read_only=True)) as index:
        remembered = index.meta.get("encoder") or {}
        encoder = Encoder.load(remembered["bundle"]) if remembered.get("bundle") else Encoder.default()
        encoder.check(index.meta, index.location)
        with Feedback(feedback_path(location) if store is None else store, make=False) as recorded:
            vectors, impressions, groups, notes = gathered(recorded, index, encoder)
        learned = learn(vectors, impressions, groups, seed=seed)
        thresholds = _carried(encoder.bundle, learned.matrix, index)
    bundle = bend(encoder.bundle, learned.matrix, to, report=learned.document(), thresholds=thresholds)
    if not learned.better:
        return Adopted(learned, bundle, notes=notes)
    summary, before = rebuild_index(location, Encoder(bundle), progress=progress)
    return Adopted(learned, bundle, summary, before, notes)


def gathered(
    store: Feedback, index: Index, encoder: Encoder
) -> tuple[Vectors, list[Impression], list[str], tuple[str, ...]]:
    """Recorded searches as rows of vectors.

    Of clicks, what stood above the last one, and the answer after it, was seen and passed over (Joachims et al. 2005);
    what stood further down may not have been seen. What was judged not alike was.

    Returns:
        (n, dim) vectors; an impression for each search that says something; the question of each, equal for searches
        that asked the same; and sentences about what was left out.
    """
    rows: dict[str, int] = {}
    vectors: list[Vectors] = []
    impressions, groups = [], []
    unknown = unreadable = 0
    for search in _useful(store):
        name = _name(search.query)
        if name not in rows:
            try:
                asked = _vector(search.query, index, encoder)
            except ImageError:
                asked = None
            if asked is None:
                unreadable += 1
                continue
            rows[name] = len(vectors)
            vectors.append(asked)
        taken, passed = _taken_and_passed(search)
        for item, key in zip(index.get([*taken, *passed]), [*taken, *passed], strict=True):
            if f"key {key}" not in rows and item is not None and item.vector is not None:
                rows[f"key {key}"] = len(vectors)
                vectors.append(item.vector)
            unknown += item is None
        sides = [tuple(rows[f"key {key}"] for key in keys if f"key {key}" in rows) for keys in (taken, passed)]
        impressions.append(Impression(rows[name], *sides))
        groups.append(name)
    notes = []
    if unreadable:
        notes.append(f"{unreadable:,} searches left out: what they asked with is gone or cannot be read")
    if unknown:
        notes.append(f"{unknown:,} answers left out: they are not in the index any more")
    if not vectors:
        raise TrainingError(f"{store.path} records no search in which anything was clicked or judged alike")
    return np.stack(vectors), impressions, groups, tuple(notes)


def _useful(store: Feedback) -> Iterator[Recorded]:
    return (search for search in store.searches() if search.clicked or search.alike)


def _taken_and_passed(search: Recorded) -> tuple[list[str], list[str]]:
    taken = [key for key in search.shown if key in {*search.clicked, *search.alike} - {*search.unlike}]
    last = max((search.shown.index(key) for key in search.clicked), default=-2)
    seen = {*search.shown[: last + 2], *search.unlike}
    return taken, [key for key in search.shown if key in seen and key not in taken]


def _name(query: Query) -> str:
    """The same for the same question. A question with an indexed picture is that picture."""
    if query.key and not (query.text or query.liked):
        return f"key {query.key}"
    told = [query.text, query.key, sorted(query.liked), sorted(query.disliked)]
    return json.dumps([*told, hashlib.sha256(query.picture).hexdigest() if query.picture else ""])


def _vector(query: Query, index: Index, encoder: Encoder) -> Vectors | None:
    """Where the question pointed, as a search makes it; None where something it was asked with is gone."""
    if query.liked:
        pull, push = (_rows(keys, index) for keys in (query.liked, query.disliked))
        if not len(pull):
            return None
        toward: Vectors = pull.mean(axis=0) - (DISLIKED_WEIGHT * push.mean(axis=0) if len(push) else 0)
        return unit(toward[None])[0] if np.linalg.norm(toward) > 1e-6 else None
    parts: list[Vectors] = []
    if query.text:
        parts.append(encoder.texts([query.text])[0])
    if query.key:
        [item] = index.get([query.key])
        known = item.vector if item is not None else None
        parts.append(encoder.images([path_of(query.key)], strict=True)[0] if known is None else known)
    if query.picture:
        parts.append(encoder.images([query.picture], strict=True)[0])
    return unit(np.mean(parts, axis=0)[None])[0]


def _rows(keys: tuple[str, ...], index: Index) -> Vectors:
    found = [item.vector for item in index.get(list(keys)) if item is not None and item.vector is not None]
    return np.stack(found) if found else np.empty((0, index.dim), np.float32)


def _carried(bundle: Bundle, matrix: Vectors, index: Index) -> dict[str, Any]:
    """The threshold of duplicates for the new vectors: as many pictures of the index have one so near as before."""
    former = bundle.manifest.get("thresholds", {}).get("duplicate")
    some = [item.vector for item in islice(index.scan(vectors=True), SAMPLE)]
    if former is None or len(some) < 100:
        return {}
    rows = np.stack([row for row in some if row is not None])
    before, after = (_nearest(vectors) for vectors in (rows, unit(rows @ matrix)))
    return {"duplicate": threshold_of(after, float((before >= former).mean()))}


def _nearest(rows: Vectors) -> Vectors:
    """The cosine of each row's nearest other row."""
    scores = rows @ rows.T
    np.fill_diagonal(scores, -1)
    nearest: Vectors = scores.max(axis=1)
    return nearest
