"""What is said about a catalogue is what is in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike import describe as module
from lookalike.describe import as_html, as_text, describe
from lookalike.errors import CatalogueError
from lookalike.products import Product


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Twelve products: ten pictures (one as PNG, two identical, one saved anew), one missing, one damaged."""
    dice = np.random.default_rng(0)
    for number in range(10):
        cells = dice.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(cells).resize((60 + number, 90), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{number}.{'png' if number == 9 else 'jpg'}", quality=95)
    shutil.copy(tmp_path / "0.jpg", tmp_path / "copy.jpg")
    Image.open(tmp_path / "1.jpg").save(tmp_path / "again.jpg", quality=80)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:600])
    names = [f"{n}.jpg" for n in range(9)] + ["9.png", "copy.jpg", "again.jpg", "missing.jpg", "broken.jpg"]
    records = [
        {"id": n, "image": name, "kind": "abc"[min(n // 6, 2)], "price": f"${n}.50", "size": [n, "L"][n % 2]}
        for n, name in enumerate(names)
    ]
    records[3]["kind"] = records[3]["price"] = None
    records += [
        {"id": 5, "image": "5.jpg"},
        {"id": 99},
        {"id": 100, "image": "http://host.example/a.jpg", "kind": "<b>"},
    ]
    path = tmp_path / "shop.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_what_is_said(shop, monkeypatch):
    """Counts of rows, problems, types, labels, files, formats, sizes, copies: by hand."""
    monkeypatch.setattr(module, "ENOUGH", 5)
    document = describe(shop, {}, labels="kind")
    assert (document["kind"], document["rows"]) == ("catalogue", 15)
    assert document["problems"] == {"duplicate id": 1, "no picture": 1}
    columns = {column["name"]: column for column in document["columns"]}
    assert list(columns) == ["id", "kind", "price", "size"]
    assert (columns["id"]["low"], columns["id"]["high"], columns["id"]["missing"]) == (0, 100, 0)
    assert (columns["kind"]["missing"], columns["kind"]["distinct"]) == (1, 4)
    assert columns["size"]["types"] == {"whole number": 7, "text": 7}
    assert columns["price"]["texts_like_numbers"] == 13
    assert columns["kind"]["most_frequent"][:2] == [("b", 6), ("a", 5)]
    labels = document["labels"]
    assert labels == {
        "column": "kind",
        "distinct": 4,
        "missing": 1,
        "counts": [("b", 6), ("a", 5), ("c", 2), ("<b>", 1)],
    }
    assert document["suggested"] == {"at_least": 5, "categories": ["b", "a"], "share": round(11 / 14, 4)}
    pictures = document["pictures"]
    assert (pictures["urls"], pictures["looked_at"], pictures["missing"], pictures["unreadable"]) == (1, 14, 1, 1)
    assert pictures["formats"] == {"JPEG": 11, "PNG": 1}
    assert pictures["sizes"]["width"] == {"least": 60, "median": 63, "most": 69}
    assert pictures["sizes"]["height"] == {"least": 90, "median": 90, "most": 90}
    home = shop.parent
    assert pictures["identical"] == {
        "groups": 1,
        "more_than_needed": 1,
        "with_several_labels": 1,
        "largest": [[str(home / "0.jpg"), str(home / "copy.jpg")]],
    }
    assert pictures["near_identical"]["groups"] == 2
    assert [str(home / "1.jpg"), str(home / "again.jpg")] in pictures["near_identical"]["largest"]
    json.dumps(document)


def test_labels(shop):
    """Levels of categories are counted each; a column that is not there is named; without labels there are none."""
    assert describe(shop)["labels"] is None
    with pytest.raises(CatalogueError, match="no column colour with labels: it has id, kind"):
        describe(shop, labels="colour")
    path = shop.parent / "paths.jsonl"
    path.write_text(
        '{"image": "0.jpg", "categories": [["A", "B"], ["C"]]}\n{"image": "1.jpg", "categories": [["A"]]}\n'
    )
    assert describe(path)["labels"]["counts"] == [("A > B", 1), ("A", 1)]
    assert describe(path, labels="categories")["labels"]["counts"] == [("A", 2), ("B", 1), ("C", 1)]


def test_a_sample_of_the_pictures(shop):
    """No more pictures are looked at than asked for; the same seed draws the same ones."""
    one, other = (describe(shop, sample=6)["pictures"] for _ in range(2))
    assert one == other
    assert one["looked_at"] <= 6
    assert describe(shop, sample=0)["pictures"]["looked_at"] == 0


def test_the_sample_is_fair():
    """Each of a stream is drawn as often as any other."""
    drawn: Counter[int] = Counter()
    for seed in range(3000):
        reservoir = module._Reservoir(3, seed)
        for row in range(10):
            reservoir.add(Product(row, None, "x", {}))
        drawn.update(product.row for product in reservoir.products)
    assert sum(drawn.values()) == 9000
    assert all(abs(drawn[row] - 900) < 120 for row in range(10))  # five standard deviations


def test_many_values_are_not_kept(tmp_path, monkeypatch):
    """Beyond a bound new values are no longer counted, and it is said that there are more."""
    monkeypatch.setattr(module, "_DISTINCT", 10)
    path = tmp_path / "t.csv"
    path.write_text("image,a,b\n" + "".join(f"{n}.jpg,v{n},w{n % 10}\n" for n in range(50)))
    one, other = describe(path, sample=0)["columns"]
    assert (one["distinct"], other["distinct"]) == (None, 10)
    assert "> 10" in as_text(describe(path, sample=0))


def test_in_words_and_as_a_page(shop):
    """The text has a bar for each label; the page is well-formed, with a bar for each label and nothing unescaped."""
    document = describe(shop, labels="kind")
    text = as_text(document)
    assert [line.split()[:2] for line in text.splitlines() if "█" in line] == [
        ["b", "6"],
        ["a", "5"],
        ["c", "2"],
        ["<b>", "1"],
    ]
    assert "2 × " not in text
    assert "1 × duplicate id" in text
    assert "13 like numbers" in text
    page = as_html(document)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    picture = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    bars = [float(bar.get("width", 0)) for bar in picture.iter("rect")]
    assert np.allclose(np.array(bars) / max(bars), np.array([6, 5, 2, 1]) / 6, atol=0.01)


def test_command(shop, tmp_path):
    """JSON on stdout, a page in a file."""
    command = [sys.executable, "-m", "lookalike", "catalogue", "describe", str(shop), "--labels", "kind"]
    done = subprocess.run(
        [*command, "--json", "--html", str(tmp_path / "p.html")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(describe(shop, labels="kind")))
    assert (tmp_path / "p.html").read_text() == as_html(describe(shop, labels="kind"))
