"""Words: the tags or captions that fit a picture best."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lookalike.cli._common import json_option, open_encoder
from lookalike.errors import ImageError, QueryError

__all__ = ["tags"]


@click.command()
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...", type=click.Path())
@click.option("--from", "file", required=True, metavar="FILE", help="Tags or captions to choose from, one a line.")
@click.option("--model", required=True, metavar="BUNDLE", help="An encoder bundle that knows words.")
@click.option("-k", default=5, show_default=True, type=click.IntRange(1), help="How many for each picture.")
@json_option
def tags(pictures: tuple[str, ...], file: str, model: str, k: int, as_json: bool) -> None:
    """Say which tags or captions of a list fit each PICTURE best.

    \b
    Example:
      lookalike tags *.jpg --from tags.txt --model words.bundle -k 3
    """
    from lookalike.images import shown
    from lookalike.search import best_texts

    listed = _lines(file)
    encoder = open_encoder(model)
    unread: list[ImageError] = []
    for picture in pictures:
        try:
            [found] = best_texts(encoder, [picture], listed, k)
        except ImageError as error:
            unread.append(error)
            continue
        if as_json:
            told = [{"text": text, "score": round(score, 6)} for text, score in found]
            click.echo(json.dumps({"picture": shown(picture), "tags": told}, ensure_ascii=False))
            continue
        if len(pictures) > 1:
            click.echo(shown(picture))
        for text, score in found:
            click.echo(f"{score:6.3f}  {text}")
    for other in unread[:-1]:
        click.echo(f"error: {other}", err=True)
    if unread:  # the others have been answered
        raise unread[-1]


def _lines(file: str) -> list[str]:
    """The lines of a file that are not empty, each once, in order."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise QueryError(f"cannot read the list of tags {file}: {reason}") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise QueryError(f"the list of tags {file} is empty: write one a line")
    return found
