"""Results and runs → one page people want to read.

::

    read.py        results files and run folders, checked as they are read
    sections.py    what each kind of document is worth saying → sections of blocks
    blocks.py      what a report is made of, before it is a page
    html.py        sections → one self-contained HTML file; style.py, its style
    charts.py      curves, intervals and bars as inline SVG
    markdown.py    sections → Markdown
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image

from lookalike.errors import ReportError
from lookalike.explain import explain
from lookalike.report.html import to_html
from lookalike.report.markdown import to_markdown
from lookalike.report.sections import sections

__all__ = ["report"]


def report(
    places: Sequence[str | os.PathLike[str]],
    *,
    form: Literal["html", "markdown"] = "html",
    title: str = "Lookalike report",
    pictures: str | os.PathLike[str] | None = None,
    explained_by: Any = None,
) -> str:
    """One report of results and training runs.

    Args:
        places: results files (``kind`` evaluation, ladder or classifiers), folders of training runs, and bundles.
        form: "html", one file with everything in it that loads nothing from anywhere; or "markdown", its text.
        title: of the whole.
        pictures: the folder that the pictures of the results lie in; by default where each result says.
        explained_by: an encoder, see `lookalike.explain.explain`: the best and worst queries get heat maps of what
            made them and their neighbours alike. HTML only.

    Returns:
        The text of the file. A picture that is gone has a placeholder.

    Raises:
        ReportError: a file or folder is none of these, or malformed: the message says which, where and how.
    """
    if not places:
        raise ReportError("a report needs results files or run folders")
    told = [section for place in places for section in sections(place, pictures)]
    if form == "markdown":
        return to_markdown(title, told)

    def explainer(query: str, neighbour: str) -> tuple[Image.Image, Image.Image]:
        found = explain(explained_by, query, neighbour)
        return found.overlay("left"), found.overlay("right")

    return to_html(title, told, None if explained_by is None else explainer)
