"""Encoders that learn nothing: what any trained one has to beat. They answer the calls of `lookalike.encoder.Encoder`.

`Pixels` compares small pictures point by point; `ColourHistogram` counts colours wherever they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike.images import Picture, read
from lookalike.vectors import Vectors, unit

__all__ = ["ColourHistogram", "Pixels"]


class Pixels:
    """The picture, squashed to a small square, as one long row of colour values around mid-grey.

    The simplest thing that could be called visual search. It finds near-copies and equal layouts (products
    photographed alike before one background do well), and fails as soon as anything moves.

    Args:
        size: side of the square in pixels.
    """

    name = "pixels"

    def __init__(self, size: int = 16) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self.dim = 3 * size * size + 1

    def images(self, pictures: Iterable[Picture]) -> Vectors:
        """Encode pictures: (n, dim) float32, rows of unit length. Raises ImageError at one that cannot be read."""
        rows = [self._row(read(picture, at_least=(self.size, self.size))) for picture in pictures]
        return unit(np.stack(rows)) if rows else np.empty((0, self.dim), dtype=np.float32)

    def _row(self, image: Image.Image) -> npt.NDArray[np.float32]:
        small = image.resize((self.size, self.size), Image.Resampling.BOX)
        values = np.asarray(small, dtype=np.float32).ravel() / 127.5 - 1
        # The constant gives an evenly grey picture, whose values are all zero, a direction too.
        return np.append(values, np.float32(1))


class ColourHistogram:
    """How much of the picture has which colour: a histogram over hue, saturation and brightness.

    Square roots of the shares are taken, so that the cosine of two rows is the Bhattacharyya coefficient of the two
    histograms: 1 for the same colours in the same amounts, 0 for no colour in common. Where things are is ignored.

    Args:
        bins: how many steps of (hue, saturation, brightness).
        size: the picture is first squashed to a square of this side.
    """

    name = "colour histogram"

    def __init__(self, bins: tuple[int, int, int] = (12, 4, 4), size: int = 64) -> None:
        if min(bins) < 1 or size < 1:
            raise ValueError(f"bins and size must be at least 1, got {bins} and {size}")
        self.bins = bins
        self.size = size
        self.dim = bins[0] * bins[1] * bins[2]

    def images(self, pictures: Iterable[Picture]) -> Vectors:
        """Encode pictures: (n, dim) float32, rows of unit length. Raises ImageError at one that cannot be read."""
        rows = [self._row(read(picture, at_least=(self.size, self.size))) for picture in pictures]
        return unit(np.stack(rows)) if rows else np.empty((0, self.dim), dtype=np.float32)

    def _row(self, image: Image.Image) -> npt.NDArray[np.float32]:
        small = image.resize((self.size, self.size), Image.Resampling.BOX).convert("HSV")
        steps = np.asarray(small, dtype=np.int64).reshape(-1, 3) * self.bins // 256
        cells = (steps[:, 0] * self.bins[1] + steps[:, 1]) * self.bins[2] + steps[:, 2]
        counts = np.bincount(cells, minlength=self.dim).astype(np.float32)
        shares: npt.NDArray[np.float32] = np.sqrt(counts / counts.sum())
        return shares
