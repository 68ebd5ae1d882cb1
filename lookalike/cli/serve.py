"""Serve: an index over HTTP, with a page."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from lookalike.cli._common import model_option, open_encoder, remembered

__all__ = ["serve"]


@click.command()
@click.argument("location", metavar="INDEX")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--token",
    envvar="LOOKALIKE_TOKEN",
    help="What clients must show; 'new' makes one up. Needed at addresses that other machines reach.",
)
@click.option("--open", "is_open", is_flag=True, help="Let everybody in, whoever reaches the address.")
@click.option("--allow-host", "allow_hosts", multiple=True, metavar="NAME", help="A name browsers may call it by.")
@model_option
@click.option("--writable", is_flag=True, help="Let clients add and delete.")
@click.option(
    "--uploads",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where added pictures are kept. Default: beside the index.",
)
@click.option(
    "--folder",
    "folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Show pictures below this folder, too. By default only from folders that hold indexed pictures.",
)
@click.option(
    "--allow-url",
    "fetch_hosts",
    multiple=True,
    metavar="HOST",
    help="Let clients search by a picture's URL: 'public' allows every public address, a host's name also a private "
    "one.",
)
@click.option("--record", is_flag=True, help="Keep the searches and judgements that clients ask to be kept.")
@click.option(
    "--feedback",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where they are kept. Default: beside the index.",
)
@click.option(
    "--rate", default=50.0, show_default=True, type=click.FloatRange(0), help="Requests per second and client; 0: any."
)
def serve(
    location: str,
    host: str,
    port: int,
    token: str | None,
    is_open: bool,
    allow_hosts: tuple[str, ...],
    model: str | None,
    writable: bool,
    uploads: Path | None,
    folders: tuple[Path, ...],
    fetch_hosts: tuple[str, ...],
    record: bool,
    feedback: Path | None,
    rate: float,
) -> None:
    """Serve an index: a page to search it with, and an HTTP API.

    Only this machine reaches it unless --host says otherwise. The index belongs to the server while it runs: other
    commands go through `lookalike.connect`, or wait. Stop it with Ctrl-C; requests are finished first.

    \b
    Examples:
      lookalike serve pictures.index
      lookalike serve pictures.index --record --writable
      lookalike serve http://localhost:6333/products --host 0.0.0.0 --token new
    """
    from lookalike.feedback import feedback_path
    from lookalike.index import open_index
    from lookalike.server import Settings
    from lookalike.server import serve as run

    token = secrets.token_hex(16) if token == "new" else token
    settings = Settings(
        token=token,
        open=is_open,
        host=host,
        allow_hosts=allow_hosts,
        writable=writable,
        uploads=uploads,
        folders=folders,
        fetch=bool(fetch_hosts),
        fetch_hosts=tuple(name for name in fetch_hosts if name != "public"),
        feedback=(feedback or feedback_path(location)) if record else None,
        rate=rate,
    ).checked()
    opened = open_index(location, read_only=not writable)
    try:
        encoder = open_encoder(model or remembered(opened))
        count = len(opened)

        def announce(address: str) -> None:
            shown = address + (f"#token={token}" if token else "")
            click.echo(f"{count:,} pictures of {location} at {shown}", err=True)

        run(opened, encoder, settings, port, announce)
    finally:
        opened.close()
