"""A run as a document: TOML in, every problem at once, the resolved TOML out.

`TrainConfig` has one table per part of a run. Everything has a default but ``data.root``. What a table may hold is
checked by its types and bounds; what the tables say together (a miner for a loss that mines nothing, a network that
cannot be frozen so far) by `TrainConfig.problems`; what must be on this machine (weights, a teacher, a GPU) by
`TrainConfig.missing`. `read_config` gives all of that in one `ConfigError`, each with the nearest valid name or what to
write: where a value is wrong, the others are checked all the same.

The parts of the program get plain arguments, never these tables.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import tomllib
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lookalike.bundle import MANIFEST, Bundle, default_path
from lookalike.errors import ConfigError, LookalikeError
from lookalike.images import Fit, Preprocessing
from lookalike.training.augment import Augmentation
from lookalike.training.losses import LOSSES, PAIR_LOSSES
from lookalike.training.miners import MINERS, Schedule, SemiHard
from lookalike.training.networks import (
    Sketch,
    defaults,
    missing_weights,
    nearest,
    option_types,
    pooling,
    sketch,
    unpublished,
)

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
# A problem, after the keys that it is about: "table.key", several joined by blanks.
Found = tuple[str, str]
# Pixels of a side from which on all networks take pictures of any size, but for some of timm's.
_ANY = 64
# What a network is drawn up from.
_NETWORK = "network.name network.options data.channels data.size"
Size = tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]]

__all__ = [
    "BaseConfig",
    "DataConfig",
    "LoopConfig",
    "LossConfig",
    "MemoryConfig",
    "MinerConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "RetrievalConfig",
    "SamplerConfig",
    "SentencesConfig",
    "TeacherConfig",
    "TextConfig",
    "TrainConfig",
    "ValidationConfig",
    "ViewsConfig",
    "read_config",
    "write_config",
]


class Table(BaseModel):
    """A table of the document: frozen, and strict about names and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class DataConfig(Table):
    """[data]: which pictures, what is known of them, and how they are cut to the network's size."""

    root: str = ""
    """A folder, or a CSV file; relative to the working folder."""
    labels: str = "folders"
    """Who is alike: "folders" (a folder per class, perhaps within super-classes), the name of a CSV column,
    a file of pairs (left, right, same) or triplets (anchor, positive, negative), or "none": each picture is alike only
    with itself and its near-duplicates, seen anew."""
    category: str | None = None
    """The CSV column of the super-class. With folders it is found."""
    maker: str | None = None
    """A regular expression on file names whose group tells who made a picture: one-shot episodes then have a support by
    one maker and queries by another."""
    split: Literal["class", "category", "picture"] = "class"
    """What stays together when pictures are held out: whole classes, whole super-classes, or nothing."""
    validation: Annotated[float, Field(ge=0, lt=0.9)] = 0.15
    """Share of the pictures held out to choose the checkpoint."""
    test: Annotated[float, Field(ge=0, lt=0.9)] = 0.15
    """Share held out for the verdict. At 0 the verdict is on validation, and says so."""
    size: Size | None = None
    """(height, width) in pixels. Default: that of the network."""
    channels: Literal[1, 3] = 3
    """1 keeps the brightness alone."""
    fit: Fit | None = None
    """How a picture becomes a rectangle: "squash" both sides, "crop" the middle, "pad" with white, or "trim" white
    margins, as of drawings on paper. Default: as the network does."""
    crop_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of "crop": the share of the short side that is kept."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None
    """Filter of the scaling."""
    mean: tuple[float, float, float] | None = None
    """Per channel, of values in [0, 1]; subtracted."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Per channel; divided by."""
    check_leaks: bool = True
    """Look for equal and nearly equal pictures on both sides of the split, and move them."""
    cache: str | None = None
    """Folder of the decoded pictures. Default: in the run folder."""


class BaseConfig(Table):
    """[base]: a network taught before this run, on other pictures or with labels; this run goes on from it."""

    recipe: str | None = None
    """A configuration of its own; relative to the working folder. It trains into the folder `base` of the run."""


class NetworkConfig(Table):
    """[network]: what turns pixels into an embedding."""

    name: str = "shufflenet_v2_x1_0"
    """alexnet, vgg16, vgg16_bn, resnet50, shufflenet_v1, shufflenet_v2_x0_5 to x2_0, small, mobilenet_v2_tf,
    torchvision:NAME or timm:NAME."""
    weights: str | None = None
    """Where it starts from: a file, a URL, "hub", a bundle folder, or "default" (the bundle that ships)."""
    options: dict[str, Any] = {}
    """What the network's own constructor takes."""
    pool: str = "average"
    """average, max, average+max, gem, or grid:G."""
    head: Literal["linear", "mlp", "none"] = "linear"
    """From pooled features to the embedding."""
    dim: Annotated[int, Field(ge=2, le=8192)] = 128
    """Numbers in an embedding."""
    skip: bool = False
    """A head that keeps the ranking of the base at step 0 and learns what to add."""
    normalise: bool = True
    """Give vectors of unit length to the loss. (An index always holds unit vectors.)"""
    freeze: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """How many stages stay as they are, counted from the input."""
    freeze_batch_norm: bool = False
    """Keep the statistics of the base: for small sets of pictures."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each stage learns this much slower than the one above it."""
    head_rate: Positive = 1.0
    """The head learns this many times faster than the top stage."""


class SamplerConfig(Table):
    """[sampler]: which pictures make a batch."""

    kind: Literal["classes", "category", "every", "pairs", "triplets"] = "classes"
    """P classes × K pictures; the same, most often within a few super-classes; P pictures of whatever class, each K
    times, for data.labels = "none" and for learning from a teacher; pairs 1 : 1; given triplets."""
    classes: Annotated[int, Field(ge=2)] = 32
    """P, classes in a batch."""
    pictures: Count = 4
    """K, pictures of each class; with kind "every", how often a picture is in its batch, each time augmented anew."""
    categories: Count = 1
    """With kind "category": super-classes at a time."""
    share: Share = 0.7
    """With kind "category": share of such batches; the others draw from all classes."""
    same_makers: bool = False
    """With kinds "classes" and "category": the pictures of all classes in a batch are by the same K makers, whom
    data.maker tells. With loss "n_pairs", no negative is of another hand than the positive."""
    pairs: Annotated[int, Field(ge=2)] = 64
    """With kind "pairs" or "triplets": how many of them in a batch."""


class Kind(Table):
    """A table that names a class of a family and gives it options."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name: keyword arguments for the class."""
        return dict(self.model_extra or {})


class LossConfig(Kind):
    """[loss]: what is minimised; its other keys are the arguments of that loss."""

    kind: str = "supervised_contrastive"


class MinerConfig(Kind):
    """[miner]: which triplets are looked at; its other keys are the arguments of that miner."""

    kind: str = "semi_hard"
    schedule: tuple[tuple[float, str], ...] = ()
    """[[0.0, "random"], [0.3, "semi_hard"], …]: from which share of the run on which miner; takes the place of kind.
    Each has its own defaults: other keys cannot stand beside it."""


class TeacherConfig(Table):
    """[teacher]: an encoder whose vectors the network shall give; besides [loss], or alone with loss.kind = "none"."""

    bundles: tuple[str, ...] = ()
    """Its bundle folder, or "default"; of several, the vectors are joined. Without, there is no teacher."""
    weight: Positive = 1.0
    """Of what follows, against [loss]."""
    vectors: Annotated[float, Field(ge=0)] = 1.0
    """Weight of 1 - cosine between a vector and the teacher's."""
    similarities: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the divergence between both spreads of similarity over the batch."""
    temperature: Positive = 0.1
    """Of these spreads."""
    whiten: Share = 0.0
    """The teacher's principal axes are divided by this power of their standard deviation: 0 leaves them, 1 whitens."""
    views: Count = 1
    """What the teacher sees of each picture: the whole, and views - 1 random regions."""
    area: tuple[Share, Share] = (0.35, 1.0)
    """Share of the picture that a region holds."""
    aspect: tuple[Positive, Positive] = (0.75, 1.333)
    """Its width to its height, in sides of the picture."""


class MemoryConfig(Table):
    """[memory]: embeddings of past batches as further negatives and positives (cross-batch memory)."""

    size: Annotated[int, Field(ge=0)] = 0
    """How many embeddings; 0 is without."""
    start: Share = 0.2
    """Share of the run after which it is used: not while the embedding still moves fast."""


class OptimizerConfig(Table):
    """[optimizer]."""

    kind: Literal["adamw", "sgd", "muon"] = "adamw"
    """The optimiser. Muon makes the steps of kernels and matrices orthogonal: fewer steps from random weights."""
    rate: Positive = 1e-3
    """Highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Of kernels and matrices alone."""
    momentum: Share = 0.9
    """Of sgd and muon; muon is used to 0.95."""
    warmup: Share = 0.05
    """Share of the run in which the rate climbs; it then falls to zero along a cosine."""
    clip: Annotated[float, Field(ge=0)] = 5.0
    """Largest norm of the gradient; 0 is without limit."""
    accumulate: Count = 1
    """Batches per step."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the moving average of the weights that is validated and exported; 0 is without."""


class LoopConfig(Table):
    """[loop]."""

    steps: Count = 2000
    """Ends the training."""
    minutes: Positive | None = None
    """Ends the training after so many minutes, if the steps are not done before."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: whichever of bf16 and fp32 takes a step faster here, measured at the start."""
    small_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Begin with pictures of this share of the size: smaller ones teach nearly as much, and cost far less."""
    small_until: Share = 0.0
    """For this share of the run. Only for networks that take any size."""
    compile: bool = False
    """Compile the network (torch.compile); worth a minute at the start of long runs."""
    channels_last: bool = True
    """Memory layout; faster on processors with vector units."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda:0, …"""
    threads: Annotated[int, Field(ge=0)] = 0
    """Of PyTorch on the CPU; 0 is one per core."""
    report_every: Count = 50
    """Steps between two lines of metrics.jsonl."""
    validate_every: Count = 500
    """Steps between two validations."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after so many validations without a better one; 0 never stops early."""
    keep: Literal["best", "last"] = "best"
    """Which checkpoint the verdict and the export take."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two checkpoints."""
    tensorboard: bool = True
    """Write what metrics.jsonl holds for TensorBoard, too."""


class ValidationConfig(Table):
    """[validation]: how held-out pictures are asked."""

    select: Literal["map_at_r", "r_at_1", "triplet_accuracy", "one_shot"] = "map_at_r"
    """The measure that chooses the checkpoint and decides the verdict. Without labels MAP@R is asked of altered copies,
    of which mostly one picture is the original: it is then R@1."""
    episodes: Annotated[int, Field(ge=0)] = 0
    """One-shot episodes to ask as well; 0 is without."""
    way: Annotated[int, Field(ge=2)] = 20
    """Classes of an episode."""
    within_category: bool = True
    """The classes of an episode come from one super-class."""


class ViewsConfig(Table):
    """[views]: the embedding as the mean over slightly moved views, built into the exported graph."""

    count: Count = 1
    """How many views; 1 is the picture alone."""
    rotate: float = 8.0
    """± degrees."""
    scale: float = 0.08
    """± share of the size."""
    shift: float = 0.04
    """± share of the side."""
    shear: float = 0.0
    """± slant, as a tangent."""
    flip: bool = False
    """Each view once more, mirrored."""


class RetrievalConfig(Table):
    """[retrieval]: what is tried after training, on validation, and kept in the bundle where it helps beyond doubt."""

    flip: bool = True
    """The mean with the vector of the mirror image; at twice the work."""
    whiten: bool = True
    """Principal axes of the training pictures' vectors, evened out, the last ones left away."""
    expansion: bool = True
    """A search asks again with the query moved towards what it found first (alpha query expansion)."""
    k_reciprocal: bool = True
    """The first hundred hits are ordered anew by the neighbours they share with the query."""


class TextConfig(Table):
    """[text]: words and pictures in one space, by a text tower that is trained beside an encoder.

    Of the other tables only data.root, data.validation, data.test, data.cache, [sentences], [optimizer] and [loop] then
    have a part.
    """

    captions: bool = False
    """data.root is a CSV file of captions, a catalogue with words, or a log of clicks (query, shown, clicked)."""
    columns: tuple[str, ...] = ()
    """The columns that hold the words, joined by blanks. Default: the first called caption, captions, text, title or
    description."""
    encoder: str = "default"
    """The picture tower: a bundle folder, or "default"."""
    tower: Literal["hashing", "sentences"] = "hashing"
    """The text tower: "hashing" learns from hashed trigrams and words; "sentences" is the model of [sentences], which
    rests, and what is learned behind its vectors."""
    trigrams: Count = 8192
    """Of "hashing": ids that letter trigrams are hashed to."""
    words: Annotated[int, Field(ge=0)] = 8192
    """Of "hashing": ids that whole words are hashed to; 0 is trigrams alone, as in the paper."""
    length: Count = 256
    """Of "hashing": most ids of one text."""
    width: Count = 256
    """Of "hashing": numbers of an id's embedding."""
    hidden: tuple[Count, ...] = ()
    """Widths of the text tower's hidden layers. Few captions are best served by none: a linear map of the mean."""
    picture_hidden: Annotated[int, Field(ge=0)] = 0
    """Width of a hidden layer between the encoder's vectors and the common space; 0 is one linear map."""
    dim: Annotated[int, Field(ge=2, le=8192)] = 256
    """Numbers of a vector of the common space."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the numbers left out at random, in both towers."""
    batch: Annotated[int, Field(ge=2)] = 512
    """Pairs in a batch: each has the others as negatives."""
    temperature: Positive = 0.07
    """Of the softmax, at the start; it is learned."""
    coldest: Positive = 0.01
    """It never falls below."""
    hard: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a hinge over the hardest negatives of a batch; 0 is without."""
    margin: Annotated[float, Field(ge=0)] = 0.2
    """Of that hinge, in cosine."""
    unfreeze: Share = 1.0
    """Share of the run after which the encoder learns, too; 1 is never, and a step then takes milliseconds."""
    unfreeze_batch: Annotated[int, Field(ge=2)] = 64
    """Pairs in a batch from then on."""
    unfreeze_rate: Positive = 0.01
    """The encoder's learning rate, in parts of optimizer.rate."""


class SentencesConfig(Table):
    """[sentences]: a sentence-transformers model, which rests: the text tower, if text.tower says so, else its teacher.

    As a teacher it says how alike the texts of a batch are, and the tower of hashed words keeps that; the bundle then
    holds nothing of it.
    """

    model: str = ""
    """A folder as SentenceTransformer.save writes it, or a name on the Hugging Face hub. Without, there is none."""
    prefix: str | None = None
    """Put before each text, as "query: " for E5. Default: what the model says of itself."""
    weight: Positive = 1.0
    """Of the teacher, against the loss of words and pictures."""
    temperature: Positive = 0.1
    """Of the teacher: of the spreads of similarity over the texts of a batch that are compared."""


class TrainConfig(Table):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "run"
    """What the bundle will be called."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything drawn."""
    data: DataConfig = DataConfig()
    base: BaseConfig = BaseConfig()
    network: NetworkConfig = NetworkConfig()
    augment: Augmentation = Augmentation()
    sampler: SamplerConfig = SamplerConfig()
    loss: LossConfig = LossConfig()
    miner: MinerConfig | None = None
    memory: MemoryConfig = MemoryConfig()
    teacher: TeacherConfig = TeacherConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    validation: ValidationConfig = ValidationConfig()
    views: ViewsConfig = ViewsConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    text: TextConfig = TextConfig()
    sentences: SentencesConfig = SentencesConfig()

    @property
    def pairwise(self) -> bool:
        """Whether the loss takes pairs."""
        return self.loss.kind in PAIR_LOSSES

    def preprocessing(self) -> Preprocessing:
        """How pictures become pixels: the network's own way, but for what [data] says otherwise."""
        own = self._own_preprocessing()
        asked = {
            name: getattr(self.data, name) for name in ("size", "fit", "crop_ratio", "interpolation", "mean", "std")
        }
        return Preprocessing(**{**own, **{name: value for name, value in asked.items() if value is not None}})

    def fitting(self, preprocessing: Mapping[str, Any]) -> TrainConfig:
        """The same, its pictures fitted as `preprocessing` (the document of one) says, whatever the weights say."""
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in preprocessing.items()}
        return self.model_copy(update={"data": self.data.model_copy(update=values)})

    def _own_preprocessing(self) -> dict[str, Any]:
        """That of the bundle which the weights are from, else that of the network's published weights."""
        weights = self.network.weights
        place = default_path() if weights == "default" else Path(weights or "")
        if weights is not None and (place / MANIFEST).is_file():
            document = Bundle.load(place).preprocessing.to_document()
            return {name: tuple(v) if isinstance(v, list) else v for name, v in document.items()}
        return defaults(self.network.name, self.data.channels)

    def problems(self, unsure: Collection[str] = ()) -> list[str]:
        """What cannot be together, or does not exist; empty where the run can start, given what it needs (`missing`).

        Args:
            unsure: what is not as it was asked for, since that could not be read: "table.key", or whole tables.
                Nothing is said of what depends on it.
        """
        found = [*self._name_problems(), *self._combination_problems(), *self._network_problems()]
        return _sure(found, unsure)

    def missing(self, unsure: Collection[str] = ()) -> list[str]:
        """What the run needs of this machine and does not find there. Nothing is read or fetched.

        Args:
            unsure: as for `problems`.
        """
        found = []
        if (device := self.loop.device) != "auto" and not _no_device(device) and (wrong := _absent(device)):
            found.append(("loop.device", f"loop.device {device!r} is not there: {wrong}"))
        if not self.text.captions:  # of which these tables are no part
            weights, recipe = self.network.weights, self.base.recipe
            if weights not in (None, "hub") and (wrong := missing_weights(str(weights))):
                found.append(("network.weights", f"network.weights: {wrong}"))
            if recipe is not None and not Path(recipe).is_file():
                found.append(("base.recipe", f"base.recipe: there is no file {recipe}"))
            for bundle in self.teacher.bundles:
                if bundle != "default" and not (Path(bundle) / MANIFEST).is_file():
                    found.append(("teacher.bundles", f"teacher.bundles: there is no bundle {bundle}"))
        return _sure(found, unsure)

    def _name_problems(self) -> Iterator[Found]:
        if not self.data.root:
            yield "data.root", "data.root is missing: the folder of pictures, or a CSV file"
        try:
            re.compile(self.data.maker or "")
        except re.error as error:
            yield "data.maker", f"data.maker {self.data.maker!r} is not a regular expression: {error}"
        if unknown := nearest(self.network.name):
            yield "network.name", f"network.name {unknown}"
        else:
            types = option_types(self.network.name)
            for problem in _option_problems("network.options", self.network.options, types):
                yield "network.name network.options", problem
            if self.network.weights == "hub" and (wrong := unpublished(self.network.name)):
                yield "network.name network.weights", f"network.weights: {wrong}"
        if self.loop.device != "auto" and (wrong := _no_device(self.loop.device)):
            yield "loop.device", f"loop.device {wrong}"
        for problem in _made("loss", self.loss, LOSSES | PAIR_LOSSES, self._known())[0]:
            yield "loss.kind", problem
        if self.miner is not None:
            for problem in (
                _schedule_problems(self.miner) if self.miner.schedule else _made("miner", self.miner, MINERS)[0]
            ):
                yield "miner.kind miner.schedule", problem

    def _known(self) -> dict[str, Any]:
        """What a run gives to its loss itself. How many classes there are, only the pictures tell: here two."""
        return {"dim": self.network.dim, "classes": 2, "generator": None}

    def _combination_problems(self) -> list[Found]:
        loss = (LOSSES | PAIR_LOSSES).get(self.loss.kind)
        pairs, mined = self.loss.kind in PAIR_LOSSES, bool(getattr(loss, "needs_triplets", False))
        given = self.sampler.kind == "triplets"
        kind, network = self.loss.kind, self.network
        spherical = next((name for name in self._miners() if name in MINERS and MINERS[name].needs_unit), "")
        made = _made("loss", self.loss, LOSSES | PAIR_LOSSES, self._known())[1]
        checks = [
            (
                "base.recipe network.weights",
                self.base.recipe is not None and network.weights is not None,
                "base.recipe makes the weights that this run starts from: leave network.weights out",
            ),
            (
                "loss.kind sampler.kind",
                pairs != (self.sampler.kind == "pairs") and loss is not None,
                f"loss {kind!r} {'takes' if pairs else 'does not take'} pairs, sampler.kind is {self.sampler.kind!r}: "
                f'write sampler.kind = "{"pairs" if pairs else "classes"}"',
            ),
            (
                "loss.kind miner sampler.kind",
                mined and self.miner is None and not given,
                f'loss {kind!r} needs mined triplets: add [miner] kind = "semi_hard"',
            ),
            (
                "loss.kind miner",
                self.miner is not None and loss is not None and not mined,
                f'[miner] has nothing to do: loss {kind!r} looks at the whole batch; remove it, or take loss "triplet"',
            ),
            (
                "loss.kind teacher.bundles",
                kind == "none" and not self.teacher.bundles,
                'loss "none" learns from a teacher alone: name one in teacher.bundles, or choose another loss',
            ),
            (
                "teacher.bundles teacher.vectors teacher.similarities",
                bool(self.teacher.bundles) and self.teacher.vectors + self.teacher.similarities == 0,
                "teacher.vectors and teacher.similarities are both 0: the teacher teaches nothing",
            ),
            (
                "teacher.area",
                self.teacher.area[0] > self.teacher.area[1],
                f"teacher.area goes from the smaller share to the larger one, got {list(self.teacher.area)}",
            ),
            (
                "teacher.aspect",
                self.teacher.aspect[0] > self.teacher.aspect[1],
                f"teacher.aspect goes from the narrower shape to the wider one, got {list(self.teacher.aspect)}",
            ),
            (
                "teacher.bundles loss.kind sampler.kind",
                bool(self.teacher.bundles) and (pairs or given),
                f"[teacher] cannot be used with sampler.kind = {self.sampler.kind!r}",
            ),
            (
                "sampler.pictures sampler.kind",
                self.sampler.pictures < 2 and self.sampler.kind in ("classes", "category"),
                "sampler.pictures must be at least 2, or a class has nothing to agree on",
            ),
            (
                "sampler.pictures sampler.kind loss.kind",
                self.sampler.pictures < 2
                and self.sampler.kind == "every"
                and kind != "none"
                and not getattr(loss, "needs_classes", False),
                f"loss {kind!r} needs sampler.pictures of at least 2: a picture is alike with itself, augmented anew",
            ),
            (
                "sampler.same_makers data.maker",
                self.sampler.same_makers and self.data.maker is None,
                "sampler.same_makers needs data.maker: a regular expression on file names whose group is the maker",
            ),
            (
                "sampler.same_makers sampler.kind",
                self.sampler.same_makers and self.sampler.kind not in ("classes", "category"),
                f'sampler.same_makers goes with sampler.kind "classes" or "category", not {self.sampler.kind!r}',
            ),
            (
                "data.labels sampler.kind",
                self.data.labels == "none" and self.sampler.kind != "every",
                f'data.labels = "none" knows no classes to draw, and sampler.kind is {self.sampler.kind!r}: '
                'write sampler.kind = "every"',
            ),
            (
                "data.labels validation.episodes",
                self.data.labels == "none" and self.validation.episodes > 0,
                'data.labels = "none" has no classes for validation.episodes: leave it 0',
            ),
            (
                "sampler.kind loss.kind",
                given and not mined,
                f'sampler.kind = "triplets" needs a loss over triplets, not {kind!r}',
            ),
            (
                "sampler.kind miner",
                given and self.miner is not None,
                'sampler.kind = "triplets" brings its triplets: remove [miner]',
            ),
            (
                "memory.size loss.kind sampler.kind",
                self.memory.size > 0 and (pairs or given),
                f"[memory] cannot be used with sampler.kind = {self.sampler.kind!r}",
            ),
            (
                "memory.size loss.kind",
                self.memory.size > 0 and not getattr(loss, "takes_references", True),
                f"[memory] is of no use to loss {kind!r}, which looks at its batch or at centres of its own",
            ),
            (
                "network.normalise miner.kind miner.schedule",
                not network.normalise and bool(spherical),
                f'miner "{spherical}" works on the unit sphere: network.normalise must be true',
            ),
            (
                "network.normalise loss.kind loss.squash",
                network.normalise and bool(getattr(made, "needs_raw", False)),
                f"loss {kind!r} takes the logistic function of each coordinate, which leaves hardly a difference "
                "between vectors of unit length: set network.normalise = false, or loss.squash = false",
            ),
            (
                "network.skip network.head",
                network.skip and network.head == "none",
                'network.skip needs a head: network.head = "linear"',
            ),
            (
                "network.freeze network.head",
                network.freeze == "all" and network.head == "none",
                'network.freeze = "all" with head = "none" leaves nothing to train',
            ),
            (
                "data.validation loop.patience",
                self.data.validation == 0 and (self.loop.patience > 0),
                "loop.patience needs held-out pictures: data.validation is 0",
            ),
            (
                "data.validation data.test",
                self.data.validation + self.data.test >= 0.9,
                "data.validation + data.test leave less than a tenth to train on",
            ),
            (
                "validation.select validation.episodes",
                self.validation.select == "one_shot" and self.validation.episodes == 0,
                'validation.select = "one_shot" needs validation.episodes above 0',
            ),
            (
                "text.temperature text.coldest",
                self.text.temperature < self.text.coldest,
                f"text.temperature {self.text.temperature} is below text.coldest {self.text.coldest}",
            ),
            (
                "text.captions data.validation",
                self.text.captions and self.data.validation == 0,
                "text.captions needs held-out pictures to choose the checkpoint: data.validation is 0",
            ),
            (
                "text.tower sentences.model",
                self.text.tower == "sentences" and not self.sentences.model,
                'text.tower "sentences" needs a model: set sentences.model to a folder, or to a name on the hub',
            ),
            (
                "sentences.model text.captions",
                bool(self.sentences.model) and not self.text.captions,
                "[sentences] reads words, and there are none: set text.captions, or leave sentences.model out",
            ),
            (
                "views.count views.flip data.fit",
                (self.views.count > 1 or self.views.flip) and self.data.fit == "pad",
                '[views] moves the picture within its frame: data.fit = "pad" has another frame',
            ),
        ]
        return [(keys, problem) for keys, wrong, problem in checks if wrong]

    def _miners(self) -> list[str]:
        """The names of what mines in this run, in turn."""
        if self.miner is None:
            return []
        return [name for _, name in self.miner.schedule] or [self.miner.kind]

    def _network_problems(self) -> Iterator[Found]:
        """What does not go with the network; it is drawn up, without its numbers, only where that is a question."""
        table = self.network
        try:
            factor = int(pooling(table.pool).factor)
        except ValueError as error:
            factor = 0
            yield "network.pool", f"network.{error}"
        special = bool(table.options) or table.skip or table.freeze not in (0, "all") or table.pool != "average"
        if self.text.captions or nearest(table.name) or not (special or self._shrinks or self.data.size is not None):
            return
        types = option_types(table.name)
        options = {name: v for name, v in table.options.items() if not _option_problems("", {name: v}, types)}
        try:
            size = self.preprocessing().size
            smallest = min(size) * (self.loop.small_scale if self._shrinks else 1)
            if not special and smallest >= _ANY and not table.name.startswith("timm:"):
                return
            drawn = sketch(table.name, channels=self.data.channels, size=size, options=options)
        except ConfigError as error:
            named = (line if line.startswith("network ") else f"network.name: {line}" for line in error.problems)
            yield from ((_NETWORK, line) for line in named)
        except LookalikeError as error:  # a damaged bundle
            yield "network.weights", f"network.weights: {error}"
        else:
            if drawn is not None:
                yield from self._head_problems(drawn, factor)
                yield from self._size_problems(drawn, size)

    @property
    def _shrinks(self) -> bool:
        return self.loop.small_scale < 1 and self.loop.small_until > 0

    def _head_problems(self, drawn: Sketch, factor: int) -> Iterator[Found]:
        """Of stages and features; `factor` is how many times the features are pooled, 0 where that is unknown."""
        table, width = self.network, drawn.width * factor
        if table.freeze != "all" and table.freeze > drawn.stages:
            yield (
                f"{_NETWORK} network.freeze",
                f'network.freeze must be from 0 to {drawn.stages}, the stages of {table.name}, or "all"; '
                f"got {table.freeze}",
            )
        if drawn.tokens and factor and table.pool != "average":
            yield (
                f"{_NETWORK} network.pool",
                f'network.pool must be "average", got {table.pool!r}: {table.name} is a network of tokens, and pools '
                "them itself",
            )
        if table.skip and factor and table.head != "none" and table.dim > width:
            yield (
                f"{_NETWORK} network.skip network.dim network.pool network.head",
                f"network.dim must be at most {width}, the features of {table.name}, with network.skip; "
                f"got {table.dim}",
            )

    def _size_problems(self, drawn: Sketch, size: tuple[int, int]) -> Iterator[Found]:
        """Of the pictures as they are, and as they are at the beginning."""
        scale, name = self.loop.small_scale, self.network.name
        small = round(scale * size[0]), round(scale * size[1])
        if wrong := drawn.refusal(size):
            yield (
                f"{_NETWORK} network.weights",
                f"data.size: {name} takes no pictures of {size[0]} × {size[1]} pixels ({wrong}): set another size",
            )
        elif self._shrinks and (wrong := drawn.refusal(small)):
            yield (
                f"{_NETWORK} network.weights loop.small_scale loop.small_until",
                f"loop.small_scale {scale} makes pictures of {small[0]} × {small[1]} pixels, which {name} does not "
                f"take ({wrong}): set it to 1, or choose a network that takes any size",
            )


def read_config(
    source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = (), *, to_run: bool = True
) -> TrainConfig:
    """Read and check a configuration.

    Args:
        source: a TOML file, or its parsed content.
        overrides: ``table.key=value`` each, the value as TOML; what is no TOML is taken as text, so that
            ``data.root=/my pictures`` needs no quotes.
        to_run: look for what the run needs of this machine, too (`TrainConfig.missing`). False reads the configuration
            of a run that is over, perhaps on another machine.

    Raises:
        ConfigError: with every problem found.
    """
    where = "configuration" if isinstance(source, Mapping) else str(source)
    document = dict(source) if isinstance(source, Mapping) else _parse(Path(source))
    problems: list[str] = []
    for override in overrides:
        document = _overridden(document, override, problems)
    config, unsure = _validated(document, problems)
    problems += config.problems(unsure)
    if to_run:
        problems += config.missing(unsure)
    if problems:
        raise ConfigError(problems, where)
    return config


def _validated(document: Mapping[str, Any], problems: list[str]) -> tuple[TrainConfig, set[str]]:
    """The tables, with the default of what is wrong in them; what that is goes to `problems`.

    Also what is unsure for that reason: the keys and tables with defaults that were not asked for, and those that an
    unknown name may have meant.
    """
    tables = {name: dict(table) if isinstance(table, Mapping) else table for name, table in document.items()}
    unsure: set[str] = set()
    if isinstance(tables.get("augment"), dict):  # no table of ours: a class that stands on its own
        tables["augment"] = _augmentation(tables["augment"], problems)
    for name, model, family in (("loss", LossConfig, LOSSES | PAIR_LOSSES), ("miner", MinerConfig, MINERS)):
        if isinstance(tables.get(name), dict):
            misspelt = _misspelt(tables[name], _fields(model), family)
            tables[name] = {key: value for key, value in tables[name].items() if key not in misspelt}
            problems += [f"unknown key {name}.{key}: did you mean {field!r}?" for key, field in misspelt.items()]
            unsure |= {f"{name}.{field}" for field in misspelt.values()}
    try:
        return TrainConfig.model_validate(_with_tuples(tables)), unsure
    except ValidationError as error:
        found = error.errors()
    problems += _in_words(found)
    for one in found:
        *outer, key = [str(part) for part in one["loc"][:2]]
        (tables[outer[0]] if outer else tables).pop(key, None)
        meant = _nearest(key, _fields(_table_at(outer))) if one["type"] == "extra_forbidden" else key
        if meant is not None:
            unsure.add(".".join([*outer, meant]))
    return TrainConfig.model_validate(_with_tuples(tables)), unsure


def _misspelt(table: Mapping[str, Any], fields: Sequence[str], family: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a table of free keys that can only mean one of its own, and which: no loss has an option "kindd"."""
    strange = [key for key in table if key not in fields]
    if not strange or set(fields) <= table.keys():
        return {}
    options = {name for kind in family.values() for name in _parameter_types(kind)}
    meant = {key: _nearest(key, [*fields, *options]) or "" for key in strange if key not in options}
    return {key: field for key, field in meant.items() if field in fields and field not in table}


def _augmentation(table: Mapping[str, Any], problems: list[str]) -> Augmentation:
    """[augment]: unknown names, then wrong types of the others, then what these say together."""
    names = _fields(Augmentation)
    kept = {name: value for name, value in table.items() if name in names}
    problems += [f"unknown key augment.{name}: {_did_you_mean(name, names)}" for name in table if name not in names]
    try:
        try:
            return TypeAdapter(Augmentation).validate_python(_with_tuples(kept))
        except ValidationError as error:
            found = error.errors()
            problems += _in_words([{**one, "loc": ("augment", *one["loc"])} for one in found])
            kept = {name: value for name, value in kept.items() if name not in {one["loc"][0] for one in found}}
            TypeAdapter(Augmentation).validate_python(_with_tuples(kept))
    except ConfigError as error:
        problems += [f"augment.{problem}" for problem in error.problems]
    return Augmentation()


def write_config(config: TrainConfig) -> str:
    """The resolved configuration as TOML, every default written out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"is not TOML: {error}"], str(path)) from error


def _with_tuples(value: Any) -> Any:
    """TOML has lists; what is kept here does not change."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _overridden(document: dict[str, Any], override: str, problems: list[str]) -> dict[str, Any]:
    name, sign, text = override.partition("=")
    *tables, key = name.strip().split(".")
    if not sign or not key:
        problems.append(f"--set {override!r}: write table.key=value")
        return document
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if key == "kind" and tables in (["loss"], ["miner"]):
        return {**document, tables[0]: {"kind": value}}  # the other keys belonged to the kind before
    top = dict(document)
    place = top
    for number, table in enumerate(tables):
        inner = place.get(table)
        if not isinstance(inner, Mapping | None) or not _holds_keys(tables[: number + 1]):
            path = ".".join(tables[: number + 1])
            advice = " in the configuration" if _holds_keys(tables[: number + 1]) else f": write {path}=value"
            problems.append(f"--set {override!r}: {path} is no table{advice}")
            return document
        place[table] = dict(inner or {})
        place = place[table]
    place[key] = value
    return top


def _holds_keys(path: Sequence[str]) -> bool:
    """Whether this may be a table: a table of ours, one of free keys, or a name nobody knows, of which more is said."""
    annotation = _table_at(path)
    if annotation is None:
        return True
    return bool(_fields(annotation)) or typing.get_origin(annotation) is dict


def _table_at(path: Sequence[str]) -> Any:
    """What is declared there: a table, or the type of a value; None for what is not."""
    found: Any = TrainConfig
    for name in path:
        field = getattr(found, "model_fields", {}).get(name)
        if field is None:
            return None
        options = [one for one in typing.get_args(field.annotation) if hasattr(one, "model_fields")]
        found = options[0] if options else field.annotation
    return found


def _in_words(errors: Sequence[Any]) -> list[str]:
    """Pydantic's complaints as lines of ours: where, what, and the nearest valid name. One line for each place."""
    lines: dict[str, list[str]] = {}
    values = {}
    for error in errors:
        # What follows table and key is a position in a list, or which of several types was tried.
        where = [str(part) for number, part in enumerate(error["loc"]) if number < 2 or isinstance(part, int)]
        if error["type"] == "extra_forbidden":
            *outer, key = where
            lines[f"unknown key {'.'.join(where)}"] = [_did_you_mean(key, _fields(_table_at(outer)))]
            continue
        place = ".".join(where)
        said = f"{error['msg'][:1].lower()}{error['msg'][1:]}"
        values[place] = "" if error["type"] in ("missing", "missing_argument") else f", got {error['input']!r}"
        lines.setdefault(place, []).append(said)
    return [f"{place}: {', or '.join(said)}{values.get(place, '')}" for place, said in lines.items()]


def _fields(model: Any) -> list[str]:
    return list(getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {}))


def _nearest(name: str, valid: Sequence[str] | Mapping[str, Any]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=0.4)), None)


def _did_you_mean(name: str, valid: Sequence[str] | Mapping[str, Any]) -> str:
    close = _nearest(name, valid)
    return f"did you mean {close!r}?" if close else f"there are {', '.join(sorted(valid))}"


def _sure(found: Iterable[Found], unsure: Collection[str]) -> list[str]:
    """The problems that are about nothing unsure: neither a key, nor its table, nor, of a table, any of its keys."""
    tables = {name.partition(".")[0] for name in unsure}

    def judged(key: str) -> bool:
        return not {key, key.partition(".")[0]} & set(unsure) and ("." in key or key not in tables)

    return [problem for keys, problem in found if all(map(judged, keys.split()))]


def _no_device(name: str) -> str | None:
    """None where `name` is a device of PyTorch's, there or not; otherwise what is wrong with it."""
    try:
        known = torch.device(name).type != "meta"  # which computes nothing
    except RuntimeError:
        known = False
    return None if known else f'{name!r} is no device: write "auto" (a GPU where there is one), "cpu", or "cuda:0"'


def _absent(name: str) -> str | None:
    """None where this machine has a device of that name; otherwise what it has."""
    device = torch.device(name)
    if device.type == "cpu":
        return None
    if device.type == "cuda":  # asked for their number only: a GPU that is touched here could not be shared later
        count = torch.cuda.device_count()
        if (device.index or 0) < count:
            return None
        if count:
            return f'this machine has {", ".join(f"cuda:{number}" for number in range(count))}; name one, or "auto"'
        return 'this machine has no GPU that PyTorch can use: write "auto" or "cpu", or install PyTorch for your GPU'
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return f'{str(error).splitlines()[0]}: write "auto" or "cpu"'
    return None


def _made(
    where: str, table: Kind, family: Mapping[str, Any], known: Mapping[str, Any] | None = None
) -> tuple[list[str], Any]:
    """What is wrong with a loss or miner, and the thing itself where nothing is.

    Args:
        where: the name of the table.
        table: names it, and gives its options.
        family: what there is.
        known: further arguments, for those that take them; a table cannot give these.
    """
    if table.kind not in family:
        return [f"{where}.kind {table.kind!r} is unknown: {_did_you_mean(table.kind, family)}"], None
    kind, known = family[table.kind], known or {}
    types = _parameter_types(kind)
    own = {name: type_ for name, type_ in types.items() if name not in known}
    problems, options = [], {}
    for name, value in table.options.items():
        wrong = _option_problems(where, {name: value}, own)
        problems += wrong
        if not wrong:
            options[name] = value
    while True:
        try:
            made = kind(**options, **{name: value for name, value in known.items() if name in types})
            return problems, None if problems else made
        except (TypeError, ValueError) as error:
            # A message begins with the argument that it is about: without that, the next one may show.
            problems.append(f"{where}.{error}")
            if options.pop(str(error).partition(" ")[0], None) is None:
                return problems, None


def _schedule_problems(table: MinerConfig) -> list[str]:
    problems = [
        f"miner.{name} has no part beside miner.schedule, whose miners have their defaults: remove one of the two"
        for name in table.options
    ]
    for start, kind in table.schedule:
        if kind not in MINERS:
            problems.append(f"miner.schedule names {kind!r}: {_did_you_mean(kind, MINERS)}")
        if not 0 <= start < 1:
            problems.append(f"miner.schedule starts {kind!r} at {start}: a share of the run, from 0 to below 1")
    if all(0 <= start < 1 for start, _ in table.schedule):
        try:
            Schedule([(start, MINERS.get(kind, SemiHard)()) for start, kind in table.schedule])
        except ValueError as error:
            problems.append(f"miner.schedule: {error}")
    return problems


def _option_problems(where: str, options: Mapping[str, Any], types: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        if name not in types:
            found.append(f"unknown key {where}.{name}: {_did_you_mean(name, types) if types else 'it takes none'}")
            continue
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            found.append(f"{where}.{name}: {error.errors()[0]['msg']}, got {value!r}")
    return found


def _parameter_types(kind: Any) -> dict[str, Any]:
    """Parameters of a constructor with their annotations."""
    hints = typing.get_type_hints(kind.__init__)
    names = [name for name in inspect.signature(kind).parameters if name != "self"]
    return {name: hints.get(name, Any) for name in names}


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not set is left out."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value
