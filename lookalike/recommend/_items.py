"""Items of an index by whatever names them, and what their payloads say."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.catalogue import key_of
from lookalike.index.base import Index, Item, Payload, is_text
from lookalike.vectors import Vectors

Kind = str | int | bool

# Items asked of an index at a time.
BLOCK = 1000


@dataclass(frozen=True, slots=True)
class Product:
    """An example: its vector (dim,), the items that it is (none for a picture from outside), and its content."""

    vector: Vectors
    items: tuple[Item, ...] = ()
    content: str | None = None


def keys_of(
    index: Index, names: Collection[str], by: str, path: Callable[[str], str] = os.path.abspath
) -> dict[str, list[str]]:
    """The keys of the items with these names: the key itself, that of the picture at a path, or the value of `by`."""
    found: dict[str, list[str]] = {}
    for key_by in (str, lambda name: key_of(path(name))):
        keys = {name: key for name in names if name not in found and is_text(key := key_by(name))}
        for name, item in zip(keys, got(index, list(keys.values())), strict=True):
            if item is not None:
                found[name] = [item.key]
    missing = {name for name in names if name not in found and is_text(name)}
    if missing:
        values = [value for name in sorted(missing) for value in _readings(name)]
        # A long list is compared here, and not by the engine.
        where = {by: {"any_of": values}} if len(values) <= BLOCK else None
        for item in index.scan(where):
            for name in {str(value) for value in kinds_of(item.payload, by)} & missing:
                found.setdefault(name, []).append(item.key)
    return {name: sorted(keys) for name, keys in found.items()}


def _readings(name: str) -> list[Kind]:
    """What a name may be in a payload: text, or the whole number that is written so."""
    return [name, int(name)] if name.isascii() and name.isdigit() and len(name) <= 18 else [name]


def got(index: Index, keys: Sequence[str]) -> Iterator[Item | None]:
    for start in range(0, len(keys), BLOCK):
        yield from index.get(keys[start : start + BLOCK])


def kinds_of(payload: Payload, column: str | None) -> tuple[Kind, ...]:
    """The values of a column that name something: text, whole numbers, yes or no; or those in its list."""
    value = payload.get(column) if column is not None else None
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if isinstance(one, str | int))


def content(payload: Payload) -> str | None:
    file = payload.get("file")
    return file.get("sha256") if isinstance(file, dict) else None


def vector_of(item: Item) -> Vectors:
    assert item.vector is not None, "Index.get gives vectors"
    return item.vector


def cosine(left: Vectors, right: Vectors) -> float:
    """Of two unit vectors, (dim,) or (1, dim), summed in float64 as the exact index does."""
    return float(np.clip((left.astype(np.float64) * right).sum(), -1.0, 1.0))
