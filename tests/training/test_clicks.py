"""Learning from clicks: a taste is learned, guesses are not, and the bundle does what was learned."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lookalike.catalogue import rows
from lookalike.encoder import Encoder
from lookalike.errors import FeedbackError, TrainingError
from lookalike.feedback import Feedback, Query, feedback_path
from lookalike.index import open_index
from lookalike.index.base import Hit
from lookalike.indexing import update_index
from lookalike.search import Searcher
from lookalike.training.adopt import adopt, gathered
from lookalike.training.clicks import FEWEST, FOLDS, Impression, _folds, bend, learn, triplet_shares
from lookalike.vectors import unit


def shown_lists(vectors: np.ndarray, taste: np.ndarray | None, count: int, seed: int) -> list[Impression]:
    """Twelve drawn answers to each question; taken is what is near by `taste`, or anything."""
    dice = np.random.default_rng(seed)
    found = []
    for question in range(count):
        shown = dice.choice(np.setdiff1d(np.arange(len(vectors)), [question]), 12, replace=False)
        likes = dice.random(12) < 0.4 if taste is None else vectors[shown] @ taste @ vectors[question] > 0.1
        found.append(Impression(question, tuple(shown[likes].tolist()), tuple(shown[~likes].tolist())))
    return found


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32))


def test_shares_are_those_of_a_naive_loop(vectors: np.ndarray) -> None:
    """Every pair by itself; a tie is wrong."""
    lists = [shown for shown in shown_lists(vectors, None, 40, 1) if shown.useful]
    wanted = []
    for shown in lists:
        pairs = itertools.product(shown.taken, shown.passed)
        cosine = vectors @ vectors[shown.question]
        wanted.append(np.mean([cosine[taken] > cosine[passed] for taken, passed in pairs]))
    np.testing.assert_allclose(triplet_shares(vectors, lists), wanted)
    assert triplet_shares(np.ones_like(vectors), lists).max() == 0


def test_a_taste_is_learned(vectors: np.ndarray) -> None:
    """Users who look at four of sixteen directions only teach just that."""
    taste = np.diag([4.0] * 4 + [0.0] * 12)

    told = learn(vectors, shown_lists(vectors, taste, 250, 0))

    assert told.better
    assert told.gain.mean > 0.1
    weight = np.linalg.norm(told.matrix, axis=1)
    assert weight[:4].min() > weight[4:].max()
    assert "better than before by +" in str(told)


@pytest.mark.slow
def test_guesses_teach_nothing(vectors: np.ndarray) -> None:
    """Crowds that click at random do not get their way (by chance one in forty would)."""
    refused = [not learn(vectors, shown_lists(vectors, None, 80, seed), seed=seed).better for seed in range(2)]
    assert all(refused)


def test_a_question_is_on_one_side_only() -> None:
    """Equal questions share a fold, and folds are as large as can be."""
    names = [f"q{n % 31}" for n in range(200)]
    fold = _folds(names, 0)
    assert all(len({at for at, name in zip(fold, names, strict=True) if name == one}) == 1 for one in set(names))
    assert set(fold) == set(range(FOLDS))


def test_too_few_clicks_are_refused(vectors: np.ndarray) -> None:
    """Also where there are many searches, but of few questions."""
    few = shown_lists(vectors, None, FEWEST - 1, 0)
    with pytest.raises(TrainingError, match="at least 50 are needed"):
        learn(vectors, few * 3)


def test_a_bent_bundle_gives_the_vectors_times_the_matrix(tiny: Encoder, photographs, tmp_path: Path) -> None:
    """Once, twice, and by the identity."""
    dice = np.random.default_rng(0)
    plain = Encoder(tiny.bundle, precision="fp32").images(photographs)
    matrix = (np.eye(tiny.dim) + 0.3 * dice.normal(size=(tiny.dim, tiny.dim))).astype(np.float32)
    report = {"gain": {"mean": 0.1, "low": 0.05, "high": 0.15, "count": 60}}

    once = bend(tiny.bundle, matrix, tmp_path / "once.bundle", report=report, thresholds={"duplicate": 0.9})
    twice = bend(once, np.linalg.inv(matrix), tmp_path / "twice.bundle", report=report)

    found = Encoder(once, precision="fp32").images(photographs)
    np.testing.assert_allclose(found, unit(plain @ matrix), atol=1e-5)
    np.testing.assert_allclose(Encoder(twice, precision="fp32").images(photographs), plain, atol=1e-4)
    assert once.manifest["thresholds"] == {"duplicate": 0.9}
    assert once.fingerprint != tiny.fingerprint
    assert once.manifest["recipe"]["clicks_on"]["fingerprint"] == tiny.fingerprint


@pytest.fixture
def shop(tiny: Encoder, make_pictures, tmp_path: Path) -> Path:
    """An index of eighty pictures."""
    folder = make_pictures(*(f"all/{n}.png" for n in range(80)))
    place = tmp_path / "shop.index"
    meta = {"encoder": tiny.describe()}
    with closing(open_index(place, dim=tiny.dim, meta=meta)) as index:
        update_index(index, tiny, rows([folder]))
    return place


def searched(place: Path, encoder: Encoder, taste: np.ndarray) -> None:
    """Everybody asks with every picture, and clicks what is near by a taste."""
    with closing(open_index(place)) as index, Feedback(feedback_path(place)) as store:
        keys = sorted(item.key for item in index.scan())
        vectors = np.stack([item.vector for item in index.get(keys)])
        searcher = Searcher(encoder, index)
        for row, key in enumerate(keys):
            hits = [hit for hit in searcher.by_key(key, k=13) if hit.key != key]
            number = store.record(Query(key=key), hits)
            nearest = [vectors[keys.index(hit.key)] @ taste @ vectors[row] for hit in hits]
            for place_, hit in enumerate(hits):
                if nearest[place_] > np.median(nearest):
                    store.click(number, hit.key)
                else:
                    store.judge(number, hit.key, alike=False)


def test_what_is_better_is_adopted(shop: Path, tiny: Encoder, tmp_path: Path) -> None:
    """Clicks with a reason give a bundle and a rebuilt index; the one from before stays, and so do the clicks."""
    sample = np.stack([item.vector for item in _items(shop)])
    values, axes = np.linalg.eigh(np.cov(sample.T))
    taste = axes[:, -3:] @ np.diag(1 / values[-3:]) @ axes[:, -3:].T  # three directions, made to count alike
    searched(shop, tiny, taste)

    done = adopt(shop, tmp_path / "new.bundle")

    assert done.learned.better
    assert done.rebuilt is not None
    assert done.rebuilt.added == 80
    with closing(open_index(shop, read_only=True)) as index:
        assert index.meta["encoder"]["fingerprint"] == done.bundle.fingerprint
    assert {item.key for item in _items(done.before)} == {item.key for item in _items(shop)}
    assert feedback_path(shop).exists()


def test_what_is_no_better_changes_no_index(shop: Path, tiny: Encoder, tmp_path: Path) -> None:
    """Clicks without a reason leave the index alone; the bundle is there to look at."""
    dice = np.random.default_rng(0)
    with closing(open_index(shop)) as index, Feedback(feedback_path(shop)) as store:
        keys = sorted(item.key for item in index.scan())
        for key in keys:
            shown = [
                Hit(other, 0.5) for other in dice.choice([k for k in keys if k != key], 10, replace=False).tolist()
            ]
            number = store.record(Query(key=key), shown)
            for hit in shown:
                if dice.random() < 0.4:
                    store.click(number, hit.key)

    done = adopt(shop, tmp_path / "new.bundle")

    assert not done.learned.better
    assert done.rebuilt is None
    with closing(open_index(shop, read_only=True)) as index:
        assert index.meta["encoder"]["fingerprint"] == tiny.fingerprint


def test_what_stood_below_the_last_click_was_not_seen(shop: Path, tiny: Encoder) -> None:
    """Passed over is what stood above the last click, the one after it, and what was judged not alike."""
    keys = sorted(item.key for item in _items(shop))
    with closing(open_index(shop, read_only=True)) as index, Feedback(feedback_path(shop)) as store:
        number = store.record(Query(key=keys[0]), [Hit(key, 0.5) for key in keys[1:9]])
        store.click(number, keys[3])
        store.judge(number, keys[8], alike=False)
        store.record(Query(key=keys[1]), [Hit(key, 0.5) for key in keys[2:9]])  # nobody clicked
        gone = store.record(Query(key="/nowhere.png"), [Hit(keys[0], 0.5)])
        store.click(gone, keys[0])

        vectors, impressions, groups, notes = gathered(store, index, tiny)
        stored = {key: item.vector for key, item in zip(keys, index.get(keys), strict=True)}

    [shown] = impressions
    names = {row: key for row, vector in enumerate(vectors) for key in keys if np.array_equal(vector, stored[key])}
    assert names[shown.question] == keys[0]
    assert [names[row] for row in shown.taken] == [keys[3]]
    assert [names[row] for row in shown.passed] == [keys[1], keys[2], keys[4], keys[8]]
    assert groups == [f"key {keys[0]}"]
    assert notes == ("1 searches left out: what they asked with is gone or cannot be read",)


def test_without_a_record_there_is_nothing_to_learn_from(shop: Path, tmp_path: Path) -> None:
    """The message says how to record."""
    with pytest.raises(FeedbackError, match="--record"):
        adopt(shop, tmp_path / "new.bundle")


def _items(place: Path | None) -> list:
    assert place is not None
    with closing(open_index(place, read_only=True)) as index:
        return list(index.scan(vectors=True))
