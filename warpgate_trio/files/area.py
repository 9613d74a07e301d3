"""The area: the hidden folder beside the received files that holds incomplete ones.  All functions block.

The area holds one folder for each offer, its room.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Final

from .. import host
from ..errors import TransferFailed, TransferRefused
from ..nurseries import reason_of
from .digests import block_digest, block_size
from .folder import Folder
from .journal import FileRecord
from .naming import Destination
from .wire import Reason

__all__ = [
    "AREA",
    "clear_room",
    "good_blocks",
    "lock_room",
    "open_area",
    "prune",
    "refusal",
    "remove_abandoned",
    "try_names",
    "write_all",
    "write_failure",
]

AREA: Final = ".warpgate-trio"
"""The name of the area."""
ABANDONED: Final = 14 * 86400.0
"""Seconds without a change after which the rest of an unfinished offer is removed; checked when an offer arrives."""
_LOCK: Final = "lock"
_OPEN_FILES_STAY: Final = os.name == "nt"
"""Whether the system refuses to remove an open file."""
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def write_failure(error: OSError) -> TransferFailed:
    """The failure of a transfer that follows from a disk error of the system."""
    if error.errno in DISK_FULL:
        return TransferFailed(Reason.NO_SPACE, "the receiver's disk is full", by_peer=False)
    return TransferFailed(Reason.CANNOT_WRITE, f"the receiver cannot write: {reason_of(error)}", by_peer=False)


def refusal(reason: Reason, text: str) -> TransferRefused:
    """The error with which this side refuses an offer."""
    return TransferRefused(reason, text, by_peer=False)


def open_area(into: Folder) -> Folder:
    """Open the area of a destination, and make it where it is missing.

    Raises:
      PermissionError: another user owns it or may write in it.
      OSError: the system does not let it be made or opened.
    """
    area = into.subfolder(AREA, make=True, mode=0o700)
    status = area.status()
    if os.name == "posix" and (status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022):
        area.close()
        raise PermissionError(
            errno.EPERM, f"{into.path / AREA} is owned by another user, or others can write to it; refusing to use it"
        )
    return area


def try_names(area: Folder, hidden: bool) -> Destination:
    """Find out which names the file system accepts and which it treats as equal, with three trial files.

    Raises OSError.
    """
    mark = host.current().entropy(4).hex()

    def make(name: str) -> None:
        os.close(area.open_file(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    lower, colon, composed = f"try-{mark}-a\u00e9", f"try-{mark}:?", f"try-{mark}-\u00e9"
    windows = os.name == "nt"
    try:
        try:
            make(colon)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            windows = True
        make(lower)
        make(composed)
        folds = area.kind(lower.upper()) is not None
        normalises = area.kind(f"try-{mark}-e\u0301") is not None
    finally:
        for name in (lower, colon, composed):
            with suppress(OSError):
                area.remove(name)
    return Destination(windows=windows, folds_case=folds, normalises=normalises, hidden=hidden)


def remove_abandoned(area: Folder, but: str) -> None:
    """Remove the rooms of abandoned offers, except the room `but`."""
    before = host.current().wall_time() - ABANDONED
    for name in area.names():
        with suppress(OSError, TransferRefused):  # another transfer uses the room
            if name != but and area.stat(name).st_mtime < before:
                _remove_old(area, name, before)


def _remove_old(area: Folder, name: str, before: float) -> None:
    if area.kind(name) != stat.S_IFDIR:
        area.remove(name)
        return
    with area.subfolder(name) as room:
        if room.kind("journal") is not None and room.stat("journal").st_mtime >= before:
            return
        clear_room(room, lock_room(room))
    area.remove_empty(name, is_folder=True)


def clear_room(room: Folder, lock: int) -> None:
    """Remove everything in a room that this process has locked, and release the lock.

    The lock file is removed last, so that no other process enters the room before it is empty.  On a system that does
    not remove open files, the lock file is removed first: if another process has it open, nothing is removed.

    Raises:
      OSError: something could not be removed.
    """
    try:
        if not _OPEN_FILES_STAY:
            _clear(room)
            room.remove(_LOCK)
    finally:
        os.close(lock)
    if _OPEN_FILES_STAY:
        room.remove(_LOCK)
        _clear(room)


def _clear(room: Folder) -> None:
    for name in room.names():
        if name != _LOCK:
            room.remove(name)


def lock_room(room: Folder) -> int:
    """Lock a room, and return the descriptor that holds the lock until it is closed.

    Without lock support of the system or the file system nothing is locked.

    Raises:
      TransferRefused: another transfer receives into the room.
      FileNotFoundError: the transfer that used the room is removing it.
    """
    descriptor = room.open_file(_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        import fcntl
    except ImportError:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise refusal(Reason.BUSY, "the same files are already being received") from None
    except OSError:  # a file system without locks
        pass
    try:
        if not os.path.samestat(os.fstat(descriptor), room.stat(_LOCK)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _LOCK)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def prune(folder: Folder, prefix: str, files: set[str], folders: set[str]) -> None:
    """Remove everything in a folder that is neither in `files` nor in `folders`.

    Args:
      prefix: path of the folder in the offer; empty, or with a ``/`` at its end.
    """
    for name in folder.names():
        path = f"{prefix}{name}"
        kind = folder.kind(name)
        if kind == stat.S_IFDIR and path in folders:
            with folder.subfolder(name) as inner:
                prune(inner, f"{path}/", files, folders)
        elif kind != stat.S_IFREG or path not in files:
            folder.remove(name)


def write_all(descriptor: int, pieces: Sequence[memoryview], size: int) -> None:
    """Write all pieces, `size` bytes together, at the current position of the file."""
    if hasattr(os, "writev") and len(pieces) <= 512:
        done = os.writev(descriptor, pieces)
        if done == size:
            return
        pieces = [memoryview(b"".join(pieces))[done:]]
    for piece in pieces:
        while piece:
            piece = piece[os.write(descriptor, piece) :]


def good_blocks(parent: Folder, name: str, size: int, record: FileRecord) -> Generator[None]:
    """Step through the blocks of a file, from its beginning, until one does not match its checksum in the record.

    If the file's length is not `size`, the record is marked incomplete.  Raises OSError.
    """
    descriptor = parent.open_file(name, os.O_RDONLY)
    try:
        if os.fstat(descriptor).st_size != size:
            record.complete = False
        for number in range(record.blocks):
            if block_digest([os.read(descriptor, block_size(size, number))]) != record.block(number):
                return
            yield
    finally:
        os.close(descriptor)
