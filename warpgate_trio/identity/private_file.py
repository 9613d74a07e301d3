"""Small files that nobody but their owner may read: keys and tokens.

One appears whole or not at all, is made once however many processes start at the same time, and is not trusted where
somebody else could have written it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from .. import host

__all__ = ["PrivateFileProblem", "create_private_file", "read_private_file"]

MAX_SIZE: Final = 16_384
"""Bytes: a PKCS #8 Ed25519 key is 119 bytes of PEM, a token at most 256; whatever is larger is another file."""


class PrivateFileProblem(Exception):
    """A file cannot be read or made, or others are let at it; the text is a sentence that names it."""


def read_private_file(what: str, file: Path) -> bytes | None:
    """The content of a file that nobody but its owner may read or change, or None when there is no such file.

    Its owner can do both, whatever the mode says, so the owner is us or root.  A group may read it only where it is
    root's and we are not: so Kubernetes mounts a Secret for a process that could read it in no other way, and root
    knows whom it has put into the group (PostgreSQL has the same rule).  Nobody else may do anything.

    Raises `PrivateFileProblem`, in which the file is called `what`.
    """
    # A FIFO in the file's place must not block us (O_NONBLOCK); the rest is asked of the open file, not of its name.
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
            content = opened.read(MAX_SIZE + 1)
    except OSError as error:
        raise PrivateFileProblem(f"the {what} {file} cannot be read: {_reason(error)}") from error
    if len(content) > MAX_SIZE:
        raise PrivateFileProblem(f"{file} is too large to be a {what}")
    return content


def create_private_file(what: str, file: Path, content: bytes) -> bool:
    """Make `file` with `content` (mode 0600, its directory 0700); False when it exists by now.

    Raises `PrivateFileProblem`, in which the file is called `what`.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written beside the target under a name that nobody guesses, then put in place.
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
            _rename_exclusively(temporary, file)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(file.parent)
    except (OSError, ValueError) as error:
        raise PrivateFileProblem(f"the {what} {file} cannot be made: {_reason(error)}") from error
    return True


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
    """Refuse a file system that does not keep modes (FAT, a card of Android's): there, everybody could read it."""
    if status.st_mode & 0o077:
        raise PrivateFileProblem(
            f"the {what} {file} cannot be made: its file system lets others at it (mode "
            f"{stat.S_IMODE(status.st_mode):04o}) whatever we say"
        )


def _rename_exclusively(temporary: Path, file: Path) -> None:
    """Give a file its name in one step; FileExistsError when somebody has it.

    Windows' rename does just that; POSIX's replaces what has the name, and link(2) does not.  Where there are no hard
    links (FAT, Android, some network file systems), those who make one take turns by a lock on its directory,
    which ends with its holder, and look before they rename.
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
    """Make a new name in `directory` survive a power cut, where the file system can do that for us."""
    if os.name != "posix":
        return
    with suppress(OSError):  # a directory that is not ours to read, or a file system that syncs none: the name is there
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
