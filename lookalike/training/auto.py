"""A configuration that fits some pictures, for those who bring none: from how many there are, of how many classes.

Recipes, all measured (see ``configs/`` and DECISIONS.md):

- *drawings* (small, in shades of grey, hundreds of classes: handwriting, signs, logos): a small network from scratch,
  near that of ``configs/omniglot.toml``;
- *everything else*: the encoder that ships goes on learning, so that the verdict is about what training added;
- *words*: two towers, the encoder that ships resting in one of them.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lookalike.bundle import Bundle, default_path
from lookalike.errors import ImageError
from lookalike.images import NEARLY_WHITE, read
from lookalike.labels import Labelled, labelled
from lookalike.splits import split
from lookalike.training.config import TrainConfig, read_config

# Pictures looked at to tell drawings from photographs.
LOOKED_AT = 48

Ground = Literal["white", "other"]

# A picture taken again: what a second photograph, a screenshot or a re-upload does to it.
AGAIN = {
    "rotate": 25.0,
    "scale": [0.9, 1.1],
    "crop": [0.5, 1.0],
    "perspective": 0.15,
    "blur": 1.5,
    "brightness": 0.5,
    "contrast": 0.2,
    "saturation": 0.2,
    "noise": 0.04,
    "erase": 0.5,
    "erase_area": [0.05, 0.25],
}

__all__ = ["choose", "choose_words"]


def choose(
    root: str | os.PathLike[str],
    labels: str = "folders",
    *,
    category: str | None = None,
    overrides: Sequence[str] = (),
) -> TrainConfig:
    """A configuration for the pictures in `root`.

    Args:
        root: a folder, or a CSV file.
        labels: as `lookalike.labels.labelled`.
        category: the column of the super-class, if `root` is a CSV file.
        overrides: as `read_config`; without ``loop.minutes`` or ``loop.steps`` it takes ten minutes.

    Raises:
        CatalogueError: nothing to learn from.
        ConfigError: overrides that do not fit.
    """
    found = labelled(root, labels, category=category)
    if labels == "none":
        return read_config(_unlabelled(root, len(found.examples)), overrides)
    sizes = sorted(Counter(example.label for example in found.examples).values())
    drawings = _drawings_on(found) if len(sizes) >= 200 else None
    data: dict[str, Any] = {"root": os.fspath(root), "labels": labels, **_held_out(found, len(sizes))}
    if category is not None:
        data["category"] = category
    document: dict[str, Any] = {
        "name": _name(root),
        **(_pictures() if drawings is None else _drawings(drawings)),
        "sampler": _sampler(found, data),
        "loss": {"kind": "supervised_contrastive", "temperature": 0.1},
        "loop": {"steps": 100_000, "minutes": 10.0, "validate_every": 200, "patience": 0},
    }
    if found.triplets is not None:
        document["loss"] = {"kind": "triplet", "margin": 0.2}
    elif found.pairs is not None:  # what nobody called different need not be so: only the given pairs teach
        document["loss"] = {"kind": "pair_contrastive", "margin": 0.8}
    document["data"] = {**document.get("data", {}), **data}
    return read_config(document, overrides)


def choose_words(captions: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """A configuration of two towers for a CSV file of captions, titles or clicks. Raises ConfigError."""
    document = {
        "name": _name(captions),
        "data": {"root": os.fspath(captions)},
        "text": {"captions": True},
        "optimizer": {"rate": 3e-3},
        "loop": {"steps": 1000, "validate_every": 100},
    }
    return read_config(document, overrides)


def _name(root: str | os.PathLike[str]) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(root).stem).strip("-") or "run"


def _unlabelled(root: str | os.PathLike[str], count: int) -> dict[str, Any]:
    """Each picture is alike with itself, seen anew; the encoder that ships goes on, and is not forgotten."""
    return {
        "name": _name(root),
        "data": {"root": os.fspath(root), "labels": "none"},
        "network": _default(),
        "augment": AGAIN,
        "sampler": {"kind": "every", "classes": int(np.clip(count // 4, 2, 64)), "pictures": 2},
        "loss": {"kind": "nt_xent", "temperature": 0.05},
        # What it knows of kinds of things, copies do not ask for: it is its own teacher, lest it forget.
        "teacher": {"bundles": ["default"], "weight": 2.0},
        "optimizer": {"rate": 5e-4, "weight_decay": 0.01, "ema": 0.99},
        "loop": {"steps": 100_000, "minutes": 10.0, "validate_every": 200, "small_scale": 0.7, "small_until": 0.6},
    }


def _held_out(found: Labelled, classes: int) -> dict[str, Any]:
    """Whole classes where there are enough of them to judge by; whole super-classes where there are many."""
    if any(example.split for example in found.examples):
        return {"split": "class"}
    categories = {example.category for example in found.examples} - {""}
    if len(categories) >= 12:
        return {"split": "category"}
    return {"split": "class"} if classes >= 12 else {"split": "picture"}


def _sampler(found: Labelled, data: dict[str, Any]) -> dict[str, Any]:
    """About 128 pictures: four of a class, or as many as the middle class has; within a super-class half the time."""
    if found.triplets is not None:
        return {"kind": "triplets", "pairs": 42}
    if found.pairs is not None:
        return {"kind": "pairs", "pairs": 64}
    sides = split(found.examples, by=data["split"])
    train = Counter(example.label for example, side in zip(found.examples, sides, strict=True) if side == "train")
    useful = [size for size in train.values() if size > 1]
    pictures = int(np.clip(np.median(useful or [2]), 2, 4))
    # A class or two may move when the sides are found to share a picture.
    classes = int(np.clip(len(useful) - 2, 2, 128 // pictures))
    members = defaultdict(set)
    for example in found.examples:
        members[example.category].add(example.label)
    nested = len(members) > 1 and np.median([len(labels) for labels in members.values()]) >= 4
    kind = {"kind": "category", "categories": 2, "share": 0.5} if nested else {"kind": "classes"}
    return {**kind, "classes": classes, "pictures": pictures}


def _pictures() -> dict[str, Any]:
    """The encoder that ships, taught further."""
    return {
        "network": _default(),
        "augment": {
            "flip": 0.5,
            "crop": [0.6, 1.0],
            "rotate": 8.0,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
        "optimizer": {"rate": 5e-4, "weight_decay": 0.01, "ema": 0.99},
    }


def _default() -> dict[str, Any]:
    """The encoder that ships, its head included."""
    dim = Bundle.load(default_path()).dim
    return {"name": "shufflenet_v2_x1_0", "weights": "default", "dim": dim, "freeze_batch_norm": True}


def _drawings(ground: Ground) -> dict[str, Any]:
    """A small network from scratch that bends what it sees; a batch that is turned or mirrored holds other drawings."""
    data: dict[str, Any] = {"size": [56, 56], "channels": 1}
    if ground == "white":  # cut to the ink; white is 0, so that the padding of convolutions draws no frame
        data |= {"fit": "trim", "mean": [1.0] * 3, "std": [0.3] * 3}
    return {
        "data": data,
        "network": {"name": "small", "options": {"blocks": 1}, "pool": "attention:16", "dim": 256},
        "augment": {
            "rotate": 7.0,
            "scale": [0.92, 1.08],
            "shear": 6.0,
            "shift": 0.07,
            "stretch": 0.05,
            "elastic": 0.012,
            "turns": "batch",
            "mirror": 0.5,
        },
        "optimizer": {"kind": "muon", "momentum": 0.95, "rate": 2.4e-3, "weight_decay": 0.05, "ema": 0.99},
        "views": {"count": 9},
    }


def _drawings_on(found: Labelled) -> Ground | None:
    """What most of a sample is drawn on, if the sample is small and without colour; None if it is of photographs."""
    places = np.linspace(0, len(found.examples) - 1, min(LOOKED_AT, len(found.examples))).round().astype(int)
    seen = [look for place in places if (look := _look(found.examples[place].path)) is not None]
    if not seen or np.mean([small for small, _ in seen]) <= 0.9:
        return None
    return "white" if np.mean([white for _, white in seen]) > 0.9 else "other"


def _look(path: str) -> tuple[bool, bool] | None:
    """Whether a picture is small and grey, and whether most of its border is white, as of what is drawn on paper."""
    try:
        image = read(path)
    except ImageError:
        return None
    small = max(image.size) <= 128
    pixels = np.asarray(image, dtype=np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return small and int(np.ptp(pixels, axis=2).max()) <= 8, float(np.mean(border >= NEARLY_WHITE)) > 0.8
