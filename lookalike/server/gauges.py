"""Counts and durations in Prometheus' text format 0.0.4: a registry of a page, since three kinds of numbers suffice."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

__all__ = ["Counter", "Gauge", "Histogram", "Registry"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Metric(Protocol):
    def lines(self) -> Iterator[str]: ...


class Registry:
    """Metrics in the order they were made; `text` is what a scraper reads."""

    def __init__(self) -> None:
        self._metrics: list[_Metric] = []

    def counter(self, name: str, about: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only rises."""
        metric = Counter(name, about, labels)
        self._metrics.append(metric)
        return metric

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """A number that is asked for when it is read."""
        self._metrics.append(Gauge(name, about, read))

    def histogram(
        self, name: str, about: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS
    ) -> Histogram:
        """How often a number was at most each bound."""
        metric = Histogram(name, about, labels, bounds)
        self._metrics.append(metric)
        return metric

    def text(self) -> str:
        """All of it."""
        return "".join(f"{line}\n" for metric in self._metrics for line in metric.lines())


class Counter:
    """A number that only rises, one for each combination of labels."""

    def __init__(self, name: str, about: str, labels: Sequence[str] = ()) -> None:
        self._name, self._about, self._labels = name, about, tuple(labels)
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, *labels: str, by: float = 1) -> None:
        """Count."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + by

    def lines(self) -> Iterator[str]:
        """Its text."""
        yield from _head(self._name, self._about, "counter")
        with self._lock:
            values = sorted(self._values.items())
        for labels, value in values:
            yield f"{self._name}{_labelled(self._labels, labels)} {value:g}"


class Gauge:
    """A number that goes up and down."""

    def __init__(self, name: str, about: str, read: Callable[[], float]) -> None:
        self._name, self._about, self._read = name, about, read

    def lines(self) -> Iterator[str]:
        """Its text."""
        yield from _head(self._name, self._about, "gauge")
        yield f"{self._name} {self._read():g}"


class Histogram:
    """How often a number was at most each bound, with sum and count."""

    def __init__(self, name: str, about: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._about, self._labels, self._bounds = name, about, tuple(labels), tuple(bounds)
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Note one number."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
            counts[bisect_left(self._bounds, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> Iterator[str]:
        """Its text."""
        yield from _head(self._name, self._about, "histogram")
        with self._lock:
            found = sorted((labels, list(counts), self._sums[labels]) for labels, counts in self._counts.items())
        names = (*self._labels, "le")
        for labels, counts, total in found:
            seen = 0
            for bound, count in zip((*map("{:g}".format, self._bounds), "+Inf"), counts, strict=True):
                seen += count
                yield f"{self._name}_bucket{_labelled(names, (*labels, bound))} {seen}"
            yield f"{self._name}_sum{_labelled(self._labels, labels)} {total:.6g}"
            yield f"{self._name}_count{_labelled(self._labels, labels)} {seen}"


def _head(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _labelled(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
