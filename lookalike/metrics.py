"""How good a ranking is, one number per query: recall, precision, average precision, reciprocal rank.

Every picture is a query against all the others. Another picture is *relevant* if it has the query's label; pictures of
the query's own group (the same product from another side, a retouched copy) can be left out, since finding them proves
little. Scores are cosine similarities of unit vectors.

**Ties go against the query**: of pictures with the same score, the irrelevant ones count as ranked first. An encoder
that gives one constant vector then scores the least a ranking can, not the luck of the sorting order. Scores closer
than `TIE` are ties, because float32 arithmetic cannot tell them apart.

Functions return per-query arrays of float64, NaN where the measure has no meaning (a query with nothing relevant), so
that two encoders can be compared query by query: `mean_interval` and `paired_interval` take the mean and its bootstrap
interval over the queries that count.

Each function is its definition, and asks one query after the other; `lookalike.ranking.retrieval` gives the same
numbers for all of them at once, where there are too many pictures for that.

Sources: R-Precision and MAP@R are those of Musgrave, Belongie and Lim, "A Metric Learning Reality Check" (ECCV 2020);
nDCG is that of Järvelin and Kekäläinen (2002); the percentile bootstrap is Efron's (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import ShapeError
from lookalike.vectors import Vectors, unit

Values = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

# Cosines of float32 unit vectors carry errors of about 1e-7; whatever is closer than this is one score.
TIE = 1e-6
# Scores held at once, per block of queries: 32 MiB of float32.
BLOCK_CELLS = 1 << 23

__all__ = [
    "TIE",
    "Interval",
    "average_precision",
    "average_precision_at_r",
    "catalogue_coverage",
    "few_shot",
    "hit_rate",
    "intra_list_diversity",
    "list_precision",
    "list_recall",
    "mean_interval",
    "ndcg_at_k",
    "novelty",
    "one_shot",
    "paired_interval",
    "precision_at_k",
    "recall_at_k",
    "reciprocal_rank",
    "triplet_accuracy",
]


def recall_at_k(vectors: Any, labels: Any, k: int = 1, groups: Any = None, scores: Any = None) -> Values:
    """1.0 where at least one of the `k` nearest pictures is relevant, else 0.0 ("R@k" of the retrieval papers).

    Args:
        vectors: (n, dim) rows, unit length or not (they are scaled).
        labels: (n,) of any one type that can be compared; equal means relevant.
        k: how many neighbours to look at, at least 1.
        groups: (n,) or None; pictures of the query's group are left out of its gallery. Without groups, only the
            query itself is left out.
        scores: (n, n) or None; how alike each query finds each picture, where that is not the cosine of their vectors
            (re-ranking).

    Returns:
        (n,) float64; NaN for a query without any relevant picture.

    Raises:
        ShapeError: the lengths differ, or a row of `vectors` has no direction.
    """
    _check_k(k)
    return _per_query(vectors, labels, groups, scores, lambda line: float(line.nearest(k).any()))


def precision_at_k(vectors: Any, labels: Any, k: int = 1, groups: Any = None, scores: Any = None) -> Values:
    """Share of relevant pictures among the `k` nearest. A query with fewer than k relevant ones cannot reach 1.

    Arguments, result and errors as for `recall_at_k`.
    """
    _check_k(k)
    return _per_query(vectors, labels, groups, scores, lambda line: float(line.nearest(k).sum()) / k)


def average_precision_at_r(vectors: Any, labels: Any, groups: Any = None, scores: Any = None) -> Values:
    """MAP@R before its mean: precision at the rank of each relevant picture among the first R, summed, over R.

    R is the number of pictures relevant to the query. 1.0 means that all of them come first; unlike plain R-Precision
    it rewards their order, and unlike average precision it does not look beyond R (Musgrave et al. 2020, equation 2).

    Arguments, result and errors as for `recall_at_k`.
    """

    def measure(line: _Line) -> float:
        hits = line.nearest(line.total)
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        return float((precision * hits).sum()) / line.total

    return _per_query(vectors, labels, groups, scores, measure)


def average_precision(vectors: Any, labels: Any, groups: Any = None, scores: Any = None) -> Values:
    """Precision at the rank of each relevant picture, over the whole gallery, averaged; the mean over queries is mAP.

    Arguments, result and errors as for `recall_at_k`.
    """

    def measure(line: _Line) -> float:
        ranks = 1 + np.flatnonzero(line.nearest(len(line.scores)))
        return float((np.arange(1, line.total + 1) / ranks).mean())

    return _per_query(vectors, labels, groups, scores, measure)


def ndcg_at_k(vectors: Any, labels: Any, k: int = 10, groups: Any = None, scores: Any = None) -> Values:
    """Normalised discounted cumulative gain of the `k` nearest: a relevant picture at rank r gains 1 / log2(1 + r).

    1.0 means that no order puts relevant pictures further ahead (Järvelin and Kekäläinen 2002, with gains 0 and 1).

    Arguments, result and errors as for `recall_at_k`.
    """
    _check_k(k)

    def measure(line: _Line) -> float:
        hits = line.nearest(k)
        gains = 1 / np.log2(np.arange(2, 2 + len(hits)))
        return float(gains[hits].sum() / gains[: line.total].sum())

    return _per_query(vectors, labels, groups, scores, measure)


def reciprocal_rank(vectors: Any, labels: Any, groups: Any = None, scores: Any = None) -> Values:
    """1 / rank of the first relevant picture; the mean over queries is MRR.

    Arguments, result and errors as for `recall_at_k`.
    """
    return _per_query(vectors, labels, groups, scores, lambda line: 1.0 / line.first())


def triplet_accuracy(vectors: Any, labels: Any, groups: Any = None, scores: Any = None) -> Values:
    """Share of the triplets (query, relevant, irrelevant) in which the relevant picture is the nearer one.

    All triplets of each query are counted, not a sample: the share is the area under the query's ROC curve. A tie
    counts as wrong.

    Arguments, result and errors as for `recall_at_k`; NaN also for a query without any irrelevant picture.
    """

    def measure(line: _Line) -> float:
        others = np.sort(line.scores[~line.relevant])
        return (
            float(np.searchsorted(others, line.scores[line.relevant]).mean() / len(others)) if len(others) else np.nan
        )

    return _per_query(vectors, labels, groups, scores, measure)


def one_shot(
    vectors: Any,
    labels: Any,
    *,
    categories: Any = None,
    makers: Any = None,
    way: int = 20,
    episodes: int = 1000,
    seed: int = 0,
) -> Values:
    """Accuracy of one-shot classification, one number per episode.

    An episode draws `way` classes, one picture of each as support and one other as query; a query is right if the
    support of its class has the highest cosine, ties counting as wrong (Lake et al. 2015; with `categories` and
    `makers` this is their within-alphabet task: all supports by one drawer, all queries by another).

    Args:
        vectors: (n, dim) rows, unit length or not.
        labels: (n,) the class of each.
        categories: (n,) or None; with it, the classes of an episode come from one category. Categories with fewer
            than `way` classes are left out.
        makers: (n,) or None; who made each picture. With it, an episode has one maker for its support and another
            for its queries.
        way: classes per episode.
        episodes: how many to draw.
        seed: of the draw; equal seeds give equal episodes, so that two encoders can be compared episode by episode.

    Returns:
        (episodes,) float64, each the share of its `way` queries that are right.

    Raises:
        ShapeError: the lengths differ, or no category has `way` classes with two pictures (by two makers in common).
    """
    options: dict[str, Any] = {"way": way, "episodes": episodes, "seed": seed}
    return few_shot(vectors, labels, shot=1, categories=categories, makers=makers, **options)


def few_shot(
    vectors: Any,
    labels: Any,
    *,
    shot: int = 1,
    categories: Any = None,
    makers: Any = None,
    way: int = 20,
    episodes: int = 1000,
    seed: int = 0,
) -> Values:
    """Accuracy of few-shot classification by the nearest centroid, one number per episode.

    As `one_shot`, with `shot` pictures of each class as support: a class stands where the mean of their unit vectors
    points (the prototypes of Snell, Swersky and Zemel 2017, compared by the cosine). Equal to it where `shot` is 1.

    Other arguments, result and errors as for `one_shot`; makers, who draw a class once, go with a `shot` of 1.

    Raises:
        ShapeError: the lengths differ, or no category has `way` classes of `shot` + 1 pictures.
        ValueError: `shot` or `way` is below 1, or above 1 with makers.
    """
    if min(shot, way) < 1 or (shot > 1 and makers is not None):
        raise ValueError(f"way and shot must be at least 1, and shot 1 with makers; got {way} and {shot}")
    rows = unit(vectors)
    label = _numbers(labels, len(rows), "labels")
    category = np.zeros_like(label) if categories is None else _numbers(categories, len(rows), "categories")
    maker = None if makers is None else _numbers(makers, len(rows), "makers")
    named = [np.flatnonzero(category == name) for name in np.unique(category)]
    pools = [pool for members in named if (pool := _Pool.of(members, label, maker, way, shot))]
    if not pools:
        raise ShapeError(
            f"{'one' if shot == 1 else 'few'}-shot episodes need a category with {way} classes of "
            f"{'two' if shot == 1 else shot + 1} pictures"
            f"{' by the same two makers' if makers is not None else ''}: there is none; lower the number of ways "
            "(way, or validation.way in a configuration)"
        )
    dice = np.random.default_rng(seed)
    values = np.empty(episodes, dtype=np.float64)
    for number in range(episodes):
        support, query = pools[dice.integers(len(pools))].draw(dice, way, shot)
        centres = rows[support[:, 0]] if shot == 1 else unit(rows[support].sum(1))
        scores = rows[query] @ centres.T
        own = np.diagonal(scores)
        scores = scores - np.diag(np.full(way, np.inf, dtype=np.float32))
        values[number] = (own - TIE > scores.max(1)).mean()
    return values


@dataclass(frozen=True, slots=True)
class _Pool:
    """The pictures of one category that one-shot episodes can use: class → its pictures, or class → maker → picture."""

    classes: dict[int, Numbers]
    makers: dict[int, dict[int, int]] | None
    pairs: list[tuple[int, int]]

    @classmethod
    def of(cls, rows: Numbers, label: Numbers, maker: Numbers | None, way: int, shot: int) -> _Pool | None:
        classes = {int(name): rows[label[rows] == name] for name in np.unique(label[rows])}
        classes = {name: members for name, members in classes.items() if len(members) > shot}
        if maker is None:
            return cls(classes, None, []) if len(classes) >= way else None
        made: dict[int, dict[int, int]] = {}
        for name, members in classes.items():
            for row in members:
                made.setdefault(int(maker[row]), {}).setdefault(name, int(row))
        pairs = [(a, b) for a in made for b in made if a != b and len(made[a].keys() & made[b].keys()) >= way]
        return cls(classes, made, pairs) if pairs else None

    def draw(self, dice: np.random.Generator, way: int, shot: int) -> tuple[Numbers, Numbers]:
        """Rows of support (way, shot) and of query (way,), class by class."""
        if self.makers is None:
            names = dice.choice(list(self.classes), way, replace=False)
            drawn = np.array([dice.choice(self.classes[int(name)], shot + 1, replace=False) for name in names])
            return drawn[:, :shot], drawn[:, shot]
        one, other = self.pairs[dice.integers(len(self.pairs))]
        shared = sorted(self.makers[one].keys() & self.makers[other].keys())
        names = dice.choice(shared, way, replace=False)
        return (
            np.array([[self.makers[one][int(name)]] for name in names]),
            np.array([self.makers[other][int(name)] for name in names]),
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its interval, with the number of queries behind it."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def mean_interval(values: Any, confidence: float = 0.95, seed: int = 0, draws: int = 2000) -> Interval:
    """Mean of the values that are not NaN, with a percentile-bootstrap interval over queries (Efron 1979).

    Args:
        values: (n,) one number per query.
        confidence: share of bootstrap means inside the interval.
        seed: of the resampling; equal seeds give equal intervals.
        draws: how many times to resample.

    Raises:
        ShapeError: not one-dimensional, or nothing but NaN.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ShapeError(f"values must have shape (n,), got {array.shape}")
    array = array[~np.isnan(array)]
    if not len(array):
        raise ShapeError("values must hold at least one number that is not NaN: no query has anything relevant")
    dice = np.random.default_rng(seed)
    means = np.array([array[dice.integers(len(array), size=len(array))].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def paired_interval(ours: Any, theirs: Any, confidence: float = 0.95, seed: int = 0, draws: int = 2000) -> Interval:
    """Mean of the differences `ours` - `theirs`, query by query, with its interval: above zero, ours is better.

    Far narrower than the difference of two separate intervals, since hard queries are hard for both.

    Raises:
        ShapeError: the shapes differ, or no query counts for both.
    """
    left, right = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if left.shape != right.shape:
        raise ShapeError(f"paired values must have one shape, got {left.shape} and {right.shape}")
    return mean_interval(left - right, confidence, seed, draws)


@dataclass(frozen=True, slots=True)
class _Line:
    """One query's gallery: scores (m,) float64, relevant (m,) bool, and how many are relevant.

    The scores of relevant pictures are lowered by `TIE`: that alone puts them behind every tie.
    """

    scores: Values
    relevant: npt.NDArray[np.bool_]
    total: int

    def nearest(self, k: int) -> npt.NDArray[np.bool_]:
        """Whether the k nearest are relevant, nearest first: (min(k, m),) bool. Linear in m."""
        best = np.argpartition(-self.scores, k - 1)[:k] if k < len(self.scores) else np.arange(len(self.scores))
        hits: npt.NDArray[np.bool_] = self.relevant[best[np.argsort(-self.scores[best], kind="stable")]]
        return hits

    def first(self) -> int:
        """Rank, from 1, of the first relevant picture."""
        return 1 + int((self.scores[~self.relevant] >= self.scores[self.relevant].max()).sum())


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _per_query(vectors: Any, labels: Any, groups: Any, scores: Any, measure: Callable[[_Line], float]) -> Values:
    values = [measure(line) if line.total else np.nan for line in _lines(vectors, labels, groups, scores)]
    return np.array(values, dtype=np.float64)


def _lines(vectors: Any, labels: Any, groups: Any, given: Any) -> Iterator[_Line]:
    """The gallery of every query, scored for a block of queries at a time: memory is bounded by `BLOCK_CELLS`."""
    rows: Vectors = unit(vectors)
    label = _numbers(labels, len(rows), "labels")
    group = np.arange(len(rows)) if groups is None else _numbers(groups, len(rows), "groups")
    if given is not None and np.shape(given) != (len(rows), len(rows)):
        raise ShapeError(f"scores must have shape ({len(rows)}, {len(rows)}), got {np.shape(given)}")
    step = max(1, BLOCK_CELLS // max(1, len(rows)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        scores = rows[part] @ rows.T if given is None else np.asarray(given[part], dtype=np.float32)
        for query, line in enumerate(scores, start):
            gallery = group != group[query]
            gallery[query] = False
            relevant = label[gallery] == label[query]
            yield _Line(line[gallery] - TIE * relevant, relevant, int(relevant.sum()))


def _numbers(values: Any, count: int, what: str) -> Numbers:
    """Any labels as integers, equal where the labels are equal."""
    array = np.asarray(values)
    if array.shape != (count,):
        raise ShapeError(f"{what} must have shape ({count},), one for each vector, got {array.shape}")
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


# ── lists of recommendations ─────────────────────────────────────────────────────────────────────────────────────────


def hit_rate(answers: Sequence[Sequence[Hashable]], relevant: Sequence[Collection[Hashable]], k: int) -> Values:
    """1.0 where at least one of the first `k` answers of a list is relevant, else 0.0.

    Args:
        answers: n lists of keys, best first; a list may be shorter than k, and what is missing is a miss.
        relevant: n sets of the keys that should be found.
        k: how many answers of each list count, at least 1.

    Returns:
        (n,) float64; NaN where nothing is relevant.

    Raises:
        ShapeError: there are not as many sets as lists. ValueError: ``k < 1``.
    """
    return _per_list(answers, relevant, k, lambda found, wanted: float(found > 0))


def list_precision(
    answers: Sequence[Sequence[Hashable]], relevant: Sequence[Collection[Hashable]], k: int, *, capped: bool = False
) -> Values:
    """Share of relevant answers among the first `k`; with `capped`, among the first k that could be relevant at all.

    A query with 3 relevant items reaches 0.3 of 10 at best; capped, the count is divided by min(k, number of relevant
    ones) instead of k, and all of them found is 1.

    Other arguments, result and errors as for `hit_rate`.
    """
    return _per_list(answers, relevant, k, lambda found, wanted: found / (min(k, wanted) if capped else k))


def list_recall(answers: Sequence[Sequence[Hashable]], relevant: Sequence[Collection[Hashable]], k: int) -> Values:
    """Share of all relevant items that are among the first `k` answers. Arguments and result as for `hit_rate`."""
    return _per_list(answers, relevant, k, lambda found, wanted: found / wanted)


def catalogue_coverage(answers: Iterable[Sequence[Hashable]], catalogue: Collection[Hashable]) -> Values:
    """1.0 for each item that is in at least one list, else 0.0, in the order of `catalogue`: (m,) float64.

    The mean is the coverage of the catalogue (Herlocker et al. 2004; Ge, Delgado-Battenfeld and Jannach 2010). It grows
    with the number of lists, so compare it for equal questions only.
    """
    shown = {key for keys in answers for key in keys}
    return np.array([key in shown for key in catalogue], dtype=np.float64)


def intra_list_diversity(lists: Iterable[Any]) -> Values:
    """1 - the mean cosine between the items of a list (Smyth and McClave 2001; Ziegler et al. 2005): in [0, 2].

    Args:
        lists: n arrays (length, dim) of the vectors of each list, unit length or not; lengths may differ.

    Returns:
        (n,) float64; NaN for a list of fewer than two items.
    """
    return np.array([_spread(unit(rows)) if len(rows) > 1 else np.nan for rows in lists], dtype=np.float64)


def _spread(rows: Vectors) -> float:
    # The sum over all pairs of cosines is the squared length of the sum.
    total = np.square(rows.sum(axis=0, dtype=np.float64)).sum()
    pairs = len(rows) * (len(rows) - 1)
    return float(1 - (total - len(rows)) / pairs)


def novelty(answers: Iterable[Sequence[Hashable]], popularity: Mapping[Any, float], items: int) -> Values:
    """Mean self-information of the answers of a list, in bits: -log2 of an item's share of all interactions.

    High where lists show what few know (Zhou et al. 2010; Castells, Vargas and Wang 2011). One interaction is added to
    each item, so that one that nobody has touched is rare and not infinitely so.

    Args:
        answers: n lists of keys.
        popularity: key → its number of interactions; items that are not in it have none.
        items: how many items the catalogue has.

    Returns:
        (n,) float64; NaN for an empty list.
    """
    total = sum(popularity.values()) + items
    return np.array(
        [
            float(np.mean([np.log2(total / (popularity.get(key, 0) + 1)) for key in keys])) if len(keys) else np.nan
            for keys in answers
        ],
        dtype=np.float64,
    )


def _per_list(
    answers: Sequence[Sequence[Hashable]],
    relevant: Sequence[Collection[Hashable]],
    k: int,
    measure: Callable[[int, int], float],
) -> Values:
    _check_k(k)
    if len(answers) != len(relevant):
        raise ShapeError(f"{len(answers)} lists of answers need as many sets of relevant items, got {len(relevant)}")
    return np.array(
        [
            measure(len(wanted & set(keys[:k])), len(wanted)) if wanted else np.nan
            for keys, wanted in zip(answers, map(frozenset, relevant), strict=True)
        ],
        dtype=np.float64,
    )
