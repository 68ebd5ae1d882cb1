"""All measures at once, against the functions that define them, one query at a time."""

from __future__ import annotations

import numpy as np
import pytest

from lookalike import metrics, ranking
from lookalike.errors import ShapeError
from lookalike.ranking import retrieval
from lookalike.vectors import unit

KS = (1, 3, 100)


def defined(vectors, labels, groups=None):
    """The same by the functions of `metrics`."""
    found = {}
    for k in KS:
        found[f"r_at_{k}"] = metrics.recall_at_k(vectors, labels, k, groups)
        found[f"p_at_{k}"] = metrics.precision_at_k(vectors, labels, k, groups)
        found[f"ndcg_at_{k}"] = metrics.ndcg_at_k(vectors, labels, k, groups)
    found["map_at_r"] = metrics.average_precision_at_r(vectors, labels, groups)
    found["map"] = metrics.average_precision(vectors, labels, groups)
    found["mrr"] = metrics.reciprocal_rank(vectors, labels, groups)
    found["triplet_accuracy"] = metrics.triplet_accuracy(vectors, labels, groups)
    return found


def agree(found, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12, rtol=0, err_msg=name)


def embedding(dice, n, kind):
    """Ordinary vectors, vectors of few values, which tie often, and vectors that are equal but for rounding."""
    if kind == "ties":
        rows = dice.integers(-1, 2, size=(n, 4)).astype(np.float32)
        rows[:, 0] = 1
        return rows
    return dice.normal(size=(n, 8)) * (1e-8 if kind == "nearly constant" else 1) + (kind == "nearly constant")


@pytest.mark.parametrize("kind", ["ordinary", "ties", "nearly constant"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("classes", [2, 9, 60])
def test_equal_to_the_definitions(monkeypatch, kind, grouped, classes):
    """Each picture against all others, with and without groups, in blocks of a few queries, few and many classes."""
    monkeypatch.setattr(ranking, "BLOCK_CELLS", 1200)
    dice = np.random.default_rng(classes)
    vectors, labels = embedding(dice, 120, kind), dice.integers(0, classes, 120)
    groups = dice.integers(0, 25, 120) if grouped else None

    found = retrieval(vectors, labels, groups, ks=KS, full=True)

    expected = defined(vectors, labels, groups)
    assert found.keys() == expected.keys()
    assert classes < 60 or np.isnan(found["map"]).any()
    agree(found, expected)
    agree(found, retrieval(vectors, labels, groups, ks=KS))
    agree(found, retrieval(vectors, labels, groups, ks=(1,)))


@pytest.mark.parametrize("kind", ["ordinary", "ties"])
def test_a_gallery_of_its_own(monkeypatch, kind):
    """Queries that see only the gallery are a group of their own; some classes are on one side only."""
    monkeypatch.setattr(ranking, "BLOCK_CELLS", 900)
    dice = np.random.default_rng(1)
    vectors, labels = embedding(dice, 90, kind), dice.choice([f"class {n}" for n in range(25)], 90)
    here, there = slice(0, 30), slice(30, 90)

    found = retrieval(
        vectors[here], labels[here], gallery=vectors[there], gallery_labels=labels[there], ks=KS, full=True
    )

    agree(found, {name: values[here] for name, values in defined(vectors, labels, np.arange(90) >= 30).items()})


def test_float32_compares_as_float64_would():
    """Scores a few roundings apart, around the width of a tie: against a sort in float64."""
    dice = np.random.default_rng(3)
    for _ in range(30):
        near = 0.7 + dice.integers(0, 60, 40) * 2.0**-24
        gallery, labels = unit(np.stack([near, np.sqrt(1 - near**2)], axis=1)), dice.integers(0, 2, 40)
        # The query's own cosines are exact: one product by 1, one by 0.
        scores = gallery[:, 0].astype(np.float64) - metrics.TIE * (labels == 1)
        ranks = 1 + np.flatnonzero(labels[np.argsort(-scores, kind="stable")])

        found = retrieval([[1.0, 0.0]], [1], gallery=gallery, gallery_labels=labels, full=True)

        assert found["map"][0] == pytest.approx(np.mean(np.arange(1, len(ranks) + 1) / ranks), abs=1e-12)


def test_groups_reach_into_the_gallery():
    """A picture of the query's group is left out, though it lies in the gallery."""
    gallery = {"gallery": np.eye(3), "gallery_labels": ["a", "b", "a"]}

    alone = retrieval([[1.0, 0.1, 0.2]], ["a"], ks=(1,), **gallery)
    apart = retrieval([[1.0, 0.3, 0.2]], ["a"], [7], gallery_groups=[7, 8, 9], ks=(1,), **gallery)

    assert alone["r_at_1"].tolist() == [1] and alone["map_at_r"].tolist() == [1]
    assert apart["r_at_1"].tolist() == [0] and apart["map_at_r"].tolist() == [0]


def test_equal_to_pytorch_metric_learning():
    """P@1 and MAP@R of its AccuracyCalculator, each picture against all others."""
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    torch = pytest.importorskip("torch")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.inference import CustomKNN

    dice = np.random.default_rng(2)
    vectors, labels = dice.normal(size=(80, 8)).astype(np.float32), np.repeat(np.arange(16), 5)
    oracle = calculator.AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"), knn_func=CustomKNN(CosineSimilarity())
    )
    theirs = oracle.get_accuracy(torch.tensor(vectors), torch.tensor(labels))

    found = retrieval(vectors, labels)

    assert found["p_at_1"].mean() == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert found["map_at_r"].mean() == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


def test_a_constant_encoder_scores_nothing():
    labels = np.repeat(["a", "b", "c"], 20)
    found = retrieval(np.ones((60, 8)), labels, full=True)
    for name in ("r_at_10", "p_at_10", "ndcg_at_10", "map_at_r", "triplet_accuracy"):
        assert found[name].max() == 0
    np.testing.assert_allclose(found["mrr"], 1 / 41)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="ks"):
        retrieval(np.eye(3), [1, 1, 2], ks=(0,))
    with pytest.raises(ShapeError, match="labels must have shape"):
        retrieval(np.eye(3), [1, 1])
    with pytest.raises(ShapeError, match="need a gallery"):
        retrieval(np.eye(3), [1, 1, 2], gallery_labels=[1])
    with pytest.raises(ShapeError, match="of a gallery"):
        retrieval(np.eye(3), [1, 1, 2], gallery=np.eye(3))
    with pytest.raises(ShapeError, match="both or neither"):
        retrieval(np.eye(3), [1, 1, 2], [1, 2, 3], gallery=np.eye(3), gallery_labels=[1, 1, 2])
