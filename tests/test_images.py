"""Reading pictures: every format, upright and in RGB, nothing a file does gets past `ImageError`, exact geometry."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lookalike import images
from lookalike.bundle import MANIFEST, default_path
from lookalike.errors import ImageError
from lookalike.images import Preprocessing, Region, facts, looks_like_picture, read, read_bytes, shown

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
ORIENTATION = 0x0112


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Red top left, green top right, blue bottom left, yellow bottom right."""
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    for number, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        left, top = (number % 2) * width // 2, (number // 2) * height // 2
        draw.rectangle((left, top, left + width // 2, top + height // 2), fill=colour)
    return picture


def encoded(picture: Image.Image, format: str, **options) -> bytes:
    images._know_heif()
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def centres(picture: Image.Image) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters, in reading order."""
    w, h = picture.size
    return [picture.getpixel((x, y)) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


def assert_quarters(picture: Image.Image, tolerance: int = 6) -> None:
    assert picture.mode == "RGB"
    assert np.abs(np.subtract(centres(picture), (RED, GREEN, BLUE, YELLOW))).max() <= tolerance


def photo() -> Image.Image:
    """A real photograph, 512×512, from scikit-image's wheel."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image, whose wheel holds the photograph, is not installed")
    return Image.open(Path(spec.origin).parent / "data" / "astronaut.png").convert("RGB")


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def stored_for(value: int, upright: Image.Image) -> Image.Image:
    """The picture as a camera stores it that notes orientation `value`: the inverse of what a reader must do."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(value)
    return upright if inverse is None else upright.transpose(inverse)


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FILES = {
    "JPEG baseline": ("JPEG", {"quality": 95, "subsampling": 0}),
    "JPEG progressive": ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
    "PNG": ("PNG", {}),
    "WebP lossy": ("WEBP", {"quality": 95}),
    "WebP lossless": ("WEBP", {"lossless": True}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "DIB": ("DIB", {}),
    "TIFF": ("TIFF", {}),
    "TIFF deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF JPEG": ("TIFF", {"compression": "jpeg", "quality": 95}),
    "AVIF": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    "HEIC": ("HEIF", {"quality": 95}),
    "PPM": ("PPM", {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_format_reads(kind, tmp_path):
    """A picture in each supported format reads as RGB with its colours in place, from bytes, a str and a Path."""
    format, options = FILES[kind]
    data = encoded(quarters(), format, **options)
    path = tmp_path / "picture.bin"
    path.write_bytes(data)
    for picture in (data, path, str(path)):
        result = read(picture)
        assert result.size == (64, 48)
        assert_quarters(result, tolerance=20)
    assert facts(data) == {"width": 64, "height": 48, "format": format}


def test_pgm_and_pbm():
    """Grey and black-and-white netpbm files read, in text form too."""
    assert read(b"P5 2 1 255\n\x00\x80").getpixel((1, 0)) == (128, 128, 128)
    assert read(b"P2\n2 1\n255\n0 128\n").getpixel((1, 0)) == (128, 128, 128)
    assert read(b"P1\n2 1\n1 0\n").getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "HEIF", "AVIF"])
def test_first_frame_of_several(format):
    """Of an animation or a file of several pages the first picture is read."""
    data = encoded(quarters(), format, save_all=True, append_images=[Image.new("RGB", (64, 48), "black")])
    assert_quarters(read(data), tolerance=20)


def test_formats_outside_the_list_are_refused():
    """A format whose decoder is not trusted (EPS would run Ghostscript) is no picture, whatever the name says."""
    with pytest.raises(ImageError, match="not a picture in a known format"):
        read(encoded(quarters(), "EPS"), name="x.jpg")


# ── orientation ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(format, value):
    """A picture with any of the eight EXIF orientations comes out upright, from bytes and from an opened image."""
    data = encoded(stored_for(value, quarters()), format, exif=orientation(value), quality=95)
    for picture in (data, Image.open(io.BytesIO(data))):
        result = read(picture)
        assert result.size == (64, 48)
        assert_quarters(result, tolerance=20)


@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_survives_draft_decoding(value):
    """A large turned JPEG decoded at a reduced scale is upright, and not smaller than asked on either side."""
    data = encoded(stored_for(value, quarters(1600, 1200)), "JPEG", exif=orientation(value))
    result = read(data, at_least=(100, 100))
    assert result.width < 800
    assert min(result.size) >= 100
    assert result.width / result.height == pytest.approx(4 / 3, rel=0.02)
    assert_quarters(result)


@pytest.mark.parametrize("value", range(1, 9))
def test_heic_is_turned_once(value):
    """A HEIC that says its orientation twice, in the container and in EXIF, is turned once, opened by us or not."""
    data = encoded(stored_for(value, quarters()), "HEIF", exif=orientation(value).tobytes(), quality=95)
    for picture in (data, Image.open(io.BytesIO(data))):
        result = read(picture)
        assert result.size == (64, 48)
        assert_quarters(result, tolerance=20)


def test_heic_exif_alone_does_not_turn():
    """The container decides how a HEIC lies: an EXIF note that contradicts it is not obeyed (ISO/IEC 23008-12)."""
    data = bytearray(encoded(quarters(), "HEIF", exif=orientation(1).tobytes(), quality=95))
    note = struct.pack(">HHLHH", ORIENTATION, 3, 1, 1, 0)
    at = data.index(note)
    data[at : at + 12] = struct.pack(">HHLHH", ORIENTATION, 3, 1, 6, 0)
    for picture in (bytes(data), Image.open(io.BytesIO(data))):
        result = read(picture)
        assert result.size == (64, 48)
        assert_quarters(result, tolerance=20)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "HEIF"])
@pytest.mark.parametrize(
    "note",
    [
        b"garbage!",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03\0\0\0\x01\xff\xff",
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHL4s", ORIENTATION, 2, 4, b"6\0\0\0") + bytes(4),
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHLL", ORIENTATION, 4, 1, 0xFFFFFFFF) + bytes(4),
    ],
    ids=["no header", "short", "offset", "cut", "text", "value"],
)
def test_damaged_exif_does_not_cost_the_picture(format, note):
    """A picture whose EXIF note is damaged reads as it is stored."""
    assert_quarters(read(encoded(quarters(), format, exif=b"Exif\0\0" + note, quality=95)), tolerance=20)


# ── modes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ycck_jpeg(inks: tuple[int, int, int, int]) -> bytes:
    """A JPEG as Photoshop writes CMYK: Adobe transform 2 (YCCK), samples inverted.

    Pillow writes the four channels as they are (inverted, transform 0), so luma and chroma go in, and the note is set.
    """
    *cmy, black = inks
    y, cb, cr = Image.new("RGB", (1, 1), tuple(cmy)).convert("YCbCr").getpixel((0, 0))
    channels = (255 - y, 255 - cb, 255 - cr, black)
    data = bytearray(encoded(Image.new("CMYK", (16, 16), channels), "JPEG", quality=100))
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    data[at + 11] = 2
    return bytes(data)


def test_cmyk_jpeg():
    """CMYK JPEGs read with the right colours: inverted as Adobe writes them, plain, and as YCCK."""
    plain = encoded(Image.new("CMYK", (16, 16), (0, 200, 200, 0)), "JPEG", quality=100)
    for data in (plain, ycck_jpeg((0, 200, 200, 0))):
        assert np.abs(np.subtract(read(data).getpixel((8, 8)), (255, 55, 55))).max() <= 4


def test_ycck_differs_from_cmyk():
    """The YCCK file of these tests is one: read without its transform note it has other colours."""
    data = bytearray(ycck_jpeg((0, 200, 200, 0)))
    data[data.index(b"Adobe") + 11] = 0
    assert np.abs(np.subtract(read(bytes(data)).getpixel((8, 8)), (255, 55, 55))).max() > 50


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey(format):
    """16-bit grey is divided by 257, however dark the picture: 0, 0x8080 and 0xFFFF become 0, 128 and 255."""
    values = np.array([[0, 0x8080, 0xFFFF]], np.uint16)
    for columns in (slice(0, 3), slice(0, 2)):
        result = np.asarray(read(encoded(Image.fromarray(values[:, columns]), format)))
        assert result[0, :, 0].tolist() == [0, 128, 255][columns]


def test_big_endian_sixteen_bit():
    """A big-endian 16-bit TIFF reads like a little-endian one."""
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 3, 98), (278, 3, 1), (279, 3, 4)]
    fields = b"".join(struct.pack(">HHLHH", tag, kind, 1, value, 0) for tag, kind, value in tags)
    data = b"MM\0*" + struct.pack(">LH", 8, len(tags)) + fields
    data = data.ljust(98, b"\0") if len(data) <= 98 else data
    header = len(b"MM\0*") + 4 + 2 + len(fields)
    data = data.replace(struct.pack(">HHLHH", 273, 3, 1, 98, 0), struct.pack(">HHLHH", 273, 3, 1, header + 4, 0))
    data = data[:header] + bytes(4) + struct.pack(">HH", 0x8080, 0xFFFF)
    assert np.asarray(read(data))[0, :, 0].tolist() == [128, 255]


def test_thirty_two_bit_and_float_tiff():
    """32-bit integers beyond 16 bits are stretched, and floats are taken as 0 … 1 or else stretched."""
    wide = np.array([[-100_000, 0, 100_000]], np.int32)
    assert np.asarray(read(encoded(Image.fromarray(wide), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    unit = np.array([[0.0, 0.25, 0.5]], np.float32)
    assert np.asarray(read(encoded(Image.fromarray(unit), "TIFF")))[0, :, 0].tolist() == [0, 64, 128]
    heights = np.array([[-50.0, 0.0, 50.0]], np.float32)
    assert np.asarray(read(encoded(Image.fromarray(heights), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


def test_float_without_numbers():
    """In a float picture, not-a-number counts as darkest, infinity as an extreme; nothing finite is refused."""
    mixed = np.array([[np.nan, np.inf, -np.inf, 2.0, 4.0]], np.float32)
    assert np.asarray(read(encoded(Image.fromarray(mixed), "TIFF")))[0, :, 0].tolist() == [0, 255, 0, 0, 255]
    with pytest.raises(ImageError, match="no finite pixel"):
        read(encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


def test_one_bit_and_palette():
    """Black-and-white and palette pictures keep their colours."""
    assert_quarters(read(encoded(quarters().convert("P", palette=Image.Palette.ADAPTIVE), "PNG")))
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert np.asarray(read(encoded(bits, "PNG")))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0)), ("La", (0, 0)), ("RGBa", (0, 0, 0, 0)), ("PA", 0)]
)
def test_transparent_is_white(mode, colour):
    """What is fully transparent becomes white, whatever colour hides behind it."""
    assert read(Image.new(mode, (4, 4), colour)).getpixel((2, 2)) == (255, 255, 255)


def test_half_transparent_is_blended():
    """Half transparent black over white is grey."""
    assert np.abs(np.subtract(read(Image.new("RGBA", (4, 4), (0, 0, 0, 128))).getpixel((2, 2)), 127)).max() <= 1


@pytest.mark.parametrize(("mode", "key"), [("RGB", (10, 20, 30)), ("L", 40), ("1", 0), ("P", 0)])
def test_colour_key_transparency(mode, key):
    """A PNG or GIF that names one colour transparent shows white there."""
    picture = Image.new(mode, (4, 4), key)
    assert read(encoded(picture, "PNG", transparency=key)).getpixel((2, 2)) == (255, 255, 255)
    if mode == "P":
        assert read(encoded(picture, "GIF", transparency=0)).getpixel((2, 2)) == (255, 255, 255)


# ── size: draft decoding and shrinking ───────────────────────────────────────────────────────────────────────────────


def test_draft_decoding_is_used_and_close():
    """A large JPEG is decoded small, but twice as large as wanted, and resized it is what the full decode gives."""
    picture = photo().resize((2048, 1536), Image.Resampling.BICUBIC)
    data = encoded(picture, "JPEG", quality=92)
    assert read(data, at_least=(128, 128)).size == (512, 384)
    assert read(data).size == (2048, 1536)
    assert read(data, at_least=(1500, 1500)).size == (2048, 1536)
    preprocessing = Preprocessing(size=(128, 128))
    full = np.asarray(preprocessing.fitted(read(data)), dtype=np.float32)
    drafted = preprocessing.load(data).astype(np.float32)
    assert np.abs(full - drafted).mean() < 1 / 3


@pytest.mark.skipif(not (default_path() / MANIFEST).is_file(), reason="the default bundle has not been made")
def test_draft_decoding_gives_the_same_vectors():
    """Vectors of photographs decoded at a reduced scale have a cosine above 0.99 with those of the full decode."""
    from lookalike import Encoder

    encoder = Encoder.default(precision="fp32")
    picture = photo().resize((2048, 1536), Image.Resampling.BICUBIC)
    views = [photo(), picture, picture.crop((300, 100, 1500, 1300)), picture.crop((0, 700, 1600, 1500))]
    files = [encoded(view, "JPEG", quality=92) for view in views]
    preprocessing = encoder.bundle.preprocessing
    full = list(encoder.stream(files, lambda data: np.asarray(preprocessing.fitted(read(data)))))
    cosines = (encoder.images(files, strict=True) * np.stack([one.vector for one in full])).sum(axis=1)
    assert cosines.min() > 0.99


def shared_photos(count: int) -> list[bytes]:
    """Photographs of the development data, where it lies beside the repository or where LOOKALIKE_DATA says."""
    home = os.environ.get("LOOKALIKE_DATA") or Path(__file__).parents[2] / "shared" / "data"
    archive = Path(home) / "flickr8k.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive.name}: set LOOKALIKE_DATA to the folder that holds it")
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.lower().endswith(".jpg"))
        return [opened.read(name) for name in names[:: max(1, len(names) // count)][:count]]


def test_draft_decoding_of_many_photographs():
    """Over many photographs, enlarged, the pixels of reduced decoding stay within half a step of the full decode."""
    preprocessing = Preprocessing(size=(128, 128))
    for photograph in shared_photos(20):
        data = encoded(Image.open(io.BytesIO(photograph)).convert("RGB").resize((1024, 768)), "JPEG", quality=90)
        full = np.asarray(preprocessing.fitted(read(data)), dtype=np.float32)
        assert np.abs(full - preprocessing.load(data).astype(np.float32)).mean() < 0.5


def test_large_pictures_without_draft_are_shrunk_early():
    """A large PNG is shrunk at once, to no less than twice the wanted size, and keeps its picture."""
    result = read(encoded(quarters(1000, 800), "PNG"), at_least=(100, 100))
    assert 200 <= min(result.size) < 400
    assert_quarters(result)


# ── what is not a picture ────────────────────────────────────────────────────────────────────────────────────────────


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png_claiming(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def tiff_claiming(side: int) -> bytes:
    tags = ((256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, side), (279, side * side))
    fields = b"".join(struct.pack("<HHLL", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + fields + bytes(4)


def test_decompression_bombs():
    """Files of a few bytes that claim thousands of millions of pixels are refused before anything is decoded."""
    gif = bytearray(encoded(quarters(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(encoded(quarters(), "BMP"))
    bmp[18:26] = struct.pack("<ll", 60000, 60000)
    ppm = b"P6 60000 60000 255\n" + bytes(100)
    for data in (png_claiming(60000, 60000), bytes(gif), tiff_claiming(60000), bytes(bmp), ppm):
        began = time.monotonic()
        with pytest.raises(ImageError, match="so many pixels"):
            read(data)
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_bombs(kind):
    """A compressed note that unfolds to 64 MB is never unfolded whole: the file is refused or the note left out."""
    head = b"note\0\0" if kind != b"iTXt" else b"note\0\x01\0\0\0"
    packed = zlib.compress(bytes(64 << 20), 9)
    data = png_claiming(4, 4, *[chunk(kind, head + packed)] * 3)
    try:
        assert read(data).size == (4, 4)
    except ImageError as error:
        assert "too large" in error.reason


@pytest.mark.parametrize("kind", FILES)
def test_truncated(kind):
    """A file of any format cut off anywhere reads or is refused with a reason; cut in the middle, it never crashes."""
    format, options = FILES[kind]
    data = encoded(quarters(96, 96), format, **options)
    for cut in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, len(data) // 4, len(data) // 2, len(data) - 3, len(data) - 1):
        try:
            read(data[:cut])
        except ImageError as error:
            assert error.path == "<bytes>"
            assert error.reason
    with pytest.raises(ImageError):
        read(data[: len(data) // 4])


def reason_of(path) -> str:
    with pytest.raises(ImageError) as caught:
        read(path)
    assert caught.value.path == shown(path)
    assert str(caught.value) == f"cannot read picture {caught.value.path}: {caught.value.reason}"
    return caught.value.reason


def test_things_that_are_no_pictures(tmp_path):
    """Missing, empty, folder, text, broken link: each an ImageError with the path and a reason in words."""
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture\n" * 100)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    assert reason_of(tmp_path / "missing.jpg") == "no such file"
    assert reason_of(tmp_path / "folder.jpg") == "a folder, not a file"
    assert reason_of(tmp_path / "empty.jpg") == "empty file"
    assert reason_of(tmp_path / "text.jpg") == "not a picture in a known format"
    assert reason_of(tmp_path / "broken.jpg") == "broken link"
    assert "symbolic links" in reason_of(tmp_path / "circle.jpg")
    assert reason_of("") == "no such file"
    assert "null" in reason_of("nul\0byte.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_do_not_block(tmp_path):
    """A named pipe nobody writes to, and a device without end, are refused at once."""
    os.mkfifo(tmp_path / "pipe.jpg")
    began = time.monotonic()
    assert reason_of(tmp_path / "pipe.jpg") == "not a regular file"
    if Path("/dev/zero").exists():
        assert reason_of("/dev/zero") == "not a regular file"
    assert time.monotonic() - began < 1


def test_unreadable_file(tmp_path, monkeypatch):
    """A file without permission to read it is refused with the system's reason."""
    path = tmp_path / "secret.jpg"
    path.write_bytes(encoded(quarters(), "JPEG"))
    path.chmod(0)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    if os.access(path, os.R_OK):  # the superuser reads everything
        monkeypatch.setattr(os, "open", refuse)
    assert reason_of(path) == "Permission denied"


def test_too_many_bytes(tmp_path, monkeypatch):
    """A file larger than the limit is refused by its size, unread."""
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    (tmp_path / "large.jpg").write_bytes(bytes(1001))
    assert "more than" in reason_of(tmp_path / "large.jpg")
    (tmp_path / "largest.jpg").write_bytes(bytes(1000))
    assert len(read_bytes(tmp_path / "largest.jpg")) == 1000


def test_out_of_memory_is_about_the_picture(monkeypatch):
    """A decoder that runs out of memory costs that picture, not the run."""

    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(images.Image, "open", exhausted)
    with pytest.raises(ImageError, match="not enough memory"):
        read(b"anything")


def test_no_pixels():
    """A picture of width 0 is refused."""
    with pytest.raises(ImageError, match="<picture>: no pixels"):
        read(Image.new("RGB", (0, 5)))


def test_name_in_errors():
    """Errors call the picture what the caller calls it."""
    with pytest.raises(ImageError) as caught:
        read(b"nothing", name="upload 7")
    assert caught.value.path == "upload 7"


def test_shown_is_one_valid_line():
    """Control characters and undecodable bytes are shown as escapes; every other letter as it is."""
    assert shown(os.fsdecode(b"caf\xe9\n.jpg")) == "caf\\xe9\\n.jpg"
    assert shown("日本 🎉 ü '\"%.jpg") == "日本 🎉 ü '\"%.jpg"
    assert "\u202e" not in shown("a\u202egpj.exe")


def test_first_bytes_announce_a_picture():
    """Every format but netpbm is recognised by its first 16 bytes, and plain text is not."""
    for kind, (format, options) in FILES.items():
        announced = looks_like_picture(encoded(quarters(), format, **options)[:16])
        assert announced == (kind not in ("PPM", "DIB")), kind
    assert not looks_like_picture(b"BM is not enough")
    assert not looks_like_picture(b"")
    assert not looks_like_picture(b"GIF88a")


def test_facts_of_anything():
    """`facts` of what is no picture is empty, and never raises."""
    for data in (b"", b"text", png_claiming(60000, 60000), encoded(quarters(), "JPEG")[:20]):
        assert facts(data) == {}


# ── opened pictures and threads ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "F", "CMYK"])
def test_an_opened_picture_is_left_as_it_was(mode):
    """Reading an opened image changes neither it nor, afterwards, does changing the result."""
    picture = Image.new(mode, (600, 500))
    before = (picture.mode, picture.size, picture.tobytes(), dict(picture.info))
    result = read(picture, at_least=(64, 64))
    result.paste((9, 9, 9), (0, 0, *result.size))
    whole = read(picture)
    whole.paste((9, 9, 9), (0, 0, *whole.size))
    assert (picture.mode, picture.size, picture.tobytes(), dict(picture.info)) == before


def test_an_opened_file_stays_full_size():
    """Reading an opened JPEG small does not leave it decoded at a reduced scale for its owner."""
    with Image.open(io.BytesIO(encoded(quarters(1600, 1200), "JPEG"))) as picture:
        read(picture, at_least=(64, 64))
        assert picture.size == (1600, 1200)
        assert picture.getexif() == {}


THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from lookalike.images import read
files = sorted(Path(sys.argv[1]).iterdir())
start = Barrier(len(files))
def work(path):
    start.wait()
    return read(path, (32, 32)).size
with ThreadPoolExecutor(len(files)) as pool:
    print(list(pool.map(work, files)))
"""


def test_the_first_pictures_may_be_read_by_many_threads_at_once(tmp_path):
    """In a fresh process, threads that all read their first picture at the same moment all succeed."""
    for number, (kind, (format, options)) in enumerate(sorted(FILES.items()) * 2):
        (tmp_path / f"{number:02} {kind}").write_bytes(encoded(quarters(), format, **options))
    count = len(list(tmp_path.iterdir()))
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", THREADS, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.replace("(", "[").replace(")", "]")) == [[64, 48]] * count


def test_many_threads_read_the_same_pixels():
    """Eight threads reading all formats over and over get what one thread gets."""
    files = [encoded(photo().resize((200, 150)), format, **options) for format, options in FILES.values()]
    preprocessing = Preprocessing(size=(32, 32))
    alone = [preprocessing.load(data).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: preprocessing.load(data).tobytes(), files * 8))
    assert together == alone * 8


# ── preprocessing ────────────────────────────────────────────────────────────────────────────────────────────────────


def stripes(width: int, height: int) -> Image.Image:
    """Red left tenth, blue right tenth, grey between: what a centre crop of a wide picture must lose."""
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    picture.paste(RED, (0, 0, width // 10, height))
    picture.paste(BLUE, (width - width // 10, 0, width, height))
    return picture


def test_squash_keeps_everything():
    """Squash scales both sides: the quarters stay quarters, whatever the shape."""
    result = Preprocessing(size=(40, 60)).fitted(quarters(300, 90))
    assert result.size == (60, 40)
    assert_quarters(result)


def test_crop_keeps_the_centre():
    """Crop of a picture twice as wide as high loses both ends, and of one twice as high the top and bottom."""
    wide = np.asarray(Preprocessing(size=(50, 50), fit="crop").fitted(stripes(200, 100)))
    assert (wide == 128).all()
    tall = stripes(200, 100).transpose(Image.Transpose.ROTATE_90)
    assert (np.asarray(Preprocessing(size=(50, 50), fit="crop").fitted(tall)) == 128).all()


def test_crop_ratio_keeps_that_share():
    """A crop ratio of 0.5 keeps the middle half of each side of a square picture."""
    picture = Image.new("RGB", (400, 400), RED)
    picture.paste(GREEN, (110, 110, 290, 290))
    half = Preprocessing(size=(100, 100), fit="crop", crop_ratio=0.5)
    assert half.decode_size == (200, 200)
    result = np.asarray(half.fitted(picture))
    assert result.shape == (100, 100, 3)
    assert (result[10:90, 10:90] == GREEN).all()
    assert (result[0] == RED).all()


def test_pad_fills_with_white():
    """Pad keeps the whole picture in proportion, centred between white bars."""
    result = np.asarray(Preprocessing(size=(100, 100), fit="pad").fitted(Image.new("RGB", (200, 100), BLUE)))
    assert (result[:25] == 255).all()
    assert (result[75:] == 255).all()
    assert (result[26:74] == BLUE).all()


def spot(box, size=(200, 100), colour=BLUE) -> Image.Image:
    """A rectangle on white."""
    picture = Image.new("RGB", size, "white")
    picture.paste(colour, box)
    return picture


def test_trim_shows_what_is_not_white_as_large_as_it_can_be():
    """A square of 60 in a corner fills 60 / 72 of the frame, centred, whatever the picture's shape."""
    result = np.asarray(Preprocessing(size=(120, 120), fit="trim").fitted(spot((130, 0, 190, 60))))
    assert (result[12:108, 12:108] == BLUE).all()
    assert (result[:8] == 255).all() and (result[-8:] == 255).all()
    assert (result[:, :8] == 255).all() and (result[:, -8:] == 255).all()


def test_trim_does_not_care_where_and_how_large_something_is_drawn():
    """The same rectangle, moved and twice as large, gives the same pixels."""
    trim = Preprocessing(size=(64, 64), fit="trim")
    one, two = trim.fitted(spot((5, 10, 57, 49))), trim.fitted(spot((90, 15, 194, 93)))
    assert np.abs(np.asarray(one, float) - np.asarray(two, float)).mean() < 4


def test_trim_keeps_proportions_in_a_frame_that_is_not_square():
    result = np.asarray(Preprocessing(size=(60, 120), fit="trim").fitted(spot((20, 20, 70, 70))))
    rows, columns = np.nonzero((result == BLUE).all(2))
    assert abs(np.ptp(rows) - 49) <= 1 and abs(np.ptp(columns) - 49) <= 1


def test_trim_leaves_a_full_stop_small():
    """What is smaller than a quarter of the picture is not enlarged to fill the frame."""
    result = np.asarray(Preprocessing(size=(120, 120), fit="trim").fitted(spot((50, 50, 55, 55), (100, 100))))
    rows, _ = np.nonzero(result[:, :, 0] < 128)
    assert np.ptp(rows) + 1 == pytest.approx(120 / 1.2 * 5 / 25, abs=2)


def test_trim_of_a_white_picture_and_of_a_full_one():
    """Nothing drawn: white. Nothing white: the whole, in a white frame."""
    trim = Preprocessing(size=(60, 60), fit="trim")
    assert (np.asarray(trim.fitted(Image.new("RGB", (50, 70), "white"))) == 255).all()
    full = np.asarray(trim.fitted(Image.new("RGB", (50, 50), RED)))
    assert (full[6:54, 6:54] == RED).all() and (full[:4] == 255).all()


def test_trim_counts_pale_colours_as_content():
    """A pale yellow is not white: its blue channel tells."""
    result = np.asarray(Preprocessing(size=(60, 60), fit="trim").fitted(spot((0, 0, 50, 50), colour=(255, 255, 200))))
    assert (result[10:50, 10:50] == (255, 255, 200)).all()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad", "trim"])
def test_the_window_is_what_fitted_shows(fit):
    """The middle of the window lands in the middle of the result, and its corners at the corners."""
    x, y = np.meshgrid(np.arange(160), np.arange(80))
    picture = Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=2).astype(np.uint8))
    preprocessing = Preprocessing(size=(100, 100), fit=fit, crop_ratio=0.8)
    left, top, right, bottom = preprocessing.window(picture)
    result = np.asarray(preprocessing.fitted(picture), float)
    for across, down in ((0.5, 0.5), (0.3, 0.4), (0.8, 0.6)):
        there = (left + across * (right - left)) * 160, (top + down * (bottom - top)) * 80
        seen = result[int(down * 100), int(across * 100)]
        assert seen[0] == pytest.approx(there[0], abs=2.5) and seen[1] == pytest.approx(there[1], abs=2.5)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad", "trim"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3000, 7), (64, 48)])
def test_any_shape_gives_the_exact_size(fit, shape):
    """Pictures of any shape, one pixel wide as well, come out in exactly the wanted size."""
    preprocessing = Preprocessing(size=(32, 48), fit=fit, crop_ratio=0.875)
    pixels = preprocessing.load(Image.new("RGB", shape, RED))
    assert pixels.shape == (32, 48, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[16, 24] == RED).all()


def test_interpolations_differ():
    """Each interpolation is another filter: enlarged noise comes out in three ways."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    kinds = ("bilinear", "bicubic", "lanczos")
    assert len({Preprocessing(size=(40, 40), interpolation=kind).fitted(noise).tobytes() for kind in kinds}) == 3


def test_normalise_by_hand():
    """Normalising is (value / 255 - mean) / std per channel, with channels first."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 5, 7, 3), np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    result = Preprocessing(size=(5, 7), mean=mean, std=std).normalise(pixels)
    assert result.shape == (2, 3, 5, 7)
    assert result.dtype == np.float32
    for n, y, x, c in ((0, 0, 0, 0), (1, 4, 6, 2), (0, 2, 3, 1)):
        assert result[n, c, y, x] == pytest.approx((pixels[n, y, x, c] / 255 - mean[c]) / std[c], abs=1e-5)


@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(size=(128, 96)), Preprocessing((8, 8), "crop", 0.5, "lanczos", (0, 0, 0), (1, 1, 1))],
)
def test_document_round_trip(preprocessing):
    """The JSON form leads back to an equal Preprocessing."""
    text = json.dumps(preprocessing.to_document())
    assert Preprocessing.from_document(json.loads(text)) == preprocessing


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": [0, 8]},
        {"size": [8]},
        {"size": [8.5, 8]},
        {"size": [8, 5000]},
        {"size": "88"},
        {"size": 8},
        {"fit": "stretch"},
        {"crop_ratio": 0},
        {"crop_ratio": 1.5},
        {"crop_ratio": "half"},
        {"interpolation": "nearest"},
        {"mean": [0, 0]},
        {"std": [1, 0, 1]},
        {"std": [1, "a", 1]},
        {"colour": "grey"},
    ],
    ids=str,
)
def test_bad_documents(wrong):
    """A document with an impossible, mistyped or unknown value is refused with ValueError or TypeError."""
    with pytest.raises((ValueError, TypeError)):
        Preprocessing.from_document({"size": [8, 8], **wrong})


def test_document_without_size():
    """A document must say the size."""
    with pytest.raises(TypeError):
        Preprocessing.from_document({"fit": "squash"})


# ── regions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_region_is_read_like_the_part_cut_by_hand(photographs):
    """The same pixels, from a path, bytes and an image; upright first; and fit like any picture."""
    whole = read(photographs[0])
    box = (0.25, 0.1, 0.75, 0.6)
    wanted = whole.crop(tuple(round(s * n) for s, n in zip(box, (*whole.size, *whole.size), strict=True)))
    for picture in (photographs[0], photographs[0].read_bytes(), whole):
        assert read(Region(picture, box)).tobytes() == wanted.tobytes()
    fitted = Preprocessing(size=(32, 32)).load(Region(photographs[0], box))
    by_hand = Preprocessing(size=(32, 32)).load(wanted)
    assert np.abs(fitted.astype(int) - by_hand).mean() < 4, "decoded at a reduced scale"


def test_a_small_region_keeps_enough_pixels(tmp_path):
    """A JPEG is reduced for the part, not for the whole."""
    Image.effect_noise((2000, 1500), 60).convert("RGB").save(tmp_path / "a.jpg")
    part = read(Region(tmp_path / "a.jpg", (0.4, 0.4, 0.5, 0.5)), at_least=(64, 64))
    assert min(part.size) >= 64
    assert read(Region(tmp_path / "a.jpg", (0.9999, 0.9999, 1, 1))).size == (1, 1)


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 1), (0.5, 0, 0.4, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.1), (0, float("nan"), 1, 1)]
)
def test_a_region_must_lie_in_the_picture(box):
    with pytest.raises(ValueError, match="shares that rise"):
        Region("a.jpg", box)


def test_an_unreadable_region_names_its_file(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        read(Region(tmp_path / "gone.jpg", (0, 0, 1, 1)))
