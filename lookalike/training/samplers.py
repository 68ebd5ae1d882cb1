"""Which pictures make a batch. Every batch is a function of (seed, step) alone, so a resumed run goes on exactly.

Samplers know labels, not pictures: the rows they give are positions in the labels they were made with. No PyTorch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import ConfigError, ShapeError

Rows = npt.NDArray[np.int64]

# What a random stream is for; part of its seed, so that no two streams of one step are the same.
_PASS, _PICTURES, _CATEGORY, _PAIRS = range(4)

__all__ = ["BalancedPairs", "ClassBalanced", "EveryPicture", "ExplicitTriplets", "WithinCategory"]


class ClassBalanced:
    """P classes × K pictures: the batch that nearly all of metric learning is trained with (Hermans et al. 2017).

    All classes come before any comes again: a pass is a random order of the classes, cut into batches. The last batch
    of a pass is filled up with classes from the beginning of the same pass, so no batch holds a class twice. The K
    pictures of a class are all different if it has so many, else drawn with repetition.

    Args:
        labels: (n,) of any one type; equal means alike.
        classes: P, classes in a batch.
        pictures: K, pictures of each class.
        seed: of everything drawn.
        makers: (n,) of any one type, or None: who made each picture. With it, the K pictures of every class in a batch
            are by the same K makers, in the same order, as far as a class has pictures by them; a maker is as likely as
            there are classes in the batch that it made pictures of.

    Attributes:
        size: pictures in a batch.
        batches: batches in a pass.
        skipped: how many classes have one picture only, and are left out.
        note: a sentence about them, or "".

    Raises:
        ConfigError: fewer than P classes with two pictures, or P or K too small to learn from.
    """

    def __init__(self, labels: Any, *, classes: int, pictures: int, seed: int, makers: Any = None) -> None:
        self._classes = _Classes(labels, makers)
        _check_sizes(self._classes, classes, pictures)
        self._seed = seed
        self._passes = _Passes(len(self._classes.usable), classes, seed)
        self._pictures = pictures
        self.size = classes * pictures
        self.batches = self._passes.batches
        self.skipped = self._classes.lonely
        self.note = self._classes.note("are in no batch")

    def batch(self, step: int) -> Rows:
        """(P * K,) rows of one batch, the pictures of a class side by side."""
        chosen = self._classes.usable[self._passes.batch(step)]
        return self._classes.pictures(chosen, self._pictures, np.random.default_rng([self._seed, _PICTURES, step]))


class EveryPicture:
    """Pictures in random order, each K times in its batch, to be augmented differently each time: labels need not be.

    The batch of learning without labels, where a picture is alike only with itself (Dosovitskiy et al. 2014; Chen et
    al. 2020, "SimCLR"), and of learning from a teacher, where K is 1. All pictures come before any comes again; the
    last batch of a pass is filled up from its beginning.

    Args:
        count: how many pictures there are.
        distinct: different pictures in a batch.
        copies: K.
        seed: of everything drawn.

    Attributes:
        size: pictures in a batch.
        batches: batches in a pass.

    Raises:
        ConfigError: fewer than `distinct` pictures.
    """

    def __init__(self, count: int, *, distinct: int, copies: int, seed: int) -> None:
        if distinct > count:
            raise ConfigError(
                [f"a batch of {distinct} different pictures, but there are {count}: lower sampler.classes to {count}"],
                "sampler",
            )
        self._passes = _Passes(count, distinct, seed)
        self._copies = copies
        self.size = distinct * copies
        self.batches = self._passes.batches

    def batch(self, step: int) -> Rows:
        """(distinct * copies,) rows of one batch, the copies of a picture side by side."""
        return np.repeat(self._passes.batch(step), self._copies)


class WithinCategory:
    """P classes × K pictures, most batches from one or two categories: what is hard to tell apart lies together.

    A share of the batches is drawn from `groups` categories; a category is as likely as it has classes, so that all
    classes are seen equally often. If these have fewer than P classes, all of them are taken and the batch is filled up
    from more categories, one at a time. The other batches are those of `ClassBalanced`.

    Args:
        labels: (n,) of any one type; equal means alike.
        categories: (n,) of any one type; a class belongs to the category of its first picture.
        classes: P.
        pictures: K.
        seed: of everything drawn.
        groups: categories in a batch, 1 or more.
        share: of the batches that are drawn from few categories, in [0, 1].
        makers: as for `ClassBalanced`.

    Attributes: as `ClassBalanced`.

    Raises:
        ConfigError: as `ClassBalanced`, or only one category.
    """

    def __init__(
        self,
        labels: Any,
        categories: Any,
        *,
        classes: int,
        pictures: int,
        seed: int,
        groups: int = 1,
        share: float = 0.7,
        makers: Any = None,
    ) -> None:
        self._all = ClassBalanced(labels, classes=classes, pictures=pictures, seed=seed, makers=makers)
        self.size, self.batches = self._all.size, self._all.batches
        self.skipped, self.note = self._all.skipped, self._all.note
        self._classes = _Classes(labels, makers)
        self._wanted, self._pictures, self._seed = classes, pictures, seed
        self._groups, self._share = groups, share
        kinds = _numbers(categories, len(self._classes.numbers), "categories")
        of_class = kinds[[members[0] for members in self._classes.members]][self._classes.usable]
        self._members = [self._classes.usable[of_class == kind] for kind in np.unique(of_class)]
        self._check()

    def _check(self) -> None:
        problems = []
        if len(self._members) < 2:
            problems.append(
                "batches within a category need pictures of at least 2 categories, got 1: give labels a category, or "
                'sample class by class (sampler.kind = "classes")'
            )
        if not 1 <= self._groups <= max(1, len(self._members)):
            problems.append(
                f"groups (sampler.categories) must be between 1 and the {len(self._members)} categories, "
                f"got {self._groups}"
            )
        if not 0 <= self._share <= 1:
            problems.append(f"share must be between 0 and 1, got {self._share}")
        if problems:
            raise ConfigError(problems, "sampler")

    def batch(self, step: int) -> Rows:
        """(P * K,) rows of one batch, the pictures of a class side by side."""
        dice = np.random.default_rng([self._seed, _CATEGORY, step])
        if dice.random() >= self._share:
            return self._all.batch(step)
        return self._classes.pictures(self._chosen(dice), self._pictures, dice)

    def _chosen(self, dice: np.random.Generator) -> Rows:
        sizes = np.array([len(members) for members in self._members])
        order = dice.choice(len(sizes), size=len(sizes), replace=False, p=sizes / sizes.sum())
        chosen = np.concatenate([self._members[kind] for kind in order[: self._groups]])
        for kind in order[self._groups :]:
            missing = self._wanted - len(chosen)
            if missing <= 0:
                break
            chosen = np.concatenate([chosen, dice.permutation(self._members[kind])[:missing]])
        return dice.permutation(chosen)[: self._wanted]


class BalancedPairs:
    """As many pairs of alike pictures as of different ones: batches for a Siamese network.

    A positive pair is two different pictures of a random class, a negative pair one picture each of two random classes,
    whatever the sizes of the classes. Explicit pairs are drawn instead where they are given, each as often as any other
    of its kind; of a kind they do not have, pairs are drawn by label.

    Args:
        labels: (n,) of any one type; equal means alike.
        pairs: how many in a batch, at least 2.
        seed: of everything drawn.
        explicit: (m, 3) int64, or None: left, right, and 1 for the same or 0 for different.

    Attributes: `size` (pairs in a batch), `batches` (in which each explicit pair, or each picture, comes about once),
        `skipped` and `note` as `ClassBalanced`.

    Raises:
        ConfigError: fewer than two classes, or none of two pictures.
    """

    def __init__(self, labels: Any, *, pairs: int, seed: int, explicit: Rows | None = None) -> None:
        self._classes = _Classes(labels)
        if pairs < 2:
            raise ConfigError([f"pairs must be at least 2, one alike and one different, got {pairs}"], "sampler")
        if len(self._classes.members) < 2 or not len(self._classes.usable):
            raise ConfigError(
                [
                    f"pairs need at least 2 classes, one of them with 2 pictures; got "
                    f"{len(self._classes.members)} classes, {len(self._classes.usable)} of them with 2 or more"
                ],
                "sampler",
            )
        self.size, self._seed = pairs, seed
        table = np.empty((0, 3), dtype=np.int64) if explicit is None else np.asarray(explicit, dtype=np.int64)
        self._explicit = {same: table[table[:, 2] == same, :2] for same in (0, 1)}
        self.batches = -(-(len(table) or len(self._classes.numbers)) // pairs)
        self.skipped = self._classes.lonely
        self.note = self._classes.note("are in no pair of alike pictures")

    def batch(self, step: int) -> tuple[Rows, Rows, npt.NDArray[np.bool_]]:
        """(pairs,) left rows, right rows, and whether they are alike: the alike ones, half of them, come first."""
        dice = np.random.default_rng([self._seed, _PAIRS, step])
        positive = self.size // 2
        ends = np.concatenate([self._draw(1, positive, dice), self._draw(0, self.size - positive, dice)])
        return ends[:, 0], ends[:, 1], np.arange(self.size) < positive

    def _draw(self, same: int, count: int, dice: np.random.Generator) -> Rows:
        table = self._explicit[same]
        if len(table):
            return table[_draw(len(table), count, dice)]
        draw = self._positive if same else self._negative
        return np.array([draw(dice) for _ in range(count)], dtype=np.int64).reshape(-1, 2)

    def _positive(self, dice: np.random.Generator) -> list[int]:
        members = self._classes.members[self._classes.usable[dice.integers(len(self._classes.usable))]]
        return [int(members[i]) for i in _two(len(members), dice)]

    def _negative(self, dice: np.random.Generator) -> list[int]:
        both = [self._classes.members[number] for number in _two(len(self._classes.members), dice)]
        return [int(members[dice.integers(len(members))]) for members in both]


class ExplicitTriplets:
    """Triplets from a list, each once per pass.

    Args:
        triplets: (m, 3) int64: anchor, positive, negative.
        count: how many in a batch.
        seed: of the order.

    Attributes:
        size: triplets in a batch.
        batches: batches in a pass.

    Raises:
        ConfigError: fewer triplets than a batch wants.
    """

    def __init__(self, triplets: Any, *, count: int, seed: int) -> None:
        self._triplets = np.asarray(triplets, dtype=np.int64).reshape(-1, 3)
        if not 1 <= count <= len(self._triplets):
            raise ConfigError(
                [
                    f"a batch of {count} triplets from a list of {len(self._triplets)}: take between 1 and that many "
                    "(sampler.pairs)"
                ],
                "sampler",
            )
        self._passes = _Passes(len(self._triplets), count, seed)
        self.size, self.batches = count, self._passes.batches

    def batch(self, step: int) -> tuple[Rows, tuple[Rows, Rows, Rows]]:
        """(u,) rows, each picture once, and anchors, positives and negatives as positions in them."""
        chosen = self._triplets[self._passes.batch(step)]
        rows, places = np.unique(chosen, return_inverse=True)
        anchor, positive, negative = places.reshape(chosen.shape).astype(np.int64).T
        return rows, (anchor, positive, negative)


def _check_sizes(labels: _Classes, classes: int, pictures: int) -> None:
    problems = []
    if pictures < 2:
        problems.append(f"pictures must be at least 2, or a class has nothing to agree on; got {pictures}")
    if classes < 2:
        problems.append(f"classes must be at least 2, or there is nothing to tell apart; got {classes}")
    usable = len(labels.usable)
    if classes > usable:
        problems.append(
            f"a batch of {classes} classes, but only {usable} of {len(labels.members)} have at least 2 pictures: "
            f"lower sampler.classes to at most {usable}"
        )
    if problems:
        raise ConfigError(problems, "sampler")


class _Classes:
    """Labels as classes: `members` holds the rows of each, `usable` the numbers of those with two rows or more."""

    def __init__(self, labels: Any, makers: Any = None) -> None:
        self.makers = None if makers is None else _numbers(makers, len(labels), "makers")
        self.numbers = _numbers(labels, len(labels), "labels")
        order = np.argsort(self.numbers, kind="stable")
        sizes = np.bincount(self.numbers)
        self.members: list[Rows] = np.split(order, np.cumsum(sizes)[:-1]) if len(sizes) else []
        self.usable: Rows = np.flatnonzero(sizes > 1)
        self.lonely = int((sizes == 1).sum())

    def note(self, consequence: str) -> str:
        """A sentence about classes of one picture, or ""."""
        if not self.lonely:
            return ""
        return f"{self.lonely:,} of {len(self.members):,} classes have one picture, and {consequence}"

    def pictures(self, chosen: Sequence[int] | Rows, count: int, dice: np.random.Generator) -> Rows:
        """`count` rows of each of the chosen classes; with makers, the k-th row of each by the same one if possible."""
        members = [self.members[number] for number in chosen]
        if self.makers is None:
            return np.concatenate([rows[_draw(len(rows), count, dice)] for rows in members])
        made = np.bincount(np.concatenate([np.unique(self.makers[rows]) for rows in members]))
        known = min(count, int(np.count_nonzero(made)))
        drawn = dice.choice(len(made), size=known, replace=False, p=made / made.sum())
        return np.concatenate([self._by(drawn, dice.permutation(rows), count) for rows in members])

    def _by(self, drawn: Rows, rows: Rows, count: int) -> Rows:
        """`count` of the shuffled rows, the k-th by the k-th maker drawn; where there is none by it, any other."""
        assert self.makers is not None
        names = self.makers[rows]
        first = [int(found[0]) if len(found := np.flatnonzero(names == maker)) else -1 for maker in drawn]
        first += [-1] * (count - len(first))
        others = [place for place in range(len(rows)) if place not in first]
        others += list(range(len(rows))) * count  # only a class of fewer than `count` pictures gets there
        return rows[[place if place >= 0 else others.pop(0) for place in first]]


def _numbers(values: Any, count: int, what: str) -> Rows:
    array = np.asarray(values)
    if array.shape != (count,):
        raise ShapeError(f"{what} must have shape ({count},), one for each picture, got {array.shape}")
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def _draw(available: int, count: int, dice: np.random.Generator) -> Rows:
    """`count` of the numbers below `available`, all different if there are so many."""
    if count > available:
        return dice.integers(available, size=count)
    if 4 * count > available:
        return dice.permutation(available)[:count]
    return dice.choice(available, size=count, replace=False)


def _two(available: int, dice: np.random.Generator) -> tuple[int, int]:
    """Two different numbers below `available`, all pairs equally likely."""
    first, second = int(dice.integers(available)), int(dice.integers(available - 1))
    return first, second + (second >= first)


class _Passes:
    """`count` things in random order, pass after pass, cut into batches of `size` different ones.

    The last batch of a pass is filled up from its beginning.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self._count, self._size, self._seed = count, size, seed
        self.batches = -(-count // size)
        self._remembered: tuple[int, Rows] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int) -> Rows:
        number, place = divmod(step, self.batches)
        remembered, order = self._remembered
        if remembered != number:
            order = np.random.default_rng([self._seed, _PASS, number]).permutation(self._count).astype(np.int64)
            self._remembered = number, order
        return order[np.arange(place * self._size, (place + 1) * self._size) % self._count]
