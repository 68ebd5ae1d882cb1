"""A trained run, or a network by name → an encoder bundle that needs no PyTorch.

The bundle's graph is compared with the network on real pictures before it is written: through the whole way that
serving takes (reading, fitting, normalising, OpenVINO), not the graph alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from lookalike.bundle import Bundle, write_bundle
from lookalike.catalogue import rows as listed
from lookalike.encoder import Encoder
from lookalike.errors import CatalogueError, CheckpointError, ExportError
from lookalike.images import Picture, Preprocessing
from lookalike.results import ran_on
from lookalike.thresholds import in_words
from lookalike.training.checkpoints import load_checkpoint
from lookalike.training.config import TrainConfig, read_config
from lookalike.training.folder import RunFolder
from lookalike.training.networks import EmbeddingNetwork, Serving, build, defaults
from lookalike.training.prepare import make_network
from lookalike.training.retrieval import THRESHOLDS, Retrieval
from lookalike.vectors import Vectors

# A graph whose vectors are further than this from the network's own is refused.
LOWEST_COSINE = 0.9999
CHECKED = 64
GRAPH, WEIGHTS = "image.onnx", "weights.safetensors"

__all__ = [
    "CHECKED",
    "GRAPH",
    "LOWEST_COSINE",
    "WEIGHTS",
    "drawn",
    "export_network",
    "export_run",
    "in_onnx",
    "listed_pictures",
    "refer",
    "stored",
    "surroundings",
    "without_places",
]


def export_run(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Bundle:
    """Write the network that a run kept as a bundle.

    Args:
        run: the run folder, complete or stopped.
        to: the bundle folder; an older bundle there is replaced.
        pictures: what to check the graph with; by default pictures of the run.
        size: (height, width) in pixels to serve at; by default that of the training. A little more may be better:
            random parts of pictures show things larger in training than whole pictures do (Touvron et al. 2019,
            "Fixing the train-test resolution discrepancy"). Only for networks that take any size.

    Raises:
        CheckpointError: no run, or nothing kept in it yet.
        ExportError: graph and network disagree.
        BundleError: `to` is taken by something else.
    """
    place = Path(run)
    if not (place / "config.toml").is_file():
        raise CheckpointError(f"{place} is no run folder: it has no config.toml")
    kept = place / ("best.pt" if (place / "best.pt").exists() else "last.pt")
    if not kept.exists():
        raise CheckpointError(f"{place} has no checkpoint yet: run the training, then export")
    config = read_config(place / "config.toml", to_run=False)
    data = json.loads((place / "data.json").read_text(encoding="utf-8"))
    config = config.fitting(data.get("preprocessing", {}))
    trained_at = config.preprocessing().size
    if size is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"size": size})})
    state = load_checkpoint(kept)
    network = make_network(config, start=False)
    network.load_state_dict(state["network"])
    retrieval = Retrieval.load(RunFolder(place, print)) or Retrieval()
    retrieval.apply(network, config)
    report = _json_or_none(place / "report.json")
    manifest = _run_manifest(config, data, report, state["step"])
    if size is None or size == trained_at:
        manifest["thresholds"] = _json_or_none(place / THRESHOLDS) or {}
    else:
        manifest["metrics"] = None  # like the thresholds, they are those of the size it was trained at
        manifest["recipe"]["trained_at"] = list(trained_at)
    if retrieval.reranking:
        manifest["search"] = retrieval.reranking.to_document()
    checked = (
        listed_pictures(pictures)
        if pictures is not None
        else _spread(data["paths"]["validation"] or data["paths"]["train"])
    )
    return _write(network, config.preprocessing(), manifest, checked, to)


def export_network(
    name: str,
    to: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    pictures: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Write any network of `networks.build`, such as ``timm:resnet18``, as a bundle: its pooled features, unit length.

    Args:
        name: of the network.
        to: the bundle folder.
        weights: a file, a URL or "hub"; without, the weights are random, which the card says.
        pictures: what to check the graph with; by default `CHECKED` drawn ones.

    Raises:
        ConfigError, TrainingError: no such network, or weights that do not fit.
        ExportError, BundleError: as `export_run`.
    """
    preprocessing = Preprocessing(**defaults(name))
    base = build(name, weights=None if weights is None else os.fspath(weights), size=preprocessing.size)
    network = EmbeddingNetwork(base, head="none")
    manifest = {
        "name": name.replace(":", "-").replace("/", "-"),
        "recipe": {"network": name, "weights": None if weights is None else Path(weights).name, **surroundings()},
    }
    checked = drawn() if pictures is None else listed_pictures(pictures)
    return _write(network, preprocessing, manifest, checked, to)


def _write(
    network: EmbeddingNetwork,
    preprocessing: Preprocessing,
    manifest: Mapping[str, Any],
    pictures: Sequence[Picture],
    to: str | os.PathLike[str],
) -> Bundle:
    network = network.eval()
    serving = Serving(network)
    weights = save(stored(network))
    graph = _graph(serving, preprocessing.size)
    refer(graph, weights)
    files: dict[str, bytes | Path] = {GRAPH: graph.SerializeToString(), WEIGHTS: weights}
    whole = {
        **manifest,
        "dim": network.dim,
        "image": {"graph": GRAPH, **preprocessing.to_document()},
        "text": None,
        "precision": {"weights": "float16", "vectors and statistics": "float32"},
    }
    with tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
        draft = write_bundle(Path(scratch) / "draft", whole, {**files, "README.md": b""})
        whole["check"] = _check(Encoder(draft, precision="fp32"), serving, preprocessing, pictures)
    return write_bundle(to, whole, {**files, "README.md": _card(whole).encode()})


def _check(
    encoder: Encoder, serving: nn.Module, preprocessing: Preprocessing, pictures: Sequence[Picture]
) -> dict[str, Any]:
    """Lowest cosine between the bundle's vectors and the network's own. Raises ExportError."""
    theirs = encoder.images(pictures, strict=True)
    with torch.inference_mode():
        ours = [serving(torch.from_numpy(preprocessing.normalise(preprocessing.load(p)[None]))) for p in pictures]
    own: Vectors = torch.nn.functional.normalize(torch.cat(ours).float(), dim=1).numpy()
    cosines = (own * theirs).sum(1)
    lowest = float(cosines.min())
    if not lowest >= LOWEST_COSINE:
        raise ExportError(
            f"the exported graph disagrees with the network: lowest cosine {lowest:.6f} over {len(cosines)} pictures, "
            f"{LOWEST_COSINE} is wanted; nothing was written. The network may compute something ONNX cannot express, "
            "or its values overflow half precision"
        )
    return {"lowest_cosine": round(lowest, 7), "pictures": len(cosines), "precision": "fp32"}


def stored(network: nn.Module) -> dict[str, Tensor]:
    """What weights.safetensors holds: matrices and kernels as float16; vectors, statistics and constants as float32."""
    large = {name for name, parameter in network.named_parameters() if parameter.ndim > 1}
    state = {name: value.detach().cpu() for name, value in network.state_dict().items() if value.is_floating_point()}
    return {
        name: (value.half() if name in large else value.float()).contiguous().clone() for name, value in state.items()
    }


def _graph(serving: nn.Module, size: tuple[int, int]) -> onnx.ModelProto:
    """ONNX of a network that is served, any number of pictures."""
    return in_onnx(serving, torch.zeros(2, 3, *size), "pixels", {0: "n"})


def in_onnx(module: nn.Module, example: Tensor, takes: str, sizes: Mapping[int, str]) -> onnx.ModelProto:
    """ONNX, batch norms kept (the weights shall train on), initializers named as parameters.

    Args:
        module: gives "vectors"; what it calls `network` gives its parameters their own names.
        example: of what it takes.
        takes: the name of that.
        sizes: axes that are not fixed, with their names.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dealings
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            optimize=False,  # would fold the batch norms
            input_names=[takes],
            output_names=["vectors"],
            dynamic_shapes=({axis: torch.export.Dim(name, min=1) for axis, name in sizes.items()},),
            verbose=False,
        )
    model = program.model_proto
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = name.removeprefix("network.")
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.removeprefix("network.")
    del model.metadata_props[:]
    for node in model.graph.node:  # they hold stack traces, with the paths of this machine
        del node.metadata_props[:]
    return model


def refer(model: onnx.ModelProto, weights: bytes, file: str = WEIGHTS) -> None:
    """Replace every initializer by a reference into a safetensors file beside it; float16 ones are cast to float32.

    A safetensors file is the length of its header (8 bytes), the header (JSON with the place of each tensor), and the
    raw little-endian values: what ONNX calls external data.
    """
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    types = {"F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT}
    casts = []
    for tensor in model.graph.initializer:
        entry = header.get(tensor.name)
        if entry is None or list(tensor.dims) != entry["shape"]:
            continue  # a constant of the graph's own
        first, last = entry["data_offsets"]
        tensor.ClearField("raw_data")
        tensor.data_type, tensor.data_location = types[entry["dtype"]], onnx.TensorProto.EXTERNAL
        for key, value in (("location", file), ("offset", 8 + size + first), ("length", last - first)):
            tensor.external_data.add(key=key, value=str(value))
        if entry["dtype"] == "F16":
            casts.append(tensor.name)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = f"{name}.float32" if name in casts else name
    for name in reversed(casts):
        model.graph.node.insert(
            0, onnx.helper.make_node("Cast", [name], [f"{name}.float32"], to=onnx.TensorProto.FLOAT)
        )


def _spread(paths: Sequence[str]) -> list[str]:
    """At most `CHECKED` of them, evenly."""
    places = np.unique(np.linspace(0, len(paths) - 1, min(CHECKED, len(paths))).round().astype(int))
    return [paths[i] for i in places]


def listed_pictures(place: str | os.PathLike[str]) -> list[str]:
    """At most `CHECKED` pictures of a place, to check a graph with. Raises CatalogueError where there are none."""
    found = [row.path for row in listed([place])]
    if not found:
        raise CatalogueError(f"{place} holds no pictures to check the graph with")
    return _spread(found)


def drawn() -> list[Picture]:
    """Pictures to check a graph with where there are none: soft random colours, coarse to fine."""
    dice = np.random.default_rng(0)
    sides = [2 + i % 15 for i in range(CHECKED)]
    coarse = [Image.fromarray(dice.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in sides]
    return [image.resize((256, 256), Image.Resampling.BICUBIC) for image in coarse]


def surroundings() -> dict[str, Any]:
    """What a training ran on: `lookalike.results.ran_on`, and the GPU."""
    found = ran_on("torch", "onnx", "openvino", "numpy")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {**found, "machine": f"{found['machine']}, {device}"}


def without_places(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON, with names alone: where things lay on this machine is nobody's business."""
    recipe: dict[str, Any] = config.model_dump(mode="json")
    recipe["data"]["cache"] = None
    for table, name in (("data", "root"), ("data", "labels"), ("network", "weights"), ("base", "recipe")):
        recipe[table][name] = recipe[table][name] and Path(recipe[table][name]).name
    recipe["teacher"]["bundles"] = [Path(bundle).name for bundle in config.teacher.bundles]
    recipe["text"]["encoder"] = Path(config.text.encoder).name
    model = config.sentences.model  # a name on the hub is whose/what, and stays
    recipe["sentences"]["model"] = Path(model).name if Path(model).is_dir() or Path(model).is_absolute() else model
    return recipe


def _run_manifest(
    config: TrainConfig, data: Mapping[str, Any], report: Mapping[str, Any] | None, step: int
) -> dict[str, Any]:
    ran = {"kept_step": step} | ({k: report[k] for k in ("steps", "minutes", "device", "precision")} if report else {})
    metrics = report["verdict"] if report else None
    return {
        "name": config.name,
        "recipe": {**without_places(config), **ran, **surroundings()},
        "data": {key: data[key] for key in ("fingerprint", "pictures", "classes", "notes")},
        "metrics": metrics,
        "thresholds": {},
    }


def _json_or_none(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _card(manifest: Mapping[str, Any]) -> str:
    """The model card."""
    recipe, image, check = manifest["recipe"], manifest["image"], manifest["check"]
    height, width = image["size"]
    network = recipe["network"] if isinstance(recipe["network"], str) else recipe["network"]["name"]
    lines = [
        f"# {manifest['name']}",
        "",
        f"Pictures to {manifest['dim']}-dimensional unit vectors whose cosine says how alike they are.",
        "",
        f"- **Network**: {network}; input {width} × {height} pixels, fit by {image['fit']}.",
        f"- **Checked**: graph against network, {check['pictures']} pictures, lowest cosine {check['lowest_cosine']}.",
        f"- **Made**: {recipe['date']}, {recipe['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())
        + ".",
    ]
    if "data" not in manifest:
        told = recipe["weights"] or "none: they are random, and so are the answers"
        return "\n".join([*lines, f"- **Weights**: {told}.", ""])
    data, verdict = manifest["data"], manifest["metrics"]
    counts = ", ".join(f"{name} {count:,}" for name, count in data["pictures"].items())
    lines += [
        f"- **Recipe**: loss {recipe['loss']['kind']}, {recipe.get('steps', recipe['kept_step']):,} steps; every "
        "setting is in `manifest.json`.",
        f"- **Data**: {counts} pictures, {data['classes']:,} classes; fingerprint `{data['fingerprint']}`.",
        "",
        "## How good it is",
        "",
    ]
    if verdict is None:
        return "\n".join([*lines, "Not measured: nothing was held out, or the run had not ended.", ""])
    lines += [f"{verdict['text'][:1].upper()}{verdict['text'][1:]}.", "", "| measure | trained | base | difference |"]
    lines.append("|---|---|---|---|")
    for name, gap in verdict["differences"].items():
        cells = (verdict["ours"][name], verdict["theirs"][name], gap)
        lines.append(
            f"| {name} | " + " | ".join(f"{c['mean']:.4f} [{c['low']:.4f}, {c['high']:.4f}]" for c in cells) + " |"
        )
    lines += ["", "Intervals are 95 % bootstrap intervals over queries; differences are paired.", ""]
    if told := in_words(manifest["thresholds"]):
        lines += ["## Thresholds", "", *told, ""]
    return "\n".join(lines)
