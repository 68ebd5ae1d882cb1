"""What is minimised: losses over pairs, over labelled batches, over mined triplets, and over classes.

::

    loss(embeddings, labels, triplets=None, references=None)    a labelled batch                       LOSSES
    loss(left, right, same)                                     pairs                                  PAIR_LOSSES

All are modules, some with parameters of their own. They compute in float32 (float64 stays float64) whatever autocast
says, return a scalar with a graph, and zero where there is nothing to learn from.

The *gallery* is the batch, followed by the references (a cross-batch memory) where there are any. Anchors are rows of
the batch; positives are other gallery rows with the anchor's label, negatives those with another label. Distances are
Euclidean or squared Euclidean, as an option says; whether vectors have unit length is the network's business, except
where a loss compares angles: those scale the vectors themselves.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from lookalike.errors import ShapeError
from lookalike.training._all_triplets import all_triplets
from lookalike.training._class_losses import ArcFace, CrossEntropy, MultiHinge, ProxyAnchor
from lookalike.training._distances import (
    Classes,
    References,
    Triplets,
    centred,
    check_distance,
    classes_of,
    distances,
    factors,
    full_precision,
    pair_distances,
    precise,
    with_references,
)
from lookalike.training._loss import Loss, at_least, check_reduction, mean, nothing

__all__ = [
    "LOSSES",
    "PAIR_LOSSES",
    "AllTriplets",
    "ArcFace",
    "Contrastive",
    "CrossEntropy",
    "LearnedMetric",
    "Loss",
    "MultiHinge",
    "NPairs",
    "NTXent",
    "NoLoss",
    "PairContrastive",
    "PairLoss",
    "ProxyAnchor",
    "SupervisedContrastive",
    "Triplet",
]


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class PairLoss(nn.Module):
    """A loss over pairs.

    Attributes:
        needs_raw: embeddings must not have been brought to unit length.
    """

    needs_raw: bool = False

    def forward(self, left: torch.Tensor, right: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        """The mean loss of pairs.

        Args:
            left: (n, d) floats; computed with as float32 (float64 stays so), without autocast.
            right: (n, d) floats.
            same: (n,) bool, whether both are alike.

        Raises:
            ShapeError: shapes or types do not fit.
        """
        if left.ndim != 2 or left.shape != right.shape:
            raise ShapeError(f"left and right must both be (n, d), got {tuple(left.shape)} and {tuple(right.shape)}")
        if same.shape != left.shape[:1] or same.dtype != torch.bool:
            raise ShapeError(f"same must be ({len(left)},) bool, got {tuple(same.shape)} of {same.dtype}")
        with full_precision(left):
            left, right = precise(left), precise(right)
            return self._of_pairs(left, right, same) if len(left) else nothing(left) + nothing(right)

    def _of_pairs(self, left: torch.Tensor, right: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def _hinges(
    distance: torch.Tensor, positive_margin: float, margin: float, squared: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a pair at each distance costs if it is alike, and if it is not (Hadsell et al. 2006, equation 4)."""
    alike, other = (distance - positive_margin).clamp(min=0), (margin - distance).clamp(min=0)
    return (alike.square() / 2, other.square() / 2) if squared else (alike, other)


class PairContrastive(PairLoss):
    """Contrastive loss over pairs: Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant
    Mapping" (CVPR 2006).

    A pair at Euclidean distance D costs ½ max(0, D - positive_margin)² if alike, else ½ max(0, margin - D)².

    Args:
        margin: from which distance on different pictures are far enough apart: on unit vectors about as far as
            unlike pictures already are (for products and the encoder that ships: half of them at 1.0 to 1.2), or most
            are not pushed.
        positive_margin: below which distance pictures that are alike are close enough.
        squared: as in the paper; False takes the hinges themselves, which pull hard also where little is wrong.
    """  # noqa: D205

    def __init__(self, margin: float = 0.5, positive_margin: float = 0.0, squared: bool = True) -> None:
        super().__init__()
        self.margin = at_least("margin", margin, 0)
        self.positive_margin = at_least("positive_margin", positive_margin, 0)
        self.squared = squared

    def _of_pairs(self, left: torch.Tensor, right: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        distance = pair_distances(left, right, "euclidean")
        return torch.where(same, *_hinges(distance, self.positive_margin, self.margin, self.squared)).mean()


class LearnedMetric(PairLoss):
    """A learned similarity: Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition"
    (2015).

    The logit of "alike" is b + Σ w(i) |left(i) - right(i)|, trained with binary cross-entropy. It starts as a plain L1
    distance (all w equal and negative), so that it ranks sensibly from the first step.

    The weighted L1 distance teaches, and is not served. Its weights w and b stay in the run's checkpoint: validation,
    the verdict, thresholds, the bundle and every index compare the embeddings themselves (before `squash`), by their
    cosine, as everywhere in this package. What is lost is the difference in weight between the coordinates, and what
    the two distances rank differently; the verdict is about what is served. A loss that trains the cosine itself loses
    nothing.

    Args:
        dim: of the embedding.
        squash: take the logistic function of each coordinate first, as in the paper, where it is the network's last
            layer. It wants embeddings that were not brought to unit length: those have coordinates near zero, of which
            it leaves hardly a difference. False takes embeddings as they are, of unit length or not.

    Attributes:
        needs_raw: as for every `PairLoss`; that of `squash`.
    """  # noqa: D205

    def __init__(self, dim: int, squash: bool = True) -> None:
        super().__init__()
        self.squash = self.needs_raw = squash
        # Coordinates of a random unit vector, or logistic ones, differ by about dim ** -0.5 in all: logits near ±1.
        self.weight = nn.Parameter(torch.full((int(at_least("dim", dim, 1)),), -(dim**-0.5)))
        self.bias = nn.Parameter(torch.ones(()))

    def logits(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Logits of "alike" (n,) of pairs of rows."""
        apart = (self._squashed(left) - self._squashed(right)).abs()
        return apart @ self.weight.to(apart.dtype) + self.bias.to(apart.dtype)

    def _squashed(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.sigmoid() if self.squash else rows

    def _of_pairs(self, left: torch.Tensor, right: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        logits = self.logits(left, right)
        return functional.binary_cross_entropy_with_logits(logits, same.to(logits.dtype))


# ── all pairs of a batch ─────────────────────────────────────────────────────────────────────────────────────────────


class Contrastive(Loss):
    """`PairContrastive` over all pairs of a labelled batch: the mean over pairs that are alike plus that over the rest.

    Two means, since far more pairs of a batch differ. A (B, M) matrix of distances is held.

    Args:
        margin: as for `PairContrastive`.
        positive_margin: as for `PairContrastive`.
        squared: as for `PairContrastive`.
        reduction: "nonzero": the means are over pairs that cost anything; "all": over all.
    """

    def __init__(
        self,
        margin: float = 0.5,
        positive_margin: float = 0.0,
        squared: bool = True,
        reduction: Literal["nonzero", "all"] = "nonzero",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.margin = at_least("margin", margin, 0)
        self.positive_margin = at_least("positive_margin", positive_margin, 0)
        self.squared, self.reduction = squared, reduction

    def _of_batch(self, rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> torch.Tensor:
        gallery, names = with_references(rows, labels, references)
        classes = classes_of(labels, names)
        distance = distances(*factors(*centred(rows, gallery)), "euclidean")
        alike, other = _hinges(distance, self.positive_margin, self.margin, self.squared)
        pulled = mean(alike.gather(1, classes.index), classes.present, self.reduction)
        return pulled + mean(other, labels[:, None] != names, self.reduction) + nothing(rows)


class SupervisedContrastive(Loss):
    """Supervised contrastive loss, the form called L_out: Khosla et al., "Supervised Contrastive Learning" (2020).

    For an anchor, the mean over its positives p of -log(exp(s(p) / t) / Σ exp(s / t)), s the cosine and the sum over
    all of the gallery but the anchor; the mean of that over the anchors that have a positive.

    Args:
        temperature: t, above 0.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, above=True)

    def _of_batch(self, rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> torch.Tensor:
        logits, classes = _logits(rows, labels, references, self.temperature)
        number = classes.size - 1
        attracted = torch.where(classes.present, logits.gather(1, classes.index), 0).sum(1) / number.clamp(min=1)
        everything = logits.scatter(1, classes.own, -torch.inf).logsumexp(1)
        learns = number > 0
        return (everything - attracted)[learns].sum() / learns.sum().clamp(min=1) + nothing(rows)


class NTXent(Loss):
    """Normalised temperature-scaled cross-entropy: Sohn (2016), SimCLR (Chen et al. 2020), with labels.

    The mean over all positive pairs (a, p) of -log(exp(s(a,p) / t) / (exp(s(a,p) / t) + Σ exp(s(a,n) / t))), s the
    cosine and the sum over the negatives of a. Unlike `SupervisedContrastive`, other positives do not compete.

    Args:
        temperature: t, above 0.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, above=True)

    def _of_batch(self, rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> torch.Tensor:
        logits, classes = _logits(rows, labels, references, self.temperature)
        apart = logits.scatter(1, classes.index, -torch.inf).scatter(1, classes.own, -torch.inf)
        costs = functional.softplus(apart.logsumexp(1, keepdim=True) - logits.gather(1, classes.index))
        return mean(costs, classes.present, "all") + nothing(rows)


class NPairs(Loss):
    """Multi-class N-pair loss of cosines: Sohn (2016); the episodes of matching networks (Vinyals et al. 2016).

    The first pictures of all classes in the batch are one round, the second ones another, and so on. For every ordered
    pair of rounds, each picture of the one asks which picture of the other is of its class: the mean over these
    questions of -log(exp(s(a,p) / t) / Σ exp(s / t)), s the cosine and the sum over the other round. With K pictures of
    each of P classes these are K (K - 1) one-shot episodes of P ways. Where a sampler puts the pictures of one maker
    into one round, no negative is of another hand than the positive, as when such an episode is asked.

    A class that is missing from the other round asks nothing there, and is still a wrong answer in its own.

    Args:
        temperature: t, above 0.
    """

    takes_references: ClassVar[bool] = False

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, above=True)

    def _of_batch(self, rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> torch.Tensor:
        unit = functional.normalize(rows)
        alike = labels[:, None] == labels
        rounds = alike.tril(-1).sum(1)  # how many of its class stand before it
        costs = []
        for number in range(int(rounds.max()) + 1):
            there = rounds == number
            asks = alike[:, there].any(1) & ~there
            answers = alike[asks][:, there].to(torch.int8).argmax(1)
            logits = unit[asks] @ unit[there].T / self.temperature
            costs.append(functional.cross_entropy(logits, answers, reduction="none"))
        return torch.cat(costs).sum() / max(1, sum(map(len, costs))) + nothing(rows)


def _logits(
    rows: torch.Tensor, labels: torch.Tensor, references: References | None, temperature: float
) -> tuple[torch.Tensor, Classes]:
    """Cosines of the batch with its gallery over the temperature, (B, M)."""
    gallery, names = with_references(rows, labels, references)
    cosines = functional.normalize(rows) @ functional.normalize(gallery).T
    return cosines / temperature, classes_of(labels, names)


# ── triplets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Triplet(Loss):
    """Triplet loss over mined triplets: Schroff et al., "FaceNet" (2015); soft margin: Hermans et al. (2017).

    A triplet costs max(0, v), or softly log(1 + exp v), with v = d(anchor, positive) - d(anchor, negative) + margin.

    Args:
        margin: in units of the distance. Hermans et al. take the soft form with a margin of 0.
        distance: "squared" (FaceNet) or "euclidean".
        soft: take the soft form.
        reduction: "nonzero": the mean over triplets that cost anything, so that easy ones do not dilute it (softly,
            all do); "all": over all.
    """

    needs_triplets: ClassVar[bool] = True

    def __init__(
        self,
        margin: float = 0.2,
        distance: Literal["squared", "euclidean"] = "squared",
        soft: bool = False,
        reduction: Literal["nonzero", "all"] = "nonzero",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.margin = at_least("margin", margin, 0)
        self.distance = check_distance(distance)
        self.soft, self.reduction = soft, reduction

    def _of_triplets(
        self, rows: torch.Tensor, labels: torch.Tensor, triplets: Triplets, references: References | None
    ) -> torch.Tensor:
        anchor, positive, negative = triplets
        gallery, _ = with_references(rows, labels, references)
        near = pair_distances(rows[anchor], gallery[positive], self.distance)
        far = pair_distances(rows[anchor], gallery[negative], self.distance)
        violation = near - far + self.margin
        costs = functional.softplus(violation) if self.soft else violation.clamp(min=0)
        return mean(costs, torch.ones_like(costs, dtype=torch.bool), self.reduction) + nothing(rows)


class AllTriplets(Loss):
    """The exact triplet loss over *all* triplets of a batch, without mining and without making the triplets.

    Equal to `Triplet` over every (anchor, positive, negative), in O(B M log M) time at most and O(M d) memory (see
    `_all_triplets`): a batch of thousands is no trouble.

    Args:
        margin: in units of the distance.
        distance: "squared" (FaceNet) or "euclidean".
        soft: must stay False; log(1 + exp v) is not a sum of distances, so that no count can stand for the triplets.
        reduction: "nonzero": the mean over triplets that cost anything (the batch-all loss of Hermans et al. 2017);
            "all": over all.
    """

    def __init__(
        self,
        margin: float = 0.2,
        distance: Literal["squared", "euclidean"] = "squared",
        soft: bool = False,
        reduction: Literal["nonzero", "all"] = "nonzero",
    ) -> None:
        super().__init__()
        if soft:
            raise ValueError(
                "soft must be false: AllTriplets has no soft margin, it cannot be exact without making every triplet; "
                'take Triplet ("triplet" in a configuration)'
            )
        check_reduction(reduction)
        self.margin = at_least("margin", margin, 0)
        self.distance = check_distance(distance)
        self.reduction = reduction

    def _of_batch(self, rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> torch.Tensor:
        gallery, names = with_references(rows, labels, references)
        classes = classes_of(labels, names)
        total, active = all_triplets(rows, gallery, classes, self.margin, self.distance)
        number = active if self.reduction == "nonzero" else classes.triplets
        return total / number.clamp(min=1) + nothing(rows)


# Losses by the names a configuration calls them. Each takes plain keyword arguments.
class NoLoss(Loss):
    """Always zero: for a network that learns from its teacher alone."""

    takes_references: ClassVar[bool] = False

    def _of_batch(self, rows: torch.Tensor, labels: torch.Tensor, references: References | None) -> torch.Tensor:
        return nothing(rows)


LOSSES: dict[str, type[Loss]] = {
    "none": NoLoss,
    "contrastive": Contrastive,
    "supervised_contrastive": SupervisedContrastive,
    "nt_xent": NTXent,
    "n_pairs": NPairs,
    "triplet": Triplet,
    "all_triplets": AllTriplets,
    "cross_entropy": CrossEntropy,
    "multi_hinge": MultiHinge,
    "arcface": ArcFace,
    "proxy_anchor": ProxyAnchor,
}
PAIR_LOSSES: dict[str, type[PairLoss]] = {
    "pair_contrastive": PairContrastive,
    "learned_metric": LearnedMetric,
}
