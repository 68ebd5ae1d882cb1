"""Catalogue: fetch, describe."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli._common import json_option, map_option, parse_mapping, say_problems, write_text

if TYPE_CHECKING:
    from lookalike.fetch import Fetched

__all__ = ["catalogue"]


@click.group()
def catalogue() -> None:
    """Look into a catalogue of products, and fetch its pictures.

    A catalogue is a CSV, TSV, JSON, JSON lines or Parquet file with a row for each product and a column that says where
    its picture is: a path, or a URL.
    """


@catalogue.command()
@click.argument("file", metavar="FILE", type=click.Path())
@click.option("--to", "folder", required=True, metavar="DIR", type=click.Path(), help="Where the pictures go.")
@map_option
@click.option("--workers", default=16, show_default=True, type=click.IntRange(1, 256), help="Pictures at a time.")
@click.option("--per-host", default=4, show_default=True, type=click.IntRange(1, 64), help="Of these, from one host.")
@click.option("--limit", default=32, show_default=True, type=click.IntRange(1, 512), help="Megabytes of a picture.")
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="HOST[:PORT]",
    help="A host that may be at a private address. Without it only public addresses are connected to.",
)
@click.option("--strict", is_flag=True, help="Stop at the first row that is no product.")
@json_option
def fetch(
    file: str,
    folder: str,
    mapping: tuple[str, ...],
    workers: int,
    per_host: int,
    limit: int,
    allowed: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> None:
    """Fetch the pictures of a catalogue whose pictures are URLs.

    DIR gets the pictures, catalogue.csv, ready to be indexed, and failures.csv, which says what failed and why.
    Interrupt it and run it again: it goes on where it was, and tries once more what had failed.

    \b
    Examples:
      lookalike catalogue fetch items.jsonl.gz --to shop
      lookalike catalogue fetch meta.json.gz --map id=asin,image=imUrl,category=categories --to shop
      lookalike index shop/catalogue.csv --to shop.index
    """
    from lookalike.fetch import fetch_catalogue

    began = time.monotonic()
    say = _saying()

    def progress(done: Fetched) -> None:
        rate = done.fetched / max(time.monotonic() - began, 1e-3)
        say(f"{done.fetched:,} fetched, {done.kept:,} kept, {done.failed:,} failed, {rate:,.1f} pictures/s")

    done = fetch_catalogue(
        file,
        folder,
        parse_mapping(mapping),
        allow_hosts=allowed,
        workers=workers,
        per_host=per_host,
        limit=limit << 20,
        strict=strict,
        progress=progress,
    )
    say("")
    say_problems(done.problems)
    if as_json:
        counts = {name: getattr(done, name) for name in ("fetched", "kept", "failed", "repeated", "local", "bytes")}
        files = {"catalogue": done.catalogue, "failures": done.failures}
        click.echo(json.dumps({**counts, "problems": dict(done.problems.counts), **files}, ensure_ascii=False))
        return
    counts_text = f"fetched {done.fetched:,} ({done.bytes / 1e6:,.1f} MB), kept {done.kept:,}, failed {done.failed:,}"
    click.echo(f"{counts_text} ({time.monotonic() - began:.1f} s): {done.catalogue}")
    if done.failed:
        click.echo(f"what failed, and why: {done.failures}", err=True)


@catalogue.command()
@click.argument("file", metavar="FILE", type=click.Path())
@map_option
@click.option("--labels", metavar="COLUMN", help="The column whose distribution is shown. Default: category.")
@click.option(
    "--sample", default=10_000, show_default=True, type=click.IntRange(0), help="Pictures looked at, drawn at random."
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Categories suggested at most.")
@click.option("--html", "page", metavar="FILE", help="Write a page with the distribution as a plot.")
@json_option
def describe(
    file: str,
    mapping: tuple[str, ...],
    labels: str | None,
    sample: int,
    top: int,
    page: str | None,
    as_json: bool,
) -> None:
    """Say what is in a catalogue: columns, labels, pictures, duplicates.

    \b
    Examples:
      lookalike catalogue describe products.csv --labels brand --html products.html
      lookalike catalogue describe meta.json.gz --map id=asin,image=imUrl,category=categories --json
    """
    from lookalike.describe import as_html, as_text
    from lookalike.describe import describe as described

    say = _saying()
    document = described(file, parse_mapping(mapping), labels=labels, sample=sample, top=top, progress=say)
    say("")
    if page:
        write_text(page, as_html(document))
    click.echo(json.dumps(document, ensure_ascii=False, indent=2) if as_json else as_text(document))


def _saying() -> Callable[[str], None]:
    """What says on stderr how far it is: one line that changes on a terminal, else a line every ten seconds."""
    last: list[Any] = [time.monotonic(), 0]
    terminal = sys.stderr.isatty()

    def say(text: str) -> None:
        if terminal:
            click.echo(f"\r{text:<{last[1]}}" + ("" if text else "\r"), err=True, nl=False)
            last[1] = len(text)
        elif text and time.monotonic() - last[0] > 10:
            click.echo(text, err=True)
            last[0] = time.monotonic()

    return say
