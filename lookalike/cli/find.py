"""Find: index, search, duplicates, info."""

from __future__ import annotations

import json
import time
import webbrowser
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from lookalike import __version__
from lookalike.cli._common import (
    json_option,
    map_option,
    model_option,
    open_encoder,
    open_searcher,
    parse_conditions,
    parse_mapping,
    payload_fields,
    progress_bar,
    remembered,
    say_problems,
    where_option,
    write_text,
)
from lookalike.errors import ImageError, QueryError

if TYPE_CHECKING:
    from lookalike.bundle import Bundle
    from lookalike.index.base import Hit, Index
    from lookalike.indexing import Summary
    from lookalike.search import Searcher

__all__ = ["duplicates", "index", "info", "search"]


def _score(context: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    """A cosine, or the purpose of a threshold that the bundle carries."""
    if value in (None, "same", "duplicate"):
        return value
    try:
        number = float(str(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor one of same, duplicate") from None
    if not -1 <= number <= 1:
        raise click.BadParameter(f"{value} is not in the range -1<=x<=1: it is a cosine")
    return number


@click.command()
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURES...", type=click.Path())
@click.option("--to", "location", required=True, metavar="INDEX", help="A folder, or http(s)://host:port/collection.")
@click.option("--model", metavar="BUNDLE", help="Encoder bundle: a folder or .zip. Default: the one that ships.")
@map_option
@click.option("--prune", is_flag=True, help="Drop entries whose file is gone.")
@click.option("--strict", is_flag=True, help="Stop at the first picture, or row of a catalogue, that cannot be read.")
@click.option("--quantize", type=click.Choice(["int8"]), help="Store a compact copy of the vectors for faster search.")
@json_option
def index(
    pictures: tuple[str, ...],
    location: str,
    model: str | None,
    mapping: tuple[str, ...],
    prune: bool,
    strict: bool,
    quantize: Any,
    as_json: bool,
) -> None:
    """Put pictures into an index, or bring it up to date.

    PICTURES are folders (walked to the bottom), picture files, or catalogues with a column of picture paths: CSV, TSV,
    JSON, JSON lines or Parquet. Rows that are no products are passed over, counted and the first of them listed.
    Files that did not change are not encoded again. Interrupt it and run it again: it goes on where it was.

    \b
    Examples:
      lookalike index ~/Pictures --to pictures.index
      lookalike index shop/products.csv --to http://localhost:6333/products
      lookalike index shop/items.jsonl.gz --map id=sku,image=photo --to items.index
    """
    from lookalike.catalogue import rows
    from lookalike.index import open_index
    from lookalike.indexing import update_index
    from lookalike.tables import Problems

    began = time.monotonic()
    encoder = open_encoder(model)
    problems, columns = Problems(strict), parse_mapping(mapping)
    # Listed twice, so that no list of them is held: once to count them and to see what their columns hold.
    count, fields = payload_fields(rows(pictures, columns, problems))
    say_problems(problems)
    meta = {"encoder": encoder.describe(), "lookalike": __version__}
    target = open_index(location, dim=encoder.dim, meta=meta, fields=fields, quantization=quantize)
    with closing(target), progress_bar(count) as progress:
        listed = rows(pictures, columns, Problems())
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
@click.option("--text", metavar="WORDS", help="Words to look for, alone or together with each QUERY.")
@click.option(
    "--weight",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Of the words beside a QUERY: 0 is the picture alone, 1 the words alone.",
)
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="How many answers per question.")
@where_option
@click.option(
    "--min-score",
    metavar="same|duplicate|NUMBER",
    callback=_score,
    help="Only answers at least this close: a cosine, or what the bundle calls the same or a duplicate.",
)
@click.option(
    "--rerank",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Re-rank answers as the bundle says, or order them by cosine alone.",
)
@click.option("--html", "sheet", metavar="FILE", help="Write a contact sheet: queries left, neighbours right.")
@click.option("--open", "show", is_flag=True, help="Open the contact sheet in a browser.")
@click.option("--record", is_flag=True, help="Keep question and answers beside the index, to learn from later.")
@click.option("--person", default="", metavar="NAME", help="With --record: who asks, to be found and deleted by.")
@model_option
@json_option
def search(
    location: str,
    queries: tuple[str, ...],
    liked: tuple[str, ...],
    disliked: tuple[str, ...],
    text: str | None,
    weight: float,
    k: int,
    conditions: tuple[str, ...],
    min_score: float | str | None,
    rerank: str,
    sheet: str | None,
    show: bool,
    record: bool,
    person: str,
    model: str | None,
    as_json: bool,
) -> None:
    """Find what looks like QUERY, one question per picture; or what words say.

    Words need a bundle that knows them (`lookalike train --captions`).

    \b
    Examples:
      lookalike search pictures.index cat.jpg -k 5
      lookalike search pictures.index *.jpg --where category=shoes --html found.html --open
      lookalike search pictures.index --like red.jpg --like round.jpg --unlike square.jpg --json
      lookalike search shop.index --text "red running shoes" --where 'price<50'
      lookalike search shop.index --text "in blue" shoe.jpg --weight 0.4
    """
    if bool(queries or text is not None) == bool(liked or disliked):
        raise click.UsageError("give either QUERY pictures and --text, or --like/--unlike examples")
    options: dict[str, Any] = {"k": k, "where": parse_conditions(conditions)}
    with open_searcher(location, model, rerank == "auto") as searcher:
        options["min_score"] = _least(min_score, searcher.encoder.bundle)
        if liked or disliked:
            answers, unread = [_by_examples(searcher, liked, disliked, options)], list[ImageError]()
        else:
            answers, unread = _by_pictures_and_words(searcher, queries, text, weight, options)
    if answers and (sheet or show):  # before anything is printed: the reader of a pipe may have seen enough early
        _write_sheet(answers, sheet or "lookalike.html", location, show)
    if record:
        _record(location, answers, text, liked, disliked, person)
    for label, _, hits in answers:
        _print_hits(label if len(queries) > 1 else None, hits, as_json, label)
    for other in unread[:-1]:
        click.echo(f"error: {other}", err=True)
    if unread:  # the other questions have been answered
        raise unread[-1]


# What a question is called, its picture if it has one, and its answers.
_Answered: TypeAlias = "tuple[str, str | None, list[Hit]]"


def _by_pictures_and_words(
    searcher: Searcher, queries: Sequence[str], text: str | None, weight: float, options: dict[str, Any]
) -> tuple[list[_Answered], list[ImageError]]:
    """An answer for each picture that can be read, or for words alone; and what is wrong with the other pictures."""
    if not queries and text is not None:
        return [(text, None, searcher.by_text(text, **options))], []
    answers, unread = [], []
    for query in queries:
        try:
            answers.append(_answer(searcher, query, text, weight, options))
        except ImageError as error:
            unread.append(error)
    return answers, unread


def _by_examples(
    searcher: Searcher, liked: Sequence[str], disliked: Sequence[str], options: dict[str, Any]
) -> _Answered:
    from lookalike.images import shown

    names = [("+", path) for path in liked] + [("-", path) for path in disliked]
    label = " ".join(sign + shown(Path(path).name) for sign, path in names)
    return label, liked[0] if liked else None, searcher.by_examples(liked, disliked, **options)


def _answer(searcher: Searcher, query: str, text: str | None, weight: float, options: dict[str, Any]) -> _Answered:
    """What a picture finds, words with it if there are any."""
    from lookalike.images import shown

    if text is None:
        return shown(query), query, searcher.by_picture(query, **options)
    return f"{shown(query)} + {text}", query, searcher.by_text(text, picture=query, weight=weight, **options)


def _record(
    location: str,
    answers: Sequence[_Answered],
    text: str | None,
    liked: Sequence[str],
    disliked: Sequence[str],
    person: str,
) -> None:
    """Keep the questions beside the index, and say under which number each can be judged."""
    from lookalike.catalogue import key_of
    from lookalike.feedback import Feedback, Query, feedback_path

    examples = {"liked": tuple(map(key_of, liked)), "disliked": tuple(map(key_of, disliked))}
    with Feedback(feedback_path(location)) as store:
        for label, picture, hits in answers:
            asked = examples if liked else {"key": "" if picture is None else key_of(picture)}
            number = store.record(Query(text=text or "", **asked), hits, person=person)
            click.echo(f"recorded as search {number}: {label}", err=True)


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


def _write_sheet(answers: Sequence[_Answered], file: str, location: str, show: bool) -> None:
    from lookalike.sheet import Strip, contact_sheet

    strips = [Strip(label, picture, hits) for label, picture, hits in answers]
    asked = "1 question" if len(strips) == 1 else f"{len(strips):,} questions"
    write_text(file, contact_sheet(strips, f"Lookalikes in {location}", f"{asked}, cosine similarity"))
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
    return _threshold(open_encoder(remembered(opened)).bundle, "duplicate", "--threshold 0.95")


def _least(min_score: float | str | None, bundle: Bundle) -> float | None:
    """A cosine for what was given as one, or as the purpose of a threshold."""
    return _threshold(bundle, min_score) if isinstance(min_score, str) else min_score


def _threshold(bundle: Bundle, purpose: str, instead: str = "--min-score 0.6") -> float:
    """The cosine that was calibrated for a purpose. Raises QueryError where there is none."""
    thresholds = bundle.manifest.get("thresholds") or {}
    if purpose not in thresholds:
        raise QueryError(
            f"the bundle {bundle.name} carries no calibrated threshold for {purpose!r}: `lookalike calibrate` chooses "
            f"one on labelled pictures, or give a number, e.g. {instead}"
        )
    return float(thresholds[purpose])


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
    if thresholds := facts.get("thresholds"):  # how they were come by, --json tells
        facts["thresholds"] = {name: value for name, value in thresholds.items() if name != "calibration"}
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
    words = {"text": manifest["text"]} if bundle.has_text else {}
    told = ("search", "thresholds", "metrics", "licence")
    return facts | words | {name: manifest[name] for name in told if name in manifest}


def _index_facts(place: str) -> dict[str, Any]:
    from lookalike.index import open_index

    with closing(open_index(place, read_only=True)) as opened:
        facts = {"kind": "index", "location": opened.location, "pictures": len(opened), "dim": opened.dim}
        return facts | dict(opened.meta)
