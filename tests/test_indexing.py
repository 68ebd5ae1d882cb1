"""Incremental indexing: what is new is encoded, nothing else; nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lookalike.indexing
from lookalike.catalogue import rows
from lookalike.encoder import Encoder
from lookalike.errors import EncoderMismatch, ImageError, IndexUnavailable
from lookalike.index import _swap, open_index
from lookalike.index.base import Index
from lookalike.indexing import Summary, rebuild_index, update_index


@pytest.fixture
def folder(make_pictures) -> Path:
    return make_pictures(*(f"{kind}/{n}.png" for kind in ("shoes", "hats") for n in range(5)))


@pytest.fixture
def index(tiny: Encoder) -> Iterator[Index]:
    opened = open_index(":memory:", dim=tiny.dim, meta={"encoder": tiny.describe()})
    yield opened
    opened.close()


def update(index: Index, encoder: Encoder, *places: Path, **options: bool) -> Summary:
    return update_index(index, encoder, rows(places), **options)


def counts(summary: Summary) -> dict[str, int]:
    return {
        name: value
        for name in ("added", "replaced", "unchanged", "moved", "removed", "vanished", "encoded")
        if (value := getattr(summary, name))
    }


def check(index: Index, encoder: Encoder, folder: Path) -> None:
    """The index holds exactly the pictures of the folder, each with the vector of its present content."""
    paths = sorted(folder.rglob("*.png"))
    assert sorted(item.key for item in index.scan()) == [str(path) for path in paths]
    stored = np.stack([item.vector for item in index.get([str(path) for path in paths])])
    np.testing.assert_allclose(stored, encoder.images(paths), atol=1e-3)


def test_first_and_second_run(index: Index, tiny: Encoder, folder: Path) -> None:
    """The first run encodes all, the second nothing."""
    assert counts(update(index, tiny, folder)) == {"added": 10, "encoded": 10}
    assert counts(update(index, tiny, folder)) == {"unchanged": 10}
    check(index, tiny, folder)


def test_the_payload_says_what_the_file_is(index: Index, tiny: Encoder, folder: Path) -> None:
    """Category, path, and under `file` size, time, hash, width, height and format."""
    update(index, tiny, folder)
    path = folder / "hats" / "3.png"

    [item] = index.get([str(path)])

    assert item.payload["category"] == "hats"
    assert item.payload["path"] == str(path)
    file = item.payload["file"]
    assert (file["size"], file["mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert (file["width"], file["height"], file["format"]) == (64, 64, "PNG")
    assert len(file["sha256"]) == 64


def test_touched_files_are_hashed_not_encoded(index: Index, tiny: Encoder, folder: Path) -> None:
    """Another modification time with the same content is noted and costs no encoding."""
    update(index, tiny, folder)
    for path in (folder / "hats").iterdir():
        os.utime(path, ns=(1, 1))

    assert counts(update(index, tiny, folder)) == {"replaced": 5, "unchanged": 5}
    assert counts(update(index, tiny, folder)) == {"unchanged": 10}
    check(index, tiny, folder)


def test_changed_files_are_replaced(index: Index, tiny: Encoder, folder: Path, make_pictures) -> None:
    """New content under an old name replaces the vector."""
    update(index, tiny, folder)
    Image.new("RGB", (64, 64), "orange").save(folder / "hats" / "0.png")

    assert counts(update(index, tiny, folder)) == {"replaced": 1, "unchanged": 9, "encoded": 1}
    check(index, tiny, folder)


def test_moved_files_are_recognised(index: Index, tiny: Encoder, folder: Path) -> None:
    """A renamed folder costs no encoding, and the old entries are gone without --prune."""
    update(index, tiny, folder)
    (folder / "hats").rename(folder / "caps")

    assert counts(update(index, tiny, folder)) == {"moved": 5, "unchanged": 5}
    check(index, tiny, folder)
    [item] = index.get([str(folder / "caps" / "3.png")])
    assert item.payload["category"] == "caps"
    assert item.payload["file"]["width"] == 64


def test_copied_files_are_added_without_encoding(index: Index, tiny: Encoder, folder: Path) -> None:
    """A copy beside the original takes over its vector; both stay."""
    update(index, tiny, folder)
    shutil.copytree(folder / "hats", folder / "more hats")

    assert counts(update(index, tiny, folder)) == {"added": 5, "unchanged": 10}
    check(index, tiny, folder)


def test_one_file_moved_to_two_places(index: Index, tiny: Encoder, folder: Path) -> None:
    """The old entry goes once; the second place is an addition."""
    update(index, tiny, folder)
    shutil.copy(folder / "hats" / "0.png", folder / "second.png")
    (folder / "hats" / "0.png").rename(folder / "first.png")

    assert counts(update(index, tiny, folder)) == {"moved": 1, "added": 1, "unchanged": 9}
    check(index, tiny, folder)


def test_two_files_that_swap_their_content(index: Index, tiny: Encoder, folder: Path) -> None:
    """Names and contents are kept apart: after a swap each name has the other's vector."""
    update(index, tiny, folder)
    first, second, third = (folder / "hats" / name for name in ("0.png", "1.png", "swap"))
    first.rename(third)
    second.rename(first)
    third.rename(second)
    for path in (first, second):
        os.utime(path, ns=(5, 5))

    summary = update(index, tiny, folder)

    assert summary.replaced == 2
    check(index, tiny, folder)


def test_content_that_is_replaced_while_another_file_waits_for_it(
    index: Index, tiny: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file takes over the vector of its content only if that is still what the other name holds."""
    monkeypatch.setattr("lookalike.indexing.WRITE_ENTRIES", 1)
    update(index, tiny, folder)
    shutil.copy(folder / "hats" / "0.png", folder / "shoes" / "9.png")
    Image.new("RGB", (64, 64), "orange").save(folder / "hats" / "0.png")

    assert counts(update(index, tiny, folder)) == {"added": 1, "replaced": 1, "unchanged": 9, "encoded": 2}
    check(index, tiny, folder)


def test_vanished_files_are_kept_until_pruned(index: Index, tiny: Encoder, folder: Path) -> None:
    """A missing file is counted; only `prune` drops it, and not the entries of other folders that still exist."""
    update(index, tiny, folder)
    shutil.rmtree(folder / "hats")

    assert counts(update(index, tiny, folder)) == {"unchanged": 5, "vanished": 5}
    assert len(index) == 10
    assert counts(update(index, tiny, folder, prune=True)) == {"unchanged": 5, "removed": 5}
    check(index, tiny, folder)


def test_pruning_one_folder_spares_another(index: Index, tiny: Encoder, make_pictures) -> None:
    """Indexing folder B with --prune does not drop the pictures of folder A."""
    first, second = make_pictures("a.png", folder="first"), make_pictures("b.png", folder="second")
    update(index, tiny, first)

    update(index, tiny, second, prune=True)

    assert len(index) == 2


def test_unreadable_pictures_are_skipped_and_reported_every_time(index: Index, tiny: Encoder, folder: Path) -> None:
    """A broken file stops nothing; it is reported by each run, since it might have been mended."""
    (folder / "hats" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")

    for added in (10, 0):
        summary = update(index, tiny, folder)
        assert summary.added == added
        assert [error.path for error in summary.skipped] == [str(folder / "hats" / "broken.jpg")]


def test_a_picture_that_breaks_is_dropped(index: Index, tiny: Encoder, folder: Path) -> None:
    """When a file's content becomes unreadable, its former vector would be a wrong answer: it goes."""
    update(index, tiny, folder)
    (folder / "hats" / "0.png").write_bytes(b"no longer a picture")

    summary = update(index, tiny, folder)

    assert (summary.removed, len(summary.skipped), len(index)) == (1, 1, 9)


def test_strict_stops_and_keeps_what_was_done(index: Index, tiny: Encoder, folder: Path) -> None:
    """With `strict` the first bad picture raises; the pictures before it are in the index."""
    (folder / "shoes" / "3a.png").write_bytes(b"broken")

    with pytest.raises(ImageError, match=r"3a\.png"):
        update(index, tiny, folder, strict=True)

    assert len(index) == 9  # hats 0-4, shoes 0-3


def test_an_interrupted_run_is_continued(index: Index, tiny: Encoder, make_pictures) -> None:
    """After an interruption what was encoded is kept, and the next run encodes only the rest."""
    folder = make_pictures(*(f"{n:03}.png" for n in range(120)))

    def interrupt(summary: Summary, seen: int) -> None:
        if summary.encoded == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_index(index, tiny, rows([folder]), progress=interrupt)

    assert len(index) == 40
    assert counts(update(index, tiny, folder)) == {"added": 80, "encoded": 80, "unchanged": 40}
    check(index, tiny, folder)


def test_new_columns_replace_the_payload_not_the_vector(index: Index, tiny: Encoder, folder: Path) -> None:
    """Catalogue columns that changed are stored without encoding the picture again."""
    catalogue = folder / "shop.csv"
    catalogue.write_text("image,price\nhats/0.png,10\nhats/1.png,12\n")
    update(index, tiny, catalogue)
    catalogue.write_text("image,price\nhats/0.png,10\nhats/1.png,15\n")

    assert counts(update(index, tiny, catalogue)) == {"replaced": 1, "unchanged": 1}
    assert [item.payload["price"] for item in index.get([str(folder / "hats" / f"{n}.png") for n in (0, 1)])] == [
        10,
        15,
    ]


def test_entries_made_by_hand_are_left_alone(index: Index, tiny: Encoder, folder: Path) -> None:
    """Vectors added through the Python interface survive indexing and pruning."""
    index.add(["mine"], np.ones((1, 48), np.float32), [{"note": "by hand"}])

    update(index, tiny, folder, prune=True)

    assert len(index) == 11


def test_progress_counts_every_row(index: Index, tiny: Encoder, folder: Path) -> None:
    """The last call of `progress` has seen every row."""
    calls: list[int] = []

    update_index(index, tiny, rows([folder]), progress=lambda summary, seen: calls.append(seen))

    assert calls == sorted(calls)
    assert calls[-1] == 10


def test_another_encoder_is_refused(index: Index, default_encoder: Encoder, folder: Path) -> None:
    """An index cannot be filled with vectors of two encoders."""
    with pytest.raises(EncoderMismatch):
        update(index, default_encoder, folder)


def _made(place: Path, encoder: Encoder, folder: Path) -> None:
    meta = {"encoder": encoder.describe(), "shop": "ours"}
    with closing(open_index(place, dim=encoder.dim, meta=meta, fields={"category": "keyword"})) as made:
        update_index(made, encoder, rows([folder]))


def test_rebuilding_for_another_encoder_keeps_everything_else(tiny: Encoder, folder: Path, tmp_path: Path) -> None:
    """The new index has the new vectors and all the rest of the old one, which stays beside it."""
    place = tmp_path / "pictures.index"
    _made(place, tiny, folder)
    other = Encoder.default()

    summary, before = rebuild_index(place, other)

    assert counts(summary) == {"added": 10, "encoded": 10}
    with closing(open_index(place)) as now:
        assert now.meta["shop"] == "ours"
        assert now.meta["encoder"]["fingerprint"] == other.fingerprint
        assert now.fields == {"category": "keyword"}
        assert now.count({"category": "hats"}) == 5
        check(now, other, folder)
    with closing(open_index(before, read_only=True)) as old:
        check(old, tiny, folder)
    with pytest.raises(IndexUnavailable, match="in the way"):
        rebuild_index(place, tiny)


def test_a_rebuild_cut_short_leaves_the_old_index_and_goes_on(tiny: Encoder, folder: Path, tmp_path: Path) -> None:
    """Stopped half way, the old index answers; run again, only what is missing is encoded."""
    place = tmp_path / "pictures.index"
    _made(place, tiny, folder)

    def stop(summary: Summary, seen: int) -> None:
        if summary.encoded == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild_index(place, Encoder.default(), progress=stop)
    with closing(open_index(place, read_only=True)) as old:
        check(old, tiny, folder)

    summary, _ = rebuild_index(place, Encoder.default())
    assert 0 < summary.encoded < 10
    with closing(open_index(place, read_only=True)) as now:
        check(now, Encoder.default(), folder)


def test_a_rebuild_drops_nothing_silently(tiny: Encoder, folder: Path, tmp_path: Path) -> None:
    """A picture that has gone is said, and the index that knows it is kept."""
    place = tmp_path / "pictures.index"
    _made(place, tiny, folder)
    (folder / "hats" / "3.png").unlink()

    summary, before = rebuild_index(place, Encoder.default())

    assert [error.reason for error in summary.skipped] == ["no such file"]
    with closing(open_index(before, read_only=True)) as old:
        assert len(old) == 10


# What a child does: puts a copy of a finished index in its place, again and again, killed each time one line later.
KILLED = """
    import os, signal, subprocess, sys
    from pathlib import Path
    from lookalike.index import _swap

    top = Path(sys.argv[1])
    if sys.argv[2] == "two renames":
        _swap._exchanged = lambda new, old: False
    for line in range(1000):
        copy = top / f"killed{line}"
        subprocess.run(["cp", "-R", top / "ready", copy], check=True)  # keeps the holes of the engine's files
        if (child := os.fork()) == 0:
            left = line

            def trace(frame, event, argument):
                global left
                if frame.f_code.co_filename != _swap.__file__:
                    return None
                if event == "line" and (left := left - 1) < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            _swap.take_place(copy / "pictures.index")
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            print(line)
            break
"""


@pytest.fixture
def ready(tiny: Encoder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index, and beside it the new one, complete, that has not taken its place: as by a kill right before."""
    place = tmp_path / "ready" / "pictures.index"
    _made(place, tiny, folder)

    def stop(place: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(lookalike.indexing, "take_place", stop)
        rebuild_index(place, Encoder.default())
    return place


def _holds(place: Path, encoder: Encoder, folder: Path) -> bool:
    """Whether the index is this encoder's; if so, wholly, with everything else that was in the old one."""
    with closing(open_index(place, read_only=True)) as found:
        if found.meta["encoder"]["fingerprint"] != encoder.fingerprint:
            return False
        check(found, encoder, folder)
        assert found.meta["shop"] == "ours" and found.count({"category": "hats"}) == 5
    return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
@pytest.mark.parametrize("how", ["at once", "two renames"])
def test_killed_at_any_line_of_the_swap_the_next_opening_puts_it_right(
    how: str, ready: Path, tiny: Encoder, default_encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    """The place holds the old index or the new one, whole; the other one lies beside it; a next run ends the work."""
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), how], capture_output=True, text=True, check=True
    )
    lines, seen = int(told.stdout), set()
    for line in range(lines + 1):
        place = tmp_path / f"killed{line}" / "pictures.index"
        new, before = _swap.beside(place)
        state = ((place / _swap.MARK).exists(), (new / _swap.MARK).exists(), before.exists())
        again = place.parent.with_name(
            "again"
        )  # where the first to come is who goes on with the work, not who searches
        if line < lines and state not in seen:
            subprocess.run(["cp", "-R", place.parent, again], check=True)
            summary, kept = rebuild_index(again / place.name, default_encoder)
            assert summary.encoded == 0 and kept == again / before.name, line
            assert _holds(again / place.name, default_encoder, folder) and _holds(kept, tiny, folder), line
            assert len(list(again.iterdir())) == 2, line
            shutil.rmtree(again)
        seen.add(state)

        came = _holds(place, default_encoder, folder)

        other, which = (before, tiny) if came else (new, default_encoder)
        assert sorted(place.parent.iterdir()) == sorted((place, other)), line
        assert came or _holds(place, tiny, folder), line
        assert _holds(other, which, folder) and not (place / _swap.MARK).exists(), line
        shutil.rmtree(place.parent)
    # Marks in place and beside it, and whether the old one is where it is kept: every state was met.
    half = (True, False, False) if how == "at once" else (False, True, True)
    assert {(False, False, False), (False, True, False), half, (True, False, True), (False, False, True)} == seen


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that a cut left open
@pytest.mark.parametrize("at_once", [True, False])
def test_finishing_a_swap_may_be_cut_short_as_well(
    at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever two cuts, at any two lines, leave behind: the third goes to the same end, and no folder is lost."""

    class Cut(BaseException):
        pass

    def cut(after: int, work, *given: Path) -> bool:
        def trace(frame, event, argument):
            nonlocal after
            if frame.f_code.co_filename != _swap.__file__:
                return None
            if event == "line" and (after := after - 1) < 0:
                raise Cut
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            work(*given)
        except Cut:
            return True
        finally:
            sys.settrace(before)
        return False

    if not at_once:
        monkeypatch.setattr(_swap, "_exchanged", lambda new, old: False)
    ends, first, first_cut = [], 0, True
    while first_cut:
        second, second_cut = 0, True
        while second_cut:
            place = tmp_path / f"{first} {second}" / "x"
            for path, told in ((place, "old"), (_swap.beside(place)[0], "new")):
                path.mkdir(parents=True)
                (path / "told").write_text(told)
            first_cut = cut(first, _swap.take_place, place)
            second_cut = cut(second, _swap.finish_swap, place)
            _swap.finish_swap(place)
            assert not _swap.finish_swap(place)  # nothing is left to do
            marks = sorted(path.parent.name for path in place.parent.rglob(_swap.MARK))
            names = {path.name: (path / "told").read_text() for path in place.parent.iterdir()}
            assert (names, marks) in (
                ({"x": "old", "x.new": "new"}, []),
                ({"x": "old", "x.new": "new"}, ["x.new"]),
                ({"x": "new", "x.before": "old"}, []),
            ), (first, second)
            ends.append(names["x"])
            second += 1
        first += 1
    assert {"old", "new"} == set(ends) and first > 20


def test_a_swap_is_finished_aloud_and_only_by_its_mark(
    ready: Path, tiny: Encoder, default_encoder: Encoder, folder: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A line in the log. Folders of the same names without a mark, or with that of another place, stay as they are."""
    new, before = _swap.beside(ready)
    for mark in (None, b"another.index"):
        if mark is not None:
            (ready / _swap.MARK).write_bytes(mark)
        assert _holds(ready, tiny, folder) and new.exists() and not before.exists() and not caplog.text

    (ready / _swap.MARK).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(_swap, "_finish", lambda folder: None)
        _swap.take_place(ready)
    with monkeypatch.context() as patched:  # where nothing may be renamed, what stands there answers, and that is said
        patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(13, "not allowed")))
        assert _holds(ready, default_encoder, folder) and "cannot be finished" in caplog.text and "13" in caplog.text
        with pytest.raises(IndexUnavailable, match=r"cannot take the place of .*not allowed.*run this again"):
            rebuild_index(ready, default_encoder)
    caplog.clear()
    assert _holds(ready, default_encoder, folder) and _holds(before, tiny, folder)
    [record] = caplog.records
    assert record.name == "lookalike.index" and f"{ready}: its making anew" in record.getMessage()


def test_only_a_folder_can_be_rebuilt(tiny: Encoder) -> None:
    """A collection of a server has no place beside it."""
    with pytest.raises(IndexUnavailable, match="new collection"):
        rebuild_index("http://localhost:6333/pictures", tiny)
