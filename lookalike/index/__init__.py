"""Indexes: one protocol, three engines, chosen by where the index is.

::

    open_index(":memory:", dim=128)                       brute force in memory, gone when closed
    open_index("my.index", dim=128, meta={...})           a folder, with Qdrant Edge in this process
    open_index("http://localhost:6333/pictures", dim=128) a collection of a Qdrant server or cluster
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lookalike.errors import IndexUnavailable
from lookalike.index.base import FieldType, Hit, Index, Item, Payload, Where, matches, parse_where

__all__ = ["FieldType", "Hit", "Index", "Item", "Payload", "Where", "matches", "open_index", "parse_where"]

MEMORY = ":memory:"


def open_index(
    location: str | Path,
    *,
    dim: int | None = None,
    meta: Mapping[str, Any] | None = None,
    fields: Mapping[str, FieldType] | None = None,
    quantization: Literal["int8"] | None = None,
    read_only: bool = False,
) -> Index:
    """Open the index at `location`, or make it if there is none and `dim` is given.

    Args:
        location: ``":memory:"``, ``http(s)://host:port/collection``, or else a folder.
        dim: length of a vector. Without it the index must exist; with it an existing one must agree.
        meta: small JSON document to keep with a new index; an existing one keeps its own.
        fields: payload fields that filters will use often, with their types. Declare them before adding data: then
            filtered searches use the search graph. Filters on any other field are right too, but scan.
        quantization: ``"int8"`` searches in a quarter of the memory and scores the answers again in float32.
        read_only: refuse changes, and never make an index.

    Returns:
        An `Index`; close it when done.

    Raises:
        IndexUnavailable: none there, in use by another process, damaged, too new, not an index, no server.
        ShapeError: the index holds vectors of another length; names both.
        PayloadError: `meta` or `fields` that an index cannot keep.
        MissingExtra: a server's address without the package that talks to servers.
    """
    where = str(location)
    if quantization not in (None, "int8"):
        raise IndexUnavailable(f"cannot open {where}: quantization must be 'int8' or left out, got {quantization!r}")
    if where == MEMORY:
        from lookalike.index._entries import check_fields
        from lookalike.index.exact import ExactIndex

        check_fields(fields)  # brute force needs none, but a mistake should not wait for the move to another engine
        if dim is None or read_only:
            raise IndexUnavailable(f"no index at {MEMORY}: one in memory starts empty; give dim to make it")
        return ExactIndex(dim, meta)
    if where.startswith(("http://", "https://")):
        from lookalike.index.remote import RemoteIndex

        return RemoteIndex.connect(
            where, dim=dim, meta=meta, fields=fields, quantization=quantization, read_only=read_only
        )
    from lookalike.index.embedded import EmbeddedIndex

    return EmbeddedIndex(location, dim=dim, meta=meta, fields=fields, quantization=quantization, read_only=read_only)
