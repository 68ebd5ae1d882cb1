"""What a run asks of the machine: device, precision, threads, optimiser, average of the weights, stop signals."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from lookalike.errors import ConfigError

__all__ = [
    "Stopper",
    "autocast",
    "averaged",
    "compiled",
    "device_for",
    "optimizer_for",
    "optimizer_of",
    "pace",
    "precision_for",
    "seed_of",
    "shrunk",
]


def seed_of(*numbers: int) -> int:
    """One seed for torch from several numbers, such as seed and step; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def device_for(name: str) -> str:
    """The device of this process.

    Args:
        name: "auto" for its GPU, or the CPU where there is none; "cuda" for its GPU; or any other of PyTorch's.

    Raises:
        ConfigError: it is not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # without a number it is the first one, in all processes
    if name == "auto":
        return "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError([f'loop.device {name!r} is not there ({str(error).splitlines()[0]}): take "cpu"']) from error
    return name


def precision_for(name: str, device: str, step: Callable[[str], None]) -> str:
    """For "auto", whichever of bf16 and fp32 takes a step faster, where the processor computes in bf16; else fp32.

    Measured and not assumed: on a CPU, bfloat16 trains plain convolutions nearly twice as fast, and depthwise ones no
    faster than float32 (see DECISIONS.md).

    Args:
        name: "auto", or the answer.
        device: of the network.
        step: trains a step in the precision it is given; nothing of it must last.
    """
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private, but the only one who tells
    if device != "cpu" or known is None or not known():
        return "fp32"
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for attempt in range(3):
        for precision, times in seconds.items():
            began = time.perf_counter()
            step(precision)
            if attempt:  # the first one allocates
                times.append(time.perf_counter() - began)
    return min(seconds, key=lambda precision: min(seconds[precision]))


def autocast(device: str, precision: str) -> Any:
    """A context in which networks compute in that precision: "bf16", or "fp32" as they are."""
    return torch.autocast(device.split(":", maxsplit=1)[0], torch.bfloat16) if precision == "bf16" else nullcontext()


def pace(progress: float, warmup: float, steps: int) -> float:
    """Factor of the learning rate: a climb during the warm-up, then half a cosine down to zero.

    Args:
        progress: of the run, from 0 to 1.
        warmup: share of the run that climbs.
        steps: of the run: the first one has a rate, too.
    """
    if progress < warmup:
        return (progress + 1 / steps) / (warmup + 1 / steps)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))


def shrunk(pixels: Tensor, progress: float, scale: float, until: float) -> Tensor:
    """The pictures of a batch at the size of this part of the run: as they are, or floats in [0, 1] where they shrink.

    Args:
        pixels: (n, c, h, w) uint8.
        progress: of the run, from 0 to 1.
        scale: of the sides, until then.
        until: which share of the run begins with smaller pictures.
    """
    if progress >= until or scale == 1:
        return pixels
    size = [round(scale * side) for side in pixels.shape[2:]]
    smaller = functional.interpolate(pixels.float() / 255, size, mode="bilinear", antialias=True)
    return smaller.clamp(0, 1)


def optimizer_for(table: Any, network: Any, objective: nn.Module, shape: Any) -> torch.optim.Optimizer:
    """The optimiser of network and loss, with the rates of each stage and head.

    Args:
        table: kind, rate, weight_decay and momentum as attributes ([optimizer]).
        network: with `parameter_groups`.
        objective: its own parameters (class centres) learn at the head's rate, without decay.
        shape: layer_decay and head_rate as attributes ([network]).

    Raises:
        ConfigError: nothing is left to train.
    """
    groups = network.parameter_groups(
        table.rate, table.weight_decay, layer_decay=shape.layer_decay, head_factor=shape.head_rate
    )
    own = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if own:
        # A class centre is a point, not a row of a linear map: nothing that Muon should make orthogonal.
        groups.append({"params": own, "lr": table.rate * shape.head_rate, "weight_decay": 0.0, "use_fallback": True})
    if not any(entry["params"] for entry in groups):
        raise ConfigError(["network.freeze leaves nothing to train: lower it, or take another head"])
    return optimizer_of(table, groups)


def optimizer_of(table: Any, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW, SGD or Muon over groups of parameters, each with "params", "lr" and "weight_decay".

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes the step of a matrix orthogonal; here
    scaled as AdamW's steps are (Liu et al. 2025, arXiv 2502.16982), so that rates mean the same. A kernel is the matrix
    of its outputs by all its inputs. Vectors, and kernels of one channel, are AdamW's.
    """
    if table.kind == "adamw":
        return torch.optim.AdamW(groups, lr=table.rate)
    if table.kind == "muon":
        from timm.optim import Muon

        made: torch.optim.Optimizer = Muon(groups, lr=table.rate, momentum=table.momentum)
        return made
    return torch.optim.SGD(groups, lr=table.rate, momentum=table.momentum, nesterov=table.momentum > 0)


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """A moving average of the weights and of the batch-norm statistics; None at decay 0.

    Early on it forgets faster (as in TensorFlow's ExponentialMovingAverage), so that the random start does not linger.
    """
    if decay == 0:
        return None

    def average(kept: list[Tensor], new: list[Tensor], count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + float(count)) / (10 + float(count)))
        for mine, theirs in zip(kept, new, strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, share)
            else:
                mine.copy_(theirs)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def compiled(network: nn.Module, say: Callable[[str], None]) -> Callable[[Tensor], Tensor]:
    """The network through torch.compile, or as it is where that cannot work (no C++ compiler)."""
    fast = torch.compile(network, dynamic=False)

    def forward(pictures: Tensor) -> Tensor:
        nonlocal fast
        if fast is network:
            return network(pictures)
        try:
            return fast(pictures)
        except Exception as error:  # whatever a missing or broken compiler leads to
            if "torch._dynamo" not in type(error).__module__ and "torch._inductor" not in type(error).__module__:
                raise
            say(f"torch.compile does not work here ({type(error).__name__}): going on without it")
            fast = network
            return network(pictures)

    return forward


def _without_a_stack_for_signals() -> None:
    """Let signals use the ordinary stack of this thread.

    Where a network has used the processor's matrix tiles (AMX, for bfloat16), what is saved for a signal grows by
    8 KiB, and no longer fits into the small stack that a library (`faulthandler`, for one) has set for signals: Ctrl-C
    would end in a segmentation fault instead of a checkpoint.
    """
    if sys.platform != "linux":
        return

    class Stack(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    disable = 2  # SS_DISABLE
    ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(None, disable, 0)), None)


class Stopper:
    """Turns the first Ctrl-C or SIGTERM into a note that the loop reads between two steps; the second one kills."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            _without_a_stack_for_signals()
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
