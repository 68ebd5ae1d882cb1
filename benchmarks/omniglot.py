"""One-shot recognition within an alphabet never seen, by recipe: a table, or the same recipe by seeds.

    python benchmarks/omniglot.py table --pictures images_background --minutes 5 [--seeds 0] [--threads 2]
    python benchmarks/omniglot.py seeds --pictures images_background --minutes 27 --seeds 0 1 2
    python benchmarks/omniglot.py ask --pictures DIR --model BUNDLE [--maker '_(\\d+)\\.']

Everything runs through the product: `configs/omniglot.toml`, changed by overrides, `train`, and the verdict of its own
report. An episode is 20 characters of one held-out alphabet, one picture each by one drawer as support and the same
characters by another drawer as queries; intervals are over 2,000 episodes, and between seeds the held-out alphabets
change, too. A run that is complete in --work is not repeated. `ask` asks any bundle, on any folder of alphabets.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from encode import machine, versions

from lookalike.encoder import Encoder
from lookalike.labels import labelled
from lookalike.metrics import mean_interval, one_shot

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
    "supervised contrastive": [],
}


def trained(name: str, changes: list[str], seed: int, options: argparse.Namespace) -> dict:
    """The report of one run, made or found; its processor time beside it."""
    from lookalike.training.config import read_config
    from lookalike.training.export import export_run
    from lookalike.training.loop import train

    slug = re.sub(r"\W+", "-", f"{name} {options.minutes:g} {seed}".lower()).strip("-")
    place = options.work / slug
    common = [f"data.root={options.pictures}", f"data.cache={options.work / 'cache'}", f"seed={seed}"]
    common += [f"loop.minutes={float(options.minutes)}", f"loop.threads={options.threads}"]
    began, before = time.monotonic(), os.times()
    if not (place / "report.json").exists():
        train(
            read_config(CONFIG, [*common, *changes]), place, say=lambda line: print(f"{name}: {line}", file=sys.stderr)
        )
        export_run(place, options.work / f"{slug}.bundle")
        after = os.times()
        wall, busy = time.monotonic() - began, after.user + after.system - before.user - before.system
        (place / "took.json").write_text(json.dumps({"minutes": wall / 60, "processor_minutes": busy / 60}))
    report = json.loads((place / "report.json").read_text())
    return {**report, "took": json.loads((place / "took.json").read_text())}


def row(name: str, seed: int, report: dict) -> dict:
    verdict = report["verdict"]
    kept = {measure: verdict["ours"][measure] for measure in ("one_shot", "r_at_1", "map_at_r")}
    took = {key: round(value, 1) for key, value in report["took"].items()}
    return {"name": name, "seed": seed, "steps": report["steps"], **took, **kept, "warnings": report["warnings"]}


def ask(options: argparse.Namespace) -> None:
    """One-shot accuracy of a bundle."""
    found = labelled(options.pictures)
    encoder = Encoder.load(options.model)
    vectors = encoder.images([example.path for example in found.examples], strict=True)
    labels, categories = [e.label for e in found.examples], [e.category for e in found.examples]
    makers = [re.search(options.maker, Path(e.path).name).group(1) for e in found.examples] if options.maker else None
    values = one_shot(vectors, labels, categories=categories, makers=makers, episodes=options.episodes)
    print(f"{encoder.name}: one-shot {mean_interval(values)} over {len(values)} episodes, {len(labels)} pictures")


def shown(cell: dict) -> str:
    return f"{100 * cell['mean']:.2f} [{100 * cell['low']:.2f}, {100 * cell['high']:.2f}]"


def text(document: dict) -> str:
    """Markdown."""
    lines = ["| recipe | seed | one-shot, 20-way | R@1 | MAP@R | steps | minutes, whole | processor minutes |"]
    lines.append("|---" * 8 + "|")
    for r in document["rows"]:
        cells = [shown(r["one_shot"]), shown(r["r_at_1"]), shown(r["map_at_r"])]
        lines.append(
            f"| {r['name']} | {r['seed']} | {' | '.join(cells)} | {r['steps']:,} | {r['minutes']} | "
            f"{r['processor_minutes']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "seeds", "ask"])
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/omniglot"))
    parser.add_argument("--minutes", type=float, default=27)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=list(TABLE), default=list(TABLE), metavar="NAME")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--maker", default=r"_(\d+)\.")
    parser.add_argument("--episodes", type=int, default=4000)
    options = parser.parse_args()
    if options.what == "ask":
        return ask(options)
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
