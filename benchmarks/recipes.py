"""A table of finished runs, from their own reports: what each recipe came to, against its base.

    lookalike train configs/faces.toml --set data.root=att_faces --to faces.bundle
    python benchmarks/recipes.py faces.bundle.run … [--out docs/results/recipes]

Writes ``OUT.md`` and ``OUT.json``. Run it on the machine that trained: it notes that machine and its versions.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from encode import machine, versions

from lookalike.training.config import read_config

MEASURES = {"one_shot": "one-shot, 20-way", "map_at_r": "MAP@R", "r_at_1": "R@1"}


def row(place: Path) -> dict:
    config = read_config(place / "config.toml", to_run=False)
    report, data = (json.loads((place / f"{name}.json").read_text()) for name in ("report", "data"))
    verdict = report["verdict"]
    return {
        "recipe": config.name,
        "seed": config.seed,
        "steps": report["steps"],
        "minutes": report["minutes"],
        "threads": config.loop.threads or machine()["cores"],
        "precision": report["precision"],
        "pictures": data["pictures"],
        "fingerprint": data["fingerprint"],
        "held_out": verdict["part"],
        "base": verdict["base"],
        "better": verdict["better"],
        **{name: {side: verdict[side].get(name) for side in ("ours", "theirs", "differences")} for name in MEASURES},
    }


def cell(value: dict, sign: str = "") -> str:
    return f"{100 * value['mean']:{sign}.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def table(rows: list[dict]) -> str:
    lines = [
        "| recipe | measure | trained | base | difference | steps, minutes, threads |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        cost = f"{r['steps']:,}, {r['minutes']:.1f}, {r['threads']}"
        for name, title in MEASURES.items():
            found = r[name]
            if found["ours"]:
                cells = [cell(found["ours"]), cell(found["theirs"]), cell(found["differences"], "+")]
                lines.append(f"| {r['recipe']}, seed {r['seed']} | {title} | {' | '.join(cells)} | {cost} |")
                cost = ""
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/recipes"))
    parser.add_argument("--note", default="", help="a sentence for the page")
    options = parser.parse_args()
    rows = [row(place) for place in options.runs]
    document = {
        "command": "lookalike train configs/RECIPE.toml --set data.root=… --to B; python benchmarks/recipes.py B.run …",
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions("torch", "torchvision", "openvino", "numpy"),
        "rows": rows,
    }
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    made = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    bases = "\n".join(sorted({f"- {r['recipe']}: {r['base']}; judged on {r['held_out']}" for r in rows}))
    text = f"""# Recipes: what they came to

`{document["command"]}`, {document["date"]}, {document["machine"]["cores"]} cores, no GPU. Versions: {made}.
Per cent, with 95 % bootstrap intervals over queries (episodes for one-shot), differences paired; one seed each, so the
spread between seeds is not in them. The machine did other work at times: steps count, minutes are an upper bound.
All numbers: [{options.out.name}.json]({options.out.name}.json).

{table(rows)}

{options.note}

The base of each is what there was before step 0:

{bases}
"""
    options.out.with_suffix(".md").write_text(text)
    print(table(rows))


if __name__ == "__main__":
    main()
