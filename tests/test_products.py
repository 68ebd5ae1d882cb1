"""The products of a catalogue: which column is what, categories as paths, ids, and what an index can hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.errors import CatalogueError
from lookalike.index import open_index
from lookalike.index.base import matches, parse_where
from lookalike.products import Product, Seen, is_url, products
from lookalike.tables import Problems


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def payload(tmp_path: Path, record: dict[str, Any], **mapping: str) -> dict[str, Any]:
    [product] = products(lines(tmp_path / "t.jsonl", {"image": "a.jpg"} | record), mapping)
    return product.payload


def passed_over(path: Path, **mapping: str) -> tuple[list[int], list[str]]:
    problems = Problems()
    found = [product.row for product in products(path, mapping, problems)]
    assert sum(problems.counts.values()) == len(problems.listed)
    return found, [f"{problem.row} {problem.kind}: {problem.reason}" for problem in problems.listed]


def refused(path: Path, **mapping: str) -> str:
    with pytest.raises(CatalogueError) as caught:
        list(products(path, mapping))
    return str(caught.value)


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_metadata_of_old(tmp_path):
    """A line as the metadata of products was published in 2014, with the columns named."""
    path = tmp_path / "meta.json"
    path.write_text(
        "{'asin': '0000037214', 'related': {'also_viewed': ['B00JO8II76']}, 'title': \"Purple 'Sequin' Tiny Dancer\", "
        "'price': 6.99, 'salesRank': {'Clothing': 1233557}, 'imUrl': 'http://host.example/a._SX300_.jpg', "
        "'brand': 'Big Dreams', 'categories': [['Clothing', 'Girls'], ['Novelty', 'Costumes']]}\n"
    )
    [product] = products(path, {"id": "asin", "image": "imUrl", "name": "title", "category": "categories"})
    assert product == Product(
        1,
        "0000037214",
        "http://host.example/a._SX300_.jpg",
        {
            "id": "0000037214",
            "related": {"also_viewed": ["B00JO8II76"]},
            "name": "Purple 'Sequin' Tiny Dancer",
            "price": 6.99,
            "salesRank": {"Clothing": 1233557},
            "brand": "Big Dreams",
            "category": "Clothing > Girls",
            "categories": ["Clothing", "Girls", "Novelty", "Costumes"],
        },
    )
    assert next(iter(products(path))).picture == product.picture  # imUrl is a usual name


@pytest.mark.parametrize(
    ("value", "picture"),
    [
        ("a.jpg", "a.jpg"),
        (" a.jpg ", "a.jpg"),
        (["", "b.jpg", "c.jpg"], "b.jpg"),
        ([{"thumb": "t", "large": "l", "hi_res": None}], "l"),
        ({"hi_res": [None, "h"], "large": [None]}, "h"),
        (123, "123"),
    ],
)
def test_pictures(tmp_path, value, picture):
    """A path or a URL, the first of a list, the large one of several sizes."""
    [product] = products(lines(tmp_path / "t.jsonl", {"image": value}))
    assert product.picture == picture


@pytest.mark.parametrize("value", [None, "", "  ", [], [None], [""]])
def test_no_picture(tmp_path, value):
    """A row without a picture is passed over and counted."""
    path = lines(tmp_path / "t.jsonl", {"image": "x.jpg"}, {"image": value}, {"name": "y"})
    assert passed_over(path) == ([1], ["2 no picture: no picture", "3 no picture: no picture"])


@pytest.mark.parametrize("value", [True, 1.5, {"bytes": "…", "path": "a.jpg"}, {"a": 1}])
def test_pictures_of_the_wrong_type(tmp_path, value):
    """What is neither path nor URL is passed over with its type and value."""
    [], [problem] = passed_over(lines(tmp_path / "t.jsonl", {"image": value}))
    assert problem.startswith("1 wrong type: column image must hold a path or a URL, got ")


def test_mapping(tmp_path):
    """Names for columns in any case; the mapped one takes the place of one called so; an empty name says none."""
    record = {"sku": "S1", "id": 7, "photo": "p.jpg", "image": "i.jpg", "category": "x", "kind": "A > B", "Title": "t"}
    path = lines(tmp_path / "t.jsonl", record)
    [product] = products(path, {"id": "SKU", "image": "photo", "category": "kind", "name": "title"})
    assert (product.id, product.picture) == ("S1", "p.jpg")
    assert product.payload == {"id": "S1", "category": "A > B", "categories": ["A", "B"], "name": "t"}
    [product] = products(path, {"id": "", "category": ""})
    assert product.id is None
    assert product.payload["id"] == 7
    assert product.payload["category"] == "x"


def test_mapping_that_is_wrong(tmp_path):
    """A column that is not there is named, with the nearest one; so is a table without pictures."""
    path = lines(tmp_path / "t.jsonl", {"imUrl": "a.jpg", "title": "x"})
    assert "has no column imurll (did you mean imUrl?): it has imUrl, title" in refused(path, image="imurll")
    assert "name the column of pictures" in refused(path, image="")
    assert "has no picture column" in refused(lines(tmp_path / "u.jsonl", {"title": "x"}))
    assert "column _key" in refused(lines(tmp_path / "k.jsonl", {"image": "a.jpg", "_key": 1}))
    [product] = products(tmp_path / "k.jsonl", {"key": "_key"})
    assert product.payload == {"key": 1}


def test_columns_are_found_in_later_rows(tmp_path):
    """Rows of JSON need not have all columns: those of the first thousand count."""
    path = lines(tmp_path / "t.jsonl", *[{"n": 1}] * 500, {"image": "a.jpg", "asin": "A"})
    problems = Problems()
    assert [product.row for product in products(path, {"id": "asin"}, problems)] == [501]
    assert problems.counts == {"missing id": 500}


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ids(tmp_path):
    """Each once, whether as number or as text; a number without fraction is whole; none where it is not asked for."""
    path = lines(
        tmp_path / "t.jsonl",
        *(
            {"image": f"{n}.jpg", "id": identity}
            for n, identity in enumerate([1, "1", 2.0, -1, -2, None, True, [1], "a"])
        ),
    )
    found, problems = passed_over(path)
    assert found == [1, 3, 4, 5, 6, 9]
    assert problems == [
        "2 duplicate id: id '1' was seen before",
        "7 wrong type: column id must hold text or a whole number, got bool True",
        "8 wrong type: column id must hold text or a whole number, got list [1]",
    ]
    assert passed_over(path, id="id")[1][1] == "6 missing id: nothing in column id"
    assert [product.id for product in products(path, {}, Problems())] == [1, 2, -1, -2, None, "a"]


@given(st.lists(st.text(max_size=3), max_size=200))
def test_seen_is_a_set(values):
    """It answers as a set would."""
    seen, known = Seen(), set()
    for value in values:
        assert seen.add(value) == (value not in known)
        known.add(value)


def test_seen_grows():
    """Beyond its first size, too, each is new once."""
    seen = Seen()
    assert all(seen.add(str(n)) for n in range(20_000))
    assert not any(seen.add(str(n)) for n in range(20_000))


# ── categories ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "category", "categories"),
    [
        ("Shoes", "Shoes", None),
        (5, 5, None),
        ("A > B > C", "A > B > C", ["A", "B", "C"]),
        ("A >> B>C", "A > B > C", ["A", "B", "C"]),
        (["A", "B"], "A > B", ["A", "B"]),
        (["A"], "A", ["A"]),
        (["A > B"], "A > B", ["A", "B"]),
        ([["A", "B"], ["A", "C", "D"]], "A > B", ["A", "B", "C", "D"]),
        ([[], [" A ", ""]], "A", ["A"]),
        ('["A", "B"]', "A > B", ["A", "B"]),
        ("['A >> B']", "A > B", ["A", "B"]),
        ("[A]", "[A]", None),
        (">", ">", None),
        ([], None, None),
        (None, None, None),
    ],
)
def test_categories(tmp_path, value, category, categories):
    """Paths in lists, in lists of lists and in text become a text and a list of levels; a single name stays."""
    found = payload(tmp_path, {"category": value})
    assert found.get("category") == category
    assert found.get("categories") == categories


def test_a_filter_finds_each_level(tmp_path):
    """A level of any path, the whole first path, and nothing else."""
    found = payload(tmp_path, {"categories": [["Clothing", "Shoes"], ["Sports"]]})
    for level in ("Clothing", "Shoes", "Sports"):
        assert matches(found, parse_where({"categories": level}))
    assert matches(found, parse_where({"category": "Clothing > Shoes"}))
    assert not matches(found, parse_where({"categories": "Hats"}))


@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], [["A"], "B"], [[["A"]]]])
def test_categories_of_the_wrong_type(tmp_path, value):
    """What is neither a name nor a path is passed over."""
    [], [problem] = passed_over(lines(tmp_path / "t.jsonl", {"image": "a.jpg", "category": value}))
    assert problem.startswith("1 wrong type: column category must hold a category or a path, got ")


# ── payload ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_missing_is_left_out(tmp_path):
    """null, NaN, infinite and empty are no values; zero and false are."""
    record = {"a": None, "b": math.nan, "c": math.inf, "d": "", "e": 0, "f": False, "g": [], "h": [None, 1]}
    assert payload(tmp_path, record) == {"e": 0, "f": False, "g": [], "h": [1]}


def test_what_no_index_can_hold(tmp_path):
    """Numbers beyond 64 bits become text, halves of characters escapes; sets, bytes and deep lists are refused."""
    assert payload(tmp_path, {"a": 2**63, "b": "x\ud800", "c": {"y\ud800": [1]}}) == {
        "a": str(2**63),
        "b": "x\\ud800",
        "c": {"y\\ud800": [1]},
    }
    path = tmp_path / "t.json"
    deep = "[" * 20 + "]" * 20
    path.write_text("{'image': 'a', 'x': {1}}\n{'image': 'a', 'x': b'1'}\n{'image': 'a', 'x': 1j}\n")
    path.write_text(path.read_text() + f"{{'image': 'a', 'x': {deep}}}\n{{'image': 'a', 'x': {{2: (3,)}}}}\n")
    found, problems = passed_over(path)
    assert found == [5]
    assert problems == [
        f"{row} wrong type: column x holds {what}, which no index can hold"
        for row, what in enumerate(["set", "bytes", "complex", "something nested too deeply"], start=1)
    ]
    [product] = products(path, {}, Problems())
    assert product.payload == {"x": {"2": [3]}}


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.tuples(inner)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["image", "id", "category", "x", "y"]), LITERALS), max_size=5))
def test_whatever_a_table_holds_an_index_takes_what_is_left(tmp_path_factory, table):
    """Odd rows are passed over; every product that comes out can be stored in an index."""
    path = tmp_path_factory.mktemp("odd") / "t.json"
    path.write_text("".join(ascii(row).replace("inf", "1e999") + "\n" for row in table if "nan" not in ascii(row)))
    try:
        found = list(products(path, {}, Problems()))
    except CatalogueError as error:
        assert "no picture column" in str(error)
        return
    index = open_index(":memory:", dim=2, meta={})
    if found:
        vectors = np.ones((len(found), 2), dtype=np.float32)
        index.add([str(n) for n in range(len(found))], vectors, [product.payload for product in found])
    assert len(index) == len(found)


def test_what_is_a_url():
    """Schemes, and the short form of pages; paths of any system are none."""
    assert all(map(is_url, ["http://a/b.jpg", "HTTPS://a", "//a/b.jpg", "ftp://a/b"]))
    assert not any(map(is_url, ["a.jpg", "/a/b.jpg", "C:\\a.jpg", "C:/a.jpg", "./a//b.jpg", "a://", ""]))
