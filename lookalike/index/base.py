"""What an index is: the `Index` protocol, `Hit` and `Item`, what a score means, and the filter language.

**A score is the cosine similarity in [-1, 1]; higher is closer; hits come best first; ties go by key.**
Every engine means exactly that, and is compared with `lookalike.index.exact` in the contract test.

**Filter language** (``where``): a mapping from payload field to condition; all conditions must hold. ::

    {"category": "shoes"}                          eq: the field equals the value (str, int or bool)
    {"category": {"eq": "shoes"}}                  the same, spelt out
    {"colour": {"any_of": ["red", "blue"]}}        any of the values
    {"price": {"range": {"gte": 10, "lt": 50}}}    numbers: gt, gte, lt, lte
    {"tags": "sale"}                               a field that holds a list matches if any element does

A field name is one top-level name, whatever characters it has: a dot is a dot, not a path. An item without the field
does not match, and neither does a list inside a list. ``true`` and ``1`` are different values, ``"1"`` and ``1`` too;
``1`` and ``1.0`` are the same number, as in JSON. A range compares 64-bit floats, so whole numbers beyond ±2**53 are
rounded there; eq and any_of are exact for them (a float never equals an integer beyond ±2**53).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from lookalike.errors import QueryError
from lookalike.vectors import Vectors

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
EXACT_FLOAT = 2**53  # every integer below it is one 64-bit float and the float of no other integer

Payload = dict[str, Any]
Where = Mapping[str, Any]
FieldType = Literal["keyword", "integer", "float", "bool"]

__all__ = ["Condition", "FieldType", "Hit", "Index", "Item", "Payload", "Where", "matches", "parse_where"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: `key`, `score` (cosine in [-1, 1]), `payload`, and the keys of identical files folded into it."""

    key: str
    score: float
    payload: Payload = field(default_factory=dict)
    copies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One stored entry: `key`, `payload`, and `vector` of shape (dim,) where it was asked for."""

    key: str
    payload: Payload = field(default_factory=dict)
    vector: Vectors | None = None


@runtime_checkable
class Index(Protocol):
    """Unit vectors and JSON payloads under string keys.

    Attributes:
        location: what `open_index` was given.
        dim: length of a vector.
        meta: small JSON document written when the index was made (which encoder, which version); read-only.
    """

    location: str
    dim: int
    meta: Mapping[str, Any]

    def add(self, keys: Sequence[str], vectors: Vectors, payloads: Sequence[Payload] | None = None) -> None:
        """Store `vectors` (n, dim) under `keys`; an existing key is replaced whole. Durable when it returns.

        Within one call the last of equal keys wins. Rows are brought to unit length.

        A payload is JSON: str, int of 64 bits, finite float, bool, None, lists and string-keyed dicts of these; the
        name ``_key`` is taken. All entries are checked before the first is stored.

        Raises:
            ShapeError: not (n, dim), not finite, zeros only, or counts of keys, vectors and payloads differ.
            PayloadError: a key that is not text, or a payload that is not JSON.
            IndexUnavailable: closed, opened read-only, or the engine failed (disk full, server gone).
        """

    def remove(self, keys: Sequence[str]) -> int:
        """Remove entries; unknown keys are ignored. Returns how many were there."""

    def search(self, queries: Vectors, k: int = 10, where: Where | None = None) -> list[list[Hit]]:
        """The `k` best entries for each row of `queries` (n, dim); fewer when fewer match.

        Raises:
            ShapeError: queries of another width, not finite, or zeros only.
            QueryError: ``k < 1`` or a malformed filter.
            IndexUnavailable: closed, or the engine failed.
        """

    def get(self, keys: Sequence[str]) -> list[Item | None]:
        """Entries with vectors, in the order of `keys`; None where the key is unknown."""

    def scan(self, where: Where | None = None, *, vectors: bool = False) -> Iterator[Item]:
        """Every matching entry once, in no promised order, in bounded memory. The index must not change meanwhile."""

    def count(self, where: Where | None = None) -> int:
        """How many entries match, exactly."""

    def optimize(self) -> None:
        """Bring the search structure up to date now; engines without one do nothing. Searches are right before, too.

        Call it once after a large `add`. It can take minutes (a million vectors) and other threads wait meanwhile.
        """

    def close(self) -> None:
        """Finish background work, release files and locks. Safe to call twice."""

    def __len__(self) -> int:
        """How many entries there are."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One parsed condition: either `any_of` (non-empty) or at least one bound is set. All values are JSON."""

    field: str
    any_of: tuple[str | int | bool, ...] = ()
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


_BOUNDS = ("gt", "gte", "lt", "lte")


def parse_where(where: Where | None) -> tuple[Condition, ...]:
    """Check a filter and bring it to one form, so that every engine translates the same few things.

    Raises:
        QueryError: unknown operator, empty `any_of`, a bound that is not a finite number, a value that is not
            str/int/bool, an integer beyond 64 bits, text that is not Unicode.
    """
    if where is None:
        return ()
    if not isinstance(where, Mapping):
        raise QueryError(f"where must map fields to conditions, got {type(where).__name__}")
    return tuple(_condition(name, spec) for name, spec in where.items())


def _condition(name: str, spec: Any) -> Condition:
    if not isinstance(name, str) or not name or not is_text(name):
        raise QueryError(f"where: a field name must be a non-empty string, got {name!r}")
    if not isinstance(spec, Mapping):
        spec = {"eq": spec}
    if len(spec) != 1 or next(iter(spec)) not in ("eq", "any_of", "range"):
        raise QueryError(f"where: {name!r} takes exactly one of eq, any_of, range; got {sorted(map(str, spec))}")
    operator, value = next(iter(spec.items()))
    if operator == "eq":
        return Condition(name, any_of=(_scalar(name, value),))
    if operator == "any_of":
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise QueryError(f"where: any_of of {name!r} takes a non-empty list, got {value!r}")
        return Condition(name, any_of=tuple(_scalar(name, v) for v in value))
    if not isinstance(value, Mapping) or not value or set(value) - set(_BOUNDS):
        raise QueryError(f"where: range of {name!r} takes bounds among gt, gte, lt, lte; got {value!r}")
    return Condition(name, (), *(_bound(name, value[key]) if key in value else None for key in _BOUNDS))


def _bound(name: str, value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            bound = float(value)
        except OverflowError:
            bound = math.inf
        if math.isfinite(bound):
            return bound
    raise QueryError(f"where: a bound of {name!r} must be a finite number, got {value!r}")


def _scalar(name: str, value: Any) -> str | int | bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and is_text(value):
        return str.__str__(value)
    if isinstance(value, int) and INT_MIN <= value <= INT_MAX:
        return int(value)
    if isinstance(value, str | int):
        raise QueryError(f"where: {name!r} takes Unicode text and integers of 64 bits, got {value!r}")
    raise QueryError(f"where: {name!r} is compared with str, int or bool, got {value!r}; use range for other numbers")


def is_text(value: str) -> bool:
    """Whether a string is Unicode text: names of files on Linux can hold halves of characters, which JSON cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def matches(payload: Payload, conditions: Sequence[Condition]) -> bool:
    """Whether a payload satisfies all conditions: the meaning every engine must reproduce."""
    return all(_holds(payload.get(c.field), c) for c in conditions)


def _holds(value: Any, condition: Condition) -> bool:
    if isinstance(value, list):
        return any(_holds(element, condition) for element in value if not isinstance(element, list))
    if condition.any_of:
        return any(_same(value, wanted) for wanted in condition.any_of)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    number = float(value)
    return (
        (condition.gt is None or number > condition.gt)
        and (condition.gte is None or number >= condition.gte)
        and (condition.lt is None or number < condition.lt)
        and (condition.lte is None or number <= condition.lte)
    )


def _same(value: Any, wanted: str | int | bool) -> bool:
    if type(value) is float and type(wanted) is int:
        return abs(wanted) < EXACT_FLOAT and value == wanted
    return type(value) is type(wanted) and bool(value == wanted)
