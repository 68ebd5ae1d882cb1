"""From feature maps to one vector per picture."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

__all__ = ["POOLS", "Attention", "Average", "AverageMax", "GeM", "Grid", "Maximum", "pooling"]

_NUMBERED = re.compile(r"(grid|attention):([1-9]\d?)")


class Average(nn.Module):
    """The mean over all places."""

    factor = 1

    def forward(self, maps: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c)."""
        return maps.mean((2, 3))


class Maximum(nn.Module):
    """The largest value of all places."""

    factor = 1

    def forward(self, maps: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c)."""
        return maps.amax((2, 3))


class AverageMax(nn.Module):
    """Mean plus largest value, as Proxy-Anchor's code pools (Kim et al. 2020)."""

    factor = 1

    def forward(self, maps: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c)."""
        return maps.mean((2, 3)) + maps.amax((2, 3))


class GeM(nn.Module):
    """Generalised mean, (mean of x ** p) ** (1 / p), with a learned p (Radenović, Tolias and Chum 2018).

    p = 1 is the mean, large p approaches the maximum. Values below `smallest` count as `smallest`: it is meant for
    features that come out of a ReLU. Computed in float32, since powers of bfloat16 are coarse.
    """

    factor = 1

    def __init__(self, p: float = 3.0, smallest: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.smallest = smallest

    def forward(self, maps: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c) float32."""
        values = maps.float().clamp(min=self.smallest)
        # A mean scales with its values: relative to the largest, no power under- or overflows.
        peak = values.amax((2, 3), keepdim=True).detach()
        powers = (values / peak).pow(self.p).mean((2, 3))
        return powers.pow(1 / self.p) * peak[:, :, 0, 0]


class Grid(nn.Module):
    """The means of `side` × `side` parts of the picture, one after the other: for drawings, where position matters."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.factor = side * side

    def forward(self, maps: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c · side²)."""
        return nn.functional.adaptive_avg_pool2d(maps, self.side).flatten(1)


class Attention(nn.Module):
    """Several weighted means over all places, one after the other, each with weights that it learns to draw from them.

    A map of weights is a linear function of the features at each place, through a softmax over all places (Lin et al.,
    "A Structured Self-Attentive Sentence Embedding", ICLR 2017, without their hidden layer): one mean may look at the
    ends of strokes and another at loops, and what lies where it matters is not drowned in the mean of everything. At
    first all weights are equal, and each mean is the average.

    Args:
        heads: how many means.
        channels: of the maps.
    """

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.factor = heads
        self.weights = nn.Conv2d(channels, heads, 1, bias=False)  # a bias would raise all places of a map alike
        nn.init.zeros_(self.weights.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c · heads)."""
        weights = self.weights(maps).float().flatten(2).softmax(2).to(maps.dtype)
        # In this order `lookalike.explain` can follow it: places times weights.
        return (maps.flatten(2) @ weights.transpose(1, 2)).flatten(1)


POOLS: dict[str, type[nn.Module]] = {"average": Average, "max": Maximum, "average+max": AverageMax, "gem": GeM}


def pooling(kind: str, channels: int) -> nn.Module:
    """A pooling by name: one of `POOLS`, "grid:G" or "attention:H".

    Its `factor` says how many numbers come from each channel.

    Args:
        kind: the name.
        channels: of the maps.

    Raises:
        ValueError: there is no such pooling.
    """
    if kind in POOLS:
        return POOLS[kind]()
    match = _NUMBERED.fullmatch(kind)
    if match is None:
        raise ValueError(
            f"pool must be one of {', '.join(POOLS)}, or grid:G or attention:H with a number from 1 to 99; got {kind!r}"
        )
    return Grid(int(match[2])) if match[1] == "grid" else Attention(int(match[2]), channels)
