"""Weights: from files, addresses and bundles; what is left out is said; what belongs elsewhere is refused."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lookalike import metrics
from lookalike.bundle import default_path
from lookalike.encoder import Encoder
from lookalike.errors import BundleError, TrainingError
from lookalike.training.networks import EmbeddingNetwork, build, missing_weights, read_weights, weights_file
from lookalike.training.networks.weights import load_weights

NAME = "shufflenet_v2_x0_5"


def saved(network: torch.nn.Module, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return path


def pixels(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))


def same_features(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval().features(pixels()), other.eval().features(pixels()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_file_gives_the_network_it_was_saved_from(tmp_path, suffix):
    """All three kinds of file give the same features; nothing is left out."""
    original = build(NAME, classes=3, seed=5)
    network = build(NAME, classes=3, weights=saved(original, tmp_path / f"weights{suffix}"))

    assert same_features(network, original)
    assert network.report.dropped == network.report.fresh == ()


def test_float16_weights_become_float32(tmp_path):
    """Half-precision files give a float32 network with the rounded values."""
    original = build(NAME, seed=5)
    save_file({name: value.half() for name, value in original.state_dict().items()}, tmp_path / "half.safetensors")
    network = build(NAME, weights=tmp_path / "half.safetensors")

    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(network.conv5[0].weight, original.conv5[0].weight.half().float())


def test_another_classifier_is_left_out_and_said(tmp_path):
    """A file for 3 classes serves a network for 5 or none; the report names what was dropped and what is random."""
    path = saved(build(NAME, classes=3, seed=5), tmp_path / "weights.pth")
    five, none = build(NAME, classes=5, weights=path), build(NAME, weights=path)

    assert set(five.report.fresh) == set(five.report.dropped) == {"fc.bias", "fc.weight"}
    assert "starts at random: fc.bias" in str(five.report)
    assert set(none.report.dropped) == {"fc.bias", "fc.weight"}
    assert none.report.fresh == ()
    assert same_features(five, none)


def test_alexnets_hidden_layers_are_kept_where_only_the_last_differs():
    """fc6 and fc7 of another number of classes are still used."""
    with torch.device("meta"):
        network, original = (build("alexnet", classes=classes).to_empty(device="cpu") for classes in (4, 3))
    original.classifier[4].weight.data.fill_(0.5)
    report = load_weights(network, original.state_dict(), "a test", lambda _: [])

    assert set(report.fresh) == {"classifier.6.weight", "classifier.6.bias"}
    assert torch.equal(network.classifier[4].weight, original.classifier[4].weight)


@pytest.mark.parametrize("name", [NAME, "alexnet", "torchvision:squeezenet1_1"])
def test_colour_weights_serve_one_channel(tmp_path, name):
    """A one-channel network gives for grey what the colour network gives for grey in all three channels."""
    original = build(name, seed=5)
    network = build(name, channels=1, weights=saved(original.published(), tmp_path / "weights.safetensors"))
    with torch.no_grad():
        grey = original.eval().features(pixels(1).repeat(1, 3, 1, 1))

        torch.testing.assert_close(network.eval().features(pixels(1)), grey, atol=1e-4, rtol=1e-4)
    assert network.report.summed


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.module.", "network."])
def test_names_put_before_all_others_are_taken_off(tmp_path, wrap):
    """What data-parallel training and compilation put before every name does not matter."""
    original = build(NAME, seed=5)
    torch.save({"state_dict": {wrap + n: v for n, v in original.state_dict().items()}}, tmp_path / "a.pth")

    assert same_features(build(NAME, weights=tmp_path / "a.pth"), original)


@pytest.mark.parametrize("name", [NAME, "torchvision:squeezenet1_1"])
def test_a_trained_embedding_network_is_a_base_again(tmp_path, name):
    """Of the state of an EmbeddingNetwork the base is used; pooling and head are left out, and said."""
    whole = EmbeddingNetwork(build(name, seed=5), dim=8, pool="gem")
    network = build(name, weights=saved(whole, tmp_path / "whole.safetensors"))

    assert same_features(network, whole.base)
    assert set(network.report.dropped) == {"pool.p", "head.weight", "head.bias"}


def test_weights_of_another_network_are_refused_with_the_names_they_fit(tmp_path):
    """The message says what is missing and unknown, and which network was meant."""
    path = saved(build("resnet50", classes=2), tmp_path / "weights.pth")
    with pytest.raises(TrainingError, match=r"missing \(conv1\.0\.weight.*unknown \(bn1\.bias.*they fit resnet50"):
        build(NAME, weights=path)


def test_weights_of_another_width_are_refused_with_the_name_they_fit(tmp_path):
    """Equal names with other shapes are another network."""
    path = saved(build("shufflenet_v2_x1_0"), tmp_path / "weights.pth")
    with pytest.raises(TrainingError, match=r"of another shape \(.*they fit shufflenet_v2_x1_0"):
        build(NAME, weights=path)


@pytest.mark.slow
def test_weights_of_torchvisions_other_networks_are_recognised(tmp_path):
    """Where none of ours fits, torchvision's are tried."""
    path = saved(build("torchvision:resnet18").published(), tmp_path / "weights.pth")
    with pytest.raises(TrainingError, match="they fit torchvision:resnet18"):
        build(NAME, weights=path)


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_unpickled(tmp_path, legacy):
    """A .pth file that would run code is refused, and the code is not run."""
    target = tmp_path / "owned"
    if legacy:
        (tmp_path / "evil.pth").write_bytes(pickle.dumps({"weight": Evil(target)}))
    else:
        torch.save({"weight": Evil(target)}, tmp_path / "evil.pth")
    with pytest.raises(TrainingError, match=r"evil\.pth cannot be read"):
        read_weights(tmp_path / "evil.pth")

    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.safetensors", b"not weights", "cannot be read"),
        ("a.pth", b"", "cannot be read"),
        ("a.bin", b"x", "must end in"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, name, content, reason):
    """Damage and unknown suffixes end as TrainingError with the file's name."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=rf"{name}.*{reason}"):
        build(NAME, weights=tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {}, {"weight": 3}, torch.zeros(2)])
def test_files_that_hold_something_else(tmp_path, content):
    """A file of something else than named tensors is refused."""
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(TrainingError, match="no table of named tensors"):
        read_weights(tmp_path / "a.pth")


def test_missing_files_and_folders_that_are_no_bundle(tmp_path):
    """What is not there is said, and what would be accepted."""
    with pytest.raises(TrainingError, match="no weights at"):
        build(NAME, weights=tmp_path / "nothing.pth")
    with pytest.raises(BundleError):
        build(NAME, weights=tmp_path)


def test_missing_weights_are_known_without_reading(tmp_path):
    """What `weights_file` would refuse, and nothing else; an address is not asked."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    (tmp_path / "a.pth").write_bytes(b"")

    assert missing_weights("default") is None
    assert missing_weights(tmp_path / "a.pth") is None
    assert missing_weights("http://127.0.0.1:9/weights.pth") is None
    assert missing_weights(tmp_path / "b.pth").startswith(f"no weights at {tmp_path / 'b.pth'}: give a")
    assert missing_weights(tmp_path).startswith(f"folder {tmp_path} has no weights.safetensors")
    assert missing_weights(tmp_path / "bundle").startswith(f"bundle {tmp_path / 'bundle'} has no weights")


def test_the_bundle_that_ships_is_a_base():
    """A bundle folder, or "default", gives the features its graph computes; its last layer is left out."""
    network = build("shufflenet_v2_x1_0", weights="default").eval()
    encoder = Encoder.default(precision="fp32")
    head = load_file(default_path() / "weights.safetensors")
    pictures = np.random.default_rng(0).integers(0, 256, (2, *encoder.bundle.preprocessing.size, 3), dtype=np.uint8)
    x = torch.from_numpy(encoder.bundle.preprocessing.normalise(pictures))
    with torch.no_grad():
        pooled = network.features(x).mean((2, 3))
    rows = torch.nn.functional.linear(pooled, head["head.weight"].float(), head["head.bias"].float())
    expected = np.stack([seen.vector for seen in encoder.stream(list(pictures), lambda pixels: pixels)])
    np.testing.assert_allclose(torch.nn.functional.normalize(rows).numpy(), expected, atol=1e-3)
    assert set(network.report.dropped) == {"head.weight", "head.bias"}
    assert weights_file(default_path()) == weights_file("default")


# ── from elsewhere ───────────────────────────────────────────────────────────────────────────────────────────────────


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, counts what it is asked for, and writes nothing on the terminal."""

    asked: list[str] = []  # noqa: RUF012  # shared by all handlers of a test on purpose

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder and the address on this machine under which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    Quiet.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_is_fetched_once(site, tmp_path):
    """Weights come over HTTP into the cache folder, and from there the second time."""
    folder, address = site
    original = build(NAME, seed=5)
    saved(original, folder / "weights.safetensors")
    for _ in range(2):
        network = build(NAME, weights=f"{address}/weights.safetensors", cache=tmp_path / "cache")

        assert same_features(network, original)
    assert Quiet.asked == ["/weights.safetensors"]


def test_a_hash_in_the_name_is_checked(site, tmp_path):
    """PyTorch's way of naming: name-<first digits of SHA-256>.pth; other content is refused and not kept."""
    folder, address = site
    saved(build(NAME), folder / "weights-00000000.pth")
    with pytest.raises(TrainingError, match="hash"):
        build(NAME, weights=f"{address}/weights-00000000.pth", cache=tmp_path / "cache")

    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("name", ["nothing.pth", "page.pth"])
def test_what_cannot_be_fetched_is_not_kept(site, tmp_path, name):
    """A page that is not there, or is no file of weights, is said with its address; the cache stays clean."""
    folder, address = site
    (folder / "page.pth").write_text("<html>come back later</html>")
    with pytest.raises(TrainingError):
        build(NAME, weights=f"{address}/{name}", cache=tmp_path / "cache")

    assert not list((tmp_path / "cache").iterdir())


def test_an_address_where_nobody_listens(tmp_path):
    """A refused connection is the user's to cure."""
    with pytest.raises(TrainingError, match="cannot be fetched"):
        build(NAME, weights="http://127.0.0.1:9/weights.pth", cache=tmp_path)


@pytest.mark.parametrize("name", ["small", "shufflenet_v1", "mobilenet_v2_tf"])
def test_networks_nobody_publishes(name):
    """ "hub" is refused where torchvision has no weights, with what to give instead."""
    with pytest.raises(TrainingError, match='no weights "hub"'):
        build(name, weights="hub")


@pytest.mark.parametrize("name", [NAME, "torchvision:squeezenet1_1"])
def test_the_hub_is_torchvisions(name, monkeypatch):
    """ "hub" takes what torchvision's own loader gives for the first version of its weights."""
    import torchvision

    plain = name.removeprefix("torchvision:")
    original, real, asked = build(name, classes=1000, seed=5), torchvision.models.get_model, []

    def get_model(model: str, *, weights: object = None, **settings: object) -> torch.nn.Module:
        if weights is None:
            return real(model, weights=None, **{k: v for k, v in settings.items() if k != "progress"})
        asked.append((model, weights.name))
        return original.published()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)

    assert same_features(build(name, weights="hub"), original)
    assert asked == [(plain, "IMAGENET1K_V1")]


# ── real weights, where they are ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def weights_folder() -> Path:
    """The folder of base weights, named by the environment variable LOOKALIKE_WEIGHTS."""
    folder = os.environ.get("LOOKALIKE_WEIGHTS")
    if not folder or not (Path(folder) / "mobilenet_v2_tf.safetensors").is_file():
        pytest.skip("needs LOOKALIKE_WEIGHTS: a folder with mobilenet_v2_tf.safetensors")
    return Path(folder)


def one_shot(name: str, weights: Path, photographs: list[Path]) -> tuple[float, torch.Tensor]:
    """Share of photographs whose mirrored, enlarged middle finds them first, and the features."""
    from PIL import Image, ImageOps

    from lookalike.images import Preprocessing
    from lookalike.training.networks import defaults

    network = build(name, weights=weights).eval()
    preparation = Preprocessing(**{**defaults(name), "size": (128, 128)})
    pictures = []
    for path in photographs:
        picture = Image.open(path).convert("RGB")
        width, height = picture.size
        middle = picture.crop((width // 6, height // 6, 5 * width // 6, 5 * height // 6))
        pictures += [np.asarray(preparation.fitted(one)) for one in (picture, ImageOps.mirror(middle))]
    with torch.no_grad():
        rows = network.features(torch.from_numpy(preparation.normalise(np.stack(pictures)))).mean((2, 3))
    labels = np.repeat(np.arange(len(photographs)), 2)
    return float(np.nanmean(metrics.recall_at_k(rows.numpy(), labels))), rows


def test_mobilenet_v2_tf_with_its_weights(weights_folder, photographs):
    """With TensorFlow's padding its features find most altered photographs, and are not those of torchvision's."""
    path = weights_folder / "mobilenet_v2_tf.safetensors"
    share, rows = one_shot("mobilenet_v2_tf", path, photographs)
    torch_padded = build("torchvision:mobilenet_v2", weights=path).eval()

    assert share >= 0.8
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        ours = build("mobilenet_v2_tf", weights=path).eval().features(x)
        assert (torch_padded.features(x) - ours).abs().max() > 0.1
    assert rows.isfinite().all()
