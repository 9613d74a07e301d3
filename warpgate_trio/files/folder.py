"""Access to files below an open folder, without following symbolic links.

On POSIX a folder is a descriptor, and its contents are reached one name at a time (openat(2) with O_NOFOLLOW).  On
systems without descriptors of folders, such as Windows, a folder is a path, and each step first checks for a link.
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
"""Errors of file systems without hard links: FAT, and some network file systems."""


class _At(TypedDict, total=False):
    dir_fd: int


@final
class Folder:
    """An open folder; close it after use.

    Attributes:
      path: its path, for messages and for calls that do not accept a descriptor.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path: Final = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder that the user has named; links in `path` are followed.  Raises OSError."""
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
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _name(self, name: str) -> str:
        return name if _BY_DESCRIPTOR else str(self.path / name)

    def _at(self) -> _At:
        return {"dir_fd": self._descriptor} if _BY_DESCRIPTOR else {}

    def subfolder(self, name: str, *, make: bool = False, mode: int = 0o777) -> Folder:
        """Open a folder in this one.  Raises OSError, also where the name is a file or a link.

        Args:
          make: whether to make the folder where it is missing.
          mode: permissions of a new folder.
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
        """Make a folder in this one.  Raises OSError; FileExistsError where the name is taken."""
        os.mkdir(self._name(name), **self._at())

    def open_file(self, name: str, flags: int, mode: int = 0o666) -> int:
        """Open a regular file in this folder and return its descriptor.

        Raises OSError, also for a link or a device.
        """
        if not _BY_DESCRIPTOR and self.kind(name) == stat.S_IFLNK:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self.path / name))
        descriptor = os.open(self._name(name), flags | _FLAGS | getattr(os, "O_NONBLOCK", 0), mode, **self._at())
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", str(self.path / name))
        return descriptor

    def stat(self, name: str) -> os.stat_result:
        """The status of a name in this folder; of a link, that of the link itself.  Raises OSError."""
        return os.stat(self._name(name), follow_symlinks=False, **self._at())

    def kind(self, name: str) -> int | None:
        """The kind (`stat.S_IFMT`) of a name in this folder; None where it does not exist.  Raises other OSErrors."""
        try:
            return stat.S_IFMT(self.stat(name).st_mode)
        except FileNotFoundError:
            return None

    def set_time(self, name: str, modified: int) -> None:
        """Set the modification time of a file by its name, for systems that do not set it by descriptor.

        Args:
          modified: nanoseconds since 1970.

        Raises OSError, and OverflowError for a time that the system cannot represent.
        """
        if self.kind(name) == stat.S_IFREG:
            os.utime(self.path / name, ns=(modified, modified))

    def status(self) -> os.stat_result:
        """The status of the folder itself."""
        return os.fstat(self._descriptor) if _BY_DESCRIPTOR else os.stat(self.path)

    def free_space(self) -> int:
        """Bytes available to this user on the file system."""
        if hasattr(os, "fstatvfs") and _BY_DESCRIPTOR:
            found = os.fstatvfs(self._descriptor)
            return found.f_bavail * found.f_frsize
        import shutil

        return shutil.disk_usage(self.path).free

    def names(self) -> list[str]:
        """The names in this folder."""
        return os.listdir(self._descriptor if _BY_DESCRIPTOR else self.path)

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with its contents; a missing name is no error.  Links are not followed."""
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
        """The first `most` bytes of a file at most; empty where there is no file."""
        try:
            descriptor = self.open_file(name, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        with open(descriptor, "rb") as file:
            return file.read(most)

    def write(self, name: str, data: bytes) -> None:
        """Replace the content of a small file atomically: it holds either all of `data` or its old content."""
        new = f"{name}.new"
        self.remove(new)
        with open(self.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        if _BY_DESCRIPTOR:
            os.rename(new, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        else:
            os.replace(self._name(new), self._name(name))

    def move_out(self, name: str, into: Folder, as_name: str) -> None:
        """Move a file or folder into another folder of the same disk, atomically and without replacing anything.

        Raises:
          FileExistsError: the name is taken there.
          OSError: any other error of the system.
        """
        if os.name == "nt":
            os.rename(self._name(name), into._name(as_name))  # on Windows this replaces nothing
            return
        is_folder = self.kind(name) == stat.S_IFDIR
        if not is_folder and self._link_out(name, into, as_name):
            os.unlink(self._name(name), **self._at())
            return
        # Reserve the name with an empty file or folder of ours, which the rename then replaces.  A folder into which
        # somebody has put something meanwhile is not replaced.
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
        """Give a file a second name by a hard link; False where the file system has no hard links."""
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
        """Remove a name that `move_out` reserved and could not use."""
        if is_folder:
            os.rmdir(self._name(name), **self._at())
        else:
            os.unlink(self._name(name), **self._at())

    def sync(self) -> None:
        """Write the folder's names to the disk (fsync), where the system can do that."""
        if _BY_DESCRIPTOR:
            with suppress(OSError):
                os.fsync(self._descriptor)
