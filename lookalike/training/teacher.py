"""Learning from a teacher: a student keeps the vectors of a larger encoder, and how alike it finds things.

The teacher looks at every training picture once before training: at the whole, and at some random regions of it, which
are pictures of their own to both (a teacher that sees what the student sees teaches best: Beyer et al. 2022,
"Knowledge distillation: a good teacher is patient and consistent"). What augmentation then does to the student's pixels
the teacher never sees, so that the student learns not to mind it.

The teacher's vectors are kept beside the pixel cache: its encoder is not asked again.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lookalike.encoder import Encoder
from lookalike.errors import ConfigError, TrainingError
from lookalike.images import Region, shown
from lookalike.training.datasets import Source, path_of
from lookalike.vectors import Vectors, unit

# Vectors that the axes of a target are found from.
FITTED = 20_000

__all__ = ["Axes", "Distillation", "Lessons", "kept", "looked", "regions", "taught"]


def regions(
    paths: Sequence[str], views: int, area: tuple[float, float], aspect: tuple[float, float], seed: int
) -> list[Region]:
    """Random regions of pictures: `views` of each, side by side.

    Args:
        paths: the pictures.
        views: how many regions of each.
        area: (low, high) share of the picture.
        aspect: (low, high) ratio of width to height in shares of the sides, uniform in its logarithm.
        seed: of what is drawn.
    """
    dice = np.random.default_rng(seed)
    size = dice.uniform(*area, size=(len(paths), views))
    ratio = np.exp(dice.uniform(math.log(aspect[0]), math.log(aspect[1]), size=size.shape))
    wide, high = np.minimum(np.sqrt(size * ratio), 1), np.minimum(np.sqrt(size / ratio), 1)
    left, top = (1 - wide) * dice.random(size.shape), (1 - high) * dice.random(size.shape)
    right, bottom = np.minimum(left + wide, 1), np.minimum(top + high, 1)
    boxes = np.stack([left, top, right, bottom], axis=2).round(4)
    return [
        Region(path, (box[0], box[1], box[2], box[3]))
        for path, own in zip(paths, boxes.tolist(), strict=True)
        for box in own
    ]


def taught(
    bundles: Sequence[str], sources: Sequence[Source], folder: str | os.PathLike[str], say: Callable[[str], None]
) -> Vectors:
    """What the teachers make of pictures: computed once, then read from the folder.

    Args:
        bundles: encoder bundles, or "default". The vectors of several are joined, and count alike.
        sources: pictures or regions of them, all readable.
        folder: where the vectors are kept.
        say: gets a line for each teacher that has to look.

    Returns:
        (n, dim) float32, rows of unit length.

    Raises:
        BundleError: no bundle there.
        TrainingError: a picture cannot be read any more, or the vectors cannot be written.
    """
    found = []
    for bundle in bundles:
        encoder = Encoder.default() if bundle == "default" else Encoder.load(bundle)
        vectors = looked(encoder, sources, Path(folder), say)
        if not (readable := np.isfinite(vectors[:, 0])).all():
            lost = shown(path_of(sources[int(np.argmin(readable))]))
            raise TrainingError(f"the teacher cannot read a picture that could be read before: {lost}")
        found.append(unit(vectors))
    return found[0] if len(found) == 1 else unit(np.concatenate(found, axis=1))


def looked(encoder: Encoder, sources: Sequence[Source], folder: Path, say: Callable[[str], None]) -> Vectors:
    """The vectors of pictures, computed once and kept in a folder: (n, dim) float32, NaN where one cannot be read.

    They are kept in half precision. Arguments and errors as for `taught`.
    """

    def look() -> Vectors:
        say(f"{encoder.name} looks at {len(sources):,} views of pictures, once")
        vectors = np.empty((len(sources), encoder.dim), dtype=np.float16)
        for row, outcome in enumerate(encoder.stream(sources)):
            vectors[row] = np.nan if outcome.vector is None else outcome.vector
        return np.asarray(vectors, dtype=np.float32)

    name = f"teacher-{encoder.fingerprint}-{_identity(sources)}.npy"
    return kept(folder / name, (len(sources), encoder.dim), encoder.name, look)


def kept(held: Path, shape: tuple[int, int], whose: str, make: Callable[[], Vectors]) -> Vectors:
    """Vectors from a file, or made and put there, in half precision.

    Args:
        held: the file.
        shape: a file that holds another one is made anew.
        whose: for the error.
        make: gives the vectors.

    Returns:
        float32 of that shape, the same whether they were made or read.

    Raises:
        TrainingError: they cannot be written.
    """
    if held.exists():
        vectors = np.load(held, allow_pickle=False)
        if vectors.shape == shape:
            return np.asarray(vectors, dtype=np.float32)
    vectors = make().astype(np.float16)
    scratch = held.with_suffix(".tmp")
    try:
        held.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            np.save(file, vectors)
        scratch.replace(held)
    except OSError as error:
        raise TrainingError(
            f"cannot keep the vectors of {whose} in {shown(held.parent)}: {error.strerror}; "
            "make room, or set data.cache"
        ) from error
    return np.asarray(vectors, dtype=np.float32)


def _identity(sources: Sequence[Source]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        path = path_of(source)
        status = os.stat(path)  # noqa: PTH116 - undecodable bytes stay
        box = source.box if isinstance(source, Region) else ""
        digest.update(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}\0{box}\0".encode())
    return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Lessons:
    """What a teacher says of training pictures: of each as a whole, and of some regions of each.

    Attributes:
        targets: (n · views, dim) unit rows: of the n wholes, then of the regions, those of a picture side by side.
        views: of each picture, the whole among them.
        seed: of which view a batch takes.
    """

    targets: Tensor
    views: int
    seed: int

    def look(self, pictures: npt.NDArray[np.int64], number: int) -> tuple[npt.NDArray[np.int64], Tensor]:
        """A view for each picture of a batch.

        Args:
            pictures: (m,) their positions among the training pictures.
            number: of the batch; what is drawn depends on it and the seed alone.

        Returns:
            (m,) the region of each, counted over those of all pictures, or -1 for the whole; and (m, dim) targets.
        """
        count = len(self.targets) // self.views
        view = np.random.default_rng([self.seed, number]).integers(self.views, size=len(pictures))
        region = np.where(view == 0, -1, pictures * (self.views - 1) + view - 1)
        return region, self.targets[torch.from_numpy(np.where(region < 0, pictures, count + region))]


@dataclass(frozen=True)
class Axes:
    """The directions in which a teacher's vectors differ most: what a student of fewer numbers keeps of them.

    Vectors are centred and projected on their first principal axes, each divided by a power of its standard deviation
    (0 leaves them, 1 whitens), and scaled to unit length.

    Attributes:
        mean: (dim,) of the teacher's vectors.
        axes: (dim, kept), columns.
        kept: share of the variance that the axes hold.
    """

    mean: Vectors
    axes: Vectors
    kept: float

    @classmethod
    def of(cls, vectors: Vectors, dim: int, whiten: float, seed: int = 0) -> Axes:
        """Of (n, d) vectors, or a sample of them. Raises ConfigError where there are fewer axes than `dim`."""
        some = vectors[np.random.default_rng(seed).permutation(len(vectors))[:FITTED]].astype(np.float64)
        most = min(len(some) - 1, vectors.shape[1])
        if dim > most:
            raise ConfigError(
                [f"network.dim is {dim}, but {len(some):,} vectors of a teacher of {vectors.shape[1]} numbers span "
                 f"{most}: lower network.dim"]
            )  # fmt: skip
        mean = some.mean(axis=0)
        values, axes = np.linalg.eigh(np.cov(some - mean, rowvar=False))
        values, axes = np.maximum(values[::-1], 1e-12), axes[:, ::-1]
        scaled = axes[:, :dim] / values[:dim] ** (whiten / 2)
        return cls(mean.astype(np.float32), scaled.astype(np.float32), float(values[:dim].sum() / values.sum()))

    @staticmethod
    def spanned(vectors: Vectors) -> int:
        """Along how many axes (n, d) vectors differ by at least a hundredth of what they do along the first.

        Evened out, the others would be rounding errors, as loud as the rest: in half precision at the latest.
        """
        values = np.linalg.eigvalsh(np.cov(vectors.astype(np.float64), rowvar=False))
        return int((values > 1e-4 * values[-1]).sum())

    def __call__(self, vectors: Vectors) -> Vectors:
        """(n, d) → (n, kept) float32, rows of unit length."""
        return unit((vectors - self.mean) @ self.axes)


@dataclass(frozen=True)
class Distillation:
    """How far a student's vectors are from those it should give: (n, dim) and (n, dim) → a scalar.

    Args:
        vectors: weight of 1 - cosine between the vector and its target, averaged. At 0, both may have any length.
        similarities: weight of the divergence between how target and student spread their similarity over the other
            pictures of the batch, KL(softmax(target / T) ‖ softmax(student / T)): what the student has to keep is the
            order of neighbours (Park et al. 2019, "Relational knowledge distillation"; Passalis and Tefas 2018).
        temperature: T.
    """

    vectors: float = 1.0
    similarities: float = 1.0
    temperature: float = 0.1

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The loss, in float32. Embeddings are scaled to unit length; targets have it."""
        with torch.autocast(embeddings.device.type, enabled=False):
            student = functional.normalize(embeddings.float(), dim=1)
            loss = student.new_zeros(())
            if self.vectors:
                loss = loss + self.vectors * (1 - (student * targets).sum(dim=1)).mean()
            if self.similarities:
                own = torch.eye(len(student), dtype=torch.bool, device=student.device)
                ours, theirs = (
                    (rows @ rows.T / self.temperature).masked_fill(own, -torch.inf).log_softmax(dim=1)
                    for rows in (student, targets)
                )
                gap = (theirs.exp() * (theirs - ours)).masked_fill(own, 0)
                loss = loss + self.similarities * gap.sum(dim=1).mean()
        return loss
