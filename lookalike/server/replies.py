"""What goes back: JSON, compressed where the client takes it, and one shape for every error.

``{"error": {"code": …, "message": …, "hint": …}}``: the code is for programs, the message says what happened with which
values, the hint what to do. Codes of `LookalikeError`s are their class names in snake case, so that the Python client
can raise what the server met.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from lookalike import errors
from lookalike.errors import (
    FeedbackError,
    FetchError,
    ImageError,
    IndexUnavailable,
    LookalikeError,
    MissingExtra,
    QueryError,
)

__all__ = ["Refused", "code_of", "json_reply", "refusal", "refused"]

GZIP_FROM = 1024  # bytes; shorter answers fit into one packet anyway

_STATUS: tuple[tuple[type[LookalikeError], int, str], ...] = (
    (ImageError, 422, "Send a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC that other programs can open."),
    (QueryError, 400, "The schema at /v1/openapi.json lists what may be asked."),
    (FeedbackError, 404, "Record the search first: POST /v1/feedback."),
    (IndexUnavailable, 503, "Look at /v1/ready, and at the log of the server."),
    (MissingExtra, 501, "Ask whoever runs the server to install it."),
    (LookalikeError, 400, "The schema at /v1/openapi.json lists what may be asked."),
)


class Refused(Exception):
    """A request that is not answered, and why.

    Attributes:
        status: of HTTP.
        code: for programs.
        message: what happened.
        hint: what to do.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, hint: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def code_of(error: LookalikeError) -> str:
    """The code of an error: ``QueryError`` → ``query_error``."""
    kind = next(base for base in type(error).__mro__ if base.__module__ == errors.__name__)
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def refused(error: LookalikeError) -> Refused:
    """The refusal that a `LookalikeError` amounts to."""
    status, hint = next((status, hint) for kind, status, hint in _STATUS if isinstance(error, kind))
    message = str(error)
    if isinstance(error, ImageError):
        message = f"cannot {'fetch' if isinstance(error, FetchError) else 'read'} the picture: {error.reason}"
    more = {"Retry_After": "5"} if status == 503 else {}
    return Refused(status, code_of(error), message, hint, **more)


def json_reply(
    document: Any, headers: Mapping[str, str], status: int = 200, more: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer.

    Args:
        document: what to say.
        headers: those of the request.
        status: of HTTP.
        more: further headers of the answer.
    """
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    extra = {"Cache-Control": "no-store", "Vary": "Accept-Encoding", **(more or {})}
    if len(body) >= GZIP_FROM and takes_gzip(headers):
        body = gzip.compress(body, 1)
        extra["Content-Encoding"] = "gzip"
    return Response(body, status, extra, "application/json")


def refusal(error: Refused, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal as an answer."""
    document = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    return json_reply(document, headers or Headers(), error.status, error.headers)


def takes_gzip(headers: Mapping[str, str]) -> bool:
    """Whether the request says that it takes gzip; ``gzip;q=0`` says that it does not."""
    for part in headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
