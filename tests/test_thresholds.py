"""Thresholds and the curve of sureness: against pair-by-pair loops and scikit-learn; a constant encoder gets chance."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lookalike.errors import ShapeError
from lookalike.thresholds import Bin, Curve, Thresholds, _examples, calibrate, in_words, isotonic, threshold_of
from lookalike.vectors import unit


@pytest.fixture(scope="module")
def pictures() -> dict[str, Any]:
    """120 vectors of 10 classes that overlap; neighbours in the list are sometimes of one group."""
    dice = np.random.default_rng(3)
    labels = np.repeat(np.arange(10), 12)
    vectors = unit(dice.normal(size=(10, 16))[labels] + dice.normal(size=(120, 16)))
    groups = np.arange(120) - np.where(dice.random(120) < 0.3, 1, 0)
    return {"vectors": vectors, "labels": labels, "groups": groups}


def pairs(vectors: Any, labels: Any, groups: Any) -> tuple[list[float], list[float]]:
    """Cosines of same and of different pairs that are of two groups, one by one."""
    same, different = [], []
    for one in range(len(labels)):
        for other in range(one):
            if groups[one] != groups[other]:
                (same if labels[one] == labels[other] else different).append(float(vectors[one] @ vectors[other]))
    return same, different


@pytest.mark.parametrize("far", [0.01, 0.1, 0.0001])
def test_same_accepts_as_many_different_pairs_as_it_may(pictures: dict[str, Any], far: float) -> None:
    """No more than the rate reach it, more would reach a step below; the rates are those of a loop over pairs."""
    found = calibrate(**pictures, far=far)["same"]
    same, different = pairs(**pictures)

    accepted = sum(cosine >= found.value for cosine in different)
    below = sum(cosine >= found.value - 2e-5 for cosine in different)
    assert accepted <= far * len(different) < below
    assert found.count == len(different) and found.rate == far
    assert found.rates["false_accept"] == pytest.approx(accepted / len(different), abs=1e-6)
    assert found.rates["true_accept"] == pytest.approx(np.mean(np.array(same) >= found.value), abs=1e-6)


def neighbours(vectors: Any, labels: Any, groups: Any) -> tuple[Any, Any]:
    """The nearest example of all classes, and of other classes, for each picture that is none."""
    known, left = [], []
    examples = _examples(labels, 0)
    for one in np.flatnonzero(~examples):
        others = [other for other in np.flatnonzero(examples) if groups[other] != groups[one]]
        cosines = {other: float(vectors[one] @ vectors[other]) for other in others}
        if any(labels[other] == labels[one] for other in others):
            known.append(max(cosines.values()))
            left.append(max(cosine for other, cosine in cosines.items() if labels[other] != labels[one]))
    return np.array(known), np.array(left)


def test_unknown_makes_the_fewest_errors_or_keeps_to_a_rate(pictures: dict[str, Any]) -> None:
    """Leave-class-out, picture by picture; no other threshold makes fewer errors of both kinds."""
    fewest, kept = calibrate(**pictures)["unknown"], calibrate(**pictures, unknown=0.05)["unknown"]
    known, left = neighbours(**pictures)

    def errors(value: float) -> float:
        return float((known < value).mean() + (left >= value).mean())

    assert fewest.rate is None
    assert errors(fewest.value) <= min(errors(value) for value in np.linspace(-1, 1, 4001)) + 1e-9
    assert fewest.rates["false_accept"] == pytest.approx((left >= fewest.value).mean(), abs=1e-6)
    assert fewest.rates["true_accept"] == pytest.approx((known >= fewest.value).mean(), abs=1e-6)
    assert (left >= kept.value).sum() == int(0.05 * len(left))
    assert kept.rate == 0.05 and kept.count == len(left)


def test_classes_are_known_by_five_pictures_or_all_but_one() -> None:
    """One is always left to ask, but of a class of one, which is only wrong for others; draws differ by the seed."""
    labels = np.repeat(np.arange(5), [1, 2, 5, 6, 50])
    examples = _examples(labels, 0)

    assert np.bincount(labels[examples]).tolist() == [1, 1, 4, 5, 5]
    assert (examples != _examples(labels, 1)).any()


def test_copies_are_no_false_alarms_of_duplicates(pictures: dict[str, Any]) -> None:
    """The nearest picture of another group decides; a picture that is there twice does not, once that is said."""
    vectors, labels, groups = (np.concatenate([part, part[:1]]) for part in pictures.values())
    told = calibrate(vectors, labels, groups=groups)["duplicate"]
    untold = calibrate(vectors, labels)["duplicate"]
    both = calibrate(vectors, labels, copies=groups)["duplicate"]

    nearest = [max(float(v @ w) for w, h in zip(vectors, groups, strict=True) if h != g)
               for v, g in zip(vectors, groups, strict=True)]  # fmt: skip
    assert told.value == both.value == pytest.approx(max(nearest), abs=2e-5) and told.value > max(nearest)
    assert told.rates == {"false_accept": 0.0}
    assert untold.value == 1.0


@pytest.mark.parametrize("count", [100, 199, 200, 730, 1000])
def test_a_threshold_lets_through_as_many_as_it_may_and_no_more(count: int) -> None:
    """At most 0.5 % reach it; one more would, were it lower. With ties it is the stricter one."""
    nearest = np.random.default_rng(count).uniform(0.5, 0.9, count)

    assert (nearest >= threshold_of(nearest)).sum() == count // 200
    assert (np.full(count, 0.75) >= threshold_of(np.full(count, 0.75))).sum() == 0
    assert threshold_of(np.ones(count)) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_is_that_of_scikit_learn(seed: int) -> None:
    """The same rising sequence, with and without weights."""
    from sklearn.isotonic import IsotonicRegression

    dice = np.random.default_rng(seed)
    values, weights = dice.normal(size=60) + np.linspace(0, 2, 60), dice.uniform(0.1, 3, 60)
    places = np.arange(60)

    np.testing.assert_allclose(isotonic(values), IsotonicRegression().fit_transform(places, values))
    np.testing.assert_allclose(
        isotonic(values, weights), IsotonicRegression().fit_transform(places, values, sample_weight=weights)
    )
    with pytest.raises(ShapeError, match="one shape"):
        isotonic(values, weights[1:])


def test_the_curve_is_scikit_learns_on_single_pairs(pictures: dict[str, Any]) -> None:
    """Fitted on every pair, same and different weighing the same: equal, but for pooling and the rule of succession."""
    from sklearn.isotonic import IsotonicRegression

    curve = calibrate(**pictures).curve
    same, different = pairs(**pictures)
    cosines = np.round(np.array(same + different) * 200) / 200
    truth = np.repeat([1.0, 0.0], [len(same), len(different)])
    weights = np.repeat([1 / len(same), 1 / len(different)], [len(same), len(different)])
    theirs = IsotonicRegression().fit(cosines, truth, sample_weight=weights).predict(cosines)

    np.testing.assert_allclose(curve.probability(cosines), theirs, atol=1.1 / len(same))


def test_sureness_holds_on_other_classes() -> None:
    """Where halves are alike, predicted is observed; the error is the mean over bins; a wrong curve would be off."""
    dice = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 8)
    vectors = unit(dice.normal(size=(60, 12))[labels] + dice.normal(size=(480, 12)))
    curve = calibrate(vectors, labels).curve

    assert curve.error is not None and 0.001 < curve.error < 0.05  # on what it was fitted on, it would be 0
    assert [part.predicted for part in curve.bins] == sorted(part.predicted for part in curve.bins)
    assert all(abs(part.predicted - part.observed) < 0.15 for part in curve.bins)
    half = [np.arange(480)[np.random.default_rng(0).permutation(60)[labels] % 2 == part] for part in (0, 1)]
    assert sum(part.count for part in curve.bins) == sum(len(h) * (len(h) - 1) // 2 for h in half)
    overconfident = Curve([(-1.0, 0.0), (0.0, 0.0), (0.001, 1.0), (1.0, 1.0)])
    assert abs(overconfident.probability(0.3) - curve.probability(0.3)) > 0.3


def test_what_was_likely_before_counts(pictures: dict[str, Any]) -> None:
    """Bayes' rule; a number for a number and an array for an array; no probability is 0 or 1."""
    curve = calibrate(**pictures).curve
    even, rare = curve.probability(0.5), curve.probability(0.5, prior=0.01)

    assert isinstance(even, float)
    assert rare / (1 - rare) == pytest.approx(even / (1 - even) / 99)
    likely = curve.probability(np.linspace(-1, 1, 50))
    assert (np.diff(likely) >= 0).all() and 0 < likely.min() < likely.max() < 1
    with pytest.raises(ValueError, match="prior"):
        curve.probability(0.5, prior=0)


def test_a_constant_encoder_scores_chance() -> None:
    """It accepts all or nothing, and its probability is one half."""
    labels = np.repeat(np.arange(6), 5)
    dice = np.random.default_rng(0)
    vectors = unit(dice.normal(size=37) + dice.normal(0, 3e-4, (30, 37)))  # differ by less than float32 can tell
    assert len(np.unique(vectors @ vectors.T)) > 1
    found = calibrate(vectors, labels)

    for purpose in ("same", "unknown"):
        assert found[purpose].rates["false_accept"] == found[purpose].rates["true_accept"]
    assert found["duplicate"].value == 1.0
    assert found.curve.probability(1.0) == pytest.approx(0.5)
    assert found.curve.error == 0


def test_numbers_stand_beside_how_they_were_come_by(pictures: dict[str, Any]) -> None:
    """As JSON there and back; commands read numbers; a table for people; a bundle of an older kind has no table."""
    found = calibrate(**pictures)
    document = json.loads(json.dumps(found.document()))

    assert {name: document[name] for name in ("same", "unknown", "duplicate")} == {
        one.purpose: one.value for one in found.chosen
    }
    again = Curve.from_document(document["calibration"]["curve"])
    assert again.probability(0.4) == found.curve.probability(0.4) and again.bins == found.curve.bins
    assert isinstance(again.bins[0], Bin)
    assert str(found["same"].value) in "\n".join(in_words(document))
    assert in_words({"duplicate": 0.9, "calibration": {"products": {"threshold": 0.9}}}) == in_words({}) == []


def test_what_cannot_be_calibrated(pictures: dict[str, Any]) -> None:
    """One class, lonely pictures, wrong lengths, impossible rates; few classes have no measured error."""
    vectors, labels = pictures["vectors"], pictures["labels"]
    for wrong in (np.zeros(120), np.arange(120)):
        with pytest.raises(ShapeError, match="at least two classes"):
            calibrate(vectors, wrong)
    with pytest.raises(ShapeError, match="labels must have shape"):
        calibrate(vectors, labels[1:])
    with pytest.raises(ValueError, match="far"):
        calibrate(vectors, labels, far=1.0)
    two: Thresholds = calibrate(vectors[:24], labels[:24], named=False)
    assert two.curve.error is None and two.curve.bins == ()
    assert [one.purpose for one in two.chosen] == ["same", "duplicate"]
