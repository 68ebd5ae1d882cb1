"""Few-shot naming: methods against naive loops and scikit-learn, calibration, the unknown, reading a support set."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from lookalike import fewshot
from lookalike.encoder import Encoder
from lookalike.errors import CatalogueError, MissingExtra, QueryError, ShapeError
from lookalike.fewshot import METHODS, FewShotClassifier, Support, encode_support, read_support
from lookalike.vectors import unit


def clouds(classes: int = 4, pictures: int = 5, dim: int = 12, noise: float = 0.35, seed: int = 0, copies: int = 40):
    """Support (classes × pictures) and queries around random directions, with their labels."""
    dice = np.random.default_rng(seed)
    centres = unit(dice.normal(size=(classes, dim)))
    names = np.array([f"class{i}" for i in range(classes)])

    def draw(count: int):
        rows = np.repeat(centres, count, axis=0) + noise * dice.normal(size=(classes * count, dim)) / np.sqrt(dim / 8)
        return unit(rows), np.repeat(names, count)

    return (*draw(pictures), *draw(copies))


def centred(support: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """SimpleShot's CL2N, one row at a time."""
    mean = np.mean([support[labels == name].astype(float).mean(0) for name in np.unique(labels)], axis=0)
    return np.stack([(row - mean) / np.linalg.norm(row - mean) for row in rows])


def targets(labels: np.ndarray) -> np.ndarray:
    names = np.unique(labels)
    return np.where(labels[:, None] == names, 1.0, -1 / (len(names) - 1))


# ── methods ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_centroid_and_nearest_are_scikit_learns() -> None:
    """On the same centred vectors they answer as the 1-NN classifier among unit means, and among pictures."""
    support, labels, queries, _ = clouds()
    space, asked = centred(support, labels, support), centred(support, labels, queries)

    means = np.stack([space[labels == name].mean(0) for name in np.unique(labels)])
    theirs = KNeighborsClassifier(1).fit(unit(means), np.unique(labels)).predict(asked)
    assert (FewShotClassifier("centroid").fit(support, labels).predict(queries) == theirs).all()
    theirs = KNeighborsClassifier(1).fit(space, labels).predict(asked)
    assert (FewShotClassifier("nearest").fit(support, labels).predict(queries) == theirs).all()


@pytest.mark.parametrize("dim", [8, 60])
def test_ridge_is_scikit_learns_weighted_ridge(dim: int) -> None:
    """Whichever matrix is smaller, with classes of unequal size: scores are those of Ridge with balanced weights."""
    support, labels, queries, _ = clouds(dim=dim)
    kept = np.r_[0:20:1][np.r_[True, True, np.zeros(3, bool), np.ones(15, bool)]]
    support, labels = support[kept], labels[kept]
    classifier = FewShotClassifier().fit(support, labels)

    sizes = np.array([(labels == name).sum() for name in labels])
    weights = len(labels) / 4 / sizes
    oracle = Ridge(alpha=fewshot.RIDGE, fit_intercept=False)
    oracle.fit(centred(support, labels, support), targets(labels), sample_weight=weights)
    theirs = oracle.predict(centred(support, labels, queries))
    ours = np.log(classifier.predict_proba(queries)) * classifier.temperature_
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("dim", [8, 60])
def test_leave_one_out_of_ridge_is_that_of_fitting_without_the_picture(dim: int) -> None:
    """The closed form equals a naive loop that fits n times."""
    support, labels, _, _ = clouds(dim=dim)
    space, wanted = centred(support, labels, support), targets(labels)
    number = np.unique(labels, return_inverse=True)[1]

    naive = []
    for row in range(len(space)):
        rest = np.arange(len(space)) != row
        oracle = Ridge(alpha=fewshot.RIDGE, fit_intercept=False).fit(space[rest], wanted[rest])
        naive.append(oracle.predict(space[row : row + 1])[0])
    np.testing.assert_allclose(fewshot._Ridge(space, number, 4).held_out(), naive, atol=1e-9)


def test_leave_one_out_of_centroid_and_nearest_is_that_of_leaving_out() -> None:
    """Naive loops: the own class without the picture, the others as they are."""
    support, labels, _, _ = clouds()
    space = centred(support, labels, support)
    names, number = np.unique(labels, return_inverse=True)

    for row in range(len(space)):
        rest = np.arange(len(space)) != row
        means = [space[rest & (labels == name)].mean(0) for name in names]
        cosines = [space[row] @ mean / np.linalg.norm(mean) for mean in means]
        np.testing.assert_allclose(fewshot._Centroid(space, number, 4).held_out()[row], cosines, atol=1e-9)
        nearest = [max(space[i] @ space[row] for i in np.flatnonzero(rest & (labels == name))) for name in names]
        np.testing.assert_allclose(fewshot._Nearest(space, number, 4).held_out()[row], nearest, atol=1e-9)


def test_heads_are_scikit_learns() -> None:
    """logistic and svm give the classes of LogisticRegression and LinearSVC on centred vectors, also of two classes."""
    for classes in (2, 4):
        support, labels, queries, _ = clouds(classes)
        space, asked = centred(support, labels, support), centred(support, labels, queries)
        for method, oracle in (("logistic", LogisticRegression(C=10.0)), ("svm", LinearSVC(C=1.0))):
            ours = FewShotClassifier(method).fit(support, labels).predict(queries)
            assert (ours == oracle.fit(space, labels).predict(asked)).mean() > 0.99, method


def test_held_out_pictures_of_heads_were_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture with a companion is asked once, by a head that has not seen it; every class is always there."""
    support, labels, _, _ = clouds(pictures=3)
    space = np.concatenate([support, -support[:1]]).astype(float)
    number = np.append(np.unique(labels, return_inverse=True)[1], 4)  # a class of one picture
    asked: list[np.ndarray] = []

    class Spy:
        def __init__(self, space: np.ndarray, number: np.ndarray) -> None:
            assert set(number) == set(range(5))
            self.seen = {row.tobytes() for row in space}

        def decision_function(self, rows: np.ndarray) -> np.ndarray:
            assert not self.seen & {row.tobytes() for row in rows}
            asked.append(rows)
            return np.zeros((len(rows), 5))

    head = fewshot._Sklearn("svm", space, number, 5)
    monkeypatch.setattr(fewshot, "_sklearn_fit", lambda method, space, number: Spy(space, number))
    head.held_out()
    assert len(np.concatenate(asked)) == 12


def test_transductive_step_is_soft_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naive loops over rounds and queries; for ridge, scikit-learn's with the queries' soft targets and weights."""
    support, labels, queries, truth = clouds(noise=0.6, pictures=1, copies=15)
    space, asked = centred(support, labels, support), centred(support, labels, queries)
    number = np.arange(4)

    means = space.copy()
    for _ in range(fewshot.ROUNDS):
        sums = space.copy()
        for row in asked:
            raised = np.exp(fewshot.SHARPNESS["centroid"] * means @ row)
            sums += np.outer(raised / raised.sum(), row)
        means = np.stack([one / np.linalg.norm(one) for one in sums])
    np.testing.assert_allclose(fewshot._Centroid(space, number, 4).refined(asked), asked @ means.T, atol=1e-9)

    wanted = targets(labels)
    scores = Ridge(alpha=fewshot.RIDGE, fit_intercept=False).fit(space, wanted).predict(asked)
    for _ in range(fewshot.ROUNDS):
        raised = np.exp(fewshot.SHARPNESS["ridge"] * scores)
        shares = raised / raised.sum(1, keepdims=True)
        both = np.concatenate([wanted, shares - (1 - shares) / 3])
        weights = np.r_[np.ones(4), np.full(len(asked), fewshot.QUERY_WEIGHT["ridge"])]
        oracle = Ridge(alpha=fewshot.RIDGE, fit_intercept=False)
        scores = oracle.fit(np.concatenate([space, asked]), both, sample_weight=weights).predict(asked)
    np.testing.assert_allclose(fewshot._Ridge(space, number, 4).refined(asked), scores, atol=1e-6)

    together = FewShotClassifier("centroid", transductive=True).fit(support, labels)
    alone = FewShotClassifier("centroid").fit(support, labels)
    assert together.score(queries, truth) > alone.score(queries, truth)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_encoder_is_at_chance(method: str) -> None:
    """Vectors that are all the same but for rounding say nothing: all classes are as probable, one in K is right."""
    same = 0.3 + 1e-7 * np.random.default_rng(0).normal(size=(20, 6))
    labels = np.repeat(np.arange(4), 5)
    classifier = FewShotClassifier(method).fit(same, labels)

    np.testing.assert_allclose(classifier.predict_proba(same), 0.25, atol=1e-6)
    assert classifier.score(same, labels) == 0.25


def test_a_class_of_many_pictures_gets_no_more_than_its_share() -> None:
    """Forty pictures of one class and two of each other: queries of all classes are still named rightly."""
    many, names, queries, truth = clouds(pictures=40, noise=0.25)
    few = np.concatenate([np.flatnonzero(names == name)[: 40 if name == "class0" else 2] for name in np.unique(names)])
    for method in METHODS:
        found = FewShotClassifier(method).fit(many[few], names[few])
        shares = [found.score(queries[truth == name], truth[truth == name]) for name in np.unique(names)]
        assert min(shares) > 0.8, method


# ── the contract ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_scikit_learn_can_clone_validate_and_search() -> None:
    """clone keeps the parameters; cross_val_score and GridSearchCV work as with their own classifiers."""
    support, labels, _, _ = clouds()
    one = FewShotClassifier("centroid", transductive=True, unknown=0.3)
    assert clone(one).get_params() == one.get_params() == {"method": "centroid", "transductive": True, "unknown": 0.3}
    assert not hasattr(clone(one.fit(support, labels)), "classes_")
    assert cross_val_score(FewShotClassifier(), support, labels, cv=5).mean() > 0.7
    search = GridSearchCV(FewShotClassifier(), {"method": ["nearest", "ridge"]}, cv=2).fit(support, labels)
    assert search.best_params_["method"] in METHODS
    assert FewShotClassifier().set_params(method="nearest").method == "nearest"
    with pytest.raises(ValueError, match="no parameter shots: it has method, transductive, unknown"):
        FewShotClassifier().set_params(shots=3)


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_sum_to_one_and_agree_with_the_answer(method: str) -> None:
    """Rows sum to 1 in the order of classes_, and the most probable class is the answer."""
    support, labels, queries, truth = clouds()
    classifier = FewShotClassifier(method).fit(support, labels)
    chance = classifier.predict_proba(queries)

    np.testing.assert_allclose(chance.sum(1), 1)
    assert (classifier.classes_[chance.argmax(1)] == classifier.predict(queries)).all()
    assert classifier.score(queries, truth) > 0.8
    assert classifier.predict(queries[:0]).shape == (0,)
    assert classifier.decide(queries[:0]) == []


def test_a_decision_says_similarity_distance_and_the_picture() -> None:
    """Naive: of each class the picture with the highest cosine, and the Euclidean distance to that very picture."""
    support, labels, queries, _ = clouds()
    shuffled = np.random.default_rng(1).permutation(len(labels))
    support, labels = support[shuffled], labels[shuffled]
    classifier = FewShotClassifier().fit(support, labels)

    for query, decision in zip(queries[:20], classifier.decide(3 * queries[:20]), strict=True):
        assert [one.probability for one in decision.candidates] == sorted(
            (one.probability for one in decision.candidates), reverse=True
        )
        assert decision.label == decision.candidates[0].label
        for one in decision.candidates:
            rows = np.flatnonzero(labels == one.label)
            assert one.support == rows[np.argmax(support[rows] @ query)]
            assert one.similarity == pytest.approx(support[one.support] @ query, abs=1e-6)
            assert one.distance == pytest.approx(np.linalg.norm(support[one.support] - query), abs=1e-3)
    assert len(classifier.decide(queries[:1], top=2)[0].candidates) == 2


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """More queries and pictures than are held at once give what they give together."""
    support, labels, queries, _ = clouds()
    whole = FewShotClassifier("nearest", unknown="auto").fit(support, labels)
    monkeypatch.setattr(fewshot, "BLOCK", 7)
    parts = FewShotClassifier("nearest", unknown="auto").fit(support, labels)
    assert (parts.threshold_, parts.temperature_) == pytest.approx((whole.threshold_, whole.temperature_))
    for ours, theirs in zip(parts._asked(queries), whole._asked(queries), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_adding_and_removing_is_fitting_anew(method: str) -> None:
    """A class added or removed, and a picture added to a class, leave what a fit of the same pictures gives."""
    support, labels, queries, _ = clouds()
    first = labels != "class3"
    grown = FewShotClassifier(method).fit(support[first], labels[first]).add(support[~first], labels[~first])
    whole = FewShotClassifier(method).fit(support, labels)
    np.testing.assert_allclose(grown.predict_proba(queries), whole.predict_proba(queries), atol=1e-9)

    less = whole.remove("class3")
    assert list(less.classes_) == ["class0", "class1", "class2"]
    again = FewShotClassifier(method).fit(support[first], labels[first])
    np.testing.assert_allclose(less.predict_proba(queries), again.predict_proba(queries), atol=1e-9)
    with pytest.raises(QueryError, match="class 'dog' cannot be removed: there is none of that name"):
        less.remove("dog")
    with pytest.raises(QueryError, match="it is the only one"):
        less.remove("class1").remove("class2").remove("class0")


def test_a_failed_addition_changes_nothing() -> None:
    """Vectors of another width, or a class named like the unknown, leave the classifier as it was."""
    support, labels, queries, _ = clouds()
    classifier = FewShotClassifier(unknown=0.2).fit(support, labels)
    before = classifier.predict_proba(queries)
    with pytest.raises(ShapeError, match=r"\(n, 12\)"):
        classifier.add(np.ones((1, 5)), ["class0"])
    with pytest.raises(QueryError, match="a class is named 'unknown'"):
        classifier.add(support[:1], ["unknown"])
    assert (classifier.predict_proba(queries) == before).all()


def test_what_cannot_be_fitted_says_why() -> None:
    """One clear error for each mistake."""
    support, labels, queries, _ = clouds()
    for options, message in (
        ({"method": "forest"}, "no method forest: choose one of ridge, centroid"),
        ({"method": "svm", "transductive": True}, "method svm has no transductive step"),
        ({"unknown": 2.0}, "unknown must be None, 'auto' or a cosine"),
        ({"unknown": "often"}, "unknown must be None, 'auto' or a cosine"),
    ):
        with pytest.raises(QueryError, match=message):
            FewShotClassifier(**options).fit(support, labels)
    with pytest.raises(ShapeError, match=r"labels must have shape \(20,\)"):
        FewShotClassifier().fit(support, labels[:3])
    with pytest.raises(ShapeError, match="direction"):
        FewShotClassifier().fit(np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(QueryError, match="no support yet: call fit"):
        FewShotClassifier().predict(queries)
    with pytest.raises(ShapeError, match=r"queries must have shape \(n, 12\)"):
        FewShotClassifier().fit(support, labels).predict(queries[:, :5])


def test_heads_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, the pip command that installs it; the other methods do not need it."""
    support, labels, _, _ = clouds()
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"method svm needs scikit-learn: pip install 'lookalike\[baselines\]'"):
        FewShotClassifier("svm").fit(support, labels)
    for method in ("ridge", "centroid", "nearest"):
        FewShotClassifier(method).fit(support, labels)


# ── how sure ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_mean_what_they_say(method: str) -> None:
    """Over episodes of overlapping classes, confidence and accuracy differ by less than 0.1."""
    confidence, right = [], []
    for seed in range(12):
        support, labels, queries, truth = clouds(noise=0.5, seed=seed)
        chance = FewShotClassifier(method).fit(support, labels).predict_proba(queries)
        confidence += list(chance.max(1))
        right += list(np.unique(labels)[chance.argmax(1)] == truth)
    assert 0.5 < np.mean(right) < 0.97
    assert abs(np.mean(confidence) - np.mean(right)) < 0.1


def test_the_temperature_is_the_most_probable_one() -> None:
    """It minimises what a naive sum over pictures gives, to the step of the grid; more pictures pull it further."""
    dice = np.random.default_rng(0)
    scores, number = dice.normal(size=(40, 3)), np.arange(40) % 3
    scores[np.arange(40), number] += 1

    def cost(temperature: float, count: int = 40) -> float:
        total = (np.log(temperature / 0.2) / fewshot.TEMPERATURE_SPREAD) ** 2 / 2
        for row, own in zip(scores[:count], number[:count], strict=True):
            total -= np.log(np.exp(row[own] / temperature) / np.exp(row / temperature).sum())
        return total

    # Forty pictures, 14 of one class and 13 of the others: near enough to one voice each.
    found = fewshot._temperature(scores, number, 0.2)
    grid = 0.2 * np.exp(np.linspace(-3, 3, 601))
    best = grid[np.argmin([cost(t) for t in grid])]
    assert found == pytest.approx(best, rel=0.1)
    assert 0.2 < fewshot._temperature(scores[:3], number[:3], 0.2) < found


def test_one_picture_per_class_takes_the_usual_temperature_and_says_so() -> None:
    """There is no leave-one-out; `held_out_` is 0 and `notes_` tell."""
    support, labels, _, _ = clouds(pictures=1)
    classifier = FewShotClassifier("centroid", unknown="auto").fit(support, labels)
    assert (classifier.temperature_, classifier.held_out_) == (fewshot.TEMPERATURE["centroid"], 0)
    assert [note.partition(":")[0] for note in classifier.notes_] == ["one picture per class"] * 2
    assert FewShotClassifier().fit(*clouds()[:2]).notes_ == []


# ── the unknown ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_threshold_is_that_of_leave_one_out_and_leave_class_out() -> None:
    """Naive loops: equally many standard deviations from own and strangers; with one shot, above strangers."""
    support, labels, _, _ = clouds()
    own = [
        max(support[i] @ row for i in range(20) if i != k and labels[i] == labels[k]) for k, row in enumerate(support)
    ]
    other = [max(support[i] @ row for i in range(20) if labels[i] != labels[k]) for k, row in enumerate(support)]
    found = FewShotClassifier(unknown="auto").fit(support, labels).threshold_
    assert (np.mean(own) - found) / np.std(own) == pytest.approx((found - np.mean(other)) / np.std(other), rel=1e-4)

    single = FewShotClassifier(unknown="auto").fit(support[::5], labels[::5]).threshold_
    other = [max(support[i] @ support[k] for i in range(0, 20, 5) if i != k) for k in range(0, 20, 5)]
    assert single == pytest.approx(np.mean(other) + fewshot.ONE_SHOT_MARGIN * np.std(other), abs=1e-6)


def test_strangers_are_unknown_and_others_are_not() -> None:
    """Of classes not given most are refused, of given ones most are kept; below the threshold means unknown."""
    support, labels, queries, truth = clouds(6, dim=24)
    known = np.isin(truth, ["class0", "class1", "class2"])
    given = np.isin(labels, ["class0", "class1", "class2"])
    classifier = FewShotClassifier(unknown="auto").fit(support[given], labels[given])

    answers = classifier.predict(queries)
    assert (answers[~known] == "unknown").mean() > 0.8
    assert (answers[known] == truth[known]).mean() > 0.8
    for decision, answer in zip(classifier.decide(queries), answers, strict=True):
        assert (decision.label is None) == (answer == "unknown")
        assert (decision.label is None) == (decision.candidates[0].similarity < classifier.threshold_)
    assert "unknown" not in FewShotClassifier().fit(support[given], labels[given]).predict(queries)


def test_whole_numbers_know_minus_one() -> None:
    """Among labels that are numbers the unknown is -1; a class of that number is refused."""
    support, labels, queries, _ = clouds()
    number = np.unique(labels, return_inverse=True)[1]
    assert set(FewShotClassifier(unknown=1.0).fit(support, number).predict(queries)) == {-1}
    with pytest.raises(QueryError, match="a class is named -1"):
        FewShotClassifier(unknown=1.0).fit(support, number - 1)


def test_a_single_class_and_a_single_picture() -> None:
    """Everything is of it; with a threshold it verifies; nothing shows where unknown begins."""
    support, labels, queries, truth = clouds()
    one = FewShotClassifier().fit(support[:1], labels[:1])
    assert set(one.predict(queries)) == {"class0"}
    assert (one.predict_proba(queries) == 1).all()
    strict = FewShotClassifier(unknown=0.5).fit(support[:5], labels[:5])
    assert (strict.predict(queries[truth == "class0"]) == "class0").mean() > 0.9
    assert (strict.predict(queries[truth != "class0"]) == "unknown").mean() > 0.8
    with pytest.raises(QueryError, match="with a single class nothing shows what a stranger looks like"):
        FewShotClassifier(unknown="auto").fit(support[:5], labels[:5])
    for method in METHODS:
        assert FewShotClassifier(method).fit(support[:5], labels[:5]).score(queries[:5], truth[:5]) == 1


# ── the support set ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def kinds(make_pictures: Callable[..., Path]) -> Path:
    return make_pictures(*(f"{kind}/{n}.png" for kind in ("hats", "shoes") for n in range(3)), folder="kinds")


def names(support: Support) -> list[tuple[str, str]]:
    return [(Path(path).name, label) for path, label in zip(support.paths, support.labels, strict=True)]


def test_folders_csv_and_pairs_say_the_same(kinds: Path, tmp_path: Path) -> None:
    """A folder per class, a CSV file with a column, and label=picture (or folder) give one support."""
    listed = sorted(path.relative_to(tmp_path) for path in kinds.rglob("*.png"))
    table = tmp_path / "kinds.csv"
    table.write_text("image,kind\n" + "".join(f"{path},{path.parent.name}\n" for path in listed))

    folder = read_support(kinds)
    assert names(folder) == [(f"{n}.png", kind) for kind in ("hats", "shoes") for n in range(3)]
    assert read_support(table, "kind") == folder
    pairs = [("hats", str(kinds / "hats")), *(("shoes", str(kinds / "shoes" / f"{n}.png")) for n in range(3))]
    assert read_support(pairs) == folder


def test_what_is_no_support_says_why(kinds: Path, tmp_path: Path) -> None:
    """An empty folder, pictures without class folders, another file, no such column."""
    (tmp_path / "empty").mkdir()
    table = tmp_path / "k.csv"
    table.write_text("image,kind\nkinds/hats/0.png,hat\n")
    for place, message in (
        (tmp_path / "empty", "holds no labelled picture: it is empty"),
        (kinds / "hats", "holds pictures, but no folder per class"),
        (kinds / "hats" / "0.png", "neither a folder with a folder per class nor a CSV file"),
        (tmp_path / "nowhere", "neither a folder"),
        (table, "has no column label"),
        ([("hat", str(tmp_path / "gone.jpg"))], "no such file or folder"),
    ):
        with pytest.raises(CatalogueError, match=message):
            read_support(place)


def test_each_content_counts_once_and_contradictions_not_at_all(kinds: Path, tiny: Encoder) -> None:
    """A copy within a class is counted once; a picture under two labels is left out of both; both are told."""
    shutil.copy(kinds / "hats" / "0.png", kinds / "hats" / "copy.png")
    shutil.copy(kinds / "hats" / "1.png", kinds / "shoes" / "9.png")
    support = encode_support(tiny, read_support(kinds))

    assert names(support) == [("0.png", "hats"), ("2.png", "hats"), *((f"{n}.png", "shoes") for n in range(3))]
    assert support.vectors.shape == (5, 48)
    np.testing.assert_allclose(support.vectors, tiny.images(list(support.paths)), atol=1e-5)
    assert support.notes[0].endswith("are one picture with the labels hats, shoes; it can teach neither")
    assert support.notes[1] == "1 picture is a copy within a class: counted once"


def test_broken_pictures_are_skipped_until_a_class_has_none(kinds: Path, tiny: Encoder) -> None:
    """Each is told with its reason; with --shots the next ones take their place; a class without any is an error."""
    (kinds / "hats" / "0.png").write_bytes(b"broken")
    support = encode_support(tiny, read_support(kinds), shots=2)
    assert names(support) == [("1.png", "hats"), ("2.png", "hats"), ("0.png", "shoes"), ("1.png", "shoes")]
    assert [note.startswith("skipped: cannot read picture") for note in support.notes] == [True]

    for number in (1, 2):
        (kinds / "hats" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(CatalogueError, match=r"class hats has no picture left \(skipped: .*0\.png.*give it another"):
        encode_support(tiny, read_support(kinds))


def test_more_shots_than_there_are(kinds: Path, tiny: Encoder) -> None:
    """The error names the classes, what they have, and what would do."""
    (kinds / "shoes" / "2.png").unlink()
    with pytest.raises(CatalogueError, match="3 shots are more than there are: shoes has 2; ask for 2 at most"):
        encode_support(tiny, read_support(kinds), shots=3)
    with pytest.raises(QueryError, match="shots must be at least 1"):
        encode_support(tiny, read_support(kinds), shots=0)


def test_a_limit_encodes_no_more_than_it_needs(kinds: Path, tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large class folders only the shots are encoded."""
    seen: list[str] = []
    stream = tiny.stream
    monkeypatch.setattr(tiny, "stream", lambda paths: stream([seen.append(path) or path for path in paths]))
    encode_support(tiny, read_support(kinds), shots=1)
    assert [Path(path).name for path in seen] == ["0.png", "0.png"]
