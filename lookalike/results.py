"""What an evaluation found, as a document that a report is made of: with examples, a map and every class.

Next to the numbers of `Results.document` it holds what a reader wants to see: the queries that went best and worst with
what they found, which classes are taken for one another, how each class fares, and where the pictures lie in the plane.
Pictures are named relative to the folder of the evaluation, so that a document says nothing about a machine.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike import __version__
from lookalike.evaluate import Embedded, Results, nearest_classes
from lookalike.metrics import TIE, Values
from lookalike.vectors import Vectors
from lookalike.verification import Roc

# Best and worst queries each, how many neighbours of each, and at most so many queries of one class.
EXAMPLES, NEIGHBOURS, OF_A_CLASS = 12, 8, 2
# Pictures on the map, classes of a confusion matrix, confused pairs of classes, classes told one by one.
ON_MAP, IN_MATRIX, CONFUSED, TOLD = 600, 30, 20, 1000
# Queries whose nearest class is asked for, and points of a curve.
ASKED, POINTS = 5000, 400

__all__ = ["evaluation_document", "flat_map", "made", "ran_on"]


def ran_on(*packages: str) -> dict[str, Any]:
    """The date, the machine, and the versions of lookalike, Python and `packages`, without names or paths of it."""
    from importlib.metadata import version

    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "versions": {"lookalike": __version__, "python": platform.python_version()}
        | {name: version(name).split("+")[0] for name in packages},
    }


def made(command: str) -> dict[str, Any]:
    """How a result came to be: the command and where it ran, see `ran_on`."""
    return {"command": command, **ran_on("numpy", "openvino", "pillow")}


def evaluation_document(results: Results, command: str, seed: int = 0) -> dict[str, Any]:
    """An evaluation as JSON, with all that a report shows of it.

    Args:
        results: of `lookalike.evaluate.evaluate`.
        command: that made it, for the record.
        seed: of the draw of pictures for the map, and of their places.

    Returns:
        `Results.document` and ``kind``, ``made``, ``minutes``; ``queries`` (``measure``, and ``best`` and ``worst``:
        path, label, value and neighbours with path, label, score and relevance); ``map`` (``method`` and ``pictures``:
        path, label, x and y in [0, 1]); ``classes`` (a line for each: its number of queries, and means);
        ``confusion`` (``classes``, ``counts`` with a row for each true class, ``queries``, and ``pairs``, the classes
        most often taken for one another); ``curve`` (``far`` and ``tar``). What a protocol cannot tell is left out.
    """
    document: dict[str, Any] = {
        "kind": "evaluation",
        "made": made(command),
        "minutes": round(results.seconds / 60, 3),
        **results.document(),
    }
    if results.curve is not None:
        document["curve"] = _thinned(results.curve)
    embedded = results.embedded
    if embedded is None:
        return document
    if embedded.pairs is not None:
        document["queries"] = _pairs(embedded)
    elif "map_at_r" in results.answers and embedded.labels is not None:
        document["queries"] = _queries(embedded, results.answers["map_at_r"])
        document["classes"] = _classes(embedded.labels, results)
        document["confusion"] = _confusion(embedded, results.answers["map_at_r"], seed)
    drawn = _map(embedded, seed)
    return document if drawn is None else document | {"map": drawn}


def _name(embedded: Embedded, number: int) -> str:
    path = os.fspath(embedded.paths[number])
    with suppress(ValueError):  # it is on another drive
        path = os.path.relpath(path, embedded.home)
    return Path(path).as_posix()


def _thinned(curve: Roc) -> dict[str, list[float]]:
    """A curve of at most `POINTS` points, half of them over the first hundredth of false accepts."""
    some = np.unique(np.linspace(0, len(curve.far) - 1, POINTS // 2).round().astype(int))
    early = int(np.searchsorted(curve.far, 0.01, side="right"))
    some = np.union1d(some, np.unique(np.linspace(0, early - 1, POINTS // 2).round().astype(int)))
    return {name: getattr(curve, name)[some].round(6).tolist() for name in ("far", "tar")}


# ── best and worst ───────────────────────────────────────────────────────────────────────────────────────────────────


def _queries(embedded: Embedded, values: Values) -> dict[str, Any]:
    """The queries that went best and worst; of equally good ones, those with more to find, and of bad ones likewise."""
    labels = embedded.labels
    assert labels is not None
    counted = np.flatnonzero(~np.isnan(values))
    size = Counter(labels.tolist())
    wanted = np.array([size[label] for label in labels[counted].tolist()])
    best = counted[np.lexsort((counted, -wanted, -values[counted]))]
    worst = counted[np.lexsort((counted, -wanted, values[counted]))]
    lists = {"best": _of_many_classes(best, labels), "worst": _of_many_classes(worst, labels)}
    return {"measure": "map_at_r", "of_a_class": OF_A_CLASS} | {
        name: [_query(embedded, number, float(values[number])) for number in chosen] for name, chosen in lists.items()
    }


def _of_many_classes(numbers: npt.NDArray[np.intp], labels: npt.NDArray[Any]) -> list[int]:
    """The first `EXAMPLES`, of each class no more than `OF_A_CLASS`: ten times the same would teach nothing."""
    chosen: list[int] = []
    seen: Counter[Any] = Counter()
    for number in numbers.tolist():
        seen[labels[number]] += 1
        if seen[labels[number]] <= OF_A_CLASS:
            chosen.append(number)
        if len(chosen) == EXAMPLES:
            break
    return chosen


def _query(embedded: Embedded, number: int, value: float) -> dict[str, Any]:
    labels = embedded.labels
    assert labels is not None
    open_to = embedded.readable.copy()
    open_to[number] = False
    if embedded.asks is not None:
        open_to &= ~embedded.asks
    if embedded.groups is not None:
        open_to &= embedded.groups != embedded.groups[number]
    gallery = np.flatnonzero(open_to)
    scores = embedded.vectors[gallery] @ embedded.vectors[number]
    relevant = labels[gallery] == labels[number]
    # As the measures count: at a tie, what is not relevant comes first.
    order = np.lexsort((relevant, -np.round(scores / TIE)))[:NEIGHBOURS]
    return {
        "path": _name(embedded, number),
        "label": str(labels[number]),
        "value": value,
        "relevant": int(relevant.sum()),
        "neighbours": [
            {
                "path": _name(embedded, int(gallery[place])),
                "label": str(labels[gallery[place]]),
                "score": round(float(scores[place]), 6),
                "relevant": bool(relevant[place]),
            }
            for place in order
        ],
    }


def _pairs(embedded: Embedded) -> dict[str, Any]:
    """The pairs that are easiest and hardest: half of each list the same, half different."""
    pairs, same = embedded.pairs, embedded.same
    assert pairs is not None and same is not None
    kept, scores = embedded.decided()
    pairs, same = pairs[kept], same[kept]
    lists: dict[str, list[dict[str, Any]]] = {"best": [], "worst": []}
    for kind in (True, False):
        of_kind = np.flatnonzero(same == kind)
        falling = of_kind[np.argsort(-scores[of_kind], kind="stable")]
        ends = {"best": falling, "worst": falling[::-1]} if kind else {"best": falling[::-1], "worst": falling}
        for name, order in ends.items():
            for number in order[: EXAMPLES // 2].tolist():
                told = "the same" if kind else "different"
                left, right = (_name(embedded, int(end)) for end in pairs[number])
                score = round(float(scores[number]), 6)
                found = {"path": right, "label": told, "score": score, "relevant": kind}
                lists[name].append({"path": left, "label": told, "value": score, "neighbours": [found]})
    return {"measure": "cosine", **lists}


# ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _classes(labels: npt.NDArray[Any], results: Results) -> list[dict[str, Any]]:
    """The mean of each measure over the queries of each class, the worst MAP@R first; of at most `TOLD` classes."""
    counts = ~np.isnan(results.answers["map_at_r"])
    names, numbers = np.unique(labels[counts], return_inverse=True)
    size = np.bincount(numbers)
    means = {name: np.bincount(numbers, weights=values[counts]) / size for name, values in results.answers.items()}
    order = np.lexsort((names, means["map_at_r"]))[:TOLD]
    return [
        {"class": str(names[row]), "queries": int(size[row])}
        | {measure: round(float(values[row]), 6) for measure, values in means.items()}
        for row in order
    ]


def _confusion(embedded: Embedded, values: Values, seed: int) -> dict[str, Any]:
    """Which class the nearest picture of each query is of."""
    labels = embedded.labels
    assert labels is not None
    # Without groups each picture is one of its own, which keeps a query from finding itself.
    groups = np.arange(len(labels)) if embedded.groups is None else embedded.groups
    asked = np.flatnonzero(~np.isnan(values))
    if len(asked) > ASKED:
        asked = np.sort(np.random.default_rng(seed).choice(asked, ASKED, replace=False))
    others = np.flatnonzero(embedded.readable if embedded.asks is None else embedded.readable & ~embedded.asks)
    gallery = {
        "gallery": embedded.vectors[others],
        "gallery_labels": labels[others],
        "gallery_groups": groups[others],
    }
    true = labels[asked]
    predicted = nearest_classes(embedded.vectors[asked], true, groups[asked], gallery)
    return {"queries": len(asked), **_matrix(true, predicted)}


def _matrix(true: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> dict[str, Any]:
    """Counts of the `IN_MATRIX` most frequent classes, the others as one; and who is taken for whom most often."""
    support = Counter(true.tolist())
    kept = sorted(name for name, _ in sorted(support.items(), key=lambda item: (-item[1], item[0]))[:IN_MATRIX])
    place = {name: number for number, name in enumerate(kept)}
    rest = len(set(true.tolist()) | set(predicted.tolist())) - len(kept)
    counts = np.zeros((len(kept) + bool(rest), len(kept) + bool(rest)), dtype=int)
    both = Counter(zip(true.tolist(), predicted.tolist(), strict=True))
    for (one, two), count in both.items():
        counts[place.get(one, len(kept)), place.get(two, len(kept))] += count
    wrong = sorted(
        ((one, two, count) for (one, two), count in both.items() if one != two),
        key=lambda item: (-item[2], item[0], item[1]),
    )
    return {
        "classes": [str(name) for name in kept] + ([f"{rest:,} other classes"] if rest else []),
        "counts": counts.tolist(),
        "pairs": [{"true": str(one), "taken_for": str(two), "count": count} for one, two, count in wrong[:CONFUSED]],
    }


# ── map ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _map(embedded: Embedded, seed: int) -> dict[str, Any] | None:
    readable = np.flatnonzero(embedded.readable)
    if len(readable) < 3:
        return None
    chosen = readable
    if len(readable) > ON_MAP:
        chosen = np.sort(np.random.default_rng(seed).choice(readable, ON_MAP, replace=False))
    places, method = flat_map(embedded.vectors[chosen], seed)
    labels = embedded.labels
    return {
        "method": method,
        "of": len(readable),
        "pictures": [
            {"path": _name(embedded, int(number)), "label": "" if labels is None else str(labels[number])}
            | {"x": round(float(x), 4), "y": round(float(y), 4)}
            for number, (x, y) in zip(chosen, places, strict=True)
        ],
    }


def flat_map(vectors: Vectors, seed: int = 0) -> tuple[Values, str]:
    """Places in the plane for vectors: what is alike lies close together.

    Args:
        vectors: (n, dim) unit rows.
        seed: of t-SNE.

    Returns:
        (n, 2) float64 in [0, 1], and how: "t-SNE" (van der Maaten and Hinton 2008) where scikit-learn is installed and
        there are enough vectors for it, else "PCA", the two directions along which they differ most.
    """
    from importlib.util import find_spec

    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    if min(len(vectors) / 5, centred.shape[1]) < 2 or np.abs(centred).max() < TIE or find_spec("sklearn") is None:
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        flat, method = centred @ axes[:2].T, "PCA"
    else:
        from sklearn.manifold import TSNE

        near = min(30.0, (len(vectors) - 1) / 3)
        flat = TSNE(2, perplexity=near, init="pca", random_state=seed, metric="euclidean").fit_transform(vectors)
        method = "t-SNE"
    if flat.shape[1] < 2:  # vectors of one number
        flat = np.column_stack([flat, np.zeros(len(flat))])
    low, high = flat.min(0), flat.max(0)
    # One scale for both directions: distances shall mean the same in each. What differs by rounding is one place.
    span = float((high - low).max())
    return 0.5 + (flat - (low + high) / 2) / (span if span > TIE else np.inf), method
