"""Ask a server from Python: the calls of `Searcher`, answered over HTTP. Needs nothing but the standard library.

>>> import lookalike
>>> searcher = lookalike.connect("http://127.0.0.1:8765")                       # doctest: +SKIP
>>> searcher.by_picture("some.jpg", k=3)                                        # doctest: +SKIP
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import secrets
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from lookalike import errors
from lookalike.catalogue import key_of
from lookalike.errors import ImageError, IndexUnavailable, LookalikeError, QueryError, ServerError
from lookalike.images import Picture, Region, read_bytes, shown
from lookalike.index.base import Hit, Item, Payload, Where
from lookalike.vectors import Vectors, unit

__all__ = ["RemoteSearcher", "connect"]

PAGE = 500  # answers in one request
RETRIES = 8  # when the server is busy
_BY_CODE = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): getattr(errors, name)
    for name in ("BundleError", "EncoderMismatch", "FeedbackError", "IndexUnavailable", "QueryError", "ShapeError")
} | {"no_item": QueryError, "malformed": QueryError}


def connect(address: str, token: str | None = None, *, timeout: float = 60.0) -> RemoteSearcher:
    """A searcher that asks a server started with ``lookalike serve``.

    Args:
        address: http(s)://host:port.
        token: what the server wants to be shown; by default the variable LOOKALIKE_TOKEN.
        timeout: seconds for one answer.

    Raises:
        IndexUnavailable: no server answers there, or it is none of ours. ServerError: it wants another token.
    """
    return RemoteSearcher(address, token or os.environ.get("LOOKALIKE_TOKEN"), timeout)


class RemoteSearcher:
    """Nearest items from a server: the calls and answers of `lookalike.Searcher`. Threads may share one.

    Pictures are read here and sent as they are. Where a server is busy, a call waits and asks again.

    Attributes:
        address: of the server.
        info: what it serves, as /v1/info told it when this was made.

    Raises:
        IndexUnavailable, ServerError: as for `connect`.
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 60.0) -> None:
        try:
            parts = urlsplit(address)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise IndexUnavailable(f"no server at {address!r}: {error}; give http(s)://host:port") from error
        if parts.scheme not in ("http", "https") or not self._host or parts.path.strip("/") or parts.query:
            raise IndexUnavailable(f"no server at {address!r}: give http(s)://host:port")
        self.address = address.rstrip("/")
        self._secure = parts.scheme == "https"
        self._token = token
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        try:
            self.info: Mapping[str, Any] = self._ask("GET", "/v1/info")
            if "encoder" not in self.info:
                raise IndexUnavailable(f"what answers at {address} is no Lookalike server: start `lookalike serve`")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RemoteSearcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """How many items there are now."""
        return int(self._ask("GET", "/v1/info")["items"])

    def close(self) -> None:
        """End the connection; the next call makes a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def by_picture(self, picture: Picture, k: int = 10, **options: Any) -> list[Hit]:
        """As `Searcher.by_picture`. Raises ImageError, QueryError, IndexUnavailable, ServerError."""
        return self._search({}, k, options, *_named("picture", picture))

    def by_text(
        self,
        text: str,
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = None,
        distinct: bool = True,
        picture: Picture | None = None,
        weight: float = 0.5,
    ) -> list[Hit]:
        """As `Searcher.by_text`. Raises QueryError, ImageError, IndexUnavailable, ServerError."""
        options = {"where": where, "min_score": min_score, "distinct": distinct}
        if picture is None:
            return self._search({"text": text}, k, options)
        return self._search({"text": text, "weight": weight}, k, options, *_named("picture", picture))

    def by_vector(
        self,
        vector: Vectors,
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = None,
        distinct: bool = True,
    ) -> list[Hit]:
        """As `Searcher.by_vector`. Raises ShapeError, QueryError, IndexUnavailable, ServerError."""
        row = unit(vector, int(self.info["dim"]), "the query")[0]
        options = {"where": where, "min_score": min_score, "distinct": distinct}
        return self._search({"vector": row.tolist()}, k, options)

    def by_key(
        self,
        key: str,
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = None,
        distinct: bool = True,
    ) -> list[Hit]:
        """As `Searcher.by_key`. Raises QueryError, IndexUnavailable, ServerError."""
        return self._search({"key": key}, k, {"where": where, "min_score": min_score, "distinct": distinct})

    def by_examples(
        self,
        liked: Sequence[Picture],
        disliked: Sequence[Picture] = (),
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = None,
        distinct: bool = True,
    ) -> list[Hit]:
        """As `Searcher.by_examples`: keys of the index, or pictures from here.

        Raises:
            QueryError, ImageError, IndexUnavailable, ServerError.
        """
        if not liked:
            raise QueryError("give at least one liked example: disliked ones alone point nowhere")
        question: dict[str, Any] = {}
        files: list[tuple[str, bytes]] = []
        for name, examples in (("liked", liked), ("disliked", disliked)):
            for example in examples:
                key = self._known(example)
                if key is not None:
                    question.setdefault(name, []).append(key)
                else:
                    files.append((name, _whole(example)))
        return self._search(question, k, {"where": where, "min_score": min_score, "distinct": distinct}, files)

    def get(self, keys: Sequence[str]) -> list[Item | None]:
        """Items with their vectors in the order of `keys`; None where the key is unknown."""
        import numpy as np

        found: list[Item | None] = []
        for start in range(0, len(keys), PAGE):
            asked = {"keys": list(keys[start : start + PAGE]), "vectors": True}
            for item in self._ask("POST", "/v1/items/get", asked)["items"]:
                vector = None if item is None else np.asarray(item["vector"], np.float32)
                found.append(None if item is None else Item(item["key"], item["payload"], vector))
        return found

    def add(self, pictures: Sequence[Picture], payloads: Sequence[Payload] | None = None) -> list[Item]:
        """Send pictures to the server, which keeps and indexes them.

        Args:
            pictures: as for `by_picture`.
            payloads: what is known about each.

        Returns:
            Items without vectors: their keys are where the server keeps the pictures.

        Raises:
            ImageError, ServerError (the server takes no changes), IndexUnavailable.
        """
        added: list[Item] = []
        step = int(self.info["limits"]["pictures"])
        for start in range(0, len(pictures), step):
            files = [("picture", _whole(picture)) for picture in pictures[start : start + step]]
            options = {} if payloads is None else {"payloads": list(payloads[start : start + step])}
            answer = self._ask("POST", "/v1/items", options, files)
            added += [Item(item["key"], item["payload"]) for item in answer["items"]]
        return added

    def remove(self, keys: Sequence[str]) -> int:
        """Delete items on the server; how many were there. Raises ServerError, IndexUnavailable."""
        return sum(
            int(self._ask("POST", "/v1/items/delete", {"keys": list(keys[start : start + PAGE])})["removed"])
            for start in range(0, len(keys), PAGE)
        )

    # ── inside ──

    def _search(
        self,
        question: dict[str, Any],
        k: int,
        options: Mapping[str, Any],
        files: Sequence[tuple[str, bytes]] = (),
        region: Sequence[float] | None = None,
    ) -> list[Hit]:
        if k < 1:
            raise QueryError(f"k must be at least 1, got {k}")
        asked = question | {name: value for name, value in options.items() if value is not None}
        if region is not None:
            asked["region"] = list(region)
        hits: list[Hit] = []
        offset: int | None = 0
        while offset is not None and len(hits) < k:
            page = asked | {"k": min(PAGE, k - len(hits)), "offset": offset}
            answer = self._ask("POST", "/v1/search", page, files)
            hits += [Hit(hit["key"], hit["score"], hit["payload"], tuple(hit["copies"])) for hit in answer["hits"]]
            offset = answer["next"]
        return hits

    def _known(self, example: Picture) -> str | None:
        """The key of an example that is in the index, as `Searcher` would find it."""
        if not isinstance(example, str | os.PathLike):
            return None
        names = [example, key_of(example)] if isinstance(example, str) else [key_of(example)]
        try:
            found = self._ask("POST", "/v1/items/get", {"keys": [name for name in names if name]})["items"]
        except QueryError:  # no key has that form
            return None
        return next((item["key"] for item in found if item is not None), None)

    def _ask(self, method: str, path: str, document: Any = None, files: Sequence[tuple[str, bytes]] = ()) -> Any:
        body, headers = _encoded(document, files)
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        for tried in range(RETRIES + 1):
            status, told, wait = self._exchange(method, path, body, headers)
            if status != 503 or tried == RETRIES or wait is None:
                break
            time.sleep(min(wait, 5.0))
        try:
            answer = json.loads(told)
        except ValueError:
            raise IndexUnavailable(
                f"what answers at {self.address} is no Lookalike server (status {status}): start `lookalike serve`"
            ) from None
        if status >= 400:
            raise _failure(answer, status)
        return answer

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes, float | None]:
        """Status, body and Retry-After of one answer; once more where a kept connection has died meanwhile."""
        with self._lock:
            for fresh in (False, True):
                kept = self._connection is not None
                try:
                    connection = self._opened()
                    connection.request(method, path, body, headers)
                    reply = connection.getresponse()
                    after = reply.headers.get("Retry-After", "")
                    return reply.status, reply.read(), float(after) if after.isdigit() else None
                except (OSError, http.client.HTTPException) as error:
                    if self._connection is not None:
                        self._connection.close()
                    self._connection = None
                    died = isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError)
                    if fresh or not kept or not died:
                        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                        raise IndexUnavailable(
                            f"no server at {self.address}: {reason}; start one with `lookalike serve INDEX`"
                        ) from error
        raise AssertionError("the second try returns or raises")

    def _opened(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._secure:
                context = ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout, context=context
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return self._connection


def _named(name: str, picture: Picture) -> tuple[list[tuple[str, bytes]], Sequence[float] | None]:
    """A picture as a part of a form, and its region."""
    data, region = _content(picture)
    return [(name, data)], region


def _content(picture: Picture) -> tuple[bytes, Sequence[float] | None]:
    """The bytes of a picture's file, and its region where it is a part."""
    if isinstance(picture, Region):
        return _content(picture.picture)[0], picture.box
    if isinstance(picture, bytes):
        return picture, None
    if isinstance(picture, Image.Image):
        return _png(picture), None
    return read_bytes(picture), None


def _whole(picture: Picture) -> bytes:
    """A picture as a file of its own, also where it is a part of another."""
    return _png(picture) if isinstance(picture, Region) else _content(picture)[0]


def _png(picture: Image.Image | Region) -> bytes:
    """A picture as a file that loses nothing."""
    from lookalike.images import read

    buffer = io.BytesIO()
    read(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _encoded(document: Any, files: Sequence[tuple[str, bytes]]) -> tuple[bytes | None, dict[str, str]]:
    """A body and its headers: JSON, or a form where there are pictures."""
    if document is None:
        return None, {}
    text = json.dumps(document).encode()
    if not files:
        return text, {"Content-Type": "application/json"}
    boundary = secrets.token_hex(16)
    parts = [("options", "application/json", text), *((name, "application/octet-stream", data) for name, data in files)]
    body = io.BytesIO()
    for name, kind, content in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
        head += f'; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
        body.write(head.encode())
        body.write(content)
        body.write(b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return body.getvalue(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def _failure(answer: Any, status: int) -> LookalikeError:
    """The error that the server met, as it would have been raised here."""
    told = answer.get("error", {}) if isinstance(answer, dict) else {}
    code, message, hint = (str(told.get(name, "")) for name in ("code", "message", "hint"))
    if code in ("image_error", "too_many_pixels"):
        return ImageError("<sent>", message.partition(": ")[2] or message)
    if code in _BY_CODE:
        kind: type[LookalikeError] = _BY_CODE[code]
        return kind(message if code not in ("no_item", "malformed") else f"{message}. {hint}")
    if status == 503:
        return IndexUnavailable(f"the server cannot answer now: {message}. {hint}")
    return ServerError(f"{shown(message) or f'status {status}'}. {hint}", code, status)
