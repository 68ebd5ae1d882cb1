"""Qdrant Edge in a folder: an approximate index inside this process, durable, without a server.

The folder holds ``lookalike.json`` (format, dim, meta, fields, quantisation), ``shard/`` (Qdrant Edge's own files) and
``lookalike.lock``. One opener at a time, readers included: the engine writes to its files even when it only loads them.

Every call into the engine holds Python's global lock (measured: other threads stand still), so nothing is gained by
building the search graph in a thread. It is built inside `EmbeddedIndex.optimize`, and inside `add` once the entries
outside the graph have become so many that scanning them would be felt.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import qdrant_edge as edge

from lookalike.errors import IndexUnavailable, ShapeError
from lookalike.index._entries import check_dim, check_entries, check_fields, check_keys, check_meta, check_queries
from lookalike.index._lock import FolderLock, Held
from lookalike.index._points import (
    Clause,
    chunks,
    clauses,
    from_stored,
    json_path,
    point_id,
    served,
    settle,
    to_hits,
    to_stored,
)
from lookalike.index._swap import finish_swap, sync_folder
from lookalike.index.base import Condition, FieldType, Hit, Item, Payload, Where, parse_where
from lookalike.vectors import Vectors

__all__ = ["EmbeddedIndex"]

log = logging.getLogger("lookalike.index")

FORMAT = 1
SETTINGS, SHARD, NEW_SHARD, LOCK = "lookalike.json", "shard", "shard.new", "lookalike.lock"

# Measured on 100k and 1M clustered vectors of 128 numbers: see benchmarks/search.py and its results.
LINKS, EF_CONSTRUCT = 16, 128  # HNSW: links per node, candidates while building
PATIENCE = 5.0  # seconds a reader waits for its turn: others that only search are done in one
GRAPH_FROM = 5_000  # vectors outside the graph from which `optimize` builds; fewer are scanned in 0.1 ms
SCAN_UP_TO = 10_000  # vectors a filter may leave for them to be scanned rather than sought in the graph
BUILD_FROM = 100_000  # vectors outside the graph from which `add` builds by itself: scanning these takes 3 ms
_BATCH = 1_000  # points in one update: about 10 ms during which other threads wait
_PAGE = 1_000  # points in one page of a scan
_QUERIES = 64  # queries in one call

# The graph has extra links among entries that meet one condition, none among those that meet two at once: there recall
# falls to 0.94. Walking to the neighbours of neighbours too brings it back to 1.0, in 3 ms instead of 0.5.
_TWO_HOPS = edge.AcornSearchParams(enable=True, max_selectivity=0.4)
_RESCORE = edge.QuantizationSearchParams(rescore=True, oversampling=2.0)

_TYPES = {
    "keyword": edge.PayloadSchemaType.Keyword,
    # An integer index would cut 1.5 to 1 and lose it from ranges; a float index answers both kinds of number.
    "integer": edge.PayloadSchemaType.Float,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
}


@dataclass(frozen=True)
class _Settings:
    """What lookalike.json says. `late` fields were declared when there was a graph, which knows nothing of them."""

    dim: int
    meta: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, FieldType] = field(default_factory=dict)
    quantization: Literal["int8"] | None = None
    late: tuple[str, ...] = ()
    ready: bool = False  # false until the shard is complete: a folder whose making was cut short is made again
    format: int = FORMAT

    @property
    def served(self) -> dict[str, FieldType]:
        """The fields whose filters the graph can be trusted with."""
        return {name: kind for name, kind in self.fields.items() if name not in self.late}


class EmbeddedIndex:
    """An `Index` in a folder.

    Args:
        location: the folder.
        dim: length of a vector; makes the index if there is none. Without it the index must exist.
        meta: JSON to keep with a new index; an existing one keeps its own.
        fields: payload fields that filters will use often, with their types. Filters are right without, only slower.
            Fields that an existing index has not declared yet are added to it.
        quantization: ``"int8"`` keeps a quarter of the vectors' size in memory; answers are scored again in float32.
        read_only: refuse changes.

    Attributes:
        location, dim, meta: as in `Index`.

    Raises:
        IndexUnavailable: missing, in use, damaged, too new, or not an index.
        ShapeError: an index of another `dim`.
    """

    def __init__(
        self,
        location: str | Path,
        *,
        dim: int | None = None,
        meta: Mapping[str, Any] | None = None,
        fields: Mapping[str, FieldType] | None = None,
        quantization: Literal["int8"] | None = None,
        read_only: bool = False,
    ) -> None:
        self.location = str(location)
        self._folder = Path(location)
        self._read_only = read_only
        self._mutex = threading.RLock()
        self._shard: edge.EdgeShard | None = None
        self._doubled = False
        wanted = check_fields(fields)
        new = None
        if dim is not None and not read_only:
            new = _Settings(check_dim(dim), check_meta(meta), wanted, quantization)
        self._finish_swap()
        try:
            self._check_folder(new is not None)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise IndexUnavailable(f"no index can be at {self.location}: {error}") from error
        self._lock = self._take_lock()
        try:
            self._settings = self._load_settings(new)
            self._check_settings(dim, quantization)
            self._shard = self._load_shard()
            self._check_doubles()
            if not read_only:
                self._declare(wanted)
        except BaseException:
            self.close()
            raise
        self.dim = self._settings.dim
        self._quantized = self._settings.quantization is not None
        self._served = self._settings.served
        self.meta: Mapping[str, Any] = MappingProxyType(self._settings.meta)

    @property
    def fields(self) -> dict[str, FieldType]:
        """The payload fields that were declared, with their types."""
        return dict(self._settings.fields)

    @property
    def quantization(self) -> Literal["int8"] | None:
        """As given when the index was made."""
        return self._settings.quantization

    # Opening

    def _finish_swap(self) -> None:
        """What a killed rebuild left is put right; where that may not be, whatever has the name is opened."""
        try:
            finish_swap(self._folder)
        except OSError as error:
            log.warning("%s: its making anew was cut short and cannot be finished: %s", self.location, error)

    def _check_folder(self, create: bool) -> None:
        """Refuse a folder that is someone else's before a single file is written to it."""
        if self._folder.exists() and not self._folder.is_dir():
            raise IndexUnavailable(f"no index at {self.location}: it is a file; an index is a folder")
        names = {entry.name for entry in self._folder.iterdir()} if self._folder.is_dir() else set()
        ours = {SETTINGS, SETTINGS + ".tmp", SHARD, NEW_SHARD, LOCK}
        if SETTINGS in names:
            return
        if SHARD in names and not names - ours:
            raise self._damaged(f"{SETTINGS} is missing")
        if not create:
            raise _missing(self.location)
        if names - ours:
            some = ", ".join(sorted(names - ours)[:3])
            raise IndexUnavailable(f"no index at {self.location}: the folder holds {some}; name an empty or new one")
        self._folder.mkdir(parents=True, exist_ok=True)

    def _take_lock(self) -> FolderLock:
        try:
            return FolderLock(self._folder / LOCK, PATIENCE if self._read_only else 0.0)
        except Held as held:
            raise IndexUnavailable(
                f"the index {self.location} is in use by {held}: close it there, or ask the server that holds it"
            ) from None
        except OSError as error:
            raise IndexUnavailable(
                f"cannot lock the index {self.location}: {error.strerror}; its folder must be writable, for readers too"
            ) from error

    def _load_settings(self, new: _Settings | None) -> _Settings:
        path = self._folder / SETTINGS
        if path.exists():
            found = self._parse(path)
            if found.ready:
                return found
        if new is None:
            raise _missing(self.location)
        # The settings come first and say "not ready", the shard appears under its name when complete, then "ready":
        # whatever is cut short in between is recognised and made again, and cannot hold an acknowledged entry.
        self._write(new)
        try:
            for name in (SHARD, NEW_SHARD):
                shutil.rmtree(self._folder / name, ignore_errors=True)
            (self._folder / NEW_SHARD).mkdir()
            shard = edge.EdgeShard.create(str(self._folder / NEW_SHARD), _config(new))
            for name, kind in new.fields.items():
                shard.update(edge.UpdateOperation.create_field_index(json_path(name), _TYPES[kind]))
            shard.flush()
            shard.close()
            (self._folder / NEW_SHARD).rename(self._folder / SHARD)
        except OSError as error:
            raise IndexUnavailable(f"cannot make an index at {self.location}: {error}") from error
        except BaseException as error:
            raise self._failed("be made", error) from error
        ready = replace(new, ready=True)
        self._write(ready)
        return ready

    def _parse(self, path: Path) -> _Settings:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            version = document["format"]
            if isinstance(version, int) and version > FORMAT:
                raise IndexUnavailable(
                    f"the index {self.location} has format {version}, newer than {FORMAT}: update Lookalike"
                )
            document["late"] = tuple(document["late"])
            found = _Settings(**document)
            check_dim(found.dim)
            check_meta(found.meta)
            check_fields(found.fields)
            return found
        except IndexUnavailable:
            raise
        except Exception as error:
            raise self._damaged(f"{SETTINGS} cannot be read ({type(error).__name__}: {error})") from error

    def _write(self, settings: _Settings) -> None:
        """Replace lookalike.json, all of it or nothing, even if the power fails."""
        temporary = self._folder / (SETTINGS + ".tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(asdict(settings), file, ensure_ascii=False, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._folder / SETTINGS)
            sync_folder(self._folder)
        except OSError as error:
            raise IndexUnavailable(f"cannot write to the index {self.location}: {error.strerror}") from error

    def _check_settings(self, dim: int | None, quantization: str | None) -> None:
        found = self._settings
        if dim is not None and dim != found.dim:
            raise ShapeError(f"the index {self.location} holds vectors of {found.dim} numbers, not {dim}")
        if quantization is not None and quantization != found.quantization:
            raise IndexUnavailable(
                f"the index {self.location} was made with quantization {found.quantization}, not {quantization}: "
                "leave it out, or make a new index"
            )

    def _load_shard(self) -> edge.EdgeShard:
        if not (self._folder / SHARD).is_dir():
            raise self._damaged(f"{SHARD}/ is missing")
        try:
            return edge.EdgeShard.load(str(self._folder / SHARD))
        except BaseException as error:
            if "WouldBlock" in str(error):  # the engine has a lock of its own, which a forked process keeps
                raise IndexUnavailable(
                    f"the index {self.location} is in use by another program or one forked from this: close it there"
                ) from error
            raise self._failed("be opened", error) from error

    def _check_doubles(self) -> None:
        """See whether a build was killed between writing new segments and dropping those they replace.

        Answers are right then, because the engine drops doubles from them; only its own number of points is not. The
        next build cleans up.
        """
        self._doubled = self._opened().info().points_count != self.count()

    def _declare(self, wanted: Mapping[str, FieldType]) -> None:
        """Add payload indexes for fields that are new, or of a new type."""
        known = self._settings.fields
        new = {name: kind for name, kind in wanted.items() if known.get(name) != kind}
        if not new:
            return
        shard = self._opened()
        late = set(self._settings.late)
        if shard.info().indexed_vectors_count:
            late.update(new)
        # Settings before indexes: a field that is declared but has no index yet is only searched slowly if it is late.
        self._settings = replace(self._settings, fields={**known, **new}, late=tuple(sorted(late | set(new))))
        self._write(self._settings)
        try:
            for name, kind in new.items():
                shard.update(edge.UpdateOperation.create_field_index(json_path(name), _TYPES[kind]))
            shard.flush()
        except BaseException as error:
            raise self._failed("declare fields", error) from error
        self._settings = replace(self._settings, late=tuple(sorted(late)))
        self._write(self._settings)

    # Changing

    def add(self, keys: Sequence[str], vectors: Vectors, payloads: Sequence[Payload] | None = None) -> None:
        """Store or replace entries, on the disk when it returns; see `Index.add`."""
        names, rows, plain = check_entries(keys, vectors, payloads, self.dim)
        with self._mutex:
            shard = self._writable()
            try:
                for part in chunks(range(len(names)), _BATCH):
                    points = [
                        edge.Point(point_id(names[i]), rows[i].tolist(), to_stored(names[i], plain[i])) for i in part
                    ]
                    shard.update(edge.UpdateOperation.upsert_points(points))
                shard.flush()
            except BaseException as error:
                raise self._failed("store entries", error) from error
            info = shard.info()
            # Each build at least doubles the graph, so that all builds together cost about two of the last.
            if info.points_count - info.indexed_vectors_count >= max(BUILD_FROM, info.indexed_vectors_count):
                self.optimize()

    def remove(self, keys: Sequence[str]) -> int:
        """Remove entries; see `Index.remove`."""
        ids: list[edge.PointId] = list({point_id(key) for key in check_keys(keys)})
        with self._mutex:
            shard = self._writable()
            try:
                known = [point.id for point in shard.retrieve(ids, with_payload=False, with_vector=False)]
                for part in chunks(known, _BATCH):
                    shard.update(edge.UpdateOperation.delete_points(list(part)))
                shard.flush()
            except BaseException as error:
                raise self._failed("remove entries", error) from error
            return len(known)

    def optimize(self) -> None:
        """Build the search graph over what was added since the last time; see `Index.optimize`.

        About 12 s for 100,000 vectors of 128 numbers on two cores. The whole process waits, other threads too.
        """
        with self._mutex:
            shard = self._writable()
            try:
                shard.optimize()
                shard.flush()
            except BaseException as error:
                raise self._failed("build its graph", error) from error
            self._check_doubles()

    def close(self) -> None:
        """Release files and the lock; everything is on the disk already."""
        with self._mutex:
            shard, self._shard = self._shard, None
            try:
                if shard is not None:
                    shard.close()
            except BaseException as error:
                raise self._failed("be closed", error) from error
            finally:
                self._lock.release()

    # Asking

    def search(self, queries: Vectors, k: int = 10, where: Where | None = None) -> list[list[Hit]]:
        """The `k` best entries of each query; see `Index.search`."""
        rows, k = check_queries(queries, k, self.dim)
        conditions = parse_where(where)
        shard = self._opened()
        size = shard.info().points_count
        k = min(k, size)
        if k == 0 or not len(rows):
            return [[] for _ in rows]
        chosen = _filter(conditions)
        exact = bool(conditions) and not served(conditions, self._served)

        def ask(kind: Any, query: list[float], limit: int) -> Any:
            params = self._params(size, limit, len(conditions), exact)
            return kind(query=edge.Query.Nearest(query), limit=limit, filter=chosen, params=params, with_payload=True)

        def alone(query: list[float], limit: int) -> list[edge.ScoredPoint]:
            # The older call for one search does the same a tenth faster than `query`.
            return shard.search(ask(edge.SearchRequest, query, limit))

        answers: list[list[Hit]] = []
        try:
            for part in chunks(rows.tolist(), _QUERIES):
                if len(part) == 1:
                    found = [alone(part[0], k + 1)]
                else:
                    requests = [ask(edge.QueryRequest, query, k + 1) for query in part]
                    found = shard.query_batch(edge.QueryBatchRequest(requests))
                for query, points in zip(part, found, strict=True):
                    answers.append(to_hits(settle(points, k, partial(alone, query)), k, self.location))
        except BaseException as error:
            raise self._failed("search", error) from error
        return answers

    def _params(self, size: int, limit: int, conditions: int, exact: bool) -> edge.SearchParams:
        # The candidates a search must keep for the same recall grow with the logarithm of the size.
        breadth = max(64, 2 * limit, int(32 * (math.log10(size) - 3)))
        quantization = _RESCORE if self._quantized else None
        hops = _TWO_HOPS if conditions > 1 else None
        return edge.SearchParams(hnsw_ef=breadth, exact=exact, quantization=quantization, acorn=hops)

    def get(self, keys: Sequence[str]) -> list[Item | None]:
        """Entries with vectors in the order of `keys`, None for unknown ones."""
        names = check_keys(keys)
        ids: list[edge.PointId] = list({point_id(key) for key in names})
        try:
            records = self._opened().retrieve(ids, with_payload=True, with_vector=True)
        except BaseException as error:
            raise self._failed("read entries", error) from error
        items = {item.key: item for item in (self._item(record) for record in records)}
        return [items.get(key) for key in names]

    def scan(self, where: Where | None = None, *, vectors: bool = False) -> Iterator[Item]:
        """Every matching entry once; see `Index.scan`."""
        chosen = _filter(parse_where(where))
        self._opened()
        return self._pages(chosen, vectors)

    def _pages(self, chosen: edge.Filter | None, vectors: bool) -> Iterator[Item]:
        offset = None
        while True:
            request = edge.ScrollRequest(offset, _PAGE, chosen, with_payload=True, with_vector=vectors)
            try:
                records, offset = self._opened().scroll(request)
            except BaseException as error:
                raise self._failed("read entries", error) from error
            for record in records:
                yield self._item(record)
            if offset is None:
                return

    def count(self, where: Where | None = None) -> int:
        """How many entries match."""
        chosen = _filter(parse_where(where))
        try:
            return self._opened().count(edge.CountRequest(exact=True, filter=chosen))
        except BaseException as error:
            raise self._failed("count", error) from error

    def __len__(self) -> int:
        return self.count() if self._doubled else self._opened().info().points_count

    def _item(self, record: edge.Record) -> Item:
        key, payload = from_stored(record.payload, self.location)
        return Item(key, payload, None if record.vector is None else np.asarray(record.vector, np.float32))

    # Failing

    def _opened(self) -> edge.EdgeShard:
        shard = self._shard
        if shard is None:
            raise IndexUnavailable(f"the index {self.location} is closed: open it again")
        return shard

    def _writable(self) -> edge.EdgeShard:
        if self._read_only:
            raise IndexUnavailable(f"the index {self.location} was opened read-only: open it without to change it")
        return self._opened()

    def _failed(self, what: str, error: BaseException) -> BaseException:
        """The engine's own failures as `IndexUnavailable`; anything else as it is.

        The engine raises bare `Exception`s, and panics, which are not even that.
        """
        if type(error) is Exception or type(error).__name__ == "PanicException":
            if self._shard is None and what not in {"be opened", "be made"}:  # closed by another thread meanwhile
                return IndexUnavailable(f"the index {self.location} is closed: open it again")
            cause = " ".join(str(error).split())[:300]
            return IndexUnavailable(
                f"the index {self.location} could not {what}: {cause}; if the disk is neither full nor read-only, "
                "its files are damaged: make the index again"
            )
        return error

    def _damaged(self, cause: str) -> IndexUnavailable:
        return IndexUnavailable(f"the index {self.location} is damaged: {cause}; restore it or make the index again")


def _missing(location: str) -> IndexUnavailable:
    return IndexUnavailable(f"no index at {location}; make one with `lookalike index PICTURES --to {location}`")


def _config(settings: _Settings) -> edge.EdgeConfig:
    kilobytes = settings.dim * 4 / 1024  # of one vector: the engine's thresholds are sizes
    quantized = None
    if settings.quantization:
        quantized = edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=0.99, memory=edge.Memory.Pinned)
    return edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(size=settings.dim, distance=edge.Distance.Cosine),
        hnsw_config=edge.HnswIndexConfig(
            m=LINKS, ef_construct=EF_CONSTRUCT, full_scan_threshold=max(1, round(SCAN_UP_TO * kilobytes))
        ),
        quantization_config=quantized,
        # One graph is searched faster than several, and one thread answers sooner than a pool: 66 against 103 µs.
        optimizers=edge.EdgeOptimizersConfig(
            default_segment_number=1, indexing_threshold=max(1, round(GRAPH_FROM * kilobytes))
        ),
        max_search_threads=1,
        payload_memory=edge.Memory.Cached,
    )


def _filter(conditions: Sequence[Condition]) -> edge.Filter | None:
    if not conditions:
        return None
    must: list[Any] = []
    for group in clauses(conditions):
        terms: list[Any] = [_term(clause) for clause in group]
        must.append(terms[0] if len(terms) == 1 else edge.Filter(should=terms))
    return edge.Filter(must=must)


def _term(clause: Clause) -> edge.FieldCondition:
    if clause.kind == "range":
        return edge.FieldCondition(clause.path, range=edge.RangeFloat(**clause.value))
    if clause.kind == "any":
        return edge.FieldCondition(clause.path, match=edge.MatchAny(clause.value))
    # The engine takes Python's True for the integer 1, but NumPy's for a bool.
    value = np.bool_(clause.value) if isinstance(clause.value, bool) else clause.value
    return edge.FieldCondition(clause.path, match=edge.MatchValue(value))  # type: ignore[arg-type]
