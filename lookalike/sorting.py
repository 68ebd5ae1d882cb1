"""Copy pictures into a folder per class: nothing is moved, overwritten, or written outside the folder given."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from lookalike.errors import LookalikeError
from lookalike.images import shown

# Bytes of one folder's name: file systems allow 255, and something may be put behind it.
LONGEST = 200

__all__ = ["Copied", "check_apart", "folder_names", "sort_into"]


@dataclass(frozen=True, slots=True)
class Copied:
    """A picture and its copy.

    Attributes:
        path: the picture.
        copy: where its content lies now.
        fresh: False where the very content lay there already, under that name, and nothing was written.
    """

    path: str
    copy: str
    fresh: bool


def sort_into(folder: str | os.PathLike[str], pictures: Iterable[tuple[str, str]]) -> list[Copied]:
    """Copy each picture into the folder of its label.

    The copy has the picture's name, content, times and permissions. Where a file of that name but of other content
    lies, it becomes ``name-2.jpg``, ``name-3.jpg`` and so on; the very content is not copied twice under one name, so
    that a second run writes nothing. A copy that cannot be finished is taken away again.

    Args:
        folder: made if it is not there.
        pictures: (path, label); see `folder_names` for what becomes of a label.

    Raises:
        LookalikeError: a file cannot be read or written; what was copied before stays.
    """
    listed = list(pictures)
    names = folder_names(sorted({label for _, label in listed}))
    return [_copied(path, os.path.join(folder, names[label])) for path, label in listed]  # noqa: PTH118


def folder_names(labels: Sequence[str]) -> dict[str, str]:
    """A relative folder for each label, none of which leads out of the folder it is joined to.

    ``/`` in a label parts folders, as in labels that come from folders; what other systems forbid in names becomes
    ``_``, and a part that is empty or dots does, too. Labels that would share a folder (also where upper and
    lower case are one) get ``-2``, ``-3`` and so on.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        parts = [_clean(part) for part in re.split("/+", label.strip("/"))]
        for number in count(1):
            last = parts[-1] if number == 1 else f"{parts[-1]}-{number}"
            name = os.path.join(*parts[:-1], last)  # noqa: PTH118
            if name.casefold() not in taken:
                break
        taken.add(name.casefold())
        found[label] = name
    return found


def check_apart(folder: str | os.PathLike[str], places: Iterable[str | os.PathLike[str]]) -> None:
    """Make sure that copies do not land among the pictures they are made of, to be found there the next time.

    Raises:
        LookalikeError: `folder` is one of `places`, or lies in one.
    """
    target = os.path.realpath(folder)
    for place in places:
        around = os.path.realpath(place)
        if target == around or target.startswith(around.rstrip(os.sep) + os.sep):
            raise LookalikeError(
                f"{shown(folder)} lies in {shown(place)}, where the copies would be taken for pictures the next time: "
                "choose a folder outside it"
            )


def _clean(part: str) -> str:
    # Neither hidden, nor "..", nor what Windows drops from the end of a name.
    kept = re.sub(r'[\x00-\x1f\x7f<>:"|?*\\]', "_", part).strip(". ") or "_"
    return kept.encode("utf-8", "surrogateescape")[:LONGEST].decode("utf-8", "ignore") or "_"


def _copied(path: str, folder: str) -> Copied:
    stem, extension = os.path.splitext(os.path.basename(path))  # noqa: PTH119, PTH122
    target = folder
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        for number in count(1):
            name = stem + extension if number == 1 else f"{stem}-{number}{extension}"
            target = os.path.join(folder, name)  # noqa: PTH118
            if _write(path, target):
                return Copied(path, target, True)
            if _same(path, target):
                return Copied(path, target, False)
    except OSError as error:
        raise LookalikeError(f"cannot copy {shown(path)} to {shown(target)}: {error.strerror}") from error
    raise AssertionError("count does not end")


def _write(path: str, target: str) -> bool:
    """Copy, or say that there is something of that name already."""
    with open(path, "rb") as source:  # noqa: PTH123
        try:
            copy = open(target, "xb")  # noqa: PTH123, SIM115 - exclusively: what appears meanwhile is not overwritten
        except FileExistsError:
            return False
        try:
            with copy:
                shutil.copyfileobj(source, copy)
        except BaseException:
            os.unlink(target)  # noqa: PTH108
            raise
    with suppress(PermissionError):  # file systems without permissions
        shutil.copystat(path, target)
    return True


def _same(path: str, target: str) -> bool:
    try:
        return filecmp.cmp(path, target, shallow=False)
    except FileNotFoundError:  # a link that leads nowhere
        return False
