"""Flags, sizes and buffers of the calls that send and receive.

Flags with an effect are implemented, flags without an effect here are accepted, and all others are refused by name
with EOPNOTSUPP.  MSG_MORE joins datagrams; on a stream it has no effect, like TCP_CORK.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from operator import index
from typing import Final, NamedTuple, SupportsIndex

from .addr import Endpoint
from .options import Buffer

PEEK: Final = int(socket.MSG_PEEK)  # as an enum member, & costs a microsecond
MORE: Final = int(getattr(socket, "MSG_MORE", 0))
TRUNC: Final = int(getattr(socket, "MSG_TRUNC", 0x20))


def _all(names: str) -> int:
    flags = 0
    for name in names.split():
        flags |= int(getattr(socket, name, 0))
    return flags


# Trio's sockets never block, so neither MSG_DONTWAIT nor MSG_WAITALL changes what they do.
_OF_NO_EFFECT: Final = _all("MSG_DONTWAIT MSG_NOSIGNAL")
_SEND: Final = {
    True: MORE | _OF_NO_EFFECT | _all("MSG_EOR"),
    False: MORE | _OF_NO_EFFECT | _all("MSG_CONFIRM MSG_EOR"),
}
_RECEIVE: Final = {
    True: PEEK | _OF_NO_EFFECT | _all("MSG_WAITALL MSG_CMSG_CLOEXEC"),
    False: PEEK | TRUNC | _OF_NO_EFFECT | _all("MSG_WAITALL MSG_CMSG_CLOEXEC"),
}


class Received(NamedTuple):
    """The result of one receive call.

    Attributes:
      length: bytes of the whole datagram, even if `data` is truncated.
      notes: the flags that `recvmsg` returns, such as MSG_TRUNC.
    """

    data: bytes
    source: Endpoint | None
    length: int
    notes: int = 0

    def bytes_for(self, flags: int) -> bytes:
        """The data that a call returns; with MSG_TRUNC it is padded with zeros to the length of the datagram."""
        return self.data.ljust(self.length, b"\0") if flags & TRUNC else self.data

    def length_for(self, flags: int) -> int:
        return self.length if flags & TRUNC else len(self.data)


def check_receive(flags: int, *, stream: bool) -> None:
    """Raise OSError(EOPNOTSUPP) for flags that are not simulated."""
    _refuse(flags & ~_RECEIVE[stream])


def check_send(flags: int, *, stream: bool) -> None:
    """Raise OSError(EOPNOTSUPP) for flags that are not simulated."""
    _refuse(flags & ~_SEND[stream])


def _refuse(flags: int) -> None:
    if flags:
        names = [name for name in dir(socket) if name.startswith("MSG_") and getattr(socket, name) & flags]
        raise OSError(errno.EOPNOTSUPP, f"simulated sockets have no {', '.join(names) or f'flag {flags:#x}'} here")


def size_of(value: SupportsIndex, call: str) -> int:
    """The buffer size of a call, in bytes.  ValueError if it is negative."""
    size = index(value)
    if size < 0:
        raise ValueError(f"negative buffersize in {call}")
    return size


def room_in(view: memoryview, nbytes: int) -> int:
    """The number of bytes to receive into a buffer; `nbytes` 0 stands for all of it.  ValueError if it does not fit."""
    if nbytes < 0:
        raise ValueError("negative buffersize in recv_into")
    if nbytes > len(view):
        raise ValueError("nbytes is greater than the length of the buffer")
    return nbytes or len(view)


def scatter(data: bytes, views: Iterable[memoryview]) -> None:
    """Fill buffers, one after the other."""
    at = 0
    for view in views:
        part = data[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)


def gather(buffers: Iterable[Buffer], ancdata: Iterable[tuple[int, int, Buffer]]) -> bytes:
    """The bytes that `sendmsg` sends.  Raises OSError(EOPNOTSUPP) for ancillary data."""
    if list(ancdata):
        raise OSError(errno.EOPNOTSUPP, "simulated sockets carry no ancillary data")
    return b"".join(buffers)
