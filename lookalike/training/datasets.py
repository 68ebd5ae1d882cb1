"""Pictures as rows of one array: decoded once, kept as uint8 in a memory-mapped file, read at random.

Decoding a picture takes longer than learning from it. So every picture is brought to the network's size once, by the
same `Preprocessing` that serves, and each epoch then only copies rows. Augmentation works on these rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from lookalike.errors import ImageError, TrainingError
from lookalike.images import Pixels, Preprocessing, Region, shown

Source = str | Region  # what a row is decoded from: a path, or a region of the picture there
T = TypeVar("T")
Progress = Callable[[int, int], None]

_VERSION = 1  # of the file's layout; it is part of the identity
_CHUNK = 16  # pictures a decoding thread takes at a time: small ones take less time than handing them over
_SPARE = 64 << 20  # bytes of the disk that stay free
_ABANDONED = 3600.0  # seconds without a write after which a half-made cache belongs to a process that died

__all__ = ["Joined", "PixelCache", "Prefetcher", "Source", "cache_bytes", "luma", "path_of"]


def luma(pixels: Pixels) -> Pixels:
    """Brightness of RGB pixels, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded: (…, 3) → (…, 1) uint8."""
    weighted = pixels.astype(np.uint32) @ np.array([299, 587, 114], dtype=np.uint32)
    return ((weighted + 500) // 1000).astype(np.uint8)[..., None]


def path_of(source: Source) -> str:
    """Where the file of a row lies."""
    return os.fspath(source.picture) if isinstance(source, Region) else source  # type: ignore[arg-type]


def cache_bytes(count: int, preprocessing: Preprocessing, channels: int = 3) -> int:
    """How many bytes the pixels of `count` pictures take."""
    height, width = preprocessing.size
    return count * height * width * channels


class PixelCache:
    """Decoded pictures of one size. Make one with `PixelCache.build`.

    Attributes:
        pixels: (n, h, w, c) uint8, in memory or memory-mapped, read-only; zeros where a picture could not be read.
        errors: the `ImageError` of each picture that could not be read, by row.
        path: the folder of the cache, or None where it lives in memory.
        reused: whether it had been made before.
    """

    def __init__(self, pixels: Pixels, errors: dict[int, ImageError], path: Path | None, reused: bool) -> None:
        self.pixels = pixels
        self.errors = errors
        self.path = path
        self.reused = reused
        self._readable = np.ones(len(pixels), dtype=np.bool_)
        self._readable[list(errors)] = False

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def readable(self) -> npt.NDArray[np.int64]:
        """The rows of pictures that could be read, ascending."""
        return np.flatnonzero(self._readable)

    def batch(self, rows: Any, *, channels_last: bool = False) -> torch.Tensor:
        """Pictures as a tensor.

        Args:
            rows: (m,) integers, in any order, with repeats if wanted.
            channels_last: leave the channels innermost in memory, which saves a copy; the shape is the same.

        Returns:
            (m, c, h, w) uint8, the caller's own.

        Raises:
            ValueError: a row that is no readable picture.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        wrong = (chosen < 0) | (chosen >= len(self.pixels))
        if wrong.any() or not self._readable[chosen].all():
            missing = chosen[wrong] if wrong.any() else chosen[~self._readable[chosen]]
            raise ValueError(f"no readable picture in row {int(missing[0])} of {len(self.pixels)}")
        tensor = torch.from_numpy(self.pixels[chosen]).permute(0, 3, 1, 2)
        return tensor if channels_last else tensor.contiguous()

    @classmethod
    def build(
        cls,
        paths: Sequence[Source],
        preprocessing: Preprocessing,
        *,
        channels: int = 3,
        folder: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
    ) -> PixelCache:
        """Decode pictures, or take them from a cache made of the same ones.

        A cache is the same if paths, sizes and times of the files, size and fit of `preprocessing` and channels are.
        It appears whole or not at all; of two processes that make the same one, the first to finish wins.

        Args:
            paths: the pictures, or regions of them; row i is picture i.
            preprocessing: how they are read; its mean and std do not matter here.
            channels: 3 for RGB, 1 for brightness (`luma`).
            folder: where caches are kept, made if need be; None decodes into memory.
            threads: decoding threads; by default one per core.
            progress: called with how many pictures are done, and of how many, from the calling thread.
            say: called with a sentence about size and place before anything is decoded.

        Raises:
            TrainingError: the disk has no room or cannot be written, or not one picture can be read.
        """
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if not paths:
            raise ValueError("no pictures: give at least one path")
        shape = (len(paths), *preprocessing.size, channels)
        decoded = _decoded(paths, preprocessing, channels, threads or os.cpu_count() or 2, progress)
        if folder is None:
            _announce(say, shape, "memory")
            pixels = np.empty(shape, dtype=np.uint8)
            return cls._checked(pixels, _fill(pixels, decoded), paths, None, reused=False)
        home = Path(folder) / f"pixels-{_identity(paths, preprocessing, channels)}"
        try:
            reused = home.is_dir()
            if not reused:
                Path(folder).mkdir(parents=True, exist_ok=True)
                _sweep(Path(folder))
                _check_room(Path(folder), int(np.prod(shape)))
                _announce(say, shape, shown(home))
                _write(home, decoded, paths)
            errors = json.loads((home / "errors.json").read_text(encoding="utf-8"))
            pixels = _mapped(home / "pixels.bin", shape)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(
                f"pixel cache {shown(home)}: {reason}; choose another folder for caches, or delete this one if it is "
                "damaged"
            ) from error
        return cls._checked(pixels, {int(row): reason for row, reason in errors.items()}, paths, home, reused=reused)

    @classmethod
    def _checked(
        cls, pixels: Pixels, errors: dict[int, str], paths: Sequence[Source], home: Path | None, *, reused: bool
    ) -> PixelCache:
        _check_any(paths, errors)
        failed = {row: ImageError(shown(path_of(paths[row])), reason) for row, reason in errors.items()}
        return cls(pixels, failed, home, reused)


class Joined:
    """Several caches of pictures of one size under one numbering: the rows of the second follow those of the first.

    Args:
        caches: at least one, all of one height, width and number of channels.
    """

    def __init__(self, *caches: PixelCache) -> None:
        self.caches = caches
        self.starts = np.concatenate([[0], np.cumsum([len(cache) for cache in caches])])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batch(self, rows: Any, *, channels_last: bool = False) -> torch.Tensor:
        """As `PixelCache.batch`."""
        chosen = np.asarray(rows, dtype=np.int64)
        whose = np.searchsorted(self.starts[1:-1], chosen, side="right")
        if (whose == 0).all():
            return self.caches[0].batch(chosen, channels_last=channels_last)
        parts = [
            (places, self.caches[number].batch(chosen[places] - self.starts[number], channels_last=channels_last))
            for number in np.unique(whose)
            if len(places := np.flatnonzero(whose == number))
        ]
        whole = torch.empty_like(parts[0][1][:1].expand(len(chosen), -1, -1, -1))
        for places, pixels in parts:
            whole[torch.from_numpy(places)] = pixels
        return whole


def _check_any(paths: Sequence[Source], errors: dict[int, str]) -> None:
    if len(errors) == len(paths):
        raise TrainingError(
            f"none of {len(paths):,} pictures can be read; the first is {shown(path_of(paths[0]))}: {errors[0]}; "
            "check that the pictures are where the labels say"
        )


def _announce(say: Callable[[str], None] | None, shape: tuple[int, ...], where: str) -> None:
    if say is not None:
        count, height, width, channels = shape
        kind = "grey" if channels == 1 else "RGB"
        size = int(np.prod(shape)) / 1e6
        say(f"decoding {count:,} pictures to {height}×{width} {kind}: {size:,.0f} MB in {where}")


# ── decoding ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_Chunk = list[Pixels | ImageError]


def _decoded(
    paths: Sequence[Source], preprocessing: Preprocessing, channels: int, threads: int, progress: Progress | None
) -> Iterator[Pixels | ImageError]:
    """Pixels (h, w, c) of each picture, or why there are none, in order; a bounded number of them at a time."""

    def load(path: Source) -> Pixels | ImageError:
        try:
            pixels = preprocessing.load(path)
        except ImageError as error:
            return error
        return luma(pixels) if channels == 1 else pixels

    done = 0
    waiting: deque[Future[_Chunk]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="lookalike-cache")
    try:
        for start in range(0, len(paths), _CHUNK):
            part = paths[start : start + _CHUNK]
            waiting.append(pool.submit(lambda part: [load(path) for path in part], part))
            while len(waiting) > 2 * threads or (waiting and start + _CHUNK >= len(paths)):
                chunk = waiting.popleft().result()
                yield from chunk
                done += len(chunk)
                if progress is not None:
                    progress(done, len(paths))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fill(pixels: Pixels, decoded: Iterator[Pixels | ImageError]) -> dict[int, str]:
    """Put decoded pictures into an array; returns the reasons of those that could not be read, by row."""
    errors = {}
    for row, picture in enumerate(decoded):
        if isinstance(picture, ImageError):
            errors[row] = picture.reason
            pixels[row] = 0
        else:
            pixels[row] = picture
    return errors


# ── the folder of a cache ────────────────────────────────────────────────────────────────────────────────────────────


def _identity(paths: Sequence[Source], preprocessing: Preprocessing, channels: int) -> str:
    """Changes when the pixels could."""
    document = preprocessing.to_document()
    kept = {key: document[key] for key in ("size", "fit", "crop_ratio", "interpolation")}
    digest = hashlib.sha256(json.dumps([_VERSION, kept, channels, len(paths)]).encode())
    path = facts = ""
    for source in paths:
        whole, box = path_of(source), f"{source.box}" if isinstance(source, Region) else ""
        if whole != path:  # the regions of a picture stand together
            path = whole
            try:
                status = os.stat(path)  # noqa: PTH116 - undecodable bytes stay
                facts = f"\0{status.st_size}\0{status.st_mtime_ns}\0"
            except (OSError, ValueError):
                facts = "\0missing\0"
        digest.update(os.fsencode(path) + facts.encode() + box.encode())
    return digest.hexdigest()[:24]


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise TrainingError(
            f"the decoded pictures take {needed / 1e6:,.0f} MB, and {shown(folder)} has {free / 1e6:,.0f} MB free: "
            "make room, choose another folder for caches, a smaller picture size, or one channel"
        )


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half made."""
    for left in folder.glob(".pixels-*.part"):
        with contextlib.suppress(OSError):
            touched = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if time.time() - touched > _ABANDONED:
                shutil.rmtree(left)


def _write(home: Path, decoded: Iterator[Pixels | ImageError], paths: Sequence[Source]) -> None:
    """Make the folder beside its place and rename it: whoever comes second throws its own away."""
    part = Path(tempfile.mkdtemp(prefix=f".{home.name}-", suffix=".part", dir=home.parent))
    try:
        with (part / "pixels.bin").open("wb") as file:
            errors = _write_pixels(file, decoded)
            file.flush()
            os.fsync(file.fileno())
        _check_any(paths, errors)
        (part / "errors.json").write_text(json.dumps(errors), encoding="utf-8")
        part.chmod(0o755)
        try:
            part.rename(home)
        except OSError:
            if not home.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_pixels(file: BinaryIO, decoded: Iterator[Pixels | ImageError]) -> dict[int, str]:
    """As `_fill`, into a file. What is skipped by `seek` reads as zeros."""
    errors = {}
    size = count = 0
    for count, picture in enumerate(decoded, start=1):
        if isinstance(picture, ImageError):
            errors[count - 1] = picture.reason
        else:
            size = picture.size
            file.seek((count - 1) * size)
            file.write(picture.data)
    file.truncate(count * size)
    return errors


def _mapped(path: Path, shape: tuple[int, ...]) -> Pixels:
    """The file as a read-only array.

    Without `madvise`: MADV_RANDOM switches off reading ahead, and a picture of many pages then comes page by page. It
    made batches from a cold disk 4 to 13 times slower; MADV_WILLNEED for each row gained nothing reliable.
    """
    size = int(np.prod(shape))
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise ValueError(f"pixels.bin has not the {size} bytes of {shape[0]} pictures")
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8).reshape(shape)


# ── ahead of the loop ────────────────────────────────────────────────────────────────────────────────────────────────


class Prefetcher(Generic[T]):
    """Computes `function(step)` for the next steps in one other thread, in order, while the caller uses this one.

    An iterator of (step, value), to be used as a context manager. What `function` raises is raised where its value
    would have come. Values are the same as without it, if `function` depends on nothing but its step.

    Args:
        function: step → value; it runs in the other thread.
        start: the first step.
        stop: the step after the last one; None goes on for ever.
        depth: how many values may be ready or under way at a time, at least 1.
    """

    def __init__(
        self, function: Callable[[int], T], *, start: int = 0, stop: int | None = None, depth: int = 2
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._function = function
        self._stop = stop
        self._next = start
        self._ahead: deque[tuple[int, Future[T]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lookalike-prefetch")
        self._closed = False
        for _ in range(depth):
            self._submit()

    def _submit(self) -> None:
        if self._stop is None or self._next < self._stop:
            self._ahead.append((self._next, self._pool.submit(self._function, self._next)))
            self._next += 1

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return self

    def __next__(self) -> tuple[int, T]:
        if self._closed or not self._ahead:
            raise StopIteration
        step, future = self._ahead.popleft()
        try:
            value = future.result()
        except BaseException:
            self.close()
            raise
        self._submit()
        return step, value

    def close(self) -> None:
        """Compute nothing more; returns when the thread has ended."""
        self._closed = True
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
