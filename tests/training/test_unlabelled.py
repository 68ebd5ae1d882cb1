"""Pictures without labels: each is alike with itself, taken again; stages of a run; what is asked and how it counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.encoder import Encoder
from lookalike.errors import ConfigError
from lookalike.rerank import Reranking
from lookalike.training import loop
from lookalike.training.auto import choose
from lookalike.training.config import TrainConfig, write_config
from lookalike.training.export import export_run
from lookalike.training.judge import Judge
from lookalike.training.loop import train

Configure = Callable[..., TrainConfig]
UNLABELLED = {
    "sampler": {"kind": "every", "classes": 8, "pictures": 2},
    "loss": {"kind": "nt_xent", "temperature": 0.2},
    "augment": {"rotate": 20.0, "crop": [0.6, 1.0]},
}


def quiet(line: str) -> None:
    del line


@pytest.mark.parametrize(
    "tables",
    [
        {},
        pytest.param(
            {
                "loss": {"kind": "triplet", "margin": 1.0},
                "miner": {"kind": "semi_hard"},
                "network": {"normalise": False},
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"loss": {"kind": "triplet", "margin": 0.2}, "miner": {"kind": "hard"}, "memory": {"size": 64}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["nt-xent", "raw vectors, margin 1", "unit sphere, hard, queue"],
)
def test_every_way_of_learning_from_nothing_runs(configure: Configure, tmp_path: Path, tables: dict) -> None:
    """Copies of held-out pictures ask, and the answers are as many as the pictures."""
    config = configure(data={"labels": "none"}, **{**UNLABELLED, **tables})
    outcome = train(config, tmp_path / "run", say=quiet)
    data = json.loads((outcome.folder / "data.json").read_text())
    assert data["classes"] > 30, "nearly every picture is its own class"
    assert outcome.verdict is not None and outcome.verdict.part == "test"
    assert outcome.verdict.ours["r_at_1"].count == data["classes_by_part"]["test"]
    copies = sorted((outcome.folder / "copies" / "test").iterdir())
    assert len(copies) == 8 * data["pictures"]["test"], "few pictures: each asks once with every kind of change"
    bundle = export_run(outcome.folder, tmp_path / "bundle")
    assert Encoder(bundle).dim == bundle.dim


def test_near_duplicates_are_no_negatives(configure: Configure, classes: Path, tmp_path: Path) -> None:
    """The same picture saved twice more has one label, and lies on one side."""
    root = tmp_path / "pictures"
    shutil.copytree(classes, root)
    first = sorted(root.rglob("*.png"))[:5]
    for path in first:
        with Image.open(path) as image:
            image.convert("RGB").save(path.with_name(f"{path.stem}-again.jpg"), quality=98, subsampling=0)
    config = configure(data={"root": str(root), "labels": "none"}, **UNLABELLED)
    said: list[str] = []
    outcome = train(config, tmp_path / "run", say=said.append)
    data = json.loads((outcome.folder / "data.json").read_text())
    assert any("near-duplicates of others" in note for note in data["notes"])
    side = {path: part for part, paths in data["paths"].items() for path in paths}
    for path in first:
        assert side[str(path)] == side[str(path.with_name(f"{path.stem}-again.jpg"))]


def test_a_constant_encoder_finds_nothing() -> None:
    """Ten pictures, two copies of each: chance is the last place, whatever is asked."""
    judge = Judge(np.arange(30), np.tile(np.arange(10), 3), originals=np.tile(np.arange(10), 2))
    answers = judge.ask(np.ones((30, 4), np.float32))
    assert all((values == 0).all() and values.shape == (10,) for values in answers.values())


def test_copies_of_one_picture_count_once() -> None:
    """Picture 0 is found by one of its two copies, picture 1 by both: 0.5 and 1, not three of four."""
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 0, 1, 1, 1]]
    judge = Judge(np.arange(6), np.array([0, 1, 0, 1, 0, 1]), originals=np.array([0, 1, 0, 1]))
    assert judge.ask(vectors)["r_at_1"].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("originals", [None, np.arange(20)], ids=["all ask", "copies ask"])
@pytest.mark.parametrize(
    "chosen", [Reranking(expansion=3), Reranking(k1=5, k2=2), Reranking(expansion=2, k1=5, k2=2)], ids=str
)
def test_a_judge_ranks_as_a_search_does(originals: object, chosen: Reranking) -> None:
    """The first place of each that asks is the first place that `Searcher` gives over the same pictures."""
    from lookalike.index import open_index
    from lookalike.search import Searcher

    dice = np.random.default_rng(0)
    middles = dice.normal(size=(5, 8))
    vectors = (middles[np.arange(40) % 5] + 0.8 * dice.normal(size=(40, 8))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    judge = Judge(np.arange(40), np.arange(40) % 5, originals=originals)
    scores = judge._reranked(vectors, chosen)
    for query in range(judge.first, 40):
        kept = [i for i in range(judge.first or 40) if i != query]
        index = open_index(":memory:", dim=8)
        index.add([f"{i:02}" for i in kept], vectors[kept], [{} for _ in kept])
        searcher = Searcher.__new__(Searcher)
        searcher.index, searcher.reranking = index, chosen
        hits = searcher.by_vector(vectors[query], k=5)
        ours = sorted(kept, key=lambda i: -scores[query, i])[:5]
        assert [int(hit.key) for hit in hits] == ours


def test_a_base_is_taught_first_and_once(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base by labels, then triplets without: two folders, and the second network starts where the first one ended."""
    recipe = tmp_path / "base.toml"
    recipe.write_text(write_config(configure(loop={"steps": 4})))
    config = configure(data={"labels": "none"}, base={"recipe": str(recipe)}, **UNLABELLED)
    said: list[str] = []
    outcome = train(config, tmp_path / "run", say=said.append)
    stages = [line[: len("stage N of 3")] for line in said if line.startswith("stage")]
    assert stages == [f"stage {n} of 3" for n in (1, 2, 3, 2, 3)], "the base has a second and a third of its own"
    assert (outcome.folder / "base" / "best.pt").exists() and (outcome.folder / "retrieval.json").exists()
    assert "from best.pt" in next(line for line in said if "nt_xent" in line)
    (outcome.folder / "report.json").unlink()
    monkeypatch.setattr(loop.Run, "step", lambda *_: pytest.fail("trained again"))
    assert train(config, tmp_path / "run", say=quiet).verdict == outcome.verdict, "only the last stage is done again"


def test_a_base_of_another_network_is_refused(configure: Configure, tmp_path: Path) -> None:
    recipe = tmp_path / "base.toml"
    recipe.write_text(write_config(configure(network={"options": {"widths": [4, 4]}})))
    config = configure(data={"labels": "none"}, base={"recipe": str(recipe)}, **UNLABELLED)
    with pytest.raises(ConfigError, match="same network"):
        train(config, tmp_path / "run", say=quiet)


def test_a_folder_alone_is_enough(classes: Path) -> None:
    config = choose(classes, "none", overrides=["loop.steps=3"])
    assert (config.data.labels, config.sampler.kind, config.network.weights) == ("none", "every", "default")
    assert config.sampler.classes <= 72 // 4
