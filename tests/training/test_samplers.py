"""Batches: what is in them, how often, and that they follow from seed and step alone."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from lookalike.errors import ConfigError, ShapeError
from lookalike.training.samplers import BalancedPairs, ClassBalanced, EveryPicture, ExplicitTriplets, WithinCategory

# Twelve classes of 3 to 8 pictures, then two of one; rows mixed.
SIZES = [3 + n % 6 for n in range(12)] + [1, 1]
LABELS = np.random.default_rng(0).permutation(np.repeat([f"c{n:02}" for n in range(14)], SIZES))
CATEGORIES = np.array([f"k{int(label[1:]) // 3}" for label in LABELS])
MAKERS = np.random.default_rng(2).integers(0, 4, len(LABELS))
TRIPLETS = np.random.default_rng(1).integers(0, 30, (25, 3))


def samplers(seed):
    return [
        ClassBalanced(LABELS, classes=4, pictures=3, seed=seed),
        WithinCategory(LABELS, CATEGORIES, classes=4, pictures=3, groups=2, seed=seed),
        BalancedPairs(LABELS, pairs=9, seed=seed),
        BalancedPairs(LABELS, pairs=9, seed=seed, explicit=np.array([[0, 1, 1], [0, 2, 1], [3, 4, 0]])),
        ExplicitTriplets(TRIPLETS, count=10, seed=seed),
        EveryPicture(23, distinct=5, copies=2, seed=seed),
        WithinCategory(LABELS, CATEGORIES, classes=4, pictures=3, groups=2, seed=seed, makers=MAKERS),
    ]


def flat(batch):
    return np.concatenate([np.ravel(part) for part in (batch if isinstance(batch, tuple) else (batch,))], axis=None)


@pytest.mark.parametrize("kind", range(7))
def test_a_batch_follows_from_seed_and_step(kind):
    """Another sampler of the same seed gives the same batch of any step, in any order; other seeds and steps differ."""
    steps = [0, 1, 2, 17, 1000]
    one = [flat(samplers(5)[kind].batch(step)).tolist() for step in steps]
    shared = samplers(5)[kind]
    again = [flat(shared.batch(step)).tolist() for step in reversed(steps)][::-1]
    other = [flat(samplers(6)[kind].batch(step)).tolist() for step in steps]

    assert one == again
    assert one != other
    assert len({tuple(batch) for batch in one}) == len(steps)


# ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("classes", [3, 4, 5, 12])
def test_a_pass_shows_every_class_before_any_comes_again(classes):
    """P different classes, K pictures of each side by side; all classes within the pass, lonely ones never."""
    sampler = ClassBalanced(LABELS, classes=classes, pictures=3, seed=1)
    for start in range(0, 5 * sampler.batches, sampler.batches):
        seen = []
        for step in range(start, start + sampler.batches):
            blocks = LABELS[sampler.batch(step)].reshape(classes, 3)
            assert (blocks == blocks[:, :1]).all()
            assert len(set(blocks[:, 0])) == classes
            seen += blocks[:, 0].tolist()
        assert len(set(seen[:12])) == 12 and "c12" not in seen
    assert sampler.size == 3 * classes and sampler.batches == -(-12 // classes)


def test_pictures_of_a_class_are_different_if_there_are_so_many():
    """K pictures without repetition, or all of them with repetition where a class has fewer."""
    sampler = ClassBalanced(LABELS, classes=6, pictures=5, seed=1)
    for step in range(20):
        for block in sampler.batch(step).reshape(6, 5):
            size = SIZES[int(LABELS[block[0]][1:])]
            assert len(set(block)) == 5 if size >= 5 else len(set(block)) <= size


def test_all_pictures_are_equally_likely():
    """Over many passes each picture of a class comes as often as any other, within what chance allows."""
    labels = np.repeat([0, 1, 2], [4, 7, 40])
    sampler = ClassBalanced(labels, classes=3, pictures=4, seed=3)
    counts = np.bincount(np.concatenate([sampler.batch(step) for step in range(2000)]), minlength=51)

    for number, size in enumerate((4, 7, 40)):
        share = 4 / size
        spread = np.sqrt(2000 * share * (1 - share))
        assert np.abs(counts[labels == number] - 2000 * share).max() <= 5 * spread


def test_the_same_makers_in_the_same_order():
    """Where every maker drew every class, the k-th picture of all classes is by one maker; all makers come."""
    labels, makers = np.repeat(np.arange(6), 5), np.tile(np.array(list("abcde")), 6)
    shuffled = np.random.default_rng(3).permutation(30)
    labels, makers = labels[shuffled], makers[shuffled]
    sampler, seen = ClassBalanced(labels, classes=4, pictures=3, seed=0, makers=makers), Counter()
    for step in range(200):
        rows = sampler.batch(step)
        drawn = makers[rows].reshape(4, 3)
        assert (drawn == drawn[0]).all() and len(set(drawn[0])) == 3
        assert (labels[rows].reshape(4, 3) == labels[rows].reshape(4, 3)[:, :1]).all()
        seen.update(drawn[0])
    assert set(seen) == set("abcde") and all(100 < times < 140 for times in seen.values())


@pytest.mark.parametrize("pictures", [2, 3, 7])
def test_makers_who_did_not_draw_everything(pictures):
    """A class without a picture by the maker drawn gives another of its own, never one picture twice if it has enough;
    all its pictures come.
    """
    sampler, seen = ClassBalanced(LABELS, classes=4, pictures=pictures, seed=0, makers=MAKERS), set()
    for step in range(300):
        rows = sampler.batch(step).reshape(4, pictures)
        for block in rows:
            assert len(set(LABELS[block])) == 1
            assert len(set(block)) == min(pictures, Counter(LABELS)[LABELS[block[0]]])
        seen.update(rows.ravel().tolist())
    assert len(seen) == sum(SIZES) - 2


def test_lonely_classes_are_said():
    """Classes of one picture are counted and named in a note."""
    sampler = ClassBalanced(LABELS, classes=3, pictures=2, seed=0)

    assert sampler.skipped == 2
    assert sampler.note == "2 of 14 classes have one picture, and are in no batch"
    assert ClassBalanced([0, 0, 1, 1], classes=2, pictures=2, seed=0).note == ""


def test_impossible_batches():
    """More classes than there are, and batches without pairs: every problem with its figures."""
    with pytest.raises(
        ConfigError, match=r"only 12 of 14 have at least 2 pictures: lower sampler\.classes to at most 12"
    ):
        ClassBalanced(LABELS, classes=16, pictures=4, seed=0)
    with pytest.raises(ConfigError) as caught:
        ClassBalanced(LABELS, classes=1, pictures=1, seed=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(ShapeError, match="labels must have shape"):
        ClassBalanced(np.zeros((2, 2)), classes=2, pictures=2, seed=0)


# ── categories ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("groups", [1, 2])
def test_batches_lie_within_few_categories(groups):
    """With share 1, as many classes as fit come from `groups` categories; a category too small is filled up."""
    sampler = WithinCategory(LABELS, CATEGORIES, classes=5, pictures=2, groups=groups, share=1.0, seed=2)
    # Categories hold three usable classes each, so five classes are two whole ones less one.
    for step in range(50):
        rows = sampler.batch(step).reshape(5, 2)
        kinds = Counter(CATEGORIES[rows[:, 0]])
        assert len(set(LABELS[rows[:, 0]])) == 5 and (LABELS[rows[:, 0]] == LABELS[rows[:, 1]]).all()
        assert sorted(kinds.values()) == [2, 3]


def test_one_category_where_it_is_large_enough():
    """A batch that fits into one category stays in it."""
    sampler = WithinCategory(LABELS, CATEGORIES, classes=3, pictures=2, share=1.0, seed=2)

    assert all(len(set(CATEGORIES[sampler.batch(step)])) == 1 for step in range(50))


def test_the_share_of_batches_within_categories():
    """The other batches are those of `ClassBalanced`, in the wanted proportion."""
    labels, plain = (
        np.repeat(np.arange(100), 2),
        ClassBalanced(np.repeat(np.arange(100), 2), classes=5, pictures=2, seed=4),
    )
    sampler = WithinCategory(labels, labels // 10, classes=5, pictures=2, share=0.7, seed=4)
    within = 0
    for step in range(1000):
        rows = sampler.batch(step)
        inside = len(set(labels[rows] // 10)) == 1
        within += inside
        assert inside or (rows == plain.batch(step)).all()

    assert 700 - 5 * 15 < within < 700 + 5 * 15


def test_classes_are_seen_equally_often_across_categories():
    """A category is drawn as often as it has classes, so no class gains by lying in a small one."""
    labels = np.repeat(np.arange(30), 2)
    categories = np.where(labels < 20, "large", "small")
    sampler = WithinCategory(labels, categories, classes=5, pictures=2, share=1.0, seed=0)
    counts = np.bincount(np.concatenate([labels[sampler.batch(step)[::2]] for step in range(3000)]))

    # 3000 × 5 / 30 per class; the spread of a category's draws comes on top of that of the class.
    assert np.abs(counts - 500).max() < 120
    assert counts[:20].mean() == pytest.approx(counts[20:].mean(), rel=0.15)


def test_impossible_categories():
    """One category, more groups than there are, a share beyond 1."""
    with pytest.raises(ConfigError, match="at least 2 categories, got 1"):
        WithinCategory(LABELS, np.zeros(len(LABELS)), classes=4, pictures=2, seed=0)
    with pytest.raises(ConfigError) as caught:
        WithinCategory(LABELS, CATEGORIES, classes=4, pictures=2, groups=9, share=1.5, seed=0)
    assert caught.value.problems == [
        "groups (sampler.categories) must be between 1 and the 4 categories, got 9",
        "share must be between 0 and 1, got 1.5",
    ]
    with pytest.raises(ShapeError, match="categories must have shape"):
        WithinCategory(LABELS, [1, 2], classes=4, pictures=2, seed=0)


# ── pairs and triplets ───────────────────────────────────────────────────────────────────────────────────────────────


def test_pairs_are_balanced_and_right():
    """Half are two different pictures of a class, half are of different classes; one picture never meets itself."""
    sampler = BalancedPairs(LABELS, pairs=10, seed=0)
    for step in range(50):
        left, right, same = sampler.batch(step)
        assert same.sum() == 5 and same.dtype == np.bool_
        assert ((LABELS[left] == LABELS[right]) == same).all()
        assert (left != right).all()
    assert sampler.size == 10 and sampler.batches == 7
    assert sampler.note == "2 of 14 classes have one picture, and are in no pair of alike pictures"


def test_classes_are_equally_likely_in_pairs():
    """Whatever their sizes; all pairs of classes come as negatives, lonely classes among them."""
    labels = np.repeat([0, 1, 2], [50, 5, 1])
    sampler = BalancedPairs(labels, pairs=8, seed=0)
    batches = [sampler.batch(step) for step in range(500)]
    left, right, same = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    positive = np.bincount(labels[left[same]], minlength=3)
    negative = Counter(tuple(sorted(pair)) for pair in zip(labels[left[~same]], labels[right[~same]], strict=True))

    assert positive[2] == 0 and positive[0] == pytest.approx(1000, abs=5 * np.sqrt(500))
    assert set(negative) == set(combinations(range(3), 2))
    assert all(count == pytest.approx(2000 / 3, abs=5 * np.sqrt(2000 * 2 / 9)) for count in negative.values())


def test_explicit_pairs_are_resampled_to_balance():
    """One positive among many negatives makes half of every batch; a kind without pairs is drawn by label."""
    explicit = np.array([[0, 1, 1]] + [[i, i + 1, 0] for i in range(2, 40)])
    left, right, same = BalancedPairs(LABELS, pairs=12, seed=0, explicit=explicit).batch(3)

    assert set(zip(left[same], right[same], strict=True)) == {(0, 1)} and same.sum() == 6
    assert len(set(left[~same])) == 6 and (right[~same] == left[~same] + 1).all()
    left, right, same = BalancedPairs(LABELS, pairs=12, seed=0, explicit=explicit[:1]).batch(3)
    assert (LABELS[left[~same]] != LABELS[right[~same]]).all()


def test_impossible_pairs():
    """One class, or classes of one picture, make no pairs."""
    with pytest.raises(ConfigError, match="got 1 classes, 1 of them with 2 or more"):
        BalancedPairs([0, 0], pairs=4, seed=0)
    with pytest.raises(ConfigError, match="got 2 classes, 0 of them"):
        BalancedPairs([0, 1], pairs=4, seed=0)
    with pytest.raises(ConfigError, match="pairs must be at least 2"):
        BalancedPairs(LABELS, pairs=1, seed=0)


def test_explicit_triplets_come_once_per_pass():
    """Rows are the pictures of the batch, each once; the three index arrays lead back to the listed triplets."""
    triplets = np.random.default_rng(0).permutation(99).reshape(33, 3)
    sampler = ExplicitTriplets(triplets, count=10, seed=0)
    for start in (0, 4):
        found = []
        for step in range(start, start + 4):
            rows, (anchor, positive, negative) = sampler.batch(step)
            assert len(set(rows)) == len(rows) == 30 and anchor.dtype == np.int64
            found += np.stack([rows[anchor], rows[positive], rows[negative]], axis=1).tolist()
        assert len(found) == 40 and {tuple(t) for t in found[:33]} == {tuple(t) for t in triplets.tolist()}
    with pytest.raises(ConfigError, match="a batch of 34 triplets from a list of 33"):
        ExplicitTriplets(triplets, count=34, seed=0)


def test_every_picture_comes_once_in_a_pass_and_as_often_in_its_batch():
    """23 pictures, 5 at a time, twice each: five batches, the last one filled up; copies side by side."""
    sampler = EveryPicture(23, distinct=5, copies=2, seed=1)
    assert (sampler.size, sampler.batches) == (10, 5)
    batches = [sampler.batch(step) for step in range(5)]
    assert all(batch.shape == (10,) and (batch[::2] == batch[1::2]).all() for batch in batches)
    seen = np.concatenate([batch[::2] for batch in batches])
    assert sorted(seen[:23].tolist()) == list(range(23))
    assert all(len(set(batch[::2].tolist())) == 5 for batch in batches)
    with pytest.raises(ConfigError, match=r"lower sampler\.classes to 3"):
        EveryPicture(3, distinct=5, copies=1, seed=0)
