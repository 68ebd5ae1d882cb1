"""Every protocol on its real layout, against loops written from its description, and with encoders of known worth."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike import metrics
from lookalike.baselines import ColourHistogram, Pixels
from lookalike.cli import main
from lookalike.errors import CatalogueError, LookalikeError, QueryError, ShapeError
from lookalike.evaluate import PROTOCOLS, differences, evaluate, title
from lookalike.verification import eer

TINY = str(Path(__file__).parent / "data" / "tiny")


class Constant:
    """One vector for every picture."""

    def images(self, pictures):
        return np.tile(np.float32([3, 1, 2]), (len(pictures), 1))


class Chance:
    """A vector that has nothing to do with the picture."""

    name = "chance"

    def images(self, pictures):
        # Without the temporary folder above, whose name is another in each run: luck would be, too.
        seeds = [zlib.crc32("/".join(Path(path).parts[-3:]).encode()) for path in pictures]
        return np.array([np.random.default_rng(seed).normal(size=16) for seed in seeds])


def draw(path: Path, pattern: int, dice: np.random.Generator, noise: float = 60.0) -> Path:
    """A picture of a pattern under noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clean = np.random.default_rng(pattern).integers(40, 216, (4, 4, 3))
    noisy = np.kron(clean, np.ones((4, 4, 1))) + dice.normal(0, noise, (16, 16, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """alphabet/character/character_drawer.png: three alphabets of five characters by four drawers."""
    top, dice = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for number in range(15):
        for drawer in range(4):
            name = f"alphabet{number // 5}/character{number:02}/{number:04}_{drawer:02}.png"
            draw(top / name, number, dice, noise=150)
    return top


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Path:
    """Three runs of five classes, in the layout of the published ones."""
    top, dice = tmp_path_factory.mktemp("lake"), np.random.default_rng(1)
    for run in range(1, 4):
        lines = []
        for item, kind in enumerate(dice.permutation(5), start=1):
            test, training = f"run{run:02}/test/item{item:02}.png", f"run{run:02}/training/class{kind + 1:02}.png"
            draw(top / test, 10 * run + int(kind), dice, noise=190)
            draw(top / training, 10 * run + int(kind), dice, noise=190)
            lines.append(f"{test} {training}\n")
        (top / f"run{run:02}" / "class_labels.txt").write_text("".join(lines))
    return top


def make_lfw(top: Path, folds: int = 4, each: int = 6, end: str = ".jpg") -> Path:
    """A folder per person and pairs.txt, tabs and all."""
    dice = np.random.default_rng(2)
    people = [f"Person_{letter}" for letter in "ABCDEFGH"]
    for number, name in enumerate(people):
        for picture in range(1, 5):
            draw(top / name / f"{name}_{picture:04}{end}", 50 + number, dice, noise=260)
    lines = [f"{folds}\t{each}\n"]
    for _ in range(folds):
        for _ in range(each):
            one, two = dice.choice(4, 2, replace=False) + 1
            lines.append(f"{dice.choice(people)}\t{one}\t{two}\n")
        for _ in range(each):
            (left, right), (one, two) = dice.choice(people, 2, replace=False), dice.integers(1, 5, 2)
            lines.append(f"{left}\t{one}\t{right}\t{two}\n")
    (top / "pairs.txt").write_text("".join(lines))
    return top


@pytest.fixture(scope="module")
def lfw(tmp_path_factory) -> Path:
    return make_lfw(tmp_path_factory.mktemp("lfw"))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """query/ and gallery/ with a folder per class, and catalogue.csv that says the same."""
    top, dice = tmp_path_factory.mktemp("gallery"), np.random.default_rng(3)
    lines = ["image,kind,role,product"]
    for number in range(6):
        for picture in range(5):
            role = "gallery" if picture < 3 else "query"
            name = f"{role}/kind{number}/{picture}.png"
            draw(top / name, number, dice, noise=200)
            lines.append(f"{name},kind{number},{role},{number}-{picture % 2}")
    draw(top / "query" / "unknown" / "0.png", 99, dice)
    lines.append("query/unknown/0.png,unknown,query,")
    (top / "catalogue.csv").write_text("\n".join(lines) + "\n")
    return top


def vectors_of(paths) -> np.ndarray:
    return Pixels().images(paths)


# ── encoders of known worth ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_constant_encoder_scores_chance_in_every_protocol(folders, lake, lfw, gallery):
    """Ties go against it where it must choose; two kinds of pair it tells apart like a coin."""
    places = {"retrieval": folders, "query-gallery": gallery, "episodes": folders, "lake": lake, "pairs": lfw}
    assert set(places) == set(PROTOCOLS) - {"captions"}
    found = {name: evaluate(Constant(), place, protocol=name, way=5, full=True) for name, place in places.items()}

    for results in found.values():
        assert "NaN" not in json.dumps(results.document())
    for name in ("retrieval", "query-gallery"):
        means = {measure: interval.mean for measure, interval in found[name].measures.items()}
        assert means.pop("map") < 0.2 and means.pop("mrr") < 0.1
        assert (means["r_at_1"], means["p_at_5"], means["map_at_r"], means["triplet_accuracy"]) == (0, 0, 0, 0)
    assert found["query-gallery"].details["nearest_neighbour_classification"]["accuracy"] == 0
    assert found["episodes"].measures["accuracy"].mean == 0
    assert found["lake"].measures["accuracy"].mean == found["lake"].measures["mirror"].mean == 0
    pairs = {measure: interval.mean for measure, interval in found["pairs"].measures.items()}
    assert (pairs["accuracy"], pairs["eer"], pairs["auc"], pairs["tar_at_far_0.01"]) == (0.5, 0.5, 0.5, 0)


def test_an_encoder_that_does_not_look_scores_chance(folders, lake, lfw):
    """Random vectors: within the luck that so few questions allow."""
    found = evaluate(Chance(), folders, protocol="episodes", way=5)
    assert found.measures["accuracy"].mean == pytest.approx(0.2, abs=0.12)
    assert evaluate(Chance(), folders).measures["r_at_1"].mean == pytest.approx(3 / 59, abs=0.1)
    assert evaluate(Chance(), lake, protocol="lake").measures["accuracy"].mean == pytest.approx(0.2, abs=0.3)
    assert evaluate(Chance(), lfw, protocol="pairs").measures["eer"].mean == pytest.approx(0.5, abs=0.2)


# ── protocols ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_retrieval_asks_every_picture(folders):
    """The measures are those of `metrics`, and each interval that of its answers."""
    found = evaluate(Pixels(), folders, full=True)

    paths = sorted(folders.rglob("*.png"))
    vectors, label = vectors_of(paths), [path.parent.name for path in paths]
    np.testing.assert_allclose(found.answers["r_at_1"], metrics.recall_at_k(vectors, label, 1))
    np.testing.assert_allclose(found.answers["map_at_r"], metrics.average_precision_at_r(vectors, label))
    np.testing.assert_allclose(found.answers["map"], metrics.average_precision(vectors, label))
    assert found.measures["map_at_r"] == metrics.mean_interval(found.answers["map_at_r"])
    assert 0.1 < found.measures["r_at_1"].mean < 1
    assert found.pictures == 60 and found.settings["classes"] == 15 and found.encoder == {"name": "pixels"}


def test_groups_are_left_out(tmp_path):
    """Each product twice, all but equal: without the column they find one another, with it they must find the kind."""
    dice, lines = np.random.default_rng(4), ["path;kind;product"]
    for number in range(8):
        for side in "ab":
            draw(tmp_path / f"{number}{side}.png", number, dice, noise=5)
            lines.append(f"{number}{side}.png;kind{number % 2};{number}")
    (tmp_path / "products.csv").write_text("\n".join(lines))

    loose = evaluate(Pixels(), tmp_path / "products.csv", labels="kind")
    strict = evaluate(Pixels(), tmp_path / "products.csv", labels="kind", group="product")

    assert loose.measures["r_at_1"].mean == 1 > strict.measures["r_at_1"].mean
    expected = metrics.recall_at_k(
        vectors_of([tmp_path / f"{n}{s}.png" for n in range(8) for s in "ab"]),
        np.repeat(np.arange(8) % 2, 2), 1, np.repeat(np.arange(8), 2),
    )  # fmt: skip
    np.testing.assert_array_equal(strict.answers["r_at_1"], expected)
    with pytest.raises(CatalogueError, match=r"no column prodct \(did you mean product\?\)"):
        evaluate(Pixels(), tmp_path / "products.csv", labels="kind", group="prodct")


def test_queries_ask_the_gallery(gallery):
    """Folders and a catalogue mean the same; against a loop; a query whose class nothing else has does not count."""
    found = evaluate(Pixels(), gallery, protocol="query-gallery")
    listed = evaluate(Pixels(), gallery / "catalogue.csv", protocol="query-gallery", labels="kind")

    assert found.measures == listed.measures and found.details == listed.details
    queries, shelf = sorted((gallery / "query").rglob("*.png")), sorted((gallery / "gallery").rglob("*.png"))
    scores = vectors_of(queries) @ vectors_of(shelf).T
    predicted = [shelf[row.argmax()].parent.name for row in scores]
    right = [name == path.parent.name for name, path in zip(predicted, queries, strict=True)]
    assert found.measures["r_at_1"].mean == np.mean(right[:-1]) and found.measures["r_at_1"].count == 12
    told = found.details["nearest_neighbour_classification"]
    assert told["accuracy"] == np.mean(right[:-1]) < 1
    precision = {line["class"]: line["precision"] for line in told["classes"]}
    for name in set(predicted[:-1]):
        hits = [r for p, r in zip(predicted[:-1], right, strict=False) if p == name]
        assert precision[name] == pytest.approx(np.mean(hits))
    assert found.settings["queries"] == 13 and found.settings["gallery"] == 18


def test_groups_reach_from_queries_into_the_gallery(gallery):
    """A query's product is left out of its gallery."""
    options = {"protocol": "query-gallery", "labels": "kind"}
    loose = evaluate(Pixels(), gallery / "catalogue.csv", **options)
    strict = evaluate(Pixels(), gallery / "catalogue.csv", group="product", **options)

    assert (loose.answers["map_at_r"] != strict.answers["map_at_r"])[~np.isnan(loose.answers["map_at_r"])].any()
    told = strict.details["nearest_neighbour_classification"]
    assert told["accuracy"] == pytest.approx(strict.measures["r_at_1"].mean)


def test_roles_must_be_clear(gallery, tmp_path):
    """Every way to be wrong is an error with its place."""
    catalogue = tmp_path / "catalogue.csv"

    def refused(text: str, match: str, **options) -> None:
        catalogue.write_text(text)
        with pytest.raises(LookalikeError, match=match):
            evaluate(Pixels(), catalogue, protocol="query-gallery", **{"labels": "kind", **options})

    refused("image,kind,rôle\na.png,x,query\n", r"no column role \(did you mean rôle\?\)")
    refused("image,kind,role\na.png,x,query\nb.png,x,shelf\n", "row 3, column role: 'shelf' is neither")
    refused("image,kind,role\na.png,x,query\na.png,x,gallery\n", "row 3, column image: 'a.png' had another")
    refused("image,kind,role\n,x,query\n", "row 2, column image: '' names no picture")
    refused("image,kind,role\na.png,x,query\nb.png,y,gallery\n", "no class of the 1 queries is in the gallery")
    refused("image,kind,role\na.png,x,query\n", "one of image, kind, role", labels=None)
    with pytest.raises(CatalogueError, match="no folder query"):
        evaluate(Pixels(), tmp_path, protocol="query-gallery")


def test_episodes_are_those_of_few_shot(folders):
    """Within alphabets by default, across them on demand, by two drawers if their names are found."""
    paths = sorted(folders.rglob("*.png"))
    vectors, label = vectors_of(paths), [path.parent.name for path in paths]
    alphabet, drawer = [path.parent.parent.name for path in paths], [path.stem[-2:] for path in paths]
    options = {"way": 5, "episodes": 1000}

    within = evaluate(Pixels(), folders, protocol="episodes", way=5)
    across = evaluate(Pixels(), folders, protocol="episodes", way=5, within=False, shot=3)
    made = evaluate(Pixels(), folders, protocol="episodes", way=5, maker=r"_(\d+)")

    expected = metrics.few_shot(vectors, label, categories=alphabet, **options)
    np.testing.assert_array_equal(within.answers["accuracy"], expected)
    np.testing.assert_array_equal(across.answers["accuracy"], metrics.few_shot(vectors, label, shot=3, **options))
    expected = metrics.one_shot(vectors, label, categories=alphabet, makers=drawer, **options)
    np.testing.assert_array_equal(made.answers["accuracy"], expected)
    assert within.settings["within"] and not across.settings["within"]
    assert within.measures["accuracy"].count == 1000


def test_episodes_that_cannot_be_drawn_are_refused(folders, draw_classes, tmp_path):
    """The message says how many classes there are, or what is wrong with the maker."""
    for options, match in (
        ({"way": 6}, "6 ways are too many: the largest super-class has 5 classes of at least 2 pictures"),
        ({"way": 16, "within": False}, "16 ways are too many: there are 15 classes"),
        ({"way": 5, "shot": 4}, "has 0 classes of at least 5 pictures"),
        ({"way": 5, "shot": 2, "maker": "_(.)"}, "1 shot with makers"),
        ({"way": 5, "maker": "x(.)"}, "does not match the file name of .*0000_00.png"),
        ({"way": 1}, "at least 2 ways"),
        ({"labels": "none"}, "needs labels"),
    ):
        with pytest.raises(QueryError, match=match):
            evaluate(Pixels(), folders, protocol="episodes", **options)
    with pytest.raises(QueryError, match="no super-classes"):
        evaluate(Pixels(), draw_classes(tmp_path / "flat", 3, 2), protocol="episodes", way=2, within=True)


def test_lake_runs_are_asked_as_published(lake):
    """Against a loop over the lines of each class_labels.txt, and with the roles exchanged."""
    found = evaluate(Pixels(), lake, protocol="lake")

    forth, back = [], []
    for file in sorted(lake.glob("run*/class_labels.txt")):
        names = [line.split() for line in file.read_text().splitlines()]
        asks, classes = (vectors_of([lake / pair[side] for pair in names]) for side in (0, 1))
        scores = asks @ classes.T
        forth.append(np.mean([row.argmax() == number for number, row in enumerate(scores)]))
        back.append(np.mean([column.argmax() == number for number, column in enumerate(scores.T)]))
    np.testing.assert_allclose(found.answers["accuracy"], forth)
    np.testing.assert_allclose(found.answers["mirror"], back)
    assert 0.2 < np.mean(forth) < 1 and forth != back
    assert found.measures["accuracy"].count == 3 and found.pictures == 30


def test_lake_runs_that_are_malformed_name_their_line(lake, tmp_path):
    with pytest.raises(CatalogueError, match="holds no run"):
        evaluate(Pixels(), tmp_path, protocol="lake")
    with pytest.raises(CatalogueError, match="no such folder"):
        evaluate(Pixels(), tmp_path / "nowhere", protocol="lake")
    place = Path(shutil.copytree(lake, tmp_path / "lake"))
    file = place / "run02" / "class_labels.txt"
    file.write_text(file.read_text() + "\nrun02/test/item01.png\n")
    with pytest.raises(CatalogueError, match=r"run02.class_labels.txt, line 7: expected two pictures.*item01.png'"):
        evaluate(Pixels(), place, protocol="lake")


def test_pairs_are_asked_as_published(lfw):
    """Accuracy with the threshold of the other folds and its standard error, against a loop; rates of all pairs."""
    found = evaluate(Pixels(), lfw, protocol="pairs")

    scores, same = [], []
    for line in (lfw / "pairs.txt").read_text().splitlines()[1:]:
        words = line.split("\t")
        left, right = (words[0], words[0]) if len(words) == 3 else (words[0], words[2])
        paths = [lfw / n / f"{n}_{int(i):04}.jpg" for n, i in ((left, words[1]), (right, words[-1]))]
        one, two = vectors_of(paths).astype(np.float64)
        scores.append(one @ two)
        same.append(left == right)
    scores, same = np.round(scores, 6), np.array(same)
    accuracies = []
    for fold in range(4):
        inside = np.arange(48) // 12 == fold
        ladder = np.sort(scores[~inside])
        middles = [-2, *((ladder[1:] + ladder[:-1]) / 2), 2]
        right = [((scores[~inside] >= t) == same[~inside]).sum() for t in middles]
        best = middles[len(right) - 1 - int(np.argmax(right[::-1]))]
        accuracies.append(((scores[inside] >= best) == same[inside]).mean())
    assert found.details["folds"] == pytest.approx(accuracies)
    assert found.details["mean_over_folds"] == pytest.approx(np.mean(accuracies))
    assert found.details["standard_error"] == pytest.approx(np.std(accuracies, ddof=1) / 2)
    assert found.measures["accuracy"].mean == pytest.approx(np.mean(accuracies))
    assert 0.6 < np.mean(accuracies) < 1
    assert found.measures["eer"].mean == pytest.approx(eer(scores, same))
    assert found.measures["eer"].low <= found.measures["eer"].mean <= found.measures["eer"].high
    assert found.curve is not None and found.curve.area() == found.measures["auc"].mean
    assert found.settings["folds"] == 4 and found.settings["pairs"] == 48


def test_pairs_of_a_table_mean_the_same(lfw, tmp_path):
    """With a column fold the answers are those of pairs.txt; without, folds are dealt; formats may have changed."""
    place = make_lfw(tmp_path / "png", end=".png")
    lines = ["left,right,same,fold"]
    for number, line in enumerate((place / "pairs.txt").read_text().splitlines()[1:]):
        words = line.split("\t")
        other = words[0] if len(words) == 3 else words[2]
        ends = [f"{n}/{n}_{int(i):04}.png" for n, i in ((words[0], words[1]), (other, words[-1]))]
        lines.append(f"{ends[0]},{ends[1]},{'yes' if len(words) == 3 else 'no'},{number // 12}")
    (place / "list.csv").write_text("\n".join(lines))
    (tmp_path / "loose.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in lines))

    published = evaluate(Pixels(), place, protocol="pairs")
    inside = evaluate(Pixels(), place, protocol="pairs", labels="list.csv")
    table = evaluate(Pixels(), place / "list.csv", protocol="pairs")
    dealt = evaluate(Pixels(), place, protocol="pairs", labels=str(tmp_path / "loose.csv"))

    assert published.measures == inside.measures == table.measures
    assert published.measures["eer"] == dealt.measures["eer"] and dealt.settings["folds"] == 10
    assert "dealt to 10" in dealt.notes[0] and not table.notes


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"pairs.txt, line 1: expected the number of folds"),
        ("ten 300\n", r"line 1: expected the number of folds .* got 'ten 300'"),
        ("1 2\nA 1 2\nA 1 x\n", r"line 3: expected a same pair, as name 1 2, got 'A 1 x'"),
        ("1 1\nA 1 2\nA 1 2\n", r"line 3: expected a different pair, as name 1 other 2, got 'A 1 2'"),
        ("1 1\nA 1 2\n\nA 1 B 2\nA 1 2\n", r"line 5: expected the end after 1 × 2 × 1 pairs"),
        ("2 1\nA 1 2\nA 1 B 2\n", "announces 2 × 2 × 1 pairs, and 2 follow"),
        ("1\nA 1 2\nA 1 B 2\n", "at least two of either kind"),
    ],
)
def test_a_malformed_list_of_pairs_names_its_line(tmp_path, text, match):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(LookalikeError, match=match):
        evaluate(Pixels(), tmp_path, protocol="pairs")


def test_a_malformed_table_of_pairs_names_its_row(tmp_path):
    table = tmp_path / "pairs.csv"
    for text, match in (
        ("left,right,smae\n", r"no column same \(did you mean smae\?\)"),
        ("left,right,same\na.png,b.png,perhaps\n", "row 2, column same: 'perhaps' is neither"),
        ("left,right,same\na.png,,1\n", "row 2, column right: '' names no picture"),
        ("left,right,same\na.png,b.png,1\n", "all of one kind"),
    ):
        table.write_text(text)
        with pytest.raises(LookalikeError, match=match):
            evaluate(Pixels(), tmp_path, protocol="pairs")
    table.unlink()
    with pytest.raises(CatalogueError, match=r"no pairs.txt or pairs.csv"):
        evaluate(Pixels(), tmp_path, protocol="pairs")


# ── what all have in common ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "captions"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_broken_picture_is_counted_and_asks_nothing(folders, lake, lfw, gallery, tiny, tmp_path, protocol, streams):
    """Whether the encoder goes on by itself or stops at the first: the rest is answered, and the broken one counted."""
    place = {"lake": lake, "pairs": lfw, "query-gallery": gallery}.get(protocol, folders)
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    broken = next(path for path in sorted(copy.rglob("*.*g")) if "training" not in str(path))
    broken.write_bytes(b"no picture")
    encoder = tiny if streams else Pixels()

    found = evaluate(encoder, copy, protocol=protocol, way=4)

    whole = evaluate(encoder, place, protocol=protocol, way=4)
    assert len(found.unreadable) == 1 and broken.name in found.unreadable[0]
    assert found.document()["unreadable"] == 1 and found.pictures == whole.pictures
    assert found.fingerprint != whole.fingerprint and not whole.unreadable
    if protocol == "lake":  # the class of the broken item still answers others, but no one asks for it
        assert found.measures["accuracy"].count == 3
    if protocol == "retrieval":
        assert found.measures["r_at_1"].count == 59 and np.isnan(found.answers["r_at_1"]).sum() == 1
    if protocol == "pairs":
        assert found.measures["accuracy"].count < 48


def test_nothing_readable_and_wrong_shapes_are_errors(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(QueryError, match="none of the 3 pictures can be read"):
        evaluate(Pixels(), tmp_path)

    class Short:
        def images(self, pictures):
            return np.ones((1, 3))

    with pytest.raises(ShapeError, match=r"must give \(3, dim\) for 3 pictures, got \(1, 3\)"):
        evaluate(Short(), tmp_path)


def test_the_fingerprint_is_of_the_data_and_not_of_its_place(folders, tmp_path):
    copy = Path(shutil.copytree(folders, tmp_path / "elsewhere"))
    first, moved = evaluate(Constant(), folders), evaluate(Chance(), copy)
    assert first.fingerprint == moved.fingerprint
    next(copy.rglob("*.png")).rename(copy / "alphabet0" / "character00" / "other.png")
    assert evaluate(Constant(), copy).fingerprint != first.fingerprint


def test_two_encoders_are_compared_question_by_question(folders, lfw):
    ours, theirs = (evaluate(encoder, folders) for encoder in (Pixels(), ColourHistogram()))
    gaps = differences(ours, theirs)
    assert gaps["r_at_1"] == metrics.paired_interval(ours.answers["r_at_1"], theirs.answers["r_at_1"])
    assert differences(ours, ours)["map_at_r"].high == 0
    with pytest.raises(QueryError, match="one protocol"):
        differences(ours, evaluate(Pixels(), lfw, protocol="pairs"))
    with pytest.raises(QueryError, match="one settings"):
        differences(ours, evaluate(Pixels(), folders, ks=(1,)))


def test_results_are_a_table_for_people_and_json_for_programs(folders):
    found = evaluate(Pixels(), folders)
    document = json.loads(json.dumps(found.document()))
    assert document["protocol"] == "retrieval" and document["pictures"] == 60 and document["seconds"] > 0
    assert document["measures"]["r_at_1"]["count"] == 60 and "answers" not in document
    lines = str(found).splitlines()
    assert lines[0] == "pixels, retrieval: 60 pictures"
    assert len({line.index("[") for line in lines[3:]}) == 1 and len(lines) == 3 + len(found.measures)
    assert [title(name) for name in ("r_at_1", "ndcg_at_10", "map_at_r", "tar_at_far_0.01")] == [
        "R@1", "nDCG@10", "MAP@R", "TAR at FAR 0.01",
    ]  # fmt: skip


def test_what_means_nothing_is_refused(folders):
    with pytest.raises(QueryError, match="no protocol recall: choose one of retrieval, query-gallery, episodes, lake"):
        evaluate(Pixels(), folders, protocol="recall")
    with pytest.raises(QueryError, match="needs labels"):
        evaluate(Pixels(), folders, labels="none")
    with pytest.raises(QueryError, match="group product is a column"):
        evaluate(Pixels(), folders, group="product")
    with pytest.raises(CatalogueError, match="is a column"):
        evaluate(Pixels(), folders, protocol="episodes", category="alphabet")


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_a_table_and_a_comparison(folders, capsys):
    """A line per measure; the same bundle twice is no better than itself."""
    main(["evaluate", str(folders), "--model", TINY, "--compare", TINY])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny 1, retrieval: 60 pictures"
    assert any(line.startswith("MAP@R ") for line in lines)
    assert lines[-1].endswith("+0.0000 [+0.0000, +0.0000] MAP@R") and "no better than" in lines[-1]


def test_the_command_prints_json(folders, lfw, capsys):
    arguments = ["--protocol", "episodes", "--way", "5", "--shot", "2", "--across", "--episodes", "50"]
    main(["evaluate", str(folders), *arguments, "--model", TINY, "--compare", "default", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["settings"]["shot"] == 2 and answer["settings"]["within"] is False
    assert answer["measures"]["accuracy"]["count"] == 50
    assert answer["compared"]["theirs"]["encoder"]["name"].startswith("lookalike")
    difference = answer["measures"]["accuracy"]["mean"] - answer["compared"]["theirs"]["measures"]["accuracy"]["mean"]
    assert answer["compared"]["differences"]["accuracy"]["mean"] == pytest.approx(difference)

    main(["evaluate", str(lfw), "--protocol", "pairs", "--model", TINY, "--json"])
    assert len(json.loads(capsys.readouterr().out)["details"]["folds"]) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--protocol", "recall"], "choose one of retrieval"),
        (["--protocol", "episodes", "--way", "99"], "the largest super-class has 5 classes"),
        (["--labels", "kind"], "a column name needs a CSV file"),
    ],
)
def test_the_command_says_what_to_do(folders, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(folders), "--model", TINY, *arguments])
    assert stop.value.code == 1 and said in capsys.readouterr().err


def test_the_command_names_broken_pictures(folders, tmp_path, capsys):
    copy = Path(shutil.copytree(folders, tmp_path / "copy"))
    next(copy.rglob("*.png")).write_bytes(b"")
    main(["evaluate", str(copy), "--model", TINY])
    out, err = capsys.readouterr()
    assert "60 pictures, 1 unreadable" in out and "skipped: cannot read picture" in err


def test_folds_ask_within_whole_classes(draw_classes, tmp_path: Path) -> None:
    """Each picture finds only those of its fold: the same as asking each fold by itself."""
    from lookalike.evaluate import _folds

    folder = draw_classes(tmp_path / "shapes", classes=9, pictures=4)
    encoder = Pixels()
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    labels = np.array([Path(path).parent.name for path in paths])

    found = evaluate(encoder, folder, folds=3, seed=5)

    fold = _folds(labels, 3, 5)
    assert sorted(len(set(labels[fold == number])) for number in range(3)) == [3, 3, 3]
    wanted = np.empty(len(paths))
    vectors = np.asarray(encoder.images(paths))
    for number in range(3):
        here = fold == number
        wanted[here] = metrics.recall_at_k(vectors[here], labels[here])
    assert found.measures["r_at_1"].mean == pytest.approx(wanted.mean())
    assert found.settings["folds"] == 3
    with pytest.raises(QueryError, match="each needs at least two"):
        evaluate(encoder, folder, folds=5)


class Telling:
    """Gives each picture and each text the direction of the first letter that it is about; one letter is wrong."""

    name = "telling"

    def images(self, pictures: list[str]) -> np.ndarray:
        return np.stack([np.eye(26)[ord(Path(path).stem[0]) - 97] for path in pictures])

    def texts(self, texts: list[str]) -> np.ndarray:
        wrong = {"d": "c"}
        return np.stack([np.eye(26)[ord(wrong.get(text[0], text[0])) - 97] for text in texts])


def test_captions_ask_both_ways(make_pictures, tmp_path: Path) -> None:
    """Words that are right find their picture first; wrong ones are last, as ties go against them."""
    folder = make_pictures("a.png", "b.png", "c.png", "d.png", "e.png")
    lines = ["image,caption,split", "a.png,apples here,test", "a.png,all apples,test", "b.png,bees,test"]
    lines += ["c.png,cats,test", "d.png,dogs,test", "e.png,eels,train"]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")

    found = evaluate(Telling(), folder / "captions.csv", protocol="captions")

    assert found.pictures == 4
    assert found.measures["words_to_picture_r_at_1"].mean == pytest.approx(4 / 5)
    assert found.measures["picture_to_words_r_at_1"].mean == pytest.approx(2 / 4)  # dogs are as near to c as cats are
    assert found.details["words_to_picture_median_rank"] == 1
    assert any("test part" in note for note in found.notes)
    assert "words → picture, R@1" in str(found)
    same = Telling()
    same.images, same.texts = (lambda asked: np.ones((len(asked), 3)),) * 2  # type: ignore[method-assign]
    constant = evaluate(same, folder / "captions.csv", protocol="captions")
    assert constant.measures["words_to_picture_r_at_1"].mean == constant.measures["picture_to_words_r_at_1"].mean == 0
    with pytest.raises(QueryError, match="knows no words"):
        evaluate(Pixels(), folder / "captions.csv", protocol="captions")
