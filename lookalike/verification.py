"""How good decisions are: whether two pictures show the same, at which threshold, and which class a picture is of.

A pair is accepted if its score is at least the threshold. Pairs with one score are accepted together or not at all, so
that only thresholds that exist count, and a constant score decides nothing: it verifies like a coin. Scores that differ
by no more than rounding are for the caller to round.

Sources: the equal error rate and the rates at a threshold are those of ISO/IEC 19795-1, which calls TAR at a FAR the
complement of its FNMR at an FMR; accuracy with the threshold of the other folds is the protocol of Huang, Ramesh, Berg
and Learned-Miller, "Labeled Faces in the Wild" (2007). The report of classes is scikit-learn's
``classification_report``, without scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import ShapeError
from lookalike.metrics import Interval, Numbers, Values

__all__ = [
    "Report",
    "Roc",
    "area",
    "best_threshold",
    "bootstrap",
    "eer",
    "fold_accuracy",
    "held_out_correct",
    "paired_bootstrap",
    "report",
    "roc",
    "tar_at_far",
]


@dataclass(frozen=True)
class Roc:
    """What each threshold does; the first accepts nothing, the last everything.

    Attributes:
        far: (t,) float64, the share of different pairs that are accepted, not falling.
        tar: (t,) float64, the share of same pairs that are accepted, not falling.
        thresholds: (t,) float64, falling from infinity to the lowest score.
    """

    far: Values
    tar: Values
    thresholds: Values

    def eer(self) -> float:
        """The rate at which as many different pairs are accepted as same pairs refused; between points, linear."""
        excess = self.far + self.tar - 1  # from -1 to 1
        after = int(np.argmax(excess >= 0))
        before = after - 1
        share = -excess[before] / (excess[after] - excess[before])
        return float(self.far[before] + share * (self.far[after] - self.far[before]))

    def tar_at_far(self, far: float) -> float:
        """The most same pairs that a threshold accepts with no more than `far` of the different ones."""
        return float(self.tar[np.searchsorted(self.far, far, side="right") - 1])

    def area(self) -> float:
        """The area under the curve: how often a same pair scores above a different one, ties counting half."""
        return float(((self.tar[1:] + self.tar[:-1]) / 2 * np.diff(self.far)).sum())


def roc(scores: Any, same: Any) -> Roc:
    """The receiver operating characteristic of pairs.

    Args:
        scores: (n,) how alike the two of each pair are; any finite numbers, higher is more alike.
        same: (n,) bool, or 0 and 1: whether they are the same.

    Raises:
        ShapeError: the shapes differ, a score is not finite, or the pairs are all of one kind.
    """
    return _Counts.of(scores, same).roc()


def eer(scores: Any, same: Any) -> float:
    """Equal error rate, see `Roc.eer`; 0.5 is chance. Arguments and errors as for `roc`."""
    return roc(scores, same).eer()


def tar_at_far(scores: Any, same: Any, far: float) -> float:
    """True-accept rate at a false-accept rate, see `Roc.tar_at_far`. Other arguments and errors as for `roc`.

    Where `far` is less than one in the number of different pairs, none of them may be accepted.
    """
    if not 0 <= far <= 1:
        raise ValueError(f"far must lie between 0 and 1, got {far}")
    return roc(scores, same).tar_at_far(far)


def area(scores: Any, same: Any) -> float:
    """Area under the ROC curve, see `Roc.area`; 0.5 is chance. Arguments and errors as for `roc`."""
    return roc(scores, same).area()


def best_threshold(scores: Any, same: Any) -> tuple[float, float]:
    """The threshold with the most right decisions, and their share; of equally good ones, the strictest.

    It lies half-way between the two scores it separates; infinite where it is best to refuse all, or accept all.
    Arguments and errors as for `roc`.
    """
    counts = _Counts.of(scores, same)
    curve = counts.roc()
    right = curve.tar * counts.same.sum() + (1 - curve.far) * counts.different.sum()
    best = int(np.argmax(right.round(6)))  # whole numbers, but for rounding
    edges = np.append(curve.thresholds, -np.inf)
    threshold = (edges[best] + edges[best + 1]) / 2
    return float(threshold), float(right[best] / (counts.same.sum() + counts.different.sum()))


def held_out_correct(scores: Any, same: Any, folds: Any) -> Values:
    """Whether each pair is decided rightly by the threshold that is best on the other folds.

    Args:
        scores: (n,) as for `roc`.
        same: (n,) as for `roc`.
        folds: (n,) which fold each pair is in; at least two.

    Returns:
        (n,) float64, 1.0 or 0.0.

    Raises:
        ShapeError: as `roc`, there is one fold, or what is left without a fold are pairs of one kind.
    """
    values, truth = _checked(scores, same)
    fold = np.asarray(folds)
    if fold.shape != values.shape or len(np.unique(fold)) < 2:
        raise ShapeError(f"folds must have shape {values.shape} and be two or more, got {fold.shape}")
    correct = np.empty(len(values), dtype=np.float64)
    for name in np.unique(fold):
        inside = fold == name
        threshold, _ = best_threshold(values[~inside], truth[~inside])
        correct[inside] = (values[inside] >= threshold) == truth[inside]
    return correct


def fold_accuracy(correct: Any, folds: Any) -> tuple[Values, float, float]:
    """Accuracy of each fold, their mean, and its standard error (sample deviation over √folds), as LFW reports it.

    Args:
        correct: (n,) from `held_out_correct`.
        folds: (n,) which fold each pair is in; at least two.
    """
    _, fold = np.unique(np.asarray(folds), return_inverse=True)
    shares: Values = np.bincount(fold, weights=np.asarray(correct, dtype=np.float64)) / np.bincount(fold)
    return shares, float(shares.mean()), float(shares.std(ddof=1) / np.sqrt(len(shares)))


def bootstrap(
    scores: Any,
    same: Any,
    measures: Mapping[str, Callable[[Roc], float]],
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Interval]:
    """Measures of a ROC curve with their percentile-bootstrap intervals over pairs (Efron 1979).

    Same and different pairs are resampled apart: how many there are of each is a choice of whoever made the list.

    Args:
        scores: (n,) as for `roc`.
        same: (n,) as for `roc`.
        measures: name → what to take from a curve, as ``{"eer": Roc.eer}``.
        confidence: share of bootstrap values inside the interval.
        seed: of the resampling.
        draws: how many times to resample.

    Raises:
        ShapeError: as `roc`.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    counts = _Counts.of(scores, same)
    whole, dice = counts.roc(), np.random.default_rng(seed)
    found = np.empty((draws, len(measures)))
    for draw in range(draws):
        curve = counts.again(dice).roc()
        found[draw] = [measure(curve) for measure in measures.values()]
    bounds = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    count = int(counts.same.sum() + counts.different.sum())
    return {
        name: Interval(measure(whole), float(bounds[0, number]), float(bounds[1, number]), count)
        for number, (name, measure) in enumerate(measures.items())
    }


def paired_bootstrap(
    ours: Any,
    theirs: Any,
    same: Any,
    measures: Mapping[str, Callable[[Roc], float]],
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Interval]:
    """Differences `ours` - `theirs` of measures of two ROC curves of the same pairs, with their intervals.

    Each draw takes the same pairs for both, so that what makes a pair hard for both does not widen the interval.

    Args:
        ours: (n,) scores as for `roc`.
        theirs: (n,) another judge's scores of the same pairs.
        same: (n,) as for `roc`.
        measures: as for `bootstrap`.
        confidence: as for `bootstrap`.
        seed: of the resampling.
        draws: how many times to resample.

    Raises:
        ShapeError: as `roc`.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    (one, truth), (two, _) = _checked(ours, same), _checked(theirs, same)
    levels = [np.unique(-values, return_inverse=True) for values in (one, two)]
    kinds = [np.flatnonzero(truth), np.flatnonzero(~truth)]

    def gaps(weights: npt.NDArray[Any]) -> list[float]:
        curves = []
        for falling, place in levels:
            counts = [np.bincount(place[kind], weights=weights[kind], minlength=len(falling)) for kind in kinds]
            curves.append(_Counts(-falling, *counts).roc())
        return [measure(curves[0]) - measure(curves[1]) for measure in measures.values()]

    _Counts.of(one, truth)  # complains of pairs of one kind
    whole, dice = gaps(np.ones(len(truth))), np.random.default_rng(seed)
    found = np.empty((draws, len(measures)))
    weights = np.empty(len(truth))
    for draw in range(draws):
        for kind in kinds:
            weights[kind] = dice.multinomial(len(kind), np.full(len(kind), 1 / len(kind)))
        found[draw] = gaps(weights)
    bounds = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {
        name: Interval(whole[number], float(bounds[0, number]), float(bounds[1, number]), len(truth))
        for number, name in enumerate(measures)
    }


@dataclass(frozen=True, slots=True)
class _Counts:
    """Same and different pairs at each score: (t,) scores, falling, and how many of either kind have it."""

    scores: Values
    same: Numbers
    different: Numbers

    @classmethod
    def of(cls, scores: Any, same: Any) -> _Counts:
        values, truth = _checked(scores, same)
        levels, place = np.unique(-values, return_inverse=True)
        kinds = [np.bincount(place[kind], minlength=len(levels)) for kind in (truth, ~truth)]
        if not all(kind.any() for kind in kinds):
            raise ShapeError("verification needs same and different pairs: there are pairs of one kind only")
        return cls(-levels, *kinds)

    def again(self, dice: np.random.Generator) -> _Counts:
        """As many pairs of either kind, drawn from these with replacement."""
        drawn = [dice.multinomial(kind.sum(), kind / kind.sum()) for kind in (self.same, self.different)]
        return _Counts(self.scores, *drawn)

    def roc(self) -> Roc:
        tar, far = (np.append(0.0, np.cumsum(kind) / kind.sum()) for kind in (self.same, self.different))
        return Roc(far, tar, np.append(np.inf, self.scores))


def _checked(scores: Any, same: Any) -> tuple[Values, npt.NDArray[np.bool_]]:
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(same)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ShapeError(f"scores and same must have one shape (n,), got {values.shape} and {truth.shape}")
    if not np.isfinite(values).all():
        raise ShapeError(f"scores must be finite, got NaN or infinity at {int(np.argmin(np.isfinite(values)))}")
    return values, truth.astype(bool)


@dataclass(frozen=True)
class Report:
    """How well classes are told apart. A share with nothing below the line (a class never predicted) is 0.

    Attributes:
        classes: (c,) every class that is true or predicted, in order.
        precision: (c,) float64, the share of what is predicted as the class that is of it.
        recall: (c,) float64, the share of the class that is predicted as it.
        f1: (c,) float64, the harmonic mean of both.
        support: (c,) int64, how many are of the class.
        accuracy: the share that is predicted rightly.
    """

    classes: npt.NDArray[Any]
    precision: Values
    recall: Values
    f1: Values
    support: Numbers
    accuracy: float

    def macro(self) -> dict[str, float]:
        """Means over classes of "precision", "recall" and "f1"."""
        return self._mean(np.ones(len(self.classes)))

    def weighted(self) -> dict[str, float]:
        """Means over classes, each with the weight of its support."""
        return self._mean(self.support)

    def _mean(self, weights: npt.NDArray[Any]) -> dict[str, float]:
        return {name: float(np.average(getattr(self, name), weights=weights)) for name in ("precision", "recall", "f1")}

    def document(self) -> dict[str, Any]:
        """As JSON."""
        columns = [getattr(self, name).tolist() for name in ("precision", "recall", "f1", "support")]
        lines = [
            {"class": str(name), "precision": precision, "recall": recall, "f1": f1, "support": support}
            for name, precision, recall, f1, support in zip(self.classes, *columns, strict=True)
        ]
        return {"accuracy": self.accuracy, "macro": self.macro(), "weighted": self.weighted(), "classes": lines}


def report(true: Any, predicted: Any) -> Report:
    """Precision, recall, F1 and support of every class.

    Args:
        true: (n,) of any one type that can be compared.
        predicted: (n,) of the same type.

    Raises:
        ShapeError: the shapes differ, or there is nothing.
    """
    left, right = np.asarray(true), np.asarray(predicted)
    if left.ndim != 1 or left.shape != right.shape or not len(left):
        raise ShapeError(f"true and predicted must have one shape (n,), n > 0, got {left.shape} and {right.shape}")
    classes, numbers = np.unique(np.concatenate([left, right]), return_inverse=True)
    ours, theirs = numbers[: len(left)], numbers[len(left) :]
    hits, support, claimed = (np.bincount(n, minlength=len(classes)) for n in (ours[ours == theirs], ours, theirs))
    precision, recall, f1 = (
        np.divide(above, below, out=np.zeros(len(classes)), where=below > 0)
        for above, below in ((hits, claimed), (hits, support), (2 * hits, claimed + support))
    )
    return Report(classes, precision, recall, f1, support.astype(np.int64), float((ours == theirs).mean()))
