"""What a run asks of the machine: against naive loops, and PyTorch's and timm's own."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from lookalike.errors import ConfigError  # noqa: E402
from lookalike.training import machine  # noqa: E402
from lookalike.training.machine import (  # noqa: E402
    autocast,
    averaged,
    compiled,
    device_for,
    optimizer_for,
    optimizer_of,
    pace,
    precision_for,
    shrunk,
)

# ── optimisers ───────────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_adamw_is_pytorchs_adamw() -> None:
    """With the rate and the decay of each group; the momentum of the table is not AdamW's."""
    ours, theirs = [parameter(4, 3), parameter(6)], [parameter(4, 3), parameter(6)]
    groups = [{"params": [ours[0]], "lr": 0.02, "weight_decay": 0.3}, {"params": [ours[1]], "weight_decay": 0.0}]
    optimizer = optimizer_of(table("adamw"), groups)
    assert type(optimizer) is torch.optim.AdamW
    references = [
        torch.optim.AdamW([theirs[0]], lr=0.02, weight_decay=0.3, betas=(0.9, 0.999), eps=1e-8),
        torch.optim.AdamW([theirs[1]], lr=0.01, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8),
    ]
    for mine, other, reference in zip(ours, theirs, references, strict=True):
        torch.testing.assert_close(stepped(optimizer, mine), stepped(reference, other))
        mine.grad = None


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_a_naive_loop(momentum: float) -> None:
    """Nesterov's momentum where there is any (PyTorch refuses it at 0), and the decay as part of the gradient."""
    weight, kept = parameter(5), None
    expected = weight.detach().clone()
    optimizer = optimizer_of(table("sgd", momentum=momentum), [{"params": [weight], "lr": 0.02, "weight_decay": 0.3}])
    dice = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradient = torch.randn(5, generator=dice) + 0.3 * expected
        kept = gradient if kept is None else momentum * kept + gradient
        expected = expected - 0.02 * (gradient + momentum * kept)
    torch.testing.assert_close(stepped(optimizer, weight), expected)


def test_muon_moves_a_matrix_by_a_nearly_orthogonal_one() -> None:
    """What the name promises: all singular values of a step are alike, where AdamW's and SGD's are far apart."""

    def spread(kind: str) -> float:
        weight = parameter(8, 24)
        optimizer = optimizer_of(table(kind), [{"params": [weight], "lr": 0.01, "weight_decay": 0.0}])
        values = torch.linalg.svdvals(stepped(optimizer, weight, steps=1) - parameter(8, 24).detach())
        return float(values.max() / values.min())

    assert spread("muon") < 1.8 < min(spread("adamw"), spread("sgd"))


# ── pace ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def paces(warm: int, steps: int) -> list[float]:
    return [pace(step / steps, warm / steps, steps) for step in range(steps + 1)]


@pytest.mark.parametrize(("warm", "steps"), [(0, 20), (1, 20), (5, 20), (32, 64), (19, 20), (20, 20), (0, 1)])
def test_the_pace_climbs_and_falls(warm: int, steps: int) -> None:
    """The first step has a rate, the whole rate comes with the end of the warm-up, and the end is 0."""
    factors = paces(warm, steps)
    assert factors[0] == pytest.approx(1 / (warm + 1))
    assert factors[warm] == pytest.approx(1)
    assert all(later > earlier for earlier, later in itertools.pairwise(factors[: warm + 1]))
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[warm:]))
    assert all(factor > 0 for factor in factors[:-1])
    assert max(factors) <= 1
    if warm < steps:
        assert factors[-1] == pytest.approx(0, abs=1e-12)
        middle = (1 + warm / steps) / 2
        assert pace(middle, warm / steps, steps) == pytest.approx(0.5)


@pytest.mark.parametrize(("warm", "steps"), [(0, 20), (5, 20), (32, 64)])
def test_the_pace_is_a_naive_one_and_timms(warm: int, steps: int) -> None:
    """timm's schedule, whose warm-up is told to begin with the first of its steps instead of with nothing."""
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([parameter(1)], lr=1.0)
    theirs = CosineLRScheduler(
        optimizer, t_initial=steps - warm, warmup_t=warm, warmup_lr_init=1 / (warm + 1), warmup_prefix=True
    )
    for step, factor in enumerate(paces(warm, steps)[:-1]):
        share = (step - warm) / (steps - warm)
        naive = (step + 1) / (warm + 1) if step < warm else (1 + math.cos(math.pi * share)) / 2
        assert factor == pytest.approx(naive)
        theirs.step(step)
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])


def test_the_pace_without_a_warm_up_is_pytorchs_cosine() -> None:
    optimizer = torch.optim.SGD([parameter(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    for factor in paces(0, 30):
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


# ── average ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_is_that_of_a_naive_loop(decay: float) -> None:
    """Weights and statistics, by min(decay, (1 + n) / (10 + n)); whole numbers are the last ones."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    average = averaged(network, decay)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    naive: dict[str, torch.Tensor] = {}
    for step in range(30):
        optimizer.zero_grad()
        network(torch.randn(8, 3).double()).square().sum().backward()
        optimizer.step()
        average.update_parameters(network)
        share = 0.0 if step == 0 else min(decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            mixed = step > 0 and value.is_floating_point()
            naive[name] = share * naive[name] + (1 - share) * value if mixed else value.clone()
        kept = average.module.state_dict()
        assert kept.keys() == naive.keys()
        for name, value in naive.items():
            torch.testing.assert_close(kept[name], value)
    assert int(average.module[1].num_batches_tracked) == 30
    assert not torch.allclose(average.module[1].running_mean, network[1].running_mean)


def test_the_average_soon_forgets_the_random_start() -> None:
    """After ten equal steps next to nothing is left of what was first, where decay alone would leave 99 % of it."""
    network = torch.nn.Linear(1, 1, bias=False)
    average = averaged(network, 0.999)
    torch.nn.init.constant_(network.weight, 1.0)
    average.update_parameters(network)
    torch.nn.init.constant_(network.weight, 0.0)
    for _ in range(10):
        average.update_parameters(network)
    left = math.prod((1 + step) / (10 + step) for step in range(1, 11))
    assert left < 1e-4
    assert average.module.weight.item() == pytest.approx(left)


def test_the_average_is_a_copy_and_none_at_decay_0() -> None:
    network = torch.nn.Linear(2, 2)
    assert averaged(network, 0.0) is None
    average = averaged(network, 0.9)
    before = copy.deepcopy(average.module.state_dict())
    torch.nn.init.zeros_(network.weight)
    torch.testing.assert_close(average.module.weight, before["weight"])


# ── smaller pictures ─────────────────────────────────────────────────────────────────────────────────────────────────


def pictures(height: int, width: int) -> torch.Tensor:
    dice = np.random.default_rng(0)
    return torch.from_numpy(dice.integers(0, 256, (2, 3, height, width), dtype=np.uint8))


@pytest.mark.parametrize(("progress", "scale"), [(0.5, 0.5), (0.7, 0.5), (1.0, 0.5), (0.0, 1.0)])
def test_pictures_stay_as_they_are_from_then_on(progress: float, scale: float) -> None:
    """At `until` and after, or where nothing would shrink: the very same tensor."""
    given = pictures(8, 8)
    assert shrunk(given, progress, scale, 0.5) is given


@pytest.mark.parametrize(("scale", "size"), [(0.5, (12, 20)), (0.75, (18, 30)), (0.3, (7, 12)), (0.9, (22, 36))])
def test_smaller_pictures_are_pillows(scale: float, size: tuple[int, int]) -> None:
    """Floats in [0, 1], filtered as Pillow's bilinear filter does when it makes smaller."""
    given = pictures(24, 40)
    small = shrunk(given, 0.49, scale, 0.5)
    assert small.dtype == torch.float32 and tuple(small.shape) == (2, 3, *size)
    assert float(small.min()) >= 0 and float(small.max()) <= 1
    for one, made in zip(given, small, strict=True):
        picture = Image.fromarray(one.permute(1, 2, 0).numpy())
        expected = np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR)) / 255
        np.testing.assert_allclose(made.permute(1, 2, 0).numpy(), expected, atol=1.5 / 255)


@pytest.mark.parametrize("value", [0, 255])
def test_what_is_smaller_is_no_darker_or_brighter(value: int) -> None:
    """Black and white stay black and white, to the last bit where it matters: not beyond 1."""
    small = shrunk(torch.full((1, 3, 29, 31), value, dtype=torch.uint8), 0.0, 0.37, 0.5)
    assert float(small.min()) >= 0 and float(small.max()) <= 1
    torch.testing.assert_close(small, torch.full_like(small, value / 255))


# ── precision ────────────────────────────────────────────────────────────────────────────────────────────────────────


def knows_bf16(monkeypatch: pytest.MonkeyPatch, known: bool | None) -> None:
    """A processor that does, does not, or a PyTorch that does not tell."""
    if known is None:
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: known, raising=False)


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> Callable[[str], None]:
    """A step that takes these seconds, one after the other, on a clock of its own."""
    now, left = 0.0, {name: list(values) for name, values in seconds.items()}

    def step(precision: str) -> None:
        nonlocal now
        now += left[precision].pop(0)

    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: now))
    return step


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"fp32": [1, 1, 1], "bf16": [1, 0.9, 0.9]}, "bf16"),
        ({"fp32": [1, 0.9, 0.9], "bf16": [1, 1, 1]}, "fp32"),
        ({"fp32": [1, 1, 1], "bf16": [9, 0.9, 0.9]}, "bf16"),
        ({"fp32": [0.1, 1, 1], "bf16": [1, 0.9, 0.9]}, "bf16"),
        ({"fp32": [1, 1, 1], "bf16": [1, 9, 0.9]}, "bf16"),
        ({"fp32": [1, 1, 1], "bf16": [1, 1, 1]}, "fp32"),
    ],
    ids=["bf16 is faster", "fp32 is", "first is slow", "first is fast", "one was disturbed", "equal"],
)
def test_the_faster_precision_wins(
    seconds: dict[str, list[float]], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the best of what was measured; the first time, in which memory is allocated, is not."""
    knows_bf16(monkeypatch, True)
    assert precision_for("auto", "cpu", timed(monkeypatch, seconds)) == expected


def never(precision: str) -> None:
    raise AssertionError(f"a step was taken in {precision}")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_named_precision_is_taken_as_it_is(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    knows_bf16(monkeypatch, name == "fp32")  # the opposite of what would be measured or assumed
    assert precision_for(name, device, never) == name


@pytest.mark.parametrize(("device", "known"), [("cpu", False), ("cpu", None), ("mps", True)])
def test_without_bf16_in_the_processor_nothing_is_measured(
    device: str, known: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows_bf16(monkeypatch, known)
    assert precision_for("auto", device, never) == "fp32"


@pytest.mark.parametrize(("real", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_is_asked(real: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 that is only emulated does not count."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or real)
    assert precision_for("auto", "cuda:0", never) == expected


def test_autocast_computes_in_the_precision_named() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with autocast("cpu", "bf16"):
        assert layer(x).dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert layer(x).dtype == torch.float32
    assert layer(x).dtype == torch.float32


def test_autocast_wants_the_kind_of_a_device_and_not_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch, "autocast", lambda *values: asked.append(values))
    autocast("cuda:1", "bf16")
    autocast("cuda:1", "fp32")
    assert asked == [("cuda", torch.bfloat16)]


# ── device ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_has_a_gpu_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where "cuda" is named, which to PyTorch is the first GPU, in every process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_for(name) == "cuda:3"
    monkeypatch.delenv("LOCAL_RANK")
    assert device_for(name) == "cuda:0"


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("auto") == device_for("cpu") == "cpu"
    with pytest.raises(ConfigError, match=r"loop\.device 'nonsense' is not there.*take \"cpu\""):
        device_for("nonsense")


# ── compiling ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Compiler:
    """In the place of torch.compile: what it makes answers with what the network does and 1 more, or fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.asked, self.tried = error, [], 0

    def __call__(self, network: torch.nn.Module, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        self.asked.append(options)

        def fast(x: torch.Tensor) -> torch.Tensor:
            self.tried += 1
            if self.error is not None:
                raise self.error
            return network(x) + 1

        return fast


def failures() -> list[Exception]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError

    return [TorchDynamoException("broken"), CppCompileError(["g++"], "broken")]


@pytest.mark.parametrize("error", failures(), ids=lambda error: type(error).__name__)
def test_without_a_compiler_the_network_goes_on_as_it_is(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, with what went wrong, and not tried again."""
    compiler, said = Compiler(error), []
    monkeypatch.setattr(torch, "compile", compiler)
    network, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    forward = compiled(network, said.append)
    for _ in range(3):
        torch.testing.assert_close(forward(x), network(x))
    assert said == [f"torch.compile does not work here ({type(error).__name__}): going on without it"]
    assert compiler.tried == 1


def test_what_was_compiled_is_what_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, said = Compiler(None), []
    monkeypatch.setattr(torch, "compile", compiler)
    network, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    forward = compiled(network, said.append)
    for _ in range(2):
        torch.testing.assert_close(forward(x), network(x) + 1)
    assert (compiler.tried, compiler.asked, said) == (2, [{"dynamic": False}], [])


def test_an_error_of_the_network_is_no_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a wrong shape stay an error, and are not hidden by another try."""
    said: list[str] = []
    monkeypatch.setattr(torch, "compile", Compiler(ValueError("wrong shape")))
    forward = compiled(torch.nn.Linear(3, 2), said.append)
    with pytest.raises(ValueError, match="wrong shape"):
        forward(torch.randn(4, 3))
    assert said == []
