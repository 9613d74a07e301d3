"""The incomplete files of one offer, below an open folder.  No links are followed.  All functions block."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from typing import Final, Self, final

from .digests import block_start
from .folder import Folder
from .wire import Entry, EntryKind

__all__ = ["Tree"]


def _any_time() -> AbstractContextManager[None]:
    """Ignore a time that the system or the file system cannot store: the file keeps the time of its last write."""
    return suppress(OSError, OverflowError)


@final
class Tree:
    """The files of an offer, one of them at a time open for writing; close it after use.  All methods raise OSError.

    Attributes:
      root: the folder, which the tree owns and closes.
    """

    def __init__(self, root: Folder) -> None:
        self.root: Final = root
        self._parent: tuple[str, Folder] | None = None
        self._growing: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything that is open; the files stay."""
        self.rest()
        self.root.close()

    def rest(self) -> None:
        """Close everything below the root, so that it can be moved."""
        self._close_file()
        if self._parent is not None:
            self._parent[1].close()
            self._parent = None

    def place(self, path: str) -> tuple[Folder, str]:
        """The open folder that contains a path of the offer, and the name in it."""
        above, _, name = path.rpartition("/")
        if not above:
            return self.root, name
        if self._parent is None or self._parent[0] != above:
            folder = self.root
            for each in above.split("/"):
                inner = folder.subfolder(each)
                if folder is not self.root:
                    folder.close()
                folder = inner
            if self._parent is not None:
                self._parent[1].close()
            self._parent = (above, folder)
        return self._parent[1], name

    def make_folder(self, path: str) -> None:
        """Make a folder where it is missing."""
        parent, name = self.place(path)
        parent.subfolder(name, make=True).close()

    def grow(self, entry: Entry, blocks: int) -> int:
        """Open a file for writing behind its first `blocks` blocks, cut off the rest, and return its descriptor.

        If the file is already open and `blocks` is not 0, it is returned as it is.
        """
        if self._growing is not None and self._growing[0] == entry.path and blocks:
            return self._growing[1]
        self._close_file()
        parent, name = self.place(entry.path)
        if blocks == 0:
            parent.remove(name)
        flags = os.O_WRONLY if blocks else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        mode = 0o777 if entry.kind is EntryKind.EXECUTABLE else 0o666  # less the user's umask
        descriptor = parent.open_file(name, flags, mode)
        self._growing = (entry.path, descriptor)
        os.ftruncate(descriptor, block_start(blocks))
        os.lseek(descriptor, block_start(blocks), os.SEEK_SET)
        return descriptor

    def finish(self, entry: Entry, blocks: int) -> None:
        """Set length and modification time of a complete file, and close it."""
        descriptor = self.grow(entry, blocks)
        os.ftruncate(descriptor, entry.size)
        if os.utime in os.supports_fd:
            with _any_time():
                os.utime(descriptor, ns=(entry.modified, entry.modified))
        self._close_file()
        if os.utime not in os.supports_fd:  # Windows, where the time is set by name
            parent, name = self.place(entry.path)
            with _any_time():
                parent.set_time(name, entry.modified)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self._close_file()
        parent, name = self.place(path)
        parent.remove(name)

    def sync(self, entry: Entry) -> None:
        """Write a file or folder to the disk (fsync)."""
        parent, name = self.place(entry.path)
        if entry.is_folder:
            with parent.subfolder(name) as folder:
                folder.sync()
            return
        descriptor = parent.open_file(name, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _close_file(self) -> None:
        if self._growing is not None:
            os.close(self._growing[1])
            self._growing = None
