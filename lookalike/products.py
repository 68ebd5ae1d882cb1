"""Products: the rows of a catalogue, each with its id, where its picture lies, its kind, and the rest as payload.

Everything streams: of a catalogue of a million rows only the ids seen so far are remembered.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from lookalike.errors import CatalogueError
from lookalike.images import shown
from lookalike.tables import Problems, Record, parse, records

# By what a column of pictures is called, in lower case, files before URLs.
PICTURE_COLUMNS = (
    *("image", "picture", "path", "file", "filename", "photo", "image_path", "imageurl", "image_url", "imurl", "img"),
    *("imageurlhighres", "image_link", "picture_url", "photo_url", "img_url"),
)
_LOOK_AHEAD = 1000  # rows of which the columns of a table without a header are known
_DEEPEST = 8  # lists within lists in a payload
_SIZES = ("large", "hi_res", "url", "src")  # of a picture that is an object, the keys that hold where it lies

__all__ = [
    "PICTURE_COLUMNS",
    "Product",
    "Seen",
    "column_place",
    "find_column",
    "is_url",
    "picture_place",
    "products",
]


@dataclass(frozen=True, slots=True)
class Product:
    """A row of a catalogue.

    Attributes:
        row: its number in the file, as a reader of the file counts.
        id: what the catalogue calls it, each once; None where the catalogue has no such column.
        picture: a path, relative to the catalogue, or a URL.
        payload: everything else, as an index can hold it; see `products`.
    """

    row: int
    id: str | int | None
    picture: str
    payload: dict[str, Any]


def products(
    path: str | os.PathLike[str], mapping: Mapping[str, str] | None = None, problems: Problems | None = None
) -> Iterator[Product]:
    """The products of a catalogue, one at a time, in any format of `lookalike.tables`.

    The picture is in the column called by one of the usual names (image, picture, path, …, imUrl); where a list of
    pictures is given, the first counts. A column called id holds ids. All columns but that of the picture become
    payload, without what is missing (null, NaN, empty text).

    A category that is a path, as ``["Clothing", "Shoes"]``, ``[["Clothing", "Shoes"], ["Sports"]]`` (several paths) or
    ``"Clothing > Shoes"``, becomes ``category`` = "Clothing > Shoes", the first path in one text, and ``categories``
    = ["Clothing", "Shoes", "Sports"], every level of every path: a filter on ``categories`` matches any level.

    Args:
        path: the file.
        mapping: payload name → column, for columns that are called otherwise: ``{"id": "asin", "image": "imUrl",
            "category": "categories", "title": "name"}``. image, id and category have the meaning above; any other
            name is merely another name for a column, and takes the place of a column that is called so. An empty
            column name says that there is none.
        problems: takes rows without a picture, with an id seen before, or with values of the wrong type, which are
            passed over; by default the first one is raised.

    Raises:
        CatalogueError: as `lookalike.tables.records`, or a column is not there.
    """
    where = os.fspath(path)
    problems = problems if problems is not None else Problems(strict=True)
    lines = records(where, problems)
    first = list(islice(lines, _LOOK_AHEAD))
    header = list(dict.fromkeys(name for _, record in first for name in record))
    if not header and not first:
        return
    columns = _columns(where, header, mapping or {})
    seen = Seen()
    for row, record in chain(first, lines):
        try:
            product = columns.product(row, record)
        except _Unfit as unfit:
            problems.add(where, row, unfit.kind, str(unfit))
            continue
        if product.id is not None and not seen.add(str(product.id)):
            problems.add(where, row, "duplicate id", f"id {product.id!r} was seen before")
            continue
        yield product


def is_url(picture: str) -> bool:
    """Whether a catalogue's picture lies on the network."""
    return re.match(r"(?i)([a-z][a-z0-9+.-]*:)?//[^/]", picture) is not None


class _Unfit(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column is what.

    Attributes:
        picture: the column of pictures.
        id: the column of ids, if there is one.
        category: the column of categories, if there is one.
        names: column → payload name, where they differ.
        left_out: the columns that do not become payload as they are.
        id_needed: whether every row must have an id.
    """

    picture: str
    id: str | None
    category: str | None
    names: Mapping[str, str]
    left_out: frozenset[str]
    id_needed: bool

    def product(self, row: int, record: Record) -> Product:
        """The product of a row. Raises _Unfit."""
        payload: dict[str, Any] = {}
        for column, value in record.items():
            if column not in self.left_out and (kept := _kept(column, value, 0)) is not None:
                payload[self.names.get(column, column)] = kept
        return Product(row, self._identity(payload), self._picture(record), payload | self._category(record, payload))

    def _identity(self, payload: dict[str, Any]) -> str | int | None:
        value = payload.get("id") if self.id is not None else None
        if isinstance(value, float) and value.is_integer():
            value = payload["id"] = int(value)
        if value is None:
            if self.id_needed:
                raise _Unfit("missing id", f"nothing in column {self.id}")
        elif isinstance(value, bool) or not isinstance(value, str | int):
            raise _Unfit("wrong type", f"column {self.id} must hold text or a whole number, got {_short(value)}")
        return value

    def _picture(self, record: Record) -> str:
        value = _one(record.get(self.picture))
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # a file called 123
        if _is_missing(value):
            raise _Unfit("no picture", "no picture")
        if not isinstance(value, str):
            raise _Unfit("wrong type", f"column {self.picture} must hold a path or a URL, got {_short(value)}")
        return _text(value.strip())

    def _category(self, record: Record, payload: dict[str, Any]) -> dict[str, Any]:
        if self.category is None or _is_missing(value := record.get(self.category)):
            return {}
        paths = _paths(value)
        if paths is None:
            raise _Unfit("wrong type", f"column {self.category} must hold a category or a path, got {_short(value)}")
        if isinstance(value, str | int | float) and len(paths[0]) == 1:
            return {"category": _kept(self.category, value, 0)}
        levels = {"categories": list(dict.fromkeys(level for path in paths for level in path))}
        text = {"category": " > ".join(paths[0])} if paths else {}
        return text | ({} if "categories" in payload else levels)


def _columns(path: str, header: Sequence[str], mapping: Mapping[str, str]) -> _Columns:
    """Find the columns. Raises CatalogueError where one is not there."""
    if mapping.get("image") == "":
        raise CatalogueError(f"catalogue {shown(path)}: name the column of pictures, as --map image=COLUMN")
    found = {name: header[column_place(path, header, column)] for name, column in mapping.items() if column}
    for name, usual in (("id", ("id",)), ("category", ("category", "categories"))):
        column = None if name in mapping else _usual(header, usual)
        found |= {} if column is None else {name: column}
    # Where a column gets the name of another one, that one goes.
    taken = {column for column in header if column in found and column != found[column]}
    picture = found.pop("image", "") or header[picture_place(path, header)]
    names = {column: name for name, column in found.items() if name != "category"}
    if "_key" in (names.get(column, column) for column in header):
        raise CatalogueError(f"catalogue {shown(path)} has a column _key, a name that indexes need: --map key=_key")
    category = found.get("category")
    left_out = {picture, *taken} | ({category} if category else set())
    return _Columns(picture, found.get("id"), category, names, frozenset(left_out), bool(mapping.get("id")))


def _usual(header: Sequence[str], names: Sequence[str]) -> str | None:
    return next((column for name in names for column in header if column.lower() == name), None)


def _paths(value: Any) -> list[list[str]] | None:
    """Category paths, each from the outermost level; None where a value is none."""
    if isinstance(value, str):
        inner = _parsed(value) if value[:1] == "[" else None
        return [_levels(re.split(r"\s*>+\s*", value)) or [value]] if inner is None else _paths(inner)
    if isinstance(value, int | float):
        return [[str(value)]]
    if not isinstance(value, list | tuple):
        return None
    if _are_text(value):
        levels = _levels(value)
        # A list of one text may be a path written as text.
        return _paths(levels[0]) if len(levels) == 1 else [levels] * bool(levels)
    if all(isinstance(path, list | tuple) and _are_text(path) for path in value):
        return [levels for path in value if (levels := _levels(path))]
    return None


def _are_text(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _levels(names: Sequence[str]) -> list[str]:
    return [_text(level) for name in names if (level := name.strip())]


def _parsed(text: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        return None


def _kept(column: str, value: Any, depth: int) -> Any:
    """A value as every index can hold it, or None where it is missing. Raises _Unfit on what is no such value."""
    if isinstance(value, str):
        return _text(value) or None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < _DEEPEST and isinstance(value, list | tuple):
        return [kept for inner in value if (kept := _kept(column, inner, depth + 1)) is not None]
    if depth < _DEEPEST and isinstance(value, dict):
        inner = {_text(str(name)): _kept(column, cell, depth + 1) for name, cell in value.items()}
        return {name: cell for name, cell in inner.items() if cell is not None}
    problem = "something nested too deeply" if isinstance(value, list | tuple | dict) else type(value).__name__
    raise _Unfit("wrong type", f"column {column} holds {problem}, which no index can hold")


def _text(value: str) -> str:
    """Text that is Unicode: halves of characters, which JSON can write, as escapes."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def _one(value: Any) -> Any:
    """The first of a list of pictures; of one in several sizes, the large one."""
    if isinstance(value, list | tuple):
        return next((one for inner in value if not _is_missing(one := _one(inner))), None)
    if isinstance(value, dict):
        sizes = [one for name in _SIZES if name in value and not _is_missing(one := _one(value[name]))]
        return sizes[0] if sizes else value
    return value


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value in ([], ()) or (isinstance(value, float) and not math.isfinite(value))


def _short(value: Any) -> str:
    text = shown(repr(value))
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"


class Seen:
    """Which texts were seen, at 16 to 32 bytes each: a set of Python's takes a hundred.

    A text is known by its 64-bit hash alone: that two of a million are taken for one happens once in 40 million times.
    """

    def __init__(self) -> None:
        self._slots = array("q", bytes(8 * 1024))
        self._count = 0

    def add(self, value: str) -> bool:
        """Remember a text. True if it is new."""
        mark = hash(value) or 1  # 0 is an empty slot
        place = self._find(self._slots, mark)
        if self._slots[place] == mark:
            return False
        self._slots[place] = mark
        self._count += 1
        if 2 * self._count > len(self._slots):
            larger = array("q", bytes(16 * len(self._slots)))
            for old in self._slots:
                if old:
                    larger[self._find(larger, old)] = old
            self._slots = larger
        return True

    @staticmethod
    def _find(slots: Any, mark: int) -> int:
        """Where a hash is, or would be."""
        last = len(slots) - 1
        place = mark & last
        while slots[place] and slots[place] != mark:
            place = (place + 1) & last
        return int(place)


# ── columns ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_column(header: Sequence[str], name: str) -> int | None:
    """Where the column `name` stands, or None; upper and lower case count only if they must."""
    if name in header:
        return header.index(name)
    return next((i for i, h in enumerate(header) if h.lower() == name.lower()), None)


def column_place(path: str, header: Sequence[str], name: str) -> int:
    """As `find_column`. Raises CatalogueError with the nearest name, and all of them, where there is none."""
    found = find_column(header, name)
    if found is None:
        near = difflib.get_close_matches(name.lower(), [h.lower() for h in header], n=1)
        guess = f" (did you mean {next(h for h in header if h.lower() == near[0])}?)" if near else ""
        raise CatalogueError(f"catalogue {shown(path)} has no column {name}{guess}: it has {', '.join(header)}")
    return found


def picture_place(path: str, header: Sequence[str]) -> int:
    """Where the column of pictures stands, by its usual names. Raises CatalogueError where there is none."""
    column = next((i for name in PICTURE_COLUMNS for i, h in enumerate(header) if h.lower() == name), None)
    if column is None:
        raise CatalogueError(
            f"catalogue {shown(path)} has no picture column: name one of {', '.join(PICTURE_COLUMNS[:5])}, image_url, "
            f"or say which it is with --map image=COLUMN; found {', '.join(header)}"
        )
    return column
