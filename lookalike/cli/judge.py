"""Judge: evaluate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli._common import command_line, json_option, open_encoder, write_json

if TYPE_CHECKING:
    from lookalike.evaluate import Results
    from lookalike.metrics import Interval

__all__ = ["evaluate"]


@click.command()
@click.argument("source", metavar="PICTURES|CATALOGUE.csv", type=click.Path())
@click.option(
    "--protocol",
    default="retrieval",
    show_default=True,
    metavar="NAME",
    help="retrieval, query-gallery, episodes, lake, pairs or captions.",
)
@click.option("--model", metavar="BUNDLE", help="Encoder bundle: a folder or .zip. Default: the one that ships.")
@click.option("--compare", "other", metavar="BUNDLE", help="Ask another bundle the same questions, and compare.")
@click.option("--labels", metavar="HOW", help="folders, a column of the CSV file, or a list of pairs.")
@click.option("--group", metavar="COLUMN", help="A query finds none of its own group, if there is a CSV file.")
@click.option("--category", metavar="COLUMN", help="The column of the super-class, if there is a CSV file.")
@click.option("--full", is_flag=True, help="mAP, MRR and triplet accuracy as well.")
@click.option("--way", default=20, show_default=True, type=click.IntRange(2), help="Classes of an episode.")
@click.option("--shot", default=1, show_default=True, type=click.IntRange(1), help="Known pictures of each class.")
@click.option("--episodes", default=1000, show_default=True, type=click.IntRange(1), help="How many episodes.")
@click.option(
    "--within/--across",
    default=None,
    help="Episodes within a super-class, or across. Default: within, if there are any.",
)
@click.option("--folds", type=click.IntRange(1), help="Deal the classes into folds; a picture asks its own fold.")
@click.option("--maker", metavar="REGEX", help="Finds in a file name, as its group, who made the picture.")
@click.option("--seed", default=0, show_default=True, help="Of what is drawn: episodes, and pictures of the map.")
@click.option("--to", "target", metavar="FILE.json", help="Write the whole result, from which a report is made.")
@json_option
def evaluate(
    source: str, model: str | None, other: str | None, target: str | None, as_json: bool, **options: Any
) -> None:
    """Measure how well an encoder tells what is alike.

    Each number is a mean over questions with its 95 % interval. Protocols: retrieval, each picture asks all others;
    query-gallery, some ask and others are asked (a column role, or folders query and gallery); episodes, which of
    --way classes, --shot pictures of each being known (with --maker, known ones by one, asked by another); lake, the
    fixed one-shot runs (run01/class_labels.txt …); pairs, the same or not (LFW's pairs.txt, or a CSV file with
    left,right,same); captions, words for pictures and pictures for words (a CSV file of captions).

    \b
    Examples:
      lookalike evaluate shoes --model shoes.bundle --compare default
      lookalike evaluate shoes --to results.json && lookalike report results.json --to report.html
      lookalike evaluate products.csv --labels kind --group product
      lookalike evaluate images_evaluation --protocol episodes --way 20 --maker '_(\\d+)'
    """
    from lookalike.evaluate import differences
    from lookalike.evaluate import evaluate as judge
    from lookalike.results import evaluation_document

    found = [judge(open_encoder(name), source, **options) for name in ([model, other] if other else [model])]
    ours = found[0]
    for line in (*(f"skipped: {error}" for error in ours.unreadable), *ours.notes):
        click.echo(line, err=True)
    document = ours.document() if target is None else evaluation_document(ours, command_line(), options["seed"])
    texts = [str(one) for one in found]
    for theirs in found[1:]:
        gaps = differences(ours, theirs)
        compared = {name: asdict(gap) for name, gap in gaps.items()}
        document["compared"] = {"theirs": theirs.document(), "differences": compared}
        texts.append(_comparison(ours, theirs, gaps))
    if target is not None:
        write_json(target, document)
        document = {name: value for name, value in document.items() if name not in ("queries", "map")}
    click.echo(json.dumps(document, ensure_ascii=False) if as_json else "\n\n".join(texts))


def _comparison(ours: Results, theirs: Results, gaps: dict[str, Interval]) -> str:
    """A line for each measure: which is better, and by how much."""
    from lookalike.evaluate import LOWER_IS_BETTER, title

    same = ours.encoder["name"] == theirs.encoder["name"]
    one, two = (str(found.encoder["fingerprint" if same else "name"]) for found in (ours, theirs))
    lines = []
    for name, gap in gaps.items():
        above, below = ("worse", "better") if name in LOWER_IS_BETTER else ("better", "worse")
        verdict = f"{above} than" if gap.low > 0 else f"{below} than" if gap.high < 0 else "no better than"
        size = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        lines.append(f"{one} {verdict} {two}{' by' if gap.low > 0 or gap.high < 0 else ':'} {size} {title(name)}")
    return "\n".join(lines)
