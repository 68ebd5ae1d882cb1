"""Which pictures train and which ones judge: splits by class, category or picture, and no picture on both sides.

What a network has seen it will find again; a score that means something comes from classes it has never seen. So whole
classes are put on one side, and a picture that lies on both, as the same file or as a near-duplicate, is moved.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lookalike.errors import ConfigError, ImageError, ShapeError
from lookalike.groups import Groups
from lookalike.images import Pixels, read_bytes, shown
from lookalike.labels import SIDES, Example, Numbers

Sides = npt.NDArray[np.str_]
Thumbnails = npt.NDArray[np.float32]
By = Literal["class", "category", "picture"]

# Near-duplicates, by area-averaged thumbnails of 16 × 16. Measured: copies saved anew as JPEG of quality 30 to 90, or
# resized to 75 or 90 %, reach both thresholds for all of 300 product photographs, faces and drawings, and for 90 % of
# 64-pixel photographs; of 28.6 million pairs of different product photographs 9 reach them (the same shot, or the same
# article in nearly the same colour), of 186 million pairs of Omniglot drawings 2, both within one character.
THUMBNAIL = 16
CORRELATION = 0.995
DIFFERENCE = 2.0  # mean over cells and channels, in grey levels of 255: a coloured variant is no duplicate
FLAT = 1.0  # standard deviation in grey levels below which a thumbnail has no shape to compare
BLOCK_CELLS = 1 << 23  # similarities held at once: 32 MiB of float32
_PARTNERS = 64  # near-duplicates looked at per picture: thousands of one empty picture would be millions of pairs
_DRAWS = 64  # random divisions of which the one nearest to the wanted shares is taken
_FEW = 2_000  # units up to which that is worth the trouble

__all__ = ["CORRELATION", "DIFFERENCE", "THUMBNAIL", "Leak", "duplicates", "leaks", "split", "summary", "thumbnails"]


def split(
    examples: Sequence[Example], *, validation: float = 0.15, test: float = 0.15, by: By = "class", seed: int = 0
) -> Sides:
    """Put each picture on one side.

    Args:
        examples: the pictures. Where a catalogue has said the sides (`Example.split`), they are as it says.
        validation: share of the pictures to choose settings by; 0 for none.
        test: share of the pictures for the last word; 0 for none.
        by: "class" keeps classes whole, "category" keeps whole categories (a class without a category stands for
            itself), "picture" divides every class, so that all classes are seen in training.
        seed: equal seeds give equal splits.

    Returns:
        (n,) of "train", "validation" and "test".

    Raises:
        ConfigError: impossible shares, or too few classes for at least two on each side.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ConfigError(
            [f"shares must be at least 0 and leave something to train, got validation {validation}, test {test}"],
            "split",
        )
    if by not in ("class", "category", "picture"):
        raise ConfigError([f"by must be class, category or picture, got {by!r}"], "split")
    labels = _codes([example.label for example in examples])
    if any(example.split for example in examples):
        sides = np.array([example.split or "train" for example in examples])
    elif by == "picture":
        sides = _by_picture(labels, validation, test, np.random.default_rng(seed))
    else:
        units = labels if by == "class" else _codes([(e.category, e.label if not e.category else "") for e in examples])
        sides = _by_unit(labels, units, {"validation": validation, "test": test}, seed)
    _check(labels, sides, "catalogue" if any(example.split for example in examples) else by)
    return sides


def _codes(values: Sequence[Any]) -> Numbers:
    """Any values as numbers from 0, equal where the values are equal, in their order."""
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    return np.array([numbers[value] for value in values], dtype=np.int64)


_NONE_HELD_OUT = "or a share of 0 for validation or test"
# How a split with too few classes on a side can succeed, by what stays together; `by` is data.split of a configuration.
_REMEDIES = {
    "category": f'more categories, or a split by class (by = "class", data.split in a configuration), {_NONE_HELD_OUT}',
    "class": f'more classes, or a split by picture (by = "picture", data.split in a configuration), {_NONE_HELD_OUT}',
    "picture": f"more classes of at least 2 pictures, {_NONE_HELD_OUT}",
    "catalogue": "other sides in the column split of the catalogue, or none at all there",
}


def _check(labels: Numbers, sides: Sides, by: str) -> None:
    counts = {side: len(np.unique(labels[sides == side])) for side in SIDES if (sides == side).any()}
    poor = [side for side, count in counts.items() if count < 2]
    if poor or "train" not in counts:
        shares = ", ".join(f"{side} {count}" for side, count in counts.items())
        raise ConfigError(
            [
                f"each side needs at least 2 classes, got {shares} of {len(np.unique(labels))} classes: it takes "
                f"{_REMEDIES[by]}"
            ],
            "split",
        )


def _by_picture(labels: Numbers, validation: float, test: float, dice: np.random.Generator) -> Sides:
    """Every so many pictures of a shuffled list in which each class stands together: near its share in every class.

    A lonely picture of its class can find nothing: it goes to training, where it serves as a negative.
    """
    sides = np.full(len(labels), "train", dtype="<U10")
    lonely = np.bincount(labels)[labels] == 1
    order = dice.permutation(int(labels.max()) + 1)[labels] + dice.random(len(labels))
    rows = np.argsort(order)
    rows = rows[~lonely[rows]]
    for side, share in (("test", test), ("validation", validation / (1 - test))):
        count = np.floor(np.arange(len(rows) + 1) * share + dice.random())
        chosen = np.diff(count) > 0
        sides[rows[chosen]] = side
        rows = rows[~chosen]
    return sides


def _by_unit(labels: Numbers, units: Numbers, shares: dict[str, float], seed: int) -> Sides:
    """Whole units; of several random divisions the one whose shares come nearest."""
    sizes = np.bincount(units)
    pairs = np.unique(np.stack([units, labels]), axis=1)
    classes = np.bincount(pairs[0])
    useful = np.bincount(pairs[0], weights=np.bincount(labels)[pairs[1]] > 1)
    wanted = {side: share * len(labels) for side, share in shares.items() if share}
    best: tuple[float, Numbers] | None = None
    for draw in range(_DRAWS if len(sizes) <= _FEW else 1):
        order = np.random.default_rng([seed, draw]).permutation(len(sizes))
        place = _division(order, sizes, classes, list(wanted.values()))
        sums = [np.bincount(place, weights=what, minlength=len(wanted) + 1) for what in (sizes, classes, useful)]
        cost = float(np.abs(sums[0][1:] - list(wanted.values())).sum())
        # A side of fewer than two classes, or with nothing to find, is worse than any share.
        cost += len(labels) * float((sums[1] < 2).sum() + (sums[2] < 1).sum())
        if best is None or cost < best[0]:
            best = cost, place
    assert best is not None
    return np.array(["train", *wanted])[best[1][units]]


def _division(order: Numbers, sizes: Numbers, classes: Numbers, wanted: Sequence[float]) -> Numbers:
    """The number of its side for each unit, 0 for train: a side takes what brings it nearer to its wanted size."""
    place = np.zeros(len(sizes), dtype=np.int64)
    for side, want in enumerate(wanted, start=1):
        size = held = 0
        for unit in order[place[order] == 0]:
            if held < 2 or abs(size + sizes[unit] - want) < abs(size - want):
                place[unit] = side
                size += int(sizes[unit])
                held += int(classes[unit])
    return place


# ── leaks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Leak:
    """Two pictures on different sides that are one.

    Attributes:
        stays: path of the picture that stays where it is.
        goes: path of the other one.
        kind: "same file" or "near-duplicate".
        done: what was done with `goes`, in words.
    """

    stays: str
    goes: str
    kind: str
    done: str

    def __str__(self) -> str:
        return f"{shown(self.goes)}: {self.kind} of {shown(self.stays)}; {self.done}"


def leaks(
    examples: Sequence[Example], sides: Sides, pixels: Pixels | None = None, *, rows: Any = None, by: By = "class"
) -> tuple[Sides, list[Leak]]:
    """Find pictures that lie on two sides, and end that.

    Of two such pictures the one nearer to training stays (train, validation, test, in that order), and the other one
    joins it there. So that classes stay whole, its whole class goes with it; where that would leave its side less than
    half of its pictures, or fewer than two classes, only the picture is left out, on no side. Categories are never
    torn apart, and what a catalogue has said (`Example.split`) is not overruled: there, too, the picture is left out.

    Args:
        examples: the pictures.
        sides: (n,) as `split` gives it.
        pixels: (m, h, w, c) uint8, the pictures at one size, to find near-duplicates (a memory map is read a block at a
            time); None looks for the same file only.
        rows: (n,) which row of `pixels` each picture is; by default they are in the same order.
        by: how they were split.

    Returns:
        The new sides, "" for a picture that was left out, and what was found. The work grows with the pictures on the
        two sides that judge times all pictures; memory with all pictures (3 kB each, 1 kB in grey).

    Raises:
        ShapeError: the lengths differ.
    """
    lengths = [len(sides)] + ([] if pixels is None else [len(pixels) if rows is None else len(rows)])
    if set(lengths) != {len(examples)}:
        raise ShapeError(f"sides and rows of pixels must be one for each of {len(examples)} pictures, got {lengths}")
    ranks = np.array([_rank(str(side)) for side in sides], dtype=np.int64)
    near = () if pixels is None else _near_pairs(thumbnails(pixels, rows), ranks)
    pairs = dict.fromkeys(near, "near-duplicate") | dict.fromkeys(_same_files(examples, ranks), "same file")
    return _Settlement(examples, np.asarray(sides), by).settle(sorted(pairs.items()))


def duplicates(pixels: Pixels, rows: Any = None) -> Numbers:
    """Which pictures are one, by their near-duplicates: (n,) int64, equal numbers for pictures that hang together.

    Args:
        pixels: (m, h, w, c) uint8, the pictures at one size; may be a memory map.
        rows: (n,) which of them; by default all.

    Returns:
        The position of the first picture of each group. The work grows with the square of the pictures.
    """
    small = thumbnails(pixels, rows)
    pairs = _near_pairs(small, np.ones(len(small), dtype=np.int64))
    return np.array(Groups(len(small)).firsts(pairs), dtype=np.int64)


def summary(found: Sequence[Leak]) -> list[str]:
    """A sentence for each kind of leak: how many, what was done, and the first of them."""
    sentences = []
    for kind in ("same file", "near-duplicate"):
        some = [leak for leak in found if leak.kind == kind]
        if some:
            done = Counter(leak.done for leak in some)
            what = "; ".join(f"{count} × {words}" for words, count in done.most_common(4))
            more = "; …" if len(done) > 4 else ""
            sentences.append(f"{len(some):,} on two sides, {kind}: {what}{more}. The first: {some[0]}")
    return sentences


def thumbnails(pixels: Pixels, rows: Any = None) -> Thumbnails:
    """Area-averaged thumbnails of pictures of one size: (n, h, w, c) uint8 → (n, 16, 16, c) float32 of 0 to 255.

    Args:
        pixels: the pictures; may be a memory map, of which a block at a time is read.
        rows: which of them, in which order; by default all.
    """
    chosen = np.arange(len(pixels)) if rows is None else np.asarray(rows, dtype=np.int64)
    _, height, width, channels = pixels.shape
    down, across = _averaging(height), _averaging(width)
    small = np.empty((len(chosen), THUMBNAIL, THUMBNAIL, channels), dtype=np.float32)
    step = max(1, BLOCK_CELLS // (height * width * channels))
    for start in range(0, len(chosen), step):
        block = pixels[chosen[start : start + step]].astype(np.float32)
        narrow = np.einsum("nhwc,sw->nhsc", block, across, optimize=True)
        small[start : start + step] = np.einsum("nhsc,th->ntsc", narrow, down, optimize=True)
    return small


def _averaging(length: int) -> Thumbnails:
    """(16, length) weights: the share that each pixel has in each cell; rows sum to 1."""
    edges = np.linspace(0, length, THUMBNAIL + 1)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights: Thumbnails = (np.clip(overlap, 0, None) * THUMBNAIL / length).astype(np.float32)
    return weights


def _near_pairs(small: Thumbnails, ranks: Numbers) -> Iterator[tuple[int, int]]:
    """Near-duplicates of which at least one judges, lower position first; of very many, those with training pictures.

    Args:
        small: (n, 16, 16, c) thumbnails.
        ranks: (n,) place of each picture's side in `SIDES`, or `len(SIDES)` for none.
    """
    flat = small.reshape(len(small), -1)
    shape = (small @ _grey(small.shape[3])).reshape(len(small), -1)
    shape -= shape.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(shape, axis=1, keepdims=True)
    shape /= np.where(spread < FLAT * THUMBNAIL, np.inf, spread)
    judges = np.flatnonzero((ranks > 0) & (ranks < len(SIDES)))
    step = max(1, BLOCK_CELLS // max(1, len(small)))
    for start in range(0, len(judges), step):
        block = judges[start : start + step]
        alike = shape[block] @ shape.T
        alike[np.arange(len(block)), block] = -1
        alike[:, ranks == len(SIDES)] = -1
        for line in np.flatnonzero(alike.max(axis=1) > CORRELATION):
            row, near = int(block[line]), np.flatnonzero(alike[line] > CORRELATION)
            near = near[np.argsort(ranks[near], kind="stable")[:_PARTNERS]]
            near = near[np.abs(flat[near] - flat[row]).mean(axis=1) < DIFFERENCE]
            yield from ((min(row, other), max(row, other)) for other in near.tolist())


def _grey(channels: int) -> Thumbnails:
    return np.array([0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels, dtype=np.float32)


def _same_files(examples: Sequence[Example], ranks: Numbers) -> Iterator[tuple[int, int]]:
    """Pairs of files of one content; only files of one length are read. Files that cannot be read have no content."""
    lengths: dict[int, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        try:
            lengths[os.stat(example.path).st_size].append(row)  # noqa: PTH116 - undecodable bytes stay
        except OSError:
            continue
    contents: dict[bytes, list[int]] = defaultdict(list)
    for rows in lengths.values():
        for row in rows if len(rows) > 1 else ():
            try:
                contents[hashlib.blake2b(read_bytes(examples[row].path)).digest()].append(row)
            except ImageError:
                continue
    for rows in contents.values():
        # One of many equal files, the one nearest to training, stands for them: what lies with it lies together.
        first = min(rows, key=lambda row: int(ranks[row]))
        yield from ((min(first, row), max(first, row)) for row in rows if row != first)


class _Settlement:
    """Moves pictures until no pair lies on two sides. Pictures only move towards training, or out, so it ends."""

    def __init__(self, examples: Sequence[Example], sides: Sides, by: By) -> None:
        self._paths = [example.path for example in examples]
        self._labels = _codes([example.label for example in examples])
        self._before = sides.astype("<U10")
        self._sides = self._before.copy()
        self._planned = Counter(self._before.tolist())
        self._given = any(example.split for example in examples)
        self._by = by
        self._done: dict[int, str] = {}

    def settle(self, pairs: Sequence[tuple[tuple[int, int], str]]) -> tuple[Sides, list[Leak]]:
        """Go through the pairs until nothing moves; then say what became of each."""
        found: dict[tuple[int, int], Leak] = {}
        moved = True
        while moved:
            moved = False
            for pair, kind in pairs:
                ends = sorted(pair, key=lambda row: _rank(str(self._sides[row])))
                if self._on_two_sides(self._sides, pair):
                    self._move(ends[1], str(self._sides[ends[0]]))
                    found[pair] = self._leak(ends, kind)
                    moved = True
        for pair, kind in pairs:
            # Its picture had gone with another one.
            if pair not in found and self._on_two_sides(self._before, pair):
                ends = sorted(pair, key=lambda row: row in self._done)
                found[pair] = self._leak(ends, kind)
        return self._sides, [found[pair] for pair, _ in pairs if pair in found]

    @staticmethod
    def _on_two_sides(sides: Sides, pair: tuple[int, int]) -> bool:
        one, other = (str(sides[row]) for row in pair)
        return bool(one and other and one != other)

    def _leak(self, ends: Sequence[int], kind: str) -> Leak:
        return Leak(self._paths[ends[0]], self._paths[ends[1]], kind, self._done[ends[1]])

    def _move(self, row: int, to: str) -> None:
        side = str(self._sides[row])
        own = np.flatnonzero((self._labels == self._labels[row]) & (self._sides == side))
        if self._given or self._by == "category":
            going = None
        elif self._by == "picture":
            going = np.array([row])
        else:
            going = own if self._can_spare(own, side) else None
        if going is None:
            self._sides[row] = ""
            self._done[row] = f"left out of {side}"
            return
        self._sides[going] = to
        what = "moved" if self._by == "picture" else f"its class of {len(going)} moved"
        self._done |= dict.fromkeys(going.tolist(), f"{what} from {side} to {to}")

    def _can_spare(self, rows: Numbers, side: str) -> bool:
        rest = self._sides == side
        rest[rows] = False
        return bool(2 * rest.sum() >= self._planned[side] and len(np.unique(self._labels[rest])) >= 2)


def _rank(side: str) -> int:
    return SIDES.index(side) if side in SIDES else len(SIDES)
