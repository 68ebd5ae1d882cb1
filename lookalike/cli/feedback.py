"""Learn from use: what is recorded of searches, and how to take it away."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lookalike.cli._common import json_option
from lookalike.errors import LookalikeError

if TYPE_CHECKING:
    from lookalike.feedback import Feedback

__all__ = ["feedback"]


@click.group()
def feedback() -> None:
    """See, judge, export and delete what was recorded of the searches in an index.

    Nothing is recorded unless asked for (`lookalike search --record`, `lookalike serve --record`), and nothing leaves
    this machine. It lies in one file beside the index. `lookalike train --feedback` learns from it.

    \b
    Example:
      lookalike feedback show pictures.index
    """


@feedback.command()
@click.argument("location", metavar="INDEX")
@json_option
def show(location: str, as_json: bool) -> None:
    """Say how much is recorded, and of whom.

    \b
    Example:
      lookalike feedback show pictures.index
    """
    people: dict[str, int] = {}
    facts = {"searches": 0, "clicked": 0, "judged alike": 0, "judged not alike": 0}
    with _store(location) as store:
        for search in store.searches():
            people[search.person] = people.get(search.person, 0) + 1
            for name, count in zip(facts, (1, len(search.clicked), len(search.alike), len(search.unlike)), strict=True):
                facts[name] += count
        path = str(store.path)
    if as_json:
        click.echo(json.dumps({**facts, "people": people, "file": path}, ensure_ascii=False))
        return
    for name, count in facts.items():
        click.echo(f"{name:<17} {count:,}")
    for person, count in sorted(people.items()):
        click.echo(f"  {person or 'nobody named'}: {count:,} searches")
    click.echo(f"in {path}", err=True)


@feedback.command()
@click.argument("location", metavar="INDEX")
@click.argument("search", type=click.IntRange(1), metavar="SEARCH")
@click.argument("picture", metavar="PICTURE")
@click.option("--alike", "verdict", flag_value="alike", help="PICTURE is what was meant.")
@click.option("--unlike", "verdict", flag_value="unlike", help="PICTURE is not what was meant.")
@click.option("--clicked", "verdict", flag_value="clicked", default=True, help="PICTURE was opened. The default.")
def judge(location: str, search: int, picture: str, verdict: str) -> None:
    """Note what became of an answer: SEARCH is the number that --record told, PICTURE one of its answers.

    \b
    Example:
      lookalike feedback judge pictures.index 7 cat.jpg --alike
    """
    from lookalike.catalogue import key_of
    from lookalike.errors import FeedbackError

    with _store(location) as store:
        for key in dict.fromkeys((picture, key_of(picture))):
            try:
                if verdict == "clicked":
                    store.click(search, key)
                else:
                    store.judge(search, key, verdict == "alike")
                return
            except FeedbackError as error:
                failure = error
        raise failure


@feedback.command()
@click.argument("location", metavar="INDEX")
@click.option("--person", metavar="NAME", help="Only what this person asked.")
@click.option("--to", "target", metavar="FILE", help="Where to: JSON lines. Default: stdout.")
def export(location: str, person: str | None, target: str | None) -> None:
    """Write everything that is recorded as JSON lines.

    \b
    Example:
      lookalike feedback export pictures.index --to feedback.jsonl
    """
    with _store(location) as store:
        if target is None:
            store.export(sys.stdout, person=person)
            return
        try:
            with Path(target).open("w", encoding="utf-8") as file:
                count = store.export(file, person=person)
        except OSError as error:
            raise LookalikeError(f"cannot write {target}: {error.strerror}") from error
    click.echo(f"{count:,} searches in {target}", err=True)


@feedback.command()
@click.argument("location", metavar="INDEX")
@click.option("--person", metavar="NAME", help="Whose searches to delete; '' are those of nobody named.")
@click.option("--item", metavar="PICTURE", help="Every trace of which picture to delete.")
def forget(location: str, person: str | None, item: str | None) -> None:
    """Delete, for good, what a person asked, or every trace of a picture.

    \b
    Example:
      lookalike feedback forget pictures.index --person anna
    """
    from lookalike.catalogue import key_of

    with _store(location) as store:
        count = store.forget(person=person, item=item)
        if item is not None and not count:
            count = store.forget(item=key_of(item))
    click.echo(f"{count:,} searches deleted or changed", err=True)


def _store(location: str) -> Feedback:
    """What is recorded beside an index."""
    from lookalike.feedback import Feedback, feedback_path

    return Feedback(feedback_path(location), make=False)
