"""Folders that are held open, and what is in them: nothing here follows a symbolic link that somebody has put in the
way.

On POSIX a folder is a descriptor, and each step from it to what it holds is one name (openat(2) with O_NOFOLLOW).
Where descriptors of folders are missing, as on Windows, a folder is a path, and links are looked for before each step.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, TypedDict, final

__all__ = ["Folder"]

_BY_DESCRIPTOR: Final = {os.open, os.mkdir, os.stat, os.rename, os.link, os.unlink, os.rmdir} <= os.supports_dir_fd
_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES})
"""How file systems say that they have no hard links: FAT, and some that are mounted over a network."""


class _At(TypedDict, total=False):
    dir_fd: int


@final
class Folder:
    """A folder that is held open; close it.

    Attributes:
      path: where it is, for messages and where there is no other way.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path: Final = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """A folder that the user has named, by links too.  Raises OSError."""
        if not _BY_DESCRIPTOR:
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            return cls(path, -1)
        return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _name(self, name: str) -> str:
        return name if _BY_DESCRIPTOR else str(self.path / name)

    def _at(self) -> _At:
        return {"dir_fd": self._descriptor} if _BY_DESCRIPTOR else {}

    def subfolder(self, name: str, *, make: bool = False, mode: int = 0o777) -> Folder:
        """A folder in it.  Raises OSError: it is none, or a link to one.

        Args:
          make: where there is none.
        """
        if make:
            with suppress(FileExistsError):
                os.mkdir(self._name(name), mode, **self._at())
        if _BY_DESCRIPTOR:
            return Folder(
                self.path / name, os.open(name, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=self._descriptor)
            )
        if not stat.S_ISDIR(self.stat(name).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.path / name))
        return Folder(self.path / name, -1)

    def make_folder(self, name: str) -> None:
        """Raises FileExistsError where the name is taken."""
        os.mkdir(self._name(name), **self._at())

    def open_file(self, name: str, flags: int, mode: int = 0o666) -> int:
        """The descriptor of a regular file in it.  Raises OSError: a link, a device, or what the system says."""
        if not _BY_DESCRIPTOR and self.kind(name) == stat.S_IFLNK:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self.path / name))
        descriptor = os.open(self._name(name), flags | _FLAGS | getattr(os, "O_NONBLOCK", 0), mode, **self._at())
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", str(self.path / name))
        return descriptor

    def stat(self, name: str) -> os.stat_result:
        """Of what has the name itself, not of where it leads.  Raises OSError."""
        return os.stat(self._name(name), follow_symlinks=False, **self._at())

    def kind(self, name: str) -> int | None:
        """The kind (`stat.S_IFMT`) of what has the name; None where nothing has."""
        try:
            return stat.S_IFMT(self.stat(name).st_mode)
        except FileNotFoundError:
            return None

    def set_time(self, name: str, modified: int) -> None:
        """When a file in it was changed, in nanoseconds since 1970, where a descriptor cannot be told.

        Raises OSError, and OverflowError for what is no time here.
        """
        if self.kind(name) == stat.S_IFREG:
            os.utime(self.path / name, ns=(modified, modified))

    def status(self) -> os.stat_result:
        """Of the folder itself."""
        return os.fstat(self._descriptor) if _BY_DESCRIPTOR else os.stat(self.path)

    def free_space(self) -> int:
        """Bytes that this user may still write."""
        if hasattr(os, "fstatvfs") and _BY_DESCRIPTOR:
            found = os.fstatvfs(self._descriptor)
            return found.f_bavail * found.f_frsize
        import shutil

        return shutil.disk_usage(self.path).free

    def names(self) -> list[str]:
        """What is in it."""
        return os.listdir(self._descriptor if _BY_DESCRIPTOR else self.path)

    def remove(self, name: str) -> None:
        """Remove whatever has the name, with all that is in it; nothing where nothing has.  Links are not followed."""
        kind = self.kind(name)
        if kind is None:
            return
        if kind != stat.S_IFDIR:
            os.unlink(self._name(name), **self._at())
            return
        with self.subfolder(name) as inner:
            for each in inner.names():
                inner.remove(each)
        os.rmdir(self._name(name), **self._at())

    def read(self, name: str, most: int) -> bytes:
        """At most so many bytes of a file; nothing where there is none."""
        try:
            descriptor = self.open_file(name, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        with open(descriptor, "rb") as file:
            return file.read(most)

    def write(self, name: str, data: bytes) -> None:
        """Have a small file of ours hold this: all of it, or what it held before."""
        new = f"{name}.new"
        self.remove(new)
        with open(self.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        if _BY_DESCRIPTOR:
            os.rename(new, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        else:
            os.replace(self._name(new), self._name(name))

    def move_out(self, name: str, into: Folder, as_name: str) -> None:
        """Give what is here a name in another folder of the same disk, at once and in nobody's place.

        Raises:
          FileExistsError: the name is taken there.
          OSError: what the system says.
        """
        if os.name == "nt":
            os.rename(self._name(name), into._name(as_name))  # which replaces nothing there
            return
        is_folder = self.kind(name) == stat.S_IFDIR
        if not is_folder and self._link_out(name, into, as_name):
            os.unlink(self._name(name), **self._at())
            return
        # A name that is taken by what is empty and our own: the rename that follows replaces nothing else, since a
        # folder that somebody has put something into is not replaced.
        if is_folder:
            into.make_folder(as_name)
        else:
            os.close(into.open_file(as_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            if _BY_DESCRIPTOR:
                os.rename(name, as_name, src_dir_fd=self._descriptor, dst_dir_fd=into._descriptor)
            else:
                os.rename(self._name(name), into._name(as_name))
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), as_name) from error
            with suppress(OSError):
                into.remove_empty(as_name, is_folder)
            raise

    def _link_out(self, name: str, into: Folder, as_name: str) -> bool:
        """Whether the file system has hard links: then the file has both names."""
        try:
            if _BY_DESCRIPTOR:
                os.link(name, as_name, src_dir_fd=self._descriptor, dst_dir_fd=into._descriptor, follow_symlinks=False)
            else:
                os.link(self._name(name), into._name(as_name))
        except OSError as error:
            if error.errno in _NO_LINKS:
                return False
            raise
        return True

    def remove_empty(self, name: str, is_folder: bool) -> None:
        """Remove a name that `move_out` took and could not use."""
        if is_folder:
            os.rmdir(self._name(name), **self._at())
        else:
            os.unlink(self._name(name), **self._at())

    def sync(self) -> None:
        """Have the names that it holds outlast a power cut, where the system lets one say so."""
        if _BY_DESCRIPTOR:
            with suppress(OSError):
                os.fsync(self._descriptor)
