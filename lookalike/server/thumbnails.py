"""Pictures for the page: found by key, kept within the indexed folders, and always encoded anew.

What a client gets is never a file from the disk: it has been decoded within limits and written as a JPEG, without the
place where it was taken and whatever else a camera notes down.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from lookalike.catalogue import path_of
from lookalike.errors import ImageError
from lookalike.images import Picture, facts, read, read_bytes
from lookalike.index.base import Index, Item
from lookalike.server.replies import Refused

__all__ = ["SIZES", "Album", "jpeg"]

SIZES = (128, 256, 384, 640, 1280)  # pixels of the longer side: few, so that few have to be kept
QUALITY = 82
KEPT_BYTES = 64 << 20  # of finished thumbnails


class Album:
    """The pictures of an index.

    Args:
        index: whose keys may be shown.
        folders: folders that may be read besides those in which the index's pictures lie when `learn` is called.
        pixels: of one picture; larger ones are not decoded.
    """

    def __init__(self, index: Index, folders: Iterable[Path], pixels: int) -> None:
        self._index = index
        self._trees = tuple(os.path.realpath(folder) for folder in folders)
        self._folders: frozenset[str] = frozenset()
        self._pixels = pixels
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def learn(self) -> None:
        """See in which folders the indexed pictures lie. What is added later cannot add a folder."""
        names: set[str] = set()
        for item in self._index.scan():
            if isinstance(item.payload.get("file"), dict):
                names.add(os.path.dirname(path_of(item.key)))  # noqa: PTH120 - undecodable bytes
        self._folders = frozenset(map(os.path.realpath, names))

    def path(self, item: Item) -> str:
        """Where an item's picture lies, with all links resolved.

        Raises:
            Refused: outside the folders, by whatever way; 404, as if it were not there.
        """
        missing = Refused(
            404, "no_picture", "this item has no picture that may be shown", "Start the server with --folder FOLDER."
        )
        name = path_of(item.key)
        if not os.path.isabs(name) or "\0" in name:  # noqa: PTH117
            raise missing
        real = os.path.realpath(name)
        folder = os.path.dirname(real)  # noqa: PTH120
        inside = any(folder == tree or folder.startswith(tree.rstrip(os.sep) + os.sep) for tree in self._trees)
        if not inside and folder not in self._folders:
            raise missing
        return real

    def content(self, item: Item) -> bytes:
        """The file of an item's picture, of at most as many pixels as are decoded.

        Raises:
            Refused: outside the folders, or too many pixels. ImageError: it cannot be read.
        """
        data = read_bytes(self.path(item))
        check_pixels(data, self._pixels)
        return data

    def tag(self, item: Item, size: int) -> str:
        """Changes when the thumbnail would."""
        file = item.payload.get("file")
        content = str(file.get("sha256")) if isinstance(file, dict) else "-"
        return hashlib.sha256(f"1 {content} {size} {item.key}".encode("utf-8", "replace")).hexdigest()[:24]

    def thumbnail(self, item: Item, size: int) -> bytes:
        """A JPEG whose longer side has at most `size` pixels. Raises Refused, ImageError."""
        tag = self.tag(item, size)
        path = self.path(item)  # asked every time: a folder may have become a link
        with self._lock:
            if tag in self._kept:
                self._kept.move_to_end(tag)
                return self._kept[tag]
        data = read_bytes(path)
        check_pixels(data, self._pixels)
        try:
            made = jpeg(data, size)
        except ImageError as error:  # its message would tell nothing new, and "<bytes>" nothing at all
            raise Refused(404, "no_picture", f"the picture cannot be read: {error.reason}", "Index it anew.") from None
        with self._lock:
            if tag not in self._kept:
                self._kept[tag] = made
                self._bytes += len(made)
            while self._bytes > KEPT_BYTES:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= len(gone)
        return made


def jpeg(picture: Picture, size: int) -> bytes:
    """A picture as a JPEG of at most `size` pixels on the longer side, without metadata. Raises ImageError."""
    image = read(picture, at_least=(size, size))
    image.thumbnail((size, size))
    image.info.clear()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def check_pixels(data: bytes, most: int) -> None:
    """Make sure that a picture's header does not promise more pixels than are decoded. Raises Refused (413)."""
    found = facts(data)
    if found and found["width"] * found["height"] > most:
        raise Refused(
            413,
            "too_many_pixels",
            f"the picture has {found['width']} × {found['height']} pixels; at most {most:,} are read",
            "Send a smaller one.",
        )
