"""Words that look for pictures, alone and beside a picture, in calls and commands; and pictures that look for words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lookalike.bundle import Bundle, write_bundle
from lookalike.catalogue import rows
from lookalike.cli import main
from lookalike.encoder import Encoder
from lookalike.errors import BundleError, QueryError
from lookalike.index import open_index
from lookalike.index.base import Index
from lookalike.indexing import update_index
from lookalike.metrics import mean_interval
from lookalike.ranking import first_ranks
from lookalike.search import Searcher, best_texts
from lookalike.text import Hashing

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30), "olive": (120, 112, 30)}


def flat(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (32, 32), colour)


@pytest.fixture(scope="module")
def encoder(tiny: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The tiny encoder with a text tower that knows the names of four colours; a text is the sum of its words."""
    hashing = Hashing(trigrams=1, words=997, length=16)
    table = np.zeros((hashing.size, tiny.dim), dtype=np.float32)
    for name, colour in COLOURS.items():
        table[hashing.ids(name)[0]] = tiny.images([flat(colour)])[0]
    table[1] = 0.01  # where there is no word
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
            helper.make_node("ReduceSum", ["rows", "axes"], ["sum"], keepdims=0),
            helper.make_node("Add", ["sum", "least"], ["vectors"]),
        ],
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "m"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", tiny.dim])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([1]), "axes"),
            numpy_helper.from_array(np.full(tiny.dim, 1e-4, np.float32), "least"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    manifest = {k: v for k, v in tiny.bundle.manifest.items() if k not in ("schema", "files")}
    manifest |= {"name": "tiny-words", "text": {"graph": "text.onnx", "vocabulary": "vocabulary.json"}}
    files: dict[str, bytes | Path] = {
        "image.onnx": tiny.bundle.path / "image.onnx",
        "text.onnx": model.SerializeToString(),
        "vocabulary.json": json.dumps(hashing.to_document()).encode(),
        "README.md": b"colours",
    }
    return Encoder(write_bundle(tmp_path_factory.mktemp("words") / "bundle", manifest, files))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("colours")
    for kind in ("plain", "striped"):
        (top / kind).mkdir()
        for name, colour in COLOURS.items():
            picture = flat(colour)
            if kind == "striped":
                picture.paste((255, 255, 255), (0, 0, 8, 32))
            picture.save(top / kind / f"{name}.png")
    return top


@pytest.fixture
def index(folder: Path, encoder: Encoder) -> Iterator[Index]:
    opened = open_index(":memory:", dim=encoder.dim, meta={"encoder": encoder.describe()})
    update_index(opened, encoder, rows([folder]))
    yield opened
    opened.close()


@pytest.fixture
def searcher(encoder: Encoder, index: Index) -> Searcher:
    return Searcher(encoder, index)


def names(hits) -> list[str]:
    return [f"{Path(hit.key).parent.name}/{Path(hit.key).stem}" for hit in hits]


def test_words_find_pictures(searcher: Searcher) -> None:
    """In any case and script of letters; the score is the cosine."""
    hits = searcher.by_text("RED", 1)

    assert names(hits) == ["plain/red"] and hits[0].score == pytest.approx(1, abs=2e-3)
    assert names(searcher.by_text("ｂｌｕｅ!", 1)) == ["plain/blue"]


def test_words_with_a_condition_and_a_least_score(searcher: Searcher) -> None:
    """As for pictures."""
    assert names(searcher.by_text("green", k=1, where={"category": "striped"})) == ["striped/green"]
    assert names(searcher.by_text("green", k=8, min_score=0.99)) == ["plain/green"]


def test_words_and_a_picture(searcher: Searcher, folder: Path) -> None:
    """At 0 it is the picture alone, at 1 the words alone, in between both: red and green give olive."""
    picture = folder / "plain" / "green.png"

    assert names(searcher.by_text("red", 2, picture=picture, weight=0)) == names(searcher.by_picture(picture, 2))
    assert names(searcher.by_text("red", 2, picture=picture, weight=1)) == names(searcher.by_text("red", 2))
    assert names(searcher.by_text("red", 1, picture=picture)) == ["plain/olive"]


@pytest.mark.parametrize("text", ["", "   ", "\x00\x01"])
def test_nothing_is_no_question(searcher: Searcher, text: str) -> None:
    """An empty text is refused as a question, though it has a vector."""
    with pytest.raises(QueryError, match="there is no word in"):
        searcher.by_text(text)
    assert searcher.encoder.texts([text]).shape == (1, searcher.encoder.dim)


def test_a_weight_out_of_range_is_refused(searcher: Searcher, folder: Path) -> None:
    """With its value."""
    with pytest.raises(QueryError, match=r"weight must be from 0 .* got 1.5"):
        searcher.by_text("red", picture=folder / "plain" / "red.png", weight=1.5)


def test_any_text_has_a_unit_vector(encoder: Encoder) -> None:
    """Many scripts, nothing, control characters, ten thousand characters, a lone surrogate; many at once, in order."""
    texts = [
        "красный",
        "màu đỏ",
        "não",
        "红色",
        "👟🏃‍♀️",
        "",
        "\x00\x1f",
        "red " * 2_500,
        "\ud83d",
        *(["blue", "red"] * 70),
    ]
    vectors = encoder.texts(texts)

    assert vectors.shape == (len(texts), encoder.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[-2:], encoder.texts(["blue", "red"]), atol=2e-3)
    assert encoder.texts([]).shape == (0, encoder.dim)
    with pytest.raises(TypeError, match="wrap a single one"):
        encoder.texts("red")


def test_an_encoder_of_pictures_says_what_to_do(tiny: Encoder, folder: Path, tmp_path: Path, capsys) -> None:
    """In the call, in the search, and on the command line."""
    assert not tiny.has_text
    with pytest.raises(QueryError, match=r"knows pictures alone.*train --captions"):
        tiny.texts(["red"])
    location = tmp_path / "index"
    main(["index", str(folder), "--to", str(location), "--model", str(tiny.bundle.path)])
    with pytest.raises(SystemExit) as stopped:
        main(["search", str(location), "--text", "red"])
    assert stopped.value.code == 1 and "lookalike train --captions" in capsys.readouterr().err


def test_the_bundle_must_hold_what_it_names(encoder: Encoder, tmp_path: Path) -> None:
    """A text tower without its files, and a vocabulary that is none."""
    manifest = {k: v for k, v in encoder.bundle.manifest.items() if k not in ("schema", "files")}
    files: dict[str, bytes | Path] = {name: encoder.bundle.path / name for name in encoder.bundle.manifest["files"]}
    with pytest.raises(BundleError, match=r"vocabulary of text 'vocabulary.json' is not among the files"):
        write_bundle(tmp_path / "one", manifest, {k: v for k, v in files.items() if k != "vocabulary.json"})
    bundle = write_bundle(tmp_path / "two", manifest, {**files, "vocabulary.json": b'{"kind": "hashing", "words": -1}'})
    with pytest.raises(BundleError, match=r"vocabulary\.json is malformed"):
        Encoder(bundle).texts(["red"])
    with pytest.raises(BundleError, match="the text graph cannot be run"):
        Encoder(write_bundle(tmp_path / "three", manifest, {**files, "text.onnx": b"no graph"})).texts(["red"])


def test_the_text_tower_counts_in_the_fingerprint(encoder: Encoder, tiny: Encoder) -> None:
    """An index made with another one is refused."""
    assert encoder.fingerprint != tiny.fingerprint
    assert Bundle.load(encoder.bundle.path).vocabulary == Hashing(1, 997, 16)


def test_the_best_texts_for_a_picture(encoder: Encoder, folder: Path) -> None:
    """Best first with cosines; no more than there are."""
    pictures = [folder / "striped" / "red.png", folder / "plain" / "blue.png"]
    found = best_texts(encoder, pictures, ["blue", "red", "green"], 2)

    assert [tags[0][0] for tags in found] == ["red", "blue"]
    assert all(tags[0][1] >= tags[1][1] for tags in found)
    assert len(best_texts(encoder, pictures, ["red"], 5)[0]) == 1
    with pytest.raises(QueryError, match="0 texts"):
        best_texts(encoder, pictures, [])


def test_the_commands(encoder: Encoder, folder: Path, tmp_path: Path, capsys) -> None:
    """search --text, alone and with a picture, as JSON and as a contact sheet; tags."""
    location, bundle = tmp_path / "index", str(encoder.bundle.path)
    main(["index", str(folder), "--to", str(location), "--model", bundle])
    capsys.readouterr()

    main(["search", str(location), "--text", "red", "-k", "1", "--json", "--html", str(tmp_path / "found.html")])
    line = json.loads(capsys.readouterr().out)
    assert line["query"] == "red" and Path(line["key"]) == folder / "plain" / "red.png"
    page = (tmp_path / "found.html").read_text()
    assert "red" in page and "1 question, cosine" in page
    green = str(folder / "plain" / "green.png")
    main(["search", str(location), green, "--text", "red", "-k", "1", "--weight", "0.5", "--where", "category=plain"])
    assert "olive.png" in capsys.readouterr().out
    (tmp_path / "tags.txt").write_text("blue\n\nred\nred\n")
    main(
        [
            "tags",
            green,
            str(folder / "plain" / "red.png"),
            "--from",
            str(tmp_path / "tags.txt"),
            "--model",
            bundle,
            "--json",
        ]
    )
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [tag["text"] for tag in told[1]["tags"]] == ["red", "blue"]
    with pytest.raises(SystemExit) as stopped:
        main(["search", str(location), "--text", "red", "--like", green])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("content", "told"), [(b"\n \n", "is empty"), (b"\xff\xfe\x00", "not UTF-8"), (None, "No such file")]
)
def test_a_list_of_tags_that_is_none(
    content: bytes | None, told: str, tmp_path: Path, encoder: Encoder, capsys
) -> None:
    """One line that says what is wrong."""
    if content is not None:
        (tmp_path / "tags.txt").write_bytes(content)
    with pytest.raises(SystemExit):
        main(["tags", "x.png", "--from", str(tmp_path / "tags.txt"), "--model", str(encoder.bundle.path)])
    assert told in capsys.readouterr().err


# ── ranks across two kinds ───────────────────────────────────────────────────────────────────────────────────────────


def test_first_ranks_are_those_of_a_naive_loop() -> None:
    """Several relevant items, none, and ties, which go against the query."""
    dice = np.random.default_rng(0)
    queries, gallery = dice.integers(-1, 2, (30, 4)) + 1e-3, dice.integers(-1, 2, (40, 4)) + 1e-3
    pairs = np.stack([dice.integers(0, 25, 60), dice.integers(0, 40, 60)], axis=1)

    ranks = first_ranks(queries, gallery, pairs)

    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    for query, rank in enumerate(ranks):
        own = {int(item) for q, item in pairs if q == query}
        if not own:
            assert np.isnan(rank)
            continue
        best = max(float(unit[0][query] @ unit[1][item]) for item in own)
        ahead = sum(float(unit[0][query] @ unit[1][i]) >= best - 1e-6 for i in range(40) if i not in own)
        assert rank == 1 + ahead


def test_a_constant_encoder_scores_chance_across_kinds() -> None:
    """All scores tie: the relevant item comes last."""
    pairs = np.stack([np.arange(50), np.arange(50)], axis=1)
    ranks = first_ranks(np.ones((50, 3)), np.ones((50, 3)), pairs)

    assert (ranks == 50).all() and mean_interval((ranks <= 10).astype(float)).mean == 0


def test_graph_of_the_fixture_is_checked(encoder: Encoder) -> None:
    """The hand-made graph is valid ONNX."""
    onnx.checker.check_model(onnx.load(encoder.bundle.path / "text.onnx"))
