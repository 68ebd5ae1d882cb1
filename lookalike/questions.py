"""Questions in the layouts in which they are published: who asks, who may answer, and what is right.

Nothing here looks into a picture, nor asks whether it exists: what cannot be read is for whoever encodes it to tell.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lookalike.catalogue import Table, listed_path, read_table, rows
from lookalike.errors import CatalogueError, QueryError
from lookalike.images import shown

Numbers = npt.NDArray[np.int64]

_ANSWERS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

__all__ = ["PairList", "inside", "read_folders", "read_pairs", "read_roles", "read_runs"]


def inside(place: str, name: str) -> str:
    """A list that lies among the pictures, or else where its name says."""
    inside = os.path.join(place, name)  # noqa: PTH118
    return inside if os.path.exists(inside) else name  # noqa: PTH110


# ── queries and gallery ──────────────────────────────────────────────────────────────────────────────────────────────


def read_folders(place: str) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Queries and gallery from the folders ``query`` and ``gallery``, each with a folder per class.

    Returns:
        Path → class and role ("query" or "gallery"), and sentences about what was left out.

    Raises:
        CatalogueError: one of the folders is missing.
    """
    listed: dict[str, tuple[str, str]] = {}
    loose = 0
    for role in ("query", "gallery"):
        top = os.path.join(os.path.abspath(place), role)  # noqa: PTH100, PTH118
        if not os.path.isdir(top):  # noqa: PTH112
            raise CatalogueError(
                f"{shown(place)} has no folder {role}: the protocol query-gallery needs the folders query and gallery, "
                "each with a folder per class, or a CSV file with a column role"
            )
        for row in rows([top]):
            name = os.path.relpath(os.path.dirname(row.path), top)  # noqa: PTH120
            loose += name == "."
            if name != ".":
                listed[row.path] = (shown(name), role)
    return listed, [f"{loose:,} pictures left out: beside the class folders"] if loose else []


def read_roles(place: str, labels: str | None) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Queries and gallery from a CSV file with a column ``role``, which says query or gallery.

    Args:
        place: the file.
        labels: the column of the classes.

    Returns:
        As `read_folders`.

    Raises:
        CatalogueError: a column is missing, or a row malformed.
        QueryError: no column of classes is named.
    """
    table = read_table(place)
    if labels is None:
        raise QueryError(f"say which column of {shown(place)} holds the labels, one of {', '.join(table.header)}")
    label, role, picture = table.column(labels), table.column("role"), table.picture_column()
    listed: dict[str, tuple[str, str]] = {}
    empty = 0
    for number, cells in table.body:
        name = cells[role].lower()
        if name not in ("query", "gallery"):
            raise _wrong(table, number, role, cells[role], "is neither query nor gallery")
        if not cells[picture]:
            raise _wrong(table, number, picture, "", "names no picture")
        if not cells[label]:
            empty += 1
            continue
        path = listed_path(place, cells[picture])
        if listed.setdefault(path, (cells[label], name)) != (cells[label], name):
            raise _wrong(table, number, picture, cells[picture], "had another class or role before")
    return listed, [f"{empty:,} rows left out: nothing in column {table.header[label]}"] if empty else []


def _wrong(table: Table, number: int, column: int, value: str, problem: str) -> CatalogueError:
    where = f"catalogue {shown(table.path)}, row {number}, column {table.header[column]}"
    return CatalogueError(f"{where}: {value!r} {problem}")


# ── the runs of Lake et al. ──────────────────────────────────────────────────────────────────────────────────────────


def read_runs(place: str) -> tuple[list[str], list[str], list[Numbers]]:
    """The one-shot runs of Lake, Salakhutdinov and Tenenbaum (2015): ``run01/class_labels.txt`` and so on.

    Args:
        place: the folder that holds the runs; the paths in the lists are relative to it.

    Returns:
        The lists (r,), the pictures (n,), each once, and for each run the positions (m, 2) of the pictures that ask and
        of those of their classes.

    Raises:
        CatalogueError: there is no run, or a line is malformed.
    """
    if not os.path.isdir(place):  # noqa: PTH112
        raise CatalogueError(f"no such folder: {shown(place)}")
    lists = [str(path) for path in sorted(Path(place).glob("run*/class_labels.txt"))]
    if not lists:
        raise CatalogueError(
            f"{shown(place)} holds no run: the protocol lake needs run01/class_labels.txt and so on, each line with "
            "the picture that asks and the one of its class"
        )
    numbers: dict[str, int] = {}
    runs = [np.array(_run(place, file, numbers), dtype=np.int64) for file in lists]
    return lists, list(numbers), runs


def _run(place: str, file: str, numbers: dict[str, int]) -> list[list[int]]:
    """Pairs of picture numbers: which asks, and which is of its class."""
    found = []
    for number, line in _lines(file):
        names = line.split()
        if len(names) != 2:
            raise _malformed(
                file, number, line, "expected two pictures, as run01/test/item01.png run01/training/class01.png"
            )
        paths = [os.path.abspath(os.path.join(place, name)) for name in names]  # noqa: PTH100, PTH118
        found.append([numbers.setdefault(path, len(numbers)) for path in paths])
    if not found:
        raise CatalogueError(f"{shown(file)} is empty: each line must name two pictures")
    return found


def _lines(file: str) -> list[tuple[int, str]]:
    """The lines of a list that are not blank, with their numbers from 1."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{shown(file)} is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise CatalogueError(f"cannot read {shown(file)}: {error.strerror}") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _malformed(file: str, number: int, line: str, problem: str) -> CatalogueError:
    return CatalogueError(f"{shown(file)}, line {number}: {problem}, got {line.strip()!r}")


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class PairList:
    """Pairs of pictures.

    Attributes:
        file: the list.
        numbers: picture → its position.
        ends: the positions of the two of each pair.
        same: whether they are the same.
        folds: the fold of each pair; one and the same for all where the list names none.
    """

    file: str
    numbers: dict[str, int] = field(default_factory=dict)
    ends: list[tuple[int, int]] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)

    def add(self, left: str, right: str, same: bool, fold: str) -> None:
        """One more pair."""
        self.ends.append((self._number(left), self._number(right)))
        self.same.append(same)
        self.folds.append(fold)

    def _number(self, path: str) -> int:
        return self.numbers.setdefault(path, len(self.numbers))


def read_pairs(place: str, labels: str | None = None) -> PairList:
    """Pairs that are the same or not, from LFW's ``pairs.txt`` (Huang et al. 2007) or a CSV file.

    Args:
        place: a folder of pictures that holds the list, or the list itself.
        labels: the list, where it is not ``pairs.txt`` or ``pairs.csv`` in that folder. One that ends in .txt is in
            LFW's layout, and its pictures are ``name/name_0001.jpg`` below the folder; any other is a CSV file with
            the columns ``left,right,same`` and perhaps ``fold``, its pictures relative to it or to the folder.

    Raises:
        CatalogueError: there is no list, or it is malformed; the message names file and line.
    """
    file = _list_of_pairs(place, labels)
    return _lfw(place, file) if file.lower().endswith(".txt") else _table_of_pairs(place, file)


def _list_of_pairs(place: str, labels: str | None) -> str:
    if not os.path.isdir(place):  # noqa: PTH112
        return place
    names = ["pairs.txt", "pairs.csv"] if labels in (None, "folders") else [str(labels)]
    file = next((path for name in names if os.path.isfile(path := inside(place, name))), None)  # noqa: PTH113
    if file is None:
        raise CatalogueError(
            f"{shown(place)} has no {' or '.join(names)}: the protocol pairs needs LFW's pairs.txt, or a CSV file with "
            "the columns left,right,same"
        )
    return file


def _lfw(place: str, file: str) -> PairList:
    """LFW's list: in each fold so many same pairs (name 1 2), and then as many different ones (name 1 other 2)."""
    (number, head), *body = _lines(file) or [(1, "")]
    sizes = head.split()
    if len(sizes) not in (1, 2) or not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise _malformed(file, number, head, "expected the number of folds and of pairs of either kind, as 10\\t300")
    folds, each = (1, int(sizes[0])) if len(sizes) == 1 else (int(sizes[0]), int(sizes[1]))
    home = os.path.abspath(place if os.path.isdir(place) else os.path.dirname(place))  # noqa: PTH100, PTH112, PTH120
    found = PairList(file)
    for position, (number, line) in enumerate(body):
        if position == folds * 2 * each:
            raise _malformed(file, number, line, f"expected the end after {folds} × 2 × {each} pairs")
        same = position // each % 2 == 0
        fields = line.split("\t") if "\t" in line.strip() else line.split()
        fields = [cell.strip() for cell in fields]
        numbers = fields[1:] if same else fields[1::2]
        if len(fields) != (3 if same else 4) or not all(n.isascii() and n.isdigit() for n in numbers):
            form = "a same pair, as name 1 2" if same else "a different pair, as name 1 other 2"
            raise _malformed(file, number, line, f"expected {form}")
        names = (fields[0], fields[0] if same else fields[2])
        left, right = (_portrait(home, name, int(n)) for name, n in zip(names, numbers, strict=True))
        found.add(left, right, same, f"{position // (2 * each):04}")
    if len(found.ends) < folds * 2 * each:
        raise CatalogueError(
            f"{shown(file)}: its first line announces {folds} × 2 × {each} pairs, and {len(found.ends)} follow"
        )
    return found


def _portrait(home: str, name: str, number: int) -> str:
    """The picture of a person; aligned versions of LFW keep the names and change the format."""
    stem = os.path.join(home, name, f"{name}_{number:04}")  # noqa: PTH118
    return next((stem + end for end in (".jpg", ".png", ".jpeg") if os.path.exists(stem + end)), stem + ".jpg")  # noqa: PTH110


def _table_of_pairs(place: str, file: str) -> PairList:
    table = read_table(file)
    left, right, same = (table.column(name) for name in ("left", "right", "same"))
    fold = table.find("fold")
    found = PairList(file)
    for number, cells in table.body:
        answer = _ANSWERS.get(cells[same].lower())
        if answer is None:
            raise _wrong(table, number, same, cells[same], "is neither 1, true, yes nor 0, false, no")
        for column in (left, right):
            if not cells[column]:
                raise _wrong(table, number, column, "", "names no picture")
        one, other = (_beside(file, place, cells[column]) for column in (left, right))
        found.add(one, other, answer, "" if fold is None else cells[fold])
    return found


def _beside(file: str, place: str, name: str) -> str:
    """A picture relative to the list, or else to the folder of pictures."""
    beside = listed_path(file, name)
    return beside if os.path.exists(beside) else os.path.abspath(os.path.join(place, name))  # noqa: PTH100, PTH110, PTH118
