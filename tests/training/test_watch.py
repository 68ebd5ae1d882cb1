"""The collapse watch speaks when an embedding has collapsed, says why, and is silent when all is well."""

from __future__ import annotations

import pytest
import torch

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
    watch = CollapseWatch(margin=0.2)
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
    watch = CollapseWatch(margin=0.2)

    messages = [message for _ in range(3) for message in watch.look(loss, found)]

    assert len(messages) == 1 and word in messages[0]


def test_a_healthy_run_and_a_passing_dip_are_left_alone() -> None:
    """Nothing is said of good figures, nor of a bad report between good ones."""
    watch = CollapseWatch(margin=0.2)
    bad = Health(0.99, 1.1, 0.0)

    said = [watch.look(loss, found) for loss, found in [(0.1, WELL), (0.2, bad), (0.1, WELL), (0.2, bad), (0.1, WELL)]]

    assert said == [[]] * 5
