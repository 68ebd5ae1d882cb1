"""The ladder: equal questions for every row, chance in closed form, rows that fail, stop, and are not run again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.baselines import ColourHistogram, Pixels
from lookalike.cli import main
from lookalike.encoder import Encoder
from lookalike.errors import CatalogueError, CheckpointError, ConfigError, QueryError
from lookalike.metrics import average_precision_at_r, paired_interval, precision_at_k, recall_at_k
from lookalike.training import ladder
from lookalike.training.ladder import ROWS, TRAINED, compare, in_words

TINY = Path(__file__).parent.parent / "data" / "tiny"
CHEAP = ("chance", "pixels", "colours", "default")
# A network of a few thousand weights, three steps, and no teacher.
SMALL = (
    'network={name = "small", dim = 16, options = {widths = [8, 12, 16]}}',
    "data.size=[24, 24]",
    "teacher={}",
    'loop={steps = 3, validate_every = 3, precision = "fp32", threads = 1, tensorboard = false}',
)


def quiet(line: str) -> None:
    """Nobody listens."""


def table(place: Path, name: str = "pictures.csv") -> list[dict[str, str]]:
    with (place / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row(document: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [row for row in document["rows"] if row["name"] == name]
    return found


@pytest.fixture(scope="module")
def cheap(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A ladder of the rows that need no training."""
    place = tmp_path_factory.mktemp("ladder") / "cheap"
    return place, compare(classes, place, rows=CHEAP, say=quiet)


def test_every_row_answers_the_same_held_out_questions(cheap: tuple[Path, dict[str, Any]]) -> None:
    """Measures are those of their definitions on the test part, whose classes nothing else holds."""
    place, document = cheap
    test = [line for line in table(place) if line["split"] == "test"]
    paths, labels = [line["image"] for line in test], [line["label"] for line in test]
    vectors, default = Pixels().images(paths), Encoder.default().images(paths, strict=True)

    own = row(document, "pixels")
    assert [found["name"] for found in document["rows"]] == list(CHEAP)
    for measure, ask in (("r_at_1", recall_at_k), ("map_at_r", average_precision_at_r)):
        assert own["measures"][measure]["mean"] == pytest.approx(ask(vectors, labels).mean())
        gap = paired_interval(ask(vectors, labels), ask(default, labels))
        assert own["over_default"][measure]["mean"] == pytest.approx(gap.mean)
        assert own["over_default"][measure]["low"] == pytest.approx(gap.low)
    assert own["measures"]["p_at_10"]["mean"] == pytest.approx(precision_at_k(vectors, labels, 10).mean())
    assert row(document, "default")["over_default"] is None
    assert {line["label"] for line in test}.isdisjoint(line["label"] for line in table(place, "learn.csv"))
    assert document["settings"]["split"] == "whole classes are held out"
    assert document["pictures"]["test"] == len(test) and document["classes"]["test"] == len(set(labels))


def test_the_result_is_complete_and_names_no_place(cheap: tuple[Path, dict[str, Any]]) -> None:
    """What the report reads is there, in JSON and in words."""
    place, document = cheap

    assert json.loads((place / "ladder.json").read_text()) == document
    assert (place / "ladder.md").read_text() == in_words(document)
    assert document["kind"] == "ladder" and len(document["fingerprint"]) == 64
    assert {"command", "date", "machine", "versions"} <= set(document["made"])
    for found in document["rows"]:
        assert set(found) == {"name", "what", "measures", "over_default", "minutes", "steps", "failed"}
        assert f"| {found['name']} " in in_words(document)
    assert str(place.parent) not in json.dumps(document) + in_words(document)
    assert "lookalike-default" in row(document, "default")["what"]


def by_svm(lines: list[dict[str, str]], test: list[dict[str, str]]) -> tuple[Any, Any]:
    """Decision values of scikit-learn's linear SVM on the pixels of the training part."""
    from sklearn.svm import LinearSVC

    train = [line for line in lines if line["split"] == "train"]
    pixels = [Pixels().images([line["image"] for line in some]) for some in (train, test)]
    machine = LinearSVC(random_state=0).fit(pixels[0], [line["label"] for line in train])
    return machine.decision_function(pixels[1]), [line["label"] for line in test]


def questions(labels: list[str], groups: list[str] | None) -> Any:
    own = None if groups is None else np.array(groups)
    return ladder._Questions([], np.array(labels), own, None, [], Path(), False, {})


@pytest.mark.parametrize("grouped", [False, True])
def test_chance_is_the_mean_over_random_orders(grouped: bool) -> None:
    """The closed form against 1,000 random encoders; a lonely class counts for neither."""
    labels = [*"aaaaabbbbcccc", "d"]
    groups = [f"g{number // 2}" for number in range(14)] if grouped else None
    asked = questions(labels, groups)
    dice = np.random.default_rng(0)
    found = [asked.ask(dice.normal(size=(14, 40)).astype(np.float32)) for _ in range(1000)]

    for measure, expected in asked.chance.items():
        mean = np.mean([answers[measure] for answers in found], axis=0)
        np.testing.assert_allclose(expected, mean, atol=0.06, err_msg=measure)
        assert np.isnan(expected[-1])


def test_a_constant_encoder_scores_no_more_than_chance() -> None:
    asked = questions([*"aaaabbbbcccc"], None)
    found = asked.ask(np.ones((12, 3), dtype=np.float32))

    assert all((found[measure] <= expected).all() for measure, expected in asked.chance.items())


def test_finished_rows_stay_and_others_join_them(
    cheap: tuple[Path, dict[str, Any]], classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same folder again: nothing is computed twice; rows of before are in the table."""
    place = Path(shutil.copytree(cheap[0], tmp_path / "ladder"))
    monkeypatch.setattr(ladder.Encoder, "default", lambda: pytest.fail("asked again"))
    monkeypatch.setattr(ladder, "_divided", lambda *_: pytest.fail("divided again"))
    said: list[str] = []
    document = compare(classes, place, rows=["pixels", "svm"], say=said.append)

    assert [found["name"] for found in document["rows"]] == ["chance", "pixels", "colours", "svm", "default"]
    assert not any("row pixels" in line for line in said)
    assert row(document, "pixels") == row(cheap[1], "pixels")
    assert "From 48 pictures of 8 classes." in row(document, "svm")["what"]
    with np.load(place / "rows" / "svm.npz") as answers:
        test = [line for line in table(place) if line["split"] == "test"]
        np.testing.assert_allclose(answers["map_at_r"], average_precision_at_r(*by_svm(table(place), test)))


def test_a_row_that_fails_says_why_and_is_tried_again(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in one row, the next one is filled."""

    def broken(*_: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(ColourHistogram, "images", broken)
        document = compare(classes, tmp_path / "l", rows=CHEAP, say=quiet)
    with monkeypatch.context() as patched:
        patched.setattr(ColourHistogram, "images", broken)
        assert "| colours | failed |" in in_words(compare(classes, tmp_path / "m", rows=["colours"], say=quiet))
    failed = row(document, "colours")
    assert failed["failed"] == "MemoryError: no room" and failed["measures"] == {} and failed["over_default"] is None
    assert "failed" in in_words(document) and "MemoryError: no room" in in_words(document)
    assert row(document, "default")["failed"] is None

    assert row(compare(classes, tmp_path / "l", rows=CHEAP, say=quiet), "colours")["failed"] is None


def test_it_goes_on_after_an_interruption(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a row: rows before it are in the result, and are not run again."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ColourHistogram, "images", stop)
        compare(classes, tmp_path / "l", rows=CHEAP, say=quiet)
    held = json.loads((tmp_path / "l" / "ladder.json").read_text())
    assert [found["name"] for found in held["rows"]] == ["chance", "pixels"]

    monkeypatch.setattr(Pixels, "images", stop)
    assert len(compare(classes, tmp_path / "l", rows=CHEAP, say=quiet)["rows"]) == 4


def test_a_trained_row_learns_from_the_other_parts_alone(classes: Path, tmp_path: Path) -> None:
    """It has the loss and the miner of its name, its bundle answers, and its run never saw a test picture."""
    said: list[str] = []
    document = compare(classes, tmp_path / "l", rows=["triplet-hard"], minutes=2, overrides=SMALL, say=said.append)
    found = row(document, "triplet-hard")
    run = tmp_path / "l" / "runs" / "triplet-hard"
    config, seen = (run / "config.toml").read_text(), json.loads((run / "data.json").read_text())["paths"]
    test = {line["image"] for line in table(tmp_path / "l") if line["split"] == "test"}

    assert not any("decoding" in line for line in said)  # which is done before its minutes begin
    assert found["failed"] is None and found["steps"] == 3 and found["over_default"] is None
    assert "small from random weights, 24 × 24 pixels, 16 numbers" in found["what"]
    assert 'kind = "triplet"' in config and 'kind = "hard"' in config
    assert test.isdisjoint(seen["train"] + seen["validation"]) and not seen["test"] and seen["validation"]
    vectors = Encoder.load(tmp_path / "l" / "bundles" / "triplet-hard").images(sorted(test))
    labels = [Path(path).parent.name for path in sorted(test)]
    assert found["measures"]["map_at_r"]["mean"] == pytest.approx(
        average_precision_at_r(vectors, labels).mean(), abs=1e-6
    )

    with pytest.raises(CheckpointError, match=r"minutes was 2.*is 3"):
        compare(classes, tmp_path / "l", rows=["triplet-hard"], minutes=3, overrides=SMALL, say=quiet)


def test_rows_of_drawings_share_one_new_network(tmp_path: Path) -> None:
    """Where the network begins with random weights, it does so without labels, too, and no other encoder teaches it."""
    from PIL import Image

    lines = ["image,label,category,group,split"]
    for number in range(210):
        for picture in range(2):
            path = tmp_path / f"{number}-{picture}.png"
            Image.new("L", (40, 40), number).save(path)
            lines.append(f"{path},{number},{number // 15},,{'train' if number < 150 else 'validation'}")
    (tmp_path / "learn.csv").write_text("\n".join(lines) + "\n")
    asked = replace(questions([], None), learn=tmp_path / "learn.csv", nested=True)
    made = ladder._Ladder(tmp_path, asked, 2.0, None, None, ("optimizer.rate=0.5",), quiet, None)
    configs = {name: made._config(name) for name in TRAINED}

    blind = configs["label-free"]
    assert (blind.data.labels, blind.sampler.kind, blind.loss.kind, blind.teacher.bundles) == (
        "none",
        "every",
        "nt_xent",
        (),
    )
    for name, config in configs.items():
        assert (config.name, config.seed, config.loop.minutes, config.optimizer.rate) == (name, 0, 2.0, 0.5)
        assert (config.network, config.augment, config.views) == (blind.network, blind.augment, blind.views)
        assert not any(config.retrieval.model_dump().values())
    assert configs["triplet-semi-hard"].sampler.kind == "category" and configs["siamese"].sampler.kind == "pairs"


@pytest.mark.slow
def test_every_row_can_be_filled(classes: Path, tmp_path: Path, default_encoder: Encoder) -> None:
    """All of them, the base being a bundle; the losses are the ones they say."""
    document = compare(
        classes, tmp_path / "l", base=str(default_encoder.bundle.path), minutes=2, overrides=SMALL, say=quiet
    )

    assert [found["name"] for found in document["rows"]] == list(ROWS)
    assert {found["name"]: found["failed"] for found in document["rows"] if found["failed"]} == {}
    assert row(document, "base")["measures"] == row(document, "default")["measures"]
    kinds = {}
    for name in TRAINED:
        config = (tmp_path / "l" / "runs" / name / "config.toml").read_text()
        kinds[name] = config.partition("[loss]\nkind = ")[2].partition("\n")[0].strip('"')
    assert kinds == {
        "siamese": "pair_contrastive",
        "triplet-random": "triplet",
        "triplet-semi-hard": "triplet",
        "triplet-hard": "triplet",
        "label-free": "nt_xent",
        "supervised-contrastive": "supervised_contrastive",
    }


def test_few_classes_are_divided_by_picture_and_that_is_said(tmp_path: Path, draw_classes: Callable[..., Path]) -> None:
    """Three classes cannot be held out whole."""
    document = compare(
        draw_classes(tmp_path / "few", classes=3, pictures=14), tmp_path / "l", rows=["chance"], say=quiet
    )

    assert document["settings"]["classes_seen_in_training"]
    assert any("too few classes" in note for note in document["notes"])
    assert document["settings"]["split"] == "pictures of all classes are held out"


def test_columns_groups_and_super_classes(tmp_path: Path, classes: Path) -> None:
    """A query finds none of its group; a catalogue's own sides stand; episodes are drawn within super-classes."""
    paths = sorted(classes.rglob("*.png"))
    lines = ["image,kind,family,product,split"]
    for path in paths:
        number = int(path.parent.name.removeprefix("class"))
        side = "test" if number < 8 else "val" if number < 10 else "train"
        lines.append(
            f"{path},{path.parent.name},{'even' if number % 2 else 'odd'},{number}-{int(path.stem) // 2},{side}"
        )
    (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
    ladder_way = pytest.MonkeyPatch()
    with ladder_way.context() as patched:
        patched.setattr(ladder, "WAY", 4)
        document = compare(tmp_path / "c.csv", tmp_path / "l", labels="kind", group="product", category="family",
                           rows=["chance", "pixels"], say=quiet)  # fmt: skip
    test = [path for path in paths if int(path.parent.name.removeprefix("class")) < 8]
    labels = [path.parent.name for path in test]
    groups = [f"{path.parent.name}-{int(path.stem) // 2}" for path in test]

    own = row(document, "pixels")["measures"]
    assert own["map_at_r"]["mean"] == pytest.approx(
        average_precision_at_r(Pixels().images(test), labels, groups).mean()
    )
    assert row(document, "chance")["measures"]["r_at_1"]["mean"] == pytest.approx(4 / 46)
    assert row(document, "chance")["measures"]["one_shot"]["mean"] == 0.25 and own["one_shot"]["count"] == 1000
    assert document["settings"]["split"] == "as the catalogue says"
    assert document["pictures"] == {"train": 12, "validation": 12, "test": 48}


def test_what_cannot_be_compared(
    cheap: tuple[Path, dict[str, Any]], classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown rows, a base that is none, a folder of something else, other pictures, another default, no questions."""
    with pytest.raises(QueryError, match="no row pixel: choose from chance, pixels"):
        compare(classes, tmp_path / "l", rows=["pixel"], say=quiet)
    with pytest.raises(QueryError, match="--base"):
        compare(classes, tmp_path / "l", rows=["base"], say=quiet)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="neither empty nor a ladder"):
        compare(classes, tmp_path / "mine", rows=CHEAP, say=quiet)
    with pytest.raises(CatalogueError, match="no such folder"):
        compare(tmp_path / "nowhere", tmp_path / "l", rows=CHEAP, say=quiet)
    assert compare(classes, tmp_path / "l", rows=["chance"], say=quiet)["rows"]  # in the folder of the failed attempt
    more = Path(shutil.copytree(classes, tmp_path / "more"))
    (more / "class00" / "0.png").unlink()
    with pytest.raises(CheckpointError, match=r"another ladder .*fingerprint was"):
        compare(more, cheap[0], rows=CHEAP, say=quiet)
    with monkeypatch.context() as patched, pytest.raises(CheckpointError, match=r"another ladder .*default was"):
        patched.setattr(ladder, "default_path", lambda: TINY)
        compare(classes, cheap[0], rows=CHEAP, say=quiet)
    with pytest.raises(ConfigError, match=r"data.test must be above 0"):
        compare(classes, tmp_path / "n", rows=CHEAP, overrides=["data.test=0.0"], say=quiet)


def run(*arguments: object) -> int:
    try:
        main([str(part) for part in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table, or JSON; the command without folders of the machine; status 1 where a row failed."""
    to = tmp_path / "l"
    assert run("compare", classes, "--quick", "--rows", "chance,pixels", "--note", "Well.", "--to", to) == 0
    out, err = capsys.readouterr()
    assert "| pixels" in out and "row pixels: R@1" in err and "- Well." in out
    assert run("compare", classes, "--quick", "--rows", "chance, pixels", "--to", to, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["made"]["command"] == f"lookalike compare {classes.name} --to l --rows 'chance, pixels' --quick"
    assert document["settings"]["minutes"] == 1

    monkeypatch.setattr(ColourHistogram, "images", lambda *_: 1 / 0)
    assert run("compare", classes, "--rows", "colours", "--to", to) == 1
    assert "colours failed" in capsys.readouterr().err
    assert run("compare", classes, "--quick", "--minutes", "2", "--to", to) == 2
    assert run("compare", classes, "--weights", "w", "--to", to) == 2
