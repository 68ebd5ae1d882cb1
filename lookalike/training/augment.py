"""Whole batches changed at random, as tensors: the same picture, never twice the same pixels.

All geometry is one mapping from places in the result to places in the picture, sampled once: nothing is blurred by
being resampled twice, and ten kinds of change cost as much as one. Colours are one 3 × 3 matrix per picture. What a
network shall not care about belongs here; what tells classes apart does not (mirrored letters are other letters).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch.nn import functional

from lookalike.errors import ConfigError, ShapeError

__all__ = ["Augmentation"]

_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
# What each number may be: of the plain ones, and of both ends of the ranges.
_LIMITS = {
    "rotate": (0, 180),
    "stretch": (0, 3),
    "shear": (0, 60),
    "shift": (0, 1),
    "perspective": (0, 0.45),
    "flip": (0, 1),
    "elastic": (0, 0.5),
    "elastic_cells": (1, 32),
    "mirror": (0, 1),
    "batch_rotate": (0, 180),
    "batch_stretch": (0, 3),
    "batch_shear": (0, 60),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "hue": (0, 0.5),
    "grey": (0, 1),
    "blur": (0, 20),
    "noise": (0, 1),
    "thickness": (0, 1),
    "erase": (0, 1),
}
_RANGES = {"scale": (0.1, 10), "crop": (0.01, 1), "crop_aspect": (0.1, 10), "erase_area": (0.001, 0.9)}


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes; all are off by default. Each picture of a batch draws its own, where nothing else is said.

    ±x means uniform between -x and x. The order is: quarter turns and mirrors; geometry; line thickness; blur; colour;
    noise; erasing.

    Attributes:
        rotate: ± degrees.
        scale: (low, high) factor of size, uniform in its logarithm.
        stretch: width is multiplied and height divided by up to 1 + stretch, or the other way round.
        shear: ± degrees by which upright lines lean.
        shift: ± share of the side, in both directions.
        perspective: 0 to 0.45, how much nearer one side may come.
        crop: (low, high) share of the area that a random window keeps; (1, 1) keeps all.
        crop_aspect: (low, high) ratio of width to height of that window, in sides of the picture, uniform in its
            logarithm.
        flip: probability to swap left and right.
        elastic: standard deviation of a smooth random displacement, as a share of the side.
        elastic_cells: into how many cells the side is divided by the random points that displacement passes through:
            few make it smooth.
        turns: "each" turns every picture by a random number of quarter turns; "batch" turns all of a batch alike: to
            the loss these are new classes, turned letters among themselves; "none".
        mirror: probability to mirror all of a batch alike.
        batch_rotate: ± degrees, of all of a batch alike; like turns, it makes new classes of the old ones.
        batch_stretch: as stretch, of all of a batch alike.
        batch_shear: as shear, of all of a batch alike.
        padding: what lies outside: "border" repeats the border, a number from 0 (black) to 1 (white) is that grey.
        thickness: 0 to 1; of dark lines on a light ground: ± share of a pixel by which they grow on each side.
        blur: greatest standard deviation, in pixels, of a Gaussian.
        brightness: colours are multiplied by 1 ± brightness.
        contrast: distance from the picture's mean brightness is multiplied by 1 ± contrast.
        saturation: distance from grey is multiplied by 1 ± saturation.
        hue: ± share of the circle of hues, turned in YIQ at equal brightness.
        grey: probability to take away all colour.
        noise: greatest standard deviation of Gaussian noise, in shares of the full range.
        erase: probability to cover a random rectangle.
        erase_area: (low, high) share of the area it covers.
        erase_fill: "mean" fills it with the picture's mean colour, "noise" with random pixels.

    Raises:
        ConfigError: numbers out of range; all of them at once.
    """

    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    stretch: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    perspective: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    elastic: float = 0.0
    elastic_cells: int = 4
    turns: Literal["none", "batch", "each"] = "none"
    mirror: float = 0.0
    batch_rotate: float = 0.0
    batch_stretch: float = 0.0
    batch_shear: float = 0.0
    padding: Literal["border"] | float = "border"
    thickness: float = 0.0
    blur: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    noise: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.2)
    erase_fill: Literal["mean", "noise"] = "mean"

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigError(problems, "augment")

    def _problems(self) -> Iterator[str]:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and least <= value <= most):
                yield f"{name} must be between {least} and {most}, got {value!r}"
        for name, (low, high) in _RANGES.items():
            ends = getattr(self, name)
            if not (isinstance(ends, tuple | list) and len(ends) == 2 and low <= ends[0] <= ends[1] <= high):
                yield f"{name} must be two numbers, rising, between {low} and {high}, got {ends!r}"
        for name, choices in (("turns", ("none", "batch", "each")), ("erase_fill", ("mean", "noise"))):
            if getattr(self, name) not in choices:
                yield f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
        if self.padding != "border" and not (isinstance(self.padding, int | float) and 0 <= self.padding <= 1):
            yield f"padding must be 'border' or a number between 0 and 1, got {self.padding!r}"

    def __call__(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change a batch.

        Args:
            pictures: (n, c, h, w) uint8, or float in [0, 1]; c is 1 or 3. They are left as they are.
            generator: of everything drawn; equal states give equal results. On the CPU, wherever the pictures are.

        Returns:
            (n, c, h, w) float32 in [0, 1], contiguous. With everything off, exactly the pictures, or their bytes / 255.

        Raises:
            ShapeError: another shape, or quarter turns of pictures that are not square.
        """
        if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or 0 in pictures.shape:
            raise ShapeError(f"pictures must have shape (n, 1 or 3, h, w), got {tuple(pictures.shape)}")
        dice = _Dice(generator, pictures.device)
        x = _floats(self._turned(pictures, dice))
        if self._moves():
            x = self._warped(x, dice)
        if self.thickness:
            x = _thickened(x, dice.uniform(len(x), -self.thickness, self.thickness))
        if self.blur:
            x = _blurred(x, dice.uniform(len(x), 0, self.blur))
        x = self._coloured(x, dice)
        if self.noise:
            spread = dice.uniform(len(x), 0, self.noise).view(-1, 1, 1, 1)
            x = torch.addcmul(x, dice.normal(x.shape), spread)
        if self.erase:
            x = self._erased(x, dice)
        return x.clamp_(0, 1)

    # ── quarter turns and mirrors: exact ─────────────────────────────────────────────────────────────────────────────

    def _turned(self, x: torch.Tensor, dice: _Dice) -> torch.Tensor:
        if self.turns != "none" and x.shape[2] != x.shape[3]:
            raise ShapeError(f"quarter turns need square pictures, got {x.shape[2]} × {x.shape[3]} pixels")
        if self.turns == "batch":
            x = torch.rot90(x, int(dice.below(4, 1)), (2, 3))
        elif self.turns == "each":
            quarter = dice.below(4, len(x))
            turned = torch.empty_like(x)
            for turn in range(4):
                chosen = quarter == turn
                turned[chosen] = torch.rot90(x[chosen], turn, (2, 3))
            x = turned
        if self.mirror and bool(dice.coin(1, self.mirror)):
            x = x.flip(3)
        if self.flip:
            x = torch.where(dice.coin(len(x), self.flip).view(-1, 1, 1, 1), x.flip(3), x)
        return x

    # ── geometry: one sampling ───────────────────────────────────────────────────────────────────────────────────────

    def _moves(self) -> bool:
        off = {field.name: field.default for field in fields(self)}
        moving = ["rotate", "scale", "stretch", "shear", "shift", "perspective", "crop", "elastic"]
        moving += ["batch_rotate", "batch_stretch", "batch_shear"]
        return any(_plain(getattr(self, name)) != _plain(off[name]) for name in moving)

    def _warped(self, x: torch.Tensor, dice: _Dice) -> torch.Tensor:
        count, _, height, width = x.shape
        grid = _grid(self._mapping(count, height, width, dice), height, width)
        if self.elastic:
            grid += _displacement(dice, count, height, width, self.elastic_cells).mul_(2 * self.elastic)
        if self.padding == "border":
            return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
        # Outside is 0 to grid_sample, so the wanted grey becomes 0 for a while.
        level = float(self.padding)
        return functional.grid_sample(x.sub_(level), grid, padding_mode="zeros", align_corners=False).add_(level)

    def _mapping(self, count: int, height: int, width: int, dice: _Dice) -> torch.Tensor:
        """(n, 3, 3): from places in the result to places in the picture, both in [-1, 1], homogeneous."""
        moved = self._leaning(count, width / height, dice, self.rotate, self.scale, self.stretch, self.shear)
        if self.batch_rotate or self.batch_stretch or self.batch_shear:
            shared = (self.batch_rotate, (1.0, 1.0), self.batch_stretch, self.batch_shear)
            moved = self._leaning(1, width / height, dice, *shared) @ moved
        shift = [dice.uniform(count, -2 * self.shift, 2 * self.shift) for _ in range(2)]
        back = _matrix(count, x=-shift[0], y=-shift[1]).to(moved.device)
        mapping = moved @ back
        if _plain(self.crop) != (1, 1):
            mapping = mapping @ self._window(count, dice)
        if self.perspective:
            tilt = [dice.uniform(count, -self.perspective, self.perspective) for _ in range(2)]
            nearer = _matrix(count).to(moved.device)
            nearer[:, 2, 0], nearer[:, 2, 1] = tilt[0], tilt[1]
            mapping = mapping @ nearer
        return mapping

    @staticmethod
    def _leaning(
        count: int,
        shape: float,
        dice: _Dice,
        rotate: float,
        scale: tuple[float, float],
        stretch: float,
        shear: float,
    ) -> torch.Tensor:
        """(n, 3, 3): turned, leaned over, scaled and stretched at random."""
        angle = dice.uniform(count, -rotate, rotate).deg2rad_()
        lean = dice.uniform(count, -shear, shear).deg2rad_().tan_()
        size = dice.logarithmic(count, *scale)
        ratio = dice.logarithmic(count, 1 / (1 + stretch), 1 + stretch)
        return _placement(angle, (size * ratio, size / ratio), lean, shape)

    def _window(self, count: int, dice: _Dice) -> torch.Tensor:
        """(n, 3, 3) from the whole to a random window inside (the random resized crop of Szegedy et al. 2015)."""
        area = dice.uniform(count, *self.crop)
        aspect = dice.logarithmic(count, *self.crop_aspect)
        wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        window = _matrix(count).to(area.device)
        window[:, 0, 0], window[:, 1, 1] = wide, high
        window[:, 0, 2] = (1 - wide) * dice.uniform(count, -1, 1)
        window[:, 1, 2] = (1 - high) * dice.uniform(count, -1, 1)
        return window

    # ── colour: one matrix ───────────────────────────────────────────────────────────────────────────────────────────

    def _coloured(self, x: torch.Tensor, dice: _Dice) -> torch.Tensor:
        count, channels = x.shape[:2]
        colours = channels == 3 and bool(self.saturation or self.hue or self.grey)
        if not (colours or self.brightness or self.contrast):
            return x
        brightness = dice.uniform(count, 1 - self.brightness, 1 + self.brightness)
        contrast = dice.uniform(count, 1 - self.contrast, 1 + self.contrast)
        factor = (brightness * contrast).view(-1, 1, 1)
        # Saturation and hue leave brightness as it is, so its mean is that of the picture before.
        mean = x.mean(dim=(2, 3)) @ _luma(channels, x.device)
        offset = ((1 - contrast) * brightness * mean).view(-1, 1, 1)
        if not colours:
            return torch.addcmul(offset.unsqueeze(3), x, factor.unsqueeze(3))
        matrix = self._colours(count, dice) * factor
        return torch.baddbmm(offset, matrix, x.flatten(2)).view_as(x)

    def _colours(self, count: int, dice: _Dice) -> torch.Tensor:
        """(n, 3, 3): saturation, then hue, at equal brightness."""
        vivid = dice.uniform(count, 1 - self.saturation, 1 + self.saturation)
        vivid = vivid.masked_fill(dice.coin(count, self.grey), 0).view(-1, 1, 1)
        luma = _luma(3, dice.device).expand(3, 3)
        saturate = vivid * torch.eye(3, device=dice.device) + (1 - vivid) * luma
        if not self.hue:
            return saturate
        yiq = torch.tensor(_YIQ, device=dice.device)
        angle = dice.uniform(count, -2 * math.pi * self.hue, 2 * math.pi * self.hue)
        turn = _matrix(count).to(dice.device)
        turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
        turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
        return torch.linalg.inv(yiq) @ turn @ yiq @ saturate

    # ── erasing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _erased(self, x: torch.Tensor, dice: _Dice) -> torch.Tensor:
        count, _, height, width = x.shape
        chosen = dice.coin(count, self.erase)
        area = dice.uniform(count, *self.erase_area)
        aspect = dice.logarithmic(count, 0.5, 2.0)
        rows = _stretch_of(height, (area / aspect).sqrt().clamp(max=1), dice)
        columns = _stretch_of(width, (area * aspect).sqrt().clamp(max=1), dice)
        mask = (rows.unsqueeze(2) & columns.unsqueeze(1) & chosen.view(-1, 1, 1)).unsqueeze(1)
        fill = x.mean(dim=(2, 3), keepdim=True) if self.erase_fill == "mean" else dice.unit(x.shape)
        return torch.where(mask, fill, x)


class _Dice:
    """Random numbers from one generator, on the device of the pictures."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self._generator = generator
        self.device = device

    def unit(self, shape: Any) -> torch.Tensor:
        return torch.rand(shape, generator=self._generator, device=self._generator.device).to(self.device)

    def normal(self, shape: Any) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, device=self._generator.device).to(self.device)

    def uniform(self, count: int, low: float, high: float) -> torch.Tensor:
        return self.unit(count).mul_(high - low).add_(low)

    def logarithmic(self, count: int, low: float, high: float) -> torch.Tensor:
        return self.uniform(count, math.log(low), math.log(high)).exp_()

    def coin(self, count: int, probability: float) -> torch.Tensor:
        return self.unit(count) < probability

    def below(self, limit: int, count: int) -> torch.Tensor:
        return torch.randint(limit, (count,), generator=self._generator, device=self._generator.device).to(self.device)


def _plain(value: Any) -> Any:
    """A value of a document: a list is a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _floats(pictures: torch.Tensor) -> torch.Tensor:
    """A contiguous float32 copy in [0, 1]."""
    x = torch.empty(pictures.shape, dtype=torch.float32, device=pictures.device).copy_(pictures)
    return x if pictures.is_floating_point() else x.div_(255)


def _matrix(count: int, *, x: Any = 0.0, y: Any = 0.0) -> torch.Tensor:
    """(n, 3, 3) identity, moved by (x, y)."""
    matrix = torch.eye(3).repeat(count, 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix


def _placement(
    angle: torch.Tensor, size: tuple[torch.Tensor, torch.Tensor], lean: torch.Tensor, shape: float
) -> torch.Tensor:
    """The inverse of: scale the picture, lean it over, turn it counter-clockwise. `shape` is its width / height.

    In a picture y points down, so that counter-clockwise takes (x, y) to (cos x + sin y, -sin x + cos y).
    """
    cos, sin = angle.cos(), angle.sin()
    wide, high = size
    inverse = torch.eye(3, device=angle.device).repeat(len(angle), 1, 1)
    # The turn back, its rows then sheared back, then scaled back; and y is measured in another unit than x.
    inverse[:, 0, 0] = (cos - lean * sin) / wide
    inverse[:, 0, 1] = (-sin - lean * cos) / wide / shape
    inverse[:, 1, 0] = sin / high * shape
    inverse[:, 1, 1] = cos / high
    return inverse


def _grid(mapping: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(n, h, w, 2) places to sample, for `grid_sample` with align_corners=False.

    As sums of a term per column and a term per row: ten times faster than the product with a list of all places.
    """
    x = (torch.arange(width, device=mapping.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=mapping.device) * 2 + 1) / height - 1
    across = (mapping[:, :, 0, None] * x).unsqueeze(2)
    down = (mapping[:, :, 1, None] * y + mapping[:, :, 2, None]).unsqueeze(3)
    grid = torch.empty(len(mapping), height, width, 2, device=mapping.device)
    for axis in (0, 1):
        torch.add(across[:, axis], down[:, axis], out=grid[..., axis])
    if bool(mapping[:, 2, :2].any()):
        grid /= (across[:, 2] + down[:, 2]).unsqueeze(3)
    return grid


def _displacement(dice: _Dice, count: int, height: int, width: int, cells: int) -> torch.Tensor:
    """(n, h, w, 2): standard normal at (cells + 1)² points, cubic in between."""
    points = dice.normal((count, 2, cells + 1, cells + 1))
    down, across = (_cubic(cells + 1, side, dice.device) for side in (height, width))
    return (down @ points @ across.T).permute(0, 2, 3, 1)


def _cubic(points: int, length: int, device: torch.device) -> torch.Tensor:
    """(length, points): weights of the points in a cubic curve through them."""
    eye = torch.eye(points, device=device)[None, None]
    return functional.interpolate(eye, size=(length, points), mode="bicubic", align_corners=True)[0, 0]


def _thickened(x: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Towards the darkest of 3 × 3 pixels where `amount` is positive, towards the lightest where it is negative."""
    sign = torch.where(amount > 0, -1.0, 1.0).view(-1, 1, 1, 1)
    # One maximum serves both: of what is to grow darker, the negative is taken.
    signed = x.mul_(sign)
    return torch.lerp(signed, _greatest(_greatest(signed, 3), 2), amount.abs().view(-1, 1, 1, 1)).mul_(sign)


def _greatest(x: torch.Tensor, axis: int) -> torch.Tensor:
    """The greatest of each pixel and its two neighbours along an axis; `max_pool2d` takes 30 times as long."""
    result, last = x.clone(), x.shape[axis] - 1
    for one, other in ((0, 1), (1, 0)):
        part = result.narrow(axis, one, last)
        torch.maximum(part, x.narrow(axis, other, last), out=part)
    return result


def _blurred(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian of a standard deviation per picture, the border repeated outside; sums of shifted pictures.

    (A depthwise convolution takes 10 times as long, and knows one deviation for all.)
    """
    radius = min(math.ceil(2.5 * float(sigma.max())), min(x.shape[2:]) - 1)
    place = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-(place**2) / (2 * sigma.clamp(min=0.05) ** 2).unsqueeze(1))
    weights = (weights / weights.sum(1, keepdim=True)).view(len(x), -1, 1, 1, 1)
    for axis, padding in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = functional.pad(x, padding, mode="replicate")
        x = torch.zeros_like(x)
        for tap in range(2 * radius + 1):
            x.addcmul_(padded.narrow(axis, tap, x.shape[axis]), weights[:, tap])
    return x


def _luma(channels: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(_LUMA if channels == 3 else (1.0,), device=device)


def _stretch_of(length: int, share: torch.Tensor, dice: _Dice) -> torch.Tensor:
    """(n, length) bool: a random stretch of that share of the length."""
    extent = (share * length).round()
    start = (dice.unit(len(share)) * (length - extent + 1)).floor().unsqueeze(1)
    place = torch.arange(length, device=dice.device)
    return (place >= start) & (place < start + extent.unsqueeze(1))
