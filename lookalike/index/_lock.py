"""One process at a time in a folder: an advisory lock that ends with its process, and says who holds it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> None:
        # Windows forbids reading locked bytes, so the locked one lies beyond the text that names the holder.
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def _unlock(handle: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _try_lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would leave it with processes forked meanwhile


class Held(Exception):
    """Someone else has the lock; ``str`` says who."""


class FolderLock:
    """Holds `path` locked until `release` or the end of the process, however it ends.

    Args:
        path: the lock file.
        patience: seconds to wait for another process to let go. Two searches typed at the same moment then take turns.

    Raises:
        Held: another opener, in this process or another, has it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, patience: float = 0.0) -> None:
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        deadline = time.monotonic() + patience
        while True:
            try:
                _try_lock(self._handle)
                break
            except OSError:
                holder = os.pread(self._handle, 200, 0) if hasattr(os, "pread") else os.read(self._handle, 200)
                mine = holder.partition(b" ")[0] == str(os.getpid()).encode()  # waiting for oneself is in vain
                if not mine and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                os.close(self._handle)
                self._handle = None
                raise Held(_holder(holder.decode(errors="replace"))) from None
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, f"{os.getpid()} {Path(sys.argv[0] or 'python').name}".encode(errors="replace"))

    def release(self) -> None:
        """Let others in. Safe to call twice."""
        if self._handle is not None:
            _unlock(self._handle)
            os.close(self._handle)
            self._handle = None


def _holder(text: str) -> str:
    pid, _, program = text.partition(" ")
    if not pid.isdigit():
        return "another process"
    if int(pid) == os.getpid():
        return f"this process ({pid}) already"
    return f"process {pid} ({program})" if program else f"process {pid}"
