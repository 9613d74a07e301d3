"""Interception of socket creation: on a simulated host, code gets a simulated socket or an error.

`trio.socket.socket` asks the factory that a network installs.  All other ways to make a socket lead through
`socket.socket` or through Trio's own socket class.  Both are replaced by functions that first check which host the
caller is on.  The functions by which Trio waits for a descriptor are replaced by ones that also handle simulated
descriptors.

The replacements are permanent; for a caller on no simulated host they do what the originals did.  Some of the replaced
names are private to Trio.  If one is missing, `guard` raises AttributeError; a test detects that.
"""

from __future__ import annotations

import errno
import functools
import socket
from typing import Any, Final, final

import trio
from trio._core import _run  # pyright: ignore[reportPrivateUsage]
from trio.abc import SocketFactory

from .addr import LOOPBACK4
from .host import Host, current_host, host_here
from .nowait_socket import NowaitSocket
from .plain_socket import PlainSocket
from .ports import os_error
from .resolver import look_up
from .sockets import VirtualSocket
from .tcp_socket import TcpSocket
from .udp_socket import UdpSocket

_KIND: Final = ~(getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0))


def make_socket(host: Host, family: int, kind: int, proto: int) -> VirtualSocket:
    """A new socket of a host; OSError for one that is not simulated."""
    kind &= _KIND
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise OSError(errno.EAFNOSUPPORT, f"the simulator has no sockets of address family {family!r}")
    if kind == socket.SOCK_STREAM:
        if proto not in (0, socket.IPPROTO_TCP):
            raise os_error(errno.EPROTONOSUPPORT)
        return TcpSocket(host, socket.AddressFamily(family), proto)
    if kind == socket.SOCK_DGRAM:
        if proto not in (0, socket.IPPROTO_UDP):
            raise os_error(errno.EPROTONOSUPPORT)
        return UdpSocket(host, socket.AddressFamily(family), proto)
    raise os_error(errno.ESOCKTNOSUPPORT)


def make_pair(
    host: Host,
    family: int | None = None,
    type: int = socket.SOCK_STREAM,  # noqa: A002 (socket.socketpair's name)
    proto: int = 0,
) -> tuple[NowaitSocket, NowaitSocket]:
    """Two connected sockets over IPv4 loopback, as Python makes them on systems without socketpair(2)."""
    if family not in (None, socket.AF_INET, getattr(socket, "AF_UNIX", None)):
        raise OSError(errno.EAFNOSUPPORT, f"the simulator has no pairs of sockets of address family {family!r}")
    one, other = (make_socket(host, socket.AF_INET, type, proto) for _ in range(2))
    one.bind_now((LOOPBACK4, 0))
    if isinstance(one, UdpSocket):
        other.bind_now((LOOPBACK4, 0))
        one.connect_now(other.getsockname())
        other.connect_now(one.getsockname())
        return one, other
    one.listen(1)
    other.connect_now(one.getsockname())
    accepted = one.accept_now()
    assert accepted is not None  # on loopback a handshake takes no time
    one.close()
    return other, accepted[0]


@final
class Factory(SocketFactory):
    """Makes the sockets of the host on which the caller runs."""

    def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 (Trio's name)
        proto: int = 0,
    ) -> trio.socket.SocketType:
        return make_socket(current_host(), family, type, proto)


def _refusal(what: str) -> RuntimeError:
    return RuntimeError(f"{what} is a socket of the real machine, and this code runs on the simulated {host_here()!r}")


def _open_again(host: Host, number: int) -> PlainSocket:
    """The socket with a descriptor number, for a caller that has detached it or knows only the number."""
    found = host.net.find_socket(number)
    if not isinstance(found, VirtualSocket):
        raise _refusal(f"descriptor {number}")
    return found.alias()._sock


def _new_plain(host: Host, family: int = -1, kind: int = -1, proto: int = -1, fileno: int | None = None) -> PlainSocket:
    """What `socket.socket` does with its arguments."""
    timeout = socket.getdefaulttimeout()
    if fileno is not None:
        return _open_again(host, fileno).with_timeout(timeout)
    family = socket.AF_INET if family == -1 else family
    kind = socket.SOCK_STREAM if kind == -1 else kind
    made = make_socket(host, family, kind, 0 if proto == -1 else proto)
    return made._sock.with_timeout(0.0 if kind & getattr(socket, "SOCK_NONBLOCK", 0) else timeout)


@functools.cache
def guard() -> None:
    """Install the replacements, permanently."""
    trio_socket = type(_a_socket_of_trio())
    _guard_class()
    _guard_trio(trio_socket)
    _guard_functions()
    _guard_waiting()


def _a_socket_of_trio() -> trio.socket.SocketType:
    with socket.socket() as real:
        return trio.socket.from_stdlib_socket(real)


def _guard_class() -> None:
    make = socket.socket.__new__

    def new(cls: type[socket.socket], *args: Any, **given: Any) -> Any:
        host = host_here()
        if host is None or cls is PlainSocket:
            return make(cls)
        if cls is not socket.socket:
            raise _refusal(f"a {cls.__qualname__}")
        if "type" in given:
            given["kind"] = given.pop("type")
        return _new_plain(host, *args, **given)

    socket.socket.__new__ = new  # type: ignore[assignment]


def _guard_trio(trio_socket: type[trio.socket.SocketType]) -> None:
    def new(cls: type[trio.socket.SocketType], sock: object) -> Any:
        if isinstance(sock, PlainSocket):
            return sock.virtual
        if isinstance(sock, socket.socket) and host_here() is not None:
            raise _refusal(repr(sock))
        return object.__new__(cls)

    trio_socket.__new__ = new  # type: ignore[assignment]


def _guard_functions() -> None:
    real_pair, real_dup = socket.socketpair, socket.dup

    @functools.wraps(real_pair)
    def socketpair(*args: Any, **given: Any) -> Any:
        host = host_here()
        if host is None:
            return real_pair(*args, **given)
        timeout = socket.getdefaulttimeout()
        return tuple(PlainSocket.of(each).with_timeout(timeout) for each in make_pair(host, *args, **given))

    @functools.wraps(real_dup)
    def dup(fd: int) -> int:
        host = host_here()
        return real_dup(fd) if host is None else _open_again(host, fd).dup().detach()

    real_lookup = socket.getaddrinfo

    @functools.wraps(real_lookup)
    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:  # noqa: A002
        here = host_here()
        if here is None:
            return real_lookup(host, port, family, type, proto, flags)
        if host is not None and flags & socket.AI_NUMERICHOST:  # this only parses an address; Trio uses it for that
            return real_lookup(host, port, family, type, proto, flags & ~int(socket.AI_ADDRCONFIG))
        return look_up(here.net.names, here, host, port, family, type, proto, flags)

    socket.getaddrinfo = getaddrinfo
    socket.socketpair = socketpair
    socket.dup = dup  # type: ignore[assignment]


def _guard_waiting() -> None:
    """Replace `trio.lowlevel.wait_readable(sock)` and its relatives, with which programs wait for a `socket.socket`."""
    manager: Any = _run.TheIOManager  # type: ignore[attr-defined]
    for name in ("wait_readable", "wait_writable"):
        setattr(manager, name, _waiting(name, getattr(manager, name)))
    real = manager.notify_closing

    @functools.wraps(real)
    def notify_closing(self: object, fd: object) -> None:
        if _virtual(fd) is None:
            real(self, fd)

    manager.notify_closing = notify_closing


def _waiting(name: str, real: Any) -> Any:
    @functools.wraps(real)
    async def wait(self: object, fd: object) -> None:
        found = _virtual(fd)
        await (real(self, fd) if found is None else getattr(found, name)())

    return wait


def _virtual(fd: object) -> VirtualSocket | None:
    """The simulated socket for which a program waits; None if it is a real one."""
    host = host_here()
    if host is None:
        return None
    found = host.net.find_socket(fd if isinstance(fd, int) else fd.fileno())  # type: ignore[attr-defined]
    return found if isinstance(found, VirtualSocket) else None
