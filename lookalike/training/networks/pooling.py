"""From feature maps to one vector per picture."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

__all__ = ["POOLS", "Average", "AverageMax", "GeM", "Grid", "Maximum", "pooling"]

_GRID = re.compile(r"grid:([1-9]\d?)")


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


POOLS: dict[str, type[nn.Module]] = {"average": Average, "max": Maximum, "average+max": AverageMax, "gem": GeM}


def pooling(kind: str) -> nn.Module:
    """A pooling by name: one of `POOLS`, or "grid:G". Its `factor` says how many numbers come from each channel.

    Raises:
        ValueError: there is no such pooling.
    """
    if kind in POOLS:
        return POOLS[kind]()
    match = _GRID.fullmatch(kind)
    if match is None:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, or grid:G with G from 1 to 99; got {kind!r}")
    return Grid(int(match[1]))
