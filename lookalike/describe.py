"""What is in a catalogue: its columns, how its labels are distributed, and what its pictures are like.

The table is read once, as a stream; pictures are looked at in a random sample of bounded size, drawn while it streams.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from string import Template
from typing import Any

import numpy as np

from lookalike.catalogue import listed_path
from lookalike.errors import CatalogueError, ImageError
from lookalike.images import Pixels, Preprocessing, facts, read_bytes, shown
from lookalike.products import Product, is_url, products
from lookalike.splits import duplicates
from lookalike.tables import Problems

SAMPLE = 10_000  # pictures looked at
ENOUGH = 100  # pictures of a category from which a classifier can learn, and be judged by what is left
TOP = 10
_DISTINCT = 10_000  # different values of a column that are counted
_LONGEST = 80  # characters of a value that is shown
_EVERY = 10_000  # rows between two reports of progress
_LISTED = 20  # examples of what is wrong
_SIDE = 32  # pixels at which near-duplicates are looked for

__all__ = ["ENOUGH", "SAMPLE", "TOP", "as_html", "as_text", "describe"]


def describe(
    path: str | os.PathLike[str],
    mapping: Mapping[str, str] | None = None,
    *,
    labels: str | None = None,
    sample: int = SAMPLE,
    top: int = TOP,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Describe a catalogue.

    Args:
        path: the catalogue, in any format of `lookalike.tables`.
        mapping: payload name → column (see `lookalike.products.products`).
        labels: the column, by its payload name, whose distribution is wanted. Default: ``category``, if there is one.
        sample: pictures looked at, drawn at random; more take longer, near-duplicates with the square.
        top: categories that are suggested at most.
        seed: equal seeds draw equal samples.
        progress: told now and then, in words, what is being done.

    Returns:
        A JSON document. ``rows`` counts products, ``problems`` rows that are none, by kind. ``columns`` lists for each
        its types, how many rows miss it, how many different values there are (None for more than 10,000), and the most
        frequent ones. ``labels`` has the distribution, most frequent first; ``suggested`` the largest categories with
        at least `ENOUGH` pictures, and their share of all labels. ``pictures`` says of the sample how many are there,
        their formats and sizes (pixels, as their headers tell), which cannot be read, and groups of identical and of
        near-identical ones.

    Raises:
        CatalogueError: it cannot be read, or has no column `labels`.
    """
    say = progress or (lambda text: None)
    problems, table, drawn = Problems(), _Table(labels), _Reservoir(sample, seed)
    for product in products(path, mapping, problems):
        table.add(product)
        drawn.add(product)
        if table.rows % _EVERY == 0:
            say(f"{table.rows:,} rows read")
    name = table.label_name(os.fspath(path))
    document: dict[str, Any] = {
        "kind": "catalogue",
        "file": shown(path),
        "rows": table.rows,
        "problems": dict(problems.counts),
        "listed": [str(problem) for problem in problems.listed],
        "columns": [column.document(called, table.rows) for called, column in table.columns.items()],
        "labels": None,
        "suggested": None,
    }
    if name is not None:
        counts = table.labels.most_common()
        enough = [(label, count) for label, count in counts if count >= ENOUGH][:top]
        share = round(sum(count for _, count in enough) / max(1, table.labels.total()), 4)
        document["labels"] = {"column": name, "distinct": len(counts), "missing": table.unlabelled, "counts": counts}
        document["suggested"] = {"at_least": ENOUGH, "categories": [label for label, _ in enough], "share": share}
    document["pictures"] = _pictures(path, drawn.products, table.urls, name, say)
    return document


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Column:
    """What the rows so far have in a column."""

    types: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    overflow: bool = False
    numbers: int = 0  # texts that read as a number
    low: float | None = None
    high: float | None = None

    def add(self, value: Any) -> None:
        self.types[_NAMES[type(value)]] += 1
        text = value if isinstance(value, str) else str(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.low = value if self.low is None else min(self.low, value)
            self.high = value if self.high is None else max(self.high, value)
        elif isinstance(value, str) and len(value) < 32 and re.fullmatch(r"[$€£¥]?\s?[+-]?\d[\d.,]*\s?[$€£¥%]?", value):
            self.numbers += 1
        if len(text) > _LONGEST:
            text = text[:_LONGEST] + "…"
        if text in self.values or len(self.values) < _DISTINCT:
            self.values[text] += 1
        else:
            self.overflow = True

    def document(self, name: str, rows: int) -> dict[str, Any]:
        filled = sum(self.types.values())
        distinct = None if self.overflow else len(self.values)
        # Where nearly every row has its own value, the most frequent ones say nothing.
        telling = distinct is not None and 2 * distinct <= filled
        return {
            "name": name,
            "types": dict(self.types.most_common()),
            "missing": rows - filled,
            "distinct": distinct,
            "low": self.low,
            "high": self.high,
            "texts_like_numbers": self.numbers,
            "most_frequent": self.values.most_common(5 if telling else 1),
        }


_NAMES = {str: "text", int: "whole number", float: "number", bool: "truth value", list: "list", dict: "object"}


class _Table:
    """What the rows so far hold."""

    def __init__(self, labels: str | None) -> None:
        self.rows = self.urls = self.unlabelled = 0
        self.columns: dict[str, _Column] = defaultdict(_Column)
        self.labels: Counter[str] = Counter()
        self._wanted = labels

    def add(self, product: Product) -> None:
        self.rows += 1
        self.urls += is_url(product.picture)
        for name, value in product.payload.items():
            self.columns[name].add(value)
        found = _labels(product, self._wanted or "category")
        self.labels.update(found)
        self.unlabelled += not found

    def label_name(self, path: str) -> str | None:
        """The payload name of the labels, if there are any. Raises CatalogueError where one was asked for in vain."""
        if self.labels:
            return self._wanted or "category"
        if self._wanted is not None and self.rows:
            raise CatalogueError(
                f"catalogue {shown(path)} has no column {self._wanted} with labels: it has {', '.join(self.columns)}"
            )
        return None


def _labels(product: Product, name: str) -> list[str]:
    value = product.payload.get(name)
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


class _Reservoir:
    """A sample of a stream of unknown length, each as likely as any other (Vitter's algorithm R, 1985)."""

    def __init__(self, size: int, seed: int) -> None:
        self.products: list[Product] = []
        self._size = size
        self._count = 0
        self._dice = random.Random(seed)

    def add(self, product: Product) -> None:
        self._count += 1
        if len(self.products) < self._size:
            self.products.append(product)
        elif (place := self._dice.randrange(self._count)) < self._size:
            self.products[place] = product


# ── the pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Look:
    """What a picture is like; `error` where it cannot be read."""

    path: str
    label: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    digest: bytes = b""
    pixels: Pixels | None = None
    error: str = ""


def _pictures(
    path: str | os.PathLike[str],
    sample: Sequence[Product],
    urls: int,
    labels: str | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    local = [product for product in sample if not is_url(product.picture)]
    small = Preprocessing((_SIDE, _SIDE))

    def look(product: Product) -> _Look:
        file = listed_path(path, product.picture)
        label = ", ".join(_labels(product, labels)) if labels else ""
        try:
            data = read_bytes(file)
            pixels = small.load(data, name=shown(file))
        except ImageError as error:
            return _Look(file, label, error=error.reason)
        return _Look(file, label, facts(data), hashlib.blake2b(data, digest_size=16).digest(), pixels)

    looks: list[_Look] = []
    with ThreadPoolExecutor() as pool:
        for seen in pool.map(look, local):
            looks.append(seen)
            if len(looks) % 500 == 0:
                say(f"{len(looks):,} of {len(local):,} pictures looked at")
    good = [seen for seen in looks if not seen.error]
    bad = [seen for seen in looks if seen.error]
    missing = sum(1 for seen in bad if seen.error in ("no such file", "broken link"))
    document: dict[str, Any] = {
        "urls": urls,
        "looked_at": len(looks),
        "missing": missing,
        "unreadable": len(bad) - missing,
        "listed": [f"{shown(seen.path)}: {seen.error}" for seen in bad[:_LISTED]],
        "formats": dict(Counter(seen.facts["format"] for seen in good).most_common()),
        "sizes": None,
        "identical": _groups(good, [seen.digest for seen in good]),
        "near_identical": None,
    }
    if good:
        sides = np.array([[seen.facts["width"], seen.facts["height"]] for seen in good])
        document["sizes"] = {
            name: dict(
                zip(("least", "median", "most"), np.percentile(values, [0, 50, 100]).astype(int).tolist(), strict=True)
            )
            for name, values in (("width", sides[:, 0]), ("height", sides[:, 1]), ("short_side", sides.min(axis=1)))
        }
        say(f"{len(good):,} pictures compared with one another")
        near = duplicates(np.stack([seen.pixels for seen in good if seen.pixels is not None]))
        document["near_identical"] = _groups(good, near.tolist())
    return document


def _groups(looks: Sequence[_Look], marks: Sequence[Any]) -> dict[str, Any]:
    """Pictures that share a mark: how many groups, how many pictures more than needed, and the largest groups."""
    groups: dict[Any, list[_Look]] = defaultdict(list)
    for seen, mark in zip(looks, marks, strict=True):
        groups[mark].append(seen)
    several = sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)
    return {
        "groups": len(several),
        "more_than_needed": sum(len(group) - 1 for group in several),
        "with_several_labels": sum(1 for group in several if len({seen.label for seen in group}) > 1),
        "largest": [[shown(seen.path) for seen in group[:5]] for group in several[:_LISTED]],
    }


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_text(document: Mapping[str, Any], bars: int = 30) -> str:
    """A description as text for a terminal, with at most `bars` labels as bars."""
    parts = [_heading(document), *_problems(document), "", *_column_lines(document)]
    labels = document["labels"]
    if labels:
        parts += ["", _label_heading(labels)]
        shown_ = labels["counts"][:bars]
        width = min(40, max(len(label) for label, _ in shown_))
        most = max(count for _, count in shown_)
        for label, count in shown_:
            bar = "█" * max(1, round(30 * count / most))
            parts.append(f"  {_clip(label, width):<{width}}  {count:>9,}  {bar}")
        if len(labels["counts"]) > bars:
            rest = labels["counts"][bars:]
            parts.append(f"  … and {len(rest):,} more with {sum(count for _, count in rest):,}")
        parts += ["", _suggestion(document["suggested"])]
    return "\n".join([*parts, "", *_picture_lines(document["pictures"])])


def _heading(document: Mapping[str, Any]) -> str:
    return f"{document['file']}: {document['rows']:,} products, {len(document['columns'])} columns beside the picture"


def _problems(document: Mapping[str, Any]) -> list[str]:
    kinds = ", ".join(f"{count:,} × {kind}" for kind, count in document["problems"].items())
    return [f"passed over: {kinds}; the first: {document['listed'][0]}"] if kinds else []


def _column_lines(document: Mapping[str, Any]) -> list[str]:
    rows = [("column", "holds", "missing", "different", "for example")]
    for column in document["columns"]:
        holds = ", ".join(_holds(column))
        distinct = f"> {_DISTINCT:,}" if column["distinct"] is None else f"{column['distinct']:,}"
        rows.append((column["name"], holds, f"{column['missing']:,}", distinct, _example(column)))
    widths = [min(34, max(len(row[i]) for row in rows)) for i in range(4)]
    return [
        "  ".join(
            f"{_clip(cell, w):>{w}}" if i in (2, 3) else f"{_clip(cell, w):<{w}}"
            for i, (cell, w) in enumerate(zip(row[:4], widths, strict=True))
        )
        + f"  {_clip(row[4], 70)}"
        for row in rows
    ]


def _holds(column: Mapping[str, Any]) -> list[str]:
    """The types of a column; with counts where they differ."""
    types = column["types"]
    kinds = list(types) if len(types) == 1 else [f"{kind} × {count:,}" for kind, count in types.items()]
    like = column["texts_like_numbers"]
    return kinds + ([f"of which {like:,} like numbers"] if 2 * like > types.get("text", 0) else [])


def _example(column: Mapping[str, Any]) -> str:
    if column["low"] is not None:
        return f"{column['low']} to {column['high']}"
    return ", ".join(
        f"{shown(value)} ({count:,})" if count > 1 else shown(value) for value, count in column["most_frequent"]
    )


def _label_heading(labels: Mapping[str, Any]) -> str:
    return f"labels: {labels['column']}, {labels['distinct']:,} different, missing in {labels['missing']:,} rows"


def _suggestion(suggested: Mapping[str, Any]) -> str:
    names = suggested["categories"]
    if len(names) < 2:
        return f"fewer than two labels have {suggested['at_least']} pictures: too few to teach a classifier"
    return (
        f"for a classifier: the {len(names)} largest with at least {suggested['at_least']} pictures, "
        f"{suggested['share']:.0%} of all labels: {', '.join(names)}"
    )


def _picture_lines(pictures: Mapping[str, Any]) -> list[str]:
    lines = [
        f"pictures: {pictures['looked_at']:,} looked at, {pictures['missing']:,} missing, "
        f"{pictures['unreadable']:,} unreadable"
    ]
    if pictures["urls"]:
        lines.append(f"  {pictures['urls']:,} are URLs: lookalike catalogue fetch brings them here")
    lines += [f"  {line}" for line in pictures["listed"][:5]]
    if pictures["sizes"]:
        formats = ", ".join(f"{name} {count:,}" for name, count in pictures["formats"].items())
        lines.append(f"  formats: {formats}")
        for name, size in pictures["sizes"].items():
            lines.append(
                f"  {name.replace('_', ' ')}: {size['least']:,} to {size['most']:,} pixels, median {size['median']:,}"
            )
    for name in ("identical", "near_identical"):
        if pictures[name]:
            lines.append(f"  {_group_line(name, pictures[name])}")
    return lines


def _group_line(name: str, found: Mapping[str, Any]) -> str:
    mixed = f", {found['with_several_labels']:,} groups under several labels" * bool(found["with_several_labels"])
    counts = f"{found['groups']:,} groups, {found['more_than_needed']:,} pictures more than needed"
    return f"{name.replace('_', ' ')}: {counts}{mixed}"


def _clip(text: str, width: int) -> str:
    text = shown(text)
    return text if len(text) <= width else text[: width - 1] + "…"


# ── as a page ────────────────────────────────────────────────────────────────────────────────────────────────────────

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --ground: #fafafa; --ink: #1a1a1a; --soft: #6b6b6b; --line: #dcdcdc; --mark: #2563eb }
@media (prefers-color-scheme: dark) {
  :root { --ground: #161616; --ink: #eee; --soft: #a0a0a0; --line: #333; --mark: #7aa2ff } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 62rem; background: var(--ground); color: var(--ink) }
body { font: 14px/1.45 system-ui, sans-serif }
h1 { font-size: 1.2rem; margin: 0 } h2 { font-size: 1rem; margin: 2rem 0 .5rem } p, li { color: var(--soft) }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .8rem .3rem 0 }
th, td { border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
svg { width: 100%; height: auto } svg text { fill: var(--ink); font: 13px system-ui, sans-serif }
svg .count { fill: var(--soft) } rect { fill: var(--mark) } rect.few { opacity: .4 }
</style></head><body>
<h1>$title</h1><p>$subtitle</p>
$body
</body></html>
""")


def as_html(document: Mapping[str, Any], bars: int = 60) -> str:
    """A description as one self-contained HTML page, the distribution of labels as an inline SVG."""
    problems = "".join(f"<li>{escape(line)}</li>" for line in document["listed"])
    body = [f"<h2>Columns</h2>{_html_columns(document)}"]
    labels = document["labels"]
    if labels:
        body.append(f"<h2>{escape(_sentence(_label_heading(labels)))}</h2>{_bars(labels['counts'], bars)}")
        body.append(f"<p>{escape(_sentence(_suggestion(document['suggested'])))}</p>")
    first, *lines = _picture_lines(document["pictures"])
    inner = "".join(f"<li>{escape(line.strip())}</li>" for line in lines)
    body.append(f"<h2>{escape(_sentence(first))}</h2><ul>{inner}</ul>")
    if problems:
        kinds = ", ".join(f"{count:,} × {escape(kind)}" for kind, count in document["problems"].items())
        body.append(f"<h2>Rows passed over: {kinds}</h2><ul>{problems}</ul>")
    title = f"Catalogue {os.path.basename(document['file'])}"  # noqa: PTH119
    return _PAGE.substitute(title=escape(title), subtitle=escape(_heading(document)), body="\n".join(body))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _html_columns(document: Mapping[str, Any]) -> str:
    lines = []
    for column in document["columns"]:
        distinct = f"&gt; {_DISTINCT:,}" if column["distinct"] is None else f"{column['distinct']:,}"
        lines.append(
            f"<tr><td>{escape(column['name'])}<td>{escape(', '.join(_holds(column)))}<td class=n>{column['missing']:,}"
            f"<td class=n>{distinct}<td>{escape(_clip(_example(column), 160))}"
        )
    return (
        "<table><tr><th>column<th>holds<th class=n>missing<th class=n>different<th>values" + "".join(lines) + "</table>"
    )


def _bars(counts: Sequence[tuple[str, int]], bars: int) -> str:
    """Horizontal bars; labels with too few pictures to learn from are pale."""
    drawn, rest = counts[:bars], counts[bars:]
    most = max(count for _, count in drawn)
    lines = []
    for number, (label, count) in enumerate(drawn):
        y = 20 * number
        few = ' class="few"' * (count < ENOUGH)
        lines.append(
            f'<text x="292" y="{y + 14}" text-anchor="end">{escape(_clip(label, 42))}</text>'
            f'<rect x="300" y="{y + 3}" width="{max(1.0, 560 * count / most):.1f}" height="14" rx="2"{few}>'
            f"<title>{escape(label)}: {count:,}</title></rect>"
            f'<text class="count" x="{306 + max(1.0, 560 * count / most):.1f}" y="{y + 14}">{count:,}</text>'
        )
    more = f"<p>… and {len(rest):,} more with {sum(count for _, count in rest):,} pictures</p>" if rest else ""
    return f'<svg viewBox="0 0 940 {20 * len(drawn)}" role="img">{"".join(lines)}</svg>{more}'
