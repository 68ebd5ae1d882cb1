"""Optimisers: what their names promise, against PyTorch's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from lookalike.training.machine import optimizer_for, optimizer_of  # noqa: E402


def table(kind: str, **values: float) -> SimpleNamespace:
    return SimpleNamespace(**{"kind": kind, "rate": 0.01, "momentum": 0.95, "weight_decay": 0.1, **values})


def stepped(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, steps: int = 3) -> torch.Tensor:
    dice = torch.Generator().manual_seed(1)
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=dice)
        optimizer.step()
    return weight.detach().clone()


def parameter(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_muon_is_pytorchs_muon(shape: tuple[int, int]) -> None:
    """On a matrix, three steps are those of torch.optim.Muon, to what bfloat16 inside both allows."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with PyTorch 2.9")
    ours, theirs = parameter(*shape), parameter(*shape)
    mine = optimizer_of(table("muon"), [{"params": [ours], "lr": 0.01, "weight_decay": 0.1}])
    reference = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.95, nesterov=False, adjust_lr_fn="match_rms_adamw"
    )
    moved = stepped(mine, ours) - parameter(*shape).detach()
    assert float(moved.norm()) > 0.05
    torch.testing.assert_close(moved, stepped(reference, theirs) - parameter(*shape).detach(), rtol=0.03, atol=2e-3)


def test_muon_takes_a_kernel_as_a_matrix_of_outputs_by_inputs() -> None:
    """A convolution of (8, 3, 3, 3) moves as the matrix of (8, 27) does."""
    kernel, matrix = parameter(8, 3, 3, 3), torch.nn.Parameter(parameter(8, 3, 3, 3).detach().flatten(1))
    moved = [
        stepped(optimizer_of(table("muon"), [{"params": [p], "lr": 0.01, "weight_decay": 0.1}]), p).flatten(1)
        for p in (kernel, matrix)
    ]
    torch.testing.assert_close(*moved)


def test_muon_leaves_vectors_and_class_centres_to_adamw() -> None:
    """They move as torch.optim.AdamW moves them, at the same rate."""
    network = SimpleNamespace(
        parameter_groups=lambda rate, decay, **_: [{"params": [vector], "lr": rate, "weight_decay": 0.0}]
    )
    vector, centres = parameter(6), torch.nn.Linear(5, 4, bias=False)
    start = centres.weight.detach().clone()
    optimizer = optimizer_for(table("muon"), network, centres, SimpleNamespace(layer_decay=1.0, head_rate=1.0))
    for parameters, before in (([vector], parameter(6)), ([centres.weight], torch.nn.Parameter(start))):
        reference = torch.optim.AdamW([before], lr=0.01, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-7)
        torch.testing.assert_close(stepped(optimizer, parameters[0]), stepped(reference, before))
        parameters[0].grad = None
