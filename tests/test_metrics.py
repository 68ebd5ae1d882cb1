"""Metrics against loops written from the definitions, and against encoders whose score is known."""

from __future__ import annotations

import numpy as np
import pytest

from lookalike import metrics
from lookalike.errors import ShapeError
from lookalike.metrics import (
    average_precision,
    average_precision_at_r,
    few_shot,
    mean_interval,
    ndcg_at_k,
    one_shot,
    paired_interval,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    triplet_accuracy,
)


def ranking(vectors, labels, groups, query):
    """Relevance of the gallery of one query, nearest first, irrelevant first among equals: the slow, obvious way."""
    gallery = []
    for other in range(len(vectors)):
        if other == query or (groups is not None and groups[other] == groups[query]):
            continue
        score = float(np.dot(vectors[query].astype(np.float64), vectors[other].astype(np.float64)))
        gallery.append((-round(score, 5), labels[other] == labels[query]))
    return [relevant for _, relevant in sorted(gallery)]


def naive(vectors, labels, groups=None, k=3):
    """The measures for every query, by counting."""
    answer = {"recall": [], "precision": [], "map": [], "mrr": [], "ap": [], "ndcg": []}
    for query in range(len(vectors)):
        ranked = ranking(vectors, labels, groups, query)
        total = sum(ranked)
        if total == 0:
            for values in answer.values():
                values.append(float("nan"))
            continue
        answer["recall"].append(1.0 if any(ranked[:k]) else 0.0)
        answer["precision"].append(sum(ranked[:k]) / k)
        summed = 0.0
        for rank in range(1, total + 1):
            if rank <= len(ranked) and ranked[rank - 1]:
                summed += sum(ranked[:rank]) / rank
        answer["map"].append(summed / total)
        answer["mrr"].append(1 / (1 + ranked.index(True)))
        answer["ap"].append(sum(sum(ranked[:r]) / r for r in range(1, len(ranked) + 1) if ranked[r - 1]) / total)
        gain = sum(1 / np.log2(1 + r) for r in range(1, k + 1) if r <= len(ranked) and ranked[r - 1])
        answer["ndcg"].append(gain / sum(1 / np.log2(1 + r) for r in range(1, min(k, total) + 1)))
    return answer


def measured(vectors, labels, groups=None, k=3):
    return {
        "recall": recall_at_k(vectors, labels, k, groups),
        "precision": precision_at_k(vectors, labels, k, groups),
        "map": average_precision_at_r(vectors, labels, groups),
        "mrr": reciprocal_rank(vectors, labels, groups),
        "ap": average_precision(vectors, labels, groups),
        "ndcg": ndcg_at_k(vectors, labels, k, groups),
    }


def unit_rows(dice, n, dim):
    # A grid of few values, so that there are many true ties.
    rows = dice.integers(-1, 2, size=(n, dim)).astype(np.float32)
    rows[:, 0] = 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_equal_to_counting(seed, grouped, k):
    dice = np.random.default_rng(seed)
    vectors, labels = unit_rows(dice, 50, 5), dice.integers(0, 9, 50)
    groups = dice.integers(0, 20, 50) if grouped else None
    expected, got = naive(vectors, labels, groups, k), measured(vectors, labels, groups, k)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=1e-12, err_msg=name)


def test_blocks_do_not_matter(monkeypatch):
    dice = np.random.default_rng(3)
    vectors, labels = unit_rows(dice, 40, 6), dice.integers(0, 5, 40)
    whole = average_precision_at_r(vectors, labels)
    monkeypatch.setattr(metrics, "BLOCK_CELLS", 90)
    np.testing.assert_allclose(average_precision_at_r(vectors, labels), whole)


def test_a_perfect_encoder_scores_one():
    labels = np.repeat(np.arange(6), 4)
    for values in measured(np.eye(6, dtype=np.float32)[labels], labels, k=3).values():
        assert values.tolist() == [1.0] * 24


def test_a_constant_encoder_scores_nothing():
    labels = np.repeat(["a", "b", "c"], 20)
    constant = np.tile(np.random.default_rng(0).normal(size=64).astype(np.float32), (60, 1))
    assert recall_at_k(constant, labels, 10).max() == 0
    assert precision_at_k(constant, labels, 10).max() == 0
    assert average_precision_at_r(constant, labels).max() == 0
    assert ndcg_at_k(constant, labels, 10).max() == 0
    np.testing.assert_allclose(average_precision(constant, labels), np.mean(np.arange(1, 20) / np.arange(41, 60)))
    np.testing.assert_allclose(reciprocal_rank(constant, labels), 1 / 41)


def test_a_nearly_constant_encoder_gains_nothing_from_rounding():
    labels = np.repeat(np.arange(3), 20)
    noise = np.random.default_rng(0).normal(size=(60, 64)) * 1e-8
    assert precision_at_k(np.ones((60, 64)) + noise, labels, 10).max() == 0


def test_a_random_encoder_scores_chance():
    dice = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 60)
    chance = 59 / 599
    got = mean_interval(precision_at_k(dice.normal(size=(600, 32)), labels, 10), confidence=0.999)
    assert got.low < chance < got.high


def test_a_query_with_nothing_relevant_does_not_count():
    values = precision_at_k(np.eye(3), ["a", "a", "b"], 1)
    assert np.isnan(values).tolist() == [False, False, True]
    assert mean_interval([1.0, 0.0, float("nan")]).count == 2


def test_own_group_is_left_out():
    vectors = np.array([[1, 0], [1, 0.01], [0.9, 0.4], [0, 1]])
    assert recall_at_k(vectors, ["x", "x", "y", "x"], 1).tolist()[0] == 1
    assert recall_at_k(vectors, ["x", "x", "y", "x"], 1, groups=[7, 7, 8, 9]).tolist()[0] == 0


def test_intervals_cover_the_mean_and_repeat():
    values = np.random.default_rng(1).random(300)
    got = mean_interval(values, seed=5)
    assert got == mean_interval(values, seed=5)
    assert got.low < got.mean < got.high
    assert got.mean == pytest.approx(values.mean())
    # The normal approximation is good for 300 uniform numbers.
    assert got.high - got.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(300), rel=0.15)
    assert mean_interval(values, confidence=0.5).low > got.low


def test_the_paired_interval_is_narrow_when_queries_move_together():
    hard = np.random.default_rng(2).random(200)
    got = paired_interval(hard + 0.01, hard)
    assert got.mean == pytest.approx(0.01) and got.low == pytest.approx(0.01)
    alone = mean_interval(hard)
    assert alone.high - alone.low > 0.05


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ShapeError, match="labels must have shape"):
        recall_at_k(np.eye(3), ["a", "b"])
    with pytest.raises(ShapeError, match="groups must have shape"):
        recall_at_k(np.eye(3), ["a", "b", "c"], groups=[1])
    with pytest.raises(ValueError, match="k must be"):
        precision_at_k(np.eye(2), ["a", "a"], 0)
    with pytest.raises(ShapeError, match="NaN"):
        mean_interval([float("nan")])
    with pytest.raises(ShapeError, match="one shape"):
        paired_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([1.0], confidence=1.5)


def test_triplet_accuracy_is_that_of_a_loop_over_all_triplets() -> None:
    """Every (query, relevant, irrelevant) triplet counts once; a tie is wrong."""
    dice = np.random.default_rng(4)
    vectors = np.vstack([dice.normal(size=(20, 3)), np.ones((3, 3))]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.r_[dice.integers(0, 4, 20), 0, 1, 9]
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    expected = []
    for query in range(len(labels)):
        same = [i for i in range(len(labels)) if i != query and labels[i] == labels[query]]
        other = [i for i in range(len(labels)) if labels[i] != labels[query]]
        right = [scores[query, i] > scores[query, j] + 1e-6 for i in same for j in other]
        expected.append(np.mean(right) if right else np.nan)

    found = triplet_accuracy(vectors, labels)

    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.isnan(found[-1])


def test_triplet_accuracy_is_the_area_under_the_roc_curve() -> None:
    """Per query it is scikit-learn's roc_auc_score of similarity against relevance."""
    from sklearn.metrics import roc_auc_score

    dice = np.random.default_rng(5)
    vectors, labels = dice.normal(size=(30, 8)).astype(np.float32), dice.integers(0, 3, 30)
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    others = [np.arange(30) != query for query in range(30)]
    expected = [roc_auc_score(labels[o] == labels[q], (rows @ rows[q])[o]) for q, o in enumerate(others)]

    np.testing.assert_allclose(triplet_accuracy(vectors, labels), expected, atol=1e-6)


def characters(spread: float, alphabets: int = 3, each: int = 6, drawers: int = 4):
    """Vectors of characters drawn by several people: label, alphabet and drawer of each."""
    dice = np.random.default_rng(6)
    centres = dice.normal(size=(alphabets * each, 16))
    label = np.repeat(np.arange(alphabets * each), drawers)
    vectors = centres[label] + spread * dice.normal(size=(len(label), 16))
    return vectors.astype(np.float32), label, label // each, np.tile(np.arange(drawers), alphabets * each)


def test_one_shot_is_right_where_classes_are_apart_and_poor_where_they_are_not() -> None:
    """Tight classes give 1; vectors that have nothing to do with the classes give about one in `way`."""
    tight, label, alphabet, drawer = characters(spread=0.01)
    noise = np.random.default_rng(7).normal(size=tight.shape).astype(np.float32)
    options = {"categories": alphabet, "makers": drawer, "way": 5, "episodes": 400}

    assert one_shot(tight, label, **options).mean() == 1
    assert one_shot(noise, label, **options).mean() == pytest.approx(0.2, abs=0.04)


def test_one_shot_gives_nothing_to_a_constant_encoder() -> None:
    """Ties go against the query."""
    vectors, label, _, _ = characters(spread=0.1)

    assert one_shot(np.ones_like(vectors), label, way=5, episodes=20).max() == 0


def test_one_shot_keeps_to_one_category_and_to_two_makers() -> None:
    """Supports are by one maker and queries by another, all of one category: only then this encoder is right."""
    _, label, alphabet, drawer = characters(spread=0.1)
    # Within an alphabet the character decides. The drawer is far louder, but the same for all supports.
    vectors = np.zeros((len(label), 32), dtype=np.float32)
    vectors[np.arange(len(label)), label % 6] = 1
    vectors[np.arange(len(label)), 8 + drawer] = 5
    options = {"way": 5, "episodes": 200}

    assert one_shot(vectors, label, categories=alphabet, makers=drawer, **options).mean() == 1
    assert one_shot(vectors, label, categories=alphabet, **options).mean() < 0.9
    assert one_shot(vectors, label, makers=drawer, **options).mean() < 0.9


def test_one_shot_is_the_same_for_equal_seeds_and_says_what_is_missing() -> None:
    """Two encoders are compared on the same episodes; too many ways are an error with advice."""
    vectors, label, alphabet, _ = characters(spread=1.0)

    first, again = (one_shot(vectors, label, way=5, episodes=50, seed=3) for _ in range(2))
    other = one_shot(vectors, label, way=5, episodes=50, seed=4)

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    with pytest.raises(ShapeError, match=r"lower the number of ways \(way, or validation\.way"):
        one_shot(vectors, label, categories=alphabet, way=7)


def test_scores_may_take_the_place_of_cosines():
    """The cosines themselves change nothing; other scores rank as they say; the shape is checked."""
    dice = np.random.default_rng(6)
    rows, labels = dice.normal(size=(30, 6)).astype(np.float32), dice.integers(0, 5, 30)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = rows @ rows.T
    for measure in (average_precision_at_r, triplet_accuracy, reciprocal_rank, recall_at_k, precision_at_k):
        np.testing.assert_array_equal(measure(rows, labels, scores=scores), measure(rows, labels))
        perfect = measure(rows, labels, scores=(labels[:, None] == labels).astype(float))
        if measure is not precision_at_k:
            assert np.nanmin(perfect) == 1
    with pytest.raises(ShapeError, match=r"\(30, 30\)"):
        recall_at_k(rows, labels, scores=scores[:3])


def rankings(dice, n=40):
    """Vectors, labels, and per query the scores and the relevance of all the others."""
    vectors, labels = dice.normal(size=(n, 8)).astype(np.float32), dice.integers(0, 4, n)
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    others = [np.arange(n) != query for query in range(n)]
    return vectors, labels, [((rows @ rows[q])[o], (labels[o] == labels[q]).astype(int)) for q, o in enumerate(others)]


def test_average_precision_and_ndcg_are_those_of_scikit_learn():
    """average_precision_score and ndcg_score, query by query."""
    from sklearn.metrics import average_precision_score, ndcg_score

    vectors, labels, lines = rankings(np.random.default_rng(7))
    expected = [average_precision_score(relevant, scores) for scores, relevant in lines]
    np.testing.assert_allclose(average_precision(vectors, labels), expected, atol=1e-12)
    for k in (1, 5, 20, 100):
        expected = [ndcg_score([relevant], [scores], k=k) for scores, relevant in lines]
        np.testing.assert_allclose(ndcg_at_k(vectors, labels, k), expected, atol=1e-12)


@pytest.mark.slow  # numba compiles for most of a minute
@pytest.mark.filterwarnings("ignore")  # its own and numba's
def test_equal_to_ranx():
    """The measures of a library for search engines, where it is installed."""
    ranx = pytest.importorskip("ranx")
    vectors, labels, lines = rankings(np.random.default_rng(8))
    names = [[f"d{other}" for other in range(len(labels)) if other != query] for query in range(len(labels))]
    truth = {
        f"q{query:02}": {name: 1 for name, hit in zip(names[query], relevant, strict=True) if hit}
        for query, (_, relevant) in enumerate(lines)
    }
    run = {
        f"q{query:02}": dict(zip(names[query], map(float, scores), strict=True))
        for query, (scores, _) in enumerate(lines)
    }
    theirs = ranx.evaluate(
        ranx.Qrels(truth), ranx.Run(run), ["map", "ndcg@10", "mrr", "precision@5", "hit_rate@5"], return_mean=False
    )
    ours = {
        "map": average_precision(vectors, labels),
        "ndcg@10": ndcg_at_k(vectors, labels, 10),
        "mrr": reciprocal_rank(vectors, labels),
        "precision@5": precision_at_k(vectors, labels, 5),
        "hit_rate@5": recall_at_k(vectors, labels, 5),
    }
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], atol=1e-9, err_msg=name)


def test_few_shot_of_one_is_one_shot() -> None:
    """The same episodes and the same answers."""
    vectors, label, alphabet, drawer = characters(spread=1.0)
    for options in ({}, {"categories": alphabet}, {"categories": alphabet, "makers": drawer}):
        ours = few_shot(vectors, label, shot=1, way=5, episodes=60, **options)
        np.testing.assert_array_equal(ours, one_shot(vectors, label, way=5, episodes=60, **options))


def test_few_shot_asks_the_centroids() -> None:
    """Against a loop over all the episodes that six classes of four pictures allow; more shots help."""
    vectors, label, _, _ = characters(spread=0.8, alphabets=1)
    rows = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    members = [np.flatnonzero(label == name) for name in range(6)]
    possible = []
    # Three of four pictures are support: the query of each class is one of four.
    for choice in np.ndindex(*(4,) * 6):
        queries = [members[name][choice[name]] for name in range(6)]
        centres = np.array([rows[[m for m in members[n] if m != queries[n]]].sum(0) for n in range(6)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        possible.append(((rows[queries] @ centres.T).argmax(1) == np.arange(6)).mean())

    found = few_shot(vectors, label, shot=3, way=6, episodes=1000)

    assert set(found.round(6)) <= set(np.round(possible, 6))
    assert found.mean() == pytest.approx(np.mean(possible), abs=4 * np.std(possible) / 1000**0.5)
    assert found.mean() > one_shot(vectors, label, way=6, episodes=300).mean() + 0.03
    assert few_shot(np.ones_like(vectors), label, shot=3, way=6, episodes=20).max() == 0
    with pytest.raises(ShapeError, match="6 classes of 5 pictures"):
        few_shot(vectors, label, shot=4, way=6)
    with pytest.raises(ValueError, match="shot 1 with makers"):
        few_shot(vectors, label, shot=2, way=3, makers=np.arange(len(label)))
