"""Copies by class: nothing moved, overwritten, or written outside; a second run writes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import sorting
from lookalike.errors import LookalikeError
from lookalike.sorting import check_apart, folder_names, sort_into


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


def below(top: Path) -> dict[str, str]:
    return {str(path.relative_to(top)): path.read_text() for path in sorted(top.rglob("*")) if path.is_file()}


def test_copies_keep_name_content_times_and_the_original(tmp_path: Path) -> None:
    """The picture stays where it is; its copy has its time and permissions."""
    picture = write(tmp_path / "in" / "a.jpg", "A")
    os.utime(picture, (1e9, 1e9))
    Path(picture).chmod(0o640)
    (copied,) = sort_into(tmp_path / "out", [(picture, "cat")])

    assert (copied.path, copied.copy, copied.fresh) == (picture, str(tmp_path / "out" / "cat" / "a.jpg"), True)
    assert below(tmp_path) == {"in/a.jpg": "A", "out/cat/a.jpg": "A"}
    assert Path(copied.copy).stat().st_mtime == 1e9
    assert Path(copied.copy).stat().st_mode & 0o777 == 0o640


def test_names_that_clash_get_numbers_unless_the_content_is_the_same(tmp_path: Path) -> None:
    """Nothing is overwritten, identical content is not copied again, and a second run changes nothing."""
    pictures = [(write(tmp_path / "in" / str(i) / "a.jpg", text), "cat") for i, text in enumerate("ABAC")]
    write(tmp_path / "out" / "cat" / "a.jpg", "mine")
    copies = sort_into(tmp_path / "out", pictures)
    expected = {"cat/a.jpg": "mine", "cat/a-2.jpg": "A", "cat/a-3.jpg": "B", "cat/a-4.jpg": "C"}
    assert below(tmp_path / "out") == expected
    assert [copied.fresh for copied in copies] == [True, True, False, True]

    again = sort_into(tmp_path / "out", pictures)
    assert below(tmp_path / "out") == expected
    assert not any(copied.fresh for copied in again)


def test_links_and_folders_in_the_way_are_left_alone(tmp_path: Path) -> None:
    """A link, even one that leads nowhere, is not written through, and a folder of that name is no file."""
    picture = write(tmp_path / "in" / "a.jpg", "A")
    (tmp_path / "out" / "cat").mkdir(parents=True)
    (tmp_path / "out" / "cat" / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (tmp_path / "out" / "cat" / "a-2.jpg").mkdir()
    (copied,) = sort_into(tmp_path / "out", [(picture, "cat")])
    assert Path(copied.copy).name == "a-3.jpg"
    assert not (tmp_path / "elsewhere.jpg").exists()


def test_a_copy_that_fails_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves no half picture, and the error says which."""

    def full(source: object, copy: object) -> None:
        copy.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(LookalikeError, match=r"cannot copy .*a\.jpg to .*cat/a\.jpg: No space left on device"):
        sort_into(tmp_path / "out", [(write(tmp_path / "in" / "a.jpg", "A"), "cat")])
    assert below(tmp_path / "out") == {}


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    """The reason is the system's."""
    picture = write(tmp_path / "a.jpg", "A")
    with pytest.raises(LookalikeError, match=r"cannot copy .*a\.jpg"):
        sort_into(write(tmp_path / "out", "a file"), [(picture, "cat")])


def test_labels_become_folders() -> None:
    """Slashes part folders; dots, what is hidden, and what other systems forbid do not survive; names stay apart."""
    names = folder_names(
        ["a/b", "../x", "..", "", "/etc/passwd", "C:\\new", ".hidden", "Shoes", "shoes", "what?", "été"]
    )
    assert names == {
        "a/b": "a/b",
        "../x": "_/x",
        "..": "_",
        "": "_-2",
        "/etc/passwd": "etc/passwd",
        "C:\\new": "C__new",
        ".hidden": "hidden",
        "Shoes": "Shoes",
        "shoes": "shoes-2",
        "what?": "what_",
        "été": "été",
    }
    assert len(folder_names(["ü" * 300])["ü" * 300].encode()) <= sorting.LONGEST


@given(st.lists(st.text(), min_size=1, max_size=5, unique=True))
def test_no_label_leads_out(labels: list[str]) -> None:
    """Whatever a label holds, its folder is below the one given, and is nobody else's."""
    names = folder_names(labels)
    for name in names.values():
        inside = os.path.normpath(f"/top/{name}")
        assert inside.startswith("/top/")
        assert "\0" not in name
    assert len({name.casefold() for name in names.values()}) == len(labels)


def test_copies_may_not_land_among_the_pictures(tmp_path: Path) -> None:
    """Inside a folder of queries they would be found the next time; beside it they are not."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for inside in (tmp_path / "photos", tmp_path / "photos" / "sorted", tmp_path / "link" / "sorted"):
        with pytest.raises(LookalikeError, match=r"lies in .*photos.*: choose a folder outside it"):
            check_apart(inside, [str(tmp_path / "photos")])
    check_apart(tmp_path / "photos-sorted", [str(tmp_path / "photos")])
