"""Reverse proxies in front of a server of ours: which client a forwarded connection belongs to.

Behind a proxy every connection comes from the proxy, so limits for each subscriber need the client's address.  There
are two common ways to pass it on.  The operator configures which one is used, since a client could forge the header
that its proxy does not write.

* The *PROXY protocol* (haproxy's specification, versions 1 and 2): a header in front of all other bytes, including TLS.
* *Forwarded* (RFC 7239) or *X-Forwarded-For* in the request.  A client may have sent either, and proxies pass on
  headers that they do not know.  Each proxy appends an address on the right, so the rightmost address that is not a
  trusted proxy's is the client's.  If both headers are present they have to agree, so a forged one does not help.

Such headers are read only on connections from a trusted proxy.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, final

from ..errors import RemoteProtocolError
from ..sockaddr import TransportAddress, parse_ip, unmapped

__all__ = ["MAX_PROXY_HEADER", "ProxyHeader", "ProxyReader", "TrustedProxies"]

MAX_PROXY_HEADER: Final = 1024
"""Bytes of the largest header of the PROXY protocol: addresses, and the extensions that real proxies send (up to some
500)."""
MAX_FORWARDED: Final = 2048
"""Characters of Forwarded or X-Forwarded-For that are accepted: thirty hops."""

_V1_LONGEST: Final = 107  # the specification, section 2.1, with CR LF
_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16
_ADDRESS_BYTES: Final = {0x1: 4, 0x2: 16}  # by address family of version 2
# RFC 7239 section 4: token or quoted-string; without a comma, semicolon or quote outside of quotes.
_PAIR = re.compile(r'\s*([A-Za-z0-9!#$%&\'*+.^_`|~-]+)=("(?:[^"\\]|\\.)*"|[^",;\s]*)\s*')


class ProxyHeader(enum.Enum):
    """How a proxy passes on the client's address."""

    PROXY = "proxy"
    FORWARDED = "forwarded"


@final
class TrustedProxies:
    """The proxies that are trusted to name the client, and how they do it.

    Args:
      networks: their addresses, such as ``10.0.0.0/8``, or a single address.
      header: how they pass on the client's address.

    Raises:
      ValueError: an entry of `networks` is neither a network nor an address.
    """

    def __init__(self, networks: Iterable[str], header: ProxyHeader) -> None:
        self._networks: tuple[IPv4Network | IPv6Network, ...] = tuple(
            ip_network(each, strict=False) for each in networks
        )
        self.header = header

    def covers(self, host: str) -> bool:
        """Whether an address is a trusted proxy's."""
        ip = unmapped(parse_ip(host))
        return any(ip in network for network in self._networks)

    def client(self, proxy: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The address of the client whose request came from `proxy`; the proxy's own if the headers name none.

        Raises:
          RemoteProtocolError: the headers are malformed or too long, or name two clients.
        """
        found = {
            self._rightmost(proxy, hops)
            for name, read in ((b"forwarded", _forwarded), (b"x-forwarded-for", _x_forwarded_for))
            if (hops := read(_joined(headers, name))) is not None
        }
        if len(found) > 1:
            raise RemoteProtocolError(
                f"Forwarded and X-Forwarded-For name different clients: {' and '.join(sorted(found))}"
            )
        return found.pop() if found else proxy

    def _rightmost(self, proxy: str, hops: Sequence[str | None]) -> str:
        """The nearest hop that is not trusted.  None in `hops`, a hop without an address, ends the chain."""
        last = proxy
        for hop in reversed(hops):
            if hop is None or not self.covers(last):
                break
            last = hop
        return last


def _joined(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str | None:
    values = [value for key, value in headers if key.lower() == name]
    if not values:
        return None
    if sum(map(len, values)) > MAX_FORWARDED:
        raise RemoteProtocolError(f"more than {MAX_FORWARDED} characters in the header {name.decode()}")
    return b",".join(values).decode("latin-1")


def _x_forwarded_for(text: str | None) -> list[str | None] | None:
    return None if text is None else [_address(each.strip()) for each in text.split(",")]


def _forwarded(text: str | None) -> list[str | None] | None:
    """The ``for`` address of each element."""
    if text is None:
        return None
    hops: list[str | None] = []
    position, hop, fresh = 0, None, True
    while True:
        match = _PAIR.match(text, position)
        if match is not None:
            if match[1].lower() == "for":
                value = match[2]
                hop = _address(re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value)
            position, fresh = match.end(), False
        if position == len(text) or text[position] == ",":
            if not fresh:
                hops.append(hop)
            hop, fresh = None, True
            if position == len(text):
                return hops
        elif text[position] != ";":
            raise RemoteProtocolError("a malformed Forwarded header")
        position += 1


def _address(text: str) -> str | None:
    """The address in a node identifier (RFC 7239 section 6), with or without a port; None: it has none, or hides it."""
    match = re.fullmatch(
        r"\[([0-9A-Fa-f:.]+)\](?::[0-9A-Za-z._-]+)?|([0-9.]+)(?::[0-9A-Za-z._-]+)?|([0-9A-Fa-f:.]+)", text
    )
    try:
        return str(ip_address(match[1] or match[2] or match[3])) if match is not None else None
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------------- the PROXY protocol


@final
class ProxyReader:
    """Reads the header of the PROXY protocol in front of a connection, without I/O.

    Attributes:
      rest: once `feed` has returned True, the bytes that came behind the header.
      source: then, the client's address; None: the proxy itself (a health check, or a client without an IP address).
    """

    def __init__(self) -> None:
        self.rest: bytes = b""
        self.source: TransportAddress | None = None

    def feed(self, data: bytes) -> bool:
        """Take received bytes.  Returns whether the header is complete.

        Raises:
          RemoteProtocolError: they are no header of the PROXY protocol.
        """
        self.rest += data
        if self.rest[: len(_V2_SIGNATURE)] == _V2_SIGNATURE[: len(self.rest)]:
            return self._feed_2()
        if self.rest[:6] == b"PROXY "[: len(self.rest)]:
            return self._feed_1()
        raise RemoteProtocolError("the proxy sends no header of the PROXY protocol")

    def _feed_1(self) -> bool:
        line, end, _ = self.rest[:_V1_LONGEST].partition(b"\r\n")
        if not end:
            if len(self.rest) >= _V1_LONGEST:
                raise RemoteProtocolError("a header of the PROXY protocol, version 1, without an end")
            return False
        self.rest = self.rest[len(line) + 2 :]
        words = line.split(b" ")
        if words[1] == b"UNKNOWN":
            return True
        try:
            _, kind, source, _, port, _ = (word.decode("ascii") for word in words)
            ip = ip_address(source)
            if {"TCP4": 4, "TCP6": 6}[kind] != ip.version or not (port.isdecimal() and int(port) <= 0xFFFF):
                raise ValueError(line)
        except (ValueError, KeyError) as error:
            raise RemoteProtocolError("a malformed header of the PROXY protocol") from error
        self.source = (str(ip), int(port))
        return True

    def _feed_2(self) -> bool:
        if len(self.rest) < _V2_FIXED:
            return False
        command, family, length = self.rest[12], self.rest[13], int.from_bytes(self.rest[14:16], "big")
        if command >> 4 != 2 or command & 15 > 1 or _V2_FIXED + length > MAX_PROXY_HEADER:
            raise RemoteProtocolError("a malformed header of the PROXY protocol")
        if len(self.rest) < _V2_FIXED + length:
            return False
        body, self.rest = self.rest[_V2_FIXED : _V2_FIXED + length], self.rest[_V2_FIXED + length :]
        size = _ADDRESS_BYTES.get(family >> 4)
        if command & 15 == 0 or size is None:  # LOCAL; UNSPEC and UNIX
            return True
        if length < 2 * size + 4:
            raise RemoteProtocolError("a header of the PROXY protocol that is too short for its addresses")
        self.source = (str(ip_address(body[:size])), int.from_bytes(body[2 * size : 2 * size + 2], "big"))
        return True
