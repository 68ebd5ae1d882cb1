"""What the document of a run may hold: one table per part of the run, each key with its bounds and its meaning.

Everything has a default but ``data.root``. The sentences below the keys are the reference that users read
(`scripts/write_reference.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lookalike.bundle import MANIFEST, Bundle, default_path
from lookalike.images import Fit, Preprocessing
from lookalike.training.augment import Augmentation
from lookalike.training.networks import defaults

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Size = tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]]

__all__ = [
    "BaseConfig",
    "DataConfig",
    "Kind",
    "LoopConfig",
    "LossConfig",
    "MemoryConfig",
    "MinerConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "RetrievalConfig",
    "SamplerConfig",
    "SentencesConfig",
    "Table",
    "TeacherConfig",
    "TextConfig",
    "TrainConfig",
    "ValidationConfig",
    "ViewsConfig",
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
    """What stays together when pictures are held out: "class", whole classes; "category", whole super-classes;
    "picture", nothing."""
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
    """Filter of the scaling: "bilinear", "bicubic" or "lanczos"."""
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
    """average, max, average+max, gem, grid:G, or attention:H (H means with weights that are learned)."""
    head: Literal["linear", "mlp", "none"] = "linear"
    """From pooled features to the embedding: "linear", "mlp" or "none"."""
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
    """"classes": P classes × K pictures; "category": the same, most often within a few super-classes; "every": P
    pictures of whatever class, each K times, for data.labels = "none" and for learning from a teacher; "pairs": pairs,
    1 : 1; "triplets": given triplets."""
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
    """[optimizer]: how the weights move."""

    kind: Literal["adamw", "sgd", "muon"] = "adamw"
    """"adamw", "sgd" or "muon". Muon makes the steps of kernels and matrices orthogonal: fewer steps from random
    weights."""
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
    """[loop]: how long, on what, and how often it is looked at."""

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
    """Which checkpoint the verdict and the export take: "best" or "last"."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two checkpoints."""
    tensorboard: bool = True
    """Write what metrics.jsonl holds for TensorBoard, too."""


class ValidationConfig(Table):
    """[validation]: how held-out pictures are asked."""

    select: Literal["map_at_r", "r_at_1", "triplet_accuracy", "one_shot"] = "map_at_r"
    """"map_at_r", "r_at_1", "triplet_accuracy" or "one_shot": the measure that chooses the checkpoint and decides the
    verdict. Without labels MAP@R is asked of altered copies, of which mostly one picture is the original: it is then
    R@1."""
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

    def preprocessing(self) -> Preprocessing:
        """How pictures become pixels: the network's own way, but for what [data] says otherwise."""
        asked = {field.name: getattr(self.data, field.name) for field in fields(Preprocessing)}
        own = self._own_preprocessing()
        return Preprocessing(**{**own, **{name: value for name, value in asked.items() if value is not None}})

    def fitting(self, preprocessing: Mapping[str, Any]) -> TrainConfig:
        """The same, its pictures fitted as `preprocessing` (the document of one) says, whatever the weights say."""
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in preprocessing.items()}
        return self.model_copy(update={"data": self.data.model_copy(update=values)})

    def _own_preprocessing(self) -> dict[str, Any]:
        """That of the bundle which the weights are from, else that of the network's published weights."""
        weights = self.network.weights
        place = default_path() if weights == "default" else Path(weights or "")
        if weights is not None and (place / MANIFEST).is_file():
            return asdict(Bundle.load(place).preprocessing)
        return defaults(self.network.name, self.data.channels)
