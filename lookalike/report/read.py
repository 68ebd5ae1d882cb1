"""Results files and run folders, checked as they are read: an error names the file, the place in it, and the fault."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookalike.errors import ReportError
from lookalike.images import shown
from lookalike.metrics import Interval

KINDS = ("evaluation", "ladder", "classifiers", "recommendation")
# A results file larger than this is something else.
MAX_BYTES = 1 << 28

__all__ = ["KINDS", "Node", "lines_of", "one_line", "read_json"]


class Node:
    """A value of a document that knows where it stands, so that what is malformed can be named.

    Attributes:
        value: as JSON gave it.
        file: the file, for people.
        place: as ``rows[2].test.mean``; "" for the whole document.
    """

    def __init__(self, value: Any, file: str, place: str = "") -> None:
        self.value = value
        self.file = file
        self.place = place

    def wrong(self, wanted: str) -> ReportError:
        """The error that this is not what it should be."""
        what = repr(self.value)
        what = what if len(what) <= 60 else f"{what[:57]}…"
        return ReportError(
            f"{self.file}: {self.place or 'the document'} should be {wanted}, got {one_line(what)}: make the file anew"
        )

    def __getitem__(self, name: str) -> Node:
        """A value by its name. Raises ReportError where there is none."""
        found = self.get(name)
        if found is None:
            place = f"{self.place}.{name}" if self.place else name
            raise ReportError(f"{self.file}: {place} is missing: make the file anew")
        return found

    def get(self, name: str) -> Node | None:
        """A value by its name, or None where there is none, or null."""
        if not isinstance(self.value, dict):
            raise self.wrong("a table of names")
        if self.value.get(name) is None:
            return None
        return Node(self.value[name], self.file, f"{self.place}.{name}" if self.place else name)

    def items(self) -> list[tuple[str, Node]]:
        """All names and values but null."""
        if not isinstance(self.value, dict):
            raise self.wrong("a table of names")
        return [(name, self[name]) for name, value in self.value.items() if value is not None]

    def list(self) -> list[Node]:
        """The values of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Node(value, self.file, f"{self.place}[{number}]") for number, value in enumerate(self.value)]

    def text(self) -> str:
        """A text, made fit for one line."""
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        return one_line(self.value)

    def raw(self) -> str:
        """A text as it is: the name of a file."""
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        try:
            os.fsencode(self.value)
        except UnicodeEncodeError:
            raise self.wrong("the name of a file") from None
        return self.value

    def number(self) -> float:
        """A finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise self.wrong("a number")
        return float(self.value)

    def whole(self) -> int:
        """A whole number that is not below zero."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            raise self.wrong("a whole number")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def interval(self) -> Interval:
        """A mean with its interval."""
        low, mean, high = (self[name].number() for name in ("low", "mean", "high"))
        return Interval(mean, low, high, self["count"].whole())

    def plain(self) -> str:
        """Any value, for people."""
        if isinstance(self.value, str):
            return self.text()
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        if isinstance(self.value, list):
            return ", ".join(node.plain() for node in self.list())
        if isinstance(self.value, dict):
            return ", ".join(f"{one_line(name)} {node.plain()}" for name, node in self.items())
        return f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:g}"


def one_line(text: str) -> str:
    """A text of a document as one line that can be printed: JSON may hold what is half a character."""
    return shown(text.encode("utf-8", "backslashreplace").decode())


def read_json(path: str | os.PathLike[str]) -> Node:
    """A JSON document. Raises ReportError: there is none, or it is not JSON."""
    name = shown(path)
    try:
        if os.path.getsize(path) > MAX_BYTES:  # noqa: PTH202 - a str keeps undecodable bytes as they are
            raise ReportError(f"{name} is larger than {MAX_BYTES >> 20} MiB: it is no results file")
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{name} is no results file: it is not text in UTF-8") from error
    try:
        return Node(json.loads(text), name)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{name} is not JSON: {error}; give results files and run folders") from error


def lines_of(path: Path) -> Sequence[Node]:
    """The documents of a file with one in each line; a last line that was cut short is left out."""
    name = shown(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"cannot read {name}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Node(json.loads(line), f"{name}, line {number}"))
        except ValueError as error:
            if number < len(lines):  # a run that goes on may be writing the last one
                raise ReportError(f"{name}, line {number} is not JSON: {error}") from error
    return found
