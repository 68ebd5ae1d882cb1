"""The document of an evaluation: what it shows next to its numbers, against loops written from its description."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike import results as module
from lookalike.cli import main
from lookalike.cli._common import write_json
from lookalike.evaluate import evaluate
from lookalike.results import evaluation_document, flat_map

TINY = str(Path(__file__).parent / "data" / "tiny")


class Constant:
    """One vector for every picture."""

    def images(self, pictures):
        return np.tile(np.float32([3, 1, 2]), (len(pictures), 1))


@pytest.fixture(scope="module")
def catalogue(draw_classes, tmp_path_factory) -> Path:
    """Six noisy classes of four pictures, in pairs of one product; one file is broken."""
    home = tmp_path_factory.mktemp("catalogue")
    draw_classes(home / "pictures", classes=6, pictures=4)
    dice = np.random.default_rng(1)
    lines = ["image,kind,product,role"]
    for kind in range(6):
        for picture in range(4):
            path = home / "pictures" / f"class{kind:02}" / f"{picture}.png"
            noisy = np.asarray(Image.open(path)).astype(float) + dice.normal(0, 110, (24, 24, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
            role = "query" if picture % 2 else "gallery"
            lines.append(f"pictures/class{kind:02}/{picture}.png,class{kind:02},{kind}-{picture // 2},{role}")
    (home / "pictures" / "class00" / "0.png").write_bytes(b"broken")
    (home / "catalogue.csv").write_text("\n".join(lines) + "\n")
    return home / "catalogue.csv"


def naive(tiny, catalogue: Path, roles: bool, groups: bool) -> dict[str, list[tuple[str, float, bool]]]:
    """For each query, all that may be found, best first; at a tie, what is irrelevant first."""
    rows = [line.split(",") for line in catalogue.read_text().splitlines()[1:]]
    rows = [row for row in rows if "class00/0.png" not in row[0]]
    vectors = dict(zip([row[0] for row in rows], tiny.images([catalogue.parent / row[0] for row in rows]), strict=True))
    found = {}
    for path, kind, product, role in rows:
        if roles and role != "query":
            continue
        others = [
            (other, float(vectors[path] @ vectors[other]), kind == theirs)
            for other, theirs, thing, part in rows
            if other != path and not (roles and part == "query") and not (groups and thing == product)
        ]
        found[path] = sorted(others, key=lambda each: (-round(each[1], 6), each[2]))
    return found


@pytest.mark.parametrize(
    ("protocol", "group"), [("retrieval", None), ("retrieval", "product"), ("query-gallery", None)]
)
def test_examples_and_confusions_are_those_of_their_definition(protocol, group, tiny, catalogue):
    results = evaluate(tiny, catalogue, protocol=protocol, labels="kind", group=group, full=True)
    document = json.loads(json.dumps(evaluation_document(results, "a command")))
    wanted = naive(tiny, catalogue, protocol == "query-gallery", group is not None)
    assert (document["kind"], document["made"]["command"]) == ("evaluation", "a command")
    for name in ("best", "worst"):
        queries = document["queries"][name]
        values = [query["value"] for query in queries]
        assert values == sorted(values, reverse=name == "best") and len(queries) >= 6
        assert max(Counter(query["label"] for query in queries).values()) <= module.OF_A_CLASS
        for query in queries:
            truth = wanted[query["path"]]
            assert query["relevant"] == sum(relevant for *_, relevant in truth)
            shown = query["neighbours"]
            assert len(shown) == min(module.NEIGHBOURS, len(truth))
            assert [each["score"] for each in shown] == pytest.approx(
                [score for _, score, _ in truth[: len(shown)]], abs=2e-6
            )
            assert [each["relevant"] for each in shown] == [relevant for *_, relevant in truth[: len(shown)]]
            assert {each["path"] for each in shown} <= {path for path, *_ in truth}
            hits = [relevant for *_, relevant in truth][: query["relevant"]]
            precision = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
            assert query["value"] == pytest.approx(sum(precision) / query["relevant"])
    lowest = min(each["value"] for each in document["queries"]["worst"])
    counted = {path: truth for path, truth in wanted.items() if any(relevant for *_, relevant in truth)}
    assert lowest == pytest.approx(np.nanmin(results.answers["map_at_r"]))
    nearest = Counter((path.split("/")[1], truth[0][0].split("/")[1]) for path, truth in counted.items())
    matrix = document["confusion"]
    assert matrix["queries"] == len(counted) == sum(map(sum, matrix["counts"]))
    for row, one in enumerate(matrix["classes"]):
        for column, two in enumerate(matrix["classes"]):
            assert matrix["counts"][row][column] == nearest[one, two]
    assert {(each["true"], each["taken_for"]): each["count"] for each in matrix["pairs"]} == {
        pair: count for pair, count in nearest.items() if pair[0] != pair[1]
    }
    classes = {each["class"]: each for each in document["classes"]}
    assert sum(each["queries"] for each in classes.values()) == len(counted)
    mean = sum(each["queries"] * each["mrr"] for each in classes.values()) / len(counted)
    assert mean == pytest.approx(document["measures"]["mrr"]["mean"], abs=1e-5)
    assert len(document["map"]["pictures"]) == 23  # one cannot be read


def test_of_a_constant_encoder_every_neighbour_is_wrong(catalogue):
    document = evaluation_document(evaluate(Constant(), catalogue, labels="kind"), "")
    found = [each["relevant"] for query in document["queries"]["best"] for each in query["neighbours"]]
    assert not any(found)
    matrix = document["confusion"]
    assert all(counts[number] == 0 for number, counts in enumerate(matrix["counts"]))
    assert document["map"]["method"] == "PCA"
    assert {(each["x"], each["y"]) for each in document["map"]["pictures"]} == {(0.5, 0.5)}


def test_pairs_show_those_decided_most_clearly_and_most_wrongly(tiny, catalogue, tmp_path):
    rows = [line.split(",") for line in catalogue.read_text().splitlines()[2:]]
    pairs = [(a, b) for n, a in enumerate(rows) for b in rows[n + 1 :]]
    lines = [f"{catalogue.parent / a[0]},{catalogue.parent / b[0]},{int(a[1] == b[1])}" for a, b in pairs]
    place = tmp_path / "pairs.csv"
    place.write_text("\n".join(["left,right,same", *lines]) + "\n")
    document = evaluation_document(evaluate(tiny, place, protocol="pairs"), "")
    vectors = dict(zip([row[0] for row in rows], tiny.images([catalogue.parent / row[0] for row in rows]), strict=True))
    scores = {True: [], False: []}
    for a, b in pairs:
        scores[a[1] == b[1]].append(float(vectors[a[0]] @ vectors[b[0]]))
    for name, ends in (("best", (-1, 1)), ("worst", (1, -1))):
        queries = document["queries"][name]
        for kind, end in zip((True, False), ends, strict=True):
            found = [query["value"] for query in queries if query["neighbours"][0]["relevant"] == kind]
            assert found == pytest.approx(sorted(scores[kind])[::end][: len(found)], abs=2e-6)
            assert len(found) == module.EXAMPLES // 2
    far, tar = document["curve"]["far"], document["curve"]["tar"]
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
    assert far == sorted(far) and tar == sorted(tar) and len(far) <= module.POINTS


def test_other_protocols_have_a_map_and_no_examples(tiny, catalogue):
    results = evaluate(tiny, catalogue, protocol="episodes", labels="kind", way=3, episodes=20)
    document = evaluation_document(results, "")
    assert "queries" not in document and len(document["map"]["pictures"]) == 23


def test_of_many_classes_the_rest_is_one(monkeypatch, tiny, catalogue):
    monkeypatch.setattr(module, "IN_MATRIX", 2)
    monkeypatch.setattr(module, "TOLD", 3)
    document = evaluation_document(evaluate(tiny, catalogue, labels="kind"), "")
    matrix = document["confusion"]
    assert matrix["classes"][2:] == ["4 other classes"]
    assert sum(map(sum, matrix["counts"])) == matrix["queries"] == 23
    assert len(document["classes"]) == 3


def test_of_many_pictures_some_are_drawn_and_the_seed_says_which(monkeypatch, tiny, catalogue):
    monkeypatch.setattr(module, "ON_MAP", 12)
    monkeypatch.setattr(module, "ASKED", 10)
    results = evaluate(tiny, catalogue, labels="kind")
    one, again, other = (evaluation_document(results, "", seed) for seed in (0, 0, 1))
    assert one["map"] == again["map"] != other["map"]
    assert len(one["map"]["pictures"]) == 12 and one["map"]["of"] == 23
    assert one["confusion"]["queries"] == 10


def test_principal_directions_are_scikit_learns(monkeypatch):
    from sklearn.decomposition import PCA

    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, method = flat_map(vectors)
    wanted = PCA(2).fit_transform(vectors.astype(np.float64))
    assert method == "PCA"
    for axis in (0, 1):
        assert abs(np.corrcoef(found[:, axis], wanted[:, axis])[0, 1]) == pytest.approx(1, abs=1e-5)
    assert found.min() >= -1e-9 and found.max() <= 1 + 1e-9
    # One scale for both directions.
    assert np.ptp(found[:, 1]) / np.ptp(found[:, 0]) == pytest.approx(
        np.ptp(wanted[:, 1]) / np.ptp(wanted[:, 0]), abs=1e-5
    )


def test_what_is_alike_lies_together_on_the_map():
    dice = np.random.default_rng(0)
    centres = np.eye(3, 8, dtype=np.float32)
    vectors = np.concatenate([centre + dice.normal(0, 0.1, (15, 8)) for centre in centres]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found, method = flat_map(vectors, seed=3)
    assert method == "t-SNE" and np.array_equal(found, flat_map(vectors, seed=3)[0])
    group = np.repeat(np.arange(3), 15)
    near = np.linalg.norm(found[:, None] - found[None], axis=2) + 9 * np.eye(45)
    assert (group[near.argmin(1)] == group).mean() > 0.95


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (12, 1)])
def test_few_vectors_have_a_map_too(shape):
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found, _ = flat_map(vectors)
    assert found.shape == (shape[0], 2) and np.isfinite(found).all()


def test_names_that_are_no_text_can_be_written(tmp_path):
    write_json(str(tmp_path / "a.json"), {"path": "\udcff.jpg", "label": "Schön"})
    assert json.loads((tmp_path / "a.json").read_text())["path"] == "\udcff.jpg"
    write_json(str(tmp_path / "b.json"), {"label": "Schön"})
    assert "Schön" in (tmp_path / "b.json").read_text(encoding="utf-8")


def test_two_encoders_are_compared_on_the_curve_as_well(catalogue, tmp_path, capsys):
    rows = [line.split(",") for line in catalogue.read_text().splitlines()[2:]]
    pairs = [(a, b) for n, a in enumerate(rows) for b in rows[n + 1 :: 3]]
    lines = [f"{catalogue.parent / a[0]},{catalogue.parent / b[0]},{int(a[1] == b[1])}" for a, b in pairs]
    place = tmp_path / "pairs.csv"
    place.write_text("\n".join(["left,right,same", *lines]) + "\n")
    main(
        [
            "evaluate",
            str(place),
            "--protocol",
            "pairs",
            "--model",
            TINY,
            "--compare",
            TINY,
            "--to",
            str(tmp_path / "r.json"),
        ]
    )
    told = capsys.readouterr().out
    gaps = json.loads((tmp_path / "r.json").read_text())["compared"]["differences"]
    assert set(gaps) == {"accuracy", "eer", "auc", "tar_at_far_0.01", "tar_at_far_0.001"}
    assert all(gap["low"] == gap["mean"] == gap["high"] == 0 for gap in gaps.values())
    assert "no better than" in told and "equal error rate" in told
