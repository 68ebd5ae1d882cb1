"""Which pictures: folders, files and catalogues to checked rows.

A picture's key is its absolute path. A name that is not valid UTF-8 has no place in JSON or in a database, so its key
is the file URI of RFC 8089 (``file:///photos/caf%E9.jpg``), which leads back to the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from lookalike.errors import CatalogueError
from lookalike.images import EXTENSIONS, looks_like_picture, shown
from lookalike.products import Seen, column_place, find_column, is_url, picture_place, products
from lookalike.tables import Problems, delimited, is_delimited, is_table, records

__all__ = [
    "Row",
    "Table",
    "key_of",
    "listed_path",
    "path_of",
    "read_table",
    "rows",
]


@dataclass(frozen=True, slots=True)
class Row:
    """One picture: its `path` for the operating system, what is known about it, and its row in a table, or 0."""

    path: str
    payload: dict[str, Any] = field(default_factory=dict)
    number: int = field(default=0, compare=False)

    @property
    def key(self) -> str:
        """The key it is stored under."""
        return key_of(self.path)


def key_of(path: str | os.PathLike[str]) -> str:
    """The key of a picture file: its absolute path, or its file URI where the path is not valid UTF-8."""
    whole = os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps ".."
    try:
        whole.encode("utf-8")
    except UnicodeEncodeError:
        return Path(whole).as_uri()
    return whole


def path_of(key: str) -> str:
    """The path behind a key made by `key_of`."""
    return os.fsdecode(unquote_to_bytes(urlsplit(key).path)) if key.startswith("file://") else key


def rows(
    places: Iterable[str | os.PathLike[str]],
    mapping: Mapping[str, str] | None = None,
    problems: Problems | None = None,
) -> Iterator[Row]:
    """Every picture of some folders, files and catalogues, each once, folders in order of name.

    Folders are walked to the bottom; hidden files and folders (``.name``) are passed over, links to folders are not
    followed. A file counts if its extension or its first bytes say picture. The payload of a folder's picture is its
    ``category``: the name of the folder it lies in. A table gives one picture per row, its path relative to the table,
    and its other columns become payload (see `products`). Another file is taken as a picture whatever its name.

    Args:
        places: folders, tables by their names (see `lookalike.tables`), and other files.
        mapping: payload name → column of the tables (see `products`).
        problems: takes rows of tables that are passed over; by default the first one is raised.

    Raises:
        CatalogueError: a place does not exist, or a table has no picture column, is malformed, or has no row that is
            any good.
    """
    seen = Seen()
    problems = problems if problems is not None else Problems(strict=True)
    for place in places:
        where = os.fspath(place)
        if os.path.isdir(where):  # noqa: PTH112 - a str keeps undecodable bytes as they are
            found: Iterable[Row] = _folder(where)
        elif is_table(where):
            found = _table(where, mapping or {}, problems)
        elif os.path.lexists(where):
            found = [Row(os.path.abspath(where), _category(where))]  # noqa: PTH100
        else:
            raise CatalogueError(f"no such file or folder: {shown(where)}")
        for row in found:
            if seen.add(row.path):
                yield row
            elif row.number:
                reason = f"picture {shown(row.path)} was named before"
                problems.add(where, row.number, "same picture", reason, harmless=True)


def _category(path: str) -> dict[str, Any]:
    return {"category": shown(os.path.basename(os.path.dirname(os.path.abspath(path))))}  # noqa: PTH100, PTH119, PTH120


def _folder(top: str) -> Iterator[Row]:
    def complain(error: OSError) -> None:
        raise CatalogueError(f"cannot list folder {shown(error.filename)}: {error.strerror}") from error

    for folder, folders, files in os.walk(os.path.abspath(top), onerror=complain):  # noqa: PTH100
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        payload = {"category": shown(os.path.basename(folder))}  # noqa: PTH119
        for name in sorted(files):
            path = os.path.join(folder, name)  # noqa: PTH118
            if not name.startswith(".") and (os.path.splitext(name)[1].lower() in EXTENSIONS or _announces(path)):  # noqa: PTH122
                yield Row(path, payload)


def _announces(path: str) -> bool:
    """Whether a file without a picture's extension begins like a picture. Only regular files are opened."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113
            return False
        with open(path, "rb") as file:  # noqa: PTH123
            return looks_like_picture(file.read(16))
    except OSError:
        return False


def _table(path: str, mapping: Mapping[str, str], problems: Problems) -> Iterator[Row]:
    """The pictures of a table. One of which no row is any good is refused, with the first reason."""
    before, found = problems.latest, False
    for product in products(path, mapping, problems):
        if is_url(product.picture):
            reason = "its picture is a URL: fetch it first with lookalike catalogue fetch"
            problems.add(path, product.row, "not fetched", reason)
            continue
        found = True
        yield Row(listed_path(path, product.picture), product.payload, product.row)
    if not found and problems.latest is not before:
        raise CatalogueError(f"{problems.latest}; nor is any other row of it any good")


# ── tables as text ───────────────────────────────────────────────────────────────────────────────────────────────────


def listed_path(catalogue: str | os.PathLike[str], name: str) -> str:
    """The absolute path of a picture that a CSV file calls `name`: relative to the folder the file lies in."""
    home = os.path.dirname(os.path.abspath(catalogue))  # noqa: PTH100, PTH120
    return os.path.abspath(os.path.join(home, name))  # noqa: PTH100, PTH118


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table as text.

    Attributes:
        path: where it lies.
        header: the names of its columns.
        body: its rows that are not empty, one cell per column, each with its number in the file (the header is row 1).
    """

    path: str
    header: list[str]
    body: list[tuple[int, list[str]]]

    def column(self, name: str) -> int:
        """Where the column `name` stands; upper and lower case count only if they must.

        Raises:
            CatalogueError: there is none; the message gives the nearest name and all of them.
        """
        return column_place(self.path, self.header, name)

    def find(self, name: str) -> int | None:
        """As `column`, with None where there is none."""
        return find_column(self.header, name)

    def picture_column(self) -> int:
        """Where the column of picture paths stands. Raises CatalogueError where there is none."""
        return picture_place(self.path, self.header)


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a whole table as text, in any format of `lookalike.tables`: lists as JSON, and what is missing as "".

    Raises:
        CatalogueError: it cannot be read, is not UTF-8, has no header, or a row has not one cell per column.
    """
    where = os.fspath(path)
    if not is_delimited(where):
        found = list(records(where))
        header = list(dict.fromkeys(name for _, record in found for name in record))
        cells = [(number, [_as_text(record.get(name)) for name in header]) for number, record in found]
        return Table(where, header, [(number, row) for number, row in cells if any(row)])
    (_, header), *body = delimited(where)
    for number, row in body:
        if len(row) != len(header):
            raise CatalogueError(f"catalogue {shown(where)}, row {number}: {len(row)} fields instead of {len(header)}")
    return Table(where, header, body)


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return (value or "").strip()
    return json.dumps(value, ensure_ascii=False, default=str)
