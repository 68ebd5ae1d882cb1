"""Judge: the classifier table."""

from __future__ import annotations

import json
from typing import Any

import click

from lookalike.cli._common import json_option, need_training

__all__ = ["classifiers"]


@click.command()
@click.argument("source", metavar="PICTURES|CATALOGUE.csv", type=click.Path())
@click.option(
    "--labels", default="folders", show_default=True, metavar="HOW", help="folders, or a column of the CSV file."
)
@click.option("--top", default=20, show_default=True, type=click.IntRange(2), help="How many categories, the largest.")
@click.option("--group", metavar="COLUMN", help="What has the same value there stays in one part: a product's name.")
@click.option("--models", metavar="A,B,…", help="Only these. Default: all that need no download.")
@click.option(
    "--config", "configs", multiple=True, metavar="FILE", type=click.Path(), help="A network of your own, as a row."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="[MODEL.]TABLE.KEY=VALUE",
    help="Change one value of the configurations of all networks, or of one.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="The longest that a network may train.")
@click.option("--to", "target", required=True, metavar="FOLDER", type=click.Path(), help="Where the table goes.")
@json_option
def classifiers(
    source: str,
    models: str | None,
    overrides: tuple[str, ...],
    minutes: float | None,
    target: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Teach classifiers of a catalogue's categories, and compare them in one table.

    Models: svm-pixels and svm-embeddings, linear support vector machines; alexnet, vgg16, vgg16_bn, resnet50,
    shufflenet_v1 and shufflenet, networks from random weights; shufflenet-transfer, from the encoder that ships, and
    mobilenet-transfer, from weights that it downloads. Each has training, validation and test accuracy, macro F1,
    minutes, parameters, and whether it over-fits; FOLDER holds all else: figures for each category, confusion
    matrices, curves. Interrupt it and run it again: rows that are done are not repeated.

    \b
    Examples:
      lookalike classifiers shoes --models svm-embeddings --to shoes.table
      lookalike classifiers products.csv --labels kind --group name --to kinds.table
      lookalike classifiers products.csv --labels kind --models resnet50 --minutes 5 --to kinds.table
    """
    need_training()
    from lookalike.training.classifiers import classifiers as fill

    changes = [*overrides, *([f"loop.minutes={float(minutes)}"] if minutes else [])]
    chosen = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    document = fill(
        source, target, models=chosen, overrides=changes, say=lambda line: click.echo(line, err=True), **options
    )
    click.echo(json.dumps(document, ensure_ascii=False) if as_json else _table(document))


def _table(document: dict[str, Any]) -> str:
    """The table in columns."""
    heads = ("model", "training", "validation", "test", "95 % interval", "macro F1", "minutes", "parameters", "")
    lines = [heads]
    for row in document["rows"]:
        test = row["test"]
        shares = [f"{row[key]:.3f}" for key in ("training", "validation")]
        interval = f"[{test['low']:.3f}, {test['high']:.3f}]"
        rest = (f"{row['macro_f1']:.3f}", f"{row['minutes']:.1f}", f"{row['parameters']:,}")
        lines.append(
            (row["name"], *shares, f"{test['mean']:.3f}", interval, *rest, "over-fits" if row["overfitting"] else "")
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
