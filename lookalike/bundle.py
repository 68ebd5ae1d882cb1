"""The encoder bundle: a folder (or a .zip of it) with everything needed to encode, on any machine, without PyTorch.

::

    manifest.json          schema, name, dim, preprocessing, recipe, data, metrics, thresholds, licence, hashes; and,
                           if wanted, how a search re-ranks what it finds
    image.onnx             pixels (n, 3, height, width) float32, normalised → vectors (n, dim) float32
    weights.safetensors    the parameters under their training names; image.onnx may refer to them instead of
                           holding a second copy (ONNX external data)
    text.onnx              optional: ids (n, m) int64 → vectors (n, dim) float32 in the space of the pictures'
    vocabulary.json        with it: how words become ids (`lookalike.text`)
    README.md              the model card

`Bundle.load` checks the schema and every hash before anything is used; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from lookalike.errors import BundleError
from lookalike.images import Preprocessing
from lookalike.rerank import Reranking
from lookalike.text import Vocabulary, vocabulary_from_document

SCHEMA = 1
MANIFEST = "manifest.json"

__all__ = ["SCHEMA", "Bundle", "default_path", "write_bundle"]


def default_path() -> Path:
    """The folder of the bundle that ships in the package."""
    return Path(__file__).parent / "models" / "default"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    Attributes:
        path: the folder or zip file it was loaded from.
        manifest: the parsed manifest.json.
        dim: length of the vectors it makes.
        preprocessing: how pictures become pixels.
    """

    path: Path
    manifest: Mapping[str, Any]
    dim: int
    preprocessing: Preprocessing

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and verify a bundle folder or zip.

        Raises:
            BundleError: missing, not a bundle, written by a newer schema, incomplete, or a file whose hash differs.
        """
        path = Path(path)
        if not path.exists():
            raise BundleError(f"no bundle at {path}: give the folder (or .zip) that holds {MANIFEST}")
        try:
            with _Files(path) as files:
                bundle = cls._parse(path, files.read(MANIFEST))
                for name, entry in bundle.manifest["files"].items():
                    actual = files.sha256(name)
                    if actual != entry["sha256"]:
                        raise BundleError(
                            f"bundle {path}: {name} is not what was written (SHA-256 {actual[:12]}…, "
                            f"manifest says {entry['sha256'][:12]}…): copy or export the bundle again"
                        )
        except (OSError, zipfile.BadZipFile) as error:
            raise BundleError(f"bundle {path} cannot be read: {error}") from error
        return bundle

    @classmethod
    def _parse(cls, path: Path, text: bytes) -> Bundle:
        try:
            manifest = json.loads(text)
            schema = manifest["schema"]
            if isinstance(schema, int) and schema > SCHEMA:
                raise BundleError(
                    f"bundle {path} has schema {schema}, this version reads up to {SCHEMA}: upgrade lookalike"
                )
            image = dict(manifest["image"])
            graph = image.pop("graph")
            dim = manifest["dim"]
            if schema != SCHEMA or not isinstance(dim, int) or dim < 1 or not isinstance(manifest["name"], str):
                raise ValueError("schema, dim or name is not what it should be")
            for name, entry in manifest["files"].items():
                if not isinstance(entry["sha256"], str) or PurePosixPath(name).name != name or name.startswith("."):
                    raise ValueError(f"file entry {name!r}")
            if graph not in manifest["files"]:
                raise ValueError(f"graph {graph!r} is not among the files")
            words = manifest.get("text")
            for part in ("graph", "vocabulary") if words is not None else ():
                if words[part] not in manifest["files"]:
                    raise ValueError(f"{part} of text {words[part]!r} is not among the files")
            bundle = cls(path, manifest, dim, Preprocessing.from_document(image))
            try:
                _ = bundle.reranking
            except ValueError as error:
                raise ValueError(f"search: {error}") from error
            return bundle
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"bundle {path}: {MANIFEST} is malformed ({type(error).__name__}: {error})") from error

    @property
    def name(self) -> str:
        """Name and version, for people: "lookalike-default 1"."""
        return f"{self.manifest['name']} {self.manifest.get('version', '')}".strip()

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when the vectors would: graph, weights, preprocessing.

        The card, the metrics, how a search re-ranks, and the place on disk do not count.
        """
        files = self.manifest["files"]
        parts = {name: entry["sha256"] for name, entry in files.items() if not name.endswith(".md")}
        text = json.dumps([parts, self.manifest["image"], self.dim], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def reranking(self) -> Reranking:
        """How a search with this encoder goes on after its first ranking: "search" in the manifest, off without it."""
        document = self.manifest.get("search")
        return Reranking() if document is None else Reranking.from_document(document)

    @property
    def has_text(self) -> bool:
        """Whether it encodes words, too."""
        return self.manifest.get("text") is not None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """How words become ids.

        Raises:
            BundleError: it has no text tower (`has_text`), or the vocabulary is malformed.
        """
        if not self.has_text:
            raise BundleError(f"bundle {self.path} has no text tower")
        name = self.manifest["text"]["vocabulary"]
        with _Files(self.path) as files:
            content = files.read(name)
        try:
            return vocabulary_from_document(json.loads(content))
        except (TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"bundle {self.path}: {name} is malformed ({error})") from error

    def graph_folder(self, scratch: Path) -> Path:
        """A folder that holds the graph and what it refers to: the bundle's own, or `scratch` with a zip unpacked."""
        if self.path.is_dir():
            return self.path
        with _Files(self.path) as files:
            for name in self.manifest["files"]:
                (scratch / name).write_bytes(files.read(name))
        return scratch


class _Files:
    """Read-only access to the files of a folder or of a zip, by name; a zip may hold them in one top folder."""

    def __init__(self, path: Path) -> None:
        self._folder = path
        self._zip = None if path.is_dir() else zipfile.ZipFile(path)
        self._prefix = ""
        if self._zip is not None:
            manifests = [n for n in self._zip.namelist() if PurePosixPath(n).name == MANIFEST]
            if len(manifests) != 1:
                self._zip.close()
                raise BundleError(f"bundle {path} holds {len(manifests)} files called {MANIFEST}, not one")
            self._prefix = manifests[0][: -len(MANIFEST)]

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def read(self, name: str) -> bytes:
        try:
            if self._zip is None:
                return (self._folder / name).read_bytes()
            return self._zip.read(self._prefix + name)
        except (FileNotFoundError, NotADirectoryError, KeyError) as error:
            raise BundleError(f"bundle {self._folder} has no {name}: it is incomplete or not a bundle") from error

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.read(name)).hexdigest()


def write_bundle(
    path: str | os.PathLike[str], manifest: Mapping[str, Any], files: Mapping[str, bytes | Path]
) -> Bundle:
    """Write a bundle folder, whole or not at all, and load it back.

    Args:
        path: the folder to make; an existing bundle there is replaced, any other existing folder is refused.
        manifest: everything but "schema" and "files", which are filled in here.
        files: name → content, or a file to copy. "image.onnx" and "README.md" are expected.

    Raises:
        BundleError: the manifest is not valid, or `path` is taken by something else.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file() and any(path.iterdir()):
        raise BundleError(f"{path} exists and is not a bundle: choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".bundle-", dir=path.parent))
    try:
        entries = {}
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            (scratch / name).write_bytes(data)
            entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        document = {"schema": SCHEMA, **manifest, "files": entries}
        (scratch / MANIFEST).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        Bundle.load(scratch)
        scratch.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Bundle.load(path)
