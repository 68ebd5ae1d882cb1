"""Make the encoder bundle that ships in the package, from the zips of pictures to ``lookalike/models/default``.

    python scripts/make_default_bundle.py --data DIR --weights DIR --work DIR [--stage all] [--set loop.threads=1 …]

It needs ``lookalike[train]`` and about 3 GB under ``--work``, where every stage leaves what the next one needs. A stage
that is complete is not run again (delete its files to repeat it); an interrupted training goes on where it was.

=========  ==========================================================================================================
catalogue  unzip the pictures; hold out products by group: catalogue.csv
teachers   the networks to learn from, as bundles
train      the configurations in `PARTS`, each going on from the one before; the last bundle is the candidate
measure    the test products, once: the candidate, the encoder that ships until now, a teacher, pixels, colours; and
           the cosine from which on two pictures are taken for one
bundle     the candidate with its numbers, its threshold and its card; and the page of results
=========  ==========================================================================================================
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
import textwrap
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lookalike.baselines import ColourHistogram, Pixels
from lookalike.bundle import Bundle, default_path, write_bundle
from lookalike.encoder import Encoder, cores
from lookalike.groups import Groups
from lookalike.images import Picture, Preprocessing, Region, read
from lookalike.metrics import Interval, average_precision_at_r, mean_interval, paired_interval, precision_at_k
from lookalike.splits import duplicates
from lookalike.thresholds import threshold_of
from lookalike.training.config import read_config
from lookalike.training.export import export_network, export_run, surroundings
from lookalike.training.loop import train

HOME = Path(__file__).resolve().parent.parent
NAME, VERSION, LICENCE = "lookalike-default", "3", "Apache-2.0"
OURS = f"{NAME} {VERSION}"
COMMAND = "python scripts/make_default_bundle.py --data DIR --weights DIR --work DIR"
SEED = 20261124
# Shares of the groups, each side up to its edge.
EDGES = (("test", 0.2), ("validation", 0.3), ("train", 1.0))
MOST_BYTES = 6_000_000  # of graph and weights: they are in every wheel and every checkout
# Configuration → what it leaves under --work. Each part begins with the weights of the one before.
PARTS = {"default-encoder": "student", "default-encoder-larger": "larger"}
TEACHERS = {"mobilenet_v2_tf": "mobilenet_v2_tf", "mobilenet_v2": "torchvision:mobilenet_v2"}
# Column `source` of the catalogue → zip, title, what is known of its licence.
SOURCES = {
    "fashion": ("fashion_products", "Fashion Product Images (Kaggle)", "the dataset page says MIT"),
    "flickr": ("flickr8k", "Flickr8k", "photographs from Flickr, given out for research and education"),
    "tiny": ("tiny_imagenet_60", "Tiny ImageNet, 60 per class", "ImageNet terms: non-commercial research, education"),
}
PROTOCOL = (
    "Fashion products held out by group (same product name, or nearly the same picture), 20 % of the groups. Every "
    "test picture is a query; its gallery is the other test pictures without its own group; relevant means the same "
    "articleType. Queries with nothing relevant do not count. P@1, P@10 and MAP@R (Musgrave et al. 2020) of cosines in "
    "float32, without re-ranking, ties against the query; 95 % percentile-bootstrap intervals over queries, paired for "
    "differences."
)
# The folders of an absolute path, within a text: their names may hold spaces, but do not begin or end with one.
PLACE = re.compile(r"""(?<![\w.:/])/(?:[^\s/"':;,()](?:[^/\n"':;,()]*[^\s/])?/)*(?=[^\s/])""")
MEASURES: dict[str, Callable[..., Any]] = {
    "P@1": lambda vectors, labels, groups: precision_at_k(vectors, labels, 1, groups),
    "P@10": lambda vectors, labels, groups: precision_at_k(vectors, labels, 10, groups),
    "MAP@R": average_precision_at_r,
}


@dataclass(frozen=True)
class Place:
    """Where things are, all paths absolute, and what is set otherwise than the configurations say."""

    data: Path
    weights: Path
    work: Path
    out: Path
    results: Path
    settings: Sequence[str] = ()

    def rows(self, source: str, side: str) -> list[dict[str, str]]:
        """Lines of the catalogue, with `image` as a whole path."""
        with (self.work / "catalogue.csv").open(newline="", encoding="utf-8") as file:
            found = [row for row in csv.DictReader(file) if (row["source"], row["split"]) == (source, side)]
        return [{**row, "image": str(self.work / row["image"])} for row in found]

    def trained(self) -> list[Bundle]:
        """What the training has left, part by part; the last one is the candidate."""
        return [Bundle.load(self.work / f"{name}.bundle") for name in PARTS.values()]


def write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


# ── catalogue ────────────────────────────────────────────────────────────────────────────────────────────────────────


def joined(groups: Sequence[int], names: Sequence[str]) -> list[int]:
    """Groups that have a name in common become one: the position of its first member, for each."""
    first: dict[str, int] = {}
    together = Groups(len(names))
    for row, name in enumerate(names):
        together.join(row, groups[row])
        together.join(row, first.setdefault(" ".join(name.lower().split()), row))
    return together.firsts()


def sides(groups: Sequence[int], seed: int = SEED) -> list[str]:
    """Test, validation or train for each, by whole groups: the shares are of groups, not of pictures."""
    names = np.unique(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    share = dict(zip(names[order].tolist(), np.linspace(0, 1, len(names), endpoint=False), strict=True))
    return [next(side for side, edge in EDGES if share[group] < edge) for group in groups]


def products(folder: Path) -> Iterator[tuple[Path, str, str, str, str]]:
    """The fashion pictures, held out by group: same product name, or nearly the same picture."""
    with (folder / "styles.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (folder / row["image"]).exists()]
    small = Preprocessing(size=(32, 32), fit="squash")
    with ThreadPoolExecutor(cores()) as pool:
        pixels = np.stack(list(pool.map(lambda row: small.load(folder / row["image"]), rows)))
    groups = joined(duplicates(pixels).tolist(), [row["productDisplayName"] for row in rows])
    for row, group, side in zip(rows, groups, sides(groups), strict=True):
        yield folder / row["image"], f"fashion/{row['articleType']}", side, "fashion", str(group)


def stage_catalogue(place: Place) -> None:
    """Unzip, and write who is on which side."""
    target, pictures = place.work / "catalogue.csv", place.work / "pictures"
    if target.exists():
        return
    for name, _, _ in SOURCES.values():
        with zipfile.ZipFile(place.data / f"{name}.zip") as archive:
            archive.extractall(pictures)
    lines = list(products(pictures / "fashion_products"))
    for path in sorted((pictures / "flickr8k" / "images").iterdir()):
        lines.append((path, f"flickr/{path.name}", "train", "flickr", path.name))
    for path in sorted((pictures / "tiny_imagenet" / "train").glob("*/*")):
        lines.append((path, f"tiny/{path.parent.name}", "train", "tiny", path.name))
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "label", "split", "source", "group"])
    table.writerows((path.relative_to(place.work).as_posix(), *rest) for path, *rest in lines)
    write(target, text.getvalue())
    print(f"  {dict(Counter(f'{source} {side}' for _, _, side, source, _ in lines))}")


# ── teachers and training ────────────────────────────────────────────────────────────────────────────────────────────


def stage_teachers(place: Place) -> None:
    """The networks to learn from, with their published weights."""
    for file, network in TEACHERS.items():
        bundle = place.work / f"{file}.bundle"
        if not bundle.exists():
            export_network(network, bundle, weights=place.weights / f"{file}.safetensors")


def stage_train(place: Place) -> None:
    """All parts, from random weights on."""
    bundles = json.dumps([str(place.work / f"{file}.bundle") for file in TEACHERS], ensure_ascii=False)
    start: list[str] = []
    for recipe, name in PARTS.items():
        bundle = place.work / f"{name}.bundle"
        if not bundle.exists():
            own = [f"data.root={place.work / 'catalogue.csv'}", f"data.cache={place.work / 'cache'}"]
            taught = [f"teacher.bundles={bundles}", *start, *place.settings]
            run = bundle.with_suffix(".run")
            train(read_config(HOME / "configs" / f"{recipe}.toml", [*own, *taught]), run)
            export_run(run, bundle)
        start = [f"network.weights={bundle}"]


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def described(interval: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return {key: round(value, 4) for key, value in asdict(interval).items()}


def compare(vectors: Mapping[str, Any], labels: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """Every encoder by every measure; and the first one minus every other, query by query."""
    asked = {
        name: {measure: ask(rows, labels, groups) for measure, ask in MEASURES.items()}
        for name, rows in vectors.items()
    }
    ours, *others = asked
    gaps = {name: {m: paired_interval(asked[ours][m], v) for m, v in asked[name].items()} for name in others}
    means = {name: {m: mean_interval(v) for m, v in own.items()} for name, own in asked.items()}
    return {
        kind: {name: {m: described(interval) for m, interval in own.items()} for name, own in found.items()}
        for kind, found in (("encoders", means), ("differences", gaps))
    }


def altered(path: str) -> dict[str, Picture]:
    """What happens to copies of a picture on their way."""
    image, coded = read(path), {}
    for quality in (80, 50):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        coded[f"JPEG quality {quality}"] = buffer.getvalue()
    smaller = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BICUBIC)
    return {**coded, "middle 95 %": Region(image, (0.025, 0.025, 0.975, 0.975)), "3/4 of the size": smaller}


def calibrated(encoder: Encoder, rows: Sequence[Mapping[str, str]], count: int) -> dict[str, Any]:
    """The cosine from which on two pictures are taken for one, and what it costs.

    At most 0.5 % of the first `count` pictures have one of another group so near among all of them; the recall is the
    share of altered copies that are so near.
    """
    paths, group = [row["image"] for row in rows], np.array([row["group"] for row in rows])
    vectors = encoder.images(paths, strict=True)
    scores = vectors[:count] @ vectors.T
    scores[group[:count, None] == group[None]] = -1
    nearest = scores.max(axis=1)
    threshold = threshold_of(nearest)
    copies, recall = [altered(path) for path in paths[:count]], {}
    for kind in copies[0]:
        cosines = (encoder.images([copy[kind] for copy in copies], strict=True) * vectors[:count]).sum(axis=1)
        recall[kind] = round(float((cosines >= threshold).mean()), 4)
    alarms = round(float((nearest >= threshold).mean()), 4)
    return {"threshold": threshold, "false_alarms": alarms, "queries": count, "gallery": len(rows), "recall": recall}


def duplicate_thresholds(place: Place, encoder: Encoder) -> dict[str, Any]:
    """For products: validation among those and training ones. A second one for photographs."""
    asked, photographs = place.rows("fashion", "validation"), place.rows("flickr", "train")
    found = {
        "products (validation)": calibrated(encoder, asked + place.rows("fashion", "train"), len(asked)),
        "photographs (Flickr8k, seen in training)": calibrated(encoder, photographs, min(1000, len(photographs))),
    }
    # Whoever deletes duplicates would rather miss one than lose a picture: the stricter of the two is the default.
    return {"duplicate": max(kind["threshold"] for kind in found.values()), "calibration": found}


def stage_measure(place: Place) -> None:
    """The test products, once, and the threshold of duplicates."""
    target = place.work / "measured.json"
    if target.exists():
        return
    candidate, before = Encoder(place.trained()[-1], precision="fp32"), Encoder.default(precision="fp32")
    teacher = Encoder.load(place.work / "mobilenet_v2_tf.bundle", precision="fp32")
    rows = place.rows("fashion", "test")
    paths = [row["image"] for row in rows]
    vectors = {
        OURS: candidate.images(paths, strict=True),
        f"before: {before.name}": before.images(paths, strict=True),
        f"teacher: MobileNetV2, {teacher.dim} numbers": teacher.images(paths, strict=True),
        "pixels": Pixels().images(paths),
        "colour histogram": ColourHistogram().images(paths),
    }
    metrics = {
        "protocol": PROTOCOL,
        "pictures": len(rows),
        "before": {"name": before.name, "fingerprint": before.fingerprint, "dim": before.dim},
        **compare(vectors, [row["label"] for row in rows], [row["group"] for row in rows]),
        "measured": surroundings(),
    }
    print(table(metrics["encoders"]))
    document = {"fingerprint": candidate.fingerprint, "metrics": metrics}
    document["thresholds"] = duplicate_thresholds(place, candidate)
    write(target, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


# ── the bundle, its card and its results ─────────────────────────────────────────────────────────────────────────────


def without_places(value: Any) -> Any:
    """A document without the folders of this machine: of every absolute path in it, the last part stays."""
    if isinstance(value, Mapping):
        return {key: without_places(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(part) for part in value]
    return PLACE.sub("", value) if isinstance(value, str) else value


def data_used(place: Place) -> dict[str, Any]:
    """Per set of pictures: what it is, and which pictures the weights come from, by their names and sizes."""
    used = {}
    for source, (_, title, licence) in SOURCES.items():
        paths = [Path(row["image"]) for row in place.rows(source, "train")]
        lines = sorted(f"{path.relative_to(place.work / 'pictures')} {path.stat().st_size}" for path in paths)
        sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        used[source] = {"title": title, "licence": licence, "pictures": len(paths), "sha256": sha256}
    return used


def markdown(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (heads, ["---"] * len(heads), *lines))


def table(encoders: Mapping[str, Any]) -> str:
    """Encoders by measures, in per cent."""
    told = "{:.1f} [{:.1f}, {:.1f}]"
    cells = {
        name: [told.format(*(100 * v[key] for key in ("mean", "low", "high"))) for v in own.values()]
        for name, own in encoders.items()
    }
    return markdown(["encoder", *MEASURES], [[name, *own] for name, own in cells.items()])


def threshold_table(calibration: Mapping[str, Any]) -> str:
    """What `calibrated` gave, per kind of pictures."""
    heads = ["calibrated on", "threshold", "false alarms", *next(iter(calibration.values()))["recall"]]
    lines = [
        [
            f"{name}: {found['queries']:,} among {found['gallery']:,}",
            found["threshold"],
            f"{100 * found['false_alarms']:.2f} %",
            *(f"{100 * share:.1f} %" for share in found["recall"].values()),
        ]
        for name, found in calibration.items()
    ]
    return markdown(heads, lines)


def result_text(document: Mapping[str, Any]) -> str:
    """The tables and the threshold, for card and results page."""
    metrics, thresholds = document["metrics"], document["thresholds"]
    count = metrics["encoders"][OURS]["P@1"]["count"]
    return f"""{textwrap.fill(metrics["protocol"], 120, break_on_hyphens=False)}

{metrics["pictures"]:,} test pictures, {count:,} of them queries that count; per cent, with 95 % intervals:

{table(metrics["encoders"])}

{OURS} minus the other, query by query (points, 95 % paired intervals; above zero, {OURS} is better):

{table(metrics["differences"])}

Near-duplicates: the cosine from which on two pictures are taken for one, set so that at most 0.5 % of the pictures have
another one (of another group) so near, and the share of altered copies found with it. `lookalike duplicates` takes the
stricter one, {thresholds["duplicate"]}:

{threshold_table(thresholds["calibration"])}"""


def made(stages: Sequence[Mapping[str, Any]]) -> str:
    """How the weights came about, in words."""
    student, *further = stages
    teacher, batch = student["teacher"], student["sampler"]["classes"] * student["sampler"]["pictures"]
    names = " and ".join(f"`{name}`" for name in TEACHERS.values())
    text = [
        f"Taught from random weights to give, for the same view of each picture, the vectors of larger networks: "
        f"{names} (MobileNetV2 at 224 px with weights learned on ImageNet by their publishers, Apache-2.0; their "
        f"pooled features, joined, centred and reduced to {student['network']['dim']} principal directions). They look "
        f"at every picture whole and at {teacher['views'] - 1} random regions of it, undistorted; what the student "
        "sees is turned, shifted, blurred and otherwise distorted as well, so that it learns not to mind. No labels "
        f"were used. {student['steps']:,} steps of {batch} pictures at {student['data']['size'][0]} px, "
        f"{student['minutes']:.0f} minutes on {student['machine']}."
    ]
    text += [
        f"The same went on at {stage['data']['size'][0]} px: {stage['steps']:,} steps, {stage['minutes']:.0f} minutes."
        for stage in further
    ]
    return "\n\n".join(textwrap.fill(part, 120, break_on_hyphens=False) for part in text)


def card(document: Mapping[str, Any]) -> str:
    """The model card."""
    (height, width), sources = document["image"]["size"], document["data"]["sources"].values()
    data = [[one["title"], f"{one['pictures']:,}", one["licence"]] for one in sources]
    stages, image = document["recipe"]["stages"], document["image"]
    fit = "the whole picture squashed to them"
    if image["fit"] == "crop":
        fit = f"the middle {100 * image['crop_ratio']:.0f} % of the short side"
    return f"""# {OURS}

Pictures to {document["dim"]}-dimensional unit vectors whose cosine says how alike two pictures look. The encoder that
Lookalike uses when none is named.

- **Network**: {stages[-1]["network"]["name"]}; input {width} × {height} pixels, {fit}.
- **Weights**: `weights.safetensors`, kernels and matrices in float16, the rest in float32, under their training names.
  `image.onnx` holds no weights of its own: it refers into that file.
- **Licence**: {LICENCE}.

## Intended use

Search by picture, copies of pictures, and a start for teaching on your own pictures. It has seen everyday photographs
and product pictures on plain backgrounds.

## How it was made

{made(stages)}

Every setting is in `manifest.json`; the command is `{COMMAND}`.

{markdown(["data", "pictures", "licence note"], data)}

## How good it is

{result_text(document)}

The teacher is shown for orientation: it is larger and runs at 224 px. How well a distorted picture finds its original
is measured by `benchmarks/instances.py`.

## Limits

- Small training set, small input: fine print, faces, and small differences between similar products are beyond it.
- The held-out products come from the same shop, with the same backgrounds and models, as the training products; on
  other pictures expect less. Measure on yours.
- Labels of the test say what kind of product it is, not what people find alike.
- Which altered copies pass for near-duplicates, and which do not, is in the last table; its photographs were seen in
  training.
"""


def history(bundle: Path) -> list[dict[str, Any]]:
    """What validation said during the run of a bundle; nothing where the run is not here."""
    held = bundle.with_suffix(".run") / "metrics.jsonl"
    lines = [json.loads(line) for line in held.read_text(encoding="utf-8").splitlines()] if held.exists() else []
    return [line for line in lines if any(name.startswith("validation/") for name in line)]


def stage_bundle(place: Place) -> None:
    """The bundle, and the page of results with its numbers."""
    trained, measured = place.trained(), json.loads((place.work / "measured.json").read_text(encoding="utf-8"))
    candidate = trained[-1]
    if candidate.fingerprint != measured.pop("fingerprint"):
        raise SystemExit("measured.json is about another candidate: delete it, and measure this one")
    names = [name for name in candidate.manifest["files"] if name != "README.md"]
    files = {name: (candidate.path / name).read_bytes() for name in names}
    size = sum(map(len, files.values()))
    if size > MOST_BYTES:
        raise SystemExit(
            f"graph and weights have {size / 1e6:.2f} MB, and at most {MOST_BYTES / 1e6:.0f} MB may ship: lower "
            "network.dim, or choose a smaller network"
        )
    own = {key: value for key, value in candidate.manifest.items() if key not in ("schema", "files")}
    stages = [bundle.manifest["recipe"] for bundle in trained]
    minutes = round(sum(stage["minutes"] for stage in stages), 1)
    document = without_places({**own, "recipe": {"command": COMMAND, "minutes": minutes, "stages": stages}})
    document |= {"name": NAME, "version": VERSION, "licence": LICENCE, **measured}
    document["data"] |= {"sources": data_used(place)}
    machine, page = document["metrics"]["measured"], f"default-bundle-{VERSION}"
    kept = {key: document[key] for key in ("name", "version", "dim", "recipe", "data", "metrics", "thresholds")}
    kept["training"] = {bundle.path.stem: history(bundle.path) for bundle in trained}
    numbers = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    text = f"""# {OURS}: results

`{COMMAND}`, {machine["date"]}, {machine["machine"]}; {minutes:.0f} minutes of training.
Versions: {", ".join(f"{name} {version}" for name, version in machine["versions"].items())}.
All numbers: [{page}.json]({page}.json).

{result_text(document)}
"""
    files["README.md"] = card(document).encode()
    written = b"\n".join([*files.values(), json.dumps(document).encode(), numbers.encode(), text.encode()])
    for folder in (place.data, place.weights, place.work, HOME):
        if str(folder).encode() in written:
            raise SystemExit(f"the bundle or its results would tell of {folder} on this machine: nothing was written")
    bundle = write_bundle(place.out, document, files)
    write(place.results / f"{page}.json", numbers)
    write(place.results / f"{page}.md", text)
    print(f"  {bundle.name}, fingerprint {bundle.fingerprint}, {size / 1e6:.2f} MB without its card")


STAGES: dict[str, Callable[[Place], None]] = {
    "catalogue": stage_catalogue,
    "teachers": stage_teachers,
    "train": stage_train,
    "measure": stage_measure,
    "bundle": stage_bundle,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the stages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the zips of pictures")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the teachers' safetensors files")
    parser.add_argument("--work", type=Path, required=True, help="what the stages leave")
    parser.add_argument("--out", type=Path, default=default_path(), help="the bundle")
    parser.add_argument("--results", type=Path, default=HOME / "docs" / "results", help="where the numbers go")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of both trainings")
    parser.add_argument("--stage", default="all", choices=["all", *STAGES])
    options = parser.parse_args(arguments)
    folders = (options.data, options.weights, options.work, options.out, options.results)
    place = Place(*(folder.resolve() for folder in folders), options.set)
    for name, stage in STAGES.items():
        if options.stage in (name, "all"):
            print(f"{name} …", flush=True)
            stage(place)


if __name__ == "__main__":
    main()
