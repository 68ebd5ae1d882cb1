"""Bring an index up to date with pictures on disk, encoding only what is new.

A file is unchanged if its size and modification time are, or else if its content is (SHA-256). A file whose content is
already indexed under another name (moved, copied) takes over that vector. Everything is written in batches that are
durable when written, so a run that was interrupted, or killed, goes on where it was when it is started again.

For another encoder an index is made anew beside the old one, and takes its place only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.catalogue import Row, path_of
from lookalike.encoder import Encoded, Encoder
from lookalike.errors import ImageError, IndexUnavailable
from lookalike.images import Pixels, facts, read_bytes, shown
from lookalike.index import MEMORY, open_index
from lookalike.index._swap import beside, finish_swap, take_place, unmark
from lookalike.index.base import Index, Payload
from lookalike.vectors import Vectors

__all__ = ["Summary", "rebuild_index", "update_index"]

# A batch is written when it has this many entries or is this old: a kill loses at most that much work.
WRITE_ENTRIES = 512
WRITE_SECONDS = 5.0


@dataclass(slots=True)
class Summary:
    """What a run did, in numbers of pictures.

    Attributes:
        added: new in the index (of these, `reused` needed no encoding since their content was known).
        replaced: content, modification time or catalogue columns differed.
        unchanged: left alone.
        moved: known content under a new name while the old name is gone; the old entry is dropped.
        removed: entries dropped: gone from disk (`prune`), or overwritten with something unreadable.
        vanished: entries whose file is gone, kept because `prune` was not set.
        encoded: pictures that went through the network.
        skipped: one error per picture that could not be read.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    vanished: int = 0
    encoded: int = 0
    skipped: list[ImageError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the index says about a file: enough to see whether it changed, small enough for millions."""

    size: int
    mtime_ns: int
    digest: bytes
    columns: bytes


@dataclass(slots=True)
class _Job:
    """A picture that may need work; `digest`, `facts` and `twin` are filled in by the decoding thread."""

    row: Row
    key: str
    size: int = 0
    mtime_ns: int = 0
    digest: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)
    twin: str | None = None  # a key that holds the vector of the same content


def update_index(
    index: Index,
    encoder: Encoder,
    rows: Iterable[Row],
    *,
    prune: bool = False,
    strict: bool = False,
    progress: Callable[[Summary, int], None] | None = None,
) -> Summary:
    """Make `index` hold exactly the current content of the pictures in `rows`.

    Args:
        index: open for writing, filled by the same encoder or empty.
        encoder: makes the vectors.
        rows: the pictures, each path once.
        prune: drop entries of files that are no longer on disk (wherever they were).
        strict: raise at the first picture that cannot be read; what was done before is kept.
        progress: called often with the summary so far and the number of rows looked at.

    Raises:
        EncoderMismatch: the index was filled by another encoder.
        ImageError: with `strict`.
    """
    encoder.check(index.meta, index.location)
    run = _Run(index, encoder, progress)
    try:
        for outcome in encoder.stream(run.jobs(rows), run.load):
            run.take(outcome, strict)
    finally:
        run.write()  # also when interrupted: what is encoded is kept
    run.sweep(prune)
    index.optimize()
    return run.summary


class _Run:
    """One pass over the pictures."""

    def __init__(self, index: Index, encoder: Encoder, progress: Callable[[Summary, int], None] | None) -> None:
        self.summary = Summary()
        self._index = index
        self._encoder = encoder
        self._progress = progress or (lambda summary, seen: None)
        self._known = dict(_known(index))
        self._holders = {known.digest: key for key, known in self._known.items()}
        self._seen: set[str] = set()
        self._leaving: list[str] = []
        self._pending: list[tuple[_Job, Vectors, Payload]] = []
        self._written_at = time.monotonic()

    def jobs(self, rows: Iterable[Row]) -> Iterator[_Job]:
        """The rows that may need work; the others are counted as unchanged."""
        for row in rows:
            job = _Job(row, row.key)
            self._seen.add(job.key)
            try:
                status = os.stat(row.path)  # noqa: PTH116 - the path may hold undecodable bytes
                job.size, job.mtime_ns = status.st_size, status.st_mtime_ns
            except (OSError, ValueError):
                pass  # reading it will say why
            known = self._known.get(job.key)
            if known and (known.size, known.mtime_ns) == (job.size, job.mtime_ns):
                if known.columns == _digest_columns(row.payload):
                    self.summary.unchanged += 1
                    if self.summary.unchanged % 256 == 0:
                        self._progress(self.summary, len(self._seen))
                    continue
                job.digest, job.twin = known.digest, job.key
            yield job

    def load(self, job: _Job) -> Pixels | None:
        """Read, hash and, if the content is new, decode one picture. Runs in the decoding threads."""
        if job.twin is not None:
            return None
        data = read_bytes(job.row.path)
        job.size, job.digest = len(data), hashlib.sha256(data).digest()
        known = self._known.get(job.key)
        job.twin = job.key if known and known.digest == job.digest else self._holders.get(job.digest)
        if job.twin is not None:
            return None
        job.facts = facts(data)
        return self._encoder.bundle.preprocessing.load(data, name=shown(job.row.path))

    def take(self, outcome: Encoded[_Job], strict: bool) -> None:
        """Put one outcome into the pending batch."""
        job, vector = outcome.source, outcome.vector
        if outcome.error is not None:
            self._skip(job, outcome.error, strict)
        elif vector is not None:
            self.summary.encoded += 1
            self._keep(job, vector)
        elif job.twin is not None:
            self._adopt(job, job.twin, strict)
        self._progress(self.summary, len(self._seen))
        if len(self._pending) >= WRITE_ENTRIES or time.monotonic() - self._written_at > WRITE_SECONDS:
            self.write()

    def _skip(self, job: _Job, error: ImageError, strict: bool) -> None:
        known = self._known.get(job.key)
        if known and job.digest and job.digest != known.digest:
            # The file holds something else now: the vector of its former content would be a wrong answer.
            self.summary.removed += self._index.remove([job.key])
            del self._known[job.key]
            if self._holders.get(known.digest) == job.key:
                del self._holders[known.digest]
        self.summary.skipped.append(error)
        if strict:
            raise error

    def _adopt(self, job: _Job, twin: str, strict: bool) -> None:
        """Take over the vector of the same content under another key (or under the same key, for new columns)."""
        [item] = self._index.get([twin])
        file = item.payload.get("file", {}) if item else {}
        if item is None or item.vector is None or file.get("sha256") != job.digest.hex():
            # The twin was replaced or removed while this picture waited: encode it after all.
            try:
                vector = self._encoder.images([job.row.path], strict=True)[0]
            except ImageError as error:
                self._skip(job, error, strict)
                return
            self.summary.encoded += 1
            self._keep(job, vector)
            return
        job.facts = {name: file[name] for name in ("width", "height", "format") if name in file}
        moved = twin != job.key and twin not in self._leaving and not os.path.lexists(path_of(twin))
        if moved:
            self.summary.moved += 1
            self._leaving.append(twin)
        self._keep(job, item.vector, moved=moved)

    def _keep(self, job: _Job, vector: Vectors, moved: bool = False) -> None:
        if job.key in self._known:
            self.summary.replaced += 1
        elif not moved:
            self.summary.added += 1
        file = {"sha256": job.digest.hex(), "size": job.size, "mtime_ns": job.mtime_ns, **job.facts}
        payload = {**job.row.payload, "path": shown(job.row.path), "file": file}
        self._pending.append((job, vector, payload))

    def write(self) -> None:
        """Store the pending batch; durable when this returns."""
        if self._pending:
            jobs, vectors, payloads = zip(*self._pending, strict=True)
            self._index.add([job.key for job in jobs], np.stack(vectors), list(payloads))
            # Only now, with the new entries safe, do the entries go whose files moved.
            self._index.remove(self._leaving)
            for key in self._leaving:
                self._known.pop(key, None)
            for job in jobs:
                known = _Known(job.size, job.mtime_ns, job.digest, _digest_columns(job.row.payload))
                self._known[job.key] = known
                if self._holders.get(job.digest) not in self._known:
                    self._holders[job.digest] = job.key
            self._pending.clear()
            self._leaving.clear()
        self._written_at = time.monotonic()

    def sweep(self, prune: bool) -> None:
        """Count, or drop, the entries whose file is gone."""
        gone = [key for key in self._known if key not in self._seen and not os.path.lexists(path_of(key))]
        if prune:
            self.summary.removed += self._index.remove(gone)
        else:
            self.summary.vanished = len(gone)


def _known(index: Index) -> Iterator[tuple[str, _Known]]:
    for item in index.scan():
        file = item.payload.get("file")
        if isinstance(file, dict):  # entries without a file were added by hand and are left alone
            columns = {name: value for name, value in item.payload.items() if name not in ("path", "file")}
            digest = bytes.fromhex(file["sha256"])
            yield item.key, _Known(file["size"], file["mtime_ns"], digest, _digest_columns(columns))


def _digest_columns(columns: Payload) -> bytes:
    text = json.dumps({k: v for k, v in columns.items() if k not in ("path", "file")}, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()


# ── for another encoder ──────────────────────────────────────────────────────────────────────────────────────────────


def rebuild_index(
    location: str | os.PathLike[str],
    encoder: Encoder,
    *,
    progress: Callable[[Summary, int], None] | None = None,
) -> tuple[Summary, Path]:
    """Make the index in a folder anew with another encoder, beside the old one, and put it in its place.

    Whoever has the old index open goes on with it; whoever opens the place finds either the old or the new one,
    complete. The old one stays beside it, so that nothing is lost, entries whose file has gone among it. Interrupt it,
    or kill it, and run it again: it goes on where it was. Killed while the two changed places, it is finished by the
    next opening or the next run, whichever comes first.

    Args:
        location: the folder of the index.
        encoder: makes the new vectors.
        progress: as for `update_index`.

    Returns:
        What was done, and the folder where the old index is now.

    Raises:
        IndexUnavailable: no index there, in use, or not a folder (a collection of a server is changed by filling a new
            collection and naming that); an index from an earlier rebuild stands where the old one is to go; or the
            folders may not be renamed.
    """
    place = os.fspath(location)
    if place == MEMORY or place.startswith(("http://", "https://")):
        raise IndexUnavailable(
            f"{place} cannot be rebuilt in place: index the pictures into a new collection with the new bundle, then "
            "use that one's address"
        )
    folder = Path(place)
    new, before = beside(folder)
    with _renaming(folder):
        finished = finish_swap(folder)
    if finished:
        with closing(open_index(folder, read_only=True)) as index:
            if (index.meta.get("encoder") or {}).get("fingerprint") == encoder.fingerprint:
                return Summary(unchanged=len(index)), before
    if before.exists():
        raise IndexUnavailable(f"{before} is in the way: it holds the index from before the last rebuild; remove it")
    with closing(open_index(folder)) as old:  # open for writing: nobody adds what would then be missing
        with _renaming(folder):
            unmark(new)
        meta = {**old.meta, "encoder": encoder.describe()}
        declared: dict[str, Any] = {
            "fields": getattr(old, "fields", None),
            "quantization": getattr(old, "quantization", None),
        }
        with closing(open_index(new, dim=encoder.dim, meta=meta, **declared)) as made:
            listed = (
                Row(
                    path_of(item.key),
                    {name: value for name, value in item.payload.items() if name not in ("path", "file")},
                )
                for item in old.scan()
            )
            summary = update_index(made, encoder, listed, progress=progress)
    with _renaming(folder):
        take_place(folder)
    return summary, before


@contextmanager
def _renaming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexUnavailable(
            f"a new index cannot take the place of {folder}: {error}; see that "
            "folders there can be renamed, and run this again"
        ) from error
