"""The application: routes, the page's files, deadlines, and what becomes of errors."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lookalike.encoder import Encoder
from lookalike.errors import LookalikeError
from lookalike.index.base import Index
from lookalike.server import openapi
from lookalike.server.calls import Operation, received
from lookalike.server.operations import OPERATIONS
from lookalike.server.replies import Refused, json_reply, refusal, refused, takes_gzip
from lookalike.server.security import Door
from lookalike.server.service import Service, log
from lookalike.server.settings import Settings

__all__ = ["create_app"]

ALWAYS = ("health", "ready", "metrics", "session")  # answered while the server is starting, too
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
TYPES |= {".webmanifest": "application/manifest+json"}


def create_app(index: Index, encoder: Encoder, settings: Settings | None = None) -> Starlette:
    """An ASGI application that serves one index: the HTTP API below /v1 and the page.

    Args:
        index: open; for writing where the settings say writable. The application closes it when it ends.
        encoder: the one that filled it.
        settings: what may be done and how much of it.

    Raises:
        LookalikeError: settings that let strangers in. EncoderMismatch: the index was filled by another encoder.
        FeedbackError: the store cannot be opened.
    """
    settings = (settings or Settings()).checked()
    service = Service(index, encoder, settings)
    api = openapi.document(OPERATIONS, index.dim, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm(service))
        try:
            yield
        finally:
            service.state = "stopping"
            await warming
            await asyncio.to_thread(service.close)

    async def schema(request: Request) -> Response:
        return json_reply(api, request.headers)

    by_path: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    routes = [
        Route(path, _endpoint(operations, service), methods=list(operations)) for path, operations in by_path.items()
    ]
    routes.append(Route("/v1/openapi.json", schema, methods=["GET"]))
    routes += [Route(path, answer, methods=["GET"]) for path, answer in _page().items()]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_such, Exception: _defect})
    app.router.redirect_slashes = False
    app.state.service = service
    app.add_middleware(Door, settings=settings)
    return app


async def _warm(service: Service) -> None:
    try:
        await service.studying.run(service.warm)
    except LookalikeError as error:  # the index has gone away: /v1/ready goes on saying that it is not ready
        log.error("not ready: %s", error)
        return
    if service.state == "starting":
        service.state = "ok"


def _endpoint(operations: Mapping[str, Operation], service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        operation = operations["GET" if request.method == "HEAD" else request.method]
        began = time.monotonic()
        reply = await _answered(operation, request, service)
        service.requests.add(operation.name, str(reply.status_code))
        service.durations.observe(time.monotonic() - began, operation.name)
        return reply

    return answer


async def _answered(operation: Operation, request: Request, service: Service) -> Response:
    # An import takes as long as it takes: it has a deadline for each piece.
    seconds = None if operation.lines is not None else service.settings.seconds
    try:
        if service.state != "ok" and operation.name not in ALWAYS:
            raise Refused(
                503, service.state, f"the server is {service.state}", "Ask /v1/ready until it says ok.", Retry_After="1"
            )
        async with asyncio.timeout(seconds), received(operation, request, service) as call:
            return await operation.handler(call)
    except Refused as error:
        failure = error
    except LookalikeError as error:
        failure = refused(error)
    except TimeoutError:
        failure = Refused(504, "too_slow", f"no answer within {seconds:g} s", "Ask for less, or again later.")
    except Exception as error:
        failure = _logged(error, operation.name)
    service.refusals.add(failure.code)
    return refusal(failure, request.headers)


def _logged(error: BaseException, where: str) -> Refused:
    """A defect: where it happened goes to the log, but not what was asked, which a message may quote."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("defect in %s: %s\n%s", where, type(error).__name__, frames)
    return Refused(500, "defect", "the server has a defect", "Report it with the server's log.")


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {name.replace("-", "_"): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        text = f"{request.method} is not taken here"
        return refusal(Refused(405, "method", text, f"Use {headers.get('Allow', 'another')}.", **headers))
    return refusal(Refused(error.status_code, "no_such_page", "there is nothing here", "See /v1/openapi.json."))


async def _defect(request: Request, error: Exception) -> Response:
    return refusal(_logged(error, "the application"))


def _page() -> dict[str, Callable[[Request], Awaitable[Response]]]:
    """The files of the page, read once, compressed once, each with its ETag."""
    answers = {}
    for file in sorted(resources.files("lookalike").joinpath("web").iterdir(), key=lambda one: one.name):
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in TYPES:
            path = "/" if file.name == "index.html" else f"/web/{file.name}"
            answers[path] = _file(file.read_bytes(), TYPES[suffix])
    if "/web/icon.svg" in answers:
        answers["/favicon.ico"] = answers["/web/icon.svg"]
    return answers


def _file(content: bytes, media: str) -> Callable[[Request], Awaitable[Response]]:
    packed = gzip.compress(content, 9)
    tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'

    async def answer(request: Request) -> Response:
        headers: dict[str, Any] = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if tag in request.headers.get("if-none-match", "").replace("W/", ""):
            return Response(status_code=304, headers=headers)
        if not takes_gzip(request.headers):
            return Response(content, media_type=media, headers=headers)
        return Response(packed, media_type=media, headers={**headers, "Content-Encoding": "gzip"})

    return answer
