"""One-shot recognition within an alphabet never seen, by recipe: a table, or the same recipe by seeds.

    python benchmarks/omniglot.py table --pictures images_background --minutes 5 [--seeds 0] [--threads 2]
    python benchmarks/omniglot.py seeds --pictures images_background --seeds 0 1 2 [--set data.validation=0.15]
    python benchmarks/omniglot.py ask --pictures DIR --model BUNDLE [--maker '_(\\d+)\\.']
    python benchmarks/omniglot.py hausdorff --pictures DIR [--episodes 30]

Everything runs through the product: `configs/omniglot.toml`, changed by overrides, `train`, and the verdict of its own
report. An episode is 20 characters of one held-out alphabet, one picture each by one drawer as support and the same
characters by another drawer as queries; intervals are over 2,000 episodes, and between seeds the held-out alphabets
change, too. A run that is complete in --work is not repeated. `ask` asks any bundle, on any folder of alphabets, and
tells where it fails: by alphabet, by drawer, and in characters that nobody tells apart. `hausdorff` asks the baseline
of Lake et al. (2015), the modified Hausdorff distance of the ink (Dubuisson and Jain 1994), which has 61.2 % on their
own twenty runs: how hard these alphabets are beside those.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.spatial.distance import cdist

sys.path.insert(0, str(Path(__file__).resolve().parent))
from encode import machine, versions

from lookalike.encoder import Encoder
from lookalike.errors import ExportError
from lookalike.labels import labelled, makers_of
from lookalike.metrics import mean_interval, one_shot

Rows = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]

WAY = 20
# Two characters of which the wrong one lies nearer this often are taken for the same: by chance it is 0.5.
TWINS = 0.35
CONFIG = Path(__file__).parent.parent / "configs" / "omniglot.toml"
PAIRS = 'sampler={kind = "pairs", pairs = 64}'
TABLE = {
    "Siamese, contrastive": ['loss={kind = "pair_contrastive", margin = 0.8}', PAIRS],
    "Siamese, learned metric (Koch)": ['loss={kind = "learned_metric"}', PAIRS, "network.normalise=false"],
    "triplet, random": ['loss={kind = "triplet", margin = 0.2}', 'miner={kind = "random"}'],
    "triplet, semi-hard": ['loss={kind = "triplet", margin = 0.2}', 'miner={kind = "semi_hard"}'],
    "triplet, hard": ['loss={kind = "triplet", margin = 0.2}', 'miner={kind = "hard"}'],
    "triplet, random → semi-hard → hard": [
        'loss={kind = "triplet", margin = 0.2}',
        'miner={schedule = [[0.0, "random"], [0.2, "semi_hard"], [0.6, "hard"]]}',
    ],
    "triplet, all (exact)": ['loss={kind = "all_triplets", margin = 0.2}'],
    "N-pairs, batches by the same drawers": [
        'loss={kind = "n_pairs", temperature = 0.05}',
        "sampler.same_makers=true",
    ],
    "supervised contrastive": [],
}


def trained(name: str, changes: list[str], seed: int, options: argparse.Namespace) -> dict:
    """The report of one run, made or found; its processor time beside it."""
    from lookalike.training.config import read_config
    from lookalike.training.export import export_run
    from lookalike.training.loop import train

    slug = re.sub(r"\W+", "-", " ".join([name, f"{options.minutes:g} {seed}", *options.set]).lower()).strip("-")
    place = options.work / slug
    common = [f"data.root={options.pictures}", f"data.cache={options.work / 'cache'}", f"seed={seed}"]
    common += [f"loop.minutes={float(options.minutes)}", f"loop.threads={options.threads}", *options.set]
    began, before = time.monotonic(), os.times()
    if not (place / "report.json").exists():
        train(
            read_config(CONFIG, [*common, *changes]), place, say=lambda line: print(f"{name}: {line}", file=sys.stderr)
        )
        refused = None
        try:
            export_run(place, options.work / f"{slug}.bundle")
        except ExportError as error:  # of a collapsed network, whose rounding errors whitening has enlarged
            refused = str(error)
        after = os.times()
        wall, busy = time.monotonic() - began, after.user + after.system - before.user - before.system
        took = {"minutes": wall / 60, "processor_minutes": busy / 60}
        (place / "took.json").write_text(json.dumps({"took": took, "refused": refused}))
    report = json.loads((place / "report.json").read_text())
    paths = json.loads((place / "data.json").read_text())["paths"]["validation"]
    held_out = sorted({Path(path).parts[-3] for path in paths})
    return {**report, **json.loads((place / "took.json").read_text()), "held_out": held_out}


def row(name: str, seed: int, report: dict) -> dict:
    verdict = report["verdict"]
    kept = {measure: verdict["ours"][measure] for measure in ("one_shot", "r_at_1", "map_at_r")}
    took = {key: round(value, 1) for key, value in report["took"].items()}
    told = {key: report[key] for key in ("steps", "held_out", "warnings", "refused")}
    return {"name": name, "seed": seed, **told, **took, **kept}


@dataclass(frozen=True)
class Drawings:
    """All pictures of a folder: (n,) class, alphabet and drawer of each."""

    paths: list[str]
    labels: Names
    alphabets: Names
    drawers: Names

    @classmethod
    def of(cls, folder: Path, maker: str) -> Drawings:
        """Read the names; `maker` finds the drawer in a file's."""
        found = labelled(folder).examples
        paths = [example.path for example in found]
        names = [np.array(values) for values in ([e.label for e in found], [e.category for e in found])]
        return cls(paths, *names, makers_of(maker, paths))

    def tables(self) -> Iterator[tuple[str, Rows]]:
        """Each alphabet of 20 characters and more that all its drawers drew: the (drawers, characters) rows."""
        for alphabet in np.unique(self.alphabets):
            rows = np.flatnonzero(self.alphabets == alphabet)
            characters, c = np.unique(self.labels[rows], return_inverse=True)
            drawers, d = np.unique(self.drawers[rows], return_inverse=True)
            table = np.full((len(drawers), len(characters)), -1)
            table[d, c] = rows
            if len(characters) >= WAY and (table >= 0).all():
                yield str(alphabet), table


def ask(options: argparse.Namespace) -> None:
    """One-shot accuracy of a bundle, and where it fails."""
    drawings = Drawings.of(options.pictures, options.maker)
    encoder = Encoder.load(options.model)
    vectors = encoder.images(drawings.paths, strict=True)
    values = one_shot(
        vectors,
        drawings.labels,
        categories=drawings.alphabets,
        makers=drawings.drawers,
        episodes=options.episodes or 4000,
    )
    print(f"{encoder.name}: one-shot {mean_interval(values)} over {len(values)} episodes, {len(vectors)} pictures\n")
    print("| alphabet | characters | one-shot | drawers: worst, median, best | pairs never told apart |")
    print("|---" * 5 + "|")
    rows = [(alphabet, table.shape[1], *told_apart(vectors[table])) for alphabet, table in drawings.tables()]
    for alphabet, characters, right, twins in rows:
        worst, median, best = (100 * value for value in np.quantile(right, [0, 0.5, 1]))
        cells = [f"{100 * right.mean():.1f}", f"{worst:.0f}, {median:.0f}, {best:.0f}", str(twins or "")]
        print(f"| {alphabet} | {characters} | {' | '.join(cells)} |")
    means, medians, twins = zip(
        *((right.mean(), np.median(right), number) for _, _, right, number in rows), strict=True
    )
    print(f"| **mean** | | {100 * np.mean(means):.1f} | median {100 * np.mean(medians):.1f} | {sum(twins)} |")


def told_apart(vectors: npt.NDArray[np.float32], way: int = WAY) -> tuple[npt.NDArray[np.float64], int]:
    """How much each drawer gets right, and how many pairs of characters are one and the same to the encoder.

    Args:
        vectors: (drawers, characters, d) unit vectors of one alphabet.
        way: characters in an episode.

    Returns:
        (drawers,): the share that is right in episodes with this drawer's pictures as support or as questions, over all
        other drawers. It is exact: the expectation over all choices of characters.
        The number of pairs of characters of which the wrong one lies nearer more often than `TWINS`.
    """
    drawers, characters = vectors.shape[:2]
    right, confused = np.zeros((drawers, drawers)), np.zeros((characters, characters))
    for one, other in permutations(range(drawers), 2):
        cosines = vectors[one] @ vectors[other].T
        nearer = cosines >= np.diag(cosines)
        np.fill_diagonal(nearer, False)
        right[one, other] = chance_of_none(nearer.sum(0), characters, way).mean()
        confused += nearer / (drawers * (drawers - 1))
    return (right + right.T).sum(0) / (2 * drawers - 2), int((np.triu(confused + confused.T, 1) / 2 > TWINS).sum())


def chance_of_none(nearer: Rows, characters: int, way: int) -> npt.NDArray[np.float64]:
    """That none of so many nearer characters is among the way - 1 drawn from all others (hypergeometric)."""
    others = characters - 1
    result = np.ones(len(nearer))
    for drawn in range(way - 1):
        result *= np.clip(others - nearer - drawn, 0, None) / (others - drawn)
    return result


def hausdorff(options: argparse.Namespace) -> None:
    """One-shot accuracy of the modified Hausdorff distance: the larger of the two mean distances to the nearest ink."""
    drawings, dice, means = Drawings.of(options.pictures, options.maker), np.random.default_rng(0), []
    for alphabet, table in drawings.tables():
        right = []
        for _ in range(options.episodes or 30):
            characters = dice.permutation(table.shape[1])[:WAY]
            drawers = dice.permutation(len(table))[:2]
            support, asked = ([ink(drawings.paths[row]) for row in table[drawer, characters]] for drawer in drawers)
            distances = np.array([[modified_hausdorff(one, other) for other in support] for one in asked])
            right.append((distances.argmin(1) == np.arange(WAY)).mean())
        means.append(np.mean(right))
        print(f"{alphabet}: {100 * means[-1]:.1f}", flush=True)
    print(f"mean of {len(means)} alphabets: {100 * np.mean(means):.1f}")


def ink(path: str) -> npt.NDArray[np.float64]:
    """(n, 2) places of the black pixels, from their middle."""
    with Image.open(path) as picture:
        places = np.argwhere(np.asarray(picture.convert("L")) < 128).astype(np.float64)
    return places - places.mean(0)


def modified_hausdorff(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    distances = cdist(one, other)
    return max(distances.min(0).mean(), distances.min(1).mean())


def shown(cell: dict) -> str:
    return f"{100 * cell['mean']:.2f} [{100 * cell['low']:.2f}, {100 * cell['high']:.2f}]"


def text(document: dict) -> str:
    """Markdown."""
    lines = ["| recipe | seed | one-shot, 20-way | R@1 | MAP@R | steps | minutes, whole | processor minutes |"]
    lines.append("|---" * 8 + "|")
    for r in document["rows"]:
        cells = [shown(r["one_shot"]), shown(r["r_at_1"]), shown(r["map_at_r"])]
        name = f"{r['name']} (export refused)" if r["refused"] else r["name"]
        lines.append(
            f"| {name} | {r['seed']} | {' | '.join(cells)} | {r['steps']:,} | {r['minutes']} | "
            f"{r['processor_minutes']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "seeds", "ask", "hausdorff"])
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/omniglot"))
    parser.add_argument("--minutes", type=float, default=27)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=list(TABLE), default=list(TABLE), metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes for every run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--maker", default=r"_(\d+)\.")
    parser.add_argument("--episodes", type=int, help="ask: 4,000 of all; hausdorff: 30 of each alphabet")
    options = parser.parse_args()
    if options.what in ("ask", "hausdorff"):
        return ask(options) if options.what == "ask" else hausdorff(options)
    chosen = {name: TABLE[name] for name in options.rows} if options.what == "table" else {"omniglot.toml": []}
    options.work.mkdir(parents=True, exist_ok=True)
    rows = [row(n, seed, trained(n, changes, seed, options)) for n, changes in chosen.items() for seed in options.seeds]
    document = {
        "command": "python benchmarks/omniglot.py " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions("torch", "openvino", "numpy"),
        "threads": options.threads or len(os.sched_getaffinity(0)),
        "rows": rows,
    }
    if options.what == "seeds":
        scores = [r["one_shot"]["mean"] for r in rows]
        document["mean"] = statistics.mean(scores)
        document["spread"] = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    if options.json:
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text(document))


if __name__ == "__main__":
    main()
