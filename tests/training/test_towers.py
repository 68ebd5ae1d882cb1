"""Two towers: the loss is that of its formula, what fits is no negative, a run learns, resumes, and is exported."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from lookalike.bundle import Bundle
from lookalike.captions import read_captions
from lookalike.cli import main
from lookalike.encoder import Encoder
from lookalike.errors import CatalogueError, CheckpointError, ConfigError, ExportError, ShapeError, TrainingError
from lookalike.text import Hashing
from lookalike.training import export_words, towers
from lookalike.training.bagofwords import Counts, cca, ridge
from lookalike.training.config import TrainConfig, read_config
from lookalike.training.export_words import export_clip, export_towers
from lookalike.training.matching import Known, Matching
from lookalike.training.networks.text import TextTower, Towers
from lookalike.training.towers import Run, answers, train_towers

TINY = Path(__file__).parent.parent / "data" / "tiny"
NAMES = ("zarpo", "miko", "lunta", "vesh", "dorri", "kappa", "oum", "rell", "sanno", "tibe", "ulf", "wexi")


def quiet(line: str) -> None:
    """Nobody listens."""


def unit_rows(count: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(rows, dim=1).requires_grad_()


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def naive(queries: Any, pictures: Any, fits: Any, temperature: float, hard: float = 0.0, margin: float = 0.2) -> float:
    """The formula, one query and one picture at a time, in float64."""
    q, p = np.asarray(queries, dtype=np.float64), np.asarray(pictures, dtype=np.float64)
    count, total = len(q), 0.0
    for i in range(count):
        own = q[i] @ p[i]
        across = [q[i] @ p[j] for j in range(len(p)) if j != i and not fits[i][j]]
        down = [q[j] @ p[i] for j in range(count) if j != i and not fits[j][i]]
        for others in (across, down):
            whole = sum(np.exp(x / temperature) for x in [own, *others])
            total += -np.log(np.exp(own / temperature) / whole) / count
            if others:
                total += hard * max(0.0, margin - own + max(others)) / count
    return total / 2


@pytest.mark.parametrize("hard", [0.0, 0.7])
@pytest.mark.parametrize("extra", [0, 3])
def test_the_loss_is_its_formula(hard: float, extra: int) -> None:
    """Value against a naive loop: masks, pictures passed over, hardest negatives."""
    queries, pictures = unit_rows(6), unit_rows(6 + extra, seed=1)
    fits = torch.rand(6, 6 + extra, generator=torch.Generator().manual_seed(2)) < 0.3

    loss = Matching(0.1, hard=hard)(queries, pictures, fits)

    assert float(loss.detach()) == pytest.approx(naive(queries.detach(), pictures.detach(), fits, 0.1, hard), rel=1e-5)


def test_without_duplicates_it_is_clip() -> None:
    """The value and the gradients of open_clip's loss."""
    library = pytest.importorskip("open_clip")
    queries, pictures = unit_rows(7), unit_rows(7, seed=1)
    loss = Matching(0.05)(queries, pictures, torch.zeros(7, 7, dtype=torch.bool))
    theirs = library.ClipLoss()(pictures, queries, torch.tensor(1 / 0.05))

    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for ours, other in zip(*(torch.autograd.grad(x, (queries, pictures)) for x in (loss, theirs)), strict=True):
        torch.testing.assert_close(ours, other)


def test_from_queries_to_pictures_it_is_ntxent() -> None:
    """Both halves are pytorch-metric-learning's NTXent with the other side as references."""
    library = pytest.importorskip("pytorch_metric_learning.losses")
    queries, pictures = unit_rows(7).detach(), unit_rows(7, seed=1).detach()
    labels, ntxent = torch.arange(7), library.NTXentLoss(temperature=0.05)

    # The same tensor of labels would be taken for the same batch, whose diagonal is no pair.
    both = ntxent(queries, labels, ref_emb=pictures, ref_labels=labels.clone()) + ntxent(
        pictures, labels, ref_emb=queries, ref_labels=labels.clone()
    )

    loss = Matching(0.05)(queries, pictures, torch.zeros(7, 7, dtype=torch.bool))
    assert float(loss.detach()) == pytest.approx(float(both) / 2, rel=1e-5)


def test_what_fits_is_no_negative() -> None:
    """Two equal captions of two pictures, and two captions of one picture, push nothing apart."""
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.0]])

    assert float(Matching(0.05)(queries, pictures, torch.ones(2, 2, dtype=torch.bool)).detach()) == pytest.approx(
        0, abs=1e-6
    )
    apart = Matching(0.05)(queries, pictures, torch.eye(2, dtype=torch.bool))
    assert float(apart.detach()) == pytest.approx(np.log(2))


def test_the_temperature_is_learned_and_capped() -> None:
    """It moves, has a finite gradient beside a mask, and stops at the coldest."""
    loss = Matching(0.07, 0.05)
    queries = unit_rows(4).detach()
    optimizer = torch.optim.SGD(loss.parameters(), lr=10.0)
    fits = torch.zeros(4, 4, dtype=torch.bool)
    fits[0, 1] = True
    for _ in range(30):
        optimizer.zero_grad()
        loss(queries, queries, fits).backward()
        assert torch.isfinite(loss.scale.grad).all()
        optimizer.step()

    assert loss.temperature == 0.05
    with pytest.raises(ValueError, match="temperature"):
        Matching(0.01, 0.05)
    with pytest.raises(ShapeError, match="go together"):
        loss(queries, queries[:3], fits)


def test_known_pairs_are_found() -> None:
    """Against a set of pairs, for queries and pictures that are named in no pair as well."""
    dice = np.random.default_rng(0)
    pairs = np.stack([dice.integers(0, 20, 60), dice.integers(0, 15, 60)], axis=1)
    queries, pictures = np.arange(22), np.arange(17)

    found = Known(pairs)(queries, pictures)

    told = {(int(q), int(p)) for q, p in pairs}
    assert [[(q, p) in told for p in range(17)] for q in range(22)] == found.tolist()


# ── towers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_text_tower_is_the_mean_and_a_perceptron() -> None:
    """Padding counts for nothing, the served form agrees, rows have unit length."""
    torch.manual_seed(0)
    tower = TextTower(50, 6, width=8, hidden=(10,)).eval()
    ids = torch.tensor([[3, 4, 4, 0, 0], [7, 0, 0, 0, 0]])

    rows = tower(ids)

    mean = tower.embedding.weight[[3, 4, 4]].mean(0)
    torch.testing.assert_close(rows[0], functional.normalize(tower.layers(mean[None]), dim=1)[0])
    torch.testing.assert_close(rows[1], tower(ids[1:, :1])[0])
    torch.testing.assert_close(rows, tower.served(ids))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


def test_towers_depend_on_the_seed_alone() -> None:
    """Whatever was drawn before."""
    shape: dict[str, Any] = {"dim": 4, "width": 8, "hidden": (8,), "picture_hidden": 8, "dropout": 0.0}
    one = Towers.build(30, 5, seed=1, **shape).state_dict()
    torch.rand(7)
    other, third = Towers.build(30, 5, seed=1, **shape).state_dict(), Towers.build(30, 5, seed=2, **shape).state_dict()

    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["text.embedding.weight"], third["text.embedding.weight"])


# ── the bag of words ─────────────────────────────────────────────────────────────────────────────────────────────────


def problem() -> tuple[list[str], np.ndarray, np.ndarray]:
    dice = np.random.default_rng(0)
    texts = [" ".join(dice.choice(["red", "blue", "dog", "cat", "runs", "sits"], 3)) for _ in range(40)]
    pairs = np.stack([np.arange(40), np.arange(40) // 2], axis=1)
    return texts, dice.normal(size=(20, 5)).astype(np.float32), pairs


def test_ridge_is_scikit_learns() -> None:
    """The same matrix from the dense problem."""
    linear = pytest.importorskip("sklearn.linear_model")
    texts, vectors, pairs = problem()
    [found] = ridge(texts, vectors, pairs, [2.0])
    counts = Counts.of(texts)
    dense = np.zeros((len(texts), len(counts.number)))
    for row, (columns, values) in zip(dense, counts(texts), strict=True):
        row[columns] = values

    theirs = linear.Ridge(alpha=2.0, fit_intercept=False).fit(dense, vectors[pairs[:, 1]] - vectors.mean(0))

    np.testing.assert_allclose(found.matrix, theirs.coef_.T, atol=1e-6)
    np.testing.assert_allclose(found.texts(texts), theirs.predict(dense), atol=1e-5)
    np.testing.assert_allclose(found.pictures(vectors), vectors - vectors.mean(0), atol=1e-6)


def test_cca_directions_are_uncorrelated_and_correlate_as_they_say() -> None:
    """Its projections of the training pairs have a diagonal cross product, as the definition wants."""
    texts, vectors, pairs = problem()
    model = cca(texts, vectors, pairs, 3, 1e-6, power=0.0)

    left, right = model.texts([texts[i] for i in pairs[:, 0]]), model.pictures(vectors[pairs[:, 1]])
    product = left.T.astype(np.float64) @ right
    assert np.abs(product - np.diag(np.diagonal(product))).max() < 1e-3
    np.testing.assert_allclose(left.T @ left, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(right.T @ right, np.eye(3), atol=1e-3)


def test_constant_towers_score_chance() -> None:
    """One vector for everything finds nothing: ties go against the query."""
    found = answers(
        np.ones((9, 4), np.float32), np.ones((30, 4), np.float32), np.stack([np.arange(30) % 9, np.arange(30)], 1)
    )

    assert all(values.max() == 0 for name, values in found.items() if name != "picture_r_at_10")


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def captions(classes: Path) -> Path:
    """Two captions for each of the 72 pictures, with a made-up word for its class."""
    file = classes.parent / "captions.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["image", "caption"])
        for number, picture in enumerate(sorted(classes.rglob("*.png"))):
            name = NAMES[int(picture.parent.name[-2:])]
            writer.writerow([picture, f"a {name} on the wall"])
            writer.writerow([picture, f"{name} number {number}"])
    return file


@pytest.fixture(scope="module")
def configured(captions: Path) -> Callable[..., TrainConfig]:
    def make(**tables: Any) -> TrainConfig:
        document: dict[str, Any] = {
            "name": "words",
            "data": {"root": str(captions), "validation": 0.2, "test": 0.2},
            "text": {"captions": True, "encoder": str(TINY), "trigrams": 64, "words": 256, "width": 32, "hidden": [32],
                     "dim": 16, "batch": 24},
            "optimizer": {"rate": 0.01},
            "loop": {"steps": 60, "validate_every": 20, "report_every": 10, "tensorboard": False, "threads": 1},
        }  # fmt: skip
        for name, table in tables.items():
            document[name] = {**document.get(name, {}), **table}
        return read_config(document)

    return make


@pytest.fixture(scope="module")
def run(configured: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers") / "run"
    train_towers(configured(), folder, say=quiet)
    return folder


def test_a_run_learns_and_says_so(run: Path) -> None:
    """Held-out pictures are found by their words, far above chance; the folder tells in words and numbers."""
    report = json.loads((run / "report.json").read_text())
    verdict = report["verdict"]

    assert verdict["part"] == "test" and verdict["measure"] == "text_r_at_10"
    assert verdict["ours"]["picture_r_at_5"]["mean"] > 0.6  # chance: 5 of 14 × 2 texts
    assert {"text_r_at_1", "picture_r_at_10"} <= set(verdict["theirs"])
    data = json.loads((run / "data.json").read_text())
    assert data["pictures"] == {"train": 44, "validation": 14, "test": 14}
    assert "ridge regression" in (run / "README.md").read_text()


def test_a_complete_run_is_not_repeated_and_another_is_refused(
    run: Path, configured: Callable[..., TrainConfig]
) -> None:
    """As everywhere."""
    assert train_towers(configured(), run, say=quiet).steps == 60
    with pytest.raises(CheckpointError, match=r"text\.dim was 16, is 8"):
        train_towers(configured(text={"dim": 8}), run, say=quiet)


def test_a_killed_run_goes_on_bit_for_bit(configured: Callable[..., TrainConfig], run: Path, tmp_path: Path) -> None:
    """Stopped after 25 steps and run again, it ends with the same weights, and with what else it remembers."""
    config = configured(loop={"checkpoint_seconds": 0.0})

    class Killed(Exception):
        pass

    def kill(report: Any) -> None:
        if report.step == 30:
            raise Killed

    with pytest.raises(Killed):
        train_towers(config, tmp_path / "run", say=quiet, watch=kill)
    train_towers(config, tmp_path / "run", say=quiet)

    whole, again = (torch.load(place / "last.pt", weights_only=True) for place in (run, tmp_path / "run"))
    ours, theirs = whole["learner"], again["learner"]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert whole["watch"] == again["watch"] and whole["watch"]["losses"]
    assert {**whole["state"], "spent": 0} == {**again["state"], "spent": 0}


def test_towers_that_stopped_early_and_were_killed_go_on_to_the_verdict(
    configured: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to further steps, and the report says which step is kept."""
    config = configured(loop={"steps": 100, "validate_every": 2, "patience": 2})
    scores = iter(range(100, 0, -1))
    means = towers.means
    monkeypatch.setattr(towers, "means", lambda found: {**means(found), "text_r_at_1": float(next(scores))})
    with monkeypatch.context() as patched:
        patched.setattr(towers.Run, "_finish", lambda run: (_ for _ in ()).throw(MemoryError("killed")))
        with pytest.raises(MemoryError):
            train_towers(config, tmp_path, say=quiet)
    monkeypatch.setattr(towers.Run, "_step", None)

    assert train_towers(config, tmp_path, say=quiet).steps == 6
    assert json.loads((tmp_path / "report.json").read_text())["kept_step"] == 2


def test_a_gradient_that_is_none_stops_towers(
    configured: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the weights have taken it."""
    monkeypatch.setattr(towers.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(TrainingError, match="gradient is inf at step 0"):
        train_towers(configured(), tmp_path, say=quiet)


def test_the_bundle_answers_as_the_towers(run: Path, classes: Path, tmp_path: Path) -> None:
    """Pictures and texts, cosine above 0.9999; words find their class; nothing names this machine."""
    bundle = export_towers(run, tmp_path / "bundle")

    check = bundle.manifest["check"]
    assert min(check["lowest_cosine"], check["lowest_cosine_of_texts"]) >= 0.9999 and check["texts"] > 10
    encoder = Encoder.load(tmp_path / "bundle")
    assert encoder.has_text and encoder.dim == 16
    pictures = sorted(classes.rglob("*.png"))
    vectors = encoder.images(pictures)
    hits = 0
    for number, name in enumerate(NAMES):
        [query] = encoder.texts([f"a {name} on the wall"])
        hits += pictures[int((vectors @ query).argmax())].parent.name == f"class{number:02}"
    assert hits >= 9
    whole = (tmp_path / "bundle" / "manifest.json").read_text() + (tmp_path / "bundle" / "README.md").read_text()
    assert str(run) not in whole and str(TINY) not in whole and "ridge regression" in whole


def test_a_zip_and_a_projection_with_a_hidden_layer(configured: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The graph written node by node is the network's; the bundle works from a zip."""
    import shutil

    train_towers(configured(text={"picture_hidden": 24}, loop={"steps": 5}), tmp_path / "run", say=quiet)
    bundle = export_towers(tmp_path / "run", tmp_path / "bundle")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "bundle")

    assert bundle.manifest["check"]["lowest_cosine"] >= 0.9999
    packed = Encoder.load(tmp_path / "packed.zip")
    np.testing.assert_allclose(packed.texts(["zarpo"]), Encoder(bundle).texts(["zarpo"]), atol=1e-5)


def test_a_graph_that_disagrees_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written."""
    monkeypatch.setattr(export_words, "_with_projection", _shifted)

    with pytest.raises(ExportError, match="picture graph disagrees"):
        export_towers(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


_original = export_words._with_projection


def _shifted(graph: Path, towers: Any, weights: Any) -> bytes:
    """The graph with another bias than that of the network."""
    import onnx

    model = onnx.load_from_string(_original(graph, towers, weights))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("projection.layers") and tensor.name.endswith("bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), 3.0, np.float32), tensor.name))
    return bytes(model.SerializeToString())


@pytest.mark.slow
def test_the_encoder_can_learn_too(
    classes: Path, captions: Path, tmp_path: Path, configured: Callable[..., TrainConfig]
) -> None:
    """From a share of the run on; the exported graph is then the changed one, and still agrees."""
    from lookalike.training.export import export_network

    origin = export_network("small", tmp_path / "small.bundle", pictures=classes)
    text = {"encoder": str(origin.path), "unfreeze": 0.5, "unfreeze_batch": 8, "unfreeze_rate": 0.1}
    config = configured(text=text, loop={"steps": 8, "validate_every": 8})

    train_towers(config, tmp_path / "run", say=quiet)
    bundle = export_towers(tmp_path / "run", tmp_path / "bundle")

    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["awake"]
    assert bundle.manifest["check"]["lowest_cosine"] >= 0.9999
    assert bundle.manifest["recipe"]["encoder"]["learned"]
    (before, after) = ((place / "weights.safetensors").read_bytes() for place in (origin.path, bundle.path))
    assert before != after


def test_an_encoder_that_cannot_learn_is_refused(configured: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The tiny bundle is a graph without weights."""
    with pytest.raises(ConfigError, match=r"text.unfreeze: the network of bundle .* cannot be trained further"):
        train_towers(configured(text={"unfreeze": 0.5}), tmp_path / "run", say=quiet)


def test_clicks_teach(classes: Path, tmp_path: Path, configured: Callable[..., TrainConfig]) -> None:
    """Queries in words and by picture, clicked and passed over; what was passed over is drawn as a negative."""
    file = tmp_path / "clicks.csv"
    pictures = sorted(classes.rglob("*.png"))
    dice = np.random.default_rng(0)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["query", "shown", "clicked"])
        for _ in range(400):
            seen, asked = pictures[dice.integers(72)], pictures[dice.integers(72)]
            same = seen.parent == asked.parent
            query = NAMES[int(asked.parent.name[-2:])] if dice.random() < 0.7 else str(asked)
            writer.writerow([query, seen, int(same or dice.random() < 0.02)])
    found = read_captions(file)
    assert len(found.refused) > 100 and (found.pairs[:, 0] >= len(found.texts)).any()
    config = configured(data={"root": str(file)}, loop={"steps": 4, "validate_every": 4})

    outcome = train_towers(config, tmp_path / "run", say=quiet)

    assert outcome.steps == 4
    run = Run(config, _folder(tmp_path / "run"), "cpu", None)
    drawn = run._passed_over(run.pairs[:64, 0], np.random.default_rng(0))
    assert len(drawn) and set(drawn) <= set(run.refused[:, 1].tolist())


def _folder(path: Path) -> Any:
    from lookalike.training.folder import RunFolder

    return RunFolder(path, quiet)


def test_pictures_that_are_not_there_are_left_out_and_said(
    captions: Path, tmp_path: Path, configured: Callable[..., TrainConfig]
) -> None:
    """Missing and broken files are counted in data.json; if none is there, it is an error."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    file = tmp_path / "captions.csv"
    file.write_text(captions.read_text() + "gone.png,a zarpo\nbroken.png,a miko\n")
    train_towers(configured(data={"root": str(file)}, loop={"steps": 2}), tmp_path / "run", say=quiet)

    notes = json.loads((tmp_path / "run" / "data.json").read_text())["notes"]
    assert [note.split(", e.g.")[0] for note in notes] == ["1 pictures were not found", "1 pictures cannot be read"]
    (tmp_path / "none.csv").write_text("image,caption\ngone.png,a zarpo\n")
    with pytest.raises(CatalogueError, match="none of 1 pictures is there"):
        train_towers(configured(data={"root": str(tmp_path / "none.csv")}), tmp_path / "other", say=quiet)


def test_the_command(captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train --captions`, then `export` of the run, in one line each."""
    sets = [
        "--set",
        f"text.encoder={TINY}",
        "--set",
        "loop.steps=2",
        "--set",
        "text.batch=8",
        "--set",
        "loop.tensorboard=false",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--captions", str(captions), "--to", str(tmp_path / "w"), "--json", *sets])
    assert stopped.value.code in (0, 3)
    assert json.loads(capsys.readouterr().out)["verdict"]["measure"] == "text_r_at_10"
    assert Bundle.load(tmp_path / "w").has_text
    main(["export", str(tmp_path / "w.run"), "--to", str(tmp_path / "again"), "--json"])
    assert json.loads(capsys.readouterr().out)["check"]["texts"] > 0


def test_wrong_tables_are_told() -> None:
    """Together, with names."""
    with pytest.raises(ConfigError) as found:
        read_config({"data": {"root": "x.csv", "validation": 0.0}, "text": {"captions": True, "temperature": 0.001}})
    assert "data.validation is 0" in str(found.value) and "text.temperature 0.001 is below" in str(found.value)
    with pytest.raises(ConfigError, match=r"unknown key text\.trigram: did you mean 'trigrams'"):
        read_config({"data": {"root": "x.csv"}, "text": {"trigram": 3}})


# ── CLIP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_open_clip_models_become_bundles(tmp_path: Path, classes: Path) -> None:
    """A small one with random weights: both towers through OpenVINO, also from a file of weights."""
    library = pytest.importorskip("open_clip")
    shape = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (tmp_path / "lookalike-test.json").write_text(json.dumps(shape))
    library.add_model_config(tmp_path / "lookalike-test.json")
    torch.manual_seed(0)
    model = library.create_model("lookalike-test").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")

    bundle = export_clip(
        "open_clip:lookalike-test", tmp_path / "clip", weights=tmp_path / "weights.pt", pictures=classes
    )

    encoder = Encoder(bundle, precision="fp32")
    ids = library.get_tokenizer("lookalike-test")(["a red dog", "кот"])
    with torch.inference_mode():
        theirs = functional.normalize(model.encode_text(ids), dim=1).numpy()
    np.testing.assert_allclose(encoder.texts(["a red dog", "кот"]), theirs, atol=5e-3)
    assert encoder.dim == 32 and bundle.manifest["recipe"]["weights"] == "weights.pt"
    with pytest.raises(ConfigError, match="knows no model 'ViT-Q'"):
        export_clip("open_clip:ViT-Q", tmp_path / "no")


@pytest.mark.slow
def test_transformers_models_become_bundles(tmp_path: Path, classes: Path) -> None:
    """A folder as save_pretrained writes it, with a vocabulary of its own."""
    library = pytest.importorskip("transformers")
    from lookalike.text import BytePairs

    pairs = BytePairs(("t h", "th e</w>", "d o", "do g</w>"), 16)
    folder = tmp_path / "clip-model"
    folder.mkdir()
    numbers = pairs._numbers | {"<|startoftext|>": pairs.start, "<|endoftext|>": pairs.end}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs.merges))
    library.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = library.CLIPConfig(
        text_config={**small, "vocab_size": pairs.size, "max_position_embeddings": 16, "bos_token_id": pairs.start,
                     "eos_token_id": pairs.end, "pad_token_id": pairs.end},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )  # fmt: skip
    torch.manual_seed(0)
    model = library.CLIPModel(config).eval()
    model.save_pretrained(folder)
    library.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )

    bundle = export_clip(f"transformers:{folder}", tmp_path / "bundle", pictures=classes)

    encoder = Encoder(bundle, precision="fp32")
    inputs = library.CLIPTokenizerFast.from_pretrained(folder)(["the dog", ""], return_tensors="pt", padding=True)
    with torch.inference_mode():
        text = model.text_projection(model.text_model(**inputs).pooler_output)
    np.testing.assert_allclose(encoder.texts(["the dog", ""]), functional.normalize(text, dim=1).numpy(), atol=5e-3)
    assert bundle.manifest["check"]["texts"] >= 8
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        export_clip(f"transformers:{tmp_path}", tmp_path / "no")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """Ids that differ are noticed, whatever made them."""
    pairs = export_words.BytePairs(("t h",), 8)
    with pytest.raises(ExportError, match="cannot be carried over"):
        export_words._same_ids(pairs, lambda texts: pairs(texts) + 1, "other")


def test_the_hashing_is_in_the_bundle(run: Path, tmp_path: Path) -> None:
    """With the numbers of the configuration."""
    bundle = export_towers(run, tmp_path / "bundle")

    assert bundle.vocabulary == Hashing(64, 256, 256)
