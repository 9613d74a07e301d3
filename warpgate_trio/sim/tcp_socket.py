"""TCP sockets of simulated hosts."""

from __future__ import annotations

import errno
import os
import socket as stdlib
import struct
from math import inf
from typing import Any, Final, final

import trio

from .addr import BROADCAST, Endpoint, is_multicast
from .connection import Connection, Listener
from .host import Host
from .messages import PEEK, Received, check_receive, check_send
from .options import IP, IPV6, SOL_SOCKET, TCP, TCP_MAXSEG, TCP_NOTSENT_LOWAT, Buffer
from .ports import Binding, os_error
from .slots import Slot
from .sockets import VirtualSocket
from .tcp_states import Options, State

_NOTHING: Final = Received(b"", None, 0)


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
        self._address: str | None = None  # the address to which it was bound
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
            if self._connection is not None:  # the MSS in use, not the one that was set
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

    @property
    def _reading(self) -> Slot:
        return self._accepting if self._connection is None else self._connection.readable

    @property
    def _writing(self) -> Slot:
        return self._accepting if self._connection is None else self._connection.writable

    def _bind(self, binding: Binding) -> None:
        self._port_locked = binding.port != 0
        self._address = binding.address
        self.host.stack.tcp.bindings.bind(binding)
        self._binding = binding

    def _autobind(self) -> Binding:
        if self._binding is None:
            binding = self._new_binding(self._address or self._wildcard(), 0)
            self.host.stack.tcp.bindings.bind(binding)
            self._binding = binding
        return self._binding

    def listen(self, backlog: int = 128) -> None:
        self._check_open()
        if self._listener is not None:
            self._listener.set_backlog(backlog)
            return
        if self._connection is not None:
            raise os_error(errno.EINVAL)
        listener = Listener(self.host.stack.tcp, self._autobind(), self._make_options(), backlog, self._accepting)
        self.host.stack.tcp.add_listener(listener)
        self._listener = listener

    def accept_now(self) -> tuple[TcpSocket, Any] | None:
        self._check_open()
        if self._listener is None:
            raise os_error(errno.EINVAL)
        if not self._listener.queue:
            return None
        accepted = TcpSocket(self.host, self._family, self._proto, parent=self)
        accepted._connection = connection = self._listener.accept()
        return accepted, accepted._show(connection.endpoint.remote)

    async def connect(self, address: Any) -> None:
        try:
            resolved = await self._resolve(address, local=False)
            await trio.lowlevel.checkpoint_if_cancelled()
            await self.host.clock.wait()
            try:
                connection = self._start(resolved)
            except BaseException:
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise
            if not connection.endpoint.opening:  # connected or failed at once, as on loopback
                await trio.lowlevel.cancel_shielded_checkpoint()
            while connection.endpoint.opening:
                await connection.writable.wait()
            await self.host.clock.wait()
        except trio.Cancelled:
            self.close()
            raise
        error = self._conclude()
        if error:
            raise OSError(error, f"Error connecting to {address!r}: {os.strerror(error)}")

    def connect_now(self, endpoint: Endpoint) -> bool:
        if self._connection is not None and not self._connection.endpoint.opening:  # an earlier call began it
            error = self._conclude()
            raise os_error(error or errno.EISCONN)
        if self._connection is not None:
            raise os_error(errno.EALREADY)
        if self._start(endpoint).endpoint.opening:
            return False
        error = self._conclude()
        if error:
            raise os_error(error)
        return True

    def _conclude(self) -> int:
        """The errno with which an attempt to connect ended, or 0.  After a failure the socket may connect again."""
        assert self._connection is not None
        error = self._connection.endpoint.take_error()
        if error:
            self._connection = None
            self._refused = True
            if not self._port_locked and self._binding is not None:
                self.host.stack.tcp.release(self._binding)
                self._binding = None
        return error

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
            self.host.stack.tcp.check_free(local, remote)
        except OSError:
            if not bound_before:
                self.host.stack.tcp.release(binding)
                self._binding = None
            raise
        connection = Connection(self.host.stack.tcp, binding, local, remote, self._make_options(), owns_binding=False)
        self._connection = connection
        connection.endpoint.connect(self.host.clock.now)
        self.host.net.wire.act(connection.pump)
        return connection

    def _close(self) -> None:
        self._accepting.close()
        if self._listener is not None:
            self.host.stack.tcp.remove_listener(self._listener)
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
            self.host.stack.tcp.release(self._binding)

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
            connection.endpoint.shutdown_write(self.host.clock.now)
            self._shut_write = True
        connection.pump()

    # Bytes

    def send_now(self, data: memoryview, flags: int, dst: Endpoint | None) -> int | None:
        if flags:
            check_send(flags, stream=True)
        self._check_open()
        if dst is not None and self._connected() is None:  # on a connected socket, Linux ignores the address
            raise os_error(errno.EPIPE)
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
        taken = endpoint.write(data, self.host.clock.now)
        self.host.net.wire.act(connection.pump)
        return taken

    async def wait_writable(self) -> None:
        connection = self._connection

        def ready() -> bool | None:
            self._check_open()
            if connection is None:
                return True
            endpoint = connection.endpoint
            if endpoint.opening:
                return None
            return True if endpoint.is_writable or not endpoint.may_send or endpoint.error else None

        await self._attempt(self._accepting if connection is None else connection.writable, ready)

    def is_readable(self) -> bool:
        if self._listener is not None:
            return bool(self._listener.queue)
        return self._connection is None or self._connection.endpoint.readable

    def receive_now(self, size: int, flags: int) -> Received | None:
        if flags:
            check_receive(flags, stream=True)
        self._check_open()
        connection = self._connection
        if connection is None:
            raise os_error(errno.ENOTCONN)
        endpoint = connection.endpoint
        if size == 0:
            return _NOTHING
        data = endpoint.read(size, peek=bool(flags & PEEK))
        if data:
            connection.pump()
            return Received(data, None, len(data))
        error = endpoint.take_error()
        if error:
            raise os_error(error)
        return _NOTHING if endpoint.at_eof and not endpoint.opening else None
