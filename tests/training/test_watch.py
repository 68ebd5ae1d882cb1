"""The collapse watch speaks when an embedding has collapsed, says why, and is silent when all is well."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lookalike.training.losses import SupervisedContrastive, Triplet
from lookalike.training.miners import MINERS
from lookalike.training.objective import Batch, Objective
from lookalike.training.watch import CollapseWatch, Health, effective_rank, health, mean_similarity

WELL = Health(similarity=0.05, rank=30.0, active=0.4)


def rows(n: int = 40, dim: int = 8) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(1))


def test_mean_similarity_is_that_of_a_loop_over_pairs() -> None:
    """The closed form equals the mean cosine over all pairs of different rows."""
    vectors = rows()
    pairs = [
        torch.cosine_similarity(a, b, dim=0) for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j
    ]

    assert mean_similarity(vectors) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


def test_effective_rank_counts_directions() -> None:
    """One point has rank 1, two equally used directions 2, an orthonormal basis all of them."""
    assert effective_rank(torch.ones(10, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.eye(2).repeat(5, 1)) == pytest.approx(2, abs=1e-4)
    assert effective_rank(torch.eye(8)) == pytest.approx(8, abs=1e-4)


def test_collapse_is_said_once_with_figures_and_advice() -> None:
    """All vectors at one point, three reports in a row: one message, not three."""
    watch = CollapseWatch(level=0.2)
    found = health(torch.ones(16, 8) + 0.01 * rows(16))

    messages = [message for _ in range(6) for message in watch.look(0.2, found)]

    assert len(messages) == 1
    assert "collapsed" in messages[0]
    assert "mean similarity 1.0" in messages[0] and "effective rank" in messages[0]
    assert "optimizer.rate" in messages[0]


@pytest.mark.parametrize(
    ("loss", "found", "word"),
    [
        (0.2, WELL, "stuck at the margin"),
        (0.1, Health(0.3, 1.5, 0.5), "one direction"),
        (0.1, Health(0.1, 30, 0.001), "still teach"),
    ],
)
def test_each_sign_has_its_message(loss: float, found: Health, word: str) -> None:
    """A loss at the margin, a single direction, idle triplets: each is named."""
    watch = CollapseWatch(level=0.2)

    messages = [message for _ in range(3) for message in watch.look(loss, found)]

    assert len(messages) == 1 and word in messages[0]


def test_a_healthy_run_and_a_passing_dip_are_left_alone() -> None:
    """Nothing is said of good figures, nor of a bad report between good ones."""
    watch = CollapseWatch(level=0.2)
    bad = Health(0.99, 1.1, 0.0)

    said = [watch.look(loss, found) for loss, found in [(0.1, WELL), (0.2, bad), (0.1, WELL), (0.2, bad), (0.1, WELL)]]

    assert said == [[]] * 5


@pytest.mark.parametrize(
    ("loss", "level"),
    [
        (Triplet(margin=0.2), 0.2),
        (Triplet(margin=0.2, soft=True), math.log1p(math.exp(0.2))),
        (SupervisedContrastive(), None),
    ],
)
def test_the_level_is_what_the_loss_is_when_all_distances_are_equal(loss: nn.Module, level: float | None) -> None:
    """Of a collapsed batch the loss is exactly that; other losses have none."""
    objective = Objective(loss, MINERS["random"]() if level else None)
    assert objective.level == (level and pytest.approx(level))
    if level:
        rows = torch.ones(8, 3) / 3**0.5
        batch = Batch(np.arange(8), torch.arange(8) // 2)
        assert float(objective(rows, batch, torch.Generator().manual_seed(0), 0.0)) == pytest.approx(level)


def test_a_batch_without_a_triplet_is_an_idle_one() -> None:
    """Share 0, so that the watch speaks, and not None, as of losses that have no triplets."""
    objective = Objective(Triplet(margin=0.2), MINERS["semi_hard"](margin=1e-12, otherwise="skip"))
    rows = torch.nn.functional.normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    batch = Batch(np.arange(8), torch.arange(8) // 2)
    assert objective.active(rows, batch, torch.Generator(), 0.0) == 0.0
