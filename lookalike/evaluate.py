"""Judge an encoder by the protocols of the literature: the same questions to any encoder, and what it is worth.

==============  ======================================================================================================
retrieval       each picture asks all the others; those of its class are relevant (Musgrave et al. 2020)
query-gallery   some pictures ask, others are asked
episodes        K-way N-shot: which of K classes, N pictures of each known (Vinyals et al. 2016, Snell et al. 2017)
lake            the fixed one-shot runs of Lake, Salakhutdinov and Tenenbaum (2015), in their published folders
pairs           the same or not, in the folds of Labeled Faces in the Wild (Huang et al. 2007), or pairs of a CSV file
captions        words ask for pictures and pictures for words (Hodosh, Young and Hockenmaier 2013)
==============  ======================================================================================================

Ties go against the encoder: one that gives a constant vector scores no more than chance in any of them. Equal settings
ask equal questions in equal order, so that two encoders can be compared question by question.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lookalike.captions import read_captions
from lookalike.catalogue import listed_path, read_table
from lookalike.errors import ImageError, QueryError, ShapeError
from lookalike.images import shown
from lookalike.labels import Labelled, labelled, makers_of
from lookalike.metrics import TIE, Interval, Numbers, Values, few_shot, mean_interval, paired_interval
from lookalike.questions import inside, read_folders, read_pairs, read_roles, read_runs
from lookalike.ranking import first_ranks, retrieval
from lookalike.vectors import Vectors, unit
from lookalike.verification import (
    Roc,
    bootstrap,
    fold_accuracy,
    held_out_correct,
    paired_bootstrap,
    report,
    roc,
)

PROTOCOLS = ("retrieval", "query-gallery", "episodes", "lake", "pairs", "captions")
# Of a list of pairs without folds; LFW has as many.
FOLDS = 10
# Pictures at a time for an encoder that cannot stream.
BATCH = 64
# Queries at a time where the nearest class is asked for: 32 MiB of scores.
CELLS = 1 << 23

# Of errors there should be few; of all other measures, more is better.
LOWER_IS_BETTER = frozenset({"eer"})

_CURVE_MEASURES: dict[str, Callable[[Roc], float]] = {
    "eer": Roc.eer,
    "auc": Roc.area,
    "tar_at_far_0.01": partial(Roc.tar_at_far, far=0.01),
    "tar_at_far_0.001": partial(Roc.tar_at_far, far=0.001),
}
_TITLES = {
    "map_at_r": "MAP@R",
    "map": "mAP",
    "mrr": "MRR",
    "triplet_accuracy": "triplet accuracy",
    "accuracy": "accuracy",
    "mirror": "accuracy, mirrored",
    "eer": "equal error rate",
    "auc": "area under the ROC",
}

__all__ = [
    "FOLDS",
    "LOWER_IS_BETTER",
    "PROTOCOLS",
    "Embedded",
    "Embedder",
    "Results",
    "differences",
    "evaluate",
    "fingerprint_of",
    "groups_of",
    "nearest_classes",
    "title",
]


class Embedder(Protocol):
    """Whatever turns pictures into vectors: `lookalike.Encoder`, a baseline, or three lines around another network."""

    def images(self, pictures: Sequence[Any], /) -> Any:
        """(n, dim) rows for n pictures; an `ImageError` where one cannot be read."""


@dataclass(frozen=True)
class Embedded:
    """The pictures of an evaluation, their vectors and what is known of them, for whoever wants to look at them.

    Attributes:
        paths: n pictures.
        vectors: (n, dim) float32 unit rows; zeros where a picture cannot be read.
        readable: (n,) bool.
        home: the folder that the pictures, or the list of them, lie in.
        labels: (n,) the class of each, or None.
        groups: (n,) which show one thing, or None.
        asks: (n,) bool, whether it is a query (the others are the gallery), or None: each asks all others.
        pairs: (m, 2) int64, for protocol "pairs": which two pictures; else None.
        same: (m,) bool, whether they are the same.
    """

    paths: Sequence[str]
    vectors: Vectors
    readable: npt.NDArray[np.bool_]
    home: str
    labels: npt.NDArray[Any] | None = None
    groups: npt.NDArray[Any] | None = None
    asks: npt.NDArray[np.bool_] | None = None
    pairs: Numbers | None = None
    same: npt.NDArray[np.bool_] | None = None

    def decided(self) -> tuple[npt.NDArray[np.bool_], Values]:
        """Of "pairs": which can be read, (m,) bool, and the cosines of those, rounded to what counts as a tie."""
        assert self.pairs is not None
        kept: npt.NDArray[np.bool_] = np.asarray(self.readable[self.pairs].all(1))
        left, right = self.vectors[self.pairs[kept].T]
        cosines: Values = np.einsum("ij,ij->i", left, right, dtype=np.float64)
        return kept, np.round(cosines / TIE) * TIE


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        protocol: one of `PROTOCOLS`.
        settings: what was asked, and how.
        encoder: name, and fingerprint where it has one.
        measures: name → mean and 95 % interval, by bootstrap over questions (queries, episodes, runs or pairs). As
            ever, that takes them for independent: questions that share a picture or a person are a little less so.
        answers: name → one number per question, NaN where it does not count; kept out of `document`.
        pictures: how many were to be encoded.
        unreadable: one sentence for each that could not; no question counts that needs one.
        fingerprint: SHA-256 over the sorted relative names and sizes of pictures and lists: equal for equal data.
        seconds: it took.
        details: what else the protocol tells, as JSON.
        notes: sentences about what was left out or assumed.
        curve: the ROC curve of all pairs, with protocol "pairs".
        embedded: the pictures and their vectors; kept out of `document`.
    """

    protocol: str
    settings: Mapping[str, Any]
    encoder: Mapping[str, str]
    measures: Mapping[str, Interval]
    answers: Mapping[str, Values]
    pictures: int
    unreadable: Sequence[str]
    fingerprint: str
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    curve: Roc | None = None
    embedded: Embedded | None = None

    def document(self) -> dict[str, Any]:
        """As JSON, without what each question gave."""
        return {
            "protocol": self.protocol,
            "settings": dict(self.settings),
            "encoder": dict(self.encoder),
            "measures": {name: asdict(interval) for name, interval in self.measures.items()},
            "details": dict(self.details),
            "pictures": self.pictures,
            "unreadable": len(self.unreadable),
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        """A table for people: a line per measure with its interval and the number of questions."""
        width = max(len(title(name)) for name in self.measures)
        unread = f", {len(self.unreadable):,} unreadable" if self.unreadable else ""
        head = f"{self.encoder['name']}, {self.protocol}: {self.pictures:,} pictures{unread}"
        lines = [
            f"{title(name):<{width}}  {found.mean:7.4f}  [{found.low:.4f}, {found.high:.4f}]  {found.count:,}"
            for name, found in self.measures.items()
        ]
        return "\n".join([head, "", f"{'':<{width}}  {'mean':>7}  95 % interval     questions", *lines])


def title(measure: str) -> str:
    """The name of a measure for people: "r_at_10" is R@10."""
    cut = re.fullmatch(r"(r|p|ndcg)_at_(\d+)", measure)
    if cut:
        return f"{ {'r': 'R', 'p': 'P', 'ndcg': 'nDCG'}[cut[1]] }@{cut[2]}"
    asked, _, rest = measure.partition("_r_at_") if "_to_" in measure else measure.partition("_mrr")
    if "_to_" in measure:
        return f"{asked.removesuffix('_mrr').replace('_to_', ' → ')}, {f'R@{rest}' if rest else 'MRR'}"
    if measure.startswith("tar_at_far_"):
        return f"TAR at FAR {measure.removeprefix('tar_at_far_')}"
    return _TITLES.get(measure, measure)


def differences(ours: Results, theirs: Results) -> dict[str, Interval]:
    """Paired 95 % intervals of `ours` - `theirs` of all measures: above zero, ours is better.

    The other way round for those that are `LOWER_IS_BETTER`.

    Of measures of a ROC curve, which are no means over questions, both curves are drawn anew from the same pairs.

    Raises:
        QueryError: they are answers to different questions.
    """
    for what in ("protocol", "settings", "fingerprint", "unreadable"):
        if getattr(ours, what) != getattr(theirs, what):
            raise QueryError(f"two evaluations can be compared if both have one {what}: ask both the same questions")
    gaps = {name: paired_interval(ours.answers[name], theirs.answers[name]) for name in ours.answers}
    if ours.protocol == "pairs" and ours.embedded is not None and theirs.embedded is not None:
        (kept, scores), (_, others) = ours.embedded.decided(), theirs.embedded.decided()
        gaps |= paired_bootstrap(scores, others, ours.embedded.same[kept], _CURVE_MEASURES)  # type: ignore[index]
    return gaps


def evaluate(
    encoder: Embedder,
    source: str | os.PathLike[str],
    *,
    protocol: str = "retrieval",
    labels: str | os.PathLike[str] | None = None,
    group: str | None = None,
    category: str | None = None,
    ks: Sequence[int] = (1, 5, 10),
    full: bool = False,
    way: int = 20,
    shot: int = 1,
    episodes: int = 1000,
    within: bool | None = None,
    maker: str | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> Results:
    """Ask an encoder the questions of a protocol.

    Args:
        encoder: see `Embedder`. It is asked once for each picture.
        source: a folder of pictures or a CSV file. For "query-gallery", a CSV file with a column ``role`` that says
            query or gallery, or a folder with the folders ``query`` and ``gallery``, each with a folder per class. For
            "lake", the folder that holds ``run01/class_labels.txt`` and so on. For "pairs", a folder with LFW's
            ``pairs.txt`` and a folder per person, or a CSV file with the columns ``left,right,same``, and perhaps
            ``fold``. For "captions", a CSV file of pictures and captions, see `lookalike.captions.read_captions`; with
            a column ``split``, the test part is asked, or else the validation part.
        protocol: one of `PROTOCOLS`.
        labels: who is alike, see `lookalike.labels.labelled`; for "pairs" the list, where it is not ``pairs.txt``; for
            "captions" the columns of words, with commas between them, where they are not found by name.
        group: the column of a CSV file that says which pictures show one thing (the same product from another side):
            a query finds none of its own group. For "retrieval" and "query-gallery".
        category: the column of the super-class, if `source` is a CSV file.
        ks: how many neighbours to look at; for "retrieval" and "query-gallery".
        full: mAP, MRR and triplet accuracy as well, which take longer; for the same.
        way: classes of an episode.
        shot: known pictures of each.
        episodes: how many.
        within: whether the classes of an episode come from one super-class. By default, if there are any.
        maker: a regular expression with a group that finds in each file name who made it: in an episode, supports are
            by one maker and queries by another.
        folds: with "retrieval", deal the classes into so many folds; a picture asks only those of its own fold, so that
            an encoder taught on the other folds can be judged by what it has not seen. By default there is one.
        seed: of the draw of episodes, and of the folds.

    Raises:
        QueryError: no such protocol, or the pictures do not allow it.
        CatalogueError: a list or a table is malformed; the message names file and line.
    """
    began = time.monotonic()
    words = None if labels is None else os.fspath(labels)
    near = tuple(ks)
    dealt: dict[str, Any] = {} if folds is None else {"folds": folds, "seed": seed}
    # What a reader is given by name is told in the settings, unless it is None.
    readers: dict[str, partial[_Task]] = {
        "retrieval": partial(_retrieval, labels=words, group=group, ks=near, full=full, **dealt),
        "query-gallery": partial(_query_gallery, labels=words, group=group, ks=near, full=full),
        "episodes": partial(
            _episodes, labels=words, category=category, way=way, shot=shot, episodes=episodes, within=within,
            maker=maker, seed=seed,
        ),
        "lake": partial(_lake),
        "pairs": partial(_pairs, labels=words),
        "captions": partial(_captions, encoder, columns=() if words is None else tuple(words.split(","))),
    }  # fmt: skip
    if protocol not in readers:
        raise QueryError(f"no protocol {protocol}: choose one of {', '.join(PROTOCOLS)}")
    return _answered(encoder, os.fspath(source), protocol, readers[protocol], began)


def _answered(encoder: Embedder, place: str, protocol: str, reader: partial[_Task], began: float) -> Results:
    """Read the questions, encode their pictures, ask."""
    task = reader(place)
    vectors, errors = _embed(encoder, task.paths)
    readable = np.array([error is None for error in errors])
    found = task.ask(vectors, readable)
    prints = {"fingerprint": encoder.fingerprint} if hasattr(encoder, "fingerprint") else {}
    chosen = {name: value for name, value in reader.keywords.items() if value is not None}
    return Results(
        protocol=protocol,
        settings={"source": shown(place)} | chosen | task.settings,
        encoder={"name": str(getattr(encoder, "name", type(encoder).__name__)), **prints},
        measures={name: mean_interval(values) for name, values in found.answers.items()} | found.measures,
        answers=found.answers,
        pictures=len(task.paths),
        unreadable=[str(error) for error in errors if error is not None],
        fingerprint=fingerprint_of(place, [*task.paths, *task.lists]),
        seconds=time.monotonic() - began,
        details=found.details,
        notes=task.notes,
        curve=found.curve,
        embedded=Embedded(task.paths, vectors, readable, _home(place), **task.known),
    )


@dataclass(frozen=True)
class _Found:
    """Answers by question, and measures that are no means of answers."""

    answers: dict[str, Values]
    measures: dict[str, Interval] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    curve: Roc | None = None


@dataclass(frozen=True)
class _Task:
    """The questions of a protocol.

    Attributes:
        paths: the pictures, each once.
        ask: vectors (n, dim), one for each picture, and which of them were readable (n,) → what is found.
        settings: what was chosen or counted while reading.
        lists: files other than pictures that define the questions.
        notes: see `Results`.
        known: labels, groups, asks, pairs, same, as far as there are any: see `Embedded`.
    """

    paths: list[str]
    ask: Callable[[Vectors, npt.NDArray[np.bool_]], _Found]
    settings: dict[str, Any] = field(default_factory=dict)
    lists: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)


# ── encoding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _embed(encoder: Any, paths: Sequence[str]) -> tuple[Vectors, list[ImageError | None]]:
    """A unit vector for each picture, zeros where it cannot be read, and the error of each, or None."""
    if hasattr(encoder, "stream"):
        outcomes = [(outcome.vector, outcome.error) for outcome in encoder.stream(paths)]
    else:
        batches = [paths[first : first + BATCH] for first in range(0, len(paths), BATCH)]
        outcomes = [outcome for some in batches for outcome in _outcomes(encoder, some)]
    errors = [error for _, error in outcomes]
    readable = [vector for vector, _ in outcomes if vector is not None]
    if not readable:
        raise QueryError(f"none of the {len(paths):,} pictures can be read: {errors[0] if errors else 'there is none'}")
    found = np.zeros((len(paths), len(readable[0])), dtype=np.float32)
    found[[error is None for error in errors]] = unit(np.stack(readable))
    return found, errors


def _outcomes(encoder: Embedder, paths: Sequence[str]) -> list[tuple[Any, ImageError | None]]:
    """A vector or an error for each picture. Where several fail at once, each is asked by itself: which one was it?"""
    try:
        return [(vector, None) for vector in _asked(encoder, paths)]
    except ImageError as error:
        if len(paths) == 1:
            return [(None, error)]
    return [outcome for path in paths for outcome in _outcomes(encoder, [path])]


def _asked(encoder: Embedder, paths: Sequence[str]) -> Vectors:
    vectors = np.asarray(encoder.images(paths))
    if vectors.ndim != 2 or len(vectors) != len(paths):
        raise ShapeError(f"the encoder must give ({len(paths)}, dim) for {len(paths)} pictures, got {vectors.shape}")
    return vectors


def fingerprint_of(place: str, paths: Iterable[str]) -> str:
    """SHA-256 over the sorted names, relative to `place`, and sizes of files: equal for equal data."""
    home = _home(place)
    lines = sorted({f"{os.path.relpath(path, home)} {_size(path)}" for path in paths})
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _home(place: str) -> str:
    """The folder that a folder of pictures is, or a list of them lies in."""
    return place if os.path.isdir(place) else os.path.dirname(os.path.abspath(place))  # noqa: PTH100, PTH112, PTH120


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a str keeps undecodable bytes as they are
    except OSError:
        return -1


# ── retrieval ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _retrieval(
    place: str, labels: str | None, group: str | None, ks: Sequence[int], full: bool, folds: int = 1, seed: int = 0
) -> _Task:
    found, paths, label = _labelled(place, labels)
    groups = None if group is None else groups_of(place, group, paths)
    fold = _folds(label, folds, seed)

    def ask(vectors: Vectors, readable: npt.NDArray[np.bool_]) -> _Found:
        answers: dict[str, Values] = {}
        for number in range(folds):
            here = readable & (fold == number)
            some = None if groups is None else groups[here]
            for name, values in retrieval(vectors[here], label[here], some, ks=ks, full=full).items():
                answers.setdefault(name, np.full(len(here), np.nan))[here] = values
        return _Found(answers)

    known = {"labels": label, "groups": groups} if folds == 1 else {}
    return _Task(paths, ask, {"classes": len(np.unique(label))}, _lists(place, labels), found.notes, known)


def _labelled(
    place: str, labels: str | None, category: str | None = None
) -> tuple[Labelled, list[str], npt.NDArray[Any]]:
    """Pictures with labels, by folders where nothing is said; their paths, and the class of each."""
    if labels == "none":
        raise QueryError("labels none say nothing about who is alike: an evaluation needs labels")
    found = labelled(place, labels or "folders", category=category)
    return found, [example.path for example in found.examples], np.array([example.label for example in found.examples])


def _folds(label: npt.NDArray[Any], folds: int, seed: int) -> Numbers:
    """Which fold each picture is in: whole classes, dealt at random. Raises QueryError where there are too few."""
    names, code = np.unique(label, return_inverse=True)
    if not 1 <= folds <= len(names) // 2:
        raise QueryError(
            f"{folds} folds of {len(names)} classes: each needs at least two, so ask for 1 to {len(names) // 2}"
        )
    dealt: Numbers = np.random.default_rng(seed).permutation(len(names))[code] % folds
    return dealt


def _spread(answers: Mapping[str, Values], where: npt.NDArray[np.bool_]) -> dict[str, Values]:
    """Answers at their places, NaN elsewhere."""
    whole = {name: np.full(len(where), np.nan) for name in answers}
    for name, values in answers.items():
        whole[name][where] = values
    return whole


def _lists(place: str, labels: str | None) -> list[str]:
    """The files that say who is alike: the catalogue, or a list beside the pictures."""
    if not os.path.isdir(place):  # noqa: PTH112
        return [place]
    return [inside(place, labels)] if labels and labels.lower().endswith((".csv", ".txt")) else []


def groups_of(place: str, group: str, paths: Sequence[str]) -> npt.NDArray[Any]:
    """The group of each picture, (n,) text; one that is in none is one of its own.

    Args:
        place: the CSV file.
        group: its column that says which pictures show one thing.
        paths: the pictures, absolute.

    Raises:
        QueryError: `place` is a folder.
        CatalogueError: there is no such column.
    """
    if os.path.isdir(place):  # noqa: PTH112
        raise QueryError(f"group {group} is a column, and {shown(place)} is no CSV file: leave it out")
    table = read_table(place)
    column, picture = table.column(group), table.picture_column()
    known = {listed_path(place, cells[picture]): cells[column] for _, cells in reversed(table.body)}
    names = [f"group {known[path]}" if known[path] else f"picture {number}" for number, path in enumerate(paths)]
    return np.array(names)


def _query_gallery(place: str, labels: str | None, group: str | None, ks: Sequence[int], full: bool) -> _Task:
    if os.path.isdir(place):  # noqa: PTH112
        if labels not in (None, "folders"):
            raise QueryError(f"labels {labels}: of the folders query and gallery, labels are 'folders'")
        listed, notes = read_folders(place)
    else:
        listed, notes = read_roles(place, labels)
    paths = list(listed)
    label = np.array([name for name, _ in listed.values()])
    asks = np.array([role == "query" for _, role in listed.values()])
    groups = None if group is None else groups_of(place, group, paths)
    common = set(label[asks]) & set(label[~asks])
    if not common:
        raise QueryError(
            f"{shown(place)}: no class of the {asks.sum():,} queries is in the gallery of {(~asks).sum():,} pictures"
        )

    def ask(vectors: Vectors, readable: npt.NDArray[np.bool_]) -> _Found:
        ours, theirs = asks & readable, ~asks & readable
        both: dict[str, Any] = {"gallery": vectors[theirs], "gallery_labels": label[theirs]}
        if groups is not None:
            both["gallery_groups"] = groups[theirs]
        some = None if groups is None else groups[ours]
        answers = retrieval(vectors[ours], label[ours], some, **both, ks=ks, full=full)
        counts = ~np.isnan(answers["map_at_r"])
        true = label[ours][counts]
        told = report(true, nearest_classes(vectors[ours][counts], true, None if some is None else some[counts], both))
        return _Found(_spread(answers, ours), details={"nearest_neighbour_classification": told.document()})

    settings = {"classes": len(common), "queries": int(asks.sum()), "gallery": int((~asks).sum())}
    known = {"labels": label, "groups": groups, "asks": asks}
    return _Task(paths, ask, settings, _lists(place, None), notes, known)


def nearest_classes(
    queries: Vectors, label: npt.NDArray[Any], groups: Any, gallery: Mapping[str, Any]
) -> npt.NDArray[Any]:
    """The class of each query's nearest picture; at a tie, another class than its own.

    Args:
        queries: (n, dim) unit rows.
        label: (n,) their classes.
        groups: (n,) or None: what shows the same thing is not asked.
        gallery: "gallery" (m, dim), "gallery_labels" (m,) and, with groups, "gallery_groups" (m,).
    """
    theirs, predicted = gallery["gallery_labels"], label.copy()
    step = max(1, CELLS // len(theirs))
    for first in range(0, len(queries), step):
        part = slice(first, first + step)
        scores = queries[part] @ gallery["gallery"].T
        if groups is not None:
            scores[groups[part, None] == gallery["gallery_groups"]] = -np.inf
        relevant = label[part, None] == theirs
        own = np.where(relevant, scores, -np.inf).max(1)
        scores[relevant] = -np.inf
        lost = own.astype(np.float64) - TIE <= scores.max(1)
        predicted[part][lost] = theirs[scores.argmax(1)[lost]]
    return predicted


# ── episodes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _episodes(
    place: str,
    labels: str | None,
    category: str | None,
    way: int,
    shot: int,
    episodes: int,
    within: bool | None,
    maker: str | None,
    seed: int,
) -> _Task:
    if min(way - 1, shot, episodes) < 1 or (maker is not None and shot > 1):
        raise QueryError(
            f"episodes need at least 2 ways, 1 shot and 1 episode, and 1 shot with makers: got {way} ways, {shot} "
            f"shots, {episodes} episodes"
        )
    found, paths, label = _labelled(place, labels, category)
    kinds = np.array([example.category for example in found.examples])
    if within and not any(kinds):
        raise QueryError(f"{shown(place)} knows no super-classes: episodes across all classes need none")
    narrow = any(kinds) if within is None else within
    categories = kinds if narrow else None
    makers = None if maker is None else makers_of(maker, paths)
    sizes = Counter(zip(kinds if narrow else [""] * len(label), label, strict=True))
    most = max(Counter(kind for (kind, _), size in sizes.items() if size > shot).values(), default=0)
    if way > most:
        where = "the largest super-class has" if narrow else "there are"
        raise QueryError(f"{way} ways are too many: {where} {most} classes of at least {shot + 1} pictures")

    def ask(vectors: Vectors, readable: npt.NDArray[np.bool_]) -> _Found:
        accuracy = few_shot(
            vectors[readable],
            label[readable],
            shot=shot,
            categories=None if categories is None else categories[readable],
            makers=None if makers is None else makers[readable],
            way=way,
            episodes=episodes,
            seed=seed,
        )
        return _Found({"accuracy": accuracy})

    settings = {"classes": len(np.unique(label)), "within": bool(narrow)}
    return _Task(paths, ask, settings, _lists(place, labels), found.notes, {"labels": label})


# ── the runs of Lake et al. ──────────────────────────────────────────────────────────────────────────────────────────


def _lake(place: str) -> _Task:
    lists, paths, runs = read_runs(place)

    def ask(vectors: Vectors, readable: npt.NDArray[np.bool_]) -> _Found:
        pairs = [run[readable[run].all(1)] for run in runs]
        # The other way round, each class asks which of the items is its own.
        return _Found(
            {
                "accuracy": np.array([_one_of(vectors, run[:, 0], run[:, 1]) for run in pairs]),
                "mirror": np.array([_one_of(vectors, run[:, 1], run[:, 0]) for run in pairs]),
            }
        )

    return _Task(paths, ask, {"runs": len(runs)}, lists)


def _one_of(vectors: Vectors, asks: Numbers, answers: Numbers) -> float:
    """The share of those that ask that find one of their answers nearest of all answers; ties are wrong."""
    if not len(asks):
        return float("nan")
    queries, options = np.unique(asks), np.unique(answers)
    right = np.zeros((len(queries), len(options)), dtype=bool)
    right[np.searchsorted(queries, asks), np.searchsorted(options, answers)] = True
    scores = vectors[queries].astype(np.float64) @ vectors[options].T
    own, others = (np.where(chosen, scores, -np.inf).max(1) for chosen in (right, ~right))
    return float((own - TIE > others).mean())


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pairs(place: str, labels: str | None) -> _Task:
    found = read_pairs(place, labels)
    file, ends, same = found.file, np.array(found.ends, dtype=np.int64).reshape(-1, 2), np.array(found.same, dtype=bool)
    if same.all() or not same.any():
        raise QueryError(
            f"{shown(file)}: {len(same):,} pairs, and all of one kind: verification needs same and different"
        )
    given = len(set(found.folds)) > 1
    folds = np.array(found.folds) if given else _dealt(same)
    if len(np.unique(folds)) < 2:
        raise QueryError(f"{shown(file)}: the threshold comes from other pairs: at least two of either kind are needed")

    def ask(vectors: Vectors, readable: npt.NDArray[np.bool_]) -> _Found:
        kept, scores = Embedded(list(found.numbers), vectors, readable, "", pairs=ends).decided()
        truth, fold = same[kept], folds[kept]
        correct = held_out_correct(scores, truth, fold)
        shares, mean, error = fold_accuracy(correct, fold)
        details = {"folds": shares.tolist(), "mean_over_folds": mean, "standard_error": error}
        curve = roc(scores, truth)
        return _Found(_spread({"accuracy": correct}, kept), bootstrap(scores, truth, _CURVE_MEASURES), details, curve)

    settings = {"pairs": len(same), "folds": len(np.unique(folds))}
    notes = [] if given else [f"the list names no folds: pairs were dealt to {settings['folds']} in turn"]
    return _Task(list(found.numbers), ask, settings, [file], notes, {"pairs": ends, "same": same})


def _dealt(same: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Folds for pairs that have none: those of either kind in turn."""
    count = min(FOLDS, int(same.sum()), int((~same).sum()))
    folds = np.zeros(len(same), dtype=np.int64)
    for kind in (same, ~same):
        folds[kind] = np.arange(kind.sum()) % max(1, count)
    return folds


# ── captions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _captions(encoder: Any, place: str, columns: Sequence[str]) -> _Task:
    if not hasattr(encoder, "texts"):
        raise QueryError(
            f"{getattr(encoder, 'name', 'the encoder')} knows no words: protocol captions needs one that does"
        )
    found = read_captions(place, columns)
    part = next((name for name in ("test", "validation") if name in found.split), None)
    pictures = np.array([number for number, side in enumerate(found.split) if part is None or side == part])
    texts, pairs = found.of(pictures)
    words = [found.texts[number] for number in texts]
    notes = [*found.notes, *([] if part is None else [f"only the {part} part is asked"])]

    def ask(vectors: Vectors, readable: npt.NDArray[np.bool_]) -> _Found:
        asking = encoder.texts(words)
        place_of = np.cumsum(readable) - 1
        fits = pairs[readable[pairs[:, 1]]]
        fits = np.stack([fits[:, 0], place_of[fits[:, 1]]], axis=1)
        seen = vectors[readable]
        answers, details = {}, {}
        for name, ranks in (
            ("words_to_picture", first_ranks(asking, seen, fits)),
            ("picture_to_words", first_ranks(seen, asking, fits[:, ::-1])),
        ):
            for k in (1, 5, 10):
                answers[f"{name}_r_at_{k}"] = np.where(np.isnan(ranks), np.nan, ranks <= k)
            answers[f"{name}_mrr"] = 1 / ranks
            details[f"{name}_median_rank"] = float(np.nanmedian(ranks))
        return _Found(answers, details=details)

    settings = {"captions": len(words)}
    return _Task([found.pictures[number] for number in pictures], ask, settings, [place], notes)
