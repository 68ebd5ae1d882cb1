"""Show: report, explain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lookalike.cli._common import json_option, open_encoder, write_text

if TYPE_CHECKING:
    from lookalike.explain import Explanation

__all__ = ["explain", "report"]


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULTS...", type=click.Path())
@click.option("--to", "target", required=True, metavar="FILE", help="The report: .html, or .md for Markdown.")
@click.option("--title", default="Lookalike report", show_default=True, help="Its heading.")
@click.option("--pictures", metavar="FOLDER", help="Where the pictures lie. Default: where each result says.")
@click.option("--explain", "explained", is_flag=True, help="Heat maps for the best and worst queries, by --model.")
@click.option("--model", metavar="BUNDLE", help="Encoder bundle for --explain. Default: the one that ships.")
def report(
    results: tuple[str, ...], target: str, title: str, pictures: str | None, explained: bool, model: str | None
) -> None:
    """One file that shows what RESULTS found: tables, curves, pictures, a map.

    RESULTS are files of `lookalike evaluate --to`, of the ladder and of the classifier table, folders of training
    runs, and bundles. The HTML file holds everything it shows, at most 2,000 pictures, and loads nothing from
    anywhere: mail it, read it on a phone.

    \b
    Examples:
      lookalike evaluate shoes --to results.json && lookalike report results.json --to report.html
      lookalike report results.json shoes.bundle.run --to report.html --explain
      lookalike report results.json --to report.md
    """
    from lookalike.report import report as compose

    ending = target.lower().rpartition(".")[2]
    if ending not in ("html", "htm", "md"):
        raise click.UsageError(f"--to {target}: a report ends in .html or .md")
    if model is not None and not explained:
        raise click.UsageError("--model goes with --explain")
    encoder = open_encoder(model) if explained else None
    text = compose(
        results,
        form="markdown" if ending == "md" else "html",
        title=title,
        pictures=pictures,
        explained_by=encoder,
    )
    write_text(target, text)


@click.command()
@click.argument("left", metavar="A", type=click.Path())
@click.argument("right", metavar="B", type=click.Path())
@click.option("--model", metavar="BUNDLE", help="Encoder bundle: a folder or .zip. Default: the one that ships.")
@click.option("--html", "page", metavar="FILE", help="Write a page with heat maps over both pictures.")
@json_option
def explain(left: str, right: str, model: str | None, page: str | None, as_json: bool) -> None:
    """Say what made two pictures alike: which places of A and B the cosine comes from.

    Places are given in per cent across and down. The cosine is the sum over all pairs of places, exactly; where a
    bundle's network does not allow that, patches are laid over the pictures instead, and it is said.

    \b
    Examples:
      lookalike explain one.jpg other.jpg
      lookalike explain one.jpg other.jpg --model shoes.bundle --html why.html
    """
    from lookalike.explain import explain as ask

    encoder = open_encoder(model)
    found = ask(encoder, left, right)
    if page is not None:
        from lookalike.report.explained import explanation_page

        write_text(page, explanation_page(found, left, right, encoder.name))
    click.echo(json.dumps(found.document(), ensure_ascii=False) if as_json else _in_words(found))


def _in_words(found: Explanation) -> str:
    lines = [f"{found.score:6.3f}  cosine, by {found.method}" + (f": {found.why}" if found.why else "")]
    for match in found.matches:
        (a, b), (c, d) = match.left, match.right
        lines.append(f"{match.share:+.3f}  A {a:4.0%} across {b:4.0%} down, B {c:4.0%} across {d:4.0%} down")
    return "\n".join(lines)
