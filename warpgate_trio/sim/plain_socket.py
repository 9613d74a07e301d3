"""Simulated sockets as `socket.socket`s, for programs that make sockets with the standard library.

Many programs on Trio do: they bind and listen with a `socket.socket`, and pass it to `trio.socket.from_stdlib_socket`.
Calls that return at once work as on a real socket.  A call that would block raises RuntimeError: virtual time passes
only while Trio runs, so the call would wait for ever.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, SupportsIndex, TypeVar, final

from .messages import Received, gather, room_in, scatter, size_of
from .nowait_socket import NowaitSocket
from .options import Buffer
from .ports import os_error

T = TypeVar("T")


@final
class PlainSocket(socket.socket):
    """A `socket.socket` of a simulated host; its Trio socket is `virtual`."""

    __slots__ = ("_timeout", "virtual")

    virtual: NowaitSocket

    def __init__(self, *_: object, **__: object) -> None:
        """Do nothing: `of` makes the objects."""

    @classmethod
    def of(cls, virtual: NowaitSocket) -> PlainSocket:
        """The `socket.socket` of a simulated socket; it is non-blocking, like those of Trio's own sockets."""
        known = virtual._plain
        if isinstance(known, cls):
            return known
        virtual._plain = made = cls.__new__(cls)
        made.virtual = virtual
        made._timeout = 0.0
        made._io_refs = 0  # type: ignore[attr-defined]
        made._closed = False
        return made

    def __repr__(self) -> str:
        return f"<socket.socket of {self.virtual!r}>"

    # What it is

    @property
    def family(self) -> socket.AddressFamily:
        return self.virtual.family

    @property
    def type(self) -> socket.SocketKind:
        return self.virtual.type

    @property
    def proto(self) -> int:
        return self.virtual.proto

    @property
    def timeout(self) -> float | None:
        return self._timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    def getblocking(self) -> bool:
        return self._timeout != 0.0

    def settimeout(self, value: float | None, /) -> None:
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._timeout = None if value is None else float(value)

    def setblocking(self, flag: bool, /) -> None:
        self._timeout = None if flag else 0.0

    def fileno(self) -> int:
        return self.virtual.fileno()

    def get_inheritable(self) -> bool:
        return self.virtual.get_inheritable()

    def set_inheritable(self, inheritable: bool) -> None:
        self.virtual.set_inheritable(inheritable)

    def getsockname(self) -> Any:
        return self.virtual.getsockname()

    def getpeername(self) -> Any:
        return self.virtual.getpeername()

    def getsockopt(self, *args: Any) -> Any:
        return self.virtual.getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        self.virtual.setsockopt(*args)

    # Life

    def dup(self) -> PlainSocket:
        return PlainSocket.of(self.virtual.dup()).with_timeout(self._timeout)

    def with_timeout(self, value: float | None) -> PlainSocket:
        self._timeout = value
        return self

    def detach(self) -> int:
        self._closed = True
        return self.virtual.detach()

    def _real_close(self, _ss: object = None) -> None:
        self.virtual.close()

    def shutdown(self, how: int, /) -> None:
        self.virtual.shutdown(how)

    # Calls that may block

    def _now(self, call: str, fn: Callable[[], T | None]) -> T:
        found = None if self.virtual.host.is_asleep else fn()
        if found is None:
            self._would_block(call, errno.EAGAIN)
        return found

    def _would_block(self, call: str, code: int) -> NoReturn:
        if self._timeout == 0.0:
            raise os_error(code)
        raise RuntimeError(
            f"socket.{call} would block the whole simulation: a simulated host has no blocking sockets, use Trio's, or "
            "setblocking(False)"
        )

    def bind(self, address: Any, /) -> None:
        self.virtual.bind_now(self.virtual.resolve_now(address, local=True))

    def listen(self, backlog: int = 128, /) -> None:
        self.virtual.listen(backlog)

    def accept(self) -> tuple[PlainSocket, Any]:
        accepted, address = self._now("accept", self.virtual.accept_now)
        return PlainSocket.of(accepted).with_timeout(socket.getdefaulttimeout()), address

    def connect(self, address: Any, /) -> None:
        if not self.virtual.connect_now(self.virtual.resolve_now(address, local=False)):
            self._would_block("connect", errno.EINPROGRESS)

    def connect_ex(self, address: Any, /) -> int:
        try:
            self.connect(address)
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
        return 0

    def _receive(self, call: str, size: int, flags: int) -> Received:
        return self._now(call, lambda: self.virtual.receive_now(size, flags))

    def recv(self, bufsize: SupportsIndex, flags: int = 0, /) -> bytes:
        return self._receive("recv", size_of(bufsize, "recv"), flags).bytes_for(flags)

    def recvfrom(self, bufsize: SupportsIndex, flags: int = 0, /) -> tuple[bytes, Any]:
        found = self._receive("recvfrom", size_of(bufsize, "recvfrom"), flags)
        return found.bytes_for(flags), self.virtual.received_from(found)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        return self.recvfrom_into(buffer, nbytes, flags)[0]

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        with memoryview(buffer).cast("B") as view:
            found = self._receive("recv_into", room_in(view, nbytes), flags)
            view[: len(found.data)] = found.data
        return found.length_for(flags), self.virtual.received_from(found)

    def recvmsg(
        self, bufsize: SupportsIndex, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        found = self._receive("recvmsg", size_of(bufsize, "recvmsg"), flags)
        return found.bytes_for(flags), [], found.notes, self.virtual.received_from(found)

    def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        views = [memoryview(each).cast("B") for each in buffers]
        found = self._receive("recvmsg_into", sum(map(len, views)), flags)
        scatter(found.data, views)
        return found.length_for(flags), [], found.notes, self.virtual.received_from(found)

    def _send(self, call: str, data: Buffer, flags: int, address: Any = None) -> int:
        dst = None if address is None else self.virtual.resolve_now(address, local=False)
        with memoryview(data) as given, given.cast("B") as view:
            return self._now(call, lambda: self.virtual.send_now(view, flags, dst))

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        return self._send("send", data, flags)

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        with memoryview(data) as given, given.cast("B") as view:
            at = 0
            while at < len(view):
                at += self._send("sendall", view[at:], flags)

    def sendto(self, data: Buffer, *args: Any) -> int:
        if not 1 <= len(args) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(args) + 1} given)")
        return self._send("sendto", data, args[0] if len(args) == 2 else 0, args[-1])

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        return self._send("sendmsg", gather(buffers, ancdata), flags, address)
