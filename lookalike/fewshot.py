"""Name pictures from a few labelled examples: a support set, a classifier over vectors, and "none of them".

The classifier has scikit-learn's contract and needs scikit-learn for two of its methods only:

=========  ===========================================================================================================
ridge      linear, by least squares in closed form (Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with
           differentiable closed-form solvers", ICLR 2019); the default, because it measures best
centroid   the nearest class centroid (SimpleShot: Wang, Chao, Weinberger and van der Maaten, 2019)
nearest    the class of the nearest picture
logistic   logistic regression, by scikit-learn
svm        linear support vector machine, one class against the rest, by scikit-learn
=========  ===========================================================================================================

All work on vectors centred by the mean of the class means and brought back to unit length (SimpleShot's "CL2N").
Whatever the method orders by, three numbers of a class mean the same in all of them: its **similarity**, the cosine of
the query and the nearest picture of that class, in [-1, 1], higher is nearer; its **distance**, the Euclidean one of
the same two unit vectors, sqrt(2 - 2 similarity), in [0, 2], lower is nearer; and its **probability**, given that the
query is of one of the classes.

`benchmarks/fewshot.py` measures all of it on episodes; docs/results/fewshot.md holds what it found.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lookalike.catalogue import rows
from lookalike.errors import CatalogueError, ImageError, MissingExtra, QueryError, ShapeError
from lookalike.images import read_bytes, shown
from lookalike.labels import by_column, by_folder
from lookalike.metrics import Numbers, Values
from lookalike.tables import is_table
from lookalike.vectors import Vectors, as_rows, unit

METHODS = ("ridge", "centroid", "nearest", "logistic", "svm")
# What a query is called that is of no class: among labels of text, and among whole numbers.
UNKNOWN, UNKNOWN_NUMBER = "unknown", -1

# Of the squared weights, against squared errors on unit vectors. From 0.1 to 0.5 accuracy moves by half a point.
RIDGE = 0.2
# Inverse strength of scikit-learn's regularisation, best of 1, 10 and 100.
STRENGTH = {"logistic": 10.0, "svm": 1.0}
# What scores are divided by before the softmax where the support cannot say: about the best for episodes of one shot,
# as benchmarks/fewshot.py tells. Scores of "ridge" shrink with the number of classes: over its square root.
TEMPERATURE = {"ridge": 0.4, "centroid": 0.17, "nearest": 0.17, "logistic": 0.5, "svm": 0.19}
# How far the support may move it: the standard deviation of its logarithm, as a prior worth one picture.
TEMPERATURE_SPREAD = 0.5
# With one picture per class: so many standard deviations above the mean of what other classes reach.
ONE_SHOT_MARGIN = 0.5
# The transductive step: rounds, how surely scores become soft labels, and what a query weighs beside a support picture.
ROUNDS, QUERY_WEIGHT = 3, {"ridge": 0.3, "centroid": 1.0}
SHARPNESS = {"ridge": 8.0, "centroid": 20.0}
# Folds for heads that have no leave-one-out in closed form.
FOLDS = 5
# Rows whose cosines with the whole support are held at once.
BLOCK = 512
# Below this length a centred vector is rounding, and has no direction.
NOTHING = 1e-5

__all__ = [
    "METHODS",
    "UNKNOWN",
    "UNKNOWN_NUMBER",
    "Candidate",
    "Decision",
    "FewShotClassifier",
    "Support",
    "encode_support",
    "read_support",
]


# ── the classifier ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Candidate:
    """A class, as an answer to a query.

    Attributes:
        label: the class.
        probability: that it is this one, given that it is one of the classes; in [0, 1].
        similarity: the cosine of the query and the picture of this class nearest to it, in [-1, 1]; higher is nearer.
        distance: the Euclidean distance of the same two unit vectors, in [0, 2]; lower is nearer.
        support: that picture, as its row in the support.
    """

    label: Any
    probability: float
    similarity: float
    distance: float
    support: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What a query was taken for.

    Attributes:
        label: its class, or None where it is of none ("unknown").
        candidates: the classes, most probable first; also where `label` is None.
    """

    label: Any
    candidates: tuple[Candidate, ...]


class FewShotClassifier:
    """Which of K classes, N pictures of each being known: scikit-learn's contract over vectors.

    Probabilities are a softmax of the method's scores over a temperature. It is fitted on the support, each picture
    scored as if it were not there (leave-one-out; five folds with "logistic" and "svm"), by the likelihood and a prior
    that a handful of pictures cannot pull far. Classes of one picture have no leave-one-out: where all are such, the
    prior alone decides.

    A query is **unknown** if its similarity to the class it would get is below a threshold: the number given, or with
    "auto" one found on the support. There, a picture's similarity to the rest of its class says what belonging looks
    like, and its similarity to the nearest other class what a stranger looks like (its class being left out); the
    threshold lies equally many standard deviations from either mean. With one picture per class there are only
    strangers, and it lies half a standard deviation above their mean: a guess, and `notes_` says so.

    Args:
        method: one of `METHODS`.
        transductive: let the queries of one call teach each other: their soft labels join the support (soft k-means of
            Ren et al., "Meta-learning for semi-supervised few-shot classification", 2018; for "ridge" the same with
            its own scores). Answers then depend on which queries come together. For "ridge" and "centroid".
        unknown: None to give every query a class; a cosine in [-1, 1]; or "auto".

    Attributes:
        classes_: (K,) the labels, sorted.
        vectors_: (n, dim) float32, the support as unit vectors, in the order it came.
        labels_: (n,) their labels.
        temperature_: of the softmax.
        threshold_: the similarity below which a query is unknown, or None.
        held_out_: how many pictures leave-one-out could ask about.
        notes_: sentences about what had to be assumed.
        n_features_in_: dim.
    """

    _estimator_type = "classifier"

    def __init__(
        self, method: str = "ridge", *, transductive: bool = False, unknown: float | str | None = None
    ) -> None:
        self.method = method
        self.transductive = transductive
        self.unknown = unknown

    # ── scikit-learn's contract ──

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> FewShotClassifier:
        """Change arguments of the constructor; they count from the next `fit`. Raises ValueError for other names."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"FewShotClassifier has no parameter {name}: it has {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(),
        )

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"FewShotClassifier({given})"

    def fit(self, vectors: Any, labels: Any) -> FewShotClassifier:
        """Learn a support set.

        Args:
            vectors: (n, dim), unit length or not (they are scaled).
            labels: (n,) the class of each: text or whole numbers.

        Raises:
            ShapeError: the lengths differ, nothing is given, or a row has no direction.
            QueryError: no such method, or one that has no transductive step; a threshold that is no cosine; "auto" with
                a single class; or a class with the name that the unknown have.
            MissingExtra: "logistic" or "svm" without scikit-learn.
        """
        self._check()
        rows_ = unit(vectors)
        names = np.asarray(labels)
        if names.shape != (len(rows_),) or not len(rows_):
            raise ShapeError(
                f"labels must have shape ({len(rows_)},), one for each of 1 or more vectors; got {names.shape}"
            )
        return self._settle(rows_, names)

    def add(self, vectors: Any, labels: Any) -> FewShotClassifier:
        """More pictures, of new classes or old ones. Nothing is trained but the heads of scikit-learn.

        Arguments and errors as for `fit`.
        """
        self._fitted()
        rows_, names = unit(vectors, self.vectors_.shape[1]), np.asarray(labels)
        if names.shape != (len(rows_),):
            raise ShapeError(f"labels must have shape ({len(rows_)},), one for each vector; got {names.shape}")
        return self._settle(np.concatenate([self.vectors_, rows_]), np.concatenate([self.labels_, names]))

    def remove(self, label: Any) -> FewShotClassifier:
        """Forget a class and its pictures; rows of the support move up.

        Raises:
            QueryError: there is no such class, or no other.
        """
        self._fitted()
        kept = self.labels_ != label
        if kept.all() or not kept.any():
            reason = "there is none of that name" if kept.all() else "it is the only one"
            raise QueryError(f"class {label!r} cannot be removed: {reason}")
        return self._settle(self.vectors_[kept], self.labels_[kept])

    def predict(self, vectors: Any) -> npt.NDArray[Any]:
        """The class of each query: (n,) of `classes_`, with `UNKNOWN` (`UNKNOWN_NUMBER`) for those of none."""
        probability, similarity, _ = self._asked(vectors)
        best = probability.argmax(1)
        if self.threshold_ is None:
            answers: npt.NDArray[Any] = self.classes_[best]
            return answers
        strange = similarity[np.arange(len(best)), best] < self.threshold_
        answers = np.where(strange, _unknown_among(self.classes_), self.classes_[best])
        return answers

    def predict_proba(self, vectors: Any) -> Values:
        """(n, K) float64, in the order of `classes_`; rows sum to 1: they suppose that a query is of one of them."""
        return self._asked(vectors)[0]

    def decide(self, vectors: Any, top: int | None = None) -> list[Decision]:
        """All there is to say about each query: its class, and the `top` most probable ones (default: all).

        Raises:
            ShapeError: another width than the support's, or a row without direction.
            QueryError: not fitted yet.
        """
        probability, similarity, nearest = self._asked(vectors)
        decisions = []
        for chance, cosine, support in zip(probability, similarity, nearest, strict=True):
            order = np.argsort(-chance, kind="stable")
            strange = self.threshold_ is not None and cosine[order[0]] < self.threshold_
            candidates = tuple(
                Candidate(
                    label=self.classes_[i],
                    probability=float(chance[i]),
                    similarity=float(cosine[i]),
                    distance=float(np.sqrt(max(0.0, 2 - 2 * float(cosine[i])))),
                    support=int(support[i]),
                )
                for i in order[:top]
            )
            decisions.append(Decision(None if strange else self.classes_[order[0]], candidates))
        return decisions

    def score(self, vectors: Any, labels: Any) -> float:
        """Accuracy of `predict`."""
        return float((self.predict(vectors) == np.asarray(labels)).mean())

    # ── inside ──

    def _check(self) -> None:
        if self.method not in METHODS:
            raise QueryError(f"no method {self.method}: choose one of {', '.join(METHODS)}")
        if self.transductive and self.method not in SHARPNESS:
            raise QueryError(f"method {self.method} has no transductive step: choose one of {', '.join(SHARPNESS)}")
        if self.unknown not in (None, "auto") and not (
            isinstance(self.unknown, int | float) and -1 <= self.unknown <= 1
        ):
            raise QueryError(f"unknown must be None, 'auto' or a cosine from -1 to 1, got {self.unknown!r}")

    def _fitted(self) -> None:
        if not hasattr(self, "classes_"):
            raise QueryError("this classifier has no support yet: call fit(vectors, labels) first")

    def _settle(self, vectors: Vectors, labels: npt.NDArray[Any]) -> FewShotClassifier:
        """Everything that follows from the support. Nothing changes where it fails."""
        classes, number = np.unique(labels, return_inverse=True)
        if self.unknown is not None and _unknown_among(classes) in classes:
            raise QueryError(
                f"a class is named {_unknown_among(classes)!r}, as what is of no class is: rename it, or give every "
                "query a class (unknown off)"
            )
        notes: list[str] = []
        threshold = _threshold(vectors, number, notes) if self.unknown == "auto" else self.unknown
        # Of the class means, so that a class of many pictures does not become the centre.
        mean = (np.eye(len(classes))[:, number] @ vectors / np.bincount(number)[:, None]).mean(0)
        head = _head(self.method, _centred(vectors, mean), number, len(classes))
        scores = head.held_out()
        has_others = np.bincount(number)[number] > 1
        temperature = TEMPERATURE[self.method] / (np.sqrt(len(classes)) if self.method == "ridge" else 1)
        if has_others.any() and len(classes) > 1:
            temperature = _temperature(scores[has_others], number[has_others], temperature)
        elif len(classes) > 1:
            notes.append("one picture per class: probabilities are those of typical pictures, not fitted to these")
        self.classes_, self.vectors_, self.labels_ = classes, vectors, labels
        self.temperature_, self.held_out_ = float(temperature), int(has_others.sum())
        self.threshold_ = None if threshold is None else float(threshold)
        self.notes_, self.n_features_in_ = notes, vectors.shape[1]
        self._mean, self._head = mean, head
        # The support by class, so that the nearest picture of each is one reduction.
        self._order = np.argsort(number, kind="stable")
        self._starts = np.searchsorted(number[self._order], np.arange(len(classes)))
        return self

    def _asked(self, vectors: Any) -> tuple[Values, Values, Numbers]:
        """Of each query and class: probability, similarity, and the row of the nearest support picture; all (n, K)."""
        self._fitted()
        queries = as_rows(vectors, self.vectors_.shape[1], "queries")
        queries = unit(queries) if len(queries) else queries.reshape(0, self.vectors_.shape[1])
        similarity = np.empty((len(queries), len(self.classes_)))
        nearest = np.empty(similarity.shape, dtype=np.int64)
        ends = [*self._starts[1:], len(self._order)]
        for part in _blocks(len(queries)):
            cosines = (queries[part] @ self.vectors_[self._order].T).clip(-1, 1)
            for column, (start, end) in enumerate(zip(self._starts, ends, strict=True)):
                nearest[part, column] = start + cosines[:, start:end].argmax(1)
            similarity[part] = np.take_along_axis(cosines, nearest[part], axis=1)
        space = _centred(queries, self._mean)
        scores = self._head.refined(space) if self.transductive and len(space) else self._head.scores(space)
        return _softmax(scores / self.temperature_), similarity, self._order[nearest]


def _blocks(count: int) -> Iterator[slice]:
    """Rows at a time, so that memory does not grow with the product of queries and pictures."""
    for first in range(0, count, BLOCK):
        yield slice(first, first + BLOCK)


def _unknown_among(classes: npt.NDArray[Any]) -> Any:
    return UNKNOWN_NUMBER if np.issubdtype(classes.dtype, np.number) else UNKNOWN


def _centred(vectors: Vectors, mean: Values) -> Values:
    """Rows less the mean, at unit length; those that equal the mean are zero, and lean to no class."""
    return _directions(vectors - mean)


def _directions(rows_: Values) -> Values:
    length = np.sqrt(np.einsum("ij,ij->i", rows_, rows_))[:, None]
    return np.where(length > NOTHING, rows_ / np.maximum(length, NOTHING), 0.0)


def _softmax(scores: Values) -> Values:
    raised = np.exp(scores - scores.max(1, keepdims=True))
    shares: Values = raised / raised.sum(1, keepdims=True)
    return shares


# ── methods ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Head(Protocol):
    def scores(self, space: Values) -> Values:
        """(n, K), higher is likelier, of centred unit vectors (n, dim)."""

    def held_out(self) -> Values:
        """(n, K) scores of the support, each picture scored as if it were not in it."""

    def refined(self, space: Values) -> Values:
        """As `scores`, with all rows taken for unlabelled pictures of the same classes."""


def _head(method: str, space: Values, number: Numbers, classes: int) -> _Head:
    kinds: dict[str, Any] = {"ridge": _Ridge, "centroid": _Centroid, "nearest": _Nearest}
    if method in kinds:
        head: _Head = kinds[method](space, number, classes)
        return head
    return _Sklearn(method, space, number, classes)


class _Ridge:
    """Least squares on targets 1 for the own class and -1 / (K - 1) for the others, every class with equal weight."""

    def __init__(self, space: Values, number: Numbers, classes: int) -> None:
        self._space, self._targets = space, _targets(np.eye(classes)[number])
        sizes = np.bincount(number, minlength=classes)
        self._weights = (len(number) / classes / sizes)[number]
        self._slopes, self._leverage = _least_squares(space, self._targets, self._weights)

    def scores(self, space: Values) -> Values:
        found: Values = space @ self._slopes
        return found

    def held_out(self) -> Values:
        """Exact, without fitting again: what a picture adds to its own score is its leverage (Allen's PRESS, 1974)."""
        leverage = self._leverage[:, None]
        found: Values = (self.scores(self._space) - leverage * self._targets) / (1 - leverage)
        return found

    def refined(self, space: Values) -> Values:
        scores = self.scores(space)
        both = np.concatenate([self._space, space])
        weights = np.concatenate([self._weights, np.full(len(space), QUERY_WEIGHT["ridge"])])
        for _ in range(ROUNDS):
            soft = _targets(_softmax(SHARPNESS["ridge"] * scores))
            scores = space @ _least_squares(both, np.concatenate([self._targets, soft]), weights)[0]
        return scores


def _targets(shares: Values) -> Values:
    others = max(1, shares.shape[1] - 1)
    found: Values = shares * (1 + 1 / others) - 1 / others
    return found


def _least_squares(space: Values, targets: Values, weights: Values) -> tuple[Values, Values]:
    """Slopes (dim, K), and how much each row (n,) pulls its own fit; through whichever matrix is smaller."""
    count, dim = space.shape
    if count <= dim:
        inverse = np.linalg.inv(space @ space.T + np.diag(RIDGE / weights))
        return space.T @ (inverse @ targets), 1 - RIDGE * np.diagonal(inverse) / weights
    weighted = space * weights[:, None]
    inverse = np.linalg.inv(space.T @ weighted + RIDGE * np.eye(dim))
    return inverse @ (weighted.T @ targets), np.einsum("ij,ij->i", weighted @ inverse, space)


class _Centroid:
    """The cosine with the mean of each class."""

    def __init__(self, space: Values, number: Numbers, classes: int) -> None:
        self._space, self._number = space, number
        self._sums = np.eye(classes)[:, number] @ space

    def scores(self, space: Values) -> Values:
        return _cosines(space, self._sums)

    def held_out(self) -> Values:
        scores = self.scores(self._space)
        rest = _cosines(self._space, self._sums[self._number] - self._space, paired=True)
        scores[np.arange(len(scores)), self._number] = rest
        return scores

    def refined(self, space: Values) -> Values:
        scores = self.scores(space)
        for _ in range(ROUNDS):
            soft = QUERY_WEIGHT["centroid"] * _softmax(SHARPNESS["centroid"] * scores)
            scores = _cosines(space, self._sums + soft.T @ space)
        return scores


def _cosines(space: Values, sums: Values, paired: bool = False) -> Values:
    """Of unit rows with the directions of `sums`: all with all (n, K), or row with row (n,)."""
    directions = _directions(sums)
    found: Values = np.einsum("ij,ij->i", space, directions) if paired else space @ directions.T
    return found


class _Nearest:
    """The cosine with the nearest picture of each class."""

    def __init__(self, space: Values, number: Numbers, classes: int) -> None:
        self._space, self._number, self._classes = space, number, classes

    def scores(self, space: Values) -> Values:
        return _best(space @ self._space.T, self._number, self._classes)

    def held_out(self) -> Values:
        scores = np.empty((len(self._space), self._classes))
        for part in _blocks(len(self._space)):
            cosines = self._space[part] @ self._space.T
            cosines[np.arange(len(cosines)), np.arange(part.start, part.start + len(cosines))] = -1
            scores[part] = _best(cosines, self._number, self._classes)
        return scores

    def refined(self, space: Values) -> Values:
        return self.scores(space)


def _best(cosines: Values, number: Numbers, classes: int) -> Values:
    return np.stack([cosines[:, number == i].max(1) for i in range(classes)], axis=1)


class _Sklearn:
    """A linear head of scikit-learn."""

    def __init__(self, method: str, space: Values, number: Numbers, classes: int) -> None:
        self._method, self._space, self._number, self._classes = method, space, number, classes
        self._fit = _sklearn_fit(method, space, number) if classes > 1 else None

    def scores(self, space: Values) -> Values:
        return _decisions(self._fit, space, self._classes)

    def held_out(self) -> Values:
        """In folds, since each takes a training: the k-th picture of every class is in fold k modulo 5."""
        turn = np.zeros(len(self._number), dtype=np.int64)
        for i in range(self._classes):
            turn[self._number == i] = np.arange((self._number == i).sum())
        # The first of each class stays where it is the only one: no class is without a picture.
        alone = np.bincount(self._number)[self._number] == 1
        scores = np.zeros((len(self._number), self._classes))
        if self._classes == 1 or alone.all():
            return scores
        for fold in range(min(FOLDS, int(turn.max()) + 1)):
            asked = (turn % FOLDS == fold) & ~alone
            fit = _sklearn_fit(self._method, self._space[~asked], self._number[~asked])
            scores[asked] = _decisions(fit, self._space[asked], self._classes)
        return scores

    def refined(self, space: Values) -> Values:
        return self.scores(space)


def _sklearn_fit(method: str, space: Values, number: Numbers) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise MissingExtra(f"method {method}", "scikit-learn", "baselines") from error
    kinds = {"logistic": LogisticRegression, "svm": LinearSVC}
    options = {"C": STRENGTH[method], "class_weight": "balanced", "max_iter": 1000}
    return kinds[method](**options).fit(space, number)


def _decisions(fit: Any, space: Values, classes: int) -> Values:
    if fit is None or not len(space):
        return np.zeros((len(space), classes))
    found = np.asarray(fit.decision_function(space), dtype=np.float64)
    # Of two classes scikit-learn gives one column.
    return np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found


# ── calibration ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _temperature(scores: Values, number: Numbers, usual: float) -> float:
    """The most probable temperature: likelihood of held-out scores, every class with one voice, and the prior.

    Found on a grid of its logarithm, coarse then fine, to five per cent: it cannot fail to end.
    """
    sizes = np.bincount(number, minlength=scores.shape[1])
    voices = 1 / sizes[number]
    voices *= len(number) / voices.sum()
    best = 0.0
    for reach, count in ((3.0, 25), (0.25, 11)):
        steps = best + np.linspace(-reach, reach, count)
        costs = []
        for step in steps:
            chance = _softmax(scores / (usual * np.exp(step)))[np.arange(len(number)), number]
            surprise = float(-(voices * np.log(np.maximum(chance, 1e-12))).sum())
            costs.append(surprise + (step / TEMPERATURE_SPREAD) ** 2 / 2)
        best = float(steps[int(np.argmin(costs))])
    return float(usual * np.exp(best))


def _threshold(vectors: Vectors, number: Numbers, notes: list[str]) -> float:
    """Where "unknown" begins, by leave-one-out and leave-class-out on the support; see `FewShotClassifier`."""
    if len(np.unique(number)) < 2:
        raise QueryError(
            "with a single class nothing shows what a stranger looks like: give a second class, or a threshold "
            "(--unknown 0.7), or give every query that class (--unknown off)"
        )
    own, stranger = np.empty(len(number)), np.empty(len(number))
    for part in _blocks(len(number)):
        cosines = vectors[part] @ vectors.T
        cosines[np.arange(len(cosines)), np.arange(part.start, part.start + len(cosines))] = -np.inf
        same = number[part, None] == number
        own[part] = np.where(same, cosines, -np.inf).max(1)
        stranger[part] = np.where(same, -np.inf, cosines).max(1)
    own = own[np.isfinite(own)]
    if len(own):
        spread = own.std() + stranger.std()
        share = stranger.std() / spread if spread > 0 else 0.5
        return float(stranger.mean() + share * (own.mean() - stranger.mean()))
    notes.append("one picture per class: where unknown begins is a guess, from how alike the classes are")
    return float(min(1.0, stranger.mean() + ONE_SHOT_MARGIN * stranger.std()))


# ── the support set ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Support:
    """Labelled pictures.

    Attributes:
        paths: (n) where they are.
        labels: (n) the class of each.
        notes: sentences about what was left out, with counts.
        vectors: (n, dim) float32, once they are encoded; else None.
    """

    paths: Sequence[str]
    labels: Sequence[str]
    notes: Sequence[str] = ()
    vectors: Vectors | None = field(default=None, repr=False)


def read_support(
    source: str | os.PathLike[str] | Iterable[tuple[str, str | os.PathLike[str]]], labels: str = "label"
) -> Support:
    """Read which pictures show what; their files are not opened.

    Args:
        source: a folder with a folder per class; a table (see `lookalike.catalogue.rows`); or pairs (label, picture
            or folder of pictures).
        labels: the column of the CSV file that holds the label.

    Raises:
        CatalogueError: nothing there, no folder per class, no such column, or a picture under two labels.
    """
    if not isinstance(source, str | os.PathLike):
        listed = [(row.path, label) for label, place in source for row in rows([place])]
        notes: list[str] = []
        what = "the support"
    else:
        place = os.fspath(source)
        what = f"support {shown(place)}"
        if os.path.isdir(place):  # noqa: PTH112 - a str keeps undecodable bytes as they are
            found = by_folder(place)
        elif is_table(place):
            found = by_column(place, labels, None)
        else:
            raise CatalogueError(
                f"{what} is neither a folder with a folder per class nor a CSV file: make one, or write label=picture"
            )
        listed = [(example.path, example.label) for example in found.examples]
        notes = list(found.notes)
        if {label for _, label in listed} == {"."}:
            raise CatalogueError(
                f"{what} holds pictures, but no folder per class: make a folder for each class, or write label=picture"
            )
    if not listed:
        raise CatalogueError(f"{what} holds no labelled picture: {'; '.join(notes) or 'it is empty'}")
    return Support([path for path, _ in listed], [label for _, label in listed], notes)


def encode_support(encoder: Any, support: Support, shots: int | None = None) -> Support:
    """The support as vectors: readable pictures, each content once, the first `shots` of each class (default: all).

    A picture whose very content lies under two labels contradicts itself, and is left out of both; one that lies
    twice in a class counts once. Both are told in `Support.notes`, as is every picture that cannot be read.

    Args:
        encoder: a `lookalike.Encoder`.
        support: what `read_support` gave.
        shots: pictures of each class, in their order; a class with fewer is an error.

    Raises:
        CatalogueError: a class has no picture left, or fewer than `shots`.
        QueryError: `shots` is below 1.
    """
    if shots is not None and shots < 1:
        raise QueryError(f"shots must be at least 1, got {shots}")
    notes = list(support.notes)
    waiting = _distinct(support, notes)
    _check_classes(support, Counter(label for _, label in waiting), None, notes)
    vectors: list[Vectors] = []
    kept: list[tuple[str, str]] = []
    have: Counter[str] = Counter()
    while waiting:
        # With a limit, only as many as are missing; further ones where some of these cannot be read.
        taken, later = _first(waiting, have, shots)
        for (path, label), outcome in zip(taken, encoder.stream([path for path, _ in taken]), strict=True):
            if outcome.vector is None:
                notes.append(f"skipped: {outcome.error}")
                continue
            vectors.append(outcome.vector)
            kept.append((path, label))
            have[label] += 1
        waiting = later
    _check_classes(support, have, shots, notes)
    place = {path: number for number, path in enumerate(support.paths)}
    order = sorted(range(len(kept)), key=lambda i: place[kept[i][0]])
    return Support(
        [kept[i][0] for i in order], [kept[i][1] for i in order], notes, np.stack([vectors[i] for i in order])
    )


def _first(
    waiting: Sequence[tuple[str, str]], have: Mapping[str, int], shots: int | None
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Those to read now, and those to keep for later, without the ones that no class needs any more."""
    if shots is None:
        return list(waiting), []
    taken, later, count = [], [], Counter(have)
    for path, label in waiting:
        if count[label] < shots:
            taken.append((path, label))
            count[label] += 1
        elif have[label] < shots:
            later.append((path, label))
    return (taken, later) if taken else ([], [])


def _distinct(support: Support, notes: list[str]) -> list[tuple[str, str]]:
    """Each content once, and none that has two labels. Files that cannot be opened stay: the encoder says why."""
    prints: dict[str, list[int]] = defaultdict(list)
    for number, path in enumerate(support.paths):
        try:
            prints[sha256(read_bytes(path)).hexdigest()].append(number)
        except (ImageError, OSError):
            prints[path].append(number)
    left_out: set[int] = set()
    copies = 0
    for numbers in prints.values():
        labels = sorted({support.labels[number] for number in numbers})
        if len(labels) > 1:
            left_out.update(numbers)
            named = " and ".join(shown(support.paths[number]) for number in numbers[:3])
            notes.append(f"left out: {named} are one picture with the labels {', '.join(labels)}; it can teach neither")
        else:
            left_out.update(numbers[1:])
            copies += len(numbers) - 1
    if copies:
        notes.append(
            f"{copies:,} {'picture is a copy' if copies == 1 else 'pictures are copies'} within a class: counted once"
        )
    pairs = zip(support.paths, support.labels, strict=True)
    return [pair for number, pair in enumerate(pairs) if number not in left_out]


def _check_classes(support: Support, have: Mapping[str, int], shots: int | None, notes: Sequence[str]) -> None:
    labels = list(dict.fromkeys(support.labels))
    empty = [label for label in labels if not have.get(label)]
    if empty:
        reasons = "; ".join(note for note in notes if note.startswith(("left out", "skipped")))
        raise CatalogueError(
            f"class {', '.join(empty[:5])} has no picture left ({reasons}): give it another, or remove it"
        )
    short = [label for label in labels if have[label] < (shots or 0)]
    if short:
        named = ", ".join(f"{label} has {have[label]}" for label in short[:5]) + (" …" if len(short) > 5 else "")
        fewest = min(have.values())
        raise CatalogueError(
            f"{shots} shots are more than there are: {named}; ask for {fewest} at most, or leave --shots out to use all"
        )
