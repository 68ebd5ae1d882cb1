"""The data model that Qdrant Edge and a Qdrant server share: ids, stored payloads, filters, ties at the last place.

A point is: id = UUIDv5 of the key, one unnamed cosine vector, and a payload that holds the user's fields at the top
level beside the key under ``_key``. Anyone who looks with Qdrant's own tools sees what they would have made by hand.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from lookalike.errors import IndexUnavailable
from lookalike.index._entries import KEY, MAX_TIES, rank
from lookalike.index.base import EXACT_FLOAT, Condition, FieldType, Hit, Payload

KEY_PATH = f'"{KEY}"'


def point_id(key: str) -> str:
    """The id of a key, as any tool can compute it: UUIDv5 in the URL namespace."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, key))


# Qdrant's JSON paths quote a name, "like this", but know no escape for a quote or a backslash inside it. Such names,
# and those that already look escaped, are stored with %22, %5C and %25 in place of ", \ and %; all others as they are.
_ESCAPES = (("%", "%25"), ('"', "%22"), ("\\", "%5C"))


def stored_name(field: str) -> str:
    """The payload name under which a user's field is stored; `user_name` turns it back."""
    if '"' in field or "\\" in field or ("%" in field and any(code in field for _, code in _ESCAPES)):
        for char, code in _ESCAPES:
            field = field.replace(char, code)
    return field


def user_name(stored: str) -> str:
    """The user's field of a stored payload name."""
    if "%" in stored and any(code in stored for _, code in _ESCAPES):
        for char, code in reversed(_ESCAPES):
            stored = stored.replace(code, char)
    return stored


def json_path(field: str) -> str:
    """The JSON path of a user's top-level field."""
    return f'"{stored_name(field)}"'


def to_stored(key: str, payload: Payload) -> Payload:
    """The payload of a point."""
    stored = {stored_name(name): value for name, value in payload.items()}
    stored[KEY] = key
    return stored


def from_stored(stored: Payload | None, location: str) -> tuple[str, Payload]:
    """Key and user's payload of a point; takes `stored` apart.

    Raises:
        IndexUnavailable: a point without a key, which something else has put there.
    """
    key = stored.pop(KEY, None) if stored else None
    if stored is None or not isinstance(key, str):
        raise IndexUnavailable(f"the index {location} holds points without {KEY!r}: something else writes to it")
    for name in stored:
        if "%" in name:
            return key, {user_name(name): value for name, value in stored.items()}
    return key, stored


@dataclass(frozen=True, slots=True)
class Clause:
    """One demand on a field, as Qdrant knows it: `value` is a scalar, a list of strings, or bounds by name."""

    path: str
    kind: Literal["value", "any", "range"]
    value: Any


def clauses(conditions: Iterable[Condition]) -> list[list[Clause]]:
    """A filter in Qdrant's terms: every inner list must have a clause that holds.

    Integers are sought as a range of one number, because Qdrant's match tells 1 from 1.0; beyond ±2**53, where a range
    would round, they are matched.
    """
    return [_clauses(condition) for condition in conditions]


def _clauses(condition: Condition) -> list[Clause]:
    path = json_path(condition.field)
    if not condition.any_of:
        bounds = {name: getattr(condition, name) for name in ("gt", "gte", "lt", "lte")}
        return [Clause(path, "range", {name: bound for name, bound in bounds.items() if bound is not None})]
    texts = sorted({value for value in condition.any_of if isinstance(value, str)})
    found = [Clause(path, "any", texts)] if len(texts) > 1 else [Clause(path, "value", text) for text in texts]
    for value in dict.fromkeys((type(v), v) for v in condition.any_of if not isinstance(v, str)):
        number = value[1]
        if isinstance(number, bool) or abs(number) >= EXACT_FLOAT:
            found.append(Clause(path, "value", number))
        else:
            found.append(Clause(path, "range", {"gte": float(number), "lte": float(number)}))
    return found


def served(conditions: Iterable[Condition], fields: Mapping[str, FieldType]) -> bool:
    """Whether payload indexes answer every clause; if not, a graph search would lose matches and must not be used."""
    return all(_served(condition, fields.get(condition.field)) for condition in conditions)


def _served(condition: Condition, kind: FieldType | None) -> bool:
    numeric = kind in ("integer", "float")
    if not condition.any_of:
        return numeric
    for value in condition.any_of:
        if isinstance(value, str):
            fits = kind == "keyword"
        elif isinstance(value, bool):
            fits = kind == "bool"
        else:
            fits = numeric and abs(value) < EXACT_FLOAT
        if not fits:
            return False
    return True


class Scored(Protocol):
    """A point an engine found."""

    @property
    def score(self) -> float: ...
    @property
    def payload(self) -> Payload | None: ...


P = TypeVar("P", bound=Scored)


def settle(found: list[P], k: int, again: Callable[[int], list[P]]) -> list[P]:
    """Enough points that the smallest keys win a tie at the k-th place.

    Args:
        found: up to k + 1 points, best first.
        k: how many are wanted.
        again: asks the same question with a larger limit.
    """
    limit, most = k + 1, k + MAX_TIES
    while limit < most and len(found) >= limit and clip(found[k - 1].score) == clip(found[-1].score):
        limit = min(4 * limit, most)
        found = again(limit)
    return found


def to_hits(points: Sequence[P], k: int, location: str) -> list[Hit]:
    """The `k` best of what `settle` left, as hits: best first, ties by key; takes the points' payloads apart."""
    if len(points) > k and points[k - 1].score > points[k].score:
        points = points[:k]  # the usual case: the one point too many was only needed to see that there is no tie
    hits = []
    previous, tied = math.inf, False
    for point in points:
        key, payload = from_stored(point.payload, location)
        score = point.score
        tied = tied or score >= previous or score > 1.0
        previous = score
        hits.append(Hit(key, clip(score), payload))
    return rank(hits, k) if tied else hits[:k]


def clip(score: float) -> float:
    """A cosine that rounding has carried past ±1."""
    return score if -1.0 <= score <= 1.0 else max(-1.0, min(1.0, score))


def chunks(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """Consecutive slices of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
