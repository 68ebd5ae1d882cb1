"""Compare: the ladder of baselines and trainings on one set of pictures."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from lookalike.cli._common import json_option, need_training
from lookalike.errors import TrainingError

__all__ = ["compare"]


@click.command()
@click.argument("source", metavar="PICTURES|CATALOGUE.csv", type=click.Path())
@click.option("--to", "target", required=True, metavar="FOLDER", type=click.Path(), help="Where the ladder goes.")
@click.option("--labels", metavar="HOW", help="folders, a column of the CSV file, or a file of pairs or triplets.")
@click.option("--group", metavar="COLUMN", help="A query finds none of its own group, if there is a CSV file.")
@click.option("--category", metavar="COLUMN", help="The column of the super-class, if there is a CSV file.")
@click.option("--rows", metavar="A,B,…", help="Only these rows. Default: all.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Of each trained row. Default: 10.")
@click.option("--quick", is_flag=True, help="One minute for each trained row.")
@click.option("--base", metavar="NETWORK|BUNDLE", help="A row of a network as it is, e.g. timm:resnet18.")
@click.option("--weights", metavar="FILE", help="Weights of --base: a file, a URL, or hub.")
@click.option(
    "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Change one value in all trained rows."
)
@click.option("--note", "notes", multiple=True, metavar="SENTENCE", help="What a reader of the result should know.")
@json_option
def compare(
    source: str,
    target: str,
    labels: str | None,
    group: str | None,
    category: str | None,
    rows: str | None,
    minutes: float | None,
    quick: bool,
    base: str | None,
    weights: str | None,
    overrides: tuple[str, ...],
    notes: tuple[str, ...],
    as_json: bool,
) -> None:
    """What is worth the trouble on these pictures: baselines, the encoder that ships, and ways to teach it.

    One table: chance, pixels, colours, visual words, an SVM, a network as it is (--base), the default encoder, and
    encoders taught from pairs, from triplets, without labels, and by the supervised contrastive loss. All answer the
    same questions of the same held-out pictures. Interrupt it and run it again: it goes on where it was; a row that
    failed says why, and the others go on.

    \b
    Examples:
      lookalike compare shoes --quick --to shoes.ladder
      lookalike compare products.csv --labels kind --group product --minutes 5 --to products.ladder
      lookalike compare shoes --rows chance,pixels,default,triplet-hard --to shoes.ladder
    """
    need_training()
    from lookalike.training.ladder import MINUTES, QUICK, in_words
    from lookalike.training.ladder import compare as fill

    if quick and minutes is not None:
        raise click.UsageError("give either --quick or --minutes")
    if weights is not None and base is None:
        raise click.UsageError("--weights goes with --base")
    document = fill(
        source,
        target,
        labels=labels or "folders",
        group=group,
        category=category,
        rows=None if rows is None else [name.strip() for name in rows.split(",") if name.strip()],
        minutes=minutes or (QUICK if quick else MINUTES),
        base=base,
        weights=weights,
        overrides=overrides,
        notes=notes,
        command=_command(),
        say=lambda line: click.echo(line, err=True),
    )
    click.echo(json.dumps(document, ensure_ascii=False) if as_json else in_words(document), nl=as_json)
    failed = [row["name"] for row in document["rows"] if row["failed"]]
    if failed:
        raise TrainingError(f"{', '.join(failed)} failed, the reasons are in the table: run it again to try again")


def _command() -> str:
    """The command as it was given, but for folders of this machine and notes."""
    from lookalike.training.ladder import named

    context = click.get_current_context()
    words = ["lookalike", "compare"]
    for parameter in context.command.params:
        value, option = context.params.get(str(parameter.name)), parameter.opts[-1]
        if parameter.name in ("notes", "as_json") or value in (None, False, ()):
            continue
        if value is True:
            words.append(option)
            continue
        for one in value if isinstance(value, tuple) else (value,):
            text = named(one) if parameter.name == "source" else str(one)
            if parameter.name in ("target", "base", "weights") and "/" in text:
                text = Path(text).name
            words += [text] if parameter.param_type_name == "argument" else [option, text]
    return shlex.join(words)
