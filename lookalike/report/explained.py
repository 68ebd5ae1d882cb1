"""An explanation → one self-contained page: both pictures with their heat maps, and lines between what corresponds."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from lookalike.explain import Explanation
from lookalike.images import shown
from lookalike.report.style import STYLE
from lookalike.sheet import data_uri, page

# Height of both pictures in the drawing, and the gap between them.
TALL, GAP = 300, 36

_STYLE = """\
.pair { width: 100%; height: auto; max-height: 80vh } .pair text { fill: #fff; font: bold 12px system-ui }
.pair path { stroke: #fff; stroke-width: 3.5 } .pair path + path { stroke: #111; stroke-width: 1.5 }
.pair circle { fill: #111; stroke: #fff; stroke-width: 1.5 } label { margin-right: 1.2rem; cursor: pointer }
body:has(#heat:not(:checked)) .heat, body:has(#links:not(:checked)) .links { display: none }
.names { display: flex; justify-content: space-between; gap: 1rem; overflow-wrap: anywhere }
"""

__all__ = ["explanation_page", "in_words"]


def in_words(found: Explanation) -> str:
    """How an explanation came to be, in a sentence or two."""
    if found.method == "occlusion":
        return (
            f"By occlusion, since {found.why}: orange is where the cosine falls when the place is covered, blue where "
            "it rises."
        )
    places = found.left.size
    return (
        f"The cosine is a sum over {places} × {places} pairs of places: orange is what adds to it, blue what takes "
        "from it, grey what the encoder does not see."
    )


def explanation_page(
    found: Explanation, left: str | os.PathLike[str], right: str | os.PathLike[str], encoder: str
) -> str:
    """The page as HTML text.

    Args:
        found: what made the two alike.
        left: the name of the left picture.
        right: that of the right one.
        encoder: whose view it is.
    """
    names = [escape(shown(Path(name).name)) for name in (left, right)]
    widths = [TALL * picture.width / picture.height for picture in found.pictures]
    starts = [0.0, widths[0] + GAP]
    drawn = []
    for side, picture, start, width, name in zip(("left", "right"), found.pictures, starts, widths, names, strict=True):
        place = f'x="{start:.1f}" y="0" width="{width:.1f}" height="{TALL}"'
        heat = found.overlay("left" if side == "left" else "right")
        drawn.append(f'<image {place} href="{data_uri(picture)}"><title>{name}</title></image>')
        drawn.append(f'<image class="heat" {place} href="{data_uri(heat)}"><title>{name}, heat map</title></image>')
    rows, lines, links = [], [], []
    for number, match in enumerate(found.matches, 1):
        ends = [
            (start + x * width, y * TALL)
            for (x, y), start, width in zip((match.left, match.right), starts, widths, strict=True)
        ]
        line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ends)
        marks = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{number}</text>'
            for x, y in ends
        )
        lines.append(f'<path d="{line}"/><path d="{line}"/>')
        links.append(marks)
        places = "".join(f"<td>{100 * x:.0f} % across, {100 * y:.0f} % down</td>" for x, y in (match.left, match.right))
        share = f"{match.share / found.score:.1%}" if found.score > 0 else "–"
        rows.append(
            f'<tr><th scope="row">{number}</th>{places}<td class="num">{match.share:+.4f}</td>'
            f'<td class="num">{share}</td></tr>'
        )
    total = starts[1] + widths[1]
    told = f"{names[0]} and {names[1]}, cosine {found.score:.3f}"
    table = (
        '<div class="wide" role="region" tabindex="0" aria-label="strongest correspondences"><table>'
        "<caption>Strongest correspondences</caption>"
        '<thead><tr><th scope="col">pair</th><th scope="col">left</th><th scope="col">right</th>'
        '<th scope="col" class="num">adds</th><th scope="col" class="num">of the score</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        if rows
        else ""
    )
    link_box = '<label><input type="checkbox" id="links" checked> correspondences</label>' if rows else ""
    body = f"""<main><h1>What made them alike</h1>
<p class="verdict">Cosine {found.score:.4f}, by {escape(encoder)}</p>
<p><label><input type="checkbox" id="heat" checked> heat</label>{link_box}</p>
<svg class="pair" role="img" aria-label="{told}" viewBox="0 0 {total:.1f} {TALL}">{"".join(drawn)}
<g class="links">{"".join(lines + links)}</g></svg>
<p class="names"><span>{names[0]}</span><span>{names[1]}</span></p>
<p class="note">{escape(in_words(found))}</p>{table}</main>"""
    return page("What made them alike", STYLE + _STYLE, body)
