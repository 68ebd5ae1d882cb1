"""From which cosine on two pictures count as the same, one as unknown, a copy as a duplicate; and how sure that is.

Chosen on pictures with labels which the encoder has not learned from, each for a purpose:

=========  ===========================================================================================================
same       two pictures are of one class: no more than a stated share of different pairs (1 %) reach the threshold
unknown    a picture is of none of the known classes: the nearest of their examples, five of each, is below it
duplicate  two pictures are one: no more than 0.5 % of the pictures have another one so near
=========  ===========================================================================================================

A threshold says yes or no; a `Curve` gives the probability that two pictures with some cosine are of one class. It is
fitted without assuming a form, as the monotone curve of least squares: pool adjacent violators (Ayer et al. 1955),
which of all monotone curves also gives the best calibrated odds (Brümmer and du Preez 2006). How far it can be trusted
is measured on classes that it was not fitted on: expected calibration error (Naeini et al. 2015, Guo et al. 2017).

Cosines are counted in steps of 0.00001, so that memory does not grow with the number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import ShapeError
from lookalike.metrics import TIE, Numbers, Values
from lookalike.vectors import Vectors, unit
from lookalike.verification import best_threshold

# Known pictures of a class, where "unknown" is chosen: the more there are, the nearer is the nearest of them.
SHOTS = 5
# Share of different pairs that "same" may accept, and of pictures that "duplicate" may find a false one for.
FAR, ALARMS = 0.01, 0.005
# Steps of a cosine: a threshold has five digits.
STEPS = 100_000
# Steps between two points of a curve: pairs nearer than 0.005 are pooled before anything is fitted.
POOLED = 500
BINS = 10
# Scores held at once, per block of queries: 32 MiB of float32.
BLOCK_CELLS = 1 << 23

__all__ = [
    "ALARMS",
    "FAR",
    "Bin",
    "Curve",
    "Threshold",
    "Thresholds",
    "calibrate",
    "in_words",
    "isotonic",
    "threshold_of",
]


@dataclass(frozen=True)
class Threshold:
    """A cosine from which on something counts as so.

    Attributes:
        purpose: "same", "unknown" or "duplicate".
        value: the cosine, with five digits. What is at least so near is the same, known, or a duplicate.
        rate: the share of wrongly accepted ones that it was chosen for; None where it was chosen to make the fewest
            errors of both kinds, counted equally.
        rates: what was measured where it was chosen: "false_accept", the share of different pairs, of pictures of left
            out classes, or of pictures that reach it; "true_accept", the share of same pairs, or of pictures of known
            classes, that do.
        count: of how many pairs or pictures `rate` is a share.
    """

    purpose: str
    value: float
    rate: float | None
    rates: Mapping[str, float]
    count: int


@dataclass(frozen=True)
class Bin:
    """Pairs with about one probability: its mean, the share that was the same, and how many pairs there were."""

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True)
class Curve:
    """The probability that two pictures are of one class, by their cosine.

    Attributes:
        points: (cosine, probability), both rising; between them it is linear, beyond them constant. The probability is
            for same and different being equally likely beforehand.
        bins: predicted and observed on classes that were not fitted on, same and different pairs weighing the same;
            empty where there are too few classes for that.
        error: expected calibration error over `bins`, the mean distance of predicted and observed; None without bins.
    """

    points: Sequence[tuple[float, float]]
    bins: Sequence[Bin] = ()
    error: float | None = None

    def probability(self, score: Any, prior: float = 0.5) -> Any:
        """How likely two pictures with this cosine are of one class.

        Args:
            score: a cosine, or an array of them.
            prior: how likely it was beforehand, by Bayes' rule: 0.01 where one picture in a hundred is of the class.

        Returns:
            A float, or an array of the same shape.

        Raises:
            ValueError: `prior` is not between 0 and 1.
        """
        if not 0 < prior < 1:
            raise ValueError(f"prior must lie between 0 and 1, got {prior}")
        cosines, likely = np.array(self.points, dtype=np.float64).T
        even = np.interp(np.asarray(score, dtype=np.float64), cosines, likely)
        found = even * prior / (even * prior + (1 - even) * (1 - prior))
        return float(found) if np.isscalar(score) else found

    def document(self) -> dict[str, Any]:
        """As JSON."""
        bins = [asdict(part) for part in self.bins]
        return {
            "points": [list(point) for point in self.points],
            "bins": bins,
            "expected_calibration_error": self.error,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Curve:
        """From what `document` gave, as in ``manifest["thresholds"]["calibration"]["curve"]`` of a bundle."""
        points = [(float(cosine), float(likely)) for cosine, likely in document["points"]]
        return cls(points, [Bin(**part) for part in document["bins"]], document["expected_calibration_error"])


@dataclass(frozen=True)
class Thresholds:
    """What `calibrate` has found.

    Attributes:
        chosen: a threshold for each purpose.
        curve: the probability of "same".
        pictures: how many there were.
        classes: of how many classes.
    """

    chosen: Sequence[Threshold]
    curve: Curve
    pictures: int
    classes: int

    def __getitem__(self, purpose: str) -> Threshold:
        """The threshold for a purpose. Raises KeyError."""
        return {threshold.purpose: threshold for threshold in self.chosen}[purpose]

    def document(self) -> dict[str, Any]:
        """As "thresholds" in the manifest of a bundle: a number for each purpose; how it was come by, "calibration"."""
        details = {threshold.purpose: asdict(threshold) for threshold in self.chosen}
        facts = {"pictures": self.pictures, "classes": self.classes, **details, "curve": self.curve.document()}
        return {**{threshold.purpose: threshold.value for threshold in self.chosen}, "calibration": facts}


def threshold_of(scores: Any, share: float = ALARMS) -> float:
    """A cosine that at most `share` of some cosines reach, the lowest with five digits; 1 where there is none.

    Args:
        scores: (n,) cosines, n > 0.
        share: in [0, 1).
    """
    values = np.asarray(scores, dtype=np.float64)
    first_left = float(np.sort(values)[::-1][int(share * len(values))])
    return min(1.0, math.floor(first_left * STEPS + 1) / STEPS)


def calibrate(
    vectors: Any,
    labels: Any,
    *,
    groups: Any = None,
    copies: Any = None,
    far: float = FAR,
    unknown: float | None = None,
    named: bool = True,
    seed: int = 0,
) -> Thresholds:
    """Choose a threshold for each purpose, and fit the curve.

    Every picture meets every other one; of those of its own group nothing is counted. For "unknown", each class is
    known by five pictures, drawn at random, or by all but one where it has fewer; each other picture asks twice: its
    class being known, and with its class left out, when all that is near is wrong.

    Args:
        vectors: (n, dim) rows, unit length or not, of pictures that the encoder has not learned from.
        labels: (n,) the class of each; of any one type that can be compared.
        groups: (n,) or None; pictures of one group show one thing (the same product from another side, nearly the same
            picture), and say nothing about one another.
        copies: (n,) or None; which pictures are one picture, and so no false alarms of "duplicate". Default: `groups`.
        far: the share of different pairs that "same" may accept.
        unknown: the share of pictures of left out classes that "unknown" may accept; None makes the fewest errors, the
            accepted unknown and the refused known counting equally.
        named: whether classes are more than one picture and its copies; without, there is no "unknown".
        seed: of the examples of "unknown", and of the halves that the curve is measured on.

    Raises:
        ShapeError: the lengths differ, or there are no two pictures of one class, or of two.
        ValueError: a share is not between 0 and 1.
    """
    for name, value in (("far", far), ("unknown", unknown)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    rows = unit(vectors)
    label = _codes(labels, len(rows), "labels")
    group = np.arange(len(rows)) if groups is None else _codes(groups, len(rows), "groups")
    copy = group if copies is None else _codes(copies, len(rows), "copies")
    seen = _Seen.of(rows, label, group, copy, _examples(label, seed))
    if not seen.same.sum() or not seen.different.sum():
        raise ShapeError(
            "thresholds need pictures of at least two classes, and two of one class that are not of one group: got "
            f"{seen.same.sum():,} same and {seen.different.sum():,} different pairs"
        )
    chosen = [_same(seen, far), *([_unknown(seen, unknown)] if named else []), _duplicate(seen)]
    held = _halves(rows, label, group, seed)
    return Thresholds(chosen, _curve(seen, held), len(rows), len(np.unique(label)))


def _same(seen: _Seen, far: float) -> Threshold:
    reach = np.cumsum(seen.different[::-1])[::-1]  # how many are at least at each step
    allowed = np.flatnonzero(reach <= int(far * reach[0]))
    step = int(allowed[0]) if len(allowed) else 2 * STEPS
    rates = {"false_accept": reach[step] / reach[0], "true_accept": seen.same[step:].sum() / seen.same.sum()}
    return Threshold("same", (step - STEPS) / STEPS, far, _rounded(rates), int(reach[0]) // 2)


def _unknown(seen: _Seen, rate: float | None) -> Threshold:
    both = np.isfinite(seen.known) & np.isfinite(seen.left)
    known, left = seen.known[both], seen.left[both]
    if rate is None:
        truth = np.repeat([True, False], len(known))
        found, _ = best_threshold(np.round(np.concatenate([known, left]) / TIE) * TIE, truth)
        value = float(np.clip(math.floor(found * STEPS) / STEPS if math.isfinite(found) else 1, -1, 1))
    else:
        value = threshold_of(left, rate)
    rates = {"false_accept": (left >= value - TIE).mean(), "true_accept": (known >= value - TIE).mean()}
    return Threshold("unknown", value, rate, _rounded(rates), len(known))


def _duplicate(seen: _Seen) -> Threshold:
    nearest = np.where(np.isfinite(seen.nearest), seen.nearest, -1)  # all are copies of this one: nothing is near
    value = threshold_of(nearest, ALARMS)
    return Threshold("duplicate", value, ALARMS, _rounded({"false_accept": (nearest >= value).mean()}), len(nearest))


def _rounded(rates: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in rates.items()}


# ── what there is to see ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Seen:
    """All pairs by their cosine, and the nearest of each picture; minus infinity where there is none.

    Attributes:
        same: (2 · STEPS + 1,) how many pairs of one class have a cosine of step / STEPS - 1; each pair counts twice.
        different: the same of pairs of two classes.
        known: (n,) cosine of the nearest example of all classes, for those that are none themselves.
        left: (n,) of the nearest example of another class.
        nearest: (n,) of the nearest picture that is not the same one.
    """

    same: Numbers
    different: Numbers
    known: Values
    left: Values
    nearest: Values

    @classmethod
    def of(cls, rows: Vectors, label: Numbers, group: Numbers, copy: Numbers, example: npt.NDArray[np.bool_]) -> _Seen:
        counts = np.zeros((2, 2 * STEPS + 1), dtype=np.int64)
        best = np.full((3, len(rows)), -np.inf)
        height = max(1, BLOCK_CELLS // max(1, len(rows)))
        for first in range(0, len(rows), height):
            part = slice(first, first + height)
            scores = np.clip(rows[part] @ rows.T, -1, 1)
            # What is closer to a step than float32 can tell is at it: floor, but for ties.
            steps = (scores.astype(np.float64) * STEPS + STEPS + TIE * STEPS).astype(np.int32)
            alike, apart = label[part, None] == label, group[part, None] != group
            for kind, wanted in enumerate((alike & apart, ~alike & apart)):
                counts[kind] += np.bincount(steps[wanted], minlength=2 * STEPS + 1)
            asks = apart & example & ~example[part, None]
            own = np.where(asks & alike, scores, -np.inf).max(1)
            best[1, part] = np.where(asks & ~alike, scores, -np.inf).max(1)
            best[0, part] = np.where(np.isfinite(own), np.maximum(own, best[1, part]), -np.inf)
            best[2, part] = np.where(apart & (copy[part, None] != copy), scores, -np.inf).max(1)
        return cls(counts[0], counts[1], *best)


def _examples(label: Numbers, seed: int) -> npt.NDArray[np.bool_]:
    """(n,) which pictures their classes are known by; of a class of two or more, one is left to ask."""
    order = np.random.default_rng(seed).permutation(len(label))
    chosen = np.zeros(len(label), dtype=np.bool_)
    sizes, taken = np.bincount(label), np.zeros(int(label.max()) + 1, dtype=np.int64)
    for row in order:
        name = label[row]
        if taken[name] < min(SHOTS, max(1, sizes[name] - 1)):
            chosen[row], taken[name] = True, taken[name] + 1
    return chosen


def _codes(values: Any, count: int, what: str) -> Numbers:
    given = np.asarray(values)
    if given.shape != (count,):
        raise ShapeError(f"{what} must have shape ({count},), one for each vector, got {given.shape}")
    return np.unique(given, return_inverse=True)[1].astype(np.int64)


# ── the curve ────────────────────────────────────────────────────────────────────────────────────────────────────────


def isotonic(values: Any, weights: Any = None) -> Values:
    """The rising sequence nearest to a sequence, by least squares: pool adjacent violators (Ayer et al. 1955).

    Args:
        values: (n,) numbers.
        weights: (n,) above 0, or None for equal ones.

    Returns:
        (n,) float64, not falling.

    Raises:
        ShapeError: the shapes differ.
    """
    given = np.asarray(values, dtype=np.float64)
    heavy = np.ones_like(given) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.ndim != 1 or given.shape != heavy.shape:
        raise ShapeError(f"values and weights must have one shape (n,), got {given.shape} and {heavy.shape}")
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(given.tolist(), heavy.tolist(), strict=True):
        mean, total, size = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, more, length = blocks.pop()
            mean = (mean * total + before * more) / (total + more)
            total, size = total + more, size + length
        blocks.append((mean, total, size))
    return np.repeat([block[0] for block in blocks], [block[2] for block in blocks])


@dataclass(frozen=True)
class _Pooled:
    """Levels of the cosine (l,), and the share of same and of different pairs at each, both of sum 1/2."""

    cosines: Values
    same: Values
    different: Values
    pairs: Numbers

    @classmethod
    def of(cls, seen: _Seen) -> _Pooled:
        count = 2 * STEPS // POOLED + 1
        level = (np.arange(2 * STEPS + 1) + POOLED // 2) // POOLED
        same, different = (np.bincount(level, kind, count) for kind in (seen.same, seen.different))
        there = np.flatnonzero(same + different)
        shares = [kind[there] / (2 * kind.sum()) for kind in (same, different)]
        pairs = ((same + different)[there] / 2).astype(np.int64)  # each was counted from both ends
        return cls(there * POOLED / STEPS - 1, shares[0], shares[1], pairs)


def _points(pooled: _Pooled, same: int, different: int) -> list[tuple[float, float]]:
    weights = pooled.same + pooled.different
    fitted = isotonic(pooled.same / weights, weights)
    # Nothing is surer than the pairs allow: the rule of succession (Laplace).
    fitted = np.clip(fitted, 1 / (same + 2), 1 - 1 / (different + 2))
    inner = np.r_[False, (fitted[1:-1] == fitted[:-2]) & (fitted[1:-1] == fitted[2:]), False][: len(fitted)]
    chosen = zip(pooled.cosines[~inner].tolist(), fitted[~inner].tolist(), strict=True)
    return [(round(cosine, 5), float(f"{likely:.6g}")) for cosine, likely in chosen]


def _curve(seen: _Seen, held: Sequence[_Seen]) -> Curve:
    points = [_points(_Pooled.of(some), some.same.sum() // 2, some.different.sum() // 2) for some in (seen, *held)]
    if not held:
        return Curve(points[0])
    predicted, same, weight, pairs = [], [], [], []
    for fitted, some in zip(points[1:], reversed(held), strict=True):  # each half is asked by the other
        pooled = _Pooled.of(some)
        predicted.append(Curve(fitted).probability(pooled.cosines))
        same.append(pooled.same)
        weight.append(pooled.same + pooled.different)
        pairs.append(pooled.pairs)
    likely, alike, heavy, count = map(np.concatenate, (predicted, same, weight, pairs))
    place = np.minimum((likely * BINS).astype(np.int64), BINS - 1)
    sums = [np.bincount(place, what, BINS) for what in (likely * heavy, alike, heavy, count)]
    bins = [
        Bin(round(float(p / w), 5), round(float(a / w), 5), int(n)) for p, a, w, n in zip(*sums, strict=True) if w > 0
    ]
    error = float(np.abs(sums[0] - sums[1]).sum() / sums[2].sum())
    return Curve(points[0], bins, round(error, 5))


def _halves(rows: Vectors, label: Numbers, group: Numbers, seed: int) -> list[_Seen]:
    """The pairs within two halves of the classes; nothing where one of them lacks a kind of pairs."""
    order = np.random.default_rng(seed).permutation(int(label.max()) + 1)
    halves = []
    for half in (0, 1):
        inside = order[label] % 2 == half
        none = np.zeros(int(inside.sum()), dtype=np.bool_)
        some = _Seen.of(rows[inside], label[inside], group[inside], group[inside], none)
        if not some.same.sum() or not some.different.sum():
            return []
        halves.append(some)
    return halves


def in_words(document: Mapping[str, Any]) -> list[str]:
    """A Markdown table of "thresholds" in a manifest, as `Thresholds.document` gives it; empty for any other.

    Args:
        document: the manifest's "thresholds".
    """
    details = document.get("calibration", {})
    known = [details[name] for name in ("same", "unknown", "duplicate") if name in details]
    if not known:
        return []
    told = {
        "same": "two pictures are of one class",
        "unknown": "the nearest known picture is near enough to be of a known class",
        "duplicate": "two pictures are one",
    }
    lines = ["| purpose | cosine | it says | chosen for | false accepts | true accepts |", "|---|---|---|---|---|---|"]
    for one in known:
        wanted = "fewest errors" if one["rate"] is None else f"at most {100 * one['rate']:g} % false accepts"
        rates = [f"{100 * one['rates'][name]:.2f} %" if name in one["rates"] else "" for name in _RATES]
        lines.append(f"| {one['purpose']} | {one['value']} | {told[one['purpose']]} | {wanted} | {' | '.join(rates)} |")
    error = details["curve"]["expected_calibration_error"]
    sure = "" if error is None else f" The probability of “same” is off by {100 * error:.1f} points on average."
    where = f"{details['pictures']:,} pictures of {details['classes']:,} classes"
    return [*lines, "", f"Measured on {where}, where they were chosen.{sure}"]


_RATES = ("false_accept", "true_accept")
