"""What people searched for, saw, clicked and judged: kept in one local file, exported and deleted on request.

A store is a SQLite database in WAL mode, so that the page can write while the command line reads; what a call has
written survives kill -9. It lies beside its index (``pictures.index`` → ``pictures.index.feedback``), so that the index
may be rebuilt and swapped without it. Nothing is recorded unless somebody asks for it, and nothing leaves the machine.

The rows answer two questions of training: what was *clicked together* after one question belongs together, what was
shown and passed over does not; and what was *judged* alike or unlike says so outright.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lookalike.errors import FeedbackError
from lookalike.images import shown as readable
from lookalike.index.base import Hit

__all__ = ["Feedback", "Query", "Recorded", "feedback_path"]

FORMAT = 1
PATIENCE = 5.0  # seconds to wait for another process that is writing
_PAGE = 500  # searches read at once

_TABLES = """
CREATE TABLE search (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, person TEXT NOT NULL, query TEXT NOT NULL, picture BLOB);
CREATE INDEX search_person ON search (person);
CREATE TABLE shown (
    search INTEGER NOT NULL REFERENCES search (id) ON DELETE CASCADE, place INTEGER NOT NULL, key TEXT NOT NULL,
    score REAL NOT NULL, clicked REAL, alike INTEGER, PRIMARY KEY (search, place)) WITHOUT ROWID;
CREATE INDEX shown_key ON shown (key);
"""


@dataclass(frozen=True, slots=True)
class Query:
    """What was asked: words, an indexed item, a picture from outside, or examples; whatever was not asked is empty.

    Attributes:
        text: the words.
        key: the picture asked with: a key of the index, or the absolute path of a file.
        picture: a picture that has no file here (it was uploaded), as the bytes of a small JPEG.
        liked: keys of liked examples.
        disliked: keys of disliked examples.
    """

    text: str = ""
    key: str = ""
    picture: bytes = b""
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.text or self.key or self.picture or self.liked):
            raise FeedbackError("a recorded query needs words, a key, a picture or liked examples")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One question and what became of it.

    Attributes:
        id: its number, which rises with time and is never used again.
        at: when, in seconds since 1970 (UTC).
        person: who asked, as the caller named them; "" where nobody was named.
        query: what was asked.
        shown: keys of the answers in the order they were shown.
        scores: their cosines.
        clicked: keys opened, in the order of the first click.
        alike: keys judged alike.
        unlike: keys judged not alike.
    """

    id: int
    at: float
    person: str
    query: Query
    shown: tuple[str, ...]
    scores: tuple[float, ...]
    clicked: tuple[str, ...]
    alike: tuple[str, ...]
    unlike: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Its JSON form; an uploaded picture in base64."""
        query = {name: value for name, value in asdict(self.query).items() if value}
        if self.query.picture:
            query["picture"] = base64.b64encode(self.query.picture).decode()
        return asdict(self) | {"query": query}


def feedback_path(location: str | os.PathLike[str]) -> Path:
    """Where the feedback on an index lies: beside its folder.

    Raises:
        FeedbackError: the index is in memory or on a server, so that there is no place beside it.
    """
    where = os.fspath(location)
    if where == ":memory:" or where.startswith(("http://", "https://")):
        raise FeedbackError(f"the index {where} has no folder to keep feedback beside: name a file for it")
    path = Path(os.path.abspath(where))  # noqa: PTH100 - without the trailing slash, links as they are
    return path.with_name(path.name + ".feedback")


class Feedback:
    """A store of searches and what people made of the answers. Threads may share one; so may processes a file.

    Args:
        path: the file; made if there is none.
        make: whether to make it; without, a missing file is an error.

    Raises:
        FeedbackError: it cannot be opened, is no feedback store, or was written by a newer version.
    """

    def __init__(self, path: str | os.PathLike[str], *, make: bool = True) -> None:
        self.path = Path(path)
        if not make and not self.path.is_file():
            raise FeedbackError(f"no feedback at {readable(path)}: record some with `lookalike search --record`")
        self._lock = threading.Lock()
        try:
            if not self.path.exists():  # what people look for is nobody else's business
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
            self._base: sqlite3.Connection | None = sqlite3.connect(
                self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise FeedbackError(f"cannot open the feedback {readable(path)}: {error}") from error
        try:
            with self._failing("be opened"):
                self._prepare(self._base)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Feedback:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """How many searches are recorded."""
        with self._reading("be counted") as base:
            return int(base.execute("SELECT count(*) FROM search").fetchone()[0])

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        with self._lock:
            base, self._base = self._base, None
            if base is not None:
                base.close()

    def record(self, query: Query, shown: Sequence[Hit], *, person: str = "", at: float | None = None) -> int:
        """Keep a question and its answers.

        Args:
            query: what was asked.
            shown: the answers, in the order they were shown.
            person: who asked: any name, as long as it is the same one when they want to be forgotten.
            at: when, in seconds since 1970; by default now.

        Returns:
            The number of the search, by which clicks and judgements refer to it.
        """
        words = {name: value for name, value in asdict(query).items() if value and name != "picture"}
        when = time.time() if at is None else at
        with self._writing("record a search") as base:
            row = (when, person, json.dumps(words, ensure_ascii=True), query.picture or None)
            number = base.execute("INSERT INTO search (at, person, query, picture) VALUES (?, ?, ?, ?)", row).lastrowid
            base.executemany(
                "INSERT INTO shown (search, place, key, score) VALUES (?, ?, ?, ?)",
                [(number, place, hit.key, hit.score) for place, hit in enumerate(shown)],
            )
        assert number is not None, "an insert gives a number"
        return number

    def click(self, search: int, key: str) -> None:
        """Note that an answer was opened. Raises FeedbackError where the search is unknown or did not show `key`."""
        self._note("clicked = coalesce(clicked, ?)", time.time(), search, key)

    def judge(self, search: int, key: str, alike: bool | None) -> None:
        """Note that an answer is alike or not alike what was asked; the last word counts, None takes it back.

        Raises:
            FeedbackError: the search is unknown or did not show `key`.
        """
        self._note("alike = ?", alike, search, key)

    def _note(self, change: str, value: float | bool | None, search: int, key: str) -> None:
        with self._writing("note what somebody made of an answer") as base:
            row = (value, search, key)
            done = base.execute(f"UPDATE shown SET {change} WHERE search = ? AND key = ?", row).rowcount
        if not done:
            raise FeedbackError(f"search {search} is not recorded or did not show {key!r}: record it first")

    def searches(self, *, person: str | None = None, after: int = 0, limit: int | None = None) -> Iterator[Recorded]:
        """What is recorded, oldest first, in bounded memory.

        Args:
            person: only what they asked.
            after: only searches with a higher number.
            limit: at most so many.
        """
        left = limit
        while left is None or left > 0:
            with self._reading("be read") as base:
                rows = base.execute(
                    "SELECT id, at, person, query, picture FROM search WHERE id > ? AND (? IS NULL OR person = ?) "
                    "ORDER BY id LIMIT ?",
                    (after, person, person, _PAGE if left is None else min(left, _PAGE)),
                ).fetchall()
                answers = [self._answers(base, row[0]) for row in rows]
            for row, answer in zip(rows, answers, strict=True):
                yield _recorded(row, answer)
            if not rows:
                return
            after = rows[-1][0]
            left = None if left is None else left - len(rows)

    def _answers(self, base: sqlite3.Connection, search: int) -> list[tuple[str, float, float | None, int | None]]:
        question = "SELECT key, score, clicked, alike FROM shown WHERE search = ? ORDER BY place"
        return base.execute(question, (search,)).fetchall()

    def export(self, file: TextIO, *, person: str | None = None) -> int:
        """Write what is recorded as JSON lines (`Recorded.document`), oldest first; returns how many."""
        count = 0
        for count, search in enumerate(self.searches(person=person), start=1):  # noqa: B007 - the count is the answer
            file.write(json.dumps(search.document()) + "\n")
        return count

    def forget(self, *, person: str | None = None, item: str | None = None) -> int:
        """Delete, for good, all that a person asked, or every trace of an item.

        An item leaves the answers it was shown in; searches that asked with it, or with it as an example, go whole.
        What is deleted is overwritten in the file.

        Args:
            person: whose searches to delete; "" are those of nobody in particular.
            item: the key to delete.

        Returns:
            How many searches were deleted or lost an answer.

        Raises:
            FeedbackError: neither or both were given.
        """
        if (person is None) == (item is None):
            raise FeedbackError("say whom or what to forget: a person or an item, one of the two")
        with self._writing("forget") as base:
            if person is not None:
                touched = base.execute("DELETE FROM search WHERE person = ?", (person,)).rowcount
            else:
                assert item is not None
                asked = [
                    number for number, query in base.execute("SELECT id, query FROM search") if _names(query, item)
                ]
                base.executemany("DELETE FROM search WHERE id = ?", [(number,) for number in asked])
                left = base.execute("SELECT count(DISTINCT search) FROM shown WHERE key = ?", (item,)).fetchone()[0]
                base.execute("DELETE FROM shown WHERE key = ?", (item,))
                touched = len(asked) + int(left)
        with self._reading("forget") as base:  # the log still holds what the database no longer does
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return touched

    # The database

    def _prepare(self, base: sqlite3.Connection) -> None:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing, a power cut the last moments
        base.execute("PRAGMA foreign_keys = ON")
        base.execute("PRAGMA secure_delete = ON")
        [version] = base.execute("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise FeedbackError(
                f"the feedback {self._name} has format {version}, newer than {FORMAT}: update Lookalike"
            )
        if version == FORMAT:
            return
        base.execute("BEGIN IMMEDIATE")  # two processes may make the same new file at once
        try:
            [version] = base.execute("PRAGMA user_version").fetchone()
            if not version:
                if base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise FeedbackError(f"{self._name} is a database of something else: name another file")
                for statement in filter(str.strip, _TABLES.split(";")):
                    base.execute(statement)
                base.execute(f"PRAGMA user_version = {FORMAT}")
            base.execute("COMMIT")
        except BaseException:
            base.execute("ROLLBACK")
            raise

    @property
    def _name(self) -> str:
        return readable(self.path)

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise FeedbackError(f"the feedback {self._name} could not {what}: {error}") from error

    @contextmanager
    def _reading(self, what: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._failing(what):
            if self._base is None:
                raise FeedbackError(f"the feedback {self._name} is closed: open it again")
            yield self._base

    @contextmanager
    def _writing(self, what: str) -> Iterator[sqlite3.Connection]:
        with self._reading(what) as base:
            base.execute("BEGIN IMMEDIATE")
            try:
                yield base
            except BaseException:
                base.execute("ROLLBACK")
                raise
            base.execute("COMMIT")


def _recorded(
    row: tuple[int, float, str, str, bytes | None], answers: Sequence[tuple[str, float, float | None, int | None]]
) -> Recorded:
    number, at, person, query, picture = row
    words: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(query).items()
    }
    clicks = sorted((when, key) for key, _, when, _ in answers if when is not None)
    return Recorded(
        number,
        at,
        person,
        Query(**words, picture=picture or b""),
        tuple(key for key, *_ in answers),
        tuple(score for _, score, *_ in answers),
        tuple(key for _, key in clicks),
        tuple(key for key, _, _, alike in answers if alike == 1),
        tuple(key for key, _, _, alike in answers if alike == 0),
    )


def _names(query: str, item: str) -> bool:
    """Whether a stored question asks with an item, as such or as an example."""
    asked = json.loads(query)
    return item == asked.get("key") or item in asked.get("liked", ()) or item in asked.get("disliked", ())
