"""The command line: one command per verb, each a thin skin over one function.

stdout carries data, stderr progress and complaints. Exit status: 0 done, 1 a `LookalikeError` (one line that says what
to do), 2 wrong usage, 3 trained but no better than the base, 130 interrupted.

`_common` holds what commands share; a module for each group of verbs holds the commands.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click

from lookalike import __version__
from lookalike.cli import (
    calibrate,
    catalogue,
    classifiers,
    compare,
    feedback,
    find,
    judge,
    name,
    sell,
    serve,
    show,
    teach,
    words,
)
from lookalike.errors import LookalikeError

__all__ = ["cli", "main"]


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


for command in (
    find.index,
    find.search,
    find.duplicates,
    name.label,
    sell.recommend,
    words.tags,
    teach.train,
    teach.export,
    judge.evaluate,
    show.report,
    show.explain,
    classifiers.classifiers,
    calibrate.calibrate,
    catalogue.catalogue,
    compare.compare,
    serve.serve,
    feedback.feedback,
    find.info,
):
    cli.add_command(command)


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
    except OSError as error:  # a full disk, a folder without permission: the system's own words say which
        if "--debug" in (sys.argv[1:] if args is None else args):
            raise
        click.echo(f"error: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        sys.exit(1)
