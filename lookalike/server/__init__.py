"""The HTTP server: an API of one index below /v1, and the page that uses it.

::

    security     the door: Host, Origin, token, rate, headers of every answer
    app          routes, deadlines, errors
    calls        one request, read within limits and checked
    operations   the table of what there is
    endpoints    who answers
    openapi      the same table, as a document
    schemas      what requests and answers look like
    service      what endpoints share
    batching     pictures of all clients through one encoder; lanes of threads
    studies      what is computed over the whole index
    thumbnails   pictures, within the indexed folders, encoded anew
    gauges       numbers for Prometheus
    replies      JSON, and the one shape of errors
    settings     what may be done and how much of it

It binds to this machine alone unless told otherwise, sends nothing anywhere, and logs neither questions nor addresses.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from lookalike.errors import LookalikeError, MissingExtra
from lookalike.server.settings import Settings, is_loopback

if TYPE_CHECKING:
    from lookalike.encoder import Encoder
    from lookalike.index.base import Index

__all__ = ["Settings", "is_loopback", "serve"]

CONNECTIONS = 2_048  # beyond them, connections are answered with 503 at once
BACKLOG = 2_048


def serve(
    index: Index,
    encoder: Encoder,
    settings: Settings,
    port: int,
    announce: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve an index until a signal comes; requests that are being answered are finished first.

    Args:
        index: open; it is closed at the end.
        encoder: the one that filled it.
        settings: what may be done, and the address to listen at.
        port: of TCP; 0 takes any that is free.
        announce: called once with the address of the page, when connections are taken.

    Raises:
        LookalikeError: settings that let strangers in, or an address that cannot be had.
        MissingExtra: the packages of the server are not installed.
    """
    try:
        import jsonschema  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn

        from lookalike.server.app import create_app
    except ModuleNotFoundError as error:
        raise MissingExtra("the server", str(error.name), "server") from error

    app = create_app(index, encoder, settings)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # a line of it would hold the address of a person
        server_header=False,
        proxy_headers=False,  # anybody can claim to be forwarded
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.seconds) + 5,
        h11_max_incomplete_event_size=64 << 10,
        ws="none",
    )
    with _listening(settings.host, port) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        announce(f"http://{host}:{listener.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LookalikeError(f"cannot listen at {host}, port {port}: {reason}; choose another --port") from error
    return listener
