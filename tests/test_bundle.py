"""The bundle: verified when loaded, written whole or not at all."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lookalike.bundle import Bundle, default_path, write_bundle
from lookalike.encoder import Encoder
from lookalike.errors import BundleError
from lookalike.rerank import Reranking

TINY = Path(__file__).parent / "data" / "tiny"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(changes)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_the_default_bundle_is_whole_small_and_described() -> None:
    """The bundle in the package verifies, stays under 6 MB, and its manifest names what a reader needs."""
    bundle = Bundle.load(default_path())

    size = sum(path.stat().st_size for path in default_path().iterdir())
    assert size <= 6_000_000
    assert {"recipe", "data", "metrics", "thresholds", "licence"} <= set(bundle.manifest)
    assert {"image.onnx", "weights.safetensors", "README.md"} <= set(bundle.manifest["files"])


def test_a_zip_encodes_like_its_folder(tmp_path: Path, photographs: list[Path]) -> None:
    """A zipped bundle, with or without a top folder, gives the same vectors and the same fingerprint."""
    flat, nested = tmp_path / "flat.zip", tmp_path / "nested.zip"
    for archive, prefix in ((flat, ""), (nested, "my-bundle/")):
        with zipfile.ZipFile(archive, "w") as file:
            for path in TINY.iterdir():
                file.write(path, prefix + path.name)
    folder = Encoder.load(TINY)

    for archive in (flat, nested):
        zipped = Encoder.load(archive)
        assert zipped.fingerprint == folder.fingerprint
        np.testing.assert_array_equal(zipped.images(photographs[:2]), folder.images(photographs[:2]))


def test_an_altered_file_is_refused(copy: Path) -> None:
    """One flipped bit in the graph is an error that names the file."""
    data = bytearray((copy / "image.onnx").read_bytes())
    data[100] ^= 1
    (copy / "image.onnx").write_bytes(data)

    with pytest.raises(BundleError, match=r"image\.onnx is not what was written"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "upgrade lookalike"),
        ({"schema": "1"}, "malformed"),
        ({"dim": 0}, "malformed"),
        ({"dim": "48"}, "malformed"),
        ({"image": {}}, "malformed"),
        ({"image": {"graph": "image.onnx", "size": [32, 32], "colour": "bgr"}}, "malformed"),
        ({"image": {"graph": "image.onnx", "size": [0, 32]}}, "size must be"),
        ({"image": {"graph": "other.onnx", "size": [32, 32]}}, "not among the files"),
        ({"search": {"expansion": -1}}, "search: expansion must be"),
        ({"search": {"k1": 20, "lambda": 0.3}}, "search: .* got lambda"),
        ({"search": [20, 6]}, "search: .* must be an object"),
        ({"search": False}, "search: .* must be an object"),
        ({"files": {"../image.onnx": {"sha256": "0"}}}, "malformed"),
        ({"files": []}, "malformed"),
    ],
)
def test_a_malformed_manifest_is_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    """Every manifest that is not ours is an error that says what is wrong."""
    edit(copy, **changes)

    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


def test_a_bundle_may_say_how_to_re_rank(copy: Path) -> None:
    """Without a word nothing is re-ranked, as in bundles before it; with one, what is missing has its default."""
    assert not Bundle.load(copy).reranking
    edit(copy, search=None)
    assert not Bundle.load(copy).reranking
    edit(copy, search={"expansion": 5, "k1": 20})

    assert Bundle.load(copy).reranking == Reranking(expansion=5, alpha=3.0, k1=20, k2=6, weight=0.3)
    assert Bundle.load(copy).fingerprint == Bundle.load(TINY).fingerprint


def test_what_is_not_a_bundle_says_so(tmp_path: Path) -> None:
    """A missing place, an empty folder, a text file, a text file called .zip, a missing member: all BundleError."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "text").write_text("hello")
    half = Path(shutil.copytree(TINY, tmp_path / "half"))
    (half / "image.onnx").unlink()
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "manifest.json").write_bytes(b"\xff\xfe")

    for name in ("missing", "empty", "text.zip", "text", "half", "json"):
        with pytest.raises(BundleError, match=name):
            Bundle.load(tmp_path / name)


def test_a_graph_that_cannot_run_is_a_bundle_error(copy: Path, photographs: list[Path]) -> None:
    """A graph with a right hash and wrong content fails with the bundle's name, not with a stack of C++."""
    manifest = {
        k: v for k, v in json.loads((copy / "manifest.json").read_text()).items() if k not in ("files", "schema")
    }
    broken = write_bundle(copy.parent / "broken", manifest, {"image.onnx": b"not a graph", "README.md": b""})

    with pytest.raises(BundleError, match="cannot be run"):
        Encoder(broken).images(photographs[:1])


def test_the_fingerprint_follows_the_vectors_not_the_card(copy: Path) -> None:
    """Another card or licence keeps the fingerprint; another preprocessing or graph changes it."""
    manifest = {
        k: v for k, v in json.loads((copy / "manifest.json").read_text()).items() if k not in ("files", "schema")
    }
    files = {"image.onnx": copy / "image.onnx", "README.md": b"another card"}
    original = Bundle.load(copy)

    card = write_bundle(copy.parent / "card", {**manifest, "licence": "MIT"}, files)
    other = write_bundle(copy.parent / "other", {**manifest, "image": {**manifest["image"], "fit": "pad"}}, files)

    assert card.fingerprint == original.fingerprint
    assert other.fingerprint != original.fingerprint


def test_writing_never_destroys_what_is_there(copy: Path, tmp_path: Path) -> None:
    """A folder with other content is refused, a bundle is replaced only by a valid one, nothing is left behind."""
    manifest = {
        k: v for k, v in json.loads((copy / "manifest.json").read_text()).items() if k not in ("files", "schema")
    }
    files = {"image.onnx": copy / "image.onnx"}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    before = sorted(tmp_path.iterdir())

    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(tmp_path / "photos", manifest, files)
    with pytest.raises(BundleError, match="malformed"):
        write_bundle(copy, {**manifest, "dim": -1}, files)

    assert Bundle.load(copy).dim == 48
    assert sorted(tmp_path.iterdir()) == before
