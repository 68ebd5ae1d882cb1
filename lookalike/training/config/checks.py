"""What a run cannot be: what does not exist, what cannot be together, and what this machine lacks.

A problem comes after the keys that it is about, "table.key" or whole tables, joined by blanks: where one of them could
not be read, nobody knows yet whether it is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lookalike.bundle import MANIFEST
from lookalike.errors import ConfigError, LookalikeError
from lookalike.training.config.options import FAMILIES, did_you_mean, made, option_problems
from lookalike.training.config.tables import MinerConfig, TrainConfig
from lookalike.training.losses import PAIR_LOSSES
from lookalike.training.miners import MINERS, Schedule, SemiHard
from lookalike.training.networks import Sketch, missing_weights, nearest, option_types, pooling, sketch, unpublished

Found = tuple[str, str]
# What a network is drawn up from.
_NETWORK = "network.name network.options data.channels data.size"
# Pixels of a side from which on all networks take pictures of any size, but for some of timm's.
_ANY = 64

__all__ = ["Found", "impossible", "missing"]


def impossible(config: TrainConfig) -> Iterator[Found]:
    """What cannot be together, or does not exist: none where the run can start, given what it needs (`missing`)."""
    for check in (_names, _loss, _teacher, _batches, _memory, _embedding, _held_out, _words, _views, _network):
        yield from check(config)


def missing(config: TrainConfig) -> Iterator[Found]:
    """What the run needs of this machine and does not find there. Nothing is read or fetched."""
    device, weights, recipe = config.loop.device, config.network.weights, config.base.recipe
    if device != "auto" and not _no_device(device) and (wrong := _absent(device)):
        yield "loop.device", f"loop.device {device!r} is not there: {wrong}"
    if config.text.captions:  # of which the tables below are no part
        return
    if weights not in (None, "hub") and (wrong := missing_weights(str(weights))):
        yield "network.weights", f"network.weights: {wrong}"
    if recipe is not None and not Path(recipe).is_file():
        yield "base.recipe", f"base.recipe: there is no file {recipe}"
    for bundle in config.teacher.bundles:
        if bundle != "default" and not (Path(bundle) / MANIFEST).is_file():
            yield "teacher.bundles", f"teacher.bundles: there is no bundle {bundle}"


def _names(config: TrainConfig) -> Iterator[Found]:
    """What does not exist, or has no such options."""
    network, device = config.network, config.loop.device
    if not config.data.root:
        yield "data.root", "data.root is missing: the folder of pictures, or a CSV file"
    try:
        re.compile(config.data.maker or "")
    except re.error as error:
        yield "data.maker", f"data.maker {config.data.maker!r} is not a regular expression: {error}"
    if unknown := nearest(network.name):
        yield "network.name", f"network.name {unknown}"
    else:
        for problem in option_problems("network.options", network.options, option_types(network.name)).values():
            yield "network.name network.options", problem
        if network.weights == "hub" and (wrong := unpublished(network.name)):
            yield "network.name network.weights", f"network.weights: {wrong}"
    if device != "auto" and (wrong := _no_device(device)):
        yield "loop.device", f"loop.device {wrong}"
    for problem in _made_loss(config)[0]:
        yield "loss.kind", problem
    for problem in _miner_problems(config.miner):
        yield "miner.kind miner.schedule", problem


def _loss(config: TrainConfig) -> Iterator[Found]:
    """What the run starts from, and what it minimises."""
    kind, sampler, loss = config.loss.kind, config.sampler.kind, _class_of_loss(config)
    pairs, mined = kind in PAIR_LOSSES, getattr(loss, "needs_triplets", False)
    if config.base.recipe is not None and config.network.weights is not None:
        yield (
            "base.recipe network.weights",
            "base.recipe makes the weights that this run starts from: leave network.weights out",
        )
    if loss is not None and pairs != (sampler == "pairs"):
        yield (
            "loss.kind sampler.kind",
            f"loss {kind!r} {'takes' if pairs else 'does not take'} pairs, sampler.kind is {sampler!r}: "
            f'write sampler.kind = "{"pairs" if pairs else "classes"}"',
        )
    if mined and config.miner is None and sampler != "triplets":
        yield "loss.kind miner sampler.kind", f'loss {kind!r} needs mined triplets: add [miner] kind = "semi_hard"'
    if config.miner is not None and loss is not None and not mined:
        yield (
            "loss.kind miner",
            f'[miner] has nothing to do: loss {kind!r} looks at the whole batch; remove it, or take loss "triplet"',
        )
    if kind == "none" and not config.teacher.bundles:
        yield (
            "loss.kind teacher.bundles",
            'loss "none" learns from a teacher alone: name one in teacher.bundles, or choose another loss',
        )


def _teacher(config: TrainConfig) -> Iterator[Found]:
    table = config.teacher
    if table.bundles and table.vectors + table.similarities == 0:
        yield (
            "teacher.bundles teacher.vectors teacher.similarities",
            "teacher.vectors and teacher.similarities are both 0: the teacher teaches nothing",
        )
    if table.area[0] > table.area[1]:
        yield "teacher.area", f"teacher.area goes from the smaller share to the larger one, got {list(table.area)}"
    if table.aspect[0] > table.aspect[1]:
        yield (
            "teacher.aspect",
            f"teacher.aspect goes from the narrower shape to the wider one, got {list(table.aspect)}",
        )
    if table.bundles and config.network.head == "none":
        yield (
            "teacher.bundles network.head",
            '[teacher] is learned in network.dim numbers, which a head gives: set network.head = "linear"',
        )
    if table.bundles and _tuples(config):
        yield (
            "teacher.bundles loss.kind sampler.kind",
            f"[teacher] cannot be used with sampler.kind = {config.sampler.kind!r}",
        )


def _batches(config: TrainConfig) -> Iterator[Found]:
    """What the sampler draws: whether there is such a thing, and whether the loss learns from it."""
    table, kind, loss = config.sampler, config.loss.kind, _class_of_loss(config)
    classed, unlabelled = table.kind in ("classes", "category"), config.data.labels == "none"
    if table.pictures < 2 and classed:
        yield "sampler.pictures sampler.kind", "sampler.pictures must be at least 2, or a class has nothing to agree on"
    if table.pictures < 2 and table.kind == "every" and kind != "none" and not getattr(loss, "needs_classes", False):
        yield (
            "sampler.pictures sampler.kind loss.kind",
            f"loss {kind!r} needs sampler.pictures of at least 2: a picture is alike with itself, augmented anew",
        )
    if table.same_makers and config.data.maker is None:
        yield (
            "sampler.same_makers data.maker",
            "sampler.same_makers needs data.maker: a regular expression on file names whose group is the maker",
        )
    if table.same_makers and not classed:
        yield (
            "sampler.same_makers sampler.kind",
            f'sampler.same_makers goes with sampler.kind "classes" or "category", not {table.kind!r}',
        )
    if unlabelled and table.kind != "every":
        yield (
            "data.labels sampler.kind",
            f'data.labels = "none" knows no classes to draw, and sampler.kind is {table.kind!r}: '
            'write sampler.kind = "every"',
        )
    if unlabelled and config.validation.episodes > 0:
        yield (
            "data.labels validation.episodes",
            'data.labels = "none" has no classes for validation.episodes: leave it 0',
        )
    if table.kind == "triplets" and not getattr(loss, "needs_triplets", False):
        yield "sampler.kind loss.kind", f'sampler.kind = "triplets" needs a loss over triplets, not {kind!r}'
    if table.kind == "triplets" and config.miner is not None:
        yield "sampler.kind miner", 'sampler.kind = "triplets" brings its triplets: remove [miner]'


def _memory(config: TrainConfig) -> Iterator[Found]:
    if config.memory.size and _tuples(config):
        yield (
            "memory.size loss.kind sampler.kind",
            f"[memory] cannot be used with sampler.kind = {config.sampler.kind!r}",
        )
    if config.memory.size and not getattr(_class_of_loss(config), "takes_references", True):
        yield (
            "memory.size loss.kind",
            f"[memory] is of no use to loss {config.loss.kind!r}, which looks at its batch or at centres of its own",
        )


def _embedding(config: TrainConfig) -> Iterator[Found]:
    """How long vectors are, and whether there is a head to learn."""
    table, miner = config.network, config.miner
    mining = [] if miner is None else [name for _, name in miner.schedule] or [miner.kind]
    spherical = [name for name in mining if name in MINERS and MINERS[name].needs_unit]
    if not table.normalise and spherical:
        yield (
            "network.normalise miner.kind miner.schedule",
            f'miner "{spherical[0]}" works on the unit sphere: network.normalise must be true',
        )
    if table.normalise and getattr(_made_loss(config)[1], "needs_raw", False):
        yield (
            "network.normalise loss.kind loss.squash",
            f"loss {config.loss.kind!r} takes the logistic function of each coordinate, which leaves hardly a "
            "difference between vectors of unit length: set network.normalise = false, or loss.squash = false",
        )
    if table.skip and table.head == "none":
        yield "network.skip network.head", 'network.skip needs a head: network.head = "linear"'
    if table.freeze == "all" and table.head == "none":
        yield "network.freeze network.head", 'network.freeze = "all" with head = "none" leaves nothing to train'


def _held_out(config: TrainConfig) -> Iterator[Found]:
    data, validation = config.data, config.validation
    if data.validation == 0 and config.loop.patience > 0:
        yield "data.validation loop.patience", "loop.patience needs held-out pictures: data.validation is 0"
    if data.validation + data.test >= 0.9:
        yield "data.validation data.test", "data.validation + data.test leave less than a tenth to train on"
    if validation.select == "one_shot" and validation.episodes == 0:
        yield (
            "validation.select validation.episodes",
            'validation.select = "one_shot" needs validation.episodes above 0',
        )


def _words(config: TrainConfig) -> Iterator[Found]:
    text, sentences = config.text, config.sentences
    if text.temperature < text.coldest:
        yield (
            "text.temperature text.coldest",
            f"text.temperature {text.temperature} is below text.coldest {text.coldest}",
        )
    if text.captions and config.data.validation == 0:
        yield (
            "text.captions data.validation",
            "text.captions needs held-out pictures to choose the checkpoint: data.validation is 0",
        )
    if text.tower == "sentences" and not sentences.model:
        yield (
            "text.tower sentences.model",
            'text.tower "sentences" needs a model: set sentences.model to a folder, or to a name on the hub',
        )
    if sentences.model and not text.captions:
        yield (
            "sentences.model text.captions",
            "[sentences] reads words, and there are none: set text.captions, or leave sentences.model out",
        )


def _views(config: TrainConfig) -> Iterator[Found]:
    if (config.views.count > 1 or config.views.flip) and config.data.fit == "pad":
        yield (
            "views.count views.flip data.fit",
            '[views] moves the picture within its frame: data.fit = "pad" has another frame',
        )


def _network(config: TrainConfig) -> Iterator[Found]:
    """What does not go with the network; it is drawn up, without its numbers, only where that is a question."""
    table, shrinks = config.network, _shrinks(config)
    try:
        factor = int(pooling(table.pool, 1).factor)
    except ValueError as error:
        factor = 0
        yield "network.pool", f"network.{error}"
    special = bool(table.options) or table.skip or table.freeze not in (0, "all") or table.pool != "average"
    if config.text.captions or nearest(table.name) or not (special or shrinks or config.data.size is not None):
        return
    wrong = option_problems("network.options", table.options, option_types(table.name))
    options = {name: value for name, value in table.options.items() if name not in wrong}
    try:
        size = config.preprocessing().size
        smallest = min(size) * (config.loop.small_scale if shrinks else 1)
        if not special and smallest >= _ANY and not table.name.startswith("timm:"):
            return
        drawn = sketch(table.name, channels=config.data.channels, size=size, options=options)
    except ConfigError as error:
        for line in error.problems:
            yield _NETWORK, line if line.startswith("network ") else f"network.name: {line}"
    except LookalikeError as error:  # a damaged bundle
        yield "network.weights", f"network.weights: {error}"
    else:
        if drawn is not None:
            yield from _features(config, drawn, factor)
            yield from _sizes(config, drawn, size)


def _features(config: TrainConfig, drawn: Sketch, factor: int) -> Iterator[Found]:
    """Of stages and features; `factor` is how many times the features are pooled, 0 where that is unknown."""
    table, width = config.network, drawn.width * factor
    if table.freeze != "all" and table.freeze > drawn.stages:
        yield (
            f"{_NETWORK} network.freeze",
            f'network.freeze must be from 0 to {drawn.stages}, the stages of {table.name}, or "all"; '
            f"got {table.freeze}",
        )
    if drawn.tokens and factor and table.pool != "average":
        yield (
            f"{_NETWORK} network.pool",
            f'network.pool must be "average", got {table.pool!r}: {table.name} is a network of tokens, and pools '
            "them itself",
        )
    if table.skip and factor and table.head != "none" and table.dim > width:
        yield (
            f"{_NETWORK} network.skip network.dim network.pool network.head",
            f"network.dim must be at most {width}, the features of {table.name}, with network.skip; got {table.dim}",
        )


def _sizes(config: TrainConfig, drawn: Sketch, size: tuple[int, int]) -> Iterator[Found]:
    """Of the pictures as they are, and as they are at the beginning."""
    scale, name = config.loop.small_scale, config.network.name
    small = round(scale * size[0]), round(scale * size[1])
    if wrong := drawn.refusal(size):
        yield (
            f"{_NETWORK} network.weights",
            f"data.size: {name} takes no pictures of {size[0]} × {size[1]} pixels ({wrong}): set another size",
        )
    elif _shrinks(config) and (wrong := drawn.refusal(small)):
        yield (
            f"{_NETWORK} network.weights loop.small_scale loop.small_until",
            f"loop.small_scale {scale} makes pictures of {small[0]} × {small[1]} pixels, which {name} does not "
            f"take ({wrong}): set it to 1, or choose a network that takes any size",
        )


def _shrinks(config: TrainConfig) -> bool:
    """Whether the run begins with smaller pictures."""
    return config.loop.small_scale < 1 and config.loop.small_until > 0


def _tuples(config: TrainConfig) -> bool:
    """Whether it learns from pairs or triplets: a batch is then no set of pictures."""
    return config.loss.kind in PAIR_LOSSES or config.sampler.kind == "triplets"


def _class_of_loss(config: TrainConfig) -> Any:
    """What tells what the loss needs; None where there is no such loss."""
    return FAMILIES["loss"].get(config.loss.kind)


def _made_loss(config: TrainConfig) -> tuple[list[str], Any]:
    """What is wrong with [loss], and the loss where nothing is. How many classes, only the pictures tell: here two."""
    return made("loss", config.loss, {"dim": config.network.dim, "classes": 2, "generator": None})


def _miner_problems(table: MinerConfig | None) -> list[str]:
    """What is wrong with [miner] alone."""
    if table is None:
        return []
    if not table.schedule:
        return made("miner", table)[0]
    problems = [
        f"miner.{name} has no part beside miner.schedule, whose miners have their defaults: remove one of the two"
        for name in table.options
    ]
    for start, kind in table.schedule:
        if kind not in MINERS:
            problems.append(f"miner.schedule names {kind!r}: {did_you_mean(kind, MINERS)}")
        if not 0 <= start < 1:
            problems.append(f"miner.schedule starts {kind!r} at {start}: a share of the run, from 0 to below 1")
    if all(0 <= start < 1 for start, _ in table.schedule):
        try:
            Schedule([(start, MINERS.get(kind, SemiHard)()) for start, kind in table.schedule])
        except ValueError as error:
            problems.append(f"miner.schedule: {error}")
    return problems


def _no_device(name: str) -> str | None:
    """None where `name` is a device of PyTorch's, there or not; otherwise what is wrong with it."""
    try:
        known = torch.device(name).type != "meta"  # which computes nothing
    except RuntimeError:
        known = False
    return None if known else f'{name!r} is no device: write "auto" (a GPU where there is one), "cpu", or "cuda:0"'


def _absent(name: str) -> str | None:
    """None where this machine has a device of that name; otherwise what it has."""
    device = torch.device(name)
    if device.type == "cpu":
        return None
    if device.type == "cuda":  # asked for their number only: a GPU that is touched here could not be shared later
        count = torch.cuda.device_count()
        if (device.index or 0) < count:
            return None
        if count:
            return f'this machine has {", ".join(f"cuda:{number}" for number in range(count))}; name one, or "auto"'
        return 'this machine has no GPU that PyTorch can use: write "auto" or "cpu", or install PyTorch for your GPU'
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return f'{str(error).splitlines()[0]}: write "auto" or "cpu"'
    return None
