"""UDP sockets of simulated hosts."""

from __future__ import annotations

import errno
import socket as stdlib
from typing import Any, Final, final

import trio

from .addr import BROADCAST, Endpoint, is_multicast, is_v6
from .host import Host, Interface
from .messages import MORE, PEEK, TRUNC, Received, check_receive, check_send
from .options import IP, IP_MTU, IP_MTU_DISCOVER, IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO, SOL_SOCKET, Buffer, OptionSet
from .packet import UDP, Packet
from .ports import Binding, os_error
from .slots import Slot
from .sockets import VirtualSocket
from .udp import UdpPort

_ALWAYS_FITS: Final = 576  # bytes; only larger packets are compared with the path MTU
_MAX_PAYLOAD: Final = {False: 65507, True: 65527}
_JOIN: Final = {(IP, stdlib.IP_ADD_MEMBERSHIP), (IPV6, stdlib.IPV6_JOIN_GROUP)}
_LEAVE: Final = {(IP, stdlib.IP_DROP_MEMBERSHIP), (IPV6, stdlib.IPV6_LEAVE_GROUP)}
_MULTICAST_IF: Final = (IP, stdlib.IP_MULTICAST_IF)


@final
class UdpSocket(VirtualSocket):
    """A datagram socket."""

    _kind = stdlib.SOCK_DGRAM

    def __init__(self, host: Host, family: stdlib.AddressFamily, proto: int) -> None:
        super().__init__(host, family, proto, OptionSet(stream=False, v6=family == stdlib.AF_INET6))
        self._readable = Slot("reading from")
        self._writable = Slot("writing to")  # no task ever waits there
        self._port: UdpPort | None = None
        self._corked: tuple[bytes, Endpoint | None] | None = None  # what was sent with MSG_MORE
        self._multicast_from: Interface | None = None
        self._shut_read = False
        self._refresh_options()

    def _refresh_options(self) -> None:
        get = self._options.get
        self._ttl = get(IP, stdlib.IP_TTL)
        self._ttl6 = get(IPV6, stdlib.IPV6_UNICAST_HOPS) if self._v6 else 64
        self._dont_fragment = get(IP, IP_MTU_DISCOVER) == PMTUDISC_DO
        self._dont_fragment6 = self._v6 and get(IPV6, IPV6_MTU_DISCOVER) == PMTUDISC_DO
        self._broadcast = bool(get(SOL_SOCKET, stdlib.SO_BROADCAST))
        if self._port is not None:
            self._port.limit = get(SOL_SOCKET, stdlib.SO_RCVBUF)

    def _option_changed(self, level: int, optname: int, value: int) -> None:
        self._refresh_options()

    def _special_option(self, level: int, optname: int) -> int | None:
        if (level, optname) == (IP, IP_MTU):
            if self._port is None or self._port.peer is None:
                raise os_error(errno.ENOTCONN)
            return self.host.mtu_to(self._port.peer[0])
        return super()._special_option(level, optname)

    def _set_special(self, level: int, optname: int, value: int | Buffer) -> bool:
        key = (level, optname)
        if key == _MULTICAST_IF:
            self._multicast_from = self._interface_for(value, v6=False)
            return True
        if key in _JOIN or key in _LEAVE:
            if isinstance(value, int):
                raise os_error(errno.EINVAL)
            self._membership(bytes(memoryview(value)), join=key in _JOIN, v6=level == IPV6)
            return True
        return False

    def _membership(self, request: bytes, *, join: bool, v6: bool) -> None:
        size = 16 if v6 else 4
        if len(request) < size + 4:
            raise os_error(errno.EINVAL)
        group = stdlib.inet_ntop(stdlib.AF_INET6 if v6 else stdlib.AF_INET, request[:size])
        if not is_multicast(group):
            raise os_error(errno.EINVAL)
        interface = self._interface_for(request[size:], v6=v6).index
        port = self._bound()
        if join:
            port.groups.add((group, interface))
        elif (group, interface) in port.groups:
            port.groups.remove((group, interface))
        else:
            raise os_error(errno.EADDRNOTAVAIL)

    def _interface_for(self, value: int | Buffer, *, v6: bool) -> Interface:
        """The interface that an option names by index or address; the first one for 0."""
        data = value.to_bytes(4, "little") if isinstance(value, int) else bytes(memoryview(value))
        interfaces = self.host.interfaces
        if v6 or len(data) >= 12:
            wanted = int.from_bytes(data[-4:], "little")
            found = [i for i in interfaces if wanted in (0, i.index)]
        else:
            address = stdlib.inet_ntoa(data[:4])
            found = [i for i in interfaces if address == "0.0.0.0" or self.host.own.get(address) is i]
        if not found:
            raise os_error(errno.ENODEV)
        return found[0]

    # Life

    def _bound(self) -> UdpPort:
        """The port of this socket, which is bound to an ephemeral port if it was not bound."""
        if self._port is None:
            self._bind(self._new_binding(self._wildcard(), 0))
        assert self._port is not None
        return self._port

    def _bind(self, binding: Binding) -> None:
        old = self._port
        port = UdpPort(self.host, binding, self._readable, self._options.get(SOL_SOCKET, stdlib.SO_RCVBUF))
        if old is not None:  # groups were joined before bind
            self.host.stack.remove_udp(old)
            port.groups = old.groups
        self.host.stack.add_udp(port)
        self._port, self._binding = port, binding

    def _close(self) -> None:
        if self._port is not None:
            self.host.stack.remove_udp(self._port)
        self._readable.close()

    def _take_error(self) -> int:
        if self._port is None:
            return 0
        error, self._port.error = self._port.error, 0
        return error

    def _raise_pending(self) -> None:
        error = self._take_error()
        if error:
            raise os_error(error)

    @property
    def _reading(self) -> Slot:
        return self._readable

    @property
    def _writing(self) -> Slot:
        return self._writable

    async def connect(self, address: Any) -> None:
        try:
            endpoint = await self._resolve(address, local=False)
            await trio.lowlevel.checkpoint()
            await self.host.clock.wait()
        except trio.Cancelled:
            self.close()
            raise
        self.connect_now(endpoint)

    def connect_now(self, endpoint: Endpoint) -> bool:
        endpoint = self._destination(endpoint)
        self._check_open()
        self._check_family(endpoint[0])
        if endpoint[0] == BROADCAST and not self._broadcast:
            raise os_error(errno.EACCES)
        source = self._source(endpoint[0])
        port = self._bound()
        port.peer = endpoint
        if port.binding.wildcard:  # as in Linux, until the socket is closed
            port.binding.address, port.binding.any4, port.binding.any6 = source, False, False
        return True

    def getpeername(self) -> Any:
        self._check_open()
        if self._port is None or self._port.peer is None:
            raise os_error(errno.ENOTCONN)
        return self._show(self._port.peer)

    def shutdown(self, flag: int) -> None:
        self._check_open()
        if flag not in (stdlib.SHUT_RD, stdlib.SHUT_WR, stdlib.SHUT_RDWR):
            raise os_error(errno.EINVAL)
        if self._port is None or self._port.peer is None:
            raise os_error(errno.ENOTCONN)
        if flag != stdlib.SHUT_RD:
            self._shut_write = True
        if flag != stdlib.SHUT_WR:
            self._shut_read = True
            self._readable.wake()

    def listen(self, backlog: int = 128) -> None:
        self._check_open()
        raise os_error(errno.EOPNOTSUPP)

    def accept_now(self) -> None:
        self._check_open()
        raise os_error(errno.EOPNOTSUPP)

    # Sending

    def _transmit(self, data: bytes, dst: Endpoint | None) -> int:
        self._check_open()
        if self._shut_write:
            raise os_error(errno.EPIPE)
        port = self._port
        if dst is None:
            if port is None or port.peer is None:
                raise os_error(errno.EDESTADDRREQ)
            dst = port.peer
        address, number_ = dst
        v6 = is_v6(address)
        if number_ == 0:
            raise os_error(errno.EINVAL)
        if len(data) > _MAX_PAYLOAD[v6]:
            raise os_error(errno.EMSGSIZE)
        if self._v6 and not v6:
            self._check_family(address)
        if port is None:
            port = self._bound()
        if port.error:
            self._raise_pending()
        source = self._source(address), port.binding.port
        packet = Packet(UDP, source, dst, data, self._ttl6 if v6 else self._ttl)
        if packet.size > _ALWAYS_FITS or self.host.path_mtu:
            self._fit(packet, v6)
        if address == BROADCAST or is_multicast(address):
            self._send_to_many(packet, v6)
        else:
            self.host.check_source(source[0])
            self.host.net.wire.act(self.host.output, packet)
        return len(data)

    def _fit(self, packet: Packet, v6: bool) -> None:
        """Fragment a datagram that is larger than the path MTU, or refuse it."""
        if packet.size > self.host.mtu_to(packet.dst[0]):
            if self._dont_fragment6 if v6 else self._dont_fragment:
                raise os_error(errno.EMSGSIZE)
            packet.fragments = True

    def _send_to_many(self, packet: Packet, v6: bool) -> None:
        if packet.dst[0] == BROADCAST and not self._broadcast:
            raise os_error(errno.EACCES)
        get = self._options.get
        if is_multicast(packet.dst[0]):
            packet.ttl = get(IPV6, stdlib.IPV6_MULTICAST_HOPS) if v6 else get(IP, stdlib.IP_MULTICAST_TTL)
            if get(IPV6, stdlib.IPV6_MULTICAST_LOOP) if v6 else get(IP, stdlib.IP_MULTICAST_LOOP):
                out = self._multicast_from or next(iter(self.host.interfaces), None)
                self.host.net.wire.after(0, self.host.stack.receive, packet, None if out is None else out.index)
        if self._multicast_from is not None:
            address = self._multicast_from.address(v6=v6)
            if address is not None and self._binding is not None and self._binding.wildcard:
                packet.src = (address, packet.src[1])
        if packet.ttl > 0:
            self.host.output(packet, self._multicast_from)

    def send_now(self, data: memoryview, flags: int, dst: Endpoint | None) -> int:
        if flags:
            check_send(flags, stream=False)
        given = bytes(data)
        if flags & MORE or self._corked is not None:
            return self._cork(given, flags, dst)
        return self._transmit(given, None if dst is None else self._destination(dst))

    def _cork(self, data: bytes, flags: int, dst: Endpoint | None) -> int:
        """Join datagrams until one is sent without MSG_MORE; they go to the destination of the first."""
        before, first = self._corked or (b"", dst)
        self._corked = None
        if flags & MORE:
            self._check_open()
            self._corked = before + data, first
        else:
            self._transmit(before + data, None if first is None else self._destination(first))
        return len(data)

    def sendto_nowait(self, data: Buffer, address: Any, /) -> int:
        """Send to an IP literal without a checkpoint, as a non-blocking `socket.socket` does."""
        dst = self._numeric(address)
        if dst is None:
            raise os_error(errno.EINVAL)
        if self.host.is_asleep:
            raise os_error(errno.EAGAIN)
        return self.send_now(memoryview(data), 0, dst)

    async def wait_writable(self) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()
        await self._wait_awake()

    # Receiving

    def is_readable(self) -> bool:
        port = self._port
        return self._shut_read or (port is not None and bool(port.queue or port.error))

    def receive_now(self, size: int, flags: int) -> Received | None:
        if flags:
            check_receive(flags, stream=False)
        self._check_open()
        port = self._port
        if port is not None:
            if port.error:
                self._raise_pending()
            if port.queue:
                payload, source = port.take(peek=bool(flags & PEEK))
                length = len(payload)
                return Received(payload[:size], source, length, TRUNC if length > size else 0)
        return Received(b"", None, 0) if self._shut_read else None

    def recvfrom_nowait(self, bufsize: int, /) -> tuple[bytes, Any]:
        """Receive a datagram without a checkpoint; BlockingIOError if there is none."""
        found = None if self.host.is_asleep else self.receive_now(bufsize, 0)
        if found is None:
            raise os_error(errno.EAGAIN)
        return found.data, self.received_from(found)
