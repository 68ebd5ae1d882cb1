"""Write docs/reference/cli.md and config.md from the program itself; with --check only say whether they are up to date.

python scripts/write_reference.py
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from lookalike.cli import cli
from lookalike.training.augment import Augmentation
from lookalike.training.config import TrainConfig
from lookalike.training.losses import LOSSES, PAIR_LOSSES
from lookalike.training.miners import MINERS

FOLDER = Path(__file__).parent.parent / "docs" / "reference"


def commands() -> str:
    """The page of the command line."""
    parts = ["# The command line\n\nWritten by `make docs` from the help texts. stdout carries data, stderr progress."]
    parts.append(
        "Exit status: 0 done, 1 something went wrong (one line says what to do), 2 wrong usage, 3 trained but no "
        "better than the base, 130 interrupted."
    )
    root = cli.make_context("lookalike", [], resilient_parsing=True)
    parts.append(f"```text\n{cli.get_help(root)}\n```")
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=name, parent=root, terminal_width=100)
        parts.append(f"## lookalike {name}\n\n```text\n{command.get_help(context)}\n```")
        for inner, part in getattr(command, "commands", {}).items():
            below = click.Context(part, info_name=inner, parent=context, terminal_width=100)
            parts.append(f"## lookalike {name} {inner}\n\n```text\n{part.get_help(below)}\n```")
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """The page of the configuration of a training run."""
    parts = [
        "# The configuration of a training run",
        "Written by `make docs` from the program. A TOML file with these tables; everything but `data.root` has a "
        "default. `lookalike train CONFIG.toml --set table.key=value` changes one value. The resolved document lies in "
        "the run folder as `config.toml`.",
    ]
    top = [(name, field) for name, field in TrainConfig.model_fields.items() if not _is_table(field.annotation)]
    parts.append(_table([(name, field.default, field.description) for name, field in top]))
    for name, field in TrainConfig.model_fields.items():
        table = _table_of(field.annotation)
        if table is Augmentation:
            parts.append("## [augment]\n\n" + _paragraph(Augmentation) + "\n\n" + _augmentation())
        elif table is not None:
            rows = [(key, inner.default, inner.description) for key, inner in table.model_fields.items()]
            parts.append(f"## {_paragraph(table).replace(f'[{name}]', f'[{name}]', 1)}\n\n{_table(rows)}")
    parts.append("## Losses\n\n" + _family({**LOSSES, **PAIR_LOSSES}))
    parts.append("## Miners\n\n" + _family(MINERS))
    return "\n\n".join(parts) + "\n"


def _table_of(annotation: Any) -> Any:
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((one for one in options if one is Augmentation or _is_model(one)), None)


def _is_model(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def _is_table(annotation: Any) -> bool:
    return _table_of(annotation) is not None


def _paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _table(rows: list[tuple[str, Any, str | None]]) -> str:
    lines = ["| key | default | |", "|---|---|---|"]
    for name, default, text in rows:
        lines.append(f"| `{name}` | {_shown(default)} | {' '.join((text or 'Which of the family below.').split())} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None or value == {} or value == ():
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{part:.4g}' for part in value)}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _augmentation() -> str:
    text = (inspect.getdoc(Augmentation) or "").partition("Attributes:")[2].partition("Raises:")[0]
    said = dict(re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE))
    return _table([(field.name, field.default, said[field.name]) for field in fields(Augmentation)])


def _family(family: dict[str, Any]) -> str:
    lines = ["| kind | arguments | |", "|---|---|---|"]
    for name, kind in family.items():
        parameters = [
            p
            for p in inspect.signature(kind).parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in ("dim", "classes", "generator")
        ]
        shown = ", ".join(f"`{p.name}` {_shown(p.default)}".strip() for p in parameters)
        lines.append(f"| `{name}` | {shown} | {_paragraph(kind)} |")
    return "\n".join(lines)


def main() -> None:
    """Write or check."""
    for name, text in (("cli.md", commands()), ("config.md", configuration())):
        page = FOLDER / name
        if "--check" not in sys.argv:
            FOLDER.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/reference/{name} is out of date: run `make docs`")


if __name__ == "__main__":
    main()
