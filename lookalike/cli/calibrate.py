"""Calibrate: thresholds for a bundle, chosen on labelled pictures, without training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli._common import json_option, open_encoder

if TYPE_CHECKING:
    from lookalike.bundle import Bundle

# Every picture meets every other one: of more pictures, so many are drawn.
MOST = 12_000
# What the card says of thresholds stands under this, up to the next heading.
HEADING = "## Thresholds"

__all__ = ["calibrate"]


@click.command()
@click.argument("bundle", metavar="BUNDLE", type=click.Path())
@click.argument("source", metavar="PICTURES|CATALOGUE.csv", type=click.Path())
@click.option("--to", "target", required=True, metavar="BUNDLE", help="The copy with thresholds; may be BUNDLE itself.")
@click.option("--labels", metavar="HOW", help="folders, a column of the CSV file, or a list of pairs.")
@click.option(
    "--group", metavar="COLUMN", help="Pictures that show one thing, if there is a CSV file. Default: near-duplicates."
)
@click.option(
    "--far",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="The share of different pairs that “same” may accept.",
)
@click.option(
    "--unknown",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="The share of pictures of unknown classes that may be taken for known. Default: the fewest errors.",
)
@json_option
def calibrate(
    bundle: str,
    source: str,
    target: str,
    labels: str | None,
    group: str | None,
    far: float,
    unknown: float | None,
    as_json: bool,
) -> None:
    """Choose, on labelled pictures, from which cosine on two are the same, one is unknown, or one is a duplicate.

    Use pictures that the bundle has not learned from. The vectors stay the same: an index made with BUNDLE can be
    asked with the copy. `lookalike train` calibrates what it teaches, and needs no such step.

    \b
    Examples:
      lookalike calibrate default shoes --to shoes.bundle
      lookalike calibrate shop.bundle products.csv --labels kind --group product --far 0.001 --to shop.bundle
    """
    import numpy as np

    from lookalike import thresholds
    from lookalike.evaluate import groups_of
    from lookalike.images import shown
    from lookalike.labels import labelled

    encoder = open_encoder(bundle)
    found = labelled(source, labels or "folders")
    examples = found.examples
    if len(examples) > MOST:
        chosen = np.sort(np.random.default_rng(0).permutation(len(examples))[:MOST])
        click.echo(f"{MOST:,} of {len(examples):,} pictures are drawn", err=True)
        examples = [examples[row] for row in chosen]
    vectors: list[Any] = []
    kept = []
    for example, outcome in zip(examples, encoder.stream([example.path for example in examples]), strict=True):
        if outcome.error is not None:
            click.echo(f"skipped: {outcome.error}", err=True)
            continue
        vectors.append(outcome.vector)
        kept.append(example)
    paths = [example.path for example in kept]
    groups = _near_duplicates(paths) if group is None else groups_of(source, group, paths)
    chosen_ones = thresholds.calibrate(
        np.reshape(vectors, (len(kept), encoder.dim)),
        [example.label for example in kept],
        groups=groups,
        far=far,
        unknown=unknown,
    )
    document = chosen_ones.document()
    document["calibration"] = {"part": shown(Path(source).name), **document["calibration"]}
    written = _copy(encoder.bundle, target, document, thresholds.in_words(document))
    if as_json:
        click.echo(json.dumps({"bundle": str(written.path), "thresholds": document}, ensure_ascii=False))
        return
    click.echo("\n".join(thresholds.in_words(document)))
    click.echo(f"{written.name} in {target}", err=True)


def _near_duplicates(paths: Sequence[str]) -> Any:
    """The group of each picture: those that are nearly one picture are one thing."""
    import numpy as np

    from lookalike.encoder import cores
    from lookalike.images import Preprocessing
    from lookalike.splits import THUMBNAIL, duplicates

    small = Preprocessing(size=(2 * THUMBNAIL, 2 * THUMBNAIL), fit="squash")
    with ThreadPoolExecutor(cores()) as pool:
        return duplicates(np.stack(list(pool.map(small.load, paths)))) if paths else np.empty(0, dtype=np.int64)


def _copy(bundle: Bundle, target: str, document: Mapping[str, Any], told: Sequence[str]) -> Bundle:
    """The bundle with other thresholds, in its manifest and on its card."""
    from lookalike.bundle import write_bundle

    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files")}
    with tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
        folder = bundle.graph_folder(Path(scratch))
        files: dict[str, bytes | Path] = {name: folder / name for name in bundle.manifest["files"]}
        card = (folder / "README.md").read_text(encoding="utf-8") if "README.md" in files else f"# {bundle.name}\n"
        files["README.md"] = _card(card, told).encode()
        return write_bundle(target, {**manifest, "thresholds": document}, files)


def _card(card: str, told: Sequence[str]) -> str:
    """The card with these thresholds in the place of earlier ones."""
    before, heading, rest = card.partition(f"{HEADING}\n")
    after = rest[rest.find("\n## ") :] if heading and "\n## " in rest else ""
    return "\n".join([before.rstrip(), "", HEADING, "", *told, after])
