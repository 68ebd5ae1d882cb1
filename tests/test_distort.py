"""The same picture, taken again: still the same picture, by as much as it says, and the same each time."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from lookalike import distort, metrics
from lookalike.distort import KINDS, distorted, write_queries
from lookalike.errors import ImageError
from lookalike.images import read
from lookalike.vectors import unit

SIZES = [(200, 150), (64, 64), (90, 300), (1, 1), (3, 70)]


def opened(path):
    return Image.open(io.BytesIO(Path(path).read_bytes()))


def texture(seed=0, size=(200, 150)):
    """Noise at several scales, in colour: something everywhere, coarse stronger than fine, as in photographs."""
    dice = np.random.default_rng(seed)
    whole = np.zeros((size[1], size[0], 3))
    for cells, strength in ((3, 60), (8, 40), (25, 25), (99, 20)):
        coarse = Image.fromarray(dice.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        whole += (np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=float) - 127.5) / 127.5 * strength
    return Image.fromarray((whole + 127.5).clip(0, 255).astype(np.uint8))


def compass(size=(200, 150)):
    """Where a pixel came from, written in its colour: x in red, y in green."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], 2).astype(np.uint8))


def thumbnail(image):
    small = np.asarray(image.resize((16, 16), Image.Resampling.BOX).convert("L"), dtype=float).ravel()
    return small - small.mean()


def correlation(one, other):
    one, other = thumbnail(one), thumbnail(other)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def draws(kind, image, count=60):
    return [distorted(image, kind, np.random.default_rng(seed)) for seed in range(count)]


def covered(image):
    """The pixels of a covered picture of zeros, as their box."""
    found = np.asarray(image).any(2)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    return found, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


class TestDistorted:
    def test_the_kinds_are_those_that_can_be_done(self):
        assert set(KINDS) == set(distort._CHANGES) and len(set(KINDS)) == len(KINDS) == 8

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("size", SIZES)
    def test_whatever_the_picture_an_rgb_image_of_its_size(self, kind, size):
        for mode in ("RGB", "L", "RGBA", "P"):
            for image in draws(kind, texture(size=size).convert(mode), 4):
                assert image.mode == "RGB"
                if kind in ("crop", "all"):
                    assert all(0 < part <= whole for part, whole in zip(image.size, size, strict=True))
                else:
                    assert image.size == size

    @pytest.mark.parametrize("kind", KINDS)
    def test_equal_dice_give_equal_pictures_and_others_others(self, kind):
        whole = texture()
        before = whole.tobytes()
        first, again, other = (distorted(whole, kind, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first.size == again.size and first.tobytes() == again.tobytes()
        assert (first.tobytes() == other.tobytes()) == (kind == "jpeg")
        assert whole.tobytes() == before

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_path_its_bytes_and_the_opened_picture_are_one(self, kind, tmp_path):
        texture().save(tmp_path / "a.png")
        sources = (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), texture())
        made = {distorted(source, kind, np.random.default_rng(5)).tobytes() for source in sources}
        assert len(made) == 1

    # Thumbnails see blur, JPEG and exposure hardly at all; geometry moves everything, so that the mean is looked at.
    @pytest.mark.parametrize(
        ("kind", "least", "mean", "most"),
        [
            ("crop", 0.0, (0.3, 0.9), 0.995),
            ("rotate", 0.0, (0.3, 0.95), 0.995),
            ("all", -0.5, (0.1, 0.9), 0.99),
            ("perspective", 0.3, (0.6, 0.98), 0.9999),
            ("blur", 0.99, (0.99, 1.0), 1.0),
            ("jpeg", 0.99, (0.99, 1.0), 1.0),
            ("brightness", 0.8, (0.95, 1.0), 1.0),
            ("occlusion", 0.3, (0.6, 0.99), 0.9999),
        ],
    )
    def test_changed_but_recognisable(self, kind, least, mean, most):
        found = []
        for seed in range(40):
            whole = texture(seed)
            other = distorted(whole, kind, np.random.default_rng(seed))
            assert other.size != whole.size or np.abs(np.asarray(other, int) - np.asarray(whole, int)).mean() > 0.3
            found.append(correlation(whole, other))
        strangers = [correlation(texture(seed), texture(seed + 1)) for seed in range(40)]
        assert min(found) > least and max(found) <= most + 1e-9
        assert mean[0] < np.mean(found) <= mean[1] + 1e-9
        assert np.mean(strangers) < 0.3  # the scale of what was measured

    def test_unreadable_is_an_image_error(self, tmp_path):
        with pytest.raises(ImageError):
            distorted(b"not a picture", "blur", np.random.default_rng(0))
        with pytest.raises(ImageError, match="too many for a JPEG"):
            distorted(Image.new("RGB", (65_536, 1)), "jpeg", np.random.default_rng(0))

    def test_an_unknown_kind_is_named_with_all_kinds(self):
        with pytest.raises(ValueError, match=r"crop, rotate, .*, occlusion, all, got 'swirl'"):
            distorted(texture(), "swirl", np.random.default_rng(0))


class TestStrengths:
    def test_a_crop_is_that_part_of_the_picture_and_keeps_50_to_80_percent(self):
        shares, aspects, lefts = [], [], []
        for part in draws("crop", compass()):
            pixels = np.asarray(part, dtype=int)
            x, y = pixels[0, 0, 0], pixels[0, 0, 1]
            assert (pixels == np.asarray(compass(), dtype=int)[y : y + part.height, x : x + part.width]).all()
            shares.append(part.width * part.height / (200 * 150))
            aspects.append(part.width / part.height / (200 / 150))
            lefts.append(x / max(1, 200 - part.width))
        assert 0.49 < min(shares) < 0.55 and 0.75 < max(shares) < 0.81
        assert 0.74 < min(aspects) < 0.85 and 1.18 < max(aspects) < 1.35
        assert min(lefts) < 0.1 and max(lefts) > 0.9

    def test_a_panorama_is_cropped_as_much(self):
        shares = [part.width * part.height / 40_000 for part in draws("crop", compass((1000, 40)))]
        assert min(shares) > 0.48 and max(shares) < 0.82

    def test_rotation_is_by_10_to_30_degrees_either_way_about_the_centre(self):
        # Half the picture is red and half is blue: the border runs through the centre, and tells the angle.
        halves = Image.new("RGB", (201, 201), "red")
        halves.paste((0, 0, 255), (0, 0, 201, 100))
        angles = []
        for turned in draws("rotate", halves):
            blue = np.asarray(turned, dtype=int)[:, :, 2] > 127
            edge = blue[:, 60:141].sum(0)
            slope, at_left = np.polyfit(np.arange(60, 141) - 100.5, edge, 1)
            assert at_left == pytest.approx(100.5, abs=1.5)
            angles.append(np.degrees(np.arctan(slope)))
        sizes = np.abs(angles)
        assert 9.5 < sizes.min() < 14 and 26 < sizes.max() < 30.5
        assert 0.3 < np.mean(np.array(angles) > 0) < 0.7

    def test_corners_are_mirrored_not_filled(self):
        for kind in ("rotate", "perspective"):
            for white in draws(kind, Image.new("RGB", (80, 60), (255, 255, 255)), 10):
                assert np.asarray(white).min() == 255
            for grey in draws(kind, Image.new("RGB", (80, 60), (90, 91, 92)), 10):
                assert (np.asarray(grey) == (90, 91, 92)).all()

    def test_perspective_moves_corners_by_15_percent_of_the_sides(self, monkeypatch):
        seen = []
        monkeypatch.setattr(distort, "_seen", lambda image, corners: seen.append(corners) or image)
        draws("perspective", compass((200, 100)), 100)
        moves = (np.array(seen) - [(0, 0), (200, 0), (200, 100), (0, 100)]) / (200, 100)
        assert 0.145 < np.abs(moves).max() < 0.1501 and moves.min() < -0.14 < 0.14 < moves.max()
        assert np.abs(moves).mean() == pytest.approx(0.075, rel=0.1)

    def test_what_is_seen_lies_where_the_corners_say(self):
        corners = np.array([(20.0, 10.0), (190.0, 4.0), (180.0, 140.0), (6.0, 120.0)])
        seen = np.asarray(distort._seen(compass(), corners), dtype=float)[:, :, :2]
        places = (
            seen[[0, 0, -1, -1], [0, -1, -1, 0]] + 0.5
        )  # a pixel's colour is its place, and its middle half further
        np.testing.assert_allclose(places, corners, atol=1.5)

    def test_the_whole_seen_as_it_is_is_the_whole(self):
        whole = texture()
        np.testing.assert_allclose(
            np.asarray(distort._seen(whole, distort._corners(whole)), int), np.asarray(whole, int), atol=1
        )

    @pytest.mark.parametrize("side", [112, 448])
    def test_blur_grows_with_the_picture(self, side):
        # An edge's slope is the Gaussian.
        spread = Image.new("RGB", (side, 2 * side))
        ImageDraw.Draw(spread).rectangle((side // 2, 0, side, 2 * side), fill="white")
        sigmas = []
        for image in draws("blur", spread, 40):
            profile = np.diff(np.asarray(image, dtype=float)[side, : side * 3 // 4, 0])
            places = np.arange(len(profile))
            mean = (profile * places).sum() / profile.sum()
            sigmas.append(np.sqrt((profile * (places - mean) ** 2).sum() / profile.sum()) * 224 / side)
        assert 0.7 < min(sigmas) < 1.0 and 1.75 < max(sigmas) < 2.1

    def test_jpeg_loses_what_quality_30_loses(self):
        stream = io.BytesIO()
        texture().save(stream, "JPEG", quality=30)
        ours = distorted(texture(), "jpeg", np.random.default_rng(0))
        assert ours.tobytes() == Image.open(stream).convert("RGB").tobytes()

    def test_brightness_is_half_to_three_quarters_or_up_to_seventeen_tenths(self):
        factors = [
            np.asarray(image)[0, 0, 0] / 100 for image in draws("brightness", Image.new("RGB", (8, 8), "#646464"))
        ]
        darker, brighter = [f for f in factors if f < 1], [f for f in factors if f > 1]
        assert 0.49 < min(darker) < 0.55 and 0.7 < max(darker) < 0.76
        assert 1.29 < min(brighter) < 1.38 and 1.62 < max(brighter) < 1.71
        assert 15 < len(darker) < 45
        for image in draws("brightness", Image.new("RGB", (8, 8), "#ff64c8"), 20):
            red, green, _ = np.asarray(image)[0, 0]
            assert red == 255 if green > 100 else red < 200

    def test_occlusion_covers_one_rectangle_of_10_to_25_percent_in_three_ways(self):
        shares, aspects, covers = [], [], set()
        for image in draws("occlusion", Image.new("RGB", (200, 150))):
            found, (left, top, right, bottom) = covered(image)
            pixels = np.asarray(image)[top:bottom, left:right]
            outside = found.copy()
            outside[top:bottom, left:right] = False
            assert not outside.any()
            shares.append((right - left) * (bottom - top) / (200 * 150))
            aspects.append((right - left) / (bottom - top) / (200 / 150))
            one = (pixels == pixels[0, 0]).all()
            covers.add("noise" if not one else "grey" if (pixels[0, 0] == 128).all() else "colour")
        assert 0.095 < min(shares) < 0.12 and 0.22 < max(shares) < 0.255
        assert 0.45 < min(aspects) < 0.7 and 1.5 < max(aspects) < 2.1
        assert covers == {"noise", "grey", "colour"}


@pytest.fixture
def pictures(tmp_path):
    top = tmp_path / "pictures"
    top.mkdir()
    for number in range(9):
        texture(number, (90 + number, 70)).save(top / f"{number}.png")
    return sorted(str(path) for path in top.iterdir())


class TestWriteQueries:
    def test_one_file_per_picture_named_and_distorted_in_turn(self, pictures, tmp_path):
        made = write_queries(pictures, tmp_path / "q" / "deep")
        assert [os.path.relpath(path, tmp_path / "q" / "deep") for path in made] == [
            f"{number:06}-{KINDS[number % 8]}.jpg" for number in range(9)
        ]
        assert sorted((tmp_path / "q" / "deep").iterdir()) == [Path(path) for path in made]
        for number, (source, path) in enumerate(zip(pictures, made, strict=True)):
            wanted = distorted(source, KINDS[number % 8], np.random.default_rng([0, number]))
            ours = opened(path)
            assert ours.format == "JPEG" and ours.size == wanted.size
            error = np.abs(np.asarray(ours, int) - np.asarray(wanted, int)).mean()
            assert error < (20 if "occlusion" in path else 8), path  # JPEG thins out colour, most of all in noise

    def test_quality_is_95_and_30_for_the_kind_that_says_so(self, pictures, tmp_path):
        def tables(quality):
            stream = io.BytesIO()
            texture().save(stream, "JPEG", quality=quality)
            return Image.open(stream).quantization

        for path in write_queries(pictures, tmp_path / "q"):
            assert opened(path).quantization == tables(30 if "jpeg" in path or "all" in path else 95)

    def test_the_jpeg_is_encoded_once(self, pictures, tmp_path):
        (path,) = write_queries(pictures[:1], tmp_path / "q", kinds=["jpeg"])
        assert read(path).tobytes() == distorted(pictures[0], "jpeg", np.random.default_rng(0)).tobytes()

    def test_large_pictures_are_reduced_first_and_small_ones_left(self, tmp_path):
        texture(size=(900, 300)).save(tmp_path / "large.png")
        texture(size=(90, 30)).save(tmp_path / "small.png")
        paths = [str(tmp_path / name) for name in ("large.png", "small.png")]
        made = write_queries(paths, tmp_path / "q", kinds=["brightness"])
        assert [opened(path).size for path in made] == [(640, 213), (90, 30)]
        made = write_queries(paths, tmp_path / "q", kinds=["blur"], long_side=60)
        assert [opened(path).size for path in made] == [(60, 20), (60, 20)]

    def test_equal_seeds_give_equal_files(self, pictures, tmp_path):
        first, again, other = (
            [Path(path).read_bytes() for path in write_queries(pictures, tmp_path / name, seed=seed)]
            for name, seed in (("a", 3), ("b", 3), ("c", 4))
        )
        assert first == again
        assert all(
            one != two or KINDS[number % 8] == "jpeg"
            for number, (one, two) in enumerate(zip(first, other, strict=True))
        )

    def test_unreadable_pictures_are_none_and_the_others_keep_their_numbers(self, pictures, tmp_path):
        (tmp_path / "text.jpg").write_text("no picture")
        paths = [str(tmp_path / "missing.png"), pictures[0], str(tmp_path / "text.jpg"), str(tmp_path), pictures[1]]
        made = write_queries(paths, tmp_path / "q")
        assert [path and Path(path).name for path in made] == [
            None,
            "000001-rotate.jpg",
            None,
            None,
            "000004-jpeg.jpg",
        ]
        assert len(list((tmp_path / "q").iterdir())) == 2

    def test_made_again_nothing_is_written(self, pictures, tmp_path, monkeypatch):
        made = write_queries(pictures, tmp_path / "q")
        for path in made:
            os.utime(path, ns=(1, 1))
        # Half of the files are missing, as after a kill; one is half a file, as a full disk leaves it.
        Path(made[3]).unlink()
        os.truncate(made[4], 10)
        assert write_queries(pictures, tmp_path / "q") == made
        assert [Path(path).stat().st_mtime_ns == 1 for path in made] == [number not in (3, 4) for number in range(9)]
        assert opened(made[4]).convert("RGB").size == opened(pictures[4]).size

    def test_a_query_of_another_picture_seed_or_size_is_made_anew(self, pictures, tmp_path):
        made = write_queries(pictures, tmp_path / "q")

        def rewritten(paths, **options):
            for path in made:
                os.utime(path, ns=(1, 1))
            return [Path(path).stat().st_mtime_ns != 1 for path in write_queries(paths, tmp_path / "q", **options)]

        assert not any(rewritten(pictures))
        assert rewritten([pictures[0], pictures[8], *pictures[2:]]) == [False, True] + 7 * [False]
        assert all(rewritten(pictures, seed=1)) and all(rewritten(pictures, seed=1, long_side=50))
        texture(77).save(pictures[5])
        assert rewritten(pictures, seed=1, long_side=50) == 5 * [False] + [True] + 3 * [False]

    def test_no_part_of_a_file_stays_when_the_disk_is_full(self, pictures, tmp_path, monkeypatch):
        def full(self, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(distort.Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write_queries(pictures, tmp_path / "q")
        assert list((tmp_path / "q").iterdir()) == []

    def test_a_query_tells_nobody_where_its_picture_lay(self, pictures, tmp_path):
        for path in write_queries(pictures, tmp_path / "q"):
            assert str(Path(pictures[0]).parent).encode() not in Path(path).read_bytes()

    def test_names_that_are_no_text(self, tmp_path):
        name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
        try:
            texture().save(Path(name))
        except OSError:
            pytest.skip("this file system knows only text")
        assert write_queries([name], tmp_path / "q")[0]

    def test_wrong_arguments(self, pictures, tmp_path):
        for kinds in (["swirl"], ["crop", "swirl"], []):
            with pytest.raises(ValueError, match="crop, rotate"):
                write_queries(pictures, tmp_path / "q", kinds=kinds)
        with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
            write_queries(pictures, tmp_path / "q", long_side=0)
        assert write_queries([], tmp_path / "q") == []


def against_gallery(measure, gallery, queries, **options):
    count = len(gallery)
    vectors, labels = np.concatenate([gallery, queries]), np.tile(np.arange(count), 2)
    return measure(vectors, labels, groups=np.repeat([0, 1], count), **options)[count:]


class TestQueriesAgainstOriginals:
    """How `lookalike.metrics` is to be asked about them: originals are one group, queries another."""

    def test_a_constant_encoder_scores_the_least(self):
        constant = np.ones((50, 8), dtype=np.float32)
        assert against_gallery(metrics.recall_at_k, constant, constant, k=1).tolist() == [0.0] * 50
        assert against_gallery(metrics.recall_at_k, constant, constant, k=49).sum() == 0
        np.testing.assert_allclose(against_gallery(metrics.reciprocal_rank, constant, constant), 1 / 50)

    def test_as_a_naive_loop_ranks_them(self):
        dice = np.random.default_rng(0)
        gallery = unit(dice.normal(size=(40, 5)))
        queries = unit(gallery + 0.6 * dice.normal(size=(40, 5)))
        ranks = np.array([1 + sum(q @ g > q @ gallery[own] for g in gallery) for own, q in enumerate(queries)])
        assert ranks.max() > 1
        np.testing.assert_allclose(against_gallery(metrics.reciprocal_rank, gallery, queries), 1 / ranks)
        np.testing.assert_array_equal(against_gallery(metrics.recall_at_k, gallery, queries, k=5), ranks <= 5)

    def test_a_blurred_copy_of_each_is_found(self):
        # Dull as it is, the distance of thumbnails knows blur, JPEG and exposure from another picture.
        wholes = [texture(seed, (64, 64)) for seed in range(14)]
        kinds = ["blur", "jpeg"]
        changed = [distorted(w, kinds[i % 2], np.random.default_rng(i)) for i, w in enumerate(wholes)]
        assert any(w.filter(ImageFilter.BLUR).tobytes() != c.tobytes() for w, c in zip(wholes, changed, strict=True))
        gallery, queries = (np.stack([thumbnail(image) for image in images]) for images in (wholes, changed))
        assert against_gallery(metrics.recall_at_k, gallery, queries).mean() == 1.0


def test_all_is_every_kind_in_turn():
    """By hand, one after the other, with the same dice; and a file of it is saved once, at quality 30."""
    dice, by_hand = np.random.default_rng(3), texture()
    for kind in ("occlusion", "perspective", "rotate", "crop", "brightness", "blur", "jpeg"):
        by_hand = distorted(by_hand, kind, dice)
    assert distorted(texture(), "all", np.random.default_rng(3)).tobytes() == by_hand.tobytes()
