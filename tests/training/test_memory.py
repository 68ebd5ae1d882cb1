"""The cross-batch memory against a list from which the oldest fall out."""

from __future__ import annotations

import pytest
import torch

from lookalike.errors import ShapeError
from lookalike.training.losses import AllTriplets
from lookalike.training.memory import CrossBatchMemory
from lookalike.training.miners import SemiHard


def held(memory):
    """What a memory holds, sorted by label."""
    references = memory.references()
    if references is None:
        return []
    return sorted(zip(references[1].tolist(), references[0].tolist(), strict=True))


@pytest.mark.parametrize("sizes", [[3, 3, 3], [7], [5, 2, 1], [2, 0, 4, 12, 1], [25, 3]])
def test_it_holds_the_last_embeddings(sizes):
    """Whatever the batches' sizes, also larger than the memory: the last seven, each with its label."""
    memory, kept, number = CrossBatchMemory(7, 2), [], 0
    for size in sizes:
        labels = torch.arange(number, number + size)
        number += size
        rows = torch.stack([labels * 0.5, labels * -1.0], 1)
        memory.push(rows, labels)
        kept = (kept + list(zip(labels.tolist(), rows.tolist(), strict=True)))[-7:]

        assert held(memory) == kept
        assert len(memory) == len(kept)


def test_it_is_empty_at_first():
    """Losses and miners take None for no references."""
    memory = CrossBatchMemory(5, 2)

    assert memory.references() is None and len(memory) == 0
    memory.push(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    assert memory.references() is None


def test_it_holds_no_graph():
    """What is pushed with a gradient is kept without, in float32, and is not changed by what happens to it later."""
    memory, rows = CrossBatchMemory(5, 2), torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    memory.push(rows * 2, torch.arange(3, dtype=torch.int32))
    vectors, labels = memory.references()
    with torch.no_grad():
        rows.zero_()

    assert not vectors.requires_grad and vectors.dtype == torch.float32 and labels.dtype == torch.int64
    assert vectors.eq(2).all()


def test_it_resumes_exactly():
    """A memory loaded from another's state holds the same, in the same places, and goes on the same way."""
    dice = torch.Generator().manual_seed(0)
    first, second = CrossBatchMemory(7, 3), CrossBatchMemory(7, 3)
    for size in (4, 5):
        first.push(torch.randn(size, 3, generator=dice), torch.arange(size))
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    more = torch.randn(6, 3, generator=dice)
    for memory in (first, second):
        memory.push(more, torch.arange(6))

    for left, right in zip(first.references(), second.references(), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(first.pushed, second.pushed) and first.pushed == 15


def test_a_step_with_a_memory_learns_from_it():
    """A picture alone in its class in the batch learns from that class in the memory; pushing afterwards is safe."""
    memory = CrossBatchMemory(6, 2)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 1])
    memory.push(torch.tensor([[0.6, 0.8], [0.8, 0.6]]), labels)
    references = memory.references()
    loss = AllTriplets()(rows, labels, references=references)
    memory.push(rows, labels)
    loss.backward()

    assert AllTriplets()(rows, labels).item() == 0
    assert loss.item() > 0 and (rows.grad.abs().sum(1) > 0).all()
    assert len(SemiHard()(rows, labels, references)[0]) == 2


def test_what_does_not_fit_is_refused():
    """With the shapes that were given."""
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        CrossBatchMemory(0, 2)
    with pytest.raises(ShapeError, match=r"\(B, 2\) with labels \(B,\), got \(3, 4\) and \(3,\)"):
        CrossBatchMemory(5, 2).push(torch.ones(3, 4), torch.arange(3))
    with pytest.raises(ShapeError, match=r"got \(3, 2\) and \(2,\)"):
        CrossBatchMemory(5, 2).push(torch.ones(3, 2), torch.arange(2))
