"""The cache of decoded pictures: the right pixels, whole or not at all, reused if nothing changed; and prefetching."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from lookalike.errors import TrainingError  # noqa: E402
from lookalike.images import Preprocessing, Region  # noqa: E402
from lookalike.training import datasets  # noqa: E402
from lookalike.training.datasets import Joined, PixelCache, Prefetcher, cache_bytes, luma  # noqa: E402

SMALL = Preprocessing(size=(24, 16))


@pytest.fixture
def paths(make_pictures):
    folder = make_pictures(*(f"{i:02}.png" for i in range(40)))
    return [str(path) for path in sorted(folder.iterdir())]


def wreck(path: str) -> None:
    Path(path).write_bytes(b"no picture")


# ── pixels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_are_the_pictures(paths, tmp_path, on_disk, channels, channels_last):
    """Any rows in any order, as uint8 tensors: what `Preprocessing.load` gives, or its brightness."""
    cache = PixelCache.build(paths, SMALL, channels=channels, folder=tmp_path / "cache" if on_disk else None)
    rows = np.array([7, 0, 39, 7])
    batch = cache.batch(rows, channels_last=channels_last)
    expected = np.stack([SMALL.load(paths[row]) for row in rows])
    expected = luma(expected) if channels == 1 else expected

    assert batch.shape == (4, channels, 24, 16) and batch.dtype == torch.uint8
    assert (batch.permute(0, 2, 3, 1).numpy() == expected).all()
    assert batch.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert len(cache) == 40 and cache.readable.tolist() == list(range(40)) and cache.errors == {}
    batch.zero_()
    assert (cache.pixels[7] == expected[0]).all()


def test_brightness_is_rounded():
    """0.299 R + 0.587 G + 0.114 B to the nearest whole number; grey stays as it is."""
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    colours = np.random.default_rng(0).integers(0, 256, (500, 3), dtype=np.uint8)
    exact = colours @ np.array([0.299, 0.587, 0.114])

    assert (luma(grey)[:, 0] == np.arange(256)).all()
    assert np.abs(luma(colours)[:, 0] - exact).max() <= 0.5 + 1e-9


def test_rows_that_are_no_pictures(paths):
    """Rows outside, and of pictures that could not be read, are refused by number."""
    wreck(paths[3])
    cache = PixelCache.build(paths, SMALL)

    for row in (3, 40, -1):
        with pytest.raises(ValueError, match=f"no readable picture in row {row} of 40"):
            cache.batch([0, row])


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("wrecked", [[0, 1], [5, 39]])
def test_unreadable_pictures_are_skipped_and_listed(paths, tmp_path, on_disk, wrecked):
    """They keep their rows, as zeros; path and reason are remembered, from a reused cache too."""
    for row in wrecked:
        wreck(paths[row])
    for reused in (False, on_disk):
        cache = PixelCache.build(paths, SMALL, folder=tmp_path / "cache" if on_disk else None)

        assert cache.reused is reused
        assert sorted(cache.errors) == wrecked
        assert cache.errors[wrecked[0]].path == paths[wrecked[0]]
        assert cache.errors[wrecked[0]].reason == "not a picture in a known format"
        assert set(cache.readable) == set(range(40)) - set(wrecked)
        assert not cache.pixels[wrecked].any()
        assert (cache.pixels[20] == SMALL.load(paths[20])).all()


@pytest.mark.parametrize("on_disk", [False, True])
def test_nothing_readable(paths, tmp_path, on_disk):
    """A run without one picture ends with the first reason, and leaves no cache behind."""
    for path in paths:
        wreck(path)
    with pytest.raises(TrainingError, match=r"none of 40 pictures can be read; the first is .*00\.png: not a picture"):
        PixelCache.build(paths, SMALL, folder=tmp_path / "cache" if on_disk else None)

    assert not on_disk or list((tmp_path / "cache").iterdir()) == []


# ── the folder ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cache_is_reused_until_something_changes(paths, tmp_path):
    """Other pixels, other times, other sizes make another cache; mean and std do not."""
    build = lambda paths=paths, preprocessing=SMALL, **more: PixelCache.build(  # noqa: E731
        paths, preprocessing, folder=tmp_path / "cache", **more
    )
    assert build().reused is False
    assert build().reused is True
    assert build(preprocessing=Preprocessing(size=(24, 16), mean=(0, 0, 0))).reused is True
    assert build(preprocessing=Preprocessing(size=(24, 16), fit="pad")).reused is False
    assert build(preprocessing=Preprocessing(size=(16, 24))).reused is False
    assert build(channels=1).reused is False
    assert build(paths[::-1]).reused is False
    os.utime(paths[4], ns=(1, 1))
    assert build().reused is False


def test_what_it_says(paths, tmp_path):
    """Size and place come before decoding, progress ends with all; a reused cache says nothing."""
    said, steps = [], []
    for _ in range(2):
        PixelCache.build(
            paths,
            SMALL,
            channels=1,
            folder=tmp_path,
            say=lambda text: said.append((text, len(steps))),
            progress=lambda done, total: steps.append((done, total)),
        )

    assert len(said) == 1 and said[0][1] == 0
    assert said[0][0].startswith(f"decoding 40 pictures to 24×16 grey: 0 MB in {tmp_path}")
    assert steps == [(16, 40), (32, 40), (40, 40)]
    assert cache_bytes(40, SMALL, 1) == 40 * 24 * 16


def test_no_room(paths, tmp_path, monkeypatch):
    """A disk without room is refused before anything is decoded, with both sizes."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    monkeypatch.setattr(Preprocessing, "load", lambda *_: pytest.fail("decoded"))

    with pytest.raises(TrainingError, match=r"take 0 MB, and .* has 1 MB free: make room"):
        PixelCache.build(paths, SMALL, folder=tmp_path / "cache")


def test_a_build_that_fails_leaves_nothing(paths, tmp_path, monkeypatch):
    """An error half-way, a full disk or an interruption, leaves no cache and no half of one."""

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PixelCache.build(paths, SMALL, folder=tmp_path / "cache", progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left on device; choose another folder"):
        PixelCache.build(paths, SMALL, folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_cache_is_refused(paths, tmp_path):
    """A file of the wrong length is an error that says which folder, not a crash while training."""
    cache = PixelCache.build(paths, SMALL, folder=tmp_path)
    with (cache.path / "pixels.bin").open("r+b") as file:
        file.truncate(100)

    with pytest.raises(TrainingError, match="has not the 46080 bytes of 40 pictures"):
        PixelCache.build(paths, SMALL, folder=tmp_path)


def test_the_second_to_finish_takes_the_first_ones_cache(paths, tmp_path):
    """Another process that made the same cache meanwhile is no harm: one cache is left."""

    def elsewhere(done, total):
        if done == total:
            assert PixelCache.build(paths, SMALL, folder=tmp_path / "cache").reused is False

    cache = PixelCache.build(paths, SMALL, folder=tmp_path / "cache", progress=elsewhere)

    assert [path.name for path in (tmp_path / "cache").iterdir()] == [cache.path.name]
    assert (cache.pixels[11] == SMALL.load(paths[11])).all()


def test_two_at_the_same_time(paths, tmp_path):
    """Two that start together, as processes of one run do, give the same pixels and leave one cache."""
    together = threading.Barrier(2)

    def build(_):
        together.wait()
        return PixelCache.build(paths, SMALL, folder=tmp_path / "c")

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(build, range(2))
        assert (one.pixels == other.pixels).all() and one.path == other.path
        assert len(list((tmp_path / "c").iterdir())) == 1
        shutil.rmtree(tmp_path / "c")


def test_abandoned_halves_are_swept_away(paths, tmp_path):
    """What a killed process left is removed after an hour, not what one is writing now."""
    for name, age in ((".pixels-old-x.part", 2 * 3600), (".pixels-new-y.part", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pixels.bin").touch()
        for path in (tmp_path / name / "pixels.bin", tmp_path / name):
            os.utime(path, (time.time() - age,) * 2)
    PixelCache.build(paths, SMALL, folder=tmp_path)

    assert [path.name for path in tmp_path.glob(".pixels*")] == [".pixels-new-y.part"]


def test_undecodable_names(tmp_path):
    """A path that is not UTF-8 is cached like any other."""
    path = str(tmp_path / os.fsdecode(b"caf\xe9.png"))
    Image.new("RGB", (9, 9), (10, 20, 30)).save(path)

    assert PixelCache.build([path], SMALL, folder=tmp_path / "cache").pixels[0, 0, 0].tolist() == [10, 20, 30]


def test_memory_is_bounded(paths, monkeypatch):
    """However slowly pictures are taken, only a few chunks are decoded ahead."""
    started = []
    load = Preprocessing.load
    monkeypatch.setattr(Preprocessing, "load", lambda self, path: started.append(path) or load(self, path))
    monkeypatch.setattr(datasets, "_CHUNK", 1)
    decoded = datasets._decoded(paths * 5, SMALL, 3, 2, None)
    for _ in range(10):
        next(decoded)
    time.sleep(0.1)

    assert len(started) <= 10 + 2 * 2 + 1
    decoded.close()


def test_misuse(paths):
    """Two channels, and no pictures at all, are no cache."""
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        PixelCache.build(paths, SMALL, channels=2)
    with pytest.raises(ValueError, match="no pictures"):
        PixelCache.build([], SMALL)


# ── prefetching ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prefetching_gives_the_same_values_in_order():
    """Step and value, from the first step to before the last, all computed in one other thread."""
    threads = set()

    def work(step):
        threads.add(threading.get_ident())
        return step * step

    with Prefetcher(work, start=3, stop=20, depth=4) as ahead:
        assert list(ahead) == [(step, step * step) for step in range(3, 20)]
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_prefetching_is_bounded():
    """No more than `depth` values are ready or under way, and no step is computed twice."""
    calls = []
    with Prefetcher(lambda step: calls.append(step) or step, depth=3) as ahead:
        for _ in range(5):
            next(ahead)
        time.sleep(0.05)
        assert calls == list(range(8))


def test_an_exception_comes_where_its_value_would():
    """The values before it arrive; then it is raised; after that nothing comes."""

    def work(step):
        if step == 2:
            raise ValueError("step 2")
        return step

    ahead = Prefetcher(work)
    assert [next(ahead), next(ahead)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="step 2"):
        next(ahead)
    assert list(ahead) == []


def test_closing_ends_the_thread():
    """After the block the thread is gone, although values were left, and an iteration ends."""
    with Prefetcher(lambda step: step, depth=3) as ahead:
        next(ahead)
    assert not [thread for thread in threading.enumerate() if "lookalike-prefetch" in thread.name]
    assert list(ahead) == []
    ahead.close()
    with pytest.raises(ValueError, match="depth must be at least 1"):
        Prefetcher(lambda step: step, depth=0)


def test_joined_caches_are_one(photographs, tmp_path):
    """Rows of wholes, then of regions, in any order; each the pixels of its own cache."""
    pre = Preprocessing(size=(16, 20))
    paths = [str(path) for path in photographs[:3]]
    parts = [Region(path, (0.1, 0.2, 0.6, 0.9)) for path in paths[:2]]
    whole, regions = PixelCache.build(paths, pre), PixelCache.build(parts, pre)
    joined = Joined(whole, regions)
    assert len(joined) == 5
    for channels_last in (False, True):
        batch = joined.batch([4, 0, 3, 4, 2], channels_last=channels_last)
        wanted = [regions.pixels[1], whole.pixels[0], regions.pixels[0], regions.pixels[1], whole.pixels[2]]
        assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), np.stack(wanted))
        assert torch.equal(joined.batch([2, 1], channels_last=channels_last), whole.batch([2, 1]))
    with pytest.raises(ValueError, match="no readable picture"):
        joined.batch([5])


def test_a_cache_of_other_regions_is_another_one(photographs, tmp_path):
    pre = Preprocessing(size=(8, 8))
    path = str(photographs[0])
    one = PixelCache.build([Region(path, (0, 0, 0.5, 1))], pre, folder=tmp_path)
    same = PixelCache.build([Region(path, (0, 0, 0.5, 1))], pre, folder=tmp_path)
    other = PixelCache.build([Region(path, (0, 0, 0.6, 1))], pre, folder=tmp_path)
    assert same.reused and same.path == one.path and other.path != one.path
