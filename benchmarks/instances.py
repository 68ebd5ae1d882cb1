"""The same picture, found again: R@1, R@5 and mAP of distorted pictures among undistorted ones, encoder by encoder.

    python benchmarks/instances.py PICTURES [--count 2000] [--labels COLUMN | --labels folders]
        [--encoder NAME=BUNDLE …] [--words 2000] [--verify] [--seed 0] [--json FILE]

PICTURES is a folder or a CSV catalogue. Of a sample of --count pictures one of each group of near-duplicates stays
(`lookalike.splits.duplicates`: a question with two right answers would count one of them as wrong); each is written
once more with one of the distortions of `lookalike.distort`, in turn, and asks for itself among all of them. There is
one right answer, so that average precision is the reciprocal of its rank. Ties go against the query.

The rows, from what learns nothing upwards:

======================  ==============================================================================================
chance                  the expectation of a random order, computed
pixels                  `lookalike.baselines.Pixels`
colour histogram        `lookalike.baselines.ColourHistogram`
bag of visual words     `lookalike.baselines.BagOfVisualWords`, its vocabulary from the very pictures searched, which
                        is as good as it can have it; left out without `lookalike[baselines]`
… verified              with --verify, its first 50 answers put in the order of a geometric check: near a
                        second for each query on two busy cores
the default encoder     the bundle that ships
NAME                    each --encoder
======================  ==============================================================================================

Intervals are 95 % bootstrap intervals over queries; the differences are paired by query, first --encoder (or the
default encoder where none is given) minus row: above zero, it is better than the row.

With --labels ("folders": a picture's folder; else a column of the CSV), the undistorted pictures also look for others
of their label, each against all the rest: R@1 and MAP@R. Markdown goes to stdout, what is being done to stderr.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from encode import machine, versions

import lookalike
from lookalike.baselines import ColourHistogram, Pixels
from lookalike.catalogue import Row, rows
from lookalike.distort import KINDS, write_queries
from lookalike.encoder import Encoder, cores
from lookalike.errors import ImageError, LookalikeError, MissingExtra
from lookalike.images import Preprocessing
from lookalike.metrics import (
    TIE,
    Interval,
    average_precision_at_r,
    mean_interval,
    paired_interval,
    recall_at_k,
    reciprocal_rank,
)
from lookalike.splits import duplicates
from lookalike.vectors import unit

MEASURES = ("R@1", "R@5", "mAP")
PIXELS, HISTOGRAM, WORDS, DEFAULT = "pixels", "colour histogram", "bag of visual words", "the default encoder"
ROWS = ("chance", PIXELS, HISTOGRAM, WORDS, f"{WORDS}, verified", DEFAULT)
VERIFIED = 50
# Side at which near-duplicates are looked for: a multiple of the thumbnails' 16.
SMALL = Preprocessing(size=(64, 64))
Values = dict[str, np.ndarray]


# ── the pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────


def label_of(row: Row, labels: str | None) -> str | None:
    value = row.payload.get("category" if labels == "folders" else labels) if labels else None
    return None if value is None else str(value)


def sample(found: Sequence[Row], count: int, seed: int) -> tuple[list[Row], dict[str, int]]:
    """Readable pictures drawn at random, no two of them near-duplicates, and what became of the others."""
    drawn = [found[i] for i in np.random.default_rng(seed).permutation(len(found))[:count]]

    def load(row: Row) -> np.ndarray | None:
        try:
            return SMALL.load(row.path)
        except ImageError:
            return None

    with ThreadPoolExecutor(cores()) as pool:
        loaded = list(pool.map(load, drawn))
    drawn = [row for row, pixels in zip(drawn, loaded, strict=True) if pixels is not None]
    if len(drawn) < 2:
        raise SystemExit(f"of {len(found)} pictures found, {len(drawn)} could be read: at least 2 are needed")
    groups = duplicates(np.stack([pixels for pixels in loaded if pixels is not None]))
    kept = [row for number, row in enumerate(drawn) if groups[number] == number]
    facts = {"found": len(found), "drawn": len(loaded), "unreadable": len(loaded) - len(drawn)}
    return kept, {**facts, "near_duplicates": len(drawn) - len(kept), "searched": len(kept)}


# ── the measures ─────────────────────────────────────────────────────────────────────────────────────────────────────


def against_gallery(gallery: np.ndarray, queries: np.ndarray) -> Values:
    """Each query against all originals: query i is to find picture i. One number per query."""
    count = len(gallery)
    vectors, labels = np.concatenate([gallery, queries]), np.tile(np.arange(count), 2)
    groups = np.repeat([0, 1], count)
    return {
        "R@1": recall_at_k(vectors, labels, 1, groups)[count:],
        "R@5": recall_at_k(vectors, labels, 5, groups)[count:],
        "mAP": reciprocal_rank(vectors, labels, groups)[count:],
    }


def of_ranks(ranks: np.ndarray) -> Values:
    """The same from the rank of the right answer, from 1."""
    return {"R@1": (ranks <= 1).astype(float), "R@5": (ranks <= 5).astype(float), "mAP": 1 / ranks}


def ranks_of(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(q, n) scores and the column of each right answer → its rank, from 1, behind all it is tied with."""
    own = np.take_along_axis(scores, right[:, None], 1)
    return (scores >= own - TIE).sum(1)


def chance(count: int) -> dict[str, float]:
    """What a random order of `count` pictures gives on average."""
    return {"R@1": 1 / count, "R@5": min(5, count) / count, "mAP": float((1 / np.arange(1, count + 1)).mean())}


def class_chance(labels: Sequence[str]) -> dict[str, float]:
    """What random orders give on average for R@1 and MAP@R within labels, over queries that have something to find.

    With R relevant among N others, place i holds a relevant one with probability R / N, and given that, each place
    before it with (R - 1) / (N - 1): precision there is expected to be (1 + (i - 1) (R - 1) / (N - 1)) / i.
    """
    others, sizes = len(labels) - 1, np.unique(np.array(labels), return_counts=True)[1]
    first, average, queries = 0.0, 0.0, 0
    for size in sizes[sizes > 1]:
        relevant = size - 1
        place = np.arange(1, relevant + 1)
        precision = (1 + (place - 1) * (relevant - 1) / max(1, others - 1)) / place
        first += size * relevant / others
        average += size * float(precision.sum()) / others
        queries += size
    return {"R@1": first / queries, "MAP@R": average / queries}


def self_check() -> None:
    """What the page claims of its measures, on numbers small enough for each run."""
    dice = np.random.default_rng(0)
    gallery = unit(dice.normal(size=(60, 6)))
    queries = unit(gallery + dice.normal(size=(60, 6)))
    constant = against_gallery(np.ones((60, 6), dtype=np.float32), np.ones((60, 6), dtype=np.float32))
    assert all(constant[name].mean() <= value for name, value in chance(60).items()), "a constant encoder beats chance"
    ours, naive = against_gallery(gallery, queries), of_ranks(ranks_of(queries @ gallery.T, np.arange(60)))
    assert all(np.allclose(ours[name], naive[name]) for name in MEASURES), "the two ways to rank disagree"
    every = of_ranks(1 + np.arange(60))  # in a random order the right answer is as often at each rank
    assert all(np.isclose(every[name].mean(), value) for name, value in chance(60).items()), "chance is wrong"
    labels = [str(number) for number in [0] * 12 + [1] * 5 + [2] * 3]
    trials = [average_precision_at_r(dice.normal(size=(20, 30)), labels).mean() for _ in range(200)]
    spread = np.std(trials) / np.sqrt(len(trials))
    assert abs(np.mean(trials) - class_chance(labels)["MAP@R"]) < 5 * spread, "chance of MAP@R is wrong"


def plain(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "queries": found.count}


# ── the contenders ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Contender:
    """A row of the table: `make` gives what encodes, when its turn comes; the gallery is there to be fitted to."""

    name: str
    make: Callable[[Sequence[str]], Any]
    note: dict[str, Any]


def bundled(name: str, encoder: Encoder) -> Contender:
    note = {"bundle": encoder.name, "fingerprint": encoder.fingerprint, "precision": encoder.precision}
    return Contender(name, lambda gallery: encoder, note)


def contenders(options: argparse.Namespace) -> list[Contender]:
    def words(gallery: Sequence[str]) -> Any:
        from lookalike.baselines import BagOfVisualWords

        return BagOfVisualWords(words=options.words).fit(gallery)

    found = [
        Contender(PIXELS, lambda gallery: Pixels(), {}),
        Contender(HISTOGRAM, lambda gallery: ColourHistogram(), {}),
        Contender(WORDS, words, {"words": options.words}),
        bundled(DEFAULT, Encoder.default()),
    ]
    return found + [bundled(name, Encoder.load(place)) for name, place in options.encoder]


@dataclass
class Asked:
    """The pictures that are searched, what is asked, and of which kind each question is."""

    gallery: list[str]
    queries: list[str]
    kinds: np.ndarray
    labels: list[str | None]


def encoded(encoder: Any, pictures: Sequence[str]) -> np.ndarray:
    """(n, dim), one row per picture: a picture that cannot be read ends the run, since rows must stay together."""
    strict = {"strict": True} if isinstance(encoder, Encoder) else {}
    return np.asarray(encoder.images(pictures, **strict))


def row_of(name: str, values: Values, kinds: np.ndarray, note: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        **note,
        "all": {measure: plain(mean_interval(values[measure])) for measure in MEASURES},
        "kinds": {
            kind: {measure: plain(mean_interval(values[measure][kinds == kind])) for measure in MEASURES}
            for kind in KINDS
            if (kinds == kind).any()
        },
    }


def classes(vectors: np.ndarray, labels: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """Others of the same label among the undistorted pictures."""
    rows = [number for number, label in enumerate(labels) if label is not None]
    known = [label for label in labels if label is not None]
    found = {"R@1": recall_at_k(vectors[rows], known, 1), "MAP@R": average_precision_at_r(vectors[rows], known)}
    return {measure: plain(mean_interval(values)) for measure, values in found.items()}


def verified(words: Any, asked: Asked, vectors: np.ndarray, questions: np.ndarray) -> Values:
    """Ranks after the first answers of a bag of visual words have been put in the order of a geometric check."""
    scores = questions @ vectors.T
    ranks = ranks_of(scores, np.arange(len(scores)))
    np.fill_diagonal(scores, np.diagonal(scores) - TIE)  # tied with the last answer that is checked, it is not checked
    for number, query in enumerate(asked.queries):
        if ranks[number] <= VERIFIED:
            first = np.argsort(-scores[number], kind="stable")[:VERIFIED]
            order = words.reranked(query, [asked.gallery[row] for row in first], scores[number, first], VERIFIED)
            ranks[number] = 1 + int(np.flatnonzero(first[order] == number)[0])
        if number % 100 == 99:
            say(f"{number + 1} of {len(ranks)} queries verified")
    return of_ranks(ranks)


def ask(asked: Asked, options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """All rows, and the name of the one that the others are compared with."""
    count = len(asked.gallery)
    all_rows: list[dict[str, Any]] = [
        {"name": "chance", "all": {measure: {"mean": value} for measure, value in chance(count).items()}}
    ]
    if options.labels:
        all_rows[0]["classes"] = {
            measure: {"mean": value}
            for measure, value in class_chance([label for label in asked.labels if label is not None]).items()
        }
    values: dict[str, Values] = {}
    found = contenders(options)
    for contender in found:
        began = time.monotonic()
        try:
            encoder = contender.make(asked.gallery)
        except (ImportError, MissingExtra) as error:
            say(f"{contender.name}: left out, {error}")
            continue
        vectors, questions = encoded(encoder, asked.gallery), encoded(encoder, asked.queries)
        values[contender.name] = against_gallery(vectors, questions)
        note = {"dim": vectors.shape[1], **contender.note}
        all_rows.append(row_of(contender.name, values[contender.name], asked.kinds, note))
        if options.labels:
            all_rows[-1]["classes"] = classes(vectors, asked.labels)
        say(f"{contender.name}: {time.monotonic() - began:.0f} s")
        if options.verify and contender.name == WORDS:
            name = f"{WORDS}, verified"
            values[name] = verified(encoder, asked, unit(vectors), unit(questions))
            all_rows.append(row_of(name, values[name], asked.kinds, {**note, "verified": VERIFIED}))
    reference = found[len(found) - max(1, len(options.encoder))].name
    for row in all_rows:
        if row["name"] in values and row["name"] != reference:
            ours, theirs = values[reference], values[row["name"]]
            row["differences"] = {
                measure: plain(paired_interval(ours[measure], theirs[measure])) for measure in MEASURES
            }
    return all_rows, reference


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cell(value: dict[str, float] | None, sign: str = "") -> str:
    if value is None:
        return "–"
    mean = f"{100 * value['mean']:{sign}.1f}"
    return f"{mean} [{100 * value['low']:{sign}.1f}, {100 * value['high']:{sign}.1f}]" if "low" in value else mean


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def markdown(document: dict[str, Any]) -> str:
    all_rows, reference, facts = document["rows"], document["reference"], document["pictures"]
    kinds = [kind for kind in KINDS if any(kind in row.get("kinds", {}) for row in all_rows)]
    made = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    compared = f"{reference} − row"
    parts = [
        f"`{document['command']}`, {document['date']}, {document['machine']['cores']} cores. Versions: {made}.",
        f"{facts['searched']:,} pictures of {facts['found']:,} ({facts['drawn']:,} drawn, {facts['near_duplicates']} "
        f"near-duplicates and {facts['unreadable']} unreadable ones left out), each asked for once by a distorted copy "
        "of itself. Per cent, with 95 % bootstrap intervals over queries; differences are paired, above zero "
        f"{reference} is better.",
        table(
            ["encoder", "numbers", *MEASURES, f"R@1: {compared}", f"mAP: {compared}"],
            (
                [
                    row["name"],
                    f"{row['dim']:,}" if "dim" in row else "",
                    *(cell(row["all"][measure]) for measure in MEASURES),
                    *(cell(row["differences"][m], "+") if "differences" in row else "" for m in ("R@1", "mAP")),
                ]
                for row in all_rows
            ),
        ),
        f"R@1 by kind of distortion, {facts['searched'] // len(kinds):,} queries or one more each:",
        table(
            ["encoder", *kinds],
            ([row["name"], *(cell(row["kinds"][kind]["R@1"]) for kind in kinds)] for row in all_rows if "kinds" in row),
        ),
    ]
    if document["labels"]:
        parts += [
            f"Others of the same label ({document['labels']}) among the undistorted pictures:",
            table(
                ["encoder", "R@1", "MAP@R"],
                (
                    [row["name"], cell(row["classes"]["R@1"]), cell(row["classes"]["MAP@R"])]
                    for row in all_rows
                    if "classes" in row
                ),
            ),
        ]
    return "\n\n".join(parts)


def shown_command(options: argparse.Namespace) -> str:
    """The command without the paths of this machine: of each the last component."""
    words = ["python benchmarks/instances.py", options.pictures.name, f"--count {options.count}"]
    words += [f"--labels {options.labels}"] if options.labels else []
    words += [f"--encoder {name}={place.name}" for name, place in options.encoder]
    words += [f"--words {options.words}", *(["--verify"] if options.verify else []), f"--seed {options.seed}"]
    return " ".join(words)


def extras() -> list[str]:
    """What the bag of visual words was made with, as far as it is installed."""
    installed = {str(package.metadata["Name"]).lower() for package in importlib.metadata.distributions()}
    return [name for name in ("scikit-learn", "opencv-python-headless") if name in installed]


def named_bundle(text: str) -> tuple[str, Path]:
    name, _, place = text.partition("=")
    if not name or not place:
        raise argparse.ArgumentTypeError(f"NAME=BUNDLE wanted, got {text}")
    return name, Path(place)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=lambda text: Path(text).resolve(), help="a folder or a CSV catalogue")
    parser.add_argument("--count", type=int, default=2000, help="pictures drawn")
    parser.add_argument("--labels", help='"folders" or a column of the CSV: retrieval of others of the same label, too')
    parser.add_argument("--encoder", type=named_bundle, action="append", default=[], metavar="NAME=BUNDLE")
    parser.add_argument("--words", type=int, default=2000, help="of the bag of visual words")
    parser.add_argument("--verify", action="store_true", help=f"also check its first {VERIFIED} answers: 0.8 s a query")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the distortions")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    if options.count < 2:
        parser.error(f"--count must be at least 2, got {options.count}")
    names = [name for name, _ in options.encoder]
    if len(set(names)) < len(names) or set(names) & set(ROWS):
        parser.error(f"each --encoder needs a name of its own, other than {', '.join(ROWS)}; got {', '.join(names)}")
    return options


def main() -> None:
    options = arguments()
    self_check()
    found = list(rows([options.pictures]))
    drawn, facts = sample(found, options.count, options.seed)
    labels = [label_of(row, options.labels) for row in drawn]
    if options.labels and max(Counter(label for label in labels if label is not None).values(), default=0) < 2:
        columns = ", ".join(sorted({name for row in drawn for name in row.payload}))
        raise SystemExit(f"--labels {options.labels}: no two pictures share one; there is: folders, {columns}")
    say(f"{facts['searched']} pictures, {facts['near_duplicates']} near-duplicates left out")
    with tempfile.TemporaryDirectory(prefix="lookalike-instances-") as folder:
        gallery = [row.path for row in drawn]
        made = write_queries(gallery, folder, seed=options.seed)
        if None in made:
            raise SystemExit("a picture has become unreadable since it was drawn: run it again")
        kinds = np.array([KINDS[number % len(KINDS)] for number in range(len(gallery))])
        all_rows, reference = ask(Asked(gallery, [str(path) for path in made], kinds, labels), options)
    document = {
        "command": shown_command(options),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {"lookalike": lookalike.__version__, **versions("numpy", "pillow", "openvino", *extras())},
        "pictures": {"name": options.pictures.name, **facts},
        "labels": options.labels,
        "reference": reference,
        "rows": all_rows,
    }
    if options.json:
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(markdown(document))


if __name__ == "__main__":
    try:
        main()
    except LookalikeError as error:
        raise SystemExit(str(error)) from error
