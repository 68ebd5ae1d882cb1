"""The free keys of a table as the arguments of a class: what is wrong with them, and the nearest valid name."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lookalike.training.config.tables import Kind
from lookalike.training.losses import LOSSES, PAIR_LOSSES
from lookalike.training.miners import MINERS

__all__ = ["FAMILIES", "closest", "did_you_mean", "made", "option_problems", "parameter_types"]

# What a table of free keys may name, by the table.
FAMILIES: dict[str, dict[str, Any]] = {"loss": LOSSES | PAIR_LOSSES, "miner": MINERS}


def made(where: str, table: Kind, known: Mapping[str, Any] | None = None) -> tuple[list[str], Any]:
    """What is wrong with a loss or miner, and the thing itself where nothing is.

    Args:
        where: the name of the table, as in `FAMILIES`.
        table: names the thing, and gives its options.
        known: further arguments, for those that take them; a table cannot give these.
    """
    family, known = FAMILIES[where], known or {}
    if table.kind not in family:
        return [f"{where}.kind {table.kind!r} is unknown: {did_you_mean(table.kind, family)}"], None
    kind = family[table.kind]
    types = parameter_types(kind)
    wrong = option_problems(where, table.options, {name: type_ for name, type_ in types.items() if name not in known})
    problems = list(wrong.values())
    options = {name: value for name, value in table.options.items() if name not in wrong}
    given = {name: value for name, value in known.items() if name in types}
    while True:
        try:
            thing = kind(**options, **given)
            return problems, None if problems else thing
        except (TypeError, ValueError) as error:
            # A message begins with the argument that it is about: without that, the next one may show.
            problems.append(f"{where}.{error}")
            if options.pop(str(error).partition(" ")[0], None) is None:
                return problems, None


def option_problems(where: str, options: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, str]:
    """The options that are unknown or of a wrong type, and what to say of each.

    Args:
        where: what comes before their names.
        options: by name.
        types: those there are, as `parameter_types`.
    """
    found = {}
    for name, value in options.items():
        if name not in types:
            found[name] = f"unknown key {where}.{name}: {did_you_mean(name, types) if types else 'it takes none'}"
            continue
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            found[name] = f"{where}.{name}: {error.errors()[0]['msg']}, got {value!r}"
    return found


def parameter_types(kind: Any) -> dict[str, Any]:
    """Parameters of a constructor with their annotations."""
    hints = typing.get_type_hints(kind.__init__)
    return {name: hints.get(name, Any) for name in inspect.signature(kind).parameters}


def did_you_mean(name: str, valid: Collection[str]) -> str:
    """The nearest valid name as a question; all of them, where none is near."""
    close = closest(name, valid)
    return f"did you mean {close!r}?" if close else f"there are {', '.join(sorted(valid))}"


def closest(name: str, valid: Collection[str]) -> str | None:
    """The valid name that `name` is most likely a slip for; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=0.4)), None)
