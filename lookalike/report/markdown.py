"""Sections → Markdown: the same numbers as text; curves in words, pictures by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lookalike.images import shown
from lookalike.report import charts
from lookalike.report.blocks import (
    Bar,
    Block,
    Cell,
    Facts,
    Fold,
    Lines,
    Map,
    Matrix,
    Measured,
    Number,
    Section,
    Shown,
    Strips,
    Table,
    Text,
)

# A matrix of more classes than this is no table to read.
WIDE = 12

__all__ = ["to_markdown"]


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as text."""
    parts = [f"# {_text(title)}"]
    for section in sections:
        parts += [f"## {_text(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Text(text, kind):
            made = f"**{_text(text)}**" if kind == "verdict" else _text(text)
        case Facts(pairs):
            made = "\n".join(f"- {_text(name)}: {_text(value)}" for name, value in pairs)
        case Table():
            made = _table(block.head, block.rows, block.caption)
        case Lines():
            made = _text(charts.in_words(block))
        case Matrix():
            made = _matrix(block)
        case Strips():
            lines = [f"- {_item(query)}: {', '.join(map(_item, found))}" for query, found in block.rows]
            made = "\n".join([f"### {_text(block.title)}", "", *lines])
        case Map():
            made = f"{_text(block.title)}: in the HTML report."
        case Fold(title, blocks):
            made = "\n\n".join([f"### {_text(title)}", *map(_block, blocks)])
    return made


def _item(item: Shown) -> str:
    mark = "" if item.right is None else "✓ " if item.right else "✗ "
    return f"{mark}{_text(shown(Path(item.path).name))} ({_text(item.label)}, {_text(item.text)})"


def _matrix(matrix: Matrix) -> str:
    if len(matrix.classes) > WIDE:
        own = sum(counts[number] for number, counts in enumerate(matrix.counts))
        total = sum(map(sum, matrix.counts))
        return f"{_text(matrix.title)}: {own:,} of {total:,} on the diagonal; the whole is in the HTML report."
    rows: list[list[Cell]] = [
        [name, *(Number(count, 0) for count in counts)]
        for name, counts in zip(matrix.classes, matrix.counts, strict=True)
    ]
    return _table(["", *matrix.classes], rows, matrix.title)


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str) -> str:
    lines = [f"{_text(caption)}:", ""] if caption else []
    lines += ["| " + " | ".join(map(_text, head)) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    if isinstance(cell, Number | Bar):
        return f"{cell.value:,.{cell.digits}f}"
    if isinstance(cell, Measured):
        sign = "+" if cell.difference else ""
        return f"{cell.found.mean:{sign}.4f} [{cell.found.low:{sign}.4f}, {cell.found.high:{sign}.4f}]"
    return _text(cell) if cell else "–"


def _text(text: str) -> str:
    """Text that stays what it is: nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)
