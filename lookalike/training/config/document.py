"""TOML in, every problem at once, the resolved TOML out.

Where a value is wrong, its default takes its place, and the others are checked all the same. What then depends on a
value that nobody asked for is not said: see `_sure`.
"""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from lookalike.errors import ConfigError
from lookalike.training.augment import Augmentation
from lookalike.training.config.checks import Found, impossible, missing
from lookalike.training.config.options import FAMILIES, closest, did_you_mean, parameter_types
from lookalike.training.config.tables import TrainConfig

__all__ = ["read_config", "write_config"]


def read_config(
    source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = (), *, to_run: bool = True
) -> TrainConfig:
    """Read and check a configuration.

    Args:
        source: a TOML file, or its parsed content.
        overrides: ``table.key=value`` each, the value as TOML; what is no TOML is taken as text, so that
            ``data.root=/my pictures`` needs no quotes.
        to_run: look for what the run needs of this machine, too (`checks.missing`). False reads the configuration of a
            run that is over, perhaps on another machine.

    Raises:
        ConfigError: with every problem found.
    """
    where = "configuration" if isinstance(source, Mapping) else str(source)
    document = dict(source) if isinstance(source, Mapping) else _parsed(Path(source))
    problems: list[str] = []
    for override in overrides:
        document = _overridden(document, override, problems)
    config, unsure = _validated(document, problems)
    problems += _sure(impossible(config), unsure)
    if to_run:
        problems += _sure(missing(config), unsure)
    if problems:
        raise ConfigError(problems, where)
    return config


def write_config(config: TrainConfig) -> str:
    """The resolved configuration as TOML, every default written out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not set is left out."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"is not TOML: {error}"], str(path)) from error


def _overridden(document: dict[str, Any], override: str, problems: list[str]) -> dict[str, Any]:
    """The document with one value changed; as it was where that cannot be, which then goes to `problems`."""
    name, sign, text = override.partition("=")
    *tables, key = name.strip().split(".")
    if not sign or not key:
        problems.append(f"--set {override!r}: write table.key=value")
        return document
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if key == "kind" and len(tables) == 1 and tables[0] in FAMILIES:
        return {**document, tables[0]: {"kind": value}}  # the other keys belonged to the kind before
    top = dict(document)
    place = top
    for number, table in enumerate(tables, 1):
        inner = place.get(table)
        may_be_table = _holds_keys(tables[:number])
        if not isinstance(inner, Mapping | None) or not may_be_table:
            path = ".".join(tables[:number])
            advice = " in the configuration" if may_be_table else f": write {path}=value"
            problems.append(f"--set {override!r}: {path} is no table{advice}")
            return document
        place[table] = dict(inner or {})
        place = place[table]
    place[key] = value
    return top


def _validated(document: Mapping[str, Any], problems: list[str]) -> tuple[TrainConfig, set[str]]:
    """The tables, with the default of what is wrong in them; what that is goes to `problems`.

    Also what is unsure for that reason: the keys and tables with defaults that were not asked for, and those that an
    unknown name may have meant.
    """
    tables = {name: dict(table) if isinstance(table, Mapping) else table for name, table in document.items()}
    unsure: set[str] = set()
    if isinstance(tables.get("augment"), dict):  # no table of ours: a class that stands on its own
        tables["augment"] = _augmentation(tables["augment"], problems)
    for name, family in FAMILIES.items():
        if isinstance(tables.get(name), dict):
            misspelt = _misspelt(tables[name], _fields(_table_at([name])), family)
            tables[name] = {key: value for key, value in tables[name].items() if key not in misspelt}
            problems += [f"unknown key {name}.{key}: did you mean {field!r}?" for key, field in misspelt.items()]
            unsure |= {f"{name}.{field}" for field in misspelt.values()}
    try:
        return TrainConfig.model_validate(_with_tuples(tables)), unsure
    except ValidationError as error:
        found = error.errors()
    problems += _in_words(found)
    for one in found:
        *outer, key = [str(part) for part in one["loc"][:2]]
        (tables[outer[0]] if outer else tables).pop(key, None)
        meant = closest(key, _fields(_table_at(outer))) if one["type"] == "extra_forbidden" else key
        if meant is not None:
            unsure.add(".".join([*outer, meant]))
    return TrainConfig.model_validate(_with_tuples(tables)), unsure


def _augmentation(table: Mapping[str, Any], problems: list[str]) -> Augmentation:
    """[augment]: unknown names, then wrong types of the others, then what these say together."""
    names = _fields(Augmentation)
    kept = {name: value for name, value in table.items() if name in names}
    problems += [f"unknown key augment.{name}: {did_you_mean(name, names)}" for name in table if name not in names]
    try:
        try:
            return TypeAdapter(Augmentation).validate_python(_with_tuples(kept))
        except ValidationError as error:
            found = error.errors()
            problems += _in_words([{**one, "loc": ("augment", *one["loc"])} for one in found])
            kept = {name: value for name, value in kept.items() if name not in {one["loc"][0] for one in found}}
            TypeAdapter(Augmentation).validate_python(_with_tuples(kept))
    except ConfigError as error:
        problems += [f"augment.{problem}" for problem in error.problems]
    return Augmentation()


def _misspelt(table: Mapping[str, Any], fields: Sequence[str], family: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a table of free keys that can only mean one of its own, and which: no loss has an option "kindd"."""
    strange = [key for key in table if key not in fields]
    if not strange or set(fields) <= table.keys():
        return {}
    options = {name for kind in family.values() for name in parameter_types(kind)}
    meant = {key: closest(key, [*fields, *options]) or "" for key in strange if key not in options}
    return {key: field for key, field in meant.items() if field in fields and field not in table}


def _in_words(errors: Sequence[Any]) -> list[str]:
    """Pydantic's complaints as lines of ours: where, what, and the nearest valid name. One line for each place."""
    lines: dict[str, list[str]] = {}
    values = {}
    for error in errors:
        # What follows table and key is a position in a list, or which of several types was tried.
        where = [str(part) for number, part in enumerate(error["loc"]) if number < 2 or isinstance(part, int)]
        if error["type"] == "extra_forbidden":
            *outer, key = where
            lines[f"unknown key {'.'.join(where)}"] = [did_you_mean(key, _fields(_table_at(outer)))]
            continue
        place = ".".join(where)
        said = f"{error['msg'][:1].lower()}{error['msg'][1:]}"
        values[place] = "" if error["type"] in ("missing", "missing_argument") else f", got {error['input']!r}"
        lines.setdefault(place, []).append(said)
    return [f"{place}: {', or '.join(said)}{values.get(place, '')}" for place, said in lines.items()]


def _sure(found: Iterable[Found], unsure: Collection[str]) -> list[str]:
    """The problems that are about nothing unsure: neither a key, nor its table, nor, of a table, any of its keys."""
    tables = {name.partition(".")[0] for name in unsure}

    def judged(key: str) -> bool:
        return not {key, key.partition(".")[0]} & set(unsure) and ("." in key or key not in tables)

    return [problem for keys, problem in found if all(map(judged, keys.split()))]


def _holds_keys(path: Sequence[str]) -> bool:
    """Whether this may be a table: a table of ours, one of free keys, or a name nobody knows, of which more is said."""
    annotation = _table_at(path)
    return annotation is None or bool(_fields(annotation)) or typing.get_origin(annotation) is dict


def _table_at(path: Sequence[str]) -> Any:
    """What is declared there: a table, or the type of a value; None for what is not."""
    found: Any = TrainConfig
    for name in path:
        field = getattr(found, "model_fields", {}).get(name)
        if field is None:
            return None
        options = [one for one in typing.get_args(field.annotation) if hasattr(one, "model_fields")]
        found = options[0] if options else field.annotation
    return found


def _fields(model: Any) -> list[str]:
    return list(getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {}))


def _with_tuples(value: Any) -> Any:
    """TOML has lists; what is kept here does not change."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value
