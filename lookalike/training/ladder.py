"""The ladder: one set of pictures, one split, one question; from chance to what was taught, a row each.

A number of a trained encoder says little by itself. Beside those of chance, of pixels, of colours, of an encoder that
has learned nothing here, and of the other ways to teach it, with the minutes each has taken, it says what the pictures
needed. All rows are asked by the same held-out pictures, of classes that no row has learned from where there are enough
of them; rows that learn see nothing else of the data than its other parts.

::

    folder/
      ladder.json     the result: settings, counts, a row each with its measures, intervals and minutes
      ladder.md       the same for people
      settings.json   what was asked of which pictures; pictures.csv, on which side each is
      learn.csv       what trained rows get: the training and validation parts
      rows/           name.json and name.npz of each finished row, which is not run again
      runs/, bundles/ run folder and encoder of each trained row
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.baselines import BagOfVisualWords, ColourHistogram, Pixels
from lookalike.bundle import MANIFEST, Bundle, default_path
from lookalike.encoder import Encoder
from lookalike.errors import CheckpointError, ConfigError, LookalikeError, MissingExtra, QueryError, ShapeError
from lookalike.evaluate import fingerprint_of, groups_of, title
from lookalike.images import Preprocessing, shown
from lookalike.labels import SIDES, labelled
from lookalike.metrics import Values, mean_interval, one_shot, paired_interval
from lookalike.ranking import retrieval
from lookalike.splits import THUMBNAIL, By, leaks, split, summary
from lookalike.training.auto import choose
from lookalike.training.config import TrainConfig
from lookalike.training.datasets import PixelCache
from lookalike.training.export import export_network, export_run, surroundings
from lookalike.training.loop import Report, train
from lookalike.vectors import Vectors, unit

# Row → what it is, in a sentence.
ROWS = {
    "chance": "Any order is as likely as any other.",
    "pixels": "The picture squashed to 16 × 16 pixels.",
    "colours": "A histogram of hue, saturation and brightness.",
    "words": "A bag of visual words (SIFT), learned from the training part.",
    "svm": "A linear SVM on pixels, learned from training classes: the vector is what it decides for each of them.",
    "base": "A network as it is, without training here: its pooled features.",
    "default": "The encoder that ships, without training here.",
    "siamese": "Siamese network: pairs, contrastive loss (Hadsell et al. 2006).",
    "triplet-random": "Triplets with random negatives.",
    "triplet-semi-hard": "Triplets with semi-hard negatives (FaceNet, Schroff et al. 2015).",
    "triplet-hard": "Triplets of the hardest positive and negative of the batch (Hermans et al. 2017).",
    "label-free": "Without labels: a picture is alike with itself, altered (NT-Xent, Chen et al. 2020).",
    "supervised-contrastive": "Supervised contrastive loss (Khosla et al. 2020).",
}
# What each trained row says otherwise than `choose`, which takes the supervised contrastive loss.
_TRIPLETS = 'loss={kind = "triplet", margin = 0.2, distance = "squared"}'
TRAINED: dict[str, tuple[str, ...]] = {
    "siamese": ('sampler={kind = "pairs", pairs = 64}', 'loss={kind = "pair_contrastive", margin = 0.8}'),
    "triplet-random": (_TRIPLETS, 'miner={kind = "random"}'),
    "triplet-semi-hard": (_TRIPLETS, 'miner={kind = "semi_hard"}'),
    "triplet-hard": (_TRIPLETS, 'miner={kind = "hard"}'),
    "label-free": (),
    "supervised-contrastive": (),
}
# Without labels, where the network begins with random weights.
BLIND = ('data.labels="none"', 'loss={kind = "nt_xent", temperature = 0.1}')
# The loss is what is compared, so the last stage, which would help each of them, is left out.
PLAIN = "retrieval={flip = false, whiten = false, expansion = false, k_reciprocal = false}"
MINUTES, QUICK = 10.0, 1.0
# Training pictures of which visual words are learned; classes and pictures of which the SVM is.
WORDS_FROM, SVM_CLASSES, SVM_PICTURES = 2_000, 100, 4_000
# One-shot episodes within a super-class, where one has so many classes.
WAY, EPISODES = 20, 1_000
SEED = 0
MEASURES = ("r_at_1", "map_at_r", "p_at_10", "one_shot")

__all__ = ["MINUTES", "QUICK", "ROWS", "TRAINED", "compare", "in_words", "named"]


def compare(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    labels: str = "folders",
    group: str | None = None,
    category: str | None = None,
    rows: Sequence[str] | None = None,
    minutes: float = MINUTES,
    base: str | None = None,
    weights: str | None = None,
    overrides: Sequence[str] = (),
    notes: Sequence[str] = (),
    command: str = "lookalike compare",
    say: Callable[[str], None] = print,
    watch: Callable[[Report], None] | None = None,
) -> dict[str, Any]:
    """Fill the rows of a ladder, or go on with the one in `folder`.

    Args:
        source: a folder of pictures, or a CSV file.
        folder: where the result goes, and whatever is made on the way. A row that is finished there is not run again.
        labels: who is alike, see `lookalike.labels.labelled`.
        group: the column of a CSV file that says which pictures show one thing; a query finds none of its own group.
        category: the column of the super-class, if `source` is a CSV file.
        rows: names of `ROWS`; None is all, without "base" where no base is given. Rows finished before stay in the
            table.
        minutes: of each trained row.
        base: for the row of that name: a bundle, or a network as `lookalike.training.networks.build` knows it.
        weights: of that network: a file, a URL or "hub".
        overrides: for all trained rows, as `lookalike.training.config.read_config`.
        notes: sentences that the result shall hold.
        command: for the record.
        say: gets each line meant for people.
        watch: gets the reports of trained rows.

    Returns:
        The content of ladder.json. A row that could not be filled says why in "failed", and is tried again next time.

    Raises:
        QueryError: no such row, or "base" without one.
        CatalogueError, ConfigError: the pictures cannot be read or divided.
        CheckpointError: the folder holds another ladder.
        KeyboardInterrupt: after Ctrl-C; finished rows, and a trained one up to its last checkpoint, are kept.
    """
    names, place = _names(rows, base), Path(folder)
    _claim(place)
    settings = {"source": named(source), "labels": labels, "group": group, "category": category}
    questions = _Questions.of(source, place, settings, overrides, say)
    ladder = _Ladder(place, questions, minutes, base, weights, tuple(overrides), say, watch)
    document: dict[str, Any] = {}

    def write() -> None:
        document.update(_document(place, questions, minutes, overrides, notes, command))
        _write(place / "ladder.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        _write(place / "ladder.md", in_words(document))

    for name in names:
        if not ladder.has(name):
            ladder.fill(name)
            write()
    write()
    return document


def named(source: str | os.PathLike[str]) -> str:
    """What pictures are called: the folder; of a CSV file its name and that of the folder it lies in."""
    path = Path(source)
    return shown(Path(*path.parts[-2:] if path.suffix and path.parent.name else path.parts[-1:]))


def _names(rows: Sequence[str] | None, base: str | None) -> list[str]:
    asked = [name for name in ROWS if name != "base" or base is not None] if rows is None else list(rows)
    unknown = [name for name in asked if name not in ROWS]
    if unknown or not asked:
        raise QueryError(f"no row {', '.join(unknown) or 'named'}: choose from {', '.join(ROWS)}")
    if "base" in asked and base is None:
        raise QueryError("the row base needs a network: name one, or a bundle (--base timm:resnet18 --weights FILE)")
    return [name for name in ROWS if name in asked]


def _claim(place: Path) -> None:
    begun = {"rows", "runs", "bundles", "pictures.csv", "learn.csv"}  # what a run leaves that was stopped at once
    held = {path.name for path in place.iterdir()} if place.is_dir() else {""} if place.exists() else set()
    if "settings.json" not in held and held - begun:
        raise CheckpointError(f"{place} is neither empty nor a ladder: choose another folder")
    for part in ("rows", "runs", "bundles"):
        (place / part).mkdir(parents=True, exist_ok=True)


def _write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    scratch = path.with_name(f"{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it, and run again") from error


# ── who asks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Questions:
    """The held-out pictures, and what there is to learn from.

    Attributes:
        paths: of the test part.
        labels: (n,) class of each.
        groups: (n,) or None.
        categories: (n,) super-class of each, where one-shot episodes can be drawn within them; or None.
        train: paths of the training part, with the class of each.
        learn: a CSV file of the training and validation parts.
        nested: whether it has super-classes.
        facts: what settings.json holds.
    """

    paths: Sequence[str]
    labels: npt.NDArray[Any]
    groups: npt.NDArray[Any] | None
    categories: npt.NDArray[Any] | None
    train: Sequence[tuple[str, str]]
    learn: Path
    nested: bool
    facts: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str],
        place: Path,
        settings: Mapping[str, Any],
        overrides: Sequence[str],
        say: Callable[[str], None],
    ) -> _Questions:
        """Divide the pictures, or read how they were divided. Raises CheckpointError where the ladder is another."""
        held = place / "settings.json"
        now = json.loads(json.dumps(_asked(source, settings, overrides)))
        if held.exists():
            facts = _json(held)
            changed = [name for name in now if facts.get(name) != now[name]]
            if changed:
                told = "; ".join(f"{name} was {facts.get(name)}, is {now[name]}" for name in changed)
                raise CheckpointError(f"{place} holds another ladder ({told}): choose another folder")
        else:
            facts = {**now, **_divided(source, place, now, say)}
            _write(held, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        for note in facts["notes"]:
            say(f"note: {note}")
        with (place / "pictures.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        test = [line for line in lines if line["split"] == "test"]
        labels, groups, categories = (
            np.array([line[name] for line in test]) for name in ("label", "group", "category")
        )
        return cls(
            [line["image"] for line in test],
            labels,
            groups if now["group"] else None,
            categories if _episodes_are_possible(labels, categories) else None,
            [(line["image"], line["label"]) for line in lines if line["split"] == "train"],
            place / "learn.csv",
            any(line["category"] for line in lines),
            facts,
        )

    @property
    def chance(self) -> dict[str, Values]:
        """What is expected of a ranking in which every order is equally likely, in closed form."""
        own = np.arange(len(self.labels)) if self.groups is None else _codes(self.groups)
        label = _codes(self.labels)
        both = _codes(label * (own.max() + 1) + own)
        gallery = len(own) - np.bincount(own)[own]
        relevant = np.bincount(label)[label] - np.bincount(both)[both]
        with np.errstate(divide="ignore", invalid="ignore"):
            first = np.where(relevant > 0, relevant / gallery, np.nan)
        found = {
            "r_at_1": first,
            "map_at_r": np.array([_expected(r, m) for r, m in zip(relevant, gallery, strict=True)]),
            "p_at_10": first * np.minimum(gallery, 10) / 10,
        }
        return found if self.categories is None else {**found, "one_shot": np.full(EPISODES, 1 / WAY)}

    def ask(self, vectors: Vectors) -> dict[str, Values]:
        """The measures of the rows of an encoder, a number per query or episode."""
        found = retrieval(vectors, self.labels, self.groups, ks=(1, 10))
        answers = {name: found[name] for name in ("r_at_1", "map_at_r", "p_at_10")}
        if self.categories is not None:
            episodes: dict[str, Any] = {"categories": self.categories, "way": WAY, "episodes": EPISODES, "seed": SEED}
            answers["one_shot"] = one_shot(vectors, self.labels, **episodes)
        return answers


def _codes(values: Any) -> npt.NDArray[np.int64]:
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)


def _expected(relevant: int, gallery: int) -> float:
    """MAP@R of a random order: at each rank, how likely a hit is, times the precision that is then expected there."""
    if not relevant:
        return float("nan")
    before = np.arange(relevant)  # ranks before this one
    rest = (relevant - 1) / (gallery - 1) if gallery > 1 else 0.0
    return float((relevant / gallery * (1 + before * rest) / (before + 1)).sum() / relevant)


def _episodes_are_possible(labels: npt.NDArray[Any], categories: npt.NDArray[Any]) -> bool:
    if len(set(categories.tolist())) < 2:
        return False
    try:
        one_shot(np.ones((len(labels), 1), dtype=np.float32), labels, categories=categories, way=WAY, episodes=1)
    except ShapeError:
        return False
    return True


def _asked(source: str | os.PathLike[str], settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What all rows share: the pictures, how they are labelled and divided, and the encoder that ships."""
    found = labelled(source, settings["labels"], category=settings["category"])
    data = choose(source, settings["labels"], category=settings["category"], overrides=overrides).data
    if not data.test or not data.validation:
        raise ConfigError(["a ladder needs held-out pictures: data.validation and data.test must be above 0"])
    given = any(example.split for example in found.examples)
    return {
        **settings,
        "fingerprint": fingerprint_of(os.fspath(source), [example.path for example in found.examples]),
        "split": "given" if given else data.split,
        "default": Bundle.load(default_path()).fingerprint,  # all rows are compared with it, and some begin with it
        "shares": {"validation": data.validation, "test": data.test},
        "seed": SEED,
    }


def _divided(
    source: str | os.PathLike[str], place: Path, asked: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Write pictures.csv and learn.csv; what there is to say about it."""
    found = labelled(source, asked["labels"], category=asked["category"])
    notes = list(found.notes)
    by: By = "class" if asked["split"] == "given" else asked["split"]
    small = Preprocessing(size=(2 * THUMBNAIL, 2 * THUMBNAIL), fit="squash")
    cache = PixelCache.build([example.path for example in found.examples], small)
    kept = found.keep(cache.readable).examples
    if cache.errors:
        first = next(iter(cache.errors.values()))
        notes.append(f"{len(cache.errors):,} pictures cannot be read, and are left out; the first: {first}")
    sides = split(kept, **asked["shares"], by=by, seed=SEED)
    sides, moved = leaks(kept, sides, cache.pixels, rows=cache.readable, by=by)
    notes += summary(moved)
    if by == "picture":
        notes.append("too few classes to hold whole ones back: the test part is of classes that were trained on")
    paths = [example.path for example in kept]
    groups = [""] * len(kept) if asked["group"] is None else groups_of(os.fspath(source), asked["group"], paths)
    head = ["image", "label", "category", "group", "split"]
    lines = [
        [example.path, example.label, example.category, str(own), str(side)]
        for example, own, side in zip(kept, groups, sides, strict=True)
        if side
    ]
    for name, some in (("pictures.csv", SIDES), ("learn.csv", SIDES[:2])):
        try:
            with (place / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([head, *(line for line in lines if line[4] in some)])
        except UnicodeEncodeError as error:
            raise ConfigError([f"a picture's path is not Unicode, and no CSV file can name it: {error}"]) from error
    parts = {side: [line for line in lines if line[4] == side] for side in SIDES}
    say("pictures: " + ", ".join(f"{side} {len(some):,}" for side, some in parts.items()))
    return {
        "pictures": {side: len(some) for side, some in parts.items()},
        "classes": {side: len({line[1] for line in some}) for side, some in parts.items()},
        "notes": notes,
    }


# ── the rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Ladder:
    """Fills rows, each once."""

    place: Path
    questions: _Questions
    minutes: float
    base: str | None
    weights: str | None
    overrides: tuple[str, ...]
    say: Callable[[str], None]
    watch: Callable[[Report], None] | None

    def has(self, name: str) -> bool:
        """Whether a row is finished. Raises CheckpointError where it was made with other settings than those given."""
        held = self.place / "rows" / f"{name}.json"
        if not held.exists():
            return False
        row, given = _json(held), self._given(name)
        if row["failed"] is None and row["given"] != given:
            was = "; ".join(f"{key} was {row['given'].get(key)}, is {given[key]}" for key in given)
            raise CheckpointError(
                f"the row {name} in {self.place} is finished, and was made otherwise ({was}): give what was given, "
                f"delete {held}{f' and runs/{name}' if name in TRAINED else ''}, or choose another folder"
            )
        return row["failed"] is None

    def fill(self, name: str) -> None:
        """Make the row's encoder, ask it, and keep the answers; or keep the reason why not."""
        self.say(f"row {name}: {ROWS[name]}")
        began, minutes, steps, failed, told = time.monotonic(), 0.0, None, None, ""
        answers: dict[str, Values] = {}
        try:
            if name == "chance":
                answers = self.questions.chance
            elif name in TRAINED:
                config = self._config(name)
                told = _start(config)
                vectors, steps, minutes, began = self._trained(name, config)
                answers = self.questions.ask(vectors)
            else:
                vectors, told = self._untrained(name)
                answers = self.questions.ask(vectors)
        except Exception as error:  # hours of other rows must not be lost to one of them
            named = str(error) if isinstance(error, LookalikeError) else f"{type(error).__name__}: {error}"
            failed = named.replace(f"{self.place}{os.sep}", "")
            self.say(f"row {name} failed: {failed}")
        minutes += (time.monotonic() - began) / 60
        row = {
            "name": name,
            "what": f"{ROWS[name]} {told}".strip(),
            "measures": {measure: asdict(mean_interval(values)) for measure, values in answers.items()},
            "minutes": round(minutes, 3),
            "steps": steps,
            "failed": failed,
            "given": self._given(name),
        }
        if answers:
            values: dict[str, Any] = dict(answers)
            np.savez(self.place / "rows" / f"{name}.npz", **values)
            scores = ", ".join(f"{_title(measure)} {np.nanmean(found):.4f}" for measure, found in answers.items())
            self.say(f"row {name}: {scores} ({minutes:.1f} min)")
        _write(self.place / "rows" / f"{name}.json", json.dumps(row, indent=1, ensure_ascii=False) + "\n")

    def _given(self, name: str) -> dict[str, Any]:
        """What a row depends on besides the pictures."""
        if name in TRAINED:
            return {"minutes": self.minutes, "overrides": list(self.overrides)}
        if name == "base":
            return {key: value and Path(value).name for key, value in (("base", self.base), ("weights", self.weights))}
        return {}

    def _untrained(self, name: str) -> tuple[Vectors, str]:
        """Vectors of the test pictures, and what there is to say about them."""
        paths, train = self.questions.paths, self.questions.train
        if name == "pixels":
            return Pixels().images(paths), ""
        if name == "colours":
            return ColourHistogram().images(paths), ""
        if name == "words":
            chosen = np.sort(np.random.default_rng(SEED).permutation(len(train))[:WORDS_FROM])
            words = BagOfVisualWords(seed=SEED).fit([train[row][0] for row in chosen])
            return words.images(paths), f"From {len(chosen):,} of {len(train):,} pictures."
        if name == "svm":
            return _svm(train, paths)
        if name == "default":
            encoder = Encoder.default()
        elif self.base is not None and (self.base.endswith(".zip") or (Path(self.base) / MANIFEST).is_file()):
            encoder = Encoder.load(self.base)
        else:
            encoder = Encoder(export_network(str(self.base), self.place / "bundles" / "base", weights=self.weights))
        return encoder.images(paths, strict=True), f"{encoder.name}, {encoder.dim} numbers."

    def _trained(self, name: str, config: TrainConfig) -> tuple[Vectors, int, float, float]:
        """Vectors of the test pictures, steps and minutes of training, and when it ended."""
        run, pixels = self.place / "runs" / name, self.place / "pixels"
        # Decoded before the clock of the run is started: the first trained row is not to pay for all of them.
        paths = [example.path for example in labelled(self.questions.learn, "none").examples]
        PixelCache.build(paths, config.preprocessing(), channels=config.data.channels, folder=pixels)
        outcome = train(config, run, say=lambda line: self.say(f"  {line}"), watch=self.watch)
        ended = time.monotonic()
        encoder = Encoder(export_run(run, self.place / "bundles" / name))
        vectors = encoder.images(self.questions.paths, strict=True)
        prepared = float(_json(run / "report.json")["prepared_minutes"])
        return vectors, outcome.steps, outcome.minutes + prepared, ended

    def _config(self, name: str) -> TrainConfig:
        changes = [
            f"name={name}",
            f"seed={SEED}",
            f"loop.minutes={float(self.minutes)}",
            f"data.cache={json.dumps(str(self.place / 'pixels'), ensure_ascii=False)}",
            "data.check_leaks=false",  # they have been looked for
            PLAIN,
            *TRAINED[name],
            *self.overrides,
        ]
        learn = self.questions.learn
        taught = choose(learn, "label", category="category" if self.questions.nested else None, overrides=changes)
        if name != "label-free":
            return taught
        if taught.network.weights is not None:
            return choose(learn, "none", overrides=changes)
        # Drawings: the network of the other rows, as new, and nothing that photographs have taught.
        distinct = min(64, max(2, len(self.questions.train) // 4))
        sampler = f'sampler={{kind = "every", classes = {distinct}, pictures = 2}}'
        return choose(learn, "label", overrides=[*changes, *BLIND, sampler, *self.overrides])


def _start(config: TrainConfig) -> str:
    """What a trained row started from, and at which size it saw the pictures."""
    weights, (height, width) = config.network.weights, config.preprocessing().size
    given = {None: "random weights", "default": "the encoder that ships"}
    start = given.get(weights) or Path(str(weights)).name
    return f"{config.network.name} from {start}, {width} × {height} pixels, {config.network.dim} numbers."


def _svm(train: Sequence[tuple[str, str]], paths: Sequence[str]) -> tuple[Vectors, str]:
    """Decision values of a linear SVM, one against the rest, as a vector.

    Classes that it has never seen are told by how much they look like those it has ("classemes", Torresani, Szummer and
    Fitzgibbon 2010).
    """
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise MissingExtra("an SVM", "scikit-learn", "baselines") from error
    labels = np.array([label for _, label in train])
    names, sizes = np.unique(labels, return_counts=True)
    largest = names[np.argsort(-sizes, kind="stable")[:SVM_CLASSES]]
    rows = np.flatnonzero(np.isin(labels, largest))
    rows = np.sort(np.random.default_rng(SEED).permutation(rows)[:SVM_PICTURES])
    pixels = Pixels()
    machine = LinearSVC(random_state=SEED).fit(pixels.images([train[row][0] for row in rows.tolist()]), labels[rows])
    values = np.asarray(machine.decision_function(pixels.images(paths)), dtype=np.float32).reshape(len(paths), -1)
    return unit(values), f"From {len(rows):,} pictures of {len(machine.classes_):,} classes."


# ── the result ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _document(
    place: Path,
    questions: _Questions,
    minutes: float,
    overrides: Sequence[str],
    notes: Sequence[str],
    command: str,
) -> dict[str, Any]:
    facts = questions.facts
    rows = [_json(place / "rows" / f"{name}.json") for name in ROWS if (place / "rows" / f"{name}.json").exists()]
    answers = {row["name"]: _answers(place, row["name"]) for row in rows if row["failed"] is None}
    default = answers.get("default")
    for row in rows:
        ours = answers.get(row["name"])
        row["over_default"] = None
        if default is not None and ours is not None and row["name"] != "default":
            gaps = {name: paired_interval(ours[name], default[name]) for name in ours}
            row["over_default"] = {name: asdict(gap) for name, gap in gaps.items()}
        del row["given"]
    whole = {"class": "whole classes are held out", "category": "whole super-classes are held out",
             "picture": "pictures of all classes are held out", "given": "as the catalogue says"}  # fmt: skip
    closed = facts["split"] == "picture"
    settings = {
        **{name: facts[name] for name in ("source", "labels", "group", "category", "seed")},
        "split": whole[facts["split"]],
        "classes_seen_in_training": closed,
        "protocol": "Each picture of the test part asks all the others"
        + (f", without its own {facts['group']}" if facts["group"] else "")
        + "; those of its class are relevant. Cosine, no re-ranking, ties against the query."
        + (
            f" One-shot: {EPISODES:,} episodes of {WAY} classes within a super-class, one picture of each known."
            if questions.categories is not None
            else ""
        ),
        "metric": [name for name in MEASURES if name != "one_shot" or questions.categories is not None],
        "minutes": minutes,
        "overrides": list(overrides),
    }
    return {
        "kind": "ladder",
        "title": f"The ladder on {facts['source']}",
        "made": {"command": command, **surroundings()},
        "fingerprint": facts["fingerprint"],
        "minutes": round(sum(row["minutes"] for row in rows), 2),
        "settings": settings,
        "pictures": facts["pictures"],
        "classes": facts["classes"],
        "notes": [*notes, *facts["notes"]],
        "rows": rows,
    }


def _answers(place: Path, name: str) -> dict[str, Values]:
    with np.load(place / "rows" / f"{name}.npz", allow_pickle=False) as held:
        return {measure: held[measure] for measure in held.files}


def _title(measure: str) -> str:
    return "one-shot" if measure == "one_shot" else title(measure)


def in_words(document: Mapping[str, Any]) -> str:
    """The ladder as Markdown, readable as plain text: a line for each row, in per cent with 95 % intervals.

    Args:
        document: the content of ladder.json.
    """
    settings, made = document["settings"], document["made"]
    measures = settings["metric"]
    decides = "map_at_r"
    head = ["row", *map(_title, measures), f"{_title(decides)} over default", "minutes", "steps"]
    table = [head]
    for row in document["rows"]:
        gap = (row["over_default"] or {}).get(decides)
        cells = [_cell(row["measures"].get(name)) for name in measures]
        cells = ["failed" if row["failed"] else cells[0], *cells[1:]]
        steps = "" if row["steps"] is None else f"{row['steps']:,}"
        table.append([row["name"], *cells, _cell(gap, "+"), f"{row['minutes']:.1f}", steps])
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    lines = ["| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) + " |"
             for line in table]  # fmt: skip
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    counts = ", ".join(
        f"{side} {document['pictures'][side]:,} of {document['classes'][side]:,} classes" for side in SIDES
    )
    failed = [f"- {row['name']}: {row['failed']}" for row in document["rows"] if row["failed"]]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    parts = [
        f"# {document['title']}",
        f"`{made['command']}`, {made['date']}, {made['machine']}. {versions}.",
        f"Pictures: {counts}; {settings['split']}. {settings['protocol']} Per cent, with 95 % bootstrap intervals "
        f"over queries; differences to the default encoder are paired. Trained rows have at most "
        f"{settings['minutes']:g} min each{_ended(document)}, and differ in what the table says alone; minutes are "
        "those of the whole row.",
        "\n".join(lines),
        "\n".join(f"- **{row['name']}**: {row['what']}" for row in document["rows"]),
        *(["Failed:\n\n" + "\n".join(failed)] if failed else []),
        *(["Notes:\n\n" + "\n".join(f"- {note}" for note in document["notes"])] if document["notes"] else []),
    ]
    return "\n\n".join(parts) + "\n"


def _ended(document: Mapping[str, Any]) -> str:
    """By what all trained rows ended, if by the steps that were asked for."""
    steps = {row["steps"] for row in document["rows"] if row["steps"] is not None}
    asked = {f"loop.steps={count}" for count in steps} & set(document["settings"]["overrides"])
    return f" (here {max(steps):,} steps ended them)" if len(steps) == 1 and asked else ""


def _cell(interval: Mapping[str, float] | None, sign: str = "") -> str:
    if interval is None:
        return ""
    mean, low, high = (f"{100 * interval[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
