"""Words and pictures in one space: bundles of two towers beside what a bag of words can do, on the held-out part.

    lookalike train configs/flickr8k-dssm.toml --set data.root=flickr8k/captions.csv --to words.bundle
    python benchmarks/words.py captions words.bundle.run … --out docs/results/words-flickr8k
    lookalike train configs/fashion-titles.toml --set data.root=fashion_products/styles.csv --to titles.bundle
    python benchmarks/words.py titles titles.bundle.run --out docs/results/words-fashion

Each run folder lies beside the bundle that was exported of it, which is what is asked, through OpenVINO, as a search
would. What a baseline may choose (the penalty; of CCA also the weight of its directions) it chooses on the validation
part. The part that gives the verdict is asked once. Writes ``OUT.md`` and ``OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lookalike.bundle import default_path
from lookalike.captions import read_captions
from lookalike.catalogue import read_table
from lookalike.encoder import Encoder, cores
from lookalike.metrics import mean_interval, paired_interval
from lookalike.ranking import first_ranks
from lookalike.training.bagofwords import cca, ridge
from lookalike.training.config import read_config
from lookalike.training.export import surroundings
from lookalike.training.towers import STRENGTHS, Question, answers
from lookalike.vectors import unit

KS = (1, 5, 10)
CCA_STRENGTHS, CCA_POWERS, CCA_DIM = (0.3, 1.0, 3.0, 10.0), (1.0, 2.0), 256
GENDERS = {"men", "mens", "women", "womens", "woman", "man", "kids", "unisex", "boys", "girls", "boy", "girl"}


class Setting:
    """Captions, parts and encoder of a run, as its configuration says."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.config = read_config(run / "config.toml", to_run=False)
        found = read_captions(self.config.data.root, self.config.text.columns)
        self.captions = found.keep(np.array([Path(path).is_file() for path in found.pictures]))
        self.parts = self.captions.parts(self.config.data.validation, self.config.data.test, self.config.seed)
        name = self.config.text.encoder
        self.encoder = Encoder.load(default_path() if name == "default" else name)
        self.vectors = self.encoder.images(self.captions.pictures, strict=True)
        self.texts = self.captions.texts
        told = json.loads((run / "data.json").read_text())
        if told["fingerprint"] != self.captions.fingerprint():
            raise SystemExit(f"{run} was trained on other captions than {self.config.data.root} holds now")

    def baselines(self) -> dict:
        """Ridge regression and CCA, fitted on the training part, their settings chosen on validation."""
        rows, pairs = self.captions.of(self.parts["train"])
        texts, vectors = [self.texts[i] for i in rows], self.vectors[self.parts["train"]]
        question = Question.of(self.captions, self.parts["validation"])

        def score(model) -> float:
            asked = model.texts([self.texts[i] for i in question.texts])
            found = answers(asked, model.pictures(self.vectors[question.pictures]), question.pairs)
            return sum(float(values.mean()) for values in found.values())

        begun = time.monotonic()
        ridges = dict(zip(STRENGTHS, ridge(texts, vectors, pairs, STRENGTHS), strict=True))
        best = max(ridges, key=lambda strength: score(ridges[strength]))
        chosen = {"bag of words, ridge regression": (ridges[best], f"penalty {best:g}", time.monotonic() - begun)}
        begun = time.monotonic()
        dim = min(CCA_DIM, vectors.shape[1])
        tried = {(s, p): cca(texts, vectors, pairs, dim, s, p) for s in CCA_STRENGTHS for p in CCA_POWERS}
        best = max(tried, key=lambda key: score(tried[key]))
        told = f"{dim} directions, strength {best[0]:g}, power {best[1]:g}"
        return chosen | {"bag of words, CCA": (tried[best], told, time.monotonic() - begun)}


def median_interval(ranks: np.ndarray, whose: np.ndarray, draws: int = 1000) -> dict:
    """The median rank, with a bootstrap over pictures."""
    dice, order = np.random.default_rng(0), np.argsort(whose, kind="stable")
    groups = np.split(ranks[order], np.cumsum(np.bincount(whose))[:-1])
    medians = [
        float(np.median(np.concatenate([groups[i] for i in dice.integers(len(groups), size=len(groups))])))
        for _ in range(draws)
    ]
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"mean": float(np.median(ranks)), "low": float(low), "high": float(high), "count": len(groups)}


def measured(texts: np.ndarray, pictures: np.ndarray, pairs: np.ndarray) -> tuple[dict, dict]:
    """Intervals of all measures, and the values behind them."""
    values = answers(texts, pictures, pairs)
    by_text, by_picture = first_ranks(texts, pictures, pairs), first_ranks(pictures, texts, pairs[:, ::-1])
    found = {name: asdict(mean_interval(own)) for name, own in values.items()}
    found["text_median_rank"] = median_interval(by_text[pairs[:, 0]], pairs[:, 1])
    found["picture_median_rank"] = median_interval(by_picture, np.arange(len(by_picture)))
    return found, values


def on_training(setting: Setting, bundle: Encoder) -> dict:
    """Recall of 1,000 pictures that were learned from: how much of what is missing is a matter of too few pictures."""
    some = np.random.default_rng(0).permutation(setting.parts["train"])[:1000]
    question = Question.of(setting.captions, np.sort(some))
    pictures = bundle.images([setting.captions.pictures[i] for i in question.pictures], strict=True)
    values = answers(bundle.texts([setting.texts[i] for i in question.texts]), pictures, question.pairs)
    return {name: asdict(mean_interval(own)) for name, own in values.items()}


def captions_rows(runs: list[Path]) -> tuple[list[dict], str, str]:
    """Rows of the table of captions, what was asked, and the fingerprint."""
    rows: list[dict] = []
    for run in runs:
        setting = Setting(run)
        question = Question.of(setting.captions, setting.parts["test"])
        words = [setting.texts[i] for i in question.texts]
        if not rows:
            dice = np.random.default_rng(0)
            drawn = [dice.normal(size=(count, 64)) for count in (len(words), len(question.pictures))]
            found, values = measured(*drawn, question.pairs)
            rows.append({"name": "chance", "what": "random vectors", "measures": found, "values": values})
        under = {}
        for name, (model, told, seconds) in setting.baselines().items():
            found, values = measured(
                model.texts(words), model.pictures(setting.vectors[question.pictures]), question.pairs
            )
            under[name] = values
            rows.append({"name": name, "what": f"onto {setting.encoder.name}; {told}", "minutes": seconds / 60,
                         "measures": found, "values": values})  # fmt: skip
        bundle = Encoder.load(str(run).removesuffix(".run"))
        pictures = bundle.images([setting.captions.pictures[i] for i in question.pictures], strict=True)
        found, values = measured(bundle.texts(words), pictures, question.pairs)
        over = {
            base: {name: asdict(paired_interval(values[name], theirs[name])) for name in theirs}
            for base, theirs in under.items()
        }
        report = json.loads((run / "report.json").read_text())
        size = sum(bundle.bundle.manifest["files"][n]["bytes"] for n in ("text.onnx", "text.safetensors"))
        rows.append(
            {
                "name": "two towers",
                "what": f"beside {setting.encoder.name}; {report['kept_step']} of {report['steps']} steps, "
                f"text tower and projection {size / 1e6:.1f} MB",
                "minutes": report["minutes"] + report["prepared_minutes"],
                "threads": setting.config.loop.threads or cores(),
                "measures": found,
                "over": over,
                "on_training": on_training(setting, bundle),
                "values": values,
            }
        )
    what = f"{len(question.pictures):,} pictures and {len(words):,} different captions of them, never trained on"
    return rows, what, setting.captions.fingerprint()


def title_query(title: str) -> str:
    """A title without its brand: the words before the first that names a gender, or else the first word."""
    words = title.split()
    cut = next((i for i, word in enumerate(words) if word.lower().strip("'s") in GENDERS or word.lower() in GENDERS), 1)
    return " ".join(words[max(cut, 1) :]) or title


def titles_rows(runs: list[Path]) -> tuple[list[dict], str, str]:
    """Rows of the table of titles: what is found for a title without its brand, among the held-out products."""
    rows: list[dict] = []
    for run in runs:
        setting = Setting(run)
        table = read_table(setting.config.data.root)
        columns = [table.column(name) for name in ("productDisplayName", "articleType", "baseColour")]
        home, picture = Path(setting.config.data.root).resolve().parent, table.picture_column()
        facts = {str(home / cells[picture]): [cells[i] for i in columns] for _, cells in table.body}
        held = setting.parts["test"]
        titles, kinds, colours = zip(*(facts[setting.captions.pictures[i]] for i in held), strict=True)
        queries = [title_query(title) for title in titles]
        kind, colour = (np.unique(names, return_inverse=True)[1] for names in (kinds, colours))
        both = (kind[:, None] == kind) & (colour[:, None] == colour)
        pairs = np.stack([np.arange(len(held))] * 2, axis=1)

        def ask(texts: np.ndarray, pictures: np.ndarray, kind=kind, colour=colour, both=both, pairs=pairs) -> dict:
            scores = unit(texts) @ unit(pictures).T
            near = np.argsort(-scores, axis=1, kind="stable")[:, :10]
            others = both.copy()
            np.fill_diagonal(others, False)
            asked = np.where(others.any(1), 0.0, np.nan)  # a product alone of its kind and colour cannot be asked
            own = np.arange(len(near))[:, None]
            return {
                "r_at_10_kind_and_colour": asked + others[own, near].any(1),
                "p_at_10_kind": (kind[near] == kind[:, None]).mean(1),
                "p_at_10_colour": (colour[near] == colour[:, None]).mean(1),
                "p_at_10_kind_and_colour": both[own, near].mean(1),
                "r_at_10_product": (first_ranks(texts, pictures, pairs) <= 10).astype(float),
            }

        if not rows:
            dice = np.random.default_rng(0)
            found = ask(*(dice.normal(size=(len(held), 64)) for _ in range(2)))
            rows.append({"name": "chance", "what": "random vectors", "values": found})
        under = {}
        for name, (model, told, seconds) in setting.baselines().items():
            under[name] = ask(model.texts(queries), model.pictures(setting.vectors[held]))
            rows.append({"name": name, "what": f"onto {setting.encoder.name}; {told}", "minutes": seconds / 60,
                         "values": under[name]})  # fmt: skip
        bundle = Encoder.load(str(run).removesuffix(".run"))
        found = ask(bundle.texts(queries), bundle.images([setting.captions.pictures[i] for i in held], strict=True))
        report = json.loads((run / "report.json").read_text())
        rows.append(
            {
                "name": "two towers",
                "what": f"beside {setting.encoder.name}; {report['kept_step']} of {report['steps']} steps",
                "minutes": report["minutes"] + report["prepared_minutes"],
                "threads": setting.config.loop.threads or cores(),
                "over": {
                    base: {name: asdict(paired_interval(found[name], theirs[name])) for name in theirs}
                    for base, theirs in under.items()
                },
                "values": found,
            }
        )
    for row in rows:
        row["measures"] = {name: asdict(mean_interval(values)) for name, values in row["values"].items()}
    what = (
        f"{len(held):,} held-out products; the query is the title without its brand, e.g. {queries[0]!r} of "
        f"{titles[0]!r}; "
        "R@10 counts another product of the same type and colour"
    )
    return rows, what, setting.captions.fingerprint()


TITLES = {
    **{f"text_r_at_{k}": f"words → picture R@{k}" for k in KS},
    "text_median_rank": "median rank",
    **{f"picture_r_at_{k}": f"picture → words R@{k}" for k in KS},
    "picture_median_rank": "median rank",
    "r_at_10_kind_and_colour": "R@10 type and colour",
    "p_at_10_kind": "P@10 type",
    "p_at_10_colour": "P@10 colour",
    "p_at_10_kind_and_colour": "P@10 both",
    "r_at_10_product": "R@10 the product",
}


def cell(name: str, value: dict) -> str:
    if "median" in name:
        return f"{value['mean']:.0f} [{value['low']:.0f}, {value['high']:.0f}]"
    return f"{100 * value['mean']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def markdown(title: str, what: str, rows: list[dict], made: dict) -> str:
    names = [name for name in TITLES if name in rows[0]["measures"]]
    lines = [f"# {title}", "", f"Asked: {what}. Per cent, 95 % bootstrap intervals over pictures.", ""]
    lines += ["| | " + " | ".join(TITLES[name] for name in names) + " | minutes |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        cells = " | ".join(cell(name, row["measures"][name]) for name in names)
        minutes = f"{row['minutes']:.1f}" if "minutes" in row else ""
        lines.append(f"| **{row['name']}**, {row['what']} | {cells} | {minutes} |")
    lines += ["", "Paired differences of the two towers, in points:", ""]
    for row in rows:
        for base, gaps in row.get("over", {}).items():
            told = ", ".join(f"{TITLES[name]} {cell('', gap)}" for name, gap in gaps.items())
            lines.append(f"- {row['what'].split(';')[0]}, over {base}: {told}")
    for row in rows:
        if "on_training" in row:
            told = ", ".join(f"{TITLES[name]} {cell('', value)}" for name, value in row["on_training"].items())
            lines += ["", f"Asked of 1,000 pictures they were taught, the towers {row['what'].split(';')[0]}: {told}."]
    lines += ["", f"Made: `{made['command']}`, {made['date']}, {made['machine']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("captions", "titles"))
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    rows, what, fingerprint = (captions_rows if arguments.what == "captions" else titles_rows)(arguments.runs)
    for row in rows:
        del row["values"]
    title = "Words and photographs" if arguments.what == "captions" else "Words and products"
    places = " ".join(run.name for run in arguments.runs)
    command = f"python benchmarks/words.py {arguments.what} {places} --out docs/results/{arguments.out.name}"
    made = {"command": command, **surroundings()}
    document = {"kind": "words", "title": title, "asked": what, "fingerprint": fingerprint, "made": made, "rows": rows}
    arguments.out.with_suffix(".json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    arguments.out.with_suffix(".md").write_text(markdown(title, what, rows, made))
    print(arguments.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
