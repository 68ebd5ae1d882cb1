"""Who is alike: labels for pictures, from the folders they lie in, a column of a CSV file, pairs, or triplets.

Whatever the source, each picture ends with one label, and equal labels mean alike. Pairs and triplets name no classes,
so theirs are made: alike is taken to be transitive (if a is like b, and b like c, then a is like c), and a class is
whatever hangs together. What contradicts that, like whatever else is left out, is said in `Labelled.notes`.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.catalogue import Table, listed_path, read_table, rows
from lookalike.errors import CatalogueError, QueryError
from lookalike.groups import Groups
from lookalike.images import shown
from lookalike.tables import is_table

Numbers = npt.NDArray[np.int64]

SIDES = ("train", "validation", "test")
_SIDE_NAMES = {name: name for name in SIDES} | {"training": "train", "val": "validation", "valid": "validation"}
_ANSWERS = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0}
_PAIRS, _TRIPLETS = ("left", "right", "same"), ("anchor", "positive", "negative")

__all__ = ["SIDES", "Example", "Labelled", "by_column", "by_folder", "labelled", "makers_of"]


@dataclass(frozen=True, slots=True)
class Example:
    """A picture to learn from.

    Attributes:
        path: the picture, absolute.
        label: its class; pictures with equal labels are alike.
        category: its super-class (the alphabet of a character, the kind of a product), or "".
        split: "train", "validation" or "test" where a catalogue says so, else "".
    """

    path: str
    label: str
    category: str = ""
    split: str = ""


@dataclass(frozen=True)
class Labelled:
    """Pictures with labels.

    Attributes:
        examples: each picture once.
        pairs: (m, 3) int64: left and right as positions in `examples`, and 1 for the same or 0 for different; or None.
        triplets: (m, 3) int64: anchor, positive and negative as positions in `examples`; or None.
        notes: sentences about what was left out or assumed, with counts.
    """

    examples: list[Example]
    pairs: Numbers | None = None
    triplets: Numbers | None = None
    notes: list[str] = field(default_factory=list)

    def keep(self, chosen: Any) -> Labelled:
        """Only the pictures at the positions `chosen`, in that order, with the pairs and triplets that stay whole."""
        positions = np.asarray(chosen, dtype=np.int64)
        place = np.full(len(self.examples), -1, dtype=np.int64)
        place[positions] = np.arange(len(positions))
        return Labelled(
            [self.examples[i] for i in positions],
            _renumbered(self.pairs, place, 2),
            _renumbered(self.triplets, place, 3),
            list(self.notes),
        )


def _renumbered(table: Numbers | None, place: Numbers, pictures: int) -> Numbers | None:
    if table is None:
        return None
    moved = table.copy()
    moved[:, :pictures] = place[table[:, :pictures]]
    kept: Numbers = moved[(moved[:, :pictures] >= 0).all(axis=1)]
    return kept


def labelled(
    root: str | os.PathLike[str], labels: str | os.PathLike[str] = "folders", *, category: str | None = None
) -> Labelled:
    """Read pictures and their labels.

    Args:
        root: a folder of pictures, or a table with one picture per row (see `lookalike.catalogue.rows`).
        labels: where the labels are.
            "none": nothing is known; each picture is a class of its own, whose label is its path below `root`.
            "folders": the class of a picture is the folder that holds it, and its label is that folder's path below
            `root`. Where classes lie in several folders, as ``alphabet/character/picture.png``, the outer folder is
            their category; folders that hold everything carry no meaning.
            The name of a column, if `root` is a table. Its column ``split``, if any, is read as well.
            The path of a table, if `root` is a folder (relative to it, or to the working folder): with columns
            ``left,right,same``, where same is 1, true, yes or 0, false, no, it holds pairs; with columns
            ``anchor,positive,negative`` it holds triplets. Its pictures are relative to it, or to `root`.
        category: the column of the category, if `root` is a table.

    Raises:
        CatalogueError: nothing to read, a value that means nothing (with file, row, column and value), or fewer than
            two classes, of which nothing can be learned.
    """
    place, source = os.fspath(root), os.fspath(labels)
    if source == "none" and category is None:
        return _unlabelled(place)
    if is_table(place):
        found = by_column(place, source, category)
    elif category is not None:
        raise CatalogueError(f"category {category} is a column, and {shown(place)} is no CSV file: leave it out")
    elif source == "folders":
        found = by_folder(place)
    elif is_table(source):
        found = _by_list(place, source)
    else:
        raise CatalogueError(
            f"labels {shown(source)}: of the folder {shown(place)}, labels are 'folders', 'none', or a CSV file of "
            "pairs or triplets; a column name needs a CSV file in place of the folder"
        )
    return _checked(found, place)


def makers_of(pattern: str, paths: Sequence[str]) -> npt.NDArray[np.str_]:
    """Who made each picture: what the first group of `pattern`, a regular expression, finds in its file name.

    (n,) text for n paths; "" where the group took no part in the match.

    Raises:
        QueryError: `pattern` is no regular expression, has no group, or does not match every file name.
    """
    try:
        finder = re.compile(pattern)
    except re.error as error:
        raise QueryError(f"maker {pattern!r} is no regular expression: {error}") from error
    if not finder.groups:
        raise QueryError(f"maker {pattern!r} needs a group, in brackets, that holds the maker")
    found = [finder.search(os.path.basename(path)) for path in paths]  # noqa: PTH119
    if None in found:
        raise QueryError(f"maker {pattern!r} does not match the file name of {shown(paths[found.index(None)])}")
    return np.array([match[1] or "" for match in found if match], dtype=np.str_)


def _unlabelled(root: str) -> Labelled:
    """Every picture as a class of its own."""
    if is_table(root):
        table = read_table(root)
        listed = {name: _side(table, number, cells) for number, name, cells in _pictures(table)}
    else:
        listed = {row.path: "" for row in rows([root])}
    if len(listed) < 2:
        raise CatalogueError(f"{shown(root)} holds {_count(len(listed), 'picture')}: learning needs at least two")
    # Relative, so that the same pictures in another place are the same data.
    top = os.path.abspath(root)  # noqa: PTH100
    top = os.path.dirname(top) if is_table(root) else top  # noqa: PTH120
    return Labelled([Example(path, shown(os.path.relpath(path, top)), split=side) for path, side in listed.items()])


def _checked(found: Labelled, place: str) -> Labelled:
    """At least two classes, one of them with two pictures; the lonely ones counted."""
    sizes = Counter(example.label for example in found.examples)
    lonely = sum(1 for size in sizes.values() if size == 1)
    if not sizes:
        raise CatalogueError(f"{shown(place)} holds no labelled picture: {'; '.join(found.notes) or 'it is empty'}")
    if len(sizes) < 2:
        raise CatalogueError(
            f"{shown(place)} holds {_count(len(found.examples), 'picture')} of {_count(len(sizes), 'class')}: learning "
            "what is alike needs at least two, so make a folder for each class, or say which pictures are alike in a "
            "pairs.csv with columns left,right,same"
        )
    if lonely == len(sizes):
        raise CatalogueError(
            f"{shown(place)} holds {len(sizes)} classes of one picture each: learning what is alike needs classes of "
            "at least two, so put pictures that are alike into one class"
        )
    if lonely:
        notes = [*found.notes, f"{_count(lonely, 'class')} of one picture: a negative for the others, never a positive"]
        return replace(found, notes=notes)
    return found


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_folder(root: str) -> Labelled:
    """Labels from folders, see `labelled`; a class of one picture will do, and so will one class.

    Paths are compared as strings relative to the root, so that any name will do. Raises CatalogueError: no such folder.
    """
    if not os.path.isdir(root):  # noqa: PTH112
        raise CatalogueError(f"no such folder: {shown(root)}")
    paths = [row.path for row in rows([root])]
    top = os.path.abspath(root)  # noqa: PTH100
    folders = [PurePath(os.path.relpath(os.path.dirname(path), top)) for path in paths]  # noqa: PTH120
    classes = set(folders)
    common = _common(classes)
    loose = common in classes and len(classes) > 1
    categories = _categories(classes - {common} if loose else classes, common)
    examples = [
        Example(path, shown(folder), shown(categories[folder]) if categories[folder] != common else "")
        for path, folder in zip(paths, folders, strict=True)
        if not (loose and folder == common)
    ]
    if not loose:
        return Labelled(examples)
    count = _count(len(paths) - len(examples), "picture")
    return Labelled(examples, notes=[f"{count} left out: beside the class folders in {shown(PurePath(top, common))}"])


def _common(folders: set[PurePath]) -> PurePath:
    """The deepest folder that holds them all."""
    parts = [folder.parts for folder in folders]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return PurePath(*shared)


def _categories(classes: set[PurePath], common: PurePath) -> dict[PurePath, PurePath]:
    """The super-class of every class: the folder around it; `common` where there is none.

    A class folder that holds class folders of its own belongs to the category that it makes.
    """
    around = {folder.parent for folder in classes}
    category = {folder: folder if folder in around else folder.parent for folder in classes}
    sizes = Counter(category.values())
    if len(sizes) < 2 or max(sizes.values()) < 2:
        return dict.fromkeys(category, common) | {common: common}
    return category


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_column(path: str, labels: str, category: str | None) -> Labelled:
    """Labels from a column of a CSV file, see `labelled`; a class of one picture will do, and so will one class.

    Raises CatalogueError: no such file or column, or a row without a picture.
    """
    table = read_table(path)
    if labels == "folders" and table.find("folders") is None:
        raise CatalogueError(
            f"labels 'folders' needs a folder, and {shown(path)} is a CSV file: name the column that says what is "
            f"alike, one of {', '.join(table.header)}"
        )
    column = table.column(labels)
    categories = None if category is None else table.column(category)
    unlabelled = 0
    seen: dict[str, tuple[int, str]] = {}
    repeated: list[int] = []
    examples = []
    for number, name, cells in _pictures(table):
        label = cells[column]
        if not label:
            unlabelled += 1
        elif seen.setdefault(name, (number, label))[0] != number:
            repeated += [number] if seen[name][1] != label else []
        else:
            kind = cells[categories] if categories is not None else ""
            examples.append(Example(name, label, kind, _side(table, number, cells)))
    notes = [f"{_count(unlabelled, 'row')} left out: nothing in column {table.header[column]}"] if unlabelled else []
    if repeated:
        notes.append(f"{_count(len(repeated), 'row')} left out: picture with another label before ({_some(repeated)})")
    return Labelled(examples, notes=notes)


def _pictures(table: Table) -> Iterable[tuple[int, str, list[str]]]:
    column = table.picture_column()
    for number, cells in table.body:
        if not cells[column]:
            raise CatalogueError(f"catalogue {shown(table.path)}, row {number}: no picture")
        yield number, listed_path(table.path, cells[column]), cells


def _side(table: Table, number: int, cells: list[str]) -> str:
    """What the column `split` says. Either every row has a side, or there is no such column."""
    column = table.find("split")
    if column is None:
        return ""
    side = _SIDE_NAMES.get(cells[column].lower())
    if side is None:
        raise _wrong(table, number, column, cells[column], f"is none of {', '.join(SIDES)}")
    return side


def _wrong(table: Table, number: int, column: int, value: str, problem: str) -> CatalogueError:
    where = f"catalogue {shown(table.path)}, row {number}, column {table.header[column]}"
    return CatalogueError(f"{where}: {value!r} {problem}")


def _some(numbers: Sequence[int]) -> str:
    """Row numbers, the first ten of them."""
    listed = ", ".join(str(number) for number in numbers[:10])
    return f"row{'s' if len(numbers) > 1 else ''} {listed}{' …' if len(numbers) > 10 else ''}"


# ── pairs and triplets ───────────────────────────────────────────────────────────────────────────────────────────────


def _by_list(root: str, name: str) -> Labelled:
    if not os.path.isdir(root):  # noqa: PTH112
        raise CatalogueError(f"no such folder: {shown(root)}")
    inside = os.path.join(root, name)  # noqa: PTH118
    table = read_table(inside if os.path.exists(inside) else name)  # noqa: PTH110
    for columns, read in ((_PAIRS, _pairs), (_TRIPLETS, _triplets)):
        if any(table.find(column) is not None for column in columns):
            return read(table, [table.column(column) for column in columns], _Pictures(root, table))
    raise CatalogueError(
        f"catalogue {shown(table.path)} holds neither pairs (columns {','.join(_PAIRS)}) nor triplets (columns "
        f"{','.join(_TRIPLETS)}): it has {', '.join(table.header)}"
    )


class _Pictures:
    """The pictures that a list names, numbered as they come, and which of them hang together."""

    def __init__(self, root: str, table: Table) -> None:
        self._root = root
        self._table = table
        self._numbers: dict[str, int] = {}
        self._groups = Groups()
        self.missing: list[int] = []

    def row(self, number: int, cells: list[str], columns: Sequence[int]) -> list[int] | None:
        """The numbers of a row's pictures, or None, remembered, where one does not exist."""
        paths = [self._find(number, column, cells[column]) for column in columns]
        if None in paths:
            self.missing.append(number)
            return None
        return [self._number(path) for path in paths if path is not None]

    def _find(self, number: int, column: int, name: str) -> str | None:
        if not name:
            raise _wrong(self._table, number, column, name, "names no picture")
        beside = listed_path(self._table.path, name)
        below = os.path.abspath(os.path.join(self._root, name))  # noqa: PTH100, PTH118
        return next((path for path in (beside, below) if path in self._numbers or os.path.exists(path)), None)  # noqa: PTH110

    def _number(self, path: str) -> int:
        if path not in self._numbers:
            self._numbers[path] = self._groups.add()
        return self._numbers[path]

    def join(self, a: int, b: int) -> None:
        """These two are alike."""
        self._groups.join(a, b)

    def component(self, number: int) -> int:
        """The first picture of those that hang together with this one."""
        return self._groups.first(number)

    def labelled(self, notes: list[str], **lists: Numbers) -> Labelled:
        """Every picture, labelled with the first picture of its class."""
        names = list(self._numbers)
        if not names:
            raise CatalogueError(
                f"catalogue {shown(self._table.path)} names no picture that exists, neither beside it nor below "
                f"{shown(self._root)}: check its paths"
            )
        top = os.path.abspath(self._root)  # noqa: PTH100
        firsts = [names[first] for first in self._groups.firsts()]
        examples = [
            Example(path, shown(os.path.relpath(first, top))) for path, first in zip(names, firsts, strict=True)
        ]
        said = [f"{len(names):,} pictures in {_count(len(set(firsts)), 'class')}: alike is taken to be transitive"]
        if self.missing:
            said.append(f"{_count(len(self.missing), 'row')} left out: no such picture ({_some(self.missing)})")
        others = sum(1 for row in rows([top]) if row.path not in self._numbers)
        if others:
            said.append(f"{_count(others, 'picture')} left out: no row names them")
        return Labelled(examples, notes=said + notes, **lists)


def _pairs(table: Table, columns: list[int], pictures: _Pictures) -> Labelled:
    left, right, same = columns
    found: dict[tuple[int, int, int], int] = {}
    seen: set[tuple[int, int, int]] = set()
    idle = 0
    for number, cells in table.body:
        answer = _ANSWERS.get(cells[same].lower())
        if answer is None:
            raise _wrong(table, number, same, cells[same], "is neither 1, true, yes nor 0, false, no")
        ends = pictures.row(number, cells, (left, right))
        if ends is None:
            continue
        pair = (min(ends), max(ends), answer)
        if pair in seen or (answer and ends[0] == ends[1]):
            idle += 1
            continue
        seen.add(pair)
        found[ends[0], ends[1], answer] = number
        if answer:
            pictures.join(*ends)
    refuted = [n for (a, b, s), n in found.items() if not s and pictures.component(a) == pictures.component(b)]
    wrong = set(refuted)
    kept = [pair for pair, number in found.items() if number not in wrong]
    notes = [f"{_count(idle, 'row')} left out: the same pair again, or a picture with itself"] if idle else []
    if refuted:
        notes.append(
            f"{_count(len(refuted), 'row')} left out: said to be different, but other rows together say the same "
            f"({_some(refuted)})"
        )
    return pictures.labelled(notes, pairs=np.array(kept, dtype=np.int64).reshape(-1, 3))


def _triplets(table: Table, columns: list[int], pictures: _Pictures) -> Labelled:
    found: dict[tuple[int, ...], int] = {}
    idle = 0
    for number, cells in table.body:
        triplet = pictures.row(number, cells, columns)
        if triplet is None:
            continue
        idle += tuple(triplet) in found
        found.setdefault(tuple(triplet), number)
        pictures.join(triplet[0], triplet[1])
    groups: dict[bool, list[tuple[int, ...]]] = defaultdict(list)
    for anchor, positive, negative in found:
        useful = anchor != positive and pictures.component(anchor) != pictures.component(negative)
        groups[useful].append((anchor, positive, negative))
    notes = [f"{_count(idle, 'row')} left out: the same triplet again"] if idle else []
    if groups[False]:
        refuted = [found[triplet] for triplet in groups[False]]
        notes.append(
            f"{_count(len(refuted), 'row')} left out: the negative is alike by other rows, or the positive is the "
            f"anchor itself ({_some(refuted)})"
        )
    return pictures.labelled(notes, triplets=np.array(groups[True], dtype=np.int64).reshape(-1, 3))
