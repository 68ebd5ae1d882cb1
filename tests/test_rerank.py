"""Re-ranking against loops that follow the published code, against answers known by hand, and as data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lookalike import rerank
from lookalike.errors import ShapeError
from lookalike.rerank import Reranking, expanded, k_reciprocal


def directions(*degrees: float) -> np.ndarray:
    """Unit vectors of the plane."""
    angles = np.radians(degrees)
    return np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def some_vectors(count: int, dim: int = 16, kinds: int = 0, seed: int = 0) -> np.ndarray:
    """Random unit vectors, without order or around some centres."""
    dice = np.random.default_rng(seed)
    rows = dice.normal(size=(count, dim))
    if kinds:
        rows = 0.6 * rows + 2 * dice.normal(size=(kinds, dim))[dice.integers(kinds, size=count)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def published_k_reciprocal(queries, gallery, k1, k2, weight):
    """Step by step what the authors' re_ranking does, with loops, on a full matrix of distances in float64."""
    rows = np.concatenate([queries, gallery]).astype(np.float64)
    everything, asked = len(rows), len(queries)
    distances = np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])
    distances = (distances / distances.max(axis=0)).T
    before_all = distances - 2 * np.eye(everything)  # itself first, whatever copies there are
    initial_rank = np.argsort(before_all, axis=1, kind="stable")

    def reciprocal(i, k):
        forward = list(initial_rank[i, : k + 1])
        return [j for j in forward if i in initial_rank[j, : k + 1]]

    codes = np.zeros((everything, everything))
    for i in range(everything):
        first = reciprocal(i, k1)
        extended = set(first)
        for candidate in first:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(set(theirs) & set(first)) > 2 / 3 * len(theirs):
                extended |= set(theirs)
        for j in extended:
            codes[i, j] = math.exp(-distances[i, j])
        codes[i] /= codes[i].sum()
    if k2 != 1:
        codes = np.array([codes[initial_rank[i, :k2]].mean(axis=0) for i in range(everything)])
    final = np.zeros((asked, everything))
    for i in range(asked):
        for j in range(everything):
            shared = sum(min(a, b) for a, b in zip(codes[i], codes[j], strict=True))
            final[i, j] = (1 - weight) * (1 - shared / (2 - shared)) + weight * distances[i, j]
    return 1 - final[:, asked:]


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (1, 2, 0.3), (3, 8, 0.5), (200, 200, 0.3)])
@pytest.mark.parametrize("kinds", [0, 6])
def test_k_reciprocal_is_the_published_algorithm(k1: int, k2: int, weight: float, kinds: int) -> None:
    """Every similarity equals that of naive loops, without order and in clusters, with k beyond the pictures, too."""
    rows = some_vectors(70, kinds=kinds)
    queries, gallery = rows[:9], rows[9:]

    ours = k_reciprocal(queries, gallery, k1=k1, k2=k2, weight=weight)

    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, published_k_reciprocal(queries, gallery, k1, k2, weight), atol=2e-6)


def test_ties_go_by_place_and_copies_do_not_hide_a_picture_from_itself() -> None:
    """Three copies each of vectors whose cosines are exact, so that almost everything is a tie: as in the loops."""
    corners = np.array([[a, b, c, d] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)]) / 2
    rows = np.tile(corners, (3, 1)).astype(np.float32)

    for k1 in (1, 4, 7):
        ours = k_reciprocal(rows[:5], rows[5:], k1=k1, k2=2)
        np.testing.assert_allclose(ours, published_k_reciprocal(rows[:5], rows[5:], k1, 2, 0.3), atol=1e-6)


def test_k_reciprocal_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows handled one at a time give what all at once do."""
    rows = some_vectors(60, kinds=5, seed=1)
    whole = k_reciprocal(rows[:4], rows[4:])

    monkeypatch.setattr(rerank, "BLOCK_CELLS", 1)

    np.testing.assert_allclose(k_reciprocal(rows[:4], rows[4:]), whole, atol=1e-6)


def test_k_reciprocal_follows_a_chain() -> None:
    """a–b–c look alike one by one; x is nearer to a than c is, but keeps company with y and z.

    With k1 = 2 the reciprocal neighbours are {a, b} of a, {a, b, c} of b, {b, c} of c and {x, y, z} of x, and none of
    them brings in others; a shares b with c and nothing with x.
    """
    degrees = {"a": 0.0, "b": 19.0, "c": 40.0, "x": -35.0, "y": -50.0, "z": -60.0}
    rows = directions(*degrees.values())

    def far(one: str, other: str) -> float:
        def squared(place: str) -> float:
            return 2 - 2 * math.cos(math.radians(degrees[one] - degrees[place]))

        return squared(other) / max(map(squared, degrees))

    def code(of: str, members: str) -> dict[str, float]:
        total = sum(math.exp(-far(of, member)) for member in members)
        return {member: math.exp(-far(of, member)) / total for member in members}

    def alike(ours: dict[str, float], theirs: dict[str, float], other: str) -> float:
        shared = sum(min(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())
        return 0.7 * shared / (2 - shared) + 0.3 * (1 - far("a", other))

    a = code("a", "ab")
    expected = [
        alike(a, code("b", "abc"), "b"),
        alike(a, code("c", "bc"), "c"),
        *(alike(a, code(name, "xyz"), name) for name in "xyz"),
    ]

    [found] = k_reciprocal(rows[:1], rows[1:], k1=2, k2=1, weight=0.3)

    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [list("bcxyz")[place] for place in np.argsort(-found)[:3]] == ["b", "c", "x"]
    assert [list("bcxyz")[place] for place in np.argsort(-(rows[1:] @ rows[0]))[:3]] == ["b", "x", "c"]


def test_weight_one_keeps_the_order_of_the_cosine() -> None:
    """With the original distance alone nothing is re-ordered."""
    rows = some_vectors(40, seed=2)

    alike = k_reciprocal(rows[:3], rows[3:], weight=1)

    np.testing.assert_array_equal(np.argsort(-alike), np.argsort(-(rows[:3] @ rows[3:].T)))


def test_copies_and_empty_sides_are_no_trouble() -> None:
    """Nothing but copies are all alike; no queries or no gallery give an empty answer."""
    copies = np.repeat(some_vectors(1), 30, axis=0)

    np.testing.assert_allclose(k_reciprocal(copies[:2], copies[2:], k1=40), 1, atol=1e-5)
    assert k_reciprocal(copies[:0], copies).shape == (0, 30)
    assert k_reciprocal(copies, copies[:0]).shape == (30, 0)


@pytest.mark.parametrize("options", [{"k1": 0}, {"k2": 0}, {"weight": 1.1}, {"weight": math.nan}])
def test_impossible_options_of_k_reciprocal_are_errors(options: dict[str, float]) -> None:
    """Out of range is a ValueError, another width a ShapeError."""
    rows = some_vectors(5)

    with pytest.raises(ValueError, match="k1 and k2"):
        k_reciprocal(rows, rows, **options)
    with pytest.raises(ShapeError, match="gallery"):
        k_reciprocal(rows, rows[:, :3])


def test_expansion_is_the_weighted_sum() -> None:
    """Each query plus its best neighbours times score ** alpha, in naive loops; what is not among the best is not."""
    queries, gallery = some_vectors(6), some_vectors(40, seed=1).reshape(1, 40, 16).repeat(6, axis=0)
    scores = np.einsum("nd,nmd->nm", queries, gallery)

    for count, wanted in ((5, 5), (99, 40)):
        expected = []
        for query, near, line in zip(queries, gallery, scores, strict=True):
            total = query.astype(np.float64)
            for place in np.argsort(-line)[:wanted]:
                total = total + max(line[place], 0) ** 3 * near[place]
            expected.append(total / np.linalg.norm(total))
        moved = expanded(queries * 7, gallery, scores, count=count)

        assert moved.dtype == np.float32
        np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_expansion_lies_where_it_is_known_to() -> None:
    """One neighbour at 60° with score 1/2 and alpha 1 moves the query by atan(√3 / 5); one behind it does not pull."""
    query, near = directions(0), directions(60, 150)[None]

    moved = expanded(query, near, [[0.5, math.cos(math.radians(150))]], count=2, alpha=1)

    assert math.degrees(math.atan2(moved[0, 1], moved[0, 0])) == pytest.approx(math.degrees(math.atan(3**0.5 / 5)))
    np.testing.assert_allclose(expanded(query, directions(60)[None], [[0.5]], alpha=0), directions(30), atol=1e-6)
    np.testing.assert_allclose(expanded(query, directions(180)[None], [[-1]], alpha=0), query, atol=1e-6)
    np.testing.assert_array_equal(expanded(query, near[:, :0], np.empty((1, 0))), query)
    np.testing.assert_array_equal(expanded(query, near, [[0.5, 0.1]], count=0), query)


def test_impossible_expansions_are_errors() -> None:
    """Shapes that do not fit and scores that are no numbers are ShapeErrors that say what was wanted."""
    query, near = directions(0), directions(60, 90)[None]

    for neighbours, scores in ((near[0], [[1, 1]]), (near, [[1]]), (near[..., :1], [[1, 1]]), (near[:0], [])):
        with pytest.raises(ShapeError, match=r"neighbours of shape \(1, m, 2\)"):
            expanded(query, neighbours, scores)
    with pytest.raises(ShapeError, match="finite"):
        expanded(query, near, [[1, math.nan]])
    for options in ({"count": -1}, {"alpha": -1}, {"alpha": math.nan}):
        with pytest.raises(ValueError, match="at least 0"):
            expanded(query, near, [[1, 1]], **options)


def test_reranking_is_data() -> None:
    """It survives its document; parts of one have defaults; it is true where anything is on."""
    chosen = Reranking(expansion=5, alpha=2, k1=20, k2=3, weight=0.5)

    assert Reranking.from_document(chosen.to_document()) == chosen
    assert Reranking.from_document({"k1": 20}) == Reranking(0, 3.0, 20, 6, 0.3)
    assert not Reranking()
    assert Reranking(expansion=1)
    assert Reranking(k1=1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"expansion": -1}, "expansion must be a whole number from 0 to 1000, got -1"),
        ({"expansion": True}, "expansion must be"),
        ({"k1": 2.5}, "k1 must be"),
        ({"k1": 10**9}, "k1 must be"),
        ({"k2": 0}, "k2 must be a whole number from 1"),
        ({"alpha": -0.1}, "alpha must be"),
        ({"alpha": math.inf}, "alpha must be"),
        ({"alpha": "3"}, "alpha must be"),
        ({"weight": 1.01}, "weight must be"),
        ({"weight": None}, "weight must be"),
        ({"lambda": 0.3, "k1": 20}, "got lambda"),
        ([20, 6], "must be an object"),
    ],
)
def test_impossible_rerankings_are_refused(document: object, message: str) -> None:
    """Each value out of its range, and each name that is none, is a ValueError that says which."""
    with pytest.raises(ValueError, match=message):
        Reranking.from_document(document)
