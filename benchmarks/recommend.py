"""Recommendations on the fashion catalogue: held-out products ask, by encoder and by what they may find.

    python scripts/make_default_bundle.py --stage catalogue …                  # who is held out: WORK/catalogue.csv
    python benchmarks/recommend.py catalogue --styles styles.csv --sides WORK/catalogue.csv --to fashion.csv
    lookalike train configs/fashion-recommend.toml --set data.root=fashion.csv --to fashion.bundle
    python benchmarks/recommend.py measure fashion.csv --bundle fashion.bundle --bundle default

``measure`` asks the products of side "test", once, by `lookalike.recommend.judge`. Two catalogues: the held-out
products alone, which no encoder has seen, and the whole catalogue, as a shop would show it. A product's own group (the
same name, or nearly the same picture) is neither an answer nor missed. Writes OUT.md and OUT.json. With ``--side
validation`` it is the tool to choose by, and writes nothing.

``baskets`` tells whether what pairs say is learned. There are no real ones for this catalogue: its customers are made
up, and the page says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lookalike.catalogue import rows
from lookalike.encoder import Encoder
from lookalike.index import open_index
from lookalike.indexing import update_index
from lookalike.metrics import catalogue_coverage, hit_rate, list_recall, mean_interval, paired_interval
from lookalike.recommend import CoOccurrence, Recommender, judge
from lookalike.results import made

ALSO = ("subCategory", "masterCategory", "baseColour", "gender")
GROUP = "product"
TITLES = {
    "precision@10": "articleType, precision@10",
    "precision@10, capped": "… of min(10, relevant)",
    "precision@10, deep": "… of types with ≥ 10 to find",
    "agreement: subCategory": "subCategory, precision@10",
    "agreement: masterCategory": "masterCategory, precision@10",
    "agreement: baseColour": "colour agrees",
    "agreement: gender": "gender agrees",
    "hit rate@10": "hit rate@10",
    "recall@10": "recall@10",
    "coverage": "coverage of the catalogue",
    "diversity": "diversity, 1 - mean cosine",
    "chance": "chance, precision@10",
}


def make_catalogue(styles: Path, sides: Path, target: Path) -> None:
    """The columns of the shop, with the side and the group that the default encoder was made with."""
    with sides.open(newline="", encoding="utf-8") as file:
        known = {Path(row["image"]).name: row for row in csv.DictReader(file) if row["source"] == "fashion"}
    with styles.open(newline="", encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if Path(row["image"]).name in known]
    with target.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [*found[0], "split", GROUP], lineterminator="\n")
        table.writeheader()
        for row in found:
            side = known[Path(row["image"]).name]
            image = str((styles.parent / row["image"]).resolve())
            table.writerow({**row, "image": image, "split": side["split"], GROUP: side["group"]})
    print(f"{len(found):,} products in {target}")


def indexed(catalogue: Path, bundle: str) -> tuple[Encoder, object]:
    """The catalogue's index, beside it, brought up to date."""
    encoder = Encoder.default() if bundle == "default" else Encoder.load(bundle)
    place = catalogue.with_suffix(f".{encoder.fingerprint}.index")
    index = open_index(place, dim=encoder.dim, meta={"encoder": encoder.describe()})
    update_index(index, encoder, rows([catalogue]))
    return encoder, index


def measure(catalogue: Path, bundles: list[str], side: str, out: Path | None, command: str, note: str) -> None:
    galleries = {f"held-out ({side})": {"split": side}, "whole catalogue": None}
    found: dict[str, dict[str, object]] = {gallery: {} for gallery in galleries}
    for bundle in bundles:
        encoder, index = indexed(catalogue, bundle)
        with closing(index):
            recommender = Recommender(index, encoder)
            for gallery, where in galleries.items():
                began = time.monotonic()
                options = {"also": ALSO, "questions": {"split": side}, "where": where, "group": GROUP}
                found[gallery][encoder.name] = judge(recommender, "articleType", **options)
                print(f"\n{gallery}, {time.monotonic() - began:.0f} s\n{found[gallery][encoder.name]}", flush=True)
    if out is None:
        return
    ours, *others = next(iter(found.values()))
    gaps = {
        gallery: {
            other: {
                name: asdict(paired_interval(by[ours].values[name], by[other].values[name]))
                for name in TITLES
                if name in by[ours].measures and name != "chance"
            }
            for other in others
        }
        for gallery, by in found.items()
    }
    documents = [{**judged.document(), "gallery": gallery} for gallery, by in found.items() for judged in by.values()]
    headline = documents[0]
    document = {
        **headline,
        "title": "Recommendations on the fashion catalogue",
        "rows": documents,
        "differences": gaps,
        "note": note,
        "made": made(command),
    }
    out.with_suffix(".json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(found, gaps, document, out.name), encoding="utf-8")


def page(found: dict, gaps: dict, document: dict, name: str) -> str:
    how = document["made"]
    versions = ", ".join(f"{package} {version}" for package, version in how["versions"].items())
    parts = [
        "# Recommendations on the fashion catalogue",
        "",
        f"`{how['command']}`, {how['date']}, {how['machine']}. {versions}. All numbers: [{name}.json]({name}.json).",
        "",
        "Products held out by group (the same product name, or nearly the same picture) ask for ten others; relevant "
        "is the same articleType. Their own group is neither an answer nor missed. Kinds are known: the same types of "
        "articles are on both sides, the products are not. Per cent, with 95 % bootstrap intervals over questions; "
        "differences are paired.",
        "",
        document["note"],
    ]
    for gallery, by in found.items():
        first, *others = by
        columns = [*by, *(f"{first} - {other}" for other in others)]
        parts += ["", f"## What may be found: {gallery}", ""]
        one = by[first]
        parts += [f"{one.questions:,} questions, {one.items:,} products."]
        parts += [f"{line}." for line in one.notes]
        parts += ["", f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        for key, title in TITLES.items():
            if key in one.measures:
                cells = [cell(asdict(judged.measures[key])) for judged in by.values()]
                cells += [
                    cell(gaps[gallery][other][key], "+") if key in gaps[gallery][other] else "" for other in others
                ]
                parts.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(parts) + "\n"


def cell(value: dict, sign: str = "") -> str:
    return f"{100 * value['mean']:{sign}.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


# ── pairs that are drawn ─────────────────────────────────────────────────────────────────────────────────────────────

MEASURED = ("hit rate@10", "recall@10", "coverage")
# Questions of a table.
ASKED = 100
# What a made-up customer buys together with an article of a kind, and how often.
GOES_WITH = {
    "Topwear": {"Bottomwear": 5, "Shoes": 3, "Watches": 2},
    "Bottomwear": {"Topwear": 5, "Belts": 3, "Shoes": 2},
    "Shoes": {"Socks": 5, "Bottomwear": 3, "Topwear": 2},
    "Bags": {"Shoes": 4, "Wallets": 3, "Eyewear": 3},
    "Watches": {"Wallets": 4, "Topwear": 3, "Belts": 3},
}


def draw_baskets(items: list, customers: int, seed: int) -> list[tuple[str, str, float]]:
    """Two articles each: kinds by `GOES_WITH`, of one gender and, four times in five, of one colour; some sell more."""
    dice = np.random.default_rng(seed)
    shelves: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item in items:
        kind, gender, colour = (item.payload.get(name, "") for name in ("subCategory", "gender", "baseColour"))
        shelves[kind, gender].append(item.key)
        shelves[kind, gender, colour].append(item.key)
    sells = dict(zip(sorted(item.key for item in items), dice.pareto(1.5, len(items)) + 0.2, strict=True))
    starts = [item for item in items if item.payload.get("subCategory") in GOES_WITH]
    worth = np.array([sells[item.key] for item in starts])
    pairs = []
    for place in dice.choice(len(starts), customers, p=worth / worth.sum()):
        first = starts[place].payload
        kinds = GOES_WITH[first["subCategory"]]
        kind = dice.choice(list(kinds), p=np.array(list(kinds.values())) / sum(kinds.values()))
        shelf = shelves[str(kind), first["gender"]]
        if dice.random() < 0.8:
            shelf = shelves.get((str(kind), first["gender"], first["baseColour"])) or shelf
        if shelf:
            weights = np.array([sells[key] for key in shelf])
            pairs.append((starts[place].key, shelf[dice.choice(len(shelf), p=weights / weights.sum())], 1.0))
    return pairs


def baskets(catalogue: Path, bundle: str, customers: int, seed: int, out: Path, command: str) -> None:
    """Pairs of products with a past, and of new ones: by looks alone, by what sells with their kind, and learned."""
    encoder, index = indexed(catalogue, bundle)
    tables = []
    with closing(index):
        items = {item.key: item for item in sorted(index.scan(), key=lambda item: item.key)}
        kind = {key: item.payload["subCategory"] for key, item in items.items()}
        new = {key for key, item in items.items() if item.payload["split"] == "test"}
        pairs = draw_baskets(list(items.values()), customers, seed)
        # What is learned are two thirds of the baskets of old products; test products are new and have no past at all.
        old = [pair for pair in pairs if not new & {*pair[:2]}]
        past, later = CoOccurrence.of(old[: 2 * len(old) // 3]), old[2 * len(old) // 3 :]
        first_day = [pair for pair in pairs if pair[0] in new and pair[1] not in new]
        for title, held_out in (("products with a past", later), ("new products", first_day)):
            truth = CoOccurrence.of(held_out)
            starts = sorted({left for left, _, _ in held_out})
            asking = sorted(np.random.default_rng(seed).choice(starts, min(ASKED, len(starts)), replace=False).tolist())
            ids = {"id": {"any_of": [items[key].payload["id"] for key in asking]}}
            found = {"what sells with its kind": popular(past, truth, kind, asking)}
            for name, together in (("looks alone", None), ("learned", past)):
                recommender = Recommender(index, encoder, together=together)
                judged = judge(recommender, truth, across="subCategory", questions=ids)
                found[name] = {measure: judged.values[measure] for measure in MEASURED}
                print(f"\n{title}, {name}\n{judged}", flush=True)
            tables.append({"questions": len(asking), "title": title, "rows": compared(found)})
    document = {
        "kind": "recommendation-baskets",
        "title": "What goes together, from made-up baskets",
        "settings": {"customers": customers, "seed": seed, "encoder": encoder.name, "goes_with": GOES_WITH},
        "tables": tables,
        "made": made(command),
    }
    out.with_suffix(".json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(basket_page(document, out.name), encoding="utf-8")


def popular(past: CoOccurrence, truth: CoOccurrence, kind: dict, asking: list[str]) -> dict:
    """The ten items most often bought with anything of the question's kind: no looks, nothing of the item itself."""
    sold: dict[str, Counter] = defaultdict(Counter)
    for key, partners in past.counts.items():
        for partner, count in partners.items():
            if kind[partner] != kind[key]:
                sold[kind[key]][partner] += count
    answers = [[key for key, _ in sold[kind[key]].most_common(10)] for key in asking]
    relevant = [frozenset(truth.counts[key]) for key in asking]
    return {
        "hit rate@10": hit_rate(answers, relevant, 10),
        "recall@10": list_recall(answers, relevant, 10),
        "coverage": catalogue_coverage(answers, sorted(kind)),
    }


def compared(found: dict) -> list[dict]:
    """A row for each way, with its interval; and of `learned` minus each other one."""
    rows = []
    for name, values in found.items():
        row = {"name": name, "measures": {measure: asdict(mean_interval(values[measure])) for measure in MEASURED}}
        if name != "learned":
            gaps = {m: asdict(paired_interval(found["learned"][m], values[m])) for m in MEASURED if m != "coverage"}
            row["learned_over_this"] = gaps
        rows.append(row)
    return rows


def basket_page(document: dict, name: str) -> str:
    how = document["made"]
    parts = [
        "# What goes together, from made-up baskets",
        "",
        f"`{how['command']}`, {how['date']}, {how['machine']}. All numbers: [{name}.json]({name}.json).",
        "",
        "**The baskets are made up**: the catalogue is real, its customers are not. Each buys two articles of kinds "
        "that go together, of one gender, four times in five of one colour, and some sell far more than others "
        f"({document['settings']['customers']:,} baskets). So these numbers tell whether what pairs say is learned; "
        "they do not tell how much a real shop would gain. Answers come from other "
        "categories (subCategory); relevant is what was bought together and held back. Per cent, with 95 % bootstrap "
        "intervals over questions; differences are paired.",
    ]
    for table in document["tables"]:
        parts += ["", f"## {table['title'].capitalize()}: {table['questions']:,} questions", ""]
        parts += ["| | hit rate@10 | recall@10 | coverage | hit rate, learned - this |", "|---|---|---|---|---|"]
        for row in table["rows"]:
            cells = [cell(row["measures"][measure]) for measure in MEASURED]
            gap = cell(row["learned_over_this"]["hit rate@10"], "+") if "learned_over_this" in row else ""
            parts.append(f"| {row['name']} | {' | '.join(cells)} | {gap} |")
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = stages.add_parser("catalogue")
    stage.add_argument("--styles", type=Path, required=True)
    stage.add_argument("--sides", type=Path, required=True)
    stage.add_argument("--to", type=Path, required=True)
    stage = stages.add_parser("measure")
    stage.add_argument("catalogue", type=Path)
    stage.add_argument("--bundle", action="append", required=True, help="the first one is compared with the others")
    stage.add_argument("--side", default="test")
    stage.add_argument("--note", default="", help="a sentence for the page")
    stage.add_argument("--out", type=Path, default=Path("docs/results/recommendation-fashion"))
    stage = stages.add_parser("baskets")
    stage.add_argument("catalogue", type=Path)
    stage.add_argument("--bundle", default="default")
    stage.add_argument("--customers", type=int, default=20_000)
    stage.add_argument("--seed", type=int, default=0)
    stage.add_argument("--out", type=Path, default=Path("docs/results/recommendation-baskets"))
    options = parser.parse_args()
    if options.stage == "catalogue":
        make_catalogue(options.styles, options.sides, options.to)
    elif options.stage == "baskets":
        command = f"python benchmarks/recommend.py baskets {options.catalogue.name}"
        baskets(options.catalogue, options.bundle, options.customers, options.seed, options.out, command)
    else:
        names = " ".join(f"--bundle {Path(bundle).name}" for bundle in options.bundle)
        command = f"python benchmarks/recommend.py measure {options.catalogue.name} {names}"
        out = options.out if options.side == "test" else None
        measure(options.catalogue, options.bundle, options.side, out, command, options.note)


if __name__ == "__main__":
    sys.exit(main())
