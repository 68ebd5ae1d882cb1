"""Two processes with half a batch each learn what one process learns from the whole batch."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookalike.errors import ConfigError, TrainingError
from lookalike.training import distributed
from lookalike.training.distributed import PATIENCE, Group, SharedBatchNorm, SharedBatchNormAct, share_batch_norm

# Run by torchrun: a network with batch norms, a loss over the whole batch, three steps of SGD; the weights are saved.
SCRIPT = """
import dataclasses, sys, torch
from torch import nn
from lookalike.training.distributed import Group, share_batch_norm
from lookalike.training.losses import SupervisedContrastive, ProxyAnchor

group = Group.join("cpu")
torch.set_num_threads(1)
torch.manual_seed(0)
if sys.argv[2] == "plain":
    side = 8
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))
else:  # in float64: what rounding differs by grows through dozens of batch norms
    import timm
    torch.set_default_dtype(torch.float64)
    side = 32
    network = timm.create_model(sys.argv[2], num_classes=6)
    if group.size > 1:  # as on GPUs, a connection of its own for what lies in main memory
        group = dataclasses.replace(group, host=torch.distributed.new_group(backend="gloo"))
proxies = ProxyAnchor(dim=6, classes=4)
losses = [SupervisedContrastive(temperature=0.1), proxies]
if group.size > 1:
    share_batch_norm(network)
parameters = [*network.parameters(), *proxies.parameters()]
optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
dice = torch.Generator().manual_seed(1)
for step in range(3):
    pictures, labels = torch.randn(16, 3, side, side, generator=dice), torch.arange(16) % 4
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


def trained(folder: Path, processes: int, network: str = "plain") -> dict:
    """Weights after three steps in so many processes."""
    script, result = folder / "script.py", folder / f"weights-{processes}.pt"
    script.write_text(textwrap.dedent(SCRIPT))
    start = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *start, str(script), str(result), network]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(result, weights_only=True)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Gradients through the gathered embeddings, batch statistics and class centres: all weights are equal."""
    one, two = trained(tmp_path, 1), trained(tmp_path, 2)

    for part in ("network", "proxies"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            torch.testing.assert_close(
                two[part][name], value, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_with_timms_batch_norms(tmp_path: Path) -> None:
    """All 34 batch norms of this network are timm's own, each with its activation."""
    one, two = (trained(tmp_path, processes, "mobilenetv3_small_050")["network"] for processes in (1, 2))

    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-9, rtol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


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


# ── meeting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the second of two processes asks of PyTorch, in order, on a machine with two GPUs; nothing is done."""
    made: list[tuple[Any, ...]] = []

    def noted(name: str, answer: Any = None) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            made.append((name, *values, named))
            return answer

        return call

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", noted("set_device"))
    dist = distributed.dist
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    for name, answer in (
        ("init_process_group", None),
        ("new_group", "the gloo group"),
        ("broadcast_object_list", None),
        ("barrier", None),
        ("all_reduce", None),
    ):
        monkeypatch.setattr(dist, name, noted(name, answer))
    return made


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_on_gpus_each_process_takes_its_own_before_it_meets_the_others(calls: list, device: str) -> None:
    """First the GPU, then nccl on it, then gloo for what lies in main memory, both with patience."""
    group = Group.join(device)

    assert calls == [
        ("set_device", 1, {}),
        ("init_process_group", "nccl", {"timeout": PATIENCE}),
        ("new_group", {"backend": "gloo", "timeout": PATIENCE}),
    ]
    assert (group.rank, group.size, group.host) == (1, 2, "the gloo group")
    assert timedelta(hours=24) <= PATIENCE <= timedelta(milliseconds=2**31 - 1)


def test_on_cpus_one_group_does_it(calls: list) -> None:
    """No GPU is touched, and the wait is as long."""
    group = Group.join("cpu")

    assert calls == [("init_process_group", "gloo", {"timeout": PATIENCE})]
    assert group.host is None


def test_who_is_alone_meets_nobody(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun there is no group, on whatever device."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Group.join("cuda:0") == Group()
    monkeypatch.delenv("WORLD_SIZE")
    assert Group.join("cuda:0") == Group()
    assert calls == []


def test_who_has_met_does_not_meet_again(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run in the same processes uses their connection, and still has one for main memory."""
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    assert Group.join("cuda:1").host == "the gloo group"
    assert [name for name, *_ in calls] == ["set_device", "new_group"]


def test_what_lies_in_main_memory_does_not_pass_through_a_gpu(calls: list) -> None:
    """Objects and waiting go through gloo; gradients go through the group of the tensors."""
    group = Group(1, 2, "the gloo group")
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 4.0)

    group.same({"a": 1})
    group.wait()
    group.average_gradients([weight])

    assert [(name, named) for name, *_, named in calls] == [
        ("broadcast_object_list", {"src": 0, "group": "the gloo group"}),
        ("barrier", {"group": "the gloo group"}),
        ("all_reduce", {}),
    ]
    assert weight.grad.tolist() == [2, 2, 2]


def test_more_processes_than_gpus_are_refused(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started, with the number that would do."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"process 3 of this machine has no GPU.*--nproc-per-node 2"):
        Group.join("cuda:2")
    assert calls == []


def test_one_gpu_for_all_processes_is_refused(calls: list) -> None:
    """A number in the configuration holds for every process: nccl would not do it, and would not say why."""
    with pytest.raises(ConfigError, match=r"'cuda:0'.*take \"auto\""):
        Group.join("cuda:0")
    assert calls == []


# ── batch norms ──────────────────────────────────────────────────────────────────────────────────────────────────────


def shared(layer: nn.Module, parts: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], nn.Module]:
    """What `layer`, shared, gives for each part: a thread per process, whose statistics meet in one autograd graph."""
    layers = [copy.deepcopy(layer) for _ in parts]
    for each, first in zip(layers, [layer] * len(parts), strict=True):
        share_batch_norm(each)
        each._parameters = first._parameters  # the same leaves, so that their gradients add up
    told: list[Any] = [None] * len(parts)
    barrier, me = threading.Barrier(len(parts)), threading.local()

    def all_gather(own: Tensor) -> tuple[Tensor, ...]:
        told[me.rank] = own
        barrier.wait(timeout=30)
        return tuple(told)

    def process(rank: int) -> Tensor:
        me.rank = rank
        return layers[rank](parts[rank])

    monkeypatch.setattr(distributed, "all_gather", all_gather)
    with ThreadPoolExecutor(len(parts)) as pool:
        answers = list(pool.map(process, range(len(parts))))
    for name, value in layers[0].named_buffers():
        torch.testing.assert_close(layers[1].get_buffer(name), value, rtol=0, atol=0)
    return answers, layers[0]


def compared(
    layer: nn.Module, x: Tensor, reference: torch.dtype, monkeypatch: pytest.MonkeyPatch, **tolerance: float
) -> None:
    """`layer`, shared by two, against itself with the whole batch in `reference`: answers, gradients, statistics."""
    dice = torch.Generator().manual_seed(2)
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 2, generator=dice)
        nn.init.uniform_(layer.bias, -1, 1, generator=dice)
    whole = copy.deepcopy(layer).to(reference)
    ours, theirs = x.clone().requires_grad_(), x.to(reference).requires_grad_()
    weights = torch.randn(x.shape, generator=dice)

    answers, after = shared(layer, list(ours.chunk(2)), monkeypatch)
    expected = whole(theirs)
    (torch.cat(answers) * weights).sum().backward()
    (expected * weights).sum().backward()

    torch.testing.assert_close(torch.cat(answers).to(reference), expected, **tolerance)
    assert float(theirs.grad.abs().max()) > 1e-3
    torch.testing.assert_close(
        ours.grad.to(reference), theirs.grad, rtol=tolerance["rtol"], atol=tolerance["atol"] * float(theirs.grad.std())
    )
    for mine, other in zip(layer.parameters(), whole.parameters(), strict=True):
        several = 30 * tolerance["atol"]  # a sum over hundreds of numbers
        torch.testing.assert_close(mine.grad.to(reference), other.grad, rtol=tolerance["rtol"], atol=several)
    for name, value in whole.named_buffers():
        torch.testing.assert_close(after.get_buffer(name).to(value.dtype), value, rtol=1e-6, atol=1e-6)


def drawn(mean: float, std: float, *shape: int) -> Tensor:
    """Normal numbers; the halves of the rows are apart, so that it matters that their means are brought together."""
    x = mean + std * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[: len(x) // 2] += std
    return x.float()


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (100.0, 0.05), (1000.0, 0.05), (-1000.0, 1.0)])
def test_shared_statistics_hold_where_the_mean_is_large(
    mean: float, std: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, against the whole batch in float64: the tolerance is what rounding a mean of 1000 leaves of 0.05."""
    x = drawn(mean, std, 8, 5, 6, 6)
    compared(nn.BatchNorm2d(5), x, torch.float64, monkeypatch, rtol=1e-4, atol=3e-3)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm1d(4, affine=False),
        nn.BatchNorm1d(4, momentum=None),
        nn.BatchNorm1d(4, track_running_stats=False),
    ],
    ids=["usual", "without weights", "cumulative", "without statistics"],
)
def test_every_kind_of_batch_norm_is_shared(layer: nn.BatchNorm1d, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the batch each, against PyTorch's own with the whole."""
    compared(layer, drawn(1.0, 2.0, 6, 4), torch.float32, monkeypatch, rtol=1e-4, atol=1e-5)


def test_one_row_in_each_process_is_a_batch_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process has a variance of its own then."""
    layer = nn.BatchNorm1d(4, eps=1.0)  # with the usual one, two rows become -1 and 1 whatever they are
    compared(layer, drawn(1.0, 2.0, 2, 4), torch.float32, monkeypatch, rtol=1e-4, atol=1e-5)


def test_gradients_of_shared_statistics_are_those_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the means and variances of both processes, by finite differences in float64."""
    layer = nn.BatchNorm1d(2).double()
    parts = list(drawn(3.0, 1.0, 6, 2).double().chunk(2))

    def answer(*given: Tensor) -> Tensor:
        return torch.cat(shared(layer, list(given), monkeypatch)[0])

    assert torch.autograd.gradcheck(answer, [part.requires_grad_() for part in parts])


def test_timms_batch_norms_keep_their_drop_and_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluating, what follows the normalisation follows it still."""
    from timm.layers import BatchNormAct2d

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    layer = BatchNormAct2d(3, act_layer="hard_swish", drop_layer=Doubled)
    compared(layer, drawn(1.0, 2.0, 6, 3, 4, 4), torch.float32, monkeypatch, rtol=1e-4, atol=1e-5)
    pictures = torch.randn(2, 3, 4, 4)
    before = layer.eval()(pictures)
    share_batch_norm(layer)
    assert type(layer) is SharedBatchNormAct
    torch.testing.assert_close(layer(pictures), before)


@pytest.mark.parametrize(("name", "count"), [("mobilenetv3_small_050", 34), ("efficientnet_lite0", 49)])
def test_all_batch_norms_of_a_timm_network_are_shared(name: str, count: int) -> None:
    """All of them, with the same names of weights and statistics."""
    import timm

    network = timm.create_model(name)
    names = list(network.state_dict())
    share_batch_norm(network)
    assert sum(isinstance(part, SharedBatchNorm) for part in network.modules()) == count
    assert list(network.state_dict()) == names
    share_batch_norm(network)  # what is shared already stays so


def alien(kind: str) -> nn.Module:
    from timm.layers import EvoNorm2dB0, SplitBatchNorm2d

    class Own(nn.BatchNorm2d):
        pass

    return {"own": Own, "split": SplitBatchNorm2d, "evonorm": EvoNorm2dB0}[kind](4)


@pytest.mark.parametrize("kind", ["own", "split", "evonorm"])
def test_a_batch_norm_that_cannot_be_shared_is_refused(kind: str) -> None:
    """With its place, its kind and what to do; what could have been shared was left as it was."""
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), alien(kind)))
    name = type(network[1][1]).__name__
    with pytest.raises(TrainingError, match=rf"1 of the \d batch norms.*\(1\.1 is a .*{name}\).*one process"):
        share_batch_norm(network)
    assert type(network[0]) is nn.BatchNorm2d


def test_what_learns_nothing_from_batches_is_left_alone() -> None:
    """Frozen batch norms, and norms of each picture by itself."""
    from timm.layers import FrozenBatchNormAct2d
    from torchvision.ops import FrozenBatchNorm2d

    network = nn.Sequential(
        FrozenBatchNorm2d(4), FrozenBatchNormAct2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm(4)
    )
    kinds = [type(part) for part in network]
    share_batch_norm(network)
    assert [type(part) for part in network] == kinds
