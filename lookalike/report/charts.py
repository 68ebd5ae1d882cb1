"""Drawings as inline SVG: small, without a script, coloured by the style of the page, by day and by night.

Each says in words what it shows, for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from lookalike.report.blocks import Bar, Lines, Measured, Series

# A drawing is this many units wide: on a phone a unit is about a pixel, so that text stays readable.
WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 10, 38
POINTS = 300
# Of so few points each gets a mark that tells its values.
MARKED = 60

__all__ = ["bar", "in_words", "interval", "lines", "short"]


def short(value: float) -> str:
    """A number for an axis or a sentence: three digits that count, no more."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def interval(cell: Measured) -> str:
    """A mean as a dot on the line of its interval."""
    low, high = cell.scale
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return round(4 + 112 * min(max((value - low) / span, 0.0), 1.0), 1)

    found = cell.found
    zero = f'<path class="zero" d="M{at(0)} 1v14"/>' if cell.difference else ""
    return (
        f'<svg class="interval" viewBox="0 0 120 16" width="120" height="16" aria-hidden="true">'
        f'<path class="track" d="M4 8h112"/>{zero}<path class="range" d="M{at(found.low)} 8H{at(found.high)}"/>'
        f'<circle cx="{at(found.mean)}" cy="8" r="2.8"/></svg>'
    )


def bar(cell: Bar) -> str:
    """A bar from the left."""
    width = round(120 * min(max(cell.value / cell.most, 0.0), 1.0), 1) if cell.most > 0 else 0
    return (
        '<svg class="bar" viewBox="0 0 120 12" width="120" height="12" aria-hidden="true">'
        f'<rect class="track" width="120" height="12" rx="2"/><rect width="{width}" height="12" rx="2"/></svg>'
    )


def in_words(chart: Lines) -> str:
    """What a chart shows, as sentences."""
    told = []
    for series in chart.series:
        points = _drawable(series, chart.log)
        if not points:
            continue
        ys = [y for _, y in points]
        (x0, y0), (x1, y1) = points[0], points[-1]
        told.append(
            f"{series.name}: {short(y0)} at {short(x0)}, {short(y1)} at {short(x1)}; "
            f"lowest {short(min(ys))}, highest {short(max(ys))}."
        )
    return f"{chart.title}, {chart.y} by {chart.x}. " + " ".join(told)


def lines(chart: Lines) -> str:
    """Curves over axes; each has its colour and its dashes, and its name below."""
    drawn = [Series(series.name, _thinned(_drawable(series, chart.log))) for series in chart.series]
    points = [point for series in drawn for point in series.points]
    if not points:
        return f"<p>{escape(chart.title)}: nothing to draw.</p>"
    left, right, low, high = chart.box or _box(points)
    across, up = _ticks(left, right, 5, chart.log), _ticks(low, high, 5)

    def x_of(value: float) -> float:
        share = _share(math.log10(value), math.log10(left), math.log10(right)) if chart.log else None
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (_share(value, left, right) if share is None else share), 1)

    def y_of(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(value, low, high), 1)

    parts = [
        f'<path class="grid" d="M{LEFT} {y_of(y)}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 5}" y="{y_of(y) + 4}" text-anchor="end">{short(y)}</text>'
        for y in up
    ]
    parts += [
        f'<path class="grid" d="M{x_of(x)} {TOP}V{HEIGHT - BOTTOM}"/>'
        f'<text x="{x_of(x)}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{short(x)}</text>'
        for x in across
    ]
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(chart.x)}</text>')
    if chart.diagonal:
        ends = [left * (right / left) ** (step / 40) if chart.log else left + (right - left) * step / 40
                for step in range(41)]  # fmt: skip
        inside = [(x, x) for x in ends if low <= x <= high]
        parts.append(f'<path class="chance" d="{_path([(x_of(x), y_of(y)) for x, y in inside])}"/>')
    for number, series in enumerate(drawn):
        path = _path([(x_of(x), y_of(y)) for x, y in series.points])
        parts.append(f'<path class="line s{number % 6}" d="{path}"/>')
        if len(series.points) <= MARKED:
            parts += [
                f'<circle class="s{number % 6}" cx="{x_of(x)}" cy="{y_of(y)}" r="2.6">'
                f"<title>{escape(series.name)}: {short(y)} at {short(x)}</title></circle>"
                for x, y in series.points
            ]
    legend = "".join(
        f'<li><svg viewBox="0 0 24 8" width="24" height="8" aria-hidden="true"><path class="line s{number % 6}" '
        f'd="M0 4h24"/></svg> {escape(series.name)}</li>'
        for number, series in enumerate(drawn)
    )
    return (
        f'<figure class="chart"><figcaption>{escape(chart.title)} <small>{escape(chart.y)}</small></figcaption>'
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape(in_words(chart))}">{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points) if points else ""


def _drawable(series: Series, log: bool) -> list[tuple[float, float]]:
    return [
        (x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log)
    ]  # fmt: skip


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS`, evenly, the first and the last among them."""
    if len(points) <= POINTS:
        return list(points)
    return [points[round(number * (len(points) - 1) / (POINTS - 1))] for number in range(POINTS)]


def _box(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    air = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
    left, right = min(xs), max(xs)
    return left, right if right > left else left + 1, low - air, high + air


def _ticks(low: float, high: float, count: int, log: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about so many."""
    if log:
        return [
            10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        ]
    raw = (high - low) / count
    if raw <= 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * size for size in (1, 2, 2.5, 5, 10) if unit * size >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]
