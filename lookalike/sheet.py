"""The contact sheet: one self-contained HTML file, each query left and its neighbours right."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from lookalike.catalogue import path_of
from lookalike.errors import ImageError
from lookalike.images import Picture, read, shown
from lookalike.index.base import Hit

THUMBNAIL = 176  # pixels of the longer side

__all__ = ["Strip", "contact_sheet", "data_uri", "page", "thumbnail"]

# No page of ours loads anything from anywhere; this has the browser see to it.
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark;
  --ground: #fafafa; --ink: #1a1a1a; --soft: #6b6b6b; --line: #dcdcdc; --mark: #2563eb }
@media (prefers-color-scheme: dark) {
  :root { --ground: #161616; --ink: #eee; --soft: #a0a0a0; --line: #333; --mark: #7aa2ff } }
body { margin: 2rem; background: var(--ground); color: var(--ink); font: 14px/1.4 system-ui, sans-serif }
h1 { font-size: 1.2rem; margin: 0 }
$style</style></head><body>
$body
</body></html>
""")
_STYLE = """\
p { color: var(--soft); margin: .2rem 0 1.4rem }
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
"""


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of the sheet: a label, the query picture (None where the query was not a picture), and its hits.

    `copies` says in a word what the copies of a hit are; `verdict` stands below the query, before its name; `captions`
    stand below the hits, in place of their names.
    """

    label: str
    query: Picture | None
    hits: Sequence[Hit]
    copies: str = "identical"
    verdict: str = ""
    captions: Sequence[str] = ()


def contact_sheet(strips: Iterable[Strip], title: str, subtitle: str = "") -> str:
    """The sheet as HTML text. Thumbnails are inside it, so the file can be mailed; a picture that is gone says so."""
    head = f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>"
    return page(title, _STYLE, "\n".join([head, *map(_strip, strips)]))


def page(title: str, style: str, body: str) -> str:
    """A page in the colours of all pages here, by day and by night, that loads nothing from anywhere.

    Args:
        title: plain text.
        style: CSS.
        body: HTML, escaped by whoever made it.
    """
    return _PAGE.substitute(title=escape(title), style=style, body=body)


def _strip(strip: Strip) -> str:
    name = (f"<b>{escape(strip.verdict)}</b> " if strip.verdict else "") + escape(Path(strip.label).name)
    asked = f'<figure class="query"><div class="frame none">{escape(strip.label)}</div></figure>'
    left = asked if strip.query is None else _figure(strip.query, strip.label, name, "query")
    captions = strip.captions or [""] * len(strip.hits)
    hits = [_hit(hit, strip.copies, caption) for hit, caption in zip(strip.hits, captions, strict=True)]
    right = "".join(hits) or '<div class="none">nothing found</div>'
    return f'<section>{left}<div class="hits">{right}</div></section>'


def _hit(hit: Hit, word: str, caption: str) -> str:
    path = path_of(hit.key)
    name = caption or shown(Path(path).name)
    copies = f" · {len(hit.copies)} {escape(word)}" if hit.copies else ""
    return _figure(path, shown(path), f"<b>{hit.score:.3f}</b> {escape(name)}{copies}", "hit")


def _figure(picture: Picture, hint: str, caption: str, kind: str) -> str:
    try:
        inner = f'<img alt="" src="{data_uri(thumbnail(picture))}">'
    except ImageError as error:
        inner = f'<span class="none">{escape(error.reason)}</span>'
    return (
        f'<figure class="{kind}" title="{escape(hint)}"><div class="frame">{inner}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def thumbnail(picture: Picture, side: int = THUMBNAIL) -> Image.Image:
    """A picture reduced to at most `side` pixels. Raises ImageError."""
    image = read(picture, at_least=(side, side))
    image.thumbnail((side, side))
    return image


def data_uri(image: Image.Image, quality: int = 82) -> str:
    """An image as a JPEG inside its address, to be carried by a page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
