"""Find: index, search, duplicates, info."""

from __future__ import annotations

import json
import time
import webbrowser
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike import __version__
from lookalike.cli._common import (
    json_option,
    model_option,
    open_encoder,
    open_searcher,
    parse_conditions,
    payload_fields,
    progress_bar,
    remembered,
    where_option,
    write_text,
)
from lookalike.errors import ImageError, QueryError

if TYPE_CHECKING:
    from lookalike.index.base import Hit, Index
    from lookalike.indexing import Summary

__all__ = ["duplicates", "index", "info", "search"]


@click.command()
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURES...", type=click.Path())
@click.option("--to", "location", required=True, metavar="INDEX", help="A folder, or http(s)://host:port/collection.")
@click.option("--model", metavar="BUNDLE", help="Encoder bundle: a folder or .zip. Default: the one that ships.")
@click.option("--prune", is_flag=True, help="Drop entries whose file is gone.")
@click.option("--strict", is_flag=True, help="Stop at the first picture that cannot be read.")
@click.option("--quantize", type=click.Choice(["int8"]), help="Store a compact copy of the vectors for faster search.")
@json_option
def index(
    pictures: tuple[str, ...],
    location: str,
    model: str | None,
    prune: bool,
    strict: bool,
    quantize: Any,
    as_json: bool,
) -> None:
    """Put pictures into an index, or bring it up to date.

    PICTURES are folders (walked to the bottom), picture files, or CSV catalogues with a column of picture paths.
    Files that did not change are not encoded again. Interrupt it and run it again: it goes on where it was.

    \b
    Examples:
      lookalike index ~/Pictures --to pictures.index
      lookalike index shop/products.csv --to http://localhost:6333/products
    """
    from lookalike.catalogue import rows
    from lookalike.index import open_index
    from lookalike.indexing import update_index

    began = time.monotonic()
    encoder = open_encoder(model)
    listed = list(rows(pictures))
    meta = {"encoder": encoder.describe(), "lookalike": __version__}
    target = open_index(location, dim=encoder.dim, meta=meta, fields=payload_fields(listed), quantization=quantize)
    with closing(target), progress_bar(len(listed)) as progress:
        summary = update_index(target, encoder, listed, prune=prune, strict=strict, progress=progress)
        total = len(target)
    for error in summary.skipped:
        click.echo(f"skipped {error.path}: {error.reason}", err=True)
    _report(summary, total, time.monotonic() - began, location, as_json)


def _report(summary: Summary, total: int, seconds: float, location: str, as_json: bool) -> None:
    counts = {name: getattr(summary, name) for name in ("added", "replaced", "unchanged", "moved", "removed")}
    if as_json:
        skipped = [{"path": error.path, "reason": error.reason} for error in summary.skipped]
        rest = {"vanished": summary.vanished, "encoded": summary.encoded, "total": total, "seconds": round(seconds, 3)}
        click.echo(json.dumps({**counts, **rest, "skipped": skipped}, ensure_ascii=False))
        return
    text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    click.echo(f"{text}, skipped {len(summary.skipped):,}: {total:,} pictures in {location} ({seconds:.1f} s)")
    if summary.vanished:
        click.echo(f"{summary.vanished:,} entries have lost their file: --prune drops them", err=True)


@click.command()
@click.argument("location", metavar="INDEX")
@click.argument("queries", nargs=-1, metavar="QUERY...", type=click.Path())
@click.option("--like", "liked", multiple=True, metavar="PICTURE", help="A liked example; several make one question.")
@click.option("--unlike", "disliked", multiple=True, metavar="PICTURE", help="A disliked example; goes with --like.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="How many answers per question.")
@where_option
@click.option("--min-score", type=click.FloatRange(-1, 1), help="Only answers at least this close (cosine).")
@click.option(
    "--rerank",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Re-rank answers as the bundle says, or order them by cosine alone.",
)
@click.option("--html", "sheet", metavar="FILE", help="Write a contact sheet: queries left, neighbours right.")
@click.option("--open", "show", is_flag=True, help="Open the contact sheet in a browser.")
@model_option
@json_option
def search(
    location: str,
    queries: tuple[str, ...],
    liked: tuple[str, ...],
    disliked: tuple[str, ...],
    k: int,
    conditions: tuple[str, ...],
    min_score: float | None,
    rerank: str,
    sheet: str | None,
    show: bool,
    model: str | None,
    as_json: bool,
) -> None:
    """Find what looks like QUERY: one question per picture.

    \b
    Examples:
      lookalike search pictures.index cat.jpg -k 5
      lookalike search pictures.index *.jpg --where category=shoes --html found.html --open
      lookalike search pictures.index --like red.jpg --like round.jpg --unlike square.jpg --json
    """
    from lookalike.images import shown

    if bool(queries) == bool(liked or disliked):
        raise click.UsageError("give either QUERY pictures or --like/--unlike examples")
    options: dict[str, Any] = {"k": k, "where": parse_conditions(conditions), "min_score": min_score}
    answers: list[tuple[str, str | None, list[Hit]]] = []
    with open_searcher(location, model, rerank == "auto") as searcher:
        unread: list[ImageError] = []
        for query in queries:
            try:
                answers.append((shown(query), query, searcher.by_picture(query, **options)))
            except ImageError as error:
                unread.append(error)
        if not queries:
            names = [("+", path) for path in liked] + [("-", path) for path in disliked]
            label = " ".join(sign + shown(Path(path).name) for sign, path in names)
            answers.append((label, liked[0] if liked else None, searcher.by_examples(liked, disliked, **options)))
    if answers and (sheet or show):  # before anything is printed: the reader of a pipe may have seen enough early
        _write_sheet(answers, sheet or "lookalike.html", location, show)
    for label, _, hits in answers:
        _print_hits(label if len(queries) > 1 else None, hits, as_json, label)
    for other in unread[:-1]:
        click.echo(f"error: {other}", err=True)
    if unread:  # the other questions have been answered
        raise unread[-1]


def _print_hits(heading: str | None, hits: Sequence[Hit], as_json: bool, query: str) -> None:
    if as_json:
        for hit in hits:
            path = hit.payload.get("path", hit.key)
            line = {"query": query, "key": hit.key, "score": round(hit.score, 6), "path": path, "payload": hit.payload}
            click.echo(json.dumps({**line, "copies": list(hit.copies)} if hit.copies else line, ensure_ascii=False))
        return
    if heading is not None:
        click.echo(heading)
    for hit in hits:
        click.echo(_line(hit))
    if not hits:
        click.echo("nothing found", err=True)


def _line(hit: Hit) -> str:
    from lookalike.images import shown

    copies = f"  (+{len(hit.copies)} identical)" if hit.copies else ""
    return f"{hit.score:6.3f}  {shown(hit.payload.get('path', hit.key))}{copies}"


def _write_sheet(answers: Sequence[tuple[str, str | None, list[Hit]]], file: str, location: str, show: bool) -> None:
    from lookalike.sheet import Strip, contact_sheet

    strips = [Strip(label, picture, hits) for label, picture, hits in answers]
    write_text(file, contact_sheet(strips, f"Lookalikes in {location}", f"{len(strips)} questions, cosine similarity"))
    if show:
        webbrowser.open(Path(file).resolve().as_uri())


@click.command()
@click.argument("location", metavar="INDEX")
@click.option("--threshold", type=click.FloatRange(-1, 1, min_open=True), help="Cosine. Default: the bundle's own.")
@where_option
@click.option("--html", "sheet", metavar="FILE", help="Write a contact sheet, one row per group.")
@json_option
def duplicates(
    location: str, threshold: float | None, conditions: tuple[str, ...], sheet: str | None, as_json: bool
) -> None:
    """Find groups of pictures that are all but the same.

    The first of each group has the most pixels: the one to keep.

    \b
    Example:
      lookalike duplicates pictures.index --html duplicates.html
    """
    from lookalike.index import open_index
    from lookalike.search import near_duplicates

    with closing(open_index(location, read_only=True)) as opened:
        cutoff = threshold if threshold is not None else _duplicate_threshold(opened)
        groups = near_duplicates(opened, cutoff, parse_conditions(conditions))
    for number, group in enumerate(groups):
        if as_json:
            items = [{"key": hit.key, "score": round(hit.score, 6), "payload": hit.payload} for hit in group]
            click.echo(json.dumps({"group": number, "items": items}, ensure_ascii=False))
        else:
            click.echo("\n".join([*([""] if number else []), *map(_line, group)]))
    extra = sum(len(group) - 1 for group in groups)
    click.echo(f"{len(groups):,} groups, {extra:,} pictures more than needed, cosine ≥ {cutoff:.3f}", err=True)
    if sheet:
        from lookalike.catalogue import path_of
        from lookalike.sheet import Strip, contact_sheet

        strips = [
            Strip(group[0].payload.get("path", group[0].key), path_of(group[0].key), group[1:]) for group in groups
        ]
        write_text(sheet, contact_sheet(strips, f"Near-duplicates in {location}", f"cosine ≥ {cutoff:.3f}"))


def _duplicate_threshold(opened: Index) -> float:
    """The threshold that was calibrated for the encoder of this index."""
    thresholds = open_encoder(remembered(opened)).bundle.manifest.get("thresholds", {})
    if "duplicate" not in thresholds:
        raise QueryError("the bundle of this index carries no calibrated threshold: give --threshold, e.g. 0.95")
    return float(thresholds["duplicate"])


@click.command()
@click.argument("place", metavar="INDEX|BUNDLE")
@json_option
def info(place: str, as_json: bool) -> None:
    """Say what an index or a bundle is. `lookalike info default` shows the bundle that ships.

    \b
    Example:
      lookalike info pictures.index
    """
    from lookalike.bundle import MANIFEST

    path = Path(place)
    is_bundle = place == "default" or path.suffix == ".zip" or (path / MANIFEST).is_file()
    facts = _bundle_facts(place) if is_bundle else _index_facts(place)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = value if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:<{width}}  {text}")


def _bundle_facts(place: str) -> dict[str, Any]:
    bundle = open_encoder(None if place == "default" else place).bundle
    manifest = bundle.manifest
    facts = {
        "kind": "bundle",
        "name": bundle.name,
        "fingerprint": bundle.fingerprint,
        "path": str(bundle.path),
        "dim": bundle.dim,
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "image": manifest["image"],
    }
    return facts | {name: manifest[name] for name in ("search", "thresholds", "metrics", "licence") if name in manifest}


def _index_facts(place: str) -> dict[str, Any]:
    from lookalike.index import open_index

    with closing(open_index(place, read_only=True)) as opened:
        facts = {"kind": "index", "location": opened.location, "pictures": len(opened), "dim": opened.dim}
        return facts | dict(opened.meta)
