"""Packets as bytes, and pcapng files of them (draft-ietf-opsawg-pcapng), for Wireshark.

Raw IP without link headers (LINKTYPE_RAW, 101), one capture interface for each interface of each host and router, so
that both sides of every NAT can be compared, and time stamps in microseconds of true simulated time.
"""

from __future__ import annotations

import struct
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_pton
from typing import BinaryIO, Final, final

from .addr import is_v6
from .host import Interface
from .packet import ICMP, SYN, TCP, UDP, Icmp, Packet

_LINKTYPE_RAW: Final = 101
_WINDOW_SHIFT: Final = 7
_ICMP6: Final = 58
_MAX_QUOTED: Final = 548


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def encode(packet: Packet) -> bytes:
    """A packet as the bytes of an IPv4 or IPv6 packet, checksums included."""
    v6 = is_v6(packet.src[0])
    family = AF_INET6 if v6 else AF_INET
    src, dst = inet_pton(family, packet.src[0]), inet_pton(family, packet.dst[0])
    proto = _ICMP6 if v6 and packet.proto == ICMP else packet.proto
    body = _transport(packet, v6)
    length = len(body)
    pseudo = src + dst + (struct.pack("!I3xB", length, proto) if v6 else struct.pack("!xBH", proto, length))
    at = {ICMP: 2, _ICMP6: 2, TCP: 16, UDP: 6}[proto]
    summed = _checksum(body if proto == ICMP else pseudo + body)
    if proto == UDP and summed == 0:
        summed = 0xFFFF
    body = body[:at] + struct.pack("!H", summed) + body[at + 2 :]
    if v6:
        return struct.pack("!IHBB", 6 << 28, length & 0xFFFF, proto, packet.ttl) + src + dst + body
    flags = 0 if packet.fragments else 0x4000
    header = struct.pack("!BBHHHBBH", 0x45, 0, (20 + length) & 0xFFFF, 0, flags, packet.ttl, proto, 0) + src + dst
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + body


def _transport(packet: Packet, v6: bool) -> bytes:
    if packet.proto == UDP:
        return struct.pack("!HHHH", packet.src[1], packet.dst[1], 8 + len(packet.payload), 0) + packet.payload
    if packet.proto == TCP:
        options = b""
        window = packet.window >> _WINDOW_SHIFT
        if packet.flags & SYN:
            window = min(packet.window, 0xFFFF)
            options = struct.pack(
                "!BBHBBBB", 2, 4, min(packet.mss or (1440 if v6 else 1460), 0xFFFF), 3, 3, _WINDOW_SHIFT, 1
            )
        offset = (5 + len(options) // 4) << 4
        ports = packet.src[1], packet.dst[1]
        window = min(window, 0xFFFF)
        fixed = struct.pack("!HHIIBBHHH", *ports, packet.seq, packet.ack, offset, packet.flags, window, 0, 0)
        return fixed + options + packet.payload
    error, about = packet.error, packet.about
    kind, code = (0, 0) if error is None else error.value[1 if v6 else 0]
    rest = packet.mtu if error is Icmp.PACKET_TOO_BIG else 0
    return struct.pack("!BBHI", kind, code, 0, rest) + (b"" if about is None else encode(about)[:_MAX_QUOTED])


def _block(kind: int, body: bytes) -> bytes:
    body += b"\0" * (-len(body) % 4)
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


@final
class Capture:
    """A pcapng file that is being written."""

    def __init__(self, path: Path, epoch: float) -> None:
        self._file: BinaryIO = path.open("wb")
        self._epoch = epoch
        self._count = 0
        self._tapped: list[Interface] = []
        self._file.write(_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))

    def tap(self, interface: Interface) -> None:
        """Capture the packets of an interface, from now on."""
        name = f"{interface.host.name}:{interface.name}@{interface.segment.name}".encode()
        option = struct.pack("<HH", 2, len(name)) + name + b"\0" * (-len(name) % 4) + struct.pack("<HH", 0, 0)
        self._file.write(_block(1, struct.pack("<HHI", _LINKTYPE_RAW, 0, 0) + option))
        number, self._count = self._count, self._count + 1

        def write(time: float, packet: Packet, _outgoing: bool) -> None:
            data = encode(packet)
            stamp = round((self._epoch + time) * 1e6)
            fixed = struct.pack("<IIIII", number, stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data))
            self._file.write(_block(6, fixed + data))

        interface.tap = write
        self._tapped.append(interface)

    def close(self) -> None:
        """Stop capturing, and close the file."""
        for interface in self._tapped:
            for each in (interface, *interface.host.interfaces):  # its host may have moved
                each.tap = None
        self._file.close()
