"""Augmentation: each change against an answer known beforehand, and nothing where nothing was asked for."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

torch = pytest.importorskip("torch")

from lookalike.errors import ConfigError, ShapeError  # noqa: E402
from lookalike.training import augment  # noqa: E402
from lookalike.training.augment import Augmentation  # noqa: E402

EVERYTHING = {
    "rotate": 30, "scale": (0.7, 1.4), "stretch": 0.2, "shear": 15, "shift": 0.1, "perspective": 0.3, "crop": (0.4, 1),
    "flip": 0.5, "elastic": 0.03, "mirror": 1.0, "thickness": 0.8, "blur": 1.5, "brightness": 0.5, "contrast": 0.5,
    "saturation": 0.5, "hue": 0.2, "grey": 0.3, "noise": 0.2, "erase": 0.5, "turns": "each",
    "batch_rotate": 45, "batch_stretch": 0.2, "batch_shear": 20,
}  # fmt: skip


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(count: int = 8, channels: int = 3, height: int = 20, width: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, height, width), generator=dice(seed), dtype=torch.uint8)


def smooth(count: int = 2, channels: int = 1, height: int = 40, width: int = 40) -> torch.Tensor:
    """Pictures that bilinear sampling changes little."""
    small = torch.rand(count, channels, 4, 4, generator=dice(1))
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 1)


def place_of(picture: torch.Tensor) -> tuple[float, float]:
    """The centre of mass (x, y) of one (1, h, w) picture, in pixels from its middle."""
    mass = picture[0] / picture[0].sum()
    y, x = (torch.arange(side) - (side - 1) / 2 for side in mass.shape)
    return float((mass.sum(0) * x).sum()), float((mass.sum(1) * y).sum())


def dot(x: int, y: int, height: int = 41, width: int = 41) -> torch.Tensor:
    """A soft white dot on black at (x, y) from the middle."""
    across, down = (torch.arange(side) - side // 2 for side in (width, height))
    return torch.exp(-((across - x) ** 2 + (down[:, None] - y) ** 2) / 2)[None, None]


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_off_changes_nothing(channels, channels_last):
    """Without options, bytes are divided by 255, exactly; floats come back as a copy."""
    pictures = some(channels=channels, width=30)
    if channels_last:
        pictures = pictures.to(memory_format=torch.channels_last)
    result = Augmentation()(pictures, dice())

    assert torch.equal(result, pictures / 255) and result.dtype == torch.float32 and result.is_contiguous()
    again = Augmentation()(result, dice())
    assert torch.equal(again, result) and again.data_ptr() != result.data_ptr()


@pytest.mark.parametrize("option", sorted(EVERYTHING))
@pytest.mark.parametrize("channels", [1, 3])
def test_each_option_does_something_repeatably_within_the_range(option, channels):
    """Alone: the same seed gives the same result, another seed another; values stay in [0, 1]; the input is left."""
    coloured = option in ("saturation", "hue", "grey") and channels == 1
    pictures = some(16, channels)
    before = pictures.clone()
    change = Augmentation(**{option: EVERYTHING[option]})
    result = change(pictures, dice(1))

    assert result.shape == pictures.shape and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1
    assert torch.equal(result, change(pictures, dice(1)))
    assert torch.equal(pictures, before)
    assert torch.equal(result, pictures / 255) == coloured
    if option != "mirror" and not coloured:
        assert not torch.equal(result, change(pictures, dice(2)))


@pytest.mark.parametrize("padding", ["border", 1.0, 0.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_everything_together(padding, channels):
    """All options at once: repeatable, in range, and of floats the same as of bytes."""
    change = Augmentation(**EVERYTHING, padding=padding, erase_fill="noise")
    pictures = some(channels=channels).to(memory_format=torch.channels_last)
    result = change(pictures, dice(3))

    assert torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
    assert torch.equal(result, change(pictures, dice(3)))
    assert torch.equal(result, change(pictures / 255, dice(3)))


@pytest.mark.parametrize("option", sorted(set(EVERYTHING) - {"turns", "mirror", "flip", "grey", "erase"}))
def test_a_strength_of_nearly_nothing_changes_nearly_nothing(option):
    """Towards 0 each option goes to the picture itself: no half pixel, no darkening, no border."""
    strength = {"scale": (1, 1 + 1e-6), "crop": (1 - 1e-6, 1)}.get(option, 1e-6)
    aspect = {"crop_aspect": (1, 1)} if option == "crop" else {}
    pictures = some(height=18, width=26)
    result = Augmentation(**{option: strength}, **aspect)(pictures, dice())

    assert (result - pictures / 255).abs().max() < 1e-3


def test_impossible_options():
    """Numbers out of range are told all at once, by name."""
    with pytest.raises(ConfigError) as caught:
        Augmentation(rotate=-1, scale=(2, 1), flip=2, turns="some", padding="white", erase_area=0.5, noise="much")
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "rotate", "flip", "noise", "scale", "erase_area", "turns", "padding",
    ]  # fmt: skip
    assert "between 0 and 180, got -1" in caught.value.problems[0]


def test_every_number_has_its_limits():
    """No option can be added without saying what it may be."""
    checked = {*augment._LIMITS, *augment._RANGES, "turns", "padding", "erase_fill"}

    assert checked == {field.name for field in fields(Augmentation)}


def test_wrong_shapes():
    """Two channels, no batch, and quarter turns of pictures that are not square."""
    for shape in ((4, 2, 8, 8), (3, 8, 8), (0, 3, 8, 8)):
        with pytest.raises(ShapeError, match="must have shape"):
            Augmentation()(torch.zeros(shape), dice())
    with pytest.raises(ShapeError, match="quarter turns need square pictures, got 8 × 9"):
        Augmentation(turns="batch")(torch.zeros(1, 1, 8, 9), dice())


# ── quarter turns and mirrors ────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_turns_alike():
    """All pictures by the same of four quarter turns, each of which comes up."""
    pictures = some(5)
    turned = [torch.rot90(pictures, k, (2, 3)) / 255 for k in range(4)]
    found = set()
    for seed in range(40):
        result = Augmentation(turns="batch")(pictures, dice(seed))
        found |= {next(k for k in range(4) if torch.equal(result, turned[k]))}

    assert found == {0, 1, 2, 3}


@pytest.mark.parametrize("option", [{"batch_rotate": 45}, {"batch_stretch": 0.5}, {"batch_shear": 30}])
def test_a_batch_is_warped_alike(option):
    """All pictures by one movement, another one for the next batch; on top of what each draws for itself."""
    pictures = some(height=20, width=20)[:1].repeat(6, 1, 1, 1)
    first, second = Augmentation(**option)(pictures, dice(0)), Augmentation(**option)(pictures, dice(1))

    assert (first - pictures / 255).abs().max() > 0.05
    assert all(torch.equal(picture, first[0]) for picture in first)
    assert not torch.equal(first, second)
    assert not torch.equal(*Augmentation(**option, rotate=10)(pictures, dice(0))[:2])


def test_what_all_share_comes_before_what_each_draws(extremes):
    """A quarter turn of the batch and then a shift of the picture to the right: not downwards."""
    turned = Augmentation(batch_rotate=90, shift=0.05, padding=0.0)(dot(8, 5), dice())

    assert place_of(turned[0]) == pytest.approx((5 + 0.05 * 41, -8 + 0.05 * 41), abs=0.15)


def test_each_picture_turns_for_itself():
    """Each by one of four quarter turns, all about equally often."""
    pictures = some(400, 1, 6, 6)
    result = Augmentation(turns="each")(pictures, dice())
    counts = [0] * 4
    for picture, changed in zip(pictures, result, strict=True):
        counts[next(k for k in range(4) if torch.equal(changed, torch.rot90(picture, k, (1, 2)) / 255))] += 1

    assert all(60 < count < 140 for count in counts)


def test_flip_and_mirror():
    """A flip swaps left and right in a share of the pictures; a mirror in all or none of a batch."""
    pictures = some(300, 1, 5, 7)
    plain, swapped = pictures / 255, pictures.flip(3) / 255
    flipped = (Augmentation(flip=0.3)(pictures, dice()) == swapped).flatten(1).all(1)
    whole = [Augmentation(mirror=0.5)(pictures, dice(seed)) for seed in range(30)]

    assert 60 < flipped.sum() < 120
    assert torch.equal(Augmentation(flip=1.0)(pictures, dice()), swapped)
    assert all(torch.equal(result, plain) or torch.equal(result, swapped) for result in whole)
    assert 5 < sum(torch.equal(result, swapped) for result in whole) < 25


# ── geometry ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def extremes(monkeypatch):
    """Every uniform draw gives its upper end."""
    monkeypatch.setattr(augment._Dice, "uniform", lambda self, count, low, high: torch.full((count,), float(high)))


def test_rotation_is_counter_clockwise(extremes):
    """By 90 degrees it is a quarter turn, also of a picture that is not square where both overlap."""
    picture = smooth()
    turned = Augmentation(rotate=90)(picture, dice())
    wide = Augmentation(rotate=90, padding=0.0)(dot(10, 0, 31, 61), dice())

    assert (turned - torch.rot90(picture, 1, (2, 3))).abs().max() < 1e-4
    assert place_of(wide[0]) == pytest.approx((0, -10), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shift": 0.2}, (10 + 0.2 * 41, 6 + 0.2 * 41)),
        ({"scale": (1, 1.5)}, (15, 9)),
        ({"stretch": 0.25}, (12.5, 4.8)),
        ({"shear": 45}, (10 + 6, 6)),
        ({"rotate": 30}, (10 * math.cos(math.pi / 6) + 6 * 0.5, -10 * 0.5 + 6 * math.cos(math.pi / 6))),
    ],
)
def test_where_a_dot_goes(extremes, options, expected):
    """A shift moves by a share of the side, a scale multiplies distances, a shear leans upright lines."""
    result = Augmentation(**options, padding=0.0)(dot(10, 6), dice())

    assert place_of(result[0]) == pytest.approx(expected, abs=0.15)


def test_turn_lean_and_size_in_their_order(extremes):
    """Together: scaled, stretched, leant over, turned, shifted; also where pixels are wider than high in [-1, 1]."""
    options = {"rotate": 20, "scale": (1, 1.2), "stretch": 0.1, "shear": 10, "shift": 0.05, "padding": 0.0}
    x, y = 8 * 1.2 * 1.1, 5 * 1.2 / 1.1
    x = x + math.tan(math.radians(10)) * y
    angle = math.radians(20)
    x, y = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    expected = (x + 0.05 * 61, y + 0.05 * 41)
    result = Augmentation(**options)(dot(8, 5, 41, 61), dice())

    assert place_of(result[0]) == pytest.approx(expected, abs=0.15)


def test_what_lies_outside():
    """Half a side to the right: the border repeated, or the wanted grey."""
    picture = torch.full((64, 1, 20, 20), 0.25)
    picture[:, :, :, 0] = 0.75
    border = Augmentation(shift=0.5)(picture, dice())
    white = Augmentation(shift=0.5, padding=1.0)(picture, dice())

    assert set(border.unique().tolist()) >= {0.25, 0.75} and border.max() <= 0.75
    assert (white == 1).float().mean() > 0.2 and white.min() == pytest.approx(0.25)


def test_a_crop_keeps_its_share_of_the_area():
    """A window inside the picture, of the drawn area and aspect, blown up to the full size."""
    height, width = 60, 80
    ramp = torch.stack(
        [
            (torch.arange(width) + 0.5).div(width).expand(height, width),
            (torch.arange(height) + 0.5).div(height)[:, None].expand(height, width),
            torch.zeros(height, width),
        ]
    ).expand(300, 3, height, width)
    result = Augmentation(crop=(0.2, 0.5), crop_aspect=(0.8, 1.25))(ramp, dice())
    across = (result[:, 0, :, -1] - result[:, 0, :, 0]).mean(1) * width / (width - 1)
    down = (result[:, 1, -1] - result[:, 1, 0]).mean(1) * height / (height - 1)
    area, aspect = across * down, across / down
    # On black; at the very border half a pixel of the white outside shines in.
    inside = Augmentation(crop=(0.2, 0.5), crop_aspect=(0.5, 2), padding=1.0)(torch.zeros(300, 1, 60, 80), dice())

    assert 0.19 < area.min() < 0.23 and 0.46 < area.max() < 0.51
    assert inside.max() < 0.6
    assert 0.78 < aspect.min() < 0.85 and 1.18 < aspect.max() < 1.28
    assert (result[:, 0, 0, 0]).min() < 0.05 and (result[:, 0, 0, -1]).max() > 0.95


def test_perspective_keeps_the_middle_and_straight_lines(extremes):
    """Nearer on one side: x / (1 + a x + b y); what was the middle stays, and the rest follows the formula."""
    a = 0.3
    mapping = Augmentation(perspective=a)._mapping(1, 40, 40, augment._Dice(dice(), torch.device("cpu")))
    grid = augment._grid(mapping, 41, 41)[0]
    x, y = grid[7, 33]
    u, v = (2 * 33 + 1) / 41 - 1, (2 * 7 + 1) / 41 - 1

    assert grid[20, 20].abs().max() < 1e-6
    assert (float(x), float(y)) == pytest.approx((u / (1 + a * u + a * v), v / (1 + a * u + a * v)), abs=1e-5)


def test_places_are_those_of_affine_grid():
    """The fast grid is the one `affine_grid` gives."""
    mapping = torch.eye(3).repeat(4, 1, 1)
    mapping[:, :2] += torch.randn(4, 2, 3, generator=dice())
    expected = torch.nn.functional.affine_grid(mapping[:, :2], [4, 1, 9, 13], align_corners=False)

    torch.testing.assert_close(augment._grid(mapping, 9, 13), expected, atol=1e-5, rtol=1e-5)


def test_elastic_displacement():
    """Of the wanted standard deviation, smooth, and independent from picture to picture."""
    moved = augment._displacement(augment._Dice(dice(), torch.device("cpu")), 500, 30, 40, 3)
    steps = (moved[:, 1:] - moved[:, :-1]).abs()
    assert moved.shape == (500, 30, 40, 2)
    assert moved[:, 0, 0].std() == pytest.approx(1, abs=0.07)
    assert steps.max() < 0.8 and abs(float((moved[0] * moved[1]).mean())) < 0.7

    ramp = (torch.arange(40) + 0.5).div(40).expand(500, 1, 40, 40)
    result = Augmentation(elastic=0.02, elastic_cells=3)(ramp, dice())
    assert (result - ramp)[:, 0, 20, 20].std() == pytest.approx(0.02 * float(moved[:, 15, 20, 0].std()), rel=0.15)


# ── lines, blur and colour ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("amount", "pool"), [(1.0, lambda x: -x), (-1.0, lambda x: x)])
def test_thickness(monkeypatch, amount, pool):
    """At full strength: the darkest of 3 × 3 pixels, or the lightest; half of it is half-way."""
    pictures = some(4, 3) / 255
    full = pool(torch.nn.functional.max_pool2d(pool(pictures), 3, 1, 1))
    for share in (1.0, 0.5):
        monkeypatch.setattr(
            augment._Dice, "uniform", lambda self, count, low, high, f=share: torch.full((count,), f * amount)
        )
        result = Augmentation(thickness=1.0)(pictures, dice())
        torch.testing.assert_close(result, pictures + share * (full - pictures), atol=1e-6, rtol=1e-6)


def test_blur(extremes):
    """A dot becomes a Gaussian of that deviation; a flat picture stays flat up to its border."""
    picture = torch.zeros(1, 1, 41, 41)
    picture[0, 0, 20, 20] = 1
    result = Augmentation(blur=1.5)(picture, dice())[0, 0]
    place = torch.arange(41) - 20
    variance = float((result.sum(0) * place**2).sum() / result.sum())

    assert result.sum() == pytest.approx(1, abs=1e-5) and variance == pytest.approx(1.5**2, rel=0.05)
    flat = torch.full((3, 3, 9, 9), 0.3)
    torch.testing.assert_close(Augmentation(blur=5.0)(flat, dice()), flat)


def test_each_picture_has_its_own_blur():
    """The deviation differs from picture to picture."""
    result = Augmentation(blur=2.0)(dot(0, 0).repeat(50, 1, 1, 1), dice())

    assert result[:, 0, 20, 20].std() > 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast(extremes, channels):
    """Multiplied, and moved away from the mean brightness; each alone and both together."""
    pictures = 0.3 + 0.2 * smooth(4, channels)
    weights = torch.tensor([0.299, 0.587, 0.114] if channels == 3 else [1.0]).view(1, -1, 1, 1)
    mean = (pictures * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    light = Augmentation(brightness=0.2)(pictures, dice())
    hard = Augmentation(contrast=0.3)(pictures, dice())
    both = Augmentation(brightness=0.2, contrast=0.3)(pictures, dice())

    torch.testing.assert_close(light, 1.2 * pictures)
    torch.testing.assert_close(hard, mean + 1.3 * (pictures - mean))
    torch.testing.assert_close(both, 1.2 * mean + 1.3 * 1.2 * (pictures - mean))


def test_saturation_and_grey(extremes):
    """Moved away from the pixel's own brightness; grey takes all colour and keeps the brightness."""
    pictures = 0.4 + 0.2 * smooth(4, 3)
    luma = (pictures * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)

    torch.testing.assert_close(Augmentation(saturation=0.5)(pictures, dice()), luma + 1.5 * (pictures - luma))
    torch.testing.assert_close(Augmentation(grey=1.0)(pictures, dice()), luma.expand(-1, 3, -1, -1))


def test_hue(extremes):
    """Brightness and grey stay; a third of the circle takes red towards green; the whole circle is no change."""
    pictures = 0.4 + 0.2 * smooth(4, 3)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    turned = Augmentation(hue=1 / 3)(pictures, dice())
    grey = (0.1 + 0.8 * smooth(2, 1)).expand(-1, 3, -1, -1)
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1).expand(1, 3, 4, 4)

    torch.testing.assert_close((turned * luma).sum(1), (pictures * luma).sum(1), atol=2e-3, rtol=0)
    assert (turned - pictures).abs().max() > 0.02
    torch.testing.assert_close(Augmentation(hue=0.3)(grey, dice()), grey, atol=2e-3, rtol=0)
    assert Augmentation(hue=1 / 3)(red, dice())[0, :, 0, 0].argmax() in (1, 2)
    half = Augmentation(hue=0.5)
    torch.testing.assert_close(half(half(pictures, dice()), dice()), pictures, atol=2e-3, rtol=0)


def test_noise(extremes):
    """Gaussian of the wanted deviation, independent in every pixel."""
    result = Augmentation(noise=0.05)(torch.full((8, 3, 40, 40), 0.5), dice()) - 0.5

    assert result.std() == pytest.approx(0.05, rel=0.03) and abs(float(result.mean())) < 0.002
    assert abs(float((result[..., 1:] * result[..., :-1]).mean())) < 1e-4


# ── erasing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_erasing_covers_its_share():
    """One rectangle of the wanted area in a share of the pictures, filled with the mean of the picture."""
    pictures = some(400, 3, 40, 50)
    result = Augmentation(erase=0.6, erase_area=(0.1, 0.3))(pictures, dice())
    changed = (result != pictures / 255).any(1)
    share = changed.float().mean((1, 2))
    hit = share > 0
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)

    assert 200 < hit.sum() < 280
    assert 0.08 < share[hit].min() < 0.13 and 0.27 < share[hit].max() < 0.33
    # A rectangle: what is covered are all crossings of its rows and columns, but for pixels that have the mean anyway.
    assert (changed.sum((1, 2)) >= 0.98 * rows * columns).all()
    first = int(hit.nonzero()[0])
    inside = result[first].permute(1, 2, 0)[changed[first]]
    torch.testing.assert_close(inside, (pictures[first] / 255).mean((1, 2)).expand_as(inside))


def test_erasing_with_noise():
    """Pixels are random, and differ from each other."""
    result = Augmentation(erase=1.0, erase_area=(0.3, 0.3), erase_fill="noise")(torch.zeros(4, 1, 40, 40), dice())
    covered = result[result > 0]

    assert covered.numel() / result.numel() == pytest.approx(0.3, abs=0.03)
    assert covered.mean() == pytest.approx(0.5, abs=0.03) and covered.std() == pytest.approx(0.289, abs=0.03)
