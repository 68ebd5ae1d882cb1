"""Two thousand broken, hostile and oddly named files, and fifty good ones among them: all of it through the real door.

The corpus is made on the fly from photographs with a fixed seed. It is indexed by the command line in a process of its
own, under a time limit, so that a crash of a decoder in native code would be seen as what it is.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from lookalike import open_index
from lookalike.bundle import MANIFEST, default_path
from lookalike.catalogue import key_of, rows
from lookalike.images import _know_heif, shown

TINY = Path(__file__).parent / "data" / "tiny"
MODEL = "default" if (default_path() / MANIFEST).is_file() else str(TINY)
MUTANTS, GOOD = 2100, 56
TIME_LIMIT = 120  # seconds for one command; it takes a few

KINDS: tuple[tuple[str, str, dict], ...] = (
    (".jpg", "JPEG", {"quality": 85}),
    (".jpg", "JPEG", {"quality": 80, "progressive": True}),
    (".mpo", "MPO", {}),
    (".png", "PNG", {}),
    (".webp", "WEBP", {"quality": 80}),
    (".webp", "WEBP", {"lossless": True}),
    (".gif", "GIF", {}),
    (".bmp", "BMP", {}),
    (".tif", "TIFF", {}),
    (".tif", "TIFF", {"compression": "tiff_lzw"}),
    (".tif", "TIFF", {"compression": "jpeg"}),
    (".avif", "AVIF", {"speed": 10}),
    (".heic", "HEIF", {}),
    (".ppm", "PPM", {}),
)
# Stems that break careless programs; {} becomes a number.
STEMS = (
    "plain {}",
    "-leading dash {}",
    "--to {}",
    "new\nline {}",
    "tab\tand\rreturn {}",
    "quotes '\"` {}",
    "percent %s %d %00 {}",
    "emoji 🦊👩‍👩‍👧 {}",
    "日本語 ünï {}",
    "backslash \\n \\ {}",
    "glob *?[a] {}",
    "shell $(x) ; & | {}",
    "right\u202eto left {}",
    "file:%2F%2F {}",
    os.fsdecode(b"undecodable \xff\xfe\xe9 ") + "{}",
    os.fsdecode(b"half a character \xf0\x9f ") + "{}",
    "long " + "x" * 235 + " {}",
    "long " + "ü" * 115 + " {}",
)


@dataclass
class Corpus:
    """Where the files lie: all that must be listed, and those of them that are in order."""

    top: Path
    files: list[Path] = field(default_factory=list)
    good: list[Path] = field(default_factory=list)

    def put(self, name: str, content: bytes) -> Path:
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists()
        path.write_bytes(content)
        self.files.append(path)
        return path


def crops() -> Iterator[Image.Image]:
    """Pieces of photographs from scikit-image's wheel, no two alike."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image, whose wheel holds the photographs, is not installed")
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")
    photos = [Image.open(Path(spec.origin).parent / "data" / name).convert("RGB") for name in names]
    places = random.Random(5)
    while True:
        for photo in photos:
            side = places.randrange(120, 280)
            left, top = places.randrange(photo.width - side), places.randrange(photo.height - side)
            yield photo.crop((left, top, left + side, top + side)).resize((places.randrange(64, 120), 80))


def encoded(picture: Image.Image, format: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def flip_bits(data: bytes, dice: random.Random) -> bytes:
    """One bit to hundreds, anywhere or all in the header."""
    changed = bytearray(data)
    end = min(64, len(data)) if dice.random() < 0.4 else len(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16, 200))):
        changed[dice.randrange(end)] ^= 1 << dice.randrange(8)
    return bytes(changed)


def truncate(data: bytes, dice: random.Random) -> bytes:
    """At the first bytes, in the header, anywhere, at the last bytes."""
    n = len(data)
    return data[
        : dice.choice((dice.randrange(1, 16), dice.randrange(16, 128), dice.randrange(n), n - dice.randrange(1, 9)))
    ]


def zero(data: bytes, dice: random.Random) -> bytes:
    start, length = dice.randrange(len(data)), dice.choice((1, 4, 64, 1000))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def insert(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    return data[:start] + dice.randbytes(dice.choice((1, 3, 100))) + data[start:]


def remove(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    return data[:start] + data[start + dice.choice((1, 3, 100)) :]


def maximise(data: bytes, dice: random.Random) -> bytes:
    """A field of the header set to the largest or smallest number: sizes, counts and offsets beyond all measure."""
    start, value = dice.randrange(2, min(200, len(data) - 4)), dice.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)))
    return data[:start] + value + data[start + 4 :]


def splice(data: bytes, dice: random.Random) -> bytes:
    """The second half first: known signatures at the wrong places."""
    cut = dice.randrange(len(data))
    return data[:8] + data[cut:] + data[8:cut]


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bits,
    flip_bits,
    truncate,
    truncate,
    zero,
    insert,
    remove,
    maximise,
    splice,
)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def plant_bombs(corpus: Corpus) -> None:
    """Small files that would unfold to gigabytes."""
    gif = b"GIF89a\xff\xff\xff\xff\xf0\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;"
    packed = zlib.compress(bytes(30 << 20), 9)
    corpus.put("bomb/60000.png", png(60000, 60000, 8, 2, chunk(b"IDAT", packed)))
    corpus.put("bomb/text.png", png(4, 4, 8, 2, *[chunk(b"zTXt", b"note\0\0" + packed)] * 4, chunk(b"IDAT", b"")))
    corpus.put("bomb/profile.png", png(4, 4, 8, 2, chunk(b"iCCP", b"icc\0\0" + packed), chunk(b"IDAT", packed)))
    corpus.put("bomb/inner.png", png(6000, 6000, 1, 0, chunk(b"IDAT", zlib.compress(bytes(751 * 6000)))))
    corpus.put("bomb/canvas.gif", gif)
    corpus.put("bomb/wide.ppm", b"P6 100000 100000 255\n")
    corpus.put("bomb/digits.pgm", b"P2 " + b"9" * 100_000)
    corpus.put(
        "bomb/long.bmp", encoded(Image.new("L", (4, 4)), "BMP", {})[:18] + struct.pack("<ll", 2**31 - 1, 2**31 - 1)
    )


def plant_oddities(corpus: Corpus) -> None:
    """What lies about in real folders under a picture's name, and is none."""
    for extension in (".jpg", ".png", ".gif", ".heic", ".tif"):
        corpus.put(f"odd/empty{extension}", b"")
        corpus.put(f"odd/text{extension}", b"<html>not found</html>\n")
        corpus.put(f"odd/zeros{extension}", bytes(5000))
    corpus.put("odd/script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n/x {x} def x\n")
    corpus.put("odd/vector.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    corpus.put("odd/note.txt", b"no picture, and not called one")
    corpus.files.pop()  # not to be listed
    (corpus.top / "folder.jpg").mkdir()
    (corpus.top / "linked.jpg").symlink_to(corpus.top / "odd")
    for name, target in (("broken.jpg", "nowhere"), ("circle.png", "circle.png"), ("null.gif", os.devnull)):
        (corpus.top / name).symlink_to(target)
        corpus.files.append(corpus.top / name)
    if hasattr(os, "mkfifo"):
        os.mkfifo(corpus.top / "pipe.jpg")
        corpus.files.append(corpus.top / "pipe.jpg")


def make_corpus(top: Path, mutants: int) -> Corpus:
    _know_heif()
    corpus, dice, pieces = Corpus(top), random.Random(2026), crops()
    for number in range(GOOD):
        extension, format, options = KINDS[number % len(KINDS)]
        # Now and then a wrong extension, or none: the content decides.
        extension = (".png" if extension != ".png" else ".jpg") if number % 7 == 3 else extension
        extension = "" if number % 14 == 6 else extension
        stem = STEMS[number % len(STEMS)].format(number)
        corpus.good.append(corpus.put(f"good/{stem}{extension}", encoded(next(pieces), format, options)))
    corpus.good.append(corpus.put("/".join(["deep" * 20] * 35) + "/x.png", encoded(next(pieces), "PNG", {})))
    bases = [(extension, encoded(next(pieces), format, options)) for extension, format, options in KINDS * 3]
    for number in range(mutants):
        extension, data = bases[number % len(bases)]
        broken = DAMAGE[number % len(DAMAGE)](data, dice)
        stem = STEMS[number % len(STEMS)] if number % 5 == 0 else "mutant {}"
        corpus.put(f"broken {number % 9}/{stem.format(number)}{extension}", broken)
    plant_bombs(corpus)
    plant_oddities(corpus)
    secret = corpus.put("odd/secret.png", encoded(next(pieces), "PNG", {}))
    secret.chmod(0)
    return corpus


# ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def command(*arguments: str | Path) -> list[dict]:
    """Run the command line; what it prints must be JSON lines in valid UTF-8, and it must end well and in time."""
    done = subprocess.run(
        [sys.executable, "-m", "lookalike", *map(str, arguments)], capture_output=True, timeout=TIME_LIMIT, check=False
    )
    errors = done.stderr.decode("utf-8")
    assert done.returncode == 0, f"exit status {done.returncode}: {errors[-2000:]}"
    assert "Traceback" not in errors
    return [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]


@dataclass
class Indexed:
    corpus: Corpus
    location: Path
    first: dict
    second: dict


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Indexed:
    """The corpus, and what the first and the second run of the same command said."""
    home = tmp_path_factory.mktemp("corpus")
    corpus, location = make_corpus(home / "pictures", MUTANTS), home / "index"
    arguments = ("index", corpus.top, "--to", location, "--model", MODEL, "--json")
    [first], [second] = command(*arguments), command(*arguments)
    return Indexed(corpus, location, first, second)


def test_every_file_is_indexed_or_reported_once(indexed):
    """Each of over two thousand files is in the index, or in `skipped` with a reason, and never both or twice."""
    files, skipped = indexed.corpus.files, indexed.first["skipped"]
    assert len(files) >= 2000
    assert {row.path for row in rows([indexed.corpus.top])} == {str(path) for path in files}
    assert all(entry["reason"].strip() and "\n" not in entry["reason"] for entry in skipped)
    with closing(open_index(str(indexed.location), read_only=True)) as index:
        keys = {item.key for item in index.scan()}
        assert len(index) == len(keys) == indexed.first["total"] == indexed.first["added"]
    unread = [shown(path) for path in files if key_of(path) not in keys]
    assert Counter(entry["path"] for entry in skipped) == Counter(unread)
    assert keys <= {key_of(path) for path in files}
    assert len(skipped) > 500
    assert len(keys) > 500


def test_good_pictures_are_indexed_and_find_themselves(indexed):
    """Among all that damage, every good picture is indexed, and asking with it gives itself first, with score 1."""
    good = indexed.corpus.good
    hits = command("search", indexed.location, "-k", "1", "--json", "--", *good)
    assert [hit["key"] for hit in hits] == [key_of(path) for path in good]
    assert [hit["query"] for hit in hits] == [shown(path) for path in good]
    assert min(hit["score"] for hit in hits) > 1 - 1e-3


def test_second_run_changes_nothing(indexed):
    """Running the same command again encodes and changes nothing, and reports the same files for the same reasons."""
    first, second = indexed.first, indexed.second
    assert second["skipped"] == first["skipped"]
    assert second["unchanged"] == second["total"] == first["total"]
    assert not any(second[name] for name in ("added", "replaced", "moved", "removed", "vanished", "encoded"))


def test_other_commands_print_valid_text(indexed):
    """`duplicates` and `info` over the same odd names print valid JSON."""
    for group in command("duplicates", indexed.location, "--threshold", "0.999", "--json"):
        assert len(group["items"]) >= 2
    done = subprocess.run(
        [sys.executable, "-m", "lookalike", "info", str(indexed.location), "--json"], capture_output=True, check=True
    )
    assert json.loads(done.stdout.decode("utf-8"))["pictures"] == indexed.first["total"]


def test_strict_stops_at_the_first(indexed, tmp_path):
    """With --strict the first unreadable file ends the command with status 1 and one line that names it."""
    arguments = ["index", str(indexed.corpus.top), "--to", str(tmp_path / "index"), "--model", MODEL, "--strict"]
    done = subprocess.run(
        [sys.executable, "-m", "lookalike", *arguments], capture_output=True, timeout=TIME_LIMIT, check=False
    )
    assert done.returncode == 1
    *_, line = done.stderr.decode("utf-8").splitlines()  # libtiff has its say before
    assert line.startswith("error: cannot read picture ")
