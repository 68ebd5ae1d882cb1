"""Teach: train, export."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lookalike.cli._common import json_option, need_training, progress_bar

__all__ = ["NO_BETTER", "export", "train"]

# Exit status of a training that did not help.
NO_BETTER = 3


@click.command()
@click.argument("source", metavar="[CONFIG.toml|PICTURES]", type=click.Path(), required=False)
@click.option("--to", "target", required=True, metavar="BUNDLE", help="Where the encoder bundle goes.")
@click.option("--captions", metavar="FILE.csv", help="Teach words: captions, titles of a catalogue, or clicks.")
@click.option("--feedback", metavar="INDEX", help="Learn from the clicks and judgements recorded beside an index.")
@click.option(
    "--labels",
    metavar="HOW",
    help="folders, a column of the CSV file, a file of pairs or triplets, or none: nothing but the pictures.",
)
@click.option("--category", metavar="COLUMN", help="The column of the super-class, if PICTURES is a CSV file.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="The longest it may take.")
@click.option(
    "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Change one value of the configuration."
)
@click.option("--run", "folder", metavar="FOLDER", type=click.Path(), help="The run folder. Default: BUNDLE.run")
@json_option
def train(
    source: str | None,
    target: str,
    captions: str | None,
    feedback: str | None,
    labels: str | None,
    category: str | None,
    minutes: float | None,
    overrides: tuple[str, ...],
    folder: str | None,
    as_json: bool,
) -> None:
    """Teach an encoder what is alike, say whether it got better, and write it as a bundle.

    With a configuration it does what that says. With PICTURES (a folder with a folder per class, or a CSV file) it
    chooses a configuration that fits them, and writes it into the run folder. With --captions it learns which words
    go with which pictures, beside an encoder that stays as it is (text.encoder); its base is a bag of words. With
    --feedback it learns from what people took among what they were shown; if that is better, the index is made anew
    with the new encoder and swapped. Interrupt it and run it again: it goes on where it was. Exit status: 0 better
    than the base, 3 no better (the bundle is written all the same).

    \b
    Examples:
      lookalike train shoes --to shoes.bundle --minutes 10
      lookalike train products.csv --labels kind --to products.bundle
      lookalike train configs/omniglot.toml --set data.root=images_background --to omniglot.bundle
      lookalike train --captions captions.csv --to words.bundle
      lookalike train --feedback pictures.index --to clicked.bundle
    """
    need_training()
    if feedback is not None:
        if any((source, captions, labels, category, minutes, overrides, folder)):
            raise click.UsageError("--feedback brings all it needs: it goes with --to and --json alone")
        _train_on_feedback(feedback, target, as_json)
        return
    from lookalike.training.export import export_run
    from lookalike.training.export_words import export_towers
    from lookalike.training.loop import train as train_encoder
    from lookalike.training.towers import train_towers

    place = Path(folder or f"{target.removesuffix('.zip').rstrip('/')}.run")
    config = _train_config(source, captions, labels, category, minutes, overrides)
    run = train_towers if config.text.captions else train_encoder
    with _training_progress() as watch:
        outcome = run(config, place, say=lambda line: click.echo(line, err=True), watch=watch)
    if not _is_first_process():
        return
    bundle = export_towers(place, target) if config.text.captions else export_run(place, target)
    facts = {
        "bundle": str(bundle.path),
        "run": str(place),
        "steps": outcome.steps,
        "minutes": round(outcome.minutes, 2),
    }
    verdict = outcome.verdict
    if as_json:
        document = None if verdict is None else verdict.document()
        click.echo(json.dumps({**facts, "verdict": document}, ensure_ascii=False))
    else:
        click.echo(str(verdict) if verdict is not None else "nothing was held out: there is no verdict")
        click.echo(f"{bundle.name} in {target}, run folder {place}")
    if verdict is not None and not verdict.better:
        sys.exit(NO_BETTER)


def _train_on_feedback(location: str, target: str, as_json: bool) -> None:
    from lookalike.training.adopt import adopt

    with progress_bar(None) as progress:
        done = adopt(location, target, progress=progress)
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    for error in done.rebuilt.skipped if done.rebuilt else ():
        click.echo(f"skipped {error.path}: {error.reason}", err=True)
    if as_json:
        facts = {"bundle": str(done.bundle.path), "index": location, "adopted": done.rebuilt is not None}
        before = None if done.before is None else str(done.before)
        click.echo(json.dumps({**facts, "before": before, "verdict": done.learned.document()}, ensure_ascii=False))
    else:
        click.echo(str(done.learned))
        adopted = f"{location} is made anew with it; the index from before is {done.before}"
        click.echo(f"{target}: {adopted if done.rebuilt else f'{location} stays as it is'}")
    if not done.learned.better:
        sys.exit(NO_BETTER)


def _train_config(
    source: str | None,
    captions: str | None,
    labels: str | None,
    category: str | None,
    minutes: float | None,
    overrides: Sequence[str],
) -> Any:
    """The configuration of a file, or one that fits the pictures."""
    from lookalike.training.config import read_config

    changes = [*overrides, *([f"loop.minutes={float(minutes)}"] if minutes else [])]
    if captions is not None:
        if labels is not None or category is not None or (source and not source.lower().endswith(".toml")):
            raise click.UsageError("--captions brings its own pictures: it goes with a configuration at most")
        if source is None:
            from lookalike.training.auto import choose_words

            return choose_words(captions, changes)
        return read_config(source, [*changes, "text.captions=true", f"data.root={json.dumps(captions)}"])
    if source is None:
        raise click.UsageError("give a configuration or pictures, or --captions")
    if source.lower().endswith(".toml"):
        if labels is not None:
            changes.append(f"data.labels={json.dumps(labels)}")
        if category is not None:
            changes.append(f"data.category={json.dumps(category)}")
        return read_config(source, changes)
    from lookalike.training.auto import choose

    return choose(source, labels or "folders", category=category, overrides=changes)


def _is_first_process() -> bool:
    """Whether this is the one of torchrun's processes that writes."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _training_progress() -> Iterator[Callable[[Any], None] | None]:
    """A bar with loss, active triplets, the last validation and the time left, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, note="")

        def advance(report: Any) -> None:
            active = f", {100 * report.active:.0f} % active" if report.active is not None else ""
            score = f", R@1 {report.r_at_1:.3f}" if report.r_at_1 is not None else ""
            note = (
                f"step {report.step:,}, loss {report.loss:.3f}{active}{score}, {report.seconds_left / 60:.1f} min left"
            )
            bar.update(task, completed=report.progress, note=note)

        yield advance


@click.command()
@click.argument("source", metavar="RUN|timm:NAME|torchvision:NAME|open_clip:NAME[/WEIGHTS]|transformers:FOLDER")
@click.option("--to", "target", required=True, metavar="BUNDLE", help="Where the encoder bundle goes.")
@click.option("--weights", metavar="FILE", help="Weights of a named network: a file, a URL, or hub.")
@click.option("--pictures", metavar="PICTURES", type=click.Path(), help="Pictures to check the graph with.")
@click.option("--size", type=click.IntRange(8, 4096), help="Side in pixels to serve a run at. Default: as trained.")
@json_option
def export(
    source: str, target: str, weights: str | None, pictures: str | None, size: int | None, as_json: bool
) -> None:
    """Write a trained run, or a network by name, as an encoder bundle.

    The graph is compared with the network on 64 pictures (of the run, or of --pictures), and refused if they
    disagree.

    \b
    Examples:
      lookalike export shoes.bundle.run --to shoes.bundle
      lookalike export timm:resnet18 --weights resnet18.safetensors --to resnet18.bundle
      lookalike export open_clip:ViT-B-32 --weights clip.safetensors --to clip.bundle
    """
    need_training()
    from lookalike.training.export import export_network, export_run
    from lookalike.training.export_words import export_clip, export_towers, is_clip, is_towers

    if (is_towers(source) or is_clip(source)) and size is not None:
        raise click.UsageError("--size goes with a run of an encoder; towers are served at the size of theirs")
    if is_towers(source):
        if weights is not None:
            raise click.UsageError("--weights goes with a network's name; a run has its own")
        bundle = export_towers(source, target, pictures)
    elif is_clip(source):
        bundle = export_clip(source, target, weights=weights, pictures=pictures)
    elif (Path(source) / "config.toml").is_file():
        if weights is not None:
            raise click.UsageError("--weights goes with a network's name; a run has its own")
        bundle = export_run(source, target, pictures=pictures, size=None if size is None else (size, size))
    else:
        if size is not None:
            raise click.UsageError("--size goes with a run; a network by name is served at its own size")
        bundle = export_network(source, target, weights=weights, pictures=pictures)
    facts = {"bundle": str(bundle.path), "name": bundle.name, "dim": bundle.dim, "fingerprint": bundle.fingerprint}
    check = bundle.manifest["check"]
    if as_json:
        click.echo(json.dumps({**facts, "check": check}, ensure_ascii=False))
        return
    click.echo(
        f"{bundle.name} in {target}: {bundle.dim} numbers, lowest cosine to PyTorch {check['lowest_cosine']:.6f}"
    )
