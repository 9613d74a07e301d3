"""Small files that only their owner may read: keys, tokens, contacts.

A file is created atomically, and once, however many processes start at the same time.  It is not trusted if another
user could have written it.  A change replaces the whole file; a lock makes processes take turns.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from .. import host

__all__ = ["PrivateFileProblem", "create_private_file", "read_private_file", "replace_private_file", "turn_to_change"]

MAX_SIZE: Final = 16_384
"""Bytes: a PKCS #8 Ed25519 key is 119 bytes of PEM, a token at most 256; a larger file is a different one."""


class PrivateFileProblem(Exception):
    """A file cannot be read or made, or others have access to it; the text is a sentence that names it."""


def read_private_file(what: str, file: Path, *, max_size: int = MAX_SIZE) -> bytes | None:
    """The content of a file that only its owner may read or change; None if there is no such file.

    On POSIX its owner and mode are checked:

    * The owner has to be us or root, since an owner can read and change a file whatever its mode says.
    * The group may read the file only if it is root's and we are not root.  Kubernetes mounts a Secret like that for a
      process that could not read it otherwise, and root decides who is in the group (PostgreSQL has the same rule).
    * Any other access of group or others is refused.

    Raises `PrivateFileProblem`, whose text calls the file `what`.
    """
    # A FIFO in the file's place must not block us (O_NONBLOCK).  The checks use the open file, not its name.
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file, flags)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise PrivateFileProblem(f"the {what} {file} cannot be read: {_reason(error)}") from error
    try:
        with open(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise PrivateFileProblem(f"the {what} {file} is not a regular file")
            if os.name == "posix":
                _check_access(what, file, status)
            content = opened.read(max_size + 1)
    except OSError as error:
        raise PrivateFileProblem(f"the {what} {file} cannot be read: {_reason(error)}") from error
    if len(content) > max_size:
        raise PrivateFileProblem(f"{file} is too large to be a {what}")
    return content


def create_private_file(what: str, file: Path, content: bytes) -> bool:
    """Create `file` with `content` (mode 0600, its directory 0700); returns False if it exists already.

    Raises `PrivateFileProblem`, whose text calls the file `what`.
    """
    try:
        with _written_beside(what, file, content) as temporary:
            try:
                _rename_exclusively(temporary, file)
            except FileExistsError:
                return False
        _sync_directory(file.parent)
    except (OSError, ValueError) as error:
        raise PrivateFileProblem(f"the {what} {file} cannot be made: {_reason(error)}") from error
    return True


def replace_private_file(what: str, file: Path, content: bytes) -> None:
    """Replace the content of `file`, or create it (mode 0600, its directory 0700).

    The replacement is atomic: a reader finds the old or the new content, even after a power cut.  To change the
    existing content, read and replace it within `turn_to_change`.  If `file` is a symbolic link, its target is
    replaced.

    Raises `PrivateFileProblem`, whose text calls the file `what`.
    """
    try:
        target = file.resolve() if file.is_symlink() else file
        with _written_beside(what, target, content) as temporary:
            os.replace(temporary, target)
        _sync_directory(target.parent)
    except (OSError, ValueError) as error:
        raise PrivateFileProblem(f"the {what} {file} cannot be written: {_reason(error)}") from error


@contextmanager
def turn_to_change(what: str, file: Path) -> Generator[None]:
    """Lock out other changes of `file` during the body.  Keep the body short: other processes wait for it.

    The lock is released when its holder ends.  It is on a separate file beside `file`, because each change replaces
    `file` itself.

    Raises `PrivateFileProblem`, whose text calls the file `what`.
    """
    try:
        target = file.resolve() if file.is_symlink() else file
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(target.with_name(f".{target.name}.lock"), flags, 0o600)
    except (OSError, ValueError) as error:
        raise PrivateFileProblem(f"the {what} {file} cannot be locked: {_reason(error)}") from error
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            raise PrivateFileProblem(f"the {what} {file} cannot be locked: {_reason(error)}") from error
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait for the lock of an open file; closing the file releases it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def _written_beside(what: str, file: Path, content: bytes) -> Generator[Path]:
    """A file with `content` beside `file`, under a random name; the body moves it to its place."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{host.current().entropy(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as opened:
            if os.name == "posix":
                _check_kept_private(what, file, os.fstat(descriptor))
            opened.write(content)
            opened.flush()
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _check_access(what: str, file: Path, status: os.stat_result) -> None:
    ours = os.geteuid()
    if status.st_uid not in (ours, 0):
        raise PrivateFileProblem(
            f"the {what} {file} belongs to another user (uid {status.st_uid}), who can read and change it; "
            f"it has to be ours (uid {ours}) or root's"
        )
    of_root = status.st_uid == 0 != ours
    if status.st_mode & (0o037 if of_root else 0o077):
        mode = stat.S_IMODE(status.st_mode)
        advice = "have root run: chmod 640" if of_root else "run: chmod 600"
        raise PrivateFileProblem(f"the {what} {file} is open to others (mode {mode:04o}); {advice} {file}")


def _check_kept_private(what: str, file: Path, status: os.stat_result) -> None:
    """Refuse a file system that does not keep modes (FAT, an SD card in Android), where anybody could read the file."""
    if status.st_mode & 0o077:
        raise PrivateFileProblem(
            f"the {what} {file} cannot be made: its file system does not support file permissions (mode "
            f"{stat.S_IMODE(status.st_mode):04o} instead of 0600), so others could read it"
        )


def _rename_exclusively(temporary: Path, file: Path) -> None:
    """Give a file its name atomically; FileExistsError if the name is taken.

    On Windows rename does that.  POSIX rename replaces an existing file, but link(2) does not.  On file systems without
    hard links (FAT, Android, some network file systems) processes take a lock on the directory, which is released when
    its holder ends, and check that the name is free before they rename.
    """
    if os.name != "posix":
        os.rename(temporary, file)
        return
    try:
        os.link(temporary, file)
    except FileExistsError:
        raise
    except OSError:
        import fcntl

        directory = os.open(file.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            if os.path.lexists(file):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), file) from None
            os.rename(temporary, file)
        finally:
            os.close(directory)


def _sync_directory(directory: Path) -> None:
    """Make a new name in `directory` survive a power cut, if the file system supports that."""
    if os.name != "posix":
        return
    with suppress(OSError):  # no permission to read the directory, or no fsync of directories; the name is there anyway
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
