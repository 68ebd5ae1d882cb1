"""What the commands share: options, opening encoders and indexes, conditions, progress."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lookalike.errors import LookalikeError, MissingExtra, QueryError

if TYPE_CHECKING:
    from lookalike.catalogue import Row
    from lookalike.encoder import Encoder
    from lookalike.index.base import FieldType, Index, Payload
    from lookalike.indexing import Summary
    from lookalike.search import Searcher

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


def write_text(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LookalikeError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"wrote {file}", err=True)


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


def payload_fields(listed: Sequence[Row]) -> dict[str, FieldType]:
    """The payload columns worth an index of their own, with their types: all that hold one kind of plain value."""
    types: dict[str, set[type]] = {}
    for row in listed:
        for name, value in row.payload.items():
            types.setdefault(name, set()).add(type(value))
    names: dict[type, FieldType] = {str: "keyword", int: "integer", float: "float", bool: "bool"}
    return {name: names[next(iter(kinds))] for name, kinds in types.items() if len(kinds) == 1 and kinds <= set(names)}


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[Summary, int], None] | None]:
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
