"""What the endpoints share: the index, the encoder, the lanes, the album, the feedback store, the numbers."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import numpy as np

from lookalike.catalogue import key_of
from lookalike.encoder import Encoder, cores
from lookalike.errors import LookalikeError
from lookalike.feedback import Feedback, feedback_path
from lookalike.images import facts
from lookalike.index.base import Hit, Index, Item, Payload
from lookalike.search import Searcher
from lookalike.server.batching import Batcher, Lane
from lookalike.server.gauges import Registry
from lookalike.server.replies import Refused
from lookalike.server.settings import Settings
from lookalike.server.studies import Studies
from lookalike.server.thumbnails import Album

Entry = tuple[str, Any, Payload]  # key, vector of the index's length, payload

__all__ = ["Entry", "Service", "log"]

log = logging.getLogger("lookalike.server")

_EXTENSIONS = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # elsewhere the format's name in small letters


class Service:
    """One index, served.

    Args:
        index: open; for writing where the settings say writable. It is closed with the service.
        encoder: the one that filled it.
        settings: what may be done.

    Raises:
        EncoderMismatch: the index was filled by another encoder. FeedbackError: the store cannot be opened.
    """

    def __init__(self, index: Index, encoder: Encoder, settings: Settings) -> None:
        self.settings = settings
        self.searcher = Searcher(encoder, index)
        self.index = index
        self.encoder = encoder
        self.state: Literal["starting", "ok", "stopping"] = "starting"
        self.generation = 0  # rises with every change
        self._lock = threading.Lock()
        self._additions: list[tuple[list[Entry], asyncio.Future[None]]] = []
        self.body_bytes = 0  # of requests that are being read or answered
        self.feedback = None if settings.feedback is None else Feedback(settings.feedback)
        self.uploads = _uploads(index, settings)
        folders = [*settings.folders, *([self.uploads] if self.uploads else [])]
        self.album = Album(index, folders, settings.pixels)
        self.asking = Lane(max(2, cores()), settings.waiting, "searches")
        self.drawing = Lane(max(2, cores()), 4 * settings.waiting, "thumbnails")
        self.writing = Lane(1, 64, "changes")
        self.studying = Lane(1, 16, "studies")
        self.studies = Studies(self.studying)
        self.numbers = Registry()
        self.requests = self.numbers.counter("lookalike_requests_total", "Requests answered.", ("operation", "status"))
        self.durations = self.numbers.histogram("lookalike_request_seconds", "Time to answer.", ("operation",))
        self.refusals = self.numbers.counter("lookalike_refusals_total", "Requests refused, by code.", ("code",))
        sizes = self.numbers.histogram(
            "lookalike_encoder_batch_pictures", "Pictures encoded together.", bounds=(1, 2, 4, 6, 8, 12, 16)
        )
        self.batcher = Batcher(encoder, settings.waiting, sizes.observe)
        self.numbers.gauge("lookalike_items", "Items in the index.", lambda: len(index))
        self.numbers.gauge("lookalike_pictures_waiting", "Pictures waiting for the encoder.", self._waiting)
        self.numbers.gauge("lookalike_body_bytes", "Bytes of requests in memory.", lambda: self.body_bytes)
        self.numbers.gauge("process_resident_memory_bytes", "Resident memory in bytes.", _resident)

    def _waiting(self) -> float:
        return self.batcher.waiting

    def warm(self) -> None:
        """Compile the graphs, and see where the pictures lie: from then on requests are answered quickly."""
        height, width = self.encoder.bundle.preprocessing.size
        grey = np.full((height, width, 3), 128, np.uint8)
        for count in (1, 2):  # one graph for a single picture and one for a batch
            for _ in self.encoder.stream([grey] * count, lambda pixels: pixels):
                pass
        self.album.learn()

    def close(self) -> None:
        """Finish what runs and let go of index and store."""
        self.state = "stopping"
        self.batcher.close()
        for lane in (self.asking, self.drawing, self.writing, self.studying):
            lane.close()
        if self.feedback is not None:
            self.feedback.close()
        self.index.close()

    # What answers are made of

    def thumbnail_url(self, key: str, payload: Payload) -> str | None:
        """Where an item's picture is asked for; changes when its content does, so that browsers may keep it."""
        file = payload.get("file")
        if not isinstance(file, dict):
            return None
        return "/v1/thumbnail?" + urlencode({"key": key, "v": str(file.get("sha256", ""))[:16]})

    def hits(self, hits: Sequence[Hit]) -> list[dict[str, Any]]:
        """Hits as JSON."""
        return [
            {
                "key": hit.key,
                "score": hit.score,
                "payload": hit.payload,
                "copies": list(hit.copies),
                "thumbnail": self.thumbnail_url(hit.key, hit.payload),
            }
            for hit in hits
        ]

    def item(self, item: Item, vectors: bool = False) -> dict[str, Any]:
        """An item as JSON."""
        document: dict[str, Any] = {
            "key": item.key,
            "payload": item.payload,
            "thumbnail": self.thumbnail_url(item.key, item.payload),
        }
        if vectors and item.vector is not None:
            document["vector"] = item.vector.tolist()
        return document

    def known(self, keys: Sequence[str]) -> list[Item]:
        """The items of these keys.

        Keys that come over the network are always looked up here first: a `Searcher` takes a key it does not know for
        a path, and would read that file.

        Raises:
            Refused: one is not in the index.
        """
        found = self.index.get(list(keys)) if keys else []
        for key, item in zip(keys, found, strict=True):
            if item is None:
                raise Refused(404, "no_item", f"no item {key!r} in the index", "POST /v1/items/list lists the keys.")
        return [item for item in found if item is not None]

    # Changes

    def keep(self, data: bytes, payload: Payload) -> tuple[str, Payload]:
        """Keep the file of an uploaded picture, on the disk when this returns; its key and whole payload.

        The name is the hash of the content: the same picture twice is one file.
        """
        assert self.uploads is not None, "asked before"
        digest = hashlib.sha256(data).hexdigest()
        found = facts(data)
        kind = str(found.get("format", "bin"))
        path = self.uploads / f"{digest}{_EXTENSIONS.get(kind, '.' + kind.lower())}"
        try:
            if not path.exists():
                self.uploads.mkdir(parents=True, exist_ok=True)
                handle, scratch = tempfile.mkstemp(prefix=".upload-", dir=self.uploads)
                try:
                    with os.fdopen(handle, "wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                    Path(scratch).replace(path)
                except BaseException:
                    Path(scratch).unlink(missing_ok=True)
                    raise
            status = path.stat()
        except OSError as error:
            raise LookalikeError(f"cannot keep the picture: {error.strerror}; make room, or tell the owner") from error
        file_facts = {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns, **found}
        return key_of(path), {**payload, "path": str(path), "file": file_facts}

    async def add(self, entries: Sequence[Entry]) -> None:
        """Store entries, durable when it returns.

        What several clients add at the same time goes to the disk at once: waiting for it is what takes the time.

        Raises:
            PayloadError, ShapeError: nothing of `entries` was stored. IndexUnavailable. Refused: too many wait.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        addition = (list(entries), done)
        with self._lock:
            self._additions.append(addition)
        try:
            await self.writing.run(self._store)
        except BaseException:
            with self._lock:  # nobody will come for it any more
                self._additions = [other for other in self._additions if other is not addition]
            raise
        await done

    def _store(self) -> None:
        """Store all that waits, together; where that fails, each client's part alone, which then has its own error."""
        with self._lock:
            taken, self._additions = self._additions, []
        if not taken:
            return  # somebody before has stored it
        try:
            self._store_now([entry for entries, _ in taken for entry in entries])
            errors: list[LookalikeError | None] = [None] * len(taken)
        except LookalikeError as error:
            errors = [error] if len(taken) == 1 else [self._tried(entries) for entries, _ in taken]

        def tell() -> None:
            for (_, done), error in zip(taken, errors, strict=True):
                if not done.done():
                    done.set_result(None) if error is None else done.set_exception(error)

        taken[0][1].get_loop().call_soon_threadsafe(tell)

    def _tried(self, entries: Sequence[Entry]) -> LookalikeError | None:
        try:
            self._store_now(entries)
        except LookalikeError as error:
            return error
        return None

    def _store_now(self, entries: Sequence[Entry]) -> None:
        keys, vectors, payloads = zip(*entries, strict=True)
        try:
            self.index.add(keys, np.stack([np.asarray(vector, np.float32) for vector in vectors]), payloads)
        finally:
            self.generation += 1

    def remove(self, keys: Sequence[str]) -> int:
        """Remove entries, and the files of those that were uploaded."""
        try:
            removed = self.index.remove(keys)
        finally:
            self.generation += 1
        for key in keys if self.uploads is not None else ():
            path = Path(key)
            if path.parent == self.uploads:
                path.unlink(missing_ok=True)
        return removed


def _uploads(index: Index, settings: Settings) -> Path | None:
    """Where uploaded pictures are kept: beside an index that lies in a folder, or where the settings say."""
    if not settings.writable:
        return None
    if settings.uploads is not None:
        return Path(os.path.realpath(settings.uploads))
    try:
        beside = feedback_path(index.location)
    except LookalikeError:
        return None
    return Path(os.path.realpath(beside.with_suffix(".uploads")))


def _resident() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return float("nan")
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
