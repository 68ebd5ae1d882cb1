"""A new index takes the place of an old one, in steps of which a killed process may leave any to the next opening.

::

    X            X.new, marked      the new one is complete; X answers as before, and making it anew goes on from here
    X, marked    X.new              the two have changed names at once, so that X.new is the old one
    -            X.new, marked      X.before: as the line above, where the system cannot change names at once
    X, marked    -                  X.before: only the mark is left
    X            -                  X.before: done

The mark is a file in the new index that names the place it is for. It is there before the first name changes and goes
after the last. Folders that only have such names are left alone, and nothing is ever deleted here but the mark.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from pathlib import Path

MARK = "lookalike.swap"

__all__ = ["beside", "finish_swap", "sync_folder", "take_place", "unmark"]

log = logging.getLogger("lookalike.index")


def beside(folder: Path) -> tuple[Path, Path]:
    """Where the new index of `folder` is made, and where its old one goes."""
    return folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.before")


def take_place(folder: Path) -> None:
    """Put the index beside `folder`, complete and closed, in its place; the old one goes to where it is kept.

    Raises:
        OSError: the folders cannot be renamed; the next opening tries again.
    """
    new, before = beside(folder)
    with (new / MARK).open("wb") as file:
        file.write(os.fsencode(folder.name))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(new)
    if not _exchanged(new, folder):
        folder.rename(before)
    _finish(folder)


def finish_swap(folder: Path) -> bool:
    """Finish what a killed `take_place` left, and say so in the log.

    Returns:
        Whether there was anything to finish.

    Raises:
        OSError: the folders cannot be renamed.
    """
    if not folder.name or not _left(folder):  # "." and "/" have nothing beside them
        return False
    _finish(folder)
    log.warning("%s: its making anew, cut short at the very end, is finished: the new index is in its place", folder)
    return True


def unmark(new: Path) -> None:
    """A folder that may be written to again is not complete any more. Raises OSError."""
    (new / MARK).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, where the system can. Raises OSError."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _left(folder: Path) -> bool:
    if _marked(folder, folder.name):
        return True
    new, before = beside(folder)
    return _marked(new, folder.name) and before.exists() and not folder.exists()


def _marked(folder: Path, name: str) -> bool:
    try:
        return (folder / MARK).read_bytes() == os.fsencode(name)
    except (OSError, ValueError):  # none there, or no place where any could be
        return False


def _finish(folder: Path) -> None:
    new, before = beside(folder)
    # Two may be here at once, who swaps and who opens: what is gone has been done by the other.
    with contextlib.suppress(FileNotFoundError):
        if not folder.exists():
            new.rename(folder)
        elif new.exists():
            new.rename(before)
    sync_folder(folder.absolute().parent)  # the mark outlives the power failing in between
    unmark(folder)


def _exchanged(new: Path, old: Path) -> bool:
    """Let two folders change names at once; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename, here, exchange = ctypes.CDLL(None, use_errno=True).renameat2, -100, 2
    except AttributeError:  # an old C library
        return False
    done: int = rename(here, os.fsencode(new), here, os.fsencode(old), exchange)
    return done == 0
