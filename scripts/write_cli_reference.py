"""Write docs/reference/cli.md from the commands' own help texts; with --check only say whether it is up to date.

python scripts/write_cli_reference.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lookalike.cli import cli

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"


def reference() -> str:
    """The page."""
    parts = ["# The command line\n\nWritten by `make docs` from the help texts. stdout carries data, stderr progress."]
    parts.append(
        "Exit status: 0 done, 1 something went wrong (one line says what to do), 2 wrong usage, 130 interrupted."
    )
    root = cli.make_context("lookalike", [], resilient_parsing=True)
    parts.append(f"```text\n{cli.get_help(root)}\n```")
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=name, parent=root, terminal_width=100)
        parts.append(f"## lookalike {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write or check."""
    text = reference()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/reference/cli.md is out of date: run `make docs`")
        return
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
