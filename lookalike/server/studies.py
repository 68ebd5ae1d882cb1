"""What is computed over the whole index, and kept until the index changes: facets, duplicates, the map."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from lookalike.index.base import Index, Payload, Where
from lookalike.server.batching import Lane

__all__ = ["Studies", "facets", "plane"]

KEPT = 32  # finished studies
SHOWN = 40  # values of one facet
DISTINCT = 2_000  # values of a field from which it is free text
ROWS = 1_024  # vectors taken together


class Studies:
    """Long computations, each run once for however many clients ask, even for those who gave up waiting.

    Args:
        lane: where they run.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._tasks: OrderedDict[Hashable, asyncio.Task[Any]] = OrderedDict()

    async def get(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What `work` gives, kept under `key`; failures are not kept."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(self._lane.run(work))
            self._tasks[key] = task
            while len(self._tasks) > KEPT:
                self._tasks.popitem(last=False)
        else:
            self._tasks.move_to_end(key)
        try:
            return await asyncio.shield(task)
        except BaseException:
            if task.done() and (task.cancelled() or task.exception() is not None):
                self._tasks.pop(key, None)
            raise


class _Field:
    """What one payload field holds."""

    def __init__(self) -> None:
        self.items = 0
        self.values: Counter[Any] = Counter()
        self.numbers = 0
        self.least, self.most = float("inf"), float("-inf")
        self.many = False
        self.each_its_own = False  # a number of its own for every item, so far

    def take(self, value: Any) -> None:
        self.items += 1
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool | str):
                self._count((type(one), one))
            elif isinstance(one, int | float):
                self.numbers += 1
                self.least, self.most = min(self.least, one), max(self.most, one)
                if isinstance(one, int):
                    self._count((int, one))

    def _count(self, value: tuple[type, Any]) -> None:
        if not self.many:
            self.values[value] += 1
            if len(self.values) > DISTINCT:
                self.many = True
                self.each_its_own = len(self.values) == self.items
                self.values.clear()

    def document(self, name: str) -> dict[str, Any]:
        each_its_own = self.each_its_own or (len(self.values) == self.items > SHOWN)
        numeric = self.numbers > 0 and not any(kind is not int for kind, _ in self.values)
        if each_its_own:
            kind = "text"  # a name or a number
        elif numeric and (self.many or len(self.values) > 12 or not self.values):
            kind = "range"
        elif self.many or not self.values or len(self.values) > max(SHOWN, self.items / 2):
            kind = "text"  # nearly so
        else:
            kind = "values"
        common = sorted(self.values.items(), key=lambda pair: (-pair[1], str(pair[0][1])))[:SHOWN]
        return {
            "field": name,
            "count": self.items,
            "kind": kind,
            "values": [{"value": value, "count": count} for (_, value), count in common] if kind == "values" else [],
            "least": self.least if self.numbers else None,
            "most": self.most if self.numbers else None,
        }


def facets(index: Index, where: Where | None) -> dict[str, Any]:
    """The fields of the items that fit, with their commonest values or their range; what was not a plain value is left.

    Raises:
        QueryError: a malformed filter.
    """
    fields: dict[str, _Field] = {}
    count = 0
    for item in index.scan(where):
        count += 1
        for name, value in item.payload.items():
            if name not in ("path", "file") and (name in fields or len(fields) < 200):
                fields.setdefault(name, _Field()).take(value)
    found = [field.document(name) for name, field in fields.items() if field.values or field.many or field.numbers]
    return {"count": count, "facets": sorted(found, key=lambda facet: (facet["kind"] == "text", facet["field"]))}


def plane(index: Index, limit: int) -> dict[str, Any]:
    """The index as points in a plane: the two principal axes of its vectors (Pearson 1901).

    Mean and covariance are those of all items, in bounded memory; at most `limit` of them, drawn evenly and always the
    same ones, become points.

    Returns:
        ``items`` [(key, payload)], ``places`` (n, 2) float, ``explained`` shares of the variance, ``count`` of items.
    """
    draw = random.Random(0)
    total, outer = np.zeros(index.dim), np.zeros((index.dim, index.dim))
    kept: list[tuple[str, Payload, Any]] = []
    block: list[Any] = []
    count = 0

    def take() -> None:
        nonlocal total, outer
        rows = np.asarray(block, np.float64)
        total, outer = total + rows.sum(axis=0), outer + rows.T @ rows
        block.clear()

    for item in index.scan(vectors=True):
        block.append(item.vector)
        if len(block) == ROWS:
            take()
        if len(kept) < limit:
            kept.append((item.key, item.payload, item.vector))
        elif (place := draw.randrange(count + 1)) < limit:  # reservoir sampling (Vitter 1985)
            kept[place] = (item.key, item.payload, item.vector)
        count += 1
    if not count:
        return {"items": [], "places": np.zeros((0, 2)), "explained": [0.0, 0.0], "count": 0}
    if block:
        take()
    mean = total / count
    spread, axes = np.linalg.eigh(outer / count - np.outer(mean, mean))
    chosen = axes[:, ::-1][:, :2]
    # The sign of an axis is arbitrary; this one is the same every time.
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), range(chosen.shape[1])])
    places = np.zeros((len(kept), 2))
    places[:, : chosen.shape[1]] = (np.stack([vector for *_, vector in kept]) - mean) @ chosen
    shares = np.zeros(2)
    shares[: chosen.shape[1]] = np.maximum(spread[::-1][:2], 0) / max(float(np.maximum(spread, 0).sum()), 1e-12)
    return {
        "items": [(key, payload) for key, payload, _ in kept],
        "places": places,
        "explained": shares.tolist(),
        "count": count,
    }
