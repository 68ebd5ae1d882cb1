"""Brute force in NumPy, in memory: exact by construction, so every other engine is compared with it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lookalike.errors import IndexUnavailable
from lookalike.index._entries import check_dim, check_entries, check_keys, check_meta, check_queries, rank
from lookalike.index.base import Condition, Hit, Item, Payload, Where, matches, parse_where
from lookalike.vectors import Vectors

__all__ = ["ExactIndex"]

_BLOCK = 1 << 24  # scores held at a time: 64 MiB of float32
_ROUNDING = 2e-6  # matrix products of unit rows differ by less than this from one another and from the truth


class ExactIndex:
    """An `Index` held in memory: 4·dim bytes and one payload per entry, search time linear in their number.

    Attributes:
        location: ``":memory:"``.
        dim: length of a vector.
        meta: what it was made with; read-only.
    """

    def __init__(self, dim: int, meta: Mapping[str, Any] | None = None, location: str = ":memory:") -> None:
        self.location = location
        self.dim = check_dim(dim)
        self.meta: Mapping[str, Any] = MappingProxyType(check_meta(meta))
        self._rows: Vectors = np.empty((0, self.dim), np.float32)  # the first len(self._keys) rows are in use
        self._keys: list[str] = []
        self._payloads: list[Payload] = []
        self._where: dict[str, int] = {}
        self._lock = threading.RLock()
        self._closed = False

    def add(self, keys: Sequence[str], vectors: Vectors, payloads: Sequence[Payload] | None = None) -> None:
        """Store or replace entries; see `Index.add`."""
        names, rows, plain = check_entries(keys, vectors, payloads, self.dim)
        with self._lock:
            self._check_open()
            new = [key for key in names if key not in self._where]
            self._reserve(len(self._keys) + len(new))
            for key in new:
                self._where[key] = len(self._keys)
                self._keys.append(key)
                self._payloads.append({})
            places = [self._where[key] for key in names]
            self._rows[places] = rows
            for place, payload in zip(places, plain, strict=True):
                self._payloads[place] = payload

    def remove(self, keys: Sequence[str]) -> int:
        """Remove entries; see `Index.remove`."""
        names = check_keys(keys)
        with self._lock:
            self._check_open()
            known = {key for key in names if key in self._where}
            for key in known:  # the last entry moves into the hole
                hole, last = self._where.pop(key), len(self._keys) - 1
                moved, payload = self._keys.pop(), self._payloads.pop()
                if hole != last:
                    self._keys[hole], self._payloads[hole], self._where[moved] = moved, payload, hole
                    self._rows[hole] = self._rows[last]
            return len(known)

    def search(self, queries: Vectors, k: int = 10, where: Where | None = None) -> list[list[Hit]]:
        """The exact `k` best of each query; see `Index.search`."""
        rows, k = check_queries(queries, k, self.dim)
        conditions = parse_where(where)
        with self._lock:
            self._check_open()
            allowed = self._allowed(conditions)
            if not len(rows) or not len(allowed):
                return [[] for _ in rows]
            stored = self._rows[: len(self._keys)] if len(allowed) == len(self._keys) else self._rows[allowed]
            answers: list[list[Hit]] = []
            step = max(1, _BLOCK // len(stored))
            for start in range(0, len(rows), step):
                block = rows[start : start + step]
                for query, scores in zip(block, block @ stored.T, strict=True):
                    answers.append(self._best(query, scores, stored, allowed, k))
            return answers

    def _best(self, query: Vectors, scores: Vectors, stored: Vectors, allowed: Any, k: int) -> list[Hit]:
        """Choose by the matrix product, then score again row by row: equal vectors get equal scores, so keys decide."""
        floor = np.partition(scores, len(scores) - k)[len(scores) - k] - _ROUNDING if k < len(scores) else -np.inf
        near = np.flatnonzero(scores >= floor)
        again = np.clip((stored[near].astype(np.float64) * query).sum(axis=1), -1.0, 1.0)
        hits = [(float(score), int(allowed[place])) for score, place in zip(again, near, strict=True)]
        best = rank((Hit(self._keys[place], score, self._payloads[place]) for score, place in hits), k)
        return [Hit(hit.key, hit.score, copy.deepcopy(hit.payload)) for hit in best]

    def get(self, keys: Sequence[str]) -> list[Item | None]:
        """Entries with vectors in the order of `keys`, None for unknown ones."""
        names = check_keys(keys)
        with self._lock:
            self._check_open()
            return [self._item(self._where[key], True) if key in self._where else None for key in names]

    def scan(self, where: Where | None = None, *, vectors: bool = False) -> Iterator[Item]:
        """Every matching entry once; see `Index.scan`."""
        conditions = parse_where(where)
        with self._lock:
            self._check_open()
            allowed = self._allowed(conditions)
        return (self._item(int(place), vectors) for place in allowed)

    def count(self, where: Where | None = None) -> int:
        """How many entries match."""
        conditions = parse_where(where)
        with self._lock:
            self._check_open()
            return len(self._allowed(conditions))

    def optimize(self) -> None:
        """Nothing to do: brute force has no search structure."""

    def close(self) -> None:
        """Forget everything: an index in memory ends here."""
        with self._lock:
            self._closed = True
            self._rows = np.empty((0, self.dim), np.float32)
            self._keys, self._payloads, self._where = [], [], {}

    def __len__(self) -> int:
        with self._lock:
            self._check_open()
            return len(self._keys)

    def _allowed(self, conditions: tuple[Condition, ...]) -> Any:
        if not conditions:
            return np.arange(len(self._keys))
        return np.array([i for i, payload in enumerate(self._payloads) if matches(payload, conditions)], dtype=np.intp)

    def _item(self, place: int, vector: bool) -> Item:
        row = self._rows[place].copy() if vector else None
        return Item(self._keys[place], copy.deepcopy(self._payloads[place]), row)

    def _reserve(self, count: int) -> None:
        if count > len(self._rows):
            larger = np.empty((max(count, 2 * len(self._rows)), self.dim), np.float32)
            larger[: len(self._keys)] = self._rows[: len(self._keys)]
            self._rows = larger

    def _check_open(self) -> None:
        if self._closed:
            raise IndexUnavailable(f"the index {self.location} is closed: open it again")
