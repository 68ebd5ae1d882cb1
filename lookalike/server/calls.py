"""One request, read within limits and checked against its schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lookalike.server.replies import Refused
from lookalike.server.schemas import Schema, check, converted, parsed, settings_of
from lookalike.server.service import Service

__all__ = ["Call", "Operation", "Parameter", "received"]

JSON_BYTES = 4 << 20  # of a JSON body
PART_BYTES = 1 << 20  # of the JSON part beside uploaded pictures
FORM, LINES = "multipart/form-data", "application/x-ndjson"
OPTIONS = "options"  # the name of that part


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter."""

    name: str
    schema: Schema
    about: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint: what it takes, what it gives, and who answers. Routes, checks and OpenAPI come from this alone.

    Attributes:
        method: of HTTP.
        path: below the root.
        name: in OpenAPI, the metrics and the log.
        about: one sentence.
        handler: answers a checked `Call`.
        answer: the schema of a JSON answer.
        group: under which documentation lists it.
        parameters: of the query.
        body: the schema of a JSON body; None takes none.
        files: names of multipart parts that are pictures.
        need: what the index or the server must have for it: "write" or "feedback".
        media: what it gives where that is not JSON.
        lines: the schema of one line of a body of JSON lines.
        fails: further statuses of refusals.
    """

    method: str
    path: str
    name: str
    about: str
    handler: Callable[[Call], Awaitable[Response]]
    answer: Schema | None = None
    group: str = "search"
    parameters: tuple[Parameter, ...] = ()
    body: Schema | None = None
    files: tuple[str, ...] = ()
    need: str = ""
    media: str = "application/json"
    lines: Schema | None = None
    fails: tuple[int, ...] = ()

    @property
    def takes(self) -> tuple[str, ...]:
        """Media types of its body."""
        if self.lines is not None:
            return (LINES,)
        if self.name == "add_items":  # nothing but pictures makes sense there
            return (FORM,)
        return ("application/json", *((FORM,) if self.files else ()))


@dataclass(slots=True)
class Call:
    """A request that was read and checked.

    Attributes:
        request: as it came.
        service: what answers.
        asked: the parameters, defaults filled in.
        document: the body, defaults filled in.
        files: uploaded pictures by the name of their part.
    """

    request: Request
    service: Service
    asked: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


@asynccontextmanager
async def received(operation: Operation, request: Request, service: Service) -> AsyncIterator[Call]:
    """Read a request; the memory of its body counts as used until the block ends.

    Raises:
        Refused: parameters or a body that are not as the schema says, too large, or more than memory allows now.
    """
    call = Call(request, service, _parameters(operation, request))
    if operation.need == "write" and not service.settings.writable:
        raise Refused(403, "read_only", "this server does not take changes", "Start it with --writable.")
    if operation.need == "feedback" and service.feedback is None:
        raise Refused(403, "no_feedback", "this server records nothing", "Start it with --record.")
    if operation.body is None:
        yield call
        return
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    media = kind.decode("latin-1").lower()
    takes = operation.takes
    if media not in takes:
        raise Refused(
            415,
            "media_type",
            f"the body is {media[:100] or 'of no type'}, not {' or '.join(takes)}",
            "Name the type of the body in Content-Type.",
        )
    if operation.lines is not None:
        yield call  # read line by line
        return
    budget = _Budget(service)
    try:
        if media == "application/json":
            raw = await budget.read(request, JSON_BYTES)
            document = parsed(raw)
        else:
            most = service.settings.upload_bytes * service.settings.pictures + PART_BYTES
            raw = await budget.read(request, min(most, service.settings.body_bytes))
            text, call.files = _parts(raw, options.get(b"boundary", b""), operation, service)
            document = parsed(text, OPTIONS) if text else {}
        del raw
        check(document, operation.body)
        call.document = settings_of(operation.body, document)
        yield call
    finally:
        budget.release()


class _Budget:
    """Bytes of request bodies: of one within its limit, of all within the server's."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._held = 0

    async def read(self, request: Request, limit: int) -> bytes:
        """The body of a request. Raises Refused."""
        length = request.headers.get("content-length", "")
        if length.isdigit():
            self._take(int(length), limit)
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self._held:
                    self._take(len(body) - self._held, limit)
        except ClientDisconnect:
            raise Refused(400, "disconnected", "the client went away", "Send the whole body.") from None
        return bytes(body)

    def _take(self, count: int, limit: int) -> None:
        if self._held + count > limit:
            raise Refused(
                413, "too_large", f"the body is larger than {limit:,} bytes", "Send smaller or fewer pictures."
            )
        if self._service.body_bytes + count > self._service.settings.body_bytes:
            raise Refused(503, "busy", "too many large requests at once", "Try again in a second.", Retry_After="1")
        self._held += count
        self._service.body_bytes += count

    def release(self) -> None:
        self._service.body_bytes -= self._held
        self._held = 0


def _parameters(operation: Operation, request: Request) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in operation.parameters}
    asked = {name: p.schema["default"] for name, p in known.items() if "default" in p.schema}
    given = request.query_params.multi_items()
    for name, text in given:
        if name not in known:
            hint = f"It takes {', '.join(known)}." if known else "It takes none."
            raise Refused(400, "malformed", f"unknown parameter {name[:100]!r}", hint)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused(400, "malformed", f"parameter {name} is not Unicode", "Encode it as UTF-8.") from None
        asked[name] = converted(text, known[name].schema, name)
    if len({name for name, _ in given}) < len(given):
        raise Refused(400, "malformed", "a parameter is given twice", "Give each once.")
    for name, parameter in known.items():
        if parameter.required and name not in asked:
            raise Refused(400, "malformed", f"parameter {name} is missing", parameter.about)
    return asked


def _parts(
    body: bytes, boundary: bytes, operation: Operation, service: Service
) -> tuple[bytes, dict[str, list[bytes]]]:
    """The JSON part and the pictures of a form."""
    most = service.settings.pictures
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError) as error:
        raise _no_form(str(error)) from None
    if not form.ended:
        raise _no_form("it ends too early")
    text = b""
    files: dict[str, list[bytes]] = {}
    for name, content in form.parts:
        if name == OPTIONS and not text:
            text = content
        elif name in operation.files:
            files.setdefault(name, []).append(content)
        else:
            parts = ", ".join((OPTIONS, *operation.files))
            raise Refused(400, "malformed", f"unexpected part {name[:100]!r}", f"The form takes {parts}.")
        if len(content) > service.settings.upload_bytes:
            limit = f"{service.settings.upload_bytes:,}"
            raise Refused(413, "too_large", f"a picture is larger than {limit} bytes", "Send a smaller one.")
    if sum(map(len, files.values())) > most:
        raise Refused(400, "too_many", f"more than {most} pictures in one request", "Send them in several requests.")
    return text, files


def _no_form(reason: str) -> Refused:
    return Refused(400, "malformed", f"the form cannot be read: {reason[:200]}", "Send multipart/form-data.")


class _Form:
    """Collects the parts of a form as the parser meets them."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.ended = False
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._content: list[bytes] = []

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._more,
            "on_header_end": self._header,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) > 256:
            raise ValueError("too many parts")
        self._headers, self._content = {}, []

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _more(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self.parts.append((name, self._content[0] if len(self._content) == 1 else b"".join(self._content)))

    def _finish(self) -> None:
        self.ended = True


async def lines(call: Call) -> AsyncIterator[bytes]:
    """The lines of a body, as they come, each within the limit and none waited for longer than a request may take.

    Raises:
        Refused: a line is too long, or the client stopped sending.
    """
    limit, patience = call.service.settings.line_bytes, call.service.settings.seconds
    rest = bytearray()
    stream = call.request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), patience)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise Refused(408, "too_slow", f"nothing came for {patience:g} s", "Send faster.") from None
        except ClientDisconnect:
            raise Refused(400, "disconnected", "the client went away", "Send the whole body.") from None
        rest += chunk
        *whole, tail = rest.split(b"\n")
        for line in whole:
            yield bytes(line)
        rest = tail
        if len(rest) > limit:
            raise Refused(413, "too_large", f"a line is longer than {limit:,} bytes", "Send smaller pictures.")
    if rest:
        yield bytes(rest)
