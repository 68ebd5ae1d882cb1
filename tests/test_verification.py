"""Verification and the report of classes against loops written from the definitions, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from lookalike.errors import ShapeError
from lookalike.verification import (
    Roc,
    area,
    best_threshold,
    bootstrap,
    eer,
    fold_accuracy,
    held_out_correct,
    paired_bootstrap,
    report,
    roc,
    tar_at_far,
)


def pairs(seed, n=300, tied=False, gap=1.0):
    dice = np.random.default_rng(seed)
    same = dice.random(n) < 0.4
    scores = dice.normal(size=n) + gap * same
    return (scores.round(1) if tied else scores), same


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_curve_is_scikit_learns(seed, tied):
    """roc_curve and roc_auc_score, with every threshold, also among ties."""
    from sklearn.metrics import roc_auc_score, roc_curve

    scores, same = pairs(seed, tied=tied)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)

    curve = roc(scores, same)

    np.testing.assert_allclose(curve.far, far, atol=1e-12)
    np.testing.assert_allclose(curve.tar, tar, atol=1e-12)
    np.testing.assert_allclose(curve.thresholds, thresholds, atol=1e-12)
    assert area(scores, same) == pytest.approx(roc_auc_score(same, scores), abs=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rates_and_thresholds_are_those_of_counting(seed, tied):
    """Every threshold that exists, one after the other."""
    scores, same = pairs(seed, tied=tied)
    rates = []
    for threshold in [np.inf, *sorted(set(scores), reverse=True)]:
        accepted = [score >= threshold for score in scores]
        false = sum(a for a, s in zip(accepted, same, strict=True) if not s) / (~same).sum()
        true = sum(a for a, s in zip(accepted, same, strict=True) if s) / same.sum()
        right = sum(a == s for a, s in zip(accepted, same, strict=True)) / len(same)
        rates.append((false, true, right))

    for far in (0, 1e-3, 0.01, 0.1, 1):
        assert tar_at_far(scores, same, far) == pytest.approx(max(true for false, true, _ in rates if false <= far))
    threshold, accuracy = best_threshold(scores, same)
    assert accuracy == pytest.approx(max(right for *_, right in rates))
    assert ((scores >= threshold) == same).mean() == pytest.approx(accuracy)
    # The rate of equal errors lies between those of the neighbouring thresholds.
    low = max(min(false, 1 - true) for false, true, _ in rates)
    high = min(max(false, 1 - true) for false, true, _ in rates)
    assert low - 1e-12 <= eer(scores, same) <= high + 1e-12


def test_known_curves():
    """Perfect scores, reversed scores, one constant score, and one error of either kind in four."""
    same = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    perfect = np.array([9, 8, 7, 6, 5, 4, 3, 2.0])

    assert (eer(perfect, same), area(perfect, same), tar_at_far(perfect, same, 0)) == (0, 1, 1)
    assert best_threshold(perfect, same) == (5.5, 1)
    assert (eer(-perfect, same), area(-perfect, same)) == (1, 0)
    constant = np.full(8, 0.7)
    assert (eer(constant, same), area(constant, same), tar_at_far(constant, same, 0.01)) == (0.5, 0.5, 0)
    assert best_threshold(constant, same) == (np.inf, 0.5)
    assert eer([9, 8, 7, 3, 6, 2, 1, 0], same) == 0.25


def test_the_threshold_comes_from_the_other_folds():
    """Against a loop; a fold on another scale is decided with the others' threshold, and so wrongly."""
    scores, same = pairs(3)
    folds = np.arange(len(scores)) % 10
    expected = np.empty(len(scores))
    for fold in range(10):
        threshold, _ = best_threshold(scores[folds != fold], same[folds != fold])
        expected[folds == fold] = (scores[folds == fold] >= threshold) == same[folds == fold]
    correct = held_out_correct(scores, same, folds)
    np.testing.assert_array_equal(correct, expected)
    shares, mean, error = fold_accuracy(correct, folds)
    assert shares.tolist() == [correct[folds == fold].mean() for fold in range(10)]
    assert mean == pytest.approx(np.mean(shares)) and error == pytest.approx(np.std(shares, ddof=1) / 10**0.5)

    two = np.array([9, 8, 1, 0, 109, 108, 101, 100.0])
    assert held_out_correct(two, [1, 1, 0, 0] * 2, [0] * 4 + [1] * 4).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_a_constant_score_is_right_about_half_in_balanced_folds():
    same = np.arange(40) % 2
    assert held_out_correct(np.ones(40), same, np.arange(40) // 4).mean() == 0.5


def test_intervals_are_those_of_drawing_pairs_again():
    """Against a bootstrap that draws rows, and reproducible."""
    scores, same = pairs(5)
    measures = {"eer": Roc.eer, "tar": lambda curve: curve.tar_at_far(0.1)}
    found = bootstrap(scores, same, measures)
    assert found == bootstrap(scores, same, measures)
    dice = np.random.default_rng(1)
    ours, others = scores[same], scores[~same]
    drawn = []
    for _ in range(800):
        values = np.r_[dice.choice(ours, len(ours)), dice.choice(others, len(others))]
        drawn.append(eer(values, np.arange(len(values)) < len(ours)))
    assert found["eer"].mean == eer(scores, same) and found["eer"].count == 300
    np.testing.assert_allclose([found["eer"].low, found["eer"].high], np.quantile(drawn, [0.025, 0.975]), atol=0.012)
    assert found["tar"].low < found["tar"].mean < found["tar"].high


def test_differences_are_those_of_drawing_the_same_pairs_for_both():
    """Against a bootstrap that repeats rows; a judge is no better than itself, and two alike are told apart."""
    ours, same = pairs(1, 120)
    theirs = ours + np.random.default_rng(5).normal(0, 0.3, len(ours))
    measures = {"eer": Roc.eer, "auc": Roc.area}
    found = paired_bootstrap(ours, theirs, same, measures, draws=40, seed=7)
    dice, gaps = np.random.default_rng(7), []
    kinds = np.flatnonzero(same), np.flatnonzero(~same.astype(bool))
    for _ in range(40):
        counts = [dice.multinomial(len(kind), np.full(len(kind), 1 / len(kind))) for kind in kinds]
        rows = np.concatenate([np.repeat(kind, count) for kind, count in zip(kinds, counts, strict=True)])
        curves = [roc(values[rows], same[rows]) for values in (ours, theirs)]
        gaps.append([measure(curves[0]) - measure(curves[1]) for measure in measures.values()])
    bounds = np.quantile(gaps, [0.025, 0.975], axis=0)
    for number, (name, measure) in enumerate(measures.items()):
        assert found[name].mean == pytest.approx(measure(roc(ours, same)) - measure(roc(theirs, same)))
        assert (found[name].low, found[name].high) == pytest.approx(tuple(bounds[:, number]))
        assert found[name].count == 120
    itself = paired_bootstrap(ours, ours, same, measures, draws=20)
    assert all((each.mean, each.low, each.high) == (0, 0, 0) for each in itself.values())
    close = paired_bootstrap(ours, ours - 0.02 * same, same, measures, draws=200)["auc"]
    alone = bootstrap(ours, same, measures, draws=200)["auc"]
    assert close.high - close.low < (alone.high - alone.low) / 3


@pytest.mark.filterwarnings("ignore:.*is ill-defined")
@pytest.mark.parametrize("kind", [int, str])
@pytest.mark.parametrize("seed", range(4))
def test_the_report_is_scikit_learns(seed, kind):
    """Every number of classification_report, with classes that are never predicted, or never true."""
    from sklearn.metrics import classification_report

    dice = np.random.default_rng(seed)
    true = dice.integers(0, 9, 120)
    predicted = np.where(dice.random(120) < 0.6, true, dice.integers(3, 12, 120))
    true, predicted = true.astype(kind), predicted.astype(kind)
    theirs = classification_report(true, predicted, output_dict=True)

    ours = report(true, predicted).document()

    assert ours["accuracy"] == pytest.approx(theirs["accuracy"])
    for mean in ("macro", "weighted"):
        assert ours[mean] == pytest.approx(
            {"f1" if k == "f1-score" else k: v for k, v in theirs[f"{mean} avg"].items() if k != "support"}
        )
    for line in ours["classes"]:
        other = theirs[line["class"]]
        assert [line["precision"], line["recall"], line["f1"], line["support"]] == pytest.approx(
            [other["precision"], other["recall"], other["f1-score"], other["support"]]
        )
    assert len(ours["classes"]) == len(theirs) - 3


def test_what_cannot_be_decided_is_refused():
    with pytest.raises(ShapeError, match="one kind"):
        roc([1.0, 2.0], [1, 1])
    with pytest.raises(ShapeError, match="one shape"):
        roc([1.0, 2.0], [1])
    with pytest.raises(ShapeError, match="finite"):
        roc([1.0, np.nan], [1, 0])
    with pytest.raises(ShapeError, match="two or more"):
        held_out_correct([1.0, 2.0], [1, 0], [0, 0])
    with pytest.raises(ValueError, match="far"):
        tar_at_far([1.0, 2.0], [1, 0], 2)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap([1.0, 2.0], [1, 0], {}, confidence=0)
    with pytest.raises(ShapeError, match="n > 0"):
        report([], [])
