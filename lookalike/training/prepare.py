"""From a configuration to what a run works on: pictures in three parts, batches, network, objective, base."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.bundle import MANIFEST
from lookalike.distort import KINDS, write_queries
from lookalike.encoder import Encoder
from lookalike.errors import CheckpointError, ConfigError, QueryError
from lookalike.images import Region
from lookalike.labels import SIDES, Example, Labelled, labelled, makers_of
from lookalike.metrics import Values
from lookalike.rerank import Reranking
from lookalike.splits import duplicates, leaks, split, summary
from lookalike.training.config import TrainConfig, ValidationConfig
from lookalike.training.datasets import Joined, PixelCache, Source
from lookalike.training.distributed import Group
from lookalike.training.folder import RunFolder
from lookalike.training.judge import Judge, embed
from lookalike.training.losses import LOSSES, PAIR_LOSSES
from lookalike.training.memory import CrossBatchMemory
from lookalike.training.miners import MINERS, Schedule
from lookalike.training.networks import EmbeddingNetwork, Views, build, read_weights, small_views, weights_file
from lookalike.training.objective import Batch, Objective
from lookalike.training.samplers import BalancedPairs, ClassBalanced, EveryPicture, ExplicitTriplets, WithinCategory
from lookalike.training.teacher import Axes, Distillation, Lessons, regions, taught

Rows = npt.NDArray[np.int64]

# Pictures that periodic validation asks at most: whole classes, so that the questions stay the same in kind.
VALIDATED = 4_000
# The same for the verdict: every picture asks against all others, so the time grows with the square.
JUDGED = 12_000
# Altered copies that ask at least, where pictures have no labels and there are so many.
COPIES = 1_000
# In the run folder: what the base answered.
BASE = "base.npz"

__all__ = ["Material", "ask", "base_answers", "fingerprint", "make_network", "make_objective", "prepare"]


@dataclass(frozen=True)
class Material:
    """What a run works on.

    Attributes:
        cache: the decoded pictures; rows are positions in `paths`, and beyond them regions that a teacher has seen.
        paths: of every picture, and of the altered copies that ask.
        labels: (n,) class of each, as numbers.
        parts: "train", "validation" and "test" → rows.
        draw: number of a batch → `Batch`, by (seed, number) alone.
        mean: per channel, (c, 1, 1), of values in [0, 1].
        std: the same.
        validation: asked during the run; None where nothing is held out.
        judge: asked for the verdict; None where nothing is held out.
        judged: the part that `judge` asks.
        classes: how many are trained on.
    """

    cache: Joined
    paths: Sequence[str]
    labels: Rows
    parts: Mapping[str, Rows]
    draw: Callable[[int], Batch]
    mean: Tensor
    std: Tensor
    validation: Judge | None
    judge: Judge | None
    judged: str
    classes: int

    def normalised(self, pictures: Tensor) -> Tensor:
        """(n, c, h, w) of values in [0, 1] → what the network takes."""
        mean, std = self.mean.to(pictures.device), self.std.to(pictures.device)
        return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)


def prepare(config: TrainConfig, place: RunFolder, group: Group) -> Material:
    """Read, decode and part the pictures; data.json says what became of them.

    Raises:
        CatalogueError, ConfigError, TrainingError: the pictures do not allow what the configuration asks for.
    """
    data, preprocessing = config.data, config.preprocessing()
    found = labelled(data.root, data.labels, category=data.category)
    folder = Path(data.cache) if data.cache else place.path / "pixels"

    def decoded(sources: Sequence[Source]) -> PixelCache:
        return group.once(
            lambda: PixelCache.build(sources, preprocessing, channels=data.channels, folder=folder, say=place.say)
        )

    paths = [example.path for example in found.examples]
    caches = [decoded(paths)]
    unread = [f"{error.path}: {error.reason}" for error in caches[0].errors.values()]
    found = _grouped(found, caches[0]) if data.labels == "none" else found
    sides, notes = _sides(config, found, caches[0])
    labels = _numbers([example.label for example in found.examples])
    parts = {side: np.flatnonzero(sides == side) for side in SIDES}
    if unread:
        notes.append(f"{len(unread):,} pictures cannot be read, and are left out: {'; '.join(unread[:3])}")
    draw, classes, said = _sampler(config, found, labels, parts["train"])
    notes += filter(None, said)
    if group.first:
        _write_data(place, config, found, labels, parts, notes, unread)
    for note in notes:
        place.say(f"note: {note}")
    judged = "test" if len(parts["test"]) else "validation"
    if len(parts[judged]) > JUDGED:
        place.say(f"note: the verdict asks {JUDGED:,} of {len(parts[judged]):,} held-out pictures")
    asked: list[Judge | None] = []
    verdict = judged if judged != "validation" else "verdict"  # more may ask than during the run: other files
    for side, name, most in (("validation", "validation", VALIDATED), (judged, verdict, JUDGED)):
        if data.labels == "none":
            copies, judge = _copies(parts[side], labels, paths, most, place.path / "copies" / name, group)
            caches += [decoded(copies)] if copies else []
            paths += copies
        else:
            judge = _fewer(_judge(config.validation, config.data.maker, found.examples, labels, parts[side]), most)
        asked.append(judge)
    if config.teacher.bundles:
        train = parts["train"]
        views, lessons = _lessons(config, [paths[row] for row in train], folder, place, group)
        draw = _taught(draw, lessons, train, sum(map(len, caches)))
        caches += [decoded(views)] if views else []
    channels = slice(None) if data.channels == 3 else slice(0, 1)
    mean, std = (torch.tensor(values[channels]).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return Material(Joined(*caches), paths, labels, parts, draw, mean, std, asked[0], asked[1], judged, classes)


def _grouped(found: Labelled, cache: PixelCache) -> Labelled:
    """Near-duplicates get one label: they are never one another's negatives, and stay on one side."""
    groups = duplicates(cache.pixels, cache.readable)
    first = dict(zip(cache.readable.tolist(), cache.readable[groups].tolist(), strict=True))
    examples = [
        replace(example, label=found.examples[first.get(row, row)].label) for row, example in enumerate(found.examples)
    ]
    more = len(groups) - len(np.unique(groups))
    notes = [*found.notes, f"{more:,} pictures are near-duplicates of others, and count as alike"] if more else []
    return replace(found, examples=examples, notes=notes or found.notes)


def _copies(
    rows: Rows, labels: Rows, paths: Sequence[str], most: int, folder: Path, group: Group
) -> tuple[list[str], Judge | None]:
    """Altered copies of held-out pictures, as files, and the judge that asks with them; they will follow `paths`."""
    if not len(rows):
        return [], None
    gallery = np.sort(np.random.default_rng(0).permutation(rows)[:most])
    asking = gallery[: most // 2]
    asking = np.repeat(asking, min(-(-COPIES // len(asking)), len(KINDS)))
    made = group.once(lambda: write_queries([paths[row] for row in asking], folder))
    copies = [(path, row) for path, row in zip(made, asking, strict=True) if path is not None]
    own = np.array([row for _, row in copies], dtype=np.int64)
    place = np.concatenate([gallery, len(paths) + np.arange(len(copies))])
    judge = Judge(place, np.concatenate([labels[gallery], labels[own]]), originals=own)
    return [path for path, _ in copies], judge


def _lessons(
    config: TrainConfig, paths: Sequence[str], folder: Path, place: RunFolder, group: Group
) -> tuple[list[Region], Lessons]:
    """The regions that the teacher looks at, besides the whole pictures, and what it says of all of them."""
    table = config.teacher
    views = regions(paths, table.views - 1, table.area, table.aspect, config.seed)
    seen = group.once(lambda: taught(table.bundles, [*paths, *views], folder, place.say))
    if seen.shape[1] == config.network.dim and table.whiten == 0:
        return views, Lessons(torch.from_numpy(seen), table.views, config.seed)  # as they are, in their own directions
    axes = Axes.of(seen[: len(paths)], config.network.dim, table.whiten)
    place.say(f"note: {config.network.dim} axes of the teacher hold {100 * axes.kept:.1f} % of how its vectors differ")
    return views, Lessons(torch.from_numpy(axes(seen)), table.views, config.seed)


def _taught(draw: Callable[[int], Batch], lessons: Lessons, train: Rows, first: int) -> Callable[[int], Batch]:
    """Batches with what the teacher says of them; the regions are rows from `first` on."""

    def drawn(number: int) -> Batch:
        batch = draw(number)
        region, targets = lessons.look(np.searchsorted(train, batch.rows), number)
        return replace(batch, rows=np.where(region < 0, batch.rows, first + region), targets=targets)

    return drawn


def _sides(config: TrainConfig, found: Labelled, cache: PixelCache) -> tuple[npt.NDArray[Any], list[str]]:
    """The part of each picture, "" for those that are in none; and what there is to say about it."""
    data, notes = config.data, list(found.notes)
    kept = found.keep(cache.readable)
    sides = split(kept.examples, validation=data.validation, test=data.test, by=data.split, seed=config.seed)
    if data.check_leaks and (sides != "train").any():
        sides, moved = leaks(kept.examples, sides, cache.pixels, rows=cache.readable, by=data.split)
        notes += summary(moved)
    whole = np.full(len(found.examples), "", dtype=sides.dtype)
    whole[cache.readable] = sides
    return whole, notes


def _numbers(names: Any) -> Rows:
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int64)


def _sampler(
    config: TrainConfig, found: Labelled, labels: Rows, train: Rows
) -> tuple[Callable[[int], Batch], int, list[str]]:
    """How batches are drawn, from how many classes, and what there is to say about it."""
    table, seed = config.sampler, config.seed
    own = _numbers(labels[train])  # numbered from 0 without gaps: what losses with class centres want
    classes = int(own.max()) + 1 if len(own) else 0

    def batch(positions: Rows, **known: Any) -> Batch:
        return Batch(train[positions], torch.from_numpy(own[positions]), **known)

    inside = found.keep(train)
    if table.kind == "every":
        every = EveryPicture(len(own), distinct=table.classes, copies=table.pictures, seed=seed)
        return lambda number: batch(every.batch(number)), classes, []
    if table.kind == "pairs":
        pairs = BalancedPairs(own, pairs=table.pairs, seed=seed, explicit=inside.pairs)

        def draw_pairs(number: int) -> Batch:
            left, right, same = pairs.batch(number)
            return batch(np.concatenate([left, right]), same=torch.from_numpy(same))

        return draw_pairs, classes, [pairs.note]
    if table.kind == "triplets":
        if inside.triplets is None:
            raise ConfigError(['sampler.kind "triplets" needs data.labels to be a file of triplets'])
        given = ExplicitTriplets(inside.triplets, count=min(table.pairs, len(inside.triplets)), seed=seed)

        def draw_triplets(number: int) -> Batch:
            rows, triplets = given.batch(number)
            a, p, n = (torch.from_numpy(places) for places in triplets)
            return batch(rows, triplets=(a, p, n))

        return draw_triplets, classes, []
    makers = _makers(config.data.maker, inside.examples) if table.same_makers else None
    if table.kind == "category":
        categories = _numbers([example.category for example in inside.examples])
        balanced: Any = WithinCategory(
            own, categories, classes=table.classes, pictures=table.pictures, groups=table.categories,
            share=table.share, seed=seed, makers=makers,
        )  # fmt: skip
    else:
        balanced = ClassBalanced(own, classes=table.classes, pictures=table.pictures, seed=seed, makers=makers)
    return lambda number: batch(balanced.batch(number)), classes, [balanced.note]


def _judge(
    table: ValidationConfig, maker: str | None, examples: Sequence[Example], labels: Rows, rows: Rows
) -> Judge | None:
    if not len(rows):
        return None
    chosen = [examples[row] for row in rows]
    categories = _numbers([example.category for example in chosen]) if table.within_category else None
    return Judge(rows, labels[rows], categories, _makers(maker, chosen), table.way, table.episodes)


def _makers(maker: str | None, examples: Sequence[Example]) -> Rows | None:
    """Who made each picture, as its file name tells."""
    try:
        return None if maker is None else _numbers(makers_of(maker, [example.path for example in examples]))
    except QueryError as error:
        raise ConfigError([f"data.{error}"]) from error


def _fewer(judge: Judge | None, most: int) -> Judge | None:
    """At most `most` pictures, in whole classes."""
    if judge is None or len(judge.rows) <= most:
        return judge
    order = np.random.default_rng(0).permutation(np.unique(judge.labels))
    sizes = np.cumsum([(judge.labels == name).sum() for name in order])
    kept = np.isin(judge.labels, order[: max(2, int((sizes <= most).sum()))])
    categories, makers = (None if v is None else v[kept] for v in (judge.categories, judge.makers))
    return Judge(judge.rows[kept], judge.labels[kept], categories, makers, judge.way, judge.episodes)


def _write_data(
    place: RunFolder,
    config: TrainConfig,
    found: Labelled,
    labels: Rows,
    parts: Mapping[str, Rows],
    notes: Sequence[str],
    unread: Sequence[str],
) -> None:
    sizes = Counter(example.label for example in found.examples)
    document = {
        "fingerprint": fingerprint(config.data.root, found.examples),
        "preprocessing": config.preprocessing().to_document(),  # the bundle it may come from can move
        "pictures": {side: len(rows) for side, rows in parts.items()},
        "classes": len(sizes),
        "classes_by_part": {side: len(np.unique(labels[rows])) for side, rows in parts.items()},
        "notes": list(notes),
        "unreadable": list(unread),
        "paths": {side: [found.examples[row].path for row in rows] for side, rows in parts.items()},
    }
    held = place.path / "data.json"
    if held.exists() and _fingerprint_in(held) != document["fingerprint"]:
        if place.last.exists():
            raise CheckpointError(
                f"the pictures in {config.data.root} have changed since the run in {place.path} began: "
                "put them back to go on, or train into another folder"
            )
        (place.path / BASE).unlink(missing_ok=True)  # nothing was learned yet, but the base was asked about others
    place.write("data.json", json.dumps(document, indent=1) + "\n")


def _fingerprint_in(held: Path) -> str | None:
    """Of the pictures a run began with; None where its file is damaged."""
    try:
        return str(json.loads(held.read_text(encoding="utf-8"))["fingerprint"])
    except (KeyError, TypeError, ValueError):
        return None


def fingerprint(root: str | os.PathLike[str], examples: Sequence[Example]) -> str:
    """SHA-256 over names below `root` (a folder, or the one of a CSV file), sizes and labels: equal for equal data."""
    place = Path(root)
    home = place if place.is_dir() else place.parent
    lines = sorted(
        f"{os.path.relpath(example.path, home)} {Path(example.path).stat().st_size} {example.label}"
        for example in examples
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def make_network(config: TrainConfig, material: Material | None = None, *, start: bool = True) -> EmbeddingNetwork:
    """The network of a configuration.

    Args:
        config: names it.
        material: pictures to find the start of a skip head with; needed where `start` is set and the head has one.
        start: read the weights it starts from; without, its own are put in later.
    """
    table, preprocessing = config.network, config.preprocessing()
    weights = table.weights if start else None
    base = build(
        table.name, channels=config.data.channels, weights=weights, size=preprocessing.size, seed=config.seed,
        **table.options,
    )  # fmt: skip
    network = EmbeddingNetwork(
        base,
        dim=table.dim,
        pool=table.pool,
        head=table.head,
        skip=table.skip,
        normalise=table.normalise,
        views=views_of(config, preprocessing.size),
        seed=config.seed,
    )
    if weights is not None and not table.skip:
        take_head(network, weights)
    elif start and table.skip and network.dim < network.width:
        if material is None:
            raise ValueError("a skip head that reduces needs pictures to start from")
        network.initialise_from(torch.from_numpy(_features(network, material)))
    network.freeze(table.freeze)
    if table.freeze_batch_norm:
        network.freeze_batch_norm()
    return network


def views_of(config: TrainConfig, size: tuple[int, int]) -> Views | None:
    table = config.views
    if table.count == 1 and not table.flip:
        return None
    moved = small_views(table.count, table.rotate, table.scale, table.shift, table.shear, flip=table.flip)
    return Views(moved, size)


def take_head(network: EmbeddingNetwork, weights: str) -> bool:
    """Take the head, too, where the weights are a bundle's whose head has this shape. Whether it was taken."""
    if not isinstance(network.head, nn.Linear) or weights == "hub":
        return False
    path = weights_file(weights)
    if not (path.parent / MANIFEST).is_file():
        return False
    state = read_weights(path)
    for prefix in ("head.", "fc."):
        weight, bias = state.get(f"{prefix}weight"), state.get(f"{prefix}bias")
        if weight is not None and bias is not None and weight.shape == network.head.weight.shape:
            network.head.load_state_dict({"weight": weight, "bias": bias})
            return True
    return False


def _features(network: EmbeddingNetwork, material: Material, most: int = 4000) -> npt.NDArray[np.float32]:
    rows = material.parts["train"]
    rows = np.random.default_rng(0).permutation(rows)[:most]
    return embed(network.eval().pooled, material.cache, rows, material.mean, material.std, "cpu")


def make_objective(config: TrainConfig, material: Material, dim: int) -> Objective:
    """Loss, miner and memory of a configuration, over embeddings of `dim` numbers."""
    kind = (LOSSES | PAIR_LOSSES)[config.loss.kind]
    known = {"dim": dim, "classes": material.classes, "generator": torch.Generator().manual_seed(config.seed)}
    options = config.loss.options | {name: known[name] for name in inspect.signature(kind).parameters if name in known}
    memory = CrossBatchMemory(config.memory.size, dim) if config.memory.size else None
    try:
        loss, taught_by = kind(**options), _distillation(config)
        return Objective(loss, _miner(config), memory, config.memory.start, taught_by, config.teacher.weight)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"loss or miner: {error}"]) from error


def _distillation(config: TrainConfig) -> Distillation | None:
    table = config.teacher
    return Distillation(table.vectors, table.similarities, table.temperature) if table.bundles else None


def _miner(config: TrainConfig) -> Any:
    table = config.miner
    if table is None:
        return None
    if table.schedule:
        return Schedule([(start, MINERS[kind]()) for start, kind in table.schedule])
    return MINERS[table.kind](**table.options)


def ask(
    network: nn.Module, judge: Judge, material: Material, device: str, reranking: Reranking | None = None
) -> dict[str, Values]:
    """The answers of a network in evaluation mode to one part of the data."""
    mean, std = material.mean.to(device), material.std.to(device)
    return judge.ask(embed(network, material.cache, judge.rows, mean, std, device), reranking)


def base_answers(
    config: TrainConfig, material: Material, network: EmbeddingNetwork, place: RunFolder, group: Group, device: str
) -> tuple[str, dict[str, Values]]:
    """What there was before training, asked the same questions: its name and its answers.

    Where the weights are a bundle's, it is that encoder. With other weights it is the network at step 0, or its pooled
    features where the head starts at random. Without, it is the encoder that ships, which is what one would use.
    """
    if not group.first or material.judge is None:
        return "", {}
    held = place.arrays(BASE)
    if held is not None:
        return str(held.pop("name")), held
    name, answers = _base(config, material, material.judge, network.eval(), device)
    place.write_arrays(BASE, {"name": name, **answers})
    scores = ", ".join(f"{key} {np.nanmean(values):.4f}" for key, values in answers.items())
    place.say(f"base, before step 0: {name}, {material.judged}: {scores}")
    return name, answers


def _base(
    config: TrainConfig, material: Material, judge: Judge, network: EmbeddingNetwork, device: str
) -> tuple[str, dict[str, Values]]:
    table = config.network
    paths = [material.paths[row] for row in judge.rows]
    if table.weights is None:
        encoder = Encoder.default()
        return f"the encoder that ships, {encoder.name}", judge.ask(encoder.images(paths, strict=True))
    if table.weights == "default" or (Path(table.weights) / MANIFEST).is_file():  # as it is, with all it does
        encoder = Encoder.default() if table.weights == "default" else Encoder.load(table.weights)
        return f"the encoder {encoder.name}", judge.ask(encoder.images(paths, strict=True), encoder.bundle.reranking)
    source = "hub" if table.weights == "hub" else Path(table.weights).name
    if table.skip or table.head == "none":
        return f"{table.name} from {source}, at step 0", ask(network, judge, material, device)
    mean, std = material.mean.to(device), material.std.to(device)
    vectors = embed(network.pooled, material.cache, judge.rows, mean, std, device)
    return f"features of {table.name} from {source}", judge.ask(vectors)
