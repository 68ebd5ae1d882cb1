"""What is exported answers as the network does, needs no PyTorch, and can be trained further."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lookalike.encoder import Encoder
from lookalike.errors import CatalogueError, CheckpointError, ExportError, LookalikeError
from lookalike.explain import explain
from lookalike.training import export
from lookalike.training.config import TrainConfig
from lookalike.training.export import export_network, export_run
from lookalike.training.loop import train
from lookalike.training.networks import build
from lookalike.training.prepare import make_network

Configure = Callable[..., TrainConfig]


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def run(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a grey network with views and an average of its weights."""
    folder = tmp_path_factory.mktemp("run")
    config = configure(data={"channels": 1}, views={"count": 3}, optimizer={"ema": 0.9}, loop={"steps": 4})
    train(config, folder / "run", say=quiet)
    return folder / "run"


def test_the_bundle_answers_as_the_network_does(run: Path, classes: Path, tmp_path: Path) -> None:
    """Cosine above 0.9999 on 64 pictures, through the whole way that serving takes; the card tells."""
    bundle = export_run(run, tmp_path / "bundle")

    assert bundle.manifest["check"]["pictures"] >= 12
    assert bundle.manifest["check"]["lowest_cosine"] >= 0.9999
    rows = Encoder.load(tmp_path / "bundle").images(sorted(classes.rglob("*.png"))[:8])
    assert rows.shape == (8, 16)
    card = (tmp_path / "bundle" / "README.md").read_text()
    data = json.loads((run / "data.json").read_text())
    assert data["fingerprint"] in card and "supervised_contrastive" in card and "MAP@R" in card
    found = bundle.manifest["thresholds"]
    assert found == json.loads((run / "thresholds.json").read_text()) and f"| same | {found['same']} |" in card


def test_the_weights_lie_once_under_their_training_names(run: Path, tmp_path: Path) -> None:
    """The graph refers into weights.safetensors, batch norms and all, and holds no path of this machine."""
    export_run(run, tmp_path / "bundle")

    raw = (tmp_path / "bundle" / "image.onnx").read_bytes()
    graph = onnx.load_from_string(raw).graph
    referred = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert {"base.stem.0.weight", "base.stem.1.running_mean", "head.weight"} <= referred
    assert str(Path.cwd()).encode() not in raw and str(run).encode() not in raw
    manifest = (tmp_path / "bundle" / "manifest.json").read_text()
    assert str(run) not in manifest and str(Path.cwd()) not in manifest


def test_a_run_can_go_on_from_a_bundle(run: Path, configure: Configure, tmp_path: Path) -> None:
    """Base and head of the bundle are where the next run starts: its step 0 is the bundle's own answer."""
    bundle = export_run(run, tmp_path / "bundle")
    config = configure(data={"channels": 1}, network={"weights": str(bundle.path)}, loop={"steps": 1})

    network = make_network(config)

    state = make_network(configure(data={"channels": 1}, views={"count": 3}), start=False).state_dict()
    kept = torch.load(run / "best.pt", weights_only=True)["network"]
    assert state.keys() == kept.keys()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, kept[name], atol=2e-3, rtol=2e-3)
    outcome = train(config, tmp_path / "next", say=quiet)
    assert outcome.verdict is not None and outcome.verdict.base == f"the encoder {bundle.name}"


@pytest.mark.slow
def test_attention_pooling_is_served_and_explained(configure: Configure, classes: Path, tmp_path: Path) -> None:
    """The graph draws the weights from the picture; a cosine is told apart by places all the same, exactly."""
    config = configure(data={"channels": 1}, network={"pool": "attention:3"}, views={"count": 3}, loop={"steps": 4})
    train(config, tmp_path / "run", say=quiet)
    encoder = Encoder(export_run(tmp_path / "run", tmp_path / "bundle"), precision="fp32")
    pictures = sorted(classes.rglob("*.png"))[:2]

    found = explain(encoder, *pictures)

    assert (found.method, found.why) == ("correspondence", "")
    assert found.left.sum() == pytest.approx(found.score, abs=1e-4)
    ours, theirs = encoder.images(pictures)
    assert found.score == pytest.approx(float(ours @ theirs), abs=1e-4)


@pytest.mark.slow
def test_a_run_is_exported_as_it_saw_its_pictures_wherever_its_base_is(
    run: Path, configure: Configure, tmp_path: Path
) -> None:
    """Mean, spread and size came from the bundle it began with, which is gone."""
    own = {"mean": [0.9] * 3, "std": [0.3] * 3, "interpolation": "bicubic"}
    bundle = export_run(run, tmp_path / "bundle")
    manifest = bundle.path / "manifest.json"
    held = json.loads(manifest.read_text())
    held["image"].update(own)
    manifest.write_text(json.dumps(held))
    config = configure(data={"channels": 1}, network={"weights": str(bundle.path)}, loop={"steps": 1})
    train(config, tmp_path / "next", say=quiet)
    shutil.rmtree(bundle.path)

    found = export_run(tmp_path / "next", tmp_path / "again").preprocessing.to_document()

    assert {name: found[name] for name in own} == own and found["size"] == [24, 24]


def test_a_graph_that_disagrees_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written where the bundle should be."""
    graph = export._graph

    def wrong(serving: torch.nn.Module, size: tuple[int, int]) -> onnx.ModelProto:
        model = graph(serving, size)
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Abs"
        return model

    monkeypatch.setattr(export, "_graph", wrong)
    with pytest.raises(ExportError, match=r"disagrees with the network: lowest cosine .* nothing was written"):
        export_run(run, tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


def test_folders_that_hold_no_run_are_refused(tmp_path: Path, configure: Configure) -> None:
    """No configuration, or no checkpoint yet; pictures to check with must be there."""
    with pytest.raises(CheckpointError, match="no run folder"):
        export_run(tmp_path, tmp_path / "bundle")
    from lookalike.training.folder import RunFolder

    RunFolder(tmp_path / "run", quiet).claim(configure())
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        export_run(tmp_path / "run", tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogueError, match="no pictures"):
        export_network("shufflenet_v2_x0_5", tmp_path / "bundle", pictures=tmp_path / "empty")


@pytest.mark.slow
def test_a_network_by_name(classes: Path, tmp_path: Path) -> None:
    """Any timm model with weights from a file: its pooled features, checked; random weights are said to be random."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = timm.create_model("test_resnet", pretrained=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "weights.safetensors")

    name = "timm:test_resnet"
    bundle = export_network(name, tmp_path / "bundle", weights=tmp_path / "weights.safetensors", pictures=classes)
    unnamed = export_network(name, tmp_path / "random")

    encoder = Encoder.load(bundle.path, precision="fp32")
    path = str(next(classes.rglob("*.png")))
    pixels = torch.from_numpy(bundle.preprocessing.normalise(bundle.preprocessing.load(path)[None]))
    network = build(name, weights=tmp_path / "weights.safetensors").eval()
    with torch.inference_mode():
        features = network.features(pixels).mean((2, 3))[0]
    expected = features / features.norm()
    np.testing.assert_allclose(encoder.images([path])[0], expected.numpy(), atol=2e-3)
    assert "random" in (unnamed.path / "README.md").read_text()


def test_a_bundle_needs_no_pytorch(run: Path, classes: Path, tmp_path: Path) -> None:
    """Encoding with it loads no torch."""
    export_run(run, tmp_path / "bundle")
    code = (
        "import sys; from lookalike import Encoder; "
        f"rows = Encoder.load({str(tmp_path / 'bundle')!r}).images([{str(next(classes.rglob('*.png')))!r}]); "
        "assert rows.shape == (1, 16); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


def test_every_error_is_one_of_ours(tmp_path: Path) -> None:
    """An unknown network is a LookalikeError with the nearest name."""
    with pytest.raises(LookalikeError, match="did you mean 'resnet50'"):
        export_network("resnet5", tmp_path / "bundle")


def test_a_run_may_be_served_larger_than_it_was_trained(run: Path, tmp_path: Path) -> None:
    """Another size, the same weights: checked like any graph, and the numbers of the old size are not claimed."""
    bundle = export_run(run, tmp_path / "larger", size=(32, 32))
    assert bundle.preprocessing.size == (32, 32) and bundle.manifest["recipe"]["trained_at"] == [24, 24]
    assert bundle.manifest["check"]["lowest_cosine"] >= 0.9999
    assert bundle.manifest["metrics"] is None and bundle.manifest["thresholds"] == {}
