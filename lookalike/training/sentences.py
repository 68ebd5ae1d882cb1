"""Sentence-transformers models at rest: what they make of texts, computed once, and the graph that a bundle serves.

A model reads texts as its own library does (Reimers and Gurevych 2019, "Sentence-BERT"), and learns nothing here. What
a bundle will carry of it, tokenizer and network, must give the same vectors: that is tried before anything is trained.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lookalike.errors import CheckpointError, ConfigError, MissingExtra
from lookalike.images import shown
from lookalike.text import Subwords
from lookalike.training.networks.embedding import unit_rows
from lookalike.training.teacher import kept
from lookalike.vectors import Vectors, unit

# Ids of one text are never more, whatever a model could read: captions are short, and memory is bounded.
LONGEST_ROW = 2048
# Texts at a time.
BATCH = 64
# Phrases whose vectors a run notes.
NOTED = 3
# Library and graph must agree as well as this, in PyTorch.
AGREE = 0.9999
# What a text tower is asked where nothing else is known: several scripts, nothing, and more than it can read.
PHRASES = (
    "a photo of a dog",
    "two children playing in the snow",
    "Red running shoes, size 42!",
    "красные кроссовки для бега",
    "giày chạy bộ màu đỏ",
    "tênis de corrida vermelhos",
    "红色跑鞋",
    "👟 🏃‍♀️",
    "",
    "word " * 400,
)

__all__ = ["PHRASES", "SentenceGraph", "Sentences"]


class SentenceGraph(nn.Module):
    """A model as a bundle serves it: ids to unit rows, in operations that ONNX has.

    Args:
        model: the `SentenceTransformer`.
        padding: the id that it takes for filling.
        typed: whether it takes types of tokens, which are all 0 for one sentence.
    """

    def __init__(self, model: nn.Module, padding: int, typed: bool) -> None:
        super().__init__()
        self.model, self._padding, self._typed = model, padding, typed

    def forward(self, ids: Tensor) -> Tensor:
        """(n, m) int64, negative where a row is filled up → (n, dim), unit rows; zeros for a text without ids."""
        there = ids >= 0
        ids = torch.where(there, ids, self._padding)
        bag = getattr(self.model[0], "embedding", None)
        if isinstance(bag, nn.EmbeddingBag):  # static embeddings: their mean, whose own operation ONNX lacks
            shares = there / there.sum(dim=1, keepdim=True).clamp(min=1)
            features = {"sentence_embedding": (functional.embedding(ids, bag.weight) * shares[:, :, None]).sum(dim=1)}
            for module in list(self.model)[1:]:
                features = module(features)
        else:
            features = {"input_ids": ids, "attention_mask": there.to(torch.int64)}
            if self._typed:
                features["token_type_ids"] = torch.zeros_like(ids)
            features = self.model(features)
        rows = unit_rows(features["sentence_embedding"][:, : self.model.truncate_dim])
        return torch.where(there.any(dim=1, keepdim=True), rows, 0.0)


@dataclass(frozen=True)
class Sentences:
    """A model at rest.

    Attributes:
        name: of its folder, or on the hub.
        model: the `SentenceTransformer`, in float32.
        vocabulary: its tokenizer.
        dim: length of its vectors.
        fingerprint: 16 hexadecimal digits that change when the vectors would; so they may with the library's version.
    """

    name: str
    model: Any
    vocabulary: Subwords
    dim: int
    fingerprint: str

    @classmethod
    def load(cls, source: str, prefix: str | None = None, device: str = "cpu") -> Sentences:
        """A model from disk or from the hub.

        Args:
            source: a folder as ``SentenceTransformer.save`` writes it, or a name on the Hugging Face hub, from which
                it is downloaded unless it lies in the cache.
            prefix: put before each text; by default what the model itself says its texts shall begin with.
            device: where it computes.

        Raises:
            MissingExtra: sentence-transformers is not installed.
            ConfigError: no such model, or one that reads texts in a way that cannot be carried over.
        """
        model = _opened(source, device)
        prefix = _prefix(model, prefix)
        vocabulary = _vocabulary(model, prefix, source)
        digest = hashlib.sha256(f"{model}\0{vocabulary.to_document()}\0{model.truncate_dim}".encode())
        for name, value in model.state_dict().items():
            digest.update(f"\0{name}{tuple(value.shape)}".encode() + value.contiguous().cpu().numpy().tobytes())
        try:
            dim = _read(model, vocabulary, PHRASES[:1]).shape[1]
        except Exception as error:  # whatever its modules raise where they do not go together
            raise ConfigError([f"sentences.model: {shown(source)} cannot read texts ({_line(error)})"]) from error
        name = Path(source).resolve().name if Path(source).is_dir() else source
        return cls(name, model, vocabulary, dim, digest.hexdigest()[:16])

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) float32, unit rows, as the library gives them; zeros for a text in which there is nothing to read.

        Texts are read as far as the vocabulary reads them.
        """
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        full = [place for place, text in enumerate(texts) if self.vocabulary.ids(text)]
        if full:
            rows[full] = _read(self.model, self.vocabulary, [texts[place] for place in full])
        return rows

    def to_document(self) -> dict[str, Any]:
        """What a run notes of it, as JSON: its name, and what it makes of a few phrases."""
        vectors = [[round(float(number), 5) for number in row] for row in self(PHRASES[:NOTED])]
        return {"name": self.name, "fingerprint": self.fingerprint, "vectors": vectors}

    def check(self, noted: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless it gives the vectors that a run noted."""
        theirs, ours = np.array(noted["vectors"], dtype=np.float32), self(PHRASES[:NOTED])
        lowest = float((unit(theirs) * ours).sum(1).min()) if theirs.shape == ours.shape else math.nan
        if not lowest >= AGREE:
            raise CheckpointError(
                f"the run was trained with the sentence model {noted['name']} ({noted['fingerprint']}), and "
                f"{self.name} ({self.fingerprint}) gives other vectors: bring that one back, or train into another "
                "folder"
            )

    def once(self, texts: Sequence[str], folder: Path, say: Callable[[str], None]) -> Vectors:
        """As a call, computed once and then read from the folder, in half precision.

        Raises:
            TrainingError: the vectors cannot be written.
        """
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()[:24]

        def read() -> Vectors:
            say(f"{self.name} reads {len(texts):,} texts, once")
            return self(texts)

        return kept(folder / f"sentences-{self.fingerprint}-{digest}.npy", (len(texts), self.dim), self.name, read)

    def graph(self) -> SentenceGraph:
        """The model as a bundle serves it. Raises ConfigError where that gives other vectors than the library."""
        reader = self.model.tokenizer
        padding = getattr(reader, "pad_token_id", None)
        typed = "token_type_ids" in getattr(reader, "model_input_names", ())
        graph = SentenceGraph(self.model, 0 if padding is None else int(padding), typed).eval()
        refused = f"sentences.model: {self.name} cannot become a text tower"
        try:
            with torch.inference_mode():
                ids = torch.from_numpy(self.vocabulary(PHRASES)).to(next(self.model.parameters()).device)
                ours = graph(ids).cpu().numpy()
        except Exception as error:  # whatever a model of another make raises
            raise ConfigError([f'{refused} ({_line(error)}); it can be a teacher: text.tower = "hashing"']) from error
        asked = [place for place, row in enumerate(ids.cpu()) if (row >= 0).any()]
        lowest = float((ours * self(PHRASES)).sum(1)[asked].min())
        if not lowest >= AGREE:
            raise ConfigError(
                [f"{refused}: what a bundle carries of it gives other vectors (lowest cosine {lowest:.4f}); "
                 'it can be a teacher: text.tower = "hashing"']
            )  # fmt: skip
        return graph


def _read(model: Any, vocabulary: Subwords, texts: Sequence[str]) -> Vectors:
    given = [vocabulary.readable(text) for text in texts]
    rows = model.encode(given, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True)
    found: Vectors = unit_rows(rows).cpu().numpy()
    return found


def _opened(source: str, device: str) -> Any:
    """The model, in float32, evaluating, with no gradients."""
    place = Path(source)
    if place.is_dir() and not (place / "modules.json").is_file():
        raise ConfigError(
            [f"sentences.model: {shown(source)} holds no modules.json: give the folder that SentenceTransformer.save "
             "wrote"]
        )  # fmt: skip
    if not place.is_dir() and (place.is_absolute() or place.exists() or source.startswith(".") or len(place.parts) > 2):
        raise ConfigError([f"sentences.model: there is no folder {shown(source)}"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own dealings
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtra("reading sentences", "sentence-transformers", "sentences") from error
        try:
            # Attention is written out, since its fused forms cannot always be put into a graph.
            model = SentenceTransformer(
                source,
                device=device,
                local_files_only=place.is_dir(),
                model_kwargs={"attn_implementation": "eager"},
            )
        except Exception as error:  # of three libraries, a network and a disk
            raise ConfigError([f"sentences.model: {shown(source)} cannot be read ({_line(error)})"]) from error
    return model.float().eval().requires_grad_(False)


def _prefix(model: Any, prefix: str | None) -> str:
    """What is put before texts; from here on the model itself puts nothing there."""
    own = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
    model.default_prompt_name = None
    told = (own or "") if prefix is None else prefix
    if told and not all(getattr(module, "include_prompt", True) for module in model):
        raise ConfigError(
            ["sentences.model: it leaves what stands before a text out of the mean, which is not supported here: "
             'set sentences.prefix = ""']
        )  # fmt: skip
    return told


def _vocabulary(model: Any, prefix: str, source: str) -> Subwords:
    """Its tokenizer, and how much of a text it reads."""
    reader = model.tokenizer
    static = isinstance(getattr(model[0], "embedding", None), nn.EmbeddingBag)
    inner = reader if static else getattr(reader, "backend_tokenizer", None)
    if inner is None or not hasattr(inner, "to_str"):
        raise ConfigError(
            [f"sentences.model: {shown(source)} reads texts by a {type(reader).__name__}: only tokenizers of the "
             "library tokenizers can be carried over"]
        )  # fmt: skip
    longest = model.max_seq_length
    length = LONGEST_ROW if longest is None or longest > LONGEST_ROW else int(longest)
    if static:
        inner.enable_truncation(length)
    else:
        model.max_seq_length = length
        inner.enable_truncation(length, direction=reader.truncation_side)
    return Subwords(inner.to_str(), length, prefix, marks=not static)


def _line(error: Exception) -> str:
    """The first line of what went wrong."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
