"""The formats a catalogue comes in, each read as a stream of records: memory does not grow with the number of rows.

====================  ================================================================================================
.csv .tsv .tab        UTF-8 text; comma, semicolon, tab or bar, whichever the header has most; the header names columns
.json                 an array of objects
.json .jsonl .ndjson  a JSON object per line, or a Python dict per line, as metadata of products was once published
.parquet .pq          with the extra ``catalogue``
====================  ================================================================================================

Text formats may be compressed with gzip, whatever they are called. A table may be a stranger's: no row may be longer
than `MAX_RECORD`, and a Python dict is read by `ast.literal_eval`, which knows literals and runs nothing.
"""

from __future__ import annotations

import ast
import csv
import datetime
import gzip
import io
import json
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, BinaryIO, cast

from lookalike.errors import CatalogueError, MissingExtra
from lookalike.images import shown

MAX_RECORD = 1 << 20  # characters of a JSON row
MAX_LITERAL = 1 << 18  # characters of a Python dict, whose syntax tree takes up to 500 bytes for each
_CHUNK = 1 << 16
_BATCH = 1024  # rows of a Parquet file in memory at once
_LISTED = 20  # problems of each kind that are remembered one by one
_DELIMITED = (".csv", ".tsv", ".tab")
_JSON = (".json", ".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")

Record = dict[str, Any]

__all__ = [
    "MAX_LITERAL",
    "MAX_RECORD",
    "Problem",
    "Problems",
    "Record",
    "delimited",
    "is_delimited",
    "is_table",
    "parse",
    "records",
]


# ── what is wrong with a row ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that is not as it should be.

    Attributes:
        file: the table.
        row: its number there, as a reader of the file counts: the header of a CSV file is row 1.
        kind: in a few words, the same for all problems of the kind.
        reason: what is wrong, with the values.
    """

    file: str
    row: int
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"catalogue {shown(self.file)}, row {self.row}: {self.reason}"


class Problems:
    """Rows that are not as they should be: all counted, the first of each kind listed, or the first one raised.

    Attributes:
        counts: kind → number of rows.
        listed: the first twenty of each kind.
        latest: the last one that came, or None.
    """

    def __init__(self, strict: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.listed: list[Problem] = []
        self.latest: Problem | None = None
        self._strict = strict

    def add(self, file: str, row: int, kind: str, reason: str, *, harmless: bool = False) -> None:
        """Count one. Where the rule is strict, and it is not `harmless`, raises CatalogueError."""
        problem = Problem(file, row, kind, reason)
        if self._strict and not harmless:
            raise CatalogueError(str(problem))
        self.latest = problem
        self.counts[kind] += 1
        if self.counts[kind] <= _LISTED:
            self.listed.append(problem)

    def sentences(self) -> list[str]:
        """One line for each kind: how many, and the first of them."""
        firsts: dict[str, Problem] = {}
        for problem in self.listed:
            firsts.setdefault(problem.kind, problem)
        return [f"{count:,} × {kind}, the first: {firsts[kind]}" for kind, count in self.counts.most_common()]


# ── any format ───────────────────────────────────────────────────────────────────────────────────────────────────────


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a table, and no folder has it."""
    return _suffix(os.fspath(path)) in (*_DELIMITED, *_JSON, *_PARQUET) and not os.path.isdir(path)  # noqa: PTH112


def is_delimited(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a CSV or TSV file: anything that is no other table."""
    return _suffix(os.fspath(path)) not in (*_JSON, *_PARQUET)


def _suffix(path: str) -> str:
    whole = path.lower()
    return os.path.splitext(whole.removesuffix(".gz"))[1]  # noqa: PTH122


def records(path: str | os.PathLike[str], problems: Problems | None = None) -> Iterator[tuple[int, Record]]:
    """The rows of a table with their numbers, one at a time.

    Args:
        path: the file; its name says the format.
        problems: takes rows that cannot be read, which are then passed over; by default the first one is raised.

    Yields:
        (number, {column: value}). In a delimited file a column holds whole numbers, numbers or JSON lists where all its
        cells do, else text, and empty cells are None; elsewhere values have the type that the file gives them.

    Raises:
        CatalogueError: the file cannot be read, is not UTF-8, or is not in its format.
        MissingExtra: a Parquet file, and pyarrow is not installed.
    """
    where, suffix = os.fspath(path), _suffix(os.fspath(path))
    problems = problems if problems is not None else Problems(strict=True)
    if suffix in _DELIMITED:
        return _records_of_text(where, problems)
    if suffix in _JSON:
        return _records_of_json(where, problems)
    if suffix in _PARQUET:
        return _records_of_parquet(where)
    known = ", ".join((*_DELIMITED, *_JSON, *_PARQUET))
    raise CatalogueError(f"{shown(where)} is no table by its name: call it one of {known}, with .gz where compressed")


@contextmanager
def _opened(path: str) -> Iterator[io.TextIOWrapper]:
    """A text file, decompressed; whatever goes wrong while it is read becomes CatalogueError."""
    try:
        with open(path, "rb") as raw:  # noqa: PTH123 - a str keeps undecodable bytes as they are
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
            with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
                yield text
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise CatalogueError(
            f"catalogue {shown(path)} is not UTF-8 text (byte {byte:#04x}): save it as UTF-8"
        ) from error
    except (EOFError, zlib.error) as error:
        raise CatalogueError(f"cannot read catalogue {shown(path)}: its gzip compression is damaged") from error
    except (OSError, csv.Error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CatalogueError(f"cannot read catalogue {shown(path)}: {reason}") from error


# ── delimited text ───────────────────────────────────────────────────────────────────────────────────────────────────


def delimited(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV or TSV file as text, with their numbers, without the blanks around cells.

    The first is the header, row 1; rows without any content are left out, and a quoted cell may go over several lines.

    Raises:
        CatalogueError: it cannot be read, is not UTF-8, has no header, or two columns have one name.
    """
    where = os.fspath(path)
    with _opened(where) as file:
        delimiter = "\t" if _suffix(where) in (".tsv", ".tab") else _delimiter(file.readline(MAX_RECORD))
        file.seek(0)
        header: list[str] = []
        lines = _Lines(where, file)
        for number, row in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
            lines.size = 0
            cells = [cell.strip() for cell in row]
            if number == 1:
                header = cells
                _check_header(where, header)
            if any(cells):
                yield number, cells
    if not header:
        _check_header(where, header)


class _Lines:
    """The lines of a file, of which those of one row together are of bounded length: `size` so far."""

    def __init__(self, path: str, file: io.TextIOWrapper) -> None:
        self._path = path
        self._file = file
        self.size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_RECORD)
        self.size += len(line)
        if self.size >= MAX_RECORD:
            raise CatalogueError(
                f"cannot read catalogue {shown(self._path)}: a row of more than {MAX_RECORD:,} characters; is a "
                "quotation mark never closed?"
            )
        if not line:
            raise StopIteration
        return line


def _delimiter(line: str) -> str:
    """What separates the names of a header: the most frequent, outside of quotation marks."""
    bare = re.sub(r'"[^"]*"', "", line)
    return max(",;\t|", key=bare.count)


def _check_header(path: str, header: Sequence[str]) -> None:
    if not any(header):
        raise CatalogueError(f"catalogue {shown(path)} is empty: its first row must name the columns")
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise CatalogueError(f"catalogue {shown(path)} has two columns called {twice[0]}: rename one of them")


def _records_of_text(path: str, problems: Problems) -> Iterator[tuple[int, Record]]:
    """Two readings: the first says what every column holds."""
    convert = _kinds(path)
    lines = delimited(path)
    _, header = next(lines)
    for number, cells in lines:
        if len(cells) != len(header):
            problems.add(path, number, "malformed", f"{len(cells)} fields instead of {len(header)}")
            continue
        yield (
            number,
            {h: kind(c) if c else None for h, kind, c in zip(header, convert, cells, strict=True) if h},
        )


def _kinds(path: str) -> list[Callable[[str], Any]]:
    """For each column, the narrowest of int, float and lists that all its cells are read by, or else str."""
    lines = delimited(path)
    _, header = next(lines)
    fitting: list[list[Callable[[str], Any]]] = [[int, float, _structure] for _ in header]
    filled = [False] * len(header)
    for _, cells in lines:
        if len(cells) != len(header):
            continue
        for column, cell in enumerate(cells):
            if cell == "":
                continue
            filled[column] = True
            if fitting[column]:
                fitting[column] = [kind for kind in fitting[column] if _fits(kind, cell)]
    return [kinds[0] if kinds and some else str for kinds, some in zip(fitting, filled, strict=True)]


def _fits(kind: Callable[[str], Any], cell: str) -> bool:
    """Whether a cell is read by a kind.

    What looks like a code stays text: leading zeros, underscores (which Python would read as digit separators), and
    numbers beyond 64 bits.
    """
    if kind is not _structure and ("_" in cell or re.match(r"[+-]?0\d", cell)):
        return False
    try:
        value = kind(cell)
    except ValueError:
        return False
    return kind is _structure or abs(value) < 2**63


def _structure(cell: str) -> Any:
    """A JSON or Python list or object in a cell. Raises ValueError on anything else."""
    if cell[:1] not in ("[", "{"):
        raise ValueError("not a list")
    return parse(cell)


# ── JSON, and Python dicts ───────────────────────────────────────────────────────────────────────────────────────────


def parse(text: str) -> Any:
    """The value that JSON or a Python literal writes. Raises ValueError on anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if len(text) > MAX_LITERAL:
        raise ValueError(f"not JSON ({problem}), and too long for a Python dict")
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"neither JSON ({problem}) nor a Python dict") from None


def _records_of_json(path: str, problems: Problems) -> Iterator[tuple[int, Record]]:
    with _opened(path) as file:
        start = ""
        while not start and (chunk := file.read(_CHUNK)):
            start = chunk.lstrip()
        file.seek(0)
        yield from _array(path, file) if start.startswith("[") else _lines(path, file, problems)


def _lines(path: str, file: io.TextIOWrapper, problems: Problems) -> Iterator[tuple[int, Record]]:
    number = 0
    while line := file.readline(MAX_RECORD):
        number += 1
        if len(line) == MAX_RECORD and not line.endswith("\n"):
            while (rest := file.readline(MAX_RECORD)) and not rest.endswith("\n"):
                pass
            problems.add(path, number, "malformed", f"longer than {MAX_RECORD:,} characters")
            continue
        if not line.strip():
            continue
        try:
            value = parse(line.strip())
        except ValueError as error:
            problems.add(path, number, "malformed", str(error)[:200])
            continue
        if isinstance(value, dict):
            yield number, {str(name): cell for name, cell in value.items()}
        else:
            problems.add(path, number, "malformed", f"an object was expected, not {type(value).__name__}")


def _array(path: str, file: io.TextIOWrapper) -> Iterator[tuple[int, Record]]:
    """The objects of an array, a piece of the text at a time. Where it is malformed, nothing after it can be read."""
    decode, gap = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*")
    text, at, number = "", 0, 0
    while not text:
        text = file.read(_CHUNK).lstrip()
    at = 1
    while True:
        at = gap.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        if text[at : at + 1] == "]":
            break
        try:
            value, at = decode(text, at)
        except RecursionError as error:
            raise CatalogueError(f"catalogue {shown(path)}, row {number + 1}: nested too deeply") from error
        except ValueError as error:  # malformed, or not all of it is here
            more = file.read(_CHUNK) if len(text) - at <= MAX_RECORD else ""
            if not more:
                problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise CatalogueError(f"catalogue {shown(path)}, row {number + 1}: not JSON ({problem})") from error
            text, at = text[at:] + more, 0
            continue
        number += 1
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise CatalogueError(f"catalogue {shown(path)}, row {number}: an object was expected, not {kind}")
        yield number, value
    if text[at + 1 :].strip() or file.read(_CHUNK).strip():
        raise CatalogueError(f"catalogue {shown(path)}: something follows the end of its array")


# ── Parquet ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _records_of_parquet(path: str) -> Iterator[tuple[int, Record]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("reading Parquet", "pyarrow", "catalogue") from None
    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, {name: _plain(value) for name, value in record.items()}
    except (OSError, pyarrow.ArrowException) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:200]
        raise CatalogueError(f"cannot read catalogue {shown(path)}: {reason}") from error


def _plain(value: Any) -> Any:
    """Dates as ISO 8601 text and decimal numbers as numbers; the rest as it is."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
