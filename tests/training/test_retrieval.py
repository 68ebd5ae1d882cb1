"""The last stage: what is tried, what is kept, and that the bundle then does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lookalike.encoder import Encoder
from lookalike.errors import CheckpointError
from lookalike.metrics import Interval
from lookalike.rerank import Reranking
from lookalike.thresholds import calibrate
from lookalike.training import retrieval
from lookalike.training.checkpoints import load_checkpoint
from lookalike.training.config import TrainConfig
from lookalike.training.export import export_run
from lookalike.training.folder import RunFolder
from lookalike.training.loop import train
from lookalike.training.prepare import make_network
from lookalike.training.retrieval import Retrieval, Step
from lookalike.training.teacher import Axes
from lookalike.vectors import unit

Configure = Callable[..., TrainConfig]


def quiet(line: str) -> None:
    del line


@pytest.fixture(scope="module")
def run(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval") / "run"
    train(configure(), folder, say=quiet)
    return folder


def test_each_step_is_tried_and_told(run: Path) -> None:
    """Kept where the whole interval is above zero, and nowhere else."""
    document = json.loads((run / "retrieval.json").read_text())
    names = [step["name"] for step in document["steps"]]
    assert [name.split()[0] for name in names] == ["flip", "whitening", "query", "k-reciprocal"]
    for step in document["steps"]:
        assert step["kept"] == (step["difference"]["low"] > 0)
    assert json.loads((run / "report.json").read_text())["retrieval"] == document["steps"]


def test_what_is_kept_is_what_the_bundle_does(configure: Configure, run: Path, tmp_path: Path) -> None:
    """Flip, axes and re-ranking written by hand: the exported encoder gives the vectors that NumPy gives."""
    config = configure()
    network = make_network(config, start=False).eval()
    network.load_state_dict(load_checkpoint(run / "best.pt")["network"])
    dice = np.random.default_rng(0)
    axes = Axes.of(unit(dice.normal(size=(200, 16)).astype(np.float32)), 6, 0.5)
    place = RunFolder(run, quiet)
    before = {path.name: path.read_bytes() for path in run.glob("*.json")}
    try:
        Retrieval(True, axes, Reranking(expansion=3), ()).save(place)
        bundle = export_run(run, tmp_path / "bundle")
        pictures = json.loads((run / "data.json").read_text())["paths"]["test"]
        pre = config.preprocessing()
        pixels = torch.from_numpy(pre.normalise(np.stack([pre.load(path) for path in pictures])))
        with torch.inference_mode():
            both = unit(((network(pixels) + network(pixels.flip(3))) / 2).numpy())
        assert bundle.dim == 6 and bundle.reranking == Reranking(expansion=3)
        theirs = Encoder(bundle, precision="fp32").images(pictures)
        assert (axes(both) * theirs).sum(axis=1) == pytest.approx(1, abs=2e-4)
    finally:
        for name, content in before.items():
            (run / name).write_bytes(content)
        (run / retrieval.AXES).unlink()


def test_a_step_must_help_beyond_doubt(configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers with an interval around zero are left, above zero are kept, and later steps build on them."""
    answers = {False: np.linspace(0, 1, 40), True: np.linspace(0, 1, 40) + 0.01}

    def ask(self: object, candidate: Retrieval) -> np.ndarray:
        noise = np.where(np.arange(40) % 2, 0.5, -0.5) if candidate.reranking else 0
        return answers[candidate.flip] + noise

    monkeypatch.setattr(retrieval._Trial, "_ask", ask)
    from lookalike.training.distributed import Group
    from lookalike.training.prepare import prepare

    config = configure(retrieval={"whiten": False})
    network = make_network(config, start=False).eval()
    material = prepare(config, RunFolder(run, quiet), Group())
    found = retrieval.choose(config, network, material, "cpu")
    assert found.flip and not found.reranking
    assert [step.kept for step in found.steps] == [True, False, False]
    assert network.views is None and network.whitening is None, "the network is left as it was"


def test_it_comes_back_from_the_folder(tmp_path: Path) -> None:
    place = RunFolder(tmp_path, quiet)
    assert Retrieval.load(place) is None
    step = Step("flip averaging", 0.5, Interval(0.1, 0.05, 0.15, 10), kept=True)
    axes = Axes.of(unit(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)), 4, 1.0)
    kept = Retrieval(True, axes, Reranking(k1=20), (step,))
    kept.save(place)
    found = Retrieval.load(place)
    assert found is not None and (found.flip, found.reranking, found.steps) == (True, Reranking(k1=20), (step,))
    assert found.axes is not None and np.array_equal(found.axes.axes, axes.axes)
    (tmp_path / "whitening.npz").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="delete it"):
        Retrieval.load(place)


def test_without_held_out_pictures_nothing_is_tried(configure: Configure, tmp_path: Path) -> None:
    train(configure(data={"validation": 0.0, "test": 0.0}), tmp_path / "run", say=quiet)
    document = json.loads((tmp_path / "run" / "retrieval.json").read_text())
    assert document["steps"] == [] and not document["flip"] and not document["whiten"]
    assert not (tmp_path / "run" / "thresholds.json").exists()


def test_thresholds_are_those_of_validation_as_it_is_served(
    configure: Configure, run: Path, classes: Path, tmp_path: Path
) -> None:
    """What the bundle carries is what calibrating its own vectors gives; without labels nothing is unknown."""
    found = json.loads((run / "thresholds.json").read_text())
    paths = json.loads((run / "data.json").read_text())["paths"]["validation"]
    export_run(run, tmp_path / "bundle")
    vectors = Encoder.load(tmp_path / "bundle", precision="fp32").images(paths)
    again = calibrate(vectors, [Path(path).parent.name for path in paths])

    for purpose in ("same", "unknown", "duplicate"):
        assert found[purpose] == pytest.approx(again[purpose].value, abs=2e-3)
    assert found["calibration"]["part"] == "validation, split by class"

    blind = configure(data={"labels": "none"}, sampler={"kind": "every", "classes": 8, "pictures": 2},
                      loss={"kind": "nt_xent"})  # fmt: skip
    train(blind, tmp_path / "blind", say=quiet)
    assert set(json.loads((tmp_path / "blind" / "thresholds.json").read_text())) == {"same", "duplicate", "calibration"}
