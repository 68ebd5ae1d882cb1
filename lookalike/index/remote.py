"""A Qdrant server or cluster: the same entries, filters and scores as the embedded index, shared by many processes.

Sharding, replication, the search graph and durability are the server's work. What is done here: wait for each write,
repeat what a network loses, and keep the index's own document in the collection's metadata (server 1.16 or newer).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np

from lookalike.errors import IndexUnavailable, MissingExtra, ShapeError
from lookalike.index._entries import check_dim, check_entries, check_fields, check_keys, check_meta, check_queries
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
from lookalike.index.base import Condition, FieldType, Hit, Item, Payload, Where, parse_where
from lookalike.vectors import Vectors

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
except ImportError as error:
    raise MissingExtra("a Qdrant server", "qdrant-client", "qdrant") from error

__all__ = ["RemoteIndex"]

FORMAT = 1
_DOCUMENT = "lookalike"  # our key in the collection's metadata
_REQUEST_BYTES = 8 << 20  # of one upsert, a quarter of what a server accepts by default
_IDS = 1_000  # in one request
_PAGE = 1_000
_QUERIES = 64
_LARGE = 10_000  # a k from which it pays to ask first how many entries there are
_WAITS = (0.2, 0.8, 2.0)  # seconds before each further attempt
_TIMEOUT = 60  # seconds for one request
_TRANSIENT = (429, 500, 502, 503, 504)

_TYPES = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    # An integer index would cut 1.5 to 1 and lose it from ranges; a float index answers both kinds of number.
    "integer": models.PayloadSchemaType.FLOAT,
    "float": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
}


class RemoteIndex:
    """An `Index` in a collection of a Qdrant server.

    Args:
        client: a connected client; `connect` makes one from a location.
        collection: the collection's name.
        location: what to call the index in messages.
        dim: length of a vector; makes the collection if there is none. Without it the collection must exist.
        meta: JSON to keep with a new index; an existing one keeps its own.
        fields: payload fields that filters will use often, with their types.
        quantization: ``"int8"`` keeps a quarter of the vectors' size in memory; answers are scored again in float32.
        read_only: refuse changes.

    Attributes:
        location, dim, meta: as in `Index`.

    Raises:
        IndexUnavailable: no server, no collection, or a collection that something else made.
        ShapeError: an index of another `dim`.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        location: str | None = None,
        dim: int | None = None,
        meta: Mapping[str, Any] | None = None,
        fields: Mapping[str, FieldType] | None = None,
        quantization: Literal["int8"] | None = None,
        read_only: bool = False,
    ) -> None:
        self.location = location or collection
        self._client = client
        self._collection = collection
        self._read_only = read_only
        self._closed = False
        self._mutex = threading.RLock()
        wanted = check_fields(fields)
        if not self._call(client.collection_exists, collection):
            if dim is None or read_only:
                raise IndexUnavailable(
                    f"no index at {self.location}; make one with `lookalike index PICTURES --to {self.location}`"
                )
            self._create(check_dim(dim), check_meta(meta), quantization)
        self._read_settings(dim, quantization)
        if not read_only:
            self._declare(wanted)

    @classmethod
    def connect(cls, location: str, **settings: Any) -> RemoteIndex:
        """Open ``http(s)://host:port/collection``; `settings` as in the constructor.

        An API key is taken from the environment variable ``QDRANT_API_KEY``.

        Raises:
            IndexUnavailable: a location without a collection, or as the constructor.
        """
        parts = urlsplit(location)
        if parts.username or parts.password:
            raise IndexUnavailable("an index location must not hold a password: put the key into QDRANT_API_KEY")
        prefix, _, collection = parts.path.strip("/").rpartition("/")
        if not parts.hostname or not collection:
            raise IndexUnavailable(f"no index at {location}: write http://host:6333/collection")
        client = QdrantClient(
            url=f"{parts.scheme}://{parts.netloc}",
            prefix=prefix or None,
            api_key=os.environ.get("QDRANT_API_KEY") or None,
            timeout=_TIMEOUT,
            check_compatibility=False,  # it would ask the server before we can say what its silence means
        )
        try:
            index = cls(client, unquote(collection), location=location, **settings)
        except BaseException:
            client.close()
            raise
        return index

    # Opening

    def _create(self, dim: int, meta: dict[str, Any], quantization: str | None) -> None:
        scalar = None
        if quantization:
            int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
            scalar = models.ScalarQuantization(scalar=int8)
        document = {"format": FORMAT, "meta": meta, "fields": {}, "late": [], "quantization": quantization}
        try:
            self._call(
                self._client.create_collection,
                self._collection,
                vectors_config=models.VectorParams(size=dim, distance=models.Distance.COSINE),
                quantization_config=scalar,
                metadata={_DOCUMENT: document},
            )
        except IndexUnavailable as error:
            # Someone else may have made it since we looked; what they made is checked next.
            if getattr(error.__cause__, "status_code", None) != 409:
                raise

    def _read_settings(self, dim: int | None, quantization: str | None) -> None:
        config = self._call(self._client.get_collection, self._collection).config
        document = (config.metadata or {}).get(_DOCUMENT)
        vectors = config.params.vectors
        if not isinstance(document, dict) or not isinstance(vectors, models.VectorParams):
            raise IndexUnavailable(
                f"the collection {self.location} was not made by Lookalike, or its server is older than Qdrant 1.16: "
                "name another collection, or update the server"
            )
        if document["format"] > FORMAT:
            raise IndexUnavailable(
                f"the index {self.location} has format {document['format']}, newer than {FORMAT}: update Lookalike"
            )
        if dim is not None and dim != vectors.size:
            raise ShapeError(f"the index {self.location} holds vectors of {vectors.size} numbers, not {dim}")
        self._quantization = document["quantization"]
        if quantization is not None and quantization != self._quantization:
            raise IndexUnavailable(
                f"the index {self.location} was made with quantization {self._quantization}, not {quantization}: "
                "leave it out, or make a new index"
            )
        self.dim: int = vectors.size
        self.meta: Mapping[str, Any] = MappingProxyType(document["meta"])
        self._document = document

    def _declare(self, wanted: Mapping[str, FieldType]) -> None:
        """Add payload indexes for new fields. Those that come after the data are late: the graph does not know them."""
        known, late = self._document["fields"], set(self._document["late"])
        new = {name: kind for name, kind in wanted.items() if known.get(name) != kind}
        if not new:
            return
        if len(self):
            late.update(new)
        for name, kind in new.items():
            if name in known:
                self._call(self._client.delete_payload_index, self._collection, json_path(name), wait=True)
            self._call(self._client.create_payload_index, self._collection, json_path(name), _TYPES[kind], wait=True)
        self._document = {**self._document, "fields": {**known, **new}, "late": sorted(late)}
        self._call(self._client.update_collection, self._collection, metadata={_DOCUMENT: self._document})

    # Changing

    def add(self, keys: Sequence[str], vectors: Vectors, payloads: Sequence[Payload] | None = None) -> None:
        """Store or replace entries, acknowledged by the server when it returns; see `Index.add`."""
        names, rows, plain = check_entries(keys, vectors, payloads, self.dim)
        self._check_writable()
        points = (
            models.PointStruct(id=point_id(key), vector=row.tolist(), payload=to_stored(key, payload))
            for key, row, payload in zip(names, rows, plain, strict=True)
        )
        for part in _batches(points, self.dim):
            self._call(self._client.upsert, self._collection, part, wait=True)

    def remove(self, keys: Sequence[str]) -> int:
        """Remove entries; see `Index.remove`."""
        ids = list({point_id(key) for key in check_keys(keys)})
        self._check_writable()
        removed = 0
        with self._mutex:
            for part in chunks(ids, _IDS):
                found = self._call(self._client.retrieve, self._collection, part, with_payload=False)
                if found:
                    chosen = models.PointIdsList(points=[record.id for record in found])
                    self._call(self._client.delete, self._collection, chosen, wait=True)
                    removed += len(found)
        return removed

    def optimize(self) -> None:
        """Nothing to do: the server builds its graphs by itself."""

    def close(self) -> None:
        """Close the connection."""
        if not self._closed:
            self._closed = True
            self._client.close()

    # Asking

    def search(self, queries: Vectors, k: int = 10, where: Where | None = None) -> list[list[Hit]]:
        """The `k` best entries of each query; see `Index.search`."""
        rows, k = check_queries(queries, k, self.dim)
        conditions = parse_where(where)
        self._check_open()
        if k > _LARGE:
            k = max(1, min(k, len(self)))
        fields = {name: kind for name, kind in self._document["fields"].items() if name not in self._document["late"]}
        exact = bool(conditions) and not served(conditions, fields)
        chosen = _filter(conditions)

        def ask(query: list[float], limit: int) -> models.QueryRequest:
            params = self._params(limit, len(conditions), exact)
            return models.QueryRequest(query=query, limit=limit, filter=chosen, params=params, with_payload=True)

        def run(requests: list[models.QueryRequest]) -> list[list[models.ScoredPoint]]:
            answers = self._call(self._client.query_batch_points, self._collection, requests)
            return [answer.points for answer in answers]

        def again(query: list[float]) -> Callable[[int], list[models.ScoredPoint]]:
            return lambda limit: run([ask(query, limit)])[0]

        hits: list[list[Hit]] = []
        for part in chunks(rows.tolist(), _QUERIES):
            found = run([ask(query, k + 1) for query in part])
            for query, points in zip(part, found, strict=True):
                hits.append(to_hits(settle(points, k, again(query)), k, self.location))
        return hits

    def _params(self, limit: int, conditions: int, exact: bool) -> models.SearchParams:
        rescore = models.QuantizationSearchParams(rescore=True, oversampling=2.0) if self._quantization else None
        # As in the embedded index: only a walk in two hops keeps recall where two conditions must hold at once.
        hops = models.AcornSearchParams(enable=True, max_selectivity=0.4) if conditions > 1 else None
        return models.SearchParams(hnsw_ef=max(128, 2 * limit), exact=exact, quantization=rescore, acorn=hops)

    def get(self, keys: Sequence[str]) -> list[Item | None]:
        """Entries with vectors in the order of `keys`, None for unknown ones."""
        names = check_keys(keys)
        self._check_open()
        items: dict[str, Item] = {}
        for part in chunks(list({point_id(key) for key in names}), _IDS):
            records = self._call(self._client.retrieve, self._collection, part, with_payload=True, with_vectors=True)
            items.update((item.key, item) for item in map(self._item, records))
        return [items.get(key) for key in names]

    def scan(self, where: Where | None = None, *, vectors: bool = False) -> Iterator[Item]:
        """Every matching entry once; see `Index.scan`."""
        chosen = _filter(parse_where(where))
        self._check_open()
        return self._pages(chosen, vectors)

    def _pages(self, chosen: models.Filter | None, vectors: bool) -> Iterator[Item]:
        offset = None
        while True:
            records, offset = self._call(
                self._client.scroll,
                self._collection,
                scroll_filter=chosen,
                limit=_PAGE,
                offset=offset,
                with_payload=True,
                with_vectors=vectors,
            )
            yield from map(self._item, records)
            if offset is None:
                return

    def count(self, where: Where | None = None) -> int:
        """How many entries match."""
        chosen = _filter(parse_where(where))
        return int(self._call(self._client.count, self._collection, count_filter=chosen, exact=True).count)

    def __len__(self) -> int:
        return self.count()

    def _item(self, record: models.Record) -> Item:
        key, payload = from_stored(record.payload, self.location)
        return Item(key, payload, None if record.vector is None else np.asarray(record.vector, np.float32))

    # Failing

    def _check_open(self) -> None:
        if self._closed:
            raise IndexUnavailable(f"the index {self.location} is closed: open it again")

    def _check_writable(self) -> None:
        self._check_open()
        if self._read_only:
            raise IndexUnavailable(f"the index {self.location} was opened read-only: open it without to change it")

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Ask the server, and again after a moment if the network or a busy server lost it; any request may repeat."""
        self._check_open()
        for wait in (*_WAITS, None):
            try:
                return method(*args, **kwargs)
            except (UnexpectedResponse, ResponseHandlingException, ResourceExhaustedResponse) as error:
                if wait is None or not _transient(error):
                    raise IndexUnavailable(self._explain(error)) from error
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _explain(self, error: Exception) -> str:
        """What happened and what to do; never the request, whose headers hold the API key."""
        if isinstance(error, UnexpectedResponse):
            if error.status_code in (401, 403):
                return f"the server of {self.location} refused: set QDRANT_API_KEY to a key that may use the collection"
            reason = f"{error.status_code} {error.reason_phrase}: {_reason(error)}"
            return f"the server of {self.location} answered {reason}; see its log"
        if isinstance(error, ResourceExhaustedResponse):
            return f"the server of {self.location} is overloaded; try again later"
        cause = " ".join(str(error).split())[:200]
        return (
            f"no Qdrant server answers at {self.location} ({cause}): "
            "start one with `docker run -p 6333:6333 qdrant/qdrant`, or check the address"
        )


def _transient(error: Exception) -> bool:
    if isinstance(error, UnexpectedResponse):
        return error.status_code in _TRANSIENT
    if isinstance(error, ResponseHandlingException):
        return isinstance(error.source, OSError) or type(error.source).__module__.startswith("http")
    return True


def _reason(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return "no reason given"


def _batches(points: Iterable[models.PointStruct], dim: int) -> Iterator[list[models.PointStruct]]:
    """Points in requests of bounded size: a number takes up to 21 characters, a payload about what it shows as."""
    part: list[models.PointStruct] = []
    size = 0
    for point in points:
        need = 21 * dim + 2 * len(repr(point.payload)) + 60
        if part and size + need > _REQUEST_BYTES:
            yield part
            part, size = [], 0
        part.append(point)
        size += need
    if part:
        yield part


def _filter(conditions: Sequence[Condition]) -> models.Filter | None:
    if not conditions:
        return None
    must: list[Any] = []
    for group in clauses(conditions):
        terms: list[Any] = [_term(clause) for clause in group]
        must.append(terms[0] if len(terms) == 1 else models.Filter(should=terms))
    return models.Filter(must=must)


def _term(clause: Clause) -> models.FieldCondition:
    if clause.kind == "range":
        return models.FieldCondition(key=clause.path, range=models.Range(**clause.value))
    if clause.kind == "any":
        return models.FieldCondition(key=clause.path, match=models.MatchAny(any=clause.value))
    return models.FieldCondition(key=clause.path, match=models.MatchValue(value=clause.value))
