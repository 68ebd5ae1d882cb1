"""The classifier table: who is on which side, what a row says, what is not done twice, and the command."""

from __future__ import annotations

import csv
import json
import tomllib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix, f1_score

from lookalike.cli import main
from lookalike.errors import CatalogueError, CheckpointError, ConfigError
from lookalike.training import classifiers as module
from lookalike.training.classifiers import DEFAULT, NETWORKS, SVMS, classifiers, closed_set, recipes
from lookalike.training.closed_set import unfit
from lookalike.training.config import read_config
from lookalike.training.figures import best_row, in_words

ROOT = Path(__file__).parent.parent.parent
# A network that needs no time: its recipe, but for the size of everything.
QUICK = [
    "data.size=[32, 32]", "sampler.classes=16", "loop.steps=4", "loop.validate_every=2", "loop.precision=fp32",
    "loop.threads=1", "loop.small_until=0.0",
]  # fmt: skip


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory, draw_classes: Callable[..., Path]) -> Path:
    """Four categories of 24 pictures and one of six; products of three pictures; one picture twice as another product.

    Every product has a colour of its own over the pattern of its category.
    """
    top = tmp_path_factory.mktemp("shop")
    dice = np.random.default_rng(5)
    lines = [["image", "kind", "product"]]
    for kind, size in (("hat", 24), ("shoe", 24), ("sock", 24), ("tie", 24), ("fan", 6)):
        pattern = dice.integers(40, 216, (4, 4, 3))
        for number in range(size):
            if number % 3 == 0:
                shade = dice.integers(-30, 30, 3)
            name = f"{kind}{number}.png"
            noisy = np.kron(pattern, np.ones((6, 6, 1))) + shade + dice.normal(0, 25, (24, 24, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(top / name)
            lines.append([name, kind, f"{kind} {number // 3}"])
    (top / "again.png").write_bytes((top / "hat0.png").read_bytes())
    lines.append(["again.png", "hat", ""])
    with (top / "shop.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return top / "shop.csv"


@pytest.fixture(scope="module")
def table(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A finished table of three rows, and its folder."""
    folder = tmp_path_factory.mktemp("table")
    models = ["svm-pixels", "svm-embeddings", "shufflenet"]
    document = classifiers(
        catalogue, folder, labels="kind", top=4, group="product", models=models, overrides=QUICK, say=silent
    )
    return document, folder


# ── who is on which side ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_every_category_is_in_every_part_and_no_product_in_two(catalogue: Path, tmp_path: Path, seed: int) -> None:
    """The largest categories alone; whole products; a copy under no product's name stays with its original."""
    found = closed_set(catalogue, tmp_path, labels="kind", top=4, group="product", seed=seed, say=silent)
    product = {row[0]: row[2] for row in csv.reader(catalogue.read_text().splitlines())}
    sides = {path: side for side, part in found.parts.items() for path in np.array(found.paths)[part]}
    homes = defaultdict(set)
    for path, side in sides.items():
        homes[product[Path(path).name] or path].add(side)

    assert sorted(found.categories) == ["hat", "shoe", "sock", "tie"] and found.categories[0] == "hat"
    assert len(sides) == len(found.paths) == 97
    assert all(len(home) == 1 for home in homes.values())
    assert sides[str(catalogue.parent / "again.png")] == sides[str(catalogue.parent / "hat0.png")]
    for sizes in found.distribution().values():
        assert min(sizes.values()) >= 3
    assert sum(found.distribution()["test"].values()) in range(12, 17)


def test_the_parts_of_a_catalogue_that_names_them_are_taken(catalogue: Path, tmp_path: Path) -> None:
    """But a copy that lies on the other side is left out, and said."""
    lines = list(csv.reader(catalogue.read_text().splitlines()))
    parts = {line[0]: ("train", "val", "test")[number % 3] for number, line in enumerate(lines[1:])}
    parts |= {"hat0.png": "train", "again.png": "test"}
    named = catalogue.parent / "named.csv"
    with named.open("w", newline="") as file:
        csv.writer(file).writerows([[*lines[0], "split"], *([*line, parts[line[0]]] for line in lines[1:])])
    found = closed_set(named, tmp_path, labels="kind", top=4, say=silent)

    names = {side: {Path(found.paths[row]).name for row in part} for side, part in found.parts.items()}
    assert "hat0.png" in names["train"] and not any("again.png" in part for part in names.values())
    assert any("same file" in note for note in found.notes)
    assert "hat1.png" in names["validation"]


def test_categories_too_small_for_three_parts_are_refused(catalogue: Path, tmp_path: Path) -> None:
    """The message names them, and what to do."""
    with pytest.raises(ConfigError, match=r"no picture of fan in the train part.*lower top"):
        closed_set(catalogue, tmp_path, labels="kind", top=5, group="product", say=silent)
    with pytest.raises(ConfigError, match="at least 2"):
        closed_set(catalogue, tmp_path, labels="kind", top=1, say=silent)


def test_groups_need_a_column(catalogue: Path, classes: Path, tmp_path: Path) -> None:
    """Of a folder there is none, and a wrong name gets the nearest one."""
    with pytest.raises(CatalogueError, match="did you mean product"):
        closed_set(catalogue, tmp_path, labels="kind", top=4, group="produkt", say=silent)
    with pytest.raises(CatalogueError, match="no CSV file"):
        closed_set(classes, tmp_path, top=4, group="product", say=silent)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_are_those_of_scikit_learn(catalogue: Path, tmp_path: Path) -> None:
    """The report, the confusion matrix and macro F1 of any answers."""
    found = closed_set(catalogue, tmp_path, labels="kind", top=4, say=silent)
    dice = np.random.default_rng(1)
    predicted = {side: np.where(dice.random(len(part)) < 0.7, found.labels[part], dice.integers(0, 4, len(part)))
                 for side, part in found.items()}  # fmt: skip
    row = module._figures("scratch", predicted, found, 1.5, 10)
    names = np.array(found.categories)
    true, said = names[found.labels[found.parts["test"]]], names[predicted["test"]]
    theirs = classification_report(true, said, output_dict=True, zero_division=0)

    assert row["report"].keys() == theirs.keys()
    for name, figures in theirs.items():
        assert row["report"][name] == pytest.approx(figures)
    assert row["confusion"] == confusion_matrix(true, said, labels=names).tolist()
    assert row["macro_f1"] == pytest.approx(f1_score(true, said, average="macro"))
    assert row["test"]["mean"] == pytest.approx((true == said).mean())
    assert row["test"]["low"] < row["test"]["mean"] < row["test"]["high"]


@pytest.mark.parametrize(("training", "flag"), [(1.0, True), (0.6, False)])
def test_over_fitting_is_training_far_above_the_interval_of_the_test(
    catalogue: Path, tmp_path: Path, training: float, flag: bool
) -> None:
    """Everything that was taught is known, half of what is new: that is over-fitting; a little more is chance."""
    found = closed_set(catalogue, tmp_path, labels="kind", top=4, say=silent)
    predicted = {side: found.labels[part].copy() for side, part in found.items()}
    for side, right in (("train", training), ("test", 0.5)):
        wrong = slice(round(right * len(predicted[side])), None)
        predicted[side][wrong] = (predicted[side][wrong] + 1) % 4

    assert module._figures("scratch", predicted, found, 1.5, 10)["overfitting"] is flag


def test_a_table_has_all_of_every_row(table: tuple[dict[str, Any], Path]) -> None:
    """The document is the file, each row is a file, and what a machine cannot miss (patterns under noise) it does not.

    The linear machines know the four patterns; the network, after four steps, has a curve.
    """
    document, folder = table
    rows = {row["name"]: row for row in document["rows"]}

    assert json.loads((folder / "classifiers.json").read_text()) == document
    assert document["kind"] == "classifiers" and document["minutes"] > 0
    for name, row in rows.items():
        assert json.loads((folder / "rows" / f"{name}.json").read_text()) == row
        assert np.sum(row["confusion"]) == row["test"]["count"] == sum(document["distribution"]["test"].values())
    assert rows["svm-pixels"]["test"]["mean"] > 0.9 and rows["svm-embeddings"]["test"]["mean"] > 0.9
    assert rows["svm-pixels"]["parameters"] == 4 * (32 * 32 * 3 + 1) and rows["svm-pixels"]["start"] == "features"
    assert [point["step"] for point in rows["shufflenet"]["curve"]] == [2, 4]
    assert rows["shufflenet"]["start"] == "scratch" and (folder / "rows" / "shufflenet.pt").is_file()


def test_the_document_holds_no_path(table: tuple[dict[str, Any], Path], catalogue: Path) -> None:
    """Neither of the pictures nor of the table: it may be published."""
    document, folder = table
    texts = [json.dumps(document), (folder / "classifiers.md").read_text()]

    assert not any(str(place) in text for text in texts for place in (folder, catalogue.parent))
    assert "lookalike classifiers shop.csv --labels kind --top 4 --group product" in document["made"]["command"]


def test_the_page_has_the_table_the_best_row_and_its_plots(table: tuple[dict[str, Any], Path]) -> None:
    """A line for each row; the figures of the row that is best on validation; PNG files that are pictures."""
    document, folder = table
    page = (folder / "classifiers.md").read_text()

    assert all(f"| {row['name']} | {row['start']} |" in page for row in document["rows"])
    assert f"## {best_row(document)['name']}, the best on validation" in page
    for name in ("distribution.png", "curves.png", "confusion.png"):
        assert f"({name})" in page
        with Image.open(folder / name) as plot:
            assert min(plot.size) > 200
    assert "](" not in in_words(document)  # without plots, none are promised


def test_the_best_row_is_chosen_on_validation() -> None:
    """The test part chooses nothing."""
    rows = [
        {"name": "a", "validation": 0.8, "test": {"mean": 0.9}},
        {"name": "b", "validation": 0.9, "test": {"mean": 0.8}},
    ]
    assert best_row({"rows": rows})["name"] == "b"


# ── what is done is done ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_row_is_not_run_again(
    table: tuple[dict[str, Any], Path], catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command takes rows as they are; other settings make the row anew; other pictures are refused."""
    document, folder = table
    place = tmp_path / "table"
    (place / "rows").mkdir(parents=True)
    for name in ("classifiers.json", *(f"rows/{row['name']}.json" for row in document["rows"])):
        (place / name).write_bytes((folder / name).read_bytes())
    fit, taught = [], []
    monkeypatch.setattr(module, "_svm", lambda *_: fit.append(1))
    monkeypatch.setattr(module, "teach", lambda config, *_: taught.append(config) or pytest.skip("would be taught"))
    usual: dict[str, Any] = {"labels": "kind", "top": 4, "group": "product", "say": silent}
    again = classifiers(catalogue, place, models=["svm-pixels", "shufflenet"], overrides=QUICK, **usual)

    assert [row["name"] for row in again["rows"]] == ["svm-pixels", "shufflenet"] and not fit + taught
    assert again["rows"][1] == document["rows"][2]
    with pytest.raises(CheckpointError, match="other pictures"):
        classifiers(catalogue, place, models=["svm-pixels"], **usual | {"top": 3})
    with pytest.raises(pytest.skip.Exception):
        classifiers(catalogue, place, models=["shufflenet"], overrides=[*QUICK, "loop.steps=5"], **usual)
    assert [config.loop.steps for config in taught] == [5]


def test_overrides_go_to_all_networks_or_to_one(catalogue: Path) -> None:
    """A model's name before the key means that model alone."""
    found = module._networks(
        catalogue, ["alexnet", "resnet50"], [], ["loop.steps=7", "alexnet.optimizer.rate=1e-5", "resnet50.loop.steps=9"]
    )

    assert (found["alexnet"].loop.steps, found["resnet50"].loop.steps) == (7, 9)
    assert found["alexnet"].optimizer.rate == 1e-5 != found["resnet50"].optimizer.rate


def test_a_network_of_ones_own_is_a_row_under_its_name(catalogue: Path, tmp_path: Path) -> None:
    """Alone, unless models are named; two of one name are refused, as is one that gives no scores."""
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'name = "mine"\n[data]\nsize = [24, 24]\n[network]\nname = "small"\noptions = { widths = [8, 12, 16] }\n'
        'head = "none"\nnormalise = false\n[loss]\nkind = "multi_hinge"\n[sampler]\nkind = "classes"\nclasses = 4\n'
        'pictures = 4\n[loop]\nsteps = 30\nvalidate_every = 10\nprecision = "fp32"\nthreads = 1\n'
    )
    document = classifiers(catalogue, tmp_path / "table", labels="kind", top=4, configs=[mine], say=silent)

    assert [row["name"] for row in document["rows"]] == ["mine"]
    assert document["rows"][0]["test"]["mean"] > 0.5
    with pytest.raises(ConfigError, match="one name"):
        module._networks(catalogue, [], [mine, mine], [])
    with pytest.raises(ConfigError, match=r"mine: loss\.kind 'triplet' gives no score"):
        module._networks(catalogue, [], [mine], ["loss.kind=triplet", 'miner={kind="semi_hard"}'])
    with pytest.raises(ConfigError, match="unknown model 'alexnett'"):
        module._networks(catalogue, ["alexnett"], [], [])


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NETWORKS)
def test_every_recipe_is_one_of_a_classifier(name: str) -> None:
    """Under its own name, with every key known."""
    config = read_config(recipes()[name], ["data.root=pictures"])

    assert config.name == name and not unfit(config)
    assert (config.network.weights is not None) == name.endswith("-transfer")


def test_recipes_are_in_the_wheel() -> None:
    """Hatch puts `configs` where `recipes` looks first; nothing that runs by default needs a download."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert wheel["force-include"] == {"configs": "lookalike/recipes"}
    assert {path.parent for path in recipes().values()} == {ROOT / "configs"}
    assert {"hub"} == {
        read_config(recipes()[name], ["data.root=x"]).network.weights for name in {*NETWORKS} - {*DEFAULT}
    }


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def run(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command_fills_and_prints_a_table(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns for people, and with --json the document; mistakes end in one line."""
    usual = ("classifiers", str(catalogue), "--labels", "kind", "--top", "4", "--to", str(tmp_path / "table"))
    assert run(*usual, "--models", "svm-pixels") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[:3] == ["model", "training", "validation"]
    assert out.splitlines()[1].startswith("svm-pixels") and "test accuracy" in err

    assert run(*usual, "--models", "svm-pixels", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][0]["name"] == SVMS[0] and "not repeated" in err

    assert run(*usual, "--models", "svm") == 1
    assert "unknown model 'svm'" in capsys.readouterr().err
