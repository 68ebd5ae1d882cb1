"""The mean over slightly moved views of a picture, as a part of the network.

One point of one-shot accuracy on small drawings, for as many times the work as there are views (see DESIGN.md). The
movements are constants of the network, so that the exported graph holds them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Matrices", "Views", "small_views"]

Matrices = npt.NDArray[np.float32]
# Halton's sequence is even in every direction as long as its bases are different primes: one for each movement.
_BASES = (2, 3, 5, 7, 11)


def small_views(
    count: int,
    rotate: float = 8.0,
    scale: float = 0.08,
    shift: float = 0.04,
    shear: float = 0.0,
    *,
    flip: bool = False,
) -> Matrices:
    """So many small movements, spread evenly, the same ones at every call; the first one moves nothing.

    The others come in opposite pairs, so that on the whole nothing is moved to one side (with an even `count`, the
    last has no partner).

    Args:
        count: at least 1.
        rotate: largest angle, in degrees.
        scale: largest change of size: 0.08 is from 1/1.08 to 1.08 times, nearly.
        shift: largest movement across and down, as a share of the side.
        shear: largest slant, as a tangent.
        flip: add the mirror image of each.

    Returns:
        (count, 2, 3) float32, twice as many with `flip`: where each point of the view comes from, in coordinates from
        -1 to 1 over the picture.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    limits = np.array([math.radians(rotate), math.log1p(scale), 2 * shift, 2 * shift, shear])
    matrices = [np.eye(2, 3)]
    for number in range(1, count):
        sign = 1 if number % 2 else -1
        matrices.append(_matrix(*(sign * limits * _halton((number + 1) // 2))))
    views = np.stack(matrices)
    if flip:
        views = np.concatenate([views, views * [[-1], [1]]])
    return views.astype(np.float32)


def _halton(number: int) -> npt.NDArray[np.float64]:
    """The number-th point (from 1) of Halton's sequence (1960), in [-1, 1] for each base."""
    point = []
    for base in _BASES:
        value, part, rest = 0.0, 1.0, number
        while rest:
            part /= base
            value += part * (rest % base)
            rest //= base
        point.append(2 * value - 1)
    return np.array(point)


def _matrix(angle: float, zoom: float, right: float, down: float, slant: float) -> npt.NDArray[np.float64]:
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, slant], [0, 1]]) * math.exp(zoom)
    return np.column_stack([turn, [right, down]])


class Views(nn.Module):
    """Makes the moved views of a batch, and takes the mean of what a network says about them.

    Args:
        matrices: (views, 2, 3), as `small_views` gives them. A turn is a turn on pictures that are not square, too.
        size: (height, width) of the views in pixels; that of the pictures.
        fill: what lies outside the picture, as a normalised value; None repeats its border.
    """

    grid: Tensor

    def __init__(
        self, matrices: Matrices | Sequence[Sequence[Sequence[float]]], size: tuple[int, int], fill: float | None = None
    ) -> None:
        super().__init__()
        theta = torch.as_tensor(np.array(matrices, dtype=np.float32))
        if theta.ndim != 3 or theta.shape[1:] != (2, 3) or not len(theta):
            raise ValueError(f"matrices must have shape (views, 2, 3), got {tuple(theta.shape)}")
        height, width = size
        theta[:, 0, 1] *= height / width
        theta[:, 1, 0] *= width / height
        self.size, self.count, self.fill = size, len(theta), fill
        grid = nn.functional.affine_grid(theta, [self.count, 1, height, width], align_corners=False)
        # All views one above the other: one sampling makes them all. Not persistent: it follows from the settings.
        self.register_buffer("grid", grid.reshape(1, self.count * height, width, 2), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, c, h, w) → (n · views, c, height, width), the views of a picture next to each other."""
        channels, (height, width) = pixels.shape[1], self.size
        # Channels of all pictures side by side: the same places are read in all of them.
        sheet = pixels.float().reshape(1, -1, *pixels.shape[2:])
        if self.fill is None:
            moved = nn.functional.grid_sample(sheet, self.grid, padding_mode="border", align_corners=False)
        else:
            sheet = sheet - self.fill
            moved = nn.functional.grid_sample(sheet, self.grid, padding_mode="zeros", align_corners=False) + self.fill
        moved = moved.reshape(-1, channels, self.count, height, width).transpose(1, 2)
        return moved.reshape(-1, channels, height, width)

    def mean(self, rows: Tensor) -> Tensor:
        """(n · views, dim) → (n, dim)."""
        return rows.reshape(-1, self.count, rows.shape[1]).mean(1)
