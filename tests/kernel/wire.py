"""The internet between the homes: TUN devices whose packets this process carries, since not every kernel has netem.

Each outside device has an access line with a delay; a packet takes the sender's and the receiver's. On its way it
passes routers: one with a small TTL expires in the middle, and its sender gets an ICMP error (RFC 1812, section 5.3.1).
IPv4 only.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, final

from tests.kernel.namespaces import Namespace

HOPS: Final = 6
"""Routers between any two access lines."""
ROUTER: Final = "198.51.100.1"
"""The source of ICMP's time exceeded."""
QUEUE: Final = 10_000
"""Packets that wait in a device for the wire: more than a spray's burst; the kernel's default is 500."""
_READS: Final = 64  # packets of one device before the others' turn
_NICE: Final = -20  # programs must not delay the network
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001


@final
class Device:
    """An outside interface of a machine."""

    def __init__(self, fd: int, segment: Segment, delay: float) -> None:
        self.fd = fd
        self.segment = segment
        self.delay = delay
        self.closed = False


@final
class Segment:
    """An internet: its devices by address."""

    def __init__(self, wire: Wire, *, hops: int = HOPS) -> None:
        self.wire = wire
        self.hops = hops
        self.owners: dict[bytes, Device] = {}
        self.drop: Callable[[bytes], bool] | None = None
        """Decides for every packet, as it was sent, whether it is lost."""
        self.trace: deque[str] | None = None
        """Gets a line for every packet that enters the wire, with its fate."""

    def attach(self, machine: Namespace, name: str, delay: float, *addresses: str) -> Device:
        """Give a machine an interface with public addresses, a default route, and a line of `delay` seconds."""
        with machine.inside():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN_NO_PI))
        device = Device(fd, self, delay)
        for address in addresses:
            self.owners[socket.inet_aton(address)] = device
        self.wire.add(device)
        machine.ip_commands(
            *(f"addr add {address}/24 dev {name}" for address in addresses),
            f"link set {name} txqueuelen {QUEUE} up",
            f"route add default dev {name}",
        )
        return device


@final
class Wire(threading.Thread):
    """Carries the packets of any number of segments, from a thread, so that programs under test do not delay them."""

    def __init__(self) -> None:
        super().__init__(name="wire", daemon=True)
        self.failure: BaseException | None = None
        self.carried = 0
        self._poll = select.epoll()
        self._devices: dict[int, Device] = {}
        self._lock = threading.Lock()
        self._over = False
        self._waiting: list[tuple[float, int, Device, bytes]] = []

    def __enter__(self) -> Wire:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        self.join()
        self._poll.close()
        if self.failure is not None:
            raise self.failure

    def add(self, device: Device) -> None:
        with self._lock:
            self._devices[device.fd] = device
            self._poll.register(device.fd, select.EPOLLIN)

    def remove(self, device: Device) -> None:
        with self._lock:
            self._poll.unregister(device.fd)
            del self._devices[device.fd]
            device.closed = True
        os.close(device.fd)  # outside the lock, because it waits for the kernel

    def run(self) -> None:
        with suppress(OSError):  # without the privilege, a busy machine makes the delays longer
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            while not self._over:
                with self._lock:
                    wait = min(0.1, self._waiting[0][0] - time.monotonic()) if self._waiting else 0.1
                ready = self._poll.poll(max(0.0, wait))
                with self._lock:
                    for fd, _ in ready:
                        if (device := self._devices.get(fd)) is not None:
                            self._collect(device)
                    self._deliver()
        except BaseException as error:  # noqa: BLE001, RUF100 - raised where the wire is left
            self.failure = error

    def _collect(self, device: Device) -> None:
        for _ in range(_READS):
            try:
                packet = os.read(device.fd, 65536)
            except BlockingIOError:
                return
            except OSError:  # the device is down
                return
            if packet[0] >> 4 != 4:
                continue
            fate = self._carry(device, packet)
            if device.segment.trace is not None:
                device.segment.trace.append(f"{time.monotonic():.4f} {describe(packet)}{fate}")

    def _carry(self, device: Device, packet: bytes) -> str:
        segment = device.segment
        target = segment.owners.get(packet[16:20])
        if segment.drop is not None and segment.drop(packet):
            return " LOST"
        if packet[8] <= segment.hops:
            if answer := time_exceeded(packet):
                self._push(2 * device.delay, device, answer)
            return " DIED"
        if target is None:
            return " LEADS NOWHERE"
        self._push(device.delay + target.delay, target, aged(packet, segment.hops))
        return ""

    def _push(self, delay: float, target: Device, packet: bytes) -> None:
        self.carried += 1
        heapq.heappush(self._waiting, (time.monotonic() + delay, self.carried, target, packet))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._waiting)
            if not target.closed:
                with suppress(OSError):  # its interface is down or full: a packet may get lost
                    os.write(target.fd, packet)


_FLAGS: Final = {2: "SYN", 16: "ACK", 4: "RST", 1: "FIN"}


def describe(packet: bytes) -> str:
    """An IPv4 packet in a few words."""
    size = (packet[0] & 15) * 4
    source, destination = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
    ttl, rest = packet[8], packet[size:]
    if packet[9] == socket.IPPROTO_ICMP:
        return f"ICMP {source} > {destination} type {rest[0]} code {rest[1]}"
    ports = struct.unpack("!HH", rest[:4])
    text = f"{source}:{ports[0]} > {destination}:{ports[1]} ttl {ttl}"
    if packet[9] == socket.IPPROTO_TCP:
        flags = "+".join(name for bit, name in _FLAGS.items() if rest[13] & bit)
        return f"TCP  {text} {flags} {len(rest) - (rest[12] >> 4) * 4}"
    return f"UDP  {text} {len(rest) - 8}"


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def aged(packet: bytes, hops: int) -> bytes:
    """A packet after `hops` routers."""
    size = (packet[0] & 15) * 4
    header = bytearray(packet[:size])
    header[8] -= hops
    header[10:12] = bytes(2)
    struct.pack_into("!H", header, 10, checksum(header))
    return bytes(header) + packet[size:]


def time_exceeded(packet: bytes) -> bytes | None:
    """The ICMP error for a packet that expired; None for an ICMP message (RFC 1812, section 4.3.2.7)."""
    size = (packet[0] & 15) * 4
    if packet[9] == socket.IPPROTO_ICMP:
        return None
    message = bytearray(struct.pack("!BBHI", 11, 0, 0, 0) + packet[: size + 28])
    struct.pack_into("!H", message, 2, checksum(message))
    header = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 60, socket.IPPROTO_ICMP, 0))
    header += socket.inet_aton(ROUTER) + packet[12:16]
    struct.pack_into("!H", header, 10, checksum(header))
    return bytes(header + message)
