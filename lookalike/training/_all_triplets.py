"""The exact sum of the triplet hinge over *all* triplets of a batch, and its gradient, without making the triplets.

The sum of max(0, d(a,p) + m - d(a,n)) over all positives p and negatives n of an anchor a needs only counts. Let r(p) =
d(a,p) + m be how far positive p reaches. A triplet is active if d(a,n) < r(p). With c(p) the number of negatives within
the reach of p, and c(n) the number of positives that reach n,

    sum = Σ_p c(p) r(p) - Σ_n c(n) d(a,n),   d sum / d d(a,p) = c(p),   d sum / d d(a,n) = -c(n).

Both counts come from comparing every distance with the anchor's few thresholds r(p): one pass over the distances for
each where there are few, a binary search for each distance where there are many. So B anchors and a gallery of M cost
O(B M log M) time at most, and the gradient is that of a weighted sum of distances: two matrix products. Anchors are
taken in blocks, and their gradient is finished before the next block: memory is O(M d) and a block, whatever B is.

Since Σ c(p) = Σ c(n), both can be measured from the anchor's longest reach R. Σ c(n) (R - d(a,n)) and Σ c(p) (R - r(p))
are then sums without cancellation within, and the first is at most K times their difference for K positives: float32 is
enough.
"""

from __future__ import annotations

from typing import Any

import torch

from lookalike.training._distances import FEW, ZERO, Classes, Distance, apart, blocks, centred, distances, factors


def all_triplets(
    rows: torch.Tensor, gallery: torch.Tensor, classes: Classes, margin: float, distance: Distance
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the hinge over all triplets, and how many of them are active (not zero).

    Args:
        rows: (B, d) float32 or float64, the anchors.
        gallery: (M, d), whose first B rows are the anchors again.
        classes: from `classes_of`.
        margin: of the hinge, in units of the distance.
        distance: "squared" or "euclidean".

    Returns:
        The sum, a scalar with a gradient in `rows` and `gallery` (a first one, no second), and the number of active
        triplets, a scalar int64.
    """
    total, active = _AllTriplets.apply(rows, gallery, classes, margin, distance)
    return total, active


class _AllTriplets(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, gallery: torch.Tensor, classes: Classes, margin: float, distance: Distance
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = centred(rows, gallery)
        left, right = factors(x, y)
        gradient = _Gradient(x, y, distance) if any(ctx.needs_input_grad) else None
        sums, actives = [], []
        for part, (far, reaching, spare) in blocks(left, right, buffers=3):
            block = classes.block(part)
            near = distances(left[part], right, distance, out=far).gather(1, block.index)
            reach = torch.where(block.present, near + margin, -torch.inf)
            reached = _count(apart(far, block), reach, reaching, spare)
            sums.append(_sums(far, reach, reached, reaching, spare))
            actives.append(reached.long().sum(1))
            if gradient is not None:
                gradient.add(part, block, near, far, reached, reaching)
        ctx.save_for_backward(*(gradient.finished() if gradient is not None else ()))
        active = torch.cat(actives).sum()
        ctx.mark_non_differentiable(active)
        return torch.cat(sums).sum(), active

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        of_rows, of_gallery = ctx.saved_tensors
        return upstream * of_rows, upstream * of_gallery, None, None, None


def _sums(
    far: torch.Tensor, reach: torch.Tensor, reached: torch.Tensor, reaching: torch.Tensor, spare: torch.Tensor
) -> torch.Tensor:
    """The sum of the hinge per anchor (b,), measured from its longest reach. `spare` is room of the size of `far`."""
    longest = reach.amax(1, keepdim=True)
    negatives = torch.sub(longest, far, out=spare).clamp_(min=0).mul_(reaching).sum(1)
    positives = torch.where(reached > 0, longest - reach, 0).mul_(reached).sum(1)
    return negatives - positives


def _count(far: torch.Tensor, reach: torch.Tensor, reaching: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
    """How many distances lie below each reach, and how many reaches above each distance.

    Args:
        far: (b, M) distances to negatives, infinite elsewhere.
        reach: (b, K) of the positives, minus infinity where there is none.
        reaching: (b, M), takes the second answer: whole numbers of the type of `far`.
        spare: (b, M), room to work in.

    Returns:
        The first answer, (b, K) whole numbers.
    """
    if reach.shape[1] > FEW:
        return _count_by_search(far, reach, reaching)
    reached = torch.empty_like(reach)
    for k in range(reach.shape[1]):
        within = torch.lt(far, reach[:, k : k + 1], out=spare if k else reaching)
        reached[:, k] = within.sum(1)
        if k:
            reaching += within
    return reached


def _count_by_search(far: torch.Tensor, reach: torch.Tensor, reaching: torch.Tensor) -> torch.Tensor:
    ordered, order = reach.sort(1)
    bucket = torch.searchsorted(ordered, far, right=True)  # how many reaches end at this distance or before it
    sizes = far.new_zeros(len(far), reach.shape[1] + 1).scatter_add_(1, bucket, far.new_ones(()).expand_as(far))
    reaching.copy_(reach.shape[1] - bucket)
    return torch.empty_like(reach).scatter_(1, order, sizes.cumsum(1)[:, :-1])


class _Gradient:
    """The gradient of the sum in the centred rows x and gallery y, block by block of anchors.

    With w(i, j) the derivative in a distance, over the distance itself where it has a root, the gradient in x(i) is
    Σ_j w(i, j) (x(i) - y(j)), and that in y(j) is Σ_i w(i, j) (y(j) - x(i)); twice that for squares.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, distance: Distance) -> None:
        self.x, self.y = x, y
        self.of_x, self.of_y = torch.empty_like(x), torch.zeros_like(y)
        self.sums = y.new_zeros(len(y))
        self.root = distance == "euclidean"

    def add(
        self,
        part: slice,
        block: Classes,
        near: torch.Tensor,
        far: torch.Tensor,
        reached: torch.Tensor,
        reaching: torch.Tensor,
    ) -> None:
        """Count a block of anchors; `far` and `reaching` are used up."""
        weights = reaching.neg_()
        if self.root:
            # Where the distance is zero its root has no direction, and the pair no weight.
            if float(far.amin()) <= ZERO:
                far.masked_fill_(far <= ZERO, torch.inf)
            weights /= far
            reached = torch.where(near > ZERO, reached / near, 0)
        weights.scatter_(1, block.index, reached)
        self.of_x[part] = weights.sum(1, keepdim=True) * self.x[part] - weights @ self.y
        self.of_y.addmm_(weights.T, self.x[part], alpha=-1)
        self.sums += weights.sum(0)

    def finished(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients in x and in y."""
        of_y = self.of_y.addcmul_(self.sums[:, None], self.y)
        return (self.of_x, of_y) if self.root else (2 * self.of_x, 2 * of_y)
