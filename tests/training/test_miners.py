"""Miners against loops written from the papers, against pytorch-metric-learning, and against their probabilities."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lookalike.errors import ShapeError
from lookalike.training import _distances, miners
from lookalike.training.losses import AllTriplets, Triplet
from lookalike.training.miners import (
    MINERS,
    DistanceWeighted,
    Hard,
    RandomNegatives,
    Schedule,
    SemiHard,
    triplet_share,
)

SIZES = {"even": [3] * 4, "uneven": [1, 2, 5, 1, 3], "large": [8, 1, 1, 2], "two": [6, 6]}


def a_batch(sizes, seed=0, dim=4):
    """Unit vectors in float64 and labels, shuffled, with labels that are not 0, 1, 2, …."""
    dice = torch.Generator().manual_seed(seed)
    numbers = [7 * number - 3 for number, size in enumerate(sizes) for _ in range(size)]
    labels = torch.tensor(numbers, dtype=torch.int64)[torch.randperm(len(numbers), generator=dice)]
    rows = torch.randn(len(labels), dim, generator=dice, dtype=torch.float64)
    return functional.normalize(rows), labels


def a_gallery(referenced):
    """A batch, its references or None, and the gallery of both."""
    (rows, labels), references = a_batch(SIZES["uneven"]), None
    if referenced:
        references = a_batch(SIZES["even"], seed=1)
        return rows, labels, references, torch.cat([rows, references[0]]), torch.cat([labels, references[1]])
    return rows, labels, references, rows, labels


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def listed(triplets):
    return sorted(zip(*(index.tolist() for index in triplets), strict=True))


def parts(labels, names, a):
    """Positives and negatives of an anchor, by looking at every label."""
    positives = [j for j in range(len(names)) if j != a and names[j] == labels[a]]
    return positives, [j for j in range(len(names)) if names[j] != labels[a]]


def every_pair(labels, names):
    """Each (anchor, positive) that makes a triplet, with the anchor's negatives."""
    for a in range(len(labels)):
        positives, negatives = parts(labels, names, a)
        if negatives:
            for p in positives:
                yield a, p, negatives


@pytest.fixture(params=["in passes", "by search"])
def counting(request, monkeypatch):
    """Both ways to look: for few positives and for many."""
    monkeypatch.setattr(miners, "FEW", 10**9 if request.param == "in passes" else 0)


# ── each against its loop ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("referenced", [False, True])
def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative(referenced):
    """One triplet for each anchor that has both."""
    rows, labels, references, gallery, names = a_gallery(referenced)
    distance = torch.cdist(rows, gallery)
    expected = []
    for a in range(len(rows)):
        positives, negatives = parts(labels, names, a)
        if positives and negatives:
            farthest = max(positives, key=lambda p: distance[a, p])
            expected.append((a, farthest, min(negatives, key=lambda n: distance[a, n])))

    assert listed(Hard()(rows, labels, references)) == expected


@pytest.mark.parametrize("referenced", [False, True])
def test_hard_takes_the_nearest_negative_for_every_pair(referenced):
    """With `positives="all"`."""
    rows, labels, references, gallery, names = a_gallery(referenced)
    distance = torch.cdist(rows, gallery)
    expected = [(a, p, min(negatives, key=lambda n: distance[a, n])) for a, p, negatives in every_pair(labels, names)]

    assert listed(Hard("all")(rows, labels, references)) == sorted(expected)


def loop_semi_hard(distance, pairs, margin, otherwise):
    for a, p, negatives in pairs:
        farther = [n for n in negatives if distance[a, n] > distance[a, p]]
        if farther:
            nearest = min(farther, key=lambda n: distance[a, n])
            if margin is None or distance[a, nearest] < distance[a, p] + margin:
                yield a, p, nearest
        elif otherwise == "farthest":
            yield a, p, max(negatives, key=lambda n: distance[a, n])


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("otherwise", ["farthest", "skip"])
@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_semi_hard_takes_the_nearest_negative_beyond_the_positive(sizes, margin, otherwise, distance):
    """For every pair; within the margin if there is one; if none is beyond, the farthest, or the pair is left out."""
    rows, labels = a_batch(sizes)
    gaps = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") ** (2 if distance == "squared" else 1)
    expected = sorted(loop_semi_hard(gaps, every_pair(labels, labels), margin, otherwise))

    assert listed(SemiHard(margin, otherwise, distance)(rows, labels)) == expected


@pytest.mark.usefixtures("counting")
def test_semi_hard_looks_at_references():
    """Positives and negatives of the memory count like those of the batch."""
    rows, labels, references, gallery, names = a_gallery(referenced=True)
    distance = torch.cdist(rows, gallery)
    expected = sorted(loop_semi_hard(distance, every_pair(labels, names), None, "farthest"))

    assert listed(SemiHard()(rows, labels, references)) == expected


@pytest.mark.usefixtures("counting")
def test_a_negative_as_near_as_the_positive_is_not_semi_hard():
    """On a line with whole distances: a negative at the positive's distance is passed over for the next."""
    rows = torch.tensor([[0.0], [2.0], [-2.0], [3.0], [-4.0], [1.0]])  # their mean is zero: they stay whole numbers
    labels = torch.tensor([0, 0, 1, 1, 2, 3])

    assert listed(SemiHard(otherwise="skip")(rows, labels))[0] == (0, 1, 3)


@pytest.mark.parametrize("per_pair", [1, 3])
@pytest.mark.parametrize("referenced", [False, True])
def test_random_gives_every_pair_its_negatives(per_pair, referenced):
    """Each positive pair comes `per_pair` times, with true negatives."""
    rows, labels, references, _, names = a_gallery(referenced)
    mined = listed(RandomNegatives(per_pair)(rows, labels, references, dice()))

    pairs = {(a, p): negatives for a, p, negatives in every_pair(labels, names)}
    assert Counter((a, p) for a, p, _ in mined) == dict.fromkeys(pairs, per_pair)
    assert all(n in pairs[a, p] for a, p, n in mined)


def chi_square(counts, shares):
    """How far counts are from their expectation, in standard deviations of the statistic."""
    total, statistic, cells = sum(counts.values()), 0.0, 0
    assert set(counts) <= {n for n, share in shares.items() if share > 0}
    for n, share in shares.items():
        if total * share > 5:
            statistic, cells = statistic + (counts[n] - total * share) ** 2 / (total * share), cells + 1
    return (statistic - cells) / math.sqrt(2 * cells)


def test_random_draws_all_negatives_equally_often():
    """20,000 draws for one pair fit an even distribution over its negatives."""
    rows, labels = a_batch(SIZES["uneven"])
    a, _, negatives = next(every_pair(labels, labels))
    anchors, _, drawn = RandomNegatives(20_000)(rows, labels, None, dice())

    assert abs(chi_square(Counter(drawn[anchors == a].tolist()), {n: 1 / len(negatives) for n in negatives})) < 4


def test_distance_weighted_draws_with_the_inverse_of_the_density():
    """The counts of many draws for one pair fit the paper's probabilities, cut at both ends."""
    dim, cutoff, end = 6, 0.7, 1.5
    rows, labels = a_batch([2] + [1] * 40, dim=dim)
    a = next(every_pair(labels, labels))[0]
    shares = {}
    for n in range(len(rows)):
        distance = float((rows[a] - rows[n]).norm())
        if labels[n] != labels[a] and distance < end:
            clipped = max(distance, cutoff)
            shares[n] = 1 / (clipped ** (dim - 2) * (1 - clipped**2 / 4) ** ((dim - 3) / 2))
    shares = {n: share / sum(shares.values()) for n, share in shares.items()}
    miner, counts, generator = DistanceWeighted(cutoff, end), Counter(), dice()
    for _ in range(3000):
        anchors, _, negatives = miner(rows, labels, None, generator)
        counts.update(negatives[anchors == a].tolist())

    assert len(shares) > 10 and max(shares.values()) > 3 * min(shares.values())
    assert abs(chi_square(counts, shares)) < 4


def test_distance_weighted_is_finite_in_many_dimensions():
    """In 2048 dimensions the inverse of the density is infinite in float32; its logarithm is not."""
    rows, labels = a_batch([3] * 8, dim=2048)
    rows = functional.normalize(rows + rows[0])
    mined = listed(DistanceWeighted()(rows.float(), labels, None, dice()))

    assert [(a, p) for a, p, _ in mined] == sorted((a, p) for a, p, _ in every_pair(labels, labels))
    assert all(labels[a] != labels[n] for a, _, n in mined)
    assert mined == listed(DistanceWeighted()(rows, labels, None, dice()))


def test_distance_weighted_leaves_out_what_costs_nothing():
    """An anchor whose negatives are all beyond the cutoff gives no triplet."""
    rows = torch.eye(4)[[0, 0, 1, 1]]
    labels = torch.tensor([0, 0, 1, 1])

    assert listed(DistanceWeighted(0.5, 1.4)(rows, labels, None, dice())) == []
    assert len(DistanceWeighted(0.5, 1.5)(rows, labels, None, dice())[0]) == 4


# ── against pytorch-metric-learning ──────────────────────────────────────────────────────────────────────────────────


def test_batch_hard_is_equal_to_pytorch_metric_learning():
    """The same triplets."""
    from pytorch_metric_learning.miners import BatchHardMiner

    for seed in range(5):
        rows, labels = a_batch([4, 2, 3, 1, 6] * 3, seed)

        assert listed(Hard()(rows, labels)) == listed(BatchHardMiner()(rows, labels))


@pytest.mark.usefixtures("counting")
def test_semi_hard_is_the_nearest_of_pytorch_metric_learnings():
    """It gives all negatives between d(a, p) and d(a, p) + margin; ours is the nearest of those for each pair."""
    from pytorch_metric_learning.miners import TripletMarginMiner

    for seed in range(5):
        rows, labels = a_batch([4, 2, 3, 1, 6] * 3, seed)
        distance, nearest = torch.cdist(rows, rows), {}
        for a, p, n in listed(TripletMarginMiner(0.15, type_of_triplets="semihard")(rows, labels)):
            if (a, p) not in nearest or distance[a, n] < distance[a, nearest[a, p]]:
                nearest[a, p] = n
        expected = sorted((a, p, n) for (a, p), n in nearest.items())

        assert listed(SemiHard(0.15, "skip", "euclidean")(rows, labels)) == expected


# ── what holds for all ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MINERS)
@pytest.mark.parametrize("sizes", [[], [1], [1] * 5, [5]], ids=["empty", "one", "strangers", "one class"])
def test_no_triplet_is_no_error(name, sizes):
    """Without positives or without negatives come three empty tensors, and the loss over them is zero with a graph."""
    rows, labels = a_batch(sizes)
    triplets = MINERS[name]()(rows, labels, None, dice())
    value = Triplet()(rows.requires_grad_(), labels, triplets)

    assert [(len(index), index.dtype) for index in triplets] == [(0, torch.int64)] * 3
    assert value.requires_grad and value.item() == 0
    assert math.isnan(triplet_share(rows, labels, triplets))


@pytest.mark.parametrize("name", MINERS)
def test_blocks_of_anchors_do_not_matter(name, monkeypatch):
    """Taking a few anchors at a time chooses what taking all at once chooses, draws included."""
    rows, labels, references, _, _ = a_gallery(referenced=True)
    whole = listed(MINERS[name]()(rows, labels, references, dice()))
    monkeypatch.setattr(_distances, "BLOCK_ROWS", 5)
    monkeypatch.setattr(_distances, "BLOCK_CELLS", 1)

    assert listed(MINERS[name]()(rows, labels, references, dice())) == whole


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    cells = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.cells = max([self.cells, *(leaf.numel() for leaf in tree_leaves(result) if torch.is_tensor(leaf))])
        return result


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("name", MINERS)
def test_no_miner_makes_the_cube(name, monkeypatch):
    """No tensor is larger than the embeddings or a block of distances."""
    monkeypatch.setattr(_distances, "BLOCK_ROWS", 10)
    monkeypatch.setattr(_distances, "BLOCK_CELLS", 1)
    rows, labels = a_batch([4] * 100, dim=16)
    with Largest() as largest:
        triplets = MINERS[name]()(rows, labels, None, dice())

    assert len(triplets[0]) >= 400
    assert largest.cells <= 400 * 18


@pytest.mark.parametrize("name", [name for name, kind in MINERS.items() if kind.draws])
def test_what_is_drawn_depends_on_the_generator_alone(name):
    """Equal generators draw alike, others do not; torch's own generator is neither used nor moved."""
    rows, labels = a_batch([4] * 6)
    miner, state = MINERS[name](), torch.get_rng_state()
    first, again, other = (listed(miner(rows, labels, None, dice(seed))) for seed in (1, 1, 2))

    assert first == again and first != other
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"draws at random: pass a torch\.Generator"):
        miner(rows, labels)


@pytest.mark.parametrize("name", MINERS)
def test_embeddings_with_a_graph_in_half_precision_are_mined(name):
    """Under autocast, with a gradient: the choice is made in float32, and makes no graph."""
    rows, labels = a_batch([4] * 6, dim=16)
    half = rows.bfloat16().requires_grad_()
    expected = MINERS[name]()(half.detach().float(), labels, None, dice())
    with torch.autocast("cpu", torch.bfloat16):
        triplets = MINERS[name]()(half, labels, None, dice())

    assert listed(triplets) == listed(expected)


def test_what_makes_no_sense_is_refused():
    """With the value that was given."""
    for make, message in [
        (lambda: RandomNegatives(0), "per_pair must be at least 1, got 0"),
        (lambda: Hard("some"), "hardest or all, got 'some'"),
        (lambda: SemiHard(margin=0.0), r"margin must be above 0, got 0\.0"),
        (lambda: SemiHard(otherwise="nearest"), "farthest or skip, got 'nearest'"),
        (lambda: SemiHard(distance="cosine"), "squared, euclidean, got 'cosine'"),
        (lambda: DistanceWeighted(1.5, 1.4), r"^cutoff must lie between .* got 1\.5 and 1\.4"),
        (lambda: DistanceWeighted()(2 * torch.ones(2, 2), torch.arange(2), None, dice()), "unit length, got 2.83"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ShapeError, match="labels must be"):
        Hard()(torch.ones(3, 2), torch.arange(2))


# ── schedule ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_schedule_goes_from_miner_to_miner():
    """Each from its share of the run on; called, it mines with the one whose turn it is."""
    rows, labels = a_batch([4] * 6)
    schedule = Schedule([(0.0, RandomNegatives()), (0.25, SemiHard()), (0.75, Hard())])
    turns = {progress: type(schedule.at(progress).current) for progress in (0, 0.2, 0.25, 0.7, 0.75, 1)}

    assert list(turns.values()) == [RandomNegatives, RandomNegatives, SemiHard, SemiHard, Hard, Hard]
    assert listed(schedule.at(0.1)(rows, labels, None, dice(3))) == listed(
        RandomNegatives()(rows, labels, None, dice(3))
    )
    assert listed(schedule.at(0.5)(rows, labels)) == listed(SemiHard()(rows, labels))


def test_every_miner_can_be_asked_for_its_turn():
    """A miner alone is its own schedule."""
    miner = Hard()

    assert miner.at(0.5) is miner


@pytest.mark.parametrize("starts", [[], [0.1], [0, 0.5, 0.5], [0, 0.7, 0.3], [0, 1]])
def test_a_schedule_that_does_not_rise_from_zero_is_refused(starts):
    """With the shares that were given; and so is a progress outside the run."""
    with pytest.raises(ValueError, match="start at 0 and rise"):
        Schedule([(start, Hard()) for start in starts])
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        Schedule([(0, Hard())]).at(1.5)


# ── the share of triplets that teach ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("distance", ["squared", "euclidean"])
@pytest.mark.parametrize("referenced", [False, True])
def test_triplet_share_counts_what_costs_anything(distance, referenced):
    """Of all triplets, without making them, and of given ones."""
    rows, labels, references, gallery, names = a_gallery(referenced)
    every = [(a, p, n) for a, p, negatives in every_pair(labels, names) for n in negatives]
    gaps = torch.cdist(rows, gallery) ** (2 if distance == "squared" else 1)
    costs = [bool(gaps[a, p] + 0.3 > gaps[a, n]) for a, p, n in every]
    some = tuple(torch.tensor(every[::3]).T)

    assert triplet_share(rows, labels, None, 0.3, distance, references) == pytest.approx(sum(costs) / len(costs))
    assert triplet_share(rows, labels, some, 0.3, distance, references) == pytest.approx(
        sum(costs[::3]) / len(costs[::3])
    )


def test_triplet_share_tells_learnt_from_collapsed():
    """0 where classes are far apart, 1 where everything is one point, also through the loss's two means."""
    labels = torch.arange(12) % 3
    learnt, collapsed = torch.eye(3)[labels], torch.ones(12, 3)

    assert triplet_share(learnt, labels, None, 0.2) == 0
    assert triplet_share(collapsed, labels, None, 0.2) == 1
    rows, labels = a_batch([4] * 6)
    means = [AllTriplets(0.2, reduction=reduction)(rows, labels).item() for reduction in ("all", "nonzero")]
    assert triplet_share(rows, labels) == pytest.approx(means[0] / means[1])
