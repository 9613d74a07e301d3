"""TCP sockets of simulated hosts."""

from __future__ import annotations

import errno
import os
import socket as stdlib
import struct
from collections.abc import Iterable
from math import inf
from operator import index
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, final

import trio

from .addr import BROADCAST, is_multicast
from .connection import Connection, Listener, check_free
from .options import IP, IPV6, SOL_SOCKET, TCP, TCP_MAXSEG, TCP_NOTSENT_LOWAT, Buffer
from .ports import Binding, os_error
from .slots import Slot
from .sockets import VirtualSocket
from .tcp_states import Options, State

if TYPE_CHECKING:
    from .host import Host

_PEEK: Final = int(stdlib.MSG_PEEK)


@final
class TcpSocket(VirtualSocket):
    """A stream socket: new, listening, or with a connection."""

    _kind = stdlib.SOCK_STREAM

    def __init__(
        self, host: Host, family: stdlib.AddressFamily, proto: int, *, parent: TcpSocket | None = None
    ) -> None:
        super().__init__(host, family, proto, None if parent is None else parent._options.copy())
        self._accepting = Slot("reading from")
        self._connection: Connection | None = None
        self._listener: Listener | None = None
        self._port_locked = False  # whether the port was asked for by number (SOCK_BINDPORT_LOCK)
        self._address: str | None = None  # what it was bound to, port apart
        self._refused = False  # whether the last connect failed
        self._linger: float | None = None if parent is None else parent._linger

    # Options

    def _make_options(self) -> Options:
        get = self._options.get
        hops = get(IPV6, stdlib.IPV6_UNICAST_HOPS) if self._v6 else get(IP, stdlib.IP_TTL)
        lowat = get(TCP, TCP_NOTSENT_LOWAT)
        return Options(
            hops,
            get(SOL_SOCKET, stdlib.SO_SNDBUF) // 2,
            get(SOL_SOCKET, stdlib.SO_RCVBUF) // 2,
            lowat if lowat > 0 else inf,
            get(TCP, TCP_MAXSEG),
        )

    def _option_changed(self, level: int, optname: int, value: int) -> None:
        if self._connection is not None:
            endpoint = self._connection.endpoint
            endpoint.options = self._make_options()
            endpoint.receiver.capacity = max(endpoint.options.receive_buffer, endpoint.receiver.capacity)
        elif self._listener is not None:
            self._listener.options = self._make_options()

    def _set_special(self, level: int, optname: int, value: int | Buffer) -> bool:
        if (level, optname) != (SOL_SOCKET, stdlib.SO_LINGER):
            return False
        if isinstance(value, int):
            raise os_error(errno.EINVAL)
        on, seconds = struct.unpack("=ii", bytes(memoryview(value))[:8])
        self._linger = float(seconds) if on else None
        return True

    def _special_option(self, level: int, optname: int) -> int | None:
        if (level, optname) == (TCP, TCP_MAXSEG):
            if self._connection is not None:  # what it uses, and not what was asked for
                return self._connection.endpoint.sender.mss
            return self._options.get(TCP, TCP_MAXSEG) or 536  # TCP_MSS_DEFAULT
        return super()._special_option(level, optname)

    def _take_error(self) -> int:
        if self._connection is not None:
            return self._connection.endpoint.take_error()
        return 0

    def _listening(self) -> bool:
        return self._listener is not None

    # Life

    def _bind(self, binding: Binding) -> None:
        self._port_locked = binding.port != 0
        self._address = binding.address
        self.host.stack.tcp_ports.bind(binding)
        self._binding = binding

    def _autobind(self) -> Binding:
        if self._binding is None:
            binding = self._new_binding(self._address or self._wildcard(), 0)
            self.host.stack.tcp_ports.bind(binding)
            self._binding = binding
        return self._binding

    def listen(self, backlog: int = 128) -> None:
        self._check_open()
        if self._listener is not None:
            self._listener.set_backlog(backlog)
            return
        if self._connection is not None:
            raise os_error(errno.EINVAL)
        listener = Listener(self.host, self._autobind(), self._make_options(), backlog, self._accepting)
        self.host.stack.add_listener(listener)
        self._listener = listener

    def _accept_one(self) -> Connection | None:
        self._check_open()
        if self._listener is None:
            raise os_error(errno.EINVAL)
        return self._listener.accept() if self._listener.queue else None

    async def accept(self) -> tuple[TcpSocket, Any]:
        connection = await self._attempt(self._accepting, self._accept_one)
        accepted = TcpSocket(self.host, self._family, self._proto, parent=self)
        accepted._connection = connection
        return accepted, accepted._show(connection.endpoint.remote)

    async def connect(self, address: Any) -> None:
        try:
            resolved = await self._resolve(address, local=False)
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                connection = self._start(resolved)
            except BaseException:
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise
            if not connection.endpoint.opening:  # it was decided at once, as on loopback
                await trio.lowlevel.cancel_shielded_checkpoint()
            while connection.endpoint.opening:
                await connection.writable.wait()
        except trio.Cancelled:
            self.close()
            raise
        error = connection.endpoint.take_error()
        if error:
            self._connection = None
            self._refused = True
            if not self._port_locked and self._binding is not None:
                self.host.stack.release(self._binding)
                self._binding = None
            raise OSError(error, f"Error connecting to {address!r}: {os.strerror(error)}")

    def _start(self, resolved: tuple[str, int]) -> Connection:
        self._check_open()
        if self._connection is not None or self._listener is not None:
            raise os_error(errno.EISCONN)
        if self._refused:  # __inet_stream_connect: the first attempt after a failed one only clears the socket
            self._refused = False
            raise os_error(errno.ECONNABORTED)
        remote = self._destination(resolved)
        self._check_family(remote[0])
        if is_multicast(remote[0]) or remote[0] == BROADCAST:
            raise os_error(errno.ENETUNREACH)
        source = self._source(remote[0])
        bound_before = self._binding is not None
        binding = self._autobind()
        local = (source, binding.port)
        try:
            check_free(self.host, local, remote)
        except OSError:
            if not bound_before:
                self.host.stack.release(binding)
                self._binding = None
            raise
        connection = Connection(self.host, binding, local, remote, self._make_options(), owns_binding=False)
        self._connection = connection
        connection.endpoint.connect(self.host.net.wire.now)
        self.host.net.wire.act(connection.pump)
        return connection

    def _close(self) -> None:
        self._accepting.close()
        if self._listener is not None:
            self.host.stack.remove_listener(self._listener)
            self._listener.close()
        connection = self._connection
        if connection is not None and connection.endpoint.state is not State.CLOSED:
            connection.owns_binding = True
            if self._linger == 0:
                connection.abort()
            else:
                connection.close()
            return
        if connection is not None:
            connection.close()
        if self._binding is not None:
            self.host.stack.release(self._binding)

    def _connected(self) -> Connection | None:
        connection = self._connection
        if connection is None or connection.endpoint.opening:
            return None
        return connection

    def getsockname(self) -> Any:
        if self._connection is not None:
            self._check_open()
            return self._show(self._connection.endpoint.local)
        return super().getsockname()

    def getpeername(self) -> Any:
        self._check_open()
        connection = self._connected()
        if connection is None or connection.endpoint.state is State.CLOSED:
            raise os_error(errno.ENOTCONN)
        return self._show(connection.endpoint.remote)

    def shutdown(self, flag: int) -> None:
        self._check_open()
        if flag not in (stdlib.SHUT_RD, stdlib.SHUT_WR, stdlib.SHUT_RDWR):
            raise os_error(errno.EINVAL)
        connection = self._connected()
        if connection is None or connection.endpoint.state is State.CLOSED:
            raise os_error(errno.ENOTCONN)
        if flag != stdlib.SHUT_WR:
            connection.endpoint.shutdown_read()
        if flag != stdlib.SHUT_RD:
            connection.endpoint.shutdown_write(self.host.net.wire.now)
            self._shut_write = True
        connection.pump()

    # Bytes

    def _send_some(self, data: memoryview) -> int | None:
        self._check_open()
        connection = self._connection
        if connection is None:
            raise os_error(errno.EPIPE)
        endpoint = connection.endpoint
        error = endpoint.take_error()
        if error:
            raise os_error(error)
        if endpoint.opening:
            return None
        if not endpoint.may_send or self._shut_write:
            raise os_error(errno.EPIPE)
        if not len(data):
            return 0
        if not endpoint.has_room:
            return None
        taken = endpoint.write(data, self.host.net.wire.now)
        self.host.net.wire.act(connection.pump)
        return taken

    async def send(self, data: Buffer, flags: int = 0, /) -> int:
        slot = self._connection.writable if self._connection is not None else self._accepting
        with memoryview(data) as given, given.cast("B") as view:
            return await self._attempt(slot, lambda: self._send_some(view))

    async def sendto(self, *args: Any) -> int:
        await self._resolve(args[-1], local=False)
        if not 2 <= len(args) <= 3:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(args)} given)")
        if self._connected() is None:
            await trio.lowlevel.checkpoint()
            raise os_error(errno.EPIPE)
        return await self.send(args[0])  # Linux ignores the address

    async def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        if list(ancdata):
            raise NotImplementedError("simulated sockets carry no ancillary data")
        return await self.send(b"".join(buffers), flags)

    async def wait_writable(self) -> None:
        connection = self._connection

        def ready() -> bool | None:
            self._check_open()
            if connection is None:
                return True
            endpoint = connection.endpoint
            if endpoint.opening:
                return None
            return True if endpoint.has_room or not endpoint.may_send or endpoint.error else None

        await self._attempt(self._accepting if connection is None else connection.writable, ready)

    def is_readable(self) -> bool:
        if self._listener is not None:
            return bool(self._listener.queue)
        return self._connection is None or self._connection.endpoint.readable

    def _read_some(self, size: int, flags: int) -> bytes | None:
        self._check_open()
        connection = self._connection
        if connection is None:
            raise os_error(errno.ENOTCONN)
        endpoint = connection.endpoint
        if size == 0:
            return b""
        data = endpoint.read(size, peek=bool(flags & _PEEK))
        if data:
            connection.pump()
            return data
        error = endpoint.take_error()
        if error:
            raise os_error(error)
        return b"" if endpoint.at_eof and not endpoint.opening else None

    async def recv(self, buflen: SupportsIndex, flags: int = 0, /) -> bytes:
        size = index(buflen)
        if size < 0:
            raise ValueError("negative buffersize in recv")
        slot = self._connection.readable if self._connection is not None else self._accepting
        return await self._attempt(slot, lambda: self._read_some(size, flags))

    async def recvfrom(self, bufsize: SupportsIndex, flags: int = 0, /) -> tuple[bytes, Any]:
        return await self.recv(bufsize, flags), None

    async def recvmsg(
        self, bufsize: SupportsIndex, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        return await self.recv(bufsize, flags), [], 0, None
