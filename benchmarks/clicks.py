"""Do simulated clicks teach, and do random ones not? Products, users who prefer the same colour, and users who guess.

    python benchmarks/clicks.py CATALOGUE.csv --column baseColour [--clicks 2000] [--seeds 5] --to docs/results/clicks

A question is a product, and what is shown are its nearest neighbours by the encoder that ships, without those of its
own group. A user with a taste takes what has the value of the question in `--column` with probability 0.9, and
anything else with probability 0.05; one who guesses takes each with the same probability, as often in all.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from lookalike.encoder import Encoder
from lookalike.training.clicks import Impression, learn
from lookalike.training.export import surroundings

SHOWN = 12


def impressions(nearest, values, clicks: int, taste: bool, seed: int) -> list[Impression]:
    """What users took, until they have clicked so often; a guess takes as many on average as a taste would."""
    dice = np.random.default_rng(seed)
    found, count = [], 0
    for question in dice.permutation(len(nearest)):
        shown = nearest[question]
        wanted = values[shown] == values[question]
        chance = np.where(wanted, 0.9, 0.05)
        taken = dice.random(len(shown)) < (chance if taste else chance.mean())
        found.append(Impression(int(question), tuple(shown[taken].tolist()), tuple(shown[~taken].tolist())))
        count += int(taken.sum())
        if count >= clicks:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--column", default="baseColour")
    parser.add_argument("--group", default="productDisplayName")
    parser.add_argument("--clicks", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--to", type=Path, required=True, help="without ending: .json and .md are written")
    options = parser.parse_args()
    with options.catalogue.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (options.catalogue.parent / row["image"]).exists()]
    encoder = Encoder.default()
    vectors = encoder.images([options.catalogue.parent / row["image"] for row in rows], strict=True)
    values, groups = (np.array([row[name] for row in rows]) for name in (options.column, options.group))
    scores = vectors @ vectors.T
    scores[groups[:, None] == groups[None, :]] = -2
    nearest = np.argsort(-scores, axis=1)[:, :SHOWN]

    lines, document = [], {"encoder": encoder.fingerprint, "clicks": options.clicks, "made": surroundings(), "runs": []}
    for taste in (True, False):
        for seed in range(options.seeds):
            told = learn(vectors, impressions(nearest, values, options.clicks, taste, seed), seed=seed)
            kind = f"the same {options.column}" if taste else "at random"
            document["runs"].append({"users": kind, "seed": seed, **told.document()})
            gain = f"{100 * told.gain.mean:+.1f} [{100 * told.gain.low:+.1f}, {100 * told.gain.high:+.1f}]"
            adopted = "adopted" if told.better else "refused"
            cells = (
                kind,
                seed,
                told.gain.count,
                f"{100 * told.before.mean:.1f}",
                f"{100 * told.after.mean:.1f}",
                gain,
                adopted,
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
            print(lines[-1], told.price, told.steps, flush=True)
    made = document["made"]
    command = f"benchmarks/clicks.py styles.csv --column {options.column} --clicks {options.clicks}"
    text = f"""# Learning from clicks: results

`python {command} --seeds {options.seeds} --to docs/results/clicks`, {made["date"]}, {made["machine"]}.
Encoder {encoder.name} (`{encoder.fingerprint}`), {len(rows):,} products, {SHOWN} shown for each question.

Users who take what has {options.column} in common with the question (probability 0.9, else 0.05), and users who take
anything with the same probability. Every question judges once, in one of five rounds in which it had no say: the share
of pairs of a taken and a passed picture in the right order, per cent, with the 95 % paired interval of the gain.

| users take | seed | questions | before | after | gain | the gate |
| --- | --- | --- | --- | --- | --- | --- |
""" + "\n".join(lines)
    options.to.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    options.to.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
