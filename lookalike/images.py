"""Read a picture safely, and bring it to the size a network wants: one preprocessing, used to train and to serve.

`read` never trusts a file: everything a damaged, hostile or unusual one can do ends as `ImageError` with path and
reason. `Preprocessing` is plain data (it lives in the bundle's manifest), so both sides compute the same pixels.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import (  # the plugins by name: Pillow's own loading of all of them, at the first picture, is not thread-safe
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from lookalike.errors import ImageError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a picture, which is a picture itself: what somebody marked, or one of several views to learn from.

    Attributes:
        picture: the whole: a path, the bytes of a file, or an opened image.
        box: (left, top, right, bottom) as shares of its width and height, upright, from 0 to 1.
    """

    picture: str | os.PathLike[str] | bytes | Image.Image
    box: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"box must be (left, top, right, bottom), shares that rise from 0 to 1, got {self.box}")

    def cut(self, image: Image.Image) -> Image.Image:
        """That part of the whole, at least a pixel wide and high."""
        left, top, right, bottom = self.box
        x, y = min(round(left * image.width), image.width - 1), min(round(top * image.height), image.height - 1)
        return image.crop((x, y, max(x + 1, round(right * image.width)), max(y + 1, round(bottom * image.height))))

    def needed(self, at_least: tuple[int, int] | None) -> tuple[int, int] | None:
        """What the whole must be reduced to at least, so that the part is."""
        if at_least is None:
            return None
        left, top, right, bottom = self.box
        return math.ceil(at_least[0] / (bottom - top)), math.ceil(at_least[1] / (right - left))


Picture = str | os.PathLike[str] | bytes | Image.Image | Region

__all__ = [
    "EXTENSIONS",
    "MAX_BYTES",
    "NEARLY_WHITE",
    "Fit",
    "Picture",
    "Pixels",
    "Preprocessing",
    "Region",
    "facts",
    "looks_like_picture",
    "read",
    "read_bytes",
    "shown",
]

# Only formats whose decoders are worth trusting with a stranger's file: Pillow knows more (EPS runs Ghostscript).
# Named by the decoder that opens them: the JPEG one opens MPO, too.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "PPM")
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".avif", ".heic", ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm"}
)
MAX_BYTES = 1 << 29  # half a gigabyte of file; larger ones are not photographs
Fit = Literal["squash", "crop", "pad", "trim"]
# Of "trim": a value from here on is white in every channel; the window's side over that of what is not white; and the
# least side of the latter, as a share of the picture's.
NEARLY_WHITE, _TRIM_MARGIN, _TRIM_LEAST = 224, 1.2, 0.25
_INTERPOLATION = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_PLUGINS = (  # imported for what they register
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A JPEG is decoded at the smallest DCT scale that still has this many pixels per wanted pixel (see DECISIONS.md).
_DRAFT_MARGIN = 2.0


def shown(path: str | os.PathLike[str]) -> str:
    r"""A path as one line of valid text: control characters and undecodable bytes as escapes.

    >>> shown("a\nb.jpg")
    'a\\nb.jpg'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def looks_like_picture(head: bytes) -> bool:
    """Whether the first 16 bytes of a file announce one of the formats read here."""
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"))
    )


def read(picture: Picture, at_least: tuple[int, int] | None = None, *, name: str | None = None) -> Image.Image:
    """Read a picture as an upright RGB image; the first frame of an animation; transparency over white.

    Args:
        picture: a path, the bytes of a file, an opened `PIL.Image.Image` (which is left as it is), or a `Region`.
        at_least: (height, width) in pixels the caller will reduce the picture to. A larger JPEG is then decoded at a
            reduced scale, up to five times faster; its sides stay at least twice as long.
        name: what errors call the picture; by default its path.

    Returns:
        A loaded image of mode "RGB".

    Raises:
        ImageError: missing, unreadable, not a regular file, not a picture, truncated, or too large to decode safely.
    """
    if isinstance(picture, Region):
        return picture.cut(read(picture.picture, picture.needed(at_least), name=name))
    if isinstance(picture, Image.Image):
        ready = _guarded(name or "<picture>", lambda: _rgb(picture, at_least))
        return picture.copy() if ready is picture else ready
    name = name or ("<bytes>" if isinstance(picture, bytes) else shown(picture))
    data = picture if isinstance(picture, bytes) else read_bytes(picture)
    return _guarded(name, lambda: _decode(io.BytesIO(data), at_least))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole content of a regular file of at most `MAX_BYTES`.

    Raises:
        ImageError: missing, not a regular file (a pipe would block for ever), empty, too large, or not permitted.
    """
    name = shown(path)
    try:
        # Opened without blocking and then looked at, so that no pipe can slip in between the look and the reading.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(name, "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
            if status.st_size > MAX_BYTES:
                raise ImageError(name, f"{status.st_size / 1e6:.0f} MB is more than the {MAX_BYTES / 1e6:.0f} MB read")
            data = file.read(status.st_size)  # `read(MAX_BYTES)` would ask for that much memory each time
    except IsADirectoryError as error:
        raise ImageError(name, "a folder, not a file") from error
    except FileNotFoundError as error:
        raise ImageError(name, "broken link" if Path(path).is_symlink() else "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise ImageError(name, _reason(error)) from error
    if not data:
        raise ImageError(name, "empty file")
    return data


def facts(data: bytes) -> dict[str, Any]:
    """Width and height in pixels as its format's header tells them, perhaps before a quarter-turn, and the format.

    An empty dict where the bytes are no picture: `read` is the one that says why.
    """
    _know_heif()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return {"width": image.width, "height": image.height, "format": str(image.format)}
    except Exception:
        return {}


def _guarded(name: str, decode: Callable[[], Image.Image]) -> Image.Image:
    """Run a decoder; whatever it raises about the picture becomes ImageError."""
    try:
        return decode()
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(name, "not enough memory to decode it") from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, "so many pixels that it looks like a decompression bomb") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "not a picture in a known format") from error
    # Decoders meet damage with nearly any exception (struct.error, SyntaxError, IndexError, KeyError, EOFError, …).
    except Exception as error:
        raise ImageError(name, _reason(error)) from error


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


@cache
def _know_heif() -> None:
    """Register the HEIC decoder with Pillow once, when the first picture is read."""
    import pillow_heif

    pillow_heif.register_heif_opener()


def _decode(stream: BinaryIO, at_least: tuple[int, int] | None) -> Image.Image:
    _know_heif()
    with Image.open(stream, formats=FORMATS) as image:
        if at_least is not None:
            _draft(image, at_least)
        return _rgb(image, at_least)


def _draft(image: Image.Image, at_least: tuple[int, int]) -> None:
    """Ask a JPEG decoder for a reduced scale. Both sides must stay large enough for the *longer* wanted side.

    (The picture may still be turned by a quarter, and a crop keeps only the middle.)
    """
    wanted = math.ceil(max(at_least) * _DRAFT_MARGIN)
    image.draft("RGB", (wanted, wanted))


def _rgb(image: Image.Image, at_least: tuple[int, int] | None) -> Image.Image:
    if image.width < 1 or image.height < 1:
        raise ValueError("no pixels")
    image.load()
    opaque = "transparency" not in image.info
    if at_least is not None and opaque and image.mode in ("RGB", "L") and min(image.size) > 4 * max(at_least):
        # What cannot be decoded at a reduced scale is shrunk at once, before modes and orientation copy it again.
        image = image.reduce(min(image.size) // (2 * max(at_least)))
    image = _upright(image)
    if image.mode == "RGB" and opaque:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or not opaque:
        image = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF note says. A damaged note costs the orientation, not the picture.

    (A HEIC says in its container how it lies: its decoder has turned it, and blanked the note.)
    """
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating grey to 8 bits. Sixteen bits are divided by 257; other ranges are stretched."""
    grey = np.asarray(image, dtype=np.float64)
    finite = grey[np.isfinite(grey)]
    if not finite.size:
        raise ValueError("no finite pixel")
    low, high = float(finite.min()), float(finite.max())
    grey = np.nan_to_num(grey, nan=low, posinf=high, neginf=low)
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return Image.fromarray(np.clip((grey - low) / ((high - low) or 1.0) * 255, 0, 255).round().astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a picture becomes the pixels a network was trained on. Pure data; the same code trains and serves.

    Attributes:
        size: (height, width) of the result in pixels.
        fit: "squash" scales both sides independently; "crop" scales the short side to size / `crop_ratio` and keeps
            the centre; "pad" scales the long side and fills with white; "trim" looks at what is not white alone, with
            a little white around it: drawings and cut-out articles are then shown as large as they can be.
        crop_ratio: share of the scaled picture that "crop" keeps, in (0, 1]; 1.0 keeps the whole short side.
        interpolation: "bilinear", "bicubic" or "lanczos", as Pillow filters (they average when they reduce).
        mean: per channel, of values in [0, 1], subtracted by `normalise`.
        std: per channel, of values in [0, 1], divided by.
    """

    size: tuple[int, int]
    fit: Fit = "squash"
    crop_ratio: float = 1.0
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(isinstance(side, int) and 0 < side <= 4096 for side in self.size):
            raise ValueError(f"size must be (height, width) between 1 and 4096 pixels, got {self.size}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit must be squash, crop, pad or trim, got {self.fit!r}")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"crop_ratio must be in (0, 1], got {self.crop_ratio}")
        if self.interpolation not in _INTERPOLATION:
            raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATION)}, got {self.interpolation!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"mean and std must be three numbers, std positive; got {self.mean}, {self.std}")

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Preprocessing:
        """From its JSON form. Raises ValueError or TypeError on unknown, missing or impossible values."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
        }
        return cls(**values)

    def to_document(self) -> dict[str, Any]:
        """Its JSON form."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def decode_size(self) -> tuple[int, int]:
        """(height, width) a picture is reduced to before any crop: what `read(at_least=…)` should know."""
        height, width = self.size
        if self.fit == "trim":  # half of the picture may be white
            return 2 * height, 2 * width
        if self.fit != "crop":
            return height, width
        return math.ceil(height / self.crop_ratio), math.ceil(width / self.crop_ratio)

    def load(self, picture: Picture, *, name: str | None = None) -> Pixels:
        """Read a picture and fit it: (height, width, 3) uint8. Raises ImageError; `name` as for `read`."""
        return np.asarray(self.fitted(read(picture, self.decode_size, name=name)))

    def fitted(self, image: Image.Image) -> Image.Image:
        """An RGB image of exactly `size`."""
        height, width = self.size
        filter_ = _INTERPOLATION[self.interpolation]
        if self.fit == "squash":
            return image.resize((width, height), filter_)
        if self.fit == "pad":
            return _padded(image, width, height, filter_)
        if self.fit == "trim":
            return _cut(image, self._trimmed(image), (width, height), filter_)
        tall, wide = self.decode_size
        whole = ImageOps.fit(image, (wide, tall), filter_)
        left, top = (wide - width) // 2, (tall - height) // 2
        return whole.crop((left, top, left + width, top + height))

    def window(self, image: Image.Image) -> tuple[float, float, float, float]:
        """What of a picture `fitted` shows: (left, top, right, bottom) as shares of its sides; beyond 0 and 1 is white.

        Right within the rounding to whole pixels.
        """
        tall, wide = self.size
        if self.fit == "squash":
            return 0.0, 0.0, 1.0, 1.0
        if self.fit == "trim":
            left, top, right, bottom = self._trimmed(image)
            return left / image.width, top / image.height, right / image.width, bottom / image.height
        if self.fit == "pad":
            scale = min(wide / image.width, tall / image.height)
        else:
            before = self.decode_size
            scale = max(before[1] / image.width, before[0] / image.height)
        across, down = wide / (image.width * scale), tall / (image.height * scale)
        return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2

    def _trimmed(self, image: Image.Image) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels, of the proportions of `size`, around all that is not white."""
        tall, wide = self.size
        content = image.point([255 * (value < NEARLY_WHITE) for value in range(256)] * len(image.getbands())).getbbox()
        left, top, right, bottom = content or (0, 0, image.width, image.height)
        # A full stop is not to fill the frame: it would look like a wheel.
        least = _TRIM_LEAST * max(image.size)
        unit = _TRIM_MARGIN * max((right - left) / wide, (bottom - top) / tall, least / max(wide, tall))
        across, down = (left + right) / 2, (top + bottom) / 2
        return across - unit * wide / 2, down - unit * tall / 2, across + unit * wide / 2, down + unit * tall / 2

    def normalise(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """(n, height, width, 3) uint8 → (n, 3, height, width) float32, as the network's graph takes it.

        Serving does the same inside the compiled graph; this is its definition, for training and for tests.
        """
        scaled = (pixels.astype(np.float32) / 255 - np.asarray(self.mean, np.float32)) / np.asarray(
            self.std, np.float32
        )
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)


def _cut(
    image: Image.Image,
    window: tuple[float, float, float, float],
    size: tuple[int, int],
    filter_: Image.Resampling,
) -> Image.Image:
    """The window, in pixels of the picture, brought to `size`; what lies outside the picture is white."""
    (left, top, right, bottom), (width, height) = window, size
    inside = max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height))
    x = [round((edge - left) / (right - left) * width) for edge in inside[::2]]
    y = [round((edge - top) / (bottom - top) * height) for edge in inside[1::2]]
    # A line so thin that it would vanish keeps one pixel.
    x[0], y[0] = min(x[0], width - 1), min(y[0], height - 1)
    inner = image.resize((max(1, x[1] - x[0]), max(1, y[1] - y[0])), filter_, box=inside)
    whole = Image.new("RGB", size, "white")
    whole.paste(inner, (x[0], y[0]))
    return whole


def _padded(image: Image.Image, width: int, height: int, filter_: Image.Resampling) -> Image.Image:
    """The whole picture, centred on white; one so thin that its short side rounds to 0 keeps a line of one pixel."""
    scale = min(width / image.width, height / image.height)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), filter_)
    whole = Image.new("RGB", (width, height), "white")
    whole.paste(inner, (round((width - inner.width) / 2), round((height - inner.height) / 2)))
    return whole
