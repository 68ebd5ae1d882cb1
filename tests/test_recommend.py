"""Recommendations: what is an answer and what never is, the choice among candidates, what pairs teach, the judge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lookalike.catalogue import rows
from lookalike.cli import cli
from lookalike.encoder import Encoder
from lookalike.errors import CatalogueError, QueryError, ShapeError
from lookalike.index import open_index
from lookalike.index.base import Index
from lookalike.indexing import update_index
from lookalike.metrics import (
    catalogue_coverage,
    hit_rate,
    intra_list_diversity,
    list_precision,
    list_recall,
    novelty,
)
from lookalike.recommend import CoOccurrence, Recommender, judge, maximal_marginal_relevance
from lookalike.recommend.together import KERNEL, NEIGHBOURS, PRIOR
from lookalike.vectors import unit

KINDS = ("shirt", "shoe", "bag")


def catalogue(vectors, **columns) -> Index:
    """Items i00, i01, … in memory."""
    index = open_index(":memory:", dim=vectors.shape[1])
    payloads = [{name: values[i] for name, values in columns.items()} for i in range(len(vectors))]
    index.add([f"i{i:02}" for i in range(len(vectors))], vectors, payloads)
    return index


@pytest.fixture
def cloud() -> Index:
    """60 items of 3 kinds, each around a direction of its own."""
    dice = np.random.default_rng(0)
    vectors = unit(np.repeat(2 * np.eye(3, 8), 20, axis=0) + dice.normal(size=(60, 8)))
    return catalogue(vectors, id=[str(1000 + i) for i in range(60)], kind=[KINDS[i // 20] for i in range(60)],
                     price=[float(i % 20) for i in range(60)])  # fmt: skip


def vectors_of(index: Index, keys):
    return np.stack([item.vector for item in index.get(list(keys))]).astype(np.float64)


def every(index: Index) -> list[str]:
    return sorted(item.key for item in index.scan())


def keys(hits) -> list[str]:
    return [hit.key for hit in hits]


# ── beside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("unlike", [[], ["i30"], ["i30", "i02"]])
def test_neighbours_are_those_of_a_naive_loop(cloud: Index, unlike: list[str]) -> None:
    """The mean liked vector less half the mean unlike one, by cosine, without the examples, filtered."""
    liked = ["i00", "i07"]
    query = vectors_of(cloud, liked).mean(axis=0)
    if unlike:
        query = query - 0.5 * vectors_of(cloud, unlike).mean(axis=0)
    query /= np.linalg.norm(query)
    left = [key for key in every(cloud) if key not in liked + unlike and int(key[1:]) % 20 < 15]
    wanted = sorted(((float(vectors_of(cloud, [key])[0] @ query), key) for key in left), reverse=True)[:9]

    hits = Recommender(cloud).beside(liked, unlike, 9, where={"price": {"range": {"lt": 15}}})

    assert keys(hits) == [key for _, key in wanted]
    assert [hit.score for hit in hits] == pytest.approx([score for score, _ in wanted], abs=1e-6)


def test_what_is_the_same_product_is_never_an_answer() -> None:
    """Neither equal files, nor near-identical pictures, nor the group, whichever example they belong to."""
    dice = np.random.default_rng(1)
    vectors = unit(dice.normal(size=(12, 16)))
    vectors[1] = unit(vectors[0] + 1e-4)[0]  # near-identical
    files = [{"sha256": str(i)} for i in range(12)]
    files[2] = files[0]
    index = catalogue(vectors, file=files, product=[*"abca", *"efghijkl"])  # the fourth is of the group of the first
    recommender = Recommender(index)

    assert "i01" not in keys(recommender.beside(["i00"], k=12))
    assert "i02" not in keys(recommender.beside(["i00"], k=12))
    assert "i03" in keys(recommender.beside(["i00"], k=12))
    assert "i03" not in keys(recommender.beside(["i00"], k=12, group="product"))
    assert not {"i00", "i01", "i02", "i03", "i05"} & set(
        keys(recommender.beside(["i05"], ["i00"], 12, group="product"))
    )
    assert keys(recommender.variants("i00")) == ["i01"]
    assert set(keys(recommender.variants("i00", group="product"))) == {"i01", "i03"}


def test_one_answer_stands_for_its_variants() -> None:
    """The nearest variant is the answer, and names the others; the number of answers is that of products."""
    dice = np.random.default_rng(2)
    shapes = unit(dice.normal(size=(10, 32)))
    vectors = np.concatenate([shapes, unit(shapes + 1e-4), unit(shapes + 0.05 * dice.normal(size=(10, 32)))])
    index = catalogue(vectors, product=[f"p{i % 10}" for i in range(30)])

    plain = Recommender(index).beside(["i00"], k=20)
    grouped = Recommender(index).beside(["i00"], k=9, group="product")

    assert all(len(hit.copies) == (1 if int(hit.key[1:]) < 20 else 0) for hit in plain if hit.key != "i20")
    assert len(grouped) == 9
    for hit in grouped:
        family = {f"i{int(hit.key[1:]) % 10 + step:02}" for step in (0, 10, 20)}
        assert set(hit.copies) <= family - {hit.key}
        assert hit.score == max(found.score for found in [hit, *plain] if found.key in family)


def test_diverse_answers_are_more_diverse_and_still_allowed(cloud: Index) -> None:
    """The first answer stays the nearest; the list spreads; the filter holds."""
    recommender, where = Recommender(cloud), {"price": {"range": {"lt": 12}}}
    lists = [recommender.beside(["i00"], k=6, where=where, diverse=diverse) for diverse in (0.0, 0.5, 1.0)]
    spread = [float(intra_list_diversity([vectors_of(cloud, keys(hits))])[0]) for hits in lists]

    assert spread[0] < spread[1] < spread[2]
    assert len({hits[0].key for hits in lists}) == 1
    assert all(hit.payload["price"] < 12 for hits in lists for hit in hits)


def test_across_answers_from_other_categories(cloud: Index) -> None:
    """However many of its own category are nearer."""
    hits = Recommender(cloud).beside(["i00"], k=40, across="kind")

    assert sorted(keys(hits)) == every(cloud)[20:]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {hit.payload["kind"] for hit in Recommender(cloud).beside(["i00", "i20"], k=9, across="kind")} == {"bag"}


def test_a_product_has_a_list_of_categories() -> None:
    """One in common is too many; without any, nothing says that it is another one."""
    vectors = unit(np.random.default_rng(0).normal(size=(4, 8)))
    index = catalogue(vectors, kind=[["men", "shoe"], ["men", "shirt"], ["women", "shirt"], []])

    assert keys(Recommender(index).beside(["i00"], across="kind")) == ["i02"]


# ── names and pictures ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shop(make_pictures: Callable[..., Path], tiny: Encoder) -> tuple[Path, Index]:
    top = make_pictures(*(f"{kind}/{n}.png" for kind in ("hats", "shoes") for n in range(5)))
    lines = [f"{path.relative_to(top)},{number // 2},{path.parent.name}" for number, path in enumerate(pictures(top))]
    (top / "shop.csv").write_text("\n".join(["image,product,kind", *lines]) + "\n")
    index = open_index(":memory:", dim=tiny.dim, meta={"encoder": tiny.describe()})
    update_index(index, tiny, rows([top / "shop.csv"]))
    return top, index


def pictures(top: Path) -> list[Path]:
    return sorted(top.rglob("*.png"))


def test_a_product_may_be_named_by_key_path_or_column(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its pictures are the product, whatever names it; numbers may be numbers."""
    top, index = shop
    recommender = Recommender(index, by="product")
    first, second = (str(path) for path in pictures(top)[:2])
    monkeypatch.chdir(top)

    whole = recommender.beside(["0"], k=10)
    assert keys(recommender.items("0")) == [first, second]
    assert not {first, second} & set(keys(whole))
    assert recommender.beside([0], k=10) == whole
    by_path = recommender.beside([Path("hats/0.png")], k=10)
    assert by_path == recommender.beside([first], k=10)
    assert second in keys(by_path)


def test_a_new_picture_has_answers_without_itself(shop, tiny: Encoder, tmp_path: Path) -> None:
    """By path, bytes or opened; a copy of an indexed file does not find that file; its category is its neighbours'."""
    top, index = shop
    source = pictures(top)[0]
    copy = tmp_path / "new.png"
    copy.write_bytes(source.read_bytes())
    recommender = Recommender(index, tiny)

    answers = [recommender.beside([given], k=10) for given in (copy, copy.read_bytes(), Image.open(copy))]
    assert all(keys(hits) == keys(answers[0]) for hits in answers)
    assert len(answers[0]) == 9
    assert recommender.items(copy) == []
    across = recommender.beside([copy], k=10, across="kind")
    votes = [hit.payload["kind"] for hit in index.search(tiny.images([copy]), 10)[0]]
    assert {hit.payload["kind"] for hit in across} < set(votes) or len(set(votes)) == 1


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"keys": []}, "at least one product"),
        ({"keys": "i00"}, "come as a list"),
        ({"keys": ["nothing"]}, "no product 'nothing' in index :memory:, and no such file: name it by its key"),
        ({"keys": [b"new"]}, "give the encoder"),
        ({"keys": ["i00"], "k": 0}, "k must be at least 1, got 0"),
        ({"keys": ["i00"], "diverse": 1.5}, "diverse must lie in"),
        ({"keys": ["i00"], "across": "colour"}, "column 'colour': index :memory: has id, kind, price"),
        ({"keys": ["i00"], "group": "colour"}, "column 'colour'"),
        ({"keys": ["i00"], "where": {"price": {"below": 3}}}, "price"),
    ],
)
def test_a_question_without_an_answer_says_why(cloud: Index, question: dict, message: str) -> None:
    """One sentence with the value."""
    with pytest.raises(QueryError, match=message):
        Recommender(cloud).beside(**question)


def test_examples_that_cancel_out_are_refused() -> None:
    """The mean less half of the unlike one, where that is nothing."""
    index = catalogue(unit(np.array([[1, 0], [-1, 0], [0, 1]])))

    with pytest.raises(QueryError, match="cancel out"):
        Recommender(index).beside(["i00", "i01"])


# ── the choice of answers ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("diverse", [0.0, 0.3, 1.0])
def test_marginal_relevance_is_that_of_a_naive_loop(diverse: float) -> None:
    """Carbonell and Goldstein's definition, one choice after the other."""
    dice = np.random.default_rng(3)
    vectors = unit(dice.normal(size=(30, 5)))
    relevance, alike = dice.random(30), vectors @ vectors.T

    chosen: list[int] = []
    while len(chosen) < 12:
        best, most = -1, -math.inf
        for i in range(30):
            value = relevance[i]  # nothing has been chosen that the first one could repeat
            if chosen:
                value = (1 - diverse) * value - diverse * max(float(alike[i, j]) for j in chosen)
            if i not in chosen and value > most:
                best, most = i, value
        chosen.append(best)

    assert maximal_marginal_relevance(relevance, vectors, 12, diverse) == chosen


def test_kinds_have_places_in_proportion_to_their_shares() -> None:
    """Ten places of 6 : 3 : 1; a kind that has run out leaves its places to the others."""
    kinds = ["a"] * 10 + ["b"] * 10 + ["c"] * 10 + ["d"] * 2
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    chosen = maximal_marginal_relevance(np.linspace(0, 1, 32), np.eye(32), 10, 0.0, kinds, shares)
    assert [sum(kinds[i] == kind for i in chosen) for kind in "abcd"] == [6, 3, 1, 0]
    assert [i for i in chosen if kinds[i] == "a"] == [9, 8, 7, 6, 5, 4]

    every_one = maximal_marginal_relevance(np.linspace(0, 1, 32), np.eye(32), 99, 0.0, kinds, shares)
    assert sorted(every_one) == list(range(32))
    assert {kinds[i] for i in every_one[-2:]} == {"d"}


def test_shapes_of_candidates_are_checked() -> None:
    """And said."""
    with pytest.raises(ShapeError, match=r"2 vectors need as many numbers of relevance, and kinds, got \(3,\)"):
        maximal_marginal_relevance(np.zeros(3), np.eye(2), 1)


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pairs_are_read_and_added_up(cloud: Index, tmp_path: Path) -> None:
    """By key or column, either way round; an item with itself says nothing; unknown names are told."""
    file = tmp_path / "pairs.csv"
    file.write_text("left,right,count\ni00,1020,2\ni20,i00,1\n1001,1001,9\ni02,gone,3\ni02,1040,0\n")
    found = CoOccurrence.read(file, cloud)

    assert found.counts == {"i00": {"i20": 3.0}, "i20": {"i00": 3.0}}
    assert found.unknown == ("gone",)
    assert found.popularity == {"i00": 3.0, "i20": 3.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("left,count\ni00,1\n", "no column right"),
        ("left,right,count\ni00,i01,many\n", "row 2: count must be a number of at least 0, got many"),
        ("left,right,count\ni00,i01,-1\n", "row 2: count"),
        ("left,right\ngone,lost\n", "2 of 2 names are unknown, e.g. 'gone'; name items by key, path or id"),
    ],
)
def test_pairs_that_say_nothing_are_refused(cloud: Index, tmp_path: Path, text: str, message: str) -> None:
    """With file, row and value."""
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(CatalogueError, match=message):
        CoOccurrence.read(tmp_path / "pairs.csv", cloud)


def test_what_was_bought_together_comes_first(cloud: Index) -> None:
    """Of a product with many pairs: its partners by item-to-item cosine, in categories by their shares."""
    counts = {"i25": 60, "i28": 20, "i47": 20}
    pairs = [("i00", partner, count) for partner, count in counts.items()] + [("i05", "i25", 40), ("i06", "i28", 5)]
    hits = Recommender(cloud, together=CoOccurrence.of(pairs)).beside(["i00"], k=10, across="kind")

    kinds = [hit.payload["kind"] for hit in hits]
    assert "shirt" not in kinds
    assert kinds.count("shoe") == 8  # 80 of 100, and of its neighbours all
    similar = {"i25": 60 / math.sqrt(100 * 100), "i28": 20 / math.sqrt(100 * 25)}
    shoes = [hit.key for hit in hits if hit.payload["kind"] == "shoe"]
    assert shoes[:2] == sorted(similar, key=lambda key: -similar[key])
    assert [hit.key for hit in hits if hit.payload["kind"] == "bag"][0] == "i47"


def test_a_new_product_borrows_from_those_that_look_like_it(cloud: Index) -> None:
    """Shirts near i00 go with one corner of the shoes, other shirts with another: so does a shirt without pairs."""
    shirts = vectors_of(cloud, every(cloud)[:20])
    near = np.argsort(-(shirts @ shirts[0]))
    left, right = near[1:6], near[-6:]
    shoes = vectors_of(cloud, every(cloud)[20:40])
    order = 20 + np.argsort(shoes @ shoes[0])
    pairs = [(f"i{shirt:02}", f"i{shoe:02}", 5) for shirt in left for shoe in order[-4:]]
    pairs += [(f"i{shirt:02}", f"i{shoe:02}", 5) for shirt in right for shoe in order[:4]]

    hits = Recommender(cloud, together=CoOccurrence.of(pairs)).beside(["i00"], k=4, across="kind")

    assert set(keys(hits)) == {f"i{shoe:02}" for shoe in order[-4:]}


def test_evidence_is_that_of_naive_loops(cloud: Index) -> None:
    """Shares, item-to-item similarity and trust by their definitions, for a known product and for a new one."""
    dice = np.random.default_rng(4)
    drawn = [tuple(sorted(dice.choice(50, 2, replace=False))) for _ in range(150)]  # i50 … have no pairs
    together = CoOccurrence.of([(f"i{a:02}", f"i{b:02}", float(dice.integers(1, 5))) for a, b in drawn])
    recommender = Recommender(cloud, together=together)
    counts, names = together.counts, sorted(together.counts)
    totals = {key: sum(counts[key].values()) for key in names}
    kind = {key: KINDS[int(key[1:]) // 20] for key in every(cloud)}

    for key in ("i00", "i55"):
        found = recommender._learned.evidence(recommender._products([key]), "kind", {kind[key]})
        own = counts.get(key, {})
        known = sum(own.values())
        cosines = {other: float(vectors_of(cloud, [key])[0] @ vectors_of(cloud, [other])[0]) for other in names}
        near = [name for name in sorted(names, key=lambda n: -cosines[n]) if kind[name] == kind[key] and name != key]
        near = near[:NEIGHBOURS]
        weight = {name: math.exp((cosines[name] - cosines[near[0]]) / KERNEL) for name in near}
        lent = {j: sum(weight[u] * counts[u].get(j, 0) for u in near) for j in names}

        def share_of(counted: dict[str, float], name: str) -> float:
            return sum(count for j, count in counted.items() if kind[j] == name)

        for name in set(KINDS) - {kind[key]}:
            share = share_of(totals, name) / sum(totals.values())
            of_kind = {j: sum(counts[u].get(j, 0) for u in names if kind[u] == kind[key]) for j in names}
            for counted in (of_kind, lent, own):
                share = (share_of(counted, name) + PRIOR * share) / (sum(counted.values()) + PRIOR)
            assert found.shares[name] == pytest.approx(share)
        for j, value in zip(names, found.similar, strict=True):
            own_part = own.get(j, 0) / math.sqrt(totals.get(key, 1) * totals[j])
            cells = {u: counts[u].get(j, 0) / math.sqrt(totals[u] * totals[j]) for u in near}
            borrowed = sum(weight[u] * cells[u] for u in near) / sum(weight.values())
            assert value == pytest.approx((known * own_part + PRIOR * borrowed) / (known + PRIOR), rel=1e-4)
        amount = known + PRIOR * sum(lent.values()) / (sum(lent.values()) + PRIOR)
        assert found.trust == pytest.approx(amount / (amount + PRIOR))


def test_pairs_within_filters(cloud: Index) -> None:
    """A partner that does not fit is no answer, nor a category that `where` leaves out."""
    together = CoOccurrence.of([("i00", "i25", 50.0), ("i00", "i45", 50.0)])
    recommender = Recommender(cloud, together=together)

    hits = recommender.beside(["i00"], k=30, across="kind", where={"kind": "bag", "price": {"range": {"gt": 5}}})
    assert {hit.payload["kind"] for hit in hits} == {"bag"}
    assert len(hits) == 14
    assert "i45" not in keys(hits)


def test_pairs_without_categories_bring_partners_to_the_front(cloud: Index) -> None:
    """Among look-alikes, what was seen together comes first."""
    together = CoOccurrence.of([("i00", "i45", 50.0)])
    assert keys(Recommender(cloud, together=together).beside(["i00"], k=3))[0] == "i45"


# ── measures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_measures_of_lists_are_those_of_naive_loops() -> None:
    """One list at a time, one item at a time."""
    dice = np.random.default_rng(5)
    answers = [[int(i) for i in dice.permutation(40)[: dice.integers(0, 9)]] for _ in range(50)]
    relevant = [{int(i) for i in dice.permutation(40)[: dice.integers(0, 12)]} for _ in range(50)]
    k = 6
    for n, (keys_, goal) in enumerate(zip(answers, relevant, strict=True)):
        found = 0
        for key in keys_[:k]:
            if key in goal:
                found += 1
        expected = [np.nan] * 4
        if goal:
            expected = [float(found > 0), found / k, found / min(k, len(goal)), found / len(goal)]
        got = [
            hit_rate(answers, relevant, k)[n],
            list_precision(answers, relevant, k)[n],
            list_precision(answers, relevant, k, capped=True)[n],
            list_recall(answers, relevant, k)[n],
        ]
        assert got == pytest.approx(expected, nan_ok=True)

    assert list(catalogue_coverage([[1, 2], [2]], range(4))) == [0, 1, 1, 0]

    vectors = unit(dice.normal(size=(7, 4)))
    pairs = [1 - float(vectors[i] @ vectors[j]) for i, j in combinations(range(7), 2)]
    assert list(intra_list_diversity([vectors, vectors[:1]])) == pytest.approx([np.mean(pairs), np.nan], nan_ok=True)

    # 4 items with 3, 1, 0, 0 interactions, and one more each: shares 4/8, 2/8, 1/8, 1/8.
    assert list(novelty([["a", "b"], ["d"], []], {"a": 3, "b": 1}, 4)) == pytest.approx([1.5, 3, np.nan], nan_ok=True)


def test_lists_need_as_many_sets() -> None:
    """And at least one answer to look at."""
    with pytest.raises(ShapeError, match="2 lists of answers need as many sets"):
        hit_rate([[1], [2]], [{1}], 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        list_recall([], [], 0)


def test_the_judge_counts_as_a_naive_loop(cloud: Index) -> None:
    """Every measure, from the same recommender's answers, by hand."""
    recommender = Recommender(cloud)
    found = judge(
        recommender,
        "kind",
        k=5,
        also=["price"],
        questions={"kind": "shoe"},
        where={"kind": {"any_of": ["shoe", "bag"]}},
    )
    asking = every(cloud)[20:40]
    precision, agreement, shown = [], [], set()
    for key in asking:
        hits = recommender.beside([key], k=5, where={"kind": {"any_of": ["shoe", "bag"]}})
        own = cloud.get([key])[0].payload
        precision.append(sum(hit.payload["kind"] == "shoe" for hit in hits) / 5)
        agreement.append(sum(hit.payload["price"] == own["price"] for hit in hits) / len(hits))
        shown |= set(keys(hits))

    assert found.items == 40
    assert found.questions == 20
    assert found.measures["precision@5"].mean == pytest.approx(np.mean(precision))
    assert found.measures["hit rate@5"].mean == pytest.approx(np.mean([share > 0 for share in precision]))
    assert found.measures["recall@5"].mean == pytest.approx(np.mean(precision) * 5 / 19)
    assert found.measures["coverage"].mean == len(shown) / 40
    assert found.measures["chance"].mean == pytest.approx(19 / 39)
    assert found.measures["precision@5"].low < np.mean(precision) < found.measures["precision@5"].high
    # Prices are no names of anything: they do not count.
    assert "agreement: price" not in found.measures
    assert found.document()["kind"] == "recommendation"
    json.dumps(found.document())
    assert "precision@5" in str(found)


def test_a_constant_encoder_scores_no_more_than_chance() -> None:
    """Though its keys stand in order of their classes, and ties go by key; and a random one scores chance."""
    dice = np.random.default_rng(6)
    kinds = [KINDS[i // 30] for i in range(90)]
    constant = judge(Recommender(catalogue(np.ones((90, 4), np.float32), kind=kinds)), "kind")
    assert constant.measures["precision@10"].mean <= constant.measures["chance"].mean
    assert constant.measures["recall@10"].mean == 0

    noise = unit(dice.normal(size=(90, 64)))
    by_luck = judge(Recommender(catalogue(noise, kind=kinds)), "kind").measures
    assert by_luck["precision@10"].low <= by_luck["chance"].mean <= by_luck["precision@10"].high


def test_variants_are_neither_asked_for_nor_missed() -> None:
    """What is the product itself is not relevant; a variant behind an answer is found."""
    dice = np.random.default_rng(7)
    shapes = unit(dice.normal(size=(3, 16)))
    index = catalogue(np.concatenate([shapes, -shapes]), kind=["a", "a", "b"] * 2, product=["p", "q", "r"] * 2)
    found = judge(Recommender(index), "kind", k=2, group="product")

    assert found.measures["recall@2"].mean == 1
    assert found.measures["precision@2"].count == 4  # the two of b are one product, to which nothing else is relevant
    assert any("2 questions do not count" in note for note in found.notes)


def test_the_judge_asks_about_held_out_pairs(cloud: Index) -> None:
    """What was learned helps with what was kept back, and novelty is told."""
    dice = np.random.default_rng(8)
    shoe_of = {shirt: 20 + (shirt * 7) % 20 for shirt in range(20)}
    pairs = [(f"i{a:02}", f"i{b:02}", 1.0) for a, b in shoe_of.items() for _ in range(3)]
    pairs += [(f"i{a:02}", f"i{dice.integers(40, 60):02}", 1.0) for a in range(20)]
    held_out = CoOccurrence.of([(f"i{a:02}", f"i{b:02}", 1.0) for a, b in shoe_of.items()])
    options = {"k": 3, "across": "kind", "questions": {"kind": "shirt"}}
    looks = judge(Recommender(cloud), held_out, **options)
    learned = judge(Recommender(cloud, together=CoOccurrence.of(pairs)), held_out, **options)

    assert learned.measures["hit rate@3"].low > looks.measures["hit rate@3"].high
    assert learned.measures["novelty, bits"].mean > 0


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"relevant": "colour"}, "no item has a column 'colour': index :memory: has id, kind, price"),
        ({"relevant": "kind", "across": "kind"}, "never of the same 'kind'"),
        ({"relevant": "kind", "questions": {"kind": "tie"}}, "fit none"),
        ({"relevant": "id"}, "nothing is relevant to any of 60 questions"),
    ],
)
def test_a_judgement_of_nothing_says_why(cloud: Index, question: dict, message: str) -> None:
    """Rather than a table of nothing."""
    with pytest.raises(QueryError, match=message):
        judge(Recommender(cloud), **question)


# ── engines and command line ─────────────────────────────────────────────────────────────────────────────────────────


def test_every_engine_recommends_the_same(cloud: Index, tmp_path: Path) -> None:
    """The index in a folder answers as the one in memory, whatever is asked."""
    items = cloud.get(every(cloud))
    stored = open_index(tmp_path / "cloud.index", dim=8)
    stored.add([i.key for i in items], np.stack([i.vector for i in items]), [i.payload for i in items])
    together = CoOccurrence.of([("i00", "i25", 3.0), ("i01", "i45", 2.0)])
    for options in ({}, {"diverse": 0.4}, {"across": "kind"}, {"where": {"kind": "bag"}}, {"group": "kind"}):
        for pairs in (None, together):
            one, other = (
                Recommender(index, together=pairs).beside(["1000"], k=7, **options) for index in (cloud, stored)
            )
            assert keys(one) == keys(other)
            assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-6)
    stored.close()


def run(*words: object) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def stored(shop, tiny: Encoder, tmp_path: Path) -> tuple[Path, Path]:
    top, _ = shop
    place = tmp_path / "shop.index"
    index = open_index(place, dim=tiny.dim, meta={"encoder": tiny.describe()})
    update_index(index, tiny, rows([top / "shop.csv"]))
    index.close()
    return top, place


def test_the_command_recommends(stored: tuple[Path, Path], tmp_path: Path) -> None:
    """Text, JSON lines and a sheet say the same; pairs and categories are heeded."""
    top, place = stored
    text = run("recommend", place, "0", "--by", "product", "-k", 3).splitlines()
    lines = [
        json.loads(line) for line in run("recommend", place, "0", "--by", "product", "-k", 3, "--json").splitlines()
    ]
    assert [line.split()[1] for line in text] == [line["path"] for line in lines]
    assert len(lines) == 3

    (tmp_path / "pairs.csv").write_text("left,right\n" + "0,4\n" * 30)
    sheet = tmp_path / "beside.html"
    options = ("--across", "kind", "--pairs", tmp_path / "pairs.csv", "--html", sheet, "--json", "-k", 2)
    first = json.loads(run("recommend", place, "0", "--by", "product", *options).splitlines()[0])
    assert first["payload"]["product"] == 4
    assert sheet.read_text().count("<img") == 3

    new = tmp_path / "new.png"
    Image.open(pictures(top)[3]).resize((40, 40)).save(new)
    assert run(
        "recommend", place, new, "-k", 2, "--unlike", "0", "--by", "product", "--where", "kind=hats", "--diverse", 0.5
    )


def test_the_command_judges(stored: tuple[Path, Path], tmp_path: Path) -> None:
    """The file holds what was printed, and how it was made."""
    _, place = stored
    target = tmp_path / "result.json"
    printed = run("recommend", place, "--judge", "kind", "--also", "product", "-k", 3, "--to", target, "--json")
    document = json.loads(target.read_text())

    assert json.loads(printed) == document
    assert document["kind"] == "recommendation"
    assert set(document["measures"]["precision@3"]) == {"mean", "low", "high", "count"}
    assert document["made"]["command"].startswith("cli recommend") or "recommend" in document["made"]["command"]
    assert len(document["fingerprint"]) == 64
    (tmp_path / "pairs.csv").write_text("left,right\n0,1\n2,3\n")
    assert "clicked or bought together" in run("recommend", place, "--judge", tmp_path / "pairs.csv", "--by", "product")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either PRODUCTs, or --judge"),
        (["0", "--judge", "kind"], "give either PRODUCTs, or --judge"),
        (["0", "--also", "kind"], "--also goes with --judge"),
        (["0", "--to", "x.json"], "--to goes with --judge"),
        (["--judge", "kind", "--unlike", "0"], "--unlike is about PRODUCTs"),
    ],
)
def test_wrong_usage_is_said(stored: tuple[Path, Path], words: list[str], message: str) -> None:
    """Before anything is opened."""
    done = CliRunner().invoke(cli, ["recommend", str(stored[1]), *words])
    assert done.exit_code == 2
    assert message in done.output
