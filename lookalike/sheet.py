"""The contact sheet: one self-contained HTML file, each query left and its neighbours right."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from lookalike.catalogue import path_of
from lookalike.errors import ImageError
from lookalike.images import Picture, read, shown
from lookalike.index.base import Hit

THUMBNAIL = 176  # pixels of the longer side

__all__ = ["Strip", "contact_sheet"]

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark;
  --ground: #fafafa; --ink: #1a1a1a; --soft: #6b6b6b; --line: #dcdcdc; --mark: #2563eb }
@media (prefers-color-scheme: dark) {
  :root { --ground: #161616; --ink: #eee; --soft: #a0a0a0; --line: #333; --mark: #7aa2ff } }
body { margin: 2rem; background: var(--ground); color: var(--ink); font: 14px/1.4 system-ui, sans-serif }
h1 { font-size: 1.2rem; margin: 0 } p { color: var(--soft); margin: .2rem 0 1.4rem }
section { display: flex; gap: 1.2rem; padding: 1rem 0; border-top: 1px solid var(--line); align-items: flex-start }
.hits { display: flex; flex-wrap: wrap; gap: .8rem; min-width: 0 }
figure { margin: 0; width: 132px; flex: none } .query { width: 156px }
.frame { height: 132px; display: flex; align-items: center; justify-content: center }
.frame { background: #8881; border-radius: 6px }
.query .frame { height: 156px; outline: 2px solid var(--mark); outline-offset: 2px }
img { max-width: 100%; max-height: 100%; border-radius: 6px } .none { color: var(--soft); padding: 1rem }
figcaption { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: 12px; margin-top: .3rem }
figcaption { color: var(--soft) }
b { color: var(--ink); font-variant-numeric: tabular-nums }
</style></head><body>
<h1>$title</h1><p>$subtitle</p>
$strips
</body></html>
""")


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of the sheet: a label, the query picture (None where the query was not a picture), and its hits."""

    label: str
    query: Picture | None
    hits: Sequence[Hit]


def contact_sheet(strips: Iterable[Strip], title: str, subtitle: str = "") -> str:
    """The sheet as HTML text. Thumbnails are inside it, so the file can be mailed; a picture that is gone says so."""
    body = "\n".join(_strip(strip) for strip in strips)
    return _PAGE.substitute(title=escape(title), subtitle=escape(subtitle), strips=body)


def _strip(strip: Strip) -> str:
    left = _figure(strip.query, strip.label, escape(Path(strip.label).name), "query") if strip.query is not None else ""
    right = "".join(_hit(hit) for hit in strip.hits) or '<div class="none">nothing found</div>'
    return f'<section>{left}<div class="hits">{right}</div></section>'


def _hit(hit: Hit) -> str:
    path = path_of(hit.key)
    name = shown(Path(path).name)
    copies = f" · {len(hit.copies)} identical" if hit.copies else ""
    return _figure(path, shown(path), f"<b>{hit.score:.3f}</b> {escape(name)}{copies}", "hit")


def _figure(picture: Picture, hint: str, caption: str, kind: str) -> str:
    try:
        inner = f'<img alt="" src="{_thumbnail(picture)}">'
    except ImageError as error:
        inner = f'<span class="none">{escape(error.reason)}</span>'
    return (
        f'<figure class="{kind}" title="{escape(hint)}"><div class="frame">{inner}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _thumbnail(picture: Picture) -> str:
    image = read(picture, at_least=(THUMBNAIL, THUMBNAIL))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
