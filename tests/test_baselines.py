"""The encoders that learn nothing: shapes, unit rows, and what they can and cannot tell apart."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lookalike.baselines import ColourHistogram, LinearSVM, Pixels
from lookalike.errors import ImageError, MissingExtra, QueryError, ShapeError, TrainingError

ENCODERS = [Pixels(), Pixels(size=4), ColourHistogram(), ColourHistogram(bins=(6, 3, 3), size=16)]


def plain(colour, size=(40, 30)):
    return Image.new("RGB", size, colour)


def noise(seed=0, size=(40, 30)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: f"{e.name}-{e.dim}")
class TestEncoders:
    def test_rows_have_unit_length_whatever_the_picture(self, encoder):
        pictures = [plain(colour) for colour in ("black", "white", (127, 128, 128))]
        pictures += [noise(), plain("red", (1, 1)), plain("blue", (3, 999))]
        rows = encoder.images(pictures)
        assert rows.shape == (6, encoder.dim) and rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)

    def test_no_pictures_give_no_rows(self, encoder):
        assert encoder.images([]).shape == (0, encoder.dim)

    def test_a_file_its_bytes_and_the_opened_picture_are_one(self, encoder, tmp_path):
        noise().save(tmp_path / "a.png")
        data = (tmp_path / "a.png").read_bytes()
        rows = encoder.images([tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.open(io.BytesIO(data))])
        assert (rows == rows[0]).all()

    def test_other_colours_are_further_than_a_copy(self, encoder):
        red, copy, blue = encoder.images([plain("red"), plain((250, 2, 2)), plain("blue")])
        assert red @ copy > 0.95 > red @ blue

    def test_unreadable_is_an_image_error(self, encoder):
        with pytest.raises(ImageError):
            encoder.images([b"not a picture"])


def halves(left, right):
    image = plain(left)
    image.paste(plain(right, (20, 30)), (20, 0))
    return image


def test_only_pixels_know_where_colours_are():
    pictures = [halves("red", "blue"), halves("blue", "red")]
    a, b = ColourHistogram().images(pictures)
    assert a @ b > 0.99
    a, b = Pixels().images(pictures)
    assert a @ b < 0.5


def test_the_histogram_is_the_bhattacharyya_coefficient():
    a, b = ColourHistogram().images([halves("red", "blue"), plain("red")])
    assert a @ b == pytest.approx(np.sqrt(0.5), abs=0.02)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="size"):
        Pixels(size=0)
    with pytest.raises(ValueError, match="bins"):
        ColourHistogram(bins=(0, 4, 4))


def test_nothing_heavy_is_imported():
    code = "import sys, lookalike.baselines; sys.exit(any(m in sys.modules for m in ('torch', 'sklearn', 'cv2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def clouds(count=40, classes=4, dim=6, seed=0):
    """Classes around centres that are far apart, in columns of very different scale and offset."""
    dice = np.random.default_rng(seed)
    labels = np.array(["ape", "bat", "cow", "dog", "elk"])[np.arange(count * classes) % classes]
    centres = np.random.default_rng(99).normal(0, 4, (classes, dim))
    rows = centres[np.arange(count * classes) % classes] + dice.normal(0, 1, (count * classes, dim))
    return rows * 10.0 ** np.arange(dim) + 1000, labels


class TestLinearSVM:
    @pytest.mark.parametrize("classes", [2, 3, 5])
    def test_it_tells_separable_classes_apart(self, classes):
        rows, labels = clouds(classes=classes)
        new, theirs = clouds(classes=classes, seed=1)
        machine = LinearSVM().fit(rows, labels)
        assert machine.score(new, theirs) > 0.97
        assert machine.classes_.tolist() == sorted(set(labels))
        assert machine.coef_.shape == (classes, 6) and machine.intercept_.shape == (classes,)
        assert machine.decision_function(new).shape == (len(new), classes)
        assert (machine.classes_[machine.decision_function(new).argmax(1)] == machine.predict(new)).all()

    def test_it_is_as_good_as_the_exact_solution_on_standardised_rows(self):
        """Against liblinear, one machine per class, the same loss and cost."""
        from sklearn.datasets import load_digits
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        digits = load_digits()
        rows, labels = digits.data, digits.target
        ours = LinearSVM(cost=10).fit(rows[:1200], labels[:1200])
        exact = LinearSVC(loss="hinge", C=10 / 64, max_iter=100_000, random_state=0)
        theirs = make_pipeline(StandardScaler(), exact).fit(rows[:1200], labels[:1200])
        assert ours.score(rows[1200:], labels[1200:]) > theirs.score(rows[1200:], labels[1200:]) - 0.01
        assert (ours.predict(rows[1200:]) == theirs.predict(rows[1200:])).mean() > 0.93

    def test_scale_offset_and_repeated_columns_do_not_matter(self):
        """Of rows shifted and stretched it says the same; so it does where all columns are there twice."""
        rows, labels = clouds()
        new, _ = clouds(seed=1)
        plain = LinearSVM().fit(rows, labels).decision_function(new)
        np.testing.assert_allclose(
            LinearSVM().fit(3 * rows - 7, labels).decision_function(3 * new - 7), plain, atol=1e-5
        )
        twice = LinearSVM().fit(np.hstack([rows, rows]), labels).decision_function(np.hstack([new, new]))
        np.testing.assert_allclose(twice, plain, atol=1e-5)

    def test_a_column_that_never_changed_is_not_looked_at(self):
        rows, labels = clouds()
        machine = LinearSVM().fit(np.hstack([rows, np.full((len(rows), 1), 0.1)]), labels)
        new, theirs = clouds(seed=1)
        assert machine.score(np.hstack([new, np.full((len(new), 1), 1e9)]), theirs) > 0.97

    def test_equal_seeds_give_equal_machines(self):
        rows, labels = clouds()
        one, same, other = (LinearSVM(seed=seed).fit(rows, labels).coef_ for seed in (0, 0, 1))
        assert (one == same).all() and (one != other).any()

    def test_rows_that_say_nothing_are_named_by_chance(self):
        """Constant vectors know no class: one of two equally frequent ones is right."""
        labels = np.arange(40) % 2
        assert LinearSVM().fit(np.ones((40, 5)), labels).score(np.ones((40, 5)), labels) == 0.5

    def test_errors_say_what_is_wrong(self):
        rows, labels = clouds()
        with pytest.raises(ValueError, match="above 0"):
            LinearSVM(cost=0)
        with pytest.raises(QueryError, match="call fit"):
            LinearSVM().predict(rows)
        with pytest.raises(ShapeError, match="one for each of 160 rows"):
            LinearSVM().fit(rows, labels[:-1])
        with pytest.raises(ShapeError, match="row 3 is not"):
            LinearSVM().fit(np.where(np.arange(160)[:, None] == 3, np.nan, rows), labels)
        with pytest.raises(ShapeError, match="6 numbers, as in fit, got 5"):
            LinearSVM().fit(rows, labels).predict(rows[:, :5])
        with pytest.raises(ShapeError, match=r"\(n, dim\)"):
            LinearSVM().fit(rows[0], labels[:1])
        with pytest.raises(TrainingError, match="two classes, got 1"):
            LinearSVM().fit(rows, np.full(160, "ape"))

    def test_without_scikit_learn_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
        with pytest.raises(MissingExtra, match=r"lookalike\[baselines\]"):
            LinearSVM().fit(*clouds())
