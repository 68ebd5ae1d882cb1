"""Bundles that know words: of a run of two towers, or of CLIP-like models by open_clip and transformers.

Both towers are compared, through everything that serving does, with the networks they come from: pictures and texts.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import helper
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from lookalike.bundle import Bundle, default_path, write_bundle
from lookalike.encoder import Encoder
from lookalike.errors import CheckpointError, ConfigError, ExportError, MissingExtra
from lookalike.images import Fit, Picture, Preprocessing
from lookalike.text import BytePairs, Vocabulary
from lookalike.training.checkpoints import load_checkpoint
from lookalike.training.config import TrainConfig, read_config
from lookalike.training.export import (
    GRAPH,
    LOWEST_COSINE,
    WEIGHTS,
    drawn,
    in_onnx,
    listed_pictures,
    refer,
    stored,
    surroundings,
    without_places,
)
from lookalike.training.networks import EmbeddingNetwork, Serving
from lookalike.training.networks.embedding import unit_rows
from lookalike.training.networks.text import Projection, Towers
from lookalike.training.sentences import PHRASES, SentenceGraph, Sentences
from lookalike.training.towers import build_towers, rebuilt, sentences_of
from lookalike.vectors import Vectors

TEXT_GRAPH, TEXT_WEIGHTS, VOCABULARY = "text.onnx", "text.safetensors", "vocabulary.json"
# What the libraries call the ways of fitting, and Pillow's numbers of filters.
_FITS: dict[Any, Fit] = {"shortest": "crop", "longest": "pad", "squash": "squash"}
_FILTERS: dict[Any, Literal["bilinear", "bicubic", "lanczos"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}

__all__ = ["export_clip", "export_towers", "is_clip", "is_towers"]


def is_towers(run: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run of two towers."""
    config = Path(run) / "config.toml"
    return config.is_file() and read_config(config, to_run=False).text.captions


def is_clip(source: str) -> bool:
    """Whether a source is one for `export_clip`."""
    return source.startswith(("open_clip:", "transformers:"))


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Text(nn.Module):
    """The text tower in operations that ONNX has, behind the sentence model where there is one."""

    def __init__(self, text: nn.Module, sentences: SentenceGraph | None) -> None:
        super().__init__()
        self.text, self.sentences = text, sentences

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.text.served(ids) if self.sentences is None else self.text(self.sentences(ids))
        return rows


class _Pictures(Serving):
    """An encoder that has learned, and the projection behind it."""

    def __init__(self, network: EmbeddingNetwork, projection: Projection) -> None:
        super().__init__(network)
        self.projection = projection

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) normalised pixels → (n, dim)."""
        rows: Tensor = self.projection(unit_rows(super().forward(pixels)))
        return rows


def export_towers(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Write the towers that a run kept as a bundle: the encoder with its projection as one graph, and the text tower.

    Args:
        run: the run folder, complete or stopped.
        to: the bundle folder; an older bundle there is replaced.
        pictures: what to check the graph with; by default pictures of the run.

    Raises:
        CheckpointError: no run, nothing kept in it yet, or another sentence model than it was trained with.
        ExportError: a graph and its network disagree, or there can be no graph.
        BundleError: the run's encoder is not there any more, or `to` is taken by something else.
    """
    place = Path(run)
    if not (place / "best.pt").exists():
        raise CheckpointError(f"{place} has no checkpoint yet: run the training, then export")
    config = read_config(place / "config.toml", to_run=False)
    kept = load_checkpoint(place / "best.pt")
    data = json.loads((place / "data.json").read_text(encoding="utf-8"))
    report = json.loads(held.read_text(encoding="utf-8")) if (held := place / "report.json").exists() else None
    origin = Bundle.load(default_path() if config.text.encoder == "default" else config.text.encoder)
    sentences = sentences_of(config) if config.text.tower == "sentences" else None
    if sentences is not None:
        sentences.check(data["sentences"])
    vocabulary, towers = build_towers(config, origin.dim, sentences)
    inside = {name: value for name, value in kept["learner"].items() if name.startswith("towers.")}
    towers.load_state_dict({name.removeprefix("towers."): value for name, value in inside.items()})
    towers.eval()
    samples = listed_pictures(pictures) if pictures is not None else data["samples"]["pictures"]
    with tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
        folder = origin.graph_folder(Path(scratch))
        files = _text_files(towers, vocabulary, sentences)
        network = None
        if kept["awake"]:
            network = rebuilt(origin, samples[:8])
            own = {n.removeprefix("network."): v for n, v in kept["learner"].items() if n.startswith("network.")}
            network.load_state_dict(own)
            network.eval()
            files |= _learned_graph(network, towers, files[TEXT_WEIGHTS], origin.preprocessing.size)
        else:
            spared = {origin.manifest["image"]["graph"], "README.md", *files}
            files |= {name: folder / name for name in origin.manifest["files"] if name not in spared}
            files[GRAPH] = _with_projection(folder / origin.manifest["image"]["graph"], towers, files[TEXT_WEIGHTS])
        manifest = _manifest(config, origin, data, report, kept["step"], network is not None)
        texts = [*data["samples"]["texts"], *PHRASES]
        return _written(
            to, manifest, files, lambda encoder: _compared(encoder, origin, network, towers, sentences, samples, texts)
        )


def _text_files(towers: Towers, vocabulary: Vocabulary, sentences: Sentences | None) -> dict[str, bytes | Path]:
    network = _Text(towers.text, None if sentences is None else sentences.graph()).eval()
    example = torch.from_numpy(vocabulary(PHRASES[:2]))
    try:
        graph = in_onnx(network, example, "ids", {0: "n", 1: "m"})
    except Exception as error:  # a sentence model may be anything, and the exporter says so in many ways
        if sentences is None:
            raise
        raise ExportError(
            f"the sentence model {sentences.name} cannot be written as an ONNX graph ({type(error).__name__}): take "
            'another, or let it teach the hashing tower, text.tower = "hashing"'
        ) from error
    # A sentence model has weights that its vectors do not need.
    needed = {tensor.name for tensor in graph.graph.initializer}
    weights = save(stored(towers) | {name: value for name, value in stored(network).items() if name in needed})
    refer(graph, weights, TEXT_WEIGHTS)
    return {TEXT_GRAPH: graph.SerializeToString(), TEXT_WEIGHTS: weights, VOCABULARY: _document(vocabulary)}


def _document(vocabulary: Vocabulary) -> bytes:
    return (json.dumps(vocabulary.to_document(), ensure_ascii=False) + "\n").encode()


def _learned_graph(
    network: EmbeddingNetwork, towers: Towers, text_weights: bytes | Path, size: tuple[int, int]
) -> dict[str, bytes | Path]:
    weights = save(stored(network))
    graph = in_onnx(_Pictures(network, towers.projection).eval(), torch.zeros(2, 3, *size), "pixels", {0: "n"})
    refer(graph, weights)
    assert isinstance(text_weights, bytes)
    refer(graph, text_weights, TEXT_WEIGHTS)
    return {GRAPH: graph.SerializeToString(), WEIGHTS: weights}


def _with_projection(graph: Path, towers: Towers, weights: bytes | Path) -> bytes:
    """An encoder's graph with the projection behind its first output; its weights stay where they are.

    Written node by node, since the graph may be of any opset.
    """
    model = onnx.load(graph, load_external_data=False)
    output = model.graph.output[0]
    inner = "encoder.vectors"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = inner if name == output.name else name
    layers = [(name, part) for name, part in towers.projection.layers.named_children() if isinstance(part, nn.Linear)]
    width = layers[0][1].in_features
    numbers = {
        "projection.widen": width**0.5,
        "projection.root2": 2**0.5,
        "projection.one": 1.0,
        "projection.half": 0.5,
    }
    for name, number in numbers.items():
        model.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [number]))
    nodes = [
        helper.make_node("LpNormalization", [inner], ["projection.unit"], axis=1, p=2),
        helper.make_node("Mul", ["projection.unit", "projection.widen"], ["projection.0"]),
    ]
    before = "projection.0"
    for number, (name, layer) in enumerate(layers):
        for part, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            whole = f"projection.layers.{name}.{part}"
            value = tensor.detach().float().numpy()
            model.graph.initializer.append(
                helper.make_tensor(whole, onnx.TensorProto.FLOAT, value.shape, value.tobytes(), raw=True)
            )
        after = f"projection.{number + 1}"
        given = [before, f"projection.layers.{name}.weight", f"projection.layers.{name}.bias"]
        nodes.append(helper.make_node("Gemm", given, [after], transB=1))
        before = after
        if number < len(layers) - 1:  # GELU, by its definition
            nodes += [
                helper.make_node("Div", [after, "projection.root2"], [f"{after}.scaled"]),
                helper.make_node("Erf", [f"{after}.scaled"], [f"{after}.erf"]),
                helper.make_node("Add", [f"{after}.erf", "projection.one"], [f"{after}.shifted"]),
                helper.make_node("Mul", [f"{after}.shifted", "projection.half"], [f"{after}.gate"]),
                helper.make_node("Mul", [after, f"{after}.gate"], [f"{after}.gelu"]),
            ]
            before = f"{after}.gelu"
    nodes.append(helper.make_node("LpNormalization", [before], [output.name], axis=1, p=2))
    model.graph.node.extend(nodes)
    first = output.type.tensor_type.shape.dim[0]
    rows = first.dim_param or "n"
    output.CopyFrom(
        helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, [rows, layers[-1][1].out_features])
    )
    assert isinstance(weights, bytes)
    refer(model, weights, TEXT_WEIGHTS)
    return bytes(model.SerializeToString())


def _compared(
    encoder: Encoder,
    origin: Bundle,
    network: EmbeddingNetwork | None,
    towers: Towers,
    sentences: Sentences | None,
    pictures: Sequence[Picture],
    texts: Sequence[str],
) -> tuple[Vectors, Vectors, Vectors, Vectors]:
    """Vectors of pictures and of texts, by the towers and by the bundle."""
    with torch.inference_mode():
        if network is None:
            seen = torch.from_numpy(Encoder(origin, precision="fp32").images(pictures, strict=True))
        else:
            how = origin.preprocessing
            pixels = [torch.from_numpy(how.normalise(how.load(picture)[None])) for picture in pictures]
            seen = unit_rows(torch.cat([Serving(network)(one) for one in pixels]))
        ours = towers.projection(seen).numpy()
        read = encoder.bundle.vocabulary(texts) if sentences is None else sentences(texts)
        words = towers.text(torch.from_numpy(read)).numpy()
    return ours, encoder.images(pictures, strict=True), words, encoder.texts(texts)


def _manifest(
    config: TrainConfig,
    origin: Bundle,
    data: Mapping[str, Any],
    report: Mapping[str, Any] | None,
    step: int,
    learned: bool,
) -> dict[str, Any]:
    ran = {"kept_step": step} | ({k: report[k] for k in ("steps", "minutes", "device", "precision")} if report else {})
    # An encoder that has learned has another graph: what else the manifest said of the old one need not hold.
    image = origin.preprocessing.to_document() if learned else dict(origin.manifest["image"])
    recipe = without_places(config)
    if "sentences" in data:
        recipe["sentences"]["fingerprint"] = data["sentences"]["fingerprint"]
    manifest = {
        "name": config.name,
        "recipe": {
            **recipe,
            "encoder": {"name": origin.name, "fingerprint": origin.fingerprint, "learned": learned},
            **ran,
            **surroundings(),
        },
        "data": {key: data[key] for key in ("fingerprint", "pictures", "texts", "pairs", "notes")},
        "metrics": report["verdict"] if report else None,
        "thresholds": {},
        "dim": config.text.dim,
        "image": {**image, "graph": GRAPH},
        "text": {"graph": TEXT_GRAPH, "vocabulary": VOCABULARY},
        "precision": {"weights": "float16", "vectors and statistics": "float32"},
    }
    return manifest | ({"licence": origin.manifest["licence"]} if "licence" in origin.manifest else {})


def _written(
    to: str | os.PathLike[str], manifest: dict[str, Any], files: Mapping[str, bytes | Path], compare: Any
) -> Bundle:
    """The bundle, if both of its graphs answer as the networks do. Raises ExportError."""
    with tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
        draft = write_bundle(Path(scratch) / "draft", manifest, {**files, "README.md": b""})
        ours, theirs, words, told = compare(Encoder(draft, precision="fp32"))
        manifest["check"] = {
            "lowest_cosine": _lowest("picture", ours, theirs),
            "pictures": len(ours),
            "lowest_cosine_of_texts": _lowest("text", words, told),
            "texts": len(words),
            "precision": "fp32",
        }
    return write_bundle(to, manifest, {**files, "README.md": _card(manifest).encode()})


def _lowest(what: str, ours: Vectors, theirs: Vectors) -> float:
    rows = ours.astype(np.float64)
    lowest = float(((rows / np.linalg.norm(rows, axis=1, keepdims=True)) * theirs).sum(1).min())
    if not lowest >= LOWEST_COSINE:
        raise ExportError(
            f"the exported {what} graph disagrees with the network: lowest cosine {lowest:.6f} over {len(ours)}, "
            f"{LOWEST_COSINE} is wanted; nothing was written"
        )
    return round(lowest, 7)


def _card(manifest: Mapping[str, Any]) -> str:
    """The model card."""
    recipe, check, verdict = manifest["recipe"], manifest["check"], manifest.get("metrics")
    lines = [
        f"# {manifest['name']}",
        "",
        f"Pictures and words to {manifest['dim']}-dimensional unit vectors of one space; the cosine says how well they "
        "fit.",
        "",
        f"- **Checked**: graphs against networks, {check['pictures']} pictures, lowest cosine "
        f"{check['lowest_cosine']}; {check['texts']} texts, {check['lowest_cosine_of_texts']}.",
        f"- **Made**: {recipe['date']}, {recipe['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())
        + ".",
    ]
    if "data" not in manifest:
        return "\n".join([*lines, f"- **From**: {recipe['network']}, weights: {recipe['weights']}.", ""])
    data, encoder = manifest["data"], recipe["encoder"]
    counts = ", ".join(f"{name} {count:,}" for name, count in data["pictures"].items())
    lines += [
        f"- **Picture tower**: {encoder['name']} (`{encoder['fingerprint']}`), "
        f"{'trained on' if encoder['learned'] else 'as it was'}, and a projection.",
        f"- **Text tower**: {_told_text(recipe)}.",
        f"- **Data**: {counts} pictures, {data['texts']:,} texts, {data['pairs']:,} pairs to learn from; fingerprint "
        f"`{data['fingerprint']}`. It knows the language and the things of these texts, and no others.",
        "",
        "## How good it is",
        "",
    ]
    if verdict is None:
        return "\n".join([*lines, "Not measured: the run had not ended.", ""])
    lines += [f"{verdict['text'][:1].upper()}{verdict['text'][1:]}.", "", "| measure | towers | base | difference |"]
    lines.append("|---|---|---|---|")
    for name, gap in verdict["differences"].items():
        cells = (verdict["ours"][name], verdict["theirs"][name], gap)
        shown = " | ".join(f"{c['mean']:.4f} [{c['low']:.4f}, {c['high']:.4f}]" for c in cells)
        lines.append(f"| {name} | {shown} |")
    return "\n".join([*lines, "", "95 % bootstrap intervals over pictures; differences are paired.", ""])


def _told_text(recipe: Mapping[str, Any]) -> str:
    """The text tower in words."""
    model, behind = recipe["sentences"]["model"], "a perceptron" if recipe["text"]["hidden"] else "a linear map"
    if recipe["text"]["tower"] == "sentences":
        return f"{model} of sentence-transformers as it was, which has a licence of its own, {behind}"
    read = f"hashed letter trigrams{' and words' if recipe['text']['words'] else ''}, the mean of their embeddings"
    return f"{read}, {behind}" + (f"; taught by {model} of sentence-transformers besides" if model else "")


# ── CLIP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Half(nn.Module):
    """One tower of a CLIP-like model: what goes in → unit rows."""

    def __init__(self, network: nn.Module, encode: str) -> None:
        super().__init__()
        self.network, self._encode = network, encode

    def forward(self, given: Tensor) -> Tensor:
        rows = getattr(self.network, self._encode)(given)
        return functional.normalize(rows, dim=1)


class _Transformers(nn.Module):
    """A CLIP of transformers under the calls of open_clip; its parameters keep their names."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection
        self.text_model, self.text_projection = model.text_model, model.text_projection

    def encode_image(self, pixels: Tensor) -> Tensor:
        rows: Tensor = self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)
        return rows

    def encode_text(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.text_projection(self.text_model(input_ids=ids).pooler_output)
        return rows


def export_clip(
    source: str,
    to: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    pictures: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Write a CLIP-like model, both towers, as a bundle.

    Args:
        source: ``open_clip:MODEL``, ``open_clip:MODEL/WEIGHTS`` (a tag of open_clip, which downloads it, or a file), or
            ``transformers:FOLDER`` (as ``save_pretrained`` of a CLIPModel and its tokenizer and image processor wrote).
        to: the bundle folder.
        weights: of an open_clip model, instead of in `source`; without any they are random, which the card says.
        pictures: what to check the graph with; by default drawn ones.

    Raises:
        MissingExtra: open_clip or transformers is not installed.
        ConfigError: no such model or folder, or a tokenizer other than CLIP's.
        ExportError, BundleError: as `export_towers`.
    """
    kind, _, name = source.partition(":")
    read = {"open_clip": _from_open_clip, "transformers": _from_transformers}[kind]
    network, vocabulary, preprocessing, facts = read(name, None if weights is None else os.fspath(weights))
    network = network.float().eval()
    tensors = save(stored(network))
    files: dict[str, bytes | Path] = {WEIGHTS: tensors, VOCABULARY: _document(vocabulary)}
    examples = {
        GRAPH: ("encode_image", torch.zeros(2, 3, *preprocessing.size), "pixels"),
        TEXT_GRAPH: ("encode_text", torch.from_numpy(vocabulary(PHRASES[:2])), "ids"),
    }
    halves = {}
    for file, (encode, example, takes) in examples.items():
        halves[file] = _Half(network, encode).eval()
        graph = in_onnx(halves[file], example, takes, {0: "n"})
        refer(graph, tensors)
        files[file] = graph.SerializeToString()
    with torch.inference_mode():
        dim = halves[TEXT_GRAPH](examples[TEXT_GRAPH][1]).shape[1]
    manifest = {
        "name": source.rsplit("/", 1)[-1] if kind == "transformers" else name.split("/")[0],
        "recipe": {**facts, **surroundings()},
        "dim": dim,
        "image": {"graph": GRAPH, **preprocessing.to_document()},
        "text": {"graph": TEXT_GRAPH, "vocabulary": VOCABULARY},
        "precision": {"weights": "float16", "vectors and statistics": "float32"},
    }
    shown = drawn() if pictures is None else listed_pictures(pictures)

    def compare(encoder: Encoder) -> tuple[Vectors, Vectors, Vectors, Vectors]:
        with torch.inference_mode():
            pixels = [torch.from_numpy(preprocessing.normalise(preprocessing.load(one)[None])) for one in shown]
            ours = torch.cat([halves[GRAPH](one) for one in pixels]).numpy()
            words = halves[TEXT_GRAPH](torch.from_numpy(vocabulary(PHRASES))).numpy()
        return ours, encoder.images(shown, strict=True), words, encoder.texts(PHRASES)

    return _written(to, manifest, files, compare)


def _from_open_clip(name: str, weights: str | None) -> tuple[nn.Module, BytePairs, Preprocessing, dict[str, Any]]:
    library = _library("open_clip", "open_clip_torch")
    model, _, tag = name.partition("/")
    if tag and weights is not None:
        raise ConfigError([f"weights are named twice, as {tag!r} and as {weights!r}: leave one out"])
    chosen = tag or weights
    if model not in library.list_models():
        raise ConfigError([f"open_clip knows no model {model!r}: it has {', '.join(library.list_models()[:8])}, …"])
    try:
        network = library.create_model(model, pretrained=chosen, load_weights=chosen is not None)
        tokenizer = library.get_tokenizer(model)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise ConfigError([f"open_clip cannot make {model} with weights {chosen}: {error}"]) from error
    if not hasattr(tokenizer, "bpe_ranks") or network.visual is None:
        raise ConfigError([f"{model} reads text by another tokenizer than CLIP's, which is the one supported here"])
    how = library.get_model_preprocess_cfg(network)
    side = how["size"]
    size = (side, side) if isinstance(side, int) else tuple(side)
    vocabulary = BytePairs(
        tuple(" ".join(pair) for pair in tokenizer.bpe_ranks), int(tokenizer.context_length or 77), 0, repair=True
    )
    _same_ids(vocabulary, lambda texts: tokenizer(list(texts)).numpy(), model)
    preprocessing = Preprocessing(
        size=size,
        fit=_FITS.get(how.get("resize_mode"), "crop"),
        crop_ratio=1.0,
        interpolation="bilinear" if how.get("interpolation") == "bilinear" else "bicubic",
        mean=tuple(how["mean"]),
        std=tuple(how["std"]),
    )
    facts = {"network": f"open_clip:{model}", "weights": _told(chosen)}
    return network, vocabulary, preprocessing, facts


def _from_transformers(name: str, weights: str | None) -> tuple[nn.Module, BytePairs, Preprocessing, dict[str, Any]]:
    library = _library("transformers", "transformers")
    folder = Path(name)
    if weights is not None:
        raise ConfigError(["a transformers folder brings its weights: leave --weights out"])
    if not (folder / "config.json").is_file():
        raise ConfigError([f"{folder} holds no config.json: give the folder that save_pretrained wrote"])
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "clip":
        raise ConfigError([f"{folder} holds a model of type {kind!r}: only 'clip' is supported, or take open_clip"])
    try:
        model = library.CLIPModel.from_pretrained(str(folder), local_files_only=True, attn_implementation="eager")
        tokenizer = library.CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        how = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError([f"{folder} cannot be read: {error}"]) from error
    how = how.get("image_processor", how)
    merges = _merges(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"])
    longest = int(model.config.text_config.max_position_embeddings)
    # What fills up comes behind the end, where a causal model does not look.
    vocabulary = BytePairs(merges, longest, 0, repair=False)

    def own(texts: Sequence[str]) -> Any:
        found = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        return np.array([row + [0] * (longest - len(row)) for row in found], dtype=np.int64)

    _same_ids(vocabulary, own, str(folder.name))
    crop, edge = how.get("crop_size", how["size"]), how["size"]
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    short = edge if isinstance(edge, int) else edge.get("shortest_edge", edge.get("height"))
    preprocessing = Preprocessing(
        size=(int(crop["height"]), int(crop["width"])),
        fit="crop",
        crop_ratio=min(1.0, float(crop["height"]) / float(short)),
        interpolation=_FILTERS.get(how.get("resample"), "bicubic"),
        mean=tuple(how["image_mean"]),
        std=tuple(how["image_std"]),
    )
    facts = {"network": f"transformers:{kind}", "weights": folder.name}
    return _Transformers(model), vocabulary, preprocessing, facts


def _merges(found: Sequence[Any]) -> tuple[str, ...]:
    """Newer files hold pairs, older ones "left right"."""
    return tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in found)


def _same_ids(vocabulary: BytePairs, original: Any, name: str) -> None:
    """Raise ExportError unless the tokenizer's own ids are the vocabulary's, for texts of many scripts."""
    ours, theirs = vocabulary(PHRASES), np.asarray(original(PHRASES))
    wrong = [text for text, a, b in zip(PHRASES, ours, theirs, strict=True) if a.shape != b.shape or (a != b).any()]
    if wrong:
        raise ExportError(
            f"the tokenizer of {name} cannot be carried over: it reads {wrong[0][:40]!r} differently; it may be "
            "another than CLIP's, or have tokens of its own"
        )


def _library(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(f"reading models of {name}", package, "clip") from error


def _told(weights: str | None) -> str:
    return "none: they are random, and so are the answers" if weights is None else Path(weights).name
