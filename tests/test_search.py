"""Questions to an index: each kind, each option, and near-duplicates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.catalogue import rows
from lookalike.encoder import Encoder
from lookalike.errors import EncoderMismatch, ImageError, QueryError, ShapeError
from lookalike.index import open_index
from lookalike.index.base import Index
from lookalike.indexing import update_index
from lookalike.rerank import Reranking
from lookalike.search import Searcher, near_duplicates


@pytest.fixture
def folder(make_pictures) -> Path:
    top = make_pictures(*(f"{kind}/{n}.png" for kind in ("shoes", "hats") for n in range(6)))
    (top / "shoes" / "same.png").write_bytes((top / "shoes" / "0.png").read_bytes())
    return top


@pytest.fixture
def index(folder: Path, tiny: Encoder) -> Iterator[Index]:
    opened = open_index(":memory:", dim=tiny.dim, meta={"encoder": tiny.describe()})
    update_index(opened, tiny, rows([folder]))
    yield opened
    opened.close()


@pytest.fixture
def searcher(tiny: Encoder, index: Index) -> Searcher:
    return Searcher(tiny, index)


def names(hits) -> list[str]:
    return [f"{Path(hit.key).parent.name}/{Path(hit.key).stem}" for hit in hits]


def test_an_indexed_picture_finds_itself_first(searcher: Searcher, folder: Path) -> None:
    """Every picture, asked by path, bytes or PIL image, comes first with score 1."""
    for path in sorted(folder.rglob("*.png")):
        for question in (path, str(path), path.read_bytes(), Image.open(path)):
            first = searcher.by_picture(question, 1, distinct=False)[0]
            assert first.score == pytest.approx(1, abs=1e-3)
            assert Path(first.key).read_bytes() == path.read_bytes()


def test_identical_files_are_folded(searcher: Searcher, folder: Path) -> None:
    """Copies of one file are one answer that names the others; `distinct=False` lists them all."""
    hits = searcher.by_picture(folder / "shoes" / "same.png", 13)
    every = searcher.by_picture(folder / "shoes" / "same.png", 13, distinct=False)

    assert len(hits) == 12
    assert names(hits)[0] == "shoes/0"
    assert hits[0].copies == (str(folder / "shoes" / "same.png"),)
    assert names(every)[:2] == ["shoes/0", "shoes/same"]
    assert len(every) == 13


def test_k_is_filled_although_copies_are_folded(tiny: Encoder) -> None:
    """Many copies in front do not leave fewer than k answers while there are others."""
    index = open_index(":memory:", dim=2, meta={})
    angles = np.linspace(0, 1, 30)
    vectors = np.column_stack([np.cos(angles), np.sin(angles)])
    contents = ["a"] * 20 + [f"b{i}" for i in range(10)]
    index.add([f"{i:02}" for i in range(30)], vectors, [{"file": {"sha256": c}} for c in contents])
    searcher = Searcher(tiny, index)

    hits = searcher.by_vector(vectors[0], 5)

    assert [hit.key for hit in hits] == ["00", "20", "21", "22", "23"]
    assert hits[0].copies == tuple(f"{i:02}" for i in range(1, 20))


def test_where_and_min_score_narrow_the_answer(searcher: Searcher, folder: Path) -> None:
    """Only items that fit the filter and are close enough come back."""
    shoe = folder / "shoes" / "1.png"

    hats = searcher.by_picture(shoe, 20, where={"category": "hats"})
    close = searcher.by_picture(shoe, 20, min_score=0.999)

    assert {hit.payload["category"] for hit in hats} == {"hats"}
    assert len(hats) == 6
    assert names(close) == ["shoes/1"]
    assert searcher.by_picture(shoe, 5, where={"category": "gloves"}) == []


def test_by_key_leaves_the_item_and_its_copies_out(searcher: Searcher, folder: Path) -> None:
    """More like this item: neither the item nor an identical file is an answer."""
    key = str(folder / "shoes" / "0.png")

    hits = searcher.by_key(key, 20)

    assert len(hits) == 11
    assert not {"shoes/0", "shoes/same"} & set(names(hits))
    with pytest.raises(QueryError, match="nowhere"):
        searcher.by_key("nowhere")


def test_by_vector_agrees_with_by_picture(searcher: Searcher, folder: Path, tiny: Encoder) -> None:
    """A vector of any length asks the same question as its picture."""
    path = folder / "hats" / "2.png"
    [vector] = tiny.images([path])

    by_picture, by_vector = searcher.by_picture(path, 5), searcher.by_vector(vector * 7, 5)

    assert names(by_picture) == names(by_vector)
    with pytest.raises(ShapeError):
        searcher.by_vector(np.ones(7, np.float32))
    with pytest.raises(ShapeError, match="direction"):
        searcher.by_vector(np.zeros(48, np.float32))


def test_examples_pull_and_push(tiny: Encoder) -> None:
    """Between two liked examples lies the answer; a disliked one turns it away; examples are left out."""
    index = open_index(":memory:", dim=3, meta={})
    vectors = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1.2], [0, 0, 1]], np.float32)
    index.add(["x", "y", "xy", "xyz", "z"], vectors)
    searcher = Searcher(tiny, index)

    assert [hit.key for hit in searcher.by_examples(["x", "y"])] == ["xy", "xyz", "z"]
    assert [hit.key for hit in searcher.by_examples(["xyz"], ["z"])][0] == "xy"
    assert [hit.key for hit in searcher.by_examples(["xyz"], ["xy"])][0] == "z"
    with pytest.raises(QueryError, match="liked"):
        searcher.by_examples([], ["x"])


def test_examples_may_be_pictures_that_are_not_indexed(searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    """A picture from elsewhere is encoded; if its content is indexed, those items are left out as examples."""
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes((folder / "hats" / "3.png").read_bytes())

    hits = searcher.by_examples([elsewhere, folder / "hats" / "4.png"], [Image.new("RGB", (9, 9))], 20)

    assert len(hits) == 10
    assert not {"hats/3", "hats/4"} & set(names(hits))
    with pytest.raises(ImageError, match="no such file"):
        searcher.by_examples(["missing.png"])


def test_impossible_questions_are_errors(searcher: Searcher, folder: Path) -> None:
    """k below 1, a broken filter and an unreadable picture are errors of their own kind."""
    with pytest.raises(QueryError, match="k must"):
        searcher.by_picture(folder / "hats" / "3.png", 0)
    with pytest.raises(QueryError, match="range"):
        searcher.by_picture(folder / "hats" / "3.png", where={"price": {"between": [1, 2]}})
    with pytest.raises(ImageError):
        searcher.by_picture(b"no picture")


BOTH = Reranking(expansion=4, k1=5, k2=3)
EXPANDED = Reranking(expansion=3, alpha=1)
SHARED = Reranking(k1=2, k2=1)


def on_a_circle(**degrees: float) -> Index:
    """An index of the plane's directions."""
    angles = np.radians(list(degrees.values()))
    index = open_index(":memory:", dim=2, meta={})
    payloads = [{"side": "left" if degree > 0 else "right"} for degree in degrees.values()]
    index.add(list(degrees), np.column_stack([np.cos(angles), np.sin(angles)]), payloads)
    return index


def in_clusters(count: int = 300) -> tuple[Index, np.ndarray]:
    """An index of vectors around some centres, under the keys 000, 001, …"""
    dice = np.random.default_rng(0)
    vectors = 0.5 * dice.normal(size=(count, 6)) + dice.normal(size=(12, 6))[dice.integers(12, size=count)]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = open_index(":memory:", dim=6, meta={})
    index.add([f"{i:03}" for i in range(count)], vectors, [{"even": i % 2 == 0} for i in range(count)])
    return index, vectors


def test_the_query_moves_towards_its_neighbours(tiny: Encoder) -> None:
    """What lies behind the neighbours comes before what is as near on the other side; scores remain cosines."""
    index, query = on_a_circle(a=20, b=22, c=24, d=30, x=-26, y=-60), np.array([1.0, 0.0])

    plain = Searcher(tiny, index).by_vector(query)
    moved = Searcher(tiny, index, reranking=EXPANDED).by_vector(query)

    assert [hit.key for hit in plain] == list("abcxdy")
    assert [hit.key for hit in moved] == list("abcdxy")
    assert {hit.key: hit.score for hit in moved} == pytest.approx({hit.key: hit.score for hit in plain}, abs=1e-6)
    assert [hit.payload for hit in moved] == [item.payload for item in index.get(list("abcdxy"))]


def test_answers_are_ordered_by_the_neighbours_they_share(tiny: Encoder) -> None:
    """c, which looks like b, which looks like the query, comes before x, which is nearer but keeps other company."""
    index, query = on_a_circle(b=19, c=40, x=-35, y=-50, z=-60), np.array([1.0, 0.0])

    plain = Searcher(tiny, index).by_vector(query)
    shared = Searcher(tiny, index, reranking=SHARED).by_vector(query)

    assert [hit.key for hit in plain] == list("bxcyz")
    assert [hit.key for hit in shared] == list("bcxyz")
    assert shared[2].score == pytest.approx(np.cos(np.radians(35)))
    assert [hit.key for hit in Searcher(tiny, index, reranking=SHARED).by_vector(query, 2)] == ["b", "c"]


@pytest.mark.parametrize("reranking", [EXPANDED, SHARED, BOTH])
def test_an_indexed_picture_finds_itself_first_whatever_its_neighbours(tiny: Encoder, reranking: Reranking) -> None:
    """Each vector of the index, one lonely beside a crowd among them, comes first with score 1."""
    index, vectors = in_clusters()
    crowd = np.array([[0.0, 1, 0, 0, 0, 0]]) + 0.01 * np.random.default_rng(1).normal(size=(20, 6))
    index.add(["lonely", *(f"crowd {i}" for i in range(20))], np.vstack([[0.6, 0.8, 0, 0, 0, 0], crowd]))
    searcher = Searcher(tiny, index, reranking=reranking)

    for key, vector in [("lonely", np.array([0.6, 0.8, 0, 0, 0, 0])), *((f"{i:03}", vectors[i]) for i in range(40))]:
        for k in (1, 10):
            hits = searcher.by_vector(vector, k)
            assert (hits[0].key, len(hits)) == (key, k)
            assert hits[0].score == pytest.approx(1, abs=1e-6)
            assert len({hit.key for hit in hits}) == k


@pytest.mark.parametrize("reranking", [EXPANDED, SHARED, BOTH])
def test_re_ranked_answers_keep_to_the_question(tiny: Encoder, reranking: Reranking) -> None:
    """where, k, min_score and by_key mean what they do without re-ranking, and nothing is found in nothing."""
    index, vectors = in_clusters()
    searcher, reordered = Searcher(tiny, index, reranking=reranking), 0

    for query in vectors[:20]:
        every = searcher.by_vector(query, 1000)
        cosines = [hit.score for hit in every]
        np.testing.assert_allclose(cosines, vectors[[int(hit.key) for hit in every]] @ query, atol=1e-6)
        assert len(every) == 300
        reordered += cosines != sorted(cosines, reverse=True)
        for least in (0.99, 0.8, 0.0):
            close = searcher.by_vector(query, 8, min_score=least)
            assert [hit.key for hit in close] == [hit.key for hit in every if hit.score >= least][:8]
    assert reordered
    even = searcher.by_vector(vectors[1], 1000, where={"even": True})
    assert sorted(hit.key for hit in even) == [f"{i:03}" for i in range(0, 300, 2)]
    others = searcher.by_key("007", 1000)
    assert sorted(hit.key for hit in others) == [f"{i:03}" for i in range(300) if i != 7]
    assert searcher.by_vector(vectors[0], where={"even": "no"}) == []
    assert Searcher(tiny, open_index(":memory:", dim=6, meta={}), reranking=reranking).by_vector(vectors[0]) == []


def test_only_what_fits_moves_the_query(tiny: Encoder) -> None:
    """Neighbours that the filter leaves out, and the item that is asked for by its key, do not pull."""
    index, query = on_a_circle(a=20, b=22, c=24, d=-50, e=-60, x=-25), np.array([1.0, 0.0])
    searcher = Searcher(tiny, index, reranking=Reranking(expansion=1, alpha=0))
    asked: list[np.ndarray] = []
    index.search = lambda queries, *rest, ask=index.search: asked.append(queries) or ask(queries, *rest)

    searcher.by_vector(query, where={"side": "right"})
    searcher.by_key("d")

    turned = [np.degrees(np.arctan2(row[1], row[0])) for [row] in asked]
    assert sorted({round(float(angle), 2) for angle in turned}) == [-55, -50, -12.5, 0]


def test_copies_are_folded_before_neighbours_are_counted(searcher: Searcher, tiny: Encoder, folder: Path) -> None:
    """A file that is there twice is one answer with its copy, re-ranked or not; pictures are questions as before."""
    again = Searcher(tiny, searcher.index, reranking=BOTH)

    hits = again.by_picture(folder / "shoes" / "same.png", 20)
    every = again.by_picture(folder / "shoes" / "same.png", 20, distinct=False)

    assert (names(hits)[0], len(hits)) == ("shoes/0", 12)
    assert hits[0].copies == (str(folder / "shoes" / "same.png"),)
    assert (names(every)[:2], len(every)) == (["shoes/0", "shoes/same"], 13)


def test_without_a_word_from_the_bundle_nothing_is_re_ranked(tiny: Encoder, tmp_path: Path) -> None:
    """Nobody looks at vectors or asks again unless the bundle says so, or the caller instead of it."""
    index, vectors = in_clusters()
    asked: list[str] = []
    index.search = lambda *given, ask=index.search: asked.append("search") or ask(*given)
    index.get = lambda keys, get=index.get: asked.append("get") or get(keys)
    bundle = Path(shutil.copytree(tiny.bundle.path, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "search": BOTH.to_document()}))
    wanting = Encoder.load(bundle)

    def calls(encoder: Encoder, **options) -> list[str]:
        asked.clear()
        Searcher(encoder, index, **options).by_vector(vectors[0])
        return list(asked)

    assert calls(tiny) == calls(wanting, reranking=Reranking()) == ["search"] * len(calls(tiny))
    assert calls(wanting) == calls(tiny, reranking=BOTH)
    assert calls(wanting).count("get") == 2
    by_examples = [Searcher(encoder, index).by_examples(["000", "001"]) for encoder in (tiny, wanting)]
    assert by_examples[0] == by_examples[1]


def test_another_encoder_is_refused_by_name(index: Index, default_encoder: Encoder) -> None:
    """Asking with the wrong bundle names both bundles and what to do."""
    with pytest.raises(EncoderMismatch, match=r"tiny 1 .* not with lookalike-default .* --model"):
        Searcher(default_encoder, index)


def test_near_duplicates_are_grouped_and_the_largest_leads(
    tiny: Encoder, photographs: list[Path], tmp_path: Path
) -> None:
    """Re-encodings and smaller copies of a picture form one group, led by the one with the most pixels."""
    for number, path in enumerate(photographs[:4]):
        image = Image.open(path).convert("RGB").resize((320, 240))
        image.save(tmp_path / f"{number}-large.png")
        image.save(tmp_path / f"{number}-coarse.jpg", quality=60)
        image.resize((160, 120)).save(tmp_path / f"{number}-small.png")
    Image.open(photographs[4]).save(tmp_path / "alone.png")
    index = open_index(":memory:", dim=tiny.dim, meta={})
    update_index(index, tiny, rows([tmp_path]))

    groups = near_duplicates(index, 0.9995)

    found = [[Path(hit.key).stem for hit in group] for group in groups]
    assert [sorted(group) for group in found] == [[f"{n}-coarse", f"{n}-large", f"{n}-small"] for n in range(4)]
    assert all(group[0].endswith(("large", "coarse")) for group in found)
    assert all(hit.score >= 0.999 for group in groups for hit in group)


def test_near_duplicates_equal_the_connected_components_of_all_pairs(tiny: Encoder) -> None:
    """On random vectors, with many copies among them, the groups are those of a naive search over all pairs."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, 8))
    vectors = np.repeat(centres, random.integers(1, 30, 60), axis=0)
    vectors = vectors + random.normal(size=vectors.shape) * 0.15
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    keys = [f"{i:04}" for i in range(len(vectors))]
    index = open_index(":memory:", dim=8, meta={})
    index.add(keys, vectors)
    close = vectors @ vectors.T >= 0.97
    expected, left = [], set(range(len(vectors)))
    while left:
        group, front = set(), {min(left)}
        while front:
            group |= front
            front = {int(j) for i in front for j in np.flatnonzero(close[i])} - group
        left -= group
        if len(group) > 1:
            expected.append(sorted(keys[i] for i in group))

    groups = [sorted(hit.key for hit in group) for group in near_duplicates(index, 0.97)]

    assert sorted(groups) == sorted(expected)
    assert [len(group) for group in groups] == sorted(map(len, expected), reverse=True)


def test_two_crowds_of_copies_meet(tiny: Encoder) -> None:
    """Items whose nearest neighbours are all copies of themselves still find the near-duplicates behind the crowd."""
    vectors = np.repeat(np.array([[1, 0], [0.995, 0.0999], [0, 1]], np.float32), [40, 40, 2], axis=0)
    index = open_index(":memory:", dim=2, meta={})
    index.add([f"{i:02}" for i in range(82)], vectors)

    assert [len(group) for group in near_duplicates(index, 0.99)] == [80, 2]


def test_no_pictures_no_duplicates(tiny: Encoder) -> None:
    """An empty index has no groups; an impossible threshold is an error."""
    index = open_index(":memory:", dim=4, meta={})

    assert near_duplicates(index, 0.9) == []
    with pytest.raises(QueryError):
        near_duplicates(index, 1.5)
