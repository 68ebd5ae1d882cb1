"""Two processes with half a batch each learn what one process learns from the whole batch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from lookalike.errors import TrainingError
from lookalike.training.distributed import Group, SharedBatchNorm, share_batch_norm

# Run by torchrun: a network with batch norms, a loss over the whole batch, three steps of SGD; the weights are saved.
SCRIPT = """
import sys, torch
from torch import nn
from lookalike.training.distributed import Group, share_batch_norm
from lookalike.training.losses import SupervisedContrastive, ProxyAnchor

group = Group.join("cpu")
torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))
proxies = ProxyAnchor(dim=6, classes=4)
losses = [SupervisedContrastive(temperature=0.1), proxies]
if group.size > 1:
    share_batch_norm(network)
parameters = [*network.parameters(), *proxies.parameters()]
optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
dice = torch.Generator().manual_seed(1)
for step in range(3):
    pictures, labels = torch.randn(16, 3, 8, 8, generator=dice), torch.arange(16) % 4
    rows = group.gather(network(pictures[group.part(16)]))
    rows = nn.functional.normalize(rows, dim=1)
    optimizer.zero_grad(set_to_none=True)
    sum(loss(rows, labels) for loss in losses).backward()
    group.average_gradients(parameters)
    optimizer.step()
assert group.same(group.rank) == 0
if group.first:
    torch.save({"network": network.state_dict(), "proxies": proxies.state_dict()}, sys.argv[1])
group.wait()
group.leave()
"""


def trained(folder: Path, processes: int) -> dict:
    """Weights after three steps in so many processes."""
    script, result = folder / "script.py", folder / f"weights-{processes}.pt"
    script.write_text(textwrap.dedent(SCRIPT))
    start = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *start, str(script), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(result, weights_only=True)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Gradients through the gathered embeddings, batch statistics and class centres: all weights are equal."""
    one, two = trained(tmp_path, 1), trained(tmp_path, 2)

    for part in ("network", "proxies"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            torch.testing.assert_close(
                two[part][name], value, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_alone_nothing_is_done() -> None:
    """One process: the batch is its own part, and what is gathered is what was given."""
    group, rows = Group(), torch.randn(4, 2)

    assert group.part(4) == slice(0, 4)
    assert group.gather(rows) is rows
    assert group.first and group.same(5) == 5


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    """The parts must be equal, since a mean over the processes gives each the same weight."""
    with pytest.raises(TrainingError, match=r"10 pictures.*3 processes.*change sampler"):
        Group(0, 3).part(10)


def test_sharing_keeps_names_and_answers_in_evaluation() -> None:
    """A network whose batch norms were shared has the same state and, evaluating, the same answers."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5))
    pictures = torch.randn(6, 3, 8, 8)
    network(pictures)
    names, before = list(network.state_dict()), network.eval()(pictures)

    share_batch_norm(network)

    assert isinstance(network[1], SharedBatchNorm) and isinstance(network[4], SharedBatchNorm)
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network(pictures), before)
