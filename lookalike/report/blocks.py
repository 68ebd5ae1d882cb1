"""What a report is made of, before it is a page: sections of text, tables, curves, matrices and pictures.

Blocks hold plain text and numbers; a writer (`html`, `markdown`) escapes and draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lookalike.metrics import Interval

__all__ = [
    "Bar",
    "Block",
    "Cell",
    "Facts",
    "Fold",
    "Lines",
    "Map",
    "Matrix",
    "Measured",
    "Number",
    "Place",
    "Section",
    "Series",
    "Shown",
    "Strips",
    "Table",
    "Text",
]


@dataclass(frozen=True)
class Number:
    """A number in a table, with so many digits after the point."""

    value: float
    digits: int = 4


@dataclass(frozen=True)
class Measured:
    """A mean and its interval in a table, drawn on a scale that it shares with its neighbours.

    Attributes:
        found: the interval.
        scale: what the ends of the drawing stand for.
        difference: if it is one, which has a sign and a zero worth marking: which way is better.
    """

    found: Interval
    scale: tuple[float, float] = (0.0, 1.0)
    difference: Literal["more is better", "less is better"] | None = None


@dataclass(frozen=True)
class Bar:
    """A number in a table, drawn as a bar: `value` of `most`."""

    value: float
    most: float
    digits: int = 0


Cell = str | Number | Measured | Bar | None


@dataclass(frozen=True)
class Text:
    """A paragraph: plain, a verdict that the reader came for, or a note."""

    text: str
    kind: Literal["plain", "verdict", "note"] = "plain"


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Series:
    """One curve: its points, in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Lines:
    """Curves over one pair of axes.

    Attributes:
        title: what is shown.
        x: what is across, and its unit.
        y: what is up.
        series: the curves.
        box: (left, right, bottom, top) of the axes; by default what the points need.
        diagonal: whether y = x is drawn, as what chance or a perfect calibration gives.
        log: whether x is drawn by its logarithm.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    box: tuple[float, float, float, float] | None = None
    diagonal: bool = False
    log: bool = False


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: a row for each true class."""

    title: str
    classes: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Shown:
    """A picture with what is said of it.

    Attributes:
        path: the file.
        label: its class.
        text: what is written below.
        right: whether it is what was looked for; None where that is no question.
    """

    path: str
    label: str
    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Strips:
    """Rows of pictures: a query, and what was found."""

    title: str
    rows: Sequence[tuple[Shown, Sequence[Shown]]]


@dataclass(frozen=True)
class Place:
    """A picture on a map, x to the right and y up, in [0, 1]."""

    path: str
    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Map:
    """Pictures in the plane."""

    title: str
    places: Sequence[Place]


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown when wanted."""

    title: str
    blocks: Sequence[Block]


Block = Text | Facts | Table | Lines | Matrix | Strips | Map | Fold


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading."""

    title: str
    blocks: Sequence[Block]
