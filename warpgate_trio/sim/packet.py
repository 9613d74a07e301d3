"""Packets as the simulator carries them: the header fields that have an effect, and the payload, uninterpreted.

A packet is never changed after it was sent, since links may deliver it twice and the trace keeps it.  Routers rewrite a
copy.  Sequence numbers are the 32-bit ones of the wire; a window is in bytes, already scaled.  An ICMP error carries
the packet that caused it as an object.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, final

from .addr import Endpoint, is_v6

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
PROTOCOL_NAMES: Final = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP"}

FIN: Final = 1
SYN: Final = 2
RST: Final = 4
PSH: Final = 8
ACK: Final = 16
_FLAG_LETTERS: Final = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "A"))

DEFAULT_TTL: Final = 64
_QUOTED: Final = 548  # RFC 1812, section 4.3.2.3: as much of a packet as fits in 576 bytes
_HEADERS: Final = {ICMP: 28, TCP: 40, UDP: 28}  # with an IPv4 header


class Icmp(Enum):
    """ICMP errors by their meaning; the values are (type, code) for IPv4 and IPv6."""

    NET_UNREACHABLE = ((3, 0), (1, 0))
    HOST_UNREACHABLE = ((3, 1), (1, 3))
    PORT_UNREACHABLE = ((3, 3), (1, 4))
    PACKET_TOO_BIG = ((3, 4), (2, 0))
    ADMIN_PROHIBITED = ((3, 13), (1, 1))
    TIME_EXCEEDED = ((11, 0), (3, 0))


@final
class Packet:
    """One IP packet.

    Attributes:
      proto: `UDP`, `TCP` or `ICMP`.
      src, dst: (address, port); the port is 0 for ICMP.
      ttl: remaining hops.
      payload: the payload of the transport.
      flags, seq, ack, window: for TCP.
      stamp, echo: for TCP: the timestamps of RFC 7323: when it was sent, and the peer's timestamp that it echoes.
      blocks: for TCP: selective acknowledgements (RFC 2018), as pairs of the first number and one after the last.
      mss: for TCP, in a SYN: the maximum segment size of its sender; 0 without the option.
      error, about, mtu: for ICMP: the error, the packet that caused it, for PACKET_TOO_BIG the size that would pass.
      size: bytes on the wire, IP header included.
      fragments: whether routers may fragment it (no DF bit); the fragments then travel as one packet.
    """

    __slots__ = (
        "about",
        "ack",
        "blocks",
        "dst",
        "echo",
        "error",
        "flags",
        "fragments",
        "mss",
        "mtu",
        "payload",
        "proto",
        "seq",
        "size",
        "src",
        "stamp",
        "ttl",
        "window",
    )

    def __init__(
        self,
        proto: int,
        src: Endpoint,
        dst: Endpoint,
        payload: bytes = b"",
        ttl: int = DEFAULT_TTL,
        flags: int = 0,
        seq: int = 0,
        ack: int = 0,
        window: int = 0,
        error: Icmp | None = None,
        about: Packet | None = None,
        mtu: int = 0,
        fragments: bool = False,
        stamp: float | None = None,
        echo: float | None = None,
        blocks: tuple[tuple[int, int], ...] = (),
        mss: int = 0,
    ) -> None:
        self.proto: int = proto
        self.src: Endpoint = src
        self.dst: Endpoint = dst
        self.payload: bytes = payload
        self.ttl: int = ttl
        self.flags: int = flags
        self.seq: int = seq
        self.ack: int = ack
        self.window: int = window
        self.error: Icmp | None = error
        self.about: Packet | None = about
        self.mtu: int = mtu
        self.fragments: bool = fragments
        self.stamp: float | None = stamp
        self.echo: float | None = echo
        self.blocks: tuple[tuple[int, int], ...] = blocks
        self.mss: int = mss
        self.size: int = _HEADERS[proto] + len(payload) + (20 if ":" in src[0] else 0)
        if about is not None:
            self.size += min(about.size, _QUOTED)

    def rewritten(
        self,
        src: Endpoint | None = None,
        dst: Endpoint | None = None,
        *,
        ttl: int | None = None,
        payload: bytes | None = None,
        about: Packet | None = None,
    ) -> Packet:
        """A copy with some fields replaced."""
        return Packet(
            self.proto,
            self.src if src is None else src,
            self.dst if dst is None else dst,
            self.payload if payload is None else payload,
            self.ttl if ttl is None else ttl,
            self.flags,
            self.seq,
            self.ack,
            self.window,
            self.error,
            self.about if about is None else about,
            self.mtu,
            self.fragments,
            self.stamp,
            self.echo,
            self.blocks,
            self.mss,
        )

    @property
    def flag_letters(self) -> str:
        """The TCP flags in tcpdump's letters, such as ``"SA"`` for SYN and ACK."""
        return "".join(letter for bit, letter in _FLAG_LETTERS if self.flags & bit)

    def __str__(self) -> str:
        if self.error is not None and self.about is not None:
            return f"ICMP {self.error.name.lower()} {self.src[0]} > {self.dst[0]} about [{self.about}]"
        what = f" [{self.flag_letters}]" if self.proto == TCP else ""
        ends = f"{show(self.src)} > {show(self.dst)}"
        return f"{PROTOCOL_NAMES[self.proto]} {ends}{what} {len(self.payload)} B"

    def __repr__(self) -> str:
        return f"<Packet {self} ttl={self.ttl}>"


def show(endpoint: Endpoint) -> str:
    """An endpoint as text, with an IPv6 address in brackets."""
    address, port = endpoint
    return f"[{address}]:{port}" if is_v6(address) else f"{address}:{port}"


def icmp_error(source: str, error: Icmp, about: Packet, *, mtu: int = 0) -> Packet:
    """The ICMP error by which `source` reports the fate of the packet `about` to its sender."""
    return Packet(ICMP, (source, 0), (about.src[0], 0), error=error, about=about, mtu=mtu)


def reset_for(packet: Packet, ttl: int = DEFAULT_TTL) -> Packet:
    """The RST that answers a segment for which there is no connection (RFC 9293, section 3.10.7.1)."""
    if packet.flags & ACK:
        return Packet(TCP, packet.dst, packet.src, ttl=ttl, flags=RST, seq=packet.ack)
    length = len(packet.payload) + bool(packet.flags & SYN) + bool(packet.flags & FIN)
    ack = (packet.seq + length) & 0xFFFFFFFF
    return Packet(TCP, packet.dst, packet.src, ttl=ttl, flags=RST | ACK, ack=ack)
