"""What goes with a picture in words: captions, titles of a catalogue, a log of clicks → queries and their pictures.

A *query* is a text, or a picture that was searched by. Texts of the same words are one query, whoever wrote them, so
that the same caption of two pictures fits both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.catalogue import Table, listed_path, read_table
from lookalike.errors import CatalogueError
from lookalike.images import looks_like_picture, shown
from lookalike.text import words

Numbers = npt.NDArray[np.int64]

# Columns that are taken for words where none is named.
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description")
CLICKS = ("query", "shown", "clicked")
_PARTS = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "valid": "validation",
          "dev": "validation", "test": "test"}  # fmt: skip
_ANSWERS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

__all__ = ["CAPTION_COLUMNS", "Captions", "read_captions"]


@dataclass(frozen=True)
class Captions:
    """Queries and the pictures that fit them.

    Attributes:
        pictures: their paths, absolute, each once.
        texts: each once; texts of the same words count as the same, and the first stands.
        pairs: (m, 2) int64, a query and a picture that fits it, each pair once. Query q below ``len(texts)`` is that
            text; others are the picture ``q - len(texts)``.
        refused: (r, 2) int64, a query and a picture that was shown for it and not clicked.
        split: "train", "validation", "test" or "" for each picture.
        notes: sentences about what was left out, with counts.
    """

    pictures: list[str]
    texts: list[str]
    pairs: Numbers
    refused: Numbers
    split: list[str]
    notes: list[str] = field(default_factory=list)

    def of(self, pictures: Numbers) -> tuple[Numbers, Numbers]:
        """The texts that fit some of the pictures, and (m, 2) which fits which, as positions in both."""
        place = np.full(len(self.pictures), -1, dtype=np.int64)
        place[pictures] = np.arange(len(pictures))
        held = self.pairs[(self.pairs[:, 0] < len(self.texts)) & (place[self.pairs[:, 1]] >= 0)]
        texts, left = np.unique(held[:, 0], return_inverse=True)
        return texts.astype(np.int64), np.stack([left.astype(np.int64), place[held[:, 1]]], axis=1)

    def keep(self, chosen: Any) -> Captions:
        """Only the pictures where the (n,) bool `chosen` says so, and the texts that still fit one."""
        wanted = np.asarray(chosen, dtype=bool)
        place = np.cumsum(wanted) - 1
        count = len(self.texts)

        def there(table: Numbers) -> Numbers:
            query = table[:, 0] - count
            kept: Numbers = table[wanted[table[:, 1]] & ((query < 0) | wanted[query.clip(min=0)])]
            return kept

        pairs, refused = there(self.pairs), there(self.refused)
        texts = np.unique(pairs[pairs[:, 0] < count, 0])
        number = np.full(count, -1, dtype=np.int64)
        number[texts] = np.arange(len(texts))

        def renumbered(table: Numbers) -> Numbers:
            query = table[:, 0]
            words_of = number[query.clip(max=max(count - 1, 0))] if count else query
            own = np.where(query < count, words_of, len(texts) + place[(query - count).clip(min=0)])
            moved = np.stack([own, place[table[:, 1]]], axis=1)
            found: Numbers = moved[own >= 0]
            return found

        return Captions(
            [path for path, kept in zip(self.pictures, wanted, strict=True) if kept],
            [self.texts[i] for i in texts],
            renumbered(pairs),
            renumbered(refused),
            [part for part, kept in zip(self.split, wanted, strict=True) if kept],
            list(self.notes),
        )

    def parts(self, validation: float, test: float, seed: int) -> dict[str, Numbers]:
        """Positions of the pictures of "train", "validation" and "test", each picture in one.

        Where the catalogue says nothing, they are drawn. Where it holds out one part alone, that part gives the
        verdict, as "test", and validation is drawn from the rest: what chooses must not judge.

        Args:
            validation: share of the pictures, where drawn.
            test: share of the pictures, where drawn.
            seed: of the draw.
        """
        said = np.array(self.split)
        held = [name for name in ("validation", "test") if (said == name).any()]
        found = {name: np.flatnonzero(said == name) for name in ("validation", "test")}
        rest = np.flatnonzero((said == "train") | (said == ""))
        order = np.random.default_rng(seed).permutation(rest)
        if len(held) == 2:
            return {"train": rest, **found}
        if len(held) == 1:
            test_rows, drawn = found[held[0]], round(validation * len(rest))
        else:
            first = round(test * len(rest))
            test_rows, order, drawn = np.sort(order[:first]), order[first:], round(validation * len(rest))
        return {"train": np.sort(order[drawn:]), "validation": np.sort(order[:drawn]), "test": test_rows}

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the texts, the names of the pictures and which fits which."""
        digest = hashlib.sha256()
        for line in [*self.texts, *(os.path.basename(path) for path in self.pictures)]:  # noqa: PTH119
            digest.update(os.fsencode(line.encode("utf-8", "replace")) + b"\0")
        digest.update(self.pairs.tobytes() + self.refused.tobytes())
        return digest.hexdigest()[:16]


def read_captions(path: str | os.PathLike[str], columns: Sequence[str] = ()) -> Captions:
    """Read a CSV file of captions, a catalogue, or a log of clicks.

    Captions and catalogues have a column of pictures (see `lookalike.catalogue.rows`), one row per caption, and columns
    of words: those named, joined by blanks, or else the first called caption, captions, text, title or description. A
    column ``split`` says which part a picture belongs to.

    A log has the columns ``query,shown,clicked``: a text, or the path of a picture; the picture that was shown; and 1,
    true, yes or 0, false, no.

    Raises:
        CatalogueError: it cannot be read, has no such columns, or holds no text with a word in it.
    """
    table = read_table(path)
    if not columns and all(table.find(name) is not None for name in CLICKS):
        return _from_clicks(table)
    picture = table.picture_column()
    chosen = [table.column(name) for name in columns] or _caption_column(table)
    split = table.find("split")
    found = _Collector(table)
    for number, cells in table.body:
        if not cells[picture]:
            raise CatalogueError(f"catalogue {shown(table.path)}, row {number}: no picture")
        part = "" if split is None else _part(table, number, cells[split])
        here = found.picture(cells[picture], part)
        text = " ".join(cells[i] for i in chosen if cells[i])
        found.add(found.text(text), here, True)
    return found.done()


class _Collector:
    """Pictures and texts, numbered as they come."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._pictures: dict[str, int] = {}
        self._split: list[str] = []
        self._texts: dict[tuple[str, ...], int] = {}
        self._first: list[str] = []
        self._fits: dict[tuple[str, int, int], bool] = {}
        self._empty = 0

    def picture(self, name: str, part: str = "") -> int:
        path = listed_path(self._table.path, name)
        number = self._pictures.setdefault(path, len(self._pictures))
        if number == len(self._split):
            self._split.append(part)
        return number

    def text(self, text: str) -> int | None:
        key = tuple(words(text))
        if not key:
            self._empty += 1
            return None
        number = self._texts.setdefault(key, len(self._texts))
        if number == len(self._first):
            self._first.append(text)
        return number

    def add(self, query: int | None, picture: int, fits: bool, kind: str = "text") -> None:
        """A picture that was clicked once for a query fits it, however often it was passed over."""
        if query is not None:
            key = (kind, query, picture)
            self._fits[key] = self._fits.get(key, False) or fits

    def done(self) -> Captions:
        notes = [f"{self._empty:,} rows without a word were left out"] if self._empty else []
        if not self._texts:
            raise CatalogueError(f"catalogue {shown(self._table.path)} holds no text with a word in it")
        base = {"text": 0, "picture": len(self._texts)}

        def rows(wanted: bool) -> Numbers:
            found = [(base[kind] + q, p) for (kind, q, p), fits in self._fits.items() if fits == wanted]
            return np.array(found, dtype=np.int64).reshape(-1, 2)

        return Captions(list(self._pictures), self._first, rows(True), rows(False), self._split, notes)


def _from_clicks(table: Table) -> Captions:
    query, seen, clicked = (table.column(name) for name in CLICKS)
    found = _Collector(table)
    for number, cells in table.body:
        answer = _ANSWERS.get(cells[clicked].lower())
        if answer is None or not cells[seen]:
            raise CatalogueError(
                f"catalogue {shown(table.path)}, row {number}: shown must name a picture and clicked be 1 or 0, got "
                f"{cells[seen]!r} and {cells[clicked]!r}"
            )
        here = found.picture(cells[seen])
        if _is_picture(listed_path(table.path, cells[query])):
            found.add(found.picture(cells[query]), here, answer, "picture")
        else:
            found.add(found.text(cells[query]), here, answer)
    return found.done()


def _is_picture(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return looks_like_picture(file.read(16))
    except (OSError, ValueError):
        return False


def _caption_column(table: Table) -> list[int]:
    found = [place for name in CAPTION_COLUMNS if (place := table.find(name)) is not None]
    if not found:
        raise CatalogueError(
            f"catalogue {shown(table.path)} has no column called {', '.join(CAPTION_COLUMNS)}: say which columns hold "
            f"the words with --set 'text.columns=[\"…\"]'; it has {', '.join(table.header)}"
        )
    return found[:1]


def _part(table: Table, number: int, value: str) -> str:
    if value and value.lower() not in _PARTS:
        raise CatalogueError(
            f"catalogue {shown(table.path)}, row {number}, column split: {value!r} is none of {', '.join(_PARTS)}"
        )
    return _PARTS.get(value.lower(), "")
