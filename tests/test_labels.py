"""Who is alike: labels from folders, columns, pairs and triplets, and what is said about what was left out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import CatalogueError, QueryError
from lookalike.labels import Example, Labelled, labelled, makers_of


def plant(top: Path, *names: str) -> Path:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return top


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(top: Path, found: Labelled) -> dict[str, tuple[str, str]]:
    return {str(Path(e.path).relative_to(top)): (e.label, e.category) for e in found.examples}


def refused(*arguments, **options) -> str:
    with pytest.raises(CatalogueError) as caught:
        labelled(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_class_is_the_folder(tmp_path):
    """Flat class folders give labels and no category; nothing is left out, so nothing is said."""
    plant(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    found = labelled(tmp_path)

    assert table(tmp_path, found) == {
        "cat/1.png": ("cat", ""),
        "cat/2.png": ("cat", ""),
        "dog/1.png": ("dog", ""),
        "dog/2.png": ("dog", ""),
    }
    assert found.pairs is None and found.triplets is None and found.notes == []


@pytest.mark.parametrize("above", ["", "images_background/", "a/b/"])
def test_the_folder_around_a_class_is_its_category(tmp_path, above):
    """alphabet/character, wherever below the root the alphabets start."""
    names = [f"{above}{a}/{c}/{i}.png" for a in ("Latin", "Greek") for c in ("c1", "c2") for i in (1, 2)]
    found = table(tmp_path, labelled(plant(tmp_path, *names)))

    assert found[f"{above}Latin/c1/1.png"] == (f"{above}Latin/c1", f"{above}Latin")
    assert found[f"{above}Greek/c1/1.png"] == (f"{above}Greek/c1", f"{above}Greek")
    assert len({label for label, _ in found.values()}) == 4


def test_one_folder_around_all_classes_is_no_category(tmp_path):
    """What holds everything tells nothing apart."""
    plant(tmp_path, "train/x/1.png", "train/x/2.png", "train/y/1.png")

    assert {example.category for example in labelled(tmp_path).examples} == {""}


def test_folders_around_single_classes_are_no_categories(tmp_path):
    """A folder around each class alone (n01443537/images) is part of its name."""
    plant(tmp_path, "n1/images/1.png", "n1/images/2.png", "n2/images/1.png")
    found = table(tmp_path, labelled(tmp_path))

    assert found["n1/images/1.png"] == ("n1/images", "")


def test_mixed_depths(tmp_path):
    """Pictures beside class folders belong to the category that their folder makes; a flat class has none."""
    plant(tmp_path, "shoes/0.png", "shoes/red/1.png", "shoes/red/2.png", "shoes/blue/1.png", "hats/1.png", "hats/2.png")
    found = table(tmp_path, labelled(tmp_path))

    assert found["shoes/0.png"] == ("shoes", "shoes")
    assert found["shoes/red/1.png"] == ("shoes/red", "shoes")
    assert found["hats/1.png"] == ("hats", "")


@pytest.mark.parametrize("top", ["", "all/"])
def test_pictures_beside_all_class_folders_are_left_out(tmp_path, top):
    """They have no class, at the root or at the folder that holds everything; it is said how many and where."""
    plant(tmp_path, f"{top}loose.png", f"{top}other.png", f"{top}a/1.png", f"{top}a/2.png", f"{top}b/1.png")
    found = labelled(tmp_path)

    assert set(table(tmp_path, found)) == {f"{top}a/1.png", f"{top}a/2.png", f"{top}b/1.png"}
    assert found.notes[0] == f"2 pictures left out: beside the class folders in {tmp_path / top}"


def test_lonely_classes_stay_and_are_counted(tmp_path):
    """A class of one picture is kept: it is a negative for the others."""
    plant(tmp_path, "a/1.png", "a/2.png", "b/1.png", "c/1.png")
    found = labelled(tmp_path)

    assert len(found.examples) == 4
    assert found.notes == ["2 classes of one picture: a negative for the others, never a positive"]


def test_too_few_classes(tmp_path):
    """One class, no pair in any class, or no picture: an error that says what to do."""
    assert "holds no labelled picture" in refused(tmp_path)
    plant(tmp_path, "a/1.png", "a/2.png")
    assert "2 pictures of 1 class:" in refused(tmp_path)
    assert "pairs.csv with columns left,right,same" in refused(tmp_path / "a")
    plant(tmp_path, "flat/b/1.png", "flat/c/1.png")
    assert "2 classes of one picture each" in refused(tmp_path / "flat")
    assert refused(tmp_path / "nowhere") == f"no such folder: {tmp_path / 'nowhere'}"


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_labels_from_a_column(tmp_path):
    """Label, category and side come from columns; the picture is relative to the file."""
    path = write(
        tmp_path / "list.csv",
        "image,Kind,group,split",
        "x/1.jpg,shoe,feet,train",
        "x/2.jpg,shoe,feet,val",
        "3.jpg,hat,head,Test",
    )

    assert labelled(path, "kind", category="group").examples == [
        Example(str(tmp_path / "x/1.jpg"), "shoe", "feet", "train"),
        Example(str(tmp_path / "x/2.jpg"), "shoe", "feet", "validation"),
        Example(str(tmp_path / "3.jpg"), "hat", "head", "test"),
    ]


def test_rows_without_a_label_are_left_out(tmp_path):
    """Nothing in the column is no label; a picture named again with another label keeps its first one."""
    path = write(tmp_path / "l.csv", "image,k", "1.jpg,a", "2.jpg,", "3.jpg,b", "1.jpg,b", "1.jpg,a", "4.jpg,a")
    found = labelled(path, "k")

    assert [(Path(e.path).name, e.label) for e in found.examples] == [("1.jpg", "a"), ("3.jpg", "b"), ("4.jpg", "a")]
    assert found.notes[:2] == [
        "1 row left out: nothing in column k",
        "1 row left out: picture with another label before (row 5)",
    ]


def test_wrong_columns(tmp_path):
    """An unknown column gives the nearest name and all of them; an unknown side gives row, column and value."""
    path = write(tmp_path / "l.csv", "image,articleType,split", "1.jpg,a,train", "2.jpg,b,later")

    assert refused(path, "articletypo").endswith(
        "has no column articletypo (did you mean articleType?): it has image, articleType, split"
    )
    assert refused(path, "articleType", category="zzz").endswith("no column zzz: it has image, articleType, split")
    assert "row 3, column split: 'later' is none of train, validation, test" in refused(path, "articleType")
    assert "name the column that says what is alike, one of image, articleType, split" in refused(path)
    assert "no picture column" in refused(write(tmp_path / "m.csv", "a,b", "1,2"), "a")
    assert "row 2: no picture" in refused(write(tmp_path / "n.csv", "image,k", ",2"), "k")
    assert "is no CSV file" in refused(tmp_path, category="kind")
    assert "a column name needs a CSV file" in refused(tmp_path, "kind")


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pictures(tmp_path) -> Path:
    return plant(tmp_path / "pics", *(f"{name}.png" for name in "abcdefg"))


def pairs(pictures: Path, *lines: str) -> Labelled:
    write(pictures / "pairs.csv", "left,right,same", *lines)
    return labelled(pictures, "pairs.csv")


def names(found: Labelled, columns: int) -> list[list]:
    stems = [Path(example.path).stem for example in found.examples]
    rows = found.pairs if found.pairs is not None else found.triplets
    return [[stems[i] for i in row[:columns]] + list(row[columns:]) for row in rows.tolist()]


def test_alike_is_transitive(pictures):
    """a-b and b-c make one class of three; a class is called after its first picture."""
    found = pairs(pictures, "a.png,b.png,1", "b.png,c.png,Yes", "d.png,e.png,true", "c.png,e.png,0")

    assert [example.label for example in found.examples] == ["a.png"] * 3 + ["d.png"] * 2
    assert names(found, 2) == [["a", "b", 1], ["b", "c", 1], ["d", "e", 1], ["c", "e", 0]]
    assert found.pairs.dtype == np.int64
    assert found.notes[0] == "5 pictures in 2 classes: alike is taken to be transitive"
    assert found.notes[1] == "2 pictures left out: no row names them"


def test_contradictions_are_left_out(pictures):
    """A different pair inside a class is wrong by what the other rows say, before or after it."""
    found = pairs(pictures, "a.png,c.png,no", "a.png,b.png,yes", "b.png,c.png,yes", "d.png,d.png,0", "a.png,d.png,0")

    assert names(found, 2) == [["a", "b", 1], ["b", "c", 1], ["a", "d", 0]]
    assert any("2 rows left out: said to be different" in note and "(rows 2, 5)" in note for note in found.notes)


def test_idle_pairs_are_left_out(pictures):
    """The same pair again, in either order, and a picture with itself say nothing new."""
    found = pairs(pictures, "a.png,b.png,1", "b.png,a.png,1", "a.png,a.png,1", "a.png,c.png,0")

    assert names(found, 2) == [["a", "b", 1], ["a", "c", 0]]
    assert any(note.startswith("2 rows left out: the same pair again") for note in found.notes)


def test_where_the_pictures_of_pairs_lie(pictures, tmp_path):
    """Relative to the list or to the root; a row whose picture is nowhere is left out and said."""
    path = write(
        tmp_path / "elsewhere/pairs.csv", "left,right,same", "a.png,b.png,1", "c.png,zz.png,0", "c.png,../x.png,0"
    )
    plant(tmp_path, "x.png")
    found = labelled(pictures, path)

    assert [Path(e.path).relative_to(tmp_path).as_posix() for e in found.examples] == [
        "pics/a.png", "pics/b.png", "pics/c.png", "x.png",
    ]  # fmt: skip
    assert "1 row left out: no such picture (row 3)" in found.notes


def test_wrong_pairs(pictures):
    """An answer that means nothing, a blank, a missing column, no existing picture: file, row, column, value."""
    with pytest.raises(CatalogueError, match="row 3, column same: 'maybe' is neither 1, true, yes nor 0, false, no"):
        pairs(pictures, "a.png,b.png,1", "a.png,c.png,maybe")
    with pytest.raises(CatalogueError, match="row 2, column right: '' names no picture"):
        pairs(pictures, "a.png,,1")
    with pytest.raises(CatalogueError, match="names no picture that exists"):
        pairs(pictures, "x.png,y.png,1")
    with pytest.raises(CatalogueError, match="3 pictures of 1 class"):
        pairs(pictures, "a.png,b.png,1", "b.png,c.png,1")
    write(pictures / "pairs.csv", "left,rihgt,same", "a.png,b.png,1")
    assert "no column right (did you mean rihgt?)" in refused(pictures, "pairs.csv")
    write(pictures / "other.csv", "x,y", "a.png,b.png")
    assert "holds neither pairs (columns left,right,same) nor triplets" in refused(pictures, "other.csv")
    assert "cannot read catalogue" in refused(pictures, "missing.csv")
    assert "no such folder" in refused(pictures / "nowhere", "pairs.csv")


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_classes_are_what_hangs_together(tmp_path_factory, links):
    """Against the slow way: merge sets until nothing changes."""
    top = plant(tmp_path_factory.mktemp("p"), *(f"{i}.png" for i in range(9)))
    lines = [f"{a}.png,{b}.png,1" for a, b in links] + ["0.png,7.png,0", "7.png,8.png,1"]
    write(top / "pairs.csv", "left,right,same", *lines)
    found = {int(Path(e.path).stem): e.label for e in labelled(top, "pairs.csv").examples}
    groups = [{a, b} for a, b in links] + [{7, 8}] + [{i} for i in range(9)]
    for _ in range(9):
        groups = [set().union(*(other for other in groups if other & group)) for group in groups]

    for a, b in itertools.product(found, repeat=2):
        together = any({a, b} <= group for group in groups)
        assert (found[a] == found[b]) == together


def test_triplets(pictures):
    """Anchor and positive are of one class; a negative that is alike by other rows is wrong."""
    write(
        pictures / "triplets.csv",
        "anchor,positive,negative",
        "a.png,b.png,c.png",
        "c.png,d.png,a.png",
        "b.png,e.png,a.png",
        "a.png,a.png,c.png",
        "a.png,b.png,c.png",
    )
    found = labelled(pictures, "triplets.csv")

    assert [example.label for example in found.examples] == ["a.png", "a.png", "c.png", "c.png", "a.png"]
    assert names(found, 3) == [["a", "b", "c"], ["c", "d", "a"]]
    assert any("2 rows left out: the negative is alike" in note and "(rows 4, 5)" in note for note in found.notes)
    assert "1 row left out: the same triplet again" in found.notes


def test_keep_renumbers(pictures):
    """Of chosen pictures, in their new order, the pairs stay whose both ends do."""
    found = pairs(pictures, "a.png,b.png,1", "c.png,d.png,1", "b.png,d.png,0", "a.png,d.png,0")
    kept = found.keep([3, 1, 0])

    assert [Path(example.path).stem for example in kept.examples] == ["d", "b", "a"]
    assert names(kept, 2) == [["a", "b", 1], ["b", "d", 0], ["a", "d", 0]]


# ── no labels ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_labels_each_picture_is_its_own_class(tmp_path):
    top = plant(tmp_path / "pictures", "a/1.jpg", "a/2.jpg", "3.jpg")
    found = labelled(top, "none")
    assert sorted(Path(e.path).name for e in found.examples) == ["1.jpg", "2.jpg", "3.jpg"]
    assert {e.label for e in found.examples} == {"3.jpg", "a/1.jpg", "a/2.jpg"}, "wherever the folder lies"
    table = write(tmp_path / "list.csv", "picture,split", "pictures/3.jpg,train", "pictures/a/1.jpg,test")
    assert [(Path(e.path).name, e.split) for e in labelled(table, "none").examples] == [
        ("3.jpg", "train"),
        ("1.jpg", "test"),
    ]


def test_one_picture_teaches_nothing(tmp_path):
    with pytest.raises(CatalogueError, match="at least two"):
        labelled(plant(tmp_path / "pictures", "1.jpg"), "none")


def test_the_maker_is_what_the_first_group_finds_in_the_file_name():
    """Not in its folders, and not anywhere else; "" where the group took no part."""
    assert makers_of(r"_(\d+)(b)?", ["/d_7/a_01.png", "/d_7/_2b_3.png", "x_01.png"]).tolist() == ["01", "2", "01"]
    assert makers_of("_(a)?", ["_a.png", "_.png"]).tolist() == ["a", ""]
    assert makers_of("(a)", []).shape == (0,)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "maker '\\(' is no regular expression: "),
        ("_", "maker '_' needs a group, in brackets"),
        (r"_(\d)", r"does not match the file name of /d_7/a\.png"),
    ],
)
def test_makers_that_no_name_tells_are_refused(pattern, problem):
    """The message says which pattern, and the first name that it does not match."""
    with pytest.raises(QueryError, match=problem):
        makers_of(pattern, ["/d/b_1.png", "/d_7/a.png"])
