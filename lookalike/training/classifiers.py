"""The classifier table: linear machines and networks, each taught to tell the same categories apart, side by side.

A row is a model: support vector machines on pixels and on the embeddings of the encoder that ships, and networks by
recipe, from random weights or going on from others. All see the same pictures: the largest categories of a catalogue,
70 % to teach, 15 % to choose by, 15 % to test, products and near-duplicates on one side. Settings are chosen on the
validation part alone (the best step of a network, the cost of a support vector machine); the test part is asked once.

::

    folder/
      classifiers.json    the table, and all that is known of each row
      classifiers.md      the table for people, with the plots of `lookalike.training.figures`
      rows/NAME.json      a row, written when it is done, and not run again; NAME.pt the weights of its network
      pixels/             the decoded pictures
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lookalike
from lookalike.baselines import LinearSVM
from lookalike.catalogue import read_table, rows
from lookalike.encoder import Encoder
from lookalike.errors import CatalogueError, CheckpointError, ConfigError, TrainingError
from lookalike.images import Pixels, Preprocessing, shown
from lookalike.labels import SIDES, labelled
from lookalike.metrics import mean_interval
from lookalike.splits import duplicates, leaks, split, summary
from lookalike.training.checkpoints import save_checkpoint
from lookalike.training.closed_set import Pictures, Taught, teach, unfit
from lookalike.training.config import TrainConfig, read_config
from lookalike.training.datasets import PixelCache
from lookalike.training.export import surroundings, without_places
from lookalike.training.figures import in_words, plots
from lookalike.training.prepare import fingerprint
from lookalike.verification import report

Rows = npt.NDArray[np.int64]
Say = Callable[[str], None]

SVMS = ("svm-pixels", "svm-embeddings")
NETWORKS = (
    "alexnet",
    "vgg16",
    "vgg16_bn",
    "resnet50",
    "shufflenet_v1",
    "shufflenet",
    "shufflenet-transfer",
    "mobilenet-transfer",
)
# What is run unless models are named: everything that needs no download.
DEFAULT = (*SVMS, *NETWORKS[:-1])
# Share of the groups of each category in the validation part, and in the test part.
HELD_OUT = 0.15
# Costs of errors that a support vector machine tries on validation.
COSTS = (1.0, 10.0, 100.0)
# Pictures are compared for near-duplicates at this size, and at half of it are what "svm-pixels" sees.
SMALL = 64
# Training accuracy further than this above the upper end of the test accuracy's interval is called over-fitting.
FAR_ABOVE = 0.1

__all__ = ["COSTS", "DEFAULT", "FAR_ABOVE", "NETWORKS", "SVMS", "ClosedSet", "classifiers", "closed_set", "recipes"]


@dataclass(frozen=True)
class ClosedSet:
    """Pictures of some categories in three parts, each category in every part.

    Attributes:
        paths: of the pictures.
        labels: (n,) the category of each, as positions in `categories`.
        categories: their names, the largest first.
        parts: "train", "validation" and "test" → positions in `paths`.
        small: (n, 64, 64, 3) uint8, the pictures, squashed.
        fingerprint: SHA-256 over names, sizes and labels.
        notes: what was left out or assumed.
    """

    paths: Sequence[str]
    labels: Rows
    categories: Sequence[str]
    parts: Mapping[str, Rows]
    small: Pixels
    fingerprint: str
    notes: Sequence[str]

    def distribution(self) -> dict[str, dict[str, int]]:
        """Pictures of each category, part by part."""
        counts = {side: np.bincount(self.labels[part], minlength=len(self.categories)) for side, part in self.items()}
        return {side: dict(zip(self.categories, map(int, count), strict=True)) for side, count in counts.items()}

    def items(self) -> list[tuple[str, Rows]]:
        """The parts, in order."""
        return [(side, self.parts[side]) for side in SIDES]


def recipes() -> dict[str, Path]:
    """The networks that the program brings: name → configuration. The files are those of ``configs/catalogue-*``."""
    package = Path(lookalike.__file__).parent
    inside = package / "recipes"  # where a wheel has them
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {name: folder / f"catalogue-{name}.toml" for name in NETWORKS}


def closed_set(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    labels: str = "folders",
    top: int = 20,
    group: str | None = None,
    seed: int = 0,
    say: Say = print,
) -> ClosedSet:
    """Read a catalogue's largest categories, and part their pictures.

    Parts are drawn within each category, in whole groups: what shares a value in the column `group`, and what are
    near-duplicates, hangs together. Where the catalogue has a column ``split``, its parts are taken, and what lies in
    two of them is left out.

    Args:
        source: a folder with a folder per category, or a CSV file.
        folder: where decoded pictures are kept.
        labels: "folders", or the column of the category.
        top: how many categories, the largest.
        group: the column of what belongs together (a product's name), if `source` is a CSV file.
        seed: of the parting.
        say: gets a sentence about what is decoded.

    Raises:
        CatalogueError: nothing to read, or no such column.
        ConfigError: fewer than two categories are asked for, or one has too few groups to be in every part.
        TrainingError: no picture can be read.
    """
    if top < 2:
        raise ConfigError([f"top must be at least 2 categories, got {top}"], "classifiers")
    found = labelled(source, labels)
    sizes = Counter(example.label for example in found.examples)
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:top]
    found = found.keep([row for row, example in enumerate(found.examples) if example.label in set(names)])
    paths = [example.path for example in found.examples]
    cache = PixelCache.build(paths, Preprocessing((SMALL, SMALL)), folder=folder, say=say)
    found = found.keep(cache.readable)
    notes = [note for note in found.notes if "of one picture" not in note]  # of classes that are in no table
    notes += [f"left out: {error}" for error in cache.errors.values()]
    paths = [example.path for example in found.examples]
    place = {name: number for number, name in enumerate(names)}
    numbers = np.array([place[example.label] for example in found.examples], dtype=np.int64)
    if any(example.split for example in found.examples):
        sides, moved = leaks(
            found.examples, split(found.examples, by="picture"), cache.pixels, rows=cache.readable, by="picture"
        )
        notes += summary(moved)
    else:
        units = _joined(_groups(source, group, paths), duplicates(cache.pixels, cache.readable))
        sides = _parted(numbers, units, np.random.default_rng(seed))
    parts = {side: np.flatnonzero(sides == side) for side in SIDES}
    for side, part in parts.items():
        if absent := [name for number, name in enumerate(names) if number not in set(numbers[part].tolist())]:
            raise ConfigError(
                [f"no picture of {', '.join(absent[:5])} in the {side} part: too few products; lower top to leave out "
                 "small categories"], "classifiers",
            )  # fmt: skip
    pixels = cache.pixels if len(cache.readable) == len(cache) else cache.pixels[cache.readable]
    return ClosedSet(paths, numbers, names, parts, pixels, fingerprint(source, found.examples), notes)


def _groups(source: str | os.PathLike[str], group: str | None, paths: Sequence[str]) -> Rows:
    """A number for each picture, equal where the column says the same; an empty cell is a group of its own."""
    own = np.arange(len(paths))
    if group is None:
        return own
    if Path(source).is_dir():
        raise CatalogueError(f"group {group} is a column, and {shown(source)} is no CSV file: leave it out")
    name = read_table(source).header[read_table(source).column(group)]
    known = {row.path: row.payload.get(name) for row in rows([source])}
    first: dict[Any, int] = {}
    return np.array([own[i] if (v := known[path]) is None else first.setdefault(v, i) for i, path in enumerate(paths)])


def _joined(*groupings: Rows) -> Rows:
    """(n,) one number for what hangs together by any of the groupings, through however many others."""
    found = np.arange(len(groupings[0]))
    while True:
        before = found
        for grouping in groupings:
            _, place = np.unique(grouping, return_inverse=True)
            least = np.full(place.max() + 1, len(found))
            np.minimum.at(least, place, found)
            found = least[place]
        if (found == before).all():
            return found


def _parted(labels: Rows, units: Rows, dice: np.random.Generator) -> npt.NDArray[np.str_]:
    """(n,) the part of each picture: of each category, shares of its units. A unit counts for its first's category."""
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    sides = np.full(len(first), "train", dtype="<U10")
    for category in range(int(labels.max()) + 1):
        own = dice.permutation(np.flatnonzero(labels[first] == category))
        held = max(1, round(HELD_OUT * len(own)))
        sides[own[:held]], sides[own[held : 2 * held]] = "test", "validation"
    return sides[unit]


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def classifiers(
    source: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    labels: str = "folders",
    top: int = 20,
    group: str | None = None,
    models: Sequence[str] | None = None,
    configs: Sequence[str | os.PathLike[str]] = (),
    overrides: Sequence[str] = (),
    seed: int = 0,
    say: Say = print,
) -> dict[str, Any]:
    """Fill the table, row by row; rows that are done in `to` are taken as they are.

    Args:
        source: a folder with a folder per category, or a CSV file.
        to: the folder of the table.
        labels: "folders", or the column of the category.
        top: how many categories, the largest.
        group: the column of what belongs together, if `source` is a CSV file.
        models: of `SVMS` and `NETWORKS`; by default `DEFAULT`, or none where `configs` are given.
        configs: further networks, as configurations; each is a row under its name.
        overrides: ``table.key=value`` for all networks, or ``model.table.key=value`` for one.
        seed: of the parting. (That of a training is in its configuration.)
        say: gets each line meant for people.

    Returns:
        The document of ``classifiers.json``: ``kind``, ``title``, ``made``, ``fingerprint``, ``minutes``,
        ``categories``, ``distribution``, ``settings``, ``notes`` and ``rows``.

    Raises:
        ConfigError: an unknown model, a configuration that is not one of a classifier, or categories that are too
            small.
        CatalogueError, TrainingError: the pictures cannot be read.
        CheckpointError: the folder holds a table of other pictures.
        MissingExtra: a support vector machine without scikit-learn.
    """
    chosen = tuple(models) if models is not None else () if configs else DEFAULT
    networks = _networks(source, chosen, configs, overrides)
    place = Path(to)
    try:
        (place / "rows").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make folder {shown(place)}: {error.strerror}") from error
    data = closed_set(source, place / "pixels", labels=labels, top=top, group=group, seed=seed, say=say)
    for note in data.notes:
        say(f"note: {note}")
    document: dict[str, Any] = {
        "kind": "classifiers",
        "title": f"Classifiers of the {len(data.categories)} largest categories of {Path(source).name}",
        "made": _made(source, labels, top, group, [*chosen, *map(Path, configs)], overrides),
        "fingerprint": data.fingerprint,
        "minutes": 0.0,
        "categories": list(data.categories),
        "distribution": data.distribution(),
        "settings": {
            "labels": labels,
            "top": top,
            "group": group,
            "split": "70 / 15 / 15 within each category, groups and near-duplicates on one side",
            "seed": seed,
            "overfitting": f"training accuracy more than {FAR_ABOVE} above the upper end of the test interval",
        },
        "notes": list(data.notes),
        "rows": [],
    }
    _same_table(place, document)
    for name in [*(name for name in chosen if name in SVMS), *networks]:
        row = _row_of(name, networks.get(name), data, place, say)
        document["rows"].append(row)
        document["minutes"] = sum(done["minutes"] for done in document["rows"])
        _write(place / "classifiers.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        accuracy = row["test"]
        say(f"{name}: test accuracy {accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]")
    drawn = plots(document, place, say)
    _write(place / "classifiers.md", in_words(document, drawn))
    return document


def _networks(
    source: str | os.PathLike[str],
    models: Sequence[str],
    configs: Sequence[str | os.PathLike[str]],
    overrides: Sequence[str],
) -> dict[str, TrainConfig]:
    """The configuration of each network; every problem at once."""
    known = (*SVMS, *NETWORKS)
    problems = [f"unknown model {name!r}: there are {', '.join(known)}" for name in models if name not in known]
    files = {name: recipes()[name] for name in models if name in NETWORKS}
    files |= {read_config(path, [_root(source)], to_run=False).name: Path(path) for path in configs}
    if len(files) < len(configs) + sum(name in NETWORKS for name in models):
        problems.append("two configurations have one name: change the key `name` of one")
    found = {}
    for name, path in files.items() if not problems else ():
        others = tuple(f"{other}." for other in {*known, *files} - {name})
        mine = [override.removeprefix(f"{name}.") for override in overrides if not override.startswith(others)]
        config = read_config(path, [_root(source), *mine])
        problems += [f"{name}: {problem}" for problem in unfit(config)]
        found[name] = config
    if problems:
        raise ConfigError(problems, "classifiers")
    return found


def _root(source: str | os.PathLike[str]) -> str:
    return f"data.root={json.dumps(os.fspath(source))}"


def _same_table(place: Path, document: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the folder holds a table of other pictures or another parting."""
    held = place / "classifiers.json"
    if not held.exists():
        return
    try:
        before = json.loads(held.read_text(encoding="utf-8"))
        same = all(before[key] == document[key] for key in ("fingerprint", "distribution", "settings"))
    except (ValueError, LookupError, TypeError):
        same = False
    if not same:
        raise CheckpointError(
            f"{place} holds a table of other pictures, categories or parts: put them back to go on, or choose another "
            "folder"
        )


def _row_of(name: str, config: TrainConfig | None, data: ClosedSet, place: Path, say: Say) -> dict[str, Any]:
    """A row of the table: the one that is there, if it is of these settings, or a new one."""
    if config is None:
        settings: dict[str, Any] = {"costs": list(COSTS), "sees": _SEEN[name]}
    else:
        settings = without_places(config)
    held = place / "rows" / f"{name}.json"
    if held.exists():
        row: dict[str, Any] = json.loads(held.read_text(encoding="utf-8"))
        if row["settings"] == settings:
            say(f"{name}: done before, and not repeated")
            return row
        say(f"{name}: there is a row of other settings; it is replaced")
    facts = _svm(name, data, say) if config is None else _network(config, data, place, say)
    row = {"name": name, **facts, "settings": settings}
    _write(held, json.dumps(row, indent=1, ensure_ascii=False) + "\n")
    return row


_SEEN = {
    "svm-pixels": f"colours of {SMALL // 2} × {SMALL // 2} points",
    "svm-embeddings": "embeddings of the encoder that ships",
}


def _svm(name: str, data: ClosedSet, say: Say) -> dict[str, Any]:
    """A support vector machine, its cost chosen on validation."""
    began = time.monotonic()
    if name == "svm-pixels":
        half = data.small.reshape(len(data.small), SMALL // 2, 2, SMALL // 2, 2, 3)
        vectors = half.mean((2, 4), dtype=np.float32).reshape(len(half), -1)
    else:
        vectors = Encoder.default().images(data.paths, strict=True)
    train, validation = data.parts["train"], data.parts["validation"]
    tried: list[tuple[float, LinearSVM]] = []
    for cost in COSTS:
        machine = LinearSVM(cost).fit(vectors[train], data.labels[train])
        score = float((machine.predict(vectors[validation]) == data.labels[validation]).mean())
        say(f"{name}, cost {cost:g}: accuracy on validation {score:.3f}")
        tried.append((score, machine))
    best = max(tried, key=lambda pair: pair[0])[1]
    minutes = (time.monotonic() - began) / 60
    predicted = {side: best.predict(vectors[part]) for side, part in data.items()}
    parameters = best.coef_.size + best.intercept_.size
    return {**_figures("features", predicted, data, minutes, parameters), "cost": best.cost, "curve": []}


def _network(config: TrainConfig, data: ClosedSet, place: Path, say: Say) -> dict[str, Any]:
    """A network, taught and asked; its weights are kept."""
    channels, folder = config.data.channels, place / "pixels"
    cache = PixelCache.build(data.paths, config.preprocessing(), channels=channels, folder=folder, say=say)
    pictures = Pictures(
        cache, data.labels, {side: data.parts[side] for side in ("train", "validation")}, len(data.categories)
    )
    taught: Taught = teach(config, pictures, say)
    predicted = {side: taught.predict(config, cache, part) for side, part in data.items()}
    parameters = sum(parameter.numel() for parameter in taught.classifier.parameters())
    state = {"network": taught.classifier.network.state_dict(), "step": taught.kept_step}
    save_checkpoint(place / "rows" / f"{config.name}.pt", state)
    start = "scratch" if config.network.weights is None else "transfer"
    return {
        **_figures(start, predicted, data, taught.minutes, parameters),
        "size": list(config.preprocessing().size),
        "steps": taught.curve[-1].step,
        "kept_step": taught.kept_step,
        "precision": taught.precision,
        "device": taught.device,
        "curve": [asdict(point) for point in taught.curve],
    }


def _figures(
    start: str, predicted: Mapping[str, Rows], data: ClosedSet, minutes: float, parameters: int
) -> dict[str, Any]:
    """What every row has, from the category that each picture is taken for."""
    right = {side: predicted[side] == data.labels[part] for side, part in data.items()}
    names = np.array(data.categories)
    truth, said = data.labels[data.parts["test"]], predicted["test"]
    test = mean_interval(right["test"])
    found = report(names[truth], names[said])
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (truth, said), 1)
    training = float(right["train"].mean())
    return {
        "start": start,
        "training": training,
        "validation": float(right["validation"].mean()),
        "test": asdict(test),
        "macro_f1": found.macro()["f1"],
        "minutes": minutes,
        "parameters": int(parameters),
        "overfitting": training > test.high + FAR_ABOVE,
        "report": _as_scikit_learn(found, len(truth)),
        "confusion": confusion.tolist(),
    }


def _as_scikit_learn(found: Any, count: int) -> dict[str, Any]:
    """A report in the shape of ``classification_report(…, output_dict=True)``."""
    columns = (found.precision, found.recall, found.f1, found.support)
    names = ("precision", "recall", "f1-score", "support")
    document: dict[str, Any] = {
        str(category): {name: float(value) for name, value in zip(names, values, strict=True)}
        for category, *values in zip(found.classes, *columns, strict=True)
    }
    document["accuracy"] = found.accuracy
    for title, means in (("macro avg", found.macro()), ("weighted avg", found.weighted())):
        document[title] = dict(zip(names, (means["precision"], means["recall"], means["f1"], count), strict=True))
    return document


def _made(
    source: str | os.PathLike[str],
    labels: str,
    top: int,
    group: str | None,
    models: Sequence[Any],
    overrides: Sequence[str],
) -> dict[str, Any]:
    """The command, with names alone, and where it ran."""
    import sklearn

    words = ["lookalike classifiers", Path(source).name, f"--labels {labels} --top {top}"]
    words += [f"--group {group}"] if group else []
    words += [f"--models {','.join(name for name in models if isinstance(name, str))}"]
    words += [f"--config {path.name}" for path in models if isinstance(path, Path)]
    words += [f"--set {name}={Path(value).name}" for name, _, value in (o.partition("=") for o in overrides)]
    around = surroundings()
    return {
        "command": " ".join(words),
        **around,
        "versions": around["versions"] | {"scikit-learn": sklearn.__version__},
    }


def _write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    scratch = path.with_name(f"{path.name}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise TrainingError(f"cannot write {shown(path)}: {error.strerror}; make room and go on") from error
