"""Sections → one self-contained HTML page, for a screen, a phone, the dark, a keyboard and a reading voice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from PIL import Image

from lookalike.errors import ImageError
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
    Place,
    Section,
    Shown,
    Strips,
    Table,
    Text,
)
from lookalike.report.style import SCRIPT, STYLE
from lookalike.sheet import data_uri, page, thumbnail

# Pictures in a report, of rows and maps together: about six megabytes at most. The rest is named, not shown.
PICTURES = 2000
# Pixels of a picture in a row, and of one on a map.
IN_ROW, ON_MAP = 128, 64
# Classes of a map with a colour and a shape of their own.
COLOURED = 14
# Of each row so many neighbours are explained.
EXPLAINED = 3
Explainer = Callable[[str, str], tuple[Image.Image, Image.Image]]

__all__ = ["COLOURED", "PICTURES", "to_html"]


def to_html(title: str, sections: Sequence[Section], explainer: Explainer | None = None) -> str:
    """The page.

    Args:
        title: of the whole.
        sections: what it holds.
        explainer: gives, for the files of a query and a neighbour, both with a heat map of what made them alike; it
            may raise ImageError.
    """
    return _Writer(explainer).page(title, sections)


class _Writer:
    def __init__(self, explainer: Explainer | None) -> None:
        self._explainer = explainer
        self._shown = 0
        self._missing = 0
        self._maps = 0
        self._styles: list[str] = []

    def page(self, title: str, sections: Sequence[Section]) -> str:
        body = [self._section(number, section) for number, section in enumerate(sections)]
        contents = "".join(
            f'<li><a href="#s{n}">{escape(section.title)}</a></li>' for n, section in enumerate(sections)
        )
        nav = f'<nav aria-label="Contents"><ol>{contents}</ol></nav>' if len(sections) > 1 else ""
        foot = f"{self._shown:,} pictures are inside this file; it loads nothing from anywhere."
        if self._missing:
            foot += f" {self._missing:,} could not be shown."
        whole = [
            f'<a class="skip" href="#main">Skip to the results</a><header><h1>{escape(title)}</h1>{nav}</header>',
            f'<main id="main">{"".join(body)}</main><footer><p>{foot}</p></footer>',
            f"<script>{SCRIPT}</script>" if self._maps else "",
        ]
        return page(title, STYLE + "".join(self._styles), "\n".join(whole))

    def _section(self, number: int, section: Section) -> str:
        blocks = "\n".join(self._several(section.blocks))
        head = f'<h2 id="h{number}">{escape(section.title)}</h2>'
        return f'<section id="s{number}" aria-labelledby="h{number}">{head}\n{blocks}</section>'

    def _several(self, blocks: Sequence[Block]) -> list[str]:
        """Charts that follow one another stand side by side where there is room."""
        parts: list[str] = []
        row: list[str] = []
        for block in [*blocks, None]:
            if isinstance(block, Lines):
                row.append(charts.lines(block))
                continue
            if row:
                parts.append(f'<div class="charts">{"".join(row)}</div>')
                row = []
            if block is not None:
                parts.append(self._block(block))
        return parts

    def _block(self, block: Block) -> str:
        match block:
            case Text(text, kind):
                made = f'<p class="{kind}">{escape(text)}</p>'
            case Facts(pairs):
                made = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
                made = f"<dl>{made}</dl>"
            case Table():
                made = _table(block)
            case Lines():
                made = charts.lines(block)
            case Matrix():
                made = _matrix(block)
            case Strips():
                made = self._strips(block)
            case Map():
                made = self._map(block)
            case Fold(title, blocks):
                inner = "\n".join(self._several(blocks))
                made = f"<details><summary>{escape(title)}</summary>{inner}</details>"
        return made

    # Pictures.

    def _picture(self, path: str, side: int) -> Image.Image | str:
        """A picture, or why there is none."""
        if self._shown >= PICTURES:
            self._missing += 1
            return "not shown"
        try:
            image = thumbnail(path, side)
        except ImageError as error:
            self._missing += 1
            return error.reason
        self._shown += 1
        return image

    def _strips(self, block: Strips) -> str:
        rows = []
        for query, found in block.rows:
            hits = "".join(f"<li>{self._figure(hit)}</li>" for hit in found)
            why = self._why(query, found[:EXPLAINED]) if self._explainer is not None else ""
            inner = f'<div class="row">{self._figure(query, "query")}<ol class="hits">{hits}</ol></div>{why}'
            rows.append(f'<li class="strip">{inner}</li>')
        kind = "strips few" if all(len(found) <= 2 for _, found in block.rows) else "strips"
        inner = f'<ul class="{kind}">{"".join(rows)}</ul>' if rows else "<p>None.</p>"
        return f"<h3>{escape(block.title)}</h3>{inner}"

    def _figure(self, item: Shown, kind: str = "hit") -> str:
        name, picture = shown(Path(item.path).name), self._picture(item.path, IN_ROW)
        mark = ""
        if item.right is not None:
            kind += " right" if item.right else " wrong"
            word = "right" if item.right else "wrong"
            mark = f'<span class="mark" role="img" aria-label="{word}">{"✓" if item.right else "✗"}</span>'
        if isinstance(picture, str):
            inner = f'<span class="none">{escape(picture)}</span>'
        else:
            inner = f'<img alt="{escape(item.label)}: {escape(name)}" src="{data_uri(picture, 78)}">'
        return (
            f'<figure class="{kind}" title="{escape(name)}"><div class="frame">{inner}{mark}</div>'
            f"<figcaption>{escape(item.label)}<br><b>{escape(item.text)}</b></figcaption></figure>"
        )

    def _why(self, query: Shown, found: Sequence[Shown]) -> str:
        """The query and each neighbour with what made them alike, when wanted."""
        pairs = []
        for hit in found:
            if self._shown + 2 > PICTURES:
                break
            try:
                images = self._explainer(query.path, hit.path) if self._explainer is not None else ()
            except ImageError:
                continue
            self._shown += 2
            for image in images:
                image.thumbnail((IN_ROW, IN_ROW))
            parts = "".join(
                f'<img alt="heat map over the {side}" src="{data_uri(image, 78)}">'
                for side, image in zip(("query", "neighbour"), images, strict=True)
            )
            pairs.append(
                f'<figure class="why">{parts}<figcaption>{escape(hit.label)} {escape(hit.text)}</figcaption></figure>'
            )
        if not pairs:
            return ""
        inner = f'<div class="hits">{"".join(pairs)}</div>'
        return f"<details><summary>What made them alike</summary>{inner}</details>"

    def _map(self, block: Map) -> str:
        self._maps += 1
        name = f"m{self._maps}"
        names = [label for label, _ in Counter(place.label for place in block.places).most_common(COLOURED)]
        kinds = {label: number for number, label in enumerate(names)}
        columns = max(1, math.ceil(math.sqrt(len(block.places))))
        sheet = Image.new("RGB", (columns * ON_MAP, math.ceil(len(block.places) / columns) * ON_MAP), "#888")
        bottom, top = (pick(place.y for place in block.places) for pick in (min, max))
        wide = max(place.x for place in block.places) - min(place.x for place in block.places)
        tall = max(top - bottom, wide / 3, 1e-6)  # as tall as is needed; distances stay what they are
        dots = [
            self._dot(replace(place, y=(place.y - bottom) / tall), number, columns, sheet, kinds)
            for number, place in enumerate(block.places)
        ]
        self._styles.append(
            f"#{name} .dot::after {{ background-image: url({data_uri(sheet, 70)}); "
            f"background-size: calc({columns} * var(--s)) auto }}\n"
        )
        counts = Counter(place.label for place in block.places)
        choices = [f'<label><input type="radio" name="{name}" value="all" checked> all</label>']
        for label, number in kinds.items():
            told = escape(label or "no class")
            choices.append(
                f'<label><input type="radio" name="{name}" value="k{number}"> <i class="dot k{number}"></i> {told} '
                f"<small>{counts[label]:,}</small></label>"
            )
        rest = sum(count for label, count in counts.items() if label not in kinds)
        if rest:
            others = len(counts) - len(kinds)
            choices.append(
                f'<label><input type="radio" name="{name}" value="k"> <i class="dot k"></i> {others:,} other classes '
                f"<small>{rest:,}</small></label>"
            )
        legend = f'<fieldset class="legend"><legend>Show one class</legend>{"".join(choices)}</fieldset>'
        if len(counts) == 1:
            legend = ""
        return (
            f'<h3 id="{name}h">{escape(block.title)}</h3>'
            f'<div class="map" id="{name}"><label class="pics"><input type="checkbox"> show the pictures</label>'
            f'<div class="plane" style="aspect-ratio:{1 / tall:.3f}" role="group" aria-labelledby="{name}h" '
            f'aria-describedby="{name}d">{"".join(dots)}</div>'
            f'<p class="note" id="{name}d">Point at a mark, tap it, or go from one to the next with the arrow keys, to '
            f'see its picture. <output aria-live="polite"></output></p>'
            f"{legend}</div>"
        )

    def _dot(self, place: Place, number: int, columns: int, sheet: Image.Image, kinds: dict[str, int]) -> str:
        row, column = divmod(number, columns)
        picture = self._picture(place.path, ON_MAP)
        if not isinstance(picture, str):
            middle = (ON_MAP - picture.width) // 2, (ON_MAP - picture.height) // 2
            sheet.paste(picture, (column * ON_MAP + middle[0], row * ON_MAP + middle[1]))
        kind = f"k{kinds[place.label]}" if place.label in kinds else "k"
        side = (" w" if place.x > 0.8 else "") + (" n" if place.y > 0.8 else "")
        told = ": ".join(text for text in (place.label, shown(Path(place.path).name)) if text)
        return (
            f'<button type="button" class="dot {kind}{side}" tabindex="{-1 if number else 0}" '
            f'style="left:{100 * place.x:.1f}%;bottom:{100 * place.y:.1f}%;--c:{column};--r:{row}" '
            f'aria-label="{escape(told)}"></button>'
        )


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _table(table: Table) -> str:
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    numeric = [any(isinstance(row[n], Number) for row in table.rows if n < len(row)) for n in range(len(table.head))]
    head = "".join(
        f'<th scope="col"{" class=num" if right else ""}>{escape(name)}</th>'
        for name, right in zip(table.head, numeric, strict=True)
    )
    rows = "".join(f"<tr>{''.join(_cell(cell, not n) for n, cell in enumerate(row))}</tr>" for row in table.rows)
    name = escape(table.caption or ", ".join(table.head))
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{name}"><table>{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: Cell, first: bool) -> str:
    if first and isinstance(cell, str):
        return f'<th scope="row">{escape(cell)}</th>'
    if isinstance(cell, Number):
        return f'<td class="num">{cell.value:,.{cell.digits}f}</td>'
    if isinstance(cell, Measured):
        found, sign = cell.found, "+" if cell.difference else ""
        above, below = (" worse", " better") if cell.difference == "less is better" else (" better", " worse")
        kind = "" if not cell.difference else above if found.low > 0 else below if found.high < 0 else ""
        text = f"<b>{found.mean:{sign}.4f}</b> <small>[{found.low:{sign}.4f}, {found.high:{sign}.4f}]</small>"
        return f'<td class="measured{kind}">{charts.interval(cell)} <span>{text}</span></td>'
    if isinstance(cell, Bar):
        return f'<td class="measured">{charts.bar(cell)} <b>{cell.value:,.{cell.digits}f}</b></td>'
    return f"<td>{escape(cell) if cell else '–'}</td>"


def _matrix(matrix: Matrix) -> str:
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in matrix.classes)
    rows = []
    for number, (name, counts) in enumerate(zip(matrix.classes, matrix.counts, strict=True)):
        total = sum(counts) or 1
        cells = "".join(
            f'<td class="{"own" if column == number else "other"}" style="--v:{count / total:.2f}">{count:,}</td>'
            if count
            else "<td></td>"
            for column, count in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    title = escape(matrix.title)
    return (
        f'<h3>{title}</h3><p class="note">A row for each true class, a column for what it was taken for.</p>'
        f'<div class="wide" role="region" tabindex="0" aria-label="{title}"><table class="matrix"><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
