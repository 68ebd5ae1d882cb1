"""The encoders that learn nothing: shapes, unit rows, and what they can and cannot tell apart."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lookalike.baselines import ColourHistogram, Pixels
from lookalike.errors import ImageError

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
