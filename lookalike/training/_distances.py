"""What losses and miners have in common: full precision, the gallery, who is of whose class, and distances.

The *gallery* of a batch is the batch itself, followed by the references (the cross-batch memory) where there are any.
Anchors are rows of the batch; positives and negatives are rows of the gallery; row i of the batch is row i of the
gallery.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from lookalike.errors import ShapeError

References = tuple[torch.Tensor, torch.Tensor]
Triplets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Distance = Literal["squared", "euclidean"]

# Anchors are taken in blocks of at least so many, for the products of matrices to be worth it, and more while their
# distances stay within so many cells: half a MiB of float32, in a processor's cache (measured for 512 to 8192 anchors:
# within a fifth of the best size for each).
BLOCK_ROWS = 128
BLOCK_CELLS = 1 << 17
# Up to so many positives per anchor, a pass over its distances for each is faster than sorting (measured: 0.2 to 0.7 ms
# per million distances and pass, 11 to 25 ms for a binary search, 35 to 50 ms for a sort).
FEW = 32
# Squares below it are taken for zero, so that the root has a gradient of zero there and not an infinite one; distances
# up to ZERO are then zero.
_TINY = 1e-30
ZERO = 2e-15


def check_distance(distance: str) -> Distance:
    """The name of a distance, or ValueError."""
    for known in get_args(Distance):
        if distance == known:
            return known
    raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, got {distance!r}")


def check_batch(embeddings: torch.Tensor, labels: torch.Tensor, references: References | None = None) -> None:
    """Raise ShapeError unless embeddings are (B, d) floats, labels (B,) integers, and references alike."""
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ShapeError(f"embeddings must be (B, d) floats, got {tuple(embeddings.shape)} of {embeddings.dtype}")
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        wanted = f"({len(embeddings)},) integers, one for each embedding"
        raise ShapeError(f"labels must be {wanted}, got {tuple(labels.shape)} of {labels.dtype}")
    if references is None:
        return
    vectors, names = references
    if vectors.ndim != 2 or vectors.shape[1] != embeddings.shape[1] or names.shape != vectors.shape[:1]:
        wanted = f"vectors (M, {embeddings.shape[1]}) with labels (M,)"
        raise ShapeError(f"references must be {wanted}, got {tuple(vectors.shape)} with {tuple(names.shape)}")


def full_precision(embeddings: torch.Tensor) -> torch.autocast:
    """A context without autocast: what is compared here differs in the fifth digit."""
    return torch.autocast(embeddings.device.type, enabled=False)


def precise(vectors: torch.Tensor) -> torch.Tensor:
    """As float32, or float64 where it is that already."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def with_references(rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> References:
    """The gallery and its labels: the batch, then the references."""
    if references is None:
        return rows, labels
    vectors, names = references
    return torch.cat([rows, vectors.to(rows)]), torch.cat([labels, names.to(labels)])


@dataclass(frozen=True, slots=True)
class Classes:
    """Who is of whose class.

    Attributes:
        index: (B, K) int64; gallery rows of the anchor's class but for itself, at least one column. Rows of smaller
            classes are filled up with the anchor's own number.
        present: (B, K) bool; False where filled up.
        own: (B, 1) int64; the anchor's own number.
        order: (M,) int64; the gallery sorted by class.
        start: (B,) int64; where in `order` the anchor's class starts.
        size: (B,) int64; gallery rows of the anchor's class, itself included.
    """

    index: torch.Tensor
    present: torch.Tensor
    own: torch.Tensor
    order: torch.Tensor
    start: torch.Tensor
    size: torch.Tensor

    @property
    def negatives(self) -> torch.Tensor:
        """(B,) int64: gallery rows of other classes."""
        return len(self.order) - self.size

    @property
    def triplets(self) -> torch.Tensor:
        """How many triplets there are in all: a scalar, int64."""
        return ((self.size - 1) * self.negatives).sum()

    def block(self, part: slice) -> Classes:
        """Of some anchors alone."""
        columns = (self.index[part], self.present[part], self.own[part])
        return Classes(*columns, self.order, self.start[part], self.size[part])


def classes_of(labels: torch.Tensor, names: torch.Tensor) -> Classes:
    """Find the classmates of every anchor without comparing all labels with all: by sorting them.

    Args:
        labels: (B,) integers, of the batch.
        names: (M,) integers, of the gallery; the first B are `labels`.
    """
    names = names.long().contiguous()
    labels = names[: len(labels)]
    order = torch.argsort(names, stable=True)
    ordered = names[order]
    start, stop = torch.searchsorted(ordered, labels), torch.searchsorted(ordered, labels, right=True)
    everywhere = torch.arange(len(names), device=names.device)
    place = torch.empty_like(order).scatter_(0, order, everywhere)
    own, rank, size = everywhere[: len(labels), None], place[: len(labels)] - start, stop - start
    slot = everywhere[: max(1, int(size.max()) - 1 if len(size) else 1)]
    present = slot < (size - 1)[:, None]
    # The anchor itself is one of its class: slots from its rank on are moved past it.
    found = start[:, None] + slot + (slot >= rank[:, None])
    index = torch.where(present, order[found.clamp(max=len(names) - 1)], own)
    return Classes(index, present, own, order, start, size)


def blocks(left: torch.Tensor, right: torch.Tensor, buffers: int) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Slices of the anchors, so that no more than a block of their distances to the gallery is held.

    With each come buffers (b, M) of any content: made once, since the system takes longer to hand out fresh memory
    than most of the passes over it need.
    """
    rows, columns = len(left), len(right)
    step = max(1, min(rows, max(BLOCK_ROWS, BLOCK_CELLS // max(1, columns))))
    memory = [left.new_empty(step, columns) for _ in range(buffers)]
    for start in range(0, rows, step):
        part = slice(start, min(rows, start + step))
        yield part, [buffer[: part.stop - start] for buffer in memory]


def centred(rows: torch.Tensor, gallery: torch.Tensor) -> References:
    """Both moved by one vector to the middle of the gallery.

    It changes no distance, but the numbers below are then as small as the distances: embeddings that crowd together,
    or share an offset, would otherwise lose theirs to rounding.
    """
    middle = gallery.detach().mean(0)
    return rows - middle, gallery - middle


def factors(rows: torch.Tensor, gallery: torch.Tensor) -> References:
    """Two matrices, (B, d + 2) and (M, d + 2), whose products are squared distances: |x|² + |y|² - 2 x·y."""
    left = torch.cat([-2 * rows, rows.square().sum(1, keepdim=True), rows.new_ones(len(rows), 1)], 1)
    right = torch.cat([gallery, gallery.new_ones(len(gallery), 1), gallery.square().sum(1, keepdim=True)], 1)
    return left, right


def distances(
    left: torch.Tensor, right: torch.Tensor, distance: Distance, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Distances (B, M) from `factors`, or from a block of the left ones. The gradient at zero is zero."""
    return _rooted(torch.mm(left, right.T, out=out), distance)


def pair_distances(left: torch.Tensor, right: torch.Tensor, distance: Distance) -> torch.Tensor:
    """Distances (n,) of n pairs of rows. The gradient at zero is zero."""
    return _rooted((left - right).square().sum(1), distance)


def _rooted(squares: torch.Tensor, distance: Distance) -> torch.Tensor:
    """In place: nothing else holds the squares, and fresh memory costs more than the root."""
    return squares.clamp_(min=0) if distance == "squared" else squares.clamp_(min=_TINY).sqrt_()


def apart(distance: torch.Tensor, classes: Classes, value: float = torch.inf) -> torch.Tensor:
    """The same (B, M) distances, in place, with `value` at the anchor itself and at its classmates."""
    return distance.scatter_(1, classes.index, value).scatter_(1, classes.own, value)
