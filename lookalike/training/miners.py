"""Which triplets of a batch are worth learning from.

::

    anchors, positives, negatives = miner(embeddings, labels, references=None, generator=None)

Three (T,) int64 tensors. Anchors are rows of the batch; positives (the anchor's label) and negatives (another label)
are rows of the gallery: the batch, followed by the references where there are any. A batch without positives or without
negatives gives three empty ones.

No miner makes all triplets to choose from: anchors are taken in blocks of bounded memory, and each looks at its own
distances only. `miner.at(progress)` is the miner for a share of the run: itself, unless it is a `Schedule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from lookalike.training._all_triplets import all_triplets
from lookalike.training._distances import (
    FEW,
    Classes,
    Distance,
    References,
    Triplets,
    apart,
    blocks,
    centred,
    check_batch,
    check_distance,
    classes_of,
    distances,
    factors,
    full_precision,
    pair_distances,
    precise,
    with_references,
)

__all__ = [
    "MINERS",
    "DistanceWeighted",
    "Hard",
    "Miner",
    "RandomNegatives",
    "Schedule",
    "SemiHard",
    "triplet_share",
]


class Miner:
    """A choice of triplets.

    Attributes:
        draws: needs a generator.
        needs_unit: embeddings must have unit length.
    """

    draws: ClassVar[bool] = False
    needs_unit: ClassVar[bool] = False

    def __call__(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        references: References | None = None,
        generator: torch.Generator | None = None,
    ) -> Triplets:
        """Choose triplets.

        Args:
            embeddings: (B, d) floats, compared in float32 (float64 stays so).
            labels: (B,) integers.
            references: vectors (M, d) and labels (M,) of earlier batches.
            generator: where the miner `draws`; nothing is drawn from torch's own.

        Raises:
            ShapeError: shapes or types do not fit.
            ValueError: no generator for a miner that draws, or no unit length where it is needed.
        """
        check_batch(embeddings, labels, references)
        if self.draws and generator is None:
            raise ValueError(f"{type(self).__name__} draws at random: pass a torch.Generator")
        with torch.no_grad(), full_precision(embeddings):
            rows = precise(embeddings)
            gallery, names = with_references(rows, labels, references)
            if self.needs_unit:
                _check_unit(gallery)
            return self._mine(rows, gallery, classes_of(labels, names), generator)

    def at(self, progress: float) -> Miner:
        """The miner when `progress`, from 0 to 1, of the run is done."""
        return self

    def _mine(
        self, rows: torch.Tensor, gallery: torch.Tensor, classes: Classes, generator: torch.Generator | None
    ) -> Triplets:
        raise NotImplementedError


def _check_unit(gallery: torch.Tensor) -> None:
    """bfloat16 leaves errors of half a percent."""
    lengths = gallery.norm(dim=1)
    if len(lengths) and float((lengths - 1).abs().max()) > 0.02:
        raise ValueError(
            f"embeddings must have unit length, got {float(lengths.min()):.3g} to {float(lengths.max()):.3g}"
        )


def _positive_pairs(classes: Classes) -> torch.Tensor:
    """(B, K) bool: the slots of `classes.index` that make a triplet with some negative."""
    return classes.present & (classes.negatives > 0)[:, None]


def _triplets(classes: Classes, chosen: torch.Tensor, negatives: torch.Tensor) -> Triplets:
    """Anchors, positives and negatives of the chosen slots (B, K), anchor by anchor."""
    anchors = classes.own.expand_as(chosen)[chosen]
    return anchors, classes.index[chosen], negatives[chosen]


class RandomNegatives(Miner):
    """Every positive pair with negatives drawn evenly, with replacement. Looks at no distance.

    Args:
        per_pair: how many negatives for each pair.
    """

    draws: ClassVar[bool] = True

    def __init__(self, per_pair: int = 1) -> None:
        if per_pair < 1:
            raise ValueError(f"per_pair must be at least 1, got {per_pair}")
        self.per_pair = per_pair

    def _mine(
        self, rows: torch.Tensor, gallery: torch.Tensor, classes: Classes, generator: torch.Generator | None
    ) -> Triplets:
        chosen = _positive_pairs(classes)
        anchors = classes.own.expand_as(chosen)[chosen].repeat_interleave(self.per_pair)
        positives = classes.index[chosen].repeat_interleave(self.per_pair)
        # Of the gallery in order of class, the negatives are what comes before and after the anchor's own class.
        number = classes.negatives[anchors]
        rank = (_uniform(anchors.shape, generator, anchors.device) * number).long().clamp(max=number - 1)
        start, size = classes.start[anchors], classes.size[anchors]
        return anchors, positives, classes.order[torch.where(rank < start, rank, rank + size)]


class Hard(Miner):
    """The hardest negative, which is the nearest: Hermans, Beyer and Leibe, "In Defense of the Triplet Loss" (2017).

    From a network at random, or with a fast learning rate, it tends to collapse: begin with `SemiHard`.

    Args:
        positives: "hardest": one triplet for each anchor, with its farthest positive ("batch hard"); "all": one for
            each positive pair.
    """

    def __init__(self, positives: Literal["hardest", "all"] = "hardest") -> None:
        if positives not in ("hardest", "all"):
            raise ValueError(f"positives must be hardest or all, got {positives!r}")
        self.positives = positives

    def _mine(
        self, rows: torch.Tensor, gallery: torch.Tensor, classes: Classes, generator: torch.Generator | None
    ) -> Triplets:
        chosen = _positive_pairs(classes)
        negatives = torch.empty_like(classes.own)
        left, right = factors(*centred(rows, gallery))
        for part, (values,) in blocks(left, right, buffers=1):
            block = classes.block(part)
            distances(left[part], right, "squared", out=values)
            if self.positives == "hardest":
                near = torch.where(block.present, values.gather(1, block.index), -torch.inf)
                only = torch.zeros_like(chosen[part]).scatter_(1, near.argmax(1, keepdim=True), True)
                chosen[part] &= only
            negatives[part] = apart(values, block).argmin(1, keepdim=True)
        return _triplets(classes, chosen, negatives.expand_as(chosen))


class SemiHard(Miner):
    """For every positive pair, the hardest negative that is still farther than the positive: Schroff et al. (2015).

    Of the negatives with d(a, n) > d(a, p) the nearest. The safe default: the hardest negatives of all, early in
    training, pull everything into one point.

    Args:
        margin: look no farther than d(a, p) + margin: pairs whose nearest such negative lies beyond cost nothing and
            are left out. None for no limit.
        otherwise: where no negative is farther than the positive: "farthest" takes the farthest, the easiest of them
            (as TensorFlow Addons does); "skip" leaves the pair out.
        distance: "squared" or "euclidean", the one in which the margin is meant.
    """

    def __init__(
        self,
        margin: float | None = None,
        otherwise: Literal["farthest", "skip"] = "farthest",
        distance: Literal["squared", "euclidean"] = "squared",
    ) -> None:
        if margin is not None and not margin > 0:
            raise ValueError(f"margin must be above 0, got {margin}")
        if otherwise not in ("farthest", "skip"):
            raise ValueError(f"otherwise must be farthest or skip, got {otherwise!r}")
        self.margin, self.otherwise = margin, otherwise
        self.distance = check_distance(distance)

    def _mine(
        self, rows: torch.Tensor, gallery: torch.Tensor, classes: Classes, generator: torch.Generator | None
    ) -> Triplets:
        chosen, negatives = _positive_pairs(classes), torch.empty_like(classes.index)
        left, right = factors(*centred(rows, gallery))
        for part, (values, spare) in blocks(left, right, buffers=2):
            block = classes.block(part)
            near = distances(left[part], right, self.distance, out=values).gather(1, block.index)
            found, index = _next_farther(apart(values, block), near, spare)
            exists = found < torch.finfo(found.dtype).max
            kept = exists if self.margin is None else exists & (found < near + self.margin)
            if self.otherwise == "farthest":
                farthest = apart(values, block, -torch.inf).argmax(1, keepdim=True)
                index, kept = torch.where(exists, index, farthest), kept | ~exists
            negatives[part] = index
            chosen[part] &= kept
        return _triplets(classes, chosen, negatives)


def _next_farther(far: torch.Tensor, near: torch.Tensor, spare: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of the (b, K) distances `near`, the smallest of the (b, M) distances `far` above it, and its column.

    Where there is none, a number as large as the largest float or infinite, and any column. `spare` is room of the
    size of `far`.
    """
    if near.shape[1] > FEW:
        return _next_by_search(far, near)
    values, columns, huge = (
        torch.empty_like(near),
        torch.empty_like(near, dtype=torch.int64),
        torch.finfo(far.dtype).max,
    )
    for k in range(near.shape[1]):
        # Four times as fast as torch.where: what is not farther gets a huge number added.
        others = torch.le(far, near[:, k : k + 1], out=spare)
        values[:, k], columns[:, k] = torch.add(far, others, alpha=huge, out=spare).min(1)
    return values, columns


def _next_by_search(far: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ordered, order = far.sort(1)
    place = torch.searchsorted(ordered, near.contiguous(), right=True)
    inside = place.clamp(max=far.shape[1] - 1)
    values = torch.where(place < far.shape[1], ordered.gather(1, inside), torch.inf)
    return values, order.gather(1, inside)


class DistanceWeighted(Miner):
    """Every positive pair with a negative drawn so that all distances are about equally likely: Wu et al. (2017).

    On the sphere of n dimensions two random points are at distance D with density D^(n-2) (1 - D²/4)^((n-3)/2): nearly
    all are about √2 apart. A negative is drawn with the inverse of that as its weight (computed with logarithms).

    Args:
        cutoff: nearer negatives are weighted as if they were so far, or the nearest, often mislabelled, would be all
            that is drawn.
        nonzero_loss_cutoff: negatives at this distance or farther are not drawn. Pairs whose anchor has none nearer
            are left out.
    """

    draws: ClassVar[bool] = True
    needs_unit: ClassVar[bool] = True

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4) -> None:
        if not 0 < cutoff < nonzero_loss_cutoff <= 2:
            raise ValueError(
                "cutoff must lie between 0 and nonzero_loss_cutoff, and that at most at 2, the farthest on the sphere; "
                f"got {cutoff} and {nonzero_loss_cutoff}"
            )
        self.cutoff, self.nonzero_loss_cutoff = cutoff, nonzero_loss_cutoff

    def _mine(
        self, rows: torch.Tensor, gallery: torch.Tensor, classes: Classes, generator: torch.Generator | None
    ) -> Triplets:
        chosen, negatives = _positive_pairs(classes), torch.empty_like(classes.index)
        draws = _uniform(chosen.shape, generator, rows.device)
        left, right = factors(*centred(rows, gallery))
        for part, (values,) in blocks(left, right, buffers=1):
            block = classes.block(part)
            far = apart(distances(left[part], right, "euclidean", out=values), block)
            cumulative = self._weights(far, rows.shape[1]).cumsum(1)
            total = cumulative[:, -1:]
            # Strictly below the total, so that what is found is the first column to pass it, which has a weight.
            target = torch.minimum(draws[part] * total, torch.nextafter(total, torch.zeros_like(total)))
            found = torch.searchsorted(cumulative, target.contiguous(), right=True)
            negatives[part] = found.clamp(max=len(gallery) - 1)
            chosen[part] &= total > 0
        return _triplets(classes, chosen, negatives)

    def _weights(self, far: torch.Tensor, dim: int) -> torch.Tensor:
        """Unnormalised probabilities (b, M); a row's largest is 1, and zero where nothing may be drawn."""
        clipped = far.clamp(self.cutoff, self.nonzero_loss_cutoff)
        smallest = torch.finfo(far.dtype).tiny
        logs = (2 - dim) * clipped.log() - (dim - 3) / 2 * (1 - clipped.square() / 4).clamp(min=smallest).log()
        logs = torch.where(far < self.nonzero_loss_cutoff, logs, -torch.inf)
        largest = logs.amax(1, keepdim=True).clamp(min=torch.finfo(far.dtype).min)
        return (logs - largest).exp()


def _uniform(shape: torch.Size, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Numbers in [0, 1), float32, drawn where the generator lives: the same on every device."""
    where = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=where).to(device)


class Schedule(Miner):
    """From one miner to the next as the run goes on: random, then semi-hard, then hard.

    >>> schedule = Schedule([(0.0, RandomNegatives()), (0.2, SemiHard()), (0.7, Hard())])
    >>> type(schedule.at(0.5).current).__name__
    'SemiHard'

    Args:
        stages: (share of the run from which on, miner), rising, the first from 0.

    Attributes:
        progress: what `at` was told last; 0 before.
    """

    def __init__(self, stages: Sequence[tuple[float, Miner]]) -> None:
        starts = [start for start, _ in stages]
        rising = all(before < after for before, after in pairwise(starts))
        if not starts or starts[0] != 0 or not rising or not starts[-1] < 1:
            raise ValueError(f"stages must start at 0 and rise, below 1, got {starts}")
        self.stages = list(stages)
        self.progress = 0.0

    def at(self, progress: float) -> Schedule:
        """Move to where `progress`, from 0 to 1, of the run is done; returns itself."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie between 0 and 1, got {progress}")
        self.progress = progress
        return self

    @property
    def current(self) -> Miner:
        """The miner at `progress`."""
        return next(miner for start, miner in reversed(self.stages) if start <= self.progress)

    def __call__(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        references: References | None = None,
        generator: torch.Generator | None = None,
    ) -> Triplets:
        """What the miner at `progress` chooses; arguments and errors as for every `Miner`."""
        return self.current(embeddings, labels, references, generator)


def triplet_share(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    triplets: Triplets | None = None,
    margin: float = 0.2,
    distance: Distance = "squared",
    references: References | None = None,
) -> float:
    """Share of triplets that still teach: those a hinge with this margin makes cost anything.

    Near 0 the batch is learnt. Near 1, and staying there, everything lies in one point.

    Args:
        embeddings: (B, d) floats.
        labels: (B,) integers.
        triplets: of a miner; None for all of the batch, counted without making them.
        margin: of the hinge, in units of the distance.
        distance: "squared" or "euclidean".
        references: what the miner was given, if anything.

    Returns:
        A number from 0 to 1; not a number if there is no triplet.
    """
    check_batch(embeddings, labels, references)
    with torch.no_grad(), full_precision(embeddings):
        rows = precise(embeddings)
        gallery, names = with_references(rows, labels, references)
        if triplets is None:
            classes = classes_of(labels, names)
            number = int(classes.triplets)
            return int(all_triplets(rows, gallery, classes, margin, distance)[1]) / number if number else float("nan")
        anchor, positive, negative = triplets
        near = pair_distances(rows[anchor], gallery[positive], distance)
        return float((near + margin > pair_distances(rows[anchor], gallery[negative], distance)).float().mean())


# Miners by the names a configuration calls them. Each takes plain keyword arguments.
MINERS: dict[str, type[Miner]] = {
    "random": RandomNegatives,
    "semi_hard": SemiHard,
    "hard": Hard,
    "distance_weighted": DistanceWeighted,
}
