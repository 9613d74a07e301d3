"""Socket options, and the values to which they may be set.

Options with an effect in the simulator are read by the sockets.  Options that real programs set but that have no effect
here are stored and returned: TCP_NODELAY, since Nagle's algorithm is not simulated; keep-alive; type of service.  All
others are refused with ENOPROTOOPT, so that no program relies on an option that is not simulated.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final, Protocol, final

from .ports import os_error

SOL_SOCKET: Final = socket.SOL_SOCKET
IP: Final = socket.IPPROTO_IP
IPV6: Final = socket.IPPROTO_IPV6
TCP: Final = socket.IPPROTO_TCP

SO_REUSEPORT: Final = getattr(socket, "SO_REUSEPORT", 15)  # Windows has none
SO_BINDTODEVICE: Final = getattr(socket, "SO_BINDTODEVICE", 25)
TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
TCP_MAXSEG: Final = getattr(socket, "TCP_MAXSEG", 2)
IP_MTU_DISCOVER: Final = getattr(socket, "IP_MTU_DISCOVER", 10)
IPV6_MTU_DISCOVER: Final = getattr(socket, "IPV6_MTU_DISCOVER", 23)
IP_MTU: Final = getattr(socket, "IP_MTU", 14)
PMTUDISC_DO: Final = 2
_MAX_TTL: Final = 255
_MIN_SEGMENT: Final = 88  # TCP_MIN_MSS
_MAX_SEGMENT: Final = 32767  # MAX_TCP_WINDOW
_MIN_BUFFER: Final = 2304  # SOCK_MIN_RCVBUF

Key = tuple[int, int]


class Buffer(Protocol):
    """An object that supports the buffer protocol, like Python 3.12's collections.abc.Buffer."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


def _flag(value: int) -> int:
    return int(value != 0)


def _any(value: int) -> int:
    return value


def _ttl(value: int) -> int:
    if value == -1:
        return 64
    if not 1 <= value <= _MAX_TTL:
        raise os_error(errno.EINVAL)
    return value


def _multicast_ttl(value: int) -> int:
    if value == -1:
        return 1
    if not 0 <= value <= _MAX_TTL:
        raise os_error(errno.EINVAL)
    return value


def _max_segment(value: int) -> int:
    if value and not _MIN_SEGMENT <= value <= _MAX_SEGMENT:
        raise os_error(errno.EINVAL)
    return value


def _buffer(value: int) -> int:
    return 2 * max(value, _MIN_BUFFER // 2)  # the kernel doubles it for its bookkeeping


def _optional(table: dict[Key, tuple[int, Callable[[int], int]]], level: int, names: str) -> None:
    for name in names.split():
        option = getattr(socket, name, None)
        if isinstance(option, int):
            table.setdefault((level, option), (0, _any))


def _make_table(stream: bool, v6: bool) -> dict[Key, tuple[int, Callable[[int], int]]]:
    table: dict[Key, tuple[int, Callable[[int], int]]] = {
        (SOL_SOCKET, socket.SO_REUSEADDR): (0, _flag),
        (SOL_SOCKET, SO_REUSEPORT): (0, _flag),
        (SOL_SOCKET, socket.SO_BROADCAST): (0, _flag),
        (SOL_SOCKET, socket.SO_KEEPALIVE): (0, _flag),
        (SOL_SOCKET, socket.SO_OOBINLINE): (0, _flag),
        (SOL_SOCKET, socket.SO_SNDBUF): (2 * 256 * 1024 if stream else 212992, _buffer),
        (SOL_SOCKET, socket.SO_RCVBUF): (2 * 256 * 1024 if stream else 212992, _buffer),
        (IP, socket.IP_TTL): (64, _ttl),
        (IP, IP_MTU_DISCOVER): (1, _any),
        (IP, socket.IP_TOS): (0, _any),
        (IP, socket.IP_MULTICAST_TTL): (1, _multicast_ttl),
        (IP, socket.IP_MULTICAST_LOOP): (1, _flag),
    }
    _optional(table, SOL_SOCKET, "SO_PRIORITY SO_MARK SO_NOSIGPIPE")
    _optional(table, IP, "IP_RECVTOS IP_RECVERR IP_RECVTTL IP_BIND_ADDRESS_NO_PORT IP_FREEBIND")
    if stream:
        table[TCP, socket.TCP_NODELAY] = (0, _flag)
        table[TCP, TCP_NOTSENT_LOWAT] = (0, _any)
        table[TCP, TCP_MAXSEG] = (0, _max_segment)
        _optional(table, TCP, "TCP_KEEPIDLE TCP_KEEPINTVL TCP_KEEPCNT TCP_USER_TIMEOUT TCP_QUICKACK TCP_SYNCNT")
        _optional(table, TCP, "TCP_DEFER_ACCEPT TCP_CORK TCP_FASTOPEN TCP_KEEPALIVE TCP_WINDOW_CLAMP")
    if v6:
        table[IPV6, socket.IPV6_V6ONLY] = (0, _flag)
        table[IPV6, socket.IPV6_UNICAST_HOPS] = (64, _ttl)
        table[IPV6, socket.IPV6_MULTICAST_HOPS] = (1, _multicast_ttl)
        table[IPV6, socket.IPV6_MULTICAST_LOOP] = (1, _flag)
        table[IPV6, IPV6_MTU_DISCOVER] = (1, _any)
        _optional(
            table, IPV6, "IPV6_RECVPKTINFO IPV6_RECVTCLASS IPV6_TCLASS IPV6_RECVERR IPV6_MULTICAST_IF IPV6_RECVHOPLIMIT"
        )
    return table


_TABLES: Final = {(stream, v6): _make_table(stream, v6) for stream in (False, True) for v6 in (False, True)}


def as_int(value: int | Buffer) -> int:
    """An option's value as the integer that the kernel reads from it."""
    if isinstance(value, int):
        return value
    data = bytes(memoryview(value))
    if len(data) < 4:
        raise os_error(errno.EINVAL)
    return int.from_bytes(data[:4], sys.byteorder, signed=True)


def as_bytes(value: int, length: int) -> bytes:
    return struct.pack("=i", value)[:length]


@final
class OptionSet:
    """The options of one socket."""

    __slots__ = ("_table", "_values")

    def __init__(self, *, stream: bool, v6: bool) -> None:
        self._table = _TABLES[stream, v6]
        self._values: dict[Key, int] = {}

    def get(self, level: int, option: int) -> int:
        """The value of an option.  Raises OSError(ENOPROTOOPT) if it is not simulated."""
        value = self._values.get((level, option))
        if value is not None:
            return value
        try:
            return self._table[level, option][0]
        except KeyError:
            raise os_error(errno.ENOPROTOOPT) from None

    def set(self, level: int, option: int, value: int) -> int:
        """Set an option; returns the value that was stored.  Raises OSError(ENOPROTOOPT or EINVAL)."""
        try:
            check = self._table[level, option][1]
        except KeyError:
            raise os_error(errno.ENOPROTOOPT) from None
        stored = self._values[level, option] = check(value)
        return stored

    def copy(self) -> OptionSet:
        """A copy, which an accepted socket inherits."""
        other = OptionSet.__new__(OptionSet)
        other._table = self._table
        other._values = dict(self._values)
        return other

    @property
    def reuse_address(self) -> bool:
        return bool(self.get(SOL_SOCKET, socket.SO_REUSEADDR))

    @property
    def reuse_port(self) -> bool:
        return bool(self.get(SOL_SOCKET, SO_REUSEPORT))
