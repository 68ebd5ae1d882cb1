"""Make the encoder bundle that ships in the package, from the zips of pictures to ``lookalike/models/default``.

    python scripts/make_default_bundle.py --data DIR --weights DIR [--work DIR] [--stage all] [--minutes 35]

A ShuffleNetV2 learns, from random weights, to give the vectors that a larger network (MobileNetV2 as published with
TensorFlow) gives. It needs torch, torchvision, safetensors, onnx and openvino, and about 5 GB under ``--work``, where
every stage leaves what the next one needs; a stage that is complete is not run again (delete its files to repeat it).

=========  ==========================================================================================================
teacher    read all pictures, cut the views, compute the teacher's vectors, split the products, choose the dimension
train      distil; resumes from the last checkpoint; then fit the last layer again, in closed form
evaluate   the test products, once: student, teacher, pixels, colour histogram
export     weights.safetensors, image.onnx, model card, manifest → the bundle; checks it against torch
=========  ==========================================================================================================
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import mmap
import os
import platform
import random
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lookalike.baselines import ColourHistogram, Pixels
from lookalike.bundle import write_bundle
from lookalike.encoder import Encoder
from lookalike.images import Preprocessing, read
from lookalike.metrics import Interval, average_precision_at_r, mean_interval, paired_interval, precision_at_k
from lookalike.vectors import unit

Floats = npt.NDArray[np.float32]

PREPROCESSING = Preprocessing(size=(128, 128), fit="squash", interpolation="bilinear")
NAME, VERSION = "lookalike-default", "1"


@dataclass(frozen=True)
class Recipe:
    """Every setting that shapes the weights; written into the manifest."""

    seed: int = 20261121
    network: str = "shufflenet_v2_x1_0"
    teacher: str = "mobilenet_v2_tf"
    teacher_size: int = 224
    crops: tuple[tuple[str, int], ...] = (("fashion_products", 4), ("flickr8k", 3), ("tiny_imagenet_60", 2))
    crop_area: tuple[float, float] = (0.35, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.333)
    dims_tried: tuple[int, ...] = (64, 128, 192, 256)
    smallest_dim: int = 128
    same_cosine: float = 0.955
    same_pixels: float = 4.0
    validation: float = 0.1
    test: float = 0.2
    batch: int = 128
    steps: int = 6000
    warmup: int = 200
    lr: float = 3e-3
    weight_decay: float = 0.05
    fashion_share: float = 0.4
    relational: float = 1.0
    temperature: float = 0.1
    shift: int = 4
    jitter: float = 0.1
    small_side: int = 96
    small_until: float = 0.65
    head_views: int = 28_000
    head_ridge: float = 1e-4
    head_powers: tuple[float, ...] = (0.0, 0.15, 0.25, 0.35, 0.5)


RECIPE = Recipe()


@dataclass(frozen=True)
class Place:
    """Where things are."""

    data: Path
    weights: Path
    work: Path
    out: Path
    results: Path
    minutes: float
    note: str = ""

    @property
    def views(self) -> Path:
        """(rows, height, width, 3) uint8: what the student sees."""
        return self.work / "views.npy"

    @property
    def teacher(self) -> Path:
        """(rows, 1280) float16: what the teacher makes of it."""
        return self.work / "teacher.npy"

    @property
    def table(self) -> Path:
        """Per row: number of the picture, data set."""
        return self.work / "views.json"

    @property
    def split(self) -> Path:
        """The products by part, and their groups."""
        return self.work / "split.json"

    @property
    def target(self) -> Path:
        """Target vectors, rows to train on, the choice of dimension."""
        return self.work / "target.npz"

    @property
    def student(self) -> Path:
        """The trained parameters, float32."""
        return self.work / "student.safetensors"

    @property
    def refitted(self) -> Path:
        """The same with the last layer fitted again."""
        return self.work / "refitted.safetensors"

    @property
    def weights_file(self) -> Path:
        """The parameters as the bundle holds them."""
        return self.work / "weights.safetensors"

    @property
    def graph(self) -> Path:
        """The graph that refers to them."""
        return self.work / "image.onnx"

    @property
    def draft(self) -> Path:
        """A bundle without card and numbers, to measure."""
        return self.work / "draft"

    @property
    def results_file(self) -> Path:
        """What was measured."""
        return self.work / "results.json"


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DataSet:
    """One zip of pictures and what is known of its licence."""

    name: str
    title: str
    licence: str

    def members(self, archive: zipfile.ZipFile) -> list[str]:
        """The pictures, sorted by name."""
        return sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png")))


DATA = (
    DataSet("fashion_products", "Fashion Product Images (Kaggle)", "the dataset page says MIT"),
    DataSet("flickr8k", "Flickr8k", "photographs from Flickr, given out for research and education"),
    DataSet("tiny_imagenet_60", "Tiny ImageNet, 60 per class", "ImageNet terms: non-commercial research and education"),
)


class Pictures:
    """All pictures of all data sets, in memory as compressed files, numbered in one fixed order."""

    def __init__(self, folder: Path) -> None:
        self.names: list[tuple[str, str]] = []
        self.bytes: list[bytes] = []
        self.styles: dict[str, dict[str, str]] = {}
        for data in DATA:
            with zipfile.ZipFile(folder / f"{data.name}.zip") as archive:
                members = data.members(archive)
                self.names += [(data.name, member) for member in members]
                self.bytes += [archive.read(member) for member in members]
                if data.name == "fashion_products":
                    text = archive.read("fashion_products/styles.csv").decode("utf-8")
                    rows = csv.DictReader(io.StringIO(text))
                    self.styles = {f"fashion_products/{row['image']}": row for row in rows}

    def rows(self, data: str) -> list[int]:
        """The numbers of the pictures of one data set."""
        return [row for row, (name, _) in enumerate(self.names) if name == data]

    @cached_property
    def products(self) -> list[int]:
        """The numbers of the fashion pictures that have a line in styles.csv."""
        return [row for row in self.rows("fashion_products") if self.names[row][1] in self.styles]

    def style(self, row: int) -> dict[str, str]:
        """The line of styles.csv of a picture."""
        return self.styles[self.names[row][1]]

    def fingerprint(self, rows: Sequence[int]) -> str:
        """SHA-256 of the sorted names and sizes."""
        lines = sorted(f"{self.names[row][1]} {len(self.bytes[row])}" for row in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class View:
    """A picture, whole (box None) or a part of it: the box is (left, top, right, bottom) as shares of the sides."""

    picture: int
    box: tuple[float, float, float, float] | None = None

    def cut(self, image: Image.Image, side: int | None = None) -> npt.NDArray[np.uint8]:
        """Pixels of the student's size, or squares of `side` for the teacher: the same filter as when serving."""
        if self.box is not None:
            width, height = image.size
            left, top, right, bottom = self.box
            box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
            image = image.crop(box)
        if side is None:
            return np.asarray(PREPROCESSING.fitted(image))
        return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def random_box(dice: random.Random) -> tuple[float, float, float, float]:
    """A part of a picture: area and aspect ratio as in the recipe, anywhere."""
    area = dice.uniform(*RECIPE.crop_area)
    ratio = math.exp(dice.uniform(*map(math.log, RECIPE.crop_ratio)))
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    left, top = dice.uniform(0, 1 - width), dice.uniform(0, 1 - height)
    return left, top, left + width, top + height


# ── teacher ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Teacher(nn.Module):
    """Pixels (n, 3, side, side) in 0 … 255 → pooled features (n, 1280) of TensorFlow's MobileNetV2.

    TensorFlow pads a stride-2 convolution on the right and at the bottom only; torchvision pads on all sides.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        network = torchvision.models.mobilenet_v2()
        network.load_state_dict({k: v.float() for k, v in load_file(weights).items()}, strict=False)
        self.features = network.features
        for parent in list(self.features.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                    layer.padding = (0, 0)
                    setattr(parent, name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled features."""
        pooled: Tensor = self.features(pixels / 127.5 - 1).mean((2, 3))
        return pooled


def compiled_teacher(weights: Path, side: int, batch: int) -> Any:
    """The teacher in OpenVINO, in bfloat16 where the processor has it, taking (batch, side, side, 3) uint8."""
    import openvino as ov

    model = ov.convert_model(Teacher(weights).eval(), example_input=torch.zeros(1, 3, side, side))
    model.reshape([batch, 3, side, side])
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32)
    return ov.Core().compile_model(steps.build(), "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})


def look(pictures: Pictures, views: Sequence[View], place: Place, start: int, pixels: Any, features: Any) -> None:
    """Fill rows `start` … of `pixels` (uint8) and `features` (float16) with the views and what the teacher sees."""
    import openvino as ov

    batch, side = 32, RECIPE.teacher_size
    queue = ov.AsyncInferQueue(compiled_teacher(place.weights / f"{RECIPE.teacher}.safetensors", side, batch), 3)

    def keep(request: Any, at: slice) -> None:
        features[at] = request.get_output_tensor().data[: at.stop - at.start]

    queue.set_callback(keep)
    began, image, current = time.time(), None, -1
    for first in range(0, len(views), batch):
        block = np.zeros((batch, side, side, 3), np.uint8)
        chunk = views[first : first + batch]
        for i, view in enumerate(chunk):
            if image is None or view.picture != current:
                image, current = read(pictures.bytes[view.picture]), view.picture
            pixels[start + first + i] = view.cut(image)
            block[i] = view.cut(image, side)
        queue.start_async({0: block}, slice(start + first, start + first + len(chunk)))
        if first % (batch * 100) == 0:
            print(f"  views {first}/{len(views)}, {first / (time.time() - began):.0f}/s", flush=True)
    queue.wait_all()


# ── products: groups and split ───────────────────────────────────────────────────────────────────────────────────────


def group_products(names: Sequence[str], features: Floats, thumbs: Floats) -> npt.NDArray[np.int64]:
    """Group numbers: same product name, or pictures so alike that one could be the other's retouched copy.

    Args:
        names: productDisplayName of each.
        features: (n, d) unit vectors of the teacher; alike above `same_cosine`.
        thumbs: (n, 16 * 16 * 3) pixels; alike below a mean difference of `same_pixels`.
    """
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, name in enumerate(names):
        parent[root(i)] = root(first.setdefault(" ".join(name.lower().split()), i))
        alike = features[i + 1 :] @ features[i] > RECIPE.same_cosine
        alike |= np.abs(thumbs[i + 1 :] - thumbs[i]).mean(1) < RECIPE.same_pixels
        for j in np.flatnonzero(alike):
            parent[root(i + 1 + int(j))] = root(i)
    return np.unique([root(i) for i in range(len(names))], return_inverse=True)[1].astype(np.int64)


def split_products(pictures: Pictures, pixels: Any, features: Any) -> dict[str, Any]:
    """{"group": {picture: group}, "train" | "validation" | "test": [pictures]}, split by whole groups."""
    rows = pictures.products
    small = (Image.fromarray(pixels[row]).resize((16, 16), Image.Resampling.BOX) for row in rows)
    thumbs = np.stack([np.asarray(image, np.float32).ravel() for image in small])
    names = [pictures.style(row)["productDisplayName"] for row in rows]
    groups = group_products(names, unit(features[rows].astype(np.float32)), thumbs)
    order = np.random.default_rng(RECIPE.seed).permutation(groups.max() + 1)
    share = np.empty(len(order))
    share[order] = np.linspace(0, 1, len(order), endpoint=False)
    split: dict[str, Any] = {"group": {str(r): int(g) for r, g in zip(rows, groups, strict=True)}}
    edges = {"test": (0.0, RECIPE.test), "validation": (RECIPE.test, RECIPE.test + RECIPE.validation)}
    edges["train"] = (RECIPE.test + RECIPE.validation, 1.0)
    for part, (low, high) in edges.items():
        split[part] = [r for r, g in zip(rows, groups, strict=True) if low <= share[g] < high]
    sizes = np.sort(np.bincount(groups))[::-1]
    print(f"  {len(rows)} products in {len(sizes)} groups, largest {sizes[:5].tolist()}")
    print("  " + ", ".join(f"{part} {len(split[part])}" for part in edges))
    return split


def stage_views(place: Place) -> None:
    """Plain views of everything; the split; crops of what may be trained on; the teacher's features of all."""
    if place.table.exists():
        return
    place.work.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(place.data)
    dice, crops, left_out = random.Random(RECIPE.seed), dict(RECIPE.crops), set(pictures.rows("fashion_products"))
    bound = len(pictures.names) + sum(crops[name] for name, _ in pictures.names)
    pixels = np.lib.format.open_memmap(place.views, mode="w+", dtype=np.uint8, shape=(bound, *PREPROCESSING.size, 3))
    features = np.lib.format.open_memmap(place.teacher, mode="w+", dtype=np.float16, shape=(bound, 1280))
    plain = [View(row) for row in range(len(pictures.names))]
    look(pictures, plain, place, 0, pixels, features)
    split = split_products(pictures, pixels, features)
    place.split.write_text(json.dumps(split))
    left_out -= set(split["train"])
    cut = [
        View(row, random_box(dice))
        for row, (name, _) in enumerate(pictures.names)
        if row not in left_out
        for _ in range(crops[name])
    ]
    look(pictures, cut, place, len(plain), pixels, features)
    table = [(view.picture, pictures.names[view.picture][0]) for view in plain + cut]
    place.table.write_text(json.dumps(table))


# ── target: the space the student learns ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Space:
    """Centred principal directions of the teacher's unit vectors."""

    mean: Floats
    directions: Floats

    @classmethod
    def fit(cls, features: Floats, weights: Floats) -> Space:
        """From (n, d) features, each row counting by its weight."""
        rows, share = unit(features).astype(np.float64), weights.astype(np.float64) / weights.sum()
        mean = share @ rows
        centred = (rows - mean) * np.sqrt(share)[:, None]
        variances, directions = np.linalg.eigh(centred.T @ centred)
        order = np.argsort(-variances)
        return cls(mean.astype(np.float32), directions[:, order].astype(np.float32))

    def vectors(self, features: npt.NDArray[Any], dim: int | None = None) -> Floats:
        """(n, d) features → (n, dim) unit rows; dim None keeps all directions."""
        return unit((unit(features.astype(np.float32)) - self.mean) @ self.directions[:, :dim])


def choose_dim(pictures: Pictures, split: dict[str, Any], features: Any, others: Sequence[int]) -> dict[str, Any]:
    """Measure the teacher's vectors by dimension, on training products only: fit on one half, ask the other half.

    The smallest dimension of the recipe, but not below `smallest_dim`, whose MAP@R is within 0.01 of the full one.
    """
    groups = {int(row): group for row, group in split["group"].items()}
    fitted = [row for row in split["train"] if groups[row] % 2]
    asked = [row for row in split["train"] if not groups[row] % 2]
    rows, share = fitted + list(others), RECIPE.fashion_share
    weights = np.r_[np.full(len(fitted), share / len(fitted)), np.full(len(others), (1 - share) / len(others))]
    space = Space.fit(features[rows].astype(np.float32), weights.astype(np.float32))
    labels = [pictures.style(row)["articleType"] for row in asked]
    measured = {}
    for dim in (*RECIPE.dims_tried, None):
        vectors = space.vectors(features[asked], dim)
        values = average_precision_at_r(vectors, labels, [groups[row] for row in asked])
        measured["full" if dim is None else str(dim)] = round(float(np.nanmean(values)), 4)
    print(f"  MAP@R of the teacher's vectors by dimension: {measured}")
    good = [d for d in RECIPE.dims_tried if d >= RECIPE.smallest_dim and measured[str(d)] >= measured["full"] - 0.01]
    return {"dim": good[0] if good else RECIPE.dims_tried[-1], "map_at_r": measured}


def stage_target(place: Place) -> None:
    """The dimension, the space, and the target vector of every view; which views may be trained on."""
    if place.target.exists():
        return
    pictures, split = Pictures(place.data), json.loads(place.split.read_text())
    table = json.loads(place.table.read_text())
    features = np.load(place.teacher, mmap_mode="r")
    train = set(split["train"])
    trainable = [row for row, (picture, name) in enumerate(table) if name != "fashion_products" or picture in train]
    fashion = np.array([row for row in trainable if table[row][1] == "fashion_products"])
    others = np.array([row for row in trainable if table[row][1] != "fashion_products"])
    plain = [row for row in others.tolist() if row < len(pictures.names)]
    chosen = choose_dim(pictures, split, features, plain)
    rows, share = split["train"] + plain, RECIPE.fashion_share
    weights = np.r_[np.full(len(train), share / len(train)), np.full(len(plain), (1 - share) / len(plain))]
    space = Space.fit(features[rows].astype(np.float32), weights.astype(np.float32))
    target = space.vectors(features[: len(table)], chosen["dim"]).astype(np.float16)
    np.savez(place.target, target=target, fashion=fashion, others=others, chosen=json.dumps(chosen))


# ── student ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Student(nn.Module):
    """Normalised pixels (n, 3, height, width) → unit vectors (n, dim). The parameter names are torchvision's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = torchvision.models.get_model(RECIPE.network, weights=None)
        self.network.fc = nn.Linear(self.network.fc.in_features, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors, in float32 whatever the network computes in."""
        return functional.normalize(self.network(pixels).float(), dim=1)


def augment(pixels: Tensor, dice: np.random.Generator) -> Tensor:
    """(n, h, w, 3) uint8 → normalised (n, 3, h, w) float32: half mirrored, shifted a little, brightness and contrast.

    What is done here leaves the target as it is: the student shall not care. Crops, which change what can be seen,
    have targets of their own.
    """
    n, shift = len(pixels), RECIPE.shift
    batch = pixels.permute(0, 3, 1, 2).float() / 255
    mirrored = torch.from_numpy(dice.random(n) < 0.5)[:, None, None, None]
    batch = torch.where(mirrored, batch.flip(3), batch)
    down, right = dice.integers(0, 2 * shift + 1, size=2)
    height, width = batch.shape[2:]
    batch = functional.pad(batch, (shift,) * 4, mode="replicate")[:, :, down : down + height, right : right + width]
    gain = torch.from_numpy(dice.uniform(1 - RECIPE.jitter, 1 + RECIPE.jitter, (n, 1, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(dice.uniform(-RECIPE.jitter, RECIPE.jitter, (n, 1, 1, 1)).astype(np.float32)) / 2
    batch = (batch * gain + offset).clamp(0, 1)
    return normalised(batch)


def normalised(batch: Tensor) -> Tensor:
    """Values in [0, 1] → what the network takes."""
    mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
    return ((batch - mean[:, None, None]) / std[:, None, None]).contiguous(memory_format=torch.channels_last)


def distillation(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cosine to the target; and how far the similarities within the batch are from those of the targets.

    The second is the Kullback-Leibler divergence between softmax(similarities / temperature) of both.
    """
    direct = 1 - (ours * theirs).sum(1).mean()
    own = torch.eye(len(ours), dtype=torch.bool)
    mine = (ours @ ours.T / RECIPE.temperature).masked_fill(own, -1e4).log_softmax(1)
    goal = (theirs @ theirs.T / RECIPE.temperature).masked_fill(own, -1e4).log_softmax(1)
    return direct, functional.kl_div(mine, goal, log_target=True, reduction="batchmean")


def parameter_groups(student: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for kernels and matrices only."""
    decayed = [p for p in student.parameters() if p.ndim > 1]
    free = [p for p in student.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": RECIPE.weight_decay}, {"params": free, "weight_decay": 0.0}]


def encode(student: nn.Module, pixels: npt.NDArray[np.uint8]) -> Floats:
    """Plain encoding with torch in float32: (n, h, w, 3) uint8 → (n, dim)."""
    student.eval()
    with torch.inference_mode():
        blocks = (PREPROCESSING.normalise(pixels[i : i + 64]) for i in range(0, len(pixels), 64))
        return np.concatenate([student(torch.from_numpy(block)).numpy() for block in blocks])


class Run:
    """One training run: what a step needs, and what a checkpoint keeps."""

    def __init__(self, place: Place, minutes: float) -> None:
        torch.manual_seed(RECIPE.seed)
        self.place, self.minutes = place, minutes
        stored = np.load(place.target)
        self.target, self.fashion, self.others = stored["target"], stored["fashion"], stored["others"]
        self.pixels = np.load(place.views, mmap_mode="r")
        # Rows are read in random order: reading ahead would fetch several times as much as is used.
        self.pixels._mmap.madvise(mmap.MADV_RANDOM)
        self.student = Student(self.target.shape[1]).to(memory_format=torch.channels_last)
        self.forward = torch.compile(self.student, dynamic=False)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student), lr=RECIPE.lr)
        self.step, self.spent = 0, 0.0
        self.history: list[dict[str, float]] = []

    @property
    def progress(self) -> float:
        """0 at the start, 1 when all steps are done or the minutes are over."""
        return min(1.0, max(self.step / RECIPE.steps, self.spent / (60 * self.minutes)))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Pixels and targets of the present step: they depend on seed and step alone, so that a run can resume."""
        dice = np.random.default_rng([RECIPE.seed, self.step])
        products = round(RECIPE.fashion_share * RECIPE.batch)
        rows = np.r_[dice.choice(self.fashion, products), dice.choice(self.others, RECIPE.batch - products)]
        target = torch.from_numpy(self.target[rows].astype(np.float32))
        return augment(torch.from_numpy(self.pixels[rows]), dice), target

    def advance(self) -> tuple[float, float]:
        """One step; the two losses."""
        pixels, target = self.batch()
        if self.progress < RECIPE.small_until:  # the first part costs half as much, and learns nearly as fast
            pixels = functional.interpolate(pixels, size=RECIPE.small_side, mode="bilinear", antialias=True)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        rate = RECIPE.lr * min(1.0, (self.step + 1) / RECIPE.warmup) * 0.5 * (1 + math.cos(math.pi * self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            ours = self.forward(pixels)
        direct, relational = distillation(ours, functional.normalize(target, dim=1))
        self.optimizer.zero_grad(set_to_none=True)
        (direct + RECIPE.relational * relational).backward()
        self.optimizer.step()
        self.step += 1
        return direct.item(), relational.item()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        state |= {"spent": self.spent, "history": self.history}
        torch.save(state, self.place.work / "checkpoint.tmp")
        (self.place.work / "checkpoint.tmp").replace(self.place.work / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if (self.place.work / "checkpoint.pt").exists():
            state = torch.load(self.place.work / "checkpoint.pt", weights_only=True)
            self.student.load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent, self.history = state["step"], state["spent"], state["history"]


def stage_train(place: Place, report: int = 100) -> None:
    """Distil until the steps are done or the minutes are over; the learning rate ends at zero either way."""
    if place.student.exists():
        return
    split = json.loads(place.split.read_text())
    pictures, groups = Pictures(place.data), split["group"]
    rows = split["validation"]
    labels, group = [pictures.style(row)["articleType"] for row in rows], [groups[str(row)] for row in rows]
    run = Run(place, place.minutes)
    run.resume()
    while run.progress < 1:
        run.student.train()
        losses, began = [], time.perf_counter()
        while run.progress < 1 and len(losses) < report:
            before = time.perf_counter()
            losses.append(run.advance())
            run.spent += time.perf_counter() - before
        direct, relational = np.mean(losses, axis=0)
        rate = RECIPE.batch * len(losses) / (time.perf_counter() - began)
        score = float(np.nanmean(average_precision_at_r(encode(run.student, run.pixels[rows]), labels, group)))
        run.history.append({"step": run.step, "minutes": run.spent / 60, "direct": direct, "relational": relational})
        run.history[-1] |= {"validation_map_at_r": score, "pictures_per_second": rate}
        run.history[-1] = {key: round(float(value), 4) for key, value in run.history[-1].items()}
        print(f"  {run.history[-1]}", flush=True)
        run.save()
    save_file({k: v.contiguous() for k, v in run.student.network.state_dict().items()}, place.student)
    (place.work / "history.json").write_text(json.dumps(run.history))


def trunk_features(network: nn.Module, pixels: Any, rows: npt.NDArray[np.int64]) -> Floats:
    """What the last layer sees of some views: (n, 1024), computed in bfloat16."""
    head, network.fc = network.fc, nn.Identity()
    blocks = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(rows), 128):
            batch = torch.from_numpy(PREPROCESSING.normalise(np.asarray(pixels[rows[start : start + 128]])))
            blocks.append(network(batch.contiguous(memory_format=torch.channels_last)).float().numpy())
    network.fc = head
    return np.concatenate(blocks)


def stage_head(place: Place) -> None:
    """Fit the last layer to the targets by ridge regression, centred, its outputs whitened in part.

    In a short run the last layer lags behind the trunk, and leaves a direction that all vectors share. How far to
    whiten (variance to the power of -power) is chosen by validation.
    """
    if place.refitted.exists():
        return
    network, kept = load_student(place.student), np.load(place.target)
    pixels, split, pictures = (
        np.load(place.views, mmap_mode="r"),
        json.loads(place.split.read_text()),
        Pictures(place.data),
    )
    dice, half = np.random.default_rng(RECIPE.seed), RECIPE.head_views // 2
    rows = np.sort(np.r_[dice.permutation(kept["fashion"])[:half], dice.permutation(kept["others"])[:half]])
    features, target = trunk_features(network, pixels, rows), kept["target"][rows].astype(np.float32)
    mean = features.mean(0)
    centred = (features - mean).astype(np.float64)
    covariance = centred.T @ centred / len(rows)
    covariance += RECIPE.head_ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    slope = np.linalg.solve(covariance, centred.T @ (target - target.mean(0)) / len(rows))
    outputs = centred @ slope
    variances, directions = np.linalg.eigh(outputs.T @ outputs / len(rows))
    asked = np.array(split["validation"])
    labels = [pictures.style(row)["articleType"] for row in asked.tolist()]
    groups = [split["group"][str(row)] for row in asked.tolist()]
    seen = (trunk_features(network, pixels, asked) - mean) @ slope @ directions
    scores = {}
    for power in RECIPE.head_powers:
        values = average_precision_at_r(unit(seen / variances ** (power / 2)), labels, groups)
        scores[power] = round(float(np.nanmean(values)), 4)
    best = max(scores, key=lambda power: scores[power])
    weight = (slope @ directions / variances ** (best / 2)).T
    state = network.state_dict()
    state["fc.weight"] = torch.from_numpy(weight.astype(np.float32)).contiguous()
    state["fc.bias"] = torch.from_numpy((-weight @ mean).astype(np.float32))
    print(f"  validation MAP@R by whitening: {scores}; {best} chosen")
    save_file({name: value.contiguous() for name, value in state.items()}, place.refitted)
    (place.work / "head.json").write_text(json.dumps({"power": best, "validation_map_at_r": scores}))


# ── graph: image.onnx over weights.safetensors ───────────────────────────────────────────────────────────────────────


def plain_block(self: Any, x: Tensor) -> Tensor:
    """Torchvision's ShuffleNetV2 block with the batch size left open, so that the graph needs no shape arithmetic."""
    if self.stride == 1:
        kept, changed = x.split(int(x.shape[1]) // 2, dim=1)
        joined = torch.cat((kept, self.branch2(changed)), dim=1)
    else:
        joined = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
    channels, height, width = map(int, joined.shape[1:])
    paired = joined.reshape(-1, 2, channels // 2, height, width).transpose(1, 2)
    return paired.reshape(-1, channels, height, width)


class Served(nn.Module):
    """The student as the graph computes it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """As `Student`; the length is written out, so that it becomes four plain nodes."""
        vectors = self.network(pixels)
        return vectors / (vectors.square().sum(1, keepdim=True) + 1e-12).sqrt()


def stored(network: nn.Module) -> dict[str, Tensor]:
    """What weights.safetensors holds: kernels and matrices as float16, vectors (batch norm, bias) as float32."""
    state = {name: value.detach() for name, value in network.state_dict().items() if value.is_floating_point()}
    return {name: (value.half() if value.ndim > 1 else value.float()).contiguous() for name, value in state.items()}


def traced(network: nn.Module) -> Any:
    """The ONNX model of a network in evaluation mode, batch norms kept, initializers under the parameters' names."""
    import onnx
    from torchvision.models import shufflenetv2

    buffer, original = io.BytesIO(), shufflenetv2.InvertedResidual.forward
    shufflenetv2.InvertedResidual.forward = plain_block
    try:
        torch.onnx.export(
            Served(network).eval(),
            (torch.zeros(2, 3, *PREPROCESSING.size),),
            buffer,
            input_names=["pixels"],
            output_names=["vectors"],
            dynamic_axes={"pixels": {0: "n"}, "vectors": {0: "n"}},
            opset_version=17,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )
    finally:
        shufflenetv2.InvertedResidual.forward = original
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = name.removeprefix("network.")
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.removeprefix("network.")
    return model


def point_at(model: Any, weights: Path) -> None:
    """Replace every initializer by a reference into a safetensors file; float16 ones are cast to float32.

    A safetensors file is the length of its header (8 bytes), the header (JSON with the place of each tensor), and
    the raw little-endian values: what ONNX calls external data.
    """
    import onnx

    raw = weights.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    types = {"F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in header:
            continue
        entry = header[tensor.name]
        if list(tensor.dims) != entry["shape"]:
            raise SystemExit(f"{tensor.name} has shape {list(tensor.dims)} in the graph and {entry['shape']} on disk")
        tensor.ClearField("raw_data")
        tensor.data_type, tensor.data_location = types[entry["dtype"]], onnx.TensorProto.EXTERNAL
        first, last = entry["data_offsets"]
        for key, value in (("location", weights.name), ("offset", 8 + size + first), ("length", last - first)):
            tensor.external_data.add(key=key, value=str(value))
        if entry["dtype"] == "F16":
            casts.append(tensor.name)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = f"{name}.float32" if name in casts else name
    for name in reversed(casts):
        cast = onnx.helper.make_node("Cast", [name], [f"{name}.float32"], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)


def graph_error(place: Place, network: nn.Module, pixels: npt.NDArray[np.uint8]) -> float:
    """Largest difference of any coordinate between torch and OpenVINO, both in float32."""
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(core.read_model(place.graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    batch = PREPROCESSING.normalise(pixels)
    with torch.inference_mode():
        expected = Served(network).eval()(torch.from_numpy(batch)).numpy()
    return float(np.abs(compiled(batch)[0] - expected).max())


def stage_graph(place: Place) -> None:
    """weights.safetensors and image.onnx, checked: the graph gives what torch gives, on real pictures."""
    import onnx

    if place.graph.exists():
        return
    network = load_student(place.refitted)
    save_file(stored(network), place.weights_file)
    network.load_state_dict({name: value.float() for name, value in load_file(place.weights_file).items()})
    model = traced(network)
    point_at(model, place.weights_file)
    scratch = place.work / "image.tmp.onnx"
    scratch.write_bytes(model.SerializeToString())
    onnx.checker.check_model(scratch, full_check=True)
    scratch.replace(place.graph)
    rows = json.loads(place.split.read_text())["validation"][:64]
    error = graph_error(place, network, np.load(place.views, mmap_mode="r")[rows])
    sizes = place.graph.stat().st_size, place.weights_file.stat().st_size
    print(
        f"  image.onnx {sizes[0]} bytes, weights.safetensors {sizes[1]} bytes; largest difference to torch {error:.1e}"
    )
    if error > 1e-3:
        place.graph.unlink()
        raise SystemExit("the graph does not give what torch gives")


def load_student(path: Path) -> nn.Module:
    """The torchvision network with the trained weights, in evaluation mode."""
    state = load_file(path)
    network = Student(len(state["fc.bias"])).network
    network.load_state_dict(state)
    return network.eval()


# ── evaluation: the test products, once ──────────────────────────────────────────────────────────────────────────────

PROTOCOL = (
    "Fashion products held out by group (same product name, or nearly the same picture), 20 % of the groups. Every "
    "test picture is a query; its gallery is the other test pictures without its own group; relevant means the same "
    "articleType. Queries with nothing relevant do not count. P@1, P@10 and MAP@R (Musgrave et al. 2020), ties against "
    "the query; 95 % percentile-bootstrap intervals over queries, paired for differences."
)
MEASURES: dict[str, Callable[..., Any]] = {
    "P@1": lambda vectors, labels, groups: precision_at_k(vectors, labels, 1, groups),
    "P@10": lambda vectors, labels, groups: precision_at_k(vectors, labels, 10, groups),
    "MAP@R": average_precision_at_r,
}
STUDENT = NAME


def described(interval: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return {key: round(value, 4) for key, value in asdict(interval).items()}


def compare(vectors: dict[str, Floats], labels: Sequence[str], groups: Sequence[int]) -> dict[str, Any]:
    """Every encoder by every measure; and the student minus every other encoder, query by query."""
    values = {
        name: {measure: compute(rows, labels, groups) for measure, compute in MEASURES.items()}
        for name, rows in vectors.items()
    }
    encoders = {
        name: {measure: described(mean_interval(v)) for measure, v in by_measure.items()}
        for name, by_measure in values.items()
    }
    differences = {
        name: {m: described(paired_interval(values[STUDENT][m], v)) for m, v in by_measure.items()}
        for name, by_measure in values.items()
        if name != STUDENT
    }
    return {"encoders": encoders, "student_minus": differences}


def judged(place: Place, pictures: Pictures, rows: Sequence[int], groups: dict[str, int]) -> dict[str, Any]:
    """`compare` on some products: the student as served (float32), what it learned from, and the baselines."""
    features = np.load(place.teacher, mmap_mode="r")
    files = [pictures.bytes[row] for row in rows]
    vectors = {
        STUDENT: Encoder.load(place.draft, precision="fp32").images(files, strict=True),
        "pixels": Pixels().images(files),
        "colour histogram": ColourHistogram().images(files),
        "teacher (1280-d)": unit(features[rows].astype(np.float32)),
        "constant": np.ones((len(rows), 2), np.float32),
    }
    labels = [pictures.style(row)["articleType"] for row in rows]
    return {"pictures": len(rows)} | compare(vectors, labels, [groups[str(row)] for row in rows])


def altered(data: bytes) -> dict[str, Image.Image]:
    """What happens to copies of a picture on their way."""
    image = read(data)
    coded = {}
    for quality in (80, 50):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        coded[f"JPEG quality {quality}"] = read(buffer.getvalue())
    width, height = image.size
    margin = (round(0.025 * width), round(0.025 * height))
    return {
        **coded,
        "middle 95 %": image.crop((*margin, width - margin[0], height - margin[1])),
        "3/4 of the size": image.resize((width * 3 // 4, height * 3 // 4), Image.Resampling.BICUBIC),
    }


def calibrated(encoder: Encoder, files: Sequence[bytes], asked: int, groups: Sequence[int]) -> dict[str, Any]:
    """The cosine above which two pictures are taken for one, and what it costs.

    At most 0.5 % of the first `asked` pictures have one of another group above it among all `files`; the recall is
    the share of altered copies above it.
    """
    group, rows = np.array(groups), encoder.images(files, strict=True)
    scores = rows[:asked] @ rows.T
    scores[group[:asked, None] == group[None]] = -1
    nearest = scores.max(1)
    threshold = math.ceil(float(np.quantile(nearest, 0.995)) * 1e5) / 1e5
    copies = [altered(data) for data in files[:asked]]
    recall = {}
    for kind in copies[0]:
        cosines = (encoder.images([copy[kind] for copy in copies], strict=True) * rows[:asked]).sum(1)
        recall[kind] = round(float((cosines > threshold).mean()), 4)
    alarms = round(float((nearest > threshold).mean()), 4)
    return {"threshold": threshold, "false_alarms": alarms, "queries": asked, "gallery": len(files), "recall": recall}


def duplicate_thresholds(place: Place, pictures: Pictures, split: dict[str, Any]) -> dict[str, Any]:
    """For products: validation among those and training ones. A second one for photographs."""
    encoder = Encoder.load(place.draft, precision="fp32")
    rows = split["validation"] + split["train"]
    files, groups = [pictures.bytes[row] for row in rows], [split["group"][str(row)] for row in rows]
    products = calibrated(encoder, files, len(split["validation"]), groups)
    photographs = [pictures.bytes[row] for row in pictures.rows("flickr8k")]
    others = calibrated(encoder, photographs, 1000, range(len(photographs)))
    calibration = {"products (validation)": products, "photographs (Flickr8k, seen in training)": others}
    # Whoever deletes duplicates would rather miss one than lose a picture: the stricter of the two is the default.
    return {
        "duplicate": max(products["threshold"], others["threshold"]),
        "calibration": calibration,
    }


def stage_evaluate(place: Place) -> None:
    """Validation, thresholds, and then test; kept, so that test is not asked again."""
    if place.results_file.exists():
        return
    write_bundle(place.draft, {**basics(place), "version": "draft"}, graph_files(place))
    pictures, split = Pictures(place.data), json.loads(place.split.read_text())
    results = {
        "protocol": PROTOCOL,
        "test": judged(place, pictures, split["test"], split["group"]),
        "validation": judged(place, pictures, split["validation"], split["group"]),
        "thresholds": duplicate_thresholds(place, pictures, split),
    }
    place.results_file.write_text(json.dumps(results, indent=1))
    for name, by_measure in results["test"]["encoders"].items():
        print(f"  {name:20}" + "  ".join(f"{m} {v['mean']:.3f}" for m, v in by_measure.items()))


# ── the bundle, its card and its results ─────────────────────────────────────────────────────────────────────────────


def basics(place: Place) -> dict[str, Any]:
    """What a manifest must have."""
    dim = len(load_file(place.weights_file)["fc.bias"])
    image = {"graph": "image.onnx", **PREPROCESSING.to_document()}
    return {"name": NAME, "version": VERSION, "dim": dim, "image": image, "text": None}


def graph_files(place: Place) -> dict[str, bytes | Path]:
    """Graph and weights."""
    return {"image.onnx": place.graph, "weights.safetensors": place.weights_file}


def data_used(place: Place) -> dict[str, Any]:
    """Per data set: what it is, and which pictures the weights come from."""
    pictures, train = Pictures(place.data), json.loads(place.split.read_text())["train"]
    used = {}
    for data in DATA:
        rows = train if data.name == "fashion_products" else pictures.rows(data.name)
        used[data.name] = {
            "title": data.title,
            "licence": data.licence,
            "pictures": len(rows),
            "sha256": pictures.fingerprint(rows),
        }
    return used


def surroundings() -> dict[str, Any]:
    """Machine and versions, without names or paths."""
    import onnx
    import openvino

    modules = {
        "torch": torch,
        "torchvision": torchvision,
        "openvino": openvino,
        "onnx": onnx,
        "numpy": np,
        "pillow": PIL,
    }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU",
        "versions": {"python": platform.python_version()}
        | {name: module.__version__.split("-")[0].split("+")[0] for name, module in modules.items()},
    }


def manifest(place: Place, results: dict[str, Any], history: list[dict[str, float]]) -> dict[str, Any]:
    """Everything but "schema" and "files"."""
    chosen = json.loads(str(np.load(place.target)["chosen"]))
    ran = {"steps_done": int(history[-1]["step"]), "minutes": round(history[-1]["minutes"], 1)}
    return {
        **basics(place),
        "precision": {"weights": "float16", "batch_norm": "float32"},
        "recipe": {
            **asdict(RECIPE),
            **ran,
            "note": place.note,
            "head": json.loads((place.work / "head.json").read_text()),
            "dim_by_map_at_r": chosen["map_at_r"],
            **surroundings(),
        },
        "data": data_used(place),
        "metrics": {"protocol": results["protocol"], **results["test"]},
        "thresholds": results["thresholds"],
        "licence": "Apache-2.0",
    }


def table(encoders: dict[str, Any]) -> str:
    """A Markdown table: encoders by measures, in per cent."""
    lines = ["| encoder | " + " | ".join(MEASURES) + " |", "|---" * (1 + len(MEASURES)) + "|"]
    for name, by_measure in encoders.items():
        cells = [f"{100 * v['mean']:.1f} [{100 * v['low']:.1f}, {100 * v['high']:.1f}]" for v in by_measure.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def result_text(document: dict[str, Any]) -> str:
    """The two tables and the threshold, for card and results page."""
    metrics, thresholds = document["metrics"], document["thresholds"]
    count = metrics["encoders"][STUDENT]["P@1"]["count"]
    return f"""{metrics["protocol"]}

{metrics["pictures"]} test pictures, {count} of them queries that count; per cent, with 95 % intervals:

{table(metrics["encoders"])}

{NAME} minus the other, query by query (points, 95 % paired intervals; above zero, {NAME} is better):

{table(metrics["student_minus"])}

Near-duplicates: the cosine above which two pictures are taken for one, set so that at most 0.5 % of the pictures have
another one (another product group) above it, and the share of altered copies found with it:

{threshold_table(thresholds["calibration"])}"""


def threshold_table(calibration: dict[str, Any]) -> str:
    """A Markdown table of what `calibrated` gave, per kind of pictures."""
    kinds = list(next(iter(calibration.values()))["recall"])
    lines = [
        "| calibrated on | threshold | false alarms | " + " | ".join(kinds) + " |",
        "|---" * (3 + len(kinds)) + "|",
    ]
    for name, found in calibration.items():
        cells = [f"{100 * found['recall'][kind]:.1f} %" for kind in kinds]
        about = f"{name}: {found['queries']} among {found['gallery']}"
        alarms = f"{100 * found['false_alarms']:.2f} %"
        lines.append(f"| {about} | {found['threshold']} | {alarms} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def card(document: dict[str, Any]) -> str:
    """The model card."""
    recipe = document["recipe"]
    sure = document["metrics"]["student_minus"]["pixels"]["P@1"]["low"] > 0
    first = " and in the first place" if sure else "; for the first place alone (P@1) it is not beyond doubt"
    data = "\n".join(f"| {d['title']} | {d['pictures']} | {d['licence']} |" for d in document["data"].values())
    return f"""# {NAME} {VERSION}

Pictures to {document["dim"]}-dimensional unit vectors whose cosine says how alike two pictures look. The encoder that
Lookalike uses when none is named.

- **Network**: ShuffleNetV2 x1.0 (1.4 million parameters); input 128 × 128 pixels, the whole picture squashed to a
  square.
- **Weights**: `weights.safetensors`, float16 (batch norm float32), under the names of torchvision's
  `{recipe["network"]}`, with `fc` of {document["dim"]} outputs. `image.onnx` holds no weights of its own: it refers
  into that file.
- **Licence**: Apache-2.0.

## Intended use

Search by picture, copies of pictures, and a start for teaching on your own pictures. It has seen everyday photographs
and product pictures on plain backgrounds. Near-duplicates beyond re-encoding are hard for it (see the last table).

## How it was made

Trained from random weights (the last layer at the end by ridge regression) to give, for the same view of each
picture, the vectors of a larger network
(`{recipe["teacher"]}`: MobileNetV2 as published with TensorFlow, Apache-2.0, at {recipe["teacher_size"]} px; its pooled
features, centred and reduced to {document["dim"]} principal directions). No labels were used.
{recipe["minutes"]:.0f} minutes of training, {recipe["steps_done"]} steps of {recipe["batch"]} pictures, on
{recipe["machine"]}, shared with other work.
{textwrap.fill(recipe["note"], 118)}
Every setting is in `manifest.json`; the command is `python scripts/make_default_bundle.py --data DIR --weights DIR`.

| data | pictures | licence note |
|---|---|---|
{data}

The teacher itself was trained on ImageNet by its publishers.

## How good it is

{result_text(document)}

Against pixels the gain is in whole result lists (P@10, MAP@R){first}.

The teacher is shown for orientation: it has 2.2 million parameters, ten times as many numbers per vector, and is run at
224 px, which costs about twenty times as much. The constant encoder shows what the protocol gives for nothing.

## Limits

- Small training set, small input: fine print, faces, and small differences between similar products are beyond it.
- The held-out products come from the same shop, with the same backgrounds and models, as the training products; on
  other pictures expect less. Measure on yours.
- Labels of the test say what kind of product it is, not what people find alike.
- A sharp picture and a blurred or enlarged copy of it are not close enough to pass for near-duplicates, and neither
  is a crop; re-encodings are. Pictures larger than the network's input lose nothing when they are shrunk to it.
"""


def stage_export(place: Place) -> None:
    """Bundle, results page and results file."""
    results = json.loads(place.results_file.read_text())
    history = json.loads((place.work / "history.json").read_text())
    document = manifest(place, results, history)
    files = {**graph_files(place), "README.md": card(document).encode()}
    bundle = write_bundle(place.out, document, files)
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    print(f"  {bundle.name}, fingerprint {bundle.fingerprint}, {size / 1e6:.2f} MB")
    command = "python scripts/make_default_bundle.py --data DIR --weights DIR"
    kept = {key: document[key] for key in ("name", "version", "dim", "recipe", "data", "metrics", "thresholds")}
    kept |= {"command": command, "validation": results["validation"], "training": history}
    place.results.mkdir(parents=True, exist_ok=True)
    target = place.results / f"default-bundle-{VERSION}"
    target.with_suffix(".json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    recipe = document["recipe"]
    versions = ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())
    text = f"""# {NAME} {VERSION}: results

`{command}`, {recipe["date"]}, {recipe["machine"]}; {recipe["minutes"]:.0f} minutes of training.
Versions: {versions}. All numbers: [{target.name}.json]({target.name}.json).

{result_text(document)}
"""
    target.with_suffix(".md").write_text(text, encoding="utf-8")


STAGES: dict[str, tuple[Callable[[Place], None], ...]] = {
    "teacher": (stage_views, stage_target),
    "train": (stage_train, stage_head),
    "evaluate": (stage_graph, stage_evaluate),
    "export": (stage_graph, stage_evaluate, stage_export),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the stages."""
    home = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the zips of pictures")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the teacher's safetensors file")
    parser.add_argument("--work", type=Path, default=Path("build/default-bundle"), help="what the stages leave")
    parser.add_argument("--out", type=Path, default=home / "lookalike" / "models" / "default", help="the bundle")
    parser.add_argument("--results", type=Path, default=home / "docs" / "results", help="where the numbers go")
    parser.add_argument("--minutes", type=float, default=35, help="the longest the training may take")
    parser.add_argument("--note", default="", help="a sentence on this run, for the manifest and the card")
    parser.add_argument("--stage", default="all", choices=[*STAGES, "all"])
    options = parser.parse_args(arguments)
    place = Place(
        options.data, options.weights, options.work, options.out, options.results, options.minutes, options.note
    )
    for name, steps in STAGES.items():
        if options.stage in (name, "all"):
            for step in steps:
                print(f"{step.__name__.removeprefix('stage_')} …", flush=True)
                step(place)


if __name__ == "__main__":
    main()
