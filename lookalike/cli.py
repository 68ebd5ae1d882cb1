"""The command line: one command per verb, each a thin skin over one function.

stdout carries data, stderr progress and complaints. Exit status: 0 done, 1 a `LookalikeError` (one line that says what
to do), 2 wrong usage, 3 trained but no better than the base, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike import __version__
from lookalike.errors import ImageError, LookalikeError, MissingExtra, QueryError

if TYPE_CHECKING:
    from lookalike.catalogue import Row
    from lookalike.encoder import Encoder
    from lookalike.evaluate import Results
    from lookalike.index.base import FieldType, Hit, Index, Payload
    from lookalike.indexing import Summary
    from lookalike.metrics import Interval
    from lookalike.search import Searcher

__all__ = ["main"]

# Exit status of a training that did not help.
NO_BETTER = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lookalike")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Find, in your own pictures, what looks like this.

    \b
    lookalike index ~/Pictures --to pictures.index
    lookalike search pictures.index some.jpg --html found.html
    """
    context.obj = debug


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit. `args` defaults to those of the process."""
    # Pillow warns of odd metadata in pictures it reads well; whoever indexes thousands can do nothing about it.
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    try:
        cli.main(args=None if args is None else list(args), prog_name="lookalike", standalone_mode=False)
    except LookalikeError as error:
        if "--debug" in (sys.argv[1:] if args is None else args):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        sys.stdout = None
        sys.exit(0)


model_option = click.option(
    "--model", metavar="BUNDLE", help="Encoder bundle: a folder or .zip. Default: the one the index was made with."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
where_option = click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Only items that fit, e.g. category=shoes, 'price<50', 'year>=2012'. Give it again for further conditions; "
    "the same field with = again means either value.",
)


@cli.command()
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
    encoder = _encoder(model)
    listed = list(rows(pictures))
    meta = {"encoder": encoder.describe(), "lookalike": __version__}
    target = open_index(location, dim=encoder.dim, meta=meta, fields=_fields(listed), quantization=quantize)
    with closing(target), _progress(len(listed)) as progress:
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


@cli.command()
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
    with _searcher(location, model, rerank == "auto") as searcher:
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
    for label, _, hits in answers:
        _print_hits(label if len(queries) > 1 else None, hits, as_json, label)
    if answers and (sheet or show):
        _write_sheet(answers, sheet or "lookalike.html", location, show)
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
    _write_text(file, contact_sheet(strips, f"Lookalikes in {location}", f"{len(strips)} questions, cosine similarity"))
    if show:
        webbrowser.open(Path(file).resolve().as_uri())


def _write_text(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LookalikeError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"wrote {file}", err=True)


@cli.command()
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
        _write_text(sheet, contact_sheet(strips, f"Near-duplicates in {location}", f"cosine ≥ {cutoff:.3f}"))


def _duplicate_threshold(opened: Index) -> float:
    """The threshold that was calibrated for the encoder of this index."""
    thresholds = _encoder(_remembered(opened)).bundle.manifest.get("thresholds", {})
    if "duplicate" not in thresholds:
        raise QueryError("the bundle of this index carries no calibrated threshold: give --threshold, e.g. 0.95")
    return float(thresholds["duplicate"])


@cli.command()
@click.argument("source", metavar="CONFIG.toml|PICTURES", type=click.Path())
@click.option("--to", "target", required=True, metavar="BUNDLE", help="Where the encoder bundle goes.")
@click.option("--labels", metavar="HOW", help="folders, a column of the CSV file, or a file of pairs or triplets.")
@click.option("--category", metavar="COLUMN", help="The column of the super-class, if PICTURES is a CSV file.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="The longest it may take.")
@click.option(
    "--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Change one value of the configuration."
)
@click.option("--run", "folder", metavar="FOLDER", type=click.Path(), help="The run folder. Default: BUNDLE.run")
@json_option
def train(
    source: str,
    target: str,
    labels: str | None,
    category: str | None,
    minutes: float | None,
    overrides: tuple[str, ...],
    folder: str | None,
    as_json: bool,
) -> None:
    """Teach an encoder what is alike, say whether it got better, and write it as a bundle.

    With a configuration it does what that says. With PICTURES (a folder with a folder per class, or a CSV file) it
    chooses a configuration that fits them, and writes it into the run folder. Interrupt it and run it again: it goes
    on where it was. Exit status: 0 better than the base, 3 no better (the bundle is written all the same).

    \b
    Examples:
      lookalike train shoes --to shoes.bundle --minutes 10
      lookalike train products.csv --labels kind --to products.bundle
      lookalike train configs/omniglot.toml --set data.root=images_background --to omniglot.bundle
    """
    _need_training()
    from lookalike.training.export import export_run
    from lookalike.training.loop import train as run

    place = Path(folder or f"{target.removesuffix('.zip').rstrip('/')}.run")
    config = _train_config(source, labels, category, minutes, overrides, place)
    with _training_progress() as watch:
        outcome = run(config, place, say=lambda line: click.echo(line, err=True), watch=watch)
    if not _is_first_process():
        return
    bundle = export_run(place, target)
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


def _train_config(
    source: str,
    labels: str | None,
    category: str | None,
    minutes: float | None,
    overrides: Sequence[str],
    place: Path,
) -> Any:
    """The configuration of a file, the one that a run in the same place began with, or one that fits the pictures."""
    from lookalike.training.config import read_config

    changes = [*overrides, *([f"loop.minutes={float(minutes)}"] if minutes else [])]
    if source.lower().endswith(".toml"):
        if labels is not None:
            changes.append(f"data.labels={json.dumps(labels)}")
        if category is not None:
            changes.append(f"data.category={json.dumps(category)}")
        return read_config(source, changes)
    from lookalike.training.auto import choose

    return choose(source, labels or "folders", category=category, overrides=changes)


def _need_training() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "pydantic", "safetensors") if find_spec(name) is None]
    if missing:
        raise MissingExtra("training", missing[0], "train")


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


@cli.command()
@click.argument("source", metavar="RUN|timm:NAME|torchvision:NAME")
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
    """
    _need_training()
    from lookalike.training.export import export_network, export_run

    if (Path(source) / "config.toml").is_file():
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


@cli.command()
@click.argument("source", metavar="PICTURES|CATALOGUE.csv", type=click.Path())
@click.option(
    "--protocol",
    default="retrieval",
    show_default=True,
    metavar="NAME",
    help="retrieval, query-gallery, episodes, lake or pairs.",
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
@click.option("--maker", metavar="REGEX", help="Finds in a file name, as its group, who made the picture.")
@json_option
def evaluate(source: str, model: str | None, other: str | None, as_json: bool, **options: Any) -> None:
    """Measure how well an encoder tells what is alike.

    Each number is a mean over questions with its 95 % interval. Protocols: retrieval, each picture asks all others;
    query-gallery, some ask and others are asked (a column role, or folders query and gallery); episodes, which of
    --way classes, --shot pictures of each being known (with --maker, known ones by one, asked by another); lake, the
    fixed one-shot runs (run01/class_labels.txt …); pairs, the same or not (LFW's pairs.txt, or a CSV file with
    left,right,same).

    \b
    Examples:
      lookalike evaluate shoes --model shoes.bundle --compare default
      lookalike evaluate products.csv --labels kind --group product
      lookalike evaluate images_evaluation --protocol episodes --way 20 --maker '_(\\d+)'
    """
    from lookalike.evaluate import differences
    from lookalike.evaluate import evaluate as judge

    found = [judge(_encoder(name), source, **options) for name in ([model, other] if other else [model])]
    ours = found[0]
    for line in (*(f"skipped: {error}" for error in ours.unreadable), *ours.notes):
        click.echo(line, err=True)
    document, texts = ours.document(), [str(one) for one in found]
    for theirs in found[1:]:
        gaps = differences(ours, theirs)
        compared = {name: asdict(gap) for name, gap in gaps.items()}
        document["compared"] = {"theirs": theirs.document(), "differences": compared}
        texts.append(_comparison(ours, theirs, gaps))
    click.echo(json.dumps(document, ensure_ascii=False) if as_json else "\n\n".join(texts))


def _comparison(ours: Results, theirs: Results, gaps: dict[str, Interval]) -> str:
    """A line for each measure: which is better, and by how much."""
    from lookalike.evaluate import title

    same = ours.encoder["name"] == theirs.encoder["name"]
    one, two = (str(found.encoder["fingerprint" if same else "name"]) for found in (ours, theirs))
    lines = []
    for name, gap in gaps.items():
        verdict = "better than" if gap.low > 0 else "worse than" if gap.high < 0 else "no better than"
        size = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        lines.append(f"{one} {verdict} {two}{' by' if gap.low > 0 or gap.high < 0 else ':'} {size} {title(name)}")
    return "\n".join(lines)


@cli.command()
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
    bundle = _encoder(None if place == "default" else place).bundle
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


def parse_conditions(conditions: Sequence[str]) -> Payload | None:
    """``field=value``, ``field<number`` … to the filter language.

    The shell knows no types, so ``year=2012`` means the number or the text, and ``new=true`` the truth value or the
    text. Raises QueryError on anything else.
    """
    where: Payload = {}
    for condition in conditions:
        match = re.fullmatch(r"([^<>=]+?)\s*(<=|>=|<|>|=)\s*(.+)", condition.strip(), re.DOTALL)
        if not match:
            raise QueryError(f"cannot read condition {condition!r}: write field=value or field>=number")
        name, sign, value = match.groups()
        kind = "any_of" if sign == "=" else "range"
        spec = where.setdefault(name, {kind: [] if sign == "=" else {}})
        if kind not in spec:
            raise QueryError(f"conditions on {name!r} mix = with < or >: use one kind per field")
        if sign == "=":
            spec["any_of"] += _readings(value)
            continue
        try:
            spec["range"][{"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}[sign]] = float(value)
        except ValueError:
            raise QueryError(f"condition {condition!r} compares with a number, got {value!r}") from None
    return where or None


def _readings(value: str) -> list[str | int | bool]:
    readings: list[str | int | bool] = [value]
    if re.fullmatch(r"[+-]?\d{1,18}", value):
        readings.append(int(value))
    if value in ("true", "false"):
        readings.append(value == "true")
    return readings


def _encoder(model: str | None) -> Encoder:
    from lookalike.encoder import Encoder

    return Encoder.default() if model in (None, "default") else Encoder.load(str(model))


def _remembered(opened: Index) -> str | None:
    """The bundle an index was made with."""
    encoder = opened.meta.get("encoder")
    return encoder["bundle"] if encoder else None


@contextmanager
def _searcher(location: str, model: str | None, rerank: bool) -> Iterator[Searcher]:
    from lookalike.index import open_index
    from lookalike.rerank import Reranking
    from lookalike.search import Searcher

    with closing(open_index(location, read_only=True)) as opened:
        yield Searcher(_encoder(model or _remembered(opened)), opened, reranking=None if rerank else Reranking())


def _fields(listed: Sequence[Row]) -> dict[str, FieldType]:
    """The payload columns worth an index of their own, with their types: all that hold one kind of plain value."""
    types: dict[str, set[type]] = {}
    for row in listed:
        for name, value in row.payload.items():
            types.setdefault(name, set()).add(type(value))
    names: dict[type, FieldType] = {str: "keyword", int: "integer", float: "float", bool: "bool"}
    return {name: names[next(iter(kinds))] for name, kinds in types.items() if len(kinds) == 1 and kinds <= set(names)}


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Summary, int], None] | None]:
    """A bar with pictures per second and the time left on stderr, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, rate="")
        began = time.monotonic()

        def advance(summary: Summary, seen: int) -> None:
            rate = summary.encoded / max(time.monotonic() - began, 1e-3)
            note = f"{rate:,.0f} pictures/s" + (f", {len(summary.skipped)} skipped" if summary.skipped else "")
            bar.update(task, completed=seen, rate=note)

        yield advance
