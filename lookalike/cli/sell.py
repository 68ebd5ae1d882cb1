"""Sell: recommend."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli._common import (
    command_line,
    json_option,
    model_option,
    open_encoder,
    parse_conditions,
    remembered,
    where_option,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from lookalike.index.base import Hit, Index
    from lookalike.recommend import Recommender

__all__ = ["recommend"]


@click.command()
@click.argument("location", metavar="INDEX")
@click.argument("products", nargs=-1, metavar="PRODUCT...")
@click.option("--unlike", multiple=True, metavar="PRODUCT", help="Move away from this one.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="How many answers.")
@where_option
@click.option("--by", default="id", show_default=True, metavar="COLUMN", help="Names products, besides key and path.")
@click.option("--group", metavar="COLUMN", help="Variants have it in common: one answer stands for all of them.")
@click.option(
    "--diverse",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Answers unlike one another: 0 is the nearest first, 1 the most different.",
)
@click.option("--across", metavar="COLUMN", help="What goes with it: only from other categories than its own.")
@click.option("--pairs", metavar="FILE", help="CSV file left,right[,count] of what was clicked or bought together.")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1, min_open=True),
    help="Cosine from which on pictures are one product. Default: the bundle's own, or 0.999.",
)
@click.option("--html", "sheet", metavar="FILE", help="Write a contact sheet.")
@click.option(
    "--judge",
    metavar="COLUMN|FILE",
    help="Measure: ask beside many products; relevant is the same COLUMN, or what FILE says was clicked together.",
)
@click.option("--also", multiple=True, metavar="COLUMN", help="With --judge: tell how often these agree.")
@click.option(
    "--asking", multiple=True, metavar="CONDITION", help="With --judge: which products ask, as --where. Default: all."
)
@click.option("--most", type=click.IntRange(1), help="With --judge: ask so many of them at most, drawn at random.")
@click.option("--seed", default=0, show_default=True, help="With --judge: of the draw.")
@click.option("--to", "target", metavar="FILE.json", help="With --judge: write the result, for a report.")
@model_option
@json_option
def recommend(
    location: str,
    products: tuple[str, ...],
    unlike: tuple[str, ...],
    k: int,
    conditions: tuple[str, ...],
    by: str,
    pairs: str | None,
    threshold: float | None,
    sheet: str | None,
    judge: str | None,
    target: str | None,
    model: str | None,
    as_json: bool,
    **more: Any,
) -> None:
    """Show what to put beside a product: what looks like it and is not the same again, or what goes with it.

    PRODUCT is a key of the index, the path of a picture (also of a new one), or a value of the column --by. Several
    make one question. The product itself, equal files, near-identical pictures and its --group are never answers.

    \b
    Examples:
      lookalike recommend products.index 15970 --where 'price<50' --diverse 0.3 --html beside.html
      lookalike recommend products.index new.jpg --across category --pairs bought-together.csv
      lookalike recommend products.index --judge category --also colour --to recommendations.json
    """
    from lookalike.index import open_index
    from lookalike.recommend import Recommender

    if bool(products) == bool(judge):
        raise click.UsageError("give either PRODUCTs, or --judge to measure")
    for name, value in (("--unlike", unlike), ("--html", sheet)):
        if judge and value:
            raise click.UsageError(f"{name} is about PRODUCTs, and --judge asks about many: leave one of them out")
    for name, value in (("--also", more["also"]), ("--asking", more["asking"]), ("--most", more["most"])):
        if not judge and value:
            raise click.UsageError(f"{name} goes with --judge")
    if target and not judge:
        raise click.UsageError("--to goes with --judge: the answers themselves are printed, with --json as data")
    options = {name: more[name] for name in ("diverse", "across", "group")} | {"where": parse_conditions(conditions)}
    with closing(open_index(location, read_only=True)) as opened:
        together = None if pairs is None else _pairs(pairs, opened, by)
        encoder = open_encoder(model or remembered(opened))
        recommender = Recommender(opened, encoder, by=by, threshold=threshold, together=together)
        if judge:
            relevant = _pairs(judge, opened, by) if judge.lower().endswith(".csv") else judge
            asked = {name: more[name] for name in ("also", "most", "seed")}
            questions = parse_conditions(more["asking"])
            _judge(recommender, relevant, target, as_json, k=k, questions=questions, **asked, **options)
            return
        hits = recommender.beside(products, unlike, k, **options)
        if sheet:  # before anything is printed: the reader of a pipe may have seen enough early
            _write_sheet(recommender, products, unlike, hits, sheet)
    _print(products, hits, as_json)


def _pairs(file: str, opened: Index, by: str) -> Any:
    from lookalike.recommend import CoOccurrence

    found = CoOccurrence.read(file, opened, by)
    if found.unknown:
        few = ", ".join(found.unknown[:3])
        click.echo(f"{file}: {len(found.unknown):,} names are not in the index, and left out: {few} …", err=True)
    return found


def _print(products: Sequence[str], hits: Sequence[Hit], as_json: bool) -> None:
    from lookalike.images import shown

    for hit in hits:
        path = hit.payload.get("path", hit.key)
        if as_json:
            line = {"beside": list(products), "key": hit.key, "score": round(hit.score, 6), "path": path}
            line |= {"payload": hit.payload, "copies": list(hit.copies)}
            click.echo(json.dumps(line, ensure_ascii=False))
        else:
            variants = f"  (+{len(hit.copies)} variants)" if hit.copies else ""
            click.echo(f"{hit.score:6.3f}  {shown(path)}{variants}")
    if not hits:
        click.echo("nothing found", err=True)


def _write_sheet(
    recommender: Recommender, products: Sequence[str], unlike: Sequence[str], hits: Sequence[Hit], file: str
) -> None:
    """The first product left, the answers right."""
    from lookalike.catalogue import path_of
    from lookalike.images import shown
    from lookalike.sheet import Strip, contact_sheet

    items = recommender.items(products[0])
    picture = path_of(items[0].key) if items else products[0]
    question = ", ".join(map(shown, products)) + "".join(f", unlike {shown(name)}" for name in unlike)
    text = contact_sheet(
        [Strip(shown(products[0]), picture, hits, "variants")], f"Beside {question}", "cosine similarity"
    )
    write_text(file, text)


def _judge(recommender: Recommender, relevant: Any, target: str | None, as_json: bool, **options: Any) -> None:
    from lookalike.recommend import judge
    from lookalike.results import made

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty() and (done % 20 == 0 or done == total):
            click.echo(f"\r{done:,} of {total:,} questions", nl=done == total, err=True)

    found = judge(recommender, relevant, progress=progress, **options)
    for note in found.notes:
        click.echo(note, err=True)
    document = found.document() | {"made": made(command_line())}
    if target is not None:
        write_json(target, document)
    click.echo(json.dumps(document, ensure_ascii=False) if as_json else str(found))
