"""What every engine checks and orders alike: entries on their way in, hits on their way out."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lookalike.errors import PayloadError, QueryError, ShapeError
from lookalike.index.base import INT_MAX, INT_MIN, FieldType, Hit, Payload, is_text
from lookalike.vectors import Vectors, unit

KEY = "_key"  # where the engines that store points keep an entry's key, beside the payload's own fields
FIELD_TYPES = ("keyword", "integer", "float", "bool")
MAX_TIES = 4096  # equal scores are put in order of key as long as no more than this many meet at the k-th place
_MAX_DEPTH = 32
_NEAR_UNIT = 1e-6  # of a squared length: moves a score by half of it


def check_entries(
    keys: Sequence[str], vectors: Any, payloads: Sequence[Payload] | None, dim: int
) -> tuple[list[str], Vectors, list[Payload]]:
    """Check what `Index.add` was given: unique keys (the last of equal ones wins), unit rows (n, dim), plain payloads.

    Raises:
        ShapeError, PayloadError: as `Index.add`.
    """
    names = check_keys(keys)
    rows = unit(vectors, dim)
    if len(names) != len(rows) or (payloads is not None and len(payloads) != len(names)):
        counts = f"{len(names)} keys, {len(rows)} vectors" + (f", {len(payloads)} payloads" if payloads else "")
        raise ShapeError(f"an index needs one key and one payload per vector, got {counts}")
    if payloads is None:
        plain: list[Payload] = [{} for _ in names]
    else:
        plain = [check_payload(payload, key) for payload, key in zip(payloads, names, strict=True)]
    last = {key: position for position, key in enumerate(names)}
    if len(last) < len(names):
        chosen = list(last.values())
        return list(last), rows[chosen], [plain[position] for position in chosen]
    return names, rows, plain


def check_keys(keys: Sequence[str]) -> list[str]:
    """The keys as a list. Raises PayloadError for a key that is not Unicode text, ShapeError for one bare string."""
    if isinstance(keys, str):
        raise ShapeError(f"keys must be a list of strings, got the string {keys!r}")
    names = list(keys)
    for key in names:
        if not isinstance(key, str):
            raise PayloadError(str(key), f"a key must be a string, got {type(key).__name__}")
        if not is_text(key):
            raise PayloadError(key, "its key is not valid Unicode")
    return names


def check_payload(payload: Any, key: str) -> Payload:
    """A copy of `payload` in plain JSON types.

    Raises:
        PayloadError: the reserved name, or a value that JSON or 64 bits cannot hold; names the field.
    """
    if not isinstance(payload, Mapping):
        raise PayloadError(key, f"a payload must be a mapping, got {type(payload).__name__}")
    if KEY in payload:
        raise PayloadError(key, f"the field name {KEY!r} is taken by the index; call it something else")
    try:
        return {_plain_name(name): _plain(value, 1) for name, value in payload.items()}
    except ValueError:
        pass
    for name, value in payload.items():  # the slow way, to say which field it was
        try:
            _plain_name(name)
            _plain(value, 1)
        except ValueError as error:
            raise PayloadError(key, f"field {name!r}: {error}") from None
    raise AssertionError("a payload changed while it was checked")


def _plain_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"a field name must be a string, got {type(name).__name__}")
    if not is_text(name):
        raise ValueError("a field name must be valid Unicode")
    return str.__str__(name)


def _plain_scalar(value: str | int | float) -> str | int | float:
    if isinstance(value, str):
        if not is_text(value):
            raise ValueError("text must be valid Unicode")
        return str.__str__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"numbers must be finite, got {value}; use None")
        return float(value)
    if not INT_MIN <= value <= INT_MAX:
        raise ValueError("integers must fit in 64 bits; store this one as a string")
    return int(value)


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is bool or value is None or (kind is str and value.isascii()):
        return value
    if isinstance(value, str | int | float):
        return _plain_scalar(value)
    if depth >= _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, list | tuple):
        return [_plain(element, depth + 1) for element in value]
    if isinstance(value, Mapping):
        return {_plain_name(name): _plain(element, depth + 1) for name, element in value.items()}
    raise ValueError(f"{kind.__module__}.{kind.__qualname__} is not JSON (str, int, float, bool, None, list or dict)")


def check_meta(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """The index's own small document in plain JSON types; raises PayloadError."""
    return check_payload(meta or {}, "meta")


def check_fields(fields: Mapping[str, FieldType] | None) -> dict[str, FieldType]:
    """Declared payload fields; raises PayloadError for an unknown type or a name that cannot be one."""
    for name, kind in (fields or {}).items():
        if not isinstance(name, str) or not name or name == KEY or not is_text(name):
            raise PayloadError("fields", f"{name!r} cannot name a payload field")
        if kind not in FIELD_TYPES:
            raise PayloadError("fields", f"{name!r} must be one of {', '.join(FIELD_TYPES)}; got {kind!r}")
    return dict(fields or {})


def check_dim(dim: int) -> int:
    """A vector length; raises ShapeError unless it is a whole number from 1 to 65,536."""
    try:
        width = operator.index(dim)
    except TypeError:
        width = 0
    if not 1 <= width <= 65_536:
        raise ShapeError(f"dim must be a whole number from 1 to 65536, got {dim!r}")
    return width


def check_queries(queries: Any, k: int, dim: int) -> tuple[Vectors, int]:
    """Unit rows (n, dim) and a whole `k`; raises ShapeError or QueryError as `Index.search`."""
    rows = _already_unit(queries, dim)
    if rows is None:
        rows = unit(queries, dim, "queries")
    try:
        count = operator.index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise QueryError(f"k must be a whole number from 1, got {k!r}")
    return rows, count


def _already_unit(queries: Any, dim: int) -> Vectors | None:
    """Queries that need nothing, as those of an encoder do; saves a tenth of a search."""
    if not isinstance(queries, np.ndarray) or queries.dtype != np.float32 or queries.shape[-1:] != (dim,):
        return None
    if queries.ndim == 1:
        length = float(queries @ queries)
        return queries[None, :] if abs(length - 1.0) < _NEAR_UNIT else None  # false for NaN
    if queries.ndim != 2:
        return None
    lengths = np.einsum("ij,ij->i", queries, queries)
    return queries if (np.abs(lengths - 1.0) < _NEAR_UNIT).all() else None


def rank(hits: Iterable[Hit], k: int) -> list[Hit]:
    """The `k` best, best first, ties by key."""
    return sorted(hits, key=_order)[:k]


def _order(hit: Hit) -> tuple[float, str]:
    return -hit.score, hit.key
