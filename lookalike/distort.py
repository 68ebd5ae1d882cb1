"""The same picture, taken again: questions with a known answer, for judging search where nobody has said who is alike.

A picture is distorted as a second photograph, a screenshot or a re-upload would differ from it; the original is the one
right answer. The strengths are those at which copy detection is judged (Copydays; DISC21), without their hardest cases:
a person still sees at once that it is the same picture. Each picture suffers one kind, so that a result can be told
apart by kind. What is drawn depends on the generator alone.

Sources: Copydays is the data set of Jégou, Douze and Schmid, "Hamming Embedding and Weak Geometric Consistency for
Large Scale Image Search" (ECCV 2008); DISC21 that of Douze et al., "The 2021 Image Similarity Dataset and Challenge"
(arXiv:2106.09672).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from lookalike.errors import ImageError
from lookalike.images import Picture, read, shown

Points = npt.NDArray[np.float64]

__all__ = ["KINDS", "distorted", "write_queries"]

KINDS = ("crop", "rotate", "perspective", "blur", "jpeg", "brightness", "occlusion", "all")

# Copydays crops away 10 to 80 % of the surface and is mostly reported at 50 %; what is left here is 50 to 80 %.
CROP_AREA = (0.5, 0.8)
# Of the part's width to its height, over that of the whole: the range of Inception's crops (Szegedy et al. 2015), taken
# relative to the whole, because a panorama has no part of 80 % that is nearly square.
CROP_ASPECT = (3 / 4, 4 / 3)
# Less than 10° any descriptor with some pooling forgives; more than 30° nobody holds a camera without meaning to.
ROTATION_DEGREES = (10.0, 30.0)
# Corners moved by 15 % of the sides, in or out: at most, a flat thing seen from 20° aside from as far as it is wide.
# (Three fifths of what torchvision's `RandomPerspective` does by default, which is made for training.)
PERSPECTIVE_SHIFT = 0.15
# Standard deviation as a share of the short side: 0.8 to 2 pixels of 224, so that a thumbnail and a camera's original
# blur alike for a network that sees both at one size.
BLUR_SIGMA = (0.8 / 224, 2.0 / 224)
# In the middle of Copydays' scale (3 to 75): blocks show, things remain.
JPEG_QUALITY = 30
# About one stop of exposure down, or as far up as lights burn out: a flash, a lamp, a phone's automatic exposure.
BRIGHTNESS_DARKER, BRIGHTNESS_BRIGHTER = (0.5, 0.75), (1.3, 1.7)
# A thumb, a price tag, a sticker or an overlay. Random Erasing (Zhong et al. 2020) hides 2 to 40 % and is a training
# aid; below 10 % little is asked, above 25 % the thing itself may be gone.
OCCLUSION_AREA = (0.10, 0.25)
OCCLUSION_ASPECT = (1 / 2, 2.0)
# What `write_queries` saves with, where the kind is not "jpeg": the saving must not be a second distortion.
QUALITY = 95
THREADS = 8


def distorted(picture: Picture, kind: str, dice: np.random.Generator) -> Image.Image:
    """A picture as it would come back if somebody took it again.

    ==============  ================================================================================================
    "crop"          a part of 50 to 80 % of its area, anywhere
    "rotate"        turned by 10 to 30° either way; size kept, corners mirrored
    "perspective"   its corners moved by up to 15 % of the sides; size kept, what comes into view mirrored
    "blur"          out of focus: a Gaussian of 0.8 to 2 pixels per 224 pixels of the short side
    "jpeg"          saved at quality 30, and opened again
    "brightness"    darker (× 0.5 to 0.75) or brighter (× 1.3 to 1.7, lights clipped)
    "occlusion"     a rectangle of 10 to 25 % of its area covered by grey, noise or one colour
    "all"           all of these, one after the other: a snapshot in bad light, passed on
    ==============  ================================================================================================

    Args:
        picture: anything `lookalike.images.read` reads; left as it is.
        kind: one of `KINDS`.
        dice: where all randomness comes from; generators in equal state give equal results.

    Returns:
        A new image of mode "RGB": that of "crop" and "all" is smaller, all others have the picture's size.

    Raises:
        ImageError: the picture cannot be read.
        ValueError: unknown kind.
    """
    _check([kind])
    return _CHANGES[kind](read(picture), dice)


def write_queries(
    paths: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    long_side: int = 640,
) -> list[str | None]:
    """Write one distorted query for each picture, as JPEG files named like ``000123-rotate.jpg``.

    Picture i suffers ``kinds[i % len(kinds)]`` with the dice ``np.random.default_rng([seed, i])``, after it has been
    reduced. A killed call can be made again: files that stand are kept. Each carries as its comment what it was made
    of, so that one of another picture, seed or size is made anew.

    Args:
        paths: the pictures.
        folder: where to; made if it is not there.
        kinds: which distortions, in turn.
        seed: equal seeds give equal files.
        long_side: pictures with a longer side, in pixels, are reduced to it first; no network looks at more.

    Returns:
        For each picture the path of its query, or None where it cannot be read.

    Raises:
        ValueError: unknown kind, or none, or a long side below 1.
        OSError: a file cannot be written.
    """
    _check(kinds)
    if long_side < 1:
        raise ValueError(f"long_side must be at least 1 pixel, got {long_side}")
    top = Path(folder)
    top.mkdir(parents=True, exist_ok=True)

    def write(number: int) -> str | None:
        kind = kinds[number % len(kinds)]
        place = top / f"{number:06}-{kind}.jpg"
        try:
            origin = _origin(paths[number], f"{kind} {number} {seed} {long_side}")
            if _comment(place) == origin:
                return str(place)
            image = _reduced(read(paths[number], at_least=(long_side, long_side)), long_side)
        except ImageError:
            return None
        dice = np.random.default_rng([seed, number])
        # Kind "jpeg" is what the saving does: changed before as well, it would be encoded twice.
        before = {"jpeg": (), "all": _BEFORE_SAVING}.get(kind, (kind,))
        for part in before:
            image = _CHANGES[part](image, dice)
        data = _encoded(image, QUALITY if before == (kind,) else JPEG_QUALITY, origin)
        scratch = top / f".{place.name}.{os.getpid()}.part"
        try:
            scratch.write_bytes(data)
            scratch.replace(place)
        finally:
            scratch.unlink(missing_ok=True)
        return str(place)

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="lookalike-distort") as pool:
        return list(pool.map(write, range(len(paths))))


# ── one kind each ────────────────────────────────────────────────────────────────────────────────────────────────────


def _crop(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    left, top, right, bottom = _box(image, dice, CROP_AREA, CROP_ASPECT)
    return image.crop((left, top, right, bottom))


def _rotate(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    angle = math.radians(dice.uniform(*ROTATION_DEGREES) * dice.choice((-1, 1)))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    centre = np.array(image.size) / 2
    return _seen(image, (_corners(image) - centre) @ turn + centre)


def _perspective(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    return _seen(image, _corners(image) + dice.uniform(-PERSPECTIVE_SHIFT, PERSPECTIVE_SHIFT, (4, 2)) * image.size)


def _blur(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(dice.uniform(*BLUR_SIGMA) * min(image.size)))


def _jpeg(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    del dice  # nothing to draw
    return read(_encoded(image, JPEG_QUALITY))


def _brightness(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    factor = dice.uniform(*(BRIGHTNESS_DARKER if dice.random() < 0.5 else BRIGHTNESS_BRIGHTER))
    table = np.minimum(np.rint(np.arange(256) * factor), 255).astype(int).tolist()
    return image.point(table * 3)


def _occlusion(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    left, top, right, bottom = _box(image, dice, OCCLUSION_AREA, OCCLUSION_ASPECT)
    cover = dice.choice(("grey", "noise", "colour"))
    pixels = np.array(image)
    if cover == "grey":
        pixels[top:bottom, left:right] = 128
    elif cover == "noise":
        pixels[top:bottom, left:right] = dice.integers(0, 256, (bottom - top, right - left, 3), dtype=np.uint8)
    else:
        pixels[top:bottom, left:right] = dice.integers(0, 256, 3, dtype=np.uint8)
    return Image.fromarray(pixels)


def _all(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    for kind in _BEFORE_SAVING:
        image = _CHANGES[kind](image, dice)
    return _jpeg(image, dice)


# In the order in which they befall a picture: before the camera, in it, and on the way.
_BEFORE_SAVING = ("occlusion", "perspective", "rotate", "crop", "brightness", "blur")
_CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": _crop,
    "rotate": _rotate,
    "perspective": _perspective,
    "blur": _blur,
    "jpeg": _jpeg,
    "brightness": _brightness,
    "occlusion": _occlusion,
    "all": _all,
}


# ── geometry ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _box(
    image: Image.Image, dice: np.random.Generator, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels, anywhere: its share of the area, and its aspect over the image's."""
    share = dice.uniform(*area)
    # Neither side may be longer than the image's: share × aspect and share / aspect are at most 1.
    ratio = math.exp(dice.uniform(math.log(max(aspect[0], share)), math.log(min(aspect[1], 1 / share))))
    width = min(image.width, max(1, round(math.sqrt(share * ratio) * image.width)))
    height = min(image.height, max(1, round(math.sqrt(share / ratio) * image.height)))
    left = int(dice.integers(image.width - width + 1))
    top = int(dice.integers(image.height - height + 1))
    return left, top, left + width, top + height


def _corners(image: Image.Image) -> Points:
    """Its corners as (x, y), clockwise from the upper left: (4, 2) float64."""
    return np.array([(0, 0), (image.width, 0), image.size, (0, image.height)], dtype=np.float64)


def _seen(image: Image.Image, corners: Points) -> Image.Image:
    """What a camera sees whose corners lie at these points of the image: the same size, the border mirrored outwards.

    Mirrored, since a photograph goes on beyond its edge much as it was before it: a wall stays a wall, and a product's
    white background white. White corners occur in no photograph, and a search could be right or wrong for their sake.

    Args:
        image: the picture.
        corners: (4, 2) points (x, y) in its pixels, clockwise from the upper left; they may lie outside.
    """
    # Two more for the bicubic filter, which reads beyond the point it is asked for.
    before = np.maximum(np.ceil(-corners.min(0)), 0).astype(int) + 2
    after = np.maximum(np.ceil(corners.max(0) - image.size), 0).astype(int) + 2
    border = ((before[1], after[1]), (before[0], after[0]), (0, 0))
    wide = Image.fromarray(np.pad(np.asarray(image), border, mode="symmetric"))
    coefficients = _homography(_corners(image), corners + before)
    return wide.transform(image.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)


def _homography(points: Points, images: Points) -> list[float]:
    """The eight numbers (a, …, h) of (x, y) → ((ax + by + c) / (gx + hy + 1), (dx + ey + f) / (gx + hy + 1)).

    Args:
        points: (4, 2), no three in a line.
        images: (4, 2), where the points go.
    """
    x, y = points.T
    u, v = images.T
    one, nil = np.ones(4), np.zeros(4)
    left = (
        np.stack([x, y, one, nil, nil, nil, -u * x, -u * y], 1),
        np.stack([nil, nil, nil, x, y, one, -v * x, -v * y], 1),
    )
    return [float(value) for value in np.linalg.solve(np.concatenate(left), np.concatenate([u, v]))]


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check(kinds: Sequence[str]) -> None:
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {', '.join(map(repr, wrong)) or 'none'}")


def _reduced(image: Image.Image, long_side: int) -> Image.Image:
    scale = long_side / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, quality: int, comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    try:
        image.save(stream, "JPEG", quality=quality, comment=comment)
    except OSError as error:  # its sides have at most 65,535 pixels
        raise ImageError("<picture>", f"{image.width} × {image.height} pixels are too many for a JPEG") from error
    return stream.getvalue()


def _origin(path: str, how: str) -> bytes:
    """Tells whether a query was made of this very file in this way, without its path, which is nobody's business."""
    try:
        status = os.stat(path)  # noqa: PTH116 - undecodable bytes stay
    except (OSError, ValueError) as error:
        raise ImageError(shown(path), "no such file") from error
    what = f"{how} {status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(os.path.abspath(path))  # noqa: PTH100
    return b"lookalike query " + hashlib.blake2b(what, digest_size=16).hexdigest().encode()


def _comment(place: Path) -> bytes | None:
    """The comment of a JPEG file, from its header; None where there is no such file."""
    try:
        with Image.open(place, formats=("JPEG",)) as image:
            comment = image.info.get("comment")
            return comment if isinstance(comment, bytes) else None
    except (OSError, SyntaxError):
        return None
