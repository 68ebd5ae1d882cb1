"""Naming pictures from a few examples: which method, how sure, and how well the unknown are told, on episodes.

    python benchmarks/fewshot.py NAME=PLACE[:COLUMN] … [--model BUNDLE] [--way 5 20] [--shot 1 5] [--episodes 1000]
        [--heads 1000] [--queries 4] [--seed 0] [--json FILE]

PLACE is a folder with a folder per class (classes of one episode come from one category where there are any, as in
Omniglot's alphabets) or a CSV file with labels in COLUMN. Pictures are encoded once. An episode draws --way classes,
--shot pictures of each as support, and of each class 0 to --queries others as queries, so that classes are unequally
frequent, as they are where pictures are sorted; and as many strangers, pictures of any other class.

================  ====================================================================================================
accuracy          share of an episode's queries that are named rightly, mean over episodes with its 95 % interval
ridge - row       the same paired by episode: above zero, the default is better
calibration error |confidence - accuracy| over 15 equal bins of all queries, weighted by their number (Naeini et al.
                  2015, Guo et al. 2017)
unknown           with unknown="auto", the mean of the share of queries that are kept and the share of strangers that
                  are refused, mean over episodes; and what the one best cosine for all episodes of the row, chosen in
                  hindsight, comes to
================  ====================================================================================================

The heads of scikit-learn take longer, and only answer the first --heads episodes; differences are over those.
A constant encoder is asked as well: it must come out at chance. Markdown goes to stdout, what is done to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from encode import machine, versions

import lookalike
from lookalike.encoder import Encoder
from lookalike.fewshot import METHODS, FewShotClassifier
from lookalike.labels import labelled
from lookalike.metrics import Interval, mean_interval, paired_interval
from lookalike.verification import area

CONTENDERS: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS} | {
    f"{name}, transductive": {"method": name, "transductive": True} for name in ("ridge", "centroid")
}
DEFAULT = "ridge"
BINS = 15
GRID = np.geomspace(0.01, 5, 63)


@dataclass(frozen=True)
class Pictures:
    name: str
    vectors: np.ndarray
    label: np.ndarray
    pools: list[list[int]]  # classes that may meet in an episode
    members: dict[int, np.ndarray]

    @classmethod
    def read(cls, name: str, place: str, column: str, encoder: Encoder) -> Pictures:
        examples = labelled(place, column or "folders").examples
        outcomes = list(encoder.stream([example.path for example in examples]))
        kept = [i for i, outcome in enumerate(outcomes) if outcome.vector is not None]
        vectors = np.stack([outcomes[i].vector for i in kept])
        label = np.unique([examples[i].label for i in kept], return_inverse=True)[1]
        category = np.array([examples[i].category for i in kept])
        members = {int(k): np.flatnonzero(label == k) for k in np.unique(label)}
        pools: dict[str, list[int]] = {}
        for k, rows in members.items():
            pools.setdefault(str(category[rows[0]]), []).append(k)
        return cls(name, vectors, label, list(pools.values()), members)


@dataclass(frozen=True)
class Episode:
    support: np.ndarray
    number: np.ndarray
    queries: np.ndarray
    truth: np.ndarray
    strangers: np.ndarray


def episodes(pictures: Pictures, way: int, shot: int, most: int, count: int, seed: int) -> Iterator[Episode]:
    dice = np.random.default_rng(seed)
    pools = [[k for k in pool if len(pictures.members[k]) >= shot + most] for pool in pictures.pools]
    pools = [pool for pool in pools if len(pool) >= way]
    if not pools:
        raise SystemExit(f"{pictures.name}: no {way} classes of {shot + most} pictures")
    made = 0
    while made < count:
        classes = dice.choice(pools[dice.integers(len(pools))], way, replace=False)
        drawn = [dice.permutation(pictures.members[int(k)]) for k in classes]
        sizes = dice.integers(0, most + 1, way)
        if not sizes.sum():
            continue
        queries = np.concatenate([rows[shot : shot + size] for rows, size in zip(drawn, sizes, strict=True)])
        others = np.flatnonzero(~np.isin(pictures.label, classes))
        yield Episode(
            np.concatenate([rows[:shot] for rows in drawn]),
            np.repeat(np.arange(way), shot),
            queries,
            np.repeat(np.arange(way), sizes),
            dice.choice(others, len(queries), replace=len(others) < len(queries)),
        )
        made += 1


def calibration_error(chance: np.ndarray, right: np.ndarray) -> float:
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    gaps = [abs(chance[place == i].mean() - right[place == i].mean()) * (place == i).mean() for i in np.unique(place)]
    return float(sum(gaps))


def ask(pictures: Pictures, way: int, shot: int, asked: argparse.Namespace) -> dict[str, Any]:
    """One setting: every contender on the same episodes."""
    accuracy: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    sure: dict[str, list[np.ndarray]] = {name: [] for name in CONTENDERS}
    cost = {name: np.zeros(len(GRID)) for name in METHODS}
    balanced, known, strange, total = [], [], [], 0
    drawn = episodes(pictures, way, shot, asked.queries, asked.episodes, asked.seed)
    judge = FewShotClassifier()
    for turn, episode in enumerate(drawn):
        support, queries = pictures.vectors[episode.support], pictures.vectors[episode.queries]
        total += len(queries)
        for name, options in CONTENDERS.items():
            if name in ("logistic", "svm") and turn >= asked.heads:
                continue
            unknown = "auto" if name == DEFAULT else None
            fitted = FewShotClassifier(**options, unknown=unknown).fit(support, episode.number)
            judge = fitted if name == DEFAULT else judge
            chance = fitted.predict_proba(queries)
            right = chance.argmax(1) == episode.truth
            accuracy[name].append(float(right.mean()))
            sure[name].append(np.stack([chance.max(1), right]))
            if name in cost and turn < asked.heads:
                scores = np.log(np.maximum(chance, 1e-300)) * fitted.temperature_
                cost[name] += [surprise(scores / t, episode.truth) for t in GRID]
        ours, theirs = (
            np.array([one.candidates[0].similarity for one in judge.decide(rows, top=1)])
            for rows in (queries, pictures.vectors[episode.strangers])
        )
        balanced.append(((ours >= judge.threshold_).mean() + (theirs < judge.threshold_).mean()) / 2)
        known.append(ours)
        strange.append(theirs)
    rows = {}
    for name in CONTENDERS:
        chance, right = np.concatenate(sure[name], axis=1)
        rows[name] = {
            "accuracy": asdict(mean_interval(accuracy[name])),
            "default_minus": asdict(paired_interval(accuracy[DEFAULT][: len(accuracy[name])], accuracy[name])),
            "calibration_error": calibration_error(chance, right),
            "best_temperature": float(GRID[cost[name].argmin()]) if name in cost else None,
        }
    return {
        "pictures": pictures.name,
        "way": way,
        "shot": shot,
        "queries": total,
        "rows": rows,
        "unknown": {
            "found": asdict(mean_interval(balanced)),
            "in_hindsight": hindsight(known, strange),
            "auc": area(
                np.concatenate([*known, *strange]),
                np.repeat([True, False], [sum(map(len, known)), sum(map(len, strange))]),
            ),
        },
    }


def surprise(scores: np.ndarray, truth: np.ndarray) -> float:
    scores = scores - scores.max(1, keepdims=True)
    return float((np.log(np.exp(scores).sum(1)) - scores[np.arange(len(truth)), truth]).sum())


def hindsight(known: list[np.ndarray], strange: list[np.ndarray]) -> dict[str, float]:
    candidates = np.quantile(np.concatenate([*known, *strange]), np.linspace(0, 1, 101))
    found = [
        np.mean([((a >= t).mean() + (b < t).mean()) / 2 for a, b in zip(known, strange, strict=True)])
        for t in candidates
    ]
    return {"threshold": float(candidates[int(np.argmax(found))]), "balanced": float(np.max(found))}


def constant(way: int) -> float:
    """What the default makes of an encoder that says the same of every picture."""
    one = np.ones((way, 8), dtype=np.float32)
    return float((FewShotClassifier().fit(one, np.arange(way)).predict(one) == np.arange(way)).mean())


def per_cent(found: dict[str, float], sign: str = "") -> str:
    interval = Interval(**found)
    return f"{100 * interval.mean:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"


def markdown(document: dict[str, Any]) -> str:
    settings = document["results"]
    heads = [f"{s['way']}-way {s['shot']}-shot" for s in settings if s["pictures"] == settings[0]["pictures"]]
    names = list(dict.fromkeys(s["pictures"] for s in settings))
    lines = []

    def table(title: str, cell: Any, rows: list[str]) -> None:
        lines.extend(["", title, ""])
        for name in names:
            these = [s for s in settings if s["pictures"] == name]
            lines.extend(["", f"| {name} | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)])
            lines.extend(f"| {row} | {' | '.join(cell(s, row) for s in these)} |" for row in rows)

    contenders = list(CONTENDERS)
    table("## Accuracy", lambda s, row: per_cent(s["rows"][row]["accuracy"]), contenders)
    table(
        f"## {DEFAULT}, the default, minus the row (points, paired by episode)",
        lambda s, row: per_cent(s["rows"][row]["default_minus"], "+"),
        [name for name in contenders if name != DEFAULT],
    )
    table("## Calibration error", lambda s, row: f"{100 * s['rows'][row]['calibration_error']:.1f}", contenders)

    def unknown(s: dict[str, Any], row: str) -> str:
        told = s["unknown"]
        return {
            "threshold found on the support": per_cent(told["found"]),
            "the best one for all, in hindsight": f"{100 * told['in_hindsight']['balanced']:.1f}",
            "area under the ROC": f"{100 * told['auc']:.1f}",
        }[row]

    rows = ["threshold found on the support", "the best one for all, in hindsight", "area under the ROC"]
    table("## Unknown: queries kept and strangers refused, the mean of both", unknown, rows)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", metavar="NAME=PLACE[:COLUMN]")
    parser.add_argument("--model")
    parser.add_argument("--way", nargs="+", type=int, default=[5, 20])
    parser.add_argument("--shot", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--heads", type=int, default=1000, help="episodes for the heads of scikit-learn")
    parser.add_argument("--queries", type=int, default=4, help="at most, of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    encoder = Encoder.load(asked.model) if asked.model else Encoder.default()
    began, shown, results, counts = time.monotonic(), [], [], {}
    for text in asked.pictures:
        name, _, place = text.partition("=")
        place, _, column = place.partition(":")
        shown.append(f"{name}={Path(place).name}" + f":{column}" * bool(column))
        pictures = Pictures.read(name, place, column, encoder)
        counts[name] = {"pictures": len(pictures.label), "classes": len(pictures.members)}
        for way in asked.way:
            for shot in asked.shot:
                results.append(ask(pictures, way, shot, asked))
                print(f"{name} {way}-way {shot}-shot: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    document = {
        "command": " ".join(
            [
                "python benchmarks/fewshot.py",
                *shown,
                f"--episodes {asked.episodes} --heads {asked.heads} --seed {asked.seed}",
            ]
        ),
        "date": str(date.today()),
        "machine": machine(),
        "versions": {"lookalike": lookalike.__version__, **versions("numpy", "openvino", "scikit-learn")},
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
        "settings": {"episodes": asked.episodes, "queries of a class": asked.queries, "seed": asked.seed},
        "pictures": counts,
        "constant_encoder": {str(way): constant(way) for way in asked.way},
        "results": results,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    if asked.json:
        Path(asked.json).write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))


if __name__ == "__main__":
    main()
