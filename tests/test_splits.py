"""Who trains and who judges: shares, whole classes, and pictures found on two sides."""

from __future__ import annotations

import io
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from lookalike import splits
from lookalike.errors import ConfigError, ShapeError
from lookalike.images import Preprocessing
from lookalike.labels import Example
from lookalike.splits import duplicates, leaks, split, summary, thumbnails


def made(sizes, category=lambda number: "") -> list[Example]:
    return [Example(f"/{n}/{i}.png", f"c{n}", category(n)) for n, size in enumerate(sizes) for i in range(size)]


def by_side(examples, sides, what=lambda example: example.label) -> dict[str, set]:
    groups = defaultdict(set)
    for example, side in zip(examples, sides, strict=True):
        groups[str(side)].add(what(example))
    return groups


# ── split ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
def test_classes_stay_whole(seed):
    """No class lies on two sides, and the shares in pictures come out although classes differ in size."""
    examples = made(np.random.default_rng(seed).integers(2, 40, 60))
    sides = split(examples, validation=0.2, test=0.1, seed=seed)
    groups, counts = by_side(examples, sides), Counter(sides.tolist())

    assert sum(len(group) for group in groups.values()) == 60
    assert counts["validation"] / len(examples) == pytest.approx(0.2, abs=0.005)
    assert counts["test"] / len(examples) == pytest.approx(0.1, abs=0.005)


def test_few_classes_of_very_different_size():
    """With seven classes, two are held out on each side, and not the large ones."""
    examples = made([500, 300, 20, 25, 30, 200, 15])
    counts = Counter(split(examples, validation=0.04, test=0.04).tolist())

    assert counts["validation"] in range(35, 56) and counts["test"] in range(35, 56)


def test_categories_stay_whole():
    """By category, no category lies on two sides; a class without one stands for itself."""
    examples = made([10] * 40, category=lambda n: f"k{n % 8}" if n < 32 else "")
    sides = split(examples, by="category", validation=0.2, test=0.2)
    groups = by_side(examples, sides, lambda e: e.category or e.label)

    assert sum(len(group) for group in groups.values()) == 16
    assert all(len(group) >= 2 for group in by_side(examples, sides).values())
    assert Counter(sides.tolist())["test"] == pytest.approx(80, abs=10)


def test_by_picture_divides_every_class():
    """Each class gives its share to each side, lonely pictures train, and the total is right to one picture."""
    examples = made([20] * 15 + [1] * 10)
    sides = split(examples, by="picture", validation=0.1, test=0.25)
    table = Counter((e.label, str(side)) for e, side in zip(examples, sides, strict=True))

    assert all(4 <= table[f"c{n}", "test"] <= 6 and 1 <= table[f"c{n}", "validation"] <= 3 for n in range(15))
    assert all(table[f"c{n}", "train"] == 1 for n in range(15, 25))
    assert Counter(sides.tolist())["test"] == pytest.approx(75, abs=1)


@pytest.mark.parametrize("by", ["class", "category", "picture"])
def test_the_seed_decides(by):
    """Equal seeds give equal splits, others give others."""
    examples = made([6] * 40, category=lambda n: f"k{n // 4}")

    assert (split(examples, by=by, seed=3) == split(examples, by=by, seed=3)).all()
    assert (split(examples, by=by, seed=3) != split(examples, by=by, seed=4)).any()


def test_a_share_of_nothing():
    """With both shares 0 all pictures train."""
    assert set(split(made([2, 2]), validation=0, test=0)) == {"train"}


def test_what_a_catalogue_says_is_kept():
    """Sides from a column go before shares and seed."""
    said = ["train", "train", "test", "test", "train", "test"]
    examples = [Example(f"/{i}", f"c{i}", "", side) for i, side in enumerate(said)]

    assert split(examples).tolist() == said


def test_a_side_needs_something_to_find():
    """Classes of one picture do not fill a side that is to be judged by."""
    examples = made([1] * 60 + [5] * 6)
    sides = split(examples, validation=0.1, test=0.1, seed=1)
    sizes = Counter(example.label for example in examples)

    for group in by_side(examples, sides).values():
        assert any(sizes[label] > 1 for label in group)


def test_impossible_splits():
    """Too few classes for two on each side, and shares that leave nothing, say what to do."""
    with pytest.raises(ConfigError, match=r"at least 2 classes, got .* of 4 classes: .*by = \"picture\""):
        split(made([5] * 4))
    with pytest.raises(ConfigError, match='by = "class"'):
        split(made([5] * 9, category=lambda n: "ab"[n % 2]), by="category")
    with pytest.raises(ConfigError, match="leave something to train"):
        split(made([5] * 9), validation=0.5, test=0.5)
    with pytest.raises(ConfigError, match="by must be class, category or picture"):
        split(made([5] * 9), by="colour")
    with pytest.raises(ConfigError, match="validation 1"):
        split([Example(f"/{i}", f"c{i}", "", "validation" if i == 3 else "train") for i in range(4)])


@pytest.mark.parametrize(
    ("given", "by", "advice"),
    [
        ("", "class", 'a split by picture (by = "picture", data.split in a configuration)'),
        ("", "category", 'a split by class (by = "class", data.split in a configuration)'),
        ("", "picture", "more classes of at least 2 pictures"),
        ("validation", "class", "other sides in the column split of the catalogue"),
        ("validation", "picture", "other sides in the column split of the catalogue"),
    ],
)
def test_too_few_classes_are_told_what_is_not_done_already(given, by, advice):
    """The advice names the argument and the key of a configuration, and never what was asked for."""
    examples = [Example(f"/{i}", "a", "x", given if i == 3 else "train" * bool(given)) for i in range(8)]
    with pytest.raises(ConfigError) as caught:
        split(examples, by=by)
    (problem,) = caught.value.problems

    assert advice in problem
    assert f'= "{by}"' not in problem


# ── leaks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shapes(seed: int) -> Image.Image:
    """A picture unlike any other: smooth random colours."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((120, 120), Image.Resampling.BICUBIC)


@pytest.fixture
def planted(tmp_path):
    """Nine classes of six pictures: 0 to 4 train, 5 and 6 validate, 7 and 8 test."""
    examples, sides = [], []
    for n in range(9):
        for i in range(6):
            path = tmp_path / f"{n}-{i}.png"
            shapes(10 * n + i).save(path)
            examples.append(Example(str(path), f"c{n}"))
            sides.append("train" if n < 5 else "validation" if n < 7 else "test")
    return tmp_path, examples, np.array(sides)


def decode(examples):
    return np.stack([Preprocessing(size=(48, 64)).load(example.path) for example in examples])


def rows_of(examples, label):
    return [row for row, example in enumerate(examples) if example.label == label]


def same_file(source, target):
    shutil.copy(source, target)


def saved_anew(source, target):
    with Image.open(source) as image:
        image.save(target, "JPEG", quality=40)


def resized(source, target):
    with Image.open(source) as image:
        image.resize((100, 107), Image.Resampling.LANCZOS).save(target, "PNG")


COPIES = [(same_file, "same file"), (saved_anew, "near-duplicate"), (resized, "near-duplicate")]


def test_a_clean_split_stays(planted):
    """Different pictures are no leak, and the sides stay as they were."""
    _, examples, sides = planted
    after, found = leaks(examples, sides, decode(examples))

    assert found == [] and (after == sides).all()
    assert summary(found) == []


@pytest.mark.parametrize(("copy", "kind"), COPIES)
@pytest.mark.parametrize(("origin", "judge", "to"), [(0, 5, "train"), (0, 7, "train"), (5, 8, "validation")])
def test_the_class_of_a_copy_goes_to_the_side_of_its_original(planted, copy, kind, origin, judge, to):
    """Copied, saved as JPEG or resized: the whole class joins the side nearer to training, and that is reported."""
    top, examples, sides = planted
    side = sides[6 * judge]
    copy(top / f"{origin}-2.png", top / f"{judge}-3.png")
    # A third class on that side, so that two remain.
    extra = [Example(f"/extra/{i}", "extra") for i in range(6)]
    pixels = np.concatenate([decode(examples), np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)])
    after, found = leaks([*examples, *extra], np.append(sides, [side] * 6), pixels)

    assert [(leak.stays, leak.goes, leak.kind) for leak in found] == [
        (str(top / f"{origin}-2.png"), str(top / f"{judge}-3.png"), kind)
    ]
    assert found[0].done == f"its class of 6 moved from {side} to {to}"
    moved = rows_of(examples, f"c{judge}")
    assert set(after[moved]) == {to}
    assert (np.delete(after[:54], moved) == np.delete(sides, moved)).all()
    assert kind in summary(found)[0] and "1 on two sides" in summary(found)[0]


def test_a_side_is_not_emptied(planted):
    """Where the class is needed on its side, only the picture is left out, on no side."""
    top, examples, sides = planted
    same_file(top / "0-0.png", top / "7-1.png")
    after, found = leaks(examples, sides)
    row = 6 * 7 + 1

    assert after[row] == "" and (np.delete(after, row) == np.delete(sides, row)).all()
    assert found[0].done == "left out of test"


def test_at_most_half_of_a_side_goes(tmp_path):
    """Of four equal classes two may go; pictures of the others are left out."""
    examples, sides = [], []
    for n in range(6):
        for i in range(2):
            path = tmp_path / f"{n}-{i}"
            path.write_bytes(f"{n % 2 if i else 10 * n}".encode())  # the second picture is that of class 0 or 1
            examples.append(Example(str(path), f"c{n}"))
            sides.append("train" if n < 2 else "test")
    after, found = leaks(examples, np.array(sides))

    assert Counter(after.tolist()) == {"train": 8, "test": 2, "": 2}
    assert len(found) == 4 and len({leak.goes for leak in found}) == 4


def test_by_picture_only_the_picture_moves(planted):
    """Classes lie on all sides then anyway."""
    top, examples, sides = planted
    saved_anew(top / "0-0.png", top / "7-1.png")
    after, found = leaks(examples, sides, decode(examples), by="picture")

    assert found[0].done == "moved from test to train"
    assert after[43] == "train" and (np.delete(after, 43) == np.delete(sides, 43)).all()


def test_categories_and_catalogues_are_not_overruled(planted):
    """By category, and with sides from a catalogue, the picture is left out and nothing else moves."""
    top, examples, sides = planted
    same_file(top / "0-0.png", top / "7-1.png")
    said = [Example(e.path, e.label, "", str(side)) for e, side in zip(examples, sides, strict=True)]

    for given, by in ((examples, "category"), (said, "class"), (said, "picture")):
        after, found = leaks(given, sides, by=by)
        assert after[43] == "" and Counter(after.tolist())[""] == 1
        assert found[0].done == "left out of test"


def test_what_moves_is_looked_at_again(tmp_path):
    """A class that moves can bring a copy of its own along, which then moves, too; both are reported."""
    contents = {"validation": "xaghklmn", "test": "xyopqrst", "train": "abcdef"}
    examples, sides = [], []
    for side, letters in contents.items():
        for i, letter in enumerate(letters):
            path = tmp_path / f"{side}{i}"
            path.write_text(letter)
            examples.append(Example(str(path), f"{side}{i // 2}"))
            sides.append(side)
    after, found = leaks(examples, np.array(sides))

    assert after[[0, 1]].tolist() == ["train"] * 2 and after[[8, 9]].tolist() == ["train"] * 2
    assert Counter(after.tolist()) == {"train": 10, "validation": 6, "test": 6}
    assert {leak.goes for leak in found} == {str(tmp_path / "validation1"), str(tmp_path / "test0")}


@pytest.mark.parametrize("cells", [splits.BLOCK_CELLS, 100])
def test_many_copies_at_once(tmp_path, monkeypatch, cells):
    """After it, no two equal pictures lie on two sides, whatever was planted; blocks do not matter."""
    monkeypatch.setattr(splits, "BLOCK_CELLS", cells)
    dice = np.random.default_rng(5)
    content = dice.integers(0, 12, 60)
    examples = [Example(str(tmp_path / str(i)), f"c{i // 3}") for i in range(60)]
    for example, number in zip(examples, content, strict=True):
        (tmp_path / example.path).write_text(str(number))
    pixels = np.stack([np.asarray(shapes(int(number))) for number in content])
    sides = dice.permutation(np.repeat(["train", "validation", "test"], [10, 5, 5])).repeat(3)
    for by in ("picture", "category", "class"):
        after, found = leaks(examples, sides, by=by)
        assert len(found) > 15
        for number in range(12):
            assert len(set(after[content == number]) - {""}) <= 1
    assert (after == leaks(examples, sides, pixels)[0]).all()
    assert (leaks(examples, sides, pixels[::-1], rows=np.arange(60)[::-1])[0] == after).all()


def test_other_colours_and_flat_pictures_are_no_duplicates():
    """A variant in another colour of equal brightness is another picture, and so are two empty ones of unlike grey."""
    grey = np.full((1, 32, 32, 3), 120, dtype=np.uint8)
    grey[:, 8:24, 8:24] = 60
    red = grey.copy()
    red[:, 8:24, 8:24] = (120, 30, 60)  # luma 60.3
    flat = np.full((1, 32, 32, 3), 121, dtype=np.uint8)
    examples = [Example(f"/{i}", f"c{i}") for i in range(4)]
    sides = np.array(["train", "test", "train", "test"])

    assert leaks(examples, sides, np.concatenate([grey, red, flat, flat]))[1] == []
    assert len(leaks(examples, sides, np.concatenate([grey, grey, flat, red]))[1]) == 1


def test_thumbnails_are_area_averages():
    """Of sides that 16 divides, cells are block means; of others, each pixel counts by the share in the cell."""
    dice = np.random.default_rng(0)
    pixels = dice.integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    expected = pixels.astype(float).reshape(3, 16, 2, 16, 3, 3).mean(axis=(2, 4))

    np.testing.assert_allclose(thumbnails(pixels), expected, rtol=1e-5)
    np.testing.assert_allclose(thumbnails(pixels, [2, 0]), expected[[2, 0]], rtol=1e-5)
    odd = dice.integers(0, 256, (1, 24, 16, 1), dtype=np.uint8).astype(float)
    first = (odd[0, 0, :, 0] + 0.5 * odd[0, 1, :, 0]) / 1.5
    np.testing.assert_allclose(thumbnails(odd.astype(np.uint8))[0, 0, :, 0], first, rtol=1e-5)
    np.testing.assert_allclose(thumbnails(np.full((1, 5, 7, 1), 9, np.uint8)), 9, rtol=1e-5)


def test_lengths_must_agree():
    """One side and one row for each picture."""
    with pytest.raises(ShapeError, match="one for each of 4"):
        leaks(made([2, 2]), np.array(["train"] * 3))
    with pytest.raises(ShapeError, match="one for each of 4"):
        leaks(made([2, 2]), np.array(["train"] * 4), np.zeros((5, 8, 8, 1), np.uint8))


def test_duplicates_hang_together(photographs):
    """The same photograph, smaller and saved anew: one group, named after its first picture; the others are alone."""
    pre = Preprocessing(size=(48, 48))
    plain = [pre.load(path) for path in photographs[:6]]
    with Image.open(photographs[2]) as image:
        small = image.convert("RGB").resize((image.width * 3 // 4, image.height * 3 // 4))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    pixels = np.stack([*plain, pre.load(small), pre.load(data.getvalue())])
    assert duplicates(pixels).tolist() == [0, 1, 2, 3, 4, 5, 2, 2]
    assert duplicates(pixels, [7, 0, 2]).tolist() == [0, 1, 0]
