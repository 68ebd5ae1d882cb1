"""Which pictures: folders, files and CSV catalogues to checked rows.

A picture's key is its absolute path. A name that is not valid UTF-8 has no place in JSON or in a database, so its key
is the file URI of RFC 8089 (``file:///photos/caf%E9.jpg``), which leads back to the same bytes.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from lookalike.errors import CatalogueError
from lookalike.images import EXTENSIONS, looks_like_picture, shown

__all__ = ["Row", "Table", "key_of", "listed_path", "path_of", "read_table", "rows"]

PICTURE_COLUMNS = ("image", "picture", "path", "file", "filename")


@dataclass(frozen=True, slots=True)
class Row:
    """One picture: its `path` for the operating system, and what is known about it."""

    path: str
    payload: dict[str, Any] = field(default_factory=dict)

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


def rows(places: Iterable[str | os.PathLike[str]]) -> Iterator[Row]:
    """Every picture of some folders, files and CSV catalogues, each once, folders in order of name.

    Folders are walked to the bottom; hidden files and folders (``.name``) are passed over, links to folders are not
    followed. A file counts if its extension or its first bytes say picture. The payload of a folder's picture is its
    ``category``: the name of the folder it lies in. A CSV file gives one picture per row: the column named image,
    picture, path, file or filename holds the path, relative to the CSV; every other column becomes payload, numbers
    where the whole column is numbers. A single file is taken as a picture whatever its name.

    Raises:
        CatalogueError: a place does not exist, or a CSV file has no picture column or is malformed.
    """
    seen: set[str] = set()
    for place in places:
        where = os.fspath(place)
        if os.path.isdir(where):  # noqa: PTH112 - a str keeps undecodable bytes as they are
            found: Iterable[Row] = _folder(where)
        elif where.lower().endswith(".csv"):
            found = _csv(where)
        elif os.path.lexists(where):
            found = [Row(os.path.abspath(where), _category(where))]  # noqa: PTH100
        else:
            raise CatalogueError(f"no such file or folder: {shown(where)}")
        for row in found:
            if row.path not in seen:
                seen.add(row.path)
                yield row


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


def _csv(path: str) -> Iterator[Row]:
    table = read_table(path)
    column = table.picture_column()
    for number, cells in table.body:
        if not cells[column]:
            raise CatalogueError(f"catalogue {shown(path)}, row {number}: no picture")
    convert = [_column_type([cells[i] for _, cells in table.body]) for i in range(len(table.header))]
    for _, cells in table.body:
        payload = {h: convert[i](cells[i]) for i, h in enumerate(table.header) if i != column and h and cells[i] != ""}
        yield Row(listed_path(path, cells[column]), payload)


def listed_path(catalogue: str | os.PathLike[str], name: str) -> str:
    """The absolute path of a picture that a CSV file calls `name`: relative to the folder the file lies in."""
    home = os.path.dirname(os.path.abspath(catalogue))  # noqa: PTH100, PTH120
    return os.path.abspath(os.path.join(home, name))  # noqa: PTH100, PTH118


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file as text.

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
        found = self.find(name)
        if found is None:
            near = difflib.get_close_matches(name.lower(), [h.lower() for h in self.header], n=1)
            guess = f" (did you mean {next(h for h in self.header if h.lower() == near[0])}?)" if near else ""
            raise CatalogueError(
                f"catalogue {shown(self.path)} has no column {name}{guess}: it has {', '.join(self.header)}"
            )
        return found

    def find(self, name: str) -> int | None:
        """As `column`, with None where there is none."""
        if name in self.header:
            return self.header.index(name)
        return next((i for i, h in enumerate(self.header) if h.lower() == name.lower()), None)

    def picture_column(self) -> int:
        """Where the column of picture paths stands. Raises CatalogueError where there is none."""
        column = next((i for name in PICTURE_COLUMNS for i, h in enumerate(self.header) if h.lower() == name), None)
        if column is None:
            raise CatalogueError(
                f"catalogue {shown(self.path)} has no picture column: name one of {', '.join(PICTURE_COLUMNS)}; "
                f"found {', '.join(self.header)}"
            )
        return column


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a CSV file: UTF-8; comma, semicolon or tab, whichever its header has most; blanks around cells dropped.

    Raises:
        CatalogueError: it cannot be read, is not UTF-8, has no header, or a row has not one cell per column.
    """
    where = os.fspath(path)
    header, *cells = _cells(where)
    body = [(number, row) for number, row in enumerate(cells, start=2) if any(row)]
    for number, row in body:
        if len(row) != len(header):
            raise CatalogueError(f"catalogue {shown(where)}, row {number}: {len(row)} fields instead of {len(header)}")
    return Table(where, header, body)


def _cells(path: str) -> list[list[str]]:
    """The cells of a CSV file without the blanks around them, the header first."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
            table = [[cell.strip() for cell in row] for row in reader]
    except UnicodeDecodeError as error:
        raise CatalogueError(
            f"catalogue {shown(path)} is not UTF-8 text (byte {error.object[error.start]:#04x}): save it as UTF-8"
        ) from error
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CatalogueError(f"cannot read catalogue {shown(path)}: {reason}") from error
    if not table or not any(table[0]):
        raise CatalogueError(f"catalogue {shown(path)} is empty: its first row must name the columns")
    return table


def _column_type(values: Sequence[str]) -> Callable[[str], Any]:
    """int, float or str: the narrowest type that every non-empty value of a column has.

    What looks like a code stays text: leading zeros, underscores (which Python would read as digit separators), and
    numbers beyond 64 bits.
    """
    filled = [value for value in values if value != ""]
    if any(re.match(r"[+-]?0\d|.*_", value) for value in filled):
        return str
    for kind in (int, float):
        try:
            numbers = [kind(value) for value in filled]
        except ValueError:
            continue
        if filled and all(abs(number) < 2**63 for number in numbers):
            return kind
    return str
