"""Losses against loops written from the papers, against pytorch-metric-learning, and against numerical gradients."""

from __future__ import annotations

import math
import resource
import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lookalike.errors import ShapeError
from lookalike.training import _all_triplets, _distances
from lookalike.training.losses import (
    LOSSES,
    PAIR_LOSSES,
    AllTriplets,
    ArcFace,
    Contrastive,
    CrossEntropy,
    LearnedMetric,
    MultiHinge,
    NPairs,
    NTXent,
    PairContrastive,
    ProxyAnchor,
    SupervisedContrastive,
    Triplet,
)

DIM = 5
# Class sizes: even, uneven with classes of one, one large among small, two large.
SIZES = {"even": [3] * 4, "uneven": [1, 2, 5, 1, 3], "large": [8, 1, 1, 2], "two": [6, 6]}


def a_batch(sizes, seed=0, dtype=torch.float64, dim=DIM, unit=True):
    """Embeddings and labels, shuffled, with labels that are not 0, 1, 2, …."""
    dice = torch.Generator().manual_seed(seed)
    numbers = [7 * number - 3 for number, size in enumerate(sizes) for _ in range(size)]
    labels = torch.tensor(numbers, dtype=torch.int64)
    labels = labels[torch.randperm(len(labels), generator=dice)]
    rows = torch.randn(len(labels), dim, generator=dice, dtype=torch.float64)
    return (functional.normalize(rows) if unit else rows).to(dtype), labels


def value_and_gradient(call, *tensors):
    """A scalar and its gradients in the tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = call(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def check_equal(call, oracle, *tensors, rtol=1e-9, atol=1e-11):
    """Both calls give the same value and the same gradients."""
    value, gradients = value_and_gradient(call, *tensors)
    expected, expected_gradients = value_and_gradient(oracle, *tensors)

    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


def gap(x, y, distance):
    square = ((x - y) ** 2).sum()
    return square if distance == "squared" else square.sqrt()


def every_triplet(labels, names):
    """All (anchor, positive, negative) by three loops; anchors are the first rows of the gallery."""
    for a in range(len(labels)):
        for p in range(len(names)):
            for n in range(len(names)):
                if p != a and names[p] == labels[a] and names[n] != labels[a]:
                    yield a, p, n


def loop_over_triplets(rows, gallery, triplets, margin, distance, reduction, soft=False):
    """The mean of the hinge, one triplet at a time."""
    total, number = rows.sum() * 0, 0
    for a, p, n in triplets:
        violation = gap(rows[a], gallery[p], distance) - gap(rows[a], gallery[n], distance) + margin
        cost = torch.log1p(violation.exp()) if soft else violation.clamp(min=0)
        number += int(cost > 0) if reduction == "nonzero" else 1
        total = total + cost
    return total / max(number, 1)


@pytest.fixture(params=["in passes", "by search"])
def counting(request, monkeypatch):
    """Both ways to count: for few positives and for many."""
    monkeypatch.setattr(_all_triplets, "FEW", 10**9 if request.param == "in passes" else 0)


# ── all triplets ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("distance", ["squared", "euclidean"])
@pytest.mark.parametrize("reduction", ["nonzero", "all"])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_all_triplets_is_the_loop_over_all_triplets(sizes, distance, reduction, margin):
    """Value and gradient are those of three nested loops, whatever the class sizes."""
    rows, labels = a_batch(sizes, unit=False)
    loss = AllTriplets(margin, distance, reduction=reduction)

    check_equal(
        lambda x: loss(x, labels),
        lambda x: loop_over_triplets(x, x, every_triplet(labels, labels), margin, distance, reduction),
        rows,
    )


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_all_triplets_takes_positives_and_negatives_from_references(distance):
    """References count as positives and negatives, never as anchors, and may carry a gradient."""
    (rows, labels), (more, others) = a_batch(SIZES["uneven"]), a_batch(SIZES["even"], seed=1)

    def looped(x, y):
        gallery, names = torch.cat([x, y]), torch.cat([labels, others])
        return loop_over_triplets(x, gallery, every_triplet(labels, names), 0.3, distance, "nonzero")

    check_equal(lambda x, y: AllTriplets(0.3, distance)(x, labels, references=(y, others)), looped, rows, more)


@pytest.mark.usefixtures("counting")
def test_all_triplets_counts_ties_exactly():
    """On a grid, where squared distances are whole numbers and often equal, sum and count are exact in float32.

    A triplet exactly at the margin costs nothing and does not count.
    """
    dice = torch.Generator().manual_seed(4)
    half = torch.randint(-2, 3, (30, 3), generator=dice)
    points = torch.cat([half, -half])  # their mean is zero, so that they stay whole numbers
    labels = torch.randint(0, 7, (60,), generator=dice)
    square = (points[:, None] - points).square().sum(2)
    alike = labels[:, None] == labels
    cube = square[:, :, None] - square[:, None, :] + 2
    cube = cube[(alike & ~torch.eye(60, dtype=torch.bool))[:, :, None] & ~alike[:, None, :]].clamp(min=0)
    rows = points.float()

    total, active = _all_triplets.all_triplets(rows, rows, _distances.classes_of(labels, labels), 2, "squared")
    assert int(active) == int((cube > 0).sum())
    assert int(total) == int(cube.sum())


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("distance", ["squared", "euclidean"])
@pytest.mark.parametrize("size", [4, 50])
def test_all_triplets_in_float32_is_as_good_as_in_float64(distance, size):
    """A million terms added in float32 differ from float64 by less than a millionth, the gradient by little more."""
    rows, labels = a_batch([size] * (200 // size), dim=64)
    loss = AllTriplets(0.2, distance)
    exact, wanted = value_and_gradient(lambda x: loss(x, labels), rows)
    value, got = value_and_gradient(lambda x: loss(x, labels), rows.float())

    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact), rel=1e-6)
    assert (
        float((got[0] - wanted[0]).norm() / wanted[0].norm()) < 1e-4
    )  # triplets at the margin may fall on either side


@pytest.mark.parametrize(
    "loss", [AllTriplets(2e-4, "euclidean"), Contrastive(2e-4, squared=False)], ids=["all", "pair"]
)
def test_distances_survive_a_collapse(loss):
    """Unit vectors a ten-thousandth apart, or far from the origin, are told apart as well as others."""
    rows, labels = a_batch(SIZES["even"])
    crowded = (torch.tensor([1.0, 0, 0, 0, 0]) + 1e-4 * rows).float()

    assert float(loss(crowded, labels)) == pytest.approx(float(loss(crowded.double(), labels)), rel=1e-4)


@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_identical_pictures_have_a_finite_gradient(distance):
    """Duplicates are at distance zero, where the root has no slope: they add nothing, and the rest is as it was."""
    rows, labels = a_batch(SIZES["even"], dtype=torch.float32)
    rows[1:6] = rows[0]
    for loss in (AllTriplets(0.2, distance), Contrastive(0.5)):
        value, (gradient,) = value_and_gradient(lambda x, loss=loss: loss(x, labels), rows)

        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        assert gradient.abs().max() < 10


@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_a_constant_network_costs_the_margin(distance):
    """If all vectors are one, every triplet costs the margin, and there is no way down."""
    _, labels = a_batch(SIZES["uneven"])
    value, (gradient,) = value_and_gradient(lambda x: AllTriplets(0.25, distance)(x, labels), torch.ones(12, DIM))

    assert float(value) == 0.25
    assert gradient.abs().max() == 0


def test_blocks_of_anchors_do_not_matter(monkeypatch):
    """Taking a few anchors at a time gives what taking all at once gives."""
    rows, labels = a_batch(SIZES["uneven"])
    whole = value_and_gradient(lambda x: AllTriplets()(x, labels), rows)
    monkeypatch.setattr(_distances, "BLOCK_ROWS", 5)
    monkeypatch.setattr(_distances, "BLOCK_CELLS", 1)

    torch.testing.assert_close(value_and_gradient(lambda x: AllTriplets()(x, labels), rows), whole)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    cells = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.cells = max([self.cells, *(leaf.numel() for leaf in tree_leaves(result) if torch.is_tensor(leaf))])
        return result


@pytest.mark.usefixtures("counting")
def test_all_triplets_never_makes_the_cube(monkeypatch):
    """No tensor is larger than the embeddings or a block of distances: not B × B × B, not even B × B."""
    monkeypatch.setattr(_distances, "BLOCK_ROWS", 10)
    monkeypatch.setattr(_distances, "BLOCK_CELLS", 1)
    rows, labels = a_batch([4] * 100, dim=16, dtype=torch.float32)
    rows.requires_grad_()
    with Largest() as largest:
        AllTriplets()(rows, labels).backward()

    assert 400 * 16 <= largest.cells <= 400 * 18


def test_all_triplets_has_no_soft_margin():
    """It says why, and what to take."""
    with pytest.raises(ValueError, match=r"^soft must be false: .*no soft margin.*take Triplet"):
        AllTriplets(soft=True)


BIG = """
import torch
from torch.nn import functional
from lookalike.training.losses import AllTriplets
import resource
dice = torch.Generator().manual_seed(0)
labels = torch.arange(8192) % 1500
rows = functional.normalize(torch.randn(8192, 64, generator=dice)).requires_grad_()
loss = AllTriplets(0.2, "euclidean")
loss(rows[:64], labels[:64]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
value = loss(rows, labels)
value.backward()
print(value.item(), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_batch_of_eight_thousand_fits_anywhere():
    """8192 embeddings cost 100 MiB, and have the mean that anchor after anchor gives in float64."""
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, check=True)
    value, mib = map(float, done.stdout.split())
    dice = torch.Generator().manual_seed(0)
    rows, labels = functional.normalize(torch.randn(8192, 64, generator=dice)).double(), torch.arange(8192) % 1500
    total, active = 0.0, 0
    for anchor in range(8192):
        distance, alike = (rows - rows[anchor]).norm(dim=1), labels == labels[anchor]
        others = distance[~alike]
        alike[anchor] = False
        costs = (distance[alike][:, None] - others + 0.2).clamp(min=0)
        total, active = total + float(costs.sum()), active + int((costs > 0).sum())

    assert value == pytest.approx(total / active, rel=2e-6)
    assert mib < 100 or resource.getpagesize() > 4096


# ── mined triplets ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("distance", ["squared", "euclidean"])
@pytest.mark.parametrize("reduction", ["nonzero", "all"])
@pytest.mark.parametrize("soft", [False, True])
def test_triplet_is_the_loop_over_its_triplets(distance, reduction, soft):
    """Value and gradient, hard and soft, with positives and negatives of the references too."""
    (rows, labels), (more, others) = a_batch(SIZES["uneven"]), a_batch(SIZES["even"], seed=1)
    names = torch.cat([labels, others])
    triplets = torch.tensor(list(every_triplet(labels, names)))[::3]
    loss = Triplet(0.2, distance, soft, reduction)

    check_equal(
        lambda x: loss(x, labels, tuple(triplets.T), (more, others)),
        lambda x: loop_over_triplets(x, torch.cat([x, more]), triplets.tolist(), 0.2, distance, reduction, soft),
        rows,
    )


def test_triplet_over_every_triplet_is_all_triplets():
    """The mined and the exact loss are one loss."""
    rows, labels = a_batch(SIZES["uneven"])
    triplets = tuple(torch.tensor(list(every_triplet(labels, labels))).T)

    check_equal(lambda x: AllTriplets()(x, labels), lambda x: Triplet()(x, labels, triplets), rows)


def test_a_triplet_of_identical_pictures_has_a_finite_gradient():
    """The root of a distance of zero has no slope; the gradient is that of the other distance alone."""
    rows = torch.tensor([[1.0, 0], [1.0, 0], [0.9, 0.1]])
    triplets = tuple(torch.tensor([[0], [1], [2]]))
    _, (gradient,) = value_and_gradient(lambda x: Triplet(0.2, "euclidean")(x, torch.tensor([0, 0, 1]), triplets), rows)

    assert gradient[1].tolist() == [0, 0]
    torch.testing.assert_close(gradient[2].norm(), torch.tensor(1.0))


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pair_cost(distance, same, positive_margin, margin, squared):
    hinge = (distance - positive_margin if same else margin - distance).clamp(min=0)
    return hinge**2 / 2 if squared else hinge


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("positive_margin", [0.0, 0.4])
def test_pair_contrastive_is_hadsells_loss(squared, positive_margin):
    """The mean over the pairs of half the squared hinge on the distance, or of the hinge."""
    left, right = (a_batch(SIZES["even"], seed)[0] for seed in (0, 1))
    same = torch.arange(len(left)) % 3 == 0

    def looped(x, y):
        gaps = [gap(a, b, "euclidean") for a, b in zip(x, y, strict=True)]
        costs = [pair_cost(d, s, positive_margin, 1.2, squared) for d, s in zip(gaps, same, strict=True)]
        return sum(costs) / len(costs)

    check_equal(lambda x, y: PairContrastive(1.2, positive_margin, squared)(x, y, same), looped, left, right)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("reduction", ["nonzero", "all"])
@pytest.mark.parametrize("referenced", [False, True])
def test_contrastive_is_the_mean_over_alike_plus_the_mean_over_others(squared, reduction, referenced):
    """Over all pairs of the batch (and the references), by two loops."""
    (rows, labels), (more, others) = a_batch(SIZES["uneven"]), a_batch(SIZES["even"], seed=1)
    names = torch.cat([labels, others]) if referenced else labels

    def looped(x):
        gallery, costs = torch.cat([x, more]) if referenced else x, {True: [], False: []}
        for i in range(len(labels)):
            for j in range(len(names)):
                if i != j:
                    same = bool(labels[i] == names[j])
                    costs[same].append(pair_cost(gap(x[i], gallery[j], "euclidean"), same, 0.3, 1.2, squared))
        if reduction == "nonzero":
            costs = {same: [cost for cost in some if cost > 0] for same, some in costs.items()}
        return sum(sum(some) / len(some) for some in costs.values())

    loss = Contrastive(1.2, 0.3, squared, reduction)
    check_equal(lambda x: loss(x, labels, references=(more, others) if referenced else None), looped, rows)


def a_learned_metric(squash):
    metric = LearnedMetric(DIM, squash).double()
    with torch.no_grad():
        metric.weight.copy_(torch.tensor([-1.5, 0.7, 0.0, -0.2, 2.0]))
        metric.bias.fill_(0.3)
    return metric


@pytest.mark.parametrize("squash", [True, False])
def test_learned_metric_is_kochs_loss(squash):
    """Binary cross-entropy of the logistic function of a weighted L1 distance, in embeddings and weights."""
    left, right = (a_batch(SIZES["even"], seed, unit=False)[0] for seed in (0, 1))
    same, metric = torch.arange(len(left)) % 3 == 0, a_learned_metric(squash)

    def looped(x, y, weight, bias):
        total = 0
        for a, b, alike in zip(x, y, same, strict=True):
            gaps = 1 / (1 + (-a).exp()) - 1 / (1 + (-b).exp()) if squash else a - b
            likely = 1 / (1 + (-(gaps.abs() * weight).sum() - bias).exp())
            total = total - (likely if alike else 1 - likely).log()
        return total / len(x)

    def ours(x, y, weight, bias):
        return torch.func.functional_call(metric, {"weight": weight, "bias": bias}, (x, y, same))

    check_equal(ours, looped, left, right, metric.weight, metric.bias)


def test_a_new_learned_metric_ranks_by_distance():
    """Before any training, the nearest of three is the most similar, and a picture is like itself."""
    points = torch.tensor([[0.0] * DIM, [0.1] * DIM, [0.5] * DIM, [2.0] * DIM])

    logits = LearnedMetric(DIM).logits(points[:1].expand_as(points), points)
    assert logits.argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert logits[0] > 0


def test_the_papers_learned_metric_tells_unit_vectors_hardly_apart():
    """Why it asks for raw ones: of unit vectors the logistic function leaves a quarter of the difference."""
    dice = torch.Generator().manual_seed(0)
    left, right = functional.normalize(torch.randn(2, 500, 128, generator=dice), dim=2)
    spread = {squash: LearnedMetric(128, squash).logits(left, right).std() for squash in (True, False)}

    assert spread[True] < 0.26 * spread[False]
    assert LearnedMetric(128).needs_raw and not LearnedMetric(128, squash=False).needs_raw
    assert not PairContrastive().needs_raw


# ── softmax over the batch ───────────────────────────────────────────────────────────────────────────────────────────


def loop_supervised_contrastive(rows, gallery, labels, names, temperature):
    rows, gallery, costs = functional.normalize(rows), functional.normalize(gallery), []
    for a in range(len(labels)):
        others = [j for j in range(len(names)) if j != a]
        positives = [j for j in others if names[j] == labels[a]]
        below = sum((rows[a] @ gallery[j] / temperature).exp() for j in others)
        if positives:
            shares = [((rows[a] @ gallery[p] / temperature).exp() / below).log() for p in positives]
            costs.append(-sum(shares) / len(positives))
    return sum(costs) / len(costs)


def loop_nt_xent(rows, gallery, labels, names, temperature):
    rows, gallery, costs = functional.normalize(rows), functional.normalize(gallery), []
    for a in range(len(labels)):
        weights = [(rows[a] @ gallery[j] / temperature).exp() for j in range(len(names))]
        below = sum(weights[j] for j in range(len(names)) if names[j] != labels[a])
        positives = [j for j in range(len(names)) if j != a and names[j] == labels[a]]
        costs += [-(weights[p] / (weights[p] + below)).log() for p in positives]
    return sum(costs) / len(costs)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("referenced", [False, True])
@pytest.mark.parametrize(
    ("loss", "loop"),
    [(SupervisedContrastive(0.3), loop_supervised_contrastive), (NTXent(0.3), loop_nt_xent)],
    ids=["supervised", "nt-xent"],
)
def test_contrast_by_softmax_is_its_loop(loss, loop, sizes, referenced):
    """Value and gradient from the definition, for vectors of any length."""
    (rows, labels), (more, others) = a_batch(sizes, unit=False), a_batch(SIZES["even"], seed=1)
    names = torch.cat([labels, others]) if referenced else labels

    check_equal(
        lambda x: loss(x, labels, references=(more, others) if referenced else None),
        lambda x: loop(x, torch.cat([x, more]) if referenced else x, labels, names, 0.3),
        rows,
    )


def loop_n_pairs(rows, labels, temperature):
    rows, rounds, costs = functional.normalize(rows), {}, []
    for row, label in enumerate(labels.tolist()):
        seen = sum(label == labels[before].item() for before in range(row))
        rounds.setdefault(seen, {})[label] = row
    for one, asking in rounds.items():
        for other, gallery in rounds.items():
            for label in asking if one != other else ():
                if label in gallery:
                    weights = {
                        name: (rows[asking[label]] @ rows[at] / temperature).exp() for name, at in gallery.items()
                    }
                    costs.append(-(weights[label] / sum(weights.values())).log())
    return sum(costs) / len(costs)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_n_pairs_is_its_loop(sizes):
    """Rounds of first, second, … pictures; every ordered pair of rounds; classes that are missing from some."""
    rows, labels = a_batch(sizes, unit=False)

    check_equal(lambda x: NPairs(0.3)(x, labels), lambda x: loop_n_pairs(x, labels, 0.3), rows)


def test_n_pairs_is_a_one_shot_episode():
    """Two pictures a class: cross-entropy of one side among the other, and back, as in matching networks."""
    rows, _ = a_batch([2] * 6, unit=False)
    labels = torch.arange(6).repeat(2)

    def episode(x):
        logits = functional.normalize(x[:6]) @ functional.normalize(x[6:]).T / 0.2
        return (functional.cross_entropy(logits, labels[:6]) + functional.cross_entropy(logits.T, labels[:6])) / 2

    check_equal(lambda x: NPairs(0.2)(x, labels), episode, rows)


@pytest.mark.parametrize(
    "loss", [SupervisedContrastive(1e-3), NTXent(1e-3), NPairs(1e-3)], ids=["supervised", "nt-xent", "n-pairs"]
)
def test_a_small_temperature_does_not_overflow(loss):
    """exp(1000) is infinite in float32; the loss and its gradient are not."""
    rows, labels = a_batch(SIZES["even"], dtype=torch.float32)
    value, (gradient,) = value_and_gradient(lambda x: loss(x, labels), rows)
    expected, (wanted,) = value_and_gradient(lambda x: loss(x, labels), rows.double())

    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-2, atol=1e-2)


# ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CLASSES = 4


def with_weights(loss, labels):
    """The loss as a function of embeddings and of its own parameters."""
    loss = loss.double()
    names = [name for name, _ in loss.named_parameters()]

    def call(rows, *parameters):
        return torch.func.functional_call(loss, dict(zip(names, parameters, strict=True)), (rows, labels))

    return call, list(loss.parameters())


def class_batch():
    rows, labels = a_batch(SIZES["even"], unit=False)
    return rows, (labels + 3) // 7


def loop_cross_entropy(rows, labels, weight, bias, smoothing=0.1):
    total = 0
    for row, label in zip(rows, labels, strict=True):
        scores = [row @ weight[c] + bias[c] for c in range(CLASSES)]
        below = sum(score.exp() for score in scores)
        for c, score in enumerate(scores):
            target = smoothing / CLASSES + (1 - smoothing) * int(c == label)
            total = total - target * (score.exp() / below).log()
    return total / len(rows)


def loop_multi_hinge(rows, labels, weight, bias, margin=0.7):
    total = 0
    for row, label in zip(rows, labels, strict=True):
        scores = [row @ weight[c] + bias[c] for c in range(CLASSES)]
        wrong = max(score for c, score in enumerate(scores) if c != label)
        total = total + (margin + wrong - scores[label]).clamp(min=0)
    return total / len(rows)


def loop_arcface(rows, labels, weight, degrees=60.0, scale=3.0):
    total, margin = 0, math.radians(degrees)
    for row, label in zip(rows, labels, strict=True):
        scores = []
        for c in range(CLASSES):
            cosine = (row @ weight[c]) / row.norm() / weight[c].norm()
            if c == label:
                angle = torch.arccos(cosine)
                cosine = (angle + margin).cos() if angle <= math.pi - margin else cosine - margin * math.sin(margin)
            scores.append((scale * cosine).exp())
        total = total - (scores[label] / sum(scores)).log()
    return total / len(rows)


def loop_proxy_anchor(rows, labels, weight, margin=0.1, alpha=8.0):
    pulled, pushed, met = 0, 0, 0
    for c in range(CLASSES):
        cosines = [(row @ weight[c]) / row.norm() / weight[c].norm() for row in rows]
        alike = [s for s, label in zip(cosines, labels, strict=True) if label == c]
        others = [s for s, label in zip(cosines, labels, strict=True) if label != c]
        met += bool(alike)
        if alike:
            pulled = pulled + (1 + sum((-alpha * (s - margin)).exp() for s in alike)).log()
        if others:
            pushed = pushed + (1 + sum((alpha * (s + margin)).exp() for s in others)).log()
    return pulled / met + pushed / CLASSES


@pytest.mark.parametrize(
    ("loss", "loop"),
    [
        (CrossEntropy(DIM, CLASSES, 0.1), loop_cross_entropy),
        (MultiHinge(DIM, CLASSES, 0.7), loop_multi_hinge),
        (ArcFace(DIM, CLASSES, 60.0, 3.0), loop_arcface),
        (ProxyAnchor(DIM, CLASSES, alpha=8.0), loop_proxy_anchor),
    ],
    ids=lambda value: type(value).__name__,
)
def test_losses_over_classes_are_their_loops(loss, loop):
    """Value and gradient, in embeddings and class vectors, from the definition."""
    rows, labels = class_batch()
    call, parameters = with_weights(loss, labels)

    check_equal(call, lambda x, *own: loop(x, labels, *own), rows, *parameters)


def test_proxies_of_absent_classes_are_only_pushed():
    """The pull is averaged over the classes in the batch, the push over all; a batch of one class works too."""
    rows, _ = class_batch()
    for labels in (torch.arange(len(rows)) % 2, torch.full((len(rows),), 3)):
        call, parameters = with_weights(ProxyAnchor(DIM, CLASSES, alpha=8.0), labels)

        check_equal(call, lambda x, w, labels=labels: loop_proxy_anchor(x, labels, w), rows, *parameters)


def test_arcface_is_finite_on_its_class_vector_and_opposite_to_it():
    """The angle's derivative is infinite at 0° and 180°; the loss's is not. A wide margin keeps falling beyond 180°."""
    loss = ArcFace(DIM, CLASSES)
    with torch.no_grad():
        rows = torch.cat([loss.weight[:1], -loss.weight[:1]])
    for scale in (1, 1e-3):
        value, (gradient,) = value_and_gradient(lambda x: loss(x, torch.zeros(2, dtype=torch.int64)), rows * scale)

        assert torch.isfinite(value) and torch.isfinite(gradient).all()
    cosines = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    assert (loss._widened(cosines).diff(dim=0) > 0).all()


def test_class_vectors_are_drawn_from_the_generator():
    """Equal generators give equal vectors, others do not; without one they are always the same; torch's own is left."""
    state = torch.get_rng_state()
    first, again, other = (
        CrossEntropy(DIM, CLASSES, generator=torch.Generator().manual_seed(seed)).weight for seed in (1, 1, 2)
    )

    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(ArcFace(DIM, CLASSES).weight, ArcFace(DIM, CLASSES).weight)
    assert torch.equal(torch.get_rng_state(), state)


# ── against pytorch-metric-learning ──────────────────────────────────────────────────────────────────────────────────


PEERS = {
    "all triplets": AllTriplets(0.2, "euclidean"),
    "all triplets, squared": AllTriplets(0.2),
    "contrastive": Contrastive(1.3, 0.1, squared=False),
    "supervised contrastive": SupervisedContrastive(0.2),
    "nt-xent": NTXent(0.2),
}


def peer_of(name):
    """The same loss of pytorch-metric-learning."""
    from pytorch_metric_learning import distances, losses

    raw = distances.LpDistance(normalize_embeddings=False)
    squares = distances.LpDistance(normalize_embeddings=False, power=2)
    return {
        "all triplets": losses.TripletMarginLoss(0.2, distance=raw),
        "all triplets, squared": losses.TripletMarginLoss(0.2, distance=squares),
        "contrastive": losses.ContrastiveLoss(pos_margin=0.1, neg_margin=1.3, distance=raw),
        "supervised contrastive": losses.SupConLoss(0.2),
        "nt-xent": losses.NTXentLoss(0.2),
    }[name]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("referenced", [False, True])
def test_equal_to_pytorch_metric_learning(name, referenced):
    """Value and gradient of its loss of the same name, with and without references, for uneven classes."""
    ours, theirs = PEERS[name], peer_of(name)
    (rows, labels), (more, others) = a_batch([4, 2, 3, 1, 6] * 3), a_batch([3, 1, 2], seed=1)

    def peer(x):
        if not referenced:
            return theirs(x, labels)
        # It does not know that references begin with the batch: pairs of a picture with itself are left out by hand.
        gallery, names = torch.cat([x, more]), torch.cat([labels, others])
        alike = labels[:, None] == names
        alike[torch.arange(len(x)), torch.arange(len(x))] = False
        pairs = (*alike.nonzero(as_tuple=True), *(labels[:, None] != names).nonzero(as_tuple=True))
        return theirs(x, labels, pairs, gallery, names)

    check_equal(
        lambda x: ours(x, labels, references=(more, others) if referenced else None), peer, rows, rtol=1e-7, atol=1e-9
    )


def test_n_pairs_is_equal_to_pytorch_metric_learning():
    """Its loss asks one way, one pair a class: first pictures among the second ones, then the reverse."""
    from pytorch_metric_learning import distances, losses

    rows, _ = a_batch([2] * 6, unit=False)
    labels, places = torch.arange(6).repeat(2), torch.arange(12)
    peer, none = losses.NPairsLoss(distance=distances.CosineSimilarity()), places[:0]
    ways = [(places[:6], places[6:], none, none), (places[6:], places[:6], none, none)]

    check_equal(
        lambda x: NPairs(1.0)(x, labels), lambda x: sum(peer(x, labels, way) for way in ways) / 2, rows, rtol=1e-7
    )


@pytest.mark.parametrize("squared", [False, True])
def test_pair_contrastive_is_equal_to_pytorch_metric_learning(squared):
    """Its contrastive loss on the same pairs. It has the hinges alone: of its losses per pair ours is half the square.

    It takes the mean over positives that cost anything, plus that over negatives; ours is the mean over all pairs.
    """
    from pytorch_metric_learning import distances, losses, reducers

    left, right = (a_batch(SIZES["even"], seed)[0] for seed in (0, 1))
    same, places = torch.arange(len(left)) % 3 == 0, torch.arange(len(left))
    raw = distances.LpDistance(normalize_embeddings=False)
    peer = losses.ContrastiveLoss(pos_margin=0.4, neg_margin=1.2, distance=raw, reducer=reducers.DoNothingReducer())
    pairs = (places[same], places[same], places[~same], places[~same])

    def theirs(x, y):
        found = peer(x, None, pairs, y, None)
        hinges = torch.cat([found["pos_loss"]["losses"], found["neg_loss"]["losses"]])
        return (hinges**2 / 2 if squared else hinges).sum() / len(x)

    check_equal(lambda x, y: PairContrastive(1.2, 0.4, squared)(x, y, same), theirs, left, right, rtol=1e-7)


def test_multi_hinge_is_equal_to_scikit_learn():
    """pytorch-metric-learning has no such loss; scikit-learn has its value (Crammer and Singer, margin 1)."""
    from sklearn.metrics import hinge_loss

    rows, labels = class_batch()
    loss = MultiHinge(DIM, CLASSES).double()

    expected = hinge_loss(labels.numpy(), loss.scores(rows).detach().numpy())
    assert float(loss(rows, labels).detach()) == pytest.approx(expected, rel=1e-12)


def test_multi_hinge_of_two_classes_is_equal_to_torch():
    """PyTorch's adds up all wrong classes and divides by the number of classes: with two, it is half of ours."""
    rows, labels = class_batch()
    call, parameters = with_weights(MultiHinge(DIM, 2, 0.7), labels % 2)

    def theirs(x, weight, bias):
        return 2 * functional.multi_margin_loss(functional.linear(x, weight, bias), labels % 2, margin=0.7)

    check_equal(call, theirs, rows, *parameters)


@pytest.mark.parametrize("soft", [False, True])
def test_triplet_is_equal_to_pytorch_metric_learning(soft):
    """Over given triplets, hard and soft."""
    from pytorch_metric_learning import distances, losses

    rows, labels = a_batch(SIZES["uneven"])
    triplets = tuple(torch.tensor(list(every_triplet(labels, labels)))[::2].T)
    raw = distances.LpDistance(normalize_embeddings=False)
    peer = losses.TripletMarginLoss(0.2, smooth_loss=soft, distance=raw)

    ours = Triplet(0.2, "euclidean", soft)
    check_equal(lambda x: ours(x, labels, triplets), lambda x: peer(x, labels, triplets), rows, rtol=1e-7)


def test_losses_over_classes_are_equal_to_pytorch_metric_learning():
    """ArcFace, proxy anchor and the normalised softmax, with the same class vectors."""
    from pytorch_metric_learning import losses

    rows, labels = class_batch()
    arcface, proxies = ArcFace(DIM, CLASSES), ProxyAnchor(DIM, CLASSES)
    softmax = CrossEntropy(DIM, CLASSES, smoothing=0.0, temperature=0.05)
    pairs = [
        (arcface, losses.ArcFaceLoss(CLASSES, DIM), "W"),
        (softmax, losses.NormalizedSoftmaxLoss(CLASSES, DIM), "W"),
        (proxies, losses.ProxyAnchorLoss(CLASSES, DIM), "proxies"),
    ]
    for ours, peer, name in pairs:
        call, parameters = with_weights(ours, labels)
        weight = parameters[0].detach()
        setattr(peer, name, torch.nn.Parameter(weight.T.clone() if name == "W" else weight.clone()))

        check_equal(lambda x, call=call, weight=weight: call(x, weight), lambda x: peer(x, labels), rows, rtol=1e-6)  # noqa: B023


# ── what holds for all ───────────────────────────────────────────────────────────────────────────────────────────────


def make(name):
    """A loss over labelled batches by its name, with few classes."""
    kind = LOSSES[name]
    return kind(DIM, CLASSES) if kind.needs_classes else kind()


def call_loss(loss, rows, labels, references=None):
    """Any loss over labelled batches; triplets, where needed, are all."""
    if not loss.needs_triplets:
        return loss(rows, labels, references=references)
    names = labels if references is None else torch.cat([labels, references[1]])
    return loss(rows, labels, triplets_of(labels, names), references)


def triplets_of(labels, names):
    found = list(every_triplet(labels, names))
    return tuple(torch.tensor(found, dtype=torch.int64).reshape(-1, 3).T)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    """In float64, in embeddings and parameters."""
    rows, labels = class_batch()
    loss = make(name).double()

    assert torch.autograd.gradcheck(
        lambda x, *_: call_loss(loss, x, labels), (rows.requires_grad_(), *loss.parameters())
    )


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients_of_pairs_are_those_of_finite_differences(name):
    """In float64, in embeddings and parameters."""
    loss = (PAIR_LOSSES[name](DIM) if name == "learned_metric" else PAIR_LOSSES[name]()).double()
    left, right = (a_batch([6], seed)[0].requires_grad_() for seed in (0, 1))
    same = torch.arange(6) % 2 == 0

    assert torch.autograd.gradcheck(lambda x, y, *_: loss(x, y, same), (left, right, *loss.parameters()))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"none"}))
def test_going_down_the_gradient_separates_classes(name):
    """Every loss falls, and ends with each picture nearest to the middle of its class."""
    rows, labels = class_batch()
    rows, loss = rows.float().requires_grad_(), make(name)
    optimizer = torch.optim.Adam([rows, *loss.parameters()], lr=0.05)
    history = []
    for _ in range(120):
        value = call_loss(loss, functional.normalize(rows), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(float(value.detach()))
    ended = functional.normalize(rows.detach())
    middles = torch.stack([ended[labels == number].mean(0) for number in range(CLASSES)])

    assert history[-1] < history[0]
    assert torch.equal(torch.cdist(ended, middles).argmin(1), labels)


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if not kind.needs_classes])
@pytest.mark.parametrize("sizes", [[], [1], [1] * 6], ids=["empty", "one", "strangers"])
def test_a_batch_with_nothing_to_learn_from_costs_nothing(name, sizes):
    """No picture, one, or no two of a class: zero or a push apart, a finite gradient, no error."""
    rows, labels = a_batch(sizes)
    value, (gradient,) = value_and_gradient(lambda x: call_loss(make(name), x, labels), rows)

    assert torch.isfinite(gradient).all()
    assert float(value) == 0 or name == "contrastive"


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if kind.needs_classes])
def test_an_empty_batch_costs_nothing_over_classes(name):
    """Zero, with a graph."""
    value = make(name)(torch.zeros(0, DIM, requires_grad=True), torch.zeros(0, dtype=torch.int64))

    assert value.requires_grad and value.item() == 0


@pytest.mark.parametrize("name", ["contrastive", "triplet", "all_triplets", "nt_xent", "n_pairs"])
def test_a_batch_of_one_class_has_a_finite_gradient(name):
    """Without negatives triplets and NT-Xent cost nothing; contrastive pulls."""
    rows, labels = a_batch([5])
    value, (gradient,) = value_and_gradient(lambda x: call_loss(make(name), x, labels), rows)

    assert torch.isfinite(gradient).all()
    assert float(value) == 0 or name == "contrastive"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_network_is_not_taken_for_a_good_one(name, bad):
    """Comparisons with what is not a number are false; the loss must still not be zero."""
    rows, labels = class_batch()
    rows[3, 2] = bad

    assert not torch.isfinite(call_loss(make(name), rows, labels))
    if not LOSSES[name].needs_classes:  # nor where there is nothing to learn from
        assert not torch.isfinite(call_loss(make(name), rows, torch.arange(len(rows))))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_reach_the_loss(name):
    """Half-precision embeddings under autocast give what the same embeddings give in float32, gradient included."""
    rows, labels = class_batch()
    rows, loss = rows.to(torch.bfloat16), make(name)
    expected, wanted = value_and_gradient(lambda x: call_loss(loss, x.float(), labels), rows)
    rows.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = call_loss(loss, rows, labels)
    value.backward()

    assert value.dtype == torch.float32 and rows.grad.dtype == torch.bfloat16
    assert torch.equal(value, expected) and torch.equal(rows.grad, wanted[0])


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if kind.takes_references])
def test_references_of_half_precision_are_taken(name):
    """A memory may hold other types of numbers than the batch."""
    rows, labels = class_batch()
    references = rows.half(), labels.int()

    assert torch.isfinite(call_loss(make(name), rows.float(), labels, references))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: AllTriplets()(torch.zeros(3), torch.zeros(3)), "embeddings must be"),
        (lambda: AllTriplets()(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3)), "embeddings must be"),
        (lambda: AllTriplets()(torch.zeros(3, 2), torch.zeros(3)), "labels must be"),
        (lambda: AllTriplets()(torch.zeros(3, 2), torch.zeros(2).long()), "labels must be"),
        (
            lambda: NTXent()(torch.ones(2, 2), torch.arange(2), None, (torch.ones(1, 3), torch.ones(1))),
            "references must",
        ),
        (lambda: PairContrastive()(torch.ones(2, 2), torch.ones(3, 2), torch.ones(2).bool()), "left and right"),
        (lambda: PairContrastive()(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2)), "same must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong, message):
    """With the shapes that were given."""
    with pytest.raises(ShapeError, match=message):
        wrong()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Triplet()(torch.ones(2, 2), torch.arange(2)), "Triplet needs triplets"),
        (lambda: AllTriplets()(torch.ones(2, 2), torch.arange(2), (torch.arange(1),) * 3), "takes no triplets"),
        (
            lambda: ArcFace(2, 2)(torch.ones(2, 2), torch.arange(2), references=(torch.ones(1, 2), torch.arange(1))),
            "references are of no use",
        ),
        (lambda: ArcFace(2, 2)(torch.ones(2, 2), torch.tensor([0, 2])), "0 … 1, got 2"),
        (lambda: ArcFace(2, 2)(torch.ones(2, 2), torch.tensor([0, -1])), "0 … 1, got -1"),
        (lambda: ArcFace(2, 1), "classes must be at least 2, got 1"),
        (lambda: ArcFace(2, 2, margin=200), "margin must lie in"),
        (lambda: ArcFace(2, 2, scale=0), "scale must be above 0"),
        (lambda: CrossEntropy(2, 2, smoothing=1), "smoothing must lie in"),
        (lambda: CrossEntropy(2, 2, temperature=0), "temperature must be above 0"),
        (lambda: SupervisedContrastive(-1), "temperature must be above 0, got -1"),
        (lambda: NTXent(0), "temperature must be above 0"),
        (lambda: NPairs(0), "temperature must be above 0"),
        (lambda: Triplet(-0.1), "margin must be at least 0, got -0.1"),
        (lambda: AllTriplets(distance="cosine"), "squared, euclidean, got 'cosine'"),
        (lambda: Contrastive(reduction="sum"), "nonzero or all, got 'sum'"),
        (lambda: MultiHinge(2, 2, margin=math.nan), "margin must be at least 0, got nan"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    """With the value that was given."""
    with pytest.raises(ValueError, match=message):
        wrong()
