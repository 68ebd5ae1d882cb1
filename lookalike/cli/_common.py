"""What the commands share: options, opening encoders and indexes, conditions, progress."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike.errors import LookalikeError, MissingExtra, QueryError

if TYPE_CHECKING:
    from lookalike.catalogue import Row
    from lookalike.encoder import Encoder
    from lookalike.index.base import FieldType, Index, Payload
    from lookalike.indexing import Summary
    from lookalike.search import Searcher
    from lookalike.tables import Problems

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
map_option = click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="NAME=COLUMN,...",
    help="What columns of a catalogue are: image, id and category, where they are called otherwise, and other names "
    "for others; e.g. id=asin,image=imUrl,category=categories,title=name. An empty column says that there is none.",
)


def parse_mapping(texts: Sequence[str]) -> dict[str, str]:
    """``name=column,name=column`` as a mapping. Raises QueryError on anything else."""
    mapping: dict[str, str] = {}
    for part in ",".join(texts).split(",") if texts else ():
        name, sign, column = (piece.strip() for piece in part.partition("="))
        if not sign or not name or name in mapping:
            raise QueryError(f"--map takes NAME=COLUMN, each name once, got {part!r}")
        mapping[name] = column
    return mapping


def say_problems(problems: Problems) -> None:
    for sentence in problems.sentences():
        click.echo(f"passed over {sentence}", err=True)


def write_text(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LookalikeError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"wrote {file}", err=True)


def write_json(file: str, document: Any) -> None:
    """As text that people can read; but a name that is no valid text needs escapes."""
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(document, indent=1) + "\n"
    write_text(file, text)


def command_line() -> str:
    """The running command: what was given, no defaults, and of whole paths the last part: not where they lay."""
    context = click.get_current_context()
    words = context.command_path.split()
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        given = context.params[name]
        values = list(given) if isinstance(given, tuple) else [given]
        if isinstance(parameter, click.Argument):
            words += map(str, values)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0] if given else parameter.secondary_opts[0])
        else:
            words += [word for value in values for word in (parameter.opts[0], str(value))]
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in words)


def need_training() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "pydantic", "safetensors") if find_spec(name) is None]
    if missing:
        raise MissingExtra("training", missing[0], "train")


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


def open_encoder(model: str | None) -> Encoder:
    from lookalike.encoder import Encoder

    return Encoder.default() if model in (None, "default") else Encoder.load(str(model))


def remembered(opened: Index) -> str | None:
    """The bundle an index was made with."""
    encoder = opened.meta.get("encoder")
    return encoder["bundle"] if encoder else None


@contextmanager
def open_searcher(location: str, model: str | None, rerank: bool) -> Iterator[Searcher]:
    from lookalike.index import open_index
    from lookalike.rerank import Reranking
    from lookalike.search import Searcher

    with closing(open_index(location, read_only=True)) as opened:
        yield Searcher(open_encoder(model or remembered(opened)), opened, reranking=None if rerank else Reranking())


def payload_fields(listed: Iterable[Row]) -> tuple[int, dict[str, FieldType]]:
    """How many rows there are, and the payload columns worth an index of their own, with their types.

    Those are all that hold one kind of plain value, or lists of one kind.
    """
    count, types = 0, defaultdict[str, set[type]](set)
    for row in listed:
        count += 1
        for name, value in row.payload.items():
            types[name].update({type(inner) for inner in value} if isinstance(value, list) else {type(value)})
    names: dict[type, FieldType] = {str: "keyword", int: "integer", float: "float", bool: "bool"}
    fields = {
        name: names[next(iter(kinds))] for name, kinds in types.items() if len(kinds) == 1 and kinds <= set(names)
    }
    return count, fields


@contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[Summary, int], None] | None]:
    """A bar with pictures per second and, where `total` is known, the time left; on stderr, if that is a terminal."""
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
