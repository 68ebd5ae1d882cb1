"""Captions, titles and clicks as queries and pictures: who fits whom, what is left out, which part is whose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lookalike.captions import Captions, read_captions
from lookalike.errors import CatalogueError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str, name: str = "captions.csv") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return make


def told(found: Captions) -> set[tuple[str, str]]:
    """Query and picture of each pair, by name."""
    count = len(found.texts)
    name = [Path(path).stem for path in found.pictures]
    return {(found.texts[q] if q < count else name[q - count], name[p]) for q, p in found.pairs.tolist()}


def test_captions_of_the_same_words_are_one_query(write: Write) -> None:
    """Whoever wrote them: the query fits both pictures."""
    found = read_captions(write("image,caption\na.jpg,A dog.\na.jpg,two cats\nb.jpg,a  DOG\nb.jpg,…\n"))

    assert found.texts == ["A dog.", "two cats"]
    assert told(found) == {("A dog.", "a"), ("two cats", "a"), ("A dog.", "b")}
    assert found.notes == ["1 rows without a word were left out"]


def test_columns_of_a_catalogue_are_joined(write: Write) -> None:
    """Those named, in that order; without, the first that sounds like words."""
    file = write("path;title;kind\na.jpg;Red shoe;Shoes\nb.jpg;Hat;\n")

    assert read_captions(file).texts == ["Red shoe", "Hat"]
    assert read_captions(file, ["title", "kind"]).texts == ["Red shoe Shoes", "Hat"]
    with pytest.raises(CatalogueError, match=r"no column titel \(did you mean title\?\)"):
        read_captions(file, ["titel"])


def test_clicks_are_queries_with_what_was_passed_over(write: Write, make_pictures: Callable[..., Path]) -> None:
    """A query is a text or a picture; clicked once is fitting, however often it was passed over."""
    top = make_pictures("a.png", "b.png", "c.png", folder=".")
    rows = ["red,a.png,1", "red,b.png,0", "RED,c.png,yes", "a.png,b.png,1", "a.png,c.png,false", "red,a.png,0"]
    found = read_captions(write("query,shown,clicked\n" + "\n".join(rows) + "\n"))

    assert (top / "a.png").exists()
    assert told(found) == {("red", "a"), ("red", "c"), ("a", "b")}
    assert len(found.refused) == 2 and found.texts == ["red"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,price\na.jpg,3\n", "text.columns"),
        ("image,caption\n,red\n", "row 2: no picture"),
        ("image,caption\na.jpg,?!\n", "no text with a word"),
        ("image,caption,split\na.jpg,red,trian\n", "'trian' is none of"),
        ("query,shown,clicked\nred,a.jpg,maybe\n", "clicked be 1 or 0"),
        ("caption\nred\n", "no picture column"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, message: str, write: Write) -> None:
    """With the row and the value."""
    with pytest.raises(CatalogueError, match=message):
        read_captions(write(text))


def many(split: str = "") -> Captions:
    pictures = [f"/{number}.jpg" for number in range(100)]
    pairs = np.stack([np.arange(100), np.arange(100)], axis=1)
    parts = ["dev" if split and number < 30 else split for number in range(100)]
    return Captions(
        pictures,
        [f"text {n}" for n in range(100)],
        pairs,
        pairs[:0],
        ["validation" if p == "dev" else p for p in parts],
    )


def test_each_picture_is_in_one_part() -> None:
    """Drawn by the seed, in the shares asked for."""
    parts = many().parts(0.2, 0.1, 0)

    assert {name: len(rows) for name, rows in parts.items()} == {"train": 70, "validation": 20, "test": 10}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(100))
    again, other = many().parts(0.2, 0.1, 0), many().parts(0.2, 0.1, 1)
    assert (parts["test"] == again["test"]).all() and (parts["test"] != other["test"]).any()


def test_the_one_part_held_out_judges_and_does_not_choose() -> None:
    """Whatever it is called, it is the test; validation is drawn from the rest."""
    parts = many("train").parts(0.2, 0.1, 0)

    assert parts["test"].tolist() == list(range(30))
    assert len(parts["validation"]) == 14 and len(parts["train"]) == 56


def test_keeping_some_pictures_keeps_what_fits_them() -> None:
    """Texts that fit none of them go, numbers follow, queries by picture as well."""
    whole = Captions(
        ["/a", "/b", "/c"],
        ["one", "two"],
        np.array([[0, 0], [1, 1], [1, 2], [2, 1], [4, 1]]),
        np.array([[0, 2], [1, 0], [3, 2]]),
        ["", "", ""],
    )
    kept = whole.keep([False, True, True])

    assert kept.pictures == ["/b", "/c"] and kept.texts == ["two"]
    assert told(kept) == {("two", "b"), ("two", "c"), ("c", "b")}
    assert kept.refused.tolist() == [[1, 1]]  # /b was asked by, /c passed over


def test_texts_of_some_pictures() -> None:
    """Positions in both, and which fits which."""
    texts, pairs = many().of(np.array([7, 3]))

    assert texts.tolist() == [3, 7] and {(int(texts[t]), [7, 3][p]) for t, p in pairs} == {(7, 7), (3, 3)}


def test_the_fingerprint_follows_the_words() -> None:
    """And not the folder."""
    whole = many()
    moved = Captions([f"/elsewhere{p}" for p in whole.pictures], whole.texts, whole.pairs, whole.refused, whole.split)
    other = Captions(whole.pictures, ["changed", *whole.texts[1:]], whole.pairs, whole.refused, whole.split)

    assert whole.fingerprint() == moved.fingerprint() != other.fingerprint()
