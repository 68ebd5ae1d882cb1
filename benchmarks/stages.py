"""Does a base help? The same pictures, without labels, learned from a base and from scratch on one budget: one plot.

    python benchmarks/stages.py PICTURES --minutes 8 [--threads 1] [--work DIR] [--set augment.rotate=10.0 …]

Two runs of `lookalike train PICTURES --labels none`: one goes on from the encoder that ships (stage 1: a base given),
one begins with random weights. Both get the same minutes, batches and seed; validation asks altered copies of held-out
pictures for their originals. Writes docs/results/stages.png, .md and .json: how fast each comes near, and where it
ends, on the test part. A run that is complete in --work is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from encode import machine, versions

from lookalike.training.auto import choose
from lookalike.training.loop import train

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "stages"
SCRATCH = ["network.freeze_batch_norm=false", "optimizer.rate=2e-3"]
RUNS = {"from the base": [], "from scratch": SCRATCH}


def run(name: str, changes: list[str], options: argparse.Namespace) -> dict:
    overrides = [f"loop.minutes={options.minutes}", f"loop.threads={options.threads}", "loop.precision=fp32"]
    overrides += [f"data.cache={options.work / 'cache'}", "loop.validate_every=50", *changes, *options.overrides]
    config = choose(options.pictures, "none", overrides=overrides)
    if name == "from scratch":
        network = config.network.model_copy(update={"weights": None})
        preprocessing = config.preprocessing()
        kept = {"size": preprocessing.size, "mean": preprocessing.mean, "std": preprocessing.std}
        data = config.data.model_copy(update={**kept, "fit": preprocessing.fit})
        config = config.model_copy(update={"network": network, "data": data})
    place = options.work / name.replace(" ", "-")
    train(config, place, say=lambda line: print(f"{name}: {line}", flush=True))
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    minutes = {line["step"]: line["minutes"] for line in lines if "minutes" in line}
    asked = [line for line in lines if "validation/r_at_1" in line]
    report, data_file = (json.loads((place / f"{part}.json").read_text()) for part in ("report", "data"))
    return {
        "name": name,
        "steps": report["steps"],
        "minutes": report["minutes"],
        "course": [
            {"step": line["step"], "minutes": minutes.get(line["step"]), "r_at_1": line["validation/r_at_1"]}
            for line in asked
        ],
        "pictures": data_file["pictures"],
        "fingerprint": data_file["fingerprint"],
        "retrieval": report["retrieval"],
        "verdict": report["verdict"],
    }


def plot(runs: list[dict], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for found in runs:
        points = [(p["minutes"], 100 * p["r_at_1"]) for p in found["course"] if p["minutes"] is not None]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=found["name"])
    base = runs[0]["verdict"]["theirs"]["r_at_1"]["mean"]
    axes.axhline(100 * base, color="grey", linestyle=":", label="the base itself (test)")
    axes.set(xlabel="minutes", ylabel="R@1 of altered copies, validation, %", xlim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def cell(value: dict, sign: str = "") -> str:
    return f"{100 * value['mean']:{sign}.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def page(runs: list[dict], facts: dict) -> str:
    lines = [
        "# Base, triplets, retrieval: from a base and from scratch",
        "",
        f"`{facts['command']} --minutes {facts['minutes']:g} --threads {facts['threads']}{facts['settings']}`, "
        f"{facts['date']}, "
        f"{facts['machine']['cores']} cores, no GPU, torch {facts['versions']['torch']}.",
        "",
        "![R@1 over minutes](stages.png)",
        "",
        "R@1 of altered copies of held-out pictures, test part, 95 % intervals over pictures; the difference is "
        "paired, against the encoder that ships.",
        "",
        "| run | steps | R@1 | better than the base by | half of its way done after |",
        "|---|---|---|---|---|",
    ]
    for found in runs:
        course = [p for p in found["course"] if p["minutes"] is not None]
        low, high = course[0]["r_at_1"], course[-1]["r_at_1"]
        half = next((p["minutes"] for p in course if p["r_at_1"] >= (low + high) / 2), course[-1]["minutes"])
        verdict = found["verdict"]
        lines.append(
            f"| {found['name']} | {found['steps']:,} | {cell(verdict['ours']['r_at_1'])} "
            f"| {cell(verdict['differences']['r_at_1'], '+')} | {half:.1f} min |"
        )
    lines += ["", "What the retrieval stage tried (validation), and what it kept:", ""]
    for found in runs:
        for step in found["retrieval"]:
            kept = "kept" if step["kept"] else "left"
            lines.append(f"- {found['name']}: {step['name']} {cell(step['difference'], '+')}, {kept}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("stages.work"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    runs = [run(name, changes, options) for name, changes in RUNS.items()]
    facts = {
        "date": date.today().isoformat(),
        "command": "python benchmarks/stages.py " + Path(options.pictures).name,
        "pictures": Path(options.pictures).name,
        "minutes": options.minutes,
        "threads": options.threads,
        "settings": "".join(f" --set {change}" for change in options.overrides),
        "machine": machine(),
        "versions": versions("torch", "numpy", "lookalike"),
    }
    RESULTS.with_suffix(".json").write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n")
    plot(runs, RESULTS.with_suffix(".png"))
    RESULTS.with_suffix(".md").write_text(page(runs, facts))


if __name__ == "__main__":
    main()
